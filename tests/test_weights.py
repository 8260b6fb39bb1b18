"""Downloading weights from a real (local) web server that is slow, broken, wrong or hostile."""

import contextlib
import hashlib
import http.server
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import UserError
from pipeline.foreign import downloads as weights
from pipeline.foreign.downloads import (
    Release,
    check_entries,
    download,
    load_releases,
    status,
)
from pipeline.foreign.packing import pack_detector
from tests.shared import SHARED, needs_shared

REPOSITORY = Path(__file__).resolve().parent.parent
CONTENT = random.Random(0).randbytes(1_000_000)


class Server:
    """Serves `files` (path: bytes) on this machine; the switches make it misbehave."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.ranges = True  # whether it understands Range
        self.range_error: int | None = None  # answers every Range so
        self.range_shift = 0  # answers another range than asked for
        self.states_length = True
        self.stop_after: int | None = None  # bytes of a body, then the connection is cut
        self.pause_after: int | None = None  # bytes of a body, then it waits for `go_on`
        self.go_on = threading.Event()
        self.requests: list[tuple[str, str | None]] = []  # (path, Range)
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self.go_on.set()
        self._http.shutdown()
        self._http.server_close()

    def _handler(server):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *args):
                pass

        return Handler

    def answer(self, request) -> None:
        wanted = request.headers.get("Range")
        self.requests.append((request.path, wanted))
        if request.path in self.redirects:
            request.send_response(302)
            request.send_header("Location", self.redirects[request.path])
            request.end_headers()
            return
        if request.path not in self.files:
            request.send_error(404)
            return
        if wanted and self.range_error:
            request.send_error(self.range_error)
            return
        body = self.files[request.path]
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) + self.range_shift
            if start >= len(body):
                request.send_error(416)
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            body = body[start:]
        else:
            request.send_response(200)
        if self.states_length:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        with contextlib.suppress(OSError):  # the client was killed or refused the rest
            if self.stop_after is not None:
                body = body[: self.stop_after]
            if self.pause_after is not None:
                request.wfile.write(body[: self.pause_after])
                body = body[self.pause_after :]
                self.go_on.wait(60)
            request.wfile.write(body)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def offer(server: Server, content: bytes = CONTENT, path: str = "/files/Net.h5") -> Release:
    """Let the server have `content`, and describe it."""
    server.files[path] = content
    return Release(
        name=Path(path).stem,
        url=server.url + path,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        kind="detector" if path.endswith(".tar") else "file",
        licence="Apache-2.0",
        description="random bytes",
    )


def write_detector(folder: Path, seed: int = 0, **changes) -> Path:
    """A folder with the outward form of a detector."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(random.Random(seed).randbytes(50_000))
    (folder / "model.weights.h5").write_bytes(random.Random(seed + 1).randbytes(30_000))
    (folder / "README.md").write_text("# Card\n")
    (folder / "roc.png").write_bytes(b"\x89PNG plot")
    files = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("model.onnx", "model.weights.h5")
    }
    detector = {"format": 1, "name": folder.name, "architecture": "meso4", "files": files}
    (folder / "detector.json").write_text(json.dumps(detector | changes))
    return folder


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def packed(folder: Path) -> bytes:
    stream = io.BytesIO()
    pack_detector(folder, stream)
    return stream.getvalue()


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".download.lock"}


# What goes well


def test_download_gives_the_file_and_leaves_nothing_else(server, tmp_path):
    release = offer(server)
    folder = tmp_path / "neue Gewichte" / "é"
    assert status(release, folder) == "no"
    assert download(release, folder) == folder / "Net.h5"
    assert (folder / "Net.h5").read_bytes() == CONTENT
    assert names_in(folder) == {"Net.h5"}
    assert status(release, folder) == "yes"


def test_what_is_there_and_right_is_not_asked_for_again(server, tmp_path, capsys):
    release = offer(server)
    download(release, tmp_path)
    download(release, tmp_path)
    assert len(server.requests) == 1
    assert "already there" in capsys.readouterr().err


def test_a_wrong_file_is_replaced_only_by_a_verified_one(server, tmp_path, capsys):
    release = offer(server)
    (tmp_path / "Net.h5").write_bytes(b"old")
    assert status(release, tmp_path) == "differs"
    server.stop_after = 300_000
    with pytest.raises(UserError, match="ended after"):
        download(release, tmp_path)
    assert (tmp_path / "Net.h5").read_bytes() == b"old"
    assert "wrong checksum" in capsys.readouterr().err
    server.stop_after = None
    download(release, tmp_path)
    assert (tmp_path / "Net.h5").read_bytes() == CONTENT


