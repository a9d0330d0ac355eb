"""What needs a kernel and a PID 1 as Debian has them: all controllers of cgroup v2, systemd, ipvlan and policers."""

from __future__ import annotations

from tests.vm.machine import Machine

MODULES = (
    "vm/inside/cgroups", "vm/inside/pods", "vm/inside/flypods", "vm/inside/networks", "vm/inside/podnets",
    "systemd/inside/limits", "systemd/inside/rootless_limits",
)  # fmt: skip


def test_all_passes_inside(machine: Machine) -> None:
    """In one machine: to boot it takes longer than most of the tests."""
    machine.passes(*(f"tests/{name}.py" for name in MODULES))
