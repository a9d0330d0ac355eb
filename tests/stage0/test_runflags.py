"""What was typed for the last run of a pod, and what becomes of it in the next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import PodError
from stage0 import options, runflags
from stage0.options import Values

FLAGS = options.table(options.GLOBAL, options.RUNTIME)


def flags(*words: str) -> Values:
    found = Values()
    for word in words:
        flag, value, _ = options.take([word], 0, FLAGS)
        found.add(flag, value)
    return found


def recalled(pod: Path, *words: str) -> dict[str, list[str]]:
    found = runflags.recall(str(pod), flags(*words))
    return {name: found.all(name) for name in found.typed()}


def test_what_is_typed_takes_the_place_of_what_was(tmp_path: Path) -> None:
    runflags.record(
        str(tmp_path), flags("--net=none", "--dns=9.9.9.9", "--dns=1.1.1.1", "--hostname=\udcff", "--dir=x")
    )
    assert recalled(tmp_path) == {"net": ["none"], "dns": ["9.9.9.9", "1.1.1.1"], "hostname": ["\udcff"]}
    assert recalled(tmp_path, "--dns=8.8.8.8", "--debug") == {
        "dns": ["8.8.8.8"], "debug": ["true"], "net": ["none"], "hostname": ["\udcff"],
    }  # fmt: skip


def test_nothing_is_kept_of_nothing_nor_of_who_calls(tmp_path: Path) -> None:
    runflags.record(str(tmp_path), flags("--interactive", "--detach", "--keep-unit", "--uuid-file-save=x", "--dir=y"))
    assert not list(tmp_path.iterdir())
    assert recalled(tmp_path, "--net=host") == {"net": ["host"]}


def test_every_other_flag_is_kept(tmp_path: Path) -> None:
    left = {"interactive", "detach", "keep-unit", "uuid-file-save", "set-credential"}
    kept = [flag for flag in options.RUNTIME if flag.name not in left]
    values = {options.BOOL: "false"}
    given = {flag.name: "x:/x" if flag.name == "load-credential" else values.get(flag.kind, "x") for flag in kept}
    runflags.record(str(tmp_path), flags(*(f"--{name}={value}" for name, value in given.items())))
    assert recalled(tmp_path).keys() == {flag.name for flag in kept}


def test_no_secret_is_kept_and_its_lack_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runflags.record(str(tmp_path), flags("--set-credential=word:hunter2", "--set-credential=key:x"))
    assert not [path for path in tmp_path.iterdir() if "hunter2" in path.read_text()]
    assert recalled(tmp_path, "--set-credential=key:y") == {"set-credential": ["key:y"]}
    assert capsys.readouterr().err.count("--set-credential=word, of which the value is not kept") == 1
    runflags.record(str(tmp_path), flags("--net=none"))
    assert recalled(tmp_path, "--load-credential=word:/x")["net"] == ["none"]
    assert capsys.readouterr().err.count("--set-credential=") == 1, "of the other, still"


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"flags": ["--net=none"]}', '{"flags": "--net=none", "credentials": []}', "[" * 100000, "\xff",
     '{"flags": ["--set-credential=a:b"], "credentials": []}', '{"flags": ["--later=1"], "credentials": []}',
     '{"flags": [1], "credentials": []}'],
)  # fmt: skip
def test_what_makes_no_sense_does_not_give_a_pod_other_networks(tmp_path: Path, text: str) -> None:
    (tmp_path / "run-flags").write_text(text, encoding="latin-1")
    with pytest.raises(PodError, match="run-flags is damaged"):
        runflags.recall(str(tmp_path), flags())


def test_what_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    for _ in range(2):
        runflags.record(str(tmp_path), flags("--net=none"))
        (path,) = tmp_path.iterdir()
        path.chmod(0o600)
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text()) == {"flags": ["--net=none"], "credentials": []}


def test_an_empty_value_says_that_there_are_none(tmp_path: Path) -> None:
    runflags.record(str(tmp_path), flags("--net=none", "--dns=9.9.9.9", "--hosts-entry=1.1.1.1=a"))
    assert recalled(tmp_path, "--dns=") == {"net": ["none"], "hosts-entry": ["1.1.1.1=a"]}


def test_a_credential_that_is_given_anew_is_not_the_old_one(tmp_path: Path) -> None:
    runflags.record(str(tmp_path), flags("--load-credential=key:/old", "--load-credential=other:/o"))
    assert recalled(tmp_path, "--set-credential=key:new") == {
        "set-credential": ["key:new"], "load-credential": ["other:/o"],
    }  # fmt: skip


def test_what_a_service_was_given_is_not_kept(tmp_path: Path) -> None:
    runflags.record(str(tmp_path), flags("--net=none", "--load-credential=key", "--load-credential=own:relative"))
    assert recalled(tmp_path) == {"net": ["none"]}


def test_who_says_which_networks_can_do_without_what_a_power_cut_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run-flags").touch()
    assert recalled(tmp_path, "--net=none") == {"net": ["none"]}
    assert capsys.readouterr().err.count("run-flags is damaged: only what is typed counts") == 1
    runflags.record(str(tmp_path), flags("--net=none"))
    assert recalled(tmp_path) == {"net": ["none"]}
