"""What must hold of every program, as a table: held after each rewrite in the tests, and where stages are dumped.

A rewrite that breaks a program is named where it does it, not by what is printed wrong of it later.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from mcgen.dump import VARIABLE as DUMP
from mcgen.errors import InternalError
from mcgen.ir.program import (
    TOKEN_AXES,
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
    describe,
    in_order,
    placeholder,
    symbols,
)

VARIABLE = "MCGEN_CHECK"
"""Turns the check on; so does a dump."""
Table = Mapping[str, Callable[[Node], bool]]


def _axes(*nodes: Node) -> set[str]:
    return {axis for node in nodes for axis in node.axes}


def _laid(node: Node) -> tuple[str, ...]:
    """A value's axes, one token axis as good as another."""
    return tuple("tokens" if axis in TOKEN_AXES else axis for axis in node.axes)


def _made_of(node: Node) -> tuple:
    return type(node), *(value for name, value in vars(node).items() if name != "label")


EVERY: Table = {
    "axes stand in their order, each once": lambda node: node.axes == in_order(node.axes),
}
OF_KIND: Mapping[type[Node], Table] = {
    Input: {},
    Iota: {"it counts along one axis": lambda node: len(node.axes) == 1},
    Map: {
        "it has the axes of its operands": lambda node: _axes(*node.values) <= set(node.axes),
        "it reads its operands, each once": lambda node: (
            set(symbols(node.expression)) == {placeholder(i) for i in range(len(node.values))}
            and len(set(node.values)) == len(node.values)
        ),
    },
    Contract: {
        "both factors have what is summed over": lambda node: (
            bool(node.over) and set(node.over) <= set(node.left.axes) & set(node.right.axes)
        ),
        "it has what is left of the factors' axes": lambda node: (
            set(node.axes) == _axes(node.left, node.right) - set(node.over)
        ),
    },
    Reduce: {
        "it is a sum or a maximum": lambda node: node.operation in ("sum", "max"),
        "its operand has what it goes over": lambda node: bool(node.over) and set(node.over) <= set(node.operand.axes),
        "it has what is left of the operand's axes": lambda node: (
            set(node.axes) == set(node.operand.axes) - set(node.over)
        ),
    },
    Rename: {
        "tokens take the place of tokens, values that of keys": lambda node: (
            {node.old, node.new} <= TOKEN_AXES or {node.old, node.new} == {"k", "v"}
        ),
        "its operand has the old axis and not the new": lambda node: (
            node.old in node.operand.axes and node.new not in node.operand.axes
        ),
        "it has the operand's axes but that one": lambda node: (
            set(node.axes) == set(node.operand.axes) - {node.old} | {node.new}
        ),
    },
    Decay: {
        "a gate has a number a token": lambda node: len(node.gate.axes) == 1 and _axes(node.gate) <= TOKEN_AXES,
        "runs go between different tokens": lambda node: (
            (node.row is None or node.row != node.column) and set(node.axes) <= TOKEN_AXES
        ),
        "it has its ends' axes": lambda node: node.axes == in_order(filter(None, (node.row, node.column))),
    },
    Solve: {
        "the system is square in tokens": lambda node: (
            len(node.matrix.axes) == 2 and set(node.matrix.axes) <= TOKEN_AXES
        ),
        "the right side stands along its rows": lambda node: (
            node.matrix.axes[0] in node.right.axes and node.axes == node.right.axes
        ),
    },
}
"""What must hold of a node by its kind, its operands given."""
IN_PLACE: Mapping[str, Callable[[Node, Node], bool]] = {
    "it has the axes of the value in whose place it stands, or is a number": lambda node, value: (
        node.axes == value.axes or (isinstance(node, Map) and not node.values and not node.axes)
    )
}
"""What must hold of the result of a rule."""
AFTER: Mapping[str, Mapping[str, Callable[[Program, Program], bool]]] = {
    "": {
        "outputs keep their names and axes": lambda before, program: _outputs(before) == _outputs(program),
        "an input has the same axes, whichever tokens": lambda _, program: (
            len({(n.name, _laid(n)) for n in program.nodes if isinstance(n, Input)}) == len(program.inputs)
        ),
        "equal values are one": lambda _, program: len(set(map(_made_of, program.nodes))) == len(program.nodes),
    },
    "fixed": {"nothing is read that was not": lambda before, program: program.inputs.keys() <= before.inputs.keys()},
    "simplify": {"nothing is read that was not": lambda before, program: program.inputs.keys() <= before.inputs.keys()},
    "chained": {
        "sums of tiles have two terms": lambda _, program: (
            not any(
                isinstance(n, Map) and len(n.axes) > 1 and n.expression.is_Add and len(n.expression.args) > 2
                for n in program.nodes
            )
        )
    },
}
"""What must hold of a program after a rewrite, of that name or of any, and of what it was before."""


def is_on() -> bool:
    return VARIABLE in os.environ or bool(os.environ.get(DUMP))


def check(before: Program, program: Program, rewrite: str) -> None:
    """Raises InternalError where something does not hold of a program after a rewrite, with the rewrite's name."""
    for node in program.nodes:
        check_node(node, rewrite)
    for words, holds in {**AFTER[""], **AFTER.get(rewrite, {})}.items():
        if not holds(before, program):
            raise InternalError(f"after {rewrite}, not of program {program.name}: {words}", stage="ir")


def check_node(node: Node, rewrite: str, instead_of: Node | None = None) -> None:
    """Raises InternalError where something does not hold of a node, with the name of the rewrite that made it.

    `instead_of` is the value in whose place it stands.
    """
    for words, holds in {**EVERY, **OF_KIND[type(node)], **(IN_PLACE if instead_of else {})}.items():
        if not (holds(node, instead_of) if words in IN_PLACE else holds(node)):
            operands = {operand: f"x{n}[{' '.join(operand.axes)}]" for n, operand in enumerate(node.operands)}
            text = f"[{' '.join(node.axes)}] = {describe(node, operands)}"
            raise InternalError(f"after {rewrite}, not of {text}: {words}", stage="ir")


def _outputs(program: Program) -> dict[str, tuple[str, ...]]:
    return {label: node.axes for label, node in program.outputs.items()}
