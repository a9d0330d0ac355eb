"""The services pod files become, the generator, and what rkpy unit check says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stage0 import caller, invocation
from stage0.commands import unit
from stage0.podfile import check, search, units
from stage0.podfile.syntax import parse
from tests.host.commands import ROOT
from tests.stage0.podfiles import loaded, write

ANALYZE = shutil.which("systemd-analyze")
PRIVATE = (
    "--private-users is for root: the kernel lets nobody else show files under other IDs "
    "(leave it out: without root a pod is in a user namespace anyway)"
)
WEB = """
[Unit]
Description=The web

[Pod]
Image=i
Network=none
Volume=/srv/a b:/data
StopTimeout=20
ReloadSignal=HUP
Exec=serve "two words"

[Service]
Restart=always
ExecStopPost=/bin/true

[Install]
WantedBy=multi-user.target
"""
EXPECTED = """\
# Made by rkpy's generator from {path}: change that, or drop in beside it.

[Unit]
Documentation=man:rkpy.pod(5) man:rkpy-run(1)
SourcePath={path}
After=network.target
RequiresMountsFor=/var/lib/rkpy "/srv/a b"
Description=The web

[Service]
Type=notify
NotifyAccess=main
Slice=machine.slice
Delegate=yes
KillMode=mixed
TimeoutStopSec=55
SuccessExitStatus=143
SyslogIdentifier=%N
TasksMax=16384
ExecStart=rkpy run \\
    --pod-name=web \\
    --net=none \\
    --reload-signal=HUP \\
    --stop-timeout=20 \\
    "--volume=podfile-0,kind=host,source=/srv/a b" \\
    --mount=volume=podfile-0,target=/data \\
    i \\
    -- serve "two words"
ExecReload=rkpy reload web
ExecStopPost=-rkpy gc --quiet --mark-only --keep-last=web:5
Restart=always
ExecStopPost=/bin/true

[Install]
WantedBy=multi-user.target
"""


@pytest.fixture(autouse=True)
def no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invocation, "command", lambda: ("rkpy",))


def made(path: str) -> str:
    file, parsed, pod = loaded(path)
    assert not pod.mistakes
    return units.text(units.made(file, parsed, pod)[file.unit])


def test_a_unit(tmp_path: Path) -> None:
    path = write(tmp_path / "web.pod", WEB)
    assert made(path) == EXPECTED.format(path=path)


@pytest.mark.parametrize(
    "theirs",
    ["Type=exec", "NotifyAccess=all", "Slice=web.slice", "Delegate=no", "KillMode=control-group", "TimeoutStopSec=5",
     "SyslogIdentifier=x", "ExecStart=/bin/true", "ExecReload=/bin/true", "Restart=always"],
)  # fmt: skip
def test_what_the_file_says_is_said_once(tmp_path: Path, theirs: str) -> None:
    key = theirs.partition("=")[0]
    path = write(tmp_path / "web.pod", f"{WEB.replace('Restart=always', '')}[Service]\n{theirs}\n")
    assert [line for line in made(path).splitlines() if line.startswith(f"{key}=")] == [theirs]


def test_what_is_passed_on_stays_on_its_line(tmp_path: Path) -> None:
    text = "[Pod]\nImage=i\n[Service]\nX-A=a\\ \nX-B=b\\\\\nX-C=\\\t\n[Install]\nX-D=\u00a0\n"
    unit = made(write(tmp_path / "web.pod", text))
    found = parse(unit.encode(), "web.service")
    kept = [(entry.section, entry.key, entry.value) for entry in found.entries if entry.key.startswith("X-")]
    assert kept == [
        ("Service", "X-A", "a\\"),
        ("Service", "X-B", "b\\\\"),
        ("Service", "X-C", "\\"),
        ("Install", "X-D", "\u00a0"),
    ]


@pytest.mark.parametrize(
    ("text", "reloads"),
    [
        ("[App a]\nImage=i\n[App b]\nImage=j\nReloadSignal=USR1\n", True),
        ("[Pod]\nImage=i\nRkpyArgs=--reload-signal=HUP\n", True),
        ("[Pod]\nImage=i\nReloadSignal=HUP\n[Service]\nType=notify-reload\n", False),
        ("[Pod]\nImage=i\nReloadSignal=HUP\n[Service]\nType=notify-reload\nType=notify\n", True),
        ("[Pod]\nImage=i\n", False),
    ],
)
def test_systemd_has_it_reloaded_in_one_way(tmp_path: Path, text: str, reloads: bool) -> None:
    assert ("ExecReload=rkpy reload web" in made(write(tmp_path / "web.pod", text)).splitlines()) is reloads


@pytest.mark.parametrize("key", ["ExecStopPost", "SuccessExitStatus"])
def test_a_list_can_be_emptied(tmp_path: Path, key: str) -> None:
    path = write(tmp_path / "web.pod", f"[Pod]\nImage=i\n[Service]\n{key}=\n{key}=x\n")
    assert [line for line in made(path).splitlines() if line.startswith(f"{key}=")][1:] == [f"{key}=", f"{key}=x"]


SOCKET = """
[Pod]
Image=i
Network=none

