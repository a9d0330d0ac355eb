"""What the flavours have in common whose pods are looked after by a monitor: becoming it, and asking it for things.

This module runs in the engine, and in the commands about running pods.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from common import files
from common.errors import NetworkError, PodError
from stage1 import app_steps, boot, cgroup, control, implicit, logdriver, poddir
from stage1.channel import memory_file
from stage1.compiling import compile_app, require_sources
from stage1.flavour import EnterRequest, PreparedApp, PreparedPod
from stage1.limits import Limits
from stage1.network.plan import Names, NetworkPlan
from stage1.plan import AppPlan, PodPlan, dumps, loads
from stage1.systemd.given import FIRST_SOCKET
from stage2.launch import LaunchSpec

_LAUNCH = "launch"
"""The file among an app's that holds its LaunchSpec."""
_NAMES = "asked"
"""The file in the pod's etc/ that holds what was typed about names."""
_PATIENCE = 600.0
"""Seconds until `rkpy app stop` gives up waiting for an app that does not die, and `rkpy app start` for its start."""


def announce(pod: PreparedPod, kind: str, limits: Limits) -> None:
    """Have systemd told of the pod, a machine of `kind` ("container" or "vm"), if it is to be. First of all: it takes
    its time. `limits` are those of its unit."""
    if pod.manager is not None:
        from stage1.systemd import registrar

        begun = boot.begin_registrar(pod.manager)
        # A user's network is a process for as long as the pod is, and belongs into its scope. Root's worker just ends.
        worker = boot.begin_worker().pid if pod.networks and not pod.manager.is_system else 0
        registrar.announce(pod.manager, begun, pod, limits, kind=kind, worker=worker)


def run(pod: PreparedPod, made: PodPlan) -> NoReturn:
    """Become the monitor of `pod`, which carries out `made` and exits with the pod's status. It was announced."""
    app_steps.write_names(pod.directory, made.hostname)
    logdriver.record(pod.directory, made.log_driver)
    if pod.name_options:
        _record_names(pod)
    for app, planned in zip(pod.apps, made.apps, strict=True):
        implicit.fill(pod, app)
        _record_launch(pod.directory, planned)
        if pod.debug:
            _describe(planned)
    keep = [pod.lock_fd]
    if pod.networks:
        worker = boot.begin_worker()
        with suppress(BrokenPipeError):  # It has failed already, and the monitor will hear why.
            worker.channel.send(
                "plan", (memory_file(dumps(_network_plan(pod)._replace(taps=made.machine is not None))), pod.lock_fd)
            )
        keep.append(worker.channel.fileno())
        made = made._replace(worker=worker.pid)
    if pod.unit:
        poddir.write_word(pod.directory, poddir.UNIT, pod.unit)
    if pod.manager is not None:
        registrar = boot.begin_registrar(pod.manager)
        keep.append(registrar.channel.fileno())
        made = made._replace(registrar=registrar.pid)
    if made.credentials:
        files.make_directory(poddir.credentials(pod.directory), 0o700)
        keep.append(pod.credentials)
    keep += range(FIRST_SOCKET, FIRST_SOCKET + len(made.given.sockets))
    boot.execute("run", dumps(made), keep=keep)


def _network_plan(pod: PreparedPod) -> NetworkPlan:
    return NetworkPlan(
        uuid=pod.uuid,
        directory=pod.directory,
        networks=pod.networks,
        names=pod.names,
        ports=pod.published,
        bandwidth=pod.bandwidth,
        plugin_path=pod.plugin_path,
    )


def _record_names(pod: PreparedPod) -> None:
    """For apps that are added later; and at once where no network has a say in it."""
    files.replace(poddir.etc(pod.directory, _NAMES), dumps(pod.names))
    if not pod.networks:
        from stage1.network import names

        for warning in names.write(_network_plan(pod), []):
            boot.complain("run", warning)


def as_started(pod: PreparedPod) -> PreparedPod:
    """A pod that runs already, for an app that is added to it, with what it was started with."""
    return pod._replace(
        networks=(),
        names=_recorded_names(pod.directory),
        credentials=_recorded_credentials(pod.directory),
        log_driver=logdriver.of_pod(pod.directory),
    )


def _recorded_names(directory: str) -> Names:
    try:
        with open(poddir.etc(directory, _NAMES), "rb") as file:
            names = loads(file.read())
    except FileNotFoundError:
        return Names("")
    except (OSError, ValueError) as error:
        raise PodError(f"cannot tell what the pod's files about names are to say: {error}") from error
    return names if isinstance(names, Names) else Names("")


