"""The pod's files about names: /etc/hosts, and (`resolvers`) /etc/resolv.conf.

Nobody of ours stays to answer questions: pods find each other by their /etc/hosts. A pod that comes adds its names to
the files of those that are on a network with it, and `forget` takes them out; these lines end with the pod's UUID. The
files are mounted into apps one by one and so are changed in place (a rename would leave the app with the old one), in
a way that shows a reader whole lines only.

What others are told of a pod is claimed for every network it is on (`state`: names/NETWORK/UUID): the path of its own
hosts file, then the lines. `write` and `forget` take the lock of the claims themselves.
"""

from __future__ import annotations

import json
import os
import stat
from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from common.errors import NetworkError, reason
from common.records import NamedTuple
from stage1 import poddir
from stage1.network import resolvers, state
from stage1.network.plan import Names, Network, NetworkPlan

GATEWAY_NAMES = ("host.rkpy.internal", "host.containers.internal")
_LOCAL = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")
_TAKEN = frozenset((*_LOCAL, *GATEWAY_NAMES))
"""What no pod is called by, in whatever case: resolvers do not tell a and A apart."""
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
_LINE = 400
"""musl reads hosts files through a buffer of 512 bytes."""
_LARGEST = 1 << 20
"""An app may write to its own hosts file; what it makes larger than this is its own affair from then on."""

Result = tuple[str, dict[str, Any]]
"""The name of a network, and what its plugins answered."""

_Change = Callable[[bytes], tuple[int, bytes]]
"""What a file's text becomes: all of it up to an offset, and what comes after that."""


class _Claim(NamedTuple):
    hosts: str
    """The pod's own hosts file; empty when it is not ours."""
    lines: str


class Alone(NamedTuple):
    """What a pod without peers has instead."""

    host: tuple[str, ...]
    """Addresses that lead to the host."""
    resolvers: tuple[str, ...]
    """Addresses at which the host's name servers answer that are on its loopback."""


def write(plan: NetworkPlan, results: list[Result], alone: Alone | None = None) -> list[str]:
    """Write the pod's files and tell its peers; what is not as one might wish, a line each. NetworkError when it cannot
    be done."""
    own = "" if plan.names.hosts == (("host", ""),) else poddir.etc(plan.directory, "hosts")
    warnings = resolvers.write(
        plan.directory, plan.names, [result for _, result in results], connected=bool(results),
        hidden=alone.resolvers if alone else (),
    )  # fmt: skip
    host = alone.host if alone else _host_as_seen(plan.networks, results)
    lines = {} if alone else {network: _for_others(plan, result) for network, result in _by_network(results)}
    try:
        if not lines:  # Nobody else is concerned.
            if own:
                _make(own, _head(plan, results, host))
            return warnings
        with state.lock():
            _forget(plan.uuid)
            peers = {network: _claims(network) for network in lines}
            for network, each in lines.items():
                state.write(_path(network, plan.uuid), f"{own}\n{each}")
            if own:
                told = (claim.lines for claims in peers.values() for claim in claims)
                _make(own, _head(plan, results, host) + "".join(dict.fromkeys(told)))
            for network, claims in peers.items():
                warnings += _tell(claims, _addition(lines[network]))
    except OSError as error:
        raise NetworkError(f"write hosts: {error.filename or own}: {reason(error)}") from error
    return warnings


def forget(uuid: str) -> None:
    """Take the pod's names back everywhere. NetworkError when that cannot be."""
    try:
        with state.lock():
            _forget(uuid)
    except OSError as error:
        raise NetworkError(f"forget the names of {uuid}: {error.filename or ''}: {reason(error)}") from error


def _forget(uuid: str) -> None:
    for network in _listing(state.path("names")):
        try:
            os.unlink(_path(network, uuid))
        except (FileNotFoundError, NotADirectoryError):
            continue
        _tell(_claims(network), _removal(_mark(uuid)))
        try:
            os.rmdir(state.path("names", network))
        except OSError:
            pass  # Somebody else is on it.


def _tell(peers: Iterable[_Claim], change: _Change) -> list[str]:
    """Change the hosts files of these; what could not be, a line each. Pods that are gone are nobody's concern."""
    problems = []
    for path in dict.fromkeys(claim.hosts for claim in peers if claim.hosts):
        try:
            _change(path, change)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            problems.append(f"a pod is not told of this one: {path}: {reason(error)}")
    return problems


def _addition(lines: str) -> _Change:
    added = lines.encode()

    def change(text: bytes) -> tuple[int, bytes]:
        return len(text), added if text.endswith(b"\n") or not text or not added else b"\n" + added

    return change


def _removal(end: str) -> _Change:
    """Of the lines with this end."""
    mark = end.encode()

    def change(text: bytes) -> tuple[int, bytes]:
        first = text.find(mark)
        if first < 0:
            return len(text), b""
        start = text.rfind(b"\n", 0, first) + 1
        return start, b"".join(line for line in text[start:].splitlines(True) if not line.endswith(mark))

    return change


def _change(path: str, change: _Change) -> None:
    """Rewrite a file in place so that whoever reads it meanwhile sees lines of before and lines of after."""
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST:
            return
        before = os.pread(fd, found.st_size, 0)
        start, tail = change(before)
        size = start + len(tail)
        # Empty lines over what is left of the old ones, in the same write(2): never half of one.
        data = tail + b"\n" * (len(before) - size)
        complete = not data or os.pwrite(fd, data, start) == len(data)
        if not complete or len(data) > len(tail):
            os.ftruncate(fd, size if complete else min(size, len(before)))
    finally:
        os.close(fd)


