"""A virtual machine as the monitor has it, with a shell in the place of the agent: what it is told is run in there."""

from __future__ import annotations

import json
import os
import select
import socket
import stat
import time
from collections.abc import Callable
from typing import Any, NoReturn

from common import syscalls
from common.errors import RkpyError
from stage1.limits import Limits
from stage1.plan import PodPlan
from stage1.vm import acceleration, initramfs, kernel, programs, qemu
from stage1.vm.console import Console
from stage1.vm.guestplan import Place
from stage1.vm.initramfs import Entry
from stage1.vm.machine import Machine
from stage1.vm.share import Share

UUID = "6733c088-a507-4694-aabf-beefbaadf00d"
DEADLINE = 240
"""Seconds for everything a guest does; it takes a few."""
_DONE = b"\nrkpy-done "
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
while read name; do insmod /modules/$name.ko; done </modules/list
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t virtiofs rkpy /share
for port in /sys/class/virtio-ports/*; do
    test "$(cat $port/name)" = rkpy && exec 3<>/dev/${port##*/}
done
echo "console of the guest"
while read -r line <&3; do
    eval "$line" >&3 2>&1
    printf '\\nrkpy-done %d\\n' $? >&3
done
"""


def boot_files(directory: str) -> tuple[str, str]:
    """A kernel and an initramfs with the shell."""
    chosen = kernel.choose()
    plain = kernel.vmlinux(chosen.path)
    image = chosen.path
    if plain is not None:
        image = f"{directory}/vmlinux"
        _write(image, plain)
    modules = initramfs.modules(chosen)
    found = [Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "modules", "mnt", "proc", "share", "sys")]
    found.append(Entry("dev/console", stat.S_IFCHR | 0o600, device=os.makedev(5, 1)))
    found.append(Entry("init", stat.S_IFREG | 0o755, _INIT.encode()))
    found.append(Entry("bin/busybox", stat.S_IFREG | 0o755, _read("/bin/busybox")))
    found.append(Entry("modules/list", stat.S_IFREG | 0o644, "".join(f"{one.name}\n" for one in modules).encode()))
    # Debian's are plain files.
    found += [Entry(f"modules/{one.name}.ko", stat.S_IFREG | 0o644, _read(one.path)) for one in modules]
    _write(f"{directory}/initramfs", initramfs.archive(found))
    return image, f"{directory}/initramfs"


def machine(files: tuple[str, str] = ("/dev/null", "/dev/null"), **fields: Any) -> Machine:
    made = Machine(
        qemu=programs.qemu(),
        virtiofsd=programs.virtiofsd(),
        kernel=files[0],
        initramfs=files[1],
        parameters=acceleration.PARAMETERS,
        acceleration="tcg",
        kind="q35",
        cpu=acceleration.CPU["tcg"],
        cpus=1,
        memory=256 << 20,
        interfaces=0,
        limits=Limits(),
        boot_timeout=DEADLINE,
        user=65534,
        group=65534,
    )
    return made._replace(**fields)


class Guest:
    """A machine and, in a process of its own, its monitor, whose RkpyErrors come through. A context manager."""

    def __init__(self, directory: str, what: Machine) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.monitor = os.fork()
        if self.monitor == 0:
            ours.close()
            _Monitor(directory, what, theirs).run()
        theirs.close()
        self._file = ours.makefile("rw")
        ours.close()

    def __enter__(self) -> Guest:
        try:
            self.qemu, self.virtiofsd = self.ask("start")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.monitor:
            self._file.close()
            os.waitpid(self.monitor, 0)

    def ask(self, op: str, *arguments: Any) -> Any:
        self._file.write(json.dumps([op, *arguments]) + "\n")
        self._file.flush()
        answer = json.loads(self._file.readline())
        if "error" in answer:
            raise RkpyError(answer["error"])
        assert "bug" not in answer, answer["bug"]
        return answer["result"]

    def run(self, command: str) -> str:
        """What a command of the guest's shell says, which has to succeed."""
        status, text = self.ask("run", command)
        assert status == 0, text
        return str(text)

    def fails(self, command: str) -> str:
        status, text = self.ask("run", command)
        assert status != 0, text
        return str(text)

    def show(self, *sources: tuple[str, bool]) -> str:
        """The directory of the guest that has these paths of the host, each read-only or not."""
        return f"/share/{self.ask('show', sources)[0]}"

    def abandon(self) -> None:
        """Kill the monitor."""
        os.kill(self.monitor, 9)
        os.waitpid(self.monitor, 0)
        self.monitor = 0
        self._file.close()


