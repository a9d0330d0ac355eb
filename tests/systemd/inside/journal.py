"""What pods have to do with the journal: lines and events in it, apps that write to it themselves, reading it back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from common import journal as protocol
from tests import gpg, images
from tests.cgroups import until
from tests.host.commands import Rkpy
from tests.systemd import units
from tests.systemd.units import Entry

NAME = "example.com/sayer"
RUN = ("--insecure-options=image", "run", "--net=none")
SHELL = ("--exec=/bin/sh", "--", "-c")
UNLIMITED = {"LogRateLimitIntervalSec": "1s", "LogRateLimitBurst": "100000000", "Delegate": "yes"}
"""journald keeps 10000 lines in 30 seconds of a unit unless this is said (a 0 would not be heard by systemd 252)."""


@pytest.fixture(scope="module", autouse=True)
def sayer(rkpy: Rkpy, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An image with a program that speaks the journal's protocol."""
    directory = tmp_path_factory.mktemp("sayer")
    source = Path(__file__).parent / "payload" / "say.c"
    subprocess.run(["cc", "-static", "-O1", "-o", directory / "say", source], check=True)
    files = {**images.busybox_files(), "bin/say": (directory / "say").read_bytes(), "bin/logger": "->busybox"}
    image = images.make_aci(str(directory / "sayer.aci"), images.manifest(NAME), files)
    rkpy.ok("--insecure-options=image", "fetch", image)


class Ran:
    """A pod that is over."""

    def __init__(self, rkpy: Rkpy, uuid: str) -> None:
        self.rkpy = rkpy
        self.uuid = uuid

    def entries(self, *matches: str) -> list[Entry]:
        return units.journal(f"RKPY_POD_UUID={self.uuid}", *matches)

    def lines(self, stream: str = "stdout") -> list[str]:
        return units.messages(self.entries(f"RKPY_STREAM={stream}"))

    def logs(self, *words: str) -> str:
        return self.rkpy.ok("logs", *words, self.uuid)


Place = Callable[..., list[str]]


def run(rkpy: Rkpy, script: str, *flags: str, place: Place = units.in_scope, app: tuple[str, ...] = ()) -> Ran:
    """A pod whose app `a` runs `script`."""
    uuid_file = rkpy.directory / "uuid"
    words = [*RUN, *flags, f"--uuid-file-save={uuid_file}", NAME, "--name=a", *app, *SHELL, script]
    done = subprocess.run(place(*rkpy.command(*words)), capture_output=True, timeout=units.TIMEOUT, check=False)
    assert done.returncode == 0, done
    return Ran(rkpy, uuid_file.read_text().strip())


def in_unlimited_service(*command: str) -> list[str]:
    return units.in_service(*command, properties=UNLIMITED)


def test_the_fields_of_a_line(rkpy: Rkpy) -> None:
    pod = run(rkpy, "echo hello; echo oops >&2", "--pod-name=fields")
    (out,) = pod.entries("RKPY_STREAM=stdout")
    (err,) = pod.entries("RKPY_STREAM=stderr")
    ours = {name: value for name, value in out.items() if not name.startswith("_")}
    assert ours.pop("RKPY_IMAGE_ID").startswith("sha512-")
    assert ours.pop("SYSLOG_PID").isdigit()
    assert ours == {
        "MESSAGE": "hello", "PRIORITY": "6", "SYSLOG_IDENTIFIER": "a", "RKPY_POD_UUID": pod.uuid,
        "RKPY_POD_NAME": "fields", "RKPY_APP": "a", "RKPY_STREAM": "stdout", "CONTAINER_ID": pod.uuid[:8],
        "CONTAINER_ID_FULL": pod.uuid, "CONTAINER_NAME": "fields-a", "CONTAINER_TAG": "a", "IMAGE_NAME": f"{NAME}:1",
    }  # fmt: skip
    assert (err["MESSAGE"], err["PRIORITY"]) == ("oops", "3")


def test_short_lived_apps_keep_their_unit(rkpy: Rkpy) -> None:
    for _ in range(5):
        pod = run(rkpy, "for i in 1 2 3; do echo $i; done")
        found = pod.entries()
        assert {entry.get("_SYSTEMD_UNIT") for entry in found if entry["_PID"] != _engine(found)} == {
            f"rkpy-{pod.uuid}.scope"
        }
        assert pod.lines() == ["1", "2", "3"]


