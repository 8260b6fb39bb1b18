"""Time scoring against what else people use, on the same photos in the same run: `make bench`.

    python benchmarks/scoring_speed.py [PART…] [--pictures 500] [--output FILE.json]

Parts, all unless named:
  meso4    infer_meso4.py --face none against a plain Keras loop: many face crops, and one
  vit      infer_vit.py against a transformers pipeline with the same network and random weights;
           what share of the processor's matrix peak the network reaches
  photos   photos of 12 megapixels with a face search, against one after the other: decoded whole,
           searched whole
  memory   peak memory on 1,000 pictures and on twenty times as many

All are programs of their own, start-up included; before ours is timed it runs once, as the first
use compiles the graph. Beside the seconds of the clock stand those of the processor (all its cores)
because other programs may run. Pictures are made from the sample photos. Prints a table and writes
benchmarks/scoring_speed.json.
"""

import argparse
import datetime
import json
import os
import platform
import resource
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
from pipeline.runtime import is_available  # noqa: E402

VIT_GFLOP = 35.1  # a picture of 224 pixels in ViT-B/16: 17.56 billion multiplications and additions

KERAS_LOOP = """
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

TRANSFORMERS_PIPELINE = """
import os, sys
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline
model = ViTForImageClassification(ViTConfig(num_labels=2)).eval()
classify = pipeline("image-classification", model=model, image_processor=ViTImageProcessor())
for name in sorted(os.listdir(sys.argv[1])):
    classify(os.path.join(sys.argv[1], name))
"""

RANDOM_VIT = """
import sys
from pathlib import Path
from models import ARCHITECTURES
from pipeline.detector import GRAPH, describe_input, write_detector
from pipeline.torch_training import export_graph
vit = ARCHITECTURES["vit"]
description = {
    "name": "vit", "architecture": "vit", "input": describe_input(vit, "area"),
    "face": {"mode": "auto", "margin": 1.3},
    "calibration": {"temperature": 1, "threshold": 0.5, "uncertain_from": 0.5, "rule": "0.5"},
}
with write_detector(Path(sys.argv[1]), description) as new:
    export_graph(vit.build(), vit.input_size, new / GRAPH)
"""

NETWORK_ALONE = """
import sys, time
from pathlib import Path
import numpy as np
from pipeline.detector import load_detector
from pipeline.runtime import Runtime
runtime = Runtime.of(load_detector(Path(sys.argv[1])), "cpu")
pixels = np.zeros((16, 224, 224, 3), np.uint8)
seconds = []
for _ in range(4):
    start = time.perf_counter()
    runtime.logits(pixels)
    seconds.append(time.perf_counter() - start)
print(16 / min(seconds[1:]))
"""

MATRIX_PEAK = """
import sys, time
import torch
a, b = (torch.ones(1536, 1536, dtype=getattr(torch, sys.argv[1])) for _ in range(2))
seconds = []
for _ in range(6):
    start = time.perf_counter()
    a @ b
    seconds.append(time.perf_counter() - start)
print(2 * 1536**3 / min(seconds) / 1e9)
"""

ONE_AFTER_THE_OTHER = """
import os, sys
from pathlib import Path
from pipeline.detector import load_detector
from pipeline.faces import FaceFinder, crop_region, face_regions
from pipeline.images import read_image, resize
from pipeline.runtime import Runtime
detector = load_detector(Path("weights", "meso4"))
runtime, finder = Runtime(detector.graph, detector.architecture), FaceFinder(longest_side=100_000)
for name in sorted(os.listdir(sys.argv[1])):
    image = read_image(os.path.join(sys.argv[1], name))
    for region in face_regions(image, finder, "auto", detector.margin):
        runtime.logits(resize(crop_region(image, region), 256, detector.resize_filter)[None])
"""


def main() -> None:
    parts = {"meso4": meso4, "vit": vit, "photos": photos, "memory": memory}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--pictures", type=int, default=500, help="face crops for meso4")
    parser.add_argument("--vit-pictures", type=int, default=96)
    parser.add_argument("--photos", type=int, default=48, help="of 12 megapixels")
    parser.add_argument("--memory-pictures", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "scoring_speed.json")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; choose from {', '.join(parts)}")
    result: dict = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.date.today().isoformat(),
        "load_at_the_start": os.getloadavg()[0],  # 0: the machine was idle
    }
    for name in args.parts or parts:
        with tempfile.TemporaryDirectory() as folder:
            result[name] = parts[name](Path(folder), args)
        for key, value in result[name].items():
            print(f"{name:8} {key:40} {value:10.2f}", flush=True)
    with atomic_write(args.output) as file:
        json.dump(result, file, indent=1)


def meso4(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Face crops of 256 pixels, many and one."""
    result = {}
    for count in (args.pictures, 1):
        pictures = folder / str(count)
        make_pictures(pictures, count)
        infer = scoring("infer_meso4.py", pictures, folder, "--face", "none")
        measure(infer)
        named = {"ours": infer, "keras_loop": [sys.executable, "-c", KERAS_LOOP, pictures]}
        result |= compared(named, f"{count}_pictures")
    return result


