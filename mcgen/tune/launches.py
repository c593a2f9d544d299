"""The specialisations of a generated module's kernels, as its own host code would launch them; nothing runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from mcgen.plan.configurations import HIDDEN
from mcgen.plan.kernels import SUFFIX
from mcgen.tune import offline

CONSTANTS = ("BT", "BK", "BV", "BF", "PREC")
"""Constants of a kernel that a configuration and the target decide, not the module."""


@dataclass(frozen=True)
class Specialisation:
    """A kernel of a module with the types of its arguments and the constants it has whatever the configuration is.

    `axis` is the one that it takes in tiles, "k" or "v" on its grid, "f" of hidden units; none where it takes all axes
    whole. `rows` is how many it has to take at once, where it goes by gradient chunks; `whole` is whether it takes all
    hidden units at once.
    """

    kernel: str
    axis: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    rows: int | None = None
    whole: bool = False


def specialisations(path: Path | str, element: str) -> list[Specialisation]:
    """Every kernel of the module in a file, for inputs of one type (`bfloat16`, `float32`) and gates in float32.

    The module's operator runs forward and backward on the CPU with every launch caught before it starts, on one
    segment and on enough for each kernel to be needed.
    """
    kernel_type = _kernel_type()  # a file defines kernels only where Triton is imported already
    module = offline._load(Path(path).resolve())
    found: dict[str, Specialisation] = {}
    with mock.patch.object(kernel_type, "run", _recorder(found, module)):
        for length in _lengths(module):
            _run(module, element, length)
    return list(found.values())


def _kernel_type() -> type:
    from triton import JITFunction

    return JITFunction


def _lengths(module: ModuleType) -> Sequence[int]:
    size = module.SPEC["segment"].get("size") or 256
    segments = (module.SPEC["aggregate"].get("top_k") or 0) + 3
    return size, size * segments + 1


def _run(module: ModuleType, element: str, length: int) -> None:
    import torch

    spec, dtype = module.SPEC, getattr(torch, element)
    shape = (1, length, 2)
    head = spec["head"]
    make = lambda *last, dtype=dtype: torch.zeros(*shape, *last, dtype=dtype, requires_grad=True)  # noqa: E731
    tensors = {name: make(head["key_dim"]) for name in "qku"} | {"v": make(head["value_dim"])}
    gates = {name: make(dtype=torch.float32) for name in module.INPUTS if name not in tensors}
    weights = [torch.zeros(2, *shape, requires_grad=True) for shape in _weight_shapes(spec)]
    # Past `op`, which refuses Triton where no GPU is.
    module.OPERATORS["triton"][0]([*({**tensors, **gates}[name] for name in module.INPUTS), *weights])[
        0
    ].sum().backward()


def _weight_shapes(spec: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The shapes of a deep memory's initial weights, (out, in) each; none for a matrix."""
    memory, head = spec["memory"], spec["head"]
    if memory["kind"] == "matrix":
        return []
    hidden = [memory["expansion"] * head["key_dim"]] * (memory["layers"] - 1)
    return [(out, into) for into, out in pairwise([head["key_dim"], *hidden, head["value_dim"]])]


def _recorder(found: dict[str, Specialisation], module: ModuleType) -> Any:
    def recorded(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        bound = {**dict(zip(self.arg_names, args, strict=False)), **kwargs}
        constant = {param.name for param in self.params if param.is_constexpr}
        values = {name: bound[name] for name in self.arg_names}
        signature = {name: _type(value) for name, value in values.items() if name not in constant}
        kept = {name: value for name, value in values.items() if name in constant and name not in CONSTANTS}
        axis = module.AXES[self.__name__.removesuffix(SUFFIX)]
        # Gradient chunks longer than LEAST_ROWS are several steps, of any number of rows.
        stepping = axis == HIDDEN and "steps" in signature and module.LEAST_ROWS >= module.CHUNK
        rows = module.LEAST_ROWS if stepping else None
        whole = self.__name__.removesuffix(SUFFIX) in vars(module).get("WHOLE", ())
        found.setdefault(self.__name__, Specialisation(self.__name__, axis, signature, kept, rows, whole))

    return recorded


def _type(value: Any) -> str:
    """An argument's type as Triton writes it."""
    import torch

    if not isinstance(value, torch.Tensor):
        return "i32"
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64"}
    return f"*{names[value.dtype]}"
