"""Every pass over tile programs keeps their meaning: each rule alone, all of them, and what takes programs apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mcgen.emit.torch.path import REWRITES
from mcgen.ir import aggregate
from mcgen.ir.cut import cut, remaining
from mcgen.ir.evaluate import evaluate
from mcgen.ir.program import Contract, Program, Solve
from mcgen.ir.step import state_axes, step, step_vjp, step_with_vjp
from mcgen.passes.factors import FACTORS
from mcgen.passes.hoist import hoist, part
from mcgen.passes.narrow import narrow
from mcgen.passes.schedule import chained, scheduled
from mcgen.passes.simplify import Rule, select, simplify
from mcgen.passes.solves import solves_apart
from mcgen.symbolic.meaning import Meaning, meaning
from tests.ir.values import Tensors, draw, sizes
from tests.symbolic.rules import learning, small, updates

RULES: tuple[Rule, ...] = tuple(dict.fromkeys([*REWRITES, *FACTORS]))
Pass = Callable[[Program, Meaning], Program]
RANDOM = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
READ_BY = {
    "residual": aggregate.accumulate,
    "mean": aggregate.accumulate,
    "grm": aggregate.blend,
    "ssc": aggregate.weigh,
}
DELTA = [
    {"rule": "gated_delta"},
    {"rule": "titans"},
    {"objective": "sum((p - v)**2)/2", "steps": ["M = M - a*grad", "M = b*M + outer(v[-1], k)", "M = M - 0.1*grad"]},
    {"rule": "titans", "gradient": {"chunk": 6}},
]


def alone(rule: Rule) -> Pass:
    return lambda program, _: simplify(program, (rule,))


def parted(program: Program, understood: Meaning) -> Program:
    return part(program, state_axes(understood))


PASSES: dict[str, Pass] = {
    **{rule.name: alone(rule) for rule in RULES},
    "all of simplify": lambda program, _: simplify(program),
    "all for torch": lambda program, _: simplify(program, REWRITES),
    "all for triton": lambda program, _: simplify(program, FACTORS),
    "twice": lambda program, _: simplify(simplify(program, REWRITES), REWRITES),
    "parts": parted,
    "systems apart": lambda program, understood: solves_apart(program, state_axes(understood)),
    "chains": lambda program, _: chained(program),
    "factors aside, values wide": lambda program, _: narrow(program, {"k": 4, "v": 256}),
    "factors aside, keys wide": lambda program, _: narrow(simplify(program, REWRITES), {"k": 256, "v": 4}),
}


def programs(understood: Meaning) -> Iterator[Program]:
    for masked in (False, True):
        yield step(understood, masked=masked)
        yield step_vjp(understood, masked=masked)
    make = READ_BY.get(understood.aggregate)
    if make is not None:
        yield aggregate.program(make, understood)
        yield aggregate.program_vjp(make, understood)


def assert_same(program: Program, values: Tensors, inputs: Tensors) -> None:
    got = evaluate(program, inputs, sizes())
    assert got.keys() == values.keys()
    for name, expected in values.items():
        torch.testing.assert_close(
            got[name], expected, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


@settings(RANDOM, max_examples=8)
@given(
    st.one_of(updates(), learning()), st.sampled_from(["none", "residual", "mean", "grm", "ssc"]), st.integers(0, 99)
)
@example({"steps": ["M = 0*M + outer(v, k)"], "gates": {}}, "grm", 0)
@example({"steps": ["M = M + 2*outer(v, k)"], "gates": {}}, "grm", 0)
def test_random_rules(update: dict[str, Any], kind: str, seed: int) -> None:
    top_k = {"top_k": 2} if kind == "ssc" else {}
    assert_all_keep(meaning(small(update, aggregate={"kind": kind, **top_k}, segment={"size": 5})), seed)


@pytest.mark.parametrize("update", DELTA)
def test_writes_that_read_the_memory(update: dict[str, Any]) -> None:
    assert_all_keep(meaning(small(update)), 1)


def assert_all_keep(understood: Meaning, seed: int) -> None:
    for program in programs(understood):
        inputs = draw(program, sizes(), seed)
        values = evaluate(program, inputs, sizes())
        for name, apply in PASSES.items():
            rewritten = apply(program, understood)
            try:
                assert_same(rewritten, values, inputs)
            except AssertionError as error:
                raise AssertionError(f"{name}, of {program.name}: {error}") from None


@settings(RANDOM, max_examples=10)
@given(st.one_of(updates(), learning()), st.integers(0, 99))
def test_what_waits_for_no_state_runs_ahead(update: dict[str, Any], seed: int) -> None:
    """The two parts of a hoisted program together are the program, and the first needs no state."""
    understood = meaning(small(update))
    state = state_axes(understood)
    program = part(simplify(step(understood)), state)
    labels = {node: f"value_{index}" for index, node in enumerate(program.nodes)}
    ahead, rest = hoist(program, state, labels.__getitem__)
    inputs = draw(program, sizes(), seed)
    assert not state.keys() & ahead.inputs.keys()
    known = evaluate(ahead, inputs, sizes()) if ahead.outputs else {}
    assert_same(rest, evaluate(program, inputs, sizes()), {**inputs, **known})


@settings(RANDOM, max_examples=10)
@given(st.one_of(updates(), learning()), st.integers(0, 99))
def test_a_program_cut_at_known_values_reads_them(update: dict[str, Any], seed: int) -> None:
    program = simplify(step_with_vjp(meaning(small(update))))
    at = {node: f"value_{i}" for i, node in enumerate(program.nodes) if isinstance(node, Contract | Solve)}
    inputs = draw(program, sizes(), seed)
    known = evaluate(Program("known", {name: node for node, name in at.items()}), inputs, sizes())
    rest = cut(program, at)
    assert_same(rest, evaluate(program, inputs, sizes()), {**inputs, **known})
    assert {type(node) for node in rest.nodes} <= {type(node) for node in remaining(program, at)} | {
        type(n) for n in rest.inputs.values()
    }


def test_a_selection_computes_what_it_names() -> None:
    program = step(meaning(small({"rule": "decay"})))
    chosen = select(program, {"read": "o"}, "only")
    inputs = draw(program, sizes(), 0)
    assert chosen.name == "only"
    assert torch.equal(evaluate(chosen, inputs, sizes())["read"], evaluate(program, inputs, sizes())["o"])


@pytest.mark.parametrize("update", [{"rule": "swla"}, *DELTA])
def test_an_order_computes_operands_first_and_everything_once(update: dict[str, Any]) -> None:
    program = chained(simplify(step_vjp(meaning(small(update)), masked=True), FACTORS))
    order = scheduled(program)
    place = {node: i for i, node in enumerate(order)}
    assert len(place) == len(order)
    assert all(place[operand] < place[node] for node in order for operand in node.operands)
    assert set(program.outputs.values()) <= place.keys()


def test_every_rule_says_what_it_does() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.before and rule.after for rule in RULES)
