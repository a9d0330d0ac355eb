"""The testbed itself, and pods as a shell and as a service start them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cgroups import until
from tests.host.commands import Rkpy
from tests.systemd import units

NAME = "example.com/busybox"
RUN = ("--insecure-options=image", "run", "--stage1=nspawn", "--net=none")
SHELL = ("--exec", "/bin/sh", "--", "-c")


def test_systemd_is_here() -> None:
    assert Path("/proc/1/comm").read_text() == "systemd\n"
    assert units.run("busctl", "--system", "status").stdout
    assert units.run("machinectl", "list", "--no-legend").returncode == 0
    assert units.run("loginctl", "list-users", "--no-legend").returncode == 0


def test_these_tests_are_a_service() -> None:
    assert units.cgroup_of(os.getpid()).endswith(".service")


def test_a_scope_is_nobodys_service() -> None:
    said = units.run(*units.in_scope("cat", "/proc/self/cgroup", unit="test-basic.scope")).stdout
    assert "0::/system.slice/test-basic.scope" in said.splitlines()


def test_a_session_is_one_of_logind() -> None:
    said = units.run(*units.in_session("cat", "/proc/self/cgroup")).stdout
    path = next(line for line in said.splitlines() if line.startswith("0::"))
    assert path.startswith("0::/user.slice/user-0.slice/session-")


def test_services_their_states_and_what_they_say() -> None:
    with units.service("sh", "-c", "echo hello; exit 7", properties={"SyslogIdentifier": "basic"}) as name:
        units.becomes(name, ActiveState="failed", ExecMainStatus="7")
        (entry,) = units.logged(f"_SYSTEMD_UNIT={name}", "SYSLOG_IDENTIFIER=basic")
        assert entry["MESSAGE"] == "hello"
    units.becomes(name, LoadState="not-found")


@pytest.mark.parametrize("place", [units.in_scope, units.in_session], ids=["scope", "session"])
def test_a_pod_from_a_shell(rkpy: Rkpy, place: Callable[..., list[str]]) -> None:
    done = units.run(*place(*rkpy.command(*RUN, NAME, *SHELL, "echo in the pod; exit 3")), check=False)
    assert (done.stdout, done.returncode) == ("in the pod\n", 3), done


@pytest.mark.parametrize("delegate", ["yes", "no"])
def test_a_pod_in_a_service(rkpy: Rkpy, delegate: str) -> None:
    words = units.in_service(
        *rkpy.command(*RUN, NAME, *SHELL, "echo in the pod; exit 3"), properties={"Delegate": delegate}
    )
    done = units.run(*words, check=False)
    assert (done.stdout, done.returncode) == ("in the pod\n", 3), done


def test_a_service_that_is_stopped_stops_its_pod(rkpy: Rkpy) -> None:
    script = "trap 'echo stopped; exit 0' TERM; echo up; sleep 1000 & wait"
    command = rkpy.command(*RUN, NAME, *SHELL, script)
    with units.service(*command, properties={"Delegate": "yes", "KillMode": "mixed"}) as name:
        until(lambda: "up" in units.messages(units.journal(f"_SYSTEMD_UNIT={name}")))
        units.run("systemctl", "stop", name)
        assert "stopped" in units.messages(units.journal(f"_SYSTEMD_UNIT={name}"))
