"""The unit that runs a pod: what `rkpy systemd` prints."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Sequence

from aci import pod_manifest
from aci.pod_manifest import PodManifest
from common.errors import UsageError
from common.records import NamedTuple
from stage0 import behaviour, caller, invocation, netflags, options, podservice, ports, reference, unitfile, values
from stage0.grammar import Request
from stage0.options import BOOL, Flag, Values

_PATHS = (
    "dir", "local-config", "pod-manifest", "set-env-file", "signature", "system-config", "user-config",
    "uuid-file-save",
)  # fmt: skip
"""Flags whose value is a path of the machine."""
_NOT_IN_A_UNIT = {"detach": "the unit runs the pod", "interactive": "a unit has no terminal"}
_FETCHED = ("docker", "remote", "name")


class Unit(NamedTuple):
    """What there is to say of one pod to systemd."""

    description: str
    page: str
    """The manual page of its command, without the section."""
    words: tuple[str, ...]
    """What rkpy is asked to do."""
    stop_timeout: int
    """The pod's, in seconds."""
    fetches: bool = False
    """Whether the pod's images may have to be fetched when it starts."""
    collects: tuple[str, ...] = ()
    """Words of the command that marks what is over as garbage, for units of which each start is a new pod."""
    reloads: tuple[str, ...] = ()
    """Words of the command that has its apps reload, if they can, but for which pod it is."""


def render(unit: Unit) -> str:
    """The text of a service: of the system's manager, or for an ordinary user of his own, which has no targets of the
    network's."""
    system = not caller.is_ordinary()
    online = [("Wants", "network-online.target"), ("After", "network-online.target")] if unit.fetches and system else []
    command = invocation.command()
    collect = [("ExecStopPost", f"-{unitfile.command(*command, *unit.collects)}")] if unit.collects else []
    reloading = [("ExecReload", reload(*command, *unit.reloads))] if unit.reloads else []
    return unitfile.render(
        [
            (
                "Unit",
                [
                    ("Description", unitfile.literal(unit.description)),
                    ("Documentation", f"man:{unit.page}(1)"),
                    *([("After", podservice.AFTER)] if system else []),
                    *online,
                ],
            ),
            (
                "Service",
                [
                    *podservice.settings(unit.stop_timeout),
                    ("ExecStart", unitfile.command(*command, *unit.words)),
                    *reloading,
                    *collect,
                    ("Restart", "on-failure"),
                ],
            ),
            ("Install", [("WantedBy", "multi-user.target" if system else "default.target")]),
        ]
    )


def reload(*command: str) -> str:
    """`ExecReload=` of a unit, whichever pod it runs: systemd knows its process."""
    return f"{unitfile.command(*command)} --main-pid=${{MAINPID}}"


def _reloads(flags: Values) -> tuple[str, ...]:
    return (*global_words(flags), "reload")


def of_pod(uuid: str, manifest: PodManifest, flags: Values) -> Unit:
    """The unit that starts one pod again and again, with these flags. Raises ManifestError."""
    _check_runtime(flags)
    lives = behaviour.of_pod(manifest)
    return Unit(
        f"Pod {lives.name or uuid}",
        "rkpy-start",
        (*global_words(flags), "start", *words(flags, options.RUNTIME), uuid),
        lives.stop_timeout,
        reloads=_reloads(flags) if behaviour.reload_signals(manifest) else (),
    )


def of_run(words: Sequence[str], request: Request) -> Unit:
    """The unit that runs a new pod each time, from the words of `rkpy run`, and `request`, what they come to. Raises
    what `rkpy run` would raise."""
    flags = request.flags
    _check(request)
    path = flags.get("pod-manifest")
    lives = behaviour.PodBehaviour() if path is None else behaviour.of_pod(pod_manifest.read(path))
    name, stop = flags.get("pod-name") or lives.name, flags.get("stop-timeout")
    called = name or " ".join(image.reference for image in request.images) or path or flags.get("pod-file") or ""
    return Unit(
        f"Pod {called}",
        "rkpy-run",
        ("run", *absolute(words)),
        lives.stop_timeout if stop is None else behaviour.stop_timeout(stop),
        fetches=_fetches(request),
        collects=(*global_words(flags), *podservice.after_stop(name)),
        reloads=_reloads(flags) if _may_reload(request) else (),
    )


