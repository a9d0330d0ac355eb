"""The pod as a service of a service manager: when it is ready, what it is about, and signs of life (sd_notify(3)).

The monitor has one of these only when somebody is to be told, or an app has something to tell. Apps speak to the
monitor by a socket of their own each (`stage1.appsockets`), so it is known which app says what; what is passed on is
passed on in the pod's name. Everything an app says is hostile: it is short, printable, and not too often.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

from stage1.appsockets import NOTIFY, AppSocket
from stage1.loop import Loop, Timer
from stage1.plan import HEALTHY, READY_NOTIFY, AppPlan, PodPlan
from stage1.systemd import notify

MAX_STATUS = 200
"""Characters of an app's status that are passed on."""
_LARGEST = 4096
"""Bytes of a message; systemd ignores longer ones as well (NOTIFY_BUFFER_MAX)."""
_PACE = 0.05
"""Seconds between two messages that can wait for each other."""
_MANY = 16
"""Messages to a service manager that does not listen, beyond which an app's reloads are not passed on."""
_PATIENCE = 1.0
"""Seconds that the pod's last words may take."""
_BURST, _WINDOW = 200, 1.0
"""Messages an app may send in so many seconds until it has to wait for the next such time."""
_ANSWER = 2.0
"""Seconds that an app has to say that it reloads, when it was told to. Which of them do nobody knows before."""
_EVERY, _STEP = 1.0, 20.0
"""Seconds between two requests for more time while a machine boots, and how much is asked for."""


