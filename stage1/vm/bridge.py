"""The monitor's end of the wire to a pod's virtual machine: it says what the supervisor in there is to do, hears what
that says, and is for each app's pipes on the host what the app itself would be.

What is read from an app's stdin goes to the guest, what comes from there is written to its stdout and stderr, under
credit in both directions (`stage1.vm.traffic`). So one app whose output nobody reads is stopped, and no other.

An `ended` is heard when all that the app wrote is where the monitor finds it when it drains the app's streams. If the
readers are slow, pipes are made larger for that, so that it need not wait for them; only an app that has enlarged its
own pipes inside, beyond what those of the host take, can lose the rest of its output, when its reader has been stuck
for `agent.STUCK` seconds after its end.

Everything from the guest is hostile: what cannot be ends the pod, with one `broken` for the monitor to hear.
"""

from __future__ import annotations

import json
import os
import stat
from _socket import AF_UNIX, SOCK_STREAM, socketpair
from collections.abc import Callable, Sequence

from common.records import NamedTuple
from stage1.appsockets import JOURNAL, NOTIFY, SYSLOG
from stage1.cgroupfiles import ADJUSTED, ENFORCED, NOT_ENFORCEABLE, Report
from stage1.enclosure import Hear
from stage1.loop import Loop
from stage1.outlet import own_description
from stage1.vm import frames
from stage1.vm.frames import MESSAGE, FrameError
from stage1.vm.traffic import Traffic, Wire

MAX_TEXT = 4096
"""Characters of a text for people that are passed on."""
_MAX_REPORTS = 4096
_MAX_LIMITS = 1 << 18
"""Bytes that they come in: what they are taken apart into can be thirty times as much."""
_VERDICTS = (ENFORCED, ADJUSTED, NOT_ENFORCEABLE)
_SOCKETS = (NOTIFY, JOURNAL, SYSLOG)
_NULL = (1, 3)
"""The numbers of /dev/null (devices.txt)."""


class Calls(NamedTuple):
    """What a bridge calls back with. All of it is bounded and well-formed, and may still be lies."""

    hear: Hear
    """What the supervisor says (`stage1.supervisor`), each message with as many words as it is to have. `started` comes
    without a pidfd and `ended` without its last word here. `terminal` comes with a socket, which is used as the master
    of the terminal would be; `Bridge.resize` stands for its ioctl(2). The empty text comes after `over`, and when the
    guest has hung up."""
    up: Callable[[str], None]
    """The guest is there, with this kernel, and waits for the pod."""
    limits: Callable[[list[Report]], None]
    datagram: Callable[[str, str, bytes], None]
    """App, socket (`stage1.appsockets`) and what was written to it: of an entry for the journal that came as a file the
    content. Up to `frames.FROM_GUEST` bytes. It is for the called to bound what it keeps."""
    entered: Callable[[int, int], None]
    """The command of this number has ended with this status; what it wrote was given to its streams."""
    refused: Callable[[int, int, str], None]
    """It could not be run: an exit status, and why."""


