"""Pods that a service manager looks after: when they are ready, what they tell of themselves, and signs of life."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from aci.store import Store
from tests import servers
from tests.host import flavours, servicemanager
from tests.host.flavours import FLY, QUICK, SEVERAL, SUPERVISED, Ground, Variant, every, until
from tests.host.servicemanager import Manager, Message, service
from tests.images import make_aci, manifest

NOTIFIES = "--annotation=appc.io/executor/supports-systemd-notify=true"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, inspector: str) -> Iterator[Ground]:
    with flavours.ground(tmp_path_factory.mktemp("services"), inspector) as made:
        yield made


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return servicemanager.build_service(tmp_path_factory.mktemp("service"))


@pytest.fixture
def image(ground: Ground, program: bytes) -> str:
    return ground.image({"bin/service": program})


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Manager]:
    with servicemanager.manager(tmp_path) as made:
        yield made


def app(image: str, *steps: str, flags: tuple[str, ...] = ()) -> list[str]:
    return [image, *flags, "--exec=/bin/service", "--", *steps]


def go(path: Path) -> str:
    """A step that waits until the test makes `GO` in `path`, a volume of the app's."""
    path.mkdir(exist_ok=True)
    return "wait:/go/GO"


def volume(path: Path) -> list[str]:
    return [f"--volume=go,kind=host,source={path}", "--mount=volume=go,target=/go"]


def of_monitor(host: Manager) -> list[Message]:
    """What the manager has heard since the engine's work was done, which may have asked for more time for itself."""
    return host.heard[host.heard.index(host.until("MAINPID")) :]


@every(SUPERVISED, QUICK)
def test_a_pod_is_ready_when_its_apps_have_started(variant: Variant, ground: Ground, image: str, host: Manager) -> None:
    words = ground.words(variant)
    with service(ground, words, [app(image, "show:NOTIFY_SOCKET")], NOTIFY_SOCKET=host.address) as running:
        ready = host.until("READY", "1")
        assert ready.fields["STATUS"] == "1 app running"
        assert ready.pid == running.process.pid
        assert {message.fields.get("MAINPID", "") for message in host.heard} == {"", str(running.process.pid)}
        assert running.line() == "NOTIFY_SOCKET", "an app that does not tell has no socket, least of all the host's"
        os.kill(running.process.pid, signal.SIGTERM)
        host.until("STOPPING", "1")


@every(SUPERVISED, QUICK)
def test_an_app_with_the_annotation_says_when_it_is_ready(
    variant: Variant, ground: Ground, image: str, host: Manager, tmp_path: Path
) -> None:
    wait = go(tmp_path / "go")
    steps = (
        "show:NOTIFY_SOCKET", "say:STATUS=warming up", "print:waiting", wait, "say:READY=1|STATUS=\x1b[2Jserving",
        "barrier",
    )  # fmt: skip
    words = ground.words(variant, *volume(tmp_path / "go"))
    with service(ground, words, [app(image, *steps, flags=(NOTIFIES,))], NOTIFY_SOCKET=host.address) as running:
        assert running.line() == "NOTIFY_SOCKET=/run/systemd/notify"
        assert running.line() == "waiting"
        host.until("STATUS", "app: warming up")
        assert not host.values("READY")
        assert ground.rkpy("status", "--wait-ready=200ms", running.uuid).status != 0
        (tmp_path / "go" / "GO").touch()
        host.until("READY", "1")
        host.until("STATUS", "app:  [2Jserving")
        assert running.line() == "barrier"
        ground.rkpy.ok("status", "--wait-ready=300s", running.uuid)


@every(SEVERAL, QUICK)
def test_every_app_with_the_annotation_has_to_be_ready(
    variant: Variant, ground: Ground, image: str, host: Manager, tmp_path: Path
) -> None:
    wait = go(tmp_path / "go")
    apps = [
        app(image, "say:READY=1", "print:said", flags=("--name=one", NOTIFIES)),
        app(image, wait, "say:READY=1", flags=("--name=two", NOTIFIES)),
        app(image, "sleep:0", flags=("--name=three",)),
    ]
    words = ground.words(variant, *volume(tmp_path / "go"))
    with service(ground, words, apps, NOTIFY_SOCKET=host.address) as running:
        assert "said" in running.line()
        host.until("STATUS", "waiting for two")
        assert not host.values("READY")
        (tmp_path / "go" / "GO").touch()
        assert host.until("READY", "1").fields["STATUS"] == "3 apps running"


@every(SUPERVISED, QUICK)
def test_with_ready_notify_all_apps_are_waited_for_when_none_has_the_annotation(
    variant: Variant, ground: Ground, image: str, host: Manager, tmp_path: Path
) -> None:
    wait = go(tmp_path / "go")
    words = ground.words(variant, "--ready=notify", *volume(tmp_path / "go"))
    flags = ("--user=1234", "--group=1234", "--readonly-rootfs")
    steps = app(image, "print:up", wait, "say:READY=1", flags=flags)
    with service(ground, words, [steps], NOTIFY_SOCKET=host.address) as running:
        assert running.line() == "up"
        assert not host.values("READY")
        (tmp_path / "go" / "GO").touch()
        host.until("READY", "1")


@every(SUPERVISED, QUICK)
def test_ready_started_does_not_wait_for_an_app_with_the_annotation(
    variant: Variant, ground: Ground, image: str, host: Manager
) -> None:
    words = ground.words(variant, "--ready=started")
    with service(ground, words, [app(image, "sleep:0", flags=(NOTIFIES,))], NOTIFY_SOCKET=host.address):
        host.until("READY", "1")


