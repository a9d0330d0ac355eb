"""Whether an image of a registry may be used: where its signatures are, and what is said when none is good."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from aci.oci_config import Name
from aci.store import Verification
from common.errors import ConfigError, RkpyError, TrustError
from stage0 import cosign, docker_reference, image_signatures, simplesigning, verify
from stage0.config import Config
from stage0.docker_reference import DockerReference
from stage0.image_signatures import Image, Source, Unavailable, Unsigned
from stage0.keystore import Keystore
from tests.gpg import Signer, signer
from tests.openssl import KeyPair, layer, manifest, payload
from tests.servers import free_port

NAME = "registry.example.com/team/app"
REFERENCE = docker_reference.parse(f"{NAME}:1.0")
MANIFEST = b'{"schemaVersion":2}'
DIGEST = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"
INDEX = f"sha256:{'c' * 64}"


class Failure(RkpyError):
    """What a client raises."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}", hint="do something")
        self.status = status


class Case:
    """A registry that is a dictionary, a signature store that is a directory, and a keystore."""

    def __init__(self, directory: str, who: Signer, alice: str) -> None:
        self.directory, self.who, self.alice = directory, who, alice
        self.config = Config(local_config=f"{directory}/etc", system_config=f"{directory}/usr")
        self.keystore = Keystore(self.config.local_config, self.config.system_config)
        self.key = KeyPair(directory)
        self.manifests: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.urls: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.configure(f"file://{directory}/store")

    def configure(self, url: str) -> None:
        os.makedirs(f"{self.directory}/etc/registries.d", exist_ok=True)
        with open(f"{self.directory}/etc/registries.d/a.yaml", "w", encoding="utf-8") as file:
            file.write(f"docker: {{registry.example.com: {{lookaside: '{url}'}}}}")

    def attach(self, *signed: tuple[bytes, bytes], digest: str = DIGEST) -> None:
        """What `cosign sign` leaves in the registry."""
        self.manifests[cosign.tag(digest)] = manifest(*(layer(data, signature) for data, signature in signed))
        self.blobs |= {f"sha256:{hashlib.sha256(data).hexdigest()}": data for data, _ in signed}

    def cosigned(self, reference: str = NAME, digest: str = DIGEST, key: KeyPair | None = None) -> tuple[bytes, bytes]:
        data = payload(digest, reference)
        return data, (key or self.key).sign(data)

    def skopeo(self, key: str = "", reference: str = str(REFERENCE)) -> bytes:
        path = f"{self.directory}/manifest.json"
        with open(path, "wb") as file:
            file.write(MANIFEST)
        command = ["skopeo", "standalone-sign", path, reference, (key or self.alice).upper(), "--output", f"{path}.sig"]
        environment = {**os.environ, "GNUPGHOME": self.who.home}
        subprocess.run(command, env=environment, check=True, capture_output=True)
        with open(f"{path}.sig", "rb") as file:
            return file.read()

    def put(self, *blobs: bytes, digest: str = DIGEST) -> None:
        """What podman and skopeo write into a store, in a directory whose name they make of the digest."""
        directory = f"{self.directory}/store/team/app@sha256={digest[7:]}"
        os.makedirs(directory)
        for number, blob in enumerate(blobs, 1):
            with open(f"{directory}/signature-{number}", "wb") as file:
                file.write(blob)

    def trust(self) -> None:
        self.keystore.add(self.who.export(self.alice), "registry.example.com")
        self.keystore.add_cosign(self.key.pem, NAME)

    def source(self) -> Source:
        def read(url: str, limit: int) -> bytes | None:
            self.asked.append(url)
            return self.urls.get(url)

        def blob(digest: str, limit: int) -> bytes:
            if digest not in self.blobs:
                raise Failure(404)
            return self.blobs[digest]

        return Source(self.manifests.get, blob, read)

    def authorize(self, index: str = "") -> Verification:
        image = Image(REFERENCE, NAME, DIGEST, index)
        return image_signatures.authorize(self.config, self.keystore, image, self.source())

    def refused(self, error: type[TrustError], message: str) -> TrustError:
        with pytest.raises(TrustError) as caught:
            self.authorize()
        assert type(caught.value) is error
        assert message in caught.value.message
        assert caught.value.hint and "\n" not in str(caught.value)
        return caught.value


