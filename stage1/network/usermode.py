"""Connecting a pod by pasta(1), for those who are not root: the worker starts it, and it stays beside the pod.

It is a child of the monitor's, and killed with it by the kernel (PR_SET_PDEATHSIG); else it ends when the pod is taken
back. It has a PID namespace and a session of its own, and shuts itself in before the apps start: an empty root, a
filter of system calls, no capability but those it needs in the pod's network namespace. Nothing in the pod can see it.

In the pod's directory `net/pasta` says which process it is ("PID STARTTIME BOOT"), from before it is executed until it
is known to be gone.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from common import addresses, files, syscalls
from common.errors import NetworkError, reason
from stage1 import poddir
from stage1.network import pasta, record
from stage1.network.pasta import Decided
from stage1.network.plan import NetworkPlan
from stage1.network.record import Attachment, Record

PROCESS = "net/pasta"
_READY = "net/ready"
_PATIENCE = 30_000
"""Milliseconds that it may take to get ready. A hundredth of a second is usual."""
_BLOCKED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
"""Sent to all processes of a terminal or a unit: apps that end slowly are to have their network until then."""
_DEFAULT = (*_BLOCKED, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD)
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
_SYSCTLS = "/proc/sys/net/ipv6/conf/default"
_TUN = "/dev/net/tun"
_ETHERTYPE, _DESTINATION4, _DESTINATION6 = 12, 30, 38
"""Where they are in a frame."""
_IPV4, _IPV6 = 0x0800, 0x86DD
_WORD, _HALF, _BYTE, _EQUAL, _RETURN = 0x20, 0x28, 0x30, 0x15, 0x06
"""Instructions of classic BPF (linux/filter.h): load from the frame, compare, end."""
_NOT_LOOPBACK = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (_HALF, 0, 0, _ETHERTYPE),
        (_EQUAL, 0, 3, _IPV4),
        (_BYTE, 0, 0, _DESTINATION4),
        (_EQUAL, 9, 0, 127),
        (_EQUAL, 8, 7, 0),
        (_EQUAL, 0, 6, _IPV6),
        (_WORD, 0, 0, _DESTINATION6),
        (_EQUAL, 0, 4, 0),
        (_WORD, 0, 0, _DESTINATION6 + 4),
        (_EQUAL, 0, 2, 0),
        (_HALF, 0, 0, _DESTINATION6 + 8),
        (_EQUAL, 1, 0, 0),
        (_RETURN, 0, 0, 0xFFFFFFFF),
        (_RETURN, 0, 0, 0),
    )
)
"""Drops what is for 127.0.0.0/8, 0.0.0.0/8 or ::/80, which has ::1 and all IPv4 addresses in other clothes. The second
and third number of a comparison say how many instructions to skip when it holds and when it does not."""
_ANYWHERE = {4: "192.0.2.1", 6: "2001:db8::1"}
"""Addresses that no packet is sent to, to learn which of its own the host would send from (RFC 5737, RFC 3849)."""


def attach(plan: NetworkPlan, netns: int) -> tuple[int, list[str]]:
    """Connect the pod that has the network namespace `netns`; a pidfd of pasta, and what is not as one might wish.
    NetworkError when that cannot be; `detach` takes back what was done then."""
    from stage1.network import capabilities, names, resolvers

    network = plan.networks[0]
    chosen = pasta.decided(network.conf)
    assert chosen is not None
    runtime = json.dumps(capabilities.runtime(plan, network))
    intent = Attachment(network.name, network.interface, network.conf, runtime=runtime)
    record.write(plan.directory, Record(uuid=plan.uuid, attachments=(intent,)))
    asked = plan.names.dns
    answering = [] if asked else [gateway for gateway in chosen.gateways if resolvers.is_hidden(gateway)]
    process = _start(plan, chosen, netns, answering)
    result = pasta.result(chosen, network.interface)
    done = intent._replace(result=json.dumps(result))
    record.write(plan.directory, Record(uuid=plan.uuid, attachments=(done,)))
    alone = names.Alone(tuple(_host(chosen)), tuple(answering))
    return process, names.write(plan, [(network.name, result)], alone)


def _host(chosen: Decided) -> Iterator[str]:
    """The addresses of the host that others know it by, which lead to it from the pod too."""
    from _socket import AF_INET, AF_INET6, SOCK_DGRAM, socket

    for gateway in chosen.gateways:
        version = addresses.version(gateway)
        with suppress(OSError):
            found = socket(AF_INET if version == 4 else AF_INET6, SOCK_DGRAM)
            try:
                found.connect((_ANYWHERE[version], 9))
                yield found.getsockname()[0]
            finally:
                found.close()


def _start(plan: NetworkPlan, chosen: Decided, netns: int, answering: list[str]) -> int:
    """A pidfd of pasta, which is ready."""
    path = f"{plan.directory}/{_READY}"
    said = os.memfd_create("pasta", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        _remove(path)
        os.mkfifo(path, 0o600)
        ready = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            with _holder(netns) as namespace:
                words = pasta.arguments(
                    chosen, plan.networks[0].interface, plan.ports, netns=namespace, ready=path, resolvers=answering
                )
                process = _spawn(plan.directory, words, said)
                try:
                    _await(process, ready, said)
                    _keep_from_loopback(plan.directory, process)
                except BaseException:
                    os.close(process)
                    raise
        finally:
            os.close(ready)
            _remove(path)
        # What it may say later nobody reads.
        fcntl.fcntl(said, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        return process
    except OSError as error:
        raise NetworkError(f"start pasta: {error.filename or chosen.program}: {reason(error)}") from error
    finally:
        os.close(said)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


@contextmanager
def _holder(netns: int) -> Iterator[str]:
    """A path of the namespace that pasta can open: by a process in there that has no more capabilities than pasta, as
    the kernel asks for (ptrace(2), "Ptrace access mode checking"). It makes the namespace fit for pasta first."""
    done, doing = os.pipe()
    ends, lifeline = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(lifeline)
            syscalls.setns(netns, syscalls.CLONE_NEWNET)
            _settle()
            syscalls.capset(0, 0, 0)
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
            os.write(doing, b"!")
            os.read(ends, 1)
        finally:
            os._exit(0)
    try:
        os.close(doing)
        os.close(ends)
        if not os.read(done, 1):
            raise NetworkError("cannot enter the pod's network namespace")
        yield f"/proc/{pid}/ns/net"
    finally:
        os.close(done)
        os.close(lifeline)
        os.waitpid(pid, 0)


def _settle() -> None:
    """No address has to wait, and no router is listened to. While one waits, the kernel asks for it as nobody, `::`,
    which pasta (2023-03) takes for the pod's address."""
    for name in ("disable_ipv6", "accept_dad", "accept_ra"):
        with suppress(FileNotFoundError), open(f"{_SYSCTLS}/{name}", "w", encoding="ascii") as file:
            file.write("0")


