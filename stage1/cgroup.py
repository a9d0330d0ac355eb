"""The cgroups of a pod (cgroups(7), Documentation/admin-guide/cgroup-v2.rst): one for the supervisor, one for each app.

    BASE/UUID/_init   the supervisor; no app has this name, because names of apps have no underscore
    BASE/UUID/APP     one app, with its limits

BASE is the monitor's own cgroup when systemd has delegated it, else `rkpy` at the top of the hierarchy. Only cgroup v2
is used. Where there is none a pod runs without: nothing fails here, and `enforceable` says why no limit can be kept.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from common import users
from common.errors import LaunchError, PodError, reason
from common.records import NamedTuple
from stage1.cgroupfiles import NOT_ENFORCEABLE, Report, counter, end_as_a_whole, keep, read, settings, try_write, write
from stage1.limits import FLAGS, Limits

if TYPE_CHECKING:
    from stage1.loop import Loop

CONTROLLERS = ("cpu", "io", "memory", "pids")
"""All of them are enabled for every pod: they account for what the limits bound."""

RECORD = "cgroup"
"""The file in the pod directory that names the pod's cgroup."""
USUAL = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
"""Where systemd mounts it, the latter beside hierarchies of version 1."""
TOP = "rkpy"
INIT = "_init"
SUPERVISOR = "supervisor"
MAX_DEPTH = 12
"""Levels an app that may make cgroups can add: few enough for any of their paths to fit into PATH_MAX."""
DEATH = 10.0
"""Seconds that killed processes are given to be gone."""
_MOMENT = 0.25
"""Seconds of those in which everything else waits. A process takes longer that the kernel cannot interrupt."""
_PAUSE = 0.1


class Place(NamedTuple):
    """Where the cgroups of pods are made."""

    mount: str
    """The cgroup2 mount; empty when there is none."""
    base: str
    """The directory that has one for each pod; does not exist yet perhaps."""
    delegated: bool
    refusal: str
    """Why no cgroups can be made; empty when they can."""


# Where


def find(*, delegated: bool = False) -> Place:
    """Where this process may make cgroups. `delegated`: whether its service manager has said that the unit it is in is;
    that of a user cannot mark the cgroup."""
    mount = _mount(read("/proc/self/mountinfo"))
    if mount is None:
        return Place("", "", False, "no cgroup2 file system is mounted")
    root, place = mount
    own = _own(read("/proc/self/cgroup"))
    base = _delegated(place, _below(root, own), delegated)
    if base:
        return Place(place, base, True, _cannot_write(base))
    refusal = "without root it takes a delegated cgroup (Delegate=yes)"
    if os.geteuid() == 0 and not users.confined():
        refusal = _cannot_write(place)
    return Place(place, f"{place}/{TOP}", False, refusal)


def _of_manager(below: str) -> Place:
    """Where a user's service manager makes scopes, which are delegated to whom they are made for."""
    mount = _mount(read("/proc/self/mountinfo"))
    if mount is None:
        return Place("", "", False, "no cgroup2 file system is mounted")
    root, place = mount
    path = f"{place}{_below(root, f'/{below}')}"
    known = path != place and os.path.isdir(path)
    return Place(place, path, True, "" if known else f"there is no {path}")


def _mount(mountinfo: str) -> tuple[str, str] | None:
    """What of the hierarchy is mounted, and where (proc(5)): in the usual place, or else anywhere; a root that
    a process is to change to may have one, too. The last mount covers those before it."""
    usual = other = None
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split(" ", 1)[0] == "cgroup2":
            root, place = fields.split(" ")[3:5]
            if place in USUAL:
                usual = root, place
            else:
                other = root, _unescape(place)
    return usual or other


def _unescape(path: str) -> str:
    for code, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        path = path.replace(f"\\{code}", character)
    return path


