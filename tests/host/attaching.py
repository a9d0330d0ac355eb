"""`cni` as the worker and what detaches use it, in a process of its own: reads a request, writes what came of it."""

from __future__ import annotations

import json
import sys
from typing import Any

from common.errors import NetworkError
from stage1.network import cni, firewall, netns
from stage1.network.plan import Names, Network, NetworkPlan, Port
from stage1.network.plugin import Call
from stage1.network.record import Attachment, Record


def answer(request: dict[str, Any]) -> Any:
    args = tuple((name, value) for name, value in request["args"].items())
    network = Network(request["conf"]["name"], request["interface"], json.dumps(request["conf"]), args)
    ports = tuple(Port(*port) for port in request["ports"])
    plan = NetworkPlan(
        request["uuid"], "/pod", (network,), Names("h"), ports, request["bandwidth"], tuple(request["path"])
    )
    runtime = cni.runtime(plan, network)
    attachment = Attachment(network.name, network.interface, network.conf, args, runtime=json.dumps(runtime),
                            result=json.dumps(request["result"]) if request["result"] else "")  # fmt: skip
    record = Record(plan.uuid, netns.place(plan.uuid), plan.plugin_path, plan.system_plugin_path, (attachment,))
    match request["verb"]:
        case "add":
            result, elements = cni.add(plan, network, netns.pin(request["netns"], plan.uuid), runtime)
            firewall.apply(elements, plan.uuid)
            return [result, elements]
        case "check":
            return cni.check(record, attachment, request["netns"])
        case "delete":
            firewall.withdraw(plan.uuid)
            return cni.delete(record, attachment, record.netns)
        case "uses programs":
            return cni.uses_programs(plan)
        case "pin":
            return netns.pin(request["netns"], plan.uuid)
        case "unpin":
            return netns.unpin(plan.uuid)
        case command:
            conf = {"cniVersion": request["conf"]["cniVersion"], "name": network.name, **request["conf"]["plugins"][0]}
            call = Call(plan.uuid, record.netns, network.interface, dict(args), conf, plan.plugin_path,
                        plan.system_plugin_path, [])  # fmt: skip
            return cni.ipam(call, command)


if __name__ == "__main__":
    try:
        said = {"answer": answer(json.load(sys.stdin))}
    except NetworkError as error:
        said = {"error": str(error)}
    print(json.dumps(said))
