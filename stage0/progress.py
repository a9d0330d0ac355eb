"""What a person sees of a fetch: a bar for each layer on a terminal, a line for each step elsewhere, nothing if quiet.
All of it on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, Self

from stage0 import announce
from stage0.render import human_size

if TYPE_CHECKING:
    from tqdm import tqdm

SHOWN_DIGITS = 19
"""Of a digest: `sha256:` and twelve digits, as in tables."""


class Progress:
    """A context manager; leaving it clears the bars."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bars: dict[str, tqdm[NoReturn] | None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for bar in self._bars.values():
            if bar is not None:
                bar.close()

    def say(self, text: str) -> None:
        """A step, in a line."""
        if self._quiet:
            return
        if any(bar is not None for bar in self._bars.values()):
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)
        else:
            sys.stderr.write(f"{text}\n")

    def layer(self, digest: str, done: int, total: int) -> None:
        """`done` of `total` bytes of a blob are here."""
        self._show(digest[:SHOWN_DIGITS], done, total)

    def of(self, name: str) -> Callable[[int, int | None], None]:
        """The progress of one download called `name`, as a function of the bytes done and in all, if that is known."""
        return lambda done, total: self._show(name, done, total)

    def _show(self, name: str, done: int, total: int | None) -> None:
        announce.progressed()
        if self._quiet:
            return
        if name not in self._bars:
            self._bars[name] = self._begin(name, total)
        bar = self._bars[name]
        if bar is not None:
            bar.update(done - bar.n)

    def _begin(self, name: str, total: int | None) -> tqdm[NoReturn] | None:
        if not sys.stderr.isatty():
            self.say(f"fetching {name}" + (f" ({human_size(total)})" if total else ""))
            return None
        from tqdm import tqdm

        tqdm.monitor_interval = 0  # Its thread would be there when the processes that unpack are forked.
        return tqdm(total=total, desc=name, unit="B", unit_scale=True, unit_divisor=1024, leave=False, file=sys.stderr)
