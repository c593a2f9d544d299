"""Writes that read the memory, whole: the printed torch path in float64 against the printed definition.

Delta rules, momentum, cascades, several gradients a token; token by token and over chunks; values and gradients.
"""

from __future__ import annotations

import json
from functools import lru_cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mcgen.emit.module.file import module_source
from mcgen.errors import UnsupportedError
from mcgen.pipeline import source
from mcgen.spec import Spec, loads
from mcgen.symbolic.meaning import Meaning, meaning
from tests.emit.fragments import difference, gradients, inputs, reference_of, run, spec_of
from tests.symbolic.rules import learning, small

HALF, SQUARES = "sum((p - v)**2)/2", "sum((p - v)**2)"
TILTED = "dot(p, p)/3 - dot(p, sin(v)) + sum(v*p)/2"
HUBER, WEIGHTED = "sum(sqrt(1 + (p - v)**2))", "sum((v**2 + 1)*(p - v)**2)"

DELTA, GATED, TITANS = ({"rule": name} for name in ("delta", "gated_delta", "titans"))
TOGETHER = {"objective": HALF, "steps": ["M = alpha*M - eta*grad"]}
MOMENTUM = {"objective": HALF, "steps": ["S = beta*S + eta*grad", "M = alpha*M - lam*S"]}
LATE = {"objective": HALF, "steps": ["M = alpha*M + S", "S = beta*S - eta*grad"]}
TWICE = {"objective": HALF, "steps": ["M = M - eta*grad", "M = alpha*M", "M = M - 0.1*grad"]}
THRICE = {
    "objective": TILTED,
    "steps": ["S = beta*S - eta*grad + outer(v[-1], k)/9", "M = alpha*M + S - 0.1*grad", "M = M - eta*grad/2"],
}
CASCADE = {
    "objective": TILTED,
    "steps": ["R = beta*R - eta*grad", "S = alpha*S + R + outer(v, k[-2])/8", "M = alpha*M + beta*S/4"],
}
RULES = {
    "delta": DELTA,
    "gated": GATED,
    "titans": TITANS,
    "together": TOGETHER,
    "momentum": MOMENTUM,
    "late": LATE,
    "twice": TWICE,
    "thrice": THRICE,
    "cascade": CASCADE,
}
AGGREGATES = {
    "none": {"kind": "none"},
    "residual": {"kind": "residual"},
    "mean": {"kind": "mean"},
    "grm": {"kind": "grm"},
    "soup": {"kind": "soup", "connector": "q", "scale": 0.5},
    "ssc": {"kind": "ssc", "top_k": 2, "pool": "sum"},
}
SEGMENTS = {
    "independent": {"size": 16, "init": "independent"},
    "checkpoint": {"size": 16, "init": "checkpoint"},
    "logarithmic": {"mode": "logarithmic", "init": "independent"},
    "logarithmic checkpoint": {"mode": "logarithmic", "init": "checkpoint"},
}
SMALL_SEGMENTS = {name: {**segment, "size": 7} if "size" in segment else segment for name, segment in SEGMENTS.items()}
HEAD = {"head": {"key_dim": 6, "value_dim": 5}}


def over(rule: dict[str, Any], chunk: int) -> dict[str, Any]:
    return {**rule, "gradient": {"chunk": chunk}}


def spec(update: dict[str, Any], aggregate: str = "grm", segment: str = "independent") -> Spec:
    return spec_of(update, aggregate=AGGREGATES[aggregate], segment=SEGMENTS[segment], **HEAD)


def module_of(parsed: Spec) -> SimpleNamespace:
    return _module(json.dumps(parsed.to_dict()))


@lru_cache(maxsize=64)
def _module(text: str) -> SimpleNamespace:
    return torch_module(meaning(loads(text)))


def torch_module(understood: Meaning) -> SimpleNamespace:
    """A module without its kernels, which take longest to print."""
    nothing = "_run_forward_triton = _run_backward_triton = _saved_triton = None"
    with mock.patch("mcgen.emit.module.file.triton_source", return_value=nothing):
        return run(module_source(understood))


