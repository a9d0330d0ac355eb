"""Values of flags, as click types: Go's booleans and durations; and the gate for commands that only root may run."""

from __future__ import annotations

import os

import click

from common.errors import RkpyError, UsageError
from stage0 import durations

_TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))

FOR_EVER = -1


def go_bool(text: str) -> bool:
    """A boolean in the spellings of Go's strconv.ParseBool. For an option made with
    `type=go_bool, is_flag=False, flag_value="true"`: `--x`, `--x=false`."""
    if text not in _TRUE and text not in _FALSE:
        raise click.BadParameter(f'"{text}" is neither true nor false')
    return text in _TRUE


def duration(text: str) -> int:
    """A duration such as `30m`, in nanoseconds."""
    try:
        return durations.parse(text)
    except UsageError as error:
        raise click.BadParameter(str(error)) from error


def wait(text: str) -> int:
    """How long to wait, a boolean or a duration: in nanoseconds, 0 for not at all, negative for ever."""
    if text in _TRUE or text in _FALSE:
        return FOR_EVER if text in _TRUE else 0
    return duration(text)


def require_root() -> None:
    """Raises RkpyError for anybody but root: one line now instead of a permission error half way."""
    if os.geteuid() != 0:
        raise RkpyError("cannot run as unprivileged user", hint="run it as root")
