"""The addresses and routes that a network's IPAM plugin gave out, made sense of."""

from __future__ import annotations

import ipaddress
from typing import Any

from common.errors import NetworkError
from common.records import NamedTuple
from stage1.network import links
from stage1.network.plugin import Call

_EVERYWHERE = ("0.0.0.0/0", "::/0")
_IPV6_METRIC = 1024
"""What the kernel takes for a route without one."""


class Address(NamedTuple):
    version: int
    """Of IP."""
    address: str
    prefix: int
    subnet: str
    """Address and prefix length: "172.16.28.0/24"."""
    gateway: str
    """Empty when there is none."""

    @property
    def single(self) -> str:
        """A destination that is this address and no other."""
        return f"{self.address}/{_bits(self.version)}"

    @property
    def gateway_only(self) -> str:
        return f"{self.gateway}/{_bits(self.version)}"

    @property
    def first(self) -> str:
        """What a gateway is by custom."""
        network = ipaddress.ip_network(self.subnet)
        return str(network.network_address + (1 if network.num_addresses > 2 else 0))

    def others(self, present: set[str]) -> list[str]:
        """Which of `present` ("10.1.2.1/24") are in the way of this one's gateway: other addresses of its subnet."""
        network, ours = ipaddress.ip_network(self.subnet), f"{self.gateway}/{self.prefix}"
        found = [ipaddress.ip_interface(text) for text in present]
        return sorted(
            str(item)
            for item in found
            if item.version == self.version and str(item) != ours and item.network.overlaps(network)
        )


class Route(NamedTuple):
    destination: str
    gateway: str
    metric: int


class Leases(NamedTuple):
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...]
    dns: dict[str, Any]

    def has(self, version: int) -> bool:
        return any(address.version == version for address in self.addresses)


def obtain(call: Call) -> Leases:
    """Ask the IPAM plugin. A machine without IPv6 gets along with the IPv4 addresses if there are any."""
    from stage1.network import cni

    if not call.conf.get("ipam"):
        raise NetworkError("the configuration has no ipam, by which pods get addresses", hint='"type": "host-local"')
    return understand(call, cni.ipam(call, "ADD"))


def understand(call: Call, result: dict[str, Any]) -> Leases:
    """NetworkError when `result` (CNI 1.0.0) has no address for us or makes no sense."""
    try:
        found = tuple(_address(item) for item in result.get("ips") or ())
        usable = tuple(address for address in found if address.version == 4 or links.has_ipv6())
        routes = tuple(_routes(call, usable, result.get("routes") or ()))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise NetworkError(f"what the IPAM plugin gave out makes no sense: {error}") from error
    if found and not usable:
        raise NetworkError(
            "the network has IPv6 addresses only, and this machine has no IPv6",
            hint="see net.ipv6.conf.all.disable_ipv6, or give the network an IPv4 subnet",
        )
    if not usable:
        raise NetworkError("the IPAM plugin gave out no address")
    dns = result.get("dns")
    return Leases(usable, routes, dns if isinstance(dns, dict) else {})


def _address(item: dict[str, Any]) -> Address:
    interface = ipaddress.ip_interface(_text(item["address"]))
    gateway = ipaddress.ip_address(_text(item["gateway"])) if item.get("gateway") else None
    if gateway and gateway.version != interface.version:
        raise ValueError(f"gateway {gateway} of {interface}")
    return Address(interface.version, str(interface.ip), interface.network.prefixlen, str(interface.network),
                   str(gateway or ""))  # fmt: skip


def _routes(call: Call, addresses: tuple[Address, ...], items: Any) -> list[Route]:
    """Those of the families that there are addresses of, by the gateway of the first one where no other is named."""
    found = []
    for item in items:
        network = ipaddress.ip_network(_text(item["dst"]), strict=False)
        gateway = str(ipaddress.ip_address(_text(item["gw"]))) if item.get("gw") else ""
        mine = [address for address in addresses if address.version == network.version]
        if mine:
            gateway = gateway or next((address.gateway for address in mine if address.gateway), "")
            found.append(Route(str(network), gateway, metric(call, str(network))))
    return found


def _text(value: Any) -> str:
    """A number would be taken for an address."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def metric(call: Call, destination: str) -> int:
    """0 for the kernel's own. The default route of the first network is the best one, none is in another's way."""
    later = links.number(call) * 100
    if destination not in _EVERYWHERE or not later:
        return 0
    return later + (_IPV6_METRIC if ":" in destination else 0)


def _bits(version: int) -> int:
    return 32 if version == 4 else 128


def result(call: Call, interfaces: list[dict[str, str]], leases: Leases | None) -> dict[str, Any]:
    """In the form of CNI 1.0.0. The last of `interfaces` is the pod's."""
    ips = []
    for address in leases.addresses if leases else ():
        entry: dict[str, Any] = {"address": f"{address.address}/{address.prefix}", "interface": len(interfaces) - 1}
        ips.append({**entry, "gateway": address.gateway} if address.gateway else entry)
    routes = [{"dst": route.destination, **({"gw": route.gateway} if route.gateway else {})}
              for route in (leases.routes if leases else ())]  # fmt: skip
    dns = call.conf.get("dns") or (leases.dns if leases else {})
    return {"cniVersion": "1.0.0", "interfaces": interfaces, "ips": ips, "routes": routes, "dns": dns}
