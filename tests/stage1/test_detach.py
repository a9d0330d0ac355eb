"""Taking back what was done for a pod: once, twice, after a kill anywhere, after a reboot, with nothing to go by."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from common import locks
from common.errors import NetworkError, RkpyError
from stage1 import network
from stage1.network import detach, leases, owners, ports, record, state
from stage1.network.plan import Names, NetworkPlan, Port
from stage1.network.plugin import Call
from stage1.network.record import Attachment, Element, Record
from tests.claimants import Pods, claims

ROOT = pathlib.Path(__file__).parent.parent.parent
PLUGIN = """#!/bin/sh
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $(basename "$0") '$CNI_NETNS'" >>"$(dirname "$0")/log"
cat >"$(dirname "$0")/stdin"
if test -e "$(dirname "$0")/broken"; then
    echo '{"cniVersion": "1.0.0", "code": 7, "msg": "cannot"}'
    exit 1
fi
"""


class Plugins:
    """A directory with programs that write down how they are called."""

    def __init__(self, directory: pathlib.Path) -> None:
        directory.mkdir()
        self.directory = str(directory)
        self._log = directory / "log"
        self._broken = directory / "broken"
        for name in ("first", "second"):
            (directory / name).write_text(PLUGIN)
            (directory / name).chmod(0o755)

    def calls(self) -> list[str]:
        found = self._log.read_text().splitlines() if self._log.exists() else []
        self._log.unlink(missing_ok=True)
        return found

    def stdin(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((pathlib.Path(self.directory) / "stdin").read_text())
        return document

    def fail(self, failing: bool = True) -> None:
        self._broken.touch() if failing else self._broken.unlink()


@pytest.fixture
def plugins(tmp_path: pathlib.Path) -> Plugins:
    return Plugins(tmp_path / "plugins")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setattr(ports, "_SOCKETS", f"{tmp_path}/nowhere/")


def _conf(name: str, *types: str) -> str:
    return json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": [{"type": kind} for kind in types]})


def _lease(uuid: str, name: str = "net", interface: str = "eth0", wanted: str = "") -> str:
    conf = {"name": name, "ipam": {"subnet": "10.1.0.0/28"}}
    call = Call(uuid, "", interface, {"IP": wanted} if wanted else {}, conf, (), (), [], "")
    address: str = leases.add(call)["ips"][0]["address"]
    return address.partition("/")[0]


def _attached(pods: Pods, plugins: Plugins, uuid: str) -> str:
    """As the worker leaves a pod with two networks, an address of our own in the second, and a port; its directory."""
    directory = pods.directory(uuid)
    address = _lease(uuid, "b", "eth1")
    names = ports.claim(NetworkPlan(uuid, directory, (), Names("h"), (Port("http", "tcp", "", 8080, 80),)))
    result = json.dumps({"cniVersion": "1.0.0", "ips": [{"address": f"{address}/28"}]})
    attachments = (
        Attachment("a", "eth0", _conf("a", "first", "second"), source="/etc/a.conf", result='{"cniVersion": "1.0.0"}'),
        Attachment("b", "eth1", _conf("b", "second"), (("K", "V"),), result=result),
    )
    elements = (Element("masquerade4", address),)
    record.write(directory, Record(uuid, "", (plugins.directory,), (), attachments, elements, names))
    return directory


def _all_dels(uuid: str, netns: str = "") -> list[str]:
    return [
        f"DEL {uuid} eth1 second '{netns}'",
        f"DEL {uuid} eth0 second '{netns}'",
        f"DEL {uuid} eth0 first '{netns}'",
    ]


def test_everything_is_taken_back_in_reverse(pods: Pods, plugins: Plugins, firewall: list[str]) -> None:
    uuid, other = pods.start(), pods.start()
    directory = _attached(pods, plugins, uuid)
    _lease(other, "b", "eth0")
    _lease(uuid, "unrecorded")
    pods.die(uuid)
    assert detach.detach(directory) == []
    assert plugins.calls() == _all_dels(uuid)
    assert plugins.stdin()["name"] == "a"
    assert firewall == [uuid]
    assert claims() == {f"pods/{other}", "leases/b/10.1.0.3"}
    left = record.read(directory)
    assert left is not None
    assert (left.elements, left.ports, left.netns) == ((), (), "")
    assert [(each.network, each.over) for each in left.attachments] == [("a", True), ("b", True)]
    assert "10.1.0.2/28" in left.attachments[1].result  # for status
    assert detach.detach(directory) == []
    assert plugins.calls() == []
    assert firewall == [uuid]


def test_a_pod_without_networks_costs_nothing(pods: Pods, firewall: list[str]) -> None:
    uuid = pods.start(register=False)
    assert detach.detach(pods.directory(uuid)) == []
    assert firewall == []
    assert not os.path.exists(state.ROOT)


def test_what_failed_stays_and_is_tried_again(pods: Pods, plugins: Plugins, firewall: list[str]) -> None:
    uuid = pods.start()
    directory = _attached(pods, plugins, uuid)
    pods.die(uuid)
    plugins.fail()
    problems = detach.detach(directory)
    assert len(problems) == 3
    assert all("cannot" in problem for problem in problems)
    assert plugins.calls() == _all_dels(uuid)
    assert claims() == {f"pods/{uuid}", "leases/b/10.1.0.2"}  # and the port is free
    told: list[RkpyError] = []
    assert owners.sweep(told.append) == []
    assert len(told) == 3
    assert uuid[:8] in str(told[0])
    plugins.calls()
    plugins.fail(False)
    assert owners.sweep() == [uuid]
    assert plugins.calls() == _all_dels(uuid)
    assert claims() == set()


def test_a_plugin_that_fails_does_not_keep_what_is_not_its(pods: Pods, plugins: Plugins) -> None:
    """The port of a dead pod can be had, and its address in the network that failed cannot."""
    uuid, other = pods.start("old"), pods.start()
    _attached(pods, plugins, uuid)
    pods.die(uuid)
    plugins.fail()
    assert ports.claim(NetworkPlan(other, "/", (), Names("h"), (Port("http", "tcp", "", 8080, 80),)))
    with pytest.raises(NetworkError, match=r'what pod "old" \(.*\) left behind cannot be taken back: .*cannot'):
        _lease(other, "b", wanted="10.1.0.2")
    for number in range(12):
        _lease(other, "b", f"eth{number + 1}")
    with pytest.raises(NetworkError, match=r'what pod "old" \(.*\) left behind cannot be taken back: .*cannot'):
        _lease(other, "b")
    plugins.fail(False)
    assert _lease(other, "b") == "10.1.0.2"


def test_addresses_stay_claimed_as_long_as_the_firewall_has_them(
    pods: Pods, plugins: Plugins, firewall: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(owner: str) -> None:
        raise NetworkError("nft is not there")

    uuid = pods.start()
    directory = _attached(pods, plugins, uuid)
    pods.die(uuid)
    with monkeypatch.context() as patch:
        patch.setattr(network.firewall, "withdraw", refuse)
        before = claims()
        assert detach.detach(directory) == ["nft is not there"]
        assert claims() == before
        os.unlink(f"{directory}/net/record")
        assert detach.detach(directory) == ["nft is not there"]
        assert claims() == before
        with pytest.raises(NetworkError, match=f"what pod {uuid[:8]} left behind cannot be taken back: nft is not"):
            _lease(pods.start(), "b", wanted="10.1.0.2")
    assert detach.detach(directory) == []


def test_after_a_reboot(pods: Pods, plugins: Plugins, firewall: list[str]) -> None:
    """No claim is left, and what the record says of the firewall is somebody else's now; the plugins have their DEL."""
    uuid, other = pods.start(), pods.start()
    directory = _attached(pods, plugins, uuid)
    record.write(directory, record.read(directory)._replace(netns=state.path("netns", uuid)))  # type: ignore[union-attr]
    pods.die(uuid)
    shutil.rmtree(state.ROOT)
    owners.register(other, pods.directory(other))
    assert _lease(other, "b", "eth1") == "10.1.0.2"
    before = claims()
    assert detach.detach(directory) == []
    assert plugins.calls() == _all_dels(uuid)
    assert firewall == [uuid]
    assert claims() == before
    assert detach.detach(directory) == []
    assert plugins.calls() == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"uuid": 1}', '{"uuid": "x", "attachments": 1, "elements": []}'])