def vit(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """ViT-Base with random weights, which take as long as trained ones."""
    make_pictures(folder / "pictures", args.vit_pictures)
    detector = folder / "vit"
    measure([sys.executable, "-c", RANDOM_VIT, detector])
    infer = scoring("infer_vit.py", folder / "pictures", folder, "--face", "none")
    infer += ["--weights", detector]
    measure(infer)
    pipeline = [sys.executable, "-c", TRANSFORMERS_PIPELINE, folder / "pictures"]
    result = compared({"ours": infer, "transformers": pipeline}, f"{args.vit_pictures}_pictures")
    per_second = float(output([sys.executable, "-c", NETWORK_ALONE, detector]))
    result["network_pictures_per_second"] = per_second
    for kind in ("float32", "bfloat16")[: 1 + is_available("bf16")]:
        peak = float(output([sys.executable, "-c", MATRIX_PEAK, kind]))
        result[f"matrix_peak_gflops_{kind}"] = peak
        result[f"share_of_peak_{kind}"] = per_second * VIT_GFLOP / peak
    return result


def photos(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Photos of 4000 × 3000 pixels with one face each."""
    make_photos(folder / "photos", args.photos)
    infer = scoring("infer_meso4.py", folder / "photos", folder)
    measure(infer)
    one_by_one = [sys.executable, "-c", ONE_AFTER_THE_OTHER, folder / "photos"]
    return compared({"ours": infer, "one_by_one": one_by_one}, f"{args.photos}_photos")


def memory(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Peak memory in MiB; the pictures are links to a few."""
    make_pictures(folder / "few", 32)
    few = sorted((folder / "few").iterdir())
    peaks = []
    for count in (args.memory_pictures, 20 * args.memory_pictures):
        links = folder / str(count)
        links.mkdir()
        for number in range(count):
            (links / f"{number:06}.jpg").symlink_to(few[number % len(few)])
        infer = scoring("infer_meso4.py", links, folder, "--face", "none")
        peaks.append(float(output([sys.executable, "-c", PEAK, *infer])))
    return {
        f"peak_mib_{args.memory_pictures}_pictures": peaks[0],
        f"peak_mib_{20 * args.memory_pictures}_pictures": peaks[1],
        "ratio": peaks[1] / peaks[0],
    }


PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


def scoring(script: str, photos: Path, folder: Path, *options: str) -> list:
    return [sys.executable, script, photos, "--output", folder / "rows.csv", *options]


def compared(commands: dict[str, list], what: str) -> dict[str, float]:
    """Time the first command, ours, and the second; how many times as fast ours is."""
    result = {}
    for name, command in commands.items():
        seconds, processor_seconds = measure(command)
        result[f"{what}_{name}_s"] = seconds
        result[f"{what}_{name}_cpu_s"] = processor_seconds
        result[f"{what}_{name}_cores_busy"] = processor_seconds / seconds / os.cpu_count()
    ours, theirs = commands
    for unit in ("s", "cpu_s"):
        ratio = result[f"{what}_{theirs}_{unit}"] / result[f"{what}_{ours}_{unit}"]
        result[f"{what}_times_as_fast" + ("_by_cpu" if unit == "cpu_s" else "")] = ratio
    return result


def measure(command: list) -> tuple[float, float]:
    """Run a program from the repository; its seconds, and those of all cores for it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    output(command)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def output(command: list) -> bytes:
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True)
    if done.returncode:
        sys.exit(f"{command[1]} failed:\n{done.stderr.decode(errors='replace')}")
    return done.stdout


def make_pictures(folder: Path, count: int) -> None:
    """Write `count` different 256 × 256 JPEG files, cut at random from the sample photos."""
    folder.mkdir()
    samples = [read_image(path) for path in sorted((ROOT / "samples").glob("*.jpg"))]
    random = np.random.default_rng(0)
    for number in range(count):
        photo = samples[number % len(samples)]
        top, left = (random.integers(side - 256 + 1) for side in photo.shape[:2])
        write(folder / f"{number:05}.jpg", photo[top : top + 256, left : left + 256])


def make_photos(folder: Path, count: int) -> None:
    """Write `count` JPEG photos of 12 megapixels: a sample portrait, enlarged, in a noisy scene."""
    folder.mkdir()
    portrait = read_image(ROOT / "samples" / "real_collins.jpg")
    scene = read_image(ROOT / "samples" / "no_face_coffee.webp")
    scene = cv2.resize(scene, (4000, 3000), interpolation=cv2.INTER_CUBIC)
    random = np.random.default_rng(0)
    for number in range(count):
        side = int(random.integers(800, 2400))
        photo = scene.copy()
        top, left = (int(random.integers(length - side)) for length in (3000, 4000))
        photo[top : top + side, left : left + side] = cv2.resize(portrait, (side, side))
        noise = random.integers(-6, 7, (3000, 4000, 1), np.int16)
        write(folder / f"{number:05}.jpg", np.clip(photo + noise, 0, 255).astype(np.uint8))


def write(path: Path, picture: np.ndarray) -> None:
    picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])


if __name__ == "__main__":
    main()
