"""`rkpy list`: the pods and their apps."""

from __future__ import annotations

from typing import Any

import click

from common.errors import RkpyError
from stage0 import flags, podinfo, podnets, render
from stage0.config import Config
from stage0.podinfo import AppInfo, PodInfo
from stage0.pods import Pods

_HEADER = ("UUID", "APP", "IMAGE NAME", "STATE", "CREATED", "STARTED", "NETWORKS")
_FULL_HEADER = (*_HEADER[:3], "IMAGE ID", *_HEADER[3:])


@click.command("list")
@flags.switch("--full", "whole UUIDs, image IDs and times")
@flags.switch("--no-legend", "leave out the header")
@click.option("--format", "form", type=click.Choice(["", "json", "json-pretty"]), default="", help="print JSON instead")
@click.pass_obj
def command(config: Config, full: bool, no_legend: bool, form: str) -> None:
    """List pods."""
    errors: dict[str, RkpyError] = {}
    found: list[PodInfo] = []
    for pod in Pods(config.pods).all():
        try:
            found.append(podinfo.read(pod))
        except RkpyError as error:
            if not pod.has_moved():  # else it has become garbage under our eyes
                errors[pod.uuid] = error
    if form:
        render.write_json([podinfo.to_json(pod) for pod in found], pretty=form == "json-pretty")
    else:
        _print_table(found, full=full, legend=not no_legend)
    if errors:
        click.echo(f"rkpy: list: {len(errors)} error(s) encountered when listing pods:", err=True)
        for uuid, failure in errors.items():
            click.echo(f"rkpy: list: {'' if uuid in str(failure) else f'pod {uuid}: '}{failure}", err=True)


def _print_table(found: list[PodInfo], *, full: bool, legend: bool) -> None:
    rows: list[tuple[str, ...]] = [_FULL_HEADER if full else _HEADER] if legend else []
    for pod in found:
        rows.extend(_rows(pod, full=full))
    if any(pod.name for pod in found):
        # rkt has no such column: last, so that its scripts find the others where they were.
        names = ["POD NAME"] if legend else []
        names += [name for pod in found for name in (pod.name, *[""] * (len(pod.apps) - 1))]
        rows = [(*row, name) for row, name in zip(rows, names, strict=True)]
    click.echo(render.table(rows), nl=False)


def _rows(pod: PodInfo, *, full: bool) -> list[tuple[str, ...]]:
    """One row for each app; what concerns the pod is in the first only."""
    show: Any = render.timestamp if full else render.ago
    times = tuple("" if time is None else show(time) for time in (pod.created_at, pod.started_at))
    identity = pod.uuid if full else pod.uuid[:8]
    first, *others = pod.apps or (AppInfo("-", "-", "-"),)
    rows = [(identity, *_app_cells(first, full=full), pod.state, *times, podnets.describe(pod.networks))]
    rows.extend(("", *_app_cells(app, full=full), "", "", "", "") for app in others)
    return rows


def _app_cells(app: AppInfo, *, full: bool) -> tuple[str, ...]:
    name = app.image_name or "--"
    return (app.name, name, app.image_id[:19]) if full else (app.name, name)
