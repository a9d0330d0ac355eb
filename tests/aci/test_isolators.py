"""Each known isolator with values that mean something and values that do not."""

from __future__ import annotations

from typing import Any

import pytest

from aci import isolators
from aci.image_manifest import Isolator
from common.errors import ManifestError

OPPOSITES = ("os/linux/capabilities-retain-set", "os/linux/capabilities-remove-set")
CAPABILITIES = (*OPPOSITES, "os/linux/ambient-capabilities-set")
SECCOMP = ("os/linux/seccomp-retain-set", "os/linux/seccomp-remove-set")
AMOUNTS = ("resource/cpu", "resource/memory")
RATES = ("resource/block-bandwidth", "resource/block-iops", "resource/network-bandwidth")

GOOD: dict[tuple[str, ...], list[Any]] = {
    CAPABILITIES: [{"set": ["CAP_NET_RAW"]}, {"set": ["CAP_CHOWN", "CAP_SYS_ADMIN"]}],
    SECCOMP: [
        {"set": ["read"]},
        {"set": ["@appc.io/all", "_llseek"], "errno": "EPERM"},
        {"set": ["read"], "errno": ""},
    ],
    ("os/linux/no-new-privileges",): [True, False],
    ("os/linux/oom-score-adj",): [-1000, 0, 1000],
    ("os/linux/cpu-shares",): [2, 262144],
    ("os/linux/selinux-context",): [{"user": "u", "role": "r", "type": "t", "level": "s0:c1,c2"}],
    ("os/linux/apparmor-profile",): [{"profile": "docker-default"}],
    ("os/unix/sysctl",): [{}, {"net.ipv4.ip_forward": "1", "net/ipv4/conf/eth0.1/forwarding": "0"}],
    AMOUNTS: [{"limit": "500m"}, {"request": "1", "limit": "2"}, {"limit": 1, "default": False}, {}, {"limit": None}],
    RATES: [{"default": True, "limit": "2M"}],
    ("os/unix/rlimit",): [
        {"name": "NOFILE", "soft": 1024, "hard": 4096},
        {"name": "CORE", "soft": 0, "hard": 0},
        {"name": "AS", "soft": 1, "hard": "unlimited"},
        {"name": "RTTIME", "soft": "unlimited", "hard": "unlimited"},
        {"name": "FSIZE", "soft": 1, "hard": 2**63 - 1},
    ],
    ("resource/pids",): [{"limit": 1}, {"limit": 4194304}],
}
BAD: dict[tuple[str, ...], list[tuple[Any, str]]] = {
    CAPABILITIES: [
        (None, "must be an object"),
        ({}, "set: .*is missing"),
        ({"set": []}, "must not be empty"),
        ({"set": "CAP_KILL"}, "must be a list, not a string"),
        ({"set": ["KILL"]}, r"set\[0\].*not the name of a capability"),
        ({"set": ["CAP_KILL", "cap_kill"]}, r"set\[1\]"),
        ({"set": ["CAP_"]}, "not the name of a capability"),
        ({"Set": ["CAP_KILL"]}, "spelt set"),
    ],
    SECCOMP: [
        ({"set": []}, "must not be empty"),
        ({"set": ["@all"]}, "not the name of a system call"),
        ({"set": ["@/all"]}, "not the name of a system call"),
        ({"set": ["@appc.io/"]}, "not the name of a system call"),
        ({"set": [""]}, "not the name of a system call"),
        ({"set": ["rm -rf"]}, "not the name of a system call"),
        ({"set": ["read"], "errno": "EPERM "}, "error number"),
        ({"set": ["read"], "errno": "E"}, "error number"),
        ({"set": ["read"], "errno": "eperm"}, "error number"),
        ({"set": ["read"], "errno": 1}, "must be a string"),
    ],
    ("os/linux/no-new-privileges",): [(1, "true or false"), ("true", "true or false"), (None, "true or false")],
    ("os/linux/oom-score-adj",): [(-1001, "-1000 to 1000"), (1001, "-1000"), (True, "integer"), (1.0, "integer")],
    ("os/linux/cpu-shares",): [(1, "2 to 262144"), (262145, "2 to 262144"), ("1024", "integer")],
    ("os/linux/selinux-context",): [
        ({"user": "a:b"}, "user.*must not contain"),
        ({"level": 1}, "level"),
        ([], "object"),
    ],
    ("os/linux/apparmor-profile",): [({}, "profile: .*is missing"), ({"profile": ""}, "must not be empty")],
    ("os/unix/sysctl",): [
        ({"": "1"}, "sysctl"),
        ({"../x": "1"}, "sysctl"),
        ({"a": 1}, "string"),
        ({"/a": "1"}, "sysctl"),
    ],
    AMOUNTS: [
        ({"limit": "much"}, "limit: .*not a quantity"),
        ({"limit": "-1"}, "limit: .*not a quantity"),
        ({"limit": "0"}, "limit: .*more than 0"),
        ({"limit": True}, "limit: .*quantity"),
        ({"limit": ["1"]}, "limit: .*quantity"),
        ({"limit": float("inf")}, "limit: .*quantity"),
        ({"request": "16 Mi"}, "request: .*not a quantity"),
        ({"limit": "1", "default": True}, "default: .*false"),
        ("500m", "must be an object"),
    ],
    RATES: [
        ({"limit": "1"}, "default: .*true"),
        ({"default": True}, "limit: .*missing"),
        ({"default": True, "limit": "1", "request": "1"}, "request: .*no meaning"),
    ],
    ("os/unix/rlimit",): [
        ({"name": "NOFILE", "soft": 2, "hard": 1}, "soft: .*not be more than hard"),
        ({"name": "NOFILE", "soft": "unlimited", "hard": 1}, "soft: .*not be more than hard"),
        ({"name": "nofile", "soft": 1, "hard": 1}, "name: .*not the name of a resource"),
        ({"name": "NOFILE", "soft": 1}, "hard: .*missing"),
        ({"name": "NOFILE", "soft": -1, "hard": -1}, "soft: .*must be 0 to"),
        ({"name": "NOFILE", "soft": 1, "hard": 2**63}, "hard: .*must be 0 to"),
        ({"name": "NOFILE", "soft": "1", "hard": 1}, "soft: .*integer"),
        ({"name": "NOFILE", "soft": True, "hard": 1}, "soft: .*integer"),
        ([], "must be an object"),
    ],
    ("resource/pids",): [
        ({"limit": 0}, "limit: .*must be 1 to"),
        ({"limit": "5"}, "limit: .*integer"),
        ({}, "limit: .*missing"),
    ],
}


