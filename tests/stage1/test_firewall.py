"""The elements that a pod's networks and ports become."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import NetworkError
from stage1.network import firewall
from stage1.network.plan import Port
from stage1.network.record import Element

WEB = Port("web", "tcp", "", 8080, 80)
BOTH = ("172.16.28.2/24", "fd11::2/64")


def test_a_port_on_every_address() -> None:
    assert firewall.publication([WEB], BOTH) == [
        Element("any4", "tcp . 8080", "172.16.28.2 . 80"),
        Element("any6", "tcp . 8080", "fd11::2 . 80"),
        Element("snat4", "172.16.28.2 . 127.0.0.0/8"),
        Element("snat4", "172.16.28.2 . 172.16.28.0/24"),
        Element("snat6", "fd11::2 . ::1"),
        Element("snat6", "fd11::2 . fd11::/64"),
    ]


def test_a_pod_that_can_answer_the_host_only() -> None:
    assert firewall.publication([WEB], BOTH, routed="")[2:] == [
        Element("snat4", "172.16.28.2 . 0.0.0.0/0"),
        Element("snat6", "fd11::2 . ::/0"),
    ]


def test_the_first_address_of_each_family_and_only_the_families_there_are() -> None:
    found = firewall.publication([WEB], ["172.16.28.2", "172.16.28.3/24"])
    assert [each.where for each in found] == ["any4", "snat4", "snat4"]
    assert found[2].key == "172.16.28.2 . 172.16.28.2"


def test_a_range_is_an_element_for_each() -> None:
    found = firewall.publication([WEB._replace(span=3, host_ip="2001:DB8:0::1")], BOTH)
    assert found[:3] == [Element("host6", f"2001:db8::1 . tcp . {8080 + n}", f"fd11::2 . {80 + n}") for n in range(3)]
    assert {each.where for each in found[3:]} == {"snat6"}


@pytest.mark.parametrize(("host_ip", "where"), [("0.0.0.0", "any4"), ("::", "any6")])
def test_every_address_of_one_family(host_ip: str, where: str) -> None:
    assert firewall.publication([WEB._replace(host_ip=host_ip)], BOTH)[0].where == where
    assert firewall.publication([WEB._replace(host_ip=host_ip)], BOTH)[1].where != "any6"


@pytest.mark.parametrize(
    ("port", "addresses", "words"),
    [
        (
            WEB._replace(host_ip="::1"),
            ["172.16.28.2/24"],
            'on "::1": no network gives the pod an IPv6 address',
        ),
        (WEB._replace(host_ip="127.0.0.1"), ["fd11::2"], "no network gives the pod an IPv4 address"),
        (WEB, [], "no network gives the pod an IPv4/IPv6 address"),
        (WEB._replace(protocol="icmp"), BOTH, 'port "web" cannot be published'),
        (WEB._replace(host_port=65535, span=2), BOTH, "cannot be published"),
        (WEB, ["172.16.28.2 } ; flush ruleset"], "is not an IP address"),
        (WEB, ["172.16.28.2/33"], "is not a subnet"),
        (WEB, ["172.16.28.2/24 }"], "is not a subnet"),
        (WEB._replace(host_ip="nowhere"), BOTH, '"nowhere" is not an IP address'),
    ],
)
def test_what_cannot_be_published(port: Port, addresses: list[str], words: str) -> None:
    with pytest.raises(NetworkError, match=words):
        firewall.publication([port], addresses)


def test_masquerading_and_restriction() -> None:
    inside = Element("inside4", "172.16.28.2 . 172.16.28.0/24")
    assert firewall.masquerade("172.16.28.2", "172.16.28.9/24") == [Element("masquerade4", "172.16.28.2"), inside]
    assert firewall.restrict("172.16.28.2", "172.16.28.0/24") == [Element("restricted4", "172.16.28.2"), inside]
    assert firewall.restrict("fd11::2", "fd11::/64", "rk0-1")[2] == Element("restricted", "rk0-1")


@pytest.mark.parametrize(
    "subnet", ["fd11::/64", "172.16.28.0/-1", "172.16.28.0/ 24", "172.16.28.0/²", "x/24", "1.2.3.4/"]
)
def test_subnets_that_are_none(subnet: str) -> None:
    with pytest.raises(NetworkError):
        firewall.masquerade("172.16.28.2", subnet)


@given(st.text())
def test_nothing_but_addresses_gets_into_a_script(text: str) -> None:
    for make in (firewall.masquerade, firewall.restrict):
        for address, subnet in ((text, "10.0.0.0/8"), ("10.0.0.1", text)):
            try:
                elements = make(address, subnet)
            except NetworkError:
                continue
            for each in elements:
                assert set(each.key) <= set("0123456789abcdef:./ ")


@given(st.builds(Element, st.just("restricted"), st.text(), st.text()))
def test_an_element_cannot_be_more_than_one(element: Element) -> None:
    try:
        script = firewall._statements("create", [element])
    except NetworkError:
        return
    assert script.count("\n") == 1
    assert not set(element.key + element.value) & set('{};"\\#,')
