"""Whether an image was signed by someone trusted for its name.

The order: what the signature *claims* (packets, `openpgp`) picks the keys; gpg, in an isolated home, says what it is
worth; the keystore says what the key is trusted for. Each signature packet is given to gpg alone, so every run has
exactly one verdict and none can be taken for another's.
"""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING

from aci.store import Verification
from common.errors import TrustError, reason
from common.records import NamedTuple
from stage0 import openpgp
from stage0.keystore import OPENPGP, KeyFile, Keystore, load, read_limited

if TYPE_CHECKING:
    from stage0.gpg import KeyInfo, Status

MAX_SIGNATURE_SIZE = 1 << 20
"""Octets of a signature file; a signature has a few hundred."""
MAX_SIGNATURES = 16
"""Signatures in one file: each that a known key claims costs a reading of the whole image."""

_WEAK_DIGESTS = {1: "MD5", 2: "SHA-1", 3: "RIPEMD-160"}
_VERDICTS = frozenset({"GOODSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG", "BADSIG", "ERRSIG"})
_SPOILERS = frozenset({"NODATA", "UNEXPECTED", "BADARMOR"})
_GPG_DIGEST_ERROR = "5"  # GPG_ERR_DIGEST_ALGO
_GPG_NO_KEY = "9"  # GPG_ERR_NO_PUBKEY


class Signature(NamedTuple):
    """A good signature by a key of the keystore. It does not say yet what that key is trusted for."""

    fingerprint: str
    """Of the primary key, 40 lower-case hex digits."""
    signer: str
    """A user id of the key, safe to print."""
    signed_at: int
    """Seconds since the epoch, as the signer claims."""


class _Claim(NamedTuple):
    """A signature, one key that may have made it, and what it is said to be over."""

    signature: openpgp.Signature
    fingerprint: str
    key: bytes
    data_path: str
    called: str
    shown: str
    """The signature file's path, fit to print."""


class SignatureMissing(TrustError):
    """There is no signature file, or it cannot be read."""


class SignatureUnreadable(TrustError):
    """The signature file is not OpenPGP data, damaged, empty, or too large."""


class NotDetached(TrustError):
    """The signature file is OpenPGP data of another kind."""


class BadSignature(TrustError):
    """The data is not what was signed."""


class UnknownKey(TrustError):
    """No key of the keystore made the signature."""


class KeyMasked(TrustError):
    """The key that made the signature is disabled by an empty file."""


class KeyUntrusted(TrustError):
    """The key is in the keystore, and not for this image."""


class KeyExpired(TrustError):
    """The signature was made after its key expired."""


class KeyRevoked(TrustError):
    """The key that made the signature has been revoked."""


class KeyUnusable(TrustError):
    """gpg refuses the key."""


class SignatureExpired(TrustError):
    """The signature was made to last for a time that is over."""


class WeakDigest(TrustError):
    """The signature is over a digest that can be forged."""


# When no signature of a file is good, the failure that tells most about an attack is the one to report.
_BY_WEIGHT = (BadSignature, KeyRevoked, KeyExpired, SignatureExpired, WeakDigest, NotDetached, KeyUnusable, KeyMasked)


def verify_detached(
    keystore: Keystore, data_path: str, signature_path: str, *, called: str = ""
) -> tuple[Signature, ...]:
    """The good signatures in `signature_path` over `data_path` by keys of the keystore, whatever they are trusted for.
    `called` is what the user calls the data, when `data_path` is a copy of it.

    Always at least one: when none is good, the TrustError says why the most telling one is not. A file that someone
    may replace meanwhile can be given as /proc/PID/fd/N of the caller."""
    return verify_packets(keystore, data_path, read_signatures(signature_path), signature_path, called=called)


def verify_packets(
    keystore: Keystore,
    data_path: str,
    signatures: list[openpgp.Signature],
    origin: str,
    *,
    called: str = "",
    name: str = "",
) -> tuple[Signature, ...]:
    """As `verify_detached`, with signature packets that were found in `origin`; `name` is the image's, if it is known
    already, for the command that would trust the signer."""
    keys, problems = _usable_keys(keystore)
    shown = openpgp.printable(origin)
    claims = [claim for signature in signatures for claim in _claims(keys, signature, data_path, called, shown)]
    if not claims:
        raise _unknown(keystore, signatures, origin, problems, name)
    _require_readable(data_path)
    good: list[Signature] = []
    failures: list[TrustError] = []
    for claim in claims:
        try:
            good.append(_verify_one(claim))
        except TrustError as e:
            failures.append(e)
    if not good:
        raise min(failures, key=_weight)
    return tuple(good)


