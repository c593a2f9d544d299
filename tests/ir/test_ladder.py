"""The ladder: token-by-token definition = tile programs evaluated = after each rewrite = printed torch, float64.

Values and gradients, for random rules: up to three slots, lags, gates of every kind, lines that read above and below,
objectives whose gradients read the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from mcgen.emit.module.file import module_source
from mcgen.passes.simplify import simplify
from mcgen.spec import Spec
from mcgen.symbolic.meaning import meaning
from tests.emit.fragments import inputs, leaves, reference_of, run
from tests.ir.walk import read_heads
from tests.symbolic.rules import learning, small, updates

HALF, HUBER = "sum((p - v)**2)/2", "sum(sqrt(1 + (p - v)**2))"
MOMENTUM = {"steps": ["S = beta*S + outer(v, k[-1])", "M = alpha*M + lam*S + outer(v, k)"]}
AGGREGATES = [
    {"kind": "none"},
    {"kind": "residual"},
    {"kind": "mean"},
    {"kind": "grm"},
    {"kind": "soup", "connector": "q", "pool": "sum", "scale": -0.5},
    {"kind": "ssc", "top_k": 2},
]
SEGMENTS = [{"size": 7}, {"size": 7, "init": "checkpoint"}, {"mode": "logarithmic"}, {"size": 100}]
RANDOM = settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

Op = Callable[..., torch.Tensor]


def arguments_of(spec: Spec, T: int, seed: int) -> dict[str, Any]:
    """Arguments with gates in (0.1, 0.9), exact zeros and ones among them."""
    return inputs(spec, T, B=1, H=2, seed=seed)


def gradients(y: torch.Tensor, arguments: dict[str, Any]) -> list[torch.Tensor]:
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    tensors = list(leaves(arguments).values())
    return list(torch.autograd.grad((y * weights).sum(), tensors, allow_unused=True, materialize_grads=True))


def assert_equal(got: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-10) -> None:
    assert torch.isfinite(got).all()
    assert (got - wanted).abs().max() <= tolerance * (1 + wanted.abs().max())


def assert_same(op: Op, other: Op, arguments: dict[str, Any]) -> None:
    """Values and gradients of two functions of the same arguments agree."""
    y, wanted = op(**arguments), other(**arguments)
    assert_equal(y, wanted)
    for g, expected in zip(gradients(y, arguments), gradients(wanted, arguments), strict=True):
        assert_equal(g, expected)


POWERS = {"steps": ["M = b**c*M + outer(v, k)"], "gates": {}}


@settings(RANDOM, max_examples=40)
@example(POWERS, AGGREGATES[3], SEGMENTS[0], 20, 4, 0)
@given(
    updates(),
    st.sampled_from(AGGREGATES),
    st.sampled_from(SEGMENTS),
    st.integers(1, 20),
    st.integers(1, 9),
    st.integers(0, 99),
)
def test_programs_mean_what_the_lines_say(
    update: dict[str, Any], aggregate: dict[str, Any], segment: dict[str, Any], T: int, chunk: int, seed: int
) -> None:
    spec = small(update, aggregate=aggregate, segment=segment)
    understood = meaning(spec)
    arguments, definition = arguments_of(spec, T, seed), reference_of(spec)
    assert_same(lambda **tensors: read_heads(understood, tensors, chunk), definition, arguments)
    assert_same(lambda **tensors: read_heads(understood, tensors, chunk, simplify), definition, arguments)


@settings(RANDOM, max_examples=40)
@given(
    learning(),
    st.sampled_from(AGGREGATES),
    st.sampled_from(SEGMENTS),
    st.integers(1, 20),
    st.integers(1, 9),
    st.integers(0, 99),
)
def test_programs_that_read_the_memory_mean_what_the_lines_say(
    update: dict[str, Any], aggregate: dict[str, Any], segment: dict[str, Any], T: int, chunk: int, seed: int
) -> None:
    spec = small(update, aggregate=aggregate, segment=segment)
    understood = meaning(spec)
    chunk = gcd(chunk, understood.gradient_chunk or chunk)
    arguments, definition = arguments_of(spec, T, seed), reference_of(spec)
    assert_same(lambda **tensors: read_heads(understood, tensors, chunk), definition, arguments)
    assert_same(lambda **tensors: read_heads(understood, tensors, chunk, simplify), definition, arguments)


@settings(
    RANDOM, max_examples=14, phases=(Phase.explicit, Phase.generate)
)  # a module takes too long to build to shrink
@given(
    updates(),
    st.sampled_from(AGGREGATES),
    st.sampled_from(SEGMENTS),
    st.sampled_from([1, 2, 15, 70]),
    st.integers(0, 99),
)
@example(POWERS, {"kind": "grm"}, {"size": 7}, 15, 0)
@example({"steps": ["M = outer(v[-1], k[-1])"], "gates": {}}, {"kind": "none"}, {"size": 7}, 15, 0)
@example({"steps": ["M = a*M - a*M + outer(v, k)"], "gates": {}}, {"kind": "grm"}, {"size": 7}, 15, 0)
@example({"steps": ["S = outer(v, k)", "M = 0.5*M + 2*S"], "gates": {}}, {"kind": "grm"}, {"size": 7}, 15, 0)
@example({"steps": ["M = exp(-abs(a))*M + outer(v, k)"], "gates": {"a": 0.75}}, {"kind": "none"}, {"size": 7}, 2, 0)
def test_printed_torch_means_what_the_lines_say(
    update: dict[str, Any], aggregate: dict[str, Any], segment: dict[str, Any], T: int, seed: int
) -> None:
    spec = small(update, aggregate=aggregate, segment=segment)
    module = run(module_source(meaning(spec)))
    assert_same(
        lambda **arguments: module.op(**arguments, backend="torch"), module.reference, arguments_of(spec, T, seed)
    )


@pytest.mark.parametrize("aggregate", AGGREGATES, ids=lambda a: a["kind"])
@pytest.mark.parametrize("segment", SEGMENTS, ids=["independent", "checkpoint", "logarithmic", "one"])
def test_every_aggregate(aggregate: dict[str, Any], segment: dict[str, Any]) -> None:
    spec = small(MOMENTUM, aggregate=aggregate, segment=segment)
    understood = meaning(spec)
    for chunk in (3, 64):
        assert_same(
            lambda chunk=chunk, **arguments: read_heads(understood, arguments, chunk, simplify),
            reference_of(spec),
            arguments_of(spec, 23, chunk),
        )


@pytest.mark.parametrize(
    ("update", "chunks"),
    [
        ({"rule": "gated_delta"}, (1, 4, 64)),
        ({"rule": "titans"}, (4, 64)),
        ({"objective": HALF, "steps": ["M = M - eta*grad", "M = alpha*M", "M = M - 0.1*grad"]}, (4, 64)),
        ({"objective": HALF, "steps": ["M = alpha*M + S", "S = beta*S - eta*grad + outer(v[-1], k)/9"]}, (4, 64)),
        ({"rule": "titans", "gradient": {"chunk": 4}}, (2, 4, 64)),
        ({"objective": HUBER, "steps": ["M = alpha*M - eta*grad"], "gradient": {"chunk": 6}}, (3, 6)),
    ],
)
def test_writes_that_read_the_memory(update: dict[str, Any], chunks: tuple[int, ...]) -> None:
    spec = small(update, segment={"size": 12})
    understood, arguments = meaning(spec), arguments_of(spec, 27, 0)
    for chunk in chunks:
        assert_same(
            lambda chunk=chunk, **tensors: read_heads(understood, tensors, chunk, simplify),
            reference_of(spec),
            arguments,
        )