def _own(cgroup: str) -> str:
    """This process's cgroup in the v2 hierarchy, from its root or that of its cgroup namespace."""
    return next((line[3:] for line in cgroup.splitlines() if line.startswith("0::")), "/")


def _below(root: str, own: str) -> str:
    """`own` as a path in a mount that shows the hierarchy from `root` on; empty when it is not in there."""
    if root == "/":
        return "" if own == "/" or own.startswith("/..") else own
    return own.removeprefix(root) if own.startswith(f"{root}/") else ""


def _delegated(mount: str, own: str, known: bool) -> str:
    """The directory of our cgroup when systemd says it is ours to divide, or of the one above when ours is but a leaf
    of it (DelegateSubgroup=, or an earlier `_enter_leaf`)."""
    if not own:
        return ""
    path = f"{mount}{own}"
    above, name = os.path.split(path)
    if _is_delegated(path, known):
        return path
    unit = name.endswith((".service", ".scope", ".slice"))
    return above if not unit and above != mount and _is_delegated(above, known) else ""


def _is_delegated(path: str, known: bool) -> bool:
    """systemd marks what it delegates (CGROUP_DELEGATION), and gives it to the unit's user. What was given to somebody
    else is no place for pods of ours: their owner could mark it, and meddle."""
    try:
        if os.stat(path).st_uid != os.geteuid():
            return False
    except OSError:
        return False
    if known and path.endswith((".service", ".scope")):
        return True
    for name in ("trusted.delegate", "user.delegate"):
        try:
            return os.getxattr(path, name) == b"1"
        except OSError:
            continue
    return False


def _cannot_write(path: str) -> str:
    """Why cgroups cannot be made in `path`, or empty."""
    try:
        writable = os.access(path, os.W_OK) and os.access(f"{path}/cgroup.procs", os.W_OK)
    except OSError as error:
        return f"cannot use {path}: {reason(error)}"
    if writable:
        return ""
    read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    return f"{path} is mounted read-only" if read_only else f"{path} belongs to somebody else"


# What can be enforced


def enforceable(
    directory: str, ours: Collection[int] = (), *, below: str = "", delegated: bool = False
) -> dict[str, str]:
    """For each of CONTROLLERS why it cannot be used for a pod whose directory this is, or an empty string. Changes
    nothing. Neither this process nor those of `ours`, by PID, are in the way: by then they are gone or moved. Others
    may not be moved. `below`: where the pod is going to have a scope, the cgroup of who makes it. `delegated` as for
    `find`."""
    place = _of_manager(below) if below else find(delegated=delegated)
    moved = {str(os.getpid()), *map(str, ours)}
    answers = {name: place.refusal or _unavailable(place, name, moved) for name in CONTROLLERS}
    answers["io"] = answers["io"] or disk_or_why(directory)[1]
    return answers


def _unavailable(place: Place, controller: str, ours: set[str]) -> str:
    above = place.base if place.delegated else place.mount
    if controller not in read(f"{above}/cgroup.controllers").split():
        if _is_v1(controller):
            return f"the {controller} controller is on a cgroup v1 hierarchy"
        return f"the {controller} controller is not available in {above}"
    return "" if _can_distribute(above, controller, ours) else f"processes run in {above} itself"


def _is_v1(controller: str) -> bool:
    name = "blkio" if controller == "io" else controller
    lines = (line.split(":", 2) for line in read("/proc/self/cgroup").splitlines())
    return any(name in fields[1].split(",") for fields in lines)


def _can_distribute(path: str, controller: str, ours: set[str]) -> bool:
    """A controller cannot be enabled below a cgroup that has processes, the root of the hierarchy excepted."""
    if controller in read(f"{path}/cgroup.subtree_control").split() or not os.path.exists(f"{path}/cgroup.type"):
        return True
    return not set(read(f"{path}/cgroup.procs").split()) - ours


def disk(directory: str) -> str:
    """The disk the directory lies on, as MAJOR:MINOR; empty when there is none."""
    return disk_or_why(directory)[0]


