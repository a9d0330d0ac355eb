"""How somebody else runs this very rkpy: a unit, above all."""

from __future__ import annotations

import os
import sys

SEARCHED = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Where systemd looks for a program that is not named by an absolute path (systemd.service(5), "Command lines")."""


def command(root: str = "") -> tuple[str, ...]:
    """`rkpy`, if that is what systemd finds by this name, else by an absolute path. Below `root`, if there is one, any
    program called rkpy is taken for it."""
    own = absolute()
    for directory in SEARCHED:
        candidate = f"{root}{directory}/rkpy"
        if os.access(candidate, os.X_OK):
            return ("rkpy",) if root or _is_same(candidate, own) else own
    return own


def absolute() -> tuple[str, ...]:
    """By an absolute path, wherever it is."""
    script = os.path.abspath(sys.argv[0])
    return (sys.executable, script) if script.endswith(".py") else (script,)


def _is_same(candidate: str, own: tuple[str, ...]) -> bool:
    return len(own) == 1 and os.path.realpath(candidate) == os.path.realpath(own[0])
