"""Scalar functions SymPy lacks, or whose own derivative is no good for floats: each with a derivative that is one.

SymPy's `Abs`, `Max` and `Heaviside` differentiate to Dirac deltas and complex-argument forms; these differentiate to
what autograd gives, including at the kink. `sigmoid`, `softplus` and their kin stay whole so that a printer can use
the form that does not overflow.
"""

from __future__ import annotations

import sympy
from sympy import Function


class Absolute(Function):
    """|x|, with derivative sign(x), 0 at 0."""

    nargs = 1

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return Sign(self.args[0])


class Sign(Function):
    """-1, 0 or 1; piecewise constant, so its derivative is 0."""

    nargs = 1

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return sympy.S.Zero


class Step(Function):
    """1 where x > 0, else 0: the derivative of relu."""

    nargs = 1

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return sympy.S.Zero


class Relu(Function):
    """max(x, 0)."""

    nargs = 1

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return Step(self.args[0])


class Larger(Function):
    """1 where x > y, 1/2 where they are equal, else 0: how max and min share a cotangent."""

    nargs = 2

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return sympy.S.Zero


class Maximum(Function):
    nargs = 2

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        x, y = self.args
        return Larger(x, y) if argindex == 1 else Larger(y, x)


class Minimum(Function):
    nargs = 2

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        x, y = self.args
        return Larger(y, x) if argindex == 1 else Larger(x, y)


class Shift(Function):
    """max(x, y), used only where its value cancels (a softmax is the same whatever is subtracted): derivative 0."""

    nargs = 2

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return sympy.S.Zero


class Sigmoid(Function):
    """1 / (1 + exp(-x)); derivative s(x) s(-x), which does not cancel at either end."""

    nargs = 1

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        x = self.args[0]
        return Sigmoid(x) * Sigmoid(-x)


class Softplus(Function):
    """log(1 + exp(x))."""

    nargs = 1

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return Sigmoid(self.args[0])


class Where(Function):
    """Where(c, x, y): x where c > 0, else y. Both sides may hold anything; the one not chosen never reaches the result."""

    nargs = 3

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        c, _, _ = self.args
        if argindex == 1:
            return sympy.S.Zero
        return Where(c, sympy.S.One, sympy.S.Zero) if argindex == 2 else Where(c, sympy.S.Zero, sympy.S.One)


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
