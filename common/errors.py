"""What rkpy raises. Library code raises these; only `stage0.main` prints them and exits.

Every message says what failed and on what; `hint` says what to do next. A `RkpyError` is an expected failure and is
shown as one line; anything else that reaches `main` is a bug.
"""

from __future__ import annotations

import os

EXIT_FAILURE = 254
"""Every failure of the engine itself, so that it never looks like an app's own status (rkt since 1.18)."""
EXIT_CANNOT_EXEC = 126
"""The app's program was found and could not be executed (as shells report it)."""
EXIT_NOT_FOUND = 127
"""The app's program was not found."""


class RkpyError(Exception):
    """An expected failure. `message` is one sentence without a final stop; `hint` is a remedy or empty."""

    exit_status = EXIT_FAILURE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(RkpyError):
    """The command line asks for something that has no meaning."""


class ConfigError(RkpyError):
    """A configuration file cannot be used."""


class ManifestError(RkpyError):
    """An image or pod manifest breaks the specification."""


class ImageError(RkpyError):
    """An image cannot be read, is not what it claims to be, or tries something an image may not do."""


class StoreError(RkpyError):
    """The content store cannot do what was asked."""


class TrustError(RkpyError):
    """A signature is missing or bad, or its key is not trusted for this image."""


class PodError(RkpyError):
    """A pod is missing, ambiguous, or in the wrong state."""


class NetworkError(RkpyError):
    """A pod cannot be attached to a network, or detached from it."""


class SystemdError(RkpyError):
    """systemd, or a service of its, cannot be asked or says no; `name` is D-Bus's name for the error, if it has one."""

    def __init__(self, message: str, *, hint: str = "", name: str = "") -> None:
        super().__init__(message, hint=hint)
        self.name = name


class LaunchError(RkpyError):
    """An app could not be started; the exit status says whether its program was found."""

    def __init__(self, message: str, *, hint: str = "", exit_status: int = EXIT_FAILURE) -> None:
        super().__init__(message, hint=hint)
        self.exit_status = exit_status


def located(error: OSError) -> str:
    """`error` as the call that failed has it, with the path it was about if it was about one."""
    return f"{error.filename or ''}: {error.strerror}".removeprefix(": ")


def reason(error: OSError) -> str:
    """The kernel's words for `error`, lower-cased as Go and rkt print them: `no such file or directory`."""
    text = os.strerror(error.errno) if error.errno else str(error)
    return text[:1].lower() + text[1:]
