"""Published ports: who may have one besides whom."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from common.errors import NetworkError
from stage1.network import owners, ports, state
from stage1.network.plan import Names, NetworkPlan, Port
from tests.claimants import Pods, claims, stub_firewall
from tests.servers import free_port

ROOT = pathlib.Path(__file__).parent.parent.parent
HOST_IPS = ("", "0.0.0.0", "::", "127.0.0.1", "192.0.2.1", "::1", "fd00::1")


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Nothing listens on this host."""
    monkeypatch.setattr(ports, "_SOCKETS", f"{tmp_path}/nowhere/")


def _plan(uuid: str, *wanted: Port) -> NetworkPlan:
    return NetworkPlan(uuid, "/nowhere", (), Names("host"), wanted)


def _port(host_ip: str = "", number: int = 8080, protocol: str = "tcp", span: int = 1) -> Port:
    return Port("http", protocol, host_ip, number, 80, span)


def _claim(uuid: str, *wanted: Port) -> tuple[str, ...]:
    return ports.claim(_plan(uuid, *wanted))


def _overlap(one: str, other: str) -> bool:
    """By the addresses that packets can be for."""
    probes = ("127.0.0.1", "192.0.2.1", "192.0.2.99", "::1", "fd00::1", "fd00::99")

    def takes(host_ip: str, address: str) -> bool:
        family = ipaddress.ip_address(address).version
        return host_ip in ("", address, {4: "0.0.0.0", 6: "::"}[family])

    return any(takes(one, probe) and takes(other, probe) for probe in probes)


@pytest.mark.parametrize("one", HOST_IPS)
@pytest.mark.parametrize("other", HOST_IPS)
def test_two_pods_never_have_what_one_packet_can_be_for(pods: Pods, quiet: None, one: str, other: str) -> None:
    first, second = pods.start("web"), pods.start()
    _claim(first, _port(one))
    _claim(second, _port(one, 8081), _port(one, protocol="udp"))
    if not _overlap(one, other):
        _claim(second, _port(other))
        return
    with pytest.raises(NetworkError, match=rf'port 8080/tcp.* is published by pod "web" \({first[:8]}\) already'):
        _claim(second, _port(other))
    with pytest.raises(NetworkError, match=r"port 8080/tcp.* is published twice"):
        _claim(second, _port(one), _port(other))


def test_names_of_claims(pods: Pods, quiet: None) -> None:
    uuid = pods.start()
    names = _claim(uuid, _port("fd00::1"), _port("", 9000, "udp", 3))
    assert names == ("tcp-8080-fd00::1", "udp-9000-any", "udp-9001-any", "udp-9002-any")
    assert [ports.parse(name) for name in names[:2]] == [("tcp", 8080, "fd00::1"), ("udp", 9000, "")]
    assert set(ports.all_claims()) == {(name, uuid) for name in names}
    assert _claim(uuid, _port("fd00::1"), _port("", 9000, "udp", 3)) == names  # started again after a crash
    ports.release(names, pods.start())
    assert set(ports.held_by(uuid)) == set(names)
    ports.release(names, uuid)
    ports.release(names, uuid)
    assert not set(ports.all_claims())


def test_all_or_nothing(pods: Pods, quiet: None) -> None:
    first, second = pods.start(), pods.start()
    _claim(first, _port("", 9005))
    with pytest.raises(NetworkError, match="port 9005/tcp is published by pod"):
        _claim(second, _port("", 8000), _port("", 9000, span=10))
    assert ports.held_by(second) == []


@pytest.mark.parametrize("where", ["run", "exited-garbage", "gone"])
def test_what_a_dead_pod_publishes_can_be_published(pods: Pods, quiet: None, firewall: list[str], where: str) -> None:
    dead, other = pods.start(), pods.start()
    _claim(dead, _port(), _port(number=8090))
    pods.die(dead)
    if where == "gone":
        os.rename(pods.directory(dead), pods.root / "elsewhere")
    elif where != "run":
        pods.move(dead, where)
    assert _claim(other, _port("127.0.0.1")) == ("tcp-8080-127.0.0.1",)
    assert firewall == [dead]
    assert ports.held_by(dead) == []


def test_what_makes_no_sense_is_nobodys(pods: Pods, quiet: None) -> None:
    uuid = pods.start()
    _claim(pods.start(), _port(number=1))
    for name in ("tcp-8080-any", "nonsense"):
        open(state.path("ports", name), "x").close()
    assert _claim(uuid, _port()) == ("tcp-8080-any",)