class _Monitor:
    def __init__(self, directory: str, what: Machine, channel: socket.socket) -> None:
        self._directory, self._machine, self._channel = directory, what, channel

    def run(self) -> NoReturn:
        """Until nobody asks any more. Nothing of it is left then."""
        self._qemu: qemu.Started | None = None
        self._virtiofsd = 0
        status = 1
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
            self._share = Share(self._directory)
            self._console = Console(self._directory)
            with self._channel.makefile("rw") as file:
                for line in file:
                    op, *arguments = json.loads(line)
                    file.write(json.dumps(self._answer(getattr(self, f"_{op}"), arguments)) + "\n")
                    file.flush()
            status = 0
        finally:
            if self._qemu is not None:
                os.kill(self._qemu.pid, 9)
                if self._virtiofsd:
                    os.waitpid(self._virtiofsd, 0)
                os.waitpid(self._qemu.pid, 0)
            os._exit(status)

    def _answer(self, action: Callable[..., Any], arguments: list[Any]) -> dict[str, Any]:
        try:
            return {"result": action(*arguments)}
        except RkpyError as error:
            return {"error": str(error)}
        except BaseException as error:
            return {"bug": repr(error)}

    def _start(self) -> tuple[int, int]:
        plan = PodPlan(UUID, self._directory, -1, (), "guest")
        started = self._qemu = qemu.start(self._machine, plan, -1)
        try:
            served = self._share.serve(self._machine, started.pidfd, started.share, started.complaints, -1)
        except RkpyError as error:
            # As in the monitor: QEMU was faster, and will have said why.
            if not isinstance(error.__cause__, OSError) or not select.select([started.pidfd], [], [], DEADLINE)[0]:
                raise
            return started.pid, 0
        self._virtiofsd = served.pid
        return started.pid, served.pid

    def _show(self, sources: list[tuple[str, bool]]) -> Place:
        opened = []
        for path, read_only in sources:
            tree = syscalls.open_tree(syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE)
            attributes = syscalls.MOUNT_ATTR_NODEV | (syscalls.MOUNT_ATTR_RDONLY if read_only else 0)
            syscalls.mount_setattr(
                tree, path, set_attributes=attributes, recursive=False, propagation=syscalls.MS_PRIVATE
            )
            opened.append(tree)
        try:
            return self._share.show(opened, [path for path, _ in sources])
        finally:
            for tree in opened:
                os.close(tree)

    def _hide(self, place: list[Any]) -> None:
        self._share.hide(Place(place[0], tuple(place[1])))

    def _run(self, command: str) -> tuple[int, str]:
        assert self._qemu is not None
        os.write(self._qemu.port, f"{command}\n".encode())
        said = b""
        while _DONE not in said or not said.endswith(b"\n"):
            data = self._read(self._qemu.port)
            if not data:
                raise RkpyError(f"the guest is gone: {self._console.last_lines(20)}")
            said += data
        text, _, status = said.rpartition(_DONE)
        return int(status), text.decode(errors="replace")

    def _read(self, fd: int) -> bytes:
        """The next bytes of `fd`; the console is read meanwhile, as the monitor would."""
        assert self._qemu is not None
        poll = select.poll()
        watched = {fd, self._qemu.console, self._qemu.errors}
        for each in watched:
            poll.register(each, select.POLLIN)
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            for found, _ in poll.poll(1000):
                if found == fd:
                    try:
                        return os.read(fd, 65536)
                    except ConnectionResetError:
                        return b""
                if not self._console.take(found, complaints=found == self._qemu.errors):
                    poll.unregister(found)
        raise RkpyError(f"the guest says nothing: {self._console.last_lines(20)}")

    def _complaint(self) -> str:
        """Once QEMU is gone."""
        assert self._qemu is not None
        if self._virtiofsd:
            os.waitpid(self._virtiofsd, 0)
        os.waitpid(self._qemu.pid, 0)
        for fd in (self._qemu.console, self._qemu.errors):
            while self._console.take(fd, complaints=fd == self._qemu.errors):
                pass
        self._qemu = None
        return self._console.complaint()


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
