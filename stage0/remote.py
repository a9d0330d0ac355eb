"""Fetching ACIs: by name, found through discovery, or by https URL, with all they depend on.

The order is what keeps strangers out. The signature comes first, and unless it claims to be by somebody who is trusted
for that name, the image is not even downloaded. The bytes are verified as they lie in the store's private directory,
the manifest inside is held against what was asked for, and only then is anything unpacked.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from aci import archive, importer, types
from aci.compression import open_stream
from aci.image_manifest import Dependency, ImageManifest
from aci.sources import opened
from aci.store import TMP, ImageRecord, Store, Verification
from common import files, locks
from common.errors import ImageError, ManifestError, RkpyError, StoreError, TrustError, UsageError, reason
from common.records import NamedTuple
from stage0 import discovery, events, httpcache, openpgp, pubkeys, verify
from stage0.config import Config
from stage0.discovery import Endpoint
from stage0.http import Client, FetchError, OnProgress, Response, read_all, shown
from stage0.keystore import Keystore
from stage0.reference import Reference
from stage0.verify import MAX_SIGNATURE_SIZE, Signature, SignatureMissing

MAX_IMAGE = 16 << 30
"""Octets of an image as it is shipped."""
MAX_IMAGES = 1000
"""Images that one fetch may bring, dependencies and all."""
MAX_DEPTH = 100
"""Dependencies of dependencies."""

_IMAGE, _SIGNATURE = "image", "image.asc"
_PLATFORM = ("os", "arch")

Say = Callable[[str], None]


class Wanted(NamedTuple):
    """One image to fetch, and what it has to be."""

    name: str = ""
    """Empty for a URL: whatever it is called."""
    labels: tuple[tuple[str, str], ...] = ()
    url: str = ""
    image_id: str = ""
    size: int = 0
    """Octets of its file, exactly; 0 for any."""
    signature: str = ""
    """A file with its signature, instead of the one beside it on the server."""

    def __str__(self) -> str:
        if not self.name:
            return shown(self.url)
        return openpgp.printable(",".join([self.name, *(f"{key}={value}" for key, value in self.labels)]))


class _Session(NamedTuple):
    """One `fetch_aci`, for the functions below."""

    config: Config
    store: Store
    keystore: Keystore
    client: Client
    policy: str
    say: Say
    warn: Say
    on_progress: OnProgress
    started: int
    """Nanoseconds since the epoch."""
    done: dict[Wanted, ImageRecord]
    """So that a diamond is fetched once."""


class _Verified(NamedTuple):
    """An image's file that is what it should be."""

    path: str
    manifest: ImageManifest
    signatures: tuple[Signature, ...] | None
    """None when verification is off."""
    headers: Mapping[str, str]


def fetch_aci(
    config: Config,
    store: Store,
    keystore: Keystore,
    reference: Reference,
    *,
    policy: str = "update",
    signature: str = "",
    client: Client | None = None,
    say: Say = lambda text: None,
    warn: Say = lambda text: None,
    on_progress: OnProgress = lambda done, total: None,
) -> ImageRecord:
    """The image that `reference` (kind "name", or "remote" with an http or https URL) means, and in the store all it
    depends on.

    `policy`: "new" takes what the store has, "never" takes nothing else, "update" asks the server whether it has
    something newer. `signature` is a file. `say` takes lines about what is being done, `warn` about what of an image
    could not be kept. Raises FetchError, TrustError, ImageError, StoreError, UsageError, ConfigError."""
    wanted = _wanted(reference, signature)
    session = _Session(
        config, store, keystore, client or Client(config), policy, say, warn, on_progress, time.time_ns(), {}
    )
    with store.lock():
        record = _fetch(session, wanted, ())
        store.touch(record.id)
        return record


def fetch_dependencies(
    config: Config, store: Store, keystore: Keystore, manifest: ImageManifest, *, policy: str, say: Say, warn: Say
) -> None:
    """Bring into the store all that an image which came from a file depends on. Raises as `fetch_aci` does."""
    session = _Session(
        config, store, keystore, Client(config), policy, say, warn, lambda done, total: None, time.time_ns(), {}
    )
    with store.lock():
        _fetch_dependencies(session, manifest, ())


def _wanted(reference: Reference, signature: str) -> Wanted:
    if reference.kind == "name":
        return Wanted(reference.value, tuple(sorted(reference.labels)), signature=signature)
    if not urlsplit(reference.value).path.endswith(".aci"):
        raise UsageError(f"{shown(reference.value)} does not end in .aci", hint="give the URL of the image itself")
    return Wanted(url=reference.value, signature=signature)


