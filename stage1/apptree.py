"""The file system of a supervised app, made in two halves: the monitor opens what lies on the host and hands it on as
detached mounts, and the app's child, in namespaces where nothing of the host is left, puts them together.

    monitor      open_app          has every right; walks paths of the host
    supervisor   supervisor_root   once, first of all: lets go of the host's mounts
    app's child  furnish, show_console    in a mount namespace of its own; walks paths of the image
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack

from common import syscalls
from common.errors import LaunchError, reason
from stage1 import kernelfs
from stage1.credentials import Credentials
from stage1.locked import lock
from stage1.mounts import NO_SOURCE, NONE, HostFile, Namespaces, SourcedStep, new_file_system
from stage1.plan import AppPlan
from stage1.rootfs import switch_root
from stage1.targets import AppRoot, mount_id

PLACE = "/app"
"""The directory in the supervisor's root an app's root is attached to, in a namespace of the app's own."""
SIZE = 256 << 10
"""Bytes at most of the supervisor's root: a few empty directories and files."""


# The monitor


def present(plan: AppPlan) -> AppPlan:
    """`plan` without the steps that have nothing to mount after all."""
    steps = tuple(step for step in plan.steps if not isinstance(step, HostFile) or step.is_there())
    return plan._replace(steps=steps)


def open_app(plan: AppPlan, idmap: int | None, host: int | None = None) -> list[int]:
    """Detached mounts of everything of the host that `plan` needs: the root, then one for each SourcedStep.

    `idmap` is a descriptor of the pod's user namespace, if it has one of its own, and `host` one of the host's mount
    namespace, which only volumes with propagation "shared" need. Called in a private mount namespace, by a process of
    one thread. Raises LaunchError, and leaves nothing open then."""
    namespaces = Namespaces(NONE if idmap is None else idmap, NONE if host is None else host)
    with ExitStack() as undo:
        opened = [plan.root.open(namespaces.users)]
        undo.callback(os.close, opened[0])
        for step in plan.steps:
            if isinstance(step, SourcedStep):
                source = step.open_source(namespaces)
                if source == NO_SOURCE:
                    raise LaunchError(f'what belongs at "{step.target}" in the app is gone')
                opened.append(source)
                undo.callback(os.close, source)
        if idmap is not None:
            return lock(opened, idmap, plan.root.place)
        undo.pop_all()
    return opened


# The supervisor


def supervisor_root() -> None:
    """Replace the host's mounts by a read-only root with nothing in it but what apps are furnished from. Called as root
    of the pod's user namespace in the pod's own mount, PID and network namespaces, before anything else is forked.
    LaunchError names what failed."""
    umask = os.umask(0o022)
    try:
        _supervisor_root()
    except OSError as error:
        what = f' "{error.filename}"' if error.filename else ""
        raise LaunchError(f"cannot make the supervisor's root:{what} {error.strerror or reason(error)}") from error
    finally:
        os.umask(umask)


def _supervisor_root() -> None:
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    # In a user namespace the kernel lets nobody mount procfs or sysfs who does not see the host's, so before
    # those are covered (fs/namespace.c, mount_too_revealing).
    trees = {kernelfs.PROC: new_file_system("proc", kernelfs.QUIET), kernelfs.SYS: _sysfs()}
    nodes = {f"{kernelfs.NODES}/{name}": _host_node(name) for name in kernelfs.NODE_NUMBERS}
    options = (("mode", "755"), ("size", str(SIZE)))
    root = new_file_system("tmpfs", syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC, *options)
    for path in (PLACE, kernelfs.NODES, kernelfs.EMPTY, kernelfs.ONLY_CGROUP, f"{kernelfs.ONLY_CGROUP}/cgroup", *trees):
        os.mkdir(path[1:], 0o755, dir_fd=root)
    for path in nodes:
        os.close(os.open(path[1:], os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=root))
    _attach_over(root, "/proc")
    for path, tree in (*trees.items(), *nodes.items()):
        place = os.open(path[1:], os.O_PATH | os.O_NOFOLLOW, dir_fd=root)
        syscalls.move_mount(tree, place, path)
        os.close(place)
        os.close(tree)
    switch_root(root)
    syscalls.mount_setattr(root, "/", set_attributes=syscalls.MOUNT_ATTR_RDONLY, recursive=False)
    os.close(root)


