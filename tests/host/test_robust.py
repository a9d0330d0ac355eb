"""Pods that meet what nobody hopes for: signals at the wrong moment, nonsense, full disks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from stage1 import control, poddir
from tests.host import flavours
from tests.host.flavours import NAMESPACES, QUICK, SUPERVISED, Ground, Running, Variant, every, until


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, inspector: str) -> Iterator[Ground]:
    with flavours.ground(tmp_path_factory.mktemp("robust"), inspector) as made:
        yield made


def monitor_of(running: Running) -> int:
    """`rkpy run` becomes it."""
    return running.process.pid


# --- signals at any moment


@every(SUPERVISED, QUICK)
def test_a_stop_is_not_lost_while_the_pod_starts(ground: Ground, variant: Variant) -> None:
    for _ in range(5):
        with ground.running(variant, ground.app("sleep")) as running:
            uuid = running.uuid
            while (leader := poddir.read_leader(ground.place(uuid))) is None:
                assert running.process.poll() is None
            os.kill(leader.pid, signal.SIGTERM)
            result = running.wait()
            assert (result.err, result.status in (0, 128 + signal.SIGTERM)) == ("", True)


@every(SUPERVISED, QUICK)
def test_interrupted_while_it_starts(ground: Ground, variant: Variant) -> None:
    """^C when the interpreter has been executed anew and still imports what it needs."""
    for _ in range(10):
        with ground.running(variant, ground.app("sleep")) as running:
            process = Path(f"/proc/{running.process.pid}")
            while (
                b"\0-I\0" not in (process / "cmdline").read_bytes() or "/_ctypes." not in (process / "maps").read_text()
            ):
                assert running.process.poll() is None
            running.process.send_signal(signal.SIGINT)
            assert running.wait().err == ""


def is_between_starts(place: str) -> bool:
    """Whether the run has ended that the last restart began: the record of an earlier one is older than the number."""
    with contextlib.suppress(FileNotFoundError):
        ended, restarted = (os.stat(path(place, "app")).st_mtime_ns for path in (poddir.status, poddir.restarts))
        return ended >= restarted
    return False


@every(SUPERVISED, QUICK)
def test_stopped_while_it_waits_for_its_next_start(ground: Ground, variant: Variant) -> None:
    app = ground.app("exit 5", "--restart=always")
    with ground.running(variant, app) as running:
        uuid = running.uuid
        place = ground.place(uuid)
        until(lambda: poddir.read_restarts(place, "app") >= 6 and is_between_starts(place))
        ground.rkpy.ok("stop", uuid)
        assert running.wait().status == 5
    assert poddir.read_ending(place, "app") == poddir.Ending(5)


@every(SUPERVISED, QUICK)
def test_who_was_asked_to_end_is_known(ground: Ground, variant: Variant) -> None:
    with ground.running(variant, ground.app("say up + sleep")) as running:
        assert running.line() == "up"
        uuid = running.uuid
        ground.rkpy.ok("stop", uuid)
        running.wait()
    assert poddir.read_ending(ground.place(uuid), "app") == poddir.Ending(143, signal=15, stopped=True)


# --- the control socket


GARBAGE = (
    b"", b"\0", b"{", b"[]", b"1", b'"op"', b"null", b"[" * 60000, b"{}", b'{"op": []}', b'{"op": {}, "app": []}',
    b'{"op": "add"}', b'{"op": "attach", "app": "app"}', b'{"op": "attach", "app": "app", "endpoints": 5}',
    b'{"op": "attach", "app": "app", "endpoints": [[]]}', b'{"op": "attach", "app": "app", "endpoints": ["stdout"]}',
    b'{"op": "resize", "app": "app", "rows": "x", "columns": 2}', b'{"op": "resize", "app": "app"}', b"\xff\xfe",
    b'{"op": "start", "app": "app"}', b'{"op": "rm", "app": {}}', b'{"op": "nothing", "app": "app"}', b"x" * 70000,
)  # fmt: skip


def ask(place: str, message: bytes, fds: list[int]) -> dict[str, object]:
    here = os.open(place, os.O_PATH | os.O_DIRECTORY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(f"/proc/self/fd/{here}/{poddir.CONTROL}")
        os.close(here)
        socket.send_fds(client, [message], fds)
        answer: dict[str, object] = json.loads(client.recv(65536) or b"{}")
        return answer


@every(SUPERVISED, QUICK)
def test_nonsense_does_the_pod_no_harm(ground: Ground, variant: Variant) -> None:
    app = ground.app("say up + sleep", "--stdout=stream")
    with ground.running(variant, app) as running, open(os.devnull) as null:
        place = ground.place(running.uuid)
        # What came with the news that the app had started is closed by then.
        ground.rkpy.ok("status", "--wait-ready=300s", running.uuid)
        mine = Path(f"/proc/{monitor_of(running)}/fd")
        reader, writer = os.pipe()
        os.close(writer)
        before = len(os.listdir(mine))
        for message in GARBAGE:
            for fds in ([], [null.fileno()], [reader], [null.fileno()] * 200):
                answer = ask(place, message, fds)
                assert "error" in answer or b"resize" in message or not message, message
        os.close(reader)
        until(lambda: len(os.listdir(mine)) == before)
        assert control.request(place, {"op": "states"}) == {"states": {"app": "running"}}
        ground.rkpy.ok("stop", running.uuid)
        assert running.wait().err == ""


@every(SUPERVISED, QUICK)
def test_more_callers_than_descriptors(ground: Ground, variant: Variant) -> None:
    with ground.running(variant, ground.app("say up + sleep")) as running:
        assert running.line() == "up"
        place = ground.place(running.uuid)
        used = len(os.listdir(f"/proc/{monitor_of(running)}/fd"))
        limits = resource.prlimit(monitor_of(running), resource.RLIMIT_NOFILE)
        resource.prlimit(monitor_of(running), resource.RLIMIT_NOFILE, (used + 4, limits[1]))
        here = os.open(place, os.O_PATH | os.O_DIRECTORY)
        callers = []
        for _ in range(12):
            callers.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            callers[-1].connect(f"/proc/self/fd/{here}/{poddir.CONTROL}")
        os.close(here)
        until(lambda: len(os.listdir(f"/proc/{monitor_of(running)}/fd")) >= used + 3)
        for caller in callers:
            caller.close()
        assert control.request(place, {"op": "states"}) == {"states": {"app": "running"}}


@every(SUPERVISED, QUICK)
@pytest.mark.parametrize("content", ["", "{", "5", "[]", '["LaunchSpec"]', '["Later", 1]', "null", '{"a": 1}'])
def test_what_cannot_be_entered(ground: Ground, variant: Variant, content: str) -> None:
    """A damaged pod directory, or one a later version made."""
    with ground.running(variant, ground.app("say up + sleep")) as running:
        assert running.line() == "up"
        Path(poddir.app_info(ground.place(running.uuid), "app", "launch")).write_text(content)
        assert "cannot tell how" in ground.rkpy.refused("enter", running.uuid, "/bin/inspect", "id")


# --- a full disk


@every(SUPERVISED, QUICK)
def test_an_app_that_fills_the_disk_harms_only_itself(variant: Variant, tmp_path: Path, inspector: str) -> None:
    with flavours.small_disk(tmp_path / "disk", 16) as disk, flavours.ground(disk / "ground", inspector) as ground:
        image = ground.image()
        app = ground.app("say up + wait-for /tmp/go + exit 3", image=image)
        with ground.running(variant, app) as running:
            assert running.line() == "up"
            uuid = running.uuid
            go = f"/proc/{app_pid(ground, uuid)}/root/tmp/go"
            with contextlib.suppress(OSError), open(disk / "fat", "wb", buffering=0) as fat:
                while fat.write(bytes(4096)):
                    pass
            os.close(os.open(go, os.O_CREAT | os.O_WRONLY))
            result = running.wait()
            (disk / "fat").unlink()
        assert result.status == 3, result
        assert re.fullmatch(r'rkpy: run: cannot record how app "app" fares: no space left on device\n', result.err)


def app_pid(ground: Ground, uuid: str) -> int:
    found = poddir.read_started(ground.place(uuid), "app")
    assert found is not None
    return found[0]


# --- names


@every(NAMESPACES, QUICK)
@pytest.mark.parametrize("name", ["x" * 65, "a b", "a\nb", "a/b", "../x", "-a", "a..b", ".", "é"])
def test_what_is_no_host_name(ground: Ground, variant: Variant, name: str) -> None:
    image = ground.image()
    before = ground.rkpy.pods()
    line = ground.rkpy.refused(*ground.words(variant, f"--hostname={name}"), image)
    assert "not a host name" in line
    assert ground.rkpy.pods() == before


@every(NAMESPACES, QUICK)
@pytest.mark.parametrize("name", ["x" * 64, "a-b.example.com", "A_1"])
def test_what_is_a_host_name(ground: Ground, variant: Variant, name: str) -> None:
    assert ground.ask(variant, "hostname", pod=[f"--hostname={name}"]) == [name]


@every(NAMESPACES, QUICK)
def test_debug_shows_what_is_mounted(ground: Ground, variant: Variant) -> None:
    result = ground.run(variant, "say up", pod=["--debug"])
    assert (result.lines, result.status) == (["up"], 0)
    assert "app: proc on /proc" in result.err.splitlines(), result.err
