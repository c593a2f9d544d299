"""Which values are 0 above the diagonal of two axes of tokens, as far as the way they are made shows it.

    product of a over j < i <= t        0 where t < j: lower triangular
    product of a over j < i < t         0 where t <= j: strictly so
    f(A, x), 0 where A is               as A
    sum over s of A[t s] B[s j]         lower triangular if A and B are, strictly so if one of them is
    x with x = A x + B                  as B

An input along both axes is a value that a program was cut at, and counts as what it was there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

import sympy

from mcgen.ir.program import (
    TOKEN_AXES,
    Contract,
    Decay,
    Input,
    Iota,
    Map,
    Node,
    Rename,
    Solve,
    is_constant,
    placeholder,
)

FAR = 1 << 20
"""As far as tokens of a chunk may be apart: masks compare how far they are, so the nearest and the farthest tell."""


class Triangle(IntEnum):
    """What is known to be 0: nothing, what is above the diagonal, or that and the diagonal."""

    NONE = 0
    LOWER = 1
    STRICT = 2


def triangle(node: Node, row: str, column: str) -> Triangle:
    """Where a value is 0: where its row comes before its column, or is the same token too."""
    return _Triangles().of(node, row, column)


@dataclass(frozen=True)
class _Triangles:
    _known: dict[tuple[Node, str, str], Triangle] = field(default_factory=dict)

    def of(self, node: Node, row: str, column: str) -> Triangle:
        key = node, row, column
        if key not in self._known:
            self._known[key] = self._of(node, row, column)
        return self._known[key]

    def _of(self, node: Node, row: str, column: str) -> Triangle:
        if not {row, column} <= set(node.axes):
            return Triangle.STRICT if is_constant(node, 0) else Triangle.NONE
        match node:
            case Input():
                return Triangle.STRICT
            case Decay(_, _, ends, begins, exclusive) if (ends, begins) == (row, column):
                return Triangle.STRICT if exclusive else Triangle.LOWER
            case Rename(_, operand, old, new):
                before = {new: old}
                return self.of(operand, before.get(row, row), before.get(column, column))
            case Solve(_, _, right, False):
                return self.of(right, row, column)
            case Contract():
                return max(self._products(node, row, column))
            case Map():
                return self._function(node, row, column)
        return Triangle.NONE

    def _products(self, node: Contract, row: str, column: str) -> Iterator[Triangle]:
        yield from (self.of(side, row, column) for side in node.operands)
        for left, right in (node.operands, node.operands[::-1]):
            for axis in TOKEN_AXES.intersection(node.over):
                parts = self.of(left, row, axis), self.of(right, axis, column)
                yield max(parts) if min(parts) else Triangle.NONE

    def _function(self, node: Map, row: str, column: str) -> Triangle:
        if not all(self._is_zero(node, row, column, ahead) for ahead in (1, FAR)):
            return Triangle.NONE
        return Triangle.STRICT if self._is_zero(node, row, column, 0) else Triangle.LOWER

    def _is_zero(self, node: Map, row: str, column: str, ahead: int) -> bool:
        """Whether a function is 0 where the column's token is so many ahead of the row's."""
        numbers = {}
        for i, value in enumerate(node.values):
            if isinstance(value, Iota) and value.axes[0] in (row, column):
                numbers[placeholder(i)] = sympy.Integer(ahead if value.axes[0] == column else 0)
            elif self.of(value, row, column) >= (Triangle.LOWER if ahead else Triangle.STRICT):
                numbers[placeholder(i)] = sympy.S.Zero
        return node.expression.xreplace(numbers) == 0
