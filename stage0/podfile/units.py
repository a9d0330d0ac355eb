"""The service a `.pod` file becomes (systemd.service(5)), and the socket that starts it (systemd.socket(5)): what runs
the pod comes first, what the file says after it, so that the file has the last word; and nothing is said twice of which
there can be one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from common.errors import RkpyError
from common.records import NamedTuple
from stage0 import caller, config, grammar, invocation, options, podservice, unitfile
from stage0.podfile import quoting, sections
from stage0.podfile.pods import PodWords, Word
from stage0.podfile.search import PodFile
from stage0.podfile.syntax import Entry, Parsed

_DEFAULT_STOP = 10
_DOCUMENTATION = "man:rkpy.pod(5) man:rkpy-run(1)"
_OWN_SOCKET = "%N.socket"
_LISTS = frozenset(
    ("After", "Requires", "RequiresMountsFor", "Sockets", "SuccessExitStatus", "ExecStopPost", "Documentation")
)
"""Keys of ours that add up: these are left to systemd, where an empty value takes ours back."""


class Line(NamedTuple):
    """A line of the unit (or several, for one assignment), and the assignment it was copied from."""

    text: str
    origin: Entry | None = None


def made(file: PodFile, parsed: Parsed, pod: PodWords) -> dict[str, list[Line]]:
    """The units of a pod without mistakes by their names: the service, and its socket if the file has a section for
    it. That is what [Install] is about then: the service is started by whoever connects."""
    service: dict[str, list[tuple[str, str]]] = {"Unit": [*_unit(file, pod)], "Service": [*_service(parsed, pod)]}
    if sections.socket(parsed) is None:
        return {file.unit: [*_lines(file, parsed, {**service, "Install": []})]}
    # Whoever closes the socket wants it closed, and the app has it too. Started by hand, the pod gets it all the same.
    service["Unit"].append(("Requires", _OWN_SOCKET))
    service["Service"].append(("Sockets", _OWN_SOCKET))
    wanted = [] if sections.is_installed(parsed) else [("WantedBy", sections.SOCKETS)]
    socket: dict[str, list[tuple[str, str]]] = {"Unit": [*_socket(file, pod)], "Socket": [], "Install": wanted}
    return {
        file.unit: [*_lines(file, parsed, service)],
        file.socket: [*_lines(file, parsed, socket, without="Unit")],
    }


def text(lines: Iterable[Line]) -> str:
    return "".join(f"{line.text}\n" for line in lines)


def _lines(
    file: PodFile, parsed: Parsed, ours: Mapping[str, list[tuple[str, str]]], without: str = ""
) -> Iterator[Line]:
    """A unit of these sections; `without` is the one in which the file speaks of another unit."""
    yield Line(f"# Made by rkpy's generator from {file.path}: change that, or drop in beside it.")
    for section in ours:
        theirs = [entry for entry in parsed.entries if entry.section == section != without]
        given = {entry.key for entry in theirs if entry.key not in _LISTS}
        if ours[section] or theirs:
            yield Line("")
            yield Line(f"[{section}]")
        yield from (Line(f"{key}={value}") for key, value in ours[section] if key not in given)
        yield from (Line(_copied(entry), entry) for entry in theirs)


def _copied(entry: Entry) -> str:
    """As it was, also where space after a backslash kept that from continuing the line."""
    return f"{entry.key}={entry.value}" + (" " if entry.value.endswith("\\") else "")


def _unit(file: PodFile, pod: PodWords) -> Iterator[tuple[str, str]]:
    yield "Description", f"Pod {pod.name}"
    yield "Documentation", _DOCUMENTATION
    yield "SourcePath", unitfile.literal(file.path)
    if not caller.is_ordinary():
        yield "After", podservice.AFTER
    yield "RequiresMountsFor", " ".join(unitfile.quoted(path) for path in (_data(pod), *pod.sources))


def signals_to_reload(parsed: Parsed) -> bool:
    """Whether systemd itself sends the pod a signal to have it reload, and would run ExecReload= besides
    (systemd.service(5), Type=)."""
    types = [entry.value for entry in parsed.entries if (entry.section, entry.key) == ("Service", "Type")]
    return types[-1:] == ["notify-reload"]


def _socket(file: PodFile, pod: PodWords) -> Iterator[tuple[str, str]]:
    yield "Description", f"Socket of pod {pod.name}"
    yield "Documentation", _DOCUMENTATION
    yield "SourcePath", unitfile.literal(file.path)


def _service(parsed: Parsed, pod: PodWords) -> Iterator[tuple[str, str]]:
    command = " ".join((unitfile.command(*invocation.command()), *(unitfile.quoted(word.text) for word in pod.leading)))
    name = quoting.literal(pod.name)
    yield from podservice.settings(_stop_timeout(pod.stop_timeout))
    yield "ExecStart", _command(f"{command} run", pod)
    if pod.reloads and not signals_to_reload(parsed):
        yield "ExecReload", f"{command} reload {unitfile.quoted(name)}"
    yield "ExecStopPost", f"-{command} {' '.join(map(unitfile.quoted, podservice.after_stop(name)))}"


def _command(leading: str, pod: PodWords) -> str:
    """A flag, an image or the arguments of an app a line."""
    rows = [leading, *(unitfile.quoted(word.text) for word in pod.pod)]
    for index, app in enumerate(pod.apps):
        rows += [unitfile.quoted(word.text) for word in (app.image, *app.flags)]
        if app.arguments:
            end = [Word("---")] if index + 1 < len(pod.apps) else []
            rows.append(quoting.join(word.text for word in (Word("--"), *app.arguments, *end)))
    return " \\\n    ".join(rows)


def _data(pod: PodWords) -> str:
    """The directory the pod's data is in."""
    table = options.table(options.GLOBAL)
    try:
        return config.load(grammar.parse([word.text for word in pod.leading], table).flags).data_dir
    except RkpyError:
        return config.DATA_DIR


def _stop_timeout(text: str) -> int:
    """Whole seconds, the default for what makes no sense."""
    if text.isascii() and text.isdigit():
        return int(text[:8])
    from stage0 import durations

    try:
        return max(0, -(-durations.parse(text) // durations.SECOND)) if text else _DEFAULT_STOP
    except RkpyError:
        return _DEFAULT_STOP


def broken(file: PodFile, parsed: Parsed) -> dict[str, str]:
    """Units for a file with mistakes: whoever wants the pod is told that it failed, and `systemctl status` why. Of a
    socket, nothing is listened on: its commands come before."""
    service = ("Service", "Type=oneshot", "TimeoutStartSec", "ExecStart")
    socket = ("Socket", "ListenFIFO=/run/%N", "TimeoutSec", "ExecStartPre")
    found = {file.unit: _broken(file, *service)}
    return found if sections.socket(parsed) is None else {**found, file.socket: _broken(file, *socket)}


def _broken(file: PodFile, section: str, first: str, timeout: str, key: str) -> str:
    check = unitfile.command(*invocation.command(), "unit", "check", file.path)
    path = unitfile.literal(file.path)
    return "\n".join((
        f"# Made by rkpy's generator from {file.path}, in which there are mistakes.",
        "",
        "[Unit]",
        f"Description=Pod file {path}, in which there are mistakes",
        f"SourcePath={path}",
        "",
        f"[{section}]",
        first,
        # What does not go together in a large file takes long to find, and the boot may wait for us.
        f"{timeout}=60",
        f"{key}={check}",
        # Mended since, and systemd has not been told: systemctl daemon-reload.
        f"{key}=false",
        "",
    ))  # fmt: skip
