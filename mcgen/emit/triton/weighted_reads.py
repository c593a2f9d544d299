"""The kernels by which rows of a matrix memory read all earlier segments under a softmax, and their reverse.

Nothing in them depends on the rule: which input routes, the logits' scale and how keys are pooled is all they take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mcgen.emit.triton.tensors import pooled
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

    @property
    def scale(self) -> str:
        """What products of queries and pooled keys are multiplied by, as text behind them."""
        by = float(self.meaning.spec.aggregate.scale)
        return "" if by == 1 else f" * {by!r}"

    @property
    def _routing(self) -> dict[str, str]:
        return {"query": self.query, "scale": self.scale}

    def read_cached(self) -> str:
        loads = [f"b_{n} = tl.load({n} + i_row * K + o_q, mask=m_q, other=0.0)" for n in dict.fromkeys(["q", self.query])]
        return self.render("matrix/read_cached", "read_cached", loads=loads, **self._routing)

    def weigh(self) -> str:
        return self.render("matrix/weigh", "weigh", **self._routing)

    def rows(self) -> str:
        return self.render("matrix/routed_rows", "rows")

    def segments(self) -> str:
        return self.render("matrix/routed_segments", "segments")

    def logits(self) -> str:
        """What the query that routes is owed as one that reads comes on top."""
        own = OWN if self.query == "q" else []
        more = ", and what rows left" if own else ""
        return self.render("matrix/logits", "logits", own=own, more=more, **self._routing)

    def pools(self) -> str:
        pool = pooled(self.meaning, "s_pools", "b_start[:, None]", "b_end[:, None]")
        return self.render("matrix/pools", "pools", pool=pool, **self._routing)
