"""What is mounted into an app of a supervised pod: its prepared form compiled into steps. Pure, but for a look at which
kinds of files the host has, and which cgroups."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from common import files, syscalls, users
from common.errors import PodError, UsageError, reason
from stage1 import appsockets, kernelfs, mounts, poddir
from stage1.credentials import TARGET, VARIABLE, Credentials
from stage1.flavour import NOTIFIES, Mount, PreparedApp, PreparedPod
from stage1.kernelfs import ONLY_CGROUP, PROC, SYS
from stage1.plan import JOURNALD, READY_NOTIFY
from stage1.resources import SHM_SIZE

DEV_SIZE = 64 << 10
TTY_GROUP = 5
"""The group terminals belong to in every distribution (devpts, `gid=`)."""
HOSTS, RESOLV_CONF = "/etc/hosts", "/etc/resolv.conf"
KERNEL_PATHS = ("/dev", "/proc", "/sys")
LINKS = (
    ("/dev/fd", "/proc/self/fd"), ("/dev/stdin", "/proc/self/fd/0"), ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"), ("/dev/ptmx", "pts/ptmx"),
)  # fmt: skip
MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/config.gz", "/proc/interrupts", "/proc/kallsyms", "/proc/kcore", "/proc/keys",
    "/proc/kmem", "/proc/latency_stats", "/proc/mem", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
    "/proc/timer_stats", "/sys/dev/block", "/sys/devices/virtual/powercap", "/sys/firmware", "/sys/fs",
    "/sys/hypervisor", "/sys/module", "/sys/power",
)  # fmt: skip
"""What rkt and podman hide, together. /sys itself is read-only."""
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
WRITABLE = ("/run", "/tmp", "/var/tmp")  # noqa: S108
"""What a read-only root leaves writable, as podman does."""


def steps(pod: PreparedPod, app: PreparedApp) -> tuple[mounts.Step, ...]:
    """Everything mounted into the root of `app`, in order. UsageError when its volumes cannot be arranged."""
    guarded = "paths" not in pod.insecure
    volumes = [_volume(pod, mount) for mount in (*app.mounts, *implicit_mounts(pod, app))]
    if guarded:
        _refuse_kernel_paths(volumes)
    devices = [kernelfs.Device(device.source, mounts.normalize(device.target)) for device in app.devices]
    covered = {f"{step.target}/" for step in volumes if step.target in KERNEL_PATHS}
    defaults = [step for step in _defaults(pod, app, guarded) if not step.target.startswith(tuple(covered))]
    arranged = mounts.arrange((*volumes, *devices), defaults)
    # The kernel's first: a symlink of the image must not lead a volume to a place that is theirs a moment later.
    arranged = tuple(sorted(arranged, key=lambda step: step.target not in KERNEL_PATHS))
    last = (mounts.ReadOnlyRoot(),) if app.read_only_root else ()
    return (*arranged, *_names_asked_for(pod), *_protection(pod, guarded, frozenset(covered)), *last)


def _defaults(pod: PreparedPod, app: PreparedApp, guarded: bool) -> Iterator[mounts.Step]:
    yield kernelfs.Kernel(PROC, "/proc", read_only=False, guarded=guarded)
    yield kernelfs.Kernel(SYS, "/sys", read_only=guarded, guarded=guarded)
    yield mounts.Tmpfs("/dev", 0o755, size=DEV_SIZE, no_exec=True, plain=True)
    yield from map(kernelfs.Node, kernelfs.NODE_NUMBERS)
    yield from (kernelfs.Link(target, text) for target, text in LINKS)
    yield _terminals(pod)
    yield mounts.Tmpfs("/dev/shm", 0o1777, size=SHM_SIZE, no_exec=True)  # noqa: S108
    if pod.ipc != "parent":
        yield kernelfs.FileSystem("mqueue", "/dev/mqueue", kernelfs.QUIET)
    yield from _names(pod, app)
    if pod.credentials >= 0:
        yield Credentials(poddir.credentials(pod.directory), pod.private_range[0])
    if app.read_only_root:
        yield from map(kernelfs.Writable, WRITABLE)
    if names := sockets(pod, app):
        place = appsockets.directory(pod.directory, app.name)
        yield mounts.Sockets(place, appsockets.TARGET, required=appsockets.NOTIFY in names)
        if appsockets.SYSLOG in names:
            yield kernelfs.Link("/dev/log", f"{appsockets.TARGET}/{appsockets.SYSLOG}")


def sockets(pod: PreparedPod, app: PreparedApp) -> tuple[str, ...]:
    """The sockets of the monitor's that `app` is to have (`stage1.appsockets`). UsageError when a volume is in their
    place that was meant for the app's word to get there."""
    names: tuple[str, ...] = (appsockets.NOTIFY,) if notifies(pod, app) else ()
    required = bool(names)
    if pod.log_driver == JOURNALD:
        names += (appsockets.JOURNAL, appsockets.SYSLOG)
    inner = f"{appsockets.TARGET}/"
    for mount in app.mounts:
        if f"{mounts.normalize(mount.target)}/".startswith(inner):
            if required:
                raise UsageError(
                    f'volume "{mount.volume}" cannot be mounted on "{mount.target}": app "{app.name}" has the socket '
                    "there by which it says that it is ready",
                    hint=f"mount it elsewhere, or give the app --annotation={NOTIFIES}=false",
                )
            return ()
    return names


