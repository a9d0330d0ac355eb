"""`rkpy rm`: remove particular pods now."""

from __future__ import annotations

import click

from common.errors import PodError, RkpyError
from stage0 import flags, gc, rootless
from stage0.commands.pod_arguments import uuids
from stage0.config import Config
from stage0.pods import Pods


@click.command("rm")
@click.option("--uuid-file", metavar="FILE", help="read pod UUID from file instead of argument")
@flags.switch("--force", "remove a pod also when what was done for it outside cannot be undone, as by a network plugin")
@click.argument("uuid", nargs=-1)
@click.pass_obj
def command(config: Config, uuid: tuple[str, ...], uuid_file: str | None, force: bool) -> None:
    """Remove all files and resources associated with an exited pod.

    Unlike gc, rm removes the pods that are named, and removes them at once: those that have exited, were prepared and
    never run, or were never prepared to the end.
    """
    rootless.become_root()
    pods = Pods(config.pods).require_own()
    failed = False
    for prefix in uuids(uuid, uuid_file):
        try:
            click.echo(f'"{_remove(pods, prefix, force=force)}"')
        except RkpyError as error:
            failed = True
            _notice(str(error))
    if failed:
        raise PodError("failed to remove one or more pods")


def _remove(pods: Pods, prefix: str, *, force: bool) -> str:
    try:
        with pods.find(prefix) as pod:
            uuid = pod.uuid
    except PodError as error:
        raise PodError(f"cannot get pod: {error.message}", hint=error.hint) from error
    gc.discard(pods, uuid, _notice, force=force)
    return uuid


def _notice(text: str) -> None:
    click.echo(f"rkpy: rm: {text}", err=True)
