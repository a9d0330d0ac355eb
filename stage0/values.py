"""The little languages inside flag values: volumes, mounts, variables, restrictions. All raise UsageError."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from aci import isolators as isolator
from aci.document import Flaw
from aci.image_manifest import Isolator
from aci.pod_manifest import PROPAGATIONS, RuntimeMount, Volume
from aci.types import ac_name, quantity
from common.errors import UsageError, reason
from stage0.options import Values, to_bool

MINIMUM_MEMORY = 4096
"""Bytes below which a limit is surely `16m` (milli) typed for `16M`."""


def pairs(flag: str, text: str) -> dict[str, str]:
    """`k=v,k=v` as a dict; a key given twice is an error."""
    found: dict[str, str] = {}
    for item in text.split(","):
        key, given, value = item.partition("=")
        if not given or not key:
            raise UsageError(f'--{flag}={text}: "{item}" is not of the form KEY=VALUE')
        if key in found:
            raise UsageError(f"--{flag}={text}: {key} is given twice")
        found[key] = value
    return found


NAMED = "named"
"""A kind of volume that the specification of pod manifests does not have: `stage0.namedvolumes` makes one of the host
of it."""
OPTIONAL = "-"
"""What the path of a file begins with that may be missing."""
_VOLUME_FIELDS = {
    "host": ("source", "readOnly", "recursive", "propagation"),
    "empty": ("mode", "uid", "gid", "size"),
    NAMED: ("source", "readOnly", "copy", "mode", "uid", "gid"),
}
_VOLUME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def volume(text: str) -> Volume:
    """`NAME,kind=host,source=/abs[,readOnly=BOOL][,recursive=BOOL][,propagation=WORD]`,
    `NAME,kind=empty[,mode=M][,uid=N][,gid=N][,size=QUANTITY]` or
    `NAME,kind=named[,source=NAME][,readOnly=BOOL][,copy=BOOL][,mode=M][,uid=N][,gid=N]`."""
    name, _, rest = text.partition(",")
    return _volume(f"--volume={text}", name, pairs("volume", rest) if rest else {})


def is_volume_name(text: str) -> bool:
    """Whether a named volume may be called so: podman's rule, by which it is never a path."""
    return bool(_VOLUME_NAME.fullmatch(text))


def app_volume(text: str) -> RuntimeMount:
    """`name=NAME,target=/path,kind=…` and what else `volume` takes: a volume of one app, and where it is mounted."""
    fields = pairs("mnt-volume", text)
    name, target = fields.pop("name", ""), fields.pop("target", "")
    if not target.startswith("/"):
        raise UsageError(f"--mnt-volume={text}: target has to be an absolute path")
    path = os.path.normpath("/" + target.lstrip("/"))
    return RuntimeMount(volume=name, path=path, app_volume=_volume(f"--mnt-volume={text}", name, fields))


def _volume(about: str, name: str, fields: dict[str, str]) -> Volume:
    kind = fields.pop("kind", "")
    allowed = _VOLUME_FIELDS.get(kind)
    if allowed is None:
        raise UsageError(f'{about}: kind has to be "host", "empty" or "named"', hint=_instead(name))
    for key in fields:
        if key not in allowed:
            raise UsageError(f"{about}: {key} means nothing for kind={kind}", hint=f"use {', '.join(allowed)}")
    ac_name(name, strict=True)
    if kind == "empty":
        return _empty_volume(about, name, fields)
    if kind == NAMED:
        return _named_volume(about, name, fields)
    source = fields.get("source", "")
    if not os.path.isabs(source):
        raise UsageError(f"{about}: source has to be an absolute path")
    recursive, propagation = fields.get("recursive"), fields.get("propagation", "")
    if propagation not in ("", *PROPAGATIONS):
        raise UsageError(f"{about}: propagation has to be one of {', '.join(PROPAGATIONS)}")
    return Volume(
        name=name,
        kind="host",
        source=source,
        read_only=to_bool("volume readOnly", fields.get("readOnly", "false")),
        recursive=None if recursive is None else to_bool("volume recursive", recursive),
        propagation=propagation,
    )


def _instead(text: str) -> str:
    """What somebody is to write who may be used to podman's SOURCE:TARGET."""
    source, colon, rest = text.partition(":")
    target = rest.partition(":")[0]
    if not colon or not source or not target.startswith("/"):
        return "NAME,kind=host,source=/path"
    if "/" in source:
        return f"write --volume=NAME,kind=host,source={source} --mount=volume=NAME,target={target}"
    return f"write --volume=NAME,kind=named,source={source} --mount=volume=NAME,target={target}"


