"""Generated fragments, executed: a module with `reference`, `_check`, the layer, and an `op` that is the reference."""

from __future__ import annotations

import json
import linecache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch

from mcgen.emit.module.arguments import arguments_source
from mcgen.emit.module.reference import reference_source
from mcgen.spec import Spec, loads

HEADER = '''\
import collections
import contextlib
import copy
import functools
import itertools
import math
import types

import torch
import torch.nn.functional as F


class UnsupportedError(NotImplementedError):
    """A valid request that this file cannot serve."""
'''


def spec_of(update: dict[str, Any], **sections: Any) -> Spec:
    """A spec from plain data; `sections` are its other fields."""
    whole = {"mcgen": 1, "name": "example", "memory": {"kind": "matrix"}, "update": update} | sections
    return loads(json.dumps(whole))


def source(*fragments: str) -> str:
    """The fragments as one file."""
    return "\n\n\n".join(text.strip("\n") for text in (HEADER, *fragments)) + "\n"


def run(text: str) -> SimpleNamespace:
    """The names a file defines. Its text is where `inspect` looks for it: Triton, if there, reads kernels so."""
    names: dict[str, Any] = {"__name__": "generated_example"}
    path = f"<generated example {len(linecache.cache)}>"
    linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
    exec(compile(text, path, "exec"), names)
    return SimpleNamespace(**names)


def reference_of(spec: Spec) -> Any:
    return run(source(arguments_source(spec), reference_source(spec))).reference


def inputs(
    spec: Spec, T: int, *, B: int = 2, H: int = 2, seed: int = 0, dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    """Arguments of `reference`: normalised keys, gates in (0.1, 0.9) but for one exact 0 and one exact 1."""
    generator = torch.Generator().manual_seed(seed)
    K, V = spec.head.key_dim, spec.head.value_dim

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    arguments = {name: draw(B, T, H, V if name == "v" else K) / 2 for name in "qkvu"}
    arguments["k"] = torch.nn.functional.normalize(arguments["k"], dim=-1)
    for name in spec.tensor_gates:
        arguments[name] = 0.1 + 0.8 * torch.rand(B, T, H, generator=generator, dtype=torch.float64)
        if name == "eta":
            arguments[name] = arguments[name] / 10
        elif T > 3:
            arguments[name][:, 1], arguments[name][:, 3] = 0.0, 1.0
    leaves = {name: x.to(dtype).requires_grad_() for name, x in arguments.items()}
    if spec.memory.kind == "mlp":
        widths = [K, *[spec.memory.expansion * K] * (spec.memory.layers - 1), V]
        theta = [draw(H, o, i) * i**-0.5 for i, o in pairwise(widths)]
        leaves["theta"] = [W.to(dtype).requires_grad_() for W in theta]
    return leaves


def leaves(arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The arguments' tensors by name, weights apart."""
    flat = {name: x for name, x in arguments.items() if name != "theta"}
    return flat | {f"theta[{i}]": W for i, W in enumerate(arguments.get("theta", []))}


def gradients(y: torch.Tensor, arguments: dict[str, Any], seed: int = 1) -> dict[str, torch.Tensor | None]:
    """Gradients of a random weighting of y, by name."""
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(y)
    flat = leaves(arguments)
    found = torch.autograd.grad((y * cotangent).sum(), list(flat.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(flat, found, strict=True))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """|a - b| over |b|."""
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-12)).item()
