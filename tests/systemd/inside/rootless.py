"""Pods of ordinary users: in services of the system's (`User=`), and as units of their own service managers."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import images
from tests.cgroups import until
from tests.host.commands import ROOT
from tests.host.servicemanager import build_service
from tests.systemd import people, units
from tests.systemd.people import RKPY, Person, busybox, running

GENERATOR = Path("/run/systemd/user-generators/rkpy-generator")
SERVICE = {"Type": "notify", "Delegate": "yes", "KillMode": "mixed"}
NOTIFIES = "--annotation=appc.io/executor/supports-systemd-notify=true"
POD = """\
[Pod]
Image=example.com/busybox
Network=none
Entrypoint=/bin/sh
Exec=-c "trap 'exit 0' TERM; echo up; sleep 1000 & wait"

[Install]
WantedBy=default.target
"""

SOCKET = "[Socket]\nListenStream=%t/site.sock\n"


@pytest.fixture(scope="module")
def alice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    """Who has a service manager."""
    with people.account(tmp_path_factory.mktemp("alice"), lingers=True) as person:
        yield person


@pytest.fixture(scope="module")
def bob(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    """Who has none."""
    with people.account(tmp_path_factory.mktemp("bob"), lingers=False) as person:
        yield person


def is_entered(person: Person, pod: str) -> None:
    """From another unit: the kernel lets him leave that for the app's cgroup by a service manager only."""
    done = person.rkpy("enter", pod, "/bin/sh", "-c", "grep ^0: /proc/self/cgroup")
    assert (done.stdout, done.stderr) == ("0::/\n", "")


# His own service manager


def test_a_pod_from_a_shell_has_a_scope_of_its_users_manager(alice: Person) -> None:
    with running(alice, "web") as process:
        shown = alice.show("rkpy-web.scope", "ActiveState", "Slice", "Delegate", "ControlGroup")
        slice_ = f"/user.slice/user-{alice.uid}.slice/user@{alice.uid}.service/machine.slice"
        assert shown == {
            "ActiveState": "active", "Slice": "machine.slice", "Delegate": "yes",
            "ControlGroup": f"{slice_}/rkpy-web.scope",
        }  # fmt: skip
        status = alice.status("web")
        assert status["unit"] == "rkpy-web.scope"
        assert "machine" not in status
        # The supervisor and the app are each where they belong.
        assert units.cgroup_of(int(status["pid"])).startswith(f"{slice_}/rkpy-web.scope/")
        assert units.cgroup_of(int(status["pid"])).endswith("/_init")
        assert units.show("rkpy-web.scope", "LoadState") == {"LoadState": "not-found"}
        is_entered(alice, "web")
        # By the monitor, which the scope's manager asks: the app hears its own signal.
        alice.run("systemctl", "--user", "stop", "rkpy-web.scope")
        output, errors = process.communicate(timeout=units.TIMEOUT)
        assert (output, errors, process.returncode) == ("up\nstopped\n", "", 0)


def test_it_goes_on_when_the_bus_is_gone(alice: Person) -> None:
    with running(alice, "web") as process:
        try:
            alice.run("systemctl", "--user", "stop", "dbus.socket", "dbus.service")
            until(lambda: alice.show("rkpy-web.scope", "SubState") == {"SubState": "abandoned"})
            assert process.poll() is None
        finally:
            alice.run("systemctl", "--user", "start", "dbus.socket")


def test_a_detached_pod_is_a_service_of_his_manager(alice: Person) -> None:
    traps = "trap 'echo reloaded' HUP; trap 'echo stopped; exit 0' TERM"
    script = f"{traps}; echo up; while :; do sleep 1000 & wait; done"
    done = alice.rkpy(*busybox("--detach", "--pod-name=loose", app=("--reload-signal=HUP",), script=script))
    assert done.stderr == ""
    uuid = done.stdout.strip()
    shown = alice.show("rkpy-loose.service", "ActiveState", "Type", "Delegate", "StatusText")
    assert shown == {"ActiveState": "active", "Type": "notify", "Delegate": "yes", "StatusText": "1 app running"}
    # A user's manager cannot mark what it delegates; it was asked.
    assert units.cgroup_of(int(alice.status(uuid)["pid"])).endswith(f"/rkpy-loose.service/{uuid}/_init")
    until(lambda: alice.rkpy("logs", uuid).stdout == "up\n")
    alice.run("systemctl", "--user", "reload", "rkpy-loose.service")
    until(lambda: alice.rkpy("logs", uuid).stdout == "up\nreloaded\n")
    alice.run("systemctl", "--user", "stop", "rkpy-loose.service")
    units.run("journalctl", "--sync")
    assert alice.rkpy("logs", uuid).stdout == "up\nreloaded\nstopped\n"
    assert "stopped" in alice.run("journalctl", "--user-unit=rkpy-loose.service", "--output=cat").stdout.splitlines()
    assert alice.status(uuid)["app-app"] == "0"


