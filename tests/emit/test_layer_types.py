"""Layers whose parameters differ in type, from one another and from x, as policies of training leave them."""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.emit.fragments import difference
from tests.emit.layers import SPECS, built, module

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
GATED = {
    "steps": ["M = alpha*M + dt*outer(v, k) + lam*outer(v[-1], k)"],
    "gates": {"alpha": {"fn": "decay", "bias": -3.0, "from": "dt"}, "dt": {"fn": "softplus"}, "lam": {"scale": 0.5}},
}
LAYERS = {"matrix": {"update": GATED}, "mlp": SPECS["titans"]}
POLICIES = {
    "norm": ["o_norm.weight"],
    "numbers": ["o_norm.weight", "*_bias", "*_A_log"],
    "A_log": ["*_A_log"],
    "biases": ["*_bias"],
    "theta": ["theta.*"],
    "convolutions": ["*_conv1d.weight"],
    "one convolution": ["k_conv1d.weight"],
    "q and v": ["q_proj.weight", "v_proj.weight"],
    "k and u": ["k_proj.weight", "u_proj.weight"],
    "gates' projections": ["dt_proj.weight", "alpha_proj.weight", "eta_proj.weight"],
    "output": ["g_proj.weight", "o_proj.weight"],
    "all": ["*"],
    "none": [],
}
"""What parameters a policy keeps in another type than the rest."""

TYPES = {  # the layer's type, the policy's, x's
    "half layer, kept in float32": (BF16, F32, BF16),
    "the same in float16": (F16, F32, F16),
    "half layer under float32": (BF16, F32, F32),
    "float32 layer, made half": (F32, BF16, F32),
    "float32 layer under half": (F32, BF16, BF16),
    "two halves": (F16, BF16, BF16),
    "kept in float64": (F32, F64, F32),
}


def mixed(name: str, policy: str, layer_type: torch.dtype, kept: torch.dtype) -> Any:
    torch.manual_seed(0)
    layer = module(**LAYERS[name]).Layer(dtype=layer_type, qk_norm="none")
    for parameter_name, parameter in layer.named_parameters():
        if any(fnmatch.fnmatch(parameter_name, pattern) for pattern in POLICIES[policy]):
            parameter.data = parameter.data.to(kept)
    return layer


