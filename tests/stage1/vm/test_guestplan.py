"""A plan for the host, rewritten for the guest."""

from __future__ import annotations

import pytest

from common.errors import LaunchError
from stage1 import kernelfs
from stage1.credentials import Credentials
from stage1.limits import Limits
from stage1.mounts import Bind, HostFile, MemoryVolume, ReadOnlyRoot, Sockets, SourcedStep, Tmpfs
from stage1.plan import AppPlan, PodPlan, dumps, loads
from stage1.rootfs import CopiedRoot, OverlayRoot
from stage1.vm.guestplan import Place, about, app_for_guest, for_guest, of_host
from stage1.vm.machine import Machine
from stage2.launch import LaunchSpec

LAUNCH = LaunchSpec("app", ("/bin/true",), (), "0", "0", (), "/", False, ())
ROOT = OverlayRoot(("/store/a", "/store/b"), "/pod/overlay/app", "/pod/rootfs/app", "label")
DATA = Bind("/srv/data", "/data", True, recursive=True, about='volume "data"', hardened=True, propagation="slave")
FILE = Bind("/srv/file", "/file", False, recursive=False, about='volume "file"', own=True)
HOSTS = HostFile("/etc/hosts", "/pod/etc/hosts", always=True, optional=True)
NOTIFY = Sockets("/pod/sockets/app", "/run/systemd", required=True)
MEMORY = MemoryVolume(FILE._replace(source="/pod/volumes/m", target="/memory"), 4096, 0o755, 1, 2)
SECRETS = Credentials("/pod/credentials", 400000)
STEPS = (
    kernelfs.Kernel("/proc", "/proc", False, True), DATA, Tmpfs("/dev", 0o755), NOTIFY, FILE, HOSTS, MEMORY, SECRETS,
    ReadOnlyRoot(),
)  # fmt: skip
PLAN = AppPlan("app", ROOT, STEPS, LAUNCH)


def test_what_the_host_opens() -> None:
    shared = of_host(PLAN)
    assert shared.steps == (DATA, FILE, HOSTS, MEMORY, SECRETS)
    assert shared.root == ROOT
    # Every one of them has something to be opened: that is what numbers in the share count.
    assert all(isinstance(step, SourcedStep) for step in shared.steps)
    assert about(PLAN)[:3] == ["the app's root", 'volume "data"', 'volume "file"']
    assert len(about(PLAN)) == 6


def test_where_the_guest_finds_it() -> None:
    told = app_for_guest(PLAN, Place("7", (2, 3)))
    assert told.root == CopiedRoot("/share/7/0/.")
    assert told.steps == (
        STEPS[0],
        DATA._replace(source="/share/7/1/.", recursive=False, propagation=""),
        STEPS[2],
        NOTIFY._replace(source="/run/rkpy/sockets/app"),
        FILE._replace(source="/share/7/2"),
        HOSTS._replace(source="/share/7/3", optional=False),
        MEMORY.bind._replace(source="/share/7/4/."),
        Credentials("/share/7/5", 0),
        ReadOnlyRoot(),
    )
    assert told._replace(root=ROOT, steps=STEPS) == PLAN
    assert loads(dumps(told)) == told


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (kernelfs.Device("/dev/kvm", "/dev/kvm"), 'device "/dev/kvm"'),
        (DATA._replace(propagation="shared"), 'volume "data": propagation "shared"'),
    ],
)
def test_what_a_guest_cannot_have(step: kernelfs.Device | Bind, words: str) -> None:
    plan = PLAN._replace(steps=(step,))
    with pytest.raises(LaunchError, match=words):
        of_host(plan)
    with pytest.raises(LaunchError, match=words):
        app_for_guest(plan, Place("1"))


def test_what_the_agent_is_told_of_the_pod() -> None:
    inside, outside = Limits(memory=1 << 20), Limits(memory=1 << 30)
    machine = Machine("", "", "", "", "", "tcg", "q35", "", 1, 1 << 28, 0, inside, 60, 1, 1)
    plan = PodPlan(
        "uuid", "/pod", 7, (PLAN,), "host", worker=11, registrar=12, private_range=(400000, 65536), interactive=True,
        limits=outside, credentials=True, journal=True, log_driver="journald", name="name", mutable=True,
        machine=machine,
    )  # fmt: skip
    told = for_guest(plan, machine)
    assert told.limits == inside
    assert (told.apps, told.worker, told.registrar, told.private_range) == ((), 0, 0, (0, 0))
    assert (told.uuid, told.hostname, told.name, told.mutable) == ("uuid", "host", "name", True)
    assert "/pod" not in dumps(told).decode()
    assert told.machine is None
