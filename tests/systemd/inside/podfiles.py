"""Pod files under a real systemd: the generator at daemon-reload, and the services it makes."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cgroups import until
from tests.host.commands import ROOT, Rkpy
from tests.host.conftest import inspector
from tests.systemd import units

__all__ = ["inspector"]

PODS = Path("/run/rkpy/pods")
GENERATOR = Path("/run/systemd/system-generators/rkpy-generator")
TEMPLATE = Path("/run/systemd/system/rkpy@.service")
OURS = f"{sys.executable} {ROOT}/rkpy.py"
IMAGE = "example.com/busybox"
LOOP = "Entrypoint=/bin/sh\nExec=-c \"echo up; trap 'exit 0' TERM; while :; do sleep 1; done\"\n"


FAILING = 'Entrypoint=/bin/sh\nExec=-c "echo begun; exit 3"\n'


def installed(name: str) -> str:
    """A file of systemd-units/ that runs this checkout, as rkpy install-units writes it."""
    text = (ROOT / "systemd-units" / name).read_text()
    return text.replace("=rkpy ", f"={OURS} ").replace("=-rkpy ", f"=-{OURS} ").replace("exec rkpy ", f"exec {OURS} ")


@pytest.fixture(scope="module", autouse=True)
def generator() -> Iterator[None]:
    files = {GENERATOR: "rkpy-generator", TEMPLATE: "rkpy@.service"}
    for path, name in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(installed(name))
        path.chmod(0o755)
    yield
    for path in files:
        path.unlink()
    units.run("systemctl", "daemon-reload")


class Files:
    """Pod files of one test, called after it."""

    def __init__(self, rkpy: Rkpy) -> None:
        self.rkpy = rkpy
        self.name = f"test-{secrets.token_hex(4)}"
        self.written: list[Path] = []

    @property
    def unit(self) -> str:
        return f"{self.name}.service"

    def text(self, more: str = LOOP, rest: str = "") -> str:
        words = f"--dir={self.rkpy.data} --local-config={self.rkpy.config}"
        return f"[Pod]\nGlobalArgs={words}\nImage={IMAGE}\nNetwork=none\n{more}\n{rest}"

    def write(self, suffix: str, text: str) -> Path:
        path = PODS / f"{self.name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.written.append(path)
        return path

    def target(self) -> str:
        """A target of this test's own."""
        path = Path(f"/run/systemd/system/{self.name}.target")
        path.write_text("[Unit]\n")
        self.written.append(path)
        return path.name

    def link(self, suffix: str, target: str) -> None:
        path = PODS / f"{self.name}{suffix}"
        path.symlink_to(target)
        self.written.append(path)

    def pods(self) -> list[tuple[str, str]]:
        """Name and state of the pods of this test, the youngest first."""
        listed = json.loads(self.rkpy.ok("list", "--format=json"))
        named = [(pod.get("pod_name") or "", pod["state"]) for pod in listed]
        return [(name, state) for name, state in named if name.startswith(self.name)]

    def clear(self) -> None:
        pattern = f"{self.name}*"
        names = (f"{pattern}.socket", f"{pattern}.service", f"rkpy@{pattern}.service")
        units.run("systemctl", "stop", *names, check=False)
        for path in reversed(self.written):
            path.unlink(missing_ok=True)
            if path.parent.suffix == ".d":
                path.parent.rmdir()
        reload()
        units.run("systemctl", "reset-failed", *names, check=False)


def reload() -> None:
    units.run("systemctl", "daemon-reload")


@pytest.fixture
def files(rkpy: Rkpy) -> Iterator[Files]:
    made = Files(rkpy)
    yield made
    made.clear()


def said(unit: str) -> list[str]:
    return units.messages(units.journal(f"_SYSTEMD_UNIT={unit}"))


