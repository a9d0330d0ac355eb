"""Plugins that are programs: what they are given, and what happens when they misbehave."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import NetworkError
from stage1.network import programs
from tests.cgroups import until

Make = Callable[..., str]
ADD = {"COMMAND": "ADD", "CONTAINERID": "1-2", "NETNS": "/n", "IFNAME": "eth0", "ARGS": "", "PATH": "/p"}


@pytest.fixture
def make(tmp_path: pathlib.Path) -> Make:
    """A plugin with this body, in Python or shell."""

    def plugin(body: str, interpreter: str = f"{sys.executable} -IS") -> str:
        path = tmp_path / "plugin"
        path.write_text(f"#!{interpreter}\n{body}\n")
        path.chmod(0o755)
        return str(path)

    return plugin


def call(path: str, **conf: Any) -> Any:
    return programs.call("network n: plugin p", path, ADD, conf)


def failure(path: str, **parameters: str) -> str:
    with pytest.raises(NetworkError) as error:
        programs.call("network n: plugin p", path, {**ADD, **parameters}, {})
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("network n: plugin p")
    return str(error.value).removeprefix("network n: plugin p").removeprefix(": ").strip()


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


SEES = """import json, os, signal, sys
fds = [int(fd) for fd in os.listdir("/proc/self/fd")]
print(json.dumps({
    "environment": open("/proc/self/environ").read().split("\\0"),
    "stdin": json.load(sys.stdin),
    "descriptors": [fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")],
    "group": os.getpgid(0) == os.getpid(),
    "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
}))"""


def test_it_is_given_its_parameters_and_nothing_else(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    stray, other = os.pipe()
    os.set_inheritable(stray, True)
    try:
        seen = call(make(SEES), name="n", type="p")
    finally:
        os.close(stray)
        os.close(other)
    assert sorted(filter(None, seen["environment"])) == sorted(
        ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "CNI_COMMAND=ADD", "CNI_CONTAINERID=1-2",
         "CNI_NETNS=/n", "CNI_IFNAME=eth0", "CNI_ARGS=", "CNI_PATH=/p"]
    )  # fmt: skip
    assert seen["stdin"] == {"name": "n", "type": "p"}
    assert seen["descriptors"] == [0, 1, 2]
    assert seen["group"] is True
    assert seen["blocked"] == 0


def test_signals_we_ignore_are_not_ignored_there(make: Make) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        shell = make("cat >/dev/null; grep SigIgn /proc/self/status | sed 's/.*/\"&\"/' | tr -d '\\t'", "/bin/sh")
        ignored = int(call(shell).partition(":")[2], 16)
        assert not ignored & sum(1 << number - 1 for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ))
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_configuration_larger_than_a_pipe_and_a_plugin_that_does_not_read_it(make: Make) -> None:
    assert call(make("import json, sys; print(len(json.load(sys.stdin)['x']))"), x="y" * 300_000) == 300_000
    assert call(make("print('{}')"), x="y" * 300_000) == {}


def test_a_plugin_that_says_much_on_both_channels(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    body = "import sys\nfor _ in range(40): sys.stderr.write('e' * 9999 + '\\n')\nprint('\"' + 'x' * 900_000 + '\"')"
    assert len(call(make(body))) == 900_000
    assert len(capfd.readouterr().err) < 3000


def test_warnings_are_passed_on(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(make("import sys; print('{}'); print('old \\x1b[2J\\nconf', file=sys.stderr)")) == {}
    assert capfd.readouterr().err == "rkpy: network n: plugin p: old �[2J\nrkpy: network n: plugin p: conf\n"


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"code": 7, "msg": "no bridge", "details": "at\nall"}, "no bridge: at all"),
        ({"code": 11, "msg": "busy"}, "busy (the plugin says that it may work later)"),
        ({"cniVersion": "0.1.0", "code": 1, "msg": "x\x1b[2J"}, "x�[2J"),
        ({"msg": "m" * 5000}, "m" * 2000),
    ],
)
def test_its_error_is_ours(make: Make, document: Any, said: str) -> None:
    assert failure(make(f"print({json.dumps(json.dumps(document))}); raise SystemExit(1)")) == said


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise SystemExit(3)", "exit status 3"),
        ("print('oops'); raise SystemExit(3)", "exit status 3: oops"),
        ("print('[1]'); raise SystemExit(3)", "exit status 3: [1]"),
        ("print('{\"msg\": 7}'); raise SystemExit(3)", 'exit status 3: {"msg": 7}'),
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9"),
        ("raise ValueError('bad')", "exit status 1: Traceback (most recent call last): … ValueError: bad"),
        ("print('[' * 100_000); raise SystemExit(3)", f"exit status 3: {'[' * 2000}"),
        ("", "printed no result"),
        ("print('garbage\\n\\x1b[2Jmore')", "printed no result: garbage … �[2Jmore"),
        ("import os; os.write(1, bytes(range(128, 256)))", f"printed no result: {'�' * 128}"),
        ("print('[' * 100_000)", f"printed no result: {'[' * 2000}"),
    ],
)  # fmt: skip
def test_what_it_says_instead_of_a_result(make: Make, body: str, said: str) -> None:
    assert failure(make(body)) == said


def test_only_add_has_a_result(make: Make) -> None:
    assert programs.call("p", make("print('garbage')"), {**ADD, "COMMAND": "DEL"}, {}) is None
    assert failure(make("print('garbage'); raise SystemExit(1)"), COMMAND="DEL") == "exit status 1: garbage"


@pytest.mark.parametrize("where", ["/proc/self/nothing", "/etc/passwd"])
def test_no_program(where: str) -> None:
    assert failure(where).startswith(f"cannot execute {where}: ")


def test_no_interpreter(make: Make) -> None:
    assert failure(make("", "/nothing")).endswith("plugin: no such file or directory")


def test_a_plugin_that_hangs_is_killed_with_what_it_started(
    make: Make, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[bool] = []

    def clock() -> float:
        """All the time has passed once it has begun to wait, however long it takes to come to that."""
        if begun:
            until(lambda: (tmp_path / "ready").exists())
        begun.append(True)
        return 0.0 if len(begun) == 1 else programs.LIMIT + 1

    monkeypatch.setattr(programs, "time", SimpleNamespace(monotonic=clock))
    body = f"sleep 1000 & echo $! >{tmp_path}/child; echo $$ >{tmp_path}/self; >{tmp_path}/ready; wait"
    assert failure(make(body, "/bin/sh")) == "did not end within 120 seconds and was killed"
    for name in ("child", "self"):
        pid = int((tmp_path / name).read_text())
        until(lambda pid=pid: gone(pid))  # type: ignore[misc]


def test_a_plugin_that_talks_all_the_time_hangs_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "LIMIT", 0.5)
    assert failure(make("while :; do echo x >&2; done", "/bin/sh")) == "did not end within 0.5 seconds and was killed"


def test_a_plugin_that_prints_without_end(make: Make) -> None:
    assert failure(make("while True: print('x' * 9999)")) == f"printed more than {programs.SIZE} bytes and was killed"


def test_what_it_leaves_behind_is_not_waited_for(make: Make, tmp_path: pathlib.Path) -> None:
    """A daemon with the plugin's output in its hands."""
    before = time.monotonic()
    assert call(make(f"sleep 300 & echo $! >{tmp_path}/child; echo '{{}}'", "/bin/sh")) == {}
    child = int((tmp_path / "child").read_text())
    assert not gone(child)
    assert time.monotonic() - before < 100
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def test_a_plugin_that_closes_its_output_first(make: Make) -> None:
    body = "import os, time; os.write(1, b'{}'); os.close(1); os.close(2); time.sleep(0.2); os._exit(0)"
    assert call(make(body)) == {}


def test_no_descriptor_is_left(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")
    call(make("print('{}')"))
    monkeypatch.setattr(programs, "LIMIT", 0.2)
    failure(make("import time; time.sleep(100)"))
    failure("/nothing")
    assert os.listdir("/proc/self/fd") == before


def test_find(tmp_path: pathlib.Path, make: Make) -> None:
    make("")
    (tmp_path / "directory").mkdir()
    (tmp_path / "text").write_text("")
    assert programs.find("plugin", ("/nothing", str(tmp_path))) == f"{tmp_path}/plugin"
    assert programs.find("directory", [str(tmp_path)]) == ""
    assert programs.find("text", [str(tmp_path)]) == ""
