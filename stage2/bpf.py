"""Filter programs put together by hand: rules about the arguments of system calls, and programs one after the other.

libseccomp takes such rules too, but not in an order, and it widens those about socket(2) on 32-bit machines; here the
first rule that fits decides."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable

from common.libseccomp import ALLOW
from common.records import NamedTuple

MAX_INSTRUCTIONS = 4096
"""BPF_MAXINSNS"""
_LOAD, _AND, _JUMP, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x54, 0x05, 0x15, 0x06
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16
"""Offsets in struct seccomp_data (linux/seccomp.h)."""
_LOW_HALF = 0 if sys.byteorder == "little" else 4
_ALL_BITS = 0xFFFFFFFF

_Instruction = tuple[int, int, int, int]
"""code, jt, jf, k of struct sock_filter"""


class Condition(NamedTuple):
    """Whether the lower 32 bits of an argument, as far as `mask` has them, are `value`. Calls that take an `int` ignore
    the rest, so a comparison of all 64 could be got round by setting a bit there."""

    argument: int
    value: int
    mask: int = _ALL_BITS
    unless: bool = False
    """Whether it has to differ."""


class Rule(NamedTuple):
    """What becomes of a call when every condition holds."""

    call: str
    action: int
    conditions: tuple[Condition, ...] = ()


Numbers = Callable[[str], Iterable[tuple[int, int]]]
"""Gives the machines (AUDIT_ARCH_…) a call exists on, with its number on each."""


def assemble(rules: Iterable[Rule], numbers: Numbers) -> bytes:
    """The program of `rules`, which allows whatever no rule is about. For one call the first rule that fits decides."""
    bodies: dict[str, list[_Instruction]] = {}
    for rule in rules:
        bodies.setdefault(rule.call, []).extend(_rule(rule))
    machines: dict[int, list[_Instruction]] = {}
    for call, body in bodies.items():
        for machine, number in numbers(call):
            machines.setdefault(machine, []).extend(_only_if(number, [*body, _return(ALLOW)]))
    program: list[_Instruction] = [(_LOAD, 0, 0, _MACHINE)]
    for machine, calls in machines.items():
        program += _only_if(machine, [(_LOAD, 0, 0, _NUMBER), *calls, _return(ALLOW)])
    return _pack([*program, _return(ALLOW)])


def stack(programs: Iterable[bytes]) -> bytes:
    """One program of several: where one would allow a call it goes on with the next. ValueError when it gets longer
    than the kernel takes."""
    *first, last = map(_unpack, programs)
    joined: list[_Instruction] = []
    for program in first:
        for index, instruction in enumerate(program):
            onward = (_JUMP, 0, 0, len(program) - index - 1)
            joined.append(onward if instruction == _return(ALLOW) else instruction)
    joined += last
    if len(joined) > MAX_INSTRUCTIONS:
        raise ValueError(f"{len(joined)} instructions, more than Linux takes")
    return _pack(joined)


def _only_if(value: int, body: list[_Instruction]) -> list[_Instruction]:
    """`body`, jumped over when the accumulator is not `value`. The offsets of conditional jumps have 8 bits only."""
    return [(_JUMP_IF_EQUAL, 1, 0, value), (_JUMP, 0, 0, len(body)), *body]


def _rule(rule: Rule) -> list[_Instruction]:
    """Falls through to the next rule when a condition fails."""
    code = [_return(rule.action)]
    for condition in reversed(rule.conditions):
        fail = len(code)
        jumps = (fail, 0) if condition.unless else (0, fail)
        code = [*_load(condition), (_JUMP_IF_EQUAL, *jumps, condition.value), *code]
    return code


def _load(condition: Condition) -> list[_Instruction]:
    load = (_LOAD, 0, 0, _ARGUMENTS + 8 * condition.argument + _LOW_HALF)
    return [load] if condition.mask == _ALL_BITS else [load, (_AND, 0, 0, condition.mask)]


def _return(action: int) -> _Instruction:
    return (_RETURN, 0, 0, action)


def _pack(program: Iterable[_Instruction]) -> bytes:
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _unpack(program: bytes) -> list[_Instruction]:
    return [(code, jt, jf, k) for code, jt, jf, k in struct.iter_unpack("=HBBI", program)]
