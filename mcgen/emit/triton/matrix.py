"""The kernels of a matrix memory: tile programs printed into the loop nests of templates/triton."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mcgen.emit.text.rendering import render
from mcgen.emit.triton import choices
from mcgen.emit.triton.tensors import (
    OF_SEGMENT,
    POOLS,
    Store,
    Tensors,
    added,
    both,
    carry,
    discard,
    kernel_text,
    pooled,
    routing,
)
from mcgen.emit.triton.weighted_reads import WeightedReads
from mcgen.ir.program import Program
from mcgen.passes.factors import FACTORS
from mcgen.passes.simplify import simplify
from mcgen.plan.matrix import MatrixPlan, Walk
from mcgen.plan.matrix_passes import MatrixPasses
from mcgen.symbolic.meaning import Meaning

CACHED = {
    "cached": "tl.load(cached + i_cached * K * V + (o_k[:, None] * V + o_v[None, :]),"
    " mask=m_k[:, None] & m_v[None, :], other=0.0)",
    "pools": POOLS,
}
DELTA_ONCE = "tl.where(i_v == 0, tl.load(delta + o_row, mask=m_t, other=0.0), 0.0)"
"""What a softmax subtracts from the gradients of all logits alike, in one of the tiles that have a part of them."""
SHARE = ["b_share = 1.0 / (i_s - first + 1)"]
"""The share of every memory in the mean that a segment's rows read."""


