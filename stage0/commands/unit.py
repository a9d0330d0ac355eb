"""`rkpy unit`: `.pod` files and the services they become."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from common.errors import EXIT_FAILURE, ConfigError, UsageError
from stage0 import caller, config, grammar, options
from stage0.config import Config
from stage0.podfile import search
from stage0.podfile.search import PodFile
from stage0.podfile.syntax import Mistake

FLAGS: dict[str, dict[str, options.Flag]] = {
    "unit check": {},
    "unit generate": options.table([options.Flag("user", options.BOOL, "for the service manager of this user")]),
    "unit list": options.table([options.Flag("no-legend", options.BOOL, "leave out the header")]),
    "unit show": {},
}


def generate(words: Sequence[str]) -> int:
    """`rkpy unit generate [--user] NORMAL [EARLY LATE]`: what systemd starts at boot and when it reloads."""
    # No mistake in the configuration keeps pods from having services, which then say what is wrong.
    settings, directories, flags = _parse("unit generate", words, config.places)
    if len(directories) not in (1, 3):
        raise UsageError("must provide one directory, or the three that systemd gives a generator")
    from stage0.podfile import generate as generator

    return generator.main(settings, directories, user=flags.boolean("user"))


def check(words: Sequence[str]) -> int:
    """`rkpy unit check [NAME|FILE…]`: every mistake, each with its line. Files may be JSON or TOML, too."""
    settings, names, _ = _parse("unit check", words)
    from stage0.podfile import check as checking
    from stage0.podfile import data

    folders = search.directories(settings)
    wrong: list[Mistake] = []
    as_data = [name for name in names if name.endswith(data.SUFFIXES)] if names else search.data_files(folders)
    pods = [name for name in names if name not in as_data]
    for file in _files(pods, folders, wrong) if pods or not names else ():
        wrong += checking.mistakes(file, users=_is_users(file, folders))
    for path in as_data:
        wrong += checking.of_data(os.path.abspath(path), settings)
    _say(wrong if names else [*wrong, *search.quadlets(folders)])
    return EXIT_FAILURE if wrong else 0


def show(words: Sequence[str]) -> int:
    """`rkpy unit show NAME|FILE`: the service it becomes, and its socket."""
    settings, names, _ = _parse("unit show", words)
    if len(names) != 1:
        raise UsageError("must provide exactly one pod file, or the name of one")
    from stage0.podfile import generate as generator
    from stage0.podfile import pods, units

    file = _file(names[0], search.directories(settings))
    if file.masked:
        raise ConfigError(f"{file.path} is masked")
    parsed = search.read(file)
    pod = pods.build(file.name, file.path, parsed)
    wrong = [*pod.mistakes, *(entry.mistake(why) for entry, why in generator.bad_links(file, parsed))]
    _say(wrong)
    if wrong:
        return EXIT_FAILURE
    made = units.made(file, parsed, pod)
    heading = "# {}\n" if len(made) > 1 else ""  # As systemctl cat has it.
    sys.stdout.write("\n".join(heading.format(name) + units.text(lines) for name, lines in made.items()))
    sys.stdout.flush()
    return 0


def list_files(words: Sequence[str]) -> int:
    """`rkpy unit list`: every pod file, its service and socket, and what is the matter with it."""
    settings, names, flags = _parse("unit list", words)
    if names:
        raise UsageError("unit list takes no arguments")
    from stage0 import render
    from stage0.podfile import check as checking
    from stage0.podfile import sections

    folders = search.directories(settings)
    files, wrong = search.find(folders)
    rows = [] if flags.boolean("no-legend") else [("UNIT", "STATE", "FILE", "DROP-INS")]
    for file in files:
        found = len(checking.mistakes(file, users=_is_users(file, folders), ask_systemd=False))
        state = "masked" if file.masked else f"{found} mistake{'s' * (found > 1)}" if found else "good"
        listens = not file.masked and sections.socket(search.read(file)) is not None
        rows += [(unit, state, file.path, str(len(file.dropins))) for unit in (file.unit, file.socket)[: 1 + listens]]
    sys.stdout.write(render.table(rows))
    sys.stdout.flush()
    _say(wrong)
    return EXIT_FAILURE if wrong else 0


def _parse(
    name: str, words: Sequence[str], load: Callable[[options.Values], Config] = config.load
) -> tuple[Config, list[str], options.Values]:
    request = grammar.parse(words, {**FLAGS[name], **options.table(options.GLOBAL)}, arguments=False, by_position=False)
    return load(request.flags), [image.reference for image in request.images], request.flags


def _files(names: Sequence[str], folders: Sequence[str], wrong: list[Mistake]) -> list[PodFile]:
    """Those that were named, or all there are."""
    if names:
        return [_file(name, folders) for name in names]
    files, mistakes = search.find(folders)
    wrong += mistakes
    return [file for file in files if not file.masked]


def _file(name: str, folders: Sequence[str]) -> PodFile:
    if "/" in name or os.path.isfile(name):
        return search.at(name, folders)
    name = name.removesuffix(".service").removesuffix(search.SUFFIX)
    files = {file.name: file for file in search.find(folders)[0]}
    template = f"{name.partition('@')[0]}@"  # What systemd makes the instance of when it has no file.
    if found := files.get(name) or files.get(template if "@" in name else ""):
        return found
    raise ConfigError(f'there is no pod file "{name}"', hint=f"looked in {', '.join(folders)}")


def _is_users(file: PodFile, folders: Sequence[str]) -> bool:
    """Whether it is a service of who called us, who is not root; what lies elsewhere may become anybody's."""
    return caller.is_ordinary() and os.path.dirname(file.path) in folders


def _say(wrong: Sequence[Mistake]) -> None:
    for mistake in wrong:
        sys.stderr.write(f"{mistake}\n")
    sys.stderr.flush()
