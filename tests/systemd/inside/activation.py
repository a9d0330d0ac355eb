"""Socket units and credentials of real services, and pods that get them (docs/systemd.md)."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.host import flavours
from tests.host.conftest import inspector
from tests.host.flavours import DEADLINE, HERE, SEVERAL, SUPERVISED, Ground, Variant, every, until

__all__ = ["inspector"]

UNITS = Path("/run/systemd/system")
HTTP = {"name": "http", "protocol": "tcp", "port": 80, "count": 1, "socketActivated": True}
ADMIN = {"name": "admin", "protocol": "tcp", "port": 8443, "count": 1, "socketActivated": True}
PLACE = "/run/host/credentials"
SECRET = "s3cr3t-Zq8"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, inspector: str) -> Iterator[Ground]:
    with flavours.ground(tmp_path_factory.mktemp("activation"), inspector) as made:
        yield made


_COUNT = itertools.count()


@pytest.fixture
def name() -> str:
    """Of units that nobody has had, in whose journal is nothing else."""
    return f"activation-{os.getpid()}-{next(_COUNT)}"


def systemctl(*words: str) -> str:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, (words, done)
    return done.stdout


def said(unit: str) -> list[str]:
    """What a unit has written, once the journal has it all."""
    subprocess.run(["journalctl", "--sync"], check=True, timeout=DEADLINE)
    words = ["journalctl", "-o", "cat", "-u", unit, "--no-pager"]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=DEADLINE).stdout.splitlines()


def quoted(words: Sequence[object]) -> str:
    return " ".join('"' + str(word).replace("\\", "\\\\").replace('"', '\\"') + '"' for word in words)


@contextmanager
def units(files: Mapping[str, str]) -> Iterator[None]:
    """These unit files, stopped and gone afterwards."""
    for name, text in files.items():
        (UNITS / name).write_text(text)
    systemctl("daemon-reload")
    try:
        yield
    finally:
        for name in [name for name in files if "@" not in name]:
            subprocess.run(["systemctl", "stop", name], timeout=DEADLINE * 2)
            subprocess.run(["systemctl", "reset-failed", name], capture_output=True)
        for name in files:
            (UNITS / name).unlink()
        systemctl("daemon-reload")


def service(ground: Ground, command: Sequence[object], *lines: str) -> str:
    words = ground.rkpy.command(*command)
    body = "\n".join(("Slice=system.slice", "Delegate=yes", "KillMode=mixed", "StandardError=journal", *lines))
    path = ground.rkpy.environment()["PYTHONPATH"]
    return f"[Service]\nEnvironment=PYTHONPATH={path}\nExecStart={quoted(words)}\n{body}\n"


def connect(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as connection:
        return b"".join(iter(lambda: connection.recv(4096), b"")).decode()


@every(HERE)
def test_a_socket_unit_starts_the_pod(ground: Ground, name: str, variant: Variant) -> None:
    command = [*ground.words(variant), *ground.app("env + pid + fdlinks + answer 3 hello")]
    with units(
        {
            f"{name}.socket": "[Socket]\nListenStream=127.0.0.1:7001\n",
            f"{name}.service": service(ground, command),
        },
    ):
        systemctl("start", f"{name}.socket")
        assert connect(7001) == "hello"
        assert connect(7001) == "hello"
        # The last it says; that it answers tells nothing of how far the journal has come.
        count = 2 if variant.name == "fly" else 1
        until(lambda: len(_links(said(f"{name}.service"))) >= count, lambda: said(f"{name}.service"))
        lines = said(f"{name}.service")
        assert f"LISTEN_FDNAMES={name}.socket" in lines
        assert "LISTEN_FDS=1" in lines
        pid = next(line.split()[1] for line in lines if line.startswith("pid "))
        assert f"LISTEN_PID={pid}" in lines
        links = _links(lines)
        assert "socket:" in links[0], lines
        assert len(links) == count, lines


def _links(lines: Sequence[str]) -> list[str]:
    """Of what `fdlinks` says: the descriptors beside the three that everybody has."""
    return [line for line in lines if line[:2].strip().isdigit() and int(line.split()[0]) > 2]


@every(SEVERAL, HERE)
def test_two_apps_and_two_ports(ground: Ground, name: str, variant: Variant) -> None:
    """One by its name, one by the port of the host that is published for it."""
    web = ground.app("answer 3 web", "--name=web", image=ground.image(ports=[HTTP]))
    admin = ground.app("answer 3 admin", "--name=back", image=ground.image(ports=[ADMIN]))
    command = [*ground.words(variant, "--port=http:7003"), *web, "---", *admin]
    with units(
        {
            f"{name}-a.socket": (
                f"[Socket]\nListenStream=127.0.0.1:7002\nFileDescriptorName=admin\nService={name}.service\n"
            ),
            f"{name}-h.socket": f"[Socket]\nListenStream=127.0.0.1:7003\nService={name}.service\n",
            f"{name}.service": service(ground, command, f"Sockets={name}-a.socket {name}-h.socket"),
        },
    ):
        systemctl("start", f"{name}-a.socket", f"{name}-h.socket")
        assert (connect(7002), connect(7003)) == ("admin", "web")


@every(SEVERAL, HERE)
def test_a_socket_that_is_nobodys(ground: Ground, name: str, variant: Variant) -> None:
    apps = [*ground.app("say a", "--name=a"), "---", *ground.app("say b", "--name=b")]
    with units(
        {
            f"{name}.socket": f"[Socket]\nListenStream=/run/{name}.sock\nRemoveOnStop=yes\n",
            f"{name}.service": service(ground, [*ground.words(variant), *apps]),
        },
    ):
        systemctl("start", f"{name}.socket")
        subprocess.run(["systemctl", "start", f"{name}.service"], capture_output=True, timeout=DEADLINE)
        text = f'socket "{name}.socket" belongs to no port of this pod'
        until(lambda: any(text in line for line in said(f"{name}.service")), lambda: said(f"{name}.service"))
        until(lambda: "ExecMainStatus=254" in systemctl("show", f"{name}.service"))


@every(HERE)
def test_no_connection_is_lost_while_the_service_restarts(ground: Ground, name: str, variant: Variant) -> None:
    """Clients come without pause; the socket is systemd's all the time."""
    command = [*ground.words(variant), *ground.app("answer 3 served")]
    answers: list[str] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def client() -> None:
        try:
            while not done.is_set():
                answers.append(connect(7004))
        except BaseException as error:
            failures.append(error)

    def more(than: int) -> bool:
        return answers.count("served") > than + 3 or bool(failures)

    with units(
        {
            f"{name}.socket": "[Socket]\nListenStream=127.0.0.1:7004\n",
            f"{name}.service": service(ground, command),
        },
    ):
        systemctl("start", f"{name}.socket")
        assert connect(7004) == "served"
        thread = threading.Thread(target=client)
        thread.start()
        try:
            for _ in range(3):
                before = answers.count("served")
                systemctl("restart", f"{name}.service")
                until(partial(more, before), lambda: (answers, failures))
        finally:
            done.set()
            thread.join(DEADLINE)
    # A connection that an app took just before it was ended may end without a word; none is turned away.
    assert not failures
    assert set(answers) <= {"served", ""}
    assert answers.count("served") > 9


