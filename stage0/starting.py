"""The way from images to a pod, once the command line is understood (`stage0.commands.run`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

from aci import pod_manifest
from aci.pod_manifest import PodManifest
from aci.store import ImageRecord, Store
from common.errors import PodError, RkpyError, UsageError, reason
from stage0 import (
    announce,
    assemble,
    behaviour,
    caller,
    events,
    machines,
    networking,
    podnames,
    prepare,
    runflags,
    servicemanager,
    values,
)
from stage0 import fetch as fetching
from stage0.assemble import Selected
from stage0.config import Config
from stage0.grammar import ImageArguments, Request
from stage0.notices import warn
from stage0.options import Values
from stage0.pods import PREPARED, Pod, Pods
from stage1 import flavour as flavours
from stage1.flavour import Flavour, PreparedPod
from stage1.systemd.manager import Manager

_MANIFEST_EXCLUDES = (
    "volume", "mount", "port", "inherit-env", "set-env", "set-env-file", "user-annotation", "user-label",
    "pull-policy", "store-only", "no-store", "reload-signal",
)  # fmt: skip
_NAME_OPTIONS = ("dns", "dns-search", "dns-opt", "dns-domain", "hosts-entry")


def run(request: Request, settings: Config, name: str) -> NoReturn:
    """`rkpy run` under the flavour `name`: this process becomes the pod."""
    announce.begin(request.given)
    flavour = flavours.load(name)
    store = Store(settings.store)
    with store.lock():
        pod = _prepare(request, settings, store, name)
    with _discarded_on_failure(pod):
        prepared = _checked(pod, store, flavour, request, settings, _asked(request))
    pod.to_run()
    events.prepared(pod.uuid, prepared.name, name)
    _become(pod, flavour, prepared, request)


def prepare_pod(request: Request, settings: Config, name: str) -> int:
    """`rkpy prepare`: everything up to the start; prints the UUID."""
    with prepared_pod(request, settings, name) as pod:
        sys.stdout.write(f"{pod.uuid}\n")
    return 0


def prepared_pod(request: Request, settings: Config, name: str, *, manager: Manager | None = None) -> Pod:
    """A pod of what `request` asks for, in the state `prepared`. `manager`: which one is about to make it a service;
    nobody yet knows where it will run otherwise, which is taken to be as if it were run here."""
    flavour = flavours.load(name)
    store = Store(settings.store)
    with store.lock():
        pod = _prepare(request, settings, store, name)
        with _discarded_on_failure(pod):
            manifest = pod.manifest()
            prepared = prepare.load(pod, store, manifest=manifest, asked=_asked(request))
            if networking.has_networks(flavour):
                networking.check_ports(prepared, manifest)
            prepared = machines.settle(prepared, flavour, settings, os.environ)
            prepared = prepared._replace(manager=manager) if manager else _placed(prepared)
            prepare.check(prepared, flavour)
            pod.to_prepared()
            events.prepared(pod.uuid, prepared.name, name)
    return pod


def run_prepared(request: Request, settings: Config, uuid: str) -> NoReturn:
    """`rkpy run-prepared`."""
    announce.begin(request.given)
    pod = Pods(settings.pods).require_own().find(uuid)
    if pod.directory != PREPARED:
        raise PodError(f'pod "{pod.uuid}" is not prepared: it is {pod.state()}')
    pod.take()
    flavour = flavours.load(pod.flavour())
    # A pod that cannot start now stays prepared: nothing was used up.
    prepared = _checked(pod, Store(settings.store), flavour, request, settings, ())
    pod.to_run()
    _become(pod, flavour, prepared, request)


def start(request: Request, settings: Config, uuid: str) -> NoReturn:
    """`rkpy start`, with what was typed for the last run unless something else is. A pod that is prepared has its first
    run so, that a unit may say the same each time."""
    from stage0 import again

    announce.begin(request.given)
    pods = Pods(settings.pods).require_own()
    with pods.find(uuid) as found:
        prepared_only = found.directory == PREPARED
    if prepared_only:
        run_prepared(request, settings, uuid)
    pod = again.take(pods, uuid)
    request = request._replace(flags=runflags.recall(pod.path, request.flags))
    flavour = flavours.load(pod.flavour())
    # First: what it claims still, if its monitor was killed, would be somebody else's for the checks.
    flavour.gc(pod.path)
    prepared = _checked(pod, Store(settings.store), flavour, request, settings, ())
    again.rewind(pods, pod, prepared)
    _become(pod, flavour, prepared, request)


def sandbox(request: Request, settings: Config, name: str) -> NoReturn:
    """`rkpy app sandbox`."""
    announce.begin(request.given)
    flavour = flavours.load(name)
    store = Store(settings.store)
    with store.lock():
        pod = _fill(request, settings, store, name, assemble.sandbox(request.flags), {})
    with _discarded_on_failure(pod):
        prepared = _checked(pod, store, flavour, request, settings, ())
    pod.to_run()
    _become(pod, flavour, prepared, request)


def _prepare(request: Request, settings: Config, store: Store, flavour: str) -> Pod:
    """A pod directory with everything in it, in the state `prepare` and locked."""
    return _fill(request, settings, store, flavour, *_manifest(request, settings, store))


def _fill(
    request: Request,
    settings: Config,
    store: Store,
    flavour: str,
    manifest: PodManifest,
    records: Mapping[str, ImageRecord],
) -> Pod:
    lives = behaviour.of_pod(manifest)
    announce.status("preparing the pod")
    pods = Pods(settings.pods)
    pod = pods.create()
    with _discarded_on_failure(pod):
        pod.to_prepare()
        if lives.name:
            podnames.claim(pods, pod, lives.name)
        if request.flags.boolean("private-users"):
            from stage0 import idranges

            idranges.claim(pods, pod)
        _write(pod, pods, manifest, records, store, flavour)
        if manifest.apps and request.flags.boolean("no-overlay"):
            prepare.copy_roots(pod, store)
    return pod


def _write(
    pod: Pod, pods: Pods, manifest: PodManifest, records: Mapping[str, ImageRecord], store: Store, flavour: str
) -> None:
    if not any(volume.kind == values.NAMED for volume in manifest.volumes):
        prepare.write(pod, manifest, records, store, flavour)
        return
    from stage0 import namedvolumes

    with namedvolumes.settled(manifest, pods, records, store) as settled:
        prepare.write(pod, settled, records, store, flavour)


@contextmanager
def _discarded_on_failure(pod: Pod) -> Iterator[None]:
    """Until it starts, a pod of ours that meets a failure is taken back whole."""
    try:
        yield
    except BaseException:
        pod.discard()
        raise


def _manifest(request: Request, settings: Config, store: Store) -> tuple[PodManifest, dict[str, ImageRecord]]:
    path = request.flags.get("pod-manifest")
    if path is not None:
        return _given_manifest(path, request, store)
    policy = fetching.pull_policy(request.flags, "new")
    images = [Selected(image, _image(settings, store, image, policy)) for image in request.images]
    manifest = assemble.pod_manifest(request.flags, images, os.environ)
    return manifest, {app.name: image.record for app, image in zip(manifest.apps, images, strict=True)}


def _image(settings: Config, store: Store, arguments: ImageArguments, policy: str) -> ImageRecord:
    try:
        return fetching.image(settings, store, arguments, policy)
    except RkpyError as error:
        # rkt's users try to run a pod again this way (rkt/rkt#2087).
        try:
            pod = Pods(settings.pods).find(arguments.reference)
        except PodError:
            raise error from None
        with pod:
            if pod.uuid.startswith(arguments.reference) and len(arguments.reference) < 8:
                raise  # That may well be chance.
            hint = f"there is a pod of that name; rkpy start {arguments.reference} runs it again"
            raise UsageError(f'"{arguments.reference}" is no image: {error.message}', hint=hint) from error


def _given_manifest(path: str, request: Request, store: Store) -> tuple[PodManifest, dict[str, ImageRecord]]:
    """`--pod-manifest`: already complete; its images have to be in the store under their IDs."""
    clash = [name for name in _MANIFEST_EXCLUDES if request.flags.get(name) is not None]
    if request.images or clash:
        raise UsageError(f"--pod-manifest cannot be combined with {'images' if request.images else '--' + clash[0]}")
    manifest = pod_manifest.read(path)
    if not manifest.apps:
        raise UsageError(f"{path}: the pod has no apps")
    annotations = behaviour.merged(manifest.annotations, behaviour.pod_annotations(request.flags))
    records = {app.name: store.find_by_id(app.image.id) for app in manifest.apps}
    apps = tuple(behaviour.with_image(app, dict(records[app.name].manifest.annotations)) for app in manifest.apps)
    return manifest._replace(annotations=annotations, apps=apps), records


def _asked(request: Request) -> tuple[str, ...]:
    return tuple(option for image in request.images for option in restrictions(image.flags))


def restrictions(flags: Values) -> tuple[str, ...]:
    """What was typed for an app that a flavour has to honour or refuse."""
    streams = (name for name in flags.typed() if name in behaviour.STREAMS)
    return tuple(f"--{name}" for name in (*values.restrictions(flags), *streams))


def _checked(
    pod: Pod, store: Store, flavour: Flavour, request: Request, settings: Config, asked: tuple[str, ...]
) -> PreparedPod:
    """The pod as the flavour takes it, with what the flavour will ignore said, and UUID and flags written."""
    flags = request.flags
    manifest = pod.manifest()
    prepared = prepare.load(
        pod,
        store,
        manifest=manifest,
        net=networking.asked(flags),
        name_options=tuple(f"--{name}" for name in flags.typed() if name in _NAME_OPTIONS),
        hostname=_hostname(flags),
        ipc=behaviour.ipc(flags.get("ipc") or "auto"),
        asked=asked,
        debug=settings.debug,
        interactive=flags.boolean("interactive"),
        insecure=settings.insecure,
        given=request.given,
    )
    prepared = prepared._replace(register=flags.boolean("register", True), keep_unit=flags.boolean("keep-unit"))
    if caller.is_ordinary() and flags.get("register") is not None and prepared.register:
        warn("--register: machined takes no pods of ordinary users")
    prepared = _placed(prepared)._replace(credentials=_credentials(request), starts=True)
    if prepared.interactive and len(prepared.apps) != 1:
        raise UsageError("--interactive needs exactly one app", hint=f"the pod has {len(prepared.apps)}")
    if request.given.sockets or any(port.socket_activated for app in prepared.apps for port in app.app.ports):
        from stage0 import activation

        prepared, manifest = activation.settle(prepared, manifest)
    if networking.has_networks(flavour):
        prepared = networking.settle(prepared, manifest, flags, settings)
    prepared = machines.settle(prepared, flavour, settings, os.environ)
    prepare.check(prepared, flavour)
    save_uuid(flags.get("uuid-file-save"), pod.uuid)
    # Last, and before the pod is in another state: where there is no room for this it is as if nothing had been asked.
    runflags.record(pod.path, flags)
    return prepared


def _placed(pod: PreparedPod) -> PreparedPod:
    """With its place among units, by which it is told what of it can be kept."""
    place = servicemanager.place(keep_unit=pod.keep_unit)
    delegated = servicemanager.is_delegated(place.unit)
    return pod._replace(manager=place.manager, unit=place.unit, delegated=delegated)


def _credentials(request: Request) -> int:
    """As a mount, for the flavour; -1 when there are none."""
    flags, directory = request.flags, request.given.credentials
    if not directory and flags.get("load-credential") is None and flags.get("set-credential") is None:
        return -1
    from stage0 import credentials
    from stage1.credentials import pack

    found = credentials.collect(directory, flags)
    return pack(found) if found else -1


def _hostname(flags: Values) -> str:
    given = flags.get("hostname")
    return behaviour.hostname(given) if given else ""


def _become(pod: Pod, flavour: Flavour, prepared: PreparedPod, request: Request) -> NoReturn:
    """Let `flavour` become the pod, which is in `run`, as it was asked for."""
    announce.end()
    flavour.run(prepared._replace(directory=pod.path, lock_fd=pod.hand_over_lock()))


def save_uuid(path: str | None, uuid: str) -> None:
    """Write it where `--uuid-file-save` says. Raises PodError."""
    if path is None:
        return
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{uuid}\n")
    except OSError as error:
        raise PodError(f"open {path}: {reason(error)}") from error
