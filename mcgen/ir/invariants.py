"""What must hold of tile programs between passes, as a table: rows for the kinds of node, for a program as a whole, and
for what a pass makes of one. `mcgen.ir.check` holds programs to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import sympy

from mcgen.ir.program import (
    AXES,
    TOKEN_AXES,
    Builder,
    Contract,
    Decay,
    Input,
    Iota,
    Map,
    Node,
    Program,
    Reduce,
    Rename,
    Solve,
    in_order,
    is_constant,
    is_spread,
    placeholder,
    symbols,
)
from mcgen.ir.triangular import Triangle, triangle
from mcgen.symbolic.expressions import problem
from mcgen.symbolic.functions import RealFunction, Shift, Step, Where

ELEMENTARY = frozenset({sympy.exp, sympy.log, sympy.sin, sympy.cos, sympy.tanh, sympy.cosh, sympy.sinh, sympy.erf})
"""SymPy's own functions that expressions may have, besides the language's (`mcgen.symbolic.functions`)."""


@dataclass(frozen=True)
class Row:
    """What must hold of a node, in words, and whether it does."""

    says: str
    holds: Callable[..., bool]


@dataclass(frozen=True)
class Whole:
    """What must hold of a whole program, in words, and the nodes by which it does not."""

    says: str
    broken: Callable[..., Iterable[Node]]


@lru_cache(1 << 12)
def _outside(expression: sympy.Expr, functions: tuple[type[RealFunction], ...]) -> frozenset[sympy.Symbol]:
    """The symbols that stand elsewhere than in the functions given; of `Where`, elsewhere than in its condition."""
    if expression.is_Symbol:
        return frozenset({expression})
    hidden = 0 if expression.func not in functions else 1 if expression.func is Where else len(expression.args)
    return frozenset().union(*(_outside(argument, functions) for argument in expression.args[hidden:]))


@lru_cache(1 << 12)
def _is_computable(expression: sympy.Expr) -> bool:
    """Whether an expression is made of numbers and functions that backends have."""
    if problem(expression) is not None:
        return False
    return all(
        part.is_number
        or part.is_Symbol
        or part.is_Add
        or part.is_Mul
        or part.is_Pow
        or isinstance(part, RealFunction)
        or part.func in ELEMENTARY
        for part in sympy.preorder_traversal(expression)
    )


def _stands_in(node: Node, operand: Node, *functions: type[RealFunction]) -> bool:
    """Whether a node is a function that reads an operand inside the functions given alone."""
    return isinstance(node, Map) and placeholder(node.values.index(operand)) not in _outside(node.expression, functions)


@lru_cache
def _are_in_order(axes: tuple[str, ...]) -> bool:
    return set(axes) <= set(AXES) and in_order(axes) == axes


def _is_maximum(node: Node) -> bool:
    return isinstance(node, Reduce) and node.operation == "max"


def _is_summed(axes: Sequence[str], *values: Node) -> bool:
    """Whether axes can be summed over: some, in order, that every value has."""
    return bool(axes) and _are_in_order(axes) and all(set(axes) <= set(value.axes) for value in values)


def _are_tokens(axes: Collection[str]) -> bool:
    return set(axes) <= TOKEN_AXES


def _ends(node: Decay) -> tuple[str, ...]:
    return tuple(filter(None, (node.row, node.column)))


def _all_axes(values: Iterable[Node]) -> set[str]:
    return {axis for value in values for axis in value.axes}


EVERY_NODE = (
    Row("a value lists known axes, each once and in order", lambda n: _are_in_order(n.axes)),
    Row(
        "places of tokens are read by functions, which only compare them",
        lambda n: all(_stands_in(n, o, Where, Step) for o in n.operands if isinstance(o, Iota)),
    ),
    Row(
        "a maximum is read as the shift of a softmax, where it has no derivative",
        lambda n: all(_stands_in(n, o, Shift) for o in n.operands if _is_maximum(o)),
    ),
)
NODES: Mapping[type[Node], tuple[Row, ...]] = {
    Input: (Row("an input's name is an identifier", lambda n: n.name.isidentifier()),),
    Iota: (Row("places are counted along one axis of tokens", lambda n: len(n.axes) == 1 and _are_tokens(n.axes)),),
    Map: (
        Row("a function reads every operand under one symbol", lambda n: len(set(n.values)) == len(n.values)),
        Row(
            "a function has no symbols but those of its operands",
            lambda n: set(symbols(n.expression)) <= set(map(placeholder, range(len(n.values)))),
        ),
        Row("a function has all axes of its operands", lambda n: _all_axes(n.values) <= set(n.axes)),
        Row("a function is made of what backends compute", lambda n: _is_computable(n.expression)),
    ),
    Contract: (
        Row("a product is summed over axes that both sides have", lambda n: _is_summed(n.over, n.left, n.right)),
        Row(
            "a product has the axes of both sides but those it is summed over",
            lambda n: set(n.axes) == _all_axes(n.operands) - set(n.over),
        ),
    ),
    Reduce: (
        Row("a reduction is a sum or a maximum", lambda n: n.operation in ("sum", "max")),
        Row("a reduction goes over axes that its operand has", lambda n: _is_summed(n.over, n.operand)),
        Row("a reduction keeps the other axes", lambda n: set(n.axes) == set(n.operand.axes) - set(n.over)),
    ),
    Rename: (
        Row(
            "a renaming gives an axis of its operand a name that no other has",
            lambda n: n.old in n.operand.axes and n.new not in n.operand.axes,
        ),
        Row(
            "an axis of tokens becomes another of tokens, one of keys one of values or the other way round",
            lambda n: _are_tokens({n.old, n.new}) or {n.old, n.new} == {"k", "v"},
        ),
        Row("a renaming keeps the other axes", lambda n: set(n.axes) == {*n.operand.axes} - {n.old} | {n.new}),
    ),
    Decay: (
        Row("a run is of a gate along tokens alone", lambda n: len(n.gate.axes) == 1 and _are_tokens(n.gate.axes)),
        Row(
            "a run has an axis of tokens for each of its ends",
            lambda n: sorted(n.axes) == sorted(_ends(n)) and _are_tokens(n.axes),
        ),
        Row(
            "a run without a row goes to the chunk's end, its last token included",
            lambda n: n.row is not None or not n.exclusive,
        ),
    ),
    Solve: (
        Row("a system is square along tokens", lambda n: len(n.matrix.axes) == 2 and _are_tokens(n.matrix.axes)),
        Row(
            "a system is strictly lower triangular, as it is made",
            lambda n: triangle(n.matrix, *n.matrix.axes) is Triangle.STRICT,
        ),
        Row(
            "the right side of a system has its rows, and one more axis",
            lambda n: len(n.right.axes) == 2 and n.right.axes[0] == n.matrix.axes[0],
        ),
        Row("a solution has the axes of the right side", lambda n: n.axes == n.right.axes),
    ),
}
"""What must hold of a node, by its kind."""

REPLACED = Row(
    "what replaces a value has its axes, or is one number", lambda old, new: new.axes == old.axes or is_constant(new)
)
"""What must hold of a node and of what a pass puts in its place."""


def _runs_backwards(node: Decay) -> bool:
    return None not in (node.row, node.column) and AXES.index(node.row) > AXES.index(node.column)


AFTER: Mapping[str, Row] = {
    "constant operand": Row(
        "no function reads a number", lambda n: not isinstance(n, Map) or not any(map(is_constant, n.values))
    ),
    "operand not needed": Row(
        "no function has an operand that it does not read",
        lambda n: not isinstance(n, Map) or len(symbols(n.expression)) == len(n.values),
    ),
    "sum of zeros": Row(
        "nothing sums up zeros",
        lambda n: not isinstance(n, Contract | Reduce) or not any(is_constant(o, 0) for o in n.operands),
    ),
    "nothing to solve": Row("no system is 0", lambda n: not isinstance(n, Solve) or not is_constant(n.matrix, 0)),
    "decay by one": Row(
        "no run is of a gate that is 1", lambda n: not isinstance(n, Decay) or not is_constant(n.gate, 1)
    ),
    "one decay": Row(
        "runs that end in a row before their column's axis go from j to t",
        lambda n: not isinstance(n, Decay) or _runs_backwards(n) or (n.row in ("t", None) and n.column in ("j", None)),
    ),
    "value spread along axes": Row(
        "no function but a spread reads what is the same along an axis",
        lambda n: not isinstance(n, Map) or is_spread(n) or not any(map(is_spread, n.values)),
    ),
    "chained": Row(
        "no sum of tiles has more than two terms",
        lambda n: not (isinstance(n, Map) and len(n.axes) > 1 and n.expression.is_Add and len(n.expression.args) > 2),
    ),
}
"""What holds of every node after a pass, or after one that goes by a rule: kinds of node that are there only before."""


def _inputs_apart(program: Program) -> Iterator[Node]:
    known = program.inputs
    return (node for node in program.nodes if isinstance(node, Input) and node.axes != known[node.name].axes)


PROGRAM = (Whole("inputs of one name have the same axes", _inputs_apart),)
"""What must hold of every program."""


def _other_outputs(before: Program, after: Program, given: Collection[str]) -> Iterator[Node]:
    ends = {name: node.axes for name, node in before.outputs.items()}
    yield from (node for name, node in after.outputs.items() if ends.pop(name, None) != node.axes)
    yield from (before.outputs[name] for name in ends)


def _other_inputs(before: Program, after: Program, given: Collection[str]) -> Iterator[Node]:
    known = {name: node.axes for name, node in before.inputs.items()}
    return (node for name, node in after.inputs.items() if name not in given and known.get(name) != node.axes)


def _twice(before: Program, after: Program, given: Collection[str]) -> Iterator[Node]:
    b = Builder()
    return (node for node in after.nodes if b._intern(node) is not node)


PASS = (
    Whole("outputs keep their names and axes", _other_outputs),
    Whole("inputs are those that there were, and those that the pass puts in", _other_inputs),
    Whole("equal values are one node", _twice),
)
"""What must hold of the programs before and after a pass, and the names of the inputs that it puts in."""


def _carried_ahead(carried: Collection[str], ahead: Program, rest: Program) -> Iterator[Node]:
    return (node for name, node in ahead.inputs.items() if name in carried)


def _handed_otherwise(carried: Collection[str], ahead: Program, rest: Program) -> Iterator[Node]:
    given = {name: node.axes for name, node in ahead.outputs.items()}
    return (node for name, node in rest.inputs.items() if given.get(name, node.axes) != node.axes)


HOISTED = (
    Whole("what runs ahead reads nothing that is carried", _carried_ahead),
    Whole("what runs ahead is read along the axes that it has", _handed_otherwise),
)
"""What must hold of the names of carried inputs, the part of a program that runs ahead, and the rest."""


def _misplaced(program: Program, order: Sequence[Node]) -> Iterator[Node]:
    done: set[Node] = set()
    for node in order:
        if node in done or not done.issuperset(node.operands):
            yield node
        done.add(node)
    yield from (node for node in program.outputs.values() if node not in done)


ORDER = (Whole("an order has every value that outputs need once, and operands first", _misplaced),)
"""What must hold of a program and an order of its nodes."""
