"""QEMU and virtiofsd confined, and what a guest that is root on its own kernel can make of what it is shown."""

from __future__ import annotations

import contextlib
import os
import pathlib
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from common.errors import RkpyError
from tests.conftest import MUST_RUN
from tests.host import guests
from tests.host.guests import Guest

LIBRARIES = {"usr", "lib", "lib32", "lib64", "libx32", "etc"}
SECRET = "what the guest is not to read"


def _missing() -> str:
    for program in ("qemu-system-x86_64", "busybox"):
        if shutil.which(program) is None:
            return f"needs {program}"
    return "" if any(pathlib.Path("/boot").glob("vmlinuz-*")) else "needs a kernel in /boot"


pytestmark = pytest.mark.skipif(bool(_missing()) and not MUST_RUN, reason=_missing() or "-")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Directories of the host: `data` and `fixed` are for the guest, `secret` is not."""
    found = tmp_path_factory.mktemp("guest")
    for name in ("pod", "data", "fixed", "secret", "late", "gone"):
        (found / name).mkdir()
    (found / "data/hello").write_text("hello")
    (found / "data/up").symlink_to("../secret/file")
    (found / "data/away").symlink_to(found / "secret/file")
    (found / "data/magic").symlink_to("/proc/1/root")
    (found / "fixed/file").write_text("fixed")
    (found / "late/file").write_text("late")
    (found / "gone/file").write_text("gone")
    (found / "secret/file").write_text(SECRET)
    (found / "one").write_text("one")
    return found


@pytest.fixture(scope="module")
def files(place: pathlib.Path) -> tuple[str, str]:
    return guests.boot_files(str(place))


@pytest.fixture(scope="module")
def guest(place: pathlib.Path, files: tuple[str, str]) -> Iterator[Guest]:
    with Guest(str(place / "pod"), guests.machine(files)) as made:
        made.show((str(place / "data"), False), (str(place / "fixed"), True), (str(place / "one"), False))
        yield made


def test_what_is_shown_before_and_after_the_start(guest: Guest, place: pathlib.Path) -> None:
    assert guest.run("cat /share/1/0/hello /share/1/1/file /share/1/2") == "hellofixedone"
    late = guest.show((str(place / "late"), True))
    assert guest.run(f"cat {late}/0/file") == "late"
    guest.run("echo new >/share/1/0/new; echo more >>/share/1/2; chown 1:2 /share/1/0/new; chmod 4755 /share/1/0/new")
    found = (place / "data/new").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (1, 2, 0o4755)
    assert (place / "one").read_text() == "onemore\n"
    guest.run("mkfifo /share/1/0/fifo; (echo through >/share/1/0/fifo &) ; cat /share/1/0/fifo")
    assert (place / "data/fifo").is_fifo()


def test_what_is_hidden_is_gone(guest: Guest, place: pathlib.Path) -> None:
    shown = guest.ask("show", [(str(place / "gone"), False), (str(place / "one"), False)])
    directory = f"/share/{shown[0]}"
    assert guest.run(f"cat {directory}/0/file") == "gone"
    assert _has_open(guest.virtiofsd, place / "gone", place / "gone/file")
    guest.ask("hide", shown)
    # What the guest has cached holds for a second.
    _eventually(lambda: guest.ask("run", f"cat {directory}/0/file")[0] != 0)
    assert (place / "gone/file").exists()
    # And then virtiofsd has let go of it as well.
    _eventually(lambda: not _has_open(guest.virtiofsd, place / "gone", place / "gone/file"))


def test_read_only_is_the_hosts_word(guest: Guest, place: pathlib.Path) -> None:
    for command in (
        "echo x >/share/1/1/file", "rm /share/1/1/file", "touch /share/1/1/other", "chmod 777 /share/1/1",
        "mount -o remount,rw /share/1/1; echo x >/share/1/1/file", "ln /share/1/1/file /share/1/1/hard",
        "echo x >/share/top", "rmdir /share/1/0", "mv /share/1/2 /share/3",
    ):  # fmt: skip
        guest.fails(command)
    assert (place / "fixed/file").read_text() == "fixed"
    assert [path.name for path in (place / "fixed").iterdir()] == ["file"]


def test_nothing_else_of_the_host_is_in_reach(guest: Guest, place: pathlib.Path) -> None:
    for path in ("up", "away", "../../../secret/file", "magic" + str(place / "secret/file")):
        guest.fails(f"cat /share/1/0/{path}")
    guest.run(f"ln -s ../../../../../../../../..{place}/secret/file /share/1/0/link; ln -s / /share/1/0/root")
    guest.fails("cat /share/1/0/link")
    guest.fails(f"cat /share/1/0/root{place}/secret/file")
    guest.fails("ln /share/1/0/hello /share/1/2/hello")
    guest.fails("mknod /share/1/0/zero c 1 5")
    guest.fails("mknod /share/1/0/disk b 254 0")
    assert SECRET not in guest.run("cat $(find /share -type f)")


def test_virtiofsd_has_nothing_else_in_its_root(guest: Guest) -> None:
    guest.run("true")
    for pid in (guest.virtiofsd, *_children(guest.virtiofsd)):
        assert set(os.listdir(f"/proc/{pid}/root/")) >= {"1"}
        assert all(name.isdigit() for name in os.listdir(f"/proc/{pid}/root/"))
        assert all(name.isdigit() for name in os.listdir(f"/proc/{pid}/root/.."))
        status = _status(pid)
        kept = int(status["CapEff"], 16) | int(status["CapPrm"], 16)
        assert not kept & ~0x800000DB
        assert (status["CapBnd"], status["NoNewPrivs"]) == ("0" * 16, "1")
        assert len(status["NSpid"].split()) > 1
        for kind in ("mnt", "net", "ipc", "uts", "pid"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    assert _status(_children(guest.virtiofsd)[0])["Seccomp"] == "2"


def test_qemu_is_nobody(guest: Guest) -> None:
    guest.run("true")
    status = _status(guest.qemu)
    assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
    assert status["Groups"] == ""
    assert {status[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["NSpid"].split()[1:] == ["1"]
    # It is PID 2 there, or more: threads of QEMU's have numbers too.
    assert len(_status(guest.virtiofsd)["NSpid"].split()) == 2
    namespaces = [os.readlink(f"/proc/{pid}/ns/pid") for pid in ("self", guest.qemu, guest.virtiofsd)]
    assert namespaces[0] != namespaces[1] == namespaces[2]
    for kind in ("mnt", "net", "ipc", "uts", "pid"):
        assert os.readlink(f"/proc/{guest.qemu}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    assert pathlib.Path(f"/proc/{guest.qemu}/environ").read_bytes() == b""
    with open(f"/proc/{guest.qemu}/limits", encoding="ascii") as file:
        assert next(line.split()[4:6] for line in file if line.startswith("Max core")) == ["1", "1"]


def test_qemu_has_a_root_that_is_next_to_empty(guest: Guest) -> None:
    root = f"/proc/{guest.qemu}/root"
    assert set(os.listdir(f"{root}/")) <= LIBRARIES | {"kernel", "initramfs", "dev"}
    assert os.listdir(f"{root}/dev") == ["null"]
    assert set(os.listdir(f"{root}/etc")) <= {"ld.so.cache"}
    with open(f"/proc/{guest.qemu}/mountinfo", encoding="utf-8") as file:
        options = [line.split()[5].split(",") for line in file]
    assert options
    assert all({"ro", "nosuid"} <= set(found) for found in options)


def test_qemu_has_the_descriptors_it_needs(guest: Guest) -> None:
    """Its own are sockets, eventfds and the guest's memory: nothing that leads to a file."""
    directory = f"/proc/{guest.qemu}/fd"
    found = {int(name): os.readlink(f"{directory}/{name}") for name in os.listdir(directory)}
    assert found[0] == "/dev/null"
    assert found[1] == found[2]
    assert found[1].startswith("pipe:")
    assert all(found[number].startswith("socket:") for number in (3, 4, 5))
    others = {path.partition(":")[0] for number, path in found.items() if number > 5}
    assert others <= {"socket", "anon_inode", "/memfd"}


