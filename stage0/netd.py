"""Networks as `net.d` in the configuration directories defines them (CNI spec 0.1.0 to 1.0.0, section 1).

A file that makes no sense concerns the network it defines and no other: it is kept as `Malformed`, and whoever needs
that network says why it is not there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from common.errors import reason
from common.records import NamedTuple
from stage0.netflags import RESERVED, is_name

ENDINGS = (".conf", ".conflist", ".json")
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0")
OLDEST = VERSIONS[0]
"""Of a configuration that does not say."""
SIZE_LIMIT = 1 << 20
_OF_THE_LIST = ("cniVersion", "name", "disableCheck")


class Definition(NamedTuple):
    """A network."""

    name: str
    conf: str
    """The configuration list as JSON."""
    source: str = ""
    """The file; empty for one that is built in."""
    rank: int = 0
    """Where the file stands in the order of those that were looked at."""


class Malformed(NamedTuple):
    """A file that defines nothing."""

    source: str
    why: str
    name: str = ""
    """Of the network it would define, as far as that could be read."""
    rank: int = 0


class Found(NamedTuple):
    """What there is in `net.d`, in the order in which files win."""

    networks: tuple[Definition, ...] = ()
    malformed: tuple[Malformed, ...] = ()
    ignored: tuple[tuple[Definition, Definition], ...] = ()
    """Each with the one that has its name and wins."""


def folders(directories: Iterable[str]) -> tuple[str, ...]:
    """`net.d` of the configuration directories, which come lowest priority first; highest first."""
    return tuple(f"{directory}/net.d" for directory in reversed(tuple(directories)))


def read(directories: Iterable[str]) -> Found:
    """Every network of the configuration directories, which come lowest priority first. Files of one directory are
    taken in the order of their names; of two that define one network the first wins."""
    networks: dict[str, Definition] = {}
    malformed: list[Malformed] = []
    ignored: list[tuple[Definition, Definition]] = []
    for rank, item in enumerate(_files(folders(directories))):
        read = item if isinstance(item, Malformed) else _read(item)
        read = read._replace(rank=rank)
        if isinstance(read, Malformed):
            malformed.append(read)
        elif (winner := networks.setdefault(read.name, read)) is not read:
            ignored.append((read, winner))
    return Found(tuple(networks.values()), tuple(malformed), tuple(ignored))


def _files(places: Iterable[str]) -> Iterator[str | Malformed]:
    for place in places:
        try:
            names = sorted(os.listdir(place))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            yield Malformed(place, reason(error))
            continue
        # What is no file (a directory, a pipe that would keep us waiting) is not looked at; one that is not there is a
        # symlink that leads nowhere, and worth a word.
        paths = (f"{place}/{name}" for name in names if name.endswith(ENDINGS))
        yield from (path for path in paths if os.path.isfile(path) or not os.path.exists(path))


def _read(path: str) -> Definition | Malformed:
    document: Any = None
    try:
        with open(path, "rb") as file:
            text = file.read(SIZE_LIMIT + 1)
        if len(text) > SIZE_LIMIT:
            raise ValueError(f"it is larger than {SIZE_LIMIT >> 20} MiB")
        document = json.loads(text, parse_constant=_refuse)
        listed = configuration_list(document)
        return Definition(listed["name"], json.dumps(listed, separators=(",", ":")), path)
    except OSError as error:
        return Malformed(path, reason(error))
    except RecursionError:
        return Malformed(path, "it is nested too deeply")
    except ValueError as error:
        return Malformed(path, str(error), _name_in(document))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _name_in(document: Any) -> str:
    """The name of a network that somebody could ask for."""
    name = document.get("name") if isinstance(document, dict) else None
    return name if isinstance(name, str) and is_name(name) and name not in RESERVED else ""


def configuration_list(document: Any) -> dict[str, Any]:
    """`document`, a configuration or a list of some, as a list, of which a plugin can be told. Raises ValueError."""
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")
    name, version = document.get("name"), document.get("cniVersion") or OLDEST
    if not isinstance(name, str) or not is_name(name):
        raise ValueError("it has no name" if name in (None, "") else f"{json.dumps(name)} cannot be a network's name")
    if name in RESERVED:
        raise ValueError(f'no network can be called "{name}"')
    if version not in VERSIONS:
        raise ValueError(f"cniVersion {json.dumps(version)} is not known; it goes to {VERSIONS[-1]}")
    if "plugins" in document and "type" in document:
        raise ValueError("it has both a type and plugins")
    if "plugins" not in document:
        own = {key: value for key, value in document.items() if key not in _OF_THE_LIST}
        document = {"cniVersion": version, "name": name, "plugins": [own]}
    _check_list(document)
    return {**document, "cniVersion": version}


def _check_list(document: dict[str, Any]) -> None:
    if not isinstance(document.get("disableCheck", False), bool | str):
        raise ValueError("disableCheck is no boolean")
    plugins = document["plugins"]
    if not isinstance(plugins, list) or not plugins:
        raise ValueError("plugins is not a list with something in it")
    for plugin in plugins:
        if not isinstance(plugin, dict):
            raise ValueError("one of its plugins is not a JSON object")
        _check_type(plugin, "a plugin")
        for key in ("ipam", "capabilities", "dns", "args"):
            if not isinstance(plugin.get(key) or {}, dict):
                raise ValueError(f"{key} of plugin {json.dumps(plugin['type'])} is not a JSON object")
        if plugin.get("ipam"):
            _check_type(plugin["ipam"], "ipam")


def _check_type(plugin: dict[str, Any], what: str) -> None:
    kind = plugin.get("type")
    if kind is None or kind == "":
        raise ValueError(f"the type of {what} is missing")
    # It is the name of a program.
    if not isinstance(kind, str) or "/" in kind or "\0" in kind or kind.startswith("."):
        raise ValueError(f"type {json.dumps(kind)} cannot be the name of a plugin")
