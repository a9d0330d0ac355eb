"""Whose a store or the pods are: they are one user's, who made the directory, and whose kind the marks in it are of.

To everybody else they are hostile. What root believed of a directory that its user can change (processes, layers,
networks to take back) would be that user's way to become root; and overlayfs shows what layers hide to whoever goes by
the other kind of marks (`common.overlay`).
"""

from __future__ import annotations

import os

from common import files, users

_MARK = "userxattr"
"""An empty file in directories that were made in a user namespace."""
_seen: dict[str, int] = {}
"""The owners of data directories, by path, as `look` found them; -1 for what was not there."""


def claim(path: str) -> None:
    """Note, before anything is in the new directory `path`, of which kind what comes there will be."""
    if users.confined():
        os.close(os.open(f"{path}/{_MARK}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))


def make_data_directory(path: str) -> None:
    """The directory that the store and the pods of one user are in. What is a user's own is for nobody else to read
    (XDG Base Directory Specification, "Referencing this specification"); who else may read root's, root decides."""
    own = users.confined()
    files.make_directories(os.path.dirname(path), 0o700 if own else 0o755)
    files.make_directory(path, 0o700 if own else 0o750)


def look(path: str) -> None:
    """Remember whose the data directory `path` is: in a user namespace, which its user may enter now, everybody else
    is nobody, root and who made a directory in /tmp to be taken for his."""
    _seen[path] = _owner(path)


def _owner(path: str) -> int:
    """-1 when there is none."""
    try:
        return os.stat(path).st_uid
    except OSError:
        return -1


def _stranger(path: str) -> str:
    """Who else may put another in the place of what is in the directory `path`, at any time; empty for nobody. Root may
    do so with everything."""
    owner = _owner(path)
    if owner in (os.geteuid(), -1):
        return ""
    if not users.confined():
        return _name(owner) if owner else ""
    # Whoever was in a namespace before we began has never known.
    return _name(owner) if _seen.get(path, 0) else ""


def objection(path: str) -> str:
    """Why we have no business in the directory `path`, one of a data directory, in words; empty when it is ours or
    cannot be looked at."""
    try:
        owners = {os.lstat(path).st_uid, os.stat(path).st_uid}
    except OSError:
        owners = set()
    others = owners - {os.geteuid()}
    if others:
        return f"it belongs to {_name(others.pop())}"
    above = os.path.dirname(path)
    if stranger := _stranger(above):
        return f"{above} belongs to {stranger}"
    if not owners:
        return ""
    # Who is not root has made it in a user namespace, be he in one now or not.
    confined = users.confined() or os.geteuid() != 0
    if os.path.lexists(f"{path}/{_MARK}") == confined:
        return ""
    return "it was made outside of a user namespace" if confined else "it was made in a user namespace"


def foreign_files(error: OSError) -> str:
    """A hint to `error` of a removal: what was made when there were more IDs, or others, is nobody's here."""
    if not isinstance(error, PermissionError) or not users.confined():
        return ""
    return "it may have files of IDs that are not yours now, see /etc/subuid and docs/rootless.md"


def _name(uid: int) -> str:
    import pwd

    if users.confined():
        return "somebody else"  # whose number means nothing here
    try:
        return f"{pwd.getpwuid(uid).pw_name} (user ID {uid})"
    except KeyError:
        return f"user ID {uid}"
