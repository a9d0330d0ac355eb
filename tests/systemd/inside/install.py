"""What `rkpy install-units` installs, as systemd takes it, and the units that `rkpy systemd` prints."""

from __future__ import annotations

import contextlib
import os
import pwd
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cgroups import until
from tests.host.commands import ROOT, Rkpy
from tests.systemd import units

NAME = "example.com/busybox"
RUNTIME = Path("/run/systemd/system")
PROGRAM = (sys.executable, str(ROOT / "rkpy.py"))
ARGUMENTS = (
    "a b",
    "$HOME",
    "${HOME}",
    "100%",
    "%h",
    "it's",
    '"',
    "back\\slash",
    "two\nlines",
    ";",
    "",
    "grün",
    "#",
    "-x",
)
SCRIPT = 'for word; do printf "%s\\0" "$word"; done > /tmp/part; mv /tmp/part /tmp/args'
UNITS = ("rkpy-gc.service", "rkpy-gc.timer", "rkpy-image-gc.service", "rkpy-image-gc.timer")


def installer(*words: str) -> str:
    """`rkpy install-units`, run as an administrator does, without --root."""
    return units.run(*PROGRAM, "install-units", *words).stdout


@pytest.fixture(scope="module")
def installed() -> Iterator[list[str]]:
    """The paths of what was installed; it is gone afterwards."""
    installer("--uninstall")
    paths = [line.removeprefix("installed ") for line in installer().splitlines()]
    units.run("systemctl", "daemon-reload")
    yield paths
    installer("--uninstall")
    units.run("systemctl", "daemon-reload")
    assert not [path for path in paths if os.path.lexists(path)]


@contextlib.contextmanager
def printed(rkpy: Rkpy, *words: object) -> Iterator[str]:
    """A unit that `rkpy systemd` printed, loaded."""
    name = units.unit_name()
    (RUNTIME / name).write_text(rkpy.ok("systemd", *words))
    units.run("systemctl", "daemon-reload")
    try:
        verified = units.run("systemd-analyze", "verify", "--man=no", RUNTIME / name)
        assert verified.stderr == ""
        yield name
    finally:
        units.run("systemctl", "stop", name, check=False)
        units.run("systemctl", "reset-failed", name, check=False)
        (RUNTIME / name).unlink()
        units.run("systemctl", "daemon-reload")


def test_systemd_finds_and_accepts_the_units(installed: list[str]) -> None:
    assert units.run("systemd-analyze", "verify", *UNITS).stderr == ""
    for name in UNITS:
        assert units.show(name, "LoadState") == {"LoadState": "loaded"}
        assert units.show(name, "FragmentPath")["FragmentPath"] in installed


def test_the_preset_enables_what_only_tidies_up(installed: list[str]) -> None:
    units.run("systemctl", "preset", "rkpy-gc.timer", "rkpy-image-gc.timer")
    try:
        assert units.show("rkpy-gc.timer", "UnitFileState") == {"UnitFileState": "enabled"}
        assert units.show("rkpy-image-gc.timer", "UnitFileState") == {"UnitFileState": "disabled"}
    finally:
        units.run("systemctl", "disable", "rkpy-gc.timer")


def test_a_timer_runs_the_collection(installed: list[str]) -> None:
    units.run("systemctl", "start", "rkpy-gc.timer")
    try:
        assert units.show("rkpy-gc.timer", "ActiveState") == {"ActiveState": "active"}
        # A minute after boot, which has passed or has not.
        assert "OnBootUSec=1min" in units.show("rkpy-gc.timer", "TimersMonotonic")["TimersMonotonic"]
    finally:
        units.run("systemctl", "stop", "rkpy-gc.timer")


def test_the_generator_makes_services_that_run_this_program(installed: list[str]) -> None:
    pods = Path("/etc/rkpy/pods")
    pods.mkdir(parents=True, exist_ok=True)
    name = units.unit_name("pod")
    service = name.replace(".pod", ".service")
    (pods / name).write_text(f"[Pod]\nImage={NAME}\n")
    try:
        units.run("systemctl", "daemon-reload")
        assert units.show(service, "SourcePath") == {"SourcePath": f"{pods}/{name}"}
        assert f"path={PROGRAM[0]} ;" in units.show(service, "ExecStart")["ExecStart"]
    finally:
        (pods / name).unlink()
        units.run("systemctl", "daemon-reload")


