"""Where the factors of a product stand: on the side with fewer numbers.

A state read and owed to token by token leaves products such as sum[j] k[j k] (c[j] x[j h]). Along hidden units, of
which there are several times as many as of a head's dimensions, every pass over x counts:

    sum[j] k[j k] (c[j] x[j h])             ->  sum[j] (c[j] k[j k]) x[j h]
    sum[h] (c[t] x[t h]) M[k h]             ->  c[t] sum[h] x[t h] M[k h]
    c[t] sum[k] q[t k] M[k h]               ->  sum[k] (c[t] q[t k]) M[k h], where nothing else reads that product
    sum[h] x[t h] (sum[k] q[t k] M[k h])    ->  sum[k] q[t k] (sum[h] x[t h] M[k h]), where that product is at hand
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from mcgen.ir.program import TOKEN_AXES, Builder, Contract, Map, Node, Program, Reduce, placeholder
from mcgen.ir.rebuild import rebuilt, rewritten, spread

TOKENS, SEGMENTS = 64, 8
"""What token axes, and that of segments, are taken to be long."""


def narrow(program: Program, sizes: Mapping[str, int]) -> Program:
    """The program with row factors moved to the smaller side of products, for axes of the given sizes."""
    while (after := _Narrow(program, sizes).program_after()) is not None:
        program = after
    return program


@dataclass
class _Narrow:
    program: Program
    sizes: Mapping[str, int]

    def __post_init__(self) -> None:
        self.users: dict[Node, list[Node]] = {}
        for node in self.program.nodes:
            for operand in node.operands:
                self.users.setdefault(operand, []).append(node)
        self.given = set(self.program.outputs.values())
        self.products = {
            (frozenset((node.left, node.right)), node.over): node
            for node in self.program.nodes
            if isinstance(node, Contract)
        }

    def program_after(self) -> Program | None:
        """The program after one round, or None where nothing changed."""
        changed = False

        def make(b: Builder, node: Node, new: Mapping[Node, Node]) -> Node:
            nonlocal changed
            self.b, self.new = b, new
            found = self._moved(node)
            changed = changed or found is not None
            return rebuilt(b, node, new) if found is None else found

        program = rewritten(self.program, make, by="narrow")
        return program if changed else None

    def _moved(self, node: Node) -> Node | None:
        match node:
            case Contract():
                return self._moved_factor(node) or self._agreement(node, node.left, node.right)
            case Reduce(_, "sum", Map(_, expression, (x, y))) if expression == placeholder(0) * placeholder(1):
                return self._agreement(node, x, y) if x.axes == y.axes else None
            case Map():
                return self._inside(node)
        return None

    def _size(self, axes: tuple[str, ...]) -> int:
        return prod(TOKENS if axis in TOKEN_AXES else self.sizes.get(axis, SEGMENTS) for axis in axes)

    def _factored(self, node: Node) -> tuple[Node, Node] | None:
        """A factor along a token axis alone, and the rest, of a product that only contractions read; None of others."""
        if node in self.given or not all(isinstance(user, Contract) for user in self.users[node]):
            return None
        return _row_factor(node)

    def _moved_factor(self, node: Contract) -> Node | None:
        """A product with a factor of one side on the other, or else outside."""
        for outside in (False, True):
            for wide, other in ((node.left, node.right), (node.right, node.left)):
                found, place = self._factored(wide), node if outside else other
                if found and set(found[0].axes) <= set(place.axes) and self._size(place.axes) < self._size(wide.axes):
                    factor, rest, kept = self.new[found[0]], self.new[found[1]], self.new[other]
                    if outside:
                        return self.b.product(factor, self._contract(node, rest, kept))
                    return self._contract(node, rest, self.b.product(factor, kept))
        return None

    def _contract(self, node: Contract, x: Node, y: Node) -> Node:
        return spread(self.b, self.b.contract(x, y, *node.over), node.axes)

    def _inside(self, node: Map) -> Node | None:
        factor, product = _row_factor(node) or (None, None)
        if not isinstance(product, Contract) or len(self.users[product]) > 1 or product in self.given:
            return None
        for near, far in ((product.left, product.right), (product.right, product.left)):
            fits = set(factor.axes) <= set(near.axes) and not set(factor.axes) & set(far.axes)
            if fits and self._size(near.axes) < self._size(node.axes):
                scaled = self.b.product(self.new[factor], self.new[near])
                return self._contract(product, scaled, self.new[far])
        return None

    def _agreement(self, node: Contract | Reduce, x: Node, y: Node) -> Node | None:
        for row, product in ((x, y), (y, x)) if x.axes == y.axes else ():
            if not isinstance(product, Contract):
                continue
            for near, far in ((product.left, product.right), (product.right, product.left)):
                other = self.products.get((frozenset((row, far)), node.over))
                if other and other.axes == near.axes and self._size(near.axes) < self._size(row.axes):
                    left, right = self.new[other.left], self.new[other.right]
                    other = spread(self.b, self.b.contract(left, right, *other.over), other.axes)
                    return self.b.sum(self.b.product(self.new[near], other), *set(near.axes) - set(node.axes))
        return None


def _row_factor(node: Node) -> tuple[Node, Node] | None:
    """The factor along a token axis alone and the rest, along all axes, of a product of two; None of anything else."""
    if not isinstance(node, Map) or node.expression != placeholder(0) * placeholder(1):
        return None
    for factor, rest in (node.values, node.values[::-1]):
        if len(factor.axes) == 1 < len(rest.axes) and factor.axes[0] in TOKEN_AXES and rest.axes == node.axes:
            return factor, rest
    return None
