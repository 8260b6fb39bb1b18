"""What strangers may send: every request gets a promised answer, and the service goes on."""

import contextlib
import functools
import re
import socket
import string
import zlib
from io import BytesIO
from pathlib import Path

import httpx
import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.broken_files import encoded, make_broken_files, make_png, png_chunk
from tests.conftest import FACE_SAMPLE, SAMPLES
from tests.web_service import Running, serving

PROMISED = {200, 400, 403, 404, 405, 408, 413, 415, 422, 501, 503}
MAX_FILES, MAX_FILE_MB, MAX_BODY_MB = 4, 2, 5


@pytest.fixture(scope="module")
def service(own_cache):
    with serving(
        own_cache,
        max_files=MAX_FILES,
        max_file_mb=MAX_FILE_MB,
        max_body_mb=MAX_BODY_MB,
        body_seconds=5,
    ) as running:
        score(running, FACE_SAMPLE.read_bytes())  # loads the detector
        yield running


@pytest.fixture(autouse=True)
def the_service_goes_on(service):
    yield
    assert httpx.get(f"{service.address}/healthz", timeout=60).status_code == 200
    assert "Traceback" not in service.log()
    assert "unforeseen" not in service.log()


def score(service: Running, *contents: bytes, name: str = "photo.jpg") -> httpx.Response:
    parts = [("files", (name, content)) for content in contents]
    return httpx.post(f"{service.address}/api/score", files=parts, timeout=120)


def error_of(answer: httpx.Response) -> str:
    """The sentence of the only row, which must be an error."""
    assert answer.status_code == 200, answer.text
    (row,) = answer.json()["rows"]
    assert row["verdict"] == "error"
    return row["error"]


