"""Volumes nobody asked for: what each mount point of an image that was given no volume gets, with what the image has
there (rkt: "implicit empty volume")."""

from __future__ import annotations

import os
from contextlib import suppress

from common import files, syscalls
from common.errors import LaunchError, PodError, StoreError, reason
from stage1 import poddir
from stage1.app_steps import implicit_mounts
from stage1.flavour import Mount, PreparedApp, PreparedPod
from stage1.rootfs import open_image


def fill(pod: PreparedPod, app: PreparedApp) -> None:
    """Make those of `app` that are not there yet, each whole or not at all. On the host, before the pod runs. Raises
    PodError."""
    missing = [mount for mount in implicit_mounts(pod, app) if not os.path.isdir(mount.source)]
    if not missing:
        return
    place = poddir.rootfs(pod.directory, app.name)
    try:
        poddir.make_place(poddir.volume(pod.directory, app.name))
        image = open_image(app.layers or (place,), pod.uuid, place)
        try:
            for mount in missing:
                _fill(image, mount)
        finally:
            os.close(image)
    except (OSError, StoreError) as error:
        why = reason(error) if isinstance(error, OSError) else error.message
        raise PodError(f'fill the volumes of app "{app.name}": {why}') from error


def _fill(image: int, mount: Mount) -> None:
    partial = f"{mount.source}.new"
    volumes = os.open(os.path.dirname(partial), os.O_RDONLY | os.O_DIRECTORY)
    try:
        files.remove_tree(os.path.basename(partial), dir_fd=volumes)
    finally:
        os.close(volumes)
    files.make_directory(partial, 0o755)
    with suppress(NotADirectoryError):
        copy_directory(image, mount.target, partial)
    os.rename(partial, mount.source)


def copy_directory(image: int, path: str, target: str, *, content: bool = True) -> None:
    """Make the empty directory `target` what the directory `path` of an image is, if there is one: give it the owner
    and mode, and the content if that is wanted. `image` is as `open_image` gives it. Raises OSError, StoreError, and
    LaunchError for the image's root, which no volume can take the place of."""
    from aci.tree import merge_layers

    try:
        directory = syscalls.openat2(image, path, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    try:
        if os.path.samestat(os.fstat(directory), os.fstat(image)):
            raise LaunchError("that is the app's root, and nothing is mounted over it")
        if content:
            merge_layers([f"/proc/self/fd/{directory}"], target)
        else:
            found = os.fstat(directory)
            os.chown(target, found.st_uid, found.st_gid)
            os.chmod(target, found.st_mode & 0o7777)
    finally:
        os.close(directory)


def warnings(pod: PreparedPod, app: PreparedApp) -> list[str]:
    """One for each of them, as rkt gives them for its own images; whoever made an OCI image expects nothing else."""
    found = implicit_mounts(pod, app)
    if not found or _is_oci(pod, app):
        return []
    return [
        f'no volume for "{mount.target}" of app "{app.name}": it gets one of its own, "{mount.volume}"'
        for mount in found
    ]


def _is_oci(pod: PreparedPod, app: PreparedApp) -> bool:
    from aci import image_manifest, oci_config

    path = poddir.app_info(pod.directory, app.name, "manifest")
    try:
        with open(path, "rb") as file:
            annotations = image_manifest.parse(file.read()).annotations
    except OSError as error:
        raise PodError(f"open {path}: {reason(error)}") from error
    return any(name.startswith(oci_config.ANNOTATION) for name, _ in annotations)
