"""The scoring commands as users run them: exit codes, outputs, kills, memory and lean imports."""

import ast
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from pipeline.detectors.detector import load_detector
from pipeline.photos.images import read_image
from pipeline.rows.files import read_rows
from pipeline.rows.rows import FIELDS
from tests.broken_files import make_broken_files, make_odd_but_good_files
from tests.conftest import DETECTOR, FACE_SAMPLE, REPOSITORY, SAMPLES, links
from tests.shared import SHARED, needs_shared
from tests.tiny_detectors import clone_without_weights, make_detector

SCRIPTS = sorted(path.name for path in REPOSITORY.glob("*.py"))
HEAVY = {"tensorflow", "torch", "keras", "sklearn", "matplotlib", "skimage", "scipy", "pandas"}

needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and links")


def assert_refused(process: subprocess.CompletedProcess, *phrases: str) -> None:
    """Exit code 2 and one sentence; argparse adds a line of usage."""
    assert process.returncode == 2
    assert process.stdout == b""
    sentence = process.stderr.decode().splitlines()[-1]
    for phrase in phrases:
        assert phrase in sentence
    assert "Traceback" not in process.stderr.decode()


def without_probability(rows: list[dict]) -> list[dict]:
    return [row | {"fake_probability": None} for row in rows]


def assert_same_rows(rows: list[dict], expected: list[dict]) -> None:
    """Equal, except that another company in its batch may move a probability by rounding."""
    assert without_probability(rows) == without_probability(expected)
    probabilities = [row["fake_probability"] for row in rows]
    assert probabilities == pytest.approx([row["fake_probability"] for row in expected], abs=1e-6)


# Photos in, rows out