# --- programs of the host


@contextlib.contextmanager
def _listening(address: str, protocol: str = "tcp", *, only: bool = False, port: int = 0) -> Iterator[int]:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as listener:
        if ":" in address:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only))
        listener.bind((address, port))
        if protocol == "tcp":
            listener.listen()
        yield listener.getsockname()[1]


def _second_of_two() -> int:
    """A port that nobody has, as nobody has the one before it."""
    while True:
        port = free_port()
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for number, kind in itertools.product((port - 1, port), (socket.SOCK_STREAM, socket.SOCK_DGRAM)):
                probe = stack.enter_context(socket.socket(socket.AF_INET6, kind))
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                probe.bind(("::", number))
            return port


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("listener", "free"),
    [
        ("127.0.0.1", {"::", "192.0.2.1", "::1", "fd00::1"}),
        ("0.0.0.0", {"::", "::1", "fd00::1"}),
        ("::1", {"0.0.0.0", "127.0.0.1", "192.0.2.1", "fd00::1"}),
        ("::", set()),
        ("::ffff:127.0.0.1", {"::", "192.0.2.1", "::1", "fd00::1"}),
    ],
)
def test_what_the_host_listens_on_is_not_taken_from_it(
    pods: Pods, protocol: str, listener: str, free: set[str]
) -> None:
    uuid = pods.start()
    with _listening(listener, protocol, port=_second_of_two()) as port:
        for host_ip in HOST_IPS:
            if host_ip in free:
                ports.release(_claim(uuid, _port(host_ip, port, protocol)), uuid)
                continue
            with pytest.raises(NetworkError, match=rf"port {port}/{protocol} is in use by a program of the host"):
                _claim(uuid, _port(host_ip, port - 1, protocol, span=2))
            assert ports.held_by(uuid) == []
    assert _claim(uuid, _port("", port, protocol))


