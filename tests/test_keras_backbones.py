"""Xception and EfficientNetB0: the right pixels go in, and two stages train what they should."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.keras_engine.training import keras
from tests.tiny_dataset import make_dataset, portrait
from tests.tiny_keras import ARCHITECTURE as TINY
from tests.tiny_keras import given_weights, train

from keras.src.legacy.saving import legacy_h5_format  # isort: skip
from models import ARCHITECTURES, AS_THEY_ARE, MINUS_ONE_TO_ONE, ZERO_TO_ONE  # isort: skip
from models.efficientnet import fill_from_lite0, fill_from_packaged  # isort: skip
from models.xception import HEAD  # isort: skip
from pipeline.keras_engine import training as keras_training  # isort: skip
from pipeline.keras_engine.export import export_graph  # isort: skip
from pipeline.keras_engine.state import load_state, state_of  # isort: skip
from pipeline.detectors.detector import load_detector  # isort: skip
from pipeline.detectors.graph_weights import pack, unpack  # isort: skip
from pipeline.common.errors import UserError  # isort: skip
from pipeline.foreign.packages import packaged_file  # isort: skip
from pipeline.photos.images import read_image, resize  # isort: skip
from pipeline.training.runs import read_history  # isort: skip
from pipeline.training import shrinking  # isort: skip
from pipeline.detectors.runtime import Runtime

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED = sorted(path.parent for path in (REPOSITORY / "weights").glob("*/detector.json"))
KERAS = {name for name, each in ARCHITECTURES.items() if each.framework == "keras"}
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
BACKBONES = {
    "xception": keras.applications.Xception,
    "efficientnet_b0": keras.applications.EfficientNetB0,
}
PREPROCESS = {
    "xception": keras.applications.xception.preprocess_input,
    "efficientnet_b0": keras.applications.efficientnet.preprocess_input,
}

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    """(2, 256, 256, 3) uint8."""
    random = np.random.default_rng(0)
    return np.stack([resize(portrait(random), 256, "area") for _ in range(2)])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("faces"), train=24, validate=16)


@pytest.fixture(scope="module")
def published(tmp_path_factory, faces) -> dict[str, Path]:
    """Files as keras.applications downloads them, with weights of our own: name → path."""
    files = {}
    for name, build in BACKBONES.items():
        keras.utils.set_random_seed(0)
        backbone = build(weights=None, include_top=False, input_shape=(256, 256, 3))
        for layer in backbone.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.0  # after one step its statistics are those of these faces
            if isinstance(layer, keras.layers.Normalization):
                # In the published file the variance holds the standard deviation: its root divides
                # here, and once more in a layer that only the published network has.
                layer.load_own_variables({"0": MEAN, "1": STD, "2": 0})
        backbone(PREPROCESS[name](faces.astype(np.float32)), training=True)
        files[name] = tmp_path_factory.mktemp("published") / f"{name}_notop.h5"
        with h5py.File(files[name], "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, backbone)
    return files


@pytest.fixture
def imagenet(published, monkeypatch):
    """keras.applications' own network with its published weights, as if they had been downloaded:
    a function of the name."""

    def imagenet(name: str) -> keras.Model:
        monkeypatch.setattr(
            keras.src.utils.file_utils, "get_file", lambda *_, **__: str(published[name])
        )
        return BACKBONES[name](weights="imagenet", include_top=False, input_shape=(256, 256, 3))

    return imagenet


@pytest.mark.parametrize(
    ("name", "backbone"), [("xception", 20_861_480), ("efficientnet_b0", 4_049_571)]
)
def test_the_backbone_and_its_head(name, backbone):
    model = ARCHITECTURES[name].build()
    width = model.get_layer("head_pool").output.shape[-1]
    assert model.count_params() == backbone + (width + 1) * 128 + 129
    assert model.input_shape == (None, 256, 256, 3)
    assert model.output_shape == (None, 1)
    pool, dense, dropout, logit = model.layers[-4:]
    assert tuple(layer.name for layer in model.layers[-4:]) == HEAD
    assert isinstance(pool, keras.layers.GlobalAveragePooling2D)
    assert (dense.units, dense.activation) == (128, keras.activations.relu)
    assert dropout.rate == 0.5
    assert (logit.units, logit.activation) == (1, keras.activations.linear)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_the_network_sees_what_keras_own_sees(name, imagenet, faces):
    """Our scaling and network against keras.applications' preprocessing and ImageNet network."""
    architecture = ARCHITECTURES[name]
    theirs = imagenet(name)
    model = architecture.build()
    start = keras_training.starting_point("imagenet", architecture)
    assert start.label == "ImageNet"
    start.load(model)

    expected = theirs(PREPROCESS[name](faces.astype(np.float32)), training=False)
    inside = keras.Model(model.input, model.get_layer("head_pool").input)

    def deviation(scaling) -> float:
        """Of the backbone's output, in its own standard deviations."""
        found = inside(scaling(faces), training=False)
        return float(np.abs(found - expected).max() / np.std(expected))

    assert deviation(architecture.scaling) < 0.01
    for wrong in {AS_THEY_ARE, ZERO_TO_ONE, MINUS_ONE_TO_ONE} - {architecture.scaling}:
        assert deviation(wrong) > 0.1


