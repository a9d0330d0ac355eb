"""The programs that make a virtual machine, as distributions install them."""

from __future__ import annotations

import os
from collections.abc import Iterator

from common.errors import LaunchError

_MACHINE = "x86_64"
"""As uname(2) has it: the guest runs the host's own interpreter."""
_QEMU = "qemu-system-x86_64"
_PATH = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/libexec")
_VIRTIOFSD = (
    "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/local/libexec/virtiofsd",
)  # fmt: skip
USER = "rkpy-kvm"
"""Whom QEMU is, where there is such a user (systemd-units/rkpy.sysusers.conf)."""
_UNUSED = 0x78000000
"""The first of 2^27 numbers that belong to nobody: above what systemd and SSSD give away by default, below 2^31."""
_NOBODY = 65534


def qemu() -> str:
    """Its absolute path. LaunchError when it is not installed, or would be of no use."""
    if (machine := os.uname().machine) != _MACHINE:
        raise LaunchError(
            f"kvm needs a processor of type {_MACHINE}, and this is {machine}", hint="use another flavour"
        )
    return _find("QEMU", (f"{directory}/{_QEMU}" for directory in _PATH), "install qemu-system-x86")


def virtiofsd() -> str:
    """The same for it."""
    return _find("virtiofsd", iter(_VIRTIOFSD), "install virtiofsd, or qemu-system-common on Debian 12")


def _find(what: str, paths: Iterator[str], hint: str) -> str:
    for path in paths:
        if os.access(path, os.X_OK):
            return path
    raise LaunchError(f"kvm needs {what}, which is not installed", hint=hint)


def user(uuid: str) -> tuple[int, int]:
    """User and group that QEMU is to be, for the pod `uuid`: those of `rkpy-kvm` where there is such a user. Else a
    number that is nobody else's. Who is "nobody" too, as a daemon or an app of a pod may be, could end QEMU and look
    into the machine (ptrace(2)); it is that user only where we have no others, in a user namespace."""
    import pwd

    try:
        found = pwd.getpwnam(USER)
    except KeyError:
        number = _UNUSED + int(uuid.replace("-", "")[-8:], 16) % (1 << 27)
        return (number, number) if _has(number, "uid") and _has(number, "gid") else (_NOBODY, _NOBODY)
    return found.pw_uid, found.pw_gid


def _has(number: int, kind: str) -> bool:
    """Whether our user namespace has a user ("uid") or group ("gid") of this number (user_namespaces(7))."""
    with open(f"/proc/self/{kind}_map", encoding="ascii") as file:
        ranges = [list(map(int, line.split())) for line in file]
    return any(first <= number < first + count for first, _, count in ranges)
