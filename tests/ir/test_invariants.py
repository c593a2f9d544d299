"""Every row of the table: what breaks it is found, and named by the pass after which it is there."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import pytest
import sympy

from mcgen.errors import InternalError
from mcgen.ir import check, invariants
from mcgen.ir.evaluate import TORCH_FUNCTIONS
from mcgen.ir.program import (
    Builder,
    Contract,
    Decay,
    Input,
    Iota,
    Map,
    Node,
    Program,
    Reduce,
    Rename,
    Solve,
    placeholder,
)
from mcgen.ir.rebuild import rebuilt, rewritten
from mcgen.passes.simplify import simplify
from mcgen.symbolic.functions import RealFunction, Where
from tests.passes.test_rewrites import RULES as EVERY_RULE

B = Builder()
X, Y, Z = map(placeholder, range(3))
GATE, Q, K, V = B.input("gate", "t"), B.input("q", "t", "k"), B.input("k", "j", "k"), B.input("v", "t", "v")
LOGITS, SCORES = B.input("r", "t", "n"), B.contract(Q, K, "k")
LOWER, STRICT = B.decay(GATE, "t", "j"), B.decay(GATE, "t", "j", exclusive=True)
PLACE, TOP, ZERO = B.iota("t"), B.max(LOGITS, "n"), B.constant(0)
SPREAD = B.broadcast(GATE, ("t", "k"))


class Broken(NamedTuple):
    """What breaks a row: the row, and a node."""

    says: str
    node: Node


IN_ORDER, PLACES, MAXIMUM = (row.says for row in invariants.EVERY_NODE)
ROWS = {kind: [row.says for row in rows] for kind, rows in invariants.NODES.items()}
NODES = {
    "axes out of order": Broken(IN_ORDER, Input(("k", "t"), "q")),
    "an axis twice": Broken(IN_ORDER, Input(("t", "t"), "x")),
    "an unknown axis": Broken(IN_ORDER, Input(("z",), "x")),
    "a product over places": Broken(PLACES, Contract((), PLACE, GATE, ("t",))),
    "a sum of places": Broken(PLACES, Reduce((), "sum", PLACE, ("t",))),
    "places as numbers": Broken(PLACES, Map(("t",), X * Y, (GATE, PLACE))),
    "places chosen": Broken(PLACES, Map(("t",), Where(X, Y, 0), (GATE, PLACE))),
    "a maximum as a number": Broken(MAXIMUM, Map(("t", "n"), X - Y, (LOGITS, TOP))),
    "a maximum renamed": Broken(MAXIMUM, Rename(("j",), TOP, "t", "j")),
    "an input without a name": Broken(ROWS[Input][0], Input(("t",), "")),
    "an input with two words": Broken(ROWS[Input][0], Input(("t",), "a b")),
    "places of keys": Broken(ROWS[Iota][0], Iota(("k",))),
    "places along two axes": Broken(ROWS[Iota][0], Iota(("t", "j"))),
    "an operand twice": Broken(ROWS[Map][0], Map(("t",), X * Y, (GATE, GATE))),
    "an unknown symbol": Broken(ROWS[Map][1], Map(("t",), X * Y, (GATE,))),
    "a symbol that may be complex": Broken(ROWS[Map][1], Map(("t",), sympy.Symbol("x0"), (GATE,))),
    "an axis lost": Broken(ROWS[Map][2], Map(("t",), X, (Q,))),
    "a function of SymPy's": Broken(ROWS[Map][3], Map(("t",), sympy.Abs(X), (GATE,))),
    "no finite number": Broken(ROWS[Map][3], Map((), sympy.zoo, ())),
    "an imaginary number": Broken(ROWS[Map][3], Map(("t",), sympy.I * X, (GATE,))),
    "a product over an axis of one side": Broken(ROWS[Contract][0], Contract(("j", "k"), GATE, K, ("t",))),
    "a product over nothing": Broken(ROWS[Contract][0], Contract(("t", "j", "k"), Q, K, ())),
    "a product over axes out of order": Broken(ROWS[Contract][0], Contract((), Q, Q, ("k", "t"))),
    "a product that loses an axis": Broken(ROWS[Contract][1], Contract(("t",), Q, K, ("k",))),
    "a product that keeps its axis": Broken(ROWS[Contract][1], Contract(("t", "j", "k"), Q, K, ("k",))),
    "a minimum": Broken(ROWS[Reduce][0], Reduce(("t",), "min", LOGITS, ("n",))),
    "a sum over an axis that is not there": Broken(ROWS[Reduce][1], Reduce(("t", "k"), "sum", Q, ("j",))),
    "a sum over nothing": Broken(ROWS[Reduce][1], Reduce(("t", "k"), "sum", Q, ())),
    "a sum that loses an axis": Broken(ROWS[Reduce][2], Reduce((), "sum", Q, ("k",))),
    "no such axis": Broken(ROWS[Rename][0], Rename(("t", "k"), Q, "j", "s")),
    "one name for two axes": Broken(ROWS[Rename][0], Rename(("j",), LOWER, "t", "j")),
    "tokens as keys": Broken(ROWS[Rename][1], Rename(("k",), GATE, "t", "k")),
    "hidden units as values": Broken(ROWS[Rename][1], Rename(("v",), B.input("h", "h1"), "h1", "v")),
    "a renaming that changes nothing": Broken(ROWS[Rename][2], Rename(("t", "k"), Q, "t", "j")),
    "runs of a tile": Broken(ROWS[Decay][0], Decay(("t", "j"), Q, "t", "j", False)),
    "runs along keys": Broken(ROWS[Decay][0], Decay(("t", "j"), B.input("x", "k"), "t", "j", False)),
    "a run without its column's axis": Broken(ROWS[Decay][1], Decay(("t",), GATE, "t", "j", False)),
    "a run from an axis to itself": Broken(ROWS[Decay][1], Decay(("t",), GATE, "t", "t", False)),
    "a run to keys": Broken(ROWS[Decay][1], Decay(("t", "k"), GATE, "t", "k", False)),
    "a run to before the end": Broken(ROWS[Decay][2], Decay(("j",), GATE, None, "j", True)),
    "a system of keys": Broken(ROWS[Solve][0], Solve(("t", "v"), Q, V, False)),
    "a system with a diagonal": Broken(ROWS[Solve][1], Solve(("t", "v"), LOWER, V, False)),
    "a full system": Broken(ROWS[Solve][1], Solve(("t", "v"), SCORES, V, False)),
    "a right side along columns": Broken(ROWS[Solve][2], Solve(("j", "k"), STRICT, K, False)),
    "a right side of one column": Broken(ROWS[Solve][2], Solve(("t",), STRICT, GATE, False)),
    "a solution along columns": Broken(ROWS[Solve][3], Solve(("j", "v"), STRICT, V, False)),
}
SOUND = {
    "a mask": Map(("t", "j"), Where(X - Y, Z, 0), (PLACE, B.iota("j"), SCORES)),
    "a shift": B.map(sympy.exp(X - Y), {X: LOGITS, Y: B.map(invariants.Shift(X, Y), {X: B.input("o", "t"), Y: TOP})}),
    "a sum over two axes": Contract((), Q, Q, ("t", "k")),
    "keys as values": Rename(("t", "v"), Q, "k", "v"),
    "a run from start to end": Decay((), GATE, None, None, False),
    "a run from a later axis": Decay(("t", "j"), GATE, "j", "t", True),
    "a system": Solve(("t", "v"), STRICT, V, True),
    "columns that are tokens": Solve(("t", "j"), STRICT, LOWER, False),
}


def breaking(node: Node, of: Node = GATE) -> Callable[[], object]:
    """A pass that puts a node in the place of a program's value."""
    program = Program("example", {"y": of})
    return lambda: rewritten(program, lambda b, old, new: node if old is of else rebuilt(b, old, new), by="breaking")


