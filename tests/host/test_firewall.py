"""The firewall with real packets, between namespaces of our own."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from stage1.network import firewall
from stage1.network.plan import Port
from stage1.network.record import Element
from tests import netlab
from tests.netlab import FAR4, FAR6, HOST4, HOST6, Lab, Unreachable

ROOT = str(pathlib.Path(__file__).parent.parent.parent)
SUBNET4, SUBNET6 = "172.16.28.0/24", "fd11:0:0:1::/64"
GATEWAY4, GATEWAY6 = "172.16.28.1", "fd11:0:0:1::1"
WEB = Port("web", "tcp", "", 8080, 80)
NAMES = Port("names", "udp", "", 5353, 53)
# Bare, as the monitor's child does it.
CALL = """
import json, sys
sys.path.insert(0, sys.argv[1])
from common.errors import RkpyError
from stage1.network import firewall, obstacles, removal
from stage1.network.record import Element
name, arguments = json.load(sys.stdin)
def element(value):
    return Element(*value)
try:
    if name == "apply":
        firewall.apply(map(element, arguments[0]), arguments[1])
    elif name == "withdraw":
        firewall.withdraw(arguments[0])
    elif name == "remove":
        removal.of_elements("rkpy", map(element, arguments[0]))
    elif name == "reload":
        firewall.reload()
    else:
        print(json.dumps(obstacles.foreign_obstacles(arguments[0])))
except RkpyError as error:
    sys.exit(str(error))
