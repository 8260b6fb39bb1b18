"""Trained weights that are too large for the repository: what there is, and fetching it safely.

The list is `weights/releases.json`. A release is one file, or a detector folder as packing.py packs
it; so nothing unpacked can be larger than the size that the list states.
"""

import contextlib
import hashlib
import http.client
import json
import os
import re
import string
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from pipeline.common.errors import UserError
from pipeline.common.files import recover_folder, sha256_of
from pipeline.detectors.detector import WEIGHTS, check_folder
from pipeline.foreign.packing import PLAIN_NAME, WEIGHT_TYPES, packed_sha256, unpack_detector

try:
    import fcntl
except ImportError:
    # Windows: there the system itself refuses to rename a file that another program has open.
    fcntl = None

TIMEOUT_SECONDS = 30
_CHUNK = 64 * 1024


@dataclass(frozen=True)
class Release:
    """One entry of the list; `size` (bytes) and `sha256` (hex) are those of the file at `url`."""

    name: str
    url: str
    sha256: str
    size: int
    kind: str  # "file", or "detector": the tar of a detector folder
    licence: str
    description: str

    @property
    def file_name(self) -> str:
        return PurePosixPath(urllib.parse.urlsplit(self.url).path).name

    def target(self, folder: Path) -> Path:
        """Where it is used from: the file, or the detector folder."""
        return folder / (self.name if self.kind == "detector" else self.file_name)

    def part(self, folder: Path) -> Path:
        """The download while it is not complete."""
        return folder / f"{self.file_name}.part"


def load_releases(path: str | Path = WEIGHTS / "releases.json") -> dict[str, Release]:
    """The releases that the list at `path` names, by name, in its order.

    Raises UserError where the list is missing, is no JSON, or has an entry that is not as
    `Release` says.
    """
    return check_entries(read_entries(path), path)


def check_entries(entries: list[dict], path: str | Path) -> dict[str, Release]:
    """The entries as releases, by name; a UserError that names `path` for a malformed one."""
    releases: dict[str, Release] = {}
    taken: set[str] = set()
    for number, raw in enumerate(entries, start=1):
        problem = _problem(raw)
        if problem is None:
            release = Release(**raw)
            # In lower case, for file systems that do not tell the cases apart.
            places = {release.name.lower(), release.file_name.lower()}
            if places & taken:
                problem = f"the name {release.name} or {release.file_name} is there twice"
        if problem is not None:
            raise UserError(f"{path}: entry {number}: {problem}: mend it or get the list anew.")
        releases[release.name] = release
        taken |= places
    return releases


def read_entries(path: str | Path) -> list[dict]:
    """The entries of the list as they stand in its JSON, unchecked."""
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: get it from the repository.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): get it from the repository.") from None
    if not isinstance(entries, list):
        raise UserError(f"{path} is not a JSON list of releases: get it from the repository.")
    return entries


def status(release: Release, folder: str | Path) -> str:
    """Whether it is in `folder`: "yes" (checksum right), "differs", "partly" or "no"."""
    folder = Path(folder)
    if _is_installed(release, folder):
        return "yes"
    if release.target(folder).exists():
        return "differs"
    part = release.part(folder)
    return "partly" if part.exists() and part.stat().st_size else "no"


