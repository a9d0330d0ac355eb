"""The HTTP client of everything that fetches.

It gives servers no more trust than they need: TLS unless the user turned it off, redirects followed by hand so that
credentials stay with the host they are for, a limit on every body, and a limit on the time of every step, since a
socket's own timeout starts anew with each byte. Bodies are streamed; nothing here keeps more than PIECE of one.
"""

from __future__ import annotations

import os
import random
import socket
import ssl
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Self
from urllib.parse import SplitResult, urljoin, urlsplit

import urllib3
from urllib3 import exceptions
from urllib3.response import BaseHTTPResponse

from common.errors import ConfigError, RkpyError, StoreError, reason
from common.records import NamedTuple
from rkpy import VERSION
from stage0 import auth
from stage0.config import Config
from stage0.connections import TIMEOUT, Watch, make_pool, proxy_for

PIECE = 128 << 10
"""Octets read at once. One that takes longer than STEP_FACTOR timeouts is too slow: 1 KiB/s at the default."""
ATTEMPTS = 4
"""Times a request is made before its failure counts."""
MAX_REDIRECTS = 10
MAX_WAIT = 60.0
"""Seconds to wait because a server says so (Retry-After); if it wants more, we give up and pass that on."""
MAX_TEXT = 1 << 20
"""Octets of a document that is read whole."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_SECRETS = frozenset({"authorization", "cookie"})

OnProgress = Callable[[int, int | None], None]
"""Called with the octets there are so far, and how many there will be, if that is known."""
OnData = Callable[[int, bytes], None]
"""Called with the offset in the file and the octets written there. Offset 0 begins anew; a first offset above 0 means
that the octets before it are in the file from an earlier try."""


class FetchError(RkpyError):
    """A server could not be reached, refused, or did not keep to the protocol. `status` is 0 without an answer."""

    def __init__(
        self, message: str, *, hint: str = "", url: str = "", status: int = 0, transient: bool = False
    ) -> None:
        super().__init__(message, hint=hint)
        self.url = url
        self.status = status
        self.transient = transient
        """Whether the same request may well succeed a moment later."""


class Downloaded(NamedTuple):
    """A finished `Client.download`. `status` is 304 when nothing was downloaded because the caller has it."""

    url: str
    """Where it came from in the end."""
    status: int
    headers: Mapping[str, str]
    """Names in any case."""
    size: int


class _Request(NamedTuple):
    url: str
    what: str
    method: str
    headers: Mapping[str, str]
    body: bytes | None
    ok: Collection[int]
    limit: int
    credentials: bool


class Response:
    """An answer whose body is still to be read. A context manager; `close` gives up what was not read."""

    def __init__(self, raw: BaseHTTPResponse, url: str, what: str, limit: int, secured: bool) -> None:
        self.url = url
        """Of this answer, after redirects."""
        self.status = raw.status
        self.headers: Mapping[str, str] = raw.headers
        """Names in any case."""
        self._raw, self._what, self._limit, self._received = raw, what, limit, 0
        self._watch: Watch | None = getattr(raw, "watch", None)
        self._secured = secured
        """Whether credentials went with the request."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def length(self) -> int | None:
        """Content-Length, if the server gives one that means something."""
        text = self.headers.get("Content-Length", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None

    @property
    def content_type(self) -> str:
        """The media type without its parameters, in lower case; empty when the server does not say."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    def read(self, size: int = PIECE) -> bytes:
        """Up to `size` octets of the body, and none at its end; never more than PIECE.

        Raises FetchError when the connection fails, the body is shorter than announced or longer than the limit."""
        try:
            data = self._read(min(size, PIECE))
        except (exceptions.HTTPError, OSError, ValueError) as error:
            late = self._watch is not None and self._watch.expired
            self.close()
            raise _failure(error, self.url, self._what, late=late) from error
        self._received += len(data)
        if self._received > self._limit:
            self.close()
            raise too_large(self.url, self._what, self._limit)
        if not data and self._watch is not None:
            self._watch.stop()
        return data

    def _read(self, size: int) -> bytes:
        if self._watch is None:
            return self._raw.read(size, decode_content=False) or b""
        with self._watch:
            data = self._raw.read(size, decode_content=False) or b""
        if self._watch.expired:
            raise TimeoutError
        return data

    def close(self) -> None:
        if self._watch is not None:
            self._watch.stop()
        self._raw.close()

    def discard(self) -> None:
        """Be done with the answer, reading a short body so that the connection can be used again."""
        if (self.length or PIECE) < PIECE:
            try:
                while self.read():
                    pass
            except FetchError:
                pass
        self.close()


class Client:
    """Makes requests for one command. May be used by several threads at once.

    `insecure` replaces `config.insecure` where rules are by host; `context` the TLS context. `proxies` and the waiting
    are the environment's and the clock's."""

    def __init__(
        self,
        config: Config,
        *,
        insecure: frozenset[str] | None = None,
        context: ssl.SSLContext | None = None,
        timeout: float = TIMEOUT,
        attempts: int = ATTEMPTS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.config = config
        self.insecure = config.insecure if insecure is None else insecure
        self._context = context or tls_context(verify="tls" not in self.insecure)
        self.attempts = attempts
        self._timeout, self._sleep = timeout, sleep
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._credentials: dict[str, auth.Credential] | None = None
        if self._context.verify_mode == ssl.CERT_NONE:
            urllib3.disable_warnings(exceptions.InsecureRequestWarning)  # the user asked for it

    def open(
        self,
        url: str,
        *,
        what: str = "document",
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        ok: Collection[int] = (200,),
        limit: int = MAX_TEXT,
        credentials: bool = True,
    ) -> Response:
        """The answer to one request, after redirects (of GET and HEAD) and retries. The caller closes it.

        `what` says in errors what was looked for. Statuses not in `ok` are errors. The credentials configured for a
        host are sent to it over TLS, unless `headers` has an Authorization, which then goes to the first host only.
        Raises FetchError."""
        request = _Request(url, what, method, dict(headers or {}), body, ok, limit, credentials)
        for _ in range(MAX_REDIRECTS + 1):
            response = self._persist(request)
            if response.status in ok:
                self._require_short(response, request)
                return response
            response.discard()
            request = _redirected(request, response)
        raise FetchError(
            f"get {what} {shown(url)}: more than {MAX_REDIRECTS} redirects",
            hint="the server sends us round in circles; tell its operator",
            url=url,
            status=response.status,
        )

    def text(self, url: str, *, what: str = "document", limit: int = MAX_TEXT, **options: Any) -> str:
        """A whole small document as text, whatever is not UTF-8 in it replaced. Options as of `open`."""
        return self.content(url, what=what, limit=limit, **options).decode(errors="replace")

    def content(self, url: str, *, what: str = "document", limit: int = MAX_TEXT, **options: Any) -> bytes:
        """A whole small document. Options as of `open`."""
        with self.open(url, what=what, limit=limit, **options) as response:
            return read_all(response)

    def download(
        self,
        url: str,
        path: str,
        *,
        what: str = "file",
        headers: Mapping[str, str] | None = None,
        ok: Collection[int] = (200,),
        limit: int,
        expect_size: int | None = None,
        resume: bool = True,
        immutable: bool = False,
        credentials: bool = True,
        check: Callable[[Response], None] = lambda response: None,
        on_progress: OnProgress = lambda done, total: None,
        on_data: OnData = lambda offset, data: None,
    ) -> Downloaded:
        """Write the body to the file `path`, going on after what an earlier call left there if the server still has the
        same thing: the same strong ETag (kept in `path`.state), or always if `immutable` (named by its digest).

        `expect_size` is exact, `limit` is not. `check` sees an answer before its body and may raise. A broken
        connection is taken up again where that makes progress. After a FetchError `path` may be there, to be resumed by
        the next call or removed by the caller. Raises StoreError when `path` cannot be written."""
        from stage0 import download

        bound = limit if expect_size is None else min(limit, expect_size)
        job = download.Job(
            self, url, path, what, headers or {}, ok, bound, expect_size, immutable, credentials, check, on_progress,
            on_data,
        )  # fmt: skip
        try:
            if not resume:
                download.forget(job)
            return download.run(job)
        except OSError as error:
            raise StoreError(f"write {path}: {reason(error)}", hint="see whether there is space left") from error

    # One request

    def _persist(self, request: _Request) -> Response:
        """Make the request until it has an answer that counts."""
        for attempt in range(1, self.attempts + 1):
            last = attempt == self.attempts
            try:
                response = self._once(request)
            except FetchError as error:
                if last or not error.transient:
                    raise
                self.pause(attempt)
                continue
            follows = response.status in _REDIRECTS and request.method in ("GET", "HEAD")
            if response.status in request.ok or follows:
                return response
            wait = _retry_after(response)
            response.discard()
            if last or response.status not in _TRANSIENT or (wait or 0) > MAX_WAIT:
                break
            self.pause(attempt, wait)
        raise self._refusal(request, response)

    def pause(self, attempt: int, wait: float | None = None) -> None:
        """Wait after the failed `attempt` (from 1): ever longer, and not in step with everybody else who waits."""
        self._sleep(wait if wait is not None else 0.5 * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))  # noqa: S311

    def _once(self, request: _Request) -> Response:
        parts = self._checked(request)
        headers = {"User-Agent": f"rkpy/{VERSION}", "Accept-Encoding": "identity", **request.headers}
        if request.credentials and parts.scheme == "https" and not _has(headers, "authorization"):
            credential = self._credential(parts.netloc)
            if credential is not None:
                headers["Authorization"] = credential.authorization()
        if parts.scheme != "https":
            headers = {name: value for name, value in headers.items() if name.lower() not in _SECRETS}
        try:
            raw = self._pool(parts).request(
                request.method,
                request.url.partition("#")[0],
                body=request.body,
                headers=headers,
                preload_content=False,
                decode_content=False,
                redirect=False,
                retries=False,
                timeout=urllib3.Timeout(connect=self._timeout, read=self._timeout),
            )
        except (exceptions.HTTPError, OSError, ValueError) as error:
            raise _failure(error, request.url, request.what) from error
        return Response(raw, request.url, request.what, request.limit, _has(headers, "authorization"))

    def _checked(self, request: _Request) -> SplitResult:
        """The parts of the URL, if it may be asked at all."""
        parts = split(request.url)
        if parts.scheme == "http" and "http" not in self.insecure:
            raise FetchError(
                f"get {request.what} {shown(request.url)}: plain http is neither private nor safe from changes",
                hint="use https, or --insecure-options=http",
                url=request.url,
            )
        return parts

    def _credential(self, host: str) -> auth.Credential | None:
        if self._credentials is None:
            self._credentials = auth.by_host(self.config)
        return self._credentials.get(auth.normal_host(host))

    def _pool(self, parts: SplitResult) -> urllib3.PoolManager:
        proxy = proxy_for(parts)
        # setdefault: two threads may come here at once, and both have to use the same pool.
        return self._pools.get(proxy) or self._pools.setdefault(proxy, make_pool(proxy, self._context))

    def _require_short(self, response: Response, request: _Request) -> None:
        if response.length is not None and response.length > request.limit and request.method != "HEAD":
            response.close()
            raise too_large(response.url, request.what, request.limit, response.length)

    def _refusal(self, request: _Request, response: Response) -> FetchError:
        status = response.status
        said = f"get {request.what} {shown(request.url)}: {status} {_phrase(status)}"
        return FetchError(
            said, hint=self._remedy(request, response), url=request.url, status=status, transient=status in _TRANSIENT
        )

    def _remedy(self, request: _Request, response: Response) -> str:
        status, host = response.status, split(request.url).netloc
        if status in (401, 403):
            place = f"{self.config.own_config}/auth.d"
            credential = self._credential(host)
            if response._secured and credential is not None:
                return f"{host} does not accept the credentials in {credential.path}"
            if not request.url.startswith("https:"):
                return "credentials are sent over https only"
            return f"if {host} wants credentials, put them into a file below {place}, and see docs/discovery.md"
        if status in (404, 410):
            return f"there is no such {request.what}; check the name and the version"
        if status == 429 and response.headers.get("Retry-After"):
            return f"{host} wants fewer requests; try again in {_plain(response.headers['Retry-After'])} seconds"
        if status in _TRANSIENT:
            return f"{host} has troubles; try again later"
        return f"{host} does not do what was asked for; check the address"


def read_all(response: Response) -> bytes:
    """The rest of the body, up to the limit it was opened with. Raises FetchError."""
    pieces = []
    while data := response.read():
        pieces.append(data)
    return b"".join(pieces)


def tls_context(*, verify: bool = True) -> ssl.SSLContext:
    """A TLS context with the system's authorities, or those SSL_CERT_FILE and SSL_CERT_DIR name; of this decade's
    protocols. Raises ConfigError when the variable names no file: OpenSSL would trust nobody and not say why."""
    named = os.environ.get("SSL_CERT_FILE")
    if verify and named and not os.path.isfile(named):
        raise ConfigError(f"SSL_CERT_FILE names {named}, which is no file", hint="unset it, or name a file in PEM form")
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    # urllib3 sets it again for each connection. OpenSSL then frees the list that was there, which another thread's
    # connection may be copying at that moment: it would offer whatever is in that memory.
    context.set_alpn_protocols(["http/1.1"])
    context.set_alpn_protocols = lambda alpn_protocols: None  # type: ignore[method-assign]
    return context


def split(url: str) -> SplitResult:
    """The parts of an http or https URL. Raises FetchError for any other, and for one that has credentials in it: it
    would put them into logs."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise FetchError(f"{shown(url)} is no URL: {error}", hint="check the address", url=url) from error
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise FetchError(f"{shown(url)} is no URL with https and a host", hint="check the address", url=url)
    if "@" in parts.netloc:
        raise FetchError(
            f"{parts.scheme}://…@{parts.netloc.rpartition('@')[2]} has credentials in it",
            hint="put them into a file below /etc/rkpy/auth.d",
            url=url,
        )
    return parts


def shown(url: str) -> str:
    """The URL as errors show it: fit to print, and without a query, which may be a secret."""
    plain = _plain(url.partition("#")[0].partition("?")[0])
    return plain if len(plain) <= 300 else f"{plain[:300]}…"


def origin(url: str) -> tuple[str, str, int]:
    """Whom credentials are for: scheme, host and port. Raises FetchError."""
    parts = split(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


def _redirected(request: _Request, response: Response) -> _Request:
    """The next request after a redirect. What was meant for one host is not told to another."""
    location = response.headers.get("Location", "")
    if not location:
        raise FetchError(
            f"get {request.what} {shown(request.url)}: {response.status} without a Location",
            hint="tell the server's operator",
            url=request.url,
            status=response.status,
        )
    try:
        url = urljoin(request.url, location.strip())
        same = origin(url) == origin(request.url)
    except ValueError as error:
        said = f"get {request.what} {shown(request.url)}: redirect to no URL"
        raise FetchError(said, hint="tell the server's operator", url=request.url) from error
    headers = {name: value for name, value in request.headers.items() if same or name.lower() not in _SECRETS}
    return request._replace(url=url, headers=headers)


def _has(headers: Mapping[str, str], name: str) -> bool:
    return any(found.lower() == name for found in headers)


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _phrase(status: int) -> str:
    from http import HTTPStatus

    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "(unknown status)"


def _retry_after(response: Response) -> float | None:
    """Seconds the server wants us to wait; a date counts from now."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time()) if text else None
    except (ValueError, OverflowError):
        return None


def too_large(url: str, what: str, limit: int, size: int | None = None) -> FetchError:
    """What to raise when a body is more than was bargained for."""
    found = f"has {size} octets" if size is not None else "does not end"
    return FetchError(
        f"get {what} {shown(url)}: it {found}, and more than {limit} are not taken",
        hint="the server has something else there",
        url=url,
    )


def _failure(error: Exception, url: str, what: str, *, late: bool = False) -> FetchError:
    """What went wrong with a connection, in the words of somebody who wants to know what to do."""
    said = f"get {what} {shown(url)}"
    host = urlsplit(url).netloc
    chain = _chain(error)
    if any(isinstance(e, exceptions.ProxyError) for e in chain):
        host = f"{host} through the proxy"
    if late or any(_is_timeout(e) for e in chain):
        return FetchError(f"{said}: {host} is too slow", hint="try again later", url=url, transient=True)
    for found in chain:
        if isinstance(found, ssl.SSLCertVerificationError):
            return _distrusted(found, said, host, url)
    for found in chain:
        if isinstance(found, socket.gaierror):
            text = f"{said}: the name {host} cannot be resolved: {_plain(str(found.strerror or found))}"
            again = found.errno == socket.EAI_AGAIN
            return FetchError(text, hint="check the name and the network", url=url, transient=again)
        if isinstance(found, exceptions.IncompleteRead):
            return FetchError(f"{said}: the connection ended too early", hint="try again", url=url, transient=True)
        if isinstance(found, exceptions.LocationParseError | exceptions.InvalidHeader | ValueError):
            return FetchError(f"{said}: {_plain(str(found))}", hint="check the address", url=url)
    for found in chain:
        if isinstance(found, ssl.SSLError):
            text = _plain(str(found.reason or found)).replace("_", " ").lower()
            return FetchError(f"{said}: no TLS with {host}: {text}", hint="see whether it speaks TLS there", url=url)
    for found in chain:
        if isinstance(found, OSError) and found.errno:
            text = f"{said}: {host}: {reason(found)}"
            return FetchError(text, hint="see whether the server runs and the network is up", url=url, transient=True)
    return FetchError(f"{said}: {host} broke off: {_plain(str(error))}", hint="try again", url=url, transient=True)


def _is_timeout(error: BaseException) -> bool:
    # urllib3 counts a refused connection as one that timed out.
    return isinstance(error, TimeoutError | exceptions.TimeoutError) and not isinstance(
        error, exceptions.NewConnectionError
    )


def _distrusted(error: ssl.SSLCertVerificationError, said: str, host: str, url: str) -> FetchError:
    return FetchError(
        f"{said}: the certificate of {host} is not trusted: {error.verify_message}",
        hint="have the host's operator correct it, or add its authority to the system's or to the file SSL_CERT_FILE "
        "names; --insecure-options=tls would accept anybody's",
        url=url,
    )


def _chain(error: BaseException) -> list[BaseException]:
    """The error and all that are behind it: urllib3 has its own in fields, in arguments and as causes."""
    found: list[BaseException] = []
    queue: list[BaseException] = [error]
    while queue and len(found) < 20:
        here = queue.pop(0)
        if here in found:
            continue
        found.append(here)
        behind = (here.__cause__, getattr(here, "original_error", None), *here.args)
        queue.extend(item for item in behind if isinstance(item, BaseException))
    return found
