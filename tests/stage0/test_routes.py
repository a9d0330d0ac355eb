"""Whether a network's addresses are free, by the kernel's tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import addresses
from common.addresses import Subnet
from common.errors import NetworkError
from stage0 import routes
from stage1.network.plan import Network

HEADER = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"


def network(name: str, *subnets: str, kind: str = "ptp", source: str = "", **fields: Any) -> Network:
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}] for subnet in subnets]}
    conf = {"cniVersion": "1.0.0", "name": name, "plugins": [{"type": kind, "ipam": ipam, **fields}]}
    return Network(name, "eth0", json.dumps(conf), source=source)


class Host:
    """A host's routes, in the kernel's own form."""

    def __init__(self, root: Path) -> None:
        self.proc = str(root)
        self.directory = root / "net"
        self.directory.mkdir()
        (self.directory / "route").write_text(HEADER)

    def ipv4(self, subnet: str, interface: str, flags: int = 1) -> None:
        address, length = subnet.split("/")
        destination = bytes(map(int, address.split(".")))[::-1].hex().upper()
        mask = ((1 << int(length)) - 1 << 32 - int(length)).to_bytes(4, "little").hex().upper()
        line = f"{interface}\t{destination}\t00000000\t{flags:04X}\t0\t0\t0\t{mask}\t0\t0\t0"
        with (self.directory / "route").open("a") as file:
            file.write(f"{line:<127}\n")

    def ipv6(self, subnet: str, interface: str, flags: int = 1) -> None:
        found = addresses.subnet(subnet)
        with (self.directory / "ipv6_route").open("a") as file:
            file.write(
                f"{found.first:032x} {found.length:02x} {0:032x} 00 {0:032x} 00000400 00000001 00000000 {flags:08x} "
                f"{interface:>8}\n"
            )

    def check(self, *networks: Network, plugin_path: tuple[str, ...] = ()) -> None:
        routes.check(networks, plugin_path, self.proc)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(tmp_path)
    made.ipv4("0.0.0.0/0", "eth0", 3)
    made.ipv4("192.0.2.0/24", "eth0")
    return made


DEFAULT = network("default", "172.16.28.0/24", "fd12:3456:789a::/64")


@pytest.mark.parametrize("subnet", ["172.16.28.0/24", "172.16.0.0/12", "172.16.28.128/25", "172.16.28.7/32"])
def test_a_route_in_the_way(host: Host, subnet: str) -> None:
    host.check(DEFAULT)
    host.ipv4(subnet, "tun0")
    with pytest.raises(NetworkError) as caught:
        host.check(DEFAULT)
    assert f'network "default" has the subnet 172.16.28.0/24, and this host a route to {subnet} by tun0' in str(
        caught.value
    )
    assert caught.value.hint.startswith('define a network "default" of another subnet in /etc/rkpy/net.d')


def test_an_ipv6_route_in_the_way(host: Host) -> None:
    host.ipv6("fd12:3456::/32", "wg0")
    with pytest.raises(NetworkError, match=r"fd12:3456:789a::/64, and this host a route to fd12:3456::/32 by wg0"):
        host.check(DEFAULT)
    with pytest.raises(NetworkError, match=r"choose another subnet in /etc/x\.conf"):
        host.check(network("x", "fd12:3456::/33", source="/etc/x.conf"))


@pytest.mark.parametrize(
    ("subnet", "interface", "flags"),
    [
        ("172.16.28.9/32", "rk0-0123abcd", 5),
        ("172.16.28.0/24", "rk12-0123abcd", 1),
        ("172.16.28.0/24", "tun0", 0x201),
        ("172.16.28.0/24", "tun0", 0),
        ("128.0.0.0/1", "tun0", 3),
        ("172.16.29.0/24", "tun0", 1),
    ],
)
def test_routes_that_do_no_harm(host: Host, subnet: str, interface: str, flags: int) -> None:
    host.ipv4(subnet, interface, flags)
    host.check(DEFAULT)


def test_ipv6_routes_that_do_no_harm(host: Host) -> None:
    host.ipv6("::/0", "eth0", 3)
    host.ipv6("fe80::/64", "eth0")
    host.ipv6("ff00::/8", "eth0")
    host.ipv6("fd12:3456:789a::1/128", "lo", 0x80200001)
    host.ipv6("fd12:3456:789a::1/128", "eth0", 0x80200001)
    host.ipv6("fd12:3456:789a::2/128", "rk0-0123abcd")
    host.check(DEFAULT)


def test_a_bridge_is_its_network_s_own(host: Host) -> None:
    host.ipv4("10.1.0.0/16", "cni0")
    host.ipv4("10.2.0.0/16", "rkbr")
    host.check(network("a", "10.1.0.0/16", kind="bridge"), network("b", "10.2.0.0/16", kind="bridge", bridge="rkbr"))
    with pytest.raises(NetworkError, match="by cni0"):
        host.check(network("c", "10.1.0.0/16", kind="bridge", bridge="other"))


def test_networks_of_an_interface_are_meant_to_be_in_use(host: Host) -> None:
    for kind in ("macvlan", "ipvlan", "flannel"):
        host.check(network("lan", "192.0.2.0/24", kind=kind))


def test_programs_have_interfaces_of_any_name(host: Host, tmp_path: Path) -> None:
    host.ipv4("172.16.28.9/32", "veth0123")
    plugin = tmp_path / "ptp"
    plugin.touch(0o644)
    with pytest.raises(NetworkError, match="veth0123"):
        host.check(DEFAULT, plugin_path=(str(tmp_path),))
    plugin.chmod(0o755)
    host.check(DEFAULT, plugin_path=("/nowhere", str(tmp_path)))


def test_two_networks_of_a_pod_must_not_overlap(host: Host) -> None:
    with pytest.raises(NetworkError, match=r'networks "a" and "b" overlap: 10\.0\.0\.0/8 and 10\.1\.0\.0/16'):
        host.check(network("a", "10.0.0.0/8"), network("b", "10.1.0.0/16", kind="bridge"))


def test_old_configurations_have_one_subnet(host: Host) -> None:
    host.ipv4("10.1.0.0/16", "tun0")
    conf = {"name": "a", "plugins": [{"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.1.2.3/24"}}]}
    with pytest.raises(NetworkError, match=r"has the subnet 10\.1\.2\.0/24"):
        host.check(Network("a", "eth0", json.dumps(conf)))


@pytest.mark.parametrize(
    "ipam",
    [
        {}, None, {"type": "dhcp"}, {"type": "host-local", "ranges": 5},
        {"type": "host-local", "ranges": [5, [5], [{}]]}, {"type": "host-local", "subnet": "x"},
        {"type": "host-local", "subnet": 5},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_left_to_the_plugin(ipam: Any) -> None:
    assert routes.subnets({"type": "ptp", "ipam": ipam}) == []


def test_a_host_without_ipv6_or_of_another_form(host: Host) -> None:
    (host.directory / "ipv6_route").write_text("what is this\n")
    host.check(DEFAULT)
    (host.directory / "route").unlink()
    host.check(DEFAULT)


def test_this_host_can_be_read() -> None:
    assert all(route.subnet.length >= 8 for route in routes.read())


_V4 = st.integers(0, 2**32 - 1)


@given(_V4, st.integers(0, 32), _V4, st.integers(0, 32))
def test_overlap_is_having_an_address_in_common(one: int, length: int, other: int, other_length: int) -> None:
    first, second = (
        addresses.subnet(f"{addresses.to_text(4, value)}/{bits}")
        for value, bits in ((one, length), (other, other_length))
    )
    ends = [(subnet.first, subnet.first + (1 << 32 - subnet.length) - 1) for subnet in (first, second)]
    assert first.overlaps(second) == second.overlaps(first)
    assert first.overlaps(second) == (ends[0][0] <= ends[1][1] and ends[1][0] <= ends[0][1])
    assert not first.overlaps(Subnet(6, 0, 0))


@given(st.ip_addresses())
def test_addresses_are_written_in_one_way(address: Any) -> None:
    assert addresses.canonical(str(address)) == addresses.canonical(address.exploded)
    assert addresses.number(str(address)) == (address.version, int(address))


@pytest.mark.parametrize(
    "text", ["", "1.2.3", "1.2.3.4/24", "::1%lo", "01.2.3.4", "x", "1.2.3.4\0", "::1\0", "１.2.3.4"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is not an IP address"):
        addresses.canonical(text)
