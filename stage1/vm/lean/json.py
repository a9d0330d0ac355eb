"""https://docs.python.org/3/library/json.html by its parts in C alone."""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder, make_scanner
from typing import Any


class _Context:
    """The options of a parser."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}  # noqa: RUF012  # It is emptied each time.


_scan = make_scanner(_Context)  # type: ignore[arg-type]


def loads(data: bytes | str) -> Any:
    """A value without whitespace around it. Raises ValueError."""
    text = data if isinstance(data, str) else data.decode("utf-8")
    try:
        value, end = _scan(text, 0)
    except (StopIteration, ImportError) as error:  # whose own error is in Python
        raise ValueError("not JSON") from error
    if end != len(text):
        raise ValueError("not JSON alone")
    return value


def dumps(value: Any, *, separators: tuple[str, str]) -> str:
    """In ASCII. `separators`: of items, and of a key and its value."""
    item, key = separators
    parts = make_encoder(None, _refuse, encode_basestring_ascii, None, key, item, False, False, False)(value, 0)
    return "".join(parts)


def _refuse(value: object) -> Any:
    raise TypeError(f"{type(value).__name__} is not for JSON")
