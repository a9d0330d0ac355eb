"""A machine for filter programs: what the kernel does with struct sock_filter (seccomp(2)), as far as filters need."""

from __future__ import annotations

import struct

X86_64, X86 = 0xC000003E, 0x40000003


def run(program: bytes, machine: int, number: int, *arguments: int) -> int:
    """The action for a call; at most six arguments, 64 bits each."""
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number, machine, 0, *(value & (1 << 64) - 1 for value in padded))
    code = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        operation, if_true, if_false, k = code[at]
        at += 1
        match operation:
            case 0x20:
                accumulator = struct.unpack_from("=I", data, k)[0]
            case 0x54:
                accumulator &= k
            case 0x05:
                at += k
            case 0x15:
                at += if_true if accumulator == k else if_false
            case 0x25:
                at += if_true if accumulator > k else if_false
            case 0x35:
                at += if_true if accumulator >= k else if_false
            case 0x06:
                return int(k)
            case _:
                raise AssertionError(f"unknown instruction {operation:#x}")
