"""Networks of pods that are virtual machines, with every part real but the machine (`tests.host.machined`)."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stage1.network.plan import Port
from tests.host.machined import ROOT, Machine
from tests.host.networked import connected, until
from tests.netlab import FAR4, FAR6, HOST4, HOST6, OUTSIDE4, OUTSIDE6, UPLINK, Lab, Unreachable

RANGES = {"ranges": [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]]}
ROUTES = {"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}
IPAM = {"type": "host-local", **RANGES, **ROUTES}


def network(name: str, kind: str, *more: dict[str, Any], **conf: Any) -> dict[str, Any]:
    first = {"type": kind, "ipMasq": True, "ipam": IPAM, **conf}
    return {"cniVersion": "1.0.0", "name": name, "plugins": [first, *more]}


@pytest.fixture(scope="module")
def whole() -> Iterator[Lab]:
    with connected() as made:
        yield made


@pytest.fixture
def lab(whole: Lab) -> Iterator[Lab]:
    """It has to be afterwards as it was."""

    def state() -> str:
        return whole.host("sh", "-c", "nft list ruleset; find /run/rkpy/net -type f | grep -v last-; ip -br link")

    whole.host("mkdir", "-p", "/run/rkpy/net")
    whole.host("touch", "/run/rkpy/net/lock")
    before = state()
    yield whole
    until(lambda: state() == before)


def addresses(lab: Lab, where: str, interface: str = "eth0") -> set[str]:
    (link,) = json.loads(lab.run(where, "ip", "-j", "address", "show", "dev", interface))
    return {f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"]}


def own(lab: Lab, machine: Machine) -> tuple[str, str]:
    """The IPv4 and the IPv6 address that it was given by `RANGES`."""
    found = sorted(each.partition("/")[0] for each in addresses(lab, machine.guest) if each.startswith(("10.", "fd")))
    return found[0], found[1]


def routes(lab: Lab, where: str) -> list[str]:
    """What the main tables say, by interfaces that both sides have."""
    found = [line for family in ("-4", "-6") for line in lab.run(where, "ip", family, "route").splitlines()]
    return sorted(" ".join(line.split()) for line in found if "dev other0" not in line)


def link(lab: Lab, where: str, interface: str = "eth0") -> tuple[str, int]:
    (found,) = json.loads(lab.run(where, "ip", "-j", "link", "show", "dev", interface))
    return found["address"], found["mtu"]


def shaped(lab: Lab, machine: Machine) -> int:
    """Bytes from the machine that have passed the limit of its bandwidth."""
    (found,) = re.findall(
        r"qdisc tbf .*\n Sent ([0-9]+) ", lab.run(machine.pod, "tc", "-s", "qdisc", "show", "dev", "eth0")
    )
    return int(found)


def test_a_machine_has_of_its_network_what_a_pod_has(lab: Lab, tmp_path: Path) -> None:
    ports = (Port("http", "tcp", "", 8080, 80), Port("echo", "udp", "", 7007, 7))
    tuning = {"type": "tuning", "sysctl": {"net.core.somaxconn": "77", "net.ipv4.conf.IFNAME.arp_ignore": "1"}}
    with Machine(lab, tmp_path, "shop", network("lab", "ptp", tuning, mtu=1400), ports=ports) as machine:
        machine.furnish()
        guest, pod = machine.guest, machine.pod
        ip4, _ = own(lab, machine)
        assert link(lab, guest) == link(lab, pod)
        assert link(lab, guest)[1] == link(lab, pod, "tap0")[1] == 1400
        assert addresses(lab, guest) == addresses(lab, pod)
        assert routes(lab, guest) == routes(lab, pod)
        for name, value in (("net.core.somaxconn", "77"), ("net.ipv4.conf.eth0.arp_ignore", "1")):
            assert lab.run(guest, "sysctl", "-n", name) == f"{value}\n"
        # Out into the world, behind the host's address.
        for far, seen in ((FAR4, HOST4), (FAR6, HOST6)):
            assert lab.ask(guest, "tcp", far, 80) == seen
            lab.run(guest, "ping", "-c1", "-W20", "-s1300", far)
        # In by published ports, from near and far.
        lab.serve(guest, "tcp", "::", 80, "hello")
        lab.serve(guest, "udp", ip4, 7, "echo")
        assert lab.ask("outside", "tcp", HOST4, 8080) == f"hello ::ffff:{OUTSIDE4}"
        assert lab.ask("outside", "tcp", HOST6, 8080) == f"hello {OUTSIDE6}"
        assert lab.ask("host", "tcp", "127.0.0.1", 8080) == "hello ::ffff:10.99.0.1"
        assert lab.ask("host", "tcp", "::1", 8080) == "hello fd99::1"
        assert lab.ask("outside", "udp", HOST4, 7007) == f"echo {OUTSIDE4}"
        machine.check()


def test_the_namespace_itself_is_silent(lab: Lab, tmp_path: Path) -> None:
    """Nobody but the machine answers to its addresses: when it stands still nothing does, from ARP upwards."""
    bridge = network("lab", "bridge", bridge="lab0", isGateway=True)
    with Machine(lab, tmp_path, "still", bridge) as machine:
        machine.furnish()
        lab.host("ping", "-c1", "-W20", own(lab, machine)[0])
        machine.pump.send_signal(signal.SIGSTOP)
        until(lambda: "State:\tT" in Path(f"/proc/{machine.pump.pid}/status").read_text())
        lab.host("ip", "neigh", "flush", "dev", "lab0")
        for address in own(lab, machine):
            with pytest.raises(Unreachable):
                lab.ask("host", "tcp", address, 80, timeout=1)
            assert "lladdr" not in lab.host("ip", "neigh", "show", address, "dev", "lab0")
        machine.check()


def test_machines_and_the_wires_they_are_on(lab: Lab, tmp_path: Path) -> None:
    """Two on a bridge, of which one is a machine of its own on the wire too; a limit of what they send."""
    wire_range = {"subnet": "198.51.100.0/24", "rangeStart": "198.51.100.50", "gateway": OUTSIDE4}
    wire_ipam = {"type": "host-local", "routes": [{"dst": "203.0.113.0/24"}], "ranges": [[wire_range]]}
    limit = {"type": "bandwidth", "ingressRate": 8_000_000, "egressRate": 8_000_000}
    bridge = network("lab", "bridge", limit, bridge="lab0", isGateway=True)
    wire = network("wire", "macvlan", ipMasq=False, master=UPLINK, ipam=wire_ipam)
    with Machine(lab, tmp_path, "one", bridge, wire) as one, Machine(lab, tmp_path, "two", bridge) as two:
        for machine in (one, two):
            machine.furnish()
            assert lab.ask(machine.guest, "tcp", FAR6, 80) == HOST6
        lab.serve(two.guest, "tcp", own(lab, two)[1], 80, "two")
        assert lab.ask(one.guest, "tcp", own(lab, two)[1], 80) == f"two {own(lab, one)[1]}"
        assert link(lab, one.guest, "eth1") == link(lab, one.pod, "eth1")
        assert routes(lab, one.guest) == routes(lab, one.pod)
        assert lab.ask(one.guest, "tcp", FAR4, 80) == "198.51.100.50"
        lab.serve(one.guest, "udp", "198.51.100.50", 7, "wire")
        assert lab.ask("outside", "udp", "198.51.100.50", 7) == f"wire {OUTSIDE4}"
        before = shaped(lab, two)
        lab.run(two.guest, "ping", "-c1", "-W20", "-s1200", "10.99.0.1")
        assert shaped(lab, two) > before + 1200
        for machine in (one, two):
            machine.check()


def test_a_namespace_without_the_tap_fails_and_keeps_nothing(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="failed 254 there is no interface tap0"):
        Machine(lab, tmp_path, "bare", network("lab", "ptp"), taps=0)


def test_a_machine_without_the_card_says_so(lab: Lab, tmp_path: Path) -> None:
    with Machine(lab, tmp_path, "bare", network("lab", "ptp")) as machine:
        lab.run(machine.guest, "ip", "link", "set", "eth0", "name", "eth9")
        with pytest.raises(AssertionError, match="set up eth0: no interface with this name"):
            machine.furnish()


def test_taps_are_one_each_and_go_with_their_descriptor(lab: Lab) -> None:
    code = """
