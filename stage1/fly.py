"""The fly flavour: a chroot in a private mount namespace, everything else the host's. Not a security boundary.

The engine process becomes the app by exec, so nothing stays resident; see docs/fly.md for what is honoured, what only
warned about, and what refused.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from aci.isolators import RESOURCES
from common import files, journal, syscalls, users
from common.errors import LaunchError, PodError, UsageError, located, reason
from common.imports import seal
from common.records import NamedTuple
from stage1 import appsockets, boot, logdriver, mounts, poddir
from stage1.credentials import TARGET, VARIABLE, Credentials, show
from stage1.flavour import EnterRequest, Mount, PreparedApp, PreparedPod, ignored_machine
from stage1.limits import FLAGS, Limits
from stage1.plan import FILE, HEALTHY, JOURNALD, ON_ANY_FAILURE, READY_NOTIFY, READY_STARTED
from stage1.processes import Process, send
from stage1.rootfs import CopiedRoot, OverlayRoot, switch_root
from stage1.streams import Streams
from stage1.systemd import notify
from stage1.systemd.given import FIRST_SOCKET
from stage1.systemd.manager import Manager
from stage1.targets import AppRoot
from stage2.launch import LaunchSpec, launch, run_and_wait

if TYPE_CHECKING:
    from stage1.flylimits import Bounds

NETWORKS = False
NO_NEW_PRIVILEGES = "os/linux/no-new-privileges"
_NOTIFY = f"{appsockets.TARGET}/{appsockets.NOTIFY}"
"""Where the app has the service manager's socket."""
_PATIENCE = 90.0
"""Seconds that a service manager has to make room for the news that the pod is ready, which nobody can tell it later.
Without it the manager gives the pod up, after that time if nothing else was said (systemd-system.conf(5))."""
_STREAMS = ("--stdin", "--stdout", "--stderr")


class Plan(NamedTuple):
    """Everything `run` will mount."""

    root: OverlayRoot | CopiedRoot
    steps: tuple[mounts.Step, ...]

    def describe(self) -> list[str]:
        return [self.root.describe(), *(step.describe() for step in self.steps)]


def plan(pod: PreparedPod) -> Plan:
    """What running `pod` will mount, in order. UsageError when its volumes cannot be arranged."""
    app = pod.apps[0]
    place = poddir.rootfs(pod.directory, app.name)
    root: OverlayRoot | CopiedRoot = CopiedRoot(place)
    if app.layers:
        root = OverlayRoot(app.layers, poddir.overlay(pod.directory, app.name), place, pod.uuid)
    steps = mounts.arrange((_volume(pod, mount) for mount in app.mounts), (*_defaults(pod), *_notify_socket(pod)))
    return Plan(root, (*steps, mounts.ReadOnlyRoot()) if app.read_only_root else steps)


def _notifies(pod: PreparedPod) -> bool:
    """Whether the app is to speak to the service manager itself: it is the process that was started."""
    return bool(pod.given.notify) and (pod.apps[0].notifies or pod.ready == READY_NOTIFY)


def _notify_socket(pod: PreparedPod) -> Iterator[mounts.Step]:
    """The service manager's own. An abstract one is there already, with the host's network."""
    path = pod.given.notify
    if _notifies(pod) and os.path.exists(path):
        yield mounts.Bind(path, _NOTIFY, read_only=False, recursive=False, about="socket of the service manager")


def _volume(pod: PreparedPod, mount: Mount) -> mounts.Bind | mounts.MemoryVolume:
    bind = mounts.Bind(
        mount.source or poddir.volume(pod.directory, mount.volume),
        mounts.normalize(mount.target),
        mount.read_only,
        bool(mount.recursive),
        about=f'volume "{mount.volume}"',
        own=not mount.source,
        propagation=mount.propagation,
    )
    return mounts.MemoryVolume(bind, mount.size, mount.mode, mount.uid, mount.gid) if mount.size else bind


