"""Rewrites that break the table of what must hold are named; specs that are shipped, and unusual ones, pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from mcgen import dump, pipeline
from mcgen.cli import main
from mcgen.emit.text import naming
from mcgen.emit.torch.path import REWRITES
from mcgen.errors import InternalError
from mcgen.ir import check, cut
from mcgen.ir.invariants import AFTER, HOISTED, NODES, ORDER
from mcgen.ir.layers import sizes
from mcgen.ir.program import Builder, Contract, Map, Node, Program, Reduce
from mcgen.ir.rebuild import rebuilt
from mcgen.ir.step import state_axes, step_with_vjp
from mcgen.passes import hoist, narrow, schedule, simplify, solves
from mcgen.passes.factors import FACTORS
from mcgen.passes.simplify import Rule
from mcgen.plan import matrix
from mcgen.spec import Spec, load
from mcgen.spec.shipped import shipped
from mcgen.symbolic.meaning import meaning
from tests.emit.fragments import spec_of
from tests.symbolic.rules import small

LOST = NODES[Contract][1].says
UNDERSTOOD = meaning(small({"rule": "gated_delta"}))


def program() -> Program:
    return step_with_vjp(UNDERSTOOD)


def losing(b: Builder, node: Node, *_: object) -> Node | None:
    """A rewrite that forgets an axis of products."""
    return replace(node, axes=node.axes[1:]) if isinstance(node, Contract) and node.axes else None


# The switch.


@pytest.mark.parametrize(
    ("set_to", "on"),
    [({}, False), ({check.VARIABLE: "1"}, True), ({dump.VARIABLE: "dump"}, True), ({check.VARIABLE: ""}, False)],
)
def test_checks_are_on_where_asked_for_and_where_stages_are_dumped(
    monkeypatch: pytest.MonkeyPatch, set_to: dict[str, str], on: bool
) -> None:
    for variable in (check.VARIABLE, dump.VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in set_to.items():
        monkeypatch.setenv(variable, value)
    assert check.is_on() is on


def test_tests_are_run_with_checks() -> None:
    assert check.is_on()


def test_nothing_is_checked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(check.VARIABLE)
    monkeypatch.delenv(dump.VARIABLE, raising=False)
    monkeypatch.setattr(check, "Check", None)
    pipeline.source(small({"rule": "gated_delta"}))


def fault(run: Callable[[], object]) -> str:
    with pytest.raises(InternalError) as caught:
        run()
    return str(caught.value)


# Rules.


@pytest.mark.parametrize("rule", dict.fromkeys([*REWRITES, *FACTORS]), ids=lambda rule: rule.name)
def test_a_broken_rule_is_named(rule: Rule) -> None:
    said = fault(lambda: simplify.simplify(program(), (replace(rule, apply=losing),)))
    assert said.startswith(f'after "{rule.name}", in step: {LOST}: %')


WRONG: Mapping[str, tuple[Callable[[Builder, Node], Node | None], str]] = {
    "an axis summed away": (
        lambda b, node: b.sum(node, "k") if isinstance(node, Contract) and "k" in node.axes else None,
        "what replaces a value has its axes, or is one number",
    ),
    "an operand along more axes": (
        lambda b, node: replace(node, axes=("t",)) if isinstance(node, Map) and node.axes == ("t", "k") else None,
        "a function has all axes of its operands",
    ),
    "a sum over what is not there": (
        lambda b, node: replace(node, over=("n",)) if isinstance(node, Reduce) and node.over != ("n",) else None,
        "a reduction goes over axes that its operand has",
    ),
}


@pytest.mark.parametrize(("apply", "says"), WRONG.values(), ids=WRONG)
def test_a_rule_that_does_something_wrong_is_told_what(apply: Callable, says: str) -> None:
    wrong = Rule("wrong", "x", "y", apply)
    said = fault(lambda: simplify.simplify(program(), (*simplify.RULES, wrong)))
    assert said.startswith(f'after "wrong", in step: {says}: %')


def test_a_rule_is_not_blamed_for_what_was_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simplify, "rebuilt", breaking)
    assert fault(lambda: simplify.simplify(program())).startswith(f"before any rule, in step: {LOST}: %")


def test_a_build_stops_at_a_rule_that_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Rule("wrong", "x", "y", losing)
    monkeypatch.setattr(matrix, "FACTORS", (wrong,))
    assert fault(lambda: pipeline.source(load(shipped()["retnet_none"]))).startswith('after "wrong", in ')


# Passes.


def breaking(b: Builder, node: Node, new: Mapping[Node, Node]) -> Node:
    again = rebuilt(b, node, new)
    return losing(b, again) or again


STATE = tuple(state_axes(UNDERSTOOD))
PASSES: Mapping[str, tuple[ModuleType, Callable[[Program], object]]] = {
    "part": (hoist, lambda program: hoist.part(program, STATE)),
    "solves_apart": (solves, lambda program: solves.solves_apart(program, STATE)),
    "narrow": (narrow, lambda program: narrow.narrow(program, sizes(UNDERSTOOD.spec))),
    "chained": (schedule, schedule.chained),
    "cut": (cut, lambda program: cut.cut(program, {})),
    "fixed": (cut, lambda program: cut.fixed(program, {})),
    "named": (naming, lambda program: naming.named([program], ())),
}


@pytest.mark.parametrize("name", PASSES)
def test_a_broken_pass_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, run = PASSES[name]
    run(program())
    monkeypatch.setattr(module, "rebuilt", breaking)
    assert fault(lambda: run(program())).startswith(f"after {name}, in step: {LOST}: %")


def test_a_chain_that_is_none_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_chain", rebuilt)
    said = fault(lambda: schedule.chained(program()))
    assert said.startswith(f"after chained, in step: {AFTER['chained'].says}: %")


def test_what_runs_ahead_too_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoist, "reached", lambda program, carried: set())
    whole = hoist.part(simplify.simplify(program()), ())
    names = {node: f"value_{i}" for i, node in enumerate(whole.nodes)}
    said = fault(lambda: hoist.hoist(whole, STATE, names.__getitem__))
    assert said.startswith(f"after hoist, in step_ahead: {HOISTED[0].says}: %")


def test_an_order_from_the_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    order = schedule._Search.order
    monkeypatch.setattr(schedule._Search, "order", lambda self: order(self)[::-1])
    said = fault(lambda: schedule.scheduled(schedule.chained(program())))
    assert said.startswith(f"after scheduled, in step: {ORDER[0].says}: %")


# Under MCGEN_DUMP.


def test_a_build_that_is_dumped_names_the_rewrite_and_where_its_input_lies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(check.VARIABLE)
    broken = [replace(rule, apply=losing) if rule.name == "mask apart" else rule for rule in REWRITES]
    monkeypatch.setattr(pipeline, "REWRITES", tuple(broken))
    folder = tmp_path / "dump"
    done = CliRunner().invoke(main, ["build", "delta_grm", "-o", str(tmp_path)], env={dump.VARIABLE: str(folder)})
    assert done.exit_code == 3
    said = f'internal error in stage passes: InternalError: after "mask apart", in step: {LOST}: %'
    assert said in done.stderr
    before = next(line for line in done.stderr.splitlines() if "the stage's input lies in" in line).split()[-1]
    assert Path(before).parent == folder / "delta_grm"
    assert Path(before).read_text().startswith("program step\n")
    assert not list(tmp_path.glob("*.py"))


# What comes out of specs.

TITANS = {"rule": "titans", "gradient": {"chunk": 16}}
LONG = {"rule": "titans", "gradient": {"chunk": 100}}
TWICE = {
    "objective": "sum((p - v)**2)/2",
    "steps": ["M = M - a*grad", "M = b*M + outer(v[-1], k)", "M = M - 0.1*grad"],
}
HUBER = {
    "objective": "sum(sqrt(1 + (p - v)**2))",
    "steps": ["S = beta*S - eta*grad", "M = alpha*M + S"],
    "gradient": {"chunk": 16},
}
THREE_SLOTS = {
    "steps": ["R = a*R + outer(v[-1], k[-2])", "S = b*S + R", "M = max(a, b)*M + c*S + outer(v, k)"],
    "gates": {"c": {"per_head": "1 - 2**(-1 - h)"}, "b": 0.75},
}
DEEP = {"kind": "mlp", "expansion": 2}
CHAIN = {"size": 40, "init": "checkpoint"}
UNUSUAL: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "three slots, lags, gates of every kind": (THREE_SLOTS, {"aggregate": {"kind": "grm", "pool": "sum"}}),
    "a memory that forgets all": ({"steps": ["M = 0*M + outer(v, k)"]}, {"aggregate": {"kind": "mean"}}),
    "a gate to the power of another": ({"steps": ["M = b**c*M + outer(v, k)"]}, {"segment": {"mode": "logarithmic"}}),
    "several lines that read the memory": (TWICE, {"aggregate": {"kind": "ssc", "top_k": 3}, "segment": CHAIN}),
    "momentum token by token": ({"rule": "titans"}, {"aggregate": {"kind": "residual"}}),
    "a bent objective of a matrix": ({**HUBER, "gradient": {"chunk": 5}}, {"aggregate": {"kind": "grm"}}),
    "long gradient chunks of a matrix": ({**HUBER, "gradient": {"chunk": 100}}, {"aggregate": {"kind": "grm"}}),
    "a bent objective of an mlp": (HUBER, {"memory": {**DEEP, "norm": "layernorm"}, "aggregate": {"kind": "grm"}}),
    "an activation by its formula": (TITANS, {"memory": {**DEEP, "activation": "x*tanh(x)"}, "segment": CHAIN}),
    "four layers": (TITANS, {"memory": {**DEEP, "layers": 4, "residual": False}, "aggregate": {"kind": "mean"}}),
    "a soup": (TITANS, {"memory": {**DEEP, "layers": 3}, "aggregate": {"kind": "soup", "connector": "q"}}),
    "a soup of long gradient chunks": (LONG, {"memory": {**DEEP, "norm": "layernorm"}, "aggregate": {"kind": "soup"}}),
    "chosen segments of an mlp": (TITANS, {"memory": DEEP, "aggregate": {"kind": "ssc", "top_k": 2}}),
    "long gradient chunks": (LONG, {"memory": {**DEEP, "layers": 3}, "aggregate": {"kind": "ssc", "top_k": 1}}),
    "gradient chunks of one token": ({**TITANS, "gradient": {"chunk": 1}}, {"memory": DEEP}),
}


def unusual(name: str) -> Spec:
    update, sections = UNUSUAL[name]
    whole = {"head": {"key_dim": 8, "value_dim": 8}, "segment": {"size": 150}, "aggregate": {"kind": "none"}}
    return spec_of(update, **(whole | sections))


@pytest.fixture
def dumped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Spec], set[str]]:
    """Builds a spec with all its stages dumped, and gives the words of the dump's names."""
    monkeypatch.setenv(dump.VARIABLE, str(tmp_path))

    def build(spec: Spec) -> set[str]:
        pipeline.source(spec)
        return {word for path in (tmp_path / spec.name).iterdir() for word in path.stem.split("-")}

    return build


@pytest.mark.parametrize("name", shipped())
def test_shipped_specs_pass_at_every_stage(name: str, dumped: Callable[[Spec], set[str]]) -> None:
    assert {"step", "step_vjp", "rewrites", "module"} <= dumped(load(shipped()[name]))


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_specs_pass_at_every_stage(name: str, dumped: Callable[[Spec], set[str]]) -> None:
    assert {"step", "step_vjp", "rewrites", "module"} <= dumped(unusual(name))
