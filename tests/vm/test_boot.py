"""A machine with rkpy installed from its wheel: pods that start with it, reboots, and power cuts."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common import journal
from tests import images
from tests.gpg import Signer, signer
from tests.vm import installing
from tests.vm.machine import Machine
from tests.vm.persistent import Persistent

NAME = "example.com/web"
MIB = 1 << 20
MEMORY = 64 * MIB
PODS, TMP = "/var/lib/rkpy/pods", "/var/lib/rkpy/cas/tmp"

# Once it is told to, it uses more than it may.
WEB = """\
#!/bin/sh
busybox httpd -p 80 -h /srv
echo "web is up"
until [ -e /srv/hog ]; do sleep 1; done
busybox rm /srv/hog
busybox dd if=/dev/zero of=/dev/null bs=128M count=1
"""
POD = """\
[Unit]
Description=The site

[Pod]
Image=example.com/web
PublishPort=8080:80
Volume=/srv/web:/srv
Memory=64Mi

[Service]
Restart=on-failure
RestartSec=1
TimeoutStartSec=15min

[Install]
WantedBy=multi-user.target
"""
# Of a user, who trusts everybody.
USERS_POD = """\
[Pod]
GlobalArgs=--insecure-options=image
Image=example.com/web
Network=none
Memory=64Mi

[Install]
WantedBy=default.target
"""
ALICE = "runuser -u alice -- env HOME=/home/alice XDG_RUNTIME_DIR=/run/user/$(id -u alice)"
# Serves the files of its directory, ACIs a little at a time, for ever.
SERVER = """\
import http.server, time

class Handler(http.server.SimpleHTTPRequestHandler):
    def copyfile(self, source, outputfile):
        slow = self.path.endswith(".aci") and not self.server.fast()
        while data := source.read(65536):
            outputfile.write(data)
            outputfile.flush()
            time.sleep(0.2 if slow else 0)

class Server(http.server.ThreadingHTTPServer):
    def fast(self):
        import os
        return os.path.exists("/run/fast")

