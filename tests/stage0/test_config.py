"""Configuration directories: which wins, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import ConfigError, UsageError
from stage0 import caller, config
from stage0.options import GLOBAL, Values, table
from stage1.vm.machine import MachineOptions


def flags(**given: str) -> Values:
    values = Values()
    for name, value in given.items():
        values.add(table(GLOBAL)[name.replace("_", "-")], value)
    return values


def write(directory: Path, subdirectory: str, name: str, /, **document: object) -> None:
    (directory / subdirectory).mkdir(parents=True, exist_ok=True)
    (directory / subdirectory / name).write_text(json.dumps(document))


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests; it is said where somebody else asks."""
    monkeypatch.setattr(caller, "UID", 0)


@pytest.fixture
def directories(tmp_path: Path) -> dict[str, str]:
    return {name: str(tmp_path / name) for name in ("system_config", "local_config", "user_config")}


def paths(data: str) -> dict[str, str]:
    return {"rktKind": "paths", "rktVersion": "v1", "data": data}


def test_defaults_without_any_file(directories: dict[str, str]) -> None:
    found = config.load(flags(**directories))
    assert found.data_dir == "/var/lib/rkpy"
    assert found.store == "/var/lib/rkpy/cas"
    assert not found.insecure


def test_a_later_directory_wins_key_by_key(tmp_path: Path, directories: dict[str, str]) -> None:
    write(tmp_path / "system_config", "paths.d", "a.json", **paths("/system"), **{"stage1-images": "/images"})
    write(tmp_path / "local_config", "paths.d", "a.json", **paths("/local"))
    assert config.load(flags(**directories)).data_dir == "/local"
    assert config.effective(config.load(flags(**directories)), "paths")["stage1-images"] == "/images"


def test_where_roots_data_is_is_nothing_to_others(
    tmp_path: Path, directories: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller, "UID", 1000)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    write(tmp_path / "local_config", "paths.d", "a.json", **paths("/local"), **{"cni-plugins": ["/cni"]})
    found = config.load(flags(**directories))
    assert (found.data_dir, found.cni_plugins) == ("/home/me/.local/share/rkpy", ("/cni",))
    assert config.paths_in_force(found)["data"] == ""
    write(tmp_path / "user_config", "paths.d", "a.json", **paths("/mine"))
    assert config.load(flags(**directories)).data_dir == "/mine"


@pytest.mark.parametrize(
    ("environment", "own"),
    [
        ({"HOME": "/home/me"}, "/home/me/.config/rkpy"),
        ({"HOME": "/home/me", "XDG_CONFIG_HOME": "/else"}, "/else/rkpy"),
        ({"HOME": "/home/me", "XDG_CONFIG_HOME": "relative"}, "/home/me/.config/rkpy"),
    ],
)
def test_a_users_directory_need_not_be_said(
    environment: dict[str, str], own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller, "UID", 1000)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = config.places(flags())
    assert found.directories == ("/usr/lib/rkpy", "/etc/rkpy", own)
    assert found.own_config == own
    assert config.places(flags(user_config="/given")).own_config == "/given"


@pytest.mark.parametrize("uid", [0, 1000])
def test_directories_that_help_gives_as_defaults_are_everybodys(uid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller, "UID", uid)
    monkeypatch.setenv("HOME", "/home/me")
    found = config.places(flags())
    said = {flag.default for flag in GLOBAL if flag.default.startswith("/")}
    assert said == {found.system_config, found.local_config}


def test_root_has_no_directory_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/home/me/.config")
    found = config.places(flags())
    assert (found.directories, found.own_config) == (("/usr/lib/rkpy", "/etc/rkpy"), "/etc/rkpy")


def test_the_flag_beats_the_files(tmp_path: Path, directories: dict[str, str]) -> None:
    write(tmp_path / "local_config", "paths.d", "a.json", **paths("/local"))
    assert config.load(flags(dir=str(tmp_path), **directories)).data_dir == str(tmp_path)


def test_stage1_is_configurable(tmp_path: Path, directories: dict[str, str]) -> None:
    write(tmp_path / "local_config", "stage1.d", "a.json", rktKind="stage1", rktVersion="v1", name="fly", version="1")
    assert config.load(flags(**directories)).stage1 == "fly"