def test_how_fly_ended_either_service_manager_tells(alice: Person) -> None:
    """His own at once; the system's when he looks, of a service with his name in `User=`."""
    fly = ("--stage1=fly", "--pod-name=flown")
    own = alice.rkpy(*busybox("--detach", *fly, net="host", script="exit 3")).stdout.strip()
    until(lambda: alice.status(own).get("app-app") == "3")
    words = alice.in_service(*busybox(*fly, net="host", script="exit 4"))
    with units.service(*words, properties={"User": alice.name, "RemainAfterExit": "yes", "Type": "notify"}) as name:
        units.becomes(name, ActiveState="failed")
        alice.rkpy("gc", "--mark-only")
        assert alice.status("flown")["app-app"] == "4"


def test_pod_files_of_a_user_are_services_of_his(alice: Person) -> None:
    place = alice.home / ".config/rkpy/pods/site.pod"
    GENERATOR.parent.mkdir(parents=True, exist_ok=True)
    text = (ROOT / "systemd-units/user/rkpy-generator").read_text()
    GENERATOR.write_text(text.replace("exec rkpy ", f"exec {sys.executable} {ROOT}/rkpy.py "))
    GENERATOR.chmod(0o755)
    try:
        alice.run("mkdir", "-p", place.parent)
        alice.run("sh", "-c", 'printf %s "$1" >"$2"', "sh", POD, place)
        assert alice.rkpy("unit", "check", "site").stdout == ""
        assert alice.rkpy("unit", "list", "--no-legend").stdout.split()[:3] == ["site.service", "good", str(place)]
        assert "network.target" not in alice.rkpy("unit", "show", "site").stdout
        alice.run("systemctl", "--user", "daemon-reload")
        assert "site.service" in alice.show("default.target", "Wants")["Wants"].split()
        alice.run("systemctl", "--user", "start", "site.service")
        assert alice.status("site")["unit"] == "site.service"
        alice.run("systemctl", "--user", "stop", "site.service")
        assert alice.show("site.service", "Result") == {"Result": "success"}
        alice.run("mkdir", f"{place}.d")
        alice.run("sh", "-c", 'printf %s "$1" >"$2"', "sh", SOCKET, f"{place}.d/socket.conf")
        alice.run("systemctl", "--user", "daemon-reload")
        assert "site.socket" in alice.show("default.target", "Wants")["Wants"].split()
        alice.run("systemctl", "--user", "start", "site.socket")
        assert alice.show("site.service", "ActiveState") == {"ActiveState": "inactive"}
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"{alice.runtime}/site.sock")
            until(lambda: alice.show("site.service", "ActiveState") == {"ActiveState": "active"})
        alice.run("systemctl", "--user", "stop", "site.socket")
        assert alice.show("site.service", "Result") == {"Result": "success"}
    finally:
        GENERATOR.unlink()
        alice.run("rm", "-rf", place, f"{place}.d")
        alice.run("systemctl", "--user", "daemon-reload")


def test_pods_of_the_systems_are_none_of_a_users(alice: Person, tmp_path: Path) -> None:
    """Nor is root's service manager for users given what is for the system's."""
    pods = Path("/run/rkpy/pods")
    pods.mkdir(parents=True, exist_ok=True)
    (pods / "theirs.pod").write_text(POD)
    try:
        assert alice.rkpy("unit", "list", "--no-legend").stdout == ""
        units.run(*RKPY, "unit", "generate", "--user", tmp_path, PYTHONPATH=str(ROOT))
        assert not [*tmp_path.iterdir()]
        units.run(*RKPY, "unit", "generate", tmp_path, PYTHONPATH=str(ROOT))
        assert (tmp_path / "theirs.service").exists()
    finally:
        (pods / "theirs.pod").unlink()


# Without one


def test_without_a_service_manager_pods_run_as_well(bob: Person) -> None:
    done = bob.rkpy(*busybox(script="echo up; exit 3"), check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "up\n", "")
    done = bob.rkpy(*busybox("--register", script="exit 0"))
    assert done.stderr == "rkpy: warning: --register: machined takes no pods of ordinary users\n"
    done = bob.rkpy(*busybox("--detach"), check=False)
    assert done.returncode == 254
    assert "this user has no service manager" in done.stderr
    assert "enable-linger" in done.stderr


