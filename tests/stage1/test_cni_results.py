"""Results of plugins: every version's form, and answers that are none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import NetworkError
from stage1.network import results

RICH = ("0.3.0", "0.3.1", "0.4.0", "1.0.0")
WORDS = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=20)
ADDRESSES = st.ip_addresses().map(lambda address: results.address(str(address)))
NETWORKS = st.tuples(ADDRESSES, st.integers(0, 32)).map(lambda pair: f"{pair[0]}/{pair[1]}")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def table(required: dict[str, Any], optional: dict[str, Any]) -> Any:
    return st.fixed_dictionaries(required, optional=optional)


DNS = table({}, {name: st.lists(WORDS, min_size=1) for name in ("search", "options")}
            | {"domain": WORDS, "nameservers": st.lists(ADDRESSES, min_size=1)})  # fmt: skip


@st.composite
def any_result(draw: st.DrawFn) -> dict[str, Any]:
    interfaces = draw(st.lists(table({"name": WORDS}, {"mac": WORDS, "sandbox": WORDS}), max_size=3))
    ip = {"gateway": ADDRESSES} | ({"interface": st.integers(0, len(interfaces) - 1)} if interfaces else {})
    return {
        "cniVersion": "1.0.0",
        "interfaces": interfaces,
        "ips": draw(st.lists(table({"address": NETWORKS}, ip))),
        "routes": draw(st.lists(table({"dst": NETWORKS}, {"gw": ADDRESSES}))),
        "dns": draw(DNS),
    }


@given(any_result(), st.sampled_from(RICH))
def test_nothing_is_lost_between_rich_versions(result: dict[str, Any], version: str) -> None:
    emitted = json.loads(json.dumps(results.emit(result, version)))
    assert emitted["cniVersion"] == version
    assert results.parse(emitted, "0.1.0") == result


@given(any_result(), st.sampled_from(("0.1.0", "0.2.0")))
def test_old_versions_keep_the_first_address_of_each_family(result: dict[str, Any], version: str) -> None:
    emitted = results.emit(result, version)
    again = results.parse(emitted, version)
    for four in (True, False):
        before = [ip["address"] for ip in result["ips"] if results.is_ipv4(ip["address"]) is four]
        assert [ip["address"] for ip in again["ips"] if results.is_ipv4(ip["address"]) is four] == before[:1]
    assert again["dns"] == result["dns"]
    assert results.emit(again, version) == emitted


@pytest.mark.parametrize("version", RICH)
def test_versions_differ_in_the_family(version: str) -> None:
    result = {**results.empty(), "ips": [{"address": "10.0.0.2/24"}, {"address": "fd00::2/64"}]}
    families = [ip.get("version") for ip in results.emit(result, version)["ips"]]
    assert families == ([None, None] if version == "1.0.0" else ["4", "6"])


def test_the_first_versions() -> None:
    found = results.parse(
        {
            "ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
            "ip6": {"ip": "FD00:0::2/64", "routes": [{"dst": "::/0", "gw": "fd00::1"}]},
            "dns": {"nameservers": ["10.0.0.1"], "domain": "", "search": None},
        },
        "0.1.0",
    )
    assert found == {
        "cniVersion": "1.0.0",
        "interfaces": [],
        "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}, {"address": "fd00::2/64"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00::1"}],
        "dns": {"nameservers": ["10.0.0.1"]},
    }


def test_an_answer_without_version_is_in_that_of_the_question() -> None:
    assert results.parse({"ips": [{"address": "10.0.0.2/24"}]}, "1.0.0")["ips"] == [{"address": "10.0.0.2/24"}]
    assert results.parse({"ips": [{"address": "10.0.0.2/24"}]}, "0.2.0")["ips"] == []


def test_addresses_are_those_of_the_interface_in_the_pod() -> None:
    result = results.parse(
        {
            "interfaces": [{"name": "eth0"}, {"name": "eth0", "sandbox": "/x"}, {"name": "eth1", "sandbox": "/x"}],
            "ips": [{"interface": index, "address": f"10.0.0.{index}/24"} for index in range(3)]
            + [{"address": "fd00::9/64"}],
        },
        "1.0.0",
    )
    assert results.addresses(result, "eth0") == ["10.0.0.1/24", "fd00::9/64"]
    assert len(results.addresses(result)) == 4


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "text",
        {"cniVersion": "7.0.0"},
        {"cniVersion": ["1.0.0"]},
        {"cniVersion": {}},
        {"ips": {}},
        {"ips": ["10.0.0.2/24"]},
        {"ips": [{"address": "10.0.0.2"}]},
        {"ips": [{"address": "10.0.0.2/33"}]},
        {"ips": [{"address": "10.0.0.2/-1"}]},
        {"ips": [{"address": "10.0.0.2/²"}]},
        {"ips": [{"address": "10.0.0.2/24", "gateway": "here"}]},
        {"ips": [{"address": "10.0.0.2\0/24"}]},
        {"ips": [{"address": "010.0.0.2/24"}]},
        {"ips": [{"address": "::\udcff/24"}]},
        {"ips": [{"address": 7}]},
        {"ips": [{"address": "10.0.0.2/24", "interface": 0}]},
        {"ips": [{"address": "10.0.0.2/24", "interface": -1}], "interfaces": [{"name": "a"}]},
        {"ips": [{"address": "10.0.0.2/24", "interface": True}], "interfaces": [{"name": "a"}, {"name": "b"}]},
        {"interfaces": [{}]},
        {"interfaces": [{"name": "a b"}]},
        {"interfaces": [{"name": "a\n"}]},
        {"interfaces": [{"name": "a\x1b[2J"}]},
        {"routes": [{"gw": "10.0.0.1"}]},
        {"routes": [{"dst": "default"}]},
        {"dns": []},
        {"dns": {"nameservers": ["10.0.0.1\nnameserver 10.0.0.2"]}},
        {"dns": {"search": ["a b"]}},
        {"dns": {"domain": "\n"}},
        {"dns": {"options": [1]}},
    ],
)
def test_nonsense(document: Any) -> None:
    with pytest.raises(NetworkError) as error:
        results.parse(document, "1.0.0")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("document", [{"ip4": {"ip": "fd00::2/64"}}, {"ip6": {"ip": "10.0.0.2/24"}}, {"ip4": []}])
def test_nonsense_of_old(document: Any) -> None:
    with pytest.raises(NetworkError):
        results.parse(document, "0.2.0")


@given(table({}, dict.fromkeys(("cniVersion", "interfaces", "ips", "routes", "dns", "ip4", "ip6"), JSON)))
def test_whatever_is_answered_is_a_result_or_an_error(document: dict[str, Any]) -> None:
    try:
        found = results.parse(document, "0.2.0")
    except NetworkError:
        return
    assert results.parse(found, "1.0.0") == found
