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
        call.elements.extend(firewall.publication(ports, _first_of_each_family(call, previous)))
    return previous


def delete(call: Call) -> None:
    """The elements are withdrawn with all others of the pod."""


def check(call: Call) -> None:
    """The elements are looked after with all others of the pod."""


def _ports(mappings: list[dict[str, Any]]) -> list[Port]:
    return [
        Port("", item["protocol"], item.get("hostIP", ""), item["hostPort"], item["containerPort"]) for item in mappings
    ]


def _first_of_each_family(call: Call, result: dict[str, Any]) -> list[str]:
    """A port leads to one address."""
    found: dict[bool, str] = {}
    for address in results.addresses(result, call.interface):
        found.setdefault(results.is_ipv4(address), address)
    return list(found.values())
