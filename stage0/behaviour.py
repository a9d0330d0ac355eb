"""How a pod and its apps behave while they run: what flags say about it, kept as annotations of the pod manifest.

So `prepare`, `run-prepared`, `start` and `enter` see what was asked for once. The streams have rkt's annotations
(common/apps in rkt); the others are rkpy's own. Whatever an annotation says is checked when it is read, because a
manifest may come from anywhere.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from aci.pod_manifest import PodManifest, RuntimeApp
from aci.types import ac_name
from common.errors import ManifestError, UsageError
from common.records import NamedTuple
from stage0.options import Values
from stage1.flavour import NOTIFIES, Device
from stage1.plan import AUTO, EXIT_POLICIES, FILE, LOG_DRIVERS, ON_ANY_FAILURE, READINESS, Health, Restart
from stage1.streams import Streams
from stage1.vm.machine import MachineOptions

MUTABLE = "coreos.com/rkt/stage1/mutable"
POD_NAME, EXIT_POLICY, STOP_TIMEOUT = "rkpy/pod-name", "rkpy/exit-policy", "rkpy/stop-timeout"
LOG_DRIVER = "rkpy/log-driver"
READY = "rkpy/ready"
KVM_ACCEL, KVM_KERNEL, KVM_PARAMS = "rkpy/kvm-accel", "rkpy/kvm-kernel", "rkpy/kvm-params"
KVM_CPU = "rkpy/kvm-cpu"
STREAMS = {name: f"coreos.com/rkt/stage2/{name}" for name in ("stdin", "stdout", "stderr")}
NO_OVERLAY = "rkpy/no-overlay"
"""Of a mutable pod: apps that are added later are copied too."""
RESTART, STOP_SIGNAL, DEVICES, HEALTH = "rkpy/restart", "rkpy/stop-signal", "rkpy/devices", "rkpy/health"
RELOAD_SIGNAL = "rkpy/reload-signal"
OCI_STOP_SIGNAL = "appc.io/docker/stopsignal"
"""Where `aci.oci_config` keeps an OCI image's StopSignal."""
OCI_HEALTH = "appc.io/docker/healthcheck"
"""As its Healthcheck."""
FROM_OCI = "rkpy/from-oci"
"""Of an app whose image is an OCI image."""
_OF_OCI = "appc.io/docker/"
"""What the annotations of such images begin with."""

STOP_SECONDS = 10
POD_NAME_LIMIT = 63
"""The name is the pod's host name too (gethostname(2))."""
HOSTNAME_LIMIT = 64
"""Bytes of a host name the kernel takes (uname(2), __NEW_UTS_LEN)."""
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?")

_STREAM_WORDS = {"stdin": ("null", "tty", "stream")} | dict.fromkeys(
    ("stdout", "stderr"), ("log", "null", "tty", "stream")
)
_POLICIES = ("no", "on-failure", "always")
ACCELERATIONS = ("auto", "kvm", "tcg")
PARAMETERS_LIMIT = 1024
"""Bytes of parameters for a kernel, which takes 2048 in all (COMMAND_LINE_SIZE)."""
_PROCESSOR_LIMIT = 1024
_IPC = ("auto", "private", "parent")
_ACCESS = "rwm"
_MAX_COUNT = 1_000_000
_MAX_SECONDS = 10_000_000

Pairs = tuple[tuple[str, str], ...]


class PodBehaviour(NamedTuple):
    name: str = ""
    exit_policy: str = ON_ANY_FAILURE
    stop_timeout: int = STOP_SECONDS
    mutable: bool = False
    log_driver: str = AUTO
    ready: str = ""
    machine: MachineOptions = MachineOptions()


class AppBehaviour(NamedTuple):
    streams: Streams = Streams()
    restart: Restart = Restart()
    stop_signal: int = signal.SIGTERM.value
    devices: tuple[Device, ...] = ()
    from_oci: bool = False
    notifies: bool = False
    health: Health | None = None
    reload_signal: int = 0
    """0 when it has none."""


# The values, as flags and annotations write them. All raise UsageError.


