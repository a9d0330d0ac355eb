"""Isolators: the restrictions a manifest asks for (spec 0.8.11, "ace.md", the reference schema for those it adds, and
three of our own: `os/unix/rlimit`, `os/linux/ambient-capabilities-set` and `resource/pids`).

Isolators are handled as the (name, value) pairs that `aci.image_manifest.Isolator` is. Values stay JSON values; here is
checked that those of known isolators mean something. Unknown ones are kept, and `unknown` names them for a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from aci.document import (
    Flaw,
    boolean,
    each,
    expected,
    field,
    integer,
    located,
    record,
    required,
    text,
    texts,
    word,
)
from aci.types import quantity, quote
from common.errors import ManifestError
from common.records import NamedTuple

_UPPER: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LOWER: Final = _UPPER.lower()
_DIGITS: Final = "0123456789"


class Known(NamedTuple):
    """What is known of one isolator."""

    check: Callable[[Any], object]
    """Raises ManifestError when the value means nothing."""
    repeatable: bool = False
    """Whether it may occur more than once: capability sets add up, and of resources the last one counts."""
    excludes: str = ""
    """The name of the isolator that must not stand beside it."""


def unknown(isolators: Iterable[tuple[str, Any]]) -> tuple[str, ...]:
    """The names this version does not know and so cannot enforce, each once."""
    return tuple(dict.fromkeys(name for name, _ in isolators if name not in KNOWN))


def check(isolators: Iterable[tuple[str, Any]]) -> None:
    """Check the values of known isolators, how often they occur, and that none is listed with its opposite."""
    seen: set[str] = set()
    for index, (name, value) in enumerate(isolators):
        known = KNOWN.get(name)
        if known is None:
            continue
        if name in seen and not known.repeatable:
            raise Flaw(f"[{index}]", f"the isolator {quote(name)} is given twice")
        if known.excludes in seen:
            raise Flaw(f"[{index}]", f"the isolators {quote(name)} and {quote(known.excludes)} exclude each other")
        seen.add(name)
        _check_value(index, name, known, value)


def _check_value(index: int, name: str, known: Known, value: Any) -> None:
    try:
        known.check(value)
    except ManifestError as error:
        flaw = located("value", error)
        raise Flaw(f"[{index}].{flaw.path}", f"the isolator {quote(name)}: {flaw.reason}", hint=flaw.hint) from None


# Sets of capabilities and system calls

_CAPABILITY_FIELDS: Final = frozenset({"set"})
_SECCOMP_FIELDS: Final = frozenset({"set", "errno"})


def _capability(value: Any) -> str:
    name = text(value)
    if not name.startswith("CAP_") or name.strip(_UPPER + _DIGITS + "_") or name == "CAP_":
        raise ManifestError(f"{quote(name)} is not the name of a capability")
    return name


def _system_call(value: Any) -> str:
    """The name of a system call, or of a group of them as `@SCOPE/NAME`."""
    name = text(value)
    if name.startswith("@"):
        scope, slash, group = name[1:].partition("/")
        allowed = _LOWER + _DIGITS + "-._"
        # rkt dropped a wildcard without a scope, and with it the filter.
        if slash and scope and group and not (scope + group).strip(allowed):
            return name
    elif name and not name.strip(_LOWER + _UPPER + _DIGITS + "_"):
        return name
    raise ManifestError(f"{quote(name)} is not the name of a system call or of a group (@SCOPE/NAME)")


def _errno(value: Any) -> str:
    name = text(value)
    if not name.startswith("E") or len(name) < 2 or name.strip(_UPPER + _DIGITS):
        raise ManifestError(f"{quote(name)} is not the name of an error number", hint="one looks like EPERM")
    return name


def _filled(read: Callable[[Any], str]) -> Callable[[Any], tuple[str, ...]]:
    read_all = each(read)

    def read_set(value: Any) -> tuple[str, ...]:
        found = read_all(value)
        if not found:
            raise ManifestError("must not be empty")
        return found

    return read_set


_capabilities: Final = _filled(_capability)
_system_calls: Final = _filled(_system_call)


def _check_capabilities(value: Any) -> None:
    required(record(value, _CAPABILITY_FIELDS), "set", _capabilities)


def _check_seccomp(value: Any) -> None:
    entry = record(value, _SECCOMP_FIELDS)
    required(entry, "set", _system_calls)
    if entry.get("errno") != "":
        field(entry, "errno", _errno, "")


# Resources

_RESOURCE_FIELDS: Final = frozenset({"default", "request", "limit"})


def _quantity(value: Any, parts: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise expected("a quantity", value)
    return quantity(text(value) if isinstance(value, str) else str(value), parts=parts)


def _limit(value: Any, parts: int) -> int:
    # The kernel's interfaces disagree on whether a limit of nothing stops the app or frees it of any limit.
    if (found := _quantity(value, parts)) == 0:
        raise ManifestError("must be more than 0")
    return found


def _check_amount(value: Any, parts: int = 1) -> None:
    entry = record(value, _RESOURCE_FIELDS)
    if field(entry, "default", boolean, False):
        raise Flaw("default", "must be false or absent")
    field(entry, "request", lambda amount: _quantity(amount, parts), 0)
    field(entry, "limit", lambda amount: _limit(amount, parts), 0)


def _check_cpu(value: Any) -> None:
    _check_amount(value, parts=1000)


def _check_rate(value: Any) -> None:
    entry = record(value, _RESOURCE_FIELDS)
    if not field(entry, "default", boolean, False):
        raise Flaw("default", "must be true")
    if entry.get("request") is not None:
        raise Flaw("request", "has no meaning here")
    required(entry, "limit", lambda amount: _limit(amount, 1))


# Limits of processes

UNLIMITED: Final = "unlimited"
RLIMITS: Final = (
    "CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE",
    "MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME",
)  # fmt: skip
"""Resources of setrlimit(2), each at the place that is its number on most machines (asm-generic/resource.h)."""
_RLIMIT_FIELDS: Final = frozenset({"name", "soft", "hard"})
_RLIMIT_MOST: Final = 2**63 - 1
_PIDS_FIELDS: Final = frozenset({"limit"})


def _rlimit_name(value: Any) -> str:
    name = text(value)
    if name not in RLIMITS:
        raise ManifestError(f"{quote(name)} is not the name of a resource", hint="one looks like NOFILE")
    return name


def _rlimit_value(value: Any) -> int:
    """The number, or -1 for "unlimited"."""
    return -1 if value == UNLIMITED else integer(0, _RLIMIT_MOST)(value)


def rlimit(value: Any) -> tuple[str, int, int]:
    """The resource, the soft and the hard limit of an `os/unix/rlimit`; -1 is unlimited."""
    entry = record(value, _RLIMIT_FIELDS)
    name = required(entry, "name", _rlimit_name)
    soft, hard = (required(entry, key, _rlimit_value) for key in ("soft", "hard"))
    if hard != -1 and not 0 <= soft <= hard:
        raise Flaw("soft", "must not be more than hard")
    return name, soft, hard


def _check_pids(value: Any) -> None:
    # Linux has no more process IDs than 2^22.
    required(record(value, _PIDS_FIELDS), "limit", integer(1, 2**22))


# Security modules and sysctls

_SELINUX_FIELDS: Final = frozenset({"user", "role", "type", "level"})
_APPARMOR_FIELDS: Final = frozenset({"profile"})


def _selinux_part(value: Any) -> str:
    if ":" in text(value):
        raise ManifestError('must not contain ":"')
    return str(value)


def _check_selinux(value: Any) -> None:
    entry = record(value, _SELINUX_FIELDS)
    for part in ("user", "role", "type"):
        field(entry, part, _selinux_part, "")
    field(entry, "level", text, "")


def _check_apparmor(value: Any) -> None:
    required(record(value, _APPARMOR_FIELDS), "profile", word)


def _check_sysctl(value: Any) -> None:
    for name, _ in texts(value):
        if not name or ".." in name or name.startswith(("/", ".")) or name.strip(_LOWER + _UPPER + _DIGITS + "-._/"):
            raise ManifestError(f"{quote(name)} is not the name of a sysctl")


CAPABILITIES_RETAIN: Final = "os/linux/capabilities-retain-set"
CAPABILITIES_REMOVE: Final = "os/linux/capabilities-remove-set"
SECCOMP_RETAIN: Final = "os/linux/seccomp-retain-set"
SECCOMP_REMOVE: Final = "os/linux/seccomp-remove-set"
AMBIENT_CAPABILITIES: Final = "os/linux/ambient-capabilities-set"
NO_NEW_PRIVILEGES: Final = "os/linux/no-new-privileges"
OOM_SCORE_ADJ: Final = "os/linux/oom-score-adj"
CPU_SHARES: Final = "os/linux/cpu-shares"
SELINUX_CONTEXT: Final = "os/linux/selinux-context"
APPARMOR_PROFILE: Final = "os/linux/apparmor-profile"
SYSCTL: Final = "os/unix/sysctl"
RLIMIT: Final = "os/unix/rlimit"
CPU: Final = "resource/cpu"
MEMORY: Final = "resource/memory"
BLOCK_BANDWIDTH: Final = "resource/block-bandwidth"
BLOCK_IOPS: Final = "resource/block-iops"
NETWORK_BANDWIDTH: Final = "resource/network-bandwidth"
PIDS: Final = "resource/pids"
RESOURCES: Final = frozenset({CPU, CPU_SHARES, MEMORY, BLOCK_BANDWIDTH, BLOCK_IOPS, PIDS})
"""What cgroups deal with."""

KNOWN: Final[dict[str, Known]] = {
    CAPABILITIES_RETAIN: Known(_check_capabilities, repeatable=True, excludes=CAPABILITIES_REMOVE),
    CAPABILITIES_REMOVE: Known(_check_capabilities, repeatable=True, excludes=CAPABILITIES_RETAIN),
    AMBIENT_CAPABILITIES: Known(_check_capabilities, repeatable=True),
    SECCOMP_RETAIN: Known(_check_seccomp, excludes=SECCOMP_REMOVE),
    SECCOMP_REMOVE: Known(_check_seccomp, excludes=SECCOMP_RETAIN),
    NO_NEW_PRIVILEGES: Known(boolean, repeatable=True),
    OOM_SCORE_ADJ: Known(integer(-1000, 1000)),
    CPU_SHARES: Known(integer(2, 262144)),
    SELINUX_CONTEXT: Known(_check_selinux),
    APPARMOR_PROFILE: Known(_check_apparmor),
    SYSCTL: Known(_check_sysctl),
    RLIMIT: Known(rlimit, repeatable=True),
    CPU: Known(_check_cpu, repeatable=True),
    MEMORY: Known(_check_amount, repeatable=True),
    BLOCK_BANDWIDTH: Known(_check_rate, repeatable=True),
    BLOCK_IOPS: Known(_check_rate, repeatable=True),
    NETWORK_BANDWIDTH: Known(_check_rate, repeatable=True),
    PIDS: Known(_check_pids, repeatable=True),
}
"""Every isolator with a meaning, as far as manifests go; whether a flavour enforces it is the flavour's to say."""
