"""JSON as manifests use it: decoding what may be hostile, saying where a fault is, writing as Go does.

A reader is a function from a JSON value to a typed one; it raises ManifestError. Readers are put together here, and
each level that passes an error on adds its own step to the path, so that paths cost nothing while all is well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn, TypeVar

from aci.types import ac_identifier, ac_name, image_id, quote
from common.errors import ManifestError
from common.records import NamedTuple

T = TypeVar("T")

SIZE_LIMIT: Final = 4 << 20
"""Bytes of the largest manifest that is read."""
DEPTH_LIMIT: Final = 32
"""Levels of nesting in a value that is kept as it is."""
_INTEGER_LIMIT: Final = 2**63


class Flaw(ManifestError):
    """A fault and its place in the document, written as in `app.ports[1].port`."""

    def __init__(self, path: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"{path}: {reason}", hint=hint)
        self.path = path
        self.reason = reason


def located(step: str, error: ManifestError) -> Flaw:
    """`error` as seen from one level further out."""
    if not isinstance(error, Flaw):
        return Flaw(step, error.message, hint=error.hint)
    joint = "" if error.path.startswith("[") else "."
    return Flaw(step + joint + error.path, error.reason, hint=error.hint)


# Decoding and encoding


def decode(data: bytes) -> Any:
    """The JSON value in `data`; ManifestError for what is not strict JSON in UTF-8 (RFC 8259) and for what is too large
    or too deep. An object in which a key occurs twice is a `Repeated`."""
    if len(data) > SIZE_LIMIT:
        raise ManifestError(f"is larger than {SIZE_LIMIT >> 20} MiB")
    try:
        return _DECODER.decode(data.decode())
    except UnicodeDecodeError as error:
        raise ManifestError(f"is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        reason = error.msg[:1].lower() + error.msg[1:].removesuffix(" at")
        raise ManifestError(f"is not JSON: {reason} at {place}") from None
    except RecursionError:
        raise ManifestError("is nested too deeply") from None
    except ValueError:
        # Python refuses to convert integers of thousands of digits.
        raise ManifestError("is not JSON that can be read: a number is too large") from None


class Repeated(NamedTuple):
    """Stands for an object in which a key occurs twice. No reader takes it, so the one that meets it says where."""

    key: str


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Repeated:
    result = dict(pairs)
    if len(result) == len(pairs):
        return result
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            break
        seen.add(key)
    return Repeated(key)


def _constant(word: str) -> NoReturn:
    raise ManifestError(f"is not JSON: {word} is not a number")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
# Go escapes these so that JSON can stand inside HTML; outside of strings JSON has none of them.
_HTML: Final = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def encode(value: Any, *, pretty: bool) -> str:
    """`value` as Go's encoding/json writes it, indented with tabs when `pretty`."""
    try:
        text = json.dumps(
            value,
            ensure_ascii=False,
            allow_nan=False,
            indent="\t" if pretty else None,
            separators=(",", ": ") if pretty else (",", ":"),
        )
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        raise ManifestError("a manifest cannot hold text that is not UTF-8") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise ManifestError(f"a manifest cannot hold this value: {error}") from None
    return text.translate(_HTML)


# Readers of single values

_KINDS: Final = {
    dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number",
    float: "a floating-point number", type(None): "null",
}  # fmt: skip


def expected(what: str, value: Any) -> ManifestError:
    if isinstance(value, Repeated):
        return ManifestError(f"has the key {quote(value.key)} twice in one object")
    return ManifestError(f"must be {what}, not {_KINDS.get(type(value), type(value).__name__)}")


def text(value: Any) -> str:
    """Any string that can be an argument, a path or a line of output: no NUL, no half of a surrogate pair."""
    if not isinstance(value, str):
        raise expected("a string", value)
    if "\0" in value:
        raise ManifestError("must not contain a NUL")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise ManifestError("must not contain half of a surrogate pair")
    return value


def word(value: Any) -> str:
    if not text(value):
        raise ManifestError("must not be empty")
    return str(value)


def absolute_path(value: Any) -> str:
    if not text(value).startswith("/"):
        raise ManifestError(f"must be an absolute path, not {quote(value)}")
    return str(value)


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise expected("true or false", value)
    return value


def integer(lowest: int, highest: int) -> Callable[[Any], int]:
    """A reader of integers in a range. `true` is none, and neither is `1.0`."""

    def read(value: Any) -> int:
        if type(value) is not int:
            raise expected("an integer", value)
        if not lowest <= value <= highest:
            raise ManifestError(f"must be {lowest} to {highest}")
        return value

    return read


def identifier(value: Any) -> str:
    return ac_identifier(text(value))


def name_text(value: Any) -> str:
    return ac_name(text(value))


def identity(value: Any) -> str:
    return image_id(text(value))


