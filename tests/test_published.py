"""Only MesoNet's own four files are taken for what they are, and imported once."""

import shutil
import sys

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.published import PUBLISHED, import_published, published_file
from pipeline.runtime import Runtime, cache_folder
from tests.shared import SHARED, needs_shared


@needs_shared
@pytest.mark.parametrize("name", ["Meso4_DF", "Meso4_F2F", "MesoInception_DF", "MesoInception_F2F"])
def test_the_four_files_are_known_by_their_content(name, tmp_path):
    renamed = shutil.copy(SHARED / "mesonet" / f"{name}.h5", tmp_path / "renamed.h5")
    architecture = "mesoinception4" if "Inception" in name else "meso4"
    assert published_file(renamed) == (name, architecture)
    assert (name, architecture) in PUBLISHED.values()


def test_any_other_file_is_refused(tmp_path):
    path = tmp_path / "Meso4_DF.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(UserError, match=r"Meso4_DF\.h5: this is none of MesoNet's four"):
        import_published(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no\.h5.*download_weights\.py"):
        published_file(tmp_path / "no.h5")
    with pytest.raises(UserError, match="cannot be read"):
        published_file(tmp_path)


@needs_shared
def test_a_file_is_imported_once_and_again_where_the_import_is_damaged(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = SHARED / "mesonet" / "Meso4_DF.h5"
    detector = import_published(path)
    assert "Importing" in capfd.readouterr().err
    assert detector.name == "Meso4_DF"
    assert detector.architecture.name == "meso4"
    assert (detector.resize_filter, detector.face_mode) == ("nearest", "none")
    assert detector.calibration.threshold == 0.5
    assert tmp_path in detector.folder.parents

    with monkeypatch.context() as without:  # from now on TensorFlow is not needed
        without.setitem(sys.modules, "models.meso", None)
        again = import_published(path)
    assert again == detector
    assert capfd.readouterr() == ("", "")

    whole = detector.graph.read_bytes()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    expected = Runtime(detector.graph, detector.architecture).logits(pixels)
    detector.graph.write_bytes(whole[:1000])
    mended = import_published(path)
    np.testing.assert_allclose(
        Runtime(mended.graph, mended.architecture).logits(pixels), expected, atol=1e-5
    )


def test_without_tensorflow_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "some.h5"
    path.touch()
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    monkeypatch.setitem(PUBLISHED, empty, ("Meso4_DF", "meso4"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs TensorFlow: pip install -r requirements\.txt"):
        import_published(path)
    assert not (cache_folder() / "published").exists() or not any(
        (cache_folder() / "published").iterdir()
    )
