"""appC discovery: what pages say, whom it is about, and where it leads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aci.types import host_platform
from stage0 import discovery
from stage0.config import Config
from stage0.discovery import Endpoint
from stage0.http import Client, FetchError
from tests import servers
from tests.servers import Site

OS, ARCH = host_platform()
TEMPLATE = "https://mirror.example.com/{name}-{version}-{os}-{arch}.{ext}"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Every name leads here, through a proxy."""
    monkeypatch.setenv("SSL_CERT_FILE", servers.authority().certificate)
    monkeypatch.delenv("no_proxy", raising=False)
    with servers.site() as found, servers.proxy(found.port) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        yield found


@pytest.fixture
def client(site: Site, tmp_path: Path) -> Client:
    return Client(Config(system_config=str(tmp_path), local_config=str(tmp_path)), sleep=lambda seconds: None)


def image(prefix: str, template: str = TEMPLATE) -> tuple[str, str]:
    return "ac-discovery", f"{prefix} {template}"


def key(prefix: str, url: str) -> tuple[str, str]:
    return "ac-discovery-pubkeys", f"{prefix} {url}"


def refused(client: Client, name: str) -> FetchError:
    with pytest.raises(FetchError) as error:
        discovery.images(client, name, {})
    assert error.value.message.startswith("discovery failed: ") and error.value.hint
    return error.value


# Pages


def test_a_name_leads_to_its_image_and_signature(site: Site, client: Client) -> None:
    site.pages["//example.com/app"] = servers.html(image("example.com/app"))
    base = f"https://mirror.example.com/example.com/app-1.0-{OS}-{ARCH}"
    assert discovery.images(client, "example.com/app", {"version": "1.0"}) == (
        Endpoint(f"{base}.aci", f"{base}.aci.asc"),
    )
    assert [one.path for one in site.seen] == ["/app?ac-discovery=1"]


def test_what_is_not_asked_for_is_the_latest_for_this_host(site: Site, client: Client) -> None:
    site.pages["//example.com/app"] = servers.html(
        image("example.com", "https://example.com/{version}/{os}/{arch}.aci")
    )
    (found,) = discovery.images(client, "example.com/app", {"arch": "s390x"})
    assert found.image == f"https://example.com/latest/{OS}/s390x.aci"


def test_shorter_names_are_asked_down_to_the_host(site: Site, client: Client) -> None:
    site.pages["//example.com/a/b"] = servers.status(403)
    site.pages["//example.com/a"] = servers.html(("description", "nothing"))
    site.pages["//example.com/"] = servers.html(image("example.com"))
    assert len(discovery.images(client, "example.com/a/b/c", {})) == 1
    assert site.paths() == ["/a/b/c", "/a/b", "/a", "/"]


def test_the_first_page_with_tags_decides(site: Site, client: Client) -> None:
    site.pages["//example.com/a"] = servers.html(image("example.com/a", "https://example.com/near.{ext}"))
    site.pages["//example.com/"] = servers.html(image("example.com", "https://example.com/far.{ext}"))
    assert [one.image for one in discovery.images(client, "example.com/a/b", {})] == ["https://example.com/near.aci"]


def test_several_places_keep_their_order(site: Site, client: Client) -> None:
    places = [image("example.com/app", f"https://{host}.example.com/x.{{ext}}") for host in "zay"]
    site.pages["//example.com/app"] = servers.html(*places)
    found = [one.signature for one in discovery.images(client, "example.com/app", {})]
    assert found == [f"https://{host}.example.com/x.aci.asc" for host in "zay"]


def test_templates_that_cannot_be_filled_are_passed_over(site: Site, client: Client) -> None:
    site.pages["//example.com/app"] = servers.html(
        image("example.com/app", "https://example.com/{flavour}/{name}.{ext}"),
        image("example.com/app", "https://example.com/{name}.{ext}"),
    )
    assert [one.image for one in discovery.images(client, "example.com/app", {})] == [
        "https://example.com/example.com/app.aci"
    ]
    found = discovery.images(client, "example.com/app", {"flavour": "sweet"})
    assert found[0].image == "https://example.com/sweet/example.com/app.aci" and len(found) == 2


def test_redirects_are_followed(site: Site, client: Client) -> None:
    site.pages["//example.com/app"] = servers.redirect("https://mirror.example.com/page", 301)
    site.pages["//mirror.example.com/page"] = servers.html(image("example.com/app"))
    assert len(discovery.images(client, "example.com/app", {})) == 1


def test_keys(site: Site, client: Client) -> None:
    site.pages["//example.com/app"] = servers.html(
        key("example.com/app", "https://example.com/1.asc"), key("example.com/other", "https://example.com/2.asc"),
        key("example.com", "https://example.com/3.asc"), key("example.com", "file:///etc/4.asc"),
        image("example.com/app"),
    )  # fmt: skip
    assert discovery.keys(client, "example.com/app") == ("https://example.com/1.asc", "https://example.com/3.asc")


# What does not work


def test_no_tag_names_all_pages(site: Site, client: Client) -> None:
    site.pages["//example.com/a"] = servers.html(image("example.com/app"))
    site.pages["//example.com/"] = servers.html(image("example.com"), content_type="application/json")
    error = refused(client, "example.com/a/b")
    assert error.message == (
        "discovery failed: no ac-discovery tag for example.com/a/b at"
        " example.com/a/b (404), example.com/a (no tag), example.com ('application/json' is no web page)"
    )


