"""What nobody would look at is refused by its name: a misspelt field never goes unnoticed."""

import httpx
import pytest

from tests.conftest import FACE_SAMPLE
from tests.web_service import files, serving

FIELDS = {
    "/api/score": ["files", "sample", "model", "explain", "stability", "page"],
    "/api/record": ["files", "sample", "model", "explain", "stability"],
    "/api/generate": ["seed", "truncation", "model", "explain", "stability", "page"],
    "/": ["files", "sample", "model", "explain", "stability", "seed", "truncation", "generate"],
}
GETS = ["/api/models", "/healthz", "/metrics", "/openapi.json"]


@pytest.fixture(scope="module")
def service(own_cache):
    with serving(own_cache, generator=own_cache / "no generator") as running:
        yield running


def post(service, path: str, parts: list, query: str = "") -> httpx.Response:
    return httpx.post(f"{service.address}{path}{query}", files=parts, timeout=60)


def names(answer: httpx.Response, *facts: str) -> bool:
    said = answer.text if "html" in answer.headers["content-type"] else answer.json()["error"]
    return answer.status_code == 422 and all(fact in said for fact in facts)


@pytest.mark.parametrize("path", FIELDS)
@pytest.mark.parametrize("name", ["threshold", "models", "Files", "file", "seeds", "token"])
def test_an_unknown_field_is_named_with_the_known_ones(service, path, name):
    photo = [] if path == "/api/generate" else files(FACE_SAMPLE)
    answer = post(service, path, [*photo, (name, (None, "0.5"))])
    assert names(answer, f"{name}:", path, *FIELDS[path])


@pytest.mark.parametrize("name", ["file", "photo", "image", "files[]"])
def test_a_photo_in_an_unknown_field_is_named_too(service, name):
    part = [(name, (FACE_SAMPLE.name, FACE_SAMPLE.read_bytes()))]
    assert names(post(service, "/api/score", part), f"{name}:", *FIELDS["/api/score"])


def test_a_photo_for_the_generator_is_refused(service):
    assert names(post(service, "/api/generate", files(FACE_SAMPLE)), "files:", "seed")


def test_a_path_in_place_of_a_photo_is_refused(service):
    assert names(post(service, "/api/score", [("files", (None, "face.jpg"))]), "files")
    part = [("model", ("meso4", b"meso4"))]
    assert names(post(service, "/api/score", part), "files")


@pytest.mark.parametrize(("path", "name"), [("/api/generate", "seed"), ("/api/score", "stability")])
def test_a_field_given_twice_is_not_half_ignored(service, path, name):
    photo = files(FACE_SAMPLE) if path == "/api/score" else []
    parts = [*photo, (name, (None, "1")), (name, (None, "0"))]
    assert names(post(service, path, parts), name)


def test_several_models_may_be_named(service):
    parts = [
        *files(FACE_SAMPLE),
        *[("model", (None, name)) for name in ("meso4", "mesoinception4")],
    ]
    answer = post(service, "/api/score", parts)
    assert sorted(answer.json()["models"]) == ["meso4", "mesoinception4"]


@pytest.mark.parametrize("path", ["/api/score", "/api/generate"])
def test_a_query_is_refused(service, path):
    photo = files(FACE_SAMPLE) if path == "/api/score" else [("seed", (None, "1"))]
    answer = post(service, path, photo, "?threshold=0.5")
    assert names(answer, "threshold:", "query", path, *FIELDS[path])
    assert names(post(service, path, photo, "?model=meso4"), "model:", "query")


@pytest.mark.parametrize("path", GETS)
def test_reading_takes_no_query_and_no_body(service, path):
    answer = httpx.get(f"{service.address}{path}?threshold=0.5")
    assert names(answer, "threshold:", path)
    answer = httpx.request("GET", f"{service.address}{path}", json={"threshold": 0.5})
    assert names(answer, path)
    assert httpx.get(f"{service.address}{path}").status_code == 200


@pytest.mark.parametrize("path", FIELDS)
def test_what_is_no_form_is_told_the_fields(service, path):
    for sent in ({"json": {"threshold": 0.5}}, {"data": {"threshold": "0.5"}}):
        answer = httpx.post(service.address + path, timeout=60, **sent)
        assert answer.status_code == 415
        assert all(name in answer.text for name in ("multipart/form-data", *FIELDS[path]))


def test_a_link_to_the_page_may_carry_anything(service):
    assert httpx.get(f"{service.address}/?utm_source=mail").status_code == 200
    assert httpx.get(f"{service.address}/static/page.js?v=2").status_code == 200


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a\u202eb", "ab:"), ("x" * 190, "x" * 50), ("<script>", "&lt;script&gt;:")],
)
def test_the_name_is_for_display_only(service, name, shown):
    path = "/" if "<" in name else "/api/score"
    answer = post(service, path, [*files(FACE_SAMPLE), (name, (None, "1"))])
    assert names(answer, shown)
    assert "\u202e" not in answer.text
    assert "<script>" not in answer.text
    assert "x" * 150 not in answer.text


def test_the_description_says_so(service):
    described = httpx.get(f"{service.address}/openapi.json").json()["paths"]
    for path in FIELDS.keys() - {"/"}:
        form = described[path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert sorted(form["properties"]) == sorted(FIELDS[path])
        assert form["additionalProperties"] is False
    for path in ("/api/models", "/healthz", "/metrics"):
        assert "422" in described[path]["get"]["responses"]