def test_somebody_elses_service_manager_is_none_of_his(alice: Person, bob: Person) -> None:
    """As su(1) leaves it."""
    words = bob.shell(*RKPY, *busybox("--pod-name=web", script="exit 0"), XDG_RUNTIME_DIR=alice.runtime)
    assert units.run(*words).stderr == ""
    assert "unit" not in bob.status("web")


# Services of the system's


def test_a_service_with_a_user_has_its_pod_in_its_own_cgroup(alice: Person) -> None:
    script = "echo up; cat $CREDENTIALS_DIRECTORY/key; echo; trap 'echo stopped; exit 0' TERM; sleep 1000 & wait"
    properties = {"User": alice.name, **SERVICE, "SetCredential": "key:secret"}
    with units.service(*alice.in_service(*busybox("--pod-name=served", script=script)), properties=properties) as name:
        status = alice.status("served")
        assert status["unit"] == name
        assert units.cgroup_of(int(status["pid"])).startswith(f"/system.slice/{name}/")
        assert units.show(name, "StatusText") == {"StatusText": "1 app running"}
        is_entered(alice, "served")
        units.run("systemctl", "stop", name)
        units.becomes(name, LoadState="not-found")  # One that failed would stay.
        lines = units.journal(f"_SYSTEMD_UNIT={name}", "RKPY_STREAM=stdout")
        assert units.messages(lines) == ["up", "secret", "stopped"]
        assert {(entry["_UID"], entry["RKPY_APP"]) for entry in lines} == {(str(alice.uid), "app")}
        assert alice.rkpy("logs", "served").stdout == "up\nsecret\nstopped\n"


def test_without_delegation_it_is_bounded_as_a_whole(alice: Person) -> None:
    """So there is nothing to say, except of limits of its own that were asked for."""
    done = units.run(*units.in_service(*alice.in_service(*busybox(script="echo up")), properties={"User": alice.name}))
    assert (done.stdout, done.stderr) == ("up\n", "")
    limited = busybox(app=("--memory=64M",), script="echo up")
    done = units.run(*units.in_service(*alice.in_service(*limited), properties={"User": alice.name}), check=False)
    assert done.returncode == 254
    assert "--memory cannot be enforced here: without root it takes a delegated cgroup (Delegate=yes)" in done.stderr


