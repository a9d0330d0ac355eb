"""What a service has that runs a pod, whoever writes its unit: `rkpy systemd`, and the generator of pod files.
`rkpy@.service` says the same, and a transient service (`stage1.systemd.units`) what can be said there. Imports nothing:
the generator runs at every boot."""

from __future__ import annotations

from collections.abc import Iterator

AFTER = "network.target"
"""So that it ends before the network does, and its part of the firewall is made after other people's, as with
systemd-nspawn@.service. A user's service manager, which ends before it, does not know it."""
_MARGIN = 15
"""Seconds beyond what the pod allows its apps and their handlers until systemd kills what is left
(`stage1.systemd.units.MARGIN`)."""
_KEPT = 5
"""Dead pods of a service. Its output is in the journal; without a bound a loop of restarts would fill the disk."""


def settings(stop_timeout: int) -> Iterator[tuple[str, str]]:
    """systemd.service(5), systemd.kill(5), systemd.resource-control(5). `stop_timeout`: the pod's, in seconds."""
    yield "Type", "notify"
    yield "NotifyAccess", "main"
    yield "Slice", "machine.slice"
    yield "Delegate", "yes"
    yield "KillMode", "mixed"
    yield "TimeoutStopSec", str(2 * stop_timeout + _MARGIN)
    # An app that ends by the SIGTERM it was sent has done what it was asked to; under fly it says so itself.
    yield "SuccessExitStatus", "143"
    yield "SyslogIdentifier", "%N"
    # What systemd lets a machine have (systemd-nspawn@.service); the default is meant for a program.
    yield "TasksMax", "16384"


def after_stop(name: str) -> tuple[str, ...]:
    """Words of the command that is run when a pod has ended, in a service that runs a new one each time. `name`: the
    pod's, if it has one."""
    return ("gc", "--quiet", "--mark-only", *([f"--keep-last={name}:{_KEPT}"] if name else ()))
