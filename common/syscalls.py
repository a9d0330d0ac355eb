"""System calls Python 3.11 does not wrap. Beside `common.libseccomp` the only module with ctypes.

Each wrapper keeps the kernel's name, takes and returns Python values, and raises `OSError` with the errno and the path
it was about. Descriptors it returns are close-on-exec. Numbers of 424 and above are the same on every architecture.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from collections.abc import Iterable, Sequence

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR_IDMAP = 0x100000

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_SECCOMP = 22
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECCOMP_MODE_FILTER = 2
PROC_SUPER_MAGIC = 0x9FA0
PIPEFS_MAGIC = 0x50495045
DEVPTS_SUPER_MAGIC = 0x1CD1

RENAME_EXCHANGE = 2
RLIMIT_CORE, RLIMIT_NOFILE = 4, 7

CLOSE_RANGE_CLOEXEC = 4
LAST_FD = 2**31 - 1
"""No descriptor is above it."""

MADV_DONTNEED = 4
MADV_PAGEOUT = 21

RB_AUTOBOOT = 0x01234567

_NR_OPEN_TREE = 428
_NR_CLONE3 = 435
_NR_MOVE_MOUNT = 429
_NR_FSOPEN = 430
_NR_FSCONFIG = 431
_NR_FSMOUNT = 432
_NR_CLOSE_RANGE = 436
_NR_PIDFD_GETFD = 438
_NR_PROCESS_MADVISE = 440
_NR_OPENAT2 = 437
_NR_MOUNT_SETATTR = 442

# The calls here whose numbers depend on the machine, without functions of their own in libc.
_TUNATTACHFILTER = 0x401054D5
_NR_FINIT_MODULE = {"x86_64": 313, "aarch64": 273, "riscv64": 273, "loongarch64": 273, "ppc64le": 353, "s390x": 344}
_NR_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "loongarch64": 219, "ppc64le": 271, "s390x": 280}
_KEYCTL_JOIN_SESSION_KEYRING = 1

_LINUX_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_long = ctypes.c_long
# Without letting go of the interpreter's lock: what returns in a cloned child must hold it.
_syscall_locked = ctypes.PyDLL(None, use_errno=True).syscall
_syscall_locked.restype = ctypes.c_long


def _check(result: int, call: str, path: str | bytes) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}", os.fsdecode(path))
    return result


def openat2(dirfd: int, path: str | bytes, flags: int, mode: int = 0, resolve: int = RESOLVE_IN_ROOT) -> int:
    """openat2(2): open `path` below `dirfd` under the `resolve` rules; with RESOLVE_IN_ROOT `dirfd` is the root of all
    symlinks and `..`. Retries EAGAIN, which the kernel gives when a rename raced with the walk."""
    raw = os.fsencode(path)
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    while True:
        fd: int = _syscall(_long(_NR_OPENAT2), _long(dirfd), ctypes.c_char_p(raw), how, _long(len(how)))
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code not in (4, 11):  # EINTR, EAGAIN
            raise OSError(code, f"openat2: {os.strerror(code)}", os.fsdecode(path))


def clone3(flags: int, cgroup: int = -1) -> tuple[int, int]:
    """clone3(2) (Linux 5.3) as fork(2) with `flags`: (0, -1) in the child, its PID and a pidfd in the parent. `cgroup`
    is a descriptor of the directory to be born in (CLONE_INTO_CGROUP, Linux 5.7), or -1.

    Only for processes of one thread: neither glibc's nor Python's preparations for a fork are made."""
    pidfd = ctypes.c_int(-1)
    into = CLONE_INTO_CGROUP if cgroup >= 0 else 0
    end = 0 if flags & CLONE_PARENT else signal.SIGCHLD  # Of a sibling it is the one that our own end is told by.
    parts = (flags | into | CLONE_PIDFD, ctypes.addressof(pidfd), 0, 0, end, 0, 0, 0, 0, 0, max(cgroup, 0))
    arguments = ctypes.create_string_buffer(struct.pack("=11Q", *parts))
    size = _long(len(arguments) - 1)
    pid = _check(_syscall_locked(_long(_NR_CLONE3), arguments, size), "clone3", hex(flags))
    return pid, pidfd.value if pid else -1


def unshare(flags: int) -> None:
    """unshare(2): leave the namespaces named by `flags` (CLONE_NEW…)."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare", hex(flags))


def setns(fd: int, flags: int) -> None:
    """setns(2): enter the namespace `fd` refers to; `flags` says of which kind it must be."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(flags)), "setns", f"fd {fd}")


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    """mount(2), for propagation changes and for kernels whose new mount interface lacks something."""

    def raw(text: str | None) -> bytes | None:
        return None if text is None else os.fsencode(text)

    result = _libc.mount(raw(source), raw(target), raw(fstype), ctypes.c_ulong(flags), raw(data))
    _check(result, "mount", target)


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), "umount2", target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2). `(".", ".")` leaves the old root mounted over the new one, to be detached by `umount2(".")`."""
    _check(_libc.pivot_root(os.fsencode(new_root), os.fsencode(put_old)), "pivot_root", new_root)