def _sysfs() -> int:
    """A sysfs of the pod's network namespace; the host's when the pod uses its network without having a say in it."""
    try:
        return new_file_system("sysfs", kernelfs.QUIET)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
    tree = syscalls.open_tree(syscalls.AT_FDCWD, "/sys", syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE)
    attributes = kernelfs.QUIET | syscalls.MOUNT_ATTR_RDONLY
    syscalls.mount_setattr(tree, "/sys", set_attributes=attributes, recursive=True, propagation=syscalls.MS_PRIVATE)
    return tree


def _host_node(name: str) -> int:
    tree = syscalls.open_tree(syscalls.AT_FDCWD, f"/dev/{name}", syscalls.OPEN_TREE_CLONE)
    kernelfs.require_node(tree, name)
    # The device can be written to all the same, but not its owner and mode: it is the host's own node.
    attributes = syscalls.MOUNT_ATTR_RDONLY
    syscalls.mount_setattr(tree, name, set_attributes=attributes, recursive=False, propagation=syscalls.MS_PRIVATE)
    return tree


def _attach_over(tree: int, path: str) -> None:
    place = os.open(path, os.O_PATH | os.O_DIRECTORY)
    syscalls.move_mount(tree, place, path)
    os.close(place)


# The app's child


def show_console(slave: int) -> None:
    """Bind the app's terminal on /dev/console (spec 0.8.11, "ACE", "Execution Environment"), in place of that of an
    earlier start. Called after `furnish`. Raises LaunchError."""
    try:
        place = _console()
        if syscalls.filesystem_type(place) == syscalls.DEVPTS_SUPER_MAGIC:
            # That of an earlier start, which is gone perhaps, and cannot be mounted on then.
            os.close(place)
            syscalls.umount2("/dev/console", syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
            place = _console()
        tree = syscalls.open_tree(slave, "", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH)
        syscalls.move_mount(tree, place, "/dev/console")
        os.close(tree)
        os.close(place)
    except OSError as error:
        raise LaunchError(f"cannot show the terminal as /dev/console: {error.strerror or reason(error)}") from error


def _console() -> int:
    """What is there, without opening it: a terminal that was hung up cannot be."""
    if not os.path.lexists("/dev/console"):
        os.close(os.open("/dev/console", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOCTTY, 0o600))
    place = os.open("/dev/console", os.O_PATH | os.O_NOFOLLOW)
    if stat.S_ISLNK(os.fstat(place).st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return place


def furnish(plan: AppPlan, fds: list[int]) -> int:
    """Make the app's root from `fds`, as `open_app` gave them, and enter it: nothing but the terminal (`show_console`)
    is mounted afterwards. Called in a child of the supervisor that has just left its mount namespace. Closes `fds`.
    Returns the mount of its credentials, for `launch`, or NO_SOURCE. Raises LaunchError."""
    sources = iter(fds)
    credentials = NO_SOURCE
    root_fd = next(sources)
    try:
        _attach_over(root_fd, PLACE)
        root = AppRoot(root_fd, {mount_id(root_fd)}, set())
        for step in plan.steps:
            source = next(sources) if isinstance(step, SourcedStep) else NO_SOURCE
            if isinstance(step, Credentials):
                credentials = os.dup(source)
            step.apply(root, source)
        switch_root(root_fd)
        os.close(root_fd)
    except OSError as error:
        raise LaunchError(f"cannot furnish the app's root: {error.strerror or reason(error)}") from error
    return credentials
