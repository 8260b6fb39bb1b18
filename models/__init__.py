"""The catalogue of networks: name → how to build it and what it wants to be fed.

Reading the catalogue imports no framework; `Architecture.build` does. Every network gives one
logit a picture: > 0 leans to fake (label 1), < 0 to real (label 0); no activation at the end.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Protocol, Self

import numpy as np


@dataclass(frozen=True)
class PixelScaling:
    """What a network is fed: (pixel - mean) / std for each of the channels R, G, B.

    Pixels are 0…255, so mean 0 and std 255 give 0…1, and mean 127.5 and std 127.5 give -1…1.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """(…, 3) uint8 → the same shape in float32, as the network is fed."""
        mean, std = np.float32(self.mean), np.float32(self.std)
        return (pixels.astype(np.float32) - mean) / std


ZERO_TO_ONE = PixelScaling(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))
MINUS_ONE_TO_ONE = PixelScaling(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))
AS_THEY_ARE = PixelScaling(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # 0…255
CLIP = PixelScaling(
    mean=(122.7709383, 116.7460125, 104.09373615), std=(68.5005327, 66.6321579, 70.32316305)
)
IMAGENET = PixelScaling(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


@dataclass(frozen=True)
class Architecture:
    """A network's name, the function that builds it, and its input.

    `builder` is "module:function"; `input_size` is the side of the square picture in pixels;
    `layout` is the order of the axes of a batch, "NHWC" (Keras) or "NCHW" (torch); `options` are
    arguments of the builder that shape the network. Of `any_size` are networks that average over
    the whole picture before their head: the same weights fit pictures of another size.
    """

    name: str
    builder: str
    input_size: int
    scaling: PixelScaling
    layout: str
    options: tuple[tuple[str, Any], ...] = ()
    any_size: bool = False

    def with_options(self, **options: Any) -> Self:
        """The same network, but built with these arguments."""
        return replace(self, options=tuple(sorted((dict(self.options) | options).items())))

    @property
    def framework(self) -> str:
        """What it is built with and trained by: "keras" or "torch"."""
        return {"NHWC": "keras", "NCHW": "torch"}[self.layout]

    @property
    def module(self) -> ModuleType:
        """The module that builds it; TorchNetworks and KerasNetworks say what else it offers.

        Imports its framework, which takes seconds.
        """
        return importlib.import_module(self.builder.partition(":")[0])

    def build(self, **arguments: Any):
        """Build the untrained network. Imports its framework, which takes seconds."""
        return getattr(self.module, self.builder.partition(":")[2])(
            **dict(self.options), **arguments
        )


class KerasNetworks(Protocol):
    """What a module of Keras networks offers beside the functions that build them."""

    def imagenet_weights(self) -> Callable[[Any], None] | None:
        """What puts keras.applications' ImageNet weights, which are downloaded once, into a network
        of the module; None where nobody has trained one on ImageNet."""


class TorchNetworks(Protocol):
    """What a module of torch networks offers beside the functions that build them. Layers are
    named as in timm."""

    HEAD: tuple[str, ...]  # the layers that no other task's weights have
    IMAGENET: dict[str, str]  # architecture → the weights' name on the Hugging Face hub
    CLIP: dict[str, str]  # the same of CLIP's weights
    LORA_TARGETS: tuple[str, ...]  # ends of the names of the layers that LoRA adapts
    SAVED_WITH_ADAPTER: tuple[str, ...]  # ends of the names of what else an adapter holds

    def packaged_imagenet(self) -> dict[str, Any] | None:
        """ImageNet's weights from an installed package; None where there is none."""

    def split_attention(self, network: Any) -> None:
        """Give the layers that LoRA adapts names of their own, where timm has several in one."""

    def fuse_attention(self, network: Any) -> None:
        """Undo `split_attention`."""


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("meso4", "models.meso:meso4", 256, ZERO_TO_ONE, "NHWC"),
        Architecture("mesoinception4", "models.meso:mesoinception4", 256, ZERO_TO_ONE, "NHWC"),
        Architecture(
            "xception", "models.xception:xception", 256, MINUS_ONE_TO_ONE, "NHWC", any_size=True
        ),
        Architecture(
            "efficientnet_b0",
            "models.efficientnet:efficientnet_b0",
            256,
            AS_THEY_ARE,
            "NHWC",
            any_size=True,
        ),
        Architecture(
            "efficientnet_lite0",
            "models.efficientnet_lite:efficientnet_lite0",
            224,
            MINUS_ONE_TO_ONE,
            "NCHW",
            any_size=True,
        ),
        Architecture("vit", "models.vit:vit", 224, MINUS_ONE_TO_ONE, "NCHW"),
        Architecture(
            "vit_clip",
            "models.vit:vit_clip",
            224,
            CLIP,
            "NCHW",
            (("blocks", (7, 8, 9, 10, 11, 12)),),
        ),
        Architecture(
            "vit_small_patch16_224",
            "models.vit:vit_small_patch16_224",
            224,
            MINUS_ONE_TO_ONE,
            "NCHW",
        ),
        Architecture(
            "vit_tiny_patch16_224", "models.vit:vit_tiny_patch16_224", 224, MINUS_ONE_TO_ONE, "NCHW"
        ),
        Architecture("resnet50", "models.resnet50:resnet50", 224, IMAGENET, "NCHW", any_size=True),
    )
}
