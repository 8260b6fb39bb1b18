"""Scoring with two networks at once: each sees its own crop, a face is searched for only once."""

import io
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from pipeline.detectors.detector import load_detector
from pipeline.photos.faces import FaceFinder
from pipeline.photos.images import read_image, read_picture
from pipeline.photos.inputs import find_photos
from pipeline.photos.photo import Photo
from pipeline.rows.files import read_rows
from pipeline.rows.rows import COMPARED_FIELDS, Row
from pipeline.rows.table import Summary, TableWriter
from pipeline.scoring import scoring
from pipeline.scoring.scoring import Scorer
from tests.broken_files import make_broken_files
from tests.conftest import FACE_SAMPLE, SAMPLES, links
from tests.test_commands import assert_refused, feed_until_rows_appear, many_photos, needs_posix
from tests.tiny_detectors import clone_without_weights, make_detector

SCRIPT = "infer_xception_efficientnet.py"
TWO_PEOPLE, NO_FACE = SAMPLES / "two_people.jpg", SAMPLES / "no_face_coffee.webp"

pytestmark = pytest.mark.usefixtures("own_cache")


def score(
    photos: list[Path], folders: list[Path], batch_size: int = 32, **settings
) -> list[list[Row]]:
    """The rows of each photo."""
    scorer = Scorer(*map(load_detector, folders), batch_size=batch_size, **settings)
    return list(scorer.score(Photo(str(path)) for path in photos))


def sample_photos() -> list[Path]:
    return [Path(photo.path) for photo in find_photos([str(SAMPLES)])]


def sigmoid(logit: float) -> float:
    return 1 / (1 + np.exp(-logit))


@pytest.fixture(scope="module")
def detectors(tmp_path_factory) -> list[Path]:
    """Two that look at different crops of other sizes, and often disagree."""
    folder = tmp_path_factory.mktemp("detectors")
    return [
        make_detector(folder / "xception", "xception", gain=6, offset=1.6, uncertain_from=0.4),
        make_detector(
            folder / "efficientnet_lite0",
            "efficientnet_lite0",
            gain=9,
            offset=2,
            margin=2.2,
            resize_filter="nearest",
            uncertain_from=0.3,
        ),
    ]


# What each network sees


def test_each_network_has_its_own_pixel_scaling(tmp_path):
    Image.new("RGB", (64, 64), (204, 204, 204)).save(tmp_path / "grey.png")
    folders = [
        make_detector(tmp_path / "xception", "xception", gain=1, face_mode="none"),
        make_detector(
            tmp_path / "b0",
            "efficientnet_b0",
            gain=0.01,
            offset=-1,
            temperature=2,
            face_mode="none",
        ),
        make_detector(tmp_path / "lite0", "efficientnet_lite0", gain=2, face_mode="none"),
    ]
    [[xception, b0, lite0]] = score([tmp_path / "grey.png"], folders)
    # 204 is 0.6 from -1 to 1, and 204 from 0 to 255: logits 0.6, (2.04 - 1) / 2 and 1.2.
    assert xception.fake_probability == pytest.approx(0.6456563, abs=1e-4)
    assert b0.fake_probability == pytest.approx(0.6271477, abs=1e-4)
    assert lite0.fake_probability == pytest.approx(0.7685248, abs=1e-4)


def test_each_network_has_its_own_resize_filter(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, 1::2] = 250
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    folders = [
        make_detector(
            tmp_path / f"with {resize_filter}",
            "efficientnet_b0",
            gain=0.01,
            size=32,
            resize_filter=resize_filter,
            face_mode="none",
        )
        for resize_filter in ("area", "nearest")
    ]
    [[area, nearest]] = score([tmp_path / "stripes.png"], folders)
    assert area.fake_probability == pytest.approx(sigmoid(1.25), abs=1e-6)  # two columns mixed
    black_or_white = [sigmoid(0), sigmoid(2.5)]  # one of them left out
    assert min(abs(nearest.fake_probability - p) for p in black_or_white) < 1e-6


