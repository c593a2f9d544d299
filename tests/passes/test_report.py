"""The report of what each rewrite did."""

from __future__ import annotations

from itertools import pairwise

from mcgen.ir.program import Builder, Program
from mcgen.ir.step import step_vjp
from mcgen.passes.report import KINDS, history, operations, report, rule_lines
from mcgen.passes.simplify import RULES, simplify
from mcgen.symbolic.meaning import meaning
from tests.symbolic.rules import small


def program() -> Program:
    return step_vjp(meaning(small({"steps": ["M = M + 2*outer(v, k)"]})))


def test_a_history_ends_where_simplify_does() -> None:
    stages = list(history(program()))
    assert [stage.rule for stage in stages] == [None, *RULES]
    assert str(stages[0].program) == str(program())
    assert str(stages[-1].program) == str(simplify(program()))


def test_a_rule_that_was_not_used_changes_nothing() -> None:
    stages = list(history(program()))
    used = {stage.rule.name: stage.used for stage in stages[1:]}
    assert used["decay by one"] > 0
    assert used["nothing to solve"] == 0
    for before, after in pairwise(stages[1:]):
        assert after.used or str(after.program) == str(before.program)


def test_operations_are_counted_by_kind() -> None:
    b = Builder()
    gate, q = b.input("a", "t"), b.input("q", "t", "k")
    y = b.product(b.decay(gate, "t", "j"), b.contract(q, b.input("k", "j", "k"), "k"), b.rename(gate, "t", "j"))
    found = operations(Program("p", {"y": b.sum(y, "j")}))
    assert found == {
        "nodes": 8,
        **dict.fromkeys(KINDS, 1),
        "solves": 0,
        "scalar operations": 2,
    }


def test_the_table_has_a_row_for_each_rule_that_applied() -> None:
    stages = list(history(program()))
    columns, rows = report(stages)
    names = [stage.rule.name for stage in stages[1:] if stage.used]
    assert [row[0] for row in rows] == ["as built", *names]
    assert [line.partition(":")[0] for line in rule_lines(stages)] == names
    assert 0 < len(names) < len(RULES)
    assert all(len(row) == len(columns) for row in rows)
    nodes = columns.index("nodes")
    assert int(rows[-1][nodes]) < int(rows[0][nodes])