def test_mirror_replaces_everything_before_the_file_name(server, tmp_path):
    release = replace(offer(server), url="https://nowhere.invalid/a/b/Net.h5")
    server.files["/m%C3%BCller/my%20mirror/Net.h5"] = CONTENT
    download(release, tmp_path, mirror=f"{server.url}/müller/my mirror/")
    assert (tmp_path / "Net.h5").read_bytes() == CONTENT


def test_the_proxy_of_the_environment_is_used(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    release = replace(offer(server), url="http://nowhere.invalid/Net.h5")
    server.files["http://nowhere.invalid/Net.h5"] = CONTENT
    download(release, tmp_path)
    assert server.requests == [("http://nowhere.invalid/Net.h5", None)]
    assert (tmp_path / "Net.h5").read_bytes() == CONTENT


def test_a_redirect_to_another_web_address_is_followed(server, tmp_path):
    release = offer(server)
    server.files["/elsewhere"] = server.files.pop("/files/Net.h5")
    server.redirects["/files/Net.h5"] = "/elsewhere"
    release.part(tmp_path).write_bytes(CONTENT[:1000])
    download(release, tmp_path)
    assert (tmp_path / "Net.h5").read_bytes() == CONTENT
    assert server.requests[-1] == ("/elsewhere", "bytes=1000-")


@needs_shared
def test_the_shipped_list_describes_the_published_files():
    releases = load_releases()
    assert {r.name for r in releases.values() if r.kind == "file"} >= {
        *("Meso4_DF", "Meso4_F2F", "MesoInception_DF", "MesoInception_F2F")
    }
    for path in (SHARED / "mesonet").glob("*.h5"):
        release = releases[path.stem]
        assert release.file_name == path.name
        assert release.size == path.stat().st_size
        assert release.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


# Going on after an interruption


def test_a_truncated_download_goes_on_where_it_stopped(server, tmp_path):
    release = offer(server)
    server.stop_after = 400_000
    with pytest.raises(UserError, match=r"400,000 of 1,000,000.*goes on from there"):
        download(release, tmp_path)
    assert status(release, tmp_path) == "partly"
    server.stop_after = None
    download(release, tmp_path)
    assert (tmp_path / "Net.h5").read_bytes() == CONTENT
    assert server.requests[-1][1] == "bytes=400000-"


def test_a_server_that_ignores_range_is_read_from_the_start(server, tmp_path):
    release = offer(server)
    release.part(tmp_path).write_bytes(CONTENT[:123_456])
    server.ranges = False
    download(release, tmp_path)
    assert (tmp_path / "Net.h5").read_bytes() == CONTENT


def test_a_server_that_answers_416_is_read_from_the_start(server, tmp_path):
    release = offer(server)
    release.part(tmp_path).write_bytes(CONTENT[:123_456])
    server.range_error = 416
    download(release, tmp_path)
    assert [asked for _, asked in server.requests] == ["bytes=123456-", None]
    assert (tmp_path / "Net.h5").read_bytes() == CONTENT


def test_another_range_than_asked_for_is_not_appended(server, tmp_path):
    release = offer(server)
    release.part(tmp_path).write_bytes(CONTENT[:123_456])
    server.range_shift = 7
    download(release, tmp_path)
    assert (tmp_path / "Net.h5").read_bytes() == CONTENT


def test_a_complete_part_needs_no_network(tmp_path, server):
    release = offer(server)
    release.part(tmp_path).write_bytes(CONTENT)
    download(release, tmp_path)
    assert (tmp_path / "Net.h5").read_bytes() == CONTENT
    assert server.requests == []


@pytest.mark.parametrize("part", [b"x" * len(CONTENT), CONTENT + b"x"], ids=["wrong", "too long"])
def test_a_complete_part_that_is_wrong_is_thrown_away(server, tmp_path, part):
    release = offer(server)
    release.part(tmp_path).write_bytes(part)
    download(release, tmp_path)
    assert (tmp_path / "Net.h5").read_bytes() == CONTENT
    assert server.requests[-1][1] is None


def test_a_part_whose_beginning_is_wrong_does_not_stay(server, tmp_path):
    release = offer(server)
    release.part(tmp_path).write_bytes(b"wrong" * 1000)
    with pytest.raises(UserError, match="not Net as the list has it"):
        download(release, tmp_path)
    assert names_in(tmp_path) == set()
    download(release, tmp_path)
    assert (tmp_path / "Net.h5").read_bytes() == CONTENT


# What is refused


def test_wrong_content_is_not_installed(server, tmp_path):
    release = offer(server)
    server.files["/files/Net.h5"] = b"x" * release.size
    with pytest.raises(UserError, match=release.sha256):
        download(release, tmp_path)
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("states_length", [True, False])
def test_a_longer_file_is_refused(server, tmp_path, states_length):
    release = offer(server)
    server.files["/files/Net.h5"] = CONTENT + b"x" * 50_000_000
    server.states_length = states_length
    with pytest.raises(UserError, match="1,000,000 bytes"):
        download(release, tmp_path)
    assert not (tmp_path / "Net.h5").exists()
    assert status(release, tmp_path) == "no"


def test_an_error_page_does_not_cost_what_was_downloaded(server, tmp_path):
    release = offer(server)
    release.part(tmp_path).write_bytes(CONTENT[:500_000])
    server.files["/files/Net.h5"] = b"<html>log in first</html>"
    server.ranges = False
    with pytest.raises(UserError, match="not Net as the list has it"):
        download(release, tmp_path)
    assert release.part(tmp_path).read_bytes() == CONTENT[:500_000]


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://127.0.0.1/Net.h5", "data:,x"])
def test_a_redirect_out_of_the_web_is_refused(server, tmp_path, address):
    release = offer(server)
    server.redirects["/files/Net.h5"] = address
    with pytest.raises(UserError, match=r"Cannot download Net.*(not allowed|no web address)"):
        download(release, tmp_path)
    assert not (tmp_path / "Net.h5").exists()
    assert status(release, tmp_path) == "no"


@pytest.mark.parametrize(
    "mirror", ["file:///tmp", "ftp://host/", "mirror", "", "http://", "//x", "http://[/"]
)
def test_a_mirror_that_is_no_web_address_is_refused(server, tmp_path, mirror):
    with pytest.raises(UserError, match="not an http or https address"):
        download(offer(server), tmp_path, mirror=mirror)


def test_404_names_the_address_and_the_place(server, tmp_path):
    release = offer(server)
    server.files.clear()
    with pytest.raises(UserError) as error:
        download(release, tmp_path)
    sentence = str(error.value)
    assert "404" in sentence
    assert release.url in sentence
    assert f"save it as {tmp_path / 'Net.h5'} and" in sentence
    assert "\n" not in sentence


def test_offline_the_sentence_is_enough_to_install_by_hand(server, tmp_path, capsys):
    archive = packed(write_detector(tmp_path / "source" / "meso9"))
    for content, path in ((CONTENT, "/Net.h5"), (archive, "/meso9.tar")):
        release = replace(offer(server, content, path), url=f"http://127.0.0.1:1{path}")
        with pytest.raises(UserError, match="Connection refused") as error:
            download(release, tmp_path / "weights")
        place = str(error.value).partition("save it as ")[2].partition(" and run")[0]
        Path(place).write_bytes(content)
        download(release, tmp_path / "weights")
        assert status(release, tmp_path / "weights") == "yes"


def test_a_silent_server_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "TIMEOUT_SECONDS", 0.3)
    release = offer(server)
    server.pause_after = 200_000
    with pytest.raises(UserError, match="timed out"):
        download(release, tmp_path)
    assert status(release, tmp_path) == "partly"


