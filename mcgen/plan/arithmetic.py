"""The numbers that a pass reckons with: expressions in the host code's own text, worked out, not run."""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Mapping
from typing import Any

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Gt: operator.gt,
    ast.IsNot: operator.is_not,
}


def value(text: str, names: Mapping[str, Any]) -> Any:
    """The value of an expression in some names, functions among them."""
    return _value(_parsed(text), names)


@functools.lru_cache(maxsize=1024)
def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _value(node: ast.expr | None, names: Mapping[str, Any]) -> Any:
    match node:
        case None:
            return None
        case ast.Constant(constant):
            return constant
        case ast.Name(name):
            return names[name]
        case ast.Attribute(of, name):
            return getattr(_value(of, names), name)
        case ast.Tuple(items):
            return tuple(_value(item, names) for item in items)
        case ast.BinOp(left, op, right) | ast.Compare(left, [op], [right]):
            return OPERATORS[type(op)](_value(left, names), _value(right, names))
        case ast.UnaryOp(ast.USub(), operand):
            return -_value(operand, names)
        case ast.Subscript(of, index):
            return _value(of, names)[_value(index, names)]
        case ast.Slice(lower, upper):
            return slice(_value(lower, names), _value(upper, names))
        case ast.Call(function, arguments):
            return _value(function, names)(*(_value(one, names) for one in arguments))
    raise ValueError(f"no arithmetic: {ast.dump(node)}")
