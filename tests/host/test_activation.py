"""Sockets that a service manager listens on reach the apps they are for, and nobody else (docs/systemd.md)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.host import activating, flavours
from tests.host.activating import Handed, ask, listening, port
from tests.host.flavours import HERE, MACHINE, SEVERAL, SUPERVISED, Ground, Variant, every
from tests.host.networked import Site, connected, until
from tests.netlab import Lab

HTTP = {"name": "http", "protocol": "tcp", "port": 80, "count": 1, "socketActivated": True}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, inspector: str) -> Iterator[Ground]:
    with flavours.ground(tmp_path_factory.mktemp("activation"), inspector) as made:
        yield made


def variables(lines: list[str]) -> dict[str, str]:
    """What an app was told of its sockets."""
    return dict(line.split("=", 1) for line in lines if line.startswith("LISTEN_"))


@every(HERE)
def test_the_only_app_gets_all_in_order(ground: Ground, variant: Variant) -> None:
    with listening() as one, listening(socket.SOCK_DGRAM) as other:
        handed = Handed([("one.socket", one), ("other", other)])
        app = ground.app("env + pid + answer 3 served 1 + receive 4")
        with activating.running(ground, handed, ground.words(variant), app) as pod:
            assert ask(one) == "served"
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"datagram", other.getsockname())
            result = pod.wait()
    assert (result.status, result.lines[-1]) == (0, "datagram"), result
    own = next(line.split()[1] for line in result.lines if line.startswith("pid "))
    assert variables(result.lines) == {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "one.socket:other", "LISTEN_PID": own}
    assert "ignores" not in result.err


@every(MACHINE)
def test_a_machine_cannot_have_them(ground: Ground, variant: Variant) -> None:
    before = ground.rkpy.pods()
    with listening() as made:
        result = activating.run(ground, Handed([("one", made)]), *ground.words(variant), *ground.app("say hello"))
    assert (result.status, result.out) == (254, ""), result
    assert "kvm cannot hand the service manager's sockets to an app" in result.err
    assert ground.rkpy.pods() == before


@every(HERE)
def test_they_are_no_paths_and_nothing_else_comes_along(ground: Ground, variant: Variant) -> None:
    """A Unix socket and a pipe are passed as they are; of fly an app has the pod's lock besides."""
    reading, writing = os.pipe()
    with socket.socket(socket.AF_UNIX) as local, open(reading, "rb"), open(writing, "wb"):
        local.bind(f"\0rkpy-test-activation-{os.getpid()}")
        local.listen()
        fifo = socket.socket(fileno=os.dup(local.fileno()))  # stands in: any descriptor will do
        with fifo:
            handed = Handed([("local", local), ("again", fifo)])
            result = activating.run(ground, handed, *ground.words(variant), *ground.app("fdlinks"))
    kinds = [line.split()[-1].partition(":")[0] for line in result.lines]
    assert result.status == 0, result
    assert kinds[3:5] == ["socket", "socket"], result
    assert len(kinds) == (6 if variant.name == "fly" else 5), result


@every(HERE)
def test_without_sockets_there_are_no_variables(ground: Ground, variant: Variant) -> None:
    """Also when the variables are there, and meant for somebody else."""
    stale = Handed((), {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "x", "LISTEN_PIDFDID": "1"})
    result = activating.run(
        ground, stale, *ground.words(variant, "--inherit-env"), *ground.app("env + try receive 3", image=ground.image())
    )
    assert (result.status, variables(result.lines)) == (0, {}), result


@every(HERE)
def test_a_port_that_waits_in_vain_is_told_of_once(ground: Ground, variant: Variant) -> None:
    image = ground.image(ports=[HTTP])
    result = activating.run(ground, Handed(), *ground.words(variant), *ground.app("say hello", image=image))
    word = 'port "http" of app "app" is socket activated, and no socket came with it: nothing listens for it'
    assert (result.status, result.err.count(word)) == (0, 1), result


