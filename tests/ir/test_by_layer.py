"""A deep memory's chunk step layer by layer against the whole step and its derivative, in float64."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from mcgen.ir import by_layer
from mcgen.ir.aggregate import program, program_vjp
from mcgen.ir.backward import whole
from mcgen.ir.evaluate import evaluate
from mcgen.ir.layers import layers
from mcgen.ir.layers import sizes as layer_sizes
from mcgen.ir.program import Program
from mcgen.ir.step import state_axes, step
from mcgen.passes.simplify import simplify
from mcgen.spec import loads
from mcgen.symbolic.meaning import Meaning, meaning
from tests.ir.values import TOKENS, Tensors, draw, sizes

TITANS = {"rule": "titans", "gradient": {"chunk": 6}}
TWICE = {
    "objective": "sum(sqrt(1 + (p - v)**2))",
    "steps": ["M = alpha*M - eta*grad", "M = M - lam*grad"],
    "gradient": {"chunk": 6},
}
UNREAD = {**TWICE, "steps": ["S = beta*S - eta*grad", "M = alpha*M - 0.1*grad"], "gates": {"alpha": 0.9}}
CASES = {
    "two layers": (TITANS, {"norm": "layernorm"}, "none"),
    "three layers": (TITANS, {"layers": 3, "activation": "silu", "residual": False}, "residual"),
    "four layers, two gradients": (TWICE, {"layers": 4, "activation": "tanh"}, "mean"),
    "a slot that is not read": (UNREAD, {"residual": False}, "none"),
    "routed": (TITANS, {"norm": "layernorm", "activation": "sigmoid"}, "grm"),
}


def understood(update: dict[str, Any], memory: dict[str, Any], kind: str) -> Meaning:
    document = {
        "mcgen": 1,
        "name": "case",
        "memory": {"kind": "mlp", "expansion": 2, **memory},
        "update": update,
        "aggregate": {"kind": kind},
        "segment": {"size": 6},
        "head": {"key_dim": 3, "value_dim": 3},
    }
    return meaning(loads(json.dumps(document)))


class Run:
    """Values by name, to which programs add theirs; what several layers have a share of is added up."""

    def __init__(self, given: Meaning, values: Mapping[str, torch.Tensor]) -> None:
        self.lengths = {**sizes(), **layer_sizes(given.spec)}
        self.values: Tensors = dict(values)

    def run(self, given: Program) -> Tensors:
        program = simplify(given)
        found = evaluate(program, {name: self.values[name] for name in program.inputs}, self.lengths)
        self.values |= found
        return found


@pytest.mark.parametrize("case", CASES)
def test_layer_by_layer_is_the_step(case: str) -> None:
    given = understood(*CASES[case])
    masked = step(given, masked=True)
    inputs = draw(masked, {**sizes(), **layer_sizes(given.spec)}, 0)
    run = Run(given, inputs)
    expected = Run(given, inputs).run(masked)
    run.values |= {f"anchor{layer.suffix}": inputs[f"M{layer.suffix}"] for layer in layers(given.spec)}
    run.run(program(by_layer.errors, given))
    for layer in layers(given.spec):
        run.run(program(by_layer.layer_step, given, layer))
    run.run(program(by_layer.online, given))
    if given.routes:
        run.run(program(by_layer.logits, given))
    there = inputs["valid"] > 0
    for name, value in expected.items():
        rows = masked.outputs[name].axes[0] == "t"
        got = run.values[name]
        torch.testing.assert_close(got[there] if rows else got, value[there] if rows else value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_its_reverse_is_the_derivative(case: str) -> None:
    given = understood(*CASES[case])
    reverse = whole(given)
    inputs = draw(reverse, {**sizes(), **layer_sizes(given.spec)}, 1)
    inputs["valid"] = torch.ones(TOKENS).double()
    inputs |= {"online": torch.rand(TOKENS).double()} if given.routes else {}
    expected = Run(given, inputs).run(reverse)
    every = layers(given.spec)
    run = Run(given, inputs)
    run.values |= {f"anchor{layer.suffix}": inputs[f"M{layer.suffix}"] for layer in every}
    run.run(program(by_layer.errors, given))
    for layer in every:
        run.run(program(by_layer.layer_step, given, layer))
    run.run(by_layer.reverse_online(given))
    for layer in reversed(every):
        run.run(by_layer.reverse_layer(given, layer))
    state = {f"d_{name}": run.values[f"d_{name}"] for name in state_axes(given) if name != "pool"}
    if given.routes:
        logits = run.run(program_vjp(by_layer.logits, given))
        run.values["d_k_rows"] = logits["d_k"]
        run.values["d_u_rows"] = inputs["d_u_rows"] + logits["d_u"]
    found = run.run(by_layer.inputs(given))
    for layer in every:  # a gradient chunk begins here: the anchor is the memory before it
        state[f"d_M{layer.suffix}"] = state[f"d_M{layer.suffix}"] + found[f"d_anchor{layer.suffix}"]
    for name, value in expected.items():
        got = {**run.values, **state, **found}[name]
        torch.testing.assert_close(got, value, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
