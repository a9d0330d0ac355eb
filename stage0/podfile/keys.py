"""The keys of `.pod` files as data: each is a flag of `rkpy run`, in Quadlet's name for it where Quadlet has one
(podman-systemd.unit(5), podman-container.unit(5), podman-pod.unit(5))."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from common.records import NamedTuple
from stage0.podfile import quoting

ONE, EACH, WORDS, SWITCH = "one", "each", "words", "switch"
NOTIFY = "appc.io/executor/supports-systemd-notify"
"""rkt's annotation of an app that says itself when it is ready."""

TRUE = frozenset(("1", "yes", "y", "true", "t", "on"))
_FALSE = frozenset(("0", "no", "n", "false", "f", "off"))


class Key(NamedTuple):
    """One key. `kind`: "one" (the last counts), "each" (may be repeated; every value whole), "words" (repeated, and
    each word of a value counts) or "switch" (a boolean). An empty value takes back what came before it."""

    kind: str
    flag: str = ""
    """Of `rkpy run`; empty for what is made of it elsewhere (`stage0.podfile.pods`)."""
    convert: Callable[[str], str] | None = None
    """From the key's value to the flag's; raises ValueError."""
    about: str = ""
    """What it is, where that is not just what its flag is."""


def boolean(text: str) -> str:
    """systemd's booleans (systemd.syntax(7)), as flags have them."""
    if text.lower() in TRUE:
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


_MOUNT = (
    "mount: type=bind,source=/A,destination=/B[,ro], type=volume,source=NAME,destination=/B[,ro], "
    "type=tmpfs,destination=/B[,size=64M], or volume=NAME,target=/B"
)
_NOTIFY = "when an app is ready: yes for when it says so (sd_notify(3)), healthy for when its health checks pass"
_ARGS = "any flags, each --FLAG=VALUE in one word"
_TMPFS = "empty volume: /TARGET[:size=64M,mode=1777]; in memory if it has a size"
_VOLUME = (
    "/SOURCE:/TARGET[:ro,bind,slave...], NAME:/TARGET[:ro,nocopy,uid=...] for a named one, /TARGET for an empty one, "
    "or NAME,kind=host|empty|named,... without a mount"
)

POD = {
    "AddHost": Key(
        EACH, "hosts-entry", _host, about="entry for /etc/hosts: HOST:IP or IP=HOST; host for the host's file"
    ),
    "Annotation": Key(WORDS, "user-annotation", about="annotation of the pod: NAME=VALUE"),
    "DNS": Key(EACH, "dns"),
    "DNSDomain": Key(ONE, "dns-domain"),
    "DNSOption": Key(EACH, "dns-opt"),
    "DNSSearch": Key(EACH, "dns-search"),
    "Environment": Key(WORDS, "set-env"),
    "EnvironmentFile": Key(
        EACH, "set-env-file", about="file of lines NAME=VALUE; with - before the path it may be missing"
    ),
    "EnvironmentHost": Key(SWITCH, "inherit-env"),
    "ExitPolicy": Key(ONE, "exit-policy"),
    "GlobalArgs": Key(
        WORDS, about="flags before run, such as --insecure-options=image; also for rkpy gc and rkpy reload"
    ),
    "HostName": Key(ONE, "hostname"),
    "IPC": Key(ONE, "ipc"),
    "KvmAccel": Key(ONE, "kvm-accel"),
    "KvmCpu": Key(ONE, "kvm-cpu"),
    "KvmKernel": Key(ONE, "kvm-kernel"),
    "KvmParams": Key(ONE, "kvm-params", about="parameters for the kernel, in one line"),
    "Label": Key(WORDS, "user-label", about="label of the pod: NAME=VALUE"),
    "LoadCredential": Key(EACH, "load-credential", about="credential for the apps: ID:PATH"),
    "LogDriver": Key(ONE, "log-driver"),
    "Mount": Key(EACH, about=_MOUNT),
    "Network": Key(EACH, "net", about="networks by their names, with [:K=V;K=V]; or none, host"),
    "NoOverlay": Key(SWITCH, "no-overlay"),
    "Notify": Key(ONE, "", _notify, about=_NOTIFY),
    "PodManifest": Key(ONE, "pod-manifest", about="a pod manifest instead of images"),
    "PodName": Key(
        ONE,
        "pod-name",
        about="name of the pod; by default the file's name, made into one (My_web.pod: my-web; of an instance web-1)",
    ),
    "PrivateUsers": Key(SWITCH, "private-users"),
    "PublishPort": Key(EACH, "port", about="port to publish: [HOSTIP:]HOSTPORT:PODPORT[/udp], or NAME:HOSTPORT"),
    "Pull": Key(
        ONE, "pull-policy", _pull, about="when to fetch images: missing (or new), newer and always (update), never"
    ),
    "Ready": Key(ONE, "ready", about="when the pod is ready, for all apps: started, notify or healthy"),
    "Register": Key(SWITCH, "register", about="whether systemd-machined knows the pod"),
    "ReloadSignal": Key(ONE, "reload-signal", about="signal that systemctl reload sends to the apps"),
    "RkpyArgs": Key(WORDS, about=_ARGS),
    "SetCredential": Key(EACH, "set-credential", about="credential for the apps: ID:VALUE"),
    "Stage1": Key(ONE, "stage1"),
    "StopTimeout": Key(ONE, "stop-timeout"),
    "Tmpfs": Key(EACH, about=_TMPFS),
    "UUIDFile": Key(ONE, "uuid-file-save"),
    "Volume": Key(EACH, about=_VOLUME),
}
"""Keys of [Pod]."""

