"""Runs a detector's exported graph: pixels in, logits out. Imports no training framework."""

import os
import sys
from pathlib import Path

import numpy as np
import openvino as ov

from models import Architecture
from pipeline.errors import UserError


class Runtime:
    """A compiled network; `logits` may be called from one thread at a time.

    Pixel scaling and the order of axes are compiled into the graph, from the same numbers that
    training used. Computes in 32-bit floats, on the CPU, with all its cores.
    """

    def __init__(self, graph: Path, architecture: Architecture, device: str = "auto"):
        if device == "cuda":
            raise UserError("--device cuda: scoring runs on the CPU only; use --device auto.")
        core = openvino_core()
        model = core.read_model(graph)
        steps = ov.preprocess.PrePostProcessor(model)
        steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
        steps.input().model().set_layout(ov.Layout(architecture.layout))
        scaling = steps.input().preprocess().convert_element_type(ov.Type.f32)
        scaling.mean(list(architecture.scaling.mean)).scale(list(architecture.scaling.std))
        self._network = _compile(core, steps.build())

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """(N, size, size, 3) uint8 RGB → (N,) float32 logits of fake."""
        return self._network([np.ascontiguousarray(pixels)])[0].reshape(len(pixels))


def openvino_core() -> ov.Core:
    """OpenVINO, made fit for several threads; to be called before they start."""
    # It fills a table of types on first use, where two threads at once would wait for ever.
    ov.Type.u8.to_dtype()
    return ov.Core()


def _compile(core: ov.Core, model: ov.Model) -> ov.CompiledModel:
    # Processors with bfloat16 would use it unasked; it moves Meso4's results by up to 0.39.
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    try:
        return core.compile_model(
            model, "CPU", settings | {"CACHE_DIR": str(cache_folder() / "graphs")}
        )
    except RuntimeError as error:  # no place for the cache, or a damaged file in it
        reason = str(error).strip().splitlines()[-1]
        print(f"Compiling without the cache of compiled graphs: {reason}", file=sys.stderr)
        return core.compile_model(model, "CPU", settings)


def cache_folder() -> Path:
    """Where what can be made again is kept for the next start: $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return Path(base or Path.home() / ".cache") / "deepfake-face-detection"
