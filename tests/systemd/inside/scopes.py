"""Pods as units of systemd and machines of machined, and what systemd and D-Bus do while they run."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import images
from tests.cgroups import until
from tests.host.commands import Rkpy
from tests.systemd import units

NAME = "example.com/busybox"
RUN = ("--insecure-options=image", "run", "--stage1=nspawn", "--net=none")
STAY = "trap 'echo stopped; exit 0' TERM; echo up; sleep 1000 & wait"


class Pod(NamedTuple):
    """A pod that runs, started as somebody's shell does it."""

    process: subprocess.Popen[str]
    uuid: str
    rkpy: Rkpy

    def status(self, *words: str) -> dict[str, str]:
        lines = self.rkpy.ok("status", *words, self.uuid).splitlines()
        return dict(line.partition("=")[::2] for line in lines)

    def stopped(self) -> tuple[int, str]:
        """The exit status and the output, once it is over."""
        output, errors = self.process.communicate(timeout=units.TIMEOUT)
        return self.process.returncode, output + errors

    def is_known(self, name: str) -> bool:
        """Whether systemd has a scope for it that is called by that name, or machined a machine."""
        scope = units.show(f"rkpy-{name}.scope", "LoadState", "Description")
        if scope["LoadState"] != "not-found" and self.uuid in scope["Description"]:
            return True
        shown = (
            units.run("machinectl", "show", machine, "--property=Id", "--value", check=False)
            for machine in (name, f"rkpy-{name}")
        )
        return any(done.stdout.strip() == self.uuid.replace("-", "") for done in shown)


@contextlib.contextmanager
def pod(rkpy: Rkpy, *options: str, script: str = STAY, flags: tuple[str, ...] = ()) -> Iterator[Pod]:
    """Runs until the end of the block; its apps are up. Afterwards neither systemd nor machined knows it any more, who
    hear of its end later than we do."""
    saved = rkpy.directory / "uuid"
    saved.unlink(missing_ok=True)
    command = rkpy.command(
        *RUN, f"--uuid-file-save={saved}", *options, NAME, "--name=app", *flags, "--exec=/bin/sh", "--", "-c", script
    )
    process = subprocess.Popen(
        units.in_scope(*command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=rkpy.environment(),
    )  # fmt: skip
    try:
        until(lambda: process.poll() is not None or (saved.exists() and saved.read_text().strip()))
        assert process.poll() is None, process.communicate()
        made = Pod(process, saved.read_text().strip(), rkpy)
        rkpy.ok("status", "--wait-ready=300s", made.uuid)
        if "trap" in script:  # which it may not have come to
            until(lambda: "up\n" in rkpy.ok("logs", made.uuid))
        yield made
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=units.TIMEOUT)
    names = [word.removeprefix("--pod-name=") for word in options if word.startswith("--pod-name=")]
    until(lambda: not any(map(made.is_known, (made.uuid, *names))))


def machines() -> dict[str, dict[str, Any]]:
    found = json.loads(units.run("machinectl", "list", "--output=json").stdout)
    return {machine["machine"]: machine for machine in found}


def app_of(pod: Pod) -> int:
    """The PID of the app's process on the host."""
    (file,) = pod.rkpy.data.glob(f"pods/run/{pod.uuid}/started/app")
    return int(file.read_text().split()[0])


# The unit


def test_a_pod_from_a_shell_has_a_scope_of_its_own(rkpy: Rkpy) -> None:
    with pod(rkpy) as made:
        name = f"rkpy-{made.uuid}.scope"
        found = units.show(name, "ActiveState", "Slice", "Delegate", "Description", "Documentation", "ControlGroup")
        assert (found["ActiveState"], found["Slice"], found["Delegate"]) == ("active", "machine.slice", "yes")
        assert made.uuid in found["Description"]
        assert '"man:rkpy(1)"' in found["Documentation"].split()
        assert f"file:{rkpy.data}/pods/run/{made.uuid}/pod" in found["Documentation"].split()
        assert found["ControlGroup"] == f"/machine.slice/{name}"
        # The process that was called is the pod, and in its scope; each app is in a cgroup of its own.
        assert units.cgroup_of(made.process.pid).startswith(found["ControlGroup"] + "/")
        assert units.cgroup_of(app_of(made)) == f"{found['ControlGroup']}/{made.uuid}/app"
    units.becomes(name, LoadState="not-found")