def memory(service: Running) -> int:
    """The most bytes that the service has held so far."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024


def raw(service: Running, *pieces: bytes) -> bytes:
    """What comes back for these bytes, however rudely either side ends."""
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.settimeout(60)
        answer = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                connection.sendall(piece)
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                answer += chunk
    return answer


def head(service: Running, *lines: str) -> bytes:
    common = ["POST /api/score HTTP/1.1", f"Host: 127.0.0.1:{service.port}", "Connection: close"]
    return "\r\n".join([*common, *lines, "", ""]).encode()


FORM = "Content-Type: multipart/form-data; boundary=x"


def test_every_kind_of_broken_file_is_an_error_row(service, tmp_path):
    phrases = make_broken_files(tmp_path)
    paths = [
        path for path in sorted(tmp_path.iterdir()) if path.is_file() and not path.is_symlink()
    ]
    for first in range(0, len(paths), MAX_FILES):
        chosen = paths[first : first + MAX_FILES]
        parts = [("files", (path.name, path.read_bytes())) for path in chosen]
        answer = httpx.post(f"{service.address}/api/score", files=parts, timeout=60).json()
        for path, row in zip(chosen, answer["rows"], strict=True):
            assert row["verdict"] == "error"
            assert phrases[path.name] in row["error"]


def test_nothing_at_all(service):
    assert "empty" in error_of(score(service, b""))


@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (25_000, 20_000), (60_001, 1_000)])
def test_a_picture_of_too_many_pixels_is_not_decoded(service, width, height):
    before = memory(service)
    rows = bytes(1_500_000)  # compresses to nearly nothing
    assert "pixels" in error_of(score(service, make_png(rows, width, height)))
    assert memory(service) - before < 100e6


def test_a_bomb_inside_the_metadata_does_not_grow(service):
    before = memory(service)
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(400_000_000)))
    bomb = make_png(b"\0" * 2, 1, 1, extra=text)
    answer = score(service, bomb)
    assert answer.status_code == 200
    assert memory(service) - before < 100e6


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_truncated(service, share):
    content = (SAMPLES / "real_collins.jpg").read_bytes()
    assert "JPEG" in error_of(score(service, content[: int(len(content) * share)]))


def test_a_polyglot_is_what_its_first_bytes_say(service):
    jpeg = (SAMPLES / "real_collins.jpg").read_bytes()
    script = b"<script>alert(1)</script>"
    answer = score(service, jpeg + b"PK\x03\x04" + script, name="page.html")
    assert answer.json()["rows"][0]["face"] == 0
    assert answer.headers["content-type"] == "application/json"
    assert b"script" not in answer.content
    assert "zip archive" in error_of(score(service, b"PK\x03\x04" + jpeg))


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        (b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', "an SVG drawing"),
        (b"<!doctype html><script>alert(1)</script>", "a web page"),
        (b"%!PS\n(/etc/passwd) (r) file", "a PostScript document"),
        (b"push graphic-context\nviewbox 0 0 640 480\nfill 'url(https://x/)'", "a text file"),
    ],
)
def test_drawings_and_programs_are_not_photos(service, content, phrase):
    assert phrase in error_of(score(service, content))


def test_heic_from_a_phone(service):
    answer = httpx.post(
        f"{service.address}/api/score",
        files={"files": ("IMG_0001.HEIC", FACE_SAMPLE.read_bytes(), "application/octet-stream")},
        data={"page": "1"},
        timeout=60,
    ).json()
    assert answer["rows"][0]["face"] == 0
    assert answer["photos"][0]["preview"].startswith("data:image/jpeg")


def test_animated_gif_counts_by_its_first_picture(service):
    with Image.open(SAMPLES / "real_collins.jpg") as photo:
        first = photo.quantize(256)
    other = Image.new("P", first.size)
    gif = encoded(first, "GIF", save_all=True, append_images=[other] * 50)
    assert score(service, gif).json()["rows"][0]["face"] == 0


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "x" * 300, "../../x"])
def test_the_declared_type_is_not_believed(service, kind):
    answer = httpx.post(
        f"{service.address}/api/score",
        files={"files": ("x.exe", (SAMPLES / "real_collins.jpg").read_bytes(), kind)},
        timeout=60,
    )
    assert answer.json()["rows"][0]["face"] == 0


def test_a_path_as_a_name(service):
    answer = score(service, b"x", name="../../../etc/cron.d/evil\x00.jpg")
    assert answer.json()["rows"][0]["path"].startswith("evil")


def test_too_many_photos(service):
    answer = score(service, *[b"x"] * (MAX_FILES + 1))
    assert answer.status_code == 413
    assert f" {MAX_FILES} photos" in answer.json()["error"]


def test_too_large_a_photo(service):
    answer = score(service, bytes(MAX_FILE_MB * 1_000_000 + 1))
    assert answer.status_code == 413
    assert f" {MAX_FILE_MB} MB" in answer.json()["error"]


def test_too_large_together(service):
    answer = score(service, *[bytes(1_900_000)] * 3)
    assert answer.status_code == 413
    assert f" {MAX_BODY_MB} MB" in answer.json()["error"]


@pytest.mark.parametrize(
    "part", ['name="files"; filename="a"', 'name="files"; filename=""', 'name="model"']
)
def test_ten_thousand_small_parts(service, part):
    body = (
        f"--x\r\nContent-Disposition: form-data; {part}\r\n\r\n1\r\n".encode() * 10_000 + b"--x--"
    )
    answer = raw(service, head(service, FORM, f"Content-Length: {len(body)}"), body)
    assert re.match(rb"HTTP/1.1 (413|422) ", answer)
    assert b'{"error":' in answer


def test_endless_body(service):
    before = memory(service)
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    pieces = [b"%x\r\n%s\r\n" % (len(part), part), *[chunk] * 2000]  # 131 MB, if anybody reads it
    answer = raw(service, head(service, FORM, "Transfer-Encoding: chunked"), *pieces)
    assert not answer or answer.startswith(b"HTTP/1.1 413 ")
    assert memory(service) - before < 60e6


def test_an_endless_header_of_a_part(service):
    pieces = [b"--x\r\nContent-Disposition: ", *[b"a" * 65536] * 100]
    length = sum(map(len, pieces))
    answer = raw(service, head(service, FORM, f"Content-Length: {length}"), *pieces)
    assert not answer or re.match(rb"HTTP/1.1 (413|422) ", answer)


def test_a_trickle_is_cut_off(service):
    """A byte now and then keeps no place for longer than the setting says."""
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.settimeout(0.3)
        connection.sendall(head(service, FORM, "Content-Length: 10000") + b"--x\r\n")
        answer = b""
        for _ in range(200):
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(65536)
                break
            connection.sendall(b"a")
    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Content-Type: application/json", "Content-Length: 2"], 415),
        (["Content-Type: application/x-www-form-urlencoded", "Content-Length: 2"], 415),
        (["Content-Length: 2"], 415),
        (["Content-Type: multipart/form-data", "Content-Length: 2"], 422),
        (["Content-Type: multipart/form-data; boundary=" + "x" * 3000, "Content-Length: 2"], 422),
        (["Content-Type: multipart/form-data; boundary=é", "Content-Length: 2"], 422),
        ([FORM + "; charset=utf-7", "Content-Length: 2"], 422),
        ([FORM, "Content-Length: 99999999999"], 413),
        ([FORM, "Content-Length: -1"], 400),
        ([FORM, "Content-Length: 2", "Transfer-Encoding: chunked"], 400),
    ],
)
def test_odd_headers(service, lines, status):
    answer = raw(service, head(service, *lines), b"{}")
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]


@functools.cache
def description(address: str) -> dict:
    return httpx.get(f"{address}/openapi.json", timeout=60).json()


CLIENT = httpx.Client(verify=False, timeout=120)  # reading certificates takes longer than a request
boundaries = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)
header_texts = st.one_of(
    st.sampled_from(
        [
            'form-data; name="files"; filename="a.jpg"',
            "form-data; name=\"files\"; filename*=utf-8''%ff%00",
            'form-data; name="model"',
            'form-data; name="seed"',
            'form-data; name="explain"',
            "form-data",
            "form-data; name",
            'form-data; name="\xff"; filename="\ud800"',
        ]
    ),
    st.text(max_size=40),
)
bodies = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b"meso4", b"all", b"nan", b"1e999", b"-1", b"\xff\xd8\xff", b"GIF89a", b""]),
)
parts = st.lists(st.tuples(header_texts, bodies), max_size=6)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    path=st.sampled_from(["/api/score", "/api/generate", "/"]),
    boundary=boundaries,
    parts=parts,
    cut=st.floats(0, 1),
    flip=st.booleans(),
)
def test_no_form_brings_more_than_a_promised_refusal(service, path, boundary, parts, cut, flip):
    body = BytesIO()
    for header, content in parts:
        text = header.encode("utf-8", "surrogatepass")
        body.write(b"--%s\r\nContent-Disposition: %s\r\n\r\n" % (boundary.encode(), text))
        body.write(content + b"\r\n")
    body.write(b"--%s--\r\n" % boundary.encode())
    content = body.getvalue()
    if flip and len(content) > 1:
        content = content[: max(1, int(len(content) * cut))]
    answer = CLIENT.post(
        service.address + path,
        content=content,
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    assert answer.status_code in PROMISED, answer.text
    if path != "/":
        described = description(service.address)["paths"][path]["post"]["responses"]
        promised = described[str(answer.status_code)]["content"][answer.headers["content-type"]]
        jsonschema.validate(answer.json(), promised["schema"])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]),
    path=st.text(max_size=30).map(lambda text: "/" + text),
)
def test_no_path_brings_more_than_a_promised_refusal(service, method, path):
    with contextlib.suppress(httpx.InvalidURL, UnicodeEncodeError):
        answer = CLIENT.request(method, service.address + path)
        assert answer.status_code in PROMISED | {307}, answer.text


@pytest.mark.parametrize("path", ["/static/../backend.py", "/static/%2e%2e/backend.py"])
@pytest.mark.parametrize("folder", ["static", "samples"])
def test_no_file_outside_is_served(service, path, folder):
    path = path.replace("static", folder)
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{service.port}\r\nConnection: close\r\n\r\n"
    answer = raw(service, request.encode())
    assert answer.startswith(b"HTTP/1.1 404 ")


def test_random_pixels_in_every_size_are_scored(service):
    random = np.random.default_rng(0)
    for height, width in ((1, 1), (1, 4000), (4000, 1), (17, 3)):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
        row = score(service, encoded(image, "PNG")).json()["rows"][0]
        assert row["verdict"] in ("no face", "real", "fake", "uncertain")
