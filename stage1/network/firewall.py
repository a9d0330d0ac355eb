"""The firewall's share: one table of our own, `inet rkpy` (nft(8)).

Its chains are the same whatever runs; what a pod needs is *elements* of the table's sets and maps, added in one
transaction; the pod's UUID is every element's comment. Nothing that is not about a pod's own
address, interface or published port is looked at twice, and no rule of ours accepts what another table drops:

    guard        raw prerouting   what comes from pods for 127.0.0.0/8, which `route_localnet` would let in, is dropped
    prerouting   dstnat           new connections to an address of the host and a published port go to the pod
    output       dstnat           the same for those that the host makes itself
    input        filter           what a pod sends from an address that is not behind its interface is dropped
    forward      filter           so it is here; and what restricted pods begin beyond their subnet; and what others
                                  begin to pods that are not there for others, but for published ports
    postrouting  srcnat           what pods send beyond their subnet comes from the host's address; so do connections
                                  to published ports whose answer would not come back through the host

What each pod has in it is on file (`state`: firewall/UUID), and the table can be made anew from that whenever it is not
what it should be: when somebody flushed the ruleset, and when it is another version's. It appears with the first pod
and goes with the last. `apply`, `withdraw` and `reload` take the lock of the claims (`state.lock`) themselves: who
calls them must not hold it.
"""

from __future__ import annotations

import os
from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from collections.abc import Iterable

from common.errors import NetworkError, reason
from stage1.network import conntrack, nft, removal, state
from stage1.network.plan import Port
from stage1.network.record import Element

GROUP = 29291
"""The interface group (ip-link(8)) of the host's ends of our cables and of our bridges; "rk" in ASCII."""
_NAME = "rkpy"
TABLE = f"inet {_NAME}"
VERSION = "version-2"
"""An empty chain of this name says that the table is the one below; another name for every other ruleset."""

# An element of snat4 is "pod . from where": published traffic that would not find its way back through the host. One of
# inside4 is "pod . its subnet". Concatenations of ranges need Linux 5.6.
_RULES = f"""
table {TABLE} {{
    map any4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
    map any6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
    map host4 {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
    map host6 {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
    set snat4 {{ type ipv4_addr . ipv4_addr; flags interval; }}
    set snat6 {{ type ipv6_addr . ipv6_addr; flags interval; }}
    set masquerade4 {{ type ipv4_addr; }}
    set masquerade6 {{ type ipv6_addr; }}
    set inside4 {{ type ipv4_addr . ipv4_addr; flags interval; }}
    set inside6 {{ type ipv6_addr . ipv6_addr; flags interval; }}
    set restricted4 {{ type ipv4_addr; }}
    set restricted6 {{ type ipv6_addr; }}
    set restricted {{ type ifname; }}
    chain {VERSION} {{ }}
    chain publish {{
        meta nfproto ipv4 meta l4proto {{ tcp, udp }} dnat ip to ip daddr . meta l4proto . th dport map @host4
        meta nfproto ipv4 meta l4proto {{ tcp, udp }} dnat ip to meta l4proto . th dport map @any4
        meta nfproto ipv6 meta l4proto {{ tcp, udp }} dnat ip6 to ip6 daddr . meta l4proto . th dport map @host6
        meta nfproto ipv6 meta l4proto {{ tcp, udp }} dnat ip6 to meta l4proto . th dport map @any6
    }}
    chain guard {{ type filter hook prerouting priority raw;
        iifgroup {GROUP} ip daddr 127.0.0.0/8 drop
        iifgroup {GROUP} ip saddr 127.0.0.0/8 drop
    }}
    chain prerouting {{ type nat hook prerouting priority dstnat;
        # From a neighbour on the wire; the kernel would drop it if it still were for 127.0.0.1 when it is routed.
        ip daddr 127.0.0.0/8 return
        fib daddr type local jump publish
    }}
    chain output {{ type nat hook output priority -100;
        fib daddr type local jump publish
    }}
    chain senders {{
        # They have no address yet, or one that is of this wire only.
        ip saddr 0.0.0.0 return
        ip6 saddr {{ ::, fe80::/10 }} return
        # A pod of several networks answers by its default route, with the address that was asked.
        ct direction reply ip saddr @masquerade4 return
        ct direction reply ip6 saddr @masquerade6 return
        # With br_netfilter also what a bridge does not route comes by, and the host may know nothing of its addresses.
        meta iifkind "bridge" meta oifkind "bridge" return
        fib saddr . iif oif missing drop
    }}
    chain input {{ type filter hook input priority filter;
        iifgroup {GROUP} jump senders
    }}
    chain forward {{ type filter hook forward priority filter;
        iifgroup {GROUP} jump senders
        ct direction reply return
        iifname @restricted ip saddr . ip daddr != @inside4 drop
        iifname @restricted ip6 saddr . ip6 daddr != @inside6 drop
        ip saddr @restricted4 ip saddr . ip daddr != @inside4 drop
        ip6 saddr @restricted6 ip6 saddr . ip6 daddr != @inside6 drop
        ct status dnat return
        ip daddr @restricted4 ip daddr . ip saddr != @inside4 drop
        ip6 daddr @restricted6 ip6 daddr . ip6 saddr != @inside6 drop
        iifgroup {GROUP} return
        # Whoever masquerades a network does not mean its addresses to be known beyond the host.
        ip daddr @masquerade4 ip daddr . ip saddr != @inside4 drop
        ip6 daddr @masquerade6 ip6 daddr . ip6 saddr != @inside6 drop
    }}
    chain postrouting {{ type nat hook postrouting priority srcnat;
        ct status dnat ip daddr . ip saddr @snat4 masquerade
        ct status dnat ip6 daddr . ip6 saddr @snat6 masquerade
        ip saddr @masquerade4 ip saddr . ip daddr != @inside4 ip daddr != 224.0.0.0/4 masquerade
        ip6 saddr @masquerade6 ip6 saddr . ip6 daddr != @inside6 ip6 daddr != ff00::/8 masquerade
    }}
}}
"""
_KINDS = ("any", "host", "snat", "masquerade", "inside", "restricted")
_SETS = frozenset(("restricted", *(f"{kind}{family}" for kind in _KINDS for family in "46")))
_REMOVAL = f"add table {TABLE}\ndelete table {TABLE}\n"
"""Of the table, whether there is one or not."""
_DIRECTORY = "firewall"
_BY_ADDRESS = frozenset(("snat4", "snat6", "inside4", "inside6"))
"""Here elements with one address in common may exclude each other (they overlap), whatever follows it."""
_PLAIN = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:./_- ")


