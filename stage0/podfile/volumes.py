"""`Volume=`, `Mount=` and `Tmpfs=`: podman's words for what `--volume` and `--mount` say. All raise ValueError."""

from __future__ import annotations

from common.records import NamedTuple

PREFIX = "podfile"
"""What the names of volumes begin with that the file gives none. No image has a mount point of such a name, which would
get the volume too."""

_HINT = "it takes /SOURCE:/TARGET[:OPTIONS], NAME:/TARGET[:OPTIONS], /TARGET, or NAME,kind=host|empty|named,..."
_PATHS = frozenset("CdDEfhLPStTVyY")
"""Specifiers that are paths (systemd.unit(5)); any other begins a name, if there is no slash."""
_PROPAGATIONS = ("private", "slave", "shared")
_BIND = {
    "source": ("source", "src"),
    "target": ("destination", "dst", "dest", "target"),
}


class Mounted(NamedTuple):
    """What one value comes to; each may be empty."""

    volume: str = ""
    """For `--volume`."""
    mount: str = ""
    """For `--mount`."""
    source: str = ""
    """A path of the host."""


def volume(text: str, name: str) -> Mounted:
    """`Volume=`; `name` is for a volume without one."""
    if not text.startswith(("/", "%")) and ",kind=" in text:
        return Mounted(volume=text, source=_source(text))
    parts = text.split(":")
    if len(parts) == 1 and text.startswith(("/", "%")):
        return _empty(name, text, [])
    if len(parts) not in (2, 3) or not parts[1].startswith(("/", "%")):
        raise ValueError(f'"{text}" names no path: {_HINT}' if len(parts) == 1 else f"{text}: {_HINT}")
    options = parts[2].split(",") if len(parts) == 3 else []
    if _is_named(parts[0]):
        return _named(name, parts[0], parts[1], options)
    return _bound(name, parts[0], parts[1], options)


def _is_named(source: str) -> bool:
    return "/" not in source and not (source.startswith("%") and source[1:2] in _PATHS)


def _source(text: str) -> str:
    fields = dict(item.partition("=")[::2] for item in text.split(","))
    return fields.get("source", "") if fields.get("kind") == "host" else ""


def tmpfs(text: str, name: str) -> Mounted:
    """`Tmpfs=/TARGET[:size=…,mode=…]`."""
    target, _, options = text.partition(":")
    return _empty(name, target, ["mode=1777", *options.split(",")] if options else ["mode=1777"])


def mount(text: str, name: str) -> Mounted:
    """`Mount=type=bind|tmpfs|volume,…`, or `volume=NAME,target=/PATH` as `--mount` has it."""
    fields: dict[str, str] = {}
    for item in text.split(","):
        key, _, value = item.partition("=")
        fields[key] = value
    if "volume" in fields and "type" not in fields:
        return Mounted(mount=text)
    kind = fields.pop("type", "")
    target = _take(fields, _BIND["target"])
    if kind == "bind":
        source = _take(fields, _BIND["source"])
        return _bound(name, source, target, [_joined(*item) for item in fields.items()])
    if kind == "volume":
        source = _take(fields, _BIND["source"])
        return _named(name, source, target, [_joined(*item) for item in fields.items()])
    if kind == "tmpfs":
        return _empty(name, target, ["mode=1777", *(_joined(*item) for item in fields.items())])
    raise ValueError(f"{text}: type has to be bind, tmpfs or volume; or write volume=NAME,target=/PATH")


def _take(fields: dict[str, str], names: tuple[str, ...]) -> str:
    found = [fields.pop(name) for name in names if name in fields]
    if len(found) != 1:
        raise ValueError(f"{names[0]} has to be given once")
    return found[0]


def _joined(key: str, value: str) -> str:
    return f"{key}={value}" if value else key


def _bound(name: str, source: str, target: str, options: list[str]) -> Mounted:
    made = [name, "kind=host", f"source={_path(source)}"]
    for option in options:
        made += _bind_option(option)
    return Mounted(",".join(made), f"volume={name},target={_path(target)}", source)


def _named(name: str, source: str, target: str, options: list[str]) -> Mounted:
    """A named volume; what it is made with is only for the first time."""
    if not source or "/" in source:
        raise ValueError(f'"{source}" is not the name of a volume')
    made = [name, "kind=named", f"source={_whole(source)}"]
    for option in options:
        words = {"copy": [], "nocopy": ["copy=false"]}.get(option, _read_only(option))
        if words is None and option.partition("=")[0] not in ("mode", "uid", "gid"):
            raise ValueError(f'"{option}" is no option of a named volume: there is ro, rw, nocopy, mode, uid, gid')
        made += [option] if words is None else words
    return Mounted(",".join(made), f"volume={name},target={_path(target)}")


def _read_only(option: str) -> list[str] | None:
    """What an option says of that; None for one that says nothing."""
    key, _, value = option.partition("=")
    if key in ("ro", "readonly", "rw") and value in ("", "true", "false"):
        return ["readOnly=true"] if (key != "rw") != (value == "false") else []
    return None


def _bind_option(option: str) -> list[str]:
    key, _, value = option.partition("=")
    read_only = _read_only(option)
    if read_only is not None:
        return read_only
    if option in ("rbind", "bind"):
        return [f"recursive={'true' if option == 'rbind' else 'false'}"]
    word = value if key in ("bind-propagation", "propagation") else key
    if word.removeprefix("r") in _PROPAGATIONS:
        return [f"propagation={word.removeprefix('r')}"]
    raise ValueError(f'"{option}" is no option of a volume: there is ro, rw, bind, rbind, {", ".join(_PROPAGATIONS)}')


def _empty(name: str, target: str, options: list[str]) -> Mounted:
    fields: dict[str, str] = {}
    for option in options:
        key, _, value = option.partition("=")
        key = {"tmpfs-size": "size", "tmpfs-mode": "mode"}.get(key, key)
        if key not in ("size", "mode", "uid", "gid"):
            raise ValueError(f'"{option}" is no option here: there is size, mode, uid, gid')
        fields[key] = value
    words = [name, "kind=empty", *(f"{key}={value}" for key, value in fields.items())]
    return Mounted(",".join(words), f"volume={name},target={_path(target)}")


def _path(text: str) -> str:
    if not text.startswith(("/", "%")):
        raise ValueError(f'"{text}" is not an absolute path')
    return _whole(text)


def _whole(text: str) -> str:
    if "," in text:
        raise ValueError(f'"{text}" has a comma in it')
    return text
