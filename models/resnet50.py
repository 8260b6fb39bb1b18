"""ResNet50 with one logit, from timm.

He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition", CVPR 2016.
"""

import timm
from torch import nn

HEAD = ("fc",)
IMAGENET = {"resnet50": "timm/resnet50.a1_in1k"}  # on the Hugging Face hub
CLIP = {}
LORA_TARGETS = ("conv1", "conv2", "conv3")
# Batch normalization learns faces' statistics while an adapter trains: without them a restored
# adapter meets a network that it was not trained with.
SAVED_WITH_ADAPTER = ("fc", "bn1", "bn2", "bn3", "downsample.1")


def resnet50(dropout: float = 0.0) -> nn.Module:
    """(N, 3, 224, 224), normalized by ImageNet's mean and std → (N, 1) logits of fake."""
    return timm.create_model("resnet50", num_classes=1, drop_rate=dropout)


def packaged_imagenet() -> None:
    """There is no package that has ImageNet's weights for this network."""


def split_attention(network: nn.Module) -> None:
    """Nothing to do: LoRA adapts convolutions, each of which has a name already."""


def fuse_attention(network: nn.Module) -> None:
    """Nothing to do, as in `split_attention`."""