def _spawn(directory: str, words: list[str], said: int) -> int:
    """A pidfd of the process, which is on record."""
    waits, go = os.pipe()
    pid, process = syscalls.clone3(syscalls.CLONE_PARENT | syscalls.CLONE_NEWPID)
    if pid == 0:
        _become(words, waits, go, said)
    try:
        os.close(waits)
        text = f"{pid} {poddir.start_time(pid)} {poddir.boot_id()}\n"
        files.replace(f"{directory}/{PROCESS}", text.encode(), mode=0o600)
        os.write(go, b"!")
    except BaseException:
        os.close(process)
        raise
    finally:
        os.close(go)
    return process


def _become(words: list[str], waits: int, go: int, said: int) -> NoReturn:
    """In the child."""
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(go)
        if not os.read(waits, 1):
            os._exit(127)  # Whoever started us is gone, and nobody would know of us.
        os.setsid()
        for number in _DEFAULT:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, _BLOCKED)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        syscalls.close_range(3, syscalls.LAST_FD, syscalls.CLOSE_RANGE_CLOEXEC)
        os.execve(words[0], words, _ENVIRONMENT)  # noqa: S606
    except OSError as error:
        os.write(2, f"execute {words[0]}: {reason(error)}\n".encode())
    finally:
        os._exit(127)


