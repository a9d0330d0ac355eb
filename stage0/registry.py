"""The OCI distribution API (distribution-spec 1.1), as far as fetching goes: manifests, blobs, and who may have them.

An image is fetched in two steps, so that its signature can be checked in between: `Client.resolve` finds out which
manifest a reference means for this host, and `pull` brings that image into the store. `stored` comes before both: it
tells with one request that the store is up to date.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import ssl
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

from aci import oci, oci_config, types
from aci.oci import Descriptor
from aci.store import ImageRecord, Store, Verification
from common.errors import ConfigError, ImageError
from common.records import NamedTuple
from stage0 import caller, http, registries_conf
from stage0.config import Config
from stage0.docker_auth import Login, Logins
from stage0.docker_reference import DockerReference, image_name
from stage0.http import FetchError, Response
from stage0.registries_conf import Endpoint, Registries

DIGEST = f"{oci_config.ANNOTATION}digest"
"""The annotation with the digest the registry gave for the tag; of the index, where there is one."""
REGISTRY = f"{oci_config.ANNOTATION}registryurl"
REPOSITORY = f"{oci_config.ANNOTATION}repository"
"""What docker2aci calls where an image is from."""
_API_HUB = "registry-1.docker.io"
_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1"
_ACCEPT = ", ".join((*oci.MANIFESTS, *oci.INDEXES))
_CERTIFICATES = ("/etc/docker/certs.d", "/etc/containers/certs.d")
_TOKEN_LIMIT = 64 << 10
_CHALLENGE_LIMIT = 4 << 10
"""Characters of a WWW-Authenticate that are looked at: the patterns below take quadratic time."""
_NAMELESS_TYPES = ("", "application/json", "application/octet-stream", "text/plain")
"""Content types of servers that just serve files; the document itself says what it is."""
_CHALLENGE = re.compile(r'(\w+)\s+((?:\w+\s*=\s*(?:"(?:[^"\\]|\\.)*"|[^\s,"]+)\s*,?\s*)+)')
_PARAMETER = re.compile(r'(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


if TYPE_CHECKING:
    from stage0.blobs import Progress

T = TypeVar("T")


class RegistryError(FetchError):
    """A registry has not got what was asked for, or does not give it to us."""


class NotFound(RegistryError):
    """The registry knows no such manifest or blob."""


class Document(NamedTuple):
    """A manifest or an index, whose digest is right."""

    media_type: str
    digest: str
    data: bytes


class Resolved(NamedTuple):
    """What a reference means for this host."""

    reference: DockerReference
    digest: str
    """Of what the tag names: an index, where there is one. What signatures are for is this or `manifest_digest`."""
    manifest_digest: str
    manifest: bytes
    endpoint: Endpoint
    """Who answered, which may be a mirror."""

    @property
    def name(self) -> oci_config.Name:
        return image_name(self.reference)


def _is_for_us(path: str) -> bool:
    """Whether it is not root's secret, or that of another user. What is missing is told by whoever opens it."""
    return not caller.is_ordinary() or os.access(path, os.R_OK) or not os.path.exists(path)


