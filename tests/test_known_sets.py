"""Each published layout, built small, is recognised, labelled, grouped and split; or refused."""

import json
from pathlib import Path

import pytest

from pipeline.common.errors import UserError
from pipeline.common.labels import FAKE, REAL
from pipeline.data.known_sets import KNOWN_SETS, describe_known_sets, files_of


def lay_out(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def listed(root: Path) -> dict[str, tuple]:
    _, files = files_of(root)
    return {
        file.path.relative_to(root).as_posix(): (
            file.label,
            file.generator,
            file.group,
            file.donor,
            file.split,
        )
        for file in files
    }


def test_folders_real_and_fake_at_any_depth_with_generators(tmp_path):
    lay_out(
        tmp_path,
        "real/a.jpg",
        "FAKE/StyleGAN/v2/b.PNG",
        "FAKE/clip.mp4",
        "more/fake/c.webp",
        "real/notes.txt",
        "real/.hidden.jpg",
        "elsewhere/d.jpg",
    )
    assert listed(tmp_path) == {
        "real/a.jpg": (REAL, "", "", "", ""),
        "FAKE/StyleGAN/v2/b.PNG": (FAKE, "StyleGAN/v2", "", "", ""),
        "FAKE/clip.mp4": (FAKE, "", "", "", ""),
        "more/fake/c.webp": (FAKE, "more", "", "", ""),
    }


@pytest.mark.parametrize("name", ["validate", "valid", "val", "Validation"])
def test_a_split_in_the_folders_is_kept(tmp_path, name):
    lay_out(tmp_path, "train/real/a.jpg", f"{name}/fake/gan/b.jpg", "test/real/c.jpg")
    assert listed(tmp_path) == {
        "train/real/a.jpg": (REAL, "", "", "", "train"),
        f"{name}/fake/gan/b.jpg": (FAKE, "gan", "", "", "validate"),
        "test/real/c.jpg": (REAL, "", "", "", "test"),
    }


def test_train_without_validate_is_split_here(tmp_path):
    lay_out(tmp_path, "train/real/a.jpg", "train/fake/b.jpg", "test/fake/c.jpg")
    assert [entry[-1] for entry in listed(tmp_path).values()] == ["test", "", ""]


@pytest.mark.parametrize("given", ["", "real_vs_fake", "real_vs_fake/real-vs-fake"])
def test_140k_real_and_fake_faces(tmp_path, given):
    lay_out(
        tmp_path,
        *("train.csv", "valid.csv", "test.csv"),
        *(
            f"real_vs_fake/real-vs-fake/{split}/{label}/{split}.jpg"
            for split in ("train", "valid", "test")
            for label in ("real", "fake")
        ),
    )
    name, files = files_of(tmp_path / given)
    assert name == "140k Real and Fake Faces"
    assert {(f.label, f.generator, f.path.stem, f.split) for f in files} == {
        (label, generator, folder, split)
        for label, generator in ((REAL, "FFHQ"), (FAKE, "StyleGAN"))
        for folder, split in (("train", "train"), ("valid", "validate"), ("test", "test"))
    }


def test_ciplab_without_the_copy_that_its_archive_holds(tmp_path):
    inside = ("training_real/real_00001.jpg", "training_fake/easy_6_1110.jpg")
    lay_out(
        tmp_path,
        *(f"real_and_fake_face/{name}" for name in inside),
        *(f"real_and_fake_face_detection/real_and_fake_face/{name}" for name in inside),
    )
    assert files_of(tmp_path)[0] == "CIPLAB Real and Fake Face Detection"
    assert listed(tmp_path) == {
        "real_and_fake_face/training_real/real_00001.jpg": (REAL, "CIPLAB", "", "", ""),
        "real_and_fake_face/training_fake/easy_6_1110.jpg": (FAKE, "CIPLAB", "", "", ""),
    }


FACEFORENSICS = (
    "original_sequences/youtube/c23/videos/071.mp4",
    "original_sequences/youtube/c23/videos/054.mp4",
    "original_sequences/youtube/c23/videos/900.mp4",
    "original_sequences/youtube/c40/videos/071.mp4",
    "original_sequences/actors/c23/videos/01__exit_phone_room.mp4",
    "manipulated_sequences/Deepfakes/c23/videos/071_054.mp4",
    "manipulated_sequences/Deepfakes/c23/masks/071_054.mp4",
    "manipulated_sequences/FaceShifter/c23/videos/054_071.mp4",
    "manipulated_sequences/DeepFakeDetection/c23/videos/01_02__exit_phone_room__YVGY8LOK.mp4",
)


def test_faceforensics_groups_pairs_and_keeps_to_common_compressions(tmp_path):
    lay_out(tmp_path, *FACEFORENSICS)
    assert files_of(tmp_path)[0] == "FaceForensics++"
    files = listed(tmp_path)
    assert files == {
        FACEFORENSICS[0]: (REAL, "youtube", "ff-054", "", ""),
        FACEFORENSICS[1]: (REAL, "youtube", "ff-054", "", ""),
        FACEFORENSICS[2]: (REAL, "youtube", "ff-900", "", ""),
        FACEFORENSICS[4]: (REAL, "actors", "ff-actor-01", "", ""),
        FACEFORENSICS[5]: (FAKE, "Deepfakes", "ff-054", "", ""),
        FACEFORENSICS[7]: (FAKE, "FaceShifter", "ff-054", "", ""),
        FACEFORENSICS[8]: (FAKE, "DeepFakeDetection", "ff-actor-01", "ff-actor-02", ""),
    }


@pytest.mark.parametrize("place", ["", "splits"])
def test_faceforensics_official_splits(tmp_path, place):
    lay_out(tmp_path, *FACEFORENSICS)
    (tmp_path / place).mkdir(exist_ok=True)
    for name, pairs in (("train", [["900", "901"]]), ("val", [["054", "071"]]), ("test", [])):
        (tmp_path / place / f"{name}.json").write_text(json.dumps(pairs))
    files = listed(tmp_path)
    assert [files[FACEFORENSICS[i]][-1] for i in (0, 1, 5, 7)] == ["validate"] * 4
    assert files[FACEFORENSICS[2]][-1] == "train"


@pytest.mark.parametrize("content", ['{"a": 1}', "[[1, 2, 3]]", "[7]", "no json"])
def test_faceforensics_splits_of_another_form_are_refused(tmp_path, content):
    lay_out(tmp_path, *FACEFORENSICS)
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.json").write_text(content)
    with pytest.raises(UserError, match="json"):
        files_of(tmp_path)


def test_faceforensics_needs_one_compression_for_both_classes(tmp_path):
    lay_out(
        tmp_path,
        "original_sequences/youtube/raw/videos/000.mp4",
        "manipulated_sequences/Deepfakes/c40/videos/000_003.mp4",
    )
    with pytest.raises(UserError, match="there as raw, the manipulated ones as c40"):
        files_of(tmp_path)


def test_celeb_df(tmp_path):
    lay_out(
        tmp_path,
        "Celeb-real/id0_0002.mp4",
        "Celeb-real/id1_0000.mp4",
        "YouTube-real/00170.mp4",
        "YouTube-real/00171.mp4",
        "Celeb-synthesis/id0_id1_0002.mp4",
        "Celeb-synthesis/id1_id16_0001.mp4",
    )
    (tmp_path / "List_of_testing_videos.txt").write_text(
        "1 YouTube-real/00170.mp4\n0 Celeb-synthesis/id1_id16_0001.mp4\n"
    )
    assert files_of(tmp_path)[0] == "Celeb-DF v2"
    assert listed(tmp_path) == {
        "Celeb-real/id0_0002.mp4": (REAL, "Celeb-real", "celeb-id0", "", ""),
        "Celeb-real/id1_0000.mp4": (REAL, "Celeb-real", "celeb-id1", "", ""),
        "YouTube-real/00170.mp4": (REAL, "YouTube-real", "", "", "test"),
        "YouTube-real/00171.mp4": (REAL, "YouTube-real", "", "", ""),
        "Celeb-synthesis/id0_id1_0002.mp4": (FAKE, "Celeb-DF", "celeb-id0", "celeb-id1", ""),
        "Celeb-synthesis/id1_id16_0001.mp4": (FAKE, "Celeb-DF", "celeb-id1", "celeb-id16", "test"),
    }


def test_dfdc_over_several_parts(tmp_path):
    lay_out(
        tmp_path,
        "dfdc_train_part_0/aaa.mp4",
        "dfdc_train_part_0/bbb.mp4",
        "dfdc_train_part_1/ccc.mp4",
    )
    (tmp_path / "dfdc_train_part_0/metadata.json").write_text(
        json.dumps(
            {
                "aaa.mp4": {"label": "FAKE", "split": "train", "original": "bbb.mp4"},
                "bbb.mp4": {"label": "REAL", "split": "train"},
                "not_kept.mp4": {"label": "REAL", "split": "train"},
            }
        )
    )
    (tmp_path / "dfdc_train_part_1/metadata.json").write_text(
        json.dumps({"ccc.mp4": {"label": "FAKE", "split": "train", "original": "bbb.mp4"}})
    )
    assert files_of(tmp_path)[0].startswith("DFDC")
    assert listed(tmp_path) == {
        "dfdc_train_part_0/aaa.mp4": (FAKE, "DFDC", "dfdc-bbb", "", ""),
        "dfdc_train_part_0/bbb.mp4": (REAL, "DFDC", "dfdc-bbb", "", ""),
        "dfdc_train_part_1/ccc.mp4": (FAKE, "DFDC", "dfdc-bbb", "", ""),
    }


def test_several_sets_below_one_folder(tmp_path):
    lay_out(
        tmp_path,
        "ciplab/training_real/a.jpg",
        "ciplab/training_fake/easy_1_0001.jpg",
        *(f"ff/{name}" for name in FACEFORENSICS),
    )
    name, files = files_of(tmp_path)
    assert name == "CIPLAB Real and Fake Face Detection and FaceForensics++"
    assert len(files) == 9


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["training_fake/easy_1_0001.jpg"], "looks like CIPLAB.*training_real is not there"),
        (["original_sequences/youtube/c23/videos/000.mp4"], "manipulated_sequences is not there"),
        (
            ["Celeb-real/id0_0000.mp4", "YouTube-real/0.mp4", "Celeb-synthesis/id0_id1_0000.mp4"],
            "looks like Celeb-DF v2, but List_of_testing_videos.txt is not there",
        ),
        (["real-vs-fake/train/pictures/a.jpg"], "looks like 140k.*valid and test is not there"),
        (["photos/a.jpg"], "in a layout that is known"),
        (["real/notes.txt"], "in a layout that is known"),
        ([], "in a layout that is known"),
    ],
)
def test_near_misses_are_refused_with_a_sentence(tmp_path, names, sentence):
    lay_out(tmp_path, *names)
    with pytest.raises(UserError, match=sentence):
        files_of(tmp_path)


@pytest.mark.parametrize(
    "metadata", ["[]", '{"a.mp4": {"split": "train"}}', '{"a.mp4": "FAKE"}', "{", "\x00\xff"]
)
def test_a_foreign_metadata_file_is_no_dfdc(tmp_path, metadata):
    lay_out(tmp_path, "part/a.mp4")
    (tmp_path / "part/metadata.json").write_bytes(metadata.encode("latin-1"))
    with pytest.raises(UserError, match=r"metadata\.json"):
        files_of(tmp_path)


def test_a_source_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is none of this name"):
        files_of(tmp_path / "nowhere")


def test_links_in_a_circle_end(tmp_path):
    lay_out(tmp_path, "real/a.jpg", "fake/b.jpg")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    assert len(files_of(tmp_path)[1]) == 2


def test_every_known_set_says_where_and_under_which_terms():
    text = describe_known_sets()
    for known in KNOWN_SETS:
        assert known.name in text
        assert known.terms in text
        assert known.address.startswith("https://")
        assert known.address in text
