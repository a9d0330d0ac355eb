"""The nspawn flavour: a pod in namespaces of its own, looked after by a supervisor that is its PID 1.

This module runs in the engine. It turns the pod into a plan (`stage1.plan`) and becomes the monitor, which carries it
out; see docs/nspawn.md.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from aci.isolators import NETWORK_BANDWIDTH
from common import files, journal
from common.errors import NetworkError, PodError, UsageError
from stage1 import app_steps, appsockets, boot, cgroup, control, implicit, logdriver, poddir, resources, restrictions
from stage1.channel import memory_file
from stage1.flavour import EnterRequest, PreparedApp, PreparedPod
from stage1.mounts import Bind
from stage1.network.plan import Names, NetworkPlan
from stage1.plan import HEALTHY, READY_NOTIFY, READY_STARTED, AppPlan, EnterPlan, PodPlan, dumps, loads
from stage1.processes import send
from stage1.rootfs import CopiedRoot, OverlayRoot
from stage1.streams import Streams
from stage1.systemd.given import FIRST_SOCKET, booted
from stage1.terminal import get_size
from stage2 import capabilities
from stage2.launch import LaunchSpec

NETWORKS = True
_LAUNCH = "launch"
"""The file among an app's that holds its LaunchSpec."""
_AS_GOOD_AS_ROOT = ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_DAC_READ_SEARCH")
_NAMES = "asked"
"""The file in the pod's etc/ that holds what was typed about names."""
_PATIENCE = 600.0
"""Seconds until `rkpy app stop` gives up waiting for an app that does not die."""
_FLAGS = {"memory": "--memory", "cpu": "--cpu", "cpu_weight": "--cpu-shares", "pids": "--pids-limit"}
"""The flags that ask for a limit, by its field in Limits."""


def check(pod: PreparedPod) -> list[str]:
    """What nspawn will ignore of `pod`, one line each. UsageError for what cannot be ignored safely, LaunchError for a
    volume that cannot be mounted."""
    pod = _as_it_runs(pod)
    _refuse(pod)
    pod = _with_log_driver(pod, journal.is_there())
    warnings = []
    if pod.published:
        from stage1.network import ports

        ports.require_free(pod.published)
        warnings += ports.warnings(pod.published)
    kept = (*restrictions.RESOURCES, *([NETWORK_BANDWIDTH] if pod.bandwidth else []))
    ignored = (isolator.name for isolator in pod.isolators if isolator.name not in kept)
    warnings += [f'nspawn ignores isolator "{name}" of the pod' for name in ignored]
    for app in pod.apps:
        made, more = _app_plan(pod, app)
        warnings += more
        warnings += implicit.warnings(pod, app)
        warnings += _dangers(pod, made)
        _require_sources(made)
    if pod.starts and booted():
        from stage1.systemd import units

        warnings += units.warnings(pod.keep_unit)
    return warnings + _unenforceable(pod)


def _with_log_driver(pod: PreparedPod, there: bool) -> PreparedPod:
    """With the one it will use; `there`: whether there is a journal. Raises LaunchError."""
    return pod._replace(log_driver=logdriver.choose(pod.log_driver, there=there))


def _as_it_runs(pod: PreparedPod) -> PreparedPod:
    """A pod that runs already, and is to have one more app, with the network and the IPC namespace it has."""
    leader = poddir.read_leader(pod.directory)
    if leader is None or not leader.is_alive():
        return pod
    net, ipc = (_shares(leader.pid, kind) for kind in ("net", "ipc"))
    return pod._replace(
        net=("host",) if net else ("none",),
        networks=(),
        names=_recorded_names(pod.directory),
        credentials=_recorded_credentials(pod.directory),
        log_driver=logdriver.of_pod(pod.directory),
        ipc="parent" if ipc else "private",
    )


def _shares(pid: int, kind: str) -> bool:
    """Whether the process is in our namespace of this kind (namespaces(7))."""
    try:
        return os.path.samefile(f"/proc/{pid}/ns/{kind}", f"/proc/self/ns/{kind}")
    except FileNotFoundError as error:
        raise PodError("the pod has just ended") from error


def _dangers(pod: PreparedPod, app: AppPlan) -> list[str]:
    """Warnings for an app that is given what makes its root the host's, or its network (docs/security.md)."""
    if pod.private_range[1]:
        return []
    held = [name for name in _AS_GOOD_AS_ROOT if _has(app, name)]
    found = [f'app "{app.name}" can become root of the host by {", ".join(held)}'] if held else []
    # By the identifier that the kernel has for the namespace at the other end of a veth (IFLA_TARGET_NETNSID).
    if _has(app, "CAP_NET_ADMIN") and "none" not in (pod.net or ()):
        found.append(f'app "{app.name}" can change the network of the host by CAP_NET_ADMIN')
    return [f"{danger}; --private-users keeps it from that" for danger in found]


