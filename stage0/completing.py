"""What a shell offers for the word under the cursor: the hidden command `rkpy __complete`, which the scripts of
`stage0.shells` ask. It knows the commands from the tables they are parsed by, and pods, images and networks from where
they are; whatever goes wrong, there is nothing to offer."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache

from common.errors import RkpyError
from common.records import NamedTuple
from stage0 import caller, config, grammar, main, options, reference
from stage0 import help as helping
from stage0.config import Config
from stage0.options import BOOL, LIST, OPTIONAL, STRING, Flag, Values
from stage0.pods import DIRECTORIES, EXITED_GARBAGE, PREPARED, RUN, Pods, State

Offer = tuple[str, str]
"""A word, and what it is."""

_FILES, _DIRECTORIES = "files", "directories"


class Answer(NamedTuple):
    """Words for the place of the current one, and whether paths of this machine will do there too."""

    words: tuple[Offer, ...] = ()
    paths: str = ""
    """"files", "directories" or empty."""


class _Line(NamedTuple):
    """The words before the current one, understood."""

    typed: Values
    group: str = ""
    name: str = ""
    """The command; empty until it is named."""
    pending: Flag | None = None
    """The flag whose value the current word is."""
    arguments: bool = False
    """Whether words are an app's arguments here."""
    places: tuple[str, ...] = ()
    """What is no flag, after the command's name."""


_SIGNALS = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGRTMIN+3")
_WORDS = {
    "exit-policy": ("on-any-failure", "on-any", "until-all"),
    "health-on-failure": ("none", "kill", "restart", "stop"),
    "ipc": ("auto", "private", "parent"),
    "kvm-accel": ("auto", "kvm", "tcg"),
    "log-driver": ("auto", "journald", "file"),
    "pull-policy": ("new", "never", "update"),
    "ready": ("started", "notify", "healthy"),
    "reload-signal": ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGQUIT", "SIGWINCH"),
    "restart": ("no", "on-failure", "always"),
    "signal": _SIGNALS,
    "stage1": ("nspawn", "kvm", "fly"),
    "stage1-name": ("coreos.com/rkt/stage1-coreos", "coreos.com/rkt/stage1-fly"),
    "stderr": ("log", "null", "tty", "stream"),
    "stdin": ("null", "tty", "stream"),
    "stdout": ("log", "null", "tty", "stream"),
    "stop-signal": _SIGNALS,
}  # fmt: skip
"""Values of flags, known in advance."""
_PATHS = {
    "cwd": _DIRECTORIES,
    "device": _FILES,
    "dir": _DIRECTORIES,
    "kvm-kernel": _FILES,
    "local-config": _DIRECTORIES,
    "output": _DIRECTORIES,
    "pod-file": _FILES,
    "pod-manifest": _FILES,
    "set-env-file": _FILES,
    "signature": _FILES,
    "system-config": _DIRECTORIES,
    "user-config": _DIRECTORIES,
    "uuid-file": _FILES,
    "uuid-file-save": _FILES,
}
_RUNNING = frozenset({State.RUNNING})
_OVER = frozenset({State.EXITED, State.EXITED_GARBAGE})
_STATES = {
    "export": _OVER,
    "rm": _OVER | {State.PREPARED, State.ABORTED_PREPARE},
    "run-prepared": frozenset({State.PREPARED}),
    "start": _OVER | {State.PREPARED},
    "app exec": _RUNNING, "app add": _RUNNING, "app restart": _RUNNING, "app start": _RUNNING, "app stop": _RUNNING,
    "attach": _RUNNING, "kill": _RUNNING, "enter": _RUNNING, "net check": _RUNNING, "reload": _RUNNING,
    "stop": _RUNNING,
}  # fmt: skip
"""In which states a command takes pods; the others take all."""
_PATH_SCHEMES = ("file", *reference.ARCHIVES)
_PLACES = {
    "net inspect": ("NAME", True),
    "systemd": ("UUID|IMAGE", True),
    "unit show": ("FILE", False),
    "volume rm": ("VOLUME", True),
}


