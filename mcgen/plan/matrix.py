"""The plan of a matrix memory's kernels: what each computes, what is on its grid, and how it walks, off the programs.

Nothing here looks at a rule's name. A schedule follows from properties of the closed form: whether writes depend on the
memory, whether a system has to be solved, whether a segment goes on from the one before, whether a read-out is linear
in the state; and, for the reverse chunk step, from which sums and which parts of the state a gradient needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mcgen.ir import aggregate, backward
from mcgen.ir.closed_form import lagged_names
from mcgen.ir.program import Program
from mcgen.ir.step import error_names, state_axes, step_after_errors, step_with_errors
from mcgen.passes.carried import carried
from mcgen.passes.factors import FACTORS
from mcgen.passes.simplify import select, simplify
from mcgen.plan.configurations import Defaults, defaults, tile
from mcgen.plan.state import BLOCK, StateLayout
from mcgen.symbolic.meaning import Meaning

LEAST_STEP = 32  # tokens: gradient chunks up to this many are one step of a kernel
TILES = 60  # values with two axes in a gates' kernel: more of them spilled in every configuration tried


@dataclass(frozen=True)
class Walk:
    """A kernel of the reverse chunk step: some of the inputs' gradients, by one walk over the chunks of a block.

    axis      on the grid, in tiles; `whole` where the program sums over it, so that one tile must hold all of it
    parts     a tile writes its own part of each sum over the axis, and the parts are added afterwards
    wanted    the inputs whose gradients it writes
    reverse   it walks backwards, carrying the gradient of `d_state`; else forwards, carrying `state`
    state     the parts of the state it needs before every chunk; a reverse walk recomputes them from the block's start
    stepped   its steps are those of gradient chunks, since pulls pass through error rows
    """

    axis: str
    wanted: tuple[str, ...]
    program: Program
    reverse: bool
    d_state: tuple[str, ...]
    state: tuple[str, ...]
    stepped: bool
    whole: bool
    parts: bool


@dataclass(frozen=True)
class MatrixPlan:
    """The kernels of one matrix memory, and why they are what they are."""

    meaning: Meaning

    @cached_property
    def anchored(self) -> bool:
        """Whether gradient chunks may be longer than a chunk step, whose tile is at least LEAST_STEP tokens."""
        return (self.meaning.gradient_chunk or 0) > LEAST_STEP

    @property
    def least_rows(self) -> int:
        """The fewest rows that a kernel takes at once."""
        return tile(min(self.meaning.gradient_chunk or 1, LEAST_STEP))

    @property
    def block(self) -> int:
        """Tokens of a block: gradient chunks are not cut."""
        chunk = self.meaning.gradient_chunk or 1
        return -(-BLOCK // chunk) * chunk

    @property
    def defaults(self) -> Defaults:
        """Configurations for kernels that no table has."""
        return defaults(self.meaning.spec.head.key_dim, self.meaning.spec.head.value_dim)

    @cached_property
    def stepped(self) -> bool:
        """Whether what depends on error rows has to be walked in steps of gradient chunks."""
        return self.meaning.gradient_chunk is not None

    @cached_property
    def starts(self) -> bool:
        """Whether blocks follow one another, so that the state at a block's start has to be kept."""
        segment = self.meaning.spec.segment
        return self.meaning.chained or segment.mode == "logarithmic" or segment.size > BLOCK

    @cached_property
    def sums(self) -> bool:
        """Whether cached states are read as their sum: added up, and a read-out is linear in the state."""
        return StateLayout(self.meaning).summed

    @cached_property
    def state(self) -> Mapping[str, tuple[str, ...]]:
        return state_axes(self.meaning, self.anchored)

    @cached_property
    def errors(self) -> list[str]:
        """The error rows that the states' kernel leaves for the others."""
        return list(dict.fromkeys(error_names(self.meaning).values()))

    @cached_property
    def reverse(self) -> backward.Reverse:
        return backward.reverse(self.meaning, self.anchored)

    @cached_property
    def gradients(self) -> Program:
        """The reverse chunk step, as the gradient kernels share it out."""
        return simplify(self.reverse.inputs, FACTORS)

    @cached_property
    def advance(self) -> Program:
        """The chunk step where error rows are known."""
        return simplify(step_after_errors(self.meaning, self.anchored), FACTORS)

    @cached_property
    def programs(self) -> Mapping[str, Program]:
        """The tile programs that kernels are printed from, by kernel and part; gradient kernels have their walks'."""
        meaning, following = self.meaning, [f"{name}_next" for name in self.state]
        chain = simplify(step_with_errors(meaning, self.anchored), FACTORS)
        read = ["o", *(["r"] if meaning.routes else []), *following]
        found = {
            "states": select(chain, [*following, *self.errors], "states"),
            "advance": select(self.advance, following, "advance"),
            "read": select(self.advance, [name for name in read if name != "anchor_next"], "read"),
            "retreat": simplify(self.reverse.chain, FACTORS),
        }
        if meaning.reads_cached:
            found["read_segment"] = simplify(aggregate.program(aggregate.read_segment, meaning), FACTORS)
            found["rows"] = simplify(backward.rows(meaning), FACTORS)
            found["segment"] = simplify(backward.segment(meaning), FACTORS)
        return found

    def read_only(self, label: str) -> Program:
        """What gives one output of a read of a cached segment."""
        return select(self.programs["read_segment"], [label], "read")

    @cached_property
    def wanted(self) -> list[str]:
        """The inputs whose gradients the kernels write, lagged views apart."""
        names = [label.removeprefix("d_") for label in self.gradients.outputs]
        return [name for name in names if name not in self.state]

    def advancing(self, state: Sequence[str]) -> Program:
        """The program that takes parts of the state a chunk further."""
        return select(self.advance, [f"{name}_next" for name in state], "advance")

    @cached_property
    def retreat_state(self) -> tuple[str, ...]:
        """The parts of the state that the walk back over blocks makes again."""
        return carried(self.programs["retreat"], list(self.state), self.advance, "{}", "{}_next")

    @cached_property
    def walks(self) -> Mapping[str, Walk]:
        """The gradient kernels by name: queries and keys by tiles of k, values and gates by tiles of v.

        Gates' gradients are sums over v with one such sum a term, so a tile gives a part of them; the others sum over
        the other axis alone, or take theirs whole.
        """
        lagged = lagged_names(self.meaning.recurrence)
        names = [label.removeprefix("d_") for label in self.gradients.outputs]
        source = {name: lagged.get(name, (name, 0))[0] for name in names if name not in self.state}
        groups = {"queries": ("k", ("q", "u")), "keys": ("k", ("k",)), "values": ("v", ("v",))}
        matrices = {tensor for _, tensors in groups.values() for tensor in tensors}
        shared = {kernel: (axis, tuple(n for n in source if source[n] in of)) for kernel, (axis, of) in groups.items()}
        walks = {kernel: self._walk(axis, wanted, kernel) for kernel, (axis, wanted) in shared.items() if wanted}
        shares = self._shares([name for name in source if source[name] not in matrices])
        kernels = ["gates"] if len(shares) == 1 else [f"gates_{number}" for number in range(1, len(shares) + 1)]
        return walks | {name: self._walk("v", of, name, parts=True) for name, of in zip(kernels, shares, strict=True)}

    def _shares(self, gates: list[str]) -> list[tuple[str, ...]]:
        """The gates by kernel: each with those that have most in common with it, while TILES or a tenth more allow."""
        shares: list[tuple[str, ...]] = []
        for gate in gates:
            grown = {(*share, gate): self._tiles(share) for share in shares}
            fitting = [new for new, old in grown.items() if self._tiles(new) <= max(TILES, 1.1 * old)]
            chosen = min(fitting, key=lambda new: self._tiles(new) - grown[new], default=(gate,))
            shares = [*(share for share in shares if share != chosen[:-1]), chosen]
        return shares

    def _tiles(self, wanted: tuple[str, ...]) -> int:
        """Values with two axes in the kernel of some gates."""
        return sum(len(node.axes) == 2 for node in self._walk("v", wanted, "gates", parts=True).program.nodes)

    def _walk(self, axis: str, wanted: tuple[str, ...], kernel: str, parts: bool = False) -> Walk:
        program = select(self.gradients, [f"d_{name}" for name in wanted], kernel)
        whole = not parts and any(axis in getattr(node, "over", ()) for node in program.nodes)
        reverse = any(f"d_{name}_next" in program.inputs for name in self.state)
        d_state = carried(program, list(self.state), self.gradients, "d_{}_next", "d_{}") if reverse else ()
        program = select(self.gradients, [f"d_{name}" for name in [*wanted, *d_state]], kernel)
        state = carried(program, list(self.state), self.advance, "{}", "{}_next")
        stepped = self.stepped and not set(self.reverse.pulls).isdisjoint(program.inputs)
        return Walk(axis, wanted, program, reverse, d_state, state, stepped, whole, parts)
