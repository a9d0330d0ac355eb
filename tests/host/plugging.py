"""One plugin's functions called by a process of their own, which a test runs in the namespace that plays the host.

Its arguments are the repository and the verbs; on its standard input are the fields of a `Call`. It prints one JSON
object: `error`, or `result`, `elements` and `took` (milliseconds); and how many of pyroute2's modules are `loaded`.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def _do(verb: str, fields: dict[str, Any]) -> dict[str, Any]:
    import importlib

    from common.errors import RkpyError
    from stage1.network.plugin import BUILTIN, Call

    call = Call(**{**fields, "elements": []})
    module = importlib.import_module(f"stage1.network.{BUILTIN[call.conf['type']]}")
    try:
        if verb == "add":
            _warm()
        begun = time.perf_counter()
        result = getattr(module, verb)(call)
        took = (time.perf_counter() - begun) * 1000
    except RkpyError as error:
        return {"error": str(error)}
    finally:
        if verb == "add" and "apply" in sys.argv:
            from stage1.network import firewall

            firewall.apply(call.elements, call.container)
    return {"result": result, "elements": call.elements, "took": took}


def _warm() -> None:
    import stage1.network.firewall
    import stage1.network.leases
    import stage1.network.wires  # noqa: F401
    from stage1.network import netlink

    netlink.load()


def _open(interface: str) -> dict[str, Any]:
    from stage1.network import links

    links.open_loopback(interface)
    return {}


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    fields = json.load(sys.stdin)
    answer = _open(fields) if sys.argv[2] == "open" else _do(sys.argv[2], fields)
    loaded = [name for name in sys.modules if name.partition(".")[0] == "pyroute2"]
    print(json.dumps({**answer, "loaded": len(loaded), "asyncio": "asyncio" in sys.modules}))