def _may_reload(request: Request) -> bool:
    """As far as the words tell: what a manifest leaves to the images is known when the pod runs."""
    return request.flags.get("pod-manifest") is not None or any(
        one.get("reload-signal") for one in (request.flags, *_of_apps(request))
    )


def _of_apps(request: Request) -> list[Values]:
    return [image.flags for image in request.images]


def _check(request: Request) -> None:
    """As much of the words as can be judged without the images."""
    flags = request.flags
    _check_runtime(flags)
    behaviour.pod_annotations(flags)
    for text in flags.all("port"):
        ports.exposed_with_pod_port(text)
    for text in flags.all("volume"):
        values.volume(text)
    values.variables("set-env", flags.all("set-env"))
    for image in request.images:
        behaviour.app_annotations(image.flags, {}, flags)
        list(values.isolators(image.flags))
        values.variables("environment", image.flags.all("environment"))


def _check_runtime(flags: Values) -> None:
    for name, why in _NOT_IN_A_UNIT.items():
        if flags.boolean(name):
            raise UsageError(f"--{name}: {why}")
    netflags.networks(flags.all("net"))


def _fetches(request: Request) -> bool:
    policy = request.flags.get("pull-policy")
    if policy == "never" or request.flags.boolean("store-only"):
        return False
    return any(reference.parse(image.reference).kind in _FETCHED for image in request.images)


def absolute(words: Sequence[str]) -> tuple[str, ...]:
    """The words of `rkpy run` so that they mean the same in every directory: a unit runs in /."""
    flags = options.table(options.GLOBAL, options.PREPARE, options.RUNTIME, options.APP)
    found: list[str] = []
    at = 0
    while at < len(words):
        if words[at] == "--":
            end = words.index("---", at) if "---" in words[at:] else len(words)
            found += words[at : end + 1]
            at = end + 1
        elif options.is_flag(words[at]):
            flag, value, at = options.take(words, at, flags)
            found.append(_flag(flag, value))
        else:
            found.append(image(words[at]))
            at += 1
    return tuple(found)


def global_words(flags: Values) -> tuple[str, ...]:
    """The global flags that were typed, as words."""
    return words(flags, options.GLOBAL)


def words(flags: Values, table: Iterable[Flag], *, but: Container[str] = ()) -> tuple[str, ...]:
    """What was typed of the flags of `table`, except those named in `but`, as words."""
    return tuple(_flag(flag, value) for flag in table if flag.name not in but for value in flags.all(flag.name))


def _flag(flag: Flag, value: str) -> str:
    if flag.kind == BOOL and value == "true":
        return f"--{flag.name}"
    is_path = flag.name in _PATHS or (flag.name == "pod-file" and "/" in value)
    return f"--{flag.name}={_absolute(flag, value) if is_path and value else value}"


def _absolute(flag: Flag, path: str) -> str:
    optional = values.OPTIONAL if flag.name == "set-env-file" and path.startswith(values.OPTIONAL) else ""
    return f"{optional}{os.path.abspath(path.removeprefix(optional))}"


def image(text: str) -> str:
    """An image argument with an absolute path, if it is one."""
    found = reference.parse(text)
    if found.kind == "file":
        return found.value
    scheme = text.partition(":")[0]
    if scheme in reference.ARCHIVES and found.kind == reference.ARCHIVES[scheme]:
        return f"{scheme}:{found.value}" + (f":{found.image}" if found.image else "")
    return text
