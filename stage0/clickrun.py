"""Runs an ordinary click command inside rkpy: global flags after its name too, Go-style errors, our exit statuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from common.errors import UsageError
from stage0 import config
from stage0.help import print_help
from stage0.options import BOOL, GLOBAL, Flag, Values


def run_click(command: click.Command, name: str, words: Sequence[str]) -> int:
    """Run `command` with the Config its global flags come to as `ctx.obj`; the exit status."""
    typed = Values()
    command.add_help_option = False
    command.params.append(_help_option(name))
    command.params.extend(_global_option(flag, typed) for flag in GLOBAL)
    try:
        with command.make_context(f"rkpy {name}", _spell_out(command, words)) as context:
            context.obj = config.load(typed)
            result = command.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.NoSuchOption as error:
        raise UsageError(f"unknown flag: {error.option_name}", hint=f"run 'rkpy {name} --help' for usage") from error
    except click.ClickException as error:
        message = error.format_message().rstrip(".")
        raise UsageError(message[:1].lower() + message[1:], hint=f"run 'rkpy {name} --help' for usage") from error
    except click.Abort:
        return 130
    return result if isinstance(result, int) else 0


def _spell_out(command: click.Command, words: Sequence[str]) -> list[str]:
    """Give every bare optional-value flag (`--debug`, `--wait`) its `=VALUE`, so that it never takes the word after it:
    click would, Go's flag packages do not."""
    flags = {name: param for param in command.params if isinstance(param, click.Option) for name in param.opts}
    spelled: list[str] = []
    rest = iter(words)
    for word in rest:
        param = flags.get(word)
        if word == "--" or (not word.startswith("-") and not command.allow_interspersed_args):
            return [*spelled, word, *rest]
        if param is not None and not param.is_flag and isinstance(param.flag_value, str):
            spelled.append(f"{word}={param.flag_value}")
            continue
        spelled.append(word)
        if param is not None and not param.is_flag:
            spelled.extend(value for value in [next(rest, None)] if value is not None)
    return spelled


def _help_option(name: str) -> click.Option:
    """`--help` in rkpy's own layout."""

    def show(context: click.Context, _option: click.Parameter, value: bool) -> None:
        if value:
            print_help(name)
            context.exit()

    return click.Option(["--help", "-h"], is_flag=True, is_eager=True, expose_value=False, callback=show)


def _global_option(flag: Flag, typed: Values) -> click.Option:
    def record(_context: click.Context, _option: click.Parameter, value: Any) -> None:
        if value is not None:
            typed.add(flag, value)

    if flag.kind == BOOL:
        return click.Option(
            [f"--{flag.name}"], is_flag=False, flag_value="true", expose_value=False, callback=record, help=flag.help
        )
    return click.Option([f"--{flag.name}"], expose_value=False, callback=record, help=flag.help)
