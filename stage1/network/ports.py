"""Published ports: one claim (`state`) for each protocol, port and address of the host, so that no two pods have one.

An address of the host meets itself and the wildcards it belongs to: "" is every address of both families, 0.0.0.0 and
:: are all of one. What a program of the host itself listens on is refused too, TCP and UDP: the firewall would take
the port away from it without a word.
"""

from __future__ import annotations

import _socket
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from common.errors import NetworkError
from stage1.network import owners, state

if TYPE_CHECKING:
    from stage1.network.plan import NetworkPlan, Port

_DIRECTORY = "ports"
_ANY = "any"
_SOCKETS = "/proc/thread-self/net/"
_LISTENING = {"tcp": "0A", "udp": "07"}
"""States of sockets that take what comes from anybody (include/net/tcp_states.h: TCP_LISTEN, TCP_CLOSE)."""
_MAPPED = "::ffff:"


def claim(plan: NetworkPlan) -> tuple[str, ...]:
    """Claim all the pod publishes, or nothing; the claims' names. NetworkError says who has what already."""
    wanted = names_of(plan.ports)
    if not wanted:
        return ()
    _meet_each_other(wanted)
    while True:
        with state.lock():
            taken = _taken(wanted, plan.uuid)
            if not taken:
                _meet_host(wanted)  # one at a time: we ask by taking it
                _make(wanted, plan.uuid)
                return tuple(wanted)
        uuid = _holder(taken[0])
        if not owners.reclaim(map(_path, taken)):
            raise NetworkError(f"port {describe(taken[0])} is published by {owners.describe(uuid)} already")


def require_free(ports: Iterable[Port]) -> None:
    """Raises what `claim` would if it were asked now; changes nothing."""
    wanted = names_of(ports)
    _meet_each_other(wanted)
    for name in _taken(wanted, ""):
        holder = _holder(name)
        if holder and owners.is_alive(holder):
            raise NetworkError(f"port {describe(name)} is published by {owners.describe(holder)} already")


def warnings(ports: Iterable[Port]) -> list[str]:
    """One for each address of the host that it has not got. It may come, as those of a cluster do."""
    addresses = dict.fromkeys(port.host_ip for port in ports if port.host_ip)
    return [
        f"ports are published on {address}, which is not an address of this host"
        for address in addresses
        if not _can_bind("udp", 0, address)
    ]


def release(names: Iterable[str], uuid: str) -> None:
    """Drop those of `names` that the pod has."""
    for name in names:
        if _holder(name) == uuid:
            state.release(_path(name), uuid)


def held_by(uuid: str) -> list[str]:
    """The names of a pod's claims."""
    return [name for name, holder in all_claims() if holder == uuid]


def all_claims() -> Iterator[tuple[str, str]]:
    """(name, UUID)."""
    for name in state.listing(_DIRECTORY):
        yield name, _holder(name)


def parse(name: str) -> tuple[str, int, str]:
    """(protocol, port, address of the host as in `Port.host_ip`) of a claim's name. Raises ValueError."""
    protocol, port, address = name.split("-", 2)
    return protocol, int(port), "" if address == _ANY else address


def tidy() -> None:
    """Drop what nobody can have."""
    for name, holder in list(all_claims()):
        if not holder:
            state.drop_nonsense(_path(name))


def names_of(ports: Iterable[Port]) -> list[str]:
    """What their claims are called, a claim for each number."""
    return [
        f"{port.protocol}-{number}-{port.host_ip or _ANY}"
        for port in ports
        for number in range(port.host_port, port.host_port + port.span)
    ]


def _meet_each_other(names: list[str]) -> None:
    seen: dict[tuple[str, int], list[str]] = {}
    for name in names:
        protocol, port, address = parse(name)
        others = seen.setdefault((protocol, port), [])
        if any(meet(address, other) for other in others):
            raise NetworkError(f"port {describe(name)} is published twice")
        others.append(address)


