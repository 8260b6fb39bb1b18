"""The service behind reverse proxies: whose page may send, below which path, and who is counted."""

import re

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from pipeline.requests.addresses import is_own_origin, parse_origin
from pipeline.requests.settings import Settings
from pipeline.service.routes import create_app
from tests.conftest import FACE_SAMPLE, REPOSITORY
from tests.reverse_proxy import NGINX, Way, nginx, run_nginx, small_proxy
from tests.web_service import client, files, free_port, serving

PUBLIC = "https://faces.example"
OTHERS = [
    "https://evil.example",
    "http://faces.example:8080",
    "https://faces.example:8443",
    "https://faces.example.evil.example",
    "https://sub.faces.example",
    "https://evil.example@faces.example",
    "null",
    "faces.example",
    "https://",
    "https://faces.example/",
    "https://faces.example:99999",
    "chrome-extension://faces.example",
]


@pytest.fixture(params=["nginx", "small"], scope="module")
def proxy(request):
    """Starts a proxy: see `small_proxy`."""
    if request.param == "nginx":
        if not NGINX:
            pytest.skip("nginx is not installed here")
        return nginx
    return small_proxy


@pytest.fixture(scope="module")
def plain(own_cache):
    """A service without settings."""
    with serving(own_cache) as running:
        yield running


@pytest.fixture(scope="module")
def public(own_cache):
    """A service that knows where visitors see it."""
    options = ("--root-path", "/det", "--allowed-origins", PUBLIC)
    with serving(own_cache, *options, allowed_hosts="127.0.0.1,faces.example") as running:
        yield running


def send(address: str, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{address}/api/score",
        files=files(FACE_SAMPLE),
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        timeout=60,
    )


def test_without_a_setting_the_refusal_names_both_headers(proxy, plain, tmp_path):
    with proxy(free_port(), plain.port, Way(), tmp_path) as address:
        refused = send(address, Origin=PUBLIC)
        assert refused.status_code == 403
        said = refused.json()["error"]
        for fact in ("Origin", PUBLIC, "Host", f"127.0.0.1:{plain.port}"):
            assert fact in said
        assert "DETECTOR_ALLOWED_ORIGINS" in said
        assert send(address).status_code == 200  # no browser's page has sent this


@pytest.mark.parametrize("passes_host", [False, True])
@pytest.mark.parametrize("strips", [True, False], ids=["stripped", "kept"])
def test_behind_a_proxy_with_a_prefix(proxy, public, tmp_path, strips, passes_host):
    way = Way("/det", strips, passes_host)
    with proxy(free_port(), public.port, way, tmp_path) as address:
        scored = send(f"{address}/det", Origin=PUBLIC, Host="faces.example")
        assert scored.status_code == 200, scored.text
        assert scored.json()["rows"][0]["face"] == 0
        refused = send(f"{address}/det", Origin="https://evil.example", Host="faces.example")
        assert refused.status_code == 403
        assert "https://evil.example" in refused.json()["error"]
        all_links_lead_somewhere(address, "/det", {"Host": "faces.example"})


@pytest.mark.skipif(not NGINX, reason="nginx is not installed here")
@pytest.mark.parametrize("number", [0, 1], ids=["at the root", "below a path"])
def test_nginx_as_the_documentation_sets_it_up(own_cache, tmp_path, number):
    text = (REPOSITORY / "docs" / "service.md").read_text(encoding="utf-8")
    location = re.findall(r"```nginx\n(.*?)```", text, re.DOTALL)[number]
    root = re.match(r"location (.*)/ ", location)[1]
    settings = (
        {"root_path": root, "allowed_origins": PUBLIC}
        if root
        else {"allowed_hosts": "faces.example"}
    )
    large = {"files": ("large.png", bytes(5_000_000))}  # a photo that cannot be read, but is sent
    with serving(own_cache, **settings) as running:
        location = location.replace(":8000", f":{running.port}")
        with run_nginx(free_port(), location, tmp_path) as address:
            headers = {"Host": "faces.example", "Origin": PUBLIC}
            answer = httpx.post(
                f"{address}{root}/api/score", files=large, headers=headers, timeout=60
            )
            assert answer.json()["rows"][0]["verdict"] == "error"
            all_links_lead_somewhere(address, root, {"Host": "faces.example"})
            headers["Origin"] = "https://evil.example"
            assert send(f"{address}{root}", **headers).status_code == 403


