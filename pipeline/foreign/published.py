"""Weights of other projects, imported once into detector folders that scoring can use.

MesoNet's four published .h5 files; Xception and EfficientNetB0 as students fine-tuned them with
Keras' flow_from_directory; Hugging Face's ViT classifiers, whole or as a PEFT adapter. They score
as their authors scored: whole pictures, threshold 0.5 on a probability that nobody calibrated,
turned round where it meant P(real); fake_class.py finds out where that is.

The folder lies in the user's cache. The import needs TensorFlow or torch; scoring from then on does
not.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from models import ARCHITECTURES, ZERO_TO_ONE, Architecture
from pipeline.common.errors import UserError
from pipeline.common.files import sha256_of
from pipeline.detectors.fake_class import FakeClass, FakeLabels, unnamed
from pipeline.foreign.hugging_face_folder import architecture_of, files_of, labels_of, weights_file

# Only these: another file of the same shape may mean P(fake) where these mean P(real).
MESONET = {
    "036ed30d04ffd9c7506f825b97c86aa64915f5818931da96817b169aad790af5": ("Meso4_DF", "meso4"),
    "bcfda015d217b9f8d6557693edbdf9f4e79cfd22672541968dd0e2954462b5d7": ("Meso4_F2F", "meso4"),
    "234586d40058e76ef8b6f27ca4b63c06e31c2a5a69c0d8ba6f30b1468ab7bafa": (
        "MesoInception_DF",
        "mesoinception4",
    ),
    "d4533ac8a3197dc35c47405d23d99e888c1d0135e267e03540c7451feaccff3f": (
        "MesoInception_F2F",
        "mesoinception4",
    ),
}
# By their names, since everybody's training gives another file. Keras' flow_from_directory numbers
# the classes by the alphabet (fake 0, real 1), so that the output means P(real), and both networks
# were fed pixels of 0…1.
FINE_TUNED = {
    "xception_finetuned.weights.h5": "xception",
    "efficientnet_finetuned.weights.h5": "efficientnet_b0",
}


@dataclass(frozen=True)
class Published:
    """Weights that can be imported: whose, of which network, and how.

    `architecture` has the pixel scaling that they were trained with; `needs` is the framework that
    reads them; `files` are what a second import is recognized by; `decide` says which class means
    fake, None where nobody need ask.
    """

    name: str
    architecture: Architecture
    resize_filter: str
    source: str
    needs: str
    files: tuple[Path, ...]
    decide: Callable[[FakeLabels], FakeClass | None]


def is_published(path: Path) -> bool:
    """Whether `path` names weights of another project rather than a detector folder."""
    if path.suffix == ".h5":
        return True
    if (path / "detector.json").exists():
        return False
    return any((path / name).exists() for name in ("config.json", "adapter_config.json"))


def find_published(weights: Path) -> Published:
    """What the weights at a path are. Raises UserError for what is not known."""
    if weights.suffix != ".h5":
        return _hugging_face(weights)
    if weights.name in FINE_TUNED and weights.is_file():
        return _fine_tuned(weights)
    return _mesonet(weights)


def mesonet_file(path: Path) -> tuple[str, str]:
    """Name and architecture of one of MesoNet's files. Raises UserError for any other file."""
    try:
        checksum = sha256_of(path)
    except OSError as error:
        raise UserError(
            f"{path}: this file cannot be read ({error.strerror}); `python download_weights.py` "
            "lists the published weights and fetches them."
        ) from error
    if checksum not in MESONET:
        raise UserError(
            f"{path}: this is none of MesoNet's four published weight files (by its SHA-256), nor "
            f"named {' or '.join(FINE_TUNED)}, so nothing says which of its two classes is fake; "
            "name a detector folder instead."
        )
    return MESONET[checksum]


def _mesonet(path: Path) -> Published:
    name, architecture = mesonet_file(path)
    return Published(
        name,
        ARCHITECTURES[architecture],
        "nearest",
        "Afchar et al., MesoNet, WIFS 2018 (Apache-2.0)",
        "tensorflow",
        (path,),
        lambda fake_labels: None,
    )


def _fine_tuned(path: Path) -> Published:
    architecture = replace(ARCHITECTURES[FINE_TUNED[path.name]], scaling=ZERO_TO_ONE)
    return Published(
        path.name.removesuffix(".weights.h5"),
        architecture,
        "nearest",
        f"{path.name}, fine-tuned elsewhere; the terms of its data are not known here",
        "tensorflow",
        (path,),
        lambda fake_labels: fake_labels.choose_if_named(
            unnamed(2), 0, "as Keras numbers folders by the alphabet (fake, real)", path
        ),
    )


def _hugging_face(folder: Path) -> Published:
    weights_file(folder)
    architecture = architecture_of(folder)
    return Published(
        folder.resolve().name,
        architecture,
        "area",
        f"{folder.name}, fine-tuned elsewhere; the terms of its data are not known here",
        "torch",
        files_of(folder),
        lambda fake_labels: fake_labels.choose(labels_of(folder), folder),
    )
