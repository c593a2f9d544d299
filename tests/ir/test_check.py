"""The check of programs: each row of its table finds what breaks it, and a rewrite that breaks a program is named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mcgen.errors import InternalError
from mcgen.ir.check import AFTER, EVERY, IN_PLACE, OF_KIND, VARIABLE, check, check_node
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
from mcgen.ir.rebuild import rewritten
from mcgen.passes import factors
from mcgen.passes.simplify import Rule, simplify
from mcgen.pipeline import source
from mcgen.plan import matrix
from mcgen.spec import load
from mcgen.spec.shipped import shipped

B = Builder()
Q, K, V = B.input("q", "t", "k"), B.input("k", "j", "k"), B.input("v", "j", "v")
GATE, SCORES, X = B.input("alpha", "t"), B.input("scores", "t", "j"), placeholder(0)
BROKEN: dict[str, Node] = {
    "axes stand in their order, each once": Input(("k", "t"), "q"),
    "it counts along one axis": Iota(("t", "j")),
    "it has the axes of its operands": Map(("t",), X, (Q,)),
    "it reads its operands, each once": Map(("t", "k"), X, (Q, Q)),
    "both factors have what is summed over": Contract(("t", "j"), Q, K, ("v",)),
    "it has what is left of the factors' axes": Contract(("t", "j", "k"), Q, K, ("k",)),
    "it is a sum or a maximum": Reduce(("t",), "min", Q, ("k",)),
    "its operand has what it goes over": Reduce(("t",), "sum", Q, ("v",)),
    "it has what is left of the operand's axes": Reduce(("t", "k"), "sum", Q, ("k",)),
    "tokens take the place of tokens, values that of keys": Rename(("k", "v"), Q, "t", "v"),
    "its operand has the old axis and not the new": Rename(("t", "j"), SCORES, "s", "j"),
    "it has the operand's axes but that one": Rename(("t", "k"), Q, "t", "j"),
    "a gate has a number a token": Decay(("t", "j"), Q, "t", "j", False),
    "runs go between different tokens": Decay(("t",), GATE, "t", "t", False),
    "it has its ends' axes": Decay(("t",), GATE, "t", "j", False),
    "the system is square in tokens": Solve(("j", "v"), Q, V, False),
    "the right side stands along its rows": Solve(("k", "v"), SCORES, B.input("x", "k", "v"), False),
}


@pytest.mark.parametrize("words", BROKEN)
def test_a_row_of_the_table_finds_what_breaks_it(words: str) -> None:
    with pytest.raises(InternalError) as caught:
        check_node(BROKEN[words], "a rewrite")
    assert str(caught.value).startswith("after a rewrite, not of [")
    assert str(caught.value).endswith(words)


def test_a_result_stands_for_what_it_replaces() -> None:
    with pytest.raises(InternalError, match="axes of the value in whose place it stands, or is a number"):
        check_node(Q, "a rewrite", K)
    check_node(B.constant(2), "a rewrite", K)


def test_every_row_is_tried() -> None:
    assert len(IN_PLACE) == 1
    assert BROKEN.keys() == EVERY.keys() | {words for table in OF_KIND.values() for words in table}


def several_terms() -> Program:
    values = [B.input(name, "t", "k") for name in "abc"]
    return Program("sum", {"x": B.total(values)})


BEFORE = Program("read", {"o": B.contract(Q, K, "k")})
WRONG: dict[str, tuple[str, Program]] = {
    "outputs keep their names and axes": ("cut", Program("read", {"o": B.rename(BEFORE.outputs["o"], "j", "s")})),
    "an input has the same axes, whichever tokens": (
        "cut",
        Program("read", {"o": B.contract(B.sum(B.product(Q, B.input("k", "v")), "v"), K, "k")}),
    ),
    "equal values are one": ("cut", Program("read", {"o": B.contract(B.product(Q, replace(Q, label=None)), K, "k")})),
    "nothing is read that was not": ("simplify", Program("read", {"o": B.product(SCORES)})),
    "sums of tiles have two terms": ("chained", several_terms()),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_row_of_what_may_follow_finds_what_breaks_it(words: str) -> None:
    rewrite, program = WRONG[words]
    before = BEFORE if "o" in program.outputs else program
    with pytest.raises(InternalError, match=f"after {rewrite}, not of program {program.name}: {words}"):
        check(before, program, rewrite)


def test_every_row_of_what_may_follow_is_tried() -> None:
    assert WRONG.keys() == {words for table in AFTER.values() for words in table}


def test_a_rewrite_that_breaks_a_node_is_named() -> None:
    def spoil(b: Builder, node: Node) -> Node | None:
        return Reduce(("t", "k"), "sum", node.left, ("k",)) if isinstance(node, Contract) else None

    with pytest.raises(InternalError, match=r"after careless, not of .* what is left of the operand's axes"):
        simplify(BEFORE, (Rule("careless", "", "", spoil),))


def test_a_rewrite_is_called_as_its_function_is() -> None:
    with pytest.raises(InternalError, match=r"after test_a_rewrite_is_called\w+, not of \[t j\] = iota: it counts"):
        rewritten(Program("scores", {"a": SCORES}), lambda b, node, new: Iota(("t", "j")))


def test_a_build_stops_at_a_rule_that_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Rule("careless", "", "", lambda b, node: Map((), X, (node,)) if isinstance(node, Decay) else None)
    monkeypatch.setattr(factors, "FACTORS", (wrong,))
    monkeypatch.setattr(matrix, "FACTORS", (wrong,))
    with pytest.raises(InternalError, match=r"after careless, not of .* = x0.*: it has the axes of its operands"):
        source(load(shipped()["retnet_none"]))


def test_nothing_is_checked_in_a_plain_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the tests' switch, or a dump, that turns it on."""
    careless = Rule("careless", "", "", lambda b, node: Map(("k", "t"), X, (Q,)) if node.axes == ("t", "j") else None)
    with pytest.raises(InternalError):
        simplify(BEFORE, (careless,))
    monkeypatch.delenv(VARIABLE)
    assert simplify(BEFORE, (careless,)).outputs
    monkeypatch.setenv("MCGEN_DUMP", "somewhere")
    with pytest.raises(InternalError):
        simplify(BEFORE, (careless,))
