"""Why the kernels of a matrix memory are what they are, in words."""

from __future__ import annotations

import sympy

from mcgen.plan.cached_reads import SEGMENTS
from mcgen.plan.matrix import BLOCK, MatrixPlan
from mcgen.plan.weighted_reads import BAND
from mcgen.symbolic.cost import Cost
from mcgen.symbolic.text import text

READS = "reads of cached segments"
Choice = tuple[str, str, str]


def choices(plan: MatrixPlan) -> list[Choice]:
    """What is chosen, how, and the property it follows from with what it costs."""
    return [_writes(plan), _segments(plan), _blocks(plan), _reads(plan), *_walk_choices(plan)]


def _flops(plan: MatrixPlan, *labels: str) -> str:
    """What parts of `mcgen explain --stage cost` take forward, as text."""
    parts = {part.label: part.forward for part in Cost(plan.meaning).flops}
    return f"{text(sympy.factor(sum(parts[label] for label in labels)))} FLOPs"


def _writes(plan: MatrixPlan) -> Choice:
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


def _segments(plan: MatrixPlan) -> Choice:
    if plan.meaning.chained:
        return "segments", "one chain, in order", "init checkpoint: T / BT steps in a row, B H (V / BV) programs"
    return "segments", "side by side", "init independent: B H N (V / BV) programs, a segment's chunks in a row"


def _blocks(plan: MatrixPlan) -> Choice:
    if not plan.starts:
        return "blocks", "a segment is a block", f"segments are at most {BLOCK} tokens: nothing is kept inside them"
    return (
        "blocks",
        f"cut at {BLOCK} tokens",
        "what reads and reverses runs block by block; the state at each start is kept",
    )


def _reads(plan: MatrixPlan) -> Choice:
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
        f"products of weighted queries and states, under an online softmax over {SEGMENTS} segments at a time;"
        f" back, weights and gradients of logits in memory, {BAND} of each for a token at most",
        f"a read-out is linear in the state: {_flops(plan, READS)}",
    )


def _walk_choices(plan: MatrixPlan) -> list[Choice]:
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