def close_range(first: int, last: int, flags: int = 0) -> None:
    """close_range(2) (Linux 5.9): close every descriptor from `first` to `last`, both included; with
    CLOSE_RANGE_CLOEXEC (Linux 5.11) at the next execve(2)."""
    result = _syscall(_long(_NR_CLOSE_RANGE), _long(first), _long(last), _long(flags))
    _check(result, "close_range", f"{first}-{last}")


def close_all_but(kept: Iterable[int], *, first: int = 0) -> None:
    """Every descriptor from `first` on that is none of `kept`, among which -1 stands for none."""
    for fd in sorted({fd for fd in kept if fd >= first}):
        if first < fd:
            close_range(first, fd - 1)
        first = fd + 1
    close_range(first, LAST_FD)


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """open_tree(2): a descriptor for the mount at `path`, or with OPEN_TREE_CLONE for a detached copy of it."""
    raw = os.fsencode(path)
    flags |= OPEN_TREE_CLOEXEC
    return _check(_syscall(_long(_NR_OPEN_TREE), _long(dirfd), ctypes.c_char_p(raw), _long(flags)), "open_tree", path)


def move_mount(mount_fd: int, target_fd: int, path: str) -> None:
    """move_mount(2) by descriptors on both sides, so that no path is walked again; `path` only names it in errors."""
    empty = ctypes.c_char_p(b"")
    flags = _long(MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)
    result = _syscall(_long(_NR_MOVE_MOUNT), _long(mount_fd), empty, _long(target_fd), empty, flags)
    _check(result, "move_mount", path)


def mount_setattr(
    fd: int, path: str, *, set_attributes: int, recursive: bool, propagation: int = 0, namespace: int = 0
) -> None:
    """mount_setattr(2) (Linux 5.12) on the mount `fd` refers to; `path` only names it in errors. With
    MOUNT_ATTR_IDMAP the user namespace that `namespace` refers to says who owns what in the mount."""
    attr = struct.pack("=QQQQ", set_attributes, 0, propagation, namespace)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    result = _syscall(_long(_NR_MOUNT_SETATTR), _long(fd), ctypes.c_char_p(b""), _long(flags), attr, _long(len(attr)))
    _check(result, "mount_setattr", path)


def fsopen(fstype: str) -> int:
    """fsopen(2): a configuration context for a new file system of type `fstype`."""
    raw = ctypes.c_char_p(fstype.encode())
    return _check(_syscall(_long(_NR_FSOPEN), raw, _long(FSOPEN_CLOEXEC)), "fsopen", fstype)


def fsconfig(fd: int, key: str, value: str | None) -> None:
    """fsconfig(2): set option `key` to `value`, or as a flag when `value` is None.

    Raises OSError whose text ends with what the kernel logged on the context, when it logged something."""
    command = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
    raw_value = ctypes.c_char_p(None if value is None else os.fsencode(value))
    result = _syscall(
        _long(_NR_FSCONFIG), _long(fd), _long(command), ctypes.c_char_p(key.encode()), raw_value, _long(0)
    )
    _check_fs(result, fd, f"{key}={value}")


def fsmount(fd: int, attributes: int, fstype: str) -> int:
    """FSCONFIG_CMD_CREATE and fsmount(2): the detached mount of a configured context; `fstype` names it in errors."""
    null = ctypes.c_char_p(None)
    _check_fs(_syscall(_long(_NR_FSCONFIG), _long(fd), _long(FSCONFIG_CMD_CREATE), null, null, _long(0)), fd, fstype)
    return _check(_syscall(_long(_NR_FSMOUNT), _long(fd), _long(FSMOUNT_CLOEXEC), _long(attributes)), "fsmount", fstype)


def _check_fs(result: int, fd: int, about: str) -> None:
    if result >= 0:
        return
    code = ctypes.get_errno()
    try:
        said = os.read(fd, 4096).decode(errors="replace").strip()
    except OSError:
        said = ""
    raise OSError(code, f"fsconfig: {os.strerror(code)}" + (f" [{said}]" if said else ""), about)


def prctl(option: int, value: int, second: int = 0) -> int:
    """prctl(2) with one or two arguments; what it returns."""
    result = _libc.prctl(ctypes.c_int(option), _long(value), _long(second), _long(0), _long(0))
    return _check(result, "prctl", str(option))


