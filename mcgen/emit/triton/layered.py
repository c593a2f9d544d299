"""The kernels of deep memories whose gradient chunks are long: every layer by itself (`mcgen.plan.layered`).

Rows of a span lie in buffers of their own, (chain, token, ·). Where each tile of a layer has a part of them there is
one such buffer a tile, and they are added up between two kernels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from mcgen.emit.text.rendering import render
from mcgen.emit.triton.buffers import Buffers, added_rows, loaded, rows_of
from mcgen.emit.triton.cached_reads import CachedReads, pooled
from mcgen.emit.triton.printer import size
from mcgen.emit.triton.tensors import OF_SEGMENT, Store, Tensors, both, carry, discard, kernel_text, number
from mcgen.ir.layers import Layer
from mcgen.ir.program import Program
from mcgen.ir.step import query_name
from mcgen.passes.phases import HIDDEN
from mcgen.passes.simplify import select, simplify
from mcgen.plan.layered import LayeredPlan, LayerWalk
from mcgen.plan.layered_passes import LayeredPasses
from mcgen.plan.pass_tensors import goes_on
from mcgen.plan.streamed import RULES
from mcgen.plan.streamed_passes import width_of
from mcgen.symbolic.meaning import Meaning
from mcgen.symbolic.recurrence import MEMORY

RECORDS = "{} + i_e.to(tl.int64) * STATE"
STEPS = {
    "errors": "The rows that gradients are made of: what layers see of the keys, and their errors",
    "online": "The online read-outs",
    "reverse_online": "Gradients of the last layer's results",
    "inputs": "The gradients of all that tokens bring along, and each step's share of the anchor's",
}
"""The kernels of a step, and what they give."""


@dataclass(frozen=True)
class LayeredKernels:
    """The kernels of one deep memory, layer by layer, as text."""

    passes: LayeredPasses

    @property
    def plan(self) -> LayeredPlan:
        return self.passes.plan

    @property
    def meaning(self) -> Meaning:
        return self.plan.meaning

    @cached_property
    def tensors(self) -> Tensors:
        return Tensors(self.meaning)

    @cached_property
    def buffers(self) -> Buffers:
        return Buffers(self.plan, self.tensors, self._row_of_span, anchors=True)

    def header(self) -> str:
        """What names in the kernels mean, and how the state lies in a buffer."""
        return render("triton/layered/header.py.jinja", layout=self.buffers.layout())

    def texts(self) -> dict[str, str]:
        """The kernels by name."""
        reads = CachedReads(self.passes, self.buffers).makers()
        makers = {**reads, "logits": self._logits, "reverse_logits": self._reverse_logits}
        makers |= {name: lambda name=name: self._step(name) for name in STEPS}
        makers |= {f"layer{layer.suffix}": lambda layer=layer: self._layer(layer) for layer in self.plan.layers}
        makers |= {name: lambda name=name, walk=walk: self._walk(name, walk) for name, walk in self.plan.walks.items()}
        return {name: makers[name]() for name in self.passes.kernels}

    def _render(self, template: str, kernel: str, **more: object) -> str:
        return kernel_text(f"layered/{template}", self.passes.kernels[kernel], **more)

    # -- rows of a span -----------------------------------------------------------------------------------------------

    def _row_of_span(self, name: str) -> str | None:
        """The text that loads a span's rows; None for anything else."""
        return loaded(*self._in_span(name, "i_at")) if name in self.passes.span_rows else None

    def _in_span(self, name: str, row: str) -> tuple[str, str]:
        """The text of the addresses of rows in their buffer, from that which a tile begins with, and of their mask."""
        axis = self.passes.span_rows[name]
        if axis is None:
            return f"{name} + {row} + o_t", "m_t"
        width = width_of(axis)
        return f"{name} + {row} * {width} + (o_t[:, None] * {width} + o_{axis}[None, :])", both("m_t", f"m_{axis}")

    def _leave(self, name: str, row: str = "i_at") -> Store:
        """Statements that leave a span's rows for another kernel."""
        place, mask = self._in_span(name, row)
        return lambda tile: [f"tl.store({place}, {tile}, mask={mask})"]

    def _bind(self, program: Program, held: Iterable[str], store: dict[str, Store]) -> list[str]:
        """A program's statements; what registers hold is called `b_`."""
        loads = {name: self._row_of_span(name) for name in program.inputs if name in self.passes.span_rows}
        loads |= {name: loaded(*self.buffers.place(name)) for name in program.inputs if self.buffers.holds(name)}
        return self.tensors.bind(program, {**loads, **{name: f"b_{name}" for name in held}}, store)

    # -- kernels of a step --------------------------------------------------------------------------------------------

    def _step(self, kernel: str) -> str:
        program = self.plan.programs[kernel]
        lines = self.buffers.phased(program, {name: self._output(kernel, name) for name in program.outputs})
        scratch = kernel in self.plan.phased
        return self._render(
            "step",
            kernel,
            doc=STEPS[kernel],
            begin=["p_rows = work + tl.program_id(0).to(tl.int64) * ROWS"] if scratch else [],
            at_step=ANCHORS[kernel],
            program=[*lines, *(["tl.debug_barrier()"] if scratch else [])],
        )

    def _output(self, kernel: str, name: str) -> Store:
        """How a step's kernel stores an output."""
        if name == "o":
            return rows_of("o" if self.meaning.reads_cached else "y")
        if name in self.passes.span_rows:
            return self._leave(name)
        return self.buffers.keep(name) if self.buffers.holds(name) else self.tensors.store(name.removeprefix("d_"))

    # -- kernels of a layer -------------------------------------------------------------------------------------------

    def _layer(self, layer: Layer) -> str:
        kernel, slots, result = f"layer{layer.suffix}", self.plan.slots(layer), f"result{layer.suffix}"
        program = self.plan.programs[kernel]
        (leave,) = self._leave(result, "at_into")("{}")
        store = {**discard(program.outputs), result: lambda tile: ["if READS:", f"    {leave.format(tile)}"]}
        return self._render(
            "layer",
            kernel,
            begin=[f"b_{name} = {self._part(name, 'p_record')}" for name in slots],
            program=carry(self._bind(program, slots, store), "b_{}", "b_{}_next", slots),
            advance=[self._stored(name, "p_record", f"b_{name}") for name in slots],
            keep=self._cache(slots),
            **self._tile(layer),
        )

    def _cache(self, slots: Iterable[str]) -> list[str]:
        """Statements that keep the parameters at a segment's end."""
        if not self.meaning.reads_cached:
            return []
        stores = [self._stored(n, "cached + i_cached * MEMORY", f"b_{n}") for n in slots if _is_learned(n)]
        known = "if READS and ADVANCES:  # known when compiled, what follows is not"
        return [known, "    if is_last == 1:", *(f"        {line}" for line in [OF_SEGMENT, *stores])]

    def _walk(self, kernel: str, walk: LayerWalk) -> str:
        """A gradient kernel of a layer, as planned."""
        owing = [name for name in walk.program.outputs if name in self.passes.span_rows]
        place = {walk.layer.out: "at_into", walk.layer.into: "at_out", None: "at_both"}
        rows = {name: self._leave(name, place[self.passes.span_rows[name]]) for name in owing}
        store = {**discard(walk.program.outputs), **rows}
        common = {"wanted": ", ".join(owing), **self._tile(walk.layer)}
        if not walk.d_state:
            return self._forwards(kernel, walk, store, common)
        held = [*walk.state, *(f"d_{name}_next" for name in walk.d_state)]
        loads = (f"b_d_{name}_next = {self._part(name, RECORDS.format('d_records'))}" for name in walk.d_state)
        stores = (self._stored(n, RECORDS.format("d_records"), f"b_d_{n}_next") for n in walk.d_state)
        return self._render(
            "walk",
            kernel,
            **self._made_again(walk),
            ends=[*loads, *self._uncache(walk)],
            program=carry(self._bind(walk.program, held, store), "b_d_{}_next", "b_d_{}", walk.d_state),
            leave=[*(stores if walk.leaves else ()), *(["tl.debug_barrier()"] if walk.state else [])],
            **common,
        )

    def _forwards(self, kernel: str, walk: LayerWalk, store: dict[str, Store], common: dict[str, object]) -> str:
        advance = self.plan.advancing(walk)
        whole = simplify(Program(kernel, {**walk.program.outputs, **advance.outputs}), RULES)
        lines = self._bind(whole, walk.state, {**store, **discard(advance.outputs)})
        begin, program = self._begin(walk), carry(lines, "b_{}", "b_{}_next", walk.state)
        return self._render("walk_forwards", kernel, begin=begin, program=program, **common)

    def _begin(self, walk: LayerWalk) -> list[str]:
        """Statements that take up the state before a span."""
        return [f"b_{name} = {self._part(name, RECORDS.format('records'))}" for name in walk.state]

    def _made_again(self, walk: LayerWalk) -> dict[str, list[str]]:
        """What a kernel that goes back does to have the state before every step: it keeps them going forward."""
        if not walk.state:
            return {"scratch": [], "state": [], "ahead": [], "at_step": []}
        count, sizes = len(walk.state), [size(walk.layer.into), size(walk.layer.out)]
        room = " * ".join(sizes)
        at = lambda step, n: f"p_states + ({step} * {count} + {n}) * ({room}) + o_tile"  # noqa: E731
        keep = lambda step: [f"tl.store({at(step, n)}, b_{name})" for n, name in enumerate(walk.state)]  # noqa: E731
        advance = self.plan.advancing(walk)
        again = carry(self._bind(advance, walk.state, discard(advance.outputs)), "b_{}", "b_{}_next", walk.state)
        step = ["i_t = start + i_n * BT", *ROW, *again, *keep("(i_n + 1)")]
        return {
            "scratch": [
                f"p_states = work + tl.program_id(0).to(tl.int64) * (tl.cdiv(SPAN, BT) * {count} * {room})",
                f"o_tile = tl.arange(0, {sizes[0]})[:, None] * {sizes[1]} + tl.arange(0, {sizes[1]})[None, :]",
            ],
            "state": self._begin(walk),
            "ahead": [
                *keep("0"),
                "for i_n in range(n_steps - 1):",
                *(f"    {line}" for line in step),
                "tl.debug_barrier()",
            ],
            "at_step": [f"b_{name} = tl.load({at('i_n', n)})" for n, name in enumerate(walk.state)],
        }

    def _uncache(self, walk: LayerWalk) -> list[str]:
        """Statements that take up the gradients of the parameters at a segment's end."""
        if not self.meaning.reads_cached:
            return []
        parts = [name for name in walk.d_state if _is_learned(name)]
        adds = [f"b_d_{name}_next += {self._part(name, 'd_cached + i_cached * MEMORY')}" for name in parts]
        return ["if is_last == 1:", *(f"    {line}" for line in [OF_SEGMENT, *adds])]

    def _tile(self, layer: Layer) -> dict[str, object]:
        """How many tiles a layer's axes come in, and the columns of those that are cut."""
        tiles = {layer.into: "i_into", layer.out: "i_out"}
        n_into, n_out = ("n_tiles" if axis in HIDDEN else "1" for axis in tiles)
        offsets = []
        for axis in [axis for axis in tiles if axis in HIDDEN]:
            offsets += [f"o_{axis} = {tiles[axis]} * BF + tl.arange(0, BF)", f"m_{axis} = o_{axis} < F"]
        return {"n_into": n_into, "n_out": n_out, "offsets": offsets, "row": ROW}

    def _part(self, name: str, pointer: str) -> str:
        """The text that loads a part of the state from a record."""
        return loaded(*self.buffers.part(name, pointer))

    def _stored(self, name: str, pointer: str, value: str) -> str:
        place, mask = self.buffers.part(name, pointer)
        return f"tl.store({place}, {value}, mask={mask})"

    # -- kernels of a segment -----------------------------------------------------------------------------------------

    def _logits(self) -> str:
        store = {"r": number("r"), **discard(["pool_next"])}
        lines = carry(self._bind(self.plan.programs["logits"], ["pool"], store), "b_{}", "b_{}_next", ["pool"])
        pool = pooled(self.meaning, "b_pool", "segment_start", "end")
        end = [f"tl.store(pools + i_cached * K + o_k, {pool}, mask=m_k)"]
        if goes_on(self.meaning):  # of segments before the first token there is nothing to do
            last = f"        tl.store(after_pool + {POOL}, b_pool, mask=m_k)"
            end = ["if end > 0:", *(f"    {line}" for line in end)]
            end += ["if after_pool is not None:", "    if end == T:", last]
        return self._render("logits", "logits", program=lines, begun=self._begun_pool(), start=self._start, end=end)

    @property
    def _start(self) -> str:
        """A segment's first token in the pass."""
        return "tl.maximum(segment_start, 0)" if goes_on(self.meaning) else "segment_start"

    def _begun_pool(self) -> list[str]:
        """Statements that take the sum of the first segment's keys from the state that a pass goes on from."""
        if not goes_on(self.meaning):
            return []
        load = f"b_pool = tl.load(begin_pool + {POOL}, mask=m_k, other=0.0)"
        return ["if begin_pool is not None:", "    if (segment_start < 0) & (end > 0):", f"        {load}"]

    def _reverse_logits(self) -> str:
        query = query_name(self.meaning)
        whole, ahead = self.plan.programs["reverse_logits"], self.plan.programs["logits"]
        outputs = {f"d_{query}": whole.outputs[f"d_{query}"], "pool_next": ahead.outputs["pool_next"]}
        queries, keys = Program("queries", outputs), select(whole, ["d_k", "d_pool"], "keys")
        rows = {f"d_{query}": added_rows(f"d_{query}_rows"), **discard(["pool_next"])}
        there = self._bind(queries, ["pool"], rows)
        back = self._bind(keys, ["d_pool_next"], {"d_k": rows_of("d_k_rows", "k"), **discard(["d_pool"])})
        return self._render(
            "reverse_logits",
            "reverse_logits",
            begun=self._begun_pool(),
            start=self._start,
            end=LEFT_POOL if goes_on(self.meaning) else [],
            ahead=carry(there, "b_{}", "b_{}_next", ["pool"]),
            program=carry(back, "b_d_{}_next", "b_d_{}", ["pool"]),
        )


