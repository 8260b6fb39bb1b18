"""The catalogue of networks: name → how to build it and what it wants to be fed.

Reading the catalogue imports no framework; `Architecture.build` does. Every network gives one
logit a picture: > 0 leans to fake (label 1), < 0 to real (label 0); no activation at the end.
"""

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PixelScaling:
    """What a network is fed: (pixel - mean) / std for each of the channels R, G, B.

    Pixels are 0…255, so mean 0 and std 255 give 0…1, and mean 127.5 and std 127.5 give -1…1.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


ZERO_TO_ONE = PixelScaling(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))


@dataclass(frozen=True)
class Architecture:
    """A network's name, the function that builds it, and its input.

    `builder` is "module:function"; `input_size` is the side of the square picture in pixels;
    `layout` is the order of the axes of a batch, "NHWC" (Keras) or "NCHW" (torch).
    """

    name: str
    builder: str
    input_size: int
    scaling: PixelScaling
    layout: str

    def build(self, **arguments: Any):
        """Build the untrained network. Imports its framework, which takes seconds."""
        module, function = self.builder.split(":")
        return getattr(importlib.import_module(module), function)(**arguments)


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("meso4", "models.meso:meso4", 256, ZERO_TO_ONE, "NHWC"),
        Architecture("mesoinception4", "models.meso:mesoinception4", 256, ZERO_TO_ONE, "NHWC"),
    )
}
