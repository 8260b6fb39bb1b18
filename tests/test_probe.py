"""--tuning probe: the head of a frozen network, fitted to features that are computed once."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import incremental_train_vit
import train_vit
from models import ARCHITECTURES
from pipeline.common.errors import UserError
from pipeline.common.labels import FAKE, REAL
from pipeline.data.dataset import Sample
from pipeline.feeding.sampling import Epochs
from pipeline.torch_engine import probe
from pipeline.torch_engine.probe import head_layer
from pipeline.torch_engine.regression import Views, fit
from pipeline.torch_engine.weights import WEIGHTS
from tests import tiny_timm
from tests.tiny_dataset import make_dataset

tiny_timm.register()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), train=40, validate=40)


def train(data: Path, output: Path, *options: object) -> dict[str, torch.Tensor]:
    """What train_vit.py writes: the weights of a detector."""
    arguments = ["--data", data, "--output", output, "--architecture", "tiny_vit", "--workers", 1]
    arguments += ["--tuning", "probe", "--precision", "fp32", "--epochs", 3, *options]
    sys.argv = ["train_vit.py", *map(str, arguments)]
    train_vit.main()
    return load_file(output / WEIGHTS)


def views(random: np.random.Generator) -> Views:
    labels = random.integers(0, 2, 60).astype(np.float32)
    features = random.normal(size=(2, 60, 5)) * [1, 1, 3, 0.1, 100] + labels[:, None]
    weights = random.uniform(0.5, 2, 60).astype(np.float32)
    return Views(list(features.astype(np.float16)), labels, weights[:, None])


def objective(head: nn.Linear, shown: Views, penalty: float, held_to: torch.Tensor) -> torch.Tensor:
    """What a fit makes least, after its definition, in double precision."""
    features = torch.from_numpy(np.concatenate(shown.views)).double()
    labels = torch.from_numpy(np.concatenate([shown.labels] * len(shown.views))).double()
    weights = torch.from_numpy(np.concatenate([shown.weights[:, 0]] * len(shown.views))).double()
    logits = head.double()(features)[:, 0]
    loss = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    away = (head.weight[0] - held_to.double()) * features.std(0, correction=0)
    return (weights * loss).sum() / weights.sum() + penalty * away.square().sum()


@pytest.mark.parametrize("start", [0.0, 0.5])
@pytest.mark.parametrize("penalty", [1e-3, 1e-1])
def test_a_fit_ends_where_the_objective_is_least(start, penalty):
    shown, head = views(np.random.default_rng(0)), nn.Linear(5, 1)
    nn.init.constant_(head.weight, start)
    held_to = head.weight.detach().clone()[0]
    at_start = float(objective(nn.Linear(5, 1), shown, penalty, held_to).detach())
    loss = fit(head, shown, penalty)
    least = objective(head, shown, penalty, held_to)
    least.backward()
    deviation = torch.from_numpy(np.concatenate(shown.views)).double().std(0, correction=0)
    assert least < at_start
    assert float((head.weight.grad[0] / deviation).abs().max()) < 1e-4
    assert abs(float(head.bias.grad)) < 1e-4
    assert loss == pytest.approx(float(objective(head, shown, 0, held_to).detach()), abs=1e-5)


def test_problems_solved_at_once_are_solved_as_alone():
    random = np.random.default_rng(2)
    shown, others = views(random), random.uniform(0.5, 2, 60).astype(np.float32)
    both = Views(shown.views, shown.labels, np.stack([shown.weights[:, 0], others], axis=1))
    together = nn.Linear(5, 2)
    nn.init.zeros_(together.weight)
    fit(together, both, 1e-2)
    for number in range(2):
        alone = nn.Linear(5, 1)
        nn.init.zeros_(alone.weight)
        fit(alone, Views(shown.views, shown.labels, both.weights[:, [number]]), 1e-2)
        torch.testing.assert_close(together.weight[number], alone.weight[0], atol=1e-3, rtol=1e-2)


def test_a_penalty_without_end_leaves_the_head_as_it_was():
    shown, head = views(np.random.default_rng(1)), nn.Linear(5, 1)
    before = head.weight.detach().clone()
    fit(head, shown, 1e6)
    assert torch.allclose(head.weight, before, atol=1e-4)


def test_pictures_count_as_often_as_epochs_show_them():
    sources = ["ffhq"] * 30 + ["lfw"] * 10
    train = [Sample(Path(f"{n}.jpg"), REAL, generator=name) for n, name in enumerate(sources)]
    sources = ["stylegan"] * 5 + ["swap"] * 25
    train += [Sample(Path(f"f{n}.jpg"), FAKE, generator=name) for n, name in enumerate(sources)]
    epochs = Epochs(train, 0.4, "generator", seed=0)
    often = epochs.frequencies()
    assert often.sum() == pytest.approx(len(epochs))
    counted = np.zeros(len(epochs.pictures))
    for epoch in range(200):
        for number in epochs.order(epoch):
            counted[epochs.index(number)] += 1 / 200
    np.testing.assert_allclose(often, counted, atol=0.15)
    assert often[:30].sum() == pytest.approx(often[30:40].sum(), abs=1)


def test_only_the_head_learns_and_a_killed_run_ends_with_the_same_bits(data, tmp_path, monkeypatch):
    torch.manual_seed(0)
    start = ARCHITECTURES["tiny_vit"].build()
    save_file(start.state_dict(), tmp_path / "start.safetensors")
    options = ("--init", tmp_path / "start.safetensors")
    reference = train(data, tmp_path / "reference", *options)
    head = [f"head.{kind}" for kind in ("weight", "bias")]
    for name, value in start.state_dict().items():
        assert torch.equal(value, reference[name]) != (name in head)
    history = (tmp_path / "reference" / "history.jsonl").read_text()
    assert json.loads(history)["loss"] < np.log(2) - 0.02

    monkeypatch.setattr(probe, "_PICTURES_KEPT_AT_ONCE", 16)
    computed = probe.Backbone.__call__
    calls = []

    def killed(self, pixels):
        calls.append(len(pixels))
        if len(calls) == 7:
            raise KeyboardInterrupt
        return computed(self, pixels)

    monkeypatch.setattr(probe.Backbone, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "killed", *options)
    before, calls[:] = sum(calls[:6]), [0] * 10
    resumed = train(data, tmp_path / "killed", *options, "--resume")
    assert 0 < sum(calls) < before + 3 * 40, "nothing was kept"
    for name, value in reference.items():
        assert torch.equal(value, resumed[name])


def test_the_head_is_the_layer_before_the_logit():
    for name in ("vit_clip", "resnet50", "efficientnet_lite0"):
        with torch.device("meta"):
            network = ARCHITECTURES[name].build()
        assert head_layer(network, ARCHITECTURES[name]).out_features == 1


@pytest.mark.slow
@pytest.mark.parametrize("own", [(), ("--weight-decay", 0.1, "--replay-fraction", 0.5)])
def test_further_training_shows_few_new_pictures_often_and_holds_to_the_old_head(
    data, tmp_path, own, own_cache
):
    torch.manual_seed(0)
    train(data, tmp_path / "tiny", "--init", "none", "--threshold-rule", "each-fpr=0.1")
    before = load_file(tmp_path / "tiny" / WEIGHTS)
    new = make_dataset(tmp_path / "new", train=10, validate=4, names=("train", "validate"))
    command = ["incremental_train_vit.py", "--from", tmp_path / "tiny", "--new-data", new]
    command += ["--replay", data, "--margin", 1, "--workers", 1, "--precision", "fp32", *own]
    sys.argv = list(map(str, command))
    assert incremental_train_vit.main() == 0
    description = json.loads((tmp_path / "tiny" / "detector.json").read_text())
    training = description["training"]
    assert (training["new_images"], training["times"]) == (10, 40)
    assert training["replayed_images"] == 40  # all there are: fewer than were wanted
    assert training["images"] == {"real": 25, "fake": 25}
    assert training["arguments"]["tuning"] == "probe"
    assert training["arguments"]["weight_decay"] == (0.1 if own else 0.5)
    assert description["calibration"]["rule"] == "each-fpr=0.1"
    after = load_file(tmp_path / "tiny" / WEIGHTS)
    for name, value in before.items():
        assert torch.equal(value, after[name]) != name.startswith("head.")


@pytest.mark.parametrize("option", ["--mixup", "--cutmix"])
def test_mixed_pictures_are_refused(data, tmp_path, option):
    with pytest.raises(UserError, match="--tuning"):
        train(data, tmp_path / "out", "--init", "none", option, 0.2)


def test_several_processes_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="torchrun"):
        train(data, tmp_path / "out", "--init", "none")
