"""Comparing variants of a recipe: each run once, resumed where it was, and what the table says."""

import json
import shutil
import subprocess
import sys

import pytest

from benchmarks import ablation
from pipeline.common.errors import UserError
from tests.conftest import REPOSITORY
from tests.tiny_dataset import make_dataset


def run(variant: str, seed: int, **tests: float) -> dict:
    figures = {
        name: {"recall_real" if name == "utkface" else "auc": value}
        for name, value in tests.items()
    }
    return {"variant": variant, "options": f"--{variant}", "seed": seed, "tests": figures}


RUNS = [
    run("a", 0, stylegan=0.9, utkface=0.8),
    run("b", 0, stylegan=0.7, utkface=0.9),
    run("a", 1, stylegan=0.8, utkface=0.7),
    run("b", 1, stylegan=0.74, utkface=0.9),
]


def test_the_summary_has_mean_and_std_over_the_seeds():
    first, second = ablation.summary(RUNS)
    assert first["variant"] == "a" and first["seeds"] == [0, 1]
    assert first["tests"]["stylegan"]["mean"] == pytest.approx(0.85)
    assert first["tests"]["stylegan"]["std"] == pytest.approx(0.1 / 2**0.5)
    assert second["tests"]["utkface"] == {
        "figure": "recall_real",
        "mean": pytest.approx(0.9),
        "std": pytest.approx(0),
    }
    assert ablation.summary(RUNS[:1])[0]["tests"]["stylegan"]["std"] is None


def test_the_table_marks_the_best():
    lines = ablation.as_table(ablation.summary(RUNS)).splitlines()
    assert lines == [
        "| variant | options | seeds | stylegan, AUC | utkface, real passed |",
        "|---|---|---|---|---|",
        "| a | `--a` | 2 | **0.850 ± 0.071** | 75.0% ± 7.1% |",
        "| b | `--b` | 2 | 0.720 ± 0.028 | **90.0% ± 0.0%** |",
    ]


def test_a_folder_of_another_command_is_refused(tmp_path):
    folder = tmp_path / "a" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "detector.json").write_text("{}")
    note = tmp_path / "a" / "seed-0.command.json"
    note.write_text(json.dumps(["train_meso.py", "--seed", "0"]))
    ablation.train(["train_meso.py", "--seed", "0"], folder)  # done already
    with pytest.raises(UserError, match=r"trained by another command, `train_meso.py --seed 0`"):
        ablation.train(["train_meso.py", "--seed", "1"], folder)


def test_a_training_that_fails_says_why(tmp_path):
    with pytest.raises(UserError, match=r"^train_meso.py: .*absent: there is no such dataset"):
        ablation.train(["train_meso.py", "--data", str(tmp_path / "absent")], tmp_path / "a" / "s")


@pytest.mark.slow
def test_variants_are_trained_once_tested_and_compared(own_cache, tmp_path):
    data = make_dataset(tmp_path / "data", train=16, validate=16)
    reals = tmp_path / "others" / "real"
    shutil.copytree(data / "validate" / "real", reals)
    command = [sys.executable, "benchmarks/ablation.py", "--data", data, "--output"]
    command += [tmp_path / "out", "--tests", data / "validate", reals.parent, "--epochs", "1"]
    command += ["--pictures", "12", "--seeds", "3"]
    command += ["--variant", "plain=", "--variant", "two words=--mixup 0.2"]

    def compare() -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(part) for part in command], cwd=REPOSITORY, capture_output=True, text=True
        )

    done = compare()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("seed-") == 2
    lines = done.stdout.strip().splitlines()
    assert lines[0].endswith("| validate, AUC | others, real passed |")
    assert [line.split(" | ")[1:3] for line in lines[2:]] == [["–", "1"], ["`--mixup 0.2`", "1"]]
    detector = tmp_path / "out" / "two-words" / "seed-3" / "detector.json"
    arguments = json.loads(detector.read_text())["training"]["arguments"]
    assert (arguments["seed"], arguments["mixup"], arguments["epochs"]) == (3, 0.2, 1)
    assert json.loads(detector.read_text())["training"]["images"] == {"real": 6, "fake": 6}
    result = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert [run["variant"] for run in result["runs"]] == ["plain", "two words"]
    assert result["pictures"] == 12 and result["script"].startswith("train_meso.py")

    shutil.rmtree(tmp_path / "out" / "plain")
    again = compare()
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout, "the same bits, and what was finished is not done again"
    assert "plain, seed-3" in again.stderr and again.stderr.count("seed-") == 1