def after(*outputs: Mapping[str, Node]) -> Callable[[], object]:
    """The check of a pass that makes of a program with some outputs one with others."""
    before, made = (Program("example", some) for some in outputs)
    return lambda: check.passed(["breaking"], before, made, {})


def message(run: Callable[[], object]) -> str:
    with pytest.raises(InternalError) as caught:
        run()
    assert caught.value.stage == check.STAGE
    return str(caught.value).splitlines()[0]


@pytest.mark.parametrize("broken", NODES.values(), ids=NODES)
def test_a_broken_node_is_found(broken: Broken) -> None:
    said = message(after({"y": GATE}, {"y": broken.node}))
    assert said.startswith(f"after breaking, in example: {broken.says}: ")
    assert re.search(rf": %\d+\[{' '.join(broken.node.axes)}\] = ", said)


def test_every_row_of_a_node_has_one_that_breaks_it() -> None:
    rows = [*invariants.EVERY_NODE, *(row for some in invariants.NODES.values() for row in some)]
    assert {row.says for row in rows} == {broken.says for broken in NODES.values()}
    assert invariants.NODES.keys() == set(Node.__subclasses__())


@pytest.mark.parametrize("node", SOUND.values(), ids=SOUND)
def test_what_is_sound_passes(node: Node) -> None:
    check.Check("example").value("after breaking", node)


