"""Help in rkt's layout: NAME, USAGE, VERSION, COMMANDS, DESCRIPTION, OPTIONS, GLOBAL OPTIONS."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from common.records import NamedTuple
from rkpy import VERSION
from stage0 import options
from stage0.main import VERBS, Verb
from stage0.options import BOOL, LIST, STRING, Flag

if TYPE_CHECKING:
    import click

_USAGE = {
    "run": "[OPTIONS] IMAGE [APP OPTIONS] [-- ARGS... [---]] [IMAGE ...]",
    "prepare": "[OPTIONS] IMAGE [APP OPTIONS] [-- ARGS... [---]] [IMAGE ...]",
    "run-prepared": "[OPTIONS] UUID",
    "app sandbox": "[OPTIONS]",
    "app add": "[OPTIONS] UUID IMAGE [-- ARGS...]",
    "start": "[OPTIONS] UUID",
    "systemd": "[OPTIONS] UUID | [OPTIONS] IMAGE [APP OPTIONS] [-- ARGS... [---]] [IMAGE ...]",
    "unit check": "[NAME|FILE ...]",
    "unit generate": "[OPTIONS] NORMAL [EARLY LATE]",
    "unit list": "[OPTIONS]",
    "unit show": "NAME|FILE",
    "fetch": "[OPTIONS] IMAGE [--signature=FILE] ...",
}


_GROUPS = {
    "app": "Apps of a pod",
    "image": "Images in the local store",
    "net": "Networks of pods",
    "unit": "Pod files, which become units of systemd",
    "volume": "Volumes that outlive the pods that use them",
}


class Described(NamedTuple):
    """What there is to say of a command, to those who ask for help, read its manual page or press Tab."""

    name: str
    summary: str
    usage: str
    """The words after the name, as in `[OPTIONS] UUID FILE`."""
    flags: tuple[Flag, ...]
    """Its own, without the global ones."""
    text: str = ""
    """What it does: paragraphs, or empty."""


def groups() -> dict[str, str]:
    """The first words of commands of two, and what these are about."""
    return {group: _GROUPS[group] for group in sorted({name.split()[0] for name in VERBS if " " in name})}


def print_help(name: str) -> None:
    """Print the help of command `name` (words), of a group such as `image`, or of rkpy itself for ""."""
    text = _verb_help(describe(name)) if name in VERBS else _overview(name)
    sys.stdout.write(text)
    sys.stdout.flush()


def _overview(group: str) -> str:
    prefix = f"{group} " if group else ""
    commands = [(verb, VERBS[verb].summary) for verb in VERBS if verb.startswith(prefix)]
    width = max(len(verb) for verb, _ in commands)
    listing = "\n".join(f"\t{verb:<{width}}  {summary}" for verb, summary in commands)
    return _sections(
        NAME="rkpy - a daemonless pod engine",
        USAGE=f"rkpy {prefix}[command]",
        VERSION=VERSION,
        COMMANDS="\n" + listing,
        DESCRIPTION='To get the help on any specific command, run "rkpy help command".',
        OPTIONS="\n" + _flags(options.GLOBAL),
    )


def _verb_help(command: Described) -> str:
    return _sections(
        NAME=f"rkpy {command.name} - {command.summary}",
        USAGE=f"rkpy {command.name} {command.usage}",
        OPTIONS="\n" + _flags(command.flags),
        GLOBAL_OPTIONS="\n" + _flags(options.GLOBAL),
    )


def describe(name: str) -> Described:
    """The command `name`, one of VERBS."""
    from importlib import import_module

    verb = VERBS[name]
    module = import_module(f"stage0.commands.{verb.module}")
    if verb.fast:
        return Described(name, verb.summary, _USAGE[name], tuple(module.FLAGS[name].values()))
    return _of_click(name, verb, getattr(module, verb.attribute))


def _of_click(name: str, verb: Verb, command: click.Command) -> Described:
    import click

    with click.Context(command, info_name=name) as context:
        usage = " ".join(command.collect_usage_pieces(context))
        flags = [_as_flag(param) for param in command.params if isinstance(param, click.Option) and not param.hidden]
    own = {flag.name for flag in options.GLOBAL} | {"help"}
    _, _, text = (command.help or "").partition("\n\n")
    return Described(name, verb.summary, usage, tuple(flag for flag in flags if flag.name not in own), text)


def _as_flag(option: click.Option) -> Flag:
    default = option.default if isinstance(option.default, str | int) else ""
    boolean = option.is_flag or option.flag_value == "true"
    words = tuple(word for word in getattr(option.type, "choices", ()) if word)
    return Flag(option.opts[0].lstrip("-"), _kind(option, boolean), option.help or "", str(default), values=words)


def _kind(option: click.Option, boolean: bool) -> str:
    if boolean:
        return BOOL
    return LIST if option.multiple else STRING


def _flags(flags: Iterable[Flag]) -> str:
    rows = [(_shown(flag), flag.help) for flag in flags]
    if not rows:
        return "\t(none)"
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"\t{left:<{width}}  {right}" for left, right in sorted(rows))


def _shown(flag: Flag) -> str:
    return f"--{flag.name}[={flag.default or 'false'}]" if flag.kind == BOOL else f"--{flag.name}={flag.default}"


def _sections(**sections: str) -> str:
    parts = []
    for title, text in sections.items():
        body = text[1:] if text.startswith("\n") else f"\t{text}"
        parts.append(f"{title.replace('_', ' ')}:\n{body}\n")
    return "\n".join(parts)
