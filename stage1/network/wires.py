"""What the built-in plugins do at either end of a pod's interface (veth(4), rtnetlink(7))."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from common.errors import NetworkError, reason
from stage1.network import barelink, links, netlink
from stage1.network.addresses import Leases
from stage1.network.netlink import Attributes, Link, Netlink
from stage1.network.plugin import Call


def interface(name: str, mac: str, sandbox: str = "") -> dict[str, str]:
    """As a result has it."""
    return {"name": name, "mac": mac, **({"sandbox": sandbox} if sandbox else {})}


@contextlib.contextmanager
def opened(netns: str) -> Iterator[int]:
    """A descriptor of the pod's network namespace."""
    try:
        fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NetworkError(f"open {netns}: {reason(error)}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def make_veth(call: Call, host: Netlink) -> tuple[Link, str]:
    """The end on the host, down, and the hardware address of the pod's end, which is made where it belongs."""
    name, mac = links.host_end(call), links.pod_mac(call)
    size: Attributes = [("IFLA_MTU", links.mtu(call))] if links.mtu(call) else []
    with opened(call.netns) as fd:
        peer = [("IFLA_IFNAME", call.interface), ("IFLA_ADDRESS", mac), ("IFLA_NET_NS_FD", fd), *size]
        ours: Attributes = [("IFLA_ADDRESS", links.host_mac(call)), ("IFLA_GROUP", links.GROUP), *size]
        request = netlink.create(name, "veth", ours, [("VETH_INFO_PEER", {"attrs": peer})])
        try:
            host.do(request)
        except netlink.Refused as error:
            if error.errno != errno.EEXIST or not _is_left_over(call, host):
                raise
            barelink.remove(name)
            host.do(request)
    return host.need(name), mac


def _is_left_over(call: Call, host: Netlink) -> bool:
    """Whether what is in the way is the wire of the pod as it ran before: the kernel takes it away some time after the
    last process of that namespace, so it may also have gone meanwhile."""
    with Netlink(call.netns) as pod:
        if pod.link(call.interface) is not None:
            return False
    found = host.link(links.host_end(call))
    return found is None or found.mac == links.host_mac(call)


def raise_host_end(call: Call, host: Netlink, link: Link, attributes: Attributes | None = None) -> None:
    """It says whose it is and is up. That it has a name for people is a convenience: another may have it."""
    host.do(netlink.change(link.name, [("IFLA_IFALIAS", links.alias(call)), *(attributes or [])], on=netlink.UP))
    if call.about and call.about != call.container:
        with contextlib.suppress(NetworkError):
            host.do(netlink.call_it(link.number, link.name, f"rkpy-{call.about}-{call.interface}"[:127]))


def furnish(call: Call, leases: Leases | None, *, routed: bool) -> Link:
    """The pod's interface gets its addresses and routes and is up. `routed`: nobody else is on the wire, what is in the
    subnet is reached by the gateway too."""
    with Netlink(call.netns) as pod:
        try:
            with links.in_namespace(call.netns):
                links.settle(call.interface)
        except OSError as error:
            raise NetworkError(f"enter {call.netns}: {reason(error)}") from error
        link = pod.need(call.interface)
        requests = [netlink.change(call.interface, [], on=netlink.UP)]
        if leases is not None:
            requests += _addresses(leases, link, routed=routed)
            requests += _way_out(leases, link) if routed else []
            requests += [netlink.route(link, *route) for route in leases.routes]
        pod.do(*requests)
        return link


def _addresses(leases: Leases, link: Link, *, routed: bool) -> list[netlink.Request]:
    flags = netlink.NO_PREFIX_ROUTE if routed else 0
    return [netlink.address(link, address.address, address.prefix, flags) for address in leases.addresses]


def _way_out(leases: Leases, link: Link) -> list[netlink.Request]:
    """The gateway is at the other end of the wire, and behind it everything else. Two addresses may have one gateway
    and one subnet."""
    gateways = dict.fromkeys(address.gateway_only for address in leases.addresses)
    subnets = {
        address.subnet: address.gateway
        for address in leases.addresses
        if address.subnet not in (address.single, address.gateway_only)
    }
    return [
        *(netlink.route(link, gateway) for gateway in gateways),
        *(netlink.route(link, subnet, gateway) for subnet, gateway in subnets.items()),
    ]


def protect(call: Call, leases: Leases, interface: str = "") -> None:
    """What the firewall is to have for a network that the host routes; `interface`: where nobody but this pod is."""
    from stage1.network import firewall

    own = call.conf.get("rkpy")
    restricted = isinstance(own, dict) and own.get("restricted")
    for address in leases.addresses:
        if call.conf.get("ipMasq"):
            call.elements.extend(firewall.masquerade(address.address, address.subnet))
        if restricted:
            call.elements.extend(firewall.restrict(address.address, address.subnet, interface))


def undo(host: Netlink, name: str) -> None:
    """The interface of the host goes, and the pod's with it."""
    with contextlib.suppress(NetworkError):
        host.do(netlink.remove(name))


def check(call: Call) -> None:
    """NetworkError when something that the result of `add` says is not there any more."""
    previous = call.conf.get("prevResult") or {}
    with Netlink(call.netns) as pod:
        link = _checked(pod, call.interface)
        present, routes = pod.addresses(link), {route[0] for route in pod.routes(link)}
    for item in previous.get("ips") or ():
        if item.get("address") not in present:
            raise NetworkError(f"{call.interface} has lost its address {item.get('address')}")
    for item in previous.get("routes") or ():
        if item.get("dst") not in routes:
            raise NetworkError(f"{call.interface} has lost its route to {item.get('dst')}")
    with Netlink() as host:
        for item in previous.get("interfaces") or ():
            if not item.get("sandbox"):
                _checked(host, str(item.get("name")))


def _checked(net: Netlink, name: str) -> Link:
    link = net.link(name)
    if link is None or not link.up:
        raise NetworkError(f"the interface {name} is {'gone' if link is None else 'down'}")
    return link
