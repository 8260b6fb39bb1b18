"""Classifiers of transformers' and timm's as timm's networks with one logit of fake."""

import json
import math
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from models import Architecture
from models.vit import from_transformers
from pipeline.common.errors import UserError
from pipeline.detectors.fake_class import FakeClass
from pipeline.foreign.hub import download
from pipeline.foreign.hugging_face_folder import has_separate_classes, is_timm


def classifier_of(
    folder: Path, architecture: Architecture, fake: FakeClass
) -> tuple[nn.Module, bool]:
    """The network in a folder as `save_pretrained` writes it, a ViTForImageClassification or a PEFT
    adapter of one with its head, or in one of timm's, with one logit: of the class that means fake.

    With it comes whether its layers are those of the architecture alone; one that tells more than
    two classes apart has one more. Raises UserError for anything else.
    """
    is_adapter = (folder / "adapter_config.json").exists()
    weights = _merged(folder) if is_adapter else read(folder / "model.safetensors")
    if not is_timm(folder):
        try:
            weights = from_transformers(weights)
        except (KeyError, ValueError) as error:
            raise UserError(f"{folder}: this is no ViT classifier ({error.args[0]}).") from None
    network = architecture.build()
    head = architecture.module.HEAD[0]
    missing = {f"{head}.weight", f"{head}.bias"} - set(weights)
    if missing:
        raise UserError(
            f"{folder}: these are not the weights of a {architecture.name} ({min(missing)} is "
            "missing)."
        )
    classes = len(weights[f"{head}.weight"])
    separate = has_separate_classes(folder) or classes == 1
    is_plain = separate or classes == 2
    if is_plain:
        weights = one_logit(weights, fake.output, separate, head)
    else:
        setattr(network, head, nn.Linear(getattr(network, head).in_features, classes))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split(":", 1)[-1].split())
        raise UserError(
            f"{folder}: these are not the weights of a {architecture.name} ({reason[:200]})."
        ) from None
    return (network if is_plain else _OneOfMany(network, fake.output)).eval(), is_plain


def one_logit(weights: dict, fake: int, separate: bool = False, head: str = "head") -> dict:
    """Weights with a head of two outputs → with one: softmax over two is the sigmoid of their
    difference. `fake` is the output that means fake; where the outputs are `separate`, each with a
    sigmoid of its own, it is taken as it is. `head` is the layer's name."""
    outputs = {name: weights[name] for name in (f"{head}.weight", f"{head}.bias")}
    other = {name: 0 if separate else value[1 - fake] for name, value in outputs.items()}
    return weights | {name: (value[fake] - other[name])[None] for name, value in outputs.items()}


def read(file: Path) -> dict:
    """The tensors of a safetensors file. Raises UserError."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file}: these weights cannot be read ({error}); copy or download them again."
        ) from None


class _OneOfMany(nn.Module):
    """A classifier of many classes with one logit (N, 1), whose sigmoid is the softmax of class
    `fake`: log p / (1 - p) is its output minus the log of the sum of all others' exponentials."""

    def __init__(self, network: nn.Module, fake: int):
        super().__init__()
        self.network = network
        self._fake = fake

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        outputs = self.network(pixels)
        before, fake, after = outputs.tensor_split([self._fake, self._fake + 1], dim=1)
        return fake - torch.cat([before, after], dim=1).logsumexp(1, keepdim=True)


def _merged(folder: Path) -> dict:
    """The weights of a LoRA adapter's classifier, the adapter merged into its base.

    Hu et al.: W + B A · alpha / rank. Done here by the names in the files, since transformers has
    renamed the layers that published adapters name.
    """
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    unknown = [name for name in ("use_dora", "rank_pattern", "alpha_pattern") if config.get(name)]
    if config.get("peft_type") != "LORA" or unknown:
        kind = unknown[0] if unknown else config.get("peft_type")
        raise UserError(
            f"{folder}: adapters of the kind {kind} cannot be imported, plain LoRA can."
        )
    adapter = {
        _usual_name(name.removeprefix("base_model.model.")): value
        for name, value in read(folder / "adapter_model.safetensors").items()
    }
    base = config["base_model_name_or_path"]
    local = Path(base) if Path(base).is_dir() else download(base, f"the base of {folder}")
    weights = read(local / "model.safetensors")
    weights |= {name: value for name, value in adapter.items() if ".lora_" not in name}
    rank = config["r"]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    for name, down in adapter.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            weights[f"{layer}.weight"] += adapter[f"{layer}.lora_B.weight"] @ down * scale
    return weights


def _usual_name(name: str) -> str:
    """A layer's name as saved folders have it; transformers 5 has others in memory."""
    for new, usual in (
        (r"^vit\.layers\.", "vit.encoder.layer."),
        (r"\.attention\.q_proj\.", ".attention.attention.query."),
        (r"\.attention\.k_proj\.", ".attention.attention.key."),
        (r"\.attention\.v_proj\.", ".attention.attention.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    ):
        name = re.sub(new, usual, name)
    return name
