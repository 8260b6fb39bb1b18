"""What every request passes on its way in and out: host, origin, token, rate, headers, errors."""

import asyncio
import base64
import binascii
import hmac
import logging
import time
from collections import OrderedDict

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.requests.addresses import (
    allowed_hosts,
    allowed_origins,
    is_own_origin,
    path_below_root,
)
from pipeline.requests.metrics import Metrics
from pipeline.requests.request_body import RequestBody
from pipeline.requests.settings import Settings
from pipeline.requests.uploads import Refusal

# Nothing from elsewhere, nothing inline; pictures that the page makes itself.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}
LONGEST_HEADER = 200  # characters of one that a sentence repeats
ADDRESSES_KEPT = 10_000  # whose last requests are remembered for the rate limit
log = logging.getLogger("uvicorn.error")


class Guard:
    """The ASGI middleware before all routes, behind BelowRoot. Answers what is refused as JSON with
    a sentence, never with a traceback, and counts every answer. The log gets the kind of an
    unforeseen error and its place in the code, not its message: that might quote what a visitor
    sent."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics):
        self._app = app
        self._token = settings.token
        self._metrics = metrics
        self._rate = RateLimit(settings.rate_limit)
        self._hosts = allowed_hosts(settings.allowed_hosts)
        self._origins = allowed_origins(settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = time.perf_counter()
        status = 0
        stopping = False
        path = path_below_root(scope)  # now: the routes will change the scope
        body = RequestBody(scope, receive)

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                if not stopping:
                    await body.discard()
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if not path.startswith("/static/"):
                    headers["Cache-Control"] = "no-store"
            await send(message)

        try:
            await self._check(scope, path)
            await self._app(scope, body.receive, send_guarded)
        except Refusal as refusal:
            if not status:
                await refused(refusal)(scope, receive, send_guarded)
        except asyncio.CancelledError:  # the service is being stopped, and waits no longer
            stopping = True
            if not status:
                sentence = "The service is being stopped; try again in a few seconds."
                await refused(Refusal(503, sentence, 10))(scope, receive, send_guarded)
        except Exception as error:
            where = error.__traceback__
            while where and where.tb_next:
                where = where.tb_next
            place = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where else "?"
            log.error("unforeseen %s at %s", type(error).__name__, place)
            if status:
                raise
            sentence = "Something went wrong here, which is not your fault; try again later."
            await refused(Refusal(500, sentence))(scope, receive, send_guarded)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.answered(route, status, time.perf_counter() - started)

    async def _check(self, scope: Scope, path: str) -> None:
        if path == "/healthz":  # also asked for by address, and tells nothing
            return
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not await _is_trusted(scope, self._hosts):
            raise Refusal(
                400,
                f"This server does not go by the name in the header Host, {_quoted(host)}; its "
                "keeper sets DETECTOR_ALLOWED_HOSTS.",
            )
        origin = headers.get("origin")
        if scope["method"] != "GET" and origin and not is_own_origin(origin, host, self._origins):
            raise Refusal(
                403,
                "Another site's page may not use this service: the header Origin is "
                f"{_quoted(origin)}, but Host is {_quoted(host)}. If both are this service, its "
                "keeper names the origin in DETECTOR_ALLOWED_ORIGINS.",
            )
        if self._token and not _knows(headers.get("authorization", ""), self._token):
            raise Refusal(401, "This service wants a token: Authorization: Bearer TOKEN.")
        if scope["method"] == "POST":
            client = scope.get("client")
            self._rate.count(client[0] if client else "")


class RateLimit:
    """At most `a_minute` requests of an address, none counted if 0: a token bucket each."""

    def __init__(self, a_minute: int):
        self._a_minute = a_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # left, when

    def count(self, address: str) -> None:
        """Raises Refusal (429) where this request is one too many."""
        if not self._a_minute:
            return
        now = time.monotonic()
        left, when = self._buckets.pop(address, (float(self._a_minute), now))
        left = min(self._a_minute, left + (now - when) * self._a_minute / 60)
        self._buckets[address] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > ADDRESSES_KEPT:
            self._buckets.popitem(last=False)
        if left < 1:
            wait = int((1 - left) * 60 / self._a_minute) + 1
            raise Refusal(429, f"Too many requests; try again in {wait} seconds.", wait)


def refused(refusal: Refusal) -> JSONResponse:
    """The JSON answer to a request that is not served."""
    headers = {}
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="face detector", charset="UTF-8"'
    return JSONResponse({"error": refusal.sentence}, refusal.status, headers)


async def _is_trusted(scope: Scope, hosts: list[str]) -> bool:
    """Whether starlette's TrustedHostMiddleware lets a request pass; its answer is plain text."""
    admitted = False

    async def admit(_scope: Scope, _receive: Receive, _send: Send) -> None:
        nonlocal admitted
        admitted = True

    async def nothing(_message: Message | None = None) -> None:
        return None

    await TrustedHostMiddleware(admit, hosts, www_redirect=False)(scope, nothing, nothing)
    return admitted


def _quoted(header: str) -> str:
    return header if len(header) <= LONGEST_HEADER else f"{header[:LONGEST_HEADER]}…"


def _knows(authorization: str, token: str) -> bool:
    kind, _, value = authorization.partition(" ")
    if kind.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return False
    elif kind.lower() != "bearer":
        return False
    return hmac.compare_digest(value.encode(), token.encode())