def test_samples_as_a_table(infer):
    process = infer(SAMPLES)
    assert process.returncode == 0
    header, *lines = process.stdout.decode().splitlines()
    assert header.split() == ["verdict", "fake", "declared", "face", "photo"]
    assert len(lines) == 12
    assert sum(line.endswith("two_people.jpg") for line in lines) == 2
    [faceless] = [line for line in lines if line.startswith("no face")]
    assert faceless.endswith("no_face_coffee.webp")
    assert re.search(
        "11 photos, 11 faces: .*; 1 without a face; 1 other file skipped", process.stderr.decode()
    )


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_samples_as_a_file(infer, tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    output = tmp_path / "new folder" / f"rows{suffix}"
    process = infer(SAMPLES, "--output", output)
    assert process.returncode == 0
    assert process.stdout == b""
    rows = list(read_rows(output))
    assert [tuple(row) for row in rows] == [FIELDS] * 12
    detector = load_detector(DETECTOR)
    for row in rows:
        assert row["model"] == detector.name
        scored = row["verdict"] != "no face"
        assert row["threshold"] == (detector.calibration.threshold if scored else None)
    if suffix == ".csv":
        assert output.read_text().splitlines()[0] == ",".join(FIELDS)
    if suffix == ".jsonl":
        assert tuple(json.loads(output.read_text().splitlines()[0])) == FIELDS


@pytest.mark.slow
@needs_shared
def test_200_good_photos_among_all_broken_ones(infer, tmp_path):
    pictures = sorted(path for path in (SHARED / "faces/test").rglob("*") if path.suffix == ".jpg")
    good = links(tmp_path / "photos", pictures[:: len(pictures) // 200], 200)
    check_folder_with_broken_files(infer, tmp_path / "photos", good)


def test_samples_among_all_broken_files(infer, tmp_path):
    samples = [path for path in sorted(SAMPLES.iterdir()) if path.suffix != ".md"]
    good = links(tmp_path / "photos", samples, len(samples))
    check_folder_with_broken_files(infer, tmp_path / "photos", good)


def check_folder_with_broken_files(infer, folder: Path, good: list[Path]) -> None:
    (folder / "broken").mkdir()
    (folder / "odd").mkdir()
    phrases = make_broken_files(folder / "broken")
    odd = make_odd_but_good_files(folder / "odd", read_image(FACE_SAMPLE))
    process = infer(folder, "--output", "rows.jsonl")
    assert process.returncode == 1
    assert process.stdout == b""
    assert b"Traceback" not in process.stderr
    assert f"; {len(phrases)} errors; " in process.stderr.decode()

    rows = list(read_rows(folder.parent / "rows.jsonl"))
    errors = {row["path"]: row["error"] for row in rows if row["verdict"] == "error"}
    assert sum(row["verdict"] == "error" for row in rows) == len(errors)
    assert errors.keys() == {str(folder / "broken" / name) for name in phrases}
    for name, phrase in phrases.items():
        assert phrase in errors[str(folder / "broken" / name)]
    expected = {*map(str, good), *(str(folder / "odd" / name) for name in odd)}
    assert {row["path"] for row in rows} - errors.keys() == expected
    # They show one face, which is found in every format.
    assert all(row["face"] == 0 for row in rows if Path(row["path"]).parent.name == "odd")

    process = infer(folder, "--output", "rows.csv")
    assert process.returncode == 1
    assert list(read_rows(folder.parent / "rows.csv")) == rows


@needs_posix
def test_however_a_photo_is_named_it_gets_the_same_row(infer, tmp_path):
    photos = links(tmp_path / "photos", [SAMPLES / "two_people.jpg", FACE_SAMPLE], 6)
    results = {}
    for name, arguments, stdin in [
        ("folder", ["photos"], b""),
        ("pattern", ["photos/*"], b""),
        ("files", ["--", *(f"photos/{path.name}" for path in reversed(photos))], b""),
        ("list", ["-"], b"".join(b"photos/%s\n" % path.name.encode() for path in photos)),
        ("batches of one", ["photos", "--batch-size", "1"], b""),
    ]:
        process = infer("--output", f"{name}.jsonl", *arguments, stdin=stdin)
        assert process.returncode == 0
        rows = read_rows(tmp_path / f"{name}.jsonl")
        results[name] = sorted(rows, key=lambda row: (row["path"], row["face"]))
    assert len(results["folder"]) == 9
    for rows in results.values():
        assert_same_rows(rows, results["folder"])


def test_face_none_takes_whole_pictures(infer, tmp_path):
    assert infer(SAMPLES, "--face", "none", "--output", "rows.csv").returncode == 0
    rows = list(read_rows(tmp_path / "rows.csv"))
    assert len(rows) == 11
    for row in rows:
        height, width = read_image(row["path"]).shape[:2]
        assert [row[side] for side in ("left", "top", "right", "bottom")] == [0, 0, width, height]
        assert row["face_score"] is None


def test_a_threshold_changes_verdicts(infer, tmp_path):
    for threshold in (0, 1):
        process = infer(SAMPLES, "--threshold", threshold, "--output", f"{threshold}.jsonl")
        assert process.returncode == 0
    lowest = [row for row in read_rows(tmp_path / "0.jsonl") if row["verdict"] != "no face"]
    highest = [row for row in read_rows(tmp_path / "1.jsonl") if row["verdict"] != "no face"]
    assert {row["verdict"] for row in lowest} == {"fake"}
    assert {row["threshold"] for row in highest} == {1}
    certain = [row["path"] for row in highest if row["fake_probability"] == 1]
    assert [row["path"] for row in highest if row["verdict"] == "fake"] == certain
    assert len(certain) < len(highest)


# Wrong use


def test_without_paths(infer):
    assert_refused(infer(), "PATH")


@pytest.mark.parametrize("threshold", ["1.1", "-0.1", "nan", "half"])
def test_a_threshold_that_is_no_probability(infer, threshold):
    assert_refused(infer(SAMPLES, f"--threshold={threshold}"), "--threshold", threshold)


@pytest.mark.parametrize("size", ["0", "-3", "many"])
def test_a_batch_size_that_is_no_number_of_pictures(infer, size):
    assert_refused(infer(SAMPLES, f"--batch-size={size}"), "--batch-size", size)


def test_without_weights(infer, tmp_path):
    process = infer(SAMPLES, "--weights", "gone")
    assert_refused(process, "gone: there is no detector here", "download_weights.py")
    assert_refused(infer(SAMPLES, "--weights", "gone.h5"), "gone.h5", "download_weights.py")


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    return clone_without_weights(tmp_path_factory.mktemp("without weights") / "clone")


@pytest.mark.parametrize(
    ("script", "name", "training"),
    [
        ("infer_meso4.py", "meso4", "train_meso.py --data dataset/"),
        (
            "infer_mesoinception4.py",
            "mesoinception4",
            "train_meso.py --data dataset/ --architecture mesoinception4",
        ),
        ("infer_vit.py", "vit", "train_vit.py --data dataset/"),
        ("infer_resnet50.py", "resnet50", "train_resnet50.py --data dataset/"),
    ],
)
def test_a_clone_without_weights(infer, clone, script, name, training):
    process = infer(SAMPLES, script=clone / script)
    assert_refused(
        process,
        f"{clone / 'weights' / name}: there is no detector here",
        f"`python {training}`",
        f"`python download_weights.py {name}`",
    )


@pytest.mark.parametrize(
    ("script", "architecture"),
    [
        ("infer_vit.py", "vit"),
        ("infer_vit.py", "vit_small_patch16_224"),
        ("infer_vit.py", "vit_tiny_patch16_224"),
        ("infer_resnet50.py", "resnet50"),
    ],
)
def test_a_script_scores_with_each_of_its_architectures(infer, tmp_path, script, architecture):
    folder = make_detector(tmp_path / "mine", architecture, offset=3, gain=0)
    arguments = (FACE_SAMPLE, "--weights", folder, "--output", "rows.csv")
    assert infer(*arguments, script=script).returncode == 0
    [row] = read_rows(tmp_path / "rows.csv")
    assert tuple(row) == FIELDS
    assert (row["model"], row["verdict"]) == ("mine", "fake")
    assert row["fake_probability"] == pytest.approx(1 / (1 + math.exp(-3)))


def test_the_first_architecture_that_is_there_serves_and_is_named(infer, tmp_path):
    clone = clone_without_weights(tmp_path / "clone")
    for architecture in ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit"):
        folder = make_detector(clone / "weights" / architecture, architecture)
        process = infer(FACE_SAMPLE, "--output", "rows.csv", script=clone / "infer_vit.py")
        assert process.returncode == 0
        assert f"Scoring with {folder}." in process.stderr.decode()
        [row] = read_rows(tmp_path / "rows.csv")
        assert row["model"] == architecture


def test_two_detectors_where_one_can_score(infer):
    process = infer(SAMPLES, "--weights", DETECTOR, "--weights", DETECTOR)
    assert_refused(process, str(DETECTOR), "second meso4 detector", "only one")


def test_another_h5_file(infer, tmp_path):
    (tmp_path / "mine.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    assert_refused(infer(SAMPLES, "--weights", "mine.h5"), "mine.h5", "none of MesoNet's four")


def test_a_changed_graph(infer, tmp_path):
    shutil.copytree(DETECTOR, tmp_path / "changed")
    with open(tmp_path / "changed" / "model.onnx", "ab") as file:
        file.write(b"\0")
    process = infer(SAMPLES, "--weights", "changed")
    assert_refused(process, str(Path("changed") / "model.onnx"), "SHA-256")


def test_a_detector_of_another_architecture(infer):
    process = infer(SAMPLES, "--weights", DETECTOR, script="infer_mesoinception4.py")
    assert_refused(process, "is a meso4 detector", "mesoinception4")
    process = infer(SAMPLES, "--weights", DETECTOR, script="infer_vit.py")
    assert_refused(process, "vit_small_patch16_224 or vit_tiny_patch16_224")


@needs_shared
@pytest.mark.slow
@pytest.mark.skipif(find_spec("tensorflow") is None, reason="needs TensorFlow, in another process")
def test_published_weights_of_another_architecture(infer):
    process = infer(SAMPLES, "--weights", SHARED / "mesonet" / "MesoInception_DF.h5")
    assert_refused(process, "mesoinception4", "scores with meso4")


def test_no_photos(infer, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    process = infer("empty")
    assert_refused(process, "empty: there are no photos or videos here")
    assert "1 other file skipped" in process.stderr.decode()
    assert_refused(infer("-"), "-: there are no photos or videos here")


def test_a_path_that_leads_nowhere_is_a_row_of_its_own(infer, tmp_path):
    process = infer("nowhere.jpg", "no*.png", FACE_SAMPLE, "--face", "none", "--output", "rows.csv")
    assert process.returncode == 1
    first, second, third = read_rows(tmp_path / "rows.csv")
    assert [row["path"] for row in (first, second)] == ["nowhere.jpg", "no*.png"]
    assert "no such file" in first["error"]
    assert "No file matches" in second["error"]
    assert third["error"] is None


def test_an_output_that_cannot_be(infer, tmp_path):
    assert_refused(
        infer(SAMPLES, "--output", "rows.xlsx"),
        "rows.xlsx",
        ".csv, .jsonl, .parquet, .html or .json",
    )
    (tmp_path / "folder.csv").mkdir()
    assert_refused(infer(SAMPLES, "--output", "folder.csv"), "folder.csv", "folder")
    assert_refused(infer(SAMPLES, "--continue"), "--output")


def test_wrong_use_leaves_an_earlier_output_alone(infer, tmp_path):
    assert infer(FACE_SAMPLE, "--face", "none", "--output", "rows.csv").returncode == 0
    earlier = (tmp_path / "rows.csv").read_bytes()
    assert_refused(infer(SAMPLES, "--output", "rows.csv", "--device", "cuda"), "cuda")
    assert_refused(infer(SAMPLES, "--output", "rows.csv", "--weights", "gone"), "gone")
    assert (tmp_path / "rows.csv").read_bytes() == earlier
    assert [path.name for path in tmp_path.glob("rows*")] == ["rows.csv"]


# Stopped, and gone on with


@pytest.mark.slow
@needs_posix
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_killed_run_goes_on(infer, start_infer, tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    photos = many_photos(tmp_path)
    whole, output = tmp_path / f"whole{suffix}", tmp_path / f"rows{suffix}"
    assert infer("photos", "--output", whole).returncode == 0

    process = start_infer("-", "--output", output, "--batch-size", "4")
    feed_until_rows_appear(process, photos, output)
    process.kill()
    assert process.wait() == -signal.SIGKILL

    resumed = infer("photos", "--output", output, "--continue")
    assert resumed.returncode == 0
    before = int(re.search(r"(\d+) photos? scored already", resumed.stderr.decode())[1])
    after = int(re.search(r"(\d+) photos, ", resumed.stderr.decode())[1])
    assert before > 0
    assert before + after == len(photos)
    assert_same_rows(list(read_rows(output)), list(read_rows(whole)))
    notes = {f".{path.name}.run.json" for path in (whole, output)}
    assert {path.name for path in tmp_path.iterdir()} == {"photos", whole.name, output.name} | notes

    again = infer("photos", "--output", output, "--continue")
    assert again.returncode == 0
    assert re.search(r"^[01] photos?, ", again.stderr.decode(), re.MULTILINE)


@needs_posix
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_ctrl_c_keeps_the_rows_so_far(infer, start_infer, tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    photos = many_photos(tmp_path)
    output = tmp_path / f"rows{suffix}"
    process = start_infer("-", "--output", output, "--batch-size", "4")
    feed_until_rows_appear(process, photos, output)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 130
    assert stdout == b""
    assert b"Traceback" not in stderr
    scored = int(re.search(r"(\d+) photos, ", stderr.decode())[1])
    rows = list(read_rows(output))
    # The photo whose row was being written may be on one side only.
    assert abs(len({row["path"] for row in rows}) - scored) <= 1

    assert infer("photos", "--output", output, "--continue").returncode == 0
    assert {row["path"] for row in read_rows(output)} == set(photos)
    keys = [(row["path"], row["face"]) for row in read_rows(output)]
    assert len(keys) == len(set(keys))


@needs_posix
def test_ctrl_c_while_a_folder_is_scored(start_infer, tmp_path):
    many_photos(tmp_path)
    process = start_infer("photos", *["photos/../photos"] * 20, SAMPLES, "--batch-size", "1")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    assert b"photos/s" in stderr


@needs_posix
def test_a_reader_that_has_seen_enough(start_infer, tmp_path):
    many_photos(tmp_path)
    process = start_infer("photos", "--batch-size", "1")
    process.stdout.readline()
    process.stdout.close()
    process.wait(timeout=600)
    assert process.returncode == 0
    assert b"Traceback" not in process.stderr.read()


def many_photos(folder: Path) -> list[str]:
    """Links to samples in `folder`/photos: as many as surely are more than one run reads ahead."""
    pictures = [FACE_SAMPLE, SAMPLES / "real_cameraman.png", SAMPLES / "two_people.jpg"]
    paths = links(folder / "photos", pictures, 2 * (os.cpu_count() + 4) + 30)
    return [f"photos/{path.name}" for path in paths]


def feed_until_rows_appear(process: subprocess.Popen, photos: list[str], output: Path) -> None:
    """Name the photos on the standard input of `process`, which stays open so that it cannot end,
    and wait until some rows are written."""
    process.stdin.write("".join(f"{photo}\n" for photo in photos).encode())
    process.stdin.flush()
    journal = output.with_name(f".{output.name}.journal.jsonl")
    growing = journal if output.suffix in (".parquet", ".html") else output
    deadline = time.monotonic() + 600
    while not growing.exists() or growing.read_bytes().count(b"\n") < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


# What scoring costs


def test_scoring_imports_no_framework(own_cache):
    code = f"""
import sys
from pathlib import Path
from pipeline.scoring.opening import Network
from pipeline.scoring.scoring_command import score_photos, scoring_parser
meso4 = Network(("meso4",), training="train_meso.py")
args = scoring_parser("", meso4).parse_args([{str(SAMPLES)!r}, "--weights", {str(DETECTOR)!r}])
assert score_photos(args, meso4) == 0
print(*sorted(set(name.partition(".")[0] for name in sys.modules)), file=sys.stderr)
"""
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    modules = set(process.stderr.splitlines()[-1].split())
    assert {"openvino", "cv2", "PIL", "pillow_heif"} <= modules
    assert not modules & (HEAVY | {"pyarrow", "onnxruntime"})


@needs_posix
@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_photos(own_cache, tmp_path):
    picture = tmp_path / "picture.png"
    Image.effect_noise((128, 128), 50).save(picture)
    code = f"""
import resource, sys
from pipeline.scoring.opening import Network
from pipeline.scoring.scoring_command import score_photos, scoring_parser
meso4 = Network(("meso4",), training="train_meso.py")
args = scoring_parser("", meso4).parse_args([*sys.argv[1:], "--weights", {str(DETECTOR)!r}])
assert score_photos(args, meso4) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = []
    for number in (300, 3000):
        folder, output = tmp_path / str(number), tmp_path / f"{number}.jsonl"
        links(folder, [picture], number)
        process = subprocess.run(
            [sys.executable, "-c", code, folder, "--face", "none", "--output", output],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        assert len(list(read_rows(output))) == number
        peaks.append(int(process.stdout))
    assert peaks[1] < 1.15 * peaks[0]


# All scripts


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_comes_without_a_framework(script):
    process = subprocess.run(
        [sys.executable, "-X", "importtime", REPOSITORY / script, "--help"], capture_output=True
    )
    assert process.returncode == 0
    docstring = ast.get_docstring(ast.parse((REPOSITORY / script).read_bytes()))
    assert docstring in process.stdout.decode().replace(os.linesep, "\n")
    imported = {line.rpartition("|")[2].strip() for line in process.stderr.decode().splitlines()}
    assert "argparse" in imported
    assert not imported & HEAVY


def test_a_package_that_is_not_installed_is_named():
    program = (
        "from pipeline.common.command_line import run; run(lambda: __import__('nothing_like.it'))"
    )
    process = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True)
    assert_refused(process, "this needs nothing_like", "pip install -r requirements.txt")


def test_a_mistake_of_our_own_is_not_taken_for_a_missing_package():
    program = (
        "from pipeline.common.command_line import run; run(lambda: __import__('pipeline.nothing'))"
    )
    process = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True)
    assert process.returncode == 1 and b"ModuleNotFoundError" in process.stderr
