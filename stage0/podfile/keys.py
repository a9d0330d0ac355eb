"""The keys of `.pod` files as data: each is a flag of `rkpy run`, in Quadlet's name for it where Quadlet has one
(podman-systemd.unit(5), podman-container.unit(5), podman-pod.unit(5))."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from common.records import NamedTuple
from stage0.podfile import quoting

ONE, EACH, WORDS, SWITCH = "one", "each", "words", "switch"
NOTIFY = "appc.io/executor/supports-systemd-notify"
"""rkt's annotation of an app that says itself when it is ready."""

_TRUE = frozenset(("1", "yes", "y", "true", "t", "on"))
_FALSE = frozenset(("0", "no", "n", "false", "f", "off"))


class Key(NamedTuple):
    """One key. `kind`: "one" (the last counts), "each" (may be repeated; every value whole), "words" (repeated, and
    each word of a value counts) or "switch" (a boolean). An empty value takes back what came before it."""

    kind: str
    flag: str = ""
    """Of `rkpy run`; empty for what is made of it elsewhere (`stage0.podfile.pods`)."""
    convert: Callable[[str], str] | None = None
    """From the key's value to the flag's; raises ValueError."""


def boolean(text: str) -> str:
    """systemd's booleans (systemd.syntax(7)), as flags have them."""
    if text.lower() in _TRUE:
        return "true"
    if text.lower() in _FALSE:
        return "false"
    raise ValueError(f'"{text}" is neither yes nor no')


def _host(text: str) -> str:
    """Quadlet's `HOST:IP` as `IP=HOST`."""
    name, colon, address = text.partition(":")
    return f"{address}={name}" if colon and "=" not in text else text


def _pull(text: str) -> str:
    return {"always": "update", "newer": "update", "missing": "new"}.get(text, text)


def _notify(text: str) -> str:
    """What `Notify=` says: "healthy", "true" or "false"."""
    return text if text == "healthy" else boolean(text)


POD = {
    "AddHost": Key(EACH, "hosts-entry", _host),
    "Annotation": Key(WORDS, "user-annotation"),
    "DNS": Key(EACH, "dns"),
    "DNSDomain": Key(ONE, "dns-domain"),
    "DNSOption": Key(EACH, "dns-opt"),
    "DNSSearch": Key(EACH, "dns-search"),
    "Environment": Key(WORDS, "set-env"),
    "EnvironmentFile": Key(EACH, "set-env-file"),
    "EnvironmentHost": Key(SWITCH, "inherit-env"),
    "ExitPolicy": Key(ONE, "exit-policy"),
    "GlobalArgs": Key(WORDS),
    "HostName": Key(ONE, "hostname"),
    "IPC": Key(ONE, "ipc"),
    "KvmAccel": Key(ONE, "kvm-accel"),
    "KvmCpu": Key(ONE, "kvm-cpu"),
    "KvmKernel": Key(ONE, "kvm-kernel"),
    "KvmParams": Key(ONE, "kvm-params"),
    "Label": Key(WORDS, "user-label"),
    "LoadCredential": Key(EACH, "load-credential"),
    "LogDriver": Key(ONE, "log-driver"),
    "Mount": Key(EACH),
    "Network": Key(EACH, "net"),
    "NoOverlay": Key(SWITCH, "no-overlay"),
    "Notify": Key(ONE, "", _notify),
    "PodManifest": Key(ONE, "pod-manifest"),
    "PodName": Key(ONE, "pod-name"),
    "PrivateUsers": Key(SWITCH, "private-users"),
    "PublishPort": Key(EACH, "port"),
    "Pull": Key(ONE, "pull-policy", _pull),
    "Ready": Key(ONE, "ready"),
    "Register": Key(SWITCH, "register"),
    "ReloadSignal": Key(ONE, "reload-signal"),
    "RkpyArgs": Key(WORDS),
    "SetCredential": Key(EACH, "set-credential"),
    "Stage1": Key(ONE, "stage1"),
    "StopTimeout": Key(ONE, "stop-timeout"),
    "Tmpfs": Key(EACH),
    "UUIDFile": Key(ONE, "uuid-file-save"),
    "Volume": Key(EACH),
}
"""Keys of [Pod]."""