import os
from common.errors import LaunchError
from stage1.vm import tap
fd = tap.open_tap(3)
assert os.listdir("/sys/class/net") and not os.get_inheritable(fd)
try:
    tap.open_tap(3)
except LaunchError as error:
    print(error)
os.close(fd)
os.close(tap.open_tap(3))
"""
    lab.namespace("taps")
    try:
        said = lab.run("taps", sys.executable, "-c", code, cwd=str(ROOT))
        assert said == "make tap3: TUNSETIFF: device or resource busy\n"
        assert "tap" not in lab.run("taps", "ip", "link")
    finally:
        lab.end("taps")


def test_what_plugins_add_by_hand_comes_along(lab: Lab, tmp_path: Path) -> None:
    """A program, with routes and neighbours of kinds that the built-in plugins do not make."""
    program = tmp_path / "plugins" / "odd"
    program.parent.mkdir()
    program.write_text(ODD)
    program.chmod(0o755)
    odd = {"cniVersion": "1.0.0", "name": "odd", "plugins": [{"type": "odd"}]}
    with Machine(lab, tmp_path, "odd", odd, plugin_path=(str(program.parent),)) as machine:
        machine.furnish()
        guest, pod = machine.guest, machine.pod
        assert addresses(lab, guest) == addresses(lab, pod) > {"10.7.0.2/32", "10.8.0.2/24"}
        assert routes(lab, guest) == routes(lab, pod)
        assert "prohibit 10.66.0.0/16" in " ".join(routes(lab, guest))
        for words in ("rule", "-6 rule", "route show table 100", "neigh show nud permanent"):
            assert lab.run(guest, "ip", *words.split()) == lab.run(pod, "ip", *words.split())
        assert "02:aa:00:00:00:01" in lab.run(guest, "ip", "neigh")


ODD = r"""#!/bin/sh
[ "$CNI_COMMAND" = ADD ] || exit 0
exec 3>&1 >&2
nsenter --net="$CNI_NETNS" sh -e <<'END'
ip link add eth0 type veth peer name other0
ip link set other0 up
ip link set eth0 up address 02:00:00:00:00:77
ip address add 10.7.0.2/32 dev eth0
ip address add 10.8.0.2/24 brd + dev eth0
ip route add 169.254.1.1 dev eth0 scope link
ip route add default via 169.254.1.1 src 10.7.0.2 metric 7 mtu 1300
ip route add 10.9.0.0/16 nexthop via 10.8.0.3 weight 2 nexthop via 10.8.0.4
ip route add 10.10.0.0/16 via 192.0.2.9 dev eth0 onlink
ip route add prohibit 10.66.0.0/16
ip route add default via 10.8.0.1 table 100
ip rule add from 10.8.0.2 table 100 priority 100
ip neigh add 169.254.1.1 lladdr 02:aa:00:00:00:01 nud permanent dev eth0
END
echo '{"cniVersion":"1.0.0","interfaces":[],"ips":[],"routes":[],"dns":{}}' >&3
"""