@every(SUPERVISED, QUICK)
def test_a_hostile_app_cannot_say_more_than_it_may(variant: Variant, ground: Ground, image: str, host: Manager) -> None:
    steps = (
        "say:MAINPID=1", "say:FDSTORE=1|FDNAME=x", "say:BUSERROR=org.example", "say:STOPPING=1", "say:ERRNO=1",
        "say:EXTEND_TIMEOUT_USEC=-1", "say:=|=|====", "say:WATCHDOG_USEC=1", "say:STATUS=" + "x" * 5000,
        "say:STATUS=" + "y" * 3000, "say:READY=1", "barrier",
    )  # fmt: skip
    words = ground.words(variant)
    with service(ground, words, [app(image, *steps, flags=(NOTIFIES,))], NOTIFY_SOCKET=host.address) as running:
        host.until("READY", "1")
        assert running.line() == "barrier"
        allowed = {"MAINPID", "STATUS", "READY"}
        host.until("STATUS", "app: " + "y" * 200)
        assert {key for message in of_monitor(host) for key in message.fields} <= allowed
        assert set(host.values("MAINPID")) == {str(running.process.pid)}
        assert not [text for text in host.values("STATUS") if "x" in text.removeprefix("app: ")[:3]]


@every(SUPERVISED, QUICK)
def test_an_app_that_never_stops_talking_is_heard_in_measure(
    variant: Variant, ground: Ground, image: str, host: Manager
) -> None:
    words = ground.words(variant, "--ready=started")
    with service(ground, words, [app(image, "every:0:STATUS=again", flags=(NOTIFIES,))], NOTIFY_SOCKET=host.address):
        host.until("STATUS", "app: again")
        host.drain()
        after, start = len(host.heard), time.monotonic()
        for _ in range(60):
            again = host.until("STATUS", "app: again", after=after)
            after = host.heard.index(again, after) + 1
        # Some of them may have been waiting for room at the start.
        assert (time.monotonic() - start) / 0.05 + 12 >= 60


@every(SUPERVISED, QUICK)
def test_reloads_of_a_single_app_are_passed_on(variant: Variant, ground: Ground, image: str, host: Manager) -> None:
    words = ground.words(variant)
    with service(
        ground, words, [app(image, "say:READY=1", "print:up", flags=(NOTIFIES,))], NOTIFY_SOCKET=host.address
    ) as running:
        host.until("READY", "1")
        assert running.line() == "up"
        after = len(host.heard)
        ground.rkpy.ok("kill", "--signal=HUP", running.uuid)
        assert int(host.until("RELOADING", "1", after=after).fields["MONOTONIC_USEC"]) > 0
        host.until("READY", "1", after=after)
        host.until("STATUS", "app: reloaded", after=after)
        assert running.line() == "reloaded"


def reloading(host: Manager, after: int) -> None:
    """The pod has said that it reloads, and after that that it has."""
    stamp = int(host.until("RELOADING", "1", after=after).fields["MONOTONIC_USEC"])
    assert 0 < stamp <= time.monotonic_ns() // 1000
    turns = [host.until(name, "1", after=after) for name in ("RELOADING", "READY")]
    assert host.heard.index(turns[0], after) < host.heard.index(turns[1], after)


@every(SEVERAL, QUICK)
def test_a_pod_reloads_by_sighup_and_by_the_command(
    variant: Variant, ground: Ground, image: str, host: Manager
) -> None:
    """Each app by its own signal, or not at all; the pod has when those have that tell. For one that says nothing of it
    nobody waits long."""
    apps = [
        app(image, "say:READY=1", flags=("--name=tells", NOTIFIES)),
        app(image, "ignore:10", "say:READY=1", flags=("--name=silent", NOTIFIES, "--reload-signal=USR1")),
        app(image, "print:up", flags=("--name=plain",)),
        app(image, "print:up", flags=("--name=spared", "--reload-signal=")),
    ]
    words = ground.words(variant, "--reload-signal=HUP", "--exit-policy=until-all")
    with service(ground, words, apps, NOTIFY_SOCKET=host.address) as running:
        host.until("READY", "1")
        assert [running.line().split()[-1] for _ in range(2)] == ["up", "up"]
        for ask in (
            lambda: os.kill(running.process.pid, signal.SIGHUP),
            lambda: ground.rkpy.ok("reload", running.uuid),
            lambda: ground.rkpy.ok("reload", f"--main-pid={running.process.pid}"),
        ):
            after = len(host.heard)
            ask()
            reloading(host, after)
            # One of them complains, twice, that there is nobody to tell.
            assert [running.line().split()[-1] for _ in range(4)].count("reloaded") == 2
            ground.rkpy("kill", "--app=silent", running.uuid)
            until(lambda: "silent\texited" in ground.rkpy.ok("app", "list", "--no-legend", running.uuid))
        assert ground.rkpy.ok("app", "list", "--no-legend", running.uuid).count("running") == 3
        assert len(host.values("RELOADING")) == 3


