"""How commands name pods: UUIDs or unambiguous prefixes, or `--uuid-file`, but not both."""

from __future__ import annotations

from collections.abc import Sequence

from common.errors import UsageError
from stage0.pods import read_uuid_file


def uuids(arguments: tuple[str, ...], uuid_file: str | None) -> tuple[str, ...]:
    """The UUIDs (or prefixes) that were given, one at least. Raises UsageError, or PodError for a bad file."""
    if uuid_file is not None:
        if arguments:
            raise UsageError("--uuid-file and a pod UUID cannot be combined")
        return (read_uuid_file(uuid_file),)
    if not arguments:
        raise UsageError("must provide a pod UUID", hint="rkpy list shows them; or use --uuid-file=FILE")
    return arguments


def one_uuid(arguments: tuple[str, ...], uuid_file: str | None) -> str:
    """The one UUID (or prefix) that was given."""
    found = uuids(arguments, uuid_file)
    if len(found) > 1:
        raise UsageError("must provide exactly one pod UUID")
    return found[0]


def app_name(names: Sequence[str], wanted: str) -> str:
    """The app called `wanted`; without a name, the only one. Raises UsageError."""
    if wanted:
        if wanted not in names:
            raise UsageError(f'no app "{wanted}" in the pod', hint=f"there is: {', '.join(names) or 'none'}")
        return wanted
    if len(names) != 1:
        hint = 'specify one with "--app=NAME"' if names else ""
        raise UsageError(
            f"pod contains multiple apps: {', '.join(names)}" if names else "pod contains no app", hint=hint
        )
    return names[0]