def answer(words: Sequence[str]) -> int:
    """`rkpy __complete words WORD... CURRENT` for the words after `rkpy`, and `rkpy __complete bash BREAKS LINE`. It
    prints a line that says whether paths may be offered as well, then one for each word."""
    form, *rest = words or ("",)
    found, cut = Answer(), 0
    with suppress(RkpyError, OSError, ValueError):
        if form == "bash" and len(rest) == 2:
            before, current = split(rest[1])
            found, cut = _for_bash(complete(before[1:], current), current, rest[0])
        elif form == "words" and rest:
            found = complete(rest[:-1], rest[-1])
    lines = [found.paths or "words", *(f"{word[cut:]}\t{_plain(about)}" for word, about in found.words)]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _for_bash(found: Answer, current: str, breaks: str) -> tuple[Answer, int]:
    """What stands before the last of COMP_WORDBREAKS (bash(1)) is not bash's word any more: how much of it, too."""
    cut = max((current.rfind(char) + 1 for char in "=:" if char in breaks), default=0)
    scheme, colon, _ = current.partition(":")
    of_an_image = cut and colon and not current.startswith("-") and scheme not in _PATH_SCHEMES
    return found._replace(paths="") if of_an_image else found, cut


def _plain(about: str) -> str:
    return "".join(char if char.isprintable() else " " for char in about)


def split(line: str) -> tuple[list[str], str]:
    """The whole words of a command line in the shell's quoting, and the beginning of one at its end."""
    found = re.findall(r"""((?:\\.|'[^']*(?:'|$)|"(?:\\.|[^"\\])*(?:"|$)|[^\s\\'"])+|\\$)(\s*)""", line, re.DOTALL)
    words = [_unquoted(word) for word, _ in found]
    if found and not found[-1][1]:
        return words[:-1], words[-1]
    return words, ""


def _unquoted(word: str) -> str:
    """A word without its quotes, which may be open: bash(1), "QUOTING"."""
    return re.sub(r"""'([^']*)'?|"((?:\\.|[^"\\])*)"?|\\(.)""", _inside, word, flags=re.DOTALL)


def _inside(found: re.Match[str]) -> str:
    single, double, escaped = found.groups()
    return re.sub(r"""\\(["$`\\])""", r"\1", double) if double is not None else single or escaped or ""


def complete(words: Sequence[str], current: str) -> Answer:
    """What may stand in the place of `current` after `words`, the first of which follows `rkpy`."""
    line = _read(words)
    if line.arguments:
        return Answer(paths=_FILES)
    if line.pending is not None:
        return _chosen(_value(line, line.pending, current), current)
    if current.startswith("--") and "=" in current:
        name, _, value = current.partition("=")
        flag = _flags(line.name).get(name[2:])
        if flag is None:
            return Answer()
        found = _value(line, flag, value)
        return _chosen(found._replace(words=tuple((f"{name}={word}", about) for word, about in found.words)), current)
    if current.startswith("-"):
        return _chosen(Answer(tuple(_flag_words(line))), current)
    return _chosen(_place(line), current)


def _chosen(found: Answer, current: str) -> Answer:
    return found._replace(words=tuple(offer for offer in found.words if offer[0].startswith(current)))


def _read(words: Sequence[str]) -> _Line:
    line = _Line(typed=Values())
    for word in words:
        line = _next(line, word)
    return line


def _next(line: _Line, word: str) -> _Line:
    """`line` with one word more."""
    if line.pending is not None:
        line.typed.add(line.pending, word)
        return line._replace(pending=None)
    if line.arguments:
        return line._replace(arguments=word != "---")
    if word == "--":
        return line._replace(arguments=True)
    if options.is_flag(word):
        name, given, value = word.removeprefix("--").partition("=")
        flag = _flags(line.name).get(options.ALIASES.get(name, name))
        if flag is None:
            return line
        if not given and flag.kind in (STRING, LIST):
            return line._replace(pending=flag)
        line.typed.add(flag, value if given else flag.bare or "true")
        return line
    if line.name:
        # What follows the program of `enter` and `app exec` is the program's.
        return line._replace(places=(*line.places, word), arguments=line.name != "help" and _expected(line) == "CMD")
    full = _whole(line.group, word)
    if full in main.VERBS or full == "help":
        return line._replace(name=full)
    return line._replace(group=full if not line.group else line.group)


