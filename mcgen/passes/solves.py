"""Triangular systems of a program that is run once a chunk, solved as far as they can be before the state is known.

    X = A X + x[t] (K S) + B   ->   X = (T (x K)) S + T B,     T = (I - A)⁻¹

A solution is linear in its right-hand side, so what a carried state S adds to it is S, read with the solution for K:
the WY form of a product of Householder matrices (Bischof and Van Loan 1987; Yang et al. 2024 for delta rules), here for
any system whose right-hand side is affine in the states.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import sympy

from mcgen.ir.derivative import slope
from mcgen.ir.program import (
    TOKEN_AXES,
    Builder,
    Contract,
    Input,
    Label,
    Map,
    Node,
    Program,
    Rename,
    Solve,
    name_of,
    placeholder,
)
from mcgen.ir.rebuild import rebuilt, rewritten


@dataclass(frozen=True)
class _Form:
    """known + sum over states of factor[t k] state[k v]; `terms` has the factors by state."""

    known: Node | None
    terms: Mapping[Node, Node]

    def map(self, function: Callable[[Node], Node]) -> _Form:
        known = None if self.known is None else function(self.known)
        return _Form(known, {state: function(factor) for state, factor in self.terms.items()})


def solves_apart(program: Program, carried: Collection[str]) -> Program:
    """The program with systems that wait for the carried inputs only through affine right-hand sides solved without."""
    b = Builder()
    affine = _Affine(b, frozenset(carried))

    def make(b: Builder, node: Node, new: Mapping[Node, Node]) -> Node:
        again = rebuilt(b, node, new)
        return affine.solved(again, node.label) if isinstance(again, Solve) else again

    return rewritten(program, make, b, by="solves_apart")


@dataclass(frozen=True)
class _Affine:
    """Values of a program as affine functions of carried states."""

    b: Builder
    carried: frozenset[str]
    _waits: dict[Node, bool] = field(default_factory=dict)

    def waits(self, node: Node) -> bool:
        """Whether a value depends on a carried input."""
        if node not in self._waits:
            is_carried = isinstance(node, Input) and node.name in self.carried
            self._waits[node] = is_carried or any(map(self.waits, node.operands))
        return self._waits[node]

    def solved(self, node: Solve, label: Label | None) -> Node:
        """A system's solution from those for the parts of its right-hand side; as it is where that is not affine.

        The solutions are called by their part in the one that `label` names.
        """
        form = self.form(node.right) if self.waits(node.right) and not self.waits(node.matrix) else None
        if form is None:
            return node
        b, row = self.b, node.matrix.axes[0]

        def solve(right: Node, of: str, *axes: str) -> Node:
            part = b.solve(node.matrix, b.broadcast(right, axes), node.transposed)
            return b.call(part, label and f"{label.name}_{of}")

        terms = [(state, solve(factor, f"per_{_word(state)}", row, "k")) for state, factor in form.terms.items()]
        parts = [b.contract(factor, state, "k") for state, factor in terms]
        parts += [solve(form.known, "ahead", *node.axes)] if form.known is not None else []
        return b.broadcast(b.total(parts), node.axes)

    def form(self, node: Node) -> _Form | None:
        """A value as an affine form, or None where it is none."""
        if not self.waits(node):
            return _Form(node, {})
        match node:
            case Contract(_, left, right, _) if self.waits(left) != self.waits(right):
                return self._contraction(*((right, left) if self.waits(left) else (left, right)), node.over)
            case Rename(_, operand, old, new):
                form = self.form(operand)
                return form and form.map(lambda part: self.b.rename(part, old, new))
            case Map():
                return self._map(node)
        return None

    def _contraction(self, known: Node, waiting: Node, over: tuple[str, ...]) -> _Form | None:
        if over == ("k",) and not TOKEN_AXES & set(waiting.axes) and set(known.axes) & set(waiting.axes) == {"k"}:
            return _Form(None, {waiting: known})
        form = self.form(waiting)
        if form is None or any(set(known.axes) & set(factor.axes) != set(over) for factor in form.terms.values()):
            return None
        return form.map(lambda part: self.b.contract(known, part, *over))

    def _map(self, node: Map) -> _Form | None:
        """A sum of products with one waiting factor each."""
        values = {placeholder(i): value for i, value in enumerate(node.values)}
        waiting = [symbol for symbol, value in values.items() if self.waits(value)]
        slopes = {symbol: slope(node.expression, symbol) for symbol in waiting}
        if any(factor.has(*waiting) for factor in slopes.values()):
            return None
        rest = sympy.expand(node.expression - sum(symbol * factor for symbol, factor in slopes.items()))
        parts = [_Form(self.b.map(rest, values), {})] if rest != 0 else []
        for symbol, factor in slopes.items():
            form, scale = self.form(values[symbol]), self.b.map(factor, values)
            if form is None or (form.terms and not set(scale.axes) <= TOKEN_AXES):
                return None
            parts.append(form.map(lambda part, scale=scale: self.b.product(scale, part)))
        return self._total(parts)

    def _total(self, parts: list[_Form]) -> _Form:
        known = [part.known for part in parts if part.known is not None]
        factors: dict[Node, list[Node]] = {}
        for part in parts:
            for state, factor in part.terms.items():
                factors.setdefault(state, []).append(factor)
        terms = {state: self.b.total(nodes) for state, nodes in factors.items()}
        return _Form(self.b.total(known) if known else None, terms)


def _word(state: Node) -> str:
    own = name_of(state)
    return own.name if own else "state"
