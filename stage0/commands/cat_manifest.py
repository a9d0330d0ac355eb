"""`rkpy cat-manifest`: print a pod's manifest."""

from __future__ import annotations

import json

import click

from common.errors import ManifestError
from stage0 import flags
from stage0.commands.pod_arguments import one_uuid
from stage0.config import Config
from stage0.pods import Pods
from stage0.render import write_json


@click.command("cat-manifest")
@flags.switch("--pretty-print", "indent the JSON", default="true")
@click.option("--uuid-file", metavar="FILE", help="read pod UUID from file instead of argument")
@click.argument("uuid", nargs=-1)
@click.pass_obj
def command(config: Config, uuid: tuple[str, ...], uuid_file: str | None, pretty_print: bool) -> None:
    """Inspect and print the pod manifest."""
    with Pods(config.pods).find(one_uuid(uuid, uuid_file)) as pod:
        text = pod.manifest_text()
        try:
            # As it was written, not as we understand it: another version may have written fields we do not know.
            manifest = json.loads(text)
        except ValueError as error:
            raise ManifestError(f'the manifest of pod "{pod.uuid}" is not JSON: {error}') from error
    write_json(manifest, pretty=pretty_print)
