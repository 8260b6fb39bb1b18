"""A detector folder as one file: a plain tar, and safely back.

Uncompressed, because weights hardly shrink, because its bytes then depend on no compressor's
version, and because nothing unpacked from it can be larger than the archive.
"""

import hashlib
import os
import re
import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO

from pipeline.common.errors import UserError
from pipeline.common.files import replace_folder
from pipeline.detectors.detector import INT8_GRAPH, NUMBERS, check_folder

# Only these are unpacked or saved: no pickle, no script. The last two are the model card and its
# plots, which `files` of detector.json need not list.
WEIGHT_TYPES = {".h5", ".onnx", ".safetensors"}
_CARD_TYPES = {".md", ".png"}
_DETECTOR_TYPES = WEIGHT_TYPES | _CARD_TYPES | {".json", ".jsonl"}
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


def pack_detector(folder: Path, stream: IO[bytes]) -> None:
    """Write a checked detector folder to `stream` as a tar; the same files give the same bytes.

    Packed are detector.json, the files that it lists, and the model card with its pictures.
    """
    detector = check_folder(folder)
    card = {path.name for path in folder.iterdir() if path.suffix in _CARD_TYPES}
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted({"detector.json", *detector["files"], *card}):
            # A TarInfo made by hand has no owner, mode 644 and the time 0.
            member = tarfile.TarInfo(f"{folder.name}/{_safe_path(name, folder)}")
            with open(folder / name, "rb") as file:
                member.size = os.fstat(file.fileno()).st_size
                archive.addfile(member, file)


def packed_sha256(folder: Path) -> str:
    """The SHA-256 of what pack_detector makes of a folder. Raises OSError and UserError as it."""
    packed = _Hashed()
    pack_detector(folder, packed)
    return packed.digest.hexdigest()


def unpack_detector(part: Path, name: str, url: str, target: Path) -> None:
    """Put the detector folder packed in `part` in the place of `target`, and delete `part`.

    Raises UserError where it is not the detector `name`, or holds what no detector does; `url` is
    where it came from.
    """
    new = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(new, ignore_errors=True)  # left there by a process that was killed
    new.mkdir()
    try:
        _extract(part, name, new)
        detector = check_folder(new)
        if detector["name"] != name:
            raise UserError(f"its detector.json is that of {detector['name']!r}")
        unlisted = _files_below(new) - set(detector["files"]) - {"detector.json"}
        if any(PurePosixPath(file).suffix not in _CARD_TYPES for file in unlisted):
            raise UserError(f"detector.json does not list {', '.join(sorted(unlisted))}")
        replace_folder(new, target)
    except (UserError, tarfile.TarError, ValueError, FileExistsError, NotADirectoryError) as error:
        part.unlink()
        raise UserError(
            f"The archive of {name} was refused and deleted, and nothing was installed: "
            f"{str(error).rstrip('.')}. Report it to whoever published {url}."
        ) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    part.unlink()


def _extract(part: Path, detector: str, new: Path) -> None:
    with tarfile.open(part, "r:") as archive:
        for member in archive:
            folder, _, name = member.name.partition("/")
            if folder != detector or member.type != tarfile.REGTYPE or member.issparse():
                raise UserError(f"{member.name!r} is no plain file of the folder {detector}")
            path = new / _safe_path(name, part)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as file:
                shutil.copyfileobj(archive.extractfile(member), file)


def _safe_path(name: str, where: Path) -> str:
    """`name`, when it is a relative path of plain names that ends in an expected type.

    Plain names begin with a letter, digit or underscore: that leaves out "..", hidden files,
    absolute paths, drive letters and backslashes.
    """
    plain = all(PLAIN_NAME.fullmatch(component) for component in name.split("/"))
    expected = PurePosixPath(name).suffix in _DETECTOR_TYPES or name in (NUMBERS, *INT8_GRAPH)
    if not plain or len(name) > 200 or not expected:
        types = " ".join(sorted(_DETECTOR_TYPES))
        raise UserError(
            f"{where} names the file {name!r}, which no detector holds: allowed are relative "
            f"paths of letters, digits, '.', '_' and '-' that end in {types}"
        )
    return name


def _files_below(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


class _Hashed:
    """A stream that keeps only the SHA-256 of what is written to it."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return len(data)
