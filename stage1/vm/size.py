"""How large a pod's machine is, from what its apps may use."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from common.records import NamedTuple
from stage1.limits import Limits
from stage1.resources import together
from stage1.vm.machine import MEBIBYTE, TRANSLATED

OVERHEAD = 128 * MEBIBYTE
"""What the guest itself takes, as rkt has it: the kernel, the initramfs in memory, the agent and the supervisor."""
_PAGES = 64
"""The kernel keeps 64 bytes about each 4096 of its memory: one part of this many."""
WITHOUT_LIMIT = 384 * MEBIBYTE
"""What apps without a limit have together."""
LEAST = 256 * MEBIBYTE
"""With less the kernel does not get as far as unpacking the initramfs."""
OUTSIDE = 256 * MEBIBYTE
"""What QEMU takes beside the guest's memory, and virtiofsd for the files the guest has open."""
PROCESSES = 1024
"""Threads of QEMU and virtiofsd, which have some for every request under way."""


class Size(NamedTuple):
    memory: int
    """Bytes of the guest's memory."""
    cpus: int
    outside: Limits
    """For QEMU and its helpers together. Processes of the apps are none of the host's, so there are always some."""


def of(
    pod: Limits,
    apps: Sequence[Limits],
    *,
    acceleration: str,
    host_memory: int,
    host_cpus: int,
    memory: int = 0,
    volumes: int = 0,
) -> Size:
    """The size for a pod with the limits `pod` and apps with the limits `apps`. `host_memory`: bytes the host has,
    `host_cpus`: processors we may use; the guest gets no more of either. `memory`: bytes it was told to have, or 0.
    `volumes`: bytes of volumes in memory, which is the host's and counts as virtiofsd's."""
    asked = memory or _memory(pod, apps)
    guest = _whole(max(LEAST, min(asked, host_memory)))
    cpus = max(1, min(-(-_cpu(pod, apps) // 1000), host_cpus))
    around = OUTSIDE + (TRANSLATED * MEBIBYTE if acceleration == "tcg" else 0)
    # The guest cannot tell what its files are on, so this is where limits of I/O are kept; and an app that is alone in
    # there has nobody to share with but other pods.
    all_apps = together(apps)
    outside = Limits(
        memory=guest + around + volumes,
        cpu=pod.cpu,
        cpu_weight=pod.cpu_weight or all_apps.cpu_weight,
        pids=PROCESSES,
        io_bandwidth=pod.io_bandwidth or all_apps.io_bandwidth,
        io_operations=pod.io_operations or all_apps.io_operations,
    )
    return Size(guest, cpus, outside)


def _memory(pod: Limits, apps: Sequence[Limits]) -> int:
    """The pod's limit is one for all its apps, whatever theirs are."""
    wanted = pod.memory or _with_rest(apps, lambda limits: limits.memory, WITHOUT_LIMIT)
    return wanted + wanted // _PAGES + OVERHEAD


def _cpu(pod: Limits, apps: Sequence[Limits]) -> int:
    """Thousandths of a processor. Apps without a limit have one together."""
    return pod.cpu or _with_rest(apps, lambda limits: limits.cpu, 1000)


def _with_rest(apps: Sequence[Limits], which: Callable[[Limits], int], rest: int) -> int:
    """What the apps may have together, `rest` being what those without a limit share. A pod without apps is one that
    some will be added to."""
    limited = [which(limits) for limits in apps]
    return sum(limited) + (0 if limited and all(limited) else rest)


def _whole(size: int) -> int:
    return -(-size // MEBIBYTE) * MEBIBYTE
