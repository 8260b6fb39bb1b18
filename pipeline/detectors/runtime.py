"""Runs a detector's exported graph: pixels in, logits out. Imports no training framework."""

import functools
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models import Architecture
from pipeline.common.errors import UserError
from pipeline.common.graphs import compiled_graph, openvino_core, ov
from pipeline.common.processor import has_bf16, has_nvidia_card
from pipeline.detectors.detector import GRAPH, INT8_GRAPH, Detector

# The precisions that a detector may score in: what the processor must be able to do, the hint that
# OpenVINO takes, and the graph in the detector folder. Without a hint, processors with bfloat16
# would use it unasked; it moves Meso4's results by up to 0.39.
PRECISIONS = {
    "fp32": ("FP32", "f32", GRAPH),
    "bf16": ("BF16", "bf16", GRAPH),
    "int8": ("INT8", "f32", INT8_GRAPH[0]),
}


class Runtime:
    """A compiled network; `logits` may be called from one thread at a time.

    Pixel scaling and the order of axes are compiled into the graph, from the same numbers that
    training used. Computes on the CPU, with all its cores, in one of the `PRECISIONS`; or in 32-bit
    floats on an NVIDIA card, where `device` is "cuda", or "auto" and there are a card and
    onnxruntime. Where "auto" finds the card of no use it says why, once, on standard error, and
    computes on the CPU. `precisions` is what it computes in, as a list of one. `checksum` is the
    graph's SHA-256 where the caller knows it. Raises UserError where "cuda" is not to be had.
    """

    def __init__(
        self,
        graph: Path,
        architecture: Architecture,
        device: str = "auto",
        precision: str = "fp32",
        checksum: str | None = None,
    ):
        session = _session_on_card(graph, device)
        self.precisions = ["fp32 on an NVIDIA card" if session else precision]
        if session:
            self.logits = functools.partial(_cuda_logits, session, architecture)
            return

        def prepare(model: ov.Model) -> ov.Model:
            steps = ov.preprocess.PrePostProcessor(model)
            steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
            steps.input().model().set_layout(ov.Layout(architecture.layout))
            scaling = steps.input().preprocess().convert_element_type(ov.Type.f32)
            scaling.mean(list(architecture.scaling.mean)).scale(list(architecture.scaling.std))
            return steps.build()

        settings = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision][1],
            # Where weights have 8 bits, OpenVINO would round the activations, too, unasked.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        }
        prepared_as = f"{architecture.layout} {architecture.scaling}"
        self._network = compiled_graph(graph, prepare, prepared_as, settings, checksum)

    @classmethod
    def of(cls, detector: Detector, device: str = "auto") -> "Runtime | _Mean":
        """The runtime of a detector: in the fastest of the precisions that were found to change
        nothing (see precision.py) that this processor has, and in fp32 where none was looked for.

        Says on standard error where it is not the first. Raises UserError where the detector names
        a precision that is not known here.
        """
        if detector.members:
            return _Mean(detector.members, device)
        order = [*detector.description.get("precision", {}).get("order", []), "fp32"]
        for precision in order:
            if precision not in PRECISIONS:
                raise UserError(
                    f"{detector.folder}: its precision {precision!r} is unknown here: update the "
                    "program, or train the detector again."
                )
        chosen = next(precision for precision in order if is_available(precision))
        if chosen != order[0]:
            print(
                f"{detector.name}: this processor has no {order[0]}: scoring in {chosen}.",
                file=sys.stderr,
            )
        name = PRECISIONS[chosen][2]
        checksum = detector.description["files"][name]
        return cls(detector.folder / name, detector.architecture, device, chosen, checksum)

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """(N, size, size, 3) uint8 RGB → (N,) float32 logits of fake."""
        return self._network([np.ascontiguousarray(pixels)])[0].reshape(len(pixels))


class _Mean:
    """Several compiled networks as one: the mean of their calibrated logits."""

    def __init__(self, detectors: Sequence[Detector], device: str):
        self._parts = [
            (Runtime.of(detector, device), detector.calibration.temperature)
            for detector in detectors
        ]
        self.precisions = [each for runtime, _ in self._parts for each in runtime.precisions]

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """As Runtime's."""
        each = [runtime.logits(pixels) / temperature for runtime, temperature in self._parts]
        return np.mean(each, axis=0, dtype=np.float32)


def is_available(precision: str) -> bool:
    """Whether this processor can compute in one of the `PRECISIONS`; of bf16 see `has_bf16`."""
    if precision == "fp32":
        return True

    def openvino_can() -> bool:
        capabilities = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return PRECISIONS[precision][0] in capabilities

    return has_bf16(openvino_can) if precision == "bf16" else openvino_can()


def _session_on_card(graph: Path, device: str):
    """An onnxruntime session on the NVIDIA card; None where the CPU is to compute."""
    installed = importlib.util.find_spec("onnxruntime") is not None
    if device == "cuda" or (device == "auto" and installed and has_nvidia_card()):
        try:
            return _cuda_session(graph)
        except UserError as error:
            if device == "cuda":
                raise UserError(f"--device cuda: {error}, or use --device cpu.") from error
            _say_once(f"The NVIDIA card is not used, but the CPU: {error}.")
    return None


@functools.cache
def _say_once(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _cuda_session(graph: Path):
    """Raises UserError with a reason and what to do, which is no whole sentence yet."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError("this needs one package more: pip install onnxruntime-gpu") from None
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise UserError(
            "the onnxruntime installed here computes on CPUs only: pip uninstall onnxruntime, and "
            "pip install onnxruntime-gpu"
        )
    # Without use_tf32=0 a card would round to 10 bits unasked. Faces are found on the CPU.
    wanted = [("CUDAExecutionProvider", {"use_tf32": "0"})]
    try:
        session = onnxruntime.InferenceSession(str(graph), providers=wanted)
        if session.get_providers()[0] == "CUDAExecutionProvider":  # it goes to the CPU unasked
            return session
        reason = "it says no more"
    except Exception as error:  # its kinds of errors have no other base
        reason = next(iter(str(error).splitlines()), type(error).__name__)
    raise UserError(
        f"onnxruntime-gpu finds no usable card here ({reason}): check the card with nvidia-smi, "
        "and that the CUDA libraries are installed which its documentation names"
    )


def _cuda_logits(session, architecture: Architecture, pixels: np.ndarray) -> np.ndarray:
    scaled = architecture.scaling(pixels)
    if architecture.layout == "NCHW":
        scaled = np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
    [logits] = session.run(None, {session.get_inputs()[0].name: scaled})
    return logits.reshape(len(pixels))
