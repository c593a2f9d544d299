"""Tile programs: one node a value, axes inferred, texts."""

from __future__ import annotations

import pytest
import sympy
import torch

from mcgen.ir.evaluate import TORCH_FUNCTIONS, evaluate
from mcgen.ir.program import AXES, Builder, Contract, Map, Node, Program, Reduce, in_order, topological
from mcgen.symbolic import functions
from mcgen.symbolic.functions import SCALAR_FUNCTIONS

X, Y = sympy.symbols("x y", real=True)
SIZES = {"t": 3, "s": 3, "m": 3, "j": 3, "n": 2, "k": 2, "v": 4, "h1": 5}


def value(b: Builder, node: Node, **inputs: torch.Tensor) -> torch.Tensor:
    inputs = inputs or {"unused": torch.zeros(1, dtype=torch.float64)}
    return evaluate(Program("p", {"y": node}), inputs, SIZES)["y"]


def test_equal_values_are_one_node() -> None:
    b = Builder()
    q, k = b.input("q", "t", "k"), b.input("k", "j", "k")
    assert b.input("q", "k", "t") is q
    assert b.contract(q, k, "k") is b.contract(q, k, "k")
    assert b.map(X * Y, {X: q, Y: q}) is b.map(X**2, {X: q})
    assert b.constant(sympy.Rational(1, 2)) is not b.constant(2)
    assert b.iota("t") is not b.iota("j")


def test_axes_are_inferred_and_in_order() -> None:
    b = Builder()
    q, k, gate = b.input("q", "k", "t"), b.input("k", "j", "k"), b.input("g", "t")
    assert q.axes == ("t", "k")
    assert b.contract(q, k, "k").axes == ("t", "j")
    assert b.product(k, gate).axes == ("t", "j", "k")
    assert b.sum(b.product(k, gate), "j", "k").axes == ("t",)
    assert b.decay(gate, "t", "j").axes == ("t", "j")
    assert b.decay(gate, None, "j").axes == ("j",)
    assert b.decay(gate, None, None).axes == ()
    assert in_order("vkjt") == ("t", "j", "k", "v")
    assert set(SIZES) <= set(AXES)


def test_a_contraction_over_an_axis_of_one_side_sums_that_side_first() -> None:
    b = Builder()
    node = b.contract(b.input("x", "t", "k"), b.input("y", "v"), "k")
    assert isinstance(node, Map)
    assert isinstance(node.values[0], Reduce)
    x, y = torch.rand(3, 2, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    torch.testing.assert_close(value(b, node, x=x, y=y), x.sum(1)[:, None] * y)


def test_a_shared_axis_not_summed_over_is_kept() -> None:
    b = Builder()
    node = b.contract(b.input("x", "n", "k"), b.input("y", "n", "k", "v"), "k")
    assert isinstance(node, Contract)
    assert node.axes == ("n", "v")
    x, y = torch.rand(2, 2, dtype=torch.float64), torch.rand(2, 2, 4, dtype=torch.float64)
    torch.testing.assert_close(value(b, node, x=x, y=y), torch.einsum("nk,nkv->nv", x, y))


def test_renaming_there_and_back_is_nothing() -> None:
    b = Builder()
    x = b.input("x", "t", "v")
    assert b.rename(b.rename(x, "t", "j"), "j", "t") is x
    assert b.rename(b.rename(x, "t", "s"), "s", "j") is b.rename(x, "t", "j")
    assert b.rename(x, "k", "h") is x


def test_a_rename_that_moves_an_axis_transposes() -> None:
    b = Builder()
    x = torch.rand(3, 3, dtype=torch.float64)
    node = b.rename(b.rename(b.input("x", "t", "j"), "t", "n"), "j", "t")
    assert node.axes == ("t", "n")
    torch.testing.assert_close(evaluate(Program("p", {"y": node}), {"x": x}, {**SIZES, "n": 3})["y"], x.mT)


def test_sums_and_products_of_nothing_and_of_one() -> None:
    b = Builder()
    assert value(b, b.total([])) == 0
    x = torch.rand(3, dtype=torch.float64)
    assert torch.equal(value(b, b.total([b.input("x", "t")]), x=x), x)
    assert torch.equal(value(b, b.total([b.input("x", "t")] * 3), x=x), 3 * x)


def test_what_sympy_puts_in_is_replaced() -> None:
    """sqrt(x y) of one value twice is sqrt(x²), which SymPy makes `Abs`: no printer knows that."""
    b = Builder()
    x = b.input("x", "t")
    node = b.map(sympy.sqrt(X * Y), {X: x, Y: x})
    assert node.expression.has(functions.Absolute)
    assert not node.expression.has(sympy.Abs)


def test_operands_come_first_and_once() -> None:
    b = Builder()
    x = b.input("x", "t")
    y = b.map(X**2, {X: x})
    order = topological([b.product(y, x), y])
    assert order[:2] == (x, y)
    assert len(set(order)) == len(order) == 3


def test_long_chains_do_not_exhaust_the_stack() -> None:
    b = Builder()
    node = b.input("x", "t")
    for _ in range(5000):
        node = b.map(X + 1, {X: node})
    assert len(Program("p", {"y": node}).nodes) == 5001


def test_text() -> None:
    b = Builder()
    gate, q = b.input("alpha", "t"), b.input("q", "t", "k")
    scores = b.contract(q, b.input("k", "j", "k"), "k")
    node = b.sum(b.map(X * Y / 2, {X: b.decay(gate, "t", "j"), Y: scores}), "j")
    assert str(Program("example", {"y": node, "g": gate})).splitlines() == [
        "program example",
        "  %0[t] = input alpha",
        "  %1[t j] = product of %0[i] over j < i <= t",
        "  %2[t k] = input q",
        "  %3[j k] = input k",
        "  %4[t j] = sum[k] %2 * %3",
        "  %5[t j] = %1*%4/2",
        "  %6[t] = sum[j] %5",
        "  output y = %6",
        "  output g = %0",
    ]


def test_every_kind_of_node_has_a_text() -> None:
    b = Builder()
    x = b.input("x", "t", "j")
    nodes = [
        b.iota("t"),
        b.max(x, "j"),
        b.rename(x, "t", "s"),
        b.decay(b.input("g", "t"), None, None, False),
        b.solve(x, b.input("v", "t", "v"), True),
    ]
    text = str(Program("p", {str(i): node for i, node in enumerate(nodes)}))
    for piece in ("iota", "max[j]", "with t as s", "over start < i <= end", "ᵀ x +"):
        assert piece in text


def test_the_evaluator_knows_every_function_of_the_language() -> None:
    x = torch.tensor([0.3, 0.9, 2.0], dtype=torch.float64)
    for name, function in SCALAR_FUNCTIONS.items():
        b = Builder()
        arguments = (X, X / 2) if name in ("min", "max") else (X,)
        assert torch.isfinite(value(b, b.map(function(*arguments), {X: b.input("x", "t")}), x=x)).all()
    assert all(isinstance(function, type) for function in TORCH_FUNCTIONS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_have_the_inputs_type(dtype: torch.dtype) -> None:
    b = Builder()
    node = b.total([b.iota("t"), b.constant(sympy.Rational(1, 3)), b.input("x", "t")])
    assert value(b, node, x=torch.zeros(3, dtype=dtype)).dtype is dtype
