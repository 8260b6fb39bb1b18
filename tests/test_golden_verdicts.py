"""What is recommended says of real and fake faces what it said when this was written down.

As golden rows, but of 25 pictures of each class of each test set, where verdicts of all kinds lie:
whatever makes scoring faster may move no verdict. `python tests/test_golden_verdicts.py` writes
them down again, for a change that is meant.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.conftest import REPOSITORY
from tests.shared import SHARED, needs_shared

FILE = Path(__file__).with_name("golden_verdicts.json")
TESTS = SHARED / "faces" / "test"
EACH = 25
SCRIPTS = {"pair": "infer_vit.py", "efficientnet_lite0": "infer_xception_efficientnet.py"}


def pictures() -> list[Path]:
    """Evenly spread over each folder's names."""
    chosen = []
    for folder in sorted(TESTS.glob("*/*")):
        files = sorted(folder.iterdir())
        chosen += files[:: max(1, len(files) // EACH)][:EACH]
    return chosen


def verdicts(script: str, folder: Path) -> dict[str, list]:
    """By picture: (fake_probability, verdict) of each face, from left to right."""
    rows = folder / f"{script}.csv"
    lite0 = ["--weights", REPOSITORY / "weights" / "efficientnet_lite0"]
    command = [sys.executable, script, "-", "--output", rows, *(lite0 * ("vit" not in script))]
    listed = "\n".join(map(str, pictures()))
    done = subprocess.run(command, cwd=REPOSITORY, input=listed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, list] = {}
    with open(rows, newline="", encoding="utf-8") as file:
        for row in sorted(csv.DictReader(file), key=lambda row: float(row["left"] or 0)):
            name = Path(row["path"]).relative_to(TESTS).as_posix()
            probability = row["fake_probability"] and round(float(row["fake_probability"]), 4)
            found.setdefault(name, []).append([probability, row["verdict"]])
    return found


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("detector", SCRIPTS)
def test_verdicts_are_what_they_were(detector, tmp_path):
    expected = json.loads(FILE.read_text(encoding="utf-8"))[detector]
    found = verdicts(SCRIPTS[detector], tmp_path)
    assert found.keys() == expected.keys() and len(found) > 200
    changed = 0
    for name, faces in expected.items():
        assert len(found[name]) == len(faces), f"{name}: other faces than before"
        for (probability, verdict), (before, verdict_before) in zip(
            found[name], faces, strict=True
        ):
            if before == "":
                assert (probability, verdict) == (before, verdict_before)
                continue
            assert probability == pytest.approx(before, abs=0.01), name
            changed += verdict != verdict_before
    assert changed <= 0.001 * len(expected) + 1, "one may lie at its threshold"


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        written = {name: verdicts(script, Path(made)) for name, script in SCRIPTS.items()}
    FILE.write_text(json.dumps(written, indent=0) + "\n", encoding="utf-8")
