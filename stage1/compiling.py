"""A prepared pod compiled into the plan that its monitor carries out. Runs in the engine."""

from __future__ import annotations

import os

from aci.isolators import NETWORK_BANDWIDTH, RESOURCES
from common import journal, users
from common.errors import UsageError
from stage1 import app_steps, appsockets, implicit, logdriver, poddir, resources, restrictions
from stage1.flavour import PreparedApp, PreparedPod
from stage1.mounts import Bind
from stage1.plan import HEALTHY, READY_NOTIFY, READY_STARTED, AppPlan, PodPlan
from stage1.rootfs import CopiedRoot, OverlayRoot
from stage1.streams import Streams
from stage1.terminal import get_size
from stage2 import capabilities
from stage2.launch import LaunchSpec


def check(pod: PreparedPod, flavour: str) -> tuple[PodPlan, list[str]]:
    """The plan of `pod`, and a line for everything of it that `flavour` will ignore. UsageError for what cannot be
    ignored safely, LaunchError for a volume that cannot be mounted."""
    _refuse(pod)
    pod = _with_log_driver(pod, journal.is_there())
    warnings = []
    if pod.published:
        from stage1.network import pasta, ports

        ports.require_free(pod.published)
        if families := pasta.families(pod.networks):
            from stage1.network import userports

            userports.require_bindable(pod.published, families, pod.directory)
        else:
            warnings += ports.warnings(pod.published)
    kept = (*RESOURCES, *([NETWORK_BANDWIDTH] if pod.bandwidth else []))
    ignored = (isolator.name for isolator in pod.isolators if isolator.name not in kept)
    warnings += [f'{flavour} ignores isolator "{name}" of the pod' for name in ignored]
    made = []
    for app in pod.apps:
        planned, more = compile_app(pod, app)
        made.append(planned)
        warnings += more
        names = restrictions.ignored(app.app.isolators)
        warnings += (f'{flavour} ignores isolator "{name}" of app "{app.name}"' for name in names)
        warnings += implicit.warnings(pod, app)
        require_sources(planned)
    if pod.starts and pod.manager is not None and pod.manager.is_system:
        from stage1.systemd import units

        warnings += units.warnings(pod.keep_unit)
    return _pod_plan(pod, tuple(made)), warnings


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


def require_sources(app: AppPlan) -> None:
    for step in app.steps:
        if isinstance(step, Bind) and not step.own:
            step.require_source()


def _with_log_driver(pod: PreparedPod, there: bool) -> PreparedPod:
    """With the one it will use; `there`: whether there is a journal. Raises LaunchError."""
    return pod._replace(log_driver=logdriver.choose(pod.log_driver, there=there))


def compile_pod(pod: PreparedPod) -> PodPlan:
    """`pod` with every decision taken. Raises as `check` does."""
    pod = _with_log_driver(pod, journal.is_there())
    return _pod_plan(pod, tuple(compile_app(pod, app)[0] for app in pod.apps))


def _pod_plan(pod: PreparedPod, apps: tuple[AppPlan, ...]) -> PodPlan:
    return PodPlan(
        uuid=pod.uuid,
        directory=pod.directory,
        lock_fd=pod.lock_fd,
        apps=apps,
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
        journal=journal.is_there(),
        ready=_readiness(pod),
        credentials=pod.credentials >= 0,
        delegated=pod.delegated,
    )


def _readiness(pod: PreparedPod) -> str:
    return pod.ready or (READY_NOTIFY if any(app.notifies for app in pod.apps) else READY_STARTED)


def compile_app(pod: PreparedPod, app: PreparedApp) -> tuple[AppPlan, list[str]]:
    """The plan of one app, and warnings about it."""
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
        asked=pod.asked,
        image_id=app.image_id,
        image_name=app.image_name,
        sockets=app_steps.sockets(pod, app),
        health=app.health,
        listening=app.listening,
        reload_signal=app.reload_signal,
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
        keeps_groups=not pod.own_kernel and not pod.private_range[1] and not users.can_drop_groups(),
        # What the caller has when it is no terminal stays the caller's.
        owns_streams=not pod.interactive or "tty" in _streams(pod, app),
    )
    cache = f"{pod.data_directory}/cache/seccomp"
    # Root of a kernel of its own has all that this one may lack.
    have = frozenset(range(len(capabilities.NAMES))) if pod.own_kernel else None
    return restrictions.restrict(spec, section.isolators, insecure=pod.insecure, cache=cache, have=have)