@dataclass(frozen=True)
class MatrixKernels:
    """The kernels of one matrix memory as text."""

    passes: MatrixPasses

    @property
    def plan(self) -> MatrixPlan:
        return self.passes.plan

    @property
    def meaning(self) -> Meaning:
        return self.plan.meaning

    @cached_property
    def tensors(self) -> Tensors:
        return Tensors(self.meaning)

    @property
    def weighted(self) -> WeightedReads:
        return WeightedReads(self.meaning, self.render)

    @property
    def state(self) -> Mapping[str, tuple[str, ...]]:
        return self.plan.state

    @cached_property
    def held(self) -> dict[str, str]:
        """What registers hold before a program begins."""
        return {name: f"b_{name}" for name in self.state} | {f"d_{n}_next": f"b_d_{n}_next" for n in self.state}

    @cached_property
    def kept(self) -> list[str]:
        """The parts of the state that are kept at the start of every block."""
        if not self.plan.starts:
            return []
        return [*self.meaning.recurrence.slots, *(["pool"] if self.meaning.routes else [])]

    def header(self) -> str:
        """What names in the kernels mean."""
        return render("triton/matrix/header.py.jinja")

    def texts(self) -> dict[str, str]:
        """The kernels by name."""
        return {name: self._text(name) for name in self.passes.kernels}

    def _text(self, name: str) -> str:
        if name in self.plan.walks:
            return self._gradients(name, self.plan.walks[name])
        return {
            "states": self._states,
            "read": self._read,
            "read_cached": self.weighted.read_cached,
            "rows": self.weighted.rows if self.meaning.routes else self._rows,
            "segments": self.weighted.segments if self.meaning.routes else self._segments,
            "weigh": self.weighted.weigh,
            "logits": self.weighted.logits,
            "pools": self.weighted.pools,
            "retreat": self._retreat,
            "route": self._route,
            "read_chosen": self._read_chosen,
            "chosen_reads": self._chosen_reads,
            "chosen_rows": self._chosen_rows,
            "chosen_segments": self._chosen_segments,
        }[name]()

    def render(self, template: str, kernel: str, **more: object) -> str:
        return kernel_text(template, self.passes.kernels[kernel], **more)

    # -- parts of the state -------------------------------------------------------------------------------------------

    def _zeros(self, name: str) -> str:
        return f"tl.zeros([{'BK, BV' if len(self.state[name]) == 2 else 'BK'}], tl.float32)"

    def _place(self, tensor: str, name: str) -> tuple[str, str]:
        """Where a block's part of the state lies, and its mask."""
        wide = len(self.state[name]) == 2
        return (f"{tensor} + i_state * {'K * V + o_kv' if wide else 'K + o_k'}"), "m_kv" if wide else "m_k"

    def _start(self, name: str) -> str:
        """A part of the state at a block's start."""
        if name not in self.kept:
            return self._zeros(name)
        place, mask = self._place(f"start_{name}", name)
        return f"tl.load({place}, mask={mask}, other=0.0)"

    def _starts(self, names: Iterable[str]) -> list[str]:
        names = list(names)
        lines = [f"b_{name} = {self._start(name)}" for name in names]
        return lines if self.plan.starts else [*lines, *self._begun(names, "i_n == 0")]

    def _begun(self, names: Iterable[str], first: str) -> list[str]:
        """Statements that take parts of the state from the one that a pass goes on from, where it does."""
        if not self.passes.goes_on:
            return []
        parts = [name for name in names if name in self.passes.parts]
        return [line for name in parts for line in self._taken(f"begin_{name}", f"b_{name}", name, first)]

    def _owed(self, names: Iterable[str], last: str) -> list[str]:
        """Statements that take what the state after the last token owes, in a pass that leaves one."""
        if not self.passes.goes_on:
            return []
        slots = [name for name in names if name in self.passes.slots]
        return [line for name in slots for line in self._taken(f"d_after_{name}", f"b_d_{name}_next", name, last, "+=")]

    def _of_state(self, tensor: str, name: str) -> tuple[str, str]:
        """Where a part of a state (B, H, 1, ·) lies, and its mask."""
        wide = len(self.state[name]) == 2
        return f"{tensor} + i_bh.to(tl.int64) * {'(K * V) + o_kv' if wide else 'K + o_k'}", "m_kv" if wide else "m_k"

    def _taken(self, tensor: str, tile: str, name: str, where: str, how: str = "=") -> list[str]:
        place, mask = self._of_state(tensor, name)
        load = f"{tile} {how} tl.load({place}, mask={mask}, other=0.0)"
        return [f"if {tensor} is not None:", f"    if {where}:", f"        {load}"]

    def _left(self, tensor: str, tile: str, name: str, where: str) -> list[str]:
        """Statements that leave a part of a state, or its gradient, in a tensor if there is one; pooled keys once."""
        place, mask = self._of_state(tensor, name)
        test = where if len(self.state[name]) == 2 else f"({where}) & (i_v == 0)"
        return [f"if {tensor} is not None:", f"    if {test}:", f"        tl.store({place}, {tile}, mask={mask})"]

    def _leave(self, tensor: str, tile: str, where: str) -> list[str]:
        if not self.passes.goes_on:
            return []
        names = self.passes.parts
        return [line for n in names for line in self._left(tensor.format(n), tile.format(n), n, where)]

    def _keep(self, tensor: str, value: str) -> list[str]:
        """Statements that keep the state, or its gradient, at a block's border; pooled keys once."""
        lines = ["i_state = i_bh.to(tl.int64) * n_blocks + i_n"] if self.kept else []
        for name in self.kept:
            place, mask = self._place(tensor.format(name), name)
            store = f"tl.store({place}, {value.format(name)}, mask={mask})"
            lines += [store] if len(self.state[name]) == 2 else ["if i_v == 0:", f"    {store}"]
        return lines

    def _end(self, name: str) -> str:
        """The gradient of a part of the state at a block's end."""
        if name in self.kept:
            place, mask = self._place(f"d_end_{name}", name)
            return f"tl.load({place}, mask={mask}, other=0.0)"
        cached = "(i_bh.to(tl.int64) * n_segments + i_s)"
        if name == "pool":
            return f"tl.load(d_pools + {cached} * K + o_k, mask=m_k, other=0.0)"
        if name == "M" and self.meaning.reads_cached and not self.plan.starts:
            return f"tl.load(d_cached + {cached} * K * V + o_kv, mask=m_kv, other=0.0)"
        return self._zeros(name)

    @property
    def _share(self) -> list[str]:
        return SHARE if self.meaning.aggregate == "mean" else []

    # -- walks --------------------------------------------------------------------------------------------------------

    def _steps(self, stepped: bool) -> dict[str, object]:
        """How many steps a block is walked in, and a step's rows: those of gradient chunks, or BT at a time."""
        row = "i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h"
        if not stepped:
            lines = ["i_t = start + i_step * BT", "m_t = i_t + o_t < end", row]
            return {"n_steps": "tl.cdiv(end - start, BT)", "step": lines}
        last = "tl.minimum(tl.minimum(i_t + STEP, start + (i_step // STEPS + 1) * CHUNK), end)"
        lines = [
            "i_t = start + i_step // STEPS * CHUNK + i_step % STEPS * STEP",
            "b_fresh = ((i_t - start) % CHUNK == 0).to(tl.float32)",
            f"m_t = i_t + o_t < {last}",
            row,
        ]
        return {"n_steps": "tl.cdiv(end - start, CHUNK) * STEPS", "step": lines}

    def _states(self) -> str:
        program = self.plan.programs["states"]
        errors = {name: self._keep_rows(name) for name in self.plan.errors}
        lines = self.tensors.bind(program, self.held, {**discard(program.outputs), **errors})
        pool = ["b_pool = tl.where(start == segment_start, 0.0, b_pool)"]
        at_block = pool if self.meaning.chained and "pool" in self.state else []
        return self.render(
            "matrix/states",
            "states",
            begin=[*(f"b_{name} = {self._zeros(name)}" for name in self.state), *self._begun(self.state, "i_c == 0")],
            at_block=[*at_block, *self._keep("start_{}", "b_{}")],
            after=self._leave("after_{}", "b_{}", "i_last == n_blocks"),
            program=carry(lines, "b_{}", "b_{}_next", self.state),
            at_end=self._cache() if self.meaning.reads_cached else [],
            **self._steps(self.plan.stepped),
        )

    def _cache(self) -> list[str]:
        """Statements that keep a segment's state at its end."""
        stores = ["tl.store(cached + i_cached * K * V + o_kv, b_M, mask=m_kv)"]
        if self.meaning.routes:
            pool = pooled(self.meaning, "b_pool", "segment_start", "segment_end")
            stores += ["if i_v == 0:", f"    tl.store(pools + i_cached * K + o_k, {pool}, mask=m_k)"]
        return ["if end == segment_end:", *(f"    {line}" for line in [OF_SEGMENT, *stores])]

    def _keep_rows(self, tensor: str) -> Store:
        """Statements that store rows[t v] in float32."""
        place = f"{tensor} + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :])"
        return lambda tile: [f"tl.store({place}, {tile}, mask={both('m_t', 'm_v')})"]

    def _made_again(self, state: Sequence[str], stepped: bool) -> list[str]:
        """The statements that make parts of the state before a step again, from a block's start."""
        if not state:
            return []
        following = self.plan.advancing(state)
        lines = self.tensors.bind(following, self.held, discard(following.outputs))
        step = [*self._steps(stepped)["step"], *carry(lines, "b_{}", "b_{}_next", state)]
        return [*self._starts(state), "for i_step in range(n_steps - 1 - i_back):", *(f"    {line}" for line in step)]

    def _retreat(self) -> str:
        whole, pulls, again = self.plan.programs["retreat"], self.plan.reverse.pulls, self.plan.retreat_state
        store = {**discard(whole.outputs), **{name: self._keep_rows(name) for name in pulls}}
        lines = self.tensors.bind(whole, self.held, store)
        return self.render(
            "matrix/retreat",
            "retreat",
            begin=[f"b_d_{name}_next = {self._zeros(name)}" for name in self.state],
            owed=self._owed(self.state, "i_last == n_blocks"),
            after=self._leave("d_begin_{}", "b_d_{}_next", "i_c == 0"),
            at_block=[*self._share, *self._uncache(), *self._keep("d_end_{}", "b_d_{}_next")],
            again=self._made_again(again, self.plan.stepped),
            program=carry(lines, "b_d_{}_next", "b_d_{}", self.state),
            **self._steps(self.plan.stepped),
        )

    def _uncache(self) -> list[str]:
        """Statements that take up the gradient of a segment's state at its end."""
        if not self.meaning.reads_cached:
            return []
        loads = ["b_d_M_next += tl.load(d_cached + i_cached * K * V + o_kv, mask=m_kv, other=0.0)"]
        if self.meaning.routes:
            loads.append("b_d_pool_next = tl.load(d_pools + i_cached * K + o_k, mask=m_k, other=0.0)")
        return ["if end == segment_end:", *(f"    {line}" for line in [OF_SEGMENT, *loads])]

    def _gradients(self, kernel: str, walk: Walk) -> str:
        store = {f"d_{name}": self.tensors.store(name, parts=walk.parts) for name in walk.wanted}
        store |= discard(f"d_{name}" for name in walk.d_state)
        tiled = {"k": "i_k * BK + tl.arange(0, BK)", "v": "i_v * BV + tl.arange(0, BV)"}
        offsets = {"k": "tl.arange(0, BK)", "v": "tl.arange(0, BV)", walk.axis: tiled[walk.axis]}
        state = ["i_state = i_bh.to(tl.int64) * n_blocks + i_n"] if self.plan.starts else []
        common = {
            "wanted": f"Gradients of {', '.join(walk.wanted)}{', a part a tile' if walk.parts else ''}.",
            "axis": walk.axis,
            "offsets": f"{offsets['k']}, {offsets['v']}",
            "at_block": [*state, *self._share],
            **self._steps(walk.stepped),
        }
        return (self._backwards if walk.reverse else self._forwards)(kernel, walk, store, common)

    def _backwards(self, kernel: str, walk: Walk, store: Mapping[str, Store], common: Mapping[str, object]) -> str:
        lines = self.tensors.bind(walk.program, self.held, store)
        return self.render(
            "matrix/gradients_backwards",
            kernel,
            ends=[
                *(f"b_d_{name}_next = {self._end(name)}" for name in walk.d_state),
                *([] if self.plan.starts else self._owed(walk.d_state, "i_n == n_blocks - 1")),
            ],
            again=self._made_again(walk.state, walk.stepped),
            program=carry(lines, "b_d_{}_next", "b_d_{}", walk.d_state),
            **common,
        )

    def _forwards(self, kernel: str, walk: Walk, store: Mapping[str, Store], common: Mapping[str, object]) -> str:
        following = self.plan.advancing(walk.state)
        whole = simplify(Program(kernel, {**walk.program.outputs, **following.outputs}), FACTORS)
        lines = self.tensors.bind(whole, self.held, {**store, **discard(following.outputs)})
        program = carry(lines, "b_{}", "b_{}_next", walk.state)
        begin = self._starts(walk.state)
        return self.render("matrix/gradients_forwards", kernel, begin=begin, program=program, **common)

    # -- reads of cached segments -------------------------------------------------------------------------------------

    def _read(self) -> str:
        kinds = {True: "softmax", False: "sum"}
        reading = kinds[self.meaning.routes] if self.meaning.reads_cached else "alone"
        return self._reads("read", reading, self._of_segment("read_segment") if reading == "sum" else [])

    def _read_chosen(self) -> str:
        return self._reads("read_chosen", "chosen", [])

    def _reads(self, kernel: str, reading: str, segment: list[str]) -> str:
        program, state = self.plan.programs["read"], [name for name in self.state if name != "anchor"]
        lines = self.tensors.bind(program, self.held, discard(program.outputs))
        begin = ["i_state = i_bh.to(tl.int64) * n_blocks + i_n"] if self.plan.starts else []
        mean = ["b_y = b_y / (i_s - first + 1)"] if self.meaning.aggregate == "mean" else []
        return self.render(
            "matrix/read",
            kernel,
            begin=[*begin, *self._starts(self.kept or self.state)],
            program=carry(lines, "b_{}", "b_{}_next", state),
            reading=f"triton/reading/{reading}.jinja",
            segment=segment,
            averaged=mean,
            **self._steps(False),
        )

    def _of_segment(
        self, part: str, store: Mapping[str, Store] = {}, load: Mapping[str, str] = {}, stream: str = ""
    ) -> list[str]:
        """The statements of a program for one cached segment."""
        program = self.plan.programs[part]
        loads = {name: text for name, text in {**CACHED, **load}.items() if name in program.inputs}
        return self.tensors.bind(program, loads, {**discard(program.outputs), **store}, stream)

    def _rows(self) -> str:
        queries = self.passes.tensors.queries
        program = self._of_segment("rows", {f"d_{name}": added(f"s_{name}") for name in queries}, stream="v")
        return self.render("matrix/rows", "rows", queries=queries, share=self._share, program=program)

    def _segments(self) -> str:
        program = self._of_segment("segment", {"d_cached": added("s_cached")})
        return self.render("matrix/segments", "segments", share=self._share, program=program)

    # -- where rows choose what they read -----------------------------------------------------------------------------

    def _route(self) -> str:
        return self.render("route", "route", **routing(self.meaning))

    def _chosen_reads(self) -> str:
        program = self._grouped(self.plan.read_only("o_cached"), {"o_cached": "o"})
        return choices.by_choice(self.render, "matrix/chosen", "chosen_reads", {"o": "v"}, program)

    def _chosen_rows(self) -> str:
        sums = {**{f"d_{name}": "k" for name in self.passes.tensors.queries}, "d_r": None}
        program = self._grouped(self.plan.programs["rows"], {name: name for name in sums}, stream="v")
        return choices.by_choice(self.render, "matrix/chosen", "chosen_rows", sums, program)

    def _grouped(self, program: Program, sums: Mapping[str, str], stream: str = "") -> list[str]:
        """A program for the rows of one group at a time, added up where a row belongs to it."""
        load = {name: self.tensors.gathered(name) for name in program.inputs if name not in CACHED}
        held = {name: text for name, text in CACHED.items() if name in program.inputs}
        return self.tensors.bind(program, {**load, **held}, choices.grouped(program, sums), stream)

    def _chosen_segments(self) -> str:
        segment = self.plan.programs["segment"]
        load = {name: self.tensors.gathered(name) for name in segment.inputs}
        load |= {"cached": "b_cached", "pools": "b_pools", "delta": DELTA_ONCE}
        program = self.tensors.bind(segment, load, {"d_cached": added("s_cached"), "d_pools": added("s_pools")})
        mean = choices.mean_pools(self.meaning)
        return self.render("matrix/chosen_segments", "chosen_segments", program=program, mean=mean)