def require_trusted(keystore: Keystore, signatures: tuple[Signature, ...], name: str) -> Verification:
    """The signature whose key is trusted for images called `name`, preferring the longest prefix.

    Raises KeyUntrusted or KeyMasked when there is none, and TrustError for a broken key file that applies to `name`."""
    for file, key in keystore.trusted_for(name):
        for signature in signatures:
            if signature.fingerprint == key.fingerprint:
                return Verification(key.fingerprint, signature.signer, file.prefix, signature.signed_at)
    if not signatures:
        raise SignatureMissing(f"{name} has no good signature")
    raise untrusted(keystore, signatures[0].fingerprint, signatures[0].signer, name)


def check_signer(keystore: Keystore, signature_path: str, name: str) -> None:
    """Refuse a signature whose claimed maker is not trusted for `name`, so that the image need not be downloaded. An
    empty name is one that only the image will tell: any key of the keystore may be for it.

    Runs no gpg and proves nothing: a claim that passes must still be verified. Raises what `verify_detached` and
    `require_trusted` would."""
    signatures = read_signatures(signature_path)
    trusted = keystore.trusted_for(name)
    if any(key.made(signature) for _, key in trusted for signature in signatures):
        return
    keys, problems = _usable_keys(keystore)
    for _, key in keys:
        if any(key.made(signature) for signature in signatures):
            if not name:
                return
            raise untrusted(keystore, key.fingerprint, _first_user_id(key), name)
    raise _unknown(keystore, signatures, signature_path, problems, name)


def read_signatures(path: str) -> list[openpgp.Signature]:
    """The signature packets of a detached signature file, armoured or binary.

    Raises SignatureMissing, SignatureUnreadable or NotDetached."""
    shown = openpgp.printable(path)
    remedy = "get the signature again, or make it with gpg --armor --detach-sign"
    try:
        found = openpgp.signatures(read_limited(path, MAX_SIGNATURE_SIZE))
    except OSError as e:
        hint = "sign the image with gpg --armor --detach-sign, or name its signature with --signature"
        raise SignatureMissing(f"open {shown}: {reason(e)}", hint=hint) from e
    except openpgp.WrongKindError as e:
        raise NotDetached(f"{shown} is not a detached signature: {e}", hint=remedy) from e
    except openpgp.SecretKeyError as e:
        raise NotDetached(f"{shown} is not a detached signature: {e}", hint="keep secret keys to yourself") from e
    except openpgp.PacketError as e:
        raise SignatureUnreadable(f"{shown} is not an OpenPGP signature: {e}", hint=remedy) from e
    if len(found) > MAX_SIGNATURES:
        raise SignatureUnreadable(f"{shown} has {len(found)} signatures, more than {MAX_SIGNATURES}", hint=remedy)
    return found


