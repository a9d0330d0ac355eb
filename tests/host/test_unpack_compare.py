"""Every way in which an unpacked layer can have changed is told, in one sentence that names the file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from common import overlay
from common.errors import StoreError
from tests.host.unpacking import Cage, needs_devices
from tests.tars import device, directory, file, hardlink, pack, symlink

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ARCHIVE = pack(
    directory("."), directory("d", mode=0o750), file("d/f", b"content", pax={"SCHILY.xattr.user.a": "b"}),
    symlink("s", "d/f"), file("one"), hardlink("two", "one"), device("null", major=1, minor=3),
    directory("opaque"), file("opaque/.wh..wh..opq"), file(".wh.gone"), file("im/plied"),
)  # fmt: skip

Change = Callable[[Path], object]


def _rewrite(path: Path, content: bytes) -> None:
    """New content that keeps the times."""
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _replace(path: Path, make: Callable[[], object]) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    make()


CHANGES: dict[str, tuple[Change, str]] = {
    "content": (lambda top: _rewrite(top / "d/f", b"CONTENT"), "'d/f' has other content"),
    "length": (lambda top: _rewrite(top / "d/f", b"longer than before"), "'d/f' has 18 bytes instead of 7"),
    "mode": (lambda top: os.chmod(top / "d/f", 0o4644), "'d/f' has mode 4644 instead of 0644"),
    "mode of a directory": (lambda top: os.chmod(top / "d", 0o755), "'d' has mode 0755 instead of 0750"),
    "owner": (lambda top: os.chown(top / "d/f", 5, 6), "'d/f' belongs to 5:6 instead of 0:0"),
    "owner of a symlink": (lambda top: os.chown(top / "s", 5, 0, follow_symlinks=False), "'s' belongs to 5:0"),
    "time": (lambda top: os.utime(top / "d/f", ns=(0, 1)), "'d/f' was modified at 1 instead of"),
    "root": (lambda top: os.chmod(top, 0o700), "'.' has mode 0700 instead of 0755"),
    "xattr": (lambda top: os.setxattr(top / "d/f", "user.a", b"c"), "'d/f' has another extended attribute 'user.a'"),
    "no xattr": (lambda top: os.removexattr(top / "d/f", "user.a"), "'d/f' has another extended attribute 'user.a'"),
    "new xattr": (lambda top: os.setxattr(top / "one", "user.new", b""), "attribute 'user.new'"),
    "not opaque": (lambda top: os.removexattr(top / "opaque", overlay.opaque()), "'opaque' has another"),
    "opaque": (lambda top: os.setxattr(top / "d", overlay.opaque(), b"y"), "'d' has another extended"),
    "missing": (lambda top: (top / "d/f").unlink(), "'d/f' is missing"),
    "missing tree": (lambda top: shutil.rmtree(top / "im"), "'im' is missing"),
    "missing whiteout": (lambda top: (top / "gone").unlink(), "'gone' is missing"),
    "extra": (lambda top: (top / "im/new").touch(), "'im/new' is not in the archive"),
    "link": (lambda top: _replace(top / "s", lambda: (top / "s").symlink_to("elsewhere")), "'s' points to 'elsewhere'"),
    "type": (lambda top: _replace(top / "d", lambda: (top / "d").touch()), "'d' is not a directory any more"),
    "symlinked": (
        lambda top: _replace(top / "one", lambda: (top / "one").symlink_to("/etc/passwd")),
        "'one' is not a file any more",
    ),
    "device": (
        lambda top: _replace(top / "null", lambda: os.mknod(top / "null", 0o20644, os.makedev(1, 5))),
        "'null' is another device than 1:3",
    ),
    "unlinked": (
        lambda top: _replace(top / "two", lambda: _copy(top / "one", top / "two")),
        "'two' is not the hard link",
    ),
    "linked": (
        lambda top: _replace(top / "im/plied", lambda: os.link(top / "d/f", top / "im/plied")),
        "'im/plied' has got other hard links",
    ),
}


def _copy(source: Path, target: Path) -> None:
    shutil.copy2(source, target)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_devices) if name == "device" else name for name in CHANGES]
)
def test_a_change_is_told(tmp_path: Path, name: str) -> None:
    cage = Cage(tmp_path)
    cage.unpack(ARCHIVE, whiteouts=True)
    assert cage.compare(ARCHIVE, whiteouts=True) == []
    change, sentence = CHANGES[name]
    change(cage.target)
    found = cage.compare(ARCHIVE, whiteouts=True)
    assert [line for line in found if sentence in line], found


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    cage = Cage(tmp_path)
    cage.unpack(ARCHIVE)
    shutil.rmtree(cage.target)
    with pytest.raises(StoreError, match="no such file or directory"):
        cage.compare(ARCHIVE)
