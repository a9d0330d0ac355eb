"""The built-in `bridge`: the pods of a network on one wire, the host being their gateway if wanted (after CNI's plugin
of that name, with its default name cni0).

A bridge that is missing is made, marked as ours by its alias, and goes with the last pod that was on it; one that
somebody else made is used as it is and stays. Pods on one bridge can pretend to be each other unless `portIsolation`
parts them, which leaves them the host alone.
"""

from __future__ import annotations

import os
from typing import Any

from common.errors import NetworkError
from stage1.network import barelink, links, state
from stage1.network.plugin import Call

_DEFAULT = "cni0"
_REFUSED = ("vlan", "vlanTrunk", "macspoofchk", "disableContainerInterface", "portIsolationGroup")


def add(call: Call) -> dict[str, Any]:
    from stage1.network import addresses

    links.refuse(call, *_REFUSED)
    name = links.interface_name(call, "bridge", _DEFAULT)
    leases = _with_gateways(call, addresses.obtain(call)) if call.conf.get("ipam") else None
    try:
        interfaces = _attach(call, name, leases)
    except BaseException:
        delete(call)
        raise
    return addresses.result(call, interfaces, leases)


def _is_gateway(call: Call) -> bool:
    return bool(call.conf.get("isGateway") or call.conf.get("isDefaultGateway"))


def _with_gateways(call: Call, leases: Any) -> Any:
    """Where the host is to be one that IPAM did not name, it takes the first address of the subnet."""
    from stage1.network.addresses import Route, metric

    if _is_gateway(call):
        found = tuple(item._replace(gateway=item.gateway or item.first) for item in leases.addresses)
        leases = leases._replace(addresses=found)
    if call.conf.get("isDefaultGateway"):
        ours = {"::/0" if item.version == 6 else "0.0.0.0/0": item.gateway for item in reversed(leases.addresses)}
        routes = [route for route in leases.routes if route.destination not in ours]
        routes += [Route(where, gateway, metric(call, where)) for where, gateway in ours.items()]
        leases = leases._replace(routes=tuple(routes))
    return leases


def _attach(call: Call, name: str, leases: Any) -> list[dict[str, str]]:
    from stage1.network import wires
    from stage1.network.netlink import Netlink

    with Netlink() as host:
        with state.lock():  # The last pod that leaves takes the bridge away.
            bridge = _bridge(call, host, name)
            link, mac = wires.make_veth(call, host)
            _plug(call, host, link, bridge)
        if leases is not None:
            _serve(call, host, bridge, leases)
        wires.furnish(call, leases, routed=False)
    ends = [wires.interface(name, bridge.mac), wires.interface(link.name, link.mac)]
    return [*ends, wires.interface(call.interface, mac, call.netns)]


def _bridge(call: Call, host: Any, name: str) -> Any:
    from stage1.network import netlink

    if host.link(name) is None:
        # Without a hardware address of its own it would change it with every pod that comes or goes.
        mac = ":".join(f"{byte:02x}" for byte in (0x06, *os.urandom(5)))
        size = [("IFLA_MTU", links.mtu(call))] if links.mtu(call) else []
        try:
            host.do(
                netlink.create(name, "bridge", [("IFLA_ADDRESS", mac), ("IFLA_GROUP", links.GROUP), *size]),
                netlink.change(name, [("IFLA_IFALIAS", _alias(call))]),
            )
            links.settle(name)
        except NetworkError:
            barelink.remove(name)
            raise
    bridge = host.need(name)
    if bridge.kind != "bridge":
        raise NetworkError(f"{name} is not a bridge")
    host.do(netlink.change(name, [], on=netlink.UP | (netlink.PROMISCUOUS if call.conf.get("promiscMode") else 0)))
    return bridge


def _alias(call: Call) -> str:
    return f"rkpy network {call.conf.get('name', '')}"[:255]


def _plug(call: Call, host: Any, link: Any, bridge: Any) -> None:
    from stage1.network import netlink, wires

    if links.has_ipv6():  # The bridge speaks for the host, its ports do not.
        links.set_sysctl("1", "ipv6", "conf", link.name, "disable_ipv6")
    wires.raise_host_end(call, host, link, [("IFLA_MASTER", bridge.number)])
    wanted = [("IFLA_BRPORT_MODE", "hairpinMode"), ("IFLA_BRPORT_ISOLATED", "portIsolation")]
    attributes = [(attribute, 1) for attribute, key in wanted if call.conf.get(key)]
    if attributes:
        host.do(netlink.port(link.name, attributes))


def _serve(call: Call, host: Any, bridge: Any, leases: Any) -> None:
    """The host is the gateway."""
    from stage1.network import netlink, wires

    wires.protect(call, leases)
    if not _is_gateway(call):
        return
    with state.lock():
        for item in leases.addresses:
            _make_room(call, host, bridge, item)
            host.do(netlink.address(bridge, item.gateway, item.prefix))
    links.forward(ipv4=leases.has(4), ipv6=leases.has(6))


def _make_room(call: Call, host: Any, bridge: Any, wanted: Any) -> None:
    """No other address of the same subnet on the bridge: pods that came earlier have it for their gateway."""
    from stage1.network import netlink

    for present in wanted.others(host.addresses(bridge)):
        if not call.conf.get("forceAddress"):
            raise NetworkError(
                f"{bridge.name} has the address {present}, not {wanted.gateway}",
                hint='"forceAddress": true replaces it',
            )
        address, _, prefix = present.partition("/")
        host.do(netlink.drop_address(bridge, address, int(prefix)))


def delete(call: Call) -> None:
    """The port goes at once and not only with the pod's namespace, so that the bridge can go after it."""
    links.give_back(call)
    name, port = call.conf.get("bridge") or _DEFAULT, links.host_end(call)
    if not links.is_interface_name(name):
        return  # Then `add` did nothing.
    with state.lock():
        found = barelink.find(port)
        if found and found.mac == links.host_mac(call):
            barelink.remove(port)
        bridge = barelink.find(name)
        if bridge and bridge.alias == _alias(call) and barelink.ports(bridge) == 0:
            barelink.remove(name)


def check(call: Call) -> None:
    from stage1.network import wires

    wires.check(call)