"""


class Pod:
    """A namespace on a cable of its own, as the built-in ptp makes it."""

    def __init__(self, lab: Lab, number: int, *, routed: bool = True) -> None:
        self.lab, self.name, self.uuid = lab, f"pod{number}", f"{number:08}-0000-4000-8000-000000000000"
        self.address4, self.address6 = f"172.16.28.{10 + number}", f"fd11:0:0:1::{10 + number}"
        self.interface = f"rk0-{number:08}"
        lab.namespace(self.name)
        lab.host("ip", "link", "add", self.interface, "type", "veth", "peer", "name", "eth0", "netns",
                 lab.path(self.name))  # fmt: skip
        lab.host("ip", "link", "set", self.interface, "up", "group", str(firewall.GROUP))
        lab.host("sysctl", "-qw", f"net.ipv4.conf.{self.interface}.route_localnet=1")
        lab.run(self.name, "ip", "link", "set", "eth0", "up")
        for gateway, address, subnet, length in (
            (GATEWAY4, self.address4, SUBNET4, 32),
            (GATEWAY6, self.address6, SUBNET6, 128),
        ):
            lab.host("ip", "address", "add", f"{gateway}/{length}", "dev", self.interface, *nodad(gateway))
            lab.host("ip", "route", "add", f"{address}/{length}", "dev", self.interface)
            lab.run(self.name, "ip", "address", "add", f"{address}/{length}", "dev", "eth0", *nodad(address))
            lab.run(self.name, "ip", "route", "add", f"{gateway}/{length}", "dev", "eth0")
            lab.run(self.name, "ip", "route", "add", "default" if routed else subnet, "via", gateway)
        lab.host("ip", "-6", "route", "add", "local", "::1/128", "dev", self.interface, "table", "local",
                 "metric", str(4096 + number))  # fmt: skip

    def serve(self) -> None:
        for protocol, port in (("tcp", 80), ("udp", 53)):
            self.lab.serve(self.name, protocol, self.address4, port, self.name)
            self.lab.serve(self.name, protocol, self.address6, port, self.name)

    def publication(self, *ports: Port, routed: str = "46") -> list[Element]:
        return firewall.publication(ports, (f"{self.address4}/24", f"{self.address6}/64"), routed=routed)

    def masquerade(self) -> list[Element]:
        return firewall.masquerade(self.address4, SUBNET4) + firewall.masquerade(self.address6, SUBNET6)

    def restrict(self, interface: str) -> list[Element]:
        return [*firewall.restrict(self.address4, SUBNET4, interface),
                *firewall.restrict(self.address6, SUBNET6, interface)]  # fmt: skip


def nodad(address: str) -> tuple[str, ...]:
    return ("nodad",) if ":" in address else ()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        made.host("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        yield made


@pytest.fixture
def pod(lab: Lab) -> Pod:
    pod = Pod(lab, 1)
    pod.serve()
    return pod


def call(lab: Lab, name: str, *arguments: Any) -> str:
    words = (sys.executable, "-I", "-S", "-c", CALL, ROOT)
    finished = lab.finish("host", *words, input=json.dumps((name, arguments)), check=False)
    if finished.returncode != 0:
        raise AssertionError(finished.stderr)
    return finished.stdout


def apply(lab: Lab, elements: Iterable[Element], owner: str) -> None:
    call(lab, "apply", list(elements), owner)


def withdraw(lab: Lab, owner: str) -> None:
    call(lab, "withdraw", owner)


def ruleset(lab: Lab) -> str:
    return lab.host("nft", "list", "ruleset")


def refused(ask: Callable[[], str]) -> None:
    with pytest.raises(Unreachable):
        ask()


def test_what_leaves_the_subnet_is_masqueraded_and_nothing_else(lab: Lab, pod: Pod) -> None:
    other = Pod(lab, 2)
    for address in (FAR4, FAR6):
        lab.serve("outside", "tcp", address, 80)
        lab.serve("outside", "udp", address, 53)
    for address in (HOST4, HOST6):
        lab.serve("host", "tcp", address, 99)
    refused(lambda: lab.ask(pod.name, "tcp", FAR4, 80, timeout=0.5))
    apply(lab, pod.masquerade(), pod.uuid)
    apply(lab, other.masquerade(), other.uuid)
    assert lab.ask(pod.name, "tcp", FAR4, 80) == HOST4
    assert lab.ask(pod.name, "udp", FAR4, 53) == HOST4
    assert lab.ask(pod.name, "tcp", FAR6, 80) == HOST6
    assert lab.ask(pod.name, "udp", FAR6, 53) == HOST6
    assert lab.ask(other.name, "tcp", pod.address4, 80) == f"pod1 {other.address4}"
    assert lab.ask(other.name, "tcp", pod.address6, 80) == f"pod1 {other.address6}"
    assert lab.ask(pod.name, "tcp", HOST4, 99) == pod.address4
    assert lab.ask(pod.name, "tcp", HOST6, 99) == pod.address6
    withdraw(lab, pod.uuid)
    refused(lambda: lab.ask(pod.name, "tcp", FAR4, 80, timeout=0.5))
    assert lab.ask(other.name, "tcp", FAR4, 80) == HOST4
    withdraw(lab, other.uuid)
    assert ruleset(lab) == ""


def test_published_ports_are_reached_from_everywhere(lab: Lab, pod: Pod) -> None:
    other = Pod(lab, 2)
    lab.outside("ip", "route", "add", SUBNET4, "via", HOST4)
    apply(lab, pod.publication(WEB, NAMES) + pod.masquerade(), pod.uuid)
    for protocol, port in (("tcp", 8080), ("udp", 5353)):
        # The pod sees who asks where it can answer.
        assert lab.ask("outside", protocol, HOST4, port) == f"pod1 {netlab.OUTSIDE4}"
        assert lab.ask("outside", protocol, HOST6, port) == f"pod1 {netlab.OUTSIDE6}"
        assert lab.ask("host", protocol, HOST4, port).startswith("pod1 ")
        assert lab.ask("host", protocol, HOST6, port).startswith("pod1 ")
        assert lab.ask("host", protocol, "127.0.0.1", port) == f"pod1 {GATEWAY4}"
        assert lab.ask("host", protocol, "::1", port).startswith("pod1 ")
        for who in (pod, other):
            for address in (GATEWAY4, GATEWAY6, HOST4, HOST6):
                assert lab.ask(who.name, protocol, address, port).startswith("pod1 ")
    refused(lambda: lab.ask("outside", "tcp", HOST4, 80, timeout=1))
    withdraw(lab, pod.uuid)
    refused(lambda: lab.ask("outside", "tcp", HOST4, 8080, timeout=1))
    assert ruleset(lab) == ""


def test_a_port_on_one_address_of_the_host_is_on_that_alone(lab: Lab, pod: Pod) -> None:
    ports = [WEB._replace(host_ip="127.0.0.1", host_port=8081), WEB._replace(host_ip=HOST6, host_port=8082)]
    apply(lab, pod.publication(*ports), pod.uuid)
    assert lab.ask("host", "tcp", "127.0.0.1", 8081) == f"pod1 {GATEWAY4}"
    refused(lambda: lab.ask("outside", "tcp", HOST4, 8081, timeout=1))
    assert lab.ask("outside", "tcp", HOST6, 8082).startswith("pod1 ")
    refused(lambda: lab.ask("outside", "tcp", HOST4, 8082, timeout=1))
    # A neighbour that sends packets for 127.0.0.1 down the wire gets nowhere.
    lab.outside("sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1")
    lab.outside("ip", "address", "delete", "127.0.0.1/8", "dev", "lo")
    lab.outside("ip", "route", "add", "127.0.0.1", "via", HOST4, "src", netlab.OUTSIDE4)
    refused(lambda: lab.ask("outside", "tcp", "127.0.0.1", 8081, timeout=0.5))


def test_a_range_of_ports(lab: Lab, pod: Pod) -> None:
    lab.serve(pod.name, "tcp", pod.address4, 82, "third")
    apply(lab, pod.publication(WEB._replace(span=3)), pod.uuid)
    assert lab.ask("outside", "tcp", HOST4, 8080).startswith("pod1")
    assert lab.ask("outside", "tcp", HOST4, 8082).startswith("third")
    refused(lambda: lab.ask("outside", "tcp", HOST4, 8083, timeout=1))


def test_pods_do_not_get_at_what_listens_on_the_loopback_of_the_host(lab: Lab, pod: Pod) -> None:
    lab.serve("host", "tcp", "127.0.0.1", 99)
    lab.run(pod.name, "ip", "address", "delete", "127.0.0.1/8", "dev", "lo")
    lab.run(pod.name, "sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1")
    lab.run(pod.name, "ip", "route", "add", "127.0.0.1", "via", GATEWAY4, "src", pod.address4)
    # It would, ports being published on loopback: that is what the rule is for.
    assert lab.ask(pod.name, "tcp", "127.0.0.1", 99) == pod.address4
    apply(lab, pod.publication(WEB), pod.uuid)
    refused(lambda: lab.ask(pod.name, "tcp", "127.0.0.1", 99, timeout=0.5))


@pytest.mark.parametrize("by_interface", [True, False])
def test_a_restricted_pod_talks_to_its_subnet_and_the_host_only(lab: Lab, by_interface: bool) -> None:
    pod, other = Pod(lab, 1, routed=False), Pod(lab, 2)
    pod.serve()
    other.serve()
    for where, address in (("outside", FAR4), ("outside", FAR6), ("host", GATEWAY4), ("host", GATEWAY6)):
        lab.serve(where, "tcp", address, 88)
    restriction = pod.restrict(pod.interface if by_interface else "")
    apply(lab, restriction + pod.publication(WEB, NAMES, routed=""), pod.uuid)
    # Published ports are answered although the pod knows no way out.
    assert lab.ask("outside", "tcp", HOST4, 8080) == f"pod1 {GATEWAY4}"
    assert lab.ask("outside", "udp", HOST4, 5353) == f"pod1 {GATEWAY4}"
    assert lab.ask("outside", "tcp", HOST6, 8080) == f"pod1 {GATEWAY6}"
    assert lab.ask("host", "tcp", "127.0.0.1", 8080) == f"pod1 {GATEWAY4}"
    assert lab.ask(pod.name, "tcp", GATEWAY4, 88) == pod.address4
    assert lab.ask(pod.name, "tcp", GATEWAY6, 88) == pod.address6
    assert lab.ask(pod.name, "tcp", other.address4, 80) == f"pod2 {pod.address4}"
    # What it lacks is not only the route; the internet would answer.
    lab.outside("ip", "route", "add", SUBNET4, "via", HOST4)
    lab.outside("ip", "route", "add", SUBNET6, "via", HOST6)
    lab.run(pod.name, "ip", "route", "add", "default", "via", GATEWAY4)
    lab.run(pod.name, "ip", "route", "add", "default", "via", GATEWAY6)
    refused(lambda: lab.ask(pod.name, "tcp", FAR4, 88, timeout=0.5))
    refused(lambda: lab.ask(pod.name, "tcp", FAR6, 88, timeout=0.5))
    assert lab.ask(other.name, "tcp", FAR4, 88) == other.address4
    assert lab.ask(other.name, "tcp", FAR6, 88) == other.address6
    withdraw(lab, pod.uuid)
    assert lab.ask(pod.name, "tcp", FAR4, 88) == pod.address4
    assert lab.ask(pod.name, "tcp", FAR6, 88) == pod.address6


def test_a_restricted_pod_gains_nothing_from_another_senders_address(lab: Lab) -> None:
    pod = Pod(lab, 1)
    lab.serve("outside", "tcp", FAR4, 88)
    lab.run(pod.name, "ip", "address", "add", "172.16.99.1/32", "dev", "lo")
    lab.run(pod.name, "ip", "route", "change", "default", "via", GATEWAY4, "src", "172.16.99.1")
    lab.host("ip", "route", "add", "172.16.99.1", "dev", pod.interface)
    lab.outside("ip", "route", "add", "172.16.99.1", "via", HOST4)
    apply(lab, pod.restrict(pod.interface), pod.uuid)
    refused(lambda: lab.ask(pod.name, "tcp", FAR4, 88, timeout=0.5))
    withdraw(lab, pod.uuid)
    assert lab.ask(pod.name, "tcp", FAR4, 88) == "172.16.99.1"


def words(lab: Lab) -> list[str]:
    """The ruleset, in whatever order its elements are."""
    return sorted(ruleset(lab).replace(",", " ").split())


def test_a_flushed_ruleset_is_repaired_by_the_next_pod_and_by_reload(lab: Lab, pod: Pod) -> None:
    other = Pod(lab, 2)
    apply(lab, pod.publication(WEB), pod.uuid)
    lab.host("nft", "flush", "ruleset")
    refused(lambda: lab.ask("outside", "tcp", HOST4, 8080, timeout=1))
    apply(lab, other.masquerade(), other.uuid)
    assert lab.ask("outside", "tcp", HOST4, 8080).startswith("pod1")
    before = words(lab)
    lab.host("nft", "flush", "ruleset")
    call(lab, "reload")
    assert words(lab) == before
    # A pod that goes repairs it too.
    lab.host("nft", "flush", "ruleset")
    withdraw(lab, other.uuid)
    assert lab.ask("outside", "tcp", HOST4, 8080).startswith("pod1")
    lab.host("nft", "flush", "ruleset")
    withdraw(lab, pod.uuid)
    assert ruleset(lab) == ""
    call(lab, "reload")
    assert ruleset(lab) == ""


def test_a_table_with_other_rules_is_made_anew_with_what_was_in_it(lab: Lab, pod: Pod) -> None:
    other = Pod(lab, 2)
    apply(lab, pod.publication(WEB), pod.uuid)
    good = words(lab)
    lab.host("nft", "delete", "chain", *firewall.TABLE.split(), firewall.VERSION)
    lab.host("nft", "flush", "chain", *firewall.TABLE.split(), "prerouting")
    apply(lab, other.masquerade(), other.uuid)
    assert lab.ask("outside", "tcp", HOST4, 8080).startswith("pod1")
    withdraw(lab, other.uuid)
    assert words(lab) == good


def test_what_is_stale_gives_way_and_is_not_taken_back_from_its_new_owner(lab: Lab, pod: Pod) -> None:
    dead, gone = Pod(lab, 2), "00000009-0000-4000-8000-000000000000"
    apply(lab, dead.publication(WEB) + dead.masquerade(), dead.uuid)
    apply(lab, [*firewall.publication([WEB._replace(host_port=1)], [f"{pod.address4}/16"]),
                *firewall.masquerade(pod.address4, "172.16.0.0/16")], gone)  # fmt: skip
    apply(lab, pod.publication(WEB) + pod.masquerade(), pod.uuid)
    assert lab.ask("outside", "tcp", HOST4, 8080).startswith("pod1")
    withdraw(lab, gone)
    withdraw(lab, dead.uuid)
    before = words(lab)
    assert not any(uuid in " ".join(before) for uuid in (gone, dead.uuid))
    assert lab.ask("outside", "tcp", HOST4, 8080).startswith("pod1")
    # Twice the same is fine.
    apply(lab, pod.publication(WEB) + pod.masquerade(), pod.uuid)
    assert words(lab) == before
    withdraw(lab, pod.uuid)
    withdraw(lab, pod.uuid)
    assert ruleset(lab) == ""
    assert lab.host("ls", "/run/rkpy/net/firewall") == ""


def test_what_cannot_be_added_leaves_everything_as_it_was(lab: Lab, pod: Pod) -> None:
    contradiction = pod.publication(WEB, WEB._replace(pod_port=81))
    with pytest.raises(AssertionError, match="change the firewall: Could not process rule: File exists"):
        apply(lab, contradiction, pod.uuid)
    assert ruleset(lab) == ""
    apply(lab, pod.publication(WEB), pod.uuid)
    before = words(lab)
    with pytest.raises(AssertionError):
        apply(lab, contradiction, "00000009-0000-4000-8000-000000000000")
    assert words(lab) == before
    call(lab, "reload")
    assert words(lab) == before
    withdraw(lab, pod.uuid)
    assert ruleset(lab) == ""


def test_without_nft_it_is_said_what_to_install(lab: Lab, pod: Pod) -> None:
    lab.host("mount", "--bind", "/dev/null", lab.host("sh", "-c", "readlink -f $(command -v nft)").strip())
    with pytest.raises(AssertionError, match=r"there is no nft\(8\).*\(install nftables\)"):
        apply(lab, pod.publication(WEB), pod.uuid)
    assert lab.host("ls", "/run/rkpy/net/firewall") == ""


def test_no_ruleset_of_others_is_touched(lab: Lab, pod: Pod) -> None:
    lab.host("nft", "-f", "-", input="table inet other { set s { type ipv4_addr; elements = { 1.2.3.4 } }\n }")
    before = ruleset(lab)
    apply(lab, pod.publication(WEB), pod.uuid)
    lab.host("nft", "delete", "chain", *firewall.TABLE.split(), firewall.VERSION)
    apply(lab, pod.masquerade(), pod.uuid)
    withdraw(lab, pod.uuid)
    assert ruleset(lab) == before


SENDER = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
link = socket.socket(family, socket.SOCK_DGRAM)
link.bind(("", 7000))
link.settimeout(float(sys.argv[3]))
for attempt in range(3):
    link.sendto(b"?", (sys.argv[1], int(sys.argv[2])))
    try:
        print(link.recv(1024).decode())
        break
    except TimeoutError:
        continue
"""


