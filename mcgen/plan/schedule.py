"""Where the statements of a tile program go when one axis does not fit a program and is streamed in tiles.

A value without the streamed axis is computed between loops, one with it inside a loop over its tiles, and a sum over it
is accumulated by a loop. A loop therefore ends wherever a sum over the axis is complete and needed: the program falls
into phases, a stretch of statements and a loop each. Values with the axis that later loops need again are computed
again there (they are loads and scalar functions of loads, mostly), so nothing but sums lives across loops.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mcgen.ir.program import Contract, Node, Program, Reduce, topological


@dataclass(frozen=True)
class Phase:
    """Statements before a loop, then the loop's: `inside` its values, `sums` what it accumulates, `stores` its outputs."""

    before: tuple[Node, ...]
    inside: tuple[Node, ...]
    sums: tuple[Node, ...]
    stores: tuple[str, ...]


@dataclass(frozen=True)
class Schedule:
    """Phases in order; `after` are the statements behind the last loop."""

    phases: tuple[Phase, ...]
    after: tuple[Node, ...]


def sums_over(node: Node, axis: str | None) -> bool:
    """Whether a node sums over the streamed axis, so that its value is complete only behind a loop."""
    return isinstance(node, (Contract, Reduce)) and axis in node.over


def schedule(program: Program, streamed: str | None) -> Schedule:
    """The phases of a program with one axis streamed; without one, everything is `after`."""
    if streamed is None:
        return Schedule((), program.nodes)
    level = _levels(program, streamed)
    loops = 1 + max((level[node] for node in program.nodes if _looped(node, streamed)), default=-1)
    streamed_outputs = [name for name, node in program.outputs.items() if streamed in node.axes]
    loops = max(loops, 1) if streamed_outputs else loops
    phases = []
    for index in range(loops):
        sums = tuple(n for n in program.nodes if sums_over(n, streamed) and streamed not in n.axes and level[n] == index)
        stores = tuple(streamed_outputs) if index == loops - 1 else ()
        before = tuple(n for n in program.nodes if level[n] == index and _plain(n, streamed))
        inside = _inside([*sums, *(program.outputs[name] for name in stores)], streamed, sums)
        phases.append(Phase(before, inside, sums, stores))
    after = tuple(n for n in program.nodes if level[n] >= loops and _plain(n, streamed))
    return Schedule(tuple(phases), after)


def _plain(node: Node, axis: str) -> bool:
    return axis not in node.axes and not sums_over(node, axis)


def _looped(node: Node, axis: str) -> bool:
    return axis in node.axes or sums_over(node, axis)


def _levels(program: Program, axis: str) -> Mapping[Node, int]:
    """The loop a node stands in or before: one more than that of any completed sum it needs."""
    level: dict[Node, int] = {}
    for node in program.nodes:
        level[node] = max((level[o] + (sums_over(o, axis) and axis not in o.axes) for o in node.operands), default=0)
    return level


def _inside(roots: Iterable[Node], axis: str, sums: tuple[Node, ...]) -> tuple[Node, ...]:
    """The values with the streamed axis that the roots need."""
    return tuple(node for node in topological(roots) if axis in node.axes and node not in sums)
