"""Fetching ACIs from a real server: what is asked in which order, what is refused, and what is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aci.store import ImageRecord, Store
from common.errors import ImageError, RkpyError, TrustError, UsageError
from stage0 import httpcache, reference, remote, verify
from stage0.config import Config
from stage0.http import Client, FetchError
from stage0.keystore import Keystore
from tests import servers
from tests.gpg import Signer, signer
from tests.images import make_aci, manifest
from tests.servers import Page, Site

ROOT = Path(__file__).parents[2]
NAME = "example.com/app"
BASE = "https://mirror.example.com"


@pytest.fixture(scope="module")
def who() -> Iterator[Signer]:
    with signer() as found:
        yield found


class Keys(NamedTuple):
    good: str
    other: str


@pytest.fixture(scope="module")
def keys(who: Signer) -> Keys:
    return Keys(who.key("Good <good@example.com>"), who.key("Other <other@example.com>"))


class World:
    """A site with images, and a host that fetches from it."""

    def __init__(self, directory: Path, site: Site, who: Signer, keys: Keys) -> None:
        self.directory, self.site, self.who, self.keys = directory, site, who, keys
        self.config = Config(
            data_dir=str(directory / "data"), system_config=str(directory / "usr"), local_config=str(directory / "etc")
        )
        self.store = Store(self.config.store)
        self.keystore = Keystore(self.config.local_config, self.config.system_config)
        self.said: list[str] = []
        (directory / "www").mkdir()

    def trust(self, prefix: str = "example.com", key: str = "") -> None:
        self.keystore.add(self.who.export(key or self.keys.good), prefix)

    def publish(
        self, name: str = NAME, *, at: str = "", key: str = "", discover: bool = True,
        headers: dict[str, str] | None = None, content: str = "hello", **fields: Any,
    ) -> Path:  # fmt: skip
        """Put an image and its signature on the site, at /NAME.aci of the mirror, with a page that leads there."""
        path = self.directory / "www" / f"{(at or name).replace('/', '_')}.aci"
        make_aci(str(path), manifest(name, **fields), {"file": content})
        signature = Path(self.who.sign(key or self.keys.good, str(path)))
        where = f"//mirror.example.com/{at or name}.aci"
        self.site.pages[where] = servers.page(path.read_bytes(), **(headers or {}))
        self.site.pages[f"{where}.asc"] = servers.page(signature.read_bytes())
        if discover:
            self.announce(at or name)
        return path

    def announce(self, name: str, *templates: str) -> None:
        tags = [("ac-discovery", f"{name} {template}") for template in templates or (f"{BASE}/{{name}}.{{ext}}",)]
        self.site.pages[f"//{name}"] = servers.html(*tags)

    def fetch(self, what: str = NAME, *, insecure: str = "", **options: Any) -> ImageRecord:
        self.site.seen.clear()
        config = self.config._replace(insecure=frozenset(filter(None, insecure.split(","))))
        config = config._replace(trust_keys_from_https=options.pop("trust_keys_from_https", False))
        client = Client(config, sleep=lambda seconds: None, timeout=options.pop("timeout", 30))
        return remote.fetch_aci(
            config, self.store, self.keystore, reference.parse(what), client=client, say=self.said.append, **options
        )

    def asked(self) -> list[str]:
        """The paths asked for, without the pages of discovery."""
        return [one.path for one in self.site.seen if "ac-discovery" not in one.path]

    def left(self) -> list[str]:
        """Everything in the store that an image that was not stored must not leave."""
        found = []
        for kind in ("image", "layer", "blob", "tree", "tmp", "remote", "used"):
            folder = Path(self.store.root) / kind
            found += [str(path.relative_to(self.store.root)) for path in folder.rglob("*") if not path.is_dir()]
        return found

    def refused(self, error: type[RkpyError], message: str, what: str = NAME, **options: Any) -> RkpyError:
        """The error of a fetch that leaves nothing behind."""
        before = self.left()
        with pytest.raises(error) as caught:
            self.fetch(what, **options)
        assert message in caught.value.message, caught.value
        assert caught.value.hint and "\n" not in str(caught.value)
        assert self.store.root not in str(caught.value)
        assert self.left() == before
        return caught.value


@pytest.fixture
def world(tmp_path: Path, who: Signer, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("SSL_CERT_FILE", servers.authority().certificate)
    monkeypatch.delenv("no_proxy", raising=False)
    with servers.site() as site, servers.proxy(site.port) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        yield World(tmp_path, site, who, keys)


IMAGE, SIGNATURE = f"/{NAME}.aci", f"/{NAME}.aci.asc"
PAGE = f"//mirror.example.com/{NAME}.aci"


# By name and by URL


def test_an_image_by_name(world: World) -> None:
    world.trust()
    world.publish()
    record = world.fetch()
    assert record.manifest.name == NAME and record.latest
    assert record.verification is not None and record.verification.fingerprint == world.keys.good
    assert world.asked() == [SIGNATURE, IMAGE]
    assert Path(world.store.layer_path(record.id), "file").read_text() == "hello"
    assert world.store.find_by_id(record.id).last_used > 0
    assert os.listdir(f"{world.store.root}/tmp") == []


def test_an_image_by_url(world: World) -> None:
    world.trust()
    world.publish()
    record = world.fetch(f"{BASE}{IMAGE}")
    assert record.manifest.name == NAME and not record.latest
    assert world.asked() == [SIGNATURE, IMAGE]


def test_a_url_with_a_query(world: World) -> None:
    world.trust()
    world.publish()
    world.fetch(f"{BASE}{IMAGE}?v=1")
    assert world.asked() == [f"{SIGNATURE}?v=1", f"{IMAGE}?v=1"]


def test_a_url_of_something_else(world: World) -> None:
    with pytest.raises(UsageError, match=r"does not end in \.aci"):
        world.fetch("https://example.com/image.tar")


def test_a_signature_of_ones_own(world: World) -> None:
    world.trust()
    path = world.publish()
    del world.site.pages[f"{PAGE}.asc"]
    assert world.fetch(signature=f"{path}.asc").verification
    assert world.asked() == [IMAGE]


def test_the_first_place_that_has_it(world: World) -> None:
    world.trust()
    world.publish()
    world.announce(
        NAME, f"{BASE}/gone/{{name}}.{{ext}}", "https://evil.example.net/x.{ext}", f"{BASE}/{{name}}.{{ext}}"
    )
    world.site.pages["//evil.example.net/x.aci.asc"] = servers.status(500)
    # A place that has no signature is not one that cannot be reached.
    with pytest.raises(verify.SignatureMissing):
        world.fetch()
    world.site.pages[f"//mirror.example.com/gone{SIGNATURE}"] = servers.status(503)
    assert world.fetch().manifest.name == NAME


def test_no_place_has_it(world: World) -> None:
    world.trust()
    world.announce(NAME, f"{BASE}/1.{{ext}}", f"{BASE}/2.{{ext}}")
    for path in ("1.aci.asc", "2.aci.asc"):
        world.site.pages[f"//mirror.example.com/{path}"] = servers.status(500)
    error = world.refused(FetchError, "none of its 2 places has it")
    assert f"{BASE}/1.aci.asc: 500" in error.message and f"{BASE}/2.aci.asc: 500" in error.message


# Signature first


def test_without_a_signature_nothing_is_downloaded(world: World) -> None:
    world.trust()
    world.publish()
    del world.site.pages[f"{PAGE}.asc"]
    error = world.refused(verify.SignatureMissing, "the image is not signed")
    assert f"{BASE}{SIGNATURE}: 404" in error.message
    assert world.asked() == [SIGNATURE]


@pytest.mark.parametrize("what", [NAME, f"{BASE}{IMAGE}"])
def test_an_unknown_signer_is_refused_before_the_image(world: World, what: str) -> None:
    world.trust()
    world.publish(key=world.keys.other)
    error = world.refused(verify.UnknownKey, f"{BASE}{SIGNATURE} was made by", what)
    assert "rkpy trust" in error.hint and world.asked() == [SIGNATURE]


def test_a_signer_of_other_names_is_refused_before_the_image(world: World) -> None:
    world.trust("example.com/ap")
    world.publish()
    world.refused(verify.KeyUntrusted, "which is not trusted for it")
    assert world.asked() == [SIGNATURE]


def test_a_signer_of_other_names_is_refused_when_the_name_is_known(world: World) -> None:
    world.trust("example.org")
    world.publish()
    world.refused(verify.KeyUntrusted, "which is not trusted for it", f"{BASE}{IMAGE}")


def test_a_changed_image_is_refused(world: World) -> None:
    world.trust()
    path = world.publish()
    world.site.pages[PAGE] = servers.page(path.read_bytes() + b"\0")
    world.refused(verify.BadSignature, f"{BASE}{IMAGE} is not what Good")


@pytest.mark.parametrize(
    "signature",
    [servers.html(), servers.page(b""), servers.page(b"-----BEGIN PGP SIGNATURE-----\n"), servers.page(b"\0" * 500)],
)
def test_a_signature_that_is_none(world: World, signature: Page) -> None:
    world.trust()
    world.publish()
    world.site.pages[f"{PAGE}.asc"] = signature
    world.refused(TrustError, f"{BASE}{SIGNATURE} is not an OpenPGP signature")
    assert world.asked() == [SIGNATURE]


def test_an_endless_signature(world: World) -> None:
    world.trust()
    world.publish()
    world.site.pages[f"{PAGE}.asc"] = servers.endless()
    world.refused(FetchError, "does not end")


def test_a_signature_that_is_not_ready_yet(world: World) -> None:
    world.trust()
    world.publish()
    world.site.pages[f"{PAGE}.asc"] = servers.in_turn(servers.status(202), world.site.pages[f"{PAGE}.asc"])
    assert world.fetch().verification
    assert world.asked() == [SIGNATURE, IMAGE, SIGNATURE]


def test_a_signature_that_is_never_ready(world: World) -> None:
    world.trust()
    world.publish()
    world.site.pages[f"{PAGE}.asc"] = servers.status(202)
    world.refused(verify.SignatureMissing, "the signature is not ready yet (202)")
    assert world.asked() == [SIGNATURE, IMAGE, SIGNATURE]


def test_a_late_signature_is_checked_like_any(world: World) -> None:
    world.trust()
    world.publish(key=world.keys.other)
    world.site.pages[f"{PAGE}.asc"] = servers.in_turn(servers.status(202), world.site.pages[f"{PAGE}.asc"])
    world.refused(verify.UnknownKey, "which is not in the keystore")


def test_verification_can_be_left_out(world: World) -> None:
    world.publish()
    assert world.fetch(insecure="image").verification is None
    assert world.asked() == [IMAGE]


def test_what_came_unverified_is_verified_later(world: World) -> None:
    world.publish(headers={"ETag": '"1"', "Cache_Control": "max-age=1000"})
    world.fetch(insecure="image")
    world.refused(verify.UnknownKey, "which is not in the keystore")
    world.trust()
    assert world.fetch().verification


# Name and labels


@pytest.mark.parametrize("insecure", ["", "image"])
def test_another_name_is_refused_always(world: World, insecure: str) -> None:
    world.trust()
    world.publish("example.com/other", at=NAME)
    world.refused(ImageError, f'{BASE}{IMAGE} is the image "example.com/other", not {NAME}', insecure=insecure)


@pytest.mark.parametrize("insecure", ["", "image"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (":2", 'the label version should be "2", and it has "1"'),
        (",flavour=sweet", 'the label flavour should be "sweet", and it has none'),
        (",arch=aarch64", 'the label arch should be "aarch64", and it has "amd64"'),
    ],
)
def test_other_labels_are_refused_always(world: World, insecure: str, labels: str, message: str) -> None:
    world.trust()
    world.publish()
    world.refused(ImageError, message, f"{NAME}{labels}", insecure=insecure)


def test_an_image_for_another_machine(world: World) -> None:
    world.trust()
    labels = [{"name": "os", "value": "linux"}, {"name": "arch", "value": "s390x"}]
    world.publish(labels=labels)
    error = world.refused(ImageError, f'{BASE}{IMAGE} is for "s390x", and this host is')
    assert f"ask for {NAME},arch=s390x" in error.hint
    assert world.fetch(f"{NAME},arch=s390x").manifest.name == NAME


def test_labels_that_fit(world: World) -> None:
    world.trust()
    world.publish()
    assert not world.fetch(f"{NAME}:1,os=linux").latest


# Servers that misbehave


@pytest.mark.parametrize(
    ("misbehaviour", "message"),
    [
        (servers.status(401), "401 Unauthorized"),
        (servers.status(403), "403 Forbidden"),
        (servers.status(404), "404 Not Found"),
        (servers.status(429), "429 Too Many Requests"),
        (servers.status(500), "500 Internal Server Error"),
        (servers.html(), "the server sends a web page (text/html), not an image"),
        (servers.truncated(b"x" * 1000, 100), "the connection ended too early"),
        (servers.redirect("http://mirror.example.com/x.aci"), "plain http is neither private nor safe"),
        (
            servers.redirect("https://unknown.example.org/x.aci"),
            "the certificate of unknown.example.org is not trusted",
        ),
    ],
)
def test_images_that_do_not_come(world: World, misbehaviour: Page, message: str) -> None:
    world.trust()
    world.publish()
    world.site.pages[PAGE] = misbehaviour
    world.refused(FetchError, message)


def test_a_slow_image(world: World) -> None:
    world.trust()
    world.publish()
    world.site.pages[PAGE] = servers.dripping("body")
    world.refused(FetchError, "is too slow", timeout=0.1)


def test_something_that_is_no_image(world: World) -> None:
    world.site.pages[PAGE] = servers.page(b"no image at all")
    world.announce(NAME)
    world.refused(ImageError, f"{BASE}{IMAGE} is no ACI", insecure="image")


def test_a_redirect_of_the_image_is_followed_without_credentials(world: World) -> None:
    world.trust()
    path = world.publish()
    folder = Path(world.config.local_config) / "auth.d"
    folder.mkdir(parents=True)
    document = {"rktKind": "auth", "rktVersion": "v1", "domains": ["mirror.example.com"], "type": "oauth"}
    (folder / "a.json").write_text(json.dumps({**document, "credentials": {"token": "t"}}))
    world.site.pages[PAGE] = servers.redirect("https://evil.example.net/x")
    world.site.pages["//evil.example.net/x"] = servers.page(path.read_bytes())
    world.fetch()
    sent = {one.host: one.headers.get("authorization") for one in world.site.seen}
    assert sent == {"example.com": None, "mirror.example.com": "Bearer t", "evil.example.net": None}


# Resuming


def test_an_interrupted_image_is_resumed_and_verified(world: World) -> None:
    world.trust()
    path = world.publish(headers={"ETag": '"1"'}, content="\n".join(map(str, range(100_000))))
    whole, size = world.site.pages[PAGE], path.stat().st_size
    world.site.pages[PAGE] = servers.in_turn(
        servers.truncated(path.read_bytes(), size // 2, ETag='"1"'), *[servers.status(500)] * 4
    )
    with pytest.raises(FetchError):
        world.fetch()
    assert sorted(os.path.basename(name) for name in world.left()) == ["image", "image.asc", "image.state", "lock"]
    world.site.pages[PAGE] = whole
    assert world.fetch().verification
    assert world.site.seen[-1].headers["range"] == f"bytes={size // 2}-"
    assert os.listdir(f"{world.store.root}/tmp") == []


def test_what_was_left_is_not_trusted(world: World) -> None:
    world.trust()
    path = world.publish(headers={"ETag": '"1"'})
    slot = Path(world.store.root, "tmp", f"fetch-{httpcache.key(f'{BASE}{IMAGE}')}")
    slot.mkdir(parents=True)
    (slot / "image").write_bytes(b"X" * 100)
    (slot / "image.state").write_text(json.dumps({"url": f"{BASE}{IMAGE}", "etag": '"1"'}))
    assert path.stat().st_size > 100
    with pytest.raises(verify.BadSignature):
        world.fetch()
    assert world.site.seen[-1].headers["range"] == "bytes=100-"
    assert world.left() == []
    assert world.fetch().verification


# Asking again


def test_a_fresh_image_is_not_asked_for(world: World) -> None:
    world.trust()
    world.publish(headers={"Cache_Control": "public, max-age=1000"})
    record = world.fetch()
    assert (world.fetch().id, world.asked()) == (record.id, [])


def test_an_unchanged_image_is_one_request(world: World) -> None:
    world.trust()
    world.publish(headers={"ETag": '"1"', "Cache_Control": "no-cache, max-age=1000"})
    record = world.fetch()
    for _ in range(2):
        assert (world.fetch().id, world.asked()) == (record.id, [IMAGE])
    assert world.site.seen[-1].headers["if-none-match"] == '"1"'


def test_a_304_makes_it_fresh_again(world: World) -> None:
    world.trust()
    world.publish(headers={"ETag": '"1"'})
    world.fetch()
    world.publish(headers={"ETag": '"1"', "Cache_Control": "max-age=1000"})
    world.fetch()
    assert world.asked() == [IMAGE]
    world.fetch()
    assert world.asked() == []


def test_an_old_answer_is_stale(world: World) -> None:
    world.trust()
    world.publish(headers={"ETag": '"1"', "Cache_Control": "max-age=1000", "Age": "1000"})
    world.fetch()
    world.fetch()
    assert world.asked() == [IMAGE]


def test_a_changed_image_has_its_signature_checked_first(world: World) -> None:
    world.trust()
    world.publish(headers={"ETag": '"1"'})
    old = world.fetch()
    world.publish(headers={"ETag": '"2"'}, content="new")
    new = world.fetch()
    assert new.id != old.id and world.asked() == [IMAGE, SIGNATURE, IMAGE]
    world.publish(headers={"ETag": '"3"'}, content="newer", key=world.keys.other)
    world.refused(verify.UnknownKey, "which is not in the keystore")
    assert world.asked() == [IMAGE, SIGNATURE]


def test_no_store_leaves_no_trace(world: World) -> None:
    world.trust()
    world.publish(headers={"ETag": '"1"', "Cache_Control": "no-store, max-age=1000"})
    world.fetch()
    assert not list(Path(world.store.root, "remote").glob("*"))
    world.fetch()
    assert world.asked() == [SIGNATURE, IMAGE]


def test_a_key_that_is_trusted_no_more(world: World) -> None:
    world.trust()
    world.publish(headers={"Cache_Control": "max-age=1000"})
    world.fetch()
    for file in world.keystore.files():
        world.keystore.remove(file)
    world.refused(verify.UnknownKey, "which is not in the keystore")


@pytest.mark.parametrize("note", [b"", b"{}", b"[]", b'{"url": 1}', b"\xff", b"null"])
def test_a_damaged_note_is_no_note(world: World, note: bytes) -> None:
    world.trust()
    world.publish(headers={"Cache_Control": "max-age=1000"})
    world.fetch()
    (path,) = Path(world.store.root, "remote").glob("*")
    path.write_bytes(note)
    world.fetch()
    assert world.asked() == [SIGNATURE, IMAGE]


# Policies


def test_new_takes_what_is_there(world: World) -> None:
    world.trust()
    world.publish()
    record = world.fetch(policy="new")
    for what in (NAME, f"{BASE}{IMAGE}"):
        world.publish(content="newer")
        assert (world.fetch(what, policy="new").id, world.site.seen) == (record.id, [])


def test_never_asks_nobody(world: World) -> None:
    world.trust()
    world.publish()
    for what in (NAME, f"{BASE}{IMAGE}"):
        world.refused(ImageError, "in the store", what, policy="never")
        assert world.site.seen == []
    record = world.fetch()
    for what in (NAME, f"{BASE}{IMAGE}"):
        assert (world.fetch(what, policy="never").id, world.site.seen) == (record.id, [])


# Keys on first use


def test_keys_from_https_on_first_use(world: World) -> None:
    world.publish()
    where = "https://example.com/keys.asc"
    world.site.pages[f"//{NAME}"] = servers.html(
        ("ac-discovery", f"{NAME} {BASE}/{{name}}.{{ext}}"), ("ac-discovery-pubkeys", f"example.com {where}")
    )
    world.site.pages["//example.com/keys.asc"] = servers.page(world.who.export(world.keys.good))
    world.refused(verify.UnknownKey, "which is not in the keystore")
    record = world.fetch(trust_keys_from_https=True)
    assert record.verification is not None and record.verification.trusted_for == NAME
    assert any(where in line for line in world.said)
    # Once there is a key, another one is not taken.
    world.site.pages["//example.com/keys.asc"] = servers.page(world.who.export(world.keys.other))
    world.publish(key=world.keys.other, discover=False)
    world.refused(verify.UnknownKey, "which is not in the keystore", trust_keys_from_https=True)


def test_keys_on_first_use_come_over_verified_tls_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.publish()
    monkeypatch.delenv("SSL_CERT_FILE")
    world.refused(FetchError, "is not trusted", trust_keys_from_https=True, insecure="tls,http")
    assert world.keystore.files() == []


# Dependencies


def depends(*names: str, **fields: Any) -> dict[str, Any]:
    return {"dependencies": [{"imageName": name, **fields} for name in names]}


def test_dependencies_come_along(world: World) -> None:
    world.trust()
    world.publish("example.com/base")
    world.publish("example.com/left", **depends("example.com/base"))
    world.publish("example.com/right", **depends("example.com/base"))
    world.publish(**depends("example.com/left", "example.com/right"))
    record = world.fetch()
    assert sorted(one.manifest.name for one in world.store.images()) == [
        NAME, "example.com/base", "example.com/left", "example.com/right",
    ]  # fmt: skip
    assert world.asked().count("/example.com/base.aci") == 1
    assert all(one.verification for one in world.store.images())
    assert Path(world.store.root_layers(record)[0], "file").read_text() == "hello"


def test_dependencies_of_a_fresh_image_are_fetched_as_well(world: World) -> None:
    world.trust()
    world.publish("example.com/base")
    world.publish(headers={"Cache_Control": "max-age=1000"}, **depends("example.com/base"))
    world.fetch()
    base = world.store.find("example.com/base", {})
    assert base is not None
    with world.store.lock(exclusive=True):
        world.store.remove(base.id)
    for policy in ("update", "new"):
        world.fetch(policy=policy)
        assert world.store.find("example.com/base", {})


def test_a_dependency_that_is_missing_keeps_the_image_out(world: World) -> None:
    world.trust()
    world.publish(**depends("example.com/base"))
    world.refused(FetchError, "no ac-discovery tag for example.com/base")


def test_a_dependency_signed_by_somebody_else_keeps_the_image_out(world: World) -> None:
    world.trust()
    world.publish("example.com/base", key=world.keys.other)
    world.publish(**depends("example.com/base"))
    world.refused(verify.UnknownKey, "example.com/base.aci.asc was made by")


@pytest.mark.parametrize("names", [(NAME,), ("example.com/b", NAME), ("example.com/b", "example.com/c", NAME)])
def test_circles_are_refused(world: World, names: tuple[str, ...]) -> None:
    world.trust()
    for name, below in zip((NAME, *names), names, strict=False):
        world.publish(name, **depends(below))
    error = world.refused(ImageError, "its dependencies go in a circle: ")
    assert error.message.count(" → ") == len(names)


def test_a_chain_without_end_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_DEPTH", 3)
    world.trust()
    for at in range(5):
        world.publish(f"example.com/n{at}", **depends(f"example.com/n{at + 1}"))
    world.refused(ImageError, "its dependencies do not end", "example.com/n0")


def image_id(world: World, name: str) -> str:
    """The ID of an image on the site, found out by fetching it elsewhere."""
    elsewhere = Store(str(world.directory / "elsewhere"))
    client = Client(world.config)
    found = remote.fetch_aci(world.config, elsewhere, world.keystore, reference.parse(name), client=client)
    return found.id


def test_the_id_and_size_of_a_dependency(world: World) -> None:
    world.trust()
    base = world.publish("example.com/base")
    wanted, size = image_id(world, "example.com/base"), base.stat().st_size
    world.publish(**depends("example.com/base", imageID=wanted, size=size))
    world.fetch()
    assert world.store.find_by_id(wanted).manifest.name == "example.com/base"
    # An ID is for ever: nobody is asked again.
    world.fetch()
    assert not [path for path in world.asked() if "base" in path]


def test_another_size_is_refused(world: World) -> None:
    world.trust()
    size = world.publish("example.com/base").stat().st_size
    for wrong in (size - 1, size + 1):
        world.publish(**depends("example.com/base", size=wrong))
        world.refused(FetchError, f"it has {size} octets, and ")


def test_another_id_is_refused(world: World) -> None:
    world.trust()
    world.publish("example.com/base")
    world.publish(**depends("example.com/base", imageID="sha512-" + "0" * 128))
    world.refused(ImageError, "as the dependency wants")


def test_an_id_of_another_image_is_refused(world: World) -> None:
    world.trust()
    world.publish("example.com/other")
    other = world.fetch("example.com/other")
    world.publish(**depends("example.com/base", imageID=other.id))
    world.refused(ImageError, 'is the image "example.com/other", not example.com/base')


def test_labels_of_a_dependency(world: World) -> None:
    world.trust()
    world.publish("example.com/base")
    world.publish(**depends("example.com/base", labels=[{"name": "version", "value": "2"}]))
    world.refused(ImageError, 'the label version should be "2", and it has "1"')


# Several at once


FETCH = """
import sys
from aci.store import Store
from stage0 import reference, remote
from stage0.config import Config
from stage0.keystore import Keystore
config = Config(data_dir=sys.argv[1], system_config=sys.argv[2], local_config=sys.argv[3])
keystore = Keystore(config.local_config, config.system_config)
said = lambda text: print(text, file=sys.stderr, flush=True)
print(remote.fetch_aci(config, Store(config.store), keystore, reference.parse(sys.argv[4]), say=said).id)
"""


def gated(then: Page) -> tuple[Page, threading.Event, threading.Event]:
    """A page that says when it was asked for, and waits for permission."""
    asked, go = threading.Event(), threading.Event()

    def answer(handler: servers.Handler) -> None:
        asked.set()
        go.wait(60)
        then(handler)

    return answer, asked, go


def start(world: World, what: str = NAME) -> subprocess.Popen[str]:
    config = world.config
    words = [sys.executable, "-c", FETCH, config.data_dir, config.system_config, config.local_config, what]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_line(stream: Any, wanted: Callable[[str], bool]) -> list[str]:
    lines = []
    for line in stream:
        lines.append(line)
        if wanted(line):
            break
    return lines


def test_two_fetches_download_once(world: World) -> None:
    world.trust()
    world.publish()
    world.site.pages[PAGE], asked, go = gated(world.site.pages[PAGE])
    first = start(world)
    assert asked.wait(60)
    second = start(world)
    assert second.stderr is not None
    lines = wait_for_line(second.stderr, lambda line: "waiting" in line)
    assert lines[-1:] == [f"image: another rkpy is downloading {BASE}{IMAGE}, waiting for it\n"]
    go.set()
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert outputs[0][0] == outputs[1][0] != ""
    assert world.asked() == [SIGNATURE, IMAGE]
    assert os.listdir(f"{world.store.root}/tmp") == []


def test_whoever_waited_for_a_failure_tries_again(world: World) -> None:
    world.trust()
    world.publish()
    good = world.site.pages[PAGE]
    world.site.pages[PAGE], asked, go = gated(servers.in_turn(servers.status(404), good))
    first = start(world)
    assert asked.wait(60)
    second = start(world)
    assert second.stderr is not None
    wait_for_line(second.stderr, lambda line: "waiting" in line)
    go.set()
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert (first.returncode, second.returncode) == (1, 0), outputs
    assert "404 Not Found" in outputs[0][1]


def test_a_killed_fetch_is_gone_on_with(world: World) -> None:
    world.trust()
    path = world.publish(headers={"ETag": '"1"'}, content="\n".join(map(str, range(200_000))))
    body = path.read_bytes()
    sent, go = threading.Event(), threading.Event()

    def half(handler: servers.Handler) -> None:
        handler.head(200, Content_Length=str(len(body)), ETag='"1"')
        handler.wfile.write(body[: len(body) // 2])
        handler.wfile.flush()
        sent.set()
        go.wait(60)

    whole, world.site.pages[PAGE] = world.site.pages[PAGE], half
    process = start(world)
    assert sent.wait(60)
    partial = Path(world.store.root, "tmp", f"fetch-{httpcache.key(f'{BASE}{IMAGE}')}", "image")
    while not (partial.exists() and partial.stat().st_size):
        assert process.poll() is None
    process.kill()
    process.communicate(timeout=60)
    go.set()
    world.site.pages[PAGE] = whole
    assert world.fetch().verification
    assert world.site.seen[-1].headers["range"].startswith("bytes=")
    assert len(os.listdir(f"{world.store.root}/tmp")) <= 1  # the staging of the one that was killed
