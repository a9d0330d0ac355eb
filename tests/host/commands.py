"""Runs the `rkpy` command on a data directory of its own, as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO, NamedTuple

from tests.ordinary import User

ROOT = Path(__file__).parents[2]
TIMEOUT = 400
"""Seconds until a command counts as hung; far above what any takes."""


class Done(NamedTuple):
    status: int
    out: str
    err: str


class Rkpy:
    """The command with `--dir` and `--local-config` below `directory`; as `user` if it is not to be run by root."""

    def __init__(self, directory: Path, interpreter: str = sys.executable, user: User | None = None) -> None:
        self.directory = directory
        self.interpreter = interpreter
        self.user = user
        self.data, self.config = directory / "data", directory / "etc"

    def command(self, *words: object) -> list[str]:
        own = [f"--dir={self.data}", f"--local-config={self.config}", f"--system-config={self.directory / 'usr'}"]
        command = [self.interpreter, "-P", str(ROOT / "rkpy.py"), *own, *map(str, words)]
        return command if self.user is None else self.user.command(command)

    def environment(self) -> dict[str, str]:
        own = os.environ if self.user is None else self.user.environment()
        return {**own, "PYTHONPATH": str(ROOT)}

    def __call__(self, *words: object, **environment: str) -> Done:
        done = subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            stdin=subprocess.DEVNULL,
            env={**self.environment(), **environment},
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def ok(self, *words: object, **environment: str) -> str:
        """Standard output of a command that has to succeed."""
        done = self(*words, **environment)
        assert done.status == 0, done
        return done.out

    def refused(self, *words: object) -> str:
        """The one line of a command that has to be refused with status 254."""
        done = self(*words)
        assert done.status == 254, done
        assert done.out == "", done
        assert done.err.startswith("rkpy: "), done
        assert done.err.count("\n") == 1, done
        return done.err

    def start(
        self, *words: object, stdout: IO[str] | int = subprocess.PIPE, stderr: IO[str] | int = subprocess.PIPE
    ) -> subprocess.Popen[str]:
        """A command left running, its streams piped unless it is said otherwise."""
        return subprocess.Popen(self.command(*words), stdout=stdout, stderr=stderr, text=True, env=self.environment())

    def fly(self, *words: object) -> Done:
        """`run` under fly without verification."""
        return self("--insecure-options=image", "run", "--stage1=fly", *words)

    def pods(self) -> list[Path]:
        """Every directory of a pod, whatever its state."""
        return sorted(self.data.glob("pods/*/*-*-*-*-*"))

    def images(self) -> list[Path]:
        return sorted(self.data.glob("cas/image/*.json"))
