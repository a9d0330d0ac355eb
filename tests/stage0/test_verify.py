"""Signatures by real keys, each way they can be good or bad with its own words."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aci.store import Verification
from common.errors import TrustError
from stage0 import openpgp, verify
from stage0.keystore import Keystore
from stage0.verify import Signature, check_signer, require_trusted, verify_detached
from tests.gpg import Signer, signer

NAME = "example.com/app"
ALICE = "Alice <alice@example.com>"


class World:
    """Keys that several tests use; none of them is changed by a test."""

    def __init__(self, who: Signer) -> None:
        self.who = who
        self.alice = who.key(ALICE)
        self.alice_subkey = who.subkey(self.alice)
        self.mallory = who.key("Mallory <mallory@example.org>")


class Case:
    """A keystore and a file to sign, for one test."""

    def __init__(self, directory: str, world: World) -> None:
        self.directory, self.world, self.who = directory, world, world.who
        self.keystore = Keystore(f"{directory}/etc", f"{directory}/usr")
        self.image = f"{directory}/image.aci"
        with open(self.image, "wb") as file:
            file.write(b"an image\n" * 1000)

    def trust(self, fingerprint: str, prefix: str | None = "example.com") -> str:
        return self.keystore.add(self.who.export(fingerprint), prefix)

    def check(self, signature: str, name: str = NAME) -> Verification:
        check_signer(self.keystore, signature, name)
        return require_trusted(self.keystore, verify_detached(self.keystore, self.image, signature), name)

    def file(self, name: str, data: bytes) -> str:
        path = f"{self.directory}/{name}"
        with open(path, "wb") as file:
            file.write(data)
        return path


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with signer() as who:
        yield World(who)


@pytest.fixture
def case(tmp_path: os.PathLike[str], world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    temporary = f"{os.fspath(tmp_path)}/tmp"
    os.mkdir(temporary)
    monkeypatch.setattr(tempfile, "tempdir", temporary)
    yield Case(os.fspath(tmp_path), world)
    assert os.listdir(temporary) == [], "gpg's home is removed after success and after every error"


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def refused(error: type[TrustError], message: str, case: Case, signature: str, name: str = NAME) -> TrustError:
    with pytest.raises(error) as caught:
        case.check(signature, name)
    assert type(caught.value) is error
    assert message in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("armor", [True, False])
def test_a_good_signature(case: Case, armor: bool) -> None:
    case.trust(case.world.alice)
    signature = case.who.sign(case.world.alice, case.image, armor=armor)
    found = case.check(signature)
    assert (found.fingerprint, found.signer, found.trusted_for) == (case.world.alice, ALICE, "example.com")
    assert abs(found.signed_at - os.stat(signature).st_mtime) < 60


def test_a_root_key_and_the_longest_prefix(case: Case) -> None:
    signature = case.who.sign(case.world.alice, case.image)
    case.trust(case.world.alice, None)
    assert case.check(signature).trusted_for == ""
    case.trust(case.world.alice, "example.com/app")
    assert case.check(signature).trusted_for == "example.com/app"
    assert case.check(signature, "example.com/apple").trusted_for == ""


def test_a_subkey_signs_for_its_primary_key(case: Case) -> None:
    case.trust(case.world.alice)
    assert case.check(case.who.sign(case.world.alice_subkey, case.image)).fingerprint == case.world.alice


def test_no_signature_file(case: Case) -> None:
    case.trust(case.world.alice)
    refused(
        verify.SignatureMissing, f"open {case.image}.asc: no such file or directory", case, f"{case.image}.asc"
    )  # the words rkt's users match


def test_tampered_bytes(case: Case) -> None:
    case.trust(case.world.alice)
    signature = case.who.sign(case.world.alice, case.image)
    with open(case.image, "ab") as file:
        file.write(b"!")
    refused(verify.BadSignature, f"{case.image} is not what {ALICE} signed", case, signature)


def test_a_copy_is_called_what_the_user_calls_it(case: Case) -> None:
    case.trust(case.world.alice)
    signature = case.who.sign(case.world.alice, case.image)
    copy = case.file("copy", b"not the image")
    with pytest.raises(verify.BadSignature, match=r"^oci:app\.tar is not what Alice"):
        verify_detached(case.keystore, copy, signature, called="oci:app.tar")


def test_an_empty_image_file(case: Case) -> None:
    case.trust(case.world.alice)
    signature = case.who.sign(case.world.alice, case.image)
    os.truncate(case.image, 0)
    refused(verify.BadSignature, "is not what", case, signature)


def test_an_unknown_key(case: Case) -> None:
    case.trust(case.world.alice)
    signature = case.who.sign(case.world.mallory, case.image)
    error = refused(verify.UnknownKey, case.world.mallory.upper(), case, signature)
    assert "rkpy trust --prefix=example.com/app KEYFILE" in error.hint
    with pytest.raises(verify.UnknownKey, match="not in the keystore"):
        verify_detached(case.keystore, case.image, signature)


def test_an_unknown_key_while_another_file_is_broken(case: Case) -> None:
    broken = case.trust(case.world.alice)
    signature = case.who.sign(case.world.alice, case.image)
    with open(broken, "wb") as file:
        file.write(b"garbage")
    refused(TrustError, f"trusted key {broken} is not an OpenPGP public key", case, signature)
    with pytest.raises(verify.UnknownKey, match="of no use: trusted key"):
        verify_detached(case.keystore, case.image, signature)
    case.trust(case.world.mallory, "example.org")
    found = case.check(case.who.sign(case.world.mallory, case.image), "example.org/app")
    assert found.trusted_for == "example.org", "a broken key must not stand in the way of other prefixes"


def test_a_known_key_that_is_not_trusted_for_the_prefix(case: Case) -> None:
    case.trust(case.world.alice)
    key_file = case.trust(case.world.mallory, "example.org")
    signature = case.who.sign(case.world.mallory, case.image)
    (good,) = verify_detached(case.keystore, case.image, signature)
    assert good.fingerprint == case.world.mallory
    error = refused(verify.KeyUntrusted, "which is not trusted for it", case, signature)
    assert f"rkpy trust --prefix={NAME} {key_file}" in error.hint
    with pytest.raises(verify.KeyUntrusted, match="is signed by Mallory"):
        require_trusted(case.keystore, (good,), NAME)
    case.trust(case.world.mallory, "example.com/ap")
    refused(verify.KeyUntrusted, NAME, case, signature)


def test_a_masked_key(case: Case) -> None:
    directory = f"{case.keystore.system}/prefix.d/example.com"
    os.makedirs(directory)
    with open(f"{directory}/{case.world.alice}", "wb") as file:
        file.write(case.who.export(case.world.alice))
    signature = case.who.sign(case.world.alice_subkey, case.image)
    assert case.check(signature).fingerprint == case.world.alice
    (key,) = case.keystore.active()
    mask = case.keystore.remove(key)
    refused(verify.KeyMasked, f"a key that {mask} masks", case, signature)
    with pytest.raises(verify.KeyMasked):
        verify_detached(case.keystore, case.image, signature)
    case.trust(case.world.alice, "example.org")
    refused(verify.KeyMasked, f"a key that {mask} masks", case, signature)


def test_a_signature_from_before_the_key_expired_stays_good(case: Case) -> None:
    key = case.who.key("Old <old@example.com>", at="20200101T000000", expires="30d")
    case.trust(key)
    signature = case.who.sign(key, case.image, at="20200110T000000")
    assert case.check(signature).signed_at == 1578614400


def test_a_signature_from_after_the_key_expired(case: Case) -> None:
    key = case.who.key("Late <late@example.com>", at="20200101T000000", expires="30d")
    case.trust(key)
    case.who.run("--quick-set-expire", key, "0", at="20200102T000000")  # which the keystore never heard of
    signature = case.who.sign(key, case.image, at="20200301T000000")
    refused(verify.KeyExpired, "the key of Late <late@example.com> had expired when it signed", case, signature)
    case.trust(key)
    assert case.check(signature).fingerprint == key


def test_expired_subkeys_and_subkeys_of_expired_keys(case: Case) -> None:
    key = case.who.key("Sub", at="20200101T000000")
    subkey = case.who.subkey(key, at="20200102T000000", expires="10d")
    old = case.who.key("Primary", at="20200101T000000", expires="30d")
    subkey_of_old = case.who.subkey(old, at="20200102T000000")
    for fingerprint in (key, old):
        case.trust(fingerprint)
    for signing in (subkey, subkey_of_old):
        assert case.check(case.who.sign(signing, case.image, at="20200105T000000")).signed_at == 1578182400
    case.who.run("--quick-set-expire", key, "0", subkey, at="20200103T000000")
    case.who.run("--quick-set-expire", old, "0", at="20200103T000000")
    for signing in (subkey, subkey_of_old):
        refused(verify.KeyExpired, "had expired", case, case.who.sign(signing, case.image, at="20200301T000000"))


def test_a_subkey_that_expires_before_its_key(case: Case) -> None:
    key = case.who.key("Early", at="20200101T000000", expires="30d")
    subkey = case.who.subkey(key, at="20200101T000000", expires="10d")
    case.trust(key)
    assert case.check(case.who.sign(subkey, case.image, at="20200105T000000"))
    assert case.check(case.who.sign(key, case.image, at="20200120T000000"))
    case.who.run("--quick-set-expire", key, "0", subkey, at="20200103T000000")
    refused(verify.KeyExpired, "had expired", case, case.who.sign(subkey, case.image, at="20200120T000000"))


def test_a_revoked_key(case: Case) -> None:
    key = case.who.key("Gone <gone@example.com>")
    subkey = case.who.subkey(key)
    by_key, by_subkey = (case.who.sign(one, case.image, to=f"{case.image}.{one}") for one in (key, subkey))
    case.trust(key)
    assert case.check(by_key) and case.check(by_subkey)
    case.who.revoke(key)
    case.trust(key)
    for signature in (by_key, by_subkey):
        refused(verify.KeyRevoked, "the key of Gone <gone@example.com> has been revoked", case, signature)


def test_a_revoked_subkey(case: Case) -> None:
    key = case.who.key("Half <half@example.com>")
    subkey = case.who.subkey(key)
    by_key, by_subkey = (case.who.sign(one, case.image, to=f"{case.image}.{one}") for one in (key, subkey))
    case.who.revoke_subkey(key)
    case.trust(key)
    refused(verify.KeyRevoked, "has been revoked", case, by_subkey)
    assert case.check(by_key).fingerprint == key


def test_an_expired_key_that_is_revoked_as_well(case: Case) -> None:
    """gpg says EXPKEYSIG, which hides the revocation."""
    key = case.who.key("Both", at="20200101T000000", expires="30d")
    subkey = case.who.subkey(key, at="20200101T000000", expires="30d")
    signatures = [
        case.who.sign(one, case.image, at="20200110T000000", to=f"{case.image}.{one}") for one in (key, subkey)
    ]
    case.trust(key)
    assert all(case.check(signature) for signature in signatures)
    case.who.revoke(key)
    case.trust(key)
    for signature in signatures:
        refused(verify.KeyRevoked, "has been revoked", case, signature)


@pytest.mark.parametrize(
    "places", [("example.com", "example.org"), ("example.org", "example.com"), ("example.com", None)]
)
def test_a_revocation_counts_wherever_in_the_keystore_it_is(case: Case, places: tuple[str | None, ...]) -> None:
    key = case.who.key("Twice")
    signature = case.who.sign(key, case.image)
    case.trust(key, places[0])
    case.who.revoke(key)
    case.trust(key, places[1])
    refused(verify.KeyRevoked, "has been revoked", case, signature)


def test_a_key_from_the_future(case: Case) -> None:
    key = case.who.key("Marty", at="20380101T000000")
    case.trust(key)
    refused(verify.KeyUnusable, "gpg", case, case.who.sign(key, case.image, at="20380102T000000"))


def test_an_expired_signature(case: Case) -> None:
    key = case.who.key("Short", at="20200101T000000")
    case.trust(key)
    signature = case.who.sign(key, case.image, "--default-sig-expire", "1d", at="20200105T000000")
    refused(verify.SignatureExpired, "the signature by Short has expired", case, signature)


@pytest.mark.parametrize("digest", ["SHA1", "RIPEMD160"])
def test_a_weak_digest(case: Case, digest: str) -> None:
    case.trust(case.world.alice)
    signature = case.who.sign(case.world.alice, case.image, "--digest-algo", digest)
    refused(verify.WeakDigest, f"the signature uses {digest[:3]}", case, signature)


def test_a_key_certified_with_sha1_only(case: Case) -> None:
    """Its subkeys and expiry dates could be forged."""
    with signer() as who:
        case.who = who
        who.run("--cert-digest-algo", "SHA1", "--quick-generate-key", "Antique", "rsa2048", "sign", "never")
        (key,) = who._primaries()
        case.trust(key)
        refused(verify.KeyUnusable, "gpg refuses the key", case, who.sign(key, case.image))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"\n \n", "it is empty"),
        (b"<html>404</html>", "it is not OpenPGP data"),
        (b"\x88\x75\x04\x00", "it is cut short"),
        (b"\xc2\xff\x00", "it is cut short"),
        (b"\x88\x01\x09", "it has a signature of version 9"),
        (b"-----BEGIN PGP SIGNATURE-----\n\niHUE", "its armour is cut short"),
        (b"-----BEGIN PGP SIGNATURE-----\n\n-----END PGP SIGNATURE-----\n", "it is empty"),
        (b"x" * ((1 << 20) + 1), "it is larger than 1024 KiB"),
    ],
)
def test_garbage_for_a_signature(case: Case, data: bytes, message: str) -> None:
    case.trust(case.world.alice)
    path = case.file("image.aci.asc", data)
    refused(verify.SignatureUnreadable, f"{path} is not an OpenPGP signature: {message}", case, path)


def test_a_directory_or_fifo_for_a_signature(case: Case) -> None:
    os.mkfifo(f"{case.directory}/fifo")
    for name in ("fifo", "etc", "/dev/zero"):
        os.makedirs(f"{case.directory}/etc", exist_ok=True)
        with pytest.raises(TrustError, match=r"not a regular file|is a directory"):
            case.check(os.path.join(case.directory, name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--armor", "--sign"), "it contains a PGP message"),
        (("--sign",), "it contains compressed data"),
        (("--compress-algo", "none", "--sign"), "it contains a signed message with its data"),
        (("--clear-sign",), "it contains a clear-signed message"),
        (("--armor", "--export"), "it contains a PGP public key block"),
        (("--export",), "it contains a public key"),
        (("--armor", "--export-secret-keys"), "it contains a secret key"),
        (("--detach-sign", "--textmode"), "is a text signature"),
    ],
)
def test_other_openpgp_data_for_a_signature(case: Case, options: tuple[str, ...], message: str) -> None:
    """A message with its own data, well signed, must not pass as a signature over the image."""
    case.trust(case.world.alice)
    arguments = () if "export" in options[-1] else ("--output", "-", case.file("evil", b"other data"))
    made = case.who.run("--local-user", f"{case.world.alice}!", *options, *arguments)
    error = refused(verify.NotDetached, message, case, case.file("image.aci.asc", made))
    assert error.hint


def test_a_message_hidden_behind_a_good_signature(case: Case) -> None:
    case.trust(case.world.alice)
    good = read(case.who.sign(case.world.alice, case.image, armor=False))
    message = case.who.run("--compress-algo", "none", "--sign", "--output", "-", case.image)
    for data in (good + message, message + good):
        refused(verify.NotDetached, "a signed message with its data", case, case.file("both.asc", data))


def test_several_signatures(case: Case) -> None:
    one = read(case.who.sign(case.world.alice, case.image, armor=False))
    two = read(case.who.sign(case.world.mallory, case.image, armor=False))
    case.trust(case.world.alice, "example.com")
    for data in (one + two, two + one):
        assert case.check(case.file("both.asc", data)).fingerprint == case.world.alice
    case.trust(case.world.mallory, "example.org")
    both = verify_detached(case.keystore, case.image, case.file("both.asc", one + two))
    assert [signature.fingerprint for signature in both] == [case.world.alice, case.world.mallory]
    assert require_trusted(case.keystore, both, "example.org/x").fingerprint == case.world.mallory
    with pytest.raises(verify.KeyUntrusted):
        require_trusted(case.keystore, both, "example.net/x")


def test_several_armoured_signatures_one_after_the_other(case: Case) -> None:
    case.trust(case.world.alice)
    parts = [read(case.who.sign(key, case.image)) for key in (case.world.mallory, case.world.alice)]
    assert case.check(case.file("both.asc", b"".join(parts))).fingerprint == case.world.alice


def test_a_bad_signature_beside_a_good_one(case: Case) -> None:
    """Any good signature by an applicable key is enough; a bad one never is, whatever stands next to it."""
    other = case.file("other", b"something else")
    good = read(case.who.sign(case.world.alice, case.image, armor=False))
    bad = read(case.who.sign(case.world.alice, other, armor=False))
    stranger = read(case.who.sign(case.world.mallory, case.image, armor=False))
    case.trust(case.world.alice)
    for data in (good + bad, bad + good):
        assert len(verify_detached(case.keystore, case.image, case.file("both.asc", data))) == 1
    for data in (bad + stranger, stranger + bad, bad + bad):
        refused(verify.BadSignature, "is not what", case, case.file("both.asc", data))


def test_bytes_after_a_signature(case: Case) -> None:
    case.trust(case.world.alice)
    good = read(case.who.sign(case.world.alice, case.image, armor=False))
    refused(verify.SignatureUnreadable, "it is not OpenPGP data", case, case.file("a.asc", good + b"\0garbage"))
    refused(verify.SignatureUnreadable, "it is cut short", case, case.file("a.asc", good + good[:-1]))
    refused(verify.SignatureUnreadable, "has 17 signatures, more than 16", case, case.file("a.asc", good * 17))


def test_an_untrusted_signer_cannot_claim_a_trusted_issuer(case: Case) -> None:
    """The issuer in a signature is unauthenticated: it passes the early check, and gpg does not believe it."""
    case.trust(case.world.alice)
    forged = read(case.who.sign(case.world.mallory, case.image, armor=False))
    for old, new in ((case.world.mallory, case.world.alice), (case.world.mallory[-16:], case.world.alice[-16:])):
        forged = forged.replace(bytes.fromhex(old), bytes.fromhex(new))
    path = case.file("forged.asc", forged)
    check_signer(case.keystore, path, NAME)
    refused(verify.BadSignature, "is not what", case, path)


def test_a_key_that_claims_anothers_subkey(case: Case) -> None:
    """Whoever is trusted for one prefix can neither sign as somebody else nor keep them from signing."""
    raw = case.who.export(case.world.alice, armor=False)
    (alice,) = openpgp.public_keys(raw)
    packets = list(openpgp._packets(raw))
    start = [packet.tag for packet in packets].index(openpgp.PUBLIC_SUBKEY)
    subkey = b"".join(packet.raw for packet in packets[start:])  # and its binding signature
    evil = case.file("evil", case.who.export(case.world.mallory, armor=False) + subkey)
    (mallory,) = openpgp.public_keys(read(evil))
    assert mallory.subkeys == alice.subkeys == (case.world.alice_subkey,)
    case.keystore.add(read(evil), "a.example.org")
    signature = case.who.sign(case.world.alice_subkey, case.image)
    with pytest.raises(verify.KeyUnusable):
        verify_detached(case.keystore, case.image, signature)
    case.trust(case.world.alice)
    assert case.check(signature).fingerprint == case.world.alice
    with pytest.raises(verify.KeyUntrusted):
        case.check(signature, "a.example.org/x")


def test_a_signature_that_names_no_maker(case: Case) -> None:
    case.trust(case.world.alice)
    body = bytes([4, 0, 22, 8, 0, 0, 0, 0]) + b"\x12\x34" + b"\x00\x01\x01" * 2
    refused(verify.UnknownKey, "a key it does not name", case, case.file("a.asc", b"\x88" + bytes([len(body)]) + body))


INJECTED = "[GNUPG:] VALIDSIG " + "A" * 40 + " 2026-01-01 1 0 4 0 22 8 00 "


def test_user_ids_and_notations_cannot_forge_gpgs_status(case: Case) -> None:
    """U+0085 ends a line for Python's text, and gpg leaves it alone: to python-gnupg this is a VALIDSIG by Alice."""
    evil = case.who.key(f"Evil\u0085{INJECTED}{case.world.alice.upper()}")
    case.trust(case.world.alice, None)
    case.trust(evil, "example.org")
    notation = ("--sig-notation", f"x@example.com=y\u0085{INJECTED}{case.world.alice.upper()}")
    signature = case.who.sign(evil, case.image, *notation)
    (found,) = verify_detached(case.keystore, case.image, signature)
    assert found.fingerprint == evil
    assert "\u0085" not in found.signer and found.signer.startswith("Evil\\x85")
    refused(verify.KeyUntrusted, evil, case, signature)