class Service:
    """One pod. `on_ready` is called once, when the pod is; `ask` sends the supervisor a word."""

    def __init__(self, loop: Loop, plan: PodPlan, on_ready: Callable[[], None], ask: Callable[[str], None]) -> None:
        self._loop = loop
        self._plan = plan
        self._on_ready = on_ready
        self._ask = ask
        self._host = _Host(loop, plan.given.notify)
        self._listeners: dict[str, _Listener] = {}
        self._awaited = {app.name for app in plan.apps if _is_awaited(plan.ready, app)}
        self._started = self._ready = self._stopping = self._triggered = False
        self._reloading: set[str] = set()
        """The apps that are to say that they have reloaded, before the pod has."""
        self._silent: set[str] = set()
        """Those of them that were told to and have not answered yet."""
        self._patience: Timer | None = None
        self._spoken = False
        """Whether the last status was an app's, which tells more than a number of apps."""
        self._running: dict[str, bool] = {}
        """The apps that run, and whether each is one that gives signs of life itself."""
        self._fed: set[str] = set()
        """Those that have given one since the last that was passed on."""
        self._boot: Timer | None = None
        """As long as a machine boots."""
        self._boot_began = 0.0
        self._host.say(MAINPID=str(os.getpid()))
        if plan.given.watchdog and plan.given.notify:
            self._third = plan.given.watchdog / 3e6
            self._tick()

    # --- what the monitor says

    def listen(self, app: AppPlan) -> None:
        """Be there for what `app` says, before it is started. Raises LaunchError."""
        if NOTIFY in app.sockets and app.name not in self._listeners:
            self._listeners[app.name] = _Listener(self._loop, self._plan.directory, app.name, self._hear)

    def status(self, text: str) -> None:
        self._spoken = False
        self._host.say(STATUS=text)

    def boots(self) -> None:
        """A virtual machine is being started. That may take longer than a unit's TimeoutStartSec= allows, and is given
        up by whoever starts it when it takes too long."""
        self._boot_began = time.monotonic()
        self.status("starting the virtual machine")
        self._await_boot()

    def _await_boot(self) -> None:
        if not self._stopping:
            self._extend(_STEP)
            self._boot = self._loop.call_later(_EVERY, self._await_boot)

    def booted(self) -> None:
        """It is up. What that took is added to what the apps may still take."""
        if self._boot is not None:
            self._boot.cancel()
            self._boot = None
            self._extend(max(_STEP, time.monotonic() - self._boot_began))

    def _extend(self, seconds: float) -> None:
        self._host.say(EXTEND_TIMEOUT_USEC=str(int(seconds * 1e6)))

    def all_started(self) -> None:
        """Every app of the beginning has been executed."""
        self._started = True
        self._review()

    def started(self, app: AppPlan) -> None:
        self._running[app.name] = NOTIFY in app.sockets
        if self._ready and not self._spoken:
            self._summarize()

    def ended(self, app: AppPlan, how: str, again: bool) -> None:
        """`how` in words. What it said before is heard first."""
        name = app.name
        if name in self._listeners:
            self._listeners[name].drain()
        self._running.pop(name, None)
        self._fed.discard(name)
        self._reloaded(name)
        if _is_awaited(self._plan.ready, app):
            self._awaited.add(name)
        if self._stopping:
            return
        self._summarize(f"app {name} {how}" + (", starting it again" if again else ""))
        self._pass_on_life()

    def removed(self, name: str) -> None:
        if name in self._listeners:
            self._listeners.pop(name).close()

    def health(self, name: str, state: str) -> None:
        """What the checks of an app have come to."""
        if self._plan.ready == HEALTHY and not self._ready:
            (self._awaited.discard if state == "healthy" else self._awaited.add)(name)
            self._review()
        if state == "unhealthy":
            self.status(f"app {name} is unhealthy")
        elif self._ready and not self._spoken:
            self._summarize()

    def reload(self, apps: Iterable[str]) -> None:
        """These apps are being told to reload. The pod has reloaded when those have that tell of it; at once if none
        does. systemd takes no request before the pod is ready."""
        if not self._ready or self._stopping:
            return
        self._say_reloading()
        self._reloading |= {name for name in apps if self._running.get(name)}
        if not self._reloading:
            self._host.say_now(READY="1")
            return
        self._silent |= self._reloading
        if self._patience is not None:
            self._patience.cancel()
        self._patience = self._loop.call_later(_ANSWER, self._lose_patience)

    def _say_reloading(self, stamp: str = "") -> None:
        """`stamp`: microseconds of CLOCK_MONOTONIC; now, if it is empty. An earlier one than that of the request would
        be of another reload (sd_notify(3))."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._host.say_now(RELOADING="1", MONOTONIC_USEC=stamp or str(now))

    def _lose_patience(self) -> None:
        """Of its reloads an app may say nothing, though it has told that it is ready."""
        for name in list(self._silent):
            self._reloaded(name)

    def _reloaded(self, name: str) -> None:
        self._silent.discard(name)
        if name in self._reloading:
            self._reloading.discard(name)
            if not self._reloading and not self._stopping:
                self._host.say_now(READY="1")

    def alive(self) -> None:
        """The supervisor has answered."""
        if not any(self._running.values()):
            self._host.say(WATCHDOG="1")

    def stopping(self, why: str = "stopping") -> None:
        """Somebody has asked the pod to end, or it ends by itself."""
        if not self._stopping:
            self._stopping = True
            self._host.say_now(STOPPING="1", STATUS="".join(char if char.isprintable() else " " for char in why))

    def close(self) -> None:
        self._host.close()
        for listener in self._listeners.values():
            listener.close()

    # --- readiness

    def _review(self) -> None:
        if self._ready or not self._started or self._stopping:
            return
        if self._awaited:
            if not self._spoken:
                self.status(f"waiting for {_enumerate(sorted(self._awaited))}")
            return
        self._ready = True
        self._on_ready()
        # An app may have spoken before we knew that it runs.
        self._host.say_now(READY="1", **({} if self._spoken else {"STATUS": self._running_text()}))

    def _summarize(self, event: str = "") -> None:
        self.status("; ".join(filter(None, (event, self._running_text()))))

    def _running_text(self) -> str:
        count = len(self._running)
        return f"{count} app{'' if count == 1 else 's'} running"

    # --- signs of life

    def _tick(self) -> None:
        """Without apps that tell of themselves it is the supervisor that has to be alive, and to answer."""
        if not any(self._running.values()):
            self._ask("ping")
        self._loop.call_later(self._third, self._tick)

    def _pass_on_life(self) -> None:
        speaking = {name for name, speaks in self._running.items() if speaks}
        if self._fed and speaking <= self._fed:
            self._fed.clear()
            self._host.say(WATCHDOG="1")

    # --- what apps say

    def _hear(self, name: str, fields: dict[str, str]) -> None:
        alone = len(self._listeners) == 1
        if "STATUS" in fields:
            text = "".join(char if char.isprintable() else " " for char in fields["STATUS"][:MAX_STATUS])
            self.status(f"{name}: {text}")
        self._spoken = "STATUS" in fields or (self._spoken and fields.get("READY") != "1")
        if fields.get("RELOADING") == "1":
            self._hear_reloading(name, fields.get("MONOTONIC_USEC", ""), alone)
        elif fields.get("READY") == "1":
            self._hear_ready(name)
        extension = fields.get("EXTEND_TIMEOUT_USEC", "")
        if _is_number(extension) and (self._stopping or not self._ready):
            self._host.say(EXTEND_TIMEOUT_USEC=extension)
        if fields.get("WATCHDOG") == "1":
            self._fed.add(name)
            self._pass_on_life()
        elif fields.get("WATCHDOG") == "trigger" and not self._triggered:
            self._triggered = True
            self._host.say_now(WATCHDOG="trigger")

    def _hear_reloading(self, name: str, stamp: str, alone: bool) -> None:
        """Of its own accord, which the pod does then, too, if there is nobody else; or because it was told to."""
        if name in self._silent:
            self._silent.discard(name)
        elif alone and self._ready and not self._stopping and not self._host.is_behind:
            self._reloading.add(name)
            # A machine's clock is that of another kernel, which may have begun later.
            self._say_reloading(stamp if _is_number(stamp) and self._plan.machine is None else "")

    def _hear_ready(self, name: str) -> None:
        if name in self._reloading:
            self._reloaded(name)
        elif self._plan.ready == READY_NOTIFY:
            self._awaited.discard(name)
            self._review()


def _is_awaited(ready: str, app: AppPlan) -> bool:
    return (ready == READY_NOTIFY and NOTIFY in app.sockets) or (ready == HEALTHY and app.health is not None)


def _enumerate(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


class _Host:
    """The service manager. Of what is said again before it was sent only the last is sent. A manager that does not
    listen for a while, with its queue full (max_dgram_qlen, 10 where nobody has raised it), is told afterwards."""

    def __init__(self, loop: Loop, address: str) -> None:
        self._loop = loop
        self._address = address
        self._due: list[dict[str, str]] = []
        """Messages that have to be sent, in this order, before anything else is."""
        self._waiting: dict[str, str] = {}
        self._timer: Timer | None = None
        self._last = 0.0

    @property
    def is_behind(self) -> bool:
        """Whether so much is due that an app has to make do without being passed on."""
        return len(self._due) > _MANY

    def say(self, **fields: str) -> None:
        """At once, or soon after what was said before."""
        if not self._address:
            return
        self._waiting.update(fields)
        if self._timer is None:
            wait = self._last + _PACE - time.monotonic()
            if wait > 0:
                self._timer = self._loop.call_later(wait, self._flush)
            else:
                self._flush()

    def say_now(self, **fields: str) -> None:
        """Also in its order: what was to be said before is said before."""
        if not self._address:
            return
        if self._waiting:
            self._due.append(self._waiting)
        self._due.append(fields)
        self._waiting = {}
        self._flush()

    def _flush(self, patience: float = 0) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._last = time.monotonic()
        while self._due or self._waiting:
            fields = self._due[0] if self._due else self._waiting
            text = "\n".join(f"{key}={value}" for key, value in fields.items())
            if not notify.send(self._address, text, patience):
                self._timer = self._loop.call_later(_PACE, self._flush)
                return
            if self._due:
                self._due.pop(0)
            else:
                self._waiting = {}

    def close(self) -> None:
        self._flush(_PATIENCE)
        if self._timer is not None:
            self._timer.cancel()


class _Listener:
    """The socket of one app."""

    def __init__(self, loop: Loop, pod: str, app: str, hear: Callable[[str, dict[str, str]], None]) -> None:
        self._loop = loop
        self._app = app
        self._hear = hear
        self._since = time.monotonic()
        self._count = 0
        self._closed = False
        self._socket = AppSocket(loop, pod, app, NOTIFY, self._receive)

    def drain(self) -> None:
        """Take what is waiting."""
        self._socket.take()

    def _receive(self, data: bytes, _fds: list[int]) -> None:
        """Descriptors are closed by who calls this: of BARRIER=1 that is the answer (sd_notify_barrier(3)), and of
        FDSTORE=1 the end, because they would come back to nobody."""
        self._throttle()
        if len(data) > _LARGEST or b"\0" in data:
            return
        lines = (line.partition("=") for line in data.decode("utf-8", "replace").splitlines())
        self._hear(self._app, {key: value for key, given, value in lines if given})

    def _throttle(self) -> None:
        now = time.monotonic()
        if now - self._since > _WINDOW:
            self._since, self._count = now, 0
        self._count += 1
        if self._count == _BURST:
            self._socket.pause()
            self._loop.call_later(_WINDOW, self._resume)

    def _resume(self) -> None:
        if not self._closed:
            self._socket.resume()

    def close(self) -> None:
        self._closed = True
        self._socket.close()
