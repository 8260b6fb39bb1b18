"""The generator: NVIDIA's own pictures, the properties that the paper promises, and its folder."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.stylegan3 import Generator, build_generator, low_pass
from pipeline.common.errors import UserError
from pipeline.service.generation import generate, load_generator, save_generator
from tests.official_pickles import SMALL
from tests.shared import SHARED

REFERENCE = SHARED / "stylegan3"
ROUND = {"conv_kernel": 1, "use_radial_filters": True}
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(),
    reason="needs the reference generators in ../shared/stylegan3, which are not published",
)


def random_generator(seed: int = 0, **arguments) -> Generator:
    """An untrained one. The official arguments of a new network, and a w_avg that is not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = Generator(**{**SMALL, **arguments}).eval().requires_grad_(False)
        generator.mapping.w_avg.normal_()
    return generator


@pytest.fixture(params=("t", "r"))
def reference(request):
    """Arguments, weights and expected outputs of one of the two reference generators."""
    name = f"stylegan3_{request.param}"
    arguments = json.loads((REFERENCE / f"{name}_config.json").read_text())
    with np.load(REFERENCE / f"{name}_weights.npz") as file:
        weights = {key: torch.from_numpy(file[key]) for key in file.files}
    with np.load(REFERENCE / f"{name}_expected.npz") as file:
        expected = dict(file)
    return arguments, weights, expected


@needs_reference
def test_gives_nvidias_pictures(reference):
    arguments, weights, expected = reference
    generator = build_generator(arguments, weights)
    for seed in (0, 1, 2):
        for psi in (1.0, 0.7):
            z = torch.from_numpy(np.random.RandomState(seed).randn(1, 64).astype(np.float32))
            ws = generator.mapping(z, psi)
            np.testing.assert_allclose(ws, expected[f"seed{seed}_psi{psi}_ws"], atol=1e-5)
            image = generator(z, psi)
            np.testing.assert_allclose(image, expected[f"seed{seed}_psi{psi}_image"], atol=1e-5)


