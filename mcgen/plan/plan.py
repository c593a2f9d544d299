"""The plan of a spec: which schedule its structure gets, why, and what runs then."""

from __future__ import annotations

from mcgen.plan.cached_reads import SEGMENTS
from mcgen.plan.layered import LayeredPlan, is_layered
from mcgen.plan.layered_passes import LayeredPasses
from mcgen.plan.matrix import MatrixPlan
from mcgen.plan.matrix_passes import MatrixPasses
from mcgen.plan.pass_tensors import choices, chooses
from mcgen.plan.schedule import Schedule
from mcgen.plan.state import StateLayout
from mcgen.plan.streamed import StreamedPlan
from mcgen.plan.streamed_passes import StreamedPasses
from mcgen.symbolic.meaning import Meaning

Passes = MatrixPasses | StreamedPasses


def planned(meaning: Meaning) -> Passes:
    """The plan of a spec's kernels, with its passes."""
    if meaning.linear:
        return MatrixPasses(MatrixPlan(meaning))
    return LayeredPasses(LayeredPlan(meaning)) if is_layered(meaning) else StreamedPasses(StreamedPlan(meaning))


def scheduled(passes: Passes) -> Schedule:
    """What runs."""
    meaning, spec = passes.plan.meaning, passes.plan.meaning.spec
    constants = {"K": spec.head.key_dim, "V": spec.head.value_dim}
    constants |= {"CHUNK": meaning.gradient_chunk} if meaning.gradient_chunk else {}
    if chooses(meaning):
        places = 1 << (spec.aggregate.top_k - 1).bit_length()
        constants |= {"TOP_K": spec.aggregate.top_k, "PLACES": places, "BN": SEGMENTS}
    return Schedule(
        forward=passes.forward,
        backward=passes.backward,
        kernels=passes.kernels,
        saved=passes.saved,
        choices=choices(meaning),
        constants={**constants, **passes.constants},
        block=passes.block,
        chained=meaning.chained,
        least_rows=passes.plan.least_rows,
        flies=passes.flies,
        segment=spec.segment.size,
        defaults=passes.plan.defaults,
        state=StateLayout(meaning) if spec.segment.size else None,
        places=getattr(passes.plan, "places", {}),
        mean_pool=spec.aggregate.pool == "mean",
    )
