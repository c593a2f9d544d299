"""How far work is that takes long, on standard error: a bar in a terminal, lines elsewhere, from the first second."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

EVERY = 10.0
"""Seconds from line to line where there is no terminal."""

Advance = Callable[..., None]


def in_steps(doing: str, total: int, shown: bool = True) -> contextlib.AbstractContextManager[Advance]:
    """Shows what is done of `total` steps while they are; yields the function that says that some more are."""
    if not shown:
        return contextlib.nullcontext(lambda steps=1: None)
    return (_bar if sys.stderr.isatty() else _lines)(doing, total)


@contextlib.contextmanager
def _bar(doing: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(doing, total=total)
        yield lambda steps=1: progress.advance(task, steps)


@contextlib.contextmanager
def _lines(doing: str, total: int) -> Iterator[Advance]:
    """A line at once, one every EVERY seconds, and one at the end, whatever became of the work."""
    start, done, over = time.monotonic(), 0, threading.Event()

    def say() -> None:
        elapsed = timedelta(seconds=int(time.monotonic() - start))
        print(f"{doing}: {done} of {total}, {elapsed}", file=sys.stderr, flush=True)

    def repeat() -> None:
        while not over.wait(EVERY):
            say()

    def advance(steps: int = 1) -> None:
        nonlocal done
        done += steps

    say()
    clock = threading.Thread(target=repeat, daemon=True)
    clock.start()
    try:
        yield advance
    finally:
        over.set()
        clock.join()
        say()
