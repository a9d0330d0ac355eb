"""What was said about a pod's virtual machine, put together: for flavours whose pods are some (`MACHINES`)."""

from __future__ import annotations

from collections.abc import Mapping

from common.errors import UsageError
from stage0 import behaviour
from stage0.config import Config
from stage1.flavour import Flavour, PreparedPod

PARAMETERS = "RKPY_HYPERVISOR_EXTRA_KERNEL_PARAMS"
"""The environment variable with parameters for the kernel, as rkt's RKT_HYPERVISOR_EXTRA_KERNEL_PARAMS."""


def settle(pod: PreparedPod, flavour: Flavour, settings: Config, environment: Mapping[str, str]) -> PreparedPod:
    """`pod` with what the configuration and the environment say as well: its own words win, and of parameters for the
    kernel, of which the last of a name counts for the most part, all are given, in this order. Raises UsageError."""
    if not getattr(flavour, "MACHINES", False):
        return pod
    own, general = pod.machine, settings.machine
    try:
        extra = behaviour.parameters(environment.get(PARAMETERS, ""))
    except UsageError as error:
        raise UsageError(f"{PARAMETERS}: {error.message.partition(': ')[2]}", hint=error.hint) from error
    merged = own._replace(
        acceleration=own.acceleration or general.acceleration,
        kernel=own.kernel or general.kernel,
        parameters=" ".join(filter(None, (general.parameters, own.parameters, extra))),
        memory=own.memory or general.memory,
        cpu=own.cpu or general.cpu,
    )
    if len(merged.parameters) > behaviour.PARAMETERS_LIMIT:
        raise UsageError(
            f"the parameters for the machine's kernel come to {len(merged.parameters)} characters: more than "
            f"{behaviour.PARAMETERS_LIMIT}",
            hint=f"they are those of stage1.d, --kvm-params and {PARAMETERS} together",
        )
    return pod._replace(machine=merged)