def test_it_is_called_by_the_name_of_the_pod(rkpy: Rkpy) -> None:
    with pod(rkpy, "--pod-name=web") as made:
        assert made.uuid in units.show("rkpy-web.scope", "Description")["Description"]
        assert units.state("rkpy-web.scope") == "active"
        assert units.state(f"rkpy-{made.uuid}.scope") == "inactive"


def test_the_name_of_another_pods_scope_is_not_taken(rkpy: Rkpy) -> None:
    """Such as one of a pod of another data directory."""
    squat = subprocess.Popen(units.in_scope("sleep", "1000", unit="rkpy-web.scope"))
    try:
        units.becomes("rkpy-web.scope", ActiveState="active")
        with pod(rkpy, "--pod-name=web") as made:
            units.becomes(f"rkpy-{made.uuid}.scope", ActiveState="active")
    finally:
        squat.kill()
        squat.wait()


def test_a_pod_without_limits_may_have_many_tasks(rkpy: Rkpy) -> None:
    """Limits are tested where there are controllers (limits.py)."""
    with pod(rkpy) as made:
        found = units.show(f"rkpy-{made.uuid}.scope", "MemoryMax", "TasksMax", "CollectMode")
    assert found == {"MemoryMax": "infinity", "TasksMax": "16384", "CollectMode": "inactive-or-failed"}


def test_limits_of_an_app_under_fly_are_those_of_its_scope(rkpy: Rkpy) -> None:
    """systemd is told of them, though there are no controllers here, which whoever typed them hears."""
    isolators = [{"name": "resource/memory", "value": {"limit": "64M"}}, {"name": "os/linux/cpu-shares", "value": 512}]
    app = {"exec": ["/bin/sleep", "1000"], "user": "0", "group": "0", "isolators": isolators}
    image = str(rkpy.directory / "limited.aci")
    images.make_aci(image, images.manifest("example.com/limited", app=app), images.busybox_files())
    fly = ("--insecure-options=image", "run", "--stage1=fly", "--pod-name=flyer")
    command = units.in_scope(*rkpy.command(*fly, image, "--name=app"))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        units.becomes("rkpy-flyer.scope", ActiveState="active")
        rkpy.ok("status", "--wait-ready=300s", "flyer")
        found = units.show("rkpy-flyer.scope", "MemoryMax", "MemorySwapMax", "CPUWeight", "TasksMax")
        assert found == {"MemoryMax": "64000000", "MemorySwapMax": "64000000", "CPUWeight": "50", "TasksMax": "16384"}
        assert "limit-app-memory=not enforceable: " in rkpy.ok("status", "flyer")
    finally:
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=units.TIMEOUT)[1]
    assert 'memory limit of app "app" is not enforceable here: ' in errors
    assert "--memory cannot be enforced here: " in rkpy.refused(*fly, NAME, "--memory=64M")


@pytest.mark.parametrize("how", ["systemctl stop", "terminate", "poweroff", "rkpy stop"])
def test_whoever_stops_it_the_app_hears_it_by_its_signal(rkpy: Rkpy, how: str) -> None:
    command = {
        "systemctl stop": ("systemctl", "stop", "rkpy-web.scope"),
        "terminate": ("machinectl", "terminate", "web"),
        "poweroff": ("machinectl", "poweroff", "web"),
        "rkpy stop": tuple(rkpy.command("stop", "web")),
    }[how]
    script = STAY.replace("TERM", "USR1")
    with pod(rkpy, "--pod-name=web", script=script, flags=("--stop-signal=SIGUSR1",)) as made:
        until(lambda: "web" in machines())
        units.run(*command)
        status, said = made.stopped()
        assert "up\nstopped\n" in said
        assert status == 0
        assert made.status()["app-app"] == "0"
    units.becomes("rkpy-web.scope", LoadState="not-found")
    until(lambda: "web" not in machines())


def test_what_does_not_end_is_killed(rkpy: Rkpy) -> None:
    with pod(rkpy, "--pod-name=web", "--stop-timeout=1s", script="trap '' TERM; echo up; sleep 1000") as made:
        units.run("systemctl", "stop", "rkpy-web.scope")
        assert made.stopped()[0] == 137


# machined