POOL = "i_bh.to(tl.int64) * K + o_k"
"""Where the sum of a sequence's last keys lies."""
LEFT_POOL = [
    "if d_begin_pool is not None:",
    "    if (segment_start < 0) & (end > 0):",
    f"        tl.store(d_begin_pool + {POOL}, b_d_pool_next, mask=m_k)",
]
"""Statements that leave what is owed to the sum of keys that a pass goes on from."""
ROW = [
    "i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h",
    "m_t = i_t + o_t < end",
    "i_at = i_e.to(tl.int64) * SPAN + i_t - start",
    "at_into = (i_e.to(tl.int64) * n_into + i_into) * SPAN + i_t - start",
    "at_out = (i_e.to(tl.int64) * n_out + i_out) * SPAN + i_t - start",
    "at_both = (i_e.to(tl.int64) * n_into * n_out + i_tile) * SPAN + i_t - start",
]
"""The rows of a step in a span, and where those lie of which tiles have parts."""
ANCHOR = "p_anchor = records + (i_e.to(tl.int64) + 1) * STATE - MEMORY"
ANCHORS = {
    "errors": [ANCHOR],
    "online": [],
    "reverse_online": [],
    "inputs": [ANCHOR, "p_d_anchor = d_anchors + (i_e.to(tl.int64) * n_steps + i_n) * MEMORY"],
}
"""Where the memory at a gradient chunk's start lies, for kernels that read it."""


def _is_learned(part: str) -> bool:
    """Whether a part of the state is parameters of the memory."""
    return part.startswith(f"{MEMORY}_")