def test_machines_are_configurable_key_by_key(tmp_path: Path, directories: dict[str, str]) -> None:
    stage1 = {"rktKind": "stage1", "rktVersion": "v1"}
    assert config.load(flags(**directories)).machine == MachineOptions()
    general = {"acceleration": "tcg", "kernel": "6.1.0", "parameters": "loglevel=7", "memory": "1Gi", "cpu": "max"}
    write(tmp_path / "system_config", "stage1.d", "a.json", **stage1, kvm=general)
    write(tmp_path / "local_config", "stage1.d", "a.json", **stage1, kvm={"acceleration": "auto", "kernel": ""})
    found = config.load(flags(**directories)).machine
    assert found == MachineOptions("auto", "", "loglevel=7", 1 << 30, "max")


@pytest.mark.parametrize(
    ("kvm", "message"),
    [
        ([], "has to be an object of strings"),
        ({"memory": 1}, "has to be an object of strings"),
        ({"memory": "much"}, '"much" is not a quantity'),
        ({"acceleration": "fast"}, "not one of auto, kvm, tcg"),
        ({"kernel": "boot/vmlinuz"}, "neither an absolute path nor a version"),
        ({"parameters": "a\nb"}, "not a line of at most"),
        ({"cpu": "the best"}, "no model of a processor"),
        ({"cpus": "4"}, "cpus is not known"),
    ],
)
def test_bad_words_about_machines_are_named(
    kvm: object, message: str, tmp_path: Path, directories: dict[str, str]
) -> None:
    write(tmp_path / "local_config", "stage1.d", "bad.json", rktKind="stage1", rktVersion="v1", kvm=kvm)
    with pytest.raises(ConfigError, match=rf"bad\.json: kvm: .*{message}"):
        config.load(flags(**directories))


def test_two_files_of_one_kind_in_one_directory_are_an_error(tmp_path: Path, directories: dict[str, str]) -> None:
    write(tmp_path / "local_config", "paths.d", "a.json", **paths("/a"))
    write(tmp_path / "local_config", "paths.d", "b.json", **paths("/b"))
    with pytest.raises(ConfigError, match=r"b\.json: a second file of kind paths"):
        config.load(flags(**directories))


def test_files_without_the_ending_are_passed_over(tmp_path: Path, directories: dict[str, str]) -> None:
    write(tmp_path / "local_config", "paths.d", "a.json.bak", **paths("/a"))
    assert config.load(flags(**directories)).data_dir == "/var/lib/rkpy"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a readable JSON document"),
        ("[" * 100_000, "not a readable JSON document"),
        ("[]", "not a JSON object"),
        ('{"rktKind": "paths"}', "rktVersion null is not known"),
        ('{"rktKind": "auth", "rktVersion": "v1"}', "is not known in paths.d"),
        ('{"rktKind": "paths", "rktVersion": "v1", "data": "relative"}', "has to be an absolute path"),
        ('{"rktKind": "paths", "rktVersion": "v1", "data": 1}', "has to be a string"),
        ('{"rktKind": "paths", "rktVersion": "v1", "cni-plugins": "/x"}', "has to be a list of absolute paths"),
        ('{"rktKind": "paths", "rktVersion": "v1", "cni-plugins": ["/x", "y"]}', "has to be a list of absolute paths"),
    ],
)
def test_bad_files_are_named(text: str, message: str, tmp_path: Path, directories: dict[str, str]) -> None:
    (tmp_path / "local_config" / "paths.d").mkdir(parents=True)
    (tmp_path / "local_config" / "paths.d" / "bad.json").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(flags(**directories))
    assert "bad.json" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("none", set()),
        ("image,tls", {"image", "tls"}),
        ("all-run", {"capabilities", "paths", "seccomp"}),
        ("all", {"capabilities", "paths", "seccomp", "image", "tls", "http", "pubkey", "ondisk"}),
    ],
)
def test_insecure_options(text: str, features: set[str]) -> None:
    assert config.insecure_options(text) == features


@pytest.mark.parametrize("text", ["", "imag", "image,,tls", "IMAGE"])
def test_unknown_insecure_options_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--insecure-options"):
        config.insecure_options(text)


def test_an_empty_data_directory_is_refused() -> None:
    with pytest.raises(UsageError, match="--dir cannot be empty"):
        config.load(flags(dir=""))
