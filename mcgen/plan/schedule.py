"""What a plan says of running: its passes and kernels, and how they are launched. The value that every reader reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from mcgen.plan import tokens
from mcgen.plan.configurations import Defaults
from mcgen.plan.host import Buffer, Kernel, Pass
from mcgen.plan.state import StateLayout


@dataclass(frozen=True)
class Schedule:
    """The passes of a memory.

    kernels      by name, in the order of the file
    saved        what the forward pass leaves for the backward pass in one buffer
    choices      what it leaves besides, in tensors of their own
    constants    sizes that the spec fixes, as kernels call them
    block        tokens of a block, at most
    chained      whether a segment goes on from the one before
    least_rows   fewest tokens that a kernel takes at once
    flies        whether as many programs are launched as go on at once, each of which takes unit after unit
    segment      tokens of a segment; none of them says that lengths are powers of two
    defaults     configurations for what no table has
    state        what one call leaves for the next, where a sequence may be split into calls
    places       where each part of the state lies in a row of numbers, where it does
    mean_pool    whether a segment's pooled key is the mean of its keys, not their sum
    """

    forward: Pass
    backward: Pass
    kernels: Mapping[str, Kernel]
    saved: tuple[Buffer, ...]
    choices: tuple[Buffer, ...]
    constants: Mapping[str, int]
    block: int
    chained: bool
    least_rows: int
    flies: bool
    segment: int | None
    defaults: Defaults
    state: StateLayout | None
    places: Mapping[str, int]
    mean_pool: bool

    @property
    def passes(self) -> tuple[Pass, Pass]:
        return self.forward, self.backward

    @property
    def segments(self) -> Callable[[int], tokens.Segments]:
        """The segments of so many tokens."""
        if self.segment is None:
            return tokens.logarithmic_segments
        return partial(tokens.constant_segments, size=self.segment)

    def tables(self, T: int) -> Mapping[str, Any]:
        """Where T tokens lie: rows of blocks, chains and segments."""
        return tokens.tables(self._sequences(T), self.chained, self.block, tokens.WHOLE)

    def steps(self, T: int, rows: int) -> tokens.Steps:
        """Rows of steps of at most so many tokens and of their chains, and how many states are kept at once."""
        return tokens.step_tables(self._sequences(T), self.chained, rows, self.constants["CHUNK"], tokens.WHOLE)

    def bands(self, T: int) -> list[tokens.Row]:
        """The runs of blocks that kernels take at once where they leave numbers for rows and segments."""
        most = T * self.constants["BAND"] // len(self.segments(T))
        return tokens.bands(self.tables(T)["blocks"], most)

    def spans(self, T: int) -> list[tuple]:
        """The spans of all chains, side by side."""
        size, chunk = self.constants["SPAN"], self.constants["CHUNK"]
        return tokens.spans(tokens.chains(self._sequences(T), self.chained, size, chunk))

    def _sequences(self, T: int) -> list[tokens.Segments]:
        return tokens.sequences([T], self.segments)
