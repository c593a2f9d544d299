"""Phases of programs with long axes: what a loop reads is complete before it, and every output is stored once."""

from __future__ import annotations

import pytest

from mcgen.ir import aggregate, backward, soup
from mcgen.ir.program import Input, Node, Program
from mcgen.ir.step import step
from mcgen.passes.factors import FACTORS, WEIGHTED_SUM
from mcgen.passes.phases import SEGMENTS, Phases, cone, long_axes, summed
from mcgen.passes.schedule import alias
from mcgen.passes.simplify import simplify
from mcgen.symbolic.meaning import Meaning, meaning
from tests.emit.fragments import spec_of

PROGRAMS = {
    "step": lambda m: step(m, masked=True),
    "anchored step": lambda m: step(m, masked=True, anchored=True),
    "reverse": backward.whole,
    "rows": backward.rows,
    "segment": backward.segment,
    "read": lambda m: aggregate.program(aggregate.read_segment, m),
    "soup": lambda m: soup.read_soup(m, False),
    "through layers": lambda m: soup.through_layers(m, False),
    "soup's reverse": lambda m: soup.reverse(m, False),
}


def deep(layers: int, norm: str) -> Meaning:
    memory = {"kind": "mlp", "layers": layers, "norm": norm}
    return meaning(spec_of({"rule": "titans", "gradient": {"chunk": 16}}, memory=memory, aggregate={"kind": "soup"}))


def program(name: str, layers: int, norm: str = "none") -> Program:
    return simplify(PROGRAMS[name](deep(layers, norm)), (*FACTORS, WEIGHTED_SUM))


@pytest.mark.parametrize("norm", ["none", "layernorm"])
@pytest.mark.parametrize("layers", [2, 3, 4])
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_a_loop_reads_is_complete_before_it(name: str, layers: int, norm: str) -> None:
    found = Phases(program(name, layers, norm))
    complete: set[Node] = set()
    for phase in found.phases:
        roots = [*phase.roots, *(alias(found.program.outputs[label]) for label in phase.outputs)]
        for node in cone(roots, phase.axis)[1]:
            assert _is_at_hand(found, node, complete)
        complete |= set(phase.roots)


def _is_at_hand(found: Phases, node: Node, complete: set[Node]) -> bool:
    """Whether a value that does not lie along a loop's axis can be had in it."""
    if isinstance(node, Input) or node in complete or long_axes(node) == {SEGMENTS}:
        return True
    if summed(node) or node in found.rows:
        return False
    return all(_is_at_hand(found, operand, complete) for operand in map(alias, node.operands))


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_output_along_a_long_axis_is_stored_once(name: str, layers: int) -> None:
    found = program(name, layers)
    stored = [label for phase in Phases(found).phases for label in phase.outputs]
    assert sorted(stored) == sorted(label for label, node in found.outputs.items() if long_axes(node))


def test_a_layer_is_read_in_one_loop_and_an_update_takes_a_second() -> None:
    """The error row is one sum over hidden units; the read-out after the update another."""
    levels = [(phase.level, len(phase.sums), phase.outputs) for phase in Phases(program("step", 2)).phases]
    assert [level for level, _, _ in levels] == [0, 1, 1]
    assert levels[0][1:] == (1, ())
    assert set(levels[2][2]) == {"M_1_next", "M_2_next", "S_1_next", "S_2_next"}


def test_a_matrix_has_no_phases() -> None:
    of = meaning(spec_of({"rule": "titans", "gradient": {"chunk": 16}}))
    assert Phases(simplify(step(of, masked=True), FACTORS)).phases == ()
