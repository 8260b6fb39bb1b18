"""Hugging Face's ViT classifiers as timm's networks with one logit of fake."""

import json
import math
import re
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from models import Architecture
from models.vit import from_transformers
from pipeline.errors import UserError
from pipeline.hub import download


def classifier_of(folder: Path, architecture: Architecture) -> nn.Module:
    """The network in a folder as `save_pretrained` writes it: a ViTForImageClassification with two
    classes, or a PEFT adapter of one with its head. Raises UserError for anything else."""
    is_adapter = (folder / "adapter_config.json").exists()
    weights = _merged(folder) if is_adapter else load_file(folder / "model.safetensors")
    try:
        weights = from_transformers(weights)
    except (KeyError, ValueError) as error:
        raise UserError(f"{folder}: this is no ViT classifier ({error.args[0]}).") from None
    if len(weights["head.weight"]) != 2:
        raise UserError(
            f"{folder}: it tells {len(weights['head.weight'])} classes apart; two are wanted, real "
            "and fake. To start a training from it, name it with --init."
        )
    fake = fake_output(folder / "config.json")
    if fake is None:
        fake = 0
        print(
            f"{folder}: its classes have no names that say which is fake; taken to be fake, real, "
            "in the order of the alphabet, as torchvision's ImageFolder numbers them.",
            file=sys.stderr,
        )
    network = architecture.build()
    network.load_state_dict(one_logit(weights, fake))
    return network.eval()


def one_logit(weights: dict, fake: int) -> dict:
    """Weights with a head of two outputs → with one: softmax over two is the sigmoid of their
    difference. `fake` is the output that means fake."""
    difference = {
        name: (weights[name][fake] - weights[name][1 - fake])[None]
        for name in ("head.weight", "head.bias")
    }
    return weights | difference


def fake_output(config: Path) -> int | None:
    """Which of a two-class classifier's outputs means fake, by its labels' names in config.json.

    None where the names do not say.
    """
    try:
        labels = json.loads(config.read_text(encoding="utf-8"))["id2label"]
        names = [labels[str(number)].lower() for number in range(2)]
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    fakes = [any(word in name for word in ("fake", "ai", "synth", "gener")) for name in names]
    reals = [any(word in name for word in ("real", "auth", "human")) for name in names]
    if fakes[0] != fakes[1] and reals[1 - fakes.index(True)]:
        return fakes.index(True)
    return None


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
        for name, value in load_file(folder / "adapter_model.safetensors").items()
    }
    if "classifier.weight" not in adapter:
        raise UserError(
            f"{folder}: this adapter has no classifier, so its verdicts would be those of an "
            "untrained head."
        )
    base = config["base_model_name_or_path"]
    local = Path(base) if Path(base).is_dir() else download(base, f"the base of {folder}")
    weights = load_file(local / "model.safetensors")
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