def publication(ports: Iterable[Port], addresses: Iterable[str], *, routed: str = "46") -> list[Element]:
    """So that `ports` lead to the pod's `addresses`, the first of each family. The addresses may be followed by the
    length of their subnet's prefix, as in a CNI result: neighbours there are answered through the host. `routed`:
    the families the pod has a default route of; in others it can answer the host only, and all traffic comes from
    there. NetworkError when a port is to be published on an address of a family the pod has none of."""
    targets = _first_of_each_family(addresses)
    elements: list[Element] = []
    used: set[str] = set()
    for port in ports:
        families = _families(port, targets)
        used |= set(families)
        elements += [_mapping(port, number, family, targets[family][0])
                     for family in families for number in range(port.span)]  # fmt: skip
    for family in sorted(used):
        elements += _through_the_host(family, *targets[family], routed=family in routed)
    return elements


def masquerade(address: str, subnet: str) -> list[Element]:
    """So that what the pod with this address sends beyond `subnet` (ADDRESS/LENGTH) comes from the host's address."""
    family, address, subnet = _pair(address, subnet)
    return [Element(f"masquerade{family}", address), Element(f"inside{family}", f"{address} . {subnet}")]


def restrict(address: str, subnet: str, interface: str = "") -> list[Element]:
    """So that the pod with this address begins nothing beyond `subnet`. `interface`, the host's end of the pod's own
    cable: nothing with any other sender's address gets through from there either; without it that is not noticed."""
    family, address, subnet = _pair(address, subnet)
    elements = [Element(f"restricted{family}", address), Element(f"inside{family}", f"{address} . {subnet}")]
    return [*elements, Element("restricted", interface)] if interface else elements