def test_a_record_that_makes_no_sense(pods: Pods, plugins: Plugins, firewall: list[str], text: str) -> None:
    uuid = pods.start()
    directory = _attached(pods, plugins, uuid)
    pods.die(uuid)
    pathlib.Path(directory, "net/record").write_text(text)
    assert [problem.partition(" makes no sense")[0] for problem in detach.detach(directory)] == [
        f"{directory}/net/record"
    ]
    assert firewall == [uuid]
    assert claims() == set()
    assert detach.detach(directory) == []


# --- whose claims are swept


def _nothing(pods: Pods, uuid: str) -> None:
    pass


@pytest.mark.parametrize(
    ("then", "alive"),
    [
        (_nothing, True),
        (lambda pods, uuid: pods.die(uuid), False),
        (lambda pods, uuid: pods.move(uuid, "exited-garbage"), False),
        (lambda pods, uuid: pods.move(uuid, "garbage"), False),
        (lambda pods, uuid: pods.move(uuid, "prepared"), True),
        (lambda pods, uuid: os.unlink(f"{pods.directory(uuid)}/lock"), False),
        (lambda pods, uuid: shutil.rmtree(pods.directory(uuid)), False),
    ],
)
def test_who_is_alive(pods: Pods, then: Callable[[Pods, str], object], alive: bool) -> None:
    uuid = pods.start()
    then(pods, uuid)
    assert owners.is_alive(uuid) is alive


