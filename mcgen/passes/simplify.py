"""Rewrites of tile programs, as a table: each has a name, what it turns into what, and a function that does it.

`simplify` rebuilds a program bottom-up and applies the table at every node until nothing changes. Sharing of equal
values comes with rebuilding, since a Builder keeps one node a value; what no output reaches is left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import sympy

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
    is_identity,
    placeholder,
    symbols,
)
from mcgen.ir.rebuild import rebuilt, rewritten
from mcgen.symbolic.functions import Where


@dataclass(frozen=True)
class Rule:
    """A rewrite: `apply` gives the node to use instead, or None where it does not fit."""

    name: str
    before: str
    after: str
    apply: Callable[[Builder, Node], Node | None]


def _fold(b: Builder, node: Node) -> Node | None:
    if not isinstance(node, Map) or not any(map(is_constant, node.values)):
        return None
    values = {placeholder(i): value for i, value in enumerate(node.values)}
    numbers = {symbol: value.expression for symbol, value in values.items() if is_constant(value)}
    rest = {symbol: value for symbol, value in values.items() if symbol not in numbers}
    return b.map(node.expression.subs(numbers), rest, node.axes if node.expression.subs(numbers) != 0 else ())


def _unused(b: Builder, node: Node) -> Node | None:
    """A Map whose simplified expression no longer needs an operand is built again without it."""
    if not isinstance(node, Map) or len(symbols(node.expression)) == len(node.values):
        return None
    return b.map(node.expression, {placeholder(i): value for i, value in enumerate(node.values)}, node.axes)


def _zero_sum(b: Builder, node: Node) -> Node | None:
    if isinstance(node, (Contract, Reduce)) and any(is_constant(operand, 0) for operand in node.operands):
        return b.constant(0)
    return None


def _unit_decay(b: Builder, node: Node) -> Node | None:
    if not isinstance(node, Decay) or not is_constant(node.gate, 1):
        return None
    if node.row is None or node.column is None:
        return b.constant(1)
    row, column = sympy.symbols("row column", real=True)
    reach = row - column if node.exclusive else row - column + 1
    mask = Where(reach, sympy.S.One, sympy.S.Zero)
    return b.map(mask, {row: b.iota(node.row), column: b.iota(node.column)})


RULES = (
    Rule("constant operand", "f(x, c)", "f_c(x)", _fold),
    Rule("identity", "f(x) = x", "x", lambda b, node: node.operands[0] if is_identity(node) else None),
    Rule("operand not needed", "f(x, y) that reads x only", "f(x)", _unused),
    Rule(
        "constant spread along axes",
        "c[t]",
        "c",
        lambda b, node: b.constant(node.expression) if is_constant(node) and node.axes else None,
    ),
    Rule("sum of zeros", "sum 0 * x", "0", _zero_sum),
    Rule(
        "nothing to solve",
        "x with x = 0 x + b",
        "b",
        lambda b, node: node.right if isinstance(node, Solve) and is_constant(node.matrix, 0) else None,
    ),
    Rule("decay by one", "product of 1 over j < i <= t", "1 where j <= t, else 0", _unit_decay),
    Rule(
        "constant along another axis",
        "c with t as j",
        "c",
        lambda b, node: node.operand if isinstance(node, Rename) and node.old not in node.operand.axes else None,
    ),
)


def simplify(program: Program, rules: tuple[Rule, ...] = RULES) -> Program:
    """The program after the rewrites, with equal values shared and nothing that no output reaches."""
    applied = _checked(program.name, rules) if check.is_on() else rules
    make = lambda b, node, new: _settled(b, rebuilt(b, node, new), applied)  # noqa: E731
    return rewritten(program, make, by="simplify", rules=[rule.name for rule in rules])


def _checked(program: str, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules, with everything that they make of a program's values checked."""
    check_of = check.Check(program)

    def apply(rule: Rule, b: Builder, node: Node) -> Node | None:
        check_of.value("before any rule", node)
        result = rule.apply(b, node)
        if result is not None:
            check_of.replaced(f'after "{rule.name}"', node, result)
        return result

    return tuple(replace(rule, apply=partial(apply, rule)) for rule in rules)


def _settled(b: Builder, node: Node, rules: tuple[Rule, ...]) -> Node:
    while True:
        changed = next((result for rule in rules if (result := rule.apply(b, node)) is not None), None)
        if changed is None:
            return node
        node = changed


def select(program: Program, outputs: Mapping[str, str] | list[str], name: str) -> Program:
    """The part of a program that computes the named outputs, renamed where a mapping is given."""
    wanted = outputs if isinstance(outputs, Mapping) else {label: label for label in outputs}
    return Program(name, {label: program.outputs[source] for label, source in wanted.items()})
