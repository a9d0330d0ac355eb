"""What plugins answer: results in the forms of CNI spec 0.1.0 to 1.0.0, checked, and brought into one.

Here a result is what 1.0.0 (section 5) calls so, always with the four lists and tables it may have, and with nothing
else. Addresses are in the kernel's canonical spelling, so that they can be compared and be names of files.
"""

from __future__ import annotations

import _socket
from collections.abc import Callable
from typing import Any

from common.errors import NetworkError

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0")
"""Of the specification, oldest first."""
LATEST = VERSIONS[-1]
_LISTS = ("nameservers", "search", "options")


def empty() -> dict[str, Any]:
    return {"cniVersion": LATEST, "interfaces": [], "ips": [], "routes": [], "dns": {}}


def version_of(conf: dict[str, Any]) -> str:
    """The version a configuration or result is written in; those of the first days do not say it. NetworkError for one
    we do not know."""
    version = conf.get("cniVersion")
    if version in (None, ""):
        return VERSIONS[0]
    if version not in VERSIONS:
        raise NetworkError(f"CNI version {version!r} is none of {', '.join(VERSIONS)}")
    return str(version)


def at_least(version: str, other: str) -> bool:
    return VERSIONS.index(version) >= VERSIONS.index(other)


def parse(document: Any, version: str) -> dict[str, Any]:
    """What a plugin answered that was asked in `version`. NetworkError when it makes no sense."""
    try:
        table = _table(document)
        found = version if table.get("cniVersion") in (None, "") else version_of(table)
        result = _rich(table) if at_least(found, "0.3.0") else _plain(table)
    except (ValueError, TypeError) as error:
        raise NetworkError(f"the result makes no sense: {error}") from None
    return result


def emit(result: dict[str, Any], version: str) -> dict[str, Any]:
    """The result as `version` writes it. Before 0.3.0 there was one address of each family and no interface."""
    if not at_least(version, "0.3.0"):
        return _old(result, version)
    ips = result["ips"]
    if not at_least(version, "1.0.0"):
        ips = [{"version": "4" if is_ipv4(ip["address"]) else "6", **ip} for ip in ips]
    return {**result, "cniVersion": version, "ips": ips}


def is_ipv4(address: str) -> bool:
    return ":" not in address


def default_routes(result: dict[str, Any]) -> str:
    """The families it has a default route of: "4", "6", "46" or none."""
    everywhere = {"0.0.0.0/0": "4", "::/0": "6"}
    return "".join(sorted({everywhere[route["dst"]] for route in result["routes"] if route["dst"] in everywhere}))


def addresses(result: dict[str, Any], interface: str = "") -> list[str]:
    """With the lengths of their prefixes, in order; with `interface` those of the one of that name in the pod, and
    those that are said to be of none."""
    return [ip["address"] for ip in result["ips"] if not interface or _belongs(result, ip, interface)]


def _belongs(result: dict[str, Any], ip: dict[str, Any], name: str) -> bool:
    if "interface" not in ip:
        return True
    interface = result["interfaces"][ip["interface"]]
    return bool(interface["name"] == name and interface.get("sandbox"))


def _rich(table: dict[str, Any]) -> dict[str, Any]:
    """0.3.0 and later."""
    interfaces = [_interface(item) for item in _list(table, "interfaces")]
    return {
        "cniVersion": LATEST,
        "interfaces": interfaces,
        "ips": [_ip(item, len(interfaces)) for item in _list(table, "ips")],
        "routes": [_route(item) for item in _list(table, "routes")],
        "dns": _dns(table.get("dns")),
    }


def _plain(table: dict[str, Any]) -> dict[str, Any]:
    """0.1.0 and 0.2.0: {"ip4": {"ip", "gateway", "routes"}, "ip6": …, "dns"}."""
    result = empty()
    for family in ("ip4", "ip6"):
        if table.get(family) is not None:
            part = _table(table[family])
            ip = _without_none({"address": network(part.get("ip")), "gateway": _optional(part, "gateway", address)})
            if is_ipv4(ip["address"]) != (family == "ip4"):
                raise ValueError(f"{ip['address']} as {family}")
            result["ips"].append(ip)
            result["routes"] += [_route(item) for item in _list(part, "routes")]
    result["dns"] = _dns(table.get("dns"))
    return result


