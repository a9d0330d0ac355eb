"""Which service manager a pod that is started here is to be a unit of, and whether it is in one already.

Root's pods are units of the system's. An ordinary user's are units of his own, where he has one: while he is logged in,
or for ever (loginctl(1), "enable-linger"). In a service they stay in that, whosever it is.
"""

from __future__ import annotations

import os
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from common.errors import SystemdError
from common.records import NamedTuple
from stage0 import caller
from stage1 import poddir
from stage1.systemd import given, manager
from stage1.systemd.manager import Manager

if TYPE_CHECKING:
    from stage0.pods import Pod


class Place(NamedTuple):
    """A pod's among units."""

    manager: Manager | None = None
    """Who is to make it known, None for nobody."""
    unit: str = ""
    """The unit that it stays in when there is nobody to ask about it."""


def find() -> Manager | None:
    """The service manager of who called us, None when he has none."""
    if not given.booted():
        return None
    if not caller.is_ordinary():
        return manager.SYSTEM
    runtime = caller.runtime(os.environ)
    found = manager.of_user(caller.UID, runtime)
    return found if runtime and os.path.exists(found.bus) else None


def place(*, keep_unit: bool) -> Place:
    """Of a pod that is started here; `keep_unit` as it was typed."""
    if not caller.is_ordinary():
        return Place(find())
    if not given.booted():
        return Place()
    from stage1.systemd import units

    # machined is told of nobody's pods but root's, and so there is nothing to say of one that stays.
    return Place(unit=units.own()) if units.stays(keep_unit) else Place(find())


def is_delegated(unit: str) -> bool:
    """Whether our own service manager says that `unit` is: one of a user's cannot mark cgroups as the system's does. Of
    a unit that is none of its own it has nothing to say, and when it does not answer the pod runs without."""
    found = find()
    if not unit or found is None or found.is_system or not _is_below(found.cgroup):
        return False
    from stage1.systemd.bus import SYSTEMD, Bus

    try:
        with closing(Bus(found.bus)) as bus:
            path = bus.call(SYSTEMD, "GetUnit", "s", (unit,))[0]
            kind = unit.rpartition(".")[2].capitalize()
            return bool(bus.get(SYSTEMD[0], path, f"org.freedesktop.systemd1.{kind}", "Delegate"))
    except SystemdError:
        return False


def _is_below(place: str) -> bool:
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        return any(f":/{place}/" in line for line in file)


def come_near(pod: Pod) -> None:
    """Move this process into the unit of a running pod, if it is to start something that the pod's limits bound. An
    ordinary user may not leave the cgroup of his session by himself, but his service manager, and the system's for a
    service of his, take his processes in (AttachProcessesToUnit in org.freedesktop.systemd1(5)). Where that does not
    work, whoever joins the pod's cgroup later is told so by the kernel."""
    leader = pod.leader()
    unit = poddir.read_word(pod.path, poddir.UNIT)
    if not caller.is_ordinary() or leader is None or not unit:
        return
    from stage1 import cgroup

    above, found, below = cgroup.of_process(leader.pid).partition(f"/{unit}")
    top = f"{above}{found}"
    if not found or f"{cgroup.of_process('self')}/".startswith(f"{top}/"):
        return
    theirs = find()
    whose = theirs if theirs is not None and f"/{theirs.cgroup}/" in f"{above}/" else manager.SYSTEM
    leaf = f"/{cgroup.SUPERVISOR}"
    with suppress(SystemdError):
        from stage1.systemd.bus import SYSTEMD, Bus

        where = leaf if os.path.isdir(top + leaf) else below or "/"
        with closing(Bus(whose.bus)) as bus:
            bus.call(SYSTEMD, "AttachProcessesToUnit", "ssau", (unit, where, [os.getpid()]))