def test_a_leader_that_lives_is_enough(pods: Pods) -> None:
    from stage1 import poddir

    uuid = pods.start()
    poddir.write_leader(pods.directory(uuid), os.getpid())
    pods.die(uuid)
    assert owners.is_alive(uuid)
    _lease(uuid)
    assert owners.sweep() == []
    with subprocess.Popen(["sleep", "60"]) as process:
        poddir.write_leader(pods.directory(uuid), process.pid)
        assert owners.is_alive(uuid)
        process.kill()
    assert not owners.is_alive(uuid)
    assert owners.sweep() == [uuid]


def test_sweep_takes_from_the_dead_and_the_unknown_only(pods: Pods, plugins: Plugins, firewall: list[str]) -> None:
    alive, dead, gone, unknown, idle = (pods.start() for _ in range(5))
    for uuid in (alive, dead, gone):
        _lease(uuid)
    pods.die(dead)
    pods.die(idle)
    shutil.rmtree(pods.directory(gone))
    owners.forget(unknown)
    _lease(unknown, "other")
    os.symlink(unknown, state.path("leases", "other", "nonsense"))
    state.write(state.path("names", "net", f"{alive}.0123456789ab"), "half of")
    assert set(owners.sweep()) == {dead, gone, unknown, idle}
    assert claims() == {f"pods/{alive}", "leases/net/10.1.0.2"}
    assert not os.path.exists(state.path("leases", "other"))
    assert not os.path.exists(state.path("names", "net"))


def test_who_is_being_removed_is_left_to_the_remover(pods: Pods, firewall: list[str]) -> None:
    uuid = pods.start()
    _lease(uuid)
    pods.die(uuid)
    directory = pods.move(uuid, "garbage")
    with locks.acquire(f"{directory}/lock", exclusive=True):
        assert owners.sweep() == []
    with locks.acquire(f"{directory}/lock", exclusive=True, quietly=True):
        assert owners.sweep() == []
    assert owners.sweep() == [uuid]


