"""The Triton path of a generated module: helpers, kernels, and the host code that launches them."""

from __future__ import annotations

from mcgen.emit.text.called import called, definitions
from mcgen.emit.text.rendering import render
from mcgen.emit.text.unused import without_unused
from mcgen.emit.triton.host import host_source
from mcgen.emit.triton.launching import launching
from mcgen.emit.triton.layered import LayeredKernels
from mcgen.emit.triton.matrix import MatrixKernels
from mcgen.emit.triton.streamed import StreamedKernels
from mcgen.plan.expansion import Machine
from mcgen.plan.layered_passes import LayeredPasses
from mcgen.plan.matrix_passes import MatrixPasses
from mcgen.plan.plan import Passes, planned, scheduled
from mcgen.plan.streamed_passes import StreamedPasses
from mcgen.plan.targets import Target
from mcgen.symbolic.meaning import Meaning

KERNELS = {MatrixPasses: MatrixKernels, StreamedPasses: StreamedKernels, LayeredPasses: LayeredKernels}
"""What prints the kernels of a plan."""


def triton_source(meaning: Meaning, tuned: bool = False) -> str:
    """The text that defines `_run_forward_triton`, `_run_backward_triton` and `_saved_triton`.

    Where it is `tuned`, the launch configurations in it are from the user's tables first.
    """
    passes = planned(meaning)
    schedule, kernels = scheduled(passes), kernels_source(passes)
    known = launching(meaning.spec, kernels, schedule.kernels, tuned)
    return f"{kernels}\n\n{host_source(schedule, known)}"


def machine(passes: Passes, target: Target, element: str) -> Machine:
    """What host code asks of a GPU, with the configurations that shipped tables have for it, or else defaults."""
    schedule = scheduled(passes)
    known = launching(passes.plan.meaning.spec, kernels_source(passes), schedule.kernels)
    default = schedule.defaults["sm" if target.backend == "cuda" else "gf"][element].numbers
    found = known.configurations.get(target.architecture, {}).get(element, {})
    return Machine(2 * target.sm_count, max(1, target.sm_count // 2), found, default)


def kernels_source(passes: Passes) -> str:
    """The kernels of a plan, and the functions that they call."""
    kernels = KERNELS[type(passes)](passes)
    texts = list(kernels.texts().values())
    functions = definitions(render("triton/functions.py.jinja"))
    parts = [kernels.header(), *called(functions, "\n".join(texts)), *texts]
    return without_unused("\n\n\n".join(part.strip() for part in parts) + "\n")
