"""Apps added to a pod that runs are as those it began with."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import flavours
from tests.host.flavours import DEADLINE, Ground, until

HOST = ("--net=host", "--ipc=parent")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, inspector: str) -> Iterator[Ground]:
    with flavours.ground(tmp_path_factory.mktemp("sandbox"), inspector) as made:
        yield made


def mount_points(text: str) -> set[str]:
    """The places of a mountinfo, proc(5)."""
    return {line.split()[4] for line in text.splitlines() if " - " in line}


@pytest.mark.parametrize("flags", [("--net=none",), HOST], ids=["its own", "the host's"])
def test_an_added_app_has_the_pods_network_and_ipc(ground: Ground, flags: tuple[str, ...]) -> None:
    """What is mounted for them too: names of the host's network, a message queue of the pod's."""
    usual = ground.rkpy.ok("run", "--stage1=nspawn", *flags, *ground.app("mounts"))
    with ground.running_command(["app", "sandbox", "--stage1=nspawn", *flags]) as pod:
        added = ground.rkpy("app", "add", pod.uuid, *ground.app("mounts", "--name=late"))
        assert (added.status, added.err) == (0, "")
        ground.rkpy.ok("app", "start", "--app=late", pod.uuid)
        until(lambda: ground.rkpy.ok("app", "list", "--no-legend", pod.uuid) == "late\texited\n")
        late = ground.rkpy.ok("logs", pod.uuid)
    assert mount_points(late) == mount_points(usual)
    assert ("/etc/resolv.conf" in mount_points(late)) == (flags == HOST and Path("/etc/resolv.conf").is_file())
    assert ("/dev/mqueue" in mount_points(late)) == (flags != HOST)


def test_an_app_can_be_entered_when_its_start_has_returned(ground: Ground, tmp_path: Path) -> None:
    """However long that takes: a handler that comes before the app waits for a file."""
    handler = {"name": "pre-start", "exec": ["/bin/inspect", "wait-for", "/go/GO"]}
    image = ground.image(eventHandlers=[handler])
    with ground.running_command(["app", "sandbox", "--stage1=nspawn", "--net=none"]) as pod:
        volume = f"--mnt-volume=name=go,kind=host,source={tmp_path},target=/go"
        ground.rkpy.ok("app", "add", pod.uuid, image, "--name=a", volume, "--", "sleep")
        for command in ("start", "restart"):
            (tmp_path / "GO").unlink(missing_ok=True)
            starting = ground.rkpy.start("app", command, "--app=a", pod.uuid)
            with pytest.raises(subprocess.TimeoutExpired):
                starting.wait(1)
            (tmp_path / "GO").touch()
            assert starting.communicate(timeout=DEADLINE) == ("", "")
            assert ground.rkpy.ok("enter", "--app=a", pod.uuid, "/bin/inspect", "exit", "0") == ""
        # A start that is under way is not the one that a restart is asked for.
        (tmp_path / "GO").unlink()
        first, second = (ground.rkpy.start("app", "restart", "--app=a", pod.uuid) for _ in range(2))
        for starting in (first, second):
            with pytest.raises(subprocess.TimeoutExpired):
                starting.wait(1)
        (tmp_path / "GO").touch()
        for starting in (first, second):
            starting.communicate(timeout=DEADLINE)
        assert ground.rkpy.ok("enter", "--app=a", pod.uuid, "/bin/inspect", "exit", "0") == ""


def test_who_starts_an_app_that_cannot_be_executed_does_not_wait_for_it(ground: Ground) -> None:
    """Nor for all the attempts that its restart policy makes, and hears why."""
    image = ground.image(exec=["/none/such"])
    with ground.running_command(["app", "sandbox", "--stage1=nspawn", "--net=none"]) as pod:
        ground.rkpy.ok("app", "add", pod.uuid, image, "--name=a", "--restart=always")
        refused = ground.rkpy("app", "start", "--app=a", pod.uuid)
        assert refused.status == 254
        assert refused.err == 'rkpy: app start: app "a" could not be started: program "/none/such" not found\n'
