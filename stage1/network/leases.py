"""The built-in `host-local`: addresses from ranges in the configuration, one claim (`state`) each.

Configured as the program of that name is (`ipam`: `ranges`, `routes`, `resolvConf`, or one range's `subnet`,
`rangeStart`, `rangeEnd` and `gateway`; github.com/containernetworking/plugins, host-local). From every range set the
pod gets one address: the next free one after the one given last, so that one just freed rests as long as it can.
`ipaddress` is loaded by what needs it, which taking back does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from common.errors import NetworkError, reason
from common.records import NamedTuple
from stage1.network import owners, state

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network
    from typing import Any

    from stage1.network.plugin import Call

    Address = Any
    """IPv4Address or IPv6Address: unions of the two cannot be compared."""
    Subnet = IPv4Network | IPv6Network

_DIRECTORY = "leases"
_LAST = "last-"


class _Range(NamedTuple):
    """Some consecutive addresses of a subnet."""

    subnet: Subnet
    first: Address
    last: Address
    gateway: Address

    def has(self, address: Address) -> bool:
        return bool(address.version == self.subnet.version and self.first <= address <= self.last)

    def __str__(self) -> str:
        whole = _ends(self.subnet) == (self.first, self.last)
        return str(self.subnet) if whole else f"{self.first} to {self.last} of {self.subnet}"


_Set = tuple[_Range, ...]
"""Ranges of one family, of which a pod gets one address."""


class _Choice(NamedTuple):
    """A range set and the address that was asked for, if one was."""

    ranges: _Set
    wanted: Address | None


def add(call: Call) -> dict[str, Any]:
    """An address of every range set, with the configured routes and, of `resolvConf`, name servers."""
    network = _network(call.conf)
    ipam = _mapping(call.conf.get("ipam", {}), network, "ipam")
    choices = _choices(network, _range_sets(network, ipam), _wanted(network, call))
    result: dict[str, Any] = {"routes": _routes(network, ipam), "dns": _dns(network, ipam)}
    try:
        result["ips"] = [_ip(*_allocate(network, number, choice, call)) for number, choice in enumerate(choices)]
    except BaseException:
        release(call.container, network, call.interface)
        raise
    return result


def delete(call: Call) -> None:
    """Whatever the interface has of the network. Opens nothing: it works with a configuration that makes no sense."""
    release(call.container, _network(call.conf), call.interface)


def check(call: Call) -> None:
    """Every address of `prevResult` that is in our ranges is still claimed for the interface."""
    import ipaddress

    network = _network(call.conf)
    sets = _range_sets(network, _mapping(call.conf.get("ipam", {}), network, "ipam"))
    found = 0
    for entry in _mapping(call.conf.get("prevResult", {}), network, "prevResult").get("ips", []):
        address = ipaddress.ip_interface(entry["address"]).ip
        if any(part.has(address) for ranges in sets for part in ranges):
            found += 1
            if state.holder(_claim(network, str(address))) != _holder(call):
                raise NetworkError(f"network {network}: {address} is no longer claimed for {call.about or 'the pod'}")
    if not found:
        raise NetworkError(f"network {network}: {call.about or 'the pod'} has no address of it")


# --- claims


def held_by(uuid: str) -> list[tuple[str, str]]:
    """(network, address) of everything a pod has."""
    return [(network, address) for network, address, holder in all_claims() if holder.partition(" ")[0] == uuid]


def all_claims() -> Iterator[tuple[str, str, str]]:
    """(network, address, "UUID INTERFACE")."""
    for network in state.listing(_DIRECTORY):
        for address in _addresses(network):
            yield network, address, state.holder(_claim(network, address))


def release(uuid: str, network: str = "", interface: str = "") -> None:
    """Drop what a pod has, of one network or all, of one interface or all. NetworkError when that fails."""
    for name in [network] if network else state.listing(_DIRECTORY):
        for address in _addresses(name):
            holder = state.holder(_claim(name, address))
            if holder.partition(" ")[0] == uuid and (not interface or holder == f"{uuid} {interface}"):
                state.release(_claim(name, address), holder)


def tidy() -> None:
    """Drop what nobody can have, and directories where nothing is left but what was given last."""
    for network, address, holder in list(all_claims()):
        if not holder:
            state.drop_nonsense(_claim(network, address))
    with state.lock():
        for network in state.listing(_DIRECTORY):
            names = state.listing(_DIRECTORY, network)
            if all(name.startswith(_LAST) for name in names):
                for name in names:
                    state.drop(state.path(_DIRECTORY, network, name))
                state.drop_directory(state.path(_DIRECTORY, network))


def _addresses(network: str) -> list[str]:
    return [name for name in state.listing(_DIRECTORY, network) if not name.startswith(_LAST)]


def _claim(network: str, address: str) -> str:
    return state.path(_DIRECTORY, network, address)


def _holder(call: Call) -> str:
    return f"{call.container} {call.interface}"


def _allocate(network: str, number: int, choice: _Choice, call: Call) -> tuple[_Range, Address]:
    """Claim one. What dead pods have is looked at when there is no other, and then taken back."""
    if choice.wanted is not None:
        return _allocate_wanted(network, choice.ranges, choice.wanted, call)
    while True:
        with state.lock():
            used = set(_addresses(network))
            for part, address in _candidates(choice.ranges, _last(network, number)):
                if str(address) not in used:
                    _take(network, number, address, call)
                    return part, address
        if not owners.reclaim(_claim(network, address) for address in used):
            ranges = " and ".join(map(str, choice.ranges))
            count = sum(1 for part, address in _known(used) if any(r.has(address) for r in choice.ranges))
            raise NetworkError(
                f"network {network}: no address left in {ranges}, {count} in use",
                hint=f"rkpy net inspect {network} shows whose they are; give the network a larger subnet",
            )


def _allocate_wanted(network: str, ranges: _Set, address: Address, call: Call) -> tuple[_Range, Address]:
    while True:
        with state.lock():
            try:
                state.take(_claim(network, str(address)), _holder(call))
                return next(part for part in ranges if part.has(address)), address
            except FileExistsError:
                pass
        uuid = state.holder(_claim(network, str(address))).partition(" ")[0]
        if not owners.reclaim([_claim(network, str(address))]):
            raise NetworkError(f"network {network}: {address} is already taken by {owners.describe(uuid)}")


def _take(network: str, number: int, address: Address, call: Call) -> None:
    """Remembered first: of two that are killed here the second does not get the address of the first."""
    last = state.path(_DIRECTORY, network, f"{_LAST}{number}")
    try:
        state.write(last, str(address))
    except OSError as error:
        raise NetworkError(f"write {last}: {reason(error)}") from error
    state.take(_claim(network, str(address)), _holder(call))


def _last(network: str, number: int) -> Address | None:
    """Of the range set, the one given last; None when that is not known."""
    import ipaddress

    try:
        with open(state.path(_DIRECTORY, network, f"{_LAST}{number}"), encoding="ascii") as file:
            return ipaddress.ip_address(file.read(64).strip())
    except (OSError, ValueError):
        return None


def _candidates(ranges: _Set, last: Address | None) -> Iterator[tuple[_Range, Address]]:
    """All addresses that may be given, beginning behind `last`. Lazily: of an IPv6 subnet there is no end."""
    start = next((index for index, part in enumerate(ranges) if last is not None and part.has(last)), None)
    if start is None or last is None:
        for part in ranges:
            yield from _between(part, part.first, part.last)
        return
    if last < ranges[start].last:
        yield from _between(ranges[start], last + 1, ranges[start].last)
    for part in (*ranges[start + 1 :], *ranges[:start]):
        yield from _between(part, part.first, part.last)
    yield from _between(ranges[start], ranges[start].first, last)


def _between(part: _Range, first: Address, last: Address) -> Iterator[tuple[_Range, Address]]:
    address = first
    while address <= last:
        if address != part.gateway:
            yield part, address
        if address == last:
            return  # the highest address there is has none behind it
        address += 1


# --- configuration


def _network(conf: dict[str, Any]) -> str:
    name = conf.get("name")
    if not isinstance(name, str) or not name or name.startswith(".") or {"/", "\0"} & set(name):
        raise NetworkError(f"{name!r} is no name for a network")
    return name


def _mapping(value: Any, network: str, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise NetworkError(f"network {network}: {what} is no JSON object")
    return value


def _list(value: Any, network: str, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise NetworkError(f"network {network}: {what} is no JSON list")
    return value


def _range_sets(network: str, ipam: dict[str, Any]) -> list[_Set]:
    """The range written without a list comes first, as it does with the program."""
    sets = [[ipam]] if ipam.get("subnet") else []
    sets += [_list(ranges, network, "a range set") for ranges in _list(ipam.get("ranges") or [], network, "ranges")]
    if not sets:
        raise NetworkError(f"network {network}: host-local has no ranges", hint='its "ipam" needs a "subnet"')
    parsed = [_range_set(network, ranges) for ranges in sets]
    parts = [part for ranges in parsed for part in ranges]
    for index, part in enumerate(parts):
        for other in parts[:index]:
            if other.has(part.first) or part.has(other.first):
                raise NetworkError(f"network {network}: the ranges {other} and {part} overlap")
    return parsed


def _range_set(network: str, ranges: list[Any]) -> _Set:
    parsed = tuple(_range(network, _mapping(part, network, "a range")) for part in ranges)
    if not parsed:
        raise NetworkError(f"network {network}: a range set is empty")
    if len({part.subnet.version for part in parsed}) > 1:
        raise NetworkError(f"network {network}: a range set has both IPv4 and IPv6", hint="make them two range sets")
    return parsed


def _range(network: str, part: dict[str, Any]) -> _Range:
    import ipaddress

    text = part.get("subnet")
    try:
        if not isinstance(text, str):
            raise ValueError("it is no text")
        subnet = ipaddress.ip_network(text)
    except ValueError as error:
        raise NetworkError(f"network {network}: subnet {text!r}: {error}") from None
    if subnet.prefixlen > subnet.max_prefixlen - 2:
        raise NetworkError(f"network {network}: {subnet} is too small to give addresses from")
    lowest, highest = _ends(subnet)
    first, last, gateway = (
        _address(network, part.get(key), key) or default
        for key, default in (("rangeStart", lowest), ("rangeEnd", highest), ("gateway", lowest))
    )
    for key, address in (("rangeStart", first), ("rangeEnd", last)):
        if address not in subnet:
            raise NetworkError(f"network {network}: {key} {address} is not in {subnet}")
    first, last = max(first, lowest), min(last, highest)
    if first > last:
        raise NetworkError(f"network {network}: between rangeStart and rangeEnd of {subnet} is no address to give")
    return _Range(subnet, first, last, gateway)


def _ends(subnet: Subnet) -> tuple[Address, Address]:
    """The first and last address of a host: IPv6 has no broadcast address, but its first is all routers' (RFC 4291)."""
    return subnet.network_address + 1, subnet.broadcast_address - (1 if subnet.version == 4 else 0)


