"""Ports to publish: what --port says, and what it comes to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aci import pod_manifest
from aci.image_manifest import App
from aci.image_manifest import Port as ImagePort
from aci.pod_manifest import ExposedPort, PodManifest
from aci.types import ac_name
from common import addresses
from common.errors import RkpyError, UsageError
from stage0 import ports
from stage1.network.plan import Port


def inner(name: str, protocol: str, port: int, span: int = 1) -> ImagePort:
    return ImagePort(name, protocol, port, span, socket_activated=False)


def image(*found: ImagePort) -> App:
    return App(ports=found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http:8080", ExposedPort("http", 8080)),
        ("http:127.0.0.1:8080", ExposedPort("http", 8080, "127.0.0.1")),
        ("http:[::1]:8080", ExposedPort("http", 8080, "::1")),
        ("http:[0:0::0:1]:8080", ExposedPort("http", 8080, "::1")),
        ("8080:80", ExposedPort("8080-80-tcp", 8080, "", inner("8080-80-tcp", "tcp", 80))),
        ("53:53/udp", ExposedPort("53-53-udp", 53, "", inner("53-53-udp", "udp", 53))),
        (
            "127.0.0.1:8080:80/tcp",
            ExposedPort("127-0-0-1-8080-80-tcp", 8080, "127.0.0.1", inner("127-0-0-1-8080-80-tcp", "tcp", 80)),
        ),
        (
            "8000-8009:9000-9009",
            ExposedPort("8000-8009-9000-9009-tcp", 8000, "", inner("8000-8009-9000-9009-tcp", "tcp", 9000, 10)),
        ),
        ("[::]:8080:80", ExposedPort("8080-80-tcp", 8080, "::", inner("8080-80-tcp", "tcp", 80))),
        (
            "[FD00::1]:1-2:3-4/udp",
            ExposedPort("fd00--1-1-2-3-4-udp", 1, "fd00::1", inner("fd00--1-1-2-3-4-udp", "udp", 3, 2)),
        ),
    ],
)
def test_forms(text: str, expected: ExposedPort) -> None:
    assert ports.exposed(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "http", "http:", ":80", "http:0", "http:65536", "http:x", "http:-1", "http:::1:80", "http:1.2.3:80",
        "http:80/tcp", "http:08080080", "http:٨٠", "80", "8080:", ":80:80", "80:80/sctp", "80:80/", "127.0.0.1::80",
        "127.0.0.1:80", "[::1]:80", "[::1]80:80", "[::1:80:80", "1.2.3.4.5:80:80", "1-3:1-2", "3-1:3-1", "0:80", "80:0",
        "80:80:80", "1:2:3:4", "[fe80::1%lo]:80:80", "[127.0.0.1:80:80", "Http:80", "80-:80", "-80:80", "1-2-3:1-2-3",
    ],
)  # fmt: skip
def test_bad_forms(text: str) -> None:
    with pytest.raises(RkpyError):
        ports.exposed(text)


@pytest.mark.parametrize(
    ("text", "port", "expected"),
    [
        ("http:tcp:80:8080", inner("http", "tcp", 80), ("http", 8080, "")),
        ("dns:udp:53:127.0.0.1:53", inner("dns", "udp", 53), ("dns", 53, "127.0.0.1")),
        ("dns:udp:53:[::1]:53", inner("dns", "udp", 53), ("dns", 53, "::1")),
        ("8080:80", inner("8080-80-tcp", "tcp", 80), ("8080-80-tcp", 8080, "")),
        (
            "[::1]:8080:80",
            inner("1-8080-80-tcp", "tcp", 80),
            ("1-8080-80-tcp", 8080, "::1"),
        ),
    ],
)
def test_forms_of_pods_without_apps(text: str, port: ImagePort, expected: tuple[str, int, str]) -> None:
    assert ports.exposed_with_pod_port(text) == ExposedPort(*expected, pod_port=port)


@pytest.mark.parametrize(
    "text", ["http", "http:80", "http:tcp:80", "http:tcp:80:", "http:sctp:80:80", "http:tcp:0:80", ":tcp:80:80"]
)
def test_bad_forms_of_pods_without_apps(text: str) -> None:
    with pytest.raises(RkpyError):
        ports.exposed_with_pod_port(text)


_PORTS = st.integers(1, 65535)
_IPV6 = st.ip_addresses(v=6).map(str).filter(lambda ip: not ip.startswith("::ffff:"))
_ADDRESSES = st.one_of(st.ip_addresses(v=4).map(str), _IPV6.map(lambda ip: f"[{ip}]"))


@given(st.one_of(st.none(), _ADDRESSES), _PORTS, _PORTS, st.integers(0, 500), st.sampled_from(["", "/tcp", "/udp"]))
def test_what_is_typed_by_number_is_what_is_published(
    ip: str | None, host: int, pod: int, more: int, protocol: str
) -> None:
    more = min(more, 65535 - host, 65535 - pod)
    text = f"{host}-{host + more}:{pod}-{pod + more}" if more else f"{host}:{pod}"
    found = ports.exposed(f"{ip}:{text}{protocol}" if ip else f"{text}{protocol}")
    bare = addresses.canonical(ip.strip("[]")) if ip else ""
    name = ac_name(found.name)
    assert ports.resolve([found], []) == (Port(name, protocol[1:] or "tcp", bare, host, pod, more + 1),)
    manifest = PodManifest(apps=(), ports=(found,))
    assert pod_manifest.parse(pod_manifest.dumps(manifest).encode()) == manifest


@given(st.text(alphabet="0123456789.:-[]/tcpudhf%", max_size=30))
def test_no_text_ends_in_anything_but_a_port_or_one_of_our_errors(text: str) -> None:
    for read in (ports.exposed, ports.exposed_with_pod_port):
        try:
            found = read(text)
        except RkpyError:
            continue
        assert 0 < found.host_port < 65536


def test_a_name_is_looked_up_in_the_apps() -> None:
    apps = [("web", image(inner("http", "tcp", 80), inner("rtp", "udp", 5000, 10))), ("db", image())]
    wanted = [ExposedPort("rtp", 6000), ExposedPort("http", 8080, "::1"), ExposedPort("http", 8080, "127.0.0.1")]
    assert ports.resolve(wanted, apps) == (
        Port("rtp", "udp", "", 6000, 5000, 10),
        Port("http", "tcp", "::1", 8080, 80),
        Port("http", "tcp", "127.0.0.1", 8080, 80),
    )


def test_an_explicit_port_needs_no_image() -> None:
    assert ports.resolve([ExposedPort("x", 1, pod_port=inner("x", "udp", 2))], []) == (Port("x", "udp", "", 1, 2),)


def test_a_name_of_two_apps_is_fine_if_it_is_one_port() -> None:
    apps = [("a", image(inner("http", "tcp", 80))), ("b", image(inner("http", "tcp", 80)))]
    assert ports.resolve([ExposedPort("http", 1)], apps) == (Port("http", "tcp", "", 1, 80),)
    apps[1] = ("b", image(inner("http", "tcp", 81)))
    with pytest.raises(UsageError, match=r'apps "a" and "b" have different ports of that name .*HOSTPORT:80 or'):
        ports.resolve([ExposedPort("http", 1)], apps)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (ExposedPort("https", 443), "no image of this pod has a port of that name .there is: http, many, odd."),
        (ExposedPort("many", 65530), "of its 10 ports the last is above 65535"),
        (ExposedPort("x", 1, pod_port=inner("x", "tcp", 65535, 2)), "the last is above 65535"),
        (ExposedPort("http", 1, "::ffff:1.2.3.4"), r"is an IPv4 address .1\.2\.3\.4."),
        (ExposedPort("odd", 1), 'protocol "sctp" cannot be published'),
    ],
)
def test_what_cannot_be_published(wanted: ExposedPort, message: str) -> None:
    apps = [("web", image(inner("http", "tcp", 80), inner("many", "tcp", 1, 10), inner("odd", "sctp", 1)))]
    with pytest.raises(UsageError, match=message):
        ports.resolve([wanted], apps)


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ("8080:80", "8080:81", True),
        ("8080:80", "8081:80", False),
        ("8080:80", "8080:80/udp", False),
        ("8000-8009:80-89", "8009:1", True),
        ("8000-8009:80-89", "8010:1", False),
        ("8080:80", "127.0.0.1:8080:80", True),
        ("8080:80", "[::1]:8080:80", True),
        ("0.0.0.0:8080:80", "[::1]:8080:80", False),
        ("0.0.0.0:8080:80", "[::]:8080:80", False),
        ("0.0.0.0:8080:80", "8080:80", True),
        ("[::]:8080:80", "[::1]:8080:80", True),
        ("127.0.0.1:8080:80", "127.0.0.2:8080:80", False),
    ],
)
def test_conflicts(one: str, other: str, clash: bool) -> None:
    for pair in ((one, other), (other, one)):
        wanted = [ports.exposed(text) for text in pair]
        if clash:
            with pytest.raises(UsageError, match="want one port of the host") as refusal:
                ports.resolve(wanted, [])
            assert all(f"--port={text}/tcp " in str(refusal.value) for text in pair)
        else:
            assert len(ports.resolve(wanted, [])) == 2
