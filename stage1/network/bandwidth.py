"""The built-in `bandwidth`: how much a pod may send and receive (tc-tbf(8); CNI's plugin of that name).

What goes to the pod (`ingress`, as the pod sees it) is shaped where it leaves the host's end of the veth. What comes
from it is shaped where it leaves the pod's end: waiting there slows the sender down, dropping it on arrival would break
its connections. An app with CAP_NET_ADMIN could lift that, so the host's end drops what is above the rate as well,
where the kernel can (tc-police(8)); what was shaped is never above it.
"""

from __future__ import annotations

import copy
from typing import Any

from common.errors import NetworkError
from common.records import NamedTuple
from stage1.network.plugin import Call

_ROOT, _INGRESS, _INGRESS_HANDLE = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFF0000
_EVERY_PROTOCOL = 0x0300
"""ETH_P_ALL in network order."""
_TICK = 64
"""Nanoseconds; what the kernel's packet schedulers count in."""
_LATENCY = 25
"""Milliseconds that a packet may wait."""
_ETHERNET = 1
_DROP = 2
_LARGEST = (1 << 32) - 1


class Limit(NamedTuple):
    rate: int
    """Bytes per second; 0 for none."""
    burst: int
    """Bytes."""


def add(call: Call) -> dict[str, Any]:
    from stage1.network.netlink import Netlink

    previous = call.conf.get("prevResult")
    if not isinstance(previous, dict):
        raise NetworkError("bandwidth is for what another plugin made, and comes after it")
    incoming, outgoing = _limit(call, "ingress"), _limit(call, "egress")
    if incoming.rate or outgoing.rate:
        with Netlink() as host, Netlink(call.netns) as pod:
            near, far = _ends(call, host, pod)
            _limit_both(host, pod, near, far, incoming, outgoing)
    return copy.deepcopy(previous)


def _limit_both(host: Any, pod: Any, near: Any, far: Any, incoming: Limit, outgoing: Limit) -> None:
    if incoming.rate:
        host.do(_shape(near, incoming))
    if outgoing.rate:
        pod.do(_shape(far, outgoing))
        _police(host, near, outgoing)


def _limit(call: Call, direction: str) -> Limit:
    """By runtimeConfig, or else the configuration: bits per second, and bits."""
    runtime = call.conf.get("runtimeConfig")
    asked = runtime.get("bandwidth") if isinstance(runtime, dict) else None
    place = asked if isinstance(asked, dict) else call.conf
    rate, burst = (_number(call, place, f"{direction}{what}") for what in ("Rate", "Burst"))
    if burst and not rate:
        raise NetworkError(f"{direction}Burst without {direction}Rate")
    # Enough for what a timer's tick lets pass, and for a few whole packets.
    return Limit(min(-(-rate // 8), _LARGEST), min(max(burst // 8 or rate // 8 // 100, 16384), _LARGEST // 2))


def _number(call: Call, place: dict[str, Any], key: str) -> int:
    value = place.get(key) or 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise NetworkError(f"{key} is {value!r}, not a number of bits")
    return value


def _ends(call: Call, host: Any, pod: Any) -> tuple[Any, Any]:
    """Of the veth: on the host and in the pod."""
    far = pod.need(call.interface)
    near = host.link_at(far.peer) if far.kind == "veth" else None
    if near is None or near.kind != "veth":
        raise NetworkError(
            f"{call.interface} has no end on the host where bandwidth can be limited",
            hint="ptp and bridge have one",
        )
    return near, far


def _ticks(limit: Limit) -> int:
    """The time that a burst takes."""
    return min(limit.burst * 1_000_000_000 // limit.rate // _TICK, _LARGEST)


def _rate(limit: Limit) -> dict[str, int]:
    return {"rate": limit.rate, "rate___reserved": _ETHERNET}


def _message(link: Any, parent: int, handle: int, info: int = 0) -> Any:
    from stage1.network import netlink

    message = netlink.queueing()
    message["index"], message["parent"], message["handle"], message["info"] = link.number, parent, handle, info
    return message


def _shape(link: Any, limit: Limit) -> Any:
    from stage1.network import netlink

    queue = limit.burst + limit.rate * _LATENCY // 1000
    parameters = {**_rate(limit), "buffer": _ticks(limit), "limit": min(queue, _LARGEST)}
    options = {"attrs": [("TCA_TBF_PARMS", parameters), ("TCA_TBF_RTAB", True)]}
    attributes = [("TCA_KIND", "tbf"), ("TCA_OPTIONS", options)]
    return netlink.traffic(f"limit what leaves {link.name}", False, _message(link, _ROOT, 0x10000), attributes)


def _police(host: Any, link: Any, limit: Limit) -> None:
    """Twice the burst: what was shaped may arrive in a bunch."""
    from stage1.network import netlink

    generous = limit._replace(burst=limit.burst * 2)
    parameters = {**_rate(limit), "action": _DROP, "burst": _ticks(generous)}
    police = {"attrs": [("TCA_POLICE_TBF", parameters), ("TCA_POLICE_RATE", True)]}
    action = {"attrs": [("TCA_ACT_KIND", "police"), ("TCA_ACT_OPTIONS", police)]}
    options = {"attrs": [("TCA_MATCHALL_ACT", {"attrs": [("TCA_ACT_PRIO_1", action)]})]}
    about = f"limit what comes from {link.name}"
    queue = _message(link, _INGRESS, _INGRESS_HANDLE)
    rule = _message(link, _INGRESS_HANDLE, 0, 1 << 16 | _EVERY_PROTOCOL)
    try:
        host.do(netlink.traffic(about, False, queue, [("TCA_KIND", "ingress")]))
        host.do(netlink.traffic(about, True, rule, [("TCA_KIND", "matchall"), ("TCA_OPTIONS", options)]))
    except netlink.Refused:
        return  # A kernel without these modules. The pod's end is limited.


def delete(call: Call) -> None:
    """The limits go with the interfaces they are of."""


def check(call: Call) -> None:
    from stage1.network.netlink import Netlink

    with Netlink() as host, Netlink(call.netns) as pod:
        near, far = _ends(call, host, pod)
        for net, link, direction in ((host, near, "ingress"), (pod, far, "egress")):
            if _limit(call, direction).rate and "tbf" not in net.queues(link):
                raise NetworkError(f"{direction} on {link.name} is not limited any more")
