"""prepare_dataset.py from photos and videos to crops, manifest and audit, killed and resumed."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from pipeline.common.errors import UserError
from pipeline.common.labels import FAKE, REAL
from pipeline.data.crop_journal import Crop, PlannedFile
from pipeline.data.cropping import CropSettings
from pipeline.data.dataset import load_dataset
from pipeline.data.known_sets import SourceFile
from pipeline.data.preparation import (
    find_files,
    make_crops,
    plan_splits,
    source_format_leak,
    write_manifest,
)
from pipeline.photos.images import read_image
from tests.shared import SHARED, needs_shared

SCRIPT = Path(__file__).resolve().parent.parent / "prepare_dataset.py"
WHOLE = CropSettings(face="none", margin=1.3)


def prepare(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    """All that a run leaves, but for its journal, whose lines come in the order of the threads."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".journal.jsonl"
    }


def picture(seed: int, side: int = 40) -> np.ndarray:
    """Smooth colours, each seed its own: no two are near duplicates."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    success, data = cv2.imencode(path.suffix, image[..., ::-1])
    assert success
    path.write_bytes(data.tobytes())
    return path


def save_video(path: Path, frames: list[np.ndarray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    """20 pictures of each class; nothing in them is a face."""
    for i in range(20):
        save(tmp_path / "photos" / "real" / f"r{i}.jpg", picture(i))
        save(tmp_path / "photos" / "fake" / "gan" / f"f{i}.jpg", picture(100 + i))
    return tmp_path / "photos"


def run(source: Path, output: Path, settings: CropSettings = WHOLE, fraction: float = 0.2):
    planned, _ = plan_splits(find_files([source], output), fraction, seed=0)
    crops, skipped = make_crops(planned, output, settings, workers=2, progress=False)
    write_manifest(output, crops, skipped)
    return crops, skipped


def test_faces_are_found_cropped_and_listed(tmp_path):
    astronaut = skimage.data.astronaut()
    for i in range(3):
        save(tmp_path / "in" / "real" / f"{i}.png", np.roll(astronaut, 9 * i, axis=1))
        save(tmp_path / "in" / "fake" / "mirror" / f"{i}.png", astronaut[9 * i :, ::-1])
    done = prepare(tmp_path / "in", "--output", tmp_path / "out", "--workers", 2)
    assert done.returncode == 0, done.stderr
    listed = rows(tmp_path / "out" / "manifest.csv")
    assert len(listed) == 6
    for row in listed:
        crop = read_image(tmp_path / "out" / row["path"])
        left, top, right, bottom = (int(row[side]) for side in ("left", "top", "right", "bottom"))
        assert crop.shape[:2] == (bottom - top, right - left)
        assert 80 < crop.shape[0] < 400  # the face, not the picture of 512
        assert 0.5 < float(row["face_score"]) <= 1
        assert row["path"].startswith(f"{row['split']}/{row['label']}/")
        assert row["generator"] == ("mirror" if row["label"] == "fake" else "")
        # The very pixels of the photo: nothing was compressed or resized on the way
        photo = read_image(tmp_path / row["source"])
        assert np.array_equal(crop, photo[top:bottom, left:right])
    assert {row["split"] for row in listed} == {"train", "validate"}
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert sum(n for kinds in audit["counts"]["train"].values() for n in kinds.values()) == 4
    assert "6 crops" in done.stdout


def test_the_manifest_is_a_dataset_and_so_is_the_folder(photos, tmp_path):
    run(photos, tmp_path / "out")
    by_folder, by_csv = load_dataset(tmp_path / "out"), load_dataset(tmp_path / "out/manifest.csv")
    for split in ("train", "validate"):
        in_folder, in_csv = getattr(by_folder, split), getattr(by_csv, split)
        assert [(s.path, s.label, s.generator) for s in in_folder] == [
            (s.path, s.label, s.generator) for s in in_csv
        ]
    assert (len(by_csv.train), len(by_csv.validate)) == (32, 8)


def test_both_classes_are_stored_alike_and_lossless(tmp_path):
    save(tmp_path / "in/real/a.jpg", picture(1))
    save(tmp_path / "in/fake/b.bmp", picture(2))
    crops, _ = run(tmp_path / "in", tmp_path / "out")
    for crop in crops:
        assert crop.path.endswith(".png")
        stored = read_image(tmp_path / "out" / crop.path)
        assert np.array_equal(stored, read_image(crop.planned.file.path))


def test_size_shrinks_what_is_larger_and_leaves_the_rest(tmp_path):
    save(tmp_path / "in/real/a.png", picture(1, 200)[:100])
    save(tmp_path / "in/fake/b.png", picture(2, 30))
    run(tmp_path / "in", tmp_path / "out", CropSettings("none", 1.3, size=64))
    shapes = {read_image(p).shape for p in (tmp_path / "out").rglob("*.png")}
    assert shapes == {(32, 64, 3), (30, 30, 3)}


def test_bad_photos_are_listed_and_stop_nothing(photos, tmp_path):
    (photos / "real" / "empty.jpg").touch()
    (photos / "real" / "text.png").write_text("no picture")
    (photos / "fake" / "cut.jpg").write_bytes((photos / "fake/gan/f0.jpg").read_bytes()[:300])
    (photos / "fake" / "broken.mp4").write_bytes(b"\0" * 500)
    (photos / "fake" / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(photos / "fake" / "pipe.mp4")
    done = prepare(photos, "--output", tmp_path / "out", "--face", "none")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    skipped = rows(tmp_path / "out" / "skipped.csv")
    assert {Path(row["path"]).name for row in skipped} == {
        *("empty.jpg", "text.png", "cut.jpg", "broken.mp4", "gone.jpg", "pipe.mp4")
    }
    assert all(len(row["reason"]) > 20 for row in skipped)
    assert len(rows(tmp_path / "out" / "manifest.csv")) == 40


def test_photos_without_a_face_are_listed(tmp_path):
    save(tmp_path / "in/real/a.png", skimage.data.astronaut())
    save(tmp_path / "in/fake/b.png", skimage.data.coffee())
    _, skipped = run(tmp_path / "in", tmp_path / "out", CropSettings("auto", 1.3))
    assert [s.path.name for s in skipped] == ["b.png"]
    assert "no face was found" in skipped[0].reason


def test_a_video_gives_frames_spread_evenly_and_one_group(tmp_path):
    frames = [np.full((48, 64, 3), i * 10, np.uint8) for i in range(20)]
    save_video(tmp_path / "in/fake/swap/v.avi", frames)
    save_video(tmp_path / "in/real/short.avi", frames[:2])
    crops, skipped = run(tmp_path / "in", tmp_path / "out", CropSettings("none", 1.3, frames=4))
    assert not skipped
    assert [c.frame for c in crops if c.planned.file.label == FAKE] == [2, 7, 12, 17]
    assert [c.frame for c in crops if c.planned.file.label == REAL] == [0, 1]
    for crop in crops:
        stored = read_image(tmp_path / "out" / crop.path)
        assert abs(float(stored.mean()) - crop.frame * 10) < 3  # the frame that it says
    groups = {row["group"] for row in rows(tmp_path / "out/manifest.csv")}
    assert groups == {"in/fake/swap/v.avi", "in/real/short.avi"}


def test_faces_in_videos_of_a_known_set(tmp_path):
    astronaut = skimage.data.astronaut()[:300]
    root = tmp_path / "FaceForensics"
    for name in ("000", "001", "002", "003"):
        save_video(root / f"original_sequences/youtube/c23/videos/{name}.avi", [astronaut] * 4)
    for name in ("000_001", "002_003"):
        path = root / f"manipulated_sequences/Deepfakes/c23/videos/{name}.avi"
        save_video(path, [astronaut[:, ::-1]] * 4)
    done = prepare(root, "--output", tmp_path / "out", "--frames", 2)
    assert done.returncode == 0, done.stderr
    assert "FaceForensics++, 6 photos and videos" in done.stdout
    listed = rows(tmp_path / "out" / "manifest.csv")
    assert len(listed) == 12
    assert {(row["split"], row["group"]) for row in listed} in (
        {("train", "ff-000"), ("validate", "ff-002")},
        {("train", "ff-002"), ("validate", "ff-000")},
    )
    assert all(int(row["right"]) - int(row["left"]) < 300 for row in listed)


@pytest.mark.parametrize("seed", range(5))
def test_no_group_and_no_donor_crosses_the_split(seed):
    files = [(f"real{i}", SourceFile(Path(f"real{i}"), REAL, "", f"id{i % 10}")) for i in range(40)]
    files += [
        (f"fake{i}{j}", SourceFile(Path(f"fake{i}{j}"), FAKE, "swap", f"id{i}", f"id{j}"))
        for i in range(10)
        for j in range(10)
        if i != j
    ]
    planned, left_out = plan_splits(files, 0.3, seed)
    assert len(planned) + left_out == len(files)
    assert 0 < left_out < 60
    people: dict[str, set[str]] = {"train": set(), "validate": set()}
    for item in planned:
        people[item.split] |= {item.file.group, item.file.donor} - {""}
    assert people["train"] and people["validate"]
    assert not people["train"] & people["validate"]


def test_published_splits_are_kept_and_their_groups_follow():
    def file(group: str, split: str, label: int = REAL) -> SourceFile:
        return SourceFile(Path("x"), label, "", group, split=split)

    files = [
        ("a", file("p", "validate")),
        ("b", file("p", "", FAKE)),
        ("c", file("q", "train")),
        ("d", file("q", "", FAKE)),
        ("e", file("q", "test")),
    ]
    planned, _ = plan_splits(files, 0.2, 0)
    splits = ["validate", "validate", "train", "train", "test"]
    assert [item.split for item in planned] == splits


def test_what_publishers_test_with_is_stored_apart(tmp_path):
    for split in ("train", "valid", "test"):
        for label in ("real", "fake"):
            path = tmp_path / "real-vs-fake" / split / label / f"{split}.jpg"
            save(path, picture(len(split) + len(label) * 7 + (label == "fake") * 50))
    run(tmp_path / "real-vs-fake", tmp_path / "out")
    kept = {
        p.parent.relative_to(tmp_path / "out").as_posix() for p in tmp_path.rglob("out/**/*.png")
    }
    assert kept == {
        f"{split}/{kind}"
        for split in ("train", "validate", "test")
        for kind in ("real/FFHQ", "fake/StyleGAN")
    }
    dataset = load_dataset(tmp_path / "out" / "manifest.csv")
    assert (len(dataset.train), len(dataset.validate)) == (2, 2)


def test_a_second_run_does_only_what_is_missing(photos, tmp_path):
    out = tmp_path / "out"
    run(photos, out)
    before = contents(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    lost = sorted(times)[3]
    lost.unlink()
    run(photos, out)
    assert contents(out) == before
    changed = [path for path, mtime in times.items() if path.stat().st_mtime_ns != mtime]
    assert changed == [lost]


def test_changed_new_and_removed_photos(photos, tmp_path):
    out = tmp_path / "out"
    run(photos, out)
    added = save(out / "train" / "fake" / "mine" / "own.png", picture(7))
    save(photos / "real" / "r0.jpg", picture(500, 44))
    save(photos / "real" / "new.jpg", picture(501))
    (photos / "fake" / "gan" / "f5.jpg").unlink()
    run(photos, out)
    fresh = tmp_path / "fresh"
    run(photos, fresh)
    assert added.read_bytes()  # what is not ours stays
    added.unlink()
    assert contents(out) == contents(fresh)


def test_another_split_moves_the_crops(photos, tmp_path):
    out = tmp_path / "out"
    run(photos, out, fraction=0.2)
    inodes = {path.name: path.stat().st_ino for path in out.rglob("*.png")}
    run(photos, out, fraction=0.5)
    assert {path.name: path.stat().st_ino for path in out.rglob("*.png")} == inodes
    run(photos, tmp_path / "fresh", fraction=0.5)
    assert contents(out) == contents(tmp_path / "fresh")


@pytest.mark.slow
def test_kill_9_at_any_moment_then_resume(photos, tmp_path):
    """Killed again and again, the result is that of a run that nobody killed."""
    for i in range(40):  # enough work to be killed in
        save(photos / "real" / f"more{i}.png", picture(1000 + i, 400))
        save(photos / "fake" / "gan" / f"more{i}.png", picture(2000 + i, 400))
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert prepare(photos, "--output", whole, "--face", "none").returncode == 0

    command = [sys.executable, str(SCRIPT), str(photos), "--output", str(out), "--face", "none"]
    killed_at = []
    for crops_to_wait_for in (1, 60):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(out.rglob("*.png"))) < crops_to_wait_for:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed_at.append(len(list(out.rglob("*.png"))))
    assert 0 < killed_at[0] < 120, "the first run was not killed in the middle of its work"
    assert not (out / "manifest.csv").exists() or killed_at[-1] == 120
    # And as if the last kill had hit in the middle of two writes
    half = next(out.rglob("*.png"))
    (half.parent / f".{half.name}.abcd_123").write_bytes(half.read_bytes()[:50])
    with open(out / ".journal.jsonl", "a") as journal:
        journal.write('{"key": "photos/real/r1.jp')

    assert prepare(photos, "--output", out, "--face", "none").returncode == 0
    after, expected = contents(out), contents(whole)
    assert after.keys() == expected.keys()
    for name in after.keys() - {"audit.json"}:
        assert after[name] == expected[name], name
    assert json.loads(after["audit.json"]) == json.loads(expected["audit.json"])


def test_ctrl_c_stops_with_a_sentence(photos, tmp_path):
    for i in range(40):
        save(photos / "real" / f"more{i}.png", picture(1000 + i, 600))
    command = [sys.executable, str(SCRIPT), str(photos), "--output", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, "--face", "none"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not list((tmp_path / "out").rglob("*.png")):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Run the same command again" in errors
    assert "Traceback" not in errors


def test_names_of_every_kind(tmp_path):
    source = tmp_path / "Ünïcode 照片"
    names = [
        "a b,c\n\"d'.jpg",
        "é" * 120 + ".jpg",
        "照片😀.png",
        "%d.png",
        "-x.jpg",
        "...y.jpg"[2:],
    ]
    for i, name in enumerate(names):
        save(source / "real" / "very deep" / name, picture(i))
        save(source / "fake" / "g:1?" / name, picture(50 + i))
    undecodable = os.fsencode(source / "real") + b"/caf\xe9.jpg"
    shutil.copy(source / "real" / "very deep" / "-x.jpg", undecodable)
    crops, skipped = run(source, tmp_path / "out")
    assert not skipped
    assert len(crops) == 2 * (len(names) - 1) + 1  # all but the hidden ones
    dataset = load_dataset(tmp_path / "out" / "manifest.csv")
    assert len(dataset.train) + len(dataset.validate) == len(crops)
    assert {s.generator for s in dataset.train if s.label == FAKE} == {"g_1_"}


def test_same_names_in_two_folders_do_not_collide(tmp_path):
    for folder in ("x", "y"):
        for label in ("real", "fake"):
            save(tmp_path / "in" / folder / label / "1.jpg", picture(len(folder + label)))
    crops, _ = run(tmp_path / "in", tmp_path / "out")
    assert len({crop.path for crop in crops}) == 4
    assert len(list((tmp_path / "out").rglob("*.png"))) == 4


def test_two_sources_of_one_name_are_refused(tmp_path):
    for parent in ("a", "b"):
        save(tmp_path / parent / "set" / "real" / "1.jpg", picture(1))
    with pytest.raises(UserError, match="another source is called set too"):
        find_files([tmp_path / "a/set", tmp_path / "b/set"], tmp_path / "out")


def test_the_output_may_not_lie_in_a_source(photos):
    with pytest.raises(UserError, match="choose an output outside"):
        find_files([photos], photos / "dataset")


def test_a_folder_that_is_not_ours_is_refused(photos, tmp_path):
    mine = save(tmp_path / "out" / "holiday.jpg", picture(1))
    with pytest.raises(UserError, match="not empty"):
        run(photos, tmp_path / "out")
    assert mine.exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="this is a file"):
        run(photos, tmp_path / "file")


def test_other_settings_and_forgotten_sources_are_refused(photos, tmp_path):
    run(photos, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match="--size None, not 32"):
        run(photos, tmp_path / "out", CropSettings("none", 1.3, size=32))
    other = save(tmp_path / "other" / "real" / "1.jpg", picture(1)).parent.parent
    with pytest.raises(UserError, match="it holds crops of photos too"):
        run(other, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_an_output_that_cannot_be_written(photos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        run(photos, tmp_path / "file" / "out")


def test_formats_of_the_sources_that_tell_the_classes_apart_are_a_warning():
    def crop(label: int, name: str) -> Crop:
        item = PlannedFile(SourceFile(Path(name), label), name, "train")
        return Crop(item, name + ".png", None, 0, 0, 1, 1, None)

    apart = [crop(REAL, "a.jpg")] * 9 + [crop(REAL, "b.png")] + [crop(FAKE, "c.PNG")] * 10
    assert "AUC 0.95; real: 9 .jpg, 1 .png; fake: 10 .png" in source_format_leak(apart)
    alike = [crop(label, name) for label in (REAL, FAKE) for name in ("a.jpeg", "b.png")]
    assert source_format_leak(alike) is None
    assert source_format_leak(apart[:10]) is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Name the folders"),
        (["photos"], "--output"),
        (["nowhere", "--output", "out"], "there is none of this name"),
        (["photos", "--output", "out", "--frames", "0"], "--frames must be at least 1"),
        (["photos", "--output", "out", "--validate-fraction", "1"], "--validate-fraction"),
        (["photos", "--output", "out", "--margin", "-1"], "--margin"),
        (["photos", "--output", "out", "--face", "maybe"], "invalid choice"),
    ],
)
def test_wrong_use_is_exit_2_with_a_sentence(arguments, sentence):
    done = prepare(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_list_and_help():
    listing = prepare("--list")
    assert listing.returncode == 0
    for name in ("140k Real and Fake", "CIPLAB", "FaceForensics++", "Celeb-DF v2", "DFDC"):
        assert name in listing.stdout
    usage = prepare("--help")
    assert usage.returncode == 0
    assert "python prepare_dataset.py photos/ --output dataset/" in usage.stdout


@needs_shared
def test_labelled_faces_keep_their_classes(tmp_path):
    for label in ("real", "fake"):
        (tmp_path / "in" / label).mkdir(parents=True)
        for path in sorted((SHARED / "faces" / "test" / "stylegan" / label).iterdir())[:20]:
            (tmp_path / "in" / label / path.name).symlink_to(path)
    crops, skipped = run(tmp_path / "in", tmp_path / "out", CropSettings("auto", 1.3))
    assert len(skipped) <= 2
    for crop in crops:
        assert crop.planned.file.path.parent.name == crop.path.split("/")[1]
