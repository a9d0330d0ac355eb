"""The service a `.pod` file becomes (systemd.service(5)): what runs the pod comes first, what the file says after it,
so that the file has the last word; and nothing is said twice of which there can be one."""

from __future__ import annotations

from collections.abc import Iterator

from common.errors import RkpyError
from common.records import NamedTuple
from stage0 import caller, config, grammar, invocation, options, podservice, unitfile
from stage0.podfile import quoting
from stage0.podfile.keys import PASSED
from stage0.podfile.pods import PodWords, Word
from stage0.podfile.search import PodFile
from stage0.podfile.syntax import Entry, Parsed

_DEFAULT_STOP = 10
_LISTS = frozenset(("After", "RequiresMountsFor", "SuccessExitStatus", "ExecStopPost", "Documentation"))
"""Keys of ours that add up: these are left to systemd, where an empty value takes ours back."""


class Line(NamedTuple):
    """A line of the unit (or several, for one assignment), and the assignment it was copied from."""

    text: str
    origin: Entry | None = None


def text(file: PodFile, parsed: Parsed, pod: PodWords) -> str:
    return "".join(f"{line.text}\n" for line in lines(file, parsed, pod))


def lines(file: PodFile, parsed: Parsed, pod: PodWords) -> Iterator[Line]:
    """The unit of a pod without mistakes."""
    ours = {"Unit": [*_unit(file, pod)], "Service": [*_service(parsed, pod)]}
    yield Line(f"# Made by rkpy's generator from {file.path}: change that, or drop in beside it.")
    for section in PASSED:
        theirs = [entry for entry in parsed.entries if entry.section == section]
        given = {entry.key for entry in theirs if entry.key not in _LISTS}
        if section in ours or theirs:
            yield Line("")
            yield Line(f"[{section}]")
        yield from (Line(f"{key}={value}") for key, value in ours.get(section, ()) if key not in given)
        yield from (Line(_copied(entry), entry) for entry in theirs)


def _copied(entry: Entry) -> str:
    """As it was, also where space after a backslash kept that from continuing the line."""
    return f"{entry.key}={entry.value}" + (" " if entry.value.endswith("\\") else "")


def _unit(file: PodFile, pod: PodWords) -> Iterator[tuple[str, str]]:
    yield "Description", f"Pod {pod.name}"
    yield "Documentation", "man:rkpy-run(1)"
    yield "SourcePath", unitfile.literal(file.path)
    if not caller.is_ordinary():
        yield "After", podservice.AFTER
    yield "RequiresMountsFor", " ".join(unitfile.quoted(path) for path in (_data(pod), *pod.sources))


def signals_to_reload(parsed: Parsed) -> bool:
    """Whether systemd itself sends the pod a signal to have it reload, and would run ExecReload= besides
    (systemd.service(5), Type=)."""
    types = [entry.value for entry in parsed.entries if (entry.section, entry.key) == ("Service", "Type")]
    return types[-1:] == ["notify-reload"]


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


def broken(file: PodFile) -> str:
    """A unit for a file with mistakes: whoever wants the pod is told that it failed, and `systemctl status` why."""
    check = unitfile.command(*invocation.command(), "unit", "check", file.path)
    path = unitfile.literal(file.path)
    return "\n".join((
        f"# Made by rkpy's generator from {file.path}, in which there are mistakes.",
        "",
        "[Unit]",
        f"Description=Pod file {path}, in which there are mistakes",
        f"SourcePath={path}",
        "",
        "[Service]",
        "Type=oneshot",
        # What does not go together in a large file takes long to find, and the boot may wait for us.
        "TimeoutStartSec=60",
        f"ExecStart={check}",
        # Mended since, and systemd has not been told: systemctl daemon-reload.
        "ExecStart=false",
        "",
    ))  # fmt: skip
