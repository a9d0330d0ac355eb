"""The kvm flavour: a pod in a virtual machine, on a kernel of the distribution's, looked after as nspawn's pods are.

This module runs in the engine. See docs/kvm.md, and `stage1.vm` for the machine.
"""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from typing import NoReturn

from common.errors import UsageError
from stage1 import compiling, logdriver, poddir, resources, supervised
from stage1.flavour import EnterRequest, PreparedApp, PreparedPod
from stage1.plan import PodPlan
from stage1.processes import send

NETWORKS = True
gc, send_signal, attach, endpoints = supervised.gc, supervised.send_signal, supervised.attach, supervised.endpoints
app_start, app_stop, app_restart = supervised.app_start, supervised.app_stop, supervised.app_restart
app_rm, app_states = supervised.app_rm, supervised.app_states


def check(pod: PreparedPod) -> list[str]:
    """What kvm will ignore of `pod`, one line each. UsageError for what cannot be ignored safely, LaunchError for what
    is missing on this host."""
    _refuse(pod)
    _, warnings = compiling.check(_for_machine(_as_it_runs(pod)), "kvm")
    return [*_ignored(pod), *warnings]


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


def _for_machine(pod: PreparedPod) -> PreparedPod:
    """Without what concerns the host's kernel only."""
    apps = tuple(app._replace(mounts=tuple(mount._replace(propagation="") for mount in app.mounts)) for app in pod.apps)
    return pod._replace(apps=apps, private_users=False, private_range=(0, 0), ipc="private")
