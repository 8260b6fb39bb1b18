"""MesoNet's published .h5 files, imported once into detector folders that scoring can use.

The folder lies in the user's cache. The import needs TensorFlow;
scoring from then on does not.
"""

import importlib.util
import sys
from pathlib import Path

from models import ARCHITECTURES
from pipeline.detector import GRAPH, Detector, describe_input, load_detector, write_detector
from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.runtime import cache_folder

# Only these: another file of the same shape may mean P(fake) where these mean P(real).
PUBLISHED = {
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


def import_published(path: Path) -> Detector:
    """The detector folder of a published file, made if it is not there yet.

    It scores as its authors did: the whole picture, nearest neighbour, threshold 0.5 on an
    uncalibrated probability, turned round from P(real) to fake_probability. Raises UserError for
    any other file, and where TensorFlow is missing.
    """
    name, architecture = published_file(path)
    folder = cache_folder() / "published" / name
    try:
        return load_detector(folder)
    except UserError:  # not there yet, damaged, or of another version: made anew
        try:
            _convert(path, folder, name, architecture)
        except OSError as error:
            raise UserError(
                f"{folder}: the imported weights cannot be kept there ({error.strerror}); set "
                "XDG_CACHE_HOME to a folder that can be written."
            ) from error
    return load_detector(folder)


def published_file(path: Path) -> tuple[str, str]:
    """The name and the architecture of a published file. Raises UserError for any other file."""
    try:
        checksum = sha256_of(path)
    except OSError as error:
        raise UserError(
            f"{path}: this file cannot be read ({error.strerror}); `python download_weights.py` "
            "lists the published weights and fetches them."
        ) from error
    if checksum not in PUBLISHED:
        raise UserError(
            f"{path}: this is none of MesoNet's four published weight files (by its SHA-256), so "
            "nothing says which of its two classes is fake; name a detector folder instead."
        )
    return PUBLISHED[checksum]


def _convert(path: Path, folder: Path, name: str, architecture_name: str) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"{path}: importing published weights, which is done once, needs TensorFlow: "
            "pip install -r requirements.txt"
        )
    print(f"Importing {path} (once; TensorFlow takes some seconds to start)…", file=sys.stderr)
    from pipeline.keras_training import export_graph  # before anything else imports TensorFlow

    from models.meso import load_published_weights  # isort: skip

    architecture = ARCHITECTURES[architecture_name]
    model = architecture.build()
    load_published_weights(model, path)
    description = {
        "name": name,
        "architecture": architecture_name,
        "input": describe_input(architecture, "nearest"),
        "face": {"mode": "none", "margin": 1.0},
        "calibration": {
            "temperature": 1.0,
            "threshold": 0.5,
            "uncertain_from": 0.5,
            "rule": "as published, not calibrated",
        },
        "metrics": {},
        "training": {
            "start": "published",
            "source": "Afchar et al., MesoNet, WIFS 2018 (Apache-2.0)",
        },
    }
    with write_detector(folder, description) as new:
        export_graph(model, new / GRAPH)
