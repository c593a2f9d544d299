"""The memory as a function of its parameters (SEMANTICS 1): a chain of linear layers with what stands between them.

A matrix memory is one layer. Whoever reads a memory says what a linear layer does to its input: multiply it by a state
at hand, or by the closed form of the state after each token; everything else is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import sympy

from mcgen.ir.program import Builder, Input, Label, Node, name_of
from mcgen.ir.vocabulary import Reader
from mcgen.spec import Spec
from mcgen.symbolic.expressions import symbol, to_sympy
from mcgen.symbolic.functions import SCALAR_FUNCTIONS

EPSILON = sympy.Rational(1, 100_000)  # of the layer norm


@dataclass(frozen=True)
class Layer:
    """One linear layer: the suffix of its parameters' names, and the axes it goes from and to."""

    suffix: str
    into: str
    out: str

    @property
    def number(self) -> int:
        """The layer's place in the chain, from 1."""
        return int(self.suffix.removeprefix("_") or 1)


@dataclass(frozen=True)
class ReadOut:
    """What a read gives: the read-out[t v], and each layer's input and result."""

    value: Node
    inputs: dict[Layer, Node]
    results: dict[Layer, Node]


def layers(spec: Spec) -> tuple[Layer, ...]:
    if spec.memory.kind == "matrix":
        return (Layer("", "k", "v"),)
    axes = ["k", *(f"h{n}" for n in range(1, spec.memory.layers)), "v"]
    return tuple(Layer(f"_{n + 1}", into, out) for n, (into, out) in enumerate(pairwise(axes)))


def sizes(spec: Spec) -> dict[str, int]:
    """The length of every axis of the parameters."""
    hidden = spec.memory.expansion * spec.head.key_dim if spec.memory.kind == "mlp" else 0
    between = {layer.out: hidden for layer in layers(spec)[:-1]}
    return {"k": spec.head.key_dim, **between, "v": spec.head.value_dim}


def read(b: Builder, spec: Spec, x: Node, linear: Callable[[Layer, Node], Node], reader: Reader) -> ReadOut:
    """M(x), with `linear` for what a layer's parameters do to its input."""
    inputs: dict[Layer, Node] = {}
    results: dict[Layer, Node] = {}
    value, before = x, None
    for layer in layers(spec):
        if before is not None:
            value = activated(b, spec, before, value, reader)
        inputs[layer], value, before = value, linear(layer, value), layer
        results[layer] = b.call(value, reader.pre(layer.number)) if spec.memory.kind == "mlp" else value
    return ReadOut(read_out(b, spec, x, value, reader), inputs, results)


def seen_by(b: Builder, x: Node, of: Node, layer: Layer) -> Node:
    """Rows x times the parameters of a layer, or what the layer sees of keys: scores."""
    seen, name = name_of(x).name, name_of(of).name
    return b.call(b.contract(x, of, layer.into), f"{seen}_{name}" if isinstance(of, Input) else f"{seen}_scores")


def activated(b: Builder, spec: Spec, layer: Layer, value: Node, reader: Reader) -> Node:
    """What the next layer sees of a layer's results."""
    hidden = b.map(activation(spec), {symbol("x"): value})
    return b.call(hidden, reader.hidden(layer.number, activation_name(spec)))


def read_out(b: Builder, spec: Spec, x: Node, value: Node, reader: Reader) -> Node:
    """M(x) from x and the last layer's results: normed, and x added, where the memory has these."""
    if spec.memory.kind == "mlp" and spec.memory.norm == "layernorm":
        value = _normed(b, value, spec.head.value_dim, reader.norm(spec.memory.layers, spec.head.value_dim))
    if spec.memory.kind == "mlp" and spec.memory.residual:
        value = b.total([b.rename(x, "k", "v"), value])
    return b.call(value, reader.value)


def activation(spec: Spec) -> sympy.Expr:
    """The activation as a function of x."""
    if spec.activation_expression is not None:
        return to_sympy(spec.activation_expression)
    return SCALAR_FUNCTIONS[spec.memory.activation](symbol("x"))


def activation_name(spec: Spec) -> str:
    """The activation in equations."""
    return "sigma" if spec.activation_expression is not None else spec.memory.activation


def _normed(b: Builder, value: Node, size: int, labels: Mapping[str, Label]) -> Node:
    """The layer norm over v, without affine parameters."""
    x, mean, total = sympy.symbols("x mean total", real=True)
    whole = b.call(b.sum(value, "v"), labels["sum"])
    centred = b.call(b.map(x - mean / size, {x: value, mean: whole}), labels["centred"])
    squares = b.call(b.sum(b.map(x**2, {x: centred}), "v"), labels["squares"])
    return b.call(b.map(x / sympy.sqrt(total / size + EPSILON), {x: centred, total: squares}), labels["normed"])
