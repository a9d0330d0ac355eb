"""`rkpy completion`: completion for a shell."""

from __future__ import annotations

import click

from stage0 import shells


@click.command("completion")
@click.argument("shell", type=click.Choice(list(shells.SCRIPTS)))
def command(shell: str) -> None:
    """Print the completion script for a shell.

    Into the shell that runs: source <(rkpy completion bash), or rkpy completion fish | source. For every shell that
    starts: rkpy install-units, which puts the script where the shell looks for it.
    """
    click.echo(shells.SCRIPTS[shell], nl=False)
