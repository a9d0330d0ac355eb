"""`rkpy stop`: end running pods."""

from __future__ import annotations

import click

from common.errors import PodError, RkpyError
from stage0 import awaiting, flags
from stage0.commands.pod_arguments import uuids
from stage0.config import Config
from stage0.pods import Pods, State
from stage1 import flavour


@click.command("stop")
@flags.switch("--force", "kill instead of asking to end")
@click.option("--uuid-file", metavar="FILE", help="read pod UUID from file instead of argument")
@click.argument("uuid", nargs=-1)
@click.pass_obj
def command(config: Config, uuid: tuple[str, ...], uuid_file: str | None, force: bool) -> None:
    """Stop a pod.

    Asks the pod's apps to end (SIGTERM), or ends them (--force: SIGKILL), and does not wait; rkpy status --wait does.
    """
    pods = Pods(config.pods).require_own()
    failures = 0
    for prefix in uuids(uuid, uuid_file):
        try:
            click.echo(_stop(pods, prefix, force))
        except RkpyError as error:
            failures += 1
            click.echo(f"rkpy: stop: {error}", err=True)
    if failures:
        raise PodError(f"failed to stop {failures} pod(s)")


def _stop(pods: Pods, prefix: str, force: bool) -> str:
    """What to print: the quoted UUID, or that there is nothing to stop."""
    try:
        pod = pods.find(prefix)
    except PodError as error:
        raise PodError(f"cannot get pod: {error.message}", hint=error.hint) from error
    with awaiting.start(pods, pod) as pod:
        state = pod.state()
        if state is not State.RUNNING and state.started:
            return f'pod "{pod.uuid}" is already stopped'
        if state is not State.RUNNING:
            raise PodError(f'pod "{pod.uuid}" is not running')
        flavour.load(pod.flavour()).stop(pod.path, force=force)
        return f'"{pod.uuid}"'
