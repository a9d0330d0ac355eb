"""`rkpy install-units`: the way of those who installed rkpy with pip to what a distribution's package would bring."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable

import click

from common.errors import RkpyError, UsageError, located
from stage0 import flags, installing, invocation

_NEXT = (
    "systemd-sysusers",
    "systemd-tmpfiles --create rkpy.conf",
    "journalctl --update-catalog",
    "systemctl daemon-reload",
    "systemctl enable --now rkpy-gc.timer",
)


@click.command("install-units")
@click.option("--root", default="", metavar="DIR", help="install below this directory, the root of another system")
@click.option(
    "--prefix",
    type=click.Choice(installing.PREFIXES),
    default=installing.PREFIXES[0],
    show_default=True,
    help="where to",
)
@click.option("--program", "words", default="", metavar="COMMAND", help="what the units run instead of this rkpy")
@flags.switch("--uninstall", "remove what was installed and has not been changed")
@flags.switch("--dry-run", "only print what would be done")
def command(root: str, prefix: str, words: str, uninstall: bool, dry_run: bool) -> None:
    """Install units, manual pages and completion where the system looks for them.

    Files that are not rkpy's, or that were changed, are not touched: nothing is installed while one is in the way.
    Installing again brings everything up to date. The units run this rkpy: by its name if systemd finds it by that.
    """
    root = os.path.realpath(root) if root else ""
    root = "" if root == "/" else root
    before = installing.record(root, prefix)
    wanted = [] if uninstall else installing.all_files(root, prefix, _program(words, root))
    _stay_below(root, installing.places(prefix, wanted, before))
    doing = installing.removal(root, before) if uninstall else installing.changes(root, wanted, before)
    if not dry_run:
        try:
            os.umask(0o022)
            installing.apply(root, prefix, wanted, doing, before)
        except OSError as error:
            raise RkpyError(located(error), hint="run it as root, or with --root=DIR") from error
    for file in doing.write:
        click.echo(f"installed {root}{file.path}")
    for path in doing.remove:
        click.echo(f"removed {root}{path}")
    for path in doing.kept:
        click.echo(f"rkpy: install-units: {root}{path} was changed and stays", err=True)
    if doing.write and not root:
        click.echo("rkpy: install-units: to have it take effect:", err=True)
        for line in _NEXT:
            click.echo(f"    {line}", err=True)


def _program(words: str, root: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(words)) or invocation.command(root)
    except ValueError as error:
        raise UsageError(f"--program={words}: {error}") from error


def _stay_below(root: str, paths: Iterable[str]) -> None:
    """No symbolic link below the root leads out of it: an absolute one is meant for the other system."""
    for path in paths if root else ():
        if not path.startswith("/") or not f"{os.path.realpath(root + os.path.dirname(path))}/".startswith(f"{root}/"):
            raise RkpyError(f"{root}{os.path.dirname(path)} leads out of {root}")
