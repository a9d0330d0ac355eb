"""A network that is ours alone: a namespace `host` where rkpy runs, and a namespace `outside` that is the internet.

`host` has mounts of its own too, with nothing of the machine's in /run and /var/lib, so that pods that run in it
claim nothing of the machine. The two are linked by a cable; `outside` knows no way back to what is behind `host`, as
the internet would not. Everything goes when the lab closes, or when the process that made it dies.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

if __name__ != "__main__":
    from common import syscalls

HOST4, OUTSIDE4, FAR4 = "198.51.100.1", "198.51.100.2", "203.0.113.7"
HOST6, OUTSIDE6, FAR6 = "2001:db8:1::1", "2001:db8:1::2", "2001:db8:f::7"
"""FAR is an address of `outside` that is not on the cable: it is reached by the default route."""
UPLINK = "uplink0"
"""The cable's end in `host`."""
HIDDEN = ("/run", "/var/lib")
"""Directories that every machine has: a mount on one made for it is gone here as soon as anybody removes it there, and
what is written then goes to the machine's."""
TIMEOUT = 300.0

Where = str | int
"""The name of a namespace, or a process in one."""


class Unreachable(Exception):
    """Nothing answered."""


class _Namespaces(NamedTuple):
    network: int
    mounts: int
    """-1 where they are those of the machine."""