APP = {
    "AddCapability": Key(WORDS, about="capabilities besides the default ones; CAP_ may be left out"),
    "AddDevice": Key(EACH, "device"),
    "Annotation": Key(WORDS, "user-annotation", about="annotation of the pod: NAME=VALUE"),
    "AppName": Key(ONE, "name", about="name of the app in a pod of one"),
    "CPU": Key(ONE, "cpu"),
    "CPUShares": Key(ONE, "cpu-shares"),
    "CapsAmbient": Key(WORDS, "caps-ambient"),
    "CapsRemove": Key(WORDS, "caps-remove"),
    "CapsRetain": Key(WORDS, "caps-retain"),
    "DropCapability": Key(WORDS, about="capabilities, of the default ones, that are taken away; or all"),
    "Entrypoint": Key(ONE, about='program instead of the image\'s; or a JSON list, ["sh", "-c"]'),
    "Environment": Key(WORDS, "environment"),
    "Exec": Key(ONE, about="arguments of the image's program"),
    "Group": Key(ONE, "group"),
    "GroupAdd": Key(EACH, "supplementary-gids"),
    "HealthCmd": Key(ONE, "health-cmd"),
    "HealthInterval": Key(ONE, "health-interval"),
    "HealthOnFailure": Key(ONE, "health-on-failure"),
    "HealthRetries": Key(ONE, "health-retries"),
    "HealthStartPeriod": Key(ONE, "health-start-period"),
    "HealthTimeout": Key(ONE, "health-timeout"),
    "Image": Key(ONE, about="the image, as on the command line"),
    "Label": Key(WORDS, "user-label", about="label of the pod: NAME=VALUE"),
    "Memory": Key(ONE, "memory"),
    "Mount": Key(EACH, about=_MOUNT),
    "NoNewPrivileges": Key(SWITCH, "no-new-privileges"),
    "Notify": Key(ONE, "", _notify, about=_NOTIFY),
    "OOMScoreAdjust": Key(ONE, "oom-score-adj"),
    "PidsLimit": Key(ONE, "pids-limit"),
    "ReadOnly": Key(SWITCH, "readonly-rootfs"),
    "ReloadSignal": Key(ONE, "reload-signal", about="signal that systemctl reload sends to the app"),
    "Restart": Key(
        ONE, "restart", about="when to start the app again within the pod; Restart= in [Service] is the pod's"
    ),
    "RkpyArgs": Key(WORDS, about=_ARGS),
    "Seccomp": Key(ONE, "seccomp"),
    "Signature": Key(ONE, "signature"),
    "Stderr": Key(ONE, "stderr"),
    "Stdin": Key(ONE, "stdin"),
    "Stdout": Key(ONE, "stdout"),
    "StopSignal": Key(ONE, "stop-signal"),
    "Tmpfs": Key(EACH, about=_TMPFS),
    "Ulimit": Key(EACH, "ulimit"),
    "User": Key(ONE, "user"),
    "Volume": Key(EACH, about=_VOLUME),
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
PASSED = ("Unit", "Service", "Socket", "Install")
"""Sections that are systemd's."""
LISTENING = (
    "ListenStream", "ListenDatagram", "ListenSequentialPacket", "ListenFIFO", "ListenSpecial", "ListenNetlink",
    "ListenMessageQueue", "ListenUSBFunction",
)  # fmt: skip
"""Keys of [Socket] that give the service a descriptor (systemd.socket(5)); an empty value of any takes back all."""


def values(key: Key, text: str) -> Iterator[str]:
    """What one value of `key` comes to: none, one or several of its flag's. Raises ValueError."""
    found = quoting.split(text) if key.kind == WORDS else [boolean(text) if key.kind == SWITCH else text]
    for word in found:
        yield key.convert(word) if key.convert else word
