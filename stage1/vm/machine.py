"""The virtual machine of a pod: as it was asked for, and with everything about it decided, a part of a PodPlan."""

from __future__ import annotations

from common.records import NamedTuple
from stage1.limits import Limits

MEBIBYTE = 1 << 20
TRANSLATED = 32
"""MiB of translated code that QEMU keeps when it emulates (tb-size of -accel tcg): it would take a GiB, and never gives
back what it has once used. A start translates three times as much, most of it to run once, and takes as long with
64; with 24 a sixth longer, with 16 half as long again, because what is used all the time no longer fits."""


class MachineOptions(NamedTuple):
    """What was said about the virtual machines that pods run in; concerns flavours with MACHINES only."""

    acceleration: str = ""
    """"auto", "kvm" or "tcg"; empty for "auto"."""
    kernel: str = ""
    """Its absolute path, or its version; empty for the newest there is."""
    parameters: str = ""
    """For the kernel, besides those it gets anyway."""
    memory: int = 0
    """Bytes of the guest's memory; 0 leaves it to the limits of the apps."""
    cpu: str = ""
    """The CPU model and its features, as QEMU's -cpu has them; empty for `acceleration.CPU`."""


class Machine(NamedTuple):
    """What the monitor is to start."""

    qemu: str
    """Absolute path of qemu-system-ARCH."""
    virtiofsd: str
    """Absolute path of virtiofsd: QEMU's own, or the one in Rust, which takes the same options."""
    kernel: str
    """A file that QEMU's -kernel takes."""
    initramfs: str
    parameters: str
    """The kernel's command line, but for what `qemu` adds."""
    acceleration: str
    """"kvm" or "tcg"."""
    kind: str
    """The machine type: "q35" or "microvm"."""
    cpu: str
    """The CPU model, as -cpu has it."""
    cpus: int
    memory: int
    """Bytes of the guest's memory."""
    interfaces: int
    """How many network interfaces it has: eth0, eth1, …"""
    limits: Limits
    """Those of the pod, kept inside; the plan's own are those of QEMU and its helpers together."""
    boot_timeout: int
    """Seconds in which the agent has to report."""
    user: int
    """The host's user and group that QEMU runs as."""
    group: int
