"""What is planted in a small dataset is found by its audit, and nothing else is."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.data.audit import audit_dataset, drop_unreadable, format_audit
from pipeline.data.dataset import Dataset, load_dataset
from tests.shared import SHARED, needs_shared

COUNT = 12  # pictures a class and split


def picture(seed: int, side: int = 128) -> Image.Image:
    """Smooth coloured blobs with some grain: no two seeds look alike."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (7, 7, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    grain = random.normal(0, 6, smooth.shape)
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def build(root: Path, save=lambda image, path, label: image.save(path, quality=90)) -> Dataset:
    seed = 0
    for split in ("train", "validate"):
        for label in ("real", "fake"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(COUNT):
                seed += 1
                save(picture(seed), folder / f"{number}.jpg", label)
    return load_dataset(root)


def audited(dataset: Dataset) -> dict:
    return audit_dataset(dataset, workers=2, progress=False)


def test_a_clean_dataset_has_no_warnings(tmp_path):
    dataset = build(tmp_path)
    audit = audited(dataset)
    assert audit["warnings"] == []
    assert audit["unreadable"] == audit["copies"] == audit["near_across_splits"] == []
    assert audit["counts"]["train"] == {"real": {"": COUNT}, "fake": {"": COUNT}}
    assert audit["leaks"]["overall"]["width"] == audit["leaks"]["overall"]["JPEG quality"] == 0.5
    assert json.loads(json.dumps(audit)) == audit
    text = format_audit(audit)
    assert "WARNING" not in text
    assert audit["fingerprint"] in text


def save_png(image, path, label):
    image.save(path, "PNG" if label == "fake" else "JPEG")


def save_quality(image, path, label):
    image.save(path, quality=75 if label == "fake" else 92, subsampling=0)


def save_size(image, path, label):
    # Larger and smaller than every fake: no threshold on the width parts them
    side = 128 if label == "fake" else (96 if int(path.stem) % 2 else 160)
    image.resize((side, side)).save(path, quality=90)


def save_subsampling(image, path, label):
    image.save(path, quality=90, subsampling=2 if label == "fake" else 0)


@pytest.mark.parametrize(
    ("save", "leak", "innocent"),
    [
        (save_png, "file format", "width"),
        (save_quality, "JPEG quality", "chroma subsampling"),
        (save_size, "width", "aspect ratio"),
        (save_subsampling, "chroma subsampling", "JPEG quality"),
    ],
)
def test_a_leak_is_measured_and_stands_on_top(tmp_path, save, leak, innocent):
    audit = audited(build(tmp_path, save))
    assert audit["leaks"]["overall"][leak] == 1
    assert audit["leaks"]["overall"][innocent] in (0.5, None)
    lines = format_audit(audit).splitlines()
    assert set(lines[0]) == {"!"}
    assert "DATASET WARNING" in lines[1]
    assert any(f"LEAK: {leak}" in line for line in lines[:20])


def test_quality_of_a_jpeg_is_estimated(tmp_path):
    # Half of the fakes at one step lower: visible only if the estimate is that fine
    def save(image, path, label):
        image.save(path, quality=84 if label == "fake" else 85)

    assert audited(build(tmp_path, save))["leaks"]["overall"]["JPEG quality"] == 1


def test_a_leak_of_one_generator_is_found_though_the_others_hide_it(tmp_path):
    build(tmp_path)
    for split in ("train", "validate"):
        fake = tmp_path / split / "fake"
        for number in range(COUNT):
            kind = fake / ("diffusion" if number < 2 else "gan")
            kind.mkdir(exist_ok=True)
            (fake / f"{number}.jpg").rename(kind / f"{number}.jpg")
        for path in (fake / "diffusion").iterdir():
            Image.open(path).save(path.with_suffix(".png"))
            path.unlink()
    audit = audited(load_dataset(tmp_path))
    assert audit["counts"]["train"]["fake"] == {"diffusion": 2, "gan": COUNT - 2}
    assert audit["leaks"]["overall"]["file format"] < 0.75
    assert audit["leaks"]["by_generator"]["diffusion"]["file format"] == 1
    assert audit["leaks"]["by_generator"]["gan"]["file format"] == 0.5
    [leak] = [warning for warning in audit["warnings"] if warning.startswith("LEAK: file format")]
    assert "1.00 for diffusion" in leak and "for gan" not in leak


def test_a_fake_is_compared_with_the_real_pictures_of_its_own_name(tmp_path):
    # Two sources that leak in opposite directions: together they look innocent
    for split in ("train", "validate"):
        for number, (label, source) in enumerate(
            (label, source) for label in ("real", "fake") for source in ("one", "two")
        ):
            folder = tmp_path / split / label / source
            folder.mkdir(parents=True)
            quality = 70 if (label == "fake") == (source == "one") else 95
            for i in range(COUNT):
                seed = 1000 * len(split) + 100 * number + i
                picture(seed).save(folder / f"{i}.jpg", quality=quality)
    leaks = audited(load_dataset(tmp_path))["leaks"]
    assert leaks["overall"]["JPEG quality"] == 0.5
    assert leaks["by_generator"]["one"]["JPEG quality"] == 1
    assert leaks["by_generator"]["two"]["JPEG quality"] == 1


def test_copies_and_near_copies_across_the_split_are_found(tmp_path):
    build(tmp_path)
    train, validate = tmp_path / "train/real", tmp_path / "validate/real"
    shutil.copy(train / "3.jpg", validate / "copy.jpg")
    image = Image.open(train / "5.jpg")
    image.resize((115, 115), Image.Resampling.LANCZOS).save(validate / "resaved.jpg", quality=60)

    audit = audited(load_dataset(tmp_path))
    assert audit["copies"] == [["train/real/3.jpg", "validate/real/copy.jpg"]]
    assert audit["contradictions"] == []
    near = {found["validate"]: found for found in audit["near_across_splits"]}
    assert near.keys() == {"validate/real/copy.jpg", "validate/real/resaved.jpg"}
    assert near["validate/real/resaved.jpg"]["train"] == "train/real/5.jpg"
    assert near["validate/real/copy.jpg"]["distance"] == 0
    assert re.search(r"2 of 26 .*7\.7%", " ".join(audit["warnings"]))


def test_the_same_picture_in_both_classes_is_a_contradiction(tmp_path):
    build(tmp_path)
    pixels = Image.open(tmp_path / "train/real/0.jpg")
    pixels.save(tmp_path / "train/fake/same.png")  # other bytes, the same pixels
    audit = audited(load_dataset(tmp_path))
    assert audit["contradictions"] == [["train/fake/same.png", "train/real/0.jpg"]]
    assert [found["fake"] for found in audit["near_across_classes"]] == ["train/fake/same.png"]
    assert audit["near_across_classes"][0]["same_split"] is True
    assert any("train/fake/same.png" in warning for warning in audit["warnings"])


def test_unreadable_pictures_are_named_and_dropped(tmp_path):
    dataset = build(tmp_path)
    broken = tmp_path / "train/real/3.jpg"
    broken.write_bytes(broken.read_bytes()[:2000])
    (tmp_path / "validate/fake/4.jpg").write_bytes(b"")
    audit = audited(dataset)
    assert [found["path"] for found in audit["unreadable"]] == [
        "train/real/3.jpg",
        "validate/fake/4.jpg",
    ]
    assert "cut short" in audit["unreadable"][0]["reason"]
    assert re.search(r"validate/fake/4\.jpg: .*empty", format_audit(audit))
    left = drop_unreadable(dataset, audit)
    assert left.train == [sample for sample in dataset.train if sample.path != broken]
    assert len(left.validate) == len(dataset.validate) - 1
    assert audited(left)["unreadable"] == []


def test_all_unreadable_is_still_an_audit(tmp_path):
    dataset = build(tmp_path, lambda image, path, label: path.write_bytes(b"broken"))
    audit = audited(dataset)
    assert len(audit["unreadable"]) == 4 * COUNT
    assert any(str(4 * COUNT) in warning for warning in audit["warnings"])
    assert drop_unreadable(dataset, audit).train == []


def test_groups_across_the_split_are_named(tmp_path):
    dataset = build(tmp_path)

    def grouped(samples, names):
        pairs = zip(samples, names, strict=True)
        return [type(s)(s.path, s.label, s.generator, group) for s, group in pairs]

    train = grouped(dataset.train, ["ada"] + [""] * (2 * COUNT - 1))
    validate = grouped(dataset.validate, ["ada", "bob"] + [""] * (2 * COUNT - 2))
    audit = audited(Dataset(dataset.root, train, validate))
    assert audit["groups_across_splits"] == ["ada"]
    assert any("ada" in warning for warning in audit["warnings"])


def test_warnings_stay_within_their_frame(tmp_path):
    build(tmp_path, save_png)
    shutil.copy(tmp_path / "train/real/3.jpg", tmp_path / "validate/real/copy.jpg")
    lines = format_audit(audited(load_dataset(tmp_path))).splitlines()
    end = lines.index(lines[0], 1)
    assert {len(line) for line in lines[: end + 1]} == {99}


@needs_shared
def test_real_faces_are_no_copies_of_each_other_but_a_resaved_one_is(tmp_path):
    for split in ("train", "validate"):
        for label in ("real", "fake"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            kind = "ffhq_*" if label == "real" else "stylegan_*"
            for path in sorted((SHARED / "faces" / split / label).glob(kind))[:60]:
                (folder / path.name).symlink_to(path)
    known = sorted((tmp_path / "train/fake").iterdir())[7]
    face = Image.open(known)
    smaller = face.resize((face.width * 9 // 10,) * 2, Image.Resampling.BICUBIC)
    smaller.save(tmp_path / "validate/fake/again.jpg", quality=70)

    audit = audited(load_dataset(tmp_path))
    assert audit["near_across_splits"] == [
        {
            "validate": "validate/fake/again.jpg",
            "train": f"train/fake/{known.name}",
            "distance": audit["near_across_splits"][0]["distance"],
        }
    ]
    assert audit["near_across_classes"] == audit["copies"] == audit["unreadable"] == []
    assert not any(warning.startswith("LEAK") for warning in audit["warnings"])
