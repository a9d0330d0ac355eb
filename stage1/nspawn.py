"""The nspawn flavour: a pod in namespaces of its own, looked after by a supervisor that is its PID 1.

This module runs in the engine. It turns the pod into a plan (`stage1.plan`) and becomes the monitor, which carries it
out; see docs/nspawn.md.
"""

from __future__ import annotations

import os
import signal
from typing import NoReturn

from common import users
from common.errors import PodError
from stage1 import boot, cgroup, poddir, resources, supervised
from stage1.compiling import check as check_common
from stage1.compiling import compile_pod
from stage1.flavour import EnterRequest, PreparedApp, PreparedPod, ignored_machine
from stage1.plan import AppPlan, EnterPlan, dumps
from stage1.processes import send
from stage2 import capabilities

NETWORKS = True
gc, send_signal, attach, endpoints = supervised.gc, supervised.send_signal, supervised.attach, supervised.endpoints
app_start, app_stop, app_restart = supervised.app_start, supervised.app_stop, supervised.app_restart
app_rm, app_states, reload = supervised.app_rm, supervised.app_states, supervised.reload
_AS_GOOD_AS_ROOT = ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_DAC_READ_SEARCH")


def check(pod: PreparedPod) -> list[str]:
    """What nspawn will ignore of `pod`, one line each. UsageError for what cannot be ignored safely, LaunchError for a
    volume that cannot be mounted."""
    pod = _as_it_runs(pod)
    made, warnings = check_common(pod, "nspawn")
    warnings += (danger for app in made.apps for danger in _dangers(pod, app))
    return [*warnings, *ignored_machine("nspawn", pod.machine), *_unenforceable(pod)]


def _as_it_runs(pod: PreparedPod) -> PreparedPod:
    """A pod that runs already, and is to have one more app, with the network and the IPC namespace it has."""
    leader = poddir.read_leader(pod.directory)
    if leader is None or not leader.is_alive():
        return pod
    net, ipc = (_shares(leader.pid, kind) for kind in ("net", "ipc"))
    return supervised.as_started(pod)._replace(net=("host",) if net else ("none",), ipc="parent" if ipc else "private")


def _shares(pid: int, kind: str) -> bool:
    """Whether the process is in our namespace of this kind (namespaces(7))."""
    try:
        return os.path.samefile(f"/proc/{pid}/ns/{kind}", f"/proc/self/ns/{kind}")
    except FileNotFoundError as error:
        raise PodError("the pod has just ended") from error


def _dangers(pod: PreparedPod, app: AppPlan) -> list[str]:
    """Warnings for an app that is given what makes its root the host's, or its network (docs/security.md)."""
    if pod.private_range[1]:
        return []
    if users.confined():
        # The mount namespace in which the monitor has the host's files belongs to the pod's user namespace. Linux finds
        # it for whoever may administer that one: from 6.12 on by NS_MNT_GET_NEXT (ioctl_nsfs(2)), from 6.18 on by
        # handles of namespaces (open_by_handle_at(2)). PID 1 may, and can be made to.
        held = [name for name in ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE") if _has(app, name)]
        return [f'app "{app.name}" can get at all that its user has by {", ".join(held)}'] if held else []
    held = [name for name in _AS_GOOD_AS_ROOT if _has(app, name)]
    found = [f'app "{app.name}" can become root of the host by {", ".join(held)}'] if held else []
    # By the identifier that the kernel has for the namespace at the other end of a veth (IFLA_TARGET_NETNSID).
    if _has(app, "CAP_NET_ADMIN") and "none" not in (pod.net or ()):
        found.append(f'app "{app.name}" can change the network of the host by CAP_NET_ADMIN')
    return [f"{danger}; --private-users keeps it from that" for danger in found]


def _has(app: AppPlan, capability: str) -> bool:
    return capabilities.number(capability) in (app.launch.capabilities or ())


def _unenforceable(pod: PreparedPod) -> list[str]:
    """A warning for each limit that cannot be kept here; UsageError for one that was typed."""
    below = pod.manager.cgroup if pod.manager else ""
    why = cgroup.enforceable(pod.directory, boot.ours(), below=below, delegated=pod.delegated)
    wanted = [("the pod", resources.of_pod(pod.isolators))]
    wanted += [(f'app "{app.name}"', resources.of_pod(app.app.isolators)) for app in pod.apps]
    return resources.unenforceable(wanted, why, pod.asked)


def run(pod: PreparedPod) -> NoReturn:
    """Become the pod's monitor, which exits with the pod's status."""
    supervised.announce(pod, "container", resources.of_unit(pod))
    supervised.run(pod, compile_pod(pod))


def app_add(pod: PreparedPod, app: PreparedApp) -> None:
    """Tell the running pod of an app, which `app_start` starts."""
    supervised.app_add(_as_it_runs(pod), app)


def enter(request: EnterRequest) -> NoReturn:
    """Run the command beside the app, with its identity and restrictions unless the request says otherwise."""
    app = request.app.name
    started = poddir.read_started(request.directory, app)
    if started is None or poddir.start_time(started[0]) != started[1]:
        raise PodError(f'app "{app}" is not running')
    made = EnterPlan(request.directory, app, *started, supervised.launch_of(request))
    boot.execute("enter", dumps(made))


def stop(directory: str, *, force: bool) -> None:
    """Ask the supervisor to stop the apps, or kill it and with it everything in the pod."""
    leader = poddir.read_leader(directory)
    if leader is not None and leader.boot_id == poddir.boot_id():
        send(leader.pid, leader.start_time, signal.SIGKILL if force else signal.SIGTERM)
