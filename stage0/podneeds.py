"""What the pods there are need of the store."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from common.errors import PodError, StoreError, reason
from common.records import NamedTuple
from stage0.pods import DIRECTORIES, EXITED_GARBAGE, GARBAGE, Pod, Pods
from stage1 import poddir


class Needs(NamedTuple):
    """Each with the UUID of a pod that needs it."""

    layers: dict[str, str]
    """Names of layers and trees below the apps of any pod, dead ones too: its overlay may still be mounted."""
    images: dict[str, str]
    """IDs of the images of pods that may run or still do."""


def read(pods: Pods) -> Needs:
    """What pods need now. Nothing is made while the store is locked exclusively, so the answer stays true that long.
    Raises StoreError for a pod that cannot be read: what it needs must not be guessed."""
    needs = Needs({}, {})
    for pod in pods.all(DIRECTORIES):
        try:
            for name in _layers(pod):
                needs.layers.setdefault(name, pod.uuid)
            if pod.directory not in (EXITED_GARBAGE, GARBAGE):
                for image_id in _images(pod):
                    needs.images.setdefault(image_id, pod.uuid)
        except FileNotFoundError:
            continue  # Being removed, or not finished when rkpy was killed.
        except OSError as error:
            raise StoreError(f'cannot tell what pod "{pod.uuid}" needs: {reason(error)}') from error
    return needs


def _layers(pod: Pod) -> Iterator[str]:
    for app in os.listdir(f"{pod.base}/appsinfo"):
        try:
            with open(poddir.app_info(pod.base, app, "layers"), encoding="utf-8") as file:
                for line in file:
                    yield os.path.basename(line.strip())
        except FileNotFoundError:
            continue


def _images(pod: Pod) -> list[str]:
    """The image IDs in the pod's manifest. One that is damaged runs nothing any more."""
    try:
        apps = json.loads(pod.manifest_text()).get("apps", [])
        return [app["image"]["id"] for app in apps]
    except (PodError, ValueError, KeyError, TypeError, AttributeError):
        return []
