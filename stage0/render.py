"""How results look: the shapes rkt's Go libraries gave them, which its users' scripts take apart."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

_TAB = 8
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SECOND = 1_000_000_000
_UNITS = (
    ("second", _SECOND),
    ("minute", 60 * _SECOND),
    ("hour", 3600 * _SECOND),
    ("day", 86400 * _SECOND),
    ("week", 7 * 86400 * _SECOND),
    ("month", 30 * 86400 * _SECOND),
    ("year", 360 * 86400 * _SECOND),
)
# encoding/json escapes these inside strings so that its output can be pasted into HTML and JavaScript.
_GO_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def table(rows: Sequence[Sequence[str]]) -> str:
    """`rows`, all of one length, as Go's text/tabwriter aligns them (tab width 8, padding 1, padded with tabs): every
    cell but the last of a row ends in one tab or more, up to its column's next 8-column stop. Ends with a newline
    unless there are no rows. Control characters inside cells become `?`."""
    cells = [[_CONTROL.sub("?", cell) for cell in row] for row in rows]
    widths = [(max(map(len, column)) // _TAB + 1) * _TAB for column in zip(*cells, strict=True)]
    lines = ("".join([*map(_padded, row[:-1], widths), row[-1]]) for row in cells)
    return "".join(f"{line}\n" for line in lines)


def _padded(cell: str, width: int) -> str:
    return cell + "\t" * -(-(width - len(cell)) // _TAB)


def ago(ns: int, now: int | None = None) -> str:
    """How long ago the time `ns` (nanoseconds since the epoch) was: `now`, `1 second ago`, `3 minutes ago`."""
    elapsed = (time.time_ns() if now is None else now) - ns
    direction = "from now" if elapsed < 0 else "ago"
    elapsed = abs(elapsed)
    if elapsed < _SECOND:
        return "now"
    name, length = next(unit for unit in reversed(_UNITS) if elapsed >= unit[1])
    count = elapsed // length
    return f"{count} {name}{'' if count == 1 else 's'} {direction}"


def timestamp(ns: int) -> str:
    """Local time as Go's layout `2006-01-02 15:04:05.999 -0700 MST` prints it: milliseconds without trailing zeros."""
    seconds, rest = divmod(ns, _SECOND)
    moment = time.localtime(seconds)
    fraction = f".{rest // 1_000_000:03d}".rstrip("0").rstrip(".")
    return time.strftime("%Y-%m-%d %H:%M:%S", moment) + fraction + time.strftime(" %z %Z", moment)


def human_size(size: int) -> str:
    """A size in bytes with binary units and two significant digits below ten: `1.9MiB`, `33MiB`, `999B`."""
    if size < 1024:
        return f"{size}B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        value /= 1024
        if round(value, 1) < 1024 or unit == "EiB":
            break
    value = int(value * 10 + 0.5) / 10
    return f"{value:.1f}{unit}" if value < 10 else f"{value:.0f}{unit}"


def json_text(obj: Any, *, pretty: bool = False) -> str:
    """`obj` as Go's encoding/json writes it: no spaces, or indented by tabs; `<`, `>`, `&` escaped; other characters
    as they are. No final newline."""
    if pretty:
        text = json.dumps(obj, ensure_ascii=False, indent="\t")
    else:
        text = json.dumps(obj, ensure_ascii=False, separators=(",", ":"))
    # Outside strings JSON has none of these characters, so replacing them everywhere changes strings only. Lone
    # surrogates (bytes that were not UTF-8) cannot be written at all and become U+FFFD, as in Go.
    return _SURROGATE.sub("\ufffd", text.translate(_GO_ESCAPES))


def write_json(obj: Any, *, pretty: bool = False) -> None:
    """Print `obj` on standard output, with a final newline."""
    sys.stdout.write(json_text(obj, pretty=pretty) + "\n")
