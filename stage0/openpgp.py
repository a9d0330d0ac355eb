"""As much of the OpenPGP packet format as deciding needs *before* gpg runs: whose signature a file claims to be, and
which keys a key file holds. Nothing here is cryptography; what a signature is worth, gpg says (`stage0.verify`).

Sources: RFC 4880 §4 (packets), §5.2 (signatures), §5.5 and §12.2 (keys and fingerprints), §6 (armour).
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator

from common.records import NamedTuple

SIGNATURE, ONE_PASS, SECRET_KEY, PUBLIC_KEY, SECRET_SUBKEY, COMPRESSED, LITERAL = 2, 4, 5, 6, 7, 8, 11
MARKER, TRUST, USER_ID, PUBLIC_SUBKEY, USER_ATTRIBUTE = 10, 12, 13, 14, 17
_NAMES = {1: "an encrypted message", 3: "an encrypted message", 4: "a signed message with its data", 5: "a secret key",
          6: "a public key", 7: "a secret key", 8: "compressed data", 9: "an encrypted message",
          11: "a message's data", 18: "an encrypted message"}  # fmt: skip
_ISSUER, _ISSUER_FINGERPRINT = 16, 33

BINARY_DOCUMENT = 0x00
TEXT_DOCUMENT = 0x01


class PacketError(ValueError):
    """The bytes are not the OpenPGP data they should be; the text says why and never quotes them."""


class WrongKindError(PacketError):
    """Well-formed OpenPGP data of another kind; the text names the kind."""


class SecretKeyError(PacketError):
    """There is a secret key in it."""


class Packet(NamedTuple):
    tag: int
    body: bytes
    raw: bytes
    """Header and body as they were."""


class Signature(NamedTuple):
    """One signature packet. What it says about its maker is a claim until gpg has checked it."""

    issuers: frozenset[str]
    """Fingerprints (40 hex) and key ids (16 hex) of the key it claims to be made by."""
    kind: int
    """Signature type: BINARY_DOCUMENT, TEXT_DOCUMENT or one that is not about a document."""
    digest: int
    """Hash algorithm: 1 MD5, 2 SHA-1, 3 RIPEMD-160, 8 SHA-256 and so on (RFC 4880 §9.4)."""
    raw: bytes

    @property
    def key_id(self) -> str:
        """The longest name it has for its maker, as gpg writes it."""
        return max(self.issuers, key=len, default="").upper()


class Message(NamedTuple):
    """A signed message: data and the one signature over it. Nothing is known yet of what that is worth."""

    signature: Signature
    data: bytes


class PublicKey(NamedTuple):
    """A primary key with everything that came with it; user ids as bytes, because a key may claim anything."""

    fingerprint: str
    subkeys: tuple[str, ...]
    user_ids: tuple[bytes, ...]
    raw: bytes

    def made(self, signature: Signature) -> bool:
        """Whether `signature` claims to be made by this key or one of its subkeys."""
        own = (self.fingerprint, *self.subkeys)
        return any(name in signature.issuers or name[-16:] in signature.issuers for name in own)


def signatures(data: bytes) -> list[Signature]:
    """The packets of a detached signature, armoured or not.

    Raises WrongKindError when `data` is or contains anything else: a message that carries its own data must never be
    mistaken for a signature over some other file. Raises PacketError when it is damaged."""
    found = []
    for packet in _packets(_dearmor(data, "SIGNATURE")):
        if packet.tag != SIGNATURE:
            raise WrongKindError(f"it contains {_kind(packet.tag)}")
        found.append(_signature(packet))
    if not found:
        raise PacketError("it is empty")
    return found


def public_keys(data: bytes) -> list[PublicKey]:
    """The public keys of a key file, armoured or not. Raises SecretKeyError, WrongKindError and PacketError."""
    blocks: list[list[Packet]] = []
    for packet in _packets(_dearmor(data, "PUBLIC KEY BLOCK")):
        if packet.tag in (SECRET_KEY, SECRET_SUBKEY):
            raise SecretKeyError("it contains a secret key")
        if packet.tag == PUBLIC_KEY:
            blocks.append([packet])
        elif packet.tag in (SIGNATURE, USER_ID, PUBLIC_SUBKEY, USER_ATTRIBUTE) and blocks:
            blocks[-1].append(packet)
        elif packet.tag not in (MARKER, TRUST):  # gpg keeps notes to itself in trust packets: never taken from a file
            raise WrongKindError(f"it contains {_kind(packet.tag)}")
    if not blocks:
        raise PacketError("it is empty")
    return [_public_key(block) for block in blocks]


def signed_message(data: bytes, limit: int) -> Message:
    """What `gpg --sign` makes, armoured or not: data in binary mode with one signature, compressed as a whole or not at
    all (RFC 4880 §11.3). Taken apart like that, gpg can verify the signature as a detached one over exactly this data.

    Raises WrongKindError for every other arrangement of packets, and PacketError when it is damaged, or larger than
    `limit` octets when unpacked."""
    packets = list(_message_packets(_dearmor(data, "MESSAGE")))
    if len(packets) == 1 and packets[0].tag == COMPRESSED:
        packets = list(_message_packets(_decompressed(packets[0].body, limit)))
    tags = [packet.tag for packet in packets]
    if tags != [ONE_PASS, LITERAL, SIGNATURE]:
        raise WrongKindError(_other_message(tags))
    return Message(_signature(packets[2]), _literal(packets[1].body))


def _other_message(tags: list[int]) -> str:
    if not tags:
        return "it is empty"
    if tags.count(SIGNATURE) > 1 and LITERAL in tags:
        return f"it has {tags.count(SIGNATURE)} signatures, and it takes one"
    if set(tags) <= {LITERAL, MARKER}:
        return "it contains data without a signature"
    strange = [tag for tag in tags if tag not in (ONE_PASS, LITERAL, SIGNATURE)]
    if strange or LITERAL not in tags:
        return f"it contains {_kind(strange[0] if strange else tags[0])}"
    return "its parts are in an order that gpg does not write"


def _literal(body: bytes) -> bytes:
    """The data of a literal packet (RFC 4880 §5.9): a format octet, a name with its length before it, a date, data."""
    if body[:1] != b"b":
        raise WrongKindError("its data is not in binary mode")
    start = 2 + (body[1] if len(body) > 1 else 0) + 4
    if len(body) < start:
        raise PacketError("it is cut short")
    return body[start:]


def _decompressed(body: bytes, limit: int) -> bytes:
    """The content of a compressed packet (RFC 4880 §5.6), which is packets again."""
    import bz2
    import zlib

    kind, packed = body[:1], body[1:]
    if kind == b"\x00":
        return packed
    if kind not in (b"\x01", b"\x02", b"\x03"):
        raise PacketError("it is compressed in a way that is not known")
    unpack = bz2.BZ2Decompressor() if kind == b"\x03" else zlib.decompressobj(-15 if kind == b"\x01" else 15)
    try:
        found = unpack.decompress(packed, limit + 1)
    except (zlib.error, OSError):
        raise PacketError("it is damaged") from None
    if len(found) > limit:
        raise PacketError(f"it is larger than {limit >> 10} KiB")
    if not unpack.eof:
        raise PacketError("it is cut short")
    if unpack.unused_data:
        raise WrongKindError("there is more in it than one message")
    return found


def _kind(tag: int) -> str:
    return _NAMES.get(tag, "a detached signature" if tag == SIGNATURE else f"an OpenPGP packet of type {tag}")


def _public_key(block: list[Packet]) -> PublicKey:
    return PublicKey(
        fingerprint=_fingerprint(block[0]),
        subkeys=tuple(_fingerprint(packet) for packet in block if packet.tag == PUBLIC_SUBKEY),
        user_ids=tuple(packet.body for packet in block if packet.tag == USER_ID),
        raw=b"".join(packet.raw for packet in block),
    )


def _fingerprint(packet: Packet) -> str:
    import hashlib

    if packet.body[:1] != b"\x04":
        version = packet.body[0] if packet.body else 0
        raise PacketError(f"it has a key of version {version}, and only version 4 is supported")
    prefix = b"\x99" + len(packet.body).to_bytes(2, "big")
    return hashlib.sha1(prefix + packet.body, usedforsecurity=False).hexdigest()


def _signature(packet: Packet) -> Signature:
    body = packet.body
    try:
        if body[0] == 3:
            return Signature(frozenset({_exactly(body[7:15], 8)}), body[2], body[16], packet.raw)
        if body[0] != 4:
            raise PacketError(f"it has a signature of version {body[0]}, and only 3 and 4 are supported")
        issuers: set[str] = set()
        start = 4
        for _ in ("hashed", "unhashed"):
            length = int.from_bytes(body[start : start + 2], "big")
            area = body[start + 2 : start + 2 + length]
            if len(area) != length:
                raise PacketError("it is cut short")
            issuers |= _issuers(area)
            start += 2 + length
        return Signature(frozenset(issuers), body[1], body[3], packet.raw)
    except IndexError:
        raise PacketError("it is cut short") from None


def _issuers(area: bytes) -> set[str]:
    found = set()
    while area:
        length, header = _new_length(area)
        body = area[header : header + length]
        if len(body) != length or not body:
            raise PacketError("it is damaged")
        kind = body[0] & 0x7F  # the high bit says "critical"
        if kind == _ISSUER:
            found.add(_exactly(body[1:], 8))
        elif kind == _ISSUER_FINGERPRINT and body[1:2] == b"\x04":
            found.add(_exactly(body[2:], 20))
        area = area[header + length :]
    return found


def _exactly(raw: bytes, length: int) -> str:
    if len(raw) != length:
        raise PacketError("it is damaged")
    return raw.hex()


def _packets(data: bytes) -> Iterator[Packet]:
    while data:
        try:
            tag, length, header = _packet_header(data)
        except IndexError:
            raise PacketError("it is cut short") from None
        end = header + length
        if end > len(data):
            raise PacketError("it is cut short")
        yield Packet(tag, data[header:end], data[:end])
        data = data[end:]


def _message_packets(data: bytes) -> Iterator[Packet]:
    """As `_packets`, and data may have the lengths gpg gives it while it does not know the end: in instalments, or up
    to the end of the input (RFC 4880 §4.2)."""
    while data:
        kind = data[0] & 0xC0
        if kind == 0x80 and data[0] & 3 == 3:
            packet = Packet(_streamable((data[0] >> 2) & 0x0F), data[1:], data)
        elif kind == 0xC0 and b"\xe0" <= data[1:2] < b"\xff":
            body, end = _instalments(data, 1)
            packet = Packet(_streamable(data[0] & 0x3F), body, data[:end])
        else:
            packet = next(_packets(data))
        yield packet
        data = data[len(packet.raw) :]


def _streamable(tag: int) -> int:
    if tag not in (COMPRESSED, LITERAL):
        raise WrongKindError(f"it contains {_kind(tag)}, streamed")
    return tag


def _instalments(data: bytes, start: int) -> tuple[bytes, int]:
    """A body in parts, each with its length before it, of which the last has another form; and where it ends."""
    parts = []
    while True:
        try:
            first = data[start]
            last = not 224 <= first < 255
            length, size = _new_length(data[start : start + 5]) if last else (1 << (first & 0x1F), 1)
        except IndexError:
            raise PacketError("it is cut short") from None
        part = data[start + size : start + size + length]
        if len(part) != length:
            raise PacketError("it is cut short")
        parts.append(part)
        start += size + length
        if last:
            return b"".join(parts), start


def _packet_header(data: bytes) -> tuple[int, int, int]:
    """Tag, body length and header length. Lengths in instalments exist for streamed data, which has no place here."""
    first = data[0]
    if not first & 0x80:
        raise PacketError("it is not OpenPGP data")
    new_format = bool(first & 0x40)
    tag = first & 0x3F if new_format else (first >> 2) & 0x0F
    if (new_format and 224 <= data[1] < 255) or (not new_format and first & 3 == 3):
        raise WrongKindError(f"it contains {_kind(tag)}, streamed")
    if new_format:
        length, size = _new_length(data[1:6])
        return tag, length, 1 + size
    size = 1 << (first & 3)
    if len(data) < 1 + size:
        raise PacketError("it is cut short")
    return tag, int.from_bytes(data[1 : 1 + size], "big"), 1 + size


def _new_length(data: bytes) -> tuple[int, int]:
    """A length of the new format and how many octets it took (RFC 4880 §4.2.2, §5.2.3.1)."""
    first = data[0]
    if first < 192:
        return first, 1
    if first == 255:
        if len(data) < 5:
            raise PacketError("it is cut short")
        return int.from_bytes(data[1:5], "big"), 5
    return ((first - 192) << 8) + data[1] + 192, 2


def _dearmor(data: bytes, kind: str) -> bytes:
    """The packets inside `data`: as they are, or out of every armoured block of `kind` one after the other."""
    if not data.strip():
        raise PacketError("it is empty")
    if data[0] & 0x80:
        return data
    blocks = []
    lines = iter(data.splitlines())
    for line in lines:
        if line.startswith(b"-----BEGIN PGP "):
            _check_armour(line.rstrip(), kind)
            blocks.append(_armour_block(lines, kind))
    if not blocks:
        raise PacketError("it is not OpenPGP data")
    return b"".join(blocks)


def _check_armour(line: bytes, kind: str) -> None:
    found = line.removeprefix(b"-----BEGIN PGP ").removesuffix(b"-----").decode("ascii", "replace")
    if found == "PRIVATE KEY BLOCK":
        raise SecretKeyError("it contains a secret key")
    if found == "SIGNED MESSAGE":
        raise WrongKindError("it contains a clear-signed message")
    if found in ("MESSAGE", "SIGNATURE", "PUBLIC KEY BLOCK") and found != kind:
        raise WrongKindError(f"it contains a PGP {found.lower()}")
    if found != kind:
        raise PacketError("its armour is damaged")


def _armour_block(lines: Iterator[bytes], kind: str) -> bytes:
    encoded = []
    for line in lines:  # armour headers end at an empty line
        if not line.strip():
            break
    end = f"-----END PGP {kind}-----".encode()
    for line in lines:
        text = line.strip()
        if text == end:
            break
        if not text.startswith(b"="):  # the CRC: RFC 9580 §6.1 says not to rely on it, and gpg checks what matters
            encoded.append(text)
    else:
        raise PacketError("its armour is cut short")
    try:
        return binascii.a2b_base64(b"".join(encoded), strict_mode=True)
    except binascii.Error:
        raise PacketError("its armour is damaged") from None


def printable(text: str | bytes) -> str:
    """`text` with everything a terminal could act on, or that reorders what it shows, written as an escape."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
