"""What a test run may leave behind on the machine, looked at before and after.

Processes are told apart exactly: the test session is a subreaper (prctl(2)), so whatever outlives the process that
started it becomes the session's child. Everything else is compared by name, and only what carries a mark of rkpy or of
the session's own directories counts, because other work may go on beside the tests; with RKPY_TESTS_MUST_RUN=1, where
the machine belongs to the tests, every difference counts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import time
from typing import NamedTuple

PR_SET_CHILD_SUBREAPER = 36
MARK = "rkpy"
CONTAINER = "rkpy-test-"
"""What names of containers with a systemd begin with (tests/systemd)."""
CGROUPS = "/sys/fs/cgroup"
CLAIMS = "/run/rkpy/net"
SYSCTLS = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
"""What pods with networks have the machine do from then on."""


class Snapshot(NamedTuple):
    """Names of what exists, by kind."""

    mounts: frozenset[str]
    network_namespaces: frozenset[str]
    cgroups: frozenset[str]
    interfaces: frozenset[str]
    firewall_rules: frozenset[str]
    network_claims: frozenset[str]
    """What pods have claimed of this machine, and the lock that stays: not even for a while may a test do that."""
    sysctls: frozenset[str]


def become_subreaper() -> None:
    """Inherit every orphan of this process's descendants from now on."""
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("cannot become a subreaper")


def take() -> Snapshot:
    return Snapshot(
        _mounts(), _network_namespaces(), _cgroups(), _interfaces(), _firewall_rules(), _claims(), _sysctls()
    )


def leaked(before: Snapshot, after: Snapshot, *, marks: tuple[str, ...], strict: bool = False) -> list[str]:
    """A line for everything in `after` that was not in `before` and has one of `marks` in its name, with `strict`
    whatever its name is. What belongs to containers, which tests beside these may have, counts if that is a mark."""
    return [
        f"{kind.replace('_', ' ')}: {name}"
        for kind in Snapshot._fields
        for name in sorted(getattr(after, kind) - getattr(before, kind))
        if (CONTAINER in marks or CONTAINER not in name) and (strict or any(mark in name for mark in marks))
    ]


def await_end(pid: int) -> None:
    """Until a process has ended that is no child of this one, be it collected or not."""
    while True:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(") ")[2].startswith("Z"):
                    return
        except FileNotFoundError:
            return
        time.sleep(0.5)


def children(deadline: float = 60.0) -> list[str]:
    """Living children of this process; those about to end are given `deadline` seconds. Orphans that have ended are
    collected, as init would: the first process of a PID namespace cannot end before all others in it are gone."""
    end = time.monotonic() + deadline
    while True:
        _collect_ended()
        found = living_children()
        if not found or time.monotonic() > end:
            return [f"process {pid}: {command}" for pid, command in found.items()]
        time.sleep(0.05)


def _collect_ended() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def living_children() -> dict[int, str]:
    """PIDs and command lines of this process's children, adopted ones too."""
    found = {}
    for pid in _children():
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as line:
                command = line.read().replace(b"\0", b" ").decode(errors="replace").strip()
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
                if stat.read().rpartition(")")[2].split()[0] != "Z":
                    found[pid] = command
        except OSError:
            continue
    return found


def _children() -> list[int]:
    while True:
        pids: list[str] = []
        try:
            for thread in os.listdir("/proc/self/task"):
                with open(f"/proc/self/task/{thread}/children", encoding="ascii") as file:
                    pids += file.read().split()
            return [int(pid) for pid in pids]
        except (FileNotFoundError, ProcessLookupError):
            pass  # A thread has ended, and its children are another's now.


def _mounts() -> frozenset[str]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        # Root, mount point, type and source; not the IDs, which change when somebody remounts something.
        return frozenset(" ".join((*line.split()[3:5], *line.partition(" - ")[2].split()[:2])) for line in file)


def _network_namespaces() -> frozenset[str]:
    """The named ones (ip-netns(8)); any other ends with its last process."""
    return frozenset(os.listdir("/run/netns") if os.path.isdir("/run/netns") else ())


def _cgroups() -> frozenset[str]:
    return frozenset(path for path, _, _ in os.walk(CGROUPS))


def _interfaces() -> frozenset[str]:
    return frozenset(os.listdir("/sys/class/net"))


def _firewall_rules() -> frozenset[str]:
    commands = (("nft", "list", "ruleset"), ("iptables-save",))
    lines: set[str] = set()
    for command in commands:
        if shutil.which(command[0]):
            output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
            lines.update(line.strip() for line in output.splitlines() if not line.startswith(("#", ":")))
    return frozenset(lines)


def _claims() -> frozenset[str]:
    return frozenset(f"{place}/{name}" for place, below, files in os.walk(CLAIMS) for name in (*below, *files))


def _sysctls() -> frozenset[str]:
    lines = set()
    for name in SYSCTLS:
        try:
            with open(f"/proc/sys/{name}", encoding="ascii") as file:
                lines.add(f"{name} = {file.read().strip()}")
        except FileNotFoundError:
            continue
    return frozenset(lines)