@every(SUPERVISED, QUICK)
def test_without_apps_that_tell_it_has_reloaded_at_once(
    variant: Variant, ground: Ground, image: str, host: Manager
) -> None:
    flags = ("--reload-signal=HUP", "--stop-signal=USR2")
    words = ground.words(variant, "--stop-timeout=1")
    with service(
        ground, words, [app(image, "ignore:12", "print:up", flags=flags)], NOTIFY_SOCKET=host.address
    ) as running:
        host.until("READY", "1")
        assert running.line() == "up"
        after = len(host.heard)
        os.kill(running.process.pid, signal.SIGHUP)
        reloading(host, after)
        assert [running.line() for _ in range(3)][-1] == "reloaded"
        os.kill(running.process.pid, signal.SIGTERM)
        host.until("STOPPING", "1")
        os.kill(running.process.pid, signal.SIGHUP)  # as SendSIGHUP= has it
        assert running.process.stdout is not None
        assert running.process.stdout.read() == ""


@every(QUICK)
def test_pods_without_a_signal_to_reload_by_say_so_and_go_on(variant: Variant, ground: Ground, image: str) -> None:
    with service(ground, ground.words(variant), [app(image, "print:up")]) as running:
        assert running.line() == "up"
        assert "has a signal to reload by" in ground.rkpy("reload", running.uuid).err
        assert "not a PID" in ground.rkpy("reload", "--main-pid=").err
        assert "main process 1" in ground.rkpy("reload", "--main-pid=1").err
        assert ground.status(running.uuid)["state"] == "running"
        os.kill(running.process.pid, signal.SIGTERM)
        assert servicemanager.status(running.process) == 0


def test_under_fly_the_command_sends_the_signal(ground: Ground, image: str) -> None:
    words = ground.words(flavours.claiming(FLY)[0], "--reload-signal=HUP")
    with service(ground, words, [app(image, "print:up")]) as running:
        assert running.line() == "up"
        ground.rkpy.ok("reload", f"--main-pid={running.process.pid}")
        assert [running.line() for _ in range(3)][-1] == "reloaded"


def test_on_a_terminal_sighup_means_that_it_is_gone(ground: Ground, image: str) -> None:
    variant = flavours.claiming(SUPERVISED)[0]
    words = [*ground.words(variant), *app(image, "print:up", flags=("--reload-signal=HUP",))]
    ours, theirs = pty.openpty()
    command = ["setsid", "--ctty", *ground.rkpy.command(*words)]
    with subprocess.Popen(
        command, stdin=theirs, stdout=subprocess.PIPE, text=True, env=ground.rkpy.environment()
    ) as process:
        os.close(theirs)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            os.close(ours)
            output, _ = process.communicate(timeout=flavours.DEADLINE)
        finally:
            process.kill()  # With it goes the pod.
        assert (process.returncode, output) == (0, "")


@every(SUPERVISED, QUICK)
def test_a_manager_that_does_not_listen_for_a_while_misses_no_turn(
    variant: Variant, ground: Ground, image: str, host: Manager
) -> None:
    """The kernel keeps ten messages for it, or as many as /proc/sys/net/unix/max_dgram_qlen was when it began."""
    words = ground.words(variant)
    steps = ("say:READY=1", "print:up", "every:20:STATUS=busy")
    with service(ground, words, [app(image, *steps, flags=(NOTIFIES,))], NOTIFY_SOCKET=host.address) as running:
        host.until("READY", "1")
        assert running.line() == "up"
        host.fill()
        after = len(host.heard)
        ground.rkpy.ok("kill", "--signal=HUP", running.uuid)
        assert running.line() == "reloaded"
        reloading = host.heard.index(host.until("RELOADING", "1", after=after), after)
        ready = host.heard.index(host.until("READY", "1", after=reloading), reloading)
        host.until("STATUS", "app: busy", after=ready)
        host.fill()
        os.kill(int(ground.status(running.uuid)["pid"]), signal.SIGRTMIN + 4)
        host.until("STOPPING", "1")
        assert servicemanager.status(running.process) == 0


@every(QUICK)
def test_a_pod_is_ready_also_to_a_manager_that_was_busy(
    variant: Variant, ground: Ground, image: str, host: Manager
) -> None:
    host.fill()
    with service(ground, ground.words(variant), [app(image, "print:up")], NOTIFY_SOCKET=host.address) as running:
        if SUPERVISED in variant.claims:
            assert running.line() == "up"
        else:
            until(lambda: ground.status(running.uuid).get("state") == "running")
        host.until("READY", "1")


@every(SUPERVISED, QUICK)
def test_extensions_are_passed_on_while_it_starts(
    variant: Variant, ground: Ground, image: str, host: Manager, tmp_path: Path
) -> None:
    wait = go(tmp_path / "go")
    steps = ("say:EXTEND_TIMEOUT_USEC=1000000", "say:READY=1", wait, "say:EXTEND_TIMEOUT_USEC=2000000", "barrier")
    words = ground.words(variant, *volume(tmp_path / "go"))
    with service(ground, words, [app(image, *steps, flags=(NOTIFIES,))], NOTIFY_SOCKET=host.address) as running:
        host.until("READY", "1")
        (tmp_path / "go" / "GO").touch()
        assert running.line() == "barrier"
        time.sleep(0.2)  # longer than it takes to pass something on
        host.drain()
        extended = [message.fields.get("EXTEND_TIMEOUT_USEC") for message in of_monitor(host)]
        assert [one for one in extended if one is not None] == ["1000000"]


@every(SUPERVISED, QUICK)
def test_restarts_are_told_in_the_status(variant: Variant, ground: Ground, image: str, host: Manager) -> None:
    words = ground.words(variant)
    flags = ("--restart=on-failure:1",)
    with service(ground, words, [app(image, "exit:3", flags=flags)], NOTIFY_SOCKET=host.address) as running:
        host.until("STATUS", "app app failed (3), starting it again; 0 apps running")
        assert servicemanager.status(running.process) == 3


