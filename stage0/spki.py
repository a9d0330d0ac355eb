"""Public keys in PEM, as cosign and openssl write them, and the signatures they make.

A key is known by the SHA-256 of its SubjectPublicKeyInfo (RFC 5280 §4.1.2.7), in DER:
`openssl pkey -pubin -in cosign.pub -outform DER | sha256sum`. The cryptography is that of the library of this name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from common.records import NamedTuple

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

MAX_KEY_SIZE = 16 << 10
"""Octets of a key file; one with an RSA key of 16384 bits has 2800."""
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 16384

_BEGIN = re.compile(rb"^-----BEGIN ([A-Z0-9 ]+)-----", re.MULTILINE)


class UnusableKey(ValueError):
    """The bytes are not a public key that can be trusted; the text says why and never quotes them."""


class SecretKey(UnusableKey):
    """There is a secret key in it."""


class PublicKey(NamedTuple):
    fingerprint: str
    """SHA-256 of the SubjectPublicKeyInfo, 64 lower-case hex digits."""
    algorithm: str
    """For people: `ECDSA P-256`, `RSA 3072` or `Ed25519`."""
    pem: bytes
    """As written anew from what was understood."""
    key: Any
    """The library's object."""


def is_pem(data: bytes) -> bool:
    """Whether `data` is PEM of some kind, and not OpenPGP's armour, which looks alike."""
    found = _BEGIN.search(data)
    return found is not None and not found[1].startswith(b"PGP ")


def public_key(data: bytes) -> PublicKey:
    """The one key in `data`. Raises SecretKey or UnusableKey."""
    _require_one_block(data)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    try:
        key = load_pem_public_key(data)
        algorithm = _algorithm(key)
        der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    except UnusableKey:
        raise
    except UnsupportedAlgorithm:
        raise UnusableKey("it is a key of a kind that is not supported") from None
    except ValueError:
        raise UnusableKey("it is damaged") from None
    import hashlib

    return PublicKey(hashlib.sha256(der).hexdigest(), algorithm, pem, key)


def made(key: PublicKey, signature: bytes, data: bytes) -> bool:
    """Whether `signature` is one by `key` over `data`. ECDSA may go with SHA-256, as cosign has it for every curve, or
    with the digest of the curve's own size, as newer versions have it; RSA is PKCS #1 v1.5 with SHA-256."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding

    public = key.key
    try:
        if isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(signature, data)
            return True
        if not isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
            return True
    except (InvalidSignature, ValueError):
        return False
    own: dict[str, HashAlgorithm] = {"secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}
    digests: list[HashAlgorithm] = [hashes.SHA256()]
    if public.curve.name in own:
        digests.append(own[public.curve.name])
    return any(_made_by_ecdsa(public, signature, data, digest) for digest in digests)


def _made_by_ecdsa(public: Any, signature: bytes, data: bytes, digest: HashAlgorithm) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        public.verify(signature, data, ec.ECDSA(digest))
    except (InvalidSignature, ValueError):
        return False
    return True


def _require_one_block(data: bytes) -> None:
    """Nothing but one PUBLIC KEY block: what stands beside it might be what somebody believes to have trusted."""
    kinds = [match[1].decode("ascii") for match in _BEGIN.finditer(data)]
    if any("PRIVATE KEY" in kind for kind in kinds):
        raise SecretKey("it contains a secret key")
    if len(data) > MAX_KEY_SIZE:
        raise UnusableKey(f"it is larger than {MAX_KEY_SIZE >> 10} KiB")
    if len(kinds) > 1:
        raise UnusableKey(f"it holds {len(kinds)} keys")
    if kinds != ["PUBLIC KEY"]:
        raise UnusableKey(f"it holds a {kinds[0].lower()}, not a public key" if kinds else "it is not PEM")
    text = data.strip()
    if not text.startswith(b"-----BEGIN PUBLIC KEY-----") or not text.endswith(b"-----END PUBLIC KEY-----"):
        raise UnusableKey("there is more in it than the key")


def _algorithm(key: Any) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ed25519.Ed25519PublicKey):
        return "Ed25519"
    if isinstance(key, rsa.RSAPublicKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise UnusableKey(f"it is an RSA key of {key.key_size} bits, and it takes {MIN_RSA_BITS} to {MAX_RSA_BITS}")
        return f"RSA {key.key_size}"
    curves = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in curves:
        return f"ECDSA {curves[key.curve.name]}"
    raise UnusableKey("it is a key of a kind that is not supported: ECDSA P-256, P-384, P-521, RSA or Ed25519 is")
