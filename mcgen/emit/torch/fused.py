"""Functions that torch computes in one pass over memory, found in scalar expressions.

    x (1 + erf(x / √2)) / 2                  ->  F.gelu(x)
    g (Φ(x) + x φ(x)), the derivative's      ->  _gelu_vjp(g, x)

Written out, the first takes six passes and the second twelve, each with a tensor of its own. What multiplies a number
into a value does so as one number.
"""

from __future__ import annotations

import functools

import sympy

from mcgen.ir.derivative import slope
from mcgen.ir.program import placeholder
from mcgen.symbolic import functions


class Gelu(sympy.Function):
    """The exact gelu of x."""

    nargs = 1


class GeluVjp(sympy.Function):
    """g times the derivative of gelu at x, of arguments (g, x)."""

    nargs = 2


SPELLINGS = {Gelu: "F.gelu({})".format, GeluVjp: "_gelu_vjp({}, {})".format}

_X = placeholder(0)


@functools.cache
def _forms() -> tuple[sympy.Expr, ...]:
    """gelu of x, its first two derivatives, and the second with one exponential."""
    value = functions.gelu(_X)
    first = slope(value, _X)
    one_exponential = sympy.exp(-(_X**2) / 2) * (2 - _X**2) / sympy.sqrt(2 * sympy.pi)
    return value, first, slope(first, _X), one_exponential


def fused(expression: sympy.Expr) -> sympy.Expr:
    """The expression with what torch does in one pass as functions of their own, and gelu'' with one exponential."""
    if not expression.has(sympy.exp, sympy.erf):
        return expression
    for x in sorted(expression.free_symbols, key=str):
        if expression.has(sympy.erf(x / sympy.sqrt(2)), sympy.exp(-(x**2) / 2)):
            expression = _fused(expression, x)
    return expression.replace(_has_slope, _taken_in)


def _fused(expression: sympy.Expr, x: sympy.Symbol) -> sympy.Expr:
    value, first, bend, density = (form.xreplace({_X: x}) for form in _forms())
    expression = expression.xreplace({first: GeluVjp(sympy.S.One, x), bend: density})
    return expression.replace(lambda e: _divides(value, e), lambda e: e / value * Gelu(x))


def _divides(form: sympy.Expr, expression: sympy.Expr) -> bool:
    """Whether an expression is a product that has all factors of another but its number."""
    return set(form.as_coeff_mul()[1]) <= set(expression.as_coeff_mul()[1])


def _has_slope(expression: sympy.Expr) -> bool:
    return expression.is_Mul and any(isinstance(factor, GeluVjp) for factor in expression.args)


def _taken_in(product: sympy.Expr) -> sympy.Expr:
    """The product with its other factors as what the derivative is multiplied by."""
    taking = next(factor for factor in product.args if isinstance(factor, GeluVjp))
    return GeluVjp(taking.args[0] * product / taking, taking.args[1])
