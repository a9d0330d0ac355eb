"""`rkpy gc`: collect dead pods."""

from __future__ import annotations

import os

import click

from common import users
from common.errors import EXIT_FAILURE, PodError, RkpyError, UsageError, reason
from stage0 import flags, gc, rootless
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
@flags.switch("--quiet", "say nothing but what went wrong")
@flags.switch("--mark-only", "only move what has exited to the garbage, which starts the grace period; remove nothing")
@click.option(
    "--keep-last",
    metavar="NAME:N",
    default="",
    help="of the dead pods of this name remove all but the N youngest, whatever the grace period",
)
@click.pass_obj
def command(
    config: Config, grace_period: int, expire_prepared: int, quiet: bool, mark_only: bool, keep_last: str
) -> int:
    """Garbage collect rkpy pods no longer in use.

    Pods that have exited are first moved to the garbage; a later collection removes those that have been there for
    longer than the grace period. --grace-period=0s removes them at once.
    """
    rootless.become_root()
    name, keep = _last(keep_last)
    told = _Told(quiet)
    pods = Pods(config.pods).require_own()
    for uuid in gc.mark_exited(pods, told.complain):
        told.notice(f'moving pod "{uuid}" to garbage')
    for uuid in gc.mark_aborted(pods, told.complain):
        told.notice(f'moving failed prepare "{uuid}" to garbage')
    for uuid in gc.surplus(pods, name, keep) if name else ():
        _discard(pods, uuid, told)
    if not mark_only:
        for uuid in gc.expire_prepared(pods, expire_prepared, told.complain):
            told.notice(f'moving expired prepared pod "{uuid}" to garbage')
        _sweep(pods, grace_period, told)
        _sweep_volumes(pods, told)
        _sweep_networks(told)
    return EXIT_FAILURE if told.failures else 0


class _Told:
    """What people hear of a collection."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self.failures = 0

    def complain(self, error: RkpyError) -> None:
        self.failures += 1
        click.echo(f"rkpy: gc: {error}", err=True)

    def notice(self, text: str) -> None:
        if not self._quiet:
            click.echo(f"rkpy: gc: {text}", err=True)

    def removing(self, uuid: str) -> None:
        if not self._quiet:
            click.echo(f'Garbage collecting pod "{uuid}"')


def _last(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition(":")
    if text and not (name and number.isascii() and number.isdigit()):
        raise UsageError(f"--keep-last={text}: it takes NAME:N")
    return name, int(number[:9] or 0)


def _discard(pods: Pods, uuid: str, told: _Told) -> None:
    try:
        gc.discard(pods, uuid, told.notice)
        told.removing(uuid)
    except RkpyError as error:
        told.complain(error)


def _sweep(pods: Pods, grace_period: int, told: _Told) -> None:
    mounts: gc.Mounts | None = None
    for pod, due in gc.sweep(pods, grace_period, told.complain):
        if not due:
            told.notice(f'pod "{pod.uuid}" not removed: still within grace period')
            continue
        told.removing(pod.uuid)
        # Read once however many pods there are; what was mounted later than that was not mounted by a dead pod.
        mounts = gc.read_mounts(pods.root) if mounts is None else mounts
        try:
            gc.remove(pod, mounts)
        except RkpyError as error:
            told.complain(error)


def _sweep_volumes(pods: Pods, told: _Told) -> None:
    """What is left of named volumes whose removal or making was interrupted."""
    from stage0 import namedvolumes

    try:
        namedvolumes.finish(pods)
    except OSError as error:
        told.complain(PodError(f"remove what is left of a volume: {error.filename or pods.root}: {reason(error)}"))


def _sweep_networks(told: _Told) -> None:
    """What pods had of networks whose directories somebody else has removed, or whose monitor was killed."""
    from stage1.network import state

    # What is claimed is root's of the host.
    if os.path.isdir(state.ROOT) and not users.confined():
        from stage1.network import owners

        for uuid in owners.sweep(told.complain):
            told.notice(f'took back what pod "{uuid}" had of networks')
