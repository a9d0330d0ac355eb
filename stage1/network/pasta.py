"""What pasta(1) is told: it connects the networks of those who are not root (docs/networking.md).

It is a process beside the pod, with a tap in the pod's network namespace and sockets of its user's on the host: every
connection of the pod is one of this user's. Here is what is decided and how it is said; `usermode` does it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from common import addresses
from common.records import NamedTuple
from stage1.network.plan import Network, Port

TYPE = "pasta"
"""What the plugin of such a network is called, though none of it is a plugin: nothing is claimed from anybody."""
_ANY = {4: "0.0.0.0", 6: "::"}  # noqa: S104


class Decided(NamedTuple):
    """A network of pasta's, as stage0 has decided it."""

    program: str
    """A path."""
    addresses: tuple[str, ...]
    """The pod's in CIDR notation, one of each family it is to have."""
    gateways: tuple[str, ...]
    """One for each of `addresses`. Nobody is there; where a name server is, see `arguments`."""
    template: str = ""
    """An interface of the host that has addresses; empty for that of the default route."""


def network(name: str, decided: Decided) -> Network:
    """As it is known to all that deals with networks."""
    plugin = {"type": TYPE, "capabilities": {"portMappings": True}, **decided._asdict()}
    document = {"cniVersion": "1.0.0", "name": name, "plugins": [plugin]}
    return Network(name, "eth0", json.dumps(document, separators=(",", ":")))


def decided(conf: str) -> Decided | None:
    """What `network` wrote; None for what is a network of root's."""
    try:
        plugin = json.loads(conf)["plugins"][0]
        if plugin["type"] != TYPE:
            return None
        own, gateways = (tuple(map(str, plugin[name])) for name in ("addresses", "gateways"))
        return Decided(str(plugin["program"]), own, gateways, str(plugin["template"]))
    except (ValueError, KeyError, IndexError, TypeError):
        return None


def families(networks: Sequence[Network]) -> set[int]:
    """Those that a pod has by these; none where they are not its network."""
    chosen = decided(networks[0].conf) if serves(networks) else None
    return set() if chosen is None else {addresses.version(text) for text in chosen.addresses}


def serves(networks: Sequence[Network]) -> bool:
    """Whether these, all of a pod, are its network."""
    return len(networks) == 1 and decided(networks[0].conf) is not None


def arguments(
    chosen: Decided, interface: str, ports: Iterable[Port], *, netns: str, ready: str, resolvers: Iterable[str] = ()
) -> list[str]:
    """The command line. `ready` is where it writes once it is; `resolvers`: gateways of the pod that answer for the
    name server of their family that the host has first.

    What pasta does unasked is switched off: that the gateway leads to the host's loopback, that ports which anybody
    listens on are forwarded either way, and that it answers to DHCP and the like."""
    words = [chosen.program, "--foreground", "--quiet", "--config-net", "--no-map-gw"]
    words += ["--no-dhcp", "--no-dhcpv6", "--no-ra", "--ns-ifname", interface, "--pid", ready]
    if len(chosen.addresses) == 1:
        words.append("--ipv4-only" if addresses.version(chosen.addresses[0]) == 4 else "--ipv6-only")
    if chosen.template:
        # The loopback interface has no hardware address that the pod's gateway could have.
        words += ["--interface", chosen.template, "--mac-addr", "02:00:00:00:00:01"]
    for text, gateway in zip(chosen.addresses, chosen.gateways, strict=True):
        address, _, length = text.partition("/")
        words += ["--address", address, "--gateway", gateway]
        words += ["--netmask", length] if addresses.version(address) == 4 else []
    for address in resolvers:
        words += ["--dns-forward", address]
    versions = [addresses.version(text) for text in chosen.addresses]
    ports = list(ports)
    for protocol, option in (("tcp", "--tcp-ports"), ("udp", "--udp-ports")):
        found = [word for port in ports if port.protocol == protocol for word in _forwarded(port, versions)]
        words += [word for each in found or ["none"] for word in (option, each)]
    return [*words, "--tcp-ns", "none", "--udp-ns", "none", "--netns", netns, "--no-netns-quit"]


def _forwarded(port: Port, versions: Sequence[int]) -> Iterator[str]:
    """One for each port: of several together pasta is content with any that it gets."""
    address = port.host_ip or (_ANY[versions[0]] if len(versions) == 1 else "")
    for step in range(port.span):
        yield f"{address}{address and '/'}{port.host_port + step}:{port.pod_port + step}"


def result(chosen: Decided, interface: str) -> dict[str, Any]:
    """What came of it (CNI spec 1.0.0, section 5)."""
    pairs = zip(chosen.addresses, chosen.gateways, strict=True)
    return {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": interface, "sandbox": TYPE}],
        "ips": [{"address": text, "gateway": gateway, "interface": 0} for text, gateway in pairs],
        "routes": [
            {"dst": "0.0.0.0/0" if addresses.version(gateway) == 4 else "::/0", "gw": gateway}
            for gateway in chosen.gateways
        ],
        "dns": {},
    }
