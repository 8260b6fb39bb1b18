"""NVIDIA's published StyleGAN3 networks, read without running anything that is in them.

A pickle is a program: loaded the usual way it may call whatever it names, and NVIDIA's files even
bring Python source along that is then executed. Here the program is only followed: each name stays
a name, each call a note of what was to be called with what, and anything beyond the containers,
numbers and tensors that a network consists of is refused. What a hostile file costs grows with its
size and no faster: nothing that it may name again and again is copied or walked through each time.

The layout: a dictionary with the networks G, D and G_ema. A network is a call of
`torch_utils.persistence._reconstruct_persistent_obj` on its class's name and source and on its
`state`, the attributes of a torch module, among them the arguments that it was built with.
"""

import io
import math
import pickletools
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_BYTES = 2**30  # of a file; NVIDIA's have less than 400 MB
MOST_OPERATIONS = 1_000_000  # of a pickle; a network takes some ten thousands
MOST_ENTRIES = 100_000  # parameters, buffers and modules; a network has some hundreds
POSITIONAL = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")

_DICTIONARIES = {"collections.OrderedDict", "dnnlib.util.EasyDict", "dnnlib.EasyDict"}
_NETWORK = "torch_utils.persistence._reconstruct_persistent_obj"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_STORAGE = "torch.storage._load_from_bytes"
_SCALARS = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}
_ARRAYS = {  # among the attributes, but no argument or weight is one: never looked into
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.numeric._frombuffer",
    "numpy._core.numeric._frombuffer",
    "numpy.ndarray",
    "torch.Size",
}
_KNOWN = (
    _DICTIONARIES | _SCALARS | _ARRAYS | {_NETWORK, _TENSOR, _PARAMETER, _STORAGE, "numpy.dtype"}
)
_TORCH_MODULE = re.compile(r"torch\.nn\.modules\.[a-z]+\.[A-Za-z0-9]+")  # like Sequential
_FLOATS = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.HalfStorage": np.dtype("<f2"),
}
_PERSISTENT = "persistent id"  # how torch's archives refer to their storages
_LONGEST_NAME = 200  # characters
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # opens torch's archives of before 2020, and inner ones still


