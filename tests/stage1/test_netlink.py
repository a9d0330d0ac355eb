"""pyroute2's codecs without its package, and what the kernel's answers are taken for."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import NetworkError
from stage1.network import netlink

ROOT = Path(__file__).parent.parent.parent


def _run(code: str) -> list[object]:
    words = [sys.executable, "-c", f"import json, sys\n{code}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    found: list[object] = json.loads(done.stdout)
    return found


def test_only_the_codecs_are_loaded() -> None:
    code = "from stage1.network import netlink; netlink.load(); netlink.queueing(); print(json.dumps([*sys.modules]))"
    loaded = _run(code)
    assert "pyroute2.netlink.rtnl.ifinfmsg" in loaded
    assert not {"asyncio", "pyroute2", "pyroute2.iproute", "pyroute2.ndb.main"} & {*map(str, loaded)}


def test_they_are_the_ones_that_the_whole_package_has() -> None:
    code = """
from stage1.network import netlink
import pyroute2
from pyroute2.netlink.rtnl import ifinfmsg, ifaddrmsg, rtmsg
from pyroute2.iproute.linux import ifinfmsg as used
print(json.dumps([netlink._Link is ifinfmsg.ifinfmsg, netlink._Address is ifaddrmsg.ifaddrmsg,
                  netlink._Route is rtmsg.rtmsg, used is ifinfmsg.ifinfmsg, hasattr(pyroute2, "IPRoute")]))
"""
    assert _run(code) == [True] * 5


def test_a_package_that_is_loaded_already_is_used() -> None:
    code = """
import pyroute2
from stage1.network import netlink
print(json.dumps([sys.modules["pyroute2"] is pyroute2, hasattr(pyroute2, "IPRoute")]))
"""
    assert _run(code) == [True, True]


def test_that_it_is_missing_is_one_line() -> None:
    code = """
import importlib.util
from common.errors import NetworkError
importlib.util.find_spec = lambda name: None
sys.modules["pyroute2"] = None
try:
    from stage1.network import netlink
except NetworkError as error:
    print(json.dumps([str(error)]))
"""
    [message] = _run(code)
    assert str(message).startswith("networks need pyroute2: ")
    assert "--net=none" in str(message)


def test_the_kernels_own_words_are_told() -> None:
    with netlink.Netlink() as net, pytest.raises(netlink.Refused) as caught:
        net.do(netlink.create("rkpy-none", "no-such-kind", []))
    assert str(caught.value).startswith("create no-such-kind rkpy-none: operation not permitted") or (
        str(caught.value) == "create no-such-kind rkpy-none: operation not supported (Unknown device type)"
    )


def test_the_first_of_several_failures_is_told() -> None:
    with netlink.Netlink() as net:
        lo = net.need("lo")
        with pytest.raises(netlink.Refused, match=r"^change rkpy-none1: "):
            net.do(netlink.change("rkpy-none1", []), netlink.change("rkpy-none2", []))
        # And the socket is not out of step.
        assert net.need("lo") == lo


def test_what_is_there_is_seen() -> None:
    with netlink.Netlink() as net:
        lo = net.need("lo")
        assert (lo.number, lo.name, lo.mac) == (1, "lo", "00:00:00:00:00:00")
        assert net.link_at(1) == lo
        assert net.link("rkpy-none") is None
        assert net.link_at(1 << 30) is None
        with pytest.raises(NetworkError, match=r"^there is no interface rkpy-none$"):
            net.need("rkpy-none")


@pytest.mark.parametrize("body", [b"", b"\0", struct.pack("=i", 0)])
def test_an_acknowledgement_is_no_failure(body: bytes) -> None:
    assert netlink._failure("x", 2, 0, body) == []


def test_an_extended_acknowledgement_may_end_anywhere() -> None:
    words = struct.pack("=i16x", -22) + struct.pack("=HH4s", 8, 1, b"abc\0")
    for end in range(4, len(words) + 1):
        [failure] = netlink._failure("x", 2, 0x200, words[:end])
        assert str(failure).startswith("x: invalid argument")
    assert str(failure) == "x: invalid argument (abc)"
