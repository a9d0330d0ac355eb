"""The built-in `macvlan` and `ipvlan`: the pod is on the wire of an interface of the host (after CNI's plugins of these
names). Pods so attached do not reach the host itself, and the host's firewall does not see them.
"""

from __future__ import annotations

import errno
import time
from typing import Any

from common.errors import NetworkError
from stage1.network import links
from stage1.network.plugin import Call

_MODES: dict[str, dict[str, Any]] = {
    "macvlan": {"bridge": "bridge", "private": "private", "vepa": "vepa", "passthru": "passthru"},
    "ipvlan": {"l2": 0, "l3": 1, "l3s": 2},
}
"""As the codec wants them; the first is the default."""
_PATIENCE = 10.0
"""Seconds. What a master does not lend twice (a hardware address, all of itself, on ipvlan an address) is not free
before the kernel has taken away the interface of a pod that has ended, which is some time after its last process."""
_PAUSE = 0.05


def add(call: Call) -> dict[str, Any]:
    from stage1.network import addresses, wires

    links.refuse(call, "linkInContainer")
    mode = _mode(call)
    leases = addresses.obtain(call) if call.conf.get("ipam") else None
    try:
        link = _attach_in_time(call, mode, leases)
    except BaseException:
        links.give_back(call)
        raise
    return addresses.result(call, [wires.interface(call.interface, link.mac, call.netns)], leases)


def _attach_in_time(call: Call, mode: Any, leases: Any) -> Any:
    """The interface, as soon as nobody else has what it is to have of its master."""
    from stage1.network import netlink, programs

    # EINVAL has many reasons; this is one.
    taken = (errno.EADDRINUSE, errno.EINVAL) if mode == "passthru" else (errno.EADDRINUSE,)
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return _attach(call, mode, leases)
        except netlink.Refused as error:
            if error.errno not in taken or time.monotonic() > end or programs.is_over():
                raise
        time.sleep(_PAUSE)


def _attach(call: Call, mode: Any, leases: Any) -> Any:
    from stage1.network import netlink, wires

    _create(call, mode)
    try:
        return wires.furnish(call, leases, routed=False)
    except BaseException:
        with netlink.Netlink(call.netns) as pod:
            wires.undo(pod, call.interface)
        raise


def _mode(call: Call) -> Any:
    kind = call.conf["type"]
    modes = _MODES[kind]
    mode = call.conf.get("mode") or next(iter(modes))
    if mode not in modes:
        message = f"{kind} has no mode {mode!r}"
        raise NetworkError(message, hint=f"one of {', '.join(modes)}")
    return modes[mode]


def _traits(call: Call) -> list[tuple[str, Any]]:
    """What the configuration wants of the interface. An ipvlan has the hardware address of its master."""
    mac = links.requested_mac(call) if call.conf["type"] == "macvlan" else ""
    wanted = (("IFLA_MTU", links.mtu(call)), ("IFLA_ADDRESS", mac))
    return [(attribute, value) for attribute, value in wanted if value]


def _create(call: Call, mode: Any) -> None:
    """Right where it belongs and by its name: the kernel looks for the master where we are."""
    from stage1.network import netlink, wires

    kind = call.conf["type"]
    data = [(f"IFLA_{kind.upper()}_MODE", mode)]
    with netlink.Netlink() as host, wires.opened(call.netns) as fd:
        master = _master(call, host)
        whole = [("IFLA_LINK", master.number), ("IFLA_NET_NS_FD", fd), *_traits(call)]
        try:
            host.do(netlink.create(call.interface, kind, whole, data))
        except netlink.Refused as error:
            if error.errno == errno.EOPNOTSUPP:
                raise NetworkError(f"this kernel has no {kind}") from error
            raise


def _master(call: Call, host: Any) -> Any:
    """What the configuration names, or the interface of the host's default route."""
    if name := links.interface_name(call, "master"):
        return host.need(name)
    for destination, _, index in host.routes():
        if destination in ("0.0.0.0/0", "::/0") and (found := host.link_at(index)):
            return found
    raise NetworkError(
        "the network names no master, and this machine has no default route to take one from",
        hint='"master": "INTERFACE" says which',
    )


def delete(call: Call) -> None:
    """The interface goes with the pod's network namespace."""
    links.give_back(call)


def check(call: Call) -> None:
    from stage1.network import wires

    wires.check(call)
