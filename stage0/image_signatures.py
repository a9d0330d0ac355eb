"""Whether an image of a registry may be used: some signature of it has to be good, and by a key trusted for its name.

Asked between resolving a reference to a digest and downloading the image. Signatures made by cosign, which lie beside
the image, are tried first; then simple signing, in the stores `registries.d` names. The first good one is enough. When
there is none, one error says what stands in the way, or that nothing was signed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from aci.oci_config import name_of
from aci.store import Verification
from common.errors import RkpyError, TrustError, reason
from stage0 import cosign, docker_reference, openpgp, registries_d, simplesigning, verify
from stage0.config import Config
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

    reference: str
    """As the user gave it, without `docker://`."""
    manifest_digest: str
    """Of the manifest for this host's platform, which will be pulled."""
    index_digest: str = ""
    """Of the index it was chosen from, if it was."""


class Source(NamedTuple):
    """How to get what lies beside the image, and at URLs. Each raises RkpyError when it cannot tell."""

    manifest: Callable[[str], bytes | None]
    """The manifest with a tag in the image's repository, None when there is none."""
    blob: Callable[[str, int], bytes]
    """The blob with a digest in the image's repository, at most so many octets of it."""
    url: Callable[[str, int], bytes | None]
    """The body at an https or http URL, at most so many octets of it; None when there is nothing."""


def trusted_name(reference: str) -> str:
    """The appC name that the image gets, which is what prefixes of keys are held against."""
    return name_of(reference, "", docker=True).name


def authorize(config: Config, keystore: Keystore, image: Image, source: Source) -> Verification:
    """The first good signature of `image` by a key that is trusted for it. Raises TrustError when there is none, and
    ConfigError when registries.d cannot be read."""
    lookaside = registries_d.lookaside(_parsed(image.reference), registries_d.directories(config))
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
            failures.append(Unavailable(f"no signature of {_shown(image)} could be fetched: {e.message}", hint=e.hint))


def _cosign(
    keystore: Keystore, image: Image, source: Source, digest: str, failures: list[TrustError]
) -> Iterator[Callable[[], Verification]]:
    manifest = source.manifest(cosign.tag(digest))
    if manifest is None:
        return
    origin = f"{_parsed(image.reference).repository}:{cosign.tag(digest)}"
    found = cosign.signatures(manifest, source.blob, origin)
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
            name=trusted_name(image.reference),
            origin=origin,
        )


def _simple(
    keystore: Keystore, image: Image, source: Source, base: str, digest: str
) -> Iterator[Callable[[], Verification]]:
    def read(url: str) -> bytes | None:
        limit = simplesigning.MAX_SIGNATURE_SIZE + 1
        return _read_file(url, limit) if url.startswith("file:") else source.url(url, limit)

    for url, blob in simplesigning.fetch(base, digest, _parsed(image.reference).path, read):
        yield partial(
            simplesigning.verify,
            keystore,
            blob,
            manifest_digest=image.manifest_digest,
            index_digest=image.index_digest,
            reference=image.reference,
            name=trusted_name(image.reference),
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


def _parsed(reference: str) -> docker_reference.DockerReference:
    return docker_reference.parse(reference).wanted


def _shown(image: Image) -> str:
    return openpgp.printable(image.reference)


def _weight(error: TrustError) -> int:
    kinds = [isinstance(error, kind) for kind in _BY_WEIGHT]
    return kinds.index(True) if True in kinds else len(kinds)


def _unsigned(image: Image, lookaside: tuple[str, ...]) -> Unsigned:
    wanted = _parsed(image.reference)
    beside = f"{wanted.repository}:{cosign.tag(image.manifest_digest)}"
    trust = verify.trust_command(trusted_name(image.reference), "cosign.pub")
    stores = " or ".join(lookaside) or "a signature store"
    return Unsigned(
        f"{_shown(image)} is not signed: there is neither {beside} nor anything in {stores}",
        hint=f"have it signed with `cosign sign --key cosign.key {wanted.repository}@{image.manifest_digest}`, "
        f"then run `{trust}`; or accept it as it is with --insecure-options=image",
    )
