"""Simple signing: signatures of registry images as skopeo and podman make them.

A signature is an OpenPGP message that carries what it is over: a small JSON document that names an image by the digest
of its manifest and says under which reference it was approved. The format is containers-signature(5)'s; whether a
reference is the one that was asked for is decided as `matchRepoDigestOrExact` of containers-policy.json(5) has it. What
the signature is worth is found out by `stage0.verify`, as for any other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from aci import document
from aci.store import Verification
from aci.types import quote
from common.errors import ManifestError, TrustError, UsageError
from common.records import NamedTuple
from stage0 import docker_reference, openpgp
from stage0.docker_reference import DockerReference
from stage0.keystore import Keystore
from stage0.verify import SignatureUnreadable, require_trusted, verify_packets

MAX_SIGNATURE_SIZE = 64 << 10
"""Octets of one signature, packed and unpacked; they have less than a thousand."""
MAX_SIGNATURES = 64
"""Signatures that are looked at for one image. Some vendors sign each of an image's tags with each of their keys."""
TYPE = "atomic container signature"

_INT64 = 1 << 63
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


class PayloadInvalid(TrustError):
    """What was signed is not a statement about an image, or has something in it that is not understood."""


class OtherImage(TrustError):
    """The signature is good, and about an image with another digest."""


class OtherIdentity(TrustError):
    """The signature is good, and approves the image under another name or tag."""


class Payload(NamedTuple):
    """The signed statement. What its reference does not say is empty: no tag is not the tag `latest`."""

    digest: str
    name: str
    """Registry and repository, in full."""
    tag: str
    pinned: str
    """The digest in the reference."""
    timestamp: int
    """Seconds since the epoch, as the signer claims; 0 when it does not say."""

    @property
    def shown(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.pinned}" if self.pinned else "")


def verify(
    keystore: Keystore,
    signature_blob: bytes,
    *,
    manifest_digest: str,
    reference: DockerReference,
    name: str,
    index_digest: str = "",
    origin: str = "the signature",
) -> Verification:
    """Who vouches, by the signature found at `origin`, that `reference` may be the image with `manifest_digest`, or the
    index with `index_digest` that the image was chosen from. `name` is what keys are trusted for.

    Raises TrustError, of a class that says what is wrong."""
    message = _message(signature_blob, openpgp.printable(origin))
    found = _verified(keystore, message, name, origin)
    check(payload(message.data, TYPE, origin), (manifest_digest, index_digest), reference, origin)
    return found


def fetch(base: str, digest: str, path: str, read: Callable[[str], bytes | None]) -> Iterator[tuple[str, bytes]]:
    """The signatures of an image in a lookaside store, each with its URL: `signature-1`, `signature-2` and so on, until
    there is no more or MAX_SIGNATURES is reached."""
    algorithm, _, digits = digest.partition(":")
    for number in range(1, MAX_SIGNATURES + 1):
        url = f"{base.rstrip('/')}/{path}@{algorithm}={digits}/signature-{number}"
        found = read(url)
        if found is None:
            return
        yield url, found


def _message(signature: bytes, shown: str) -> openpgp.Message:
    remedy = "sign the image with skopeo standalone-sign or podman push --sign-by"
    if len(signature) > MAX_SIGNATURE_SIZE:
        limit = f"{MAX_SIGNATURE_SIZE >> 10} KiB"
        raise SignatureUnreadable(f"{shown} is larger than {limit}", hint=remedy)
    try:
        return openpgp.signed_message(signature, MAX_SIGNATURE_SIZE)
    except openpgp.WrongKindError as e:
        raise SignatureUnreadable(f"{shown} is not a signed message: {e}", hint=remedy) from e
    except openpgp.PacketError as e:
        raise SignatureUnreadable(f"{shown} is not an OpenPGP message: {e}", hint=remedy) from e


def _verified(keystore: Keystore, message: openpgp.Message, name: str, origin: str) -> Verification:
    """gpg gets the signature packet, and the data as a file in memory: it never sees anything that is packed, nested or
    next to what is signed, and what is read afterwards is what it has read."""
    fd = os.memfd_create("payload", os.MFD_CLOEXEC)
    with open(fd, "wb") as file:
        file.write(message.data)
        file.flush()
        signatures = verify_packets(
            keystore,
            f"/proc/{os.getpid()}/fd/{fd}",
            [message.signature],
            origin,
            called=f"the statement in {origin}",
            name=name,
        )
    return require_trusted(keystore, signatures, name)


# What is signed; cosign has it from here


