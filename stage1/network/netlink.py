"""Interfaces, addresses, routes and queues: what is asked of the kernel through rtnetlink(7), with pyroute2's codecs.

A request (`link`, `address`, `route`, `queue`, …) is made first and then sent by `Netlink.do`, several in one go.

Of pyroute2 only the codecs are wanted. Its package initializer imports every client it has, and asyncio, which takes
four times as long as they do; so while they are imported an empty package stands where it would be. The modules are
the very ones, whoever imports the whole package afterwards finds them.
"""

from __future__ import annotations

import _socket
import errno
import importlib
import importlib.util
import os
import struct
import sys
import types
from typing import Any, Self

from common.errors import NetworkError, reason
from common.records import NamedTuple
from stage1.network.links import in_namespace

Attributes = list[tuple[str, Any]]


def _codec(module: str, name: str) -> Any:
    """The class `name` of pyroute2's `module`."""
    spec = None if {"pyroute2", module} & sys.modules.keys() else importlib.util.find_spec("pyroute2")
    if spec is None or not spec.submodule_search_locations:
        return getattr(importlib.import_module(module), name)
    stand_in = types.ModuleType("pyroute2")
    stand_in.__path__ = list(spec.submodule_search_locations)
    sys.modules["pyroute2"] = stand_in
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):  # Its modules have come to need their package.
        for loaded in [loaded for loaded in sys.modules if loaded.startswith("pyroute2.")]:
            del sys.modules[loaded]
    finally:
        del sys.modules["pyroute2"]
    return getattr(importlib.import_module(module), name)


try:
    _Link = _codec("pyroute2.netlink.rtnl.ifinfmsg", "ifinfmsg")
    _Address = _codec("pyroute2.netlink.rtnl.ifaddrmsg", "ifaddrmsg")
    _Route = _codec("pyroute2.netlink.rtnl.rtmsg", "rtmsg")
except ImportError as error:
    raise NetworkError(f"networks need pyroute2: {error}", hint="install it, or run the pod with --net=none") from error


def load() -> None:
    """What the codecs put off until they are used is done now, by a process that has nothing better to do."""
    link = Link(1, "lo", "", True, 0, "", "", 0, 0)
    create("x", "veth", [("IFLA_ADDRESS", "02:00:00:00:00:01")], [("VETH_INFO_PEER", {"attrs": [("IFLA_MTU", 1500)]})])
    for text in ("127.0.0.1", "::1"):
        address(link, text, 8)
        route(link, f"{text}/8", text)


REQUEST, ACK, DUMP = 1, 4, 0x300
REPLACE, EXCLUSIVE, CREATE, APPEND = 0x100, 0x200, 0x400, 0x800
_ERROR, _DONE = 2, 3
_NEWLINK, _DELLINK, _GETLINK, _NEWADDR, _DELADDR, _GETADDR = 16, 17, 18, 20, 21, 22
_NEWROUTE, _GETROUTE = 24, 26
_NEWQDISC, _GETQDISC, _NEWTFILTER, _NEWLINKPROP = 36, 38, 44, 108
_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _STRICT = 270, 10, 11, 12
_ACK_TLVS, _TEXT = 0x200, 1
UP, PROMISCUOUS, ALL_MULTICAST = 0x1, 0x100, 0x200
NODAD, NO_PREFIX_ROUTE = 0x02, 0x200
_MAIN, _LOCAL = 254, 255
_UNIVERSE, _ON_LINK, _HOST_ONLY = 0, 253, 254
_STATIC, _BOOT = 4, 3
_UNICAST, _TO_US = 1, 2
_SKIP_STATISTICS = 8
_HEADER = struct.Struct("=IHHII")


class Refused(NetworkError):
    """The kernel did not do it; `errno` says why."""

    def __init__(self, about: str, number: int, text: str) -> None:
        super().__init__(f"{about}: {text or reason(OSError(number, ''))}")
        self.errno = number


class Request(NamedTuple):
    about: str
    """What is to be done and to what, for people."""
    data: bytes


class Link(NamedTuple):
    """An interface as it is."""

    number: int
    """The kernel's: its index."""
    name: str
    mac: str
    up: bool
    mtu: int
    kind: str
    alias: str
    peer: int
    """The other end of a veth, or what it stands on; an index in another namespace perhaps."""
    master: int
    group: int = 0


