"""The HTTP client against a real server over TLS that does what servers should, and what they should not."""

from __future__ import annotations

import email.utils
import json
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.errors import ConfigError
from rkpy import VERSION
from stage0 import http
from stage0.config import Config
from stage0.http import Client, FetchError
from tests import servers
from tests.servers import Page, Proxy, Site

BODY = bytes(range(256)) * 2000


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("SSL_CERT_FILE", servers.authority().certificate)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with servers.site() as found:
        yield found


@pytest.fixture
def proxy(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Names of the real world lead to `site`."""
    with servers.proxy(site.port) as found:
        monkeypatch.setenv("https_proxy", found.url)
        yield found


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(system_config=str(tmp_path / "usr"), local_config=str(tmp_path / "etc"))


@pytest.fixture
def client(site: Site, config: Config, pauses: list[float]) -> Client:
    return Client(config, sleep=pauses.append)


def credentials(config: Config, *hosts: str) -> str:
    """Write credentials for `hosts`; the header they come to."""
    folder = Path(config.local_config) / "auth.d"
    folder.mkdir(parents=True, exist_ok=True)
    document = {"rktKind": "auth", "rktVersion": "v1", "domains": hosts, "type": "oauth"}
    (folder / "a.json").write_text(json.dumps({**document, "credentials": {"token": "secret"}}))
    return "Bearer secret"


def refused(action: Callable[[], object]) -> FetchError:
    with pytest.raises(FetchError) as error:
        action()
    assert error.value.hint
    assert "\n" not in str(error.value)
    return error.value


# What is sent and taken


def test_a_document(site: Site, client: Client) -> None:
    site.pages["/doc"] = servers.page("häll\xff".encode(), Content_Type="text/plain")
    assert client.text(site.url("/doc?key=1#part")) == "hällÿ"
    (seen,) = site.seen
    assert (seen.method, seen.path) == ("GET", "/doc?key=1")
    assert seen.headers["user-agent"] == f"rkpy/{VERSION}"
    assert seen.headers["accept-encoding"] == "identity"
    assert "authorization" not in seen.headers


def test_a_body_is_streamed_in_small_pieces(site: Site, client: Client) -> None:
    site.pages["/big"] = servers.page(BODY)
    with client.open(site.url("/big"), limit=len(BODY)) as response:
        pieces = list(iter(response.read, b""))
        assert (response.status, response.length, response.headers["content-LENGTH"]) == (
            200,
            len(BODY),
            str(len(BODY)),
        )
    assert b"".join(pieces) == BODY and max(map(len, pieces)) <= http.PIECE


def test_one_connection_serves_several_requests(site: Site, client: Client) -> None:
    site.pages["/a"] = servers.redirect("/b")
    site.pages["/b"] = servers.page(b"b")
    for _ in range(3):
        assert client.text(site.url("/a")) == "b"
    assert len(site.seen) == 6


def test_other_statuses_can_be_asked_for(site: Site, client: Client) -> None:
    site.pages["/a"] = servers.status(401, WWW_Authenticate="Bearer realm=x")
    with client.open(site.url("/a"), ok=(200, 401)) as response:
        assert (response.status, response.headers["www-authenticate"]) == (401, "Bearer realm=x")


def test_post_and_head(site: Site, client: Client) -> None:
    site.pages["/a"] = servers.page(b"answer")
    assert client.text(site.url("/a"), method="POST", body=b"x=1") == "answer"
    with client.open(site.url("/a"), method="HEAD", limit=1) as response:
        assert response.length == 6
    assert [one.method for one in site.seen] == ["POST", "HEAD"]


# TLS


def test_an_unknown_authority_is_refused(site: Site, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    error = refused(lambda: Client(config).text(site.url("/")))
    assert "the certificate of localhost" in error.message and "is not trusted" in error.message
    assert error.hint.rpartition("; ")[2].startswith("--insecure-options=tls")
    assert site.seen == []


def test_a_certificate_for_another_host_is_refused(proxy: Proxy, client: Client) -> None:
    error = refused(lambda: client.text("https://other.example.org/"))
    assert "the certificate of other.example.org" in error.message and "Hostname mismatch" in error.message


def test_tls_can_be_taken_from_anybody(site: Site, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    site.pages["/"] = servers.page(b"hello")
    assert Client(config._replace(insecure=frozenset({"tls"}))).text(site.url("/")) == "hello"


def test_a_certificate_file_that_is_not_there(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent/ca.pem")
    with pytest.raises(ConfigError, match=r"SSL_CERT_FILE names /nonexistent/ca\.pem, which is no file"):
        Client(config)


def test_plain_http_needs_permission(config: Config, client: Client) -> None:
    with servers.site(tls=False) as plain:
        plain.pages["/"] = servers.page(b"hello")
        error = refused(lambda: client.text(plain.url("/")))
        assert "plain http" in error.message and "--insecure-options=http" in error.hint
        assert plain.seen == []
        assert Client(config._replace(insecure=frozenset({"http"}))).text(plain.url("/")) == "hello"


def test_a_server_without_tls(config: Config, client: Client) -> None:
    with servers.site(tls=False) as plain:
        error = refused(lambda: client.text(f"https://localhost:{plain.port}/"))
    assert f"no TLS with localhost:{plain.port}" in error.message


def test_connections_change_nothing_in_the_context_they_share(
    site: Site, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What OpenSSL frees when the protocols are set anew may be what the connection of another thread is copying."""
    context = http.tls_context()
    changes: list[object] = []
    monkeypatch.setattr(ssl.SSLContext, "set_alpn_protocols", lambda context, protocols: changes.append(protocols))
    site.pages["/"] = servers.page(b"hello")
    for _ in range(2):
        assert Client(config, context=context).text(site.url("/")) == "hello"
    assert changes == []


def test_the_protocol_is_offered(site: Site, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    context = http.tls_context()
    server = servers.authority().context()
    server.set_alpn_protocols(["h2", "http/1.1"])
    monkeypatch.setattr(site, "_context", server)
    agreed: list[str | None] = []

    def answer(handler: servers.Handler) -> None:
        agreed.append(handler.connection.selected_alpn_protocol())
        handler.answer(200)

    site.pages["/"] = answer
    Client(config, context=context).text(site.url("/"))
    assert agreed == ["http/1.1"]


@pytest.mark.parametrize("url", ["ftp://localhost/", "localhost/x", "https:///x", "https://a b/", "https://[::1/", "x"])
def test_what_is_no_url(client: Client, url: str) -> None:
    assert "no URL" in refused(lambda: client.text(url)).message


def test_a_url_with_a_password_is_refused_and_not_shown(client: Client) -> None:
    error = refused(lambda: client.text("https://me:hunter2@example.com/x"))
    assert "has credentials in it" in error.message and "hunter2" not in str(error)


# Credentials


def test_credentials_go_to_their_host(site: Site, config: Config, client: Client) -> None:
    header = credentials(config, f"localhost:{site.port}")
    site.pages["/"] = servers.login(header, servers.page(b"in"))
    assert client.text(site.url("/")) == "in"


def test_credentials_for_a_host_are_not_for_its_other_ports(site: Site, config: Config, client: Client) -> None:
    header = credentials(config, "localhost")
    site.pages["/"] = servers.login(header, servers.page(b"in"))
    error = refused(lambda: client.text(site.url("/")))
    assert error.status == 401 and f"{config.local_config}/auth.d" in error.hint
    assert "authorization" not in site.seen[0].headers


def test_refused_credentials_name_their_file(site: Site, config: Config, client: Client) -> None:
    credentials(config, f"localhost:{site.port}")
    site.pages["/"] = servers.status(403)
    error = refused(lambda: client.text(site.url("/")))
    assert "403 Forbidden" in error.message
    assert error.hint == f"localhost:{site.port} does not accept the credentials in {config.local_config}/auth.d/a.json"


def test_credentials_never_go_over_plain_http(config: Config, site: Site) -> None:
    with servers.site(tls=False) as plain:
        credentials(config, f"localhost:{plain.port}")
        plain.pages["/"] = servers.page(b"hello")
        client = Client(config._replace(insecure=frozenset({"http"})))
        client.text(plain.url("/"), headers={"authorization": "Basic given", "Cookie": "a=b"})
    assert not {"authorization", "cookie"} & set(plain.seen[0].headers)


def test_a_redirect_to_another_host_gets_its_own_credentials_only(
    site: Site, proxy: Proxy, config: Config, client: Client
) -> None:
    credentials(config, "example.com")
    site.pages["//example.com/a"] = servers.redirect("https://evil.example.net/b")
    site.pages["//evil.example.net/b"] = servers.page(b"b")
    assert client.text("https://example.com/a") == "b"
    headers = {"Authorization": "Basic given", "Cookie": "a=b", "Accept": "x/y"}
    assert client.text("https://example.com/a", headers=headers) == "b"
    found = [(one.host, one.headers.get("authorization"), one.headers.get("cookie")) for one in site.seen]
    assert found == [
        ("example.com", "Bearer secret", None), ("evil.example.net", None, None),
        ("example.com", "Basic given", "a=b"), ("evil.example.net", None, None),
    ]  # fmt: skip
    assert site.seen[-1].headers["accept"] == "x/y"


def test_a_redirect_on_the_same_host_keeps_what_was_given(site: Site, client: Client) -> None:
    site.pages["/a"] = servers.redirect("b", 307)
    site.pages["/b"] = servers.page(b"b")
    client.text(site.url("/a"), headers={"Authorization": "Basic given"})
    assert site.seen[1].headers["authorization"] == "Basic given"


# Redirects


def test_a_redirect_to_plain_http_is_refused(site: Site, client: Client) -> None:
    site.pages["/a"] = servers.redirect("http://localhost:1/b")
    assert "plain http" in refused(lambda: client.text(site.url("/a"))).message


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://localhost/", "https://me:pw@localhost/"])
def test_a_redirect_elsewhere_is_refused(site: Site, client: Client, to: str) -> None:
    site.pages["/a"] = servers.redirect(to)
    refused(lambda: client.text(site.url("/a")))
    assert site.paths() == ["/a"]


def test_redirects_in_a_circle_end(site: Site, client: Client) -> None:
    site.pages["/a"] = servers.redirect("/a")
    assert "more than 10 redirects" in refused(lambda: client.text(site.url("/a"))).message
    assert len(site.seen) == 11


def test_a_redirect_without_a_target(site: Site, client: Client) -> None:
    site.pages["/a"] = servers.status(302)
    assert "302 without a Location" in refused(lambda: client.text(site.url("/a"))).message


def test_a_post_is_not_redirected(site: Site, client: Client) -> None:
    site.pages["/a"] = servers.redirect("/b", 307)
    with client.open(site.url("/a"), method="POST", body=b"secret", ok=(200, 307)) as response:
        assert response.status == 307
    assert refused(lambda: client.text(site.url("/a"), method="POST", body=b"secret")).status == 307


# Statuses and retries


@pytest.mark.parametrize(
    ("code", "says", "advice"),
    [
        (400, "400 Bad Request", "does not do what was asked for"),
        (401, "401 Unauthorized", "auth.d"),
        (403, "403 Forbidden", "auth.d"),
        (404, "404 Not Found", "there is no such image; check the name and the version"),
        (418, "418 I'm a Teapot", "check the address"),
        (599, "599 (unknown status)", "check the address"),
    ],
)
def test_statuses_that_are_final(
    site: Site, client: Client, pauses: list[float], code: int, says: str, advice: str
) -> None:
    site.pages["/a"] = servers.status(code)
    error = refused(lambda: client.text(site.url("/a?token=secret"), what="image"))
    assert error.message == f"get image {site.url('/a')}: {says}" and advice in error.hint
    assert (error.status, error.url, pauses) == (code, site.url("/a?token=secret"), [])


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_a_server_in_trouble_is_asked_again(site: Site, client: Client, pauses: list[float], code: int) -> None:
    site.pages["/a"] = servers.in_turn(servers.status(code), servers.status(code), servers.page(b"well"))
    assert client.text(site.url("/a")) == "well"
    assert len(pauses) == 2 and 0 < pauses[0] < pauses[1] < 2


def test_trouble_that_stays_is_reported(site: Site, client: Client, pauses: list[float]) -> None:
    site.pages["/a"] = servers.status(500)
    error = refused(lambda: client.text(site.url("/a")))
    assert error.message.endswith("500 Internal Server Error") and "try again later" in error.hint
    assert len(site.seen) == http.ATTEMPTS == len(pauses) + 1


def test_the_server_says_how_long_to_wait(site: Site, client: Client, pauses: list[float]) -> None:
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    site.pages["/a"] = servers.in_turn(
        servers.status(429, Retry_After="7"), servers.status(503, Retry_After=date), servers.page(b"well")
    )
    assert client.text(site.url("/a")) == "well"
    assert pauses[0] == 7 and 1 < pauses[1] <= 30


def test_nobody_waits_for_an_hour(site: Site, client: Client, pauses: list[float]) -> None:
    site.pages["/a"] = servers.status(429, Retry_After="3600")
    error = refused(lambda: client.text(site.url("/a")))
    assert "429 Too Many Requests" in error.message and "3600 seconds" in error.hint
    assert (pauses, len(site.seen)) == ([], 1)


def test_a_server_that_is_not_there(client: Client, pauses: list[float]) -> None:
    with servers.site() as gone:
        url = gone.url("/")
    error = refused(lambda: client.text(url))
    assert error.message.endswith("connection refused") and len(pauses) == http.ATTEMPTS - 1


def test_a_name_that_is_not_there(client: Client, pauses: list[float]) -> None:
    error = refused(lambda: client.text("https://nonexistent.invalid/"))
    assert "the name nonexistent.invalid cannot be resolved" in error.message


# Servers that misbehave


@pytest.mark.parametrize("misbehaviour", [servers.silent(), *map(servers.dripping, ("headers", "body", "chunk"))])
def test_a_slow_server_is_left(site: Site, config: Config, misbehaviour: Page) -> None:
    site.pages["/a"] = misbehaviour
    client = Client(config, timeout=0.2, attempts=1)
    error = refused(lambda: client.text(site.url("/a")))
    assert f"localhost:{site.port} is too slow" in error.message


def test_an_endless_body_is_cut(site: Site, client: Client) -> None:
    site.pages["/a"] = servers.endless()
    error = refused(lambda: client.text(site.url("/a"), limit=1 << 20))
    assert "does not end, and more than 1048576 are not taken" in error.message


def test_a_body_that_is_too_long_is_not_begun(site: Site, client: Client) -> None:
    site.pages["/a"] = servers.page(BODY)
    error = refused(lambda: client.text(site.url("/a"), limit=1000))
    assert f"it has {len(BODY)} octets, and more than 1000 are not taken" in error.message


def test_a_truncated_body_is_noticed(site: Site, client: Client) -> None:
    site.pages["/a"] = servers.truncated(BODY, 1000)
    assert "ended too early" in refused(lambda: client.text(site.url("/a"), limit=1 << 20)).message


def test_what_is_not_http(site: Site, client: Client) -> None:
    def garbage(handler: servers.Handler) -> None:
        handler.wfile.write(b"\x00\x01garbage\r\n\r\n")
        handler.close_connection = True

    site.pages["/a"] = garbage
    assert f"localhost:{site.port} broke off" in refused(lambda: client.text(site.url("/a"))).message


def test_hostile_text_does_not_reach_the_terminal(site: Site, client: Client) -> None:
    site.pages["/a"] = servers.redirect("https://localhost/\x1b[31mred")
    assert "\x1b" not in str(refused(lambda: client.text(site.url("/a"))))


# Proxies


def test_a_proxy_of_the_environment(site: Site, proxy: Proxy, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//me:secret@"))
    site.pages["//example.com/"] = servers.page(b"hello")
    assert client.text("https://example.com/") == "hello"
    ((target, headers),) = proxy.seen
    assert target == "example.com:443" and headers["proxy-authorization"] == "Basic bWU6c2VjcmV0"
    assert "proxy-authorization" not in site.seen[0].headers


def test_loopback_and_no_proxy_go_direct(
    site: Site, proxy: Proxy, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "example.invalid")
    site.pages["/"] = servers.page(b"hello")
    assert client.text(site.url("/")) == "hello"
    assert "cannot be resolved" in refused(lambda: client.text("https://www.example.invalid/")).message
    assert proxy.seen == []


def test_a_proxy_that_cannot_be_used(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://me:secret@localhost:1")
    with pytest.raises(ConfigError, match="the proxy socks5://localhost:1 cannot be used") as error:
        client.text("https://example.com/")
    assert "secret" not in str(error.value)


# Downloads


def test_a_download(site: Site, client: Client, tmp_path: Path) -> None:
    site.pages["/a"] = servers.page(BODY, ETag='"1"')
    progress: list[tuple[int, int | None]] = []
    pieces: dict[int, bytes] = {}
    done = client.download(
        site.url("/a"), str(tmp_path / "a"), limit=1 << 20, expect_size=len(BODY),
        on_progress=lambda *numbers: progress.append(numbers), on_data=pieces.__setitem__,
    )  # fmt: skip
    assert (done.status, done.size, done.headers["etag"]) == (200, len(BODY), '"1"')
    assert (tmp_path / "a").read_bytes() == BODY == b"".join(pieces[at] for at in sorted(pieces))
    assert progress[-1] == (len(BODY), len(BODY)) and [n for n, _ in progress] == sorted(n for n, _ in progress)


def ranges(site: Site) -> list[str | None]:
    return [one.headers.get("range") for one in site.seen]


def test_a_broken_download_goes_on_where_it_stopped(site: Site, client: Client, tmp_path: Path) -> None:
    tag = '"1"'
    site.pages["/a"] = servers.in_turn(servers.truncated(BODY, 100_000, ETag=tag), servers.page(BODY, ETag=tag))
    done = client.download(site.url("/a"), str(tmp_path / "a"), limit=1 << 20)
    assert (tmp_path / "a").read_bytes() == BODY and done.size == len(BODY)
    assert ranges(site) == [None, "bytes=100000-"]
    assert site.seen[1].headers["if-range"] == tag


@pytest.mark.parametrize("tag", ['W/"1"', ""])
def test_without_a_strong_validator_it_begins_anew(site: Site, client: Client, tmp_path: Path, tag: str) -> None:
    headers = {"ETag": tag} if tag else {"Last_Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    site.pages["/a"] = servers.in_turn(servers.truncated(BODY, 1000, **headers), servers.page(BODY, **headers))
    client.download(site.url("/a"), str(tmp_path / "a"), limit=1 << 20)
    assert (tmp_path / "a").read_bytes() == BODY and ranges(site) == [None, None]


def test_something_else_meanwhile_begins_anew(site: Site, client: Client, tmp_path: Path) -> None:
    other = BODY[::-1]
    site.pages["/a"] = servers.in_turn(servers.truncated(BODY, 1000, ETag='"1"'), servers.page(other, ETag='"2"'))
    client.download(site.url("/a"), str(tmp_path / "a"), limit=1 << 20)
    assert (tmp_path / "a").read_bytes() == other


@pytest.mark.parametrize(
    "lie",
    [
        {"Content_Range": "bytes 0-9/10", "ETag": '"1"'},
        {"Content_Range": "bytes 1000-1009/1010", "ETag": '"2"'},
        {"Content_Range": "bytes 1000-1009/1010"},
        {"ETag": '"1"'},
        {"Content_Range": "octets", "ETag": '"1"'},
    ],
)
def test_a_part_that_does_not_fit_is_not_taken(site: Site, client: Client, tmp_path: Path, lie: dict[str, str]) -> None:
    def part(handler: servers.Handler) -> None:
        handler.answer(206, b"0123456789", **lie)

    site.pages["/a"] = servers.in_turn(servers.truncated(BODY, 1000, ETag='"1"'), part, servers.page(BODY))
    client.download(site.url("/a"), str(tmp_path / "a"), limit=1 << 20)
    assert (tmp_path / "a").read_bytes() == BODY and ranges(site) == [None, "bytes=1000-", None]


def test_another_process_goes_on(site: Site, config: Config, client: Client, tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    site.pages["/a"] = servers.truncated(BODY, 1000, ETag='"1"')
    refused(lambda: Client(config, attempts=1).download(site.url("/a"), path, limit=1 << 20))
    site.pages["/a"] = servers.page(BODY, ETag='"1"')
    client.download(site.url("/a"), path, limit=1 << 20)
    assert (tmp_path / "a").read_bytes() == BODY and ranges(site)[-1] == "bytes=1000-"
    # All of it there: nothing is left to send, and the server says so.
    assert client.download(site.url("/a"), path, limit=1 << 20).size == len(BODY)
    # Of another URL it is no beginning.
    site.pages["/b"] = servers.page(b"b", ETag='"1"')
    client.download(site.url("/b"), path, limit=1 << 20)
    assert (tmp_path / "a").read_bytes() == b"b"


def test_what_is_named_by_its_digest_needs_no_validator(site: Site, client: Client, tmp_path: Path) -> None:
    site.pages["/a"] = servers.in_turn(servers.truncated(BODY, 1000), servers.page(BODY))
    client.download(site.url("/a"), str(tmp_path / "a"), limit=1 << 20, immutable=True)
    assert (tmp_path / "a").read_bytes() == BODY and ranges(site) == [None, "bytes=1000-"]


def test_a_server_that_always_breaks_off_is_given_up(
    site: Site, client: Client, tmp_path: Path, pauses: list[float]
) -> None:
    site.pages["/a"] = servers.truncated(BODY, 1000)
    error = refused(lambda: client.download(site.url("/a"), str(tmp_path / "a"), limit=1 << 20))
    assert "ended too early" in error.message and len(pauses) < http.ATTEMPTS


def test_the_size_has_to_be_the_expected_one(site: Site, client: Client, tmp_path: Path) -> None:
    site.pages["/a"] = servers.page(b"12345")
    site.pages["/b"] = servers.endless()
    for path, size, says in (("/a", 6, "it has 5 octets"), ("/a", 4, "it has 5 octets"), ("/b", 5000, "does not end")):
        error = refused(
            lambda path=path, size=size: client.download(  # type: ignore[misc]
                site.url(path), str(tmp_path / "a"), limit=1 << 20, expect_size=size
            )
        )
        assert says in error.message
    assert not (tmp_path / "a").exists() or (tmp_path / "a").stat().st_size <= 5000


def test_an_endless_download_is_cut(site: Site, client: Client, tmp_path: Path) -> None:
    site.pages["/a"] = servers.endless(ETag='"1"')
    error = refused(lambda: client.download(site.url("/a"), str(tmp_path / "a"), limit=1 << 20))
    assert "does not end" in error.message
    assert (tmp_path / "a").stat().st_size <= 1 << 20


def test_nothing_new(site: Site, client: Client, tmp_path: Path) -> None:
    site.pages["/a"] = servers.page(BODY, ETag='"1"')
    done = client.download(
        site.url("/a"), str(tmp_path / "a"), limit=1 << 20, headers={"If-None-Match": '"1"'}, ok=(200, 304)
    )
    assert (done.status, done.size) == (304, 0) and not (tmp_path / "a").exists()
