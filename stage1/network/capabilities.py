"""What the pod offers to plugins that say they are capable of it: `runtimeConfig` (CNI conventions, "dynamic plugin
specific fields")."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from stage1.network.plan import Network, NetworkPlan

_OUT_OF_REACH = ("macvlan", "ipvlan")
"""Their interfaces are on the wire beside the host's, which exchanges no packet with them (ip-link(8), macvlan)."""
_BURST = 1 << 20
"""Bits: a few of the largest packets that network cards are handed (64 KiB), which a smaller bucket would drop."""
_BURST_LIMIT = (1 << 31) - 1


def publisher(networks: Sequence[Network]) -> tuple[str, str]:
    """The network whose addresses published ports lead to, and who publishes them: "plugin" when a plugin of its says
    that it can, else "engine". As in rkt the first that is masqueraded, else the last. No name when ports can lead to
    none of them."""
    for network in networks:
        if any("portMappings" in _capabilities(plugin) for plugin in _plugins(network)):
            return network.name, "plugin"
    within_reach = [network for network in networks if _kind(network) not in _OUT_OF_REACH]
    for network in within_reach:
        if any(plugin.get("ipMasq") is True for plugin in _plugins(network)):
            return network.name, "engine"
    return within_reach[-1].name if within_reach else "", "engine"


def runtime(plan: NetworkPlan, network: Network) -> dict[str, Any]:
    """All that there is to offer; each plugin is given what its configuration says it is capable of."""
    args = dict(network.args)
    found = {
        "portMappings": _mappings(plan) if publisher(plan.networks) == (network.name, "plugin") else [],
        "ips": [ip for ip in args.get("IP", "").split(",") if ip],
        "mac": args.get("MAC", ""),
        "bandwidth": _bandwidth(plan.bandwidth),
        "dns": _dns(plan),
        "aliases": list(dict.fromkeys(filter(None, (plan.names.pod_name, *plan.names.apps)))),
    }
    return {name: value for name, value in found.items() if value}


def for_plugin(plugin: dict[str, Any], offered: dict[str, Any]) -> dict[str, Any]:
    return {name: offered[name] for name in _capabilities(plugin) if name in offered}


def _kind(network: Network) -> str:
    """The type of the plugin that makes the interface."""
    return next((str(plugin.get("type")) for plugin in _plugins(network)), "")


def _plugins(network: Network) -> list[dict[str, Any]]:
    plugins: list[dict[str, Any]] = json.loads(network.conf).get("plugins", [])
    return plugins


def _capabilities(plugin: dict[str, Any]) -> list[str]:
    capabilities = plugin.get("capabilities")
    return [name for name, able in capabilities.items() if able is True] if isinstance(capabilities, dict) else []


def _mappings(plan: NetworkPlan) -> list[dict[str, Any]]:
    return [
        {"hostPort": port.host_port + step, "containerPort": port.pod_port + step, "protocol": port.protocol,
         **({"hostIP": port.host_ip} if port.host_ip else {})}
        for port in plan.ports for step in range(port.span)
    ]  # fmt: skip


def _bandwidth(rate: int) -> dict[str, int]:
    """A bucket of a tenth of a second."""
    burst = min(max(rate // 10, _BURST), _BURST_LIMIT)
    return {"ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst} if rate else {}


def _dns(plan: NetworkPlan) -> dict[str, list[str]]:
    names = plan.names
    servers = [] if names.dns in (("host",), ("none",)) else names.dns
    found = {"servers": servers, "searches": names.search, "options": names.options}
    return {name: list(words) for name, words in found.items() if words}