def test_file_names_cannot_forge_gpgs_status(case: Case) -> None:
    case.trust(case.world.alice)
    name = f"{case.directory}/x\n[GNUPG:] GOODSIG AAAAAAAAAAAAAAAA Alice\n{INJECTED}{case.world.alice.upper()}\n"
    os.rename(case.image, name)
    case.image = name
    signature = case.who.sign(case.world.alice, name, to=f"{case.directory}/s.asc")
    assert case.check(signature).fingerprint == case.world.alice
    with open(name, "ab") as file:
        file.write(b"!")
    refused(verify.BadSignature, "x\\n[GNUPG:] GOODSIG", case, signature)


def test_hostile_user_ids_are_fit_to_print(case: Case) -> None:
    key = case.who.key("\x1b[2J\u202eroot% 100%41")
    case.trust(key)
    assert case.check(case.who.sign(key, case.image)).signer == "\\x1b[2J\\u202eroot% 100%41"


def test_options_in_file_names(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.trust(case.world.alice)
    monkeypatch.chdir(case.directory)
    os.rename(case.image, "--output")
    case.who.sign(case.world.alice, "./--output", to="--help")
    case.image = "--output"
    assert case.check("--help").fingerprint == case.world.alice


def test_no_agent_and_no_configuration_of_the_user_is_used(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.trust(case.world.alice)
    signature = case.who.sign(case.world.alice, case.image)
    os.mkdir(f"{case.directory}/home", 0o700)
    case.file("home/gpg.conf", b"this-is-no-option\n")
    monkeypatch.setenv("GNUPGHOME", f"{case.directory}/home")
    monkeypatch.setenv("HOME", f"{case.directory}/home")
    assert case.check(signature).fingerprint == case.world.alice
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in running.splitlines() if "rkpy-gpg-" in line and line.startswith(("gpg", "dirmngr"))]


def test_without_gpg(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.trust(case.world.alice)
    signature = case.who.sign(case.world.alice, case.image)
    monkeypatch.setenv("PATH", case.directory)
    error = refused(TrustError, "cannot run gpg", case, signature)
    assert "install" in error.hint


def test_a_missing_image(case: Case) -> None:
    case.trust(case.world.alice)
    signature = case.who.sign(case.world.alice, case.image)
    os.unlink(case.image)
    with pytest.raises(TrustError, match=r"image\.aci: no such file or directory"):
        case.check(signature)
    for make in (os.mkfifo, os.mkdir):
        make(case.image)
        with pytest.raises(TrustError, match=r"image\.aci is not a regular file"):
            case.check(signature)
        os.rename(case.image, f"{case.directory}/{make.__name__}")


def test_an_empty_keystore(case: Case) -> None:
    refused(verify.UnknownKey, "not in the keystore", case, case.who.sign(case.world.alice, case.image))


def test_no_signatures_are_not_trusted(case: Case) -> None:
    case.trust(case.world.alice)
    with pytest.raises(TrustError):
        require_trusted(case.keystore, (), NAME)
    with pytest.raises(verify.KeyUntrusted):
        require_trusted(case.keystore, (Signature("0" * 40, "x", 0),), NAME)


def test_a_descriptor_for_a_path(case: Case) -> None:
    """What was opened is what is verified, whatever happens to the name meanwhile."""
    case.trust(case.world.alice)
    signature = case.who.sign(case.world.alice, case.image)
    fd = os.open(case.image, os.O_RDONLY)
    try:
        os.unlink(case.image)
        case.file("image.aci", b"swapped")
        case.image = f"/proc/{os.getpid()}/fd/{fd}"
        assert case.check(signature).fingerprint == case.world.alice
    finally:
        os.close(fd)


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x88", b"\x88\x75\x04\x00\x16\x08", b"\xc2", b"\x98"]))
def test_the_parser_raises_nothing_but_its_own_errors(data: bytes, start: bytes) -> None:
    for parse in (openpgp.signatures, openpgp.public_keys):
        try:
            parse(start + data)
        except openpgp.PacketError:
            continue


@given(st.text(max_size=200))
def test_the_armour_reader_raises_nothing_but_its_own_errors(text: str) -> None:
    for around in (
        "{}",
        "-----BEGIN PGP SIGNATURE-----{}",
        "-----BEGIN PGP SIGNATURE-----\n\n{}\n-----END PGP SIGNATURE-----",
    ):
        try:
            openpgp.signatures(around.replace("{}", text).encode())
        except openpgp.PacketError:
            continue


def test_any_change_to_a_signature_is_noticed(case: Case) -> None:
    """A sample of single-bit flips: each is refused in one of the known ways or leaves the same good verdict."""
    case.trust(case.world.alice)
    good = read(case.who.sign(case.world.alice, case.image, armor=False))
    for position in range(0, len(good), 7):
        flipped = bytearray(good)
        flipped[position] ^= 1 << (position % 8)
        try:
            found = case.check(case.file("flipped.asc", bytes(flipped)))
        except TrustError:
            continue
        assert found.fingerprint == case.world.alice