def kept(value: Any, depth: int = 0) -> Any:
    """A value of unknown meaning, kept as it is; checked so far that it can be written again."""
    if depth > DEPTH_LIMIT:
        raise ManifestError("is nested too deeply")
    if isinstance(value, str):
        text(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            kept(item, depth + 1)
            text(key)
    elif isinstance(value, list):
        for item in value:
            kept(item, depth + 1)
    elif isinstance(value, int):
        if not -_INTEGER_LIMIT <= value < _INTEGER_LIMIT:
            raise ManifestError("is a number too large")
    elif isinstance(value, float):
        if value - value != 0:
            raise ManifestError("is a number too large")
    elif value is not None:
        raise expected("a JSON value", value)
    return value


# Readers of lists and objects


def each(read: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    """A reader of lists whose items `read` reads."""

    def read_all(value: Any) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise expected("a list", value)
        index = 0
        items = []
        try:
            for index, item in enumerate(value):  # noqa: B007 - the error below needs it
                items.append(read(item))
        except ManifestError as error:
            raise located(f"[{index}]", error) from None
        return tuple(items)

    return read_all


def record(value: Any, known: frozenset[str]) -> dict[str, Any]:
    """An object that has the fields `known`. Others are let pass for the sake of later versions."""
    if not isinstance(value, dict):
        raise expected("an object", value)
    if not value.keys() <= known:
        _check_others(value, known)
    return value


def _check_others(entry: dict[str, Any], known: frozenset[str]) -> None:
    """A field that differs from a known one by case only is refused: Go's decoder, and so rkt, would obey it."""
    spellings = {key.lower(): key for key in known}
    for key in entry:
        if key not in known:
            if (right := spellings.get(text(key).lower())) is not None:
                raise ManifestError(f"has a field {quote(key)}", hint=f"it is spelt {right}")
            _at_key(entry, key, kept)


def _at_key(entry: dict[str, Any], key: str, read: Callable[[Any], object]) -> None:
    """Read the value of a key that the document's author chose, and that is quoted in a path therefore."""
    try:
        read(entry[key])
    except ManifestError as error:
        raise located(f"[{quote(str(key))}]", error) from None


def field(entry: dict[str, Any], key: str, read: Callable[[Any], T], default: T) -> T:
    """One field; `default` when it is absent or null, as Go has it."""
    value = entry.get(key)
    if value is None:
        return default
    try:
        return read(value)
    except ManifestError as error:
        raise located(key, error) from None


def required(entry: dict[str, Any], key: str, read: Callable[[Any], T]) -> T:
    value = entry.get(key)
    if value is None:
        raise Flaw(key, "is missing")
    try:
        return read(value)
    except ManifestError as error:
        raise located(key, error) from None


def texts(value: Any) -> tuple[tuple[str, str], ...]:
    """A reader of objects whose values are strings, as pairs in the order of the document."""
    if not isinstance(value, dict):
        raise expected("an object", value)
    for key in value:
        text(key)
        _at_key(value, key, text)
    return tuple(value.items())


_PAIR_FIELDS: Final = frozenset({"name", "value"})


def pairs(
    read_name: Callable[[Any], str], check: Callable[[Iterable[tuple[str, str]]], None]
) -> Callable[[Any], tuple[tuple[str, str], ...]]:
    """A reader of lists of `{"name": …, "value": …}`, checked as a whole."""

    def read_pair(value: Any) -> tuple[str, str]:
        entry = record(value, _PAIR_FIELDS)
        return required(entry, "name", read_name), field(entry, "value", text, "")

    read_all = each(read_pair)

    def read(value: Any) -> tuple[tuple[str, str], ...]:
        found = read_all(value)
        check(found)
        return found

    return read


def check_unique(kind: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for item in names:
        if item in seen:
            raise ManifestError(f"the {kind} {quote(item)} is given twice")
        seen.add(item)


# Whole documents


def named(kind: str, read: Callable[[Any], T], value: Any) -> T:
    """What `read` makes of `value`; an error says which kind of document it is about."""
    try:
        return read(value)
    except ManifestError as error:
        joint = ": " if isinstance(error, Flaw) else " "
        raise ManifestError(f"{kind}{joint}{error.message}", hint=error.hint) from None


def check_kind(document: dict[str, Any], kind: str) -> None:
    found = required(document, "acKind", text)
    if found != kind:
        raise Flaw("acKind", f"must be {quote(kind)}, not {quote(found)}")


def set_fields(**values: Any) -> dict[str, Any]:
    """A JSON object of the fields that say something: neither empty, nor false, nor zero."""
    return {key: value for key, value in values.items() if value}


def pair_objects(items: Iterable[tuple[str, Any]]) -> list[dict[str, Any]]:
    return [{"name": key, "value": value} for key, value in items]
