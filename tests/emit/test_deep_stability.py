"""Deep memories over long inputs: what their step size may be, and what is seen beyond that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mcgen import pipeline
from tests.emit.fragments import run, spec_of

GATES = {
    "alpha": {"fn": "sigmoid", "bias": 4.0},
    "beta": {"fn": "sigmoid", "bias": 0.0},
    "eta": {"fn": "sigmoid", "bias": 0.0, "scale": 0.0005},
}


def titans(norm: str, aggregate: str, **sections: Any) -> SimpleNamespace:
    """Titans on a perceptron of two layers, gradients over 16 tokens."""
    spec = spec_of(
        {"rule": "titans", "gradient": {"chunk": 16}, "gates": GATES},
        memory={"kind": "mlp", "layers": 2, "expansion": 4, "norm": norm},
        segment={"size": 256},
        aggregate={"kind": aggregate},
        head={"key_dim": 64, "value_dim": 64},
        **sections,
    )
    return run(pipeline.source(spec))


@pytest.mark.parametrize("aggregate", ["none", "grm"])
def test_a_layer_stays_finite_over_8192_tokens_in_bfloat16(aggregate: str) -> None:
    torch.manual_seed(0)
    layer = titans("layernorm", aggregate).Layer(d_model=64, heads=1, qk_norm="l2", dtype=torch.bfloat16)
    y = layer(torch.randn(1, 8192, 64, dtype=torch.bfloat16))
    y.float().square().mean().backward()
    assert torch.isfinite(y).all()
    for name, parameter in layer.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


def recall(norm: str, eta: float, equal: bool) -> float:
    """|M_t(k_t) - v_t|² over its value at the initial weights: the second half of 1,024 tokens, keys of length 1."""
    module = titans(norm, "none")
    torch.manual_seed(0)
    k, v = (F.normalize(torch.randn(1, 1024, 1, 64), dim=-1) for _ in range(2))
    k, v = (t[:, :1].expand_as(t) for t in (k, v)) if equal else (k, v)
    gates = {"alpha": 0.998, "beta": 0.5, "eta": eta}
    theta = [torch.randn(1, 256, 64) / 8, torch.randn(1, 64, 256) / 16]
    errors = [
        (module.op(k, k, v, theta=theta, **{n: torch.full((1, 1024, 1), g) for n, g in chosen.items()}) - v)[:, 512:]
        for chosen in (gates, {**gates, "alpha": 1.0, "eta": 0.0})
    ]
    learned, initial = (error.square().sum().item() for error in errors)
    return learned / initial


def test_equal_keys_add_up_their_steps() -> None:
    """Without a norm the limit is about (1 - beta) / chunk; 16 tokens, beta 0.5: near 0.03."""
    assert recall("none", 0.01, equal=True) < 0.01
    assert not recall("none", 0.1, equal=True) < float("inf"), "beyond the limit errors grow from chunk to chunk"
    assert recall("none", 0.1, equal=False) < 0.9, "keys that differ allow more"


def test_a_norm_keeps_read_outs_finite_but_does_not_make_large_steps_useful() -> None:
    small, large = recall("layernorm", 0.0002, equal=False), recall("layernorm", 0.1, equal=False)
    assert small < large < 1.0
