"""What was typed for the last run of a pod, kept with the pod: `rkpy start` runs it so again, and the unit that
`rkpy systemd` prints says so. What is typed anew takes the place of what was typed before.

Not kept are flags about who calls, credentials that a service was given with them, and no values of secrets: of these
the names only, so that their lack is said.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from common import files
from common.errors import PodError, UsageError, reason
from stage0 import options
from stage0.notices import warn
from stage0.options import Values
from stage1 import poddir

_OF_THE_CALLER = ("detach", "interactive", "keep-unit", "uuid-file-save")
_GIVEN, _LOADED = "set-credential", "load-credential"
_KEPT = {flag.name: flag for flag in options.RUNTIME if flag.name not in (*_OF_THE_CALLER, _GIVEN)}
_FLAGS, _CREDENTIALS = "flags", "credentials"
_MODE = 0o640


def record(pod: str, flags: Values) -> None:
    """Keep what of `flags` is for the next run of the pod in the directory `pod`: written whole or not at all, and not
    when there is nothing to keep. Raises PodError."""
    words = [f"--{name}={value}" for name in _KEPT for value in flags.all(name) if not _is_of_service(name, value)]
    try:
        before = _read(pod)
    except PodError:
        before = [], []  # It was said, and done without.
    secrets = sorted({*_names(flags.all(_GIVEN)), *before[1]})
    if (words, secrets) == before:
        return  # What is there need not be at the mercy of a power cut.
    try:
        files.replace(_path(pod), json.dumps({_FLAGS: words, _CREDENTIALS: secrets}).encode(), mode=_MODE)
    except OSError as error:
        raise PodError(f"write {_path(pod)}: {reason(error)}") from error


def recall(pod: str, typed: Values) -> Values:
    """`typed`, and of the flags that were not the values they had when the pod last ran. Of those that may be repeated
    a single empty value says that there are none. Raises PodError."""
    words, secrets = _read_for(pod, typed)
    found = Values()
    found.update(typed)
    given = {*_names([*typed.all(_GIVEN), *typed.all(_LOADED)])}
    for name, flag in _KEPT.items():
        if flag.kind == options.LIST and typed.all(name) == [""]:
            found.forget(name)
    for word in words:
        flag, value = _taken(pod, word)
        if flag.name not in typed.typed() and not (flag.name == _LOADED and {*_names([value])} <= given):
            found.add(flag, value)
    for name in secrets:
        if name not in _names([*found.all(_GIVEN), *found.all(_LOADED)]):
            warn(f"an earlier run had --{_GIVEN}={name}, of which the value is not kept: give it again if it is needed")
    return found


def _read_for(pod: str, typed: Values) -> tuple[list[str], list[str]]:
    """As `_read`; who says which networks a pod is to have can do without, as a unit that says all there was: a power
    cut may leave the file empty."""
    try:
        return _read(pod)
    except PodError as error:
        if "net" not in typed.typed():
            raise
        warn(f"{error.message}: only what is typed counts")
        return [], []


def _taken(pod: str, word: str) -> tuple[options.Flag, str]:
    try:
        flag, value, _ = options.take([word], 0, _KEPT)
    except UsageError as error:
        raise _damaged(pod) from error
    return flag, value


def _read(pod: str) -> tuple[list[str], list[str]]:
    """The words and the names of secrets. To go on without would be to give the pod other networks."""
    try:
        with open(_path(pod), "rb") as file:
            kept = json.load(file)
    except FileNotFoundError:
        return [], []
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(pod) from error
    if not isinstance(kept, dict):
        raise _damaged(pod)
    return _strings(pod, kept.get(_FLAGS)), _strings(pod, kept.get(_CREDENTIALS))


def _strings(pod: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _damaged(pod)
    return value


def _damaged(pod: str) -> PodError:
    hint = "give the flags of the pod's last run again, with --net"
    return PodError(f"{_path(pod)} is damaged", hint=hint)


def _is_of_service(name: str, value: str) -> bool:
    """Whether it is a credential of the service that the pod was run in, which another run may not be in."""
    return name == _LOADED and not value.partition(":")[2].startswith("/")


def _names(texts: list[str]) -> Iterator[str]:
    return (text.partition(":")[0] for text in texts)


def _path(pod: str) -> str:
    return os.path.join(pod, poddir.RUN_FLAGS)
