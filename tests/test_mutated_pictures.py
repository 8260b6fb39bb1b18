"""Three thousand spoilt pictures: each gets a score or an error, quickly, and the others go on."""

import dataclasses
import faulthandler
import queue
import threading
from collections import Counter
from io import BytesIO
from pathlib import Path

import pytest

from pipeline.detectors.detector import load_detector
from pipeline.photos.images import read_image, read_picture
from pipeline.photos.photo import Photo
from pipeline.rows.files import read_rows
from pipeline.scoring.scoring import Scorer
from tests.conftest import DETECTOR
from tests.mutated_pictures import mutants, small_pictures

NUMBER, SEED = 3_000, 15
HANG = 20  # seconds; a picture takes some milliseconds

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]


def test_unspoilt_they_are_read():
    for name, content in small_pictures().items():
        assert sorted(read_image(BytesIO(content)).shape) == [3, 40, 48], name


def check(row: dict, name: str) -> None:
    """A face of the whole picture, or an error that was foreseen."""
    if row["verdict"] == "error":
        assert row["error"] and "unexpected" not in row["error"], f"{name}: {row['error']}"
        assert row["fake_probability"] is None
    else:
        assert not row["error"] and 0 <= row["fake_probability"] <= 1, name


@pytest.mark.slow
def test_every_spoilt_picture_has_one_outcome(own_cache):
    spoilt = dict(mutants(NUMBER, SEED))
    scorer = Scorer(load_detector(DETECTOR), face_mode="none")
    outcomes: queue.Queue = queue.Queue()

    def score() -> None:
        photos = (
            Photo(name, read=lambda content=content: read_picture(BytesIO(content)))
            for name, content in spoilt.items()
        )
        for rows in scorer.score(photos):
            outcomes.put(rows)

    # A thread that ends with the program: one that hangs can be left to itself, and be named.
    threading.Thread(target=score, daemon=True).start()
    verdicts = Counter()
    for name in spoilt:
        try:
            (row,) = outcomes.get(timeout=HANG)
        except queue.Empty:
            faulthandler.dump_traceback()
            pytest.fail(f"{name}: no outcome within {HANG} seconds")
        assert row.path == name
        check(dataclasses.asdict(row), name)
        verdicts[row.verdict == "error"] += 1
    assert min(verdicts[True], verdicts[False]) > NUMBER / 10  # both were tried


@pytest.mark.slow
def test_a_folder_of_spoilt_pictures_has_a_row_each(infer, tmp_path):
    folder = tmp_path / "spoilt"
    folder.mkdir()
    names = []
    for name, content in mutants(NUMBER, SEED + 1):
        (folder / name).write_bytes(content)
        names.append(name)
    process = infer(folder, "--face", "none", "--output", "rows.jsonl")
    assert process.returncode == 1
    assert b"Traceback" not in process.stderr
    rows = list(read_rows(tmp_path / "rows.jsonl"))
    assert sorted(Path(row["path"]).name for row in rows) == sorted(names)
    for row in rows:
        check(row, row["path"])
