"""What of the host the guest can reach: the files of its apps and volumes, and not one other.

The monitor has a file system in memory for it, in the pod directory and in its own mount namespace, where nobody else
sees it. What an app needs is attached in there as `stage1.apptree.open_app` gave it, at NAME/0, NAME/1, …; so it is
read-only or not, and what devices and set-ID programs in it are worth, by the host's own mounts. These also appear in
the mount namespace of virtiofsd (mount_namespaces(7), "Slave mounts"), which sees nothing else and serves it.

virtiofsd runs in QEMU's PID namespace and ends with QEMU. It is root without what a file server does not need, in a
root of its own, and locks itself up in the share once more.
"""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from common import syscalls
from common.errors import LaunchError, reason
from common.records import NamedTuple
from stage1 import kernelfs
from stage1.mounts import new_file_system
from stage1.vm import confinement
from stage1.vm.confinement import Shown
from stage1.vm.guestplan import Place
from stage1.vm.machine import Machine
from stage2.launch import forget_keys

PLACE = "/share"
"""Where virtiofsd has it."""
_SIZE = 1 << 20
"""Bytes at most of the file system that everything is attached to: empty directories and files."""
_OPTIONS = (
    f"source={PLACE}", "sandbox=namespace", "cache=auto", "xattr", "announce_submounts", "no_posix_lock", "no_flock",
    "modcaps=-mknod",
)  # fmt: skip
"""Known to both virtiofsds. Submounts are announced because two of them may have files of one inode number; locks are
between processes of one kernel; a device made by the guest would work on the host's disk."""
_ENVIRONMENT = {"RUST_LOG": "warn"}
"""How much the newer virtiofsd says; the older one has an option of its own for that."""
_SERVING = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETGID", "SETUID", "SETFCAP")
"""What virtiofsd keeps."""
_STARTING = ("SETPCAP", "SYS_ADMIN", "SYS_RESOURCE")
"""What it needs to lock itself up."""
_LISTENING_FD = 3
_FILES = 1 << 20
"""How many descriptors it may have, if the limits of rkpy's caller allow: one for each file the guest knows."""
_OWN = (
    signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP,
    signal.SIGCHLD, signal.SIGPIPE,
)  # fmt: skip
"""Signals that concern virtiofsd itself."""


class Served(NamedTuple):
    """virtiofsd. It is a child of the monitor's."""

    pid: int
    pidfd: int


