"""Which parameters learn, and that a tuned network stays the same on every way out and back.

The tiny networks have the modules of ViT-B/16 and ResNet50, only fewer and narrower.
"""

import copy
import re

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from models import ARCHITECTURES, Architecture
from pipeline.common.errors import UserError
from pipeline.detectors.runtime import Runtime
from pipeline.torch_engine.export import export_graph
from pipeline.torch_engine.trainer import Classifier
from pipeline.torch_engine.tuning import (
    ADAPTER,
    TUNINGS,
    Tuning,
    keep_statistics,
    parameter_groups,
    plain,
    save_adapter,
    tune,
)
from tests import tiny_timm
from tests.tiny_timm import RESNET, VIT, faces

TINY = pytest.mark.parametrize("architecture", [VIT, RESNET], ids=lambda tiny: tiny.name)
KINDS = pytest.mark.parametrize("kind", TUNINGS)


def new_network(architecture: Architecture, seed: int = 0) -> torch.nn.Module:
    """A network that has seen faces: its batch normalization has other statistics than 0 and 1."""
    torch.manual_seed(seed)
    network = architecture.build()
    with torch.no_grad():
        network.train()(pixels_of(architecture))
    return network.eval()


def pixels_of(architecture: Architecture, number: int = 8) -> torch.Tensor:
    scaled = architecture.scaling(faces(number, architecture.input_size))
    return torch.from_numpy(scaled).permute(0, 3, 1, 2)


@torch.no_grad()
def logits_of(network: torch.nn.Module, architecture: Architecture) -> np.ndarray:
    return network.eval()(pixels_of(architecture)).numpy()[:, 0]


def train(tuned: torch.nn.Module, architecture: Architecture, kind: str, steps: int = 4) -> None:
    """A few optimizer steps with the groups that training uses."""
    classifier = Classifier(tuned, kind).train()
    optimizer = torch.optim.AdamW(parameter_groups(tuned, 0.05, 3e-3, None), lr=3e-3)
    labels = torch.tensor([[0.0], [1.0]]).repeat(4, 1)
    for _ in range(steps):
        classifier.train()(pixels_of(architecture), labels)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()


def trained(architecture: Architecture, kind: str):
    """A network as it was, and tuned and trained from there."""
    network = new_network(architecture)
    tuned = tune(copy.deepcopy(network), architecture, Tuning(kind))
    train(tuned, architecture, kind)
    return network, tuned


# ---- what learns


@pytest.mark.parametrize(
    ("name", "kind", "learning"),
    [
        ("vit", "full", 85_799_425),
        ("vit", "lora", 2 * 12 * 16 * (768 + 768) + 769),  # query and value: 589,824; the head
        ("vit", "norm", 25 * 2 * 768 + 769),
        ("vit", "probe", 769),
        ("resnet50", "full", 23_510_081),
        ("resnet50", "lora", 53_120 + 2_049 + 1_179_952),  # normalization, head, convolutions
        ("resnet50", "norm", 53_120 + 2_049),
        ("resnet50", "probe", 2_049),
    ],
)
def test_the_numbers_of_learning_parameters(name, kind, learning):
    architecture = ARCHITECTURES[name]
    with torch.device("meta"):
        tuned = tune(architecture.build(), architecture, Tuning(kind))
    sizes = [value.numel() for value in tuned.parameters() if value.requires_grad]
    assert sum(sizes) == learning


def changing(architecture: Architecture, kind: str) -> str:
    """A pattern of the names of all that may change in a state_dict."""
    head = r"(head|fc)\.(weight|bias)"
    norms = r".*(norm|norm\d|bn\d|downsample\.1)\.(weight|bias)"
    statistics = r".*(running_mean|running_var|num_batches_tracked)"
    lora = r".*attn\.qkv\.weight" if architecture is VIT else r".*conv\d\.weight"
    return {
        "full": r".*",
        "lora": f"{head}|{lora}" + ("" if architecture is VIT else f"|{norms}|{statistics}"),
        "norm": f"{head}|{norms}|{statistics}",
        "probe": head,
    }[kind]


@TINY
@KINDS
def test_only_what_learns_changes(architecture, kind):
    network, tuned = trained(architecture, kind)
    before, after = network.state_dict(), plain(tuned, architecture).state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    pattern = changing(architecture, kind)
    assert changed == {name for name in before if re.fullmatch(pattern, name)}


def test_of_attention_lora_changes_query_and_value_but_not_key():
    network, tuned = trained(VIT, "lora")
    name = "blocks.0.attn.qkv.weight"
    before = network.state_dict()[name].chunk(3)
    after = plain(tuned, VIT).state_dict()[name].chunk(3)
    assert [torch.equal(*parts) for parts in zip(before, after, strict=True)] == [0, 1, 0]


