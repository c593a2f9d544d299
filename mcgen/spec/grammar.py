"""The expression language of a spec: its syntax tree, and the parser that builds it without evaluating anything."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Span:
    """Where a piece of text stands within its expression: offset and length in characters."""

    offset: int
    length: int


@dataclass(frozen=True)
class Number:
    value: int | float
    span: Span = field(compare=False)


@dataclass(frozen=True)
class Name:
    """A slot, a gate, `grad`, `p`, `v`, `k`, `x`, `h` or `pi`: which of them is known from where the expression stands."""

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
