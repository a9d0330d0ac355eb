"""From the names of networks to what a pod is attached to: `net.d`, the built-in networks, and whether their addresses
are free on this host."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from common.errors import NetworkError, UsageError, reason
from common.records import NamedTuple
from stage0 import netd
from stage0.netd import Definition, Found, Malformed
from stage0.netflags import Arguments, Wanted
from stage1.network.plan import Network

DEFAULT, RESTRICTED = "default", "default-restricted"
SUBNETS = {DEFAULT: "172.16.28.0/24", RESTRICTED: "172.31.0.0/16"}
"""As rkt has them."""
NO_MACHINE = bytes(16)
"""Instead of the machine's ID where there is none: every such host has the same IPv6 subnets."""

_NS_GET_USERNS, _NS_GET_NSTYPE, _CLONE_NEWNET = 0xB701, 0xB703, 0x40000000


class Resolved(NamedTuple):
    """What `--net` came to."""

    networks: tuple[Network, ...]
    warnings: tuple[str, ...]


def resolve(wanted: Wanted, directories: Iterable[str]) -> Resolved:
    """The networks of a pod; `directories` are those of the configuration, lowest priority first. NetworkError for one
    that is not there, with the file that may be to blame."""
    found = netd.read(directories)
    chosen: dict[str, tuple[Definition, Arguments]] = {}
    warnings = _ignored(found, wanted)
    for name, arguments in wanted.networks:
        definition = find(name, found)
        chosen[name] = definition, arguments
        warnings += _doubts(definition, found)
    if wanted.every:
        for definition in everything(found):
            chosen.setdefault(definition.name, (definition, ()))
        warnings += [f"{malformed.source} makes no sense: {malformed.why}" for malformed in found.malformed]
    return Resolved(
        tuple(
            Network(definition.name, f"eth{index}", definition.conf, arguments, definition.source)
            for index, (definition, arguments) in enumerate(chosen.values())
        ),
        tuple(dict.fromkeys(warnings)),
    )


def everything(found: Found) -> list[Definition]:
    """What `all` means: the networks of net.d, then the default one."""
    networks = [network for network in found.networks if _usurper(network, found) is None]
    if DEFAULT in (network.name for network in networks) or any(bad.name == DEFAULT for bad in found.malformed):
        return networks
    return [*networks, builtin(DEFAULT)]


def find(name: str, found: Found) -> Definition:
    """The network called `name`. NetworkError when there is none, or its file makes no sense."""
    definition = next((network for network in found.networks if network.name == name), None)
    if definition is None and name in SUBNETS:
        definition = builtin(name, rank=len(found.networks) + len(found.malformed) + len(found.ignored))
    blame = _usurper(definition, found) if definition else next((b for b in found.malformed if b.name == name), None)
    if blame is not None:
        raise NetworkError(f'network "{name}" is defined by {blame.source}, which makes no sense: {blame.why}')
    if definition is None:
        raise NetworkError(f'there is no network "{name}"', hint=_why_not(found))
    return definition


def _usurper(definition: Definition, found: Found) -> Malformed | None:
    """The malformed file that was meant to define this network instead."""
    return next((bad for bad in found.malformed if bad.name == definition.name and bad.rank < definition.rank), None)


def _why_not(found: Found) -> str:
    suspects = [f"{bad.source} makes no sense: {bad.why}" for bad in found.malformed if not bad.name]
    if suspects:
        return f"it may be in a file that cannot be read: {suspects[0]}"
    return f"there is: {', '.join(dict.fromkeys([*(network.name for network in found.networks), *SUBNETS]))}"


def _doubts(definition: Definition, found: Found) -> list[str]:
    """Warnings of files that may have been meant to define this network instead."""
    return [
        f"{bad.source} makes no sense: {bad.why}"
        for bad in found.malformed
        if not bad.name and bad.rank < definition.rank
    ]


def _ignored(found: Found, wanted: Wanted) -> list[str]:
    """Notices of files that define a network once more beside the one that counts. That a directory of higher priority
    has another is what it is for."""
    names = {name for name, _ in wanted.networks}
    return [
        f'{loser.source} is ignored: network "{loser.name}" is defined by {winner.source}'
        for loser, winner in found.ignored
        if (wanted.every or loser.name in names) and os.path.dirname(loser.source) == os.path.dirname(winner.source)
    ]