def test_a_leader_that_appears_at_the_last_moment_is_enough(
    pods: Pods, firewall: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from stage1 import poddir

    uuid = pods.start()
    _lease(uuid)
    poddir.write_leader(pods.directory(uuid), os.getpid())
    pods.die(uuid)
    answers = [False]
    real = owners.is_alive
    monkeypatch.setattr(owners, "is_alive", lambda uuid: answers.pop() if answers else real(uuid))
    assert owners.sweep() == []
    assert firewall == []


def test_a_claim_that_has_changed_hands_is_not_dropped(pods: Pods) -> None:
    uuid = pods.start()
    address = _lease(uuid)
    claim = state.path("leases", "net", address)
    state.release(claim, "somebody eth0")
    assert leases.held_by(uuid) == [("net", address)]
    state.release(claim, f"{uuid} eth0")
    state.release(claim, f"{uuid} eth0")
    assert leases.held_by(uuid) == []


_SWEEPER = """
import sys, types
sys.path.insert(0, sys.argv[1])
from stage1 import network
from stage1.network import cni
from stage1.network import owners, state
state.ROOT = sys.argv[2]
network.firewall = sys.modules["stage1.network.firewall"] = types.ModuleType("stage1.network.firewall")
network.firewall.withdraw = lambda owner: None
print("ready", flush=True)
sys.stdin.read(1)
print(owners.reclaim([state.path("ports", "tcp-8080-any")]), flush=True)
"""


def test_who_needs_the_same_dead_pods_claims_waits_for_the_first(pods: Pods, plugins: Plugins) -> None:
    """Every plugin is called once, and nobody is told that they cannot be had."""
    uuid = pods.start()
    _attached(pods, plugins, uuid)
    pods.die(uuid)
    words = [sys.executable, "-I", "-S", "-c", _SWEEPER, str(ROOT), state.ROOT]
    sweepers = [
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for sweeper in sweepers:
        assert sweeper.stdout is not None
        assert sweeper.stdout.readline() == "ready\n"
    for sweeper in sweepers:
        assert sweeper.stdin is not None
        sweeper.stdin.write("x")
        sweeper.stdin.flush()
    for sweeper in sweepers:
        assert sweeper.communicate(timeout=60) == ("True\n", "")
    assert plugins.calls() == _all_dels(uuid)
    assert claims() == set()


# --- killed anywhere

_KILLED = """
import os, signal, sys, types
sys.path.insert(0, sys.argv[1])
from stage1 import network
from stage1.network import cni
from stage1.network import detach, state
state.ROOT, directory, point, elements = sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]

def withdraw(owner):
    with open(elements) as file:
        kept = [line for line in file if not line.endswith(f" {owner}\\n")]
    with open(f"{elements}.new", "w") as file:
        file.writelines(kept)
    os.rename(f"{elements}.new", elements)

network.firewall = sys.modules["stage1.network.firewall"] = types.ModuleType("stage1.network.firewall")
network.firewall.withdraw = withdraw
from stage1.network import cni, names, netns
count = 0

def hook(event, words):
    global count
    writes = event == "open" and words[2] & os.O_ACCMODE
    if writes or event in ("os.remove", "os.rename", "os.rmdir", "os.posix_spawn", "os.fork"):
        count += 1
        if count == point:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
problems = detach.detach(directory)
os.write(1, "".join(problems).encode())
"""


def test_a_kill_at_any_moment_is_made_good(pods: Pods, plugins: Plugins, tmp_path: pathlib.Path) -> None:
    """At no moment is an address free that the firewall knows as the pod's, and what another pod gets in the meantime
    stays his."""
    elements = tmp_path / "elements"
    for point in range(1, 1000):
        uuid, other = pods.start(), pods.start()
        directory = _attached(pods, plugins, uuid)
        pods.die(uuid)
        elements.write_text(f"10.1.0.2 {uuid}\n")

        def run(point: int, directory: str = directory) -> int:
            words = [sys.executable, "-I", "-S", "-c", _KILLED, str(ROOT), state.ROOT, directory, str(point)]
            finished = subprocess.run([*words, str(elements)], capture_output=True, timeout=60)
            assert finished.returncode in (0, -signal.SIGKILL), finished.stderr
            assert finished.stdout == b""
            return finished.returncode

        status = run(point)
        if uuid in elements.read_text():
            assert leases.held_by(uuid)
        if not leases.held_by(uuid):
            assert _lease(other, "b", "eth7", "10.1.0.2") == "10.1.0.2"
            elements.write_text(f"{elements.read_text()}10.1.0.2 {other}\n")
        kept = {name for name in claims() if name != f"pods/{uuid}"} - {"ports/tcp-8080-any"}
        kept -= {f"leases/b/{address}" for _, address in leases.held_by(uuid)}
        assert run(0) == 0
        assert claims() == kept
        assert uuid not in elements.read_text()
        assert (other in elements.read_text()) is bool(leases.held_by(other))
        assert set(_all_dels(uuid)) == set(plugins.calls())
        leases.release(other)
        pods.die(other)
        owners.forget(other)
        shutil.rmtree(f"{state.ROOT}/leases")
        if status == 0:
            assert point > 12
            return
    raise AssertionError("it never ended")


def test_what_detach_needs_is_light() -> None:
    """It runs in the monitor's interpreter: see tests/test_structure.py for what that may have loaded."""
    from tests.test_structure import HEAVY, LIBRARY

    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import stage1.boot, stage1.monitor; before = set(sys.modules);"
        "from stage1.network import cni, detach, firewall, leases, names, netns; print(*set(sys.modules) - before)"
    )
    words = [sys.executable, "-I", "-S", "-c", code, str(ROOT)]
    loaded = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    names = {name.partition(".")[0] for name in loaded}
    assert "stage1.network.detach" in loaded
    assert not names & HEAVY
    assert {name for name in names if not name.startswith("_")} <= LIBRARY | {"common", "stage1", "importlib"}


def test_what_somebody_else_put_in_a_pods_place_is_not_believed(pods: Pods, plugins: Plugins) -> None:
    """Root's pods below a directory of a user's, who moves them away: neither does what he wrote there run, nor is the
    pod taken for dead while it lives."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    uuid = pods.start()
    _lease(uuid)
    before = claims()
    os.rename(pods.root, f"{pods.root}.away")
    forged = pods.root / "run" / uuid
    (forged / "net").mkdir(parents=True)
    (forged / "lock").touch()
    attachment = Attachment("net", "eth0", _conf("net", "first"), result="{}")
    record.write(str(forged), Record(uuid, plugin_path=(plugins.directory,), attachments=(attachment,)))
    for path in (pods.root, *pods.root.rglob("*")):
        os.chown(path, 4321, 4321)
    assert owners.sweep() == []
    assert (owners.is_alive(uuid), claims()) == (True, before)
    pods.die(uuid)
    assert owners.sweep() == [uuid]
    assert (plugins.calls(), owners.find(uuid)) == ([], "")
