"""What helps a probe on CLIP's features to find kinds of fakes that it never saw.

    python benchmarks/probe_study.py --data FACES.csv --tests FACES/test/* --output study/

FACES.csv is as for training, with a column `generator`; kinds of one family (dfdc_swap_a, _b, …)
are left out together. Each variant is fitted once with all kinds and once without each; a fit
without a kind is judged by that kind's validation pictures, beside all real ones. The features,
which take most of the time, are kept in --output, so that a second run takes minutes. The figures
go to benchmarks/probe_study.json.
"""

import json
import re
import sys
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train_vit
from benchmarks.measuring import machine
from benchmarks.results import TITLES
from models import ARCHITECTURES
from pipeline.common.command_line import positive_int, run, script_parser
from pipeline.common.files import atomic_write
from pipeline.common.labels import FAKE, REAL
from pipeline.data.dataset import Dataset, load_dataset, load_samples
from pipeline.evaluation.metrics import auc
from pipeline.feeding.augmentation import NO_AUGMENTATION
from pipeline.feeding.batches import Batches
from pipeline.feeding.sampling import Epochs, source_of

BLOCKS = tuple(range(5, 13))  # whose features are kept
WIDTH = 768
SEEDS = (0, 1, 2)
FEWEST = 10  # validation fakes of a kind that counts in the means
BASE = {
    "views": ("clean", "changed"),
    "blocks": (7, 8, 9, 10, 11, 12),
    "tokens": ("class", "patches"),
    "penalty": 0.01,
    "balance": "generator",
}
VARIANTS = {
    "as shipped": {},
    "pictures as they are alone": {"views": ("clean",)},
    "changed pictures alone": {"views": ("changed",)},
    "class tokens alone": {"tokens": ("class",)},
    "means of patches alone": {"tokens": ("patches",)},
    "block 12 alone": {"blocks": (12,)},
    "blocks 5 to 12": {"blocks": BLOCKS},
    "penalty 0.001": {"penalty": 0.001},
    "penalty 0.1": {"penalty": 0.1},
    "penalty 0.0001": {"penalty": 0.0001},
    "penalty 0.001, every picture once": {"penalty": 0.001, "balance": "none"},
    "penalty 0.0001, every picture once": {"penalty": 0.0001, "balance": "none"},
    "penalty 0.001, blocks 5 to 12": {"penalty": 0.001, "blocks": BLOCKS},
    "every picture once": {"balance": "none"},
}
RESULTS = Path(__file__).with_suffix(".json")


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR|CSV")
    parser.add_argument("--tests", type=Path, nargs="*", default=[], metavar="DIR")
    parser.add_argument("--init", default="packaged")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--faces", type=positive_int, metavar="N", help="of those to train on, drawn at random"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    dataset = load_dataset(args.data)
    if args.faces and args.faces < len(dataset.train):
        kept = np.random.default_rng(0).choice(len(dataset.train), args.faces, replace=False)
        dataset = replace(dataset, train=[dataset.train[number] for number in sorted(kept)])
    sets = {folder.name: load_samples(folder) for folder in args.tests}
    study = Study(dataset, sets, args)
    lines = [
        {"variant": name, "seed": seed, **study.figures(BASE | changes, seed)}
        for name, changes in VARIANTS.items()
        for seed in args.seeds
        if seed == args.seeds[0] or "changed" in (BASE | changes)["views"]
    ]
    results = {**machine(), "faces": len(dataset.train), "results": lines}
    with atomic_write(RESULTS) as file:
        json.dump(results, file, indent=1)
        file.write("\n")
    print(table(results))
    print(left_out(results))


