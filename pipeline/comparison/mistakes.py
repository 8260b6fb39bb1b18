"""The pictures that a detector errs on most, with heat maps of what spoke for fake."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files; no window system needed
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from pipeline.common.errors import UserError
from pipeline.common.labels import FAKE, REAL
from pipeline.comparison.entries import Entry
from pipeline.comparison.scores import input_of
from pipeline.photos.images import read_image, resize
from pipeline.scoring.explanation import Explainer, overlay

MISTAKES = 8  # of each class in a gallery
_OPACITY = 0.7  # of the heat: with less of it, a grey print shows the face's light as heat


def explain_mistakes(entry: Entry, mistakes: dict) -> tuple[dict[Path, np.ndarray], str]:
    """The heat maps of `comparison.worst_mistakes`: a picture's path → what the network was fed,
    under what speaks for fake there, (size, size, 3) uint8 RGB.

    And a sentence that says what they show, or why there are none.
    """
    detector = entry.detector
    if detector is None:
        return {}, "Without heat maps: an ensemble has none but those of its members."
    try:
        explainer = Explainer(detector)
    except UserError as error:
        return {}, f"Without heat maps: {error}"
    paths = [sample.path for of_class in mistakes.values() for _, _, sample in of_class]
    pixels = np.stack([input_of(detector)(read_image(path)) for path in paths])
    overlaid = (
        overlay(*pair, _OPACITY) for pair in zip(pixels, explainer.heat_maps(pixels), strict=True)
    )
    return dict(zip(paths, overlaid, strict=True)), (
        "Right of each, what speaks for fake: yellow most, dark blue nothing. A map is scaled to "
        "its own maximum, so that a fake that was not noticed has one, too."
    )


def draw_mistakes(entry: Entry, mistakes: dict, heat_maps: dict[Path, np.ndarray]) -> Figure:
    """The pictures of `comparison.worst_mistakes`, a group for each class; beside each its heat map
    of `explain_mistakes` where there is one."""
    classes = [label for label in (FAKE, REAL) if mistakes[label]]
    columns = MISTAKES // 2 if heat_maps else MISTAKES
    rows = [math.ceil(len(mistakes[label]) / columns) for label in classes]
    height = 0.5 + 0.3 * len(classes) + 1.7 * sum(rows)
    figure = plt.figure(figsize=(10.4, height), layout="constrained")
    heading = "; right of each picture, what speaks for fake (brighter: more)" if heat_maps else ""
    figure.suptitle(entry.label + heading)
    groups = figure.subfigures(len(classes), 1, squeeze=False, height_ratios=rows)[:, 0]
    titles = {FAKE: "fake, not noticed", REAL: "real, called fake"}
    for label, group, lines in zip(classes, groups, rows, strict=True):
        group.suptitle(titles[label], fontsize="medium")
        axes = group.subplots(lines, columns, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        for axis, (probability, set_name, sample) in zip(axes, mistakes[label], strict=False):
            pictures = [read_image(sample.path)]
            if sample.path in heat_maps:
                pictures.append(heat_maps[sample.path])
            axis.imshow(np.hstack([resize(picture, 160, "area") for picture in pictures]))
            axis.set_title(f"{in_two_lines(set_name)}\n{probability:.1%}", fontsize=8)
    return figure


def in_two_lines(name: str) -> str:
    """A long name on two lines."""
    if len(name) <= 16:
        return name
    middle = len(name) // 2
    breaks = [index for index, sign in enumerate(name) if sign in "_-/ "] or [middle]
    at = min(breaks, key=lambda index: abs(index - middle))
    return f"{name[: at + 1]}\n{name[at + 1 :]}"
