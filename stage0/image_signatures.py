"""Whether an image of a registry may be used: some signature of it has to be good, and by a key trusted for its name.

Asked between resolving a reference to a digest and downloading the image. Signatures made by cosign, which lie beside
the image, are tried first; then simple signing, in the stores `registries.d` names. The first good one is enough. When
there is none, one error says what stands in the way, or that nothing was signed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from aci.oci_config import Name
from aci.store import Verification
from common.errors import RkpyError, TrustError, reason
from common.records import NamedTuple
from stage0 import cosign, openpgp, registries_d, simplesigning, verify
from stage0.config import Config
from stage0.docker_reference import DockerReference
from stage0.keystore import Keystore

# The refusal that tells most about an attack, or is closest to success, is the one to report.
_BY_WEIGHT = (
    verify.BadSignature,
    simplesigning.OtherImage,
    verify.KeyRevoked,
    simplesigning.OtherIdentity,
    simplesigning.PayloadInvalid,
    verify.KeyExpired,
    verify.SignatureExpired,
    verify.WeakDigest,
    verify.KeyUnusable,
    verify.KeyMasked,
    verify.KeyUntrusted,
)


class Unsigned(TrustError):
    """There is no signature of the image in any of the places for them."""


class Unavailable(TrustError):
    """Whether there are signatures could not be found out."""


class Image(NamedTuple):
    """What a reference came to."""

    reference: DockerReference
    name: str
    """What the image will be called in the store, which prefixes of keys are held against."""
    manifest_digest: str
    """Of the manifest for this host's platform, which will be pulled."""
    index_digest: str = ""
    """Of the index it was chosen from, if it was."""


class Resolved(Protocol):
    """`registry.Resolved`."""

    @property
    def reference(self) -> DockerReference: ...
    @property
    def name(self) -> Name: ...
    @property
    def digest(self) -> str: ...
    @property
    def manifest_digest(self) -> str: ...
    @property
    def endpoint(self) -> Any: ...


class Registry(Protocol):
    """`registry.Client`."""

    def get_manifest(self, place: Any, wanted: str) -> Any: ...
    def get_blob(self, place: Any, digest: str, *, limit: int) -> bytes: ...


class Web(Protocol):
    """`http.Client`."""

    def content(self, url: str, *, what: str, limit: int) -> bytes: ...


class Source(NamedTuple):
    """How to get what lies beside the image, and at URLs. Each raises RkpyError when it cannot tell."""

    manifest: Callable[[str], bytes | None]
    """The manifest with a tag in the image's repository, None when there is none."""
    blob: Callable[[str, int], bytes]
    """The blob with a digest in the image's repository, at most so many octets of it."""
    url: Callable[[str, int], bytes | None]
    """The body at an https or http URL, at most so many octets of it; None when there is nothing."""


def authorize_registry_image(
    config: Config, keystore: Keystore, client: Registry, resolved: Resolved, web: Web
) -> Verification:
    """`authorize` for what a registry's client has resolved; `web` fetches from stores of signatures."""

    def manifest(tag: str) -> bytes | None:
        found = _unless_missing(lambda: client.get_manifest(resolved.endpoint, tag))
        return None if found is None else bytes(found.data)

    def url(address: str, limit: int) -> bytes | None:
        found = _unless_missing(lambda: web.content(address, what="signature", limit=limit))
        return None if found is None else bytes(found)

    index = resolved.digest if resolved.digest != resolved.manifest_digest else ""
    return authorize(
        config,
        keystore,
        Image(resolved.reference, resolved.name.name, resolved.manifest_digest, index),
        Source(manifest, lambda digest, limit: client.get_blob(resolved.endpoint, digest, limit=limit), url),
    )


def _unless_missing(get: Callable[[], Any]) -> Any:
    """None where there is nothing: any other failure may hide a signature and must be told."""
    try:
        return get()
    except RkpyError as e:
        if getattr(e, "status", 0) in (404, 410):
            return None
        raise


