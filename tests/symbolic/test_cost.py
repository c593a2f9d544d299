"""Cost polynomials, against a count of the products in the tile programs."""

from __future__ import annotations

from typing import Any

import pytest
import sympy

from mcgen.ir.program import Contract, Program
from mcgen.ir.step import step, step_vjp
from mcgen.passes.simplify import simplify
from mcgen.spec import load
from mcgen.spec.shipped import shipped
from mcgen.symbolic.cost import TOP_K, B, C, Cost, H, K, L, N, T, V, cost_table, counts, short, sizes
from mcgen.symbolic.meaning import Meaning, meaning
from tests.symbolic.rules import small

AXES = {"t": L, "s": L, "m": L, "j": L, "k": K, "v": V, "n": N}
HALF = "sum((p - v)**2)/2"


def products(program: Program) -> sympy.Expr:
    """FLOPs of a program's contractions."""
    total = sympy.S.Zero
    for node in program.nodes:
        if isinstance(node, Contract):
            total += 2 * sympy.Mul(*(AXES[axis] for axis in {*node.left.axes, *node.right.axes}))
    return sympy.expand(total)


def online(understood: Meaning, backward: bool) -> sympy.Expr:
    """What a chunk step costs a head, by the polynomials."""
    parts = [part for part in Cost(understood).flops if "cached" not in part.label]
    total = sum(part.backward if backward else part.forward for part in parts)
    return sympy.expand(total * L / (B * H * T))


def state_again(understood: Meaning) -> sympy.Expr:
    """The state at the chunk's end, made again in a pass of its own before the derivative of the step."""
    return 2 * counts(understood).pairs * L * K * V


PLAIN = [name for name, path in shipped().items() if not meaning(load(path)).recurrence.reads_memory]


@pytest.mark.parametrize("name", PLAIN)
def test_products_are_counted_exactly(name: str) -> None:
    understood = meaning(load(shipped()[name]))
    assert online(understood, False) == products(simplify(step(understood)))
    reverse = products(simplify(step_vjp(understood)))
    assert sympy.expand(online(understood, True) - state_again(understood) - reverse) == 0


def of(steps: list[str], kind: str = "grm", **update: Any) -> Meaning:
    top_k = {"top_k": 3} if kind == "ssc" else {}
    return meaning(small({"steps": steps, **update}, aggregate={"kind": kind, **top_k}))


def test_a_cascade_of_three_is_counted_exactly_forward() -> None:
    understood = of(["A = a*A + outer(v, k)", "R = b*R + A", "M = c*M + R + outer(v[-1], k)"])
    assert online(understood, False) == products(simplify(step(understood)))


def forward(understood: Meaning, label: str) -> sympy.Expr:
    return next((part.forward for part in Cost(understood).flops if part.label == label), sympy.S.Zero)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", 0),
        ("residual", 2 * B * H * T * K * V),
        ("grm", B * H * T * K * V * (N - 1)),
        ("ssc", 2 * B * H * T * K * V * TOP_K),
    ],
)
def test_reads_follow_the_aggregate(kind: str, expected: sympy.Expr) -> None:
    understood = of(["M = a*M + outer(v, k)"], kind)
    assert sympy.expand(forward(understood, "reads of cached segments") - expected) == 0


def test_work_and_traffic_of_ssc_follow_top_k_but_for_its_logits() -> None:
    found = Cost(of(["M = a*M + outer(v, k)"], "ssc"))
    by_segments = [part.label for part in found.flops if part.forward.has(N)]
    assert by_segments == ["logits of cached segments"]


def test_writes_that_read_the_memory_cost_error_rows() -> None:
    plain = of(["M = a*M + outer(v, k)"])
    token = of(["M = a*M - b*grad"], objective=HALF)
    chunk = of(["M = a*M - b*grad"], objective=HALF, gradient={"chunk": 16})
    assert forward(plain, "error rows of gradients") == 0
    assert forward(token, "error rows of gradients").has(L)
    assert sympy.expand(forward(chunk, "error rows of gradients") - 2 * B * H * T * K * V) == 0


def test_polynomials() -> None:
    for kind in ("none", "residual", "mean", "grm", "soup", "ssc"):
        found = Cost(of(["S = b*S + outer(v, k[-2])", "M = a*M + S"], kind))
        for part in (*found.flops, *found.traffic, *found.state):
            for expression in (part.forward, part.backward):
                assert sympy.expand(expression * L).is_polynomial()
                assert expression.free_symbols <= {*sizes(of(["M = M + outer(v, k)"])), C}


def test_the_state_is_the_slots_the_lags_and_the_cache() -> None:
    found = Cost(of(["S = b*S + outer(v[-3], k[-2])", "M = a*M + S"]))
    total, _ = found.total("state")
    assert sympy.expand(total - B * H * (2 * K * V + 2 * K + 3 * V + N * (K * V + K))) == 0
    plain, _ = Cost(of(["M = a*M + outer(v, k)"], "none")).total("state")
    assert plain == B * H * K * V


def test_a_deep_memory_counts_every_layer() -> None:
    understood = meaning(
        small(
            {"rule": "titans"}, memory={"kind": "mlp", "layers": 3, "expansion": 2}, head={"key_dim": 4, "value_dim": 4}
        )
    )
    problem = {**sizes(understood), N: 0}
    total, _ = Cost(understood).total("state")
    assert total.subs(problem) == 2 * (4 * 8 + 8 * 8 + 8 * 4) * problem[B] * problem[H]
    assert understood.gradient_chunk == problem[L] == 16


def test_sizes_come_from_the_spec() -> None:
    found = sizes(meaning(small({"rule": "linear"}, segment={"size": 100}, aggregate={"kind": "ssc", "top_k": 500})))
    assert (found[C], found[N], found[K], found[V]) == (100, 82, 3, 2)
    assert found[TOP_K] == 82
    assert sizes(meaning(small({"rule": "linear"}, segment={"mode": "logarithmic"})))[N] == 14


def test_tables_add_up() -> None:
    understood = of(["M = a*M + outer(v, k)"])
    for what in ("flops", "traffic", "state"):
        columns, rows = cost_table(Cost(understood), what, sizes(understood))
        assert {len(row) for row in rows} == {len(columns)}
        assert rows[-1][0] == "together"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1000, "1 k"), (1234567, "1.23 M"), (999.6, "1 k"), (2 * 10**9, "2 G")]
)
def test_short(value: float, text: str) -> None:
    assert short(sympy.sympify(value), {}) == text
