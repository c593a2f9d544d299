"""A generated module's `op` held against its own token-by-token `reference`, values and gradients.

The reference runs in float64 on the numbers that `op` gets. An error is a root mean square relative to that of what is
expected; what rounding alone makes of numbers around 1 counts as none.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from mcgen.emit.say.mathematics import weight_shapes
from mcgen.errors import Diagnostic, SpecError, UnsupportedError
from mcgen.spec import Spec
from mcgen.symbolic.meaning import meaning
from mcgen.symbolic.reach import THETA, unreached
from mcgen.symbolic.recurrence import GradientWrite, recurrence
from mcgen.tune.compiler import COMPILES, LAUNCHES, require_triton

TOLERANCES = {
    ("torch", "cpu"): (torch.float64, 1e-10, 1e-9),
    ("torch", "cuda"): (torch.float64, 1e-10, 1e-9),
    ("triton", "cpu"): (torch.float32, 1e-5, 1e-4),
    ("triton", "cuda"): (torch.float32, 2e-3, 1e-2),
}
"""The float type that a backend is held in, and what values and gradients may be off; GPUs multiply in tf32."""

ROUNDINGS = 4
"""Errors of so many units in the last place of numbers around 1 are none."""

DEEP_STEP = 0.03  # what gates that scale gradients are multiplied by, where a larger step makes a deep memory diverge


@dataclass(frozen=True)
class Case:
    """One problem: a module, the spec it is of, and the shape of its inputs."""

    module: ModuleType
    spec: Spec
    length: int
    batch: int
    heads: int

    @property
    def segments(self) -> str:
        segment = self.spec.segment
        return f"{segment.size}-token" if segment.size else segment.mode


@dataclass(frozen=True)
class Finding:
    """How far one tensor is off. `worst` is the place of its largest difference; `fault` says what else is wrong.

    `zero` is of a gradient that is 0 by construction: what is found is exactly that, or a fault.
    """

    tensor: str
    what: str
    length: int
    segments: str
    error: float
    tolerance: float
    worst: tuple[int, ...] | None = None
    fault: str = ""
    zero: bool = False

    @property
    def holds(self) -> bool:
        return not self.fault and self.error <= self.tolerance


def imported(path: Path) -> ModuleType:
    """The generated module in a file.

    Raises:
        SpecError: the file cannot be imported, or is no generated module.
    """
    name = f"_verified_{path.stem}_{len(sys.modules)}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        problem = f"cannot be imported: {type(error).__name__}: {error}"
        raise SpecError(Diagnostic("error", problem, str(path))) from error
    if missing := [name for name in ("SPEC", "op", "reference") if not hasattr(module, name)]:
        problem = f"not a generated module: it has no {', '.join(missing)}"
        raise SpecError(Diagnostic("error", problem, str(path)))
    return module


def require(backend: str, device: str) -> None:
    """Nothing, where modules can run on a backend here.

    Raises:
        UnsupportedError: it cannot.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError("there is no CUDA device here; --device cpu runs the Triton kernels interpreted")
    if backend == "triton":
        require_triton("--backend triton", COMPILES if device == "cpu" else LAUNCHES)


def hold(case: Case, backend: str, device: str, seed: int) -> Iterator[Finding]:
    """Findings for y and for the gradient of every input; on one thread, which is quickest at these sizes."""
    torch.set_num_threads(1)
    dtype, *tolerances = TOLERANCES[backend, device]
    weight = _draw(seed + 1, case.batch, case.length, case.heads, case.spec.head.value_dim).to(device, dtype)
    for exact in (True, False):
        inputs = {name: value.to(device, dtype) for name, value in _inputs(case, seed, exact).items()}
        wide = {name: value.double() for name, value in inputs.items()}
        expected = _run(case.module.reference, wide, weight.double())
        if all(value.isfinite().all() for value in expected.values()):
            break  # or the rule has no value or derivative at gates of exactly 0, as one that divides by a gate
    try:
        found = _run(case.module.op, inputs, weight, backend=backend)
    except NotImplementedError as error:
        raise UnsupportedError(str(error)) from error
    except Exception as error:  # whatever the file under test raises is a finding
        fault = f"{type(error).__name__}: {error}"
        yield Finding("y", "value", case.length, case.segments, float("inf"), tolerances[0], fault=fault)
        return
    flat = [f"d{name}" for name in unreached(meaning(case.spec))]
    for name, value in expected.items():
        if name in flat:
            yield _zero(case, name, found[name], value)
            continue
        what, tolerance = ("value", tolerances[0]) if name == "y" else ("gradient", tolerances[1])
        yield _compared(case, name, what, found[name], value, tolerance, dtype)


