"""The system's libseccomp: numbers of system calls, and filters by name (seccomp_init(3) and the pages it names).

Beside `common.syscalls` the only module that imports ctypes. It is not loaded where an app is launched: there filters
are bytes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator

from common.errors import LaunchError
from common.records import NamedTuple

KILL = 0x80000000
"""SECCOMP_RET_KILL_PROCESS: every thread, by SIGSYS."""
ALLOW = 0x7FFF0000
_ERRNO = 0x00050000

_FLTATR_ACT_BADARCH = 2
_FLTATR_CTL_OPTIMIZE = 8
_BINARY_TREE = 2
_NR_SCMP_ERROR = -1

_MULTIPLEXED = range(-299, -100)
_MULTIPLEXED_BELOW = 424
"""Calls that had no number of their own at first got one before the numbers became common to all machines."""

_LITTLE_ENDIAN_32, _LITTLE_ENDIAN_64 = 0x40000000, 0xC0000000
X86_64 = 62 | _LITTLE_ENDIAN_64
X86 = 3 | _LITTLE_ENDIAN_32
X32 = 62 | _LITTLE_ENDIAN_32
AARCH64 = 183 | _LITTLE_ENDIAN_64
ARM = 40 | _LITTLE_ENDIAN_32
_COMPATIBLE = {X86_64: (X86, X32), AARCH64: (ARM,)}
"""Other machines a kernel runs programs of (linux/audit.h); elsewhere only the machine's own are let in."""
_SEEN_AS = {X32: X86_64}
"""The kernel tells x32 by the numbers of its calls only."""


class Layer(NamedTuple):
    """A filter by names: what becomes of the calls listed, and of every other."""

    default: int
    rules: tuple[tuple[str, int], ...]
    """System calls and what becomes of each."""


def fail_with(number: int) -> int:
    """The action that makes a call fail with error `number`."""
    return _ERRNO | number


def all_of(calls: Iterable[str], action: int) -> tuple[tuple[str, int], ...]:
    """Rules that do the same with each of `calls`."""
    return tuple((call, action) for call in calls)


class Library:
    """The library, loaded. LaunchError when it is not there: no app runs unfiltered for want of it."""

    def __init__(self) -> None:
        try:
            self._lib = ctypes.CDLL("libseccomp.so.2")
            self._lib.seccomp_version.restype = ctypes.POINTER(ctypes.c_uint * 3)
            self._lib.seccomp_init.restype = ctypes.c_void_p
            self._lib.seccomp_arch_native.restype = ctypes.c_uint32
            self.version = ".".join(map(str, self._lib.seccomp_version().contents))
            native = self._lib.seccomp_arch_native()
        except (OSError, AttributeError) as error:
            raise LaunchError(
                "cannot make a system call filter: there is no usable libseccomp.so.2",
                hint="install libseccomp2, or run without filters: --insecure-options=seccomp",
            ) from error
        self._machines = (native, *_COMPATIBLE.get(native, ()))

    def knows(self, call: str) -> bool:
        """Whether any machine has a system call of this name."""
        return bool(self._number(call) != _NR_SCMP_ERROR)

    def numbers(self, call: str) -> Iterator[tuple[int, int]]:
        """Every machine whose programs run here (AUDIT_ARCH_…) with a number `call` has on it."""
        for machine in self._machines:
            number = self._lib.seccomp_syscall_resolve_name_arch(ctypes.c_uint32(machine), call.encode())
            if number in _MULTIPLEXED:
                number = self._own_number(machine, call)
            if number >= 0:
                yield _SEEN_AS.get(machine, machine), number

    def _own_number(self, machine: int, call: str) -> int:
        """The number of a call that socketcall(2) or ipc(2) can make as well; -1 when that is the only way."""
        resolve = self._lib.seccomp_syscall_resolve_num_arch
        resolve.restype = ctypes.c_void_p  # To be freed with the process: this runs once for a new filter.
        for number in range(_MULTIPLEXED_BELOW):
            found = resolve(ctypes.c_uint32(machine), ctypes.c_int(number))
            if found and ctypes.string_at(found) == call.encode():
                return number
        return _NR_SCMP_ERROR

    def compile(self, layer: Layer) -> bytes:
        """The program of `layer`, an array of struct sock_filter. Rules about calls this machine has not are left out.
        A program of a machine that is not one of ours is killed."""
        context = ctypes.c_void_p(self._lib.seccomp_init(ctypes.c_uint32(layer.default)))
        if not context:
            raise LaunchError("cannot make a system call filter: seccomp_init failed")
        try:
            self._set(context, _FLTATR_ACT_BADARCH, KILL)
            self._set(context, _FLTATR_CTL_OPTIMIZE, _BINARY_TREE)
            # Before any rule: one made earlier would not be for them.
            for machine in self._machines[1:]:
                self._check("seccomp_arch_add", self._lib.seccomp_arch_add(context, ctypes.c_uint32(machine)))
            for call, action in layer.rules:
                if action != layer.default and self.knows(call):
                    self._add(context, call, action)
            return self._export(context)
        finally:
            self._lib.seccomp_release(context)

    def _number(self, call: str) -> int:
        return int(self._lib.seccomp_syscall_resolve_name(call.encode()))

    def _set(self, context: ctypes.c_void_p, attribute: int, value: int) -> None:
        result = self._lib.seccomp_attr_set(context, ctypes.c_int(attribute), ctypes.c_uint32(value))
        self._check("seccomp_attr_set", result)

    def _add(self, context: ctypes.c_void_p, call: str, action: int) -> None:
        number, none = ctypes.c_int(self._number(call)), ctypes.c_uint(0)
        result = self._lib.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, none, None)
        self._check(f'seccomp_rule_add of "{call}"', result)

    def _export(self, context: ctypes.c_void_p) -> bytes:
        fd = os.memfd_create("filter", os.MFD_CLOEXEC)
        with open(fd, "rb") as file:
            self._check("seccomp_export_bpf", self._lib.seccomp_export_bpf(context, ctypes.c_int(fd)))
            file.seek(0)
            return file.read()

    def _check(self, call: str, result: int) -> None:
        if result < 0:
            raise LaunchError(f"cannot make a system call filter: {call}: {os.strerror(-result)}")
