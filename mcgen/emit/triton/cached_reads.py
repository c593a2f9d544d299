"""The kernels by which rows of a deep memory read cached segments, and their derivatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mcgen.emit.triton import choices
from mcgen.emit.triton.buffers import Buffers
from mcgen.emit.triton.tensors import added, discard, kernel_text, pooled, routing
from mcgen.ir.program import Program
from mcgen.plan.streamed import StreamedPlan
from mcgen.plan.streamed_passes import StreamedPasses
from mcgen.symbolic.meaning import Meaning


@dataclass(frozen=True)
class CachedReads:
    """These kernels as text."""

    passes: StreamedPasses
    buffers: Buffers

    @property
    def plan(self) -> StreamedPlan:
        return self.passes.plan

    @property
    def meaning(self) -> Meaning:
        return self.plan.meaning

    def makers(self) -> dict[str, Callable[[], str]]:
        """What makes each kernel, by its name."""
        return {
            "read": self._read,
            "rows": self._rows,
            "segments": self._segments,
            "route": self._route,
            "read_chosen": lambda: self._render("streamed/read_chosen", "read_chosen"),
            "chosen_reads": self._chosen_reads,
            "chosen_rows": self._chosen_rows,
            "chosen_segments": self._chosen_segments,
        }

    def _render(self, template: str, kernel: str, **more: object) -> str:
        return kernel_text(template, self.passes.kernels[kernel], **more)

    @property
    def _barrier(self) -> list[str]:
        """Statements between uses of a program's buffer, where it has one."""
        return ["tl.debug_barrier()"] if self.plan.between_loops else []

    def _read(self) -> str:
        program = self.plan.programs["read_segment"]
        lines = [*self.buffers.phased(program, discard(program.outputs))]
        template = "streamed/routed_read" if self.meaning.routes else "streamed/read"
        mean = ["b_y = b_y / (i_s - first + 1)"] if self.meaning.aggregate == "mean" else []
        return self._render(template, "read", program=lines, barrier=self._barrier, averaged=mean)

    def _rows(self) -> str:
        routes, soup, queries = self.meaning.routes, self.plan.soup, self.passes.tensors.queries
        store = {f"d_{name}": added(f"s_{name}") for name in [*queries, "r"]}
        held = {"delta": "b_delta"} if routes and not soup else {}
        program = self.buffers.phased(self.plan.programs["rows"], store, held)
        begin = [*(DELTA if held else []), *(["s_r = tl.zeros([BT], tl.float32)"] if routes else [])]
        end = ["tl.store(d_r + i_row + o_t * H, -s_r, mask=m_t)"] if routes else []
        return self._render(
            "streamed/rows", "rows", begin=begin, queries=queries, program=[*program, *self._barrier], end=end
        )

    def _segments(self) -> str:
        begin, end = [], []
        if self.meaning.routes:
            pool = pooled(self.meaning, "s_pools", "start", "end")
            begin = ["s_pools = tl.zeros([BK], tl.float32)"]
            end = [f"tl.store(d_pools + i_cached * K + o_k, {pool}, mask=m_k)"]
        return self._render("streamed/segments", "segments", begin=begin, program=self._added_up({}), end=end)

    def _added_up(self, held: Mapping[str, str]) -> list[str]:
        """The statements that add a tile of rows to the gradients of what is cached."""
        program = self.plan.programs["segment"]
        store = {name: self.buffers.keep(name, add=True) for name in program.outputs if name != "d_pools"}
        return self.buffers.phased(program, store | {"d_pools": added("s_pools")}, held)

    # -- where rows choose what they read -----------------------------------------------------------------------------

    def _route(self) -> str:
        return self._render("route", "route", **routing(self.meaning))

    def _chosen_reads(self) -> str:
        return self._by_choice("chosen_reads", self.plan.only_read("o_cached"), {"o_cached": "o"}, {"o": "v"})

    def _chosen_rows(self) -> str:
        sums = {**{f"d_{name}": "k" for name in self.passes.tensors.queries}, "d_r": None}
        return self._by_choice("chosen_rows", self.plan.programs["rows"], {name: name for name in sums}, sums)

    def _by_choice(
        self, kernel: str, program: Program, outputs: Mapping[str, str], sums: Mapping[str, str | None]
    ) -> str:
        lines = self.buffers.phased(program, choices.grouped(program, outputs), self._gathered(program))
        return choices.by_choice(self._render, "streamed/chosen", kernel, sums, [*lines, *self._barrier])

    def _gathered(self, program: Program) -> dict[str, str]:
        """The loads of per-token inputs by rows that choices name."""
        given = [name for name in program.inputs if name != "pools" and not self.buffers.holds(name)]
        return {name: self.buffers.tensors.gathered(name) for name in given}

    def _chosen_segments(self) -> str:
        program = self._added_up(self._gathered(self.plan.programs["segment"]))
        mean = choices.mean_pools(self.meaning)
        return self._render("streamed/chosen_segments", "chosen_segments", program=program, mean=mean)


DELTA = [
    "o_y, m_y = o_t[:, None] * (H * V) + o_v[None, :], m_t[:, None] & m_v[None, :]",
    "b_y = tl.load(y + i_row * V + o_y, mask=m_y, other=0.0).to(tl.float32)",
    "b_delta = tl.sum(b_y * tl.load(d_y + i_row * V + o_y, mask=m_y, other=0.0).to(tl.float32), 1)",
    "tl.store(delta + i_row + o_t * H, b_delta, mask=m_t)",
]
"""Statements that leave the inner product of y with its gradient, from which the derivative of a softmax starts."""
