"""`rkpy trust` with keys from the network: announced by a name, or named by their URL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stage0.keystore import Keystore
from tests import servers
from tests.gpg import Signer, signer
from tests.servers import Proxy, Site

ROOT = Path(__file__).parents[2]
PREFIX = "example.com/app"


@pytest.fixture(scope="module")
def who() -> Iterator[Signer]:
    with signer() as found:
        yield found


@pytest.fixture(scope="module")
def alice(who: Signer) -> str:
    return who.key("Alice <alice@example.com>")


@pytest.fixture
def site() -> Iterator[Site]:
    with servers.site() as found:
        yield found


@pytest.fixture
def proxy(site: Site) -> Iterator[Proxy]:
    with servers.proxy(site.port) as found:
        yield found


class Host:
    """A host that trusts nobody yet."""

    def __init__(self, directory: Path, proxy: Proxy) -> None:
        self.directory = directory
        self.environment = {
            **os.environ, "SSL_CERT_FILE": servers.authority().certificate, "https_proxy": proxy.url, "no_proxy": "",
        }  # fmt: skip

    def trust(self, *words: str, http_proxy: str = "", review: bool = False) -> subprocess.CompletedProcess[str]:
        own = [f"--local-config={self.directory}/etc", f"--system-config={self.directory}/usr"]
        extra = [] if review else ["--skip-fingerprint-review"]
        return subprocess.run(
            [sys.executable, "-m", "rkpy", *own, "trust", *extra, *words],
            cwd=ROOT, env={**self.environment, "http_proxy": http_proxy}, text=True, capture_output=True, timeout=60,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def refused(self, message: str, *words: str, **options: str) -> None:
        done = self.trust(*words, **options)  # type: ignore[arg-type]
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (254, "", 1), done
        assert message in done.stderr
        assert self.keys() == []

    def keys(self) -> list[tuple[str, str]]:
        files = Keystore(f"{self.directory}/etc", f"{self.directory}/usr").files()
        return [(file.prefix, file.fingerprint) for file in files]


@pytest.fixture
def host(tmp_path: Path, proxy: Proxy) -> Host:
    return Host(tmp_path, proxy)


def announce(site: Site, *urls: str) -> None:
    site.pages["//example.com/app"] = servers.html(*(("ac-discovery-pubkeys", f"example.com {url}") for url in urls))


def test_keys_that_a_prefix_announces(host: Host, site: Site, who: Signer, alice: str) -> None:
    bob = who.key("Bob <bob@example.com>")
    announce(site, "https://example.com/alice.asc", "https://mirror.example.com/bob.gpg")
    site.pages["//example.com/alice.asc"] = servers.page(who.export(alice))
    site.pages["//mirror.example.com/bob.gpg"] = servers.page(who.export(bob, armor=False))
    done = host.trust(f"--prefix={PREFIX}")
    assert done.returncode == 0 and done.stdout.count(f'Added key for prefix "{PREFIX}" at') == 2, done
    assert sorted(host.keys()) == sorted([(PREFIX, alice), (PREFIX, bob)])


def test_a_key_by_its_url(host: Host, site: Site, who: Signer, alice: str) -> None:
    site.pages["//example.com/alice.asc"] = servers.page(who.export(alice))
    assert host.trust("--root", "https://example.com/alice.asc").returncode == 0
    assert host.keys() == [("", alice)]


def test_no_credentials_are_sent_for_keys(host: Host, site: Site, who: Signer, alice: str) -> None:
    folder = host.directory / "etc" / "auth.d"
    folder.mkdir(parents=True)
    document = {"rktKind": "auth", "rktVersion": "v1", "domains": ["example.com"], "type": "oauth"}
    (folder / "a.json").write_text(json.dumps({**document, "credentials": {"token": "t"}}))
    site.pages["//example.com/alice.asc"] = servers.page(who.export(alice))
    announce(site, "https://example.com/alice.asc")
    assert host.trust(f"--prefix={PREFIX}").returncode == 0
    sent = {one.path: one.headers.get("authorization") for one in site.seen}
    assert sent == {"/app?ac-discovery=1": "Bearer t", "/alice.asc": None}


def test_keys_from_the_network_are_reviewed(host: Host, site: Site, who: Signer, alice: str) -> None:
    announce(site, "https://example.com/alice.asc")
    site.pages["//example.com/alice.asc"] = servers.page(who.export(alice))
    done = host.trust(f"--prefix={PREFIX}", review=True)
    assert done.returncode == 254 and "cannot ask whether to trust https://example.com/alice.asc" in done.stderr
    assert host.keys() == []


def test_plain_http_only_when_allowed(host: Host, who: Signer, alice: str) -> None:
    with servers.site(tls=False) as plain:
        announce(plain, "http://example.com/alice.asc")
        plain.pages["//example.com/alice.asc"] = servers.page(who.export(alice))
        host.environment["https_proxy"] = plain.url("/")
        address = plain.url("/")
        host.refused("plain http is neither private", "--root", "http://example.com/alice.asc", http_proxy=address)
        assert plain.seen == []
        assert host.trust(f"--prefix={PREFIX}", "--insecure-allow-http", http_proxy=address).returncode == 0
    assert host.keys() == [(PREFIX, alice)]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (servers.status(404), "get public key https://example.com/alice.asc: 404 Not Found"),
        (servers.status(403), "get public key https://example.com/alice.asc: 403 Forbidden"),
        (servers.html(), "https://example.com/alice.asc is not an OpenPGP public key"),
        (servers.endless(), "does not end, and more than 1048576 are not taken"),
        (servers.redirect("http://example.com/x"), "plain http is neither private"),
    ],
)
def test_keys_that_do_not_come(host: Host, site: Site, answer: servers.Page, message: str) -> None:
    announce(site, "https://example.com/alice.asc")
    site.pages["//example.com/alice.asc"] = answer
    host.refused(message, f"--prefix={PREFIX}")


def test_a_prefix_that_announces_nothing(host: Host, site: Site) -> None:
    host.refused("discovery failed: no ac-discovery-pubkeys tag for example.com/app", f"--prefix={PREFIX}")


def test_a_root_key_is_announced_nowhere(host: Host, site: Site) -> None:
    host.refused("no key given", "--root")
    assert site.seen == []
