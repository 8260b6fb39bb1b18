"""Heat maps for the web page: where the detectors of an answer found what speaks for fake."""

import importlib.util
import logging
from typing import Any, NamedTuple

import numpy as np

from pipeline.common.errors import UserError
from pipeline.detectors.detector import load_detector
from pipeline.scoring.scoring import Scored
from pipeline.service import pictures
from pipeline.service.installed import Installed

log = logging.getLogger("uvicorn.error")

NO_EXPLAINER = (
    "Heat maps need the packages that train networks: pip install -r requirements.txt, and start "
    "the service again."
)


def can_explain() -> bool:
    """Whether what draws heat maps is installed; importing it would take seconds."""
    needed = ("pipeline.scoring.explanation", "torch", "keras")
    return all(importlib.util.find_spec(name) for name in needed)


class Explained(NamedTuple):
    """For each row of a photo what the network saw and its heat map, as data URIs, or None."""

    seen: list[str | None]
    heat_maps: list[str | None]

    @classmethod
    def nothing(cls, scored: Scored) -> "Explained":
        return cls([None] * len(scored.rows), [None] * len(scored.rows))


class HeatMaps:
    """Draws heat maps, and keeps the explainers of the last request. For one thread."""

    def __init__(self):
        self._explainers: dict[Installed, Any] = {}

    def draw(
        self, detectors: tuple[Installed, ...], scored: list[Scored]
    ) -> tuple[list[Explained], list[str]]:
        """The heat maps of photos that these detectors have scored; only where `can_explain`.

        And a sentence for each detector that cannot be explained.
        """
        found, notes = self._heat_of(detectors, scored)
        explained = [Explained.nothing(one) for one in scored]
        for pictures_of, one, heat_of in zip(explained, scored, found, strict=True):
            for number, heat in heat_of.items():
                pictures_of.seen[number] = pictures.preview(one.pixels[number])
                pictures_of.heat_maps[number] = pictures.heat_map_picture(heat)
        return explained, notes

    def beside(
        self, detectors: tuple[Installed, ...], scored: list[Scored]
    ) -> list[dict[int, np.ndarray]]:
        """For each photo, by the numbers of its rows, faces beside their heat maps, as a report
        shows them (explanation.beside); only where `can_explain`."""
        from pipeline.scoring.explanation import beside

        found, _ = self._heat_of(detectors, scored)
        return [
            {number: beside(one.pixels[number], heat) for number, heat in heat_of.items()}
            for one, heat_of in zip(scored, found, strict=True)
        ]

    def _heat_of(
        self, detectors: tuple[Installed, ...], scored: list[Scored]
    ) -> tuple[list[dict[int, np.ndarray]], list[str]]:
        """For each photo the heat (S, S) of its faces by the numbers of their rows; and sentences
        as of `draw`."""
        from pipeline.scoring.explanation import Explainer

        explainers, notes = {}, []
        for detector in detectors:
            try:
                explainers[detector] = self._explainers.get(detector) or Explainer(
                    load_detector(detector.folder)
                )
            except UserError as error:  # its folder may hold the graph alone
                log.warning("%s", error)
                notes.append(f"Heat maps of {detector.name} cannot be drawn here.")
        self._explainers = explainers
        found: list[dict[int, np.ndarray]] = [{} for _ in scored]
        for detector, explainer in explainers.items():
            places = [
                (photo, number, pixels)
                for photo, one in enumerate(scored)
                for number, (row, pixels) in enumerate(zip(one.rows, one.pixels, strict=True))
                if pixels is not None and row.model == detector.name
            ]
            if not places:
                continue
            heat_maps = explainer.heat_maps(np.stack([pixels for *_, pixels in places]))
            for (photo, number, _), heat in zip(places, heat_maps, strict=True):
                found[photo][number] = heat
        return found, notes
