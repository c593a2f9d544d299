"""Scalar functions SymPy lacks, or whose own derivative is no good for floats: each with a derivative that is one.

SymPy's `Abs`, `Max` and `Heaviside` differentiate to Dirac deltas and complex-argument forms; these differentiate to
what autograd gives, including at the kink. `sigmoid`, `softplus` and their kin stay whole so that a printer can use
the form that does not overflow. Of numbers, every one of them is a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import sympy
from sympy import Function

_UNDEFINED = {sympy.nan, sympy.zoo, sympy.oo, -sympy.oo}


def _known(*values: sympy.Expr) -> bool:
    """Whether values are real numbers, which can be computed with and compared."""
    return all(value.is_number and value.is_extended_real for value in values)


def _indicator(condition: sympy.Basic) -> sympy.Expr:
    return sympy.S.One if condition else sympy.S.Zero


class RealFunction(Function):
    """A function of real values with real values: saying so spares SymPy long searches for imaginary parts.

    Of what is no real number it is undefined.
    """

    is_real = True

    decisive: int | None = None
    """How many of the arguments have to be real numbers; all for None."""

    of_numbers: Callable[..., sympy.Expr | None] = staticmethod(lambda *numbers: None)
    """What it is of numbers; None where it stays as it is."""

    of_equal: Callable[[sympy.Expr], sympy.Expr] | None = None
    """What it is of two equal values, where that takes no number."""

    slopes: Callable[..., tuple[sympy.Expr, ...]] = staticmethod(lambda *values: (sympy.S.Zero,) * len(values))
    """Its derivatives by each argument."""

    def __new__(cls, *args: sympy.Expr, **options: bool) -> sympy.Expr:
        return sympy.nan if _UNDEFINED & {*args[: cls.decisive]} else super().__new__(cls, *args, **options)

    @classmethod
    def eval(cls, *args: sympy.Expr) -> sympy.Expr | None:
        if cls.of_equal is not None and args[0] == args[1]:
            return cls.of_equal(args[0])
        return cls.of_numbers(*args) if _known(*args[: cls.decisive]) else None

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return self.slopes(*self.args)[argindex - 1]


class Absolute(RealFunction):
    """|x|, with derivative sign(x), 0 at 0."""

    nargs = 1
    of_numbers = staticmethod(abs)
    slopes = staticmethod(lambda x: (Sign(x),))


class Sign(RealFunction):
    """-1, 0 or 1; piecewise constant, so its derivative is 0."""

    nargs = 1
    of_numbers = staticmethod(sympy.sign)


class Step(RealFunction):
    """1 where x > 0, else 0: the derivative of relu."""

    nargs = 1
    of_numbers = staticmethod(lambda x: _indicator(x > 0))


class Relu(RealFunction):
    """max(x, 0)."""

    nargs = 1
    of_numbers = staticmethod(lambda x: sympy.Max(x, 0))
    slopes = staticmethod(lambda x: (Step(x),))


class Larger(RealFunction):
    """1 where x > y, 1/2 where they are equal, else 0: how max and min share a cotangent."""

    nargs = 2
    of_equal = staticmethod(lambda x: sympy.S.Half)
    of_numbers = staticmethod(lambda x, y: _indicator(x > y))


class Maximum(RealFunction):
    nargs = 2
    of_numbers = staticmethod(sympy.Max)
    of_equal = staticmethod(lambda x: x)
    slopes = staticmethod(lambda x, y: (Larger(x, y), Larger(y, x)))


class Minimum(RealFunction):
    nargs = 2
    of_numbers = staticmethod(sympy.Min)
    of_equal = staticmethod(lambda x: x)
    slopes = staticmethod(lambda x, y: (Larger(y, x), Larger(x, y)))


class Shift(RealFunction):
    """max(x, y), used only where its value cancels (a softmax is the same whatever is subtracted): derivative 0."""

    nargs = 2


class Sigmoid(RealFunction):
    """1 / (1 + exp(-x)); derivative s(x) s(-x), which does not cancel at either end."""

    nargs = 1
    of_numbers = staticmethod(lambda x: 1 / (1 + sympy.exp(-x)))
    slopes = staticmethod(lambda x: (Sigmoid(x) * Sigmoid(-x),))


class Softplus(RealFunction):
    """log(1 + exp(x))."""

    nargs = 1
    of_numbers = staticmethod(lambda x: sympy.log(1 + sympy.exp(x)))
    slopes = staticmethod(lambda x: (Sigmoid(x),))


MAX_EXPONENT = 128
MAX_ROOT = 16
MAX_BITS = 1 << 14
"""How far powers and roots are worked out exactly: beyond, they would be numbers of any length."""


class Power(RealFunction):
    """x**y with y no number, or one too large to work with exactly.

    As autograd does, it differentiates to 0 by y where x is 0 (x**y log(x) is 0·∞ there), and by x where y is 0.
    """

    nargs = 2
    of_numbers = staticmethod(lambda x, y: _float_power(x, y))

    @classmethod
    def eval(cls, x: sympy.Expr, y: sympy.Expr) -> sympy.Expr | None:
        return x**y if y.is_number and _moderate(x, y) else super().eval(x, y)

    @staticmethod
    def slopes(x: sympy.Expr, y: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
        by_base = Where(Absolute(y), y * Power(x, y - 1), sympy.S.Zero)
        return by_base, Where(Absolute(x), Power(x, y) * sympy.log(x), sympy.S.Zero)


def _moderate(x: sympy.Expr, y: sympy.Expr) -> bool:
    """Whether x**y, y a number, stays small when SymPy multiplies exponents and raises coefficients."""
    if not _known(y) or abs(y) > MAX_EXPONENT or (y.is_Rational and y.q > MAX_ROOT):
        return False
    exponents = [power.exp for power in x.atoms(sympy.Pow) if power.exp.is_number]
    bits = [max(n.p.bit_length(), n.q.bit_length()) for n in x.atoms(sympy.Rational)]
    return max(map(abs, exponents), default=1) * abs(y) <= MAX_EXPONENT and max(bits, default=1) * abs(y) <= MAX_BITS


def _float_power(x: sympy.Expr, y: sympy.Expr) -> sympy.Expr:
    try:
        value = math.pow(x, y)
    except (OverflowError, ValueError):
        return sympy.nan
    return sympy.Rational(repr(value)) if math.isfinite(value) else sympy.nan


class Where(RealFunction):
    """Where(c, x, y): x where c > 0, else y. Either may hold anything; what is not chosen never reaches the result."""

    nargs = 3
    decisive = 1
    of_numbers = staticmethod(lambda c, x, y: x if c > 0 else y)
    slopes = staticmethod(lambda c, x, y: (sympy.S.Zero, Where(c, 1, 0), Where(c, 0, 1)))

    @classmethod
    def eval(cls, c: sympy.Expr, x: sympy.Expr, y: sympy.Expr) -> sympy.Expr | None:
        if x == y:
            return x
        return Step(c) if (x, y) == (1, 0) else super().eval(c, x, y)


def settled(expression: sympy.Expr) -> sympy.Expr:
    """The expression without the functions that SymPy puts in by itself, such as `Abs` for sqrt(x**2)."""
    if not expression.has(sympy.Abs, sympy.sign):
        return expression
    return expression.replace(sympy.Abs, Absolute).replace(sympy.sign, Sign)


def gelu(x: sympy.Expr) -> sympy.Expr:
    """The exact, erf form."""
    return x * (1 + sympy.erf(x / sympy.sqrt(2))) / 2


def silu(x: sympy.Expr) -> sympy.Expr:
    return x * Sigmoid(x)


# The spec language's scalar functions, by name.
SCALAR_FUNCTIONS = {
    "exp": sympy.exp,
    "log": sympy.log,
    "sqrt": sympy.sqrt,
    "abs": Absolute,
    "sign": Sign,
    "min": Minimum,
    "max": Maximum,
    "sin": sympy.sin,
    "cos": sympy.cos,
    "tanh": sympy.tanh,
    "cosh": sympy.cosh,
    "sigmoid": Sigmoid,
    "softplus": Softplus,
    "erf": sympy.erf,
    "gelu": gelu,
    "relu": Relu,
    "silu": silu,
}