def test_a_pod_file_is_a_service(files: Files) -> None:
    path = files.write(".pod", files.text(rest="[Unit]\nDescription=A pod of mine\n"))
    reload()
    assert units.show(files.unit, "LoadState", "SourcePath", "Description", "Type", "Slice", "KillMode") == {
        "LoadState": "loaded", "SourcePath": str(path), "Description": "A pod of mine", "Type": "notify",
        "Slice": "machine.slice", "KillMode": "mixed",
    }  # fmt: skip
    units.run("systemctl", "start", files.unit)
    assert files.pods() == [(files.name, "running")]
    shown = units.show(files.unit, "ActiveState", "MainPID", "ControlGroup")
    assert shown["ActiveState"] == "active"
    assert units.cgroup_of(int(shown["MainPID"])).startswith(f"/machine.slice/{files.unit}")
    assert "A pod of mine" in units.run("systemctl", "status", files.unit).stdout
    units.run("systemctl", "stop", files.unit)
    units.becomes(files.unit, ActiveState="inactive", Result="success")
    ((name, state),) = files.pods()
    assert name == files.name
    assert "exited" in state


def test_install_is_carried_out(files: Files) -> None:
    target = files.target()
    files.write(".pod", files.text(rest=f"[Install]\nWantedBy={target}\nAlias={files.name}-alias.service\n"))
    reload()
    assert units.run("systemctl", "is-enabled", files.unit, check=False).stdout == "generated\n"
    assert files.unit in units.show(target, "Wants")["Wants"].split()
    assert units.show(f"{files.name}-alias.service", "Id") == {"Id": files.unit}


def test_drop_ins_of_the_pod_file(files: Files) -> None:
    files.write(".pod", files.text("Exec=nothing\n"))
    files.write(".pod.d/10.conf", f"[Pod]\nExec=\n{LOOP}[Service]\nEnvironment=A=1\nTimeoutStopSec=77\n")
    reload()
    assert units.show(files.unit, "Environment", "TimeoutStopUSec") == {
        "Environment": "A=1",
        "TimeoutStopUSec": "1min 17s",
    }
    units.run("systemctl", "start", files.unit)
    assert files.pods() == [(files.name, "running")]


def test_words_arrive_as_they_are_written(files: Files) -> None:
    """systemd takes apart what we put together, with its specifiers and variables in it."""
    command = r"""Exec="two words" '' 'it\'s' "\"" \\ \x41 \; ";" 100%% %N $$HOME ${ONE} $TWO '#'"""
    environment = """Environment='QUOTED=a "b" \\\\ $HOME' PERCENT=5%%"""
    script = 'for word; do echo "<$word>"; done; echo "$QUOTED|$PERCENT"'
    entry = f"Entrypoint={json.dumps(['/bin/sh', '-c', script, 'sh'])}"
    service = "[Service]\nEnvironment='ONE=a b' TWO=c\n"
    files.write(".pod", files.text(f"{entry}\n{command}\n{environment}\n", service))
    reload()
    units.run("systemctl", "start", files.unit, check=False)
    units.becomes(files.unit, ActiveState="inactive", Result="success")
    expected = [
        "<two words>", "<>", "<it's>", '<">', "<\\>", "<A>", "<;>", "<;>", "<100%>", f"<{files.name}>", "<$HOME>",
        "<a b>", "<c>", "<#>", 'a "b" \\ $HOME|5%',
    ]  # fmt: skip
    until(lambda: [line for line in said(files.unit) if line in expected] == expected)


def test_templates(files: Files) -> None:
    loop = LOOP.replace("echo up", "echo up %i")
    target = files.target()
    files.write("@.pod", files.text(loop, f"[Install]\nWantedBy={target}\nDefaultInstance=zero\n"))
    files.link("@one.pod", f"{files.name}@.pod")
    files.write("@one.pod.d/x.conf", "[Pod]\nHostName=special\n")
    reload()
    wanted = units.show(target, "Wants")["Wants"].split()
    assert sorted(wanted) == [f"{files.name}@one.service", f"{files.name}@zero.service"]
    for instance in ("zero", "one", "two"):
        unit = f"{files.name}@{instance}.service"
        units.run("systemctl", "start", unit)
        units.logged(f"_SYSTEMD_UNIT={unit}", f"MESSAGE=up {instance}")
    assert sorted(name for name, _ in files.pods()) == [f"{files.name}-{name}" for name in ("one", "two", "zero")]
    assert units.show(f"{files.name}@one.service", "ExecStart")["ExecStart"].count("--hostname=special") == 1
    assert "--hostname" not in units.show(f"{files.name}@two.service", "ExecStart")["ExecStart"]