def _request(about: str, kind: int, flags: int, message: Any, attributes: Attributes) -> Request:
    message["attrs"] = attributes
    message["header"]["type"] = kind
    message["header"]["flags"] = REQUEST | flags
    message.encode()
    return Request(about, bytes(message.data))


def raw(about: str, kind: int, flags: int, body: bytes) -> Request:
    """A message whose body was made by hand (`stage1.network.messages`)."""
    return Request(about, _HEADER.pack(_HEADER.size + len(body), kind, REQUEST | flags, 0, 0) + body)


def create(name: str, kind: str, attributes: Attributes, data: Attributes | None = None) -> Request:
    """A new interface."""
    info: Attributes = [("IFLA_INFO_KIND", kind)]
    if data:
        info.append(("IFLA_INFO_DATA", {"attrs": data}))
    whole = [("IFLA_IFNAME", name), *attributes, ("IFLA_LINKINFO", {"attrs": info})]
    return _request(f"create {kind} {name}", _NEWLINK, ACK | CREATE | EXCLUSIVE, _Link(), whole)


def change(name: str, attributes: Attributes, on: int = 0, off: int = 0) -> Request:
    """`on` and `off` are flags (netdevice(7))."""
    message = _Link()
    message["flags"], message["change"] = on, on | off
    return _request(f"change {name}", _NEWLINK, ACK, message, [("IFLA_IFNAME", name), *attributes])


