"""Where QEMU and virtiofsd run: processes of the pod, born in its cgroup into namespaces of their own, whose root has
the system's libraries in it and next to nothing else.

A child is made of the monitor, prepares itself with what the monitor may do (its body, a function), and executes the
program. What it says before that is why it could not.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import select
import signal
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import NoReturn

from common import syscalls
from common.errors import LaunchError, located, reason
from common.records import NamedTuple
from stage1.mounts import new_file_system
from stage1.rootfs import switch_root
from stage2 import capabilities

LIBRARIES = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/etc/ld.so.cache")
"""What a program needs of the system: ld.so(8), and where distributions keep libraries, firmware and programs."""
NAMESPACES = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWNET
ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGTSTP)
"""What asks a program to end, or a terminal to stop it. It is the monitor that ends it, and by SIGKILL."""
_QUIET = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
_NODE = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC
_SIZE = 64 << 10
"""Bytes at most of the root itself."""
_PLACE = "/proc"
"""Where the root is attached before it becomes the root: a directory that every system has."""
_ABOVE = 256
"""Descriptors are moved above this number on their way to where they belong."""


class Shown(NamedTuple):
    """A mount in the root to be."""

    tree: int
    """A detached mount."""
    path: str
    """Absolute. Where it is below another's, that comes first."""


def spawn(what: str, flags: int, cgroup: int, body: Callable[[int], NoReturn]) -> tuple[int, int]:
    """A child, in new namespaces by `flags` and in `cgroup` (a descriptor, -1 for ours), that runs `body` with all
    signals blocked, and in it executes a program: its PID and a pidfd. `body` gets a descriptor that is to close with
    that. LaunchError says that `what` cannot be started, and why."""
    said, saying = os.pipe()
    gc.freeze()  # a later collection would write to what the two processes share
    # A handler of ours would take the child's signals for the monitor's.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid, pidfd = syscalls.clone3(flags, cgroup)
        if pid == 0:
            _run(body, saying)
    except OSError as error:
        os.close(said)
        raise LaunchError(f"cannot start {what}: {reason(error)}") from error
    finally:
        os.close(saying)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        complaint = _read_all(said)
    finally:
        os.close(said)
    if complaint:
        os.waitpid(pid, 0)
        os.close(pidfd)
        raise LaunchError(f"cannot start {what}: {complaint}")
    return pid, pidfd


def _run(body: Callable[[int], NoReturn], saying: int) -> NoReturn:
    try:
        body(saying)
    except OSError as error:
        os.write(saying, located(error).encode(errors="replace"))
    except BaseException as error:
        os.write(saying, (str(error) or repr(error)).encode(errors="replace"))
    finally:
        os._exit(1)


def _read_all(fd: int) -> str:
    found = b""
    while data := os.read(fd, 4096):
        found += data
    return found.decode(errors="replace")


def clone(path: str, attributes: int = _QUIET, *, recursive: bool = True) -> int:
    """A detached copy of the mount at `path`, private, with `attributes`. Raises OSError."""
    flags = syscalls.OPEN_TREE_CLONE | (syscalls.AT_RECURSIVE if recursive else 0)
    tree = syscalls.open_tree(syscalls.AT_FDCWD, path, flags)
    syscalls.mount_setattr(tree, path, set_attributes=attributes, recursive=recursive, propagation=syscalls.MS_PRIVATE)
    return tree


def node(path: str) -> Shown:
    """A device of the host's, at its place. Its owner and mode are the host's and stay so."""
    return Shown(clone(path, _NODE, recursive=False), path)


def enter_root(program: str, shown: Iterable[Shown]) -> None:
    """Make a read-only root of LIBRARIES, the directory that `program` was installed in if it is in none of these, and
    `shown`, and let go of every other mount. Called in a mount namespace that is new.
    Raises OSError."""
    # What is let go of here is to stay where the monitor has it.
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    os.umask(0o022)
    root = new_file_system("tmpfs", _QUIET & ~syscalls.MOUNT_ATTR_RDONLY, ("mode", "755"), ("size", str(_SIZE)))
    for path in _installed(program):
        _show_installed(root, path)
    for tree, path in shown:
        _attach(root, tree, path)
    place = os.open(_PLACE, os.O_PATH | os.O_DIRECTORY)
    syscalls.move_mount(root, place, _PLACE)
    switch_root(root)
    syscalls.mount_setattr(root, "/", set_attributes=syscalls.MOUNT_ATTR_RDONLY, recursive=False)
    os.umask(0o077)


