"""Versions of a detector: nothing that was in use is ever lost, and going back is one call."""

import os

import pytest

from pipeline.common.errors import UserError
from pipeline.detectors.detector import load_detector
from pipeline.detectors.versions import (
    copy_detector,
    current_version,
    keep_version,
    next_version,
    use_version,
    versions_of,
)
from tests.test_detector import write


def graph_of(folder) -> bytes:
    return load_detector(folder).graph.read_bytes()


@pytest.fixture
def detector(tmp_path):
    """A detector folder `vit` in its first version, with a second one beside it."""
    folder = write(tmp_path / "vit", graph=b"the first")
    assert keep_version(folder) == 1
    write(next_version(folder), graph=b"the second")
    return folder


def test_what_is_in_use_is_kept_once(tmp_path):
    folder = write(tmp_path / "vit")
    assert versions_of(folder) == {} and current_version(folder) is None
    assert [keep_version(folder), keep_version(folder)] == [1, 1]
    assert list(versions_of(folder)) == [1] and current_version(folder) == 1
    assert next_version(folder).name == "v2"


def test_a_version_takes_its_place_and_back(detector):
    use_version(detector, 2)
    assert graph_of(detector) == b"the second" and current_version(detector) == 2
    use_version(detector, 1)
    assert graph_of(detector) == b"the first" and current_version(detector) == 1
    assert list(versions_of(detector)) == [1, 2]


def test_what_was_in_use_and_nowhere_else_is_kept_first(detector):
    write(detector, graph=b"trained anew, never kept")
    use_version(detector, 2)
    assert graph_of(detector) == b"the second"
    assert graph_of(versions_of(detector)[3]) == b"trained anew, never kept"


def test_files_are_shared_but_never_changed(detector):
    use_version(detector, 2)
    kept = versions_of(detector)[2] / "model.onnx"
    assert os.path.samefile(kept, detector / "model.onnx")
    write(detector, graph=b"another training into the same folder")
    assert kept.read_bytes() == b"the second"


def test_where_links_are_impossible_files_are_copied(detector, monkeypatch, tmp_path):
    def refuse(*paths):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    copy_detector(detector, tmp_path / "copy")
    assert graph_of(tmp_path / "copy") == b"the first"


def test_a_version_that_is_not_there(detector):
    with pytest.raises(UserError, match=r"there is no version 7 \(there: 1, 2\)"):
        use_version(detector, 7)


def test_a_damaged_version_is_not_put_in_use(detector):
    (versions_of(detector)[2] / "model.onnx").write_bytes(b"rotten")
    with pytest.raises(UserError, match="is not the file that detector"):
        use_version(detector, 2)
    assert graph_of(detector) == b"the first"


def test_no_detector_in_use_but_versions(detector):
    """As after a hand deleted the folder: a version still comes back."""
    for file in sorted(detector.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    detector.rmdir()
    use_version(detector, 1)
    assert graph_of(detector) == b"the first"
