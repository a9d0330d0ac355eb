"""Apps added to a pod that runs are as those it began with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import flavours
from tests.host.flavours import Ground, until

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
