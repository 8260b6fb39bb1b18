"""Detector folders made in a moment, whose fake_probability can be worked out by hand."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models import ARCHITECTURES
from pipeline.detectors.detector import GRAPH, describe_input, write_detector

REPOSITORY = Path(__file__).resolve().parent.parent


def make_detector(
    folder: Path,
    architecture: str,
    gain: float = 1.0,
    offset: float = 0.0,
    size: int | None = None,
    resize_filter: str = "area",
    face_mode: str = "auto",
    margin: float = 1.3,
    temperature: float = 1.0,
    threshold: float = 0.5,
    uncertain_from: float = 0.5,
) -> Path:
    """Write a detector named after `folder` that passes for one of `architecture`; its path.

    Its logit is gain · mean + offset, of all numbers that the architecture's pixel scaling makes of
    a face resized to `size` (default: the architecture's own).
    """
    described = ARCHITECTURES[architecture]
    described = replace(described, input_size=size or described.input_size)
    description = {
        "name": folder.name,
        "architecture": architecture,
        "input": describe_input(described, resize_filter),
        "face": {"mode": face_mode, "margin": margin},
        "calibration": {
            "temperature": temperature,
            "threshold": threshold,
            "uncertain_from": uncertain_from,
            "rule": str(threshold),
        },
        "metrics": {},
        "training": {},
    }
    with write_detector(folder, description) as new:
        onnx.save(_graph(described.input_size, described.layout, gain, offset), new / GRAPH)
    return folder


def clone_without_weights(folder: Path) -> Path:
    """A copy of the scripts and what they need in `folder`, as it is before any weights are got."""
    folder.mkdir()
    for package in ("pipeline", "models", "templates"):
        shutil.copytree(REPOSITORY / package, folder / package)
    for script in REPOSITORY.glob("*.py"):
        shutil.copy(script, folder)
    return folder


def _graph(size: int, layout: str, gain: float, offset: float) -> onnx.ModelProto:
    shape = {"NHWC": [None, size, size, 3], "NCHW": [None, 3, size, size]}[layout]
    constants = {
        "axes": np.array([1, 2, 3]),
        "gain": np.float32(gain),
        "offset": np.float32(offset),
        "last": np.array([1]),
    }
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "gain"], ["multiplied"]),
            helper.make_node("Add", ["multiplied", "offset"], ["sum"]),
            helper.make_node("Unsqueeze", ["sum", "last"], ["logits"]),
        ],
        "mean",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    return model