def test_the_address_may_be_abstract(ground: Ground, image: str, tmp_path: Path) -> None:
    variant = flavours.claiming(SUPERVISED)[0]
    address, words = f"@rkpy-test-{os.getpid()}", ground.words(variant)
    with servicemanager.manager(tmp_path, address) as host, service(ground, words, [app(image)], NOTIFY_SOCKET=address):
        host.until("READY", "1")


def test_nobody_has_to_listen(ground: Ground, image: str, tmp_path: Path) -> None:
    variant = flavours.claiming(SUPERVISED)[0]
    words = ground.words(variant)
    with service(ground, words, [app(image, "exit:0")], NOTIFY_SOCKET=f"{tmp_path}/nobody") as running:
        assert servicemanager.status(running.process) == 0


def test_a_volume_in_the_way_is_refused(ground: Ground, image: str, tmp_path: Path) -> None:
    variant = flavours.claiming(SUPERVISED)[0]
    pod: list[Any] = [f"--volume=run,kind=host,source={tmp_path}", "--mount=volume=run,target=/run/systemd"]
    line = ground.rkpy.refused(*ground.words(variant, *pod), *app(image, flags=(NOTIFIES,)))
    assert 'volume "run" cannot be mounted on "/run/systemd"' in line


def test_a_start_that_is_refused_says_why(ground: Ground, image: str, tmp_path: Path, host: Manager) -> None:
    """`systemctl status` would show what was done last otherwise, as if that were still going on."""
    volume = [f"--volume=run,kind=host,source={tmp_path}", "--mount=volume=run,target=/run/systemd"]
    for feature, flags in ((SUPERVISED, volume), (FLY, ["--ready=healthy"])):
        words = ground.words(flavours.claiming(feature)[0], *flags)
        with service(ground, words, [app(image, flags=(NOTIFIES,))], NOTIFY_SOCKET=host.address) as running:
            assert servicemanager.status(running.process) == 254
        assert host.values("STATUS")[-1].startswith("failed: ")
        assert host.heard[-1].pid == running.process.pid


@every(SUPERVISED, QUICK)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_pod_that_is_asked_to_end_ends_like_its_app(variant: Variant, ground: Ground, number: signal.Signals) -> None:
    words = ground.words(variant)
    app = ground.app("sleep 1000", f"--stop-signal={number.name}")
    with service(ground, words, [app]) as running:
        ground.rkpy.ok("status", "--wait-ready=300s", running.uuid)
        os.kill(running.process.pid, signal.SIGTERM)
        assert running.process.wait(timeout=flavours.DEADLINE) == -number, "a death by signal, and no exit status"


@every(SUPERVISED, QUICK)
@pytest.mark.parametrize("offset", [3, 4, 5, 6, signal.SIGINT - signal.SIGRTMIN])
def test_what_machined_sends_to_the_leader_ends_the_pod(
    variant: Variant, ground: Ground, image: str, offset: int
) -> None:
    with service(ground, ground.words(variant), [app(image)]) as running:
        ground.rkpy.ok("status", "--wait-ready=300s", running.uuid)
        os.kill(int(ground.status(running.uuid)["pid"]), signal.SIGRTMIN + offset)
        assert servicemanager.status(running.process) == 0


@every(QUICK)
def test_kill_signals_apps(variant: Variant, ground: Ground, image: str) -> None:
    with service(ground, ground.words(variant), [app(image, "print:up")]) as running:
        assert running.line() == "up"
        assert ground.rkpy.ok("kill", "--signal=sighup", running.uuid) == f'"{running.uuid}"\n'
        assert running.line() == "no NOTIFY_SOCKET"
        assert running.line() == "no NOTIFY_SOCKET"
        assert running.line() == "reloaded"
        ground.rkpy.ok("kill", "-s", "15", "--app=app", running.uuid)
        assert servicemanager.status(running.process) == 0


@every(SEVERAL, QUICK)
def test_kill_signals_one_app(variant: Variant, ground: Ground, image: str) -> None:
    apps = [app(image, "print:up", flags=(f"--name={name}",)) for name in ("one", "two")]
    with service(ground, ground.words(variant, "--exit-policy=until-all"), apps) as running:
        ground.rkpy.ok("status", "--wait-ready=300s", running.uuid)
        ground.rkpy.ok("kill", "--app=two", running.uuid)
        until(lambda: ground.status(running.uuid)["state"] == "running")
        until(lambda: (ground.rkpy.data / f"pods/run/{running.uuid}/status/two").exists())
        assert 'app "two" is not running' in ground.rkpy("kill", "--app=two", running.uuid).err
        ground.rkpy.ok("kill", "--signal=TERM", "--app=one", running.uuid)
        assert servicemanager.status(running.process) == 137


@every(SUPERVISED, QUICK)
def test_an_app_that_is_being_started_is_not_signalled_in_silence(
    variant: Variant, ground: Ground, tmp_path: Path
) -> None:
    handler = {"name": "pre-start", "exec": ["/bin/inspect", "wait-for", go(tmp_path / "go").removeprefix("wait:")]}
    image = ground.image(eventHandlers=[handler])
    words = ground.words(variant, *volume(tmp_path / "go"))
    with service(ground, words, [[image, "--exec=/bin/inspect", "--", "sleep", "1000"]]) as running:
        until(lambda: ground.status(running.uuid)["state"] == "running")
        for more in ((), ("--app=app",)):
            done = ground.rkpy("kill", "--signal=HUP", *more, running.uuid)
            assert (done.status, "is being started" in done.err) == (254, True), done
        ground.rkpy.ok("kill", "--app=app", running.uuid)
        assert servicemanager.status(running.process) == 137


