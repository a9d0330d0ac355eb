"""`rkpy version`."""

from __future__ import annotations

import platform

import click

from aci.image_manifest import ImageManifest
from rkpy import VERSION


@click.command("version")
def command() -> None:
    """Print the version and exit."""
    click.echo(f"rkpy Version: {VERSION}")
    click.echo(f"appc Version: {ImageManifest._field_defaults['ac_version']}")
    click.echo(f"Python Version: {platform.python_version()}")
    click.echo(f"Python OS/Arch: {platform.system().lower()}/{platform.machine()}")
