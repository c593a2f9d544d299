"""The kernels by which rows of a matrix memory read all earlier segments under a softmax, and their reverse.

Nothing in them depends on the rule: which input routes, the logits' scale and how keys are pooled is all they take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mcgen.emit.triton.tensors import pooled
from mcgen.ir.step import query_name
from mcgen.symbolic.meaning import Meaning


@dataclass(frozen=True)
class WeightedReads:
    """These kernels as text; `render` has one by its template and name."""

    meaning: Meaning
    queries: Sequence[str]
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

    @property
    def _loads(self) -> list[str]:
        return [f"b_{n} = tl.load({n} + i_row * K + o_q, mask=m_q, other=0.0)" for n in self.queries]

    def read_cached(self) -> str:
        return self.render("matrix/read_cached", "read_cached", load_queries=self._loads, **self._routing)

    def rows(self) -> str:
        """Gradients of queries that do not route are done before those of the one that does begin."""
        keep = {
            name: f"tl.store(d_{name}_parts + i_part * K + i_row * K + o_q, s_{name}, mask=m_q)"
            for name in self.queries
        }
        routed = keep.pop(self.query)
        own = [*keep.values(), *([f"s_{self.query} = tl.zeros([BT, BK], tl.float32)"] if keep else [])]
        more = {"load_queries": self._loads, "own": own, "routed": [routed]}
        return self.render("matrix/routed_rows", "rows", **more, **self._routing)

    def segments(self) -> str:
        return self.render("matrix/routed_segments", "segments")

    def pools(self) -> str:
        pool = pooled(self.meaning, "s_pools", "b_start[:, None]", "b_end[:, None]")
        return self.render("matrix/pools", "pools", pool=pool, **self._routing)
