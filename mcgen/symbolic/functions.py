"""Scalar functions SymPy lacks, or whose own derivative is no good for floats: each with a derivative that is one.

SymPy's `Abs`, `Max` and `Heaviside` differentiate to Dirac deltas and complex-argument forms; these differentiate to
what autograd gives, including at the kink. `sigmoid`, `softplus` and their kin stay whole so that a printer can use
the form that does not overflow. Of numbers, every one of them is a number.
"""

from __future__ import annotations

import math

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

    def __new__(cls, *args: sympy.Expr, **options: bool) -> sympy.Expr:
        return sympy.nan if _UNDEFINED & {*args[: cls.decisive]} else super().__new__(cls, *args, **options)

    decisive: int | None = None
    """How many of the arguments have to be real numbers; all for None."""


class Absolute(RealFunction):
    """|x|, with derivative sign(x), 0 at 0."""

    nargs = 1

    @classmethod
    def eval(cls, x: sympy.Expr) -> sympy.Expr | None:
        return abs(x) if _known(x) else None

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return Sign(self.args[0])


class Sign(RealFunction):
    """-1, 0 or 1; piecewise constant, so its derivative is 0."""

    nargs = 1

    @classmethod
    def eval(cls, x: sympy.Expr) -> sympy.Expr | None:
        return sympy.sign(x) if _known(x) else None

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return sympy.S.Zero


class Step(RealFunction):
    """1 where x > 0, else 0: the derivative of relu."""

    nargs = 1

    @classmethod
    def eval(cls, x: sympy.Expr) -> sympy.Expr | None:
        return _indicator(x > 0) if _known(x) else None

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return sympy.S.Zero


class Relu(RealFunction):
    """max(x, 0)."""

    nargs = 1

    @classmethod
    def eval(cls, x: sympy.Expr) -> sympy.Expr | None:
        return sympy.Max(x, 0) if _known(x) else None

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return Step(self.args[0])


class Larger(RealFunction):
    """1 where x > y, 1/2 where they are equal, else 0: how max and min share a cotangent."""

    nargs = 2

    @classmethod
    def eval(cls, x: sympy.Expr, y: sympy.Expr) -> sympy.Expr | None:
        if x == y:
            return sympy.S.Half
        return _indicator(x > y) if _known(x, y) else None

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return sympy.S.Zero


class Maximum(RealFunction):
    nargs = 2

    @classmethod
    def eval(cls, x: sympy.Expr, y: sympy.Expr) -> sympy.Expr | None:
        if x == y:
            return x
        return sympy.Max(x, y) if _known(x, y) else None

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        x, y = self.args
        return Larger(x, y) if argindex == 1 else Larger(y, x)


class Minimum(RealFunction):
    nargs = 2

    @classmethod
    def eval(cls, x: sympy.Expr, y: sympy.Expr) -> sympy.Expr | None:
        if x == y:
            return x
        return sympy.Min(x, y) if _known(x, y) else None

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        x, y = self.args
        return Larger(y, x) if argindex == 1 else Larger(x, y)


class Shift(RealFunction):
    """max(x, y), used only where its value cancels (a softmax is the same whatever is subtracted): derivative 0."""

    nargs = 2

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return sympy.S.Zero


class Sigmoid(RealFunction):
    """1 / (1 + exp(-x)); derivative s(x) s(-x), which does not cancel at either end."""

    nargs = 1

    @classmethod
    def eval(cls, x: sympy.Expr) -> sympy.Expr | None:
        return 1 / (1 + sympy.exp(-x)) if _known(x) else None

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        x = self.args[0]
        return Sigmoid(x) * Sigmoid(-x)


class Softplus(RealFunction):
    """log(1 + exp(x))."""

    nargs = 1

    @classmethod
    def eval(cls, x: sympy.Expr) -> sympy.Expr | None:
        return sympy.log(1 + sympy.exp(x)) if _known(x) else None

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return Sigmoid(self.args[0])


MAX_EXPONENT = 128
MAX_ROOT = 16
MAX_BITS = 1 << 14
"""How far powers and roots are worked out exactly: beyond, they would be numbers of any length."""


class Power(RealFunction):
    """x**y with y no number, or one too large to work with exactly.

    As autograd does, it differentiates to 0 by y where x is 0 (x**y log(x) is 0·∞ there), and by x where y is 0.
    """

    nargs = 2

    @classmethod
    def eval(cls, x: sympy.Expr, y: sympy.Expr) -> sympy.Expr | None:
        if y.is_number and _moderate(x, y):
            return x**y
        return _float_power(x, y) if _known(x, y) else None

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        x, y = self.args
        if argindex == 1:
            return Where(Absolute(y), y * Power(x, y - 1), sympy.S.Zero)
        return Where(Absolute(x), self * sympy.log(x), sympy.S.Zero)


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

    @classmethod
    def eval(cls, c: sympy.Expr, x: sympy.Expr, y: sympy.Expr) -> sympy.Expr | None:
        if x == y:
            return x
        if (x, y) == (1, 0):
            return Step(c)
        return (x if c > 0 else y) if _known(c) else None

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        c, _, _ = self.args
        if argindex == 1:
            return sympy.S.Zero
        return Where(c, sympy.S.One, sympy.S.Zero) if argindex == 2 else Where(c, sympy.S.Zero, sympy.S.One)


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