def test_only_the_monitor_ends_it(guest: Guest) -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGTSTP):
        os.kill(guest.qemu, number)
        os.kill(guest.virtiofsd, number)
    assert guest.run("echo still here") == "still here\n"


def test_the_console_is_kept(guest: Guest, place: pathlib.Path) -> None:
    guest.run("echo something >/dev/console")
    log = place / "pod/console.log"

    def is_written() -> bool:
        guest.run("true")
        return "console of the guest" in log.read_text() and "something" in log.read_text()

    _eventually(is_written)
    assert log.stat().st_mode & 0o7777 == 0o640


def test_it_ends_with_its_monitor(guest: Guest) -> None:
    """The last test of this guest. Both are stopped so that they cannot end for another reason: a guest that loses its
    monitor's line powers off, and virtiofsd ends when QEMU has."""
    # QEMU is init where virtiofsd lives, and not gone before that one is collected.
    pidfds = {pid: os.pidfd_open(pid) for pid in (guest.virtiofsd, guest.qemu)}
    for pid in pidfds:
        os.kill(pid, signal.SIGSTOP)
    guest.abandon()
    for pid, fd in pidfds.items():
        with open(fd) as ended:
            _eventually(lambda ended=ended: bool(select.select([ended], [], [], 0)[0]))  # type: ignore[misc]
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


