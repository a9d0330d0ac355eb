"""What pods are attached with where the kernel is Debian's: it has what others may lack."""

from __future__ import annotations

from tests.vm.machine import Machine


def test_pods_are_attached(machine: Machine) -> None:
    machine.passes("tests/vm/inside/networks.py", "tests/vm/inside/podnets.py")
