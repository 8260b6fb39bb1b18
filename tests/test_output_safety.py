"""Nobody's rows are lost or mixed: locks, backups, and what --continue refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.common.errors import UserError
from pipeline.detectors.detector import load_detector
from pipeline.rows.files import open_output, read_rows
from pipeline.rows.rows import COMPARED_FIELDS, FIELDS, VIDEO_FIELDS, Row
from pipeline.rows.run_settings import ModelSettings, version_of
from tests.conftest import DETECTOR, FACE_SAMPLE, REPOSITORY, SAMPLES, links
from tests.test_commands import feed_until_rows_appear
from tests.test_rows import MODELS, TWO, both, die, face

SUFFIXES = (".csv", ".jsonl", ".parquet", ".html")
SETTINGS = {"meso4": ModelSettings("auto", 0.5, "a" * 64)}
OTHERS = {  # what is said of it → the settings of another run
    "threshold": {"meso4": replace(SETTINGS["meso4"], threshold=0.7)},
    "--face none": {"meso4": replace(SETTINGS["meso4"], face="none")},
    "checksum": {"meso4": replace(SETTINGS["meso4"], version="b" * 64)},
}


def note_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.run.json")


def save(path: Path, *rows: Row, resume: bool = False, settings=SETTINGS) -> None:
    with open_output(path, MODELS, resume, settings=settings) as writer:
        for row in rows:
            if row.path not in writer.done:
                writer.write([row])


def photos_in(path: Path) -> set[str]:
    return {row["path"] for row in read_rows(path)}


# One run at a time


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("suffix", (".csv", ".html"))
def test_a_second_run_is_refused_until_the_first_has_ended(infer, start_infer, tmp_path, suffix):
    output = tmp_path / f"rows{suffix}"
    first = start_infer("-", "--output", output, "--face", "none", "--batch-size", "4")
    photos = [str(path) for path in links(tmp_path / "photos", [FACE_SAMPLE], 60)]
    feed_until_rows_appear(first, photos, output)
    journal = tmp_path / f".{output.name}.journal.jsonl"
    growing = output if suffix in (".csv", ".jsonl") else journal
    before = len(growing.read_bytes())
    (tmp_path / "other").mkdir()
    for arguments in ([output], [tmp_path / "other" / ".." / output.name, "--continue"]):
        second = infer("photos", "--face", "none", "--output", *arguments)
        assert second.returncode == 2
        assert b"another run" in second.stderr
        assert output.name in second.stderr.decode()
        assert b"Traceback" not in second.stderr
    assert len(growing.read_bytes()) >= before
    assert not list(tmp_path.glob("*.bak"))

    first.send_signal(signal.SIGKILL)
    first.wait()
    third = infer("photos", "--face", "none", "--output", output, "--continue")
    assert third.returncode == 0, third.stderr
    assert {Path(path).name for path in photos_in(output)} == {Path(path).name for path in photos}
    assert {path.name for path in tmp_path.iterdir()} == {
        "other",
        "photos",
        output.name,
        note_of(output).name,
        *(["rows.json"] if suffix == ".html" else []),  # the page's record
    }


def test_runs_that_begin_at_once_lose_no_row_that_they_report(tmp_path):
    """Several processes try again and again; whoever gets the file adds one photo to it."""
    path = tmp_path / "rows.jsonl"
    program = (
        "import sys; from tests.test_output_safety import *\n"
        "path, name, added = Path(sys.argv[1]), sys.argv[2], 0\n"
        "while added < 15:\n"
        "    try: writer = open_output(path, MODELS, True)\n"
        "    except UserError as error:\n"
        "        assert 'another run' in str(error), error\n"
        "        continue\n"
        "    with writer:\n"
        "        if writer.done or not path.stat().st_size:\n"
        "            writer.write([face(f'{name}{added}.jpg')]); writer.write([face('end.jpg')])\n"
        "        added += 1\n"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", program, str(path), name], cwd=REPOSITORY)
        for name in "abc"
    ]
    assert [run.wait() for run in runs] == [0, 0, 0]
    # The last photo is scored again each time, as it may lack rows; each run found those before.
    assert len(photos_in(path) - {"end.jpg"}) >= 15
    assert os.listdir(tmp_path) == [path.name]


def test_a_lock_ends_with_the_writer_also_where_it_cannot_finish(tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    writer = open_output(path, MODELS)
    writer.write([face("a.jpg")])

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.rows.files.write_parquet", full_disk)
        with pytest.raises(UserError, match="No space left"):
            writer.close()
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not as this program writes it"):
        open_output(tmp_path / "odd.csv", MODELS, True)
    save(path, face("a.jpg"), resume=True)
    save(tmp_path / "odd.csv", face("a.jpg"))
    assert not list(tmp_path.glob(".*.lock"))


# Backups


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nobodys_file_is_overwritten_however_often(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(b"my own, not rows\n")
    (tmp_path / f"rows{suffix}.2.bak").write_bytes(b"my own, too\n")
    for name in ("first.jpg", "second.jpg", "third.jpg"):
        save(path, face(name))
    assert photos_in(path) == {"third.jpg"}
    backups = {backup.name: backup for backup in tmp_path.glob("rows*.bak")}
    assert backups.keys() == {
        f"rows{suffix}{end}" for end in (".bak", ".2.bak", ".3.bak", ".4.bak")
    }
    assert backups[f"rows{suffix}.bak"].read_bytes() == b"my own, not rows\n"
    assert backups[f"rows{suffix}.2.bak"].read_bytes() == b"my own, too\n"
    # What was noted of a run goes with its rows.
    kept = tmp_path / f"rows{suffix}.3.bak"
    assert json.loads(note_of(kept).read_text())["models"]["meso4"]["threshold"] == 0.5


def test_the_journals_of_killed_runs_are_kept_each(tmp_path):
    path = tmp_path / "rows.parquet"
    for name in ("first.jpg", "second.jpg"):
        writer = open_output(path, MODELS)
        writer.write([face(name)])
        die(writer)
    save(path, face("third.jpg"))
    kept = sorted(tmp_path.glob(".rows.parquet.journal*.bak"))
    assert ["first.jpg" in each.read_text() for each in kept].count(True) == 1
    assert ["second.jpg" in each.read_text() for each in kept].count(True) == 1


# Other settings


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("other", OTHERS)
def test_rows_of_other_settings_are_not_mixed_in(tmp_path, suffix, noted, other):
    path = tmp_path / f"rows{suffix}"
    save(path, face("a.jpg"), face("b.jpg"))  # the last is scored again, as it may lack rows
    if not noted:  # as an earlier version of this program left it
        note_of(path).unlink()
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    if other == "checksum" and not noted:  # which the rows do not tell
        save(path, face("b.jpg"), resume=True, settings=OTHERS[other])
        assert photos_in(path) == {"a.jpg", "b.jpg"}
        with pytest.raises(UserError, match=other):
            save(path, face("d.jpg"), resume=True)
        return
    with pytest.raises(UserError, match=rf"rows{suffix}: .*{other}.*--continue"):
        save(path, face("c.jpg"), resume=True, settings=OTHERS[other])
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before
    save(path, face("b.jpg"), resume=True)
    assert photos_in(path) == {"a.jpg", "b.jpg"}


@pytest.mark.parametrize("other", OTHERS)
def test_a_killed_run_is_not_continued_with_other_settings(tmp_path, other):
    path = tmp_path / "rows.parquet"
    writer = open_output(path, MODELS, settings=SETTINGS)
    writer.write([face("a.jpg")])
    die(writer)
    with pytest.raises(UserError, match=other):
        save(path, face("b.jpg"), resume=True, settings=OTHERS[other])
    save(path, face("a.jpg"), resume=True)
    assert photos_in(path) == {"a.jpg"}


def test_photos_without_a_face_tell_of_a_search(tmp_path):
    path = tmp_path / "rows.csv"
    save(path, *(Row(path=name, verdict="no face", model="meso4") for name in ("a", "b")))
    note_of(path).unlink()
    with pytest.raises(UserError, match=r"--face auto .* --face none"):
        save(path, resume=True, settings=OTHERS["--face none"])
    save(path, resume=True, settings=OTHERS["threshold"])  # of which they say nothing


def test_what_sums_up_a_video_tells_of_no_face_mode(tmp_path):
    path = tmp_path / "rows.csv"
    frame, summary = face("clip.mp4"), face("clip.mp4")
    frame.time, summary.frames, summary.median, summary.fake_share = 0.5, 1, 0.1, 0.0
    summary.left = summary.top = summary.right = summary.bottom = summary.face_score = None
    with open_output(path, MODELS) as writer:
        writer.write([frame, summary])
        writer.write([face("b.jpg")])
    save(path, face("b.jpg"), resume=True)
    assert tuple(next(read_rows(path))) == FIELDS + VIDEO_FIELDS


def test_of_two_networks_each_has_its_settings(tmp_path):
    path = tmp_path / "rows.csv"
    settings = {
        TWO[0]: ModelSettings("auto", 0.5, "a" * 64),
        TWO[1]: ModelSettings("auto", 0.5, "b" * 64),
    }
    for resume in (False, True):
        with open_output(path, TWO, resume, COMPARED_FIELDS, settings) as writer:
            writer.write(both("a.jpg"))
            writer.write([Row(path="b.jpg", verdict="no face")])
            writer.write([Row(path="c.jpg", verdict="error", error="The file is empty.")])
    for change in ({"threshold": 0.6}, {"face": "none"}, {"version": "c" * 64}):
        other = settings | {TWO[1]: replace(settings[TWO[1]], **change)}
        with pytest.raises(UserError, match=str(next(iter(change.values())))[:12]):
            open_output(path, TWO, True, COMPARED_FIELDS, other)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"models": {"meso4": {}}}', '{"models": 1}', "\x00"]
)
def test_a_spoilt_note_is_said(tmp_path, content):
    path = tmp_path / "rows.csv"
    save(path, face("a.jpg"))
    note_of(path).write_text(content)
    with pytest.raises(UserError, match=r"\.rows\.csv\.run\.json: .* delete it"):
        save(path, face("b.jpg"), resume=True)
    note_of(path).unlink()
    save(path, face("b.jpg"), resume=True)


def test_a_note_that_outlived_its_rows_stops_nothing(tmp_path):
    path = tmp_path / "rows.csv"
    save(path, face("a.jpg"))
    path.unlink()
    save(path, face("b.jpg"), resume=True, settings=OTHERS["threshold"])
    assert photos_in(path) == {"b.jpg"}


def test_the_version_is_of_what_shapes_rows():
    detector = load_detector(DETECTOR)
    version = version_of(detector)

    def changed(**sections) -> str:
        return version_of(replace(detector, description=detector.description | sections))

    assert version_of(load_detector(DETECTOR)) == version == changed(metrics={"auc": 0.1})
    assert changed(files=detector.description["files"] | {"README.md": "0"}) == version
    assert changed(files=detector.description["files"] | {"model.onnx": "0"}) != version
    calibration = detector.description["calibration"]
    assert changed(calibration=calibration | {"temperature": 9.0}) != version


def test_the_scoring_command_refuses_to_mix(infer, tmp_path):
    output = tmp_path / "rows.csv"
    weights = tmp_path / "meso4"
    shutil.copytree(DETECTOR, weights)
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("real_hopper_face.heic", "two_people.jpg"):
        shutil.copy(SAMPLES / name, photos)
    common = (photos, "--weights", weights, "--output", output)
    assert infer(*common).returncode == 0
    before = output.read_bytes()
    for arguments, said in (
        (["--threshold", "0.9"], "0.9"),
        (["--face", "none"], "--face none"),
    ):
        process = infer(*common, "--continue", *arguments)
        assert process.returncode == 2
        assert said in process.stderr.decode().splitlines()[-1]
        assert output.read_bytes() == before
    description = json.loads((weights / "detector.json").read_text())
    description["calibration"]["uncertain_from"] *= 0.9  # as a later version of it may have
    (weights / "detector.json").write_text(json.dumps(description))
    process = infer(*common, "--continue")
    assert process.returncode == 2
    assert "checksum" in process.stderr.decode().splitlines()[-1]
    assert output.read_bytes() == before
    shutil.copy(DETECTOR / "detector.json", weights)
    assert infer(*common, "--continue").returncode == 0
