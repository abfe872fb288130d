"""Serves a site on this computer alone, with the headers that threads of WebAssembly need."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from snapgen_deploy.apps.site import FIRST_PAGE, POLICY, Site
from snapgen_deploy.errors import BadInput

_HOST = "127.0.0.1"
_NAMES = (_HOST, "localhost")  # of this computer; another name may be a page's that points here
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
}
HEADERS: Mapping[str, str] = {
    "Cross-Origin-Opener-Policy": "same-origin",  # the two of them give a page threads
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class _Handler(BaseHTTPRequestHandler):
    """Answers with the site's files, which are looked up by name: no path leads elsewhere."""

    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        if host not in _NAMES:
            self._send(HTTPStatus.FORBIDDEN, b"This server answers its own computer alone.\n", body=body)
            return
        name = unquote(urlsplit(self.path).path).removeprefix("/") or FIRST_PAGE
        content = self.server.site.files.get(name)
        try:
            if content is None:
                self._send(HTTPStatus.NOT_FOUND, b"There is no such file.\n", body=body)
            elif isinstance(content, bytes):
                self._send(HTTPStatus.OK, content, name, body=body)
            else:
                with content.open("rb") as file:
                    self._head(HTTPStatus.OK, content.stat().st_size, name)
                    if body:
                        shutil.copyfileobj(file, self.wfile)
        except (BrokenPipeError, ConnectionResetError):  # the page was closed
            self.close_connection = True
        except OSError:
            self._send(HTTPStatus.NOT_FOUND, b"The file is gone.\n", body=body)

    def _send(self, status: HTTPStatus, content: bytes, name: str = "", *, body: bool) -> None:
        self._head(status, len(content), name)
        if body:
            self.wfile.write(content)

    def _head(self, status: HTTPStatus, length: int, name: str) -> None:
        self.send_response(status)
        default = "application/octet-stream" if name else "text/plain; charset=utf-8"
        self.send_header("Content-Type", _TYPES.get(Path(name).suffix, default))
        self.send_header("Content-Length", str(length))
        for key, value in HEADERS.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for every file would say nothing to who reads it."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, site: Site, port: int) -> None:
        self.site = site
        super().__init__((_HOST, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a browser closes connections as it likes."""


@contextmanager
def serving(site: Site, port: int) -> Iterator[ThreadingHTTPServer]:
    """A server for a site on this computer's own address; the caller runs its `serve_forever`. Port 0: any free one.

    Raises:
        BadInput: if the port is taken.
    """
    try:
        server = _Server(site, port)
    except OSError as error:
        raise BadInput(f"--port {port}: cannot be listened on ({error.strerror}); give another one, or 0 for any") from None
    with server:
        yield server


def address_of(server: ThreadingHTTPServer) -> str:
    """What to open in a browser."""
    return f"http://{_HOST}:{server.server_address[1]}/"
