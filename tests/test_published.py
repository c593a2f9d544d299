"""Rules that others have published, against flash-linear-attention's own plain torch references of them.

Theirs work in float32 whatever they are given; ours runs in float64 here, so what is left is their rounding. They take
decays as logarithms, scale q by 1/sqrt(K) unless told another scale, and some have heads before tokens; each function
below says how it maps ours to theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.ratios import naive
from mcgen.spec import Spec, load
from mcgen.spec.shipped import shipped
from tests.emit.fragments import gradients, inputs, spec_of
from tests.test_delta import module_of

Tensor = torch.Tensor
Peer = Callable[..., Tensor]
HEAD = {"head": {"key_dim": 16, "value_dim": 12}}
T = 100


def heads_first(*tensors: Tensor) -> tuple[Tensor, ...]:
    """(B, T, H, ...) as (B, H, T, ...), or back."""
    return tuple(x.transpose(1, 2) for x in tensors)


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """S = S + k vᵀ: ours, with scale 1."""
    return naive("linear_attn").naive_recurrent_linear_attn(q, k, v, scale=1.0)[0]


def retention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """S = (1 - 2^(-5 - h)) S + k vᵀ; heads first, and its scale of 1/sqrt(K) undone in q."""
    y = naive("retention").naive_retention(*heads_first(q * q.shape[-1] ** 0.5, k, v))
    return heads_first(y)[0]


def simple_gla(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor) -> Tensor:
    """S = exp(g) S + k vᵀ: g is the logarithm of our alpha."""
    return naive("simple_gla").naive_recurrent_simple_gla(q, k, v, alpha.log(), scale=1.0)[0]


def chunked_simple_gla(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor) -> Tensor:
    return naive("simple_gla").naive_chunk_simple_gla(q, k, v, alpha.log(), scale=1.0)[0]


def delta_rule(q: Tensor, k: Tensor, v: Tensor, eta: Tensor) -> Tensor:
    """S = S + beta k (v - Sᵀ k)ᵀ: beta is our eta; heads first, and its scale of 1/sqrt(K) undone in q."""
    y = naive("delta_rule").delta_rule_recurrence(*heads_first(q * q.shape[-1] ** 0.5, k, v, eta))[0]
    return heads_first(y)[0]


def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, eta: Tensor) -> Tensor:
    """S = exp(g) S, then the delta rule: g is the logarithm of our alpha, beta our eta."""
    return naive("gated_delta_rule").naive_recurrent_gated_delta_rule(q, k, v, eta, alpha.log(), scale=1.0)[0]


def chunked_gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, eta: Tensor) -> Tensor:
    return naive("gated_delta_rule").naive_chunk_gated_delta_rule(q, k, v, alpha.log(), eta, scale=1.0)[0]


def momentum_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, eta: Tensor, alpha: Tensor, lam: Tensor
) -> Tensor:
    """M = exp(log_mu) M + eta k (Sᵀ p - v)ᵀ, S = exp(log_alpha) S - beta M, at p = k.

    Their memory is S and their trace M, ours the other way round; mu is our beta, and their beta our lam.
    """
    operator = naive("momentum_delta_rule").recurrent_momentum_delta_rule_ref
    return operator(q, k, v, alpha.log(), beta.log(), k, lam, eta, scale=1.0)[0]


MOMENTUM = load(shipped()["momentum_delta_none"]).to_dict()["update"]
RETENTION = load(shipped()["retnet_none"]).to_dict()["update"]
PUBLISHED: dict[str, tuple[dict[str, Any], Peer]] = {
    "linear attention": ({"rule": "linear"}, linear_attention),
    "retention": (RETENTION, retention),
    "simple GLA": ({"rule": "decay"}, simple_gla),
    "simple GLA, in chunks": ({"rule": "decay"}, chunked_simple_gla),
    "delta rule": ({"rule": "delta"}, delta_rule),
    "gated delta rule": ({"rule": "gated_delta"}, gated_delta_rule),
    "gated delta rule, in chunks": ({"rule": "gated_delta"}, chunked_gated_delta_rule),
    "momentum delta rule": (MOMENTUM, momentum_delta_rule),
}


def plain(update: dict[str, Any]) -> Spec:
    """The rule with one memory for the whole sequence, which crosses the borders of segments."""
    return spec_of(update, aggregate={"kind": "none"}, segment={"size": 48}, **HEAD)


def arguments_of(spec: Spec) -> dict[str, Tensor]:
    """Arguments with no gate at 0, for theirs are logarithms, and steps of ordinary size."""
    arguments = {name: x.detach() for name, x in inputs(spec, T).items()}
    for name in spec.tensor_gates:
        arguments[name] = (10 * arguments[name] if name == "eta" else arguments[name]).clamp_min(0.1)
    return {name: x.requires_grad_() for name, x in arguments.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_others_have_published(name: str) -> None:
    update, peer = PUBLISHED[name]
    spec = plain(update)
    arguments = arguments_of(spec)
    y = module_of(spec).op(**arguments, backend="torch")
    shared = {other: x for other, x in arguments.items() if other != "u"}
    wanted = peer(**shared)
    assert (y - wanted).norm() <= 1e-5 * wanted.norm()
    expected = gradients(wanted, shared)
    for part, got in gradients(y, shared).items():
        assert expected[part].norm() > 0
        assert (got - expected[part]).norm() <= 1e-5 * expected[part].norm(), part