def _empty_volume(about: str, name: str, fields: dict[str, str]) -> Volume:
    mode = fields.get("mode", "0755")
    numbers = {"mode": (mode, 8, 0o7777), "uid": (fields.get("uid", "0"), 10, 2**32 - 2)}
    numbers["gid"] = (fields.get("gid", "0"), 10, 2**32 - 2)
    parsed = {key: _number(f"{about}: {key}", *value) for key, value in numbers.items()}
    size = quantity(fields["size"]) if "size" in fields else 0
    if "size" in fields and size < MINIMUM_MEMORY:
        raise UsageError(f"{about}: size is less than {MINIMUM_MEMORY} bytes", hint="m is milli; write M or Mi")
    return Volume(name=name, kind="empty", mode=mode, uid=parsed["uid"], gid=parsed["gid"], size=size)


def _named_volume(about: str, name: str, fields: dict[str, str]) -> Volume:
    source = fields.pop("source", name)
    read_only = to_bool("volume readOnly", fields.pop("readOnly", "false"))
    copy = to_bool("volume copy", fields.pop("copy", "true"))
    if not is_volume_name(source):
        raise UsageError(
            f'{about}: "{source}" is not the name of a volume',
            hint="letters and digits, after the first also _ . and -; a path of the host is kind=host",
        )
    made = _empty_volume(about, name, fields)._replace(kind=NAMED, source=source, read_only=read_only, copy=copy)
    return made._replace(
        mode=made.mode if "mode" in fields else "",
        uid=made.uid if "uid" in fields else -1,
        gid=made.gid if "gid" in fields else -1,
    )


def _number(what: str, text: str, base: int, most: int) -> int:
    digits = "01234567" if base == 8 else "0123456789"
    if not text or text.strip(digits) or int(text, base) > most:
        raise UsageError(
            f'{what}: "{text}" is not a number from 0 to {most:o}' if base == 8 else f'{what}: bad "{text}"'
        )
    return int(text, base)


def mount(text: str) -> tuple[str, str]:
    """`volume=NAME,target=/path` as (volume, target)."""
    fields = pairs("mount", text)
    if set(fields) != {"volume", "target"}:
        raise UsageError(f"--mount={text}: it takes volume=NAME,target=/path")
    if not os.path.isabs(fields["target"]):
        raise UsageError(f"--mount={text}: target has to be an absolute path")
    return fields["volume"], fields["target"]


def variables(flag: str, texts: Iterable[str]) -> dict[str, str]:
    """`NAME=VALUE` flags as a dict; a name given twice is an error."""
    found: dict[str, str] = {}
    for text in texts:
        name, given, value = text.partition("=")
        if not given or not name or "\0" in text:
            raise UsageError(f'--{flag}: "{text}" is not of the form NAME=VALUE')
        if name in found:
            raise UsageError(f"--{flag}: environment variable {name} is already set")
        found[name] = value
    return found


def environment_files(paths: Iterable[str]) -> dict[str, str]:
    """Variables from files of NAME=VALUE lines; blank lines and those that begin with # or ; are skipped. A path after
    a hyphen may lead nowhere (systemd.exec(5), "EnvironmentFile=")."""
    found: dict[str, str] = {}
    for text in paths:
        path = text.removeprefix(OPTIONAL)
        try:
            with open(path, encoding="utf-8") as file:
                lines = [line.strip() for line in file]
        except (OSError, UnicodeDecodeError) as error:
            if path != text and isinstance(error, FileNotFoundError | NotADirectoryError):
                continue
            why = reason(error) if isinstance(error, OSError) else "not UTF-8 text"
            raise UsageError(f"open {path}: {why}") from error
        wanted = [line for line in lines if line and line[0] not in "#;"]
        for name, value in variables(f"set-env-file={path}", wanted).items():
            if name in found:
                raise UsageError(f"--set-env-file={path}: environment variable {name} is already set")
            found[name] = value
    return found


def gids(texts: Iterable[str]) -> tuple[int, ...]:
    return tuple(
        _number("--supplementary-gids", word, 10, 2**32 - 2) for text in texts for word in text.split(",") if text
    )


