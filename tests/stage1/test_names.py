"""/etc/hosts of a pod and of those that are on a network with it."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import NetworkError
from stage1.network import names, state
from stage1.network.plan import Names, Network, NetworkPlan

ROOT = str(pathlib.Path(__file__).parent.parent.parent)
LOCAL = "127.0.0.1\tlocalhost localhost.localdomain\n::1\tlocalhost localhost.localdomain ip6-localhost ip6-loopback\n"
PTP = json.dumps({"plugins": [{"type": "ptp"}]})


@pytest.fixture(autouse=True)
def claims(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setattr(state, "ROOT", str(tmp_path / "claims"))
    return tmp_path / "claims"


class Pod:
    def __init__(
        self, root: pathlib.Path, number: int, *apps: str, name: str = "", networks: tuple[str, ...] = ("net",)
    ) -> None:
        self.uuid = f"{number:08}-0000-4000-8000-000000000000"
        self.directory = root / self.uuid
        self.hosts = self.directory / "etc" / "hosts"
        plans = tuple(Network(each, f"eth{index}", PTP) for index, each in enumerate(networks))
        self.plan = NetworkPlan(
            self.uuid, str(self.directory), plans, Names(f"host{number}", name, apps, dns=("none",))
        )
        self.results: list[tuple[str, dict[str, Any]]] = [
            (each, {"ips": [{"address": f"10.{index}.0.{number}/24", "gateway": f"10.{index}.0.1"},
                            {"address": f"fd00:{index}::{number}/64", "gateway": f"fd00:{index}::1"}]})
            for index, each in enumerate(networks)
        ]  # fmt: skip

    def come(self) -> list[str]:
        return names.write(self.plan, self.results)

    def lines(self) -> list[str]:
        return self.hosts.read_text().splitlines()

    def addresses(self, name: str) -> list[str]:
        """What a resolver makes of it."""
        fields = [line.partition("#")[0].split() for line in self.lines()]
        return [field[0] for field in fields if name in field[1:]]


def test_a_pod_knows_itself_and_the_host(tmp_path: pathlib.Path) -> None:
    pod = Pod(tmp_path, 7, "web", "db", name="shop")
    pod.plan = pod.plan._replace(names=pod.plan.names._replace(hosts=(("192.0.2.1", "printer"), ("2001:db8::1", "b"))))
    assert pod.come() == []
    own = "shop host7 web.shop db.shop web db"
    host = "host.rkpy.internal host.containers.internal"
    assert pod.hosts.read_text() == (
        f"192.0.2.1\tprinter\n2001:db8::1\tb\n{LOCAL}10.0.0.7\t{own}\nfd00::7\t{own}\n10.0.0.1\t{host}\nfd00::1\t{host}\n"
    )
    assert pod.hosts.stat().st_mode & 0o777 == 0o644


def test_without_a_network_a_pods_names_are_on_loopback(tmp_path: pathlib.Path) -> None:
    pod = Pod(tmp_path, 7, "web", networks=())
    pod.come()
    assert pod.addresses("host7") == pod.addresses("web") == ["127.0.0.1"]
    assert not (tmp_path / "claims").exists()


def test_pods_on_a_network_learn_of_each_other(tmp_path: pathlib.Path, claims: pathlib.Path) -> None:
    first = Pod(tmp_path, 1, "web", name="shop")
    second = Pod(tmp_path, 2, "web", networks=("net", "back"))
    third = Pod(tmp_path, 3, "db", networks=("back",))
    for pod in (first, second, third):
        assert pod.come() == []
    assert first.addresses("host2") == first.addresses("web.host2") == ["10.0.0.2", "fd00::2"]
    assert first.addresses("web") == ["10.0.0.1", "fd00::1", "10.0.0.2", "fd00::2"]
    assert second.addresses("shop") == second.addresses("web.shop") == ["10.0.0.1", "fd00::1"]
    assert second.addresses("db") == ["10.0.0.3", "fd00::3"]
    assert third.addresses("host2") == ["10.1.0.2", "fd00:1::2"]
    assert third.addresses("shop") == first.addresses("db") == []
    before = first.hosts.stat().st_ino
    names.forget(second.uuid)
    names.forget(second.uuid)
    assert first.addresses("host2") == third.addresses("host2") == []
    assert first.addresses("web") == ["10.0.0.1", "fd00::1"]
    assert first.hosts.stat().st_ino == before
    names.forget(first.uuid)
    names.forget(third.uuid)
    assert os.listdir(claims / "names") == []


def test_writing_twice_is_writing_once(tmp_path: pathlib.Path) -> None:
    first, second = Pod(tmp_path, 1), Pod(tmp_path, 2, networks=("net", "net"))
    first.come()
    second.come()
    before = first.lines(), second.lines()
    assert first.addresses("host2") == ["10.0.0.2", "fd00::2", "10.1.0.2", "fd00:1::2"]
    second.come()
    assert (first.lines(), second.lines()) == before


def test_a_file_of_the_hosts_is_left_alone(tmp_path: pathlib.Path) -> None:
    first, second = Pod(tmp_path, 1), Pod(tmp_path, 2)
    first.plan = first.plan._replace(names=first.plan.names._replace(hosts=(("host", ""),)))
    first.come()
    second.come()
    assert not first.hosts.exists()
    assert second.addresses("host1") == ["10.0.0.1", "fd00::1"]


def test_peers_that_are_gone_or_have_gone_wrong_are_in_nobodys_way(tmp_path: pathlib.Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    pods = [Pod(tmp_path, number) for number in range(1, 7)]
    for pod in pods:
        pod.come()
    gone, link, fifo, large, half, newcomer = pods
    gone.hosts.rename(tmp_path / "elsewhere")
    for pod in (link, fifo):
        pod.hosts.unlink()
    link.hosts.symlink_to(victim)
    os.mkfifo(fifo.hosts)
    os.truncate(large.hosts, 1 << 24)
    half.hosts.write_text("10.9.9.9 mine")
    names.forget(newcomer.uuid)
    (warning,) = newcomer.come()
    assert str(link.hosts) in warning
    assert victim.read_text() == "precious\n"
    assert large.hosts.stat().st_size == 1 << 24
    assert half.addresses("mine") == ["10.9.9.9"]
    assert half.addresses("host6") == ["10.0.0.6", "fd00::6"]


def test_a_reader_sees_whole_lines_only(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pods = [Pod(tmp_path, number, "web", "a" * number) for number in range(1, 5)]
    watched = pods[0]
    watched.come()
    known = set(watched.lines())
    for pod in pods[1:]:
        pod.come()
        known |= set(watched.lines())
    states: list[list[str]] = []
    for name in ("pwrite", "ftruncate"):
        real = getattr(os, name)

        def watching(*arguments: Any, real: Any = real) -> Any:
            answer = real(*arguments)
            states.append(watched.lines())
            return answer

        monkeypatch.setattr(os, name, watching)
    for pod in (pods[2], pods[1], pods[3]):
        names.forget(pod.uuid)
        pod.come()
    assert len(states) > 6
    for lines in states:
        assert set(lines) <= {*known, ""}
        assert watched.addresses("host1")


def test_the_gateway_of_a_wire_that_is_not_ours_is_not_the_host(tmp_path: pathlib.Path) -> None:
    pod = Pod(tmp_path, 1, networks=("lan", "bridged", "ours"))
    confs = [{"type": "macvlan"}, {"type": "bridge"}, {"type": "bridge", "isGateway": True}]
    networks = tuple(each._replace(conf=json.dumps({"plugins": [conf]}))
                     for each, conf in zip(pod.plan.networks, confs, strict=True))  # fmt: skip
    pod.plan = pod.plan._replace(networks=networks)
    pod.come()
    assert pod.addresses("host.rkpy.internal") == ["10.2.0.1", "fd00:2::1"]


def test_names_that_mean_something_else_are_nobodys(tmp_path: pathlib.Path) -> None:
    first = Pod(tmp_path, 1, "localhost", "LocalHost", name="10.0.0.9")
    second = Pod(tmp_path, 2)
    first.plan = first.plan._replace(names=first.plan.names._replace(hostname="Host.rkpy.internal"))
    first.come()
    second.come()
    assert not second.addresses("localhost")[2:]
    assert second.addresses("LocalHost") == second.addresses("Host.rkpy.internal") == []
    assert second.addresses("10.0.0.9") == []
    assert second.addresses("host.rkpy.internal") == ["10.0.0.1", "fd00::1"]
    assert second.addresses("localhost.10.0.0.9") == ["10.0.0.1", "fd00::1"]


def test_lines_are_short_enough_for_every_resolver(tmp_path: pathlib.Path) -> None:
    apps = [f"application-number-{number}" for number in range(40)]
    first, second = Pod(tmp_path, 1, *apps, name="a" * 60), Pod(tmp_path, 2)
    first.come()
    second.come()
    assert max(map(len, (*first.lines(), *second.lines()))) < 512
    for app in apps:
        assert second.addresses(f"{app}.{'a' * 60}") == second.addresses(app) == ["10.0.0.1", "fd00::1"]


@pytest.mark.parametrize("entry", [("10.0.0.1", "a\nb"), ("10.0.0.1", ""), ("10.0.0", "a"), ("10.0.0.1", "a#")])
def test_nonsense_of_the_user_is_refused(tmp_path: pathlib.Path, entry: tuple[str, str]) -> None:
    pod = Pod(tmp_path, 1)
    pod.plan = pod.plan._replace(names=pod.plan.names._replace(hosts=(entry,)))
    with pytest.raises(NetworkError, match="cannot be an entry"):
        pod.come()


@pytest.mark.parametrize("network", ["../up", "..", "", "a/b"])
def test_a_network_cannot_leave_the_claims(tmp_path: pathlib.Path, network: str) -> None:
    with pytest.raises(NetworkError, match="cannot be the name of a network"):
        Pod(tmp_path, 1, networks=(network,)).come()


_words = st.text(st.sampled_from("a.-#\n\r\t \x0b\x00é1")) | st.sampled_from(["6.6.6.6\tevil", "x\n6.6.6.6 evil"])
_ips = st.lists(st.one_of(st.none(), st.text(), st.dictionaries(st.sampled_from(["address", "gateway"]), st.one_of(
    st.none(), st.text(), st.sampled_from(["10.0.0.5/24", "10.0.0.5\n6.6.6.6 evil/24", "fd00::5/64"])))))  # fmt: skip


@given(hostname=_words, pod=_words, apps=st.lists(_words), ips=_ips | st.text())
def test_nobody_gets_a_line_of_his_own_in(
    tmp_path_factory: pytest.TempPathFactory, hostname: str, pod: str, apps: list[str], ips: Any
) -> None:
    root = tmp_path_factory.mktemp("pods")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "ROOT", str(root / "claims"))
        other, hostile = Pod(root, 1), Pod(root, 2)
        hostile.plan = hostile.plan._replace(names=Names(hostname, pod, tuple(apps), dns=("none",)))
        hostile.results = [("net", {"ips": ips})]
        other.come()
        hostile.come()
        for line in (*hostile.lines(), *other.lines()):
            assert line.split()[0] in (
                "127.0.0.1",
                "::1",
                "10.0.0.5",
                "fd00::5",
                "10.0.0.1",
                "fd00::1",
            ) or names._canonical(line.split()[0])
            assert not line.startswith("6.6.6.6")
        names.forget(hostile.uuid)
        assert not any(hostile.uuid in line for line in other.lines())


def test_forgetting_needs_no_library(tmp_path: pathlib.Path) -> None:
    first, second = Pod(tmp_path, 1), Pod(tmp_path, 2)
    first.come()
    second.come()
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from stage1.network import names, state; state.ROOT = sys.argv[2]"
    )
    words = [sys.executable, "-I", "-S", "-c", f"{code}; names.forget(sys.argv[3])", ROOT, state.ROOT, second.uuid]
    subprocess.run(words, check=True, timeout=120)
    assert first.addresses("host2") == []
