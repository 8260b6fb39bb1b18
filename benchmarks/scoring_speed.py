"""Time infer_meso4.py against a plain Keras loop on the same pictures: `make bench`.

    python benchmarks/scoring_speed.py [--photos 500]

Both run as programs of their own, start-up included, one after the other: the loop reads a picture,
resizes it and calls `predict` on it, as the usual script does. Pictures are 256 × 256 JPEG files
made from the sample photos. Prints a table and writes benchmarks/scoring_speed.json.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.files import atomic_write  # noqa: E402
from pipeline.images import read_image  # noqa: E402

PLAIN_LOOP = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np
from PIL import Image
from models.meso import meso4
model = meso4()
model.load_weights(os.path.join("weights", "meso4", "model.weights.h5"))
for name in sorted(os.listdir(sys.argv[1])):
    image = Image.open(os.path.join(sys.argv[1], name)).convert("RGB").resize((256, 256))
    model.predict(np.asarray(image, np.float32)[None] / 255, verbose=0)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=500)
    photos = parser.parse_args().photos
    with tempfile.TemporaryDirectory() as folder:
        make_pictures(Path(folder), photos)
        infer = [sys.executable, "infer_meso4.py", folder, "--face", "none"]
        infer += ["--output", os.path.join(tempfile.gettempdir(), "scoring_speed.csv")]
        seconds(infer)  # compiles the graph and fills the caches, as the first use does
        ours = seconds(infer)
        plain = seconds([sys.executable, "-c", PLAIN_LOOP, folder])
    result = {
        "photos": photos,
        "infer_meso4_seconds": round(ours, 2),
        "plain_keras_loop_seconds": round(plain, 2),
        "times_as_fast": round(plain / ours, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.date.today().isoformat(),
    }
    for name, value in result.items():
        print(f"{name:26} {value}")
    with atomic_write(ROOT / "benchmarks" / "scoring_speed.json") as file:
        json.dump(result, file, indent=1)


def make_pictures(folder: Path, count: int) -> None:
    """Write `count` different 256 × 256 JPEG files, cut at random from the sample photos."""
    samples = [read_image(path) for path in sorted((ROOT / "samples").glob("*.jpg"))]
    random = np.random.default_rng(0)
    for number in range(count):
        photo = samples[number % len(samples)]
        top, left = (random.integers(side - 256 + 1) for side in photo.shape[:2])
        picture = cv2.cvtColor(photo[top : top + 256, left : left + 256], cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / f"{number:05}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
