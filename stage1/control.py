"""The socket in a pod's directory through which rkpy's commands reach the pod's monitor: one request, one answer.

Only root reaches it, by the directory's and the socket's modes and by who the kernel says is calling (SO_PEERCRED).
"""

from __future__ import annotations

import json
import os
import select
import struct
from _socket import AF_UNIX, SO_PEERCRED, SO_RCVTIMEO, SO_SNDTIMEO, SOCK_SEQPACKET, SOL_SOCKET
from _socket import socket as Socket  # noqa: N812
from collections.abc import Callable
from typing import Any

from common.errors import PodError, RkpyError, reason
from stage1 import poddir
from stage1.channel import Channel
from stage1.loop import Loop

Handler = Callable[[dict[str, Any], list[int]], dict[str, Any]]
"""From a request and its descriptors to the answer; a RkpyError is an answer too. The handler takes those descriptors
out of the list that it keeps."""
_BACKLOG = 4096
_PATIENCE = 60.0
"""Seconds that a monitor has to answer. It does so at once, but there are slow hosts."""
_PAUSE = 0.2
"""Seconds until the next look for callers when one could not be taken, for want of descriptors."""


class Server:
    """The monitor's end."""

    def __init__(self, loop: Loop, directory: str, handler: Handler) -> None:
        self._loop = loop
        self._handler = handler
        self._socket = Socket(AF_UNIX, SOCK_SEQPACKET, 0)
        path = f"{directory}/{poddir.CONTROL}"
        try:
            if os.path.lexists(path):
                os.unlink(path)
            with _Directory(directory) as place:
                self._socket.bind(f"{place}/{poddir.CONTROL}")
            os.chmod(path, 0o600)
            self._socket.listen(_BACKLOG)
        except OSError as error:
            raise PodError(f"cannot listen on {path}: {reason(error)}") from error
        self._listen()

    def _listen(self) -> None:
        self._loop.add(self._socket.fileno(), select.EPOLLIN, lambda _events: self._accept())

    def _accept(self) -> None:
        try:
            fd, _ = self._socket._accept()  # type: ignore[attr-defined]  # what socket.accept calls
        except OSError:
            self._loop.remove(self._socket.fileno())
            self._loop.call_later(_PAUSE, self._listen)
            return
        client = Socket(fileno=fd)
        os.set_inheritable(fd, False)
        _, uid, _ = struct.unpack("3i", client.getsockopt(SOL_SOCKET, SO_PEERCRED, 12))
        if uid != 0:
            client.close()
            return
        channel = Channel(client)
        self._loop.add(fd, select.EPOLLIN, lambda _events: self._serve(channel))

    def _serve(self, client: Channel) -> None:
        self._loop.remove(client.fileno())
        text, fds = client.receive()
        answer = self._answer(text, fds)
        for left in fds:
            os.close(left)
        try:
            client.send(json.dumps(answer))
        except OSError:
            pass  # It did not wait for the answer.
        client.close()

    def _answer(self, text: str, fds: list[int]) -> dict[str, Any]:
        """Whatever is wrong with a request, the pod must go on."""
        try:
            return self._handler(json.loads(text), fds) if text else {}
        except RkpyError as error:
            return {"error": error.message, "hint": error.hint}
        except OSError as error:
            return {"error": ": ".join(filter(None, (str(error.filename or ""), reason(error))))}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            return {"error": f"the monitor does not understand the request: {error!r}"}


def request(
    directory: str, fields: dict[str, Any], fds: tuple[int, ...] = (), *, patience: float = _PATIENCE
) -> dict[str, Any]:
    """Ask the monitor of the pod in `directory`. `patience`: seconds it has for each step, since it may be suspended.
    PodError when there is none, or none that answers, or with what it says went wrong."""
    socket = Socket(AF_UNIX, SOCK_SEQPACKET, 0)
    # And not `settimeout`: a socket that does not block is refused at once where the backlog is full (connect(2)).
    limit = struct.pack("2l", int(patience), int(patience % 1 * 1_000_000))
    socket.setsockopt(SOL_SOCKET, SO_SNDTIMEO, limit)
    socket.setsockopt(SOL_SOCKET, SO_RCVTIMEO, limit)
    client = Channel(socket)
    try:
        with _Directory(directory) as place:
            socket.connect(f"{place}/{poddir.CONTROL}")
        client.send(json.dumps(fields), fds)
        text, _ = client.receive()
    except BlockingIOError as error:
        raise PodError("the pod's monitor does not answer", hint="is it suspended?") from error
    except OSError as error:
        raise PodError("the pod isn't currently running") from error
    finally:
        client.close()
    if not text:
        raise PodError("the pod has just ended")
    answer: dict[str, Any] = json.loads(text)
    if "error" in answer:
        raise PodError(answer["error"], hint=answer.get("hint", ""))
    return answer


class _Directory:
    """A short path to a directory: the address of a Unix socket has room for 107 bytes (unix(7))."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY)

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self._fd}"

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
