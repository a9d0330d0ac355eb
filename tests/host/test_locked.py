"""Where the mounts of pods with --private-users are locked: in a namespace that an app may find its way to."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from common import syscalls
from stage1 import locked
from tests.host.flavours import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def _lock(users: int, source: Path, place: Path, said: int) -> None:
    """Say what there is beside the mount while it is copied, and what is in the copy."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
    parent, copy = os.getpid(), syscalls.open_tree

    def open_tree(directory: int, path: str, flags: int) -> int:
        if os.getpid() != parent:
            os.write(said, f"{path}: {' '.join(os.listdir('/'))}\n".encode())
        return copy(directory, path, flags)

    tree = copy(syscalls.AT_FDCWD, str(source), syscalls.OPEN_TREE_CLONE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(syscalls, "open_tree", open_tree)
        (found,) = locked.lock([tree], users, str(place))
    os.write(said, " ".join(os.listdir(os.open(".", os.O_RDONLY, dir_fd=found))).encode())


def test_nothing_of_the_host_is_there(tmp_path: Path) -> None:
    source, place = tmp_path / "source", tmp_path / "place"
    (source / "data").mkdir(parents=True)
    place.mkdir()
    other = subprocess.Popen(["unshare", "--user", "--map-root-user", "sleep", "1000"])
    try:
        path = f"/proc/{other.pid}/ns/user"
        until(lambda: Path(f"/proc/{other.pid}/comm").read_text() == "sleep\n")
        reads, said = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                _lock(os.open(path, os.O_RDONLY), source, place, said)
            finally:
                os._exit(0)
        os.close(said)
        os.waitpid(child, 0)
        with open(reads) as file:
            assert file.read() == "/0: 0\ndata"
    finally:
        other.kill()
        other.wait()
