"""Which socket is whose: by name, by port, or because there is nobody else."""

from __future__ import annotations

import os
import socket

import pytest

from aci.image_manifest import App, Port
from aci.pod_manifest import ExposedPort, PodManifest
from common.errors import UsageError
from stage0 import activation
from stage0.activation import Listener, assign
from stage1.flavour import PreparedApp, PreparedPod
from stage1.plan import HandedSocket
from stage1.systemd.given import Given

HTTP = Port("http", "tcp", 80, 1, socket_activated=True)
DNS = Port("dns", "udp", 53, 1, socket_activated=True)
RANGE = Port("rtp", "udp", 5000, 100, socket_activated=False)
WEB, NAMES, CALLS = ("web", App(ports=(HTTP,))), ("names", App(ports=(DNS,))), ("calls", App(ports=(RANGE,)))
ALL = (WEB, NAMES, CALLS)
PUBLISHED = ExposedPort("http", 8080)


def exposed(first: int, inner: int, span: int = 1, protocol: str = "tcp") -> ExposedPort:
    return ExposedPort("typed", first, "", Port("typed", protocol, inner, span, socket_activated=False))


ASSIGNED: dict[str, tuple[Listener, tuple[ExposedPort, ...], str]] = {
    "by the name of a port": (Listener("dns", "tcp", 80), (), "names"),
    "by the name of an app": (Listener("calls", "tcp", 80), (), "calls"),
    "by the image's port": (Listener("x.socket", "tcp", 80), (), "web"),
    "by the host's port": (Listener("x.socket", "tcp", 8080), (PUBLISHED,), "web"),
    "by the host's port, by number": (Listener("x.socket", "tcp", 8080), (exposed(8080, 80),), "web"),
    "within a range": (Listener("x.socket", "udp", 5099), (), "calls"),
    "within a published range": (Listener("x.socket", "udp", 6099), (exposed(6000, 5000, 100, "udp"),), "calls"),
    "not by a port that is published elsewhere": (Listener("dns", "tcp", 80), (PUBLISHED,), "names"),
}


@pytest.mark.parametrize("case", ASSIGNED)
def test_a_socket_has_one_app(case: str) -> None:
    listener, ports, expected = ASSIGNED[case]
    assert assign([listener], ALL, ports) == [expected]


@pytest.mark.parametrize(
    "listener",
    [Listener("x.socket", "tcp", 9), Listener("x.socket", "tcp", 53), Listener("x.socket"), Listener("x", "udp", 5100)],
    ids=lambda value: value.describe(),
)
def test_the_only_app_gets_what_nobody_else_can(listener: Listener) -> None:
    assert assign([listener], [WEB]) == ["web"]
    with pytest.raises(UsageError, match=r"belongs to no port of this pod") as caught:
        assign([listener], ALL)
    assert "FileDescriptorName=" in caught.value.hint
    assert "http of web (80/tcp), dns of names (53/udp)" in caught.value.hint


def test_a_port_published_elsewhere_is_not_there() -> None:
    with pytest.raises(UsageError, match="belongs to no port"):
        assign([Listener("x.socket", "tcp", 80)], ALL, [PUBLISHED])


@pytest.mark.parametrize("listener", [Listener("http"), Listener("x", "tcp", 80)], ids=["name", "number"])
def test_what_could_be_for_two_apps_is_an_error(listener: Listener) -> None:
    with pytest.raises(UsageError, match="could be for the apps web and twin") as caught:
        assign([listener], [WEB, ("twin", WEB[1])])
    assert "FileDescriptorName=web" in caught.value.hint


def test_apps_that_come_later_cannot_have_any() -> None:
    with pytest.raises(UsageError, match="added later"):
        assign([Listener("http")], [])