def _old(result: dict[str, Any], version: str) -> dict[str, Any]:
    document: dict[str, Any] = {"cniVersion": version, "dns": result["dns"]}
    for family, wanted in (("ip4", True), ("ip6", False)):
        ip = next((ip for ip in result["ips"] if is_ipv4(ip["address"]) == wanted), None)
        if ip:
            document[family] = {"ip": ip["address"], **({"gateway": ip["gateway"]} if "gateway" in ip else {})}
            if routes := [route for route in result["routes"] if is_ipv4(route["dst"]) == wanted]:
                document[family]["routes"] = routes
    return document


def _interface(item: Any) -> dict[str, Any]:
    table = _table(item)
    return _without_none(
        {"name": _word(table.get("name")), "mac": _optional(table, "mac", _word),
         "sandbox": _optional(table, "sandbox", _word)}
    )  # fmt: skip


def _ip(item: Any, interfaces: int) -> dict[str, Any]:
    table = _table(item)
    index = table.get("interface")
    if index is not None and not (type(index) is int and 0 <= index < interfaces):
        raise ValueError(f"interface {index!r} of {interfaces}")
    return _without_none(
        {"interface": index, "address": network(table.get("address")), "gateway": _optional(table, "gateway", address)}
    )


def _route(item: Any) -> dict[str, Any]:
    table = _table(item)
    return _without_none({"dst": network(table.get("dst")), "gw": _optional(table, "gw", address)})


def _dns(item: Any) -> dict[str, Any]:
    """Its words become lines of resolv.conf."""
    if item is None:
        return {}
    table = _table(item)
    found: dict[str, Any] = {name: [_word(word) for word in _list(table, name)] for name in _LISTS}
    found["nameservers"] = [_server(text) for text in found["nameservers"]]
    found["domain"] = _optional(table, "domain", _word)
    return {name: value for name, value in found.items() if value}


def address(text: Any) -> str:
    """The canonical spelling of an IP address. ValueError."""
    try:
        family = _socket.AF_INET if is_ipv4(text) else _socket.AF_INET6
        return _socket.inet_ntop(family, _socket.inet_pton(family, text))
    except (OSError, TypeError, ValueError):
        raise ValueError(f"{text!r} is no address") from None


def network(text: Any) -> str:
    """The same of an address with the length of its prefix."""
    ip, slash, length = text.partition("/") if isinstance(text, str) else ("", "", "")
    if not (slash and length.isascii() and length.isdecimal() and len(length) <= 3):
        raise ValueError(f"{text!r} is no address with a prefix")
    if int(length) > (32 if is_ipv4(ip) else 128):
        raise ValueError(f"{text!r} has too long a prefix")
    return f"{address(ip)}/{int(length)}"


def _server(text: str) -> str:
    """resolv.conf(5) knows scoped addresses too."""
    ip, percent, scope = text.partition("%")
    return address(ip) + percent + scope


def _table(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise TypeError(f"{_named(item)} instead of an object")
    return item


def _list(table: dict[str, Any], name: str) -> list[Any]:
    """Go writes an empty list as null."""
    value = table.get(name)
    if value is not None and not isinstance(value, list):
        raise TypeError(f"{name} is {_named(value)} instead of a list")
    return value or []


def _word(item: Any) -> str:
    if not (isinstance(item, str) and item and item.isprintable() and not any(map(str.isspace, item))):
        raise ValueError(f"{_named(item)} instead of a word")
    return item


def _optional(table: dict[str, Any], name: str, kind: Callable[[Any], str]) -> str | None:
    """Go writes what is not there as an empty string, or not at all."""
    return kind(table[name]) if table.get(name) not in (None, "") else None


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if value is not None}


def _named(item: Any) -> str:
    text = ascii(item)
    return text if len(text) < 60 else f"{text[:60]}…"