def download(
    release: Release, folder: str | Path, mirror: str | None = None, progress: bool = True
) -> Path:
    """Fetch `release` into `folder` and return the path of the file or detector folder.

    `mirror` is a base address that takes the place of everything before the file's name.
    `progress` shows a bar on a terminal, and says on standard error what was found.

    What is there already and right is kept. Otherwise the bytes go to `<file>.part`, which a later
    call goes on from however the first ended, and which takes its place (or is unpacked) only when
    size and SHA-256 are right: so a broken or killed download never harms what was good.
    Downloads into one folder take turns, by a lock that the system releases even after kill -9;
    the alternative, one part file for each process, could not tell an abandoned part from one that
    another process is still writing, and so could not resume.

    Raises UserError, with the address and where to put the file by hand, where that fails.
    """
    folder = Path(folder).absolute()
    url = _address(release, mirror)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _turn(folder, progress):
            target, part = release.target(folder), release.part(folder)
            if release.kind == "detector":
                recover_folder(target)
            if _is_installed(release, folder):
                _say(f"{target} is already there, and its checksum is right.", progress)
                return target
            if target.exists():
                _refuse_to_replace_own_work(release, target)
                _say(f"{target} has a wrong checksum: downloading it anew.", progress)
            _complete(release, url, part, progress)
            if release.kind == "detector":
                unpack_detector(part, release.name, release.url, target)
            else:
                os.replace(part, target)
            return target
    except OSError as error:
        raise UserError(
            f"Cannot write in {folder} ({error.strerror or error}): free space, change its "
            "permissions or choose another folder."
        ) from None


def require_web_address(url: str) -> None:
    """Raise UserError unless `url` is an http or https address with a host."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        parts = urllib.parse.urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{url!r} is not an http or https address: give one such as https://…/")


def _problem(raw: object) -> str | None:
    """What is wrong with one entry of the list, or None."""
    names = [field.name for field in fields(Release)]
    if not isinstance(raw, dict) or set(raw) != set(names):
        return f"it must have exactly {', '.join(names)}"
    for name in set(names) - {"size"}:
        if not isinstance(raw[name], str) or not raw[name].strip():
            return f"{name} must be text"
    if not PLAIN_NAME.fullmatch(raw["name"]):
        return f"the name {raw['name']!r} may have only letters, digits, '.', '_' and '-'"
    if type(raw["size"]) is not int or raw["size"] <= 0:
        return "size must be a number of bytes"
    if not re.fullmatch("[0-9a-f]{64}", raw["sha256"]):
        return "sha256 must be 64 lower-case hexadecimal digits"
    if raw["kind"] not in ("file", "detector"):
        return 'kind must be "file" or "detector"'
    try:
        require_web_address(raw["url"])
    except UserError:
        return f"the address {raw['url']!r} must begin with http:// or https://"
    file_name = Release(**raw).file_name
    types = {".tar"} if raw["kind"] == "detector" else WEIGHT_TYPES
    if not PLAIN_NAME.fullmatch(file_name) or PurePosixPath(file_name).suffix not in types:
        return f"the address must end in a file name of type {' '.join(sorted(types))}"
    return None


def _is_installed(release: Release, folder: Path) -> bool:
    target = release.target(folder)
    if release.kind == "file":
        return target.is_file() and sha256_of(target) == release.sha256
    # Packing is deterministic, so a folder is the release if packing it gives the release's bytes.
    try:
        return packed_sha256(target) == release.sha256
    except (OSError, UserError):
        return False


def _refuse_to_replace_own_work(release: Release, target: Path) -> None:
    """Raise UserError for a folder that is no damaged copy: it may be what somebody trained."""
    if release.kind == "file":
        return
    if (target / "detector.json").is_file():
        try:
            check_folder(target)
        except UserError:
            return
    raise UserError(
        f"{target} holds something else than the release {release.name}, perhaps your own "
        "training: rename it, or choose another folder for the download."
    )


@contextlib.contextmanager
def _turn(folder: Path, progress: bool) -> Iterator[None]:
    """Wait until no other process downloads into `folder`."""
    # The lock file stays: deleting it would let a third process lock a new one beside a waiting
    # second.
    with open(folder / ".download.lock", "wb") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _say(f"Waiting for another download into {folder} to end.", progress)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _address(release: Release, mirror: str | None) -> str:
    if mirror is None:
        return release.url
    require_web_address(mirror)
    url = f"{mirror.rstrip('/')}/{release.file_name}"
    return urllib.parse.quote(url, safe=string.punctuation)  # for spaces and letters beyond ASCII


def _complete(release: Release, url: str, part: Path, progress: bool) -> None:
    """Bring `part` to the release's full content, verified, going on from what it holds."""
    with open(part, "a+b") as file:
        digest = _receive(release, url, file, part, progress)
        file.flush()
        os.fsync(file.fileno())
    if digest != release.sha256 or part.stat().st_size != release.size:
        part.unlink()
        raise UserError(_not_as_listed(release, url))


