"""Runs a detector's exported graph: pixels in, logits out. Imports no training framework."""

import contextlib
import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from models import Architecture
from pipeline.detector import GRAPH, INT8_GRAPH, Detector
from pipeline.errors import UserError
from pipeline.files import atomic_write, sha256_of
from pipeline.machine import spare_threads
from pipeline.out_of_memory import LEAST_TO_SCORE, require_memory
from pipeline.processor import has_bf16, has_nvidia_card

# OpenVINO's converter for other frameworks, which scoring never calls, takes two thirds of the
# import and reports it to its makers. OpenVINO does without where it cannot be imported.
_CONVERTER = "openvino.tools.ovc"
_spared = "openvino" not in sys.modules and _CONVERTER not in sys.modules
if _spared:
    sys.modules[_CONVERTER] = None
import openvino as ov  # noqa: E402

if _spared:
    del sys.modules[_CONVERTER]  # whoever asks for it from here on gets it


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
    computes on the CPU. `checksum` is the graph's SHA-256 where the caller knows it. Raises
    UserError where "cuda" is not to be had.
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

        settings = {"INFERENCE_PRECISION_HINT": PRECISIONS[precision][1]}
        prepared_as = f"{architecture.layout} {architecture.scaling}"
        self._network = compiled_graph(graph, prepare, prepared_as, settings, checksum)

    @classmethod
    def of(cls, detector: Detector, device: str = "auto") -> "Runtime":
        """The runtime of a detector: in the fastest of the precisions that were found to change
        nothing (see precision.py) that this processor has, and in fp32 where none was looked for.

        Says on standard error where it is not the first. Raises UserError where the detector names
        a precision that is not known here.
        """
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


def is_available(precision: str) -> bool:
    """Whether this processor can compute in one of the `PRECISIONS`; of bf16 see `has_bf16`."""
    if precision == "fp32":
        return True

    def openvino_can() -> bool:
        capabilities = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return PRECISIONS[precision][0] in capabilities

    return has_bf16(openvino_can) if precision == "bf16" else openvino_can()


# What a damaged network or memory makes of a picture is no number, and must not pass for "no face".
NOT_FINITE = (
    "{} computed no number for it: the network or the memory is damaged; delete the folder "
    "deepfake-face-detection in the cache folder of your account and score it again"
)

# What a damaged network or memory makes of a picture is no number, and must not pass for "no face".
NOT_FINITE = (
    "{} computed no number for it: the network or the memory is damaged; delete the folder "
    "deepfake-face-detection in the cache folder of your account and score it again"
)

# Networks go on reading the files that they come from, so these stay mapped: that holds addresses
# rather than memory.
_MAPPED: list[np.ndarray] = []


@functools.cache
def openvino_core() -> ov.Core:
    """OpenVINO, made fit for several threads; to be called before they start. Raises UserError
    where `ulimit -v` leaves it too little memory."""
    require_memory("scoring", LEAST_TO_SCORE)
    # It fills a table of types on first use, where two threads at once would wait for ever.
    ov.Type.u8.to_dtype()
    return ov.Core()


def compiled_graph(
    graph: Path,
    prepare: Callable[[ov.Model], ov.Model],
    prepared_as: str,
    settings: dict[str, str],
    checksum: str | None = None,
) -> ov.CompiledModel:
    """The graph in a file, prepared and compiled for this CPU, or what an earlier call made of it.

    It is kept in the user's cache under the graph's SHA-256 (`checksum`, worked out unless given),
    `prepared_as` (what `prepare` does, in words or numbers), the settings, OpenVINO's version and
    the processor: where one of them is another, it is made anew. So it is where the kept file is
    damaged, for OpenVINO would take it and compute nonsense. Own files rather than OpenVINO's
    cache, which reads and prepares the graph first, only to find that it knows it.
    """
    core = openvino_core()
    if threads := spare_threads():
        settings = settings | {"INFERENCE_NUM_THREADS": str(threads)}
    processor = [
        core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")
    ]
    circumstances = repr(
        (checksum or sha256_of(graph), prepared_as, settings, ov.__version__, processor)
    )
    name = hashlib.sha256(circumstances.encode()).hexdigest()
    kept = cache_folder() / "graphs" / f"{name}.blob"
    whole = _mapped_if_whole(kept)
    if whole is not None:
        with contextlib.suppress(RuntimeError):  # another build of the same version wrote it
            compiled = core.import_model(ov.Tensor(whole, shared_memory=True), "CPU", settings)
            _MAPPED.append(whole)
            return compiled
    compiled = core.compile_model(prepare(core.read_model(graph)), "CPU", settings)
    try:
        exported = compiled.export_model().getbuffer()
        with atomic_write(kept, "wb") as file:
            file.write(exported)
            file.write(hashlib.sha256(exported).digest())
    except OSError as error:
        print(
            f"{kept.parent}: the compiled network cannot be kept there ({error.strerror}), so each "
            "start takes longer; set XDG_CACHE_HOME to a folder that can be written.",
            file=sys.stderr,
        )
    return compiled


def _mapped_if_whole(kept: Path) -> np.ndarray | None:
    """The compiled graph in a kept file, (N,) uint8; None where there is none or it is damaged.

    Its SHA-256 are the file's last bytes. Mapped, for weights of hundreds of megabytes take long to
    copy.
    """
    try:
        mapped = np.memmap(kept, np.uint8, "c")
    except (OSError, ValueError):  # none yet, or an empty one
        return None
    length = hashlib.sha256().digest_size
    graph, checksum = mapped[:-length], mapped[-length:]
    return graph if hashlib.sha256(graph).digest() == checksum.tobytes() else None


def cache_folder() -> Path:
    """Where what can be made again is kept for the next start: $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return Path(base or Path.home() / ".cache") / "deepfake-face-detection"


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
