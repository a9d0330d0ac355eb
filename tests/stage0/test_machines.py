"""What is said about a machine in several places, put together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from common.errors import UsageError
from stage0 import machines
from stage0.config import Config
from stage1 import fly, kvm, nspawn
from stage1.flavour import Flavour, PreparedPod
from stage1.vm.machine import MachineOptions

WITH = SimpleNamespace(MACHINES=True)
CONFIGURED = MachineOptions("tcg", "6.1.0", "loglevel=7", 1 << 30, "max")


def settled(
    own: MachineOptions, general: MachineOptions = CONFIGURED, *, flavour: Any = WITH, environment: str = ""
) -> MachineOptions:
    pod = PreparedPod("the-uuid", "/pods/x", 3, (), None, (), (), "", "auto", False, (), (), False, machine=own)
    variables = {"RKPY_HYPERVISOR_EXTRA_KERNEL_PARAMS": environment}
    return machines.settle(pod, cast(Flavour, flavour), Config(machine=general), variables).machine


def test_the_pods_own_words_win() -> None:
    assert settled(MachineOptions()) == CONFIGURED
    own = MachineOptions("kvm", "/k", cpu="host,-avx")
    assert settled(own) == MachineOptions("kvm", "/k", "loglevel=7", 1 << 30, "host,-avx")


def test_parameters_add_up() -> None:
    own = MachineOptions(parameters="nosmp")
    assert settled(own, environment="debug").parameters == "loglevel=7 nosmp debug"
    assert settled(MachineOptions(), MachineOptions()).parameters == ""


def test_bad_parameters_of_the_environment_are_named() -> None:
    with pytest.raises(UsageError, match=r"^RKPY_HYPERVISOR_EXTRA_KERNEL_PARAMS: not a line of at most"):
        settled(MachineOptions(), environment="a\nb")


def test_more_parameters_than_a_kernel_takes_together() -> None:
    """It would not say that it leaves out the rest (COMMAND_LINE_SIZE)."""
    own, general = (MachineOptions(parameters=name * 800) for name in "ab")
    with pytest.raises(UsageError, match="come to 1601 characters: more than 1024") as caught:
        settled(own, general)
    assert "stage1.d, --kvm-params and RKPY_HYPERVISOR" in caught.value.hint


@pytest.mark.parametrize("flavour", [fly, nspawn, SimpleNamespace()])
def test_other_flavours_hear_of_their_pod_only(flavour: Any) -> None:
    own = MachineOptions("kvm")
    assert settled(own, flavour=flavour, environment="a\nb") == own


def test_kvm_has_machines() -> None:
    assert settled(MachineOptions(), flavour=kvm) == CONFIGURED
