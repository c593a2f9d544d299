"""Cutting a program at values that are known already: nodes become inputs, or inputs plain numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mcgen.ir.program import Builder, Input, Node, Program, Rename, topological
from mcgen.ir.rebuild import rebuilt, rewritten


def cut(program: Program, at: Mapping[Node, str]) -> Program:
    """The program with the given nodes read as inputs of those names; what only they needed is left behind.

    A value and its renamings may go by one name: the input is the value then, and is renamed as that was.
    """

    def make(b: Builder, node: Node, new: Mapping[Node, Node]) -> Node:
        is_read = node in at and not (isinstance(node, Rename) and at.get(node.operand) == at[node])
        return b.input(at[node], *node.axes) if is_read else rebuilt(b, node, new)

    return rewritten(program, make, by="cut", given=at.values())


def fixed(program: Program, numbers: Mapping[str, float]) -> Program:
    """The program with inputs of those names set to plain numbers."""

    def make(b: Builder, node: Node, new: Mapping[Node, Node]) -> Node:
        is_set = isinstance(node, Input) and node.name in numbers
        return b.constant(numbers[node.name]) if is_set else rebuilt(b, node, new)

    return rewritten(program, make, by="fixed")


def remaining(program: Program, at: Collection[Node]) -> set[Node]:
    """The nodes that are left of a program cut at the given ones."""
    return set(topological(program.outputs.values(), done=at))
