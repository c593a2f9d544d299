"""Nodes made again: what an operand that has become a number leaves, and values that go by one name when cut."""

from __future__ import annotations

import pytest
import torch

from mcgen.ir.cut import cut, fixed
from mcgen.ir.evaluate import evaluate
from mcgen.ir.program import Builder, Program, Rename, placeholder

X = placeholder(0)
SIZES = {"t": 3, "s": 3, "j": 3, "n": 4, "k": 2}


@pytest.mark.parametrize(("operation", "value"), [("sum", 8.0), ("max", 2.0)])
def test_a_reduction_of_what_has_become_a_number(operation: str, value: float) -> None:
    b = Builder()
    shares = b.broadcast(b.input("share"), ("n",))
    program = fixed(Program("p", {"y": getattr(b, operation)(shares, "n")}), {"share": 2.0})
    assert evaluate(program, {"unused": torch.zeros(1)}, SIZES)["y"] == value


def test_a_value_and_its_renamings_that_go_by_one_name_are_one_input() -> None:
    b = Builder()
    value = b.map(X**2, {X: b.input("x", "t", "k")})
    later, other = b.rename(value, "t", "j"), b.rename(value, "t", "s")
    program = Program("p", {"y": b.contract(value, later, "k"), "z": b.sum(other, "k")})
    rest = cut(program, {value: "known", later: "known"})
    assert [node.axes for node in rest.inputs.values()] == [("t", "k")]
    assert sum(isinstance(node, Rename) for node in rest.nodes) == 2
    x = torch.rand(3, 2, dtype=torch.float64)
    wanted, got = evaluate(program, {"x": x}, SIZES), evaluate(rest, {"known": x**2}, SIZES)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_a_renaming_that_is_cut_by_itself_is_an_input_along_its_own_axes() -> None:
    b = Builder()
    later = b.rename(b.input("x", "t", "k"), "t", "j")
    rest = cut(Program("p", {"y": b.sum(later, "k")}), {later: "known"})
    assert rest.inputs["known"].axes == ("j", "k")
