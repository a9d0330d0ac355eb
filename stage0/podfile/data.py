"""A pod as data, in JSON or TOML (`rkpy run --pod-file`): the flags of `rkpy run` by their names.

What is said becomes the words one would have typed, and those go the way of all command lines: there is nothing about
them to learn anew. A JSON document that is a pod manifest is one. All raise ConfigError.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aci.types import sanitise_name
from common.errors import ConfigError, reason
from stage0 import grammar, options
from stage0.config import Config
from stage0.options import BOOL, LIST, OPTIONAL, Flag
from stage0.podfile import search

SUFFIXES = (".json", ".toml")
FLAG = "pod-file"
_PAIRS = ("set-env", "environment", "user-annotation", "user-label", "annotation")
"""Flags of the form NAME=VALUE, which may be written as a table too."""
_MANIFEST = "rkpy/pod-name"
_LARGEST = 4 << 20


def find(name: str, config: Config) -> str:
    """The file that `name` means: itself when it is a path, else the first of that name where pod files lie."""
    if "/" in name:
        return name
    for folder in search.directories(config):
        found = [path for suffix in SUFFIXES if os.path.exists(path := f"{folder}/{name}{suffix}")]
        if len(found) > 1:
            raise ConfigError(f"{found[0]} and {found[1]} are two files of one pod", hint="remove one of them")
        if found:
            return found[0]
    looked = ", ".join(search.directories(config))
    raise ConfigError(f'there is no pod file "{name}"', hint=f"looked for {name}.json and {name}.toml in {looked}")


def words(name: str, config: Config, flags: Mapping[str, Flag]) -> list[str]:
    """What somebody would type to run the pod; `flags` are those of the command. A file that is found by name gives the
    pod that name, unless it says another."""
    path = find(name, config)
    document = _read(path)
    own = [] if "/" in name or _is_named(document) else [f"--pod-name={sanitise_name(name)}"]
    if document.get("acKind") == "PodManifest":
        return [*own, f"--pod-manifest={path}"]
    return [*own, *_pod(path, document, flags)]


def _is_named(document: Mapping[str, Any]) -> bool:
    if document.get("acKind") != "PodManifest":
        return "pod-name" in document
    annotations = document.get("annotations")
    names = (
        [item.get("name") for item in annotations if isinstance(item, dict)] if isinstance(annotations, list) else []
    )
    return _MANIFEST in names


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"open {path}: {reason(error)}") from error
    if len(data) > _LARGEST:
        raise ConfigError(f"{path}: the file is too large")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    document = _toml(path, text) if path.endswith(".toml") else _json(path, text)
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: not an object")
    return document


def _json(path: str, text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f'"{name}" is given twice')
            found[name] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a JSON document: {error}") from error


def _toml(path: str, text: str) -> Any:
    import toml

    try:
        return toml.loads(text)
    # The library has its own error, and gives others for some documents that make no sense.
    except (ValueError, IndexError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: not a TOML document: {error}") from error


def _pod(path: str, document: Mapping[str, Any], flags: Mapping[str, Flag]) -> Iterator[str]:
    table = {**flags, **options.table(options.GLOBAL)}
    of_pod = {
        name: flag
        for name, flag in table.items()
        if name != FLAG and (name not in grammar.APP_FLAGS or name in grammar.POD_OR_APP)
    }
    for key, value in document.items():
        if key != "app":
            yield from _flag(path, key, key, value, of_pod)
    apps = document.get("app", [])
    if not isinstance(apps, list) or not all(isinstance(app, dict) for app in apps):
        raise ConfigError(f"{path}: app: not a list of tables", hint="write [[app]]")
    of_app = {name: flag for name, flag in table.items() if name in grammar.AFTER_IMAGE}
    for index, app in enumerate(apps):
        yield from _app(path, f"app[{index}]", app, of_app)


def _app(path: str, where: str, app: Mapping[str, Any], flags: Mapping[str, Flag]) -> Iterator[str]:
    image = app.get("image")
    if not isinstance(image, str) or not image or image.startswith("-"):
        raise ConfigError(f"{path}: {where}.image: {'missing' if image is None else 'not the name of an image'}")
    yield image
    for key, value in app.items():
        if key not in ("image", "args"):
            yield from _flag(path, f"{where}.{key}", key, value, flags)
    arguments = app.get("args", [])
    if not _are_strings(arguments):
        raise ConfigError(f"{path}: {where}.args: not a list of strings")
    if "---" in arguments:
        raise ConfigError(f"{path}: {where}.args: an argument cannot be ---")
    if arguments:
        yield from ("--", *arguments, "---")


def _are_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _flag(path: str, where: str, key: str, value: Any, flags: Mapping[str, Flag]) -> Iterator[str]:
    flag = flags.get(key)
    if flag is None:
        near = [name for name in flags if name == key.replace("_", "-").lower()]
        hint = f"it is written {near[0]}" if near else "the keys are the flags of the command, without --"
        raise ConfigError(f"{path}: {where}: there is no such key", hint=hint)
    for text in _texts(path, where, flag, value):
        yield f"--{flag.name}={text}"


def _texts(path: str, where: str, flag: Flag, value: Any) -> Sequence[str]:
    """The values of a flag that `value` comes to."""
    if flag.kind == BOOL:
        if not isinstance(value, bool):
            raise ConfigError(f"{path}: {where}: neither true nor false")
        return ["true" if value else "false"]
    if flag.name in _PAIRS and isinstance(value, dict) and _are_strings(list(value.values())):
        return [f"{name}={text}" for name, text in value.items()]
    if flag.kind in (LIST, OPTIONAL) and _are_strings(value):
        return list(value)
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool) and flag.kind != LIST):
        return [str(value)]
    what = "a string or a list of strings" if flag.kind in (LIST, OPTIONAL) else "a string or a number"
    raise ConfigError(f"{path}: {where}: not {what}")
