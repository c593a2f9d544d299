"""What a value is called follows it through every pass: a label stands at what equals the value it was given to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from mcgen.emit.torch.path import REWRITES, RULES
from mcgen.ir.evaluate import evaluate
from mcgen.ir.layers import sizes as layer_sizes
from mcgen.ir.program import Node, Program
from mcgen.ir.step import state_axes, step_with_vjp
from mcgen.passes.factors import FACTORS
from mcgen.passes.hoist import part
from mcgen.passes.narrow import narrow
from mcgen.passes.schedule import chained
from mcgen.passes.simplify import simplify
from mcgen.passes.solves import solves_apart
from mcgen.symbolic.meaning import Meaning, meaning
from tests.emit.fragments import spec_of

HEAD = {"head": {"key_dim": 3, "value_dim": 3}}
DEEP = {"memory": {"kind": "mlp", "expansion": 2, "norm": "layernorm"}, **HEAD}
MEANINGS = {
    "a matrix": lambda: meaning(
        spec_of({"steps": ["S = beta*S + outer(v, k[-1])", "M = alpha*M + lam*S + outer(v, k)"]}, **HEAD)
    ),
    "a rule that reads itself": lambda: meaning(spec_of({"rule": "gated_delta"}, **HEAD)),
    "an mlp": lambda: meaning(spec_of({"rule": "titans", "gradient": {"chunk": 4}}, **DEEP)),
}
PASSES: Mapping[str, Callable[[Program, Meaning], Program]] = {
    "simplify": lambda program, _: simplify(program, RULES),
    "products": lambda program, _: simplify(program, REWRITES),
    "factors": lambda program, _: simplify(program, FACTORS),
    "chained": lambda program, _: chained(program),
    "part": lambda program, found: part(simplify(program, RULES), state_axes(found)),
    "solves apart": lambda program, found: solves_apart(simplify(program, RULES), state_axes(found)),
    "narrow": lambda program, found: narrow(simplify(program, REWRITES), layer_sizes(found.spec)),
}


def lengths(found: Meaning) -> dict[str, int]:
    return {**dict.fromkeys("tsmj", 4), "n": 2, **layer_sizes(found.spec)}


def random_inputs(program: Program, size: Mapping[str, int]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda node: torch.rand([size[axis] for axis in node.axes], generator=generator, dtype=torch.float64)  # noqa: E731
    return {name: draw(node) + 0.1 for name, node in program.inputs.items()}


def called(program: Program) -> dict[str, list[Node]]:
    """The values of a program by what their makers call them."""
    found: dict[str, list[Node]] = {}
    for node in program.nodes:
        if node.label and not node.label.part:
            found.setdefault(node.label.name, []).append(node)
    return found


def values_of(program: Program, inputs: Mapping[str, Any], size: Mapping[str, int]) -> dict[str, list[torch.Tensor]]:
    nodes = called(program)
    outputs = {f"{name} {i}": node for name, some in nodes.items() for i, node in enumerate(some)}
    found = evaluate(Program("labels", outputs), inputs, size)
    return {name: [found[f"{name} {i}"] for i in range(len(some))] for name, some in nodes.items()}


def same(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether two values are one, whatever axes they are the same along."""
    return (x.numel() == y.numel() or 1 in x.shape or 1 in y.shape or x.dim() != y.dim()) and bool(
        torch.allclose(x.sum() / x.numel(), y.sum() / y.numel(), rtol=1e-9)
        and torch.allclose(x.square().sum() / x.numel(), y.square().sum() / y.numel(), rtol=1e-9)
    )


@pytest.mark.parametrize("one", PASSES)
@pytest.mark.parametrize("kind", MEANINGS)
def test_a_name_follows_its_value(kind: str, one: str) -> None:
    found = MEANINGS[kind]()
    program = step_with_vjp(found)
    after, size = PASSES[one](program, found), lengths(found)
    inputs = random_inputs(program, size)
    before = values_of(program, inputs, size)
    kept = {name: values for name, values in values_of(after, inputs, size).items() if name in before}
    assert len(kept) > len(before) / 2
    for name, values in kept.items():
        assert all(any(same(value, other) for other in before[name]) for value in values), name


@pytest.mark.parametrize("kind", MEANINGS)
def test_most_names_are_still_there_after_all_passes(kind: str) -> None:
    found = MEANINGS[kind]()
    program = step_with_vjp(found)
    after = narrow(simplify(program, REWRITES), layer_sizes(found.spec))
    kept = called(simplify(program, RULES)).keys() & called(after).keys()
    assert len(kept) > 0.8 * len(called(simplify(program, RULES)))
