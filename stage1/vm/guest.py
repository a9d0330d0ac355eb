"""The first process of a pod's virtual machine: it makes the kernel usable and becomes the agent (`stage1.vm.agent`).

It runs as /init of the initramfs, with the interpreter and the modules that are in there and nothing else. What goes
wrong is one line on the console and, if it is there already, a `broken` on the port; then the guest is switched off.
"""

from __future__ import annotations

import gc
import os
import select
import time
from typing import NoReturn

from common import syscalls
from common.errors import LaunchError, located, reason
from stage1.vm import frames, guestmodules

_ROOT = "/root"
"""A directory of the initramfs."""
_PORTS = "/sys/class/virtio-ports"
_PATIENCE = 30.0
"""Seconds for the port to appear: the host gives up earlier."""
_POLL = 0.002
_FILES = (1024, 1 << 19)
"""How many descriptors a process has, and how many it may ask for: what systemd gives processes of a host
(systemd-system.conf(5), DefaultLimitNOFILE=). The kernel's own first process may have 4096."""
_QUIET = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
_MOUNTS = (
    ("proc", "/proc", "proc", _QUIET, None),
    ("sysfs", "/sys", "sysfs", _QUIET, None),
    ("devtmpfs", "/dev", "devtmpfs", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, "mode=755"),
    ("devpts", "/dev/pts", "devpts", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, "mode=620,ptmxmode=666"),
    ("tmpfs", "/run", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=755"),
    ("tmpfs", "/tmp", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=1777"),  # noqa: S108
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", _QUIET, None),
)


def main() -> NoReturn:
    """All of the guest's life."""
    gc.disable()
    port = -1
    try:
        port = _boot()
        from stage1.vm import agent

        why = agent.serve(os.dup(port))
    except LaunchError as error:
        why = _complain(port, str(error))
    except OSError as error:
        why = _complain(port, located(error))
    except BaseException as error:
        why = _complain(port, f"bug in the guest: {error!r}")
    _switch_off(why)


def _boot() -> int:
    """The open port."""
    loading = _load_beside()
    syscalls.setrlimit(syscalls.RLIMIT_NOFILE, *_FILES)
    _leave_initramfs()
    for source, target, kind, flags, data in _MOUNTS:
        _mount(source, target, kind, flags, data)
    from stage1.vm import agent  # noqa: F401  # It takes a while, as modules do.

    loading.wait()
    # Set-ID programs work in the roots of apps, which lie there; devices do not.
    _mount(frames.TAG, frames.SHARE, "virtiofs", syscalls.MS_NODEV, None)
    return _open_port()


def _leave_initramfs() -> None:
    """Its root is not one that can be left by pivot_root(2), and so would stay below those of the apps: have one that
    can, with the same in it."""
    try:
        os.makedirs(_ROOT, exist_ok=True)
        syscalls.mount("/", _ROOT, None, syscalls.MS_BIND)
        os.chdir(_ROOT)
        syscalls.mount(".", "/", None, syscalls.MS_MOVE)
        os.chroot(".")
        os.chdir("/")
    except OSError as error:
        raise LaunchError(f"cannot leave the initramfs: {located(error)}") from error


def _mount(source: str, target: str, kind: str, flags: int, data: str | None) -> None:
    try:
        os.makedirs(target, exist_ok=True)
        syscalls.mount(source, target, kind, flags, data)
    except OSError as error:
        raise LaunchError(f"cannot mount {kind} on {target}: {reason(error)}") from error


class _Loading:
    """Modules are being loaded, by a child where there is a processor for it."""

    def __init__(self, pid: int, errors: int) -> None:
        self._pid = pid
        self._errors = errors

    def wait(self) -> None:
        if not self._pid:
            return
        with open(self._errors, "rb") as file:
            said = file.read()
        _, status = os.waitpid(self._pid, 0)
        if said or status:
            raise LaunchError(said.decode("utf-8", "replace") or "kernel modules could not be loaded")


def _load_beside() -> _Loading:
    if len(os.sched_getaffinity(0)) == 1:
        guestmodules.load(guestmodules.ORDER)
        return _Loading(0, -1)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return _Loading(pid, reading)
    try:
        guestmodules.load(guestmodules.ORDER)
    except BaseException as error:
        os.write(writing, str(error).encode("utf-8", "backslashreplace"))
    finally:
        os._exit(0)


def _open_port() -> int:
    """The port, once its other end is there."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        name = _find_port()
        if name:
            fd = _opened(f"/dev/{name}")
            if fd >= 0:
                return fd
        time.sleep(_POLL)
    raise LaunchError(f'there is no port "{frames.PORT}"')


def _find_port() -> str:
    try:
        names = os.listdir(_PORTS)
    except FileNotFoundError:
        return ""
    for name in names:
        try:
            with open(f"{_PORTS}/{name}/name", encoding="ascii") as file:
                if file.read().strip() == frames.PORT:
                    return name
        except OSError:
            pass  # The host has not said yet what it is called.
    return ""


def _opened(path: str) -> int:
    """-1 as long as the device is not there, or nobody at its other end (POLLHUP)."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except FileNotFoundError:
        return -1
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if any(events & select.POLLHUP for _, events in poll.poll(0)):
        os.close(fd)
        return -1
    return fd


def _complain(port: int, text: str) -> str:
    if port >= 0:
        try:
            os.write(port, frames.encode_message(f"broken {text}"))
        except OSError:
            pass  # It stays on the console.
    return text


def _switch_off(why: str) -> NoReturn:
    """Say why, and end. By a restart, as after a panic: QEMU's -no-reboot makes it the end, and unlike powering off it
    is possible on every kind of machine."""
    _say(f"rkpy: guest: {why}")
    os.sync()
    try:
        syscalls.reboot(syscalls.RB_AUTOBOOT)
    finally:
        os._exit(1)  # The kernel panics.


def _say(line: str) -> None:
    raw = " ".join(line.splitlines()).encode("utf-8", "backslashreplace") + b"\n"
    try:
        fd = os.open("/dev/console", os.O_WRONLY | os.O_NOCTTY)
    except OSError:
        fd = 2
    try:
        os.write(fd, raw)
    except OSError:
        pass
