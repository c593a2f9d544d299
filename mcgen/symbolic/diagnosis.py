"""All that is wrong with a spec at once: what reading it found, and what its rule shows by itself."""

from __future__ import annotations

from mcgen.errors import Diagnostic, SpecError
from mcgen.symbolic.recurrence import recurrence


def diagnosis(error: SpecError) -> tuple[Diagnostic, ...]:
    """The diagnostics of an error, with those of a rule that could be read, in the order of the text."""
    if error.rule is None:
        return error.diagnostics
    try:
        recurrence(error.rule)
    except SpecError as more:
        found = dict.fromkeys([*error.diagnostics, *more.diagnostics])
        return tuple(sorted(found, key=lambda finding: (finding.line, finding.column)))
    return error.diagnostics
