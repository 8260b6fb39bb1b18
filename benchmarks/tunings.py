"""Compare what may learn (head, normalization, LoRA, all) in three networks, and a start from none.

    python benchmarks/tunings.py --data FACES --tests FACES/test/* --output FOLDER

FACES is a dataset as training wants it. --faces of it are trained on, as many of each source as
there are, for --epochs epochs: ViT-B/16 from CLIP, EfficientNet-Lite0 from ImageNet, and ResNet50
from weights/resnet50, which has seen such faces. Each run is a training script of its own, which
writes a detector to FOLDER; what is there already is not trained again. All are tried on up to
--per-class pictures of each class of each folder of --tests, taken whole; gpt_4o is of a kind that
none was trained on. The figures go to benchmarks/tunings.json, after each run; prints a Markdown
table.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import ROOT, machine
from benchmarks.new_generator import evenly_by_source, samples_in
from benchmarks.subsets import write_table
from pipeline.common.command_line import positive_int, run
from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write
from pipeline.common.labels import FAKE, REAL
from pipeline.data.dataset import Sample, load_dataset
from pipeline.detectors.detector import load_detector
from pipeline.evaluation.metrics import auc, delong_test, evaluate_with_auc_interval
from pipeline.evaluation.precision import probabilities_of
from pipeline.photos.images import read_image, resize

NETWORKS = {
    "EfficientNet-Lite0 from ImageNet": (
        "train_efficientnet.py --architecture efficientnet_lite0",
        "imagenet",
    ),
    "ResNet50, taught": ("train_resnet50.py", "weights/resnet50"),
    "ViT-B/16 from CLIP": ("train_vit.py --architecture vit_clip", "packaged"),
}
TUNINGS = ("probe", "norm", "lora", "full", "from scratch")
UNSEEN = "gpt_4o"  # a kind that is not among the faces to train on
RESULTS = Path(__file__).with_suffix(".json")
HEAD = (
    "| network | what learns | parameters | minutes | memory | kept | AUC, kinds seen | "
    "AUC, GPT-4o unseen | found at 1 % |\n|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FACES")
    parser.add_argument("--tests", type=Path, nargs="+", required=True, metavar="TEST")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--faces", type=positive_int, default=1000)
    parser.add_argument("--epochs", type=positive_int, default=2)
    parser.add_argument("--per-class", type=positive_int, default=100)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    tests = {folder.name: _some(samples_in(folder), args.per_class) for folder in args.tests}
    some = evenly_by_source(load_dataset(args.data), args.faces)
    subset = write_table(some, args.output / "faces.csv")
    result = machine() | {"faces": len(some.train), "epochs": args.epochs, "results": []}
    result["pictures"] = {name: len(samples) for name, samples in tests.items()}
    print(HEAD)
    for network, (script, start) in NETWORKS.items():
        scores = {}
        for tuning in TUNINGS:
            folder = args.output / f"{script.split()[-1].removesuffix('.py')}-{tuning.split()[-1]}"
            options = ["--epochs", args.epochs, "--workers", 1, "--ema", 0.95]
            options += ["--threshold-rule", "fpr=0.05"]
            options += ["--tuning", "full" if tuning == "from scratch" else tuning]
            options += ["--init", "none" if tuning == "from scratch" else start]
            figures = train(script.split(), subset, options, folder)
            scores[tuning] = {name: _scores(folder, samples) for name, samples in tests.items()}
            threshold = load_detector(folder).calibration.threshold
            figures |= figures_of(tests, scores[tuning], threshold)
            if tuning == "full":
                figures["lora_minus_full"] = _compared(tests, scores["lora"], scores["full"])
            result["results"].append({"network": network, "tuning": tuning, **figures})
            print(as_row(result["results"][-1]), flush=True)
            with atomic_write(RESULTS) as file:
                json.dump(result, file, indent=1)
                file.write("\n")


def _some(samples: list[Sample], per_class: int) -> list[Sample]:
    """The same number of each class, spread over the folder."""
    chosen = []
    for label in (REAL, FAKE):
        of_class = [sample for sample in samples if sample.label == label]
        step = max(1, len(of_class) // per_class)
        chosen += of_class[::step][:per_class]
    return chosen


def train(script: list[str], subset: Path, options: list, output: Path) -> dict:
    """Run a training, or read what it said before; its figures. Raises UserError where it fails."""
    kept = output.with_suffix(".json")
    if kept.exists():
        return json.loads(kept.read_text("utf-8"))
    said, usage = run_script(script, ["--data", subset, "--output", output, *options])
    description = json.loads((output / "detector.json").read_text(encoding="utf-8"))
    training = description["training"]
    shown = sum(training["images"].values()) * training["epochs_run"]
    adapter = output / "adapter"
    saved = adapter if adapter.is_dir() else output
    figures = {
        "parameters": int(re.search(r": ([\d,]+) of [\d,]+ parameters", said)[1].replace(",", "")),
        "memory_mb": usage.ru_maxrss / 1024,  # Linux counts in KiB
        "pictures_per_second": shown / (training["minutes"] * 60),
        "auc": description["metrics"]["auc"],
        "auc_95": description["metrics"]["auc_95"],
        "minutes": training["minutes"],
        "kept_mb": sum(path.stat().st_size for path in saved.iterdir() if path.is_file()) / 1e6,
    }
    with atomic_write(kept) as file:
        json.dump(figures, file)
    return figures


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


def _scores(folder: Path, samples: list[Sample]) -> np.ndarray:
    """fake_probability (N,) of pictures that are taken whole."""
    detector = load_detector(folder)
    size = detector.architecture.input_size
    pixels = [resize(read_image(sample.path), size, detector.resize_filter) for sample in samples]
    return probabilities_of(detector, folder, "fp32", np.stack(pixels))[0]


def figures_of(
    tests: dict[str, list[Sample]], scores: dict[str, np.ndarray], threshold: float
) -> dict:
    """The AUC of each set; and of the seen kinds, and the unseen one, beside all real faces the
    figures of metrics.evaluate, with the AUC's interval."""
    figures = {"sets": {}}
    for name, samples in tests.items():
        labels = np.array([sample.label for sample in samples])
        if len(set(labels)) == 2:
            figures["sets"][name] = auc(labels, scores[name])
    for kind in ("seen", "unseen"):
        figures[kind] = evaluate_with_auc_interval(*_pooled(tests, scores, kind), threshold)
    return figures


