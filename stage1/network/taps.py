"""Networks of a pod that is a virtual machine: every ethN of its namespace is tied to the tapN that is a card of it.

    host                  the pod's namespace                the machine
    rkN-UUID8 ==== veth ==== ethN <-- redirect --> tapN ==== ethN

What comes in by one leaves by the other (tc-mirred(8)), before anything of this namespace sees it: ethN keeps the
addresses and routes that plugins gave it, for them to check and take back, and the machine's own ethN has the very same
(`stage1.vm.guestnet`), with the same hardware address.
"""

from __future__ import annotations

import json
import os
import struct
from _socket import AF_INET, AF_INET6, AF_UNSPEC, inet_ntop
from collections.abc import Iterable, Iterator

from common.errors import NetworkError, reason
from stage1.network import links, netlink
from stage1.network.messages import attribute, attributes
from stage1.network.netlink import Link, Netlink
from stage1.network.plan import Network
from stage1.vm import guestnet
from stage1.vm.tap import name as tap_name

_NEWADDR, _GETADDR, _NEWROUTE, _GETROUTE, _NEWNEIGH, _GETNEIGH, _NEWRULE, _GETRULE = 20, 22, 24, 26, 28, 30, 32, 34
_GETLINK, _NEWQDISC, _NEWTFILTER = 18, 36, 44
_INGRESS, _INGRESS_HANDLE, _ALL = 0xFFFFFFF1, 0xFFFF0000, 1 << 16 | 0x0300
"""Where frames come in (linux/pkt_sched.h); priority 1 and ETH_P_ALL in network order."""
_ETHERNET = 1
_NOARP, _PROMISCUOUS, _ALL_MULTICAST = 0x80, 0x100, 0x200
_KEPT_FLAGS = _NOARP | _PROMISCUOUS | _ALL_MULTICAST
_LOCAL_TABLE, _PERMANENT, _ON_LINK = 255, 0x80, 4
_UNICAST, _BLACKHOLE, _THROW = 1, 6, 9
_KERNEL = 2
"""Who made a route."""
_BUILTIN_RULES = (0, 32766, 32767)
_OWN_SYSCTLS = ("mtu", "stable_secret", "mc_forwarding")
"""Of an interface: what the kernel changes, or shows, by itself."""

_LINK, _ADDRESS = struct.Struct("=BxHiII"), struct.Struct("=BBBBI")
_ROUTE, _NEIGHBOUR, _TRAFFIC = struct.Struct("=8BI"), struct.Struct("=BxxxiHBB"), struct.Struct("=BxxxiIII")
_IFLA_ADDRESS, _IFLA_MTU, _IFLA_TXQLEN = 1, 4, 13
_IFA_ADDRESS, _IFA_LOCAL, _IFA_CACHEINFO, _IFA_FLAGS, _IFA_PROTO = 1, 2, 6, 8, 11
_NDA_DST, _NDA_LLADDR = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA = 1, 4, 5, 9, 15, 18
_RTA_KEPT = (_RTA_DST, 2, _RTA_OIF, _RTA_GATEWAY, 6, 7, 8, _RTA_MULTIPATH, 11, _RTA_TABLE, _RTA_VIA, 20, 21, 22)
"""With SRC, PRIORITY, PREFSRC, METRICS, FLOW, PREF, ENCAP_TYPE and ENCAP; the rest is the kernel's to tell."""
_FRA_PRIORITY = 6


def tie(networks: Iterable[Network], netns: str) -> tuple[bytes, list[str]]:
    """Tie all interfaces of the networks in the namespace at that path: the steps that the machine is to take
    (`guestnet.apply`), and what of the namespace it will not have, a line each. NetworkError when it cannot be done."""
    networks = tuple(networks)
    with Netlink(netns) as pod:
        found = {network.interface: pod.need(network.interface) for network in networks}
        try:
            with links.in_namespace(netns):
                for link in found.values():
                    _tie(pod, link)
                sysctls = [*_settings(found), *_asked(networks)]
        except OSError as error:
            raise NetworkError(f"enter {netns}: {reason(error)}") from error
        steps = [*_cards(pod, found), *sysctls, *_up(found), *_tables(pod, found)]
    return guestnet.pack([step for step in steps if len(step) > 1]), [step[0] for step in steps if len(step) == 1]