@pytest.fixture(scope="module")
def talking(alice: Person, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of a pod whose app does what the words after them say (tests/host/payload/service.c)."""
    place = tmp_path_factory.mktemp("talking")
    program = {"bin/service": build_service(place)}
    section = {"exec": ["/bin/service"], "user": "7", "group": "7"}
    path = images.make_aci(str(place / "a.aci"), images.manifest("example.com/service", app=section), program)
    units.run("install", f"--owner={alice.name}", path, alice.home / "service.aci")
    return ["--insecure-options=image", "run", "--net=none", f"{alice.home}/service.aci", NOTIFIES, "--"]


def test_an_app_of_such_a_service_speaks_for_it(alice: Person, talking: list[str]) -> None:
    words = [*talking, "say:READY=1|STATUS=serving", "every:200:WATCHDOG=1"]
    properties = {"User": alice.name, **SERVICE, "WatchdogSec": "20s"}
    with units.service(*alice.in_service(*words), properties=properties) as name:
        until(lambda: units.show(name, "StatusText")["StatusText"] == "service: serving")
        first = units.show(name, "WatchdogTimestampMonotonic")
        until(lambda: units.show(name, "WatchdogTimestampMonotonic") != first)


def test_it_may_take_longer_when_its_app_says_so(alice: Person, talking: list[str]) -> None:
    words = [*talking, "say:EXTEND_TIMEOUT_USEC=60000000|STATUS=asked", "sleep:10000", "say:READY=1|STATUS=serving"]
    properties = {"User": alice.name, **SERVICE, "TimeoutStartSec": "8s"}
    # Were it not for that word, systemd would have ended it, and systemd-run failed.
    with units.service(*alice.in_service(*words), properties=properties) as name:
        units.becomes(name, ActiveState="active", StatusText="service: serving")


def test_it_is_started_again_when_its_app_fails(alice: Person, talking: list[str]) -> None:
    limits = {"Restart": "on-failure", "RestartSec": "100ms", "StartLimitBurst": "3", "StartLimitIntervalSec": "600"}
    words = [*talking, "say:READY=1", "exit:3"]
    with units.service(*alice.in_service(*words), properties={"User": alice.name, **SERVICE, **limits}) as name:
        units.becomes(name, ActiveState="failed", Result="exit-code", NRestarts="3", ExecMainStatus="3")


def test_apps_have_the_environment_of_its_file(alice: Person, tmp_path: Path) -> None:
    """One that only root may read, as the secrets of services are kept."""
    (tmp_path / "environment").write_text("WORD='a secret'\n")
    (tmp_path / "environment").chmod(0o600)
    command = alice.in_service(*busybox("--inherit-env", script="echo $WORD"))
    properties = {"User": alice.name, "EnvironmentFile": tmp_path / "environment"}
    done = units.run(*units.in_service(*command, properties=properties))
    assert (done.stdout, done.stderr) == ("a secret\n", "")


def test_its_sockets_are_the_apps(alice: Person) -> None:
    address = f"/run/test-{os.getpid()}.sock"
    script = "echo $LISTEN_FDS $LISTEN_PID; readlink /proc/self/fd/3"
    words = units.in_service(*alice.in_service(*busybox(script=script)), properties={"User": alice.name, **SERVICE})
    at = words.index("--pipe")
    # A socket unit starts it when somebody writes.
    options = [word for word in words[:at] if word != "--wait"]
    unit = units.unit_name().removesuffix(".service")
    units.run(*options, f"--unit={unit}", f"--socket-property=ListenDatagram={address}", *words[words.index("--") :])
    try:
        units.run("python3", "-c", f"import socket; socket.socket(1, 2).sendto(b'x', {address!r})")
        lines: list[str] = []

        def said() -> bool:
            """The last of it: what it says before was written before."""
            lines[:] = units.messages(units.journal(f"_SYSTEMD_UNIT={unit}.service"))
            return any(line.startswith("socket:[") for line in lines)

        until(said)
        units.run("systemctl", "stop", f"{unit}.socket", f"{unit}.service")
        assert "1 2" in lines
    finally:
        units.run("systemctl", "stop", f"{unit}.socket", f"{unit}.service", check=False)
        units.run("systemctl", "reset-failed", f"{unit}.service", check=False)


# What a service's settings leave of it

TAKEN = {
    "RestrictNamespaces=yes": "cannot become root of a user namespace: operation not permitted",
    "RestrictSUIDSGID=yes": "rkpy cannot do without openat2(2), which is taken away by RestrictSUIDSGID=",
    "ProcSubset=pid": "rkpy cannot do without /proc/sys, which is taken away by ProcSubset=",
    "RestrictAddressFamilies=AF_UNIX": "rkpy cannot do without AF_NETLINK, which is taken away by RestrictAddr",
}
LEFT = {
    "NoNewPrivileges=yes": "newuidmap has no privileges here (NoNewPrivileges=)",
    "PrivateUsers=yes": "this user namespace has not all that /etc/subuid grants (PrivateUsers=)",
    "CapabilityBoundingSet=": "newuidmap has no privileges here (CapabilityBoundingSet=)",
}


@pytest.mark.parametrize("setting", TAKEN)
def test_what_cannot_be_done_without_is_named_in_one_line(alice: Person, setting: str) -> None:
    name, _, value = setting.partition("=")
    words = units.in_service(*alice.in_service(*busybox()), properties={"User": alice.name, name: value})
    done = units.run(*words, check=False)
    assert done.returncode == 254
    assert TAKEN[setting] in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("setting", LEFT)
def test_apps_are_root_where_other_ids_are_taken_away(alice: Person, setting: str) -> None:
    name, _, value = setting.partition("=")
    words = units.in_service(*alice.in_service(*busybox(script="id -u")), properties={"User": alice.name, name: value})
    done = units.run(*words)
    assert done.stdout == "0\n"
    assert LEFT[setting] in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_does_no_harm(alice: Person) -> None:
    # Of the home nothing is shown, so there is another.
    place, home = alice.home / "elsewhere", f"/srv/{alice.name}"
    store = f"--dir={place}/share/rkpy"
    alice.rkpy(store, "--insecure-options=image", "fetch", alice.home / "busybox.aci")
    os.mkdir(home)
    hardened = {"ProtectHome": "yes", "BindPaths": f"{place}:{home}/.local"}
    hardened["BindReadOnlyPaths"] = str(ROOT)  # which may be in a directory that is hidden
    hardened |= dict.fromkeys(("PrivateTmp", "PrivateIPC", "ProtectControlGroups"), "yes")
    hardened |= {"ProtectSystem": "strict", "ProtectProc": "invisible", "ReadWritePaths": home}
    command = alice.in_service(*busybox(script="id -u"), home=home)
    done = units.run(*units.in_service(*command, properties={"User": alice.name, **hardened}))
    assert (done.stdout, done.stderr) == ("0\n", "")
    for _ in range(2):
        alice.rkpy(store, "gc", "--grace-period=0s")