def _receive(release: Release, url: str, file: IO[bytes], part: Path, progress: bool) -> str:
    """Append to `file` what it lacks; the SHA-256 of all that it then holds."""
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256")
    have = file.tell()
    if have > release.size or (have == release.size and digest.hexdigest() != release.sha256):
        file.truncate(0)
        digest, have = hashlib.sha256(), 0
    if have == release.size:
        return digest.hexdigest()

    with _network_errors_as_sentence(release, url, part):
        response = _open(url, offset=have)
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        expected = release.size - have if resumed else release.size
        # Refused before the first byte, so that an error page costs no part that was right so far.
        if response.length not in (None, expected):
            raise UserError(_not_as_listed(release, url))
        if not resumed:
            file.truncate(0)
            digest, have = hashlib.sha256(), 0
        with tqdm(
            desc=release.name,
            total=release.size,
            initial=have,
            unit="B",
            unit_scale=True,
            disable=None if progress else True,
        ) as bar:
            while have <= release.size:
                with _network_errors_as_sentence(release, url, part):
                    chunk = response.read(_CHUNK)
                if not chunk:
                    break
                file.write(chunk)
                digest.update(chunk)
                have += len(chunk)
                bar.update(len(chunk))
    if have < release.size:
        raise UserError(
            f"The connection to {url} ended after {have:,} of {release.size:,} bytes: run the same "
            "command again, it goes on from there."
        )
    return digest.hexdigest()


def _open(url: str, offset: int) -> http.client.HTTPResponse:
    """The answer with the bytes from `offset` on (status 206), or with all of them (200)."""
    request = urllib.request.Request(url, headers={"User-Agent": "deepfake-face-detection"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    # Made here, not at import: it reads the proxies from the environment.
    opener = urllib.request.build_opener(_WebRedirects)
    try:
        response = opener.open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if offset and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            error.close()
            return _open(url, offset=0)
        raise
    if response.status == http.HTTPStatus.OK:
        return response
    content_range = response.headers.get("Content-Range", "")
    if (
        offset
        and response.status == http.HTTPStatus.PARTIAL_CONTENT
        and content_range.startswith(f"bytes {offset}-")
    ):
        return response
    response.close()
    if offset:
        return _open(url, offset=0)
    raise urllib.error.URLError(f"unexpected answer HTTP {response.status}")


class _WebRedirects(urllib.request.HTTPRedirectHandler):
    """urllib itself refuses redirects to file:, but would follow one to ftp:."""

    def redirect_request(self, request, response, code, message, headers, url):
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise urllib.error.URLError(f"it redirects to {url}, which is no web address")
        return super().redirect_request(request, response, code, message, headers, url)


@contextlib.contextmanager
def _network_errors_as_sentence(release: Release, url: str, part: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error if isinstance(error, urllib.error.HTTPError) else None
        reason = reason or getattr(error, "reason", None) or str(error) or type(error).__name__
        # A complete part is taken as it is, without asking the server, so that is the place for a
        # packed detector; a plain file can go straight to where it belongs.
        place = part if release.kind == "detector" else part.with_suffix("")
        raise UserError(
            f"Cannot download {release.name} from {url} ({reason}): run the same command again "
            "later (it goes on where it stopped), or fetch that address by other means, save it "
            f"as {place} and run the command again to check it."
        ) from None


def _not_as_listed(release: Release, url: str) -> str:
    return (
        f"What {url} sends is not {release.name} as the list has it ({release.size:,} bytes, "
        f"SHA-256 {release.sha256}): nothing was installed; try again, or another source."
    )


def _say(sentence: str, progress: bool) -> None:
    if progress:
        print(sentence, file=sys.stderr)
