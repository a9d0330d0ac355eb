"""Output to the journal as a stream, whose lines have the name of an app (sd_journal_stream_fd(3)): for apps that are
the process that systemd has started. The journal knows each line's unit by who opened the stream."""

from __future__ import annotations

import os
from _socket import AF_UNIX, SHUT_RD, SOCK_STREAM
from _socket import socket as Socket  # noqa: N812

PATH = "/run/systemd/journal/stdout"
_PRIORITIES = {1: 6, 2: 3}
"""By descriptor, as `journallog` has them; lines may say otherwise (sd-daemon(3))."""


def open_stream(identifier: str, priority: int, path: str = PATH) -> int:
    """A descriptor to write lines to. Raises OSError."""
    socket = Socket(AF_UNIX, SOCK_STREAM, 0)
    try:
        socket.connect(path)
        socket.shutdown(SHUT_RD)
        # Identifier, unit (of who asks), priority, whether lines may name theirs, and three ways not to forward them.
        socket.sendall(f"{identifier}\n\n{priority}\n1\n0\n0\n0\n".encode())
        return socket.detach()
    except OSError:
        socket.close()
        raise


def rename(fds: tuple[int, ...], identifier: str, path: str = PATH) -> str:
    """Let each of the descriptors 1 and 2 that are named, and lead to the journal, lead there under `identifier`. What
    JOURNAL_STREAM is to say then (systemd.exec(5)); empty when everything is as it was."""
    said = ""
    for fd in fds:
        try:
            stream = open_stream(identifier, _PRIORITIES[fd], path)
        except OSError:
            break
        os.dup2(stream, fd)
        os.close(stream)
        status = os.fstat(fd)
        said = f"{status.st_dev}:{status.st_ino}"
    return said