def join_session_keyring() -> None:
    """KEYCTL_JOIN_SESSION_KEYRING (keyctl(2)): leave the session keyring that was inherited for a new, empty one."""
    number = _NR_KEYCTL.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, "keyctl: its number on this machine is not known", "session keyring")
    none = ctypes.c_char_p(None)
    _check(_syscall(_long(number), _long(_KEYCTL_JOIN_SESSION_KEYRING), none), "keyctl", "session keyring")


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) of this process; each set is a mask with bit N for capability N."""
    header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    halves = [word >> shift & 0xFFFFFFFF for shift in (0, 32) for word in (effective, permitted, inheritable)]
    _check(_libc.capset(header, struct.pack("=6I", *halves)), "capset", hex(permitted))


def set_seccomp_filter(program: bytes) -> None:
    """PR_SET_SECCOMP of an array of struct sock_filter, from now on and for every child (seccomp(2))."""
    code = ctypes.create_string_buffer(program, len(program))
    sock_fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    mode = _long(SECCOMP_MODE_FILTER)
    result = _libc.prctl(ctypes.c_int(PR_SET_SECCOMP), mode, sock_fprog, _long(0), _long(0))
    _check(result, "prctl", "PR_SET_SECCOMP")


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2) (Linux 5.6): our own descriptor of what another process has open as `fd`."""
    return _check(_syscall(_long(_NR_PIDFD_GETFD), _long(pidfd), _long(fd), _long(0)), "pidfd_getfd", str(fd))


def filter_tap(fd: int, program: bytes) -> None:
    """TUNATTACHFILTER (linux/if_tun.h): an array of struct sock_filter that sees the frames which are sent to the tap
    `fd`. Those it returns 0 for never arrive."""
    code = ctypes.create_string_buffer(program, len(program))
    sock_fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    _check(_libc.ioctl(ctypes.c_int(fd), ctypes.c_ulong(_TUNATTACHFILTER), sock_fprog), "ioctl", "TUNATTACHFILTER")


def setrlimit(resource: int, soft: int, hard: int) -> None:
    """prlimit(2) of this process; -1 is no limit."""
    limits = struct.pack("=QQ", *(value & 0xFFFFFFFFFFFFFFFF for value in (soft, hard)))
    _check(_libc.prlimit(ctypes.c_int(0), ctypes.c_int(resource), limits, None), "prlimit", str(resource))


def filesystem_type(fd: int) -> int:
    """f_type of fstatfs(2), such as PROC_SUPER_MAGIC."""
    found = ctypes.create_string_buffer(256)
    _check(_libc.fstatfs(ctypes.c_int(fd), found), "fstatfs", f"fd {fd}")
    return int(struct.unpack_from("@l", found)[0])


def syncfs(fd: int, path: str) -> None:
    """syncfs(2): flush the whole file system `fd` is on; `path` only names it in errors. Since Linux 5.8 it reports
    what could not be written back."""
    _check(_libc.syncfs(ctypes.c_int(fd)), "syncfs", path)


def renameat2(source: str, target: str, flags: int) -> None:
    """renameat2(2) of two absolute paths, with RENAME_EXCHANGE to swap them."""
    paths = ctypes.c_char_p(os.fsencode(source)), ctypes.c_char_p(os.fsencode(target))
    cwd = ctypes.c_int(AT_FDCWD)
    _check(_libc.renameat2(cwd, paths[0], cwd, paths[1], ctypes.c_uint(flags)), "renameat2", target)


def madvise(start: int, length: int, advice: int) -> None:
    """madvise(2) about this process's memory from the address `start` on."""
    result = _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(advice))
    _check(result, "madvise", hex(start))


def process_madvise(pidfd: int, ranges: Sequence[tuple[int, int]], advice: int) -> int:
    """process_madvise(2) (Linux 5.10) about up to 1024 `ranges` (addresses of start and end) of another process's
    memory; how many bytes it was about."""
    vectors = struct.pack(f"{2 * len(ranges)}N", *(part for start, end in ranges for part in (start, end - start)))
    arguments = (_long(pidfd), ctypes.c_char_p(vectors), _long(len(ranges)), _long(advice), _long(0))
    return _check(_syscall(_long(_NR_PROCESS_MADVISE), *arguments), "process_madvise", str(pidfd))


def finit_module(fd: int, path: str) -> None:
    """finit_module(2): load the kernel module `fd` is open on, without parameters; `path` only names it in errors."""
    number = _NR_FINIT_MODULE.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, "finit_module: its number on this machine is not known", path)
    _check(_syscall(_long(number), _long(fd), ctypes.c_char_p(b""), _long(0)), "finit_module", path)


def reboot(command: int) -> None:
    """reboot(2) of the machine, without another word (RB_AUTOBOOT)."""
    _check(_libc.reboot(ctypes.c_int(command)), "reboot", hex(command))