def disk_or_why(directory: str) -> tuple[str, str]:
    """The disk `directory` lies on as io.max wants it, whole and not a partition, and why there is none."""
    device = os.stat(directory).st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"
    place = os.path.realpath(f"/sys/dev/block/{numbers}")
    if not os.path.isdir(place):
        return "", f"the file system of {directory} is not on one block device"
    if os.path.exists(f"{place}/partition"):
        numbers = read(f"{os.path.dirname(place)}/dev").strip()
    return numbers, ""


# The cgroups of one pod


class PodCgroup:
    """A pod's cgroups, or nothing at all where `path` is empty; every method can be called in either case."""

    def __init__(self, directory: str, path: str, owner: tuple[int, int] | None, refusal: str) -> None:
        self.path = path
        self.refusal = refusal
        """Why there are no cgroups."""
        self._directory = directory
        self._disk = disk_or_why(directory)
        self._owner = owner
        self._known_delegated = False
        """As for `find`."""
        self._unit = ""
        """The cgroup of the pod's own scope, whose limits systemd has set."""
        self._limits = Limits()
        self._reports: list[Report] = []

    @classmethod
    def create(
        cls,
        directory: str,
        uuid: str,
        limits: Limits,
        owner: tuple[int, int] | None = None,
        *,
        helpers: Collection[int] = (),
        scope: bool = False,
        delegated: bool = False,
    ) -> PodCgroup:
        """The cgroup of the pod `uuid`, which lies in `directory`. `owner`: the pod's root, user and group, when it has
        a user namespace. May move this process and `helpers`, children of it, into a leaf of its delegated cgroup. With
        `scope` that is a scope of the pod's own, and the pod's limits are the scope's. `delegated` as for `find`.
        LaunchError on refusal."""
        place = find(delegated=delegated or scope)
        pod = cls(directory, "" if place.refusal else f"{place.base}/{uuid}", owner, place.refusal)
        pod._known_delegated = delegated or scope
        if pod.path:
            _record(directory, pod.path)
            try:
                pod._make_first(place, helpers)
            except OSError as error:
                raise LaunchError(f'cannot make the pod\'s cgroup "{pod.path}": {reason(error)}') from error
        pod._unit = place.base if scope and place.delegated else ""
        pod._limits = limits
        pod._apply("", limits)
        return pod

    def init_fd(self) -> int:
        """A descriptor of the supervisor's cgroup for CLONE_INTO_CGROUP, the caller's to close; -1 without cgroups."""
        return os.open(f"{self.path}/{INIT}", os.O_PATH | os.O_DIRECTORY) if self.path else -1

    def app(self, name: str, limits: Limits, asked: Sequence[str] = ()) -> int:
        """Make the cgroup of an app, or use it again: a descriptor for CLONE_INTO_CGROUP, the caller's to close; -1
        without cgroups. LaunchError on refusal, also of limits that were `asked` for, by their flags."""
        path = f"{self.path}/{name}"
        if self.path:
            try:
                self._make(path)
            except FileExistsError:
                pass
            except OSError as error:
                raise LaunchError(f'cannot make the cgroup of app "{name}": {reason(error)}') from error
        self._apply(name, limits, asked)
        return os.open(path, os.O_PATH | os.O_DIRECTORY) if self.path else -1

    def renew(self, name: str, limits: Limits, asked: Sequence[str] = ()) -> int:
        """The cgroup of an app anew, with nothing left in it of what was there; a descriptor as from `app`.

        A cgroup that was killed (cgroup.kill) is of no further use: Linux 6.15 and later also kill what is born into it
        from another cgroup (CLONE_INTO_CGROUP) afterwards."""
        if self.path and os.path.exists(f"{self.path}/{name}"):
            self.remove_app(name)
        return self.app(name, limits, asked)

    def report(self) -> list[Report]:
        """What became of every limit asked for, the pod's first."""
        return list(self._reports)

    def kill(self, app: str | None = None) -> bool:
        """SIGKILL for everything in the app's cgroup, or the pod's. Does not wait. False when there is none."""
        path = f"{self.path}/{app}" if app is not None else self.path
        return bool(self.path) and _kill(path)

    def is_populated(self, app: str) -> bool:
        """Whether any process of the app, left-over ones too, is alive."""
        return bool(self.path) and _is_populated(f"{self.path}/{app}")

    def oom_kills(self, app: str) -> int:
        """How many processes of the app were killed for want of memory since its cgroup was made."""
        return counter(f"{self.path}/{app}/memory.events", "oom_kill") if self.path else 0

    def remove_app(self, name: str) -> None:
        """Kill what is left of the app and remove its cgroup. PodError when something does not die."""
        self._forget(name)
        if self.path:
            _destroy(f"{self.path}/{name}")

    def when_gone(self, loop: Loop, name: str, call: Callable[[], None], late: Callable[[], None]) -> None:
        """Kill what is left of the app, and call once nothing is and its cgroup is removed, which is usually at once:
        before this returns. `late` is called when it has taken DEATH seconds."""
        patience = time.monotonic() + DEATH
        self._forget(name)

        def look(seconds: float) -> None:
            nonlocal patience
            if not self.path or _try_destroy(f"{self.path}/{name}", seconds):
                call()
                return
            if time.monotonic() >= patience:
                patience = float("inf")
                late()
            loop.call_later(_PAUSE, lambda: look(0.0))

        look(_MOMENT)

    def remove(self) -> None:
        """Kill what is left of the pod and remove all its cgroups. PodError when something does not die."""
        if self.path:
            _destroy(self.path)
            _remove_top(self.path)

    def _make_first(self, place: Place, helpers: Collection[int]) -> None:
        _make_in(place, helpers, lambda: self._make(self.path))
        os.mkdir(f"{self.path}/{INIT}")
        try_write(f"{self.path}/cgroup.max.depth", str(MAX_DEPTH))
        _enable(self.path)

    def _make(self, path: str) -> None:
        """To be moved or born from one cgroup into another a process must be allowed to write cgroup.procs of the new
        one and of the nearest they have in common; with that and no more the pod's root can start apps but not lift
        limits."""
        os.mkdir(path, 0o755)
        if self._owner is not None:
            os.chown(f"{path}/cgroup.procs", *self._owner)

    def _forget(self, app: str) -> None:
        self._reports = [report for report in self._reports if report.app != app]

    def _apply(self, app: str, limits: Limits, asked: Sequence[str] = ()) -> None:
        self._forget(app)
        path = f"{self.path}/{app}" if app else self._unit or self.path
        if self.refusal:
            names = [setting.name for setting in settings(limits, "") if setting.name != "swap"]
            if any(FLAGS.get(name) in asked for name in names):
                raise LaunchError(f"cannot set a limit of {app}: {self.refusal}")
            self._reports += (Report(app, name, NOT_ENFORCEABLE, self.refusal) for name in names)
        else:
            in_unit = path == self._unit
            self._reports += keep(path, app, limits, self._disk, unit=in_unit, why=self._why_not, asked=asked)
        # An app that lost some of its processes is of no use: it ends as a whole, and its restart policy decides.
        if self.path and app and (limits.memory or self._limits.memory):
            end_as_a_whole(path)

    def _why_not(self) -> dict[str, str]:
        return enforceable(self._directory, delegated=self._known_delegated)


