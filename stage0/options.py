"""Flags as data: one table feeds the parser of `run`, the help texts and the options every command shares.

`rkpy run` cannot afford the 23 ms click takes to import, and its grammar (flags that belong to the image before them,
`--` and `---`) is not click's; so its flags are rows of this table, read by the small Go-style parser below. All other
commands are ordinary click commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from common.errors import UsageError
from common.records import NamedTuple

TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True", "yes"))
FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False", "no"))

BOOL, STRING, LIST, OPTIONAL = "bool", "string", "list", "optional"


class Flag(NamedTuple):
    """One flag. `kind`: "bool" (`--x`, `--x=false`), "string", "list" (may be repeated), or "optional" (a string whose
    `=VALUE` may be left out, as in `--net`)."""

    name: str
    kind: str
    help: str
    default: str = ""
    bare: str = ""
    """What an "optional" flag means without a value."""
    values: tuple[str, ...] = ()
    """The words it takes, if these are all it takes."""


class Values:
    """The flags of one command line, or of one image on it, as they were typed."""

    def __init__(self) -> None:
        self._typed: dict[str, list[str]] = {}

    def add(self, flag: Flag, value: str) -> None:
        self._typed.setdefault(flag.name, []).append(value)

    def typed(self) -> tuple[str, ...]:
        """Names of the flags that were given, in the order they first appeared."""
        return tuple(self._typed)

    def all(self, name: str) -> list[str]:
        """Every value of a repeatable flag, in order."""
        return list(self._typed.get(name, ()))

    def get(self, name: str) -> str | None:
        """The value of a flag, None when it was not given; the last one wins, as in Go's flag packages."""
        values = self._typed.get(name)
        return values[-1] if values else None

    def boolean(self, name: str, default: bool = False) -> bool:
        value = self.get(name)
        return default if value is None else to_bool(name, value)

    def forget(self, name: str) -> None:
        """As if it had not been given."""
        del self._typed[name]

    def update(self, other: Values) -> None:
        for name, values in other._typed.items():
            self._typed.setdefault(name, []).extend(values)


GLOBAL = (
    Flag("debug", BOOL, "print out more debug information to stderr"),
    Flag("dir", STRING, "rkpy data directory (default: /var/lib/rkpy, or ~/.local/share/rkpy without root)"),
    Flag("insecure-options", STRING, "comma-separated list of security features to disable", "none"),
    Flag("local-config", STRING, "local configuration directory", "/etc/rkpy"),
    Flag("system-config", STRING, "system configuration directory", "/usr/lib/rkpy"),
    Flag("trust-keys-from-https", BOOL, "automatically trust gpg keys fetched from https"),
    Flag("user-config", STRING, "user configuration directory (default: ~/.config/rkpy without root, else none)"),
)

STAGE1 = (
    Flag("stage1", STRING, "flavour that runs the pod: nspawn, kvm or fly", "nspawn"),
    Flag("stage1-name", STRING, "flavour by the name of rkt's stage1 image, such as coreos.com/rkt/stage1-fly"),
)

IMAGE = (
    Flag("pull-policy", STRING, "when to fetch: new, never or update"),
    Flag("store-only", BOOL, "use only available images in the store (same as --pull-policy=never)"),
    Flag("no-store", BOOL, "fetch images, ignoring the store (same as --pull-policy=update)"),
)

BEHAVIOUR = (
    Flag("pod-name", STRING, "name of the pod, to be used instead of its UUID"),
    Flag("exit-policy", STRING, "what ends the pod: on-any-failure, on-any or until-all", "on-any-failure"),
    Flag("stop-timeout", STRING, "time between asking the apps to end and killing them", "10s"),
    Flag("log-driver", STRING, "where the apps' output is kept: auto, journald or file", "auto"),
    Flag("ready", STRING, "when the pod is ready: started, notify or healthy", "started"),
    Flag("kvm-accel", STRING, "what runs the pod's virtual machine: auto (kvm, which has to work), kvm or tcg", "auto"),
    Flag("kvm-kernel", STRING, "kernel of the pod's virtual machine: an absolute path, or a version", "the newest"),
    Flag("kvm-params", STRING, "more parameters for that kernel"),
    Flag("kvm-cpu", STRING, "model of that machine's processor, as QEMU has it: SandyBridge, or Haswell,-avx2"),
)

