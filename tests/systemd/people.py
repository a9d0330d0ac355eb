"""Ordinary users of a container or machine that is thrown away afterwards, and rkpy as they run it."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests import images
from tests.cgroups import until
from tests.host.commands import ROOT
from tests.systemd import units

IMAGE = "example.com/busybox"
RKPY = [sys.executable, "-P", str(ROOT / "rkpy.py")]
STAY = "trap 'echo stopped; exit 0' TERM; echo up; sleep 1000 & wait"


class Person:
    """Somebody with an account, IDs in /etc/subuid, and the image `example.com/busybox` in his store."""

    def __init__(self, name: str) -> None:
        self.name = name
        found = pwd.getpwnam(name)
        self.uid, self.home = found.pw_uid, Path(found.pw_dir)
        self.runtime = f"/run/user/{self.uid}"

    @property
    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.home), "USER": self.name, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}

    def shell(self, *command: object, **environment: str) -> list[str]:
        """The words that run a command as a shell of his does: in a scope that is no service, and without a session."""
        set_ = [f"{name}={value}" for name, value in {**self.environment, **environment}.items()]
        # Its own scope is for PID 1 to make, so root asks for it.
        drop = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--init-groups", "env", "-i", *set_]
        return units.in_scope(*drop, "sh", "-c", 'cd && exec "$@"', "sh", *command)

    def run(self, *command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        return units.run(*self.shell(*command, XDG_RUNTIME_DIR=self.runtime), check=check)

    def rkpy(self, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        return units.run(*self.shell(*RKPY, *words), check=check)

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit of his manager's."""
        asked = (f"--property={name}" for name in names)
        lines = self.run("systemctl", "--user", "show", unit, *asked).stdout.splitlines()
        return dict(line.partition("=")[::2] for line in lines)

    def status(self, pod: str) -> dict[str, str]:
        return dict(line.partition("=")[::2] for line in self.rkpy("status", pod).stdout.splitlines())

    def in_service(self, *words: object, home: str = "") -> list[str]:
        """The words by which a service with `User=` runs rkpy; the tests' own environment is root's."""
        return ["env", f"HOME={home or self.home}", *RKPY, *map(str, words)]


def busybox(*options: str, net: str = "none", app: tuple[str, ...] = (), script: str = STAY) -> list[str]:
    """The words of rkpy for a pod of a shell script."""
    flags = ("--insecure-options=image", "run", f"--net={net}", *options)
    return [*flags, IMAGE, "--name=app", *app, "--exec=/bin/sh", "--", "-c", script]


@contextlib.contextmanager
def running(
    person: Person, name: str, *, net: str = "none", app: tuple[str, ...] = (), script: str = STAY
) -> Iterator[subprocess.Popen[str]]:
    """A pod that was started by a shell, and is up."""
    saved = person.home / "uuid"
    saved.unlink(missing_ok=True)
    options = (f"--pod-name={name}", f"--uuid-file-save={saved}")
    process = subprocess.Popen(
        person.shell(*RKPY, *busybox(*options, net=net, app=app, script=script)),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until(lambda: process.poll() is not None or saved.exists())
        assert process.poll() is None, process.communicate()
        person.rkpy("status", "--wait-ready=300s", name)
        if script == STAY:  # whose trap it may not have come to
            until(lambda: "up\n" in person.rkpy("logs", name).stdout)
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=units.TIMEOUT)


@contextlib.contextmanager
def account(place: Path, *, lingers: bool) -> Iterator[Person]:
    """Somebody new; `lingers`: his service manager runs. Everything of his goes in the end."""
    _open_checkout()
    name = f"p{secrets.token_hex(4)}"
    units.run("useradd", "--create-home", name)
    person = Person(name)
    try:
        # Overlays, as one home may be on, take no overlays on top.
        owner = f"mode=700,uid={person.uid},gid={person.uid}"
        units.run("mount", "-t", "tmpfs", "-o", owner, "tmpfs", person.home)
        image = images.make_aci(str(place / f"{name}.aci"), images.manifest(IMAGE), images.busybox_files())
        shutil.copy(image, person.home / "busybox.aci")
        if lingers:
            units.run("loginctl", "enable-linger", name)
            until(lambda: person.run("systemctl", "--user", "is-system-running", check=False).stdout.strip() != "")
            until(lambda: os.path.exists(f"{person.runtime}/bus"))
        person.rkpy("--insecure-options=image", "fetch", person.home / "busybox.aci")
        yield person
        for _ in range(2):
            person.rkpy("gc", "--grace-period=0s")
        assert not [*person.home.glob(".local/share/rkpy/pods/*/*-*-*-*-*")]
    finally:
        if lingers:
            units.run("loginctl", "disable-linger", name)
        units.run("loginctl", "terminate-user", name, check=False)
        until(lambda: not os.path.exists(f"{person.runtime}/bus"))
        units.run("umount", "--lazy", person.home)
        until(lambda: units.run("userdel", "--remove", name, check=False).returncode in (0, 6))


def _open_checkout() -> None:
    """So that everybody may run it; a change of the container's only."""
    for path in {ROOT, Path(sys.executable), Path(sys.base_prefix)}:
        for above in path.parents:
            mode = stat.S_IMODE(above.stat().st_mode)
            if not mode & stat.S_IXOTH:
                above.chmod(mode | stat.S_IXOTH)
