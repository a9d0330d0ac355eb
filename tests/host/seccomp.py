"""Make a system call fail in this process and its children, to reach the code for kernels without it."""

from __future__ import annotations

import ctypes
import struct

PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
RET_ALLOW = 0x7FFF0000
RET_ERRNO = 0x00050000
_LOAD_NUMBER = (0x20, 0, 0, 0)
_JUMP_IF_EQUAL = 0x15
_RETURN = 0x06


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def deny(number: int, error: int) -> None:
    """System call `number` fails with `error` from now on (seccomp(2))."""
    steps = (
        _LOAD_NUMBER,
        (_JUMP_IF_EQUAL, 0, 1, number),
        (_RETURN, 0, 0, RET_ERRNO | error),
        (_RETURN, 0, 0, RET_ALLOW),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = _Program(len(steps), ctypes.cast(code, ctypes.c_char_p))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")