def _whole(group: str, word: str) -> str:
    """The command or the group that `word` begins, as far as that is clear; as `main.find_command` takes it."""
    before = f"{group} " if group else ""
    names = {name.removeprefix(before).split()[0] for name in (*main.VERBS, "help") if name.startswith(before)}
    found = [word] if word in names else [name for name in names if name.startswith(word)]
    return f"{before}{found[0] if len(found) == 1 else word}"


def _flags(name: str) -> dict[str, Flag]:
    """The flags that may stand here: those of the command, or until there is one, what may stand before its name."""
    if name in main.VERBS:
        return options.table(helping.describe(name).flags, options.GLOBAL)
    return options.table(options.PREPARE, options.RUNTIME, options.APP, options.GLOBAL)


def _flag_words(line: _Line) -> Iterator[Offer]:
    flags = _flags(line.name) if line.name else options.table(options.GLOBAL)
    of_apps = options.table(options.APP)
    for flag in sorted([*flags.values(), Flag("help", BOOL, "show what the command does")]):
        if flag.kind != LIST and flag.name not in of_apps and line.typed.get(flag.name) is not None:
            continue
        if (
            line.name in ("run", "prepare", "systemd")
            and not line.places
            and flag.name in of_apps
            and flag.name not in grammar.POD_OR_APP
        ):
            continue  # It has to follow an image.
        if flag.kind != BOOL:
            yield f"--{flag.name}=", flag.help
        if flag.kind in (BOOL, OPTIONAL):
            yield f"--{flag.name}", flag.help


@cache
def _kinds(name: str) -> tuple[tuple[str, ...], bool]:
    """What the words after a command's name are, and whether the last kind may come again: from its usage."""
    if name in _PLACES:
        kind, again = _PLACES[name]
        return (kind,), again
    usage = re.sub(r"\[-- .*?\]\]|\[-- [^\]]*\]|\[--[^\]]*\]|\[(APP )?OPTIONS\]", "", helping.describe(name).usage)
    kinds = re.findall(r"\{[^}]*\}|[A-Z]+", usage)
    return tuple(dict.fromkeys(kinds)), "..." in usage


def _expected(line: _Line) -> str:
    kinds, again = _kinds(line.name)
    at = len(line.places)
    if at < len(kinds):
        return kinds[at]
    return kinds[-1] if kinds and again else ""


def _place(line: _Line) -> Answer:
    """What may stand here that is no flag."""
    if not line.name or line.name == "help":
        return Answer(tuple(_names(line)))
    kind = _expected(line)
    if kind.startswith("{"):
        return Answer(tuple((word, "") for word in kind.strip("{}").split("|")))
    found: list[Offer] = []
    settings = config.load(line.typed)
    for each in kind.split("|"):
        with suppress(RkpyError, OSError):
            found += [offer for offer in _SOURCES.get(each, _nothing)(line, settings) if offer[0] not in line.places]
    paths = {"IMAGE": _FILES, "UUID|IMAGE": _FILES, "FILE": _FILES, "PUBKEY": _FILES, "DIRECTORY": _DIRECTORIES}
    return Answer(tuple(found), paths.get(kind, _FILES if kind in ("CMD", "ARGS") else ""))


