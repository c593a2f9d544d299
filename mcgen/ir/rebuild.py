"""Nodes made again over other operands: what every pass over a program is built from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from mcgen.ir.check import check, is_on
from mcgen.ir.program import Builder, Contract, Decay, Map, Node, Program, Reduce, Rename, Solve, placeholder

Make = Callable[[Builder, Node, Mapping[Node, Node]], Node]
"""Makes a node again, from those made already by what they stand for."""


def rewritten(program: Program, make: Make, b: Builder | None = None) -> Program:
    """The program with every node made again, operands first. What a value is called, that in its place is called."""
    b, new = b or Builder(), {}
    for node in program.nodes:
        new[node] = b.call(make(b, node, new), node.label)
    made = Program(program.name, {name: spread(b, new[node], node.axes) for name, node in program.outputs.items()})
    if is_on():
        check(program, made, make.__qualname__.partition(".<locals>")[0])
    return made


def is_constant(node: Node, value: int | None = None) -> bool:
    """Whether a node is one number, the same everywhere (that number, where one is given)."""
    return isinstance(node, Map) and not node.values and (value is None or node.expression == value)


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
            if is_constant(new[operand]) and not is_constant(new[operand], 0):
                return b.sum(spread(b, new[operand], operand.axes), *over)
            return (b.sum if operation == "sum" else b.max)(new[operand], *over)
        case Rename(_, operand, old, new_axis):
            return b.rename(new[operand], old, new_axis)
        case Solve(_, matrix, right, transposed):
            return b.solve(spread(b, new[matrix], matrix.axes), spread(b, new[right], right.axes), transposed)
        case Decay(_, gate, row, column, exclusive):
            return b.decay(spread(b, new[gate], gate.axes), row, column, exclusive)
    return b._intern(replace(node))


def spread(b: Builder, node: Node, axes: tuple[str, ...]) -> Node:
    return b.map(node.expression, {}, axes) if is_constant(node) else b.broadcast(node, axes)
