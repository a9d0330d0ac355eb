"""The built-in plugin `portmap`: published ports as elements of our table, for the addresses the chain came to."""

from __future__ import annotations

from typing import Any

from common.errors import NetworkError
from stage1.network import firewall, results
from stage1.network.plan import Port
from stage1.network.plugin import Call

_CONDITIONS = ("conditionsV4", "conditionsV6")


def add(call: Call) -> dict[str, Any]:
    previous: dict[str, Any] | None = call.conf.get("prevResult")
    if previous is None:
        raise NetworkError("it has to come after a plugin that gives the pod an address")
    for name in _CONDITIONS:
        if call.conf.get(name):
            raise NetworkError(f"{name} are iptables' words, and the built-in portmap does not use it",
                               hint="a directory with the program portmap can be configured")  # fmt: skip
    ports = _ports(call.conf.get("runtimeConfig", {}).get("portMappings", []))
    if ports:
        addresses = results.addresses(previous, call.interface)
        routed = results.default_routes(previous)
        call.elements.extend(firewall.publication(ports, addresses, routed=routed))
    return previous


def delete(call: Call) -> None:
    """The elements are withdrawn with all others of the pod."""


def check(call: Call) -> None:
    """The elements are looked after with all others of the pod."""


def _ports(mappings: list[dict[str, Any]]) -> list[Port]:
    return [
        Port("", item["protocol"], item.get("hostIP", ""), item["hostPort"], item["containerPort"]) for item in mappings
    ]
