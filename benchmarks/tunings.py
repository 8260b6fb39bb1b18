"""Compare what may learn (full, lora, norm, probe) in ViT and ResNet50, after a short schedule.

    python benchmarks/tunings.py --data FACES [--pictures 1000] [--epochs 3] [--init imagenet]

FACES is a dataset as training wants it; `--pictures` of it, both classes alike, are trained on, and
half as many validate. Every run is a training script of its own. Prints a Markdown table: learning
parameters, peak memory, pictures a second (validation included), validation AUC; --output keeps it
as JSON.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import ROOT, machine
from benchmarks.subsets import evenly, write_table
from pipeline.common.command_line import positive_int, run
from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write
from pipeline.data.dataset import load_dataset

NETWORKS = {
    "vit_tiny_patch16_224": ["train_vit.py", "--architecture", "vit_tiny_patch16_224"],
    "resnet50": ["train_resnet50.py"],
}
HEAD = (
    "| network | tuning | parameters that learn | memory | pictures/s | validation AUC |\n"
    "|---|---|---|---|---|---|"
)
TUNINGS = ("full", "lora", "norm", "probe")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FACES")
    parser.add_argument("--pictures", type=positive_int, default=1000)
    parser.add_argument("--epochs", type=positive_int, default=3)
    parser.add_argument("--init", default="imagenet")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    results = []
    result = machine() | {"pictures": args.pictures, "epochs": args.epochs, "init": args.init}
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        some = evenly(load_dataset(args.data), args.pictures)
        subset = write_table(some, Path(folder) / "subset.csv")
        for network, script in NETWORKS.items():
            for tuning in TUNINGS:
                options = ["--tuning", tuning, "--epochs", args.epochs, "--init", args.init]
                figures = train(script, subset, options, Path(folder) / network / tuning)
                results.append({"network": network, "tuning": tuning, **figures})
                print(as_row(results[-1]), flush=True)
    if args.output:
        with atomic_write(args.output) as file:
            json.dump(result | {"results": results}, file, indent=1)


def train(script: list[str], subset: Path, options: list, output: Path) -> dict:
    """Run a training; its figures. Raises UserError where it fails."""
    said, usage = run_script(script, ["--data", subset, "--output", output, *options])
    description = json.loads((output / "detector.json").read_text(encoding="utf-8"))
    training = description["training"]
    shown = sum(training["images"].values()) * training["epochs_run"]
    return {
        "parameters": int(re.search(r": ([\d,]+) of [\d,]+ parameters", said)[1].replace(",", "")),
        "memory_mb": usage.ru_maxrss / 1024,  # Linux counts in KiB
        "pictures_per_second": shown / (training["minutes"] * 60),
        "auc": description["metrics"]["auc"],
        "auc_95": description["metrics"]["auc_95"],
    }


def run_script(script: list[str], options: list) -> tuple[str, resource.struct_rusage]:
    """Run a training script to its end: what it said on standard error, and what it used. Raises
    UserError where it fails."""
    process = subprocess.Popen(
        [sys.executable, *script, *map(str, options)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        lines = said.strip().splitlines() or [f"it ended with status {status}"]
        refused = [line for line in lines if line.startswith(f"{script[0]}: ")]
        raise UserError((refused or [f"{script[0]}: {lines[-1]}"])[0])
    return said, usage


def table(result: dict) -> str:
    """The figures as a Markdown table."""
    return "\n".join([HEAD, *map(as_row, result["results"]), ""])


def as_row(result: dict) -> str:
    low, high = result["auc_95"]
    return (
        f"| {result['network']} | {result['tuning']} | {result['parameters']:,} | "
        f"{result['memory_mb']:,.0f} MB | {result['pictures_per_second']:.1f} | "
        f"{result['auc']:.3f} ({low:.3f}–{high:.3f}) |"
    )


if __name__ == "__main__":
    run(main)