def test_members_of_the_group_may_look_and_nothing_else(installed: list[str], tmp_path: Path) -> None:
    units.run("systemd-sysusers")
    # Whom QEMU is (stage1/vm/programs.py).
    assert pwd.getpwnam("rkpy-kvm").pw_shell == "/usr/sbin/nologin"
    units.run("systemd-tmpfiles", "--create", "rkpy.conf")
    assert Path("/var/lib/rkpy").group() == "rkpy"
    assert Path("/var/lib/rkpy").stat().st_mode & 0o7777 == 0o2750
    image = make_image(tmp_path)
    volume = ("--volume=v,kind=empty", "--mount=volume=v,target=/v")
    script = "echo said; cp /bin/busybox /program; cp /bin/busybox /v/program; chmod 4755 /program /v/program"
    command = (*PROGRAM, "--insecure-options=image", "run", "--no-overlay", "--net=none", *volume, image)
    units.run(*command, "--", "-c", script)
    gid = Path("/var/lib/rkpy").stat().st_gid
    theirs = ("env", "HOME=/nonexistent", *PROGRAM, "--dir=/var/lib/rkpy")
    become = ("setpriv", "--reuid=65534", f"--regid={gid}", "--clear-groups")
    member = (*become, *theirs)
    uuid = units.run(*member, "list", "--full", "--no-legend").stdout.split("\t")[0]
    assert "state=exited" in units.run(*member, "status", uuid).stdout
    assert NAME in units.run(*member, "image", "list").stdout
    # By a program of root's in a pod its members would be root themselves.
    assert len(list(Path("/var/lib/rkpy").rglob("program"))) == 2
    assert units.run(*become, "find", "/var/lib/rkpy", "-name", "program", check=False).stdout == ""
    for words in (("rm", uuid), ("--insecure-options=image", "fetch", image), ("run", NAME)):
        assert units.run(*member, *words, check=False).returncode == 254
    stranger = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *theirs)
    assert units.run(*stranger, "status", uuid, check=False).returncode == 254
    collect(uuid)


def make_image(directory: Path) -> Path:
    from tests import images

    path = directory / "busybox.aci"
    images.make_aci(str(path), images.manifest(NAME), images.busybox_files())
    directory.chmod(0o755)
    return path


def collect(uuid: str) -> None:
    """Let the installed services take away a pod that has exited, and what a killed download left."""
    units.run("systemctl", "start", "rkpy-gc.service")
    assert units.show("rkpy-gc.service", "Result") == {"Result": "success"}
    assert Path(f"/var/lib/rkpy/pods/exited-garbage/{uuid}").is_dir()
    left = Path("/var/lib/rkpy/cas/tmp/0123456789abcdef")
    left.mkdir()
    (left / "part").touch()
    units.run("systemctl", "start", "rkpy-image-gc.service")
    assert units.show("rkpy-image-gc.service", "Result") == {"Result": "success"}
    assert not left.exists()
    units.run(*PROGRAM, "gc", "--grace-period=0s")
    assert not Path(f"/var/lib/rkpy/pods/exited-garbage/{uuid}").exists()


def test_a_printed_unit_runs_the_pod_with_its_very_arguments(rkpy: Rkpy, tmp_path: Path) -> None:
    words = (
        "--net=none", f"--volume=out,kind=host,source={tmp_path}", "--mount=volume=out,target=/tmp", NAME,
        "--exec=/bin/sh", "--", "-c", SCRIPT, "sh", *ARGUMENTS,
    )  # fmt: skip
    with printed(rkpy, *words) as name:
        units.run("systemctl", "start", name)
        until((tmp_path / "args").exists)
        units.becomes(name, ActiveState="inactive", Result="success")
        assert (tmp_path / "args").read_bytes().split(b"\0")[:-1] == [os.fsencode(word) for word in ARGUMENTS]
        # ExecStopPost= has marked it.
        assert [path.parent.name for path in rkpy.pods()] == ["exited-garbage"]


def said(name: str) -> list[str]:
    """What the apps of a unit have written."""
    found = units.messages(units.journal(f"_SYSTEMD_UNIT={name}"))
    return [line for line in found if line in ("of.the.first", "alone", "reloaded")]


def test_a_printed_unit_starts_one_pod_again_and_again(rkpy: Rkpy) -> None:
    """As it was run before: nothing is typed again."""
    script = (
        "trap 'echo reloaded' HUP; trap 'exit 0' TERM; hostname; [ -e /sys/class/net/eth0 ] || echo alone;"
        " while :; do sleep 1; done"
    )
    app = (NAME, "--exec=/bin/sh", "--reload-signal=HUP", "--", "-c", script)
    uuid = rkpy.ok("prepare", *app).strip()
    first = rkpy.start("run-prepared", "--net=none", "--hostname=of.the.first", uuid)
    rkpy.ok("status", "--wait-ready=60s", uuid)
    rkpy.ok("stop", uuid)
    first.communicate(timeout=units.TIMEOUT)
    with printed(rkpy, uuid) as name:
        for times in (1, 2):
            units.run("systemctl", "restart", name)
            units.becomes(name, ActiveState="active", SubState="running")
            assert "state=running" in rkpy.ok("status", uuid)
            until(lambda times=times: said(name) == ["of.the.first", "alone"] * times)  # type: ignore[misc]
        units.run("systemctl", "reload", name)
        until(lambda: said(name)[-1] == "reloaded")
        units.run("systemctl", "stop", name)
        assert units.show(name, "Result") == {"Result": "success"}
        assert "state=exited" in rkpy.ok("status", uuid)
