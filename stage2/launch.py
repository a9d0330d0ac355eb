"""Become the app. Runs inside the app's root, in the process that will be the app."""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
from typing import NoReturn

from common import syscalls
from common.errors import LaunchError, reason
from common.records import NamedTuple
from stage2 import capabilities, environment, identity, listening, program

_RLIMIT_NAMES = (
    "cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile",
    "memlock", "as", "locks", "sigpending", "msgqueue", "nice", "rtprio", "rttime",
)  # fmt: skip
_MORE_IDS = "without root they come from /etc/subuid and /etc/subgid, see docs/rootless.md"
_PTY_MAJORS = range(136, 144)
"""Major numbers of pseudo-terminals (devices.txt, "Unix98 PTY slaves")."""


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
    keeps_groups: bool = False
    """Groups cannot be changed in our user namespace (`common.users`): the app stays in those of rkpy's caller."""
    owns_streams: bool = False
    """Descriptors 0 to 2 are the app's own pipes or terminal, so that its user may open them again by name."""


def launch(spec: LaunchSpec, *, report: int = -1, sockets: listening.Sockets = (), credentials: int = -1) -> NoReturn:
    """Execute the app in this process. LaunchError says why that was not possible; its exit status is the shell's 127
    for a missing program and 126 for one that cannot be executed.

    The app finds `sockets`, names and descriptors, as `stage2.listening` has it; `report` lies above them.
    `credentials` is a mount in the root whose files are to be its user's. Closes descriptors, so a caller that catches
    the error must not use its own; 0, 1, 2 and `report` stay, the latter until the app is executed."""
    sys.stdout.flush()
    sys.stderr.flush()
    # Before any path of the image's choosing is walked: through /proc/self/fd a directory of the host left open would
    # be a way out of the root (CVE-2024-21626).
    raised = listening.raised(sockets)
    syscalls.close_all_but((*spec.keep_fds, *raised, report, credentials), first=3)
    for fd in spec.keep_fds:
        os.set_inheritable(fd, True)
    who = identity.resolve(spec.user, spec.group, spec.supplementary_gids)
    variables = environment.build(spec.app_name, spec.environment, who, _terminal())
    if credentials >= 0:
        _give_credentials(credentials, who)
    listening.place(raised)
    variables.update(listening.variables(sockets))
    _reset_signals()
    os.umask(0o022)
    # While we still may: raising a limit takes a privilege of the host's, giving a descriptor away one of ours.
    _set_limits(spec)
    if spec.owns_streams:
        _give_streams(who)
    if spec.no_new_privileges:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    _become(who, spec)
    _enter_working_directory(spec.working_directory or "/", who)
    program.execute(spec.argv, variables, last=lambda: _load_filter(who, spec))


def forget_keys() -> None:
    """Leave the session keyring of whoever called rkpy, which is inherited by everything (session-keyring(7))."""
    try:
        syscalls.join_session_keyring()
    except OSError as error:
        # A kernel without keys, or a filter around rkpy that keeps the app from them as well.
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise


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


def _reset_signals() -> None:
    """Ignored signals stay ignored across execve(2), and Python ignores SIGPIPE and SIGXFSZ; blocked ones stay too."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _set_limits(spec: LaunchSpec) -> None:
    for resource, soft, hard in spec.rlimits:
        try:
            syscalls.setrlimit(resource, soft, hard)
        except OSError as error:
            asked = ":".join("unlimited" if value < 0 else str(value) for value in (soft, hard))
            raise LaunchError(
                f"cannot set the limit {_RLIMIT_NAMES[resource]} to {asked}: {reason(error)}",
                hint="above the hard limit rkpy has itself it takes CAP_SYS_RESOURCE",
            ) from error
    if spec.oom_score_adj is not None:
        _adjust_oom_score(spec.oom_score_adj)


def _adjust_oom_score(value: int) -> None:
    """/proc is looked up in the app's root, so make sure that it is the kernel's."""
    path = "/proc/self/oom_score_adj"
    # The files in /proc of a process that is not dumpable belong to the host's root, who is nobody in a user namespace.
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            if syscalls.filesystem_type(fd) != syscalls.PROC_SUPER_MAGIC:
                raise LaunchError(f"cannot set oom-score-adj: {path} in the app's root is not the kernel's")
            os.write(fd, b"%d" % value)
        finally:
            os.close(fd)
    except OSError as error:
        raise LaunchError(
            f"cannot set oom-score-adj to {value}: {reason(error)}",
            hint="lowering it takes CAP_SYS_RESOURCE",
        ) from error
    finally:
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)


def _give_credentials(mount: int, who: identity.Identity) -> None:
    """Let the app's user read what is in the directory `mount`, and nobody write to it; closes it. By descriptors: what
    lies at a path now is the image's affair."""
    try:
        directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=mount)
        for name in os.listdir(directory):
            os.chown(name, who.uid, who.gid, dir_fd=directory, follow_symlinks=False)
        os.fchown(directory, who.uid, who.gid)
        os.close(directory)
        syscalls.mount_setattr(mount, "credentials", set_attributes=syscalls.MOUNT_ATTR_RDONLY, recursive=False)
        os.close(mount)
    except OSError as error:
        raise _cannot(f"give the credentials to user {who.uid}", who, error) from error


