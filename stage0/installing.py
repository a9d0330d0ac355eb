"""Puts units, manual pages and completion scripts where the system looks for them, and takes away what it put there.

What was installed is recorded in PREFIX/share/rkpy/installed.json with the digest of each file, so that nothing is
replaced or removed that is somebody else's, or that somebody has changed since."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from common import files
from common.errors import ConfigError, reason
from common.records import NamedTuple
from stage0 import manpages, shells, unitfile

PREFIXES = ("/usr/local", "/usr")
"""Below which systemd, man and shells look."""
_SOURCES = ("systemd-units", "rkpy_units")
"""The directory with the units beside the rooms: in a clone, and as a wheel installs it (pyproject.toml)."""
_OF_USERS = "user"
"""The directory among these with what is for the service managers of users."""
_UNITS = (".service", ".socket", ".target", ".timer")
_MODE = 0o644
_EXECUTABLE = 0o755
_RECORD = "share/rkpy/installed.json"


class File(NamedTuple):
    """A file to be: an absolute path, below the root that is installed into."""

    path: str
    data: bytes
    mode: int = _MODE


class Record(NamedTuple):
    """What is installed: the digests each file may have, and the directories that were made for them."""

    digests: dict[str, list[str]]
    directories: list[str]


class Changes(NamedTuple):
    """What there is to do."""

    write: list[File]
    remove: list[str]
    kept: list[str]
    """Files of ours that stay, because somebody has changed them."""


def all_files(root: str, prefix: str, program: Sequence[str]) -> list[File]:
    """Everything that is installed; the units run `program`."""
    found = list(_units(prefix, program))
    found += [File(f"{prefix}/share/man/man{name[-1]}/{name}", text.encode()) for name, text in manpages.pages()]
    found += [File(path, shells.SCRIPTS[shell].encode()) for shell, path in _completions(root, prefix).items()]
    return found


def _completions(root: str, prefix: str) -> dict[str, str]:
    # Debian's zsh and fish do not look where others do.
    zsh = "vendor-completions" if prefix == "/usr" and os.path.isdir(f"{root}/usr/share/zsh/vendor-completions") else ""
    return {
        "bash": f"{prefix}/share/bash-completion/completions/rkpy",
        "zsh": f"{prefix}/share/zsh/{zsh or 'site-functions'}/_rkpy",
        "fish": "/usr/share/fish/vendor_completions.d/rkpy.fish"
        if prefix == "/usr"
        else "/etc/fish/completions/rkpy.fish",
    }


def _units(prefix: str, program: Sequence[str]) -> Iterator[File]:
    directory = _source()
    names = [*os.listdir(directory), *(f"{_OF_USERS}/{name}" for name in os.listdir(f"{directory}/{_OF_USERS}"))]
    for name in sorted(names):
        place = place_of(name)
        if place:
            with open(f"{directory}/{name}", "rb") as file:
                data = file.read()
            generator = name.endswith("-generator")
            yield File(
                f"{prefix}/lib/{place}",
                data if name.endswith(".catalog") else _running(data, program),
                _EXECUTABLE if generator else _MODE,
            )


def place_of(name: str) -> str:
    """Where below PREFIX/lib a file of systemd-units/ belongs (systemd.unit(5), systemd.generator(7), tmpfiles.d(5),
    sysusers.d(5), systemd.preset(5), journalctl(1)); empty for none."""
    whose, _, name = name.rpartition("/")
    if name.endswith(_UNITS):
        return f"systemd/{whose or 'system'}/{name}"
    if name.endswith("-generator"):
        return f"systemd/{whose or 'system'}-generators/{name}"
    if name.endswith(".preset"):
        return f"systemd/system-preset/{name}"
    if name.endswith(".catalog"):
        return f"systemd/catalog/{name}"
    stem, _, kind = name.removesuffix(".conf").rpartition(".")
    return f"{kind}.d/{stem}.conf" if kind in ("tmpfiles", "sysusers") else ""


def _source() -> str:
    rooms = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for name in _SOURCES:
        if os.path.isdir(f"{rooms}/{name}"):
            return f"{rooms}/{name}"
    raise ConfigError(f"the units are not installed beside {rooms}/stage0", hint="install rkpy again")


def _running(data: bytes, program: Sequence[str]) -> bytes:
    """The unit, or the shell script, with `program` where it says `rkpy`."""
    if list(program) == ["rkpy"]:
        return data
    text = os.fsdecode(data)
    words, shell = unitfile.command(*program), shlex.join(program)
    text = re.sub(r"^(Exec\w+=[-@:+!]*)rkpy(?=\s|$)", lambda found: found[1] + words, text, flags=re.MULTILINE)
    return os.fsencode(re.sub(r"^exec rkpy(?=\s)", lambda _: f"exec {shell}", text, flags=re.MULTILINE))


def record(root: str, prefix: str) -> Record:
    """What was installed below `prefix`."""
    path = f"{root}{prefix}/{_RECORD}"
    try:
        with open(path, "rb") as file:
            value: Any = json.load(file)
        digests = {path: list(map(str, digests)) for path, digests in value["files"].items()}
        return Record(digests, list(map(str, value["directories"])))
    except FileNotFoundError:
        return Record({}, [])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", hint="it says what is rkpy's to replace") from error


def places(prefix: str, wanted: Sequence[File], before: Record) -> Iterator[str]:
    """Everything that would be written or removed."""
    yield f"{prefix}/{_RECORD}"
    yield from (file.path for file in wanted)
    yield from (*before.digests, *before.directories)


def changes(root: str, wanted: Sequence[File], before: Record) -> Changes:
    """What makes of `before` what is `wanted`. Raises ConfigError for files in the way."""
    foreign = []
    write = []
    for file in wanted:
        there = _digest(root + file.path)
        if there == _sum(file.data) and _mode(root + file.path) == file.mode:
            continue
        if there is not None and there not in (*before.digests.get(file.path, ()), _sum(file.data)):
            foreign.append(file.path)
        write.append(file)
    if foreign:
        raise ConfigError(
            f"not rkpy's, or changed since it was installed: {', '.join(foreign)}",
            hint="move it away; changes to units belong into drop-ins, see systemd.unit(5)",
        )
    gone = Record({path: digests for path, digests in before.digests.items() if path not in _paths(wanted)}, [])
    return removal(root, gone)._replace(write=write)


def removal(root: str, before: Record) -> Changes:
    """What takes away everything that is still as it was installed."""
    present = {path: _digest(root + path) for path in before.digests}
    remove = [path for path, digest in present.items() if digest in before.digests[path]]
    return Changes(
        [], remove, kept=[path for path, digest in present.items() if digest is not None and path not in remove]
    )


def _paths(wanted: Sequence[File]) -> set[str]:
    return {file.path for file in wanted}


def apply(root: str, prefix: str, wanted: Sequence[File], doing: Changes, before: Record) -> None:
    """Do it. Killed half way, what was done is known to be rkpy's. Raises OSError."""
    digests = {file.path: [_sum(file.data)] for file in wanted}
    either = {path: [*before.digests.get(path, ()), *digests.get(path, ())] for path in {*before.digests, *digests}}
    made = [path for file in wanted for path in _missing(root, os.path.dirname(file.path))]
    directories = list(dict.fromkeys([*before.directories, *_missing(root, f"{prefix}/{_directory()}"), *made]))
    if wanted:
        _write_record(root, prefix, Record(either, directories))
    for file in doing.write:
        os.makedirs(os.path.dirname(root + file.path), exist_ok=True)
        files.replace(root + file.path, file.data, mode=file.mode)
    for path in doing.remove:
        os.unlink(root + path)
    if wanted:
        _write_record(root, prefix, Record(digests, directories))
    else:
        _forget(root, prefix, directories)


