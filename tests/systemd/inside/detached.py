"""`--detach`, and when something goes wrong: no pod is left that keeps its name, and none that was prepared is lost."""

from __future__ import annotations

import signal
import subprocess

import pytest

from tests.cgroups import until
from tests.host.commands import Rkpy
from tests.systemd import units

NAME = "example.com/busybox"
RUN = ("--insecure-options=image", "run", "--stage1=nspawn", "--net=none", "--pod-name=loose")
SLEEP = (NAME, "--exec=/bin/sleep", "--", "1000")


def states(rkpy: Rkpy) -> list[str]:
    return [line.split("\t")[3] for line in rkpy.ok("list", "--no-legend").splitlines() if line.endswith("loose")]


def test_a_detached_pod_is_a_service_of_its_own(rkpy: Rkpy) -> None:
    """Also when a service starts it, as these tests are one: nothing is to be said of that one's cgroup."""
    done = rkpy(*RUN, "--reload-signal=HUP", "--detach", *SLEEP)
    assert (done.status, done.err) == (0, "")
    uuid = done.out.strip()
    shown = units.show(
        "rkpy-loose.service",
        "ActiveState",
        "Type",
        "KillMode",
        "SuccessExitStatus",
        "TimeoutStopUSec",
        "Slice",
        "Delegate",
    )
    assert shown == {
        "ActiveState": "active", "Type": "notify", "KillMode": "mixed", "SuccessExitStatus": "143",
        "TimeoutStopUSec": "35s", "Slice": "machine.slice", "Delegate": "yes",
    }  # fmt: skip
    assert "unit=rkpy-loose.service" in rkpy.ok("status", uuid)
    assert f"reload {uuid} " in units.show("rkpy-loose.service", "ExecReload")["ExecReload"]
    units.run("systemctl", "stop", "rkpy-loose.service")
    assert "state=exited" in rkpy.ok("status", uuid)
    said = units.messages(units.journal("_SYSTEMD_UNIT=rkpy-loose.service"))
    assert not [line for line in said if "garbage" in line]
    rkpy.ok("rm", uuid)


def test_without_a_bus_nothing_is_prepared(rkpy: Rkpy) -> None:
    with units.no_bus():
        assert "cannot connect to the bus" in rkpy.refused(*RUN, "--detach", *SLEEP)
    assert not states(rkpy)


def test_a_pod_that_was_prepared_stays_so(rkpy: Rkpy) -> None:
    uuid = rkpy.ok("prepare", "--pod-name=loose", *SLEEP).strip()
    try:
        with units.no_bus():
            rkpy.refused("run-prepared", "--detach", uuid)
        rkpy.refused("run-prepared", "--net=nonesuch", "--detach", uuid)
        assert states(rkpy) == ["prepared"]
    finally:
        rkpy.ok("rm", uuid)


def test_a_service_that_fails_leaves_no_pod(rkpy: Rkpy) -> None:
    assert "says why" in rkpy.refused(*RUN, "--detach", NAME, "--exec=/nonesuch")
    # One line it was, also here in a service that is not delegated: the pod was not to run in that.
    assert "prepared" not in states(rkpy)
    units.becomes("rkpy-loose.service", LoadState="not-found")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_interrupted_while_he_waits_has_no_pod(rkpy: Rkpy, number: signal.Signals) -> None:
    options = ("--detach", "--ready=healthy", NAME, "--health-cmd=false", *SLEEP[1:])
    waiting = subprocess.Popen(
        rkpy.command(*RUN, *options),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=rkpy.environment(),
    )  # fmt: skip
    until(lambda: "running" in states(rkpy))
    waiting.send_signal(number)
    waiting.communicate(timeout=units.TIMEOUT)
    assert waiting.returncode != 0
    units.becomes("rkpy-loose.service", LoadState="not-found")
    assert not {"prepared", "running"} & set(states(rkpy))


def test_where_the_uuid_is_to_be_is_seen_first(rkpy: Rkpy) -> None:
    rkpy.refused(*RUN, "--detach", "--uuid-file-save=/nonesuch/uuid", *SLEEP)
    assert not {"prepared", "running"} & set(states(rkpy))
    units.becomes("rkpy-loose.service", LoadState="not-found")


def test_pods_are_detached_while_systemd_is_executed_anew(rkpy: Rkpy) -> None:
    """Each is started once, whatever became of what systemd was told."""
    with units.executed_anew():
        for _ in range(2):
            done = rkpy(*RUN, "--detach", *SLEEP)
            assert (done.status, done.err) == (0, "")
            assert states(rkpy).count("running") == 1
            rkpy.ok("stop", done.out.strip())
            until(lambda: "running" not in states(rkpy))
            until(lambda done=done: rkpy("rm", done.out.strip()).status == 0)  # type: ignore[misc]
