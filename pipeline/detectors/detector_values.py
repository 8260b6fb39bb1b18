"""The values in a detector.json that scoring computes with: each of its kind, and in its range.

JSON, as Python reads it, knows NaN and Infinity, and a number in quotes would pass for a number.
With a threshold of NaN no face is ever called fake, and nothing says so.
"""

import math

from models import PixelScaling
from pipeline.detectors.calibration import Calibration
from pipeline.detectors.fake_class import FakeClass

LAYOUTS = ("NHWC", "NCHW")
FACE_MODES = ("auto", "none")
RESIZE_FILTERS = ("area", "nearest")
TIMM, TRANSFORMERS, ONNX = LIBRARIES = ("timm", "transformers", "onnx")
LARGEST_INPUT = 4096  # pixels of a side
LARGEST_MARGIN = 10.0
# A calibration whose real faces reach 1.0 puts its threshold just above, so that none is called
# fake; see calibration.choose_threshold.
JUST_ABOVE_1 = math.nextafter(1.0, 2.0)


def calibration_in(description: dict) -> Calibration:
    """The section `calibration`. This and the others raise KeyError where something is missing and
    ValueError, with a phrase, where it is something else than it must be."""
    section = _section(description, "calibration")
    calibration = Calibration(
        _number(section, "temperature", above=0),
        _number(section, "threshold", least=0, most=JUST_ABOVE_1),
        _number(section, "uncertain_from", least=0, most=JUST_ABOVE_1),
        _text(section, "rule"),
    )
    if calibration.uncertain_from > calibration.threshold:
        raise ValueError("uncertain_from is above the threshold")
    return calibration


def options_in(description: dict) -> dict[str, tuple[int, ...]]:
    """What shapes the network beside its architecture's name, from the section `options`, which
    detectors without choices lack: `blocks`, those of a ViT that its head sees."""
    section = description.get("options", {})
    if not isinstance(section, dict) or not set(section) <= {"blocks"}:
        raise ValueError(f"options is {section!r}: only blocks is known here")
    options = {name: tuple(blocks) for name, blocks in section.items()}
    for blocks in options.values():
        if not blocks or not all(type(block) is int and block > 0 for block in blocks):
            raise ValueError(f"blocks is {list(blocks)!r}, not whole numbers from 1")
    return options


def input_in(description: dict) -> tuple[int, PixelScaling, str, str]:
    """Size, pixel scaling, layout and resize filter from the section `input`."""
    section = _section(description, "input")
    size = section["size"]
    if type(size) is not int or not 1 <= size <= LARGEST_INPUT:
        raise ValueError(f"size is {size!r}, not a whole number of 1 to {LARGEST_INPUT} pixels")
    mean = _three(section, "mean")
    std = _three(section, "std")
    if min(std) <= 0:
        raise ValueError(f"std is {section['std']!r}: all three must be above 0")
    return (
        size,
        PixelScaling(mean, std),
        _one_of(section, "layout", LAYOUTS),
        _one_of(section, "resize", RESIZE_FILTERS),
    )


def face_in(description: dict) -> tuple[str, float]:
    """Mode and margin from the section `face`."""
    section = _section(description, "face")
    mode = _one_of(section, "mode", FACE_MODES)
    return mode, _number(section, "margin", above=0, most=LARGEST_MARGIN)


def fake_class_in(description: dict) -> FakeClass | None:
    """The section `fake_class`, which only imported weights have."""
    if "fake_class" not in description:
        return None
    section = _section(description, "fake_class")
    labels, output = section["labels"], section["output"]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"labels is {labels!r}, not a list of names")
    if type(output) is not int or not 0 <= output < len(labels):
        raise ValueError(f"output is {output!r}, not the number of a label")
    return FakeClass(tuple(labels), output, _text(section, "decided"))


def hub_in(description: dict) -> tuple[str, float] | None:
    """The section `hub`, which only folders made for the hub have: the library that loads
    model.safetensors ("onnx": none), and the temperature that is in its head."""
    if "hub" not in description:
        return None
    section = _section(description, "hub")
    return _one_of(section, "library", LIBRARIES), _number(section, "temperature", above=0)


def _section(description: dict, name: str) -> dict:
    section = description[name]
    if not isinstance(section, dict):
        raise ValueError(f"{name} is {section!r}")
    return section


def _number(
    section: dict, name: str, *, least: float = -math.inf, most: float = math.inf, above=None
) -> float:
    value = section[name]
    if above is not None:
        least = math.nextafter(above, math.inf)
    in_range = _is_finite(value) and least <= value <= most
    if not in_range:
        low = f"above {above:g}" if above is not None else f"at least {least:g}"
        high = "" if most == math.inf else f" and at most {most:g}"
        raise ValueError(f"{name} is {value!r}, not a number {low}{high}")
    return float(value)


def _three(section: dict, name: str) -> tuple[float, float, float]:
    values = section[name]
    if not isinstance(values, list) or len(values) != 3 or not all(map(_is_finite, values)):
        raise ValueError(f"{name} is {values!r}, not three numbers")
    red, green, blue = map(float, values)
    return red, green, blue


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _text(section: dict, name: str) -> str:
    value = section[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}, not text")
    return value


def _one_of(section: dict, name: str, known: tuple[str, ...]) -> str:
    value = section[name]
    if value not in known:
        raise ValueError(f"{name} is {value!r}, not one of {', '.join(known)}")
    return value
