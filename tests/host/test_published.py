"""Images from where they are published, through the command line: a web server found by discovery, and a registry."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import images, servers
from tests.gpg import Signer, signer
from tests.host import registries
from tests.host.commands import Rkpy
from tests.host.oci import build_oci
from tests.host.registries import PASSWORD, USER, Real

APP = {"exec": ["/bin/echo", "published"], "user": "0", "group": "0"}


@pytest.fixture(scope="module")
def gpg() -> Iterator[Signer]:
    with signer() as made:
        yield made


@pytest.fixture
def rkpy(tmp_path: Path) -> Iterator[Rkpy]:
    command = Rkpy(tmp_path)
    yield command
    assert command("gc", "--grace-period=0s").status == 0


# Discovery


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[servers.Site]:
    """A server that answers for every host name there is."""
    with servers.site() as site, servers.proxy(site.port) as proxy:
        monkeypatch.setenv("SSL_CERT_FILE", servers.authority().certificate)
        monkeypatch.setenv("https_proxy", proxy.url)
        yield site


@pytest.fixture
def published(web: servers.Site, gpg: Signer, tmp_path: Path) -> servers.Site:
    """example.com/app, its signature and its builder's key, announced by a page."""
    key = gpg.key("Publisher <publisher@example.com>")
    aci = images.make_aci(str(tmp_path / "app.aci"), images.manifest(app=APP), images.busybox_files())
    signature = gpg.sign(key, aci)
    web.pages["//mirror.example.com/app.aci"] = servers.page(Path(aci).read_bytes())
    web.pages["//mirror.example.com/app.aci.asc"] = servers.page(Path(signature).read_bytes())
    web.pages["//mirror.example.com/keys"] = servers.page(gpg.export(key))
    web.pages["//example.com/app"] = servers.html(
        ("ac-discovery", "example.com/app https://mirror.example.com/app.{ext}"),
        ("ac-discovery-pubkeys", "example.com https://mirror.example.com/keys"),
    )
    return web


def test_an_image_is_found_by_its_name(rkpy: Rkpy, published: servers.Site) -> None:
    line = rkpy.refused("run", "--stage1=fly", "example.com/app")
    assert "rkpy trust" in line
    assert "/app.aci" not in published.paths()  # the signer was not trusted, so the image was not even asked for
    rkpy.ok("trust", "--prefix=example.com/app", "--skip-fingerprint-review")
    assert rkpy("run", "--stage1=fly", "example.com/app").out == "published\n"
    asked = len(published.seen)
    assert rkpy("run", "--stage1=fly", "example.com/app").out == "published\n"
    assert len(published.seen) == asked  # from the store


def test_a_file_brings_what_it_depends_on(rkpy: Rkpy, published: servers.Site, tmp_path: Path) -> None:
    manifest = images.manifest("example.com/above", app=APP, dependencies=[{"imageName": "example.com/app"}])
    path = images.make_aci(str(tmp_path / "above.aci"), manifest, {})
    flags = ["--insecure-options=image", "run", "--stage1=fly"]
    assert "example.com/app" in rkpy(*flags, "--store-only", path).err
    done = rkpy(*flags, path)
    assert (done.status, done.out) == (0, "published\n"), done
    asked = len(published.seen)
    assert rkpy(*flags, path).out == "published\n"
    assert len(published.seen) == asked


def test_an_image_by_its_url(rkpy: Rkpy, published: servers.Site) -> None:
    rkpy.ok("trust", "--root", "--skip-fingerprint-review", "https://mirror.example.com/keys")
    assert rkpy("run", "--stage1=fly", "https://mirror.example.com/app.aci").out == "published\n"


def test_keys_are_trusted_at_first_sight_only_when_asked_for(rkpy: Rkpy, published: servers.Site) -> None:
    done = rkpy("--trust-keys-from-https", "run", "--stage1=fly", "example.com/app")
    assert (done.status, done.out) == (0, "published\n"), done
    assert "without fingerprint review" in done.err


