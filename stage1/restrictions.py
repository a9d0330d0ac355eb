"""From an app's isolators to what stage2 is told: capabilities, system calls, limits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aci import isolators as known
from aci.image_manifest import Isolator
from common.errors import LaunchError, UsageError
from common.records import NamedTuple
from stage2 import capabilities, seccomp
from stage2.launch import LaunchSpec

CAPABILITIES, SECCOMP = "capabilities", "seccomp"
"""Of --insecure-options."""

ENFORCED = frozenset({
    known.CAPABILITIES_RETAIN, known.CAPABILITIES_REMOVE, known.AMBIENT_CAPABILITIES, known.SECCOMP_RETAIN,
    known.SECCOMP_REMOVE, known.NO_NEW_PRIVILEGES, known.OOM_SCORE_ADJ, known.RLIMIT,
})  # fmt: skip
"""What is dealt with here."""


class _Sets(NamedTuple):
    bounding: tuple[int, ...]
    ambient: tuple[int, ...]
    asked: bool
    """Whether all of them were asked for, by name or wholesale."""


def restrict(
    spec: LaunchSpec,
    isolators: tuple[Isolator, ...],
    *,
    insecure: tuple[str, ...],
    cache: str,
    have: frozenset[int] | None = None,
) -> tuple[LaunchSpec, list[str]]:
    """`spec` under the app's `isolators`, and a warning for each that says too much. `insecure` may have "capabilities"
    (the app gets all there are) and "seccomp" (no filter); `cache` is a directory for compiled filters, made if needed.
    `have`: the capabilities there are to give; left out, those of this process.

    UsageError for words that mean nothing, LaunchError for what cannot be enforced."""
    found = _by_name(isolators)
    if known.APPARMOR_PROFILE in found:
        profile = found[known.APPARMOR_PROFILE][-1]["profile"]
        raise LaunchError(f'cannot apply the AppArmor profile "{profile}" to app "{spec.app_name}"')
    have = capabilities.available() if have is None else have
    sets, warnings = _capabilities(spec.app_name, found, have, everything=CAPABILITIES in insecure)
    # Without CAP_SYS_RESOURCE a limit once lowered is not to be raised again, so each is set once: the last one given.
    limits = {limit[0]: limit for limit in map(known.rlimit, found.get(known.RLIMIT, ()))}
    adjustments = found.get(known.OOM_SCORE_ADJ, [None])
    restricted = spec._replace(
        no_new_privileges=spec.no_new_privileges or True in found.get(known.NO_NEW_PRIVILEGES, ()),
        capabilities=sets.bounding,
        ambient=sets.ambient,
        seccomp=b"" if SECCOMP in insecure else _filter(spec.app_name, found, sets, cache),
        rlimits=tuple((known.RLIMITS.index(name), soft, hard) for name, soft, hard in limits.values()),
        oom_score_adj=adjustments[-1],
    )
    return restricted, warnings


def ignored(isolators: Iterable[Isolator]) -> list[str]:
    """The names of an app's isolators that nothing is done about."""
    return [name for name in _by_name(isolators) if name not in ENFORCED | known.RESOURCES]


def _by_name(isolators: Iterable[Isolator]) -> dict[str, list[Any]]:
    """The values of each, in order."""
    found: dict[str, list[Any]] = {}
    for isolator in isolators:
        found.setdefault(isolator.name, []).append(isolator.value)
    return found


def _words(found: dict[str, list[Any]], name: str) -> list[str] | None:
    """What all sets of one name have together; None when there is none."""
    return [word for value in found[name] for word in value["set"]] if name in found else None


def _capabilities(
    app: str, found: dict[str, list[Any]], have: frozenset[int], *, everything: bool
) -> tuple[_Sets, list[str]]:
    retain, remove = _words(found, known.CAPABILITIES_RETAIN), _words(found, known.CAPABILITIES_REMOVE)
    if retain is not None and remove is not None:
        raise UsageError(f'the capabilities of app "{app}" are either retained or removed, not both')
    choice = capabilities.choose(retain, remove or (), have)
    if everything:
        choice = capabilities.Choice(tuple(sorted(have)), ())
    ambient = capabilities.choose_ambient(_words(found, known.AMBIENT_CAPABILITIES) or (), choice.bounding)
    missing = ", ".join(map(capabilities.name, choice.missing))
    warnings = [f'app "{app}" goes without {missing}: rkpy itself has not got it'] if missing else []
    return _Sets(choice.bounding, ambient, asked=everything or retain is not None), warnings


def _filter(app: str, found: dict[str, list[Any]], sets: _Sets, cache: str) -> bytes:
    retain, remove = _words(found, known.SECCOMP_RETAIN), _words(found, known.SECCOMP_REMOVE)
    named = [
        value.get("errno") or ""
        for name in (known.SECCOMP_RETAIN, known.SECCOMP_REMOVE)
        for value in found.get(name, ())
    ]
    wanted = seccomp.filter_for(
        capabilities=sets.bounding,
        capabilities_asked=sets.asked,
        retain=retain,
        remove=remove,
        error=named[-1] if named else "",
    )
    if wanted is None:
        return b""
    if not seccomp.allows(wanted, "execve"):
        raise LaunchError(
            f'the system call filter of app "{app}" denies execve, without which nothing starts',
            hint="an app that may do no more than that cannot do anything either: name what it needs",
        )
    return seccomp.compiled(wanted, cache)
