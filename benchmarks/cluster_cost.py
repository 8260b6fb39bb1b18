"""What scoring costs on a cluster: CPU seconds for a million photos, by network and photo size.

    python benchmarks/cluster_cost.py weights/meso4 weights/mesoinception4 [--photos 40]

A worker of score_cluster.py is bound to one core, as it is on a cluster, and scores a unit of
photos made from the samples: 256 px face crops without a search for faces, photos of 1 and of 12
megapixels with it. What counts is processor time, not time on the clock, after a first unit that
compiles and warms up. Prints a table and writes benchmarks/cluster_cost.json.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.files import atomic_write  # noqa: E402
from pipeline.images import read_image  # noqa: E402

SIZES = {  # → sample, width and height in pixels, face mode
    "256 px crop": ("real_hopper_face.heic", (256, 256), "none"),
    "1 megapixel": ("real_collins.jpg", (1000, 1000), "auto"),
    "12 megapixels": ("real_collins.jpg", (3464, 3464), "auto"),
}
WORKER = """
import os, sys, time
from pipeline.cluster import Settings, Worker
detector, face_mode, output, warm, *photos = sys.argv[1:]
worker = Worker(Settings((detector,), output, face_mode))
worker({"photos": [os.fsencode(warm)] * 3})
start = time.process_time()
worker({"photos": list(map(os.fsencode, photos))})
print(time.process_time() - start)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("detectors", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--photos", type=int, default=40, help="of each size (default: 40)")
    args = parser.parse_args()
    rows = []
    for detector in args.detectors:
        for size in SIZES:
            seconds = cpu_seconds(detector.resolve(), size, args.photos)
            rows.append(
                {
                    "detector": detector.name,
                    "photos": size,
                    "cpu_seconds_for_a_million": round(seconds * 1e6),
                    "core_hours_for_100_million": round(seconds * 1e8 / 3600),
                }
            )
    result = {
        "rows": rows,
        "photos_measured": args.photos,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.date.today().isoformat(),
    }
    with atomic_write(ROOT / "benchmarks" / "cluster_cost.json") as file:
        json.dump(result, file, indent=1)
    print("| network | photos | CPU seconds for a million | core hours for 100 million |")
    print("|---|---|---|---|")
    for row in rows:
        million, hours = row["cpu_seconds_for_a_million"], row["core_hours_for_100_million"]
        print(f"| {row['detector']} | {row['photos']} | {million:,} | {hours:,} |")


def cpu_seconds(detector: Path, size: str, number: int) -> float:
    """Processor time for one photo."""
    sample, shape, face_mode = SIZES[size]
    image = cv2.resize(read_image(ROOT / "samples" / sample), shape, interpolation=cv2.INTER_CUBIC)
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.jpg"
        cv2.imwrite(
            str(photo), cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90]
        )
        photos = [str(photo)] * number
        command = [sys.executable, "-c", WORKER, detector, face_mode, f"{folder}/rows", photo]
        output = subprocess.check_output([*map(str, command), *photos], cwd=ROOT, text=True)
    return float(output) / number


if __name__ == "__main__":
    main()
