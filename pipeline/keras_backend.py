"""Which of Keras' backends trains here, and on which devices. Imports the one that is chosen.

TensorFlow, unless torch sees a GPU and TensorFlow does not: then Keras runs on torch, which is
several times slower than TensorFlow on a CPU but not on a GPU. KERAS_BACKEND in the environment
decides otherwise.
"""

import contextlib
import importlib.util
import os
import sys
from functools import cache
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import quiet_stderr

# oneDNN's kernels train Meso4 three times as fast on CPUs where TensorFlow leaves them off.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def choose(device: str = "auto") -> str:
    """Set Keras to the backend for `device` ("auto", "cpu" or "cuda") and say where it computes.

    GPU memory is taken as needed, not whole. Raises UserError for "cuda" without a GPU. Only the
    first call chooses the backend: Keras cannot change it later.
    """
    if "keras" not in sys.modules:
        backend = os.environ.get("KERAS_BACKEND")
        if not backend:
            several = world() > 1
            gpu = device != "cpu" and _only_torch_sees_a_gpu()
            backend = "torch" if several or gpu else "tensorflow"
        os.environ["KERAS_BACKEND"] = backend
    import keras

    return (_choose_torch if keras.backend.backend() == "torch" else _choose_tensorflow)(device)


def rank() -> int:
    """Which of the processes that train together this is; 0 is the one that writes."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes train together (torchrun says so)."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_devices() -> int:
    """How many devices of this machine share a step of this process."""
    strategy = _strategy()
    return strategy.num_replicas_in_sync if strategy else 1


def scope() -> contextlib.AbstractContextManager:
    """Where to build and compile a network that all of this machine's devices train."""
    strategy = _strategy()
    return strategy.scope() if strategy else contextlib.nullcontext()


def make_deterministic() -> None:
    """Let the same seed give the same weights."""
    import keras

    if keras.backend.backend() == "tensorflow":
        _tensorflow().config.experimental.enable_op_determinism()


def average_gradients(model) -> None:
    """Let all processes that train together take the mean of their gradients in every step."""
    if world() == 1:
        return
    import torch.distributed

    def average(parameter):
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= world()

    for variable in model.trainable_variables:
        variable.value.register_post_accumulate_grad_hook(average)


@cache
def _strategy():
    """TensorFlow's way to train on several devices of one machine; None where there is but one."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return None
    tf = _tensorflow()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        return None
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def _choose_tensorflow(device: str) -> str:
    tf = _tensorflow()
    gpus = tf.config.list_physical_devices("GPU")
    if device == "cuda" and not gpus:
        raise UserError(
            "--device cuda: neither TensorFlow nor torch sees a GPU here; install "
            "tensorflow[and-cuda] on a machine with an NVIDIA GPU, or leave --device at auto"
        )
    if device == "cpu" or not gpus:
        tf.config.set_visible_devices([], "GPU")
        count = len(tf.config.list_logical_devices("CPU"))
        split = f" as {count} devices" if count > 1 else ""
        return f"CPU ({os.cpu_count()} cores{split})"
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "CUDA")
    return f"{len(gpus)} × GPU ({name})" if len(gpus) > 1 else f"GPU ({name})"


def _choose_torch(device: str) -> str:
    import torch
    from keras.src.backend.torch import core

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: torch, on which Keras runs here, sees no NVIDIA GPU; leave --device at "
            "auto"
        )
    if device == "cpu":
        core.DEFAULT_DEVICE = "cpu"
    if core.DEFAULT_DEVICE.startswith("cuda"):
        return f"GPU ({torch.cuda.get_device_name()}), Keras on torch"
    if core.DEFAULT_DEVICE.startswith("mps"):
        return "Apple GPU, Keras on torch"
    return f"CPU ({os.cpu_count()} cores), Keras on torch"


def _only_torch_sees_a_gpu() -> bool:
    # Importing torch takes seconds: not without a sign that there may be a GPU.
    if not (sys.platform == "darwin" or Path("/dev/nvidiactl").exists()):
        return False
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    with contextlib.suppress(ImportError):
        import triton  # noqa: F401 - it and TensorFlow bring an LLVM each; this order they bear

    seen = torch.cuda.is_available() or torch.backends.mps.is_available()
    return seen and not _tensorflow().config.list_physical_devices("GPU")


def _tensorflow():
    with quiet_stderr():  # TensorFlow tells at length which devices it has not found
        import tensorflow as tf

        tf.config.list_physical_devices()
    return tf
