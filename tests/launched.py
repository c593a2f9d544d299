"""Launches of a generated module's host code, caught before they run: what a plan says is held against these."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from mcgen.emit.say.mathematics import weight_shapes
from mcgen.plan.expansion import Launched, Tensor
from mcgen.plan.kernels import SUFFIX
from mcgen.spec import Spec

KINDS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.int32: "int32"}
OPTIONS = ("num_warps", "num_stages")


@contextlib.contextmanager
def caught() -> Iterator[list[Launched]]:
    """The launches that are made meanwhile; none of them runs, so what they would write stays unwritten."""
    from triton import JITFunction
    from triton.runtime.interpreter import InterpretedFunction

    found: list[Launched] = []

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **more: Any) -> None:
        given = {**dict(zip(self.arg_names, args, strict=False)), **more}
        arguments = {name: given[name] for name in self.arg_names}
        tensors = {
            n: Tensor(tuple(t.shape), KINDS[t.dtype]) for n, t in arguments.items() if isinstance(t, torch.Tensor)
        }
        numbers = {name: value for name, value in arguments.items() if isinstance(value, int | bool)}
        options = (more[name] for name in OPTIONS)
        found.append(Launched(self.__name__.removesuffix(SUFFIX), tuple(grid), tensors, numbers, *options))

    with mock.patch.object(JITFunction, "run", run), mock.patch.object(InterpretedFunction, "run", run):
        yield found


def launches(module: ModuleType, spec: Spec, batch: int, length: int, heads: int) -> list[list[Launched]]:
    """The launches of the forward and of the backward pass, for inputs in bfloat16 and gates in float32."""
    head, sizes = spec.head, (batch, length, heads)
    wide = {**dict.fromkeys("qku", head.key_dim), "v": head.value_dim}
    new = lambda name: torch.empty(*sizes, wide[name], dtype=torch.bfloat16) if name in wide else torch.empty(sizes)  # noqa: E731
    tensors = [new(name) for name in module.INPUTS]
    if spec.memory.kind == "mlp":
        tensors += [torch.empty(heads, *shape) for shape in weight_shapes(spec)]
    with caught() as forward:
        y, *saved = module._run_forward_triton(tensors)
    kept = [y, *saved] if module.OPERATORS["triton"][2] == 0 else saved
    with caught() as backward:
        module._run_backward_triton(tensors, kept, torch.empty_like(y))
    return [forward, backward]
