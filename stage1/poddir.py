"""Where things lie inside a pod directory; the on-disk half of the contract between stage0 and a flavour.

    lock                      OFD-locked by whoever works on the pod, then by the pod itself while it lives
    pod                       the pod manifest (JSON)
    pod-created               empty; its mtime is the creation time
    flavour                   the name of the stage1 flavour
    pid                       "PID STARTTIME MNTNS BOOT": the pod's leader; its mtime is the start time
    starting                  there while a flavour that needs time to start the apps has recorded its leader already
    appsinfo/APP/manifest     the image manifest the app was made from
    appsinfo/APP/layers       the names of the layers below the app's root, lowest first, one a line
    overlay/APP/{upper,work}  what the app wrote (absent for a copied root)
    rootfs/APP                where the app's root appears, or the copied root itself
    volumes/NAME              empty volumes
    status/APP                exit status of the app, decimal
    logs/APP                  what the app has written, older files as APP.1, … (stage1.logs)

The layout is documented for users in docs/on-disk-format.md.
"""

from __future__ import annotations

import os
from typing import NamedTuple

LOCK = "lock"
MANIFEST = "pod"
CREATED = "pod-created"
FLAVOUR = "flavour"
PID = "pid"
STARTING = "starting"


def app_info(pod: str, app: str, name: str) -> str:
    return f"{pod}/appsinfo/{app}/{name}"


def rootfs(pod: str, app: str) -> str:
    return f"{pod}/rootfs/{app}"


def overlay(pod: str, app: str) -> str:
    return f"{pod}/overlay/{app}"


def volume(pod: str, name: str) -> str:
    return f"{pod}/volumes/{name}"


def status(pod: str, app: str) -> str:
    return f"{pod}/status/{app}"


class Leader(NamedTuple):
    """The process a pod stands and falls with, named so that a reused PID cannot be taken for it."""

    pid: int
    start_time: int
    """Clock ticks after boot, field 22 of /proc/PID/stat (proc(5))."""
    mount_namespace: int
    """Inode number of /proc/PID/ns/mnt: every process of a fly pod shares it."""

    boot_id: str
    """/proc/sys/kernel/random/boot_id: what a boot starts early has the same PID and start time in every boot."""

    def is_alive(self) -> bool:
        return start_time(self.pid) == self.start_time and boot_id() == self.boot_id


def boot_id() -> str:
    """The kernel's name for this boot (random(4))."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def start_time(pid: int) -> int | None:
    """When process `pid` started, in clock ticks after boot; None when there is no such process or it is a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def write_leader(pod: str, pid: int) -> None:
    """Record `pid` as the pod's leader; written whole or not at all."""
    mount_namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
    partial = f"{pod}/{PID}.new"
    with open(partial, "w", encoding="ascii") as file:
        file.write(f"{pid} {start_time(pid)} {mount_namespace} {boot_id()}\n")
    os.rename(partial, f"{pod}/{PID}")


def read_leader(pod: str) -> Leader | None:
    """The recorded leader, or None when the pod never got one."""
    try:
        with open(f"{pod}/{PID}", encoding="ascii") as file:
            pid, started, namespace, boot = file.read().split()
        return Leader(int(pid), int(started), int(namespace), boot)
    except (FileNotFoundError, ValueError):
        return None


def read_status(pod: str, app: str) -> int | None:
    """The recorded exit status of `app`, or None when there is none that makes sense."""
    try:
        with open(status(pod, app), encoding="ascii") as file:
            return int(file.read(32))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
