"""What tests do with the systemd they run under: commands in units, what units are, what the journal has of them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.cgroups import until

TIMEOUT = 400
"""Seconds until a command counts as hung; far above what any takes."""
KEPT = ("PATH", "HOME", "LANG", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
"""Of the environment of the tests: what a service needs to run the checkout."""

Entry = dict[str, Any]
"""A journal entry: fields, as `journalctl --output=json` has them."""


def run(*words: object, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command, whose failure is one of the test unless `check` is false."""
    done = subprocess.run(
        [*map(str, words)], capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL,
        env={**os.environ, **environment}, check=False,
    )  # fmt: skip
    assert not check or done.returncode == 0, done
    return done


def unit_name(suffix: str = "service") -> str:
    """One that nobody has, and that does not bear rkpy's mark."""
    return f"test-{secrets.token_hex(4)}.{suffix}"


def in_scope(*command: object, unit: str = "") -> list[str]:
    """The words that run `command` as a shell of a user does: in a scope that is nobody's service, with the caller's
    environment, streams and directory."""
    scope = unit or unit_name("scope")
    return ["systemd-run", "--quiet", "--scope", "--collect", f"--unit={scope}", "--", *map(str, command)]


def in_session(*command: object) -> list[str]:
    """The words that run `command` in a session of root's, as somebody who has logged in does (pam_systemd(8))."""
    return [
        *_transient({"PAMName": "login", "User": "root"}),
        "--pipe",
        "--wait",
        "--collect",
        "--",
        *map(str, command),
    ]


def in_service(*command: object, unit: str = "", properties: Mapping[str, object] | None = None) -> list[str]:
    """The words that run `command` as a transient service and wait for its end, with its status and streams."""
    words = [*_transient(properties or {}), "--pipe", "--wait", "--collect"]
    return [*words, *([f"--unit={unit}"] if unit else []), "--", *map(str, command)]


@contextlib.contextmanager
def service(*command: object, unit: str = "", properties: Mapping[str, object] | None = None) -> Iterator[str]:
    """The name of a transient service that runs `command`, its output in the journal; stopped and forgotten in the end.
    It is there when systemd says it is started, which with Type=notify is when it has said so itself."""
    name = unit or unit_name()
    run(*_transient(properties or {}), f"--unit={name}", "--", *command)
    try:
        yield name
    finally:
        run("systemctl", "stop", name, check=False)
        run("systemctl", "reset-failed", name, check=False)


@contextlib.contextmanager
def executed_anew() -> Iterator[None]:
    """systemd is, again and again (daemon-reexec), until the end, after which it listens. Nobody it could be asked to
    end does that: it hears only a part of what it is told meanwhile."""
    again = subprocess.Popen(
        ["sh", "-c", "while :; do systemctl daemon-reexec; sleep 0.2; done"], start_new_session=True
    )
    try:
        yield
    finally:
        os.killpg(again.pid, signal.SIGKILL)
        again.wait()
        until(lambda: run("systemctl", "daemon-reload", check=False).returncode == 0)


def show(unit: str, *names: str) -> dict[str, str]:
    """Properties of a unit; those of one that is not there are there too (LoadState=not-found)."""
    lines = run("systemctl", "show", unit, *(f"--property={name}" for name in names)).stdout.splitlines()
    return dict(line.partition("=")[::2] for line in lines)


@contextlib.contextmanager
def no_bus() -> Iterator[None]:
    """Without D-Bus until the end of the block."""
    try:
        run("systemctl", "stop", "dbus.socket", "dbus.service")
        yield
    finally:
        run("systemctl", "start", "dbus.socket", "dbus.service")
        until(lambda: run("busctl", "status", check=False).returncode == 0)


def state(unit: str) -> str:
    return show(unit, "ActiveState").get("ActiveState", "")


def becomes(unit: str, **properties: str) -> dict[str, str]:
    """Wait until a unit's properties are these; all that were asked for."""
    found: dict[str, str] = {}

    def are() -> bool:
        found.update(show(unit, *properties))
        return found == properties

    try:
        until(are)
    except AssertionError as error:
        raise AssertionError(
            f"{unit} is {found}, not {properties}\n{run('systemctl', 'status', unit, check=False)}"
        ) from error
    return found


def journal(*matches: str) -> list[Entry]:
    """The entries with all of these (FIELD=VALUE), oldest first, once journald has written all it has."""
    run("journalctl", "--sync")
    # Without --all a long field would be left out.
    output = run("journalctl", "--quiet", "--no-pager", "--all", "--output=json", *matches).stdout
    return [json.loads(line) for line in output.splitlines()]


def logged(*matches: str, count: int = 1) -> list[Entry]:
    """Wait until there are at least `count` such entries."""
    found: list[Entry] = []

    def enough() -> bool:
        found[:] = journal(*matches)
        return len(found) >= count

    until(enough)
    return found


def messages(entries: Sequence[Entry]) -> list[str]:
    """What entries say; bytes that are no text arrive as a list of numbers."""
    texts = (entry.get("MESSAGE") for entry in entries)
    return [text if isinstance(text, str) else bytes(text or ()).decode(errors="replace") for text in texts]


def cgroup_of(pid: int) -> str:
    """The cgroup of systemd's that a process is in: cgroup v2, which is `unified` on a hybrid machine."""
    with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
        return next(line[3:].rstrip("\n") for line in file if line.startswith("0::"))


def _transient(properties: Mapping[str, object]) -> list[str]:
    environment = [f"--setenv={name}={os.environ[name]}" for name in KEPT if name in os.environ]
    return [
        "systemd-run", "--quiet", f"--working-directory={os.getcwd()}", *environment,
        *(f"--property={name}={value}" for name, value in properties.items()),
    ]  # fmt: skip