def _require_readable(data_path: str) -> None:
    """gpg's exit status does not tell a file it cannot open from a bad signature, and a FIFO would stop it."""
    try:
        fd = os.open(data_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            regular = stat.S_ISREG(os.fstat(fd).st_mode)
        finally:
            os.close(fd)
    except OSError as e:
        raise TrustError(f"open {openpgp.printable(data_path)}: {reason(e)}", hint="see whether the file exists") from e
    if not regular:
        raise TrustError(f"{openpgp.printable(data_path)} is not a regular file", hint="a signature is over a file")


def _usable_keys(keystore: Keystore) -> tuple[list[tuple[KeyFile, openpgp.PublicKey]], list[TrustError]]:
    """Every key that is not masked, and what is wrong with the files that hold none: those must not stand in the way of
    images they have nothing to do with. `Keystore.trusted_for` refuses them where they do."""
    keys, problems = [], []
    for file in keystore.active():
        if file.kind != OPENPGP:
            continue
        try:
            keys.append((file, load(file)))
        except TrustError as e:
            problems.append(e)
    return keys, problems


def _claims(
    keys: list[tuple[KeyFile, openpgp.PublicKey]], signature: openpgp.Signature, data_path: str, called: str, shown: str
) -> list[_Claim]:
    """One claim for each key that may have made `signature`. What several files say about one key is put together, so
    that a revocation counts wherever it is."""
    found: dict[str, bytes] = {}
    for _, key in keys:
        if key.made(signature):
            found[key.fingerprint] = found.get(key.fingerprint, b"") + key.raw
    return [
        _Claim(signature, fingerprint, raw, data_path, called or data_path, shown) for fingerprint, raw in found.items()
    ]


def _verify_one(claim: _Claim) -> Signature:
    """Have gpg check one signature with one key in its keyring: no other key, however trusted, can have a say."""
    _require_strength(claim)
    from stage0.gpg import isolated

    with isolated() as gpg:
        if claim.fingerprint not in gpg.import_keys([claim.key]):
            raise _unusable(claim)
        status, lines = gpg.verify(claim.signature.raw, claim.data_path)
        verdict = _verdict(lines, claim)
        signer = _user_id(verdict)
        _refuse(verdict, lines, claim, signer)
        made_by, signed_at = _valid(lines, claim)
        if status != 0:
            raise SignatureUnreadable(f"{claim.shown}: gpg ended with status {status} after a good signature")
        if verdict.keyword == "EXPKEYSIG":
            _require_made_in_time(gpg.describe(claim.fingerprint), made_by, signed_at, claim, signer)
    return Signature(claim.fingerprint, signer, signed_at)


def _require_strength(claim: _Claim) -> None:
    digest, kind = claim.signature.digest, claim.signature.kind
    if digest in _WEAK_DIGESTS:
        raise _weak(claim, _WEAK_DIGESTS[digest])
    if kind != openpgp.BINARY_DOCUMENT:
        # A text signature is over lines with any line ending, so it does not tell one file from another.
        what = "a text signature" if kind == openpgp.TEXT_DOCUMENT else "not a signature over a file"
        raise NotDetached(f"{claim.shown} is {what}", hint="sign the image without --textmode")


def _refuse(verdict: Status, lines: list[Status], claim: _Claim, signer: str) -> None:
    """Raise for every verdict but GOODSIG, and EXPKEYSIG, which depends on when the signature was made."""
    if verdict.keyword == "BADSIG":
        raise BadSignature(
            f"{openpgp.printable(claim.called)} is not what {signer} signed: "
            f"the signature {claim.shown} does not match it",
            hint="it was changed or damaged, or the signature belongs to another version; get both again",
        )
    if verdict.keyword == "ERRSIG":
        raise _cannot_check(verdict, claim)
    if verdict.keyword == "EXPSIG":
        raise SignatureExpired(
            f"{claim.shown}: the signature by {signer} has expired", hint="ask the signer for a new one"
        )
    if verdict.keyword == "REVKEYSIG" or any(line.keyword == "KEYREVOKED" for line in lines):
        raise _revoked(claim, signer)


def _verdict(lines: list[Status], claim: _Claim) -> Status:
    """The one verdict on the one signature; anything else is a refusal."""
    verdicts = [line for line in lines if line.keyword in _VERDICTS]
    begun = sum(line.keyword == "NEWSIG" for line in lines)
    if len(verdicts) != 1 or begun > 1 or any(line.keyword in _SPOILERS for line in lines):
        raise SignatureUnreadable(f"{claim.shown}: gpg finds no signature it can check", hint="get the signature again")
    return verdicts[0]


def _valid(lines: list[Status], claim: _Claim) -> tuple[str, int]:
    """From VALIDSIG, the fingerprint of the key or subkey that signed and the time. Its fields are: fingerprint, date,
    time, expiry, version, reserved, algorithm, digest, class, primary key's fingerprint."""
    found = [line.fields for line in lines if line.keyword == "VALIDSIG"]
    if len(found) == 1 and len(found[0]) >= 10:
        made_by, _, signed_at, _, _, _, _, digest, kind, primary = found[0][:10]
        if kind == "00" and primary.lower() == claim.fingerprint and int(digest) not in _WEAK_DIGESTS:
            return made_by.lower(), int(signed_at)
    raise SignatureUnreadable(f"{claim.shown}: gpg does not say that {claim.fingerprint} signed a file")


def _require_made_in_time(key: KeyInfo, fingerprint: str, signed_at: int, claim: _Claim, signer: str) -> None:
    """An expired key's signatures from before stay good (rpm-software-management/rpm#1911): expiry says "sign no more",
    revocation says "believe no more". gpg reports expiry first, so revocation is looked at here as well."""
    used = [key.primary, *(subkey for subkey in key.subkeys if subkey.fingerprint == fingerprint)]
    if any(part.validity == "r" for part in used):
        raise _revoked(claim, signer)
    ends = [part.expires for part in used if part.expires]
    if any(part.validity == "i" for part in used) or not ends or signed_at >= min(ends):
        raise KeyExpired(
            f"{claim.shown}: the key of {signer} had expired when it signed",
            hint="ask the signer for the key with its new expiry date and trust that, or for a new signature",
        )


def _user_id(verdict: Status) -> str:
    """The user id of a verdict line, which gpg percent-escapes, fit to print."""
    _, _, escaped = verdict.rest.partition(b" ")
    return openpgp.printable(re.sub(rb"%([0-9a-fA-F]{2})", lambda match: bytes([int(match[1], 16)]), escaped))


def _first_user_id(key: openpgp.PublicKey) -> str:
    return openpgp.printable(key.user_ids[0]) if key.user_ids else key.fingerprint


def _weight(error: TrustError) -> int:
    kinds = [isinstance(error, kind) for kind in _BY_WEIGHT]
    return kinds.index(True) if True in kinds else len(kinds)


def _revoked(claim: _Claim, signer: str) -> KeyRevoked:
    return KeyRevoked(
        f"{claim.shown}: the key of {signer} has been revoked",
        hint="nothing it signed can be relied on; get the image signed with another key",
    )


def _weak(claim: _Claim, digest: str) -> WeakDigest:
    hint = "sign again with SHA-256"
    return WeakDigest(f"{claim.shown}: the signature uses {digest}, which can be forged", hint=hint)


def _unusable(claim: _Claim) -> KeyUnusable:
    hint = "it has no valid self-signature, perhaps only one with SHA-1; ask its owner for an updated key"
    return KeyUnusable(f"{claim.shown}: gpg refuses the key {claim.signature.key_id} that made it", hint=hint)


def _cannot_check(verdict: Status, claim: _Claim) -> TrustError:
    """ERRSIG: key id, algorithm, digest, class, time, error code, fingerprint."""
    code = verdict.fields[5] if len(verdict.fields) > 5 else ""
    if code == _GPG_DIGEST_ERROR:
        return _weak(claim, f"digest {claim.signature.digest}")
    if code == _GPG_NO_KEY:
        return _unusable(claim)
    hint = "see whether the clock is right; it may also use an algorithm gpg does not know"
    return KeyUnusable(f"{claim.shown}: gpg cannot check it (error {code})", hint=hint)


def _unknown(
    keystore: Keystore, signatures: list[openpgp.Signature], path: str, problems: list[TrustError], name: str = ""
) -> TrustError:
    shown = openpgp.printable(path)
    for file in keystore.files():
        if file.kind == OPENPGP and file.masked_by and any(_names(file, signature) for signature in signatures):
            return _masked(file, shown)
    made_by = ", ".join(signature.key_id or "a key it does not name" for signature in signatures)
    hint = f"get the signer's key, check its fingerprint, and run {trust_command(name or 'PREFIX', 'KEYFILE')}"
    if problems:
        hint += f"; and this file is of no use: {problems[0].message}"
    return UnknownKey(f"{shown} was made by {made_by}, which is not in the keystore", hint=hint)


def untrusted(keystore: Keystore, fingerprint: str, signer: str, name: str) -> TrustError:
    """What to raise when a key of the keystore, not trusted for images called `name`, has signed one."""
    files = [file for file in keystore.files() if file.fingerprint == fingerprint]
    for file in files:
        if file.masked_by and file.applies_to(name):
            return _masked(file, name)
    known = [file for file in files if not file.masked_by]
    only = f"it is trusted for {' and '.join(file.prefix for file in known)} only; " if known else ""
    path = known[0].path if known else "KEYFILE"
    return KeyUntrusted(
        f"{openpgp.printable(name)} is signed by {signer} ({fingerprint}), which is not trusted for it",
        hint=f"{only}to trust it for this image, run {trust_command(name, path)}",
    )


def _masked(file: KeyFile, shown: str) -> KeyMasked:
    return KeyMasked(
        f"{shown} is signed by {file.fingerprint}, a key that {file.masked_by} masks",
        hint=f"remove {file.masked_by} to trust the key of the system again",
    )


def _names(file: KeyFile, signature: openpgp.Signature) -> bool:
    """Whether a masked key made `signature`; its file may be unusable, and then its name has to do."""
    try:
        return load(file).made(signature)
    except TrustError:
        return file.fingerprint in signature.issuers or file.fingerprint[-16:] in signature.issuers


def trust_command(prefix: str, path: str) -> str:
    """The command line that would trust the key in `path` for `prefix`."""
    import shlex

    return f"rkpy trust --prefix={shlex.quote(openpgp.printable(prefix))} {shlex.quote(openpgp.printable(path))}"
