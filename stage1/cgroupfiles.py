"""Files of cgroups, and limits as they take them (Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from common.errors import LaunchError, reason
from common.records import NamedTuple
from stage1.limits import CONTROLLER_OF, FLAGS, Limits

ENFORCED, ADJUSTED, NOT_ENFORCEABLE = "enforced", "adjusted", "not enforceable"
_BEYOND = 1 << 60
"""Bytes that no machine has."""


class Report(NamedTuple):
    """What became of one limit."""

    app: str
    """Empty for a limit of the whole pod."""
    name: str
    """A field of Limits, or "swap"."""
    verdict: str
    detail: str
    """What was written, what the kernel made of it, or why it cannot be."""


class Setting(NamedTuple):
    """One value for one file of a cgroup."""

    name: str
    file: str
    value: str


def settings(limits: Limits, disk: str) -> Iterator[Setting]:
    """What to write for `limits`. The value is empty where `disk` is needed and there is none."""
    if limits.memory:
        yield Setting("memory", "memory.max", str(limits.memory))
        # As podman has it: what does not fit into memory may be swapped out, the same amount again and no more.
        yield Setting("swap", "memory.swap.max", str(limits.memory))
    if limits.cpu:
        # The kernel takes no quota of less than a millisecond: a small share of a core gets a longer period.
        period = 100_000 if limits.cpu >= 10 else 1_000_000
        yield Setting("cpu", "cpu.max", f"{limits.cpu * period // 1000} {period}")
    if limits.cpu_weight:
        yield Setting("cpu_weight", "cpu.weight", str(limits.cpu_weight))
    if limits.pids:
        yield Setting("pids", "pids.max", str(limits.pids))
    for name, value, kind in (
        ("io_bandwidth", limits.io_bandwidth, "bps"),
        ("io_operations", limits.io_operations, "iops"),
    ):
        if value:
            yield Setting(name, "io.max", f"{disk} r{kind}={value} w{kind}={value}" if disk else "")


def keep(
    path: str,
    app: str,
    limits: Limits,
    disk: tuple[str, str],
    *,
    unit: bool,
    why: Callable[[], Mapping[str, str]],
    asked: Sequence[str] = (),
) -> Iterator[Report]:
    """Set limits, `app`'s or with an empty name the pod's, in the cgroup `path`, and see what became of each. `unit`:
    it is that of a unit, in which systemd has set them. `disk`: that of the pod's files (MAJOR:MINOR), or why there is
    none. `why`: for each controller why it cannot be used, as far as it was said already. LaunchError for a limit that
    is not kept though nobody was told, or though somebody `asked` for it, by its flag."""
    verdict = ""
    for setting in settings(limits, disk[0]):
        if setting.name == "swap" and verdict == NOT_ENFORCEABLE:
            continue
        if setting.value:
            verdict, detail = see(path, setting, unit=True) if unit else put(path, setting)
        else:
            verdict, detail = NOT_ENFORCEABLE, disk[1]
        if verdict == NOT_ENFORCEABLE and setting.value:
            known = why().get(CONTROLLER_OF.get(setting.name, "memory"), "")
            if setting.name != "swap" and (not known or FLAGS.get(setting.name) in asked):
                raise LaunchError(f"cannot set a limit of {app or 'the pod'}: {detail}")
            detail = known or detail
        yield Report(app, setting.name, verdict, detail)


def end_as_a_whole(path: str) -> None:
    """Have all processes of a cgroup killed when one of them is for want of memory."""
    try_write(f"{path}/memory.oom.group", "1")


def put(path: str, setting: Setting) -> tuple[str, str]:
    """Write a limit and see what became of it."""
    try:
        write(f"{path}/{setting.file}", setting.value)
    except FileNotFoundError:
        return NOT_ENFORCEABLE, f"there is no {setting.file}"
    except OSError as error:
        return NOT_ENFORCEABLE, f"{setting.file} = {setting.value}: {reason(error)}"
    return see(path, setting)


def see(path: str, setting: Setting, *, unit: bool = False) -> tuple[str, str]:
    """What the kernel made of a limit that was written: it rounds to pages, and cuts what is beyond its range. Of a
    `unit` systemd was to write it, and goes on without what it could not."""
    text = read(f"{path}/{setting.file}")
    if not text:
        return NOT_ENFORCEABLE, f"{setting.file} is not set"
    got = _effective(setting, text)
    if got == setting.value:
        return ENFORCED, f"{setting.file} = {got}"
    verdict = NOT_ENFORCEABLE if unit and _is_without(got, setting) else ADJUSTED
    return verdict, f"{setting.file} = {got}, not {setting.value}"


def _is_without(got: str, setting: Setting) -> bool:
    """Whether there is no limit where there was to be one, be it not beyond any machine."""
    if len(got.split()) < len(setting.value.split()) or "=max" in got:
        return True
    return got.startswith("max") and not (setting.value.isdigit() and int(setting.value) > _BEYOND)


def _effective(setting: Setting, text: str) -> str:
    """What `text`, the file's content, says in the terms of `setting`; io.max has a line for each disk, and in it
    everything about that disk."""
    if setting.file != "io.max":
        return text.strip()
    disk, *asked = setting.value.split()
    keys = {word.partition("=")[0] for word in asked}
    line = next((line.split() for line in text.splitlines() if line.startswith(f"{disk} ")), [disk])
    return " ".join([disk, *(word for word in line[1:] if word.partition("=")[0] in keys)])


# Files


def counter(path: str, key: str) -> int:
    """A value of a flat keyed file; 0 when it is not there."""
    words = read(path).split()
    return int(words[words.index(key) + 1]) if key in words else 0


def read(path: str) -> str:
    """Empty when there is no such file, or the cgroup has gone."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            raise
        return ""


def write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def try_write(path: str, text: str) -> None:
    try:
        write(path, text)
    except OSError:
        pass