def test_machined_knows_the_pod(rkpy: Rkpy) -> None:
    with pod(rkpy, "--pod-name=web") as made:
        until(lambda: "web" in machines())
        assert machines()["web"]["class"] == "container"
        assert machines()["web"]["service"] == "rkpy"
        lines = units.run("machinectl", "show", "web").stdout.splitlines()
        shown = dict(line.partition("=")[::2] for line in lines)
        assert shown["Unit"] == "rkpy-web.scope"
        assert shown["Id"] == made.uuid.replace("-", "")
        assert not shown.get("RootDirectory"), "the host has nothing there"
        assert shown["Leader"] == made.status()["pid"]
        status = units.run("machinectl", "status", "web").stdout
        assert "Unit: rkpy-web.scope" in status
    until(lambda: "web" not in machines())


def test_pods_with_addresses_are_found_by_name(rkpy: Rkpy) -> None:
    """By nss-mymachines(8), which asks machined, which looks into the pod's network namespace."""
    saved = rkpy.directory / "uuid"
    saved.unlink(missing_ok=True)
    run = ("--insecure-options=image", "run", "--pod-name=addressed", f"--uuid-file-save={saved}", NAME)
    words = units.in_scope(*rkpy.command(*run, "--exec=/bin/sh", "--", "-c", STAY))
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, env=rkpy.environment())
    try:
        until(lambda: process.poll() is not None or "addressed" in machines())
        assert process.poll() is None
        found = units.run("getent", "ahosts", "addressed").stdout.split()
        (networks,) = (line for line in rkpy.ok("status", "addressed").splitlines() if line.startswith("networks="))
        address = networks.partition("ip4=")[2].partition(",")[0].partition("/")[0]
        assert address in found
        assert address in units.run("machinectl", "status", "addressed").stdout
        # The host's end of the pod's link.
        assert units.run("machinectl", "show", "addressed", "--property=NetworkInterfaces", "--value").stdout.strip()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=units.TIMEOUT)


def test_kill_reaches_the_app(rkpy: Rkpy) -> None:
    with pod(rkpy, "--pod-name=web", script="trap 'echo heard' USR1; echo up; sleep 1000 & wait; sleep 1000") as made:
        until(lambda: "web" in machines())
        until(lambda: "up" in rkpy.ok("logs", made.uuid))
        units.run("machinectl", "kill", "--signal=SIGUSR1", "web", check=False)
        until(lambda: "heard" in rkpy.ok("logs", made.uuid))


def test_a_pod_that_is_not_to_be_a_machine(rkpy: Rkpy) -> None:
    with pod(rkpy, "--pod-name=web", "--register=no"):
        assert units.state("rkpy-web.scope") == "active"
        assert "web" not in machines()


def test_a_pod_that_is_killed_leaves_nothing(rkpy: Rkpy) -> None:
    with pod(rkpy, "--pod-name=web") as made:
        until(lambda: "web" in machines())
        made.process.kill()
        made.process.wait()
        units.becomes("rkpy-web.scope", LoadState="not-found")
        until(lambda: "web" not in machines())


def test_the_root_is_known_that_the_host_has(rkpy: Rkpy) -> None:
    with pod(rkpy, "--pod-name=web", "--no-overlay"):
        until(lambda: "web" in machines())
        root = units.run("machinectl", "show", "web", "--property=RootDirectory", "--value").stdout.rstrip("\n")
        assert Path(root, "bin/busybox").exists()


