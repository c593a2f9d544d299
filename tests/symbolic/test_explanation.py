"""The symbolic stage in words."""

from __future__ import annotations

from typing import Any

import pytest
import sympy

from mcgen.symbolic.explanation import closed_form_lines, identity_table, matrix_table, outcome_line, recurrence_lines
from mcgen.symbolic.functions import Absolute, Power, Sigmoid
from mcgen.symbolic.meaning import Meaning, meaning
from mcgen.symbolic.text import as_factor, decimal, summed, text
from tests.symbolic.rules import small

X, Y = sympy.symbols("x y", real=True)
HALF = "sum((p - v)**2)/2"


def of(update: dict[str, Any], **sections: Any) -> Meaning:
    return meaning(small(update, **sections))


def test_a_recurrence_in_lines() -> None:
    gates = {"a": 0.5, "b": {"per_head": "1 - 2**(-5 - h)"}}
    found = of({"steps": ["S = b*S + outer(v, k)", "D = D + S", "M = a*M + c*S"], "gates": gates})
    lines = recurrence_lines(found)
    for line in (
        "  S = b*S + outer(v, k)",
        "  with a = 0.5",
        "  with b = 1 - 2**(-5 - h) for head h",
        "  with c: a number a token and head",
        "  S[t] = b*S[t-1] + v[t] k[t]ᵀ",
        "  left out, for they stay zero or M does not depend on them: D",
    ):
        assert line in lines
    assert any(line.startswith("  M[t] = ") and "0.5*M[t-1]" in line and "c*v[t] k[t]ᵀ" in line for line in lines)


def test_what_gradients_are_taken_of() -> None:
    token = "\n".join(recurrence_lines(of({"objective": HALF, "steps": ["M = a*M", "M = M - b*grad"]})))
    assert "error row e = dL/dp = p - v, curvature de/dp = 1" in token
    assert "affine in p: e = 1*p + c(v), c(v) = -v" in token
    assert "taken at M as it stands at its line; line 2: a*M[t-1]" in token
    chunk = "\n".join(recurrence_lines(of({"objective": HALF, "steps": ["M = M - b*grad"], "gradient": {"chunk": 8}})))
    assert "taken at M as it stands before its chunk of 8 tokens" in chunk
    plain = "\n".join(recurrence_lines(of({"objective": "-dot(p, v)", "steps": ["M = M - b*grad"]})))
    assert "no gradient depends on the memory" in plain


def test_a_and_b_as_a_table() -> None:
    found = of({"steps": ["S = b*S + outer(v, k[-1])", "M = a*M + c*S"]})
    columns, rows = matrix_table(found.recurrence)
    assert columns == ["slot", "S[t-1]", "M[t-1]", "v[t] k[t-1]ᵀ"]
    assert rows == [["S", "b", "0", "1"], ["M", "b*c", "a", "c"]]


def test_identities_say_whether_they_were_used() -> None:
    found = of({"rule": "linear"}, aggregate={"kind": "residual"})
    columns, rows = identity_table(found)
    used = {row[0]: row[-1] for row in rows}
    assert (used["residual of sums"], used["soup is grm"]) == ("used", "-")
    assert all(len(row) == len(columns) and all(row) for row in rows)
    assert outcome_line(found) == "Lowered as aggregate none, init checkpoint; written residual, independent."
    assert outcome_line(of({"rule": "decay"})) == "Lowered as written: aggregate grm, init independent."


def test_the_closed_form_in_lines_memory_first() -> None:
    lines = closed_form_lines(of({"rule": "titans"}))
    slots = [line for line in lines if line in ("M:", "S:")]
    assert slots == ["M:", "S:"]
    assert "  C[t, j] = -sum_{j<=i<=t} prod_{i<m<=t} alpha_m · prod_{j<n<=i} beta_n · eta_j" in lines
    assert "      for G_j = grad[j, line 1]" in lines


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        (Sigmoid(X) * Absolute(Y), "abs(y)*sigmoid(x)"),
        (X / 2, "x/2"),
        (sympy.Rational(1, 4) + X, "x + 0.25"),
        (sympy.Rational(1, 3) * X, "x/3"),
        (Power(Absolute(X), Y + 1), "abs(x)**(y + 1)"),
        (Power(X + 1, Y), "(x + 1)**y"),
        (sympy.sqrt(X), "sqrt(x)"),
        (-X, "-x"),
    ],
    ids=str,
)
def test_expressions_read_as_in_a_spec(expression: sympy.Expr, shown: str) -> None:
    assert text(expression) == shown


def test_decimals_are_exact_or_none() -> None:
    assert decimal(sympy.Rational(-98, 100)) == "-0.98"
    assert decimal(sympy.Rational(1, 3)) is None
    assert decimal(sympy.Integer(3)) is None
    assert decimal(sympy.Rational(1, 10**7)) is None


def test_sums_carry_their_signs() -> None:
    assert summed([]) == "0"
    assert summed([(-X, "a"), (sympy.S.One, "b"), (X - 1, "c"), (-sympy.S.One, "d")]) == "-x*a + b + (x - 1)*c - d"
    assert as_factor(X + 1) == "(x + 1)"
