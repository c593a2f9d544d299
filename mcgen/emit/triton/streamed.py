"""The kernels of memories whose state is too large for a program's registers: MLPs.

The state lies in buffers. A chunk step reads one and writes another, tile by tile along the hidden axes, in the phases
that its program falls into (`mcgen.passes.phases`). Everything else is as for a matrix: the same programs, derivatives
and bindings, other loop nests.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from mcgen.emit.text.rendering import render
from mcgen.emit.triton.buffers import Buffers, loaded, row, rows_of
from mcgen.emit.triton.cached_reads import CachedReads, pooled
from mcgen.emit.triton.printer import size
from mcgen.emit.triton.tensors import OF_SEGMENT, Store, Tensors, discard, kernel_text, number
from mcgen.ir.layers import sizes
from mcgen.passes.phases import HIDDEN as HIDDEN_AXES
from mcgen.plan.pass_tensors import goes_on
from mcgen.plan.streamed import StreamedPlan
from mcgen.plan.streamed_passes import StreamedPasses
from mcgen.symbolic.meaning import Meaning
from mcgen.symbolic.recurrence import MEMORY

CONSTANTS = "K, V, F, BT, BK, BV, BF, STATE, MEMORY, ROWS, IN, PREC"
BARRIER = "tl.debug_barrier()"
TO_AND_FRO = [
    "p_work = work + tl.program_id(0).to(tl.int64) * (2 * STATE + ROWS)",
    "p_rows = p_work + 2 * STATE",
]
"""The two buffers between which a walk's state goes, and that of rows between loops."""
INITIAL = ["_copy(p_work, theta + i_h * MEMORY, MEMORY)", "_fill(p_work + MEMORY, STATE - MEMORY)", BARRIER]
"""Statements that begin a chain in a buffer."""
BEGUN = [
    "if begin is not None:",
    "    if i_c == 0:",
    "        _copy(p_work, begin + i_bh.to(tl.int64) * STATE, STATE)",
    f"        {BARRIER}",
]
"""Statements that begin the first chain with the state that a pass goes on from, where it does."""
OWED = [
    "if d_after is not None:",
    "    _, i_end, _, _, _, _, _ = _chunk_step(steps, i_last - 1)",
    "    if i_end == T:",
    f"        {BARRIER}",
    "        _copy(p_d, d_after + i_bh.to(tl.int64) * STATE, STATE)",
]
"""Statements that begin the last chain's way back with what is owed to the state after the last token."""
LEFT = [
    "if d_begin is not None:",
    "    if i_c == 0:",
    "        _copy(d_begin + i_bh.to(tl.int64) * STATE, p_d + (i_last - i_first) % 2 * STATE, STATE)",
]
"""Statements that leave what is owed to the state that a pass goes on from."""
OF_EARLIER = "i_cached = i_bh.to(tl.int64) * n_segments + i_c"
ONLINE_SUM = [
    "b_higher = tl.maximum(b_top, b_r_cached)",
    "b_sum = b_sum * tl.exp(b_top - b_higher) + tl.exp(b_r_cached - b_higher)",
    "b_top = b_higher",
]


