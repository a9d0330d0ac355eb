"""Fetching from registries: Debian's docker-registry with TLS and passwords, and one that misbehaves."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aci.store import Store
from common.errors import TrustError
from stage0 import docker_reference, registry
from stage0.config import Config
from tests.host import registries
from tests.host.commands import Done, Rkpy
from tests.host.registries import PASSWORD, USER, Answer, Asked, Fake, Made, Real

BIG = os.urandom(300_000)


class Host:
    """A user's files and the command, as `podman login` and the administrator left them."""

    def __init__(self, directory: Path, ca: Path) -> None:
        self.rkpy = Rkpy(directory)
        self.directory = directory
        self.store = self.rkpy.data / "cas"
        self.environment = {
            "HOME": str(directory),
            "SSL_CERT_FILE": str(ca),
            "CONTAINERS_REGISTRIES_CONF": str(directory / "registries.conf"),
            "REGISTRY_AUTH_FILE": str(directory / "auth.json"),
        }
        self.configure("")

    def configure(self, text: str) -> None:
        (self.directory / "registries.conf").write_text(text)

    def login(self, host: str, user: str = USER, password: str = PASSWORD) -> None:
        auth = base64.b64encode(f"{user}:{password}".encode()).decode()
        (self.directory / "auth.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))

    def __call__(self, *words: str) -> Done:
        return self.rkpy("--insecure-options=image", *words, **self.environment)

    def fetch(self, reference: str, *flags: str) -> dict[str, Any]:
        """The record of the image, once fetched."""
        done = self("fetch", "--full", *flags, reference)
        assert done.status == 0, done
        record: dict[str, Any] = json.loads((self.store / "image" / f"{done.out.strip()}.json").read_text())
        return record

    def refused(self, reference: str) -> str:
        """The one line of a fetch that fails, and leaves nothing behind."""
        done = self("fetch", "--quiet", reference)
        assert done.status == 254, done
        assert done.err.count("\n") == 1, done
        assert not self.rkpy.images()
        assert not [*self.store.glob("blob/*/*"), *self.store.glob("layer/*")]
        return done.err

    def partials(self) -> list[Path]:
        return sorted(self.store.glob("tmp/*"))


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    need("docker-registry", "htpasswd", "skopeo", "openssl")
    with registries.real(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("openssl")
    return registries.certificate(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def host(tmp_path: Path, server: Real) -> Host:
    found = Host(tmp_path, server.ca)
    found.login(server.host)
    return found


@pytest.fixture
def fake(ca: Path) -> Iterator[Fake]:
    found = Fake(ca)
    yield found
    found.close()


@pytest.fixture
def guest(tmp_path: Path, ca: Path) -> Host:
    """A host without a login."""
    return Host(tmp_path, ca)


def names(record: dict[str, Any]) -> dict[str, str]:
    manifest = record["manifest"]
    return {"name": manifest["name"], **{label["name"]: label["value"] for label in manifest["labels"]}}


def read(host: Host, record: dict[str, Any], layer: int, path: str) -> bytes:
    content: bytes = (host.store / "layer" / record["layers"][layer] / path).read_bytes()
    return content


# docker-registry


@pytest.fixture(scope="module")
def pushed(server: Real, tmp_path_factory: pytest.TempPathFactory) -> Made:
    made = registries.image({"a": b"one", "big": BIG}, {"b": b"two"}, {"c": b"three"}, Cmd=["/b"])
    directory = tmp_path_factory.mktemp("layout") / "layout"
    source = made.layout(directory)
    server.push(source, "team/app:1.0")
    server.push(source, "team/docker:1.0", "--format=v2s2")
    server.push(source, "team/zstd:1.0", "--dest-compress", "--dest-compress-format=zstd")
    return made


def test_layers_arrive_and_the_image_is_called_after_its_registry(host: Host, server: Real, pushed: Made) -> None:
    record = host.fetch(f"docker://{server.host}/team/app:1.0")
    assert names(record)["name"] == f"{server.host.replace(':', '_')}/team/app"
    assert names(record)["version"] == "1.0"
    assert [read(host, record, at, name) for at, name in enumerate("abc")] == [b"one", b"two", b"three"]
    assert read(host, record, 0, "big") == BIG
    assert record["blobs"][0] == pushed.digest
    assert host.partials() == []


def test_an_image_that_is_up_to_date_takes_one_request(host: Host, server: Real, pushed: Made) -> None:
    first = host.fetch(f"docker://{server.host}/team/app:1.0")
    before = len(server.requests())
    assert host.fetch(f"docker://{server.host}/team/app:1.0")["id"] == first["id"]
    assert server.requests()[before:] == ["HEAD /v2/team/app/manifests/1.0 200"]


def test_a_digest_that_is_stored_takes_no_request(host: Host, server: Real, pushed: Made) -> None:
    reference = f"docker://{server.host}/team/app@{pushed.digest}"
    record = host.fetch(reference)
    assert names(record)["version"] == pushed.digest
    before = len(server.requests())
    host.fetch(reference)
    assert server.requests()[before:] == []


def test_a_digest_beside_a_tag_is_not_met_by_what_the_tag_was(guest: Host, fake: Fake) -> None:
    old, new = registries.image({"a": b"old"}), registries.image({"a": b"new"})
    fake.add(old)
    guest.fetch(f"docker://{fake.host}/app:1")
    fake.add(new)
    pinned = f"docker://{fake.host}/app:1@{new.digest}"
    done = guest("fetch", "--pull-policy=never", pinned)
    assert done.status == 254, done
    assert "is not in the store" in done.err
    assert read(guest, guest.fetch(pinned, "--pull-policy=new"), 0, "a") == b"new"
    asked = len(fake.asked)
    assert read(guest, guest.fetch(pinned, "--pull-policy=new"), 0, "a") == b"new"
    assert len(fake.asked) == asked


def test_a_tag_that_moved_is_fetched(host: Host, server: Real, pushed: Made, tmp_path: Path) -> None:
    for content in (b"old", b"new"):
        server.push(registries.image({"a": content}).layout(tmp_path / content.decode()), "team/moving:latest")
        assert read(host, host.fetch(f"docker://{server.host}/team/moving"), 0, "a") == content


def test_only_layers_the_store_lacks_are_downloaded(host: Host, server: Real, pushed: Made, tmp_path: Path) -> None:
    host.fetch(f"docker://{server.host}/team/app:1.0")
    other = registries.image({"a": b"one", "big": BIG}, {"b": b"two"}, {"c": b"other"})
    server.push(other.layout(tmp_path / "other"), "team/other:1.0")
    before = len(server.requests())
    record = host.fetch(f"docker://{server.host}/team/other:1.0")
    blobs = [line.split("/")[-1].split()[0] for line in server.requests()[before:] if "/blobs/" in line]
    config = json.loads(other.manifest)["config"]["digest"]
    assert sorted(blobs) == sorted([config, other.layers()[-1]])
    assert read(host, record, 2, "c") == b"other"


@pytest.mark.parametrize("repository", ["team/docker", "team/zstd"])
def test_dockers_media_types_and_zstd_are_read(host: Host, server: Real, pushed: Made, repository: str) -> None:
    record = host.fetch(f"docker://{server.host}/{repository}:1.0")
    assert [read(host, record, at, name) for at, name in enumerate("abc")] == [b"one", b"two", b"three"]


def test_the_image_for_this_platform_is_taken_from_an_index(host: Host, server: Real, tmp_path: Path) -> None:
    need("buildah")
    buildah = ["buildah", "--root", str(tmp_path / "root"), "--runroot", str(tmp_path / "run"), "--storage-driver=vfs"]

    def run(*words: str) -> str:
        return subprocess.run([*buildah, *words], check=True, capture_output=True, text=True).stdout.strip()

    run("manifest", "create", "all")
    for arch in ("arm64", "amd64", "s390x"):
        (tmp_path / "arch").write_text(arch)
        container = run("from", "--arch", arch, "scratch")
        run("add", container, str(tmp_path / "arch"), "/arch")
        run("config", "--arch", arch, container)
        run("manifest", "add", "--arch", arch, "all", run("commit", "--rm", container, f"localhost/{arch}"))
    access = ["--cert-dir", str(server.directory), "--creds", f"{USER}:{PASSWORD}"]
    run("manifest", "push", "--all", *access, "all", f"docker://{server.host}/team/index:1")
    record = host.fetch(f"docker://{server.host}/team/index:1")
    assert read(host, record, 0, "arch") == b"amd64"
    before = len(server.requests())
    host.fetch(f"docker://{server.host}/team/index:1")
    assert len(server.requests()) == before + 1


def test_without_a_login_the_error_says_where_one_was_looked_for(host: Host, server: Real, pushed: Made) -> None:
    (host.directory / "auth.json").unlink()
    said = host.refused(f"docker://{server.host}/team/app:1.0")
    assert f"{server.host}: team/app: no access to manifest 1.0 (401)" in said
    assert f"podman login {server.host}" in said
    assert f"{host.rkpy.config}/auth.d" in said
    assert str(host.directory / "auth.json") in said


def test_a_wrong_password_is_named_by_its_file(host: Host, server: Real, pushed: Made) -> None:
    host.login(server.host, password="secret")
    said = host.refused(f"docker://{server.host}/team/app:1.0")
    assert "(401)" in said
    assert f"login of {USER} in {host.directory}/auth.json" in said
    assert "secret" not in said


def test_rkts_own_logins_are_used(host: Host, server: Real, pushed: Made) -> None:
    (host.directory / "auth.json").unlink()
    folder = host.rkpy.config / "auth.d"
    folder.mkdir(parents=True)
    login = {"registries": [server.host], "credentials": {"user": USER, "password": PASSWORD}}
    (folder / "r.json").write_text(json.dumps({"rktKind": "dockerAuth", "rktVersion": "v1", **login}))
    host.fetch(f"docker://{server.host}/team/app:1.0")


@pytest.mark.parametrize(
    ("name", "says"),
    [("team/app:2", "manifest 2 is unknown (404)"), ("team/nothing:1", "team/nothing: manifest 1 is unknown (404)")],
)
def test_what_is_not_there_is_said_so(host: Host, server: Real, pushed: Made, name: str, says: str) -> None:
    said = host.refused(f"docker://{server.host}/{name}")
    assert says in said
    assert server.host in said


def test_a_certificate_of_certs_d_is_trusted(host: Host, server: Real, pushed: Made) -> None:
    del host.environment["SSL_CERT_FILE"]
    assert "certificate" in host.refused(f"docker://{server.host}/team/app:1.0")
    folder = host.directory / ".config/containers/certs.d" / server.host
    folder.mkdir(parents=True)
    shutil.copy(server.ca, folder / "ca.crt")
    host.fetch(f"docker://{server.host}/team/app:1.0")


def test_a_mirror_is_asked_first_and_the_name_stays(host: Host, server: Real, pushed: Made) -> None:
    host.configure(
        f"""
        [[registry]]
        prefix = "registry.example.com/people"
        location = "registry.invalid/people"
        [[registry.mirror]]
        location = "localhost:1/nobody"
        [[registry.mirror]]
        location = "{server.host}/team"
        """
    )
    record = host.fetch("docker://registry.example.com/people/app:1.0")
    assert names(record)["name"] == "registry.example.com/people/app"


# One that misbehaves


@pytest.fixture
def made(fake: Fake) -> Made:
    made = registries.image({"a": b"one", "big": BIG}, {"b": b"two"})
    fake.add(made)
    return made


def blob_rule(digest: str, *answers: Answer | None) -> Any:
    """A rule that gives these answers for a blob, one after the other, and then none."""
    left = list(answers)
    return lambda asked: left.pop(0) if left and asked.path.endswith(digest) and asked.method == "GET" else None


def test_anonymous_access(guest: Host, fake: Fake, made: Made) -> None:
    record = guest.fetch(f"docker://{fake.host}/app:1")
    assert read(guest, record, 0, "big") == BIG
    assert not any("Authorization" in asked.headers for asked in fake.asked)


def bearer(fake: Fake, token: str) -> Any:
    """A rule: the registry wants a token, which /token gives to whoever has the password (or to all)."""
    header = f'Bearer realm="{fake.scheme}://{fake.host}/token",service="reg",scope="repository:app:pull"'

    def rule(asked: Asked) -> Answer | None:
        if asked.path.startswith("/token"):
            return Answer(body=json.dumps({"token": token}).encode())
        if asked.headers.get("Authorization") == f"Bearer {token}":
            return None
        return Answer(401, {"WWW-Authenticate": header})

    return rule


def test_a_token_is_got_once_and_used_for_all(guest: Host, fake: Fake, made: Made) -> None:
    fake.rules.append(bearer(fake, "abc"))
    guest.fetch(f"docker://{fake.host}/app:1")
    tokens = [asked for asked in fake.asked if asked.path.startswith("/token")]
    assert len(tokens) == 1
    assert "scope=repository%3Aapp%3Apull" in tokens[0].path
    assert "service=reg" in tokens[0].path
    assert "Authorization" not in tokens[0].headers


def test_the_password_buys_the_token(guest: Host, fake: Fake, made: Made) -> None:
    guest.login(fake.host)
    fake.rules.append(bearer(fake, "abc"))
    guest.fetch(f"docker://{fake.host}/app:1")
    token = next(asked for asked in fake.asked if asked.path.startswith("/token"))
    assert base64.b64decode(token.headers["Authorization"].removeprefix("Basic ")).decode() == f"{USER}:{PASSWORD}"


def test_an_identity_token_is_not_sent_over_plain_http(guest: Host, fake: Fake, made: Made) -> None:
    guest.configure(f'[[registry]]\nlocation = "{fake.host}"\ninsecure = true\n')
    auths = {fake.host: {"auth": base64.b64encode(b"u:").decode(), "identitytoken": "refresh-me"}}
    (guest.directory / "auth.json").write_text(json.dumps({"auths": auths}))
    plain = Fake()
    try:
        fake.rules.append(lambda asked: Answer(401, {"WWW-Authenticate": f'Bearer realm="http://{plain.host}/token"'}))
        assert "over TLS only" in guest.refused(f"docker://{fake.host}/app:1")
        assert plain.asked == []
    finally:
        plain.close()


def test_an_identity_token_is_exchanged(guest: Host, fake: Fake, made: Made) -> None:
    auths = {fake.host: {"auth": base64.b64encode(b"u:").decode(), "identitytoken": "refresh-me"}}
    (guest.directory / "auth.json").write_text(json.dumps({"auths": auths}))
    fake.rules.append(bearer(fake, "abc"))
    guest.fetch(f"docker://{fake.host}/app:1")
    token = next(asked for asked in fake.asked if asked.path.startswith("/token"))
    assert token.method == "POST"
    assert b"refresh_token=refresh-me" in token.body


def test_a_token_that_is_not_enough_is_an_error(guest: Host, fake: Fake, made: Made) -> None:
    header = f'Bearer realm="{fake.scheme}://{fake.host}/token",service="reg"'
    fake.rules.append(lambda asked: Answer(body=b'{"token":"x"}') if asked.path.startswith("/token") else None)
    fake.rules.append(lambda asked: Answer(401, {"WWW-Authenticate": header}))
    assert "no access to manifest 1 (401)" in guest.refused(f"docker://{fake.host}/app:1")


def test_plain_http_needs_configuration_and_carries_no_password(tmp_path: Path, ca: Path) -> None:
    guest, plain = Host(tmp_path, ca), Fake()
    try:
        plain.add(registries.image({"a": b"one"}))
        guest.login(plain.host)
        assert "TLS" in guest.refused(f"docker://{plain.host}/app:1")
        assert plain.paths() == []
        guest.configure(f'[[registry]]\nlocation = "{plain.host}"\ninsecure = true\n')
        guest.fetch(f"docker://{plain.host}/app:1")
        plain.rules.append(bearer(plain, "abc"))
        assert "over TLS only" in guest("fetch", f"docker://{plain.host}/app:2").err
        assert not any("Authorization" in asked.headers for asked in plain.asked)
        assert not [path for path in plain.paths() if path.startswith("/token")]
    finally:
        plain.close()


def test_a_blocked_registry_is_not_asked(guest: Host, fake: Fake, made: Made) -> None:
    guest.configure(f'[[registry]]\nlocation = "{fake.host}"\nblocked = true\n')
    assert "is blocked" in guest.refused(f"docker://{fake.host}/app:1")
    assert fake.asked == []


def test_a_layer_with_another_digest_is_refused(guest: Host, fake: Fake, made: Made) -> None:
    digest = made.layers()[0]
    fake.blobs[digest] = fake.blobs[digest][:-9] + b"different"
    said = guest.refused(f"docker://{fake.host}/app:1")
    assert digest[:19] in said
    assert "does not have that digest" in said
    assert not [path for path in guest.partials() if digest[7:] in path.name]


@pytest.mark.parametrize("change", [lambda data: data + b"more", lambda data: data[:-1]])
def test_a_layer_of_another_size_is_refused(guest: Host, fake: Fake, made: Made, change: Any) -> None:
    digest = made.layers()[0]
    fake.blobs[digest] = change(fake.blobs[digest])
    assert digest[:19] in guest.refused(f"docker://{fake.host}/app:1")


def test_a_layer_without_end_is_given_up(guest: Host, fake: Fake, made: Made) -> None:
    digest = made.layers()[1]
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    fake.rules.append(blob_rule(digest, *[Answer(200, {"Transfer-Encoding": "chunked"}, chunk * 64)] * 9))
    said = guest.refused(f"docker://{fake.host}/app:1")
    assert digest[:19] in said


def test_a_manifest_that_is_another_than_its_digest_is_refused(guest: Host, fake: Fake, made: Made) -> None:
    other = registries.image({"a": b"evil"})
    fake.tags[made.digest] = (registries.MANIFEST, other.manifest)
    assert "does not have that digest" in guest.refused(f"docker://{fake.host}/app@{made.digest}")


def test_a_broken_download_is_gone_on_with(guest: Host, fake: Fake, made: Made) -> None:
    digest = made.layers()[0]
    data = fake.blobs[digest]
    fake.rules.append(blob_rule(digest, Answer(200, {"Content-Length": str(len(data))}, data, cut=200_000)))
    record = guest.fetch(f"docker://{fake.host}/app:1")
    assert read(guest, record, 0, "big") == BIG
    asked = [asked.headers.get("Range") for asked in fake.asked if asked.path.endswith(digest)]
    assert asked[0] is None
    assert asked[1] is not None
    assert 0 < int(asked[1].removeprefix("bytes=").removesuffix("-")) <= 200_000


def interrupted(guest: Host, fake: Fake, made: Made) -> Path:
    """What a fetch leaves of the first layer when its download breaks off and nothing more comes."""
    digest = made.layers()[0]
    data = fake.blobs.pop(digest)
    fake.rules.append(blob_rule(digest, Answer(200, {"Content-Length": str(len(data))}, data, cut=200_000)))
    guest.refused(f"docker://{fake.host}/app:1")
    fake.rules.clear()
    fake.asked.clear()
    fake.blobs[digest] = data
    return guest.store / "tmp" / f"partial-{digest.replace(':', '-')}" / "blob"


def test_the_next_fetch_goes_on_where_one_was_interrupted(guest: Host, fake: Fake, made: Made) -> None:
    partial = interrupted(guest, fake, made)
    size = partial.stat().st_size
    assert 0 < size <= 200_000
    record = guest.fetch(f"docker://{fake.host}/app:1")
    assert read(guest, record, 0, "big") == BIG
    assert [a.headers.get("Range") for a in fake.asked if a.path.endswith(made.layers()[0])] == [f"bytes={size}-"]
    assert guest.partials() == []


def test_what_was_left_is_not_believed(guest: Host, fake: Fake, made: Made) -> None:
    partial = interrupted(guest, fake, made)
    with open(partial, "r+b") as file:
        file.write(b"garbage")
    record = guest.fetch(f"docker://{fake.host}/app:1")
    assert read(guest, record, 0, "big") == BIG
    assert guest.partials() == []


def test_a_server_that_cannot_go_on_starts_anew(guest: Host, fake: Fake, made: Made) -> None:
    interrupted(guest, fake, made)
    fake.ranges = False
    assert read(guest, guest.fetch(f"docker://{fake.host}/app:1"), 0, "big") == BIG


def test_trouble_that_passes_is_waited_out(guest: Host, fake: Fake, made: Made) -> None:
    fake.rules.append(blob_rule(made.layers()[1], Answer(503), Answer(429, {"Retry-After": "0"})))
    guest.fetch(f"docker://{fake.host}/app:1")


def test_too_many_requests_say_when_to_come_back(guest: Host, fake: Fake, made: Made) -> None:
    fake.rules.append(lambda asked: Answer(429, {"Retry-After": "3600"}))
    said = guest.refused(f"docker://{fake.host}/app:1")
    assert f"{fake.host}: app:" in said
    assert "429" in said
    assert "3600" in said


def test_the_password_does_not_go_where_a_redirect_leads(guest: Host, fake: Fake, made: Made, ca: Path) -> None:
    guest.login(fake.host)
    other = Fake(ca)
    try:
        other.add(made)
        digest = made.layers()[0]
        fake.rules.append(blob_rule(digest, Answer(307, {"Location": f"https://{other.host}/v2/x/blobs/{digest}"})))
        guest.fetch(f"docker://{fake.host}/app:1")
        assert [path for path in other.paths() if digest in path]
        assert not any("Authorization" in asked.headers for asked in other.asked)
    finally:
        other.close()


SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"


@pytest.mark.parametrize(
    ("media_type", "document", "says"),
    [
        (SCHEMA1, {"schemaVersion": 1}, "schema 1"),
        ("application/json", {"schemaVersion": 1}, "schema 1"),
        ("text/html", {"schemaVersion": 2}, "not a manifest"),
        (registries.MANIFEST, {"schemaVersion": 2, "layers": [], "manifests": []}, "at once"),
        (registries.INDEX, {"schemaVersion": 2, "manifests": []}, "no image"),
    ],
)
def test_what_is_no_image_is_said_so(
    guest: Host, fake: Fake, media_type: str, document: dict[str, Any], says: str
) -> None:
    fake.tags["1"] = (media_type, json.dumps(document).encode())
    assert says in guest.refused(f"docker://{fake.host}/app:1")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("config", "application/vnd.example.artifact", "artifact"),
        ("layers", f"{registries.GZIP}+encrypted", "encrypted"),
    ],
)
def test_artifacts_and_encrypted_layers_are_said_so(
    guest: Host, fake: Fake, made: Made, key: str, value: str, says: str
) -> None:
    manifest = json.loads(made.manifest)
    target = manifest[key] if key == "config" else manifest[key][0]
    target["mediaType"] = value
    fake.tags["1"] = (registries.MANIFEST, json.dumps(manifest).encode())
    assert says in guest.refused(f"docker://{fake.host}/app:1")


def test_never_and_new_do_not_ask_when_the_image_is_stored(guest: Host, fake: Fake, made: Made) -> None:
    reference = f"docker://{fake.host}/app:1"
    assert "not in the store" in guest("fetch", "--pull-policy=never", reference).err
    assert fake.asked == []
    guest.fetch(reference)
    fake.asked.clear()
    guest.fetch(reference, "--pull-policy=never")
    guest.fetch(reference, "--pull-policy=new")
    assert fake.asked == []


def test_an_index_that_changed_for_others_only_is_noted(guest: Host, fake: Fake, made: Made) -> None:
    def publish(other: str) -> None:
        entries = [
            {"mediaType": registries.MANIFEST, "digest": digest, "size": size, "platform": platform}
            for digest, size, platform in (
                (made.digest, len(made.manifest), {"os": "linux", "architecture": "amd64"}),
                (f"sha256:{other * 64}", 999, {"os": "linux", "architecture": "s390x"}),
            )
        ]
        fake.tags["1"] = (registries.INDEX, json.dumps({"schemaVersion": 2, "manifests": entries}).encode())

    publish("a")
    first = guest.fetch(f"docker://{fake.host}/app:1")
    publish("b")
    fake.asked.clear()
    assert guest.fetch(f"docker://{fake.host}/app:1")["id"] == first["id"]
    assert not [path for path in fake.paths() if "/blobs/" in path]
    fake.asked.clear()
    guest.fetch(f"docker://{fake.host}/app:1")
    assert [asked.method for asked in fake.asked] == ["HEAD"]


def test_killed_in_the_middle_it_goes_on_later(guest: Host, fake: Fake, made: Made) -> None:
    digest = made.layers()[0]
    data = fake.blobs[digest]
    held = threading.Event()

    def stall(asked: Asked) -> Answer | None:
        if asked.path.endswith(digest) and "Range" not in asked.headers:
            return Answer(200, {"Content-Length": str(len(data))}, data, cut=200_000, hold=held)
        return None

    fake.rules.append(stall)
    environment = {**guest.rkpy.environment(), **guest.environment}
    command = guest.rkpy.command("--insecure-options=image", "fetch", f"docker://{fake.host}/app:1")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = guest.store / "tmp" / f"partial-{digest.replace(':', '-')}" / "blob"
    deadline = time.monotonic() + registries.DEADLINE
    while not partial.exists() or partial.stat().st_size < 100_000:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    held.set()
    assert read(guest, guest.fetch(f"docker://{fake.host}/app:1"), 0, "big") == BIG
    ranges = [asked.headers.get("Range") for asked in fake.asked if asked.path.endswith(digest)]
    assert ranges[0] is None
    assert ranges[1] is not None


def test_two_at_once_download_once(guest: Host, fake: Fake, made: Made) -> None:
    environment = {**guest.rkpy.environment(), **guest.environment}
    command = guest.rkpy.command("--insecure-options=image", "fetch", f"docker://{fake.host}/app:1")
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait(registries.DEADLINE) for process in processes] == [0, 0, 0]
    assert sorted(path.rpartition("/")[2] for path in fake.paths() if path.endswith(tuple(made.layers()))) == sorted(
        made.layers()
    )


