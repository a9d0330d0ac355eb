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


class Setting(NamedTuple):
    """What varies between pods."""

    users: bool = False
    host_network: bool = False
    cgroup: bool | None = None
    shared: bool = False
    """Whether the monitor knows the host's mount namespace."""


PLAIN = Setting()


def inside(
    plan: AppPlan, look: Callable[[], Any], setting: Setting = PLAIN, *, before: Callable[[], object] = lambda: None
) -> Any:
    """What `look` returns in the app furnished by `plan`; `before` is called in the supervisor. RkpyError comes
    through as one."""
    read_end, write_end = os.pipe()
    monitor = os.fork()
    if monitor == 0:
        _answer(write_end, lambda: _monitor(loads(dumps(plan)), setting, look, before, write_end))
    os.close(write_end)
    with open(read_end, "rb") as file:
        said = file.read()
    assert wait(monitor) == 0
    answer = json.loads(said)
    if "error" in answer:
        raise RkpyError(answer["error"])
    assert "bug" not in answer, answer["bug"]
    return answer["result"]


def _answer(write_end: int, action: Callable[[], object]) -> NoReturn:
    """Do it, tell how it went, and be gone."""
    try:
        result = {"result": action()}
    except RkpyError as error:
        result = {"error": str(error)}
    except BaseException as error:
        line = error.__traceback__.tb_lineno if error.__traceback__ else 0
        result = {"bug": f"{error!r} below line {line}"}
    if result != {"result": None}:
        os.write(write_end, json.dumps(result).encode())
    os._exit(0)


def _monitor(
    plan: AppPlan, setting: Setting, look: Callable[[], Any], before: Callable[[], object], write_end: int
) -> None:
    host = os.open("/proc/self/ns/mnt", os.O_RDONLY) if setting.shared else None
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
    users = _user_namespace() if setting.users else None
    fds = apptree.open_app(plan, users, host)
    pod = os.fork()
    if pod == 0:
        _answer(write_end, lambda: _pod(plan, setting, users, fds, look, before, write_end))
    wait(pod)


def _user_namespace() -> int:
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


def _pod(
    plan: AppPlan,
    setting: Setting,
    users: int | None,
    fds: list[int],
    look: Callable[[], Any],
    before: Callable[[], object],
    write_end: int,
) -> None:
    if users is not None:
        syscalls.setns(users, CLONE_NEWUSER)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    network = 0 if setting.host_network else CLONE_NEWNET
    syscalls.unshare(syscalls.CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | network)
    supervisor = os.fork()
    if supervisor == 0:
        _answer(write_end, lambda: _supervisor(plan, setting, fds, look, before, write_end))
    wait(supervisor)


def _supervisor(
    plan: AppPlan,
    setting: Setting,
    fds: list[int],
    look: Callable[[], Any],
    before: Callable[[], object],
    write_end: int,
) -> None:
    apptree.supervisor_root(cgroup=setting.cgroup)
    before()
    app = os.fork()
    if app == 0:
        _answer(write_end, lambda: _app(plan, fds, look))
    wait(app)


def _app(plan: AppPlan, fds: list[int], look: Callable[[], Any]) -> Any:
    syscalls.unshare(syscalls.CLONE_NEWNS)
    apptree.furnish(plan, fds)
    return look()
