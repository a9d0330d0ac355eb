"""`rkpy config`: the configuration in force, as rkt prints it."""

from __future__ import annotations

from typing import Any

import click

from stage0 import flags
from stage0.config import CNI_PLUGINS, KVM, Config, effective, paths_in_force, read
from stage0.render import write_json


@click.command("config")
@flags.switch("--pretty-print", "indent the JSON", default="true")
@click.pass_obj
def command(config: Config, pretty_print: bool) -> None:
    """Print configuration for each stage in JSON format."""
    write_json({"stage0": documents(config)}, pretty=pretty_print)


def documents(config: Config) -> list[dict[str, Any]]:
    """One document for each credential, and the `paths` and `stage1` in force; credentials are not hidden."""
    found: dict[str, dict[str, Any]] = {}
    for directory in config.directories:
        for _, document in read(directory, "auth.d"):
            for key in document.get("domains") or document.get("registries") or ():
                found[f"{document['rktKind']} {key}"] = document
    unique = list({id(document): document for document in found.values()}.values())
    paths, stage1 = paths_in_force(config), effective(config, "stage1")
    return [
        *unique,
        {**_in_force("paths", paths, "data", "stage1-images"), CNI_PLUGINS: paths.get(CNI_PLUGINS) or []},
        {**_in_force("stage1", stage1, "name", "version", "location"), **({KVM: stage1[KVM]} if KVM in stage1 else {})},
    ]


def _in_force(kind: str, document: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {"rktVersion": "v1", "rktKind": kind, **{key: document.get(key, "") for key in keys}}
