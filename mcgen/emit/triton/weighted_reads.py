"""The kernels by which rows of a matrix memory read all earlier segments under a softmax, and their reverse.

Nothing in them depends on the rule: which input routes, the logits' scale and how keys are pooled is all they take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mcgen.emit.triton.tensors import pooled, routing
from mcgen.ir.step import query_name
from mcgen.symbolic.meaning import Meaning

OWN = [
    "p_own = d_q_parts + i_row * K",
    "for _ in range(n_parts):",
    "    s_q += tl.load(p_own + o_q, mask=m_q, other=0.0)",
    "    p_own += T.to(tl.int64) * BH * K",
]
"""Statements that add up the parts of the gradient of q."""


@dataclass(frozen=True)
class WeightedReads:
    """These kernels as text; `render` has one by its template and name."""

    meaning: Meaning
    render: Callable[..., str]

    @property
    def query(self) -> str:
        return query_name(self.meaning)

    def read_cached(self) -> str:
        queries = dict.fromkeys(["q", self.query])
        loads = [f"b_{n} = tl.load({n} + i_row * K + o_q, mask=m_q, other=0.0).to(IN)" for n in queries]
        return self.render("matrix/read_cached", "read_cached", loads=loads, **routing(self.meaning))

    def weigh(self) -> str:
        return self.render("matrix/weigh", "weigh", **routing(self.meaning))

    def rows(self) -> str:
        return self.render("matrix/routed_rows", "rows")

    def segments(self) -> str:
        return self.render("matrix/routed_segments", "segments")

    def logits(self) -> str:
        """What the query that routes is owed as one that reads comes on top."""
        own = OWN if self.query == "q" else []
        more = ", and what rows left" if own else ""
        return self.render("matrix/logits", "logits", own=own, more=more, **routing(self.meaning))

    def pools(self) -> str:
        pool = pooled(self.meaning, "s_pools", "b_start[:, None]", "b_end[:, None]")
        return self.render("matrix/pools", "pools", pool=pool, **routing(self.meaning))