@pytest.mark.parametrize("address", [HOST4, HOST6])
def test_who_kept_sending_to_a_udp_port_gets_through_once_it_is_published(lab: Lab, pod: Pod, address: str) -> None:
    other = Pod(lab, 2)
    other.serve()

    def send(timeout: float) -> str:
        return lab.outside(sys.executable, "-I", "-S", "-c", SENDER, address, "5353", str(timeout))

    # Somebody tracks connections already.
    apply(lab, other.masquerade(), other.uuid)
    assert send(0.1) == ""
    apply(lab, pod.publication(NAMES), pod.uuid)
    assert send(5).startswith("pod1 ")
    withdraw(lab, pod.uuid)
    apply(lab, other.publication(NAMES), other.uuid)
    assert send(5).startswith("pod2 ")


def test_flows_of_others_to_the_same_port_are_not_forgotten(lab: Lab, pod: Pod) -> None:
    lab.serve("outside", "udp", FAR4, 5353)
    apply(lab, pod.masquerade(), pod.uuid)
    assert lab.ask(pod.name, "udp", FAR4, 5353) == HOST4
    apply(lab, pod.publication(NAMES), pod.uuid)
    if not pathlib.Path("/proc/net/nf_conntrack").exists():
        pytest.skip("needs /proc/net/nf_conntrack")
    assert f"dst={FAR4} " in lab.host("cat", "/proc/net/nf_conntrack")


