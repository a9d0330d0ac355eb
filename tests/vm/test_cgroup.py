"""stage1.cgroup where every controller is there to be had."""

from __future__ import annotations

from tests.vm.machine import Machine


def test_limits_are_kept(machine: Machine) -> None:
    machine.passes("tests/vm/inside/cgroups.py")
