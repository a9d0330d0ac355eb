"""Pods of the kvm flavour as units, machines of machined and services, and what they have in the journal. They run
under emulation, where every start of a machine costs seconds: there are four, and each is looked at from all sides."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from common import journal as protocol
from tests import images
from tests.cgroups import until
from tests.host.commands import ROOT, Rkpy
from tests.host.servicemanager import build_service
from tests.systemd import units

NAME = "example.com/machine"
OPTIONS = ("--stage1=kvm", "--kvm-accel=tcg", "--net=none")
RUN = ("--insecure-options=image", "run", *OPTIONS)
NOTIFIES = "--annotation=appc.io/executor/supports-systemd-notify=true"
MEBIBYTE = 1 << 20
GENERATOR = Path("/run/systemd/system-generators/rkpy-generator")
PODS = Path("/run/rkpy/pods")

SPEAKER = """\
echo '<4>warn'; echo oops >&2
say MESSAGE=native PRIORITY=4 RKPY_APP=forged
big=$(printf %060000d 0); say -m MESSAGE=large A=$big B=$big C=$big D=$big E=$big
logger -t tagged -p daemon.warn classic
trap 'echo stopped; exit 3' TERM; trap 'echo heard' USR1
echo up
while :; do sleep 1000 & wait; done
"""


@pytest.fixture(scope="module", autouse=True)
def image(rkpy: Rkpy, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The ID of one that has a shell, a program that speaks the journal's protocol, and one that speaks systemd's."""
    directory = tmp_path_factory.mktemp("programs")
    source = Path(__file__).parent / "payload" / "say.c"
    subprocess.run(["cc", "-static", "-O1", "-o", directory / "say", source], check=True)
    files = {
        **images.busybox_files(), "bin/say": (directory / "say").read_bytes(), "bin/logger": "->busybox",
        "bin/service": build_service(directory),
    }  # fmt: skip
    made = images.make_aci(str(directory / "machine.aci"), images.manifest(NAME), files)
    rkpy.ok("--insecure-options=image", "fetch", made)
    (identity,) = (image["id"] for image in json.loads(rkpy.ok("image", "list", "--full", "--format=json"))
                   if image["name"].startswith(NAME))  # fmt: skip
    return str(identity)


class Process(NamedTuple):
    pid: int
    name: str
    started: str

    def is_there(self) -> bool:
        return self in processes()


