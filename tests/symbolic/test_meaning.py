"""Identities as rewrites: what each leaves, where it holds, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import sympy

from mcgen.errors import UnsupportedError
from mcgen.ir.step import step
from mcgen.passes.simplify import simplify
from mcgen.symbolic.meaning import Meaning, lowerable, meaning
from mcgen.symbolic.recurrence import GradientWrite, PreviousSlot, Write
from tests.emit.fragments import spec_of

HALF, HUBER, QUARTIC = "sum((p - v)**2)/2", "sum(sqrt(1 + (p - v)**2))", "sum((p - v)**4)"
WEIGHTED = "sum((v**2 + 1)*(p - v)**2)"
FIRST = ["M = alpha*M", "M = M - eta*grad"]
TOGETHER = ["M = alpha*M - eta*grad"]


def of(update: dict[str, Any], **sections: Any) -> Meaning:
    return meaning(spec_of(update, **sections))


def delta(steps: list[str], chunk: int | None, objective: str = HALF) -> dict[str, Any]:
    return {"objective": objective, "steps": steps, **({"gradient": {"chunk": chunk}} if chunk else {})}


def step_text(found: Meaning) -> str:
    return str(simplify(step(found)))


def test_a_residual_of_sums_is_one_memory() -> None:
    found = of({"rule": "linear"}, aggregate={"kind": "residual"})
    assert (found.aggregate, found.init, found.used) == ("none", "checkpoint", ("residual of sums",))
    lagged = of({"steps": ["M = M + outer(v[-1], k)"]}, aggregate={"kind": "residual"})
    assert (lagged.aggregate, lagged.used) == ("residual", ())


def test_a_soup_of_matrices_is_grm() -> None:
    assert of({"rule": "decay"}, aggregate={"kind": "soup"}).aggregate == "grm"


def test_chunks_of_one_token_are_tokens() -> None:
    """SEMANTICS 5, 6: under `token` the same recurrence, where gradients precede the memory's first assignment."""
    one, token = of(delta(TOGETHER, 1)), of(delta(TOGETHER, None))
    assert one.used == ("chunks of one token",)
    assert one.recurrence == token.recurrence
    assert one.gradient_chunk is None


def test_chunks_of_one_token_take_the_memory_before_the_first_line() -> None:
    """Where the token's own lines come before the gradient, it is not `token`, but has a parallel form still."""
    found = of(delta(FIRST, 1))
    assert found.recurrence.chunk is None
    assert found.recurrence.memory_at == {1: {PreviousSlot("M"): 1}}
    assert step_text(found) == step_text(of(delta(TOGETHER, None)))
    assert step_text(found) != step_text(of(delta(FIRST, None)))


@pytest.mark.parametrize("objective", [HUBER, QUARTIC, WEIGHTED])
def test_chunks_of_one_token_stay_where_there_is_no_parallel_form(objective: str) -> None:
    found = of(delta(TOGETHER, 1, objective))
    assert (found.used, found.recurrence.chunk) == ((), 1)
    lowerable(found)


def test_a_deep_memory_keeps_its_chunks() -> None:
    found = of({"rule": "titans", "gradient": {"chunk": 1}}, memory={"kind": "mlp"})
    assert (found.used, found.recurrence.chunk) == ((), 1)


def test_gradients_of_a_chunk_are_one() -> None:
    found = of(delta(["S = beta*S - eta*grad", "M = M + S", "M = alpha*M - 0.5*grad"], 8))
    assert found.used == ("gradients of a chunk",)
    (write,) = found.recurrence.writes
    alpha, eta = (sympy.Symbol(name, real=True) for name in ("alpha", "eta"))
    assert found.recurrence.injection("S", write) == -eta
    assert sympy.expand(found.recurrence.injection("M", write) + alpha * eta + sympy.Rational(1, 2)) == 0
    assert len(of(delta(["M = M - eta*grad", "M = alpha*M - 0.5*grad"], None)).recurrence.writes) == 2


def test_gradients_that_cancel_are_none() -> None:
    found = of(delta(["M = M - grad", "M = M + grad + outer(v, k)"], 4))
    assert found.recurrence.writes == (Write(),)


@pytest.mark.parametrize("chunk", [2, 16])
def test_decay_first_and_decay_together_are_one_program_over_chunks(chunk: int) -> None:
    assert step_text(of(delta(FIRST, chunk))) == step_text(of(delta(TOGETHER, chunk)))


def test_decay_first_and_decay_together_are_two_programs_token_by_token() -> None:
    assert step_text(of(delta(FIRST, None))) != step_text(of(delta(TOGETHER, None)))


def test_titans_without_momentum_is_gradient_descent() -> None:
    """SEMANTICS 5, 5: a constant beta of 0 leaves one slot."""
    found = of({"rule": "titans", "gates": {"beta": 0.0}})
    assert found.recurrence.slots == ("M",)
    assert step_text(found) == step_text(of(delta(TOGETHER, None, "sum((p - v)**2)")))


def test_the_dot_objective_is_a_hebbian_write() -> None:
    found = of(delta(["M = alpha*M - eta*grad"], None, "-dot(p, v)"))
    assert found.recurrence.writes == (Write(),)
    assert step_text(found) == step_text(of({"steps": ["M = alpha*M + eta*outer(v, k)"]}))


@pytest.mark.parametrize("objective", [HUBER, QUARTIC, WEIGHTED])
def test_token_gradients_without_a_parallel_form_are_refused(objective: str) -> None:
    found = of(delta(TOGETHER, None, objective))
    assert isinstance(found.recurrence.writes[0], GradientWrite)
    with pytest.raises(UnsupportedError, match=r"gradient: \{chunk: b\}.*\{chunk: 1\} is the same"):
        lowerable(found)


def test_the_refusal_names_chunks_of_one_only_where_they_are_the_same() -> None:
    with pytest.raises(UnsupportedError, match=r"gradient: \{chunk: b\}$"):
        lowerable(of(delta(FIRST, None, HUBER)))


def test_equal_weights_are_refused_for_the_mean() -> None:
    with pytest.raises(UnsupportedError, match="kind: mean"):
        lowerable(of({"rule": "decay"}, aggregate={"kind": "grm", "scale": 0.0}))
