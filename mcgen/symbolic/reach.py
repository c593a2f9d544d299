"""Which inputs the gradient of a read-out reaches, and which it cannot, whatever their values.

A value depends on another where a derivative is not 0 as an expression. `sign` and its kin have derivative 0, as they
have for autograd, so what is read through them alone has a gradient of 0 everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import sympy

from mcgen.symbolic.expressions import symbol
from mcgen.symbolic.functions import Larger, Sign, Step, Where
from mcgen.symbolic.meaning import Meaning
from mcgen.symbolic.objective import PREDICTION, VALUE
from mcgen.symbolic.recurrence import MEMORY, Atom, GradientWrite, LinearForm, PreviousSlot, Write

FLAT = (Sign, Step, Larger)
"""Functions whose derivative is 0; so is that of `Where` by its condition."""

THETA = "theta[{}]"
"""What the initial weights of a layer of a deep memory are called, the first one's number 0."""


def inputs(meaning: Meaning) -> tuple[str, ...]:
    """What an operator can have gradients by: q, k, v, u where it routes, gates, a deep memory's initial weights."""
    return (*meaning.inputs, *_weights(meaning))


def _weights(meaning: Meaning) -> Iterable[str]:
    """The initial weights of a deep memory."""
    return () if meaning.linear else map(THETA.format, range(meaning.spec.memory.layers))


def stays_zero(meaning: Meaning) -> bool:
    """Whether a matrix memory never leaves 0: gradients are 0 where p is, and no other write reaches a token."""
    found = meaning.recurrence
    live = [write for write in found.writes if _Flow(meaning).is_live(write)]
    moves = lambda write: isinstance(write, Write) or found.error.expression.subs(PREDICTION, 0) != 0  # noqa: E731
    return meaning.linear and not any(map(moves, live))


def unreached(meaning: Meaning) -> tuple[str, ...]:
    """The inputs by which the gradient is 0 by construction."""
    reached = set() if stays_zero(meaning) else _Flow(meaning).reached()
    return tuple(name for name in inputs(meaning) if name not in reached)


_Value = str | Atom
"""Inputs stand for themselves, by name; last token's value of a slot for that after any token."""


@dataclass(frozen=True)
class _Flow:
    """What each value of a recurrence is made of."""

    meaning: Meaning

    def reached(self) -> set[_Value]:
        """Everything that a read-out depends on."""
        found: set[_Value] = set()
        waiting = list(self._read_out())
        while waiting:
            value = waiting.pop()
            if value not in found:
                found.add(value)
                waiting += self._sources(value)
        return found

    def _read_out(self) -> Iterator[_Value]:
        yield from ("q", PreviousSlot(MEMORY))
        if self.meaning.routes:
            yield from (self.meaning.spec.aggregate.connector, "k")

    def _sources(self, value: _Value) -> Iterator[_Value]:
        found = self.meaning.recurrence
        match value:
            case PreviousSlot(slot):
                yield from self._of_form(found.forms[slot])
            case Write(value=row):
                yield from ("k", *(["v"] if changes(row, VALUE) else []))
            case GradientWrite():
                yield from self._of_gradient(value)

    def _of_form(self, form: LinearForm) -> Iterator[_Value]:
        for atom, coefficient in form.items():
            if not self.is_live(atom):
                continue
            yield from (gate for gate in self.meaning.spec.tensor_gates if changes(coefficient, symbol(gate)))
            yield atom
            if atom == PreviousSlot(MEMORY):
                yield from _weights(self.meaning)

    def _of_gradient(self, write: GradientWrite) -> Iterator[_Value]:
        """e kᵀ of a matrix; the layers' of an mlp, which its weights are in too."""
        found = self.meaning.recurrence
        yield from ("k", *(["v"] if changes(found.error.expression, VALUE) else []))
        if not self.meaning.linear or changes(found.error.expression, PREDICTION):
            before_chunk = {PreviousSlot(MEMORY): sympy.S.One}
            yield from self._of_form(found.memory_at[write.line] if found.chunk is None else before_chunk)

    def is_live(self, atom: PreviousSlot | Write | GradientWrite) -> bool:
        """Whether an atom can be other than 0: it can not before the first token, nor where an error row is 0."""
        if isinstance(atom, GradientWrite):
            return self.meaning.recurrence.error.expression != 0
        size = self.meaning.spec.segment.size
        if self.meaning.chained or size is None:
            return True
        if isinstance(atom, PreviousSlot):
            return size > 1 or (not self.meaning.linear and atom.name == MEMORY)
        return max(atom.value_lag, atom.key_lag) < size


def changes(expression: sympy.Expr, variable: sympy.Symbol) -> bool:
    """Whether an expression has a derivative by a variable that is not 0 as it stands."""
    return variable in _variables(expression)


@lru_cache(maxsize=4096)
def _variables(expression: sympy.Basic) -> frozenset[sympy.Symbol]:
    """The symbols by which an expression has a derivative: those that stand in it outside functions without one."""
    if isinstance(expression, sympy.Symbol):
        return frozenset([expression])
    if isinstance(expression, FLAT):
        return frozenset()
    arguments = expression.args[1:] if isinstance(expression, Where) else expression.args
    return frozenset().union(*map(_variables, arguments))
