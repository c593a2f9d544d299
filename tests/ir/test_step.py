"""Chunk steps: their derivative programs against autograd, and the masked ones, which run past a sequence's end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mcgen.ir import aggregate
from mcgen.ir.evaluate import evaluate
from mcgen.ir.program import Program
from mcgen.ir.step import step, step_vjp
from mcgen.passes.simplify import simplify
from mcgen.symbolic.meaning import Meaning, meaning
from tests.ir.values import CACHED, TOKENS, Tensors, draw, sizes
from tests.symbolic.rules import learning, small, updates

RATIOS = {
    "objective": "sum(p/v + p*log(v**2))",
    "steps": ["M = M/a - log(b)*grad"],
}
"""A rule that is finite at no padding: it divides by gates, and its writes by values."""


def assert_derivative(forward: Program, reverse: Program, seed: int = 0) -> None:
    """A program's derivative program gives what autograd makes of the evaluator's run of it."""
    lengths = sizes()
    inputs = {name: x.requires_grad_() for name, x in draw(forward, lengths, seed).items()}
    outputs = evaluate(forward, inputs, lengths)
    torch.manual_seed(seed)
    cotangents = {f"d_{name}": torch.randn(y.shape, dtype=y.dtype) for name, y in outputs.items()}
    given = [name for name, y in outputs.items() if y.requires_grad]
    found = torch.autograd.grad(
        [outputs[name] for name in given],
        list(inputs.values()),
        [cotangents[f"d_{name}"] for name in given],
        allow_unused=True,
        materialize_grads=True,
    )
    expected = dict(zip(inputs, found, strict=True))
    for label, got in evaluate(reverse, {**inputs, **cotangents}, lengths).items():
        wanted = expected.get(label.removeprefix("d_"), torch.zeros_like(got))
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.one_of(updates(), learning()), st.sampled_from(["none", "grm"]), st.integers(0, 99))
@example({"steps": ["M = a*M - a*M + outer(v[-1], k[-1])"], "gates": {}}, "grm", 0)
def test_the_derivative_of_a_step(update: dict[str, Any], kind: str, seed: int) -> None:
    understood = meaning(small(update, aggregate={"kind": kind}))
    reverse = step_vjp(understood)
    tensors = ["q", "k", "v", *(["u"] if kind == "grm" else []), *understood.spec.tensor_gates]
    assert {f"d_{name}" for name in tensors} <= reverse.outputs.keys()
    for rewritten in (reverse, simplify(reverse)):
        assert_derivative(step(understood), rewritten, seed)


@pytest.mark.parametrize(
    "update",
    [
        {"rule": "gated_delta"},
        {"rule": "titans"},
        {"rule": "titans", "gradient": {"chunk": 6}},
        {"objective": "sum((p - v)**4)", "steps": ["M = alpha*M - eta*grad"], "gradient": {"chunk": 6}},
    ],
    ids=["decay first", "momentum", "momentum at the start", "quartic"],
)
def test_the_derivative_of_a_step_that_reads_the_memory(update: dict[str, Any]) -> None:
    understood = meaning(small(update))
    assert_derivative(step(understood), simplify(step_vjp(understood)))


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("residual", aggregate.accumulate),
        ("mean", aggregate.accumulate),
        ("grm", aggregate.blend),
        ("grm", aggregate.read_segment),
        ("ssc", aggregate.logits),
        ("ssc", aggregate.weigh),
        ("ssc", aggregate.read_weighted),
        ("ssc", aggregate.add_up),
    ],
    ids=lambda x: x if isinstance(x, str) else x.__name__,
)
@pytest.mark.parametrize("connector", ["u", "q"])
def test_the_derivative_of_a_read(kind: str, make: Any, connector: str) -> None:
    top_k = {"top_k": 2} if kind == "ssc" else {}
    chosen = {"kind": kind, "connector": connector, "scale": -1.5, "pool": "sum", **top_k}
    understood = meaning(small({"rule": "decay"}, aggregate=chosen, segment={"size": 4}))
    assert_derivative(aggregate.program(make, understood), simplify(aggregate.program_vjp(make, understood)))


def test_weights_of_no_segment_at_all_are_zero() -> None:
    """-inf is the logit where a row chose fewer segments: its weight and its gradient are 0."""
    understood = meaning(small({"rule": "linear"}, aggregate={"kind": "ssc", "top_k": 2}))
    inputs = {"r": torch.zeros(TOKENS).double(), "r_chosen": torch.full((TOKENS, CACHED), -torch.inf).double()}
    out = evaluate(aggregate.program(aggregate.weigh, understood), inputs, sizes())
    assert torch.equal(out["w"], torch.ones(TOKENS).double())
    assert not out["w_chosen"].any()
    inputs |= {"d_w": torch.ones(TOKENS).double(), "d_w_chosen": torch.ones(TOKENS, CACHED).double()}
    reverse = evaluate(aggregate.program_vjp(aggregate.weigh, understood), inputs, sizes())
    assert all(not gradient.any() for gradient in reverse.values())


def padded(inputs: Tensors, program: Program, count: int, more: int) -> Tensors:
    """Inputs of `count` tokens with zeros behind: what a masked load gives."""
    result = {}
    for name, x in inputs.items():
        for axis, letter in enumerate(program.inputs[name].axes):
            if letter in ("t", "j"):
                shape = [more if d == axis else n for d, n in enumerate(x.shape)]
                x = torch.cat([x, x.new_zeros(shape)], axis)
        result[name] = x
    return result


def masked_inputs(program: Program, plain: Program, count: int, seed: int) -> tuple[Tensors, Tensors]:
    inputs = draw(plain, sizes(count), seed)
    whole = padded(inputs, plain, count, TOKENS - count)
    whole["valid"] = (torch.arange(TOKENS) < count).double()
    whole["count"] = torch.arange(1.0, TOKENS + 1).double()  # a kernel counts on
    return inputs, {name: whole[name] for name in program.inputs}


def assert_rows(got: Tensors, wanted: Tensors, program: Program, count: int) -> None:
    for name, expected in wanted.items():
        rows = got[name]
        for axis, letter in enumerate(program.outputs[name].axes):
            rows = rows.narrow(axis, 0, count) if letter in ("t", "j") else rows
        torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-12)


def both(understood: Meaning, make: Any) -> tuple[Program, Program]:
    return simplify(make(understood, masked=True)), simplify(make(understood))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.one_of(updates(), learning()), st.sampled_from(["none", "grm"]), st.integers(1, TOKENS), st.integers(0, 99))
@example({"steps": ["M = 0.5*M + 2*outer(v, k)"], "gates": {}}, "grm", 3, 0)
@example({"steps": ["S = outer(v, k)", "M = S"], "gates": {}}, "grm", 3, 0)
def test_tokens_past_the_end_change_nothing(update: dict[str, Any], kind: str, count: int, seed: int) -> None:
    """Neither the state at the end nor any row or gradient of the tokens that are there."""
    understood = meaning(small(update, aggregate={"kind": kind}))
    for make in (step, step_vjp):
        masked, plain = both(understood, make)
        inputs, whole = masked_inputs(masked, plain, count, seed)
        assert_rows(evaluate(masked, whole, sizes()), evaluate(plain, inputs, sizes(count)), plain, count)


def test_padding_that_a_rule_is_infinite_at_changes_nothing() -> None:
    understood = meaning(small(RATIOS))
    for make in (step, step_vjp):
        masked, plain = both(understood, make)
        inputs, whole = masked_inputs(masked, plain, 4, 0)
        for tensors in (inputs, whole):
            tensors |= {name: tensors[name].clone() for name in ("a", "b", "v")}
            for name in ("a", "b", "v"):
                tensors[name][:4] = tensors[name][:4].abs() + 0.5
        assert_rows(evaluate(masked, whole, sizes()), evaluate(plain, inputs, sizes(4)), plain, 4)


@pytest.mark.parametrize(
    "update", [{"rule": "gated_delta"}, {"rule": "titans"}, {"rule": "titans", "gradient": {"chunk": 6}}]
)
def test_tokens_past_the_end_change_no_memory_that_is_read(update: dict[str, Any]) -> None:
    understood = meaning(small(update))
    for make in (step, step_vjp):
        masked, plain = both(understood, make)
        inputs, whole = masked_inputs(masked, plain, 4, 0)
        assert_rows(evaluate(masked, whole, sizes()), evaluate(plain, inputs, sizes(4)), plain, 4)
