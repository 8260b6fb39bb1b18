"""The figures of a comparison, for the screen and for print: each as PNG and as SVG.

Detectors differ in colour (Okabe & Ito's palette, which colour-blind readers can tell apart), in
line style and in marker, so that a grey print can be read, too.
"""

import math
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files; no window system needed
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.common.files import atomic_write
from pipeline.common.labels import CLASS_NAMES, FAKE, REAL
from pipeline.comparison.comparison import worst_mistakes
from pipeline.comparison.entries import ComparisonInputs, TestSet
from pipeline.comparison.mistakes import MISTAKES, draw_mistakes, explain_mistakes, in_two_lines
from pipeline.comparison.scores import Scores
from pipeline.evaluation.metrics import bootstrap_weights, roc
from pipeline.evaluation.robustness import GRID

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (10, 2)), (0, (2, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_CHANCE = {"color": "0.55", "linewidth": 1, "linestyle": (0, (1, 3))}
_COLUMNS = 3


def draw_all(
    inputs: ComparisonInputs, scores: Scores, results: dict, folder: Path
) -> dict[str, str]:
    """Draw every figure that the results allow into `folder`; file name (.png) → its caption."""
    style = _styles([entry.label for entry in inputs.entries])
    both = [test_set for test_set in inputs.sets if scores.can_be_ranked(test_set)]
    drawn: dict[str, str] = {}

    def keep(name: str, caption: str, figure: Figure) -> None:
        save(figure, folder / name)
        drawn[f"{name}.png"] = caption

    if both:
        keep(
            "roc",
            "ROC curves; bands: 95 % bootstrap intervals; marks: at the shipped threshold.",
            _panels(both, lambda axes, s: _roc(axes, s, inputs, scores, style)),
        )
        keep(
            "reliability",
            "Reliability: of the pictures that are given a probability, how many are fake. Below "
            "the diagonal a detector accuses too much. Groups of as many pictures each.",
            _panels(both, lambda axes, s: _reliability(axes, s, inputs, scores, style)),
        )
    keep(
        "confusion",
        "What is called what at the shipped threshold: shares of each row, and pictures.",
        draw_confusion(results),
    )
    if any("mean_auc" in row for row in results["detectors"]):
        keep(
            "speed",
            "Mean AUC over the test sets against the network's time for a picture; bars: 95 % "
            "intervals.",
            draw_speed(results, style),
        )
    for row in results["detectors"]:
        cells = [cell for cell in results["robustness"] if cell["detector"] == row["name"]]
        if cells:
            keep(
                f"robustness-{file_name(row['name'])}",
                f"{row['name']}: what degradations cost; brighter is better.",
                draw_robustness(row["name"], cells),
            )
    if inputs.histories:
        keep(
            "training",
            "Validation AUC by epoch; rings: the best epoch of each training.",
            draw_training_curves(inputs.histories),
        )
    for entry in inputs.entries:
        mistakes = worst_mistakes(entry, inputs.sets, scores, MISTAKES)
        if any(mistakes.values()):
            heat_maps, sentence = explain_mistakes(entry, mistakes)
            keep(
                f"mistakes-{file_name(entry.label)}",
                f"{entry.label}: its worst mistakes, with the fake_probability that it gave. "
                + sentence,
                draw_mistakes(entry, mistakes, heat_maps),
            )
    return drawn


def save(figure: Figure, path: Path) -> None:
    """Write `path`.png and `path`.svg, and close the figure."""
    for suffix in ("png", "svg"):
        with atomic_write(f"{path}.{suffix}", "wb") as file:
            figure.savefig(file, format=suffix, dpi=150)
    plt.close(figure)


def draw_confusion(results: dict) -> Figure:
    """One matrix a detector and test set; sets of one class have one row."""
    names = [row["name"] for row in results["detectors"]]
    sets = results["test_sets"]
    figure, axes = plt.subplots(
        len(names),
        len(sets),
        figsize=(0.9 + 2.1 * len(sets), 0.7 + 1.9 * len(names)),
        squeeze=False,
        layout="constrained",
    )
    of = {(row["detector"], row["test_set"]): row["figures"] for row in results["results"]}
    for row, name in enumerate(names):
        for column, test_set in enumerate(sets):
            figures = of[name, test_set["name"]]
            shares = np.full((2, 2), np.nan)
            for label, class_name in enumerate(CLASS_NAMES):
                if recall := figures.get(f"recall_{class_name}"):
                    shares[label, label] = recall.value
                    shares[label, 1 - label] = 1 - recall.value
            _confusion(axes[row, column], shares, (test_set["real"], test_set["fake"]))
            if row == 0:
                axes[row, column].set_title(in_two_lines(test_set["name"]), fontsize="medium")
            if column == 0:
                axes[row, column].set_ylabel(f"{in_two_lines(name)}\n\nis", fontsize="medium")
    for axis in axes[-1]:
        axis.set_xlabel("is called")
    return figure


def draw_robustness(name: str, cells: list[dict]) -> Figure:
    """Degradations × test sets: AUC, fakes found, real pictures called fake; the sets that have it.

    `cells` are the rows of `results["robustness"]` of one detector.
    """
    panels = {
        "AUC": {(c["degradation"], c["test_set"]): c["auc"] for c in cells},
        "fakes found": {(c["degradation"], c["test_set"]): c["recall_fake"] for c in cells},
        "real called fake": {
            (c["degradation"], c["test_set"]): None
            if c["recall_real"] is None
            else 1 - c["recall_real"]
            for c in cells
        },
    }
    degradations = [name for name in GRID if any(c["degradation"] == name for c in cells)]
    sets = {
        title: list(dict.fromkeys(s for (_, s), value in values.items() if value is not None))
        for title, values in panels.items()
    }
    panels = {title: values for title, values in panels.items() if sets[title]}
    columns = [len(sets[title]) for title in panels]
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(
            1.8 + sum(max(0.75 * count, 1.6) for count in columns),
            2 + 0.3 * len(degradations),
        ),
        width_ratios=columns,
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis, (title, of) in zip(axes[0], panels.items(), strict=True):
        table = np.array([[of[d, s] for s in sets[title]] for d in degradations], dtype=float)
        low = 0.5 if title == "AUC" else 0.0
        goodness = np.clip((table - low) / (1 - low), 0, 1)
        if title == "real called fake":
            goodness = 1 - goodness
        axis.imshow(goodness, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(table):
            text = f"{value:.3f}" if title == "AUC" else f"{value:.0%}"
            colour = "white" if goodness[row, column] < 0.45 else "black"
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
        axis.set_title(title, fontsize="medium")
        axis.set_xticks(range(len(sets[title])), sets[title], rotation=45, ha="right")
        axis.set_yticks(range(len(degradations)), degradations)
        axis.tick_params(length=0)
    figure.suptitle(name)
    return figure


def draw_training_curves(histories: dict[str, list[dict]]) -> Figure:
    """Validation AUC by epoch, a line for each training; a ring about the best epoch.

    `histories`: label → the lines of history.jsonl, each with `epoch` and `val_auc`.
    """
    style = _styles(list(histories))
    figure, axes = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    for label, history in histories.items():
        epochs = [line["epoch"] for line in history]
        areas = [line["val_auc"] for line in history]
        axes.plot(epochs, areas, **style[label], markersize=3.5, linewidth=1.2, label=label)
        best = int(np.argmax(areas))
        axes.plot(epochs[best], areas[best], "o", markersize=9, fillstyle="none", color="black")
    axes.axhline(0.5, **_CHANCE, label="chance")
    axes.set(xlabel="epoch", ylabel="validation AUC")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(color="0.9")
    _legend_below(figure, axes)
    return figure


def draw_speed(results: dict, style: dict[str, dict]) -> Figure:
    """Mean AUC against milliseconds a picture (logarithmic)."""
    figure, axes = plt.subplots(figsize=(5.5, 4.2), layout="constrained")
    for row in results["detectors"]:
        mean = row["mean_auc"]
        look = style[row["name"]] | {"linestyle": "none"}
        axes.errorbar(
            row["milliseconds"],
            mean.value,
            [[mean.value - mean.low], [mean.high - mean.value]],
            **look,
            markersize=8,
            capsize=3,
            label=f"{row['name']} ({row['megabytes']:.2g} MB)",
        )
    axes.axhline(0.5, **_CHANCE, label="chance")
    axes.set(xscale="log", xlabel="milliseconds a picture, network alone", ylabel="mean AUC")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(_few_minor_labels)
    axes.tick_params(axis="x", which="both", length=3.5, pad=3.5)
    axes.margins(x=0.25, y=0.15)
    axes.grid(color="0.9")
    _legend_below(figure, axes)
    return figure


def _roc(
    axes: Axes, test_set: TestSet, inputs: ComparisonInputs, scores: Scores, style: dict
) -> None:
    grid = np.linspace(0, 1, 201)
    opacity = 0.4 / max(3, len(inputs.entries))  # many bands would run into one
    axes.plot([0, 1], [0, 1], **_CHANCE, label="chance")
    for entry in inputs.entries:
        labels, probabilities = scores.labelled(entry, test_set)
        curves = [
            np.interp(grid, fpr, tpr)
            for weights in bootstrap_weights(labels)
            for fpr, tpr in zip(*roc(labels, probabilities, weights), strict=True)
        ]
        low, high = np.percentile(curves, [2.5, 97.5], axis=0)
        look = style[entry.label]
        axes.fill_between(grid, low, high, color=look["color"], alpha=opacity, linewidth=0)
        whole = roc(labels, probabilities)
        axes.plot(
            whole.fpr[0],
            whole.tpr[0],
            color=look["color"],
            linestyle=look["linestyle"],
            linewidth=1.4,
        )
        called_fake = probabilities >= entry.calibration.threshold
        axes.plot(
            np.mean(called_fake[labels == REAL]),
            np.mean(called_fake[labels == FAKE]),
            **look,
            markersize=6,
            markeredgecolor="black",
            markeredgewidth=0.6,
            label=entry.label,
        )
    axes.set(
        xlabel="real pictures called fake",
        ylabel="fakes found",
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
        aspect="equal",
    )


def _reliability(
    axes: Axes, test_set: TestSet, inputs: ComparisonInputs, scores: Scores, style: dict
) -> None:
    axes.plot([0, 1], [0, 1], **_CHANCE, label="perfect")
    for entry in inputs.entries:
        labels, probabilities = scores.labelled(entry, test_set)
        order = np.argsort(probabilities)
        groups = np.array_split(order, max(1, min(10, len(order) // 20)))
        said = [probabilities[group].mean() for group in groups]
        true = [labels[group].mean() for group in groups]
        axes.plot(
            said, true, **style[entry.label], markersize=5, linewidth=1.2,
            label=entry.label,
        )  # fmt: skip
    axes.set(
        xlabel="fake_probability",
        ylabel="share that is fake",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        aspect="equal",
    )


def _confusion(axes: Axes, shares: np.ndarray, images: tuple[int, int]) -> None:
    axes.imshow(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (label, called), share in np.ndenumerate(shares):
        text = "–" if np.isnan(share) else f"{share:.1%}\n{round(share * images[label])}"
        colour = "white" if share > 0.7 else "black"
        axes.text(called, label, text, ha="center", va="center", fontsize=9, color=colour)
    axes.axhline(0.5, color="white", linewidth=1.5)  # two dark cells would run into each other
    axes.axvline(0.5, color="white", linewidth=1.5)
    axes.set_xticks((REAL, FAKE), CLASS_NAMES)
    axes.set_yticks((REAL, FAKE), CLASS_NAMES, rotation=90, va="center")
    axes.tick_params(length=0)


def _panels(sets: list[TestSet], draw: Callable[[Axes, TestSet], None]) -> Figure:
    """A panel for each test set, and one legend below them all."""
    columns = min(_COLUMNS, len(sets))
    rows = math.ceil(len(sets) / columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(3.3 * columns, 3.3 * rows + 0.5),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(sets) :]:
        axis.set_axis_off()
    for axis, test_set in zip(axes.flat, sets, strict=False):
        draw(axis, test_set)
        axis.set_title(in_two_lines(test_set.name), fontsize="medium")
    _legend_below(figure, axes.flat[0], columns + 1)
    return figure


def _legend_below(figure: Figure, axes: Axes, columns: int = 2) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize="small", frameon=False,
        handlelength=3.2,
    )  # fmt: skip


def _styles(labels: list[str]) -> dict[str, dict]:
    """A look for each label: no two share colour, line and marker."""
    looks = zip(cycle(_COLOURS), cycle(_LINES), cycle(_MARKERS), strict=False)
    return {
        label: {"color": colour, "linestyle": line, "marker": marker}
        for label, (colour, line, marker) in zip(labels, islice(looks, len(labels)), strict=True)
    }


def _few_minor_labels(value: float, _position: int) -> str:
    digit = round(value / 10 ** math.floor(math.log10(value)))
    return f"{value:g}" if digit in (2, 5) else ""


def file_name(label: str) -> str:
    """A detector's label as a part of a file's name."""
    return "".join(sign if sign.isalnum() or sign in "-_" else "-" for sign in label)
