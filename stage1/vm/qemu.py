"""QEMU, started and confined: the process that is the pod's virtual machine.

It is PID 1 of a PID namespace, so that what else runs in there (virtiofsd) ends with it, and has mount, IPC, UTS and
network namespaces of its own. It is nobody in particular on the host, without capabilities, sees a read-only root with
the system's libraries and the guest's kernel, is filtered by its own seccomp rules ("-sandbox" in qemu(1)), and holds a
handful of descriptors. Only SIGKILL ends it, and that comes of itself when the monitor ends.

Nothing is said to it afterwards: there is no monitor of its own (QMP). Whatever the guest makes of it, it has what is
in this module and not more.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socketpair
from _socket import socket as Socket  # noqa: N812
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import NoReturn

from common import syscalls
from common.errors import LaunchError, reason
from common.records import NamedTuple
from stage1.plan import PodPlan
from stage1.vm import confinement
from stage1.vm.confinement import Shown
from stage1.vm.frames import PORT, TAG
from stage1.vm.machine import TRANSLATED, Machine
from stage2.launch import forget_keys

KERNEL, INITRAMFS = "/kernel", "/initramfs"
"""Where QEMU has them."""
KVM = "/dev/kvm"
_KIB = 1 << 10
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
"""What QEMU, and whoever has taken it over, need not do (its seccomp filter)."""
MACHINES = {
    "q35": "q35,usb=off,sata=off,smbus=off,vmport=off",
    "microvm": "microvm,acpi=on,pcie=off,usb=off,rtc=on,pit=off,pic=off",
}
"""What the types of machines are without what no guest of ours looks for."""
_BUSES = {"q35": "-pci", "microvm": "-device"}
"""How the names of virtio devices end, by the bus that such a machine has them on."""
_PORT_FD, _CONSOLE_FD, _SHARE_FD, _FIRST_TAP = 3, 4, 5, 6


class Started(NamedTuple):
    """QEMU, and our ends of what it has."""

    pid: int
    pidfd: int
    port: int
    """The port of virtio-serial the agent is at: a stream socket, non-blocking."""
    console: int
    """What the guest writes to its console, likewise."""
    errors: int
    """What QEMU and virtiofsd say: a pipe to be read, non-blocking."""
    share: int
    """The socket that virtiofsd listens on: QEMU waits for it. `share.serve` takes this one and the next."""
    complaints: int
    """The other end of `errors`."""


def start(machine: Machine, plan: PodPlan, cgroup: int) -> Started:
    """Start it in the cgroup that the descriptor `cgroup` is of (-1: in ours), in the monitor's own mount namespace and
    by a process of one thread. It runs once something listens at `share`. LaunchError when it cannot be."""
    with ExitStack() as theirs, ExitStack() as ours:
        try:
            port, console = _pair(ours, theirs), _pair(ours, theirs)
            listening, connected = _socket_of_share(plan.directory)
            theirs.callback(os.close, connected)
            ours.callback(os.close, listening)
            errors, complaints = os.pipe()
            for fd in (errors, complaints):
                ours.callback(os.close, fd)
            os.set_blocking(errors, False)
            parent = os.pidfd_open(os.getpid())
            theirs.callback(os.close, parent)
        except OSError as error:
            raise LaunchError(f"cannot start QEMU: {reason(error)}") from error
        fds = [complaints, port[1], console[1], connected]
        pid, pidfd = confinement.spawn(
            "QEMU",
            confinement.NAMESPACES | syscalls.CLONE_NEWPID,
            cgroup,
            lambda last: _become(machine, plan.uuid, fds, parent, last),
        )
        ours.pop_all()
    return Started(pid, pidfd, port[0], console[0], errors, listening, complaints)


def _pair(ours: ExitStack, theirs: ExitStack) -> tuple[int, int]:
    """A pair of connected sockets, the first of them non-blocking."""
    pair = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    first, second = pair[0].detach(), pair[1].detach()
    ours.callback(os.close, first)
    theirs.callback(os.close, second)
    os.set_blocking(first, False)
    return first, second


def _socket_of_share(directory: str) -> tuple[int, int]:
    """A listening socket, and one connected to it: neither QEMU's nor virtiofsd's takes a pair. Its name is gone when
    this returns, and with it all other ways to connect."""
    place = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    listening = Socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    connected = Socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        # The address of a Unix socket has room for 107 bytes (unix(7)).
        name = f"/proc/self/fd/{place}/share.socket"
        with suppress(FileNotFoundError):
            os.unlink(name)
        umask = os.umask(0o177)
        try:
            listening.bind(name)
        finally:
            os.umask(umask)
        listening.listen(1)
        connected.connect(name)
        os.unlink(name)
        return listening.detach(), connected.detach()
    finally:
        os.close(place)
        listening.close()
        connected.close()


def _become(machine: Machine, uuid: str, fds: Sequence[int], parent: int, last: int) -> NoReturn:
    """In the child: from the monitor's copy to QEMU."""
    taps = _open_taps(machine.interfaces)
    shown = [Shown(confinement.clone(machine.kernel, recursive=False), KERNEL)]
    shown.append(Shown(confinement.clone(machine.initramfs, recursive=False), INITRAMFS))
    shown.append(confinement.node(os.devnull))
    groups = []
    if machine.acceleration == "kvm":
        groups.append(os.stat(KVM).st_gid)
        shown.append(confinement.node(KVM))
    confinement.enter_root(machine.qemu, shown)
    forget_keys()
    confinement.settle()
    confinement.bound()
    confinement.become(machine.user, machine.group, groups)
    confinement.die_with(parent)
    null = os.open(os.devnull, os.O_RDWR)
    complaints, port, console, share = fds
    confinement.execute(argv(machine, uuid), (null, complaints, complaints, port, console, share, *taps), last)


