"""The file system of a supervised app, made by the processes that will make it, as small as they can be."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from common import syscalls
from common.errors import RkpyError
from stage1 import apptree
from stage1.plan import AppPlan, dumps, loads
from tests.host.flying import wait

CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
FIRST, COUNT = 400000, 65536
"""The host's IDs a pod with a user namespace has."""


def _nothing() -> None:
    pass


class Setting(NamedTuple):
    """What varies between pods, and what is done in their processes before the part under test."""

    users: bool = False
    host_network: bool = False
    on_host: Callable[[], object] = _nothing
    """Called in what stands for the host: a mount namespace of the test's own."""
    afterwards: Callable[[], Any] | None = None
    """Called there in the end; `inside` returns what it returns, beside what `look` does."""
    in_monitor: Callable[[], object] = _nothing


PLAIN = Setting()


def inside(plan: AppPlan, look: Callable[[], Any], setting: Setting = PLAIN) -> Any:
    """What `look` returns in the app furnished by `plan`. RkpyError comes through as one."""
    return _Pod(loads(dumps(plan)), look, setting).run()


class _Pod:
    def __init__(self, plan: AppPlan, look: Callable[[], Any], setting: Setting) -> None:
        self.plan, self.look, self.setting = plan, look, setting
        self.read_end, self.write_end = os.pipe()

    def run(self) -> Any:
        host = self._fork(self._host)
        os.close(self.write_end)
        with open(self.read_end, "rb") as file:
            answers = [json.loads(line) for line in file]
        assert wait(host) == 0
        for answer in answers:
            assert "bug" not in answer, answer["bug"]
            if "error" in answer:
                raise RkpyError(answer["error"])
        results = [answer["result"] for answer in answers]
        return results if self.setting.afterwards else results[0]

    def _fork(self, action: Callable[[], object]) -> int:
        child = os.fork()
        if child == 0:
            self._end(action)
        return child

    def _end(self, action: Callable[[], object]) -> NoReturn:
        """Do it, tell how it went, and be gone."""
        answer: dict[str, Any] = {}
        try:
            result = action()
            if result is not None:
                answer["result"] = result
        except RkpyError as error:
            answer["error"] = str(error)
        except BaseException as error:
            answer["bug"] = repr(error)
        if answer:
            os.write(self.write_end, json.dumps(answer).encode() + b"\n")
        os._exit(0)

    def _host(self) -> Any:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        self.setting.on_host()
        wait(self._fork(self._monitor))
        return self.setting.afterwards() if self.setting.afterwards else None

    def _monitor(self) -> None:
        host = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
        self.users = user_namespace() if self.setting.users else None
        self.setting.in_monitor()
        with open("/proc/self/mountinfo", "rb") as before:
            had = before.read().count(b"\n")
        self.plan = apptree.present(self.plan)
        self.fds = apptree.open_app(self.plan, self.users, host)
        with open("/proc/self/mountinfo", "rb") as after:
            new = after.read().splitlines()[had:]
        assert not [line for line in new if b" - tmpfs " not in line], new
        wait(self._fork(self._pod))

    def _pod(self) -> None:
        if self.users is not None:
            syscalls.setns(self.users, CLONE_NEWUSER)
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        network = 0 if self.setting.host_network else CLONE_NEWNET
        syscalls.unshare(syscalls.CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | network)
        wait(self._fork(self._supervisor))

    def _supervisor(self) -> None:
        apptree.supervisor_root()
        wait(self._fork(self._app))

    def _app(self) -> Any:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        apptree.furnish(self.plan, self.fds)
        return self.look()


def user_namespace() -> int:
    holder = os.fork()
    if holder == 0:
        syscalls.unshare(CLONE_NEWUSER)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(holder, os.WUNTRACED)
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{holder}/{name}", "w") as file:
            file.write(f"0 {FIRST} {COUNT}\n")
    fd = os.open(f"/proc/{holder}/ns/user", os.O_RDONLY)
    os.kill(holder, signal.SIGCONT)
    wait(holder)
    return fd
