"""What pods of this machine claim of the network, one name a claim, in memory: a reboot takes it, as it takes the
interfaces.

    lock                        locked while claims are made, judged or dropped, and while the firewall is changed
    pods/UUID                   -> "LOCK DATA/pods": where the directories of the pod's states are (`owners`)
    leases/NETWORK/ADDRESS      -> "UUID INTERFACE": an address (`leases`)
    leases/NETWORK/last-N       the address of range N given out last
    ports/PROTOCOL-PORT-HOSTIP  -> "UUID": a published port, HOSTIP "any" for all (`ports`)
    names/NETWORK/UUID          what the pods of a network call each other (`names`)
    firewall/UUID               what a pod has in the table of the firewall (`firewall`)
    netns/UUID                  the pod's network namespace, where a plugin that is a program has to find it

What has an arrow is a symbolic link that leads nowhere: its target is who claims the name. symlink(2) makes it whole or
not at all and replaces nobody's, and readlink(2) takes a third of the time that reading a file does.
"""

from __future__ import annotations

import os

from common import files, locks
from common.errors import NetworkError, PodError, reason

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


def take(claim: str, holder: str) -> None:
    """Make `claim`, a path. FileExistsError when somebody has it; NetworkError when it cannot be made."""
    try:
        try:
            os.symlink(holder, claim)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(claim), mode=0o755, exist_ok=True)
            os.symlink(holder, claim)
    except FileExistsError:
        raise
    except OSError as error:
        raise NetworkError(f"claim {claim}: {reason(error)}") from error


def holder(claim: str) -> str:
    """Who has `claim`; empty when nobody has, or what is there makes no sense."""
    try:
        return os.readlink(claim)
    except OSError:
        return ""


def drop(claim: str) -> None:
    """Missing is fine. NetworkError when it stays."""
    try:
        os.unlink(claim)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise NetworkError(f"drop the claim {claim}: {reason(error)}") from error


def release(claim: str, whose: str) -> None:
    """Drop `claim` if it is still `whose`. Takes the lock, or it could be somebody else's by the time of unlink(2)."""
    with lock():
        if holder(claim) == whose:
            drop(claim)


def drop_nonsense(claim: str) -> None:
    """Drop `claim` if it is no link, and so nothing that we made. A directory stays."""
    with lock():
        if not holder(claim) and not os.path.isdir(claim):
            drop(claim)


def drop_directory(directory: str) -> None:
    """If there is nothing in it."""
    try:
        os.rmdir(directory)
    except OSError:
        pass


def listing(*parts: str) -> list[str]:
    """The names in a directory here; none when there is no such one. NetworkError when it cannot be read."""
    try:
        return os.listdir(path(*parts))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise NetworkError(f"open {path(*parts)}: {reason(error)}") from error