def test_a_masked_file_is_no_service(files: Files) -> None:
    files.write(".pod", files.text())
    reload()
    assert units.show(files.unit, "LoadState") == {"LoadState": "loaded"}
    files.write(".pod", "")
    reload()
    assert units.show(files.unit, "LoadState") == {"LoadState": "not-found"}


def test_a_broken_file_beside_a_good_one(files: Files) -> None:
    target = files.target()
    broken = files.write("-broken.pod", files.text("Imagine=x\n", f"[Install]\nRequiredBy={target}\n"))
    files.write(".pod", files.text())
    reload()
    units.run("systemctl", "start", files.unit)
    assert units.state(files.unit) == "active"
    unit = f"{files.name}-broken.service"
    assert units.run("systemctl", "start", unit, check=False).returncode != 0
    units.becomes(unit, ActiveState="failed", Result="exit-code")
    line = broken.read_text().splitlines().index("Imagine=x") + 1
    until(lambda: f"{broken}:{line}: there is no key Imagine= in [Pod]: perhaps Image= is meant" in said(unit))
    assert unit in units.show(target, "Requires")["Requires"].split()
    # Mended, but systemd has not been told: the service of the broken file must not count as one of the pod.
    broken.write_text(files.text())
    assert units.run("systemctl", "start", unit, check=False).returncode != 0
    reload()
    units.run("systemctl", "start", unit)
    assert units.state(unit) == "active"


def test_no_restart_without_a_word(files: Files) -> None:
    files.write(".pod", files.text(FAILING))
    reload()
    units.run("systemctl", "start", files.unit, check=False)
    units.becomes(files.unit, ActiveState="failed", ExecMainStatus="3", NRestarts="0")


@pytest.mark.parametrize("theirs", ["always", "on-failure"])
def test_the_files_restart_counts(files: Files, theirs: str) -> None:
    """A loop of restarts under one name: no run is in the way of the next."""
    rest = f"[Service]\nRestart={theirs}\nRestartSec=0\n[Unit]\nStartLimitIntervalSec=0\n"
    files.write(".pod", files.text(FAILING, rest))
    reload()
    units.run("systemctl", "start", files.unit, check=False)
    until(lambda: int(units.show(files.unit, "NRestarts")["NRestarts"]) >= 8)
    units.run("systemctl", "stop", files.unit)
    until(lambda: said(files.unit).count("begun") >= 4)
    assert not [line for line in said(files.unit) if "is taken" in line]
    assert len(files.pods()) <= 5


def test_a_killed_pod_is_followed_by_another(files: Files) -> None:
    files.write(".pod", files.text(rest="[Service]\nRestart=always\nRestartSec=0\n"))
    reload()
    units.run("systemctl", "start", files.unit)
    before = units.show(files.unit, "MainPID")["MainPID"]
    os.kill(int(before), 9)
    until(lambda: _is_new(files, before))
    assert [state for _, state in files.pods()].count("running") == 1


def _is_new(files: Files, before: str) -> bool:
    shown = units.show(files.unit, "MainPID", "ActiveState")
    return shown["ActiveState"] == "active" and shown["MainPID"] not in ("0", before)


