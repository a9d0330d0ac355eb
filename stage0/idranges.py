"""Which host IDs the user namespace of a pod gets: 65536 of them that nobody else uses.

A range is a multiple of 65536 between 0x80000 and 0x6fff0000, the part of the number space systemd sets aside for
containers (systemd's UIDS-GIDS). It is recorded in the pod directory, where it stays until the pod is removed, because
files the pod wrote belong to it. The search begins at a hash of the UUID, so that two machines, or two data
directories, rarely choose the same; whatever any pod here has, /etc/subuid and /etc/subgid delegate, or an account has
is passed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from zlib import crc32

from common.errors import PodError, reason
from stage0.pods import DIRECTORIES, Pod, Pods
from stage1 import poddir

WIDTH = 1 << 16
FIRST, LAST = 0x80000, 0x6FFF0000
_COUNT = (LAST - FIRST) // WIDTH + 1
_DELEGATED = ("/etc/subuid", "/etc/subgid")
_ACCOUNTS = (("/etc/passwd", (2, 3)), ("/etc/group", (2,)))


def claim(pods: Pods, pod: Pod) -> tuple[int, int]:
    """Choose a range for `pod`, which is ours, and record it: the first ID and how many. Raises PodError."""
    try:
        with pods.claims():
            taken = {number for start, count in _of_pods(pods) for number in _slots(start, count)}
            taken.update(number for start, count in _of_host() for number in _slots(start, count))
            chosen = choose(pod.uuid, taken)
            # Written before the claims lock is let go: the next to look sees it.
            poddir.write_private_range(pod.path, chosen, WIDTH)
    except OSError as error:
        raise PodError(f"cannot choose a range of user IDs: {error.filename or pods.root}: {reason(error)}") from error
    return chosen, WIDTH


def choose(uuid: str, taken: Iterable[int]) -> int:
    """The first ID of the first free range at or after the one the UUID points to; `taken` are numbers of ranges.
    Raises PodError when all are taken."""
    used = set(taken)
    start = crc32(uuid.encode()) % _COUNT
    for offset in range(_COUNT):
        number = (start + offset) % _COUNT
        if number not in used:
            return FIRST + number * WIDTH
    raise PodError("every range of user IDs is in use", hint="remove pods with rkpy gc")


def _slots(start: int, count: int) -> range:
    """Numbers of the ranges that the IDs from `start` on touch."""
    last = start + max(count, 1) - 1
    if last < FIRST or start >= LAST + WIDTH:
        return range(0)
    return range((max(start, FIRST) - FIRST) // WIDTH, (min(last, LAST) - FIRST) // WIDTH + 1)


def _of_pods(pods: Pods) -> Iterator[tuple[int, int]]:
    """The ranges of all pods, whatever their state. One open(2) each, which fails at once for most."""
    for directory in DIRECTORIES:
        for uuid in pods.uuids(directory):
            found = poddir.read_private_range(f"{pods.root}/{directory}/{uuid}")
            if found is not None:
                yield found


def _of_host() -> Iterator[tuple[int, int]]:
    for path in _DELEGATED:
        for fields in _lines(path):
            if len(fields) == 3 and _is_number(fields[1]) and _is_number(fields[2]):
                yield int(fields[1]), int(fields[2])
    for path, columns in _ACCOUNTS:
        for fields in _lines(path):
            yield from (
                (int(fields[column]), 1) for column in columns if column < len(fields) and _is_number(fields[column])
            )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10


def _lines(path: str) -> list[list[str]]:
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        return [line.strip().split(":") for line in file]