PREPARE = (
    *STAGE1,
    *IMAGE,
    Flag("inherit-env", BOOL, "inherit all environment variables not set by apps"),
    Flag("set-env", LIST, "environment variable to set for all the apps in the form name=value"),
    Flag(
        "set-env-file",
        LIST,
        "file of environment variables to set for all the apps; with - before its path it may be missing",
    ),
    Flag("no-overlay", BOOL, "copy the images' files instead of using overlayfs"),
    Flag("pod-file", STRING, "pod as JSON or TOML: a path, or the name of one in the directories of pod files"),
    Flag("pod-manifest", STRING, "path of a pod manifest to run instead of images"),
    Flag("port", LIST, "ports to publish: NAME:[HOSTIP:]HOSTPORT, or [HOSTIP:]HOSTPORT:PODPORT[/udp]"),
    Flag("private-users", BOOL, "run within user namespaces"),
    *BEHAVIOUR,
    Flag("volume", LIST, "volume to make available, in the form NAME,kind=host|empty|named,..."),
    Flag("user-annotation", LIST, "annotation of the pod in the form name=value (before an image)"),
    Flag("user-label", LIST, "label of the pod in the form name=value (before an image)"),
)

RUNTIME = (
    Flag("net", OPTIONAL, "networks of the pod: NAME[:K=V;K=V],..., all; or none, host, ns:PATH", "default", "default"),
    Flag("dns", LIST, "name server to write into /etc/resolv.conf, or host for the host's file, or none"),
    Flag("dns-search", LIST, "DNS search domain"),
    Flag("dns-opt", LIST, "DNS option"),
    Flag("dns-domain", STRING, "DNS domain"),
    Flag("hosts-entry", LIST, "entry for /etc/hosts in the form IP=HOST, or host for the host's file"),
    Flag("hostname", STRING, "host name of the pod", "rkpy-UUID"),
    Flag("load-credential", LIST, "credential for the apps in the form ID:PATH"),
    Flag("set-credential", LIST, "credential for the apps in the form ID:VALUE"),
    Flag("interactive", BOOL, "run the pod interactively; exactly one app"),
    Flag("ipc", STRING, "IPC namespace: auto, private or parent", "auto"),
    Flag("detach", BOOL, "have systemd run the pod, and print its UUID once it is up"),
    Flag("keep-unit", BOOL, "stay in the unit of systemd that this was started in"),
    Flag("register", BOOL, "register the pod with systemd-machined", "true"),
    Flag("uuid-file-save", STRING, "write the pod's UUID to this file"),
)

