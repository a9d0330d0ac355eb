"""`rkpy volume`: the volumes that have names, and taking them away."""

from __future__ import annotations

import click

from common.errors import PodError, RkpyError, UsageError
from stage0 import flags, namedvolumes, render, rootless
from stage0.config import Config
from stage0.pods import Pods

_HEADER = ("NAME", "PODS", "DIRECTORY")


@click.command("list")
@flags.switch("--no-legend", "leave out the header")
@click.option("--format", "form", type=click.Choice(["", "json", "json-pretty"]), default="", help="print JSON instead")
@click.pass_obj
def list_volumes(config: Config, no_legend: bool, form: str) -> None:
    """List named volumes.

    PODS is how many pods use one, those that have ended too until they are collected (rkpy gc, rkpy rm).
    """
    pods = Pods(config.pods)
    names, root = namedvolumes.names(pods), namedvolumes.directory(pods)
    users: dict[str, list[str]] = {}
    try:
        users = namedvolumes.users(pods)
    except PodError as error:
        click.echo(f"rkpy: volume list: {error}", err=True)
    if form:
        found = [{"name": name, "pods": users.get(name, []), "directory": f"{root}/{name}"} for name in names]
        render.write_json(found, pretty=form == "json-pretty")
        return
    rows = [(name, str(len(users.get(name, []))), f"{root}/{name}") for name in names]
    click.echo(render.table(rows if no_legend else [_HEADER, *rows]), nl=False)


@click.command("rm")
@click.argument("name", nargs=-1)
@click.pass_obj
def remove(config: Config, name: tuple[str, ...]) -> None:
    """Remove named volumes.

    Everything that is in them goes. One that a pod uses stays, until the pod is collected (rkpy gc, rkpy rm).
    """
    if not name:
        raise UsageError("must provide the name of a volume")
    rootless.become_root()
    pods = Pods(config.pods).require_own()
    failed = False
    for each in name:
        try:
            namedvolumes.remove(pods, each)
            click.echo(f'"{each}"')
        except RkpyError as error:
            failed = True
            click.echo(f"rkpy: volume rm: {error}", err=True)
    if failed:
        raise PodError("failed to remove one or more volumes")
