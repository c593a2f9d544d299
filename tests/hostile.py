"""Inputs at the ends of what a memory that reads itself can be given, and how far off a result may be there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mcgen.spec import Spec
from tests.emit.fragments import spec_of

Tensors = dict[str, torch.Tensor]
HALF = "sum((p - v)**2)/2"
HEAD = {"head": {"key_dim": 16, "value_dim": 16}}


@dataclass(frozen=True)
class Case:
    """A rule, a length, and what is done to inputs: normal q, v and u, keys of length 1, gates in (0.1, 0.9)."""

    update: Mapping[str, Any]
    length: int
    change: Callable[[Tensors], Tensors]
    aggregate: str = "none"

    @property
    def spec(self) -> Spec:
        return spec_of(dict(self.update), aggregate={"kind": self.aggregate}, segment={"size": 128}, **HEAD)

    def inputs(self, length: int | None = None) -> Tensors:
        return self.change(_ordinary(self.spec, length or self.length))


def _ordinary(spec: Spec, T: int) -> Tensors:
    generator = torch.Generator().manual_seed(T)
    x = {name: torch.randn(1, T, 1, 16, generator=generator, dtype=torch.float64) for name in "qkvu"}
    x["k"] = torch.nn.functional.normalize(x["k"], dim=-1)
    for name in spec.tensor_gates:
        x[name] = 0.1 + 0.8 * torch.rand(1, T, 1, generator=generator, dtype=torch.float64)
    return x


def _equal_keys(x: Tensors) -> Tensors:
    """One key again and again, and each time what was there is replaced: rows that cancel exactly."""
    return {**x, "k": x["k"][:, :1].expand_as(x["k"]), "eta": torch.ones_like(x["eta"])}


def _equal_keys_overshot(x: Tensors) -> Tensors:
    """Almost twice the step that would do, every time: the error row turns its sign and hardly shrinks."""
    return {**x, "k": x["k"][:, :1].expand_as(x["k"]), "eta": torch.full_like(x["eta"], 1.9)}


def _zeros(x: Tensors) -> Tensors:
    drop = torch.rand(x["alpha"].shape, generator=torch.Generator().manual_seed(1)) < 0.1
    return {**x, "alpha": torch.where(drop, 0.0, x["alpha"])}


def _scaled(by: float) -> Callable[[Tensors], Tensors]:
    return lambda x: {**x, "q": by * x["q"], "v": by * x["v"]}


def _tiny_gates(x: Tensors) -> Tensors:
    """Half of every chunk of 64 with gates whose products leave the range of floats."""
    tiny = torch.arange(x["alpha"].shape[1]) % 64 // 16 % 2 == 1
    return {**x, "alpha": torch.where(tiny[:, None], 1e-30, x["alpha"])}


def _at_the_edge(x: Tensors) -> Tensors:
    """Keys of any length, and curvature * eta * |k|^2 just below 2: beyond, descent does not hold."""
    k = x["k"] * (0.5 + 2 * x["eta"])[..., None]
    return {**x, "k": k, "eta": 0.999 / k.square().sum(-1)}


GATED, TITANS = {"rule": "gated_delta"}, {"rule": "titans"}
CASES = {
    "equal keys": Case({"rule": "delta"}, 4096, _equal_keys),
    "equal keys, momentum": Case(TITANS, 150, lambda x: _equal_keys({**x, "alpha": torch.ones_like(x["alpha"])})),
    "equal keys, overshot": Case({"rule": "delta"}, 150, _equal_keys_overshot),
    "zeros": Case(GATED, 200, _zeros, "grm"),
    "large": Case(GATED, 200, _scaled(1e4), "grm"),
    "small": Case(GATED, 200, _scaled(1e-4), "grm"),
    "tiny gates": Case(GATED, 200, _tiny_gates, "grm"),
    "tiny gates, momentum": Case(TITANS, 200, _tiny_gates),
    "at the edge": Case(TITANS, 200, _at_the_edge),
}


def results(function: Callable[..., torch.Tensor], x: Tensors, **options: Any) -> Tensors:
    """y and the gradients of its sum with random weights, in float64, by name."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in x.items()}
    y = function(**leaves, **options)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(y.dtype)
    found = torch.autograd.grad((y * weights).sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {name: t.detach().double() for name, t in zip(["y", *leaves], [y, *found], strict=True)}


@dataclass(frozen=True)
class Bound:
    """A result expected of inputs rounded to a type, and how far from it one computed in that type may be.

    Measured, not picked: what rounding the inputs moves the result in float64, the rounding of the result itself, and
    three bits more than what the definition, token by token in float32, is off.
    """

    expected: torch.Tensor
    distance: float

    def holds(self, found: torch.Tensor) -> bool:
        return bool(found.isfinite().all()) and (found - self.expected).norm().item() <= self.distance


def bounds(reference: Callable[..., torch.Tensor], x: Tensors, dtype: torch.dtype, exact: Tensors) -> dict[str, Bound]:
    """Of y and of every gradient, by name; `exact` has the results for x itself."""
    rounded = {name: t.to(dtype) for name, t in x.items()}
    expected = results(reference, {name: t.double() for name, t in rounded.items()})
    single = {name: t.float() for name, t in rounded.items()}
    own, unit = results(reference, single), torch.finfo(dtype).eps / 2
    return {name: _bound(expected[name], exact[name], own[name], unit) for name in expected}


def _bound(expected: torch.Tensor, exact: torch.Tensor, own: torch.Tensor, unit: float) -> Bound:
    parts = (expected - exact).norm(), unit * expected.norm(), 8 * (own - expected).norm()
    return Bound(expected, sum(part.item() for part in parts))
