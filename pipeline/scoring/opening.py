"""Which detectors to score with: those that are named, or what there is in weights/."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.detectors.fake_class import FakeLabels, say_fake_class


@dataclass(frozen=True)
class Network:
    """What a scoring script scores with: any of `architectures`, the first being the usual one.

    `training` is the script, with its arguments, that trains that one.
    """

    architectures: tuple[str, ...]
    training: str


def open_detectors(
    weights: list[Path] | None, networks: Sequence[Network], fake_labels: Sequence[str] = ()
) -> list:
    """The detectors to score with, at most one of each network, in the order of the networks.

    `weights` are detector folders or published weights; None: what there is in weights/. Of their
    classes, those named in `fake_labels` mean fake. A network that is left out is named on standard
    error. Raises UserError where no network has a detector or one has two, where two have the same
    name, where `fake_labels` fit none, and as open_detector does.
    """
    architectures = [name for network in networks for name in network.architectures]
    detectors = {}
    labels = FakeLabels(fake_labels)
    for path in installed_detectors(networks) if weights is None else weights:
        detector = open_detector(path, architectures, labels)
        [network] = (n for n in networks if detector.architecture.name in n.architectures)
        if network in detectors:
            raise UserError(
                f"{path} is the second {any_of(network.architectures)} detector: name only one."
            )
        detectors[network] = detector
    labels.require_used()
    if weights is not None:
        for network in networks:
            if network not in detectors:
                which = any_of(network.architectures)
                print(f"--weights names no {which} detector: scoring without.", file=sys.stderr)
    chosen = [detectors[network] for network in networks if network in detectors]
    if len({detector.name for detector in chosen}) < len(chosen):
        raise UserError(
            f"Both detectors are named {chosen[0].name}, so their rows could not be told apart: "
            "change `name` in the detector.json of one."
        )
    return chosen


def installed_detectors(networks: Sequence[Network]) -> list[Path]:
    """The detector folders in weights/: of each network the first of its architectures there is.

    Says on standard error which they are, where others were possible, and how to get what is
    missing; raises UserError where all is.
    """
    from pipeline.common.files import recover_folder
    from pipeline.detectors.detector import WEIGHTS

    found, missing = [], []
    for network in networks:
        folders = [WEIGHTS / architecture for architecture in network.architectures]
        for folder in folders:
            recover_folder(folder)
        there = [folder for folder in folders if (folder / "detector.json").exists()]
        found += there[:1]
        if not there:
            missing.append(
                f"{folders[0]}: there is no detector here: train one with "
                f"`python {network.training}`, or download one with "
                f"`python download_weights.py {folders[0].name}`."
            )
    if not found:
        raise UserError("\n".join(missing))
    for sentence in missing:
        print(sentence, file=sys.stderr)
    if sum(len(network.architectures) for network in networks) > 1:
        print(f"Scoring with {' and '.join(map(str, found))}.", file=sys.stderr)
    return found


def open_detector(
    path: Path, architectures: Sequence[str] = (), fake_labels: FakeLabels | None = None
):
    """The detector in a detector folder, on the hub (hf-hub:owner/name) or made of published
    weights, of one of these architectures.

    None of them: of any. `fake_labels`: see import_published; what counts as fake in imported
    weights is said on standard error. Raises UserError, also with how to get weights.
    """
    from pipeline.detectors.detector import load_detector
    from pipeline.foreign.published import is_published
    from pipeline.scoring.importing import import_published

    if str(path).startswith("hf-hub:"):
        path = _from_the_hub(str(path))
    if is_published(path):
        detector = import_published(path, architectures, fake_labels)
    else:
        detector = load_detector(path)
    say_fake_class(path, detector.description)
    if architectures and detector.architecture.name not in architectures:
        raise UserError(
            f"{path}: this is a {detector.architecture.name} detector and this script scores with "
            f"{any_of(architectures)}: use the script named after it."
        )
    return detector


def with_companion(first, other: str | None, weights: object):
    """The detector, or the pair that it shall score in: with the detector folder `other`, with
    none ("none"), or (None) with the one in weights/ that it was calibrated with, if any and if the
    user named no `weights`. Where that is missing, another one or calibrated anew since, the first
    scores alone, which is said; raises UserError where the user named the second."""
    from pipeline.detectors.detector import WEIGHTS
    from pipeline.detectors.together import companion_of, companions, together

    if other == "none":
        return first
    if other:
        return together(first, open_detector(Path(other)))
    companion = companion_of(first) if not weights else None
    if companion is None:
        names = " or ".join(companions(first)) if not weights else ""
        if names:
            print(
                f"{names}, with which {first.name} scores as one, is not in {WEIGHTS}. Scoring "
                f"with {first.name} alone.",
                file=sys.stderr,
            )
        return first
    try:
        pair = together(first, companion)
    except UserError as error:
        print(f"{error} Scoring with {first.name} alone.", file=sys.stderr)
        return first
    print(
        f"Scoring with {first.name} and {companion.name} as one; --together none: with "
        f"{first.name} alone.",
        file=sys.stderr,
    )
    return pair


def _from_the_hub(name: str) -> Path:
    try:
        from pipeline.foreign.hub import HUB, download
    except ImportError:
        raise UserError(
            f"--weights {name}: fetching from the hub needs one package more: pip install "
            "huggingface_hub"
        ) from None
    return download(name.removeprefix(HUB), "--weights")


def any_of(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