@pytest.fixture(scope="module")
def who() -> Iterator[Signer]:
    with signer() as somebody:
        yield somebody


@pytest.fixture(scope="module")
def alice(who: Signer) -> str:
    return who.key("Alice <alice@example.com>")


@pytest.fixture
def case(tmp_path: os.PathLike[str], who: Signer, alice: str) -> Case:
    return Case(os.fspath(tmp_path), who, alice)


def test_an_unsigned_image(case: Case) -> None:
    case.trust()
    error = case.refused(Unsigned, f"{NAME}:1.0 is not signed")
    assert f"{NAME}:sha256-{DIGEST[7:]}.sig" in error.message and f"file://{case.directory}/store" in error.message
    assert f"cosign sign --key cosign.key {NAME}@{DIGEST}" in error.hint
    assert f"rkpy trust --prefix={NAME} cosign.pub" in error.hint
    assert "--insecure-options=image" in error.hint


def test_cosign_beside_the_image(case: Case) -> None:
    case.trust()
    case.attach(case.cosigned())
    assert case.authorize() == Verification(case.key.fingerprint, "cosign key (ECDSA P-256)", NAME, 0)


def test_simple_signing_in_a_directory(case: Case) -> None:
    case.trust()
    case.put(case.skopeo())
    found = case.authorize()
    assert (found.fingerprint, found.trusted_for) == (case.alice, "registry.example.com")


def test_simple_signing_on_a_server(case: Case) -> None:
    case.trust()
    case.configure("https://sigs.example.com/store")
    base = f"https://sigs.example.com/store/team/app@sha256={DIGEST[7:]}/signature-"
    case.urls = {f"{base}1": b"garbage", f"{base}2": case.skopeo()}
    assert case.authorize().fingerprint == case.alice
    assert case.asked == [f"{base}1", f"{base}2"], "and no more than is needed"


def test_an_index_may_be_what_is_signed(case: Case) -> None:
    case.trust()
    case.attach(case.cosigned(digest=INDEX), digest=INDEX)
    case.refused(Unsigned, "is not signed")
    assert case.authorize(INDEX).fingerprint == case.key.fingerprint


def test_one_good_signature_is_enough(case: Case) -> None:
    case.trust()
    stranger = KeyPair(case.directory, name="stranger")
    case.attach(case.cosigned(key=stranger), case.cosigned(f"{NAME}:2.0"), (b"{}", b"x"), case.cosigned())
    assert case.authorize().fingerprint == case.key.fingerprint


def test_cosign_by_a_stranger_and_simple_signing_by_alice(case: Case) -> None:
    case.trust()
    case.attach(case.cosigned(key=KeyPair(case.directory, name="stranger")))
    case.put(b"garbage", case.skopeo())
    assert case.authorize().fingerprint == case.alice


def test_the_most_telling_refusal(case: Case) -> None:
    """Each further signature is closer to a good one than all before it."""
    case.put(b"garbage", case.skopeo(case.who.key("Stranger")))
    case.refused(verify.SignatureUnreadable, "signature-1 is not an OpenPGP message")
    case.keystore.add(case.who.export(case.alice), "registry.example.org")
    case.attach(case.cosigned())
    case.refused(verify.UnknownKey, f"{cosign.tag(DIGEST)} was not made by any key that is trusted for {NAME}")
    case.keystore.add_cosign(case.key.pem, "example.org")
    case.refused(verify.KeyUntrusted, f"{NAME} is signed by cosign key")
    case.keystore.add_cosign(case.key.pem, NAME)
    case.attach(case.cosigned(f"{NAME}:2.0"))
    case.refused(simplesigning.OtherIdentity, f"is a good signature of this image as {NAME}:2.0, not as {NAME}:1.0")
    case.attach(case.cosigned(f"{NAME}:2.0"), case.cosigned(digest=INDEX))
    case.refused(simplesigning.OtherImage, "is a good signature of another image")


def test_a_blob_that_is_missing(case: Case) -> None:
    case.trust()
    case.attach(case.cosigned())
    case.blobs.clear()
    case.refused(Unavailable, "status 404")


