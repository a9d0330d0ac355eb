"""Finding the command among flags, and refusing what is none."""

from __future__ import annotations

import pytest

from common.errors import UsageError
from stage0 import main


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


def test_help_shows_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in main.VERBS)


def test_errors_are_one_line_and_254(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["foo"]) == 254
    error = capsys.readouterr().err
    assert error.startswith("rkpy: unknown command")
    assert error.count("\n") == 1