def _defaults(pod: PreparedPod) -> tuple[mounts.Step, ...]:
    trees = (mounts.Bind(path, path, False, True, about=path) for path in ("/dev", "/proc", "/sys"))
    files = (mounts.HostFile(path) for path in ("/etc/hosts", "/etc/resolv.conf"))
    own = (Credentials(poddir.credentials(pod.directory)),) if pod.credentials >= 0 else ()
    return (*trees, mounts.Tmpfs("/tmp", 0o1777), *files, *own)  # noqa: S108


def check(pod: PreparedPod) -> list[str]:
    """What fly will ignore of `pod`, one line each. UsageError for what cannot be ignored safely, LaunchError for a
    volume that cannot be mounted."""
    _refuse(pod)
    for step in plan(pod).steps:
        if isinstance(step, mounts.Bind):
            step.require_source()
    app = pod.apps[0]
    warnings = [
        f'fly ignores isolator "{isolator.name}" of the pod'
        for isolator in pod.isolators
        if isolator.name not in RESOURCES
    ]
    warnings += [
        f'fly ignores isolator "{isolator.name}" of app "{app.name}"'
        for isolator in app.app.isolators
        if isolator.name != NO_NEW_PRIVILEGES and isolator.name not in RESOURCES
    ]
    if _has_limits(pod):
        from stage1 import flylimits

        warnings += flylimits.check(pod)
    warnings += [
        f'fly ignores event handler "{handler.name}" of app "{app.name}": nothing stays to run it after the app'
        for handler in app.app.event_handlers
        if handler.name != "pre-start"
    ]
    warnings += [f'fly ignores network "{name}": apps use the host\'s' for name in pod.net or () if name != "host"]
    warnings += [f'fly ignores --port of "{name}": apps listen on the host itself' for name in pod.ports]
    warnings += [f"fly ignores {option}: apps have the image's files or the host's" for option in pod.name_options]
    if pod.hostname not in ("", pod.name, f"rkpy-{pod.uuid}"):
        warnings.append(f'fly ignores hostname "{pod.hostname}": apps have the host\'s')
    if app.restart.policy != "no":
        warnings.append(
            f'fly ignores --restart={app.restart.policy} of app "{app.name}": nothing stays to start it again'
        )
    if app.health is not None:
        warnings.append(f'fly ignores the health check of app "{app.name}": nothing stays to look after it')
    if pod.log_driver == JOURNALD:
        logdriver.choose(pod.log_driver, there=journal.is_there())
    if pod.log_driver == JOURNALD and not pod.given.journal:
        warnings.append(
            "fly ignores --log-driver=journald: apps have the caller's streams, which are not the journal's"
        )
    if pod.exit_policy != ON_ANY_FAILURE:
        warnings.append(f"fly ignores --exit-policy={pod.exit_policy}: the pod ends with its only app")
    warnings += [
        f'fly ignores --device={device.source} of app "{app.name}": it has all the host\'s devices'
        for device in app.devices
    ]
    return warnings + ignored_machine("fly", pod.machine)


def _refuse(pod: PreparedPod) -> None:
    if pod.mutable:
        raise UsageError("fly cannot change a running pod", hint="use another --stage1")
    if len(pod.apps) != 1:
        raise UsageError(f"fly runs one app per pod, not {len(pod.apps)}", hint="use another --stage1")
    if not pod.apps[0].app.exec:
        raise UsageError(f'app "{pod.apps[0].name}" has nothing to execute', hint="name a program with --exec")
    if pod.ready == HEALTHY:
        raise UsageError("fly cannot wait until an app is healthy: nothing stays to look", hint="use another --stage1")
    if pod.ipc == "private":
        raise UsageError("fly has no IPC namespaces", hint="leave out --ipc=private, or use another --stage1")
    if pod.private_users:
        raise UsageError("fly has no user namespaces", hint="leave out --private-users, or use another --stage1")
    if "none" in (pod.net or ()):
        raise UsageError("fly cannot take the network away from an app", hint="use another --stage1")
    if streams := [option for option in pod.asked if option in _STREAMS]:
        raise UsageError(f"fly has no {', '.join(streams)}: apps have the caller's", hint="use another --stage1")
    if pod.apps[0].streams != Streams():
        raise UsageError("fly cannot redirect the streams of an app: it has the caller's", hint="use another --stage1")
    if restrictions := [option for option in pod.asked if option not in FLAGS.values()]:
        raise UsageError(f"fly cannot enforce {', '.join(restrictions)}", hint="use another --stage1")


