"""Become the app. Runs inside the app's root, in the process that will be the app."""

from __future__ import annotations

import os
import signal
import sys
from typing import NamedTuple, NoReturn

from common import syscalls
from common.errors import LaunchError, reason
from stage2 import environment, identity, program

MAX_FD = 2**31 - 1


class LaunchSpec(NamedTuple):
    """Everything stage2 needs to know of one app; all names (users, groups, programs) are resolved inside the root."""

    app_name: str
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    user: str
    """Name, number, or absolute path of a file whose owner is meant (spec 0.8.11, "Image Manifest Schema")."""
    group: str
    supplementary_gids: tuple[int, ...]
    working_directory: str
    no_new_privileges: bool
    keep_fds: tuple[int, ...]
    """Descriptors above 2 the app inherits on purpose; every other one is closed."""
    capabilities: tuple[int, ...] | None = None
    """The bounding set, by number (linux/capability.h); None leaves all sets as they are."""
    ambient: tuple[int, ...] = ()
    """Capabilities a user other than root keeps across execve(2) (capabilities(7), "Ambient")."""
    seccomp: bytes = b""
    """A filter as an array of struct sock_filter (seccomp(2)); empty for none."""
    rlimits: tuple[tuple[int, int, int], ...] = ()
    """(resource, soft, hard) as setrlimit(2) takes them, -1 for no limit."""
    oom_score_adj: int | None = None
    owns_streams: bool = False
    """Descriptors 0 to 2 are the app's own pipes or terminal, so that its user may open them again by name."""


def launch(spec: LaunchSpec, *, report: int = -1) -> NoReturn:
    """Execute the app in this process. LaunchError says why that was not possible; its exit status is the shell's 127
    for a missing program and 126 for one that cannot be executed.

    Closes descriptors, so a caller that catches the error must not use its own; 0, 1, 2 and `report` stay, the latter
    until the app is executed."""
    who = identity.resolve(spec.user, spec.group, spec.supplementary_gids)
    variables = environment.build(spec.app_name, spec.environment, who, _terminal())
    sys.stdout.flush()
    sys.stderr.flush()
    # Before any path of the image's choosing is walked: through /proc/self/fd a directory of the host left open would
    # be a way out of the root (CVE-2024-21626).
    _close_all_but((*spec.keep_fds, report))
    for fd in spec.keep_fds:
        os.set_inheritable(fd, True)
    _reset_signals()
    os.umask(0o022)
    if spec.no_new_privileges:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    _become(who)
    _enter_working_directory(spec.working_directory or "/", who)
    program.execute(spec.argv, variables)


def run_and_wait(spec: LaunchSpec, what: str) -> None:
    """Run one command to its end as `launch` would, in a child; LaunchError when it fails. `what` names it."""
    child = os.fork()
    if child == 0:
        _launch_or_exit(spec)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        how = f"exit status {status}" if status > 0 else f"signal {-status}"
        raise LaunchError(f'{what} of app "{spec.app_name}" failed ({how})')


def _launch_or_exit(spec: LaunchSpec) -> NoReturn:
    """The child's half of `run_and_wait`: nothing of the parent's may run in it."""
    try:
        launch(spec)
    except LaunchError as error:
        os.write(2, f"{error}\n".encode("utf-8", "backslashreplace"))
        os._exit(error.exit_status)
    finally:
        os._exit(1)


def _terminal() -> str:
    """The caller's TERM when the app gets a terminal."""
    try:
        name = os.environ.get("TERM", "") if os.isatty(0) else ""
    except OSError:
        return ""
    return name if name.isascii() and name.isprintable() else ""


def _close_all_but(keep: tuple[int, ...]) -> None:
    first = 3
    for fd in sorted({fd for fd in keep if fd > 2}):
        if first < fd:
            syscalls.close_range(first, fd - 1)
        first = fd + 1
    syscalls.close_range(first, MAX_FD)


def _reset_signals() -> None:
    """Ignored signals stay ignored across execve(2), and Python ignores SIGPIPE and SIGXFSZ; blocked ones stay too."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _become(who: identity.Identity) -> None:
    """Groups first: a process that gave up root cannot change them any more."""
    try:
        os.setgroups(who.groups)
        os.setresgid(who.gid, who.gid, who.gid)
        os.setresuid(who.uid, who.uid, who.uid)
    except OSError as error:
        raise LaunchError(f"cannot become user {who.uid}, group {who.gid}: {reason(error)}") from error


def _enter_working_directory(path: str, who: identity.Identity) -> None:
    """As the app's user, so that it cannot start where it may not be. getcwd(2) fails outside the root."""
    try:
        os.chdir(path)
        os.getcwd()
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise LaunchError(f'cannot enter working directory "{path}" as user {who.uid}: {why}') from error