@pytest.mark.skipif(os.name == "nt", reason="permissions of another kind")
def test_a_folder_that_cannot_be_written_is_a_sentence(server, tmp_path):
    (tmp_path / "weights").write_text("a file")
    with pytest.raises(UserError, match="Cannot write in"):
        download(offer(server), tmp_path / "weights")


# Stopped and doubled programs


@pytest.fixture
def clone(server, tmp_path) -> Path:
    """A copy of the downloading part of this repository, whose list has what the server has."""
    clone = tmp_path / "clone"
    for package in ("models", "pipeline"):
        shutil.copytree(REPOSITORY / package, clone / package)
    shutil.copy(REPOSITORY / "download_weights.py", clone)
    (clone / "weights").mkdir()
    releases = [offer(server), offer(server, b"another", "/Other.h5")]
    (clone / "weights" / "releases.json").write_text(json.dumps([asdict(r) for r in releases]))
    return clone


def start(clone: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "download_weights.py", *arguments],
        cwd=clone,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    return process.returncode, output, errors


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def stop_midway(server: Server, clone: Path, stop: signal.Signals) -> tuple[int, str, str]:
    """Send a running download the signal when half of the file has been sent."""
    server.pause_after = 500_000
    part = clone / "weights" / "Net.h5.part"
    process = start(clone, "Net")
    wait_until(lambda: part.exists() and part.stat().st_size >= 400_000)
    process.send_signal(stop)
    result = finish(process)
    server.pause_after = None
    server.go_on.set()
    return result


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_download_killed_by_kill_9_is_finished_by_the_next(server, clone, old):
    target = clone / "weights" / "Net.h5"
    if old is not None:
        target.write_bytes(old)
    code, _, _ = stop_midway(server, clone, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert (target.read_bytes() if target.exists() else None) == old
    assert finish(start(clone, "Net"))[0] == 0
    assert target.read_bytes() == CONTENT
    assert int(server.requests[-1][1].removeprefix("bytes=").removesuffix("-")) >= 400_000


def test_ctrl_c_is_a_sentence_and_keeps_the_part(server, clone):
    code, _, errors = stop_midway(server, clone, signal.SIGINT)
    assert code == 130
    assert "Run the same command again" in errors
    assert (clone / "weights" / "Net.h5.part").stat().st_size >= 400_000


def test_two_downloads_of_the_same_file_take_turns(server, clone):
    server.pause_after = 500_000
    first = start(clone, "Net")
    part = clone / "weights" / "Net.h5.part"
    wait_until(lambda: part.exists() and part.stat().st_size >= 400_000)
    second = start(clone, "Net")
    assert "Waiting" in second.stderr.readline()
    server.go_on.set()
    assert finish(first)[0] == 0
    code, _, errors = finish(second)
    assert code == 0
    assert "already there" in errors
    assert len(server.requests) == 1
    assert (clone / "weights" / "Net.h5").read_bytes() == CONTENT


# The command


def test_without_arguments_the_command_lists_what_there_is(server, clone):
    (clone / "weights" / "Other.h5").write_bytes(b"another")
    code, output, _ = finish(start(clone))
    assert code == 0
    _, net, other = output.splitlines()
    assert net.split()[:4] == ["Net", "1.0", "Apache-2.0", "no"]
    assert other.split()[:4] == ["Other", "0.0", "Apache-2.0", "yes"]
    assert server.requests == []


def test_all_from_a_mirror_into_another_folder(server, clone):
    server.files = {f"/m/{Path(path).name}": body for path, body in server.files.items()}
    folder = clone / "elsewhere"
    code, output, _ = finish(
        start(clone, "--all", "--output", str(folder), "--from", server.url + "/m")
    )
    assert code == 0
    assert output.splitlines() == [str(folder / "Net.h5"), str(folder / "Other.h5")]
    assert names_in(folder) == {"Net.h5", "Other.h5"}


def test_one_failure_does_not_keep_the_others_back(server, clone):
    del server.files["/files/Net.h5"]
    code, _, errors = finish(start(clone, "--all"))
    assert code == 2
    assert "404" in errors
    assert (clone / "weights" / "Other.h5").read_bytes() == b"another"


def test_an_unknown_name_is_answered_with_the_known_ones(clone):
    code, _, errors = finish(start(clone, "Nett"))
    assert code == 2
    assert "Nett" in errors
    assert "Net, Other" in errors


def test_wrong_use_and_help(clone):
    assert finish(start(clone, "--nonsense"))[0] == 2
    code, output, _ = finish(start(clone, "--help"))
    assert code == 0
    assert "--from URL" in output


def test_a_broken_list_is_a_sentence(clone):
    (clone / "weights" / "releases.json").write_text("[{")
    code, _, errors = finish(start(clone))
    assert code == 2
    assert "releases.json cannot be read" in errors


# The list

GOOD = {
    "name": "Net",
    "url": "https://example.org/Net.h5",
    "sha256": "0" * 64,
    "size": 1,
    "kind": "file",
    "licence": "MIT",
    "description": "a file",
}


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../Net"},
        {"name": ".hidden"},
        {"name": ""},
        {"url": "file:///etc/passwd.h5"},
        {"url": "ftp://example.org/Net.h5"},
        {"url": "https://example.org/"},
        {"url": "https://example.org/Net.pkl"},
        {"url": "https://example.org/releases.json"},
        {"url": "https://example.org/..%2fNet.h5"},
        {"url": "http://[/Net.h5"},
        {"kind": "detector"},
        {"kind": "folder"},
        {"sha256": "0" * 63},
        {"sha256": None},
        {"size": -1},
        {"size": True},
        {"size": "1"},
        {"licence": " "},
        {"more": 1},
    ],
)
def test_a_malformed_entry_is_refused_with_its_place(tmp_path, changes):
    path = tmp_path / "releases.json"
    path.write_text(json.dumps([GOOD, GOOD | {"name": "B"} | changes]))
    with pytest.raises(UserError, match=r"releases\.json: entry 2: "):
        load_releases(path)