@TINY
@KINDS
def test_no_gradient_is_computed_for_what_does_not_learn(architecture, kind):
    tuned = tune(new_network(architecture), architecture, Tuning(kind))
    classifier = Classifier(tuned, kind).train()
    classifier(pixels_of(architecture), torch.ones(8, 1))["loss"].backward()
    for value in tuned.parameters():
        assert (value.grad is not None) == value.requires_grad


@TINY
def test_the_statistics_of_a_frozen_backbone_are_kept_and_its_dropout_is_not(architecture):
    tuned = tune(architecture.build(dropout=0.5), architecture, Tuning("probe"))
    keep_statistics(tuned.train(), "probe")
    for layer in tuned.modules():
        assert layer.training != isinstance(layer, torch.nn.BatchNorm2d)


def test_weights_decay_but_not_biases_normalization_and_position():
    network = VIT.build()
    for layer_decay in (None, 0.7):
        groups = parameter_groups(network, 0.05, 1e-3, layer_decay)
        names = {id(value): name for name, value in network.named_parameters()}
        decaying = {
            names[id(value)]
            for group in groups
            for value in group["params"]
            if group["weight_decay"] == 0.05
        }
        assert decaying == {
            name for name in names.values() if re.search(r"(proj|qkv|fc\d|head)\.weight", name)
        }


@TINY
def test_layers_further_from_the_head_learn_more_slowly(architecture):
    network = architecture.build()
    rates = {}
    for group in parameter_groups(network, 0.05, 1e-3, 0.5):
        rates |= {id(value): group["lr"] for value in group["params"]}
    rates = {name: rates[id(value)] for name, value in network.named_parameters()}
    parts = {
        VIT: ["patch_embed", "blocks.0", "blocks.1", "head"],
        RESNET: ["conv1", "layer1.0", "layer2.0", "layer3.0", "layer4.0", "fc"],
    }[architecture]
    by_part = [{rate for name, rate in rates.items() if name.startswith(part)} for part in parts]
    assert all(len(found) == 1 for found in by_part)
    by_part = [found.pop() for found in by_part]
    assert by_part[-1] == 1e-3
    assert by_part == sorted(by_part)
    assert by_part[1] == pytest.approx(by_part[2] / 2)


# ---- the same network on every way out and back


@TINY
@KINDS
def test_training_saving_loading_and_merging_give_the_same_logits(architecture, kind, tmp_path):
    network, tuned = trained(architecture, kind)
    expected = logits_of(tuned, architecture)
    assert np.abs(expected - logits_of(network, architecture)).max() > 0.01, "it learned nothing"

    merged = plain(tuned, architecture)
    np.testing.assert_allclose(logits_of(merged, architecture), expected, atol=1e-5)

    save_file(merged.state_dict(), tmp_path / "model.safetensors")
    save_adapter(tuned, tmp_path)
    loaded = architecture.build()
    loaded.load_state_dict(load_file(tmp_path / "model.safetensors"))
    np.testing.assert_allclose(logits_of(loaded, architecture), expected, atol=1e-5)

    assert (tmp_path / ADAPTER).exists() == (kind == "lora")


