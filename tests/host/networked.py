"""Pods with networks run by the real command in a lab (`tests.netlab`), where they touch nothing of the machine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import images
from tests.host.commands import Done, Rkpy
from tests.host.flavours import shell_status
from tests.netlab import FAR4, FAR6, UPLINK, Lab
from tests.ordinary import User

DEADLINE = 300.0


class NetPod:
    """A running pod."""

    def __init__(self, site: Site, process: subprocess.Popen[str], uuid: str) -> None:
        self.site = site
        self.process = process
        self.uuid = uuid

    def status(self) -> dict[str, str]:
        lines = self.site.ok("status", self.uuid).splitlines()
        return dict(line.partition("=")[::2] for line in lines)

    @property
    def pid(self) -> int:
        return int(self.status()["pid"])

    @property
    def addresses(self) -> list[str]:
        """All of the pod, IPv4 before IPv6 of each network, in the order of the networks."""
        record = json.loads(self.site.ok("list", "--format=json"))
        mine = next(pod for pod in record if pod["name"] == self.uuid)
        return [ip.partition("/")[0] for network in mine["networks"] for ip in network["ips"]]

    def inside(self, *words: str, **options: Any) -> str:
        """A program of the machine's in the pod's network namespace."""
        return self.site.lab.run(self.pid, *words, **options)

    def enter(self, *words: str) -> str:
        """A program of the pod's in the pod."""
        return self.site.ok("enter", self.uuid, *words)

    def stop(self) -> Done:
        self.site.lab.leave(self.pid)
        self.site.ok("stop", self.uuid)
        return self.wait()

    def wait(self) -> Done:
        out, err = self.process.communicate(timeout=DEADLINE)
        return Done(shell_status(self.process.returncode), out, err)

    def kill_everything(self) -> None:
        """As if the machine had lost the pod: SIGKILL for all that looks after it."""
        pid = self.pid
        self.site.lab.leave(pid)
        self.process.kill()
        self.process.communicate()
        os.waitpid(pid, 0)  # which the test session has inherited


class Site:
    """A lab, and a data directory to run pods from in its `host`."""

    def __init__(self, lab: Lab, directory: Path, user: User | None = None) -> None:
        self.lab = lab
        self.directory = directory
        self.rkpy = Rkpy(directory, user=user)
        self._count = 0
        path = str(directory / "image.aci")
        ports = [
            {"name": "http", "protocol": "tcp", "port": 80},
            {"name": "echo", "protocol": "udp", "port": 7},
            {"name": "range", "protocol": "tcp", "port": 9000, "count": 3},
        ]
        app = {"exec": ["/bin/sleep", "1000"], "user": "0", "group": "0", "ports": ports}
        images.make_aci(path, images.manifest("example.com/net", app=app), images.busybox_files())
        self.ok("--insecure-options=image", "fetch", path)

    def __call__(self, *words: object) -> Done:
        done = self.lab.finish("host", *self.rkpy.command(*words), check=False, env=self.rkpy.environment())
        return Done(shell_status(done.returncode), done.stdout, done.stderr)

    def ok(self, *words: object) -> str:
        done = self(*words)
        assert done.status == 0, done
        return done.out

    def refused(self, *words: object) -> str:
        """The one line of a command that fails with status 254."""
        done = self(*words)
        assert done.status == 254, done
        assert done.err.count("\n") == 1, done
        return done.err

    def run(self, *flags: str, app: tuple[str, ...] = ()) -> Done:
        """A pod to its end."""
        return self("run", *flags, "example.com/net", *app)

    def start(self, *flags: str, app: tuple[str, ...] = ()) -> NetPod:
        """A pod whose apps have been started."""
        return self.launch("run", *flags, "example.com/net", *app)

    def launch(self, command: str, *words: object) -> NetPod:
        """The pod of a command that runs one, once its apps have been started."""
        self._count += 1
        saved = self.directory / f"uuid{self._count}"
        whole = self.rkpy.command(command, f"--uuid-file-save={saved}", *words)
        process = self.lab.popen(
            "host", *whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.rkpy.environment()
        )
        until(lambda: process.poll() is not None or (saved.exists() and saved.read_text().strip()))
        if process.poll() is not None:
            raise AssertionError(process.communicate())
        uuid = saved.read_text().strip()
        done = self("status", "--wait-ready=300s", uuid)
        assert done.status == 0, (done, process.poll(), process.communicate() if process.poll() is not None else "")
        return NetPod(self, process, uuid)

    def conf(self, name: str, document: object) -> None:
        """A file in net.d."""
        directory = self.rkpy.config / "net.d"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(document if isinstance(document, str) else json.dumps(document))

    def plugins(self, *names: str) -> None:
        """Debian's programs instead of the built-in plugins of these names."""
        directory = self.directory / "plugins"
        directory.mkdir()
        for name in names:
            (directory / name).symlink_to(f"/usr/lib/cni/{name}")
        document = {"rktKind": "paths", "rktVersion": "v1", "cni-plugins": [str(directory)]}
        (self.rkpy.config / "paths.d").mkdir(parents=True)
        (self.rkpy.config / "paths.d/plugins.json").write_text(json.dumps(document))

    def leases(self) -> list[str]:
        """What is claimed: every file below /run/rkpy/net but the lock and the marks of what was given out last."""
        found = self.lab.host("find", "/run", "-path", "/run/rkpy/net/*", "!", "-type", "d").splitlines()
        return [path for path in found if "/last-" not in path and not path.endswith("/lock")]

    def state(self) -> dict[str, object]:
        """What the host shows of pods' networks: to be the same before and after."""
        links = json.loads(self.lab.host("ip", "-j", "link"))
        return {
            "links": sorted(link["ifname"] for link in links),
            "addresses": self.lab.host("ip", "-br", "address"),
            "routes": self.lab.host("ip", "route"),
            # Anycast routes come and go with forwarding, which stays on.
            "routes6": [
                line
                for line in self.lab.host("ip", "-6", "route", "show", "table", "all").splitlines()
                if not line.startswith("anycast")
            ],
            "rules": self.lab.host("nft", "list", "ruleset"),
            "claims": self.leases(),
            "mounts": [line for line in self.lab.host("cat", "/proc/self/mounts").splitlines() if "nsfs" in line],
        }

    def settles_to(self, before: dict[str, object]) -> None:
        """Interfaces go a moment after the last process of a namespace."""
        end = time.monotonic() + DEADLINE
        while (now := self.state()) != before:
            if time.monotonic() > end:
                differs = {key: (before[key], value) for key, value in now.items() if value != before[key]}
                raise AssertionError(differs)
            time.sleep(0.1)


@contextlib.contextmanager
def running(site: Site, *flags: str, app: tuple[str, ...] = ()) -> Iterator[NetPod]:
    pod = site.start(*flags, app=app)
    try:
        yield pod
    finally:
        if pod.process.poll() is None:
            pod.stop()


def until(condition: Any) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@contextlib.contextmanager
def connected() -> Iterator[Lab]:
    """A lab whose internet answers, and whose host has all its addresses."""
    with Lab() as made:
        made.serve("outside", "tcp", FAR4, 80)
        made.serve("outside", "tcp", FAR6, 80)
        until(lambda: "scope link" in made.host("ip", "-6", "address", "show", "dev", UPLINK, "-tentative"))
        yield made
