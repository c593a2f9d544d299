"""Splitting a program that is run once a chunk into what needs no carried state, and what does.

    before    x' = f(g(chunk), x)                     run chunk after chunk
    after     a = g(chunk)                            for all chunks at once
              x' = f(a, x)                            chunk after chunk

What stays in the loop is all that has to wait for the chunk before: for a rule whose writes do not depend on the state,
a product and a sum of the state's size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from mcgen.ir import check
from mcgen.ir.cut import cut
from mcgen.ir.program import Builder, Input, Map, Node, Program, Rename, is_constant, placeholder
from mcgen.ir.rebuild import rebuilt, rewritten


def hoist(program: Program, carried: Collection[str], label: Callable[[Node], str]) -> tuple[Program, Program]:
    """The part that needs none of the carried inputs, and the rest, which takes the former's outputs as inputs.

    `label` names a value that passes from one to the other. Other inputs and plain numbers the rest reads as they are;
    numbers along tokens it does not, for it has no inputs that say how many tokens there are.
    """
    waiting = reached(program, carried)
    passed = {node: label(node) for node in program.nodes if not (node in waiting or _is_at_hand(node))}
    rest = cut(program, passed)
    read = rest.inputs
    first = {name: node for node, name in reversed(passed.items())}  # a value comes before its renamings
    ahead = Program(f"{program.name}_ahead", {name: first[name] for name in passed.values() if name in read})
    if check.is_on():
        check.hoisted(carried, ahead, rest)
    return ahead, rest


def _is_at_hand(node: Node) -> bool:
    """Whether a value is a plain number, or an input along other axes: nothing to compute."""
    while isinstance(node, Rename):
        node = node.operand
    return (is_constant(node) and not node.axes) or isinstance(node, Input)


def part(program: Program, carried: Collection[str]) -> Program:
    """Gives what a sum or product holds besides carried values a node of its own: x + y + s -> (x + y) + s."""
    waiting = reached(program, carried)

    def make(b: Builder, node: Node, new: Mapping[Node, Node]) -> Node:
        return _parted(b, node, new, waiting) if node in waiting else rebuilt(b, node, new)

    return rewritten(program, make, by="part")


def _parted(b: Builder, node: Node, new: Mapping[Node, Node], waiting: Collection[Node]) -> Node:
    if not isinstance(node, Map) or not (node.expression.is_Add or node.expression.is_Mul):
        return rebuilt(b, node, new)
    values = {placeholder(i): value for i, value in enumerate(node.values)}
    apart, rest = node.expression.as_independent(*(s for s, value in values.items() if value in waiting))
    if len(apart.free_symbols) < 2:
        return rebuilt(b, node, new)
    known = b.map(apart, {symbol: new[value] for symbol, value in values.items()})
    kind = "ahead" if node.expression.is_Add else "factor"
    b.call(known, f"{node.label.name}_{kind}" if node.label else None, part=True)
    symbol = placeholder(len(values))
    whole = rest + symbol if node.expression.is_Add else rest * symbol
    return b.map(whole, {**{s: new[value] for s, value in values.items()}, symbol: known}, node.axes)


def reached(program: Program, inputs: Collection[str]) -> set[Node]:
    """Every node that depends on one of the inputs."""
    found: set[Node] = set()
    for node in program.nodes:
        if (isinstance(node, Input) and node.name in inputs) or any(operand in found for operand in node.operands):
            found.add(node)
    return found
