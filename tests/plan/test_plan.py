"""The plan: which schedule a structure gets and at what cost, and how gates are shared out to kernels."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest

from mcgen.emit.triton.path import kernels_source
from mcgen.plan.explanation import plan_text
from mcgen.plan.host import launches
from mcgen.plan.kernels import SUFFIX
from mcgen.plan.layered import LayeredPlan
from mcgen.plan.layered_passes import LayeredPasses
from mcgen.plan.matrix import TILES, MatrixPlan
from mcgen.plan.plan import planned
from mcgen.spec import load, loads
from mcgen.spec.shipped import shipped
from mcgen.symbolic.meaning import Meaning, meaning


def of(name: str) -> Meaning:
    return meaning(load(shipped()[name]))


@pytest.mark.parametrize(
    ("name", "schedule", "flops"),
    [
        ("linear_grm", "token form", "2*B*H*L*T*(K + V) FLOPs"),
        ("gated_delta_none", "1 unit lower triangular system", "B*H*T*(2*K*L + 2*K*V + L*V) FLOPs"),
        ("titans_matrix_chunk_none", "error rows from the memory at the start", "2*B*H*K*T*V FLOPs"),
        ("gated_delta_ssc", "rows grouped by the segment they chose", "2*B*H*K*T*V*top_k FLOPs"),
    ],
)
def test_a_schedule_follows_from_structure_and_says_what_it_costs(name: str, schedule: str, flops: str) -> None:
    text = plan_text(of(name))
    at = text.index(schedule)
    assert flops in text[at:].split("\n")[1]


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("gated_delta_none", {"gates": {"alpha", "eta"}}),
        ("swla_grm", {"gates": {"alpha", "beta", "lam"}}),
        ("fastslow_grm", {"gates_1": {"gamma", "lam"}, "gates_2": {"alpha", "mu"}}),
        ("momentum_delta_none", {"gates_1": {"alpha"}, "gates_2": {"beta", "lam", "eta"}}),
        ("linear_grm", {}),
    ],
)
def test_gates_that_need_the_same_state_share_a_kernel(name: str, kernels: dict[str, Any]) -> None:
    walks = MatrixPlan(of(name)).walks
    assert {kernel: set(walk.wanted) for kernel, walk in walks.items() if walk.parts} == kernels


DEEP = {"kind": "mlp", "layers": 2, "expansion": 2}


@pytest.mark.parametrize(
    ("size", "memory", "place"),
    [
        (32, DEEP, "in registers going forward"),
        (64, DEEP, "in buffers, a tile of hidden units at a time"),  # 128 hidden units are two tiles
        (64, {**DEEP, "expansion": 1}, "in buffers"),  # and 64 one, but its state and the next are half the registers
    ],
)
def test_a_deep_state_stays_in_registers_where_every_target_has_room(size: int, memory: dict, place: str) -> None:
    head = {"key_dim": size, "value_dim": size}
    document = {"mcgen": 1, "name": "deep", "memory": memory, "head": head, "aggregate": {"kind": "none"}}
    spec = loads(json.dumps({**document, "update": {"rule": "titans", "gradient": {"chunk": 16}}}))
    assert f"state: {place}" in plan_text(meaning(spec))


def test_long_gradient_chunks_are_taken_layer_by_layer() -> None:
    plan = LayeredPlan(of("titans_chunk_grm"))
    names = [launch.kernel.name for launch in launches(LayeredPasses(plan).forward.body)]
    assert names == ["logits", "errors", "layer_1", "layer_2", "online", "read"]
    assert "layer_1" in plan_text(of("titans_chunk_grm"))
    needs = {name: (walk.state, walk.d_state) for name, walk in plan.walks.items() if name.endswith(("_1", "_1_2"))}
    assert needs["queries_1"] == (("S_1", "M_1"), ())
    assert needs["writes_1"] == needs["gates_1_2"] == ((), ("S_1", "M_1"))  # what eta is owed needs no state either


def test_a_kernel_that_takes_in_several_gates_stays_small() -> None:
    for name, path in shipped().items():
        understood = meaning(load(path))
        if understood.linear:
            plan = MatrixPlan(understood)
            for walk in plan.walks.values():
                if walk.parts and len(walk.wanted) > 1:
                    alone = max(plan._tiles((gate,)) for gate in walk.wanted)
                    assert plan._tiles(walk.wanted) <= max(TILES, 1.1**2 * alone), name


@pytest.mark.parametrize("name", ["titans_ssc", "dla_grm", "titans_soup", "dla_residual", "titans_chunk_grm"])
def test_programs_have_scratch_where_they_use_it(name: str) -> None:
    passes = planned(of(name))
    kernels = {node.name: node for node in ast.parse(kernels_source(passes)).body if isinstance(node, ast.FunctionDef)}
    for one in (passes.forward, passes.backward):
        for launch in launches(one.body):
            named = {node.id for node in ast.walk(kernels[launch.kernel.name + SUFFIX]) if isinstance(node, ast.Name)}
            assert (launch.room not in (None, "0")) == ("work" in named), launch.kernel.name