def assert_same(y: torch.Tensor, expected: torch.Tensor, arguments: dict[str, Any], tolerance: float = 1.0) -> None:
    """y to 1e-10 and the gradients to 1e-8 of those expected, norm by norm, times the tolerance."""
    assert torch.isfinite(y).all()
    assert (y - expected).norm() <= tolerance * (1e-10 * expected.norm() + 1e-13)
    wanted = gradients(expected, arguments)
    for name, got in gradients(y, arguments).items():
        assert (got - wanted[name]).norm() <= tolerance * (1e-8 * wanted[name].norm() + 1e-12), name


def against_reference(parsed: Spec, T: int, tolerance: float = 1.0, **others: Any) -> None:
    module, arguments = module_of(parsed), inputs(parsed, T, **{"B": 1, **others})
    y = module.op(**arguments, backend="torch")
    assert_same(y, module.reference(**arguments), arguments, tolerance)


PLACES = [(aggregate, segment) for aggregate in AGGREGATES for segment in SEGMENTS]
CHUNKED = [over(rule, chunk) for rule in (TITANS, TWICE, CASCADE) for chunk in (5, 16)]


@pytest.mark.parametrize("number", range(len(PLACES)), ids=[" ".join(place) for place in PLACES])
def test_every_aggregate_and_segment(number: int) -> None:
    """Every aggregate with every kind of segment; the rules in turn, token by token and over chunks."""
    rules = [*RULES.values(), *CHUNKED]
    against_reference(spec(rules[number % len(rules)], *PLACES[number]), 75)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule(rule: str) -> None:
    against_reference(spec(RULES[rule], "grm"), 63, H=1, B=2)


@pytest.mark.parametrize("T", [1, 2, 16, 17, 63, 100])
@pytest.mark.parametrize("rule", [GATED, over(TITANS, 5)], ids=["token", "chunk"])
def test_every_length(rule: dict[str, Any], T: int) -> None:
    against_reference(spec(rule, "grm", "checkpoint"), T)


@pytest.mark.parametrize("chunk", [1, 2, 7, 15, 16, 99])
@pytest.mark.parametrize("rule", ["titans", "huber"])
def test_every_gradient_chunk(rule: str, chunk: int) -> None:
    """From one token to the whole segment, dividing it or not, with an affine error row and one that is not."""
    update = {**TOGETHER, "objective": HUBER} if rule == "huber" else TITANS
    against_reference(spec(over(update, chunk), "none" if chunk == 7 else "grm"), 40)


@pytest.mark.parametrize("chunk", [100, 128])
def test_gradient_chunks_of_several_steps(chunk: int) -> None:
    """Chunks longer than a step of the walk, which then carries the memory at their start."""
    update = over({**MOMENTUM, "objective": HUBER}, chunk)
    against_reference(spec_of(update, aggregate={"kind": "grm"}, segment={"size": 150}, **HEAD), 260, H=1)


@pytest.mark.parametrize("size", [12, 31, 90])
def test_walks_in_small_panels(size: int) -> None:
    """Segments in several panels, of lengths no chunk divides, several in a panel."""
    parsed = spec_of(THRICE, aggregate={"kind": "ssc", "top_k": 2}, segment={"size": size}, **HEAD)
    module, arguments = torch_module(meaning(parsed)), inputs(parsed, 100, B=1)
    module.op.__globals__.update(TOKENS=8, PANEL_ROWS=48, SCRATCH=1, TILE=4)
    assert_same(module.op(**arguments, backend="torch"), module.reference(**arguments), arguments)


# -- identities of SEMANTICS 5 ----------------------------------------------------------------------------------------


def test_titans_without_momentum_is_gradient_descent() -> None:
    """Identity 5, with beta = 0 as a tensor: two slots against one."""
    both, one = spec(TITANS), spec({**TOGETHER, "objective": SQUARES})
    arguments = inputs(both, 50)
    shared = {name: x for name, x in arguments.items() if name != "beta"}
    y = module_of(both).op(**shared, beta=torch.zeros_like(shared["eta"]), backend="torch")
    assert_same(y, module_of(one).op(**shared, backend="torch"), shared)


