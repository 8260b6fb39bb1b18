"""Which of Keras' backends trains here, and on which devices. Imports the one that is chosen.

One process: TensorFlow, unless torch sees a GPU and TensorFlow does not; then Keras runs on torch,
which is several times slower than TensorFlow on a CPU but not on a GPU. KERAS_BACKEND in the
environment decides otherwise. Several GPUs of one machine share each step by TensorFlow's
MirroredStrategy.

TensorFlow and torch are never both in one process: TensorFlow and triton, which torch imports,
bring an LLVM each, and Python crashes where TensorFlow's comes first. Where torch is loaded
already, Keras runs on it.

Several processes (torchrun, on one machine or many): torch, whose collectives average the
gradients. TensorFlow's MultiWorkerMirroredStrategy is no way: with Keras 3.15 and TensorFlow 2.21
`fit` fails before its first step, where Keras looks at a batch to build the network ("Attempt to
convert a value (PerReplica…)"), and past that where it adds up the metrics of the workers.
"""

import contextlib
import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.files import quiet_stderr
from pipeline.common.machine import usable_cores
from pipeline.common.processor import has_nvidia_card
from pipeline.feeding.engine import world_size

# oneDNN's kernels train Meso4 three times as fast on CPUs where TensorFlow leaves them off.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Without it the same seed does not give the same weights on a GPU; read when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def choose(device: str = "auto") -> None:
    """Import Keras, on the backend that `use(device)` will want.

    Keras cannot change its backend later: once it is imported, this does nothing. Raises UserError
    for a backend that cannot train here.
    """
    if "keras" in sys.modules:
        return
    backend = os.environ.get("KERAS_BACKEND")
    if not backend:
        needs_torch = world_size() > 1 or "torch" in sys.modules
        on_gpu = not needs_torch and device != "cpu" and _only_torch_sees_a_gpu()
        backend = "torch" if needs_torch or on_gpu else "tensorflow"
    if backend not in ("tensorflow", "torch"):
        raise UserError(f"KERAS_BACKEND={backend}: networks are trained on tensorflow or torch.")
    if backend == "tensorflow" and world_size() > 1:
        raise UserError(
            "KERAS_BACKEND=tensorflow: several processes train Keras networks on torch only; leave "
            "KERAS_BACKEND unset, or start one process for all GPUs of this machine."
        )
    _import_keras(backend)


