"""Layers to test: specs that between them have everything a layer can have, around an `op` that is the reference."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mcgen import pipeline
from mcgen.emit.module.arguments import arguments_source
from mcgen.emit.module.layer import layer_source
from mcgen.emit.module.reference import reference_source
from mcgen.spec import Spec
from tests.emit.fragments import run, source, spec_of

OP = '''\
def op(q, k, v, u=None, *, theta=None, state=None, return_state=False, cu_seqlens_cpu=None, backend=None, **gates):
    """The reference."""
    return reference(q, k, v, u, theta=theta, cu_seqlens=cu_seqlens_cpu, **gates)
'''
HEAD = {"key_dim": 4, "value_dim": 6}
LAYER = {"d_model": 10, "heads": 3}
MLP = {"kind": "mlp", "expansion": 2}
MAMBA = {
    "steps": ["M = alpha*M + dt*outer(v, k)"],
    "gates": {
        "alpha": {"fn": "decay", "bias": -4.6, "from": "dt"},
        "dt": {"fn": "softplus", "bias": -4.6, "from": "dt"},
    },
}
MANY = {
    "steps": [
        "M = a*M + b*outer(v, k) + c*outer(v[-1], k) + d*outer(v, k[-1]) + e*outer(v[-1], k[-1]) + f*outer(v, k)"
    ],
    "gates": {
        "a": {"fn": "decay", "bias": 1.0},
        "b": {"fn": "softplus", "bias": -1.0, "scale": 0.01},
        "c": {"fn": "exp", "bias": -2.0},
        "d": {"fn": "tanh", "bias": 0.25},
        "e": {"fn": "identity", "bias": 3.0, "scale": 2.0},
        "f": {"per_head": "1/(1 + h)"},
    },
}


SPECS: dict[str, dict[str, Any]] = {
    "linear": {"update": {"rule": "linear"}},
    "mamba": {"update": MAMBA, "aggregate": {"kind": "none"}},
    "many": {"update": MANY, "aggregate": {"kind": "ssc", "top_k": 1, "connector": "q"}},
    "titans": {"update": {"rule": "titans"}, "memory": MLP, "head": {"key_dim": 4, "value_dim": 4}},
    "deeper": {"update": {"rule": "dla"}, "memory": {**MLP, "residual": False, "layers": 4}},
    "colliding": {"update": {"steps": ["M = o*M + g*outer(v, k)"], "gates": {"o": {"from": "x"}, "g": {"from": "q"}}}},
}


def text_of(spec: Spec) -> str:
    return source(arguments_source(spec), reference_source(spec), OP, layer_source(spec))


def whole_spec(update: dict[str, Any], **sections: Any) -> Spec:
    return spec_of(update, **({"head": HEAD, "layer": LAYER, "segment": {"size": 5}} | sections))


def module(update: dict[str, Any], **sections: Any) -> SimpleNamespace:
    return run(text_of(whole_spec(update, **sections)))


def built(update: dict[str, Any], **sections: Any) -> SimpleNamespace:
    """The whole file, whose `op` is its own."""
    return run(pipeline.source(whole_spec(update, **sections)))