def notifies(pod: PreparedPod, app: PreparedApp) -> bool:
    """Whether `app` is one that tells how it fares (sd_notify(3)): as it says itself; all do where that was asked for
    and none says so."""
    return app.notifies or (pod.ready == READY_NOTIFY and not any(other.notifies for other in pod.apps))


def credentials_variable(pod: PreparedPod) -> tuple[tuple[str, str], ...]:
    """What tells the apps where their credentials are, if they have any."""
    return ((VARIABLE, TARGET),) if pod.credentials >= 0 else ()


def _terminals(pod: PreparedPod) -> kernelfs.FileSystem:
    options: list[tuple[str, str | None]] = [("ptmxmode", "666"), ("mode", "620")]
    if pod.own_kernel or (pod.private_range[1] > TTY_GROUP if pod.private_range[1] else users.knows("gid", TTY_GROUP)):
        options.append(("gid", str(TTY_GROUP)))
    attributes = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC
    return kernelfs.FileSystem("devpts", "/dev/pts", attributes, tuple(options))


def _names(pod: PreparedPod, app: PreparedApp) -> Iterator[mounts.Step]:
    """Where the image has none, except that it cannot know the pod's name. Volumes win over these."""
    yield mounts.HostFile("/etc/hostname", poddir.etc(pod.directory, "hostname"), always=True)
    if not uses_host_network(pod):
        yield mounts.HostFile(HOSTS, poddir.etc(pod.directory, "hosts"), always=app.from_oci)
        yield mounts.HostFile(RESOLV_CONF, poddir.etc(pod.directory, "resolv.conf.default"), optional=True)
        return
    yield from (mounts.HostFile(path, path) for path in (HOSTS, RESOLV_CONF) if os.path.isfile(path))


def _names_asked_for(pod: PreparedPod) -> Iterator[mounts.Step]:
    """What flags and networks say about names, whatever the image and the volumes have (rkt's order). That of networks
    is known only once the pod is attached: without a resolv.conf in the pod directory there is nothing to mount."""
    if pod.names.hosts:
        yield mounts.HostFile(HOSTS, _or_the_hosts(pod, "hosts", pod.names.hosts[0][0]), always=True, optional=True)
    source = _or_the_hosts(pod, "resolv.conf", "".join(pod.names.dns[:1]))
    yield mounts.HostFile(RESOLV_CONF, source, always=True, optional=True)


