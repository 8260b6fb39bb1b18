"""Pictures that were scored wrongly or not at all: scored now as the plain picture, everywhere."""

import json
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from pipeline.photos.images import read_image
from tests.shared import SHARED, needs_shared
from tests.web_service import serving

pytestmark = needs_shared

FAILING = SHARED / "failing"
ORIGINAL = SHARED / "faces" / "test" / "text_to_image" / "fake" / "t2i_0037.jpg"
NAMES = [
    "01_png_ztxt_1.2MB.png",
    "03_raw_like.dng",
    "05_v5_alpha_zero.bmp",
    "12_png_bad_crc_in_tEXt.png",
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """Each failing file, and a plain PNG of what it shows."""
    folder = tmp_path_factory.mktemp("plain")
    original = Image.open(ORIGINAL).convert("RGB")
    original.save(folder / "original.png")
    # Without the alpha that it does not use; Pillow's pixels of the other channels are right.
    Image.open(FAILING / NAMES[2]).convert("RGB").save(folder / "bitmap.png")
    plain = {
        NAMES[0]: folder / "original.png",
        NAMES[1]: FAILING / "03_reference_256.png",
        NAMES[2]: folder / "bitmap.png",
        NAMES[3]: folder / "original.png",
    }
    return {name: (FAILING / name, path) for name, path in plain.items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_pixels_are_those_of_the_plain_picture(photos, name):
    failing, plain = photos[name]
    np.testing.assert_array_equal(read_image(failing), read_image(plain))


@pytest.mark.parametrize("script", ["infer_meso4.py", "infer_xception_efficientnet.py"])
def test_they_are_scored_as_the_plain_picture(infer, photos, script, tmp_path):
    paths = [path for pair in photos.values() for path in pair]
    process = infer(*paths, "--output", "rows.jsonl", script=script)
    assert process.returncode == 0, process.stderr.decode()
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    scores = {row["path"]: row["fake_probability"] for row in rows}
    for failing, plain in photos.values():
        assert scores[str(failing)] == pytest.approx(scores[str(plain)], abs=1e-4)


def test_the_page_scores_them_as_the_plain_picture(own_cache, photos):
    with serving(own_cache) as running:
        for failing, plain in photos.values():
            files = [("files", (path.name, path.read_bytes())) for path in (failing, plain)]
            answer = httpx.post(f"{running.address}/api/score", files=files, timeout=120)
            assert answer.status_code == 200, answer.text
            ours, reference = answer.json()["rows"]
            assert ours["fake_probability"] == pytest.approx(
                reference["fake_probability"], abs=1e-4
            )
            assert ours["verdict"] == reference["verdict"]