APP = {
    "AddCapability": Key(WORDS),
    "AddDevice": Key(EACH, "device"),
    "Annotation": Key(WORDS, "user-annotation"),
    "AppName": Key(ONE, "name"),
    "CPU": Key(ONE, "cpu"),
    "CPUShares": Key(ONE, "cpu-shares"),
    "CapsAmbient": Key(WORDS, "caps-ambient"),
    "CapsRemove": Key(WORDS, "caps-remove"),
    "CapsRetain": Key(WORDS, "caps-retain"),
    "DropCapability": Key(WORDS),
    "Entrypoint": Key(ONE),
    "Environment": Key(WORDS, "environment"),
    "Exec": Key(ONE),
    "Group": Key(ONE, "group"),
    "GroupAdd": Key(EACH, "supplementary-gids"),
    "HealthCmd": Key(ONE, "health-cmd"),
    "HealthInterval": Key(ONE, "health-interval"),
    "HealthOnFailure": Key(ONE, "health-on-failure"),
    "HealthRetries": Key(ONE, "health-retries"),
    "HealthStartPeriod": Key(ONE, "health-start-period"),
    "HealthTimeout": Key(ONE, "health-timeout"),
    "Image": Key(ONE),
    "Label": Key(WORDS, "user-label"),
    "Memory": Key(ONE, "memory"),
    "Mount": Key(EACH),
    "NoNewPrivileges": Key(SWITCH, "no-new-privileges"),
    "Notify": Key(ONE, "", _notify),
    "OOMScoreAdjust": Key(ONE, "oom-score-adj"),
    "PidsLimit": Key(ONE, "pids-limit"),
    "ReadOnly": Key(SWITCH, "readonly-rootfs"),
    "ReloadSignal": Key(ONE, "reload-signal"),
    "Restart": Key(ONE, "restart"),
    "RkpyArgs": Key(WORDS),
    "Seccomp": Key(ONE, "seccomp"),
    "Signature": Key(ONE, "signature"),
    "Stderr": Key(ONE, "stderr"),
    "Stdin": Key(ONE, "stdin"),
    "Stdout": Key(ONE, "stdout"),
    "StopSignal": Key(ONE, "stop-signal"),
    "Tmpfs": Key(EACH),
    "Ulimit": Key(EACH, "ulimit"),
    "User": Key(ONE, "user"),
    "Volume": Key(EACH),
    "WorkingDir": Key(ONE, "working-dir"),
}
"""Keys of [App], which may stand in [Pod] when there is no other [App]."""

SWAPPED = {
    "AppArmor": "rkpy applies no AppArmor profiles",
    "AutoUpdate": "use Pull=newer: an image is looked for whenever the pod starts",
    "ContainerName": "use PodName= for the pod, AppName= for an app",
    "GIDMap": "use PrivateUsers=yes",
    "IP": "use Network=NAME:IP=ADDRESS",
    "IP6": "use Network=NAME:IP=ADDRESS",
    "PodmanArgs": "use RkpyArgs=",
    "Pod": "give the pod's file an [App NAME] section",
    "Rootfs": "use Image=",
    "RunInit": "every pod has a process of its own that reaps",
    "SeccompProfile": "use Seccomp=mode=retain|remove,CALL,...",
    "Secret": "use LoadCredential=",
    "SubGIDMap": "use PrivateUsers=yes",
    "SubUIDMap": "use PrivateUsers=yes",
    "UIDMap": "use PrivateUsers=yes",
    "UserNS": "use PrivateUsers=yes",
}
"""What people may be used to, and what to write instead."""

INSTALL = frozenset(("WantedBy", "RequiredBy", "UpheldBy", "Alias", "DefaultInstance"))
"""What of [Install] a generator can do."""
PASSED = ("Unit", "Service", "Install")


def values(key: Key, text: str) -> Iterator[str]:
    """What one value of `key` comes to: none, one or several of its flag's. Raises ValueError."""
    found = quoting.split(text) if key.kind == WORDS else [boolean(text) if key.kind == SWITCH else text]
    for word in found:
        yield key.convert(word) if key.convert else word
