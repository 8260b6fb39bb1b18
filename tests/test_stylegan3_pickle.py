"""NVIDIA's files become folders; whatever else is in such a file is refused and never run."""

import codecs
import io
import json
import os
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.common.errors import UserError
from pipeline.service.generation import convert, generate, load_generator
from pipeline.service.stylegan3_pickle import Refused, read_official
from tests.conftest import REPOSITORY
from tests.official_pickles import SMALL, EasyDict, Persistent, dump, networks
from tests.test_stylegan3 import needs_reference, random_generator, reference  # noqa: F401


@pytest.fixture(scope="module")
def weights():
    return random_generator().state_dict()


@pytest.fixture(scope="module")
def official(weights) -> bytes:
    return dump(networks(SMALL, weights))


@needs_reference
@pytest.mark.parametrize(
    "protocol, meta", [(4, dict), (5, EasyDict)], ids=["protocol 4", "protocol 5, EasyDict"]
)
def test_official_layout_gives_nvidias_pictures(reference, tmp_path, protocol, meta):  # noqa: F811
    arguments, weights, expected = reference
    file = tmp_path / "network.pkl"
    file.write_bytes(dump(networks(arguments, weights, meta=meta), protocol))
    convert(file, tmp_path / "stylegan3")
    file.unlink()
    generator = load_generator(tmp_path / "stylegan3")
    for seed, psi in ((0, 1.0), (1, 0.7)):
        image = expected[f"seed{seed}_psi{psi}_image"][0].transpose(1, 2, 0)
        pixels = np.clip(image * 127.5 + 128, 0, 255)
        assert abs(generate(generator, seed, psi) - (pixels - 0.5)).max() < 0.51


def test_a_round_trip_keeps_every_weight(official, weights):
    arguments, found = read_official(official)
    assert arguments == SMALL
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(found[name], weight.numpy())


def test_what_may_differ_between_official_files(weights):
    """Half precision, NumPy's numbers, positional arguments, new archives, steps in a storage."""
    state = {name: weight.clone() for name, weight in weights.items()}
    state["mapping.fc0.weight"] = state["mapping.fc0.weight"].half()
    state["mapping.fc1.weight"] = state["mapping.fc1.weight"].T.contiguous().T.double()
    content = networks({**SMALL, "channel_max": np.int64(8)}, state)
    attributes = content["G_ema"].meta["state"]
    for name in ("z_dim", "c_dim"):
        attributes["_init_args"] += (attributes["_init_kwargs"].pop(name),)
    arguments, found = read_official(dump(content))
    assert arguments == SMALL
    assert json.dumps(arguments)
    np.testing.assert_array_equal(
        found["mapping.fc0.weight"], state["mapping.fc0.weight"].float().numpy()
    )
    np.testing.assert_array_equal(
        found["mapping.fc1.weight"], weights["mapping.fc1.weight"].numpy()
    )


def test_new_archives_are_read_too(monkeypatch, weights, official):
    def reduce(storage):
        stream = io.BytesIO()
        torch.save(storage, stream)
        return torch.storage._load_from_bytes, (stream.getvalue(),)

    monkeypatch.setattr(torch.storage.TypedStorage, "__reduce__", reduce)
    content = dump(networks(SMALL, weights))
    assert b"PK\x03\x04" in content
    old, new = read_official(official)[1], read_official(content)[1]
    assert all((old[name] == new[name]).all() for name in old)