@needs_reference
def test_new_filters_are_nvidias(reference):
    """The filters that are computed here equal those that the weights bring along."""
    arguments, weights, _ = reference
    new = Generator(**arguments).state_dict()
    assert new.keys() == weights.keys()
    for name in weights:
        if name.endswith("_filter"):
            torch.testing.assert_close(new[name], weights[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("arguments", [{}, ROUND], ids=["t", "r"])
@pytest.mark.parametrize("size", [16, 64, 96, 256])
def test_any_resolution(size, arguments):
    generator = random_generator(
        img_resolution=size, num_layers=6, channel_base=8 * size, **arguments
    )
    picture = generate(generator, seed=3)
    assert picture.shape == (size, size, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 1


@pytest.mark.parametrize("arguments", [{}, ROUND], ids=["t", "r"])
def test_neighbours_in_a_batch_change_nothing(arguments):
    generator = random_generator(**arguments)
    z = torch.randn(3, 8)
    alone = torch.cat([generator(one[None]) for one in z])
    torch.testing.assert_close(generator(z), alone, atol=1e-5, rtol=1e-5)


def moved(generator: Generator, turn: float, shift: tuple[float, float]) -> torch.Tensor:
    """The picture of one z with its waves turned (radians) and shifted (share of the picture)."""
    cos, sin = math.cos(turn), math.sin(turn)
    transform = torch.tensor([[cos, -sin, shift[0]], [sin, cos, shift[1]], [0, 0, 1]])
    generator.synthesis.input.transform.copy_(transform)
    return generator(torch.ones(1, 8))[0]


def decibels(first: torch.Tensor, second: torch.Tensor) -> float:
    """Peak signal-to-noise ratio; the peak is what the first picture spans."""
    error = (first - second).square().mean().sqrt().item()
    return 20 * math.log10((first.max() - first.min()).item() / error)


@pytest.mark.parametrize("arguments", [{}, ROUND], ids=["t", "r"])
def test_shifting_the_waves_shifts_the_picture(arguments):
    generator = random_generator(img_resolution=64, num_layers=8, **arguments)
    # Less than a sample where the picture begins, at a rate of 16.
    still, shifted = moved(generator, 0, (0, 0)), moved(generator, 0, (3 / 64, 0))
    assert decibels(still[:, :, 3:], shifted[:, :, :-3]) > 60
    assert decibels(still, shifted) < 40


def test_turning_the_waves_turns_the_picture_in_r_only():
    numbers = {}
    for name, arguments in {"t": {}, "r": ROUND}.items():
        generator = random_generator(img_resolution=64, num_layers=8, **arguments)
        still, turned = moved(generator, 0, (0, 0)), moved(generator, math.pi / 2, (0, 0))
        numbers[name] = decibels(still.rot90(1, (1, 2)), turned)
    assert numbers["r"] > 100
    assert numbers["t"] < 30


def test_filters():
    flat, round_ = low_pass(12, 4, 6, 32), low_pass(12, 4, 6, 32, radial=True)
    for taps in (flat, round_):
        assert taps.sum().item() == pytest.approx(1, abs=1e-6)
        torch.testing.assert_close(taps, taps.flip(0))
    torch.testing.assert_close(round_, round_.T)
    odd = low_pass(5, 4, 6, 32, radial=True)  # has a middle, where jinc is 0/0
    assert torch.isfinite(odd).all()
    assert odd.argmax() == 12


def test_truncation_0_is_the_average_face():
    generator = random_generator()
    average = generate(generator, 1, truncation=0)
    assert (generate(generator, 2, truncation=0) == average).all()
    assert (generate(generator, 1) != average).any()
    assert (generate(generator, 1) == generate(generator, 1)).all()
    assert (generate(generator, 1) != generate(generator, 2)).any()


@pytest.mark.parametrize(
    "wrong",
    [{"seed": -1}, {"seed": 2**32}, {"seed": 1.5}, {"truncation": 1.1}]
    + [{"truncation": float("nan")}],
    ids=str,
)
def test_wrong_seed_or_truncation(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        generate(random_generator(), **{"seed": 0, **wrong})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("arguments", [{}, ROUND], ids=["t", "r"])
def test_a_gpu_gives_the_same_picture(arguments):
    generator = random_generator(**arguments)
    on_cpu = generate(generator, 5).astype(int)
    on_gpu = generate(generator.cuda(), 5).astype(int)
    assert abs(on_cpu - on_gpu).max() <= 2


@pytest.fixture
def folder(tmp_path):
    generator = random_generator()
    save_generator(SMALL, generator.state_dict(), tmp_path / "stylegan3", "a test")
    return tmp_path / "stylegan3"


def test_folder_gives_back_the_generator(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["generator.json", "model.safetensors"]
    assert (generate(load_generator(folder), 7) == generate(random_generator(), 7)).all()
    assert not list(folder.parent.glob(".*"))


def test_saving_replaces_the_folder_whole(folder):
    save_generator(SMALL, random_generator(1).state_dict(), folder, "another test")
    assert (generate(load_generator(folder), 7) == generate(random_generator(1), 7)).all()
    with pytest.raises(ValueError, match="is missing in the weights"):
        save_generator(SMALL, {}, folder, "no weights")
    assert json.loads((folder / "generator.json").read_text())["source"] == "another test"


def change_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights["mapping.w_avg"] += 1
    save_file(weights, folder / "model.safetensors")


def describe(**changes):
    def change(folder):
        path = folder / "generator.json"
        description = json.loads(path.read_text())
        description |= changes
        path.write_text(json.dumps(description))

    return change


def argument(**changes):
    return describe(arguments={**SMALL, **changes})


BROKEN = {
    "weights changed": (change_weights, "SHA-256 differs"),
    "weights cut off": (lambda f: (f / "model.safetensors").write_bytes(b"1"), "SHA-256 differs"),
    "weights gone": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "description gone": (lambda f: (f / "generator.json").unlink(), "no generator.json"),
    "description empty": (lambda f: (f / "generator.json").write_text(""), "cannot be read"),
    "description deep": (lambda f: (f / "generator.json").write_text("[" * 10**5), "cannot be"),
    "a list": (lambda f: (f / "generator.json").write_text("[]"), "lacks"),
    "later format": (describe(format=2), "its format is 2"),
    "no arguments": (describe(arguments=None), "lacks"),
    "wider": (argument(w_dim=9), "in the weights, not"),
    "huge": (argument(img_resolution=2**40), "img_resolution is not a whole number from"),
    "not a number": (argument(channel_max="many"), "channel_max is not a whole number"),
    "unknown argument": (argument(colour="blue"), "'colour' is unknown"),
    "unknown inner argument": (argument(mapping_kwargs={"x": 1}), "'mapping_kwargs.x' is unknown"),
    "inner arguments a list": (argument(mapping_kwargs=[1]), "no dictionary"),
    "classes": (argument(c_dim=10), "want a class"),
    "all critical": (argument(num_critical=4), "num_critical is not below num_layers"),
    "no channels": (argument(channel_base=1), "channel_base is too small"),
    "missing argument": (describe(arguments={"z_dim": 8}), "w_dim"),
}


@pytest.mark.parametrize("change, sentence", BROKEN.values(), ids=BROKEN)
def test_broken_folder(folder, change, sentence):
    change(folder)
    with pytest.raises(UserError, match=sentence) as caught:
        load_generator(folder)
    assert str(folder) in str(caught.value)
    assert "python convert_stylegan3.py" in str(caught.value)


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="there is no generator here"):
        load_generator(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be read"):
        load_generator(tmp_path / "file")
