"""Secrets that the apps of a pod are to have ("Credentials" in systemd.exec(5)): those of the service that rkpy runs
in, and those that flags bring. They are read when the pod runs, and kept in none of its files. All raise UsageError,
whose text never repeats a value.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator

from common.errors import UsageError, reason
from stage0.options import Values

LIMIT = 1 << 20
"""Bytes of all credentials together, as systemd has it (CREDENTIALS_TOTAL_SIZE_MAX)."""
MOST = 256
"""How many there may be; each takes a page of memory at least."""
_NAME_LIMIT = 255
_ESCAPES = {
    b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v", b"s": b" ",
    b"\\": b"\\", b'"': b'"', b"'": b"'",
}  # fmt: skip
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|[0-3][0-7]{2}|.|$)", re.DOTALL)


def collect(directory: str, flags: Values) -> dict[str, bytes]:
    """Every credential by its name; `directory` is the service's, empty for none. Flags win, the last one of a name."""
    found = dict(_of_service(directory)) if directory else {}
    own = dict(found)
    for text in flags.all("set-credential"):
        name, colon, value = text.partition(":")
        if not colon:
            raise UsageError("--set-credential takes ID:VALUE")
        found[_checked("set-credential", name)] = unescaped(name, value)
    for text in flags.all("load-credential"):
        name, _, path = text.partition(":")
        found[_checked("load-credential", name)] = _loaded(name, path or name, own)
    if len(found) > MOST:
        raise UsageError(f"{len(found)} credentials are more than the {MOST} a pod takes")
    if sum(map(len, found.values())) > LIMIT:
        raise UsageError(f"the credentials of the pod are larger than {LIMIT >> 20} MiB together")
    return found


def is_name(name: str) -> bool:
    """Whether this may be a credential's: a name for files and for descriptors (credential_name_valid in systemd)."""
    return (
        0 < len(name) <= _NAME_LIMIT
        and name not in (".", "..")
        and all(" " <= char <= "~" and char not in "/:" for char in name)
    )


def unescaped(name: str, text: str) -> bytes:
    r"""A value as SetCredential= has it: `\n`, `\x00`, `\000` and the like stand for bytes."""

    def plain(match: re.Match[bytes]) -> bytes:
        word = match[1]
        if word[:1] == b"x" and len(word) == 3:
            return bytes((int(word[1:], 16),))
        if len(word) == 3:
            return bytes((int(word, 8),))
        if word not in _ESCAPES:
            raise UsageError(
                f"--set-credential={name}: a backslash in the value begins no escape", hint="write it twice"
            )
        return _ESCAPES[word]

    return _ESCAPE.sub(plain, text.encode("utf-8", "surrogateescape"))


def _checked(flag: str, name: str) -> str:
    if not is_name(name):
        raise UsageError(f"--{flag}: its ID is no name of a credential", hint="printable ASCII without / and :")
    return name


def _of_service(directory: str) -> Iterator[tuple[str, bytes]]:
    """Regular files with good names; whatever else is there is not systemd's."""
    try:
        top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in sorted(filter(is_name, os.listdir(top))):
                if stat.S_ISREG(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
                    yield name, _read(name, os.O_NOFOLLOW, top)
        finally:
            os.close(top)
    except OSError as error:
        raise UsageError(f"cannot read the credentials in {directory}: {reason(error)}") from error


def _loaded(name: str, path: str, own: dict[str, bytes]) -> bytes:
    if not path.startswith("/"):
        if path not in own:
            raise UsageError(
                f'--load-credential={name}: this service was not given a credential "{path}"',
                hint="a file is named by an absolute path",
            )
        return own[path]
    try:
        return _read(path, 0, None)
    except OSError as error:
        raise UsageError(f"--load-credential={name}: open {path}: {reason(error)}") from error


def _read(path: str, flags: int, top: int | None) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | flags, dir_fd=top)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UsageError(f"credential {path}: it is not a regular file")
        data = file.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise UsageError(f"credential {path}: it is larger than {LIMIT >> 20} MiB")
    return data
