"""Pods as data: what a JSON or TOML file says is what one would have typed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import RkpyError, UsageError
from stage0.commands import run
from stage0.config import Config
from stage0.podfile import data
from tests.stage0.podfiles import write

FLAGS = run.FLAGS["run"]
TOML = """
dir = "/data"
port = ["8080:80", "53:53/udp"]
net = "none"
private-users = true
no-overlay = false
stop-timeout = 20
set-env = { A = "1", B = "two words" }

[[app]]
image = "example.com/web"
args = ["serve", "--port=80", ""]
memory = "512M"
cpu = 0.5
pids-limit = 100
readonly-rootfs = true
mount = ["volume=x,target=/x"]

[app.environment]
C = "$3"

[[app]]
image = "other"
user-label = "a=b"
"""
WORDS = [
    "--dir=/data", "--port=8080:80", "--port=53:53/udp", "--net=none", "--private-users=true", "--no-overlay=false",
    "--stop-timeout=20", "--set-env=A=1", "--set-env=B=two words",
    "example.com/web", "--memory=512M", "--cpu=0.5", "--pids-limit=100", "--readonly-rootfs=true",
    "--mount=volume=x,target=/x", "--environment=C=$3", "--", "serve", "--port=80", "", "---",
    "other", "--user-label=a=b",
]  # fmt: skip


def read(tmp_path: Path, text: str, suffix: str = "toml") -> list[str]:
    return data.words(write(tmp_path / f"pod.{suffix}", text), Config(), FLAGS)


def test_toml_and_json_are_one(tmp_path: Path) -> None:
    import toml

    assert read(tmp_path, TOML) == WORDS
    assert read(tmp_path, json.dumps(toml.loads(TOML)), "json") == WORDS


def test_a_file_by_its_name(tmp_path: Path) -> None:
    config = Config(local_config=str(tmp_path / "etc"), system_config=str(tmp_path / "usr"))
    write(tmp_path / "usr/pods/My_web.toml", '[[app]]\nimage = "x"\n')
    assert data.words("My_web", config, FLAGS) == ["--pod-name=my-web", "x"]
    write(tmp_path / "etc/pods/My_web.json", '{"pod-name": "y", "app": [{"image": "z"}]}')
    assert data.words("My_web", config, FLAGS) == ["--pod-name=y", "z"]
    write(tmp_path / "etc/pods/My_web.toml", "")
    with pytest.raises(RkpyError, match="two files of one pod"):
        data.words("My_web", config, FLAGS)
    with pytest.raises(RkpyError, match='there is no pod file "nope"'):
        data.words("nope", config, FLAGS)


def test_pod_manifests(tmp_path: Path) -> None:
    config = Config(local_config=str(tmp_path))
    manifest: dict[str, Any] = {"acKind": "PodManifest"}
    path = write(tmp_path / "pods/web.json", json.dumps(manifest))
    assert data.words("web", config, FLAGS) == ["--pod-name=web", f"--pod-manifest={path}"]
    assert data.words(path, config, FLAGS) == [f"--pod-manifest={path}"]
    named = {**manifest, "annotations": [{"name": "rkpy/pod-name", "value": "x"}]}
    write(tmp_path / "pods/web.json", json.dumps(named))
    assert data.words("web", config, FLAGS) == [f"--pod-manifest={path}"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("foo = 1", "foo: there is no such key"),
        ("set_env = 'a=b'", "set_env: there is no such key (it is written set-env)"),
        ("memory = '1G'", "memory: there is no such key"),
        ("pod-file = 'x'", "pod-file: there is no such key"),
        ("private-users = 'yes'", "private-users: neither true nor false"),
        ("port = 80", "port: not a string or a list of strings"),
        ("port = [80]", "port: not a string or a list of strings"),
        ("net = true", "net: not a string or a list of strings"),
        ("hostname = ['a']", "hostname: not a string or a number"),
        ("hostname = true", "hostname: not a string or a number"),
        ("hostname = { a = 'b' }", "hostname: not a string or a number"),
        ("set-env = { A = 1 }", "set-env: not a string or a list of strings"),
        ("app = 1", "app: not a list of tables"),
        ("[app]\nimage = 'x'", "app: not a list of tables (write [[app]])"),
        ("[[app]]", "app[0].image: missing"),
        ("[[app]]\nimage = 1", "app[0].image: not the name of an image"),
        ("[[app]]\nimage = '--x'", "app[0].image: not the name of an image"),
        ("[[app]]\nimage = 'x'\n[[app]]\nimage = 'y'\nnet = 'none'", "app[1].net: there is no such key"),
        ("[[app]]\nimage = 'x'\nargs = 'a'", "app[0].args: not a list of strings"),
        ("[[app]]\nimage = 'x'\nargs = ['---']", "app[0].args: an argument cannot be ---"),
        ("a = ", "not a TOML document"),
        ("[[app]\n", "not a TOML document"),
    ],
)
def test_what_makes_no_sense_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RkpyError) as caught:
        read(tmp_path, text)
    assert said in str(caught.value)
    assert str(tmp_path / "pod.toml") in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1, "a": 2}', "[" * 100000])
def test_json_that_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(RkpyError, match="not a"):
        read(tmp_path, text, "json")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RkpyError, match="no such file"):
        data.words("/nowhere.json", Config(), FLAGS)
    (tmp_path / "x.toml").write_bytes(b"\xff")
    with pytest.raises(RkpyError, match="not UTF-8"):
        data.words(str(tmp_path / "x.toml"), Config(), FLAGS)


@given(st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_is_a_pod_or_an_error(tmp_path: Path, text: str) -> None:
    for suffix in ("toml", "json"):
        try:
            read(tmp_path, text, suffix)
        except RkpyError as error:
            assert str(tmp_path) in str(error)


def test_what_is_typed_comes_after_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "pod.toml", TOML)
    request, config = run.parse("run", ["--stop-timeout=5", f"--pod-file={path}", "--port=1:1"], FLAGS)
    assert request.flags.get("stop-timeout") == "5"
    assert request.flags.all("port") == ["8080:80", "53:53/udp", "1:1"]
    assert [image.reference for image in request.images] == ["example.com/web", "other"]
    assert request.images[0].arguments == ["serve", "--port=80", ""]
    assert config.data_dir == "/data"
    with pytest.raises(UsageError, match="cannot be combined with images"):
        run.parse("run", [f"--pod-file={path}", "image"], FLAGS)
    with pytest.raises(UsageError, match="at least one image"):
        run.parse("run", [f"--pod-file={write(tmp_path / 'empty.toml', '')}"], FLAGS)


def test_a_large_file_takes_no_time(tmp_path: Path) -> None:
    begun = time.process_time()
    with pytest.raises(RkpyError):
        read(tmp_path, json.dumps({f"key-{number}": 1 for number in range(200_000)}), "json")
    assert time.process_time() - begun < 20