def _give_streams(who: identity.Identity) -> None:
    """Let the app's user open /dev/stdout again by name. Only what is made for the pod is given away: pipes, sockets
    and pseudo-terminals; a file or a device of the host stays whose it is."""
    for fd in range(3):
        try:
            found = os.fstat(fd)
            pty = stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) in _PTY_MAJORS
            if (pty or stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode)) and found.st_uid != who.uid:
                os.fchown(fd, who.uid, -1)
        except OSError as error:
            raise _cannot(f"give stream {fd} to user {who.uid}", who, error) from error


def _become(who: identity.Identity, spec: LaunchSpec) -> None:
    """Groups first: a process that gave up root cannot change them any more."""
    try:
        if spec.capabilities is not None:
            _bound(spec.capabilities)
        if not spec.keeps_groups:
            os.setgroups(who.groups)
        elif who.groups:
            raise LaunchError(
                f"cannot give the app supplementary groups: {', '.join(map(str, who.groups))}", hint=_MORE_IDS
            )
        os.setresgid(who.gid, who.gid, who.gid)
        os.setresuid(who.uid, who.uid, who.uid)
        # Changing identity made us dumpable or not by a system-wide setting (suid_dumpable in proc(5)).
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        if spec.capabilities is not None:
            syscalls.capset(*_sets(who, spec))
            for ambient in spec.ambient:
                syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, ambient)
    except OSError as error:
        raise _cannot(f"become user {who.uid}, group {who.gid}", who, error) from error


def _cannot(what: str, who: identity.Identity, error: OSError) -> LaunchError:
    if error.errno != errno.EINVAL:
        return LaunchError(f"cannot {what}: {reason(error)}")
    # user_namespaces(7): what takes an ID fails so for one that is not mapped.
    groups = f", groups {' '.join(map(str, who.groups))}" if who.groups else ""
    asked = f"user {who.uid}, group {who.gid}{groups}"
    return LaunchError(f"the app cannot be {asked}: the pod's user namespace does not have them all", hint=_MORE_IDS)


# What the app may do is settled by its own execve(2), not by calls that follow the filter: root is permitted its
# bounding set then, anybody else the ambient set and what the program's file gives, whatever we still hold
# (capabilities(7), "Transformation of capabilities during execve()"). So without no_new_privs, which would disable
# setuid programs and file capabilities, we keep the CAP_SYS_ADMIN that loading a filter takes until it is loaded, the
# last thing we do; and the filter need not allow a call for our sake but execve, without which no app can start.


def _bound(wanted: tuple[int, ...]) -> None:
    # Nobody may look into this process while it holds more than the app; execve(2) ends that.
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    for number in capabilities.available().difference(wanted):
        syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)


def _sets(who: identity.Identity, spec: LaunchSpec, *, loading: bool = False) -> tuple[int, int, int]:
    """Effective, permitted and inheritable set from setresuid(2) to execve(2); `loading` is just before the filter."""
    ambient = capabilities.mask(spec.ambient)
    own = capabilities.mask(spec.capabilities or ()) if who.uid == 0 else ambient
    admin = capabilities.mask((capabilities.SYS_ADMIN,)) if spec.seccomp and not spec.no_new_privileges else 0
    return own | (admin if loading else 0), own | admin, ambient


def _load_filter(who: identity.Identity, spec: LaunchSpec) -> None:
    if not spec.seccomp:
        return
    try:
        if spec.capabilities is not None:
            syscalls.capset(*_sets(who, spec, loading=True))
        syscalls.set_seccomp_filter(spec.seccomp)
    except OSError as error:
        raise LaunchError(f"cannot load the system call filter: {reason(error)}") from error


def _enter_working_directory(path: str, who: identity.Identity) -> None:
    """As the app's user, so that it cannot start where it may not be. getcwd(2) fails outside the root."""
    try:
        os.chdir(path)
        os.getcwd()
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise LaunchError(f'cannot enter working directory "{path}" as user {who.uid}: {why}') from error
