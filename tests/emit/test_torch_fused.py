"""What torch computes in one pass is found in expressions, and is worth what was written out."""

from __future__ import annotations

import pytest
import sympy
import torch

from mcgen.emit.text.scalar import number
from mcgen.emit.torch.fused import Gelu, GeluVjp, fused
from mcgen.emit.torch.printer import SCALARS
from mcgen.ir.evaluate import scalar
from mcgen.symbolic import functions

X, G = sympy.symbols("x g", real=True)
VALUE = functions.gelu(X)
SLOPE = sympy.diff(VALUE, X)
BEND = sympy.diff(SLOPE, X)


def _gelu_vjp(g: torch.Tensor | float, x: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten.gelu_backward(g, x)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (VALUE, Gelu(X)),
        (G * VALUE, G * Gelu(X)),
        (-3 * VALUE, -3 * Gelu(X)),
        (G * SLOPE, GeluVjp(G, X)),
        (G - 2 * G * SLOPE, G + GeluVjp(-2 * G, X)),
        (G * sympy.exp(X), G * sympy.exp(X)),
    ],
)
def test_gelu_and_its_derivative_are_found(expression: sympy.Expr, expected: sympy.Expr) -> None:
    assert fused(expression) == expected


def test_the_second_derivative_has_one_exponential() -> None:
    assert sympy.simplify(fused(G * BEND) - G * BEND) == 0
    assert len(fused(G * BEND).atoms(sympy.exp)) == 1
    assert not fused(G * BEND).has(sympy.erf)


@pytest.mark.parametrize("expression", [VALUE, G * VALUE, G * SLOPE, G * BEND, G + SLOPE * X * G, G * SLOPE * VALUE])
def test_the_text_has_the_expression_s_value(expression: sympy.Expr) -> None:
    x = torch.linspace(-7, 7, 401, dtype=torch.float64)
    g = torch.linspace(2, -3, 401, dtype=torch.float64)
    text = SCALARS.text(fused(expression), {X: "x", G: "g"})
    found = eval(text, {"x": x, "g": g, "torch": torch, "F": torch.nn.functional, "_gelu_vjp": _gelu_vjp})
    torch.testing.assert_close(found, scalar(expression, {X: x, G: g}, x), rtol=1e-13, atol=1e-14)


def test_numbers_of_a_product_are_multiplied_beforehand() -> None:
    text = SCALARS.text(sympy.sqrt(2) * X * G / 2, {X: "x", G: "g"})
    assert text.startswith(number(sympy.sqrt(2) / 2))
    assert text.count("*") == 2
    assert SCALARS.text(X / 3, {X: "x"}) == "x / 3.0"
