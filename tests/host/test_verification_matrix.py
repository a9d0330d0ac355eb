"""Every cell of the verification matrix, which is read from docs/trust.md: the document is the list of tests.

A cell is what `rkpy fetch` does with an image of that source in that state: it is `fetched`, or refused with the words
in the cell, or (`–`) there is no such case.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import images, layouts, openssl, servers
from tests.gpg import Signer, signer
from tests.host import registries
from tests.host.commands import ROOT, Rkpy
from tests.host.registries import PASSWORD, USER, Made, Real
from tests.openssl import KeyPair

FETCHED, NO_CASE = "fetched", "–"
UNVERIFIED = "--insecure-options=image"


class State(NamedTuple):
    """How an image is signed, if `key` says that it is."""

    key: str = "good"
    at: str = ""
    """The signer's clock."""
    digest: str = "sha256"
    damaged: bool = False
    changed: bool = False
    """The image is another one than was signed."""
    renamed: bool = False
    """The signature approves the image under another name."""


STATES = {
    "none": State(key=""),
    "good, by a key trusted for the name": State(),
    "by an unknown key": State(key="unknown"),
    "by a key trusted for another prefix": State(key="other"),
    "by a masked key": State(key="masked"),
    "by a revoked key": State(key="revoked"),
    "made before its key expired": State(key="expired", at="20200601T000000"),
    "made after its key expired": State(key="expired", at="20220601T000000"),
    "over SHA-1": State(digest="sha1"),
    "damaged": State(damaged=True),
    "good, and the image was changed": State(changed=True),
    "good, for another name or tag": State(renamed=True),
}


def matrix() -> dict[tuple[str, str], str]:
    """The cells by source and state."""
    text = (ROOT / "docs/trust.md").read_text().partition("\n## The verification matrix\n")[2].partition("\n## ")[0]
    header, _, *rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    sources = [cell.strip() for cell in header[1:]]
    cells = [[cell.strip() for cell in row] for row in rows]
    return {(source, row[0]): cell.strip("`") for row in cells for source, cell in zip(sources, row[1:], strict=True)}


MATRIX = matrix()
LAST = f"any of them with `{UNVERIFIED}`"


class Keys:
    """Those of the states, in the keystore as the states want them."""

    def __init__(self, directory: Path, gpg: Signer) -> None:
        self.directory, self.gpg = directory, gpg
        names = ("good", "unknown", "other", "masked", "revoked")
        self.openpgp = {name: gpg.key(f"{name} <{name}@example.com>") for name in names}
        self.openpgp["expired"] = gpg.key("expired <expired@example.com>", at="20200101T000000", expires="1y")
        for name, key in self.openpgp.items():
            (directory / f"{name}.pub").write_bytes(gpg.export(key))
        gpg.run("--quick-set-expire", self.openpgp["expired"], "0", at="20200102T000000")  # unknown to the keystore
        self._revoke("revoked")
        self.cosign = {name: KeyPair(str(directory), name=f"cosign-{name}") for name in names[:4]}

    def _revoke(self, name: str) -> None:
        """In the file only: gpg signs with no key it knows to be revoked."""
        certificate = Path(self.gpg.home, f"openpgp-revocs.d/{self.openpgp[name].upper()}.rev").read_text()
        with signer() as elsewhere:
            elsewhere.run("--import", str(self.directory / f"{name}.pub"))
            elsewhere.run("--import", data=certificate.replace(":-----BEGIN", "-----BEGIN").encode())
            (self.directory / f"{name}.pub").write_bytes(elsewhere.export(self.openpgp[name]))

    def trust(self, rkpy: Rkpy, *prefixes: str) -> None:
        def files(*names: str) -> list[Path]:
            return [self.directory / f"{name}.pub" for name in names]

        masked = [self.openpgp["masked"], self.cosign["masked"].fingerprint]
        for prefix in prefixes:
            trust = ["trust", f"--prefix={prefix}", "--skip-fingerprint-review"]
            rkpy.ok(*trust, *files("good", "revoked", "expired", "cosign-good"))
            rkpy.ok(f"--local-config={rkpy.directory / 'usr'}", *trust, *files("masked", "cosign-masked"))
        for key in masked:
            rkpy.ok("trust", f"--remove={key}")
        rkpy.ok("trust", "--prefix=example.org", "--skip-fingerprint-review", *files("other", "cosign-other"))