def _or_the_hosts(pod: PreparedPod, name: str, word: str) -> str:
    return f"/etc/{name}" if word == "host" else poddir.etc(pod.directory, name)


def _protection(pod: PreparedPod, guarded: bool, covered: frozenset[str]) -> Iterator[mounts.Step]:
    """Last, so that nothing is mounted over it."""
    cgroup = (pod.own_kernel or kernelfs.has_only_cgroup2()) and "/sys/" not in covered
    if guarded:
        for path in MASKED:
            yield kernelfs.Mask(path, ONLY_CGROUP if path == "/sys/fs" and cgroup else kernelfs.EMPTY)
        yield from map(kernelfs.ReadOnlyPath, READ_ONLY)
    if cgroup:
        # Of the app's own cgroup namespace, so that it sees its own limits.
        yield kernelfs.FileSystem("cgroup2", "/sys/fs/cgroup", kernelfs.QUIET | syscalls.MOUNT_ATTR_RDONLY)


def _volume(pod: PreparedPod, mount: Mount) -> mounts.Bind | mounts.MemoryVolume:
    bind = mounts.Bind(
        mount.source or poddir.volume(pod.directory, mount.volume),
        mounts.normalize(mount.target),
        mount.read_only,
        recursive=mount.recursive is not False,
        about=f'volume "{mount.volume}"',
        own=mount.implicit or not mount.source,
        hardened=True,
        propagation=mount.propagation,
    )
    return mounts.MemoryVolume(bind, mount.size, mount.mode, mount.uid, mount.gid) if mount.size else bind


def _refuse_kernel_paths(volumes: Iterable[mounts.Bind | mounts.MemoryVolume]) -> None:
    for step in volumes:
        if _is_kernel_path(step.target):
            bind = step.bind if isinstance(step, mounts.MemoryVolume) else step
            raise UsageError(
                f'{bind.about} cannot be mounted on "{step.target}": apps have the kernel\'s own there',
                hint="mount it elsewhere, or allow it with --insecure-options=paths",
            )


def _is_kernel_path(path: str) -> bool:
    return path in KERNEL_PATHS or path.startswith(("/proc/", "/sys/"))


def uses_host_network(pod: PreparedPod) -> bool:
    return "host" in (pod.net or ())


def implicit_mounts(pod: PreparedPod, app: PreparedApp) -> list[Mount]:
    """A mount for every mount point of the image that was given no volume. `stage1.implicit` fills them."""
    taken = {mounts.normalize(mount.target) for mount in app.mounts}
    found = []
    for point in app.app.mount_points:
        target = mounts.normalize(point.path)
        # The kernel's own are no place for a volume nobody asked for; images for systemd name /sys/fs/cgroup.
        if target in taken or target == "/" or _is_kernel_path(target):
            continue
        taken.add(target)
        source = poddir.implicit_volume(pod.directory, app.name, point.name)
        name = f"{app.name}-{point.name}"
        found.append(Mount(source, target, point.read_only, recursive=False, volume=name, implicit=True))
    return found


def write_names(directory: str, hostname: str) -> None:
    """The files about names that apps are given, as far as they can be told before the pod is attached to networks.
    Raises PodError."""
    try:
        files.make_directory(f"{directory}/etc", 0o755)
        for name in ("resolv.conf", "resolv.conf.default"):
            # What the networks of an earlier run said.
            if os.path.lexists(poddir.etc(directory, name)):
                os.unlink(poddir.etc(directory, name))
        hosts = f"127.0.0.1\tlocalhost localhost.localdomain {hostname}\n::1\tlocalhost localhost.localdomain\n"
        files.replace(poddir.etc(directory, "hosts"), hosts.encode(), exact=True)
        files.replace(poddir.etc(directory, "hostname"), f"{hostname}\n".encode(), exact=True)
    except OSError as error:
        raise PodError(f"write {error.filename or directory}: {reason(error)}") from error
