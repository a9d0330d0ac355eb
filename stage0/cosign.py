"""Signatures made with a cosign key pair, which lie beside the image in its registry.

The signatures of the image sha256:HEX are the layers of a manifest with the tag `sha256-HEX.sig` in its repository. A
layer is a statement as in simple signing, its signature is in an annotation (cosign's specs/SIGNATURE_SPEC.md).
Certificates ("keyless") and the transparency log are not looked at: what counts is a key that was trusted here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable
from typing import Any

from aci import document
from aci.store import Verification
from common.errors import ManifestError, TrustError
from common.records import NamedTuple
from stage0 import openpgp, simplesigning, spki
from stage0.docker_reference import DockerReference
from stage0.keystore import COSIGN, KeyFile, Keystore, load_cosign
from stage0.verify import KeyMasked, SignatureUnreadable, UnknownKey, trust_command, untrusted

TYPE = "cosign container image signature"
MEDIA_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
ANNOTATION = "dev.cosignproject.cosign/signature"
MAX_MANIFEST_SIZE = 1 << 20
MAX_PAYLOAD_SIZE = simplesigning.MAX_SIGNATURE_SIZE
MAX_SIGNATURES = simplesigning.MAX_SIGNATURES
_MAX_SIGNATURE = 4096
"""Octets of one signature; one by an RSA key of 16384 bits has 2048."""


class Attached(NamedTuple):
    """The signatures found beside an image, and what is wrong with those that could not be read."""

    signatures: list[tuple[bytes, bytes]]
    """Payload and signature."""
    failures: list[TrustError]


def tag(digest: str) -> str:
    """The tag under which cosign puts the signatures of the image with this digest."""
    return f"{digest.replace(':', '-')}.sig"


def signatures(manifest: bytes, get_blob: Callable[[str, int], bytes], origin: str = "the signatures") -> Attached:
    """What the manifest of a `.sig` tag lists. `get_blob(digest, limit)` gets a blob of the same repository.

    Raises SignatureUnreadable when the manifest cannot be read at all."""
    found: list[tuple[bytes, bytes]] = []
    failures: list[TrustError] = []
    for number, layer in enumerate(_layers(manifest, openpgp.printable(origin)), 1):
        where = f"{openpgp.printable(origin)} (signature {number})"
        try:
            found.append((_payload(layer, get_blob, where), _signature(layer, where)))
        except TrustError as e:
            failures.append(e)
    return Attached(found, failures)


def verify(
    keystore: Keystore,
    payload: bytes,
    signature: bytes,
    *,
    manifest_digest: str,
    reference: DockerReference,
    name: str,
    index_digest: str = "",
    origin: str = "the cosign signature",
) -> Verification:
    """As `simplesigning.verify`. cosign up to version 2 signs an image without its tag, so that such a signature
    is good for every tag of the repository.

    Raises TrustError, of a class that says what is wrong."""
    file, key = _maker(keystore, payload, signature, name, origin)
    signed = simplesigning.payload(payload, TYPE, origin)
    simplesigning.check(signed, (manifest_digest, index_digest), reference, origin, any_tag=True)
    return Verification(key.fingerprint, signer(key), file.prefix, signed.timestamp)


def signer(key: spki.PublicKey) -> str:
    """What a key is called: nobody's name is in it."""
    return f"cosign key ({key.algorithm})"


def _maker(
    keystore: Keystore, payload: bytes, signature: bytes, name: str, origin: str
) -> tuple[KeyFile, spki.PublicKey]:
    """The trusted key that made the signature. Nothing in a signature says which it may be, so all are tried."""
    for file, key in keystore.cosign_trusted_for(name):
        if spki.made(key, signature, payload):
            return file, key
    shown = openpgp.printable(origin)
    for file in keystore.files():
        known = _usable(file)
        if known is None or not spki.made(known, signature, payload):
            continue
        if file.masked_by:
            raise KeyMasked(
                f"{shown} is by {known.fingerprint}, a key that {file.masked_by} masks",
                hint=f"remove {file.masked_by} to trust the key of the system again",
            )
        raise untrusted(keystore, known.fingerprint, signer(known), name)
    raise UnknownKey(
        f"{shown} was not made by any key that is trusted for {openpgp.printable(name)}, or was tampered with",
        hint=f"get the signer's key, check its fingerprint, and run {trust_command(name, 'cosign.pub')}",
    )


def _usable(file: KeyFile) -> spki.PublicKey | None:
    try:
        return load_cosign(file) if file.kind == COSIGN else None
    except TrustError:
        return None


def _layers(manifest: bytes, shown: str) -> list[dict[str, Any]]:
    """The layers that are signatures; others, as attestations, may stand among them."""
    try:
        if len(manifest) > MAX_MANIFEST_SIZE:
            raise ManifestError(f"is larger than {MAX_MANIFEST_SIZE >> 20} MiB")
        value = document.decode(manifest)
        if not isinstance(value, dict):
            raise document.expected("an object", value)
        layers = document.required(value, "layers", _list)
    except ManifestError as e:
        raise SignatureUnreadable(
            f"{shown} is not a manifest of cosign signatures: {e.message}", hint="sign the image again with cosign sign"
        ) from e
    found = [layer for layer in layers if isinstance(layer, dict) and layer.get("mediaType") == MEDIA_TYPE]
    return found[:MAX_SIGNATURES]


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise document.expected("a list", value)
    return value


def _signature(layer: dict[str, Any], where: str) -> bytes:
    annotations = layer.get("annotations")
    text = annotations.get(ANNOTATION) if isinstance(annotations, dict) else None
    try:
        if not isinstance(text, str) or not 0 < len(text) <= _MAX_SIGNATURE * 4 // 3:
            raise ValueError
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise SignatureUnreadable(
            f"{where} has no readable annotation {ANNOTATION}", hint="sign the image again with cosign sign"
        ) from None


def _payload(layer: dict[str, Any], get_blob: Callable[[str, int], bytes], where: str) -> bytes:
    digest, size = layer.get("digest"), layer.get("size")
    good = isinstance(digest, str) and simplesigning.is_digest(digest)
    if not good or not isinstance(size, int) or not 0 <= size <= MAX_PAYLOAD_SIZE:
        raise SignatureUnreadable(
            f"{where} has no digest or no size, or is larger than {MAX_PAYLOAD_SIZE >> 10} KiB",
            hint="sign the image again with cosign sign",
        )
    data = get_blob(str(digest), MAX_PAYLOAD_SIZE)
    algorithm, _, digits = str(digest).partition(":")
    if len(data) != size or hashlib.new(algorithm, data).hexdigest() != digits:
        raise SignatureUnreadable(
            f"{where}: what the registry serves does not have its digest", hint="try again; tell the registry's owner"
        )
    return data
