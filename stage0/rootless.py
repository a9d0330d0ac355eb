"""rkpy for those who are not root: as root of a user namespace of their own.

Nothing else changes. The namespace has its user as root and, from 1 on, the IDs that /etc/subuid and /etc/subgid give
him (subuid(5)), and a mount namespace in which that root may mount. From there on rkpy works as it does for root of the
host, and the kernel sees to it that it can do no more than the user can (user_namespaces(7), newuidmap(1)).

A namespace ends with its last process, so every command makes one anew: the IDs, and by them what is in the user's
store, are the same in all. Into a pod that runs one only gets through the namespace that it has; see `join`.
"""

from __future__ import annotations

import errno
import os
import pwd
import re
from _socket import AF_INET, AF_NETLINK, SOCK_CLOEXEC, SOCK_DGRAM
from _socket import socket as Socket  # noqa: N812
from collections.abc import Container, Iterable, Iterator, Mapping

from common import syscalls, users
from common.errors import LaunchError, reason
from common.users import Range
from stage0.caller import UID
from stage0.notices import warn
from stage1.poddir import Leader, boot_id
from stage1.processes import Process

_NAMESPACES = syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS
_NUMBER = re.compile("[0-9]{1,10}")
_LINES = 340
"""Of a mapping, at most (user_namespaces(7))."""
_OF_NEWUIDMAP = (1, 6, 7, 21)
"""CAP_DAC_OVERRIDE, CAP_SETGID, CAP_SETUID and CAP_SYS_ADMIN, by which it may do what it does (capabilities(7))."""
_FAMILIES = {"AF_NETLINK": AF_NETLINK, "AF_INET": AF_INET}
_LIMITS = {
    errno.ENOSPC: "there are as many as user.max_user_namespaces allows",
    errno.EAGAIN: "this user has as many processes as RLIMIT_NPROC (ulimit -u) or the unit (TasksMax=) allows",
    errno.EMFILE: "there are as many open files as RLIMIT_NOFILE (ulimit -n) allows",
}
"""What errors of unshare(2), fork(2) and open(2) say of limits, of which none is about being allowed to."""
_HINT = "run it as root, or have user namespaces allowed (docs/rootless.md)"


def become_root(*, to_run: bool = False) -> None:
    """Nothing for root. Anybody else becomes root of a new user namespace, with a mount namespace of its own. `to_run`
    says that apps will run in it: what they will lack is said. Raises LaunchError when he may not."""
    if os.geteuid() == 0:
        return
    gid = os.getegid()
    try:
        mappings = {"uid": [Range(0, UID, 1), *_granted("uid")], "gid": [Range(0, gid, 1), *_granted("gid")]}
        _require_kernel()
        missing = _missing(mappings)
        if missing:
            groups = " and stay in your groups" if {*os.getgroups()} - {gid} else ""
            syscalls.unshare(_NAMESPACES)
            _map_alone(gid)
            if to_run:
                warn(f"apps can have no other user and group than root{groups}: {missing}")
        else:
            _map(mappings)
        _settle()
    except OSError as error:
        why = _LIMITS.get(error.errno or 0)
        hint = "" if why and error.errno != errno.ENOSPC else _HINT
        raise LaunchError(f"cannot become root of a user namespace: {why or reason(error)}", hint=hint) from error


def join(leader: Leader, *, mounts: bool) -> None:
    """Nothing for root. Anybody else becomes root of the user namespace of a pod of his, the only way to what is in it;
    with `mounts` in a mount namespace in which that root may mount. It shows the host's files, and who may administer
    the pod's user namespace, as every app of root's under fly, can find it and enter it (`nspawn._dangers`): so do
    without where that is possible. Raises LaunchError when he may not, and ProcessLookupError when there is no such
    process any more."""
    if os.geteuid() == 0:
        return
    try:
        if leader.boot_id != boot_id():
            raise ProcessLookupError
        with Process(leader.pid, leader.start_time) as process:
            # Under fly the app sees us, and its root is as mighty in there as we are. It could trace what is dumpable,
            # and would have our files and our environment.
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
            syscalls.setns(process.fd, syscalls.CLONE_NEWUSER)
        # Entering may have changed that, by a system-wide setting (suid_dumpable in proc(5)).
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        users.confined.cache_clear()
        if mounts:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            _settle()
    except ProcessLookupError:
        raise
    except OSError as error:
        raise LaunchError(f"cannot enter the user namespace of process {leader.pid}: {reason(error)}") from error


def _settle() -> None:
    """What the host mounts from now on appears here, and nothing the other way."""
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
    users.confined.cache_clear()