def read_official(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The arguments and the weights (float32, by their state-dict names) of `G_ema`, the network
    that makes the best pictures.

    Raises Refused for anything else.
    """
    if len(data) > MOST_BYTES:
        raise Refused(f"it is larger than {MOST_BYTES >> 20} MiB, which no network of NVIDIA's is")
    try:
        networks = follow(io.BytesIO(data), _is_known)
        network = networks.get("G_ema") if isinstance(networks, dict) else None
        if not isinstance(network, Call) or network.name != _NETWORK:
            raise Refused("it holds no network under the name G_ema")
        arguments = _arguments(_state(network))
        weights = _weights(network, most_bytes=len(data))
    except Refused:
        raise
    except _MISFITS:
        raise Refused("it is damaged, or not laid out as NVIDIA's StyleGAN3 networks are") from None
    if "synthesis.b4.const" in weights:
        raise Refused("it is a StyleGAN2 network, and only StyleGAN3 is known here")
    return arguments, weights


class Refused(ValueError):
    """What is wrong with a file, in a sentence that begins with "it" and has no full stop."""


# What comes up where something is missing, or of another kind than it would be in a network.
_MISFITS = (
    *(AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError),
    *(zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError),
)


@dataclass(eq=False)
class Name:
    """A function or class that the pickle names; nothing is looked up by it."""

    name: str


@dataclass(eq=False)
class Call:
    """What the pickle would have called, with what; `state` is what it would have put into it."""

    name: str
    arguments: tuple
    state: Any = None


def follow(stream: io.BytesIO, is_allowed: Callable[[str], bool]) -> Any:
    """Follow the pickle that begins where `stream` stands, up to its end, calling nothing.

    Containers, texts and numbers become what they are; names, where `is_allowed(name)`, a `Name`,
    and calls a `Call`. Raises Refused for another name, an operation that networks do not need, and
    a file that is no pickle or not whole; one of _MISFITS where operations do not fit.
    """
    machine = _Machine(is_allowed)
    operations = pickletools.genops(stream)
    for _ in range(MOST_OPERATIONS):
        try:
            operation, argument, _ = next(operations)
        except ValueError:  # it speaks of bytes and positions
            raise Refused("it is no pickle, or is cut off or damaged") from None
        if operation.name == "STOP":
            return machine.stack.pop()
        machine.step(operation.name, argument)
    raise Refused(f"it has more than {MOST_OPERATIONS} operations")


class _Machine:
    """The stack that a pickle's operations work on, and its memo."""

    def __init__(self, is_allowed: Callable[[str], bool]):
        self.is_allowed = is_allowed
        self.stack: list = []
        self.below: list[list] = []  # the stacks under the marks
        self.memo: dict[int, Any] = {}

    def step(self, operation: str, argument: Any) -> None:
        stack = self.stack
        match operation:
            case "PROTO" | "FRAME":
                pass
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(operation == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8":
                stack.append(argument)
            case "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                stack.append(argument)
            case "MARK":
                self.below.append(stack)
                self.stack = []
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append(set())
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(operation[-1])
                if len(stack) < size:
                    raise IndexError
                stack[-size:] = [tuple(stack[-size:])]
            case "TUPLE":
                items = self.down_to_mark()
                self.stack.append(tuple(items))
            case "APPEND":
                item = stack.pop()
                _of_kind(list, stack[-1]).append(item)
            case "APPENDS":
                items = self.down_to_mark()
                _of_kind(list, self.stack[-1]).extend(items)
            case "ADDITEMS":
                items = self.down_to_mark()
                _of_kind(set, self.stack[-1]).update(map(_key, items))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _of_kind(dict, stack[-1])[_key(key)] = value
            case "SETITEMS":
                items = self.down_to_mark()
                target = _of_kind(dict, self.stack[-1])
                target.update(zip(map(_key, items[::2]), items[1::2], strict=True))
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(self.name(*argument.split(" ")))
            case "STACK_GLOBAL":
                name, module = _of_kind(str, stack.pop()), _of_kind(str, stack.pop())
                stack.append(self.name(module, name))
            case "REDUCE" | "NEWOBJ":
                arguments, function = _of_kind(tuple, stack.pop()), _of_kind(Name, stack.pop())
                stack.append(_call(function.name, arguments))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Call):
                    stack[-1].state = state
            case "BINPERSID":
                stack.append(Call(_PERSISTENT, _of_kind(tuple, stack.pop())))
            case _:
                raise Refused(f"it uses {operation}, which no network needs")

    def down_to_mark(self) -> list:
        items, self.stack = self.stack, self.below.pop()
        return items

    def name(self, module: str, name: str) -> Name:
        full = f"{module[:_LONGEST_NAME]}.{name[:_LONGEST_NAME]}"
        if len(module) + len(name) > _LONGEST_NAME or not self.is_allowed(full):
            raise Refused(f"it names {full!r}, which no network needs")
        return Name(full)


def _is_known(name: str) -> bool:
    return name in _KNOWN or _TORCH_MODULE.fullmatch(name) is not None


def _call(name: str, arguments: tuple) -> Any:
    if name in _DICTIONARIES:
        if arguments:
            raise TypeError
        return {}  # at once, since what follows fills it
    return Call(name, arguments)


def _key(value: Any) -> Any:
    """What may be a dictionary's key. Not tuples, whose hash walks through other objects, and no
    numbers that can be chosen to have the same hash: either can take for ever."""
    if isinstance(value, str) or (isinstance(value, int) and 0 <= value < 2**32):
        return value
    raise TypeError


def _of_kind(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return value


def _state(module: Call) -> dict:
    """The attributes of a module: of a persistent object, or of a plain one of torch.nn."""
    if module.name == _NETWORK:
        return _of_kind(dict, module.arguments[0]["state"])
    return _of_kind(dict, module.state)


def _arguments(state: dict) -> dict[str, Any]:
    positional = _of_kind(tuple, state["_init_args"])
    if len(positional) > len(POSITIONAL):
        raise Refused("it was built with arguments whose names are not known")
    named = dict(zip(POSITIONAL, positional, strict=False))
    return _plain({**named, **_of_kind(dict, state["_init_kwargs"])})


def _plain(value: Any, depth: int = 0) -> Any:
    """Dictionaries of numbers and texts, for JSON; NumPy's numbers become Python's."""
    if isinstance(value, dict) and depth < 2 and len(value) < 100:
        return {_of_kind(str, key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Call) and value.name in _SCALARS:
        kind, data = value.arguments
        return np.frombuffer(data, _number_type(kind), count=1)[0].item()
    if not isinstance(value, str | int | float | None):
        raise Refused("it was built with an argument that is neither a number nor a text")
    return value


def _number_type(call: Call) -> np.dtype:
    code, order = call.arguments[0], call.state[1]
    if call.name != "numpy.dtype" or not re.fullmatch(r"b1|[iu][1248]|f[248]", code):
        raise TypeError
    return np.dtype(code).newbyteorder(order if order in "<>" else "=")


def _weights(network: Call, most_bytes: int) -> dict[str, np.ndarray]:
    """The state dict: parameters and persistent buffers of all modules, as float32.

    With more than `most_bytes` of storages the file would use some twice, which no network's does:
    that is how little becomes much.
    """
    weights: dict[str, np.ndarray] = {}
    waiting = [("", network)]
    entries = 0
    while waiting:
        prefix, module = waiting.pop()
        if len(prefix) > _LONGEST_NAME:
            raise Refused("its modules are nested deeper than any network's")
        state = _state(module)
        parameters, buffers, children = (
            _of_kind(dict, state[name]) for name in ("_parameters", "_buffers", "_modules")
        )
        entries += 1 + len(parameters) + len(buffers) + len(children)
        if entries > MOST_ENTRIES:
            raise Refused(f"it has more than {MOST_ENTRIES} parameters, buffers and modules")
        passing = _of_kind(set, state.get("_non_persistent_buffers_set", set()))
        lasting = {name: buffer for name, buffer in buffers.items() if name not in passing}
        for name, tensor in {**parameters, **lasting}.items():
            if tensor is not None:
                storage = _storage_bytes(tensor)
                most_bytes -= len(storage)
                if most_bytes < 0:
                    raise Refused("it has more numbers in its tensors than bytes in the file")
                weights[prefix + _checked(name)] = _tensor(tensor, _storage(storage))
        for name, child in children.items():
            if child is not None:
                waiting.append((f"{prefix}{_checked(name)}.", _of_kind(Call, child)))
    return weights


def _checked(name: str) -> str:
    if not re.fullmatch(r"\w{1,64}", name, re.ASCII):
        raise TypeError
    return name


def _without_parameter(call: Call) -> Call:
    tensor = call.arguments[0] if call.name == _PARAMETER else call
    if tensor.name != _TENSOR or tensor.arguments[0].name != _STORAGE:
        raise TypeError
    return tensor


def _storage_bytes(call: Call) -> bytes:
    return _of_kind(bytes, _without_parameter(call).arguments[0].arguments[0])


def _tensor(call: Call, numbers: np.ndarray) -> np.ndarray:
    """The part of a storage's `numbers` that a tensor shows, as float32."""
    _, offset, shape, strides = _without_parameter(call).arguments[:4]
    if len(shape) > 8 or len(strides) != len(shape):
        raise TypeError
    for value in (offset, *shape, *strides):
        if _of_kind(int, value) < 0:
            raise TypeError
    reach = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 in shape or math.prod(shape) > len(numbers) or offset + reach >= len(numbers):
        raise Refused("it has a tensor that reaches beyond its numbers")
    steps = [stride * numbers.itemsize for stride in strides]
    view = np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps, writeable=False)
    return np.array(view, np.float32, order="C")


def _storage(data: bytes) -> np.ndarray:
    """The numbers in one of torch's archives that holds nothing but a storage, (count,)."""
    kind, count, raw = (_zip_archive if data.startswith(b"PK") else _plain_archive)(data)
    if kind not in _FLOATS:
        raise Refused(f"it has tensors of the type {kind!r}, which a generator has not")
    if count * _FLOATS[kind].itemsize != len(raw):
        raise Refused("it has a tensor with too few or too many numbers")
    return np.frombuffer(raw, _FLOATS[kind])


def _plain_archive(data: bytes) -> tuple[str, int, bytes]:
    """torch's format of before 2020: pickles of a magic number, a version, the machine's traits,
    the object and the storages' keys, then the storages, each its count and its numbers."""
    stream = io.BytesIO(data)
    magic, _, machine, storage, keys = (follow(stream, _FLOATS.__contains__) for _ in range(5))
    kind, key, count = _storage_id(storage)
    if magic != _TORCH_MAGIC or machine["little_endian"] is not True or keys != [key]:
        raise TypeError
    stored_count = int.from_bytes(stream.read(8), "little")
    if stored_count != count:
        raise TypeError
    return kind, count, stream.read()


def _zip_archive(data: bytes) -> tuple[str, int, bytes]:
    """torch's format since then. Its parts are never compressed, so that none can swell."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in parts.values()):
            raise Refused("it has a compressed tensor, which torch does not write")
        if "byteorder" in parts and archive.read(parts["byteorder"]) != b"little":
            raise TypeError
        storage = follow(io.BytesIO(archive.read(parts["data.pkl"])), _FLOATS.__contains__)
        kind, key, count = _storage_id(storage)
        return kind, count, archive.read(parts[f"data/{key}"])


def _storage_id(call: Call) -> tuple[str, str, int]:
    """Type, key and count of numbers of the only object in an archive."""
    what, kind, key, _, count = call.arguments[:5]
    if call.name != _PERSISTENT or what != "storage":
        raise TypeError
    return kind.name, _of_kind(str, key), _of_kind(int, count)
