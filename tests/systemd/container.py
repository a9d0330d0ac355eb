"""A container with a real systemd as PID 1, to run tests in that need one: it boots in a few seconds.

systemd-nspawn boots an overlay of the machine's own root whose changes lie on a tmpfs, so that everything that is
installed here is there too, at the same paths: the checkout, the interpreter, what tests need. All of its mounts and
processes are in namespaces that end with it, and with the test session if that is killed.

There are no resource controllers inside: what needs them runs in a virtual machine (tests/vm).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests import cgroups, leaks

ROOT = Path(__file__).parents[2]
TOOLS = ("systemd-nspawn", "systemd-run", "machinectl", "dbus-daemon", "nsenter", "unshare", "setpriv", "newuidmap")
DEADLINE = 300.0
"""Seconds for the container to boot, or to switch off before it is killed."""
MODULE_DEADLINE = 3600.0
DEVICES = ("/dev/fuse", "/dev/kvm", "/dev/net/tun")
OWN = ("/tmp", "/run", "/dev", "/proc", "/sys")
"""Where the container has file systems of its own."""
HIERARCHIES = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd")
"""Where cgroups of systemd's may be: the only one, or a hybrid machine's."""

# Units that are enabled on this machine are none of the tests' business. What systemd-tmpfiles(8) empties at boot may
# be where the checkout is. nspawn leaves things in /run.
BOOT = """\
set -e
for hierarchy in {hierarchies}; do echo $$ >"$hierarchy/cgroup.procs"; done
mount -t tmpfs tmpfs {place}
mkdir {place}/upper {place}/work {place}/root
mount -t overlay overlay -o lowerdir=/,upperdir={place}/upper,workdir={place}/work {place}/root
mount -t tmpfs tmpfs /run
cd {place}/root
rm -rf etc/systemd/system/*.wants
ln -sf /dev/null etc/tmpfiles.d/tmp.conf
exec "$@"
"""


class Result(NamedTuple):
    """What a command in the container came to."""

    status: int | None
    """None when it ran out of time."""
    output: str


class Container:
    """One that boots when it is entered and is gone, with all that belongs to it, when it is left."""

    def __init__(self, place: Path) -> None:
        """`place`: an empty directory."""
        self.place = place
        self.name = f"{leaks.CONTAINER}{secrets.token_hex(4)}"
        self._cgroups = [f"{hierarchy}/{self.name}" for hierarchy in HIERARCHIES if _is_hierarchy(hierarchy)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Container:
        (self.place / "mounts").mkdir()
        for path in self._cgroups:
            os.mkdir(path)
        try:
            with (self.place / "console").open("wb") as console:
                self._process = subprocess.Popen(
                    self._command(), stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
                )
            self._await_boot()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def console(self) -> str:
        return (self.place / "console").read_text(errors="replace")

    def run(self, *command: str, deadline: float = DEADLINE) -> Result:
        """Run a command as root of the container, outside of its units."""
        leader = self._leader()
        assert leader, f"the container has ended:\n{self.console}"
        words = ["nsenter", "-t", str(leader), "-m", "-u", "-i", "-n", "-p", "-C", "--", *command]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            output, _ = process.communicate(timeout=deadline)
            status: int | None = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            output, status = process.communicate()[0], None
        return Result(status, output.decode(errors="replace"))

    def passes(self, *modules: str) -> None:
        """The tests of modules of the checkout pass inside: there are some, and none failed or was skipped."""
        environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root", "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1",
            "RKPY_TESTS_MUST_RUN": "1",
        }  # fmt: skip
        word = secrets.token_hex(16)
        # The status comes with the output: systemd-run does not know it when D-Bus has been stopped meanwhile.
        script = f'"$@"; printf "\\n%s %d\\n" {word} $?'
        result = self.run(
            "systemd-run", "--quiet", "--pipe", "--wait", "--collect", f"--working-directory={ROOT}",
            *(f"--setenv={name}={value}" for name, value in environment.items()),
            "sh", "-c", script, "sh",
            sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--durations=5", *modules,
            deadline=MODULE_DEADLINE,
        )  # fmt: skip
        output, _, status = result.output.rpartition(f"\n{word} ")
        assert status == "0\n", f"status {status or result.status}\n{output or result.output}\n{self._journal()}"

    def _journal(self) -> str:
        """The end of it, which says what went wrong more often than not."""
        return self.run("journalctl", "--no-pager", "--lines=60", "--output=short-precise").output

    def _command(self) -> list[str]:
        script = BOOT.format(place=self.place / "mounts", hierarchies=" ".join(self._cgroups))
        return [
            "setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--propagation=private", "--pid", "--fork",
            "--kill-child", "--mount-proc", "sh", "-c", script, "sh",
            "systemd-nspawn", "--quiet", f"--directory={self.place}/mounts/root", f"--machine={self.name}", "--boot",
            "--register=no", "--keep-unit", "--link-journal=no", "--private-network", "--capability=all",
            "--resolv-conf=off", "--timezone=off", "--console=pipe",
            *(f"--bind={device}" for device in DEVICES if os.path.exists(device)),
            *(f"--bind-ro={path}" for path in _hidden()),
        ]  # fmt: skip

    def _await_boot(self) -> None:
        assert self._process is not None
        states = ("running", "degraded")
        deadline = time.monotonic() + DEADLINE
        while not (self._leader() and self.run("systemctl", "is-system-running").output.strip() in states):
            assert self._process.poll() is None and time.monotonic() < deadline, f"it does not boot:\n{self.console}"
            time.sleep(0.1)

    def _nspawn(self) -> int:
        """The child of unshare(1), PID 1 of the namespace; 0 when there is none."""
        assert self._process is not None
        return next(iter(_children(self._process.pid)), 0)

    def _leader(self) -> int:
        """The container's PID 1 as a number of ours; 0 while there is none."""
        with contextlib.suppress(OSError):
            for child in _children(self._nspawn()):
                with open(f"/proc/{child}/status", encoding="utf-8", errors="replace") as file:
                    numbers = next(line.split()[1:] for line in file if line.startswith("NSpid:"))
                # It is on its way until it has executed systemd.
                if numbers[-1] == "1" and len(numbers) > 1 and os.path.exists(f"/proc/{child}/root/run/systemd/system"):
                    return child
        return 0

    def _end(self) -> None:
        """SIGTERM has it switch off (systemd-nspawn(1), --kill-signal=)."""
        if self._process is not None:
            if nspawn := self._nspawn():
                os.kill(nspawn, signal.SIGTERM)
            try:
                self._process.wait(timeout=DEADLINE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for path in self._cgroups:
            _remove_cgroup(path)
        (self.place / "mounts").rmdir()


def missing() -> str:
    """What this machine lacks to boot a container, or empty."""
    if os.geteuid() != 0:
        return "needs root"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"needs {', '.join(absent)}" if absent else ""


def _is_hierarchy(path: str) -> bool:
    """Whether a hierarchy with systemd's cgroups is mounted there, and not only a place for others."""
    return os.path.exists(f"{path}/cgroup.procs")


def _hidden() -> list[str]:
    """What the tests need and the container would not see: below its own file systems, or on another one than `/`."""
    needed = dict.fromkeys(os.path.realpath(path) for path in (ROOT, sys.prefix, sys.base_prefix))
    device = os.stat("/").st_dev
    return [path for path in needed if os.stat(path).st_dev != device or any(path.startswith(f"{own}/") for own in OWN)]


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def _remove_cgroup(path: str) -> None:
    """With all below, and as soon as the kernel has let go of the last process."""

    def attempt() -> bool:
        for place, _, _ in os.walk(path, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(place)
        return not os.path.exists(path)

    cgroups.until(attempt)