def table(results: dict) -> str:
    """Of each variant the means over the kinds that were left out, and over its seeds, in
    Markdown."""
    sets = [name for name, of in results["results"][0]["tests"].items() if "auc" in of]
    heads = ["probe", "AUC of the kinds left out, mean", "found"]
    heads += [f"{TITLES.get(name, name)}: AUC, found" for name in sets]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for variant in dict.fromkeys(line["variant"] for line in results["results"]):
        of_seeds = [line for line in results["results"] if line["variant"] == variant]
        means = {
            key: np.mean([line["mean_unseen"][key] for line in of_seeds])
            for key in ("auc", "found")
        }
        cells = [variant, f"{means['auc']:.3f}", f"{means['found']:.0%}"]
        for name in sets:
            area, found = (
                np.mean([line["tests"][name][key] for line in of_seeds]) for key in ("auc", "found")
            )
            cells.append(f"{area:.3f}, {found:.0%}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def left_out(results: dict) -> str:
    """What the probe as it is shipped makes of each kind that it has not seen, in Markdown."""
    first = next(line for line in results["results"] if line["variant"] == next(iter(VARIANTS)))
    lines = ["| left out | its validation pictures | AUC | found |", "|---|---|---|---|"]
    for kind, figures in sorted(first["unseen"].items()):
        if figures["fake"] < FEWEST:
            continue
        lines.append(
            f"| {kind} | {figures['fake']} | {figures['auc']:.3f} | {figures['found']:.0%} |"
        )
    return "\n".join([*lines, ""])


def family(kind: str) -> str:
    """The kinds that are left out together: a letter at the end tells parts of one apart."""
    return re.sub(r"_[a-z]$", "", kind)


class Study:
    """The features of all pictures, and what comes of a variant."""

    def __init__(self, dataset: Dataset, sets: dict[str, list], args):
        self._dataset, self._sets, self._args = dataset, sets, args
        self._backbone = None
        self._labels = np.array([sample.label for sample in dataset.train], np.float32)
        self._kinds = np.array([family(source_of(sample)) for sample in dataset.train])

    def figures(self, variant: dict, seed: int) -> dict:
        """Per kind left out: AUC and fakes found at a threshold that 2 % of the real validation
        faces of each source reach; and, with all kinds, the same per test set."""
        import torch
        from torch import nn

        from pipeline.torch_engine.regression import Views, fit

        epochs = Epochs(self._dataset.train, 0.0, variant["balance"], seed)
        often = epochs.frequencies()[: len(self._labels)].astype(np.float32)
        left_out = ["", *sorted(set(self._kinds[self._labels == FAKE]))]
        weights = np.stack([often * (self._kinds != kind) for kind in left_out], axis=1)
        names = {"clean": "clean", "changed": f"changed-{seed}"}
        chosen = partial(_chosen, variant=variant)
        views = [chosen(self._features(names[view])) for view in variant["views"]]
        head = nn.Linear(views[0].shape[1], len(left_out))
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        fit(head, Views(views, self._labels, weights), variant["penalty"], steps=150)
        del views

        def logits(name: str) -> np.ndarray:
            with torch.inference_mode():
                return head(torch.from_numpy(chosen(self._features(name)))).numpy()

        validation, samples = logits("validate"), self._dataset.validate
        labels = np.array([sample.label for sample in samples])
        sources = np.array([family(source_of(sample)) for sample in samples])
        thresholds = [_threshold(column, labels, sources) for column in validation.T]
        unseen = {
            kind: _figures(validation[:, number], labels, thresholds[number], sources == kind)
            for number, kind in enumerate(left_out)
            if kind
        }
        seen = {}
        for name, of_set in self._sets.items():
            labels = np.array([sample.label for sample in of_set])
            seen[name] = _figures(logits(name)[:, 0], labels, thresholds[0], labels == FAKE)
        tried = [each for each in unseen.values() if each["fake"] >= FEWEST]
        means = {key: float(np.mean([each[key] for each in tried])) for key in ("auc", "found")}
        print(f"{variant}, seed {seed}: unseen {means}", file=sys.stderr)
        return {"unseen": unseen, "mean_unseen": means, "tests": seen}

    def _features(self, name: str) -> np.ndarray:
        """(N, blocks, 2, WIDTH) float16, mapped: `name` is a view of the training pictures,
        "validate", or a test set."""
        from pipeline.torch_engine.probe import features_of

        if self._backbone is None:
            self._open()
        view, _, seed = name.partition("-")
        recipe = self._recipe if view == "changed" else self._unchanged
        if view in ("clean", "changed"):
            batches = self._batches(replace(recipe, seed=int(seed or 0)), self._dataset)
            count, pictures = len(self._dataset.train), partial(batches.augmented, 1)
        else:
            samples = self._dataset.validate if name == "validate" else self._sets[name]
            batches = self._batches(recipe, replace(self._dataset, validate=samples))
            count, pictures = len(samples), batches.as_scored
        path = self._args.output / name
        features = features_of(path, count, pictures, self._backbone, self._architecture)
        return features.rows.reshape(count, len(BLOCKS), 2, WIDTH)

    def _open(self) -> None:
        import torch

        from pipeline.torch_engine.probe import Backbone, head_layer
        from pipeline.torch_engine.recipe import TorchRecipe
        from pipeline.torch_engine.trainer import Classifier
        from pipeline.torch_engine.weights import starting_point

        torch.manual_seed(0)
        self._architecture = ARCHITECTURES["vit_clip"].with_options(blocks=BLOCKS)
        settings = {
            name: value
            for name, value in train_vit.CLIP_RECIPE.items()
            if name not in ("init", "blocks")
        }
        changes = {"tuning": "probe", "self_blended": 0.0, "balance": "none"}
        self._recipe = TorchRecipe(**settings | changes)
        self._unchanged = replace(self._recipe, augmentation=NO_AUGMENTATION)
        network = self._architecture.build()
        starting_point(self._args.init, self._architecture).load(network)
        head = head_layer(network, self._architecture)
        self._backbone = Backbone(Classifier(network, "probe"), head, self._recipe, "cpu")

    def _batches(self, recipe, dataset: Dataset) -> Batches:
        return Batches(self._architecture, recipe, dataset, self._args.workers, cache_bytes=0)


def _chosen(features: np.ndarray, variant: dict) -> np.ndarray:
    """The part of (N, blocks, 2, WIDTH) that a variant looks at: (N, D) float32."""
    blocks = [BLOCKS.index(block) for block in variant["blocks"]]
    tokens = [("class", "patches").index(token) for token in variant["tokens"]]
    part = features[:, blocks][:, :, tokens]
    return part.reshape(len(features), -1).astype(np.float32)


def _threshold(logits: np.ndarray, labels: np.ndarray, sources: np.ndarray) -> float:
    by_source = defaultdict(list)
    for score, label, source in zip(logits, labels, sources, strict=True):
        if label == REAL:
            by_source[source].append(score)
    return max(np.quantile(scores, 0.98) for scores in by_source.values() if len(scores) >= 50)


def _figures(
    logits: np.ndarray, labels: np.ndarray, threshold: float, of_kind: np.ndarray
) -> dict[str, float]:
    """Of the fakes `of_kind` and all real faces."""
    real = labels == REAL
    fakes = of_kind & (labels == FAKE)
    figures = {"real": int(real.sum()), "fake": int(fakes.sum())}
    figures["accused"] = float(np.mean(logits[real] > threshold))
    if fakes.any():
        both = real | fakes
        figures["auc"] = float(auc(labels[both], logits[both]))
        figures["found"] = float(np.mean(logits[fakes] > threshold))
    return figures


if __name__ == "__main__":
    run(main)
