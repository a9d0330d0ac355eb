"""Running nft(8): a script in, one transaction; JSON out (libnftables-json(5)).

Neither a shell nor `subprocess` is involved: what stays with a pod takes its elements back and is to be small.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from common.errors import NetworkError, reason

_DIRECTORIES = ("/usr/sbin", "/sbin", "/usr/local/sbin")
"""Looked at after PATH, which users' shells and cron leave these out of."""
_MISSING = "No such file or directory"


def run(script: str, lock: int) -> None:
    """All of `script` or nothing. NetworkError with nft's first line. nft holds `lock`, the descriptor of a lock (see
    common.locks), too: should this process be killed, nobody else gets it before nft is done."""
    status, _, complaint = _spawn(("-f", "-"), script, lock)
    if status != 0:
        raise NetworkError(f"change the firewall: {complaint or f'nft ended with status {status}'}")


def listing(*what: str) -> list[dict[str, Any]] | None:
    """The objects that `nft list` with these words tells of; None when what it asks for is not there."""
    status, output, complaint = _spawn(("-j", "list", *what))
    if status != 0:
        if _MISSING in complaint:
            return None
        raise NetworkError(f"list {' '.join(what)} of the firewall: {complaint or f'nft ended with status {status}'}")
    try:
        document = json.loads(output)
        return [item for item in document["nftables"] if isinstance(item, dict)]
    except (ValueError, KeyError, TypeError) as error:
        raise NetworkError(f"list {' '.join(what)} of the firewall: nft's answer makes no sense: {error}") from error


def text(*what: str) -> str:
    """What `nft list` prints, for people; empty when that is not there any more."""
    status, output, _ = _spawn(("list", *what))
    return output if status == 0 else ""


def _spawn(words: tuple[str, ...], script: str = "", lock: int = -1) -> tuple[int, str, str]:
    """Exit status, standard output, and the first line of what it complains of."""
    program = _program(os.environ)
    files = [os.memfd_create(f"nft-{name}") for name in ("script", "output", "complaints")]
    try:
        os.pwrite(files[0], script.encode(), 0)
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(files)]
        if lock >= 0:
            actions.append((os.POSIX_SPAWN_DUP2, lock, lock))  # Onto itself, which takes close-on-exec off.
        # In our words for errors, and with none of the signals blocked that whoever calls this may have blocked.
        environment = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        pid = os.posix_spawn(program, ("nft", *words), environment, file_actions=actions, setsigmask=())
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return status, _read(files[1]), _complaint(_read(files[2]))
    except OSError as error:
        raise NetworkError(f"run {program}: {reason(error)}") from error
    finally:
        for fd in files:
            os.close(fd)


def _program(variables: Mapping[str, str]) -> str:
    for directory in (*filter(os.path.isabs, variables.get("PATH", "").split(":")), *_DIRECTORIES):
        path = f"{directory}/nft"
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise NetworkError("there is no nft(8), which published ports and masquerading need", hint="install nftables")


def _read(fd: int) -> str:
    size = os.fstat(fd).st_size
    chunks = []
    offset = 0
    while offset < size and (chunk := os.pread(fd, size - offset, offset)):
        chunks.append(chunk)
        offset += len(chunk)
    return b"".join(chunks).decode(errors="replace")


def _complaint(output: str) -> str:
    """`/dev/stdin:1:2-3: Error: Could not process rule: No buffer space` without where in our script that is."""
    first = output.partition("\n")[0]
    before, _, said = first.partition("Error: ")
    return said or before