def _installed(program: str) -> list[str]:
    real = os.path.realpath(program)
    found = [path for path in LIBRARIES if os.path.lexists(path)]
    if not real.startswith(tuple(f"{path}/" for path in found)):
        # …/bin/NAME with …/lib and …/share beside it, or something that stands alone.
        prefix = os.path.dirname(os.path.dirname(real))
        found.append(prefix if prefix.strip("/") and os.path.basename(os.path.dirname(real)) == "bin" else real)
    return found


def _show_installed(root: int, path: str) -> None:
    if os.path.islink(path):
        os.symlink(os.readlink(path), path[1:], dir_fd=root)
    else:
        _attach(root, clone(path), path)


def _attach(root: int, tree: int, path: str) -> None:
    """At `path` below `root`, which nobody else has: nothing in it leads anywhere."""
    directory, name = os.path.split(path[1:])
    done = ""
    for part in filter(None, directory.split("/")):
        done = f"{done}/{part}".lstrip("/")
        _unless_there(lambda done=done: os.mkdir(done, 0o755, dir_fd=root))  # type: ignore[misc]
    where = f"{directory}/{name}".lstrip("/")
    if stat.S_ISDIR(os.fstat(tree).st_mode):
        _unless_there(lambda: os.mkdir(where, 0o755, dir_fd=root))
    else:
        _unless_there(lambda: os.close(os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=root)))
    place = os.open(where, os.O_PATH | os.O_NOFOLLOW, dir_fd=root)
    syscalls.move_mount(tree, place, path)
    os.close(place)
    os.close(tree)


def _unless_there(make: Callable[[], None]) -> None:
    try:
        make()
    except FileExistsError:
        pass


def bound(kept: Iterable[str] = ()) -> None:
    """Drop all of the bounding set but the capabilities named, and set no_new_privs. Raises OSError."""
    wanted = {capabilities.NAMES.index(name) for name in kept}
    for number in capabilities.available() - wanted:
        syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)


def become(user: int, group: int, groups: Sequence[int]) -> None:
    """That user, without any capabilities. Raises OSError."""
    os.setgroups(groups)
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    syscalls.capset(0, 0, 0)


def settle() -> None:
    """A session, limits and signals of its own. The last of them come back with the program, but for ENDING. Raises
    OSError."""
    os.setsid()
    # 1 byte is less than any dump, and the one limit that keeps the kernel from piping it to a program (core(5),
    # fs/coredump.c). Where there are to be no dumps at all, it may not be possible to allow that one.
    with suppress(PermissionError):
        syscalls.setrlimit(syscalls.RLIMIT_CORE, 1, 1)
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP) and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ENDING)


def die_with(parent: int) -> None:
    """When the process ends that made us, whose pidfd is `parent`; not to be called before the identity changes, which
    undoes it (PR_SET_PDEATHSIG in prctl(2)). Raises OSError."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    poll = select.poll()
    poll.register(parent, select.POLLIN)
    if poll.poll(0):
        raise OSError(errno.ESRCH, "the monitor is gone")


def execute(
    argv: list[str], fds: Sequence[int], last: int, environment: Mapping[str, str] = MappingProxyType({})
) -> NoReturn:
    """The program `argv[0]`, with `fds` as its descriptors 0, 1, 2, … and no others. `last` is that of `spawn`."""
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for fd in (*fds, last)]
    for number, fd in enumerate(moved[:-1]):
        os.dup2(fd, number)
    last = len(fds)
    os.dup2(moved[-1], last, inheritable=False)
    syscalls.close_range(last + 1, syscalls.LAST_FD)
    try:
        os.execve(os.path.realpath(argv[0]), argv, environment)  # noqa: S606
    except OSError as error:
        os.write(last, located(error).encode(errors="replace"))
    os._exit(1)
