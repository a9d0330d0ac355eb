"""`rkpy systemd`: the unit that would run a pod."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from common.errors import PodError, UsageError
from stage0 import config, grammar, options, podunit, runflags
from stage0.commands import run
from stage0.grammar import Request
from stage0.pods import Pods

_SHORTEST = 8
"""What `rkpy list` prints of a UUID."""
FLAGS = {"systemd": options.table(options.PREPARE, options.RUNTIME, options.APP)}


def systemd(words: Sequence[str]) -> int:
    """`rkpy systemd UUID` with flags of `rkpy start`, or the words of `rkpy run`; prints the unit."""
    request = grammar.parse(words, {**FLAGS["systemd"], **options.table(options.GLOBAL)})
    unit = _of_pod(request) or podunit.of_run(words, _complete(request))
    sys.stdout.write(podunit.render(unit))
    return 0


def _complete(request: Request) -> Request:
    """With what a pod file says, which the unit's command will read anew."""
    if request.flags.get("pod-file") is None:
        return request
    return run.of_file(request, config.load(request.flags), FLAGS["systemd"])[0]


def _of_pod(request: Request) -> podunit.Unit | None:
    """The unit of the pod that the only word names; None for what `rkpy run` would run."""
    settings = config.load(request.flags)
    if not request.images and not {"pod-manifest", "pod-file"} & set(request.flags.typed()):
        raise UsageError("must provide a pod UUID, an image or the pod manifest")
    others = set(request.flags.typed()) - options.table(options.GLOBAL, options.RUNTIME).keys()
    if len(request.images) != 1 or others or request.images[0].flags.typed() or request.images[0].arguments:
        return None
    wanted = request.images[0].reference
    try:
        pod = Pods(settings.pods).find(wanted)
    except PodError:
        return None
    with pod:
        if pod.name() != wanted and len(wanted) < _SHORTEST:
            return None  # That may well be chance, and the name of an image.
        if not pod.has_manifest():
            raise PodError(f'pod "{pod.uuid}" has no manifest')
        manifest = pod.manifest()
        flags = runflags.recall(pod.path, request.flags)
        return podunit.of_pod(pod.uuid, manifest, flags)
