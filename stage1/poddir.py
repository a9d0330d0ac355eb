"""Where things lie inside a pod directory; the on-disk half of the contract between stage0 and a flavour.

    lock                      OFD-locked by whoever works on the pod, then by the pod itself while it lives
    pod                       the pod manifest (JSON)
    pod-created               empty; its mtime is the creation time
    flavour                   the name of the stage1 flavour
    pid                       "PID STARTTIME MNTNS BOOT": the pod's leader; its mtime is the start time
    starting                  there while a flavour that needs time to start the apps has recorded its leader already
    appsinfo/APP/manifest     the image manifest the app was made from
    appsinfo/APP/layers       the names of the layers below the app's root, lowest first, one a line
    overlay/APP/{upper,work}  what the app wrote (absent for a copied root)
    rootfs/APP                where the app's root appears, or the copied root itself
    volumes/NAME              empty volumes
    control                   the socket of the pod's monitor
    limits                    what became of the limits asked for, one a line: "APP NAME VERDICT: DETAIL"
    volumes/APP.POINT         what a mount point of the app's image without a volume was given
    share                     empty; where a virtual machine's monitor has what the machine can reach of the host
    console.log               the end of what its console has said
    credentials               empty; where the pod has its credentials, in mount namespaces of its own
    etc/{hosts,hostname}      for apps whose image has none
    status/APP                how the app ended, see `read_ending`
    started/APP               "PID STARTTIME" of the app's process; its mtime is when the app was started last
    health/APP                how the app is, in a word, and why; for apps with a health check
    sockets/APP               sockets by which the app speaks to the monitor (stage1.appsockets)
    restarts/APP              how many times the app has been started again, decimal
    name                      the pod's name, when it has one
    private-users             "SHIFT:COUNT": the host IDs of the pod's user namespace, when it has one
    apps-lock                 locked while the set of apps of a running pod is changed
    unit                      the unit of systemd that the pod is in, or was
    machine                   its name with machined
    logs/APP                  what the app has written, older files as APP.1, … (stage1.logs)
    run-flags                 what was typed for its last run, for the next (stage0.runflags)
    log-driver                "journald" or "file": where the apps' output is kept

The layout is documented for users in docs/on-disk-format.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

from common.records import NamedTuple

LOCK = "lock"
MANIFEST = "pod"
CREATED = "pod-created"
FLAVOUR = "flavour"
PID = "pid"
STARTING = "starting"
CONTROL = "control"
LIMITS = "limits"
NAME = "name"
PRIVATE_USERS = "private-users"
APPS_LOCK = "apps-lock"
LOG_DRIVER = "log-driver"
UNIT = "unit"
MACHINE = "machine"
HARDWARE = "hardware"
RUN_FLAGS = "run-flags"


def make_place(path: str) -> None:
    """The directory in the pod directory that `path` is to be in, for root alone: whoever may look at pods
    (docs/systemd.md, "What is installed") would be root by a setuid program of an app's, and speak in its name by its
    sockets."""
    with suppress(FileExistsError):
        os.mkdir(os.path.dirname(path), 0o700)


def app_info(pod: str, app: str, name: str) -> str:
    return f"{pod}/appsinfo/{app}/{name}"


def rootfs(pod: str, app: str) -> str:
    return f"{pod}/rootfs/{app}"


def overlay(pod: str, app: str) -> str:
    return f"{pod}/overlay/{app}"


def volume(pod: str, name: str) -> str:
    return f"{pod}/volumes/{name}"


def implicit_volume(pod: str, app: str, point: str) -> str:
    """Names of apps and points have no dots in them, so that neither two of these meet nor one and a volume's."""
    return f"{pod}/volumes/{app}.{point}"


def implicit_volumes(pod: str, app: str) -> list[str]:
    """The names of those of `app` in the directory of volumes, unfinished ones too."""
    try:
        return [name for name in os.listdir(f"{pod}/volumes") if name.startswith(f"{app}.")]
    except FileNotFoundError:
        return []


def credentials(pod: str) -> str:
    return f"{pod}/credentials"


def etc(pod: str, name: str) -> str:
    return f"{pod}/etc/{name}"