def test_each_network_has_its_own_crop_of_the_same_face(tmp_path):
    image = data.astronaut()
    Image.fromarray(image).save(tmp_path / "photo.png")
    [face] = FaceFinder().find(image)

    def seen(margin: float) -> float:
        """The mean, from -1 to 1, of a square about the face, which fits into this photo."""
        side = round(margin * (face.bottom - face.top))
        left = round((face.left + face.right - side) / 2)
        top = round((face.top + face.bottom - side) / 2)
        assert left >= 0
        assert top >= 0
        return image[top : top + side, left : left + side].mean() / 127.5 - 1

    folders = [
        make_detector(tmp_path / "xception", "xception", gain=5, size=32, margin=1.0),
        make_detector(tmp_path / "lite0", "efficientnet_lite0", gain=5, size=48, margin=1.5),
    ]
    [[xception, lite0]] = score([tmp_path / "photo.png"], folders)
    tight, wide = sigmoid(5 * seen(1.0)), sigmoid(5 * seen(1.5))
    assert abs(tight - wide) > 0.04
    assert xception.fake_probability == pytest.approx(tight, abs=2e-3)  # pixels are rounded
    assert lite0.fake_probability == pytest.approx(wide, abs=2e-3)
    box = (round(face.left), round(face.top), round(face.right), round(face.bottom))
    for row in (xception, lite0):
        assert (row.left, row.top, row.right, row.bottom) == box
        assert row.face_score == face.score


def test_a_photo_is_decoded_and_searched_once(detectors, monkeypatch):
    decoded, searched = [], []
    find = FaceFinder.find

    def counted_read(path):
        decoded.append(path)
        return read_picture(path)

    def counted_find(finder, image):
        searched.append(image)
        return find(finder, image)

    monkeypatch.setattr(scoring, "read_picture", counted_read)
    monkeypatch.setattr(FaceFinder, "find", counted_find)
    photos = [str(path) for path in sample_photos()]
    assert len(score(photos, detectors)) == len(photos)
    assert sorted(decoded) == sorted(photos)
    assert len(searched) == len(photos)
    score(photos, detectors, face_mode="none")
    assert len(searched) == len(photos)


# Rows


@pytest.mark.slow
@pytest.mark.parametrize(("face_mode", "batch_size"), [(None, 1), (None, 32), ("none", 4)])
def test_each_network_gives_the_rows_that_it_gives_alone(detectors, face_mode, batch_size):
    photos = sample_photos()
    together = score(photos, detectors, batch_size, face_mode=face_mode)
    alone = [score(photos, [folder], face_mode=face_mode) for folder in detectors]
    found = 0
    for photo, rows, *of_one in zip(photos, together, *alone, strict=True):
        if rows[0].verdict == "no face":
            assert rows == [Row(path=str(photo), verdict="no face")]
            continue
        found += len(of_one[0])
        expected = [row for of_face in zip(*of_one, strict=True) for row in of_face]
        for row, other in zip(rows, expected, strict=True):
            assert other.agreement is None
            assert row.fake_probability == pytest.approx(other.fake_probability, abs=1e-6)
            assert replace(row, fake_probability=0, agreement=None) == replace(
                other, fake_probability=0
            )
    assert found == 11


def test_rows_of_a_face_stand_together(detectors):
    [rows] = score([TWO_PEOPLE], detectors)
    assert [(row.face, row.model) for row in rows] == [
        (0, "xception"),
        (0, "efficientnet_lite0"),
        (1, "xception"),
        (1, "efficientnet_lite0"),
    ]
    first, second = rows[:2], rows[2:]
    for face in (first, second):
        assert len({(row.left, row.top, row.right, row.bottom) for row in face}) == 1
    assert first[0].left != second[0].left


LOGITS = {"real": -3, "uncertain": 0, "fake": 3}


