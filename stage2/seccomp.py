"""System call filters: what an app's isolators mean, as data, and the compiled program out of a cache.

A filter has guards, which look at the arguments of a few calls, and layers, which go by names. A call passes them in
that order, and the first that does not allow it decides."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from typing import Final

from common import files
from common.errors import LaunchError, UsageError
from common.libseccomp import ALLOW, KILL, Layer, Library, all_of, fail_with
from common.records import NamedTuple
from stage2 import bpf, system_calls
from stage2.bpf import Condition, Rule
from stage2.capabilities import NAMES, SYS_ADMIN

_EPERM: Final = fail_with(errno.EPERM)
_ENOSYS: Final = fail_with(errno.ENOSYS)
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_NAMESPACE_FLAGS: Final = (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
"""CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET (linux/sched.h). clone(2) cannot make a time namespace."""
_PERSONALITIES: Final = (0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""PER_LINUX, PER_LINUX32, UNAME26 with either, and the question which one it is (personality(2))."""
_AF_UNIX, _AF_NETLINK, _AF_PACKET, _AF_VSOCK = 1, 16, 17, 40
_SOCK_RAW, _SOCK_PACKET, _SOCK_TYPE_MASK = 3, 10, 0xF
_NETLINK_AUDIT = 9
_SYS_SOCKET = 1
_FORMAT: Final = 0o170000
_CHECKSUM = 8


class Filter(NamedTuple):
    """What is done with every call: it has to be allowed by the guards and then by every layer."""

    guards: tuple[Rule, ...]
    layers: tuple[Layer, ...]
    named: tuple[str, ...] = ()
    """The calls somebody named: each has to exist on some machine."""


def filter_for(
    *,
    capabilities: Iterable[int],
    capabilities_asked: bool,
    retain: Iterable[str] | None = None,
    remove: Iterable[str] | None = None,
    error: str = "",
) -> Filter | None:
    """The filter of an app with these capabilities; `capabilities_asked` says that it named all it wants, and does not
    just have the default ones. `retain` or `remove` are the words of its isolator and `error` the errno it names for
    what is denied, empty for death by SIGSYS. None when it opts out of filters. UsageError for words that mean nothing.

    With `retain`, calls are as restricted in their arguments as by default if a group brought them; a call that is
    named itself is meant as it stands."""
    if retain is not None and remove is not None:
        raise UsageError("a system call filter either retains or removes, not both")
    have = frozenset(capabilities)
    guards, default = _guards(have, asked=capabilities_asked), _default(have)
    if retain is not None:
        everything, named, calls = _expand(retain)
        kept = tuple(rule for rule in guards if rule.call not in named)
        return None if everything else Filter(kept, (Layer(_violation(error), all_of(calls, ALLOW)),), named)
    if remove is None:
        return Filter(guards, (default,))
    everything, named, calls = _expand(remove)
    if everything:
        return Filter((), (Layer(_violation(error), ()),), named)
    kept = tuple(rule for rule in guards if rule.call not in calls)
    return Filter(kept, (Layer(ALLOW, all_of(calls, _violation(error))), default), named)


def _expand(words: Iterable[str]) -> tuple[bool, tuple[str, ...], tuple[str, ...]]:
    """Whether `ALL` is among the words, the calls that are named themselves, and all calls that are meant."""
    everything = False
    named: set[str] = set()
    calls: set[str] = set()
    for word in words:
        if word == system_calls.ALL:
            everything = True
        elif word.startswith("@"):
            if word not in system_calls.GROUPS:
                known = ", ".join((system_calls.ALL, *system_calls.GROUPS))
                raise UsageError(f'there is no group of system calls "{word}"', hint=f"there is: {known}")
            calls.update(system_calls.GROUPS[word])
        else:
            named.add(word)
    return everything, tuple(sorted(named)), tuple(sorted(calls | named))


def _violation(error: str) -> int:
    if not error:
        return KILL
    number = getattr(errno, error, None) if error.startswith("E") else None
    if not isinstance(number, int):
        raise UsageError(f'there is no error number "{error}"', hint="one looks like EPERM; see errno(3)")
    return fail_with(number)


def _default(have: frozenset[int]) -> Layer:
    """Known calls fail with EPERM, unknown ones as if the kernel had not got them: programs try another way then."""
    allowed, denied = list(system_calls.ALLOWED), list(system_calls.NOT_PERMITTED)
    for capability, calls in system_calls.ALLOWED_WITH.items():
        (allowed if NAMES.index(capability) in have else denied).extend(calls)
    return Layer(_ENOSYS, (*all_of(allowed, ALLOW), *all_of(denied, _EPERM)))


def _guards(have: frozenset[int], *, asked: bool) -> tuple[Rule, ...]:
    """What is denied of calls that are allowed otherwise. Three default capabilities are worth more to an attacker than
    to nearly every app: unless they were asked for, what they are for is denied here."""

    def given(name: str) -> bool:
        return asked and NAMES.index(name) in have

    return (
        *_terminals(),
        *_personality(),
        *(() if SYS_ADMIN in have else _namespaces()),
        *_sockets(audit=given("AUDIT_WRITE"), raw=given("NET_RAW")),
        *(() if given("MKNOD") else _devices()),
    )


