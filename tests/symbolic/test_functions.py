"""The compiler's own scalar functions: of numbers they are numbers, their derivatives are autograd's, nothing hangs."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import sympy
import torch

from mcgen.ir.evaluate import TORCH_FUNCTIONS, scalar
from mcgen.spec.grammar import FUNCTIONS, Call, Number, Span, evaluate
from mcgen.symbolic.functions import (
    SCALAR_FUNCTIONS,
    Absolute,
    Larger,
    Maximum,
    Minimum,
    Power,
    RealFunction,
    Relu,
    Sigmoid,
    Sign,
    Softplus,
    Step,
    Where,
    settled,
)

X, Y = sympy.symbols("x y", real=True)
NOWHERE = Span(0, 0)
VALUES = (-2.5, -1.0, 0.0, 0.25, 1.0, 3.0)


def torch_value(expression: sympy.Expr, x: float, y: float = 0.0) -> torch.Tensor:
    tensors = {symbol: torch.tensor(value, dtype=torch.float64) for symbol, value in ((X, x), (Y, y))}
    return scalar(expression, tensors, tensors[X])


@pytest.mark.parametrize("name", SCALAR_FUNCTIONS)
def test_of_a_number_every_function_is_that_number(name: str) -> None:
    count = FUNCTIONS[name]
    for values in itertools.product(VALUES, repeat=count):
        if (name == "log" and values[0] <= 0) or (name == "sqrt" and values[0] < 0):
            continue
        found = SCALAR_FUNCTIONS[name](*map(sympy.Rational, map(repr, values)))
        wanted = evaluate(Call(name, tuple(Number(value, NOWHERE) for value in values), NOWHERE), {})
        assert found.is_number
        assert float(found) == pytest.approx(wanted, rel=1e-14, abs=1e-15)


@pytest.mark.parametrize("name", SCALAR_FUNCTIONS)
def test_slopes_are_those_of_autograd(name: str) -> None:
    """At kinks too."""
    arguments = (X, Y)[: FUNCTIONS[name]]
    whole = SCALAR_FUNCTIONS[name](*arguments)
    for values in itertools.product((0.25, 1.0, 3.0) if name in ("log", "sqrt") else VALUES, repeat=len(arguments)):
        tensors = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]
        y = scalar(whole, dict(zip(arguments, tensors, strict=True)), tensors[0])
        slopes = torch.autograd.grad(y, tensors, allow_unused=True, materialize_grads=True)
        for argument, expected in zip(arguments, slopes, strict=True):
            got = torch_value(sympy.diff(whole, argument), *values)
            torch.testing.assert_close(got.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("made", "is_"),
    [
        (Absolute(sympy.Rational(-1, 2)), sympy.Rational(1, 2)),
        (Sign(-sympy.pi), -1),
        (Step(0), 0),
        (Relu(-sympy.sqrt(2)), 0),
        (Larger(X, X), sympy.Rational(1, 2)),
        (Larger(sympy.pi, 3), 1),
        (Maximum(X, X), X),
        (Minimum(2, sympy.pi), 2),
        (Sigmoid(0), sympy.Rational(1, 2)),
        (Softplus(0), sympy.log(2)),
        (Where(X, Y, Y), Y),
        (Where(-1, X, Y), Y),
        (Where(X, 1, 0), Step(X)),
        (Power(X, 2), X**2),
        (Power(sympy.Integer(2), sympy.Integer(-3)), sympy.Rational(1, 8)),
    ],
    ids=str,
)
def test_what_needs_no_function(made: sympy.Expr, is_: object) -> None:
    assert made == is_


@pytest.mark.parametrize("undefined", [sympy.nan, sympy.zoo, sympy.oo])
@pytest.mark.parametrize(
    "make", [Absolute, Sign, Step, Relu, Sigmoid, Softplus, lambda x: Maximum(x, X), lambda x: Power(X, x)]
)
def test_of_no_number_there_is_no_value(make: Callable[[sympy.Expr], sympy.Expr], undefined: sympy.Expr) -> None:
    assert make(undefined) is sympy.nan


def test_what_is_not_chosen_may_be_undefined() -> None:
    assert Where(0, sympy.zoo, X) == X
    assert Where(sympy.nan, X, Y) is sympy.nan


@pytest.mark.parametrize(
    ("base", "exponent"),
    [
        ("7", "1e30"),
        ("1e-3", "-1e30"),
        ("1e30", "1e30"),
        ("1.00000000001", "1e9"),
        ("0.4534470315306477", "0.3553674479010354"),
    ],
)
def test_powers_of_numbers_are_not_written_out(base: str, exponent: str) -> None:
    value = Power(sympy.Rational(base), sympy.Rational(exponent))
    assert value is sympy.nan or (value.is_Rational and value.p.bit_length() < 2000)


@pytest.mark.parametrize(
    "expression",
    [
        Power(2 * X, sympy.Integer(10**30)),
        Power(X**100, sympy.Integer(100)),
        Power(3 * X, sympy.Rational("0.123456789")),
    ],
)
def test_powers_that_would_grow_stay_as_they_are(expression: sympy.Expr) -> None:
    assert isinstance(expression, Power)
    assert not sympy.diff(expression, X).has(sympy.log)


def test_a_power_keeps_its_ends() -> None:
    """0**0 = 1 with slope 0 by either, where x**(y - 1) and x**y log(x) are infinite."""
    power = Power(X, Y)
    assert torch_value(power, 0.0, 0.0) == 1
    for symbol in (X, Y):
        assert torch_value(sympy.diff(power, symbol), 0.0, 0.0) == 0
    assert torch_value(sympy.diff(power, X), 0.0, 1.0) == 1
    assert torch_value(sympy.diff(power, Y), 0.0, 2.0) == 0


def test_the_functions_sympy_puts_in_are_replaced() -> None:
    assert settled(sympy.sqrt(X**2) + sympy.sign(X)) == Absolute(X) + Sign(X)


def test_saying_that_values_are_real_spares_a_search() -> None:
    """Without it, this derivative's derivative takes minutes."""
    silu = X * Sigmoid(X)
    row = sympy.diff(sympy.tanh((silu - Absolute(X)) ** 100 * Relu(Sign(X))), X)
    assert sympy.diff(row, X).has(X)


def test_every_function_has_a_meaning_in_torch() -> None:
    assert set(RealFunction.__subclasses__()) <= set(TORCH_FUNCTIONS)
