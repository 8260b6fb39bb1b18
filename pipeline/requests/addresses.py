"""By which addresses visitors reach the service: names, origins, a path prefix, proxies between."""

import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

DEFAULT_PORTS = {"http": 80, "https": 443}
_OWN_PATHS = ("api", "static", "samples", "healthz", "metrics", "openapi.json")
_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_HOST = re.compile(r"\*|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\]", re.IGNORECASE)
_SEGMENT = re.compile(r"[A-Za-z0-9._~-]+")


class Origin(NamedTuple):
    """Where a page comes from, as the header Origin says; the port is never left out."""

    scheme: str
    host: str
    port: int


def parse_origin(text: str) -> Origin | None:
    """The origin that is written as scheme://host[:port], or None for anything else, also "null".

    A port that is left out is the scheme's own, so that https://name and https://name:443 are one.
    """
    try:
        parts = urlsplit(text.lower())
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname or "@" in parts.netloc:
        return None
    if f"{parts.scheme}://{parts.netloc}" != text.lower():  # a path, a query or a fragment
        return None
    return Origin(
        parts.scheme, parts.hostname, DEFAULT_PORTS[parts.scheme] if port is None else port
    )


def is_own_origin(origin: str, host: str, allowed: Iterable[Origin]) -> bool:
    """Whether a page of this origin is the service's own: by the header Host that came with it, or
    because it is one of those allowed.

    Host has no scheme: a server that ends TLS before the service leaves none behind. So the port
    that Host leaves out is that of the origin's scheme.
    """
    sent = parse_origin(origin)
    return sent is not None and (sent in allowed or sent == parse_origin(f"{sent.scheme}://{host}"))


def is_local(scope: Scope) -> bool:
    """Whether a request comes from this computer, and through no proxy that says so."""
    headers = Headers(scope=scope)
    client = (scope.get("client") or ("",))[0]
    origin = headers.get("origin")
    here = [client, _name_of(f"http://{headers.get('host', '')}")]
    here += [_name_of(origin)] if origin else []
    return not any(name in headers for name in _FORWARDED) and all(map(_is_loopback, here))


def _name_of(origin: str) -> str:
    parsed = parse_origin(origin)
    return parsed.host if parsed else ""


def _is_loopback(name: str) -> bool:
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def split_list(text: str) -> list[str]:
    """The parts of a setting that may hold several, with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def allowed_origins(text: str) -> frozenset[Origin]:
    """The origins of a setting. Raises ValueError with a sentence."""
    origins = {part: parse_origin(part.removesuffix("/")) for part in split_list(text)}
    for part, origin in origins.items():
        if origin is None:
            raise ValueError(
                f"{part} is no origin: write scheme, name and, if it is not the usual one, port, "
                "such as https://faces.example."
            )
    return frozenset(origin for origin in origins.values() if origin)


def allowed_hosts(text: str) -> list[str]:
    """The names of a setting. Raises ValueError with a sentence."""
    names = split_list(text)
    for name in names:
        if not _HOST.fullmatch(name):
            raise ValueError(
                f"{name} is no name of a server: write it without scheme and port, such as "
                "faces.example or *.faces.example."
            )
    return names


def trusted_proxies(text: str) -> list[str]:
    """The addresses and networks of a setting. Raises ValueError with a sentence."""
    proxies = split_list(text)
    for proxy in proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError:
            raise ValueError(
                f"{proxy} is no address or network: write such as 10.0.0.7 or 172.16.0.0/12."
            ) from None
    return proxies


def root_path(text: str) -> str:
    """The path prefix of a setting, without a slash at its end; empty for none. Raises ValueError
    with a sentence."""
    if text.strip("/") == "":
        return ""
    first, *segments = text.removesuffix("/").split("/")
    if first or not all(_SEGMENT.fullmatch(s) and s not in (".", "..") for s in segments):
        raise ValueError("this must be a path such as /det, of letters, digits and - . _ ~.")
    if segments[0] in _OWN_PATHS:
        raise ValueError(
            f"the service's own addresses begin with /{segments[0]}, too: choose another path."
        )
    return "/" + "/".join(segments)


class BelowRoot:
    """ASGI middleware: behind it every path begins with the root path.

    That is `root`, or else what the server was told. Some proxies cut it off before they pass a
    request on, others do not; the server puts the one that it was told before every path.
    """

    def __init__(self, app: ASGIApp, root: str = ""):
        self._app = app
        self._root = root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            told = scope.get("root_path", "").rstrip("/")
            path = _cut_off(self._root, _cut_off(told, scope["path"]))
            root = self._root or ("/" + told.strip("/") if told else "")
            # A copy: the server's own scope is what its log of requests shows.
            scope = scope | {"root_path": root, "path": f"{root}/{path.lstrip('/')}"}
        await self._app(scope, receive, send)


def _cut_off(root: str, path: str) -> str:
    inside = path == root or path.startswith(f"{root}/")
    return path.removeprefix(root) if inside else path


def path_below_root(scope: Scope) -> str:
    """The path of a request that has passed BelowRoot, as the routes have it."""
    return scope["path"].removeprefix(scope["root_path"])