def authorize(config: Config, keystore: Keystore, image: Image, source: Source) -> Verification:
    """The first good signature of `image` by a key that is trusted for it. Raises TrustError when there is none, and
    ConfigError when registries.d cannot be read."""
    lookaside = registries_d.lookaside(image.reference, registries_d.directories(config))
    failures: list[TrustError] = []
    for attempt in _attempts(keystore, image, source, lookaside, failures):
        try:
            return attempt()
        except TrustError as e:
            failures.append(e)
    if failures:
        raise min(failures, key=_weight)
    raise _unsigned(image, lookaside)


def _attempts(
    keystore: Keystore, image: Image, source: Source, lookaside: tuple[str, ...], failures: list[TrustError]
) -> Iterator[Callable[[], Verification]]:
    """Each signature, as a call that returns or raises what becomes of it. One is fetched when the one before was not
    good. Adds to `failures` what could not be fetched."""
    digests = tuple(filter(None, (image.manifest_digest, image.index_digest)))
    places: list[Iterator[Callable[[], Verification]]] = [
        *(_cosign(keystore, image, source, digest, failures) for digest in digests),
        *(_simple(keystore, image, source, base, digest) for base in lookaside for digest in digests),
    ]
    for place in places:
        try:
            yield from place
        except TrustError as e:
            failures.append(e)
        except RkpyError as e:
            failures.append(Unavailable(f"get signatures of {image.reference}: {e.message}", hint=e.hint))


def _cosign(
    keystore: Keystore, image: Image, source: Source, digest: str, failures: list[TrustError]
) -> Iterator[Callable[[], Verification]]:
    manifest = source.manifest(cosign.tag(digest))
    if manifest is None:
        return
    origin = f"{image.reference.name}:{cosign.tag(digest)}"

    def blob(wanted: str, limit: int) -> bytes:
        try:
            return source.blob(wanted, limit)
        except RkpyError as e:
            raise Unavailable(f"get {origin}: {e.message}", hint=e.hint or "try again") from e

    found = cosign.signatures(manifest, blob, origin)
    failures += found.failures
    for payload, signature in found.signatures:
        yield partial(
            cosign.verify,
            keystore,
            payload,
            signature,
            manifest_digest=image.manifest_digest,
            index_digest=image.index_digest,
            reference=image.reference,
            name=image.name,
            origin=origin,
        )


def _simple(
    keystore: Keystore, image: Image, source: Source, base: str, digest: str
) -> Iterator[Callable[[], Verification]]:
    def read(url: str) -> bytes | None:
        limit = simplesigning.MAX_SIGNATURE_SIZE + 1
        return _read_file(url, limit) if url.startswith("file:") else source.url(url, limit)

    for url, blob in simplesigning.fetch(base, digest, image.reference.repository, read):
        yield partial(
            simplesigning.verify,
            keystore,
            blob,
            manifest_digest=image.manifest_digest,
            index_digest=image.index_digest,
            reference=image.reference,
            name=image.name,
            origin=url,
        )


def _read_file(url: str, limit: int) -> bytes | None:
    path = unquote(urlsplit(url).path)
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            return file.read(limit)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise TrustError(f"open {openpgp.printable(path)}: {reason(e)}", hint="make it readable") from e


def _weight(error: TrustError) -> int:
    kinds = [isinstance(error, kind) for kind in _BY_WEIGHT]
    return kinds.index(True) if True in kinds else len(kinds)


def _unsigned(image: Image, lookaside: tuple[str, ...]) -> Unsigned:
    repository = image.reference.name
    beside = f"{repository}:{cosign.tag(image.manifest_digest)}"
    stores = " or ".join(lookaside) or "a signature store"
    trust = verify.trust_command(image.name, "cosign.pub")
    return Unsigned(
        f"{image.reference} is not signed: there is neither {beside} nor anything in {stores}",
        hint=f"have it signed with `cosign sign --key cosign.key {repository}@{image.manifest_digest}`, "
        f"then run `{trust}`; or accept it as it is with --insecure-options=image",
    )
