"""The service a `.pod` file becomes (systemd.service(5)): what runs the pod comes first, what the file says after it,
so that the file has the last word; and nothing is said twice of which there can be one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from common.errors import RkpyError
from common.records import NamedTuple
from stage0 import config, grammar, options
from stage0.podfile import quoting
from stage0.podfile.keys import PASSED
from stage0.podfile.pods import PodWords, Word
from stage0.podfile.search import PodFile
from stage0.podfile.syntax import Entry, Parsed

STOP_MARGIN = 15
"""Seconds beyond what the pod allows its apps and their handlers until systemd kills what is left."""
_DEFAULT_STOP = 10
_LISTS = frozenset(("RequiresMountsFor", "SuccessExitStatus", "ExecStopPost", "Documentation"))
"""Keys of ours that add up: these are left to systemd, where an empty value takes ours back."""


class Line(NamedTuple):
    """A line of the unit (or several, for one assignment), and the assignment it was copied from."""

    text: str
    origin: Entry | None = None


def text(file: PodFile, parsed: Parsed, pod: PodWords) -> str:
    return "".join(f"{line.text}\n" for line in lines(file, parsed, pod))


def lines(file: PodFile, parsed: Parsed, pod: PodWords) -> Iterator[Line]:
    """The unit of a pod without mistakes."""
    ours = {"Unit": [*_unit(file, pod)], "Service": [*_service(pod)]}
    yield Line(f"# Made by rkpy's generator from {file.path}: change that, or drop in beside it.")
    for section in PASSED:
        theirs = [entry for entry in parsed.entries if entry.section == section]
        given = {entry.key for entry in theirs if entry.key not in _LISTS}
        if section in ours or theirs:
            yield Line("")
            yield Line(f"[{section}]")
        yield from (Line(f"{key}={value}") for key, value in ours.get(section, ()) if key not in given)
        yield from (Line(f"{entry.key}={entry.value}", entry) for entry in theirs)


def _unit(file: PodFile, pod: PodWords) -> Iterator[tuple[str, str]]:
    yield "Description", f"Pod {pod.name}"
    yield "Documentation", "man:rkpy(1)"
    yield "SourcePath", file.path.replace("%", "%%")
    yield "RequiresMountsFor", " ".join(quoting.quote(path) for path in (_data(pod), *pod.sources))


def _service(pod: PodWords) -> Iterator[tuple[str, str]]:
    leading = [word.text for word in pod.leading]
    yield "Type", "notify"
    yield "NotifyAccess", "main"
    yield "Slice", "machine.slice"
    yield "Delegate", "yes"
    yield "KillMode", "mixed"
    yield "TimeoutStopSec", str(2 * _stop_timeout(pod.stop_timeout) + STOP_MARGIN)
    yield "SuccessExitStatus", "143"
    yield "SyslogIdentifier", "%N"
    yield "ExecStart", _command([program(), *leading, "run"], pod)
    if pod.reload_signal:
        signal = quoting.literal(pod.reload_signal)
        yield "ExecReload", quoting.join([program(), *leading, "kill", f"--signal={signal}", pod.name])
    yield "ExecStopPost", "-" + quoting.join([program(), *leading, "gc", "--mark-only"])


def _command(leading: list[str], pod: PodWords) -> str:
    """A flag, an image or the arguments of an app a line."""
    rows = [quoting.join(leading), *(quoting.quote(word.text) for word in pod.pod)]
    for index, app in enumerate(pod.apps):
        rows += [quoting.quote(word.text) for word in (app.image, *app.flags)]
        if app.arguments:
            end = [Word("---")] if index + 1 < len(pod.apps) else []
            rows.append(quoting.join(word.text for word in (Word("--"), *app.arguments, *end)))
    return " \\\n    ".join(rows)


def program() -> str:
    """This very program, when systemd can start it; or whichever one it finds."""
    path = sys.argv[0]
    return path if os.path.isabs(path) and os.path.basename(path) == "rkpy" and os.access(path, os.X_OK) else "rkpy"


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
    check = quoting.join([program(), "unit", "check", quoting.literal(file.path.replace("%", "%%"))])
    return "\n".join((
        f"# Made by rkpy's generator from {file.path}, in which there are mistakes.",
        "",
        "[Unit]",
        f"Description=Pod file {file.path.replace('%', '%%')}, in which there are mistakes",
        f"SourcePath={file.path.replace('%', '%%')}",
        "",
        "[Service]",
        "Type=oneshot",
        f"ExecStart={check}",
        # Mended since, and systemd has not been told: systemctl daemon-reload.
        "ExecStart=false",
        "",
    ))  # fmt: skip