def answer(path: str) -> str:
    """What whoever listens there has to say."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(units.TIMEOUT)
        connection.connect(path)
        return b"".join(iter(lambda: connection.recv(4096), b"")).decode()


def test_whoever_connects_starts_the_pod(files: Files, inspector: str) -> None:
    """By the template's socket, whose instance is started at boot."""
    app = f"Volume={inspector}:/inspect:ro\nEntrypoint=/inspect\nExec=answer 3 %i 0\n"
    files.write("@.pod", files.text(app, "[Socket]\nListenStream=/run/%N.sock\nRemoveOnStop=yes\n"))
    files.link("@one.pod", f"{files.name}@.pod")
    reload()
    service, listening = (f"{files.name}@one.{kind}" for kind in ("service", "socket"))
    assert listening in units.show("sockets.target", "Wants")["Wants"].split()
    assert units.show(listening, "Triggers") == {"Triggers": service}
    units.run("systemctl", "start", listening)
    assert (units.state(service), files.pods()) == ("inactive", [])
    assert answer(f"/run/{files.name}@one.sock") == "one"
    units.becomes(service, ActiveState="active")
    assert answer(f"/run/{files.name}@one.sock") == "one"
    assert files.pods() == [(f"{files.name}-one", "running")]
    # The app listens as well: to close the socket is to stop it.
    units.run("systemctl", "stop", listening)
    units.becomes(service, ActiveState="inactive", Result="success")
    # An instance without a file; started by hand it has its socket too.
    units.run("systemctl", "start", f"{files.name}@two.service")
    assert answer(f"/run/{files.name}@two.sock") == "two"


def test_the_socket_of_a_broken_file(files: Files) -> None:
    path = files.write(".pod", files.text("Imagine=x\n", "[Socket]\nListenStream=/run/%N.sock\n"))
    reload()
    listening = f"{files.name}.socket"
    assert units.run("systemctl", "start", listening, check=False).returncode != 0
    units.becomes(listening, ActiveState="failed", Result="exit-code")
    line = path.read_text().splitlines().index("Imagine=x") + 1
    until(lambda: f"{path}:{line}: there is no key Imagine= in [Pod]: perhaps Image= is meant" in said(listening))
    assert not [*Path("/run").glob(f"{files.name}*")]


def test_reload_sends_the_signal(files: Files) -> None:
    script = "trap 'echo reloaded' HUP; trap 'exit 0' TERM; echo up; while :; do sleep 1; done"
    files.write(".pod", files.text(f'Entrypoint=/bin/sh\nExec=-c "{script}"\nReloadSignal=SIGHUP\n'))
    reload()
    units.run("systemctl", "start", files.unit)
    until(lambda: "up" in said(files.unit))
    units.run("systemctl", "reload", files.unit)
    until(lambda: "reloaded" in said(files.unit))
    assert units.state(files.unit) == "active"


def toml(rkpy: Rkpy) -> str:
    return f"""
dir = "{rkpy.data}"
local-config = "{rkpy.config}"
net = "none"

[[app]]
image = "{IMAGE}"
exec = "/bin/sh"
reload-signal = "USR1"
args = ["-c", "trap 'echo reloaded' USR1; trap 'exit 0' TERM; echo up; while :; do sleep 1; done"]
"""


def in_json(rkpy: Rkpy) -> str:
    import toml as library

    return json.dumps(library.loads(toml(rkpy)))


@pytest.mark.parametrize(("suffix", "text"), [(".toml", toml), (".json", in_json)], ids=["toml", "json"])
def test_pods_as_data(files: Files, suffix: str, text: Callable[[Rkpy], str]) -> None:
    files.write(suffix, text(files.rkpy))
    unit = f"rkpy@{files.name}.service"
    units.run("systemctl", "start", unit)
    assert files.pods() == [(files.name, "running")]
    units.becomes(unit, ActiveState="active")
    until(lambda: "up" in said(unit))
    # The unit does not know where this pod's data are.
    main = units.show(unit, "MainPID")["MainPID"]
    files.rkpy.ok("reload", f"--main-pid={main}")
    until(lambda: "reloaded" in said(unit))
    units.run("systemctl", "stop", unit)
    units.becomes(unit, ActiveState="inactive", Result="success")


def test_data_that_makes_no_sense(files: Files) -> None:
    path = files.write(".toml", toml(files.rkpy) + "memry = 1\n")
    unit = f"rkpy@{files.name}.service"
    assert units.run("systemctl", "start", unit, check=False).returncode != 0
    units.becomes(unit, ActiveState="failed", ExecMainStatus="254")
    until(lambda: any(f"{path}: app[0].memry: there is no such key" in line for line in said(unit)))
    assert files.pods() == []
