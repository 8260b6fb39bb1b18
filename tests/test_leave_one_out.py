"""Leaving a kind of fake out: what is trained on, what is tested, what the table says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import leave_one_out
from benchmarks.subsets import begins_with, without
from pipeline.common.errors import UserError
from pipeline.data.dataset import load_dataset
from tests.conftest import REPOSITORY
from tests.tiny_dataset import make_dataset


@pytest.fixture
def two_kinds(tmp_path):
    """12 + 12 pictures that begin with `a_`, and 12 + 12 with `b_`."""
    for kind in "ab":
        data = make_dataset(tmp_path / kind, train=12, validate=12)
        for path in sorted(data.rglob("*.jpg")):
            target = tmp_path / "data" / path.relative_to(data).with_name(f"{kind}_{path.name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    return tmp_path / "data"


def test_a_kind_and_the_rest_make_the_whole(two_kinds):
    dataset = load_dataset(two_kinds)
    kind, rest = begins_with(dataset, ["a_"]), without(dataset, ["a_"])
    assert len(kind.train) == len(rest.train) == len(rest.validate) == 12
    assert {sample.path.name[0] for sample in rest.train + rest.validate} == {"b"}
    assert {sample.path for sample in kind.train + rest.train} == {
        sample.path for sample in dataset.train
    }


def test_a_kind_of_which_a_class_is_missing_is_refused(two_kinds, tmp_path):
    for path in (two_kinds / "validate" / "real").glob("b_*"):
        path.unlink()
    with pytest.raises(UserError, match="begin with b_ or c_ must be there to train on, and both"):
        leave_one_out.write_validation(
            load_dataset(two_kinds), {"a": ["a_"], "b": ["b_", "c_"]}, tmp_path
        )


@pytest.mark.parametrize(
    ("kinds", "tests", "twice"),
    [
        ([["a"], ["a", "b"]], [], "a"),
        ([["a"], ["b"]], ["x/b", "x/c"], "b"),
        ([["nothing"]], [], "nothing"),
    ],
)
def test_two_of_one_name_are_refused(kinds, tests, twice):
    with pytest.raises(UserError, match=f"^{twice}: each --kind"):
        leave_one_out.refuse_equal_names(kinds, [Path(test) for test in tests])
    leave_one_out.refuse_equal_names([["a"], ["b"]], [Path("x/c")])


def test_the_table_tells_kinds_that_were_left_out_from_others():
    def figures(auc: float) -> dict:
        return {"auc": auc, "auc_95": [auc - 0.1, auc + 0.05]}

    result = {
        "nothing": {"a": figures(0.9), "others": figures(0.7), "reals": {"recall_real": 0.5}},
        "a": {"a": figures(0.6), "others": figures(0.65), "reals": {"recall_real": 0.4}},
    }
    assert leave_one_out.table({"results": result}).splitlines() == [
        "| left out | a | others |",
        "|---|---|---|",
        "| nothing | 0.900 (0.800–0.950) | 0.700 (0.600–0.750) |",
        "| a | *0.600 (0.500–0.650)* | 0.650 (0.550–0.700) |",
    ]


@pytest.mark.slow
def test_a_kind_is_left_out_once(two_kinds, own_cache, tmp_path):
    command = [sys.executable, "benchmarks/leave_one_out.py", "--data", two_kinds, "--output"]
    command += [tmp_path / "out", "--kind", "a", "--epochs", "1", "--pictures", "8"]
    command += ["--script", "train_meso.py", "--tests", two_kinds / "validate"]

    def leave_out() -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(part) for part in command], cwd=REPOSITORY, capture_output=True, text=True
        )

    done = leave_out()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert lines[0] == "| left out | a | validate |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| nothing", "| a"]
    assert [line.count("*") for line in lines[2:]] == [0, 2]
    result = json.loads((tmp_path / "out" / "leave_one_out.json").read_text())
    assert result["results"]["a"]["a"]["images"] == {"real": 6, "fake": 6}
    for left_out, names in (("nothing", "ab"), ("a", "b")):
        rows = (tmp_path / "out" / f"without-{left_out}.csv").read_text().splitlines()[1:]
        assert {row.split(",")[0].rsplit("/")[-1][0] for row in rows} == set(names)
        detector = tmp_path / "out" / f"without-{left_out}" / "detector.json"
        images = json.loads(detector.read_text())["training"]["images"]
        assert images == {"real": 4, "fake": 4}

    again = leave_out()
    assert again.returncode == 0 and again.stdout == done.stdout
    assert "train_meso.py" not in again.stderr, "what is finished is not trained again"
