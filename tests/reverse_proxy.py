"""Real reverse proxies for tests: nginx where there is one, and a small one that does the same."""

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from tests.web_service import wait_for

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
MAX_BODY = 1 << 20  # nginx's client_max_body_size, unless it is set


class Way(NamedTuple):
    """What a proxy does to requests; as it stands here, what nginx does where nothing is set."""

    prefix: str = ""  # it shows the service below this path
    strips: bool = True  # and cuts it off
    passes_host: bool = False  # instead of naming the service's own address
    forwards: bool = False  # adds the client's address to X-Forwarded-For
    max_body: int = MAX_BODY


@contextlib.contextmanager
def small_proxy(port: int, upstream: int, way: Way, _folder: Path) -> Iterator[str]:
    """Listen at `port` and pass requests on to `upstream`, both of 127.0.0.1; the address."""

    class Handler(BaseHTTPRequestHandler):
        def pass_on(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            if length > way.max_body:
                self.close_connection = True
                return self.send_error(413)
            if not self.path.startswith(f"{way.prefix}/"):
                return self.send_error(404)
            headers = {name: value for name, value in self.headers.items() if name != "Connection"}
            headers["Connection"] = "close"
            if not way.passes_host:
                headers["Host"] = f"127.0.0.1:{upstream}"
            if way.forwards:
                before = self.headers.get("X-Forwarded-For")
                here = self.client_address[0]
                headers["X-Forwarded-For"] = f"{before}, {here}" if before else here
            path = self.path.removeprefix(way.prefix) if way.strips else self.path
            connection = http.client.HTTPConnection("127.0.0.1", upstream, timeout=120)
            connection.request(self.command, path, self.rfile.read(length), headers)
            answer = connection.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.read())
            connection.close()

        do_GET = do_POST = do_HEAD = pass_on

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def nginx(port: int, upstream: int, way: Way, folder: Path) -> Iterator[str]:
    """The same by nginx."""
    lines = []
    if way.passes_host:
        lines.append("proxy_set_header Host $http_host;")
    if way.forwards:
        lines.append("proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;")
    if way.max_body != MAX_BODY:
        lines.append(f"client_max_body_size {way.max_body};")
    location = f"""
    location {way.prefix}/ {{
      proxy_pass http://127.0.0.1:{upstream}{"/" if way.prefix and way.strips else ""};
      {" ".join(lines)}
    }}"""
    with run_nginx(port, location, folder) as address:
        yield address


@contextlib.contextmanager
def run_nginx(port: int, location: str, folder: Path) -> Iterator[str]:
    """nginx with one server, which has this block `location`; it keeps its files in `folder`."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    configuration = folder / f"nginx-{port}.conf"
    configuration.write_text(
        f"""
daemon off;
pid {folder}/nginx-{port}.pid;
{"user root;" if os.geteuid() == 0 else ""}
error_log {folder}/nginx-{port}.log;
events {{}}
http {{
  access_log off;
  {temporary}
  server {{
    listen 127.0.0.1:{port};
    {location}
  }}
}}
"""
    )
    process = subprocess.Popen(
        [NGINX, "-c", str(configuration), "-p", str(folder), "-e", f"{folder}/nginx-{port}.log"]
    )
    try:
        wait_for(lambda: process.poll() is not None or _listens(port))
        assert process.poll() is None, (folder / f"nginx-{port}.log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
