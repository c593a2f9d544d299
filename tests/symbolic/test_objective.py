"""Objectives to error rows."""

from __future__ import annotations

import pytest
import sympy
import torch

from mcgen.ir.evaluate import scalar
from mcgen.spec.grammar import parse
from mcgen.symbolic.objective import PREDICTION, VALUE, ErrorRow, error_row, expanded, integrand

P, V = PREDICTION, VALUE


def row(text: str) -> ErrorRow:
    return error_row(parse(text))


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("sum((p - v)**2)/2", P - V),
        ("sum((p - v)**2)", 2 * P - 2 * V),
        ("-dot(p, v)", -V),
        ("dot(p, p - v)", 2 * P - V),
        ("3*sum(p)/2 - dot(v, v)", sympy.Rational(3, 2)),
        ("sum((p - v)**2 - p**2 + 2*p*v)", sympy.S.Zero),
        ("sum(v*(p - v)**2 - v*p**2)", -2 * V**2),
        ("-(sum(p*v) + sum(v))*2", -2 * V),
    ],
)
def test_rows(objective: str, expected: sympy.Expr) -> None:
    assert sympy.expand(row(objective).expression - expected) == 0


@pytest.mark.parametrize(
    "objective",
    [
        "sum(sqrt(1 + (p - v)**2))",
        "sum(log(cosh(p - v)) + tanh(p)*erf(v) + abs(p) + relu(p)*v + softplus(p*v))",
        "dot(exp(-p**2), gelu(v)) - 0.5*dot(p, silu(p - v))",
        "sum(max(p, v)**3 + min(p, 0.5) + sign(p)*p)",
    ],
)
def test_rows_and_curvatures_are_those_of_autograd(objective: str) -> None:
    generator = torch.Generator().manual_seed(0)
    p, v = (torch.randn(50, generator=generator, dtype=torch.float64) for _ in "pv")
    p.requires_grad_()
    values = {P: p, V: v}
    found = row(objective)
    e = scalar(found.expression, values, p)
    (wanted,) = torch.autograd.grad(scalar(integrand(parse(objective)), values, p).sum(), p)
    torch.testing.assert_close(e.detach(), wanted, rtol=1e-12, atol=1e-12)
    (slope,) = torch.autograd.grad(e.sum(), p)
    torch.testing.assert_close(scalar(found.curvature, values, p).detach().expand_as(p), slope, rtol=1e-12, atol=1e-12)


def test_a_quotient_that_overflows_is_a_function_that_does_not() -> None:
    assert row("sum(log(cosh(p - v)))").expression == sympy.tanh(P - V)
    assert row("sum(cosh(p - v))").expression == sympy.sinh(P - V)


def test_what_reads_the_memory() -> None:
    assert row("sum((p - v)**2)").reads_memory
    assert row("sum(abs(p))").reads_memory
    assert not row("-dot(p, v)").reads_memory
    assert not row("dot(p, v) - dot(p, p)/2 + sum(p**2)/2").reads_memory


@pytest.mark.parametrize(
    ("objective", "affine"),
    [
        ("sum((p - v)**2)/2", (1, -V)),
        ("sum((p - v)**2) + dot(p, exp(v))", (2, sympy.exp(V) - 2 * V)),
        ("-dot(p, v)", (0, -V)),
        ("sum((p + 1)*(p - v))", (2, 1 - V)),
        ("sum(p**4)", None),
        ("sum(v*p**2)", None),
        ("sum(sqrt(1 + p**2))", None),
        ("sum(abs(p - v))", None),
        ("sum(relu(p) + p**2)", None),
    ],
)
def test_affine_rows(objective: str, affine: tuple[object, sympy.Expr] | None) -> None:
    found = row(objective).affine
    if affine is None:
        assert found is None
    else:
        assert found[0] == affine[0]
        assert sympy.expand(found[1] - affine[1]) == 0


def test_long_polynomials_are_left_alone() -> None:
    long = (P + V + 1) ** 100
    assert expanded(long) == long
    assert expanded((P - V) ** 2) == P**2 - 2 * P * V + V**2
    assert row("sum(((p - v)**50 + (p + v)**50)**2)").affine is None