# Registries


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    with registries.real(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("image")
    (directory / "root" / "bin").mkdir(parents=True)
    subprocess.run(["cp", "/bin/busybox", str(directory / "root" / "bin" / "busybox")], check=True)
    os.symlink("busybox", directory / "root" / "bin" / "echo")
    return build_oci(directory, str(directory / "root"), ["--entrypoint", '["/bin/echo", "published"]'])


class Signed:
    """The image `NAME:1` in the registry, and the place for its signatures."""

    def __init__(self, rkpy: Rkpy, registry: Real, archive: str, gpg: Signer, name: str) -> None:
        self.rkpy, self.registry, self.gpg, self.name = rkpy, registry, gpg, name
        self.key = gpg.key(f"{name} <{name}@example.com>")
        self.reference = f"docker://{registry.host}/{name}:1"
        self.signatures = rkpy.directory / "signatures"
        registry.push(f"oci-archive:{archive}", f"{name}:1")
        (rkpy.config / "registries.d").mkdir(parents=True)
        (rkpy.config / "registries.d" / "a.yaml").write_text(
            f"default-docker:\n  lookaside: file://{self.signatures}\n"
        )
        (rkpy.directory / "key.pub").write_bytes(gpg.export(self.key))

    def sign(self, reference: str = "") -> None:
        """What `podman push --sign-by` would do, by skopeo."""
        inspect = ["skopeo", "inspect", "--raw", "--cert-dir", str(self.registry.directory)]
        login = ["--creds", f"{USER}:{PASSWORD}"]
        raw = subprocess.run([*inspect, *login, self.reference], check=True, capture_output=True).stdout
        manifest = self.rkpy.directory / "manifest"
        manifest.write_bytes(raw)
        directory = self.signatures / f"{self.name}@{registries.digest_of(raw).replace(':', '=')}"
        directory.mkdir(parents=True)
        what = reference or self.reference.removeprefix("docker://")
        command = ["skopeo", "standalone-sign", str(manifest), what, self.key.upper()]
        home = {**os.environ, "GNUPGHOME": self.gpg.home}
        subprocess.run([*command, "-o", str(directory / "signature-1")], check=True, capture_output=True, env=home)


@pytest.fixture
def signed(
    rkpy: Rkpy,
    registry: Real,
    archive: str,
    gpg: Signer,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Signed:
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (rkpy.directory / "auth.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
    monkeypatch.setenv("SSL_CERT_FILE", str(registry.ca))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(rkpy.directory / "auth.json"))
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", "/dev/null")
    return Signed(rkpy, registry, archive, gpg, request.node.name.rpartition("_")[2])


def test_a_registrys_image_runs_once_it_is_signed_and_the_signer_trusted(rkpy: Rkpy, signed: Signed) -> None:
    assert "is not signed" in rkpy.refused("fetch", "--quiet", signed.reference)
    signed.sign()
    assert "rkpy trust" in rkpy.refused("fetch", "--quiet", signed.reference)
    assert not [line for line in signed.registry.requests() if line.startswith(f"GET /v2/{signed.name}/blobs/")]
    rkpy.ok(
        "trust",
        f"--prefix={signed.registry.host.replace(':', '_')}",
        "--skip-fingerprint-review",
        rkpy.directory / "key.pub",
    )
    assert rkpy("run", "--stage1=fly", signed.reference).out == "published\n"
    (record,) = [json.loads(path.read_text()) for path in rkpy.images()]
    assert record["verification"]["fingerprint"] == signed.key
    before = len(signed.registry.requests())
    rkpy.ok("fetch", signed.reference)
    assert len(signed.registry.requests()) - before <= 2  # one question, asked again with a login
    rkpy.ok("trust", f"--remove={signed.key}")
    assert "rkpy trust" in rkpy.refused("fetch", "--quiet", signed.reference)


def test_a_signature_for_another_name_is_no_signature_elsewhere(rkpy: Rkpy, signed: Signed) -> None:
    signed.sign(reference=f"{signed.registry.host}/another:1")
    rkpy.ok("trust", "--root", "--skip-fingerprint-review", rkpy.directory / "key.pub")
    assert "another" in rkpy.refused("fetch", "--quiet", signed.reference)
    assert rkpy.images() == []


def test_what_was_fetched_without_verification_is_verified_later(rkpy: Rkpy, signed: Signed) -> None:
    rkpy.ok("--insecure-options=image", "fetch", signed.reference)
    assert "is not signed" in rkpy.refused("fetch", "--quiet", signed.reference)
