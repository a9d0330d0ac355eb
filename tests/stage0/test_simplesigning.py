"""Simple signing: signatures by the real skopeo and gpg, and each way they can be refused."""

from __future__ import annotations

import bz2
import hashlib
import json
import os
import subprocess
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aci.store import Verification
from common.errors import TrustError
from stage0 import docker_reference, openpgp, simplesigning, verify
from stage0.keystore import Keystore
from stage0.simplesigning import OtherIdentity, OtherImage, PayloadInvalid
from tests.gpg import Signer, signer

ALICE = "Alice <alice@example.com>"
NAME = "registry.example.com/app"
REFERENCE = "registry.example.com/app:1.0"
MANIFEST = b'{"schemaVersion":2}'
DIGEST = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"
OTHER = f"sha256:{'1' * 64}"


class World:
    """Keys and a good signature, which no test changes."""

    def __init__(self, who: Signer, directory: str) -> None:
        self.who, self.directory = who, directory
        self.alice = who.key(ALICE)
        self.good = self.skopeo(REFERENCE)

    def skopeo(self, reference: str, key: str = "", manifest: bytes = MANIFEST) -> bytes:
        """As a person makes it: skopeo standalone-sign MANIFEST REFERENCE KEY --output FILE."""
        path = f"{self.directory}/manifest.json"
        with open(path, "wb") as file:
            file.write(manifest)
        subprocess.run(
            ["skopeo", "standalone-sign", path, reference, (key or self.alice).upper(), "--output", f"{path}.sig"],
            env={**os.environ, "GNUPGHOME": self.who.home},
            check=True,
            capture_output=True,
        )
        with open(f"{path}.sig", "rb") as file:
            return file.read()

    def sign(self, data: bytes, *options: str, key: str = "", command: str = "--sign", at: str = "") -> bytes:
        """What gpg makes of any data."""
        return self.who.run(*options, "--local-user", f"{key or self.alice}!", command, data=data, at=at)


