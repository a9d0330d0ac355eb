"""The format of unit files (systemd.syntax(7)), read with the line of everything, and without stopping at a mistake.

Where the manual page is silent it is done as systemd does it (src/shared/conf-parser.c).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from common.records import NamedTuple

LONGEST_LINE = 1 << 20
LARGEST_FILE = 2 << 20
MOST = 4096
"""Sections, assignments and mistakes of a file. What lies here by mistake is not to hold up the boot."""

_ENDS = re.compile("\r\n|\n\r|\n|\r")
_SPACE = " \t"
_COMMENTS = ("#", ";")
_BOM = "\ufeff"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Mistake(NamedTuple):
    """Something wrong in a file; line 0 is the file as a whole."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        """`FILE:LINE: message`, one line whatever is in it."""
        text = f"{self.path}:{self.line}: {self.message}" if self.line else f"{self.path}: {self.message}"
        return "".join(
            char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in text
        )


class Entry(NamedTuple):
    """One assignment, and where it begins."""

    section: str
    key: str
    value: str
    path: str
    line: int

    def mistake(self, message: str) -> Mistake:
        return Mistake(self.path, self.line, message)


class Section(NamedTuple):
    """The header of a section."""

    name: str
    path: str
    line: int

    def mistake(self, message: str) -> Mistake:
        return Mistake(self.path, self.line, message)


class Parsed(NamedTuple):
    """A file, or several one after the other."""

    sections: tuple[Section, ...] = ()
    entries: tuple[Entry, ...] = ()
    mistakes: tuple[Mistake, ...] = ()

    def then(self, other: Parsed) -> Parsed:
        """This, and `other` after it, as systemd reads a drop-in after its unit."""
        return Parsed(
            (*self.sections, *other.sections),
            (*self.entries, *other.entries),
            (*self.mistakes, *other.mistakes),
        )


def parse(data: bytes, path: str) -> Parsed:
    """Everything in a file; what makes no sense is among the mistakes and nowhere else."""
    sections: list[Section] = []
    entries: list[Entry] = []
    mistakes: list[Mistake] = []
    if len(data) > LARGEST_FILE:
        return Parsed(mistakes=(Mistake(path, 0, "the file is too large"),))
    current: str | None = None
    for number, line in _logical(data.decode("utf-8", "surrogateescape").removeprefix(_BOM)):
        if len(sections) + len(entries) + len(mistakes) >= MOST:
            mistakes.append(Mistake(path, number, f"there is too much in this file: more than {MOST} assignments"))
            break
        wrong = _unreadable(line)
        if wrong:
            mistakes.append(Mistake(path, number, wrong))
        elif line.startswith("["):
            current = line[1:-1]
            if not line.endswith("]") or not current:
                mistakes.append(Mistake(path, number, f"not the header of a section: {line}"))
            sections.append(Section(current, path, number))
        else:
            key, equals, value = line.partition("=")
            if current is None:
                mistakes.append(Mistake(path, number, "this is in no section"))
            elif not equals or not key.strip(_SPACE):
                mistakes.append(Mistake(path, number, f"neither a section nor KEY=VALUE: {line}"))
            else:
                entries.append(Entry(current, key.strip(_SPACE), value.strip(_SPACE), path, number))
    return Parsed(tuple(sections), tuple(entries), tuple(mistakes))


def _unreadable(line: str) -> str:
    if len(line) > LONGEST_LINE:
        return "the line is too long"
    if not line.isascii() and any("\udc80" <= char <= "\udcff" for char in line):
        return "this is not UTF-8"
    return "there is a control character in this line" if _CONTROL.search(line) else ""


def _logical(text: str) -> Iterator[tuple[int, str]]:
    """Lines with what continues them, without comments and blank ones; each with the number of its first."""
    pending: list[str] = []
    begun = 0
    for number, line in enumerate(_ENDS.split(text), start=1):
        if not (line or pending) or line.lstrip(_SPACE).startswith(_COMMENTS):
            continue  # Comments even where a line is being continued.
        begun = begun if pending else number
        continued = _continues(line)
        pending.append(line[:-1] if continued else line)
        if not continued:
            yield from _joined(begun, pending)
            pending = []
    yield from _joined(begun, pending)


def _joined(begun: int, parts: list[str]) -> Iterator[tuple[int, str]]:
    line = " ".join(parts).strip(_SPACE)
    if line:
        yield begun, line


def _continues(line: str) -> bool:
    """Whether the line ends in a backslash that no other one escapes."""
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1
