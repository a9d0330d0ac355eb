"""`rkpy man`: the manual pages."""

from __future__ import annotations

import os

import click

from common import files
from common.errors import RkpyError, reason
from stage0 import manpages


@click.command("man")
@click.option("--output", default=".", show_default=True, metavar="DIR", help="directory to write them into")
def command(output: str) -> None:
    """Write the manual pages, one for each command, made from what the commands know of themselves.

    SOURCE_DATE_EPOCH in the environment is the date in them. man -l FILE shows one; rkpy install-units puts them where
    man looks.
    """
    try:
        os.makedirs(output, exist_ok=True)
        for name, text in manpages.pages():
            files.replace(f"{output}/{name}", text.encode())
    except OSError as error:
        raise RkpyError(f"{error.filename or output}: {reason(error)}") from error
