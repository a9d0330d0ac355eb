"""Text of systemd unit files: words of command lines, values, sections."""

from __future__ import annotations

from collections.abc import Iterable

from common.errors import ConfigError

Section = tuple[str, Iterable[tuple[str, str]]]
"""A section's name, and its settings in order. Sections and settings may come more than once."""

_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789@%+=:,./-_$^~[]{}()*?!<>|&#")
"""What may stand in a word without quotes."""
_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\", '"': '\\"'}


def quote(word: str) -> str:
    """`word` as one argument of `ExecStart=` and its like, whatever is in it: systemd.service(5), "Command lines", and
    systemd.syntax(7), "Quoting". Neither specifiers (`%`) nor variables (`$`) in it are expanded. Not for the program
    itself, in which systemd replaces no variables: see `program`."""
    return quoted(literal(word).replace("$", "$$"))


def program(path: str) -> str:
    """`path` as the program of `ExecStart=`."""
    return quoted(literal(path))


def command(path: str, *arguments: str) -> str:
    """The value of `ExecStart=` that runs the program with these arguments."""
    return " ".join([program(path), *map(quote, arguments)])


def literal(text: str) -> str:
    """`text` as the value of a setting in which systemd expands specifiers, `Description=` for one."""
    return text.replace("%", "%%")


def render(sections: Iterable[Section]) -> str:
    """The text of a unit file. Values stand as they are; one that is more than a line raises ConfigError, because the
    rest of it would be settings of its own."""
    return "\n".join(_section(name, settings) for name, settings in sections)


def _section(name: str, settings: Iterable[tuple[str, str]]) -> str:
    return "".join([f"[{name}]\n", *(_setting(key, value) for key, value in settings)])


def _setting(key: str, value: str) -> str:
    if "\n" in value or "\0" in value or value.endswith("\\"):
        raise ConfigError(f"{key}={value!r} does not fit on a line of a unit file")
    return f"{key}={value}\n"


def quoted(word: str) -> str:
    """`word` in quotes if it needs them, in which specifiers and variables are still expanded."""
    if word and _PLAIN.issuperset(word):
        return word
    return f'"{"".join(map(_escaped, word))}"'


def _escaped(char: str) -> str:
    """One character between double quotes. What is not UTF-8 in a word (PEP 383) becomes the byte it was: systemd takes
    no line that is not UTF-8."""
    if char in _ESCAPES:
        return _ESCAPES[char]
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    if char.isprintable():
        return char
    return "".join(f"\\x{byte:02x}" for byte in char.encode())
