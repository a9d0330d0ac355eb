"""cosign's signatures: every kind of key, and each way a signature can be refused. openssl signs as cosign does."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aci.store import Verification
from common.errors import TrustError
from stage0 import cosign, docker_reference, spki, verify
from stage0.keystore import Keystore
from stage0.simplesigning import OtherIdentity, OtherImage, PayloadInvalid
from tests.openssl import KeyPair, layer, manifest, payload

NAME = "registry.example.com/app"
REFERENCE = f"{NAME}:1.0"
DIGEST, OTHER = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
GOOD = payload(DIGEST, NAME)


class Case:
    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.keystore = Keystore(f"{directory}/etc", f"{directory}/usr")
        self.key = KeyPair(directory)

    def trust(self, key: KeyPair | None = None, prefix: str | None = NAME) -> str:
        return self.keystore.add_cosign((key or self.key).pem, prefix)

    def check(self, signed: bytes, signature: bytes, reference: str = REFERENCE, digest: str = DIGEST) -> Verification:
        return cosign.verify(
            self.keystore,
            signed,
            signature,
            manifest_digest=digest,
            reference=docker_reference.parse(reference),
            name=NAME,
            origin="here",
        )


@pytest.fixture
def case(tmp_path: os.PathLike[str]) -> Case:
    return Case(os.fspath(tmp_path))


def refused(
    error: type[TrustError], message: str, case: Case, signed: bytes, signature: bytes | None = None, **asked: str
) -> TrustError:
    with pytest.raises(error) as caught:
        case.check(signed, case.key.sign(signed) if signature is None else signature, **asked)
    assert type(caught.value) is error
    assert message in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("algorithm", ["ECDSA P-256", "ECDSA P-384", "ECDSA P-521", "RSA 2048", "Ed25519"])
def test_every_kind_of_key(case: Case, algorithm: str) -> None:
    key = KeyPair(case.directory, algorithm, name="other")
    path = case.trust(key)
    assert path == f"{case.keystore.local}/prefix.d/{NAME}/{key.fingerprint}"
    found = case.check(GOOD, key.sign(GOOD))
    assert found == Verification(key.fingerprint, f"cosign key ({algorithm})", NAME, 0)
    with pytest.raises(verify.UnknownKey):
        case.check(GOOD + b" ", key.sign(GOOD))


@pytest.mark.parametrize(
    ("algorithm", "digest", "good"),
    [
        ("ECDSA P-256", "sha384", False),
        ("ECDSA P-384", "sha384", True),
        ("ECDSA P-521", "sha512", True),
        ("ECDSA P-521", "sha1", False),
        ("RSA 2048", "sha1", False),
        ("RSA 2048", "sha512", False),
    ],
)
def test_digests(case: Case, algorithm: str, digest: str, good: bool) -> None:
    key = KeyPair(case.directory, algorithm, name="other")
    assert spki.made(spki.public_key(key.pem), key.sign(GOOD, digest=digest), GOOD) == good


@pytest.mark.parametrize(
    ("signed", "asked"),
    [
        (NAME, REFERENCE),
        (NAME, f"{NAME}@{DIGEST}"),
        (REFERENCE, REFERENCE),
        (REFERENCE, f"{NAME}@{DIGEST}"),
        (f"{NAME}@{DIGEST}", REFERENCE),
        ("index.docker.io/library/busybox", "busybox:1"),
    ],
)
def test_identities_that_match(case: Case, signed: str, asked: str) -> None:
    """cosign leaves out the tag, or writes the digest."""
    case.trust()
    found = payload(DIGEST, signed, timestamp=1700000000, who="me")
    assert case.check(found, case.key.sign(found), asked).signed_at == 1700000000


@pytest.mark.parametrize(
    ("signed", "asked"),
    [
        (f"{NAME}:2.0", REFERENCE),
        (f"{NAME}2", REFERENCE),
        ("registry.example.com", REFERENCE),
        ("registry.example.com/other", f"{NAME}@{DIGEST}"),
    ],
)
def test_identities_that_do_not(case: Case, signed: str, asked: str) -> None:
    case.trust()
    refused(OtherIdentity, "is a good signature of this image as", case, payload(DIGEST, signed), reference=asked)


def test_another_image(case: Case) -> None:
    case.trust()
    refused(OtherImage, f"another image: {DIGEST}, not {OTHER}", case, GOOD, digest=OTHER)


def test_an_unknown_key(case: Case) -> None:
    error = refused(verify.UnknownKey, f"here was not made by any key that is trusted for {NAME}", case, GOOD)
    assert f"rkpy trust --prefix={NAME} cosign.pub" in error.hint


def test_a_key_for_another_prefix(case: Case) -> None:
    path = case.trust(prefix="registry.example.com/apple")
    error = refused(verify.KeyUntrusted, f"{NAME} is signed by cosign key (ECDSA P-256)", case, GOOD)
    assert "it is trusted for registry.example.com/apple only" in error.hint
    assert f"rkpy trust --prefix={NAME} {path}" in error.hint


def test_the_longest_prefix_counts(case: Case) -> None:
    case.trust(prefix=None)
    assert case.check(GOOD, case.key.sign(GOOD)).trusted_for == ""
    case.trust(prefix="registry.example.com")
    assert case.check(GOOD, case.key.sign(GOOD)).trusted_for == "registry.example.com"


def test_a_masked_key(case: Case) -> None:
    path = case.trust()
    system = path.replace("/etc/", "/usr/")
    os.makedirs(os.path.dirname(system))
    os.rename(path, system)
    assert case.check(GOOD, case.key.sign(GOOD)).trusted_for == NAME
    (file,) = case.keystore.files()
    assert case.keystore.remove(file) == path
    refused(verify.KeyMasked, f"a key that {path} masks", case, GOOD)


@pytest.mark.parametrize("content", [b"garbage", b"-----BEGIN PUBLIC KEY-----\nMAAA\n-----END PUBLIC KEY-----\n"])
def test_a_broken_key_file_is_an_error_where_it_applies(case: Case, content: bytes) -> None:
    path = case.trust()
    broken = f"{os.path.dirname(path)}/{'0' * 64}"
    with open(broken, "wb") as file:
        file.write(content)
    refused(TrustError, f"trusted key {broken} is not a cosign public key", case, GOOD)
    assert case.keystore.trusted_for(NAME) == [], "and not for OpenPGP signatures"
    assert case.keystore.cosign_trusted_for("registry.example.com/other") == []


def test_a_key_file_under_another_name(case: Case) -> None:
    path = case.trust()
    os.rename(path, f"{path[:-1]}{'0' if path[-1] != '0' else '1'}")
    refused(TrustError, f"the key inside has the fingerprint {case.key.fingerprint}", case, GOOD)


@pytest.mark.parametrize(
    ("signed", "message"),
    [
        (b"{}", 'the document has no member "critical"'),
        (b"", "is not JSON"),
        (GOOD.replace(b"cosign container", b"atomic container"), 'its type is "atomic container image signature"'),
        (GOOD.replace(b'"type"', b'"extra":1,"type"'), 'critical has the unknown member "extra"'),
        (GOOD.replace(b'"type"', b'"type":"x","type"'), 'the key "type" twice'),
        (GOOD.replace(b"null", b"1"), "optional must be an object"),
        (b" " * 70_000, "larger than 64 KiB"),
    ],
)
def test_statements_that_are_refused(case: Case, signed: bytes, message: str) -> None:
    case.trust()
    refused(PayloadInvalid, message, case, signed)


# The manifest with the signatures


def found_in(manifest_bytes: bytes, *payloads: bytes) -> cosign.Attached:
    blobs = {f"sha256:{hashlib.sha256(data).hexdigest()}": data for data in payloads}
    return cosign.signatures(manifest_bytes, lambda digest, limit: blobs.get(digest, b"x" * len(GOOD)), "here")


def test_the_tag() -> None:
    assert cosign.tag(DIGEST) == f"sha256-{'a' * 64}.sig"


def test_signatures_beside_an_image() -> None:
    attestation = {"mediaType": "application/vnd.dsse.envelope.v1+json", "digest": DIGEST, "size": 3}
    listed = manifest(layer(GOOD, b"one"), attestation, layer(GOOD, b"two"))
    assert found_in(listed, GOOD) == ([(GOOD, b"one"), (GOOD, b"two")], [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": {}}, "has no readable annotation"),
        ({"annotations": None}, "has no readable annotation"),
        ({"annotations": {cosign.ANNOTATION: "no base64!"}}, "has no readable annotation"),
        ({"annotations": {cosign.ANNOTATION: "é"}}, "has no readable annotation"),
        ({"annotations": {cosign.ANNOTATION: ""}}, "has no readable annotation"),
        ({"annotations": {cosign.ANNOTATION: "A" * 10000}}, "has no readable annotation"),
        ({"annotations": {cosign.ANNOTATION: 1}}, "has no readable annotation"),
        ({"digest": OTHER}, "what the registry serves does not have its digest"),
        ({"size": 1}, "what the registry serves does not have its digest"),
        ({"size": 1 << 40}, "larger than 64 KiB"),
        ({"size": -1}, "no size"),
        ({"size": "1"}, "no size"),
        ({"digest": "../../etc"}, "has no digest"),
        ({"digest": None}, "has no digest"),
    ],
)
def test_one_bad_signature_does_not_spoil_the_next(change: dict[str, Any], message: str) -> None:
    found = found_in(manifest({**layer(GOOD, b"one"), **change}, layer(GOOD, b"two")), GOOD)
    assert found.signatures == [(GOOD, b"two")]
    (failure,) = found.failures
    assert isinstance(failure, verify.SignatureUnreadable)
    assert message in failure.message and failure.message.startswith("here (signature 1)")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"layers": {}}', b'{"layers": [], "layers": []}', b"[" * 10000, b" " * (2 << 20)]
)
def test_a_manifest_that_is_none(data: bytes) -> None:
    with pytest.raises(verify.SignatureUnreadable, match="here is not a manifest of cosign signatures"):
        found_in(data)


def test_more_signatures_than_are_looked_at() -> None:
    assert len(found_in(manifest(*[layer(GOOD, b"x")] * 1000), GOOD).signatures) == cosign.MAX_SIGNATURES


# Keys


@pytest.mark.parametrize("algorithm", ["RSA 1024", "ECDSA secp256k1", "Ed448"])
def test_keys_that_are_not_trusted(case: Case, algorithm: str) -> None:
    with pytest.raises(spki.UnusableKey, match=r"1024 bits|kind that is not supported"):
        spki.public_key(KeyPair(case.directory, algorithm, name="other").pem)


def test_files_that_hold_no_public_key(case: Case) -> None:
    pem = case.key.pem
    with open(case.key.secret, "rb") as file:
        secret = file.read()
    certificate = subprocess.run(
        ["openssl", "req", "-x509", "-key", case.key.secret, "-subj", "/CN=x"], check=True, capture_output=True
    ).stdout
    for data, error, message in [
        (secret, spki.SecretKey, "secret key"),
        (pem + secret, spki.SecretKey, "secret key"),
        (b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n", spki.SecretKey, "secret key"),
        (pem + pem, spki.UnusableKey, "2 keys"),
        (certificate, spki.UnusableKey, "a certificate, not a public key"),
        (pem + b"trust me", spki.UnusableKey, "more in it"),
        (b"trust me\n" + pem, spki.UnusableKey, "more in it"),
        (pem.replace(b"M", b"N"), spki.UnusableKey, "damaged|not supported"),
        (b"", spki.UnusableKey, "not PEM"),
        (pem + b"\n" * 20_000, spki.UnusableKey, "larger than 16 KiB"),
    ]:
        with pytest.raises(error, match=message) as caught:
            spki.public_key(data)
        assert type(caught.value) is error


# Anything at all


@given(st.binary(max_size=300), st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_arbitrary_bytes(case: Case, signed: bytes, signature: bytes) -> None:
    case.trust()
    with pytest.raises(TrustError):
        case.check(signed, signature)
    with pytest.raises(TrustError):
        case.check(GOOD, signature)


@pytest.mark.parametrize("algorithm", ["ECDSA P-521", "RSA 2048", "Ed25519"])
@given(signature=st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_arbitrary_signatures_for_other_keys(case: Case, algorithm: str, signature: bytes) -> None:
    if algorithm not in _KEYS:
        _KEYS[algorithm] = spki.public_key(KeyPair(case.directory, algorithm, name="other").pem)
    assert not spki.made(_KEYS[algorithm], signature, GOOD)


_KEYS: dict[str, spki.PublicKey] = {}


@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_keys(data: bytes, wrapped: bool) -> None:
    if wrapped:
        data = b"-----BEGIN PUBLIC KEY-----\n" + base64.encodebytes(data) + b"-----END PUBLIC KEY-----\n"
    with pytest.raises(spki.UnusableKey):
        spki.public_key(data)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(cosign.MEDIA_TYPE) | st.just(DIGEST),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["layers", "mediaType", "digest", "size", "annotations", cosign.ANNOTATION]),
            inner,
            max_size=6,
        )
    ),
)


@given(_JSON)
def test_arbitrary_manifests(value: Any) -> None:
    for data in (json.dumps(value), json.dumps({"layers": [value, {"mediaType": cosign.MEDIA_TYPE, "digest": value}]})):
        try:
            assert found_in(data.encode()).signatures == []
        except TrustError:
            pass
