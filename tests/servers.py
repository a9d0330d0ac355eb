"""Loopback HTTPS servers with an authority of their own, well behaved or not.

`Site` speaks TLS for `example.com`, `mirror.example.com`, `localhost` and others on a port of its own; `Proxy` takes
CONNECT for any host to it, so that real names can be used: set https_proxy to `proxy.url`.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import random
import re
import select
import socket
import socketserver
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

NAMES = ("example.com", "mirror.example.com", "evil.example.net", "localhost")
DRIP = 0.02
"""Seconds between the octets of a slow server."""


class Authority(NamedTuple):
    """A certificate authority, and a certificate by it for NAMES."""

    directory: Path

    @property
    def certificate(self) -> str:
        """What SSL_CERT_FILE has to name."""
        return str(self.directory / "ca.pem")

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "server.pem", self.directory / "server.key")
        return context


@functools.cache
def authority() -> Authority:
    """One for the whole run; its directory goes with the interpreter."""
    keep = tempfile.TemporaryDirectory(prefix="rkpy-test-ca-")
    _keep.append(keep)
    directory = Path(keep.name)
    names = ",".join([*(f"DNS:{name}" for name in NAMES), "IP:127.0.0.1"])
    (directory / "names").write_text(f"subjectAltName={names}\n")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-sha256")
    _openssl(directory, "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=Test")
    _openssl(directory, "req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=example.com")
    sign = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-sha256", "-extfile", "names")
    _openssl(directory, "x509", "-req", "-in", "server.csr", "-out", "server.pem", *sign)
    return Authority(directory)


_keep: list[Any] = []


def _openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


def free_port() -> int:
    """A port of 127.0.0.1 for a server that binds it later. None of those the kernel gives to whoever wants any: one
    would go to somebody's connection meanwhile, or to that of who looks whether the server is there, to itself."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = [port for port in range(20_000, 1 << 16) if not low <= port <= high]
    for port in random.sample(ports, len(ports)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


class Seen(NamedTuple):
    """One request as it arrived."""

    method: str
    host: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Looks up what the site has at a path and lets it answer."""

    protocol_version = "HTTP/1.1"
    server: Site

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path or "/"  # to a proxy, the whole URL
        host = self.headers.get("Host", "").partition(":")[0]
        self.server.seen.append(
            Seen(self.command, host, self.path, {name.lower(): value for name, value in self.headers.items()})
        )
        found = self.server.pages.get(f"//{host}{path}") or self.server.pages.get(path) or status(404)
        with contextlib.suppress(OSError):
            found(self)

    do_POST = do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        """A whole answer. Underscores in the names of headers stand for dashes."""
        self.head(code, **{"Content_Length": str(len(body)), **headers})
        if self.command != "HEAD":
            self.wfile.write(body)

    def head(self, code: int, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()


Page = Callable[[Handler], None]


class Site(http.server.ThreadingHTTPServer):
    """Serves `pages`, by path or by `//HOST/PATH`, and notes what it was asked. `tls` False speaks plain HTTP."""

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, *, tls: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, Page] = {}
        self.seen: list[Seen] = []
        self._context = authority().context() if tls else None
        self.scheme = "https" if tls else "http"

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def url(self, path: str, host: str = "localhost") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    def paths(self) -> list[str]:
        """What was asked for, in order, without queries."""
        return [one.path.partition("?")[0] for one in self.seen]

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self._context is None:
            return connection, address
        # The handshake happens in the thread of the connection, at its first read.
        return self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are what half of the tests are about


@contextlib.contextmanager
def site(*, tls: bool = True) -> Iterator[Site]:
    server = Site(tls=tls)
    with _serving(server):
        yield server


class _Tunnel(socketserver.StreamRequestHandler):
    server: Proxy

    def handle(self) -> None:
        line = self.rfile.readline().decode().split()
        headers = {}
        while (header := self.rfile.readline().strip()) != b"":
            name, _, value = header.partition(b":")
            headers[name.lower().decode()] = value.strip().decode()
        self.server.seen.append((line[1], headers))
        if line[0] != "CONNECT":
            self.wfile.write(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
            return
        with socket.create_connection(("127.0.0.1", self.server.target)) as there:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            with contextlib.suppress(OSError):
                _relay(self.connection, there)


def _relay(one: socket.socket, other: socket.socket) -> None:
    while True:
        for source in select.select([one, other], [], [], 60)[0]:
            data = source.recv(1 << 16)
            if not data:
                return
            (other if source is one else one).sendall(data)


class Proxy(socketserver.ThreadingTCPServer):
    """Leads every CONNECT to the port `target`; `seen` are the targets and headers of the requests."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, target: int) -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.target = target
        self.seen: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextlib.contextmanager
def proxy(target: int) -> Iterator[Proxy]:
    server = Proxy(target)
    with _serving(server):
        yield server


@contextlib.contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# What a page can do


def page(body: bytes, **headers: str) -> Page:
    """A file as a good server has it: with Range, If-Range and If-None-Match where there is an `ETag`."""

    def answer(handler: Handler) -> None:
        tag = headers.get("ETag", "")
        if tag and handler.headers.get("If-None-Match") == tag:
            handler.head(304, **headers)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        if wanted and handler.headers.get("If-Range", tag) == tag:
            start = int(wanted[1])
            if start >= len(body):
                handler.answer(416, Content_Range=f"bytes */{len(body)}")
                return
            part = f"bytes {start}-{len(body) - 1}/{len(body)}"
            handler.answer(206, body[start:], Content_Range=part, **headers)
            return
        handler.answer(200, body, **headers)

    return answer


def html(*metas: tuple[str, str], content_type: str = "text/html; charset=utf-8", body: str = "") -> Page:
    """A web page with `<meta name= content=>` for each pair."""
    tags = "".join(f'<meta name="{name}" content="{content}">\n' for name, content in metas)
    text = f"<!DOCTYPE html>\n<html><head><title>Here</title>\n{tags}</head><body>{body}</body></html>"
    return page(text.encode(), Content_Type=content_type)


def status(code: int, **headers: str) -> Page:
    """Nothing but a status."""
    return lambda handler: handler.answer(code, b"no\n", **headers)


def redirect(to: str, code: int = 302) -> Page:
    return status(code, Location=to)


def truncated(body: bytes, after: int, **headers: str) -> Page:
    """Says it has all of `body`, and hangs up after the first `after` octets."""

    def answer(handler: Handler) -> None:
        handler.head(200, Content_Length=str(len(body)), **headers)
        handler.wfile.write(body[:after])
        handler.wfile.flush()
        handler.close_connection = True

    return answer


def endless(**headers: str) -> Page:
    """Never says how long it is, and never stops; in chunks, as a generated page would be."""

    def answer(handler: Handler) -> None:
        handler.head(200, Transfer_Encoding="chunked", **headers)
        while True:
            handler.wfile.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")

    return answer


def dripping(where: str) -> Page:
    """An octet now and then, for as long as anybody listens: in the "headers", the "body", or the size of a "chunk"."""

    def answer(handler: Handler) -> None:
        if where == "headers":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        elif where == "body":
            handler.head(200, Content_Length="1000000")
        else:
            handler.head(200, Transfer_Encoding="chunked")
        waiting = threading.Event()
        while not waiting.wait(DRIP):
            handler.wfile.write(b"0")
            handler.wfile.flush()

    return answer


def silent() -> Page:
    """Takes the request and says nothing, until the client hangs up."""

    def answer(handler: Handler) -> None:
        handler.connection.settimeout(60)
        handler.connection.recv(1)
        handler.close_connection = True

    return answer


def in_turn(*pages: Page) -> Page:
    """One page after the other; the last one stays."""
    left = list(pages)

    def answer(handler: Handler) -> None:
        (left.pop(0) if len(left) > 1 else left[0])(handler)

    return answer


def login(authorization: str, then: Page) -> Page:
    """401 unless the Authorization is exactly that."""

    def answer(handler: Handler) -> None:
        if handler.headers.get("Authorization") == authorization:
            then(handler)
        else:
            handler.answer(401, b"no\n", WWW_Authenticate='Basic realm="here"')

    return answer
