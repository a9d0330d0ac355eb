"""Pods for tests of fly: made by hand, run in a child, looked at from outside."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

from aci.image_manifest import App
from common.errors import RkpyError
from stage1 import fly, poddir
from stage1.flavour import EnterRequest, Mount, PreparedApp, PreparedPod
from tests import leaks

UUID = "5d7a9b1e-0000-4000-8000-"
DEADLINE = 120.0
"""Seconds until a test gives up waiting for what should take milliseconds."""


class Result(NamedTuple):
    status: int
    """As os.waitstatus_to_exitcode has it: the exit status, or minus the signal."""
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Running(NamedTuple):
    pid: int
    pod: PreparedPod

    def wait(self) -> int:
        return wait(self.pid)


class Workshop:
    """A directory for layers and pods."""

    def __init__(self, root: str, inspector: str) -> None:
        self.root = root
        self._inspector = inspector
        self._count = 0
        self.base = self.layer({"bin/": "", "etc/": ""})
        shutil.copy(inspector, f"{self.base}/bin/inspect")

    def layer(self, files: Mapping[str, bytes | str]) -> str:
        """A layer of these files: "name/" is a directory, content "->x" a symlink; executable below bin/."""
        path = self._new("layer")
        for name, content in files.items():
            place = f"{path}/{name}"
            os.makedirs(place if name.endswith("/") else os.path.dirname(place), exist_ok=True)
            if isinstance(content, str) and content.startswith("->"):
                os.symlink(content[2:], place)
            elif not name.endswith("/"):
                with open(place, "wb") as file:
                    file.write(content.encode() if isinstance(content, str) else content)
                os.chmod(place, 0o755 if "bin/" in name else 0o644)
        return path

    def pod(
        self,
        *words: str,
        layers: tuple[str, ...] = (),
        mounts: tuple[Mount, ...] = (),
        read_only_root: bool = False,
        copied: bool = False,
        pod_fields: Mapping[str, Any] | None = None,
        **app_fields: Any,
    ) -> PreparedPod:
        """A pod of one app that runs `inspect WORDS…`, unless `exec` says otherwise."""
        directory = self._new(UUID)
        app = App(**{"exec": ("inspect", *words), **app_fields})
        stack = (self.base, *layers)
        if copied:
            for layer in stack:
                shutil.copytree(layer, poddir.rootfs(directory, "app"), symlinks=True, dirs_exist_ok=True)
        prepared = PreparedApp("app", "sha512-0", app, () if copied else stack, read_only_root, mounts)
        pod = PreparedPod(
            uuid=os.path.basename(directory),
            directory=directory,
            lock_fd=self._lock(directory),
            apps=(prepared,),
            net=None,
            ports=(),
            name_options=(),
            hostname="",
            ipc="auto",
            private_users=False,
            isolators=(),
            asked=(),
            debug=False,
        )
        return pod._replace(**pod_fields or {})

    def _new(self, prefix: str) -> str:
        self._count += 1
        path = f"{self.root}/{prefix}{self._count:012d}"
        os.mkdir(path)
        return path

    def _lock(self, directory: str) -> int:
        """As stage0 hands it over: a shared lock on a read-only descriptor."""
        fd = os.open(f"{directory}/{poddir.LOCK}", os.O_RDONLY | os.O_CREAT, 0o640)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi0q", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
        return fd

    def run(self, pod: PreparedPod, *, before: Callable[[], object] = lambda: None, stdin: str = os.devnull) -> Result:
        """Run the pod to its end. `before` is called in the child that becomes the app."""
        return self._finish(self._spawn(lambda: fly.run(pod), pod, before, stdin), pod)

    def enter(self, pod: PreparedPod, *command: str) -> Result:
        request = EnterRequest(pod.directory, pod.apps[0], command)
        other = pod._replace(directory=self._new("enter"), lock_fd=-1)
        return self._finish(self._spawn(lambda: fly.enter(request), other, lambda: None, os.devnull), other)

    @contextmanager
    def running(self, pod: PreparedPod) -> Iterator[Running]:
        """The pod once its app has printed something; killed at the end if it still lives."""
        pid = self._spawn(lambda: fly.run(pod), pod, lambda: None, os.devnull)
        try:
            until(lambda: read(f"{pod.directory}/out"))
            yield Running(pid, pod)
        finally:
            leader = poddir.read_leader(pod.directory) or _NOBODY
            # Orphans are this process's children (tests.leaks); nobody else's process is killed, whatever fly says.
            ours = {pid, *leaks.living_children()}
            for member in {member for member, _ in fly.members(pod.directory, leader)} & ours:
                os.kill(member, signal.SIGKILL)
            reap(pid)

    def _spawn(self, action: Callable[[], NoReturn], pod: PreparedPod, before: Callable[[], object], stdin: str) -> int:
        child = os.fork()
        if child == 0:
            try:
                _redirect(pod.directory, stdin)
                before()
                action()
            except RkpyError as error:
                os.write(2, f"{error}\n".encode("utf-8", "backslashreplace"))
                os._exit(error.exit_status)
            except BaseException as error:
                os.write(2, f"bug: {error!r}\n".encode())
            finally:
                os._exit(98)
        if pod.lock_fd >= 0:
            os.close(pod.lock_fd)
        return child

    def _finish(self, pid: int, pod: PreparedPod) -> Result:
        return Result(wait(pid), read(f"{pod.directory}/out"), read(f"{pod.directory}/err"))


_NOBODY = poddir.Leader(0, 0, 0, "")


def _redirect(directory: str, stdin: str) -> None:
    for target, path, flags in ((0, stdin, os.O_RDONLY), (1, "out", os.O_CREAT), (2, "err", os.O_CREAT)):
        fd = os.open(f"{directory}/{path}" if target else path, flags | (os.O_WRONLY if target else 0), 0o600)
        os.dup2(fd, target)
        os.close(fd)


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "gave up waiting"
        time.sleep(0.01)


def wait(pid: int) -> int:
    """The exit status of a child, killed when it takes too long."""
    end = time.monotonic() + DEADLINE
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError("the pod did not end")
        time.sleep(0.002)


def reap(pid: int) -> None:
    """Collect a child that may have been collected already."""
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass
