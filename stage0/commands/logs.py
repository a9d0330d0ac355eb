"""`rkpy logs`: what the apps of a pod have written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC
from functools import partial

import click

from common import journal
from common.errors import PodError, UsageError, reason
from common.records import NamedTuple
from stage0 import caller, durations
from stage0.commands.pod_arguments import one_uuid
from stage0.config import Config
from stage0.pods import NoSuchPodError, Pod, Pods, State
from stage1 import logdriver, logreader, poddir
from stage1.logreader import Entry
from stage1.plan import JOURNALD

_FLUSH = 1 << 16


@click.command("logs")
@click.option("--app", default="", metavar="NAME", help="only the logs of this app")
@click.option("--follow", "-f", is_flag=True, help="go on until the pod is over")
@click.option(
    "--since", default="", metavar="TIME", help="only what is newer than a duration (10m) or an RFC 3339 time"
)
@click.option("--tail", default=-1, metavar="LINES", help="only the last lines")
@click.option("--timestamps", is_flag=True, help="show when each line was written")
@click.option("--console", is_flag=True, help="instead, what the kernel of the pod's virtual machine has said")
@click.option("--uuid-file", metavar="FILE", help="read pod UUID from file instead of argument")
@click.argument("uuid", nargs=-1)
@click.pass_obj
def command(
    config: Config,
    uuid: tuple[str, ...],
    uuid_file: str | None,
    app: str,
    follow: bool,
    since: str,
    tail: int,
    timestamps: bool,
    console: bool,
) -> None:
    """Show what the apps of a rkpy pod have written: to standard output what they wrote there, to standard error what
    they wrote there. With several apps each line begins with the name of its app."""
    start = _parse_since(since) if since else ""
    wanted = one_uuid(uuid, uuid_file)
    if console:
        if app or follow or since or timestamps:
            raise UsageError("--console goes with --tail only", hint="the machine's console is none of an app's logs")
        with Pods(config.pods).find(wanted) as pod:
            _show_console(pod, tail)
        return
    try:
        pod = Pods(config.pods).find(wanted)
    except NoSuchPodError as error:
        log = _of_the_past(wanted, error)
        _show(log, app, follow=False, since=start, tail=tail, timestamps=timestamps)
        return
    with pod:
        _show(_log(pod), app, follow=follow, since=start, tail=tail, timestamps=timestamps)


def _show_console(pod: Pod, tail: int) -> None:
    """Whoever controls the machine controls what is in there, so it is shown without control characters."""
    from stage1.vm import console

    if pod.flavour() != "kvm":
        raise PodError(f'pod "{pod.uuid}" has no console', hint="only pods of the flavour kvm are virtual machines")
    try:
        lines = console.read(pod.base)
    except FileNotFoundError:
        raise PodError(f'pod "{pod.uuid}" has no console: it has not been started') from None
    except OSError as error:
        raise PodError(f'cannot read the console of pod "{pod.uuid}": {reason(error)}') from error
    click.echo("".join(f"{line}\n" for line in (lines if tail < 0 else lines[max(0, len(lines) - tail) :])), nl=False)


class _Log(NamedTuple):
    """Where a pod's log is."""

    uuid: str
    pod: Pod | None
    """None for a pod that has been removed."""
    logged: list[str]
    """The apps that are in it."""
    read: Callable[..., Iterator[Entry]]
    """`logreader.read` or its like, without its first argument."""
    in_journal: bool = True


def _show(log: _Log, app: str, *, follow: bool, since: str, tail: int, timestamps: bool) -> None:
    names = _choose(log, app)
    output = _Output(prefixed=len(names) > 1, timestamps=timestamps)

    def running() -> bool:
        output.flush()
        return log.pod is not None and log.pod.state() is State.RUNNING

    try:
        for entry in log.read(names, since=since, tail=tail, running=running if follow else None):
            output.show(entry)
    finally:
        output.finish()


def _log(pod: Pod) -> _Log:
    """Raises PodError for a pod without logs."""
    if not pod.state().started:
        raise PodError(f'pod "{pod.uuid}" has no logs: it has not been started')
    if logdriver.of_pod(pod.base) == JOURNALD:
        from stage0 import journalreader

        return _Log(pod.uuid, pod, _in_journal(pod), partial(journalreader.read, pod.uuid))
    try:
        logged = logreader.apps(pod.base)
    except OSError as error:
        raise PodError(f'cannot read the logs of pod "{pod.uuid}": {reason(error)}') from error
    return _Log(pod.uuid, pod, logged, partial(logreader.read, pod.base), in_journal=False)


def _in_journal(pod: Pod) -> list[str]:
    """The apps whose output is in the journal, or will be: of one that has run for long it may have dropped all."""
    from stage0 import journalreader

    found = set(journalreader.apps(pod.uuid))
    if not caller.is_ordinary():  # Others may not be able to read it, and are told so.
        found.update(poddir.all_started(pod.base))
    return sorted(found)


def _of_the_past(wanted: str, missing: NoSuchPodError) -> _Log:
    """The log of a pod that was removed, if the journal has it; raises `missing` if not."""
    from stage0 import journalreader

    if not journal.is_there():
        raise missing
    if not journalreader.is_installed():
        hint = f"the journal may have its log: journalctl RKPY_POD_UUID={wanted}"
        raise PodError(missing.message, hint=hint) from missing
    uuid = journalreader.find(wanted)
    if not uuid:
        raise missing
    return _Log(uuid, None, journalreader.apps(uuid), partial(journalreader.read, uuid))


def _choose(log: _Log, app: str) -> list[str]:
    """The apps whose logs are meant. Raises PodError for a pod without logs, UsageError for an app it does not have."""
    if not log.logged:
        fly = log.pod is not None and log.pod.flavour() == "fly"
        hint = "apps under fly write to the streams of whoever runs them" if fly else ""
        if log.in_journal and caller.is_ordinary():
            hint = "what this user may read of the journal has none; members of systemd-journal may read all of it"
        raise PodError(f'pod "{log.uuid}" has no logs', hint=hint)
    if not app:
        return log.logged
    known = sorted({*log.logged, *(() if log.pod is None else (one.name for one in log.pod.manifest().apps))})
    if app not in known:
        raise UsageError(f'no app "{app}" in the pod', hint=f"there is: {', '.join(known)}")
    return [app]


def _parse_since(text: str) -> str:
    """The time as entries of a log have it. Raises UsageError."""
    from datetime import datetime

    if text[:4].isdigit() and "-" in text:
        try:
            moment = datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError):
            raise UsageError(f'invalid time "{text}"', hint="write it like 2026-01-31T15:04:05Z") from None
        return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond:06d}000Z"
    second, rest = divmod(max(0, time.time_ns() - durations.parse(text)), durations.SECOND)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)) + f".{rest:09d}Z"


class _Output:
    """Standard output and error, each given what is its own, in order."""

    def __init__(self, *, prefixed: bool, timestamps: bool) -> None:
        self._prefixed = prefixed
        self._timestamps = timestamps
        self._begun: dict[tuple[str, str], list[bytes]] = {}
        self._stream = "stdout"
        self._pieces: list[bytes] = []
        self._size = 0

    def show(self, entry: Entry) -> None:
        if not self._prefixed and not self._timestamps:
            self._add(entry.stream, entry.data)
            return
        line = self._begun.setdefault((entry.app, entry.stream), [])
        if not line:
            time_of = f"{entry.time} " if self._timestamps else ""
            line.append(f"{time_of}{entry.app}: ".encode() if self._prefixed else time_of.encode())
        line.append(entry.data)
        if entry.full:
            del self._begun[entry.app, entry.stream]
            self._add(entry.stream, b"".join(line))

    def finish(self) -> None:
        """Show lines that have no end, too."""
        for (_, stream), line in self._begun.items():
            self._add(stream, b"".join(line) + b"\n")
        self._begun = {}
        self.flush()

    def _add(self, stream: str, data: bytes) -> None:
        if stream != self._stream or self._size > _FLUSH:
            self.flush()
            self._stream = stream
        self._pieces.append(data)
        self._size += len(data)

    def flush(self) -> None:
        data = b"".join(self._pieces)
        self._pieces = []
        self._size = 0
        while data:
            data = data[os.write(1 if self._stream == "stdout" else 2, data) :]
