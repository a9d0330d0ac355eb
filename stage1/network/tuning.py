"""The built-in `tuning`: sysctls of the pod's network and traits of its interface (after CNI's plugin of that name)."""

from __future__ import annotations

import copy
import re
from typing import Any

from common.errors import NetworkError, reason
from stage1.network import links
from stage1.network.plugin import Call

_PART = re.compile(r"[A-Za-z0-9_.:@-]{1,64}")
_OURS = "IFNAME"
"""In a sysctl's name: the interface."""


def add(call: Call) -> dict[str, Any]:
    from stage1.network import netlink

    result = copy.deepcopy(_previous(call))
    sysctls = _sysctls(call)
    attributes, on, off = _traits(call)
    try:
        with links.in_namespace(call.netns):
            for name, value in sysctls.items():
                links.set_sysctl(value, *name)
    except OSError as error:
        raise NetworkError(f"enter {call.netns}: {reason(error)}") from error
    if attributes or on or off:
        with netlink.Netlink(call.netns) as pod:
            pod.do(netlink.change(call.interface, attributes, on, off))
    if mac := links.requested_mac(call):
        for interface in _ours(call, result):
            interface["mac"] = mac
    return result


def _previous(call: Call) -> dict[str, Any]:
    previous = call.conf.get("prevResult")
    if not isinstance(previous, dict):
        raise NetworkError("tuning is for what another plugin made, and comes after it")
    return previous


def _ours(call: Call, result: dict[str, Any]) -> list[dict[str, Any]]:
    found = result.get("interfaces") or ()
    return [item for item in found if item.get("sandbox") and item.get("name") == call.interface]


def _sysctls(call: Call) -> dict[tuple[str, ...], str]:
    return sysctls(call.conf, call.interface)


def sysctls(conf: dict[str, Any], interface: str) -> dict[tuple[str, ...], str]:
    """Those that a configuration wants, by their names below net."""
    items = conf.get("sysctl") or {}
    if not isinstance(items, dict):
        raise NetworkError("sysctl is not an object")
    return {_name(interface, str(name)): str(value) for name, value in items.items()}


def _name(interface: str, name: str) -> tuple[str, ...]:
    """Dots part it, or slashes where a part has dots of its own (sysctl(8))."""
    parts = name.split("/" if "/" in name else ".")
    if parts[0] != "net" or len(parts) < 3 or not all(_PART.fullmatch(part) and part.strip(".") for part in parts):
        raise NetworkError(
            f"{name!r} is not a sysctl of the network",
            hint="only what is below net. belongs to the pod's network namespace",
        )
    return tuple(interface if part == _OURS else part for part in parts[1:])


def _traits(call: Call) -> tuple[list[tuple[str, Any]], int, int]:
    """(attributes, flags to set, flags to clear) of the interface."""
    from stage1.network import netlink

    attributes: list[tuple[str, Any]] = []
    if mac := links.requested_mac(call):
        attributes.append(("IFLA_ADDRESS", mac))
    if size := links.mtu(call):
        attributes.append(("IFLA_MTU", size))
    if length := links.number_of(call, "txQLen", 1):
        attributes.append(("IFLA_TXQLEN", length))
    on = off = 0
    for key, flag in (("promisc", netlink.PROMISCUOUS), ("allmulti", netlink.ALL_MULTICAST)):
        if call.conf.get(key) is not None:
            on, off = (on | flag, off) if call.conf[key] else (on, off | flag)
    return attributes, on, off


def delete(call: Call) -> None:
    """All of it goes with the pod's network namespace."""


def check(call: Call) -> None:
    from stage1.network import netlink

    try:
        with links.in_namespace(call.netns):
            for path, value in _sysctls(call).items():
                if links.sysctl(*path).split() != value.split():
                    raise NetworkError(f"net.{'.'.join(path)} is {links.sysctl(*path)}, not {value}")
    except OSError as error:
        raise NetworkError(f"enter {call.netns}: {reason(error)}") from error
    with netlink.Netlink(call.netns) as pod:
        link = pod.need(call.interface)
    for wanted, found in ((links.requested_mac(call), link.mac), (links.mtu(call), link.mtu)):
        if wanted and wanted != found:
            raise NetworkError(f"{call.interface} has {found}, not {wanted}")
