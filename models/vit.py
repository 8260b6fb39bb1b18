"""Vision transformers with one logit, from timm.

Dosovitskiy et al.: "An Image is Worth 16x16 Words", ICLR 2021. timm computes query, key and value
in one layer; `split_attention` takes it apart so that LoRA can adapt some of them (Hu et al.,
"LoRA", ICLR 2022, adapts query and value), `fuse_attention` puts it together again.

Where shapes change, a name ends in its axes: N pictures, T tokens, D numbers of a token.
"""

from collections.abc import Sequence
from functools import partial
from itertools import product

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.functional import layer_norm

HEAD = ("head", "head.linear")
LORA_TARGETS = ("query", "value")
SAVED_WITH_ADAPTER = ("head",)
# Where on the Hugging Face hub the ImageNet weights are (ImageNet-21k, then 1k).
IMAGENET = {
    "vit": "google/vit-base-patch16-224",
    "vit_small_patch16_224": "timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit_tiny_patch16_224": "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k",
}
CLIP = {"vit_clip": "timm/vit_base_patch16_clip_224.openai"}  # on the hub, too


def vit(dropout: float = 0.0) -> nn.Module:
    """ViT-B/16: (N, 3, 224, 224) in -1…1 → (N, 1) logits of fake. From scratch."""
    return timm.create_model("vit_base_patch16_224", num_classes=1, drop_rate=dropout)


def vit_small_patch16_224(dropout: float = 0.0) -> nn.Module:
    """ViT-S/16: (N, 3, 224, 224) in -1…1 → (N, 1) logits of fake. From scratch."""
    return timm.create_model("vit_small_patch16_224", num_classes=1, drop_rate=dropout)


def vit_tiny_patch16_224(dropout: float = 0.0) -> nn.Module:
    """ViT-Ti/16: (N, 3, 224, 224) in -1…1 → (N, 1) logits of fake. From scratch."""
    return timm.create_model("vit_tiny_patch16_224", num_classes=1, drop_rate=dropout)


def without_clips_end(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """CLIP's weights without what follows its blocks, which vit_clip does not have."""
    ends = ("norm.", "head.weight", "head.bias", "fc_norm.")
    return {name: value for name, value in weights.items() if not name.startswith(ends)}


def vit_clip(blocks: Sequence[int], dropout: float = 0.0) -> nn.Module:
    """CLIP's ViT-B/16: (N, 3, 224, 224), scaled as CLIP's are, → (N, 1) logits of fake. From
    scratch; what makes it worth having are CLIP's weights (--init clip). The head sees what comes
    out of the `blocks`, counted from 1 to 12."""
    return _ClipViT(drop_rate=dropout, blocks=blocks)


class _LinearHead(nn.Module):
    """Features of several blocks, each brought to mean 0 and variance 1, into one linear layer:
    (N, features, D) → (N, 1)."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.linear = nn.Linear(features * width, 1)

    def forward(self, x_NBD: torch.Tensor) -> torch.Tensor:
        return self.linear(layer_norm(x_NBD, x_NBD.shape[-1:]).flatten(1))


class _ClipViT(VisionTransformer):
    """timm's vit_base_patch16_clip_quickgelu_224 with a head that sees the class token and the mean
    of all patches after each of the `blocks`: what tells a forgery lies in the middle blocks,
    more than in the last one (Koutlis and Papadopoulos, "Leveraging Representations from
    Intermediate Encoder-blocks for Synthetic Image Detection", ECCV 2024)."""

    def __init__(self, drop_rate: float, blocks: Sequence[int]):
        super().__init__(
            pre_norm=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-5),
            act_layer="quick_gelu",
            num_classes=0,
        )
        self.norm = nn.Identity()  # it would follow the last block, of which the head sees the rest
        self._seen = frozenset(blocks)
        self.head = _LinearHead(2 * len(self._seen), self.embed_dim)
        self.head_drop = nn.Dropout(drop_rate)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 224, 224) → (N, 2 · blocks, D): what the head sees, of each block the class token
        and the mean of the patches."""
        x_NTD = self.norm_pre(self._pos_embed(self.patch_embed(x)))
        features = []
        for number, block in enumerate(self.blocks, start=1):
            x_NTD = block(x_NTD)
            if number in self._seen:
                features += [x_NTD[:, 0], x_NTD[:, 1:].mean(dim=1)]
        return torch.stack(features, dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.head_drop(self.features(x)))


def packaged_imagenet() -> None:
    """There is no package that has ImageNet's weights for these networks."""


