"""Values of flags, as click types: Go's booleans and durations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from common.errors import UsageError
from stage0 import durations
from stage0.options import FALSE, TRUE

FOR_EVER = -1


def go_bool(text: str) -> bool:
    """A Go boolean, as a click type."""
    if text not in TRUE and text not in FALSE:
        raise click.BadParameter(f'"{text}" is neither true nor false')
    return text in TRUE


def duration(text: str) -> int:
    """A duration such as `30m`, in nanoseconds."""
    try:
        return durations.parse(text)
    except UsageError as error:
        raise click.BadParameter(str(error)) from error


def wait(text: str) -> int:
    """How long to wait, a boolean or a duration: in nanoseconds, 0 for not at all, negative for ever."""
    if text in TRUE or text in FALSE:
        return FOR_EVER if text in TRUE else 0
    return duration(text)


class OptionalValue(click.Option):
    """An option that may stand without its value, and whose value may begin with a hyphen: `--wait`, `--wait=-1s`.

    click takes a hyphen after `=` for the next option. `clickrun` has given the bare ones their value by then, so here
    there always is one."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._flag_needs_value = False


def switch(name: str, text: str, default: str = "false") -> Callable[[Any], Any]:
    """A boolean option as Go's are: `--x`, `--x=false`. A second word in `name` names the parameter."""
    return click.option(
        *name.split(),
        type=go_bool,
        is_flag=False,
        flag_value="true",
        default=default,
        help=text,
        cls=OptionalValue,
    )