FIREWALLD = """
table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state established,related accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        jump sources
        reject with icmpx admin-prohibited
    }
    chain sources { }
    chain filter_FWD_trusted { accept; }
}
"""
UFW = """
table ip filter {
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
        counter jump ufw-before-forward
        counter jump ufw-user-forward
    }
    chain ufw-before-forward { ct state related,established counter accept; }
    chain ufw-user-forward { }
}
"""


def obstacles(lab: Lab) -> list[str]:
    found: list[str] = json.loads(call(lab, "obstacles", [SUBNET4, SUBNET6]))
    return found


def test_nobody_else_is_in_the_way(lab: Lab, pod: Pod) -> None:
    lab.host("nft", "-f", "-", input="table ip filter { chain FORWARD { type filter hook forward priority 0; }\n }")
    apply(lab, pod.publication(WEB), pod.uuid)
    assert obstacles(lab) == []


def test_beside_firewalld_published_ports_work_and_the_way_out_is_told(lab: Lab, pod: Pod) -> None:
    lab.serve("outside", "tcp", FAR4, 80)
    lab.host("nft", "-f", "-", input=FIREWALLD)
    apply(lab, pod.publication(WEB) + pod.masquerade(), pod.uuid)
    for address in (HOST4, HOST6):
        assert lab.ask("outside", "tcp", address, 8080).startswith("pod1")
    refused(lambda: lab.ask(pod.name, "tcp", FAR4, 80, timeout=1))
    (line,) = obstacles(lab)
    assert line == (
        f'chain "filter_FORWARD" of table "inet firewalld" may be in the way of what pods in {SUBNET4} and {SUBNET6} '
        f'send: "firewall-cmd --permanent --zone=trusted --add-source={SUBNET4} --add-source={SUBNET6}" and '
        '"firewall-cmd --reload" lets it pass'
    )
    # What firewalld makes of it.
    for rule in (f"ip saddr {SUBNET4}", f"ip6 saddr {SUBNET6}"):
        lab.host("nft", "add", "rule", "inet", "firewalld", "sources", *rule.split(), "goto", "filter_FWD_trusted")
    assert obstacles(lab) == []
    assert lab.ask(pod.name, "tcp", FAR4, 80) == HOST4