def _taken(wanted: list[str], uuid: str) -> list[str]:
    """The claims of others that stand in the way."""
    claimed: dict[tuple[str, int], list[tuple[str, str]]] = {}
    for name in state.listing(_DIRECTORY):
        try:
            protocol, port, address = parse(name)
        except ValueError:
            continue
        claimed.setdefault((protocol, port), []).append((address, name))
    found = []
    for name in wanted:
        protocol, port, address = parse(name)
        for other, theirs in claimed.get((protocol, port), ()):
            if meet(address, other) and _holder(theirs) != uuid:
                found.append(theirs)
    return found


def _make(names: list[str], uuid: str) -> None:
    """Those that are there are the pod's: it died half way, and is started again."""
    for name in names:
        try:
            state.take(_path(name), uuid)
        except FileExistsError:
            continue


def meet(one: str, other: str) -> bool:
    """Whether a packet can be for both addresses of the host."""
    if one == other or not one or not other:
        return True
    wildcards = {"0.0.0.0": ".", "::": ":"}  # noqa: S104
    same_family = (":" in one) == (":" in other)
    return same_family and (one in wildcards or other in wildcards)


# --- programs of the host


def _meet_host(names: list[str]) -> None:
    # The kernel's tables take milliseconds to read.
    names = [name for name in names if not _can_bind(*parse(name))]
    for protocol, state_of_it in _LISTENING.items():
        wanted: dict[int, list[str]] = {}
        for name in names:
            its, port, address = parse(name)
            if its == protocol:
                wanted.setdefault(port, []).append(address)
        for port, listener in _listeners(protocol, state_of_it) if wanted else ():
            # A socket on :: takes IPv4 too, unless it was told not to, which is not to be seen here.
            if any(meet(address, "" if listener == "::" else listener) for address in wanted.get(port, ())):
                where = {"0.0.0.0": "all addresses", "::": "all addresses"}.get(listener, listener)  # noqa: S104
                raise NetworkError(
                    f"port {port}/{protocol} is in use by a program of the host that listens on {where}",
                    hint=f"see ss -l -p, and publish another port or a certain address: --port=NAME:ADDRESS:{port}",
                )


def _can_bind(protocol: str, port: int, address: str) -> bool:
    """If so, nobody listens there; if not, it need not be somebody who listens."""
    family = _socket.AF_INET if "." in address else _socket.AF_INET6
    try:
        found = _socket.socket(family, _socket.SOCK_STREAM if protocol == "tcp" else _socket.SOCK_DGRAM)
        try:
            if family == _socket.AF_INET6:
                found.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, int(address != ""))
            found.bind((address or "::", port))
        finally:
            found.close()
        return True
    except OSError:
        return False


def _listeners(protocol: str, wanted_state: str) -> Iterator[tuple[int, str]]:
    """(port, address) of what listens in our network namespace (proc_pid_net(5))."""
    for table in (protocol, f"{protocol}6"):
        try:
            with open(f"{_SOCKETS}{table}", encoding="ascii", errors="replace") as file:
                next(file, None)
                for line in file:
                    fields = line.split()
                    if fields[3] == wanted_state:
                        address, _, port = fields[1].partition(":")
                        yield int(port, 16), _address(address)
                    elif protocol == "tcp":
                        break  # those that listen come first
        except FileNotFoundError:
            continue  # a kernel without IPv6


def _address(text: str) -> str:
    """Words of 32 bits, each as the machine has it in memory."""
    raw = b"".join(int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8))
    if len(raw) == 4:
        return _socket.inet_ntop(_socket.AF_INET, raw)
    return _socket.inet_ntop(_socket.AF_INET6, raw).removeprefix(_MAPPED)


def _path(name: str) -> str:
    return state.path(_DIRECTORY, name)


def _holder(name: str) -> str:
    return state.holder(_path(name))


def describe(name: str) -> str:
    """8080/tcp, with the address if it is only one."""
    protocol, port, address = parse(name)
    number = f"{port}/{protocol}"
    return f"{number} of {address}" if address else number
