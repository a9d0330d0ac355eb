"""rkt's grammar of `run` and `prepare`: pod flags, then images, each with its own flags and arguments.

    rkpy run [POD FLAGS] IMAGE [APP FLAGS] [-- ARGS... [---]] [IMAGE ...]

Position matters: a flag of an app belongs to the image before it, `--` begins the arguments of the app, once an image,
and `---` ends them so that another image may follow. Flags of the pod may stand anywhere outside the arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.errors import UsageError
from common.records import NamedTuple
from stage0 import options
from stage0.options import Flag, Values
from stage1.systemd.given import Given

POD_OR_APP = ("mount", "reload-signal", "user-annotation", "user-label")
"""Flags that speak of the pod before the first image and of an app after it."""


class ImageArguments(NamedTuple):
    """One image of a command line."""

    reference: str
    flags: Values
    arguments: list[str]


class Request(NamedTuple):
    """A parsed command line: flags of the pod (global ones included) and the images in order."""

    flags: Values
    images: list[ImageArguments]
    given: Given = Given()
    """What the service manager handed to this process, for a pod that it becomes."""


APP_FLAGS = options.table(options.APP)
AFTER_IMAGE = {*APP_FLAGS, "user-annotation", "user-label"}


def parse(
    words: Sequence[str], flags: Mapping[str, Flag], *, arguments: bool = True, by_position: bool = True
) -> Request:
    """Parse everything after the command's name. `flags` are all the command takes; without `arguments` a `--` is an
    error, as for `fetch`; without `by_position` every flag goes to `Request.flags`. Raises UsageError."""
    request = Request(Values(), [])
    at = argued = 0
    while at < len(words):
        word = words[at]
        if word == "--":
            if argued == len(request.images):
                raise UsageError('"--" must follow an image and may appear only once for it')
            if not arguments:
                raise UsageError('arguments of an app ("--") have no meaning here')
            argued = len(request.images)
            at = _app_arguments(words, at + 1, request.images[-1].arguments)
        elif word == "---":
            raise UsageError('"---" ends the arguments of an app, and none were begun with "--"')
        elif options.is_flag(word):
            flag, value, at = options.take(words, at, flags)
            (_flags_for(flag, request) if by_position else request.flags).add(flag, value)
        else:
            request.images.append(ImageArguments(word, Values(), []))
            at += 1
    return request


def _app_arguments(words: Sequence[str], at: int, into: list[str]) -> int:
    """Move the words up to `---` into an image's arguments; the index of the word after them."""
    end = words.index("---", at) if "---" in words[at:] else len(words)
    into.extend(words[at:end])
    return end + 1


def _flags_for(flag: Flag, request: Request) -> Values:
    if flag.name in AFTER_IMAGE:
        if request.images:
            return request.images[-1].flags
        if flag.name not in POD_OR_APP:
            raise UsageError(f"--{flag.name} must follow an image")
    return request.flags
