"""Connections whose every step has a time limit, and the proxies the environment asks for.

A socket's own timeout starts anew with each octet, so a server that sends one every few seconds could hold us for ever:
in the headers, in the size of a chunk, after the last chunk.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from typing import Any, Self
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.response import HTTPResponse

from common.errors import ConfigError

TIMEOUT = 30.0
"""Seconds a server may be silent."""
STEP_FACTOR = 4
"""Timeouts that the headers of an answer, or one piece of its body, may take."""


class Watch:
    """Ends a connection whose current step takes too long. A context manager around one step; used for many."""

    def __init__(self, connection: Any, seconds: float) -> None:
        self.expired = False
        self._socket: socket.socket = getattr(connection, "socket", connection)  # of TLS inside of TLS
        self._seconds = seconds
        self._deadline: float | None = None
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="http-watch", daemon=True).start()

    def __enter__(self) -> Self:
        self._deadline = time.monotonic() + self._seconds
        return self

    def __exit__(self, *_: object) -> None:
        self._deadline = None

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds / 8):
            deadline = self._deadline
            if deadline is not None and time.monotonic() >= deadline:
                self.expired = True
                try:
                    # Not SSLSocket's own method, which takes the TLS state away from the thread that is reading.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
                except OSError:
                    pass
                return


class _Watched(HTTPConnection):
    """A connection whose answers come with a Watch, as `watch`."""

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]
        assert self.sock is not None
        seconds = self.timeout if isinstance(self.timeout, int | float) else TIMEOUT
        watch = Watch(self.sock, STEP_FACTOR * seconds)
        try:
            with watch:
                response = super().getresponse()
        except BaseException as error:
            watch.stop()
            if watch.expired:
                raise TimeoutError from error
            raise
        response.watch = watch  # type: ignore[attr-defined]
        return response


class _WatchedTLS(_Watched, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Watched


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedTLS


def make_pool(proxy: str, context: ssl.SSLContext) -> urllib3.PoolManager:
    options: dict[str, Any] = {"ssl_context": context, "maxsize": 8, "retries": False}
    if proxy:
        parts = urlsplit(proxy)
        if parts.scheme not in ("http", "https"):
            raise ConfigError(
                f"the proxy {parts.scheme}://{parts.netloc.rpartition('@')[2]} cannot be used",
                hint="https_proxy and http_proxy have to name an http or https proxy",
            )
        login = parts.username and f"{parts.username}:{parts.password or ''}"
        headers = urllib3.make_headers(proxy_basic_auth=login or None)
        address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        pool: urllib3.PoolManager = urllib3.ProxyManager(address, proxy_headers=headers, **options)
    else:
        pool = urllib3.PoolManager(**options)
    pool.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
    return pool


def proxy_for(parts: SplitResult) -> str:
    """The proxy the environment (http_proxy, https_proxy, no_proxy) wants for a URL; empty for none."""
    proxies = getproxies_environment()
    host = parts.hostname or ""
    proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
    if not proxy or host == "localhost" or host.startswith("127.") or host == "::1":
        return ""
    if proxy_bypass_environment(parts.netloc, proxies):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"
