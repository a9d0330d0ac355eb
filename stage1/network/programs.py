"""Plugins that are programs: found in a list of directories and run as CNI spec 1.0.0, section 2 says.

A plugin is as trusted as the administrator who installed it, and as reliable as any program: what it says is bounded in
size and time, and it gets nothing of ours but its parameters.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Iterable
from typing import Any

from common.errors import NetworkError, reason
from common.records import NamedTuple
from stage1 import boot

LIMIT = 120.0
"""Seconds. The slowest plugin people use waits for a DHCP server, which may take a minute; a plugin that takes longer
than this is stuck, and so would be the pod's start or end."""
_GRACE = 1.0
"""Seconds for one that is interrupted: of what was only begun, plugins often do not know how to take it back."""
SIZE = 1 << 20
"""Bytes of output. A result with a thousand addresses is a tenth of that."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where plugins find iptables and the like; ours may be anything, and is empty in the process that detaches."""
_INTERRUPTED = "was interrupted"
_MESSAGE = 2000
"""Characters of what a plugin says that are passed on."""
_RESET = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD)

_lifeline = -1


class Outcome(NamedTuple):
    status: int
    """Exit status; negative for a signal."""
    output: bytes
    errors: bytes
    """The end of standard error."""


def depend_on(fd: int) -> None:
    """Once the other end of `fd`, a socket or a pipe, is closed, no program is begun, and none waited for for long."""
    global _lifeline
    _lifeline = fd


def lifeline() -> int:
    """What we depend on; -1 for nothing."""
    return _lifeline


def is_over() -> bool:
    """Whether the other end of what we depend on is closed."""
    poll = select.poll()
    if _lifeline >= 0:
        poll.register(_lifeline, 0)
    return bool(poll.poll(0))


def find(kind: str, directories: Iterable[str]) -> str:
    """The program for plugins of type `kind`; empty when there is none."""
    for directory in directories:
        path = f"{directory}/{kind}"
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return ""


def call(about: str, path: str, parameters: dict[str, str], conf: dict[str, Any]) -> Any:
    """Run the plugin; what its JSON output says for ADD, None for other commands.

    `about` names network and plugin in the NetworkError there is when it fails, and before each line the plugin writes
    to standard error although it does not fail."""
    environment = {"PATH": _PATH, **{f"CNI_{name}": value for name, value in parameters.items()}}
    try:
        found = run(path, environment, json.dumps(conf).encode())
    except OSError as error:
        raise NetworkError(f"{about}: cannot execute {path}: {reason(error)}") from error
    except NetworkError as error:
        raise NetworkError(f"{about}: {error.message}") from None
    if found.status:
        raise _failure(about, found)
    _pass_on(about, found.errors)
    return _document(about, found.output) if parameters["COMMAND"] == "ADD" else None


def run(path: str, environment: dict[str, str], text: bytes) -> Outcome:
    """Run the program with `text` as standard input, in a process group of its own. OSError when it cannot be executed;
    NetworkError when it takes too long or says too much or nobody wants it any more (`depend_on`), and then it is
    killed with its group."""
    if is_over():
        raise NetworkError(_INTERRUPTED)
    output, output_end = os.pipe()
    errors, errors_end = os.pipe()
    try:
        pid = _spawn(path, environment, text, output_end, errors_end)
        try:
            said = _listen(pid, output, errors)
        except BaseException:
            os.killpg(pid, signal.SIGKILL)
            raise
        finally:
            status = _reap(pid)
    finally:
        os.close(output)
        os.close(errors)
    return Outcome(status, *said)


def _spawn(path: str, environment: dict[str, str], text: bytes, output: int, errors: int) -> int:
    """The program's PID. Closes `output` and `errors`, whose other ends we read."""
    standard_input = os.memfd_create("conf")
    try:
        os.write(standard_input, text)
        os.lseek(standard_input, 0, os.SEEK_SET)
        standard = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((standard_input, output, errors))]
        return os.posix_spawn(
            path,
            [path],
            environment,
            file_actions=[*standard, *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable())],
            setpgroup=0,
            setsigmask=(),
            setsigdef=_RESET,
        )
    finally:
        for fd in (standard_input, output, errors):
            os.close(fd)