def test_beside_ufw_what_is_to_be_allowed_is_told(lab: Lab, pod: Pod) -> None:
    lab.serve("outside", "tcp", FAR4, 80)
    lab.host("nft", "-f", "-", input=UFW)
    apply(lab, pod.publication(WEB) + pod.masquerade(), pod.uuid)
    refused(lambda: lab.ask("outside", "tcp", HOST4, 8080, timeout=0.5))
    refused(lambda: lab.ask(pod.name, "tcp", FAR4, 80, timeout=0.5))
    assert lab.ask("outside", "tcp", HOST6, 8080).startswith("pod1")
    (line,) = obstacles(lab)
    assert line == (
        f'chain "FORWARD" of table "ip filter" may be in the way of what pods in {SUBNET4} send and of their '
        f'published ports: "ufw route allow from {SUBNET4}" and "ufw route allow to {SUBNET4}" lets it pass'
    )
    # What ufw makes of them.
    for direction in ("saddr", "daddr"):
        words = ("ip", "filter", "ufw-user-forward", "ip", direction, SUBNET4, "counter", "accept")
        lab.host("nft", "add", "rule", *words)
    assert obstacles(lab) == []
    assert lab.ask("outside", "tcp", HOST4, 8080).startswith("pod1")
    assert lab.ask(pod.name, "tcp", FAR4, 80) == HOST4


