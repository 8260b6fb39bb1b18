"""What scoring costs on a cluster: CPU seconds for a million photos, by network and photo size.

    python benchmarks/cluster_cost.py [NETWORK…] [--photos 20]

A worker of score_cluster.py is bound to one core, as it is on a cluster, and scores a unit of
photos made from the samples: 256 px face crops without a search for faces, photos of 1 and of 12
megapixels with it. What counts is processor time, not time on the clock, after a first unit that
compiles and warms up. Networks without weights in weights/ have random ones. Prints a table and
writes benchmarks/cluster_cost.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import ROOT, machine
from benchmarks.scoring_speed import NETWORKS, shipped_or_random
from pipeline.common.command_line import positive_int
from pipeline.common.files import atomic_write
from pipeline.photos.images import read_image

SIZES = {  # → sample, width and height in pixels, face mode
    "256 px crop": ("real_hopper_face.heic", (256, 256), "none"),
    "1 megapixel": ("real_collins.jpg", (1000, 1000), "auto"),
    "12 megapixels": ("real_collins.jpg", (3464, 3464), "auto"),
}
WORKER = """
import os, sys, time
from pipeline.scoring.cluster import Settings, Worker
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
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--photos", type=positive_int, default=20, help="of each size")
    args = parser.parse_args()
    if unknown := set(args.networks) - set(NETWORKS):
        parser.error(f"no such network: {', '.join(sorted(unknown))}")
    rows = []
    for network in args.networks or NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            detector = shipped_or_random(network, Path(folder))
            for size in SIZES:
                seconds = cpu_seconds(detector, size, args.photos)
                rows.append(
                    {
                        "network": network,
                        "photos": size,
                        "cpu_seconds_for_a_million": round(seconds * 1e6),
                        "core_hours_for_100_million": round(seconds * 1e8 / 3600),
                    }
                )
    result = machine() | {"photos_measured": args.photos, "rows": rows}
    with atomic_write(ROOT / "benchmarks" / "cluster_cost.json") as file:
        json.dump(result, file, indent=1)
    print(table(result))


def table(result: dict) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| network | photos | CPU seconds for a million | core hours for 100 million |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        million, hours = row["cpu_seconds_for_a_million"], row["core_hours_for_100_million"]
        lines.append(f"| {row['network']} | {row['photos']} | {million:,} | {hours:,} |")
    return "\n".join([*lines, ""])


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
