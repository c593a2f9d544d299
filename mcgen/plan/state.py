"""What a call leaves for the next one: the parts of a state, what is cached, and where a state can be gone on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from mcgen.ir.closed_form import lagged_names
from mcgen.ir.layers import layers, sizes
from mcgen.ir.step import state_axes
from mcgen.symbolic.meaning import Meaning
from mcgen.symbolic.recurrence import MEMORY

LEAST = 16
"""Tokens between checkpoints at least: with fewer, keeping states costs more than running their tokens again."""
ROWS = 64
"""Rows that a matrix memory's kernels take at once, at most."""
BLOCK = 256
"""Tokens of its blocks, or a few more so that gradient chunks are whole."""


@dataclass(frozen=True)
class StateLayout:
    """The state of one meaning with constant segments."""

    meaning: Meaning

    @property
    def checkpoint(self) -> int:
        """Tokens of a segment from one point to go on from to the next.

        Whole gradient chunks, whose start is then no part of the state. Of a matrix memory what kernels take at once
        is the same wherever a call begins: steps, or with gradient chunks, whose steps are others, blocks.
        """
        chunk = self.meaning.gradient_chunk
        if chunk is None:
            return ROWS
        return chunk * -(-(BLOCK if self.meaning.linear else LEAST) // chunk)

    @cached_property
    def parts(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every part of the state that goes from token to token."""
        size = sizes(self.meaning.spec)
        return {name: tuple(size[axis] for axis in axes) for name, axes in state_axes(self.meaning).items()}

    @property
    def summed(self) -> bool:
        """Whether cached states are read as their sum: added up, and a read-out is linear in the state."""
        return self.meaning.linear and self.meaning.aggregate in ("residual", "mean")

    @property
    def banked(self) -> bool:
        """Whether cached states are read one by one."""
        return self.meaning.reads_cached and not self.summed

    @cached_property
    def memory(self) -> Mapping[str, str]:
        """The cached parameters of the memory: what programs call them, and the state's name for them."""
        return {f"cached{layer.suffix}": f"{MEMORY}{layer.suffix}" for layer in layers(self.meaning.spec)}

    @cached_property
    def bank(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of everything that is cached at the end of a segment; of their sum, where that is what is read."""
        if self.summed:
            return {"total": self.parts[MEMORY]}
        cached = {name: self.parts[part] for name, part in self.memory.items()} if self.banked else {}
        return {**cached, **({"pools": self.parts["pool"]} if self.meaning.routes else {})}

    @property
    def numbers(self) -> int:
        """Numbers of the memory's parameters."""
        return sum(prod(self.parts[part]) for part in self.memory.values())

    @cached_property
    def lags(self) -> list[tuple[str, int]]:
        """The tensors that tokens look back at, by how many tokens."""
        return list(lagged_names(self.meaning.recurrence).values())

    @property
    def lag(self) -> int:
        """How far tokens look back at earlier keys and values."""
        return max((lag for _, lag in self.lags), default=0)

    @property
    def sources(self) -> list[str]:
        """What they look back at."""
        return sorted({source for source, _ in self.lags})
