"""The guest's stand-ins for modules of the standard library do what those do, as far as they go."""

from __future__ import annotations

import ast
import json
import os
import signal
import types
import typing
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from stage1.vm import lean, runtime
from stage1.vm.lean import json as lean_json
from stage1.vm.lean import signal as lean_signal
from stage1.vm.lean import typing as lean_typing

COMPACT = (",", ":")
VALUES = ["", 'ä\n"\\\0\U0001f600', -7, 10**30, 0.5, True, False, None, [], {}, [["a", {"b": [1, None]}]]]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_json(value: object) -> None:
    text = lean_json.dumps(value, separators=COMPACT)
    assert text == json.dumps(value, separators=COMPACT)
    assert lean_json.loads(text) == lean_json.loads(text.encode()) == value


@pytest.mark.parametrize("text", ["", "[", '["a"', "nothing", "[1] ", "[1]x", '"\\x"'])
def test_what_is_not_json(text: str) -> None:
    with pytest.raises(ValueError):
        lean_json.loads(text)


def test_what_json_has_no_word_for() -> None:
    with pytest.raises(TypeError, match="object is not for JSON"):
        lean_json.dumps(object(), separators=COMPACT)


def test_signals_have_their_numbers() -> None:
    names = [name for name in dir(signal) if name.startswith("SIG") and isinstance(getattr(signal, name), int)]
    assert len(names) > 30
    assert all(getattr(lean_signal, name) == getattr(signal, name) for name in names)
    assert lean_signal.valid_signals() == signal.valid_signals()  # type: ignore[attr-defined]


def protocols(module: types.ModuleType) -> tuple[type, object, object]:
    """One, what is an instance of it, and what is none."""
    text = """
class Step(Protocol):
    def describe(self): ...

@runtime_checkable
class Sourced(Step, Protocol):
    def open(self): ...

class Both:
    def describe(self): ...
    def open(self): ...

class One:
    def open(self): ...
"""
    names: dict[str, typing.Any] = {"Protocol": module.Protocol, "runtime_checkable": module.runtime_checkable}
    exec(text, names)
    return names["Sourced"], names["Both"](), names["One"]()


@pytest.mark.parametrize("module", [typing, lean_typing], ids=["typing", "lean"])
def test_protocols(module: types.ModuleType) -> None:
    protocol, both, one = protocols(module)
    assert isinstance(both, protocol)
    assert not isinstance(one, protocol)


def test_the_guest_has_all_of_them() -> None:
    """Else they would have been given up for missing something."""
    place = Path(lean.__file__).parent
    names = {str(path.relative_to(place)) for path in place.rglob("*.py")} - {"__init__.py"}
    found = {file.target for file in runtime.collect().files}
    assert {f"{runtime.PLACE}{runtime.LEAN}/{name}c" for name in names} <= found
    library = Path(json.__file__).parents[1]
    left_out = {f"{library}/{name}.pyc" for name in ("enum", "re/__init__", "typing", "json/__init__", "signal")}
    assert not left_out & found


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def used(tree: ast.AST, names: set[str]) -> Iterator[tuple[str, str]]:
    """Of the modules `names`: each with what is imported or asked of it, wherever that is."""
    known: dict[str, str] = {}
    nodes = [tree]
    for node in nodes:  # which grows
        nodes += (child for child in ast.iter_child_nodes(node) if not is_for_types(child))
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name: alias.name for alias in node.names if alias.name in names}
        elif isinstance(node, ast.ImportFrom) and node.module in names:
            yield from ((node.module, alias.name) for alias in node.names)
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
            yield known[node.value.id], node.attr


SINGLEDISPATCH = {("typing", name) for name in ("Union", "get_args", "get_origin", "get_type_hints")}
"""What functools.singledispatch asks for when it is used, which it is not in the guest."""


def test_they_have_all_that_is_used_of_them() -> None:
    """Also what is used in functions, which nobody would miss before they are called in a guest."""
    names = {"json", "signal", "typing"}
    sources = [Path(file.source) for file in runtime.collect().files if file.source.endswith(".py")]
    place = Path(lean.__file__).parent
    found = {
        use for source in sources if place not in source.parents for use in used(ast.parse(source.read_text()), names)
    }
    assert {("json", "dumps"), ("signal", "pidfd_send_signal"), ("typing", "Protocol")} <= found
    missing = {use for use in found if not hasattr(import_module(f"{lean.__name__}.{use[0]}"), use[1])}
    assert missing - SINGLEDISPATCH == set()


def test_without_them_the_librarys_own_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "typing.py").touch()
    monkeypatch.setattr(runtime, "LEAN", f"/{os.path.relpath(tmp_path, runtime.ROOT)}")
    found = {file.source for file in runtime.collect().files}
    assert {typing.__file__, json.__file__, signal.__file__} <= found
