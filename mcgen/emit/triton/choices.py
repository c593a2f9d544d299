"""The kernels of sparse selective caching: routing, and reads of chosen segments with rows grouped by segment.

Work and traffic of the reads follow top_k: a choice (a row and one of its places) is read once, whatever the number of
segments; only routing logits, one vector product each, meet them all.
"""

from __future__ import annotations

from collections.abc import Callable

from mcgen.emit.triton.path import CACHED, MATRIX_AXES, Kernels, idle
from mcgen.ir.program import Program
from mcgen.passes.simplify import select

Text = tuple[list[str], str]


def choice_kernels(kernels: Kernels) -> dict[str, Text]:
    return {
        "route": _route(kernels),
        "read_chosen": kernels.read("read_chosen", chooses=True),
        "chosen_reads": _reads(kernels),
        "chosen_rows": _rows(kernels),
        "chosen_segments": _segments(kernels),
    }


def _route(kernels: Kernels) -> Text:
    logit = select(kernels.programs["read_segment"], ["r_cached"], "logit")
    program = kernels.bind(logit, {"pools": CACHED["pools"]}, kernels.discard(logit.outputs))
    arguments = [*kernels.tensors(logit.inputs), "pools", "chosen", "r_chosen"]
    return kernels.render("route", arguments, streamed=False, program=[line for line in program if not idle(line)])


def _reads(kernels: Kernels) -> Text:
    read = select(kernels.programs["read_segment"], ["o_cached"], "read")
    program = _grouped(kernels, read, {"o_cached": "o"})
    arguments = [*kernels.tensors(read.inputs), "cached", "o_chosen"]
    doc = "Read-outs of chosen segments"
    return kernels.render("chosen", arguments, kernel="chosen_reads", doc=doc, sums={"o": "v"}, program=program)


def _rows(kernels: Kernels) -> Text:
    rows = kernels.programs["rows"]
    names = {f"d_{name}": f"d_{name}" for name in [*kernels.queries, "r"]}
    sums = {**{f"d_{name}": "k" for name in kernels.queries}, "d_r": None}
    arguments = [*kernels.tensors(rows.inputs), "cached", "pools", *(f"{name}_chosen" for name in sums)]
    doc = "What every choice owes to the segment it reads: gradients of its row's queries and of its logit"
    program = _grouped(kernels, rows, names, stream="v")
    return kernels.render("chosen", arguments, kernel="chosen_rows", doc=doc, sums=sums, program=program)


def _grouped(kernels: Kernels, program: Program, sums: dict[str, str], stream: str = "") -> list[str]:
    """A program for the rows of one group at a time, added up where a row belongs to it."""
    axes = {label: node.axes for label, node in program.outputs.items()}
    mask = {label: "m_group[:, None]" if len(axes[label]) == 2 else "m_group" for label in axes}
    store = {label: _add(f"s_{name}", mask[label]) for label, name in sums.items()}
    load = {name: gathered(kernels, name) for name in program.inputs if name not in CACHED}
    held = {name: text for name, text in CACHED.items() if name in program.inputs}
    return [line for line in kernels.bind(program, {**load, **held}, store, stream) if not idle(line)]


def _add(total: str, mask: str) -> Callable[[str], list[str]]:
    return lambda tile: [f"{total} += tl.where({mask}, {tile}, 0.0)"]


def _segments(kernels: Kernels) -> Text:
    segment = kernels.programs["segment"]
    load = {name: gathered(kernels, name) for name in segment.inputs}
    load |= {"cached": "b_cached", "pools": "b_pools"}
    store = {"d_cached": lambda tile: [f"s_cached += {tile}"], "d_pools": lambda tile: [f"s_pools += {tile}"]}
    program = [line for line in kernels.bind(segment, load, store) if not idle(line)]
    arguments = [*kernels.tensors(segment.inputs), "cached", "pools", "d_cached", "d_pools"]
    return kernels.render("chosen_segments", arguments, program=program)


def gathered(kernels: Kernels, name: str) -> str:
    """The text that loads a per-token tensor's rows `o_row`, numbered over (B, T, H)."""
    axis = MATRIX_AXES.get(name.removeprefix("d_"))
    if axis is None:
        return f"tl.load({name} + o_row, mask=m_t, other=0.0).to(tl.float32)"
    narrow = ".to(IN)" if name in kernels.narrow else ""
    tile = f"{name} + o_row.to(tl.int64)[:, None] * {axis.upper()} + o_{axis}[None, :]"
    return f"tl.load({tile}, mask=m_t[:, None] & m_{axis}[None, :], other=0.0){narrow}"
