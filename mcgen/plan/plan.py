"""The plan of a spec's kernels: what each computes, what is on its grid, and how it walks, read off the programs.

Nothing here looks at a rule's name. A schedule follows from properties of the closed form: whether writes depend on the
memory, whether a system has to be solved, whether a segment goes on from the one before, whether a read-out is linear
in the state; and, for the reverse chunk step, from which sums and which parts of the state a gradient needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import sympy

from mcgen.ir import backward
from mcgen.ir.closed_form import lagged_names
from mcgen.ir.program import Program
from mcgen.ir.step import error_names, state_axes, step_after_errors
from mcgen.passes.carried import carried
from mcgen.passes.factors import FACTORS
from mcgen.passes.simplify import select, simplify
from mcgen.plan.layered import planned
from mcgen.plan.streamed import streamed_plan_text
from mcgen.symbolic.cost import cost
from mcgen.symbolic.meaning import Meaning
from mcgen.symbolic.text import text

READS = "reads of cached segments"
BLOCK = 256  # tokens of a block, or a few more so that gradient chunks are whole
LEAST_STEP = 32  # tokens: gradient chunks up to this many are one step of a kernel
TILES = 60  # values with two axes in a gates' kernel: more of them spilled in every configuration tried


def keeps_y(meaning: Meaning) -> bool:
    """Whether the reverse of reads starts from y: from its inner product with the cotangent, as a softmax's does."""
    return meaning.routes and meaning.aggregate != "soup"


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
class Plan:
    """The kernels of one meaning, and why they are what they are."""

    meaning: Meaning

    @cached_property
    def anchored(self) -> bool:
        """Whether gradient chunks may be longer than a chunk step, whose tile is at least LEAST_STEP tokens."""
        return (self.meaning.gradient_chunk or 0) > LEAST_STEP

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
        return self.meaning.linear and self.meaning.aggregate in ("residual", "mean")

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


def plan_text(meaning: Meaning) -> str:
    """The plan in words: each choice with the property it follows from and what it costs."""
    if not meaning.linear:
        return streamed_plan_text(planned(meaning))
    plan = Plan(meaning)
    lines = [f"{what}: {chosen}\n    {why}" for what, chosen, why in _choices(plan)]
    return "\n".join([*lines, "", "Launches", *(f"  {line}" for line in _launches(plan))])


def _choices(plan: Plan) -> list[tuple[str, str, str]]:
    return [_writes(plan), _segments(plan), _blocks(plan), _reads(plan), *_walk_choices(plan)]


def _flops(plan: Plan, *labels: str) -> str:
    """What parts of `mcgen explain --stage cost` take forward, as text."""
    parts = {part.label: part.forward for part in cost(plan.meaning).flops}
    return f"{text(sympy.factor(sum(parts[label] for label in labels)))} FLOPs"


def _writes(plan: Plan) -> tuple[str, str, str]:
    if not plan.errors:
        flops = _flops(plan, "scores of queries and keys", "weighted values")
        why = f"no write depends on the memory, so C masks scores of queries and keys: {flops}"
        return "inside a chunk", "token form, attention-like products", why
    flops = _flops(plan, "error rows of gradients")
    if plan.stepped:
        chunk = plan.meaning.gradient_chunk
        kept = "; the memory there is carried along" if plan.anchored else ""
        return (
            "inside a chunk",
            f"error rows from the memory at the start of each gradient chunk of {chunk}{kept}",
            f"gradients over chunks read one memory; steps do not cross a gradient chunk's start: {flops}",
        )
    return (
        "inside a chunk",
        f"{len(plan.errors)} unit lower triangular system(s): 16-row blocks by forward substitution, the rest products",
        f"gradients token by token, the error row affine in p: {flops}",
    )


def _segments(plan: Plan) -> tuple[str, str, str]:
    if plan.meaning.chained:
        return "segments", "one chain, in order", "init checkpoint: T / BT steps in a row, B H (V / BV) programs"
    return "segments", "side by side", "init independent: B H N (V / BV) programs, a segment's chunks in a row"


def _blocks(plan: Plan) -> tuple[str, str, str]:
    if not plan.starts:
        return "blocks", "a segment is a block", f"segments are at most {BLOCK} tokens: nothing is kept inside them"
    return (
        "blocks",
        f"cut at {BLOCK} tokens",
        "what reads and reverses runs block by block; the state at each start is kept",
    )


def _reads(plan: Plan) -> tuple[str, str, str]:
    if not plan.meaning.reads_cached:
        return "cached states", "not read", "aggregate none"
    if plan.sums:
        why = f"added up, and a read-out is linear in the state: {_flops(plan, READS)}"
        return "cached states", "one read of their sum", why
    if plan.meaning.aggregate == "ssc":
        logits = _flops(plan, "logits of cached segments")
        return (
            "cached states",
            "rows grouped by the segment they chose; every segment where top_k covers them all",
            f"{_flops(plan, READS)}; only routing logits, {logits}, meet every segment",
        )
    return (
        "cached states",
        "online softmax over segments",
        f"{_flops(plan, READS)}; neither weights nor read-outs kept",
    )


def _walk_choices(plan: Plan) -> list[tuple[str, str, str]]:
    found = []
    for walk in plan.walks.values():
        way = "backwards" if walk.reverse else "forwards"
        carried = [f"d{name}" for name in walk.d_state] if walk.reverse else list(walk.state)
        chosen = f"walks {way}" + (f" with {', '.join(carried)}" if carried else "")
        again = f"; recomputes {', '.join(walk.state)} at each chunk" if walk.reverse and walk.state else ""
        reason = "sums over it, so one tile holds all of it" if walk.whole else "needs no sum over it"
        reason = "a tile gives a part of each sum over it" if walk.parts else reason
        found.append((f"gradients of {', '.join(walk.wanted)}", chosen + again, f"{walk.axis} on the grid: {reason}"))
    return found


def _launches(plan: Plan) -> list[str]:
    meaning = plan.meaning
    keeps = plan.starts or plan.errors or meaning.reads_cached
    chosen = ["route", "chosen_reads", "read_chosen"] if meaning.aggregate == "ssc" else ["read"]
    forward = [*(["states"] if keeps else []), *chosen]
    reads = ["chosen_rows", "chosen_segments"] if meaning.aggregate == "ssc" else ["rows", "segments"]
    retreat = ["retreat"] if plan.starts or plan.reverse.pulls else []
    backwards = [*(reads if meaning.reads_cached else []), *retreat, *plan.walks]
    return [f"forward, {len(forward)}: {', '.join(forward)}", f"backward, {len(backwards)}: {', '.join(backwards)}"]