def enter(directory: str, uuid: str, *, delegated: bool = False) -> str:
    """Make the cgroup of the pod `uuid`, which lies in `directory` and is this process only, and move it there: its
    path. There have to be cgroups (`Place.refusal`). `delegated` as for `find`. LaunchError when it is not possible."""
    place = find(delegated=delegated)
    path = f"{place.base}/{uuid}"
    _record(directory, path)
    try:
        _make_in(place, (), lambda: os.mkdir(path, 0o755))
        write(f"{path}/cgroup.procs", "0")
        if place.delegated:
            # Where `_make_in` has put us on the way, if nobody else is there.
            with suppress(OSError):
                os.rmdir(f"{place.base}/{SUPERVISOR}")
    except OSError as error:
        raise LaunchError(f'cannot move the pod into a cgroup "{path}": {reason(error)}') from error
    return path


def of_process(pid: int | str) -> str:
    """The cgroup that a process ("self": this one) is in, as a path; empty when it is nowhere to be seen."""
    mount = _mount(read("/proc/self/mountinfo"))
    below = _below(mount[0], _own(read(f"/proc/{pid}/cgroup"))) if mount is not None else ""
    return f"{mount[1]}{below}" if mount is not None and below else ""


def _make_in(place: Place, helpers: Collection[int], make: Callable[[], None]) -> None:
    """Make the first cgroup of a pod in BASE, which lets it have the controllers."""
    while True:
        _make_room(place, helpers)
        try:
            make()
            return
        except FileNotFoundError:
            # The last pod of others has just taken BASE with it (`_remove_top`).
            if place.delegated:
                raise