@every(SUPERVISED, HERE)
def test_the_supervisor_restarts_an_app_with_its_sockets(ground: Ground, name: str, variant: Variant) -> None:
    command = [*ground.words(variant), *ground.app("answer 3 once 1 + exit 1", "--restart=always")]
    with units(
        {
            f"{name}.socket": "[Socket]\nListenStream=127.0.0.1:7005\n",
            f"{name}.service": service(ground, command),
        },
    ):
        systemctl("start", f"{name}.socket")
        assert [connect(7005) for _ in range(4)] == ["once"] * 4


@every(HERE)
def test_one_pod_for_each_connection(ground: Ground, name: str, variant: Variant) -> None:
    """Accept=yes: the app is given the connection, which systemd holds until the service ends."""
    command = [*ground.words(variant), *ground.app("env + tell 3 mine")]
    with units(
        {
            f"{name}.socket": "[Socket]\nListenStream=127.0.0.1:7006\nAccept=yes\n",
            f"{name}@.service": service(ground, command),
        },
    ):
        systemctl("start", f"{name}.socket")
        assert [connect(7006) for _ in range(2)] == ["mine", "mine"]
        until(lambda: said(f"{name}@*").count("LISTEN_FDNAMES=connection") == 2)


@every(HERE)
def test_sockets_of_every_kind(ground: Ground, name: str, variant: Variant) -> None:
    command = [
        *ground.words(variant),
        *ground.app("env + receive 3 + answer 4 unix 1 + fdlinks + sleep"),
    ]
    kinds = (
        f"ListenDatagram=127.0.0.1:7007\nListenStream=/run/{name}.sock\n"
        f"ListenNetlink=kobject-uevent 1\nListenFIFO=/run/{name}.fifo\n"
    )
    with units(
        {f"{name}.socket": f"[Socket]\n{kinds}RemoveOnStop=yes\n", f"{name}.service": service(ground, command)},
    ):
        systemctl("start", f"{name}.socket")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"datagram", ("127.0.0.1", 7007))
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE)
            client.connect(f"/run/{name}.sock")
            assert client.recv(100) == b"unix"
        until(lambda: any(line.startswith("6 ") for line in said(f"{name}.service")), lambda: said(f"{name}.service"))
        lines = said(f"{name}.service")
        assert "datagram" in lines
        assert "LISTEN_FDS=4" in lines
        links = {line.split()[0]: line for line in lines if line[:2] in ("3 ", "4 ", "5 ", "6 ")}
        assert all("socket:" in links[fd] for fd in "345"), lines
        assert f"{name}.fifo" in links["6"], lines


@every(HERE)
def test_credentials_of_a_service(ground: Ground, name: str, variant: Variant, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(SECRET)
    ask = f"env + list {PLACE} + stat {PLACE}/set + read {PLACE}/set + read {PLACE}/file + say  + mounts"
    app = ground.app(ask, "--user=web", "--group=web")
    lines = ("SetCredential=set:value\\n", f"LoadCredential=file:{tmp_path}/file", "Type=oneshot")
    with units({f"{name}.service": service(ground, [*ground.words(variant), *app], *lines)}):
        systemctl("start", f"{name}.service")
        found = said(f"{name}.service")
        assert {f"CREDENTIALS_DIRECTORY={PLACE}", "set", "file", "file 0400 33 34", "value", SECRET} <= set(found), (
            found
        )
        (mount,) = [line for line in found if f" {PLACE} " in line]
        assert "noswap" in mount or "- ramfs" in mount


@every(HERE)
def test_credentials_are_not_for_other_users(ground: Ground, name: str, variant: Variant) -> None:
    ask = f"become 44 44 + try list {PLACE} + try read {PLACE}/set"
    body = service(ground, [*ground.words(variant), *ground.app(ask)], f"SetCredential=set:{SECRET}", "Type=oneshot")
    with units({f"{name}.service": body}):
        systemctl("start", f"{name}.service")
        found = said(f"{name}.service")
        assert sum("Permission denied" in line for line in found) == 2, found
        assert SECRET not in "".join(found)
