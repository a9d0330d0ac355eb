"""The built-in portmap: what of a chain's result becomes elements of the firewall."""

from __future__ import annotations

from typing import Any

import pytest

from common.errors import NetworkError
from stage1.network import firewall, portmap, results
from stage1.network.plan import Port
from stage1.network.plugin import Call

MAPPINGS = [
    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
    {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "127.0.0.1"},
]
PORTS = [Port("", "tcp", "", 8080, 80), Port("", "udp", "127.0.0.1", 53, 5353)]
IPS = [{"address": "10.0.0.1/24", "interface": 0}, {"address": "10.0.0.2/24", "interface": 1},
       {"address": "10.0.1.2/24", "interface": 1}, {"address": "fd00::2/64", "interface": 1}]  # fmt: skip
PREVIOUS = {
    **results.empty(),
    "interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": "/x"}],
    "ips": IPS,
    "routes": [{"dst": "0.0.0.0/0"}],
}


def call(previous: dict[str, Any] | None = PREVIOUS, mappings: Any = MAPPINGS, **conf: Any) -> Call:
    own = {"name": "net", "cniVersion": "1.0.0", "runtimeConfig": {"portMappings": mappings}, **conf}
    return Call("u", "/n", "eth0", {}, {**own, **({"prevResult": previous} if previous else {})}, (), (), [])


def _with(name: str, value: list[str]) -> Call:
    asked = call()
    return asked._replace(conf={**asked.conf, name: value})


def test_ports_lead_to_the_pods_addresses() -> None:
    asked = call()
    assert portmap.add(asked) == PREVIOUS
    assert asked.elements == firewall.publication(PORTS, ["10.0.0.2/24", "fd00::2/64"], routed="4")
    assert asked.elements


def test_a_network_without_a_way_out() -> None:
    asked = call({**PREVIOUS, "routes": []})
    portmap.add(asked)
    assert asked.elements == firewall.publication(PORTS, ["10.0.0.2/24", "fd00::2/64"], routed="")
    assert asked.elements != firewall.publication(PORTS, ["10.0.0.2/24", "fd00::2/64"])


def test_nothing_to_publish() -> None:
    for asked in (call(mappings=[]), call(runtimeConfig={})):
        assert portmap.add(asked) == PREVIOUS
        assert asked.elements == []


def test_nothing_to_publish_on() -> None:
    with pytest.raises(NetworkError):
        portmap.add(call(None))


@pytest.mark.parametrize("name", ["conditionsV4", "conditionsV6"])
def test_a_restriction_that_cannot_be_kept(name: str) -> None:
    with pytest.raises(NetworkError, match=name):
        portmap.add(_with(name, ["-s", "10.0.0.0/8"]))
    portmap.add(_with(name, []))


def test_delete_and_check_do_nothing() -> None:
    assert portmap.delete(call(None)) is portmap.check(call(None)) is None  # type: ignore[func-returns-value]