class Case:
    def __init__(self, directory: str, world: World) -> None:
        self.world = world
        self.keystore = Keystore(f"{directory}/etc", f"{directory}/usr")

    def trust(self, key: str = "", prefix: str | None = "registry.example.com") -> str:
        return self.keystore.add(self.world.who.export(key or self.world.alice), prefix)

    def check(
        self, blob: bytes, reference: str = REFERENCE, digest: str = DIGEST, index: str = "", name: str = NAME
    ) -> Verification:
        return simplesigning.verify(
            self.keystore,
            blob,
            manifest_digest=digest,
            index_digest=index,
            reference=docker_reference.parse(reference),
            name=name,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with signer() as who:
        yield World(who, os.fspath(tmp_path_factory.mktemp("world")))


@pytest.fixture
def case(tmp_path: os.PathLike[str], world: World) -> Case:
    made = Case(os.fspath(tmp_path), world)
    made.trust()
    return made


def statement(**changes: Any) -> dict[str, Any]:
    critical = {
        "type": "atomic container signature",
        "image": {"docker-manifest-digest": DIGEST},
        "identity": {"docker-reference": REFERENCE},
    }
    return {"critical": critical, "optional": {"creator": "a test", "timestamp": 1483228800}, **changes}


def critical(**changes: Any) -> dict[str, Any]:
    return statement(critical={**statement()["critical"], **changes})


def refused(error: type[TrustError], message: str, case: Case, blob: bytes, **asked: str) -> TrustError:
    with pytest.raises(error) as caught:
        case.check(blob, **asked)
    assert type(caught.value) is error
    assert message in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


def test_what_skopeo_signs(case: Case) -> None:
    found = case.check(case.world.good)
    assert (found.fingerprint, found.signer, found.trusted_for) == (case.world.alice, ALICE, "registry.example.com")
    assert found.signed_at > 1_600_000_000


@pytest.mark.parametrize(
    "options",
    [(), ("--armor",), ("--compress-algo", "none"), ("--compress-algo", "zlib"), ("--compress-algo", "bzip2")],
)
def test_every_packing_gpg_knows(case: Case, options: tuple[str, ...]) -> None:
    """Also data of many lengths, as they decide how a packet's length is written."""
    for padding in (0, 150, 400, 9000, 30000):
        data = json.dumps(statement(optional={"pad": "x" * padding})).encode()
        assert case.check(case.world.sign(data, *options)).fingerprint == case.world.alice


# Which identity is whose


@pytest.mark.parametrize(
    ("signed", "asked"),
    [
        ("registry.example.com/app:1.0", "registry.example.com/app:1.0"),
        ("registry.example.com/app:latest", "registry.example.com/app"),
        ("registry.example.com/app:1.0", f"registry.example.com/app@{DIGEST}"),
        ("registry.example.com/app:1.0", f"registry.example.com/app:2.0@{DIGEST}"),
        ("docker.io/library/busybox:latest", "busybox"),
        ("busybox:1", "docker.io/library/busybox:1"),
        ("docker.io/someone/app:1", "index.docker.io/someone/app:1"),
        ("localhost:5000/app:1", "localhost:5000/app:1"),
    ],
)
def test_identities_that_match(case: Case, signed: str, asked: str) -> None:
    case.trust(prefix=None)
    assert case.check(case.world.skopeo(signed), asked).trusted_for in ("", "registry.example.com")


@pytest.mark.parametrize(
    ("signed", "asked"),
    [
        ("registry.example.com/app:1.0", "registry.example.com/app:1.1"),
        ("registry.example.com/app:1.0", "registry.example.com/app"),
        ("registry.example.com/app:1.0", "registry.example.com/app2:1.0"),
        ("registry.example.com/app:1.0", "registry.example.com:443/app:1.0"),
        ("registry.example.com/app:1.0", f"registry.example.com/other@{DIGEST}"),
        ("registry.example.com/app", "registry.example.com/app:latest"),
        (f"registry.example.com/app@{DIGEST}", "registry.example.com/app:1.0"),
        ("example.com/busybox:1", "busybox:1"),
    ],
)
def test_identities_that_do_not(case: Case, signed: str, asked: str) -> None:
    """`skopeo standalone-sign` completes a reference, so that gpg makes these."""
    data = json.dumps(critical(identity={"docker-reference": signed})).encode()
    error = refused(OtherIdentity, "is a good signature of this image as", case, case.world.sign(data), reference=asked)
    assert "ask the signer" in error.hint


def test_another_image(case: Case) -> None:
    refused(
        OtherImage, f"is a good signature of another image: {DIGEST}, not {OTHER}", case, case.world.good, digest=OTHER
    )


def test_the_index_an_image_was_chosen_from(case: Case) -> None:
    assert case.check(case.world.good, digest=OTHER, index=DIGEST).fingerprint == case.world.alice
    refused(OtherImage, "another image", case, case.world.good, digest=OTHER, index=f"sha256:{'2' * 64}")


# Who signed


def test_an_unknown_key(case: Case) -> None:
    stranger = case.world.who.key("Stranger")
    error = refused(verify.UnknownKey, "which is not in the keystore", case, case.world.skopeo(REFERENCE, stranger))
    assert f"rkpy trust --prefix={NAME} KEYFILE" in error.hint


def test_a_key_for_another_prefix(case: Case) -> None:
    other = case.world.who.key("Other")
    path = case.trust(other, "registry.example.org")
    error = refused(verify.KeyUntrusted, f"{NAME} is signed by Other", case, case.world.skopeo(REFERENCE, other))
    assert f"rkpy trust --prefix={NAME} {path}" in error.hint


def test_a_revoked_key(case: Case) -> None:
    key = case.world.who.key("Revoked")
    blob = case.world.skopeo(REFERENCE, key)
    case.world.who.revoke(key)
    case.trust(key)
    refused(verify.KeyRevoked, "the key of Revoked has been revoked", case, blob)


def test_an_expired_key(case: Case) -> None:
    key = case.world.who.key("Expired", at="20200101T000000", expires="1y")
    data = json.dumps(statement()).encode()
    case.trust(key)
    assert case.check(case.world.sign(data, key=key, at="20200601T000000")).fingerprint == key
    case.world.who.run("--quick-set-expire", key, "0", at="20200102T000000")  # which the keystore never heard of
    late = case.world.sign(data, key=key, at="20210701T000000")
    refused(verify.KeyExpired, "the key of Expired had expired when it signed", case, late)


def test_an_expired_signature(case: Case) -> None:
    key = case.world.who.key("Shortly", at="20200101T000000")
    case.trust(key)
    data = json.dumps(statement()).encode()
    blob = case.world.sign(data, "--default-sig-expire", "1d", key=key, at="20200102T000000")
    refused(verify.SignatureExpired, "the signature by Shortly has expired", case, blob)


def test_a_weak_digest(case: Case) -> None:
    options = ("--digest-algo", "SHA1", "--allow-weak-digest-algos")
    refused(verify.WeakDigest, "uses SHA-1", case, case.world.sign(json.dumps(statement()).encode(), *options))


def test_a_masked_key(case: Case) -> None:
    path = case.trust()
    system = path.replace("/etc/", "/usr/")
    os.makedirs(os.path.dirname(system))
    os.rename(path, system)
    assert case.check(case.world.good).fingerprint == case.world.alice
    with open(path, "wb"):
        pass
    refused(verify.KeyMasked, "masks", case, case.world.good)


# What is not a signature


def packet(tag: int, body: bytes) -> bytes:
    return bytes([0xC0 | tag, 0xFF]) + len(body).to_bytes(4, "big") + body


def parts(blob: bytes) -> tuple[bytes, bytes, bytes]:
    """One-pass signature, literal data and signature of what skopeo made, each as it is."""
    inner = zlib.decompress(blob[2:], -15)
    one_pass, literal, signature = openpgp._message_packets(inner)
    return one_pass.raw, literal.raw, signature.raw


def test_other_data_under_the_same_signature(case: Case) -> None:
    one_pass, literal, signature = parts(case.world.good)
    assert case.check(one_pass + literal + signature).fingerprint == case.world.alice
    forged = packet(11, b"b\0\0\0\0\0" + json.dumps(statement()).encode())
    refused(verify.BadSignature, f"is not what {ALICE} signed", case, one_pass + forged + signature)


def test_no_packet_beside_the_three(case: Case) -> None:
    """Data that is not covered by the signature, before or after what is, is how verifiers have been fooled."""
    one_pass, literal, signature = parts(case.world.good)
    forged = packet(11, b"b\0\0\0\0\0" + json.dumps(critical(identity={"docker-reference": "evil"})).encode())
    for arranged in (
        forged + one_pass + literal + signature,
        one_pass + literal + signature + forged,
        one_pass + forged + literal + signature,
        one_pass + literal + signature + packet(8, b"\x00" + forged),
        signature + literal,
        case.world.good + case.world.good,
    ):
        refused(verify.SignatureUnreadable, "is not a signed message", case, arranged)


def test_two_signatures_in_one(case: Case) -> None:
    second = case.world.who.key("Second")
    case.trust(second)
    blob = case.world.sign(json.dumps(statement()).encode(), "--local-user", second)
    refused(verify.SignatureUnreadable, "it has 2 signatures", case, blob)


def test_other_things_gpg_makes(case: Case) -> None:
    data, world = json.dumps(statement()).encode(), case.world
    for blob, message in [
        (world.sign(data, command="--detach-sign"), "it contains a detached signature"),
        (world.sign(data, "--armor", command="--detach-sign"), "it contains a PGP signature"),
        (world.sign(data, command="--clear-sign"), "it contains a clear-signed message"),
        (world.sign(data, "--textmode"), "its data is not in binary mode"),
        (world.who.run("--store", data=data), "it contains data without a signature"),
        (world.who.run("--symmetric", "--passphrase", "x", data=data), "it contains an encrypted message"),
        (world.who.export(world.alice), "it contains a PGP public key block"),
        (world.who.export(world.alice, armor=False), "it contains a public key"),
    ]:
        refused(verify.SignatureUnreadable, message, case, blob)


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"", "it is empty"),
        (b"<html>404</html>", "it is not OpenPGP data"),
        (b"\xa3", "compressed in a way"),
        (b"\xa3\x01", "it is cut short"),
        (b"\xa3\x01\x03\x00", "it is empty"),
        (b"\xa3\x01\xff\xff", "it is damaged"),
        (b"\xa3\x09", "compressed in a way"),
        (b"\xcb\xe0", "it is cut short"),
        (b"\xcb\xe9b", "it is cut short"),
        (b"x" * 70_000, "is larger than 64 KiB"),
        (b"\xa3\x02" + zlib.compress(bytes(1 << 24)), "it is larger than 64 KiB"),
        (b"\xa3\x03" + bz2.compress(bytes(1 << 24)), "it is larger than 64 KiB"),
    ],
)
def test_bytes_that_are_no_signature(case: Case, blob: bytes, message: str) -> None:
    refused(verify.SignatureUnreadable, message, case, blob)