def run_convert(*arguments):
    return subprocess.run(
        [sys.executable, "convert_stylegan3.py", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_command(official, tmp_path):
    file, folder = tmp_path / "network.pkl", tmp_path / "stylegan3"
    file.write_bytes(official)
    done = run_convert(file, "--output", folder)
    assert done.returncode == 0, done.stderr
    assert "StyleGAN3-T, 32 × 32 pixels" in done.stdout
    assert "not commercially" in done.stdout
    assert "Name NVIDIA" in done.stdout
    description = json.loads((folder / "generator.json").read_text())
    assert "network.pkl" in description["source"]
    assert (generate(load_generator(folder), 0) == generate(random_generator(), 0)).all()

    file.write_bytes(official[:-100])
    failed = run_convert(file, "--output", folder)
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert "cut off" in failed.stderr
    assert description == json.loads((folder / "generator.json").read_text())


class Runs:
    """Pickled, a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def touch(marker: Path) -> Runs:
    return Runs(os.system, f"touch '{marker}'")


def in_the_root(content, marker):
    content["augment_pipe"] = touch(marker)


def in_place_of_the_network(content, marker):
    content["G_ema"] = touch(marker)


def in_an_attribute(content, marker):
    content["G_ema"].meta["state"]["in_size"] = touch(marker)


def in_an_argument(content, marker):
    content["G_ema"].meta["state"]["_init_kwargs"]["z_dim"] = Runs(
        eval, f"open({str(marker)!r}, 'w') and 8"
    )


def in_a_buffer(content, marker):
    modules = content["G_ema"].meta["state"]["_modules"]
    modules["mapping"].meta["state"]["_buffers"]["w_avg"] = touch(marker)


def in_a_storage(content, marker):
    modules = content["G_ema"].meta["state"]["_modules"]
    archive = pickle.dumps(touch(marker), 2) * 5
    storage = Runs(torch.storage._load_from_bytes, archive)
    tensor = Runs(torch._utils._rebuild_tensor_v2, storage, 0, (8,), (1,), False, {})
    modules["mapping"].meta["state"]["_buffers"]["w_avg"] = tensor


def in_a_module_of_torch(content, marker):
    content["G_ema"].meta["state"]["_modules"]["extra"] = nn.Sequential()
    content["G_ema"].meta["state"]["_modules"]["extra"].hook = touch(marker)


ATTACKS = (
    *(in_the_root, in_place_of_the_network, in_an_attribute, in_an_argument, in_a_buffer),
    *(in_a_storage, in_a_module_of_torch),
)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_command_is_refused_and_not_run(attack, weights, tmp_path):
    marker, file = tmp_path / "marker", tmp_path / "network.pkl"
    content = networks(SMALL, weights)
    attack(content, marker)
    file.write_bytes(dump(content))
    with pytest.raises(UserError, match=r"names '(posix\.system|builtins\.eval)'") as caught:
        convert(file, tmp_path / "stylegan3")
    assert str(file) in str(caught.value)
    assert not marker.exists()
    assert not (tmp_path / "stylegan3").exists()


def test_the_attacks_are_real(tmp_path):
    """Loaded the usual way such a file does run its command: otherwise the test above is empty."""
    marker, file = tmp_path / "marker", tmp_path / "network.pkl"
    file.write_bytes(dump(touch(marker)))
    program = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
    subprocess.run([sys.executable, "-c", program, file], check=True)
    assert marker.exists()


def test_the_source_inside_is_not_run(weights, tmp_path):
    marker, file = tmp_path / "marker", tmp_path / "network.pkl"
    source = f"open({str(marker)!r}, 'w').close()"
    file.write_bytes(dump(networks(SMALL, weights, source)))
    convert(file, tmp_path / "stylegan3")
    assert not marker.exists()
    assert source not in (tmp_path / "stylegan3" / "generator.json").read_text()


@pytest.mark.parametrize(
    "name",
    [
        *("os.system", "builtins.eval", "builtins.getattr", "torch.load", "torch._utils.os.system"),
        *("torch.nn.modules.module.os.system", "torch.nn.modules.module.__import__"),
        *("torch.nn.Sequential.forward", "numpy.load", "collections.namedtuple"),
        *("torch.nn.modules.module.\u202emetsys", "torch.nn.modules." + "a" * 1000 + ".B"),
    ],
)
@pytest.mark.parametrize("opcode", ["GLOBAL", "STACK_GLOBAL"])
def test_names_that_are_not_known(name, opcode):
    module, _, attribute = name.rpartition(".")
    if opcode == "GLOBAL":
        operations = b"c" + f"{module}\n{attribute}\n".encode()
    else:
        operations = text(module) + text(attribute) + b"\x93"
    with pytest.raises(Refused, match=r"it (names '|is no pickle)") as caught:
        read_official(b"\x80\x04" + operations + b")R.")
    assert str(caught.value).isprintable()


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def test_other_files(tmp_path, official, weights):
    stream = io.BytesIO()
    torch.save(weights, stream)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("network.pkl", official)
    stylegan2 = {"z_dim": 8, "synthesis_kwargs": {}}
    contents = {
        b"": "no pickle",
        b"\x89PNG\r\n\x1a\n" + bytes(100): "no pickle|uses|damaged",
        b"hello": "no pickle|uses|damaged",
        stream.getvalue(): "no pickle|uses|damaged",
        archive.getvalue(): "no pickle|uses|damaged",
        pickle.dumps([1, 2]): "no network",
        pickle.dumps({"G": None}): "no network",
        dump({"G_ema": Persistent("Generator", {})}): "laid out",
        dump(networks(stylegan2, {"synthesis.b4.const": torch.ones(1)})): "StyleGAN2",
        dump(networks({**SMALL, "colour": 1}, weights)): "'colour' is unknown",
        dump(networks({**SMALL, "z_dim": [8]}, weights)): "neither a number nor a text",
        dump(networks(SMALL, {"phases": torch.ones(1).long()})): "torch.LongStorage",
        dump(networks({**SMALL, "w_dim": 9}, weights)): "in the weights, not",
        dump(networks(SMALL, {**weights, "mapping.w_avg": torch.ones(2)})): "w_avg is",
        dump(networks(SMALL, weights), 1): "uses|names",
    }
    path = tmp_path / "file.pkl"
    for content, sentence in contents.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=sentence) as caught:
            convert(path, tmp_path / "stylegan3")
        assert "\n" not in str(caught.value)
    for missing, sentence in {"none.pkl": "No such file", ".": "folder or a device"}.items():
        with pytest.raises(UserError, match=sentence):
            convert(tmp_path / missing, tmp_path / "stylegan3")
    path.write_bytes(official)
    with pytest.raises(UserError, match="choose another folder with --output"):
        convert(path, path / "stylegan3")


def test_every_truncation_is_refused(official):
    places = random.Random(0).sample(range(len(official)), 100)
    for end in [*range(50), *places, len(official) - 1]:
        with pytest.raises(Refused):
            read_official(official[:end])


def level_after_level(count: int) -> bytes:
    """A tuple of the tuple before, twice, and so on: hashing it takes 2^count steps."""
    return b")\x94" + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(count))


MANY = 200_000
BOMBS = {
    "a key whose hash takes for ever": b"}" + level_after_level(100) + b"Ns.",
    "a set of such": b"\x8f(" + level_after_level(100) + b"\x90.",
    "a deep list": b"]" * MANY + b"a" * (MANY - 1) + b".",
    "a deep tuple": b")" + b"\x85" * MANY + b".",
    "a wide stack in tuples": b"N" * MANY + b"\x85" * MANY + b".",
    "a large memo": b"Nr\xff\xff\xff\xff.",
    "a large text": b"\x8d" + struct.pack("<Q", 2**62) + b".",
    "large bytes": b"\x8e" + struct.pack("<Q", 2**40) + b".",
    "a large bytearray": b"\x96" + struct.pack("<Q", 2**40) + b".",
    "a large frame": b"\x95" + struct.pack("<Q", 2**62) + b".",
    "a large number": b"\x8b" + struct.pack("<I", 10**6) + b"\xff" * 10**6 + b"\x94.",
    "decimal digits": b"L" + b"9" * 10**6 + b"L\n.",
    "one list in many dictionaries": b"]("
    + b"NN\x86" * 1000
    + b"e\x94"
    + b"ccollections\nOrderedDict\nh\x00\x85R" * 1000
    + b".",
    "a long name": text("torch.nn.modules.a")
    + b"\x94"
    + text("B" * 10**6)
    + b"\x94"
    + b"h\x00h\x01\x93" * 10**5
    + b".",
    "keys of the same hash": b"}("
    + b"".join(b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(MANY))
    + b"u.",
    "marks": b"(" * MANY + b".",
    "too many operations": b"N" * 1_000_001 + b".",
}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_bombs(tmp_path, weights):
    """Each is refused, in the end and in 2 GiB, by a process of its own."""
    contents = {name: b"\x80\x04" + bomb for name, bomb in BOMBS.items()}
    contents |= {name: dump(bomb) for name, bomb in structures(weights).items()}
    for number, content in enumerate(contents.values()):
        (tmp_path / f"{number}.pkl").write_bytes(content)
    program = (
        "import resource, sys\n"
        "from pipeline.service.stylegan3_pickle import Refused, read_official\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        read_official(open(path, 'rb').read())\n"
        "        print('taken')\n"
        "    except Refused as refused:\n"
        "        print(refused, flush=True)\n"
    )
    files = [tmp_path / f"{number}.pkl" for number in range(len(contents))]
    done = subprocess.run(
        [sys.executable, "-c", program, *files],
        cwd=REPOSITORY,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # its threads' stacks count, too
        capture_output=True,
        text=True,
        timeout=400,
    )
    answers = done.stdout.splitlines()
    assert done.returncode == 0, (list(contents)[len(answers)], done.stderr[-2000:])
    assert not {name for name, answer in zip(contents, answers, strict=True) if answer == "taken"}


def structures(weights) -> dict[str, object]:
    """Networks whose parts are named again and again, or claim to be larger than they are."""

    def network(**changes):
        content = networks(SMALL, weights)
        content["G_ema"].meta["state"] |= changes
        return content

    def parts(**changes):
        return {"_parameters": {}, "_buffers": {}, "_modules": {}, **changes}

    circle = nn.Module()
    circle.__dict__["_modules"] = {"again": circle}
    leaf = parts(_parameters=dict.fromkeys(map(str, range(1000))))
    for _ in range(20):
        child = Persistent("Level", leaf)
        leaf = parts(_modules={f"m{number}": child for number in range(10)})
    large = torch.ones(10**6)
    tensor = Runs(torch._utils._rebuild_tensor_v2, large.storage(), 0, (9,), (1,), False, {})
    expanded = torch.ones(1).expand(10**6, 10**6)
    numbers = {str(index): index for index in range(1000)}
    compressed = io.BytesIO()
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**8))
    return {
        "a module inside itself": network(_modules={"again": circle}),
        "modules that share modules": network(_modules={"tree": Persistent("Tree", leaf)}),
        "one storage many times": network(_parameters={f"p{n}": tensor for n in range(1000)}),
        "a tensor of one number": network(_parameters={"p": expanded}),
        "a tensor beyond its storage": network(_parameters={"p": rebuilt(large, 5, (10**6,))}),
        "a negative step": network(_parameters={"p": rebuilt(large, 5, (2,), (-1,))}),
        "many axes": network(_parameters={"p": rebuilt(large, 0, (1,) * 1000)}),
        "many arguments": network(_init_kwargs={str(n): numbers for n in range(99)}),
        "a compressed archive": network(_parameters={"p": from_bytes(compressed.getvalue())}),
        "a storage that claims more": network(
            _parameters={"p": from_bytes(legacy(torch.ones(4)).replace(b"K\x04", b"K\x7f"))}
        ),
    }


def legacy(tensor: torch.Tensor) -> bytes:
    return tensor.storage().__reduce__()[1][0]


def from_bytes(archive: bytes) -> Runs:
    storage = Runs(torch.storage._load_from_bytes, archive)
    return Runs(torch._utils._rebuild_tensor_v2, storage, 0, (1,), (1,), False, {})


def rebuilt(tensor, offset: int, shape: tuple, strides: tuple | None = None) -> Runs:
    strides = strides or (1,) * len(shape)
    return Runs(
        torch._utils._rebuild_tensor_v2, tensor.storage(), offset, shape, strides, False, {}
    )


# What running something would look like to Python itself. Hooks cannot be taken off, only idle.
_watching, _seen = False, []


def _watch(event: str, arguments: tuple) -> None:
    if _watching and event.split(".")[0] in _WORRYING:
        _seen.append((event, arguments))


_WORRYING = {
    *("exec", "compile", "import", "open", "os", "subprocess", "socket", "pickle", "ctypes"),
    *("shutil", "tempfile", "urllib", "marshal", "code", "mmap", "pty", "signal", "webbrowser"),
}


@pytest.fixture(scope="module")
def watched():
    for codec in ("raw_unicode_escape", "unicode_escape"):
        codecs.lookup(codec)  # pickletools imports them when it meets an old operation
    sys.addaudithook(_watch)

    def watched(data: bytes) -> None:
        global _watching
        _seen.clear()
        _watching = True
        try:
            read_official(data)
        except Refused:
            pass
        finally:
            _watching = False
        assert not _seen

    return watched


def test_the_watch_sees(watched):
    global _watching
    _seen.clear()
    _watching = True
    os.system("true")
    _watching = False
    assert _seen


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_mutated_files_never_run_anything(data, official, watched):
    content = bytearray(official)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(("change", "delete", "insert", "copy"))):
            case "change":
                content[place] = data.draw(st.integers(0, 255))
            case "delete":
                del content[place : place + data.draw(st.integers(1, 50))]
            case "insert":
                content[place:place] = data.draw(operations)
            case "copy":
                source = data.draw(st.integers(0, len(content) - 1))
                content[place:place] = content[source : source + data.draw(st.integers(1, 300))]
    watched(bytes(content))


_NAMES = (
    *(b"os\nsystem\n", b"builtins\neval\n", b"posix\nsystem\n", b"collections\nOrderedDict\n"),
    *(b"torch.storage\n_load_from_bytes\n", b"torch._utils\n_rebuild_tensor_v2\n"),
    *(b"torch_utils.persistence\n_reconstruct_persistent_obj\n", b"numpy\ndtype\n"),
    *(b"numpy.core.multiarray\nscalar\n", b"torch.nn.modules.linear\nLinear\n"),
)
_KEYS = ("G_ema", "state", "_init_args", "_init_kwargs", "_parameters", "_buffers", "_modules")
operations = st.one_of(
    st.sampled_from([opcode.code.encode("latin-1") for opcode in pickletools.opcodes]),
    st.sampled_from([b"c" + name for name in _NAMES]),
    st.sampled_from([text(key) for key in _KEYS]),
    st.integers(0, 255).map(lambda number: b"K%c" % number),
    st.integers(0, 9).map(lambda number: b"h%c" % number),
    st.binary(max_size=20).map(lambda content: b"C%c" % len(content) + content),
)


@settings(max_examples=1000, deadline=None)
@given(program=st.lists(operations, max_size=60).map(b"".join))
@example(program=b"cos\nsystem\nX\x04\x00\x00\x00true\x85R")
def test_random_programs_never_run_anything(program, watched):
    watched(b"\x80\x04" + program + b".")