def _make_room(place: Place, helpers: Collection[int]) -> None:
    """Make BASE and let it hand out the controllers. One that cannot be enabled shows when its limit is set."""
    if place.delegated:
        _enter_leaf(place.base, (os.getpid(), *helpers))
    else:
        # systemd turns off at the top what no unit of its own needs; the kernel refuses that (EBUSY) as long as another
        # cgroup below, as BASE does, hands it on.
        _enable(place.mount)
        try:
            os.mkdir(place.base, 0o755)
        except FileExistsError:
            pass
    _enable(place.base)


def _enter_leaf(base: str, ours: Iterable[int]) -> None:
    """Leave `base` for a leaf of it: controllers cannot be enabled in a cgroup that has processes of its own."""
    inside = read(f"{base}/cgroup.procs").split()
    moving = [str(pid) for pid in ours if str(pid) in inside]
    if not moving:
        return
    try:
        os.mkdir(f"{base}/{SUPERVISOR}")
    except FileExistsError:
        pass
    for pid in moving:
        with suppress(ProcessLookupError):  # The worker may fail at any time.
            write(f"{base}/{SUPERVISOR}/cgroup.procs", pid)


def _enable(path: str) -> None:
    """One by one: a write with several is refused as a whole for the sake of one."""
    for controller in set(CONTROLLERS) & set(read(f"{path}/cgroup.controllers").split()):
        try_write(f"{path}/cgroup.subtree_control", f"+{controller}")


# The end


def gc(directory: str) -> None:
    """Kill and remove what a dead pod left behind, as its record says. PodError when the record names anything that is
    not a cgroup of this pod, or something does not die. Idempotent."""
    path = _recorded(directory)
    if not path:
        return
    if os.path.lexists(path):
        _require_cgroup_of(os.path.basename(directory.rstrip("/")), path)
        _destroy(path)
        _remove_top(path)
    os.unlink(f"{directory}/{RECORD}")


def open_procs(directory: str, app: str) -> int:
    """A descriptor to join the cgroup of an app of the pod in `directory` through: who writes 0 to it is in it. -1 for
    a pod without cgroups. OSError when it is gone."""
    path = _recorded(directory)
    return os.open(f"{path}/{app}/cgroup.procs", os.O_WRONLY) if path else -1


def lacked_memory(directory: str) -> bool:
    """Whether a process of the pod in `directory`, whose cgroup is still there, was killed for want of memory."""
    path = _recorded(directory)
    return bool(path) and counter(f"{path}/memory.events", "oom_kill") > 0


