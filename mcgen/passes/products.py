"""Rewrites of products and sums, for a backend that keeps every value in memory: fewer passes over the large ones.

Derivatives come out of their table one node at a time. A softmax w = e / z, with z = sum e, leaves
(g / z - sum(g * e / z**2)) * e; these rules find in it what a person would have written, w * (g - sum(g * w)), and turn
sums of products into contractions, which multiply and add without the product in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import sympy

from mcgen.ir.program import Builder, Iota, Map, Node, Reduce, is_spread, placeholder, topological
from mcgen.ir.vocabulary import root
from mcgen.passes.simplify import Rule

QUOTIENT = placeholder(0) / placeholder(1)


@dataclass
class Terms:
    """Expressions over nodes: a symbol stands for one node wherever it occurs."""

    symbols: dict[Node, sympy.Symbol] = field(default_factory=dict)
    nodes: dict[sympy.Symbol, Node] = field(default_factory=dict)

    def symbol(self, node: Node) -> sympy.Symbol:
        symbol = self.symbols.setdefault(node, sympy.Symbol(f"n{len(self.symbols)}", real=True))
        self.nodes[symbol] = node
        return symbol

    def expression(self, node: Map) -> sympy.Expr:
        return node.expression.xreplace({placeholder(i): self.symbol(v) for i, v in enumerate(node.values)})

    def build(self, b: Builder, expression: sympy.Expr, axes: Collection[str] = ()) -> Node:
        return b.map(expression, self.nodes, axes)

    def axes(self, expression: sympy.Expr) -> set[str]:
        return {axis for symbol in expression.free_symbols for axis in self.nodes[symbol].axes}


def _value_at_hand(b: Builder, node: Node) -> Node | None:
    if not isinstance(node, Map) or node.expression.is_Function or not node.expression.has(sympy.Function):
        return None
    terms = Terms()
    expression = terms.expression(node)
    for other in [other for value, made in b.functions.items() if value.is_Function for other in made]:
        value = terms.expression(other)
        if expression.has(value):
            return terms.build(b, expression.xreplace({value: terms.symbol(other)}), node.axes)
    return None


def _quotient_at_hand(b: Builder, node: Node) -> Node | None:
    shares = _shares_within(b, node) if _is_product(node) else []
    terms = Terms()
    whole = _expanded(terms, terms.expression(node), node.axes) if shares else None
    for other in shares:
        if other is not node and other not in node.values:
            quotient = terms.expression(other)
            if _divides(quotient.as_powers_dict(), whole.as_powers_dict()):
                return terms.build(b, whole / quotient * terms.symbol(other), node.axes)
    return None


def _shares_within(b: Builder, product: Map) -> list[Map]:
    """The weights of softmaxes that are known, of which both parts are among a product's factors or among theirs."""
    near = {*product.values, *(part for value in product.values if _is_product(value) for part in value.values)}
    return [node for node in b.functions.get(QUOTIENT, ()) if near.issuperset(node.values) and _is_share(node)]


def _is_share(node: Map) -> bool:
    """Whether a quotient is e / z, z a sum that e is part of: a weight of a softmax."""
    part, whole = node.values
    return part in topological([whole])


def _expanded(terms: Terms, product: sympy.Expr, axes: Collection[str]) -> sympy.Expr:
    """A product with those of its factors multiplied out that are a sum times something, of the same axes."""
    inner = {}
    for symbol in sympy.Mul.make_args(product):
        node = terms.nodes.get(symbol)
        if node is not None and _is_product(node) and node.axes == axes and any(map(_is_sum, node.values)):
            inner[symbol] = terms.expression(node)
    return product.xreplace(inner)


def _is_sum(node: Node) -> bool:
    return isinstance(node, Map) and node.expression.is_Add


def _is_product(node: Node) -> bool:
    return isinstance(node, Map) and node.expression.is_Mul


def _divides(factors: Mapping[sympy.Expr, sympy.Expr], whole: Mapping[sympy.Expr, sympy.Expr]) -> bool:
    """Whether a product has all these factors, to at least these powers."""
    return all(base in whole and whole[base] / power >= 1 for base, power in factors.items())


