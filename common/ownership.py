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


def claim(path: str) -> None:
    """Note, before anything is in the new directory `path`, of which kind what comes there will be."""
    if users.confined():
        os.close(os.open(f"{path}/{_MARK}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))


def make_data_directory(path: str) -> None:
    """The directory that the store and the pods of one user are in. What is a user's own is for nobody else to read
    (XDG Base Directory Specification, "Referencing this specification"); who else may read root's, root decides."""
    own = users.confined()
    above, missing = os.path.dirname(path), []
    while own and above and not os.path.lexists(above):
        missing.append(above)
        above = os.path.dirname(above)
    # Whatever the umask: who may write above it can put something else in its place.
    for each in reversed(missing):
        files.make_directory(each, 0o700)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    files.make_directory(path, 0o700 if own else 0o750)


def objection(path: str) -> str:
    """Why we have no business in the directory `path`, in words; empty when it is ours or cannot be looked at."""
    try:
        owners = {os.lstat(path).st_uid, os.stat(path).st_uid}
    except OSError:
        return ""
    others = owners - {os.geteuid()}
    if others:
        return f"it belongs to {_name(others.pop())}"
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
