"""What pods and their neighbours try that they are not to succeed with."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator

import pytest

from tests.host.networked import NetPod, Site, running, until
from tests.netlab import FAR4, FAR6, HOST4, HOST6, OUTSIDE4, OUTSIDE6, UPLINK, Lab, Unreachable

FAMILIES = (0, 1)
"""Which of a network's two addresses."""
HOST, OUTSIDE, FAR = (HOST4, HOST6), (OUTSIDE4, OUTSIDE6), (FAR4, FAR6)
LISTEN = """
import socket, sys
address, port = sys.argv[1], int(sys.argv[2])
with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind((address, port))
    print("ready", flush=True)
    while (data := server.recv(64)) != b"end":
        print(data.decode(), flush=True)
"""
SEND = """
import socket, sys
source, address, port, text = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
    if source:
        client.bind((source, 0))
    client.sendto(text.encode(), (address, port))
"""

FRAMES = """
import socket, struct, sys
destination, own4, own6, gateway4, gateway6, port = sys.argv[1:]
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(("eth0", 0x0800))
own = wire.getsockname()[4]

def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)

def send4(source, target, text):
    text = struct.pack("!HHHH", 7777, int(port), 8 + len(text), 0) + text
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    head = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(text), 1, 0, 64, 17)
    packet = head + checksum(head + bytes(2) + addresses) + addresses + text
    wire.send(bytes.fromhex(destination) + own + bytes((8, 0)) + packet)

def send6(source, target, protocol, text, at, to=destination):
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target)
    total = checksum(addresses + struct.pack("!II", len(text), protocol) + text + bytes(len(text) % 2))
    packet = struct.pack("!IHBB", 6 << 28, len(text), protocol, 255) + addresses + text[:at] + total + text[at + 2:]
    wire.send(bytes.fromhex(to) + own + bytes((0x86, 0xDD)) + packet)

def udp(text):
    return struct.pack("!HHHH", 7777, int(port), 8 + len(text), 0) + text

for pair in (("127.0.0.1", "127.0.0.1"), (own4, "127.0.0.1"), ("127.0.0.1", gateway4)):
    send4(*pair, b"forged")
for pair in (("::1", "::1"), (own6, "::1"), ("::1", gateway6), (own6, "::ffff:127.0.0.1")):
    send6(*pair, 17, udp(b"forged"), 6)
prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 86400, 86400, 0) + socket.inet_pton(socket.AF_INET6, "2001:db8:bad::")
router = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
send6("fe80::bad", "ff02::1", 58, router + prefix, 2, "333300000001")
send4(own4, gateway4, b"own4")
send6(own6, gateway6, 17, udp(b"own6"), 6)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        for address in FAR:
            made.serve("outside", "tcp", address, 80)
        until(lambda: "scope link" in made.host("ip", "-6", "address", "show", "dev", UPLINK, "-tentative"))
        yield made


def send(site: Site, where: str | int, source: str, address: str, port: int, text: str) -> None:
    site.lab.run(where, sys.executable, "-I", "-S", "-c", SEND, source, address, str(port), text)


def received(site: Site, where: str | int, address: str, port: int, pod: NetPod, sources: list[str]) -> set[str]:
    """Which of the sources, which the pod pretends to be one after the other, a program that listens there hears of."""
    words = (sys.executable, "-I", "-S", "-c", LISTEN, address, str(port))
    server = site.lab.popen(where, *words, stdout=-1, text=True)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    for source in sources:
        send(site, pod.pid, source, address, port, source)
    send(site, where, "", address, port, "end")
    out, _ = server.communicate(timeout=60)
    return set(out.split())


def gateway_of(address: str) -> str:
    """By the built-in networks' default."""
    separator = ":" if ":" in address else "."
    return f"{address.rpartition(separator)[0]}{separator}1"


def pretend(pod: NetPod, addresses: list[str]) -> None:
    """The pod, which must have been given CAP_NET_ADMIN or CAP_NET_RAW for this, has more addresses."""
    for address in addresses:
        pod.inside("ip", "address", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))


# --- who a pod pretends to be


