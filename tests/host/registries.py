"""Registries for tests: Debian's docker-registry, and one that lies as it is told to."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import io
import json
import socket
import ssl
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from tests.servers import free_port

USER, PASSWORD = "tester", "correct horse"
DEADLINE = 120
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


def certificate(directory: Path) -> Path:
    """A certificate for localhost that is its own authority; the key is beside it in `key.pem`."""
    path = directory / "ca.crt"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    key = ["-newkey", "rsa:2048", "-nodes", "-keyout", str(directory / "key.pem")]
    subprocess.run(
        ["openssl", "req", "-x509", *key, "-out", str(path), "-days", "2", *subject], check=True, capture_output=True
    )
    return path


class Real(NamedTuple):
    """A running docker-registry that wants a login."""

    host: str
    directory: Path

    @property
    def ca(self) -> Path:
        return self.directory / "ca.crt"

    def requests(self) -> list[str]:
        """METHOD PATH STATUS of all it was asked so far."""
        found = []
        for line in (self.directory / "log").read_text().splitlines():
            parts = line.split('"')
            if line.startswith("127.0.0.1") and len(parts) > 2:
                found.append(f"{parts[1].rpartition(' ')[0]} {parts[2].split()[0]}")
        return found

    def push(self, source: str, name: str, *options: str) -> None:
        """Copy an image there with skopeo."""
        command = ["skopeo", "copy", "-q", "--dest-cert-dir", str(self.directory), "--dest-creds", f"{USER}:{PASSWORD}"]
        subprocess.run([*command, *options, source, f"docker://{self.host}/{name}"], check=True)

    def put(self, made: Made, name: str) -> None:
        """Upload an image exactly as it was made, as no tool would for one that is odd."""
        repository, _, tag = name.rpartition(":")
        connection = http.client.HTTPSConnection(self.host, context=ssl.create_default_context(cafile=self.ca))
        login = {"Authorization": f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"}

        def ask(method: str, path: str, body: bytes = b"", kind: str = "application/octet-stream") -> str:
            connection.request(method, path, body, {**login, "Content-Type": kind})
            answer = connection.getresponse()
            assert answer.status in (201, 202), (method, path, answer.status, answer.read())
            answer.read()
            return answer.headers["Location"]

        try:
            for digest, blob in made.blobs.items():
                place = ask("POST", f"/v2/{repository}/blobs/uploads/").partition(self.host)[2]
                ask("PUT", f"{place}&digest={digest}", blob)
            ask("PUT", f"/v2/{repository}/manifests/{tag}", made.manifest, MANIFEST)
        finally:
            connection.close()


@contextmanager
def real(directory: Path) -> Iterator[Real]:
    """docker-registry with TLS and htpasswd on a free port of the loopback interface."""
    found = Real(f"localhost:{free_port()}", directory)
    certificate(directory)
    made = subprocess.run(["htpasswd", "-Bbn", USER, PASSWORD], check=True, capture_output=True)
    (directory / "htpasswd").write_bytes(made.stdout)
    config = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
        "auth": {"htpasswd": {"realm": "tests", "path": str(directory / "htpasswd")}},
        "http": {"addr": found.host, "tls": {"certificate": str(found.ca), "key": str(directory / "key.pem")}},
    }
    (directory / "config.yml").write_text(json.dumps(config))
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(directory / "config.yml")], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _await(int(found.host.rpartition(":")[2]))
        yield found
    finally:
        process.kill()
        process.wait()


def _await(port: int) -> None:
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the registry does not come up"
            time.sleep(0.05)


# Images by hand


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer(files: Mapping[str, bytes]) -> bytes:
    """A layer, uncompressed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class Made(NamedTuple):
    """An image: its manifest, and all blobs by digest."""

    manifest: bytes
    blobs: dict[str, bytes]

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)

    def layers(self) -> list[str]:
        return [entry["digest"] for entry in json.loads(self.manifest)["layers"]]

    def layout(self, directory: Path) -> str:
        """As an OCI layout, for skopeo."""
        (directory / "blobs/sha256").mkdir(parents=True)
        for data in (*self.blobs.values(), self.manifest):
            (directory / "blobs/sha256" / digest_of(data)[7:]).write_bytes(data)
        entry = {"mediaType": MANIFEST, "digest": self.digest, "size": len(self.manifest)}
        (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        return f"oci:{directory}"


def image(*layers: Mapping[str, bytes], arch: str = "amd64", **process: Any) -> Made:
    """An image with a gzip layer for each of `layers`."""
    tars = [layer(files) for files in layers]
    packed = [gzip.compress(tar, 1, mtime=0) for tar in tars]
    config = json.dumps(
        {
            "os": "linux",
            "architecture": arch,
            "config": process,
            "rootfs": {"type": "layers", "diff_ids": [digest_of(tar) for tar in tars]},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest_of(config), "size": len(config)},
            "layers": [{"mediaType": GZIP, "digest": digest_of(blob), "size": len(blob)} for blob in packed],
        }
    ).encode()
    return Made(manifest, {digest_of(blob): blob for blob in (config, *packed)})


# The one that lies


class Asked(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Answer(NamedTuple):
    status: int = 200
    headers: Mapping[str, str] = {}
    body: bytes = b""
    cut: int | None = None
    """Break the connection after so many bytes of the body."""
    hold: threading.Event | None = None
    """Wait for it before the connection is broken."""


class Fake:
    """Answers as `rules` say, which are asked in turn for an Answer or None; then from `made`, by tag or digest."""

    def __init__(self, tls: Path | None = None) -> None:
        self.tags: dict[str, tuple[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.rules: list[Callable[[Asked], Answer | None]] = []
        self.asked: list[Asked] = []
        self.ranges = True
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner._handle(self)

            do_HEAD = do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.scheme = "https" if tls else "http"
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls, tls.with_name("key.pem"))
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.host = f"localhost:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, made: Made, tag: str = "1") -> None:
        self.tags[tag] = self.tags[made.digest] = (MANIFEST, made.manifest)
        self.blobs |= made.blobs

    def paths(self, method: str = "GET") -> list[str]:
        return [asked.path for asked in self.asked if asked.method == method]

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        asked = Asked(handler.command, handler.path, handler.headers, handler.rfile.read(length))  # type: ignore[arg-type]
        self.asked.append(asked)
        answer = next((found for rule in self.rules if (found := rule(asked))), None) or self._honest(asked)
        handler.send_response(answer.status)
        headers = {"Content-Length": str(len(answer.body)), **answer.headers}
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if asked.method == "HEAD":
            return
        handler.wfile.write(answer.body[: answer.cut])
        if answer.cut is not None:
            handler.close_connection = True
            handler.wfile.flush()
            if answer.hold is not None:
                answer.hold.wait(DEADLINE)
            handler.connection.shutdown(socket.SHUT_RDWR)

    def _honest(self, asked: Asked) -> Answer:
        kind, _, wanted = asked.path.rpartition("/")
        if kind.endswith("/manifests") and wanted in self.tags:
            media_type, data = self.tags[wanted]
            return Answer(headers={"Content-Type": media_type, "Docker-Content-Digest": digest_of(data)}, body=data)
        if kind.endswith("/blobs") and wanted in self.blobs:
            return self._blob(self.blobs[wanted], asked.headers.get("Range") or "")
        return Answer(404, {"Content-Type": "application/json"}, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')

    def _blob(self, data: bytes, wanted: str) -> Answer:
        if not wanted or not self.ranges:
            return Answer(body=data)
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(data):
            return Answer(416)
        return Answer(206, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}, data[start:])
