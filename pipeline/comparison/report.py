"""The report of a comparison: README.md, index.html in one file, results.csv and results.json."""

import base64
import csv
import html
import json
import re
from datetime import date
from pathlib import Path
from urllib.parse import quote

import markdown
from markupsafe import Markup

from pipeline.common.files import atomic_write
from pipeline.common.html_templates import environment
from pipeline.comparison.figures import file_name
from pipeline.evaluation.robustness import CLEAN
from pipeline.evaluation.shares import Estimate

_FIGURES = "figures"
_NAMES = {
    "auc": "AUC",
    "ap": "AP",
    "eer": "EER",
    "tpr_at_1_fpr": "TPR at 1 % FPR",
    "tpr_at_5_fpr": "TPR at 5 % FPR",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "recall_fake": "fakes found",
    "called_fake": "real called fake",
    "ece": "ECE",
    "brier": "Brier score",
}
_TABLES = (
    (
        "Telling real from fake",
        "Whatever the threshold: area under the ROC curve, average precision, equal error rate, "
        "and the fakes found where 1 or 5 % of the real pictures of this set are called fake.",
        ("auc", "ap", "eer", "tpr_at_1_fpr", "tpr_at_5_fpr"),
    ),
    (
        "At the shipped threshold",
        "What a user gets. One minus the last column is the recall of real pictures.",
        ("accuracy", "balanced_accuracy", "recall_fake", "called_fake"),
    ),
    (
        "Do the probabilities mean what they say?",
        "Expected calibration error (15 bins) and Brier score; lower is better. Both depend on how "
        "many of a set's pictures are fake.",
        ("ece", "brier"),
    ),
)
_AS_SHARES = {*_TABLES[1][2], "tpr_at_1_fpr", "tpr_at_5_fpr"}


def write_report(folder: Path, results: dict, figures: dict[str, str]) -> None:
    """Write the four files into `folder`.

    `results` as comparison.compare gives them, with `milliseconds` for each detector; `figures` as
    comparison_figures.draw_all gives them, already in `folder`/figures.
    """
    with atomic_write(folder / "results.json") as file:
        json.dump({"date": date.today().isoformat(), **results}, file, indent=1)
    _write_csv(folder / "results.csv", results)
    text = as_markdown(results, figures)
    with atomic_write(folder / "README.md") as file:
        file.write(text)
    with atomic_write(folder / "index.html") as file:
        file.write(_as_html(text, folder))


def summary_table(results: dict) -> str:
    """The short table, in Markdown: AUC, fakes found and real called fake, seen kinds first."""
    order = {"seen": 0, "not stated": 1, "unseen": 2}
    images = {row["name"]: f"{row['real']} + {row['fake']}" for row in results["test_sets"]}
    rows = [
        [
            row["detector"],
            row["test_set"],
            row["kind"],
            images[row["test_set"]],
            *(_figure(row["figures"], name) for name in ("auc", "recall_fake", "called_fake")),
        ]
        for detector in results["detectors"]
        for row in sorted(results["results"], key=lambda row: order[row["kind"]])
        if row["detector"] == detector["name"]
    ]
    head = ["detector", "test set", "kind", "real + fake", "AUC", "fakes found", "real called fake"]
    return _table(head, rows)


