"""The Triton path of deep memories, put together: kernels, and the host code that launches them."""

from __future__ import annotations

from mcgen.emit.text.rendering import render
from mcgen.emit.text.unused import without_unused
from mcgen.emit.triton.host import host_source
from mcgen.emit.triton.launching import launching
from mcgen.emit.triton.layered import LayeredKernels
from mcgen.emit.triton.path import prelude
from mcgen.emit.triton.streamed import StreamedKernels
from mcgen.plan.configurations import ELEMENTS, FAMILIES, tile
from mcgen.plan.layered import is_layered
from mcgen.plan.plan import planned, scheduled
from mcgen.plan.streamed import StreamedPlan
from mcgen.symbolic.meaning import Meaning

BF = 32
"""Hidden units of a tile, where no configuration says otherwise."""
STEPPING = ("walk", "read_soup", "through_layers", "reverse")
"""The kernels that go step by step: each takes the rows of a gradient chunk at once, unless it is several steps."""


def deep_source(meaning: Meaning, tuned: bool = False) -> str:
    """The text that defines `_run_forward_triton`, `_run_backward_triton` and `_saved_triton`.

    Where it is `tuned`, the launch configurations in it are from the user's tables first.
    """
    kernels = LayeredKernels(meaning) if is_layered(meaning) else StreamedKernels(meaning)
    parts = kernels.kernels()
    text = "\n\n\n".join(source.strip("\n") for _, source in parts.values())
    shapes = {name: ", ".join(map(str, kernels.streamed.shape(name))) for name in kernels.state}
    layout = [f"{name} ({shapes[name]}) at {at}" for name, at in kernels.streamed.places.items()]
    moves = [name for name in ("_copy", "_fill", "_add") if f"{name}(" in text]
    own = render("triton/streamed/prelude.py.jinja", layout=layout, layered=is_layered(meaning), moves=moves)
    kernels_text = without_unused(f"{prelude(text, meaning)}\n\n\n{own.strip()}\n\n\n{text}\n")
    schedule = scheduled(planned(meaning))
    known = launching(meaning.spec, kernels_text, schedule.kernels, tuned)
    return f"{kernels_text}\n\n{host_source(schedule, known, _defaults(kernels.streamed))}"


def _defaults(plan: StreamedPlan) -> dict[str, dict[str, tuple[int, int, int]]]:
    """BT, BF and num_warps by family of architectures and type: small tiles, few registers."""
    rows, columns, warps = plan.least_rows, min(BF, tile(plan.hidden)), {"sm": 8, "gf": 4, "cpu": 4}
    return {family: dict.fromkeys(ELEMENTS, (rows, columns, warps[family])) for family in FAMILIES}