def processes(cgroup: str = "/") -> set[Process]:
    """Those in a cgroup of systemd's, or below."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
            if f"{units.cgroup_of(int(pid))}/".startswith(f"{cgroup.rstrip('/')}/") and rest.split()[0] != "Z":
                found.add(Process(int(pid), name, rest.split()[19]))
    return found


def of_machine(unit: str) -> set[Process]:
    """The processes of a unit that is nothing but a pod in a virtual machine."""
    found = processes(units.show(unit, "ControlGroup")["ControlGroup"])
    assert {process.name for process in found} == {"rkpy-run", "qemu-system-x86", "virtiofsd"}
    return found


def gone(left: set[Process]) -> bool:
    return not left & processes()


def machines() -> dict[str, str]:
    """By name, what each is."""
    found = json.loads(units.run("machinectl", "list", "--output=json").stdout)
    return {machine["machine"]: machine["class"] for machine in found}


def machine(name: str) -> dict[str, str]:
    lines = units.run("machinectl", "show", name).stdout.splitlines()
    return dict(line.partition("=")[::2] for line in lines)


def status(rkpy: Rkpy, name: str) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in rkpy.ok("status", name).splitlines())


def test_from_a_shell_it_has_a_scope_and_a_place_in_the_journal(rkpy: Rkpy) -> None:
    saved = rkpy.directory / "uuid"
    own = ("--pod-name=boxed", f"--uuid-file-save={saved}")
    words = rkpy.command(*RUN, *own, NAME, "--name=app", "--exec=/bin/sh", "--", "-c", SPEAKER)
    process = subprocess.Popen(units.in_scope(*words), stdout=subprocess.PIPE, text=True, env=rkpy.environment())
    try:
        until(lambda: process.poll() is not None or "boxed" in machines())
        rkpy.ok("status", "--wait-ready=300s", "boxed")
        uuid = f"RKPY_POD_UUID={saved.read_text().strip()}"
        mine = of_machine("rkpy-boxed.scope")
        found = units.show("rkpy-boxed.scope", "ActiveState", "Slice", "Delegate", "MemoryMax", "TasksMax")
        assert (found["ActiveState"], found["Slice"], found["Delegate"]) == ("active", "machine.slice", "yes")
        (qemu,) = (one.pid for one in mine if one.name == "qemu-system-x86")
        guest = Path(f"/proc/{qemu}/cmdline").read_bytes().split(b"\0")
        assert int(found["MemoryMax"]) >= int(guest[guest.index(b"-m") + 1].rstrip(b"K")) * 1024 + 64 * MEBIBYTE
        assert int(found["TasksMax"]) < 16384
        shown = machine("boxed")
        assert (shown["Class"], shown["Unit"], shown["Service"]) == ("vm", "rkpy-boxed.scope", "rkpy")
        assert shown["Leader"] == status(rkpy, "boxed")["pid"] == str(process.pid)
        until(lambda: units.journal(uuid, "MESSAGE=up"))
        # It goes to every process of the pod, and is meant for the apps.
        units.run("machinectl", "kill", "--signal=SIGUSR1", "boxed")
        until(lambda: units.journal(uuid, "MESSAGE=heard"))
        units.run("machinectl", "terminate", "boxed")
        output, _ = process.communicate(timeout=units.TIMEOUT)
        assert (process.returncode, output.splitlines()) == (3, ["<4>warn", "up", "heard", "stopped"])
        until(lambda: gone(mine))
    finally:
        process.terminate()
        process.communicate(timeout=units.TIMEOUT)
    units.becomes("rkpy-boxed.scope", LoadState="not-found")
    until(lambda: "boxed" not in machines())
    check_entries(uuid)
    assert rkpy.ok("logs", "boxed") == "warn\nup\nheard\nstopped\n"


def check_entries(uuid: str) -> None:
    found = units.journal(uuid, "RKPY_APP=app")
    said = {entry["MESSAGE"]: entry for entry in found if "RKPY_STREAM" in entry}
    assert {text: (entry["RKPY_STREAM"], entry["PRIORITY"]) for text, entry in said.items()} == {
        "warn": ("stdout", "4"), "oops": ("stderr", "3"), "native": ("journal", "4"), "large": ("journal", "6"),
        "classic": ("syslog", "4"), "up": ("stdout", "6"), "heard": ("stdout", "6"), "stopped": ("stdout", "6"),
    }  # fmt: skip
    assert all(len(said["large"][name]) == 60000 for name in "ABCDE")
    assert said["classic"]["RKPY_SYSLOG_IDENTIFIER"] == "tagged"
    for entry in said.values():
        assert entry["SYSLOG_IDENTIFIER"] == entry["CONTAINER_TAG"] == "app"
        assert (entry["CONTAINER_NAME"], entry["IMAGE_NAME"]) == ("boxed-app", f"{NAME}:1")
        assert (entry["RKPY_POD_NAME"], uuid) == ("boxed", f"RKPY_POD_UUID={entry['CONTAINER_ID_FULL']}")
        assert entry["_SYSTEMD_UNIT"] == "rkpy-boxed.scope"
    events = [
        (entry["MESSAGE_ID"], entry.get("RKPY_APP"), entry.get("RKPY_EXIT_STATUS"))
        for entry in units.journal(uuid)
        if "MESSAGE_ID" in entry
    ]
    assert events == [
        (protocol.PREPARED, None, None), (protocol.STARTED, "app", None), (protocol.STARTED, None, None),
        (protocol.EXITED, "app", "3"), (protocol.EXITED, None, "3"),
    ]  # fmt: skip


@contextlib.contextmanager
def begun(*command: object, **properties: object) -> Iterator[str]:
    """A service that is being started."""
    name = units.unit_name()
    kept = [f"--setenv={key}={os.environ[key]}" for key in units.KEPT if key in os.environ]
    asked = [f"--property={key}={value}" for key, value in properties.items()]
    where = f"--working-directory={os.getcwd()}"
    units.run("systemd-run", "--quiet", "--no-block", where, *kept, *asked, f"--unit={name}", "--", *command)
    try:
        yield name
    finally:
        units.run("systemctl", "stop", name, check=False)
        units.run("systemctl", "reset-failed", name, check=False)


def test_a_service_whose_app_tells_how_it_fares(rkpy: Rkpy, tmp_path: Path) -> None:
    """The unit's credentials are the app's."""
    steps = (
        "need:/run/host/credentials/motd", "say:STATUS=warming up", "barrier", "wait:/go/GO",
        "say:READY=1|STATUS=serving", "every:100:WATCHDOG=1",
    )  # fmt: skip
    volume = (f"--volume=go,kind=host,source={tmp_path}", "--mount=volume=go,target=/go")
    words = rkpy.command(
        *RUN, "--pod-name=serving", *volume, NAME, "--name=app", NOTIFIES, "--exec=/bin/service", "--", *steps
    )
    service = {
        "Type": "notify", "Delegate": "yes", "KillMode": "mixed", "WatchdogSec": 60, "SetCredential": "motd:hello",
    }  # fmt: skip
    with begun(*words, **service) as name:
        units.becomes(name, ActiveState="activating", StatusText="app: warming up")
        (tmp_path / "GO").touch()
        units.becomes(name, ActiveState="active", StatusText="app: serving")
        mine = of_machine(name)
        assert machine("serving")["Unit"] == name
        alive = units.show(name, "WatchdogTimestampMonotonic")
        until(lambda: units.show(name, "WatchdogTimestampMonotonic") != alive)
        assert "barrier" in units.messages(units.journal(f"_SYSTEMD_UNIT={name}", "RKPY_STREAM=stdout"))
        units.run("systemctl", "stop", name)
        # A unit that failed would stay.
        units.becomes(name, LoadState="not-found")
        until(lambda: gone(mine))
    end = units.journal("RKPY_POD_NAME=serving", "RKPY_APP=app", f"MESSAGE_ID={protocol.EXITED}")[-1]
    assert end["RKPY_EXIT_STATUS"] == "0"
    until(lambda: "serving" not in machines())


def test_who_writes_more_than_the_journal_takes_waits(rkpy: Rkpy) -> None:
    """As without a machine in between: the agent takes no more than it is told has been dealt with."""
    journald = int(units.show("systemd-journald.service", "MainPID")["MainPID"])
    script = "big=$(printf %050000d 0); echo up; for i in $(busybox seq 80); do say MESSAGE=$i BIG=$big; done; echo end"
    saved = rkpy.directory / "many"
    words = (*RUN, f"--uuid-file-save={saved}", NAME, "--name=app", "--exec=/bin/sh", "--", "-c", script)
    process = subprocess.Popen(units.in_scope(*rkpy.command(*words)), stdout=subprocess.PIPE, env=rkpy.environment())
    try:
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        os.kill(journald, signal.SIGSTOP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(5)
    finally:
        os.kill(journald, signal.SIGCONT)
        output, _ = process.communicate(timeout=units.TIMEOUT)
    assert (process.returncode, output) == (0, b"end\n")
    found = units.journal(f"RKPY_POD_UUID={saved.read_text().strip()}", "RKPY_STREAM=journal")
    assert units.messages(found) == [str(number) for number in range(1, 81)]


def test_a_machine_may_take_long_to_start_and_need_not_be_awaited(rkpy: Rkpy) -> None:
    forever = "--kvm-params=rdinit=/nonesuch root=/dev/nonesuch rootwait"
    words = rkpy.command(*RUN, "--pod-name=slow", forever, NAME, "--name=app", "--exec=/bin/sh", "--", "-c", "exit 0")
    service = {"Type": "notify", "Delegate": "yes", "KillMode": "mixed", "TimeoutStartSec": 8}
    with begun(*words, **service) as name:
        units.becomes(name, ActiveState="activating", StatusText="starting the virtual machine")
        time.sleep(10)
        assert units.show(name, "ActiveState") == {"ActiveState": "activating"}
        mine = of_machine(name)
        units.run("systemctl", "stop", name)
        units.becomes(name, LoadState="not-found")
        until(lambda: gone(mine))
    end = units.journal("RKPY_POD_NAME=slow", f"MESSAGE_ID={protocol.EXITED}")[-1]
    assert ("RKPY_APP" in end, end["RKPY_EXIT_STATUS"]) == (False, "143")
    assert not units.journal("RKPY_POD_NAME=slow", f"MESSAGE_ID={protocol.STARTED}")


@pytest.fixture
def pod_file(rkpy: Rkpy) -> Iterator[str]:
    """The service of one whose machine is ready when its app is healthy."""
    name = units.unit_name("pod")
    text = (ROOT / "systemd-units" / "rkpy-generator").read_text()
    for path in (GENERATOR, PODS / name):
        path.parent.mkdir(parents=True, exist_ok=True)
    GENERATOR.write_text(text.replace("exec rkpy ", f"exec {' '.join(rkpy.command()[:3])} "))
    GENERATOR.chmod(0o755)
    own = f"--dir={rkpy.data} --local-config={rkpy.config}"
    (PODS / name).write_text(
        f"[Pod]\nGlobalArgs={own}\nImage={NAME}\nNetwork=none\nStage1=kvm\nKvmAccel=tcg\nMemory=64M\n"
        "Notify=healthy\nHealthCmd=/bin/true\nEntrypoint=/bin/service\nExec=print:up\n"
    )
    units.run("systemctl", "daemon-reload")
    yield name.replace(".pod", ".service")
    units.run("systemctl", "stop", name.replace(".pod", ".service"), check=False)
    GENERATOR.unlink()
    (PODS / name).unlink()
    units.run("systemctl", "daemon-reload")


def test_a_pod_file_may_ask_for_a_machine(rkpy: Rkpy, pod_file: str) -> None:
    units.run("systemctl", "start", pod_file)
    pod = pod_file.removesuffix(".service")
    found = status(rkpy, pod)
    assert (found["unit"], found["machine"], found["app-machine-health"]) == (pod_file, pod, "healthy")
    assert found["limit-machine-memory"] == "enforced: memory.max = 64000000"
    assert machines()[pod] == "vm"
    mine = of_machine(pod_file)
    units.run("machinectl", "poweroff", pod)
    units.becomes(pod_file, ActiveState="inactive", Result="success")
    until(lambda: gone(mine) and pod not in machines())


def test_a_detached_machine_is_larger_than_what_its_apps_may_use(rkpy: Rkpy, image: str, tmp_path: Path) -> None:
    """The limit is the pod's, and kept in there."""
    script = "until test -e /go/GO; do sleep 0.1; done; exec busybox dd if=/dev/zero of=/dev/null bs=128M count=1"
    app = {"exec": ["/bin/sh", "-c", script], "user": "0", "group": "0"}
    mounts = [{"volume": "go", "path": "/go"}]
    manifest = {
        "acKind": "PodManifest", "acVersion": "0.8.11",
        "apps": [{"name": "app", "image": {"id": image}, "app": app, "mounts": mounts}],
        "volumes": [{"name": "go", "kind": "host", "source": str(tmp_path)}],
        "isolators": [{"name": "resource/memory", "value": {"limit": "48M"}}],
    }  # fmt: skip
    (tmp_path / "pod").write_text(json.dumps(manifest))
    uuid = rkpy.ok(*RUN, "--detach", "--pod-name=small", f"--pod-manifest={tmp_path}/pod").strip()
    unit = "rkpy-small.service"
    try:
        mine = of_machine(unit)
        found = units.show(unit, "MemoryMax", "TasksMax", "Slice")
        assert int(found["MemoryMax"]) > (256 + 256 + 32) * MEBIBYTE  # the guest's memory, and what QEMU takes
        assert (int(found["TasksMax"]) < 16384, found["Slice"]) == (True, "machine.slice")
        (tmp_path / "GO").touch()
        units.becomes(unit, LoadState="not-found")
        until(lambda: gone(mine))
    finally:
        units.run("systemctl", "stop", unit, check=False)
    found = status(rkpy, uuid)
    assert (found["app-app"], found["app-app-oom"]) == ("137", "true")
    (event,) = units.journal(f"RKPY_POD_UUID={uuid}", f"MESSAGE_ID={protocol.OOM}")
    assert (event["RKPY_APP"], event["_SYSTEMD_UNIT"]) == ("app", unit)


def test_what_systemd_listens_on_is_refused(rkpy: Rkpy) -> None:
    """By one line, before there is a machine."""
    words = rkpy.command(*RUN, NAME, "--exec=/bin/sh", "--", "-c", "exit 0")
    script = 'exec env LISTEN_PID=$$ LISTEN_FDS=1 "$@" 3<&0'  # a pipe, which is an app's as well
    done = subprocess.run(
        ["sh", "-c", script, "sh", *words], input="", capture_output=True, text=True, timeout=units.TIMEOUT,
        env=rkpy.environment(), check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (254, "")
    assert done.stderr == (
        "rkpy: run: kvm cannot hand the service manager's sockets to an app (publish a port, or use another flavour)\n"
    )
