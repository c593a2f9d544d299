"""Triton kernels against the reference, values and all gradients, gates of exactly 0 and 1 among the inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.held import misses

DECAY, SWLA = {"rule": "decay"}, {"rule": "swla"}
RETNET = {"steps": ["M = alpha*M + outer(v, k)"], "gates": {"alpha": {"per_head": "1 - 2**(-5 - h)"}}}
SLOTS = {"steps": ["A = lam*A + outer(v, k[-2])", "M = alpha*M + A + beta*outer(v[-1], k)"]}
GATED = {"rule": "gated_delta"}
TITANS = {"rule": "titans", "gradient": {"chunk": 4}}
BY_HEAD = {**TITANS, "gates": {"alpha": {"per_head": "1 - 2**(-3 - h)"}, "beta": {"per_head": "h/4"}}}
MANY_STEPS = {"rule": "titans", "gradient": {"chunk": 1}}
DLA = {"rule": "dla", "gradient": {"chunk": 7}}
LONG = {"rule": "titans", "gradient": {"chunk": 40}}
DLA_LONG = {"rule": "dla", "gradient": {"chunk": 36}}
THREE = {"layers": 3, "expansion": 3, "residual": False, "activation": "sigmoid"}
UNREAD = {
    "objective": "sum(abs(p - v)**1.5)",
    "steps": ["S = beta*S - eta*grad", "M = alpha*M - lam*grad"],
    "gates": {"alpha": {"per_head": "1 - 2**(-3 - h)"}},
    "gradient": {"chunk": 33},
}
WIDE = {"residual": False, "expansion": 3}
HUBER = {
    "objective": "sum(sqrt(1 + (p - v)**2))",
    "steps": ["S = beta*S - eta*grad", "M = alpha*M + S"],
    "gradient": {"chunk": 5},
}
TWICE = {
    "objective": "sum((p - v)**2)",
    "steps": ["M = alpha*M - eta*grad", "M = M - lam*grad"],
    "gradient": {"chunk": 3},
}


def spec(
    update: dict, aggregate: str | dict, head: tuple[int, int], memory: dict | None = None, **segment: Any
) -> dict:
    kind = {"kind": aggregate} if isinstance(aggregate, str) else aggregate
    size = {} if segment.get("mode") == "logarithmic" else {"size": 8}
    deep = {"kind": "mlp", "expansion": 2, **memory} if memory is not None else {"kind": "matrix"}
    key_dim, value_dim = head
    return {
        "mcgen": 1,
        "name": "case",
        "memory": deep,
        "update": update,
        "segment": {**size, **segment},
        "aggregate": kind,
        "head": {"key_dim": key_dim, "value_dim": value_dim},
    }


CHAIN = {"init": "checkpoint"}
SSC = {"kind": "ssc", "top_k": 2}
FAMILIES = {
    "a matrix by itself": [
        (spec(DECAY, "none", (5, 3), size=40, **CHAIN), 63),
        (spec(SWLA, "none", (3, 17), **CHAIN), 17),
        (spec(RETNET, "none", (16, 16)), 2),
        (spec(SLOTS, "none", (6, 6), **CHAIN), 19),
    ],
    "a matrix and its segments": [
        (spec(DECAY, "grm", (20, 6)), 33),
        (spec(SWLA, "residual", (3, 5)), 19),
        (spec(RETNET, {"kind": "mean", "connector": "q"}, (4, 4), **CHAIN), 17),
        (spec(SLOTS, {"kind": "grm", "connector": "q", "pool": "sum", "scale": 0.3}, (1, 2), mode="logarithmic"), 13),
        (spec({"rule": "linear"}, "grm", (7, 7)), 1),
    ],
    "tiles of rows, keys and values": [
        (spec(DECAY, "grm", (6, 80), size=40), 100),
        (spec(GATED, {"kind": "grm", "connector": "q"}, (80, 70), **CHAIN), 26),
        (spec(SWLA, "soup", (70, 5)), 26),
        (spec(DECAY, SSC, (6, 80)), 33),
        (spec(SWLA, "residual", (70, 80)), 26),
    ],
    "chosen segments": [
        (spec(DECAY, SSC, (6, 5)), 33),
        (spec(GATED, {**SSC, "connector": "q"}, (5, 6), **CHAIN), 26),
        (spec(SWLA, {**SSC, "top_k": 9}, (5, 6)), 20),
    ],
    "a matrix that reads itself": [
        (spec(GATED, "grm", (5, 9)), 26),
        (spec({**HUBER, "gradient": {"chunk": 5}}, "mean", (6, 6)), 18),
        (spec({"rule": "titans"}, "none", (9, 5), **CHAIN), 20),
    ],
    "a deep memory by itself": [
        (spec(TITANS, "none", (5, 5), {"norm": "layernorm", "expansion": 4}, **CHAIN), 11),
        (spec(MANY_STEPS, "none", (4, 4), {"expansion": 1}, **CHAIN), 9),
        (spec(TWICE, "none", (6, 9), {"residual": False, "activation": "sigmoid", "expansion": 3}), 7),
        (spec(DLA, "none", (4, 4), {"layers": 4, "activation": "softplus", "expansion": 1}), 8),
    ],
    "a deep memory and its segments": [
        (spec(TITANS, "grm", (6, 6), {"norm": "layernorm", "expansion": 3}), 20),
        (spec(DLA, "residual", (6, 6), {"activation": "x*tanh(x)"}, **CHAIN), 10),
        (spec(HUBER, {"kind": "mean", "connector": "q"}, (6, 6), {}, mode="logarithmic"), 13),
    ],
    "chosen segments of a deep memory": [
        (spec(TITANS, SSC, (5, 5), {"expansion": 4}, size=5), 18),
        (spec(DLA, SSC, (5, 5), {"layers": 3, "expansion": 4}, size=3), 11),
    ],
    "a soup of deep memories": [
        (spec(TITANS, "soup", (5, 5), {"norm": "layernorm", "expansion": 4}), 18),
        (spec(DLA, {"kind": "soup", "connector": "q"}, (5, 5), {"layers": 3, "activation": "silu"}, **CHAIN), 9),
        (spec(BY_HEAD, "soup", (4, 4), {"expansion": 1}, size=5), 12),
    ],
    "gradient chunks of several steps": [(spec(LONG, "soup", (4, 4), {"expansion": 1}, size=36), 43)],
    "long gradient chunks": [(spec(LONG, "grm", (5, 5), {}, size=50), 57)],
    "long gradient chunks in a chain": [(spec(LONG, "none", (6, 6), {"norm": "layernorm"}, size=45, **CHAIN), 60)],
    "long gradient chunks of three layers": [(spec(DLA_LONG, "residual", (4, 6), THREE, size=37), 41)],
    "long gradient chunks and chosen segments": [(spec(LONG, {**SSC, "top_k": 1}, (4, 4), {}, size=34), 71)],
    "long gradient chunks of a rule with singular derivatives and a slot that is not read": [
        (spec(UNREAD, {"kind": "grm", "connector": "q"}, (6, 4), WIDE, size=36), 40),
    ],
}

RESIDENT = {
    "a deep memory in registers": [
        (spec(TITANS, "none", (5, 9), {"residual": False}, **CHAIN), 11),
        (spec(DLA, "none", (4, 4), {"layers": 3}), 9),
    ],
    "a deep memory in registers and its segments": [
        (spec(TITANS, "grm", (6, 6), {"norm": "layernorm"}), 20),
        (spec(TITANS, {"kind": "grm", "pool": "sum"}, (5, 5), {}, **CHAIN), 10),
        (spec(TITANS, "soup", (4, 4), {"expansion": 1}), 11),
    ],
    "gradient chunks of several steps in registers": [(spec(LONG, "soup", (4, 4), {"expansion": 1}, size=36), 43)],
}


BY_PARTS = {
    "a matrix": [(spec(GATED, "grm", (5, 9)), 18), (spec(SWLA, SSC, (5, 6)), 26)],
    "a deep memory": [(spec(DLA, "grm", (6, 5), {"residual": False}), 10)],
    "long gradient chunks": [(spec(LONG, "none", (5, 5), {}, size=36, **CHAIN), 37)],
}


@pytest.mark.parametrize("family", BY_PARTS)
def test_products_by_parts_are_nearly_as_exact(family: str, tmp_path: Path) -> None:
    assert misses(BY_PARTS[family], tmp_path, "by_parts") == []


@pytest.mark.parametrize("family", RESIDENT)
def test_a_state_in_registers_gives_the_same(family: str, tmp_path: Path) -> None:
    assert misses(RESIDENT[family], tmp_path, "resident") == []


@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_are_what_the_reference_is(family: str, tmp_path: Path) -> None:
    assert misses(FAMILIES[family], tmp_path) == []
