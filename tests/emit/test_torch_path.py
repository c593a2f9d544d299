"""The torch path of generated modules: against the printed reference, in the types and shapes it is called with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mcgen.emit.module import module_source
from mcgen.symbolic.meaning import meaning
from tests.emit.fragments import difference, gradients, inputs, run, spec_of

LINEAR, DECAY, SWLA = ({"rule": name} for name in ("linear", "decay", "swla"))
CASCADE = {"steps": ["S = beta*S + outer(v, k[-1])", "M = alpha*M + lam*S + outer(v[-3], k)"]}
GRM, SSC = {"kind": "grm"}, {"kind": "ssc", "top_k": 2}
AGGREGATES = {
    "none": {"kind": "none"},
    "residual": {"kind": "residual"},
    "mean": {"kind": "mean"},
    "grm": GRM,
    "soup": {"kind": "soup", "connector": "q"},
    "ssc": SSC,
    "ssc_by_q": {"kind": "ssc", "top_k": 1, "connector": "q", "pool": "sum", "scale": 0.25},
}


def spec(update: dict[str, Any], **sections: Any) -> Any:
    head = {"head": {"key_dim": 6, "value_dim": 5}} if "head" not in sections else {}
    return spec_of(update, **head, **sections)


def module_of(parsed: Any) -> SimpleNamespace:
    return run(module_source(meaning(parsed)))


def segment(size: int | None, init: str = "independent") -> dict[str, Any]:
    return {"segment": {"size": size, "init": init} if size else {"mode": "logarithmic", "init": init}}


def call(module: Any, arguments: dict[str, Any], **others: Any) -> torch.Tensor:
    return module.op(**arguments, backend="torch", **others)


def against_reference(module: Any, parsed: Any, T: int, **others: Any) -> None:
    arguments = inputs(parsed, T, **others)
    y, expected = call(module, arguments), module.reference(**arguments)
    assert difference(y, expected) < 1e-10
    wanted = gradients(expected, arguments)
    for name, got in gradients(y, arguments).items():
        assert (got - wanted[name]).norm() <= 1e-9 * wanted[name].norm() + 1e-12, name


@pytest.mark.parametrize("mode", [16, None], ids=["constant", "logarithmic"])
@pytest.mark.parametrize("init", ["independent", "checkpoint"])
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_every_aggregate_matches_the_reference(aggregate: str, init: str, mode: int | None) -> None:
    parsed = spec(CASCADE, aggregate=AGGREGATES[aggregate], **segment(mode, init))
    against_reference(module_of(parsed), parsed, 100, B=1, H=2)


@pytest.mark.parametrize("T", [1, 2, 63, 100, 16, 17])
@pytest.mark.parametrize("aggregate", ["residual", "grm", "ssc"])
def test_every_length_matches_the_reference(aggregate: str, T: int) -> None:
    parsed = spec(SWLA, aggregate=AGGREGATES[aggregate], **segment(16))
    against_reference(module_of(parsed), parsed, T)


@pytest.mark.parametrize("init", ["independent", "checkpoint"])
@pytest.mark.parametrize("size", [12, 31, 90])
@pytest.mark.parametrize("aggregate", ["none", "mean", "grm", "ssc"])
def test_walks_in_small_panels_match_the_reference(aggregate: str, size: int, init: str) -> None:
    """Segments in several panels, of lengths no chunk divides, several in a panel, lags longer than a chunk."""
    parsed = spec(
        {"steps": ["S = beta*S + outer(v[-9], k)", "M = alpha*M + S"]},
        aggregate=AGGREGATES[aggregate],
        **segment(size, init),
    )
    module = module_of(parsed)
    module.op.__globals__.update(CHUNK=8, ROWS=48, SCRATCH=1, TILE=4)
    against_reference(module, parsed, 100, B=1, H=2)
