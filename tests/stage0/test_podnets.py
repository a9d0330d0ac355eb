"""Networks of pods in `list` and `status`: from the record, in rkt's form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stage0 import podnets
from stage1.network import record as records
from stage1.network.record import Attachment, Record
from tests.living import die
from tests.stage0.test_pod_commands import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(str(tmp_path / "data"))
    yield made
    for process in made.living:
        die(process)


def result(*addresses: str) -> str:
    """As `ptp` gives it: an interface of the host, with an address that is not the pod's, and one of the pod."""
    interfaces = [{"name": "rk0-0123abcd"}, {"name": "eth0", "sandbox": "/run/netns/x"}]
    ips = [{"address": address, "interface": 1} for address in addresses]
    host = [{"address": "10.9.9.1/24", "interface": 0}]
    return json.dumps({"cniVersion": "1.0.0", "interfaces": interfaces, "ips": [*host, *ips]})


def attachment(name: str, *addresses: str, kind: str = "ptp", **fields: Any) -> Attachment:
    conf = json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": [{"type": kind}]})
    return Attachment(name, "eth0", conf, result=result(*addresses))._replace(**fields)


BOTH = attachment("default", "fd00::2/64", "172.16.28.2/24", "172.16.28.3/24")


@pytest.mark.parametrize("alive", [True, False])
def test_networks_are_shown(lab: Lab, alive: bool) -> None:
    pod = lab.pod("one", "two", run=True, alive=alive)
    other = attachment(
        "lan", "10.1.0.5/16", interface="eth1", args=(("IP", "10.1.0.5"), ("K", "V")), source="/e/l.conf"
    )
    records.write(f"{lab.pods.root}/run/{pod.uuid}", Record(pod.uuid, attachments=(BOTH, other)))
    shown = "default:ip4=172.16.28.2,ip6=fd00::2,lan:ip4=10.1.0.5"
    first, second = lab.rkpy("list", "--no-legend").splitlines()
    assert first.split("\t")[-1] == shown and second.split("\t")[-1] == ""
    assert f"networks={shown}" in lab.rkpy("status", pod.uuid).splitlines()
    told = json.loads(lab.rkpy("status", "--format=json", pod.uuid))["networks"]
    assert told == [
        {
            "netName": "default", "netConf": "", "pluginPath": "", "ifName": "eth0", "ip": "172.16.28.2", "args": "",
            "mask": "255.255.255.0", "ips": ["172.16.28.2/24", "172.16.28.3/24", "fd00::2/64"],
        },
        {
            "netName": "lan", "netConf": "/e/l.conf", "pluginPath": "", "ifName": "eth1", "ip": "10.1.0.5",
            "args": "IP=10.1.0.5;K=V", "mask": "255.255.0.0", "ips": ["10.1.0.5/16"],
        },
    ]  # fmt: skip
    assert json.loads(lab.rkpy("list", "--format=json"))[0]["networks"] == told


def test_a_pod_that_was_not_started_has_none(lab: Lab) -> None:
    pod = lab.pod("one")
    records.write(f"{lab.pods.root}/prepared/{pod.uuid}", Record(pod.uuid, attachments=(BOTH,)))
    assert "networks" not in lab.rkpy("status", "--format=json", pod.uuid)
    assert lab.rkpy("list", "--no-legend").rstrip("\n").endswith("\t")


@pytest.mark.parametrize(
    ("addresses", "shown"),
    [((), "x"), (("fd00::2/64",), "x:ip6=fd00::2"), (("10.0.0.2/8",), "x:ip4=10.0.0.2")],
)
def test_what_is_shown(tmp_path: Path, addresses: tuple[str, ...], shown: str) -> None:
    records.write(str(tmp_path), Record("u", attachments=(attachment("x", *addresses),)))
    (network,) = podnets.read(str(tmp_path))
    assert podnets.describe([network]) == shown
    told = podnets.to_json(network)
    assert (told["ip"], told["mask"]) == {
        "x": ("", ""), "x:ip6=fd00::2": ("fd00::2", "ffff:ffff:ffff:ffff::"),
        "x:ip4=10.0.0.2": ("10.0.0.2", "255.0.0.0"),
    }[shown]  # fmt: skip


def test_a_plugin_that_is_a_program_is_named(tmp_path: Path) -> None:
    (tmp_path / "ptp").touch()
    (tmp_path / "flannel").touch()
    ours, theirs = attachment("a"), attachment("b", kind="flannel")
    for path, system, expected in (
        (str(tmp_path), "/nowhere", (f"{tmp_path}/ptp", f"{tmp_path}/flannel")),
        ("/nowhere", str(tmp_path), ("", f"{tmp_path}/flannel")),
        ("/nowhere", "/nowhere", ("", "")),
    ):
        record = Record("u", plugin_path=(path,), system_plugin_path=(system,), attachments=(ours, theirs))
        records.write(str(tmp_path), record)
        assert tuple(network.plugin for network in podnets.read(str(tmp_path))) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", '{"uuid": 1, "attachments": 5, "elements": []}', '{"attachments": [{}], "elements": []}',
        '{"uuid": "u", "attachments": [], "elements": [], "more": 1}', "\0", "[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_record_is_no_network(lab: Lab, text: str) -> None:
    pod = lab.pod("one", run=True)
    path = Path(lab.pods.root, "run", pod.uuid, "net/record")
    path.parent.mkdir()
    path.write_text(text)
    assert "networks=\n" in lab.rkpy("status", pod.uuid)
    assert lab.rkpy("list", "--no-legend").endswith("\t\n")


@pytest.mark.parametrize(
    "damage",
    [
        {"result": "{"}, {"result": "[]"}, {"result": '{"ips": 5}'}, {"result": '{"ips": [5]}'},
        {"result": '{"ips": [{}]}'}, {"result": '{"ips": [{"address": "x"}]}'}, {"result": '{"ips": [{"address": 5}]}'},
        {"result": '{"ips": [{"address": "1.1.1.1/24", "interface": 0}], "interfaces": [5]}'}, {"result": 5},
        {"result": '{"ips": null}'}, {"conf": "{"}, {"conf": "[]"}, {"conf": '{"plugins": [{"type": "../x"}]}'},
        {"conf": 5}, {"args": 5}, {"args": (("a",),)},
    ],
)  # fmt: skip
def test_a_damaged_attachment_is_shown_by_name(tmp_path: Path, damage: dict[str, Any]) -> None:
    records.write(str(tmp_path), Record("u", attachments=(attachment("x", **damage),)))
    (network,) = podnets.read(str(tmp_path))
    assert network.name == "x" and podnets.describe([network]) == "x"
    assert podnets.to_json(network)["netName"] == "x"
