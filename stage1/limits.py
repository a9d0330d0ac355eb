"""What a cgroup may use: the resource isolators of an app or a pod as cgroup v2 takes them."""

from __future__ import annotations

from common.records import NamedTuple


class Limits(NamedTuple):
    """0 means no limit of its own."""

    memory: int = 0
    """Bytes (memory.max)."""
    cpu: int = 0
    """Thousandths of a core (cpu.max)."""
    cpu_weight: int = 0
    """cpu.weight, 1 to 10000."""
    pids: int = 0
    """Processes and threads (pids.max)."""
    io_bandwidth: int = 0
    """Bytes a second, for reading and for writing each (io.max)."""
    io_operations: int = 0
    """Operations a second, for reading and for writing each (io.max)."""


CONTROLLER_OF = {
    "memory": "memory", "cpu": "cpu", "cpu_weight": "cpu", "pids": "pids", "io_bandwidth": "io", "io_operations": "io",
}  # fmt: skip
"""The controller each field of Limits needs."""

FLAGS = {"memory": "--memory", "cpu": "--cpu", "cpu_weight": "--cpu-shares", "pids": "--pids-limit"}
"""The flags that ask for a limit, by its field in Limits."""