def _has(app: AppPlan, capability: str) -> bool:
    return capabilities.number(capability) in (app.launch.capabilities or ())


def _require_sources(app: AppPlan) -> None:
    for step in app.steps:
        if isinstance(step, Bind) and not step.own:
            step.require_source()


def _refuse(pod: PreparedPod) -> None:
    if not pod.apps and not pod.mutable:
        raise UsageError("the pod has no apps")
    for app in pod.apps:
        if not app.app.exec:
            raise UsageError(f'app "{app.name}" has nothing to execute', hint="name a program with --exec")
    if pod.ready == HEALTHY and not any(app.health for app in pod.apps):
        raise UsageError("--ready=healthy: no app has a health check", hint="give one --health-cmd")
    if pod.interactive and len(pod.apps) != 1:
        raise UsageError(f"--interactive takes exactly one app, not {len(pod.apps)}")


def _unenforceable(pod: PreparedPod) -> list[str]:
    """A warning for each limit that cannot be kept here; UsageError for one that was typed."""
    why = cgroup.enforceable(pod.directory, boot.ours())
    found = []
    wanted = [("the pod", resources.of_pod(pod.isolators))]
    wanted += [(f'app "{app.name}"', resources.of_pod(app.app.isolators)) for app in pod.apps]
    for owner, limits in wanted:
        for field, value in limits._asdict().items():
            problem = why[cgroup.CONTROLLER_OF[field]]
            if not value or not problem:
                continue
            if _FLAGS.get(field, "") in pod.asked:
                raise UsageError(f"{_FLAGS[field]} cannot be enforced here: {problem}")
            found.append(f"{field.replace('_', ' ')} limit of {owner} is not enforceable here: {problem}")
    return found


def plan(pod: PreparedPod) -> PodPlan:
    """`pod` with every decision taken."""
    there = journal.is_there()
    pod = _with_log_driver(pod, there)
    return PodPlan(
        uuid=pod.uuid,
        directory=pod.directory,
        lock_fd=pod.lock_fd,
        apps=tuple(_app_plan(pod, app)[0] for app in pod.apps),
        hostname=pod.hostname,
        host_network=app_steps.uses_host_network(pod),
        join=pod.join,
        private_ipc=pod.ipc != "parent",
        private_range=pod.private_range,
        exit_policy=pod.exit_policy,
        stop_timeout=pod.stop_timeout,
        interactive=pod.interactive,
        window=get_size(0) if pod.interactive else (0, 0),
        mutable=pod.mutable,
        limits=resources.of_pod(pod.isolators),
        debug=pod.debug,
        name=pod.name,
        given=pod.given,
        log_driver=pod.log_driver,
        journal=there,
        ready=_readiness(pod),
        credentials=pod.credentials >= 0,
    )


def _readiness(pod: PreparedPod) -> str:
    return pod.ready or (READY_NOTIFY if any(app.notifies for app in pod.apps) else READY_STARTED)


def _app_plan(pod: PreparedPod, app: PreparedApp) -> tuple[AppPlan, list[str]]:
    """The plan of one app, and a warning for everything of it that will be ignored."""
    launch, warnings = _launch_spec(pod, app)
    as_root = launch._replace(user="0", group="0", supplementary_gids=(), working_directory="/")
    handlers = {handler.name: (as_root._replace(argv=handler.exec),) for handler in app.app.event_handlers}
    made = AppPlan(
        name=app.name,
        root=_root(pod, app),
        steps=app_steps.steps(pod, app),
        launch=launch._replace(environment=(*launch.environment, *_told(pod, app))),
        pre_start=handlers.get("pre-start", ()),
        post_stop=handlers.get("post-stop", ()),
        streams=_streams(pod, app),
        restart=app.restart,
        stop_signal=app.stop_signal,
        limits=resources.of_app(app.app.isolators),
        image_id=app.image_id,
        image_name=app.image_name,
        sockets=app_steps.sockets(pod, app),
        health=app.health,
        listening=app.listening,
    )
    return made, warnings