def _open_taps(count: int) -> list[int]:
    if not count:
        return []
    from stage1.vm.tap import open_tap

    return [open_tap(number) for number in range(count)]


def argv(machine: Machine, uuid: str) -> list[str]:
    """QEMU's command line. Its descriptors are known by their numbers: port, console, share, and then the taps."""
    size = f"{machine.memory // _KIB}K"
    bus = _BUSES[machine.kind]
    words = [machine.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    words += ["-name", f"rkpy-{uuid}", "-sandbox", SANDBOX]
    words += ["-machine", f"{MACHINES[machine.kind]},memory-backend=memory,dump-guest-core=off"]
    words += ["-accel", f"tcg,tb-size={TRANSLATED}" if machine.acceleration == "tcg" else machine.acceleration]
    words += ["-cpu", machine.cpu, "-smp", str(machine.cpus), "-m", size]
    # Shared with virtiofsd, which finds in it what the guest wants read and written.
    words += ["-object", f"memory-backend-memfd,id=memory,size={size},share=on"]
    words += ["-kernel", KERNEL, "-initrd", INITRAMFS, "-append", machine.parameters]
    words += ["-chardev", f"socket,id=console,fd={_CONSOLE_FD}", "-serial", "chardev:console"]
    words += ["-chardev", f"socket,id=port,fd={_PORT_FD}", "-device", f"virtio-serial{bus},max_ports=2"]
    words += ["-device", f"virtserialport,chardev=port,name={PORT}"]
    words += ["-chardev", f"socket,id=share,fd={_SHARE_FD}", "-device", f"vhost-user-fs{bus},chardev=share,tag={TAG}"]
    if machine.acceleration != "tcg":  # whose processor gives the kernel randomness
        words += ["-device", f"virtio-rng{bus}"]
    words += ["-device", f"virtio-balloon{bus},free-page-reporting=on"]
    for number in range(machine.interfaces):
        words += ["-netdev", f"tap,id=net{number},fd={_FIRST_TAP + number}"]
        device = f"virtio-net{bus},netdev=net{number},mac={hardware_address(uuid, number)}"
        words += ["-device", f"{device},romfile=" if bus == "-pci" else device]
    return words


def hardware_address(uuid: str, number: int) -> str:
    """A MAC address of our own making (bit 1 of the first byte, IEEE 802) for interface `number` of the pod."""
    digits = uuid.replace("-", "")[-8:]
    return ":".join(("02", *(digits[at : at + 2] for at in range(0, 8, 2)), f"{number:02x}"))
