"""The detector folder: all that scoring needs to know, written whole or not at all.

`detector.json` describes a trained network; `model.onnx` is its graph; the weights to go on
training from and a model card lie beside them. Nothing in it is a pickle.
"""

import contextlib
import copy
import json
import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

from models import ARCHITECTURES, Architecture
from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write, recover_folder, sha256_of, write_folder
from pipeline.detectors.calibration import Calibration
from pipeline.detectors.detector_values import (
    calibration_in,
    face_in,
    fake_class_in,
    hub_in,
    input_in,
    options_in,
)

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"  # the detector folders' place
FORMAT = 1
GRAPH = "model.onnx"
NUMBERS = "model.numbers.bin"  # what is large in a graph with 8-bit weights, see graph_weights.py
INT8_GRAPH = ("model.int8.xml", "model.int8.bin")  # beside it, where precision.py found it good


@dataclass(frozen=True)
class Detector:
    """A detector folder that has been read and verified.

    `resize_filter` as in `images.resize`; `face_mode` and `margin` as in `faces.face_regions`.
    `description` is the whole of detector.json. Two detectors that score as one have `members`, see
    together.py.
    """

    folder: Path
    name: str
    architecture: Architecture
    resize_filter: str
    face_mode: str
    margin: float
    calibration: Calibration
    description: dict
    members: tuple["Detector", ...] = ()

    @property
    def graph(self) -> Path:
        return self.folder / GRAPH


def load_detector(folder: Path) -> Detector:
    """Read and verify a detector folder. Raises UserError, in one sentence, for whatever is wrong
    with it: missing, damaged, changed, or of an unknown format or architecture."""
    recover_folder(folder)
    description = check_folder(folder)
    try:
        if description["format"] != FORMAT:
            raise UserError(
                f"{folder}: its format is {description['format']} and this program knows {FORMAT}: "
                "update the program, or train the detector again."
            )
        architecture = ARCHITECTURES.get(str(description["architecture"]))
        if architecture is None:
            raise UserError(
                f"{folder}: its architecture {description['architecture']!r} is unknown here: "
                "update the program, or train the detector again."
            )
        size, scaling, layout, resize_filter = input_in(description)
        face_mode, margin = face_in(description)
        calibration = calibration_in(description)
        fake_class_in(description)
        hub_in(description)
        if GRAPH not in description["files"]:
            raise UserError(f"{folder}: it has no {GRAPH}: train or download the detector again.")
        return Detector(
            folder,
            description["name"],
            replace(
                architecture.with_options(**options_in(description)),
                input_size=size,
                scaling=scaling,
                layout=layout,
            ),
            resize_filter,
            face_mode,
            margin,
            calibration,
            description,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / 'detector.json'} is incomplete or malformed ({error}): train or download "
            "the detector again."
        ) from error


def check_folder(folder: Path) -> dict:
    """The content of `folder`/detector.json, once every file that it lists has been verified.

    Raises UserError where it is missing or malformed, or a listed file is missing or changed.
    """
    path = folder / "detector.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder}: there is no detector here (no detector.json): train one, or download one "
            "with download_weights.py."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): train or download the detector again."
        ) from None
    files = description.get("files") if isinstance(description, dict) else None
    if not isinstance(files, dict) or not files or not isinstance(description.get("name"), str):
        raise UserError(
            f"{path} lacks `name` or `files` (name: sha256): train or download the detector again."
        )
    for name, sha256 in files.items():
        if not is_inside(name):
            raise UserError(f"{path} names the file {name!r}, which lies outside: do not use it.")
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing: train or download the detector again.")
        try:
            found = sha256_of(folder / name)
        except OSError as error:
            raise UserError(
                f"{folder / name} cannot be read ({error.strerror}): train or download the "
                "detector again."
            ) from None
        if found != sha256:
            raise UserError(
                f"{folder / name} is not the file that detector.json describes (its SHA-256 "
                "differs): train or download the detector again."
            )
    return description


def is_inside(name: str) -> bool:
    """Whether a relative POSIX path stays inside its folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def describe_input(architecture: Architecture, resize_filter: str) -> dict:
    """The section `input` of detector.json."""
    return {
        "size": architecture.input_size,
        **asdict(architecture.scaling),
        "layout": architecture.layout,
        "resize": resize_filter,
    }


def as_start(description: dict) -> str:
    """How a training that goes on from a detector of this `description` names its start: in
    brackets stands what the first of all trainings began with."""
    first = description.get("training", {}).get("start", "not stated")
    first = re.sub(r"^detector .* \((.+)\)$", r"\1", first)
    return f"detector {description['name']} ({first})"


@contextlib.contextmanager
def write_detector(target: Path, description: dict) -> Iterator[Path]:
    """Give the block a new folder to fill; then add detector.json and let it replace `target`.

    All files in it are listed with their checksums. Until the end, and if the block raises or the
    program is killed, `target` stays as it was.
    """
    with write_folder(target) as new:
        yield new
        files = sorted(path for path in new.rglob("*") if path.is_file())
        checksums = {path.relative_to(new).as_posix(): sha256_of(path) for path in files}
        with atomic_write(new / "detector.json") as file:
            json.dump({"format": FORMAT, **description, "files": checksums}, file, indent=1)
            file.write("\n")


@contextlib.contextmanager
def change_detector(
    detector: Detector, without: Collection[str] = ()
) -> Iterator[tuple[Path, dict]]:
    """Give the block a copy of a detector folder, but for the files `without`, and the sections of
    its detector.json, both to be changed; then let it replace the detector, as write_detector."""
    description = copy.deepcopy(detector.description)
    names = description.pop("files")
    with write_detector(detector.folder, description) as new:
        for name in names:
            if name not in without:
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(detector.folder / name, new / name)
        yield new, description
