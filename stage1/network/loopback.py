"""The built-in `loopback`: lo is up."""

from __future__ import annotations

from typing import Any

from stage1.network.plugin import Call

_NAME, _MAC = "lo", "00:00:00:00:00:00"


def add(call: Call) -> dict[str, Any]:
    from stage1.network import netlink

    with netlink.Netlink(call.netns) as pod:
        pod.do(netlink.change(_NAME, [], on=netlink.UP))
        found = sorted(pod.addresses(pod.need(_NAME)))
    if previous := call.conf.get("prevResult"):
        return dict(previous)
    interfaces = [{"name": _NAME, "mac": _MAC, "sandbox": call.netns}]
    ips = [{"address": address, "interface": 0} for address in found]
    return {"cniVersion": "1.0.0", "interfaces": interfaces, "ips": ips, "routes": [], "dns": {}}


def delete(call: Call) -> None:
    """It goes with the pod's network namespace."""


def check(call: Call) -> None:
    from stage1.network import wires

    wires.check(call._replace(interface=_NAME))