# Dependencies


def _fetch(session: _Session, wanted: Wanted, above: tuple[str, ...]) -> ImageRecord:
    """The image and, before it, its dependencies; `above` names the images it is a dependency of."""
    if wanted in session.done:
        return session.done[wanted]
    if len(session.done) >= MAX_IMAGES or len(above) >= MAX_DEPTH:
        raise ImageError(f"{above[0]}: its dependencies do not end", hint="the image cannot be used as it is")
    record = _stored(session, wanted)
    if record is not None:
        _fetch_dependencies(session, record.manifest, above)
    elif session.policy == "never":
        raise ImageError(
            f'no image "{wanted}" in the store', hint="fetching is off (--store-only, --pull-policy=never)"
        )
    else:
        record = _from_somewhere(session, wanted, above)
    session.done[wanted] = record
    return record


def _fetch_dependencies(session: _Session, manifest: ImageManifest, above: tuple[str, ...]) -> None:
    """Everything `manifest` asks for, depth first. Raises ImageError for a circle."""
    own = _identity(manifest)
    if own in above:
        circle = " → ".join((*above[above.index(own) :], own))
        raise ImageError(f"{above[0]}: its dependencies go in a circle: {circle}", hint="the images have to be mended")
    for dependency in manifest.dependencies:
        wanted = _of_dependency(dependency)
        try:
            record = _fetch(session, wanted, (*above, own))
        except FetchError as error:
            # Not a FetchError: another place for this image would not help.
            raise ImageError(f"{own} needs {wanted}: {error.message}", hint=error.hint) from error
        _require_same(wanted, record.manifest, own)


def _identity(manifest: ImageManifest) -> str:
    return str(Wanted(manifest.name, tuple(sorted(manifest.labels))))


def _of_dependency(dependency: Dependency) -> Wanted:
    labels = tuple(sorted(dependency.labels))
    return Wanted(dependency.image_name, labels, image_id=dependency.image_id, size=dependency.size)


# The store


def _stored(session: _Session, wanted: Wanted) -> ImageRecord | None:
    """What the store has, if the policy lets us use it without asking. An ID means one thing for ever."""
    if wanted.image_id:
        return _by_id(session, wanted.image_id)
    if session.policy == "update":
        return None
    if wanted.name:
        return session.store.find(wanted.name, {**_platform(), **dict(wanted.labels)})
    entry = httpcache.load(session.store.root, wanted.url)
    return _by_id(session, entry.id) if entry else None


def _by_id(session: _Session, image_id: str) -> ImageRecord | None:
    try:
        return session.store.find_by_id(image_id)
    except StoreError:
        return None


def _platform() -> dict[str, str]:
    return dict(zip(_PLATFORM, types.host_platform(), strict=True))


def _require_same(wanted: Wanted, manifest: ImageManifest, where: str) -> None:
    """Hold a manifest to what was asked for. Verified or not: a signature says who made an image, not that it is the
    one we want, and its signer may well have made others."""
    has = dict(manifest.labels)
    remedy = "the server has the wrong image there; tell its operator"
    if wanted.name and manifest.name != wanted.name:
        raise ImageError(f"{where} is the image {types.quote(manifest.name)}, not {wanted.name}", hint=remedy)
    for name, value in wanted.labels:
        if has.get(name) != value:
            found = f"has {types.quote(has[name])}" if name in has else "has none"
            raise ImageError(f"{where}: the label {name} should be {types.quote(value)}, and it {found}", hint=remedy)
    if wanted.name:
        for name, value in _platform().items():
            if name not in dict(wanted.labels) and has.get(name, value) != value:
                text = f"{where} is for {types.quote(has[name])}, and this host is {value}"
                raise ImageError(text, hint=f"to have it all the same, ask for {wanted},{name}={has[name]}")


# The server


def _from_somewhere(session: _Session, wanted: Wanted, above: tuple[str, ...]) -> ImageRecord:
    """The image from the first place that has it. A place that cannot be reached is passed over; one that has something
    wrong is not."""
    if wanted.url:
        return _from(session, wanted, _beside(wanted.url), above)
    if _verifying(session) and session.config.trust_keys_from_https:
        pubkeys.trust_first_seen(session.config, session.keystore, wanted.name, session.say)
    endpoints = discovery.images(session.client, wanted.name, dict(wanted.labels))
    failures: list[FetchError] = []
    for endpoint in endpoints:
        try:
            return _from(session, wanted, endpoint, above)
        except FetchError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    reasons = "; ".join(error.message for error in failures)
    raise FetchError(f"{wanted}: none of its {len(failures)} places has it: {reasons}", hint=failures[0].hint)