def port(name: str, attributes: Attributes) -> Request:
    """What a bridge is to do with its port `name`."""
    info = {"attrs": [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", {"attrs": attributes})]}
    return change(name, [("IFLA_LINKINFO", info)])


def call_it(index: int, name: str, other: str) -> Request:
    """`other` is one more name of an interface."""
    message = _Link()
    message["index"] = index
    names = {"attrs": [("IFLA_ALT_IFNAME", other)]}
    return _request(f"name {name} {other}", _NEWLINKPROP, ACK | CREATE | EXCLUSIVE | APPEND, message,
                    [("IFLA_PROP_LIST", names)])  # fmt: skip


def remove(name: str) -> Request:
    return _request(f"remove {name}", _DELLINK, ACK, _Link(), [("IFLA_IFNAME", name)])


def address(link: Link, text: str, prefix: int, flags: int = 0) -> Request:
    """It can be used at once: nobody waits for duplicates to be detected."""
    message = _Address()
    family = message["family"] = _family(text)
    message["prefixlen"], message["index"] = prefix, link.number
    flags |= NODAD if family == _socket.AF_INET6 else 0
    attributes: Attributes = [("IFA_LOCAL", text), ("IFA_ADDRESS", text), ("IFA_FLAGS", flags)]
    return _request(f"add address {text}/{prefix} to {link.name}", _NEWADDR, ACK | CREATE | REPLACE, message,
                    attributes)  # fmt: skip


def drop_address(link: Link, text: str, prefix: int) -> Request:
    message = _Address()
    message["family"], message["prefixlen"], message["index"] = _family(text), prefix, link.number
    about = f"take address {text}/{prefix} from {link.name}"
    return _request(about, _DELADDR, ACK, message, [("IFA_LOCAL", text), ("IFA_ADDRESS", text)])


def route(link: Link, destination: str, gateway: str = "", metric: int = 0, flags: int = CREATE | EXCLUSIVE) -> Request:
    """To `destination` ("10.1.0.0/16") through `link`, straight or by a gateway."""
    network, _, prefix = destination.partition("/")
    message = _Route()
    message["family"], message["dst_len"] = _family(network), int(prefix)
    message["table"], message["proto"], message["type"] = _MAIN, _BOOT, _UNICAST
    message["scope"] = _UNIVERSE if gateway or ":" in network else _ON_LINK
    attributes: Attributes = [("RTA_OIF", link.number)]
    if int(prefix):
        attributes.append(("RTA_DST", network))
    if gateway:
        attributes.append(("RTA_GATEWAY", gateway))
    if metric:
        attributes.append(("RTA_PRIORITY", metric))
    way = f"{gateway} " if gateway else ""
    return _request(f"add route to {destination} by {way}{link.name}", _NEWROUTE, ACK | flags, message, attributes)


def local_route(link: Link, text: str, metric: int) -> Request:
    """What comes from `link` for the IPv6 address `text` is for this machine."""
    message = _Route()
    message["family"], message["dst_len"] = _socket.AF_INET6, 128
    message["table"], message["proto"], message["type"], message["scope"] = _LOCAL, _BOOT, _TO_US, _UNIVERSE
    attributes: Attributes = [("RTA_OIF", link.number), ("RTA_DST", text), ("RTA_PRIORITY", metric)]
    return _request(f"make {text} local on {link.name}", _NEWROUTE, ACK | CREATE | APPEND, message, attributes)


def queueing() -> Any:
    """A message about queueing disciplines or filters, to be filled in. Its codecs are for those who need them."""
    return _codec("pyroute2.netlink.rtnl.tcmsg", "tcmsg")()


def traffic(about: str, is_filter: bool, message: Any, attributes: Attributes) -> Request:
    """A queueing discipline or a filter (tc(8)); `message` is one of `queueing`."""
    kind, flags = (_NEWTFILTER, CREATE | EXCLUSIVE) if is_filter else (_NEWQDISC, CREATE | REPLACE)
    return _request(about, kind, ACK | flags, message, attributes)


def _family(text: str) -> int:
    return int(_socket.AF_INET6 if ":" in text else _socket.AF_INET)


class Netlink:
    """A socket that speaks with one network namespace: that at the path `netns`, or the one we are in."""

    def __init__(self, netns: str = "") -> None:
        try:
            if netns:
                with in_namespace(netns):
                    self._socket = self._open()
            else:
                self._socket = self._open()
        except OSError as error:
            raise NetworkError(f"open a netlink socket in {netns or 'this namespace'}: {reason(error)}") from error
        self._sequence = 0

    @staticmethod
    def _open() -> _socket.socket:
        sock = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)
        for option in (_CAP_ACK, _EXT_ACK, _STRICT):
            sock.setsockopt(_SOL_NETLINK, option, 1)
        return sock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def do(self, *requests: Request) -> None:
        """All of them in order; the first that fails raises Refused, what came after it was tried nevertheless."""
        about = {}
        data = bytearray()
        for request in requests:
            self._sequence += 1
            about[self._sequence] = request.about
            data += _sequenced(request.data, self._sequence)
        self._send(data)
        failures = []
        while about:
            for kind, flags, sequence, body in self._receive():
                if kind == _ERROR and sequence in about:
                    failures += _failure(about.pop(sequence), kind, flags, body)
        if failures:
            raise failures[0]

    def _ask(self, request: Request, message: Any) -> list[Any]:
        """What the kernel answers, decoded."""
        found = []
        for kind, flags, body in self._answers(request):
            answer = message(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)
            answer.decode()
            found.append(answer)
        return found

    def bodies(self, request: Request) -> list[bytes]:
        """What the kernel answers, as it is."""
        return [body for _, _, body in self._answers(request)]

    def _answers(self, request: Request) -> list[tuple[int, int, bytes]]:
        self._sequence += 1
        self._send(_sequenced(request.data, self._sequence))
        found: list[tuple[int, int, bytes]] = []
        while True:
            for kind, flags, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                if kind in (_ERROR, _DONE):
                    for failure in _failure(request.about, kind, flags, body):
                        raise failure
                    return found
                found.append((kind, flags, body))

    def _send(self, data: bytes | bytearray) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise NetworkError(f"write to a netlink socket: {reason(error)}") from error

    def _receive(self) -> list[tuple[int, int, int, bytes]]:
        """(type, flags, sequence number, body) of the messages of one datagram."""
        try:
            data = self._socket.recv(1 << 18)
        except OSError as error:
            raise NetworkError(f"read from a netlink socket: {reason(error)}") from error
        found = []
        while len(data) >= _HEADER.size:
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data)
            found.append((kind, flags, sequence, data[_HEADER.size : length]))
            data = data[max(_HEADER.size, length + 3 & ~3) :]
        return found

    def link(self, name: str) -> Link | None:
        """None when there is none of that name."""
        return self._look(name, _Link(), [("IFLA_IFNAME", name)])

    def link_at(self, index: int) -> Link | None:
        message = _Link()
        message["index"] = index
        return self._look(f"interface {index}", message, [])

    def _look(self, about: str, message: Any, attributes: Attributes) -> Link | None:
        whole = [*attributes, ("IFLA_EXT_MASK", _SKIP_STATISTICS)]
        try:
            found = self._ask(_request(f"look at {about}", _GETLINK, ACK, message, whole), _Link)
        except Refused as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return _link(found[0]) if found else None

    def need(self, name: str) -> Link:
        """NetworkError when there is none."""
        if (found := self.link(name)) is None:
            raise NetworkError(f"there is no interface {name}")
        return found

    def addresses(self, link: Link) -> set[str]:
        """Its addresses with their prefix lengths, "10.1.2.3/24"."""
        message = _Address()
        message["index"] = link.number
        request = _request(f"list the addresses of {link.name}", _GETADDR, DUMP, message, [])
        answers = [answer for answer in self._ask(request, _Address) if answer["index"] == link.number]
        return {f"{answer.get_attr('IFA_LOCAL') or answer.get_attr('IFA_ADDRESS')}/{answer['prefixlen']}"
                for answer in answers}  # fmt: skip

    def routes(self, link: Link | None = None) -> list[tuple[str, str, int]]:
        """(destination, gateway, index of the interface) of the main table's unicast routes."""
        return [found for family in (_socket.AF_INET, _socket.AF_INET6) for found in self._routes(family, link)]

    def _routes(self, family: int, link: Link | None) -> list[tuple[str, str, int]]:
        message = _Route()
        message["family"], message["table"], message["type"] = family, _MAIN, _UNICAST
        attributes: Attributes = [("RTA_OIF", link.number)] if link else []
        try:
            answers = self._ask(_request("list the routes", _GETROUTE, DUMP, message, attributes), _Route)
        except Refused as error:
            if error.errno == errno.ENOENT:  # Not one route yet, and therefore no table.
                return []
            raise
        nowhere = "::" if family == _socket.AF_INET6 else "0.0.0.0"  # noqa: S104
        return [(f"{answer.get_attr('RTA_DST') or nowhere}/{answer['dst_len']}", answer.get_attr("RTA_GATEWAY") or "",
                 answer.get_attr("RTA_OIF") or 0) for answer in answers if answer["family"] == family]  # fmt: skip

    def queues(self, link: Link) -> set[str]:
        """The kinds of its queueing disciplines."""
        message = queueing()
        message["index"] = link.number
        request = _request(f"list the queues of {link.name}", _GETQDISC, DUMP, message, [])
        answers = self._ask(request, type(message))
        return {answer.get_attr("TCA_KIND") for answer in answers if answer["index"] == link.number}