@pytest.mark.parametrize("name", BACKBONES)
def test_weights_that_learned_from_another_scale_are_no_start(name, tmp_path):
    path = tmp_path / f"{name.removesuffix('_b0')}_finetuned.weights.h5"
    path.touch()
    with pytest.raises(UserError, match="it learned from pixels on another scale than"):
        keras_training.starting_point(str(path), ARCHITECTURES[name])


def test_a_file_of_keras_is_a_start_and_so_is_a_graph_that_keeps_the_weights(tmp_path, faces):
    folder = shutil.copytree(REPOSITORY / "weights" / "meso4", tmp_path / "meso4")
    file = shutil.copy(folder / "model.weights.h5", tmp_path / "kept.weights.h5")
    architecture = ARCHITECTURES["meso4"]
    scored = Runtime.of(load_detector(folder)).logits(faces)
    assert shrinking.main([str(folder), "--keep-graph"]) == 0
    assert not (folder / "model.weights.h5").exists()
    np.testing.assert_array_equal(Runtime.of(load_detector(folder)).logits(faces), scored)
    for start in (folder, file):
        model = architecture.build()
        keras_training.starting_point(str(start), architecture).load(model)
        logits = model.predict_on_batch(architecture.scaling(faces))
        np.testing.assert_allclose(logits[:, 0], scored, rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match=r"kept\.weights\.h5: not the weights of a mesoinception4"):
        keras_training.starting_point(str(file), ARCHITECTURES["mesoinception4"])


@pytest.mark.slow
@pytest.mark.parametrize("eight_bits_from", [10_000, None])
@pytest.mark.parametrize("name", BACKBONES)
def test_a_graph_keeps_a_backbones_own_weights(name, eight_bits_from, tmp_path, faces):
    architecture = ARCHITECTURES[name]
    model = architecture.build()
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            gamma = random.choice([-1, 1], gamma.shape) * random.uniform(0.5, 2, gamma.shape)
            layer.set_weights([gamma, beta + 0.1, mean - 0.1, variance * 1.5])
    state = state_of(model)
    graph = tmp_path / "model.onnx"
    export_graph(model, graph)
    size = graph.stat().st_size
    before = Runtime(graph, architecture, "cpu").logits(faces)
    pack(graph, state, eight_bits_from)
    after = Runtime(graph, architecture, "cpu").logits(faces)
    if eight_bits_from:
        assert graph.stat().st_size < 0.4 * size
    else:
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    back = unpack(graph)
    assert back.keys() == state.keys()
    keras.layers.Conv2D(1, 1), keras.layers.BatchNormalization()  # others are counted on
    again = architecture.build()
    load_state(again, back)
    of_network = again.predict_on_batch(architecture.scaling(faces))[:, 0]
    np.testing.assert_allclose(of_network, after, rtol=1e-2, atol=1e-3)
    with pytest.raises(KeyError):
        load_state(again, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder", [folder for folder in SHIPPED if folder.name in KERAS], ids=lambda folder: folder.name
)
def test_training_goes_on_from_each_shipped_detector(folder, faces):
    detector = load_detector(folder)
    architecture = detector.architecture
    model = architecture.build()
    keras_training.starting_point(str(folder), architecture).load(model)
    pixels = architecture.scaling(faces)
    scored = Runtime.of(detector).logits(faces)
    np.testing.assert_allclose(model.predict_on_batch(pixels)[:, 0], scored, rtol=0.01, atol=0.02)
    before = model.get_layer("logit").get_weights()[0]
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    assert np.isfinite(model.train_on_batch(pixels, np.array([[0.0], [1.0]])))
    assert not np.array_equal(model.get_layer("logit").get_weights()[0], before)


