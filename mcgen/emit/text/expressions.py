"""From the spec language's syntax tree to torch source text, and to the small pieces of Python around it.

Everything here works on the parsed tree, so no text of a user reaches a generated file. Lines come out as a formatter
would leave them: operators of least precedence break first, and what is still too long is named in a line of its own.
"""

from __future__ import annotations

import builtins
import keyword
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mcgen.errors import UnsupportedError
from mcgen.spec.grammar import (
    Binary,
    Call,
    Expression,
    Lag,
    Name,
    Number,
    Span,
    Unary,
    children,
    evaluate,
    unparse,
    walk,
)

LINE_LENGTH = 120
NOWHERE = Span(0, 0)

SUM, PRODUCT, UNARY, POWER, ATOM = range(1, 6)
PRECEDENCE = {"+": SUM, "-": SUM, "*": PRODUCT, "/": PRODUCT, "**": POWER}
# The least precedence that stands on either side of an operator without parentheses.
OPERANDS = {"+": (SUM, PRODUCT), "-": (SUM, PRODUCT), "*": (PRODUCT, UNARY), "/": (PRODUCT, UNARY), "**": (ATOM, UNARY)}

# gelu is the exact, erf form; the threshold makes softplus exact in float64 too (torch's own
# default returns x above 20, where log(1 + exp(x)) - x is still 2e-9).
TORCH_FUNCTIONS = {
    "exp": "torch.exp({})",
    "log": "torch.log({})",
    "sqrt": "torch.sqrt({})",
    "abs": "torch.abs({})",
    "sign": "torch.sign({})",
    "sin": "torch.sin({})",
    "cos": "torch.cos({})",
    "tanh": "torch.tanh({})",
    "cosh": "torch.cosh({})",
    "sigmoid": "torch.sigmoid({})",
    "softplus": "F.softplus({}, threshold=40.0)",
    "erf": "torch.erf({})",
    "gelu": "F.gelu({})",
    "relu": "torch.relu({})",
    "silu": "F.silu({})",
    "min": "torch.minimum({}, {})",
    "max": "torch.maximum({}, {})",
}
FUNCTIONS_OF_TWO = ("min", "max")


def names(expression: Expression) -> tuple[str, ...]:
    """The names an expression reads, in order of appearance, each once; `pi` is none."""
    return tuple(dict.fromkeys(e.id for e in walk(expression) if isinstance(e, Name) and e.id != "pi"))


def is_constant(expression: Expression) -> bool:
    return not any(isinstance(e, Lag) or (isinstance(e, Name) and e.id != "pi") for e in walk(expression))


def constant(expression: Expression) -> float:
    """The value of an expression without names.

    Raises:
        UnsupportedError: it is no finite real number.
    """
    try:
        return evaluate(expression, {})
    except (ArithmeticError, ValueError):
        raise UnsupportedError(f"`{unparse(expression)}` is no finite real number; write one that is") from None


@dataclass(frozen=True)
class Text:
    """Source text and the precedence of its outermost operator."""

    text: str
    precedence: int = ATOM

    def within(self, least: int) -> str:
        """The text, in parentheses where something of precedence `least` or more has to stand."""
        return self.text if self.precedence >= least else f"({self.text})"


@dataclass(frozen=True)
class Printer:
    """Prints expressions; its tables say how names, calls and lagged names read in the language printed.

    names    the text of each name, an atom; a name not listed is printed as it is
    calls    a format string for each function
    lags     a format string for a lagged name, of its name and lag

    Every name is a tensor. Functions of plain numbers, and numbers too big for a tensor operation, are printed as their
    value.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    calls: Mapping[str, str] = field(default_factory=lambda: TORCH_FUNCTIONS)
    lags: str = "{}_{}"

    def text(self, expression: Expression) -> str:
        return self.print(expression).text

    def print(self, expression: Expression) -> Text:
        if is_constant(expression) and _must_fold(expression):
            return _number(constant(expression))
        match expression:
            case Number(value):
                return _number(value)
            case Name("pi"):
                return Text("math.pi")
            case Name(id):
                return Text(self.names.get(id, id))
            case Lag(name, lag):
                return Text(self.lags.format(name, lag))
            case Unary("-", operand):
                # -(x**2) is what a formatter makes of -x**2.
                return Text("-" + self.print(operand).within(ATOM if isinstance(operand, Binary) else UNARY), UNARY)
            case Unary(_, operand):
                return self.print(operand)
            case Binary():
                return self._binary(expression)
            case Call():
                return self._call(expression)
        raise TypeError(f"no expression: {expression!r}")

    def _binary(self, expression: Binary) -> Text:
        least = OPERANDS[expression.op]
        left = self.print(expression.left).within(least[0])
        right = self.print(expression.right).within(least[1])
        tight = expression.op == "**" and _simple(expression.left) and _simple(expression.right)
        operator = expression.op if tight else f" {expression.op} "
        return Text(f"{left}{operator}{right}", PRECEDENCE[expression.op])

    def _call(self, expression: Call) -> Text:
        form = self.calls[expression.function]
        # A method's receiver binds more tightly than an argument does.
        least = ATOM if form.startswith("{}.") else SUM
        return Text(form.format(*(self._argument(a, expression).within(least) for a in expression.arguments)))

    def _argument(self, argument: Expression, call: Call) -> Text:
        """torch's functions of two tensors take no numbers: those get the shape of the other argument."""
        if call.function not in FUNCTIONS_OF_TWO or not is_constant(argument):
            return self.print(argument)
        like = next(name for other in call.arguments for name in names(other))
        return Text(f"torch.full_like({self.names.get(like, like)}, {self.text(argument)})")


