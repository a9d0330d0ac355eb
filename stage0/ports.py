"""Ports that are published on the host: what `--port` says, and what it comes to once the images are known.

rkt's form names a port of an image, people type podman's. Either is kept in the pod manifest as an exposed port, the
second with the pod's own port in it. All raise UsageError.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aci.image_manifest import App
from aci.image_manifest import Port as ImagePort
from aci.pod_manifest import ExposedPort
from aci.types import ac_name, sanitise_name
from common import addresses
from common.errors import UsageError
from stage1.network.plan import Port

PROTOCOLS = ("tcp", "udp")
LAST = 65535
_ANY = {"": (4, 6), "0.0.0.0": (4,), "::": (6,)}  # noqa: S104
"""Host addresses that mean all of these families."""
_MAPPED = "::ffff:"
_FORMS = "NAME:[HOSTIP:]HOSTPORT or [HOSTIP:]HOSTPORT:PODPORT[/udp]"


def exposed(text: str) -> ExposedPort:
    """`NAME:[HOSTIP:]HOSTPORT`, or `[HOSTIP:]HOSTPORT[-LAST]:PODPORT[-LAST][/tcp|/udp]`. An IPv6 HOSTIP stands in
    brackets. A first word of digits is a port of the host, never a name."""
    first = text.partition(":")[0]
    if text.startswith("[") or _is_ipv4(first) or not first.strip("0123456789-"):
        return _by_number(text)
    name, _, rest = text.partition(":")
    ip, number = _outside(text, rest)
    return ExposedPort(name=ac_name(name), host_port=_number(text, number), host_ip=ip)


def exposed_with_pod_port(text: str) -> ExposedPort:
    """`NAME:PROTOCOL:PODPORT:[HOSTIP:]HOSTPORT`, for a pod whose apps are not known yet; or as `exposed` has it without
    a name."""
    name, *rest = text.split(":", 3)
    if len(rest) < 3 or rest[0] not in PROTOCOLS:
        found = exposed(text)
        if found.pod_port is None:
            raise UsageError(f"--port={text}: it takes NAME:PROTOCOL:PODPORT:[HOSTIP:]HOSTPORT")
        return found
    ip, number = _outside(text, rest[2])
    inner = ImagePort(ac_name(name, strict=True), rest[0], _number(text, rest[1]), 1, socket_activated=False)
    return ExposedPort(name=name, host_port=_number(text, number), host_ip=ip, pod_port=inner)


def _is_ipv4(text: str) -> bool:
    try:
        return addresses.number(text)[0] == 4
    except ValueError:
        return False


def _by_number(text: str) -> ExposedPort:
    ports, slash, protocol = text.partition("/")
    if slash and protocol not in PROTOCOLS:
        raise UsageError(f'--port={text}: "{protocol}" is neither tcp nor udp')
    outside, colon, inside = ports.rpartition(":")
    if not colon or not outside or outside.endswith("]") or _is_ipv4(outside):
        raise UsageError(f"--port={text}: it does not say which port of the host", hint=_FORMS)
    ip, host = _outside(text, outside)
    (first, last), (inner, inner_last) = _range(text, host), _range(text, inside)
    if last - first != inner_last - inner:
        raise UsageError(f"--port={text}: the two ranges are not of one length")
    protocol = protocol or "tcp"
    name = sanitise_name(f"{ip} {host} {inside} {protocol}".strip())
    port = ImagePort(name, protocol, inner, last - first + 1, socket_activated=False)
    return ExposedPort(name=name, host_port=first, host_ip=ip, pod_port=port)


def _outside(text: str, rest: str) -> tuple[str, str]:
    """The address, canonical, and the port of `[HOSTIP:]HOSTPORT`."""
    ip, colon, number = rest.rpartition(":")
    if not colon:
        return "", number
    bare = ip.removeprefix("[").removesuffix("]") if ip.startswith("[") and ip.endswith("]") else ip
    if ":" in ip and bare == ip:
        raise UsageError(f"--port={text}: it takes {_FORMS}", hint="an IPv6 address stands in brackets")
    try:
        return addresses.canonical(bare), number
    except ValueError as error:
        raise UsageError(f"--port={text}: {error}", hint=_FORMS) from None


def _range(text: str, part: str) -> tuple[int, int]:
    first, dash, last = part.partition("-")
    low = _number(text, first)
    high = _number(text, last) if dash else low
    if high < low:
        raise UsageError(f"--port={text}: the range {part} is empty")
    return low, high


def _number(text: str, digits: str) -> int:
    if not digits.isascii() or not digits.isdigit() or len(digits) > 5 or not 0 < int(digits) <= LAST:
        raise UsageError(f'--port={text}: "{digits}" is not a port from 1 to {LAST}', hint=_FORMS)
    return int(digits)


def resolve(wanted: Iterable[ExposedPort], apps: Sequence[tuple[str, App]]) -> tuple[Port, ...]:
    """What is to be published, each with the pod's own ports; `apps` are those of the pod by name."""
    found: list[tuple[Port, str]] = []
    for port in wanted:
        made, typed = _resolved(port, apps), _shown(port)
        for other, before in found:
            if _clash(made, other):
                raise UsageError(f"--port={typed} and --port={before} want one port of the host")
        found.append((made, typed))
    return tuple(port for port, _ in found)