@contextmanager
def stopped_journal() -> Iterator[None]:
    journald = int(units.show("systemd-journald.service", "MainPID")["MainPID"])
    os.kill(journald, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(journald, signal.SIGCONT)


def test_a_pod_waits_until_the_journal_knows_its_unit(rkpy: Rkpy) -> None:
    """Who sent an entry the journal looks up when it reads it, which it does not while it is stopped."""
    uuid_file = rkpy.directory / "late"
    words = [*RUN, f"--uuid-file-save={uuid_file}", NAME, "--name=a", *SHELL, "echo late"]
    with stopped_journal():
        process = subprocess.Popen(units.in_scope(*rkpy.command(*words)), stdout=subprocess.DEVNULL)
        until(lambda: uuid_file.exists() and uuid_file.read_text().strip())
        uuid = uuid_file.read_text().strip()
        until(lambda: (rkpy.data / "pods" / "run" / uuid / "status" / "a").exists())
        with pytest.raises(subprocess.TimeoutExpired):  # long enough for one that does not wait to be gone
            process.wait(2)
    assert process.wait(60) == 0
    (entry,) = Ran(rkpy, uuid).entries("RKPY_STREAM=stdout")
    assert entry["_SYSTEMD_UNIT"] == f"rkpy-{uuid}.scope"


def _engine(found: list[Entry]) -> str:
    """The process that said that the pod is prepared."""
    return next((entry["_PID"] for entry in found if entry.get("MESSAGE_ID") == protocol.PREPARED), "")


def test_in_a_service_lines_have_its_unit_and_are_there_once(rkpy: Rkpy) -> None:
    uuid_file = rkpy.directory / "uuid"
    words = [*RUN, f"--uuid-file-save={uuid_file}", NAME, "--name=a", *SHELL, "echo once; echo once >&2"]
    properties = {"Delegate": "yes", "SyslogIdentifier": "outer"}
    with units.service(*rkpy.command(*words), properties={**properties, "RemainAfterExit": "yes"}) as name:
        units.becomes(name, SubState="exited")
        found = [entry for entry in units.journal(f"_SYSTEMD_UNIT={name}") if entry["MESSAGE"] == "once"]
        assert [(entry["SYSLOG_IDENTIFIER"], entry["PRIORITY"]) for entry in found] == [("a", "6"), ("a", "3")]


def test_with_files_a_services_journal_has_what_it_always_had(rkpy: Rkpy) -> None:
    words = [*RUN, "--log-driver=file", NAME, "--name=a", *SHELL, "echo once; ls /run/systemd /dev/log"]
    properties = {"Delegate": "yes", "SyslogIdentifier": "outer", "RemainAfterExit": "yes"}
    with units.service(*rkpy.command(*words), properties=properties) as name:
        units.becomes(name, ActiveState="failed")
        found = units.journal(f"_SYSTEMD_UNIT={name}", "SYSLOG_IDENTIFIER=outer")
        assert units.messages(found).count("once") == 1
        assert any("/dev/log: No such file" in text for text in units.messages(found))
        assert not units.journal(f"_SYSTEMD_UNIT={name}", "SYSLOG_IDENTIFIER=a")


def test_priorities_parts_and_bytes(rkpy: Rkpy) -> None:
    pod = run(rkpy, r"""echo "<4>warn"; echo "<2>crit" >&2; printf '\001\377\n'; printf '%020000d\n' 5; printf end""")
    found = pod.entries("RKPY_STREAM=stdout")
    assert (found[0]["MESSAGE"], found[0]["PRIORITY"]) == ("warn", "4")
    assert found[1]["MESSAGE"] == [1, 255]
    assert [len(entry["MESSAGE"]) for entry in found[2:4]] == [16384, 20000 - 16384]
    assert [entry.get("CONTAINER_PARTIAL_MESSAGE") for entry in found[2:4]] == ["true", None]
    assert found[4]["MESSAGE"] == "end"
    assert [entry["PRIORITY"] for entry in pod.entries("RKPY_STREAM=stderr")] == ["2"]
    done = subprocess.run(rkpy.command("logs", pod.uuid), capture_output=True, env=rkpy.environment(), timeout=120)
    assert done.stdout == b"warn\n\1\xff\n" + b"%020000d" % 5 + b"\nend\n"
    assert done.stderr == b"crit\n"


def test_nothing_is_lost_in_bulk(rkpy: Rkpy) -> None:
    pod = run(rkpy, "busybox seq 30000", place=in_unlimited_service)
    assert pod.logs() == "".join(f"{number}\n" for number in range(1, 30001))
    assert pod.logs("--tail=2") == "29999\n30000\n"


def test_a_journal_that_is_restarted(rkpy: Rkpy) -> None:
    """While the app writes on: its socket is systemd's, and what was sent meanwhile waits there."""
    marks = rkpy.directory / "marks"
    marks.mkdir()
    script = (
        "busybox seq 5000; touch /marks/half; until test -e /marks/go; do sleep 0.01; busybox seq 100; done; echo end"
    )
    flags = [f"--volume=marks,kind=host,source={marks}", "--mount=volume=marks,target=/marks"]
    uuid_file = rkpy.directory / "uuid"
    words = [*RUN, *flags, f"--uuid-file-save={uuid_file}", NAME, "--name=a", *SHELL, script]
    with units.service(*rkpy.command(*words), properties={**UNLIMITED, "RemainAfterExit": "yes"}) as name:
        until(lambda: (marks / "half").exists())
        for _ in range(2):
            units.run("systemctl", "restart", "systemd-journald")
        (marks / "go").touch()
        units.becomes(name, SubState="exited")
    pod = Ran(rkpy, uuid_file.read_text().strip())
    lines = pod.logs().splitlines()
    assert lines[:5000] == [str(number) for number in range(1, 5001)]
    assert lines[-1] == "end"
    rest = lines[5000:-1]
    assert rest == [str(number) for number in range(1, 101)] * (len(rest) // 100)
    assert {entry["_SYSTEMD_UNIT"] for entry in pod.entries("RKPY_STREAM=stdout")} == {name}


# --- apps that write to the journal themselves


def test_apps_that_speak_to_the_journal(rkpy: Rkpy) -> None:
    pod = run(
        rkpy,
        "say MESSAGE=native PRIORITY=4 OWN=1 'LONG=one%ntwo'; say -m MESSAGE=sealed; say -u MESSAGE=unsealed;"
        "logger -t tagged -p daemon.warn classic; echo last",
    )
    native, sealed = pod.entries("RKPY_STREAM=journal")
    (classic,) = pod.entries("RKPY_STREAM=syslog")
    assert {name: native[name] for name in ("MESSAGE", "PRIORITY", "OWN", "LONG", "SYSLOG_IDENTIFIER")} == {
        "MESSAGE": "native", "PRIORITY": "4", "OWN": "1", "LONG": "one\ntwo", "SYSLOG_IDENTIFIER": "a",
    }  # fmt: skip
    assert sealed["MESSAGE"] == "sealed"
    assert {name: classic[name] for name in ("MESSAGE", "PRIORITY", "SYSLOG_FACILITY", "RKPY_SYSLOG_IDENTIFIER")} == {
        "MESSAGE": "classic", "PRIORITY": "4", "SYSLOG_FACILITY": "3", "RKPY_SYSLOG_IDENTIFIER": "tagged",
    }  # fmt: skip
    assert native["_SYSTEMD_UNIT"] == f"rkpy-{pod.uuid}.scope"
    done = rkpy("logs", pod.uuid)
    assert (done.out, sorted(done.err.splitlines())) == ("last\n", ["classic", "native", "sealed"])


def test_what_an_app_cannot_say(rkpy: Rkpy) -> None:
    other = run(rkpy, "echo mine")
    forged = (
        f"RKPY_POD_UUID={other.uuid} RKPY_STREAM=stdout RKPY_APP=b _UID=7 _SYSTEMD_UNIT=sshd.service UNIT=sshd.service "
        f"OBJECT_PID=1 COREDUMP_UNIT=x SYSLOG_IDENTIFIER=sshd CONTAINER_ID=x IMAGE_NAME=x MESSAGE_ID={protocol.EXITED}"
    )
    pod = run(rkpy, f"say MESSAGE=forged PRIORITY=0 {forged}")
    assert other.lines() == ["mine"]
    assert other.logs() == "mine\n"
    (entry,) = [entry for entry in pod.entries() if entry["MESSAGE"] == "forged"]
    assert (entry["RKPY_STREAM"], entry["RKPY_APP"], entry["SYSLOG_IDENTIFIER"]) == ("journal", "a", "a")
    assert (entry["_UID"], entry["PRIORITY"], entry["IMAGE_NAME"]) == ("0", "1", f"{NAME}:1")
    assert not {"UNIT", "OBJECT_PID", "OBJECT_UID", "COREDUMP_UNIT", "MESSAGE_ID"} & set(entry)


def test_a_process_of_the_machine_cannot_add_to_a_pods_log(rkpy: Rkpy) -> None:
    pod = run(rkpy, "echo true", "--pod-name=believed")
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(sys.argv[1]);"
        "s.send(sys.argv[2].encode())"
    )
    fields = {
        "MESSAGE": "false", "RKPY_APP": "a", "RKPY_STREAM": "stdout", "SYSLOG_IDENTIFIER": "a",
        "MESSAGE_ID": protocol.STARTED,
    }  # fmt: skip
    for uuid, name in ((pod.uuid, "believed"), ("ffffffff-0000-4000-8000-000000000000", "unheard")):
        text = "".join(f"{key}={value}\n" for key, value in fields.items())
        text += f"RKPY_POD_UUID={uuid}\nRKPY_POD_NAME={name}\n"
        drop = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        subprocess.run([*drop, sys._base_executable, "-I", "-S", "-c", code, protocol.SOCKET, text], check=True)  # type: ignore[attr-defined]
    units.logged(f"RKPY_POD_UUID={pod.uuid}", "MESSAGE=false")
    units.logged("RKPY_POD_NAME=unheard")
    assert pod.logs() == "true\n"
    units.run(*rkpy.command("rm", pod.uuid))
    assert rkpy.ok("logs", "believed") == "true\n"
    assert rkpy.ok("logs", pod.uuid[:8]) == "true\n"
    assert 'no matches found for "unheard"' in rkpy.refused("logs", "unheard")
    assert "no matches found" in rkpy.refused("logs", "ffffffff-0000-4000-8000-000000000000")
    assert "no matches found" in rkpy.refused("logs", "ffffffff")


# --- events


def test_the_life_of_a_pod(rkpy: Rkpy) -> None:
    pod = run(rkpy, "exit 0", "--pod-name=told")
    rkpy.ok("rm", "told")
    found = [
        (entry["MESSAGE_ID"], entry.get("RKPY_APP"), entry.get("RKPY_EXIT_STATUS"))
        for entry in pod.entries()
        if "MESSAGE_ID" in entry
    ]
    assert found == [
        (protocol.PREPARED, None, None), (protocol.STARTED, "a", None), (protocol.STARTED, None, None),
        (protocol.EXITED, "a", "0"), (protocol.EXITED, None, "0"), (protocol.COLLECTED, None, None),
    ]  # fmt: skip
    assert {entry["SYSLOG_IDENTIFIER"] for entry in pod.entries() if "MESSAGE_ID" in entry} == {"rkpy"}
    assert {entry["RKPY_POD_NAME"] for entry in pod.entries()} == {"told"}


def test_a_pod_that_cannot_be_started(rkpy: Rkpy) -> None:
    many = [flag for n in range(300) for flag in (f"--volume=v{n},kind=empty", f"--mount=volume=v{n},target=/v{n}")]
    assert rkpy(*RUN, "--pod-name=unstartable", *many, NAME).status == 254
    end = units.journal("RKPY_POD_NAME=unstartable", f"MESSAGE_ID={protocol.EXITED}")[-1]
    assert (end["MESSAGE"], end["RKPY_EXIT_STATUS"]) == ('Pod "unstartable" ended with status 254', "254")
    assert "more mounts" in end["RKPY_REASON"]


def test_what_was_never_prepared_is_not_said_to_be_removed(rkpy: Rkpy) -> None:
    assert rkpy(*RUN, "--pod-name=unprepared", "--stage1=fly", "--ready=healthy", NAME).status == 254
    assert units.journal("RKPY_POD_NAME=unprepared") == []


def test_an_end_by_a_signal(rkpy: Rkpy) -> None:
    uuid_file = rkpy.directory / "uuid"
    words = [*RUN, f"--uuid-file-save={uuid_file}", NAME, "--name=a", *SHELL, "kill -9 $$"]
    assert units.run(*units.in_scope(*rkpy.command(*words)), check=False).returncode == 137
    pod = Ran(rkpy, uuid_file.read_text().strip())
    entry = next(entry for entry in pod.entries(f"MESSAGE_ID={protocol.EXITED}") if "RKPY_APP" in entry)
    assert (entry["RKPY_EXIT_STATUS"], entry["RKPY_EXIT_SIGNAL"], entry["PRIORITY"]) == ("137", "9", "5")


def test_images_that_are_fetched_and_refused(rkpy: Rkpy, tmp_path: Path) -> None:
    about = images.manifest("example.com/other", version="2")
    image = images.make_aci(str(tmp_path / "unsigned.aci"), about, images.busybox_files())
    assert rkpy("fetch", image).status == 254
    (entry,) = units.journal(f"MESSAGE_ID={protocol.REFUSED}", f"RKPY_SOURCE={image}")
    assert entry["PRIORITY"] == "4"
    rkpy.ok("--insecure-options=image", "fetch", image)
    (entry,) = units.journal(f"MESSAGE_ID={protocol.FETCHED}", f"RKPY_SOURCE={image}")
    assert entry["RKPY_IMAGE_NAME"] == "example.com/other:2"
    assert "RKPY_SIGNER" not in entry
    assert not units.journal(f"MESSAGE_ID={protocol.VERIFIED}", f"RKPY_SOURCE={image}")


def test_images_that_are_verified(rkpy: Rkpy, tmp_path: Path) -> None:
    about = images.manifest("example.com/signed", version="3")
    image = images.make_aci(str(tmp_path / "signed.aci"), about, images.busybox_files())
    with gpg.signer() as somebody:
        key = somebody.key("Somebody <somebody@example.com>")
        somebody.sign(key, image)
        (tmp_path / "key.pub").write_bytes(somebody.export(key))
    rkpy.ok("trust", "--prefix=example.com/signed", "--skip-fingerprint-review", tmp_path / "key.pub")
    rkpy.ok("fetch", image)
    (fetched,) = units.journal(f"MESSAGE_ID={protocol.FETCHED}", f"RKPY_SOURCE={image}")
    (verified,) = units.journal(f"MESSAGE_ID={protocol.VERIFIED}", f"RKPY_SOURCE={image}")
    for entry in (fetched, verified):
        assert (entry["RKPY_IMAGE_NAME"], entry["PRIORITY"]) == ("example.com/signed:3", "6")
        assert entry["RKPY_IMAGE_ID"] == fetched["RKPY_IMAGE_ID"]
    assert (verified["RKPY_SIGNER"], verified["RKPY_FINGERPRINT"]) == ("Somebody <somebody@example.com>", key)
    assert "not verified" not in fetched["MESSAGE"]


def test_images_that_are_removed(rkpy: Rkpy, tmp_path: Path) -> None:
    """Those that are, and each once."""
    kept = {path.stem for path in rkpy.images()}
    for version in "12":
        about = images.manifest("example.com/away", version=version)
        image = images.make_aci(str(tmp_path / f"{version}.aci"), about, images.busybox_files())
        rkpy.ok("--insecure-options=image", "fetch", image)
    one, two = sorted({path.stem for path in rkpy.images()} - kept)
    rkpy("image", "rm", one, one, "example.com/nonesuch")
    rkpy.ok("image", "gc", "--grace-period=1h")
    assert not units.journal(f"MESSAGE_ID={protocol.REMOVED}", f"RKPY_IMAGE_ID={two}")
    used = rkpy.data / "cas" / "used" / two
    used.touch()
    os.utime(used, (1e6, 1e6))
    rkpy.ok("image", "gc", "--grace-period=1h")
    (removed,) = units.journal(f"MESSAGE_ID={protocol.REMOVED}", f"RKPY_IMAGE_ID={one}")
    (collected,) = units.journal(f"MESSAGE_ID={protocol.REMOVED}", f"RKPY_IMAGE_ID={two}")
    names = {entry["RKPY_IMAGE_NAME"] for entry in (removed, collected)}
    assert names == {"example.com/away:1", "example.com/away:2"}
    assert removed["RKPY_REASON"] == "somebody asked for it"
    assert collected["RKPY_REASON"].startswith("not used since 1970-01-12")
    assert {path.stem for path in rkpy.images()} == kept


def test_with_files_there_are_events_too(rkpy: Rkpy) -> None:
    pod = run(rkpy, "echo x", "--log-driver=file")
    assert pod.lines() == []
    assert len(pod.entries(f"MESSAGE_ID={protocol.EXITED}")) == 2
    assert pod.logs() == "x\n"


# --- reading


def test_logs_when_the_pod_is_gone(rkpy: Rkpy) -> None:
    pod = run(rkpy, "echo one; echo two >&2; echo three", "--pod-name=gone")
    rkpy.ok("rm", pod.uuid)
    assert pod.uuid not in rkpy.ok("list", "--full")
    for wanted in (pod.uuid, pod.uuid[:8], pod.uuid[:20], "gone"):
        done = rkpy("logs", wanted)
        assert (done.status, done.out, done.err) == (0, "one\nthree\n", "two\n")
    assert pod.logs("--since=1h", "--app=a") == "one\nthree\n"
    assert pod.logs("--since=0s") == ""
    assert [line[30:] for line in pod.logs("--timestamps").splitlines()] == [" one", " three"]
    last = rkpy("logs", "--tail=1", pod.uuid)  # The order of what comes from two pipes is not known.
    assert (last.out, last.err) in (("three\n", ""), ("", "two\n"))
    assert 'no app "b" in the pod (there is: a)' in rkpy.refused("logs", "--app=b", pod.uuid)
    assert "no matches found" in rkpy.refused("logs", pod.uuid[:7])


def test_of_pods_of_one_name_the_youngest(rkpy: Rkpy) -> None:
    for text in ("older", "younger"):
        pod = run(rkpy, f"echo {text}", "--pod-name=again")
        rkpy.ok("rm", pod.uuid)
    assert rkpy.ok("logs", "again") == "younger\n"


def test_several_apps(rkpy: Rkpy) -> None:
    uuid_file = rkpy.directory / "uuid"
    second = (NAME, "--name=b", *SHELL, "echo two")
    words = [*RUN, f"--uuid-file-save={uuid_file}", NAME, "--name=a", *SHELL, "echo one", "---", *second]
    units.run(*units.in_scope(*rkpy.command(*words)))
    pod = Ran(rkpy, uuid_file.read_text().strip())
    assert sorted(pod.logs().splitlines()) == ["a: one", "b: two"]
    assert pod.logs("--app=b") == "two\n"


def test_apps_that_are_added_and_restarted(rkpy: Rkpy) -> None:
    uuid_file = rkpy.directory / "sandbox"
    words = ["app", "sandbox", "--net=none", f"--uuid-file-save={uuid_file}"]
    with units.service(*rkpy.command(*words), properties={"Delegate": "yes"}):
        until(lambda: uuid_file.exists() and uuid_file.read_text().strip())
        pod = Ran(rkpy, uuid_file.read_text().strip())
        until(lambda: rkpy("status", "--wait-ready", pod.uuid).status == 0)
        script = "say MESSAGE=said; echo up; sleep 1000"
        rkpy.ok("app", "add", pod.uuid, NAME, "--name=late", *SHELL, script)
        rkpy.ok("app", "start", "--app=late", pod.uuid)
        until(lambda: pod.lines() == ["up"])
        rkpy.ok("app", "restart", "--app=late", pod.uuid)
        until(lambda: pod.lines() == ["up", "up"])
        until(lambda: pod.lines("journal") == ["said", "said"])
        rkpy.ok("app", "stop", "--app=late", pod.uuid)
        rkpy.ok("app", "rm", "--app=late", pod.uuid)
        rkpy.ok("app", "add", pod.uuid, NAME, "--name=late", *SHELL, "say MESSAGE=again; echo new; sleep 1000")
        rkpy.ok("app", "start", "--app=late", pod.uuid)
        until(lambda: pod.lines("journal") == ["said", "said", "again"])
        until(lambda: pod.lines() == ["up", "up", "new"])
        rkpy.ok("stop", pod.uuid)
    assert pod.logs() == "up\nup\nnew\n"


def test_in_a_user_namespace_too(rkpy: Rkpy) -> None:
    pod = run(rkpy, "say MESSAGE=native; logger classic; echo out", "--private-users", app=("--user=1000",))
    assert (pod.lines(), pod.lines("journal"), pod.lines("syslog")) == (["out"], ["native"], ["classic"])


def test_following_until_the_pod_is_over(rkpy: Rkpy) -> None:
    uuid_file = rkpy.directory / "follow"
    marks = rkpy.directory / "follow-marks"
    marks.mkdir()
    script = "echo one; echo two; while ! test -e /marks/go; do sleep 0.05; done; echo three; echo four >&2"
    flags = [f"--volume=marks,kind=host,source={marks}", "--mount=volume=marks,target=/marks"]
    words = [*RUN, *flags, f"--uuid-file-save={uuid_file}", NAME, "--name=a", *SHELL, script]
    with units.service(*rkpy.command(*words), properties={"Delegate": "yes", "RemainAfterExit": "yes"}):
        until(lambda: uuid_file.exists() and uuid_file.read_text().strip())
        uuid = uuid_file.read_text().strip()
        until(lambda: len(units.journal(f"RKPY_POD_UUID={uuid}", "RKPY_STREAM=stdout")) == 2)
        with rkpy.start("logs", "--follow", "--tail=1", uuid) as follower:
            assert follower.stdout
            assert follower.stderr
            assert follower.stdout.readline() == "two\n"
            (marks / "go").touch()
            assert follower.stdout.read() == "three\n"
            assert follower.stderr.read() == "four\n"
        assert follower.returncode == 0


def test_without_the_library(rkpy: Rkpy, tmp_path: Path) -> None:
    pod = run(rkpy, "echo x")
    (tmp_path / "systemd").mkdir()
    (tmp_path / "systemd" / "__init__.py").write_text("raise ImportError('not here')\n")
    path = f"{tmp_path}{os.pathsep}{rkpy.environment()['PYTHONPATH']}"
    done = rkpy("logs", pod.uuid, PYTHONPATH=path)
    assert (done.status, done.out) == (254, "")
    assert done.err.count("\n") == 1
    assert "systemd-python, which is not installed" in done.err
    assert f"journalctl RKPY_POD_UUID={pod.uuid})" in done.err
    rkpy.ok("rm", pod.uuid)
    done = rkpy("logs", pod.uuid, PYTHONPATH=path)
    assert done.status == 254
    assert f"(the journal may have its log: journalctl RKPY_POD_UUID={pod.uuid})" in done.err


# --- fly


def test_fly_in_a_service(rkpy: Rkpy) -> None:
    script = 'echo out; echo err >&2; echo "<4>warn"; echo "$JOURNAL_STREAM $(stat -Lc %i /proc/self/fd/2)"'
    files = [*RUN[:2], "--stage1=fly", NAME, "--name=flyer", *SHELL, script]
    properties = {"RemainAfterExit": "yes", "SyslogIdentifier": "outer"}
    with units.service(*rkpy.command(*files), properties=properties) as name:
        units.becomes(name, SubState="exited")
        found = units.logged(f"_SYSTEMD_UNIT={name}", "SYSLOG_IDENTIFIER=flyer", count=4)
    said = {str(entry["MESSAGE"]): entry["PRIORITY"] for entry in found}
    stream = next(text for text in said if ":" in text)
    assert said == {"out": "6", "err": "3", "warn": "4", stream: "6"}
    assert stream.split(":")[1].split()[0] == stream.split()[1]


def test_fly_in_a_service_waits_until_the_journal_knows_its_unit(rkpy: Rkpy) -> None:
    files = [*RUN[:2], "--stage1=fly", NAME, "--name=flyer", *SHELL, "echo late"]
    with ExitStack() as services:
        with stopped_journal():
            service = units.service(*rkpy.command(*files), properties={"RemainAfterExit": "yes"})
            name = services.enter_context(service)
            end = time.monotonic() + 2  # long enough for one that does not wait to be over
            while time.monotonic() < end:
                assert units.show(name, "SubState") == {"SubState": "running"}
        units.becomes(name, SubState="exited")
    (entry,) = units.logged(f"_SYSTEMD_UNIT={name}", "SYSLOG_IDENTIFIER=flyer", count=1)
    assert entry["MESSAGE"] == "late"


def test_fly_from_a_shell_writes_to_the_shell(rkpy: Rkpy) -> None:
    """And the event of its start is the pod's unit's, though a moment ago the same process was in the shell's."""
    uuid_file, marks = rkpy.directory / "shell", rkpy.directory / "shell-marks"
    marks.mkdir()
    flags = ["--stage1=fly", f"--volume=marks,kind=host,source={marks}", "--mount=volume=marks,target=/marks"]
    script = "echo out; echo err >&2; until test -e /marks/go; do sleep 0.05; done"
    words = [*RUN[:2], *flags, f"--uuid-file-save={uuid_file}", NAME, *SHELL, script]
    with subprocess.Popen(
        units.in_scope(*rkpy.command(*words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            until(lambda: process.poll() is not None or (uuid_file.exists() and uuid_file.read_text().strip()))
            uuid = uuid_file.read_text().strip()
            # Whose unit it is the journal looks up in /proc when it reads the entry.
            (started,) = units.logged(f"RKPY_POD_UUID={uuid}", f"MESSAGE_ID={protocol.STARTED}")
        finally:
            (marks / "go").touch()
        assert process.communicate(timeout=units.TIMEOUT) == ("out\n", "err\n")
    (prepared,) = units.journal(f"RKPY_POD_UUID={uuid}", f"MESSAGE_ID={protocol.PREPARED}")
    assert prepared["_PID"] == started["_PID"]
    assert started["_SYSTEMD_UNIT"] == f"rkpy-{uuid}.scope"


def fly(rkpy: Rkpy, uuid_file: Path, script: str) -> list[str]:
    uuid_file.unlink(missing_ok=True)
    words = [*RUN[:2], "--stage1=fly", f"--uuid-file-save={uuid_file}", NAME, "--name=a", *SHELL, script]
    return rkpy.command(*words)


def ends(pod: Ran) -> list[tuple[str | None, str | None, str | None, str]]:
    """Whose ends there were, with status and signal, and what was said of them."""
    return [
        (entry.get("RKPY_APP"), entry.get("RKPY_EXIT_STATUS"), entry.get("RKPY_EXIT_SIGNAL"), entry["MESSAGE"])
        for entry in pod.entries(f"MESSAGE_ID={protocol.EXITED}")
    ]


@pytest.mark.parametrize(
    ("script", "end", "status"),
    [
        ("exit 3", ("a", "3", None, "exited with status 3"), ["app-a=3"]),
        ("kill -9 $$$$", ("a", "137", "9", "was ended by signal 9"), ["app-a=137", "app-a-signal=9"]),
    ],
)
def test_how_fly_ended_in_a_service_is_known_when_it_has_stopped(
    rkpy: Rkpy, script: str, end: tuple[str, str, str | None, str], status: list[str]
) -> None:
    """By what every service of a pod has (`stage0.podservice.after_stop`); said once, though others look as well. (Of
    two dollars systemd makes one.)"""
    uuid_file = rkpy.directory / "flown"
    after = " ".join(rkpy.command("gc", "--quiet", "--mark-only"))
    with units.service(*fly(rkpy, uuid_file, script), properties={"ExecStopPost": after}) as name:
        units.becomes(name, ActiveState="failed")
        pod = Ran(rkpy, uuid_file.read_text().strip())
        told = (*end[:3], f'App "a" of pod "{pod.uuid}" {end[3]}')
        assert ends(pod) == [told]
        assert told[3] in units.messages(units.journal(f"--unit={name}"))
    rkpy.ok("gc", "--grace-period=1h")
    assert ends(pod) == [told]
    lines = rkpy.ok("status", pod.uuid).splitlines()
    assert [line for line in lines if line.startswith("app-a")] == status


def test_whoever_looks_first_learns_how_fly_ended_in_a_service(rkpy: Rkpy) -> None:
    """Of a service whose author did not think of it; with the time when it ended, and in the journal of its unit."""
    uuid_file = rkpy.directory / "flown"
    with units.service(*fly(rkpy, uuid_file, "exit 0"), properties={"RemainAfterExit": "yes"}) as name:
        units.becomes(name, SubState="exited")
        pod = Ran(rkpy, uuid_file.read_text().strip())
        assert ends(pod) == []
        rkpy.ok("start", pod.uuid)
        (end,) = pod.entries(f"MESSAGE_ID={protocol.EXITED}")
        assert (end["RKPY_EXIT_STATUS"], end["RKPY_IMAGE_NAME"]) == ("0", f"{NAME}:1")
        (start, _) = pod.entries(f"MESSAGE_ID={protocol.STARTED}")
        seconds = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(start["__REALTIME_TIMESTAMP"]) // 10**6 + 1))
        assert end["RKPY_STARTED_AT"] <= seconds
        assert end["MESSAGE"] in units.messages(units.journal(f"--unit={name}"))
        # That run was nobody's service.
        rkpy.ok("rm", pod.uuid)
        assert [status for _, status, _, _ in ends(pod)] == ["0", None]


def test_how_fly_ended_is_known_without_a_bus(rkpy: Rkpy) -> None:
    """As when the machine is switched off."""
    uuid_file = rkpy.directory / "flown"
    after = " ".join(rkpy.command("gc", "--quiet", "--mark-only"))
    command = fly(rkpy, uuid_file, "trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done")
    with units.service(*command, properties={"ExecStopPost": after, "Type": "notify"}) as name:
        units.logged(f"_SYSTEMD_UNIT={name}", "MESSAGE=up")
        with units.no_bus():
            units.run("systemctl", "stop", name)
        pod = Ran(rkpy, uuid_file.read_text().strip())
        assert [(app, status) for app, status, _, _ in ends(pod)] == [("a", "7")]


def test_how_fly_ended_in_a_scope_nobody_knows(rkpy: Rkpy) -> None:
    uuid_file = rkpy.directory / "flown"
    assert units.run(*units.in_scope(*fly(rkpy, uuid_file, "exit 5")), check=False).returncode == 5
    pod = Ran(rkpy, uuid_file.read_text().strip())
    assert ends(pod) == []
    for _ in range(2):
        rkpy.ok("gc", "--mark-only")
        assert ends(pod) == [("a", None, None, f'App "a" of pod "{pod.uuid}" has ended, and nobody saw how')]
    assert "app-a" not in rkpy.ok("status", pod.uuid)
    assert "finished_at" not in rkpy.ok("status", "--format=json", pod.uuid)


def test_a_pod_whose_monitor_was_killed(rkpy: Rkpy) -> None:
    uuid_file = rkpy.directory / "orphan"
    words = [*RUN, "--pod-name=orphan", f"--uuid-file-save={uuid_file}", NAME, "--name=a", *SHELL, "sleep 1000"]
    process = rkpy.start(*words)
    try:
        until(lambda: uuid_file.exists() and uuid_file.read_text().strip())
        pod = Ran(rkpy, uuid_file.read_text().strip())
        rkpy.ok("status", "--wait-ready=60s", pod.uuid)
    finally:
        process.kill()
        process.communicate(timeout=units.TIMEOUT)
    rkpy.ok("status", "--wait=60s", pod.uuid)
    for _ in range(2):
        rkpy.ok("gc", "--mark-only")
        unseen = 'od "orphan" has ended, and nobody saw how'
        assert ends(pod) == [("a", None, None, f'App "a" of p{unseen}'), (None, None, None, f"P{unseen}")]


def test_a_journal_namespace(rkpy: Rkpy) -> None:
    """Where everything of a service with `LogNamespace=` goes; it is found while there is the pod, and afterwards."""
    uuid_file = rkpy.directory / "named"
    words = [*RUN, f"--uuid-file-save={uuid_file}", NAME, "--name=a", *SHELL, "echo there; say MESSAGE=too"]
    properties = {"Delegate": "yes", "LogNamespace": "rkpytest", "RemainAfterExit": "yes"}
    try:
        with units.service(*rkpy.command(*words), properties=properties) as name:
            units.becomes(name, SubState="exited")
        pod = Ran(rkpy, uuid_file.read_text().strip())
        assert pod.lines() == [], "in the machine's own journal"
        for _ in range(2):
            until(lambda: (done := rkpy("logs", pod.uuid)).out == "there\n" and done.err == "too\n")
            rkpy("rm", pod.uuid)
    finally:
        units.run("systemctl", "stop", "systemd-journald@rkpytest.socket", "systemd-journald@rkpytest.service")


def test_a_pod_that_outlives_what_the_journal_has_of_it(rkpy: Rkpy) -> None:
    script = "trap 'echo late; exit 0' TERM; echo early; sleep 1000 & wait"
    process = rkpy.start(*RUN, "--log-driver=journald", "--pod-name=old", NAME, "--name=a", *SHELL, script)
    try:
        until(lambda: "early" in rkpy("logs", "old").out)
        units.run("journalctl", "--rotate")
        units.run("journalctl", "--vacuum-files=1")
        assert rkpy.ok("logs", "old") == ""
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=units.TIMEOUT)
        assert rkpy.ok("logs", "old") == "late\n"
    finally:
        process.kill()
        process.communicate(timeout=units.TIMEOUT)