# Without a boot


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cpu": "nonesuch"}, "nonesuch"),
        ({"memory": 1 << 50}, "guest RAM"),
        ({"kernel": "/dev/zero"}, "kernel"),
    ],
)
def test_what_qemu_says_is_wrong(fields: dict[str, Any], words: str, tmp_path: pathlib.Path) -> None:
    with Guest(str(tmp_path), guests.machine(**fields)) as guest:
        assert words in guest.ask("complaint")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"qemu": "/usr/bin/nonesuch"}, "cannot start QEMU: /usr/bin/nonesuch: No such file or directory"),
        ({"virtiofsd": "/usr/bin/nonesuch"}, "cannot start virtiofsd: /usr/bin/nonesuch: No such file or directory"),
        ({"initramfs": "/nonesuch"}, "cannot start QEMU: /nonesuch: open_tree: No such file or directory"),
    ],
)
def test_what_cannot_be_started(
    fields: dict[str, Any], words: str, files: tuple[str, str], tmp_path: pathlib.Path
) -> None:
    """With a kernel: without one QEMU might end first, and whatever is in its PID namespace with it."""
    with pytest.raises(RkpyError) as raised, Guest(str(tmp_path), guests.machine(files, **fields)):
        pass
    assert str(raised.value) == words


def test_what_a_guest_could_not_use_is_not_shown(tmp_path: pathlib.Path) -> None:
    with Guest(str(tmp_path), guests.machine()) as guest, pytest.raises(RkpyError, match=r"/dev/null: .* devices"):
        guest.show((str(tmp_path), True), ("/dev/null", True))


def _status(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        pairs = (line.partition(":") for line in file)
        return {name: value.strip() for name, _, value in pairs}


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


def _has_open(virtiofsd: int, *paths: pathlib.Path) -> list[str]:
    wanted = {(path.stat().st_dev, path.stat().st_ino) for path in paths}
    found = []
    for name in [f"/proc/{pid}/fd/{fd}" for pid in _children(virtiofsd) for fd in os.listdir(f"/proc/{pid}/fd")]:
        with contextlib.suppress(FileNotFoundError):  # It may have been closed meanwhile.
            status = os.stat(name)
            if (status.st_dev, status.st_ino) in wanted:
                found.append(name)
    return found


def _eventually(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + guests.DEADLINE
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.05)