# What is signed


@pytest.mark.parametrize(
    ("signed", "message"),
    [
        (statement(more=1), 'the document has the unknown member "more"'),
        ({"critical": {}}, 'the document has no member "optional"'),
        ([], "the document must be an object, not a list"),
        (statement(critical=[]), "critical must be an object"),
        (statement(optional=None), "optional must be an object"),
        (statement(optional={"timestamp": 1.5}), "optional.timestamp must be a whole number"),
        (statement(optional={"timestamp": 1 << 63}), "optional.timestamp must be a whole number"),
        (statement(optional={"timestamp": True}), "optional.timestamp must be a whole number"),
        (statement(optional={"creator": 1}), "optional.creator must be a string"),
        (critical(only_on="tuesdays"), 'critical has the unknown member "only_on"'),
        (critical(type="cosign container image signature"), 'its type is "cosign container image signature"'),
        (critical(type=1), "type: must be a string"),
        (critical(image={}), 'critical.image has no member "docker-manifest-digest"'),
        (critical(image={"docker-manifest-digest": DIGEST, "size": 1}), 'critical.image has the unknown member "size"'),
        (critical(image={"docker-manifest-digest": "md5:123"}), "is not a digest"),
        (critical(image={"docker-manifest-digest": None}), "docker-manifest-digest: is missing"),
        (critical(identity={"docker-reference": "registry.example.com/UPPER"}), "is not a repository's name"),
        (critical(identity={"docker-reference": "docker://registry.example.com/app:1.0"}), "names no image"),
        (critical(identity={"docker-reference": ["a"]}), "docker-reference: must be a string, not a list"),
        (critical(identity=None), "critical.identity must be an object, not null"),
    ],
)
def test_statements_that_are_refused(case: Case, signed: Any, message: str) -> None:
    refused(PayloadInvalid, message, case, case.world.sign(json.dumps(signed).encode()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"critical": {}, "critical": {}, "optional": {}}', 'the key "critical" twice'),
        (json.dumps(statement()).replace('"type":', '"type": "x", "type":'), 'the key "type" twice'),
        (
            json.dumps(statement()).replace('"creator":', '"a": {"b": [{"c": 1, "c": 2}]}, "creator":'),
            'the key "c" twice',
        ),
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ("\ufeff{}", "is not JSON"),
        ("[" * 30_000, "is nested too deeply"),
    ],
)
def test_json_that_is_refused(case: Case, text: str, message: str) -> None:
    refused(PayloadInvalid, message, case, case.world.sign(text.encode()))


