"""Claims with the real firewall and real namespaces behind them, in a lab that is a machine of its own."""

from __future__ import annotations

import itertools
import json
import pathlib
import shutil
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from common import locks
from tests.netlab import HOST4, Lab

ROOT = str(pathlib.Path(__file__).parent.parent.parent)
NET = "/run/rkpy/net"
UUIDS = tuple(f"{number:08}-0000-4000-8000-000000000000" for number in range(3))

# Bare, as in the monitor's child; killed at step POINT of what changes anything.
CALL = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
from common import locks
from common.errors import RkpyError
from stage1.network import cni, detach, firewall, leases, names, netns, owners, ports, record, state
from stage1.network.plan import Names, NetworkPlan, Port
from stage1.network.plugin import Call

CONF = {"name": "net", "ipam": {"type": "host-local", "subnet": "172.16.28.0/24"}}


def attach(directory, pinned):
    "As the worker does, with no interface."
    uuid = os.path.basename(directory)
    owners.register(uuid, directory)
    plan = NetworkPlan(uuid, directory, (), Names("host"), (Port("http", "tcp", "", 8080, 80),))
    done = record.Record(uuid, ports=ports.claim(plan))
    if pinned:
        done = done._replace(netns=netns.pin("/proc/self/ns/net", uuid))
    result = leases.add(Call(uuid, "", "eth0", {}, CONF, (), (), [], ""))
    addresses = [entry["address"] for entry in result["ips"]]
    elements = [*firewall.masquerade(addresses[0].partition("/")[0], addresses[0]),
                *firewall.publication(plan.ports, addresses)]
    conf = json.dumps({"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "loopback"}]})
    attachments = (record.Attachment("net", "eth0", conf, result=json.dumps(result)),)
    record.write(directory, done._replace(elements=tuple(elements), attachments=attachments))
    firewall.apply(elements, uuid)
    return addresses[0]


point, count = int(sys.argv[2]), 0


def hook(event, words):
    global count
    writes = event == "open" and words[2] & os.O_ACCMODE
    if writes or event in ("os.remove", "os.rename", "os.rmdir", "os.posix_spawn", "os.symlink", "os.mkdir"):
        count += 1
        if count == point:
            os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(hook)
verb, words = sys.argv[3], json.loads(sys.argv[4])
try:
    print(json.dumps({"attach": attach, "detach": detach.detach, "sweep": owners.sweep}[verb](*words)))
except RkpyError as error:
    sys.exit(str(error))
"""


class Machine:
    """A lab with pods' directories; nobody holds their locks, so all are dead as soon as whoever works for them is."""

    def __init__(self, lab: Lab, data: pathlib.Path) -> None:
        self.lab = lab
        self.data = data
        self.killed = False

    def pod(self, number: int) -> str:
        directory = self.data / "pods/run" / UUIDS[number]
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "lock").touch()
        return str(directory)

    def call(self, verb: str, *words: object, point: int = 0) -> Any:
        command = (sys.executable, "-I", "-S", "-c", CALL, ROOT, str(point), verb, json.dumps(words))
        finished = self.lab.finish("host", *command, check=False)
        self.killed = finished.returncode == -signal.SIGKILL
        if self.killed:
            return None
        if finished.returncode != 0:
            raise RuntimeError(finished.stderr)
        return json.loads(finished.stdout)

    def elements(self) -> str:
        return self.lab.host("nft", "list", "ruleset")

    def left(self) -> list[str]:
        """Claims and whatever else is in a file, mounts and rules."""
        claims = self.lab.host("find", NET, "!", "-type", "d", "!", "-name", "lock", "!", "-name", "last-0").split()
        mounts = [line for line in self.lab.host("cat", "/proc/self/mountinfo").splitlines() if f"{NET}/" in line]
        return [*claims, *mounts, *self.elements().split()]


@pytest.fixture
def machine(tmp_path: pathlib.Path) -> Iterator[Machine]:
    with Lab() as lab:
        yield Machine(lab, tmp_path)


def test_nothing_is_left_after_the_last_pod(machine: Machine) -> None:
    first, second = machine.pod(0), machine.pod(1)
    with locks.acquire(f"{first}/lock", exclusive=False), locks.acquire(f"{second}/lock", exclusive=False):
        assert machine.call("attach", first, True) == "172.16.28.2/24"
        with pytest.raises(RuntimeError, match=rf"port 8080/tcp is published by pod {UUIDS[0][:8]} already"):
            machine.call("attach", second, True)
        assert machine.call("detach", first) == []
        assert machine.call("attach", second, True) == "172.16.28.3/24"
        before = machine.left()
        assert machine.call("detach", first) == []  # once more
        assert machine.call("sweep") == []
        assert machine.left() == before
        assert UUIDS[1] in machine.elements()
        assert UUIDS[0] not in machine.elements()
        assert machine.call("detach", second) == []
    assert machine.left() == []


def test_a_dead_pods_port_is_the_next_ones(machine: Machine) -> None:
    """And what the firewall has under the same key is his, whatever happens to the dead one's directory later."""
    first, second = machine.pod(0), machine.pod(1)
    machine.call("attach", first, True)
    machine.call("attach", second, True)
    assert UUIDS[0] not in machine.elements()
    before = machine.left()
    machine.call("detach", first)
    assert machine.left() == before
    assert machine.call("sweep") == [UUIDS[1]]
    assert machine.left() == []


def test_a_directory_removed_behind_our_back(machine: Machine) -> None:
    directory = machine.pod(0)
    machine.call("attach", directory, True)
    shutil.rmtree(directory)
    assert machine.call("sweep") == [UUIDS[0]]
    assert machine.left() == []


def test_a_program_of_the_host_keeps_its_port(machine: Machine) -> None:
    """Of the namespace that we are in."""
    machine.lab.serve("host", "tcp", HOST4, 8080)
    with pytest.raises(RuntimeError, match=rf"port 8080/tcp is in use by a program of the host .* {HOST4}"):
        machine.call("attach", machine.pod(0), False)
    machine.call("sweep")
    assert machine.left() == []


@pytest.mark.parametrize("pinned", [False, True])
def test_killed_anywhere_while_it_is_attached(machine: Machine, pinned: bool) -> None:
    """Each time at another step; one sweep and it is as if the pod had never been."""
    for point in itertools.count(1):
        machine.call("attach", machine.pod(0), pinned, point=point)
        killed = machine.killed
        swept = machine.call("sweep")
        assert swept in ([UUIDS[0]], [])
        assert machine.left() == []
        shutil.rmtree(machine.data)
        if not killed:
            assert swept
            assert point > 12
            return


def test_killed_anywhere_while_it_is_taken_back(machine: Machine) -> None:
    """Each time at another step; whoever needs its port has the rest taken back, and keeps what he then has."""
    for point in itertools.count(1):
        first, second = machine.pod(0), machine.pod(1)
        machine.call("attach", first, True)
        machine.call("detach", first, point=point)
        killed = machine.killed
        if UUIDS[0] in machine.elements():
            holders = machine.lab.host("find", f"{NET}/leases", "-lname", f"{UUIDS[0]} *")
            assert holders
        with locks.acquire(f"{second}/lock", exclusive=False):
            machine.call("attach", second, False)
            assert machine.call("detach", first) == []
            machine.call("sweep")
            assert UUIDS[1] in machine.elements()
            assert UUIDS[0] not in " ".join(machine.left())
        assert machine.call("sweep") == [UUIDS[1]]
        assert machine.left() == []
        shutil.rmtree(machine.data)
        if not killed:
            assert point > 12
            return
