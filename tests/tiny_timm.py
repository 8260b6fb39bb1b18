"""A ViT and a ResNet of the same build as the real ones, so small that training takes moments.

They offer what the files of models/ offer for a torch network, both in one.
"""

import numpy as np
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import models
from models import IMAGENET as IMAGENET_SCALING
from models import MINUS_ONE_TO_ONE, Architecture, resnet50, vit
from pipeline.photos.images import resize
from tests.tiny_dataset import portrait

SIDE = 64
HEAD = vit.HEAD + resnet50.HEAD
LORA_TARGETS = vit.LORA_TARGETS + resnet50.LORA_TARGETS
SAVED_WITH_ADAPTER = vit.SAVED_WITH_ADAPTER + resnet50.SAVED_WITH_ADAPTER
IMAGENET = {"tiny_vit": "nobody/tiny_vit"}
CLIP = {}

VIT = Architecture("tiny_vit", "tests.tiny_timm:tiny_vit", SIDE, MINUS_ONE_TO_ONE, "NCHW")
RESNET = Architecture("tiny_resnet", "tests.tiny_timm:tiny_resnet", SIDE, IMAGENET_SCALING, "NCHW")


def tiny_vit(dropout: float = 0.0) -> nn.Module:
    """(N, 3, 64, 64) in -1…1 → (N, 1) logits: 50,689 parameters in two blocks."""
    return VisionTransformer(
        img_size=SIDE, embed_dim=32, depth=2, num_heads=2, num_classes=1, drop_rate=dropout
    )


def tiny_resnet(dropout: float = 0.0) -> nn.Module:
    """(N, 3, 64, 64) → (N, 1) logits: 52,385 parameters in a block a stage."""
    return ResNet(
        Bottleneck, (1, 1, 1, 1), num_classes=1, channels=(8, 16, 16, 32), drop_rate=dropout
    )


def packaged_imagenet() -> None:
    pass


def split_attention(network: nn.Module) -> None:
    if isinstance(network, VisionTransformer):
        vit.split_attention(network)


def fuse_attention(network: nn.Module) -> None:
    if isinstance(network, VisionTransformer):
        vit.fuse_attention(network)


def register() -> None:
    """Make train_vit.py know them, beside the real ones."""
    import train_vit

    models.ARCHITECTURES.update({network.name: network for network in (VIT, RESNET)})
    train_vit.RECIPES.update(dict.fromkeys((VIT.name, RESNET.name), train_vit.RECIPE))


def faces(number: int, side: int = SIDE) -> np.ndarray:
    """Real faces, (number, side, side, 3) uint8, each time the same."""
    random = np.random.default_rng(7)
    return np.stack([resize(portrait(random), side, "area") for _ in range(number)])
