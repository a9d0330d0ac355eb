"""What pasta is told, and what is made of a configuration."""

from __future__ import annotations

import json

import pytest

from stage1.network import pasta
from stage1.network.pasta import Decided
from stage1.network.plan import Network, Port

BOTH = Decided("/usr/bin/pasta", ("172.16.29.2/24", "fd00::2/64"), ("172.16.29.1", "fd00::1"))
IPV4 = Decided("/usr/bin/pasta", ("172.16.29.2/24",), ("172.16.29.1",), "wlan0")


def words(chosen: Decided, *ports: Port, resolvers: tuple[str, ...] = ()) -> list[str]:
    return pasta.arguments(chosen, "eth0", ports, netns="/proc/7/ns/net", ready="/pod/ready", resolvers=resolvers)


def values(found: list[str], option: str) -> list[str]:
    return [found[at + 1] for at, word in enumerate(found) if word == option]


def test_nothing_is_forwarded_unasked_and_the_gateway_is_not_the_host() -> None:
    found = words(BOTH)
    for option in ("--tcp-ports", "--udp-ports", "--tcp-ns", "--udp-ns"):
        assert values(found, option) == ["none"]
    assert "--no-map-gw" in found
    assert "--foreground" in found
    assert "--dns-forward" not in found
    assert "--interface" not in found
    assert values(found, "--netns") == ["/proc/7/ns/net"]
    assert values(found, "--pid") == ["/pod/ready"]


@pytest.mark.parametrize(
    ("port", "option", "expected"),
    [
        (Port("a", "tcp", "", 8080, 80), "--tcp-ports", ["8080:80"]),
        (Port("a", "tcp", "", 8080, 80, 2), "--tcp-ports", ["8080:80", "8081:81"]),
        (Port("a", "udp", "127.0.0.1", 53, 5353), "--udp-ports", ["127.0.0.1/53:5353"]),
        (Port("a", "tcp", "::1", 8080, 80), "--tcp-ports", ["::1/8080:80"]),
        (Port("a", "tcp", "0.0.0.0", 8080, 80), "--tcp-ports", ["0.0.0.0/8080:80"]),
    ],
)
def test_a_port_is_said_in_its_way(port: Port, option: str, expected: list[str]) -> None:
    found = words(BOTH, port)
    assert values(found, option) == expected
    other = "--udp-ports" if option == "--tcp-ports" else "--tcp-ports"
    assert values(found, other) == ["none"]


def test_of_one_family_ports_are_published_on_that_alone() -> None:
    found = words(IPV4, Port("a", "tcp", "", 8080, 80))
    assert values(found, "--tcp-ports") == ["0.0.0.0/8080:80"]
    assert "--ipv4-only" in found
    assert values(found, "--interface") == ["wlan0"]


def test_addresses_and_resolvers_are_passed_on() -> None:
    found = words(BOTH, resolvers=("172.16.29.1",))
    assert values(found, "--address") == ["172.16.29.2", "fd00::2"]
    assert values(found, "--gateway") == ["172.16.29.1", "fd00::1"]
    assert values(found, "--netmask") == ["24"]
    assert values(found, "--dns-forward") == ["172.16.29.1"]


def test_a_configuration_is_understood_again() -> None:
    network = pasta.network("default", BOTH)
    assert pasta.decided(network.conf) == BOTH
    assert pasta.serves([network])
    assert pasta.families([network]) == {4, 6}
    assert not pasta.serves([])
    assert not pasta.serves([network, network])


@pytest.mark.parametrize("conf", ["", "[]", "{}", '{"plugins": []}', '{"plugins": [{"type": "ptp"}]}',
                                  '{"plugins": [{"type": "pasta"}]}'])  # fmt: skip
def test_what_is_none_of_its_is_left_to_others(conf: str) -> None:
    assert pasta.decided(conf) is None
    assert pasta.families([Network("default", "eth0", conf)]) == set()


def test_the_result_is_one_of_cni() -> None:
    result = json.loads(json.dumps(pasta.result(BOTH, "eth0")))
    assert [ip["address"] for ip in result["ips"]] == list(BOTH.addresses)
    assert [route["dst"] for route in result["routes"]] == ["0.0.0.0/0", "::/0"]
    assert result["interfaces"][0]["sandbox"]
