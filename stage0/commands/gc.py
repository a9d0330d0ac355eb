"""`rkpy gc`: collect dead pods."""

from __future__ import annotations

import os

import click

from common.errors import EXIT_FAILURE, RkpyError, UsageError
from stage0 import flags, gc
from stage0.config import Config
from stage0.pods import Pods


@click.command("gc")
@click.option(
    "--grace-period",
    type=flags.duration,
    default="30m",
    show_default=True,
    help="how long a pod that has exited stays before it is removed",
)
@click.option(
    "--expire-prepared",
    type=flags.duration,
    default="24h",
    show_default=True,
    help="how long a prepared pod waits to be run before it is removed",
)
@flags.switch("--mark-only", "only move what has exited to the garbage, which starts the grace period; remove nothing")
@click.option(
    "--keep-last",
    metavar="NAME:N",
    default="",
    help="of the dead pods of this name remove all but the N youngest, whatever the grace period",
)
@click.pass_obj
def command(config: Config, grace_period: int, expire_prepared: int, mark_only: bool, keep_last: str) -> int:
    """Garbage collect rkpy pods no longer in use.

    Pods that have exited are first moved to the garbage; a later collection removes those that have been there for
    longer than the grace period. --grace-period=0s removes them at once.
    """
    flags.require_root()
    name, keep = _last(keep_last)
    failures: list[RkpyError] = []

    def complain(error: RkpyError) -> None:
        failures.append(error)
        _notice(str(error))

    pods = Pods(config.pods)
    for uuid in gc.mark_exited(pods, complain):
        _notice(f'moving pod "{uuid}" to garbage')
    for uuid in gc.mark_aborted(pods, complain):
        _notice(f'moving failed prepare "{uuid}" to garbage')
    for uuid in gc.surplus(pods, name, keep) if name else ():
        _discard(pods, uuid, complain)
    if not mark_only:
        for uuid in gc.expire_prepared(pods, expire_prepared, complain):
            _notice(f'moving expired prepared pod "{uuid}" to garbage')
        _sweep(pods, grace_period, complain)
        _sweep_networks(complain)
    return EXIT_FAILURE if failures else 0


def _last(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition(":")
    if text and not (name and number.isascii() and number.isdigit()):
        raise UsageError(f"--keep-last={text}: it takes NAME:N")
    return name, int(number[:9] or 0)


def _discard(pods: Pods, uuid: str, complain: gc.Complain) -> None:
    try:
        gc.discard(pods, uuid, _notice)
        click.echo(f'Garbage collecting pod "{uuid}"')
    except RkpyError as error:
        complain(error)


def _sweep(pods: Pods, grace_period: int, complain: gc.Complain) -> None:
    mounts: gc.Mounts | None = None
    for pod, due in gc.sweep(pods, grace_period, complain):
        if not due:
            _notice(f'pod "{pod.uuid}" not removed: still within grace period')
            continue
        click.echo(f'Garbage collecting pod "{pod.uuid}"')
        # Read once however many pods there are; what was mounted later than that was not mounted by a dead pod.
        mounts = gc.read_mounts(pods.root) if mounts is None else mounts
        try:
            gc.remove(pod, mounts)
        except RkpyError as error:
            complain(error)


def _sweep_networks(complain: gc.Complain) -> None:
    """What pods had of networks whose directories somebody else has removed, or whose monitor was killed."""
    from stage1.network import state

    if os.path.isdir(state.ROOT):
        from stage1.network import owners

        for uuid in owners.sweep(complain):
            _notice(f'took back what pod "{uuid}" had of networks')


def _notice(text: str) -> None:
    click.echo(f"rkpy: gc: {text}", err=True)