def _inheritable() -> list[int]:
    """Descriptors that would reach a program although it was not given them: an engine may be started with some."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
        except OSError:  # the descriptor of the listing
            continue
    return found


def _listen(pid: int, output: int, errors: int) -> tuple[bytes, bytes]:
    """What the process says until it ends. Something it leaves behind may hold the pipes open for longer."""
    said = {output: bytearray(), errors: bytearray()}
    for fd in said:
        os.set_blocking(fd, False)
    pidfd = os.pidfd_open(pid)
    try:
        _fill(said, output, pidfd)
    finally:
        os.close(pidfd)
    return bytes(said[output]), bytes(said[errors])


def _fill(said: dict[int, bytearray], output: int, pidfd: int) -> None:
    poll = select.poll()
    for fd in (pidfd, *said):
        poll.register(fd, select.POLLIN)
    if _lifeline >= 0:
        poll.register(_lifeline, 0)
    deadline = time.monotonic() + LIMIT
    ended = interrupted = False
    while not ended:
        ready = [fd for fd, _ in poll.poll(max(deadline - time.monotonic(), 0) * 1000)]
        if _lifeline in ready:
            ready.remove(_lifeline)
            poll.unregister(_lifeline)
            deadline = min(deadline, time.monotonic() + _GRACE)
            interrupted = True
        elif not ready or time.monotonic() > deadline:
            why = _INTERRUPTED if interrupted else f"did not end within {LIMIT:g} seconds and was killed"
            raise NetworkError(why)
        ended = pidfd in ready
        for fd in said if ended else ready:
            if not _read(fd, said[fd]) and not ended:
                poll.unregister(fd)
            if len(said[output]) > SIZE:
                raise NetworkError(f"printed more than {SIZE} bytes and was killed")
            if fd != output:
                del said[fd][:-SIZE]


def _read(fd: int, buffer: bytearray) -> bool:
    """Add what is there; False when there will be no more. At most `SIZE` and a bit, for there may be no end of it."""
    while len(buffer) <= SIZE:
        try:
            chunk = os.read(fd, 1 << 16)
        except BlockingIOError:
            return True
        if not chunk:
            return False
        buffer += chunk
    return True


def _reap(pid: int) -> int:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError as error:
        raise NetworkError("its exit status is lost") from error


def _failure(about: str, found: Outcome) -> NetworkError:
    """The plugin's own words (spec, section 5: error), or what there is instead."""
    how = f"exit status {found.status}" if found.status > 0 else f"killed by signal {-found.status}"
    try:
        document = json.loads(found.output)
        words = [document["msg"], document.get("details") or ""]
        code = document.get("code")
        text = ": ".join(filter(None, map(_line, words))) or how
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        code = None
        text = f"{how}: {_summary(found.errors or found.output)}".removesuffix(": ")
    hint = "the plugin says that it may work later" if code == 11 else ""
    return NetworkError(f"{about}: {text}", hint=hint)


def _document(about: str, output: bytes) -> Any:
    try:
        return json.loads(output)
    except (ValueError, RecursionError):
        said = _summary(output)
        raise NetworkError(f"{about}: printed no result: {said}".removesuffix(": ")) from None


def _pass_on(about: str, errors: bytes) -> None:
    for line in filter(None, map(_line, errors[-_MESSAGE:].decode(errors="replace").splitlines())):
        if not boot.say(f"rkpy: {about}: {line}\n"):
            return


def _summary(output: bytes) -> str:
    """The first and the last line: with one or the other, every language's traceback says what is the matter."""
    lines = list(filter(None, map(_line, output.decode(errors="replace").splitlines())))
    return " … ".join(dict.fromkeys((*lines[:1], *lines[-1:])))


def _line(text: Any) -> str:
    """One line that does no more to a terminal than to stand there."""
    if not isinstance(text, str):
        raise TypeError("not a string")
    plain = " ".join(text.split())[:_MESSAGE]
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in plain)