@dataclass(frozen=True)
class StreamedKernels:
    """The kernels of one deep memory as text."""

    passes: StreamedPasses

    @property
    def plan(self) -> StreamedPlan:
        return self.passes.plan

    @property
    def meaning(self) -> Meaning:
        return self.plan.meaning

    @cached_property
    def tensors(self) -> Tensors:
        return Tensors(self.meaning)

    @cached_property
    def buffers(self) -> Buffers:
        return Buffers(self.plan, self.tensors)

    def header(self) -> str:
        """What names in the kernels mean, and how the state lies in a buffer."""
        return render("triton/streamed/header.py.jinja", layout=self.buffers.layout())

    def texts(self) -> dict[str, str]:
        """The kernels by name."""
        reads = CachedReads(self.passes, self.buffers)
        soup = {"read_soup": self._read_soup, "through_layers": self._through_layers}
        makers = {**reads.makers(), **soup, "walk": self._walk, "reverse": self._reverse}
        return {name: makers[name]() for name in self.passes.kernels}

    def _render(self, template: str, kernel: str, **more: object) -> str:
        return kernel_text(f"streamed/{template}", self.passes.kernels[kernel], **more)

    # -- walks forward ------------------------------------------------------------------------------------------------

    def _walk(self) -> str:
        read, soup = self.meaning.reads_cached, self.plan.soup
        outputs = {} if soup else {"o": rows_of("o" if read else "y"), "r": number("r")}
        program = self.plan.programs["walk"]
        store = {name: outputs.get(name) or self._following(name) for name in program.outputs}
        lines = self.buffers.phased(program, store, {name: f"s_{name}" for name in self._resident})
        how = self._in_registers(lines) if self._resident else self._in_buffers(lines)
        return self._render("walk", "walk", **how)

    @property
    def _resident(self) -> list[str]:
        """The parts of the state that the walk holds in registers, as `s_`."""
        return list(self.plan.state) if self.plan.resident else []

    def _following(self, name: str) -> Store:
        """Statements of the walk that keep a part of the state after a step."""
        part = name.removesuffix("_next")
        return (lambda tile: [f"n_{part} = {tile}"]) if self._resident else self.buffers.keep(name)

    def _in_buffers(self, program: list[str]) -> dict[str, object]:
        """A walk that reads a state from one buffer and writes the next one to another."""
        keep = [OF_SEGMENT, "_copy(cached + i_cached * MEMORY, p_next, MEMORY)"]
        keep += [*self._pools(), BARRIER] if self.meaning.routes else [BARRIER]
        there, back = "p_work + (i_n - i_first) % 2 * STATE", "p_work + (i_n - i_first + 1) % 2 * STATE"
        return {
            "begin": TO_AND_FRO,
            "at_chain": self._initial_state,
            "at_step": [f"p_state, p_next = {there}, {back}"],
            "program": program,
            "at_end": [BARRIER, *self._at_last(["_copy({row}, p_next, STATE)"]), *self._at_segment(keep)],
        }

    @property
    def _initial_state(self) -> list[str]:
        """Statements that begin a chain in a buffer."""
        return [*INITIAL, *BEGUN] if self._goes_on else INITIAL

    @property
    def _goes_on(self) -> bool:
        return goes_on(self.meaning)

    def _at_last(self, stores: list[str]) -> list[str]:
        """Statements that leave the state after the last token, `row`, in a pass that leaves one."""
        if not self._goes_on:
            return []
        lines = [store.format(row="after + i_bh.to(tl.int64) * STATE") for store in stores]
        return ["if after is not None:", "    if end == T:", *(f"        {line}" for line in lines)]

    def _pools(self) -> list[str]:
        """Statements that keep a segment's pooled keys, and begin their sum anew."""
        place = f"p_next + {self.buffers.places['pool']}"
        load = f"b_pool_end = tl.load({place} + o_k, mask=m_k, other=0.0)"
        pool = pooled(self.meaning, "b_pool_end", "segment_start", "segment_end")
        return [load, f"tl.store(pools + i_cached * K + o_k, {pool}, mask=m_k)", BARRIER, f"_fill({place}, K)"]

    def _in_registers(self, program: list[str]) -> dict[str, object]:
        """A walk that holds the state in registers, `s_`, and what follows it, `n_`."""
        axes = [axis for axis in sizes(self.meaning.spec) if axis in HIDDEN_AXES]
        offsets = [line for a in axes for line in (f"o_{a} = tl.arange(0, BF)", f"m_{a} = o_{a} < F")]
        keep = [OF_SEGMENT, *(self._stored(name) for name in self._resident if _is_learned(name))]
        if self.meaning.routes:
            pool = pooled(self.meaning, "s_pool", "segment_start", "segment_end")
            keep += [f"tl.store(pools + i_cached * K + o_k, {pool}, mask=m_k)", "s_pool = tl.zeros([BK], tl.float32)"]
        return {
            "begin": [*offsets, "p_rows = work + tl.program_id(0).to(tl.int64) * ROWS"],
            "at_chain": [*(f"s_{name} = {self._initial(name)}" for name in self._resident), *self._begun()],
            "at_step": [f"n_{name} = s_{name}" for name in self._resident],
            "program": program,
            "at_end": [
                BARRIER,
                *(f"s_{name} = n_{name}" for name in self._resident),
                *self._at_last([self._stored(name, "{row}") for name in self._resident]),
                *self._at_segment(keep),
            ],
        }

    def _begun(self) -> list[str]:
        """Statements that take the state from the one that a pass goes on from, where it does."""
        if not self._goes_on:
            return []
        parts = {name: self.buffers.part(name, "begin + i_bh.to(tl.int64) * STATE") for name in self._resident}
        lines = (f"        s_{name} = {loaded(*part)}" for name, part in parts.items())
        return ["if begin is not None:", "    if i_c == 0:", *lines]

    def _at_segment(self, keep: list[str]) -> list[str]:
        if not self.meaning.reads_cached:
            return []
        return ["if end == segment_end:", *(f"    {line}" for line in keep)]

    def _stored(self, name: str, row: str = "cached + i_cached * MEMORY") -> str:
        place, mask = self.buffers.part(name, row)
        return f"tl.store({place}, s_{name}, mask={mask})"

    def _initial(self, name: str) -> str:
        """A part of the state at a chain's start: the initial weights, or zeros."""
        place, mask = self.buffers.part(name)
        if _is_learned(name):
            return loaded(f"theta + i_h * MEMORY{place}", mask)
        return f"tl.zeros([{', '.join(map(size, self.plan.state[name]))}], tl.float32)"

    # -- the soup, read as the chains are walked again ----------------------------------------------------------------

    def _read_soup(self) -> str:
        logit, routed = self.plan.programs["logit"], self.plan.only_read("r_cached")
        first = self.buffers.phased(logit, discard(["r"]))
        each = self.buffers.phased(routed, discard(["r_cached"]))
        softmax = [
            *first,
            "b_top, b_sum = b_r, tl.full([BT], 1.0, tl.float32)",
            "for i_c in range(first, i_s):",
            *(f"    {line}" for line in [OF_EARLIER, *each, *ONLINE_SUM]),
            "b_lse = b_top + tl.log(b_sum)",
            "b_online = tl.exp(b_r - b_lse)",
            *number("lse")("b_lse"),
            *number("online")("b_online"),
        ]
        held = {"lse": "b_lse", "online": "b_online"}
        lines = self.buffers.phased(self.plan.programs["read_soup"], {"y": rows_of("y")}, held)
        doc = "The read-outs y by the average of all parameters; rows' log-sum-exp, and the online memory's weight."
        return self._soup("read_soup", doc, [*softmax, *lines])

    def _through_layers(self) -> str:
        store = {"delta": number("delta")}
        for name, axis in self.plan.between.items():
            place, mask = row(name, axis)
            store[name] = lambda tile, place=place, mask=mask: [f"tl.store({place}, {tile}, mask={mask})"]
        lines = self.buffers.phased(self.plan.programs["through_layers"], store)
        doc = "From d_y to the gradients of every layer's averaged results, and the layers' inputs."
        return self._soup("through_layers", doc, lines)

    def _soup(self, kernel: str, doc: str, program: list[str]) -> str:
        """A kernel that walks the chains again, for what is read of all segments at once."""
        return self._render(
            "soup",
            kernel,
            doc=doc,
            begin=TO_AND_FRO,
            initial=self._initial_state,
            program=program,
            advance=[self._advance_call, *self._fresh_pool(self.meaning.chained)],
        )

    @property
    def _advanced(self) -> list[str]:
        """The tensors that a step of the state alone reads, and which head it is of where gates follow from that."""
        inputs = self.plan.programs["advance"].inputs
        return [*self.passes.tensors.behind(inputs), *(["i_h"] if "head" in inputs else [])]

    @property
    def _advance_call(self) -> str:
        numbers = "i_row, i_t, m_t, b_fresh, segment_start, H, one, n_tiles"
        return f"_advance({', '.join(self._advanced)}, p_state, p_next, p_rows, {numbers}, {CONSTANTS})"

    def _fresh_pool(self, carried: bool) -> list[str]:
        """Statements that begin the sum of keys anew, where a state is carried from segment to segment."""
        if not carried:
            return []
        return ["if end == segment_end:", f"    _fill(p_next + {self.buffers.places['pool']}, K)", f"    {BARRIER}"]

    # -- the walk back ------------------------------------------------------------------------------------------------

    def _reverse(self) -> str:
        program, advance = self.plan.programs["reverse"], self.plan.programs["advance"]
        own = {f"d_{name}" for name in self.plan.state}
        keep, store = self.buffers.keep, self.tensors.store
        stores = {name: keep(name) if name in own else store(name.removeprefix("d_")) for name in program.outputs}
        carried = self.meaning.routes and self.meaning.chained
        return self._render(
            "reverse",
            "reverse",
            advance=self.buffers.phased(advance, {name: keep(name) for name in advance.outputs}),
            advance_arguments=", ".join(self._advanced),
            advance_call=[self._advance_call, *self._fresh_pool(carried)],
            initial=self._initial_state,
            owed=OWED if self._goes_on else [],
            begun=LEFT if self._goes_on else [],
            at_step=self._uncache(),
            program=self.buffers.phased(program, stores),
        )

    def _uncache(self) -> list[str]:
        """Statements that take up the gradient of a segment's state at its end."""
        adds = [OF_SEGMENT, "_add(p_d_next, d_cached + i_cached * MEMORY, MEMORY)"]
        if self.meaning.routes:
            adds.append(f"_copy(p_d_next + {self.buffers.places['pool']}, d_pools + i_cached * K, K)")
        return self._at_segment([*adds, BARRIER])


def _is_learned(part: str) -> bool:
    """Whether a part of the state begins as weights of the initial memory."""
    return part.startswith(f"{MEMORY}_")
