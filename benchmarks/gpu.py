"""Try everything that a GPU is for: the tests, the same rows as on the CPU, the speed of training.

    python benchmarks/gpu.py --data FACES                    on a machine with an NVIDIA card
    python benchmarks/gpu.py --data FACES --only rows        one of tests, rows, training, networks

What matters most comes first, so that a card that is lent for minutes is used well: the tests that
need one; the shipped detectors on the card against the CPU (fake_probability may differ by 0.01),
with photos a second; pictures a second in training, ViT-B from scratch and ResNet50; and at last
ResNet50 and Xception trained from scratch at once for --minutes (on_a_card.py).
FACES is a dataset as training wants it. Prints what came out, and keeps it in --output.

Exit codes: 0 all well; 1 a test failed or rows differ; 2 wrong use, or there is no such card.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import ROOT, machine, measure
from benchmarks.subsets import evenly, write_table
from benchmarks.tunings import train
from pipeline.common.command_line import positive_float, positive_int, run
from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write
from pipeline.common.processor import has_nvidia_card
from pipeline.data.dataset import load_dataset

SCORERS = {
    "vit": "infer_vit.py",
    "resnet50": "infer_resnet50.py",
    "efficientnet_lite0": "infer_xception_efficientnet.py",
}
LARGEST_DIFFERENCE = 0.01  # of fake_probability
SPEEDS = {
    "vit": ["train_vit.py", "--architecture", "vit"],
    "resnet50": ["train_resnet50.py"],
}
FROM_SCRATCH = ("resnet50", "xception")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FACES")
    parser.add_argument("--only", choices=STEPS, help="default: all, in this order")
    parser.add_argument("--pictures", type=positive_int, default=1000, help="to score and to train")
    parser.add_argument(
        "--minutes", type=positive_float, default=9, help="that the last step takes"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "reports" / "gpu", metavar="DIR")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal"
    )
    args = parser.parse_args()
    if args.device == "cuda" and not has_nvidia_card():
        raise UserError("There is no NVIDIA card here, or no driver for it.")
    args.output.mkdir(parents=True, exist_ok=True)
    result, well = machine() | {"device": args.device, "pictures": args.pictures}, True
    for name, step in STEPS.items():
        if args.only in (None, name):
            result[name], is_well = step(args)
            well = well and is_well
            print(f"{name}: {json.dumps(result[name], indent=1)}", flush=True)
            with atomic_write(args.output / "gpu.json") as file:
                json.dump(result, file, indent=1)
    return 0 if well else 1


def tests(args: argparse.Namespace) -> tuple[str, bool]:
    """pytest's closing line of the tests that have to do with a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-k", "gpu or cuda", "--framework"]
    done = [
        subprocess.run([*command, framework], cwd=ROOT, capture_output=True, text=True)
        for framework in ("torch", "tensorflow")
    ]
    said = " / ".join((one.stdout.strip().splitlines() or ["nothing"])[-1] for one in done)
    return said, all(one.returncode == 0 for one in done)


def rows(args: argparse.Namespace) -> tuple[dict, bool]:
    """Of each shipped detector: the largest difference between both devices, photos a second."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        for sample in evenly(load_dataset(args.data), args.pictures).validate:
            (photos / sample.path.name).symlink_to(sample.path)
        for name, script in SCORERS.items():
            if not (weights := ROOT / "weights" / name).is_dir():
                continue
            on = {}
            for device in ("cpu", args.device):
                output = Path(folder) / f"{name}-{len(on)}.jsonl"
                command = [sys.executable, script, photos, "--weights", weights, "--face", "none"]
                usage = measure([*command, "--device", device, "--output", output])
                lines = output.read_text(encoding="utf-8").splitlines()
                on[output] = {
                    row["path"]: row["fake_probability"] for row in map(json.loads, lines)
                }
                speed = len(lines) / usage.seconds
            here, there = on.values()
            figures[name] = {
                "largest_difference": max(abs(here[path] - there[path]) for path in here),
                "photos_per_second": speed,  # with the start of the program
            }
    well = all(one["largest_difference"] <= LARGEST_DIFFERENCE for one in figures.values())
    return figures, well


def training(args: argparse.Namespace) -> tuple[dict, bool]:
    """Of each network: pictures a second, memory and AUC of a short training from scratch."""
    with tempfile.TemporaryDirectory() as folder:
        some = evenly(load_dataset(args.data), args.pictures)
        subset = write_table(some, Path(folder) / "subset.csv")
        options = ["--init", "none", "--epochs", 2, "--device", args.device]
        figures = {
            name: train(script, subset, options, Path(folder) / name)
            for name, script in SPEEDS.items()
        }
    return figures, True


def networks(args: argparse.Namespace) -> tuple[dict, bool]:
    """What becomes of the networks that have no start: what on_a_card.py notes at the end."""
    options = ["--data", args.data, "--minutes", args.minutes, "--device", args.device]
    command = [sys.executable, "benchmarks/on_a_card.py", *FROM_SCRATCH, *options]
    if subprocess.run([*map(str, command), "--output", args.output], cwd=ROOT).returncode:
        raise UserError("A training failed.")
    logs = {name: args.output / name / "log.jsonl" for name in FROM_SCRATCH}
    return {name: json.loads(log.read_text().splitlines()[-1]) for name, log in logs.items()}, True


STEPS = {"tests": tests, "rows": rows, "training": training, "networks": networks}

if __name__ == "__main__":
    run(main, after_stop="What was measured until then is kept.")