def _address(network: str, text: Any, what: str) -> Address | None:
    import ipaddress

    if text is None or text == "":
        return None
    try:
        if not isinstance(text, str):
            raise ValueError
        return ipaddress.ip_address(text)
    except ValueError:
        raise NetworkError(f"network {network}: {what} {text!r} is no IP address") from None


def _wanted(network: str, call: Call) -> list[Address]:
    """What is asked for on the command line (IP=), by a capability (`ips`) or in the configuration (`args`); CNI
    conventions. A prefix length behind an address is for those who know no subnet."""
    capability = _mapping(call.conf.get("runtimeConfig") or {}, network, "runtimeConfig").get("ips") or []
    args = _mapping(call.conf.get("args") or {}, network, "args")
    cni = _mapping(args.get("cni") or {}, network, "args")
    texts = [text.strip() for text in call.args.get("IP", "").split(",") if text.strip()]
    texts += _list(capability, network, "ips") + _list(cni.get("ips") or [], network, "ips")
    found = []
    for text in texts:
        address = _address(network, text.partition("/")[0] if isinstance(text, str) else text, "address")
        if address is not None and address not in found:
            found.append(address)
    return found


def _choices(network: str, sets: list[_Set], wanted: list[Address]) -> list[_Choice]:
    choices = []
    left = list(wanted)
    for ranges in sets:
        address = next((address for address in left if any(part.has(address) for part in ranges)), None)
        if address is not None:
            left.remove(address)
        choices.append(_Choice(ranges, address))
    gateways = {part.gateway for ranges in sets for part in ranges}
    for address in wanted:
        if address in gateways:
            raise NetworkError(f"network {network}: {address} is the network's gateway")
    for address in left:
        ranges_text = ", ".join(str(part) for ranges in sets for part in ranges)
        if any(part.has(address) for ranges in sets for part in ranges):
            raise NetworkError(f"network {network}: {address} cannot be had besides another one of the same range")
        raise NetworkError(f"network {network}: {address} is not in any range", hint=f"it has {ranges_text}")
    return choices


