"""The console of a pod's machine, kept for people: `console.log` in the pod directory has the end of it.

The guest writes what it likes and as much as it likes; what is kept is bounded, and what is shown in messages has no
control characters in it.
"""

from __future__ import annotations

import os

from common.errors import LaunchError, reason

NAME = "console.log"
LIMIT = 64 << 10
"""Bytes of the file at most. When they are full, the older half goes."""
_AT_ONCE = 4096
_WORDS = 16 << 10
"""Bytes of what the guest says that are kept for messages: its last, a panic with all that it calls for."""
_CHATTER = ("fv_", "stop_all_queues:", "virtio_loop:", "virtio_session_mount:")
"""How lines of QEMU's own virtiofsd begin that say what it is doing."""
_COMPLAINTS = 4096
"""Bytes of what QEMU and virtiofsd say that are kept for messages: the first of it, where the cause is."""


class Console:
    """The log, being written. Nothing raises for what happens to the disk: what cannot be written is lost."""

    def __init__(self, directory: str) -> None:
        """Begins the log of the pod in `directory` anew. Raises LaunchError."""
        path = f"{directory}/{NAME}"
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, 0o640)
        except OSError as error:
            raise LaunchError(f"cannot open {path}: {reason(error)}") from error
        self._size = 0
        self._guest = b""
        """The last of what the guest has said."""
        self._complaints = b""

    def close(self) -> None:
        os.close(self._fd)

    def take(self, fd: int, *, complaints: bool = False) -> bool:
        """Keep what can be read from the non-blocking `fd` now, but not more than a little: whether there may be more
        some time. `complaints`: it is QEMU that speaks, or virtiofsd, and not the guest."""
        try:
            data = os.read(fd, _AT_ONCE)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if complaints:
            self._complaints = (self._complaints + data)[:_COMPLAINTS]
        else:
            self._guest = (self._guest + data)[-_WORDS:]
        self.write(data)
        return bool(data)

    def write(self, data: bytes) -> None:
        try:
            if self._size + len(data) > LIMIT:
                self._halve()
            self._size += os.pwrite(self._fd, data[-LIMIT // 2 :], self._size)
        except OSError:
            pass

    def _halve(self) -> None:
        kept = os.pread(self._fd, LIMIT, max(0, self._size - LIMIT // 2))
        kept = kept[kept.find(b"\n") + 1 :]
        os.pwrite(self._fd, kept, 0)
        os.ftruncate(self._fd, len(kept))
        self._size = len(kept)

    def last_lines(self, count: int) -> list[str]:
        """Of all that the guest said, without empty ones; fit to be shown."""
        return _lines(self._guest)[-count:]

    def complaint(self) -> str:
        """What QEMU or virtiofsd have said is wrong, in a line fit to be shown; empty when they have not. The first
        that is said is the cause, and others follow from it."""
        lines = _lines(self._complaints)
        return next((line for line in lines if "warning:" not in line and not line.startswith(_CHATTER)), "")


def read(directory: str) -> list[str]:
    """All lines that are kept of the console of the pod in `directory`, fit to be shown. Raises OSError."""
    fd = os.open(f"{directory}/{NAME}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return _lines(os.pread(fd, LIMIT, 0))
    finally:
        os.close(fd)


def _lines(text: bytes) -> list[str]:
    found = (_shown(line).rstrip() for line in text.replace(b"\r", b"\n").split(b"\n"))
    return [line for line in found if line]


def _shown(line: bytes) -> str:
    return "".join(
        char if char.isprintable() else " " if char == "\t" else f"\\x{ord(char):02x}"
        for char in line.decode("utf-8", errors="replace")
    )