def builtin(name: str, rank: int = 0) -> Definition:
    """The network called `default` or `default-restricted`, of both families where the host has IPv6."""
    subnets = [SUBNETS[name], *([unique_local(name)] if has_ipv6() else [])]
    ranges = [[{"subnet": subnet}] for subnet in subnets]
    plugin: dict[str, Any] = {"type": "ptp", "ipMasq": name == DEFAULT}
    plugin["ipam"] = {"type": "host-local", "ranges": ranges}
    if name == DEFAULT:
        plugin["ipam"]["routes"] = [{"dst": dst} for dst in ("0.0.0.0/0", "::/0")[: len(subnets)]]
    else:
        plugin["rkpy"] = {"restricted": True}
    document = {"cniVersion": netd.VERSIONS[-1], "name": name, "plugins": [plugin]}
    return Definition(name, json.dumps(document, separators=(",", ":")), rank=rank)


def limited(network: Network) -> Network:
    """The network with something in it that keeps a pod to its bandwidth. NetworkError where a file says otherwise: a
    limit that nobody enforces is none."""
    document = json.loads(network.conf)
    if any((plugin.get("capabilities") or {}).get("bandwidth") is True for plugin in document["plugins"]):
        return network
    if network.source:
        raise NetworkError(
            f'network "{network.name}" cannot limit the bandwidth of a pod',
            hint=f'add {{"type": "bandwidth", "capabilities": {{"bandwidth": true}}}} to {network.source}',
        )
    document["plugins"].append({"type": "bandwidth", "capabilities": {"bandwidth": True}})
    return network._replace(conf=json.dumps(document, separators=(",", ":")))


def require_publisher(networks: Sequence[Network]) -> None:
    """NetworkError when published ports could lead to none of them."""
    from stage1.network import capabilities

    if not capabilities.publisher(networks)[0]:
        names = ", ".join(network.name for network in networks)
        raise NetworkError(
            f"--port does not lead to pods of macvlan and ipvlan networks ({names}): the host does not reach them",
            hint="whoever is on the same wire does, at the pod's own address; or add a network, --net=default,…",
        )


def has_ipv6(proc: str = "/proc") -> bool:
    """Whether the kernel has IPv6 and nobody has switched it off (ip-sysctl, disable_ipv6)."""
    try:
        with open(f"{proc}/sys/net/ipv6/conf/all/disable_ipv6", "rb") as file:
            return file.read(1) == b"0" and os.path.exists(f"{proc}/net/if_inet6")
    except OSError:
        return False


def unique_local(network: str, machine_id: str = "/etc/machine-id") -> str:
    """A /64 for this network of this host (RFC 4193, section 3.2.2). The machine's ID is the key of a hash and not
    revealed, as machine-id(5) asks."""
    from _blake2 import blake2b

    key = _machine(machine_id)
    identifier = blake2b(f"rkpy network {network}".encode(), key=key, digest_size=5).hexdigest()
    digits = f"fd{identifier}"
    groups = (digits[at : at + 4].lstrip("0") or "0" for at in (0, 4, 8))
    return f"{':'.join(groups)}::/64"


def _machine(path: str) -> bytes:
    try:
        with open(path, encoding="ascii") as file:
            key = bytes.fromhex(file.read(64).strip())
    except (OSError, ValueError):
        return NO_MACHINE
    return key if len(key) == 16 else NO_MACHINE


def plugin_path(directories: Sequence[str], configured: Iterable[str]) -> tuple[str, ...]:
    """Where plugins are that stand in for built-in ones: `net.d`, the directories of paths.d, and the system's own."""
    return (*netd.folders(directories), *configured, f"{directories[0]}/plugins/net")


def check_join(path: str) -> None:
    """Raises UsageError unless `path` is a network namespace (namespaces(7)) other than ours, that we may enter."""
    import fcntl
    import stat

    about = f"--net=ns:{path}"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # To open anything else may have effects.
            raise UsageError(f"{about}: it is not a network namespace")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UsageError(f"{about}: {reason(error)}") from error
    try:
        if fcntl.ioctl(fd, _NS_GET_NSTYPE) != _CLONE_NEWNET:
            raise UsageError(f"{about}: it is a namespace, but not a network namespace")
        own = os.path.samestat(os.fstat(fd), os.stat("/proc/self/ns/net"))
        mine = _is_within_ours(fd)
    except OSError:
        raise UsageError(f"{about}: it is not a network namespace", hint="ip netns makes some in /run/netns") from None
    finally:
        os.close(fd)
    if own:
        raise UsageError(f"{about}: it is the host's own", hint="use --net=host")
    if not mine:
        raise UsageError(f"{about}: it belongs to somebody else's user namespace", hint="root can join it")


def _is_within_ours(fd: int) -> bool:
    """Whether the user namespace that a namespace belongs to is ours or one below (ioctl_ns(2))."""
    import fcntl

    try:
        os.close(fcntl.ioctl(fd, _NS_GET_USERNS))
    except PermissionError:
        return False
    return True
