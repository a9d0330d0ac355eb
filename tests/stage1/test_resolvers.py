"""/etc/resolv.conf of a pod: who has the last word."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import NetworkError
from stage1.network import resolvers
from stage1.network.plan import Names

NAMES = Names("web")
HOST = (
    "# ours\nsearch example.org\nnameserver 192.0.2.1\nnameserver 127.0.0.53\nnameserver 2001:db8::1\noptions edns0\n"
)
STUB = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n"


@pytest.fixture(autouse=True)
def host(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The directory with the host's files."""
    monkeypatch.setattr(resolvers, "HOST", str(tmp_path / "host"))
    monkeypatch.setattr(resolvers, "BEHIND_STUB", str(tmp_path / "behind"))
    (tmp_path / "host").write_text(HOST)
    return tmp_path


def write(
    pod: pathlib.Path, names: Names, *dns: Any, connected: bool = True
) -> tuple[str | None, str | None, list[str]]:
    """The pod's file, the one for images without, and warnings."""
    warnings = resolvers.write(str(pod), names, [{"dns": each} for each in dns], connected=connected)
    found = [pod / "etc" / name for name in ("resolv.conf", "resolv.conf.default")]
    pinned, default = (path.read_text() if path.exists() else None for path in found)
    return pinned, default, warnings


def test_the_hosts_servers_are_for_images_without_a_file(tmp_path: pathlib.Path) -> None:
    expected = "nameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch example.org\noptions edns0\n"
    assert write(tmp_path, NAMES) == (None, expected, [])


@pytest.mark.parametrize("stub", ["127.0.0.53", "127.1.2.3", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_behind_a_stub_are_the_servers_it_asks(host: pathlib.Path, stub: str) -> None:
    (host / "host").write_text(f"nameserver {stub}\n")
    (host / "behind").write_text("nameserver 192.0.2.53\nnameserver fe80::1%eth0\ndomain example.net\n")
    assert write(host, NAMES) == (None, "nameserver 192.0.2.53\ndomain example.net\n", [])


def test_a_host_without_servers_that_pods_get_at(host: pathlib.Path) -> None:
    (host / "host").write_text(STUB)
    pinned, default, (warning,) = write(host, NAMES)
    assert (pinned, default) == (None, None)
    assert "the pod has no name server" in warning
    assert "--dns=ADDRESS" in warning
    (host / "host").unlink()
    assert write(host, NAMES)[:2] == (None, None)


def test_a_pod_without_a_network_is_told_nothing(host: pathlib.Path) -> None:
    assert write(host, NAMES, connected=False) == (None, None, [])
    assert write(host, NAMES._replace(dns=("192.0.2.9",)), connected=False) == ("nameserver 192.0.2.9\n", None, [])


def test_what_networks_say_wins_over_the_host(host: pathlib.Path) -> None:
    first = {"nameservers": ["198.51.100.1"], "search": ["a.example"], "options": ["ndots:2"]}
    second = {"nameservers": ["198.51.100.1", "2001:db8::2"], "domain": "b.example"}
    expected = "nameserver 198.51.100.1\nnameserver 2001:db8::2\ndomain b.example\nsearch a.example\noptions ndots:2\n"
    assert write(host, NAMES, {}, first, second) == (expected, None, [])


def test_what_the_user_says_wins_over_networks(host: pathlib.Path) -> None:
    told = {"nameservers": ["198.51.100.1"], "search": ["a.example"], "options": ["ndots:2"]}
    said = NAMES._replace(dns=("192.0.2.9",), domain="mine.example")
    assert write(host, said, told)[0] == "nameserver 192.0.2.9\ndomain mine.example\noptions ndots:2\n"
    said = NAMES._replace(search=("mine.example", "more.example"), options=("rotate",))
    assert write(host, said, told)[0] == "nameserver 198.51.100.1\nsearch mine.example more.example\noptions rotate\n"
    assert write(host, said)[0] == (
        "nameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch mine.example more.example\noptions rotate\n"
    )


def test_none_and_host(host: pathlib.Path) -> None:
    told = {"nameservers": ["198.51.100.1"]}
    assert write(host, NAMES._replace(dns=("none",)), told) == (None, None, [])
    assert write(host, NAMES._replace(dns=("host",)), told) == (HOST, None, [])


def test_more_servers_than_programs_use(host: pathlib.Path) -> None:
    pinned, _, (warning,) = write(host, NAMES._replace(dns=tuple(f"192.0.2.{last}" for last in range(1, 6))))
    assert pinned is not None
    assert pinned.count("nameserver") == 5
    assert warning == "programs use the first 3 of 5 name servers only"


@pytest.mark.parametrize("names", [Names("h", dns=("x",)), Names("h", search=("a\nb",)), Names("h", options=("#",))])
def test_nonsense_of_the_user_is_refused(host: pathlib.Path, names: Names) -> None:
    with pytest.raises(NetworkError):
        write(host, names)


_junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["192.0.2.7", "a\nnameserver 6.6.6.6"]),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["nameservers", "search", "options", "domain"]), inner)
    ),
)


@given(dns=_junk)
def test_no_plugin_gets_a_line_of_its_own_in(tmp_path_factory: pytest.TempPathFactory, dns: Any) -> None:
    pinned, default, _ = write(tmp_path_factory.mktemp("pod"), NAMES, dns)
    for line in (pinned or default or "").splitlines():
        keyword, *values = line.split(" ")
        assert keyword in ("nameserver", "domain", "search", "options")
        assert values
        assert keyword != "nameserver" or (resolvers._is_address(values[0]) and values[0] != "6.6.6.6")
