"""A scope for a pod, from a systemd that is played here on a real bus."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from common.errors import SystemdError
from stage1 import channel
from stage1.plan import dumps
from stage1.systemd import registrar, units
from stage1.systemd.bus import Bus
from stage1.systemd.manager import Manager
from stage1.systemd.registrar import Registration
from tests import buses
from tests.buses import Daemon, broadcast, next_call

UUID = "c9bd7a2a-0000-4000-8000-000000000000"
POD = Registration(UUID, "web", "/pod", "/", False, False, 10, kind="container")
ELSEWHERE = "session-1.scope"
EXISTS = "org.freedesktop.systemd1.UnitExists"


@pytest.mark.parametrize("asked", [True, False])
def test_a_request_that_comes_before_the_monitor_listens_is_passed_on(daemon: Daemon, asked: bool) -> None:
    """Up to where the registrar has handed over the connection."""
    systemd, stranger = Bus(daemon.path), Bus(daemon.path)
    buses.own(systemd)
    begun = registrar.begin(Manager(daemon.path, "/run/a place/private"))
    begun.channel.send("pod", (channel.memory_file(dumps(POD)),))
    call = next_call(systemd)
    assert call.member == "StartTransientUnit"
    receiver = dict(call.body[2])["Controller"].value
    buses.request_stop(systemd if asked else stranger, receiver)
    stranger.owner("org.freedesktop.DBus")  # The bus has passed it on.
    grant(systemd, call)
    text, fds = begun.channel.receive()
    assert text == f"scoped rkpy-web.scope {systemd.name} {asked:d} /run/a place/private"
    for fd in fds:
        os.close(fd)
    begun.channel.close()
    assert os.waitpid(begun.pid, 0)[1] == 0
    systemd.close()
    stranger.close()


def grant(systemd: Bus, call: object) -> None:
    buses.reply(systemd, call, "o", ["/job/1"])
    systemd.socket.sendall(broadcast("JobRemoved", "uoss", [1, "/job/1", call.body[0], "done"]))  # type: ignore[attr-defined]


class Asking:
    """A registrar's request for a scope, made while the test is systemd."""

    def __init__(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = path
        self.unit = ELSEWHERE
        """Where the pod's process is."""
        self.looks = 0
        """How often that was looked up."""
        monkeypatch.setattr(units, "of", self._look)
        self.systemd = self.reborn()
        self._connection = Bus(path)
        self._connection.listen(registrar.JOBS)
        self._connection.listen(registrar.SYSTEMDS)
        self._connection.owner("org.freedesktop.DBus")  # It listens.
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._result: str | SystemdError = ""

    def _look(self, _pid: int) -> str:
        self.looks += 1
        return self.unit

    def reborn(self) -> Bus:
        """A systemd that is on the bus."""
        made = Bus(self._path)
        buses.own(made)
        return made

    def executed_anew(self) -> None:
        self.systemd.close()
        self.systemd = self.reborn()

    def begin(self) -> None:
        self._thread.start()

    def _ask(self) -> None:
        try:
            self._result = registrar.make_scope(self._connection, POD, 4711)
        except SystemdError as error:
            self._result = error

    def result(self) -> str | SystemdError:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self._result

    def asked_for(self) -> tuple[object, str]:
        """The next request, and the unit's name."""
        call = next_call(self.systemd)
        assert call.member == "StartTransientUnit"
        return call, call.body[0]

    def close(self) -> None:
        self.systemd.close()
        self._connection.close()


@pytest.fixture
def asking(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asking]:
    monkeypatch.setattr(registrar, "_SETTLING", 60.0)
    made = Asking(daemon.path, monkeypatch)
    yield made
    made.close()


def test_a_systemd_executed_anew_before_it_is_asked_is_no_matter_of_the_request(asking: Asking) -> None:
    """As in a long fetch: what the bus tells of that is taken for no answer to what is asked later."""
    asking.executed_anew()
    asking.begin()
    call, name = asking.asked_for()
    grant(asking.systemd, call)
    assert asking.result() == name == "rkpy-web.scope"


def test_a_scope_that_was_made_without_an_answer_is_the_pods(asking: Asking) -> None:
    asking.begin()
    _, asking.unit = asking.asked_for()
    asking.executed_anew()
    assert asking.result() == "rkpy-web.scope"


def test_a_request_that_was_lost_is_made_again(asking: Asking) -> None:
    asking.begin()
    asking.asked_for()
    asking.executed_anew()
    call, name = asking.asked_for()
    grant(asking.systemd, call)
    assert asking.result() == name == "rkpy-web.scope"


def test_a_scope_in_which_the_pod_is_about_to_be_is_waited_for(asking: Asking) -> None:
    """systemd had made the unit and not yet put the process into it: to ask again finds the names taken."""
    asking.begin()
    asking.asked_for()
    asking.executed_anew()
    names = []
    for _ in range(2):
        call, name = asking.asked_for()
        buses.refuse(asking.systemd, call, EXISTS)
        names.append(name)
    end = time.monotonic() + 60
    while asking.looks < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
    asking.unit = names[0]
    assert asking.result() == "rkpy-web.scope"


def test_names_that_others_have_taken_are_an_error(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registrar, "_SETTLING", 0.1)
    asking.begin()
    asking.asked_for()
    asking.executed_anew()
    for _ in range(2):
        buses.refuse(asking.systemd, asking.asked_for()[0], EXISTS)
    result = asking.result()
    assert isinstance(result, SystemdError) and result.name == EXISTS


def test_without_an_interruption_it_is_not_asked_twice(asking: Asking) -> None:
    """The pod is in no unit of those names then, whatever /proc says."""
    asking.begin()
    for _ in range(2):
        call, asking.unit = asking.asked_for()
        buses.refuse(asking.systemd, call, EXISTS)
    result = asking.result()
    assert isinstance(result, SystemdError) and result.name == EXISTS
