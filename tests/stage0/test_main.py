"""Finding the command among flags, and refusing what is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UsageError
from stage0 import main

ROOT = Path(__file__).parents[2]


# What an import ends with is such a callback, too.
INTERRUPTED = """\
import rkpy, stage0.main
class Callback:
    def __del__(self):
        raise {error}
def run(words):
    Callback()
    print("it went on", flush=True)
    return 0
stage0.main.main = run
rkpy.main()
"""


@pytest.mark.parametrize(
    ("error", "expected"), [("KeyboardInterrupt", (130, "", False)), ("ValueError", (0, "it went on\n", True))]
)
def test_an_interrupt_in_a_callback_ends_it(error: str, expected: tuple[int, str, bool]) -> None:
    code = INTERRUPTED.format(error=error)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == expected, done


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["list"], ("list", [])),
        (["run", "a", "--net=host"], ("run", ["a", "--net=host"])),
        (["--net=host", "--debug", "run", "a"], ("run", ["--net=host", "--debug", "a"])),
        (["--stage1", "fly", "run", "a"], ("run", ["--stage1", "fly", "a"])),
        (["--dir", "/d", "image", "list", "--full"], ("image list", ["--dir", "/d", "--full"])),
        (["--no-overlay", "run", "a"], ("run", ["--no-overlay", "a"])),
        (["--full", "list"], ("list", ["--full"])),
        (["ver"], ("version", [])),
        (["im", "li"], ("image list", [])),
        (["cat", "u"], ("cat-manifest", ["u"])),
        (["help", "run"], ("help", ["run"])),
        ([], ("", [])),
        (["--help"], ("", ["--help"])),
    ],
)
def test_find_command(words: list[str], expected: tuple[str, list[str]]) -> None:
    assert main.find_command(words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["foo"], 'unknown command "foo" for "rkpy"'),
        (["r"], 'unknown command "r"'),
        (["image", "foo"], 'unknown command "foo" for "rkpy image"'),
        (["--bogus"], "unknown flag: --bogus"),
    ],
)
def test_unknown_commands_and_flags(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        main.find_command(words)


@pytest.mark.parametrize("words", [[], ["--debug"], ["--dir", "/d"]])
def test_no_command_prints_help_and_is_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(words) == 2
    assert "USAGE:" in capsys.readouterr().out


def test_flags_may_stand_before_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--dir", "/d", "help", "gc"]) == 0
    assert "rkpy gc" in capsys.readouterr().out


@pytest.mark.parametrize("name", main.VERBS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([*name.split(), "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"NAME:\n\trkpy {name} - ")


def test_help_shows_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in main.VERBS)


def test_errors_are_one_line_and_254(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["foo"]) == 254
    error = capsys.readouterr().err
    assert error.startswith("rkpy: unknown command")
    assert error.count("\n") == 1


def _shell(command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """A shell command with `rkpy` for one with an empty data directory."""
    rkpy = f"{sys.executable} -P {ROOT / 'rkpy.py'} --dir={directory} --local-config={directory}"
    script = f'rkpy() {{ {rkpy} "$@"; }}; {command}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.parametrize("words", ["im", "help image", "help im"])
def test_a_group_of_commands_explains_itself_by_any_prefix(words: str, tmp_path: Path) -> None:
    done = _shell(f"rkpy {words}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "image cat-manifest" in done.stdout


@pytest.mark.parametrize("command", ["list", "image list --format=json", "version", "--help", "trust --list"])
def test_output_that_cannot_be_written_is_one_line(command: str, tmp_path: Path) -> None:
    done = _shell(f"rkpy {command} >/dev/full", tmp_path)
    assert done.returncode == 254
    assert done.stderr.endswith("no space left on device\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_as_good_as_the_null_device(closed: str, tmp_path: Path) -> None:
    assert _shell(f"rkpy --help {closed}", tmp_path).returncode == 0
    failed = _shell(f"rkpy bogus {closed}", tmp_path)
    assert (failed.returncode, failed.stdout) == (254, "")
    assert "Traceback" not in failed.stderr


def test_an_error_that_cannot_be_said_is_still_an_error(tmp_path: Path) -> None:
    assert _shell("rkpy bogus 2>/dev/full", tmp_path).returncode == 254


def test_a_name_with_a_newline_stays_on_the_line(tmp_path: Path) -> None:
    failed = _shell("rkpy \"$(printf 'a\\nrkpy: b\\033[2J')\"", tmp_path)
    assert failed.stderr.startswith(r'rkpy: unknown command "a\nrkpy: b\x1b[2J"')
    assert failed.stderr.count("\n") == 1
