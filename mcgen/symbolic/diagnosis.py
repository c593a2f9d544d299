"""All that is to be said of a spec at once: what reading it found, and what its rule shows by itself."""

from __future__ import annotations

from mcgen.errors import Diagnostic, SpecError, UnsupportedError, in_order
from mcgen.spec import Spec
from mcgen.symbolic.advice import advice
from mcgen.symbolic.meaning import lowerable, meaning


def examined(spec: Spec, lowered: bool = True) -> tuple[Diagnostic, ...]:
    """Every warning about a spec and every fault of its rule, in the order of the text.

    `lowered` asks that a module can be made of it, too.
    """
    try:
        understood = meaning(spec)
    except SpecError as error:
        return in_order(spec.warnings, error.diagnostics)
    found = in_order(spec.warnings, advice(understood))
    try:
        if lowered:
            lowerable(understood)
    except UnsupportedError as error:
        return in_order(found, error.diagnostics)
    return found


def diagnosis(error: SpecError, lowered: bool = True) -> tuple[Diagnostic, ...]:
    """The diagnostics of an error, with those of a rule that could be read, in the order of the text."""
    return in_order(error.diagnostics, examined(error.rule, lowered) if error.rule is not None else ())