@TINY
def test_an_adapter_folder_alone_restores_the_trained_network(architecture, tmp_path):
    """The classic failure: a new head, or another batch normalization, under an old adapter."""
    network, tuned = trained(architecture, "lora")
    expected = logits_of(tuned, architecture)
    save_adapter(tuned, tmp_path)
    assert sorted(path.name for path in (tmp_path / ADAPTER).iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    base = copy.deepcopy(network)
    tiny_timm.split_attention(base)
    with torch.no_grad():
        (base.head if architecture is VIT else base.fc).weight.zero_()  # of no use any more
    restored = PeftModel.from_pretrained(base, str(tmp_path / ADAPTER))
    np.testing.assert_allclose(logits_of(restored, architecture), expected, atol=1e-5)


def test_the_statistics_of_batch_normalization_matter_here():
    network, tuned = trained(RESNET, "lora")
    expected = logits_of(tuned, RESNET)
    merged = plain(tuned, RESNET)
    statistics = {name: value for name, value in network.state_dict().items() if "running_" in name}
    merged.load_state_dict(statistics, strict=False)
    assert np.abs(logits_of(merged, RESNET) - expected).max() > 0.01


@TINY
def test_going_on_with_an_adapter_starts_where_it_stopped(architecture, tmp_path):
    network, tuned = trained(architecture, "lora")
    expected = logits_of(tuned, architecture)
    save_adapter(tuned, tmp_path)
    again = tune(
        plain(tuned, architecture), architecture, Tuning("lora", rank=3), tmp_path / ADAPTER
    )
    np.testing.assert_allclose(logits_of(again, architecture), expected, atol=1e-5)
    with again.disable_adapter():  # without it, it is what the adapter had been trained on
        base = dict(again.get_base_model().named_parameters())
        name = "blocks.0.attn.qkv.query" if architecture is VIT else "layer1.0.conv1"
        was = network.get_submodule(name.removesuffix(".query")).weight
        was = was.chunk(3)[0] if architecture is VIT else was
        torch.testing.assert_close(base[f"{name}.base_layer.weight"], was, atol=1e-6, rtol=0)
    for (name, value), (other, old) in zip(
        again.named_parameters(), tuned.named_parameters(), strict=True
    ):
        assert name == other
        assert value.requires_grad == old.requires_grad
        if "lora_" in name:
            torch.testing.assert_close(value, old, atol=0, rtol=0)
    train(again, architecture, "lora")
    assert np.abs(logits_of(again, architecture) - expected).max() > 0.01


@TINY
def test_a_new_adapter_on_top_starts_from_the_merged_weights(architecture):
    _, tuned = trained(architecture, "lora")
    expected = logits_of(tuned, architecture)
    again = tune(plain(tuned, architecture), architecture, Tuning("lora", rank=3))
    np.testing.assert_allclose(logits_of(again, architecture), expected, atol=1e-5)
    shapes = [value.shape for name, value in again.named_parameters() if "lora_A" in name]
    assert {shape[0] for shape in shapes} == {3}


def test_an_adapter_of_another_network_is_refused(tmp_path):
    _, tuned = trained(RESNET, "lora")
    save_adapter(tuned, tmp_path)
    with pytest.raises(UserError, match="this adapter is of another network"):
        tune(new_network(VIT), VIT, Tuning("lora"), tmp_path / ADAPTER)


@TINY
def test_targets_that_match_nothing_are_refused(architecture):
    layers = {VIT: "fc1, fc2, key, proj, query, value", RESNET: "conv1, conv2, conv3"}
    with pytest.raises(UserError, match=rf"^--lora-targets nowhere: .*{layers[architecture]}\."):
        tune(new_network(architecture), architecture, Tuning("lora", targets=("nowhere",)))


def test_targets_that_are_no_layers_for_lora_are_refused():
    with pytest.raises(UserError, match=r"^--lora-targets norm1: "):
        tune(new_network(VIT), VIT, Tuning("lora", targets=("norm1",)))


def test_other_targets_can_be_chosen():
    tuned = tune(new_network(VIT), VIT, Tuning("lora", rank=2, targets=("proj", "fc1")))
    adapted = {name for name, value in tuned.named_parameters() if "lora_B" in name}
    assert len(adapted) == 1 + 2 * 2  # the patches' projection, and both in each block


# ---- export

IN_SHORT = [("full", VIT), ("lora", RESNET)]  # each takes seconds


def assert_exported(network, architecture: Architecture, folder) -> None:
    """The graph agrees with the network on real faces, whatever the size of the batch."""
    path = folder / "model.onnx"
    export_graph(network, architecture.input_size, path)
    assert b"site-packages" not in path.read_bytes(), "where it was made is nobody's business"
    runtime = Runtime(path, architecture)
    pictures = faces(64, architecture.input_size)
    scaled = torch.from_numpy(architecture.scaling(pictures)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = network.eval()(scaled).numpy()[:, 0]
    assert np.ptp(expected) > 1e-3, "the pictures are all the same to this network"
    for batch in (1, 3, 64):
        np.testing.assert_allclose(runtime.logits(pictures[:batch]), expected[:batch], atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        pytest.param(
            architecture,
            kind,
            id=f"{kind}-{architecture.name}",
            marks=() if (kind, architecture) in IN_SHORT else pytest.mark.slow,
        )
        for architecture in (VIT, RESNET)
        for kind in ("full", "probe", "norm", "lora")
    ],
)
def test_the_exported_graph_agrees_however_a_network_was_tuned(
    architecture, kind, own_cache, tmp_path
):
    _, tuned = trained(architecture, kind)
    assert_exported(plain(tuned, architecture), architecture, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet50", "efficientnet_lite0"])
def test_the_exported_graph_agrees_with_the_real_networks(name, own_cache, tmp_path):
    architecture = ARCHITECTURES[name]
    assert_exported(new_network(architecture), architecture, tmp_path)