def payload(data: bytes, kind: str, origin: str) -> Payload:
    """Read a statement whose signature has been verified. `kind` is its `critical.type`.

    As strictly as containers-signature(5) asks for: a member it does not know under `critical` may be a condition that
    would go unchecked. Raises PayloadInvalid."""
    shown = openpgp.printable(origin)
    try:
        top = _members(_decoded(data), "the document", ("critical", "optional"))
        critical = _members(top["critical"], "critical", ("identity", "image", "type"))
        image = _members(critical["image"], "critical.image", ("docker-manifest-digest",))
        identity = _members(critical["identity"], "critical.identity", ("docker-reference",))
        found = document.required(critical, "type", document.text)
        if found != kind:
            raise ManifestError(f"its type is {quote(found)}, not {quote(kind)}")
        digest = document.required(image, "docker-manifest-digest", _digest)
        signed_as = document.required(identity, "docker-reference", _reference)
        return Payload(digest, *signed_as, timestamp=_timestamp(top["optional"], strict=kind == TYPE))
    except ManifestError as e:
        raise PayloadInvalid(
            f"{shown} is a good signature over something else than an image: {e.message}",
            hint="it was made by another tool or a newer version; sign the image with skopeo, podman or cosign",
        ) from e


def check(
    signed: Payload, digests: tuple[str, ...], reference: DockerReference, origin: str, *, any_tag: bool = False
) -> None:
    """Raises OtherImage or OtherIdentity unless what was `signed` is that `reference` may be the image with one of
    `digests`. With `any_tag` a signature that names only the repository is about all of its tags."""
    shown = openpgp.printable(origin)
    if signed.digest not in digests:
        raise OtherImage(
            f"{shown} is a good signature of another image: {signed.digest}, not {digests[0]}",
            hint="it was put in the wrong place, or the registry serves another image than was signed",
        )
    if not _matches(signed, reference, any_tag=any_tag):
        raise OtherIdentity(
            f"{shown} is a good signature of this image as {signed.shown}, not as {reference}",
            hint=f"fetch it as {signed.shown}, or ask the signer to sign it as {reference}",
        )


def _matches(signed: Payload, wanted: DockerReference, *, any_tag: bool) -> bool:
    """containers-policy.json(5), matchRepoDigestOrExact: who asks by digest gets that digest whatever its tag is, who
    asks by tag must get an image that was signed as this tag."""
    if signed.name != wanted.name:
        return False
    if wanted.digest:
        return True
    return (signed.tag, signed.pinned) == (wanted.tag, "") or (any_tag and not signed.tag)


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def _decoded(data: bytes) -> Any:
    if len(data) > MAX_SIGNATURE_SIZE:
        raise ManifestError(f"is larger than {MAX_SIGNATURE_SIZE >> 10} KiB")
    value = document.decode(data)
    _refuse_repeated(value)
    return value


def _refuse_repeated(value: Any) -> None:
    """Which of two members of one name counts, readers do not agree on."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, document.Repeated):
            raise document.expected("an object", item)
        waiting += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()


def _members(value: Any, path: str, names: tuple[str, ...]) -> dict[str, Any]:
    """An object with exactly these members."""
    if not isinstance(value, dict):
        raise ManifestError(f"{path} {document.expected('an object', value).message}")
    unknown = sorted(value.keys() - set(names))
    if unknown:
        raise ManifestError(f"{path} has the unknown member {quote(unknown[0])}")
    missing = [name for name in names if name not in value]
    if missing:
        raise ManifestError(f"{path} has no member {quote(missing[0])}")
    return value


def _digest(value: Any) -> str:
    text = document.text(value)
    if not is_digest(text):
        raise ManifestError(f"{quote(text)} is not a digest")
    return text


def _reference(value: Any) -> tuple[str, str, str]:
    """Name, tag and digest of a reference in the short or the full form, without a transport before it."""
    text = document.text(value)
    try:
        parsed = docker_reference.parse(f"{docker_reference.SCHEME}://{text}")
    except UsageError as e:
        raise ManifestError(e.message) from e
    tagged = ":" in text.partition("@")[0].rpartition("/")[2]
    return parsed.name, parsed.tag if tagged else "", parsed.digest


def _timestamp(optional: Any, *, strict: bool) -> int:
    """That of the `optional` members. cosign writes null where there are none, and takes any from its user."""
    if optional is None and not strict:
        return 0
    if not isinstance(optional, dict):
        raise ManifestError(f"optional {document.expected('an object', optional).message}")
    timestamp = optional.get("timestamp", 0)
    good = isinstance(timestamp, int) and not isinstance(timestamp, bool) and -_INT64 <= timestamp < _INT64
    if strict and not good:
        raise ManifestError("optional.timestamp must be a whole number of seconds")
    if strict and not isinstance(optional.get("creator", ""), str):
        raise ManifestError("optional.creator must be a string")
    return max(timestamp, 0) if good else 0