class Lab:
    def __init__(self) -> None:
        self._namespaces: dict[str, _Namespaces] = {}
        self._processes: list[subprocess.Popen[Any]] = []
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self) -> None:
        self.namespace("host", mounts=True)
        self.namespace("outside")
        self.host("ip", "link", "add", UPLINK, "type", "veth", "peer", "name", "eth0", "netns", self.path("outside"))
        for where, name, addresses in (
            ("host", UPLINK, (f"{HOST4}/24", f"{HOST6}/64")),
            ("outside", "eth0", (f"{OUTSIDE4}/24", f"{OUTSIDE6}/64", f"{FAR4}/32", f"{FAR6}/128")),
        ):
            for address in addresses:
                nodad = ("nodad",) if ":" in address else ()
                self.run(where, "ip", "address", "add", address, "dev", name, *nodad)
            self.run(where, "ip", "link", "set", name, "up")
        self.host("ip", "route", "add", "default", "via", OUTSIDE4)
        self.host("ip", "-6", "route", "add", "default", "via", OUTSIDE6)

    def close(self) -> None:
        """Everything that runs in the lab's own namespaces ends, and they with it."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            for file in (process.stdin, process.stdout, process.stderr):
                if file is not None:
                    file.close()
        self._processes.clear()
        self._kill_strangers()
        for namespace in self._namespaces.values():
            for fd in namespace:
                if fd >= 0:
                    os.close(fd)
        self._namespaces.clear()
        self._closing.close()

    def _kill_strangers(self) -> None:
        ours = {os.fstat(fd).st_ino for namespace in self._namespaces.values() for fd in namespace if fd >= 0}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if {os.stat(f"/proc/{pid}/ns/{kind}").st_ino for kind in ("net", "mnt")} & ours:
                    os.kill(int(pid), signal.SIGKILL)

    def namespace(self, name: str, *, mounts: bool = False) -> None:
        """One more network namespace, with a loopback interface that is up and nothing else."""
        flags = ["--net", "--mount", "--propagation=slave"] if mounts else ["--net"]
        # Its standard input ends when we do, and so does it.
        words = ["unshare", *flags, "sh", "-c", "echo; exec cat"]
        holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._processes.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n"
        opened = [os.open(f"/proc/{holder.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)]
        opened.append(os.open(f"/proc/{holder.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC) if mounts else -1)
        self._namespaces[name] = _Namespaces(*opened)
        self.run(name, "ip", "link", "set", "lo", "up")
        if mounts:
            self._hide(name)

    def _hide(self, name: str) -> None:
        for directory in HIDDEN:
            self.run(name, "mount", "-t", "tmpfs", "-o", "mode=755", "rkpy-lab", directory)
        # That there is no systemd was said already.
        self.run(name, "mkdir", "/run/rkpy")
        self.run(name, "touch", "/run/rkpy/without-systemd")

    def path(self, where: Where) -> str:
        """A path of the network namespace that this process's children can open too."""
        if isinstance(where, int):
            return f"/proc/{where}/ns/net"
        return f"/proc/{os.getpid()}/fd/{self._namespaces[where].network}"

    def popen(self, where: Where, *words: str, **options: Any) -> subprocess.Popen[Any]:
        """Start a program there; it is killed when the lab closes. Options as for subprocess.Popen."""
        with self._entrance(where, options.pop("cwd", os.getcwd())) as enter:
            process = subprocess.Popen(words, preexec_fn=enter, **options)
        self._processes.append(process)
        return process

    def run(self, where: Where, *words: str, **options: Any) -> str:
        """Run a program there to its end; what it wrote to its standard output. `check=False` to put up with failure;
        other options as for subprocess.run."""
        finished = self.finish(where, *words, **options)
        output: str = finished.stdout
        return output

    def finish(self, where: Where, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """`run`, with all there is to know of the end of it."""
        directory = options.pop("cwd", os.getcwd())
        check = options.pop("check", True)
        given = {"timeout": TIMEOUT, "text": True, "stdin": subprocess.DEVNULL, **options}
        if "input" in given:
            del given["stdin"]
        with self._entrance(where, directory) as enter:
            finished = subprocess.run(words, preexec_fn=enter, capture_output=True, check=False, **given)
        assert not check or finished.returncode == 0, f"{words}: {finished.returncode}: {finished.stderr}"
        return finished

    def host(self, *words: str, **options: Any) -> str:
        return self.run("host", *words, **options)

    def outside(self, *words: str, **options: Any) -> str:
        return self.run("outside", *words, **options)

    @contextlib.contextmanager
    def _entrance(self, where: Where, directory: str) -> Iterator[Callable[[], None]]:
        """What a child has to do to be there. Nothing of a process's namespace is held afterwards."""
        borrowed = isinstance(where, int)
        network = os.open(self.path(where), os.O_RDONLY | os.O_CLOEXEC) if borrowed else self._of(where).network
        mounts = -1 if borrowed else self._of(where).mounts

        def enter() -> None:
            syscalls.setns(network, 0)
            if mounts >= 0:
                syscalls.setns(mounts, 0)
                os.chdir(directory)

        try:
            yield enter
        finally:
            if borrowed:
                os.close(network)

    def _of(self, where: Where) -> _Namespaces:
        return self._namespaces[str(where)]

    def leave(self, where: Where) -> None:
        """Kill what was started there: a namespace lives as long as anything in it."""
        inode = os.stat(self.path(where)).st_ino
        for process in self._processes:
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{process.pid}/ns/net").st_ino == inode:
                    process.kill()
                    process.wait()

    def end(self, name: str) -> None:
        """Kill what was started there, and let go of the namespace."""
        self.leave(name)
        for fd in self._namespaces.pop(name):
            if fd >= 0:
                os.close(fd)

    def serve(self, where: Where, protocol: str, address: str, port: int, banner: str = "") -> None:
        """From now on something listens there, "tcp" or "udp", and tells whoever asks what address it sees, behind
        `banner` and a space if there is one. "asked" is TCP where whoever asks has to say something first."""
        words = (sys.executable, "-I", "-S", __file__, "serve", protocol, address, str(port), banner)
        server = self.popen(where, *words, stdout=subprocess.PIPE)
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n", f"cannot listen on {protocol} {address} {port}"

    def ask(self, where: Where, protocol: str, address: str, port: int, *, timeout: float = 30.0) -> str:
        """What is answered there. Raises Unreachable when nothing is; a UDP question is asked anew until `timeout`."""
        words = (sys.executable, "-I", "-S", __file__, "ask", protocol, address, str(port), str(timeout))
        finished = self.finish(where, *words, check=False)
        if finished.returncode != 0:
            raise Unreachable(finished.stderr.strip().rpartition("\n")[2])
        return finished.stdout


def _socket(protocol: str, address: str) -> socket.socket:
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)


def _serve(protocol: str, address: str, port: int, banner: str) -> None:
    with _socket(protocol, address) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        if protocol != "udp":
            server.listen(64)
        print("ready", flush=True)
        while True:
            if protocol != "udp":
                connection, peer = server.accept()
                with connection:
                    if protocol == "asked":
                        connection.recv(1)
                    connection.sendall(f"{banner} {peer[0]}".strip().encode())
            else:
                _, peer = server.recvfrom(64)
                server.sendto(f"{banner} {peer[0]}".strip().encode(), peer)


def _ask(protocol: str, address: str, port: int, timeout: float) -> None:
    end = time.monotonic() + timeout
    with _socket(protocol, address) as client:
        if protocol != "udp":
            client.settimeout(timeout)
            client.connect((address, port))
            if protocol == "asked":
                client.sendall(b"?")
            print(client.makefile("rb").read().decode(), end="")
            return
        client.connect((address, port))
        while True:
            client.settimeout(min(1.0, max(0.01, end - time.monotonic())))
            client.send(b"?")
            try:
                print(client.recv(1024).decode(), end="")
            except TimeoutError:
                if time.monotonic() > end:
                    raise
                continue
            return


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
    else:
        _ask(sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