class Bridge:
    """One guest. Used by one process of one thread, with its loop."""

    def __init__(self, loop: Loop, fd: int, calls: Calls) -> None:
        """`fd`: a stream socket whose other end is the guest's port; owned from now on."""
        self._calls = calls
        self._wire = Wire(loop, fd, self._take, self._gone, frames.FROM_GUEST)
        self._traffic = Traffic(loop, self._wire)
        self._next = 1
        self._terminals: dict[str, int] = {}
        """The stream of each app's terminal; 0 for none. It has all the names that were ever started."""
        self._out_of_memory: dict[str, bool] = {}
        self._commands: dict[int, int] = {}
        """Commands beside apps that have not ended, and the streams of their terminals."""
        self._said: set[str] = set()
        """What is said once, as far as it was."""

    # --- towards the guest

    def tell(self, text: str, blob: bytes = b"") -> None:
        """Send a message. Nothing happens when the guest is gone: that is heard."""
        self._wire.send(frames.encode_message(text, blob))

    def start(self, name: str, stdio: Sequence[int], plan: bytes) -> None:
        """Have an app started: the ends of its streams that a process would get as 0, 1 and 2, as
        `AppStreams.child_fds` gives them (-1 where its terminal comes), and its AppPlan (`plan.dumps`) with sources as
        the guest sees them. `stdio` stays the caller's, and is not needed any more."""
        terminal = self._terminal() if -1 in stdio else 0
        numbers = [self._open(fd, place, terminal) for place, fd in enumerate(stdio)]
        self._terminals[name] = terminal
        self._out_of_memory[name] = False
        self.tell(f"start {name} {' '.join(map(str, numbers))}", plan)

    def enter(self, name: str, stdio: Sequence[int], spec: bytes) -> int:
        """Have a command run beside the app (its LaunchSpec, by `plan.dumps`); its number. `stdio`: three descriptors
        as a process would get them, or one that stands for the master of a terminal; ends of pipes or pairs of sockets
        that are nobody else's. They stay the caller's, who closes them: ours are closed when the command has ended."""
        number = self._number()
        if len(stdio) == 1:
            terminal = self._terminal()
            self._traffic.attach(terminal, os.dup(stdio[0]))
            numbers = [terminal] * 3
        else:
            terminal = 0
            for fd in stdio:
                os.set_blocking(fd, False)
            numbers = [self._open(fd, place, 0) for place, fd in enumerate(stdio)]
        self._commands[number] = terminal
        self.tell(f"enter {number} {name} {' '.join(map(str, numbers))}", spec)
        return number

    def signal_entered(self, command: int, number: int) -> None:
        """Signal the command. Harmless when it has ended."""
        if command in self._commands:
            self.tell(f"signal-entered {command} {number:d}")

    def resize(self, name: str, rows: int, columns: int) -> None:
        """Of the app's terminal. Harmless when it has none."""
        self._resize(self._terminals.get(name, 0), rows, columns)

    def resize_entered(self, command: int, rows: int, columns: int) -> None:
        self._resize(self._commands.get(command, 0), rows, columns)

    def out_of_memory(self, name: str) -> bool:
        """Whether memory had run out when the app ended last."""
        return self._out_of_memory.get(name, False)

    def when_written(self, callback: Callable[[], None]) -> None:
        """Call once, when all that came for streams is written to them, or cannot be: perhaps at once. It waits for as
        long as a reader does not read. (`streams.when_all_written`: needed where an app has the caller's own pipes.)"""
        self._traffic.when_written(callback)

    def close(self) -> None:
        """Hang up. What has come for apps' pipes is in them then; what others do not take is lost. Nothing is called
        back any more."""
        self._wire.close()
        self._traffic.hung_up()
        self._traffic.close()

    def _resize(self, stream: int, rows: int, columns: int) -> None:
        if stream:
            self.tell(f"resize {stream} {rows & 0xFFFF} {columns & 0xFFFF}")

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    def _terminal(self) -> int:
        number = self._number()
        self._traffic.terminal(number)
        return number

    def _open(self, fd: int, place: int, terminal: int) -> int:
        """The stream for the descriptor `fd` that is to be `place` (0, 1 or 2)."""
        if fd < 0:
            return terminal
        found = os.fstat(fd)
        if stat.S_ISCHR(found.st_mode) and (os.major(found.st_rdev), os.minor(found.st_rdev)) == _NULL:
            return 0
        number = self._number()
        # It may be somebody else's as well, whom O_NONBLOCK would surprise.
        own = own_description(fd, os.O_WRONLY if place else os.O_RDONLY) if os.get_blocking(fd) else -1
        if place:
            nonblocking = own >= 0 or not os.get_blocking(fd)
            self._traffic.write(number, os.dup(fd) if own < 0 else own, nonblocking=nonblocking)
        else:
            self._traffic.read(number, os.dup(fd) if own < 0 else own)
        return number

    # --- from the guest

    def _gone(self, why: str) -> None:
        self._traffic.hung_up()
        self._calls.hear(f"broken the pod's virtual machine {why}" if why else "", [])

    def _take(self, kind: int, stream: int, payload: bytes) -> None:
        if kind != MESSAGE:
            self._traffic.take(kind, stream, payload)
            return
        text, blob = frames.decode_message(payload, frames.LONGEST)
        verb, _, rest = text.partition(" ")
        if verb in _SUPERVISOR:
            self._pass_on(verb, rest)
        elif verb in _AGENT:
            _AGENT[verb](self, rest, blob)
        else:
            raise FrameError(f"said what nobody understands: {_shown(verb)[:40]!r}")

    def _pass_on(self, verb: str, rest: str) -> None:
        """What the supervisor says, word for word where it can be."""
        if verb in _ONCE:
            self._once(verb)
        known = _SUPERVISOR[verb]
        words = rest.split(" ", len(known) - 1) if known else rest.split()
        if len(words) != len(known):
            raise FrameError(f"said {verb} with {len(words)} words")
        good = [check(self, word) for check, word in zip(known, words, strict=True)]
        fds: list[int] = []
        if verb == "ended":
            self._out_of_memory[good[0]] = good.pop() == "1"
        elif verb == "terminal":
            stream = self._terminals[good[0]]
            if not stream or not self._traffic.has_source(stream):
                return  # The monitor has let go of it meanwhile.
            fds.append(self._make_terminal(stream))
        self._calls.hear(" ".join((verb, *good)), fds)
        if verb == "over" and not self._wire.closed:
            self._wire.close()
            self._gone("")

    def _once(self, verb: str) -> None:
        if verb in self._said:
            raise FrameError(f"said {verb} twice")
        self._said.add(verb)

    def _make_terminal(self, stream: int) -> int:
        """The end of it that the monitor uses as it would a master."""
        ours, theirs = socketpair(AF_UNIX, SOCK_STREAM, 0)
        self._traffic.attach(stream, theirs.detach())
        return ours.detach()

    def _up(self, rest: str, _blob: bytes) -> None:
        self._once("up")
        self._calls.up(_shown(rest)[:64])

    def _ending(self, rest: str, _blob: bytes) -> None:
        self._traffic.make_room({_count(word, 2**32 - 1) for word in rest.split(" ")})

    def _limits(self, _rest: str, blob: bytes) -> None:
        if len(blob) > _MAX_LIMITS:
            raise FrameError(f"sent {len(blob)} bytes of limits")
        try:
            found = json.loads(blob)
            reports = [Report(*map(_word_of_report, words)) for words in found]
        except (ValueError, TypeError, RecursionError) as error:
            raise FrameError("sent limits that are none") from error
        if len(reports) > _MAX_REPORTS or not all(map(self._is_report, reports)):
            raise FrameError("sent limits that are none")
        self._calls.limits(reports)

    def _is_report(self, report: Report) -> bool:
        return report.verdict in _VERDICTS and (not report.app or report.app in self._terminals)

    def _datagram(self, rest: str, blob: bytes) -> None:
        name, _, socket = rest.partition(" ")
        if socket not in _SOCKETS:
            raise FrameError(f"told of a socket that there is not: {_shown(socket)[:40]!r}")
        self._calls.datagram(self._known(name), socket, blob)

    def _entered(self, rest: str, _blob: bytes) -> None:
        number, _, status = rest.partition(" ")
        self._calls.entered(self._command(number), _count(status, 255))

    def _refused(self, rest: str, _blob: bytes) -> None:
        number, _, rest = rest.partition(" ")
        status, _, text = rest.partition(" ")
        self._calls.refused(self._command(number), _count(status, 255), _shown(text))

    def _command(self, word: str) -> int:
        number = _count(word, 2**32 - 1)
        if self._commands.pop(number, None) is None:
            raise FrameError("told of a command that does not run")
        return number

    def _known(self, name: str) -> str:
        if name not in self._terminals:
            raise FrameError(f"told of an app that it does not have: {_shown(name)[:40]!r}")
        return name


