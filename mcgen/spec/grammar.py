"""The expression language of a spec: its syntax tree, and the parser that builds it without evaluating anything."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from mcgen.spec.refusals import PRODUCT_OF_MATRICES


@dataclass(frozen=True)
class Span:
    """Where a piece of text stands within its expression: offset and length in characters."""

    offset: int
    length: int


NOWHERE = Span(0, 0)
"""Where what no text has stands."""


@dataclass(frozen=True)
class Number:
    value: int | float
    span: Span = field(compare=False)


@dataclass(frozen=True)
class Name:
    """A slot, a gate, `grad`, `p`, `v`, `k`, `x`, `h` or `pi`: which, is known from where the expression stands."""

    id: str
    span: Span = field(compare=False)


@dataclass(frozen=True)
class Lag:
    """`v[-n]` or `k[-n]`, n >= 1; lag is n. (`v[0]` parses to Name.)"""

    name: str
    lag: int
    span: Span = field(compare=False)


@dataclass(frozen=True)
class Unary:
    """op is `-` or `+`."""

    op: str
    operand: Expression
    span: Span = field(compare=False)


@dataclass(frozen=True)
class Binary:
    """op is one of `+ - * / **`."""

    op: str
    left: Expression
    right: Expression
    span: Span = field(compare=False)


@dataclass(frozen=True)
class Call:
    """One of FUNCTIONS, or `outer`, `sum`, `dot`."""

    function: str
    arguments: tuple[Expression, ...]
    span: Span = field(compare=False)


Expression = Number | Name | Lag | Unary | Binary | Call


def _sigmoid(x: float) -> float:
    small = math.exp(-abs(x))
    return (1.0 if x >= 0 else small) / (1.0 + small)


_NUMERIC: dict[str, Callable[..., float]] = {
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "abs": abs,
    "sign": lambda x: float((x > 0) - (x < 0)),
    "min": min,
    "max": max,
    "sin": math.sin,
    "cos": math.cos,
    "tanh": math.tanh,
    "cosh": math.cosh,
    "sigmoid": _sigmoid,
    "softplus": lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x))),
    "erf": math.erf,
    "gelu": lambda x: 0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0))),
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x * _sigmoid(x),
}

FUNCTIONS = {name: 2 if name in ("min", "max") else 1 for name in _NUMERIC}
"""Scalar functions and how many arguments each takes. `gelu` is the exact one, `silu` is x times sigmoid(x)."""

STRUCTURAL: dict[str, int] = {"sum": 1, "dot": 2, "outer": 2}
"""Functions of vectors: `sum` and `dot` in objectives, `outer` in steps."""

CONSTANTS = ("pi",)

MAX_LENGTH = 2000
MAX_TOKENS = 400
MAX_NESTING = 40
MAX_DIGITS = 30
MAX_LAG = 65536


class ExpressionError(Exception):
    """An expression does not parse; `span` is the offending piece of its text."""

    def __init__(self, message: str, span: Span, hint: str = "") -> None:
        self.message, self.span, self.hint = message, span, hint
        super().__init__(message)


def children(expression: Expression) -> tuple[Expression, ...]:
    """The direct operands of an expression, left to right."""
    match expression:
        case Unary(operand=operand):
            return (operand,)
        case Binary(left=left, right=right):
            return (left, right)
        case Call(arguments=arguments):
            return arguments
    return ()


def walk(expression: Expression) -> Iterator[Expression]:
    """An expression and everything below it, in reading order of their operators (parents first)."""
    yield expression
    for child in children(expression):
        yield from walk(child)


def parse(text: str) -> Expression:
    """Parse an expression. Nothing is looked up or evaluated: any name and any function name is accepted.

    Precedence is Python's: `**` binds tightest and to the right, above a sign on its left (`-x**2` is `-(x**2)`).

    Raises:
        ExpressionError: the text is not of the language, or exceeds its limits of length, depth or size of numbers.
    """
    return _Parser(text, _tokens(text)).whole()


def parse_step(text: str) -> tuple[Name, Expression]:
    """Parse `slot = expression`; spans count from the start of `text`.

    Raises:
        ExpressionError: as for `parse`, or there is not exactly one name before exactly one `=`.
    """
    tokens = _tokens(text)
    equals = [token for token in tokens if token.text == "="]
    if not equals:
        raise ExpressionError("a step assigns a slot", Span(0, len(text)), "write `slot = expression`")
    if len(equals) > 1:
        raise ExpressionError("more than one `=` in a step", equals[1].span, "one assignment a line")
    slot, *between = tokens[: tokens.index(equals[0])] or [equals[0]]
    if slot.kind != "name" or between:
        wrong = between[0] if between else slot
        raise ExpressionError("a step assigns one name", wrong.span, "write `slot = expression`")
    return Name(slot.text, slot.span), _Parser(text, tokens[tokens.index(equals[0]) + 1 :]).whole()


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    span: Span


_TOKEN = re.compile(
    r"(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<operator>\*\*|[-+*/()\[\],=])|(?P<space>\s+)|(?P<unknown>.)",
    re.ASCII | re.DOTALL,
)
_UNKNOWN_HINTS = {
    "^": "a power is written **",
    "@": PRODUCT_OF_MATRICES.hint(),
    "×": "a product is written *",
    "−": "a minus is written -",
}


def _tokens(text: str) -> list[_Token]:
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"an expression of more than {MAX_LENGTH} characters", Span(0, len(text)))
    tokens = []
    for match in _TOKEN.finditer(text):
        kind, piece, span = match.lastgroup or "", match.group(), Span(match.start(), match.end() - match.start())
        if kind == "unknown":
            raise ExpressionError(f"{piece!r} is not part of the language", span, _UNKNOWN_HINTS.get(piece, ""))
        if kind != "space":
            tokens.append(_Token(kind, piece, span))
    if len(tokens) > MAX_TOKENS:
        raise ExpressionError(f"an expression of more than {MAX_TOKENS} symbols", tokens[MAX_TOKENS].span)
    return tokens


class _Parser:
    """Recursive descent over tokens; one method a level of precedence."""

    def __init__(self, text: str, tokens: list[_Token]) -> None:
        self.text, self.tokens, self.next, self.depth = text, tokens, 0, 0
        self.end = Span(max(0, len(text.rstrip()) - 1), 1)

    def whole(self) -> Expression:
        expression = self.sum()
        if self.next < len(self.tokens):
            raise self.unexpected()
        return expression

    @contextmanager
    def deeper(self, at: Span) -> Iterator[None]:
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise ExpressionError("an expression nested too deeply", at, f"at most {MAX_NESTING} levels")
        yield
        self.depth -= 1

    def sum(self) -> Expression:
        with self.deeper(self.here):
            return self.chain(self.product, "+", "-")

    def product(self) -> Expression:
        return self.chain(self.signed, "*", "/")

    def chain(self, operand: Callable[[], Expression], *operators: str) -> Expression:
        left = operand()
        while operator := self.take(*operators):
            right = operand()
            left = Binary(operator.text, left, right, _join(left.span, right.span))
        return left

    def signed(self) -> Expression:
        sign = self.take("-", "+")
        if not sign:
            return self.power()
        with self.deeper(sign.span):
            operand = self.signed()
        return Unary(sign.text, operand, _join(sign.span, operand.span))

    def power(self) -> Expression:
        base = self.atom()
        if not self.take("**"):
            return base
        with self.deeper(self.here):
            exponent = self.signed()
        return Binary("**", base, exponent, _join(base.span, exponent.span))

    def atom(self) -> Expression:
        if opening := self.take("("):
            expression = self.sum()
            closing = self.expect(")")
            return replace(expression, span=_join(opening.span, closing.span))
        token = self.peek()
        if token is None or token.kind == "operator":
            raise self.unexpected()
        self.next += 1
        if token.kind == "number":
            return self.number(token)
        if self.take("("):
            return self.call(token)
        return self.lag(token) if self.take("[") else Name(token.text, token.span)

    def number(self, token: _Token) -> Number:
        value = float(token.text)
        if math.isinf(value) or len(token.text) > MAX_DIGITS:
            raise ExpressionError("a number too large or too long", token.span)
        return Number(int(token.text) if token.text.isdigit() else value, token.span)

    def call(self, function: _Token) -> Call:
        arguments = []
        if not self.take(")"):
            arguments.append(self.sum())
            while self.take(","):
                arguments.append(self.sum())
            self.expect(")")
        last = self.tokens[self.next - 1]
        return Call(function.text, tuple(arguments), _join(function.span, last.span))

    def lag(self, name: _Token) -> Expression:
        minus, number = self.take("-"), self.peek()
        if number is None or not number.text.isdigit():
            raise ExpressionError("a lag is a whole number", self.here, f"write {name.text}[-1] for one token back")
        self.next += 1
        lag = int(number.text[:MAX_DIGITS])
        if lag and not minus:
            raise ExpressionError("a lag looks back, never ahead", number.span, f"write {name.text}[-{lag}]")
        if lag > MAX_LAG:
            raise ExpressionError("a lag too long", number.span, f"at most {MAX_LAG} tokens back")
        span = _join(name.span, self.expect("]").span)
        return Lag(name.text, lag, span) if lag else Name(name.text, span)

    @property
    def here(self) -> Span:
        token = self.peek()
        return token.span if token else self.end

    def peek(self) -> _Token | None:
        return self.tokens[self.next] if self.next < len(self.tokens) else None

    def take(self, *operators: str) -> _Token | None:
        token = self.peek()
        if token is None or token.kind != "operator" or token.text not in operators:
            return None
        self.next += 1
        return token

    def expect(self, operator: str) -> _Token:
        token = self.take(operator)
        if token is None:
            raise self.unexpected(_expected(operator))
        return token

    def unexpected(self, hint: str = "") -> ExpressionError:
        token, before = self.peek(), self.tokens[self.next - 1] if self.next else None
        if token is None:
            missing = f"something is missing after `{before.text}`" if before else "something is missing"
            return ExpressionError("the expression ends too early", self.here, hint or missing)
        if before and _ends_value(before) and _begins_value(token) and hint != _expected("]"):
            return _missing_sign(before, token)
        return ExpressionError(f"unexpected `{token.text}`", self.here, hint)


def _expected(closing: str) -> str:
    return f"expected `{closing}`"


def _ends_value(token: _Token) -> bool:
    return token.kind != "operator" or token.text in (")", "]")


def _begins_value(token: _Token) -> bool:
    return token.kind != "operator" or token.text == "("


def _missing_sign(before: _Token, token: _Token) -> ExpressionError:
    names = all(one.kind != "operator" for one in (before, token))
    example = f": {before.text}*{token.text}" if names else " between the factors"
    return ExpressionError("a product needs its sign", token.span, f"write `*`{example}")


def _join(first: Span, last: Span) -> Span:
    return Span(first.offset, last.offset + last.length - first.offset)


def unparse(expression: Expression) -> str:
    """The expression as text of the language, with no more parentheses than it needs; parses back to an equal tree."""
    return _unparse(expression)[0]


_SUM, _PRODUCT, _SIGNED, _POWER, _ATOM = range(5)
_BINARY_LEVELS = {"+": _SUM, "-": _SUM, "*": _PRODUCT, "/": _PRODUCT}


def _unparse(expression: Expression) -> tuple[str, int]:
    match expression:
        case Number(value=value):
            return repr(value), _ATOM
        case Name(id=name):
            return name, _ATOM
        case Lag(name=name, lag=lag):
            return f"{name}[-{lag}]", _ATOM
        case Call(function=function, arguments=arguments):
            return f"{function}({', '.join(map(unparse, arguments))})", _ATOM
        case Unary(op=op, operand=operand):
            return op + _wrapped(operand, _SIGNED), _SIGNED
        case Binary(op="**", left=left, right=right):
            return f"{_wrapped(left, _ATOM)}**{_wrapped(right, _SIGNED)}", _POWER
        case Binary(op=op, left=left, right=right):
            level = _BINARY_LEVELS[op]
            gap = " " if level == _SUM else ""
            return f"{_wrapped(left, level)}{gap}{op}{gap}{_wrapped(right, level + 1)}", level
    raise AssertionError(expression)


def _wrapped(expression: Expression, least: int) -> str:
    text, level = _unparse(expression)
    return text if level >= least else f"({text})"


def evaluate(expression: Expression, values: Mapping[str, float]) -> float:
    """The value of a scalar expression, names taken from `values`; in Python's floats.

    Raises:
        ArithmeticError, ValueError: outside a function's domain or the range of a float.
        KeyError: a name or function without a value.
    """
    match expression:
        case Number(value=value):
            return float(value)
        case Name(id=name):
            return math.pi if name == "pi" else values[name]
        case Unary(op=op, operand=operand):
            return -evaluate(operand, values) if op == "-" else evaluate(operand, values)
        case Binary(op=op, left=left, right=right):
            return _finite(OPERATORS[op](evaluate(left, values), evaluate(right, values)))
        case Call(function=function, arguments=arguments):
            return _finite(_NUMERIC[function](*(evaluate(argument, values) for argument in arguments)))
    raise KeyError(type(expression).__name__)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise OverflowError("not a finite number")
    return value


OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": math.pow,
}