@every(QUICK)
def test_kill_ends_the_pod(variant: Variant, ground: Ground) -> None:
    with service(ground, ground.words(variant), [ground.app("sleep 1000", "--restart=always")]) as running:
        ground.rkpy.ok("status", "--wait-ready=300s", running.uuid)
        ground.rkpy.ok("kill", running.uuid)
        assert servicemanager.status(running.process) == 137
        line = ground.rkpy("kill", running.uuid)
        assert line.status == 254
        assert "isn't currently running" in line.err


@pytest.mark.parametrize("words", [["--signal=NOPE", "x"], ["--signal=0", "x"], [], ["no-such-pod"]])
def test_kill_refuses(ground: Ground, words: list[str]) -> None:
    done = ground.rkpy("kill", *words)
    assert done.status == 254
    assert "Traceback" not in done.err


@pytest.fixture
def published(ground: Ground, program: bytes) -> Iterator[Published]:
    """The image on a server that sends it no faster than it is allowed to."""
    path = ground.new("www") / "slow.aci"
    section = {"exec": ["/bin/service"], "user": "0", "group": "0"}
    files = {"bin/service": program, "weight": os.urandom(4 << 20)}
    make_aci(str(path), manifest("example.com/slow", app=section), files)
    with servers.site() as made:
        yield Published(made, path.read_bytes())


class Published:
    """One image that is sent in drops as long as `dripping`, is withheld otherwise, and sent whole once `go`."""

    def __init__(self, site: servers.Site, content: bytes) -> None:
        self.site, self.content = site, content
        self.dripping, self.go = threading.Event(), threading.Event()
        site.pages["/slow.aci"] = self.page
        self.url = site.url("/slow.aci")
        self.environment = {"SSL_CERT_FILE": servers.authority().certificate}

    def page(self, handler: servers.Handler) -> None:
        handler.head(200, Content_Length=str(len(self.content)))
        sent = 0
        while not self.go.wait(0.05):
            if self.dripping.is_set() and sent < len(self.content) // 2:
                handler.wfile.write(self.content[sent : sent + 8192])
                sent += 8192
        handler.wfile.write(self.content[sent:])


@every(SUPERVISED, QUICK)
def test_a_slow_fetch_asks_for_more_time(variant: Variant, ground: Ground, host: Manager, published: Published) -> None:
    published.dripping.set()
    words = ground.words(variant, "--no-store")
    with service(ground, words, [[published.url]], NOTIFY_SOCKET=host.address, **published.environment) as running:
        host.until("STATUS", f"fetching {published.url}")
        until(lambda: len(host.values("EXTEND_TIMEOUT_USEC")) >= 5)
        assert not host.values("READY")
        published.go.set()
        host.until("STATUS", "preparing the pod")
        host.until("READY", "1")
        assert {message.pid for message in host.heard} == {running.process.pid}, "systemd listens to nobody else"


def test_a_server_that_keeps_silent_gets_no_more_time(ground: Ground, host: Manager, published: Published) -> None:
    variant = flavours.claiming(SUPERVISED)[0]
    words = ground.words(variant, "--no-store")
    with service(ground, words, [[published.url]], NOTIFY_SOCKET=host.address, **published.environment):
        host.until("STATUS", f"fetching {published.url}")
        until(lambda: published.site.paths())
        host.until_silent("EXTEND_TIMEOUT_USEC", 2.5)
        published.go.set()
        host.until("READY", "1")


def test_who_waits_for_the_store_asks_for_more_time(ground: Ground, image: str, host: Manager) -> None:
    variant = flavours.claiming(SUPERVISED)[0]
    store = Store(str(ground.rkpy.data / "cas"))
    with ExitStack() as held:
        held.enter_context(store.lock(exclusive=True))
        with service(ground, ground.words(variant), [app(image)], NOTIFY_SOCKET=host.address):
            host.until("STATUS", "waiting for another rkpy")
            until(lambda: len(host.values("EXTEND_TIMEOUT_USEC")) >= 3)
            held.close()
            host.until("READY", "1")


def test_a_fetch_that_is_asked_to_end_is_no_failure(ground: Ground, host: Manager, published: Published) -> None:
    variant = flavours.claiming(SUPERVISED)[0]
    words = ground.words(variant, "--no-store")
    with service(ground, words, [[published.url]], NOTIFY_SOCKET=host.address, **published.environment) as running:
        host.until("STATUS", f"fetching {published.url}")
        os.kill(running.process.pid, signal.SIGTERM)
        assert running.process.wait(timeout=flavours.DEADLINE) == -signal.SIGTERM
    published.go.set()


def health(ground: Ground, uuid: str, app: str = "app") -> str:
    return ground.status(uuid).get(f"app-{app}-health", "")


@every(SUPERVISED, QUICK)
def test_a_pod_is_ready_once_its_apps_are_healthy(
    variant: Variant, ground: Ground, image: str, host: Manager, tmp_path: Path
) -> None:
    go(tmp_path / "go")
    words = ground.words(variant, "--ready=healthy", *volume(tmp_path / "go"))
    flags = ('--health-cmd=["/bin/service", "need:/go/GO", "exit:0"]', "--health-interval=100s")
    with service(ground, words, [app(image, flags=flags)], NOTIFY_SOCKET=host.address) as running:
        until(lambda: health(ground, running.uuid) == "starting")
        host.until("STATUS", "waiting for app")
        assert not host.values("READY")
        (tmp_path / "go" / "GO").touch()
        host.until("READY", "1")
        assert health(ground, running.uuid) == "healthy"