def _await(process: int, ready: int, said: int) -> None:
    """Raises NetworkError when it ends instead, or takes too long, or nobody waits for the pod any more."""
    from stage1.network import programs

    poll = select.poll()
    for fd in (ready, process):
        poll.register(fd, select.POLLIN)
    if programs.lifeline() >= 0:
        poll.register(programs.lifeline(), 0)
    while True:
        found = {fd for fd, _ in poll.poll(_PATIENCE)}
        if ready in found:
            if os.read(ready, 64):
                return
            poll.unregister(ready)  # Closed without a word: it is about to end.
        elif process in found:
            raise NetworkError(f"pasta: {_last_words(said) or 'it ended without a word'}")
        elif found:
            raise NetworkError("pasta was interrupted")
        else:
            raise NetworkError(f"pasta is not ready after {_PATIENCE // 1000} seconds")


def _keep_from_loopback(directory: str, process: int) -> None:
    """An app that may make up its own frames (CAP_NET_RAW) could have pasta (2023-03) connect to the host's loopback:
    it takes every address at its word. What it reads is not in the pod's reach, so it is sorted out there."""
    with open(f"{directory}/{PROCESS}", encoding="ascii") as file:
        place = f"/proc/{file.read().split()[0]}/fd"
    tap = next((fd for fd in os.listdir(place) if os.readlink(f"{place}/{fd}") == _TUN), None)
    if tap is None:
        raise NetworkError(f"pasta has no {_TUN} open")
    try:
        ours = syscalls.pidfd_getfd(process, int(tap))
    except OSError as error:
        raise NetworkError(
            f"cannot keep the pod from the host's loopback: pidfd_getfd: {reason(error)}",
            hint="a filter of system calls takes it away: SystemCallFilter= of the service, or one of a container",
        ) from error
    try:
        syscalls.filter_tap(ours, _NOT_LOOPBACK)
    finally:
        os.close(ours)


def _last_words(said: int) -> str:
    lines = os.pread(said, 1 << 16, 0).decode(errors="replace").split("\n")
    words = next((line for line in reversed(lines) if line.strip()), "")
    return "".join(character for character in words if character.isprintable()).removesuffix(", exiting")[:400]


def is_of(found: Record) -> bool:
    """Whether a pod was connected this way, or was to be."""
    return any(pasta.decided(attachment.conf) for attachment in found.attachments)


def detach(directory: str, found: Record) -> list[str]:
    """End pasta, as often as wanted; what could not be done, a line each."""
    try:
        process = _open(directory)
        if process >= 0:
            try:
                signal.pidfd_send_signal(process, signal.SIGKILL)
                select.select([process], [], [])  # Its end is certain, and its ports are free then.
            finally:
                os.close(process)
        for name in (PROCESS, _READY):
            _remove(f"{directory}/{name}")
        over = tuple(attachment._replace(over=True) for attachment in found.attachments)
        if over != found.attachments:
            record.write(directory, found._replace(attachments=over))
    except (OSError, NetworkError) as error:
        return [f"end pasta: {reason(error) if isinstance(error, OSError) else error}"]
    return []


def is_alive(directory: str) -> bool:
    """Whether the pod has its pasta."""
    process = _open(directory)
    if process >= 0:
        os.close(process)
    return process >= 0


def _open(directory: str) -> int:
    """A pidfd of the pod's pasta, -1 when there is none."""
    from stage1.processes import Process

    try:
        with open(f"{directory}/{PROCESS}", encoding="ascii") as file:
            pid, started, boot = file.read().split()
        return Process(int(pid), int(started)).fd if boot == poddir.boot_id() else -1
    except (FileNotFoundError, ValueError, ProcessLookupError):
        return -1


def published(found: Record) -> list[dict[str, object]]:
    """The ports of the host that the pod has: `protocol`, `hostPort`, and `hostIP` for one address only."""
    mappings: list[dict[str, object]] = []
    for attachment in found.attachments:
        with suppress(ValueError, AttributeError, TypeError):
            mappings += json.loads(attachment.runtime).get("portMappings", [])
    return mappings
