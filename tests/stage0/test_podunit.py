"""The unit that would run a pod."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aci import pod_manifest
from aci.pod_manifest import PodManifest, RuntimeApp, RuntimeImage
from stage0 import grammar, invocation, main, options, runflags
from stage0.pods import Pods


@pytest.fixture(autouse=True)
def named_rkpy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A program that systemd finds, in a directory with images."""
    monkeypatch.setattr(invocation, "command", lambda: ("rkpy",))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "web.aci").touch()


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main.main(["systemd", *words]) == 0, capsys.readouterr()
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main.main(["systemd", *words]) == 254
    out, err = capsys.readouterr()
    assert out == ""
    return err


def value(unit: str, key: str) -> str:
    (found,) = (line.partition("=")[2] for line in unit.splitlines() if line.startswith(f"{key}="))
    return found


def test_the_whole_of_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert (
        printed(capsys, "--pod-name=web", "--port", "8080:80", "./web.aci", "--memory=64M", "--", "-v", "a b")
        == f"""\
[Unit]
Description=Pod web
Documentation=man:rkpy-run(1)
After=network.target

[Service]
Type=notify
NotifyAccess=main
Slice=machine.slice
Delegate=yes
KillMode=mixed
TimeoutStopSec=35
SuccessExitStatus=143
SyslogIdentifier=%N
TasksMax=16384
ExecStart=rkpy run --pod-name=web --port=8080:80 {tmp_path}/web.aci --memory=64M -- -v "a b"
ExecStopPost=-rkpy gc --quiet --mark-only --keep-last=web:5
Restart=on-failure

[Install]
WantedBy=multi-user.target
"""
    )


