"""The launches that a plan names are exactly those that then happen, with shapes: every shipped spec, both ways."""

from __future__ import annotations

import importlib
import json
from types import ModuleType

import pytest
from click.testing import CliRunner

from mcgen.cli import main
from mcgen.cli.explain import PROBLEM
from mcgen.plan.expansion import Launched, Problem, expanded, interpreted
from mcgen.plan.plan import planned, scheduled
from mcgen.plan.schedule import Schedule
from mcgen.plan.targets import lookup
from mcgen.spec import Spec, load
from mcgen.spec.shipped import shipped
from mcgen.symbolic.meaning import meaning
from tests.launched import launches

SIZES = [(1, 776, 2), (2, 1300, 1), (1, 130, 3)]
"""Batch, tokens and heads: whole segments and a part of one, several chains, less than a segment."""


def generated(name: str) -> ModuleType:
    importlib.import_module("triton")  # a file defines its kernels where Triton is imported
    return importlib.import_module(f"generated.{name}")


def types(spec: Spec) -> dict[str, str]:
    return {**dict.fromkeys(spec.tensor_gates, "float32"), **dict.fromkeys("qkuv", "bfloat16")}


def schedule_of(spec: Spec) -> Schedule:
    return scheduled(planned(meaning(spec)))


def as_numbers(launched: Launched) -> tuple:
    """All that a launch is, but for a grid's axes of one program and what is no number."""
    grid = launched.grid if launched.grid[1:] != (1,) else launched.grid[:1]
    numbers = {name: n for name, n in launched.constants.items() if name != "n_entries"}
    return launched.kernel, grid, dict(launched.tensors), numbers, launched.warps, launched.stages


@pytest.mark.parametrize("name", shipped())
def test_launches_are_those_that_happen(name: str) -> None:
    spec = load(shipped()[name])
    schedule, module = schedule_of(spec), generated(name)
    for batch, length, heads in SIZES:
        problem = Problem(batch, length, heads, types(spec))
        made = launches(module, spec, batch, length, heads)
        for one, happened in zip(schedule.passes, made, strict=True):
            said = expanded(schedule, one, problem, interpreted(schedule, "bfloat16"))
            assert [*map(as_numbers, said)] == [*map(as_numbers, happened)], one.name
            assert [launch.bytes for launch in said] == [launch.bytes for launch in happened]


@pytest.mark.parametrize("name", ["gated_delta_grm", "linear_ssc", "titans_grm", "titans_chunk_grm"])
def test_explain_names_the_launches_on_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(main, ["explain", name, "--stage", "plan", "--json", "--target", "h200"])
    said = json.loads(done.stdout)["plan"]["launches"]
    module, target = generated(name), lookup("h200")
    monkeypatch.setattr(module, "_architecture", lambda device: target.architecture)
    if hasattr(module, "_programs"):
        monkeypatch.setattr(module, "_programs", lambda units, device: min(units, 2 * target.sm_count))
    if hasattr(module, "_most_chains"):
        monkeypatch.setattr(module, "_most_chains", lambda device: target.sm_count // 2)
    monkeypatch.setattr(module, "_precision", lambda element: "tf32")
    module._configurations.cache_clear(), module._launching.cache_clear()
    made = launches(module, load(shipped()[name]), *PROBLEM)
    module._configurations.cache_clear(), module._launching.cache_clear()
    for way, happened in zip(("forward", "backward"), made, strict=True):
        assert [one["kernel"] for one in said[way]] == [one.kernel for one in happened]
        for one, real in zip(said[way], happened, strict=True):
            assert one["bytes"] == real.bytes
            assert one["grid"] == list(real.grid[: len(one["grid"])])
            assert {n: tuple(t["shape"]) for n, t in one["tensors"].items()} == {
                n: t.shape for n, t in real.tensors.items()
            }
            assert (one["warps"], one["stages"]) == (real.warps, real.stages)


def test_every_buffer_lives_from_its_making_to_its_last_use() -> None:
    done = CliRunner().invoke(main, ["explain", "gated_delta_grm", "--stage", "plan", "--json"])
    (forward, backward) = json.loads(done.stdout)["plan"]["passes"].values()
    for one in (forward, backward):
        assert all(0 <= begin <= end for begin, end in (buffer["lives"] for buffer in one["buffers"]))
    lives = {buffer["name"]: buffer["lives"] for buffer in backward["buffers"]}
    assert lives["d_q_rows"][0] < lives["d_q"][0] <= lives["d_q"][1]