def apply(elements: Iterable[Element], owner: str) -> None:
    """Add elements of the pod `owner` (its UUID), all or none. What another pod has under the same key is stale, or the
    claims would not have let it come to this, and gives way."""
    wanted = list(dict.fromkeys(elements))
    if not wanted:
        return
    taken = set(map(_place, wanted))
    creation = _statements("create", wanted, owner)
    with state.lock() as lock:
        before = _read(owner)
        # To take a table away, be it none, has the kernel wait for all its processors; to make one has not.
        expected = f"flush chain {TABLE} {VERSION}" if _owners() else f"create table {TABLE}{_RULES}"
        _write(owner, [*(each for each in before or () if _place(each) not in taken), *wanted])
        try:
            # Fails for a table that is not as expected, and for a key that is taken.
            nft.run(f"{expected}\n{creation}", lock.fd)
        except NetworkError:
            try:
                _renew([owner, *(other for other in _owners() if other != owner)], lock.fd)
            except NetworkError:
                _write(owner, before)
                raise
    _forget_flows(wanted)


def withdraw(owner: str) -> None:
    """Take back all that the pod `owner` has; if that is nothing (any more), nothing is done."""
    with state.lock() as lock:
        elements = _read(owner)
        if elements is None:
            return
        others = [other for other in _owners() if other != owner]
        try:
            if others:
                removal.of_elements(_NAME, elements)
            else:
                removal.of_table(_NAME)
        except NetworkError:
            _renew(others, lock.fd)
        _write(owner, None)


def _forget_flows(elements: Iterable[Element]) -> None:
    for family in "46":
        words = [each.key.split(" . ") for each in elements if each.where in (f"any{family}", f"host{family}")]
        ports = {int(port) for *_, protocol, port in words if protocol == "udp"}
        try:
            if ports:
                conntrack.forget_udp(family, ports)
        except OSError:
            pass  # Then whoever keeps sending has to stop for half a minute.


def reload() -> None:
    """Make the table anew, without a moment in which there is none."""
    with state.lock() as lock:
        _renew(_owners(), lock.fd)


def check(owner: str) -> None:
    """NetworkError when something is not there of what the pod `owner` has, as when somebody flushed the ruleset."""
    with state.lock() as lock:
        elements = _read(owner)
        try:
            nft.run(_statements("get", elements or ()), lock.fd)
        except NetworkError as error:
            raise NetworkError(
                "the firewall has lost rules of the pod", hint="rkpy net reload makes them anew"
            ) from error


def _renew(owners: Iterable[str], lock: int) -> None:
    """Make the table anew with what these pods have. What the earlier ones have the later ones lose."""
    kept: dict[str, list[Element]] = {}
    losers: set[str] = set()
    taken: set[tuple[str, str]] = set()
    for owner in owners:
        found = _read(owner) or []
        kept[owner] = [each for each in found if _place(each) not in taken]
        taken.update(map(_place, kept[owner]))
        if kept[owner] != found:
            losers.add(owner)
    creations = [_statements("create", elements, owner) for owner, elements in kept.items()]
    nft.run("\n".join((_REMOVAL, _RULES, *creations) if taken else (_REMOVAL,)), lock)
    for owner in losers:
        _write(owner, kept[owner])


def _place(element: Element) -> tuple[str, str]:
    """Elements of different pods with this in common exclude each other."""
    return element.where, element.key.partition(" ")[0] if element.where in _BY_ADDRESS else element.key


def _statements(verb: str, elements: Iterable[Element], owner: str = "") -> str:
    """One for each set. "create" is an "add" that fails for what is there."""
    words: dict[str, list[str]] = {}
    for each in elements:
        if each.where not in _SETS or not _PLAIN.issuperset(each.key + each.value + owner):
            raise NetworkError(f'"{each.where}" of the firewall cannot have the element "{each.key}"')
        words.setdefault(each.where, []).append(_words(each, owner if verb == "create" else ""))
    return "".join(f"{verb} element {TABLE} {where} {{ {', '.join(each)} }}\n" for where, each in words.items())


def _words(element: Element, comment: str) -> str:
    # In quotes, because the name of an interface may be a word of nft's.
    key = f'"{element.key}"' if element.where == "restricted" else element.key
    return key + (f' comment "{comment}"' if comment else "") + (f" : {element.value}" if element.value else "")


def _owners() -> list[str]:
    try:
        names = sorted(os.listdir(state.path(_DIRECTORY)))
        for name in names:
            if "." in name:  # Half of a file of somebody who was killed: whoever writes them has the lock.
                os.unlink(state.path(_DIRECTORY, name))
        return [name for name in names if "." not in name]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise NetworkError(f"open {error.filename}: {reason(error)}") from error


