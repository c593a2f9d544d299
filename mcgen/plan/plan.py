"""The plan of a spec: which schedule its structure gets, why, and what runs then."""

from __future__ import annotations

from mcgen.plan.configurations import defaults, tile
from mcgen.plan.layered import LayeredPlan, is_layered
from mcgen.plan.layered_passes import LayeredPasses
from mcgen.plan.matrix import BLOCK, LEAST_STEP, MatrixPlan
from mcgen.plan.matrix_passes import MatrixPasses
from mcgen.plan.pass_tensors import choices
from mcgen.plan.schedule import Schedule
from mcgen.plan.streamed import StreamedPlan
from mcgen.plan.streamed_passes import StreamedPasses
from mcgen.symbolic.meaning import Meaning

STREAMED_BLOCK = 64
"""Tokens of a block of rows that read the segments of deep memories."""

Passes = MatrixPasses | StreamedPasses


def planned(meaning: Meaning) -> Passes:
    """The plan of a spec's kernels, with its passes."""
    if meaning.linear:
        return MatrixPasses(MatrixPlan(meaning))
    return LayeredPasses(LayeredPlan(meaning)) if is_layered(meaning) else StreamedPasses(StreamedPlan(meaning))


def scheduled(passes: Passes) -> Schedule:
    """What runs."""
    meaning = passes.plan.meaning
    spec, chunk = meaning.spec, meaning.gradient_chunk
    constants = {"K": spec.head.key_dim, "V": spec.head.value_dim}
    constants |= {"CHUNK": chunk} if chunk else {}
    if meaning.aggregate == "ssc":
        top = spec.aggregate.top_k
        constants |= {"TOP_K": top, "PLACES": 1 << (top - 1).bit_length()}
    if meaning.linear:
        found = defaults(spec.head.key_dim, spec.head.value_dim)
        block, least = -(-BLOCK // (chunk or 1)) * (chunk or 1), tile(min(chunk or 1, LEAST_STEP))
    else:
        plan = passes.plan
        found = plan.defaults
        block, least = STREAMED_BLOCK, plan.least_rows
        constants |= {"F": plan.hidden, "STATE": plan.total, "MEMORY": plan.memory, "ROWS": plan.between_loops}
        constants |= {"SPAN": plan.span} if isinstance(plan, LayeredPlan) else {}
    return Schedule(
        passes.forward,
        passes.backward,
        passes.kernels,
        passes.saved,
        choices(meaning),
        constants,
        block,
        meaning.chained,
        least,
        not meaning.linear,
        spec.segment.size,
        found,
    )
