"""Words in values of unit files: taken apart as systemd does it, and put together for it (systemd.syntax(7), "Quoting";
systemd.service(5), "Command lines")."""

from __future__ import annotations

import re
from collections.abc import Iterable

from stage0 import unitfile

_SPACE = " \t\n\r"
_LETTERS = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, '"': 34, "'": 39, "s": 32}
_CODES = {
    "x": re.compile("x([0-9a-fA-F]{2})"),
    "u": re.compile("u([0-9a-fA-F]{4})"),
    "U": re.compile("U([0-9a-fA-F]{8})"),
}
_RAW = re.compile(r"\S+")
_OCTAL = re.compile("[0-7]{3}")


class QuotingError(ValueError):
    """The text cannot be taken apart; the message says why."""


def split(text: str) -> list[str]:
    """The words of `text`, without their quotes and escapes. Raises QuotingError."""
    return [word for word, _ in _words(text)]


def split_command(text: str) -> list[str]:
    """The words of one command line, in which `\\;` is a semicolon. Raises QuotingError, for a second command too."""
    found = []
    for word, raw in _words(text, lone={"\\;": ";"}):
        if raw == ";":
            raise QuotingError(
                "a semicolon between two commands: an app has one",
            )
        found.append(word)
    return found


def _words(text: str, lone: dict[str, str] | None = None) -> list[tuple[str, str]]:
    """Each word, and how it was written."""
    found: list[tuple[str, str]] = []
    at = 0
    while True:
        while at < len(text) and text[at] in _SPACE:
            at += 1
        if at >= len(text):
            return found
        raw = _RAW.match(text, at)
        if lone and raw and raw[0] in lone:
            found.append((lone[raw[0]], raw[0]))
            at += len(raw[0])
            continue
        word, end = _word(text, at)
        found.append((word, text[at:end]))
        at = end


def _word(text: str, at: int) -> tuple[str, int]:
    """The word that begins at `at`, and where it ends."""
    made, quote = bytearray(), ""
    while at < len(text) and (quote or text[at] not in _SPACE):
        char = text[at]
        at += 1
        if char == "\\":
            code, at = _escape(text, at)
            made += code
        elif char == quote:
            quote = ""
        elif not quote and char in "\"'":
            quote = char
        else:
            made += char.encode()
    if quote:
        raise QuotingError(f"a quote ({quote}) is not closed")
    try:
        return made.decode(), at
    except UnicodeDecodeError:
        raise QuotingError("what is escaped is not UTF-8") from None


def _escape(text: str, at: int) -> tuple[bytes, int]:
    """What is meant by a backslash before `at`."""
    kind = text[at : at + 1]
    if kind in _LETTERS and kind:
        return bytes((_LETTERS[kind],)), at + 1
    if kind in _CODES and (found := _CODES[kind].match(text, at)):
        code = int(found[1], 16)
        if code and (kind == "x" or (code < 0x110000 and not 0xD800 <= code < 0xE000)):
            return bytes((code,)) if kind == "x" else chr(code).encode(), found.end()
    if (found := _OCTAL.match(text, at)) and 0 < int(found[0], 8) < 256:
        return bytes((int(found[0], 8),)), found.end()
    raise QuotingError(f"unknown escape sequence \\{kind}: a backslash itself is written twice")


def literal(word: str) -> str:
    """`word` without a meaning for its dollar signs: only in command lines systemd puts in variables."""
    return word.replace("$", "$$")


def join(words: Iterable[str]) -> str:
    return " ".join(map(unitfile.quoted, words))