@every(SUPERVISED, QUICK)
def test_an_app_becomes_unhealthy_and_well_again(
    variant: Variant, ground: Ground, image: str, host: Manager, tmp_path: Path
) -> None:
    go(tmp_path / "go")
    words = ground.words(variant, *volume(tmp_path / "go"))
    check = '["/bin/service", "need:/go/GO", "exit:0"]'
    flags = (f"--health-cmd={check}", "--health-interval=200ms", "--health-retries=2", "--user=12", "--group=12")
    (tmp_path / "go" / "GO").touch()
    with service(ground, words, [app(image, flags=flags)], NOTIFY_SOCKET=host.address) as running:
        until(lambda: health(ground, running.uuid) == "healthy")
        (tmp_path / "go" / "GO").unlink()
        host.until("STATUS", "app app is unhealthy")
        until(lambda: health(ground, running.uuid) == "unhealthy")
        assert ground.status(running.uuid)["app-app-health-reason"] == "exit status 1: no /go/GO"
        (tmp_path / "go" / "GO").touch()
        until(lambda: health(ground, running.uuid) == "healthy")
    assert not [key for key in ground.status(running.uuid) if "health" in key], "it does not run any more"


@every(SUPERVISED, QUICK)
def test_a_check_that_takes_too_long_is_killed(variant: Variant, ground: Ground, image: str) -> None:
    flags = (
        '--health-cmd=["/bin/inspect", "sleep", "1000"]', "--health-timeout=200ms", "--health-interval=100ms",
        "--health-retries=1",
    )  # fmt: skip
    with service(ground, ground.words(variant), [app(image, flags=flags)]) as running:
        until(lambda: health(ground, running.uuid) == "unhealthy")
        assert ground.status(running.uuid)["app-app-health-reason"] == "took longer than 0.2 s"


@every(SUPERVISED, QUICK)
def test_a_check_that_never_stops_writing_is_bounded(variant: Variant, ground: Ground, image: str) -> None:
    flags = (
        '--health-cmd=["/bin/service", "every:0:x"]', "--health-timeout=5s", "--health-interval=100ms",
        "--health-retries=1",
    )  # fmt: skip
    with service(ground, ground.words(variant), [app(image, flags=flags)]) as running:
        until(lambda: health(ground, running.uuid) == "unhealthy")
        reason = ground.status(running.uuid)["app-app-health-reason"]
        assert reason.startswith("took longer than 5 s: ")
        assert "no NOTIFY_SOCKET" in reason
        assert len(reason) < 600


@every(SUPERVISED, QUICK)
@pytest.mark.parametrize(
    ("action", "restart", "restarts"), [("kill", "on-failure:1", "1"), ("restart", "no", "1"), ("stop", "always", "")]
)
def test_what_follows_when_an_app_becomes_unhealthy(
    variant: Variant, ground: Ground, image: str, tmp_path: Path, action: str, restart: str, restarts: str
) -> None:
    go(tmp_path / "go")
    (tmp_path / "go" / "GO").touch()
    words = ground.words(variant, *volume(tmp_path / "go"))
    flags = (
        '--health-cmd=["/bin/service", "need:/go/GO", "exit:0"]', "--health-interval=100ms", "--health-retries=1",
        f"--health-on-failure={action}", f"--restart={restart}",
    )  # fmt: skip
    with service(ground, words, [app(image, flags=flags)]) as running:
        until(lambda: health(ground, running.uuid) == "healthy")
        (tmp_path / "go" / "GO").unlink()
        if restarts:
            path = ground.rkpy.data / f"pods/run/{running.uuid}/restarts/app"
            # An app is restarted at once, and may be again before anybody looks.
            until(lambda: path.exists() and int(path.read_text()) >= int(restarts))
            (tmp_path / "go" / "GO").touch()
        else:
            assert servicemanager.status(running.process) == 0


@every(SUPERVISED, QUICK)
def test_the_health_check_of_an_oci_image(variant: Variant, ground: Ground, program: bytes) -> None:
    made = ground.oci(
        "--healthcheck=CMD /bin/service exit:0", "--healthcheck-interval=1s",
        files={"bin/service": program}, docker=True,
    )  # fmt: skip
    words = ground.words(variant)
    with service(ground, words, [[made, "--exec=/bin/service", "--", "print:up"]]) as running:
        until(lambda: health(ground, running.uuid, "oci") == "healthy")
    with service(ground, words, [[made, "--no-healthcheck", "--exec=/bin/service", "--", "print:up"]]) as running:
        assert running.line() == "up"
        assert health(ground, running.uuid, "oci") == ""


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--ready=healthy"], "no app has a health check"),
        (["--ready=never"], "not one of started, notify, healthy"),
        (["--health-interval=1s"], "the app has no health check"),
        (["--health-cmd=true", "--health-interval=0s"], "not from 0.1s"),
        (["--health-cmd=true", "--health-retries=0"], "not from 1"),
        (["--health-cmd=true", "--health-retries=x"], "not a number"),
        (["--health-cmd=true", "--health-timeout=x"], "--health-timeout"),
        (["--health-cmd=true", "--health-on-failure=cry"], "not one of none, kill, restart, stop"),
        (["--health-cmd=true", "--no-healthcheck"], "cannot be combined"),
        (["--health-cmd=[1]"], "not a list of strings"),
        (["--health-cmd=[}"], "not a list in JSON"),
        (['--health-cmd=["CMD"]'], "it names no program"),
    ],
)
def test_checks_that_make_no_sense_are_refused(ground: Ground, image: str, flags: list[str], says: str) -> None:
    variant = flavours.claiming(SUPERVISED)[0]
    pod = [flag for flag in flags if flag.startswith("--ready")]
    own = [flag for flag in flags if flag not in pod]
    assert says in ground.rkpy.refused(*ground.words(variant, *pod), *app(image, flags=tuple(own)))
    assert not [path for path in ground.rkpy.pods() if "/prepare/" in str(path)]


