"""Graphs of networks, compiled by OpenVINO for this CPU once and kept for the next start."""

import contextlib
import functools
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.common.files import atomic_write, sha256_of
from pipeline.common.machine import spare_threads
from pipeline.common.out_of_memory import LEAST_TO_SCORE, require_memory

# OpenVINO's converter for other frameworks, which scoring never calls, takes two thirds of the
# import and reports it to its makers. OpenVINO does without where it cannot be imported.
_CONVERTER = "openvino.tools.ovc"
_spared = "openvino" not in sys.modules and _CONVERTER not in sys.modules
if _spared:
    sys.modules[_CONVERTER] = None
import openvino as ov  # noqa: E402

if _spared:
    del sys.modules[_CONVERTER]  # whoever asks for it from here on gets it


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