def pod_name(text: str) -> str:
    """A pod's name: an AC Name, which a host name and a machine name can be, and that cannot be taken for a UUID."""
    ac_name(text, strict=True)
    if len(text) > POD_NAME_LIMIT:
        raise UsageError(f"--pod-name={text}: it is longer than {POD_NAME_LIMIT} characters")
    first = text.partition("-")[0]
    if len(first) == 8 and not first.strip("0123456789abcdef"):
        raise UsageError(f"--pod-name={text}: it looks like the UUID of a pod", hint="choose another name")
    return text


def hostname(text: str) -> str:
    """A host name as hostname(7) has it, no longer than the kernel takes (sethostname(2))."""
    labels = text.split(".")
    if len(text) > HOSTNAME_LIMIT or not all(_LABEL.fullmatch(label) for label in labels):
        raise UsageError(
            f"--hostname={text}: not a host name",
            hint=f"letters, digits, hyphens, underscores and dots, {HOSTNAME_LIMIT} at most",
        )
    return text


def ipc(text: str) -> str:
    if text not in _IPC:
        raise UsageError(f"--ipc={text}: not one of {', '.join(_IPC)}")
    return text


def exit_policy(text: str) -> str:
    if text not in EXIT_POLICIES:
        raise UsageError(f"--exit-policy={text}: not one of {', '.join(EXIT_POLICIES)}")
    return text


def readiness(text: str) -> str:
    if text not in READINESS:
        raise UsageError(f"--ready={text}: not one of {', '.join(READINESS)}")
    return text