@pytest.mark.parametrize("status", [0, 401, 500])
def test_a_registry_that_does_not_answer(case: Case, status: int) -> None:
    """That there is no signature must not be concluded from an error."""

    def manifest(tag: str) -> bytes | None:
        raise Failure(status)

    image = Image(REFERENCE, NAME, DIGEST)
    source = case.source()._replace(manifest=manifest)
    with pytest.raises(Unavailable, match=f"get signatures of {NAME}:1.0: status {status}"):
        image_signatures.authorize(case.config, case.keystore, image, source)
    case.trust()
    case.put(case.skopeo())
    assert image_signatures.authorize(case.config, case.keystore, image, source).fingerprint == case.alice


def test_a_store_that_cannot_be_read(case: Case) -> None:
    case.trust()
    case.put(b"")
    path = f"{case.directory}/store/team/app@sha256={DIGEST[7:]}/signature-1"
    os.unlink(path)
    os.mkdir(path)
    case.refused(TrustError, f"open {path}: is a directory")


def test_configuration_that_cannot_be_read(case: Case) -> None:
    case.configure("nonsense")
    with pytest.raises(ConfigError, match="is not a URL of signatures"):
        case.authorize()


# With clients as `registry` and `http` have them


class Document(NamedTuple):
    data: bytes


class Resolved(NamedTuple):
    reference: DockerReference
    name: Name
    digest: str
    manifest_digest: str
    endpoint: str


class Client:
    def __init__(self, case: Case, status: int = 404) -> None:
        self.case, self.status = case, status

    def get_manifest(self, place: str, wanted: str) -> Document:
        assert place == "mirror.example.com"
        if wanted not in self.case.manifests:
            raise Failure(self.status)
        return Document(self.case.manifests[wanted])

    def get_blob(self, place: str, digest: str, *, limit: int) -> bytes:
        assert place == "mirror.example.com"
        return self.case.blobs[digest]

    def content(self, url: str, *, what: str, limit: int) -> bytes:
        if url not in self.case.urls:
            raise Failure(self.status)
        return self.case.urls[url]


def resolved(digest: str = DIGEST) -> Resolved:
    return Resolved(REFERENCE, Name(NAME, "1.0", str(REFERENCE)), digest, DIGEST, "mirror.example.com")


def test_through_the_clients(case: Case) -> None:
    case.trust()
    case.configure("https://sigs.example.com")
    arguments = case.config, case.keystore, Client(case)
    with pytest.raises(Unsigned):
        image_signatures.authorize_registry_image(*arguments, resolved(), Client(case))
    case.urls[f"https://sigs.example.com/team/app@sha256={DIGEST[7:]}/signature-1"] = case.skopeo()
    found = image_signatures.authorize_registry_image(*arguments, resolved(INDEX), Client(case))
    assert found.fingerprint == case.alice
    case.attach(case.cosigned())
    found = image_signatures.authorize_registry_image(*arguments, resolved(), Client(case))
    assert found.fingerprint == case.key.fingerprint


def test_clients_that_fail(case: Case) -> None:
    case.configure("https://sigs.example.com")
    with pytest.raises(Unavailable, match="status 503"):
        image_signatures.authorize_registry_image(
            case.config, case.keystore, Client(case, 503), resolved(), Client(case, 503)
        )


# With a real registry, and what skopeo leaves in it and in its store


