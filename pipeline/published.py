"""Weights of other projects, imported once into detector folders that scoring can use.

MesoNet's four published .h5 files; Xception and EfficientNetB0 as students fine-tuned them with
Keras' flow_from_directory; Hugging Face's ViT classifiers, whole or as a PEFT adapter. They score
as their authors scored: whole pictures, threshold 0.5 on a probability that nobody calibrated,
turned round where it meant P(real); fake_class.py finds out where that is.

The folder lies in the user's cache. The import needs TensorFlow or torch; scoring from then on does
not.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from models import ARCHITECTURES, ZERO_TO_ONE, Architecture
from pipeline.detector import GRAPH, Detector, describe_input, load_detector, write_detector
from pipeline.errors import UserError
from pipeline.fake_class import FakeClass, FakeLabels, unnamed
from pipeline.files import sha256_of
from pipeline.hugging_face_folder import architecture_of, files_of, labels_of, weights_file
from pipeline.out_of_memory import LEAST_TO_TRAIN, require_memory
from pipeline.runtime import cache_folder

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

    `architecture` has the pixel scaling that they were trained with; `files` are what a second
    import is recognized by; `decide` says which class means fake, None where nobody need ask;
    `fill` writes the graph and the weights into a folder.
    """

    name: str
    architecture: Architecture
    resize_filter: str
    source: str
    needs: str
    files: tuple[Path, ...]
    decide: Callable[[FakeLabels], FakeClass | None]
    fill: Callable[[Path, FakeClass | None], None]


def is_published(path: Path) -> bool:
    """Whether `path` names weights of another project rather than a detector folder."""
    if path.suffix == ".h5":
        return True
    if (path / "detector.json").exists():
        return False
    return any((path / name).exists() for name in ("config.json", "adapter_config.json"))


def import_published(
    weights: Path,
    allowed: tuple[str, ...] | list[str] = (),
    fake_labels: FakeLabels | None = None,
) -> Detector:
    """The detector folder of another project's weights, made if it is not there yet.

    `allowed` are the architectures that are wanted; none: any. `fake_labels` are the labels that
    the user says mean fake. Raises UserError for weights that are not known here, of another
    architecture, or whose labels do not say what is fake, and where the framework for the import
    is missing.
    """
    published = find_published(weights)
    name = published.architecture.name
    if allowed and name not in allowed:
        raise UserError(
            f"{weights}: these are weights of {name}, and this script scores with "
            f"{', '.join(allowed)}: use the script named after it."
        )
    fake = published.decide(fake_labels or FakeLabels())
    state = repr(([sha256_of(file) for file in published.files], fake)).encode()
    checksum = hashlib.sha256(state).hexdigest()[:16]
    folder = cache_folder() / "published" / f"{published.name}-{checksum}"
    try:
        return load_detector(folder)
    except UserError:  # not there yet, damaged, or of another version: made anew
        try:
            _convert(published, folder, weights, fake)
        except OSError as error:
            raise UserError(
                f"{folder}: the imported weights cannot be kept there ({error.strerror}); set "
                "XDG_CACHE_HOME to a folder that can be written."
            ) from error
    return load_detector(folder)


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
        lambda folder, _: _fill_with_keras(ARCHITECTURES[architecture], path, folder),
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
        lambda folder, fake: _fill_with_keras(architecture, path, folder, fake.output),
    )


def _fill_with_keras(
    architecture: Architecture, path: Path, folder: Path, fake_output: int = 0
) -> None:
    """`fill_with_keras` in a process of its own, on TensorFlow: this one may need torch later."""
    repository = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.published", architecture.name]
        + [str(path.resolve()), str(folder.resolve()), str(fake_output)],
        cwd=repository,
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",
    )
    if done.returncode:
        reason = done.stderr.strip() or f"the import ended with code {done.returncode}"
        raise UserError(f"{path}: {reason.splitlines()[-1]}")


def fill_with_keras(
    architecture: Architecture, path: Path, folder: Path, fake_output: int = 0
) -> None:
    """Write the graph and the weights of a Keras network that others trained into `folder`.

    `fake_output`: with 1 the weights mean P(fake), with 0 P(real). Raises ValueError where the file
    holds another network.
    """
    from pipeline.keras_export import WEIGHTS, export_graph  # before another imports TensorFlow

    from models.published import load_reversed  # isort: skip

    model = architecture.build()
    try:
        if fake_output == 1:
            model.load_weights(path)
        else:
            load_reversed(model, path)
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(
            f"these are not the weights of a {architecture.name} with the usual head "
            f"({str(error).splitlines()[0]})."
        ) from None
    if architecture.name == "efficientnet_b0":
        from models.efficientnet import set_normalization

        set_normalization(model)  # theirs is spread over two layers, ours is in one
    export_graph(model, folder / GRAPH)
    model.save_weights(folder / WEIGHTS)


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
        lambda target, fake: _fill_with_torch(architecture, folder, target, fake),
    )


def _fill_with_torch(
    architecture: Architecture, folder: Path, target: Path, fake: FakeClass
) -> None:
    from pipeline.hugging_face import classifier_of
    from pipeline.torch_export import export_graph
    from pipeline.torch_weights import WEIGHTS

    network, is_plain = classifier_of(folder, architecture, fake)
    export_graph(network, architecture.input_size, target / GRAPH)
    if is_plain:
        from safetensors.torch import save_file

        save_file(network.state_dict(), target / WEIGHTS)


def _convert(published: Published, folder: Path, weights: Path, fake: FakeClass | None) -> None:
    if importlib.util.find_spec(published.needs) is None:
        framework = {"tensorflow": "TensorFlow", "torch": "torch"}[published.needs]
        raise UserError(
            f"{weights}: importing published weights, which is done once, needs {framework}: "
            "pip install -r requirements.txt"
        )
    require_memory("the import of published weights", LEAST_TO_TRAIN)
    print(f"Importing {weights} (once; it takes some seconds to start)…", file=sys.stderr)
    description = {
        "name": published.name,
        "architecture": published.architecture.name,
        "input": describe_input(published.architecture, published.resize_filter),
        "face": {"mode": "none", "margin": 1.0},
        "calibration": {
            "temperature": 1.0,
            "threshold": 0.5,
            "uncertain_from": 0.5,
            "rule": "as published, not calibrated",
        },
        "metrics": {},
        "training": {"start": "published", "source": published.source},
    }
    if fake:
        description["fake_class"] = fake.as_section()
    with write_detector(folder, description) as new:
        published.fill(new, fake)


if __name__ == "__main__":
    name, weights, target, fake_output = sys.argv[1:]
    try:
        fill_with_keras(ARCHITECTURES[name], Path(weights), Path(target), int(fake_output))
    except ValueError as error:
        sys.exit(str(error))
