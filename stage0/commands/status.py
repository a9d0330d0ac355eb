"""`rkpy status`: how a pod fares, and waiting for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import click

from aci.store import Store
from common.errors import PodError, RkpyError
from stage0 import flags, podinfo, podnets, render
from stage0.commands.pod_arguments import one_uuid
from stage0.config import Config
from stage0.podinfo import AppInfo, PodInfo
from stage0.pods import Pod, Pods, State


@click.command("status")
@click.option(
    "--wait",
    cls=flags.OptionalValue,
    type=flags.wait,
    is_flag=False,
    flag_value="true",
    default="false",
    help="wait until the pod is over: for ever, or for as long as is given (--wait=10s)",
)
@click.option(
    "--wait-ready",
    cls=flags.OptionalValue,
    type=flags.wait,
    is_flag=False,
    flag_value="true",
    default="false",
    help="wait until the pod has started: for ever, or for as long as is given (--wait-ready=10s)",
)
@click.option("--format", "form", type=click.Choice(["", "json", "json-pretty"]), default="", help="print JSON instead")
@click.option("--uuid-file", metavar="FILE", help="read pod UUID from file instead of argument")
@click.argument("uuid", nargs=-1)
@click.pass_obj
def command(
    config: Config, uuid: tuple[str, ...], uuid_file: str | None, wait: int, wait_ready: int, form: str
) -> None:
    """Check the status of a rkpy pod.

    The exit status tells whether the status could be told, not how the pod fared.
    """
    pods = Pods(config.pods)
    with pods.find(one_uuid(uuid, uuid_file)) as pod:
        name = pod.uuid
    if wait_ready:
        _wait(pods, name, lambda pod: pod.is_ready() or _is_over(pod), wait_ready, "is not ready")
    if wait:
        _wait(pods, name, _is_over, wait, "is not over")
    info = _read(pods, name)
    if form:
        render.write_json(podinfo.to_json(info), pretty=form == "json-pretty")
    else:
        lines = [*_lines(info), *_signers(info, Store(config.store)), *_limits(info)]
        click.echo("".join(f"{key}={value}\n" for key, value in lines), nl=False)


def _read(pods: Pods, uuid: str) -> PodInfo:
    while True:
        with pods.find(uuid) as pod:
            try:
                return podinfo.read(pod)
            except RkpyError:
                if not pod.has_moved():
                    raise


def _is_over(pod: Pod) -> bool:
    return pod.state() not in (State.EMBRYO, State.PREPARING, State.PREPARED, State.RUNNING)


def _wait(pods: Pods, uuid: str, condition: Callable[[Pod], bool], timeout: int, not_yet: str) -> None:
    """Poll every 100 ms, as rkt does. Raises PodError when `timeout` (nanoseconds, negative: none) has passed."""
    deadline = time.monotonic_ns() + timeout
    while True:
        with pods.find(uuid) as pod:  # anew each time: it may have been moved
            if condition(pod):
                return
        if timeout > 0 and time.monotonic_ns() >= deadline:
            raise PodError(f'pod "{uuid}" {not_yet} after {timeout / 1e9:g} s')
        time.sleep(0.1)


def _signers(pod: PodInfo, store: Store) -> Iterator[tuple[str, object]]:
    """Which key vouched for the image of each app, as far as the store still knows: not in rkt's output, so last."""
    for app in pod.apps:
        try:
            verification = store.get(app.image_id).verification
        except RkpyError:
            continue
        if verification is not None:
            yield f"signed-{app.name}", verification.fingerprint


def _limits(pod: PodInfo) -> Iterator[tuple[str, object]]:
    """What became of the limits of the pod ("-") and its apps."""
    for limit in pod.limits:
        yield f"limit-{limit.app}-{limit.name}", limit.verdict


def _lines(pod: PodInfo) -> list[tuple[str, object]]:
    lines: list[tuple[str, object]] = [("state", pod.state)]
    if pod.name:
        lines.append(("name", pod.name))
    if pod.created_at is not None:
        lines.append(("created", render.timestamp(pod.created_at)))
    if pod.started_at is not None:
        lines.append(("started", render.timestamp(pod.started_at)))
    if not pod.state.started:
        return lines
    lines.append(("networks", podnets.describe(pod.networks)))
    if pod.pid is not None:
        lines.append(("pid", pod.pid))
    if pod.unit:
        lines.append(("unit", pod.unit))
    if pod.machine:
        lines.append(("machine", pod.machine))
    if pod.hardware is not None:
        lines.append(("hardware-acceleration", pod.hardware.acceleration))
        lines.append(("hardware-cpus", pod.hardware.cpus))
        lines.append(("hardware-memory", f"{pod.hardware.memory >> 20}Mi"))
        lines.append(("hardware-kernel", pod.hardware.kernel))
    for app in pod.apps:
        if app.health:
            lines.append((f"app-{app.name}-health", app.health))
        if app.health_text:
            lines.append((f"app-{app.name}-health-reason", app.health_text))
    over = pod.state is not State.RUNNING
    lines.append(("exited", "true" if over else "false"))
    if over:
        for app in pod.apps:
            lines.extend(_ending(app))
    return lines


def _ending(app: AppInfo) -> Iterator[tuple[str, object]]:
    if app.exit_code is not None:
        yield f"app-{app.name}", app.exit_code
    if app.signal:
        yield f"app-{app.name}-signal", app.signal
    if app.oom_killed:
        yield f"app-{app.name}-oom", "true"
