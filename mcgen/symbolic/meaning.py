"""What a spec computes, once its rule is a recurrence and the identities of SEMANTICS 5 have been used.

Identities marked there as rewrites are a table here. Each says when it holds; `explain` says which were used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import sympy

from mcgen.errors import Diagnostic, UnsupportedError, in_order
from mcgen.spec import Spec
from mcgen.spec.refusals import (
    FLAT_ACTIVATION,
    NOTHING_WRITTEN,
    SCALE_ZERO,
    TOKEN_GRADIENTS_NOT_AFFINE,
    TOKEN_GRADIENTS_OF_AN_MLP,
    Refusal,
)
from mcgen.spec.source import Position
from mcgen.spec.spec import ROUTED
from mcgen.symbolic.expressions import symbol, to_sympy
from mcgen.symbolic.recurrence import (
    MEMORY,
    Atom,
    GradientWrite,
    LinearForm,
    PreviousSlot,
    Recurrence,
    Write,
    recurrence,
)
from mcgen.symbolic.text import text


@dataclass(frozen=True)
class Meaning:
    """A spec's recurrence, with the aggregate and the init that the compiler lowers; `used` names the rewrites."""

    spec: Spec
    recurrence: Recurrence
    aggregate: str
    init: str
    used: tuple[str, ...] = ()

    @property
    def linear(self) -> bool:
        """Whether a read-out is linear in the memory's parameters."""
        return self.spec.memory.kind == "matrix"

    @property
    def inputs(self) -> list[str]:
        """The tensors that the operator differentiates, in order of its arguments; a deep memory's weights follow."""
        return ["q", "k", "v", *(["u"] if self.spec.routes_by_u else []), *self.spec.tensor_gates]

    @property
    def routes(self) -> bool:
        """Whether read-outs are weighted by a softmax over routing logits."""
        return self.aggregate in ROUTED

    @property
    def reads_cached(self) -> bool:
        return self.aggregate != "none"

    @property
    def gradient_chunk(self) -> int | None:
        """Tokens of the chunks at whose start gradients are taken, where some write depends on the memory there.

        A chunk as long as a segment is the segment, whatever its length.
        """
        size, chunk = self.spec.segment.size, self.recurrence.chunk
        if chunk is None or not self.recurrence.reads_memory:
            return None
        return chunk if size is None or chunk < size else -(-size // 64) * 64

    def step(self, most: int) -> int:
        """Tokens of a chunk step of up to about `most` tokens: gradient chunks are a whole number of steps."""
        chunk = self.gradient_chunk
        if chunk is None or chunk <= most:
            return chunk or most
        divisors = [n for n in range(most // 2, chunk + 1) if chunk % n == 0]
        return min(divisors, key=lambda n: (n > 2 * most, abs(n - most)))

    def anchored(self, most: int) -> bool:
        """Whether a gradient chunk is several steps, so that the memory at its start has to be carried along."""
        return self.gradient_chunk is not None and self.step(most) < self.gradient_chunk

    @property
    def chained(self) -> bool:
        """Whether a segment starts from the end of the one before."""
        return self.init == "checkpoint"


@dataclass(frozen=True)
class Identity:
    """A rewrite of what is computed: `apply` gives the same function, cheaper, or None where it does not hold."""

    name: str
    before: str
    after: str
    when: str
    apply: Callable[[Meaning], Meaning | None]


def _sums_are_one_memory(meaning: Meaning) -> Meaning | None:
    r = meaning.recurrence
    adds_up = r.slots == (MEMORY,) and r.transition(MEMORY, MEMORY) == 1
    unlagged = all(isinstance(w, Write) and not w.value_lag and not w.key_lag for w in r.writes)
    if not (meaning.linear and adds_up and unlagged and meaning.aggregate == "residual" and not meaning.chained):
        return None
    return replace(meaning, aggregate="none", init="checkpoint")


def _soup_is_grm(meaning: Meaning) -> Meaning | None:
    return replace(meaning, aggregate="grm") if meaning.linear and meaning.aggregate == "soup" else None


def _gradients_are_one(meaning: Meaning) -> Meaning | None:
    r = meaning.recurrence
    gradients = [write for write in r.writes if isinstance(write, GradientWrite)]
    if r.chunk is None or len(gradients) < 2:
        return None
    first, *others = gradients
    forms = {slot: _merged(form, first, others) for slot, form in r.forms.items()}
    return replace(meaning, recurrence=replace(r, forms=forms, memory_at={first.line: r.memory_at[first.line]}))


def _merged(form: LinearForm, first: Atom, others: Sequence[Atom]) -> LinearForm:
    """The form with the coefficients of the other atoms added to that of the first."""
    total = sympy.Add(*(form.get(atom, sympy.S.Zero) for atom in (first, *others)))
    kept = {atom: coefficient for atom, coefficient in form.items() if atom not in (first, *others)}
    return {**kept, first: total} if total != 0 else kept


def _chunks_are_tokens(meaning: Meaning) -> Meaning | None:
    r = meaning.recurrence
    if not meaning.linear or r.chunk != 1 or not r.reads_memory or r.error.affine is None:
        return None
    before = {PreviousSlot(MEMORY): sympy.S.One}
    return replace(meaning, recurrence=replace(r, chunk=None, memory_at=dict.fromkeys(r.memory_at, before)))


IDENTITIES = (
    Identity(
        "residual of sums",
        "M_t(q) + sum of M^(i)(q), M = M + writes, init independent",
        "M_t(q), init checkpoint",
        "a matrix memory that only adds up writes of the same token",
        _sums_are_one_memory,
    ),
    Identity("soup is grm", "aggregate soup", "aggregate grm", "the memory is a matrix", _soup_is_grm),
    Identity(
        "gradients of a chunk",
        "a*grad[line m] + b*grad[line n]",
        "(a + b)*grad[line m]",
        "gradients are taken over chunks, all at the memory before the chunk",
        _gradients_are_one,
    ),
    Identity(
        "chunks of one token",
        "gradient: {chunk: 1}",
        "gradient: token, at the memory before the token's first line",
        "a matrix memory whose error row is affine in p",
        _chunks_are_tokens,
    ),
)


def meaning(spec: Spec) -> Meaning:
    """The meaning of a spec, after every identity that holds.

    Raises:
        SpecError: the rule is not linear in its slots, or its slots feed one another in a cycle.
    """
    found = Meaning(spec, recurrence(spec), spec.aggregate.kind, spec.segment.init)
    for identity in IDENTITIES:
        rewritten = identity.apply(found)
        if rewritten is not None:
            found = replace(rewritten, used=(*found.used, identity.name))
    return found


def lowerable(meaning: Meaning) -> None:
    """Nothing, where a module can be made of a meaning.

    Raises:
        UnsupportedError: it cannot; each finding says where, and what would be accepted.
    """
    if refused := in_order(_unlowerable(meaning)):
        raise UnsupportedError(*refused)


def _unlowerable(meaning: Meaning) -> Iterator[Diagnostic]:
    """What keeps a meaning from being lowered."""
    spec, found, place = meaning.spec, meaning.recurrence, meaning.spec.document.nearest
    if not meaning.linear and found.chunk is None:
        yield _refused(TOKEN_GRADIENTS_OF_AN_MLP, place(("update", "gradient")), same=_same(found))
    if meaning.linear and found.reads_memory and found.chunk is None and found.error.affine is None:
        row = text(found.error.expression)
        yield _refused(TOKEN_GRADIENTS_NOT_AFFINE, spec.objective_position, row=row, same=_same(found))
    if spec.activation_expression is not None and sympy.diff(to_sympy(spec.activation_expression), symbol("x")) == 0:
        yield _refused(FLAT_ACTIVATION, place(("memory", "activation")))
    if meaning.routes and spec.aggregate.scale == 0:
        yield _refused(SCALE_ZERO, place(("aggregate", "scale")))
    if not found.writes:
        last = [step for step in spec.steps if step.slot == MEMORY][-1]
        yield _refused(NOTHING_WRITTEN, last.position)


def _same(recurrence: Recurrence) -> str:
    return " ({chunk: 1} is the same as token here)" if recurrence.gradients_come_first else ""


def _refused(refusal: Refusal, position: Position, **words: str) -> Diagnostic:
    return position.diagnose(refusal.message(**words), hint=refusal.hint(**words))
