"""What was done to the network for a pod, in its directory: `net/record`, JSON, written before the deed.

`list` and `status` read it, `detach` takes back what it says.
"""

from __future__ import annotations

import json
import os
from typing import Any

from common import files
from common.errors import NetworkError, reason
from common.records import NamedTuple

RECORD = "net/record"


class Element(NamedTuple):
    """One element of a set or map of our table (`firewall`), in the words of nft(8)."""

    where: str
    """The set's or map's name."""
    key: str
    value: str = ""
    """Of a map's element."""


class Attachment(NamedTuple):
    """One network the pod was, or was about to be, attached to."""

    network: str
    interface: str
    conf: str
    """The configuration list as JSON, as it was then: what is taken back is what was done."""
    args: tuple[tuple[str, str], ...] = ()
    source: str = ""
    runtime: str = "{}"
    """Capability arguments the plugins were offered (CNI conventions: runtimeConfig), JSON."""
    result: str = ""
    """What came of it (CNI 1.0.0 result type, JSON); empty until then."""
    over: bool = False
    """It was taken back; what is here is for `status` to tell."""


class Record(NamedTuple):
    uuid: str
    netns: str = ""
    """Where the network namespace was mounted for plugins that are programs; empty when none is."""
    plugin_path: tuple[str, ...] = ()
    system_plugin_path: tuple[str, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    elements: tuple[Element, ...] = ()
    ports: tuple[str, ...] = ()
    """Claims of published ports (`ports`), names of files."""


def write(directory: str, record: Record) -> None:
    """Whole or not at all; NetworkError when that fails."""
    path = f"{directory}/{RECORD}"
    try:
        files.make_directory(os.path.dirname(path), 0o750)
        files.replace(path, json.dumps(_plain(record)).encode(), mode=0o640)
    except OSError as error:
        raise NetworkError(f"write {path}: {reason(error)}") from error


def read(directory: str) -> Record | None:
    """None when nothing was ever done. NetworkError when what is there makes no sense."""
    path = f"{directory}/{RECORD}"
    try:
        with open(path, "rb") as file:
            document = json.loads(file.read())
        lists = {"attachments": _all(Attachment, document["attachments"]),
                 "elements": _all(Element, document["elements"])}  # fmt: skip
        found: Record = _sound(Record(**{**_tuples(document), **lists}))
        return found
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NetworkError(f"open {path}: {reason(error)}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise NetworkError(f"{path} makes no sense: {error}") from error


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _tuples(document: dict[str, Any]) -> dict[str, Any]:
    return {name: _tuple(item) for name, item in document.items()}


def _tuple(value: Any) -> Any:
    if isinstance(value, str) and "\0" in value:  # Much of it goes into paths.
        raise ValueError(f"{value!r} has a null character in it")
    return tuple(_tuple(item) for item in value) if isinstance(value, list) else value


def _all(kind: Any, documents: list[dict[str, Any]]) -> tuple[Any, ...]:
    return tuple(_sound(kind(**_tuples(document))) for document in documents)


def _sound(item: Any) -> Any:
    """`item`, if it has the types it was declared with. Raises ValueError."""
    for name, value in item._asdict().items():
        right = type(value) is type(item._field_defaults.get(name, ""))
        if right and name in ("ports", "plugin_path", "system_plugin_path"):
            right = all(isinstance(each, str) for each in value)
        if right and name == "args":
            right = all(isinstance(each, tuple) and [*map(type, each)] == [str, str] for each in value)
        if not right:
            raise ValueError(f"{name} is {value!r}")
    return item
