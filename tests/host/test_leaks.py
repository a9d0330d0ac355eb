"""The look at what a session leaves behind has to see it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests import leaks
from tests.host.flying import until


def _left(before: leaks.Snapshot, directory: Path, *, strict: bool = False) -> list[str]:
    return leaks.leaked(before, leaks.take(), directories=(str(directory),), strict=strict)


def test_mounts_are_seen(tmp_path: Path) -> None:
    before = leaks.take()
    subprocess.run(["mount", "-t", "tmpfs", "some-source", tmp_path], check=True)
    try:
        assert _left(before, tmp_path) == [f"mounts: / {tmp_path} tmpfs some-source"]
        assert _left(before, tmp_path / "elsewhere") == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert _left(before, tmp_path) == []


def test_namespaces_and_interfaces_are_seen(tmp_path: Path) -> None:
    before = leaks.take()
    # A name only: `ip netns add` would also mount its directory on itself, for good.
    name = Path("/run/netns/rkpy-leak")
    made = not name.parent.exists()
    name.parent.mkdir(exist_ok=True)
    name.touch()
    try:
        subprocess.run(["ip", "link", "add", "rkpy-leak0", "type", "veth", "peer", "rkpy-leak1"], check=True)
        wanted = {"network namespaces: rkpy-leak", "interfaces: rkpy-leak0", "interfaces: rkpy-leak1"}
        assert set(_left(before, tmp_path)) == wanted
    finally:
        subprocess.run(["ip", "link", "del", "rkpy-leak0"], check=False)
        name.unlink()
        if made:
            name.parent.rmdir()
    # An interface goes when the kernel gets round to it.
    until(lambda: _left(before, tmp_path) == [])


def test_orphans_are_seen() -> None:
    """A grandchild whose parent has gone and that left the session, as daemons do."""
    started = subprocess.run(
        ["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True, check=True
    )
    pid = int(started.stdout)
    try:
        assert [line.split(":")[0] for line in leaks.children(deadline=0)] == [f"process {pid}"]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert leaks.children(deadline=0) == []