@pytest.mark.parametrize("content", ["", "{}", "\ud800", None])
def test_a_list_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "releases.json"
    if content is not None:
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=r"releases\.json"):
        load_releases(path)


ODD = st.text(alphabet="./\\:%?#~ \0N2eéh5tar", max_size=12)


@given(name=ODD, file=ODD, ending=st.sampled_from(["", ".h5", ".tar", ".h5/", "/.h5", "?x.tar"]))
def test_an_accepted_entry_stays_in_its_folder(name, file, ending):
    kind = "detector" if ending.endswith("tar") else "file"
    entry = GOOD | {"name": name, "url": f"https://example.org/{file}{ending}", "kind": kind}
    with contextlib.suppress(UserError):
        release = check_entries([entry], "releases.json")[name]
        for path in (release.target(Path("weights")), release.part(Path("weights"))):
            assert path.parent == Path("weights")
            assert path.name not in ("", ".", "..", "releases.json")


@pytest.mark.parametrize("url", ["https://a.example/Net.h5", "https://a.example/net.h5"])
def test_two_entries_for_one_place_are_refused(url):
    with pytest.raises(UserError, match="twice"):
        check_entries([GOOD, GOOD | {"name": "B", "url": url}], "releases.json")


# Detector folders


def test_a_detector_is_unpacked_into_its_folder(server, tmp_path):
    source = write_detector(tmp_path / "source" / "meso9")
    release = offer(server, packed(source), "/meso9.tar")
    target = download(release, tmp_path / "weights")
    assert target == tmp_path / "weights" / "meso9"
    assert content_of(target) == content_of(source)
    assert names_in(tmp_path / "weights") == {"meso9"}
    download(release, tmp_path / "weights")
    assert len(server.requests) == 1


