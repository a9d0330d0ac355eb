"""The pod's hosts file as an app has it: mounted on its own, asked through the C library."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

from stage1.network.plan import Names, Network, NetworkPlan
from tests.netlab import Lab

ROOT = str(pathlib.Path(__file__).parent.parent.parent)
CODE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from stage1.network import names
from stage1.network.plan import Names, Network, NetworkPlan
name, plan, results = json.load(sys.stdin)
if name == "forget":
    names.forget(plan)
else:
    networks = tuple(Network(*each) for each in plan[2])
    said = Names(*(tuple(each) if isinstance(each, list) else each for each in plan[3]))
    names.write(NetworkPlan(plan[0], plan[1], networks, said), results)
"""


def call(lab: Lab, name: str, plan: Any, results: Any = ()) -> None:
    lab.host(sys.executable, "-I", "-S", "-c", CODE, ROOT, input=json.dumps((name, plan, results)))


def test_a_peer_that_comes_and_goes_is_seen_through_the_mount(tmp_path: pathlib.Path) -> None:
    ptp = Network("net", "eth0", '{"plugins": [{"type": "ptp"}]}')
    first = NetworkPlan("1" * 8, str(tmp_path / "first"), (ptp,), Names("first", "shop", ("web",), ("none",)))
    second = NetworkPlan("2" * 8, str(tmp_path / "second"), (ptp,), Names("second", "", ("db",), ("none",)))
    with Lab() as lab:

        def asked(name: str) -> list[str]:
            output = lab.host("getent", "-s", "hosts:files", "ahosts", name, check=False)
            return sorted({line.split()[0] for line in output.splitlines()})

        def result(last: int) -> list[tuple[str, Any]]:
            return [("net", {"ips": [{"address": f"10.0.0.{last}/24", "gateway": "10.0.0.1"},
                                     {"address": f"fd00::{last}/64"}]})]  # fmt: skip

        call(lab, "write", first, result(2))
        lab.host("mount", "--bind", str(tmp_path / "first" / "etc" / "hosts"), "/etc/hosts")
        assert asked("web.shop") == asked("shop") == asked("first") == ["10.0.0.2", "fd00::2"]
        assert asked("host.rkpy.internal") == ["10.0.0.1"]
        assert asked("db.second") == []
        call(lab, "write", second, result(3))
        assert asked("db.second") == asked("second") == asked("db") == ["10.0.0.3", "fd00::3"]
        call(lab, "forget", second.uuid)
        assert asked("db.second") == []
        assert asked("web.shop") == ["10.0.0.2", "fd00::2"]
