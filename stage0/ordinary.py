"""What pods cannot have whose user is not root (`stage0.rootless`): said before they start, a line each."""

from __future__ import annotations

import os
from collections.abc import Iterator

from common.errors import LaunchError, UsageError, reason
from stage1.flavour import Flavour, PreparedPod


def check(pod: PreparedPod, flavour: Flavour) -> list[str]:
    """A line for everything of `pod` that will be of no use. UsageError for what cannot be had, LaunchError for a
    device that the user may not open. Called as root of the user's namespace."""
    refuse(flavour, private_users=pod.private_users)
    for app in pod.apps:
        for mount in app.mounts:
            if mount.propagation == "shared":
                raise UsageError(
                    f'volume "{mount.volume}": propagation=shared is for root, whose mounts the host sees',
                    hint="use slave or private",
                )
    return list(_devices(pod))


def refuse(flavour: Flavour | None, *, private_users: bool) -> None:
    """UsageError for what nobody but root has, whatever the pod is made of."""
    if getattr(flavour, "MACHINES", False):
        raise UsageError("the flavour kvm is for root", hint="use nspawn or fly, or run it as root")
    if private_users:
        raise UsageError(
            "--private-users is for root: the kernel lets nobody else show files under other IDs",
            hint="leave it out: without root a pod is in a user namespace anyway",
        )


def _devices(pod: PreparedPod) -> Iterator[str]:
    for app in pod.apps:
        for device in app.devices:
            if not os.path.exists(device.source):
                continue  # That is said where it is mounted.
            if not _may_open(device.source):
                raise LaunchError(
                    f'device "{device.source}": permission denied',
                    hint="without root a pod has those devices that its user may open",
                )
            if not _may_open(device.source, without_groups=True):
                yield (
                    f'app "{app.name}" cannot open {device.source}: you may by a group that you are in, and without '
                    "root apps cannot be in it"
                )


def _may_open(path: str, *, without_groups: bool = False) -> bool:
    """Whether access(2) says so to a process of ours. LaunchError when there can be none."""
    if not without_groups:
        return os.access(path, os.R_OK | os.W_OK)
    try:
        child = os.fork()
    except OSError as error:
        raise LaunchError(f"cannot make a process: {reason(error)}") from error
    if child == 0:
        try:
            os.setgroups(())
        except OSError:
            os._exit(0)  # What cannot be changed is what the app has.
        os._exit(not os.access(path, os.R_OK | os.W_OK))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
