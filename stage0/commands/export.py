"""`rkpy export`: an app of an exited pod as an image, with whatever it has written."""

from __future__ import annotations

import os

import click

from aci import image_manifest
from aci.image_manifest import ImageManifest
from aci.pack import OwnerMap
from aci.store import Store
from common import files
from common.errors import LaunchError, PodError, StoreError, UsageError, reason
from stage0 import flags, prepare, rootless
from stage0.commands.pod_arguments import app_name
from stage0.config import Config
from stage0.notices import warn
from stage0.pods import EXITED_GARBAGE, RUN, Pod, Pods, State
from stage1 import poddir

_LEVEL = 6


@click.command("export")
@click.option("--app", default="", metavar="NAME", help="app to export; needed when the pod has more than one")
@flags.switch("--overwrite", "replace the file if it is there")
@click.argument("uuid")
@click.argument("file")
@click.pass_obj
def command(config: Config, app: str, overwrite: bool, uuid: str, file: str) -> None:
    """Export an app from an exited pod to an ACI file.

    The image has the manifest of the image the app was made from, and the root as the app left it.
    """
    rootless.become_root()
    if not file.endswith(".aci"):
        raise UsageError(f"{file}: the name of an exported image ends in .aci")
    target = os.path.abspath(file)
    if os.path.lexists(target) and not overwrite:
        raise UsageError(f"{file} exists already", hint="--overwrite replaces it")
    with Pods(config.pods).require_own().find(uuid) as pod:
        _take_exited(pod)
        name = app_name([app.name for app in pod.manifest().apps], app)
        _export(pod, name, Store(config.store), target)


def _take_exited(pod: Pod) -> None:
    """Own the pod, so that nobody starts or removes it meanwhile. Raises PodError unless it has exited."""
    state = pod.state()
    if pod.directory not in (RUN, EXITED_GARBAGE) or state is State.RUNNING:
        hint = "stop it first: rkpy stop" if state is State.RUNNING else ""
        raise PodError(f'pod "{pod.uuid}" has not exited: it is {state}', hint=hint)
    pod.take(quietly=True)


def _export(pod: Pod, app: str, store: Store, target: str) -> None:
    import gzip

    from aci import pack

    manifest, owner = _manifest(pod.path, app), _owner(pod.path)
    root = _root(pod.path, app, store)
    try:
        with (
            files.replacing(target) as out,
            gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=out, mtime=0) as archive,
        ):
            left_out = pack.write(manifest, root, archive, owner)
    except OSError as error:
        about = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        raise StoreError(f"cannot export to {target}: {about}{reason(error)}") from error
    for sentence in left_out:
        warn(sentence)


def _manifest(directory: str, app: str) -> ImageManifest:
    """The app's image manifest; what it depends on is in the root now."""
    path = poddir.app_info(directory, app, "manifest")
    try:
        with open(path, "rb") as file:
            return image_manifest.parse(file.read())._replace(dependencies=(), path_whitelist=())
    except OSError as error:
        raise PodError(f"open {path}: {reason(error)}") from error


def _root(directory: str, app: str, store: Store) -> str:
    """Where the app's root can be read; mounted for this process alone if it has to be put together."""
    if os.path.exists(poddir.app_info(directory, app, "copied")):
        return poddir.rootfs(directory, app)
    from stage1 import rootfs

    stack = prepare.layers(directory, app, store)
    upper = f"{poddir.overlay(directory, app)}/upper"
    if os.path.isdir(upper):
        stack = (*stack, upper)
    if len(stack) == 1:
        return stack[0]
    place = poddir.rootfs(directory, app)
    try:
        rootfs.show_layers(stack, place)
    except OSError as error:
        raise LaunchError(f"cannot stack the app's {len(stack)} layers: {error.strerror or reason(error)}") from error
    return place


def _owner(directory: str) -> OwnerMap:
    """IDs as the app saw them: those of its user namespace are counted from the first."""
    found = prepare.private_range(directory)
    if found is None:
        return lambda number: number
    first, count = found
    return lambda number: number - first if first <= number < first + count else number