def _draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _inputs(case: Case, seed: int, exact: bool) -> dict[str, torch.Tensor]:
    """q, k, v, u where it routes, gates and a deep memory's weights by name; keys of length 1, gates that keep much."""
    spec, shape = case.spec, (case.batch, case.length, case.heads)
    names = ["q", "k", "v", *(["u"] if spec.routes_by_u else []), *spec.tensor_gates]
    inputs, small = {}, _step_sizes(spec) if spec.memory.kind == "mlp" else {}
    for number, name in enumerate(names):
        wide = {"v": spec.head.value_dim}.get(name, spec.head.key_dim)
        value = _draw(1000 * seed + 10 + number, *shape, *([] if name in spec.tensor_gates else [wide]))
        if name in spec.tensor_gates:
            value = _gate(value, number, exact) * small.get(name, 1)
        inputs[name] = torch.nn.functional.normalize(value, dim=-1) if name == "k" else value
    for number, (out, into) in enumerate(weight_shapes(spec) if spec.memory.kind == "mlp" else ()):
        inputs[THETA.format(number)] = _draw(1000 * seed + 90 + number, case.heads, out, into) * into**-0.5
    return inputs


def _step_sizes(spec: Spec) -> dict[str, float]:
    """The gates that scale gradients, with what the layer would scale them by, DEEP_STEP at most."""
    forms = recurrence(spec).forms.values()
    rates = [rate for form in forms for atom, rate in form.items() if isinstance(atom, GradientWrite)]
    names = {symbol.name for rate in rates for symbol in rate.free_symbols}
    return {
        gate.name: min(DEEP_STEP, abs(gate.scale))
        for gate in spec.gates
        if gate.name in names and gate.kind == "tensor"
    }


def _arguments(inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Inputs by name as the arguments that take them: the weights of a deep memory are one list."""
    theta = [value for name, value in inputs.items() if _is_weight(name)]
    others = {name: value for name, value in inputs.items() if not _is_weight(name)}
    return {**others, "theta": theta} if theta else others


def _is_weight(name: str) -> bool:
    """Whether an input is a layer's initial weights: no gate is called as they are."""
    return name.startswith(THETA.partition("{")[0])


def _gate(value: torch.Tensor, number: int, exact: bool) -> torch.Tensor:
    """A gate between 0.5 and 1. The first head's is 0 at some tokens, also at two in a row; the last's is 1 at some."""
    gate = 0.5 + 0.5 * torch.special.ndtr(value)
    if exact:
        gate[:, 3 + number :: 17, 0] = 0.0
        gate[:, 4 + number :: 34, 0] = 0.0
        gate[:, number % 2 :: 5, -1] = 1.0
    return gate


def _run(
    function: Any, inputs: Mapping[str, torch.Tensor], weight: torch.Tensor, **options: Any
) -> dict[str, torch.Tensor]:
    """y and the gradient of <y, weight> for every input, as `y`, `dq`, …; zero where there is none."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    y = function(**_arguments(leaves), **options)
    gradients = torch.autograd.grad((y * weight).sum(), list(leaves.values()), allow_unused=True)
    filled = [torch.zeros_like(x) if d is None else d for x, d in zip(leaves.values(), gradients, strict=True)]
    return {"y": y.detach(), **{f"d{name}": d for name, d in zip(leaves, filled, strict=True)}}


def _zero(case: Case, name: str, found: torch.Tensor, expected: torch.Tensor) -> Finding:
    """A gradient that is 0 by construction, held against 0."""
    other = [who for who, value in (("op", found), ("reference", expected)) if value.count_nonzero()]
    fault = f"not 0 in {' and '.join(other)}" if other else ""
    return Finding(name, "gradient", case.length, case.segments, 0.0, 0.0, fault=fault, zero=True)


def _compared(
    case: Case, name: str, what: str, found: torch.Tensor, expected: torch.Tensor, tolerance: float, dtype: torch.dtype
) -> Finding:
    place = case.length, case.segments
    if found.shape != expected.shape or found.dtype != dtype:
        fault = f"{found.dtype} {tuple(found.shape)} in place of {dtype} {tuple(expected.shape)}"
        return Finding(name, what, *place, float("inf"), tolerance, fault=fault)
    difference = (found.double() - expected).abs()
    worst = tuple(int(i) for i in torch.unravel_index(difference.nan_to_num(torch.inf).argmax(), difference.shape))
    if not difference.isfinite().all():
        return Finding(name, what, *place, float("inf"), tolerance, worst, "not finite")
    floor = ROUNDINGS * torch.finfo(dtype).eps / tolerance
    scale = max(expected.square().mean().sqrt().item(), floor)
    return Finding(name, what, *place, difference.square().mean().sqrt().item() / scale, tolerance, worst)