def test_the_dot_objective_is_a_hebbian_write() -> None:
    """Identity 5, on a matrix memory: a write gated by eta."""
    dot = spec({"objective": "-dot(p, v)", "steps": ["M = alpha*M - eta*grad"]}, "ssc")
    outer = spec({"steps": ["M = alpha*M + eta*outer(v, k)"]}, "ssc")
    arguments = inputs(dot, 50)
    y = module_of(dot).op(**arguments, backend="torch")
    assert_same(y, module_of(outer).op(**arguments, backend="torch"), arguments)


@pytest.mark.parametrize("rule", ["together", "titans", "momentum"])
def test_chunks_of_one_token_are_token_gradients(rule: str) -> None:
    """Identity 6."""
    token, chunk = spec(RULES[rule], "mean"), spec(over(RULES[rule], 1), "mean")
    arguments = inputs(token, 50)
    y = module_of(chunk).op(**arguments, backend="torch")
    assert_same(y, module_of(token).op(**arguments, backend="torch"), arguments)


def test_chunks_of_one_token_are_token_gradients_where_only_they_are_lowered() -> None:
    """Identity 6 with a curvature that depends on the memory: one definition against the other's torch path."""
    update = {**TOGETHER, "objective": HUBER}
    arguments = inputs(spec(update), 40)
    y = module_of(spec(over(update, 1))).op(**arguments, backend="torch")
    assert_same(y, reference_of(spec(update))(**arguments), arguments)


@pytest.mark.parametrize(("chunk", "same"), [(None, False), (1, True), (4, True)])
def test_decay_first_and_decay_together(chunk: int | None, same: bool) -> None:
    """Two rules under token gradients, one under chunk gradients."""
    first, together = (spec(over(rule, chunk) if chunk else rule) for rule in (GATED, TOGETHER))
    arguments = inputs(first, 40)
    y, other = (module_of(parsed).op(**arguments, backend="torch") for parsed in (first, together))
    assert same == (difference(y, other) < 1e-12)
    assert same or difference(y, other) > 1e-3


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [HUBER, WEIGHTED, "sum((p - v)**4)", "sum(exp(p)*v)"])
def test_what_has_no_parallel_form_is_refused_and_still_defined(objective: str) -> None:
    """`check` accepts it, and its definition can be printed and run; `build` names what would be lowered."""
    together, first = (
        {**rule, "objective": objective} for rule in (TOGETHER, {"steps": ["M = alpha*M", "M = M - eta*grad"]})
    )
    with pytest.raises(UnsupportedError, match=r"gradient: \{chunk: b\}.*\{chunk: 1\} is the same"):
        source(spec(together))
    with pytest.raises(UnsupportedError, match=r"gradient: \{chunk: b\}$"):
        source(spec(first))
    arguments = inputs(spec(together), 20)
    y = reference_of(spec(together))(**arguments)
    assert y.shape == arguments["v"].shape
    assert all(torch.isfinite(g).all() for g in gradients(y, arguments).values())


# -- random rules -----------------------------------------------------------------------------------------------------


@settings(
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    phases=(Phase.explicit, Phase.generate),  # a module takes too long to build to shrink
)
@given(learning(), st.sampled_from(PLACES), st.sampled_from([1, 2, 15, 20]), st.integers(0, 99))
def test_random_rules(update: dict[str, Any], place: tuple[str, str], T: int, seed: int) -> None:
    """Up to three slots, lags, several gradients a token, in any order: gradients of any objective that is lowered."""
    aggregate, segment = (kinds[name] for kinds, name in zip((AGGREGATES, SMALL_SEGMENTS), place, strict=True))
    parsed = small(update, aggregate=aggregate, segment=segment)
    against_reference(parsed, T, seed=seed, H=1)
