"""What the benchmarks share: a scratch directory, commands timed in turn, a table of ratios, the machine's line."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

IMAGE = "example.com/busybox"
"""The image made by `busybox`, for rkpy; `localhost/busybox` for podman."""
LIMITS = ("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=32768:32768")
"""Limits that podman does not need privileges for: it would raise them otherwise."""


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


def busybox(directory: str, *programs: str, more: Callable[[str], None] | None = None) -> str:
    """An image of a static busybox that runs `/bin/sh`, in rkpy's store and in podman's below `directory`; the path of
    its root, to which `more` may add before."""
    root = f"{directory}/image/rootfs"
    for name in ("bin", "proc", "dev", "sys", "tmp", "etc", "usr"):
        os.makedirs(f"{root}/{name}")
    run("cp", "/bin/busybox", f"{root}/bin/busybox")
    for name in ("sh", *programs):
        os.symlink("busybox", f"{root}/bin/{name}")
    if more is not None:
        more(root)
    fetch(directory, IMAGE, "/bin/sh")
    run("tar", "-C", root, "-cf", f"{directory}/image.tar", ".")
    run(*podman(directory, "import", f"{directory}/image.tar", "localhost/busybox"))
    return root


def fetch(directory: str, name: str, *command: str) -> None:
    """The tree `directory`/image/rootfs as the ACI `name` in rkpy's store, `directory`/rkpy."""
    labels = [{"name": "version", "value": "1"}, {"name": "os", "value": "linux"}]
    app = {"exec": command, "user": "0", "group": "0"}
    manifest = {"acKind": "ImageManifest", "acVersion": "0.8.11", "name": name, "labels": labels, "app": app}
    with open(f"{directory}/image/manifest", "w") as file:
        json.dump(manifest, file)
    run("tar", "-C", f"{directory}/image", "-cf", f"{directory}/image.aci", "manifest", "rootfs")
    run(rkpy(), f"--dir={directory}/rkpy", "--insecure-options=image", "fetch", f"{directory}/image.aci")


def pod(directory: str, *flags: str, stage1: str = "nspawn") -> list[str]:
    """The command that runs IMAGE in a pod without a network; `flags` are of the app."""
    network = ["--net=none"] if stage1 == "nspawn" else []
    return [rkpy(), f"--dir={directory}/rkpy", "run", f"--stage1={stage1}", *network, IMAGE, *flags]


def clean(directory: str) -> None:
    """Remove what pods and containers have left below `directory`."""
    run(rkpy(), f"--dir={directory}/rkpy", "gc", "--grace-period=0s")
    run(*podman(directory, "rm", "--all", "--force"))


def compare(cases: Sequence[Case], *, runs: int, warmup: int, baseline: str) -> dict[str, float]:
    """Time `cases` in turn, again and again, so that what else the machine does falls on all of them alike; print
    medians and ratios to `baseline`. The medians in milliseconds."""
    times: dict[str, list[float]] = {case.name: [] for case in cases}
    for turn in range(warmup + runs):
        for case in cases:
            if case.prepare:
                run(*case.prepare)
            took = timed(case.command)
            if turn >= warmup:
                times[case.name].append(took)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    print(machine())
    print(f"{'command':<48} {'median ms':>10} {'ratio':>7}   (to {baseline}, {runs} runs)")
    for name, median in sorted(medians.items(), key=lambda item: item[1]):
        print(f"{name:<48} {median:>10.1f} {median / medians[baseline]:>7.2f}")
    return medians


def timed(command: Sequence[str]) -> float:
    """Milliseconds from the start of a command to its end; it has to succeed, and what it prints is thrown away."""
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        status = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=errors).returncode
        took = time.perf_counter() - start
        if status:
            errors.seek(0)
            sys.exit(f"{' '.join(command)}: exit status {status}\n{errors.read().decode()}")
    return took * 1000


def machine() -> str:
    """One line that says what the figures were measured on."""
    with open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "?")
    with open("/proc/loadavg") as file:
        load = file.read().split()[0]
    system, python = os.uname(), sys.version.split()[0]
    versions = run("podman", "--version").strip(), run("runc", "--version").splitlines()[0]
    return f"{os.cpu_count()} x {model}, Linux {system.release}, Python {python}, {', '.join(versions)}, load {load}"