def pod(*apps: tuple[str, App], sockets: tuple[str, ...] = ()) -> PreparedPod:
    prepared = tuple(PreparedApp(name, "sha512-0", section, (), False, ()) for name, section in apps)
    made = PreparedPod("u", "/pods/x", 3, prepared, None, ("http",), (), "box", "auto", False, (), (), False)
    return made._replace(given=Given(sockets=sockets))


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Listener]:
    """What the descriptors are, by name."""
    found: dict[str, Listener] = {}
    monkeypatch.setattr(activation, "look", lambda name, _fd: found.get(name, Listener(name)))
    return found


def test_ports_that_are_listened_on_are_not_published(looked: dict[str, Listener]) -> None:
    """Neither by the number of the host's port nor when the app gets the port's socket by name."""
    looked["x.socket"] = Listener("x.socket", "tcp", 8080)
    kept = exposed(99, 99)
    manifest = PodManifest((), ports=(PUBLISHED, kept))
    for name in ("x.socket", "http"):
        settled, left = activation.settle(pod(WEB, sockets=(name,)), manifest)
        assert left.ports == (kept,)
        assert settled.ports == ("typed",)


def test_the_rest_of_a_range_is_told_of(looked: dict[str, Listener], capsys: pytest.CaptureFixture[str]) -> None:
    looked["x"] = Listener("x", "udp", 6001)
    manifest = PodManifest((), ports=(exposed(6000, 5000, 100, "udp"),))
    _, left = activation.settle(pod(CALLS, sockets=("x",)), manifest)
    assert left.ports == ()
    assert 'socket "x" (6001/udp) is one of the 100 ports of --port=typed: the others' in capsys.readouterr().err


def test_apps_get_theirs_in_order(looked: dict[str, Listener]) -> None:
    looked["connection"] = Listener("connection", "tcp", 80, once=True)
    settled, _ = activation.settle(pod(WEB, NAMES, sockets=("web", "names", "connection")), PodManifest(()))
    assert [app.listening for app in settled.apps] == [
        (HandedSocket(0, "web"), HandedSocket(2, "connection", True)),
        (HandedSocket(1, "names"),),
    ]


@pytest.mark.parametrize(
    ("sockets", "told"),
    [((), ["http", "dns"]), (("http",), ["dns"]), (("http", "dns"), []), (("unknown",), []), (("both",), [])],
    ids=["none", "one", "both", "one that could be any", "the only app's"],
)
def test_a_port_that_waits_in_vain_is_told_of(
    looked: dict[str, Listener], capsys: pytest.CaptureFixture[str], sockets: tuple[str, ...], told: list[str]
) -> None:
    activation.settle(pod(("both", App(ports=(HTTP, DNS, RANGE))), sockets=sockets), PodManifest(()))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split('"')[1] for line in lines] == told


def test_there_is_an_end_to_what_is_taken() -> None:
    with pytest.raises(UsageError, match="129 sockets were handed over, and a pod takes 128"):
        activation.settle(pod(WEB, sockets=("x",) * 129), PodManifest(()))


def test_what_a_descriptor_is() -> None:
    look = activation.look
    reading, writing = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        number = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", number)) as client, socket.socket(socket.AF_UNIX) as local:
            accepted, _ = server.accept()
            with accepted:
                assert look("a", server.fileno()) == Listener("a", "tcp", number)
                assert look("a", accepted.fileno()) == Listener("a", "tcp", number, once=True)
                assert look("a", udp.fileno()) == Listener("a", "udp", udp.getsockname()[1])
                assert look("a", local.fileno()) == Listener("a", once=True)
                local.bind("\0rkpy-test-look")
                local.listen()
                assert look("a", local.fileno()) == look("a", reading) == Listener("a")
                assert client.fileno() >= 0
                os.fstat(server.fileno())  # It was looked at, and not closed.
    with socket.socket(socket.AF_INET6) as six:
        six.bind(("::1", 0))
        six.listen()
        assert look("a", six.fileno()) == Listener("a", "tcp", six.getsockname()[1])
    for fd in (reading, writing):
        os.close(fd)
