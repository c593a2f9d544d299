"""Lines to recurrence: coefficients, order of slots, and every refusal at its place in the file."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sympy

from mcgen.errors import Diagnostic, SpecError
from mcgen.spec import loads
from mcgen.symbolic.functions import Absolute
from mcgen.symbolic.recurrence import GradientWrite, PreviousSlot, Recurrence, Write, constants, recurrence
from tests.symbolic.rules import small

HALF = "sum((p - v)**2)/2"
DEEP = {"memory": {"kind": "mlp"}, "head": {"key_dim": 2, "value_dim": 2}}
A, B, C = sympy.symbols("a b c", real=True)


def of(*steps: str, **update: Any) -> Recurrence:
    return recurrence(small({"steps": list(steps), **update}))


def forms(found: Recurrence) -> dict[str, dict[str, sympy.Expr]]:
    return {slot: {str(atom): rate for atom, rate in found.forms[slot].items()} for slot in found.slots}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("M = M/a + outer(v, k)", {"M[t-1]": 1 / A, "v[t] k[t]ᵀ": 1}),
        ("M = -(M + outer(v, k))", {"M[t-1]": -1, "v[t] k[t]ᵀ": -1}),
        ("M = a*(b*M + outer(v[-1], k))", {"M[t-1]": A * B, "v[t-1] k[t]ᵀ": A}),
        ("M = (M - outer(v, k[-2]))*c/2", {"M[t-1]": C / 2, "v[t] k[t-2]ᵀ": -C / 2}),
        ("M = 0*M + outer(v, k)", {"v[t] k[t]ᵀ": 1}),
        ("M = a*M - a*M + outer(v, k)", {"v[t] k[t]ᵀ": 1}),
        ("M = M + outer(v, k) - outer(v, k) + outer(v[-1], k[-1])", {"M[t-1]": 1, "v[t-1] k[t-1]ᵀ": 1}),
        ("M = +M + outer(v[-0], k[0])", {"M[t-1]": 1, "v[t] k[t]ᵀ": 1}),
        ("M = sqrt(a**2)*M + outer(v, k)", {"M[t-1]": Absolute(A), "v[t] k[t]ᵀ": 1}),
        ("M = a*M + (1 - a)*M + outer(v, k)", {"M[t-1]": 1, "v[t] k[t]ᵀ": 1}),
        ("M = a**0.5*M + 1e-3*outer(v, k)", {"M[t-1]": sympy.sqrt(A), "v[t] k[t]ᵀ": sympy.Rational(1, 1000)}),
    ],
)
def test_one_line(line: str, expected: dict[str, Any]) -> None:
    assert forms(of(line)) == {"M": expected}


def test_a_line_reads_what_stands_above_it_and_last_tokens_of_what_stands_below() -> None:
    assert forms(of("S = b*S + outer(v, k)", "M = a*M + S"))["M"] == {"M[t-1]": A, "S[t-1]": B, "v[t] k[t]ᵀ": 1}
    assert forms(of("M = a*M + S", "S = b*S + outer(v, k)"))["M"] == {"M[t-1]": A, "S[t-1]": 1}
    twice = forms(of("M = a*M", "M = M + outer(v, k)", "M = b*M"))
    assert twice == {"M": {"M[t-1]": A * B, "v[t] k[t]ᵀ": B}}


def test_slots_come_after_those_they_read() -> None:
    found = of("M = M + R", "R = R + S", "S = S + outer(v, k)")
    assert found.slots == ("S", "R", "M")
    assert found.transition("M", "R") == 1
    assert found.transition("R", "M") == 0
    assert found.injection("S", Write()) == 1
    assert not found.reads_memory


def test_constant_gates_are_numbers() -> None:
    spec = small(
        {
            "steps": ["M = a*M + b*outer(v, k)", "M = c*M"],
            "gates": {"a": 0.1, "b": {"per_head": "2 + 1"}, "c": {"per_head": "1 + h"}},
        }
    )
    assert constants(spec) == {"a": sympy.Rational(1, 10), "b": 3}
    assert forms(recurrence(spec)) == {"M": {"M[t-1]": C / 10, "v[t] k[t]ᵀ": 3 * C}}
    nothing = small({"steps": ["S = a*S + M", "M = M + b*S + outer(v, k)"], "gates": {"b": 0}})
    assert recurrence(nothing).unread == ("S",)


def test_slots_that_the_memory_does_not_depend_on_are_left_out() -> None:
    found = of("S = b*S + M", "R = outer(v, k)", "M = a*M + R", "D = D + R")
    assert found.slots == ("M",)
    assert set(found.unread) == {"S", "R", "D"}
    assert forms(found) == {"M": {"M[t-1]": A, "v[t] k[t]ᵀ": 1}}


def test_slots_that_stay_zero_are_left_out() -> None:
    found = of("R = a*R", "S = b*S + R", "M = M + S - R + outer(v, k)")
    assert forms(found) == {"M": {"M[t-1]": 1, "v[t] k[t]ᵀ": 1}}
    assert set(found.unread) == {"R", "S"}
    assert of("M = a*M").writes == ()
    deep = small({"objective": HALF, "steps": ["S = b*S - grad", "R = R", "M = M + S + R"]}, **DEEP)
    assert set(recurrence(deep).slots) == {"M", "S"}


def test_a_slot_that_only_a_gradient_sees_is_kept() -> None:
    found = of("S = S + outer(v, k)", "M = M + S", "R = R + grad", "M = M - S + R", objective=HALF)
    assert set(found.slots) == {"S", "R", "M"}
    assert PreviousSlot("S") in found.memory_at[2]


def test_gradients_know_the_memory_at_their_line() -> None:
    found = of("M = M - a*grad", "M = b*M", "M = M - c*grad", objective=HALF)
    assert found.writes == (GradientWrite(0), GradientWrite(2))
    assert found.memory_at == {0: {PreviousSlot("M"): 1}, 2: {PreviousSlot("M"): B, GradientWrite(0): -A * B}}
    assert found.reads_memory
    assert (found.chunk, found.gradients_come_first) == (None, False)


def test_a_gradient_free_of_the_prediction_is_a_write() -> None:
    v = sympy.Symbol("v", real=True)
    assert of("M = M - a*grad", objective="-2*dot(p, v)").forms["M"] == {PreviousSlot("M"): 1, Write(): 2 * A}
    both = of("M = M - a*grad + b*outer(v, k)", objective="-dot(p, v)")
    assert both.forms["M"] == {PreviousSlot("M"): 1, Write(): A + B}
    assert of("M = M - grad", objective="sum(v*(p - v)**2 - v*p**2)").writes == (Write(value=v**2),)
    assert of("M = M + grad", objective="sum(3*p)").writes == (Write(value=sympy.S.One),)
    assert of("M = M + grad + outer(v, k)", objective="sum(v)").writes == (Write(),)


def test_a_deep_memorys_gradients_are_never_plain_writes() -> None:
    spec = small({"objective": "-dot(p, v)", "steps": ["M = M - a*grad"]}, **DEEP)
    assert recurrence(spec).writes == (GradientWrite(0),)


def refused(*steps: str, **update: Any) -> list[Diagnostic]:
    text = json.dumps(
        {"mcgen": 1, "name": "example", "memory": {"kind": "matrix"}, "update": {"steps": list(steps), **update}}
    )
    with pytest.raises(SpecError) as caught:
        recurrence(loads(text, "a.yaml"))
    return list(caught.value.diagnostics)


def pointed_at(one: Diagnostic) -> str:
    """The piece of the file that the carets stand under."""
    return one.source_line[one.column - 1 : one.column - 1 + one.length]


@pytest.mark.parametrize(
    ("line", "term"),
    [
        ("M = M*M", "M*M"),
        ("M = a*M + b*M*outer(v, k)", "b*M*outer(v, k)"),
        ("M = outer(v, k)*outer(v, k)", "outer(v, k)*outer(v, k)"),
        ("M = M/M", "M/M"),
        ("M = a/M + M", "a/M"),
        ("M = M + exp(M)", "exp(M)"),
        ("M = M**2", "M**2"),
        ("M = M + sigmoid(outer(v, k))*M", "sigmoid(outer(v, k))*M"),
        ("M = M - max(M, a)", "max(M, a)"),
    ],
)
def test_what_is_not_linear_is_named(line: str, term: str) -> None:
    (one,) = refused(line)
    assert (one.message, pointed_at(one)) == ("not linear in the slots", term)
    assert "times one slot, outer(...) or grad" in one.hint


@pytest.mark.parametrize(
    ("line", "term", "message"),
    [
        ("M = M + 1", "1", "this term is a number, not shaped like the memory"),
        ("M = M + a*b", "a*b", "this term is a number, not shaped like the memory"),
        ("M = M - S", "S", "`S` is a gate, a number, not shaped like the memory"),
    ],
)
def test_a_bare_number_is_named(line: str, term: str, message: str) -> None:
    (one,) = refused(line)
    assert (one.message, pointed_at(one)) == (message, term)


def test_every_wrong_term_of_every_line_is_named() -> None:
    found = refused("S = S*S + 1", "M = exp(M) - M/S + a*M + 2")
    assert [pointed_at(one) for one in found] == ["S*S", "1", "exp(M)", "M/S", "2"]
    assert {one.file for one in found} == {"a.yaml"}


@pytest.mark.parametrize(
    ("steps", "cycle"),
    [
        (["S = M + S", "M = S + M"], {"S", "M"}),
        (["R = S", "S = M", "M = M + R + outer(v, k)"], {"S", "M"}),
        (["M = M + R + outer(v, k)", "R = a*S", "S = M - outer(v, k)"], {"S", "R", "M"}),
    ],
)
def test_a_cycle_is_named(steps: list[str], cycle: set[str]) -> None:
    (one,) = refused(*steps)
    head, _, path = one.message.partition(": ")
    assert head == "slots feed one another in a cycle"
    names = path.split(" -> ")
    assert names[0] == names[-1]
    assert set(names) == cycle


def test_reading_back_within_a_token_is_no_cycle() -> None:
    assert of("S = M", "M = a*S + outer(v, k)").slots == ("M",)
    assert of("S = M + S", "M = S + outer(v, k) - S").slots == ("M",)


@pytest.mark.parametrize(
    ("line", "term", "gates", "hint"),
    [
        ("M = M/(a - a) + outer(v, k)", "(a - a)", {}, ""),
        ("M = 1e300*a*1e300*M + outer(v, k)", "1e300*a*1e300", {}, ""),
        ("M = M/b + outer(v, k)", "b", {"b": 0.0}, "b is 0.0"),
        ("M = log(b)*M + outer(v, k)", "log(b)", {"b": -1.0}, "b is -1.0"),
        ("M = 1e200*(1e200*M) + outer(v, k)", "1e200*(1e200*M) + outer(v, k)", {}, ""),
    ],
)
def test_a_coefficient_without_a_value_is_named(line: str, term: str, gates: dict[str, float], hint: str) -> None:
    (one,) = refused(line, gates=gates)
    assert (one.message, pointed_at(one), one.hint) == ("this coefficient has no finite value", term, hint)


def test_a_negative_number_to_any_power_is_named() -> None:
    (one,) = refused("M = (-2)**a*M + outer(v, k)")
    assert "raises a negative number" in one.message


def test_an_objective_whose_gradient_has_no_value_is_named() -> None:
    (one,) = refused("M = M - grad", objective="sum(p/(v - v))")
    assert "the objective's gradient has no finite value" in one.message
    assert pointed_at(one).strip('"') == "sum(p/(v - v))"


def test_a_presets_fault_is_shown_at_its_name() -> None:
    text = "mcgen: 1\nname: a\nmemory: {kind: matrix}\nupdate: {rule: decay, gates: {alpha: 1.0e+308}}\n"
    assert recurrence(loads(text)).transition("M", "M") == 10**308
