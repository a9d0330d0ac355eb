"""Who called us, and where what is his own lies if he is not root (XDG Base Directory Specification).

Two questions look alike. Whose files, whose service manager and what advice: that depends on who called, `is_ordinary`,
which stays the same when he has become root of a namespace. What the kernel will not let us do depends on the namespace
that we are in: `common.users.confined`, which is true of root in somebody's container, too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from common.errors import RkpyError
from common.records import NamedTuple

UID = os.geteuid()
"""Who called us, whoever we become (`stage0.rootless`)."""
GID = os.getegid()
"""Likewise."""


class Directories(NamedTuple):
    """Of one user."""

    data: str
    config: str


def is_ordinary() -> bool:
    """Whether an ordinary user called us, and not root."""
    return UID != 0


def directories(environment: Mapping[str, str]) -> Directories:
    """Those of the user who called us, who is not root. Raises RkpyError when he has no home directory."""
    found = home(environment)
    if not os.path.isabs(found):
        raise RkpyError("there is no home directory for the user's images and pods", hint="name one with --dir")
    return Directories(
        data=f"{_absolute(environment, 'XDG_DATA_HOME') or f'{found}/.local/share'}/rkpy",
        config=f"{_absolute(environment, 'XDG_CONFIG_HOME') or f'{found}/.config'}/rkpy",
    )


def home(environment: Mapping[str, str]) -> str:
    """The home directory of whoever called us; empty when nobody says."""
    if found := environment.get("HOME"):
        return found
    import pwd

    try:
        return pwd.getpwuid(UID).pw_dir
    except KeyError:
        return ""


def _absolute(environment: Mapping[str, str], name: str) -> str:
    """The specification has relative paths ignored."""
    value = environment.get(name, "")
    return value.rstrip("/") if value.startswith("/") else ""


def runtime(environment: Mapping[str, str]) -> str:
    """The runtime directory of the user who called us, in memory until his last session ends; empty when he has none.
    A service of the system's has no XDG_RUNTIME_DIR, even where the user has such a directory, and su(1) may leave
    somebody else's."""
    for found in (_absolute(environment, "XDG_RUNTIME_DIR"), f"/run/user/{UID}"):
        if found and _is_mine(found):
            return found
    return ""


def _is_mine(path: str) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    # In a user namespace of ours we and our files go by another number.
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
