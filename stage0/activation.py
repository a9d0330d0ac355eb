"""Which app gets which of the sockets that a service manager listens on for the pod (sd_listen_fds(3)).

A socket is an app's by its name (FileDescriptorName= in systemd.socket(5)), else by its port: where the host has the
port published, that is the host's, as in rkt. It is decided before anything is done, and errors are UsageError.
"""

from __future__ import annotations

from _socket import (
    AF_INET,
    AF_INET6,
    SO_ACCEPTCONN,
    SO_PROTOCOL,
    SOCK_SEQPACKET,
    SOCK_STREAM,
    SOL_SOCKET,
)
from _socket import socket as Socket  # noqa: N812
from collections.abc import Callable, Iterable, Iterator, Sequence

from aci.image_manifest import App, Port
from aci.pod_manifest import ExposedPort, PodManifest
from common.errors import UsageError
from common.records import NamedTuple
from stage0.notices import warn
from stage1.flavour import PreparedPod
from stage1.plan import HandedSocket
from stage1.systemd.given import FIRST_SOCKET

MOST = 128
"""Sockets of a pod: all of an app's travel in one message, beside its mounts (`stage1.channel.MAX_FDS`)."""
_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp", 262: "tcp"}
"""By IPPROTO_*; the last is MPTCP, which those who connect need not speak."""

Apps = Sequence[tuple[str, App]]


class Listener(NamedTuple):
    """One descriptor that was handed over."""

    name: str
    protocol: str = ""
    port: int = 0
    """0 for what is no socket of the internet."""
    once: bool = False
    """A connection (Accept=yes), and nothing that connections come from."""

    def describe(self) -> str:
        return f'socket "{self.name}"' + (f" ({self.port}/{self.protocol})" if self.port else "")


def settle(pod: PreparedPod, manifest: PodManifest) -> tuple[PreparedPod, PodManifest]:
    """`pod` whose apps have their sockets, and `manifest` without the ports that the service manager listens on itself:
    nothing is to lead past it. Warns of ports that wait for a socket and get none."""
    names = pod.given.sockets
    if len(names) > MOST:
        raise UsageError(f"{len(names)} sockets were handed over, and a pod takes {MOST} at most")
    apps = [(app.name, app.app) for app in pod.apps]
    listeners = [look(name, FIRST_SOCKET + index) for index, name in enumerate(names)]
    owners = assign(listeners, apps, manifest.ports)
    kept = tuple(port for port in manifest.ports if not _is_held(port, listeners, owners, apps))
    for name, port in _forgotten(listeners, owners, apps, manifest.ports):
        warn(f'port "{port}" of app "{name}" is socket activated, and no socket came with it: nothing listens for it')
    given = [
        app._replace(
            listening=tuple(
                HandedSocket(index, listener.name, listener.once)
                for index, listener in enumerate(listeners)
                if owners[index] == app.name
            )
        )
        for app in pod.apps
    ]
    left = tuple(port.name for port in kept)
    return pod._replace(apps=tuple(given), ports=left), manifest._replace(ports=kept)


def look(name: str, fd: int) -> Listener:
    """What the descriptor is. Anything may be one: a pipe, a device (ListenFIFO=, ListenSpecial=)."""
    try:
        socket = Socket(fileno=fd)
    except OSError:
        return Listener(name)
    try:
        stream = socket.type in (SOCK_STREAM, SOCK_SEQPACKET)
        once = stream and not socket.getsockopt(SOL_SOCKET, SO_ACCEPTCONN)
        if socket.family not in (AF_INET, AF_INET6):
            return Listener(name, once=once)
        protocol = _PROTOCOLS.get(socket.getsockopt(SOL_SOCKET, SO_PROTOCOL), "")
        return Listener(name, protocol, socket.getsockname()[1], once)
    except OSError:
        return Listener(name)
    finally:
        socket.detach()


def assign(listeners: Sequence[Listener], apps: Apps, exposed: Sequence[ExposedPort] = ()) -> list[str]:
    """The app of each of `listeners`. UsageError for one that is nobody's, or could be several apps'."""
    return [_owner(listener, apps, exposed) for listener in listeners]