def _tie(pod: Netlink, link: Link) -> None:
    if link.kind == "ipvlan":
        raise NetworkError(f"{link.name} is an ipvlan, which carries packets of this kernel's own addresses only",
                           hint="a virtual machine can be on a macvlan or a bridge")  # fmt: skip
    number = "".join(filter(str.isdigit, link.name))
    tap = pod.need(tap_name(int(number)))
    # It is nobody's here: the kernel is to say nothing there on its own account.
    if links.sysctl("ipv6", "conf", tap.name, "disable_ipv6"):
        links.set_sysctl("1", "ipv6", "conf", tap.name, "disable_ipv6")
    pod.do(netlink.change(tap.name, [("IFLA_MTU", link.mtu)], on=netlink.UP | _NOARP))
    for one, other in ((link, tap), (tap, link)):
        _redirect(pod, one, other)


def _redirect(pod: Netlink, one: Link, other: Link) -> None:
    """What comes in by `one` leaves by `other`."""
    about = f"tie {one.name} to {other.name}"
    queue = _TRAFFIC.pack(AF_UNSPEC, one.number, _INGRESS_HANDLE, _INGRESS, 0)
    flags = netlink.ACK | netlink.CREATE | netlink.EXCLUSIVE
    pod.do(netlink.raw(about, _NEWQDISC, flags, queue + attribute(1, b"ingress\0")))
    head = _TRAFFIC.pack(AF_UNSPEC, one.number, 0, _INGRESS_HANDLE, _ALL)
    # index, capab, TC_ACT_STOLEN, two counters; TCA_EGRESS_REDIR, the interface
    mirred = attribute(2, struct.pack("=IIiiiiI", 0, 0, 4, 0, 0, 1, other.number))
    action = attribute(1, attribute(1, b"mirred\0") + attribute(2, mirred))
    for kind, options in (
        (b"matchall\0", attribute(2, action)),
        # Not one key, and terminal: every frame, however short.
        (b"u32\0", attribute(5, struct.pack("=B15x", 1)) + attribute(7, action)),
    ):
        whole = head + attribute(1, kind) + attribute(2, options)
        try:
            return pod.do(netlink.raw(about, _NEWTFILTER, flags, whole))
        except netlink.Refused as error:
            refused = error
    raise NetworkError(str(refused), hint="the kernel needs cls_matchall or cls_u32, and act_mirred") from refused


def _cards(pod: Netlink, found: dict[str, Link]) -> Iterator[guestnet.Step]:
    for link in found.values():
        body = pod.bodies(
            netlink.raw(f"look at {link.name}", _GETLINK, netlink.ACK, _LINK.pack(0, 0, link.number, 0, 0))
        )
        _, kind, _, flags, _ = _LINK.unpack_from(body[0])
        if kind != _ETHERNET:
            raise NetworkError(f"{link.name} carries no Ethernet, which a virtual machine's card does")
        present = attributes(body[0][_LINK.size :])
        wanted = (_IFLA_ADDRESS, _IFLA_MTU, _IFLA_TXQLEN)
        yield guestnet.link(link.name, flags & _KEPT_FLAGS, _KEPT_FLAGS, _packed(present, wanted))


def _up(found: dict[str, Link]) -> Iterator[guestnet.Step]:
    for name in found:
        yield guestnet.link(name, netlink.UP, netlink.UP)


def _packed(present: dict[int, bytes], wanted: Iterable[int]) -> bytes:
    return b"".join(attribute(kind, present[kind]) for kind in wanted if kind in present)


def _settings(found: Iterable[str]) -> Iterator[guestnet.Step]:
    """Sysctls of the interfaces that somebody has set: that are not what an interface begins with."""
    for interface in found:
        for family in ("ipv4", "ipv6"):
            for name in _listing(f"/proc/sys/net/{family}/conf/{interface}"):
                value = links.sysctl(family, "conf", interface, name)
                if name not in _OWN_SYSCTLS and value != links.sysctl(family, "conf", "default", name):
                    yield f"{family}/conf/{interface}/{name}", value, False