class _Split(nn.Module):
    """timm's fused layer as three: (N, tokens, width) → (N, tokens, 3 · width)."""

    def __init__(self, qkv: nn.Linear):
        super().__init__()
        width = qkv.in_features
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        with torch.no_grad():
            for part, layer in enumerate((self.query, self.key, self.value)):
                rows = slice(part * width, (part + 1) * width)
                layer.weight.copy_(qkv.weight[rows])
                layer.bias.copy_(qkv.bias[rows])

    def forward(self, x_NTD: torch.Tensor) -> torch.Tensor:
        qkv_NT3D = torch.cat([self.query(x_NTD), self.key(x_NTD), self.value(x_NTD)], dim=-1)
        return qkv_NT3D

    def fused(self) -> nn.Linear:
        layers = (self.query, self.key, self.value)
        qkv = nn.Linear(self.query.in_features, 3 * self.query.in_features)
        with torch.no_grad():
            qkv.weight.copy_(torch.cat([layer.weight for layer in layers]))
            qkv.bias.copy_(torch.cat([layer.bias for layer in layers]))
        return qkv


def split_attention(network: nn.Module) -> None:
    """Replace each block's fused layer by `query`, `key` and `value`; the outputs stay the same."""
    for block in network.blocks:
        block.attn.qkv = _Split(block.attn.qkv)


def fuse_attention(network: nn.Module) -> None:
    """Undo `split_attention`."""
    for block in network.blocks:
        block.attn.qkv = block.attn.qkv.fused()


def from_transformers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights under the names of Hugging Face's ViTForImageClassification, renamed to timm's.

    The classifier stays as it is, under the names head.weight and head.bias. Raises KeyError where
    one of timm's is missing; ignores nothing but the pooler, which classification does not use.
    """
    weights = {name.removeprefix("vit."): value for name, value in weights.items()}
    renamed = {ours: weights.pop(theirs) for theirs, ours in _EMBEDDINGS.items()}
    depth = 1 + max(
        int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer.")
    )
    for number, kind in product(range(depth), _KINDS):
        renamed[f"blocks.{number}.attn.qkv.{kind}"] = torch.cat(
            [weights.pop(f"{name}.{kind}") for name in _attention_names(number)]
        )
    for theirs, ours in _layer_names(depth).items():
        for kind in _KINDS:
            renamed[f"{ours}.{kind}"] = weights.pop(f"{theirs}.{kind}")
    unknown = [name for name in weights if not name.startswith("pooler.")]
    if unknown:
        raise KeyError(f"not of a ViT classifier: {', '.join(sorted(unknown)[:3])}")
    return renamed


def to_transformers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Undo `from_transformers`: timm's names, renamed to those that a saved
    ViTForImageClassification has. Raises KeyError where one of them is missing."""
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    renamed = {theirs: weights[ours] for theirs, ours in _EMBEDDINGS.items()}
    for number, kind in product(range(depth), _KINDS):
        parts = weights[f"blocks.{number}.attn.qkv.{kind}"].chunk(3)
        names = [f"{name}.{kind}" for name in _attention_names(number)]
        renamed |= dict(zip(names, parts, strict=True))
    for theirs, ours in _layer_names(depth).items():
        renamed |= {f"{theirs}.{kind}": weights[f"{ours}.{kind}"] for kind in _KINDS}
    return {
        name if name.startswith("classifier.") else f"vit.{name}": value
        for name, value in renamed.items()
    }


# Names in Hugging Face's ViT classifiers, without "vit." → timm's.
_EMBEDDINGS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
}
_KINDS = ("weight", "bias")


def _layer_names(depth: int) -> dict[str, str]:
    """Their names of the layers of `depth` blocks → timm's, of all but the attention's first."""
    names = {
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layernorm": "norm",
        "classifier": "head",
    }
    for number in range(depth):
        theirs, ours = f"encoder.layer.{number}", f"blocks.{number}"
        names |= {
            f"{theirs}.layernorm_before": f"{ours}.norm1",
            f"{theirs}.attention.output.dense": f"{ours}.attn.proj",
            f"{theirs}.layernorm_after": f"{ours}.norm2",
            f"{theirs}.intermediate.dense": f"{ours}.mlp.fc1",
            f"{theirs}.output.dense": f"{ours}.mlp.fc2",
        }
    return names


def _attention_names(number: int) -> list[str]:
    """Their names of the three layers that timm has in one, in its order."""
    return [
        f"encoder.layer.{number}.attention.attention.{part}" for part in ("query", "key", "value")
    ]
