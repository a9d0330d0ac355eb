"""`rkpy fetch`: bring images into the store."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from aci.store import Store
from common.errors import UsageError
from stage0 import config, grammar, options, rootless
from stage0 import fetch as fetching

SHORT_ID = len("sha512-") + 32

FLAGS = {
    "fetch": options.table(
        options.IMAGE,
        [
            options.Flag("full", options.BOOL, "print the full image hash"),
            options.Flag("quiet", options.BOOL, "say nothing of what is being fetched"),
            options.Flag("signature", options.STRING, "file with the signature of the image before it"),
        ],
    )
}


def fetch(words: Sequence[str]) -> int:
    """`rkpy fetch IMAGE…`: prints the ID of each."""
    request = grammar.parse(words, {**FLAGS["fetch"], **options.table(options.GLOBAL)}, arguments=False)
    settings = config.load(request.flags)
    if not request.images:
        raise UsageError("must provide at least one image")
    rootless.become_root()
    policy = fetching.pull_policy(request.flags, "update")
    store = Store(settings.store)
    with store.lock():
        for image in request.images:
            record = fetching.image(settings, store, image, policy, quiet=request.flags.boolean("quiet"))
            shown = record.id if request.flags.boolean("full") else record.id[:SHORT_ID]
            sys.stdout.write(f"{shown}\n")
            sys.stdout.flush()
    return 0