[Socket]
ListenStream=8080
FileDescriptorName=http
"""
EXPECTED_SOCKET = """\
# Made by rkpy's generator from {path}: change that, or drop in beside it.

[Unit]
Description=Socket of pod web
Documentation=man:rkpy.pod(5) man:rkpy-run(1)
SourcePath={path}

[Socket]
ListenStream=8080
FileDescriptorName=http

[Install]
WantedBy=sockets.target
"""


def test_a_socket_beside_the_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "web.pod", SOCKET)
    file, parsed, pod = loaded(path)
    texts = {name: units.text(lines) for name, lines in units.made(file, parsed, pod).items()}
    assert texts["web.socket"] == EXPECTED_SOCKET.format(path=path)
    assert "\nRequires=%N.socket\n" in texts["web.service"].partition("[Service]")[0]
    assert "\nSockets=%N.socket\n" in texts["web.service"].partition("[Service]")[2]
    assert "[Install]" not in texts["web.service"]
    assert unit.show([path]) == 0
    assert capsys.readouterr().out == "\n".join(f"# {name}\n{text}" for name, text in texts.items())
    # What the file says of [Install] is the socket's, and of [Unit] the service's.
    write(tmp_path / "web.pod.d/x.conf", "[Unit]\nDescription=Web\n[Install]\nWantedBy=a.target\n")
    file, parsed, pod = loaded(path)
    texts = {name: units.text(lines) for name, lines in units.made(file, parsed, pod).items()}
    assert texts["web.socket"] == EXPECTED_SOCKET.format(path=path).replace("sockets.target", "a.target")
    assert "Description=Web\n" in texts["web.service"]


def test_drop_ins_of_the_service_count_too(tmp_path: Path) -> None:
    path = write(tmp_path / "web.pod", WEB)
    write(tmp_path / "web.pod.d/x.conf", "[Service]\nRestart=no\n[Pod]\nNetwork=\nNetwork=host\n")
    text = made(path)
    assert text.index("Restart=always") < text.index("Restart=no")
    assert "--net=host" in text
    assert "--net=none" not in text


def test_the_data_directory_is_waited_for(tmp_path: Path) -> None:
    path = write(tmp_path / "web.pod", "[Pod]\nImage=i\nGlobalArgs=--dir=/data/pods\n")
    text = made(path)
    assert "RequiresMountsFor=/data/pods\n" in text
    assert "ExecStart=rkpy --dir=/data/pods run " in text
    assert "ExecStopPost=-rkpy --dir=/data/pods gc --quiet --mark-only --keep-last=web:5\n" in text


@pytest.mark.parametrize(("text", "seconds"), [("", 35), ("0", 15), ("1m", 135), ("1500ms", 19), ("%i", 35)])
def test_the_pod_has_time_to_stop(tmp_path: Path, text: str, seconds: int) -> None:
    path = write(tmp_path / "web.pod", f"[Pod]\nImage=i\nStopTimeout={text}\n")
    assert f"TimeoutStopSec={seconds}\n" in made(path)


def test_this_very_program_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invocation, "command", lambda: ("/a b/python", "/x$y/rkpy.py"))
    assert 'ExecStart="/a b/python" /x$$y/rkpy.py run ' in made(write(tmp_path / "web.pod", WEB))


def verify(path: str) -> subprocess.CompletedProcess[str]:
    words = [ANALYZE or "", "verify", "--man=no", path]
    return subprocess.run(words, capture_output=True, text=True)


@pytest.mark.skipif(not ANALYZE, reason="needs systemd-analyze")
@pytest.mark.parametrize("name", ["web", "web@", "web@1"])
def test_systemd_accepts_the_units(tmp_path: Path, name: str) -> None:
    text = (
        WEB.replace("Exec=serve", r"Exec=%% %i '$$' ; \; x ;".replace(" ; ", " ").replace(" ;", "")) + "Environment=\n"
    )
    path = write(
        tmp_path / f"{name}.pod",
        text.replace("[Install]", "[Pod]\nEnvironment='A=\\n' \"B=%%\"\n[Install]").removesuffix("Environment=\n"),
    )
    unit_path = write(
        tmp_path / f"{name if name != 'web@' else 'web@x'}.service", made(path).replace("rkpy ", "/bin/true ")
    )
    done = verify(unit_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not ANALYZE, reason="needs systemd-analyze")
def test_systemd_accepts_the_unit_of_a_broken_file(tmp_path: Path) -> None:
    texts = units.broken(search.PodFile("web", str(tmp_path / "a $b%.pod")), parse(b"[Socket]\n", "x"))
    assert set(texts) == {"web.service", "web.socket"}
    for name, text in texts.items():
        write(tmp_path / name, text.replace("rkpy ", "/bin/true "))
    for name in texts:
        done = verify(str(tmp_path / name))
        assert (done.returncode, done.stderr) == (0, "")


def generate(tmp_path: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The generator as systemd starts it, on pods of ours only."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    words = [sys.executable, "-P", str(ROOT / "rkpy.py"), f"--local-config={tmp_path}/etc",
             f"--system-config={tmp_path}/usr", "unit", "generate", str(out), str(out), str(out)]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(words, capture_output=True, text=True, env=env), out


def tree(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): os.readlink(path) if path.is_symlink() else ""
        for path in directory.rglob("*")
        if not path.is_dir()
    }


def test_the_generator(tmp_path: Path) -> None:
    write(tmp_path / "etc/pods/web.pod", WEB + "Alias=site.service\n")
    write(
        tmp_path / "usr/pods/db@.pod", "[Pod]\nImage=i\n[Install]\nRequiredBy=a.target b.target\nDefaultInstance=one\n"
    )
    (tmp_path / "etc/pods/db@two.pod").symlink_to("../../usr/pods/db@.pod")
    write(tmp_path / "usr/pods/un@.pod", "[Pod]\nImage=i\n[Install]\nWantedBy=a.target\n")
    write(tmp_path / "usr/pods/masked.pod", WEB)
    write(tmp_path / "etc/pods/masked.pod", "")
    done, out = generate(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert tree(out) == {
        "web.service": "",
        "site.service": "web.service",
        "multi-user.target.wants/web.service": "../web.service",
        "db@.service": "",
        "a.target.requires/db@one.service": "../db@.service",
        "b.target.requires/db@one.service": "../db@.service",
        "db@two.service": "",
        "a.target.requires/db@two.service": "../db@two.service",
        "b.target.requires/db@two.service": "../db@two.service",
        "un@.service": "",
    }
    assert (out / "web.service").stat().st_mode & 0o777 == 0o644


def test_what_the_files_become_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    web = write(tmp_path / "etc/pods/web.pod", SOCKET)
    bad = write(tmp_path / "etc/pods/bad.pod", "[Pod]\nImage=\n")
    write(tmp_path / "etc/pods/bad.pod.d/more.conf", "[Pod]\nColour=red\n")
    masked = write(tmp_path / "etc/pods/masked.pod", "")
    assert unit.list_files([f"--local-config={tmp_path}/etc", f"--system-config={tmp_path}/usr", "--no-legend"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["bad.service", "2", "mistakes", bad, "1"],
        ["masked.service", "masked", masked, "0"],
        ["web.service", "good", web, "0"],
        ["web.socket", "good", web, "0"],
    ]


def test_links_of_sockets(tmp_path: Path) -> None:
    write(tmp_path / "etc/pods/web.pod", SOCKET)
    named = "[Install]\nWantedBy=a.target\nAlias=site.socket site.service\n"
    write(tmp_path / "etc/pods/site1.pod", f"{SOCKET}{named}")
    write(tmp_path / "etc/pods/off.pod", f"{SOCKET}[Install]\nWantedBy=\n")
    write(tmp_path / "etc/pods/db@.pod", f"{SOCKET}[Install]\nDefaultInstance=one\n")
    (tmp_path / "etc/pods/db@two.pod").symlink_to("db@.pod")
    write(tmp_path / "etc/pods/un@.pod", SOCKET)
    bad = write(tmp_path / "etc/pods/bad.pod", SOCKET.replace("Stream", "Strem"))
    done, out = generate(tmp_path)
    assert done.stderr.splitlines() == [
        f"rkpy-generator: {bad}:6: [Socket] listens on nothing: ListenStream= is missing, or another of its kind"
    ]
    names = ("web", "site1", "off", "db@", "db@two", "un@", "bad")
    assert tree(out) == {
        **{f"{name}.{kind}": "" for name in names for kind in ("service", "socket")},
        "sockets.target.wants/web.socket": "../web.socket",
        "a.target.wants/site1.socket": "../site1.socket",
        "site.socket": "site1.socket",
        "site.service": "site1.service",
        "sockets.target.wants/db@one.socket": "../db@.socket",
        "sockets.target.wants/db@two.socket": "../db@two.socket",
        "sockets.target.wants/bad.socket": "../bad.socket",
    }
    assert "\nExecStartPre=" in (out / "bad.socket").read_text()
    assert f" unit check {bad}\n" in (out / "bad.socket").read_text()


def test_a_broken_file_beside_a_good_one(tmp_path: Path) -> None:
    bad = write(tmp_path / "etc/pods/bad.pod", "[Pod]\nImagine=x\n[Install]\nWantedBy=a.target\n")
    write(tmp_path / "etc/pods/web.pod", WEB)
    done, out = generate(tmp_path)
    assert done.returncode == 254
    assert done.stderr.splitlines() == [
        f"rkpy-generator: {bad}:1: [Pod] names no image: Image= is missing",
        f"rkpy-generator: {bad}:2: there is no key Imagine= in [Pod]: perhaps Image= is meant",
    ]
    assert " run \\\n    --pod-name=web" in (out / "web.service").read_text()
    assert f" unit check {bad}\n" in (out / "bad.service").read_text()
    assert "TimeoutStartSec=60\n" in (out / "bad.service").read_text()
    assert (out / "a.target.wants/bad.service").exists()


def test_a_broken_configuration_keeps_no_pod_from_its_service(tmp_path: Path) -> None:
    write(tmp_path / "etc/paths.d/x.json", "broken")
    write(tmp_path / "etc/pods/web.pod", WEB)
    done, out = generate(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (out / "web.service").exists()


def test_files_of_quadlets_are_told_of_and_no_mistakes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "etc/pods/web.pod", WEB)
    site = write(tmp_path / "usr/pods/site.container", "[Container]\nImage=i\n")
    data = write(tmp_path / "etc/pods/data.volume", "[Volume]\n")
    said = [
        f"{data}: rkpy reads .pod files only: Volume=data:/PATH makes the volume",
        f"{site}: rkpy reads .pod files only: rename it to site.pod and its [Container] to [Pod]; "
        "rkpy.pod(5) has the keys that differ",
    ]
    done, out = generate(tmp_path)
    assert (done.returncode, done.stderr.splitlines()) == (0, [f"rkpy-generator: {line}" for line in said])
    assert set(tree(out)) == {"web.service", "multi-user.target.wants/web.service"}
    flags = [f"--local-config={tmp_path}/etc", f"--system-config={tmp_path}/usr"]
    assert unit.check([*flags]) == 0
    assert capfd.readouterr().err.splitlines() == said
    assert unit.check([*flags, "web"]) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("environment", [{"SYSTEMD_SCOPE": "user"}, {"SYSTEMD_IN_INITRD": "1"}])
def test_a_generator_of_others_makes_nothing(tmp_path: Path, environment: dict[str, str]) -> None:
    write(tmp_path / "etc/pods/web.pod", WEB)
    done, out = generate(tmp_path, **environment)
    assert (done.returncode, tree(out)) == (0, {})


def test_links_lead_nowhere_else(tmp_path: Path) -> None:
    names = "../../x.target /a.target a.target/x x"
    write(tmp_path / "etc/pods/web.pod", WEB.replace("multi-user.target", names) + "Alias=x.socket ../y.service\n")
    done, out = generate(tmp_path)
    assert done.returncode == 254
    assert done.stderr.count("is not the name of a") == 6
    assert tree(out) == {"web.service": ""}
    assert tree(tmp_path) == {"out/web.service": "", "etc/pods/web.pod": ""}


@pytest.mark.parametrize(
    "line", ["DefaultInstance=../../../y", f"WantedBy={'x' * 300}.target", f"WantedBy={'x' * 245}.target"]
)
def test_a_link_that_cannot_be_is_a_mistake_of_its_file_alone(tmp_path: Path, line: str) -> None:
    bad = write(
        tmp_path / "etc/pods/a@.pod", f"[Pod]\nImage=i\n[Install]\nDefaultInstance=b\n{line}\nRequiredBy=c.target\n"
    )
    write(tmp_path / "etc/pods/web.pod", WEB)
    done, out = generate(tmp_path)
    assert done.returncode == 254
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"rkpy-generator: {bad}:")
    good = {} if "Instance" in line else {"c.target.requires/a@b.service": "../a@.service"}
    web = {"web.service": "", "multi-user.target.wants/web.service": "../web.service"}
    assert tree(out) == {"a@.service": "", **good, **web}
    assert set(tree(tmp_path)) == {"etc/pods/a@.pod", "etc/pods/web.pod", *(f"out/{name}" for name in tree(out))}


def test_a_name_stays_one_word(tmp_path: Path) -> None:
    write(tmp_path / "etc/pods/web.pod", "[Pod]\nImage=i\nPodName=a ; /bin/b $C\nReloadSignal=HUP\n")
    _, out = generate(tmp_path)
    text = (out / "web.service").read_text()
    assert ' reload "a ; /bin/b $$C"\n' in text
    assert 'gc --quiet --mark-only "--keep-last=a ; /bin/b $$C:5"\n' in text


def test_the_generator_loads_nothing_heavy() -> None:
    code = "import sys; import stage0.main, stage0.commands.unit, stage0.podfile.generate; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {
        "click",
        "dataclasses",
        "pathlib",
        "subprocess",
        "ctypes",
        "tempfile",
        "socket",
        "hashlib",
        "toml",
        "urllib",
    }
    assert not heavy & {name.partition(".")[0] for name in loaded.stdout.split()}


@pytest.mark.parametrize("words", [["a", "b"], [], ["a", "b", "c", "d"]])
def test_a_generator_has_one_directory_or_three(words: list[str]) -> None:
    with pytest.raises(Exception, match="one directory, or the three"):
        unit.generate(words)


# rkpy unit check

CHECKED = {
    "PublishPort=x": [(3, 'PublishPort=: --port=x: "" is not a port')],
    "Memory=banana": [(3, 'Memory=: "banana" is not a quantity')],
    "Memory=16m": [(3, "Memory=: --memory=16m: less than 4096 bytes")],
    "StopTimeout=ever": [(3, 'StopTimeout=: invalid duration "ever"')],
    "Environment=a": [(3, 'Environment=: --set-env: "a" is not of the form')],
    "Environment=A=1 A=2": [(3, "Environment=: --set-env: environment variable A is already set")],
    "DNS=none\nDNSSearch=a": [(4, "DNSSearch=: --dns=none leaves no place")],
    "DNSSearch=a\nMemory=x\nDNS=none": [(4, "Memory=: "), (5, "DNS=: --dns=none leaves no place")],
    "PublishPort=80:80\nMemory=1G\nPublishPort=80:81": [(5, "want one port of the host")],
    "Mount=volume=x,target=/y": [(3, 'Mount=: --mount=volume=x,target=/y: there is no volume "x"')],
    "Mount=volume=x,target=/y\nVolume=x,kind=empty": [],
    "Volume=data:/x\nVolume=data:/y": [],
    "Volume=_x:/y": [(3, 'Volume=: --volume=podfile-0,kind=named,source=_x: "_x" is not the name of a volume')],
    "Volume=x,kind=empty\nVolume=x,kind=empty": [(4, 'Volume=: volume "x" is used twice')],
    "CapsRetain=CAP_KILL\nUser=x\nCapsRemove=CAP_KILL": [(5, "exclude each other")],
    "AddCapability=FOO": [(3, 'AddCapability=: there is no capability "CAP_FOO"')],
    "Stage1=lkvm": [(3, 'Stage1=: no stage1 flavour called "lkvm"')],
    "HostName=a_b.%H.": [(3, "HostName=: --hostname=a_b.host.: not a host name")],
    "IPC=x": [(3, "IPC=: --ipc=x: not one of")],
    "Network=none\nNetwork=a": [(4, "none stands alone")],
    "ExitPolicy=x": [(3, "ExitPolicy=: --exit-policy=x: not one of")],
    "Restart=x": [(3, "Restart=: --restart=x: not one of")],
    "StopSignal=x": [(3, 'StopSignal=: --stop-signal: "x" is no signal')],
    "AddDevice=x": [(3, "AddDevice=: --device=x")],
    "Ulimit=x=1": [(3, 'Ulimit=: --ulimit=x=1: there is no limit "x"')],
    "WorkingDir=x": [(3, "WorkingDir=: --working-dir=x: it has to be an absolute path")],
    "Pull=x": [(3, "Pull=: --pull-policy=x: not one of")],
    "PodName=0a364c4c": [(3, "PodName=: --pod-name=0a364c4c: it looks like the UUID")],
    "EnvironmentFile=-/nowhere\nEnvironmentFile=-/dev/null/x": [],
    "EnvironmentFile=-/": [(3, "EnvironmentFile=: open /: is a directory")],
    "EnvironmentFile=/nowhere": [(3, "EnvironmentFile=: open /nowhere: no such file")],
    "GlobalArgs=--insecure-options=x": [(3, 'GlobalArgs=: invalid value "x" for --insecure-options')],
    "RkpyArgs=--foo=1": [(3, "RkpyArgs=: unknown flag: --foo")],
    "RkpyArgs=--memory=1G": [(3, "RkpyArgs=: --memory must follow an image")],
    "LoadCredential=a": [],
    "LoadCredential=a:b": [],
    "LoadCredential=a/b": [(3, "LoadCredential=: --load-credential=a/b: ")],
    "LoadCredential=a:/nowhere": [(3, "LoadCredential=: --load-credential=a: open /nowhere: no such file")],
    "SetCredential=a": [(3, "SetCredential=: --set-credential takes ID:VALUE")],
    "Ready=x": [(3, "Ready=: --ready=x: not one of")],
    "LogDriver=x": [(3, "LogDriver=: --log-driver=x: not one of")],
    "HealthCmd=true": [],
    "HealthInterval=x\nHealthCmd=true": [(3, 'HealthInterval=: ')],
    "HealthOnFailure=x\nHealthCmd=true": [(3, "HealthOnFailure=: ")],
    "HealthRetries=x\nHealthCmd=true": [(3, "HealthRetries=: ")],
    "Seccomp=x": [(3, "Seccomp=: --seccomp=x: mode has to be")],
    "ReloadSignal=KILL": [(3, 'ReloadSignal=: --reload-signal: "KILL" is no signal that an app can catch')],
    "ReloadSignal=HUP\n[Service]\nType=notify-reload\nReloadSignal=SIGHUP": [],
    "ReloadSignal=HUP\n[Service]\nType=notify-reload\nReloadSignal=USR1": [(6, "is ReloadSignal= in [Pod]")],
    "[Service]\nReloadSignal=HUP": [(4, "is ReloadSignal= in [Pod]")],
    "[Service]\nType=notify-reload": [(4, "without ReloadSignal= in [Pod] or [App] a reload ends the pod")],
    "Stage1=fly\n[Service]\nType=notify-reload\nReloadSignal=USR1": [],
    "Network=default\nVolume=/srv:/srv:ro\nTmpfs=/tmp:size=1M\nExec=a $X ${Y} 100%%\nUser=%i": [],
}  # fmt: skip


@pytest.mark.parametrize("text", CHECKED)
def test_check(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "web.pod", f"[Pod]\nImage=example.com/x\n{text}\n")
    # What systemd says of Type=notify-reload depends on which one it is.
    found = check.mistakes(search.at(path, ()), ask_systemd="[Service]" not in text)
    assert [mistake.line for mistake in found] == [line for line, _ in CHECKED[text]], found
    for mistake, (_, message) in zip(found, CHECKED[text], strict=True):
        assert message in mistake.message


def test_check_of_several_apps(tmp_path: Path) -> None:
    text = "[App a]\nImage=x\nMemory=x\n[App b]\nImage=UPPER CASE\n[App c]\nImage=y\n[App]\nImage=y\nAppName=c\n"
    found = check.mistakes(search.at(write(tmp_path / "web.pod", text), ()))
    assert [mistake.line for mistake in found] == [3, 5, 10]
    assert 'app name "c" is used twice' in found[-1].message


def test_check_of_a_drop_in(tmp_path: Path) -> None:
    path = write(tmp_path / "web.pod", "[Pod]\nImage=x\nDNS=none\n")
    dropin = write(tmp_path / "web.pod.d/a.conf", "\n[Pod]\nDNSSearch=a\nfoo\nMemory=1\n")
    found = check.mistakes(search.at(path, ()))
    assert [(mistake.path, mistake.line) for mistake in found] == [(dropin, 3), (dropin, 4), (dropin, 5)]


def test_check_of_a_template_leaves_what_only_instances_know(tmp_path: Path) -> None:
    text = "[Pod]\nImage=x\nEnvironmentFile=/nowhere/%i\nPublishPort=80%i:80\nMemory=x\n"
    template = write(tmp_path / "web@.pod", text)
    assert [mistake.line for mistake in check.mistakes(search.at(template, ()))] == [5]
    instance = write(tmp_path / "web@1.pod", text)
    assert [mistake.line for mistake in check.mistakes(search.at(instance, ()))] == [3, 5]


@pytest.mark.skipif(not ANALYZE, reason="needs systemd-analyze")
@pytest.mark.parametrize("name", ["web", "web@", "web@1"])
def test_what_systemd_says_is_said_of_the_line(tmp_path: Path, name: str) -> None:
    text = "[Unit]\nAfterr=x\n[Pod]\nImage=x\nExec=a b\n[Service]\nRestart=alwyas\nMemoryMax=1G\nExecStop=rel/ative\n"
    found = check.mistakes(search.at(write(tmp_path / f"{name}.pod", text), ()))
    assert [mistake.line for mistake in found] == [2, 7, 9], found
    assert "alwyas" in found[1].message


@pytest.mark.skipif(not ANALYZE, reason="needs systemd-analyze")
@pytest.mark.parametrize("name", ["web", "web@", "web@1"])
def test_what_systemd_says_of_a_socket(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / f"{name}.pod", f"{SOCKET}SocketMod=0600\nBacklog=x\n[Service]\nRestart=x\n")
    found = check.mistakes(search.at(path, ()))
    assert [mistake.line for mistake in found] == [9, 10, 12], found
    assert "SocketMod" in found[0].message
    assert check.mistakes(search.at(write(tmp_path / "good.pod", SOCKET), ())) == []


@pytest.mark.parametrize("where", ["[Pod]\nStage1=kvm\n", "[Pod]\nRkpyArgs=--stage1-name=coreos.com/rkt/stage1-kvm\n"])
def test_a_machine_has_no_socket_of_the_hosts(tmp_path: Path, where: str) -> None:
    path = write(tmp_path / "web.pod", f"{SOCKET}{where}")
    assert [*map(str, check.mistakes(search.at(path, ()), ask_systemd=False))] == [
        f"{path}:6: [Socket]: kvm cannot hand a socket to an app: publish a port, or use another flavour"
    ]


def test_a_masked_file_has_no_mistakes(tmp_path: Path) -> None:
    assert check.mistakes(search.at(write(tmp_path / "web.pod", ""), ())) == []


def test_a_name_no_unit_can_have(tmp_path: Path) -> None:
    found = check.mistakes(search.at(write(tmp_path / "a b.pod", "[Pod]\nImage=x\n"), ()))
    assert ["cannot be the name of a unit" in mistake.message for mistake in found] == [True]


OF_A_USER = """\
[Pod]
Image=i
Stage1=kvm
PrivateUsers=yes
RkpyArgs=--private-users

