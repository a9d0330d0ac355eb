"""The generator (systemd.generator(7)): every `.pod` file becomes a service, whatever is wrong with the others.

It runs before the journal does and before most file systems are there: what it reads is below /etc, /run and /usr, or
the user's own, it writes into the directory it is given and nowhere else, and says what is wrong to the kernel's log.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

from common.errors import EXIT_FAILURE, ConfigError, RkpyError, reason
from stage0 import caller
from stage0.config import Config
from stage0.podfile import pods, quoting, search, sections, specifiers, units
from stage0.podfile.pods import PodWords
from stage0.podfile.search import PodFile
from stage0.podfile.syntax import Entry, Parsed

_KMSG = "/dev/kmsg"
_LONGEST_RECORD = 900
"""The kernel takes no longer ones (LOG_LINE_MAX)."""
_ERROR, _WARNING = 3, 4
_LINKS = {"WantedBy": "wants", "RequiredBy": "requires", "UpheldBy": "upholds"}
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]+\.[a-z]+")


def run(config: Config, directory: str) -> int:
    """Write the units of all pods into `directory`; the exit status. Raises ConfigError when that is impossible."""
    folders = search.directories(config)
    files, mistakes = search.find(folders)
    failures = list(map(str, mistakes))
    for file in files:
        if not file.masked:
            failures += _guarded(file, directory)
    _complain(failures)
    _complain(map(str, search.quadlets(folders)), _WARNING)
    return EXIT_FAILURE if failures else 0


def _guarded(file: PodFile, directory: str) -> list[str]:
    """`_generate`, of which nothing keeps the other pods from their services."""
    try:
        return _generate(file, directory)
    except ConfigError:
        raise
    except Exception as error:
        return [f"{file.path}: bug in the generator: {error!r}"]


def _generate(file: PodFile, directory: str) -> list[str]:
    """One pod; what is wrong with it."""
    parsed = search.read(file)
    pod = pods.build(file.name, file.path, parsed)
    wrong = [*map(str, pod.mistakes), *(str(e.mistake(why)) for e, why in bad_links(file, parsed))]
    try:
        for name, made in _units(file, parsed, pod, wrong).items():
            _write(f"{directory}/{name}", made)
    except OSError as error:
        raise ConfigError(f"{error.filename2 or error.filename or directory}: {reason(error)}") from error
    for link, target in links(file, parsed):
        try:
            _link(f"{directory}/{link}", target)
        except OSError as error:
            wrong.append(f"{file.path}: {directory}/{link}: {reason(error)}")
    return wrong


def _units(file: PodFile, parsed: Parsed, pod: PodWords, wrong: Sequence[str]) -> dict[str, str]:
    if wrong:
        return units.broken(file, parsed)
    return {name: units.text(lines) for name, lines in units.made(file, parsed, pod).items()}


def links(file: PodFile, parsed: Parsed) -> Iterator[tuple[str, str]]:
    """What `systemctl enable` would do by [Install]: symlinks and what they lead to."""
    unit = _enabled(file, parsed)
    if not unit:
        return
    started = _started(file, parsed)
    for entry, name in installed(file, parsed):
        if _wrong(entry, name, parsed):
            continue
        if entry.key == "Alias":
            yield name, file.socket if name.endswith(".socket") else file.unit
        else:
            yield f"{name}.{_LINKS[entry.key]}/{unit}", f"../{started}"
    if started == file.socket and not sections.is_installed(parsed):
        yield f"{sections.SOCKETS}.wants/{unit}", f"../{started}"


def _started(file: PodFile, parsed: Parsed) -> str:
    """The unit that [Install] is about."""
    return file.unit if sections.socket(parsed) is None else file.socket


def bad_links(file: PodFile, parsed: Parsed) -> Iterator[tuple[Entry, str]]:
    """Names in [Install] that no unit can have."""
    for entry, name in installed(file, parsed):
        if wrong := _wrong(entry, name, parsed):
            yield entry, wrong
    default = _default_instance(parsed)
    if file.is_template and default and default.value and not search.is_name(f"{file.name}{default.value}"):
        yield default, f'DefaultInstance=: "{default.value}" is not the name of an instance'


def _wrong(entry: Entry, name: str, parsed: Parsed) -> str:
    if not _UNIT.fullmatch(name):
        return f'{entry.key}=: "{name}" is not the name of a unit'
    if entry.key == "Alias" and not name.endswith((".service", *([".socket"] if sections.socket(parsed) else []))):
        return f'Alias=: "{name}" is not the name of a service{" or a socket" if sections.socket(parsed) else ""}'
    return ""


def _enabled(file: PodFile, parsed: Parsed) -> str:
    """The unit that is linked to; of a template, the default instance."""
    unit = _started(file, parsed)
    if not file.is_template:
        return unit
    entry = _default_instance(parsed)
    name = f"{file.name}{entry.value}" if entry and entry.value else ""
    return f"{name}{unit.removeprefix(file.name)}" if search.is_name(name) else ""


def _default_instance(parsed: Parsed) -> Entry | None:
    found = [entry for entry in parsed.entries if (entry.section, entry.key) == ("Install", "DefaultInstance")]
    return found[-1] if found else None


def installed(file: PodFile, parsed: Parsed) -> Iterator[tuple[Entry, str]]:
    """The names in [Install] that count, each with its assignment and its specifiers put in."""
    found: dict[str, list[Entry]] = {}
    for entry in parsed.entries:
        if entry.section == "Install" and entry.key in ("Alias", *_LINKS):
            found[entry.key] = [*found.get(entry.key, ()), entry] if entry.value else []
    for entry in (entry for entries in found.values() for entry in entries):
        for name in entry.value.split():
            yield entry, _put_in(name, file, parsed)


def _put_in(name: str, file: PodFile, parsed: Parsed) -> str:
    unit = (_enabled(file, parsed) or _started(file, parsed)).rpartition(".")[0]
    try:
        return specifiers.expand(name, unit)
    except quoting.QuotingError:
        return name


def _write(path: str, text: str) -> None:
    partial = f"{path}.{os.getpid()}.new"
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(partial, path)


def _link(path: str, target: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    try:
        os.symlink(target, path)
    except FileExistsError:
        pass  # Another pod was first, as in systemctl enable.


def _complain(failures: Iterable[str], level: int = _ERROR) -> None:
    for failure in failures:
        sys.stderr.write(f"rkpy-generator: {failure}\n")
        _to_kernel(failure, level)


def _to_kernel(line: str, level: int) -> None:
    """To the kernel's log, from where the journal takes it later. In a container nobody reads it; it may be full."""
    try:
        fd = os.open(_KMSG, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(fd, f"<{level}>rkpy-generator[{os.getpid()}]: {line}"[:_LONGEST_RECORD].encode())
    except OSError:
        pass
    finally:
        os.close(fd)


def main(config: Config, directories: Sequence[str], *, user: bool = False) -> int:
    """`rkpy unit generate [--user] NORMAL [EARLY LATE]`, for the system's manager on the system proper, or for an
    ordinary user's; root's pods are for the system's only."""
    for_user = user or os.environ.get("SYSTEMD_SCOPE") == "user"
    if (for_user and not (user and caller.is_ordinary())) or os.environ.get("SYSTEMD_IN_INITRD") == "1":
        return 0
    try:
        return run(config, directories[0])
    except RkpyError as error:
        _complain([str(error)])
        return EXIT_FAILURE
