"""What IPAM plugins give out: programs of anybody may have made it up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import NetworkError
from stage1.network import addresses, links
from stage1.network.plugin import Call

UUID = "0f9f1c51-7a77-4a1c-a4cf-6c0c0f2a5b1e"


def _call(interface: str = "eth0", **conf: Any) -> Call:
    return Call(UUID, "", interface, {}, {"name": "n", "type": "ptp", **conf}, (), (), [])


JSON = st.recursive(
    st.none()
    | st.integers(-1, 300)
    | st.sampled_from(["10.1.2.3/24", "fd00::1/64", "10.1.2.1", "::/0", "", "x", "1/"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["address", "gateway", "dst", "gw", "x"]), inner),
    max_leaves=6,
)


@given(st.fixed_dictionaries({}, optional={"ips": JSON, "routes": JSON, "dns": JSON}))
def test_nonsense_is_one_line(result: dict[str, Any]) -> None:
    try:
        leases = addresses.understand(_call(), result)
    except NetworkError as error:
        assert "\n" not in str(error)
    else:
        assert leases.addresses


def test_routes_are_by_the_gateway_of_their_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "has_ipv6", lambda: True)
    ips = [{"address": "10.1.2.3/24", "gateway": "10.1.2.1"}, {"address": "fd00::3/64", "gateway": "fd00::1"}]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.2.9"}]
    leases = addresses.understand(_call("eth2"), {"ips": ips, "routes": routes})
    assert leases.routes == (
        addresses.Route("0.0.0.0/0", "10.1.2.1", 200),
        addresses.Route("::/0", "fd00::1", 1224),
        addresses.Route("10.9.0.0/16", "10.1.2.9", 0),
    )


def test_a_machine_without_ipv6_has_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "has_ipv6", lambda: False)
    v4, v6 = {"address": "10.1.2.3/24"}, {"address": "fd00::3/64"}
    leases = addresses.understand(_call(), {"ips": [v6, v4], "routes": [{"dst": "::/0"}, {"dst": "0.0.0.0/0"}]})
    assert [address.address for address in leases.addresses] == ["10.1.2.3"]
    assert [route.destination for route in leases.routes] == ["0.0.0.0/0"]
    with pytest.raises(NetworkError, match="this machine has no IPv6"):
        addresses.understand(_call(), {"ips": [v6]})


@pytest.mark.parametrize(
    ("subnet", "first"), [("10.1.2.3/24", "10.1.2.1"), ("10.1.2.3/32", "10.1.2.3"), ("fd00::9/64", "fd00::1")]
)
def test_the_first_address_of_a_subnet(monkeypatch: pytest.MonkeyPatch, subnet: str, first: str) -> None:
    monkeypatch.setattr(links, "has_ipv6", lambda: True)
    [address] = addresses.understand(_call(), {"ips": [{"address": subnet}]}).addresses
    assert address.first == first


def test_hardware_addresses() -> None:
    first, second = _call("eth0"), _call("eth1")
    assert links.host_mac(first) == links.host_mac(first) != links.host_mac(second)
    assert links.host_end(second) == "rk1-0f9f1c51"
    assert links.pod_mac(first) != links.pod_mac(first)
    runtime = {"mac": "02:00:00:00:00:01"}
    asked = first._replace(args={"MAC": "02-00-00-00-00-0A"})
    assert links.requested_mac(asked) == "02:00:00:00:00:0a"
    assert links.requested_mac(asked._replace(conf={"runtimeConfig": runtime})) == runtime["mac"]
    for wrong in ("01:00:00:00:00:01", "02:00:00:00:00", "02:00:00:00:00:01:02", 7, "02:00:00:00:00:01\n"):
        with pytest.raises(NetworkError):
            links.requested_mac(_call(mac=wrong))


@pytest.mark.parametrize("value", ["a/b", "a b", "..", ".", "a" * 16, 7, "a\0", "a:1", "%d"])
def test_names_of_interfaces(value: object) -> None:
    with pytest.raises(NetworkError):
        links.interface_name(_call(bridge=value), "bridge")


@pytest.mark.parametrize("value", ["1500", 67, 65536, True, -1, 1.5])
def test_sizes(value: object) -> None:
    with pytest.raises(NetworkError):
        links.mtu(_call(mtu=value))