def test_the_text_of_a_node_is_that_of_its_program() -> None:
    node = Reduce((), "sum", Q, ("k",))
    y = B.product(GATE, Q)
    bad = Map(("t", "k"), X * Y, (node, y))
    with pytest.raises(InternalError) as caught:
        breaking(bad, Q)()
    assert str(caught.value).splitlines() == [
        f"after breaking, in example: {ROWS[Reduce][2]}: %1[] = sum[k] %0",
        "  %0[t k] = input q",
    ]


def test_what_backends_compute_is_what_the_evaluator_knows() -> None:
    own = {function for function in TORCH_FUNCTIONS if not issubclass(function, RealFunction)}
    assert own == invariants.ELEMENTARY
    assert set(RealFunction.__subclasses__()) <= TORCH_FUNCTIONS.keys()


# What holds after passes: a pass that does nothing says that it did.

LEFT: Mapping[str, Node] = {
    "constant operand": Map(("t",), X + Y, (GATE, B.constant(2))),
    "operand not needed": Map(("t",), X, (GATE, B.input("x", "t"))),
    "sum of zeros": Reduce((), "sum", Map(("t",), sympy.S.Zero, ()), ("t",)),
    "nothing to solve": Solve(("t", "v"), Map(("t", "j"), sympy.S.Zero, ()), V, False),
    "decay by one": Decay(("t",), Map(("t",), sympy.S.One, ()), "t", None, False),
    "one decay": Decay(("t", "s"), GATE, "t", "s", False),
    "value spread along axes": Map(("t", "k"), X * Y, (Q, SPREAD)),
    "chained": B.map(X + Y + Z, {X: Q, Y: SPREAD, Z: B.input("x", "t", "k")}),
}


@pytest.mark.parametrize("name", invariants.AFTER)
def test_what_a_pass_leaves_is_found(name: str) -> None:
    program = Program("example", {"y": LEFT[name]})
    keep = lambda b, old, new: old  # noqa: E731
    rewritten(program, keep, by="another")
    if name != "chained":
        said = message(lambda: rewritten(program, keep, by="simplify", rules=["identity", name]))
        assert said.startswith(f'after simplify with "{name}", in example: {invariants.AFTER[name].says}: %')
    else:
        said = message(lambda: rewritten(program, keep, by="chained"))
        assert said.startswith(f"after chained, in example: {invariants.AFTER[name].says}: %")


def test_what_holds_after_a_pass_is_said_of_rules_and_passes_that_are_there() -> None:
    assert LEFT.keys() == invariants.AFTER.keys() <= {rule.name for rule in EVERY_RULE} | {"chained"}