class World:
    """Images of every source in every state, each made when it is first asked for."""

    def __init__(self, directory: Path, keys: Keys, site: servers.Site, registry: Real) -> None:
        self.directory, self.keys, self.site, self.registry = directory, keys, site, registry
        self._made: dict[tuple[str, str], str] = {}

    def image(self, source: str, state: str) -> str:
        """What to fetch."""
        at = (source, state)
        if at not in self._made:
            name = f"app{len(self._made)}"
            self._made[at] = SOURCES[source](self, name, STATES[state])
        return self._made[at]

    def sign(self, state: State, path: str) -> None:
        """Put a detached signature beside a file."""
        if state.key:
            digest = ["--digest-algo", state.digest]
            signature = self.keys.gpg.sign(self.keys.openpgp[state.key], path, *digest, at=state.at)
            if state.damaged:
                os.truncate(signature, os.path.getsize(signature) // 2)


# The sources


def aci(world: World, name: str, state: State) -> str:
    path = str(world.directory / f"{name}.aci")
    manifest = images.manifest(f"example.com/{name}")
    images.make_aci(path, manifest, {"file": "as signed"})
    world.sign(state, path)
    if state.changed:
        images.make_aci(path, manifest, {"file": "changed"})
    return path


def oci_archive(world: World, name: str, state: State) -> str:
    path = str(world.directory / f"{name}.tar")

    def pack(at: str, content: str) -> None:
        layouts.simple(at, f"example.com/{name}:1", layouts.layer(content)).archive(path)

    pack(str(world.directory / name), "as-signed")
    world.sign(state, path)
    if state.changed:
        pack(str(world.directory / f"{name}-changed"), "changed")
    return f"oci-archive:{path}"


def oci_layout(world: World, name: str, state: State) -> str:
    path, other = str(world.directory / name), str(world.directory / f"{name}-changed")
    layouts.simple(path, f"example.com/{name}:1", layouts.layer("as-signed"))
    world.sign(state, f"{path}/index.json")
    if not state.changed:
        return f"oci:{path}"
    layouts.simple(other, f"example.com/{name}:1", layouts.layer("changed"))
    os.rename(f"{path}/index.json.asc", f"{other}/index.json.asc")
    return f"oci:{other}"


def discovered(world: World, name: str, state: State) -> str:
    path = Path(aci(world, name, state))
    world.site.pages[f"//mirror.example.com/{name}.aci"] = servers.page(path.read_bytes())
    signature = path.with_name(f"{path.name}.asc")
    if signature.exists():
        world.site.pages[f"//mirror.example.com/{signature.name}"] = servers.page(signature.read_bytes())
    tag = ("ac-discovery", f"example.com/{name} https://mirror.example.com/{name}.{{ext}}")
    world.site.pages[f"//example.com/{name}"] = servers.html(tag)
    return f"example.com/{name}"


class Pushed(NamedTuple):
    """An image in the registry. What is signed is the same, unless the state says otherwise."""

    repository: str
    served: Made
    signed: Made


def pushed(world: World, name: str, state: State) -> Pushed:
    signed = registries.image({"file": b"as signed"})
    served = registries.image({"file": b"changed"}) if state.changed else signed
    world.registry.put(served, f"{name}:1")
    return Pushed(f"{world.registry.host}/{name}", served, signed)


def simple_signing(world: World, name: str, state: State) -> str:
    image = pushed(world, name, state)
    if state.key:
        directory = world.directory / "signatures" / f"{name}@{image.served.digest.replace(':', '=')}"
        directory.mkdir(parents=True)
        statement = {
            "critical": {
                "identity": {"docker-reference": f"{image.repository}:{2 if state.renamed else 1}"},
                "image": {"docker-manifest-digest": image.signed.digest},
                "type": "atomic container signature",
            },
            "optional": {},
        }
        by = ["--local-user", f"{world.keys.openpgp[state.key]}!", "--digest-algo", state.digest]
        blob = world.keys.gpg.run(*by, "--sign", at=state.at, data=json.dumps(statement).encode())
        (directory / "signature-1").write_bytes(blob[: len(blob) // 2] if state.damaged else blob)
    return f"docker://{image.repository}:1"


def cosign(world: World, name: str, state: State) -> str:
    image = pushed(world, name, state)
    if state.key:
        payload = openssl.payload(image.signed.digest, f"{image.repository}{'-other' if state.renamed else ''}")
        signature = world.keys.cosign[state.key].sign(payload, digest=state.digest)
        if state.damaged:
            signature = signature[:-1] + bytes([signature[-1] ^ 1])
        manifest = openssl.manifest(openssl.layer(payload, signature))
        blobs = {registries.digest_of(blob): blob for blob in (openssl.CONFIG, payload)}
        world.registry.put(Made(manifest, blobs), f"{name}:{image.served.digest.replace(':', '-')}.sig")
    return f"docker://{image.repository}:1"


SOURCES: dict[str, Callable[[World, str, State], str]] = {
    "ACI file": aci,
    "OCI archive": oci_archive,
    "OCI layout": oci_layout,
    "ACI by name or URL": discovered,
    "registry, simple signing": simple_signing,
    "registry, cosign": cosign,
}


# The tests


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("matrix")
    with (
        registries.real(tmp_path_factory.mktemp("registry")) as registry,
        servers.site() as site,
        servers.proxy(site.port) as proxy,
        signer() as gpg,
        pytest.MonkeyPatch.context() as patch,
    ):
        authorities = [registry.ca, Path(servers.authority().certificate)]
        (directory / "ca.pem").write_bytes(b"".join(path.read_bytes() for path in authorities))
        auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        (directory / "auth.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
        patch.setenv("SSL_CERT_FILE", str(directory / "ca.pem"))
        patch.setenv("https_proxy", proxy.url)
        patch.setenv("REGISTRY_AUTH_FILE", str(directory / "auth.json"))
        patch.setenv("CONTAINERS_REGISTRIES_CONF", "/dev/null")
        (directory / "etc/registries.d").mkdir(parents=True)
        lookaside = f"default-docker:\n  lookaside: file://{directory}/signatures\n"
        (directory / "etc/registries.d/a.yaml").write_text(lookaside)
        keys = Keys(directory, gpg)
        keys.trust(Rkpy(directory), "example.com", registry.host.replace(":", "_"))
        yield World(directory, keys, site, registry)


@pytest.fixture
def rkpy(world: World, tmp_path: Path) -> Rkpy:
    """The command with the keystore of all and a store of its own."""
    command = Rkpy(world.directory)
    command.data = tmp_path / "data"
    return command


def verification(rkpy: Rkpy) -> dict[str, Any] | None:
    """What is recorded of the signer of the only image."""
    (record,) = [json.loads(path.read_text()) for path in rkpy.images()]
    found: dict[str, Any] | None = record["verification"]
    return found


def test_the_table_is_complete() -> None:
    assert {source for source, _ in MATRIX} == {*SOURCES, LAST}
    assert {state for _, state in MATRIX} == set(STATES)
    assert {MATRIX[LAST, state] for state in STATES} == {FETCHED}
    assert all(len(cell) > 4 or cell == NO_CASE for cell in MATRIX.values())


@pytest.mark.parametrize(
    ("source", "state"), [at for at, cell in MATRIX.items() if at[0] in SOURCES and cell != NO_CASE]
)
class TestCells:
    def test_verified(self, world: World, rkpy: Rkpy, source: str, state: str) -> None:
        expected = MATRIX[source, state]
        image = world.image(source, state)
        if expected == FETCHED:
            rkpy.ok("fetch", "--quiet", image)
            keys = world.keys
            good = (keys.openpgp[STATES[state].key], keys.cosign["good"].fingerprint)
            assert (verification(rkpy) or {})["fingerprint"] == good["cosign" in source]
        else:
            assert expected in rkpy.refused("fetch", "--quiet", image)
            assert not [*rkpy.data.glob("cas/image/*"), *rkpy.data.glob("cas/blob/*/*"), *rkpy.data.glob("cas/layer/*")]

    def test_unverified(self, world: World, rkpy: Rkpy, source: str, state: str) -> None:
        rkpy.ok(UNVERIFIED, "fetch", "--quiet", world.image(source, state))
        assert verification(rkpy) is None


@pytest.mark.parametrize("source", SOURCES)
def test_the_list_says_who_signed(world: World, rkpy: Rkpy, source: str) -> None:
    shown = rkpy.ok("fetch", "--quiet", world.image(source, "good, by a key trusted for the name")).strip()
    (line,) = rkpy.ok("image", "list", "--no-legend", "--fields=id,name,format,signed").splitlines()
    image_id, name, form, who = re.split(r"\t+", line)
    assert shown.startswith(image_id)
    assert re.fullmatch(r"(example\.com|localhost_\d+)/app\d+:1", name)
    assert form == ("aci" if "ACI" in source else "oci")
    assert who == ("cosign key (ECDSA P-256)" if "cosign" in source else "good <good@example.com>")
    (listed,) = json.loads(rkpy.ok("image", "list", "--format=json"))
    assert (listed["verification"]["signed_at"] == 0) == ("cosign" in source)
