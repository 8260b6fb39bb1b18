"""The graph that scoring runs gives what the trained network gives, from the pixels of a file."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models import ARCHITECTURES, Architecture, PixelScaling
from pipeline.common import processor
from pipeline.common.errors import UserError
from pipeline.common.graphs import cache_folder
from pipeline.detectors import runtime
from pipeline.detectors.runtime import Runtime
from pipeline.photos.images import read_image, resize

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
NAMES = ("meso4", "mesoinception4")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def portraits() -> np.ndarray:
    """33 pictures of people, (33, 256, 256, 3) uint8."""
    files = [path for path in sorted(SAMPLES.glob("*.*")) if path.suffix in (".jpg", ".png")]
    pictures = [resize(read_image(path), 256, "area") for path in files]
    turned = [np.ascontiguousarray(np.rot90(picture, k)) for picture in pictures for k in range(8)]
    return np.stack([picture // (1 + i // 16) for i, picture in enumerate(turned)][:33])


@pytest.fixture(scope="module", params=NAMES)
def exported(request, tmp_path_factory):
    """A network with lively weights, and its graph: (Keras model, path, Architecture)."""
    from pipeline.keras_engine.export import export_graph
    from pipeline.keras_engine.training import keras

    architecture = ARCHITECTURES[request.param]
    keras.utils.set_random_seed(0)
    model = architecture.build()
    random = np.random.default_rng(0)
    for layer in model.layers:
        if "normalization" in layer.name:  # as after a training; fresh ones would do nothing
            layer.set_weights([random.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_graph(model, path)
    return model, path, architecture


def keras_logits(model, pixels: np.ndarray) -> np.ndarray:
    return np.asarray(model(pixels.astype(np.float32), training=False))[:, 0]


def weighted_sum(path: Path, layout: str) -> Path:
    """A graph whose logit is the sum over all pixels of R + 10 G + 100 B."""
    shape, spread = {
        "NHWC": ([None, 2, 2, 3], (1, 1, 1, 3)),
        "NCHW": ([None, 3, 2, 2], (1, 3, 1, 1)),
    }[layout]
    weights = np.array([1, 10, 100], np.float32).reshape(spread)
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["pixels", "weights"], ["weighted"]),
            helper.make_node("ReduceSum", ["weighted", "axes"], ["sum"], keepdims=0),
            helper.make_node("Unsqueeze", ["sum", "last"], ["logits"]),
        ],
        "weighted_sum",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, 1])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([1, 2, 3]), "axes"),
            numpy_helper.from_array(np.array([1]), "last"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("count", [1, 7, 33])
def test_the_graph_scales_pixels_as_training_did(exported, portraits, count):
    model, path, architecture = exported
    logits = Runtime(path, architecture).logits(portraits[:count])
    assert logits.shape == (count,)
    assert logits.dtype == np.float32
    expected = keras_logits(model, portraits[:count] / 255)
    np.testing.assert_allclose(logits, expected, atol=2e-4, rtol=2e-4)


def test_wrong_scaling_or_order_of_channels_would_be_noticed(exported, portraits):
    model, path, architecture = exported
    right = keras_logits(model, portraits / 255)
    assert np.ptp(right) > 0.05  # the network tells these pictures apart
    for wrong in (portraits, portraits / 127.5 - 1, portraits[..., ::-1] / 255):
        assert np.abs(keras_logits(model, wrong) - right).max() > 0.02
    unscaled = replace(architecture, scaling=PixelScaling((0, 0, 0), (1, 1, 1)))
    np.testing.assert_allclose(
        Runtime(path, unscaled).logits(portraits[:4]),
        keras_logits(model, portraits[:4]),
        rtol=1e-3,
        atol=1e-2,
    )


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_each_channel_has_its_own_scaling(tmp_path, layout):
    scaling = PixelScaling(mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 8.0))
    architecture = Architecture("tested", "", 2, scaling, layout)
    runtime = Runtime(weighted_sum(tmp_path / "model.onnx", layout), architecture)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 3), np.uint8)
    scaled = (pixels - np.array(scaling.mean)) / scaling.std
    expected = (scaled * [1, 10, 100]).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(runtime.logits(pixels), expected, rtol=1e-5)


def test_pictures_that_do_not_lie_side_by_side_in_memory(exported, portraits):
    _, path, architecture = exported
    runtime = Runtime(path, architecture)
    np.testing.assert_allclose(
        runtime.logits(portraits[::-3, :, ::-1]),
        runtime.logits(np.ascontiguousarray(portraits[::-3, :, ::-1])),
        atol=1e-5,
    )


def test_a_picture_scores_the_same_alone_and_among_others(exported, portraits):
    _, path, architecture = exported
    runtime = Runtime(path, architecture)
    together = runtime.logits(portraits[:9])
    alone = [runtime.logits(portraits[i : i + 1])[0] for i in range(9)]
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_a_second_start_uses_the_stored_graph_and_gives_the_same(exported, portraits):
    _, path, architecture = exported
    first = Runtime(path, architecture).logits(portraits[:2])
    assert any((cache_folder() / "graphs").iterdir())
    np.testing.assert_array_equal(Runtime(path, architecture).logits(portraits[:2]), first)


@pytest.mark.parametrize("rest", [0, 100])
def test_a_damaged_stored_graph_is_made_anew(exported, portraits, monkeypatch, tmp_path, rest):
    _, path, architecture = exported
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    expected = Runtime(path, architecture).logits(portraits[:2])
    [stored] = (cache_folder() / "graphs").iterdir()
    whole = stored.read_bytes()
    stored.write_bytes(whole[:rest])
    np.testing.assert_array_equal(Runtime(path, architecture).logits(portraits[:2]), expected)
    assert len(stored.read_bytes()) > 4096  # it holds a graph again


def test_a_stored_graph_with_wrong_bytes_is_made_anew(exported, portraits, monkeypatch, tmp_path):
    """As it lies on a failing disk: as long as before, and OpenVINO would take it."""
    _, path, architecture = exported
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    expected = Runtime(path, architecture).logits(portraits[:2])
    [stored] = (cache_folder() / "graphs").iterdir()
    whole = stored.read_bytes()
    for start in range(0, len(whole), len(whole) // 8):
        flipped = bytes(byte ^ 0xFF for byte in whole[start : start + 4096])
        stored.write_bytes(whole[:start] + flipped + whole[start + 4096 :])
        np.testing.assert_array_equal(Runtime(path, architecture).logits(portraits[:2]), expected)
        assert stored.read_bytes()[start : start + 4096] != flipped, start


def test_without_a_place_for_stored_graphs_it_runs_and_says_so(
    exported, portraits, monkeypatch, tmp_path, capsys
):
    _, path, architecture = exported
    expected = Runtime(path, architecture).logits(portraits[:2])
    (tmp_path / "deepfake-face-detection").touch()  # where the folder should be
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    np.testing.assert_array_equal(Runtime(path, architecture).logits(portraits[:2]), expected)
    assert "cannot be kept there" in capsys.readouterr().err


def test_a_graph_stored_for_another_network_is_not_taken(tmp_path):
    pixels = np.full((1, 2, 2, 3), 1, np.uint8)
    logits = []
    for layout in ("NHWC", "NCHW"):
        for std in (1.0, 2.0):
            architecture = Architecture("tested", "", 2, PixelScaling((0,) * 3, (std,) * 3), layout)
            graph = weighted_sum(tmp_path / f"{layout}.onnx", layout)
            logits.append(Runtime(graph, architecture).logits(pixels)[0])
    np.testing.assert_allclose(logits, [444, 222] * 2)


# An NVIDIA card, whether this machine has one or not


@pytest.fixture
def onnxruntime(monkeypatch, tmp_path):
    """Sets which of onnxruntime's packages is installed beside an NVIDIA card: a function of its
    source, or of None where there is none."""
    monkeypatch.setattr(processor, "NVIDIA_DRIVER", tmp_path / "nvidiactl")
    processor.NVIDIA_DRIVER.touch()
    runtime._say_once.cache_clear()

    def install(source: str | None) -> None:
        if source is None:
            monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
            monkeypatch.setitem(sys.modules, "onnxruntime", None)
            return
        (tmp_path / "packages").mkdir()
        (tmp_path / "packages" / "onnxruntime.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path / "packages")
        monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)

    yield install
    sys.modules.pop("onnxruntime", None)


FOR_CPUS = "def get_available_providers():\n    return ['CPUExecutionProvider']\n"
WITHOUT_LIBRARIES = """
def get_available_providers():
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]
class InferenceSession:
    def __init__(self, path, providers):
        pass
    def get_providers(self):
        return ["CPUExecutionProvider"]
