"""What the kernels of chosen segments have alike, whatever the memory: choices sorted by the segment that they read.

Work and traffic of the reads follow top_k: a choice (a row and one of its places) is read once, whatever the number of
segments; only routing logits, one vector product each, meet them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mcgen.emit.triton.tensors import Store, added
from mcgen.ir.program import Program
from mcgen.symbolic.meaning import Meaning

DOCS = {
    "chosen_reads": "Read-outs of chosen segments",
    "chosen_rows": "What every choice owes to the segment it reads: gradients of its row's queries and of its logit",
}


def grouped(program: Program, sums: Mapping[str, str]) -> dict[str, Store]:
    """How the outputs of a program for one group are added up: where a row belongs to it."""
    masks = {1: "m_group", 2: "m_group[:, None]"}
    return {label: added(f"s_{sums[label]}", masks[len(node.axes)]) for label, node in program.outputs.items()}


def by_choice(
    render: Callable[..., str], template: str, kernel: str, sums: Mapping[str, str | None], program: list[str]
) -> str:
    """A kernel that goes over choices: sums[choice, axis], or of one number a choice."""
    begin, end = [], []
    for name, axis in sums.items():
        shape = f"BT, B{axis.upper()}" if axis else "BT"
        begin.append(f"s_{name} = tl.zeros([{shape}], tl.float32)")
        if axis:
            end.append(f"o_out = o_entry.to(tl.int64)[:, None] * {axis.upper()} + o_{axis}[None, :]")
            end.append(f"tl.store({name}_chosen + o_out, s_{name}, mask=m_t[:, None] & m_{axis}[None, :])")
        else:
            end.append(f"tl.store({name}_chosen + o_entry, s_{name}, mask=m_t)")
    return render(template, kernel, doc=DOCS[kernel], begin=begin, program=program, end=end)


def mean_pools(meaning: Meaning) -> list[str]:
    """Statements that make the gradient of a segment's sum of keys that of their mean, where keys are averaged."""
    if meaning.spec.aggregate.pool != "mean":
        return []
    borders = "segment_start, segment_end, _, _ = _segment(segments, i_s)"
    return [borders, "s_pools = s_pools / (segment_end - segment_start)"]