def _resolved(port: ExposedPort, apps: Sequence[tuple[str, App]]) -> Port:
    inner = port.pod_port or _of_an_app(port.name, apps)
    if inner.protocol not in PROTOCOLS:
        raise UsageError(f'--port={port.name}: protocol "{inner.protocol}" cannot be published', hint="tcp or udp can")
    if port.host_ip.startswith(_MAPPED):
        raise UsageError(f"--port={port.name}: {port.host_ip} is an IPv4 address", hint=port.host_ip[len(_MAPPED) :])
    if port.host_port + inner.span - 1 > LAST or inner.port + inner.span - 1 > LAST:
        raise UsageError(f"--port={port.name}:{port.host_port}: of its {inner.span} ports the last is above {LAST}")
    return Port(port.name, inner.protocol, port.host_ip, port.host_port, inner.port, inner.span)


def _of_an_app(name: str, apps: Sequence[tuple[str, App]]) -> ImagePort:
    owners = [(app, port) for app, section in apps for port in section.ports if port.name == name]
    if not owners:
        known = sorted({port.name for _, section in apps for port in section.ports})
        hint = f"there is: {', '.join(known)}" if known else f"name it by number: {_FORMS}"
        raise UsageError(f"--port={name}: no image of this pod has a port of that name", hint=hint)
    first, port = owners[0]
    for app, other in owners[1:]:
        if (other.protocol, other.port, other.span) != (port.protocol, port.port, port.span):
            raise UsageError(
                f'--port={name}: apps "{first}" and "{app}" have different ports of that name',
                hint=f"name it by number: HOSTPORT:{port.port} or HOSTPORT:{other.port}",
            )
    return port


def _clash(one: Port, other: Port) -> bool:
    return (
        one.protocol == other.protocol
        and one.host_port < other.host_port + other.span
        and other.host_port < one.host_port + one.span
        and _share_an_address(one.host_ip, other.host_ip)
    )


def _share_an_address(one: str, other: str) -> bool:
    if one in _ANY and other in _ANY:
        return not set(_ANY[one]).isdisjoint(_ANY[other])
    if one in _ANY or other in _ANY:
        general, special = (one, other) if one in _ANY else (other, one)
        return addresses.version(special) in _ANY[general]
    return one == other


def _shown(port: ExposedPort) -> str:
    """As somebody may have typed it."""
    ip = f"[{port.host_ip}]:" if ":" in port.host_ip else f"{port.host_ip}:" if port.host_ip else ""
    inner = port.pod_port
    if inner is None:
        return f"{port.name}:{ip}{port.host_port}"
    outside, inside = (
        f"{first}-{first + inner.span - 1}" if inner.span > 1 else str(first) for first in (port.host_port, inner.port)
    )
    return f"{ip}{outside}:{inside}/{inner.protocol}"