"""
BROKEN_DRIVER = WITHOUT_LIBRARIES.replace("pass", "raise RuntimeError('CUDA failure 999')")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (FOR_CPUS, "onnxruntime-gpu"),
        (WITHOUT_LIBRARIES, "nvidia-smi"),
        (BROKEN_DRIVER, "CUDA failure 999"),
        (None, None),
    ],
    ids=["for CPUs", "without libraries", "broken driver", "none"],
)
def test_where_the_card_is_of_no_use_auto_takes_the_cpu_and_says_so(
    onnxruntime, source, said, tmp_path, capsys
):
    graph = weighted_sum(tmp_path / "model.onnx", "NHWC")
    architecture = Architecture("tested", "", 2, PixelScaling((0,) * 3, (1,) * 3), "NHWC")
    pixels = np.ones((1, 2, 2, 3), np.uint8)
    onnxruntime(source)
    for _ in range(2):  # for every detector, but said once
        assert Runtime(graph, architecture, "auto").logits(pixels) == [444]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(said)
    if said:
        assert said in lines[0] and "CPU" in lines[0]
    assert Runtime(graph, architecture, "cpu").logits(pixels) == [444]
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=f"--device cuda: .*{said or 'onnxruntime-gpu'}"):
        Runtime(graph, architecture, "cuda")


def test_without_a_card_auto_does_not_look_for_onnxruntime(onnxruntime, tmp_path, capsys):
    onnxruntime("raise SystemExit('imported')")
    processor.NVIDIA_DRIVER.unlink()
    graph = weighted_sum(tmp_path / "model.onnx", "NHWC")
    architecture = Architecture("tested", "", 2, PixelScaling((0,) * 3, (1,) * 3), "NHWC")
    Runtime(graph, architecture, "auto")
    assert capsys.readouterr().err == ""
