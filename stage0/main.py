"""From the command line to one verb, and from whatever went wrong to one line and an exit status."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from common.errors import EXIT_FAILURE, RkpyError, UsageError, reason
from common.records import NamedTuple
from stage0 import options

EXIT_NO_COMMAND = 2


class Verb(NamedTuple):
    """One command. `fast` commands have a function `main(config, words)`; the others a click command `command`."""

    module: str
    summary: str
    fast: bool = False
    attribute: str = "command"


VERBS = {
    "app add": Verb("app_add", "Add an app to a running pod", fast=True, attribute="add"),
    "app exec": Verb("app", "Run a command beside an app of a pod", attribute="exec_command"),
    "app list": Verb("app", "List the apps of a pod", attribute="list_apps"),
    "app restart": Verb("app", "Restart an app of a running pod", attribute="restart"),
    "app rm": Verb("app", "Remove an app from a pod", attribute="rm"),
    "app sandbox": Verb("run", "Run a pod without apps, to which they can be added", fast=True, attribute="sandbox"),
    "app start": Verb("app", "Start an app of a running pod", attribute="start"),
    "app status": Verb("app", "Check the status of an app", attribute="status"),
    "app stop": Verb("app", "Stop an app of a running pod", attribute="stop"),
    "attach": Verb("app", "Attach to the streams of an app", attribute="attach"),
    "cat-manifest": Verb("cat_manifest", "Inspect and print the pod manifest"),
    "completion": Verb("completion", "Print the completion script for a shell"),
    "config": Verb("config", "Print configuration for each stage in JSON format"),
    "enter": Verb("enter", "Enter the namespaces of an app within a rkpy pod"),
    "export": Verb("export", "Export an app from an exited pod to an ACI file"),
    "fetch": Verb("fetch", "Fetch image(s) and store them in the local store", fast=True),
    "gc": Verb("gc", "Garbage collect rkpy pods no longer in use"),
    "image cat-manifest": Verb("image", "Inspect and print the image manifest", attribute="cat_manifest"),
    "image export": Verb("image_files", "Export a stored image to an ACI file", attribute="export"),
    "image extract": Verb("image_files", "Extract a stored image to a directory", attribute="extract"),
    "image gc": Verb("image", "Garbage collect local store", attribute="gc"),
    "image list": Verb("image", "List images in the local store", attribute="list_images"),
    "image render": Verb(
        "image_files", "Render a stored image to a directory with all its dependencies", attribute="render"
    ),
    "image rm": Verb("image", "Remove images from the local store", attribute="rm"),
    "image verify": Verb("image", "Verify one or more rendered images in the local store", attribute="verify"),
    "install-units": Verb(
        "install_units", "Install units, manual pages and completion where the system looks for them"
    ),
    "kill": Verb("kill", "Send a signal to the apps of a pod"),
    "list": Verb("list", "List pods"),
    "logs": Verb("logs", "Show what the apps of a rkpy pod have written"),
    "man": Verb("man", "Write the manual pages"),
    "net check": Verb("net", "Check that pods still have of their networks what they were given", attribute="check"),
    "net gc": Verb("net", "Take back addresses, ports and rules of pods that are no more", attribute="collect"),
    "net inspect": Verb("net", "Show a network or the networks of a pod", attribute="inspect"),
    "net list": Verb("net", "List networks", attribute="list_networks"),
    "net reload": Verb("net", "Make the firewall's rules for running pods anew", attribute="reload"),
    "prepare": Verb("run", "Prepare to run image(s) in a pod in rkpy", fast=True, attribute="prepare_pod"),
    "reload": Verb("reload", "Have the apps of a pod read their files anew"),
    "rm": Verb("rm", "Remove all files and resources associated with an exited pod"),
    "run": Verb("run", "Run image(s) in a pod in rkpy", fast=True, attribute="run"),
    "run-prepared": Verb("run", "Run a prepared application pod in rkpy", fast=True, attribute="run_prepared"),
    "start": Verb("run", "Run an exited pod again", fast=True, attribute="start"),
    "status": Verb("status", "Check the status of a rkpy pod"),
    "stop": Verb("stop", "Stop a pod"),
    "systemd": Verb("systemd", "Print the unit that would run a pod", fast=True),
    "trust": Verb("trust", "Trust a key for image verification"),
    "unit check": Verb("unit", "Check pod files, and say what is wrong where", fast=True, attribute="check"),
    "unit generate": Verb(
        "unit", "Make services and sockets of pod files, as a generator of systemd's", fast=True, attribute="generate"
    ),
    "unit list": Verb("unit", "List pod files", fast=True, attribute="list_files"),
    "unit show": Verb("unit", "Print the units that a pod file becomes", fast=True, attribute="show"),
    "version": Verb("version", "Print the version and exit"),
    "volume list": Verb("volume", "List named volumes", attribute="list_volumes"),
    "volume rm": Verb("volume", "Remove named volumes", attribute="remove"),
}
"""Every command, by the words that name it; a module of `stage0.commands` each."""


def main(words: Sequence[str]) -> int:
    """Run one command; the exit status. What ends here is a RkpyError, or the kernel refusing something that nobody
    expects to fail, such as a write to a full disk; all else is a bug."""
    _open_standard_streams()
    # Whoever ignores it has his children ignored with it (wait(2)), and ours would end without a status.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if words[:1] == ["__complete"]:
        from stage0 import completing

        return completing.answer(words[1:])
    name = ""
    debug = "--debug" in words
    try:
        name, rest = find_command(words)
        if not name:
            _help([])
            return 0 if {"-h", "--help"} & set(words) else EXIT_NO_COMMAND
        if name == "help":
            return _help(rest[_leading_flags(rest) :])
        return _dispatch(name, rest)
    except RkpyError as error:
        _report(name, error, debug)
        return error.exit_status
    except BrokenPipeError:
        _discard_output()
        return EXIT_FAILURE
    except OSError as error:
        if debug:
            raise
        what = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        _report(name, RkpyError(f"{what}{reason(error)}"), debug)
        _discard_output()
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return 130


def _open_standard_streams() -> None:
    """/dev/null for each of descriptors 0 to 2 that the caller has closed. The next file opened would get its number
    otherwise: error messages would be written into the store, and the app's input would be its pod's lock."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False, errors="backslashreplace")


