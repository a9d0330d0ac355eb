"""The built-in `ptp`: a wire of its own between each pod and the host, which routes (after CNI's plugin of that name).

    pod                                          host
    ethN  ADDRESS/PREFIX  ===== veth =====  rkN-UUID8  GATEWAY/32
    GATEWAY dev ethN                             ADDRESS dev rkN-UUID8
    SUBNET via GATEWAY
    and what IPAM says, mostly default via GATEWAY

Pods of one network reach each other through the host, so none can pretend to be another on a common wire.
"""

from __future__ import annotations

from typing import Any

from common.errors import NetworkError
from stage1.network.plugin import Call


def add(call: Call) -> dict[str, Any]:
    from stage1.network import addresses, links, wires
    from stage1.network.netlink import Netlink

    leases = addresses.obtain(call)
    try:
        _check_gateways(call, leases)
        wires.protect(call, leases, links.host_end(call))
        with Netlink() as host:
            link, mac = wires.make_veth(call, host)
            try:
                wires.furnish(call, leases, routed=True)
                _connect(call, host, link, leases)
            except BaseException:
                wires.undo(host, link.name)
                raise
    except BaseException:
        links.give_back(call)
        raise
    interfaces = [wires.interface(link.name, link.mac), wires.interface(call.interface, mac, call.netns)]
    return addresses.result(call, interfaces, leases)


def _check_gateways(call: Call, leases: Any) -> None:
    for address in leases.addresses:
        if not address.gateway or address.gateway == address.address:
            raise NetworkError(
                f"ptp needs a gateway for {address.address}/{address.prefix}",
                hint="its IPAM configuration names none",
            )


def _connect(call: Call, host: Any, link: Any, leases: Any) -> None:
    """The host's end."""
    from stage1.network import links, netlink, wires

    links.settle(link.name)
    links.forward(ipv4=leases.has(4), ipv6=leases.has(6))
    wires.raise_host_end(call, host, link)
    gateways = dict.fromkeys(address.gateway for address in leases.addresses)
    requests = [
        netlink.address(link, gateway, 128 if ":" in gateway else 32, netlink.NO_PREFIX_ROUTE) for gateway in gateways
    ]
    # The wire of a pod that is dead may not be gone yet, with a route to the address that we were given.
    flags = netlink.CREATE | netlink.REPLACE
    requests += [netlink.route(link, address.single, flags=flags) for address in leases.addresses]
    host.do(*requests)


def delete(call: Call) -> None:
    """The wire and all routes go with the pod's network namespace."""
    from stage1.network import links

    links.give_back(call)


def check(call: Call) -> None:
    from stage1.network import wires

    wires.check(call)
