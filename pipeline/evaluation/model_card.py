"""The model card of a detector folder, with its figures.

    python manage_detectors.py card weights/*      write the text of these model cards again

What a card says comes from detector.json; after the text has changed here, the command above puts
it into folders that are there already. Weights, figures and metrics stay as they are.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files; no window system needed
import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import roc_curve

from pipeline.common.command_line import script_parser
from pipeline.detectors.calibration import MISSED_FAKES, equal_width_bins, in_words
from pipeline.detectors.detector import change_detector, load_detector
from pipeline.detectors.versions import copies_of, copy_detector
from pipeline.evaluation.card_usage import usage
from pipeline.evaluation.model_index import card_head
from pipeline.evaluation.shares import wilson

# Two colours that stay apart for colour-blind readers and in grey (Okabe & Ito).
REAL_COLOUR, FAKE_COLOUR = "#0072B2", "#E69F00"
REPORTED = "reported"  # the test set that mark_wrong.py collects
# The first part of an architecture's name → the script that scores with it.
_SCORING_SCRIPTS = {
    "xception": "infer_xception_efficientnet.py",
    "efficientnet": "infer_xception_efficientnet.py",
    "vit": "infer_vit.py",
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = script_parser(__doc__, "card")
    parser.add_argument("detectors", nargs="+", type=Path, metavar="DETECTOR")
    for folder in parser.parse_args(arguments).detectors:
        if folder.is_dir():  # weights/* names files, too
            rewrite_card(folder)


def rewrite_card(folder: Path) -> None:
    """Write a detector folder's README.md again, and its checksum, here and in the copy among its
    versions; nothing else changes. Raises UserError where it is not a detector folder."""
    detector = load_detector(folder)
    copies = copies_of(folder)
    with change_detector(detector) as (new, description):
        write_card_text(new, description)
    for copy in copies:
        copy_detector(folder, copy)


def write_model_card(
    folder: Path, description: dict, labels: np.ndarray, probabilities: np.ndarray
) -> None:
    """Write README.md, roc.png and reliability.png into a detector folder that is being made.

    labels (N,) of 0 and 1 and probabilities (N,) are of the validation pictures.
    """
    _draw_roc(folder / "roc.png", description, labels, probabilities)
    _draw_reliability(folder / "reliability.png", description, labels, probabilities)
    write_card_text(folder, description)


def write_card_text(folder: Path, description: dict) -> None:
    """Write README.md alone, for a detector.json that has changed since the figures were drawn."""
    (folder / "README.md").write_text(_card(description), encoding="utf-8")


def _card(description: dict) -> str:
    metrics, training = description["metrics"], description["training"]
    calibration, arguments = description["calibration"], training["arguments"]
    low, high = metrics["auc_95"]
    images = metrics["images"]
    recipe = "\n".join(f"| {name} | {value} |" for name, value in arguments.items())
    counts = training["images"]
    architecture = description["architecture"]
    kinds = (
        "the same kinds as in training, but other pictures"
        if counts["fake"]
        else "training made its own fakes from real pictures and saw none of these kinds"
    )
    if "data" in calibration:
        kinds = f"from {calibration['data']}, on which it was calibrated again"
    script = _SCORING_SCRIPTS.get(architecture.partition("_")[0], f"infer_{architecture}.py")
    return f"""{card_head(description)}
# {description["name"]}

A detector of deepfake faces ({architecture}), trained on {counts["real"]:,} real and
{counts["fake"]:,} fake pictures on {training["date"]}; start: {training["start"]}.

    python {script} photos/ --weights weights/{description["name"]}
{usage(description)}
## Results on the validation pictures

{images["real"]} real, {images["fake"]} fake; {kinds}.
The best epoch, the temperature and the threshold were chosen on these pictures, so the figures are
slightly optimistic.

| figure | value |
|---|---|
| AUC | {metrics["auc"]:.3f} (95 % interval {low:.3f}–{high:.3f}, bootstrap) |
| average precision | {metrics["ap"]:.3f} |
| equal error rate | {metrics["eer"]:.3f} |
| fakes found at the threshold | {_share(metrics, "fake")} |
| real faces called real or uncertain at the threshold | {_share(metrics, "real")} |
| calibration error (ECE) before → after temperature scaling | {metrics["ece_before"]:.3f} → \
{metrics["ece"]:.3f} |

![ROC curve](roc.png) ![reliability diagram](reliability.png)
{_unseen(metrics)}{_test_sets(metrics, calibration["threshold"])}
## Verdicts

* `fake`: a fake_probability of {calibration["threshold"]:.3f} or more. Threshold rule
  `{calibration["rule"]}`: {in_words(calibration["rule"])}.
* `real`: below {calibration["uncertain_from"]:.3f}, where at most {MISSED_FAKES:.0%} of the \
validation fakes lie.
* `uncertain`: between the two.

The probabilities are calibrated with a temperature of {calibration["temperature"]:.3f}.

## Training

| setting | value |
|---|---|
{recipe}

Data: {training["data"]} (fingerprint `{training["fingerprint"][:16]}`).
Epochs: {training["epochs_run"]}, the best was epoch {training["best_epoch"]}.
Time: {training["minutes"]:.0f} minutes on {training["device"]}. `history.jsonl` has a line for \
each epoch.
{_averaged(training)}
## Limits

- It knows the kinds of fakes it was trained on. Fakes from a new generator or another face-swapping
  method may pass as real; a soft, small or heavily compressed real photo may be called fake.
- It looks only at faces, one at a time. An edited background or a false caption is beyond it.
- A verdict is a reason to look more closely, not evidence.