@every(SEVERAL, HERE)
def test_each_app_gets_its_own(ground: Ground, variant: Variant) -> None:
    """By name, and by the number of the host's port; an app sees nothing of the other's."""
    with listening() as named, listening() as numbered:
        handed = Handed([("web.socket", numbered), ("admin", named)])
        web = {**HTTP, "port": port(numbered)}
        first = ground.app("fds + env + answer 3 web 1", "--name=web", image=ground.image(ports=[web]))
        admin = ground.image(ports=[{**HTTP, "name": "admin"}])
        second = ground.app("fds + answer 3 admin 1", "--name=other", image=admin)
        with activating.running(ground, handed, ground.words(variant), [*first, "---", *second]) as pod:
            assert (ask(numbered), ask(named)) == ("web", "admin")
            result = pod.wait()
    assert result.status == 0, result
    said = sorted((line.partition("[")[0], line.partition(": ")[2]) for line in result.lines)
    fds = [(app, text.split()[1]) for app, text in said if text[:1].isdigit()]
    kinds = ["character", "fifo", "fifo", "socket"]
    assert fds == [(app, kind) for app in ("other", "web") for kind in kinds], result
    assert [line for line in said if "LISTEN_FDNAMES" in line[1]] == [("web", "LISTEN_FDNAMES=web.socket")]


@every(SEVERAL, HERE)
def test_what_belongs_to_nobody_is_an_error(ground: Ground, variant: Variant) -> None:
    pods = ground.rkpy.pods()
    with listening() as lost:
        handed, number = Handed([("lost", lost)]), port(lost)
        apps = [
            *ground.app("say a", "--name=a"),
            "---",
            *ground.app("say b", "--name=b", image=ground.image(ports=[HTTP])),
        ]
        result = activating.run(ground, handed, *ground.words(variant), *apps)
    assert result.status == 254
    assert f'socket "lost" ({number}/tcp) belongs to no port of this pod (there is: http of b (80/tcp)' in result.err
    assert result.err.count("\n") == 1
    assert ground.rkpy.pods() == pods


@every(SUPERVISED, HERE)
def test_each_start_gets_them_and_no_connection_is_lost(ground: Ground, variant: Variant) -> None:
    with listening() as made:
        app = ground.app("answer 3 one 1 + fds + env", "--restart=always")
        with activating.running(ground, Handed([("http", made)]), ground.words(variant), app) as pod:
            answers = [ask(made) for _ in range(4)]
            ground.rkpy.ok("stop", pod.uuid)
            result = pod.wait()
    assert answers == ["one"] * 4
    pids = {line for line in result.lines if line.startswith("LISTEN_PID=")}
    assert len(pids) >= 3, result


@every(SUPERVISED, HERE)
def test_a_connection_ends_when_the_app_closes_it(ground: Ground, variant: Variant) -> None:
    """With Accept=yes it is the connection that is handed over: nobody else may keep it open."""
    with listening() as made, socket.create_connection(made.getsockname(), timeout=flavours.DEADLINE) as client:
        connection, _ = made.accept()
        with connection:
            words, app = ground.words(variant), ground.app("tell 3 hello + close 3 + sleep")
            with activating.running(ground, Handed([("connection", connection)]), words, app) as pod:
                connection.close()
                assert b"".join(iter(lambda: client.recv(100), b"")) == b"hello"
                ground.rkpy.ok("stop", "--force", pod.uuid)


@every(SUPERVISED, HERE)
def test_handlers_do_not_get_them(ground: Ground, variant: Variant) -> None:
    handlers = [
        {"name": "pre-start", "exec": ["/bin/inspect", "fds"]},
        {"name": "post-stop", "exec": ["/bin/inspect", "fds", "+", "env"]},
    ]
    image = ground.image(eventHandlers=handlers)
    with listening() as made:
        handed = Handed([("http", made)])
        result = activating.run(ground, handed, *ground.words(variant), *ground.app("say ***", image=image))
    before, after = result.out.split("***\n")
    assert result.status == 0, result
    assert [line.split()[0] for line in before.splitlines()] == ["0", "1", "2"], result
    assert "LISTEN" not in after, result
    assert not [line for line in after.splitlines() if line.startswith("3")], result


@every(SUPERVISED, HERE)
def test_enter_does_not_get_them(ground: Ground, variant: Variant) -> None:
    with listening() as made:
        app = ground.app("answer 3 up 1 + sleep")
        with activating.running(ground, Handed([("http", made)]), ground.words(variant), app) as pod:
            assert ask(made) == "up"
            found = ground.rkpy.ok("enter", pod.uuid, "/bin/inspect", "fds", "+", "env")
            ground.rkpy.ok("stop", "--force", pod.uuid)
    assert "LISTEN" not in found
    assert not [line for line in found.splitlines() if line.startswith("3")], found