def status(pod: str, app: str) -> str:
    return f"{pod}/status/{app}"


def started(pod: str, app: str) -> str:
    return f"{pod}/started/{app}"


def all_started(pod: str) -> list[str]:
    """The apps that have ever been started."""
    try:
        # No app has a dot in its name; what `_write_text` was interrupted in has.
        return sorted(name for name in os.listdir(f"{pod}/started") if "." not in name)
    except FileNotFoundError:
        return []


def restarts(pod: str, app: str) -> str:
    return f"{pod}/restarts/{app}"


def health(pod: str, app: str) -> str:
    return f"{pod}/health/{app}"


class Leader(NamedTuple):
    """The process a pod stands and falls with, named so that a reused PID cannot be taken for it."""

    pid: int
    start_time: int
    """Clock ticks after boot, field 22 of /proc/PID/stat (proc(5))."""
    mount_namespace: int
    """Inode number of /proc/PID/ns/mnt: every process of a fly pod shares it."""

    boot_id: str
    """/proc/sys/kernel/random/boot_id: what a boot starts early has the same PID and start time in every boot."""

    def is_alive(self) -> bool:
        return start_time(self.pid) == self.start_time and boot_id() == self.boot_id


def boot_id() -> str:
    """The kernel's name for this boot (random(4))."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def start_time(pid: int) -> int | None:
    """When process `pid` started, in clock ticks after boot; None when there is no such process or it is a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def write_leader(pod: str, pid: int) -> None:
    """Record `pid` as the pod's leader; written whole or not at all."""
    mount_namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
    _write_text(f"{pod}/{PID}", f"{pid} {start_time(pid)} {mount_namespace} {boot_id()}")


def read_leader(pod: str) -> Leader | None:
    """The recorded leader, or None when the pod never got one."""
    try:
        with open(f"{pod}/{PID}", encoding="ascii") as file:
            pid, started, namespace, boot = file.read().split()
        return Leader(int(pid), int(started), int(namespace), boot)
    except (FileNotFoundError, ValueError):
        return None


def write_started(pod: str, app: str, pid: int) -> None:
    """Record the main process of `app`, which has not ended yet."""
    try:
        os.unlink(status(pod, app))
    except FileNotFoundError:
        pass
    _write_of_app(started(pod, app), f"{pid} {start_time(pid) or 0}")


def write_restarts(pod: str, app: str, times: int) -> None:
    """Record how many times `app` has been started again."""
    _write_of_app(restarts(pod, app), str(times))


def write_health(pod: str, app: str, text: str) -> None:
    """Record how `app` is: a word of `stage1.health`, and why."""
    _write_of_app(health(pod, app), text)


def read_health(pod: str, app: str) -> tuple[str, str]:
    """ "starting", "healthy" or "unhealthy", and why; empty when nobody looks."""
    try:
        with open(health(pod, app), encoding="utf-8", errors="replace") as file:
            state, _, text = file.read(4096).strip().partition(" ")
        return state, text
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return "", ""


def read_started(pod: str, app: str) -> tuple[int, int] | None:
    """PID and start time of the main process of `app`; None when it was never started."""
    try:
        with open(started(pod, app), encoding="ascii") as file:
            pid, start = file.read(64).split()
        return int(pid), int(start)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def write_status(pod: str, app: str, text: str) -> None:
    """Record how `app` ended."""
    _write_of_app(status(pod, app), text)


def _write_of_app(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o750, exist_ok=True)
    _write_text(path, text)


def _write_text(path: str, text: str) -> None:
    """Whole or not at all."""
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(f"{text}\n")
    os.rename(f"{path}.new", path)


class LimitReport(NamedTuple):
    """What became of one limit."""

    app: str
    """"-" for a limit of the whole pod."""
    name: str
    verdict: str
    """"enforced", "adjusted" or "not enforceable", a colon, and the particulars."""


def write_word(pod: str, name: str, word: str) -> None:
    """What one of the files UNIT and MACHINE is to say. They are for `list` and `status` only, and no pod fails for
    them."""
    with suppress(OSError), open(f"{pod}/{name}", "w", encoding="utf-8") as file:
        file.write(f"{word}\n")


