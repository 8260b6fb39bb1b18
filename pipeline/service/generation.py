"""Faces of our own: the generator's folder, pictures from it, and NVIDIA's files turned into it.

The folder, which convert_stylegan3.py writes, holds `model.safetensors` and `generator.json` (the
arguments that the network is built with, the weights' checksum, where they come from). It appears
whole or not at all, and nothing in it is a pickle; of NVIDIA's file nothing is run
(stylegan3_pickle.py).
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.common.errors import UserError
from pipeline.common.files import recover_folder, write_folder
from pipeline.detectors.detector import WEIGHTS
from pipeline.service.stylegan3_pickle import MOST_BYTES, Refused, read_official

if TYPE_CHECKING:  # torch takes seconds to import, and a page without a generator needs none
    import torch

    from models.stylegan3 import Generator

GENERATOR = WEIGHTS / "stylegan3"
FORMAT = 1
MODEL = "model.safetensors"
DESCRIPTION = "generator.json"
CONVERT = "python convert_stylegan3.py FILE.pkl"
LICENCE = (
    "NVIDIA's networks are under the NVIDIA Source Code License for StyleGAN3: for research and "
    "evaluation only, not commercially. Name NVIDIA and the paper (Karras et al., Alias-Free "
    "Generative Adversarial Networks, NeurIPS 2021) where you show the pictures, and hand the "
    "weights, converted or not, on under that licence only: "
    "https://github.com/NVlabs/stylegan3/blob/main/LICENSE.txt"
)


def load_generator(folder: Path = GENERATOR) -> "Generator":
    """Read and verify a generator's folder. The network is on the CPU and ready for `generate`.

    Raises UserError, in one sentence, where the folder is missing, damaged or changed.
    """
    recover_folder(folder)
    path = folder / DESCRIPTION
    again = f"convert NVIDIA's file again with `{CONVERT}`."
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        weights = (folder / MODEL).read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: there is no generator here (no {Path(error.filename).name}): get one of "
            f"NVIDIA's StyleGAN3 networks and convert it with `{CONVERT}`."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder}: the generator cannot be read ({error}): {again}") from None
    if not isinstance(description, dict) or not isinstance(description.get("arguments"), dict):
        raise UserError(f"{path} lacks the network's `arguments`: {again}")
    if description.get("format") != FORMAT:
        raise UserError(
            f"{path}: its format is {description.get('format')!r} and this program knows {FORMAT}: "
            f"update the program, or {again}"
        )
    if hashlib.sha256(weights).hexdigest() != description.get("sha256"):
        raise UserError(
            f"{folder / MODEL} is not the file that {DESCRIPTION} describes (its SHA-256 differs): "
            f"{again}"
        )
    from safetensors import SafetensorError
    from safetensors.torch import load

    from models.stylegan3 import build_generator

    try:
        return build_generator(description["arguments"], load(weights))
    except (ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: this makes no generator ({error}): {again}") from None


def generate(generator: "Generator", seed: int, truncation: float = 1.0) -> np.ndarray:
    """A face: (H, W, 3) uint8 RGB, the same for the same seed, on the device of the generator.

    `truncation` 0 is the average face, 1 all the variety that was learned. Raises UserError for a
    seed that is not 0…2³²-1 and a truncation that is not 0…1.
    """
    import torch

    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise UserError(f"seed {seed}: a whole number from 0 to {2**32 - 1} is wanted.")
    if not 0 <= truncation <= 1:
        raise UserError(f"truncation {truncation}: a number from 0 to 1 is wanted.")
    z = np.random.RandomState(seed).randn(1, generator.z_dim).astype(np.float32)
    device = generator.mapping.w_avg.device
    with torch.inference_mode():
        [picture] = generator(torch.from_numpy(z).to(device), truncation)
        pixels = (picture * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


def save_generator(
    generator_args: dict, state_dict: dict[str, "torch.Tensor"], folder: Path, source: str
) -> None:
    """Write a generator's folder, whole or not at all, in place of one that is there.

    `generator_args` are those of models.stylegan3.Generator, `source` says in words whose the
    weights are. Raises ValueError, in a sentence, where they make no generator.
    """
    from safetensors.torch import save

    from models.stylegan3 import build_generator

    build_generator(generator_args, state_dict)
    weights = save({name: tensor.contiguous() for name, tensor in state_dict.items()})
    description = {
        "format": FORMAT,
        "arguments": generator_args,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "source": source,
    }
    with write_folder(folder) as new:
        (new / MODEL).write_bytes(weights)
        (new / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def convert(pickle: Path, folder: Path = GENERATOR) -> dict:
    """Turn one of NVIDIA's .pkl files into a generator's folder; the network's arguments.

    Raises UserError, in one sentence, for every other file, and where the folder cannot be written.
    """
    try:
        if pickle.exists() and not pickle.is_file():
            raise Refused("it is a folder or a device")
        with pickle.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        arguments, weights = read_official(data)
    except OSError as error:
        raise UserError(
            f"{pickle}: this file cannot be read ({error.strerror}); the StyleGAN3 networks are on "
            "NVIDIA's page https://catalog.ngc.nvidia.com/orgs/nvidia/teams/research/models/stylegan3."
        ) from None
    except Refused as error:
        raise UserError(
            f"{pickle}: {error}; nothing in it was run. Give one of NVIDIA's own StyleGAN3 "
            "networks, such as stylegan3-r-ffhqu-256x256.pkl."
        ) from None
    import torch

    source = f"NVIDIA, {pickle.name} (SHA-256 {hashlib.sha256(data).hexdigest()}). {LICENCE}"
    tensors = {name: torch.from_numpy(weight) for name, weight in weights.items()}
    try:
        save_generator(arguments, tensors, folder, source)
    except ValueError as error:
        raise UserError(f"{pickle}: this makes no StyleGAN3 generator: {error}.") from None
    except OSError as error:
        raise UserError(
            f"{folder}: the generator cannot be written there ({error.strerror}); choose another "
            "folder with --output."
        ) from None
    return arguments