# The parts, as the checking of signatures uses them


@pytest.fixture
def client(guest: Host, fake: Fake, made: Made, monkeypatch: pytest.MonkeyPatch) -> registry.Client:
    for name, value in guest.environment.items():
        monkeypatch.setenv(name, value)
    return registry.Client(Config(local_config=str(guest.rkpy.config), system_config=str(guest.directory / "usr")))


def test_nothing_is_downloaded_before_the_name_is_agreed_to(
    guest: Host, fake: Fake, made: Made, client: registry.Client
) -> None:
    resolved = client.resolve(docker_reference.parse(f"{fake.host}/app:1"))
    assert (resolved.digest, resolved.manifest_digest, resolved.manifest) == (made.digest, made.digest, made.manifest)
    asked: list[str] = []

    def refuse(name: str) -> None:
        asked.append(name)
        raise TrustError("no")

    with pytest.raises(TrustError):
        registry.pull(client, Store(str(guest.store)), resolved, authorize=refuse)
    assert asked == [resolved.name.name]
    assert not [path for path in fake.paths() if path.endswith(tuple(made.layers()))]


def test_progress_ends_with_every_layer_whole(guest: Host, fake: Fake, made: Made, client: registry.Client) -> None:
    resolved = client.resolve(docker_reference.parse(f"{fake.host}/app:1"))
    seen: dict[str, tuple[int, int]] = {}

    def progress(digest: str, done: int, total: int) -> None:
        seen[digest] = (done, total)

    registry.pull(client, Store(str(guest.store)), resolved, authorize=lambda name: None, progress=progress)
    assert seen == {digest: (len(made.blobs[digest]), len(made.blobs[digest])) for digest in made.layers()}


def test_manifests_and_blobs_beside_the_image_can_be_read(fake: Fake, made: Made, client: registry.Client) -> None:
    resolved = client.resolve(docker_reference.parse(f"{fake.host}/app:1"))
    with pytest.raises(registry.NotFound):
        client.get_manifest(resolved.endpoint, f"{made.digest.replace(':', '-')}.sig")
    assert client.get_manifest(resolved.endpoint, made.digest).data == made.manifest
    config = json.loads(made.manifest)["config"]["digest"]
    assert client.get_blob(resolved.endpoint, config) == made.blobs[config]