def _recorded_credentials(directory: str) -> int:
    """Says whether there are some. They are the monitor's to see."""
    try:
        return os.open(poddir.credentials(directory), os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        return -1


def _describe(app: AppPlan) -> None:
    lines = [app.root.describe(), *(step.describe() for step in app.steps)]
    os.write(2, "".join(f"{app.name}: {line}\n" for line in lines).encode("utf-8", "backslashreplace"))


def _record_launch(directory: str, app: AppPlan) -> None:
    """So that `enter` gives a command the very restrictions its app has."""
    files.replace(poddir.app_info(directory, app.name, _LAUNCH), dumps(app.launch), mode=0o640)


def launch_of(request: EnterRequest) -> LaunchSpec:
    """How a command beside an app is to be launched: as the app was, but for what the request changes. PodError when
    that is not known."""
    app = request.app.name
    try:
        with open(poddir.app_info(request.directory, app, _LAUNCH), "rb") as file:
            spec = loads(file.read())
        if not isinstance(spec, LaunchSpec):
            raise ValueError("it is no LaunchSpec")
    except (OSError, ValueError) as error:
        raise PodError(f'cannot tell how app "{app}" was started: {error}') from error
    return _entering(spec, request)


def _entering(spec: LaunchSpec, request: EnterRequest) -> LaunchSpec:
    """The app's launch with what the request changes of it."""
    spec = spec._replace(argv=request.command)
    if request.privileged:
        spec = spec._replace(
            user="0", group="0", supplementary_gids=(), capabilities=None, ambient=(), seccomp=b"", rlimits=(),
            oom_score_adj=None, no_new_privileges=False,
        )  # fmt: skip
    if request.user:
        user, _, group = request.user.partition(":")
        spec = spec._replace(user=user, group=group, supplementary_gids=(), ambient=())
    return spec._replace(working_directory=request.cwd) if request.cwd else spec


def gc(directory: str) -> None:
    """Remove the pod's cgroups and detach it from its networks; everything else went with its last process or lies in
    its directory."""
    cgroup.gc(directory)
    if os.path.exists(f"{directory}/net"):
        from stage1.network.detach import detach

        problems = detach(directory)
        if problems:
            raise NetworkError("; ".join(problems), hint="rkpy rm --force removes the pod all the same")


def send_signal(directory: str, app: str, number: int) -> None:
    """To the main process of an app; without a name, of every app."""
    control.request(directory, {"op": "signal", "app": app, "signal": number})


def reload(directory: str) -> None:
    """Have the monitor do what it does when it is sent SIGHUP. Returns once the apps have been signalled."""
    control.request(directory, {"op": "reload"})


# --- pods that change


def app_add(pod: PreparedPod, app: PreparedApp) -> None:
    """Tell the running `pod`, as it runs, of an app, which `app_start` starts."""
    made, _ = compile_app(pod, app)
    require_sources(made)
    implicit.fill(pod, app)
    _record_launch(pod.directory, made)
    fd = memory_file(dumps(made))
    try:
        control.request(pod.directory, {"op": "add"}, (fd,))
    finally:
        os.close(fd)


def app_start(directory: str, app: str) -> None:
    """Returns once the app is executed. Raises PodError when it could not be."""
    _await_attempt(directory, app, control.request(directory, {"op": "start", "app": app}))


def _await_attempt(directory: str, app: str, answer: dict[str, Any]) -> None:
    """The next one to execute the app, after what `answer` counts: until then nobody can enter or signal it."""
    if "attempts" not in answer:
        return  # The monitor is of an older rkpy.
    end = time.monotonic() + _PATIENCE
    while (told := control.request(directory, {"op": "attempts", "app": app}))["attempts"] <= answer["attempts"]:
        if told["state"] != "running":
            raise PodError(f'app "{app}" was stopped before it was executed')
        if time.monotonic() > end:
            raise PodError(f'app "{app}" is still being started')
        time.sleep(0.02)
    if told["trouble"]:
        raise PodError(f'app "{app}" could not be started: {told["trouble"]}')


def app_stop(directory: str, app: str, *, force: bool) -> None:
    """Returns once the app has ended."""
    control.request(directory, {"op": "kill" if force else "stop", "app": app})
    end = time.monotonic() + _PATIENCE
    while app_states(directory).get(app) == "running":
        if time.monotonic() > end:
            raise PodError(f'app "{app}" does not end')
        time.sleep(0.02)


def app_restart(directory: str, app: str) -> None:
    """Returns as `app_start` does."""
    _await_attempt(directory, app, control.request(directory, {"op": "restart", "app": app}))


def app_rm(directory: str, app: str) -> None:
    control.request(directory, {"op": "rm", "app": app})


def app_states(directory: str) -> dict[str, str]:
    """created, running or exited, by app."""
    states: dict[str, str] = control.request(directory, {"op": "states"})["states"]
    return states


def endpoints(directory: str, app: str) -> tuple[str, ...]:
    """What of the app's streams can be attached to."""
    return tuple(control.request(directory, {"op": "endpoints", "app": app})["endpoints"])


def attach(directory: str, app: str, mode: str) -> int:
    """Connect the caller's streams with the app's until one side ends; with the mode "list" only say what there is."""
    from stage1 import attach as client

    available = endpoints(directory, app)
    if mode == client.LIST:
        os.write(1, "".join(f"{name}\n" for name in available).encode())
        return 0

    def connect(names: Sequence[str], fds: Sequence[int]) -> None:
        control.request(directory, {"op": "attach", "app": app, "endpoints": list(names)}, tuple(fds))

    def resize(rows: int, columns: int) -> None:
        control.request(directory, {"op": "resize", "app": app, "rows": rows, "columns": columns})

    client.attach(client.choose(mode, available), connect, resize=resize)
    return 0