def _listing(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def _asked(networks: Iterable[Network]) -> Iterator[guestnet.Step]:
    """Sysctls that are written in configurations (`tuning`, ours or a program), as they came to be."""
    from stage1.network import tuning

    for network in networks:
        for plugin in json.loads(network.conf).get("plugins", ()):
            if plugin.get("type") == "tuning":
                for name in tuning.sysctls(plugin, network.interface):
                    yield "/".join(name), links.sysctl(*name), True


def _tables(pod: Netlink, found: dict[str, Link]) -> Iterator[guestnet.Step]:
    """Addresses, neighbours, routes (those to gateways before those by them), and rules."""
    known = {link.number: name for name, link in found.items()}
    known[1] = "lo"

    def listed(what: str, kind: int, head: struct.Struct) -> list[bytes]:
        request = netlink.raw(f"list the {what}", kind, netlink.DUMP, bytes(head.size))
        return [body for body in pod.bodies(request) if body[0] in (AF_INET, AF_INET6)]

    for body in listed("addresses", _GETADDR, _ADDRESS):
        yield from _address(body, known)
    for body in listed("neighbours", _GETNEIGH, _NEIGHBOUR):
        yield from _neighbour(body, known)
    for body in sorted(listed("routes", _GETROUTE, _ROUTE), key=_is_indirect):
        yield from _route(body, known)
    for body in listed("rules", _GETRULE, _ROUTE):
        yield from _rule(body)


def _address(body: bytes, known: dict[int, str]) -> Iterator[guestnet.Step]:
    """Without the route of its prefix: whether there is one, the routes say."""
    family, prefix, _, scope, index = _ADDRESS.unpack_from(body)
    name, present = known.get(index, "lo"), attributes(body[_ADDRESS.size :])
    if name == "lo":
        return
    flags = netlink.NO_PREFIX_ROUTE | (netlink.NODAD if family == AF_INET6 else 0)
    wanted = [kind for kind in present if kind not in (_IFA_CACHEINFO, _IFA_FLAGS, _IFA_PROTO)]
    text = inet_ntop(family, present.get(_IFA_LOCAL) or present[_IFA_ADDRESS])
    new = _ADDRESS.pack(family, prefix, 0, scope, 0) + _packed(present, wanted)
    new += attribute(_IFA_FLAGS, struct.pack("=I", flags))
    yield guestnet.message(f"add address {text}/{prefix} to {name}", _NEWADDR, new, [(4, name)])


def _neighbour(body: bytes, known: dict[int, str]) -> Iterator[guestnet.Step]:
    family, index, state, flags, kind = _NEIGHBOUR.unpack_from(body)
    name, present = known.get(index, "lo"), attributes(body[_NEIGHBOUR.size :])
    if name == "lo" or state != _PERMANENT or _NDA_DST not in present:
        return
    new = _NEIGHBOUR.pack(family, 0, state, flags, kind) + _packed(present, (_NDA_DST, _NDA_LLADDR))
    text = inet_ntop(family, present[_NDA_DST])
    yield guestnet.message(f"make {text} a neighbour on {name}", _NEWNEIGH, new, [(4, name)])


def _is_indirect(body: bytes) -> bool:
    return not {_RTA_GATEWAY, _RTA_VIA, _RTA_MULTIPATH}.isdisjoint(attributes(body[_ROUTE.size :]))


def _route(body: bytes, known: dict[int, str]) -> Iterator[guestnet.Step]:
    head, present = _ROUTE.unpack_from(body), attributes(body[_ROUTE.size :])
    table = struct.unpack("=I", present.get(_RTA_TABLE, bytes(4)))[0] or head[4]
    if table == _LOCAL_TABLE or not (head[7] == _UNICAST or _BLACKHOLE <= head[7] <= _THROW):
        return
    text = inet_ntop(head[0], present[_RTA_DST]) if _RTA_DST in present else "::" if head[0] == AF_INET6 else "0.0.0.0"  # noqa: S104
    about = f"add route to {text}/{head[1]}"
    new, places = bytearray(_ROUTE.pack(*head[:8], head[8] & _ON_LINK)), []
    for kind in _RTA_KEPT:
        if kind in present:
            value = bytearray(present[kind])
            offset = len(new) + 4
            for place in [0] if kind == _RTA_OIF else _hops(value) if kind == _RTA_MULTIPATH else ():
                index = struct.unpack_from("=i", value, place)[0]
                if index not in known:
                    if head[5] != _KERNEL:
                        yield (f"{about}: the virtual machine does not have the interface that it is by",)
                    return
                places.append((offset + place, known[index]))
            new += attribute(kind, bytes(value))
    yield guestnet.message(about, _NEWROUTE, bytes(new), places)


def _hops(value: bytearray) -> Iterator[int]:
    """Where the ways of a route have their interfaces (struct rtnexthop); what says how these fare is cleared."""
    offset = 0
    while offset + 8 <= len(value):
        length = struct.unpack_from("=H", value, offset)[0]
        value[offset + 2] &= _ON_LINK
        yield offset + 4
        offset += max(8, length + 3 & ~3)


def _rule(body: bytes) -> Iterator[guestnet.Step]:
    priority = struct.unpack("=I", attributes(body[_ROUTE.size :]).get(_FRA_PRIORITY, bytes(4)))[0]
    if priority not in _BUILTIN_RULES:
        yield guestnet.message(f"add routing rule {priority}", _NEWRULE, body, [])