def _shown(text: str) -> str:
    """For people: one line without control characters."""
    return "".join(char if char.isprintable() else " " for char in text[:MAX_TEXT])


def _count(word: str, most: int) -> int:
    if not (word.isascii() and word.isdigit() and len(word) <= 10 and int(word) <= most):
        raise FrameError(f"gave no number where one belongs: {_shown(word)[:40]!r}")
    return int(word)


def _word_of_report(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    return _shown(value)


_Check = Callable[[Bridge, str], str]


def _name(bridge: Bridge, word: str) -> str:
    return bridge._known(word)


def _up_to(most: int) -> _Check:
    return lambda _bridge, word: str(_count(word, most))


def _text(_bridge: Bridge, word: str) -> str:
    return _shown(word)


_STATUS, _SIGNAL, _FLAG, _PID = _up_to(255), _up_to(64), _up_to(1), _up_to(2**31 - 1)
_SUPERVISOR: dict[str, tuple[_Check, ...]] = {
    "started": (_name, _PID),
    "terminal": (_name,),
    "failed": (_name, _STATUS, _text),
    "ended": (_name, _STATUS, _SIGNAL, _FLAG, _FLAG, _FLAG),
    "again": (_name,),
    "idle": (_name,),
    "ready": (),
    "health": (_name, _text),
    "stopping": (),
    "over": (_STATUS,),
    "pong": (),
    "broken": (_text,),
}
"""What each word has to be; the last is all the rest."""
_ONCE = ("ready", "over", "broken")
"""Nothing in the monitor counts on hearing them again."""
_AGENT: dict[str, Callable[[Bridge, str, bytes], None]] = {
    "up": Bridge._up,
    "ending": Bridge._ending,
    "limits": Bridge._limits,
    "datagram": Bridge._datagram,
    "entered": Bridge._entered,
    "refused": Bridge._refused,
}
