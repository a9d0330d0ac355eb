"""The kvm flavour: a pod in a virtual machine, on a kernel of the distribution's, looked after as nspawn's pods are.

This module runs in the engine. See docs/kvm.md, and `stage1.vm` for the machine.
"""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from common.errors import PodError, UsageError
from stage1 import boot, compiling, control, poddir, resources, supervised
from stage1.flavour import EnterRequest, PreparedApp, PreparedPod
from stage1.limits import Limits
from stage1.processes import send
from stage1.vm import acceleration, networks, programs
from stage1.vm import size as sizes
from stage1.vm.bootfiles import boot_files
from stage1.vm.machine import Machine

NETWORKS = True
MACHINES = True
_BOOT_TIMEOUT = {acceleration.KVM: 60, acceleration.TCG: 300}
"""Seconds in which a guest has to be up; a hundred times as long as it takes where nothing else runs."""
_EXTENSION = 20
"""Seconds that a service manager is asked for while it is found out whether KVM works."""
_PATIENCE = 30.0
"""Seconds that a monitor has to do what it is asked, which takes it none where it gets to run."""
gc, send_signal, attach, endpoints = supervised.gc, supervised.send_signal, supervised.attach, supervised.endpoints
app_start, app_stop, app_restart = supervised.app_start, supervised.app_stop, supervised.app_restart
app_rm, app_states, reload = supervised.app_rm, supervised.app_states, supervised.reload


def check(pod: PreparedPod) -> list[str]:
    """What kvm will ignore of `pod`, one line each. UsageError for what cannot be ignored safely, LaunchError for what
    is missing on this host."""
    _refuse(pod)
    warnings = [*_ignored(pod), *networks.check(pod)]
    warnings += compiling.check(_for_machine(_as_it_runs(pod)), "kvm")[1]
    if pod.starts:
        made, _, _ = _machine(pod)  # or say now why there can be none
        # Under a limit of the pod's nobody expects more.
        cramped = iter(()) if made.limits.memory else _short_of_memory(pod.apps, made.memory)
    else:
        cramped = _cramped(pod)
    return [*warnings, *cramped]


def _refuse(pod: PreparedPod) -> None:
    """What an app would miss in there that it was promised."""
    if pod.ipc == "parent":
        raise UsageError("--ipc=parent: a virtual machine shares no memory with the host", hint="leave it out")
    if pod.given.sockets:
        raise UsageError(
            "kvm cannot hand the service manager's sockets to an app", hint="publish a port, or use another flavour"
        )
    for app in pod.apps:
        for device in app.devices:
            raise UsageError(f'app "{app.name}": a virtual machine has no device {device.source} of the host')
        for mount in app.mounts:
            _refuse_special(mount.volume, mount.source)


def _refuse_special(volume: str, source: str) -> None:
    try:
        mode = os.stat(source).st_mode if source else stat.S_IFDIR
    except OSError:
        return  # That is found out, and said, where it is mounted.
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise UsageError(
            f'volume "{volume}": {source} is neither a directory nor a file, and nothing else can be reached from a '
            "virtual machine"
        )


def _ignored(pod: PreparedPod) -> Iterator[str]:
    if pod.private_users:
        yield "kvm ignores --private-users: the users of a virtual machine are its own"
    for app in pod.apps:
        for mount in app.mounts:
            if mount.propagation not in ("", "private"):
                yield f'kvm ignores propagation={mount.propagation} of volume "{mount.volume}"'


