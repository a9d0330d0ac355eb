"""A flavour that runs nothing and writes down what it is told, installed as any distribution's flavour would be."""

from __future__ import annotations

import json
import os
import signal
from typing import Any, NoReturn

from common.errors import PodError
from stage1 import poddir
from stage1.flavour import EnterRequest, PreparedApp, PreparedPod


def _record(directory: str, *what: Any) -> None:
    with open(f"{directory}/calls", "a", encoding="utf-8") as file:
        file.write(json.dumps(what) + "\n")


def check(pod: PreparedPod) -> list[str]:
    return [f"recorder ignores {option}" for option in pod.asked]


def run(pod: PreparedPod) -> NoReturn:
    poddir.write_leader(pod.directory, os.getpid())
    os.makedirs(f"{pod.directory}/started", exist_ok=True)
    _record(pod.directory, "run", pod)
    os.write(1, b"up\n")
    signal.pause()
    raise SystemExit(0)


def enter(request: EnterRequest) -> NoReturn:
    _record(
        request.directory, "enter", request.app.name, request.command, request.user, request.cwd, request.privileged
    )
    raise SystemExit(0)


def stop(directory: str, *, force: bool) -> None:
    leader = poddir.read_leader(directory)
    assert leader is not None
    os.kill(leader.pid, signal.SIGKILL if force else signal.SIGTERM)


def gc(directory: str) -> None:
    _record(directory, "gc")


def app_add(pod: PreparedPod, app: PreparedApp) -> None:
    if os.path.exists(f"{pod.directory}/refuse"):
        raise PodError("recorder refuses")
    _record(pod.directory, "app_add", [other.name for other in pod.apps], app)


def app_start(directory: str, app: str) -> None:
    _record(directory, "app_start", app)


def app_stop(directory: str, app: str, *, force: bool) -> None:
    _record(directory, "app_stop", app, force)


def app_restart(directory: str, app: str) -> None:
    _record(directory, "app_restart", app)


def app_rm(directory: str, app: str) -> None:
    _record(directory, "app_rm", app)


def app_states(directory: str) -> dict[str, str]:
    try:
        with open(f"{directory}/states", encoding="utf-8") as file:
            return dict(json.load(file))
    except FileNotFoundError:
        return {}


def attach(directory: str, app: str, mode: str) -> int:
    _record(directory, "attach", app, mode)
    return 7