def _beside(url: str) -> Endpoint:
    path, query, rest = url.partition("?")
    return Endpoint(url, f"{path}.asc{query}{rest}")


def _from(session: _Session, wanted: Wanted, endpoint: Endpoint, above: tuple[str, ...]) -> ImageRecord:
    """The image of one place, as far as the place has a newer one than the store."""
    url = endpoint.image
    with session.store.staging() as staged:
        with _slot(session, url) as slot:
            record = _unchanged(session, wanted, url)
            found = None if record else _download(session, wanted, endpoint, slot)
            if found and found.manifest.dependencies:
                # Others may go on with this URL from here: who holds its lock while waiting for another's can wait for
                # ever, when images depend on each other.
                os.rename(found.path, f"{staged}/{_IMAGE}")
                found = found._replace(path=f"{staged}/{_IMAGE}")
            elif found:
                record = _import(session, wanted, url, found)
        if record is None:
            assert found is not None
            _fetch_dependencies(session, found.manifest, above)
            record = _import(session, wanted, url, found)
        else:
            _fetch_dependencies(session, record.manifest, above)
    return record


def _unchanged(session: _Session, wanted: Wanted, url: str) -> ImageRecord | None:
    """The stored image that `url` led to, if it still does. Needs its lock."""
    entry = httpcache.load(session.store.root, url)
    record = _by_id(session, entry.id) if entry else None
    if entry is None or record is None or not _acceptable(session, wanted, record):
        return None
    if entry.fresh() or entry.checked_ns >= session.started:  # the latter: by somebody we waited for
        return record
    if not entry.etag:
        return None
    headers = {"If-None-Match": entry.etag}
    with session.client.open(url, what=_IMAGE, headers=headers, ok=(200, 304), limit=MAX_IMAGE) as response:
        if response.status != 304:
            return None  # Its body is not read: the signature comes first.
        httpcache.remember(session.store.root, url, record.id, response.headers, before=entry)
    return record


def _acceptable(session: _Session, wanted: Wanted, record: ImageRecord) -> bool:
    """Whether a stored image would be let in today: it was verified, by a key that is still trusted for its name."""
    try:
        _require_same(wanted, record.manifest, wanted.url)
    except ImageError:
        return False
    if not _verifying(session):
        return True
    if record.verification is None:
        return False
    trusted = session.keystore.trusted_for(record.manifest.name)
    return any(key.fingerprint == record.verification.fingerprint for _, key in trusted)


def _verifying(session: _Session) -> bool:
    return "image" not in session.config.insecure


def _download(session: _Session, wanted: Wanted, endpoint: Endpoint, slot: str) -> _Verified:
    """The file of an image, verified, in the directory `slot`."""
    path, url = f"{slot}/{_IMAGE}", endpoint.image
    signature = wanted.signature or f"{slot}/{_SIGNATURE}"
    here = wanted.signature or endpoint.signature
    ready = True
    if _verifying(session):
        ready = bool(wanted.signature) or _download_signature(session, endpoint.signature, signature)
        if ready:
            with _called(signature, here):
                verify.check_signer(session.keystore, signature, wanted.name)
    session.say(f"image: downloading {shown(url)}")
    headers = session.client.download(
        url,
        path,
        what=_IMAGE,
        limit=MAX_IMAGE,
        expect_size=wanted.size or None,
        check=_require_image,
        on_progress=session.on_progress,
    ).headers
    signatures = None
    if _verifying(session):
        if not ready and not _download_signature(session, endpoint.signature, signature):
            raise SignatureMissing(f"{shown(here)}: the signature is not ready yet (202)", hint="try again later")
        with _called(signature, here):
            signatures = verify.verify_detached(session.keystore, path, signature, called=shown(url))
    manifest = _examine(wanted, path, url)
    return _Verified(path, manifest, signatures, headers)


def _download_signature(session: _Session, url: str, path: str) -> bool:
    """Whether there is a signature, now in the file `path`, or whether it is still being made (202)."""
    try:
        with session.client.open(url, what="signature", ok=(200, 202), limit=MAX_SIGNATURE_SIZE) as response:
            if response.status == 202:
                return False
            data = read_all(response)
    except FetchError as error:
        if error.status in (404, 410):
            raise SignatureMissing(
                f"the image is not signed: {error.message}",
                hint="have its publisher sign it; --insecure-options=image would take it from anybody",
            ) from error
        raise
    _write(path, data)
    return True