@pytest.mark.parametrize("network", ["default", "default-restricted"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pod_cannot_pretend_to_be_another_to_the_host_and_to_pods(site: Site, network: str, family: int) -> None:
    flag = f"--net={network}"
    with running(site, flag) as pod, running(site, flag) as victim, running(site, flag) as target:
        own, others = pod.addresses[family], [victim.addresses[family], OUTSIDE[family]]
        pretend(pod, others)
        gateway = gateway_of(own)
        if network == "default-restricted":
            pod.inside("ip", "route", "add", HOST[family], "via", gateway, "dev", "eth0")
        for where, address in (("host", gateway), ("host", HOST[family]), (target.pid, target.addresses[family])):
            assert received(site, where, address, 5300, pod, [own, *others]) == {own}


def test_frames_for_the_loopback_and_from_a_router_that_a_pod_forges(site: Site) -> None:
    """While what the host sends from its loopback gets to the pod and back."""
    with running(site, "--port=http:8080") as pod:
        cable = json.loads(site.lab.host("ip", "-j", "link", "show", f"rk0-{pod.uuid[:8]}"))[0]
        words = (sys.executable, "-I", "-S", "-c", LISTEN, "::", "5300")
        server = site.lab.popen("host", *words, stdout=-1, text=True)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        gateways = map(gateway_of, pod.addresses)
        mac = cable["address"].replace(":", "")
        pod.inside(sys.executable, "-I", "-S", "-c", FRAMES, mac, *pod.addresses, *gateways, "5300")
        heard = {server.stdout.readline(), server.stdout.readline()}
        send(site, "host", "", "::1", 5300, "end")
        out, _ = server.communicate(timeout=60)
        assert heard == {"own4\n", "own6\n"}
        assert not out
        assert "bad" not in site.lab.host("ip", "-6", "address", "show", "dev", cable["ifname"])
        assert "bad" not in site.lab.host("ip", "-6", "route", "show", "dev", cable["ifname"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bridge_that_the_host_is_not_on_carries_what_it_likes(site: Site, family: int) -> None:
    """br_netfilter, which others load, shows our chains what the bridge does not even route."""
    ranges = [[{"subnet": "10.79.0.0/24"}], [{"subnet": "fd79::/64"}]]
    site.conf("lan.conf", {"cniVersion": "1.0.0", "name": "lan", "type": "bridge", "bridge": "lan0",
                           "ipam": {"type": "host-local", "ranges": ranges}})  # fmt: skip
    with running(site, "--net=lan") as pod, running(site, "--net=lan") as other:
        site.lab.serve(pod.pid, "tcp", pod.addresses[family], 80, "hello")
        assert site.lab.ask(other.pid, "tcp", pod.addresses[family], 80) == f"hello {other.addresses[family]}"


# --- who comes from beyond


@contextlib.contextmanager
def routed(site: Site, pod: NetPod, family: int) -> Iterator[str]:
    """A neighbour of the host sends what is for the pod's address to the host."""
    address = pod.addresses[family]
    site.lab.outside("ip", "route", "add", address, "via", HOST[family])
    try:
        yield address
    finally:
        site.lab.outside("ip", "route", "del", address, "via", HOST[family])


@pytest.mark.parametrize("network", ["default", "default-restricted"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_neighbour_of_the_host_reaches_published_ports_only(site: Site, network: str, family: int) -> None:
    with running(site, f"--net={network}", "--port=http:8080") as pod, routed(site, pod, family) as address:
        if network == "default-restricted":
            pod.inside("ip", "route", "add", "default", "via", gateway_of(address), "dev", "eth0")
        site.lab.serve(pod.pid, "tcp", address, 80, "hello")
        assert site.lab.ask("outside", "tcp", HOST[family], 8080).startswith("hello ")
        assert site.lab.ask("host", "tcp", address, 80).startswith("hello ")
        with pytest.raises(Unreachable):
            site.lab.ask("outside", "tcp", address, 80, timeout=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_that_is_routed_is_reached(site: Site, family: int) -> None:
    """Without masquerading nobody else would be answered."""
    ranges = [[{"subnet": "10.79.0.0/24"}], [{"subnet": "fd79::/64"}]]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    site.conf("lan.conf", {"cniVersion": "1.0.0", "name": "lan", "type": "ptp",
                           "ipam": {"type": "host-local", "ranges": ranges, "routes": routes}})  # fmt: skip
    with running(site, "--net=lan") as pod, routed(site, pod, family) as address:
        site.lab.serve(pod.pid, "tcp", address, 80, "hello")
        assert site.lab.ask("outside", "tcp", address, 80).startswith("hello ")


@pytest.mark.parametrize("family", FAMILIES)
def test_pods_of_other_networks_do_not_begin_anything_with_a_restricted_one(site: Site, family: int) -> None:
    with running(site, "--net=default-restricted") as pod, running(site) as other:
        address = pod.addresses[family]
        pod.inside("ip", "route", "add", "default", "via", gateway_of(address), "dev", "eth0")
        site.lab.serve(pod.pid, "tcp", address, 80, "hello")
        with pytest.raises(Unreachable):
            site.lab.ask(other.pid, "tcp", address, 80, timeout=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_second_network_may_be_the_one_ports_are_published_on(site: Site, family: int) -> None:
    """Its answers leave by the first one, which has the default route."""
    ranges = [[{"subnet": "10.79.0.0/24"}], [{"subnet": "fd79::/64"}]]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    site.conf("lan.conf", {"cniVersion": "1.0.0", "name": "lan", "type": "ptp",
                           "ipam": {"type": "host-local", "ranges": ranges, "routes": routes}})  # fmt: skip
    with running(site, "--net=lan,default", "--port=http:8080") as pod:
        site.lab.serve(pod.pid, "tcp", ("0.0.0.0", "::")[family], 80, "hello")
        assert site.lab.ask("outside", "tcp", HOST[family], 8080).startswith("hello ")


# --- what it can do with its own network


@pytest.mark.parametrize("flags", [(), ("--private-users",), ("--net=none",)], ids=["plain", "users", "none"])
def test_who_can_get_at_the_hosts_interfaces_is_warned_of(site: Site, flags: tuple[str, ...]) -> None:
    done = site.run(*flags, app=("--caps-retain=CAP_NET_ADMIN", "--exec=/bin/true"))
    assert done.status == 0
    assert ("can change the network of the host by CAP_NET_ADMIN" in done.err) == (not flags)