@every(HERE)
def test_a_pod_prepared_before_gets_them_when_it_runs(ground: Ground, variant: Variant) -> None:
    flags = [word for word in variant.words if not word.startswith("--net")]
    net = [word for word in variant.words if word.startswith("--net")]
    image = ground.image(ports=[HTTP])
    made = ground.rkpy("--insecure-options=image", "prepare", *flags, *ground.app("answer 3 ready 1", image=image))
    assert "socket activated" not in made.err
    with listening() as one:
        words = ["run-prepared", *net, made.out.strip()]
        with activating.running(ground, Handed([("http", one)]), words, []) as pod:
            assert ask(one) == "ready"
            assert pod.wait().status == 0


@every(SEVERAL, HERE)
def test_a_published_port_that_is_listened_on_is_not_led_into_the_pod(ground: Ground, variant: Variant) -> None:
    """Pods without any network take such ports: the connection needs none."""
    with listening() as made:
        image = ground.image(ports=[HTTP])
        words = ground.words(variant, f"--port=http:127.0.0.1:{port(made)}")
        app = ground.app("answer 3 inside 1", image=image)
        with activating.running(ground, Handed([("any", made)]), words, app) as pod:
            assert ask(made) == "inside"
            result = pod.wait()
    assert (result.status, result.err) == (0, ""), result


# --- with networks

_LISTEN = """
import os, socket, sys
made = socket.create_server(("0.0.0.0", int(sys.argv[1])))
keep = os.dup(made.fileno()) if made.fileno() == 3 else made.fileno()
os.dup2(keep, 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with connected() as made:
        yield made


def test_a_port_that_systemd_holds_is_neither_claimed_nor_led_into_the_pod(site: Site) -> None:
    """Others of the pod are, and without the socket the port would be refused: somebody listens there."""
    words = ("run", "--port=http:8080", "--port=echo:7007", "example.com/net")
    file = site.directory / "activated"
    command = site.rkpy.command(*words[:1], f"--uuid-file-save={file}", *words[1:])
    process = site.lab.popen(
        "host", sys.executable, "-c", _LISTEN, "8080", *command,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=site.rkpy.environment(),
    )  # fmt: skip
    try:
        until(lambda: process.poll() is not None or (file.exists() and file.read_text().strip()))
        uuid = file.read_text().strip()
        site.ok("status", "--wait-ready=300s", uuid)
        (pod,) = json.loads(site.ok("list", "--format=json"))
        assert ":8080" not in json.dumps(pod) and '": 8080' not in json.dumps(pod)
        fds = site.ok("enter", uuid, "/bin/ls", "-l", "/proc/self/fd")
        assert "socket:" not in fds
        leader = site.ok("status", uuid)
        assert ":8080" not in leader
        rules = site.lab.host("nft", "list", "ruleset")
        assert "7007" in rules
        assert "8080" not in rules
        site.lab.leave(int(dict(line.split("=", 1) for line in leader.splitlines())["pid"]))
        assert "8080" in site.refused("run", "--port=http:8080", "example.com/net")
        site.ok("stop", uuid)
        process.communicate(timeout=flavours.DEADLINE)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


# --- what an app may not do


@every(SEVERAL, HERE)
def test_an_app_reaches_no_socket_of_another(ground: Ground, variant: Variant) -> None:
    """Neither through PID 1, which holds it for later starts, nor by the number of its descriptor."""
    look = "try readlink /proc/1/fd/9 + try open /proc/1/fd/9 r + try receive 3 + fds"
    with listening() as made:
        handed = Handed([("mine", made)])
        apps = [*ground.app("answer 3 mine 1", "--name=mine"), "---", *ground.app(look, "--name=other")]
        words = ground.words(variant, "--exit-policy=until-all")
        with activating.running(ground, handed, words, apps) as pod:
            assert [pod.line().partition(": ")[2] for _ in range(6)] == [
                "/proc/1/fd/9: Permission denied", "/proc/1/fd/9: EACCES", "read: Bad file descriptor",
                "0 character read", "1 fifo write", "2 fifo write",
            ]  # fmt: skip
            assert ask(made) == "mine"
            assert pod.wait().status == 0


@every(SEVERAL, HERE)
def test_a_sandbox_takes_none(ground: Ground, variant: Variant) -> None:
    with listening() as made:
        handed = Handed([("http", made)])
        result = activating.run(ground, handed, "app", "sandbox", *variant.words)
    assert result.status == 254
    assert 'socket "http"' in result.err
    assert "cannot be passed to apps that are added later" in result.err
    assert result.err.count("\n") == 1