def _told(pod: PreparedPod, app: PreparedApp) -> list[tuple[str, str]]:
    """Variables of an app that tells how it fares. No WATCHDOG_PID: it has PIDs of its own (sd_watchdog_enabled(3))."""
    if not app_steps.notifies(pod, app):
        return []
    found = [("NOTIFY_SOCKET", f"{appsockets.TARGET}/{appsockets.NOTIFY}")]
    return [*found, ("WATCHDOG_USEC", str(pod.given.watchdog))] if pod.given.watchdog else found


def _streams(pod: PreparedPod, app: PreparedApp) -> Streams:
    return Streams("tty", "tty", "tty") if pod.interactive and os.isatty(0) else app.streams


def _root(pod: PreparedPod, app: PreparedApp) -> OverlayRoot | CopiedRoot:
    place = poddir.rootfs(pod.directory, app.name)
    if not app.layers:
        return CopiedRoot(place)
    return OverlayRoot(app.layers, poddir.overlay(pod.directory, app.name), place, pod.uuid)


def _launch_spec(pod: PreparedPod, app: PreparedApp) -> tuple[LaunchSpec, list[str]]:
    section = app.app
    spec = LaunchSpec(
        app_name=app.name,
        argv=section.exec,
        environment=(*section.environment, *app_steps.credentials_variable(pod)),
        user=section.user,
        group=section.group,
        supplementary_gids=section.supplementary_gids,
        working_directory=section.working_directory,
        no_new_privileges=False,
        keep_fds=(),
        # What the caller has when it is no terminal stays the caller's.
        owns_streams=not pod.interactive or "tty" in _streams(pod, app),
    )
    cache = f"{pod.data_directory}/cache/seccomp"
    return restrictions.restrict(spec, section.isolators, insecure=pod.insecure, cache=cache)


def run(pod: PreparedPod) -> NoReturn:
    """Become the pod's monitor, which exits with the pod's status."""
    registrar = boot.begin_registrar() if booted() else None
    if registrar is not None:
        from stage1.systemd.registrar import announce

        announce(registrar, pod, resources.of_pod(pod.isolators), machine=True)
    made = plan(pod)
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
            worker.channel.send("plan", (memory_file(dumps(_network_plan(pod))), pod.lock_fd))
        keep.append(worker.channel.fileno())
        made = made._replace(worker=worker.pid)
    if registrar is not None:
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
    """For apps that are added later: whether there are some. They are the monitor's to see."""
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


def enter(request: EnterRequest) -> NoReturn:
    """Run the command beside the app, with its identity and restrictions unless the request says otherwise."""
    app = request.app.name
    started = poddir.read_started(request.directory, app)
    if started is None or poddir.start_time(started[0]) != started[1]:
        raise PodError(f'app "{app}" is not running')
    try:
        with open(poddir.app_info(request.directory, app, _LAUNCH), "rb") as file:
            spec = loads(file.read())
        if not isinstance(spec, LaunchSpec):
            raise ValueError("it is no LaunchSpec")
    except (OSError, ValueError) as error:
        raise PodError(f'cannot tell how app "{app}" was started: {error}') from error
    made = EnterPlan(request.directory, app, *started, _entering(spec, request))
    boot.execute("enter", dumps(made))


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


def stop(directory: str, *, force: bool) -> None:
    """Ask the supervisor to stop the apps, or kill it and with it everything in the pod."""
    leader = poddir.read_leader(directory)
    if leader is not None and leader.boot_id == poddir.boot_id():
        send(leader.pid, leader.start_time, signal.SIGKILL if force else signal.SIGTERM)


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


# --- pods that change


def app_add(pod: PreparedPod, app: PreparedApp) -> None:
    """Tell the running pod of an app, which `app_start` starts."""
    pod = _as_it_runs(pod)
    made, _ = _app_plan(pod, app)
    _require_sources(made)
    implicit.fill(pod, app)
    _record_launch(pod.directory, made)
    fd = memory_file(dumps(made))
    try:
        control.request(pod.directory, {"op": "add"}, (fd,))
    finally:
        os.close(fd)


def app_start(directory: str, app: str) -> None:
    control.request(directory, {"op": "start", "app": app})


def app_stop(directory: str, app: str, *, force: bool) -> None:
    """Returns once the app has ended."""
    control.request(directory, {"op": "kill" if force else "stop", "app": app})
    end = time.monotonic() + _PATIENCE
    while app_states(directory).get(app) == "running":
        if time.monotonic() > end:
            raise PodError(f'app "{app}" does not end')
        time.sleep(0.02)


def app_restart(directory: str, app: str) -> None:
    control.request(directory, {"op": "restart", "app": app})


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