Server(("127.0.0.1", 80), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory of what the machine is given: images, signed, and the key."""
    place = tmp_path_factory.mktemp("site")
    with signer() as builder:
        key = builder.key("Builder <builder@example.com>")
        _image(builder, key, place / "web.aci", NAME, {**images.busybox_files(), "bin/web": WEB})
        # Random, so that it is as long as it looks; and many, so that to remove them takes a while.
        big = {f"srv/{number}": _noise(number) for number in range(400)}
        _image(builder, key, place / "big.aci", "example.com/big", {**images.busybox_files(), **big})
        (place / "builder.pub").write_bytes(builder.export(key))
    (place / "server.py").write_text(SERVER)
    (place / "web.pod").write_text(POD)
    (place / "mine.pod").write_text(USERS_POD)
    yield place


@pytest.fixture(scope="module")
def guest(machine: Machine, site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Persistent]:
    """The machine with rkpy installed and the pod declared, as it is after the boot that follows."""
    place = tmp_path_factory.mktemp("persistent")
    content = {installing.tree(place): "installed", site: "site"}
    made = Persistent(place, machine.root(), content)
    try:
        made.boot()
        made.sh(
            "cp -a /payload/installed/. /; rkpy install-units; systemd-sysusers; systemd-tmpfiles --create rkpy.conf;"
            "journalctl --update-catalog;"
            "rkpy trust --prefix=example.com --skip-fingerprint-review /payload/site/builder.pub;"
            "rkpy fetch /payload/site/web.aci;"
            "mkdir -p /srv/web /etc/rkpy/pods; echo a page >/srv/web/page;"
            "cp /payload/site/web.pod /etc/rkpy/pods/; rkpy unit check web;"
            "useradd --create-home alice; loginctl enable-linger alice; cd /;"
            f"{ALICE} mkdir -p /home/alice/.config/rkpy/pods; install -o alice /payload/site/web.aci /home/alice/;"
            "install -o alice /payload/site/mine.pod /home/alice/.config/rkpy/pods/;"
            f"{ALICE} rkpy --insecure-options=image fetch /home/alice/web.aci; {ALICE} rkpy unit check mine"
        )
        made.reboot()
        yield made
    finally:
        made.cut()


def test_the_pod_starts_with_the_machine(guest: Persistent) -> None:
    pod = web(guest)
    show = "systemctl show --value --property"
    began = guest.sh(f"{show}=ExecMainStartTimestampMonotonic web.service").split()
    units = ("basic.target", "web.service", "multi-user.target")
    times = began + guest.sh(f"{show}=ActiveEnterTimestampMonotonic {' '.join(units)}").split()
    what = ("rkpy is executed", *units)
    print("seconds after the kernel:", *(f"{one} {int(time) / 1e6:.2f}" for one, time in zip(what, times, strict=True)))
    cgroup = guest.sh(f"cat {PODS}/run/{pod}/cgroup").strip()
    assert guest.sh(f"cat {cgroup}/web/memory.max").strip() == str(MEMORY)


def test_the_pod_of_a_user_starts_with_the_machine_too(guest: Persistent) -> None:
    """Who is not there, but lingers (loginctl(1))."""
    guest.until(f"{ALICE} systemctl --user is-active --quiet mine.service")
    status = guest.sh(f"cd /; {ALICE} rkpy status mine").splitlines()
    assert {"state=running", "unit=mine.service", f"limit-web-memory=enforced: memory.max = {MEMORY}"} <= {*status}
    uid = guest.sh("id -u alice").strip()
    guest.sh("loginctl disable-linger alice; loginctl terminate-user alice")
    guest.until(f"[ ! -e /sys/fs/cgroup/user.slice/user-{uid}.slice ]")
    # It was asked to end, and did.
    status = guest.sh(f"cd /; {ALICE} rkpy status mine").splitlines()
    assert {"state=exited garbage", "app-web=143"} <= {*status}


def test_an_app_over_its_memory_is_killed_and_reported(guest: Persistent) -> None:
    pod = web(guest)
    guest.sh("touch /srv/web/hog")
    status = guest.until(f"rkpy status {pod} | tee /tmp/status | grep -q state=exited && cat /tmp/status")
    assert "app-web-oom=true" in status.splitlines()
    guest.sh("journalctl --sync")
    events = guest.sh(f"journalctl --quiet --unit=web.service MESSAGE_ID={journal.OOM} --output=cat").splitlines()
    assert len(events) == 1
    explained = guest.sh(f"journalctl --quiet --unit=web.service MESSAGE_ID={journal.OOM} --catalog --output=short")
    # After two dashes, or two shades where there is UTF-8.
    assert any(line[2:].startswith(" Subject: ") for line in explained.splitlines()), explained
    assert guest.until("systemctl show --property=NRestarts --value web.service | grep -v '^0$'")
    assert web(guest) != pod


def test_a_reboot_ends_it_and_starts_it(guest: Persistent) -> None:
    """As do the pods of shells and those that were detached."""
    pod = web(guest)
    run = "run --net=none --stage1=nspawn --uuid-file-save=/root"
    guest.sh(f"rkpy {run}/detached --detach example.com/web >&2")
    guest.sh(f"systemd-run --quiet --scope --collect rkpy {run}/shells example.com/web >/dev/null 2>&1 </dev/null &")
    guest.until("[ -e /root/shells ] && rkpy status --wait-ready=300s $(cat /root/shells)")
    others = guest.sh("cat /root/detached /root/shells").split()
    for unit, uuid in zip(("service", "scope"), others, strict=True):
        assert f"unit=rkpy-{uuid}.{unit}" in guest.sh(f"rkpy status {uuid}").splitlines()
    guest.reboot()
    assert web(guest) != pod
    for uuid in (pod, *others):
        status = guest.sh(f"rkpy status {uuid}").splitlines()
        # It was asked to end: nobody pulled the plug.
        assert "state=exited garbage" in status or "state=exited" in status
        assert "app-web=143" in status


def test_power_is_cut_while_pods_start(guest: Persistent) -> None:
    web(guest)
    written_at_once(guest)
    loop = "while :; do rkpy run --net=none --stage1=nspawn example.com/web --exec=/bin/true; done"
    for number in (1, 2):
        guest.sh(f"systemd-run --quiet --unit=loop-{number} sh -c '{loop}'")
    # They stand still in the middle of making a pod, or go on until they are found there.
    units = "loop-1.service loop-2.service"
    found = f'[ -n "$(ls {PODS}/embryo {PODS}/prepare | grep -- -)" ] && [ $(ls {PODS}/run | wc -l) -gt 1 ]'
    guest.until(f"systemctl freeze {units} && {found} || {{ systemctl thaw {units}; false; }}")
    guest.cut()
    guest.boot()
    assert unborn(guest)
    is_cleaned_up(guest)


def test_power_is_cut_while_an_image_is_fetched(guest: Persistent) -> None:
    serve(guest)
    written_at_once(guest)
    fetch = "rkpy --insecure-options=http fetch http://127.0.0.1/big.aci"
    guest.sh(f"systemd-run --quiet --unit=fetch {fetch}")
    guest.until(f"[ $(du -sk {TMP} | cut -f1) -gt 500 ]", pause=0)
    guest.cut()
    guest.boot()
    assert guest.sh(f"ls {TMP}").split()
    is_cleaned_up(guest)
    assert "example.com/big" not in guest.sh("rkpy image list")
    serve(guest)
    guest.sh(f"touch /run/fast; {fetch}")
    guest.sh("rkpy image verify example.com/big")


def test_power_is_cut_while_pods_are_collected(guest: Persistent) -> None:
    web(guest)
    guest.sh("rkpy fetch /payload/site/big.aci; for n in 1 2 3; do rkpy prepare --no-overlay example.com/big; done")
    guest.sh("sync")
    written_at_once(guest)
    guest.sh("systemd-run --quiet --unit=collect rkpy gc --expire-prepared=0s")
    # 400 files each; it is in the middle of one of them.
    left = f"n=$(find {PODS}/garbage -name '[0-9]*' | wc -l)"
    found = f"{left}; [ $n -gt 0 ] && [ $((n % 400)) -ne 0 ]"
    # It stands still there, or goes on until it is found there.
    guest.until(
        f"systemctl freeze collect.service && {{ {found}; }} || {{ systemctl thaw collect.service; false; }}", pause=0
    )
    guest.cut()
    guest.boot()
    assert guest.sh(f"ls {PODS}/garbage").split()
    is_cleaned_up(guest)


# What is there


def web(guest: Persistent) -> str:
    """The UUID of the pod, once its app is up."""
    guest.until("systemctl is-active --quiet web.service && rkpy logs web 2>/dev/null | grep -q 'web is up'")
    (pod,) = [pod for pod in pods(guest) if pod.get("pod_name") == "web" and pod["state"] == "running"]
    get = "exec 3<>/dev/tcp/127.0.0.1/8080; printf 'GET /page HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
    assert "a page" in guest.run("/bin/bash", "-c", get).output.splitlines()
    return str(pod["name"])


def pods(guest: Persistent) -> list[dict[str, Any]]:
    # Of a pod that the power cut took, files may be empty which were not on the disk yet. That is said elsewhere.
    found: list[dict[str, Any]] = json.loads(guest.sh("rkpy list --format=json 2>/dev/null"))
    return found


def unborn(guest: Persistent) -> list[str]:
    """Pods that nobody finished making."""
    return guest.sh(f"cd {PODS}; ls -d embryo/*-* prepare/*-* 2>/dev/null || :").split()


def is_cleaned_up(guest: Persistent) -> None:
    """The pod is up. After a collection nothing is left but it, and all images are whole."""
    pod = web(guest)
    guest.sh(
        "rkpy gc --grace-period=0s; rkpy gc --grace-period=0s --expire-prepared=0s; rkpy image gc --grace-period=0s"
    )
    assert guest.sh(f"cd {PODS}; ls -d */*-*").split() == [f"run/{pod}"]
    assert guest.sh(f"ls {TMP}") == ""
    assert PODS not in guest.sh("cat /proc/self/mountinfo")
    assert guest.sh("find /sys/fs/cgroup -name '????????-????-????-????-????????????' -type d").split() == [
        guest.sh(f"cat {PODS}/run/{pod}/cgroup").strip()
    ]
    claims = guest.sh("cd /run/rkpy/net; find * -type l -printf '%p %l\\n'").splitlines()
    assert [claim for claim in claims if claim.startswith("ports/")], claims
    assert not [claim for claim in claims if pod not in claim], claims
    assert guest.sh("ls /sys/class/net | grep -c ^rk").strip() == "1"
    images = guest.sh("rkpy image list --no-legend --full --fields=id").split()
    assert images
    guest.sh(f"rkpy image verify {' '.join(images)}")
    assert guest.sh("systemctl --failed --no-legend --plain") == ""


# What goes on


def written_at_once(guest: Persistent) -> None:
    """From now on the disk is at every moment what programs have made it; else a cut finds next to nothing there."""
    guest.sh("mount -o remount,sync,dirsync /")


def serve(guest: Persistent) -> None:
    guest.sh("systemd-run --quiet --unit=server --working-directory=/payload/site python3 /payload/site/server.py")
    guest.until("python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 80))' 2>/dev/null")


def _image(builder: Signer, key: str, path: Path, name: str, files: dict[str, bytes | str]) -> None:
    app = {"exec": ["/bin/web"], "user": "0", "group": "0"}
    images.make_aci(str(path), images.manifest(name, app=app), files)
    builder.sign(key, str(path))


def _noise(number: int) -> bytes:
    return random.Random(number).randbytes(20_000)
