"""The folder of a training: what may be started, what may be resumed, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.common.errors import UserError
from pipeline.training.runs import close_run, open_run, read_history

REPOSITORY = Path(__file__).resolve().parent.parent
SETTINGS = {"architecture": "meso4", "learning_rate": 1e-3, "augmentation": {"size": (1, 2)}}


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "weights" / "größe"


def test_a_new_run_notes_its_settings(output):
    run = open_run(output, SETTINGS, resume=False)
    assert run == output.with_name("größe.run")
    noted = json.loads((run / "run.json").read_text())
    assert noted["settings"]["learning_rate"] == 1e-3
    assert noted["finished"] is False
    assert not output.exists()


def test_an_unfinished_run_is_not_overwritten(output):
    run = open_run(output, SETTINGS, resume=False)
    (run / "history.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"größe\.run holds an unfinished training.*--resume"):
        open_run(output, SETTINGS, resume=False)
    assert (run / "history.jsonl").exists()


def test_a_finished_run_is_followed_by_a_new_one(output):
    run = open_run(output, SETTINGS, resume=False)
    (run / "history.jsonl").write_text("{}\n")
    close_run(run)
    assert open_run(output, SETTINGS | {"learning_rate": 0.1}, resume=False) == run
    assert not (run / "history.jsonl").exists()
    noted = json.loads((run / "run.json").read_text())
    assert noted == {"settings": noted["settings"], "finished": False}
    assert noted["settings"]["learning_rate"] == 0.1


@pytest.mark.parametrize("finished", [False, True])
def test_resuming_finds_the_run_again(output, finished):
    run = open_run(output, SETTINGS, resume=False)
    (run / "history.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    if finished:
        close_run(run)
    assert open_run(output, SETTINGS, resume=True) == run
    assert read_history(run) == [{"epoch": 1}, {"epoch": 2}]


def test_changed_settings_are_named(output):
    open_run(output, SETTINGS, resume=False)
    changed = SETTINGS | {"learning_rate": 0.5, "seed": 7}
    with pytest.raises(UserError) as raised:
        open_run(output, changed, resume=True)
    sentence = str(raised.value)
    assert "learning_rate (was 0.001, is 0.5)" in sentence
    assert "seed (was None, is 7)" in sentence
    assert "architecture" not in sentence


def test_a_setting_that_is_no_longer_there_is_a_change_too(output):
    open_run(output, SETTINGS | {"warm_up": 3}, resume=False)
    with pytest.raises(UserError, match=r"warm_up \(was 3, is None\)"):
        open_run(output, SETTINGS, resume=True)


def test_a_setting_that_came_later_and_is_off_is_no_change(output):
    run = open_run(output, SETTINGS, resume=False)
    assert open_run(output, SETTINGS | {"cutmix": 0.0}, resume=True) == run
    with pytest.raises(UserError, match=r"cutmix \(was None, is 0.5\)"):
        open_run(output, SETTINGS | {"cutmix": 0.5}, resume=True)


def test_nothing_to_resume_starts_and_says_so(output, capsys):
    run = open_run(output, SETTINGS, resume=True)
    assert (run / "run.json").exists()
    assert "nothing to resume yet; starting from the beginning" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b"{}", b'{"settings": 3, "finished": false}']
)
@pytest.mark.parametrize("resume", [False, True])
def test_a_damaged_run_is_refused_in_a_sentence(output, content, resume):
    run = open_run(output, SETTINGS, resume=False)
    (run / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json cannot be read .*delete .*to start anew"):
        open_run(output, SETTINGS, resume)


def test_without_a_dataset_the_next_steps_come_at_once_and_without_tensorflow(tmp_path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", REPOSITORY / "train_meso.py", "--data", "missing"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    said = "\n".join(line for line in lines if not line.startswith("import time:"))
    assert said.startswith("train_meso.py: missing: there is no such dataset.")
    assert "prepare_dataset.py --list" in said
    assert "prepare_dataset.py SOURCE… --output dataset/" in said
    assert "dataset/validate/fake" in said
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in lines}
    assert "numpy" in imported
    assert imported.isdisjoint({"tensorflow", "keras", "torch"})
    assert list(tmp_path.iterdir()) == []