def _owner(listener: Listener, apps: Apps, exposed: Sequence[ExposedPort]) -> str:
    rules: tuple[Callable[[str, App], bool], ...] = (
        lambda _, section: any(port.name == listener.name for port in section.ports),
        lambda name, _: name == listener.name,
        lambda _, section: any(_listens(listener, port, exposed) for port in section.ports),
        lambda *_: len(apps) == 1,
    )
    for rule in rules:
        found = [name for name, section in apps if rule(name, section)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(
                f"{listener.describe()} could be for the apps {' and '.join(found)}",
                hint=f"say whose it is with FileDescriptorName={found[0]} in the socket unit",
            )
    if not apps:
        raise UsageError(
            f"{listener.describe()} cannot be passed to apps that are added later", hint="use rkpy run in the service"
        )
    known = [f"{port.name} of {name} ({port.port}/{port.protocol})" for name, section in apps for port in section.ports]
    there = f"there is: {', '.join(known)}" if known else "no image of this pod has ports"
    raise UsageError(
        f"{listener.describe()} belongs to no port of this pod",
        hint=f"{there}; FileDescriptorName= in the socket unit names a port or an app",
    )


def _listens(listener: Listener, port: Port, exposed: Sequence[ExposedPort]) -> bool:
    """Whether the socket is where those connect who want `port`: where the host has it, else at its own number."""
    return any(
        protocol == listener.protocol and first <= listener.port < first + port.span
        for protocol, first in _outside(port, exposed)
    )


def _outside(port: Port, exposed: Sequence[ExposedPort]) -> Iterator[tuple[str, int]]:
    published = [other for other in exposed if _leads_to(other, port)]
    for other in published:
        yield port.protocol, other.host_port + (port.port - other.pod_port.port if other.pod_port else 0)
    if not published:
        yield port.protocol, port.port


def _leads_to(exposed: ExposedPort, port: Port) -> bool:
    inner = exposed.pod_port
    if inner is None:
        return exposed.name == port.name
    return inner.protocol == port.protocol and inner.port <= port.port < inner.port + inner.span


def _is_held(port: ExposedPort, listeners: Sequence[Listener], owners: Sequence[str], apps: Apps) -> bool:
    """Whether the port of the host is the service manager's: a socket is there, or belongs to the port by its name."""
    for listener, owner in zip(listeners, owners, strict=True):
        own = [inner for name, section in apps if name == owner for inner in section.ports if _leads_to(port, inner)]
        if any(inner.name == listener.name for inner in own):
            return True
        for protocol, span in _spans(port, apps):
            if protocol == listener.protocol and port.host_port <= listener.port < port.host_port + span:
                _warn_of_the_others(port, span, listener)
                return True
    return False


def _spans(port: ExposedPort, apps: Apps) -> Iterable[tuple[str, int]]:
    if port.pod_port is not None:
        return [(port.pod_port.protocol, port.pod_port.span)]
    return [(inner.protocol, inner.span) for _, section in apps for inner in section.ports if inner.name == port.name]


def _warn_of_the_others(port: ExposedPort, span: int, listener: Listener) -> None:
    if span > 1:
        warn(f"{listener.describe()} is one of the {span} ports of --port={port.name}: the others are not published")


def _forgotten(
    listeners: Sequence[Listener], owners: Sequence[str], apps: Apps, exposed: Sequence[ExposedPort]
) -> Iterator[tuple[str, str]]:
    """Apps and their ports that wait for a socket in vain. A socket that can be told neither by name nor by port, as
    the only app of a pod may get it, could be for any of them."""
    for name, section in apps:
        own = [listener for listener, owner in zip(listeners, owners, strict=True) if owner == name]
        known = {port.name: [_is_for(listener, port, exposed) for listener in own] for port in section.ports}
        if all(map(any, zip(*known.values(), strict=True))):
            waiting = [port.name for port in section.ports if port.socket_activated]
            yield from ((name, port) for port in waiting if not any(known[port]))


def _is_for(listener: Listener, port: Port, exposed: Sequence[ExposedPort]) -> bool:
    return listener.name == port.name or _listens(listener, port, exposed)
