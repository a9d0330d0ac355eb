"""Pods as services: what systemd makes of what they say, and when it stops, reloads and watches them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import images, servers
from tests.cgroups import until
from tests.host.commands import Rkpy
from tests.host.servicemanager import build_service
from tests.systemd import units

NAME = "example.com/service"
NOTIFIES = "--annotation=appc.io/executor/supports-systemd-notify=true"
RUN = ("--insecure-options=image", "run")
NO_NET = "--net=none"
SERVICE = {"Type": "notify", "Delegate": "yes", "KillMode": "mixed"}


class Ground(NamedTuple):
    rkpy: Rkpy
    program: bytes
    go: Path
    """A directory that apps see as /go."""

    def words(self, *steps: str, app: tuple[str, ...] = (), pod: tuple[str, ...] = ()) -> list[str]:
        volume = (f"--volume=go,kind=host,source={self.go}", "--mount=volume=go,target=/go")
        net = () if "--stage1=fly" in pod else (NO_NET,)
        return self.rkpy.command(*RUN, *net, *volume, *pod, NAME, *app, "--exec=/bin/service", "--", *steps)

    def open(self) -> None:
        (self.go / "GO").touch()

    def leader(self) -> int:
        """Of the only pod that runs."""
        (uuid,) = self._running()
        return int((self.rkpy.data / f"pods/run/{uuid}/pid").read_text().split()[0])

    def is_over(self) -> bool:
        return not self._running()

    def _running(self) -> list[str]:
        pods = json.loads(self.rkpy.ok("list", "--format=json"))
        return [pod["name"] for pod in pods if pod["state"] == "running"]


@pytest.fixture(scope="module")
def made(rkpy: Rkpy, tmp_path_factory: pytest.TempPathFactory) -> tuple[Rkpy, bytes]:
    program = build_service(tmp_path_factory.mktemp("program"))
    section = {"exec": ["/bin/service"], "user": "0", "group": "0"}
    path = str(rkpy.directory / "service.aci")
    rkpy.ok("--insecure-options=image", "fetch", images.make_aci(
        path, images.manifest(NAME, app=section), {"bin/service": program}
    ))  # fmt: skip
    return rkpy, program


@pytest.fixture
def ground(made: tuple[Rkpy, bytes], tmp_path: Path) -> Iterator[Ground]:
    (tmp_path / "go").mkdir()
    found = Ground(*made, tmp_path / "go")
    yield found
    until(found.is_over)


@contextlib.contextmanager
def begun(*command: object, **properties: object) -> Iterator[str]:
    """A service that is being started, or has failed to."""
    name = units.unit_name()
    kept = [f"--setenv={key}={os.environ[key]}" for key in units.KEPT if key in os.environ]
    asked = [f"--property={key}={value}" for key, value in {**SERVICE, **properties}.items()]
    where = f"--working-directory={os.getcwd()}"
    units.run("systemd-run", "--quiet", "--no-block", where, *kept, *asked, f"--unit={name}", "--", *command)
    try:
        yield name
    finally:
        units.run("systemctl", "stop", name, check=False)
        units.run("systemctl", "reset-failed", name, check=False)


def said(name: str) -> list[str]:
    """What the apps of a unit have written."""
    return units.messages(units.journal(f"_SYSTEMD_UNIT={name}"))


def await_signs_of_life(name: str) -> None:
    """Two of them, each the beginning of the time in which systemd wants another."""
    for _ in range(2):
        last = units.show(name, "WatchdogTimestampMonotonic")
        until(lambda last=last: units.show(name, "WatchdogTimestampMonotonic") != last)  # type: ignore[misc]


def test_a_pod_is_ready_when_its_apps_have_started(ground: Ground) -> None:
    with begun(*ground.words("print:up")) as name:
        units.becomes(name, ActiveState="active", SubState="running", StatusText="1 app running", NotifyAccess="main")
        main = int(units.show(name, "MainPID")["MainPID"])
        parent = Path(f"/proc/{ground.leader()}/stat").read_text().rpartition(")")[2].split()[1]
        assert main == int(parent), "the monitor"


@pytest.mark.parametrize("users", [(), ("--private-users",)], ids=["root", "users"])
def test_a_pod_is_ready_when_its_app_says_so(ground: Ground, users: tuple[str, ...]) -> None:
    steps = ("say:STATUS=warming up", "wait:/go/GO", "say:READY=1|STATUS=serving")
    with begun(*ground.words(*steps, app=(NOTIFIES,), pod=users)) as name:
        units.becomes(name, ActiveState="activating", StatusText="service: warming up")
        ground.open()
        units.becomes(name, ActiveState="active", StatusText="service: serving")


def test_a_pod_is_ready_when_its_app_is_healthy(ground: Ground) -> None:
    check = '--health-cmd=["/bin/service", "need:/go/GO", "exit:0"]'
    with begun(*ground.words(app=(check,), pod=("--ready=healthy",))) as name:
        units.becomes(name, ActiveState="activating", StatusText="waiting for service")
        ground.open()
        units.becomes(name, ActiveState="active", StatusText="1 app running")


def test_a_service_that_never_gets_ready_fails(ground: Ground) -> None:
    with begun(*ground.words(pod=("--ready=notify",)), TimeoutStartSec=2) as name:
        units.becomes(name, ActiveState="failed", Result="timeout")


def test_an_app_may_take_longer_when_it_says_so(ground: Ground) -> None:
    steps = ("say:EXTEND_TIMEOUT_USEC=60000000", "wait:/go/GO", "say:READY=1")
    with begun(*ground.words(*steps, app=(NOTIFIES,)), TimeoutStartSec=8) as name:
        units.becomes(name, ActiveState="activating")
        time.sleep(10)
        ground.open()
        units.becomes(name, ActiveState="active")


def test_a_slow_fetch_takes_longer_than_it_is_given(ground: Ground, tmp_path: Path) -> None:
    section = {"exec": ["/bin/service"], "user": "0", "group": "0"}
    files: dict[str, bytes | str] = {"bin/service": ground.program, "weight": os.urandom(4 << 20)}
    path = Path(images.make_aci(str(tmp_path / "a.aci"), images.manifest("example.com/slow", app=section), files))
    content, end = path.read_bytes(), threading.Event()

    def page(handler: servers.Handler) -> None:
        handler.head(200, Content_Length=str(len(content)))
        start, sent = time.monotonic(), 0
        while sent < len(content) and not end.wait(0.1):
            # In twenty seconds.
            due = int(len(content) * (time.monotonic() - start) / 20)
            handler.wfile.write(content[sent:due])
            sent = max(sent, due)

    with servers.site() as site:
        site.pages["/a.aci"] = page
        words = ground.rkpy.command(*RUN, NO_NET, "--no-store", site.url("/a.aci"))
        environment = f"SSL_CERT_FILE={servers.authority().certificate}"
        with begun(*words, TimeoutStartSec=8, Environment=environment) as name:
            units.becomes(name, ActiveState="activating", StatusText=f"fetching {site.url('/a.aci')}")
            units.becomes(name, ActiveState="active", StatusText="1 app running")
        end.set()


def test_a_server_that_keeps_silent_does_not_hold_up_a_start(ground: Ground) -> None:
    end = threading.Event()

    def page(handler: servers.Handler) -> None:
        handler.head(200, Content_Length="1000000")
        end.wait(60)

    with servers.site() as site:
        site.pages["/a.aci"] = page
        words = ground.rkpy.command(*RUN, NO_NET, "--no-store", site.url("/a.aci"))
        environment = f"SSL_CERT_FILE={servers.authority().certificate}"
        with begun(*words, TimeoutStartSec=2, Environment=environment) as name:
            units.becomes(name, ActiveState="failed", Result="timeout")
        end.set()


def test_a_service_that_is_stopped_while_it_fetches_has_not_failed(ground: Ground) -> None:
    end = threading.Event()

    def page(handler: servers.Handler) -> None:
        handler.head(200, Content_Length="1000000")
        end.wait(60)

    with servers.site() as site:
        site.pages["/a.aci"] = page
        words = ground.rkpy.command(*RUN, NO_NET, "--no-store", site.url("/a.aci"))
        environment = f"SSL_CERT_FILE={servers.authority().certificate}"
        with begun(*words, Environment=environment, RemainAfterExit="no") as name:
            units.becomes(name, StatusText=f"fetching {site.url('/a.aci')}")
            until(lambda: site.paths())
            units.run("systemctl", "stop", name)
            assert units.show(name, "Result") in ({"Result": "success"}, {})
            assert units.show(name, "ActiveState") == {"ActiveState": "inactive"}
        end.set()


def test_the_watchdog_is_kept(ground: Ground) -> None:
    with begun(*ground.words(), WatchdogSec=30) as name:
        units.becomes(name, ActiveState="active")
        await_signs_of_life(name)
        assert units.show(name, "ActiveState", "Result") == {"ActiveState": "active", "Result": "success"}


def test_the_watchdog_bites_when_the_supervisor_is_stuck(ground: Ground) -> None:
    with begun(*ground.words(), WatchdogSec=6) as name:
        units.becomes(name, ActiveState="active")
        os.kill(ground.leader(), signal.SIGSTOP)
        units.becomes(name, ActiveState="failed", Result="watchdog")
        until(ground.is_over)


def test_the_watchdog_bites_when_an_app_is_silent(ground: Ground) -> None:
    with begun(*ground.words("say:READY=1", "say:WATCHDOG=1", app=(NOTIFIES,)), WatchdogSec=2) as name:
        units.becomes(name, ActiveState="failed", Result="watchdog")


def test_the_watchdog_is_fed_by_an_app(ground: Ground) -> None:
    with begun(*ground.words("say:READY=1", "every:100:WATCHDOG=1", app=(NOTIFIES,)), WatchdogSec=60) as name:
        units.becomes(name, ActiveState="active")
        await_signs_of_life(name)
        assert units.state(name) == "active"


def test_a_reload_reaches_the_app(ground: Ground) -> None:
    reload = " ".join(ground.rkpy.command("reload", "--main-pid=${MAINPID}"))
    words = ground.words("say:READY=1", app=(NOTIFIES, "--reload-signal=HUP"))
    with begun(*words, ExecReload=reload) as name:
        units.becomes(name, ActiveState="active")
        units.run("systemctl", "reload", name)
        assert units.show(name, "StatusText") == {"StatusText": "service: reloaded"}, "it was waited for"
        units.becomes(name, ActiveState="active", SubState="running")
        until(lambda: said(name).count("reloaded") == 1)
        units.run("systemctl", "kill", "--kill-whom=main", "--signal=HUP", name)
        until(lambda: said(name).count("reloaded") == 2)
        units.becomes(name, ActiveState="active", SubState="running")


def test_a_pod_that_fails_is_started_again_until_it_is_enough(ground: Ground) -> None:
    limits = {"Restart": "on-failure", "RestartSec": "100ms", "StartLimitBurst": "3", "StartLimitIntervalSec": "600"}
    with begun(*ground.words("exit:3", pod=("--pod-name=loops",)), **limits) as name:
        units.becomes(name, ActiveState="failed", Result="exit-code", NRestarts="3")
        assert units.show(name, "ExecMainStatus") == {"ExecMainStatus": "3"}
        assert len(list(ground.rkpy.data.glob("pods/*/*/name"))) >= 1


@pytest.mark.parametrize("mode", ["mixed", "control-group"])
@pytest.mark.parametrize("steps", [(), ("ignore:2",)], ids=["handler", "more"])
def test_a_stop_is_no_failure(ground: Ground, mode: str, steps: tuple[str, ...]) -> None:
    with begun(*ground.words(*steps, app=("--restart=always",)), KillMode=mode, RemainAfterExit="no") as name:
        units.becomes(name, ActiveState="active")
        units.run("systemctl", "stop", name)
        assert units.show(name, "ActiveState") == {"ActiveState": "inactive"}
        assert ground.is_over()


def test_an_app_without_a_handler_is_stopped_without_a_failure(ground: Ground) -> None:
    words = ground.rkpy.command(*RUN, NO_NET, "example.com/busybox", "--exec=/bin/sleep", "--", "1000")
    with begun(*words) as name:
        units.becomes(name, ActiveState="active")
        units.run("systemctl", "stop", name)
        assert units.show(name, "ActiveState") == {"ActiveState": "inactive"}


def test_rkpy_stop_is_no_failure_either(ground: Ground) -> None:
    words = ground.rkpy.command(
        *RUN, NO_NET, "--pod-name=stopped", "example.com/busybox", "--exec=/bin/sleep", "--", "1000"
    )
    with begun(*words, Restart="on-failure", RestartSec="100ms") as name:
        units.becomes(name, ActiveState="active")
        ground.rkpy.ok("stop", "stopped")
        units.becomes(name, ActiveState="inactive")


def test_an_app_that_does_not_end_is_killed_by_rkpy(ground: Ground) -> None:
    words = ground.words("ignore:15", "print:up", pod=("--stop-timeout=1",))
    with begun(*words, TimeoutStopSec=60) as name:
        units.becomes(name, ActiveState="active")
        until(lambda: "up" in said(name))
        units.run("systemctl", "stop", name)
        assert units.show(name, "ActiveState", "Result", "ExecMainStatus") == {
            "ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "137",
        }  # fmt: skip


def test_a_pod_that_does_not_end_is_killed_by_systemd(ground: Ground) -> None:
    words = ground.words("ignore:15", "print:up", pod=("--stop-timeout=100",))
    with begun(*words, TimeoutStopSec=1) as name:
        units.becomes(name, ActiveState="active")
        until(lambda: "up" in said(name))
        units.run("systemctl", "stop", name)
        assert units.show(name, "ActiveState", "Result") == {"ActiveState": "failed", "Result": "timeout"}
        until(ground.is_over)


@pytest.mark.parametrize("verb", ["daemon-reload", "daemon-reexec"])
def test_systemd_may_reload_meanwhile(ground: Ground, verb: str) -> None:
    steps = ("say:READY=1|STATUS=before", "wait:/go/GO", "say:STATUS=after")
    with begun(*ground.words(*steps, app=(NOTIFIES,))) as name:
        units.becomes(name, ActiveState="active", StatusText="service: before")
        units.run("systemctl", verb)
        ground.open()
        units.becomes(name, ActiveState="active", StatusText="service: after")


def test_under_fly_the_app_is_the_service(ground: Ground) -> None:
    steps = ("wait:/go/GO", "say:READY=1|STATUS=flying")
    with begun(*ground.words(*steps, app=(NOTIFIES,), pod=("--stage1=fly",))) as name:
        units.becomes(name, ActiveState="activating")
        ground.open()
        units.becomes(name, ActiveState="active", StatusText="flying")


@pytest.mark.parametrize("verb", ["poweroff", "reboot"])
def test_machinectl_ends_a_pod_without_a_failure(ground: Ground, verb: str) -> None:
    with begun(*ground.words(pod=("--pod-name=machine",)), Restart="on-failure") as name:
        units.becomes(name, ActiveState="active")
        until(lambda: units.run("machinectl", "show", "machine", check=False).returncode == 0)
        units.run("machinectl", verb, "machine")
        units.becomes(name, ActiveState="inactive")
