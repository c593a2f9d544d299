"""Writes that read the memory, in the types that models run in: at the ends of their range, and in Triton kernels."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from mcgen.spec import Spec
from tests.emit.fragments import inputs, reference_of, spec_of
from tests.hostile import CASES, Bound, Tensors, bounds, results
from tests.interpreted import interpreted
from tests.test_delta import GATED, HUBER, TITANS, TOGETHER, TWICE, module_of, over

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HEAD = {"head": {"key_dim": 16, "value_dim": 16}}


def rounded(x: Tensors, dtype: torch.dtype) -> Tensors:
    return {name: t.to(dtype) for name, t in x.items()}


@cache
def exact(name: str, length: int) -> Tensors:
    """What the definition gives for a case's inputs before they are rounded to a type."""
    return results(reference_of(CASES[name].spec), CASES[name].inputs(length))


def expected(name: str, length: int, dtype: str) -> dict[str, Bound]:
    case = CASES[name]
    return bounds(reference_of(case.spec), case.inputs(length), TYPES[dtype], exact(name, length))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", CASES)
def test_hostile_inputs(name: str, dtype: str) -> None:
    case = CASES[name]
    found = results(module_of(case.spec).op, rounded(case.inputs(), TYPES[dtype]), backend="torch")
    for part, bound in expected(name, case.length, dtype).items():
        assert bound.holds(found[part]), part


# -- kernels ----------------------------------------------------------------------------------------------------------

KERNELS = {
    "gated delta": (GATED, "grm", 40),
    "titans": (TITANS, "none", 37),
    "titans, chunks of 16": (over(TITANS, 16), "grm", 40),
    "titans, chunks of 5": (over(TITANS, 5), "none", 12),
    "two gradients": (TWICE, "grm", 27),
    "chunks of a bent objective": (over({**TOGETHER, "objective": HUBER}, 6), "mean", 14),
}
HOSTILE = [
    ("equal keys, overshot", "float32"),
    ("zeros", "float32"),
    ("tiny gates", "float32"),
    ("at the edge", "bfloat16"),
]
LENGTH = 40


def _inputs(spec: Spec, T: int) -> Tensors:
    return {name: t.detach() for name, t in inputs(spec, T, B=1, H=1, dtype=torch.float32).items()}


@pytest.fixture(scope="session")  # once a worker, in whatever order it gets tests
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensors]:
    """Results of KERNELS, from one other process."""
    jobs = {}
    for name, (rule, aggregate, T) in KERNELS.items():
        spec = spec_of(rule, aggregate={"kind": aggregate}, segment={"size": 17}, **HEAD)
        jobs[name] = spec, _inputs(spec, T)
    return dict(zip(jobs, interpreted(list(jobs.values()), tmp_path_factory.mktemp("kernels")), strict=True))


@pytest.fixture(scope="session")  # once a worker, in whatever order it gets tests
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Tensors]:
    """Results of HOSTILE, from one other process that multiplies float32 as GPUs do."""
    jobs = [(CASES[name].spec, rounded(CASES[name].inputs(LENGTH), TYPES[dtype])) for name, dtype in HOSTILE]
    return dict(zip(HOSTILE, interpreted(jobs, tmp_path_factory.mktemp("hostile"), "by_parts"), strict=True))


@pytest.mark.parametrize("name", KERNELS)
def test_kernels(kernels: dict[str, Tensors], name: str) -> None:
    rule, aggregate, T = KERNELS[name]
    spec = spec_of(rule, aggregate={"kind": aggregate}, segment={"size": 17}, **HEAD)
    for part, wanted in results(reference_of(spec), rounded(_inputs(spec, T), torch.float64)).items():
        assert (kernels[name][part] - wanted).norm() <= 1e-5 * wanted.norm() + 1e-9, part


@pytest.mark.parametrize(("name", "dtype"), HOSTILE)
def test_kernels_on_hostile_inputs(hostile: dict[tuple[str, str], Tensors], name: str, dtype: str) -> None:
    for part, bound in expected(name, LENGTH, dtype).items():
        assert bound.holds(hostile[name, dtype][part]), part
