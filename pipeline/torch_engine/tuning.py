"""Which parameters of a torch network learn: all of them, LoRA's, the normalization's, the head's.

LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, through peft.
However a network was tuned, what is kept of it is a plain network with timm's own names.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import timm.optim
import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from timm.layers import GroupNorm, LayerNorm
from torch import nn

from models import Architecture
from pipeline.common.errors import UserError

TUNINGS = ("full", "lora", "norm", "probe")
ADAPTER = "adapter"

_NORMALIZATION = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, LayerNorm, GroupNorm)


@dataclass(frozen=True)
class Tuning:
    """How to tune; `rank`, `alpha`, `dropout` and `targets` are LoRA's. Targets are the ends of
    layers' names; empty: the architecture's own (query and value of a ViT, a ResNet's
    convolutions)."""

    kind: str
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    targets: tuple[str, ...] = ()


def tune(
    network: nn.Module, architecture: Architecture, tuning: Tuning, adapter: Path | None = None
) -> nn.Module:
    """Make `network` ready to be trained as `tuning` says; what is returned wraps or is it.

    `adapter` is a folder to go on from, of which `network` has the merged weights; None: a new one.
    Raises UserError where no layer that LoRA can adapt has a target's name.
    """
    if tuning.kind == "lora":
        return _with_lora(network, architecture, tuning, adapter)
    head = architecture.module.HEAD
    network.requires_grad_(tuning.kind == "full")
    for name, layer in network.named_modules():
        if name in head or (tuning.kind == "norm" and isinstance(layer, _NORMALIZATION)):
            layer.requires_grad_(True)
    return network


def plain(tuned: nn.Module, architecture: Architecture) -> nn.Module:
    """The network of a tuned one, adapters merged into it (a copy), with timm's names."""
    if not isinstance(tuned, PeftModel):
        return tuned
    network = copy.deepcopy(tuned).merge_and_unload()
    architecture.module.fuse_attention(network)
    return network


def save_adapter(tuned: nn.Module, folder: Path) -> None:
    """Write the adapter of a network tuned with LoRA into `folder`/adapter/; nothing for others.

    It holds the head, and the batch normalization with its statistics, beside LoRA's matrices.
    """
    if isinstance(tuned, PeftModel):
        tuned.save_pretrained(folder / ADAPTER)
        (folder / ADAPTER / "README.md").unlink(missing_ok=True)  # an empty form


def keep_statistics(tuned: nn.Module, kind: str) -> None:
    """Where the backbone does not learn, its batch normalization must not either: to be called
    after each `train()`."""
    if kind == "probe":
        for layer in tuned.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()


def parameter_groups(
    tuned: nn.Module, weight_decay: float, learning_rate: float, layer_decay: float | None
) -> list[dict]:
    """The learning parameters for an optimizer: no weight decay on biases, normalization, and what
    the network says (a ViT's position embedding).

    With `layer_decay` below 1, each layer further from the head learns that much slower (Clark et
    al., "ELECTRA", ICLR 2020; as in BEiT and MAE).
    """
    kept = tuned.no_weight_decay() if hasattr(tuned, "no_weight_decay") else ()
    if layer_decay is None or isinstance(tuned, PeftModel):
        return timm.optim.param_groups_weight_decay(tuned, weight_decay, no_weight_decay_list=kept)
    groups = timm.optim.param_groups_layer_decay(
        tuned, weight_decay, no_weight_decay_list=kept, layer_decay=layer_decay
    )
    for group in groups:
        group["lr"] = learning_rate * group.pop("lr_scale")
    return groups


def _with_lora(
    network: nn.Module, architecture: Architecture, tuning: Tuning, adapter: Path | None
) -> nn.Module:
    module = architecture.module
    module.split_attention(network)
    adaptable = _ends_of_names(network, module.HEAD)
    if adapter:
        config = LoraConfig.from_pretrained(adapter)
        config.inference_mode = False
    else:
        config = LoraConfig(
            r=tuning.rank,
            lora_alpha=tuning.alpha,
            lora_dropout=tuning.dropout,
            target_modules=list(tuning.targets or module.LORA_TARGETS),
            modules_to_save=list(module.SAVED_WITH_ADAPTER),
        )
    try:
        tuned = get_peft_model(network, config)
    except ValueError:  # no layer, or one of another kind
        raise UserError(
            f"--lora-targets {','.join(tuning.targets)}: {architecture.name} has no such layers "
            f"for LoRA: their names end in {', '.join(adaptable)}."
        ) from None
    if adapter:
        _take_apart(tuned, adapter)
    return tuned


def _ends_of_names(network: nn.Module, head: tuple[str, ...]) -> list[str]:
    """Of the layers that LoRA can adapt, apart from the head."""
    names = [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and name not in head
    ]
    ends = {name.rpartition(".")[2] for name in names}
    return sorted(end for end in ends if not end.isdigit())


def _take_apart(tuned: PeftModel, adapter: Path) -> None:
    """Load an adapter and subtract it from the layers, which it had been merged into."""
    weights = load_file(adapter / "adapter_model.safetensors")
    try:
        unknown = set_peft_model_state_dict(tuned, weights).unexpected_keys
    except (KeyError, RuntimeError):  # something is missing, or of another shape
        unknown = [adapter]
    if unknown:
        raise UserError(f"{adapter}: this adapter is of another network.")
    with torch.no_grad():
        for layer in tuned.modules():
            if isinstance(layer, LoraLayer):
                for name in layer.lora_A:
                    layer.get_base_layer().weight.sub_(layer.get_delta_weight(name))