# What holds of whole programs: what was, and what a pass that is called so makes of it.

OUTPUTS, INPUTS, TWICE = (whole.says for whole in invariants.PASS)


CHANGES: Mapping[str, tuple[str, Callable[[], object]]] = {
    "a value along another axis": (invariants.REPLACED.says, breaking(B.input("x", "t", "k"))),
    "a value that lost an axis": (invariants.REPLACED.says, breaking(GATE, Q)),
    "an output less": (OUTPUTS, after({"y": GATE, "z": Q}, {"y": GATE})),
    "an output more": (OUTPUTS, after({"y": GATE}, {"y": GATE, "z": GATE})),
    "an output along other axes": (OUTPUTS, after({"y": GATE}, {"y": Q})),
    "an input more": (INPUTS, breaking(B.input("x", "t"))),
    "an input along another axis": (INPUTS, after({"y": B.sum(GATE, "t")}, {"y": B.sum(B.input("gate", "j"), "j")})),
    "a value made twice": (TWICE, after({"y": Q, "z": Q}, {"y": Q, "z": Input(("t", "k"), "q")})),
    "two inputs of a name": (
        invariants.PROGRAM[0].says,
        breaking(B.product(B.input("gate", "t"), B.sum(B.input("gate", "j"), "j"))),
    ),
}


@pytest.mark.parametrize(("says", "run"), CHANGES.values(), ids=CHANGES)
def test_a_program_that_must_not_be_is_found(says: str, run: Callable[[], object]) -> None:
    assert message(run).startswith(f"after breaking, in example: {says}: %")


def test_every_row_of_a_pass_has_one_that_breaks_it() -> None:
    rows = [invariants.REPLACED, *invariants.PASS, *invariants.PROGRAM]
    assert {row.says for row in rows} == {says for says, _ in CHANGES.values()}


def test_one_number_may_stand_for_any_value() -> None:
    assert str(breaking(B.constant(2), Q)()).splitlines()[1:] == ["  %0[t k] = 2", "  output y = %0"]


def test_a_pass_puts_in_the_inputs_that_it_says() -> None:
    program = Program("example", {"y": GATE})
    make = lambda b, old, new: b.input("x", "t")  # noqa: E731
    assert list(rewritten(program, make, by="cut", given=["x"]).inputs) == ["x"]
    said = message(lambda: rewritten(program, make, by="cut", given=["z"]))
    assert said.startswith(f"after cut, in example: {INPUTS}: %0[t] = input x")


def test_a_program_is_looked_at_before_a_pass_too() -> None:
    program = Program("example", {"y": Contract(("t",), Q, K, ("k",))})
    assert message(lambda: simplify(program)).startswith("before ")
    assert message(lambda: rewritten(program, rebuilt, by="another")).startswith("before another, in example: ")


@pytest.mark.parametrize(
    ("row", "ahead", "rest"),
    [(0, B.input("M", "k", "v"), Q), (1, B.sum(Q, "k"), B.input("x", "j"))],
    ids=["what is carried", "another axis"],
)
def test_parts_that_do_not_fit_are_found(row: int, ahead: Node, rest: Node) -> None:
    parts = Program("ahead", {"x": ahead}), Program("rest", {"y": rest})
    said = message(lambda: check.hoisted(["M"], *parts))
    assert said.startswith(f"after hoist, in ahead: {invariants.HOISTED[row].says}: %")
    assert len(invariants.HOISTED) == 2


@pytest.mark.parametrize("order", [[Q, K, SCORES, SCORES], [K, SCORES, Q], [Q, K]], ids=["twice", "early", "missing"])
def test_an_order_that_cannot_be_computed_is_found(order: list[Node]) -> None:
    program = Program("example", {"y": SCORES})
    check.ordered(program, [Q, K, SCORES])
    said = message(lambda: check.ordered(program, order))
    assert said.startswith(f"after scheduled, in example: {invariants.ORDER[0].says}: %2[t j] = ")