@every(FLY)
def test_under_fly_the_pod_is_ready_when_the_app_begins(
    variant: Variant, ground: Ground, image: str, host: Manager
) -> None:
    with service(
        ground, ground.words(variant), [app(image, "show:NOTIFY_SOCKET", "exit:0")], NOTIFY_SOCKET=host.address
    ) as running:
        assert host.until("READY", "1").pid == running.process.pid
        assert running.line() == "NOTIFY_SOCKET"


@every(FLY)
@pytest.mark.parametrize("abstract", [False, True])
def test_under_fly_the_app_speaks_for_itself(
    variant: Variant, ground: Ground, image: str, tmp_path: Path, abstract: bool
) -> None:
    steps = ("show:NOTIFY_SOCKET", "show:WATCHDOG_USEC", "say:STATUS=mine", "say:READY=1", "exit:0")
    address = f"@rkpy-fly-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with (
        servicemanager.manager(tmp_path, address) as host,
        service(
            ground, ground.words(variant), [app(image, *steps, flags=(NOTIFIES,))], NOTIFY_SOCKET=address,
            WATCHDOG_USEC="5000000",
        ) as running,
    ):  # fmt: skip
        assert running.line() == f"NOTIFY_SOCKET={address if abstract else '/run/systemd/notify'}"
        assert running.line() == "WATCHDOG_USEC=5000000"
        assert host.until("READY", "1").pid == running.process.pid
        assert host.values("READY") == ["1"]
        assert "mine" in host.values("STATUS")


@every(FLY)
def test_under_fly_nobody_could_look(variant: Variant, ground: Ground, image: str) -> None:
    flags = ('--health-cmd=["/bin/service", "exit:0"]',)
    words = ground.words(variant, "--ready=healthy")
    assert "fly cannot wait until an app is healthy" in ground.rkpy.refused(*words, *app(image, flags=flags))
    done = ground.rkpy(*ground.words(variant), *app(image, "exit:0", flags=flags))
    assert done.status == 0
    assert "fly ignores the health check" in done.err


@every(SUPERVISED, QUICK)
def test_the_watchdog_hears_of_a_supervisor_that_is_alive(
    variant: Variant, ground: Ground, image: str, host: Manager
) -> None:
    with service(
        ground, ground.words(variant), [app(image, "show:WATCHDOG_USEC")], NOTIFY_SOCKET=host.address,
        WATCHDOG_USEC="300000",
    ) as running:  # fmt: skip
        assert running.line() == "WATCHDOG_USEC", "it is the pod's"
        until(lambda: len(host.values("WATCHDOG")) >= 4)
        assert set(host.values("WATCHDOG")) == {"1"}
        leader = int(ground.status(running.uuid)["pid"])
        os.kill(leader, signal.SIGSTOP)
        try:
            host.until_silent("WATCHDOG")
            before = len(host.values("WATCHDOG"))
        finally:
            os.kill(leader, signal.SIGCONT)
        until(lambda: len(host.values("WATCHDOG")) > before)


@every(SEVERAL, QUICK)
def test_the_watchdog_hears_of_apps_that_tell(
    variant: Variant, ground: Ground, image: str, host: Manager, tmp_path: Path
) -> None:
    wait = go(tmp_path / "go")
    lively = ("show:WATCHDOG_USEC", "show:WATCHDOG_PID", "say:READY=1", "every:50:WATCHDOG=1")
    apps = [
        app(image, *lively, flags=("--name=one", NOTIFIES)),
        app(image, "say:READY=1", wait, "every:50:WATCHDOG=1", flags=("--name=two", NOTIFIES)),
        app(image, flags=("--name=three",)),
    ]
    words = ground.words(variant, *volume(tmp_path / "go"))
    with service(ground, words, apps, NOTIFY_SOCKET=host.address, WATCHDOG_USEC="300000") as running:
        assert {running.line().split()[-1], running.line().split()[-1]} == {"WATCHDOG_USEC=300000", "WATCHDOG_PID"}
        host.until("READY", "1")
        host.until_silent("WATCHDOG")  # because one of them is
        before = len(host.values("WATCHDOG"))
        (tmp_path / "go" / "GO").touch()
        until(lambda: len(host.values("WATCHDOG")) > before + 3)


@every(SUPERVISED, QUICK)
def test_an_app_can_have_the_watchdog_bite(variant: Variant, ground: Ground, image: str, host: Manager) -> None:
    steps = ("say:READY=1", "say:WATCHDOG=trigger")
    with service(
        ground, ground.words(variant), [app(image, *steps, flags=(NOTIFIES,))], NOTIFY_SOCKET=host.address,
        WATCHDOG_USEC="60000000",
    ):  # fmt: skip
        host.until("WATCHDOG", "trigger")