def test_a_chain_of_nobody_we_know(lab: Lab) -> None:
    table = "table ip6 mine { chain out { type filter hook forward priority 0; ct state new counter drop; drop; }\n }"
    lab.host("nft", "-f", "-", input=table)
    (line,) = obstacles(lab)
    assert f'"nft insert rule ip6 mine out ip6 saddr {SUBNET6} accept"' in line
    assert SUBNET4 not in line


def test_many_at_once(lab: Lab) -> None:
    """Each in a process of its own, which applies and withdraws several times and is killed at the end or not."""
    code = CALL.partition("try:")[0].replace("name, arguments = json.load(sys.stdin)", "number = int(sys.argv[2])")
    code += """
uuid, address = f"{number:08}-0000-4000-8000-000000000000", f"172.16.28.{number}"
elements = firewall.masquerade(address, "172.16.28.0/24")
for again in range(5):
    firewall.apply(elements, uuid)
    if again < 4:
        firewall.withdraw(uuid)
    print("done", flush=True)
"""
    processes = [
        lab.popen("host", sys.executable, "-I", "-S", "-c", code, ROOT, str(number), stdout=subprocess.PIPE, text=True)
        for number in range(1, 13)
    ]
    for process in processes[:4]:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    for process in processes[4:]:
        assert process.wait(netlab.TIMEOUT) == 0
    for process in processes[:4]:
        process.wait(netlab.TIMEOUT)
    listed = ruleset(lab)
    for number in range(5, 13):
        assert listed.count(f'172.16.28.{number} comment "{number:08}-0000-4000-8000-000000000000"') == 1
    for number in range(1, 13):
        withdraw(lab, f"{number:08}-0000-4000-8000-000000000000")
    assert ruleset(lab) == ""
    assert lab.host("ls", "/run/rkpy/net/firewall") == ""


