"""`rkpy stop`: end running pods."""

from __future__ import annotations

import time

import click

from common.errors import PodError, RkpyError
from stage0 import flags
from stage0.commands.pod_arguments import uuids
from stage0.config import Config
from stage0.pods import Pod, Pods, State
from stage1 import flavour

_PATIENCE = 60.0
"""Seconds to wait for a pod that is just starting: systemd may take 25 for each answer before there is a scope."""


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
    with pod:
        state = pod.state()
        if state is not State.RUNNING and state.started:
            return f'pod "{pod.uuid}" is already stopped'
        if state is not State.RUNNING:
            raise PodError(f'pod "{pod.uuid}" is not running')
        wait_for_leader(pod)
        flavour.load(pod.flavour()).stop(pod.path, force=force)
        return f'"{pod.uuid}"'


def wait_for_leader(pod: Pod) -> None:
    """A pod is running before its leader is recorded, and without a leader there is nothing a flavour could stop."""
    end = time.monotonic() + _PATIENCE
    while pod.leader() is None and pod.state() is State.RUNNING:
        if time.monotonic() > end:
            raise PodError(f'pod "{pod.uuid}" has not started its apps yet', hint="try again")
        time.sleep(0.1)
