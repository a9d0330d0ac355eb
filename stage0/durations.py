"""Durations as Go writes them (time.ParseDuration), the way rkt's flags and unit files spell them: `1h30m`, `0s`."""

from __future__ import annotations

import re

from common.errors import UsageError

SECOND = 1_000_000_000
_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # U+00B5, the micro sign
    "μs": 1_000,  # U+03BC, the Greek letter
    "ms": 1_000_000,
    "s": SECOND,
    "m": 60 * SECOND,
    "h": 3600 * SECOND,
}
_TERM = re.compile(r"(?P<whole>[0-9]*)(?:\.(?P<part>[0-9]*))?(?P<unit>[^0-9.]*)")
_LIMIT = 1 << 63


def parse(text: str) -> int:
    """Nanoseconds in `text`: an optional sign, then one or more decimal numbers each with a unit; `0` needs no unit.

    Raises UsageError. Like Go, anything that does not fit 64 bits (about 292 years) is an error."""
    sign = -1 if text.startswith("-") else 1
    rest = text.removeprefix("-") if sign < 0 else text.removeprefix("+")
    if rest == "0":
        return 0
    if not rest:
        raise _error(text)
    total = 0
    position = 0
    while position < len(rest):
        term = _TERM.match(rest, position)
        if term is None or not (term["whole"] or term["part"]):
            raise _error(text)
        if term["unit"] not in _UNITS:
            raise _error(text, f'unknown unit "{term["unit"]}"' if term["unit"] else "a number has no unit")
        total += _nanoseconds(term["whole"], term["part"] or "", _UNITS[term["unit"]])
        if total >= _LIMIT:
            raise _error(text, "it is too long")
        position = term.end()
    return sign * total


def _nanoseconds(whole: str, part: str, unit: int) -> int:
    # int() refuses thousands of digits, and nothing that long can fit anyway.
    significant = whole.lstrip("0")[:20]
    part = part[:20]
    fraction = int(part or "0") * unit // int("1" + "0" * len(part))
    return int(significant or "0") * unit + fraction


def _error(text: str, why: str = "") -> UsageError:
    return UsageError(
        f'invalid duration "{text}"' + (f": {why}" if why else ""), hint='write it like "30m", "1h30m" or "500ms"'
    )
