"""`rkpy run` where limits can be kept and systemd is PID 1."""

from __future__ import annotations

from tests.vm.machine import Machine


def test_pods_keep_their_limits(machine: Machine) -> None:
    machine.passes("tests/vm/inside/pods.py")
