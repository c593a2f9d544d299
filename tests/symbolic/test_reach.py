"""Which gradients are 0 by construction: told from the rule, and held against autograd of the definition."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcgen.spec import Spec, load
from mcgen.spec.shipped import shipped
from mcgen.symbolic.functions import SCALAR_FUNCTIONS
from mcgen.symbolic.meaning import lowerable, meaning
from mcgen.symbolic.reach import inputs as names_of
from mcgen.symbolic.reach import unreached
from tests.emit.fragments import gradients, inputs, reference_of, spec_of
from tests.symbolic.rules import learning, small, updates

ABS, HALF = "sum(abs(p - v))", "sum((p - v)**2)/2"
LEARN = ["M = alpha*M - eta*grad"]
MLP = {"kind": "mlp"}


def example(update: dict[str, Any], **sections: Any) -> Spec:
    return spec_of(update, **{"segment": {"size": 7}, "head": {"key_dim": 3, "value_dim": 3}, **sections})


def learns(objective: str, chunk: int = 4, steps: list[str] = LEARN) -> dict[str, Any]:
    return {"objective": objective, "steps": steps, "gradient": {"chunk": chunk}}


EXAMPLES: dict[str, tuple[Spec, set[str]]] = {
    "error rows of signs": (example(learns(ABS)), {"v"}),
    "of an mlp": (example(learns(ABS), memory=MLP), {"v"}),
    "beside another write": (example(learns(ABS, steps=["M = M - eta*grad + outer(v, k)"])), set()),
    "quadratic": (example(learns(HALF)), set()),
    "a memory that stays 0": (example(learns("dot(p, p)")), {"q", "k", "v", "u", "alpha", "eta"}),
    "of p alone, and another write": (
        example(learns("dot(p, p)", steps=["M = alpha*M - eta*grad + b*outer(v, k)"])),
        set(),
    ),
    "of p alone, of an mlp": (example(learns("dot(p, p)"), memory=MLP), {"v"}),
    "of nothing, of an mlp": (example(learns("sum(sign(p - v))"), memory=MLP), {"v", "eta"}),
    "sign of a gate": (example({"steps": ["M = M + sign(a)*outer(v, k)"]}), {"a"}),
    "sign of one gate times another": (example({"steps": ["M = b*M + b*sign(a)*outer(v, k)"]}), {"a"}),
    "a gate that cancels": (example({"steps": ["M = M + (a - a)*outer(v, k) + b*outer(v, k)"]}), {"a"}),
    "of a slot that stays zero": (example({"steps": ["S = a*S", "M = M + S + outer(v, k)"]}), {"a"}),
    "of a slot that M does not read": (example({"steps": ["S = a*S + outer(v, k)", "M = b*M + outer(v, k)"]}), {"a"}),
    "of a slot only a gradient reads": (
        example({"objective": HALF, "steps": ["M = a*M + outer(v, k)", "G = grad", "M = b*G"]}),
        set(),
    ),
    "segments of one token": (example({"steps": ["M = a*M + b*outer(v, k)"]}, segment={"size": 1}), {"a"}),
    "that go on": (
        example({"steps": ["M = a*M + b*outer(v, k)"]}, segment={"size": 1, "init": "checkpoint"}),
        set(),
    ),
    "a lag that reaches no token": (
        example({"steps": ["M = M + a*outer(v[-7], k) + outer(v, k)"]}, segment={"size": 7}),
        {"a"},
    ),
    "no write that reaches one": (
        example({"steps": ["M = a*M + outer(v[-7], k)"]}, segment={"size": 7}),
        {"q", "k", "v", "u", "a"},
    ),
    "a lag that reaches one": (
        example({"steps": ["M = M + a*outer(v[-6], k) + outer(v, k)"]}, segment={"size": 7}),
        set(),
    ),
}


def zeros(spec: Spec, length: int = 24) -> set[str]:
    """The inputs by which the reference's gradient is exactly 0."""
    arguments = inputs(spec, length)
    if not spec.routes_by_u:
        arguments.pop("u")
    found = gradients(reference_of(spec)(**arguments), arguments)
    return {name for name, gradient in found.items() if not gradient.count_nonzero()}


@pytest.mark.parametrize(("spec", "expected"), EXAMPLES.values(), ids=EXAMPLES)
def test_what_is_0_by_construction_is_what_autograd_finds(spec: Spec, expected: set[str]) -> None:
    assert set(unreached(meaning(spec))) == expected
    assert zeros(spec) == expected


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(updates(), learning()), st.sampled_from(["none", "grm", "residual"]))
def test_of_any_rule_it_is_0(update: dict[str, Any], kind: str) -> None:
    spec = small(update, aggregate={"kind": kind})
    assert set(unreached(meaning(spec))) <= zeros(spec)


@pytest.mark.parametrize("function", SCALAR_FUNCTIONS)
def test_every_function_has_the_derivative_that_is_said(function: str) -> None:
    """A gate is reached through a function exactly where its derivative is no 0."""
    arguments = "a, b" if function in ("min", "max") else "a"
    spec = example({"steps": [f"M = M + {function}({arguments})*outer(v, k)"]})
    x, y = sympy.symbols("x y", real=True)
    value = SCALAR_FUNCTIONS[function](*([x, y] if function in ("min", "max") else [x]))
    assert ("a" in unreached(meaning(spec))) == (sympy.diff(value, x) == 0)


@pytest.mark.parametrize("name", shipped())
def test_shipped_specs_have_a_gradient_by_every_input(name: str) -> None:
    found = meaning(load(shipped()[name]))
    lowerable(found)
    assert unreached(found) == ()
    assert len(names_of(found)) >= 3
