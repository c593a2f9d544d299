"""The closed form against the lines of the rule themselves, run token by token in floats; and as text."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mcgen.spec import Spec
from mcgen.symbolic.closed_form import COLUMN, MAX_PATHS, ROW, ClosedForm, closed_form
from mcgen.symbolic.expressions import symbol
from mcgen.symbolic.objective import PREDICTION, VALUE
from mcgen.symbolic.recurrence import MEMORY, GradientWrite, LinearForm, PreviousSlot, Write, recurrence
from tests.emit.fragments import inputs, reference_of
from tests.symbolic.rules import gate_values, learning, run_lines, small, updates

TOKENS = 5
HALF = "sum((p - v)**2)/2"


def at(entry: Any, spec: Spec, gates: list[dict[str, float]], t: int, j: int = 0) -> float:
    """An entry's value at tokens t and j."""
    value = entry.expression(spec.tensor_gates).subs({ROW: t, COLUMN: j}).doit()
    known = {index: gates[int(index.indices[0]) - 1][str(index.base)] for index in value.atoms(sympy.Indexed)}
    plain = {symbol: gates[0][symbol.name] for symbol in value.free_symbols if symbol.name in gates[0]}
    return float(value.xreplace({k: sympy.Rational(repr(v)) for k, v in (known | plain).items()}))


def key(write: Write, j: int) -> tuple[int, int, int]:
    return write.value_lag, write.key_lag, j


@settings(max_examples=40, deadline=None, derandomize=True)
@given(updates(), st.integers(0, 99))
@example({"steps": ["R = a*R + outer(v, k)", "S = R", "M = S - b*M"], "gates": {"b": 0.0}}, 1)
@example({"steps": ["M = S", "S = R", "R = outer(v[-1], k)"], "gates": {}}, 1)
@example({"steps": ["R = outer(v, k)", "S = 0.5*S + R", "M = M + S", "S = S + M/2 - M/2"], "gates": {}}, 2)
def test_rows_and_matrices_are_those_of_the_lines(update: dict[str, Any], seed: int) -> None:
    spec = small(update)
    gates = gate_values(spec, seed, TOKENS)
    history, found = run_lines(spec, gates), recurrence(spec)
    for slot in found.slots:
        form = closed_form(found, slot)
        for t in (1, 2, TOKENS):
            expected = {k: v for k, v in history[t - 1][slot].items() if v and k not in found.unread}
            got = {entry.of: at(entry, spec, gates, t) for entry in form.start}
            got |= {key(e.of, j): at(e, spec, gates, t, j) for e in form.writes for j in range(1, t + 1)}
            assert {k: pytest.approx(v, rel=1e-12) for k, v in expected.items()} == {k: v for k, v in got.items() if v}


Sum = dict[tuple[Write | GradientWrite, int], float]
"""A memory as a sum over writes, each at a token."""