def test_a_damaged_detector_is_replaced(server, tmp_path):
    source = write_detector(tmp_path / "source" / "meso9")
    release = offer(server, packed(source), "/meso9.tar")
    target = download(release, tmp_path / "weights")
    (target / "model.onnx").write_bytes(b"damaged")
    assert status(release, tmp_path / "weights") == "differs"
    download(release, tmp_path / "weights")
    assert content_of(target) == content_of(source)


@pytest.mark.parametrize("has_description", [True, False])
def test_a_detector_of_ones_own_is_never_replaced(server, tmp_path, has_description):
    release = offer(server, packed(write_detector(tmp_path / "source" / "meso9")), "/meso9.tar")
    own = write_detector(tmp_path / "weights" / "meso9", seed=5)
    if not has_description:
        (own / "detector.json").unlink()
    before = content_of(own)
    with pytest.raises(UserError, match="your own training"):
        download(release, tmp_path / "weights")
    assert content_of(own) == before
    assert server.requests == []


def test_a_kill_between_the_renames_loses_nothing(server, tmp_path):
    source = write_detector(tmp_path / "source" / "meso9")
    release = offer(server, packed(source), "/meso9.tar")
    folder = tmp_path / "weights"
    download(release, folder)
    (folder / "meso9").rename(folder / ".meso9.previous")
    (folder / ".meso9.unpacking").mkdir()
    download(release, folder)
    assert content_of(folder / "meso9") == content_of(source)
    assert len(server.requests) == 1


