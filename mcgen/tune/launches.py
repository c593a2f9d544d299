"""The specialisations of a generated module's kernels, as its plan has them launched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mcgen.emit.text.private_names import privately
from mcgen.plan.host import Kernel, buffers, launches
from mcgen.plan.kernels import SUFFIX
from mcgen.plan.plan import planned, scheduled
from mcgen.plan.schedule import Schedule
from mcgen.spec import Spec
from mcgen.symbolic.meaning import meaning

POINTERS = {"float32": "*fp32", "bfloat16": "*bf16", "int32": "*i32"}
"""Types of tensors as Triton writes them."""


@dataclass(frozen=True)
class Specialisation:
    """A kernel of a module with the types of its arguments and the constants it has whatever the configuration is.

    `axis` is the one that it takes in tiles, "k" or "v" on its grid, "f" of hidden units; none where it takes all axes
    whole. `rows` is how many it has to take at once, where it goes by gradient chunks; `whole` is whether it takes all
    hidden units at once; `ahead` is whether its loops are plain products.
    """

    kernel: str
    axis: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    rows: int | None = None
    whole: bool = False
    ahead: bool = False


def specialisations(spec: Spec, element: str) -> list[Specialisation]:
    """Every kernel of a spec's module, for inputs of one type (`bfloat16`, `float32`) and gates in float32."""
    schedule = scheduled(planned(meaning(privately(spec))))
    return [_specialisation(schedule, kernel, element) for kernel in schedule.kernels.values()]


def _specialisation(schedule: Schedule, kernel: Kernel, element: str) -> Specialisation:
    import triton.language as tl

    types = {buffer.name: buffer.type for one in schedule.passes for buffer in buffers(one)} | {"work": "float32"}
    given = {**dict.fromkeys("qkuv", element), "float32": "float32", "int32": "int32"}  # and gates are float32
    tensors = {name: POINTERS[given.get(types[name], "float32")] for name in kernel.tensors}
    signature = {**tensors, **dict.fromkeys(kernel.tables, "*i32"), **dict.fromkeys(kernel.numbers, "i32")}
    (launch, *_) = (one for way in schedule.passes for one in launches(way.body) if one.kernel == kernel)
    known = {**schedule.constants, **dict.fromkeys(launch.modes, True), "IN": getattr(tl, element)}
    constants = {name: known[name] for name in kernel.constants if name in known} | dict.fromkeys(kernel.going_on)
    how = kernel.rows, kernel.whole, kernel.ahead
    return Specialisation(kernel.name + SUFFIX, kernel.axis, signature, constants, *how)
