"""`rkpy net` on pods that are a directory, a lock, a record and claims; real ones are in tests/host."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from common.errors import EXIT_FAILURE, NetworkError, PodError, RkpyError, UsageError
from stage0.commands import gc, net
from stage0.config import Config
from stage0.pods import DIRECTORIES
from stage1.network import cni, firewall, obstacles, record, state
from stage1.network.record import Attachment, Element, Record
from tests import claimants
from tests.claimants import Pods

LEASE = ("leases", "default", "172.16.28.2")


class Site:
    """Configuration and pods."""

    def __init__(self, root: Path) -> None:
        self.pods = Pods(root)
        for name in DIRECTORIES:
            (self.pods.root / name).mkdir(parents=True)
        data = str(self.pods.root.parent)
        self.etc = root / "etc"
        self.config = Config(data_dir=data, system_config="/nowhere", local_config=str(self.etc))

    def run(self, command: click.Command, *words: str) -> Result:
        return CliRunner().invoke(command, words, obj=self.config, standalone_mode=False)

    def ok(self, command: click.Command, *words: str) -> str:
        done = self.run(command, *words)
        assert done.exception is None and not done.return_value, done.output
        return done.stdout

    def conf(self, name: str, document: Any) -> str:
        path = self.etc / "net.d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return str(path)

    def pod(self, *networks: str, name: str = "", directory: str = "") -> str:
        uuid = self.pods.start(name)
        result = {"cniVersion": "1.0.0", "ips": [{"address": "172.16.28.2/24"}]}
        conf = {"cniVersion": "1.0.0", "plugins": [{"type": "ptp"}]}
        attachments = tuple(
            Attachment(network, f"eth{at}", json.dumps({**conf, "name": network}), result=json.dumps(result))
            for at, network in enumerate(networks)
        )
        elements = (Element("masquerade4", "172.16.28.2"),)
        record.write(self.pods.directory(uuid), Record(uuid, attachments=attachments, elements=elements))
        return uuid


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(state, "ROOT", str(tmp_path / "claims"))
    monkeypatch.setattr(net, "_require_root", lambda: None)
    made = Site(tmp_path)
    yield made
    made.pods.close()


def test_without_anything_there_are_the_built_in_networks(site: Site) -> None:
    header, *rows = site.ok(net.list_networks).splitlines()
    assert header.split() == ["NAME", "TYPE", "SUBNETS", "PODS", "SOURCE"]
    assert [row.split()[0] for row in rows] == ["default", "default-restricted"]
    assert rows[0].endswith("\t0\tbuilt in") and "172.16.28.0/24" in rows[0]
    assert site.ok(net.list_networks, "--no-legend=true").splitlines() == rows


def test_networks_are_listed_with_the_pods_that_live(site: Site) -> None:
    ipam = {"type": "host-local", "subnet": "10.1.0.0/16"}
    plugins = [{"type": "bridge", "ipam": ipam}, {"type": "portmap"}]
    source = site.conf("a.conflist", {"name": "lan", "plugins": plugins})
    both, one, dead = site.pod("default", "lan"), site.pod("default"), site.pod("default")
    site.pods.die(dead)
    rows = {row.split("\t")[0]: row for row in site.ok(net.list_networks, "--no-legend=true").splitlines()}
    assert [cell for cell in rows["lan"].split("\t") if cell] == [
        "lan", "bridge,portmap", "10.1.0.0/16", "1", source,
    ]  # fmt: skip
    assert rows["default"].endswith("\t2\tbuilt in")
    told = {network["name"]: network for network in json.loads(site.ok(net.list_networks, "--format=json"))}
    assert told["default"]["pods"] == sorted([both, one])
    assert told["lan"] == {
        "name": "lan", "types": ["bridge", "portmap"], "subnets": ["10.1.0.0/16"], "pods": [both], "source": source,
    }  # fmt: skip


def test_files_that_count_for_nothing_are_told_of(site: Site) -> None:
    first = site.conf("a.conf", {"name": "lan", "type": "ptp"})
    second = site.conf("b.conf", {"name": "lan", "type": "ptp"})
    bad = site.conf("c.conf", {"name": "default", "type": ""})
    done = site.run(net.list_networks, "--no-legend=true")
    assert [row.split("\t")[0] for row in done.stdout.splitlines()] == ["lan", "default-restricted"]
    assert done.stderr.splitlines() == [
        f"rkpy: net list: {bad} makes no sense: the type of a plugin is missing",
        f'rkpy: net list: {second} is ignored: network "lan" is defined by {first}',
    ]
    error = site.run(net.inspect, "default").exception
    assert isinstance(error, NetworkError) and bad in str(error)


def test_a_damaged_record_spoils_nothing(site: Site) -> None:
    uuid = site.pod("default")
    Path(site.pods.directory(uuid), record.RECORD).write_text("{")
    done = site.run(net.list_networks)
    assert "makes no sense" in done.stderr and done.exception is None


def test_a_network_is_shown_with_who_has_what(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obstacles, "foreign_obstacles", lambda subnets: [f"a chain drops {next(iter(subnets))}"])
    uuid, other = site.pod("default", name="web"), site.pod("lan")
    state.take(state.path(*LEASE), f"{uuid} eth0")
    state.write(state.path("leases", "default", "last-0"), "172.16.28.2")
    state.take(state.path("ports", "tcp-8080-any"), uuid)
    state.take(state.path("ports", "udp-53-::1"), uuid)
    state.take(state.path("ports", "tcp-1-any"), other)
    told = json.loads(site.ok(net.inspect, "default"))
    assert told["configuration"]["plugins"][0]["type"] == "ptp" and told["source"] == ""
    assert told["leases"] == [{"address": "172.16.28.2", "pod": uuid, "podName": "web", "interface": "eth0"}]
    assert told["pods"] == [{"uuid": uuid, "name": "web", "interface": "eth0", "ips": ["172.16.28.2/24"]}]
    assert told["ports"] == [
        {"protocol": "tcp", "hostPort": 8080, "hostIP": "", "pod": uuid},
        {"protocol": "udp", "hostPort": 53, "hostIP": "::1", "pod": uuid},
    ]
    assert told["obstacles"] == ["a chain drops 172.16.28.0/24"]


@pytest.mark.parametrize("alive", [True, False])
def test_a_pod_is_shown_with_what_it_has(site: Site, alive: bool) -> None:
    uuid = site.pod("default", "lan", name="web")
    if not alive:
        site.pods.die(uuid)
    for name in ("web", uuid, uuid[:8]):
        told = json.loads(site.ok(net.inspect, name))
        assert (told["uuid"], told["name"], told["state"]) == (uuid, "web", "running" if alive else "exited")
        first, second = told["networks"]
        assert (first["netName"], second["ifName"], first["ip"]) == ("default", "eth1", "172.16.28.2")
        assert first["configuration"]["name"] == "default" and first["result"]["ips"]
        assert told["firewall"] == [{"where": "masquerade4", "key": "172.16.28.2", "value": ""}]


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ((), UsageError, "exactly one"),
        (("a", "b"), UsageError, "exactly one"),
        (("nope",), PodError, 'no matches found for "nope" (nor is it a network: see rkpy net list)'),
    ],
)
def test_what_cannot_be_shown(site: Site, words: tuple[str, ...], error: type[RkpyError], message: str) -> None:
    found = site.run(net.inspect, *words).exception
    assert isinstance(found, error) and message in str(found)


@pytest.mark.parametrize("command", [net.collect, gc.command])
def test_what_dead_pods_had_is_taken_back(site: Site, monkeypatch: pytest.MonkeyPatch, command: click.Command) -> None:
    withdrawn = claimants.stub_firewall(monkeypatch)
    dead, alive = site.pod("default"), site.pod("default")
    state.take(state.path(*LEASE), f"{dead} eth0")
    state.take(state.path("leases", "default", "172.16.28.3"), f"{alive} eth0")
    site.pods.die(dead)
    words = ("--mark-only=false",) if command is gc.command else ()
    done = site.run(command, *words)
    assert done.exception is None and not done.return_value, done.output
    assert f'took back what pod "{dead}" had of networks' in done.output
    assert alive not in done.output
    assert withdrawn == [dead]
    assert not {name for name in claimants.claims() if dead in name or name.endswith("172.16.28.2")}
    assert "leases/default/172.16.28.3" in claimants.claims()
    assert "took back" not in site.run(command, *words).output


def test_gc_looks_for_networks_only_where_there_were_some(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert site.ok(gc.command) == ""
    assert not Path(state.ROOT).exists()


def test_checking_pods(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []

    def check(_record: Record, attachment: Attachment, path: str) -> None:
        checked.append(f"{attachment.network} {path}")
        if attachment.network == "lan":
            raise NetworkError('network "lan": eth1 is gone')

    monkeypatch.setattr(cni, "check", check)
    monkeypatch.setattr(firewall, "check", lambda uuid: checked.append(uuid))
    monkeypatch.setattr(net, "_namespace", lambda pod: "/somewhere")
    good = site.pod("default")
    assert site.ok(net.check) == ""
    assert checked == ["default /somewhere", good]
    bad = site.pod("default", "lan")
    for words in ((), (bad,), (good, bad)):
        done = site.run(net.check, *words)
        assert done.return_value == EXIT_FAILURE
        assert done.stderr == f'rkpy: net check: pod "{bad}": network "lan": eth1 is gone\n'
    site.pods.die(bad)
    assert site.ok(net.check) == ""
    error = site.run(net.check, bad).exception
    assert isinstance(error, PodError) and "isn't currently running" in str(error)