def _discard_output() -> None:
    """Forget what could not be written: Python would try again at its end, and fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def find_command(words: Sequence[str]) -> tuple[str, list[str]]:
    """The command among `words` and everything else in order. Flags may come before the command's name, those of the
    command too. Raises UsageError for a name that is no command, or a prefix of several."""
    at = _leading_flags(words)
    if at >= len(words):
        _refuse_unknown(words)
        return "", list(words)
    name, used = _command_at(words, at)
    return name, [*words[:at], *words[at + used :]]


def _known_flags() -> dict[str, options.Flag]:
    return options.table(options.GLOBAL, options.PREPARE, options.RUNTIME, options.APP)


def _leading_flags(words: Sequence[str]) -> int:
    """How many words at the beginning are flags and their values."""
    flags = _known_flags()
    at = 0
    while at < len(words) and options.is_flag(words[at]):
        flag = flags.get(words[at].removeprefix("--"))
        at += 2 if flag is not None and flag.kind in (options.STRING, options.LIST) else 1
    return at


def _refuse_unknown(words: Sequence[str]) -> None:
    flags = _known_flags()
    for word in words:
        if options.is_flag(word) and word not in ("-h", "--help") and word[2:].partition("=")[0] not in flags:
            raise UsageError(f"unknown flag: {word.partition('=')[0]}", hint="run 'rkpy --help' for usage")


def _command_at(words: Sequence[str], at: int) -> tuple[str, int]:
    """The command that begins at `words[at]` and how many words name it; unambiguous prefixes will do, as in rkt."""
    first = _complete(words[at], _first_words())
    if first is None:
        raise UsageError(f'unknown command "{words[at]}" for "rkpy"', hint="run 'rkpy --help' for usage")
    if first in VERBS or first == "help":
        return first, 1
    group = {verb.split()[1] for verb in VERBS if verb.startswith(f"{first} ")}
    if at + 1 >= len(words) or options.is_flag(words[at + 1]):
        return "help", 0
    second = _complete(words[at + 1], group)
    if second is None:
        known = ", ".join(sorted(group))
        raise UsageError(f'unknown command "{words[at + 1]}" for "rkpy {first}"', hint=f"there is: {known}")
    return f"{first} {second}", 2


def _first_words() -> set[str]:
    return {verb.split()[0] for verb in VERBS} | {"help"}


def _complete(word: str, names: set[str]) -> str | None:
    if word in names:
        return word
    found = [name for name in names if name.startswith(word)]
    return found[0] if len(found) == 1 else None


def _dispatch(name: str, words: list[str]) -> int:
    from importlib import import_module

    verb = VERBS[name]
    module = import_module(f"stage0.commands.{verb.module}")
    if verb.fast:
        if "--help" in words[: words.index("--") if "--" in words else len(words)]:
            return _help(name.split())
        status: int = getattr(module, verb.attribute if verb.attribute != "command" else verb.module)(words)
        return status
    from stage0.clickrun import run_click

    return run_click(getattr(module, verb.attribute), name, words)


def _help(words: Sequence[str]) -> int:
    """Print the help of the command `words` name, or rkpy's own."""
    from stage0.help import print_help

    named = [word for word in words if not options.is_flag(word)]
    if named:
        name, _ = _command_at(named, 0)
        print_help(name if name != "help" else _complete(named[0], _first_words()) or "")
    else:
        print_help("")
    return 0


def _report(name: str, error: RkpyError, debug: bool) -> None:
    """Print `rkpy: COMMAND: what failed (what to do)`; with --debug the chain of causes below it as a tree."""
    lines = [": ".join(filter(None, ("rkpy", name, str(error))))]
    cause = error.__cause__
    indent = "  "
    while debug and cause is not None:
        lines.append(f"{indent}└─{type(cause).__name__}: {cause}")
        cause, indent = cause.__cause__, indent + "  "
    if announce := sys.modules.get("stage0.announce"):  # It is there when a pod was to be started.
        announce.status(f"failed: {error.message}")
    with suppress(OSError):  # The exit status still says that it failed.
        print(*map(_printable, lines), sep="\n", file=sys.stderr, flush=True)  # noqa: T201


def _printable(text: str) -> str:
    """One line, whatever is in the names it repeats."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