def _has_limits(pod: PreparedPod) -> bool:
    return any(isolator.name in RESOURCES for isolator in (*pod.isolators, *pod.apps[0].app.isolators))


def run(pod: PreparedPod) -> NoReturn:
    """Become the pod's only app. Returns by LaunchError only; the process is of no use for anything else then."""
    app = pod.apps[0]
    bounds = _bounds(pod)
    if pod.manager is not None:
        from stage1.systemd.registrar import announce

        limits = Limits() if bounds is None else bounds.together()
        announce(pod.manager, boot.begin_registrar(pod.manager), pod, limits, kind="")
    planned = plan(pod)
    if pod.debug:
        os.write(2, "".join(f"fly: {line}\n" for line in planned.describe()).encode("utf-8", "backslashreplace"))
    root, credentials = _mount(pod, planned)
    if pod.unit:
        poddir.write_word(pod.directory, poddir.UNIT, pod.unit)
    in_scope = pod.manager is not None and _join_unit(pod, pod.manager)
    if bounds is not None:
        from stage1 import flylimits

        flylimits.bound(pod, bounds, scope=in_scope)
    spec = _with_journal(pod, launch_spec(app, app.app.exec, keep_fds=(pod.lock_fd,)))
    # Last thing done outside the root; from here on signals reach the app.
    poddir.write_leader(pod.directory, os.getpid())
    manager = notify.Sender(pod.given.notify)
    seal()
    switch_root(root.fd)
    if _notifies(pod):
        spec = spec._replace(environment=(*spec.environment, *_told(pod)))
    spec = spec._replace(environment=(*spec.environment, *_credentials_variable(credentials >= 0)))
    for handler in app.app.event_handlers:
        if handler.name == "pre-start":
            # It could trace us, who have the environment of our caller. The app can be traced again, and entered.
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
            run_and_wait(spec._replace(argv=handler.exec, user="0", group="0"), "pre-start handler")
    if not _notifies(pod) or pod.ready == READY_STARTED:
        manager.send("READY=1\nSTATUS=1 app running", _PATIENCE)
    sockets = [(socket.name, FIRST_SOCKET + socket.number) for socket in app.listening]
    launch(spec, sockets=sockets, credentials=credentials)


def _mount(pod: PreparedPod, planned: Plan) -> tuple[AppRoot, int]:
    """Enter a mount namespace of the pod's and make in it what is `planned`: the app's root, and a descriptor of its
    credentials, -1 for none. LaunchError when that is not possible."""
    host = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    _leave_mount_namespace()
    if pod.credentials >= 0:
        files.make_directory(poddir.credentials(pod.directory), 0o700)
        show(pod.credentials, poddir.credentials(pod.directory))
    # Sources before anything is mounted, and after the unshare: a descriptor from before belongs to the old namespace.
    namespaces = mounts.Namespaces(mounts=host)
    sources = [mounts.open_source(step, namespaces) for step in planned.steps]
    os.close(host)
    root = planned.root.attach()
    credentials = -1
    for step, source in zip(planned.steps, sources, strict=True):
        if isinstance(step, Credentials):
            credentials = os.dup(source)
        step.apply(root, source)
    return root, credentials


def _told(pod: PreparedPod) -> Iterator[tuple[str, str]]:
    """Variables of an app that speaks to the service manager (sd_notify(3), sd_watchdog_enabled(3))."""
    yield "NOTIFY_SOCKET", pod.given.notify if pod.given.notify.startswith("@") else _NOTIFY
    if pod.given.watchdog:
        yield "WATCHDOG_USEC", str(pod.given.watchdog)


def _bounds(pod: PreparedPod) -> Bounds | None:
    """None for a pod that nobody has limited, which nothing more is loaded for."""
    if not _has_limits(pod):
        return None
    from stage1 import flylimits

    return flylimits.of(pod)