## Licence of the data

{training["data_licence"]}
"""


def _share(metrics: dict, of_class: str) -> str:
    """The recall of a class, with its interval."""
    images = metrics["images"][of_class]
    share = wilson(round(metrics[f"recall_{of_class}"] * images), images)
    return f"{share.value:.1%} (95 % interval {share.low:.1%}–{share.high:.1%}, Wilson)"


def _averaged(training: dict) -> str:
    """The detectors that weight_average.py averaged; empty for the result of a single training."""
    if "averaged" not in training:
        return ""
    parts = ", ".join(
        f"{part['share']:.0%} {part['name']} of {part['date']}" for part in training["averaged"]
    )
    return f"""
The weights are an average: {parts}. The settings above belong to the last of these trainings,
which continued from the one before.
"""


def _unseen(metrics: dict) -> str:
    """The section on what `comparison_record` has recorded; empty where it has not."""
    if "unseen_auc" not in metrics:
        return ""
    low, high = metrics["unseen_auc_95"]
    measured = metrics["unseen_measured"]
    sets = "; ".join(
        f"{name} ({images['real']:,} real, {images['fake']:,} fake)"
        for name, images in measured["sets"].items()
    )
    return f"""
## Results on kinds of fakes it has not seen

AUC {metrics["unseen_auc"]:.3f} (95 % interval {low:.3f}–{high:.3f}, DeLong), the mean over these
test sets, measured on {measured["date"]}: {sets}.
"""


def _test_sets(metrics: dict, threshold: float) -> str:
    """The section on each test set that was recorded with this threshold; empty where none was."""
    sets = metrics.get("test_sets", {})
    sets = {name: of for name, of in sets.items() if of["threshold"] == threshold}
    if not sets:
        return ""
    rows = "\n".join(
        f"| {name} | {of['kind']} | {_of(of['found'], of['fake'])} | "
        f"{_of(of['called_fake'], of['real'])} | {of['date']} |"
        for name, of in sets.items()
    )
    return f"""
## Results on test sets

| test set | kind | fakes found | real faces called fake | measured on |
|---|---|---|---|---|
{rows}
{_reported(sets)}"""


def _of(hits: int, number: int) -> str:
    if not number:
        return "–"
    share = wilson(hits, number)
    return f"{hits:,} of {number:,}: {share.value:.1%} ({share.low:.1%}–{share.high:.1%})"


def _reported(sets: dict) -> str:
    """On the set of reported wrong verdicts, which are no fair sample; empty without it."""
    if REPORTED not in sets:
        return ""
    of = sets[REPORTED]
    return f"""
It was checked against {of["real"] + of["fake"]:,} reports of wrong verdicts (`{REPORTED}`), which
are chosen for being hard.
"""


def _draw_roc(path: Path, description: dict, labels: np.ndarray, probabilities: np.ndarray) -> None:
    fpr, tpr, _ = roc_curve(labels, probabilities)
    threshold = description["calibration"]["threshold"]
    figure, axes = plt.subplots(figsize=(4.5, 4.5), layout="constrained")
    axes.plot(fpr, tpr, color=REAL_COLOUR, label="validation pictures")
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="chance")
    axes.plot(
        np.mean(probabilities[labels == 0] >= threshold),
        np.mean(probabilities[labels == 1] >= threshold),
        "o",
        color=FAKE_COLOUR,
        markeredgecolor="black",
        label="at the threshold",
    )
    axes.set(
        xlabel="share of real faces called fake",
        ylabel="share of fakes found",
        title=f"{description['name']}: AUC {description['metrics']['auc']:.3f}",
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
        aspect="equal",
    )
    axes.legend(loc="lower right")
    _save(figure, path)


def _draw_reliability(
    path: Path, description: dict, labels: np.ndarray, probabilities: np.ndarray
) -> None:
    bins = 10
    bin_of = equal_width_bins(probabilities, bins)
    counts = np.bincount(bin_of, minlength=bins)
    filled = counts > 0
    said = np.bincount(bin_of, weights=probabilities, minlength=bins)[filled] / counts[filled]
    true = np.bincount(bin_of, weights=labels, minlength=bins)[filled] / counts[filled]
    figure, (axes, below) = plt.subplots(
        2, 1, figsize=(4.5, 5.8), height_ratios=(4, 1), sharex=True, layout="constrained"
    )
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="perfect")
    axes.plot(said, true, "o-", color=REAL_COLOUR, label="validation pictures")
    calibration = description["calibration"]
    for name, style in (("uncertain_from", "--"), ("threshold", "-")):
        axes.axvline(
            calibration[name], color=FAKE_COLOUR, linestyle=style, label=name.replace("_", " ")
        )
    axes.set(
        ylabel="share that is fake",
        title=f"{description['name']}: ECE {description['metrics']['ece']:.3f}",
        xlim=(0, 1),
        ylim=(-0.01, 1.01),
    )
    edges = np.linspace(0, 1, bins + 1)[:-1]
    for label, colour, name in ((0, REAL_COLOUR, "real"), (1, FAKE_COLOUR, "fake")):
        heights = np.bincount(bin_of[labels == label], minlength=bins)
        below.bar(
            edges + 0.025 + 0.05 * label,
            heights,
            width=0.045,
            align="center",
            color=colour,
            hatch="//" if label else None,
            edgecolor="black",
            linewidth=0.4,
            label=name,
        )
    below.set(xlabel="fake_probability", ylabel="pictures")
    figure.legend(loc="outside lower center", ncols=2)  # inside, it would cover bars or curve
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=100)
    plt.close(figure)