def _write(path: str, data: bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(data)
    except OSError as error:
        raise StoreError(f"write {path}: {reason(error)}") from error


def _require_image(response: Response) -> None:
    """A page that says to log in, or to come back later, is often sent with status 200."""
    if response.status in (200, 206) and response.content_type in ("text/html", "application/xhtml+xml"):
        raise FetchError(
            f"get image {shown(response.url)}: the server sends a web page ({response.content_type}), not an image",
            hint="look at the address with a browser",
            url=response.url,
        )


@contextmanager
def _called(path: str, url: str) -> Iterator[None]:
    """Errors about the file `path`, which lies somewhere inside of the store, speak of where it came from."""
    try:
        yield
    except TrustError as error:
        if path != url:
            error.message = error.message.replace(path, shown(url))
        raise


def _examine(wanted: Wanted, path: str, url: str) -> ImageManifest:
    """The manifest in the file `path`, if that is the image we want."""
    where = shown(url)
    with opened(path) as fd:
        try:
            manifest = archive.read_manifest(fd, where)
        except (ImageError, ManifestError) as error:
            remedy = error.hint or "see what the address leads to"
            raise ImageError(f"{where} is no ACI: {error.message}", hint=remedy) from error
        _require_same(wanted, manifest, where)
        if wanted.image_id:
            _require_id(fd, wanted.image_id, where)
    return manifest


def _require_id(fd: int, image_id: str, where: str) -> None:
    os.lseek(fd, 0, os.SEEK_SET)
    with open_stream(fd, content_digest="sha512", name=where) as stream:
        while stream.read1(1 << 20):
            pass
        found = types.ID_PREFIX + stream.content_hexdigest
    if not found.startswith(image_id):
        raise ImageError(
            f"{where} is the image {found[:39]}…, not {image_id[:39]}… as the dependency wants",
            hint="the server has another version there; the images have to be mended",
        )


def _import(session: _Session, wanted: Wanted, url: str, found: _Verified) -> ImageRecord:
    def authorize(name: str) -> Verification | None:
        if found.signatures is None:
            return None
        return verify.require_trusted(session.keystore, found.signatures, name)

    latest = bool(wanted.name) and dict(wanted.labels).get("version", "latest") == "latest"
    record = importer.import_image(
        session.store, found.path, format=importer.ACI, authorize=authorize, latest=latest, warn=session.warn
    )
    httpcache.remember(session.store.root, url, record.id, found.headers)
    events.fetched(record, shown(url))
    return record


# One download at a time


@contextmanager
def _slot(session: _Session, url: str) -> Iterator[str]:
    """A private directory for what comes from `url`, to ourselves. What is in it afterwards is removed, but for the
    beginning of an image whose end can still be had."""
    name = f"fetch-{httpcache.key(url)}"
    path = f"{session.store.root}/{TMP}/{name}"
    with _alone(session, url, path):
        keep = False
        try:
            yield path
        except FetchError as error:
            keep = error.transient
            raise
        except RkpyError:
            raise
        except BaseException:
            keep = True  # interrupted
            raise
        finally:
            if not (keep and os.path.exists(f"{path}/{_IMAGE}.state")):
                _remove(session.store, name)


@contextmanager
def _alone(session: _Session, url: str, path: str) -> Iterator[None]:
    waited = False
    while True:
        try:
            files.make_directory(path, 0o700)
            try:
                held = locks.acquire(f"{path}/lock", exclusive=True, blocking=waited, create=0o600)
            except BlockingIOError:
                session.say(f"image: another rkpy is downloading {shown(url)}, waiting for it")
                waited = True
                continue
        except FileNotFoundError:
            continue  # The one before us has just removed it.
        except OSError as error:
            raise StoreError(f"lock {path}: {reason(error)}") from error
        with held:
            if os.fstat(held.fd).st_nlink == 0:
                continue
            yield
            return


def _remove(store: Store, name: str) -> None:
    with suppress(FileNotFoundError):
        fd = os.open(f"{store.root}/{TMP}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            files.remove_tree(name, dir_fd=fd)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # the next one is in there already
                raise StoreError(f"remove {store.root}/{TMP}/{name}: {reason(error)}") from error
        finally:
            os.close(fd)
