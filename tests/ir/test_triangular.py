"""Triangles, against values: what is said to be 0 is, and the systems of rules are said to be strictly triangular."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import sympy
import torch

from mcgen.ir.evaluate import evaluate
from mcgen.ir.program import Builder, Node, Program, placeholder
from mcgen.ir.triangular import Triangle, triangle
from mcgen.symbolic.functions import Absolute, Where
from tests.ir.values import draw, sizes

B = Builder()
X, Y, Z = map(placeholder, range(3))
GATE, SCORES = B.input("gate", "t"), B.contract(B.input("q", "t", "k"), B.input("k", "j", "k"), "k")
LOWER, STRICT = B.decay(GATE, "t", "j"), B.decay(GATE, "t", "j", exclusive=True)


def mask(reach: sympy.Expr, value: Node = SCORES) -> Node:
    """A value where `reach`, of the row X and the column Y, is more than 0."""
    return B.map(Where(reach, Z, 0), {X: B.iota("t"), Y: B.iota("j"), Z: value})


def between(left: Node, right: Node) -> Node:
    return B.contract(B.rename(left, "j", "s"), B.rename(right, "t", "s"), "s")


VALUES: Mapping[str, tuple[Node, Triangle]] = {
    "a run": (LOWER, Triangle.LOWER),
    "a run that leaves out its last token": (STRICT, Triangle.STRICT),
    "a run to earlier tokens": (B.decay(GATE, "j", "t"), Triangle.NONE),
    "scores": (SCORES, Triangle.NONE),
    "scores times a run": (B.product(SCORES, STRICT, GATE), Triangle.STRICT),
    "a run and a strict one": (B.total([LOWER, STRICT]), Triangle.LOWER),
    "a function that is not 0 of 0": (B.map(sympy.exp(X), {X: STRICT}), Triangle.NONE),
    "a run over another": (B.map(X / Y, {X: STRICT, Y: LOWER}), Triangle.NONE),
    "zero": (B.constant(0), Triangle.STRICT),
    "one": (B.constant(1), Triangle.NONE),
    "a causal mask": (mask(X - Y + 1), Triangle.LOWER),
    "a strict mask": (mask(X - Y), Triangle.STRICT),
    "a mask further ahead": (mask(X - Y + 2), Triangle.NONE),
    "a mask of later tokens": (mask(Y - X), Triangle.NONE),
    "a diagonal": (mask(1 - Absolute(X - Y)), Triangle.LOWER),
    "a masked run": (mask(X - Y + 2, STRICT), Triangle.STRICT),
    "a product of runs": (between(LOWER, LOWER), Triangle.LOWER),
    "a product of a run and a strict one": (between(LOWER, STRICT), Triangle.STRICT),
    "a product of a strict one and a run": (between(STRICT, LOWER), Triangle.STRICT),
    "a product of a run and scores": (between(STRICT, SCORES), Triangle.NONE),
    "a product of transposes": (B.contract(B.rename(STRICT, "t", "s"), SCORES, "j"), Triangle.NONE),
    "a product along the columns": (B.contract(SCORES, B.input("x", "j", "v"), "j"), Triangle.NONE),
    "a solution": (B.solve(STRICT, LOWER), Triangle.LOWER),
    "a solution of a strict right side": (B.solve(STRICT, STRICT), Triangle.STRICT),
    "a solution of a full right side": (B.solve(STRICT, SCORES), Triangle.NONE),
    "a solution of a transposed system": (B.solve(STRICT, LOWER, transposed=True), Triangle.NONE),
}


@pytest.mark.parametrize(("node", "known"), VALUES.values(), ids=VALUES)
def test_what_is_said_to_be_zero_is(node: Node, known: Triangle) -> None:
    assert triangle(node, "t", "j") is known
    program = Program("p", {"y": B.broadcast(node, ("t", "j"))})
    inputs = {"unused": torch.zeros(1, dtype=torch.float64), **draw(program, sizes(), 0)}
    if known and set(node.axes) <= {"t", "j"}:
        y = evaluate(program, inputs, sizes())["y"]
        assert torch.equal(y, y.tril(-1 if known is Triangle.STRICT else 0))


def test_a_value_that_a_program_was_cut_at_counts_as_what_it_was() -> None:
    system = B.input("system", "t", "j")
    assert triangle(system, "t", "j") is Triangle.STRICT
    assert triangle(B.rename(system, "j", "s"), "t", "s") is Triangle.STRICT
    assert triangle(B.input("q", "t", "k"), "t", "j") is Triangle.NONE
