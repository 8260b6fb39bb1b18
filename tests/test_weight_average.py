"""Averaging the weights of detectors: the numbers, the folder that is written, what is refused."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from pipeline.common.errors import UserError
from pipeline.detectors.detector import change_detector, load_detector
from pipeline.detectors.runtime import Runtime
from pipeline.torch_engine.export import export_graph
from pipeline.torch_engine.weights import read_weights
from pipeline.training import weight_average
from pipeline.training.finishing import predict
from tests.conftest import REPOSITORY
from tests.test_precision import copy_of
from tests.tiny_dataset import make_dataset

LITE = REPOSITORY / "weights" / "efficientnet_lite0"
HEAD = "classifier.weight"

pytestmark = pytest.mark.usefixtures("own_cache")


def lite_whose_head_is(scale, folder):
    """The shipped EfficientNet-Lite0 with its head ``scale`` times as large: weights and graph.

    As training writes it: the shipped one keeps its weights in the graph.
    """
    copy_of(LITE, folder)
    detector = load_detector(folder)
    weights, _ = read_weights(folder, detector.architecture)
    with change_detector(detector) as (new, description):
        description.pop("weights_in")
        save_file(weights | {HEAD: scale * weights[HEAD]}, new / "model.safetensors")
        network = detector.architecture.build()
        network.load_state_dict(load_file(new / "model.safetensors"))
        export_graph(network.eval(), 224, new / "model.onnx")
        description["training"] |= {"date": f"{2030 + scale}-01-02"}
    return folder


@pytest.fixture
def one(tmp_path):
    return lite_whose_head_is(1, tmp_path / "one")


@pytest.fixture
def other(tmp_path):
    """The same, as if trained on."""
    return lite_whose_head_is(3, tmp_path / "other")


@pytest.mark.slow
def test_weights_are_averaged_by_their_shares(one, other):
    before = load_file(one / "model.safetensors")
    both = weight_average.averaged([load_detector(one), load_detector(other)], [1, 3])
    assert both.keys() == before.keys()
    np.testing.assert_allclose(both[HEAD], 2.5 * before[HEAD], rtol=1e-6)
    for name in before.keys() - {HEAD}:
        np.testing.assert_array_equal(both[name], before[name])


@pytest.mark.slow
def test_the_average_is_a_detector_of_its_own(one, other, tmp_path, capsys):
    data = make_dataset(tmp_path / "data", train=4, validate=8)
    output = tmp_path / "weights" / "both"
    arguments = [str(one), str(other), "--data", str(data), "--output", str(output)]
    assert weight_average.main([*arguments, "--threshold-rule", "0.6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines[-3:]] == [str(one), str(other), str(output)]

    detector = load_detector(output)
    assert detector.name == "both" and detector.calibration.threshold == 0.6
    training = detector.description["training"]
    assert [(part["share"], part["date"]) for part in training["averaged"]] == [
        (0.5, "2031-01-02"),
        (0.5, "2033-01-02"),
    ]
    assert "50% efficientnet_lite0 of 2031-01-02" in (output / "README.md").read_text()
    assert training["fingerprint"] == load_detector(LITE).description["training"]["fingerprint"]

    samples = weight_average.load_dataset(data).validate
    before, after, both = (
        predict(Runtime(each.graph, each.architecture).logits, samples, each.architecture, "area")
        for each in (load_detector(one), load_detector(other), detector)
    )
    np.testing.assert_allclose(both, (before + after) / 2, atol=1e-3)  # the head is linear


def test_what_cannot_be_averaged_is_refused(tmp_path):
    meso = REPOSITORY / "weights" / "meso4"
    elsewhere = copy_of(LITE, tmp_path / "elsewhere")
    description = json.loads((elsewhere / "detector.json").read_text())
    description["training"]["fingerprint"] = "of other faces"
    (elsewhere / "detector.json").write_text(json.dumps(description))
    output = ["--output", str(tmp_path / "out"), "--data", str(tmp_path)]
    with pytest.raises(UserError, match="only torch networks"):
        weight_average.main([str(meso), str(meso), *output])
    with pytest.raises(UserError, match="training data"):
        weight_average.main([str(LITE), str(elsewhere), *output])
    for arguments in ([str(LITE)], [str(LITE), str(LITE), "--shares", "1"]):
        with pytest.raises(SystemExit) as stopped:
            weight_average.main([*arguments, *output])
        assert stopped.value.code == 2
    assert not (tmp_path / "out").exists()