def test_the_tables_know_every_isolator() -> None:
    for table in (GOOD, BAD):
        assert {name for names in table for name in names} == set(isolators.KNOWN)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for names, values in GOOD.items() for name in names for value in values]
)
def test_values(name: str, value: Any) -> None:
    isolators.check([Isolator(name, value)])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [(name, value, said) for names, cases in BAD.items() for name in names for value, said in cases],
)
def test_values_refused(name: str, value: Any, said: str) -> None:
    with pytest.raises(ManifestError, match=said) as caught:
        isolators.check([Isolator("example.com/unknown", 1), Isolator(name, value)])
    assert caught.value.message.startswith("[1].value")
    assert name in caught.value.message


@pytest.mark.parametrize(
    "name",
    [*SECCOMP, "os/linux/oom-score-adj", "os/linux/cpu-shares", "os/linux/selinux-context", "os/linux/apparmor-profile",
     "os/unix/sysctl"],
)  # fmt: skip
def test_at_most_once(name: str) -> None:
    with pytest.raises(ManifestError, match=rf"\[1\]: the isolator \"{name}\" is given twice"):
        isolators.check([Isolator(name, _good(name))] * 2)


@pytest.mark.parametrize(
    "name", [*CAPABILITIES, "os/linux/no-new-privileges", "os/unix/rlimit", "resource/pids", *AMOUNTS, *RATES]
)
def test_repeatable(name: str) -> None:
    isolators.check([Isolator(name, _good(name))] * 2)


@pytest.mark.parametrize("family", [OPPOSITES, SECCOMP])
def test_retain_and_remove_exclude_each_other(family: tuple[str, str]) -> None:
    for one, other in (family, family[::-1]):
        with pytest.raises(ManifestError, match="exclude each other"):
            isolators.check([Isolator(one, _good(one)), Isolator(other, _good(other))])


def test_unknown_ones_are_named_once_and_not_judged() -> None:
    found = [Isolator("b/x", object()), Isolator("resource/cpu", {}), Isolator("a", None), Isolator("b/x", 1)]
    isolators.check(found)
    assert isolators.unknown(found) == ("b/x", "a")


def _good(name: str) -> Any:
    return next(values[0] for names, values in GOOD.items() if name in names)
