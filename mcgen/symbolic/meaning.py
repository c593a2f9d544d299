"""What a spec computes, once its rule is a recurrence and the identities of SEMANTICS 5 have been used.

Identities marked there as rewrites are a table here. Each says when it holds; `explain` says which were used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from mcgen.errors import UnsupportedError
from mcgen.spec import Spec
from mcgen.symbolic.recurrence import MEMORY, Recurrence, Write, recurrence

ROUTED = ("grm", "soup", "ssc")


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
    def routes(self) -> bool:
        """Whether read-outs are weighted by a softmax over routing logits."""
        return self.aggregate in ROUTED

    @property
    def reads_cached(self) -> bool:
        return self.aggregate != "none"

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


IDENTITIES = (
    Identity(
        "residual of sums",
        "M_t(q) + sum of M^(i)(q), M = M + writes, init independent",
        "M_t(q), init checkpoint",
        "a matrix memory that only adds up writes of the same token",
        _sums_are_one_memory,
    ),
    Identity("soup is grm", "aggregate soup", "aggregate grm", "the memory is a matrix", _soup_is_grm),
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


LOWERED = "lowered are matrix memories whose steps write outer(...) or the grad of an objective linear in p"


def lowerable(meaning: Meaning) -> None:
    """Nothing, where a module can be made of a meaning.

    Raises:
        UnsupportedError: it cannot yet; the message says what would be accepted.
    """
    if not meaning.linear:
        raise UnsupportedError(f"a memory of kind mlp cannot be lowered yet; {LOWERED}")
    if meaning.recurrence.reads_memory:
        raise UnsupportedError(f"a grad that depends on the memory cannot be lowered yet; {LOWERED}")
    if not meaning.recurrence.writes:
        raise UnsupportedError("nothing is ever written to M, so every read-out is zero; write outer(v, k) to it")