def _granted(kind: str) -> Iterator[Range]:
    """The IDs that the user may have beside his own, from 1 on; a line of the file each (subuid(5))."""
    try:
        with open(f"/etc/sub{kind}", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return
    try:
        names = {str(UID), pwd.getpwuid(UID).pw_name}
    except KeyError:
        names = {str(UID)}
    yield from of_user(lines, names, UID if kind == "uid" else os.getegid())


def of_user(lines: Iterable[str], names: Container[str], own: int) -> list[Range]:
    """What `lines` of subuid(5) grant whoever goes by `names`, as IDs from 1 on. What makes no sense is passed over,
    and what comes twice, the ID `own` included: an ID has one place in a namespace."""
    found: list[Range] = []
    taken = [Range(0, own, 1)]
    for fields in (line.strip().split(":") for line in lines):
        if len(fields) != 3 or fields[0] not in names or not all(map(_NUMBER.fullmatch, fields[1:])):
            continue
        start, size = map(int, fields[1:])
        if size == 0 or start + size > users.EVERYTHING.size:
            continue
        if any(start < one.outside + one.size and one.outside < start + size for one in taken):
            continue
        inside = 1 + sum(one.size for one in found)
        if inside + size > users.EVERYTHING.size:
            break
        found.append(Range(inside, start, size))
        taken.append(found[-1])
        if not _fits([Range(0, own, 1), *found]):
            return found[:-1]
    return found


def _fits(mapping: Iterable[Range]) -> bool:
    """Whether the kernel takes it (user_namespaces(7)): 340 lines at most, which are written at once, in less than a
    page."""
    lines = [f"{one.inside} {one.outside} {one.size}\n" for one in mapping]
    return len(lines) <= _LINES and sum(map(len, lines)) < os.sysconf("SC_PAGE_SIZE")


def _missing(mappings: Mapping[str, list[Range]]) -> str:
    """Why the user's other IDs cannot be had, or empty."""
    for kind, mapping in mappings.items():
        if len(mapping) == 1:
            return f"/etc/sub{kind} grants this user nothing"
        if not _program(kind):
            return f"there is no new{kind}map (Debian has it in uidmap)"
    try:
        if pwd.getpwuid(UID).pw_gid != os.getegid():
            return "newgidmap serves nobody whose group is not that of his account (newgrp, Group=)"
    except KeyError:
        return f"newuidmap serves nobody without an account, and user {UID} has none"
    if syscalls.prctl(syscalls.PR_GET_NO_NEW_PRIVS, 0):
        return "newuidmap has no privileges here (NoNewPrivileges=)"
    if not all(syscalls.prctl(syscalls.PR_CAPBSET_READ, number) for number in _OF_NEWUIDMAP):
        return "newuidmap has no privileges here (CapabilityBoundingSet=)"
    for kind, mapping in mappings.items():
        if any(not _is_known(one, users.ranges(kind)) for one in mapping):
            return f"this user namespace has not all that /etc/sub{kind} grants (PrivateUsers=)"
    return ""


def _program(kind: str) -> str:
    """The path of newuidmap or newgidmap, or empty. (shutil would take half as long to load as the programs to run.)"""
    paths = (f"{place}/new{kind}map" for place in os.get_exec_path() if place.startswith("/"))
    return next((path for path in paths if os.access(path, os.X_OK) and not os.path.isdir(path)), "")


def _is_known(wanted: Range, known: Iterable[Range]) -> bool:
    """Whether a namespace has all these IDs; ranges that follow each other are not put together."""
    first, last = wanted.outside, wanted.outside + wanted.size
    return any(one.inside <= first and last <= one.inside + one.size for one in known)


def _require_kernel() -> None:
    """What a service's settings may have taken away, and nothing goes without; it would be missed in places where
    nobody could say what of. Raises LaunchError."""
    try:
        os.close(syscalls.openat2(syscalls.AT_FDCWD, "/", os.O_PATH | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        taken = "RestrictSUIDSGID= of its service, which DynamicUser= brings with it, or a filter of system calls"
        raise LaunchError(f"rkpy cannot do without openat2(2), which is taken away by {taken}") from error
    if not os.path.exists("/proc/sys"):
        raise LaunchError("rkpy cannot do without /proc/sys, which is taken away by ProcSubset= of its service")
    for name, family in _FAMILIES.items():
        try:
            Socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0).close()
        except OSError as error:
            taken = "RestrictAddressFamilies= of its service"
            raise LaunchError(f"rkpy cannot do without {name}, which is taken away by {taken}") from error


def _map_alone(gid: int) -> None:
    """What the kernel lets everybody do: his own IDs, and the groups he is in stay with him."""
    for file, text in (("setgroups", "deny"), ("uid_map", f"0 {UID} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{file}", "w", encoding="ascii") as opened:
            opened.write(text)


def _map(mappings: Mapping[str, list[Range]]) -> None:
    """Enter the namespaces and have newuidmap and newgidmap write `mappings`, which a child outside starts. Raises
    LaunchError or OSError."""
    reads, writes = os.pipe()
    errors, complaints = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(writes)
        os.dup2(complaints, 2)
        status = 1
        try:
            if os.read(reads, 1):  # Our parent has the namespaces; otherwise it is gone.
                status = _run_programs(parent, mappings)
        finally:
            os._exit(status)
    os.close(reads)
    os.close(complaints)
    try:
        syscalls.unshare(_NAMESPACES)
        os.write(writes, b"!")
    finally:
        os.close(writes)
        with open(errors, errors="replace") as file:
            said = file.read().strip()
        failed = os.waitpid(child, 0)[1]
    if failed:
        why = said.splitlines()[0] if said else "newuidmap failed"
        raise LaunchError(f"cannot map the user's IDs: {why}", hint="see docs/rootless.md")


def _run_programs(pid: int, mappings: Mapping[str, list[Range]]) -> int:
    """Both at once, which say what goes wrong on standard error; an exit status."""
    started = []
    for kind, mapping in mappings.items():
        program = _program(kind)
        words = [program, str(pid), *(str(number) for one in mapping for number in one)]
        try:
            started.append(os.posix_spawn(program, words, os.environ))
        except OSError as error:
            os.write(2, f"{program}: {reason(error)}\n".encode("utf-8", "backslashreplace"))
            return 1
    return max(os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) != 0 for one in started)