def test_what_machinectl_cannot_do_it_says_in_a_line(rkpy: Rkpy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pod(rkpy, "--pod-name=web") as made:
        until(lambda: "web" in machines())
        for words in (
            ("copy-to", "web", tmp_path / "file", "/file"), ("copy-to", "web", tmp_path / "file", "/app/file"),
            ("copy-from", "web", "/bin/busybox", tmp_path / "got"), ("bind", "web", tmp_path, "/srv"),
            ("login", "web"), ("shell", "web"), ("enable", "web"), ("start", "web"),
        ):  # fmt: skip
            done = units.run("machinectl", *words, check=False)
            assert done.returncode != 0, words
            assert done.stderr.count("\n") == 1, done
        assert made.process.poll() is None
    assert not (tmp_path / "got").exists()


def test_a_pod_runs_without_machined(rkpy: Rkpy) -> None:
    try:
        units.run("systemctl", "mask", "--runtime", "--now", "systemd-machined.service")
        with pod(rkpy) as made:
            assert made.process.stderr
            assert "the pod is not registered with machined: " in made.process.stderr.readline()
            assert units.state(f"rkpy-{made.uuid}.scope") == "active"
            assert "machine" not in made.status()
            made.process.send_signal(signal.SIGTERM)
            assert made.stopped() == (0, "up\nstopped\n")
    finally:
        units.run("systemctl", "unmask", "--runtime", "systemd-machined.service")


def test_the_name_of_somebody_elses_machine_is_not_taken(rkpy: Rkpy) -> None:
    with units.service("sleep", "1000") as theirs:
        leader = units.show(theirs, "MainPID")["MainPID"]
        manager = ("org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager")
        theirs_is = ("RegisterMachine", "sayssus", "web", "0", "theirs", "container", leader, "")
        units.run("busctl", "call", *manager, *theirs_is)
        with pod(rkpy, "--pod-name=web") as made:
            until(lambda: made.status().get("machine") == f"rkpy-{made.uuid}")
            assert f"rkpy-{made.uuid}" in machines()
            assert machines()["web"]["service"] == "theirs"
        until(lambda: f"rkpy-{made.uuid}" not in machines())
        assert "web" in machines()


# Services


def test_a_delegated_service_keeps_its_pod(rkpy: Rkpy) -> None:
    command = rkpy.command(*RUN, "--pod-name=served", NAME, "--name=app", "--exec=/bin/sh", "--", "-c", STAY)
    with units.service(*command, properties={"Delegate": "yes", "KillMode": "mixed"}) as name:
        until(lambda: "served" in machines())
        assert units.state("rkpy-served.scope") == "inactive"
        main = int(units.show(name, "MainPID")["MainPID"])
        assert units.cgroup_of(main).startswith(f"/system.slice/{name}/")
        shown = units.run("machinectl", "show", "served", "--property=Unit", "--value").stdout
        assert shown.strip() == name
        units.run("systemctl", "stop", name)
        # A unit that failed would stay.
        units.becomes(name, LoadState="not-found")
    until(lambda: "served" not in machines())


def test_pods_that_are_over_are_no_machines_while_their_service_goes_on(rkpy: Rkpy) -> None:
    """machined forgets one by itself only when its unit has ended, and of several in a unit not even then."""
    names = ["first", "second", "third"]
    tail = (NAME, "--exec=/bin/sh", "--", "-c", STAY)
    commands = [shlex.join(rkpy.command(*RUN, f"--pod-name={name}", *tail)) for name in names]
    script = f"{' & '.join(commands)} & sleep 1000"
    with units.service("sh", "-c", script, properties={"Delegate": "yes"}) as service:
        until(lambda: set(names) <= set(machines()))
        rkpy.ok("stop", *names)
        until(lambda: not set(names) & set(machines()))
        assert units.state(service) == "active"


def test_a_pod_that_fails_is_started_again_by_its_service(rkpy: Rkpy) -> None:
    command = rkpy.command(*RUN, "--pod-name=failing", NAME, "--name=app", "--exec=/bin/sh", "--", "-c", "exit 3")
    properties = {"Delegate": "yes", "KillMode": "mixed", "Restart": "on-failure", "RestartSec": "100ms"}
    with units.service(*command, properties={**properties, "StartLimitIntervalSec": "0"}) as name:
        until(lambda: int(units.show(name, "NRestarts")["NRestarts"] or 0) >= 3)


# What happens around it


@pytest.mark.parametrize("what", ["daemon-reload", "daemon-reexec"])
def test_a_pod_lives_through(rkpy: Rkpy, what: str) -> None:
    with pod(rkpy, "--pod-name=web") as made:
        until(lambda: "web" in machines())
        for _ in range(3):
            units.run("systemctl", what)
        assert made.process.poll() is None
        assert units.state("rkpy-web.scope") == "active"
        assert units.cgroup_of(app_of(made)) == f"/machine.slice/rkpy-web.scope/{made.uuid}/app"
        # The monitor still hears systemd.
        units.run("systemctl", "stop", "rkpy-web.scope")
        assert made.stopped()[0] == 0


def test_a_pod_lives_through_a_restart_of_machined(rkpy: Rkpy) -> None:
    with pod(rkpy, "--pod-name=web") as made:
        until(lambda: "web" in machines())
        units.run("systemctl", "restart", "systemd-machined.service")
        until(lambda: "web" in machines())
        assert made.process.poll() is None


def test_pods_start_while_systemd_reloads(rkpy: Rkpy) -> None:
    with units.service("sh", "-c", "while :; do systemctl daemon-reload; done"):
        for _ in range(5):
            with pod(rkpy, "--pod-name=web"):
                assert units.state("rkpy-web.scope") == "active"


def test_pods_start_while_systemd_is_executed_anew(rkpy: Rkpy, tmp_path: Path) -> None:
    """It is not on the bus for a part of that time, and what it was told before may be lost."""
    saved, end, ended = (tmp_path / name for name in ("uuid", "end", "ended"))
    command = rkpy.command(*RUN, f"--uuid-file-save={saved}", "--pod-name=web", NAME, "--name=app", "--exec=/bin/true")
    # They wait in scopes of shells, which systemd-run would fail to make then.
    waiting = [
        subprocess.Popen(
            units.in_scope("sh", "-c", 'read go; exec "$@"', "sh", *command),
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=rkpy.environment(),
        )
        for _ in range(5)
    ]  # fmt: skip
    for process in waiting:
        until(lambda process=process: "test-" in units.cgroup_of(process.pid))  # type: ignore[misc]
    loop = f"until [ -e {end} ]; do systemctl daemon-reexec; sleep 0.2; done; touch {ended}"
    with units.service("sh", "-c", loop):
        try:
            for process in waiting:
                _, errors = process.communicate("go\n", timeout=units.TIMEOUT)
                assert (process.returncode, errors) == (0, "")
                uuid = saved.read_text().strip()
                # The scope of the one before may still have the name.
                scopes = {"unit=rkpy-web.scope", f"unit=rkpy-{uuid}.scope"}
                assert scopes & {*rkpy.ok("status", uuid).splitlines()}
        finally:
            end.touch()
            until(ended.exists)


def is_stopped_at_once(name: str) -> None:
    """By SIGTERM, which nothing waits for in vain. systemd 252 follows it up with SIGKILL when a cgroup of an app that
    has ended goes while it looks (its "No such device"), so the exit status says nothing."""
    unit = f"rkpy-{name}.scope"
    units.run("journalctl", "--sync")
    before = units.run("journalctl", f"--unit={unit}", "--output=cat").stdout
    units.run("systemctl", "stop", unit)
    units.run("journalctl", "--sync")
    said = units.run("journalctl", f"--unit={unit}", "--output=cat").stdout.removeprefix(before)
    assert f"Stopped {unit}" in said
    assert "timed out" not in said


def test_a_pod_lives_through_the_end_of_the_bus_and_one_without_runs_too(rkpy: Rkpy) -> None:
    with pod(rkpy, "--pod-name=web") as made:
        until(lambda: "web" in machines())
        try:
            units.run("systemctl", "stop", "dbus.socket", "dbus.service")
            assert made.process.poll() is None
            assert Path(f"/proc/{app_of(made)}").exists()
            done = rkpy(*RUN, NAME, "--exec=/bin/sh", "--", "-c", "echo without; exit 3")
            assert (done.status, done.out) == (3, "without\n")
            assert "the pod is not registered with systemd" in done.err
        finally:
            units.run("systemctl", "start", "dbus.socket", "dbus.service")
        # systemd does not reach its controller any more, and knows it: it does not wait for it.
        units.becomes("rkpy-web.scope", SubState="abandoned")
        is_stopped_at_once("web")
        made.stopped()
    until(lambda: units.run("busctl", "status", check=False).returncode == 0)


def test_scopes_can_be_stopped_when_the_bus_was_restarted(rkpy: Rkpy) -> None:
    names = ["one", "two", "three", "four"]
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(pod(rkpy, f"--pod-name={name}")) for name in names]
        units.run("systemctl", "reset-failed", "dbus.service")  # It may not be started too often.
        units.run("systemctl", "restart", "dbus.service")
        until(lambda: units.run("busctl", "status", check=False).returncode == 0)
        for name in names:
            units.becomes(f"rkpy-{name}.scope", SubState="abandoned")
        for name, one in zip(names, made, strict=True):
            is_stopped_at_once(name)
            one.stopped()