def test_prepared_pods_know_what_ready_means(ground: Ground, image: str, host: Manager) -> None:
    uuid = ground.rkpy.ok(
        "--insecure-options=image", "prepare", "--ready=notify", *app(image, "sleep:100", "say:READY=1")
    ).strip()  # fmt: skip
    with service(ground, ["run-prepared", "--net=none"], [[uuid]], NOTIFY_SOCKET=host.address) as running:
        assert host.until("READY", "1").pid == running.process.pid
        os.kill(running.process.pid, signal.SIGTERM)
        assert servicemanager.status(running.process) == 0
    after = len(host.heard)
    with service(ground, ["start", "--net=none"], [[uuid]], NOTIFY_SOCKET=host.address):
        host.until("READY", "1", after=after)


def test_an_image_says_that_it_tells(ground: Ground, program: bytes, host: Manager) -> None:
    path = ground.new("aci") / "tells.aci"
    section = {"exec": ["/bin/service", "show:NOTIFY_SOCKET"], "user": "0", "group": "0"}
    annotations = [{"name": "appc.io/executor/supports-systemd-notify", "value": "true"}]
    made = manifest("example.com/tells", app=section, annotations=annotations)
    found = ground.rkpy.ok(
        "--insecure-options=image", "fetch", "--full", make_aci(str(path), made, {"bin/service": program})
    ).strip()  # fmt: skip
    variant = flavours.claiming(SUPERVISED)[0]
    words = ground.words(variant)
    with service(ground, words, [[found]], NOTIFY_SOCKET=host.address) as running:
        assert running.line() == "NOTIFY_SOCKET=/run/systemd/notify"
    no = "--annotation=appc.io/executor/supports-systemd-notify=false"
    with service(ground, words, [[found, no]], NOTIFY_SOCKET=host.address) as running:
        assert running.line() == "NOTIFY_SOCKET"
        host.until("READY", "1")
    pod = ground.new("manifest") / "pod.json"
    pod.write_text(json.dumps({
        "acVersion": "0.8.11", "acKind": "PodManifest",
        "apps": [{"name": "tells", "image": {"id": found}}],
    }))  # fmt: skip
    with service(ground, [*words, f"--pod-manifest={pod}"], [], NOTIFY_SOCKET=host.address) as running:
        assert running.line() == "NOTIFY_SOCKET=/run/systemd/notify"


def test_apps_that_are_added_tell_and_are_looked_at(ground: Ground, image: str, host: Manager) -> None:
    words = ["--insecure-options=image", "app", "sandbox", "--net=none"]
    with service(ground, words, [], NOTIFY_SOCKET=host.address) as running:
        host.until("READY", "1")
        check = '--health-cmd=["/bin/service", "exit:0"]'
        ground.rkpy.ok(
            "app", "add", running.uuid, image, "--name=more", NOTIFIES, check, "--exec=/bin/service", "--",
            "say:STATUS=added",
        )  # fmt: skip
        ground.rkpy.ok("app", "start", "--app=more", running.uuid)
        host.until("STATUS", "more: added")
        until(lambda: health(ground, running.uuid, "more") == "healthy")
        ground.rkpy.ok("app", "stop", "--app=more", running.uuid)
        ground.rkpy.ok("app", "rm", "--app=more", running.uuid)
        assert not (ground.rkpy.data / f"pods/run/{running.uuid}/sockets/more").exists()


@every(SUPERVISED, QUICK)
def test_an_app_that_is_being_stopped_is_left_alone(
    variant: Variant, ground: Ground, image: str, host: Manager, tmp_path: Path
) -> None:
    go(tmp_path / "go")
    (tmp_path / "go" / "GO").touch()
    flags = (
        '--health-cmd=["/bin/service", "need:/go/GO", "exit:0"]', "--health-interval=100ms", "--health-retries=1",
        "--health-on-failure=kill",
    )  # fmt: skip
    words = ground.words(variant, "--stop-timeout=100", *volume(tmp_path / "go"))
    steps = ("ignore:15", "print:up", "wait:/go/STOP", "exit:0")
    with service(ground, words, [app(image, *steps, flags=flags)], NOTIFY_SOCKET=host.address) as running:
        assert running.line() == "up"
        until(lambda: health(ground, running.uuid) == "healthy")
        ground.rkpy.ok("stop", running.uuid)
        # The supervisor says so: what a check comes to from now on is that of an app that is being stopped.
        host.until("STOPPING", "1")
        (tmp_path / "go" / "GO").unlink()
        until(lambda: health(ground, running.uuid) == "unhealthy")
        (tmp_path / "go" / "STOP").touch()
        assert servicemanager.status(running.process) == 0


@every(SUPERVISED, QUICK)
def test_a_pod_that_rkpy_stops_says_so_while_it_ends(
    variant: Variant, ground: Ground, image: str, host: Manager, tmp_path: Path
) -> None:
    """The monitor is not asked then, but the supervisor."""
    words = [*ground.words(variant), "--pod-name=web", *volume(tmp_path / "go")]
    steps = app(image, "ignore:15", "print:up", go(tmp_path / "go"))
    with service(ground, words, [steps], NOTIFY_SOCKET=host.address) as running:
        host.until("READY", "1")
        assert running.line() == "up"
        ground.rkpy.ok("stop", "web")
        host.until("STOPPING", "1")
        assert running.process.poll() is None
        (tmp_path / "go/GO").touch()