def _sequenced(data: bytes, sequence: int) -> bytes:
    return data[:8] + struct.pack("=I", sequence) + data[12:]


def _failure(about: str, kind: int, flags: int, body: bytes) -> list[Refused]:
    """What an NLMSG_ERROR or the NLMSG_DONE of a list says (netlink(7)); nothing when all is well."""
    number = -int(struct.unpack_from("=i", body)[0]) if len(body) >= 4 else 0
    if number <= 0:
        return []
    text = _extended(body[4 + (_HEADER.size if kind == _ERROR else 0) :]) if flags & _ACK_TLVS else ""
    word = os.strerror(number)
    word = word[:1].lower() + word[1:]
    return [Refused(about, number, f"{word} ({text})" if text else word)]


def _extended(data: bytes) -> str:
    """The kernel's own words (NLMSGERR_ATTR_MSG)."""
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if kind == _TEXT:
            return data[4:length].rstrip(b"\0").decode(errors="replace")
        data = data[max(4, length + 3 & ~3) :]
    return ""


def _link(answer: Any) -> Link:
    info = answer.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info is not None else None
    return Link(answer["index"], answer.get_attr("IFLA_IFNAME"), answer.get_attr("IFLA_ADDRESS") or "",
                bool(answer["flags"] & UP), answer.get_attr("IFLA_MTU") or 0, kind or "",
                answer.get_attr("IFLA_IFALIAS") or "", answer.get_attr("IFLA_LINK") or 0,
                answer.get_attr("IFLA_MASTER") or 0, answer.get_attr("IFLA_GROUP") or 0)  # fmt: skip
