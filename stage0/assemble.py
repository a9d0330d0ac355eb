"""From images and flags to a reified pod manifest (spec 0.8.11, "Pod Manifest Schema"): no file is touched here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

from aci import isolators
from aci.image_manifest import App, Isolator
from aci.oci_config import CMD
from aci.pod_manifest import ExposedPort, PodManifest, RuntimeApp, RuntimeImage, RuntimeMount, Volume
from aci.store import ImageRecord
from aci.types import ac_name, default_app_name
from common.errors import UsageError
from common.records import NamedTuple
from stage0 import behaviour, values
from stage0.grammar import ImageArguments
from stage0.options import Values

_REPLACED_FAMILIES = {
    "caps-retain": "os/linux/capabilities-",
    "caps-remove": "os/linux/capabilities-",
    "caps-ambient": isolators.AMBIENT_CAPABILITIES,
    "no-new-privileges": isolators.NO_NEW_PRIVILEGES,
    "pids-limit": isolators.PIDS,
    "seccomp": "os/linux/seccomp-",
    "cpu-shares": "os/linux/cpu-shares",
    "oom-score-adj": "os/linux/oom-score-adj",
}
"""Isolators of the image that a flag takes the place of. `--memory`, `--cpu` and `--ulimit` are added, and win by being
last."""


class Selected(NamedTuple):
    """An image of the command line and what it turned out to be."""

    arguments: ImageArguments
    record: ImageRecord


def pod_manifest(flags: Values, images: Sequence[Selected], inherited: Mapping[str, str]) -> PodManifest:
    """The manifest of a pod of `images`; `inherited` are the caller's variables, used with --inherit-env.

    Raises UsageError where flags contradict each other or the images."""
    volumes = tuple(values.volume(text) for text in flags.all("volume"))
    _unique("volume", [volume.name for volume in volumes])
    shared = _pod_variables(flags)
    base = inherited if flags.boolean("inherit-env") else {}
    apps = tuple(_runtime_app(flags, image, volumes, {**base}, shared) for image in images)
    _unique("app name", [app.name for app in apps], hint="give each its own with --name")
    return PodManifest(
        apps=apps,
        volumes=volumes,
        ports=_ports(flags, apps),
        user_annotations=tuple(values.variables("user-annotation", flags.all("user-annotation")).items()),
        user_labels=tuple(values.variables("user-label", flags.all("user-label")).items()),
        annotations=behaviour.pod_annotations(flags),
    )


def sandbox(flags: Values) -> PodManifest:
    """The manifest of a pod without apps, which get added while it runs. Raises UsageError."""
    own = {behaviour.MUTABLE: "true"}
    if flags.boolean("no-overlay"):
        own[behaviour.NO_OVERLAY] = "true"
    typed = tuple(values.variables("annotation", flags.all("annotation")).items())
    return PodManifest(
        apps=(),
        ports=_sandbox_ports(flags),
        annotations=behaviour.merged(typed, (*behaviour.pod_annotations(flags), *own.items())),
        user_annotations=tuple(values.variables("user-annotation", flags.all("user-annotation")).items()),
        user_labels=tuple(values.variables("user-label", flags.all("user-label")).items()),
    )


def _ports(flags: Values, apps: Sequence[RuntimeApp]) -> tuple[ExposedPort, ...]:
    """What --port says, of which it is certain that it can be resolved."""
    if flags.get("port") is None:
        return ()
    from stage0 import ports

    exposed = tuple(ports.exposed(text) for text in flags.all("port"))
    ports.resolve(exposed, [(app.name, app.app) for app in apps if app.app])
    return exposed


def _sandbox_ports(flags: Values) -> tuple[ExposedPort, ...]:
    if flags.get("port") is None:
        return ()
    from stage0 import ports

    exposed = tuple(ports.exposed_with_pod_port(text) for text in flags.all("port"))
    ports.resolve(exposed, ())
    return exposed


def _unique(what: str, names: Sequence[str], hint: str = "") -> None:
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f'{what} "{name}" is used twice', hint=hint)


def _pod_variables(flags: Values) -> dict[str, str]:
    """What --set-env-file and --set-env say; the flag beats the file."""
    from_files = values.environment_files(flags.all("set-env-file"))
    return {**from_files, **values.variables("set-env", flags.all("set-env"))}


def _runtime_app(
    flags: Values, image: Selected, volumes: Sequence[Volume], inherited: dict[str, str], shared: dict[str, str]
) -> RuntimeApp:
    own, manifest = image.arguments.flags, image.record.manifest
    own_env = values.variables("environment", own.all("environment"))
    app = _override(image, own)
    # Lowest first: what the caller has, the image, --set-env-file, --set-env, --environment (as rkt documents).
    environment = {**inherited, **dict(app.environment), **shared, **own_env}
    return RuntimeApp(
        name=_app_name(own.get("name"), manifest.name),
        image=RuntimeImage(id=image.record.id, name=manifest.name, labels=manifest.labels),
        app=app._replace(environment=tuple(environment.items())),
        read_only_rootfs=own.boolean("readonly-rootfs"),
        mounts=_mounts(flags, own, volumes),
        annotations=behaviour.merged(
            tuple(values.variables("annotation", own.all("annotation")).items()),
            behaviour.app_annotations(own, dict(manifest.annotations), flags),
        ),
    )


def added_app(image: Selected, volumes: Sequence[Volume]) -> RuntimeApp:
    """An app for a pod that runs, which has these volumes. Raises UsageError."""
    app = _runtime_app(Values(), image, volumes, {}, {})
    own = tuple(values.app_volume(text) for text in image.arguments.flags.all("mnt-volume"))
    mounts = (*own, *app.mounts)
    _unique("mount target", [mount.path for mount in mounts])
    _unique("volume", [mount.volume for mount in own])
    return app._replace(mounts=mounts)


def _app_name(given: str | None, image_name: str) -> str:
    return ac_name(given, strict=True) if given is not None else default_app_name(image_name)


def _override(image: Selected, own: Values) -> App:
    """The image's app section with the app's own flags applied."""
    app = image.record.manifest.app or App()
    gids = values.gids(own.all("supplementary-gids"))
    user, group, directory = own.get("user"), own.get("group"), own.get("working-dir")
    if directory is not None and not directory.startswith("/"):
        raise UsageError(f"--working-dir={directory}: it has to be an absolute path")
    return app._replace(
        exec=_exec(image, own, app),
        user=app.user if user is None else user,
        group=app.group if group is None else group,
        supplementary_gids=gids if own.get("supplementary-gids") is not None else app.supplementary_gids,
        working_directory=app.working_directory if directory is None else directory,
        isolators=_isolators(app, own),
        user_annotations=_merged(app.user_annotations, own, "user-annotation"),
        user_labels=_merged(app.user_labels, own, "user-label"),
    )


def _merged(base: tuple[tuple[str, str], ...], own: Values, flag: str) -> tuple[tuple[str, str], ...]:
    return tuple({**dict(base), **values.variables(flag, own.all(flag))}.items())


def _exec(image: Selected, own: Values, app: App) -> tuple[str, ...]:
    """The command line: `--exec` replaces the program, arguments after `--` follow it. Without `--exec` they are added
    to an ACI's exec; for an OCI image they take the place of its Cmd, which is what Cmd is for."""
    program, arguments = own.get("exec"), tuple(image.arguments.arguments)
    if program is not None:
        command = (program, *arguments)
    else:
        command = (*_without_cmd(image, app, replaced=bool(arguments)), *arguments)
    if not command or not command[0]:
        name = image.record.manifest.name
        raise UsageError(f'image "{name}" names no program to run', hint="give one with --exec=PROGRAM")
    return command