def test_systemd_accepts_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("needs systemd-analyze")
    unit = printed(capsys, "docker://redis:7", "--exec=/bin/sh", "--", "-c", "echo \"$HOME\" 100% 'x' \\; # \n ;", "ü")
    (tmp_path / "pod.service").write_text(unit.replace("=rkpy ", "=true ").replace("=-rkpy ", "=-true "))
    done = subprocess.run(
        [analyze, "verify", "--man=no", tmp_path / "pod.service"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_paths_become_absolute_and_nothing_else_does(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = (
        "--set-env-file=env",
        "--set-env-file=-no/env",
        "--dir",
        "data",
        "oci:lay:1",
        "web.aci",
        "--signature=s",
        "example.com/x",
        "--",
        "./a",
    )
    command = value(printed(capsys, *words), "ExecStart")
    assert command == (
        f"rkpy run --set-env-file={tmp_path}/env --set-env-file=-{tmp_path}/no/env --dir={tmp_path}/data "
        f"oci:{tmp_path}/lay:1 {tmp_path}/web.aci --signature={tmp_path}/s example.com/x -- ./a"
    )


def test_arguments_end_and_another_image_follows(capsys: pytest.CaptureFixture[str]) -> None:
    command = value(printed(capsys, "a.com/a", "--", "--net", "---", "a.com/b", "--", "---x"), "ExecStart")
    assert command == "rkpy run a.com/a -- --net --- a.com/b -- ---x"


def test_garbage_is_collected_where_the_pods_are(capsys: pytest.CaptureFixture[str]) -> None:
    unit = printed(capsys, "--dir=/srv/rkpy", "a.com/a")
    assert value(unit, "ExecStopPost") == "-rkpy --dir=/srv/rkpy gc --quiet --mark-only"


@pytest.mark.parametrize(
    ("words", "waits"),
    [
        (("docker://redis",), True),
        (("example.com/a",), True),
        (("https://example.com/a.aci",), True),
        (("./web.aci",), False),
        (("--pull-policy=never", "example.com/a"), False),
        (("--store-only", "example.com/a"), False),
        (("--pull-policy=update", "--store-only=false", "docker://redis"), True),
    ],
)
def test_it_waits_for_the_network_when_images_may_have_to_be_fetched(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], waits: bool
) -> None:
    assert ("After=network-online.target" in printed(capsys, *words)) is waits


@pytest.mark.parametrize("words", [("--reload-signal=HUP", "a.com/a"), ("a.com/a", "a.com/b", "--reload-signal=USR1")])
def test_it_can_be_reloaded_when_an_app_can(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    unit = printed(capsys, "--dir=/srv/$x", *words)
    assert value(unit, "ExecReload") == "rkpy --dir=/srv/$$x reload --main-pid=${MAINPID}"
    assert "ExecReload" not in printed(capsys, "a.com/a", "--reload-signal=")


def test_the_unit_of_a_pod_says_how_it_was_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["rkpy"])
    app = RuntimeApp("app", RuntimeImage("sha512-" + "0" * 128, "", ()), annotations=(("rkpy/reload-signal", "10"),))
    manifest = PodManifest((app,), annotations=(("rkpy/stop-timeout", "20"),))
    typed = grammar.parse(
        ["--net=none", "--dns=9.9.9.9", "--hostname=a b", "--set-credential=key:hunter2", "--interactive"],
        options.table(options.RUNTIME),
    )
    with Pods(f"{tmp_path}/data/pods").create() as pod:
        pod.to_prepare()
        (Path(pod.path) / "pod").write_text(pod_manifest.dumps(manifest))
        runflags.record(pod.path, typed.flags)
        pod.to_prepared()
    data = f"--dir={tmp_path}/data"
    unit = printed(capsys, data, pod.uuid)
    assert value(unit, "ExecStart") == f'rkpy {data} start --net=none --dns=9.9.9.9 "--hostname=a b" {pod.uuid}'
    assert value(unit, "ExecReload") == f"rkpy {data} reload --main-pid=${{MAINPID}}"
    assert value(unit, "TimeoutStopSec") == "55"
    assert main.main(["systemd", data, "--net=host", "--set-credential=key:x", pod.uuid]) == 0
    out, err = capsys.readouterr()
    assert f'start --net=host --dns=9.9.9.9 "--hostname=a b" --set-credential=key:x {pod.uuid}' in out
    assert err == ""
    assert main.main(["systemd", data, pod.uuid]) == 0
    assert "--set-credential=key, of which the value is not kept" in capsys.readouterr().err


def test_systemd_waits_longer_than_the_pod(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert value(printed(capsys, "--stop-timeout=5m", "a.com/a"), "TimeoutStopSec") == "615"
    app = RuntimeApp("app", RuntimeImage("sha512-" + "0" * 128, "", ()))
    annotations = (("rkpy/stop-timeout", "20"), ("rkpy/pod-name", "web"))
    (tmp_path / "manifest").write_text(pod_manifest.dumps(PodManifest((app,), annotations=annotations)))
    unit = printed(capsys, f"--pod-manifest={tmp_path}/manifest")
    assert value(unit, "TimeoutStopSec") == "55"
    assert value(unit, "Description") == "Pod web"
    assert value(unit, "ExecStopPost") == "-rkpy gc --quiet --mark-only --keep-last=web:5"
    assert value(printed(capsys, f"--pod-manifest={tmp_path}/manifest", "--stop-timeout=5"), "TimeoutStopSec") == "25"


def test_the_unit_of_a_pod_file_is_as_the_file_says(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What of it the unit has to know; the rest is read when it runs."""
    path = tmp_path / "web.toml"
    pod = 'pod-name = "web"\nstop-timeout = "5m"\n[[app]]\nimage = "a.com/a"\n'
    path.write_text(pod)
    unit = printed(capsys, f"--pod-file={path}")
    assert value(unit, "ExecStart") == f"rkpy run --pod-file={path}"
    assert value(unit, "Description") == "Pod web"
    assert value(unit, "TimeoutStopSec") == "615"
    assert value(unit, "ExecStopPost") == "-rkpy gc --quiet --mark-only --keep-last=web:5"
    assert "After=network-online.target" in unit
    assert "ExecReload" not in unit
    assert value(printed(capsys, f"--pod-file={path}", "--stop-timeout=5"), "TimeoutStopSec") == "25"
    path.write_text(f'{pod}reload-signal = "HUP"\n')
    assert "ExecReload" in printed(capsys, f"--pod-file={path}")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "must provide a pod UUID"),
        (("--nonsense", "a.com/a"), "unknown flag: --nonsense"),
        (("--net=a/b", "a.com/a"), "cannot be the name of a network"),
        (("--port=x", "a.com/a"), "--port"),
        (("--volume=x", "a.com/a"), "--volume"),
        (("--stop-timeout=soon", "a.com/a"), "soon"),
        (("a.com/a", "--restart=often"), "--restart=often"),
        (("a.com/a", "--memory=much"), "much"),
        (("--interactive", "a.com/a"), "a unit has no terminal"),
        (("--detach", "a.com/a"), "the unit runs the pod"),
        (("--set-env=x", "a.com/a"), "set-env"),
        (("A B",), "A B"),
    ],
)
def test_what_run_would_refuse_is_refused(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], why: str) -> None:
    assert why in refused(capsys, *words)