[Service]
User=web

[Install]
WantedBy=default.target multi-user.target
"""


def test_what_is_for_root_is_a_mistake_in_a_users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "pods" / "web.pod", OF_A_USER)
    assert check.mistakes(search.at(path, ()), ask_systemd=False) == []
    found = [*map(str, check.mistakes(search.at(path, ()), users=True, ask_systemd=False))]
    assert found == [
        f"{path}:3: Stage1=: the flavour kvm is for root (use nspawn or fly, or run it as root)",
        *(f"{path}:{line}: {key}=: {PRIVATE}" for line, key in ((4, "PrivateUsers"), (5, "RkpyArgs"))),
        f"{path}:8: User=: a user's service manager runs nothing as somebody else",
        f"{path}:11: WantedBy=: a user's service manager has no multi-user.target: use default.target",
    ]
    folders = (str(tmp_path / "pods"),)
    assert not unit._is_users(search.at(path, folders), folders)
    monkeypatch.setattr(caller, "UID", 1000)
    assert unit._is_users(search.at(path, folders), folders)
    assert not unit._is_users(search.at(path, ()), ())


def test_the_commands(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = [f"--local-config={tmp_path}/etc", f"--system-config={tmp_path}/usr"]
    good = write(tmp_path / "etc/pods/web.pod", "[Pod]\nImage=x\n")
    assert unit.check([*flags]) == 0
    assert unit.check([*flags, good]) == 0
    assert unit.check([*flags, "web"]) == 0
    assert capfd.readouterr() == ("", "")
    bad = write(tmp_path / "usr/pods/bad.pod", "[Pod]\nImage=x\nMemory=y\nFoo=\x1b\n")
    assert unit.check([*flags]) == 254
    said = capfd.readouterr()
    assert said.out == ""
    assert [line.partition(": ")[0] for line in said.err.splitlines()] == [f"{bad}:3", f"{bad}:4"]
    assert said.err.replace("\n", "").isprintable()
    assert unit.show([*flags, "web"]) == 0
    assert capfd.readouterr().out.startswith(f"# Made by rkpy's generator from {good}")
    assert unit.show([*flags, bad]) == 254
    assert capfd.readouterr().out == ""
    write(tmp_path / "etc/pods/off.pod", "")
    assert unit.list_files([*flags]) == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert [row[:2] for row in rows] == [
        ["UNIT", "STATE"],
        ["bad.service", "2"],
        ["off.service", "masked"],
        ["web.service", "good"],
    ]
    template = write(tmp_path / "etc/pods/db@.pod", "[Pod]\nImage=x\n")
    assert unit.show([*flags, "db@7"]) == 0
    assert f"SourcePath={template}\n" in capfd.readouterr().out
    with pytest.raises(Exception, match="is masked"):
        unit.show([*flags, "off"])
    with pytest.raises(Exception, match='no pod file "nope"'):
        unit.show([*flags, "nope"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("net = 'none'\n[[app]]\nimage = 'x'\nmemory = '1G'\nargs = ['--memory=x', '%i']\n", []),
        ("nett = 'none'\n", ["nett: there is no such key"]),
        ("x = \n", ["not a TOML document"]),
        (
            "port = ['x']\n[[app]]\nimage = 'x'\nmemory = 'x'\n[[app]]\nimage = 'A B'\ncaps-retain = 'FOO'\n",
            ['--port=x: "" is not a port', '"x" is not a quantity', "A B", 'there is no capability "FOO"'],
        ),
        ("dns = 'none'\ndns-search = 'a'\n[[app]]\nimage = 'x'\n", ["--dns=none leaves no place"]),
    ],
)
def test_check_of_data(tmp_path: Path, text: str, said: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "etc/pods/web.toml", text)
    flags = [f"--local-config={tmp_path}/etc", f"--system-config={tmp_path}/usr"]
    for words in ([path], []):
        assert unit.check([*flags, *words]) == (254 if said else 0)
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == len(said), lines
        for line, expected in zip(lines, said, strict=True):
            assert line.startswith(f"{path}: ")
            assert expected in line
            assert line.count(path) == 1