def as_markdown(results: dict, figures: dict[str, str]) -> str:
    """The whole report; pictures are links to figures/."""
    parts = [
        "# Comparison of deepfake detectors",
        f"{date.today().day} {date.today():%B %Y}. "
        "In brackets 95 % intervals: bootstrap over the pictures, "
        "within each class; for shares of pictures, Wilson's (for the TPR at a FPR, whose "
        "threshold is an estimate, too, the wider of both); for differences of AUC, DeLong's.",
        "## Seen and unseen kinds",
        "A kind is *seen* where the detector was trained on other pictures of the same generator "
        "or source; *not stated* where nobody said what it was trained on.",
        summary_table(results),
        _side_by_side(results),
        _leave_one_out(results),
    ]
    for title, sentence, names in _TABLES:
        parts += [f"## {title}", sentence, _figures_table(results, names)]
    for name in ("roc.png", "confusion.png", "reliability.png"):
        parts += _picture(name, figures)
    if results["paired"]:
        parts += [
            "## Is the difference more than chance?",
            "Difference of the AUCs on the same pictures (DeLong's test), first minus second; p "
            "adjusted for the number of pairs in the set (Holm).",
            _paired_table(results),
        ]
    if results["robustness"]:
        parts += _robustness(results, figures)
    parts += ["## Size, speed, training", _detectors_table(results)]
    for name in ("speed.png", "training.png"):
        parts += _picture(name, figures)
    mistakes = [name for name in figures if name.startswith("mistakes-")]
    if mistakes:
        parts += [
            "## Worst mistakes",
            "These are the test pictures themselves: mind their terms before this page is shown to "
            "others.",
        ]
        for name in mistakes:
            parts += _picture(name, figures)
    if results["failed"] or results["skipped"]:
        parts += ["## Left out", *_list(results["failed"] + results["skipped"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _side_by_side(results: dict) -> str:
    """The means over the sets of a seen and over those of an unseen kind, in one row a detector."""
    names = ("auc", "recall_fake", "called_fake")
    rows = []
    for detector in results["detectors"]:
        row = [detector["name"]]
        for name in names:
            for kind in ("seen", "unseen"):
                values = [
                    estimate.value
                    for result in results["results"]
                    if (result["detector"], result["kind"]) == (detector["name"], kind)
                    and (estimate := _estimate(result["figures"], name))
                ]
                row.append(_number(name, sum(values) / len(values)) if values else "–")
        if set(row[1:]) != {"–"}:
            rows.append(row)
    if not rows:
        return ""
    head = [f"{_NAMES[name]}, {kind}" for name in names for kind in ("seen", "unseen")]
    return "Means over the test sets of either kind:\n\n" + _table(["detector", *head], rows)


def _leave_one_out(results: dict) -> str:
    """AUC on each set of the detectors that have seen its kind and of those that have not."""
    rows = []
    for test_set in results["test_sets"]:
        of_set = [
            row
            for row in results["results"]
            if row["test_set"] == test_set["name"] and "auc" in row["figures"]
        ]
        by_kind = {
            kind: [row for row in of_set if row["kind"] == kind] for kind in ("seen", "unseen")
        }
        if all(by_kind.values()):
            cells = [
                "; ".join(f"{row['detector']} {_figure(row['figures'], 'auc')}" for row in rows)
                for rows in by_kind.values()
            ]
            rows.append([test_set["name"], *cells])
    if rows:
        return (
            "### With and without a kind in training\n\nAUC on a kind of the detectors that were "
            "trained on it and of those that were not.\n\n"
            + _table(["test set", "seen", "unseen"], rows)
        )
    return (
        "### Leave one generator out\n\nThis cannot be read off finished detectors: it needs one "
        "that was trained without the generator. `compare_models.py --help` has the "
        "commands. Named beside the others here, with `--training-data` to say who has seen what, "
        "it makes a table of the AUCs with and without the kind in training."
    )


def _figures_table(results: dict, names: tuple[str, ...]) -> str:
    rows = []
    for row in results["results"]:
        cells = [_figure(row["figures"], name) for name in names]
        if set(cells) != {"–"}:
            rows.append([row["detector"], row["test_set"], *cells])
    return _table(["detector", "test set", *(_NAMES[name] for name in names)], rows)


def _paired_table(results: dict) -> str:
    rows = [
        [
            row["test_set"],
            row["first"],
            row["second"],
            _difference(row["difference"]),
            _p(row["p"]),
            _p(row["p_holm"]),
        ]
        for row in results["paired"]
    ]
    return _table(["test set", "first", "second", "difference", "p", "p (Holm)"], rows)


def _robustness(results: dict, figures: dict[str, str]) -> list[str]:
    counts = ", ".join(f"{row['name']} {row['degraded']}" for row in results["test_sets"])
    parts = [
        "## Robustness",
        "Each degradation is applied to the stored face picture, before the network's own "
        f"resizing, to real and fake pictures alike. Pictures: {counts}. The tables have the AUC "
        "and by how much it differs from that of the same pictures undegraded, with DeLong's "
        "interval; both recalls are in the figures and in results.csv.",
    ]
    for detector in results["detectors"]:
        name = detector["name"]
        cells = [cell for cell in results["robustness"] if cell["detector"] == name]
        parts += [
            f"### {_plain(name)}",
            _changes_table([cell for cell in cells if cell["auc_change"] is not None]),
            *_picture(f"robustness-{file_name(name)}.png", figures),
        ]
    return parts


def _changes_table(cells: list[dict]) -> str:
    sets = list(dict.fromkeys(cell["test_set"] for cell in cells))
    rows: dict[str, list[str]] = {}
    for cell in cells:
        text = f"{cell['auc']:.3f}"
        if cell["degradation"] != CLEAN:
            text += f", {_difference(cell['auc_change'])}"
        rows.setdefault(cell["degradation"], []).append(text)
    return (
        _table(["degradation", *sets], [[name, *row] for name, row in rows.items()]) if rows else ""
    )


def _detectors_table(results: dict) -> str:
    rows = [
        [
            row["name"],
            row["architecture"],
            row["start"],
            f"{row['parameters']:,}",
            f"{row['megabytes']:.2f}",
            f"{row['milliseconds']:.2f}",
            "–" if row["minutes"] is None else f"{row['minutes']:.0f}",
            f"{row['threshold']:.3f} ({row['rule']})",
        ]
        for row in results["detectors"]
    ]
    head = ["detector", "network", "start", "parameters", "MB", "ms a picture", "training minutes"]
    return _table([*head, "threshold"], rows)


def _figure(figures: dict[str, Estimate], name: str) -> str:
    estimate = _estimate(figures, name)
    if estimate is None:
        return "–"
    if name in _AS_SHARES:
        low, high = 100 * estimate.low, 100 * estimate.high
        return f"{_number(name, estimate.value)} ({low:.1f}–{high:.1f})"
    return "{:.3f} ({:.3f}–{:.3f})".format(*estimate)


def _estimate(figures: dict[str, Estimate], name: str) -> Estimate | None:
    """A figure; also `called_fake`, the share of real pictures called fake."""
    if name != "called_fake":
        return figures.get(name)
    if (recall := figures.get("recall_real")) is None:
        return None
    return Estimate(1 - recall.value, 1 - recall.high, 1 - recall.low)


def _difference(estimate: Estimate) -> str:
    return "{:+.3f} ({:+.3f} to {:+.3f})".format(*estimate).replace("-", "−")


def _number(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if name in _AS_SHARES else f"{value:.3f}"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Names come from other people's files: nothing in them may become markup."""
    if text == "---":
        return text
    return _plain(text).replace("|", "&#124;")


def _plain(text: str) -> str:
    return re.sub(r"([\\`*\[\]])", r"\\\1", html.escape(text, quote=False)).replace("\n", " ")


def _list(sentences: list[str]) -> list[str]:
    return ["\n".join(f"* {_plain(sentence)}" for sentence in sentences)]


def _picture(name: str, figures: dict[str, str]) -> list[str]:
    if name not in figures:
        return []
    caption = _plain(figures[name])
    return [f"![{caption}]({_FIGURES}/{quote(name)})", f"*{caption}*"]


def _write_csv(path: Path, results: dict) -> None:
    """A line a figure. `degradation` is empty for the whole test set, and names a cell of the grid,
    which has fewer pictures, and an interval only for the change of the AUC."""
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["detector", "test_set", "kind", "degradation", "figure", "value", "low", "high"]
        )
        for row in results["results"]:
            for name, estimate in row["figures"].items():
                writer.writerow(
                    [row["detector"], row["test_set"], row["kind"], "", name, *estimate]
                )
        kinds = {(row["detector"], row["test_set"]): row["kind"] for row in results["results"]}
        for row in results["robustness"]:
            kind = kinds[row["detector"], row["test_set"]]
            cell = [row["detector"], row["test_set"], kind, row["degradation"]]
            for name in ("auc", "recall_real", "recall_fake"):
                if row[name] is not None:
                    writer.writerow([*cell, name, row[name], "", ""])
            if row["auc_change"] is not None:
                writer.writerow([*cell, "auc_change", *row["auc_change"]])


def _as_html(text: str, folder: Path) -> str:
    """The Markdown as one HTML file, with its pictures inside."""
    body = markdown.markdown(text, extensions=["tables"])

    def embed(match: re.Match) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(rf'src="({_FIGURES}/[^"]+\.png)"', embed, body)
    body = body.replace("<table>", '<div class="wide"><table>').replace(
        "</table>", "</table></div>"
    )
    # `_plain` has escaped every name in the Markdown.
    return environment().get_template("comparison.html").render(body=Markup(body))