class Chunk:
    """A segment of one head, its memory by the closed form alone: error rows in the order in which they are taken.

    At token t a line takes its gradient at M = sum over writes and tokens j of C'[t, j] value_j key_jᵀ, where C' is
    made of the C of the slots after token t - 1; over chunks it is C after the last token of the chunk before.
    """

    def __init__(self, spec: Spec, x: dict[str, torch.Tensor], gates: list[dict[str, float]]) -> None:
        self.x, self.gates, self.found = x, gates, recurrence(spec)
        self.sums = {slot: self._sums(spec, slot) for slot in self.found.slots}
        self.errors: dict[tuple[GradientWrite, int], torch.Tensor] = {}
        for t in range(1, len(gates) + 1):
            for line, memory in sorted(self.found.memory_at.items()):
                self.errors[GradientWrite(line), t] = self._error(self._memory_at(memory, t), t)

    def _sums(self, spec: Spec, slot: str) -> list[Sum]:
        """The slot after 0, 1, 2, ... tokens."""
        entries, tokens = closed_form(self.found, slot).writes, range(1, len(self.gates) + 1)
        return [
            {(e.of, j): at(e, spec, self.gates, t, j) for e in entries for j in range(1, t + 1)} for t in (0, *tokens)
        ]

    def _memory_at(self, memory: LinearForm, t: int) -> Sum:
        if self.found.chunk is not None:
            return self.sums[MEMORY][(t - 1) // self.found.chunk * self.found.chunk]
        total: Sum = {}
        for atom, rate in memory.items():
            value = float(rate.subs({symbol(name): number for name, number in self.gates[t - 1].items()}))
            part = self.sums[atom.name][t - 1] if isinstance(atom, PreviousSlot) else {(atom, t): 1.0}
            total |= {key: total.get(key, 0.0) + value * share for key, share in part.items()}
        return total

    def _error(self, memory: Sum, t: int) -> torch.Tensor:
        p, v = self.read(memory, self.x["k"][t - 1]), self.x["v"][t - 1]
        return _rows(self.found.error.expression, {PREDICTION: p, VALUE: v})

    def read(self, memory: Sum, row: torch.Tensor) -> torch.Tensor:
        """The memory applied to a row."""
        total = torch.zeros_like(self.x["v"][0])
        for (write, j), share in memory.items():
            lags = (write.value_lag, write.key_lag) if isinstance(write, Write) else (0, 0)
            if j > max(lags):
                key, value = self.x["k"][j - 1 - lags[1]], self.x["v"][j - 1 - lags[0]]
                value = _rows(write.value, {VALUE: value}) if isinstance(write, Write) else self.errors[write, j]
                total = total + share * (key @ row) * value
        return total

    def y(self) -> torch.Tensor:
        return torch.stack([self.read(memory, q) for memory, q in zip(self.sums[MEMORY][1:], self.x["q"], strict=True)])


def _rows(expression: sympy.Expr, values: dict[sympy.Symbol, torch.Tensor]) -> torch.Tensor:
    """A function of rows, element by element, in SymPy's own floats."""
    elements = zip(*(row.tolist() for row in values.values()), strict=True)
    return torch.tensor(
        [float(expression.subs(dict(zip(values, e, strict=True)))) for e in elements], dtype=torch.float64
    )


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(learning(), st.integers(0, 99))
def test_memories_that_read_themselves_follow_from_it(update: dict[str, Any], seed: int) -> None:
    spec = small(update, aggregate={"kind": "none"})
    gates = gate_values(spec, seed, TOKENS, head=0)
    drawn = {name: x.detach() for name, x in inputs(spec, TOKENS, B=1, H=1, seed=seed).items()}
    drawn |= {
        name: torch.tensor([g[name] for g in gates], dtype=torch.float64)[None, :, None] for name in spec.tensor_gates
    }
    y = Chunk(spec, {name: x[0, :, 0] for name, x in drawn.items()}, gates).y()
    torch.testing.assert_close(y, reference_of(spec)(**drawn)[0, :, 0], rtol=1e-10, atol=1e-10)


def shown(
    *steps: str, objective: str | None = None, gates: dict[str, Any] | None = None
) -> tuple[ClosedForm, list[str]]:
    extra = {"objective": objective} if objective else {}
    spec = small({"steps": list(steps), "gates": gates or {}, **extra})
    form = closed_form(recurrence(spec))
    return form, [entry.text(spec.tensor_gates) for entry in (*form.start, *form.writes)]


def test_momentum_reads_as_it_does_on_paper() -> None:
    _, lines = shown("S = beta*S - eta*grad", "M = alpha*M + S", objective=HALF)
    assert lines == [
        "sum_{0<i<=t} prod_{i<m<=t} alpha_m · prod_{0<n<=i} beta_n",
        "prod_{0<m<=t} alpha_m",
        "-sum_{j<=i<=t} prod_{i<m<=t} alpha_m · prod_{j<n<=i} beta_n · eta_j",
    ]


def test_a_line_that_reads_a_slot_assigned_below_it_reads_last_tokens() -> None:
    _, lines = shown("M = alpha*M + S", "S = beta*S - eta*grad", objective=HALF)
    assert lines[-1] == "-sum_{j<i<=t} prod_{i<m<=t} alpha_m · prod_{j<n<i} beta_n · eta_j"


@pytest.mark.parametrize(
    ("steps", "lines"),
    [
        (["M = M + outer(v, k)"], ["1", "1"]),
        (
            ["M = alpha*M - 2*(1 - alpha)*outer(v, k)"],
            ["prod_{0<m<=t} alpha_m", "prod_{j<m<=t} alpha_m · (2*alpha_j - 2)"],
        ),
        (["M = 0.9*M + outer(v, k)"], ["0.9^t", "0.9^(t-j)"]),
        (["M = outer(v, k)"], ["1 where t = j"]),
        (
            ["M = alpha*M + S", "S = outer(v, k)"],
            ["prod_{1<m<=t} alpha_m", "prod_{0<m<=t} alpha_m", "prod_{j+1<m<=t} alpha_m where t >= j + 1"],
        ),
        (
            ["M = S", "S = R", "R = a*R + outer(v, k)"],
            ["prod_{0<m<=t-2} a_m where t >= 2", "1 where t = 1", "prod_{j<m<=t-2} a_m where t >= j + 2"],
        ),
        (
            ["M = sigmoid(a)*M + abs(b)**c*outer(v, k)"],
            ["prod_{0<m<=t} sigmoid(a_m)", "prod_{j<m<=t} sigmoid(a_m) · abs(b_j)**c_j"],
        ),
    ],
)
def test_text(steps: list[str], lines: list[str]) -> None:
    assert shown(*steps)[1] == lines


def test_a_gate_that_is_one_number_a_head_has_no_token() -> None:
    _, lines = shown("M = alpha*M + alpha*outer(v, k)", gates={"alpha": {"per_head": "1 - 2**(-5 - h)"}})
    assert lines == ["alpha^t", "alpha^(t-j) · alpha"]


def test_too_many_paths_are_counted_and_not_written_out() -> None:
    names = [f"s{n}" for n in range(24)]
    lines = [
        f"{name} = {name}/2 + outer(v, k)" + "".join(f" + {other}" for other in names[:n])
        for n, name in enumerate(names)
    ]
    form, texts = shown(*reversed(lines), f"M = {names[-1]}")
    entry = form.writes[0]
    assert entry.paths > MAX_PATHS
    assert texts[-1] == f"a sum over {entry.paths} paths"
    with pytest.raises(ValueError, match="paths"):
        entry.expression()
