"""Names that a user's gates and slots have inside the printed paths.

A user may call a gate `pool`, `T` or `b_q`; the printed paths have names of their own. A user's name that any of
them could be is given a private one, in the parsed spec and before anything is lowered, so that no printer has to
think of it.
"""

from __future__ import annotations

import functools
import keyword
import re
from collections.abc import Mapping
from dataclasses import replace

from mcgen.emit.text.rendering import template_words
from mcgen.spec import Spec
from mcgen.spec.grammar import Binary, Call, Expression, Name, Unary
from mcgen.symbolic.recurrence import MEMORY

SOFT_KEYWORDS = ("_", "case", "match", "type")
"""What some version of Python reads as a keyword in some places; an older one's list would be shorter."""
# Inputs and outputs of tile programs, and the forms in which names are put together from others.
OF_PROGRAMS = (
    "q k v u o r y n_t n_j at_t at_j pool pools count head valid fresh anchor share online lse delta cached mine "
    "prediction error centred squares normed norm_scale rate system weight weights"
)
BUILT = re.compile(
    r"^(d|b|s|m|o|i|n|x|k|v|r|q|C|R|start|begin|after|kept|pre|hidden|soup|chosen|error|pull|seen|result|rows)_|_(next|rows|chosen|cached|runs|kernel|layer_\d+)$"
)


@functools.cache
def taken() -> frozenset[str]:
    """Every word of the templates, and every name a tile program gives."""
    return frozenset({*template_words(), *OF_PROGRAMS.split(), *keyword.kwlist, *SOFT_KEYWORDS} - {MEMORY})


def private_names(spec: Spec) -> dict[str, str]:
    """A private name for every gate and slot whose own could be taken."""
    own = [*(gate.name for gate in spec.gates), *spec.slots]
    clashes = [
        name for name in own if name != MEMORY and (name in taken() or BUILT.search(name) or name.startswith("_"))
    ]
    used, renamed = set(own), {}
    for name in clashes:
        new = f"user_{name.strip('_')}"
        while new in used or new in taken():
            new += "_"
        renamed[name] = new
        used.add(new)
    return renamed


def privately(spec: Spec) -> Spec:
    """The spec with gates and slots under their private names; what it says of itself as data stays as it is."""
    names = private_names(spec)
    if not names:
        return spec
    return replace(
        spec,
        steps=tuple(
            replace(s, slot=names.get(s.slot, s.slot), expression=_renamed(s.expression, names)) for s in spec.steps
        ),
        slots=tuple(names.get(slot, slot) for slot in spec.slots),
        gates=tuple(replace(gate, name=names.get(gate.name, gate.name)) for gate in spec.gates),
    )


def _renamed(expression: Expression, names: Mapping[str, str]) -> Expression:
    match expression:
        case Name(id, span):
            return Name(names.get(id, id), span)
        case Unary(op, operand, span):
            return Unary(op, _renamed(operand, names), span)
        case Binary(op, left, right, span):
            return Binary(op, _renamed(left, names), _renamed(right, names), span)
        case Call(function, arguments, span) if function != "outer":
            return Call(function, tuple(_renamed(argument, names) for argument in arguments), span)
    return expression