def choose_torch() -> None:
    """Import Keras on torch, whatever the environment says: for what explains or imports networks
    of both frameworks in one process. Computes on the CPU.

    Raises RuntimeError where Keras runs on TensorFlow already, as in a process that trains.
    """
    if "keras" not in sys.modules:
        _import_keras("torch")
    if _backend() != "torch":
        raise RuntimeError("Keras runs on TensorFlow in this process, which keeps torch out of it.")
    _use_torch("cpu")


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep the framework that Keras does not run on out of what is imported in this block: of
    libraries that take any framework they find."""
    other = {"tensorflow": "torch", "torch": "tensorflow"}[_backend()]
    spared = other not in sys.modules
    if spared:
        sys.modules[other] = None
    try:
        yield
    finally:
        if spared:
            del sys.modules[other]


def use(device: str = "auto") -> str:
    """Compute on `device` ("auto", "cpu" or "cuda") from now on, and say where that is.

    GPU memory is taken as needed, not whole. Raises UserError for "cuda" without a GPU.
    """
    if _backend() == "tensorflow":
        return _use_tensorflow(device)
    where = _use_torch(device)
    return where if world_size() == 1 else f"{world_size()} processes, each on {where}"


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
    if _backend() == "tensorflow":
        _tensorflow().config.experimental.enable_op_determinism()
    else:
        import torch

        torch.use_deterministic_algorithms(True, warn_only=True)


def seed(number: int) -> None:
    """Start anew the sources from which Keras draws the seeds of its layers and torch dropout."""
    # keras.utils.set_random_seed would import TensorFlow on any backend, for a source of its own
    # that Keras never uses.
    random.seed(number)
    if _backend() == "torch":
        import torch

        torch.manual_seed(number)


def compute_exactly() -> None:
    """Leave the 10-bit multiplications that GPUs take for 32-bit ones: they move results by more
    than an exported graph may differ."""
    if _backend() == "tensorflow":
        _tensorflow().config.experimental.enable_tensor_float_32_execution(False)
    else:
        import torch

        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def average_gradients(model) -> None:
    """Let all processes that train together take the mean of their gradients in every step."""
    if world_size() == 1:
        return
    import torch.distributed

    def average(parameter):
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= world_size()

    for variable in model.trainable_variables:
        variable.value.register_post_accumulate_grad_hook(average)


def average(variables: Iterable) -> None:
    """Give each of these Keras variables, in all processes, the mean of what they hold in each."""
    if world_size() == 1:
        return
    import torch.distributed

    for variable in variables:
        torch.distributed.all_reduce(variable.value.data)
        variable.value.data /= world_size()


def broadcast_from_rank0(variables: Iterable) -> None:
    """Give each of these Keras variables, in all processes, what it holds in the first."""
    if world_size() == 1:
        return
    import torch.distributed

    for variable in variables:
        torch.distributed.broadcast(variable.value.data, src=0)


def broadcast_object_from_rank0(value: Any) -> Any:
    """What the first process calls this with."""
    if world_size() == 1:
        return value
    import torch.distributed

    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def _import_keras(backend: str) -> None:
    if backend == "tensorflow":
        _tensorflow()  # before Keras imports it, and lets it talk
    before = os.environ.get("KERAS_BACKEND")
    os.environ["KERAS_BACKEND"] = backend
    try:
        import keras  # noqa: F401
    finally:  # what this process starts chooses for itself
        if before is None:
            del os.environ["KERAS_BACKEND"]
        else:
            os.environ["KERAS_BACKEND"] = before


def _backend() -> str:
    import keras

    return keras.backend.backend()


@cache
def _strategy():
    """TensorFlow's way to train on several devices of one machine; None where there is but one."""
    if _backend() != "tensorflow":
        return None
    tf = _tensorflow()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        return None
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def _use_tensorflow(device: str) -> str:
    tf = _tensorflow()
    gpus = tf.config.list_physical_devices("GPU")
    if device == "cuda" and not gpus:
        raise UserError(
            "--device cuda: neither TensorFlow nor torch sees a GPU here; install "
            "tensorflow[and-cuda] on a machine with an NVIDIA GPU, or leave --device at auto."
        )
    if device == "cpu" or not gpus:
        tf.config.set_visible_devices([], "GPU")
        count = len(tf.config.list_logical_devices("CPU"))
        split = f" as {count} devices" if count > 1 else ""
        return f"CPU ({usable_cores()} cores{split})"
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "CUDA")
    return f"{len(gpus)} × GPU ({name})" if len(gpus) > 1 else f"GPU ({name})"


def _use_torch(device: str) -> str:
    import torch
    from keras.src.backend.torch import core

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: torch, on which Keras runs here, sees no NVIDIA GPU; leave --device at "
            "auto."
        )
    if device == "cpu":
        core.DEFAULT_DEVICE = "cpu"
    on_cuda = core.DEFAULT_DEVICE.startswith("cuda")
    if world_size() > 1 and not torch.distributed.is_initialized():
        if on_cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
    if on_cuda:
        return f"GPU ({torch.cuda.get_device_name()}), Keras on torch"
    if core.DEFAULT_DEVICE.startswith("mps"):
        return "Apple GPU, Keras on torch"
    return f"CPU ({usable_cores()} cores), Keras on torch"


def _only_torch_sees_a_gpu() -> bool:
    # Asking takes seconds: not without a sign that there may be a GPU.
    if not (sys.platform == "darwin" or has_nvidia_card()):
        return False
    if importlib.util.find_spec("torch") is None:
        return False
    seen_by_torch = "torch.cuda.is_available() or torch.backends.mps.is_available()"
    seen_by_tensorflow = "bool(tensorflow.config.list_physical_devices('GPU'))"
    return _is_true("torch", seen_by_torch) and not _is_true("tensorflow", seen_by_tensorflow)


def _is_true(framework: str, expression: str) -> bool:
    """What a framework says, in a process of its own: this one is to have one of them."""
    ask = f"import sys, {framework}; sys.exit(not ({expression}))"
    environment = {**os.environ, "KERAS_BACKEND": framework}  # TensorFlow imports Keras
    done = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True)
    return done.returncode == 0


def _tensorflow():
    if "torch" in sys.modules:
        raise RuntimeError("This process has torch, which keeps TensorFlow out of it.")
    with quiet_stderr():  # TensorFlow tells at length which devices it has not found
        import tensorflow as tf

        tf.config.list_physical_devices()
    return tf
