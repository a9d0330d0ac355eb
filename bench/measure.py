"""What the benchmarks share: a scratch directory, hyperfine side by side, a table of ratios, the machine's line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple


class Case(NamedTuple):
    """One command of a comparison; `prepare` runs before each timing of it and is not timed."""

    name: str
    command: Sequence[str]
    prepare: Sequence[str] = ()


def run(*command: str, **options: object) -> str:
    """Run a command that has to succeed; its standard output."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr}")
    output: str = done.stdout
    return output


def rkpy() -> str:
    """The installed command: beside this interpreter, else on PATH."""
    beside = os.path.join(os.path.dirname(sys.executable), "rkpy")
    found = beside if os.path.exists(beside) else shutil.which("rkpy")
    return found or sys.exit("install rkpy first: pip install .")


@contextmanager
def scratch() -> Iterator[str]:
    """A directory that is removed at the end, whatever was mounted below it."""
    directory = tempfile.mkdtemp(prefix="rkpy-bench-")
    try:
        yield directory
    finally:
        with open("/proc/self/mountinfo") as file:
            points = [line.split()[4] for line in file]
        for point in sorted((p for p in points if p.startswith(f"{directory}/")), reverse=True):
            subprocess.run(["umount", "-l", point], check=False)
        subprocess.run(["rm", "-rf", "--one-file-system", directory], check=False)


def podman(directory: str, *words: str) -> list[str]:
    """A podman command with storage of its own."""
    return [
        "podman",
        "--root",
        f"{directory}/podman",
        "--runroot",
        f"{directory}/podman-run",
        "--runtime",
        "runc",
        *words,
    ]


def compare(cases: Sequence[Case], *, runs: int, warmup: int, baseline: str) -> None:
    """Time `cases` with hyperfine and print medians and ratios to `baseline`."""
    with tempfile.NamedTemporaryFile(suffix=".json") as result:
        command = [
            "hyperfine",
            "-N",
            "--style",
            "none",
            "-r",
            str(runs),
            "-w",
            str(warmup),
            "--export-json",
            result.name,
        ]
        for case in cases:
            command += ["-n", case.name, "--prepare", _quoted(case.prepare or ["true"])]
        run(*command, *(_quoted(case.command) for case in cases))
        with open(result.name) as file:
            medians = {one["command"]: one["median"] * 1000 for one in json.load(file)["results"]}
    print(machine())
    print(f"{'command':<34} {'median ms':>10} {'ratio':>7}   (to {baseline}, {runs} runs)")
    for name, median in sorted(medians.items(), key=lambda item: item[1]):
        print(f"{name:<34} {median:>10.1f} {median / medians[baseline]:>7.2f}")


def _quoted(command: Sequence[str]) -> str:
    import shlex

    return shlex.join(command)


def machine() -> str:
    """One line that says what the figures were measured on."""
    with open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "?")
    with open("/proc/loadavg") as file:
        load = file.read().split()[0]
    system, python = os.uname(), sys.version.split()[0]
    versions = run("podman", "--version").strip(), run("runc", "--version").splitlines()[0]
    return f"{os.cpu_count()} x {model}, Linux {system.release}, Python {python}, {', '.join(versions)}, load {load}"