def sample(dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(2, 9, 10, generator=torch.Generator().manual_seed(1))
    return x.to(dtype).requires_grad_()


def results(layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """y, and the gradients of a weighting of it, x's included."""
    y = layer(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=F64)
    (y * weights.to(y.dtype)).sum().backward()
    return y, {"x": x.grad, **{name: parameter.grad for name, parameter in layer.named_parameters()}}


def errors(layer: Any, x: torch.Tensor, autocast: Any = None) -> dict[str, float]:
    """Of y and each gradient, against the same layer and x in float64; each gradient has its parameter's type."""
    expected, wanted = results(copy.deepcopy(layer).double(), x.detach().double().requires_grad_())
    with autocast or contextlib.nullcontext():
        y, gradients = results(layer, x)
    for (name, gradient), tensor in zip(gradients.items(), [x, *layer.parameters()], strict=True):
        assert gradient.dtype == tensor.dtype, name
    return {"y": difference(y, expected), **{name: difference(gradients[name], wanted[name]) for name in wanted}}


@functools.cache
def errors_of_a_layer_of_one_type(name: str, dtype: torch.dtype) -> dict[str, float]:
    return errors(mixed(name, "none", dtype, dtype), sample(dtype))


def check(name: str, layer: Any, x: torch.Tensor, types: Sequence[torch.dtype], autocast: Any = None) -> None:
    """No value is much further from what it should be than in a layer that has the narrowest of its types only."""
    narrowest = max(types, key=lambda dtype: torch.finfo(dtype).eps)
    narrow = errors_of_a_layer_of_one_type(name, narrowest)
    for value, error in errors(layer, x, autocast).items():
        assert error <= 2 * narrow[value] + 5 * torch.finfo(narrowest).eps, value


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("types", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_y_has_the_type_of_x(name: str, policy: str, types: tuple[torch.dtype, ...]) -> None:
    layer_type, kept, x_type = types
    layer, x = mixed(name, policy, layer_type, kept), sample(x_type)
    assert layer(x).dtype == x_type
    check(name, layer, x, types)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("types", list(TYPES.values())[:-1], ids=list(TYPES)[:-1])
@pytest.mark.parametrize("name", LAYERS)
def test_under_autocast_y_has_the_type_of_a_linear(name: str, policy: str, types: tuple[torch.dtype, ...]) -> None:
    layer_type, kept, x_type = types
    layer, x = mixed(name, policy, layer_type, kept), sample(x_type)
    with torch.autocast("cpu", BF16):
        assert layer(x).dtype == torch.nn.Linear(10, 10)(x.detach().float()).dtype == BF16
    check(name, layer, x, [*types, BF16], torch.autocast("cpu", BF16))


def test_parts_hand_on_x_s_type() -> None:
    """Norm, convolutions and one projection in float32: what each part is given and gives is bfloat16 but its own."""
    layer = mixed("matrix", "numbers", BF16, F32)
    layer.v_proj.float(), layer.q_conv1d.float()
    seen: dict[str, list[torch.dtype]] = {}
    for name in ("q_conv1d", "v_conv1d", "o_norm", "g_proj", "o_proj"):
        layer.get_submodule(name).register_forward_hook(
            lambda _, given, gives, name=name: seen.update({name: [given[0].dtype, gives.dtype]})
        )
    layer(sample(BF16))
    assert seen == {
        "q_conv1d": [BF16, BF16],
        "v_conv1d": [BF16, BF16],
        "o_norm": [F32, F32],
        "g_proj": [BF16, BF16],
        "o_proj": [BF16, BF16],
    }


@pytest.mark.parametrize("name", LAYERS)
def test_the_operator_takes_what_mixed_layers_give_it(name: str) -> None:
    generated = built(**LAYERS[name])
    for policy in ("norm", "numbers", "theta", "convolutions", "q and v", "all"):
        layer, around_reference = generated.Layer(qk_norm="none"), mixed(name, policy, BF16, F32)
        layer.load_state_dict(around_reference.state_dict(), assign=True)
        y, gradients = results(layer, sample(BF16))
        expected, wanted = results(around_reference, sample(BF16))
        assert y.dtype == BF16
        assert difference(y, expected) < 0.01, policy
        for parameter, tensor in layer.named_parameters():
            assert tensor.grad.dtype == tensor.dtype, (policy, parameter)
            assert difference(gradients[parameter], wanted[parameter]) < 0.02, (policy, parameter)


class Adapted(torch.nn.Module):
    """A projection with a low-rank adapter, as libraries put in a Linear's place: it says what weight it has."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = torch.nn.Linear(base.in_features, 2, bias=False, dtype=F32)
        self.up = torch.nn.Linear(2, base.out_features, bias=False, dtype=F32)

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        return y + self.up(self.down(x.to(self.down.weight.dtype))).to(y.dtype)


class Quantised(torch.nn.Module):
    """A projection whose weight is whole numbers, which the x of any type is multiplied by."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.scale = base.weight.abs().amax().float() / 127
        self.register_buffer("weight", (base.weight / self.scale).round().to(torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight * self.scale).to(x.dtype).T


class Called(torch.nn.Module):
    """A projection whose `weight` is no tensor, as that of torch's own quantised modules, which is called."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base = base

    def weight(self) -> torch.Tensor:
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x.to(self.base.weight.dtype)).to(x.dtype)


@pytest.mark.parametrize("x_type", [BF16, F32], ids=str)
@pytest.mark.parametrize("kind", [Adapted, Quantised, Called])
def test_projections_that_others_put_in_their_place(kind: type[torch.nn.Module], x_type: torch.dtype) -> None:
    layer = mixed("matrix", "norm", BF16, F32)
    before = layer(sample(x_type))
    for name in ("q_proj", "v_proj", "u_proj", "dt_proj", "g_proj", "o_proj"):
        setattr(layer, name, kind(layer.get_submodule(name)))
        if kind is Adapted:
            torch.nn.init.zeros_(layer.get_submodule(name).up.weight)
    y = layer(sample(x_type))
    assert y.dtype == x_type
    assert difference(y, before) < 0.05
    y.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in layer.parameters() if p.requires_grad)


@pytest.mark.parametrize("enabled", [False, True], ids=["", "autocast"])
def test_mixtures_compile_without_a_graph_break(enabled: bool) -> None:
    layer, x = mixed("matrix", "numbers", BF16, F32), sample(BF16)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", BF16, enabled=enabled):
        y, expected = compiled(x), layer(x)
    assert y.dtype == expected.dtype == BF16
    assert difference(y, expected) < 0.02


def test_mixtures_on_the_meta_device() -> None:
    layer = mixed("mlp", "numbers", BF16, F32).to("meta")
    y = layer(torch.empty(2, 7, 10, dtype=BF16, device="meta"))
    assert (y.shape, y.dtype, y.device.type) == ((2, 7, 10), BF16, "meta")