def test_ports_that_are_free_are_found_free_quickly(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a look at the tables of all sockets; an address that is not the host's takes one."""
    looked: list[str] = []
    monkeypatch.setattr(ports, "_listeners", lambda protocol, state: looked.append(protocol) or ())  # type: ignore[func-returns-value]
    port = free_port()
    for protocol in ("tcp", "udp"):
        for host_ip in ("", "0.0.0.0", "::", "127.0.0.1", "::1"):
            uuid = pods.start()
            ports.release(_claim(uuid, _port(host_ip, port, protocol)), uuid)
    assert not looked
    _claim(pods.start(), _port("192.0.2.1", port))
    assert looked == ["tcp"]


def test_connections_of_the_host_are_not_in_the_way(pods: Pods) -> None:
    """Neither end of one; nor is a UDP socket that has a peer."""
    with (
        _listening("127.0.0.1") as port,
        socket.create_connection(("127.0.0.1", port)) as client,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
    ):
        peer.connect(("127.0.0.1", port))
        uuid = pods.start()
        _claim(uuid, _port("127.0.0.1", client.getsockname()[1]))
        _claim(uuid, _port("127.0.0.1", peer.getsockname()[1], "udp"))


# --- the model


class Machine(RuleBasedStateMachine):
    """Random lives of pods that publish. `has` is what those that live were given."""

    known = Bundle("known")

    def __init__(self) -> None:
        super().__init__()
        self.scratch = tempfile.TemporaryDirectory()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(state, "ROOT", f"{self.scratch.name}/net")
        self.patch.setattr(ports, "_SOCKETS", f"{self.scratch.name}/nowhere/")
        stub_firewall(self.patch)
        self.pods = Pods(pathlib.Path(self.scratch.name))
        self.has: dict[str, set[tuple[str, int]]] = {}

    def teardown(self) -> None:
        self.pods.close()
        self.patch.undo()
        self.scratch.cleanup()

    @rule(target=known)
    def start(self) -> str:
        uuid = self.pods.start()
        self.has[uuid] = set()
        return uuid

    @rule(uuid=known, host_ip=st.sampled_from(HOST_IPS), first=st.integers(1, 4), span=st.integers(1, 3))
    def publish(self, uuid: str, host_ip: str, first: int, span: int) -> None:
        wanted = {(host_ip, number) for number in range(first, first + span)}
        free = not any(
            number == theirs and _overlap(host_ip, their_ip)
            for their_ip, theirs in set().union(*(has for other, has in self.has.items() if other != uuid))
            for number in range(first, first + span)
        )
        try:
            _claim(uuid, _port(host_ip, first, span=span))
        except NetworkError:
            assert not free
            return
        assert free
        self.has[uuid] |= wanted

    @rule(uuid=known)
    def withdraw(self, uuid: str) -> None:
        ports.release(ports.held_by(uuid), uuid)
        self.has[uuid] = set()

    @rule(uuid=consumes(known))
    def crash(self, uuid: str) -> None:
        self.pods.die(uuid)
        self.has.pop(uuid)

    @rule()
    def sweep(self) -> None:
        owners.sweep()
        assert {uuid for _, uuid in ports.all_claims()} == {uuid for uuid, has in self.has.items() if has}

    @invariant()
    def nothing_is_lost(self) -> None:
        for uuid, has in self.has.items():
            assert {(address, port) for _, port, address in map(ports.parse, ports.held_by(uuid))} == has


Machine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestMachine = Machine.TestCase


@given(st.binary(min_size=16, max_size=16), st.booleans())
def test_addresses_of_the_kernel(raw: bytes, short: bool) -> None:
    """As /proc has them: words in the order of this machine's memory."""
    raw = raw[:4] if short else raw
    text = "".join(f"{int.from_bytes(raw[at : at + 4], sys.byteorder):08X}" for at in range(0, len(raw), 4))
    found = ipaddress.ip_address(ports._address(text))
    expected = ipaddress.ip_address(raw)
    mapped = None if isinstance(expected, ipaddress.IPv4Address) else expected.ipv4_mapped
    assert found == (mapped or expected)


_WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
from common.errors import NetworkError
from stage1.network import ports, state
from stage1.network.plan import Names, NetworkPlan, Port
state.ROOT, ports._SOCKETS, uuid = sys.argv[2], "/nowhere/", sys.argv[3]
print("ready", flush=True)
sys.stdin.read(1)
while True:
    try:
        names = ports.claim(NetworkPlan(uuid, "/", (), Names("h"), (Port("a", "tcp", "", 8000, 80, 20),)))
        print("won", flush=True)
        if sys.argv[4] == "once":
            break
        if {state.holder(state.path("ports", name)) for name in names} != {uuid}:
            raise SystemExit("somebody else has some of them")
        ports.release(names, uuid)
    except NetworkError:
        if sys.argv[4] == "once":
            break
"""


def _worker(uuid: str, how: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-I", "-S", "-c", _WORKER, str(ROOT), state.ROOT, uuid, how]
    worker = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    return worker


def test_one_of_many_wins(pods: Pods) -> None:
    workers = {uuid: _worker(uuid, "once") for uuid in (pods.start() for _ in range(6))}
    for worker in workers.values():
        assert worker.stdin is not None
        worker.stdin.write("x")
        worker.stdin.flush()
    won = [uuid for uuid, worker in workers.items() if worker.communicate(timeout=60)[0]]
    assert len(won) == 1
    assert len(ports.held_by(won[0])) == 20
    assert len(list(ports.all_claims())) == 20


def test_nobody_wins_in_part(pods: Pods) -> None:
    workers = [_worker(pods.start(), "forever") for _ in range(3)]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("x")
        worker.stdin.flush()
    for worker in workers:
        assert worker.stdout is not None
        for _ in range(100):
            assert worker.stdout.readline() == "won\n"
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
        worker.communicate(timeout=60)


def test_nothing_is_left_of_those_who_are_killed(pods: Pods) -> None:
    keeper = pods.start()
    _claim(keeper, _port("127.0.0.1", 7999))
    for _ in range(15):
        uuid = pods.start()
        worker = _worker(uuid, "forever")
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write("x")
        worker.stdin.flush()
        worker.stdout.readline()
        worker.send_signal(signal.SIGKILL)
        worker.communicate(timeout=60)
        pods.die(uuid)
        other = pods.start()
        assert len(_claim(other, _port("::1", 8000, span=20))) == 20
        ports.release(ports.held_by(other), other)
        pods.die(other)
    owners.sweep()
    assert {claim for claim in claims() if claim.startswith("ports/")} == {"ports/tcp-7999-127.0.0.1"}


def test_addresses_that_the_host_has_not_got() -> None:
    published = [_port(host_ip="192.0.2.77"), _port(host_ip="127.0.0.1"), _port(host_ip="0.0.0.0"), _port()]
    (warning,) = ports.warnings(published)
    assert "192.0.2.77, which is not an address of this host" in warning