def _join_unit(pod: PreparedPod, manager: Manager) -> bool:
    """Into a scope of the pod's own, if it is to have one: whether it has. The app is to have no child that it does not
    know."""
    from stage1.systemd.membership import Membership

    registrar = boot.begin_registrar(manager)
    membership = Membership("run", pod.directory, registrar.channel, registrar.pid)
    in_scope = membership.join()
    membership.leave()
    return in_scope


def _with_journal(pod: PreparedPod, spec: LaunchSpec) -> LaunchSpec:
    """Where the caller's streams lead to the journal, the app's are its own there, and the app is told."""
    app = pod.apps[0]
    fields = {
        "RKPY_POD_UUID": pod.uuid,
        "RKPY_POD_NAME": pod.name,
        "RKPY_APP": app.name,
        "RKPY_IMAGE_ID": app.image_id,
        "RKPY_IMAGE_NAME": app.image_name,
        "RKPY_PID": str(os.getpid()),
    }
    renamed = pod.log_driver != FILE and bool(pod.given.journal)
    text = f'App "{app.name}" of pod "{pod.name or pod.uuid}" started'
    journal.event(journal.STARTED, text, fields, moved=True, known=renamed)
    if not renamed:
        return spec
    from stage1 import journalstream

    stream = journalstream.rename(pod.given.journal, app.name)
    return spec._replace(environment=(*spec.environment, ("JOURNAL_STREAM", stream))) if stream else spec


def _credentials_variable(there: bool) -> tuple[tuple[str, str], ...]:
    return ((VARIABLE, TARGET),) if there else ()


def launch_spec(app: PreparedApp, argv: tuple[str, ...], *, keep_fds: tuple[int, ...]) -> LaunchSpec:
    """How to launch `argv` as `app`."""
    section = app.app
    return LaunchSpec(
        app_name=app.name,
        argv=argv,
        environment=section.environment,
        user=section.user,
        group=section.group,
        supplementary_gids=section.supplementary_gids,
        working_directory=section.working_directory,
        no_new_privileges=any(item.name == NO_NEW_PRIVILEGES and item.value is True for item in section.isolators),
        keep_fds=keep_fds,
        keeps_groups=not users.can_drop_groups(),
    )


def _leave_mount_namespace() -> None:
    """A mount namespace of our own, which still hears of the host's mounts but never tells it of ours: shared
    propagation made rkt's mounts grow without bound (rkt/rkt#2351)."""
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
    except OSError as error:
        raise LaunchError(f"cannot make a mount namespace: {reason(error)}") from error


def enter(request: EnterRequest) -> NoReturn:
    """Become `request.command` (default: a shell) beside the running app, as the same user in the same root."""
    leader = poddir.read_leader(request.directory)
    if leader is None:
        raise PodError("the pod has no leader yet", hint="wait until it runs")
    own = _credentials_variable(os.path.isdir(poddir.credentials(request.directory)))
    try:
        _join(request.directory, leader)
    except (ProcessLookupError, FileNotFoundError) as error:  # the latter from below /proc/PID, when it goes meanwhile
        raise PodError("the pod isn't currently running") from error
    except OSError as error:
        raise LaunchError(f"cannot enter the pod: {located(error)}") from error
    argv = request.command or (("/bin/bash",) if os.access("/bin/bash", os.X_OK) else ("/bin/sh",))
    spec = launch_spec(request.app, argv, keep_fds=())
    launch(_as_requested(spec._replace(environment=(*spec.environment, *own)), request))


def _as_requested(spec: LaunchSpec, request: EnterRequest) -> LaunchSpec:
    """`spec` with what the request says instead of the app's manifest."""
    if request.privileged:
        spec = spec._replace(user="0", group="0", supplementary_gids=(), no_new_privileges=False)
    elif request.user:
        user, _, group = request.user.partition(":")
        spec = spec._replace(user=user, group=group, supplementary_gids=())
    return spec._replace(working_directory=request.cwd or spec.working_directory)


