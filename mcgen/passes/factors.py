"""Rewrites that make products cheaper where tiles are registers: what is the same along a summed axis leaves the sum.

    sum over j of x[t] A[t j] B[j v]   ->   x[t] sum over j of A[t j] B[j v]

A factor that leaves acts on the result instead, and what stays is more often a product of two inputs in their own type,
or one that stands elsewhere already. Runs of a gate that differ in their axes' names alone become one.
"""

from __future__ import annotations

import sympy

from mcgen.ir.derivative import run
from mcgen.ir.program import (
    AXES,
    Builder,
    Contract,
    Decay,
    Map,
    Node,
    Reduce,
    is_constant,
    is_identity,
    is_spread,
    placeholder,
)
from mcgen.passes.simplify import RULES, Rule


def _spread_operand(b: Builder, node: Node) -> Node | None:
    if not isinstance(node, Map) or is_spread(node) or not any(map(is_spread, node.values)):
        return None
    values = {placeholder(i): value.values[0] if is_spread(value) else value for i, value in enumerate(node.values)}
    return b.map(node.expression, values, node.axes)


def _factors(b: Builder, node: Node, over: set[str]) -> tuple[list[Node], Node]:
    """A node as a product: factors that are the same along the axes `over`, and the rest, which has all of them."""
    if not isinstance(node, Map) or is_constant(node) or not (node.expression.is_Mul or is_spread(node)):
        return [], node
    values = {placeholder(i): value for i, value in enumerate(node.values)}
    outer, inner, kept = [], [], {}
    for factor in sympy.Mul.make_args(node.expression):
        used = {symbol: values[symbol] for symbol in factor.free_symbols}
        if not over & {axis for value in used.values() for axis in value.axes}:
            outer.append(values[factor] if factor.is_Symbol else b.map(factor, used))
        elif factor.is_Symbol:
            symbol = placeholder(len(values) + len(kept))
            more, kept[symbol] = _factors(b, values[factor], over)
            outer += more
            inner.append(symbol)
        else:
            inner.append(factor)
    if not inner or not outer:
        return [], node
    rest = b.map(sympy.Mul(*inner), {**values, **kept})
    b.call(rest, f"{node.label.name}_unscaled" if node.label else None, part=True)
    if is_identity(rest):
        rest = rest.values[0]
    return (outer, rest) if over <= set(rest.axes) else ([], node)


def _factor_of_reduction(b: Builder, node: Node) -> Node | None:
    if not isinstance(node, Reduce) or node.operation != "sum":
        return None
    outer, rest = _factors(b, node.operand, set(node.over))
    return b.broadcast(b.product(*outer, b.sum(rest, *node.over)), node.axes) if outer else None


def _factor_of_contraction(b: Builder, node: Node) -> Node | None:
    if not isinstance(node, Contract):
        return None
    over = set(node.over)
    (left, x), (right, y) = _factors(b, node.left, over), _factors(b, node.right, over)
    return b.broadcast(b.product(*left, *right, b.contract(x, y, *node.over)), node.axes) if left or right else None


def _one_decay(b: Builder, node: Node) -> Node | None:
    """Runs from j to t stand for those along any other pair of axes in the same order."""
    if not isinstance(node, Decay):
        return None
    row, column = node.row and "t", node.column and "j"
    if (row, column) == (node.row, node.column) or (row and column and AXES.index(node.row) > AXES.index(node.column)):
        return None
    decay = run(b, node.gate, row, column, node.exclusive)
    for old, new in ((column, node.column), (row, node.row)):
        decay = b.rename(decay, old, new) if old else decay
    return decay


SPREAD = Rule("value spread along axes", "f(x[t] as [t j], y[t j])", "f(x[t], y[t j])", _spread_operand)
ONE_DECAY = Rule("one decay", "product of a over s < i <= m", "product of a over j < i <= t, renamed", _one_decay)

FACTORS = (
    *RULES,
    SPREAD,
    Rule("factor of a sum", "sum over j of x[t] y[t j]", "x[t] sum over j of y[t j]", _factor_of_reduction),
    Rule("factor of a product", "sum over j of x[t] A[t j] B[j v]", "x[t] (A B)[t v]", _factor_of_contraction),
    ONE_DECAY,
)
"""The table of `simplify`, and these."""


def _weighted_sum(b: Builder, node: Node) -> Node | None:
    if not (isinstance(node, Reduce) and node.operation == "sum" and node.over == ("n",)):
        return None
    if not isinstance(node.operand, Map) or node.operand.expression != placeholder(0) * placeholder(1):
        return None
    for product, weight in (node.operand.values, node.operand.values[::-1]):
        if isinstance(product, Contract) and not set(product.over) & {*weight.axes, *node.over}:
            factor = product.left if set(weight.axes) - set(node.over) <= set(product.left.axes) else product.right
            other = product.right if factor is product.left else product.left
            return b.contract(b.product(weight, factor), other, *node.over, *product.over)
    return None


WEIGHTED_SUM = Rule(
    "weighted sum of products",
    "sum over n of w[t n] sum over k of x[t k] M[n k v]",
    "sum over n and k of (w[t n] x[t k]) M[n k v]",
    _weighted_sum,
)
"""For segments: what a sum over them is made of is then a product each, added up where it is made."""
