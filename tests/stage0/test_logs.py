"""`rkpy logs`, run as users run it, on logs as the monitor writes them."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stage0.pods import Pod
from stage1.logs import LogFile
from tests.living import die
from tests.stage0.test_pod_commands import ROOT, Lab, lab

__all__ = ["lab"]


def logged(lab: Lab, *apps: str, alive: bool = False) -> tuple[Pod, list[LogFile]]:
    pod = lab.pod(*apps, run=True, alive=alive)
    (Path(pod.path) / "flavour").write_text("nspawn")
    return pod, [LogFile(pod.path, app) for app in apps]


def test_both_streams(lab: Lab) -> None:
    pod, (log,) = logged(lab, "app")
    log.write("stdout", b"out\n\xff\0\r\n")
    log.write("stderr", b"err")
    done = subprocess.run(
        [sys.executable, "-m", "rkpy", f"--dir={lab.data_dir}", "logs", pod.uuid[:8]], capture_output=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"out\n\xff\0\r\n", b"err")


def test_several_apps(lab: Lab) -> None:
    pod, (one, two) = logged(lab, "one", "two")
    one.write("stdout", b"first\nbe")
    two.write("stdout", b"second\n")
    one.write("stdout", b"gun\nopen")
    assert lab.rkpy("logs", pod.uuid) == "one: first\ntwo: second\none: begun\none: open\n"
    assert lab.rkpy("logs", "--app=two", pod.uuid) == "second\n"
    assert lab.rkpy("logs", "--tail=2", pod.uuid) == "one: begun\none: open\n"
    stamped = lab.rkpy("logs", "--app=one", "--timestamps", pod.uuid).splitlines()
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (first|begun|open)", line) for line in stamped)
    assert len(stamped) == 3


def test_since(lab: Lab) -> None:
    pod, (log,) = logged(lab, "app")
    log.write("stdout", b"old\n")
    path = Path(log.path)
    path.write_bytes(b"2020-01-01T12:00:00.000000000Z stdout F older\n" + path.read_bytes())
    assert lab.rkpy("logs", pod.uuid) == "older\nold\n"
    assert lab.rkpy("logs", "--since=1h", pod.uuid) == "old\n"
    assert lab.rkpy("logs", "--since=2020-01-01T12:00:00Z", pod.uuid) == "older\nold\n"
    assert lab.rkpy("logs", "--since=2020-01-01T14:00:00.5+02:00", pod.uuid) == "old\n"
    assert lab.rkpy("logs", "--since=0s", pod.uuid) == ""
    assert 'invalid duration "soon"' in lab.error("logs", "--since=soon", pod.uuid)
    assert 'invalid time "2020-13-01"' in lab.error("logs", "--since=2020-13-01", pod.uuid)


@pytest.mark.parametrize("flag", ["-f", "--follow"])
def test_follow_until_the_pod_is_over(lab: Lab, flag: str) -> None:
    pod, (log,) = logged(lab, "app", alive=True)
    log.write("stdout", b"one\ntwo\n")
    follower = subprocess.Popen(
        [sys.executable, "-m", "rkpy", f"--dir={lab.data_dir}", "logs", flag, "--tail=1", pod.uuid],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    with follower:
        assert follower.stdout
        assert follower.stdout.readline() == b"two\n"
        log.write("stdout", b"three\n")
        assert follower.stdout.readline() == b"three\n"
        log.write("stdout", b"end")
        die(lab.living[0])
        assert follower.stdout.read() == b"end"
        assert follower.wait() == 0


def test_a_reader_that_goes_away(lab: Lab) -> None:
    pod, (log,) = logged(lab, "app")
    log.write("stdout", b"line\n" * 100_000)
    command = [sys.executable, "-m", "rkpy", f"--dir={lab.data_dir}", "logs", pod.uuid]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as reader:
        assert reader.stdout
        assert reader.stderr
        reader.stdout.close()
        assert reader.stderr.read() == b""
    assert reader.returncode == 254


def test_interrupting_a_follower(lab: Lab) -> None:
    pod, (log,) = logged(lab, "app", alive=True)
    log.write("stdout", b"line\n")
    command = [sys.executable, "-m", "rkpy", f"--dir={lab.data_dir}", "logs", "-f", pod.uuid]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as follower:
        assert follower.stdout
        assert follower.stderr
        assert follower.stdout.readline() == b"line\n"
        follower.send_signal(2)
        assert b"Traceback" not in follower.stderr.read()
    assert follower.returncode == 130


def test_errors(lab: Lab) -> None:
    pod, (log,) = logged(lab, "app")
    assert 'no app "nope" in the pod (there is: app)' in lab.error("logs", "--app=nope", pod.uuid)
    fly = lab.pod("app", run=True)
    assert "has no logs (apps under fly write to the streams of whoever runs them)" in lab.error("logs", fly.uuid)
    prepared = lab.pod("app")
    assert "has no logs: it has not been started" in lab.error("logs", prepared.uuid)
    assert "no matches found" in lab.error("logs", "ffffffff-0000")
    log.close()
    assert lab.rkpy("logs", pod.uuid) == ""


def test_an_app_that_writes_faster_than_it_is_read(lab: Lab) -> None:
    """Without --follow this ends."""
    pod, _ = logged(lab, "app", alive=True)
    log = LogFile(pod.path, "app", segments=2)  # There is less to be read then.
    command = [sys.executable, "-m", "rkpy", f"--dir={lab.data_dir}", "logs", pod.uuid]
    deadline = time.monotonic() + 600
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT) as reader:
        while reader.poll() is None and time.monotonic() < deadline:
            log.write("stdout", b"line\n" * 10_000)
        assert reader.poll() == 0