@pytest.mark.parametrize("prefix", ["example.com/foo", "example.com/fo", "example.co", "xample.com", "/", "example"])
def test_prefixes_are_whole_components(site: Site, client: Client, prefix: str) -> None:
    site.pages["//example.com/foobar"] = servers.html(image(prefix))
    assert "no ac-discovery tag for example.com/foobar" in refused(client, "example.com/foobar").message


def test_trouble_is_not_mistaken_for_absence(site: Site, client: Client) -> None:
    site.pages["//example.com/a"] = servers.status(500)
    site.pages["//example.com/"] = servers.html(image("example.com"))
    assert "500 Internal Server Error" in refused(client, "example.com/a").message
    assert "/" not in site.paths()


def test_plain_http_is_tried_only_when_allowed(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(system_config=str(tmp_path), local_config=str(tmp_path))
    with servers.site(tls=False) as plain:
        monkeypatch.setenv("https_proxy", plain.url("/"))  # no TLS to be had
        monkeypatch.setenv("http_proxy", plain.url("/"))
        plain.pages["//example.com/app"] = servers.html(image("example.com/app"))
        refused(Client(config, attempts=1), "example.com/app")
        assert "GET" not in [one.method for one in plain.seen]
        insecure = Client(config._replace(insecure=frozenset({"http"})), attempts=1)
        assert len(discovery.images(insecure, "example.com/app", {})) == 1


@pytest.mark.parametrize("name", ["busybox", "under_score.com/app", "a..b/c"])
def test_names_without_a_real_host(client: Client, name: str) -> None:
    refused(client, name)


def test_a_bare_name_hints_at_registries(site: Site, client: Client) -> None:
    assert "docker://busybox" in refused(client, "busybox").hint


def test_an_endless_page_is_cut(site: Site, client: Client) -> None:
    site.pages["//example.com/app"] = servers.endless(Content_Type="text/html")
    assert "does not end" in refused(client, "example.com/app").message


# Reading tags


def found(page: str) -> list[tuple[str, str, str]]:
    return list(discovery.tags(page))


GOOD = '<meta name="ac-discovery" content="a.b c://d">'
FOUND = ("ac-discovery", "a.b", "c://d")


@pytest.mark.parametrize(
    "page",
    [
        GOOD, GOOD.upper().replace("A.B C://D", "a.b c://d"), "<!DOCTYPE html><html><head>" + GOOD,
        "<meta content='a.b   c://d' name=ac-discovery />", "<meta\nname=ac-discovery\ncontent='a.b\nc://d'\n>",
        "a < b" + GOOD, "<!-- <body> -->" + GOOD, "<title></head></title>" + GOOD, "<x y='</head>'>" + GOOD,
        "<script>if (a<b) '<body>'</script>" + GOOD, "<meta name=ac-discovery content='a.b c&colon;//d'>",
    ],
)  # fmt: skip
def test_tags_that_count(page: str) -> None:
    assert found(page) == [FOUND]


@pytest.mark.parametrize(
    "page",
    [
        "<body>" + GOOD, "<html><head></head>" + GOOD, "<!-- " + GOOD + " -->", "<!-- " + GOOD, "<title>" + GOOD,
        "<script>" + GOOD + "</script>", "<style>" + GOOD, "<p title='" + GOOD + "'>", "&lt;" + GOOD[1:], GOOD[:-1],
        "<metal" + GOOD[5:], "<meta content='a.b c://d'>", "<meta name=ac-discovery>", "<x '>" + GOOD,
        "<meta name=ac-discovery content='a.b c://d e'>", "<meta name=ac-discovery content='a.b'>",
        "<meta name=other name=ac-discovery content='a.b c://d'>",
        "<meta name=ac-discovery content='a.b c" + "d" * 5000 + "'>",
    ],
)  # fmt: skip
def test_tags_that_do_not_count(page: str) -> None:
    assert found(page) == []


@given(st.text(alphabet="<>/!-'\" =abmet&;\n", max_size=200))
def test_any_page_can_be_read(page: str) -> None:
    assert all(len(one) == 3 for one in discovery.tags(page))


@pytest.mark.parametrize("pattern", ["<", "<a", "<!--", "<a b='", "<meta x ", "<a b=", "<script>", "<meta x=''", "<!"])
def test_hostile_pages_are_read_in_small_bites(pattern: str) -> None:
    """html.parser takes quadratic time for some of them: minutes for a page, nothing for a tag."""
    size = discovery.MAX_PAGE // len(pattern)
    for page in (pattern * size + ">", f"{pattern}>" * size):
        assert all(len(tag) <= discovery.MAX_TAG for tag in discovery._meta_tags(page))
        assert found(page) == []


# Templates


def test_values_cannot_leave_their_place() -> None:
    assert discovery.expand("https://a.b/{version}/x.{ext}", "c.d/e", "aci", {"version": "../../f?g#h"}) == (
        "https://a.b/..%2F..%2Ff%3Fg%23h/x.aci"
    )


@pytest.mark.parametrize(
    "template", ["/x", "ftp://a.b/x", "https://", "{name}", "https://me:pw@a.b/x", "https://a.b/{}"]
)
def test_templates_that_are_no_url(template: str) -> None:
    assert discovery.expand(template, "c.d", "aci", {}) == ""


@pytest.mark.parametrize(
    ("prefix", "name", "covered"),
    [
        ("a.b", "a.b", True), ("a.b", "a.b/c", True), ("a.b/", "a.b/c", True), ("a.b/c", "a.b/c/d", True),
        ("a.b/c", "a.b/cd", False), ("a.b/c/d", "a.b/c", False), ("", "a.b", False), ("a.", "a.b", False),
    ],
)  # fmt: skip
def test_covers(prefix: str, name: str, covered: bool) -> None:
    assert discovery.covers(prefix, name) is covered
