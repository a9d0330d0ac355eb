"""Users who are not root, for tests: known in a mount namespace of their own, so that the machine's accounts and ranges
of IDs stay as they are."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from common import syscalls

ROOT = Path(__file__).parents[1]
FIRST = 61184
"""Where user IDs begin that systemd hands out for a while only (its UIDS-GIDS): accounts have none of them."""
RANGE, SIZE = 0x70000000, 65536
"""Beyond what pods with --private-users are given (`stage0.idranges`)."""


class User(NamedTuple):
    """One such user, who has a directory of his own that others can walk through."""

    name: str
    uid: int
    """The group's number as well."""
    directory: Path
    namespace: int
    """A descriptor of the mount namespace in which he is known."""
    first: int
    """Of his range of IDs."""
    groups: tuple[int, ...] = ()
    """Those he is in beside his own."""

    def command(self, words: Sequence[object]) -> list[str]:
        """`words` as this user, without any capabilities; the process stays the same."""
        enter = [str(shutil.which("nsenter")), f"--mount=/proc/{os.getpid()}/fd/{self.namespace}", "--"]
        groups = f"--groups={','.join(map(str, self.groups))}" if self.groups else "--clear-groups"
        become = [str(shutil.which("setpriv")), f"--reuid={self.uid}", f"--regid={self.uid}", groups, "--inh-caps=-all"]
        return [*enter, *become, *map(str, words)]

    def environment(self) -> dict[str, str]:
        """Of the caller's, what is not about another user."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
        return {**own, "HOME": str(self.directory), "USER": self.name, "LOGNAME": self.name}

    def outside(self, number: int) -> int:
        """Which ID of the host `number` is in the user namespaces that rkpy makes for him."""
        return self.first + number - 1 if number else self.uid

    def own(self, path: Path) -> Path:
        """Give him the file `path`."""
        os.chown(path, self.uid, self.uid)
        return path


@contextmanager
def user(number: int = 0, *, ranges: bool = True) -> Iterator[User]:
    """The user of that `number`; with `ranges` /etc/subuid and /etc/subgid give him 65536 IDs. What is mounted
    afterwards is seen by him as well where the host's mounts are shared."""
    uid = _unused(FIRST + number)
    directory = Path(tempfile.mkdtemp(prefix="rkpy-ordinary-"))
    try:
        directory.chmod(0o711)
        name = f"rkpy{uid}"
        files = directory / "etc"
        files.mkdir(mode=0o755)
        first = RANGE + number * SIZE
        granted = f"{name}:{first}:{SIZE}\n" if ranges else ""
        for path, line in (
            ("passwd", f"{name}:x:{uid}:{uid}::{directory}:/bin/sh\n"),
            ("group", f"{name}:x:{uid}:\n"),
            ("subuid", granted),
            ("subgid", granted),
        ):
            there = Path("/etc", path).read_text() if path in ("passwd", "group") else ""
            (files / path).write_text(there + line)
        made = User(name, uid, directory, _namespace(files), first)
        made.own(directory)
        try:
            yield made
        finally:
            os.close(made.namespace)
    finally:
        shutil.rmtree(directory)


def _unused(uid: int) -> int:
    taken = {account.pw_uid for account in pwd.getpwall()}
    return next(number for number in range(uid, uid + 1000) if number not in taken)


def _namespace(files: Path) -> int:
    """A mount namespace in which `files` are those of /etc, as a descriptor."""
    known, knows = os.pipe()
    done, ends = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ends)
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
            for path in files.iterdir():
                target = Path("/etc", path.name)
                if target.exists():
                    syscalls.mount(str(path), str(target), None, syscalls.MS_BIND)
            _let_in((ROOT, Path(sys.prefix), Path(sys.base_prefix)))
            os.write(knows, b"!")
            os.read(done, 1)
        finally:
            os._exit(0)
    os.close(knows)
    os.close(done)
    try:
        assert os.read(known, 1), "no mount namespace for an ordinary user"
        return os.open(f"/proc/{child}/ns/mnt", os.O_RDONLY)
    finally:
        os.close(known)
        os.close(ends)
        os.waitpid(child, 0)


def _let_in(paths: Sequence[Path]) -> None:
    """Let everybody walk to `paths`, which have to be readable themselves, where a directory on the way is closed to
    others, such as root's home. In a mount namespace of our own: there is nothing else in such a directory then."""
    found = {path: os.open(path, os.O_PATH) for path in paths}
    closed = {path: _first_closed(path) for path in paths}
    for place in {place for place in closed.values() if place}:
        syscalls.mount("tmpfs", str(place), "tmpfs", 0, "mode=755")
    for path in sorted(path for path, place in closed.items() if place):
        path.mkdir(parents=True, exist_ok=True)
        syscalls.mount(f"/proc/self/fd/{found[path]}", str(path), None, syscalls.MS_BIND | syscalls.MS_REC)


def _first_closed(path: Path) -> Path | None:
    return next((parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001), None)
