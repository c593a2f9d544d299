"""What is not finite reaches no earlier read-out, on either path; and it does reach its own."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from mcgen.plan.configurations import SHIPPED
from mcgen.plan.targets import lookup
from mcgen.spec import Spec, load
from mcgen.spec.shipped import shipped
from mcgen.tune import offline
from mcgen.tune.offline import Job, compile_job, in_workers
from mcgen.tune.verification import imported
from tests.emit.fragments import inputs, spec_of
from tests.interpreted import interpreted

ROOT = Path(__file__).parents[1]
POISONS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def poisoned(arguments: dict, names: list[str], first: int, last: int | None, poison: float) -> dict:
    """The arguments with one number of every token of a run replaced, in the first sequence and head alone."""
    changed = dict(arguments)
    for name in names:
        changed[name] = arguments[name].clone()
        changed[name][0, first:last, 0, ...] = poison
    return changed


def unchanged(found: torch.Tensor, clean: torch.Tensor, first: int) -> bool:
    """Whether rows before `first`, and all of other sequences and heads, are what they were without poison."""
    same = torch.isclose(found, clean, rtol=1e-4, atol=1e-5)
    return bool(same[0, :first, 0].all() and same[1:].all() and same[:, :, 1:].all())


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("name", shipped())
def test_a_poisoned_tail_changes_nothing_before_it(name: str, poison: str) -> None:
    module, spec = imported(ROOT / "generated" / f"{name}.py"), load(shipped()[name])
    arguments = detached(spec, 90)
    clean = module.op(**arguments)
    for first in (3, 70):
        found = module.op(**poisoned(arguments, names_of(spec), first, None, POISONS[poison]))
        assert unchanged(found, clean, first)
        assert not found[0, first:, 0].isfinite().any()


@pytest.mark.parametrize("name", ["linear_grm", "gated_delta_none", "retnet_none", "titans_residual"])
def test_each_input_reaches_what_it_writes_to(name: str) -> None:
    """A query its own read-out; a key, value or gate all that the memory is read for from there on."""
    module, spec = imported(ROOT / "generated" / f"{name}.py"), load(shipped()[name])
    arguments = detached(spec, 300)
    clean = module.op(**arguments)
    for one in names_of(spec):
        found = module.op(**poisoned(arguments, [one], 270, 271, math.nan))
        reached = 271 if one in ("q", "u") else None
        assert unchanged(found, clean, 270)
        assert found[0, 270:reached, 0].isnan().all()
        assert reached is None or torch.isclose(found[:, reached:], clean[:, reached:], rtol=1e-4, atol=1e-5).all()


def test_segments_apart_stay_apart() -> None:
    """Segments that restart, and of which none is read by another, end what reaches on."""
    from mcgen.pipeline import source
    from tests.emit.fragments import run

    spec = spec_of({"rule": "decay"}, aggregate={"kind": "none"}, segment={"size": 16, "init": "independent"})
    arguments = detached(spec, 40)
    module = run(source(spec))
    clean, found = module.op(**arguments), module.op(**poisoned(arguments, ["v"], 20, 21, math.inf))
    assert found[0, 20:32, 0].isnan().all()
    found[0, 20:32, 0] = clean[0, 20:32, 0]
    torch.testing.assert_close(found, clean)


def names_of(spec: Spec) -> list[str]:
    return ["q", "k", "v", *(["u"] if spec.routes_by_u else []), *spec.tensor_gates]


def detached(spec: Spec, T: int, dtype: torch.dtype = torch.float32) -> dict:
    found = {
        name: [W.detach() for W in x] if name == "theta" else x.detach()
        for name, x in inputs(spec, T, B=2, H=2, dtype=dtype).items()
    }
    return found if spec.routes_by_u else {name: x for name, x in found.items() if name != "u"}


KERNELS = [
    ({"rule": "linear"}, {"kind": "grm"}, {"size": 16}),
    ({"rule": "gated_delta"}, {"kind": "none"}, {"size": 40}),
    ({"rule": "swla"}, {"kind": "ssc", "top_k": 1}, {"size": 8}),
    ({"rule": "titans", "gradient": {"chunk": 4}}, {"kind": "residual"}, {"size": 12}),
]


def test_kernels_let_nothing_through_either(tmp_path: Path) -> None:
    jobs = []
    for update, aggregate, segment in KERNELS:
        spec = spec_of(update, aggregate=aggregate, segment=segment, head={"key_dim": 5, "value_dim": 6})
        x = detached(spec, 27)
        jobs += [(spec, x), (spec, poisoned(x, names_of(spec), 13, None, math.nan))]
    found = [result["y"] for result in interpreted(jobs, tmp_path)]
    for clean, dirty in zip(found[::2], found[1::2], strict=True):
        assert unchanged(dirty, clean, 13)
        assert dirty[0, 13:, 0].isnan().all()


REPLACE = """
import math, sys, torch
sys.path.insert(0, ".")
from generated import gated_delta_grm as m
torch.manual_seed(0)
for shape in ((2, 37, 3, 17), (1, 5, 1, 64), (2, 300, 2)):
    x = torch.randn(shape)
    x.view(-1)[::7], x.view(-1)[3::11] = math.nan, -math.inf
    marks = [torch.zeros(shape[:3], dtype=torch.int32) for _ in range(2)]
    by_torch, by_triton = m._replace_torch(x, marks[0], 0.5), m._replace_triton(x, marks[1], 0.5)
    assert torch.equal(by_torch, by_triton) and torch.equal(*marks) and by_torch.isfinite().all()
    y = torch.randn(*shape[:3], 9)
    expected = y.masked_fill(marks[0].bool().unsqueeze(-1), math.nan)
    m._by_rows(m.spoil_rows, y, marks[0].bool())
    assert torch.equal(y.nan_to_num(7), expected.nan_to_num(7))
print("done")
"""


def test_the_kernels_that_replace_do_what_torch_does() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", REPLACE], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize("architecture", SHIPPED)
def test_they_compile_for_every_target(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    offline._load.cache_clear()
    path, sizes = ROOT / "generated" / "linear_grm.py", {"WIDTH": 96, "BT": 32, "BW": 128}
    replace = {"clean": "*bf16", "x": "*bf16", "bad": "*i32", "by": "fp32", "n_rows": "i32"}
    spoil = {"y": "*bf16", "late": "*i1", "n_rows": "i32"}
    jobs = [
        Job(path, kernel, signature, sizes, lookup(architecture), 4, 1)
        for kernel, signature in (("replace_rows", replace), ("spoil_rows", spoil))
    ]
    assert all(found.clean for found in in_workers(partial(compile_job, cache=tmp_path), jobs, progress=False))
    offline._load.cache_clear()
