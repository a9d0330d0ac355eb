"""Text of manual pages: roff as man(7) and groff_man(7) have it; groff and mandoc take it without a warning."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from rkpy import VERSION

_SPECIAL = {"\\": "\\(rs", "-": "\\-", "~": "\\(ti", "^": "\\(ha", "`": "\\(ga"}


def page(title: str, number: int, about: str, *sections: str) -> str:
    """The page `title`(`number`), which is `about` something, of these sections."""
    head = f'.TH "{text(title.upper())}" {number} "{_date()}" "rkpy {VERSION}" "rkpy Manual"\n'
    return head + section("NAME", [f"{text(title)} \\- {text(about)}"]) + "".join(sections)


def _date() -> str:
    """Today, or what makes the pages the same every time (https://reproducible-builds.org/specs/source-date-epoch/)."""
    try:
        seconds = int(os.environ["SOURCE_DATE_EPOCH"])
        return time.strftime("%Y-%m-%d", time.gmtime(seconds))
    except (KeyError, ValueError, OverflowError):
        return time.strftime("%Y-%m-%d", time.gmtime())


def section(title: str, lines: Iterable[str]) -> str:
    """Empty when there is nothing in it."""
    body = "\n".join(lines)
    return f'.SH "{title}"\n{body}\n' if body else ""


def paragraphs(about: str) -> list[str]:
    """Of a text with blank lines between them."""
    lines: list[str] = []
    for paragraph in about.strip().split("\n\n"):
        lines += [".PP", text(" ".join(paragraph.split()))]
    return lines[1:]


def example(words: str) -> list[str]:
    """Lines as they are."""
    return [".EX", *(text(line) if line else ".sp" for line in words.strip("\n").split("\n")), ".EE"]


def references(pages: Iterable[str]) -> str:
    return ",\n".join(pages)


def reference(page: str, number: int = 1) -> str:
    return f"{bold(page)}({number})"


def bold(words: str) -> str:
    return f"\\fB{text(words)}\\fR"


def italic(words: str) -> str:
    return f"\\fI{text(words)}\\fR"


def text(words: str) -> str:
    """`words` as one line of roff that shows exactly them."""
    line = "".join(_SPECIAL.get(char) or (char if char.isascii() else f"\\[u{ord(char):04X}]") for char in words)
    return f"\\&{line}" if line.startswith((".", "'")) else line


def sentence(words: str) -> str:
    """With a capital and a full stop, if it has none."""
    return f"{words[:1].upper()}{words[1:]}{'' if words.endswith('.') else '.'}"