def _pooled(
    tests: dict[str, list[Sample]], scores: dict[str, np.ndarray], kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores (N,) of the real faces of all sets and of the fakes of one sort."""
    labels, pooled = [], []
    for name, samples in tests.items():
        for sample, score in zip(samples, scores[name], strict=True):
            if sample.label == REAL or (name == UNSEEN) == (kind == "unseen"):
                labels.append(sample.label)
                pooled.append(score)
    return np.array(labels), np.array(pooled)


def _compared(tests: dict, first: dict, second: dict) -> dict:
    """DeLong's test between two on the same pictures: [difference, low, high] of AUC, and p."""
    compared = {}
    for kind in ("seen", "unseen"):
        labels, one = _pooled(tests, first, kind)
        tested = delong_test(labels, one, _pooled(tests, second, kind)[1])
        compared[kind] = {"difference": list(tested.difference), "p": tested.p}
    return compared


def table(result: dict) -> str:
    """The figures as a Markdown table."""
    return "\n".join([HEAD, *map(as_row, result["results"]), ""])


def as_row(result: dict) -> str:
    aucs = [
        "{:.3f} ({:.3f}–{:.3f})".format(result[kind]["auc"], *result[kind]["auc_95"])
        for kind in ("seen", "unseen")
    ]
    found = [f"{result[kind]['tpr_at_1_fpr']:.0%}" for kind in ("seen", "unseen")]
    return (
        f"| {result['network']} | {result['tuning']} | {result['parameters']:,} | "
        f"{result['minutes']:.0f} | {result['memory_mb'] / 1000:.1f} GB | "
        f"{result['kept_mb']:.1f} MB | {aucs[0]} | {aucs[1]} | {found[0]}, {found[1]} |"
    )


if __name__ == "__main__":
    run(main)
