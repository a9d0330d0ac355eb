"""`rkpy app start|stop|restart|rm|list|status|exec` and `rkpy attach`: the apps of one pod."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import click

from common.errors import PodError, UsageError
from stage0 import apps, awaiting, flags, podinfo, render, rootless
from stage0.commands import enter
from stage0.commands.pod_arguments import app_name
from stage0.config import Config
from stage0.podinfo import AppInfo
from stage0.pods import EMBRYO, GARBAGE, Pod, Pods, State

_STREAMS = ("stdin", "stdout", "stderr")
_TERMINAL = ("tty", "tty-in", "tty-out")

_app: Callable[[Any], Any] = click.option(
    "--app", default="", metavar="NAME", help="name of the app; needed when the pod has more than one"
)
_uuid = click.argument("uuid")
_format = click.option(
    "--format", "form", type=click.Choice(["", "json", "json-pretty"]), default="", help="print JSON instead"
)


def _name(pod: Pod, wanted: str) -> str:
    return app_name([app.name for app in pod.manifest().apps], wanted)


def _mutable(config: Config, uuid: str, app: str) -> tuple[Pod, str]:
    pod = apps.find_running(Pods(config.pods).require_own(), uuid)
    apps.require_mutable(pod)
    return pod, _name(pod, app)


@click.command("app start")
@_app
@_uuid
@click.pass_obj
def start(config: Config, uuid: str, app: str) -> None:
    """Start an app that was added to a running pod."""
    pod, name = _mutable(config, uuid, app)
    with pod:
        apps.operation(pod, "app_start")(pod.path, name)


@click.command("app stop")
@_app
@flags.switch("--force", "kill instead of asking to end")
@_uuid
@click.pass_obj
def stop(config: Config, uuid: str, app: str, force: bool) -> None:
    """Stop an app of a running pod, which goes on."""
    pod, name = _mutable(config, uuid, app)
    with pod:
        apps.operation(pod, "app_stop")(pod.path, name, force=force)


@click.command("app restart")
@_app
@_uuid
@click.pass_obj
def restart(config: Config, uuid: str, app: str) -> None:
    """Stop an app of a running pod and start it again."""
    pod, name = _mutable(config, uuid, app)
    with pod:
        apps.operation(pod, "app_restart")(pod.path, name)


@click.command("app rm")
@_app
@_uuid
@click.pass_obj
def rm(config: Config, uuid: str, app: str) -> None:
    """Remove an app from a pod, be it running or not, with all its files."""
    pods = Pods(config.pods).require_own()
    with awaiting.start(pods, pods.find(uuid)) as pod:
        state = pod.state()
        if state not in (State.RUNNING, State.EXITED, State.EXITED_GARBAGE):
            raise PodError(f'pod "{pod.uuid}" is {state}')
        apps.require_mutable(pod)
        name = _name(pod, app)
        alive = state is State.RUNNING
        if alive:
            apps.join(pod)
        else:
            rootless.become_root()
            pod.take(quietly=True)  # or somebody starts or removes it meanwhile
        apps.remove(pod, name, alive=alive)


@click.command("app list")
@flags.switch("--no-legend", "leave out the header")
@_uuid
@click.pass_obj
def list_apps(config: Config, uuid: str, no_legend: bool) -> None:
    """List the apps of a pod and their states."""
    with Pods(config.pods).find(uuid) as pod:
        rows = [] if no_legend else [("NAME", "STATE")]
        rows.extend(_states(pod).items())
    click.echo(render.table(rows), nl=False)


def _states(pod: Pod) -> dict[str, str]:
    if pod.directory in (EMBRYO, GARBAGE):
        raise PodError(f'pod "{pod.uuid}" is {pod.state()}')
    return apps.states(pod)


@click.command("app status")
@_app
@_format
@_uuid
@click.pass_obj
def status(config: Config, uuid: str, app: str, form: str) -> None:
    """Tell how one app of a pod fares."""
    with Pods(config.pods).find(uuid) as pod:
        found = apps.info(pod, _name(pod, app))
        if form:
            render.write_json(podinfo.app_to_json(podinfo.read(pod), found), pretty=form == "json-pretty")
            return
        lines = _lines(pod, found)
        click.echo("".join(f"{key}={value}\n" for key, value in lines), nl=False)


def _lines(pod: Pod, app: AppInfo) -> Iterator[tuple[str, object]]:
    yield "name", app.name
    yield "state", app.state
    yield "image_id", app.image_id
    started = None if app.state == "created" else app.started_at or pod.started_at
    for key, time in (("created_at", pod.created_at), ("started_at", started), ("finished_at", app.finished_at)):
        if time is not None:
            yield key, render.timestamp(time)
    if app.exit_code is not None:
        yield "exit_code", app.exit_code
    if app.signal:
        yield "signal", app.signal
    if app.oom_killed:
        yield "oom_killed", "true"
    if app.health:
        yield "health", app.health
    if app.restarts:
        yield "restarts", app.restarts
    if app.mounts:
        mounts = (f"{m.host_path}:{m.container_path}:(read_only:{str(m.read_only).lower()})" for m in app.mounts)
        yield "mounts", ",".join(mounts)
    for key, pairs in (("user_annotations", app.user_annotations), ("user_labels", app.user_labels)):
        if pairs:
            yield key, ",".join(f"{name}:{value}" for name, value in pairs)


@click.command("app exec", context_settings={"allow_interspersed_args": False})
@_app
@_uuid
@click.argument("words", metavar="CMD [ARGS]...", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def exec_command(config: Config, uuid: str, app: str, words: tuple[str, ...]) -> None:
    """Run CMD beside an app of a running pod, on the caller's terminal if there is one."""
    if not words or words == ("--",):
        raise UsageError("must provide a command to run")
    enter.run(config, uuid, app, words)


@click.command("attach")
@_app
@click.option(
    "--mode",
    default="auto",
    metavar="MODE",
    help="auto, list, tty, tty-in, tty-out, or some of stdin, stdout and stderr, comma-separated",
)
@_uuid
@click.pass_obj
def attach(config: Config, uuid: str, app: str, mode: str) -> int:
    """Attach to the streams of an app of a running pod.

    Only those streams can be attached to that are stream or tty (--stdin, --stdout and --stderr of run).
    """
    _check_mode(mode)
    with apps.find_running(Pods(config.pods).require_own(), uuid) as pod:
        result: int = apps.operation(pod, "attach")(pod.path, _name(pod, app), mode)
        return result


def _check_mode(mode: str) -> None:
    words = mode.split(",")
    if mode in ("auto", "list", *_TERMINAL) or (set(words) <= {*_STREAMS} and len(set(words)) == len(words)):
        return
    if set(words) <= {*_STREAMS, *_TERMINAL}:
        raise UsageError(f"--mode={mode}: a terminal and streams exclude each other")
    raise UsageError(f"--mode={mode}: not one of auto, list, tty, tty-in, tty-out, stdin,stdout,stderr")
