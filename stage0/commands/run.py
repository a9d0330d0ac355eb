"""`rkpy run`, `prepare`, `run-prepared`, `start` and `app sandbox`: what they are asked for. What they do is in
`stage0.starting`, which takes a while to load: before that the flavour is told to begin (`stage1.boot`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from common.errors import UsageError
from stage0 import caller, config, grammar, options, servicemanager
from stage0.config import Config
from stage0.grammar import Request
from stage0.notices import warn
from stage0.options import Flag, Values
from stage1.systemd import given

_OF_SANDBOX = ("no-overlay", "private-users")
FLAGS = {
    "run": options.table(options.PREPARE, options.RUNTIME, options.APP),
    "prepare": options.table(
        options.PREPARE, options.APP, [options.Flag("quiet", options.BOOL, "print only the UUID")]
    ),
    "run-prepared": options.table(options.RUNTIME),
    "start": options.table(options.RUNTIME),
    "app sandbox": options.table(
        options.STAGE1,
        options.RUNTIME,
        options.BEHAVIOUR,
        [flag for flag in options.PREPARE if flag.name in _OF_SANDBOX],
        [
            options.Flag("port", options.LIST, "ports to expose, in the form NAME:PROTOCOL:PODPORT:[HOSTIP:]HOSTPORT"),
            options.Flag("annotation", options.LIST, "annotation of the pod in the form name=value"),
            options.Flag("user-annotation", options.LIST, "annotation for users of the pod in the form name=value"),
            options.Flag("user-label", options.LIST, "label of the pod in the form name=value"),
        ],
    ),
}
_SAID = "without-systemd"
DEFAULT_FLAVOUR = "nspawn"
_RKT_FLAVOURS = {"fly": "fly", "coreos": "nspawn", "host": "nspawn", "src": "nspawn", "kvm": "kvm"}


def run(words: Sequence[str]) -> int:
    """`rkpy run`; does not return when the pod starts: this process becomes it."""
    request, settings = parse("run", words, FLAGS["run"])
    name = flavour(request.flags, settings.stage1)
    if request.flags.boolean("detach"):
        from stage0 import detached

        return detached.run(request, settings, name)
    _begin(name, request.flags)
    from stage0 import starting

    return starting.run(request, settings, name)


def prepare_pod(words: Sequence[str]) -> int:
    """`rkpy prepare`: everything up to the start; prints the UUID."""
    request, settings = parse("prepare", words, FLAGS["prepare"])
    from stage0 import starting

    return starting.prepare_pod(request, settings, flavour(request.flags, settings.stage1))


def run_prepared(words: Sequence[str]) -> int:
    """`rkpy run-prepared UUID`."""
    request, settings = parse("run-prepared", words, FLAGS["run-prepared"], arguments=False)
    if request.flags.boolean("detach"):
        from stage0 import detached

        return detached.again("run-prepared", request, settings, _uuid(request))
    from stage0 import starting

    return starting.run_prepared(request, settings, _uuid(request))


def start(words: Sequence[str]) -> int:
    """`rkpy start UUID`: run a pod that has exited once more."""
    request, settings = parse("start", words, FLAGS["start"], arguments=False)
    if request.flags.boolean("detach"):
        from stage0 import detached

        return detached.again("start", request, settings, _uuid(request))
    from stage0 import starting

    return starting.start(request, settings, _uuid(request))


def sandbox(words: Sequence[str]) -> int:
    """`rkpy app sandbox`: a pod without apps, to which some can be added while it runs."""
    request, settings = parse("app sandbox", words, FLAGS["app sandbox"], flags_are_the_pods=True)
    if request.flags.boolean("detach"):
        raise UsageError("app sandbox: --detach is for pods with apps", hint="systemd-run rkpy app sandbox does it")
    if request.images:
        raise UsageError("app sandbox takes no images", hint="add them with rkpy app add")
    name = flavour(request.flags, settings.stage1)
    _begin(name, request.flags)
    from stage0 import starting

    return starting.sandbox(request, settings, name)


def parse(
    name: str,
    words: Sequence[str],
    flags: Mapping[str, Flag],
    *,
    arguments: bool = True,
    flags_are_the_pods: bool = False,
) -> tuple[Request, Config]:
    """The command line of a command that makes or starts pods, and the configuration."""
    everything = {**flags, **options.table(options.GLOBAL)}
    request = grammar.parse(words, everything, arguments=arguments, by_position=not flags_are_the_pods)
    settings = config.load(request.flags)
    if caller.is_ordinary() and name != "app add":  # That goes where the pod is.
        from stage0 import rootless

        rootless.become_root(to_run=True)
    if request.flags.get("pod-file") is not None:
        request, settings = of_file(request, settings, flags)
    if name in ("run", "prepare") and not request.images and request.flags.get("pod-manifest") is None:
        raise UsageError("must provide at least one image or specify the pod manifest")
    return request._replace(given=given.take(os.environ)), settings


def of_file(typed: Request, settings: Config, flags: Mapping[str, Flag]) -> tuple[Request, Config]:
    """What `--pod-file` says, and after it what was typed, so that of a flag which counts once the typed one does."""
    from stage0.podfile import data

    if typed.images:
        raise UsageError("--pod-file cannot be combined with images")
    words = data.words(typed.flags.get("pod-file") or "", settings, flags)
    request = grammar.parse(words, {**flags, **options.table(options.GLOBAL)})
    request.flags.update(typed.flags)
    return request, config.load(request.flags)


def _uuid(request: Request) -> str:
    if len(request.images) != 1:
        raise UsageError("must provide exactly one pod UUID")
    return request.images[0].reference


def flavour(flags: Values, configured: str) -> str:
    """The flavour the flags name, or else the configuration, or else the default."""
    name = flags.get("stage1") or flags.get("stage1-name") or configured or DEFAULT_FLAVOUR
    short = name.rpartition("/")[2].partition(":")[0]
    return _RKT_FLAVOURS.get(short.removeprefix("stage1-"), short)


def _begin(name: str, flags: Values) -> None:
    from stage1 import boot

    if name == "kvm" and caller.is_ordinary():
        raise UsageError("the flavour kvm is for root", hint="use nspawn or fly, or run it as root")
    place = servicemanager.place(keep_unit=flags.boolean("keep-unit"))
    if not given.booted():
        _say_once("systemd is not running here: pods have no unit, no machine and no journal")
    elif place == servicemanager.Place():
        _say_once("this user has no service manager with a bus: pods have no unit (docs/rootless.md)")
    if name in boot.FLAVOURS:
        net = flags.get("net") or "default"
        boot.begin("run", networks=net not in ("none", "host") and not net.startswith("ns:"), manager=place.manager)
    elif place.manager is not None:
        boot.begin_registrar(place.manager)


def _say_once(text: str) -> None:
    """Once until the machine is booted anew, or the user's last session is over: it is nothing that changes meanwhile.
    Where there is no place to remember it, it is not said."""
    parent = caller.runtime(os.environ) if caller.is_ordinary() else "/run"
    if not parent:
        return
    place = f"{parent}/rkpy"
    try:
        os.makedirs(place, exist_ok=True)
        os.close(os.open(f"{place}/{_SAID}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError:
        return
    warn(text)
