"""Which service manager knows of a pod: the system's, or that of the user whose pod it is (user@.service(5))."""

from __future__ import annotations

from common.records import NamedTuple


class Manager(NamedTuple):
    """One that pods can be units of."""

    bus: str
    """The socket of the bus that it is on, a path."""
    private: str
    """The socket where it listens without a bus, a path."""
    cgroup: str = ""
    """Where its units are in the cgroup hierarchy, without a leading slash; empty for all of it."""

    @property
    def is_system(self) -> bool:
        return not self.cgroup


SYSTEM = Manager("/run/dbus/system_bus_socket", "/run/systemd/private")


def of_user(uid: int, runtime: str) -> Manager:
    """That of the user `uid`, whose runtime directory is `runtime`."""
    place = f"user.slice/user-{uid}.slice/user@{uid}.service"
    return Manager(f"{runtime}/bus", f"{runtime}/systemd/private", place)