def test_nothing_is_read_before_it_is_verified(case: Case) -> None:
    """A bad statement by a stranger is reported as a stranger's, not as bad."""
    stranger = case.world.who.key("Stranger again")
    refused(verify.UnknownKey, "not in the keystore", case, case.world.sign(b"{", key=stranger))


def test_what_is_shown_cannot_play_with_the_terminal(case: Case) -> None:
    data = json.dumps(statement(**{"\x1b[2J": 1})).encode()
    error = refused(PayloadInvalid, "unknown member", case, case.world.sign(data))
    assert "\x1b" not in str(error)


# Anything at all


@given(st.binary(max_size=400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_arbitrary_bytes(case: Case, blob: bytes) -> None:
    with pytest.raises(TrustError):
        case.check(blob)


@given(st.lists(st.tuples(st.integers(0, 63), st.binary(max_size=60)), max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_arbitrary_packets(case: Case, packets: list[tuple[int, bytes]]) -> None:
    with pytest.raises(TrustError):
        case.check(b"".join(packet(tag, body) for tag, body in packets))


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
def test_flipped_bits(case: Case, data: st.DataObject) -> None:
    """Whatever still verifies says the same as before: it can only be a change in what is not signed, as file dates."""
    blob = bytearray(b"".join(parts(case.world.good)))
    blob[data.draw(st.integers(0, len(blob) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert case.check(bytes(blob)).fingerprint == case.world.alice
    except TrustError:
        pass


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["critical", "optional", "type", "image", "identity", "docker-reference"]),
                inner,
                max_size=6,
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_arbitrary_statements(data: bytes) -> None:
    with pytest.raises(PayloadInvalid):
        simplesigning.payload(data, simplesigning.TYPE, "x")


# Lookaside stores


def test_fetching_until_there_is_no_more() -> None:
    asked = []

    def read(url: str) -> bytes | None:
        asked.append(url)
        return b"blob" if len(asked) < 3 else None

    found = list(simplesigning.fetch("https://sigs.example.com/store/", DIGEST, "team/app", read))
    base = f"https://sigs.example.com/store/team/app@sha256={DIGEST[7:]}/signature-"
    assert found == [(f"{base}1", b"blob"), (f"{base}2", b"blob")]
    assert asked == [f"{base}{number}" for number in (1, 2, 3)]


def test_an_endless_store() -> None:
    found = list(simplesigning.fetch("https://sigs.example.com", DIGEST, "app", lambda url: b"x"))
    assert len(found) == simplesigning.MAX_SIGNATURES