APP = (
    Flag("name", STRING, "name of the app"),
    Flag("exec", STRING, "program to run instead of the image's"),
    Flag("working-dir", STRING, "working directory"),
    Flag("user", STRING, "user to run the app as"),
    Flag("group", STRING, "group to run the app as"),
    Flag("supplementary-gids", LIST, "supplementary group IDs, comma-separated"),
    Flag("readonly-rootfs", BOOL, "mount the app's root read-only"),
    Flag("mount", LIST, "mount of a volume, in the form volume=NAME,target=PATH (for all apps before the first image)"),
    Flag("environment", LIST, "environment variable of the app in the form name=value"),
    Flag("annotation", LIST, "annotation of the app in the form name=value"),
    Flag("memory", STRING, "memory limit, such as 512M"),
    Flag("cpu", STRING, "CPU limit in cores, such as 0.5 or 500m"),
    Flag("cpu-shares", STRING, "CPU weight, 2 to 262144"),
    Flag("oom-score-adj", STRING, "OOM killer adjustment, -1000 to 1000"),
    Flag("caps-retain", LIST, "capabilities to keep, comma-separated"),
    Flag("caps-remove", LIST, "capabilities to take away, comma-separated"),
    Flag("caps-ambient", LIST, "capabilities that a user other than root keeps, comma-separated"),
    Flag("no-new-privileges", BOOL, "let no program of the app gain privileges, by setuid or otherwise"),
    Flag("pids-limit", STRING, "most processes and threads; 0 or -1 for no limit of the app's own"),
    Flag("seccomp", STRING, "system call filter, in the form mode=retain|remove[,errno=E],CALL|@GROUP,..."),
    Flag("restart", STRING, "when to start the app again: no, on-failure[:N] or always", "no"),
    Flag("stop-signal", STRING, "signal that asks the app to end, by name or number", "SIGTERM"),
    Flag("reload-signal", STRING, "signal that asks the app to read its files anew (for all before the first image)"),
    Flag("stdin", STRING, "where the app's input comes from: null, tty or stream", "null"),
    Flag("stdout", STRING, "where the app's output goes: log, null, tty or stream", "log"),
    Flag("stderr", STRING, "where the app's errors go: log, null, tty or stream", "log"),
    Flag("device", LIST, "device of the host the app may use, in the form HOST[:APP][:rwm]"),
    Flag("ulimit", LIST, "limit of each process in the form NAME=SOFT[:HARD], such as nofile=1024:4096"),
    Flag(
        "health-cmd", STRING, "command that tells whether the app is well: a line for its shell, a JSON list, or none"
    ),
    Flag("health-interval", STRING, "time between two health checks", "30s"),
    Flag("health-timeout", STRING, "time after which a health check has failed", "30s"),
    Flag("health-retries", STRING, "failed health checks in a row that make the app unhealthy", "3"),
    Flag("health-start-period", STRING, "time after the app's start in which failed health checks do not count", "0s"),
    Flag("health-on-failure", STRING, "what follows when it becomes unhealthy: none, kill, restart or stop", "none"),
    Flag("no-healthcheck", BOOL, "do without the image's health check"),
    Flag("signature", STRING, "file with the image's detached signature"),
)

ALIASES = {"cap-retain": "caps-retain", "cap-remove": "caps-remove", "oom-score-adjust": "oom-score-adj"}
"""Spellings rkt accepted or documented."""


def table(*groups: Iterable[Flag]) -> dict[str, Flag]:
    return {flag.name: flag for group in groups for flag in group}


def to_bool(name: str, value: str) -> bool:
    """A boolean in the spellings of Go's strconv.ParseBool, or systemd's yes and no. Raises UsageError."""
    if value in TRUE or value in FALSE:
        return value in TRUE
    raise UsageError(f'invalid value "{value}" for flag --{name}: not a boolean', hint="use true or false")


def is_flag(word: str) -> bool:
    return word.startswith("-") and word not in ("-", "--", "---")


def take(words: Sequence[str], at: int, flags: Mapping[str, Flag]) -> tuple[Flag, str, int]:
    """Read the flag at `words[at]`: the flag, its value and the index of the next word. Raises UsageError."""
    name, given, value = words[at].partition("=")
    if not name.startswith("--"):
        raise UsageError(f"unknown shorthand flag: {words[at]}")
    flag = flags.get(ALIASES.get(name[2:], name[2:]))
    if flag is None:
        raise UsageError(f"unknown flag: {name}")
    if given:
        if flag.kind == BOOL:
            to_bool(flag.name, value)
        return flag, value, at + 1
    if flag.kind == BOOL:
        return flag, "true", at + 1
    if flag.kind == OPTIONAL:
        return flag, flag.bare, at + 1
    if at + 1 >= len(words):
        raise UsageError(f"flag needs an argument: {name}")
    return flag, words[at + 1], at + 2
