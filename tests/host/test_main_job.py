"""The main job as a user does it: fetch, verify, run, look, stop, enter, remove; all through the command line."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import images
from tests.gpg import Signer, signer
from tests.host.commands import ROOT, Rkpy
from tests.host.oci import build_oci

DEADLINE = 300.0


@pytest.fixture
def rkpy(tmp_path: Path) -> Iterator[Rkpy]:
    command = Rkpy(tmp_path)
    yield command
    for pod in command.pods():
        command("stop", "--force", pod.name)
    _wait(lambda: not any(_state(command, pod.name) == "running" for pod in command.pods()))
    assert command("gc", "--grace-period=0s", "--expire-prepared=0s").status == 0
    assert not command.pods()


@pytest.fixture
def aci(tmp_path: Path) -> str:
    app = {
        "exec": ["/bin/sh", "-c", "echo $GREETING; id -u"],
        "user": "user",
        "group": "user",
        "environment": [{"name": "GREETING", "value": "from the image"}],
        "mountPoints": [{"name": "data", "path": "/data"}],
        "ports": [{"name": "http", "protocol": "tcp", "port": 80}],
    }
    return images.make_aci(str(tmp_path / "app.aci"), images.manifest(app=app), images.busybox_files())


@pytest.fixture(scope="module")
def gpg() -> Iterator[Signer]:
    with signer() as made:
        yield made


def _wait(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def _state(rkpy: Rkpy, uuid: str) -> str:
    found = json.loads(rkpy.ok("list", "--format=json"))
    return next((pod["state"] for pod in found if pod["name"] == uuid), "")


def _running(rkpy: Rkpy, *words: object) -> tuple[subprocess.Popen[str], str]:
    """A pod that has said `up`, and its UUID."""
    file = rkpy.directory / "uuid"
    process = rkpy.start("--insecure-options=image", "run", "--stage1=fly", f"--uuid-file-save={file}", *words)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "up\n", (line, process.stderr.read() if process.stderr else "")
    return process, file.read_text().strip()


# Fetching and running


def test_fetch_prints_a_short_id_and_full_prints_it_whole(rkpy: Rkpy, aci: str) -> None:
    short = rkpy.ok("--insecure-options=image", "fetch", aci).strip()
    full = rkpy.ok("--insecure-options=image", "fetch", "--full", aci).strip()
    assert re.fullmatch(r"sha512-[0-9a-f]{32}", short)
    assert re.fullmatch(r"sha512-[0-9a-f]{128}", full)
    assert full.startswith(short)


def test_run_by_path_by_id_and_by_name(rkpy: Rkpy, aci: str) -> None:
    image_id = rkpy.ok("--insecure-options=image", "fetch", aci).strip()
    for reference in (
        aci,
        image_id,
        image_id[:20],
        "example.com/app",
        "example.com/app:1",
        "example.com/app,version=1",
    ):
        done = rkpy.fly(reference)
        assert (done.status, done.out) == (0, "from the image\n1000\n"), (reference, done)


def test_the_status_of_the_app_is_the_status_of_run(rkpy: Rkpy, aci: str) -> None:
    assert rkpy.fly(aci, "--exec=/bin/sh", "--", "-c", "exit 7").status == 7
    assert rkpy.fly(aci, "--exec=/bin/sh", "--", "-c", "kill -9 $$").status == -signal.SIGKILL
    assert rkpy.fly(aci, "--exec=/bin/nothing").status == 127
    assert rkpy.fly(aci, "--exec=/etc/passwd").status == 126


def test_flags_may_come_before_the_command(rkpy: Rkpy, aci: str) -> None:
    done = rkpy("--insecure-options=image", "--stage1=fly", "--net=host", "run", aci, "--exec", "/bin/echo", "--", "hi")
    assert (done.status, done.out) == (0, "hi\n")


def test_environment_in_the_documented_order(rkpy: Rkpy, aci: str, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("A=file\nB=file\nC=file\n")
    words = [f"--set-env-file={tmp_path / 'env'}", "--set-env=B=flag", "--set-env=C=flag", "--inherit-env"]
    rkpy.ok("--insecure-options=image", "fetch", aci)
    done = rkpy(
        "run", "--stage1=fly", *words, "example.com/app", "--environment=C=own", "--exec=/bin/env",
        GREETING="from the caller", CALLERS="seen",
    )  # fmt: skip
    seen = dict(line.split("=", 1) for line in done.out.splitlines())
    expected = {"A": "file", "B": "flag", "C": "own", "GREETING": "from the image", "CALLERS": "seen"}
    assert {name: seen.get(name) for name in expected} == expected
    assert seen["AC_APP_NAME"] == "app"
    without = rkpy("run", "--stage1=fly", "example.com/app", "--exec=/bin/env", CALLERS="seen")
    assert "CALLERS" not in without.out


def test_identity_and_working_directory_flags(rkpy: Rkpy, aci: str) -> None:
    done = rkpy.fly(
        aci, "--user=root", "--group=user", "--supplementary-gids=2000,5", "--working-dir=/etc", "--exec=/bin/sh",
        "--", "-c", "id; pwd",
    )  # fmt: skip
    assert done.out == "uid=0(root) gid=1000(user) groups=5,2000(extra)\n/etc\n"


def test_volumes_and_mounts(rkpy: Rkpy, aci: str, tmp_path: Path) -> None:
    host = tmp_path / "host"
    host.mkdir()
    (host / "file").write_text("of the host\n")
    script = "cat /data/file; echo x > /data/new; touch /other/here && stat -c '%a %u %g' /other; ls /twice"
    done = rkpy.fly(
        f"--volume=data,kind=host,source={host},readOnly=true", "--volume=other,kind=empty,mode=1777,uid=5,gid=6",
        "--mount=volume=data,target=/twice", aci, "--mount=volume=other,target=/other",
        "--exec=/bin/sh", "--", "-c", script,
    )  # fmt: skip
    assert done.out == "of the host\n1777 5 6\nfile\n"
    assert "Read-only file system" in done.err
    assert sorted(os.listdir(host)) == ["file"]


def test_a_mount_point_of_the_image_can_be_read_only(rkpy: Rkpy, tmp_path: Path) -> None:
    points = [{"name": "data", "path": "/data", "readOnly": True}]
    app = {"exec": ["/bin/touch", "/data/new"], "user": "0", "group": "0", "mountPoints": points}
    path = images.make_aci(str(tmp_path / "a.aci"), images.manifest(app=app), images.busybox_files())
    volume = "--volume=data,kind=empty"
    assert "Read-only file system" in rkpy.fly(volume, path).err
    assert "Read-only file system" in rkpy.fly(volume, path, "--mount=volume=data,target=/data").err


def test_no_overlay_copies_the_files(rkpy: Rkpy, aci: str) -> None:
    script = "echo changed > /etc/passwd; cat /etc/passwd"
    done = rkpy.fly("--no-overlay", aci, "--user=root", "--exec=/bin/sh", "--", "-c", script)
    assert done.out == "changed\n"
    (pod,) = rkpy.pods()
    assert (pod / "rootfs" / "app" / "etc" / "passwd").read_text() == "changed\n"
    assert rkpy.fly("example.com/app", "--exec=/bin/cat", "--", "/etc/group").out.startswith("root:")
    assert "root:x:0:0" in rkpy.fly("example.com/app", "--exec=/bin/cat", "--", "/etc/passwd").out


def test_prepare_and_run_prepared_once(rkpy: Rkpy, aci: str) -> None:
    uuid = rkpy.ok("--insecure-options=image", "prepare", "--stage1=fly", aci).strip()
    assert rkpy.ok("status", uuid).startswith("state=prepared\n")
    assert rkpy("run-prepared", uuid[:8]).out == "from the image\n1000\n"
    assert "is not prepared: it is exited" in rkpy.refused("run-prepared", uuid)


def test_a_pod_manifest_runs_as_it_is(rkpy: Rkpy, aci: str, tmp_path: Path) -> None:
    image_id = rkpy.ok("--insecure-options=image", "fetch", "--full", aci).strip()
    app = {"exec": ["/bin/echo", "from the manifest"], "user": "0", "group": "0"}
    manifest = {
        "acVersion": "0.8.11",
        "acKind": "PodManifest",
        "apps": [{"name": "a", "image": {"id": image_id}, "app": app}],
    }
    (tmp_path / "pod.json").write_text(json.dumps(manifest))
    done = rkpy("run", "--stage1=fly", f"--pod-manifest={tmp_path / 'pod.json'}")
    assert (done.status, done.out) == (0, "from the manifest\n")
    assert "cannot be combined" in rkpy.refused("run", "--stage1=fly", f"--pod-manifest={tmp_path / 'pod.json'}", aci)


def test_arguments_follow_the_exec_of_an_aci(rkpy: Rkpy, tmp_path: Path) -> None:
    app = {"exec": ["/bin/echo", "one"], "user": "0", "group": "0"}
    path = images.make_aci(str(tmp_path / "echo.aci"), images.manifest(app=app), images.busybox_files())
    assert rkpy.fly(path, "--", "two", "--three", "--").out == "one two --three --\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "must provide at least one image or specify the pod manifest"),
        (["run", "--stage1=warp", "x"], 'no stage1 flavour called "warp"'),
        (["run", "--stage1=fly", "/nonexistent.aci"], "open /nonexistent.aci: no such file or directory"),
        (["run", "--stage1=fly", "no-such-image-here"], "discovery failed"),
        (["run", "--stage1=fly", "sha512-abcdef"], 'no image with the ID "sha512-abcdef"'),
        (["run", "--stage1=fly", "--volume=x", "ACI"], "--volume=x"),
        (["run", "--stage1=fly", "ACI", "--mount=volume=no,target=/x"], 'there is no volume "no"'),
        (["run", "--stage1=fly", "ACI", "ACI"], 'app name "app" is used twice'),
        (["run", "--stage1=fly", "ACI", "ACI", "--name=two"], "fly runs one app per pod"),
        (["run", "--stage1=fly", "--private-users", "ACI"], "fly has no user namespaces"),
        (["prepare", "--stage1=fly", "--private-users", "ACI"], "fly has no user namespaces"),
        (["run", "--stage1=fly", "--ipc=private", "ACI"], "fly has no IPC namespaces"),
        (["run", "--stage1=fly", "--ipc=host", "ACI"], "--ipc=host"),
        (["run", "--stage1=fly", "--pod-manifest=x", "--user-label=a=b"], "cannot be combined with --user-label"),
        (["run", "--stage1=fly", "--pod-manifest=x", "--no-store"], "cannot be combined with --no-store"),
        (["run", "--stage1=fly", "ACI", "--caps-retain=CAP_KILL"], "fly cannot enforce --caps-retain"),
        (["run", "--stage1=fly", "ACI", "--memory=16m"], "--memory=16m"),
        (["run", "--stage1=fly", "ACI", "--stdin=tty"], "fly has no --stdin"),
        (["run", "--stage1=fly", "ACI", "--stdout=log"], "fly has no --stdout"),
        (["run", "--stage1=fly", "ACI", "--stdout=nowhere"], "--stdout=nowhere: not one of log"),
        (["run", "--stage1=fly", "ACI", "--restart=sometimes"], "--restart=sometimes"),
        (["run", "--stage1=fly", "ACI", "--stop-signal=SIGNOT"], '--stop-signal: "SIGNOT" is no signal'),
        (["run", "--stage1=fly", "ACI", "--device=null"], "--device=null: devices are named by absolute paths"),
        (["run", "--stage1=fly", "ACI", "--annotation=rkpy/devices=[[1]]"], "annotation rkpy/devices"),
        (["run", "--stage1=fly", "--pod-name=Web", "ACI"], '"Web" is not an AC name'),
        (["run", "--stage1=fly", "--pod-name=cafebabe-1", "ACI"], "looks like the UUID of a pod"),
        (["run", "--stage1=fly", "--exit-policy=never", "ACI"], "--exit-policy=never"),
        (["run", "--stage1=fly", "--stop-timeout=soon", "ACI"], 'invalid duration "soon"'),
        (["start"], "must provide exactly one pod UUID"),
        (["start", "abcd"], 'no matches found for "abcd"'),
        (["run", "--stage1=fly", "--port=no:80", "ACI"], "no image of this pod has a port of that name"),
        (["run", "--stage1=fly", "--pull-policy=always", "ACI"], "--pull-policy=always"),
        (["run", "--stage1=fly", "--volume=data,kind=host,source=/nonexistent", "ACI"], "/nonexistent"),
        (["run-prepared"], "must provide exactly one pod UUID"),
        (["run-prepared", "abcd"], 'no matches found for "abcd"'),
        (["fetch"], "must provide at least one image"),
        (["fetch", "docker://127.0.0.1:1/app"], "127.0.0.1:1"),
        (["fetch", "ACI", "--", "x"], "have no meaning here"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_pod(rkpy: Rkpy, aci: str, words: list[str], message: str) -> None:
    line = rkpy.refused("--insecure-options=image", *(aci if word == "ACI" else word for word in words))
    assert line.startswith(f"rkpy: {words[0]}: ")
    assert message in line
    assert rkpy.pods() == []


def test_ignored_fields_are_warned_about(rkpy: Rkpy, tmp_path: Path) -> None:
    isolators = [
        {"name": "os/linux/oom-score-adj", "value": 500},
        {"name": "example.com/unknown", "value": {"any": "thing"}},
    ]
    ports = [{"name": "http", "protocol": "tcp", "port": 80}]
    app = {"exec": ["/bin/true"], "user": "0", "group": "0", "isolators": isolators, "ports": ports}
    path = images.make_aci(str(tmp_path / "a.aci"), images.manifest(app=app), images.busybox_files())
    done = rkpy.fly("--hostname=elsewhere", "--dns=192.0.2.1", "--hosts-entry=192.0.2.1=a", "--port=http:80", path)
    assert done.status == 0
    for word in (
        "os/linux/oom-score-adj",
        "example.com/unknown",
        "elsewhere",
        "--dns",
        "--hosts-entry",
        '--port of "http"',
    ):
        assert any(word in line and "warning" in line for line in done.err.splitlines()), done.err


def test_what_an_import_could_not_keep_is_said(rkpy: Rkpy, tmp_path: Path) -> None:
    path = tmp_path / "a.aci"
    with tarfile.open(path, "w") as archive:
        for name, content, xattrs in (
            ("manifest", json.dumps(images.manifest()).encode(), {}),
            ("rootfs/file", b"", {"SCHILY.xattr.trusted.overlay.opaque": "y"}),
        ):
            entry = tarfile.TarInfo(name)
            entry.size, entry.pax_headers = len(content), xattrs
            archive.addfile(entry, io.BytesIO(content))
    done = rkpy("--insecure-options=image", "fetch", path)
    assert done.status == 0, done
    assert done.err.startswith("rkpy: warning: "), done
    assert "trusted.overlay.opaque" in done.err


# Trust


def test_signed_images_run_and_others_do_not(rkpy: Rkpy, aci: str, gpg: Signer, tmp_path: Path) -> None:
    key, other = gpg.key(), gpg.key("Other <other@example.com>")
    (tmp_path / "key.pub").write_bytes(gpg.export(key))
    assert f"open {aci}.asc: no such file or directory" in rkpy.refused("run", "--stage1=fly", aci)
    gpg.sign(key, aci)
    assert key[-16:] in rkpy.refused("run", "--stage1=fly", aci).lower()
    rkpy.ok("trust", "--prefix=example.org", "--skip-fingerprint-review", tmp_path / "key.pub")
    assert "not trusted" in rkpy.refused("run", "--stage1=fly", aci)
    rkpy.ok("trust", "--prefix=example.com", "--skip-fingerprint-review", tmp_path / "key.pub")
    assert rkpy.images() == []
    assert rkpy("run", "--stage1=fly", aci).out == "from the image\n1000\n"
    (pod,) = rkpy.pods()
    assert rkpy.ok("status", pod.name).endswith(f"signed-app={key}\n")

    tampered = tmp_path / "tampered.aci"
    data = bytearray(Path(aci).read_bytes())
    data[len(data) // 2] ^= 1
    tampered.write_bytes(data)
    assert "no such file" in rkpy.refused("fetch", tampered)
    refusal = rkpy.refused("fetch", tampered, f"--signature={aci}.asc")
    assert str(tampered) in refusal
    elsewhere = gpg.sign(other, aci, to=str(tmp_path / "other.asc"))
    assert other[-16:] in rkpy.refused("fetch", aci, f"--signature={elsewhere}").lower()
    assert len(rkpy.images()) == 1
    assert os.listdir(rkpy.data / "cas" / "tmp") == []


def test_oci_archives_and_layouts_are_verified_too(rkpy: Rkpy, oci_archive: str, gpg: Signer, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    subprocess.run(
        ["skopeo", "copy", "-q", f"oci-archive:{oci_archive}", f"oci:{layout}:example.com/oci:1"], check=True
    )
    key = gpg.key()
    (tmp_path / "key.pub").write_bytes(gpg.export(key))
    rkpy.ok("trust", "--prefix=example.com", "--skip-fingerprint-review", tmp_path / "key.pub")
    for reference, signed in ((oci_archive, oci_archive), (f"oci:{layout}", str(layout / "index.json"))):
        assert f"open {signed}.asc: no such file or directory" in rkpy.refused("fetch", reference)
        gpg.sign(key, signed, to=str(tmp_path / "signature"))
        rkpy.ok("fetch", reference, f"--signature={tmp_path / 'signature'}")
    assert rkpy("run", "--stage1=fly", "example.com/oci:1").out == "entry cmd\n"


@pytest.fixture(scope="module")
def oci_archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small image with an entrypoint and a command, made by buildah."""
    directory = tmp_path_factory.mktemp("oci")
    root = directory / "root"
    for name, content in images.busybox_files().items():
        place = root / name
        (place if name.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        if isinstance(content, str) and content.startswith("->"):
            place.symlink_to(content[2:])
        elif not name.endswith("/"):
            place.write_bytes(content if isinstance(content, bytes) else content.encode())
            place.chmod(0o755)
    return build_oci(directory, str(root), ["--entrypoint", '["/bin/echo", "entry"]', "--cmd", "cmd"])


def test_arguments_take_the_place_of_an_oci_images_cmd(rkpy: Rkpy, oci_archive: str) -> None:
    assert rkpy.fly(f"oci-archive:{oci_archive}").out == "entry cmd\n"
    assert rkpy.fly(oci_archive, "--", "other", "words").out == "entry other words\n"
    assert rkpy.fly(oci_archive, "--exec=/bin/echo", "--", "only").out == "only\n"


# Life


def test_list_and_status_of_a_running_pod(rkpy: Rkpy, aci: str) -> None:
    process, uuid = _running(rkpy, aci, "--exec=/bin/sh", "--", "-c", "echo up; exec sleep 1000")
    row = rkpy.ok("list", "--full", "--no-legend").split("\t")
    assert row[0] == uuid
    assert "running" in row
    status = rkpy.ok("status", uuid)
    assert "state=running\n" in status
    assert f"pid={process.pid}\n" in status
    assert rkpy.ok("status", "--format=json", uuid)
    assert "example.com/app" in rkpy.ok("cat-manifest", uuid[:6])
    assert rkpy("rm", uuid).status == 254
    assert rkpy.ok("stop", uuid) == f'"{uuid}"\n'
    assert process.wait(DEADLINE) == -signal.SIGTERM
    _close(process)
    assert "state=exited\n" in rkpy.ok("status", "--wait=60s", uuid)
    assert rkpy.ok("rm", uuid) == f'"{uuid}"\n'
    assert rkpy.pods() == []


def _close(process: subprocess.Popen[str]) -> None:
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def test_enter_a_running_pod(rkpy: Rkpy, aci: str) -> None:
    process, uuid = _running(rkpy, aci, "--exec=/bin/sh", "--", "-c", "echo up; exec sleep 1000")
    done = rkpy("enter", uuid, "/bin/sh", "-c", "id -u; echo $GREETING; exit 5")
    assert (done.status, done.out) == (5, "1000\nfrom the image\n"), done
    assert "BusyBox" in rkpy("enter", uuid, "ls", "--help").err  # the command's own flag, not ours
    assert rkpy("stop", "--force", uuid).status == 0
    assert process.wait(DEADLINE) == -signal.SIGKILL
    _close(process)
    assert "running" in rkpy.refused("enter", uuid, "/bin/true")


def test_kill_9_at_any_moment_leaves_nothing_gc_cannot_clean(rkpy: Rkpy, aci: str) -> None:
    rkpy.ok("--insecure-options=image", "fetch", aci)
    for step in range(25):
        process = rkpy.start("run", "--stage1=fly", "example.com/app", "--exec=/bin/sleep", "--", "1000")
        time.sleep(step * 0.006)
        process.kill()
        process.wait()
        _close(process)
    assert rkpy("run", "--stage1=fly", "example.com/app").status == 0
    rkpy.ok("gc", "--grace-period=0s", "--expire-prepared=0s")
    assert rkpy.pods() == []
    assert str(rkpy.data) not in Path("/proc/self/mountinfo").read_text()


def test_the_app_gets_one_descriptor_more_the_lock_it_lives_by(rkpy: Rkpy, aci: str) -> None:
    done = rkpy.fly(aci, "--user=root", "--exec=/bin/sh", "--", "-c", "ls -l /proc/self/fd")
    names = [line.split(" -> ")[1] for line in done.out.splitlines() if " -> " in line]
    others = [name for name in names if not name.startswith(("pipe:", "/dev/null", "/proc/"))]
    assert [name.rpartition("/")[2] for name in others] == ["lock"], names


def test_a_stored_image_is_marked_as_used_and_takes_no_signature(rkpy: Rkpy, aci: str) -> None:
    image_id = rkpy.ok("--insecure-options=image", "fetch", "--full", aci).strip()
    mark = rkpy.data / "cas" / "used" / image_id
    for reference in ("example.com/app", image_id):
        os.utime(mark, (1, 1))
        assert rkpy("run", "--stage1=fly", reference).status == 0
        assert mark.stat().st_mtime > 1
        refusal = rkpy.refused("run", "--stage1=fly", reference, f"--signature={aci}.asc")
        assert f"{reference} is in the store already" in refusal


def test_removed_images_stay_for_pods_that_use_them(rkpy: Rkpy, aci: str) -> None:
    process, uuid = _running(rkpy, aci, "--exec=/bin/sh", "--", "-c", "echo up; exec sleep 1000")
    rkpy.ok("image", "rm", "example.com/app")
    kept = rkpy.ok("image", "gc", "--grace-period=0s")
    assert rkpy("enter", uuid, "/bin/cat", "/etc/group").out.startswith("root:"), kept
    rkpy.ok("stop", "--force", uuid)
    process.wait(DEADLINE)
    _close(process)
    rkpy.ok("rm", uuid)
    rkpy.ok("image", "gc", "--grace-period=0s")
    assert list((rkpy.data / "cas" / "layer").iterdir()) == []


def test_the_demo_shows_the_main_job(tmp_path: Path) -> None:
    environment = {**os.environ, "VENV": str(tmp_path / "venv")}
    demo = ["sh", str(ROOT / "docs" / "demo.sh")]
    done = subprocess.run(demo, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done
    assert "hello from hello, run by uid 1000" in done.stdout
    assert "my own words\nexit status 3" in done.stdout
    assert "\nweb\nweb\nUUID" in done.stdout
    assert "default:ip4=172.16.28." in done.stdout
    refusals = [line for line in done.stderr.splitlines() if line.startswith("rkpy: run: ")]
    assert len(refusals) == 2, done.stderr
    assert "hello.aci" in refusals[0]
    assert "tampered.aci" in refusals[1]


def test_an_app_does_not_get_the_lock_of_its_pod_for_a_closed_stream(rkpy: Rkpy, aci: str) -> None:
    words = rkpy.command("--insecure-options=image", "run", "--stage1=fly", aci, "--exec=/bin/sh", "--", "-c")
    done = subprocess.run(
        ["sh", "-c", '"$@" <&- 2>&-', "sh", *words, "ls -l /proc/$$/fd"], stdout=subprocess.PIPE, text=True,
        env=rkpy.environment(), timeout=120,
    )  # fmt: skip
    assert done.returncode == 0
    streams = dict(re.findall(r" ([02]) -> (\S+)", done.stdout))
    assert streams == {"0": "/dev/null", "2": "/dev/null"}


def test_a_disk_without_room_for_another_file_is_one_line(rkpy: Rkpy) -> None:
    """Wherever on the way to the app the file system has no inode left."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=300", "rkpy-test", rkpy.directory], check=True)
    try:
        image = images.make_aci(str(rkpy.directory / "app.aci"), images.manifest(), images.busybox_files())
        rkpy.ok("--insecure-options=image", "fetch", image)
        assert rkpy.fly("example.com/app", "--exec=/bin/true").status == 0
        for free in range(0, 20, 2):
            filling = [rkpy.directory / f"filling-{n}" for n in range(os.statvfs(rkpy.directory).f_ffree - free)]
            for file in filling:
                file.touch()
            done = rkpy.fly("example.com/app", "--exec=/bin/sh", "--", "-c", "exit 7")
            for file in filling:
                file.unlink()
            if done.status == 7:  # That was enough.
                break
            assert (done.status, done.err.count("\n")) == (254, 1), done
            assert "no space left on device" in done.err.lower()
        assert free > 8, done
        rkpy.ok("gc", "--grace-period=0s")
        rkpy.ok("gc", "--grace-period=0s")
    finally:
        subprocess.run(["umount", rkpy.directory], check=True)
