"""Reverse-mode derivatives of tile programs: one table, a row a kind of node.

`vjp` walks a program backwards from cotangents of its outputs. A row of the table takes a node and its cotangent g, of
the node's axes, and gives a cotangent for each operand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

import sympy

from mcgen.ir import vocabulary
from mcgen.ir.program import (
    TOKEN_AXES,
    Builder,
    Contract,
    Decay,
    Input,
    Iota,
    Label,
    Map,
    Node,
    Reduce,
    Rename,
    Solve,
    is_identity,
    name_of,
    placeholder,
    topological,
)

Row = Callable[[Builder, Node, Node], Iterable[tuple[Node, Node]]]
Namer = Callable[[Label], Label]
"""What the cotangent of a named value is called."""


def _map(b: Builder, node: Map, g: Node) -> Iterable[tuple[Node, Node]]:
    """d f(x, y)  ->  g * df/dx, summed over the axes x was broadcast along; SymPy differentiates."""
    cotangent = sympy.Symbol("g", real=True)
    values = {placeholder(i): value for i, value in enumerate(node.values)}
    for symbol, value in values.items():
        factor = slope(node.expression, symbol)
        if factor == 0:
            continue
        full = b.map(cotangent * factor, {cotangent: g, **values}, node.axes)
        yield value, b.sum(full, *(set(node.axes) - set(value.axes)))


@lru_cache(maxsize=1 << 12)
def slope(expression: sympy.Expr, symbol: sympy.Symbol) -> sympy.Expr:
    """The derivative of a scalar function."""
    return sympy.diff(expression, symbol)


def _contract(b: Builder, node: Contract, g: Node) -> Iterable[tuple[Node, Node]]:
    """d sum(x * y)  ->  sum(g * y) over what x lacks, and likewise for y."""
    yield node.left, b.contract(g, node.right, *(set(node.right.axes) | set(g.axes)) - set(node.left.axes))
    yield node.right, b.contract(node.left, g, *(set(node.left.axes) | set(g.axes)) - set(node.right.axes))


def _reduce(b: Builder, node: Reduce, g: Node) -> Iterable[tuple[Node, Node]]:
    """d sum(x)  ->  g along every element. A maximum is only a shift of a softmax, whose derivative is 0."""
    if node.operation == "sum":
        yield node.operand, b.broadcast(g, node.operand.axes)


def _rename(b: Builder, node: Rename, g: Node) -> Iterable[tuple[Node, Node]]:
    yield node.operand, b.rename(g, node.new, node.old)


def _decay(b: Builder, node: Decay, g: Node) -> Iterable[tuple[Node, Node]]:
    """d D[r, c]  ->  at gate m: sum over r, c of g[r, c] * D[r, m] * D[m exclusive, c]. Never divides by a gate."""
    after = run(b, node.gate, node.row, "m", node.exclusive)
    reached = b.contract(after, g, node.row) if node.row else b.product(after, g)
    b.call(reached, f"{g.label.name}_at_m" if g.label else None, part=True)
    before = run(b, node.gate, "m", node.column, exclusive=True)
    (axis,) = node.gate.axes
    yield node.gate, b.rename(b.sum(b.product(reached, before), *filter(None, [node.column])), "m", axis)


def _solve(b: Builder, node: Solve, g: Node) -> Iterable[tuple[Node, Node]]:
    """d X = A X + B  ->  for B the transposed solve h of g, and for A[t, j] the sum of h[t] * X[j]."""
    right = b.solve(node.matrix, g, not node.transposed)
    yield node.right, right
    row, column = node.matrix.axes
    (other,) = set(node.axes) - {row}
    rows, columns = (node, right) if node.transposed else (right, node)
    if other in TOKEN_AXES:  # the columns of X are tokens too: another name, so as not to meet the matrix's
        rows, columns, other = b.rename(rows, other, "m"), b.rename(columns, other, "m"), "m"
    yield node.matrix, b.contract(rows, b.rename(columns, row, column), other)


def run(b: Builder, gate: Node, row: str | None, column: str | None, exclusive: bool = False) -> Node:
    """A gate's products over runs of tokens, called by the gate."""
    own, found = name_of(gate), b.decay(gate, row, column, exclusive)
    return b.call(found, vocabulary.run(own.name, row, column, exclusive) if own else None)


DERIVATIVES: Mapping[type[Node], Row] = {
    Input: lambda b, node, g: (),
    Iota: lambda b, node, g: (),
    Map: _map,
    Contract: _contract,
    Reduce: _reduce,
    Rename: _rename,
    Decay: _decay,
    Solve: _solve,
}


def cotangents(b: Builder, outputs: Mapping[str, Node]) -> dict[str, Node]:
    """Those of all outputs as inputs, `d_<output>`."""
    return {name: b.input(f"d_{name}", *node.axes) for name, node in outputs.items()}


def vjp(
    b: Builder,
    outputs: Mapping[str, Node],
    cotangents: Mapping[str, Node],
    at: Mapping[Node, str] | None = None,
    namer: Namer = vocabulary.derivative,
) -> dict[str, Node]:
    """The cotangent of every input the outputs depend on, by the input's name, and of the nodes named in `at`.

    `cotangents` names a node for each output that has one; an output without one is taken not to matter. `namer` says
    what the cotangents of named values are called; each value's share of one is a part of it.
    """
    pending: dict[Node, list[Node]] = {}
    for name, cotangent in cotangents.items():
        pending.setdefault(outputs[name], []).append(cotangent)
    result: dict[str, Node] = {}
    through: dict[Node, Label] = {}
    for node in reversed(topological(outputs[name] for name in cotangents)):
        if node not in pending:
            continue
        g = b.broadcast(b.total(pending.pop(node)), node.axes)
        if isinstance(node, Input):
            result[node.name] = g
        own = name_of(node)
        b.call(g, _cotangent(node, namer(own)) if own else None)
        if at and node in at:
            result[at[node]] = g
        for operand, cotangent in DERIVATIVES[type(node)](b, node, g):
            pending.setdefault(operand, []).append(cotangent)
            of, by = name_of(operand), own or through.get(node)
            if by:
                through.setdefault(operand, by)
                b.call(cotangent, f"{namer(of).name}_by_{by.name}" if of else None, part=True)
    return result


def _cotangent(node: Node, label: Label) -> Label:
    """What a cotangent is called, by what is called after the value; of a value under another name, it is a part."""
    if is_identity(node) and isinstance(node.operands[0], Input):
        return Label(f"{label.name}_by_gate", part=True)
    return Label(f"{label.name}_{node.new}", part=True) if isinstance(node, Rename) else label
