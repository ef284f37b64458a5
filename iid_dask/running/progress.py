"""A bar on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tick = Callable[[int, int], None]
"""Told of steps that are done, and of their pixels."""


@contextmanager
def bar(title: str, steps: int, *, shown: bool) -> Iterator[Tick]:
    """Show a bar for the time of the block, with the time that is left, and the speed where pixels are made."""
    if not shown or not steps:
        yield lambda steps, pixels: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    start, done = time.monotonic(), 0
    with Progress(*columns, console=Console(stderr=True)) as shown_bar:
        row = shown_bar.add_task(title, total=steps, speed="")

        def tick(steps: int, pixels: int) -> None:
            nonlocal done
            done += pixels
            speed = f"{done / 1e6 / max(time.monotonic() - start, 1e-3):.3g} Mpx/s" if done else ""
            shown_bar.update(row, advance=steps, speed=speed)

        yield tick
