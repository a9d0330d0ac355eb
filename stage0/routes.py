"""Whether the addresses of a network are in use on this host already (proc(5), /proc/net/route and ipv6_route)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from common import addresses
from common.addresses import Subnet
from common.errors import NetworkError
from common.records import NamedTuple
from stage1.network import pasta
from stage1.network.plan import Network

DEFAULT_BRIDGE = "cni0"
ROUTED = ("ptp", "bridge")
"""Plugins that make the host route to the network; with others it is the network of some interface on purpose."""

_PROC = "/proc/self"
_ORDER = -1 if sys.byteorder == "little" else 1
_RTF_UP, _RTF_REJECT, _RTF_ANYCAST, _RTF_LOCAL = 0x1, 0x200, 0x00100000, 0x80000000
_COARSE = 8
"""A route with a shorter prefix is as good as a default route: VPNs have two halves of everything instead of one."""


class Route(NamedTuple):
    subnet: Subnet
    interface: str


def check(networks: Iterable[Network], plugin_path: Sequence[str] = (), proc: str = _PROC) -> None:
    """Raises NetworkError when the subnet of a network that the host is to route to overlaps with one that it has a
    route to, or with that of another of `networks`."""
    taken: list[tuple[Subnet, Network]] = []
    routes: list[Route] | None = None
    for network in networks:
        for subnet, bridge in _claims(network, plugin_path):
            for other_subnet, other in taken:
                if other is not network and subnet.overlaps(other_subnet):
                    raise NetworkError(
                        f'networks "{other.name}" and "{network.name}" overlap: {other_subnet} and {subnet}',
                        hint="a pod cannot have both; give one another subnet in net.d",
                    )
            taken.append((subnet, network))
            routes = read(proc) if routes is None else routes
            for route in routes:
                if route.interface != bridge and route.subnet.overlaps(subnet):
                    raise NetworkError(
                        f'network "{network.name}" has the subnet {subnet}, and this host a route to {route.subnet} by '
                        f"{route.interface}",
                        hint=_remedy(network),
                    )


def _remedy(network: Network) -> str:
    if network.source:
        return f"choose another subnet in {network.source}"
    return f'define a network "{network.name}" of another subnet in /etc/rkpy/net.d; docs/networking.md has an example'


def _claims(network: Network, plugin_path: Sequence[str]) -> Iterator[tuple[Subnet, str]]:
    """The subnets the host is to route to, each with the bridge it may do so by."""
    plugin = json.loads(network.conf)["plugins"][0]
    kind = plugin["type"]
    bridge = plugin.get("bridge") or DEFAULT_BRIDGE if kind == "bridge" else ""
    # The interfaces of a program have names that nobody can tell; the bridge at least is named.
    if kind == "bridge" or (kind in ROUTED and not _has_program(kind, plugin_path)):
        yield from ((subnet, bridge) for subnet in subnets(plugin))


def _has_program(kind: str, plugin_path: Sequence[str]) -> bool:
    paths = (f"{directory}/{kind}" for directory in plugin_path)
    return any(os.path.isfile(path) and os.access(path, os.X_OK) for path in paths)


def subnets(plugin: dict[str, Any]) -> list[Subnet]:
    """Those of the plugin's `host-local` ranges, or of pasta's addresses. What makes no sense is left for the plugin to
    complain of."""
    if plugin["type"] == pasta.TYPE:
        return list(_parsed(plugin.get("addresses") or ()))
    ipam = plugin.get("ipam") or {}
    if ipam.get("type") != "host-local":
        return []
    found = [ipam.get("subnet")]
    ranges = ipam.get("ranges")
    for group in ranges if isinstance(ranges, list) else ():
        found += [item.get("subnet") for item in group if isinstance(item, dict)] if isinstance(group, list) else []
    return list(_parsed(found))


def _parsed(texts: Iterable[Any]) -> Iterator[Subnet]:
    for text in texts:
        try:
            if isinstance(text, str):
                yield addresses.subnet(text)
        except ValueError:
            continue


def read(proc: str = _PROC) -> list[Route]:
    """The host's routes to subnets, but for default routes and those by interfaces of ours."""
    return [route for route in _all(proc) if route.subnet.length >= _COARSE and not is_ours(route.interface)]


def defaults() -> set[int]:
    """The families of which the host has a default route."""
    return {route.subnet.version for route in _all(_PROC) if route.subnet.length == 0}


def somewhere() -> str:
    """An interface by which the host has a route to anything; empty when there is none."""
    return next((route.interface for route in _all(_PROC) if not is_ours(route.interface)), "")


def _all(proc: str) -> list[Route]:
    return [*_parse(f"{proc}/net/route", _ipv4), *_parse(f"{proc}/net/ipv6_route", _ipv6)]


def is_ours(interface: str) -> bool:
    """Whether it is the host's end of a pod's cable, rkN-UUID."""
    number, dash, _ = interface.removeprefix("rk").partition("-")
    return interface.startswith("rk") and dash == "-" and number.isdigit()


def _parse(path: str, parse: Any) -> Iterator[Route]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            for line in file:
                route = parse(line.split())
                if route is not None:
                    yield route
    except (OSError, ValueError, IndexError):
        return  # Without the family, or in a form nobody knows: then there is nothing to clash with.


def _ipv4(words: list[str]) -> Route | None:
    """Iface, Destination, Gateway, Flags, RefCnt, Use, Metric, Mask, …; numbers as the memory of the host has them."""
    if words[0] == "Iface":
        return None
    destination, mask = (int.from_bytes(bytes.fromhex(words[at])[::_ORDER], "big") for at in (1, 7))
    flags = int(words[3], 16)
    if not flags & _RTF_UP or flags & _RTF_REJECT:
        return None
    return Route(Subnet(4, destination, mask.bit_count()), words[0])


def _ipv6(words: list[str]) -> Route | None:
    """Destination, prefix length, source, its length, next hop, metric, references, use, flags, device."""
    flags = int(words[8], 16)
    if words[9] == "lo" or flags & (_RTF_REJECT | _RTF_ANYCAST | _RTF_LOCAL):
        return None
    return Route(Subnet(6, int(words[0], 16), int(words[1], 16)), words[9])