def _join(directory: str, leader: poddir.Leader) -> None:
    """Enter the cgroup, where the pod has limits, and the namespace of the process `leader` and of no other: what was
    opened counts only if the leader is found alive afterwards. setns(2) also makes the namespace's root ours, even when
    the app has changed its own since."""
    with Process(leader.pid, leader.start_time) as process:
        if not leader.is_alive():
            raise ProcessLookupError(errno.ESRCH, "the leader belongs to an earlier boot")
        namespace = os.open(f"/proc/{leader.pid}/ns/mnt", os.O_RDONLY)
        procs = _open_procs(directory, leader)
        process.require_alive()
    if os.fstat(namespace).st_ino != leader.mount_namespace:
        raise ProcessLookupError(errno.ESRCH, "the leader left the pod's mount namespace")
    if procs >= 0:
        from stage1.entrance import follow

        follow(procs)
    seal()
    syscalls.setns(namespace, syscalls.CLONE_NEWNS)
    os.chdir("/")


def _open_procs(directory: str, leader: poddir.Leader) -> int:
    """A descriptor by which this process gets into the leader's cgroup; -1 for a pod without limits."""
    if not os.path.exists(f"{directory}/{poddir.LIMITS}"):
        return -1
    from stage1 import flylimits

    return flylimits.open_procs(directory, leader.pid)


def stop(directory: str, *, force: bool) -> None:
    """SIGTERM to the leader, or to what is left of the pod when the leader is gone; with `force` SIGKILL to all of it.
    Never to a process group: the caller's shell may be in it."""
    leader = poddir.read_leader(directory)
    if leader is None or leader.boot_id != poddir.boot_id():
        return
    if not force and send(leader.pid, leader.start_time, signal.SIGTERM):
        return
    for pid, started in members(directory, leader):
        send(pid, started, signal.SIGKILL if force else signal.SIGTERM)


def send_signal(directory: str, app: str, number: int) -> None:
    """To the leader, which is the only app."""
    leader = poddir.read_leader(directory)
    if leader is None or leader.boot_id != poddir.boot_id() or not send(leader.pid, leader.start_time, number):
        raise PodError("the pod isn't currently running")


def members(directory: str, leader: poddir.Leader) -> Iterator[tuple[int, int]]:
    """PIDs and start times of the pod's living processes. Goes on until a look at all processes finds no new one, so
    that a pod that forks while it is being killed does not get away."""
    seen: set[tuple[int, int]] = set()
    found = True
    while found:
        found = False
        for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
            started = poddir.start_time(pid)
            if started is None or pid == os.getpid() or (pid, started) in seen:
                continue
            if not _is_member(directory, leader, pid):
                continue
            seen.add((pid, started))
            found = True
            yield pid, started


def _is_member(directory: str, leader: poddir.Leader, pid: int) -> bool:
    """In the pod's mount namespace, or holding the pod's lock from a namespace of its own. Numbers of namespaces are
    used again, so its mounts have to name the pod as well; and a pod's namespace is never the one we are in ourselves,
    whatever a damaged record says: a mistake here would end everything on the host."""
    try:
        namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
        if namespace == leader.mount_namespace != os.stat("/proc/self/ns/mnt").st_ino:
            return _mounts_name(pid, os.path.basename(os.path.realpath(directory)))
        return _holds_lock(pid, os.stat(f"{directory}/{poddir.LOCK}"))
    except OSError:
        return False


def _mounts_name(pid: int, uuid: str) -> bool:
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="replace") as file:
        return any(uuid in line for line in file)


def _holds_lock(pid: int, lock: os.stat_result) -> bool:
    """Whether `pid` has the locked description of the lock file open; having merely the file open means nothing."""
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            if not os.path.samestat(os.stat(f"/proc/{pid}/fd/{fd}"), lock):
                continue
            with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii", errors="replace") as file:
                if any(line.startswith("lock:") for line in file):
                    return True
        except OSError:
            continue
    return False


def gc(directory: str) -> None:
    """Remove the pod's cgroup, if one was made: the mounts went with the last process, and all else lies in the pod
    directory."""
    from stage1 import cgroup

    cgroup.gc(directory)