def _known(texts: set[str]) -> Iterator[tuple[str, Address]]:
    import ipaddress

    for text in texts:
        try:
            yield text, ipaddress.ip_address(text)
        except ValueError:
            continue


def _ip(part: _Range, address: Address) -> dict[str, str]:
    return {"address": f"{address}/{part.subnet.prefixlen}", "gateway": str(part.gateway)}


def _routes(network: str, ipam: dict[str, Any]) -> list[dict[str, Any]]:
    import ipaddress

    routes = [_mapping(route, network, "a route") for route in _list(ipam.get("routes") or [], network, "routes")]
    for route in routes:
        _address(network, route.get("gw"), "the gateway of a route")
        try:
            ipaddress.ip_network(str(route.get("dst")), strict=False)
        except ValueError:
            raise NetworkError(f"network {network}: a route to {route.get('dst')!r}") from None
    return routes


def _dns(network: str, ipam: dict[str, Any]) -> dict[str, Any]:
    """Of the file that `resolvConf` names, as resolv.conf(5) has it."""
    path = ipam.get("resolvConf")
    if not path:
        return {}
    if not isinstance(path, str):
        raise NetworkError(f"network {network}: resolvConf is no path")
    dns: dict[str, Any] = {"nameservers": [], "domain": "", "search": [], "options": []}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                _read_line(line.split(), dns)
    except OSError as error:
        raise NetworkError(f"network {network}: open {path}: {reason(error)}") from error
    return {key: value for key, value in dns.items() if value}


def _read_line(words: list[str], dns: dict[str, Any]) -> None:
    key, values = (words[0], words[1:]) if words else ("", [])
    if key == "nameserver":
        dns["nameservers"] += values[:1]
    elif key == "domain" and values:
        dns["domain"] = values[0]
    elif key == "search":
        dns["search"] = values  # the last line counts
    elif key == "options":
        dns["options"] += values
