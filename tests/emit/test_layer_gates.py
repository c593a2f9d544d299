"""Gates of the layer and their derivatives where exp overflows and where softplus vanishes, against mpmath."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mpmath import mp, mpf

from tests.emit.layers import module

GATES = {"a": "decay", "b": "softplus", "c": "exp", "d": "tanh", "e": "identity", "f": "sigmoid"}
MAGNITUDES = (0.0, 1.0, 20.0, 30.0, 39.0, 41.0, 88.0, 89.0, 100.0, 745.0, 1e4, 1e30)
BEYOND = mpf(10) ** 4
"""Where exp(-x) is 0 in every type."""


@pytest.fixture(scope="module")
def layers() -> SimpleNamespace:
    """A gate of every function: z is x, since projections are of one number and made to be 1."""
    terms = " + ".join(f"{gate}*outer(v, k)" for gate in "bcdef")
    gates = {gate: {"fn": function, "bias": 0.0} for gate, function in GATES.items()}
    return module({"steps": [f"M = a*M + {terms}"], "gates": gates}, layer={"d_model": 1})


def numbers(dtype: torch.dtype) -> torch.Tensor:
    """What z and A are: both signs of the magnitudes that the type has, and its ends."""
    magnitudes = torch.tensor([*MAGNITUDES, torch.finfo(dtype).max], dtype=torch.float64).to(dtype)
    return torch.cat([-magnitudes.flip(0), magnitudes])


def sigmoid(z: mpf) -> mpf:
    return 1 / (1 + mp.exp(-z))


def softplus(z: mpf) -> mpf:
    return mp.log1p(mp.exp(z))


def decay(z: mpf, A: mpf) -> tuple[mpf, mpf, mpf]:
    """exp(-exp(A) softplus(z)), its derivatives by z and by A."""
    rate, product = mp.exp(A), mp.exp(A) * softplus(z)
    value = mp.exp(-product) if product < BEYOND else mpf(0)
    return value, -value * rate * sigmoid(z), -value * product


EXACT: dict[str, Callable[[mpf], tuple[mpf, mpf]]] = {
    "b": lambda z: (softplus(z), sigmoid(z)),
    "c": lambda z: (mp.exp(z), mp.exp(z)),
    "d": lambda z: (mp.tanh(z), mp.sech(z) ** 2),
    "e": lambda z: (z, mpf(1)),
    "f": lambda z: (sigmoid(z), sigmoid(z) * sigmoid(-z)),
}
"""A gate and its derivative; gates that no A has a part in."""

SCALE = {"d": 1, "f": 1}
"""What a gate's derivative is rounded at: those made of 1 - y have the rounding of 1."""


def one_layer(layers: SimpleNamespace, rates: torch.Tensor) -> Any:
    layer = layers.Layer(heads=len(rates), dtype=rates.dtype)
    with torch.no_grad():
        for gate in GATES:
            layer.get_submodule(f"{gate}_proj").weight.fill_(1)
        layer.a_A_log.copy_(rates)
    return layer


def made(layer: Any, z: float, gate: str) -> list[torch.Tensor]:
    """A gate of z, one a head, its derivatives by z and, where it has one, by A."""
    parameters = [layer.get_parameter(f"{gate}_bias"), *([layer.a_A_log] if gate == "a" else [])]
    value = layer.gates(parameters[0].new_full((1, 1, 1), z))[gate]
    return [value[0, 0].detach(), *torch.autograd.grad(value.sum(), parameters)]


