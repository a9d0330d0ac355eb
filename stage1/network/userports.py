"""Published ports of the pods of ordinary users. Nothing is claimed for them (`ports`): pasta listens, and the kernel
gives a port to one program only. They are tried before a pod starts, so that what is in the way has a name."""

from __future__ import annotations

import _socket
import errno
import os
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

from common.addresses import version as version_of
from common.errors import NetworkError, reason
from stage1 import poddir
from stage1.network import ports, record, usermode

if TYPE_CHECKING:
    from stage1.network.plan import Port

_EVERY = {4: "0.0.0.0", 6: "::"}  # noqa: S104
_PRIVILEGED = "/proc/sys/net/ipv4/ip_unprivileged_port_start"


def require_bindable(published: Iterable[Port], families: Container[int], directory: str) -> None:
    """NetworkError for a port that the pod in `directory` could not have, as far as one can tell. `families`: the IP
    versions that the pod has."""
    seen: set[tuple[str, int]] = set()
    for name in ports.names_of(published):
        protocol, port, address = ports.parse(name)
        if (protocol, port) in seen:
            raise NetworkError(f"port {port}/{protocol} cannot be published twice: pasta does so on one address or all")
        seen.add((protocol, port))
        hosts = [address] if address else [_EVERY[version] for version in _EVERY if version in families]
        for host in hosts:
            if address and version_of(host) not in families:
                raise NetworkError(
                    f"port {ports.describe(name)} cannot be published: the pod has no IPv{version_of(host)}"
                )
            try:
                _listen(protocol, port, host)
            except OSError as error:
                raise _unbindable(error, name, directory) from None


def _listen(protocol: str, port: int, address: str) -> None:
    """Do so for a moment. Raises OSError."""
    family = _socket.AF_INET6 if ":" in address else _socket.AF_INET
    found = _socket.socket(family, _socket.SOCK_STREAM if protocol == "tcp" else _socket.SOCK_DGRAM)
    try:
        if family == _socket.AF_INET6:
            found.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
        if protocol == "tcp":  # Connections that are just ending are in nobody's way.
            found.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        found.bind((address, port))
        if protocol == "tcp":
            found.listen(1)
    finally:
        found.close()


def _unbindable(error: OSError, name: str, directory: str) -> NetworkError:
    """Why the port cannot be had, of what bind(2) and listen(2) say."""
    port, address = ports.parse(name)[1:]
    if error.errno == errno.EACCES:
        with open(_PRIVILEGED, encoding="ascii") as file:
            first = file.read().strip()
        others = f"ports of others begin at {first} (net.ipv4.ip_unprivileged_port_start)"
        return NetworkError(f"port {ports.describe(name)} is for root: {others}", hint="publish another port")
    if error.errno == errno.EADDRNOTAVAIL:
        return NetworkError(
            f"port {ports.describe(name)} cannot be published: {address} is not an address of this host"
        )
    if error.errno != errno.EADDRINUSE:
        return NetworkError(f"port {ports.describe(name)} cannot be published: {reason(error)}")
    owner = _neighbour(name, directory)
    if owner:
        return NetworkError(f"port {ports.describe(name)} is published by {owner} already")
    return NetworkError(
        f"port {ports.describe(name)} is in use by a program of the host",
        hint=f"see ss -l -p, and publish another port or a certain address: --port=NAME:ADDRESS:{port}",
    )


def _neighbour(name: str, directory: str) -> str:
    """Which of the running pods beside that in `directory` has the port, for people; empty when none has."""
    protocol, port, address = ports.parse(name)
    running = f"{os.path.dirname(os.path.dirname(directory))}/run"
    for uuid in os.listdir(running):
        try:
            found = record.read(f"{running}/{uuid}")
        except NetworkError:
            continue
        for mapping in usermode.published(found) if found is not None else ():
            same = (mapping.get("protocol"), mapping.get("hostPort")) == (protocol, port)
            if same and ports.meet(address, str(mapping.get("hostIP", ""))) and usermode.is_alive(f"{running}/{uuid}"):
                called = poddir.read_name(f"{running}/{uuid}")
                return f'pod "{called}" ({uuid[:8]})' if called else f"pod {uuid[:8]}"
    return ""