def test_efficientnet_brings_pixels_to_imagenets_scale_with_any_start(imagenet, faces):
    architecture = ARCHITECTURES["efficientnet_b0"]
    expected = (faces / np.float32(255) - MEAN) / STD
    from_scratch, from_imagenet = architecture.build(), architecture.build()
    imagenet("efficientnet_b0")
    keras_training.starting_point("imagenet", architecture).load(from_imagenet)
    for model in (from_scratch, from_imagenet):
        stem = keras.Model(model.input, model.get_layer("stem_conv_pad").input)
        np.testing.assert_allclose(stem(architecture.scaling(faces)), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_every_weight_of_the_backbone_comes_from_imagenet(name, imagenet):
    theirs = imagenet(name)
    model = ARCHITECTURES[name].build()
    head = model.get_layer("logit").get_weights()
    keras_training.starting_point("imagenet", ARCHITECTURES[name]).load(model)
    own, expected = (
        [
            weight
            for layer in network.layers
            if layer.name not in HEAD and not isinstance(layer, keras.layers.Normalization)
            for weight in layer.get_weights()
        ]
        for network in (model, theirs)
    )
    assert len(own) > 200
    for ours, weight in zip(own, expected, strict=True):
        np.testing.assert_array_equal(ours, weight)
    for ours, weight in zip(model.get_layer("logit").get_weights(), head, strict=True):
        np.testing.assert_array_equal(ours, weight)


@pytest.mark.parametrize(
    "script",
    ["train_xception.py", pytest.param("train_efficientnet.py", marks=pytest.mark.slow)],
)
def test_without_a_network_imagenet_is_refused_before_the_audit(script, data, tmp_path):
    nowhere = {"https_proxy": "http://127.0.0.1:9", "KERAS_HOME": str(tmp_path / "keras")}
    done = subprocess.run(
        [sys.executable, script, "--data", data, "--output", tmp_path / "out"],
        cwd=REPOSITORY,
        env={**os.environ, **nowhere},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 2
    sentence = done.stderr.splitlines()[-1]
    assert f"{script}: --init imagenet: the weights at https://storage.googleapis.com/" in sentence
    assert sentence.count("notop.h5") == 1
    assert "~/.keras/models/" in sentence
    assert "--init PATH" in sentence and "--init none" in sentence
    assert "Traceback" not in done.stderr
    assert "Fingerprint" not in done.stderr
    assert not (tmp_path / "out.run").exists()


# Stages, with a network that has little more than a backbone and a head


def trained(run: Path) -> keras.Model:
    """The network after the last epoch."""
    network = TINY.build()
    network.load_weights(run / "state" / "last.weights.h5")
    return network


def changed(before: keras.Model, after: keras.Model) -> dict[str, list[bool]]:
    """Which weights of each layer are no longer the same: normalization or its name → of each."""
    found: dict[str, list[bool]] = {}
    for old, new in zip(before.layers, after.layers, strict=True):
        name = type(old).__name__ if old.name not in HEAD else old.name
        pairs = zip(old.get_weights(), new.get_weights(), strict=True)
        found.setdefault(name, []).extend(not np.array_equal(*pair) for pair in pairs)
    return {name: values for name, values in found.items() if values}


def given() -> keras.Model:
    network = TINY.build()
    given_weights(network)
    return network


def test_the_first_stage_trains_the_head_alone(data, tmp_path):
    train(data, tmp_path, epochs=1, head_epochs=1)
    assert changed(given(), trained(tmp_path)) == {
        "Conv2D": [False] * 4,
        "BatchNormalization": [False] * 8,
        "head_dense": [True] * 2,
        "logit": [True] * 2,
    }


def test_the_second_stage_trains_all_but_the_batch_normalization(data, tmp_path):
    train(data, tmp_path, epochs=2, head_epochs=1)
    assert changed(given(), trained(tmp_path)) == {
        "Conv2D": [True] * 4,
        "BatchNormalization": [False] * 8,
        "head_dense": [True] * 2,
        "logit": [True] * 2,
    }
    rates = [line["learning_rate"] for line in read_history(tmp_path)]
    assert rates == pytest.approx([1e-5, 1e-5])  # each stage has its own cosine


def test_from_scratch_everything_learns_from_the_first_epoch_on(data, tmp_path, capsys):
    train(data, tmp_path, pretrained=False, epochs=1, head_epochs=1, head_learning_rate=1e-12)
    assert "From scratch: no epochs for the head alone." in capsys.readouterr().err
    keras.utils.set_random_seed(0)
    found = changed(TINY.build(dropout=0.2), trained(tmp_path))
    assert found == {
        "Conv2D": [True] * 4,
        "BatchNormalization": [True] * 8,
        "head_dense": [True] * 2,
        "logit": [True] * 2,
    }


@pytest.mark.slow
def test_training_stops_at_the_target_accuracy(data, tmp_path):
    settings = {"epochs": 4, "head_epochs": 1, "learning_rate": 0.01}
    train(data, tmp_path / "all", **settings)
    history = read_history(tmp_path / "all")
    accuracies = [line["val_accuracy"] for line in history]
    assert len(accuracies) == 4
    target = max(accuracies[:3])
    train(data, tmp_path / "stopped", target_accuracy=target, **settings)
    stopped = read_history(tmp_path / "stopped")
    assert [line["val_accuracy"] for line in stopped] == accuracies[: accuracies.index(target) + 1]

    train(data, tmp_path / "stopped", target_accuracy=target, resume=True, **settings)
    assert read_history(tmp_path / "stopped") == stopped, "resumed, it has nothing left to do"


def test_a_loss_that_is_no_number_is_said(data, tmp_path):
    with pytest.raises(UserError, match=r"epoch 1: the loss is no longer a number; try a lower"):
        train(data, tmp_path, epochs=1, head_epochs=0, learning_rate=1e30)


@pytest.mark.slow
def test_killed_between_the_stages_it_ends_with_the_same_bits(data, tmp_path):
    def run(name: str, **settings) -> subprocess.CompletedProcess:
        program = [sys.executable, "-m", "tests.tiny_keras", data, tmp_path / name / "run"]
        settings = json.dumps({"epochs": 3, "head_epochs": 1} | settings)
        return subprocess.run(
            [*program, settings], cwd=REPOSITORY, capture_output=True, text=True, timeout=900
        )

    done = run("whole")
    assert done.returncode == 0, done.stderr
    whole, again = tmp_path / "whole" / "run", tmp_path / "again" / "run"
    for epochs, settings in (
        (1, {"killed_at": "epoch", "killed": 1}),  # the head is trained
        (2, {"killed_at": "batch", "killed": 8, "resume": True}),  # in the middle of the rest
    ):
        done = run("again", **settings)
        assert done.returncode == -signal.SIGKILL, done.stderr
        state = json.loads((again / "state" / "state.json").read_text())
        assert len(state["history"]) == epochs
    done = run("again", resume=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    histories = [read_history(run) for run in (whole, again)]
    for line in (line for history in histories for line in history):
        del line["seconds"]
    assert histories[0] == histories[1]
    for name in ("last", "best"):
        pair = [h5py.File(run / "state" / f"{name}.weights.h5") for run in (whole, again)]
        assert differing(*pair) == []


def differing(first: h5py.Group, second: h5py.Group) -> list[str]:
    """The names of the datasets of which two files do not hold the same bits."""
    names: list[str] = []
    first.visititems(
        lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
    )
    assert len(names) > 10
    return [name for name in names if not np.array_equal(first[name][()], second[name][()])]


# From the command line to the detector folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "name"),
    [("train_xception.py", "xception"), ("train_efficientnet.py", "efficientnet_b0")],
)
def test_a_short_training_writes_a_detector(script, name, tmp_path, faces):
    data = make_dataset(tmp_path / "data", train=8, validate=8)
    output = tmp_path / "weights" / name
    command = [sys.executable, script, "--data", data, "--output", output, "--init", "none"]
    done = subprocess.run(
        [*command, "--epochs", "1", "--batch-size", "4", "--workers", "1", "--resolution", "96"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert "From scratch: no epochs for the head alone." in done.stderr
    detector = load_detector(output)
    assert detector.description["training"]["start"] == "scratch"
    assert 0 <= detector.description["export"]["largest_difference"] <= 1e-4
    network = detector.architecture.build()
    network.load_weights(output / "model.weights.h5")
    expected = network.predict(detector.architecture.scaling(faces), verbose=0)[:, 0]
    runtime = Runtime(detector.graph, detector.architecture)
    for count in (1, 2):
        logits = runtime.logits(faces[:count])
        np.testing.assert_allclose(logits, expected[:count], atol=1e-3, rtol=1e-3)


TORCHVISION = """
import sys
import numpy as np, torch, torchvision
from safetensors.torch import save_file

torch.manual_seed(0)
network = torchvision.models.efficientnet_b0(weights=None).eval()
for layer in network.modules():
    if isinstance(layer, torch.nn.BatchNorm2d):
        for value in (layer.weight, layer.running_var):
            torch.nn.init.uniform_(value, 0.5, 1.5)
        for value in (layer.bias, layer.running_mean):
            torch.nn.init.normal_(value, 0, 0.2)
weights, pixels, features = sys.argv[1:]
save_file(network.state_dict(), weights)
for layer in network.modules():  # where a stride is 2, pad as Keras does
    if isinstance(layer, torch.nn.Conv2d) and layer.stride == (2, 2):
        end = layer.kernel_size[0] // 2
        pad, layer.padding = torch.nn.ZeroPad2d((end - 1, end, end - 1, end)), (0, 0)
        layer.register_forward_pre_hook(lambda _, inputs, pad=pad: pad(inputs[0]))
with torch.inference_mode():
    maps = network.features(torch.from_numpy(np.load(pixels)).permute(0, 3, 1, 2))
np.save(features, maps.permute(0, 2, 3, 1).numpy())
"""


LITE0 = """
import sys
import numpy as np, timm, torch
from safetensors.torch import save_file

class Stretched(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.silu(3 * x) / 3

def without_clipping(module):
    for name, child in module.named_children():
        if isinstance(child, torch.nn.ReLU6):
            setattr(module, name, Stretched())
        without_clipping(child)

torch.manual_seed(0)
network = timm.create_model("tf_efficientnet_lite0", num_classes=1).eval()
for layer in network.modules():
    if isinstance(layer, torch.nn.BatchNorm2d):
        for value in (layer.weight, layer.running_var):
            torch.nn.init.uniform_(value, 0.5, 1.5)
        for value in (layer.bias, layer.running_mean):
            torch.nn.init.normal_(value, 0, 0.2)
torch.nn.init.constant_(network.classifier.bias, 0.3)
weights, pixels, logits = sys.argv[1:]
save_file(network.state_dict(), weights)
without_clipping(network)
with torch.inference_mode():
    found = network(torch.from_numpy(np.load(pixels)).permute(0, 3, 1, 2))
np.save(logits, found.numpy())
"""


def test_efficientnet_lite0s_weights_make_the_same_function(faces, tmp_path):
    """But for the clipping at 6, and for the border, where no pixel is black in both scales."""
    from safetensors.numpy import load_file

    files = [tmp_path / name for name in ("weights.safetensors", "pixels.npy", "logits.npy")]
    np.save(files[1], faces / np.float32(127.5) - 1)
    subprocess.run([sys.executable, "-c", LITE0, *files], check=True)
    model = ARCHITECTURES["efficientnet_b0"].build()
    fill_from_lite0(model, load_file(files[0]))
    found = model.predict(faces.astype(np.float32), verbose=0)
    np.testing.assert_allclose(found, np.load(files[2]), rtol=1e-3)
    with pytest.raises(KeyError):
        fill_from_lite0(model, {})


def test_efficientnet_b0_starts_from_a_lite0_and_not_the_other_way_round(tmp_path):
    b0, lite0 = ARCHITECTURES["efficientnet_b0"], REPOSITORY / "weights" / "efficientnet_lite0"
    start = keras_training.starting_point(str(lite0), b0)
    assert start.label.startswith("detector efficientnet_lite0")
    model = b0.build()
    start.load(model)
    assert np.abs(model.get_layer("logit").get_weights()[0]).sum() == 2
    with pytest.raises(UserError, match="this is a efficientnet_lite0, not a xception"):
        keras_training.starting_point(str(lite0), ARCHITECTURES["xception"])
    copy = shutil.copytree(lite0, tmp_path / "lite0")
    (copy / "model.onnx").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"model\.onnx is not the file that"):
        keras_training.starting_point(str(copy), b0)


def test_torchvisions_weights_give_torchvisions_features(faces, tmp_path):
    from safetensors.numpy import load_file

    files = [tmp_path / name for name in ("weights.safetensors", "pixels.npy", "features.npy")]
    np.save(files[1], (faces / np.float32(255) - MEAN) / STD)
    subprocess.run([sys.executable, "-c", TORCHVISION, *files], check=True)
    model = ARCHITECTURES["efficientnet_b0"].build()
    fill_from_packaged(model, load_file(files[0]))
    ours = keras.Model(model.input, model.get_layer("top_activation").output)
    expected = np.load(files[2])
    found = ours.predict(faces.astype(np.float32), verbose=0)
    assert found.shape == expected.shape == (2, 8, 8, 1280)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    with pytest.raises(KeyError):
        fill_from_packaged(model, {})


def packaged_start(architecture):
    try:
        return keras_training.starting_point("packaged", architecture)
    except UserError as error:
        pytest.skip(f"the package cannot be fetched here: {error}")


def test_the_packaged_weights_are_those_of_a_trained_network(own_cache):
    architecture = ARCHITECTURES["efficientnet_b0"]
    start = packaged_start(architecture)
    assert "MIT" in start.label
    model = architecture.build()
    before = model.get_layer("stem_conv").get_weights()[0]
    start.load(model)
    after = model.get_layer("stem_conv").get_weights()[0]
    assert not np.allclose(before, after)
    spread = model.get_layer("top_bn").get_weights()[3]
    assert (spread > 0).all() and spread.std() > 0, "these are statistics of real pictures"


@pytest.mark.slow
def test_the_packaged_xception_is_what_its_own_graph_computes(own_cache):
    import onnx
    import openvino

    architecture = ARCHITECTURES["xception"]
    start = packaged_start(architecture)
    assert "MIT" in start.label and "GPLv3" in start.label
    model = architecture.build()
    start.load(model)
    features = keras.Model(model.input, model.get_layer("head_pool").output)
    photos = sorted((REPOSITORY / "samples").glob("*.jpg"))[:3]
    faces = np.stack([resize(read_image(path), 256, "area") for path in photos])
    file = packaged_file("xception")
    graph = onnx.load(file).graph
    end = {each.name.split("/read")[0]: onnx.numpy_helper.to_array(each) for each in
           graph.initializer if each.name.startswith("predictions/")}  # fmt: skip
    ours = features.predict_on_batch(architecture.scaling(faces)) @ end["predictions/kernel"]
    ours = keras.ops.softmax(ours + end["predictions/bias"])
    network = openvino.compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    theirs = network(faces / np.float32(255))[0]
    np.testing.assert_allclose(keras.ops.convert_to_numpy(ours), theirs, atol=1e-4)
    assert np.ptp(theirs[:, 0]) > 1e-3, "they are told apart"
    with pytest.raises(KeyError):
        architecture.module.fill_from_packaged(model, {})


@pytest.mark.parametrize("name", ["meso4", "mesoinception4"])
def test_networks_without_a_package_say_so(name):
    with pytest.raises(UserError, match=r"packaged.*efficientnet_b0"):
        keras_training.starting_point("packaged", ARCHITECTURES[name])


TWIN = """
import json, sys
import keras, numpy as np, torch
from benchmarks import torch_xception
from models import ARCHITECTURES

side = int(sys.argv[1])
model, again = (ARCHITECTURES["xception"].build(size=side) for _ in range(2))
random = np.random.default_rng(0)
for layer in model.layers:
    if isinstance(layer, keras.layers.BatchNormalization):
        layer.set_weights([random.uniform(0.5, 2, each.shape) for each in layer.get_weights()])
pixels = random.uniform(-1, 1, (2, side, side, 3)).astype(np.float32)
with torch.inference_mode():
    logits = keras.ops.convert_to_numpy(model(pixels, training=False))
    twin = torch_xception.Xception().eval()
    twin.load_state_dict(torch_xception.from_keras(model))
    theirs = twin(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
torch_xception.to_keras(twin.state_dict(), again)
pairs = zip(model.get_weights(), again.get_weights(), strict=True)
same = all(np.array_equal(ours, back) for ours, back in pairs)
print(json.dumps([logits.tolist(), theirs.tolist(), same]))
"""


@pytest.mark.parametrize("side", [96, 97])
def test_xceptions_twin_in_torch_computes_the_same_and_gives_its_weights_back(side):
    done = subprocess.run(
        [sys.executable, "-c", TWIN, str(side)],
        cwd=REPOSITORY,
        env=os.environ | {"KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
        check=True,
    )
    ours, theirs, same = json.loads(done.stdout.splitlines()[-1])
    assert np.std(ours) > 0
    np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-4 * np.abs(ours).max())
    assert same