def rounding(gate: str, z: float, rates: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Relative errors to allow: some roundings, and for the decay those of the logarithm of its product.

    Far out that logarithm is exact: one of its terms is lost in the other, or they are each other's negative.
    """
    some = torch.full((len(rates),), 8.0, dtype=torch.float64)
    if gate == "a":
        logarithms = float(abs(mp.log(softplus(mpf(z))))) + rates.double().abs()
        products = [float(min(mp.exp(mpf(A)) * softplus(mpf(z)), BEYOND)) for A in rates.tolist()]
        some = (some + logarithms.clamp(max=2000)) * (1 + torch.tensor(products))
    return some * torch.finfo(dtype).eps


@functools.cache
def exact(gate: str, z: float, A: float) -> tuple[float, ...]:
    values = decay(mpf(z), mpf(A)) if gate == "a" else EXACT[gate](mpf(z))
    return tuple(float(value) for value in values)


@pytest.mark.parametrize("gate", GATES, ids=GATES.values())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_gates_and_their_derivatives_over_the_whole_range(
    layers: SimpleNamespace, dtype: torch.dtype, gate: str
) -> None:
    rates = numbers(dtype)
    layer = one_layer(layers, rates)
    wide = torch.promote_types(dtype, torch.float32)
    for z in numbers(dtype).tolist():
        with mp.workdps(60):
            expected = torch.tensor([exact(gate, z, A) for A in rates.tolist()], dtype=torch.float64).T
            relative = rounding(gate, z, rates, wide)
        for order, (got, want) in enumerate(zip(made(layer, z, gate), expected, strict=True)):
            assert got.dtype == (dtype if order else wide)
            finite = torch.isfinite(want.to(got.dtype))
            assert torch.equal(got[~finite].double(), want.to(got.dtype)[~finite].double()), (z, order)
            at_scale = SCALE.get(gate, 0) * torch.finfo(wide).eps if order else 0
            own = torch.finfo(got.dtype).eps if order else 0
            allowed = (relative + own) * want.abs() + at_scale + torch.finfo(wide).tiny
            wrong = finite & ~((got.double() - want).abs() <= allowed)
            assert not wrong.any(), (z, order, rates[wrong], got[wrong], want[wrong])


LIMITS = {  # at -inf and at inf: the gate and its derivative
    "a": ((1.0, 0.0), (0.0, 0.0)),
    "b": ((0.0, 0.0), (math.inf, 1.0)),
    "c": ((0.0, 0.0), (math.inf, math.inf)),
    "d": ((-1.0, 0.0), (1.0, 0.0)),
    "e": ((-math.inf, 1.0), (math.inf, 1.0)),
    "f": ((0.0, 0.0), (1.0, 0.0)),
}


@pytest.mark.parametrize("gate", GATES)
def test_gates_of_a_projection_that_overflowed_are_the_limits(layers: SimpleNamespace, gate: str) -> None:
    layer = one_layer(layers, torch.tensor([-100.0, 0.0, 100.0]))
    for z, (value, derivative) in zip((-math.inf, math.inf), LIMITS[gate], strict=True):
        got, *derivatives = made(layer, z, gate)
        assert got.tolist() == [value] * 3
        assert derivatives[0].tolist() == [derivative] * 3
        assert all(d.tolist() == [0.0] * 3 for d in derivatives[1:])


def test_one_token_at_the_end_of_the_range_leaves_the_gradients_of_others(layers: SimpleNamespace) -> None:
    """A rate whose exp overflows, at tokens whose softplus is 0, 1e-39 and large: none makes the sum of all NaN."""
    rates = torch.tensor([89.0, 100.0, 1e4])
    tokens = torch.tensor([[[-1e4], [-100.0], [-89.0], [0.0], [1e4]]])
    alone = [made(one_layer(layers, rates), z, "a")[1:] for z in tokens.flatten().tolist()]
    layer = one_layer(layers, rates)
    layer.gates(tokens)["a"].sum().backward()
    for parameter, each in zip((layer.a_bias, layer.a_A_log), zip(*alone, strict=True), strict=True):
        assert torch.allclose(parameter.grad, sum(each), rtol=1e-5, atol=0)
    assert layer.a_bias.grad[:2].abs().min() > 0.3


def test_the_decay_has_second_derivatives(layers: SimpleNamespace) -> None:
    z = torch.tensor([-60.0, -41.0, -2.0, 0.0, 3.0, 45.0], dtype=torch.float64, requires_grad=True)
    A = torch.tensor([58.0, 40.0, 1.0, -1.0, -2.0, -3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layers._discount, (z, A))
    assert torch.autograd.gradgradcheck(layers._discount, (z, A))
