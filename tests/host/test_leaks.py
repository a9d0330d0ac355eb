"""The look at what a session leaves behind has to see it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests import leaks
from tests.host.flying import until
from tests.netlab import Lab


def _left(before: leaks.Snapshot, directory: Path, *, strict: bool = False) -> list[str]:
    """But for cgroups: tests of pods may go on beside these."""
    found = leaks.leaked(before, leaks.take(), marks=(leaks.MARK, str(directory)), strict=strict)
    return [line for line in found if not line.startswith("cgroups: ")]


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


_NETWORK = """
import os, sys
from tests import leaks
before = leaks.take()
os.makedirs(leaks.CLAIMS)
open(f"{leaks.CLAIMS}/lock", "w").close()
print(*leaks.leaked(before, leaks.take(), marks=(leaks.MARK,), strict=False), sep="\\n")
for name in leaks.SYSCTLS:
    with open(f"/proc/sys/{name}", "w") as file:
        file.write("1")
print(*leaks.leaked(before, leaks.take(), marks=(leaks.MARK,), strict=True), sep="\\n")
"""


def test_what_is_done_for_networks_is_seen() -> None:
    with Lab() as lab:
        said = lab.host(sys.executable, "-c", _NETWORK).splitlines()
    claim = "network claims: /run/rkpy/net/lock"
    switched = [f"sysctls: {name} = 1" for name in leaks.SYSCTLS]
    assert [line for line in said if line.startswith(("network", "sysctls"))] == [claim, claim, *switched]


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
