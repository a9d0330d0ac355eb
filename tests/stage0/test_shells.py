"""Completion in real shells: a line is typed on a terminal, Tab is pressed, and what is offered is read."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from stage0 import shells
from stage0.pods import Pods

ROOT = Path(__file__).parents[2]
DEADLINE = 300.0
PROMPT = b"READY> "
TABS = b"\t\t"
CASES = [
    ("rkpy image ", ["cat-manifest", "export", "verify"]),
    ("rkpy run --st", ["--stage1=", "--stop-timeout=", "--store-only"]),
    ("rkpy --dir=data rm ", ["web", "wide"]),
    ("rkpy run --stage1=n", ["--stage1=nspawn"]),
    ("rkpy completion f", ["rkpy completion fish"]),
    ("rkpy run --signature=./here/si", ["--signature=./here/signature.asc"]),
    ("rkpy image extract x ./he", ["./here/"]),
]
"""A line, and what is seen after Tab."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home directory with rkpy in bin/ and its completion installed for each shell."""
    home = tmp_path_factory.mktemp("home")
    (home / "bin").mkdir()
    (home / "here").mkdir()
    (home / "here" / "signature.asc").touch()
    (home / "bin" / "rkpy").write_text(f'#!/bin/sh\nexec {sys.executable} -P {ROOT}/rkpy.py "$@"\n')
    (home / "bin" / "rkpy").chmod(0o755)
    (home / ".bashrc").write_text("PS1='READY> '\nbind 'set bell-style none'\n" + shells.SCRIPTS["bash"])
    (home / "functions").mkdir()
    (home / "functions" / "_rkpy").write_text(shells.SCRIPTS["zsh"])
    (home / ".zshrc").write_text(
        "PS1='READY> '\nfpath=(~/functions $fpath)\nautoload -Uz compinit\ncompinit -u -D\nunsetopt auto_menu\n"
    )
    (home / "rkpy.fish").write_text(shells.SCRIPTS["fish"])
    for name in ("web", "wide"):
        with Pods(str(home / "data" / "pods")).create() as pod:
            pod.to_prepare()
            (Path(pod.path) / "name").write_text(f"{name}\n")
            pod.to_prepared()
    return home


@pytest.fixture(scope="module")
def environment(home: Path) -> dict[str, str]:
    return {
        "HOME": str(home),
        "ZDOTDIR": str(home),
        "PATH": f"{home}/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TERM": "dumb",
        "COLUMNS": "200",
        "LINES": "50",
        "LANG": "C.UTF-8",
    }


@contextmanager
def terminal(words: list[str], environment: dict[str, str], directory: Path) -> Iterator[int]:
    """A shell on a terminal of its own: the other side of it."""
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(directory)
        os.execvpe(words[0], words, environment)
    try:
        yield fd
    finally:
        os.close(fd)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def read_until(fd: int, wanted: list[bytes]) -> str:
    """Everything that is shown, until all of `wanted` has been."""
    shown = b""
    end = time.monotonic() + DEADLINE
    while not all(text in shown for text in wanted):
        ready, _, _ = select.select([fd], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"only this was shown: {shown!r}"
        shown += os.read(fd, 1 << 16)
    return shown.decode(errors="replace")


def needs(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize(("line", "seen"), CASES)
def test_tab(shell: str, line: str, seen: list[str], home: Path, environment: dict[str, str]) -> None:
    needs(shell)
    with terminal([shell, "-i"], environment, home) as fd:
        read_until(fd, [PROMPT])
        os.write(fd, line.encode() + TABS)
        # What the line already says is shown as it is typed.
        read_until(fd, [text.removeprefix(line.rpartition(" ")[2]).encode() for text in seen])


@pytest.mark.parametrize(("line", "seen"), CASES)
def test_fish(line: str, seen: list[str], home: Path, environment: dict[str, str]) -> None:
    needs("fish")
    done = subprocess.run(
        ["fish", "--no-config", "-c", "source ~/rkpy.fish; complete -C $argv[1]", line],
        env=environment, cwd=home, capture_output=True, text=True, timeout=DEADLINE, check=True,
    )  # fmt: skip
    offered = [row.partition("\t")[0] for row in done.stdout.splitlines()]
    assert done.stderr == ""
    assert [word for word in seen if not any(word.endswith(each) for each in offered)] == []