def archive_of(folder: Path, *more: tarfile.TarInfo, leave_out: str = "") -> bytes:
    """The honest archive of `folder`, with members added or left out."""
    stream = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(packed(folder))) as honest,
        tarfile.open(fileobj=stream, mode="w") as archive,
    ):
        for member in more:
            archive.addfile(member, io.BytesIO(b"evil" * 100) if member.size else None)
        for member in honest:
            if member.name != leave_out:
                archive.addfile(member, honest.extractfile(member))
    return stream.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = 400 if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize(
    "extra",
    [
        member("../evil.md"),
        member("meso9/../../evil.md"),
        member("meso9/a/../../../evil.md"),
        member("/tmp/evil.md"),
        member("meso9//tmp/evil.md"),
        member("meso9/..\\evil.md"),
        member("meso9/C:evil.md"),
        member("other/evil.md"),
        member("evil.md"),
        member("meso9"),
        member("meso9/.hidden.md"),
        member("meso9/evil.pkl"),
        member("meso9/evil.py"),
        member("meso9/unlisted.onnx"),
        member("meso9/model.onnx"),
        member("meso9/model.onnx/evil.md"),
        member("meso9/README.md/evil.md"),
        member("meso9/" + "deep/" * 2000 + "evil.md"),
        member("meso9/link.md", tarfile.SYMTYPE, "/etc/passwd"),
        member("meso9/link.md", tarfile.LNKTYPE, "/etc/passwd"),
        member("meso9/plots", tarfile.DIRTYPE),
        member("meso9/pipe.md", tarfile.FIFOTYPE),
        member("meso9/device.md", tarfile.CHRTYPE),
    ],
    ids=lambda info: f"{info.name[:30]}-{info.type.decode()}",
)
def test_a_malicious_archive_leaves_no_trace(server, tmp_path, extra):
    source = write_detector(tmp_path / "source" / "meso9")
    release = offer(server, archive_of(source, extra), "/meso9.tar")
    folder = tmp_path / "home" / "weights"
    with pytest.raises(UserError):
        download(release, folder)
    assert names_in(folder) <= {"meso9.tar.part"}
    assert names_in(tmp_path / "home") == {"weights"}
    assert not Path("/tmp/evil.md").exists()


def test_a_sparse_file_cannot_grow(server, tmp_path):
    source = write_detector(tmp_path / "source" / "meso9")
    bomb = member("meso9/bomb.md")
    bomb.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.name": "meso9/bomb.md",
        "GNU.sparse.size": str(10**8),
        "GNU.sparse.map": "0,400",
    }
    release = offer(server, archive_of(source, bomb), "/meso9.tar")
    with pytest.raises(UserError, match="no plain file"):
        download(release, tmp_path / "weights")
    assert names_in(tmp_path / "weights") == set()


def repacked(source: Path) -> bytes:
    """As `packed`, but of whatever the folder holds."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path in sorted(source.iterdir()):
            archive.add(path, f"meso9/{path.name}")
    return stream.getvalue()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "model.onnx").write_bytes(b"changed"),
        lambda folder: (folder / "model.onnx").unlink(),
        lambda folder: (folder / "detector.json").unlink(),
        lambda folder: (folder / "detector.json").write_text("{"),
        lambda folder: (folder / "detector.json").write_text('{"name": "meso9", "files": []}'),
        lambda folder: (folder / "detector.json").write_text(
            '{"name": "meso9", "files": {"../../x.h5": ""}}'
        ),
        lambda folder: (folder / "detector.json").write_text(
            (folder / "detector.json").read_text().replace("meso9", "meso8")
        ),
    ],
    ids=["changed", "missing", "no json", "broken json", "no files", "outside", "other name"],
)
def test_an_archive_that_breaks_its_own_checksums_is_refused(server, tmp_path, spoil):
    source = write_detector(tmp_path / "source" / "meso9")
    installed = write_detector(tmp_path / "weights" / "meso9")
    (installed / "model.onnx").write_bytes(b"damaged")
    before = content_of(installed)
    spoil(source)
    release = offer(server, repacked(source), "/meso9.tar")
    with pytest.raises(UserError, match="refused and deleted"):
        download(release, tmp_path / "weights")
    assert content_of(installed) == before
    assert names_in(tmp_path / "weights") == {"meso9"}


def test_an_archive_that_is_none_is_refused(server, tmp_path):
    release = offer(server, CONTENT, "/meso9.tar")
    with pytest.raises(UserError, match="refused and deleted"):
        download(release, tmp_path)
    assert names_in(tmp_path) == set()