def _directory() -> str:
    return os.path.dirname(_RECORD)


def _write_record(root: str, prefix: str, value: Record) -> None:
    path = f"{root}{prefix}/{_RECORD}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    text = json.dumps({"files": value.digests, "directories": value.directories}, indent=1, sort_keys=True)
    files.replace(path, f"{text}\n".encode())


def _forget(root: str, prefix: str, directories: Sequence[str]) -> None:
    """Remove the record, and the directories that were made and have nothing in them any more, the deepest first."""
    if os.path.lexists(f"{root}{prefix}/{_RECORD}"):
        os.unlink(f"{root}{prefix}/{_RECORD}")
    for path in sorted(directories, key=len, reverse=True):
        try:
            os.rmdir(root + path)
        except OSError:
            continue  # Others have something in it.


def _missing(root: str, path: str) -> list[str]:
    """`path` and the directories above it, as far as they are not there."""
    found: list[str] = []
    while path.strip("/") and not os.path.isdir(root + path):
        found.append(path)
        path = os.path.dirname(path)
    return found


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest(path: str) -> str | None:
    """The digest of the file; None when there is nothing, empty when it is no regular file."""
    if not os.path.lexists(path):
        return None
    if os.path.islink(path) or not os.path.isfile(path):
        return ""
    try:
        with open(path, "rb") as file:
            return _sum(file.read())
    except OSError as error:
        raise ConfigError(f"open {path}: {reason(error)}") from error


def _mode(path: str) -> int:
    return os.stat(path).st_mode & 0o7777
