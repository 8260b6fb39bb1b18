"""How the web service starts and ends as a program of its own."""

import contextlib
import errno
import logging
import socket

import uvicorn

from pipeline.common.errors import UserError
from pipeline.common.machine import one_thread_for_opencv
from pipeline.requests.addresses import root_path
from pipeline.requests.settings import Settings
from pipeline.service.routes import create_app

log = logging.getLogger("uvicorn.error")


def serve(settings: Settings) -> None:
    """Answer requests until Ctrl-C or SIGTERM; those that are being worked on get their answers.

    Raises UserError where the weights cannot be used or the port is not to be had.
    """
    one_thread_for_opencv()
    app = create_app(settings)
    sockets = listen(settings.host, settings.port)
    config = uvicorn.Config(
        app,
        timeout_graceful_shutdown=settings.shutdown_seconds,
        lifespan="off",  # the program ends with the service: nothing has to be closed after it
        proxy_headers=False,  # the app believes the proxies that the settings name, and no others
    )
    for listening in sockets:
        host, port = listening.getsockname()[:2]
        log.info(
            "The page is at http://%s:%d%s/ (Ctrl-C ends it)",
            f"[{host}]" if ":" in host else host,
            port,
            root_path(settings.root_path),
        )
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again once it has ended
        uvicorn.Server(config).run(sockets)


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at a port of each address that `host` stands for here.

    An empty host is all of this machine's addresses. Raises UserError where that cannot be.
    """
    unusable: OSError | None = None
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, address in dict.fromkeys((entry[0], entry[4]) for entry in found):
            try:
                sockets.append(socket.create_server(address, family=family))
            except OSError as error:
                # localhost stands for ::1, too, also on machines that have no IPv6
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                unusable = error
        if not sockets and unusable:
            raise unusable
    except OSError as error:
        for listening in sockets:
            listening.close()
        raise UserError(_refusal(host, port, error)) from None
    return sockets


def _refusal(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Another program listens at port {port} of {host} already: stop it, or choose another "
            "port with --port or DETECTOR_PORT."
        )
    if error.errno == errno.EACCES:
        return (
            f"Port {port} of {host} is not for everybody: choose one above 1023 with --port or "
            "DETECTOR_PORT."
        )
    return (
        f"Nothing can listen at port {port} of {host} ({error.strerror}): give an address of this "
        "machine as --host or DETECTOR_HOST."
    )
