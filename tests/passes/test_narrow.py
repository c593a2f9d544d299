"""Row factors move to the side of a product that has fewer numbers, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mcgen.ir.evaluate import evaluate
from mcgen.ir.program import Builder, Map, Node, Program
from mcgen.passes.narrow import narrow

SIZES = {"k": 4, "h1": 64}
LENGTHS = {"t": 5, "j": 5, "k": 4, "h1": 64}


def to_other_side(b: Builder) -> Node:
    return b.contract(b.input("k", "j", "k"), b.product(b.input("c", "j"), b.input("x", "j", "h1")), "j")


def outside(b: Builder) -> Node:
    return b.contract(b.product(b.input("c", "t"), b.input("x", "t", "h1")), b.input("M", "k", "h1"), "h1")


def inside(b: Builder) -> Node:
    return b.product(b.input("c", "t"), b.contract(b.input("q", "t", "k"), b.input("M", "k", "h1"), "k"))


def agreement(b: Builder) -> Node:
    """A row's sum beside the product that gives it more cheaply, which something else needs too."""
    x, q, memory = b.input("x", "t", "h1"), b.input("q", "t", "k"), b.input("M", "k", "h1")
    total = b.sum(b.product(x, b.contract(q, memory, "k")), "h1")
    return b.total([b.contract(x, memory, "h1"), total])


@pytest.mark.parametrize("make", [to_other_side, outside, inside, agreement])
def test_no_function_of_a_wide_row_is_left(make: Callable[[Builder], Node]) -> None:
    program = Program("p", {"y": make(Builder())})
    moved = narrow(program, SIZES)
    assert [node for node in program.nodes if _is_wide(node)] and not [node for node in moved.nodes if _is_wide(node)]
    inputs = {name: torch.randn([LENGTHS[a] for a in node.axes]).double() for name, node in program.inputs.items()}
    torch.testing.assert_close(evaluate(moved, inputs, LENGTHS)["y"], evaluate(program, inputs, LENGTHS)["y"])


def _is_wide(node: Node) -> bool:
    return isinstance(node, Map) and "h1" in node.axes


@pytest.mark.parametrize("make", [to_other_side, outside, inside, agreement])
def test_nothing_moves_where_both_sides_are_alike(make: Callable[[Builder], Node]) -> None:
    program = Program("p", {"y": make(Builder())})
    assert str(narrow(program, {"k": 64, "h1": 64})) == str(program)


def test_a_product_that_is_read_elsewhere_stays_one() -> None:
    """Else it would be made twice."""
    b = Builder()
    product = b.contract(b.input("q", "t", "k"), b.input("M", "k", "h1"), "k")
    program = Program("p", {"y": b.product(b.input("c", "t"), product), "z": product})
    assert str(narrow(program, SIZES)) == str(program)
