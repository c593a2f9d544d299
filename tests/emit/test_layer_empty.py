"""Layers of no tokens or no sequences: what torch.nn.Linear does with them, gradients of zeros included."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mcgen import pipeline
from tests.emit import side_by_side
from tests.emit.layers import SPECS, built, whole_spec

SHAPES = [(2, 0, 10), (0, 7, 10), (0, 0, 10)]


@pytest.fixture(scope="module", params=["linear", "mamba", "many", "titans"])
def generated(request: pytest.FixtureRequest) -> SimpleNamespace:
    return built(**SPECS[request.param])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"conv_size": 1}, {"conv_size": 0, "output_norm": "none", "output_gate": False, "qk_norm": "none"}],
    ids=["", "a kernel of one", "bare"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_parameter_has_a_gradient_of_zeros(
    generated: SimpleNamespace, dtype: torch.dtype, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    layer, x = generated.Layer(**options, dtype=dtype), torch.empty(shape, dtype=dtype, requires_grad=True)
    y = layer(x)
    assert (y.shape, y.dtype) == (shape, dtype)
    y.sum().backward()
    for name, tensor in [*layer.named_parameters(), ("x", x)]:
        assert tensor.grad is not None, name
        assert tensor.grad.dtype == tensor.dtype, name
        assert not tensor.grad.any(), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_without_gradients_and_under_autocast(generated: SimpleNamespace, shape: tuple[int, ...]) -> None:
    layer = generated.Layer()
    with torch.no_grad():
        assert layer(torch.empty(shape)).shape == shape
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.empty(shape))
    assert (y.shape, y.dtype) == (shape, torch.bfloat16)


@pytest.mark.parametrize("name", ["mamba", "titans"])
def test_of_two_processes_one_may_have_an_empty_batch(name: str, tmp_path: Path) -> None:
    (tmp_path / "memory.py").write_text(pipeline.source(whole_spec(**SPECS[name])))
    first, second = side_by_side.side_by_side(tmp_path)
    layer = side_by_side.layer_in(tmp_path)
    for step in range(len(side_by_side.EMPTY)):
        for name, alone in side_by_side.gradients(layer, side_by_side.batch(step)).items():
            assert torch.allclose(first[step][name], alone / 2, rtol=1e-4, atol=1e-6), (step, name)
            assert torch.equal(first[step][name], second[step][name]), (step, name)
