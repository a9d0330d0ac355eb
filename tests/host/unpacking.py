"""What the tests of the unpacker share: a target with guarded surroundings, and a tree as plain values."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from aci.compare import compare_layer
from aci.unpack import Limits, Unpacked, unpack_layer
from common import users

needs_devices = pytest.mark.skipif(users.confined(), reason="nobody can make devices in a user namespace")
Tree = dict[str, tuple[Any, ...]]
SMALL = Limits(entries=1000, size=1 << 26, depth=64)


def tree(top: Path | str, *, times: bool = True) -> Tree:
    """Everything about every file below `top`, itself (`.`) included; hard links show as the first of their names."""
    found: Tree = {}
    inodes: dict[int, str] = {}
    for directory, directories, files in os.walk(top):
        directories.sort()
        for name in [".", *sorted(directories + files)] if directory == os.fspath(top) else sorted(directories + files):
            path = os.path.join(directory, name)
            key = os.path.relpath(path, top)
            found[key] = _describe(path, key, inodes, times=times)
    return found


def _describe(path: str, key: str, inodes: dict[int, str], *, times: bool) -> tuple[Any, ...]:
    status = os.lstat(path)
    first = inodes.setdefault(status.st_ino, key) if not stat.S_ISDIR(status.st_mode) else key
    content: object = None
    if stat.S_ISREG(status.st_mode):
        content = Path(path).read_bytes()
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        content = (os.major(status.st_rdev), os.minor(status.st_rdev))
    xattrs = {
        name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
    }
    time = status.st_mtime_ns if times else 0
    return oct(status.st_mode), status.st_uid, status.st_gid, time, first, content, xattrs


class Cage:
    """A directory to unpack into, with things around it that must stay as they are."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.target = top / "a" / "target"
        (top / "a" / "sibling").mkdir(parents=True)
        for name in ("secret", "a/secret", "a/sibling/secret"):
            (top / name).write_text("untouched")
        self.target.mkdir()
        self._before = self._surroundings()

    def unpack(self, archive: bytes, *, whiteouts: bool = False, **options: Any) -> Unpacked:
        """Unpack, and whatever comes of it make sure that nothing else has changed, links and times included."""
        try:
            result = unpack_layer(
                io.BytesIO(archive), str(self.target), whiteouts=whiteouts, **{"limits": SMALL, **options}
            )
        finally:
            assert self._surroundings() == self._before
        return result

    def compare(self, archive: bytes, *, whiteouts: bool = False, **options: Any) -> list[str]:
        """What differs between the archive and the target."""
        return compare_layer(io.BytesIO(archive), str(self.target), whiteouts=whiteouts, **options)

    def tree(self, *, times: bool = True) -> Tree:
        """What has been unpacked."""
        return tree(self.target, times=times)

    def names(self) -> set[str]:
        """The paths that have been unpacked."""
        return set(self.tree()) - {"."}

    def read(self, name: str) -> str:
        """The text of a file."""
        return (self.target / name).read_text()

    def _surroundings(self) -> list[tuple[Any, ...]]:
        found = []
        for directory, directories, files in os.walk(self.top):
            if directory == str(self.target.parent):
                directories.remove("target")
            for name in sorted(directories + files):
                path = os.path.join(directory, name)
                status = os.lstat(path)
                ours = (status.st_mode, status.st_uid, status.st_nlink, status.st_size, status.st_mtime_ns)
                found.append((path, *ours, status.st_ctime_ns, tuple(os.listxattr(path))))
        return found