@pytest.mark.parametrize("one", LOGITS)
@pytest.mark.parametrize("other", LOGITS)
def test_agreement_is_the_same_verdict(tmp_path, one, other):
    folders = [
        make_detector(
            tmp_path / architecture,
            architecture,
            gain=0,
            offset=LOGITS[verdict],
            size=16,
            threshold=0.8,
            uncertain_from=0.2,
        )
        for architecture, verdict in (("xception", one), ("efficientnet_b0", other))
    ]
    [rows] = score([FACE_SAMPLE], folders)
    assert [row.verdict for row in rows] == [one, other]
    assert [row.agreement for row in rows] == [one == other] * 2


def test_a_photo_that_no_network_can_look_at_has_one_row(detectors, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.touch()
    no_face, error = score([NO_FACE, broken], detectors)
    assert no_face == [Row(path=str(NO_FACE), verdict="no face")]
    [row] = error
    assert row == Row(path=str(broken), verdict="error", error=row.error)
    assert "is empty" in row.error


def test_a_face_and_a_whole_picture_are_not_compared(tmp_path):
    folders = [
        make_detector(tmp_path / "xception", "xception", gain=0, offset=3),
        make_detector(
            tmp_path / "efficientnet_b0", "efficientnet_b0", gain=0, offset=3, face_mode="none"
        ),
    ]
    two_people, no_face = score([TWO_PEOPLE, NO_FACE], folders)
    assert [(row.model, row.face, row.verdict) for row in two_people] == [
        ("xception", 0, "fake"),
        ("xception", 1, "fake"),
        ("efficientnet_b0", 0, "fake"),
    ]
    assert [(row.model, row.face, row.verdict) for row in no_face] == [
        ("xception", None, "no face"),
        ("efficientnet_b0", 0, "fake"),
    ]
    height, width = read_image(TWO_PEOPLE).shape[:2]
    whole = two_people[2]
    assert (whole.left, whole.top, whole.right, whole.bottom) == (0, 0, width, height)
    assert {row.agreement for row in two_people + no_face} == {None}

    stream, summary = io.StringIO(), Summary(["xception", "efficientnet_b0"])
    table = TableWriter(stream, ["xception", "efficientnet_b0"])
    for rows in (two_people, no_face):
        table.write(rows)
        summary.add(rows)
    assert len(stream.getvalue().splitlines()) == 6
    assert summary.line().startswith(
        "2 photos, 3 faces; xception: 2 fake, 0 uncertain, 0 real; "
        "efficientnet_b0: 2 fake, 0 uncertain, 0 real; 0 disagree; "
    )

    [rows] = score([NO_FACE], folders, face_mode="none")
    assert [row.agreement for row in rows] == [True, True]


def test_a_threshold_of_the_users_is_for_both(detectors):
    [rows] = score([FACE_SAMPLE], detectors, threshold=0.0)
    assert [(row.verdict, row.threshold, row.agreement) for row in rows] == [("fake", 0, True)] * 2


# The command


def weights(*folders: Path) -> list[str]:
    return [argument for folder in folders for argument in ("--weights", str(folder))]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_every_format(infer, detectors, tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    output = tmp_path / f"rows{suffix}"
    process = infer(SAMPLES, *weights(*reversed(detectors)), "--output", output, script=SCRIPT)
    assert process.returncode == 0
    assert process.stdout == b""
    rows = list(read_rows(output))
    assert {tuple(row) for row in rows} == {COMPARED_FIELDS}
    expected = [row for rows in score(sample_photos(), detectors) for row in rows]
    assert [row | {"fake_probability": 0} for row in rows] == [
        replace(row, fake_probability=0).as_dict(COMPARED_FIELDS)
        | ({} if row.face is not None else {"fake_probability": 0})
        for row in expected
    ]
    for row, other in zip(rows, expected, strict=True):
        assert row["fake_probability"] == pytest.approx(other.fake_probability, abs=1e-6)
    assert len(rows) == 2 * 11 + 1
    disagreements = sum(row["agreement"] is False for row in rows) // 2
    assert 0 < disagreements < 11
    summary = process.stderr.decode()
    assert f"; {disagreements} disagree; 1 without a face; 1 other file skipped; " in summary
    for model in ("xception", "efficientnet_lite0"):
        fakes = sum(row["model"] == model and row["verdict"] == "fake" for row in rows)
        assert f"; {model}: {fakes} fake, " in summary
    assert summary.startswith("11 photos, 11 faces; ")


def test_the_table_has_a_line_a_face(infer, detectors):
    process = infer(SAMPLES, *weights(*detectors), script=SCRIPT)
    assert process.returncode == 0
    header, *lines = process.stdout.decode().splitlines()
    assert header.split() == ["xception", "efficientnet_lite0", "agree", "face", "photo"]
    assert len(lines) == 12
    for line in lines:
        if not line.startswith("no face"):
            verdicts = re.match(r"(\w+) +[\d.]+%  (\w+) +[\d.]+% +(yes|no) +[01]  /", line)
            assert (verdicts[1] == verdicts[2]) == (verdicts[3] == "yes")


def test_broken_photos_do_not_stop_the_others(infer, detectors, tmp_path):
    (tmp_path / "photos").mkdir()
    phrases = make_broken_files(tmp_path / "photos")
    good = links(tmp_path / "photos" / "good", [FACE_SAMPLE], 3)
    process = infer("photos", *weights(*detectors), "--output", "rows.csv", script=SCRIPT)
    assert process.returncode == 1
    assert f"{len(phrases) + 3} photos, 3 faces; " in process.stderr.decode()
    assert f"; {len(phrases)} errors; " in process.stderr.decode()
    rows = list(read_rows(tmp_path / "rows.csv"))
    errors = [row for row in rows if row["verdict"] == "error"]
    assert sorted(Path(row["path"]).name for row in errors) == sorted(phrases)
    for row in errors:
        assert phrases[Path(row["path"]).name] in row["error"]
        assert (row["model"], row["agreement"]) == (None, None)
    assert len(rows) == len(errors) + 2 * len(good)


@pytest.mark.slow
@needs_posix
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_killed_run_goes_on(infer, start_infer, detectors, tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    photos = many_photos(tmp_path)
    output = tmp_path / f"rows{suffix}"
    arguments = (*weights(*detectors), "--output", output)
    process = start_infer("-", *arguments, "--batch-size", "4", script=SCRIPT)
    feed_until_rows_appear(process, photos, output)
    process.kill()
    assert process.wait() == -signal.SIGKILL

    resumed = infer("photos", *arguments, "--continue", script=SCRIPT)
    assert resumed.returncode == 0
    before = int(re.search(r"(\d+) photos? scored already", resumed.stderr.decode())[1])
    after = int(re.search(r"(\d+) photos, ", resumed.stderr.decode())[1])
    assert before > 0
    assert before + after == len(photos)
    of_samples = [row for rows in score(sample_photos(), detectors) for row in rows]
    faces = {Path(row.path): (row.face or 0) + 1 for row in of_samples}
    expected = [
        (photo, face, model)
        for photo in photos
        for face in range(faces[(tmp_path / photo).resolve()])
        for model in ("xception", "efficientnet_lite0")
    ]
    rows = list(read_rows(output))
    assert [(row["path"], row["face"], row["model"]) for row in rows] == expected
    assert {row["agreement"] for row in rows} == {True, False}
    left = {f".{output.name}.run.json", "photos", output.name}  # nor a lock, nor a journal
    assert set(os.listdir(tmp_path)) == left


# Which detectors


@pytest.fixture
def clone(tmp_path) -> Path:
    return clone_without_weights(tmp_path / "clone")


def test_a_clone_without_weights(infer, clone):
    process = infer(SAMPLES, script=clone / SCRIPT)
    assert_refused(process)
    of_xception, of_efficientnet = process.stderr.decode().splitlines()
    for sentence, name, training in (
        (of_xception, "xception", "train_xception.py"),
        (
            of_efficientnet,
            "efficientnet_lite0",
            "train_efficientnet.py --architecture efficientnet_lite0",
        ),
    ):
        assert f"{clone / 'weights' / name}: there is no detector here" in sentence
        assert f"`python {training} --data dataset/`" in sentence
        assert f"`python download_weights.py {name}`" in sentence


@pytest.mark.parametrize(
    ("there", "missing"), [("xception", "efficientnet_lite0"), ("efficientnet_b0", "xception")]
)
def test_one_network_scores_alone_where_the_other_is_missing(
    infer, clone, tmp_path, there, missing
):
    folder = make_detector(clone / "weights" / there, there)
    process = infer(TWO_PEOPLE, NO_FACE, "--output", "rows.csv", script=clone / SCRIPT)
    assert process.returncode == 0
    which, chosen, summary = process.stderr.decode().splitlines()
    assert f"{clone / 'weights' / missing}: there is no detector here" in which
    assert f"`python download_weights.py {missing}`" in which
    assert chosen == f"Scoring with {folder}."
    assert summary.startswith("2 photos, 2 faces: ")
    rows = list(read_rows(tmp_path / "rows.csv"))
    assert [(row["model"], row["verdict"] == "no face") for row in rows] == [
        (there, False),
        (there, False),
        (there, True),
    ]
    assert {tuple(row) for row in rows} == {COMPARED_FIELDS}
    assert {row["agreement"] for row in rows} == {None}

    process = infer(TWO_PEOPLE, script=clone / SCRIPT)
    assert process.stdout.decode().splitlines()[0].split() == [
        "verdict",
        "fake",
        "declared",
        "face",
        "photo",
    ]


def test_efficientnet_lite0_comes_before_b0(infer, clone):
    for architecture in ("xception", "efficientnet_b0", "efficientnet_lite0"):
        make_detector(clone / "weights" / architecture, architecture)
        if architecture != "xception":
            process = infer(FACE_SAMPLE, script=clone / SCRIPT)
            folders = [clone / "weights" / name for name in ("xception", architecture)]
            assert f"Scoring with {folders[0]} and {folders[1]}.\n" in process.stderr.decode()
            assert process.stdout.decode().split()[:2] == ["xception", architecture]


def test_a_damaged_detector_is_not_passed_over(infer, clone):
    for architecture in ("xception", "efficientnet_b0"):
        make_detector(clone / "weights" / architecture, architecture)
    damaged = clone / "weights" / "efficientnet_b0" / "model.onnx"
    damaged.write_bytes(b"damaged")
    assert_refused(infer(FACE_SAMPLE, script=clone / SCRIPT), str(damaged), "SHA-256")


def test_weights_of_one_network_only(infer, detectors, tmp_path):
    process = infer(FACE_SAMPLE, *weights(detectors[1]), "--output", "rows.jsonl", script=SCRIPT)
    assert process.returncode == 0
    assert "--weights names no xception detector: scoring without." in process.stderr.decode()
    [row] = read_rows(tmp_path / "rows.jsonl")
    assert (row["model"], row["agreement"]) == ("efficientnet_lite0", None)


def test_detectors_that_cannot_score_together(infer, detectors, tmp_path):
    vit = make_detector(tmp_path / "vit", "vit")
    second = make_detector(tmp_path / "b0", "efficientnet_b0")
    same_name = make_detector(tmp_path / "xception", "efficientnet_b0")
    for folders, phrases in (
        ([detectors[0], vit], [str(vit), "xception, efficientnet_lite0 or efficientnet_b0"]),
        ([*detectors, second], [str(second), "second efficientnet_lite0 or efficientnet_b0"]),
        ([detectors[0], same_name], ["named xception", "detector.json"]),
        ([detectors[0], tmp_path / "gone"], ["gone: there is no detector here"]),
    ):
        assert_refused(infer(FACE_SAMPLE, *weights(*folders), script=SCRIPT), *phrases)
