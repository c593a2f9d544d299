"""The plan of a deep memory's kernels: a state in buffers, read and written a tile of hidden units at a time.

The parameters of a deep memory and its other slots rarely fit a program's registers: two layers of 64 by 256 with
momentum are 256 KB. So a chunk step is a number of loops over the hidden units, as its sums over them demand
(`mcgen.passes.phases`), and the state passes from one buffer to another, which lie in the second-level cache. A layer
narrow enough for one tile is the same program with loops of one turn; then the walk may hold its state in registers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from mcgen.ir import aggregate, backward, soup
from mcgen.ir.layers import layers, sizes
from mcgen.ir.program import Program
from mcgen.ir.step import state_axes, step
from mcgen.passes.factors import FACTORS, WEIGHTED_SUM
from mcgen.passes.phases import Phases
from mcgen.passes.schedule import chained
from mcgen.passes.simplify import select, simplify
from mcgen.plan.configurations import ELEMENTS, Configuration, Defaults, tile
from mcgen.plan.targets import targets
from mcgen.symbolic.meaning import Meaning
from mcgen.symbolic.recurrence import MEMORY

LONGEST_STEP = 32
"""Tokens: gradient chunks up to this many are one step of a kernel. For 64 at once most targets have too few registers
going back, whatever the tile."""
LEAST_ROWS, MOST_ROWS = 16, 64
"""Rows of a step, where a gradient chunk is several."""
WIDEST_TILE = 64
"""Hidden units that a kernel takes at once, at most."""
COLUMNS = 32
"""Hidden units that it takes where no table says otherwise."""
RULES = (*FACTORS, WEIGHTED_SUM)


def is_long(meaning: Meaning) -> bool:
    """Whether a gradient chunk is too long for one step of a kernel."""
    return meaning.gradient_chunk > LONGEST_STEP


@dataclass(frozen=True)
class StreamedPlan:
    """The programs of one deep memory's kernels, and how its state lies in a buffer."""

    meaning: Meaning

    @cached_property
    def soup(self) -> bool:
        return self.meaning.aggregate == "soup"

    @property
    def anchored(self) -> bool:
        """Whether a gradient chunk is several steps, so that the memory at its start is carried along."""
        return is_long(self.meaning)

    @cached_property
    def least_rows(self) -> int:
        """The fewest rows of a step: all of a gradient chunk, unless it is several steps."""
        return LEAST_ROWS if self.anchored else tile(self.meaning.gradient_chunk)

    @property
    def defaults(self) -> Defaults:
        """Configurations for kernels that no table has, by family and type: small tiles, few registers."""
        columns, warps = min(COLUMNS, tile(self.hidden)), {"sm": 8, "gf": 4, "cpu": 4}
        chosen = {family: Configuration(self.least_rows, columns, n) for family, n in warps.items()}
        return {family: dict.fromkeys(ELEMENTS, one) for family, one in chosen.items()}

    @cached_property
    def state(self) -> Mapping[str, tuple[str, ...]]:
        """The parts of the state with their axes, the memory first: as they lie in a buffer."""
        found = state_axes(self.meaning, self.anchored)
        memory = [name for name in found if name.startswith(f"{MEMORY}_")]
        return {name: found[name] for name in [*memory, *(n for n in found if n not in memory)]}

    def shape(self, name: str) -> tuple[int, ...]:
        """The lengths of the axes of a part of the state."""
        return tuple(sizes(self.meaning.spec)[axis] for axis in self.state[name])

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Where each part of the state begins in a buffer."""
        found, at = {}, 0
        for name in self.state:
            found[name] = at
            at += prod(self.shape(name))
        return found

    @cached_property
    def total(self) -> int:
        """Numbers of a state."""
        return sum(prod(self.shape(name)) for name in self.state)

    @cached_property
    def memory(self) -> int:
        """Numbers of the memory's parameters."""
        return sum(prod(self.shape(f"{MEMORY}{layer.suffix}")) for layer in layers(self.meaning.spec))

    @property
    def hidden(self) -> int:
        """Hidden units of a layer."""
        return self.meaning.spec.memory.expansion * self.meaning.spec.head.key_dim

    @cached_property
    def resident(self) -> bool:
        """Whether the walk holds the state in registers: one tile takes all hidden units, and the state with the one
        that follows it fills at most a third of the registers of every target's processor. Else it lies in buffers, and
        is read and written a tile of hidden units at a time."""
        lengths = {axis: tile(size) for axis, size in sizes(self.meaning.spec).items()}
        state = sum(prod(lengths[axis] for axis in axes) for axes in self.state.values())
        return tile(self.hidden) <= WIDEST_TILE and 3 * 2 * state <= min(t.registers_per_sm for t in targets().values())

    @cached_property
    def between_loops(self) -> int:
        """Numbers that a kernel's buffer has room for, of what passes between its loops."""
        return max(self._between_loops(self.programs[name]) for name in self.phased)

    def keeps_rows(self, program: Program) -> bool:
        """Whether anything passes between a program's loops."""
        return self._between_loops(program) > 0

    def _between_loops(self, program: Program) -> int:
        head, phases = self.meaning.spec.head, Phases(program)
        widths = {"k": tile(head.key_dim), "v": tile(head.value_dim)}
        whole = sum(prod(widths.get(axis, MOST_ROWS) for axis in node.axes) for node in phases.kept)
        return len(phases.rows) * MOST_ROWS * self.hidden + whole

    @cached_property
    def between(self) -> Mapping[str, str]:
        """Rows that one kernel leaves for another, with the axis besides the tokens."""
        found = layers(self.meaning.spec) if self.soup else ()
        pulls = {f"pull{layer.suffix}": layer.out for layer in found}
        return pulls | {f"seen{layer.suffix}": layer.into for layer in found[1:]}

    @cached_property
    def programs(self) -> Mapping[str, Program]:
        """The tile programs by the kernel they are in; `advance`, `logit` and `read_segment` are parts of several."""
        meaning, how = self.meaning, (self.meaning, self.anchored)
        whole = step(meaning, masked=True, anchored=self.anchored)
        found = {"walk": whole, "advance": select(whole, [f"{name}_next" for name in self.state], "advance")}
        if self.soup:
            found |= {"walk": found["advance"], "logit": soup.logit(*how), "read_soup": soup.read_soup(*how)}
            found |= {"through_layers": soup.through_layers(*how), "reverse": soup.reverse(*how)}
        else:
            found["reverse"] = backward.whole(*how)
        if meaning.reads_cached:
            read = soup if self.soup else backward
            found["read_segment"] = aggregate.program(aggregate.read_segment, meaning)
            found |= {"rows": read.rows(meaning), "segment": read.segment(meaning)}
        return {name: chained(simplify(program, RULES)) for name, program in found.items()}

    def only_read(self, label: str) -> Program:
        """What gives one output of a read of a cached segment."""
        return select(self.programs["read_segment"], [label], "read")

    @property
    def phased(self) -> list[str]:
        """The programs that are loops over hidden units."""
        return list(self.programs)

    def choices(self) -> Iterator[tuple[str, str, str]]:
        """What is chosen, how, and the property it follows from with what it costs."""
        chunk = self.meaning.gradient_chunk
        size = f"{self.total:,} numbers, {4 * self.total // 1024:,} KB in float32"
        if self.resident:
            fits = "a program of every target has room for it, and for all hidden units in one tile"
            yield "state", "in registers going forward, in buffers going back", f"{size}: {fits}"
        else:
            yield (
                "state",
                "in buffers, a tile of hidden units at a time",
                f"{size}: a program reads and writes that much a step, from the second-level cache",
            )
        if self.anchored:
            kept = f"a gradient chunk of {chunk} is several steps; the memory at its start is carried along"
            yield "steps", "of up to BT tokens", kept
        else:
            yield "steps", f"of a gradient chunk, {chunk} tokens", "all its gradients are taken at the state before it"
        yield self._segments()
        yield (
            "backward",
            "steps in reverse, from states made again",
            "a program keeps the state at the start of every sqrt(n)-th of its n steps, and those in between once more",
        )
        yield from self._reads()

    def _segments(self) -> tuple[str, str, str]:
        if self.meaning.chained:
            return "segments", "one chain, in order", "init checkpoint: B H chains"
        return "segments", "side by side", "init independent: B H N chains, as many in flight as the GPU has room for"

    def _reads(self) -> Iterator[tuple[str, str, str]]:
        meaning = self.meaning
        if self.soup:
            why = "a layer is linear in its parameters: one pass over the segments a layer, one activation"
            yield "cached states", "averaged layer by layer, in its results", why
        elif meaning.aggregate == "ssc":
            yield (
                "cached states",
                "rows grouped by the segment they chose",
                "reads follow top_k; only logits meet every segment",
            )
        elif meaning.routes:
            yield "cached states", "online softmax over segments", "neither weights nor read-outs are kept"
        elif meaning.reads_cached:
            yield (
                "cached states",
                "read one after another",
                "a read-out is not linear in the state, so states do not add up",
            )