def test_a_refusal_reaches_its_sender_though_the_photos_are_not_read(proxy, own_cache, tmp_path):
    """Of several megabytes, which no buffer on the way holds."""
    way = Way(max_body=1 << 30)
    large = {"files": ("large.jpg", bytes(30_000_000))}
    with (
        serving(own_cache, max_body_mb=20, token="secret") as running,
        proxy(free_port(), running.port, way, tmp_path) as address,
    ):
        for headers, status in (
            ({"Origin": "https://evil.example"}, 403),
            ({}, 401),
            ({"Authorization": "Bearer secret"}, 413),
        ):
            for _ in range(3):
                answer = httpx.post(
                    f"{address}/api/score", files=large, headers=headers, timeout=60
                )
                assert answer.status_code == status
                assert answer.json()["error"]


def all_links_lead_somewhere(
    address: str, root: str, headers: dict[str, str] | None = None
) -> None:
    """The page at a root path names only addresses below it, and the proxy finds them all."""

    def get(path: str) -> httpx.Response:
        return httpx.get(address + path, headers=headers, timeout=60)

    page = get(f"{root}/")
    assert page.status_code == 200
    links = re.findall(r'(?:href|src|action)="([^"#][^"]*)"', page.text)
    assert len(links) > 8
    for link in links:
        assert link.startswith(f"{root}/"), link
        assert get(link).status_code == 200, link
    assert f'data-root="{root}"' in page.text
    described = get(f"{root}/openapi.json").json()
    assert described["servers"] == [{"url": root or "/"}]
    for path in ("/nowhere", "/static/nowhere", "/samples/nowhere/x"):
        nowhere = get(f"{root}{path}")
        assert nowhere.status_code == 404
        assert f" {root}/openapi.json" in nowhere.json()["error"]
    assert get(f"{root}/api/models/").status_code == 404, "no redirect to the service's own address"
    assert get(f"{root}/healthz").json() == {"status": "ok"}
    assert "no-store" in page.headers["cache-control"]
    assert "cache-control" not in get(f"{root}/static/page.js").headers


def test_without_a_prefix(plain):
    all_links_lead_somewhere(plain.address, "")


@pytest.mark.parametrize("root", ["/det", "/api", "/a/b"])
def test_the_prefix_of_uvicorn_s_own_option(own_cache, tmp_path, root):
    options = ("--root-path", root)
    with (
        serving(own_cache, *options, by_uvicorn=True) as running,
        small_proxy(free_port(), running.port, Way(root), tmp_path) as address,
    ):
        all_links_lead_somewhere(address, root)
        assert send(address + root).status_code == 200


@pytest.mark.parametrize("path", ["/det", "/det/", "/"])
def test_the_prefix_alone_is_the_page(public, path):
    answer = httpx.get(public.address + path)
    assert answer.status_code == 200
    assert "/det/static/page.css" in answer.text


def test_a_path_that_only_looks_like_the_prefix_is_none(public):
    for path in ("/details", "/det/det/healthz", "/det/healthzz"):
        assert httpx.get(public.address + path).status_code == 404


@pytest.mark.parametrize("path", ["/healthz", "/det/healthz", "/det//healthz"])
def test_no_prefix_opens_more_than_health_without_the_token(path):
    app = create_app(Settings(root_path="/det", token="secret"))
    with TestClient(app, base_url="http://localhost") as browser:
        assert browser.get(path).json() == {"status": "ok"}
        for other in ("/", "/det/", "/det", "/det/api/models", "/det/healthz/../api/models"):
            assert browser.get(other).status_code in (401, 404), other


@pytest.mark.parametrize("port", ["", ":443"])
def test_the_usual_port_may_be_named_or_not(public, port):
    for named in ("https://faces.example", "https://faces.example:443"):
        assert send(public.address, Origin=named, Host=f"faces.example{port}").status_code == 200


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("https://localhost", "localhost:443", 200),
        ("https://localhost:443", "localhost", 200),
        ("http://localhost", "localhost:80", 200),
        ("http://localhost:80", "localhost", 200),
        ("https://LOCALHOST", "localhost", 200),
        ("http://localhost", "localhost:443", 403),
        ("https://localhost", "localhost:80", 403),
        ("https://localhost:8443", "localhost", 403),
        ("https://localhost", "localhost:8443", 403),
        ("http://[::1]:8000", "[::1]:8000", 200),
        ("http://[::1]", "[::1]:80", 200),
    ],
)
def test_ports_of_the_header_host(plain, origin, host, status):
    answer = send(plain.address, Origin=origin, Host=host)
    assert answer.status_code == status
    if status == 403:
        assert origin in answer.json()["error"] and host in answer.json()["error"]