def _common_factor(b: Builder, node: Node) -> Node | None:
    if not isinstance(node, Map) or not node.expression.is_Add:
        return None
    terms = Terms()
    summands = [_opened(terms, term) for term in sympy.Add.make_args(terms.expression(node))]
    shared = set.intersection(*(set(term.as_powers_dict().items()) for term in summands))
    factor = sympy.Mul(*(base**power for base, power in shared if power.is_negative))
    if factor == 1:
        return None
    inside = terms.build(b, sympy.Add(*(term / factor for term in summands)))
    return terms.build(b, terms.symbol(inside) * factor, node.axes)


def _opened(terms: Terms, term: sympy.Expr) -> sympy.Expr:
    """A summand that is one product node, as the product it is; a broadcast one too."""
    number, symbol = term.as_coeff_Mul()
    if not symbol.is_Symbol:
        return term
    node = terms.nodes[symbol]
    if is_spread(node):
        node = node.values[0]
    return number * terms.expression(node) if _is_product(node) else term


def _outside_the_sum(b: Builder, node: Node) -> Node | None:
    if not isinstance(node, Reduce) or node.operation != "sum" or not _is_product(node.operand):
        return None
    terms = Terms()
    factors = sympy.Mul.make_args(terms.expression(node.operand))
    outside = sympy.Mul(*(factor for factor in factors if not terms.axes(factor) & set(node.over)))
    inside = terms.build(b, sympy.Mul(*factors) / outside)
    if outside == 1 or set(node.over) - set(inside.axes):
        return None
    total = b.sum(inside, *node.over)
    return terms.build(b, outside * terms.symbol(total), node.axes)


def _contraction(b: Builder, node: Node) -> Node | None:
    if not isinstance(node, Reduce) or node.operation != "sum" or not isinstance(node.operand, Map):
        return None
    values = node.operand.values
    if len(values) != 2 or node.operand.expression != placeholder(0) * placeholder(1):
        return None
    x, y = values
    whole = all(set(node.over) <= set(value.axes) for value in values)
    return b.contract(x, y, *node.over) if whole and x.axes != y.axes else None


def _mask_apart(b: Builder, node: Node) -> Node | None:
    if not _is_product(node) or all(isinstance(value, Iota) for value in node.values):
        return None
    terms = Terms()
    factors = sympy.Mul.make_args(terms.expression(node))
    places = [f for f in factors if f.free_symbols and all(isinstance(terms.nodes[s], Iota) for s in f.free_symbols)]
    if not places:
        return None
    mask = terms.symbol(terms.build(b, sympy.Mul(*places)))
    return terms.build(b, mask * sympy.Mul(*(factor for factor in factors if factor not in places)), node.axes)


def _root_apart(b: Builder, node: Node) -> Node | None:
    """The root of a row's number in a function of more: it is one for the whole row, and for all that divide by it."""
    if not isinstance(node, Map) or not node.expression.has(sympy.Pow):
        return None
    terms = Terms()
    expression = terms.expression(node)
    for power in sorted(expression.atoms(sympy.Pow), key=str):
        is_root = abs(power.exp) == sympy.Rational(1, 2) and len(power.free_symbols) == 1 and not power.base.is_Symbol
        if is_root and terms.axes(power.base) < set(node.axes):
            apart = terms.build(b, sympy.sqrt(power.base))
            (squares,) = apart.operands
            b.call(apart, squares.label and root(squares.label))
            return terms.build(b, expression.xreplace({power: terms.symbol(apart) ** (2 * power.exp)}), node.axes)
    return None


RULES = (
    Rule("mask apart", "x * f(t, j), where f depends on places alone", "x * m[t j]", _mask_apart),
    Rule("function at hand", "g * exp(x), where e = exp(x) is known", "g * e", _value_at_hand),
    Rule("common factor", "x / z + y / z", "(x + y) / z", _common_factor),
    Rule("quotient at hand", "g * e / z, where w = e / z is known", "g * w", _quotient_at_hand),
    Rule("factor outside the sum", "sum[n] c[t] * x[t n]", "c * sum[n] x", _outside_the_sum),
    Rule("root apart", "x[t v] / sqrt(s[t] + 1)", "x / z, where z = sqrt(s + 1)", _root_apart),
    Rule("sum of a product", "sum[n] x[t n] * y[n]", "the contraction of x and y", _contraction),
)
