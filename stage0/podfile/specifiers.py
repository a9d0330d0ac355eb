"""Specifiers (systemd.unit(5), "Specifiers"). systemd puts them in; here something that could stand there does, so that
values can be looked at."""

from __future__ import annotations

import re

from stage0.podfile.quoting import QuotingError

_FIXED = {
    "a": "x86-64", "A": "1", "b": "0" * 32, "B": "1", "C": "/var/cache", "d": "/run/credentials/unit",
    "D": "/usr/share", "E": "/etc", "g": "root", "G": "0", "h": "/root", "H": "host", "l": "host", "L": "/var/log",
    "m": "0" * 32, "M": "image", "o": "linux", "q": "host", "s": "/bin/sh", "S": "/var/lib", "t": "/run",
    "T": "/tmp", "u": "root", "U": "0", "v": "6.1", "V": "/var/tmp", "w": "1", "W": "variant",  # noqa: S108
    "y": "/unit", "Y": "/", "%": "%",
}  # fmt: skip
_INSTANCE = "instance"
"""Of a template, nobody knows yet."""
_OF_INSTANCE = frozenset("iIfnN")
_ANY = re.compile("%(.?)", re.DOTALL)
_UNIT = re.compile(r"\\x([0-9a-f]{2})")


def expand(text: str, name: str) -> str:
    """`text` with everything put in for the pod file `name` (without `.pod`). Raises QuotingError."""
    if "%" not in text:
        return text
    known = {**_FIXED, **_of_unit(name)}

    def put(found: re.Match[str]) -> str:
        if found[1] not in known:
            raise QuotingError(f'there is no specifier "{found[0]}": a percent sign itself is written %%')
        return known[found[1]]

    return _ANY.sub(put, text)


def of_instance(text: str) -> bool:
    """Whether an instance has a say in what `text` comes to."""
    return any(found in _OF_INSTANCE for found in _ANY.findall(text))


def _of_unit(name: str) -> dict[str, str]:
    prefix, at, instance = name.partition("@")
    if at and not instance:
        instance = _INSTANCE
    last = prefix.rpartition("-")[2]
    whole = f"{prefix}{at}{instance}"
    return {
        "n": f"{whole}.service", "N": whole, "p": prefix, "P": _unescape(prefix), "i": instance,
        "I": _unescape(instance), "j": last, "J": _unescape(last), "f": f"/{_unescape(instance or prefix)}",
    }  # fmt: skip


def _unescape(text: str) -> str:
    """What systemd-escape(1) made of something, made undone."""
    return _UNIT.sub(lambda found: chr(int(found[1], 16)), text.replace("-", "/"))
