"""What of networks a virtual machine cannot have, and what is said when it cannot do as told; needs no root."""

from __future__ import annotations

import json
from typing import Any

import pytest

from common.errors import LaunchError, UsageError
from stage1.flavour import PreparedPod
from stage1.network.plan import Network
from stage1.vm import guestnet, networks


def pod(**fields: Any) -> PreparedPod:
    base = PreparedPod("the-uuid", "/pod", 3, (), None, (), (), "", "auto", False, (), (), False)
    return base._replace(**fields)


def network(kind: str) -> Network:
    return Network("lan", "eth0", json.dumps({"name": "lan", "plugins": [{"type": kind}, {"type": "tuning"}]}))


@pytest.mark.parametrize(
    "fields",
    [{"net": ("none",)}, {"networks": (network("ptp"), network("bridge"), network("macvlan"), network("flannel"))}],
    ids=["none", "networks"],
)
def test_networks_of_frames_are_for_machines_too(fields: dict[str, Any]) -> None:
    assert networks.check(pod(**fields)) == []


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "the host's": ({"net": ("host",)}, "--net=host: "),
    "a namespace": ({"net": ("ns:/run/netns/x",), "join": "/run/netns/x"}, "--net=ns:/run/netns/x: "),
    "ipvlan": ({"networks": (network("ptp"), network("ipvlan"))}, 'network "lan" is an ipvlan'),
    "too many": ({"networks": (network("ptp"),) * (networks.MOST + 1)}, f"{networks.MOST + 1} networks are more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_machine_cannot_be_on_is_refused_with_a_hint(case: str) -> None:
    fields, text = REFUSED[case]
    with pytest.raises(UsageError) as caught:
        networks.check(pod(**fields))
    assert caught.value.message.startswith(text)
    assert caught.value.hint or case == "too many"


def test_what_is_packed_is_what_is_carried_out() -> None:
    steps = [guestnet.link("eth7", 1, 1, b"\1\2"), ("core/somaxconn", "77", True)]
    about, kind, body, places = json.loads(guestnet.pack(steps))[0]
    assert (about, kind, places) == ("set up eth7", 16, [[4, "eth7"]])
    assert bytes.fromhex(body).endswith(b"\1\2")


def test_a_sysctl_that_is_not_there_matters_where_somebody_asked_for_it() -> None:
    with pytest.raises(LaunchError, match=r"^write 1 to /proc/sys/net/no/such: the machine's kernel has none$"):
        guestnet.set_sysctl("no/such", "1", True)
    guestnet.set_sysctl("no/such", "1", False)