@contextlib.contextmanager
def registry(directory: str) -> Iterator[str]:
    """Debian's docker-registry on a free port of the loopback, without TLS."""
    host = f"localhost:{free_port()}"
    os.mkdir(f"{directory}/registry")
    configuration = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": f"{directory}/registry"}},
        "http": {"addr": host.replace("localhost", "127.0.0.1")},
    }
    with open(f"{directory}/registry.yml", "w", encoding="utf-8") as file:
        json.dump(configuration, file)
    with open(f"{directory}/registry.log", "wb") as log:
        server = subprocess.Popen(["docker-registry", "serve", file.name], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while get(f"http://{host}/v2/") is None:
            assert server.poll() is None and time.monotonic() < deadline, "the registry did not start"
            time.sleep(0.05)
        yield host
    finally:
        server.terminate()
        server.wait()


def get(url: str) -> bytes | None:
    request = urllib.request.Request(url, headers={"Accept": "application/vnd.oci.image.manifest.v1+json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        assert error.code == 404
    except urllib.error.URLError as error:
        assert isinstance(error.reason, ConnectionRefusedError)
    return None


def upload(host: str, repository: str, data: bytes) -> None:
    """A blob, as cosign uploads its payloads."""
    start = urllib.request.Request(f"http://{host}/v2/{repository}/blobs/uploads/", method="POST", data=b"")
    with urllib.request.urlopen(start) as answer:
        place = answer.headers["Location"]
    put(f"{place}&digest=sha256:{hashlib.sha256(data).hexdigest()}", data, "application/octet-stream")


def put(url: str, data: bytes, kind: str) -> None:
    headers = {"Content-Type": kind}
    with urllib.request.urlopen(urllib.request.Request(url, method="PUT", data=data, headers=headers)) as answer:
        assert answer.status == 201


def layout(directory: str) -> str:
    """An image of one layer, as an OCI layout; return the digest of its manifest."""
    os.makedirs(f"{directory}/blobs/sha256")

    def blob(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        with open(f"{directory}/blobs/sha256/{digest}", "wb") as file:
            file.write(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    tar = bytes(10240)
    diff_id = f"sha256:{hashlib.sha256(tar).hexdigest()}"
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]}}
    described = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), "config.v1+json"),
        "layers": [blob(gzip.compress(tar), "layer.v1.tar+gzip")],
    }
    listed = blob(json.dumps(described).encode(), "manifest.v1+json")
    for name, value in {
        "index.json": {"schemaVersion": 2, "manifests": [listed]},
        "oci-layout": {"imageLayoutVersion": "1.0.0"},
    }.items():
        with open(f"{directory}/{name}", "w", encoding="utf-8") as file:
            json.dump(value, file)
    return str(listed["digest"])


def test_what_skopeo_copies_and_cosign_attaches(case: Case) -> None:
    digest = layout(f"{case.directory}/layout")
    with registry(case.directory) as host:
        folder = f"{case.directory}/etc/registries.d"
        with open(f"{folder}/a.yaml", "w", encoding="utf-8") as file:
            file.write(f"docker: {{'{host}': {{lookaside: 'file://{case.directory}/store'}}}}")
        subprocess.run(
            ["skopeo", "--insecure-policy", "--registries.d", folder, "copy", "--dest-tls-verify=false",
             "--sign-by", case.alice.upper(), f"oci:{case.directory}/layout", f"docker://{host}/team/app:1.0"],
            env={**os.environ, "GNUPGHOME": case.who.home}, check=True, capture_output=True,
        )  # fmt: skip
        base = f"http://{host}/v2/team/app"

        def blob(wanted: str, limit: int) -> bytes:
            return get(f"{base}/blobs/{wanted}") or b""

        source = Source(lambda tag: get(f"{base}/manifests/{tag}"), blob, lambda url, limit: None)
        name = f"{host.replace(':', '_')}/team/app"
        image = Image(docker_reference.parse(f"{host}/team/app:1.0"), name, digest)

        with pytest.raises(verify.UnknownKey):
            image_signatures.authorize(case.config, case.keystore, image, source)
        case.keystore.add(case.who.export(case.alice), None)
        assert image_signatures.authorize(case.config, case.keystore, image, source).fingerprint == case.alice
        later = image._replace(reference=docker_reference.parse(f"{host}/team/app:2.0"))
        with pytest.raises(simplesigning.OtherIdentity):
            image_signatures.authorize(case.config, case.keystore, later, source)

        data, signature = case.cosigned(f"{host}/team/app", digest)
        upload(host, "team/app", data)
        upload(host, "team/app", b"{}")
        listed = json.loads(manifest(layer(data, signature)))
        listed["config"]["digest"] = f"sha256:{hashlib.sha256(b'{}').hexdigest()}"
        kind = "application/vnd.oci.image.manifest.v1+json"
        put(f"{base}/manifests/{cosign.tag(digest)}", json.dumps(listed).encode(), kind)
        case.keystore.add_cosign(case.key.pem, name)
        assert image_signatures.authorize(case.config, case.keystore, image, source).fingerprint == case.key.fingerprint
