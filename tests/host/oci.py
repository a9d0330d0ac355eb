"""OCI images, made by buildah."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path


def build_oci(
    directory: Path, root: str, config: Sequence[str], name: str = "example.com/oci:1", *, docker: bool = False
) -> str:
    """An OCI archive of the tree `root`, called `name`, or one of docker's; `config` are words of `buildah config`."""
    kind = "docker" if docker else "oci"
    storage = ["buildah", "--root", str(directory / "storage"), "--runroot", str(directory / "run")]
    container = subprocess.run([*storage, "from", "scratch"], check=True, capture_output=True, text=True).stdout.strip()
    archive, layer = str(directory / "image.tar"), str(directory / "layer.tar")
    # As an archive: of a directory buildah would make everything root's.
    subprocess.run(["tar", "-C", root, "--xattrs", "-cf", layer, "."], check=True)
    for words in (
        ["add", "-q", container, layer, "/"],
        ["config", *config, container],
        ["commit", "-q", f"--format={kind}", container, f"{kind}-archive:{archive}:{name}"],
        ["rm", container],
    ):
        subprocess.run([*storage, *words], check=True, capture_output=True)
    return archive
