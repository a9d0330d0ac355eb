"""Health checks as flags and images write them, and as the annotation of an app keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from common.errors import UsageError
from stage0.behaviour import OCI_HEALTH
from stage0.options import Values
from stage1.plan import Health

ON_FAILURE = ("none", "kill", "restart", "stop")
_FLAGS = (
    "health-cmd",
    "health-interval",
    "health-timeout",
    "health-retries",
    "health-start-period",
    "health-on-failure",
)
_SHELL = ("/bin/sh", "-c")
_SHORTEST, _LONGEST = 0.1, 10_000_000.0
"""Seconds."""
_MOST = 1_000_000
_SECOND = 1_000_000_000


def of_app(flags: Values, image: Mapping[str, str]) -> Health | None:
    """What the flags of an app and the annotations of its image come to. Raises UsageError."""
    typed = [name for name in _FLAGS if flags.get(name) is not None]
    if flags.boolean("no-healthcheck"):
        if typed:
            raise UsageError(f"--no-healthcheck and --{typed[0]} cannot be combined")
        return None
    command = flags.get("health-cmd")
    if command is not None:
        argv = _command(command)
        found = Health(argv) if argv else None
    else:
        found = of_image(image[OCI_HEALTH]) if OCI_HEALTH in image else None
    if found is None:
        if others := [name for name in typed if name != "health-cmd"]:
            raise UsageError(f"--{others[0]}: the app has no health check", hint="give it one with --health-cmd")
        return None
    return _with_flags(found, flags)


def _with_flags(health: Health, flags: Values) -> Health:
    found: dict[str, Any] = {}
    for name in ("interval", "timeout", "start_period"):
        flag = f"health-{name.replace('_', '-')}"
        if (text := flags.get(flag)) is not None:
            found[name] = _seconds(flag, text)
    if (text := flags.get("health-retries")) is not None:
        if not (text.isascii() and text.isdigit()):
            raise UsageError(f"--health-retries={text}: not a number")
        found["retries"] = int(text[:20])
    if (text := flags.get("health-on-failure")) is not None:
        found["on_failure"] = text
    return checked(health._replace(**found), "--health-")


def _seconds(flag: str, text: str) -> float:
    from stage0 import durations

    try:
        return durations.parse(text) / durations.SECOND
    except UsageError as error:
        raise UsageError(f"--{flag}: {error.message}", hint=error.hint) from error


def checked(health: Health, about: str) -> Health:
    """`health`, if it makes sense. Raises UsageError, whose message begins with `about`."""
    for name, value, least in (
        ("interval", health.interval, _SHORTEST),
        ("timeout", health.timeout, _SHORTEST),
        ("start-period", health.start_period, 0.0),
    ):
        if not least <= value <= _LONGEST:
            raise UsageError(f"{about}{name}={value:g}s: not from {least:g}s to {_LONGEST:g}s")
    if not 1 <= health.retries <= _MOST:
        raise UsageError(f"{about}retries={health.retries}: not from 1 to {_MOST}")
    if health.on_failure not in ON_FAILURE:
        raise UsageError(f"{about}on-failure={health.on_failure}: not one of {', '.join(ON_FAILURE)}")
    return health


def _command(text: str) -> tuple[str, ...]:
    """A line for the shell, or a list in JSON as images have it; empty for none."""
    if text in ("", "none"):
        return ()
    if not text.startswith("["):
        return _argv(["CMD-SHELL", text], f"--health-cmd={text}")
    try:
        words = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--health-cmd={text}: not a list in JSON") from error
    return _argv(words, f"--health-cmd={text}")


def _argv(words: object, about: str) -> tuple[str, ...]:
    if not isinstance(words, list) or not all(isinstance(word, str) and "\0" not in word for word in words):
        raise UsageError(f"{about}: not a list of strings")
    kind, rest = (words[0], words[1:]) if words else ("NONE", [])
    if kind == "NONE":
        return ()
    if kind == "CMD-SHELL" and rest:
        return (*_SHELL, " ".join(rest))
    argv = rest if kind == "CMD" else words  # What else it begins with is a program, to podman too.
    if not argv or not argv[0]:
        raise UsageError(f"{about}: it names no program")
    return tuple(argv)


def of_image(text: str) -> Health | None:
    """The Healthcheck of an image's configuration, whose times are nanoseconds and 0 for the default."""
    try:
        return _of_image(json.loads(text))
    except (UsageError, ValueError, RecursionError) as error:
        why = error.message if isinstance(error, UsageError) else "not JSON"
        raise UsageError(
            f"the image's health check: {why}", hint="give another with --health-cmd, or --no-healthcheck"
        ) from error


def _of_image(value: object) -> Health | None:
    if not isinstance(value, dict):
        raise UsageError("not an object")
    argv = _argv(value.get("Test") or [], "Test")
    if not argv:
        return None
    found: dict[str, Any] = {}
    for name, key in (("interval", "Interval"), ("timeout", "Timeout"), ("start_period", "StartPeriod")):
        number = value.get(key) or 0
        if type(number) is not int or not 0 <= number <= _LONGEST * _SECOND:
            raise UsageError(f"{key} is not a number of nanoseconds")
        if number:
            found[name] = max(number / _SECOND, _SHORTEST)
    retries = value.get("Retries") or 3
    if type(retries) is not int:
        raise UsageError("Retries is not a number")
    return checked(Health(argv, retries=retries, **found), "")


def dumps(health: Health) -> str:
    """For an annotation."""
    return json.dumps(health._asdict(), separators=(",", ":"))


def loads(text: str) -> Health:
    """From an annotation. Raises UsageError."""
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError
        argv = _argv(["CMD", *value.pop("argv")], "argv")
        found = Health(argv, **value)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError("not a health check") from error
    times = (found.interval, found.timeout, found.start_period)
    if not all(type(number) in (int, float) for number in times) or type(found.retries) is not int:
        raise UsageError("not a health check")
    return checked(found, "")
