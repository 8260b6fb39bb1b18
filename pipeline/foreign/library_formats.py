"""A torch detector as timm or transformers load it, without the code of this project, and back.

Their classifiers have an output for each class. So model.safetensors has a head of two logits then:
0 for real, and logit / temperature for fake. Softmax over both is the sigmoid of their difference,
which is fake_probability.
"""

from pathlib import Path

import torch
from torch import nn

from models import Architecture, PixelScaling
from models.vit import from_transformers, to_transformers
from pipeline.common.labels import CLASS_NAMES, FAKE
from pipeline.detectors.detector import Detector
from pipeline.detectors.detector_values import ONNX, TIMM, TRANSFORMERS, hub_in
from pipeline.foreign.hugging_face import one_logit

# Whose classes have the same layers. vit_clip's head, which sees six blocks, nobody else has.
_LIBRARIES = {
    "efficientnet_lite0": TIMM,
    "resnet50": TIMM,
    "vit": TRANSFORMERS,
    "vit_small_patch16_224": TRANSFORMERS,
    "vit_tiny_patch16_224": TRANSFORMERS,
}
# Ours → theirs, by their name and by Pillow's number. Neither has "area": the nearest that both
# have is bilinear, which they widen where a picture shrinks.
_FILTERS = {"area": ("bilinear", 2), "nearest": ("nearest", 0)}


def library_of(architecture: Architecture) -> str:
    """TIMM or TRANSFORMERS, or ONNX where only the graph can be used without our code."""
    return _LIBRARIES.get(architecture.name, ONNX)


def their_weights(
    weights: dict[str, torch.Tensor], architecture: Architecture, temperature: float
) -> dict[str, torch.Tensor]:
    """Our weights as the architecture's library has them, with the head of two logits."""
    weights = dict(weights)
    for name in _head_names(architecture):
        fake = weights[name] / temperature
        weights[name] = torch.cat([torch.zeros_like(fake), fake])
    is_theirs = library_of(architecture) == TRANSFORMERS
    return to_transformers(weights) if is_theirs else weights


def own_weights(
    weights: dict[str, torch.Tensor], architecture: Architecture, description: dict
) -> dict[str, torch.Tensor]:
    """The weights in a detector folder's model.safetensors as our networks have them, in 32 bits:
    undoes `their_weights` where the folder was made for the hub.

    `description` is its detector.json. Raises KeyError, ValueError or IndexError where they are not
    as that says.
    """
    library, temperature = hub_in(description) or (ONNX, 1.0)
    weights = {
        name: value.float() if value.is_floating_point() else value
        for name, value in weights.items()
    }
    if library == ONNX:
        return weights
    if library == TRANSFORMERS:
        weights = from_transformers(weights)
    weights = one_logit(weights, FAKE, head=architecture.module.HEAD[0])
    return weights | {name: weights[name] * temperature for name in _head_names(architecture)}


def timm_config(network: nn.Module, detector: Detector) -> dict:
    """The config.json that timm's create_model("hf-hub:…") and "local-dir:…" read, for a network of
    timm's that is the detector's.

    Written here since timm's own function adds `model_args`, with which transformers 5 cannot load
    what timm saved. Resizes whole pictures, as scoring does, and crops nothing.
    """
    size, known = detector.architecture.input_size, network.pretrained_cfg
    mean, std = _of_ones(detector.architecture.scaling)
    return {
        "architecture": known["architecture"],
        "num_classes": len(CLASS_NAMES),
        "num_features": network.num_features,
        "global_pool": known.get("global_pool", "avg"),
        "label_names": list(CLASS_NAMES),
        "pretrained_cfg": {
            "num_classes": len(CLASS_NAMES),
            "input_size": [3, size, size],
            "fixed_input_size": False,
            "interpolation": _FILTERS[detector.resize_filter][0],
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": mean,
            "std": std,
            "first_conv": known["first_conv"],
            "classifier": known["classifier"],
        },
    }


def save_transformers_configs(folder: Path, network: nn.Module, detector: Detector) -> None:
    """Write the config.json and preprocessor_config.json of a ViTForImageClassification with the
    layers of `network`, a vision transformer of timm's that is the detector's."""
    from transformers import ViTConfig, ViTImageProcessor

    size = detector.architecture.input_size
    mean, std = _of_ones(detector.architecture.scaling)
    ViTConfig(
        architectures=["ViTForImageClassification"],
        hidden_size=network.embed_dim,
        num_hidden_layers=len(network.blocks),
        num_attention_heads=network.blocks[0].attn.num_heads,
        intermediate_size=network.blocks[0].mlp.fc1.out_features,
        patch_size=network.patch_embed.patch_size[0],
        image_size=size,
        layer_norm_eps=network.norm.eps,
        id2label=dict(enumerate(CLASS_NAMES)),
        label2id={name: number for number, name in enumerate(CLASS_NAMES)},
    ).save_pretrained(folder)
    ViTImageProcessor(
        size={"height": size, "width": size},
        resample=_FILTERS[detector.resize_filter][1],
        image_mean=mean,
        image_std=std,
    ).save_pretrained(folder)


def _head_names(architecture: Architecture) -> tuple[str, str]:
    head = architecture.module.HEAD[0]
    return f"{head}.weight", f"{head}.bias"


def _of_ones(scaling: PixelScaling) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of pixels of 0…1."""
    mean, std = ([round(value / 255, 9) for value in part] for part in (scaling.mean, scaling.std))
    return mean, std