@pytest.mark.parametrize(
    ("host", "status"), [("faces.example", 403), ("127.0.0.1", 403), ("localhost", 400)]
)
@pytest.mark.parametrize("origin", OTHERS)
def test_another_site_s_page_stays_refused(public, origin, host, status):
    assert send(public.address, Origin=origin, Host=host).status_code == status


def test_a_refusal_quotes_no_endless_header(plain):
    answer = send(plain.address, Origin="https://" + "a" * 5000)
    assert answer.status_code == 403
    assert len(answer.json()["error"]) < 700


def test_a_wrong_name_is_named(plain):
    answer = httpx.get(plain.address, headers={"Host": "faces.example:8000"})
    assert answer.status_code == 400
    for fact in ("Host", "faces.example:8000", "DETECTOR_ALLOWED_HOSTS"):
        assert fact in answer.json()["error"]
    health = httpx.get(f"{plain.address}/healthz", headers={"Host": "10.0.0.7"})
    assert health.status_code == 200, "what checks the health of a container asks by address"


names = st.from_regex(r"[a-z][a-z0-9-]{0,8}(\.[a-z]{2,5})?", fullmatch=True)
ports = st.integers(1, 65535)


@given(names, names, ports, ports, st.sampled_from(["http", "https"]))
def test_only_the_same_name_and_port_are_the_same(mine, other, port, other_port, scheme):
    usual = {"http": 80, "https": 443}[scheme]
    same = (mine, port) == (other, other_port)
    assert is_own_origin(f"{scheme}://{other}:{other_port}", f"{mine}:{port}", ()) == same
    assert is_own_origin(f"{scheme}://{mine}", f"{mine}:{port}", ()) == (port == usual)
    assert is_own_origin(f"{scheme}://{mine}:{port}", mine, ()) == (port == usual)
    allowed = {parse_origin(f"{scheme}://{mine}:{port}")}
    assert is_own_origin(f"{scheme}://{other}:{other_port}", "127.0.0.1:1", allowed) == same


@given(st.text(max_size=30), st.text(max_size=30))
def test_nothing_strange_is_anybody_s_origin(origin, host):
    if is_own_origin(origin, host, ()):
        parsed = parse_origin(origin)
        assert parsed is not None
        assert parsed == parse_origin(f"{parsed.scheme}://{host}")


def test_the_rate_limit_sees_the_clients_of_a_trusted_proxy(proxy, own_cache, tmp_path):
    way = Way(forwards=True)
    with (
        serving(own_cache, rate_limit=2) as running,
        proxy(free_port(), running.port, way, tmp_path) as address,
    ):
        first, second = "198.51.100.1", "198.51.100.2"

        def statuses(count: int, forwarded: str) -> list[int]:
            # Straight at the service, as its only proxy: 127.0.0.1 is trusted
            headers = {"X-Forwarded-For": forwarded}
            url = f"{running.address}/api/score"
            return [httpx.post(url, headers=headers).status_code for _ in range(count)]

        assert statuses(3, first) == [415, 415, 429]
        assert statuses(3, second) == [415, 415, 429]
        assert statuses(1, f"203.0.113.9, {first}") == [429], "what a client says of itself"
        # Through the real proxy the client is 127.0.0.1, whatever it says
        through = [
            httpx.post(
                f"{address}/api/score", headers={"X-Forwarded-For": f"203.0.113.{number}"}
            ).status_code
            for number in range(3)
        ]
        assert through[0] == 415


def test_nobody_else_is_believed():
    settings = Settings(rate_limit=2, trusted_proxies="10.0.0.0/8")
    app = create_app(settings)

    def statuses(address: str) -> list[int]:
        with TestClient(app, base_url="http://localhost", client=(address, 1)) as visitor:
            return [
                visitor.post(
                    "/api/score", headers={"X-Forwarded-For": f"203.0.113.{number}"}
                ).status_code
                for number in range(3)
            ]

    assert statuses("198.51.100.1") == [415, 415, 429]
    assert statuses("10.1.2.3") == [415, 415, 415]


def test_without_trusted_proxies_no_header_is_believed():
    with client(rate_limit=1, trusted_proxies="") as visitor:
        answers = [
            visitor.post("/api/score", headers={"X-Forwarded-For": f"203.0.113.{number}"})
            for number in range(2)
        ]
        assert [answer.status_code for answer in answers] == [415, 429]