def _terminals() -> tuple[Rule, ...]:
    """Typing into the terminal the app was given would be typing into the shell that started it."""
    return tuple(Rule("ioctl", _EPERM, (Condition(1, request),)) for request in (_TIOCSTI, _TIOCLINUX))


def _personality() -> tuple[Rule, ...]:
    allowed = (Rule("personality", ALLOW, (Condition(0, persona),)) for persona in _PERSONALITIES)
    return (*allowed, Rule("personality", _ENOSYS))


def _namespaces() -> tuple[Rule, ...]:
    """No namespaces, so no user namespace that gives every capability. What clone3(2) is asked for a filter cannot see;
    C libraries fall back on clone(2), whose flags are the second argument on s390."""
    argument = 1 if os.uname().machine.startswith("s390") else 0
    clone = (Rule("clone", _EPERM, (Condition(argument, flag, flag),)) for flag in _NAMESPACE_FLAGS)
    return (*clone, Rule("clone3", _ENOSYS))


def _sockets(*, audit: bool, raw: bool) -> tuple[Rule, ...]:
    """No way to the host of a virtual machine, to its audit, and around its network. socketcall(2) of 32-bit programs
    hides its arguments from a filter; C libraries use socket(2) as well."""
    family, kind, protocol = 0, 1, 2
    rules = [
        Rule("socketcall", _ENOSYS, (Condition(0, _SYS_SOCKET),)),
        Rule("socket", fail_with(errno.EAFNOSUPPORT), (Condition(family, _AF_VSOCK),)),
    ]
    if not audit:
        # libaudit takes EINVAL for a kernel without audit, and is content.
        audits = (Condition(family, _AF_NETLINK), Condition(protocol, _NETLINK_AUDIT))
        rules.append(Rule("socket", fail_with(errno.EINVAL), audits))
    if not raw:
        rules += (
            # Of these two families SOCK_RAW is nothing special.
            Rule("socket", ALLOW, (Condition(family, _AF_UNIX),)),
            Rule("socket", ALLOW, (Condition(family, _AF_NETLINK),)),
            Rule("socket", _EPERM, (Condition(family, _AF_PACKET),)),
            Rule("socket", _EPERM, (Condition(kind, _SOCK_RAW, _SOCK_TYPE_MASK),)),
            Rule("socket", _EPERM, (Condition(kind, _SOCK_PACKET, _SOCK_TYPE_MASK),)),
        )
    return tuple(rules)


def _devices() -> tuple[Rule, ...]:
    """No device nodes, except 0:0, which opens nothing: file systems of layers mark removed files with it."""
    return tuple(
        rule
        for call, mode in (("mknod", 1), ("mknodat", 2))
        for rule in (
            Rule(call, _EPERM, (Condition(mode, stat.S_IFBLK, _FORMAT),)),
            Rule(call, _EPERM, (Condition(mode, stat.S_IFCHR, _FORMAT), Condition(mode + 1, 0, unless=True))),
        )
    )


# Compiling


def allows(wanted: Filter, call: str) -> bool:
    """Whether `call` goes through whatever its arguments."""
    actions = [rule.action for rule in wanted.guards if rule.call == call]
    actions += [dict(layer.rules).get(call, layer.default) for layer in wanted.layers]
    return all(action == ALLOW for action in actions)


def compiled(wanted: Filter, cache_directory: str) -> bytes:
    """The program of `wanted`, from a file in `cache_directory` or compiled and left there. UsageError for a call that
    no machine has, LaunchError when there is no libseccomp. A cache that cannot be used only costs the time."""
    library = Library()
    path = f"{cache_directory}/{_key(wanted, library.version)}"
    program = _read(path)
    if program is None:
        for call in wanted.named:
            if not library.knows(call):
                raise UsageError(f'there is no system call "{call}"')
        guards = bpf.assemble(wanted.guards, library.numbers)
        try:
            program = bpf.stack((guards, *map(library.compile, wanted.layers)))
        except ValueError as error:
            raise LaunchError(f"cannot make a system call filter: {error}") from error
        _write(path, program)
    return program


def _key(wanted: Filter, version: str) -> str:
    # hashlib costs more than reading the file.
    return f"{_digest(repr((wanted, version, os.uname().machine)).encode(), 24).hex()}.bpf"


def _digest(data: bytes, size: int) -> bytes:
    from _blake2 import blake2b

    return blake2b(data, digest_size=size).digest()


def _read(path: str) -> bytes | None:
    """The program in a cache file, None when there is none or it is not as we write them."""
    try:
        with open(path, "rb", buffering=0, opener=_open_quietly) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
                return None
            data = file.read(bpf.MAX_INSTRUCTIONS * 8 + _CHECKSUM + 1)
    except OSError:
        return None
    program, checksum = data[:-_CHECKSUM], data[-_CHECKSUM:]
    whole = program and len(program) % 8 == 0 and checksum == _digest(program, _CHECKSUM)
    return program if whole else None


def _open_quietly(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)


def _write(path: str, program: bytes) -> None:
    try:
        directory = os.path.dirname(path)
        files.make_directories(os.path.dirname(directory), 0o755)
        files.make_directory(directory, 0o700)
        files.replace(path, program + _digest(program, _CHECKSUM), mode=0o600)
    except OSError:
        pass
