"""Addresses: who gets which, with real processes where it matters that there are several."""

from __future__ import annotations

import ipaddress
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from common.errors import NetworkError
from stage1.network import leases, owners, state
from stage1.network.plugin import Call
from tests.claimants import Pods, claims, stub_firewall

ROOT = pathlib.Path(__file__).parent.parent.parent


def _call(uuid: str, subnet: str = "10.1.0.0/29", interface: str = "eth0", args: str = "", **ipam: Any) -> Call:
    conf: dict[str, Any] = {"name": "net", "ipam": {"subnet": subnet, **ipam} if subnet else ipam}
    return Call(uuid, "", interface, {"IP": args} if args else {}, conf, (), (), [], "")


def _add(uuid: str, subnet: str = "10.1.0.0/29", **more: Any) -> list[str]:
    return [entry["address"] for entry in leases.add(_call(uuid, subnet, **more))["ips"]]


def test_result_is_one_of_cni_1_0_0(pods: Pods, tmp_path: pathlib.Path) -> None:
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("# no\nnameserver 192.0.2.53\nnameserver ::1\nsearch a b\nsearch c\noptions ndots:2\ndomain d\n")
    call = _call(
        pods.start(),
        ranges=[[{"subnet": "fd00:1::/64", "rangeStart": "fd00:1::10"}]],
        routes=[{"dst": "0.0.0.0/0"}, {"dst": "fd00:2::/64", "gw": "fd00:1::9"}],
        resolvConf=str(resolv),
    )
    assert leases.add(call) == {
        "ips": [
            {"address": "10.1.0.2/29", "gateway": "10.1.0.1"},
            {"address": "fd00:1::10/64", "gateway": "fd00:1::1"},
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "fd00:2::/64", "gw": "fd00:1::9"}],
        "dns": {"nameservers": ["192.0.2.53", "::1"], "search": ["c"], "options": ["ndots:2"], "domain": "d"},
    }


def test_addresses_rest_before_they_are_given_again(pods: Pods) -> None:
    first, second = pods.start(), pods.start()
    assert _add(first) == ["10.1.0.2/29"]
    leases.delete(_call(first))
    assert _add(second) == ["10.1.0.3/29"]
    assert [_add(pods.start()) for _ in range(3)] == [["10.1.0.4/29"], ["10.1.0.5/29"], ["10.1.0.6/29"]]
    assert _add(first) == ["10.1.0.2/29"]  # the gap, after the last there is


def test_exhaustion_is_said_plainly_and_ends_with_a_gap(pods: Pods) -> None:
    uuids = [pods.start() for _ in range(5)]
    for uuid in uuids:
        _add(uuid)
    late = pods.start()
    with pytest.raises(NetworkError, match=r"network net: no address left in 10\.1\.0\.0/29, 5 in use"):
        _add(late)
    leases.delete(_call(uuids[2]))
    assert _add(late) == ["10.1.0.4/29"]


def test_a_failed_allocation_leaves_nothing(pods: Pods) -> None:
    """There is an address in the second range set for the first pod only."""
    tight: dict[str, Any] = {"ranges": [[{"subnet": "10.2.0.0/24", "rangeStart": "10.2.0.9", "rangeEnd": "10.2.0.9"}]]}
    first, second = pods.start(), pods.start()
    _add(first, **tight)
    before = claims()
    with pytest.raises(
        NetworkError, match=r"no address left in 10\.2\.0\.9 to 10\.2\.0\.9 of 10\.2\.0\.0/24, 1 in use"
    ):
        _add(second, **tight)
    assert claims() == before


def test_ranges_of_a_set_are_one_pool(pods: Pods) -> None:
    ranges = [[{"subnet": "10.3.0.0/30"}, {"subnet": "10.4.0.0/30", "gateway": "10.4.0.2"}]]
    pair = [leases.add(_call(pods.start(), "", ranges=ranges))["ips"] for _ in range(2)]
    assert pair == [
        [{"address": "10.3.0.2/30", "gateway": "10.3.0.1"}],
        [{"address": "10.4.0.1/30", "gateway": "10.4.0.2"}],
    ]
    with pytest.raises(NetworkError, match=r"no address left in 10\.3\.0\.0/30 and 10\.4\.0\.0/30, 2 in use"):
        leases.add(_call(pods.start(), "", ranges=ranges))