def _cramped(pod: PreparedPod) -> Iterator[str]:
    """What apps may have that are added to a machine which runs, and which was made without knowing of them."""
    made = poddir.read_hardware(pod.directory) if _runs(pod) else None
    if made is None:
        return
    yield from _short_of_memory(pod.apps, made.memory)
    for app in pod.apps:
        wanted = -(-resources.of_app(app.app.isolators).cpu // 1000)
        if wanted > made.cpus:
            yield f'app "{app.name}" may use {wanted} processors, but the pod\'s virtual machine has {made.cpus}'
        for volume, room in {mount.volume: mount.size for mount in app.mounts}.items():
            if room > sizes.OUTSIDE:
                yield (
                    f'the volume "{volume}" may take {_mebibytes(room)} of memory that the pod was not given when it '
                    "started: where the host limits memory, filling it can end the pod"
                )


def _short_of_memory(apps: Sequence[PreparedApp], memory: int) -> Iterator[str]:
    for app in apps:
        limit = resources.of_app(app.app.isolators).memory
        if limit > memory:
            yield (
                f'app "{app.name}" may use {_mebibytes(limit)}, but the pod\'s virtual machine has '
                f"{_mebibytes(memory)} (see memory in stage1.d)"
            )


def _mebibytes(size: int) -> str:
    return f"{size >> 20} MiB"


def _runs(pod: PreparedPod) -> bool:
    leader = poddir.read_leader(pod.directory)
    return leader is not None and leader.is_alive()


def _as_it_runs(pod: PreparedPod) -> PreparedPod:
    """A pod that runs already, and is to have one more app, with what it was started with."""
    if not _runs(pod):
        return pod
    return supervised.as_started(pod)


def _for_machine(pod: PreparedPod) -> PreparedPod:
    """Without what concerns the host's kernel only."""
    apps = tuple(app._replace(mounts=tuple(mount._replace(propagation="") for mount in app.mounts)) for app in pod.apps)
    return pod._replace(apps=apps, private_users=False, private_range=(0, 0), ipc="private", own_kernel=True)


def run(pod: PreparedPod) -> NoReturn:
    """Become the pod's monitor, which exits with the pod's status."""
    machine, outside, kernel = _machine(pod)
    poddir.write_hardware(pod.directory, poddir.Hardware(machine.acceleration, machine.cpus, machine.memory, kernel))
    supervised.announce(pod, "vm", outside)
    made = compiling.compile_pod(_for_machine(pod))
    supervised.run(pod, made._replace(machine=machine, limits=outside))


def _machine(pod: PreparedPod) -> tuple[Machine, Limits, str]:
    """The pod's, the limits of the processes that are it, and the release of its kernel. Raises LaunchError."""
    options = pod.machine
    qemu, virtiofsd = programs.qemu(), programs.virtiofsd()
    boots = boot_files(options.kernel, f"{pod.data_directory}/cache/kvm")
    wanted = options.acceleration or acceleration.AUTO
    accelerated, kind = acceleration.choose(wanted, qemu, boots, waits=_telling(pod))
    size = _size(pod, accelerated)
    user, group = programs.user(pod.uuid)
    machine = Machine(
        qemu=qemu,
        virtiofsd=virtiofsd,
        kernel=boots.kernel,
        initramfs=boots.initramfs,
        parameters=acceleration.parameters(accelerated, size.cpus, signed=boots.signed, more=options.parameters),
        acceleration=accelerated,
        kind=kind,
        cpu=acceleration.cpu(accelerated, options.cpu),
        cpus=size.cpus,
        memory=size.memory,
        interfaces=len(pod.networks),
        limits=resources.of_pod(pod.isolators),
        boot_timeout=_BOOT_TIMEOUT[accelerated],
        user=user,
        group=group,
    )
    return machine, size.outside, boots.release


def _telling(pod: PreparedPod) -> Callable[[], None]:
    """Has whoever waits for the pod, and its service manager, hear what it waits for."""
    said: list[str] = []

    def tell() -> None:
        text = "waiting for a first guest, which shows whether KVM works here"
        if not said:
            said.append(text)
            boot.complain("run", text)
        if pod.given.notify:
            boot.tell_manager(pod.given.notify, f"STATUS={text}\nEXTEND_TIMEOUT_USEC={_EXTENSION * 1_000_000}")

    return tell


def _size(pod: PreparedPod, accelerated: str) -> sizes.Size:
    """How large the pod's machine is when it is `accelerated` so, a word of `acceleration`."""
    return sizes.of(
        resources.of_pod(pod.isolators),
        [resources.of_pod(app.app.isolators) for app in pod.apps],
        acceleration=accelerated,
        host_memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        host_cpus=len(os.sched_getaffinity(0)),
        memory=pod.machine.memory,
        volumes=resources.volumes(pod),
    )


def of_unit(pod: PreparedPod) -> Limits:
    """As `resources.of_unit`: what the machine may use, whichever way it will be accelerated, and what is beside it."""
    whole, machine = resources.of_pod(pod.isolators), _size(pod, acceleration.TCG).outside
    return machine._replace(
        memory=machine.memory + resources.BESIDE.memory,
        pids=machine.pids + resources.BESIDE.pids,
        io_bandwidth=whole.io_bandwidth,
        io_operations=whole.io_operations,
    )


def app_add(pod: PreparedPod, app: PreparedApp) -> None:
    """Tell the running pod of an app, which `app_start` starts."""
    pod = _as_it_runs(pod)._replace(apps=(app,))
    _refuse(pod)
    pod = _for_machine(pod)
    supervised.app_add(pod, pod.apps[0])


def enter(request: EnterRequest) -> NoReturn:
    """Run the command beside the app, with its identity and restrictions unless the request says otherwise."""
    from stage1.vm.visitor import visit

    os._exit(visit(request.directory, request.app.name, supervised.launch_of(request)))


def stop(directory: str, *, force: bool) -> None:
    """Ask the monitor to have the apps stopped, or switch the machine off."""
    leader = poddir.read_leader(directory)
    if leader is None or leader.boot_id != poddir.boot_id():
        return
    if not force:
        send(leader.pid, leader.start_time, signal.SIGTERM)
        return
    try:
        control.request(directory, {"op": "switch-off"}, patience=_PATIENCE)
    except PodError:  # The monitor does not listen, or not yet, or is suspended. The machine dies with it.
        send(leader.pid, leader.start_time, signal.SIGKILL)
