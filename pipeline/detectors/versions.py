"""The versions of a detector: each kept whole, one of them in use.

`weights/vit/` is what scores; `weights/vit.versions/v1/`, `v2/`, … are the detector folders that
have been there or wait to be. Files of a version and of the folder in use are the same files on the
disk (hard links) where the file system can do that: nothing ever changes them in place.
"""

import os
import shutil
import tempfile
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import recover_folder, replace_folder, sha256_of
from pipeline.detectors.detector import check_folder

_VERSIONS = ".versions"  # what the name of a detector's folder of versions ends with


def versions_of(detector: Path) -> dict[int, Path]:
    """Number → folder of the versions that are there, in order."""
    found = {}
    for folder in _home(detector).glob("v*"):
        number = folder.name[1:]
        if number.isdecimal() and (folder / "detector.json").exists():
            found[int(number)] = folder
    return dict(sorted(found.items()))


def current_version(detector: Path) -> int | None:
    """Which version is in use; None where that is none of those kept."""
    in_use = sha256_of(detector / "detector.json")
    for number, folder in versions_of(detector).items():
        if sha256_of(folder / "detector.json") == in_use:
            return number
    return None


def copies_of(detector: Path) -> list[Path]:
    """The other folders of a detector's family that hold the same: of the one in use the version
    that it is, and the other way round."""
    detector = Path(os.path.abspath(detector))
    family = detector
    if detector.parent.suffix == _VERSIONS:
        family = detector.parent.with_suffix("")
    content = sha256_of(detector / "detector.json")
    return [
        folder
        for folder in (family, *versions_of(family).values())
        if folder != detector
        and (folder / "detector.json").exists()
        and sha256_of(folder / "detector.json") == content
    ]


def keep_version(detector: Path) -> int:
    """Keep what is in use as a version, unless it is one already; its number."""
    number = current_version(detector)
    if number is None:
        folder = next_version(detector)
        number = int(folder.name[1:])
        copy_detector(detector, folder)
    return number


def next_version(detector: Path) -> Path:
    """The folder of the version to come."""
    return _home(detector) / f"v{max(versions_of(detector), default=0) + 1}"


def use_version(detector: Path, number: int) -> None:
    """Put a version in use. What was in use is kept as a version. Raises UserError without it."""
    versions = versions_of(detector)
    if number not in versions:
        there = ", ".join(map(str, versions)) or "none"
        raise UserError(f"{detector}: there is no version {number} (there: {there}).")
    check_folder(versions[number])
    recover_folder(detector)
    if detector.exists():
        keep_version(detector)
    copy_detector(versions[number], detector)


def copy_detector(source: Path, target: Path) -> None:
    """Let the folder `target` hold the files of `source`, all at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent))
    try:
        shutil.copytree(source, new, dirs_exist_ok=True, copy_function=_link)
        new.chmod(0o755)
        replace_folder(new, target)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _home(detector: Path) -> Path:
    return detector.with_name(detector.name + _VERSIONS)
