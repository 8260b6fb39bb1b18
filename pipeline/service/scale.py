"""A face's score on a scale of its own kind: what share of real faces scores as high."""

import math
from typing import NamedTuple

from pipeline.detectors.real_scores import RealScores
from pipeline.rows.rows import Row
from pipeline.service.installed import Installed

WIDTH = 344.0  # of the scale, in the units of its drawing
_RAREST = 1 / 2000  # at its right end; at its left are all real faces
_LETTER = 5.8  # the room that one takes in a zone
_TICKS = (0.1, 0.01, 0.001)


class Zone(NamedTuple):
    """Where a verdict lies on the scale; `words` are empty where there is no room for them."""

    verdict: str
    left: float
    width: float
    words: str


class Tick(NamedTuple):
    """A mark on the scale: where, and its words."""

    at: float
    words: str


class Scale(NamedTuple):
    """A scale from 0 to WIDTH, with the place of a face on it. In words: that place, where the
    verdicts begin, and what all of it was measured on."""

    at: float
    zones: list[Zone]
    ticks: list[Tick]
    sentence: str
    bands: str
    basis: str


def scale_of(row: Row, detector: Installed, words: dict[str, str]) -> Scale | None:
    """The scale for a row with a fake_probability; None where the detector's folder does not say
    how real faces score. `words` are those of each verdict."""
    real = detector.real_scores
    if real is None:
        return None
    uncertain, fake = real.share(detector.uncertain_from), real.share(detector.threshold)
    ends = [0.0, _place(uncertain), _place(fake), WIDTH]
    zones = [
        Zone(verdict, left, right - left, _fitting(words[verdict], right - left))
        for verdict, left, right in zip(("real", "uncertain", "fake"), ends, ends[1:], strict=False)
    ]
    ticks = [Tick(_place(share), one_in(share)) for share in _TICKS if share >= real.smallest]
    bands = f"A face looks fake from {one_in(fake)} on; up to {one_in(uncertain)} nothing is found."
    versions = ", each also recompressed and shrunk" if real.versions > 1 else ""
    basis = (
        f"Measured on {real.faces:,} real faces of the kinds it knows{versions}. Among photos of "
        "another kind, more may score as high."
    )
    at = _at(row, real, zones, verdict_by_score(row, detector))
    return Scale(at, zones, ticks, share_in_words(row, real), bands, basis)


def verdict_by_score(row: Row, detector: Installed) -> str:
    """The verdict of a row by its fake_probability alone, be it one that does not hold."""
    if row.fake_probability >= detector.threshold:
        return "fake"
    return "uncertain" if row.fake_probability >= detector.uncertain_from else "real"


def share_in_words(row: Row, real: RealScores) -> str:
    """What share of real faces scores as high as this one, as a sentence."""
    share = real.share(row.fake_probability)
    if share >= real.largest:
        return "Most real faces score as high."
    if share <= real.smallest:
        return f"Fewer than {one_in(real.smallest)} real faces score as high."
    return f"About {one_in(share)} real faces scores as high."


def range_in_words(row: Row, real: RealScores) -> str:
    """What shares of real faces score as high as this one and its changed copies, as a sentence."""
    shares = [real.share(each) for each in (row.fake_probability_low, row.fake_probability_high)]
    most, fewest = (
        "most of them"
        if share >= real.largest
        else f"{'fewer than ' if share <= real.smallest else ''}{one_in(max(share, real.smallest))}"
        for share in shares
    )
    goes = f"stays at {most}" if most == fewest else f"goes from {most} to {fewest}"
    return f"The share of real faces that score as high {goes}."


def one_in(share: float) -> str:
    """1 in so many, of which one figure counts: "1 in 300" for 0.0031."""
    number = 1 / share
    unit = 10 ** math.floor(math.log10(number))
    return f"1 in {round(number / unit) * unit:,}"


def _place(share: float) -> float:
    return WIDTH * min(math.log(share) / math.log(_RAREST), 1.0)


def _fitting(words: str, width: float) -> str:
    return words if len(words) * _LETTER < width else ""


def _at(row: Row, real: RealScores, zones: list[Zone], verdict: str) -> float:
    """The place of a face, within the zone of a verdict: beyond the shares that are known, in
    the middle of what is left of it."""
    share = real.share(row.fake_probability)
    at = _place(share)
    if share >= real.largest:
        at /= 2
    elif share <= real.smallest:
        at = (at + WIDTH) / 2
    zone = next(zone for zone in zones if zone.verdict == verdict)
    return min(max(at, zone.left), zone.left + zone.width)
