"""The little languages inside flag values."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aci.image_manifest import Isolator
from aci.pod_manifest import RuntimeMount, Volume
from common.errors import RkpyError, UsageError
from stage0 import behaviour, values
from stage0.options import APP, Values, table


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data,kind=host,source=/srv", Volume("data", "host", "/srv")),
        (
            "data,kind=host,source=/srv,readOnly=true,recursive=false",
            Volume("data", "host", "/srv", read_only=True, recursive=False),
        ),
        (
            "data,kind=host,source=/srv,propagation=shared",
            Volume("data", "host", "/srv", propagation="shared"),
        ),
        ("tmp,kind=empty", Volume("tmp", "empty")),
        ("tmp,kind=empty,size=16Mi", Volume("tmp", "empty", size=16 << 20)),
        ("tmp,kind=empty,mode=1777,uid=5,gid=6", Volume("tmp", "empty", mode="1777", uid=5, gid=6)),
        ("data,kind=named", Volume("data", "named", "data", mode="", uid=-1, gid=-1)),
        (
            "data,kind=named,source=db_1,copy=false,mode=0700,uid=0",
            Volume("data", "named", "db_1", mode="0700", uid=0, gid=-1, copy=False),
        ),
    ],
)
def test_volumes(text: str, expected: Volume) -> None:
    assert values.volume(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "data", "data,kind=host", "data,kind=host,source=relative", "data,kind=nfs,source=/x", "D,kind=empty",
        "data,kind=empty,source=/x", "data,kind=host,source=/x,mode=0755", "data,kind=empty,mode=99",
        "data,kind=empty,mode=17777", "data,kind=empty,uid=-1", "data,kind=empty,uid=4294967295",
        "data,kind=host,source=/x,propagation=rshared", "data,kind=host,source=/x,size=1M", "d,kind=empty,size=16m",
        "d,kind=empty,size=", "d,kind=empty,size=-1M", "d,kind=empty,propagation=slave",
        "data,kind=host,source=/x,readOnly=maybe", "data,kind=host,kind=empty", "data,kind=host,source",
        "data,kind=named,source=../x", "data,kind=named,copy=maybe", "data,kind=empty,copy=true",
    ],
)  # fmt: skip
def test_bad_volumes(text: str) -> None:
    with pytest.raises(RkpyError):
        values.volume(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("data:/d:ro", "write --volume=NAME,kind=named,source=data --mount=volume=NAME,target=/d"),
        ("/srv/x:/d", "write --volume=NAME,kind=host,source=/srv/x --mount=volume=NAME,target=/d"),
        ("data:d", "NAME,kind=host,source=/path"),
    ],
)
def test_what_those_are_told_who_know_podman(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        values.volume(text)
    assert error.value.hint == hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/dev/fuse", ("/dev/fuse", "/dev/fuse")),
        ("/dev/fuse:rw", ("/dev/fuse", "/dev/fuse")),
        ("/dev/sda:/dev/disk:rwm", ("/dev/sda", "/dev/disk")),
        ("/dev/sda:/r", ("/dev/sda", "/r")),
    ],
)
def test_devices(text: str, expected: tuple[str, str]) -> None:
    assert behaviour.device(text) == expected


@pytest.mark.parametrize(
    "text", ["", "fuse", "/a:b", "/a:/b:x", "/a:r", "/a:/b:w", "/a:m", "/a:/b:/c", "/a:", "/a:rwx"]
)
def test_bad_devices(text: str) -> None:
    with pytest.raises(UsageError):
        behaviour.device(text)


def test_mounts() -> None:
    assert values.mount("volume=data,target=/var/lib/data") == ("data", "/var/lib/data")
    for bad in ("volume=data", "target=/x", "volume=data,target=x", "volume=data,target=/x,more=1"):
        with pytest.raises(UsageError):
            values.mount(bad)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name=d,kind=empty,target=/d/", RuntimeMount("d", "/d", Volume("d", "empty"))),
        (
            "name=d,kind=host,source=/srv,target=//d/../e,readOnly=true",
            RuntimeMount("d", "/e", Volume("d", "host", "/srv", read_only=True)),
        ),
    ],
)
def test_volumes_of_an_app(text: str, expected: RuntimeMount) -> None:
    assert values.app_volume(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "name=d", "name=d,kind=empty", "kind=empty,target=/d", "name=d,target=/d", "name=D,kind=empty,target=/d"],
)
def test_bad_volumes_of_an_app(text: str) -> None:
    with pytest.raises(RkpyError):
        values.app_volume(text)


def test_environment_files(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# a comment\n; another\n\nA=1\n  B=x=y  \nC=\n")
    assert values.environment_files([str(file)]) == {"A": "1", "B": "x=y", "C": ""}


@pytest.mark.parametrize("text", ["A", "=1", "A=1\nA=2", "\xff"])
def test_bad_environment_files(text: str, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=str(file)):
        values.environment_files([str(file)])


def test_a_missing_environment_file_is_named() -> None:
    with pytest.raises(UsageError, match="open /nowhere/env: no such file or directory"):
        values.environment_files(["/nowhere/env"])


def test_an_environment_file_that_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("A=1\n")
    assert values.environment_files([f"-{tmp_path}/env", "-/nowhere/env", "-/dev/null/env"]) == {"A": "1"}
    with pytest.raises(UsageError, match=f"open {tmp_path}: is a directory"):
        values.environment_files([f"-{tmp_path}"])


def app_flags(*given: tuple[str, str]) -> Values:
    flags = Values()
    for name, value in given:
        flags.add(table(APP)[name], value)
    return flags


@pytest.mark.parametrize(
    ("flag", "text", "isolator"),
    [
        ("memory", "512M", Isolator("resource/memory", {"limit": "512M"})),
        ("cpu", "500m", Isolator("resource/cpu", {"limit": "500m"})),
        ("cpu-shares", "512", Isolator("os/linux/cpu-shares", 512)),
        (
            "caps-retain",
            "CAP_KILL,CAP_CHOWN",
            Isolator("os/linux/capabilities-retain-set", {"set": ["CAP_KILL", "CAP_CHOWN"]}),
        ),
        (
            "seccomp",
            "mode=remove,errno=EPERM,reboot,@docker/default-blacklist",
            Isolator("os/linux/seccomp-remove-set", {"set": ["reboot", "@docker/default-blacklist"], "errno": "EPERM"}),
        ),
        ("caps-ambient", "CAP_KILL", Isolator("os/linux/ambient-capabilities-set", {"set": ["CAP_KILL"]})),
        ("no-new-privileges", "true", Isolator("os/linux/no-new-privileges", True)),
        ("no-new-privileges", "false", Isolator("os/linux/no-new-privileges", False)),
        ("pids-limit", "100", Isolator("resource/pids", {"limit": 100})),
        ("ulimit", "nofile=10:20", Isolator("os/unix/rlimit", {"name": "NOFILE", "soft": 10, "hard": 20})),
        ("ulimit", "core=0", Isolator("os/unix/rlimit", {"name": "CORE", "soft": 0, "hard": 0})),
        (
            "ulimit",
            "as=-1:unlimited",
            Isolator("os/unix/rlimit", {"name": "AS", "soft": "unlimited", "hard": "unlimited"}),
        ),
    ],
)
def test_restrictions_become_isolators(flag: str, text: str, isolator: Isolator) -> None:
    assert list(values.isolators(app_flags((flag, text)))) == [isolator]


@pytest.mark.parametrize(
    ("flag", "text"), [("memory", "16m"), ("memory", "lots"), ("cpu-shares", "many"), ("seccomp", "mode=what,reboot"),
     ("pids-limit", "many"), ("pids-limit", ""), ("pids-limit", "-2"), ("pids-limit", "4194305"),
     ("no-new-privileges", "perhaps"), ("ulimit", "nofile"), ("ulimit", "nofile="), ("ulimit", "NOFILE=1"),
     ("ulimit", "files=1"), ("ulimit", "nofile=1:"), ("ulimit", "nofile=1:2:3"), ("ulimit", "nofile=-2"),
     ("ulimit", "nofile=9223372036854775808"), ("ulimit", "=1")],
)  # fmt: skip
def test_bad_restrictions(flag: str, text: str) -> None:
    with pytest.raises(RkpyError):
        list(values.isolators(app_flags((flag, text))))


def test_ulimits_add_up() -> None:
    found = values.isolators(app_flags(("ulimit", "core=0"), ("ulimit", "nproc=5")))
    assert [isolator.value["name"] for isolator in found] == ["CORE", "NPROC"]


@pytest.mark.parametrize("text", ["0", "-1"])
def test_no_limit_of_processes_is_no_isolator_and_no_restriction(text: str) -> None:
    flags = app_flags(("pids-limit", text))
    assert (list(values.isolators(flags)), list(values.restrictions(flags))) == ([], [])


def test_flags_that_restrict() -> None:
    flags = app_flags(
        ("ulimit", "core=0"),
        ("pids-limit", "5"),
        ("caps-ambient", "CAP_KILL"),
        ("no-new-privileges", "true"),
        ("user", "1"),
    )
    assert list(values.restrictions(flags)) == ["ulimit", "pids-limit", "caps-ambient"]


def test_capabilities_are_kept_or_removed_not_both() -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        list(values.isolators(app_flags(("caps-retain", "CAP_KILL"), ("caps-remove", "CAP_CHOWN"))))


@given(st.text(max_size=80))
def test_no_text_ends_in_anything_but_a_value_or_one_of_our_errors(text: str) -> None:
    for read in (values.volume, values.mount, values.ulimit):
        try:
            read(text)
        except RkpyError:
            pass