def isolators(flags: Values) -> Iterator[Isolator]:
    """The isolators an app's own flags ask for, checked as those of a manifest are."""
    makers: dict[str, Callable[[Values], Isolator | Iterable[Isolator]]] = {
        "memory": lambda flags: _resource("memory", flags),
        "cpu": lambda flags: _resource("cpu", flags),
        "pids-limit": _pids,
        "cpu-shares": lambda flags: _integer("os/linux/cpu-shares", "cpu-shares", flags),
        "oom-score-adj": lambda flags: _integer("os/linux/oom-score-adj", "oom-score-adj", flags),
        "caps-retain": lambda flags: _capabilities("caps-retain", isolator.CAPABILITIES_RETAIN, flags),
        "caps-remove": lambda flags: _capabilities("caps-remove", isolator.CAPABILITIES_REMOVE, flags),
        "caps-ambient": lambda flags: _capabilities("caps-ambient", isolator.AMBIENT_CAPABILITIES, flags),
        "no-new-privileges": lambda flags: Isolator(isolator.NO_NEW_PRIVILEGES, flags.boolean("no-new-privileges")),
        "seccomp": _seccomp,
        "ulimit": lambda flags: [ulimit(text) for text in flags.all("ulimit")],
    }
    if flags.get("caps-retain") is not None and flags.get("caps-remove") is not None:
        raise UsageError("--caps-retain and --caps-remove exclude each other")
    for name in flags.typed():
        if name in makers:
            made = makers[name](flags)
            for one in (made,) if isinstance(made, Isolator) else made:
                yield _checked(name, one)


def _checked(flag: str, made: Isolator) -> Isolator:
    try:
        isolator.check([made])
    except Flaw as flaw:
        raise UsageError(f"--{flag}: {flaw.reason}", hint=flaw.hint) from flaw
    return made


_RESTRICTIONS = (
    "memory", "cpu", "cpu-shares", "oom-score-adj", "caps-retain", "caps-remove", "caps-ambient", "seccomp", "ulimit",
)  # fmt: skip


def restrictions(flags: Values) -> Iterator[str]:
    """Names of the flags that restrict an app and that not every flavour can enforce."""
    for name in flags.typed():
        if name in _RESTRICTIONS or (name == "pids-limit" and _pids(flags)):
            yield name


def ulimit(text: str) -> Isolator:
    """`NAME=SOFT[:HARD]`, the hard limit being the soft one when it is left out. -1 is unlimited too, as for podman."""
    name, _, limits = text.partition("=")
    soft, colon, hard = limits.partition(":")
    if name not in map(str.lower, isolator.RLIMITS):
        known = ", ".join(map(str.lower, isolator.RLIMITS))
        raise UsageError(f'--ulimit={text}: there is no limit "{name}"', hint=f"there is: {known}")
    values = {"soft": _rlimit(text, soft), "hard": _rlimit(text, hard if colon else soft)}
    return Isolator(isolator.RLIMIT, {"name": name.upper(), **values})


def _rlimit(text: str, value: str) -> int | str:
    if value in (isolator.UNLIMITED, "-1"):
        return isolator.UNLIMITED
    return _number(f"--ulimit={text}", value, 10, 2**63 - 1)


def _pids(flags: Values) -> list[Isolator]:
    text = flags.get("pids-limit") or ""
    if text in ("0", "-1"):
        return []
    return [Isolator(isolator.PIDS, {"limit": _number(f"--pids-limit={text}", text, 10, 2**22)})]


def _resource(kind: str, flags: Values) -> Isolator:
    limit = flags.get(kind) or ""
    if kind == "memory" and quantity(limit) < MINIMUM_MEMORY:
        raise UsageError(f"--memory={limit}: less than {MINIMUM_MEMORY} bytes", hint="m is milli; write M or Mi")
    return Isolator(f"resource/{kind}", {"limit": limit})


def _integer(isolator: str, flag: str, flags: Values) -> Isolator:
    text = flags.get(flag) or ""
    try:
        return Isolator(isolator, int(text))
    except ValueError:
        raise UsageError(f'--{flag}: "{text}" is not a number') from None


def _capabilities(flag: str, name: str, flags: Values) -> Isolator:
    words = [word for text in flags.all(flag) for word in text.split(",") if word]
    return Isolator(name, {"set": words})


def _seccomp(flags: Values) -> Isolator:
    text = flags.get("seccomp") or ""
    mode, errno, calls = "", "", []
    for word in text.split(","):
        key, given, value = word.partition("=")
        if given and key == "mode":
            mode = value
        elif given and key == "errno":
            errno = value
        elif word:
            calls.append(word)
    if mode not in ("retain", "remove"):
        raise UsageError(f"--seccomp={text}: mode has to be retain or remove")
    filtered: dict[str, Any] = {"set": calls, **({"errno": errno} if errno else {})}
    return Isolator(f"os/linux/seccomp-{mode}-set", filtered)
