"""Which of a layer's parameters are not for weight decay, whatever was done to the layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.emit.layers import SPECS, module

UNDECAYED = {
    "linear": {"o_norm.weight"},
    "mamba": {"o_norm.weight", "dt_bias", "alpha_A_log"},
    "many": {"o_norm.weight", "a_bias", "a_A_log", "b_bias", "c_bias", "d_bias", "e_bias"},
    "titans": {"o_norm.weight", "alpha_bias", "beta_bias", "eta_bias"},
}


@pytest.fixture(params=UNDECAYED)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def layer_of(name: str, **options: Any) -> Any:
    return module(**SPECS[name]).Layer(**options)


def marked(layer: torch.nn.Module) -> set[str]:
    return {name for name, p in layer.named_parameters() if getattr(p, "_no_weight_decay", False)}


def test_biases_rates_and_the_norm_s_scale_are_named_and_marked(name: str) -> None:
    layer = layer_of(name)
    assert layer.no_weight_decay() == marked(layer) == UNDECAYED[name]


def test_every_other_parameter_has_two_dimensions_or_more(name: str) -> None:
    layer = layer_of(name)
    assert all((p.dim() < 2) == (n in layer.no_weight_decay()) for n, p in layer.named_parameters())


def test_a_norm_that_is_left_out_is_not_named(name: str) -> None:
    layer = layer_of(name, output_norm="none")
    assert layer.no_weight_decay() == marked(layer) == UNDECAYED[name] - {"o_norm.weight"}


def averaged(layer: Any) -> Any:
    return torch.optim.swa_utils.AveragedModel(layer).module


def emptied(layer: Any) -> Any:
    return layer.to("meta").to_empty(device="cpu")


def assigned(layer: Any) -> Any:
    layer.load_state_dict({name: value.clone() for name, value in layer.state_dict().items()}, assign=True)
    return layer


def sharded(layer: Any) -> Any:
    return fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))


@pytest.mark.parametrize("change", [copy.deepcopy, averaged, emptied, assigned, sharded])
def test_names_outlast_what_marks_do_not(name: str, change: Callable[[Any], Any], one_process: None) -> None:
    layer = change(layer_of(name))
    assert layer.no_weight_decay() == UNDECAYED[name]
    assert layer.no_weight_decay() <= dict(layer.named_parameters()).keys()
    layer.reset_parameters()
    assert marked(layer) == UNDECAYED[name]


def test_a_layer_made_on_meta_is_sharded_and_given_values_there(name: str, one_process: None) -> None:
    """As large models are made: no process ever holds a whole parameter."""
    layer = sharded(layer_of(name, device="meta")).to_empty(device="cpu")
    for parameter in layer.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    layer.reset_parameters()
    assert marked(layer) == layer.no_weight_decay() == UNDECAYED[name]
    assert all(isinstance(p, DTensor) and p.full_tensor().isfinite().all() for p in layer.parameters())
    layer(torch.randn(2, 7, 10)).square().sum().backward()
    assert all(p.grad.full_tensor().abs().max() > 0 for p in layer.parameters())


def test_an_optimiser_s_groups_by_name() -> None:
    """As users of a model write it: names of the layers, under the layers' own."""
    model = torch.nn.Sequential(layer_of("mamba"), torch.nn.Linear(10, 10), layer_of("linear"))
    undecayed = {
        f"{prefix}.{name}"
        for prefix, part in copy.deepcopy(model).named_modules()
        if hasattr(part, "no_weight_decay")
        for name in part.no_weight_decay()
    }
    assert undecayed == {"0.o_norm.weight", "0.dt_bias", "0.alpha_A_log", "2.o_norm.weight"}
