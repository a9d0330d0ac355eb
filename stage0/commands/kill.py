"""`rkpy kill`: a signal to the apps of running pods."""

from __future__ import annotations

import signal

import click

from common.errors import PodError, RkpyError
from stage0 import apps, behaviour
from stage0.commands.pod_arguments import app_name, uuids
from stage0.config import Config
from stage0.pods import Pods
from stage1 import flavour


@click.command("kill")
@click.option("--signal", "-s", "wanted", default="KILL", metavar="SIGNAL", help="signal, by name or number")
@click.option("--app", default="", metavar="NAME", help="only to this app")
@click.option("--uuid-file", metavar="FILE", help="read pod UUID from file instead of argument")
@click.argument("uuid", nargs=-1)
@click.pass_obj
def command(config: Config, uuid: tuple[str, ...], uuid_file: str | None, wanted: str, app: str) -> None:
    """Send a signal to the main process of every app of a pod.

    SIGKILL, the default, ends the pod with everything in it, unless it is for one app only.
    """
    number = behaviour.stop_signal(wanted)
    pods = Pods(config.pods).require_own()
    failures = 0
    for name in uuids(uuid, uuid_file):
        try:
            click.echo(_kill(pods, name, app, number))
        except RkpyError as error:
            failures += 1
            click.echo(f"rkpy: kill: {error}", err=True)
    if failures:
        raise PodError(f"failed to signal {failures} pod(s)")


def _kill(pods: Pods, name: str, app: str, number: int) -> str:
    """The quoted UUID."""
    with apps.find_running(pods, name) as pod:
        if app:
            app_name([one.name for one in pod.manifest().apps], app)
        if number == signal.SIGKILL and not app:
            flavour.load(pod.flavour()).stop(pod.path, force=True)
        else:
            apps.operation(pod, "send_signal")(pod.path, app, number)
        return f'"{pod.uuid}"'
