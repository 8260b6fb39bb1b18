"""Folders and CSV files become samples; a split parts no group; mistakes become sentences."""

import csv
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.errors import UserError
from pipeline.common.labels import FAKE, REAL
from pipeline.data.dataset import Sample, fingerprint, load_dataset, load_samples
from pipeline.data.dataset import split_by_group as split
from tests.shared import SHARED, needs_shared


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "dataset"
    for part in ("train", "validate"):
        touch(root / part / "real/b.jpg", root / part / "fake/stylegan/v2/ü.PNG")
        touch(root / part / "real/a.jpg")
    return root


def write_csv(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_folder_gives_sorted_samples_with_label_and_generator(folder):
    touch(folder / "train/real/.hidden.jpg", folder / "train/real/.cache/c.jpg")
    touch(folder / "train/real/notes.txt", folder / "train/elsewhere/d.jpg")
    dataset = load_dataset(folder)
    assert dataset.root == folder
    assert dataset.train == [
        Sample(folder / "train/fake/stylegan/v2/ü.PNG", FAKE, "stylegan/v2"),
        Sample(folder / "train/real/a.jpg", REAL),
        Sample(folder / "train/real/b.jpg", REAL),
    ]
    assert [sample.label for sample in dataset.validate] == [FAKE, REAL, REAL]


@pytest.mark.parametrize("name", ["valid", "val", "validation", "Validation"])
def test_other_names_of_the_validate_folder(folder, name):
    (folder / "validate").rename(folder / name)
    assert len(load_dataset(folder).validate) == 3


def test_two_validate_folders_are_ambiguous(folder):
    shutil.copytree(folder / "validate", folder / "val")
    with pytest.raises(UserError, match="val and validate mean the same"):
        load_dataset(folder)


def test_linked_folders_are_followed_once_even_in_a_circle(folder, tmp_path):
    touch(tmp_path / "disk/c.jpg")
    (folder / "train/real/linked").symlink_to(tmp_path / "disk")
    (folder / "train/real/circle").symlink_to(folder / "train/real")
    found = [s for s in load_samples(folder / "train") if s.label == REAL]
    assert [sample.path.name for sample in found] == ["a.jpg", "b.jpg", "c.jpg"]


def test_one_class_alone_is_a_set_but_no_dataset(folder):
    shutil.rmtree(folder / "validate/fake")
    assert {sample.label for sample in load_samples(folder / "validate")} == {REAL}
    with pytest.raises(UserError, match="no fake pictures to validate with"):
        load_dataset(folder)


@pytest.mark.parametrize("break_it", ["missing", "too long", "empty", "no train", "a file"])
def test_without_a_dataset_the_next_steps_are_named(tmp_path, folder, break_it):
    root = folder
    if break_it == "missing":
        root = tmp_path / "nothing"
    elif break_it == "too long":
        root = tmp_path / ("x" * 300)
    elif break_it == "empty":
        (root := tmp_path / "empty").mkdir()
    elif break_it == "no train":
        shutil.rmtree(folder / "train")
    else:
        touch(root := tmp_path / "photo.jpg")
    with pytest.raises(UserError) as raised:
        load_dataset(root)
    text = str(raised.value)
    assert text.startswith(f"{root}: ")
    assert "python prepare_dataset.py --list" in text
    assert "python prepare_dataset.py SOURCE… --output dataset/" in text
    assert "dataset/train/real" in text and "dataset/validate/fake" in text


def test_csv_with_split_column(folder):
    csv = write_csv(
        folder / "all.csv",
        "\ufeffPath, Label,generator,group,split\n"
        "train/real/a.jpg,real,ffhq,ada,train\n"
        "\n"
        "train/fake/stylegan/v2/ü.PNG,1,stylegan,,Train\n"
        "validate/real/a.jpg,0,ffhq,bob,val\n"
        "validate/real/b.jpg,real,ffhq,eve,test\n"
        "validate/fake/stylegan/v2/ü.PNG,FAKE,stylegan,,validation\n",
    )
    dataset = load_dataset(csv)
    assert dataset.train == [
        Sample(folder / "train/fake/stylegan/v2/ü.PNG", FAKE, "stylegan"),
        Sample(folder / "train/real/a.jpg", REAL, "ffhq", "ada"),
    ]
    assert [(s.label, s.group) for s in dataset.validate] == [(FAKE, ""), (REAL, "bob")]


def test_csv_without_split_column_is_split_by_group(tmp_path):
    lines = ["path,label,group"]
    for number in range(100):
        touch(tmp_path / f"{number}.jpg")
        lines.append(f"{number}.jpg,{number % 2},{number // 4}")
    dataset = load_dataset(write_csv(tmp_path / "all.csv", "\n".join(lines)))
    assert len(dataset.validate) == 20
    assert not {s.group for s in dataset.train} & {s.group for s in dataset.validate}
    assert dataset == load_dataset(tmp_path / "all.csv")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("path,generator\na.jpg,x\n", "the column label is missing"),
        ("", "the column path is missing"),
        ("path,label\na.jpg,real\n\na.jpg,genuine\n", "line 4: the label is 'genuine'"),
        ("path,label\na.jpg,real\nlost.jpg,fake\n", "line 3: there is no file .*lost.jpg"),
        ("path,label\nall.csv,fake\n", "line 2: .*all.csv does not end like a photo"),
        ("path,label,split\na.jpg,real,later\n", "line 2: the split is 'later'"),
        ("path,label,group,split\na.jpg,0,ada,train\nb.jpg,1,ada,val\n", "line 3: the group 'ada'"),
        ("path,label\na.jpg\n", "line 2: the label is ''"),
        ("path,label,split\na.jpg,real,train\n", "no fake pictures to train with"),
    ],
)
def test_mistakes_in_a_csv_are_named_with_their_line(tmp_path, text, sentence):
    touch(tmp_path / "a.jpg", tmp_path / "b.jpg")
    with pytest.raises(UserError, match=sentence):
        load_dataset(write_csv(tmp_path / "all.csv", text))