def _without_cmd(image: Selected, app: App, *, replaced: bool) -> tuple[str, ...]:
    annotations = dict(image.record.manifest.annotations)
    cmd = _strings(annotations.get(CMD))
    if replaced and cmd and app.exec[-len(cmd) :] == cmd:
        return app.exec[: -len(cmd)]
    return app.exec


def _strings(text: str | None) -> tuple[str, ...]:
    try:
        return tuple(str(word) for word in json.loads(text or "[]"))
    except (ValueError, TypeError):
        return ()


def _isolators(app: App, own: Values) -> tuple[Isolator, ...]:
    added = tuple(values.isolators(own))
    isolators.check(added)
    replaced = tuple(_REPLACED_FAMILIES[name] for name in own.typed() if name in _REPLACED_FAMILIES)
    kept = tuple(isolator for isolator in app.isolators if not isolator.name.startswith(replaced or ("\0",)))
    return kept + added


def _mounts(flags: Values, own: Values, volumes: Sequence[Volume]) -> tuple[RuntimeMount, ...]:
    """The pod's mounts and the app's own; on one target the app's wins, and of two equals the first."""
    found: dict[str, RuntimeMount] = {}
    known = {volume.name for volume in volumes}
    for text in (*own.all("mount"), *flags.all("mount")):
        name, target = values.mount(text)
        if name not in known:
            raise UsageError(f'--mount={text}: there is no volume "{name}"', hint="declare it with --volume")
        found.setdefault(_clean(target), RuntimeMount(volume=name, path=_clean(target)))
    return tuple(found.values())


def _clean(path: str) -> str:
    return os.path.normpath("/" + path.lstrip("/"))