def stop_timeout(text: str) -> int:
    """Whole seconds, as such or as a duration (`1m30s`), of which a part of a second counts as one."""
    if text.isascii() and text.isdigit():
        seconds = int(text[:20])
    else:
        from stage0 import durations

        seconds = -(-durations.parse(text) // durations.SECOND)
    if not 0 <= seconds <= _MAX_SECONDS:
        raise UsageError(f"--stop-timeout={text}: not a number of seconds from 0 to {_MAX_SECONDS}")
    return seconds


def log_driver(text: str) -> str:
    """One of LOG_DRIVERS; podman's `k8s-file` is `file`, whose format is the same."""
    driver = FILE if text == "k8s-file" else text
    if driver not in LOG_DRIVERS:
        raise UsageError(f"--log-driver={text}: not one of {', '.join(LOG_DRIVERS)}")
    return driver


def acceleration(text: str) -> str:
    if text not in ACCELERATIONS:
        raise UsageError(f"--kvm-accel={text}: not one of {', '.join(ACCELERATIONS)}")
    return text


def kernel(text: str) -> str:
    """An absolute path or a version. Whether there is one is found out when the pod runs."""
    if not text or not text.isprintable() or ("/" in text and not os.path.isabs(text)):
        raise UsageError(f"--kvm-kernel={text}: neither an absolute path nor a version")
    return text


def parameters(text: str) -> str:
    """Words for the kernel's command line (Documentation/admin-guide/kernel-parameters.rst)."""
    if not (text.isascii() and text.isprintable()) or len(text) > PARAMETERS_LIMIT:
        raise UsageError(f"--kvm-params={text}: not a line of at most {PARAMETERS_LIMIT} ASCII characters")
    if "--" in text.split():
        raise UsageError(f"--kvm-params={text}: what follows -- is not the kernel's")
    return text


def processor(text: str) -> str:
    """A model and its features, as QEMU's -cpu has them. Whether there is such a one QEMU says when the pod runs."""
    if len(text) > _PROCESSOR_LIMIT or not re.fullmatch(r"[A-Za-z0-9_.-]+(,[+-]?[A-Za-z0-9_.=-]+)*", text):
        raise UsageError(f"--kvm-cpu={text}: no model of a processor", hint="one is SandyBridge, or Haswell,-avx2")
    return text


def restart(text: str) -> Restart:
    """`no`, `on-failure[:N]` or `always`."""
    policy, limited, limit = text.partition(":")
    if policy not in _POLICIES or (limited and policy != "on-failure"):
        raise UsageError(f"--restart={text}: not one of no, on-failure, on-failure:N, always")
    if limited and not (limit.isascii() and limit.isdigit() and 0 < int(limit[:20]) <= _MAX_COUNT):
        raise UsageError(f"--restart={text}: after the colon comes how many times, 1 to {_MAX_COUNT}")
    return Restart(policy, int(limit) if limited else 0)


def stop_signal(text: str) -> int:
    """A signal by number or by name, with or without `SIG`, as `kill -l` and OCI images write it (`SIGRTMIN+3`)."""
    number = int(text[:4]) if text.isascii() and text.isdigit() else _signal_number(text.upper().removeprefix("SIG"))
    if not 1 <= number <= signal.SIGRTMAX:
        raise UsageError(f'"{text}" is no signal', hint="one is SIGTERM, INT or 15")
    return number


def reload_signal(text: str) -> int:
    """As a stop signal, but one that an app can catch."""
    number = stop_signal(text)
    if number in (signal.SIGKILL, signal.SIGSTOP):
        raise UsageError(f'"{text}" is no signal that an app can catch', hint="one is SIGHUP, USR1 or 1")
    return number


def _signal_number(name: str) -> int:
    base, sign, offset = name.replace("-", "+-").partition("+")
    found = signal.Signals.__members__.get(f"SIG{base}")
    if found is None or not sign:
        return 0 if found is None else found.value
    valid = base in ("RTMIN", "RTMAX") and offset.removeprefix("-").isdecimal() and offset.isascii()
    number = found.value + int(offset[:4]) if valid else 0
    return number if signal.SIGRTMIN <= number <= signal.SIGRTMAX else 0


def stream(which: str, text: str) -> str:
    if text not in _STREAM_WORDS[which]:
        raise UsageError(f"--{which}={text}: not one of {', '.join(_STREAM_WORDS[which])}")
    return text


def device(text: str) -> Device:
    """`HOST[:APP][:rwm]`. Nothing would enforce less than reading and writing, so nothing less can be asked for; making
    other nodes (`m`) is never of use, because they do not work."""
    source, *rest = text.split(":")
    target = rest.pop(0) if rest and rest[0].startswith("/") else source
    access = rest.pop(0) if rest else _ACCESS
    if rest or not _is_access(access):
        raise UsageError(f"--device={text}: it takes HOST[:APP][:rwm]")
    if not {"r", "w"} <= set(access):
        hint = "leave it at rw"
        raise UsageError(f"--device={text}: an app reads and writes a device, or does not have it", hint=hint)
    for path in (source, target):
        if not path.startswith("/") or "\0" in path or os.path.normpath("/" + path.lstrip("/")) == "/":
            raise UsageError(f"--device={text}: devices are named by absolute paths")
    return Device(source, target)


def _is_access(text: str) -> bool:
    return bool(text) and not text.strip(_ACCESS) and len(set(text)) == len(text)


# From flags to annotations


def pod_annotations(flags: Values) -> Pairs:
    """What the pod's own flags say. Raises UsageError, or ManifestError for a name that is none."""
    parsers: dict[str, Callable[[str], Any]] = {
        "pod-name": pod_name,
        "exit-policy": exit_policy,
        "stop-timeout": stop_timeout,
        "log-driver": log_driver,
        "ready": readiness,
        "kvm-accel": acceleration,
        "kvm-kernel": kernel,
        "kvm-params": parameters,
        "kvm-cpu": processor,
    }
    given = {name: flags.get(name) for name in parsers}
    return tuple((f"rkpy/{name}", str(parsers[name](text))) for name, text in given.items() if text is not None)


def app_annotations(flags: Values, image: Mapping[str, str], of_pod: Values | None = None) -> Pairs:
    """What an app's own flags say; `image` are the annotations of its image, `of_pod` the pod's flags, some of which
    are for every app. Raises UsageError."""
    found = {
        annotation: stream(name, text) for name, annotation in STREAMS.items() if (text := flags.get(name)) is not None
    }
    if (text := flags.get("restart")) is not None:
        restart(text)
        found[RESTART] = text
    if (text := flags.get("stop-signal")) is not None:
        found[STOP_SIGNAL] = str(_flag("stop-signal", stop_signal, text))
    elif OCI_STOP_SIGNAL in image:
        found[STOP_SIGNAL] = str(_of_image(image[OCI_STOP_SIGNAL]))
    text = flags.get("reload-signal")
    if text is None and of_pod is not None:
        text = of_pod.get("reload-signal")
    if text:
        found[RELOAD_SIGNAL] = str(_flag("reload-signal", reload_signal, text))
    if devices := [device(text) for text in flags.all("device")]:
        found[DEVICES] = json.dumps(devices, separators=(",", ":"))
    if OCI_HEALTH in image or any(name.startswith(("health-", "no-healthcheck")) for name in flags.typed()):
        from stage0 import health

        if (check := health.of_app(flags, image)) is not None:
            found[HEALTH] = health.dumps(check)
    if NOTIFIES in image and not any(text.startswith(f"{NOTIFIES}=") for text in flags.all("annotation")):
        found[NOTIFIES] = image[NOTIFIES]
    if any(name.startswith(_OF_OCI) for name in image):
        found[FROM_OCI] = "true"
    return tuple(found.items())


def with_image(app: RuntimeApp, image: Mapping[str, str]) -> RuntimeApp:
    """`app` of a manifest that was given whole, with what its image says of itself where the app says nothing."""
    taken = {name: image[name] for name in (NOTIFIES,) if name in image}
    return app._replace(annotations=merged(tuple(taken.items()), app.annotations))


def _flag(name: str, parse: Callable[[str], int], text: str) -> int:
    try:
        return parse(text)
    except UsageError as error:
        raise UsageError(f"--{name}: {error.message}", hint=error.hint) from error


def _of_image(text: str) -> int:
    try:
        return stop_signal(text)
    except UsageError as error:
        raise UsageError(f"the image's stop signal: {error.message}", hint="give another with --stop-signal") from error


def merged(base: Pairs, over: Pairs) -> Pairs:
    """`base` with the annotations of `over`, which win."""
    return tuple({**dict(base), **dict(over)}.items())


# From annotations to what a flavour is told


def of_pod(manifest: PodManifest) -> PodBehaviour:
    """What the pod's annotations say. Raises ManifestError."""
    found = dict(manifest.annotations)
    return PodBehaviour(
        name=_read(found, POD_NAME, pod_name, ""),
        exit_policy=_read(found, EXIT_POLICY, exit_policy, ON_ANY_FAILURE),
        stop_timeout=_read(found, STOP_TIMEOUT, stop_timeout, STOP_SECONDS),
        ready=_read(found, READY, readiness, ""),
        mutable=is_mutable(manifest),
        log_driver=_read(found, LOG_DRIVER, log_driver, AUTO),
        machine=MachineOptions(
            _read(found, KVM_ACCEL, acceleration, ""),
            _read(found, KVM_KERNEL, kernel, ""),
            _read(found, KVM_PARAMS, parameters, ""),
            cpu=_read(found, KVM_CPU, processor, ""),
        ),
    )


def is_mutable(manifest: PodManifest) -> bool:
    return dict(manifest.annotations).get(MUTABLE) == "true"


def copies_roots(manifest: PodManifest) -> bool:
    return dict(manifest.annotations).get(NO_OVERLAY) == "true"


def of_app(app: RuntimeApp) -> AppBehaviour:
    """What the app's annotations say. Raises ManifestError."""
    found = dict(app.annotations)
    streams = {
        name: _read(found, annotation, partial(stream, name), getattr(Streams(), name))
        for name, annotation in STREAMS.items()
    }
    return AppBehaviour(
        streams=Streams(**streams),
        restart=_read(found, RESTART, restart, Restart()),
        stop_signal=_read(found, STOP_SIGNAL, stop_signal, signal.SIGTERM.value),
        devices=_read(found, DEVICES, _devices, ()),
        from_oci=found.get(FROM_OCI) == "true",
        notifies=found.get(NOTIFIES) == "true",
        health=_read(found, HEALTH, _health, None),
        reload_signal=_read(found, RELOAD_SIGNAL, reload_signal, 0),
    )


def reload_signals(manifest: PodManifest) -> dict[str, int]:
    """The signals by which apps reload, by the names of those that have one. Raises ManifestError."""
    found = {app.name: of_app(app).reload_signal for app in manifest.apps}
    return {name: number for name, number in found.items() if number}


def _read(found: Mapping[str, str], name: str, parse: Callable[[str], Any], default: Any) -> Any:
    if name not in found:
        return default
    try:
        return parse(found[name])
    except (UsageError, ManifestError) as error:
        raise ManifestError(f"annotation {name} of the pod manifest: {error.message}", hint=error.hint) from error


def _health(text: str) -> Health:
    from stage0 import health

    return health.loads(text)


def _devices(text: str) -> tuple[Device, ...]:
    try:
        return tuple(device(":".join(map(str, fields))) for fields in json.loads(text))
    except (ValueError, TypeError):
        raise UsageError("not a list of devices") from None
