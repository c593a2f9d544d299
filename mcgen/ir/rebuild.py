"""Nodes made again over other operands: what every pass over a program is built from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from mcgen.ir import check
from mcgen.ir.program import (
    Builder,
    Contract,
    Decay,
    Map,
    Node,
    Program,
    Reduce,
    Rename,
    Solve,
    is_constant,
    placeholder,
)

Make = Callable[[Builder, Node, Mapping[Node, Node]], Node]
"""Makes a node again, from those made already by what they stand for."""


def rewritten(
    program: Program,
    make: Make,
    b: Builder | None = None,
    *,
    by: str,
    rules: Collection[str] = (),
    given: Collection[str] = (),
) -> Program:
    """The program with every node made again, operands first. What a value is called, that in its place is called.

    The rest is for the check of what has been made, where that is on: `by` is what the pass is called, and `rules` are
    those it goes by; `given` are the inputs that it puts in.
    """
    b, new = b or Builder(), {}
    for node in program.nodes:
        new[node] = b.call(make(b, node, new), node.label)
    after = Program(program.name, {name: spread(b, new[node], node.axes) for name, node in program.outputs.items()})
    if check.is_on():
        check.passed((by, *rules), program, after, new, given)
    return after


def rebuilt(b: Builder, node: Node, new: Mapping[Node, Node]) -> Node:
    """The same node over new operands, its axes inferred again."""
    match node:
        case Map(axes, expression, values):
            return b.map(expression, {placeholder(i): new[value] for i, value in enumerate(values)}, axes)
        case Contract(_, left, right, over):
            kept = new[left], new[right]
            if all(map(is_constant, kept)):
                kept = spread(b, new[left], left.axes), new[right]
            return b.contract(*kept, *over)
        case Reduce(_, operation, operand, over):
            is_number = is_constant(new[operand]) and not is_constant(new[operand], 0)
            value = spread(b, new[operand], operand.axes) if is_number else new[operand]
            return (b.sum if operation == "sum" else b.max)(value, *over)
        case Rename(_, operand, old, new_axis):
            return b.rename(new[operand], old, new_axis)
        case Solve(_, matrix, right, transposed):
            return b.solve(spread(b, new[matrix], matrix.axes), spread(b, new[right], right.axes), transposed)
        case Decay(_, gate, row, column, exclusive):
            return b.decay(spread(b, new[gate], gate.axes), row, column, exclusive)
    return b._intern(replace(node))


def spread(b: Builder, node: Node, axes: tuple[str, ...]) -> Node:
    return b.map(node.expression, {}, axes) if is_constant(node) else b.broadcast(node, axes)
