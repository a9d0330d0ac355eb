"""What of a pod's networks a virtual machine cannot have; for the engine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from common.errors import UsageError

if TYPE_CHECKING:
    from stage1.flavour import PreparedPod

MOST = 16
"""Network cards of one machine."""
_WITHOUT_FRAMES = "ipvlan"


def check(pod: PreparedPod) -> list[str]:
    """Warnings, a line each. UsageError for networks that a machine cannot be on."""
    if pod.net and pod.net[0] == "host":
        raise UsageError(
            "--net=host: a virtual machine has a kernel and a network of its own",
            hint="--port=… publishes its ports on the host; the flavours nspawn and fly can live in the host's network",
        )
    if pod.join:
        raise UsageError(
            f"--net=ns:{pod.join}: a virtual machine cannot live in a network namespace of this kernel",
            hint="--net=NAME attaches it to a network; the flavour nspawn can join a namespace",
        )
    if len(pod.networks) > MOST:
        raise UsageError(f"{len(pod.networks)} networks are more than a virtual machine has cards for: {MOST}")
    for network in pod.networks:
        plugins = json.loads(network.conf).get("plugins") or [{}]
        if plugins[0].get("type") == _WITHOUT_FRAMES:
            raise UsageError(
                f'network "{network.name}" is an ipvlan, which carries packets of this kernel\'s own addresses only',
                hint="a virtual machine can be on a macvlan or a bridge",
            )
    return []
