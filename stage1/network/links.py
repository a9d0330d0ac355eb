"""What interfaces of pods have in common: names, hardware addresses, sysctls. Without the netlink library."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from common import syscalls
from common.errors import NetworkError, reason
from stage1.network import state
from stage1.network.firewall import GROUP as GROUP
from stage1.network.plugin import Call

_SYSCTLS = "/proc/sys/net"
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
_NAME = re.compile(r"[^\s/:%\0]{1,15}")
_HOST_END = re.compile(r"rk[0-9]+-")
_LOOPBACK_METRIC = 4096


def number(call: Call) -> int:
    """N of ethN."""
    found = re.search(r"[0-9]{1,4}\Z", call.interface, re.ASCII)
    return int(found[0]) if found else 0


def host_end(call: Call) -> str:
    """The name of a veth's end on the host."""
    return f"rk{number(call)}-{call.container[:8]}"


def host_mac(call: Call) -> str:
    """The hardware address of that end: always the same, so that the end can be told from that of a pod with a UUID
    that begins alike, and set by somebody, so that udev lets it alone (systemd.link(5), MACAddressPolicy=)."""
    try:
        bits = bytearray(bytes.fromhex(call.container.replace("-", ""))[-5:])
    except ValueError as error:
        raise NetworkError(f"{call.container} is not the UUID of a pod") from error
    bits[-1] ^= number(call) & 0xFF
    return ":".join(f"{byte:02x}" for byte in (0x06, *bits))


def pod_mac(call: Call) -> str:
    """The hardware address of the pod's end: what was asked for, or a new one."""
    return requested_mac(call) or ":".join(f"{byte:02x}" for byte in (0x02, *os.urandom(5)))


def requested_mac(call: Call) -> str:
    """By runtimeConfig, CNI_ARGS or the configuration, in the order of CNI's plugins; empty when nobody did."""
    args = call.conf.get("args")
    named = args.get("cni") if isinstance(args, dict) else None
    runtime = call.conf.get("runtimeConfig")
    places = [place for place in (runtime, named, call.args) if isinstance(place, dict)]
    for place in (*places, {"mac": call.conf.get("mac")}):
        if value := place.get("mac") or place.get("MAC"):
            return _checked_mac(call, value)
    return ""


def _checked_mac(call: Call, value: object) -> str:
    text = str(value).lower().replace("-", ":")
    if not _MAC.fullmatch(text):
        raise NetworkError(f"{value!r} is not the hardware address of one interface")
    return text


def alias(call: Call) -> str:
    return f"rkpy {call.about or call.container} network {call.conf.get('name', '')}"[:255]


def number_of(call: Call, key: str, lowest: int = 0, highest: int = 1 << 31) -> int:
    """The configuration's integer `key`; 0 when it has none."""
    value = call.conf.get(key) or 0
    if isinstance(value, bool) or not isinstance(value, int) or (value and not lowest <= value <= highest):
        raise NetworkError(f"{key} is {value!r}, not {lowest} to {highest}")
    return value


def mtu(call: Call) -> int:
    """0 for the kernel's own."""
    return number_of(call, "mtu", 68, 65535)


def interface_name(call: Call, key: str, default: str = "") -> str:
    """The configuration's `key`, the name of an interface of the host."""
    value = call.conf.get(key) or default
    if value and not is_interface_name(value):
        raise NetworkError(f"{key} {value!r} is not the name of an interface")
    return str(value)


def is_interface_name(value: object) -> bool:
    return isinstance(value, str) and bool(_NAME.fullmatch(value)) and value not in (".", "..")


def refuse(call: Call, *keys: str) -> None:
    """NetworkError when the configuration asks for one of `keys`: it wants something that we would leave out."""
    for key in keys:
        if call.conf.get(key):
            raise NetworkError(
                f"the built-in {call.conf.get('type')} does not have {key}",
                hint="a plugin program that lies in a configured directory is used instead of the built-in one",
            )


def give_back(call: Call) -> None:
    """The pod's addresses, to the plugin that gave them out; as often as wanted."""
    if call.conf.get("ipam"):
        from stage1.network import cni

        cni.ipam(call, "DEL")


@contextlib.contextmanager
def in_namespace(netns: str) -> Iterator[None]:
    """What this thread does meanwhile it does in the network namespace at that path. Raises OSError."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(there, syscalls.CLONE_NEWNET)
            yield
        finally:  # Also when a signal's handler raised something before the first step was over.
            syscalls.setns(home, syscalls.CLONE_NEWNET)
            os.close(there)
    finally:
        os.close(home)


def sysctl(*name: str) -> str:
    """The value of net.NAME in this namespace; empty when there is none of that name."""
    try:
        with open("/".join((_SYSCTLS, *name)), "rb") as file:
            return file.read().decode().strip()
    except OSError:
        return ""


def set_sysctl(value: str, *name: str) -> None:
    path = "/".join((_SYSCTLS, *name))
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise NetworkError(f"write {value} to {path}: {reason(error)}") from error


def has_ipv6() -> bool:
    """The kernel has it and nobody switched it off for the whole machine."""
    return sysctl("ipv6", "conf", "all", "disable_ipv6") == "0"


def settle(interface: str) -> None:
    """IPv6 on an interface of this namespace is what we configure and nothing else: no router is listened to, and no
    address has to wait (also not the link-local one, without which neighbours cannot be asked for)."""
    directory = ("ipv6", "conf", interface)
    for name, value in (("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0")):
        if sysctl(*directory, name) not in ("", value):
            set_sysctl(value, *directory, name)


def forward(*, ipv4: bool, ipv6: bool) -> None:
    """The host passes packets on. It stays so: others may have come to need it."""
    if ipv4 and sysctl("ipv4", "ip_forward") != "1":
        set_sysctl("1", "ipv4", "ip_forward")
    if ipv6 and sysctl("ipv6", "conf", "all", "forwarding") != "1":
        with state.lock():  # A bridge that is just being made is not settled yet.
            _keep_routers()
        set_sysctl("1", "ipv6", "conf", "all", "forwarding")


def _keep_routers() -> None:
    """A machine that forwards does not listen to routers any more, unless accept_ra is 2 (kernel: ip-sysctl.rst). One
    that got its address and its own router that way would lose them. Cables of pods that start at the same moment are
    left alone: they may be about to be told to listen to none."""
    for interface in os.listdir(f"{_SYSCTLS}/ipv6/conf"):
        foreign = interface not in ("all", "default") and not _HOST_END.match(interface)
        if foreign and sysctl("ipv6", "conf", interface, "accept_ra") == "1":
            with contextlib.suppress(NetworkError):  # It went meanwhile.
                set_sysctl("2", "ipv6", "conf", interface, "accept_ra")


def open_loopback(interface: str) -> None:
    """What programs of the host send to 127.0.0.1 and ::1 can go to a pod through `interface`, its end on the host, and
    be answered. The firewall keeps what pods themselves send there out, where the interface is of our group: an
    interface that is not is left alone, and so is the port of a bridge, which routes nothing."""
    from stage1.network import netlink

    with netlink.Netlink() as net:
        link = net.need(interface)
        if link.group != GROUP or link.master:
            return
        set_sysctl("1", "ipv4", "conf", interface, "route_localnet")
        if not has_ipv6() or sysctl("ipv6", "conf", interface, "disable_ipv6") != "0":
            return
        # An answer to ::1 is taken only by a route of the interface that it comes from.
        try:
            net.do(netlink.local_route(link, "::1", _LOOPBACK_METRIC))
        except netlink.Refused as error:
            if error.errno != errno.EEXIST:
                raise