def test_nobody_gets_the_lock_while_the_nft_of_a_killed_process_is_at_work(
    lab: Lab, pod: Pod, tmp_path: pathlib.Path
) -> None:
    slow, begun, go = tmp_path / "nft", tmp_path / "begun", tmp_path / "go"
    os.mkfifo(begun)
    os.mkfifo(go)
    slow.write_text(f'#!/bin/sh\necho >{begun}; read go <{go}\nexec {shutil.which("nft")} "$@"\n')
    slow.chmod(0o755)
    words = (sys.executable, "-I", "-S", "-c", CALL, ROOT)
    apply(lab, Pod(lab, 2).masquerade(), "other")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    victim = lab.popen("host", *words, stdin=subprocess.PIPE, text=True, env=environment)
    assert victim.stdin is not None
    victim.stdin.write(json.dumps(("apply", [pod.masquerade(), pod.uuid])))
    victim.stdin.close()
    begun.read_text()
    victim.kill()
    victim.wait()
    held = "import sys; sys.path.insert(0, sys.argv[1]); from common import locks; print(locks.is_locked(sys.argv[2]))"
    asking = (sys.executable, "-I", "-S", "-c", held, ROOT, "/run/rkpy/net/lock")
    assert lab.host(*asking) == "True\n"
    go.write_text("\n")
    withdraw(lab, pod.uuid)
    assert pod.uuid not in ruleset(lab)
    withdraw(lab, "other")
    assert ruleset(lab) == ""