def test_csv_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "all.csv").write_bytes("path,label\nü.jpg,real\n".encode("utf-16"))
    with pytest.raises(UserError, match="no CSV file in UTF-8"):
        load_samples(tmp_path / "all.csv")


SAMPLES = st.lists(
    st.tuples(
        st.sampled_from([REAL, FAKE]),
        st.sampled_from(["", "a", "b"]),
        st.sampled_from("01234567  "),
    ),
    max_size=60,
).map(
    lambda rows: [
        Sample(Path(f"{number}.jpg"), label, generator, group.strip())
        for number, (label, generator, group) in enumerate(rows)
    ]
)


@settings(deadline=None)
@given(SAMPLES, st.floats(0.05, 0.95), st.integers(0, 5), st.randoms(use_true_random=False))
def test_split_parts_no_group_and_loses_nothing(samples, fraction, seed, random):
    train, validate = split(samples, fraction, seed)
    assert sorted(train + validate, key=str) == sorted(samples, key=str)
    groups = [{sample.group for sample in part} - {""} for part in (train, validate)]
    assert not groups[0] & groups[1]
    assert {s.label for s in train} == {s.label for s in samples}
    shuffled = random.sample(samples, len(samples))
    assert split(shuffled, fraction, seed) == (train, validate)


@settings(deadline=None)
@given(st.integers(2, 80), st.integers(2, 80), st.integers(1, 5), st.floats(0.1, 0.5))
def test_split_keeps_the_share_of_each_class(real, fake, group_size, fraction):
    samples = [
        Sample(Path(f"{label}/{i}"), label, "", f"{label}-{i // group_size}")
        for label, count in ((REAL, real * group_size), (FAKE, fake * group_size))
        for i in range(count)
    ]
    _, validate = split(samples, fraction, seed=1)
    found = Counter(sample.label for sample in validate)
    for label, count in ((REAL, real * group_size), (FAKE, fake * group_size)):
        assert found[label] > 0
        assert abs(found[label] - fraction * count) <= group_size


def test_split_shares_out_each_generator():
    samples = [
        Sample(Path(f"{generator}/{i}"), FAKE, generator)
        for generator, count in (("large", 100), ("small", 20))
        for i in range(count)
    ]
    _, validate = split(samples, 0.2, seed=3)
    assert Counter(s.generator for s in validate) == {"large": 20, "small": 4}
    assert validate != split(samples, 0.2, seed=4)[1]


def test_split_refuses_a_fraction_that_leaves_nothing():
    with pytest.raises(ValueError, match="between 0 and 1"):
        split([], 1.0, 0)


def test_fingerprint_follows_names_labels_and_sizes_but_not_the_place(folder, tmp_path):
    samples = load_samples(folder / "train")
    first = fingerprint(samples)
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert fingerprint(reversed(load_samples(moved / "train"))) == first

    other_label = [Sample(s.path, 1 - s.label) for s in samples]
    assert fingerprint(other_label) != first
    (folder / "train/real/a.jpg").write_bytes(b"another size")
    assert fingerprint(samples) != first
    os.rename(moved / "train/real/a.jpg", moved / "train/real/z.jpg")
    assert fingerprint(load_samples(moved / "train")) != first


@needs_shared
def test_the_labelled_faces():
    dataset = load_dataset(SHARED / "faces")
    with open(SHARED / "faces" / "manifest.csv", newline="", encoding="utf-8") as file:
        listed = Counter((row["set"], row["label"]) for row in csv.DictReader(file))
    for name, samples in (("train", dataset.train), ("validate", dataset.validate)):
        found = Counter(sample.label for sample in samples)
        assert found == {REAL: listed[name, "real"], FAKE: listed[name, "fake"]}