class Share:
    """One pod's. Made in the monitor's own mount namespace, which everything here is to be called in."""

    def __init__(self, directory: str) -> None:
        """`directory` is the pod's. Raises LaunchError."""
        self._place = f"{directory}/share"
        self._next = 1
        try:
            with suppress(FileExistsError):
                os.mkdir(self._place, 0o700)
            tree = new_file_system(
                "tmpfs",
                kernelfs.QUIET,
                ("mode", "755"),
                ("size", str(_SIZE)),
            )
            place = os.open(self._place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
            syscalls.move_mount(tree, place, self._place)
            os.close(place)
            # What is attached to it later is attached to virtiofsd's as well.
            syscalls.mount_setattr(tree, self._place, set_attributes=0, recursive=False, propagation=syscalls.MS_SHARED)
        except OSError as error:
            raise LaunchError(f"cannot make the share of the pod's machine: {reason(error)}") from error
        self._root = tree

    def show(self, mounts: Sequence[int], about: Sequence[str] = ()) -> Place:
        """Attach these detached mounts, which stay the caller's to close, as 0, 1, … in a new directory of the share.
        `about` is what messages call them. LaunchError when that is not possible; nothing of them is shown then."""
        name = str(self._next)
        self._next += 1
        files = tuple(number for number, tree in enumerate(mounts) if not stat.S_ISDIR(os.fstat(tree).st_mode))
        place = Place(name, files)
        try:
            os.mkdir(name, 0o755, dir_fd=self._root)
            for number, tree in enumerate(mounts):
                self._attach(tree, f"{name}/{number}", about[number] if number < len(about) else "the app's files")
        except OSError as error:
            self.hide(place)
            raise LaunchError(f"cannot share the app's files with its machine: {reason(error)}") from error
        except LaunchError:
            self.hide(place)
            raise
        return place

    def _attach(self, tree: int, path: str, about: str) -> None:
        mode = os.fstat(tree).st_mode
        if stat.S_ISDIR(mode):
            os.mkdir(path, 0o755, dir_fd=self._root)
        elif stat.S_ISREG(mode):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=self._root))
        else:
            raise LaunchError(
                f"{about}: a machine of its own cannot use sockets, pipes and devices of the host",
                hint="use directories and files, or another flavour",
            )
        place = os.open(path, os.O_PATH | os.O_NOFOLLOW, dir_fd=self._root)
        try:
            syscalls.move_mount(tree, place, f"{self._place}/{path}")
        finally:
            os.close(place)

    def hide(self, place: Place) -> None:
        """Take away what `show` has shown, whoever uses it still. The guest may have files of it open until it lets go
        of them."""
        directory = f"{self._place}/{place.name}"
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            return
        for name in names:
            path = f"{directory}/{name}"
            with suppress(OSError):
                syscalls.umount2(path, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
            # Neither is it removed what is mounted still (EBUSY), nor what has something in it.
            with suppress(OSError):
                (os.rmdir if os.path.isdir(path) else os.unlink)(path)
        with suppress(OSError):
            os.rmdir(directory)

    def serve(self, machine: Machine, qemu: int, listening: int, complaints: int, cgroup: int) -> Served:
        """Start virtiofsd: beside the process whose pidfd is `qemu`, in the cgroup that the descriptor `cgroup` is of
        (-1: in ours). It serves who connects to the socket `listening` and says to `complaints` what is wrong; both are
        closed. LaunchError when it cannot be started."""
        try:
            own = os.open("/proc/self/ns/pid", os.O_RDONLY)
            try:
                # What we make from now on is born there; we stay where we are (setns(2)).
                syscalls.setns(qemu, syscalls.CLONE_NEWPID)
                try:
                    return Served(
                        *confinement.spawn(
                            "virtiofsd",
                            confinement.NAMESPACES,
                            cgroup,
                            lambda last: self._become(machine.virtiofsd, listening, complaints, last),
                        )
                    )
                finally:
                    syscalls.setns(own, syscalls.CLONE_NEWPID)
            finally:
                os.close(own)
        except OSError as error:
            raise LaunchError(f"cannot start virtiofsd: {reason(error)}") from error
        finally:
            os.close(listening)
            os.close(complaints)

    def _become(self, program: str, listening: int, complaints: int, last: int) -> NoReturn:
        """In the child: from the monitor's copy to virtiofsd."""
        tree = syscalls.open_tree(syscalls.AT_FDCWD, self._place, syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE)
        # It hears of what the monitor mounts, and what becomes of the mounts here is not heard there.
        syscalls.mount_setattr(tree, PLACE, set_attributes=0, recursive=True, propagation=syscalls.MS_SLAVE)
        syscalls.mount_setattr(tree, PLACE, set_attributes=syscalls.MOUNT_ATTR_RDONLY, recursive=False)
        # It reads limits there, and mounts one of its own over it.
        proc = new_file_system("proc", kernelfs.QUIET | syscalls.MOUNT_ATTR_RDONLY)
        confinement.enter_root(program, (confinement.node(os.devnull), Shown(tree, PLACE), Shown(proc, "/proc")))
        forget_keys()
        _raise_limit()
        confinement.settle()
        # It is not PID 1 as QEMU is, and what is sent to all of the pod's processes is meant for the apps.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals().difference(_OWN))
        confinement.bound((*_SERVING, *_STARTING))
        null = os.open(os.devnull, os.O_RDWR)
        confinement.execute(argv(program), (null, complaints, complaints, listening), last, _ENVIRONMENT)


def argv(program: str) -> list[str]:
    """virtiofsd's command line."""
    # It would fail where the limit cannot be raised, so we do what can be done.
    return [program, "-f", f"--fd={_LISTENING_FD}", "--rlimit-nofile=0", "-o", ",".join(_OPTIONS)]


def _raise_limit() -> None:
    try:
        syscalls.setrlimit(syscalls.RLIMIT_NOFILE, _FILES, _FILES)
    except OSError:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        syscalls.setrlimit(syscalls.RLIMIT_NOFILE, hard, hard)