def test_neighbours_on_a_bridge_get_at_published_ports(lab: Lab) -> None:
    """Their answers would not pass the host, which is to translate them back."""
    lab.host("ip", "link", "add", "br0", "type", "bridge")
    lab.host("ip", "link", "set", "br0", "up", "group", str(firewall.GROUP))
    lab.host("ip", "address", "add", "10.7.0.1/24", "dev", "br0")
    lab.host("sysctl", "-qw", "net.ipv4.conf.br0.route_localnet=1")
    for number in (2, 3):
        lab.namespace(f"pod{number}")
        lab.host("ip", "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns",
                 lab.path(f"pod{number}"))  # fmt: skip
        lab.host("ip", "link", "set", f"port{number}", "up", "master", "br0")
        lab.host("bridge", "link", "set", "dev", f"port{number}", "hairpin", "on")
        lab.run(f"pod{number}", "ip", "link", "set", "eth0", "up")
        lab.run(f"pod{number}", "ip", "address", "add", f"10.7.0.{number}/24", "dev", "eth0")
        lab.run(f"pod{number}", "ip", "route", "add", "default", "via", "10.7.0.1")
    lab.serve("pod2", "tcp", "10.7.0.2", 80, "two")
    apply(lab, firewall.publication([WEB], ["10.7.0.2/24"]) + firewall.masquerade("10.7.0.2", "10.7.0.0/24"), "two")
    assert lab.ask("outside", "tcp", HOST4, 8080) == f"two {netlab.OUTSIDE4}"
    assert lab.ask("host", "tcp", "127.0.0.1", 8080) == "two 10.7.0.1"
    for who in ("pod2", "pod3"):
        for address in (HOST4, "10.7.0.1"):
            assert lab.ask(who, "tcp", address, 8080) == "two 10.7.0.1"
    assert lab.ask("pod3", "tcp", "10.7.0.2", 80) == "two 10.7.0.3"


def test_elements_of_every_kind_are_found_and_taken_away_at_once(lab: Lab, pod: Pod) -> None:
    """By our own words to the kernel, without the table being made anew."""
    other = Pod(lab, 2)
    spread = [WEB, NAMES, Port("one", "tcp", HOST4, 9000, 90), Port("six", "udp", HOST6, 9000, 90, 3)]
    more = firewall.restrict("10.0.0.1", "10.0.0.0/8")
    everything = {*pod.publication(*spread), *firewall.masquerade(HOST4, ""), *pod.restrict(pod.interface), *more}
    apply(lab, other.masquerade(), other.uuid)
    apply(lab, other.publication(Port("x", "tcp", "", 1, 1), routed=""), "other")
    before = ruleset(lab)
    apply(lab, everything, pod.uuid)
    full = ruleset(lab)
    with pytest.raises(AssertionError, match="no such file"):
        call(lab, "remove", [*everything, Element("masquerade4", "10.9.9.9")])
    assert ruleset(lab) == full, "all or nothing"
    call(lab, "remove", list(everything))
    assert ruleset(lab) == before


def test_more_elements_than_one_message_holds(lab: Lab, pod: Pod) -> None:
    apply(lab, pod.masquerade(), pod.uuid)
    before = ruleset(lab)
    many = pod.publication(Port("many", "tcp", HOST4, 10000, 10000, 6000))
    apply(lab, many, "many")
    call(lab, "remove", many)
    assert ruleset(lab) == before
