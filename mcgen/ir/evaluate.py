"""What a tile program means: an evaluator that walks it with torch, one node at a time, in any float type."""

from __future__ import annotations

import string
from collections.abc import Mapping

import sympy
import torch

from mcgen.ir.program import Contract, Decay, Input, Iota, Map, Node, Program, Reduce, Rename, Solve, placeholder
from mcgen.symbolic import functions

Tensor = torch.Tensor


TORCH_FUNCTIONS = {
    functions.Absolute: torch.abs,
    functions.Sign: torch.sign,
    functions.Step: lambda x: (x > 0).to(x.dtype),
    functions.Relu: torch.relu,
    functions.Larger: lambda x, y: (x > y).to(x.dtype) + 0.5 * (x == y).to(x.dtype),
    functions.Shift: torch.maximum,
    functions.Maximum: torch.maximum,
    functions.Minimum: torch.minimum,
    functions.Sigmoid: torch.sigmoid,
    functions.Softplus: lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    functions.Power: torch.pow,
    functions.Where: lambda c, x, y: torch.where(torch.as_tensor(c) > 0, x, y),
    sympy.exp: torch.exp,
    sympy.log: torch.log,
    sympy.sin: torch.sin,
    sympy.cos: torch.cos,
    sympy.tanh: torch.tanh,
    sympy.cosh: torch.cosh,
    sympy.sinh: torch.sinh,
    sympy.erf: torch.erf,
}


def scalar(expression: sympy.Expr, values: Mapping[sympy.Symbol, Tensor], like: Tensor) -> Tensor:
    """A SymPy scalar function of tensors."""
    if expression.is_Symbol:
        return values[expression]
    if expression.is_number:
        return torch.tensor(float(expression), dtype=like.dtype, device=like.device)
    arguments = [scalar(argument, values, like) for argument in expression.args]
    if expression.is_Add:
        return sum(arguments[1:], arguments[0])
    if expression.is_Mul:
        result = arguments[0]
        for argument in arguments[1:]:
            result = result * argument
        return result
    if expression.is_Pow:
        exponent = expression.exp
        return arguments[0] ** (float(exponent) if exponent.is_number else arguments[1])
    return TORCH_FUNCTIONS[expression.func](*arguments)


def evaluate(program: Program, inputs: Mapping[str, Tensor], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The outputs of a program. Inputs and outputs have their nodes' axes, in order; `sizes` has their lengths."""
    like = next(iter(inputs.values()))
    value: dict[Node, Tensor] = {}
    for node in program.nodes:
        value[node] = _evaluate(node, value, inputs, sizes, like)
    shape = lambda node: [sizes[axis] for axis in node.axes]  # noqa: E731
    return {name: value[node].expand(shape(node)) for name, node in program.outputs.items()}


def _evaluate(
    node: Node, value: Mapping[Node, Tensor], inputs: Mapping[str, Tensor], sizes: Mapping[str, int], like: Tensor
) -> Tensor:
    match node:
        case Input(_, name):
            return inputs[name]
        case Iota((axis,)):
            return torch.arange(sizes[axis], dtype=like.dtype, device=like.device)
        case Map(axes, expression, values):
            aligned = {placeholder(i): _align(value[v], v.axes, axes) for i, v in enumerate(values)}
            return scalar(expression, aligned, like).expand([sizes[axis] for axis in axes])
        case Contract(axes, left, right, _):
            letter = dict(zip(dict.fromkeys([*left.axes, *right.axes]), string.ascii_letters, strict=False))
            x, y, result = ("".join(letter[axis] for axis in part) for part in (left.axes, right.axes, axes))
            return torch.einsum(f"{x},{y}->{result}", value[left], value[right])
        case Reduce(_, operation, operand, over):
            return getattr(torch, {"sum": "sum", "max": "amax"}[operation])(
                value[operand], [operand.axes.index(a) for a in over]
            )
        case Rename(axes, operand, old, new):
            moved = [old if axis == new else axis for axis in axes]
            return value[operand].permute([operand.axes.index(axis) for axis in moved])
        case Decay(axes, gate, row, column, exclusive):
            products = _decay(value[gate], row is not None, column is not None, exclusive)
            return products.mT if axes == (column, row) else products
        case Solve(_, matrix, right, transposed):
            system = torch.eye(sizes[matrix.axes[0]], dtype=like.dtype, device=like.device) - value[matrix]
            return torch.linalg.solve(system.mT if transposed else system, value[right])
    raise TypeError(f"no meaning for {type(node).__name__}")


def _align(tensor: Tensor, axes: tuple[str, ...], target: tuple[str, ...]) -> Tensor:
    return tensor[tuple(slice(None) if axis in axes else None for axis in target)]


def _decay(gate: Tensor, has_row: bool, has_column: bool, exclusive: bool) -> Tensor:
    """Products over runs, by running products: row r of the table multiplies the gates in (column, r)."""
    count = gate.shape[0]
    token = torch.arange(count)
    full = torch.cumprod(torch.where(token[:, None] > torch.arange(-1, count)[None, :], gate[:, None], 1.0), 0)
    first = torch.ones_like(full[:1])
    table = torch.cat([first, full])  # row r: gates up to and including token r - 1; column c: from token c on
    rows = table[:-1] if exclusive else table[1:]
    rows = rows if has_row else table[-1:]
    limit = token[:, None] + (0 if exclusive else 1) if has_row else torch.full((1, 1), count)
    rows = torch.where(torch.arange(count + 1)[None, :] <= limit, rows, 0.0)
    result = rows[:, 1:] if has_column else rows[:, :1]
    result = result if has_row else result[0]
    return result if has_column else result[..., 0]