def _recorded(directory: str) -> str:
    return read(f"{directory}/{RECORD}").removesuffix("\n")


def _record(directory: str, path: str) -> None:
    """Written whole or not at all, and before there is anything to undo."""
    partial = f"{directory}/{RECORD}.new"
    with open(partial, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(f"{path}\n")
    os.rename(partial, f"{directory}/{RECORD}")


def _require_cgroup_of(uuid: str, path: str) -> None:
    mount = _mount(read("/proc/self/mountinfo"))
    below = mount is not None and path.startswith(f"{mount[1]}/") and os.path.normpath(path) == path
    if not below or mount is None or os.path.basename(path) != uuid or os.path.realpath(path) != path:
        raise PodError(f'"{path}" is not the cgroup of pod {uuid}', hint=f"the pod's file {RECORD} was changed")
    if os.stat(path).st_dev != os.stat(mount[1]).st_dev:
        raise PodError(f'"{path}" is not a cgroup')


def _destroy(path: str) -> None:
    if not _try_destroy(path, DEATH):
        raise PodError(f'cgroup "{path}" cannot be removed: processes in it do not die')


def _try_destroy(path: str, seconds: float) -> bool:
    """rmdir(2), leaves first; it says EBUSY until the last process is gone, and a fork may have escaped one kill. False
    when that is not so in time."""
    end = time.monotonic() + seconds
    while os.path.isdir(path):
        _kill(path, seconds)
        left = end - time.monotonic()
        if not _wait_until_empty(path, left) or not _remove_tree(path):
            if left <= 0:
                return False
            time.sleep(0.005)
    return True


def _wait_until_empty(path: str, seconds: float) -> bool:
    """poll(2) reports when cgroup.events has changed since it was read."""
    poll = select.poll()
    try:
        fd = os.open(f"{path}/cgroup.events", os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        poll.register(fd, select.POLLPRI)
        while (populated := b"populated 1" in os.pread(fd, 4096, 0)) and poll.poll(max(seconds, 0) * 1000):
            pass
    except OSError as error:
        if error.errno != errno.ENODEV:  # removed by somebody else meanwhile
            raise
        return True
    finally:
        os.close(fd)
    return not populated


def _remove_tree(path: str) -> bool:
    for directory, _, _ in os.walk(path, topdown=False):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise PodError(f'cannot remove cgroup "{directory}": {reason(error)}') from error
            return False
    return True


def _remove_top(path: str) -> None:
    """The last pod takes `rkpy` with it. A delegated cgroup is not ours to remove."""
    above = os.path.dirname(path)
    if os.path.basename(above) == TOP:
        try:
            os.rmdir(above)
        except OSError:
            pass


def _kill(path: str, seconds: float = DEATH) -> bool:
    try:
        write(f"{path}/cgroup.kill", "1")
    except FileNotFoundError:
        if not os.path.isdir(path):
            return False
        _kill_one_by_one(path, seconds)
    return True


def _kill_one_by_one(path: str, seconds: float = DEATH) -> None:
    """Linux before 5.14. What forks meanwhile is found by the next round; a PID is held by a pidfd before it is looked
    for a second time, so that no stranger that got it anew is hit. There is one round at least."""
    end = time.monotonic() + seconds
    while found := _processes(path):
        held = {pid: fd for pid in found if (fd := _pidfd(pid)) >= 0}
        still = _processes(path)
        for pid, fd in held.items():
            if pid in still:
                _signal(fd)
            os.close(fd)
        if time.monotonic() >= end:
            return
        time.sleep(0.001)


def _processes(path: str) -> set[int]:
    """Those of the cgroup and all below it."""
    return {int(pid) for directory, _, _ in os.walk(path) for pid in read(f"{directory}/cgroup.procs").split()}


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


def _signal(pidfd: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass


# Files


def _is_populated(path: str) -> bool:
    return counter(f"{path}/cgroup.events", "populated") == 1