def _make(path: str, text: str) -> None:
    """A file that was not there, or is ours from an attempt before this."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(fd, "wb") as file:
        os.fchmod(fd, 0o644)
        file.write(text.encode())
        file.truncate()


def _claims(network: str) -> list[_Claim]:
    """Of the pods on a network, in the order they came."""
    found = []
    for uuid in _listing(state.path("names", network)):
        if "." in uuid:
            continue  # Half a file of somebody who was killed.
        try:
            modified, text = _content(_path(network, uuid))
        except FileNotFoundError:
            continue
        hosts, _, lines = text.partition("\n")
        found.append((modified, uuid, _Claim(hosts, lines)))
    return [claim for _, _, claim in sorted(found)]


def _content(path: str) -> tuple[int, str]:
    """When a file was written, and what it says; without what open() costs, since there may be hundreds."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        return found.st_mtime_ns, os.read(fd, found.st_size).decode()
    finally:
        os.close(fd)


def _listing(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _path(network: str, uuid: str) -> str:
    if "/" in network or network in ("", ".", ".."):
        raise NetworkError(f'"{network}" cannot be the name of a network')
    return state.path("names", network, uuid)


def _mark(uuid: str) -> str:
    return f" # pod {uuid}\n"


def _by_network(results: list[Result]) -> Iterator[Result]:
    """A pod can be on a network twice: one result for each, with the addresses of both."""
    found: dict[str, list[Any]] = {}
    for network, result in results:
        found.setdefault(network, []).extend(_ips(result))
    for network, ips in found.items():
        yield network, {"ips": ips}


def _head(plan: NetworkPlan, results: list[Result], host: Iterable[str]) -> str:
    """The part of the pod's own file that does not change."""
    names = plan.names
    addresses = [address for _, result in results for address in _addresses(result)]
    lines = [_entry(*each) for each in names.hosts]
    own = _names(names)
    lines.append(_lines("127.0.0.1", [*_LOCAL[:2], *(own if not addresses else ())]))
    lines.append(_lines("::1", _LOCAL))
    lines += [_lines(address, own) for address in addresses]
    lines += [_lines(address, GATEWAY_NAMES) for address in host]
    return "".join(lines)


def _entry(address: str, name: str) -> str:
    if not _canonical(address) or not _is_name(name):
        raise NetworkError(f'"{address}={name}" cannot be an entry of a hosts file')
    return f"{address}\t{name}\n"


def _for_others(plan: NetworkPlan, result: dict[str, Any]) -> str:
    names = _names(plan.names)
    return "".join(_lines(address, names, _mark(plan.uuid)) for address in _addresses(result)) if names else ""


def _names(names: Names) -> list[str]:
    """What a pod is called: first what is its own, then what other pods may be called too (the names of its apps)."""
    pod = names.pod_name or names.hostname
    called = [names.pod_name, names.hostname, *(f"{app}.{pod}" for app in names.apps), *names.apps]
    return [name for name in dict.fromkeys(called) if _is_name(name) and name.lower() not in _TAKEN]


def _is_name(text: str) -> bool:
    """What cannot end a line or begin a comment, nor pass for an address."""
    return 0 < len(text) < 254 and _LETTERS.issuperset(text) and not text.replace(".", "").isdigit()


def _lines(address: str, names: Iterable[str], end: str = "\n") -> str:
    lines = [address]
    for name in names:
        if len(lines[-1]) + len(name) + len(end) > _LINE and lines[-1] != address:
            lines.append(address)
        lines[-1] += f"{' ' if lines[-1] != address else chr(9)}{name}"
    return "".join(line + end for line in lines if line != address)


def _host_as_seen(networks: Iterable[Network], results: list[Result]) -> list[str]:
    """The host's addresses on the first network on which the gateway is the host."""
    ours = {network.name for network in networks if _leads_to_host(network.conf)}
    for network, result in results:
        if network in ours and (
            found := [gateway for ip in _ips(result) if (gateway := _canonical(ip.get("gateway")))]
        ):
            return found
    return []


def _leads_to_host(conf: str) -> bool:
    """On a bridge without an address, as with macvlan, the gateway is somebody else."""
    try:
        plugin = json.loads(conf)["plugins"][0]
        gateway = plugin.get("isGateway") or plugin.get("isDefaultGateway")
        return plugin["type"] == "ptp" or (plugin["type"] == "bridge" and gateway is True)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return False


def _ips(result: dict[str, Any]) -> list[dict[str, Any]]:
    ips = result.get("ips")
    return [ip for ip in ips if isinstance(ip, dict)] if isinstance(ips, list) else []


def _addresses(result: dict[str, Any]) -> list[str]:
    found = (_canonical(ip.get("address")) for ip in _ips(result))
    return list(dict.fromkeys(filter(None, found)))


def _canonical(text: Any) -> str:
    """An address without the length of its prefix; empty for what is none: it may come from a plugin."""
    if not isinstance(text, str):
        return ""
    try:
        kind = AF_INET6 if ":" in text else AF_INET
        return inet_ntop(kind, inet_pton(kind, text.partition("/")[0]))
    except (OSError, ValueError):
        return ""
