"""`rkpy app add`: one more app for a running pod."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from aci.pod_manifest import PodManifest, RuntimeApp, own_volumes
from aci.store import ImageRecord, Store
from common.errors import UsageError
from stage0 import apps, assemble, options
from stage0 import fetch as fetching
from stage0.assemble import Selected
from stage0.commands.run import parse
from stage0.grammar import ImageArguments
from stage0.pods import Pods
from stage0.starting import restrictions
from stage0.values import NAMED

_MOUNTED = "volume of the app's own, in the form name=NAME,kind=host|empty|named,...,target=PATH"
FLAGS = {
    "app add": options.table(
        options.APP,
        [
            options.Flag("mount", options.LIST, "mount of a volume of the pod, in the form volume=NAME,target=PATH"),
            options.Flag("mnt-volume", options.LIST, _MOUNTED),
            options.Flag("user-annotation", options.LIST, "annotation of the app in the form name=value"),
            options.Flag("user-label", options.LIST, "label of the app in the form name=value"),
        ],
    )
}


def add(words: Sequence[str]) -> int:
    """`rkpy app add UUID IMAGE [APP FLAGS] [-- ARGS...]`"""
    request, settings = parse("app add", words, FLAGS["app add"], flags_are_the_pods=True)
    if len(request.images) != 2:
        raise UsageError("must provide a pod UUID and an image")
    uuid, image = request.images
    if uuid.arguments:
        raise UsageError('"--" must follow the image')
    selected = ImageArguments(image.reference, request.flags, image.arguments)
    store = Store(settings.store)
    pods = Pods(settings.pods).require_own()
    with apps.find_running(pods, uuid.reference) as pod:
        apps.require_mutable(pod)
        apps.operation(pod, "app_add")
        apps.join(pod)
        with store.lock():
            record = fetching.image(settings, store, selected, "never")
            app = assemble.added_app(Selected(selected, record), pod.manifest().volumes)
            asked = restrictions(request.flags)
            with _settled(app, pod.manifest(), pods, record, store) as app:
                apps.add(pod, store, record, app, asked, tuple(settings.insecure))
    return 0


@contextmanager
def _settled(
    app: RuntimeApp, manifest: PodManifest, pods: Pods, record: ImageRecord, store: Store
) -> Iterator[RuntimeApp]:
    """With the named volumes it wants of its own, which stay while it is added."""
    if not any(volume.kind == NAMED for volume in own_volumes(app)):
        yield app
        return
    from stage0 import namedvolumes

    try:
        with namedvolumes.settled(manifest._replace(apps=(app,)), pods, {app.name: record}, store) as settled:
            yield settled.apps[0]
    except BaseException:
        namedvolumes.take_back(pods)
        raise
