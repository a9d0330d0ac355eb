"""A pod with taps (`stage1.network.taps`) attached by the real worker, and a guest without a virtual machine: a
namespace whose eth0 … are fed by a process that carries frames between them and the pod's taps, as QEMU would."""

from __future__ import annotations

import fcntl
import json
import os
import select
import struct
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, Self

from common import syscalls
from common.errors import RkpyError
from stage1.channel import memory_file, read_memory_file
from stage1.network import worker
from stage1.network.plan import Names, Network, NetworkPlan, Port
from stage1.plan import dumps
from stage1.vm import guestnet, tap
from tests.claimants import Pods
from tests.netlab import Lab

ROOT = Path(__file__).parents[2]
_HEADER = 10
"""Bytes of a struct virtio_net_hdr."""


class Machine:
    """In `lab`'s "host". `networks`: documents as in net.d, of eth0, eth1, …"""

    def __init__(self, lab: Lab, directory: Path, name: str, *networks: dict[str, Any], ports: tuple[Port, ...] = (),
                 plugin_path: tuple[str, ...] = (), taps: int = -1) -> None:  # fmt: skip
        self.lab, self.guest, self.pod = lab, f"{name}-guest", f"{name}-pod"
        self.pods = Pods(directory / name)
        self.uuid = self.pods.start(name, register=False)
        self.directory = self.pods.root / "run" / self.uuid
        for namespace in (self.guest, self.pod):
            lab.namespace(namespace)
        asked = tuple(
            Network(document["name"], f"eth{index}", json.dumps(document)) for index, document in enumerate(networks)
        )
        self.plan = NetworkPlan(self.uuid, str(self.directory), asked, Names(name), ports,
                                plugin_path=plugin_path, taps=True)  # fmt: skip
        self.pump = self._start(
            "pump", str(len(networks) if taps < 0 else taps), lab.path(self.pod), lab.path(self.guest)
        )
        assert self.pump.stdout is not None
        assert self.pump.stdout.readline() == b"ready\n"
        try:
            self._call("attach", dumps(self.plan), lab.path(self.pod))
        except BaseException:
            self.close()
            raise
        self.inside = (self.directory / "inside").read_bytes()

    def _start(self, *words: str, **options: Any) -> subprocess.Popen[Any]:
        whole = (sys.executable, "-m", "tests.host.machined", *words)
        return self.lab.popen("host", *whole, stdout=subprocess.PIPE, cwd=str(ROOT), **options)

    def _call(self, verb: str, given: bytes = b"", *words: str) -> None:
        """One of the functions below in the lab's host."""
        (self.directory / "given").write_bytes(given)
        self.run(verb, str(self.directory), *words)

    def run(self, *words: str, where: str = "host") -> str:
        return self.lab.run(where, sys.executable, "-m", "tests.host.machined", *words, cwd=str(ROOT))

    def furnish(self) -> None:
        """The guest does what it is told."""
        self.run("furnish", str(self.directory), where=self.guest)

    def check(self) -> None:
        self._call("check", b"", self.uuid, self.lab.path(self.pod))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The machine is over."""
        self.pump.kill()
        for namespace in (self.pod, self.guest):
            self.lab.end(namespace)
        self._call("detach")
        self.pods.close()


def attach(directory: str, netns: str) -> None:
    """As monitor and engine."""
    made = worker.begin()
    lock = os.open(f"{directory}/lock", os.O_RDONLY | os.O_CLOEXEC)
    namespace = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    made.channel.send("plan", (memory_file(Path(directory, "given").read_bytes()), lock))
    made.channel.send("netns", (namespace,))
    text, fds = made.channel.receive()
    made.channel.close()
    os.waitpid(made.pid, 0)
    if text != "ready":
        sys.exit(text)
    (inside,) = fds
    Path(directory, "inside").write_bytes(read_memory_file(inside))


def furnish(directory: str) -> None:
    guestnet.apply(Path(directory, "inside").read_bytes())


def check(directory: str, owner: str, netns: str) -> None:
    """As `rkpy net check`."""
    from stage1.network import cni, firewall, record

    found = record.read(directory)
    assert found is not None
    for attachment in found.attachments:
        cni.check(found, attachment, netns)
    firewall.check(owner)


def detach(directory: str) -> None:
    from stage1.network.detach import detach

    if problems := detach(directory):
        sys.exit("\n".join(problems))


def pump(count: str, pod: str, guest: str) -> None:
    """Carry frames for ever."""
    ends: dict[int, tuple[int, bool]] = {}
    with open(pod, "rb") as there, open(guest, "rb") as inside:
        for index in range(int(count)):
            syscalls.setns(there.fileno(), syscalls.CLONE_NEWNET)
            ours = tap.open_tap(index)
            syscalls.setns(inside.fileno(), syscalls.CLONE_NEWNET)
            theirs = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(theirs, 0x400454CA, struct.pack("=16sH22x", f"eth{index}".encode(), 0x1002))
            ends |= {ours: (theirs, True), theirs: (ours, False)}
    poll = select.poll()
    for fd in ends:
        poll.register(fd, select.POLLIN)
    os.write(1, b"ready\n")
    while True:
        for fd, _ in poll.poll():
            other, headed = ends[fd]
            try:
                frame = os.read(fd, 1 << 17)
                os.write(other, frame[_HEADER:] if headed else bytes(_HEADER) + frame)
            except OSError:
                pass  # Its interface is down, or the other's queue is full: a frame is lost, as on any wire.


if __name__ == "__main__":
    verbs: dict[str, Any] = {each.__name__: each for each in (attach, furnish, check, detach, pump)}
    try:
        verbs[sys.argv[1]](*sys.argv[2:])
    except RkpyError as error:
        sys.exit(str(error))
    except Exception:
        sys.exit(traceback.format_exc())