def _number(value: float) -> Text:
    if not math.isfinite(value):
        raise UnsupportedError(f"{value!r} is no finite number; write one that is")
    return Text(repr(value), ATOM if value >= 0 else UNARY)


def _must_fold(expression: Expression) -> bool:
    """Functions need a tensor to work on, and whole numbers beyond 2**53 do not multiply one."""
    constant(expression)  # refuses what has no value
    return any(isinstance(e, Call) or abs(constant(e)) >= 2**53 for e in walk(expression)) and not (
        isinstance(expression, Number) and isinstance(expression.value, float)
    )


def _simple(expression: Expression) -> bool:
    """Whether a formatter sets `**` beside this operand without spaces."""
    if isinstance(expression, Unary):
        return isinstance(expression.operand, Number)
    return isinstance(expression, Name | Number)


class Identifiers:
    """Names for a user's names in generated Python: themselves, unless the text around them uses that name already."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = {*taken, *dir(builtins), *keyword.kwlist, *keyword.softkwlist}

    def fresh(self, wanted: str) -> str:
        while wanted in self._taken:
            wanted += "_"
        self._taken.add(wanted)
        return wanted


def assignment(
    target: str,
    expression: Expression,
    printer: Printer,
    indent: int,
    fresh: Callable[[], str],
    may_move: Callable[[Expression], bool] = lambda _: True,
) -> list[str]:
    """The lines of `target = expression`, to stand `indent` columns in.

    A sum too long for its line stands one term to a line, in parentheses; what is too long even so is named in a line
    of its own before, under a name from `fresh`, where `may_move` accepts it.
    """
    width = LINE_LENGTH - indent
    definitions, expression = shorten(expression, printer, width - len(target) - 3, fresh, may_move)
    lines = [f"{name} = {printer.text(value)}" for name, value in definitions]
    line = f"{target} = {printer.text(expression)}"
    if len(line) <= width or len(terms(expression)) < 3:
        return [*lines, line]
    return [*lines, f"{target} = (", *("    " + line for line in sum_lines(expression, printer)), ")"]


def listed(before: str, items: Sequence[str], after: str, indent: int) -> list[str]:
    """The lines of items between brackets, to stand `indent` columns in: on one line if they fit, else one a line."""
    line = f"{before}{', '.join(items)}{after}"
    if indent + len(line) <= LINE_LENGTH:
        return [line]
    return [before, *(f"    {item}," for item in items), after]


def sum_lines(expression: Expression, printer: Printer) -> list[str]:
    """A sum, one term to a line, each but the first with its sign before it."""
    (_, first), *rest = [(sign, printer.print(term)) for sign, term in terms(expression)]
    return [first.within(SUM), *(f"{sign} {term.within(PRODUCT)}" for sign, term in rest)]


def terms(expression: Expression) -> list[tuple[str, Expression]]:
    """The terms of a sum with their signs, left to right as it associates; what is no sum is its only term."""
    later = []
    while isinstance(expression, Binary) and expression.op in "+-":
        later.append((expression.op, expression.right))
        expression = expression.left
    return [("+", expression), *reversed(later)]


def shorten(
    expression: Expression,
    printer: Printer,
    width: int,
    fresh: Callable[[], str],
    may_move: Callable[[Expression], bool],
) -> tuple[list[tuple[str, Expression]], Expression]:
    """(definitions, expression): subexpressions named, in order of definition, until the rest can be set in `width`.

    It can be where it fits, or where it is a sum of three terms or more that each fit.
    """
    definitions: list[tuple[str, Expression]] = []
    while (moved := _to_move(expression, printer, width, may_move)) is not None:
        name = fresh()
        definitions.append((name, moved))
        expression = substitute(expression, moved, Name(name, NOWHERE))
    return definitions, expression


def _to_move(
    expression: Expression, printer: Printer, width: int, may_move: Callable[[Expression], bool]
) -> Expression | None:
    """The longest subexpression that fits and may be moved, of a term that does not fit."""
    parts = [term for _, term in terms(expression)] if len(terms(expression)) > 2 else [expression]
    long = [part for part in parts if len(printer.text(part)) > width - 3]
    found = [
        e
        for part in long
        for e in walk(part)
        if children(e) and names(e) and e != expression and may_move(e) and 12 < len(printer.text(e)) <= width - 3
    ]
    return max(found, key=lambda e: len(printer.text(e)), default=None)


def substitute(expression: Expression, old: Expression, new: Expression) -> Expression:
    if expression == old:
        return new
    match expression:
        case Unary(_, operand):
            return replace(expression, operand=substitute(operand, old, new))
        case Binary(_, left, right):
            return replace(expression, left=substitute(left, old, new), right=substitute(right, old, new))
        case Call(_, arguments):
            return replace(expression, arguments=tuple(substitute(a, old, new) for a in arguments))
    return expression
