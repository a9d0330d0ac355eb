"""What pods of this machine claim of the network, one file a claim, in memory: a reboot takes it, as it takes the
interfaces.

    lock                        locked while claims are made, judged or dropped, and while the firewall is changed
    pods/UUID                   the pod directory's parent of parents: DATA/pods (`owners`)
    leases/NETWORK/ADDRESS      "UUID INTERFACE": an address (`leases`)
    leases/NETWORK/last-N       the address of range N given out last
    ports/PROTOCOL-PORT-HOSTIP  "UUID": a published port, HOSTIP "any" for all (`ports`)
    names/NETWORK/UUID          what the pods of a network call each other (`names`)
    firewall/UUID               what a pod has in the table of the firewall (`firewall`)
    netns/UUID                  the pod's network namespace, where a plugin that is a program has to find it
"""

from __future__ import annotations

import os

from common import files, locks
from common.errors import PodError, reason

ROOT = "/run/rkpy/net"


def path(*parts: str) -> str:
    return "/".join((ROOT, *parts))


def lock() -> locks.Lock:
    """A context manager: nobody else is at the claims or the firewall. Blocks. PodError when that cannot be."""
    try:
        os.makedirs(ROOT, mode=0o755, exist_ok=True)
        return locks.acquire(path("lock"), exclusive=True, create=0o600)
    except OSError as error:
        raise PodError(f"lock {path('lock')}: {reason(error)}") from error


def write(file: str, text: str) -> None:
    """Whole or not at all. Raises OSError."""
    os.makedirs(os.path.dirname(file), exist_ok=True)
    files.replace(file, text.encode())