def _names(line: _Line) -> Iterator[Offer]:
    """Names of commands; of the group's, when one is named."""
    group = line.group or (line.places[0] if line.places else "")
    if group:
        inner = {name.partition(" ")[2]: verb for name, verb in main.VERBS.items() if name.startswith(f"{group} ")}
        yield from ((name, verb.summary) for name, verb in inner.items())
        return
    for name, verb in main.VERBS.items():
        if " " not in name:
            yield name, verb.summary
    yield from helping.groups().items()
    yield "help", "Show what a command does"


def _value(line: _Line, flag: Flag, so_far: str) -> Answer:
    """Values for a flag. Of several, separated by commas, the last is what is asked for."""
    if flag.name in _PATHS:
        return Answer(paths=_PATHS[flag.name])
    words: Iterable[Offer] = [(word, "") for word in flag.values or _WORDS.get(flag.name, ())]
    if flag.kind == BOOL:
        words = [("true", ""), ("false", "")]
    elif flag.name == "insecure-options":
        words = [(word, "") for word in config.INSECURE_OPTIONS]
    elif flag.name in _NAMED:
        words = _NAMED[flag.name](line, config.load(line.typed))
    before, comma, _ = so_far.rpartition(",")
    taken = before.split(",")
    return Answer(tuple((f"{before}{comma}{word}", about) for word, about in words if not comma or word not in taken))


# What there is


def _nothing(_line: _Line, _settings: Config) -> Iterable[Offer]:
    return ()


def _pods(line: _Line, settings: Config) -> Iterator[Offer]:
    """Names and UUIDs of the pods the command takes."""
    wanted = _STATES.get(line.name)
    places = DIRECTORIES if wanted is None else _directories(wanted)
    for pod in Pods(settings.pods).all(places):
        state = pod.state()
        if wanted is None or state in wanted:
            name = pod.name()
            if name:
                yield name, f"{state} pod {pod.uuid[:8]}"
            yield pod.uuid, f"{state} pod {name}".rstrip()


def _directories(states: Iterable[State]) -> tuple[str, ...]:
    where = {State.PREPARED: (PREPARED,), State.EXITED_GARBAGE: (EXITED_GARBAGE,)}
    found = {place for state in states for place in where.get(state, (RUN,))}
    return tuple(place for place in DIRECTORIES if place in found)


def _images(_line: _Line, settings: Config) -> Iterator[Offer]:
    from aci.store import Store

    for record in Store(settings.store).images():
        version = record.manifest.label("version")
        yield record.manifest.name + (f":{version}" if version else ""), record.id[:19]


def _networks(_line: _Line, settings: Config) -> Iterator[Offer]:
    from stage0 import netd, networks, usernet

    if usernet.is_all_there_is():
        yield networks.DEFAULT, "built in"
        return
    names = {network.name: network.source for network in netd.read(settings.directories).networks}
    yield from (dict.fromkeys(networks.SUBNETS, "built in") | names).items()


def _choices_of_net(line: _Line, settings: Config) -> Iterator[Offer]:
    yield from (("none", "only loopback"), ("host", "the host's network"))
    if not caller.is_ordinary():
        yield "all", "every network"
    yield from _networks(line, settings)


def _networks_and_pods(line: _Line, settings: Config) -> Iterator[Offer]:
    yield from _networks(line, settings)
    yield from _pods(line, settings)


def _volumes(_line: _Line, settings: Config) -> Iterator[Offer]:
    from stage0 import namedvolumes

    yield from ((name, "") for name in namedvolumes.names(Pods(settings.pods)))


def _apps(line: _Line, settings: Config) -> Iterator[Offer]:
    """Apps of the pod that is named already."""
    if line.places:
        with Pods(settings.pods).find(line.places[0]) as pod:
            for app in pod.manifest().apps:
                yield app.name, app.image.name or ""


_SOURCES: dict[str, Callable[[_Line, Config], Iterable[Offer]]] = {
    "UUID": _pods,
    "IMAGE": _images,
    "NAME": _networks_and_pods,
    "VOLUME": _volumes,
}
_NAMED: dict[str, Callable[[_Line, Config], Iterable[Offer]]] = {"app": _apps, "net": _choices_of_net}
