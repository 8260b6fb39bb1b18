"""Measurements that want a process of their own; each prints one JSON object.

What follows python benchmarks/probes.py:

    random-detector NETWORK DIR      write a detector folder
    operations DETECTOR              GFLOP a picture
    network-alone DETECTOR           pictures/s, nothing but the network
    stages DETECTOR PICTURES MODE    CPU ms a photo of each stage; MODE is auto or none (no faces)
    matrix-peak TYPE                 GFLOP/s of a large matrix product in float32 or bfloat16
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from models import ARCHITECTURES


def random_detector(network: str, folder: str) -> dict:
    """A detector whose weights are random, which takes as long as a trained one."""
    from pipeline.detectors.detector import GRAPH, describe_input, write_detector

    architecture = ARCHITECTURES[network]
    description = {
        "name": network,
        "architecture": network,
        "input": describe_input(architecture, "area"),
        "face": {"mode": "auto", "margin": 1.3},
        "calibration": {"temperature": 1, "threshold": 0.5, "uncertain_from": 0.5, "rule": "0.5"},
    }
    with write_detector(Path(folder), description) as new:
        if architecture.framework == "keras":
            from pipeline.keras_engine.export import export_graph

            export_graph(architecture.build(), new / GRAPH)
        else:
            from pipeline.torch_engine.export import export_graph

            export_graph(architecture.build(), architecture.input_size, new / GRAPH)
    return {"detector": folder}


def operations(detector: str) -> dict:
    from pipeline.detectors.detector import load_detector

    return {"gflop": _gflop(load_detector(Path(detector)).graph)}


def network_alone(detector: str) -> dict:
    from pipeline.detectors.detector import load_detector
    from pipeline.detectors.runtime import Runtime

    loaded = load_detector(Path(detector))
    runtime, side = Runtime.of(loaded, "cpu"), loaded.architecture.input_size
    pixels = np.zeros((16, side, side, 3), np.uint8)
    runtime.logits(pixels)
    return {"pictures_per_second": 16 / min(_seconds(runtime.logits, pixels) for _ in range(4))}


def stages(detector: str, pictures: str, face_mode: str) -> dict:
    """One photo after the other; time of all cores, in ms a photo."""
    from pipeline.detectors.detector import load_detector
    from pipeline.detectors.runtime import Runtime
    from pipeline.photos.faces import FaceFinder
    from pipeline.photos.images import read_image

    loaded = load_detector(Path(detector))
    runtime, finder = Runtime.of(loaded, "cpu"), FaceFinder()
    side = loaded.architecture.input_size
    face = np.zeros((1, side, side, 3), np.uint8)
    paths = sorted(Path(pictures).iterdir())
    spent = {"decoding": 0.0, "face search": 0.0, "network": 0.0}
    for number, path in enumerate([paths[0], *paths]):
        start = time.process_time()
        image = read_image(path)
        decoded = time.process_time()
        if face_mode != "none":
            finder.find(image)
        found = time.process_time()
        runtime.logits(face)
        end = time.process_time()
        if number:  # the first one is to warm up
            for stage, seconds in zip(
                spent, (decoded - start, found - decoded, end - found), strict=True
            ):
                spent[stage] += 1000 * seconds / len(paths)
    return spent


def matrix_peak(kind: str) -> dict:
    import torch

    a, b = (torch.ones(1536, 1536, dtype=getattr(torch, kind)) for _ in range(2))
    return {"gflops": 2 * 1536**3 / min(_seconds(torch.matmul, a, b) for _ in range(6)) / 1e9}


def _seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def _gflop(graph: Path) -> float:
    """Billions of floating point operations for one picture; a multiply-add is two."""
    from pipeline.common.graphs import openvino_core

    model = openvino_core().read_model(graph)
    model.reshape([1, *[int(str(side)) for side in list(model.input().partial_shape)[1:]]])
    operations = 0
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind not in ("Convolution", "GroupConvolution", "MatMul"):
            continue
        first, second = (node.input(port).get_shape() for port in range(2))
        if kind == "MatMul":
            terms = first[-2] if node.get_attributes()["transpose_a"] else first[-1]
        else:  # filters are (out, in, height, width), after the groups where there are any
            terms = np.prod(second[2 if kind == "GroupConvolution" else 1 :])
        operations += 2 * int(np.prod(node.output(0).get_shape())) * int(terms)
    return operations / 1e9


PROBES = {
    "random-detector": random_detector,
    "operations": operations,
    "network-alone": network_alone,
    "stages": stages,
    "matrix-peak": matrix_peak,
}

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    print(json.dumps(PROBES[name](*arguments)))