def _read(owner: str) -> list[Element] | None:
    """What the pod has, in lines of WHERE, KEY and VALUE; None when it has nothing."""
    path = _file(owner)
    try:
        with open(path, encoding="ascii") as file:
            return [Element(*line.rstrip("\n").split("\t", 2)) for line in file]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NetworkError(f"open {path}: {reason(error)}") from error
    except (ValueError, TypeError) as error:
        raise NetworkError(f"{path} makes no sense: {error}", hint="remove it") from error


def _file(owner: str) -> str:
    if not owner or set("/.") & set(owner):
        raise NetworkError(f'"{owner}" is not the UUID of a pod')
    return state.path(_DIRECTORY, owner)


def _write(owner: str, elements: Iterable[Element] | None) -> None:
    path = _file(owner)
    try:
        if elements is None:
            os.unlink(path)
        else:
            state.write(path, "".join("\t".join(each) + "\n" for each in elements))
    except OSError as error:
        raise NetworkError(f"write {path}: {reason(error)}") from error


def _first_of_each_family(addresses: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Address and subnet by family, "4" or "6"."""
    found: dict[str, tuple[str, str]] = {}
    for each in addresses:
        address, _, length = each.partition("/")
        family, address, subnet = _pair(address, f"{address}/{length}" if length else "")
        found.setdefault(family, (address, subnet))
    return found


def _families(port: Port, targets: dict[str, tuple[str, str]]) -> list[str]:
    """The families of addresses that `port` is published on."""
    if port.protocol not in ("tcp", "udp") or port.span < 1 or max(port.host_port, port.pod_port) + port.span > 65536:
        raise NetworkError(f'port "{port.name}" cannot be published: {port.protocol} {port.host_port}+{port.span}')
    wanted = [_family(port.host_ip)] if port.host_ip else ["4", "6"]
    if families := [family for family in wanted if family in targets]:
        return families
    on = f' on "{port.host_ip}"' if port.host_ip else ""
    lacking = "/".join(f"IPv{family}" for family in wanted)
    raise NetworkError(
        f'cannot publish port "{port.name}"{on}: no network gives the pod an {lacking} address',
        hint="publish it on an address of the other family" if targets else "",
    )


def _mapping(port: Port, number: int, family: str, address: str) -> Element:
    source = f"{port.protocol} . {port.host_port + number}"
    target = f"{address} . {port.pod_port + number}"
    if port.host_ip in ("", "0.0.0.0", "::"):  # noqa: S104
        return Element(f"any{family}", source, target)
    return Element(f"host{family}", f"{_canonical(port.host_ip)} . {source}", target)


def _through_the_host(family: str, address: str, subnet: str, *, routed: bool) -> list[Element]:
    everything = "0.0.0.0/0" if family == "4" else "::/0"
    loopback = "127.0.0.0/8" if family == "4" else "::1"
    # What is shorter may have the loopback addresses in it, and overlapping elements exclude each other.
    sources = (loopback, subnet) if routed and int(subnet.partition("/")[2] or 128) >= 8 else (everything,)
    return [Element(f"snat{family}", f"{address} . {source}") for source in sources]


def _pair(address: str, subnet: str = "") -> tuple[str, str, str]:
    """Family, canonical address, and canonical subnet, which is the address itself if none is given."""
    family, canonical = _family(address), _canonical(address)
    network, _, digits = subnet.partition("/")
    width = 32 if family == "4" else 128
    length = width if not subnet else int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 4 else -1
    if not 0 <= length <= width or (subnet and _family(network) != family):
        raise NetworkError(f'"{subnet}" is not a subnet with the address "{address}" in it')
    kind = AF_INET if family == "4" else AF_INET6
    mask = (1 << width) - (1 << (width - length))
    packed = int.from_bytes(inet_pton(kind, _canonical(network or address)), "big") & mask
    first = inet_ntop(kind, packed.to_bytes(width // 8, "big"))
    return family, canonical, first if length == width else f"{first}/{length}"


def _family(address: str) -> str:
    return "6" if ":" in address else "4"


def _canonical(address: str) -> str:
    """As nft prints it. NetworkError for what is none: it may come from a plugin's result."""
    try:
        kind = AF_INET6 if ":" in address else AF_INET
        return inet_ntop(kind, inet_pton(kind, address))
    except (OSError, ValueError) as error:
        raise NetworkError(f'"{address}" is not an IP address') from error
