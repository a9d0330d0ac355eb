"""The units an administrator installs: systemd understands them, and rkpy understands the commands in them."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import pytest

from stage0 import grammar, main, podservice, podunit
from stage0.commands import gc, image, reload, run
from stage1.systemd import units
from stage1.vm import programs

UNITS = pathlib.Path(__file__).parent.parent / "systemd-units"
COMMANDS = {"gc": gc.command, "image gc": image.gc, "reload": reload.command}


def commands(unit: pathlib.Path) -> list[list[str]]:
    """The words of every Exec line."""
    return [line.partition("=")[2].split() for line in unit.read_text().splitlines() if line.startswith("Exec")]


def test_systemd_accepts_the_units(tmp_path: pathlib.Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("needs systemd-analyze")
    for unit in (path for path in UNITS.iterdir() if path.suffix in (".service", ".timer")):
        # A program that is there, whether rkpy is installed or not: systemd looks for it as well.
        (tmp_path / unit.name).write_text(unit.read_text().replace("=rkpy ", "=true "))
    made = sorted(tmp_path.iterdir())
    done = subprocess.run([analyze, "verify", "--man=no", *made], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_there_is_a_user_for_virtual_machines() -> None:
    lines = (UNITS / "rkpy.sysusers.conf").read_text().splitlines()
    assert [line for line in lines if line.startswith(f"u {programs.USER} ")]


_SWITCHES = ("--mark-only", "--quiet")


@pytest.mark.parametrize("unit", sorted(UNITS.glob("*.service")), ids=lambda path: path.name)
def test_rkpy_accepts_the_commands_in_the_units(unit: pathlib.Path) -> None:
    assert commands(unit)
    for program, *words in commands(unit):
        # Not an absolute path: systemd finds it below /usr/local too (systemd.service(5), "Command lines").
        assert program.removeprefix("-") == "rkpy"
        name, rest = main.find_command(words)
        if name in run.FLAGS:
            grammar.parse(rest, run.FLAGS[name])
        else:
            COMMANDS[name].make_context(name, [f"{word}=true" if word in _SWITCHES else word for word in rest])


def test_services_of_pods_are_alike_whoever_writes_them() -> None:
    """`rkpy systemd` and pod files (`podservice`), `--detach` (`units`), and the template for JSON and TOML."""
    ours = dict(podservice.settings(10))
    lines = (UNITS / "rkpy@.service").read_text().splitlines()
    template = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    assert ours.keys() - {"TimeoutStopSec"} <= {key for key, value in template.items() if ours.get(key) == value}
    assert template["After"] == podservice.AFTER
    assert template["ExecReload"] == podunit.reload("rkpy", "reload")
    assert template["ExecStopPost"] == f"-rkpy {' '.join(podservice.after_stop('%i'))}"
    transient = {name: value for name, _, value in units.of_service(["rkpy"], ["rkpy"], 10)}
    assert transient["TimeoutStopUSec"] == int(ours["TimeoutStopSec"]) * 1_000_000
    assert transient["SuccessExitStatus"] == [[int(ours["SuccessExitStatus"])], []]
    assert (transient["Type"], transient["KillMode"], transient["Slice"]) == (
        ours["Type"],
        ours["KillMode"],
        ours["Slice"],
    )
    assert str(units.DEFAULT_TASKS) == ours["TasksMax"]