def test_the_end_of_all_addresses(pods: Pods) -> None:
    ranges = [[{"subnet": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126"}]]
    found = [leases.add(_call(pods.start(), "", ranges=ranges))["ips"][0]["address"][-8:] for _ in range(2)]
    assert found == ["fffe/126", "ffff/126"]
    with pytest.raises(NetworkError, match="no address left"):
        leases.add(_call(pods.start(), "", ranges=ranges))


def test_a_large_network_is_quick(pods: Pods) -> None:
    """Ten thousand leases of others, of whom nobody is asked; and 2^64 addresses, which nobody counts."""
    _add(pods.start(), "10.0.0.0/16", ranges=[[{"subnet": "fd00::/64"}]])
    for number in range(10000):
        os.symlink(f"{number} eth0", state.path("leases", "net", f"10.0.{number // 250 + 1}.{number % 250}"))
    asked: list[str] = []
    real, state.holder = state.holder, lambda claim: asked.append(claim) or real(claim)  # type: ignore[func-returns-value]
    try:
        assert _add(pods.start(), "10.0.0.0/16", ranges=[[{"subnet": "fd00::/64"}]]) == ["10.0.0.3/16", "fd00::3/64"]
    finally:
        state.holder = real
    assert not [claim for claim in asked if "/leases/" in claim]


@pytest.mark.parametrize(
    ("wanted", "got"),
    [
        ("10.1.0.5", ["10.1.0.5/29", "fd00::2/64"]),
        ("10.1.0.5/16", ["10.1.0.5/29", "fd00::2/64"]),
        ("fd00:0::ffff,10.1.0.6", ["10.1.0.6/29", "fd00::ffff/64"]),
        (" fd00::4 , ", ["10.1.0.2/29", "fd00::4/64"]),
    ],
)
def test_addresses_asked_for(pods: Pods, wanted: str, got: list[str]) -> None:
    assert _add(pods.start(), ranges=[[{"subnet": "fd00::/64"}]], args=wanted) == got


def test_addresses_asked_for_by_capability(pods: Pods) -> None:
    call = _call(pods.start())
    call.conf["runtimeConfig"] = {"ips": ["10.1.0.4/29"]}
    assert leases.add(call)["ips"][0]["address"] == "10.1.0.4/29"
    call = _call(pods.start())
    call.conf["args"] = {"cni": {"ips": ["10.1.0.5"]}}
    assert leases.add(call)["ips"][0]["address"] == "10.1.0.5/29"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("10.1.0.0", "10.1.0.0 is not in any range"),
        ("10.1.0.7", "10.1.0.7 is not in any range"),
        ("10.1.0.1", "10.1.0.1 is the network's gateway"),
        ("fd00::2", "fd00::2 is not in any range .*10.1.0.0/29"),
        ("10.1.0.2,10.1.0.3", "10.1.0.3 cannot be had besides another one"),
        ("10.1.0.300", "address '10.1.0.300' is no IP address"),
        ("../../etc", "is no IP address"),
    ],
)
def test_addresses_that_cannot_be_had(pods: Pods, wanted: str, message: str) -> None:
    before = claims()
    with pytest.raises(NetworkError, match=message):
        _add(pods.start(), args=wanted)
    assert {claim for claim in claims() - before if not claim.startswith("pods/")} == set()


def test_an_address_that_is_taken_says_by_whom(pods: Pods) -> None:
    holder = pods.start("web")
    _add(holder, args="10.1.0.5")
    with pytest.raises(NetworkError, match=rf'10\.1\.0\.5 is already taken by pod "web" \({holder[:8]}\)'):
        _add(pods.start(), args="10.1.0.5")


@pytest.mark.parametrize("where", ["run", "exited-garbage", "garbage", "gone"])
def test_what_a_dead_pod_has_can_be_had(pods: Pods, firewall: list[str], where: str) -> None:
    dead, other = pods.start("web"), pods.start()
    _add(dead, args="10.1.0.5")
    pods.die(dead)
    if where == "gone":
        os.unlink(f"{pods.directory(dead)}/lock")
        os.unlink(f"{pods.directory(dead)}/name")
        os.rmdir(pods.directory(dead))
    elif where != "run":
        pods.move(dead, where)
    assert _add(other, args="10.1.0.5") == ["10.1.0.5/29"]
    assert firewall == [dead]
    assert not owners.is_registered(dead)


def test_what_a_pod_has_that_is_out_of_sight_cannot_be_had(pods: Pods) -> None:
    """Its data directory is not there for us, as that of a service with a private /tmp."""
    holder, other = pods.start(), pods.start()
    _add(holder, args="10.1.0.5")
    os.rename(pods.root, f"{pods.root}.hidden")
    with pytest.raises(NetworkError, match="already taken"):
        _add(other, args="10.1.0.5")
    pods.die(holder)
    assert _add(other, args="10.1.0.5") == ["10.1.0.5/29"]


def test_the_addresses_of_the_dead_are_there_when_there_is_no_other(pods: Pods) -> None:
    uuids = [pods.start() for _ in range(5)]
    for uuid in uuids:
        _add(uuid)
    pods.die(uuids[1])
    pods.die(uuids[3])
    late = [_add(pods.start()) for _ in range(2)]
    assert late == [["10.1.0.3/29"], ["10.1.0.5/29"]]
    with pytest.raises(NetworkError, match="no address left"):
        _add(pods.start())


def test_what_makes_no_sense_is_nobodys(pods: Pods) -> None:
    _add(pods.start(), args="10.1.0.2")
    for host in (3, 4, 5, 6):
        open(state.path("leases", "net", f"10.1.0.{host}"), "x").close()
    assert _add(pods.start()) == ["10.1.0.3/29"]
    with open(state.path("leases", "net", "last-0"), "w") as file:
        file.write("nonsense")
    assert _add(pods.start()) == ["10.1.0.4/29"]
    owners.sweep()
    assert {address for _, address, _ in leases.all_claims()} == {"10.1.0.2", "10.1.0.3", "10.1.0.4"}


def test_a_directory_in_the_place_of_an_address_takes_only_that(pods: Pods) -> None:
    for host in (2, 3, 4, 5, 6):
        os.makedirs(state.path("leases", "net", f"10.1.0.{host}", "x"))
    with pytest.raises(NetworkError, match="5 in use"):
        _add(pods.start())


def test_delete_takes_back_only_what_the_interface_has(pods: Pods) -> None:
    uuid = pods.start()
    _add(uuid)
    _add(uuid, interface="eth1")
    leases.delete(_call(uuid, "no subnet", interface="eth1"))
    leases.delete(_call(uuid, interface="eth1"))
    assert leases.held_by(uuid) == [("net", "10.1.0.2")]


def test_check_misses_what_is_not_there(pods: Pods) -> None:
    call = _call(pods.start())
    call.conf["prevResult"] = leases.add(call)
    leases.check(call)
    with pytest.raises(NetworkError, match="no longer claimed"):
        leases.check(call._replace(interface="eth7"))
    leases.delete(call)
    with pytest.raises(NetworkError, match=r"10\.1\.0\.2 is no longer claimed"):
        leases.check(call)
    call.conf["prevResult"] = {"ips": []}
    with pytest.raises(NetworkError, match="has no address of it"):
        leases.check(call)


@pytest.mark.parametrize(
    ("ipam", "message"),
    [
        ({}, "has no ranges"),
        ({"subnet": "10.1.0.1/24"}, "host bits"),
        ({"subnet": 7}, "subnet 7: it is no text"),
        ({"subnet": "10.1.0.0/31"}, "too small"),
        ({"subnet": "fd00::/127"}, "too small"),
        ({"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1"}, r"rangeStart 10\.2\.0\.1 is not in"),
        ({"subnet": "10.1.0.0/24", "rangeEnd": "::1"}, "rangeEnd ::1 is not in"),
        ({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"}, "is no address to give"),
        ({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.255"}, "is no address to give"),
        ({"subnet": "10.1.0.0/24", "gateway": "x"}, "gateway 'x' is no IP address"),
        ({"ranges": [[]]}, "a range set is empty"),
        ({"ranges": ["x"]}, "a range set is no JSON list"),
        ({"ranges": [["x"]]}, "a range is no JSON object"),
        ({"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]]}, "both IPv4 and IPv6"),
        ({"subnet": "10.1.0.0/24", "ranges": [[{"subnet": "10.1.0.0/16"}]]}, "overlap"),
        ({"subnet": "10.1.0.0/24", "routes": [{}]}, "a route to None"),
        ({"subnet": "10.1.0.0/24", "routes": [{"dst": "0.0.0.0/0", "gw": 1}]}, "gateway of a route"),
        ({"subnet": "10.1.0.0/24", "resolvConf": "/nowhere"}, "open /nowhere: no such file"),
    ],
)
def test_configurations_that_make_no_sense(pods: Pods, ipam: dict[str, Any], message: str) -> None:
    call = _call(pods.start())
    call.conf["ipam"] = ipam
    with pytest.raises(NetworkError, match=message):
        leases.add(call)


@pytest.mark.parametrize("name", ["..", "a/b", "", None, ".x", "x\0"])
def test_names_that_lead_elsewhere(pods: Pods, name: Any) -> None:
    call = _call(pods.start())
    call.conf["name"] = name
    for verb in (leases.add, leases.delete, leases.check):
        with pytest.raises(NetworkError, match="is no name for a network"):
            verb(call)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["10.1.0.0/29", "fd00::/64"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["subnet", "ranges", "routes", "dst", "gw", "rangeStart", "rangeEnd", "gateway", "ips", "cni"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(ipam=_json, runtime=_json, args=_json, wanted=st.text(max_size=20))
def test_any_configuration_is_refused_or_works(ipam: Any, runtime: Any, args: Any, wanted: str) -> None:
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "ROOT", f"{scratch}/net")
        conf = {"name": "net", "ipam": ipam, "runtimeConfig": runtime, "args": args}
        call = Call("u", "", "eth0", {"IP": wanted}, conf, (), (), [], "")
        try:
            result = leases.add(call)
        except NetworkError:
            assert claims() == set()
            return
        for entry in result["ips"]:
            interface = ipaddress.ip_interface(entry["address"])
            assert interface.ip != interface.network.network_address
            assert str(interface.ip) != entry["gateway"]
        leases.delete(call)
        assert claims() == set()


# --- the model


class Machine(RuleBasedStateMachine):
    """Random lives of pods with addresses of a small network. `has` is what pods that live were given."""

    pods_known = Bundle("pods_known")
    SUBNET = ipaddress.IPv4Network("10.1.0.0/28")

    def __init__(self) -> None:
        super().__init__()
        self.scratch = tempfile.TemporaryDirectory()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(state, "ROOT", f"{self.scratch.name}/net")
        stub_firewall(self.patch)
        self.pods = Pods(pathlib.Path(self.scratch.name))
        self.has: dict[str, set[str]] = {}
        self.next = 0

    def teardown(self) -> None:
        self.pods.close()
        self.patch.undo()
        self.scratch.cleanup()

    @rule(target=pods_known)
    def start(self) -> str:
        uuid = self.pods.start()
        self.has[uuid] = set()
        return uuid

    @rule(uuid=pods_known)
    def allocate(self, uuid: str) -> None:
        self.next += 1
        try:
            got = _add(uuid, str(self.SUBNET), interface=f"eth{self.next}")
        except NetworkError as error:
            assert "13 in use" in str(error)
            assert len(self._given()) == 13
            return
        self._has(uuid, got)

    @rule(uuid=pods_known, host=st.integers(0, 15))
    def allocate_this(self, uuid: str, host: int) -> None:
        self.next += 1
        wanted = str(self.SUBNET[host])
        try:
            got = _add(uuid, str(self.SUBNET), interface=f"eth{self.next}", args=wanted)
        except NetworkError:
            assert host in (0, 1, 15) or wanted in self._given()
            return
        assert got == [f"{wanted}/28"]
        self._has(uuid, got)

    @rule(uuid=pods_known)
    def free(self, uuid: str) -> None:
        leases.release(uuid)
        self.has[uuid] = set()

    @rule(uuid=consumes(pods_known), to=st.sampled_from(["run", "exited-garbage", "garbage"]))
    def crash(self, uuid: str, to: str) -> None:
        self.pods.die(uuid)
        if to != "run":
            self.pods.move(uuid, to)
        self.has.pop(uuid)

    @rule()
    def sweep(self) -> None:
        owners.sweep()
        assert {address for _, address, _ in leases.all_claims()} == self._given()

    def _has(self, uuid: str, got: list[str]) -> None:
        address = got[0].partition("/")[0]
        assert address not in self._given()
        assert self.SUBNET[1] < ipaddress.IPv4Address(address) < self.SUBNET[15]
        self.has[uuid].add(address)

    def _given(self) -> set[str]:
        return set().union(*self.has.values())

    @invariant()
    def nothing_is_lost(self) -> None:
        for uuid, addresses in self.has.items():
            assert {address for _, address in leases.held_by(uuid)} == addresses


Machine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestMachine = Machine.TestCase


# --- processes

_WORKER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from stage1.network import leases, state
from stage1.network.plugin import Call
state.ROOT, uuid, times = sys.argv[2], sys.argv[3], int(sys.argv[4])
conf = {"name": "net", "ipam": {"subnet": "10.1.0.0/25", "ranges": [[{"subnet": "fd00::/64"}]]}}
for number in range(times) if times else iter(int, 1):
    call = Call(uuid, "", f"eth{number}", {}, conf, (), (), [], "")
    got = [entry["address"].partition("/")[0] for entry in leases.add(call)["ips"]]
    print(*got, flush=True)
    if not times:
        leases.delete(call)
"""


def _worker(uuid: str, times: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-I", "-S", "-c", _WORKER, str(ROOT), state.ROOT, uuid, str(times)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_processes_at_once_get_different_addresses(pods: Pods) -> None:
    uuids = [pods.start() for _ in range(6)]
    workers = {uuid: _worker(uuid, 20) for uuid in uuids}
    given = {uuid: worker.communicate(timeout=60)[0].split() for uuid, worker in workers.items()}
    addresses = [address for each in given.values() for address in each]
    assert len(addresses) == len(set(addresses)) == 240
    for uuid in uuids:
        assert {address for _, address in leases.held_by(uuid)} == set(given[uuid])


def test_nothing_is_lost_nor_doubled_when_processes_are_killed(pods: Pods) -> None:
    """Each is killed at another point of its work; then the pods are dead, and all their addresses can be had."""
    keeper = pods.start()
    kept = set(_add(keeper, "10.1.0.0/25"))
    for round_number in range(25):
        uuids = [pods.start() for _ in range(2)]
        workers = [_worker(uuid, 0) for uuid in uuids]
        for worker in workers:
            assert worker.stdout is not None
            worker.stdout.readline()
        time.sleep(round_number * 0.0007)  # where in its work it dies is what differs
        for worker in workers:
            worker.send_signal(signal.SIGKILL)
            worker.communicate(timeout=60)
        for _, address, holder in leases.all_claims():
            ipaddress.ip_address(address)
            assert holder.partition(" ")[0] in {keeper, *uuids}
        for uuid in uuids:
            assert len(leases.held_by(uuid)) <= 2
            pods.die(uuid)
        assert set(owners.sweep()) == set(uuids)
        assert {f"{address}/25" for _, address in leases.held_by(keeper)} == kept
        assert len(list(leases.all_claims())) == 1
    for _ in range(124):
        _add(keeper, "10.1.0.0/25")
    with pytest.raises(NetworkError, match="125 in use"):
        _add(keeper, "10.1.0.0/25")
