"""How the rows of a run came to be: program, detectors, settings, and what was measured of them."""

import dataclasses
from collections.abc import Sequence

from pipeline.common.program import this_program
from pipeline.detectors.calibration import Calibration, in_words
from pipeline.detectors.detector import GRAPH, INT8_GRAPH, Detector
from pipeline.detectors.together import SECTION
from pipeline.evaluation.shares import Estimate, wilson
from pipeline.rows.run_settings import ModelSettings
from pipeline.videos.frames import Sampling


def describe_run(detectors: list[dict], options: dict, sampling: Sampling) -> dict:
    """What a record says of a run.

    `detectors` are `Scorer.described`, `options` the arguments of the Scorer that shape rows, as
    given, and `sampling` says which frames of a video are looked at.
    """
    return {
        "program": this_program(),
        "options": options,
        "sampling": dataclasses.asdict(sampling),
        "detectors": detectors,
    }


def describe(
    detector: Detector,
    calibration: Calibration,
    settings: ModelSettings,
    precisions: Sequence[str],
) -> dict:
    """What a record says of a detector in a run, or of two that score as one.

    `calibration` is that of the run, whose threshold the user may have chosen, and `precisions`
    what each member computes in. `members` has the SHA-256 of each file of a member's graph,
    `measured` its error rates as sentences.
    """
    members = [
        {
            "name": member.name,
            "architecture": member.architecture.name,
            "graphs": graphs_of(member),
            "precision": precision,
        }
        for member, precision in zip(detector.members or (detector,), precisions, strict=True)
    ]
    chosen = calibration.threshold != detector.calibration.threshold
    return {
        "name": detector.name,
        "members": members,
        "settings": dataclasses.asdict(settings),
        "margin": detector.margin,
        "calibration": dataclasses.asdict(calibration),
        "threshold_in_words": "chosen by the user" if chosen else in_words(calibration.rule),
        "measured": measured(detector, calibration.threshold),
    }


def graphs_of(detector: Detector) -> dict[str, str]:
    """The SHA-256 of each file of a detector's graph, by its name."""
    files = detector.description["files"]
    return {name: files[name] for name in (GRAPH, *INT8_GRAPH) if name in files}


def measured(detector: Detector, threshold: float) -> list[str]:
    """How often a detector is wrong, as sentences: what was measured when it was made, and what
    compare_models.py has recorded since. `threshold` is that of the run."""
    try:
        return _in_sentences(detector, _metrics(detector), threshold)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return [f"What was measured of {detector.name} cannot be read from its detector.json."]


def _in_sentences(detector: Detector, metrics: dict, threshold: float) -> list[str]:
    if "recall_real" not in metrics:
        return [
            f"How often {detector.name} is wrong was not measured: its verdicts are no more than a "
            "hint."
        ]
    own = detector.calibration.threshold
    sentences = []
    if threshold != own:
        sentences.append(
            f"The following holds for its own threshold of {own:.3f}; this run had {threshold:.3f}."
        )
    accused = 1 - metrics["recall_real"]
    found, images = metrics["recall_fake"], metrics["images"]
    sentences += [
        "Of 1,000 real faces like those that it was tested on, it calls about "
        f"{_of_thousand(accused, images['real'], ' fake')}.",
        "Of 1,000 fakes of the kinds that it was tested on, it finds about "
        f"{_of_thousand(found, images['fake'])}. The others it calls real or uncertain.",
        "Its threshold was chosen on the same pictures, which makes both figures slightly "
        "optimistic.",
    ]
    sentences += [
        _of_set(name, of)
        for name, of in metrics.get("test_sets", {}).items()
        if of["threshold"] == own
    ]
    if "unseen_auc" in metrics:
        low, high = metrics["unseen_auc_95"]
        kinds = ", ".join(metrics["unseen_measured"]["sets"])
        sentences.append(
            f"On fakes of kinds that it was not trained on ({kinds}) its AUC is "
            f"{metrics['unseen_auc']:.3f} (95 % interval {low:.3f} to {high:.3f}), where 1 is "
            "perfect and 0.5 is chance."
        )
    sentences.append(
        "Of kinds of fakes that are newer than it, it finds fewer; soft, small and heavily "
        "compressed real photos it calls fake more often."
    )
    return sentences


def _metrics(detector: Detector) -> dict:
    """Those of a detector, or of two together."""
    if not detector.members:
        return detector.description.get("metrics", {})
    graph = detector.members[1].description["files"][GRAPH]
    return detector.description.get(SECTION, {}).get(graph, {}).get("metrics", {})


def _of_thousand(share: float, number: int, what: str = "") -> str:
    of = wilson(round(share * number), number)
    low, high = (f"{round(1000 * bound):,}" for bound in (of.low, of.high))
    about = f"{round(1000 * of.value):,}{what}"
    return f"{about} (measured on {number:,} faces; {low} to {high} with 95 % confidence)"


def _of_set(name: str, of: dict) -> str:
    """What a test set has shown; `of` as comparison/record.py writes it."""
    kind = {"seen": ", a kind that it was trained on,", "unseen": ", a kind new to it,"}
    parts = []
    if of["fake"]:
        share = wilson(of["found"], of["fake"])
        parts.append(f"it finds {_share(share)} of {of['fake']:,} fakes")
    if of["real"]:
        share = wilson(of["called_fake"], of["real"])
        parts.append(f"it calls {_share(share)} of {of['real']:,} real faces fake")
    return f"In the test set {name}{kind.get(of['kind'], '')} {' and '.join(parts)}."


def _share(share: Estimate) -> str:
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"