def write_limits(pod: str, reports: Iterable[tuple[str, str, str, str]]) -> None:
    """Record what became of the limits, each an app, or an empty name for one of the whole pod, the limit's name, the
    verdict and the particulars; written whole or not at all."""
    lines = (f"{app or '-'} {name} {verdict}: {detail}" for app, name, verdict, detail in reports)
    _write_text(f"{pod}/{LIMITS}", "\n".join(lines))


def read_limits(pod: str) -> list[LimitReport]:
    """What was recorded; empty when nothing was."""
    try:
        with open(f"{pod}/{LIMITS}", encoding="utf-8", errors="replace") as file:
            return [LimitReport(*line.rstrip("\n").split(" ", 2)) for line in file if line.count(" ") >= 2]
    except FileNotFoundError:
        return []


def read_word(pod: str, name: str) -> str:
    """What one of the files UNIT and MACHINE says; empty when it is not there."""
    words = _words(f"{pod}/{name}")
    return words[0] if words else ""


class Hardware(NamedTuple):
    """What a pod's virtual machine is made of."""

    acceleration: str
    cpus: int
    memory: int
    """Bytes."""
    kernel: str
    """Its release."""


def write_hardware(pod: str, hardware: Hardware) -> None:
    _write_text(f"{pod}/{HARDWARE}", " ".join(map(str, hardware)))


def read_hardware(pod: str) -> Hardware | None:
    """None for a pod that is no machine, or has not been started."""
    words = _words(f"{pod}/{HARDWARE}")
    if len(words) != 4 or not all(word.isascii() and word.isdigit() for word in words[1:3]):
        return None
    return Hardware(words[0], int(words[1]), int(words[2]), words[3])


class Ending(NamedTuple):
    """How an app ended, as `status/APP` tells it: the exit status (128+N for a signal), then words."""

    status: int
    signal: int = 0
    """The signal that ended it; 0 when it exited by itself."""
    oom: bool = False
    """It was killed because its memory limit was reached."""
    stopped: bool = False
    """It ended because somebody asked it to."""


def read_ending(pod: str, app: str) -> Ending | None:
    """How `app` ended; None when nothing was recorded that makes sense. Words that mean nothing here are passed over:
    a later rkpy may have written them."""
    words = _words(status(pod, app))
    if not words or not _is_number(words[0]):
        return None
    number = words[words.index("signal", 1) + 1 :][:1] if "signal" in words[1:] else []
    return Ending(
        status=int(words[0]),
        signal=int(number[0]) if number and _is_number(number[0]) else 0,
        oom="oom" in words[1:],
        stopped="stopped" in words[1:],
    )


def read_status(pod: str, app: str) -> int | None:
    """The recorded exit status of `app`, or None when there is none that makes sense."""
    ending = read_ending(pod, app)
    return None if ending is None else ending.status


def read_restarts(pod: str, app: str) -> int:
    """How many times `app` has been started again."""
    words = _words(restarts(pod, app))
    return int(words[0]) if words and _is_number(words[0]) else 0


def write_private_range(pod: str, first: int, count: int) -> None:
    """Record the host IDs the pod's user namespace has; written whole or not at all."""
    _write_text(f"{pod}/{PRIVATE_USERS}", f"{first}:{count}")


def read_private_range(pod: str) -> tuple[int, int] | None:
    """The first host ID of the pod's user namespace and how many there are; None when the pod has none."""
    words = _words(f"{pod}/{PRIVATE_USERS}")
    first, _, count = words[0].partition(":") if words else ("", "", "")
    return (int(first), int(count)) if _is_number(first) and _is_number(count) else None


def read_name(pod: str) -> str:
    """The pod's name; empty when it has none."""
    return read_word(pod, NAME)


def write_log_driver(pod: str, driver: str) -> None:
    """Record where the apps' output is kept; written whole or not at all."""
    _write_text(f"{pod}/{LOG_DRIVER}", driver)


def read_log_driver(pod: str) -> str:
    """What was recorded; empty when nothing was."""
    words = _words(f"{pod}/{LOG_DRIVER}")
    return words[0] if words else ""


def _words(path: str) -> list[str]:
    """The words of a small file, none when it is missing or is not for us to read."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(256).split()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
        return []


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20