class Client:
    """Talks to registries, for one command; threads may share it. `registries` and `logins` are by default the host's
    and the user's."""

    def __init__(
        self,
        config: Config,
        registries: Registries | None = None,
        logins: Logins | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self.config = config
        self.registries = registries_conf.load() if registries is None else registries
        self.logins = logins or Logins(config, environment)
        self._environment = environment
        self._http: dict[tuple[str, bool], http.Client] = {}
        self._contexts: dict[tuple[str, bool], ssl.SSLContext] = {}
        self._schemes: dict[str, str] = {}
        self._authorizations: dict[Endpoint, str] = {}
        self._lock = threading.RLock()

    def forked(self) -> Client:
        """For a child process: knows what this one has learnt, and shares no connection with it."""
        client = Client(self.config, self.registries, self.logins, self._environment)
        client._schemes = dict(self._schemes)
        client._authorizations = dict(self._authorizations)
        client._contexts = dict(self._contexts)
        return client

    # What images are made of

    def resolve(self, reference: DockerReference) -> Resolved:
        """The manifest `reference` means for this host, from the first place that has it. Raises FetchError, and
        ImageError for a document that is no image or not what it should be."""
        endpoint, document = self._first(reference, lambda place: self.get_manifest(place, reference.wanted))
        what = f"{endpoint}"
        if document.media_type in oci.MANIFESTS:
            oci.parse(document.data, f"{what}: manifest {document.digest[:19]}")
            return Resolved(reference, document.digest, document.digest, document.data, endpoint)
        read = partial(self.read, endpoint)
        entries = oci.index_entries(document.data, f"{what}: index {document.digest[:19]}")
        if not entries:
            raise ImageError(f"{reference}: there is no image in its index")
        chosen = oci.choose(what, entries, read)
        return Resolved(reference, document.digest, chosen.digest, read(chosen, "manifest"), endpoint)

    def digest_of(self, reference: DockerReference) -> str:
        """The digest of what `reference` names, by a single request; empty when the registry does not say."""

        def ask(place: Endpoint) -> str:
            what = f"manifest {reference.wanted}"
            with self._open(place, f"manifests/{reference.wanted}", what, method="HEAD", accept=_ACCEPT) as response:
                return response.headers.get("Docker-Content-Digest", "")

        return self._first(reference, ask)[1]

    def get_manifest(self, place: Endpoint, wanted: str) -> Document:
        """The manifest or index with the tag or digest `wanted`. Raises NotFound, FetchError and ImageError."""
        what = f"manifest {wanted[:71]}"
        path = f"manifests/{wanted}"
        with self._open(place, path, what, accept=_ACCEPT, limit=oci.DOCUMENT_LIMIT) as response:
            data = http.read_all(response)
            announced = wanted if ":" in wanted else response.headers.get("Docker-Content-Digest", "")
            kind = response.content_type
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if announced.startswith(("sha256:", "sha512:")):
            oci.check_digest(data, announced, f"{place}: {what}")
            digest = announced
        return Document(_media_type(kind, data, f"{place}: {what}"), digest, data)

    def get_blob(self, place: Endpoint, digest: str, *, limit: int = oci.DOCUMENT_LIMIT) -> bytes:
        """A small blob, verified. Raises NotFound, FetchError and ImageError."""
        what = f"blob {digest[:19]}"
        with self._open(place, f"blobs/{digest}", what, limit=limit) as response:
            data = http.read_all(response)
        oci.check_digest(data, digest, f"{place}: {what}")
        return data

    def read(self, place: Endpoint, wanted: Descriptor, what: str) -> bytes:
        """A document that another one describes, verified. Raises FetchError and ImageError."""
        if wanted.size > oci.DOCUMENT_LIMIT:
            raise ImageError(f"{place}: {what} {wanted.digest[:19]} is larger than {oci.DOCUMENT_LIMIT} bytes")
        is_manifest = wanted.media_type in (*oci.MANIFESTS, *oci.INDEXES)
        data = self.get_manifest(place, wanted.digest).data if is_manifest else self.get_blob(place, wanted.digest)
        if len(data) != wanted.size:
            raise ImageError(f"{place}: {what} {wanted.digest[:19]} has {len(data)} bytes, not {wanted.size}")
        return data

    def download(
        self,
        place: Endpoint,
        digest: str,
        size: int,
        path: str,
        on_data: http.OnData,
    ) -> None:
        """Write the blob to `path`, going on where an earlier try ended; see `http.Client.download`. Its size is
        checked, its digest not: `on_data` sees the bytes. Raises FetchError and StoreError."""
        what = f"blob {digest[:19]}"
        for again in (True, False):
            client, url = self._address(place, f"blobs/{digest}")
            try:
                client.download(
                    url,
                    path,
                    what=what,
                    headers=self._headers(place, ""),
                    ok=(200, 401),
                    limit=size,
                    expect_size=size,
                    immutable=True,
                    credentials=False,
                    check=_pass_challenge,
                    on_data=on_data,
                )
                return
            except _Challenged as challenge:
                self._authorize(place, challenge.header, what, again=again)
            except FetchError as error:
                raise self._refused(place, error, what) from error

    # Places

    def _first(self, reference: DockerReference, ask: Callable[[Endpoint], T]) -> tuple[Endpoint, T]:
        """The first of the places for `reference` that answers, and its answer. Mirrors that cannot are passed over."""
        places = self.registries.endpoints(reference)
        for place in places[:-1]:
            try:
                return place, ask(place)
            except FetchError:
                continue
        return places[-1], ask(places[-1])

    def _address(self, place: Endpoint, path: str) -> tuple[http.Client, str]:
        client = self._client(place)
        return client, f"{self._schemes.get(place.host, 'https')}://{place.host}/v2/{place.repository}/{path}"

    def _client(self, place: Endpoint) -> http.Client:
        with self._lock:
            key = (place.host, place.insecure)
            known = self._http.get(key)
            if known is None:
                insecure = self.config.insecure | ({"tls", "http"} if place.insecure else set())
                if key not in self._contexts:
                    self._contexts[key] = self._context(place.host, verify="tls" not in insecure)
                known = self._http[key] = http.Client(self.config, insecure=insecure, context=self._contexts[key])
            return known

    def _context(self, host: str, *, verify: bool) -> ssl.SSLContext:
        """A TLS context with what containers-certs.d(5) has for the host."""
        context = http.tls_context(verify=verify)
        home = self._environment.get("HOME", "")
        for directory in (*_CERTIFICATES, *([f"{home}/.config/containers/certs.d"] if home else [])):
            folder = f"{directory}/{host}"
            names = sorted(os.listdir(folder)) if os.path.isdir(folder) and _is_for_us(folder) else []
            for name in names:
                try:
                    if name.endswith(".crt"):
                        context.load_verify_locations(f"{folder}/{name}")
                    elif name.endswith(".cert") and _is_for_us(key := f"{folder}/{name.removesuffix('.cert')}.key"):
                        context.load_cert_chain(f"{folder}/{name}", key)
                except (OSError, ssl.SSLError) as error:
                    raise ConfigError(f"{folder}/{name}: not a usable certificate: {error}") from error
        return context

    # Requests, and who makes them

    def _open(
        self, place: Endpoint, path: str, what: str, *, method: str = "GET", accept: str = "", limit: int = 0
    ) -> Response:
        """The answer to one request, after logging in if the registry wants that. Raises FetchError."""
        for again in (True, False):
            response = self._ask(place, path, what, method=method, accept=accept, limit=limit)
            if response.status != 401:
                return response
            header = response.headers.get("WWW-Authenticate", "")
            response.discard()
            self._authorize(place, header, what, again=again)
        raise AssertionError("the second refusal is an error")

    def _ask(self, place: Endpoint, path: str, what: str, *, method: str, accept: str, limit: int) -> Response:
        client, url = self._address(place, path)
        headers = self._headers(place, accept)
        options: dict[str, Any] = {"method": method, "headers": headers, "ok": (200, 401), "credentials": False}
        try:
            return client.open(url, what=what, limit=limit, **options)
        except FetchError as error:
            plain = error.status == 0 and "http" in client.insecure and place.host not in self._schemes
            if not plain:
                raise self._refused(place, error, what) from error
        try:
            response = client.open(f"http{url.removeprefix('https')}", what=what, limit=limit, **options)
        except FetchError as error:
            raise self._refused(place, error, what) from error
        self._schemes[place.host] = "http"
        return response

    def _headers(self, place: Endpoint, accept: str) -> dict[str, str]:
        headers = {"Accept": accept} if accept else {}
        if authorization := self._authorization(place):
            headers["Authorization"] = authorization
        return headers

    def _authorization(self, place: Endpoint) -> str:
        """What the registry wanted last time, or else a login, if there is one: without being asked, which saves a
        request. It goes over TLS only."""
        with self._lock:
            if place not in self._authorizations:
                login = self.logins.find(place.host, place.repository)
                self._authorizations[place] = _basic(login) if login and login.password else ""
            return self._authorizations[place]

    def _authorize(self, place: Endpoint, header: str, what: str, *, again: bool) -> None:
        """Do what a 401 asks for. Raises RegistryError when that is impossible, or has been done without success."""
        challenges = {kind.lower(): _parameters(text) for kind, text in _CHALLENGE.findall(header[:_CHALLENGE_LIMIT])}
        login = self.logins.find(place.host, place.repository)
        if self._schemes.get(place.host) == "http":
            raise self._denied(place, what, login, "passwords and tokens are sent over TLS only")
        if not again or ("bearer" not in challenges and (login is None or self._authorizations.get(place))):
            raise self._denied(place, what, login)
        if "bearer" in challenges:
            authorization = f"Bearer {self._token(place, challenges['bearer'], login, what)}"
        else:
            assert login is not None
            authorization = _basic(login)
        with self._lock:
            self._authorizations[place] = authorization

    def _token(self, place: Endpoint, challenge: dict[str, str], login: Login | None, what: str) -> str:
        """An access token (distribution: docs/spec/auth/token.md, oauth.md)."""
        realm = challenge.get("realm", "")
        if login and not realm.lower().startswith("https:"):
            # The client keeps headers from plain http, but an identity token is in the body.
            raise self._denied(place, what, login, "passwords and tokens are sent over TLS only")
        scope = challenge.get("scope") or f"repository:{place.repository}:pull"
        query = {"service": challenge.get("service", ""), "scope": scope, "client_id": "rkpy"}
        headers, body, method = {}, None, "GET"
        if login and login.identity_token:
            method = "POST"
            form = {**query, "grant_type": "refresh_token", "refresh_token": login.identity_token}
            body = urlencode(form).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        else:
            realm += ("&" if "?" in realm else "?") + urlencode({key: value for key, value in query.items() if value})
            if login:
                headers["Authorization"] = _basic(login)
        try:
            data = self._client(place).content(
                realm, what=f"access token for {place}", method=method, headers=headers, body=body, credentials=False,
                limit=_TOKEN_LIMIT,
            )  # fmt: skip
        except FetchError as error:
            if error.status in (400, 401, 403):
                raise self._denied(place, what, login) from error
            raise
        return _token_in(data, realm)

    def _refused(self, place: Endpoint, error: FetchError, what: str) -> FetchError:
        """The error in the words of registries."""
        status = error.status
        if status == 403:
            return self._denied(place, what, self.logins.find(place.host, place.repository), status=403)
        if status == 404:
            return NotFound(
                f"{place.host}: {place.repository}: {what} is unknown (404)",
                hint="check the name and the tag; a registry may also hide what one has to log in for",
                url=error.url,
                status=404,
            )
        message = f"{place.host}: {place.repository}: {error.message}"
        return RegistryError(message, hint=error.hint, url=error.url, status=status, transient=error.transient)

    def _denied(
        self, place: Endpoint, what: str, login: Login | None, why: str = "", *, status: int = 401
    ) -> RegistryError:
        if why:
            hint = why
        elif login is not None:
            hint = f"it does not accept the login of {login.user or 'the token'} in {login.origin} for this"
        else:
            hint = f"log in with `podman login {place.host}`; no login for it in {', '.join(self.logins.looked_at)}"
        return RegistryError(
            f"{place.host}: {place.repository}: no access to {what} ({status})", hint=hint, status=status
        )


class _Challenged(Exception):
    """A download was answered with a 401."""

    def __init__(self, header: str) -> None:
        super().__init__(header)
        self.header = header


def _pass_challenge(response: Response) -> None:
    if response.status == 401:
        raise _Challenged(response.headers.get("WWW-Authenticate", ""))


def _basic(login: Login) -> str:
    return f"Basic {base64.b64encode(f'{login.user}:{login.password}'.encode()).decode()}"


def _parameters(text: str) -> dict[str, str]:
    return {name.lower(): re.sub(r"\\(.)", r"\1", quoted) or plain for name, quoted, plain in _PARAMETER.findall(text)}


def _token_in(data: bytes, realm: str) -> str:
    try:
        value = json.loads(data)
        token = value.get("token") or value.get("access_token")
    except (ValueError, AttributeError, RecursionError):
        token = None
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise RegistryError(f"get access token {http.shown(realm)}: there is no token in the answer", url=realm)
    return token


def _media_type(announced: str, data: bytes, what: str) -> str:
    """What the document is. Raises ImageError when it is no image, or two things at once."""
    if announced.startswith(_SCHEMA1):
        raise ImageError(f"{what}: this is a manifest of docker's old schema 1", hint="push it again with a newer tool")
    if announced not in (*_NAMELESS_TYPES, *oci.MANIFESTS, *oci.INDEXES):
        raise ImageError(
            f"{what}: the answer is of type {types.quote(announced)}, not a manifest", hint="check the host"
        )
    inside = oci.media_type(data, what)
    if announced in _NAMELESS_TYPES:
        return inside
    if inside != announced and b'"mediaType"' in data and (inside in oci.INDEXES) != (announced in oci.INDEXES):
        raise ImageError(f"{what}: the registry calls it {types.quote(announced)}, it says {types.quote(inside)}")
    return announced


# Into the store


def stored(client: Client, store: Store, reference: DockerReference) -> ImageRecord | None:
    """The stored image, if it is still what `reference` means. Takes one request, and none when the reference has a
    digest. Raises FetchError."""
    name = image_name(reference)
    system, arch = types.host_platform()
    record = store.find(name.name, {"version": name.version, "os": system, "arch": arch})
    if record is None or not store.is_whole(record):
        return None
    digest = dict(record.manifest.annotations).get(DIGEST, "")
    wanted = reference.digest or client.digest_of(reference)
    return record if wanted and wanted in (digest, record.blobs[0]) else None


def pull(
    client: Client,
    store: Store,
    resolved: Resolved,
    *,
    authorize: Callable[[str], Verification | None],
    progress: Progress | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> ImageRecord:
    """Bring the image into the store: its configuration first, then, after `authorize` has agreed to its name, those
    layers that the store lacks. `progress` is called with digest, bytes there are and bytes there will be of each.

    Raises FetchError, ImageError, StoreError and what `authorize` raises."""
    # Not at the top: to see that the store is up to date takes none of it.
    from aci import importer
    from stage0.blobs import Downloads

    def read(wanted: Descriptor, what: str) -> bytes:
        return _from_store(store, wanted) or client.read(resolved.endpoint, wanted, what)

    where = str(resolved.endpoint)
    image = oci.image(where, resolved.manifest, resolved.manifest_digest, "", read, lambda layer: None)
    reference = resolved.reference
    annotations = [(DIGEST, resolved.digest), (REGISTRY, reference.registry), (REPOSITORY, reference.repository)]
    return importer.import_fetched(
        store,
        image,
        resolved.name,
        fetch=partial(Downloads, client, resolved.endpoint, store, progress),
        authorize=authorize,
        latest=resolved.name.version == "latest",
        annotations=annotations,
        warn=warn,
    )


def _from_store(store: Store, wanted: Descriptor) -> bytes | None:
    """A small blob that is stored already, if it is what it should be."""
    try:
        with open(store.blob_path(wanted.digest), "rb") as file:
            data = file.read(oci.DOCUMENT_LIMIT + 1)
        oci.check_digest(data, wanted.digest, "the stored blob")
    except (OSError, ImageError):
        return None
    return data
