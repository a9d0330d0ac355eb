"""A plan for the host, rewritten for the guest. Pure.

What lies on the host is opened there, from the app's plan less what makes no sense in a guest (`of_host`), and shown in
the share (`stage1.vm.share`). In the guest the same steps find it below SHARE, by its place among what was opened:

    SHARE/PLACE/0        the app's root, whatever it was made from
    SHARE/PLACE/1, …     the source of each step that has one

The share itself says what of it is read-only, and which devices and set-ID programs in it count. The guest's mounts say
it once more: so its kernel knows as well, and what is checked on the host is checked again.
"""

from __future__ import annotations

from common.errors import LaunchError
from common.records import NamedTuple
from stage1.credentials import Credentials
from stage1.kernelfs import Device
from stage1.mounts import Bind, HostFile, MemoryVolume, Sockets, SourcedStep, Step
from stage1.plan import FILE, AppPlan, PodPlan
from stage1.rootfs import CopiedRoot
from stage1.systemd.given import Given
from stage1.vm.frames import SHARE, SOCKETS
from stage1.vm.machine import Machine

DIRECTORY = "/run/rkpy"
"""What the guest has for a pod directory."""


class Place(NamedTuple):
    """Where in the share an app's files are."""

    name: str
    """Of the directory below SHARE."""
    files: tuple[int, ...] = ()
    """Which of the things in it are files; the others are directories."""


def for_guest(plan: PodPlan, machine: Machine) -> PodPlan:
    """The pod as the agent is told of it: its apps come one by one, and what is the host's business stays there."""
    return plan._replace(
        directory=DIRECTORY,
        lock_fd=-1,
        apps=(),
        join="",
        host_network=True,  # The guest's own is the pod's.
        worker=0,
        registrar=0,
        private_range=(0, 0),
        interactive=False,
        limits=machine.limits,
        given=Given(),
        log_driver=FILE,
        journal=False,
        credentials=False,
        machine=None,
    )


def of_host(plan: AppPlan) -> AppPlan:
    """`plan` with only those steps that mount something the host has for the guest: what `apptree.open_app` opens for
    it is what `app_for_guest` counts. To be called with what `apptree.present` has left. LaunchError for what a guest
    cannot have."""
    for step in plan.steps:
        _require_possible(step)
    return plan._replace(steps=tuple(filter(_is_shared, plan.steps)))


def about(plan: AppPlan) -> list[str]:
    """What messages call each of the things that `of_host` has opened."""
    return ["the app's root", *(_name(step) for step in plan.steps if _is_shared(step))]


def app_for_guest(plan: AppPlan, place: Place) -> AppPlan:
    """The app as the agent is to furnish it; `place` is what `Share.show` gave for what was opened for it."""
    steps: list[Step] = []
    count = 0
    for step in plan.steps:
        _require_possible(step)
        if _is_shared(step):
            count += 1
            steps.append(_moved(step, f"{SHARE}/{place.name}/{count}", is_file=count in place.files))
        elif isinstance(step, Sockets):
            steps.append(step._replace(source=f"{SOCKETS}/{plan.name}"))
        else:
            steps.append(step)
    return plan._replace(root=CopiedRoot(_entered(f"{SHARE}/{place.name}/0")), steps=tuple(steps))


def _is_shared(step: Step) -> bool:
    # Sockets lead to processes of one kernel: the guest has its own.
    return isinstance(step, SourcedStep) and not isinstance(step, Sockets)


def _moved(step: Step, source: str, *, is_file: bool) -> Step:
    if isinstance(step, MemoryVolume):
        step = step.bind  # The host has mounted it.
    if isinstance(step, Bind):
        # Mounts below it on the host come with it: the guest mounts them when something goes there (fs/fuse/dir.c,
        # fuse_dentry_automount), with the attributes of the mount above.
        return step._replace(source=source if is_file else _entered(source), recursive=False, propagation="")
    if isinstance(step, HostFile):
        # That it is there was seen on the host.
        return step._replace(source=source, optional=False)
    if isinstance(step, Credentials):
        return step._replace(source=source, owner=0)
    raise LaunchError(f"{_name(step)}: a machine of its own has no such thing")


def _entered(source: str) -> str:
    """A directory of the share, to be entered rather than looked at: only then does the guest's kernel mount there what
    the host has (fs/namei.c, follow_automount)."""
    return f"{source}/."


def _require_possible(step: Step) -> None:
    if isinstance(step, Device):
        raise LaunchError(
            f'device "{step.source}": a machine of its own has no devices of the host', hint="use another flavour"
        )
    if isinstance(step, Bind) and step.propagation == "shared":
        raise LaunchError(
            f'{step.about}: propagation "shared" is not possible in a machine of its own', hint="use slave or private"
        )


def _name(step: Step) -> str:
    if isinstance(step, MemoryVolume):
        step = step.bind
    return step.about if isinstance(step, Bind) else f'what is mounted on "{step.target}"'
