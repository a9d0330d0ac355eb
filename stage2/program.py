"""Find the app's program inside its root and execute it, or say in one line why that cannot be done."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from typing import NoReturn

from common.errors import EXIT_CANNOT_EXEC, EXIT_NOT_FOUND, LaunchError, reason

_HEAD = 4096
_PT_INTERP = 3


def execute(argv: tuple[str, ...], variables: dict[str, str], last: Callable[[], None] = lambda: None) -> NoReturn:
    """execve(2) of `argv`, its first word looked up in the PATH of `variables` unless it has a slash. LaunchError with
    exit status 127 when there is no such program, 126 when it cannot be executed.

    `last` is called when nothing is left but execve(2): it may load a filter that allows little else. (What is said of
    an execve(2) that fails then may be cut short by the filter.)"""
    if not argv or not argv[0]:
        raise LaunchError("the app has nothing to execute", hint="name a program with --exec")
    try:
        raw_argv = [_encode(word) for word in argv]
        raw_variables = {_encode(name): _encode(value) for name, value in variables.items()}
    except ValueError as error:
        raise LaunchError(f'cannot pass arguments and environment to "{argv[0]}": {error}') from error
    paths = [path for path in candidates(argv[0], variables.get("PATH", "")) if _may_exist(path)]
    if not paths:
        raise explain(argv[0], OSError(errno.ENOENT, os.strerror(errno.ENOENT)))
    raw_paths = [_encode(path) for path in paths]
    last()
    for path, raw in zip(paths, raw_paths, strict=True):
        try:
            os.execve(raw, raw_argv, raw_variables)  # noqa: S606
        except OSError as error:
            # As execvp(3): a file that may not be executed does not end the search, but is what is reported.
            failed, failure = path, error
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                break
    raise explain(failed, failure)


def _may_exist(path: str) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def candidates(name: str, search_path: str) -> list[str]:
    """The paths to try for `name`, in order. An empty element of PATH is the working directory (POSIX, 8.3)."""
    if "/" in name:
        return [name]
    return [f"{directory or '.'}/{name}" for directory in search_path.split(":")]


def explain(path: str, error: OSError) -> LaunchError:
    """`error` from execve(2) of `path` in words that name the cause."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and not os.path.exists(path):
        dangling = ", a dangling symlink" if os.path.islink(path) else ""
        where = "" if "/" in path else " in the app's PATH"
        return LaunchError(f'program "{path}"{dangling} not found{where}', exit_status=EXIT_NOT_FOUND)
    cause = _cause(path, error)
    return LaunchError(f'cannot execute "{path}": {cause}', exit_status=EXIT_CANNOT_EXEC)


def _cause(path: str, error: OSError) -> str:
    if os.path.isdir(path):
        return "it is a directory"
    head = _read_head(path)
    if error.errno == errno.ENOENT:
        return _missing_interpreter(path, head) or reason(error)
    if error.errno == errno.ENOEXEC:
        return _wrong_format(head)
    if error.errno == errno.EACCES:
        return "permission denied" + ("" if _has_execute_bit(path) else ", it has no execute permission")
    return reason(error)


def _missing_interpreter(path: str, head: bytes) -> str:
    """What the kernel looked for in vain when the program itself is there."""
    if head.startswith(b"#!"):
        words = head[2:].split(b"\n", 1)[0].split()
        name = words[0].decode("utf-8", "backslashreplace").rstrip("\r") if words else ""
        note = " (the line ends in a carriage return)" if head.split(b"\n", 1)[0].endswith(b"\r") else ""
        return f'its interpreter "{name}" is not in the image{note}'
    loader = elf_interpreter(head)
    return f'its loader "{loader}" is not in the image' if loader else ""


def _wrong_format(head: bytes) -> str:
    if not head:
        return "it is empty or cannot be read"
    if head.startswith(b"\x7fELF"):
        return "it is a program for another kind of machine"
    return "it is neither a program nor a script that begins with #!"


def elf_interpreter(head: bytes) -> str:
    """The loader an ELF file asks for (elf(5), PT_INTERP), or empty. `head` is the beginning of the file."""
    if len(head) < 64 or not head.startswith(b"\x7fELF") or head[5] != 1:
        return ""
    is_64 = head[4] == 2
    table, size, count = _program_headers(head, is_64)
    for index in range(min(count, 64)):
        entry = head[table + index * size : table + (index + 1) * size]
        if len(entry) < (40 if is_64 else 20) or struct.unpack_from("<I", entry)[0] != _PT_INTERP:
            continue
        offset = struct.unpack_from("<Q" if is_64 else "<I", entry, 8 if is_64 else 4)[0]
        return head[offset : offset + 256].split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
    return ""


def _program_headers(head: bytes, is_64: bool) -> tuple[int, int, int]:
    """Offset, entry size and number of entries of the program header table."""
    table = struct.unpack_from("<Q" if is_64 else "<I", head, 32 if is_64 else 28)[0]
    size, count = struct.unpack_from("<HH", head, 54 if is_64 else 42)
    return table, size, count


def _read_head(path: str) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return b""
        with open(path, "rb", buffering=0) as file:
            return file.read(_HEAD)
    except OSError:
        return b""


def _has_execute_bit(path: str) -> bool:
    try:
        return bool(os.stat(path).st_mode & 0o111)
    except OSError:
        return True


def _encode(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    if b"\0" in raw:
        raise ValueError("embedded null byte")
    return raw
