"""What the symbolic stage understood, as text: the recurrence, the identities used, the closed form."""

from __future__ import annotations

from collections.abc import Iterator

import sympy

from mcgen.spec import Spec
from mcgen.spec.grammar import unparse
from mcgen.symbolic.closed_form import closed_form
from mcgen.symbolic.meaning import IDENTITIES, Meaning
from mcgen.symbolic.recurrence import MEMORY, LinearForm, PreviousSlot, Recurrence
from mcgen.symbolic.text import summed, text

Table = tuple[list[str], list[list[str]]]
"""Column heads, and rows of cells."""


def recurrence_lines(meaning: Meaning) -> list[str]:
    """The recurrence, a line a slot, in triangular order, with what it was read from."""
    spec, found = meaning.spec, meaning.recurrence
    lines = ["The lines of the rule, top to bottom at every token:"]
    lines += [f"  {step.slot} = {unparse(step.expression)}" for step in spec.steps]
    lines += [f"  with {line}" for line in _gate_lines(spec)]
    lines += ["", "Every slot over last token's slots and this token's writes, each slot after those it reads:"]
    lines += [f"  {slot}[t] = {_form_text(found.forms[slot])}" for slot in found.slots]
    if found.unread:
        lines.append(f"  left out, for they stay zero or M does not depend on them: {', '.join(found.unread)}")
    return [*lines, *_error_lines(meaning)]


def _gate_lines(spec: Spec) -> Iterator[str]:
    for gate in spec.gates:
        if gate.kind == "constant":
            yield f"{gate.name} = {gate.value}"
        elif gate.kind == "per_head":
            yield f"{gate.name} = {unparse(gate.value)} for head h"
    if spec.tensor_gates:
        yield f"{', '.join(spec.tensor_gates)}: a number a token and head"


def _form_text(form: LinearForm) -> str:
    return summed([(coefficient, str(atom)) for atom, coefficient in form.items()])


def _error_lines(meaning: Meaning) -> Iterator[str]:
    found = meaning.recurrence
    if found.error is None:
        return
    yield ""
    yield f"Objective {unparse(meaning.spec.objective_expression)}, p = M(k):"
    yield f"  error row e = dL/dp = {text(found.error.expression)}, curvature de/dp = {text(found.error.curvature)}"
    if not found.reads_memory:
        yield "  no gradient depends on the memory: each is a write like any other"
        return
    if (affine := found.error.affine) is not None:
        yield f"  affine in p: e = {text(affine[0])}*p + c(v), c(v) = {text(affine[1])}"
    yield f"  taken at M as it stands {_place(found)}"


def _place(found: Recurrence) -> str:
    if found.chunk is not None:
        return f"before its chunk of {found.chunk} tokens"
    places = (f"line {line + 1}: {_form_text(form)}" for line, form in found.memory_at.items())
    return "at its line; " + "; ".join(places)


def matrix_table(found: Recurrence) -> Table:
    """A and b: a row a slot, a column for each slot before the token and for each write."""
    atoms = [*(PreviousSlot(slot) for slot in found.slots), *found.writes]
    rows = [[slot, *(text(found.forms[slot].get(atom, sympy.S.Zero)) for atom in atoms)] for slot in found.slots]
    return ["slot", *map(str, atoms)], rows


def identity_table(meaning: Meaning) -> Table:
    """Every identity the compiler knows, and whether it was used."""
    rows = [
        [one.name, one.before, one.after, one.when, "used" if one.name in meaning.used else "-"] for one in IDENTITIES
    ]
    return ["identity", "before", "after", "where", "here"], rows


def outcome_line(meaning: Meaning) -> str:
    """The aggregate and init as written, and as they are lowered."""
    spec = meaning.spec
    written, lowered = (spec.aggregate.kind, spec.segment.init), (meaning.aggregate, meaning.init)
    said = "aggregate {}, init {}".format(*lowered)
    return (
        f"Lowered as written: {said}."
        if lowered == written
        else f"Lowered as {said}; written {written[0]}, {written[1]}."
    )


def closed_form_lines(meaning: Meaning) -> list[str]:
    """R and C of every slot, M first."""
    found = meaning.recurrence
    lines = [
        "With s_0 a slot before a chunk's first token, and tokens of the chunk counted from 1:",
        "  M_t = sum over slots s of R[t, s] s_0 + sum over writes w and 1 <= j <= t of C_w[t, j] G^w_j",
        "A layer W of the memory, applied to a row x, is R (W_0 x) + sum over j of C[t, j] (k_j · x) value_j.",
    ]
    for slot in [MEMORY, *(slot for slot in found.slots if slot != MEMORY)]:
        lines += ["", f"{slot}:", *_slot_lines(meaning, slot)]
    return lines


def _slot_lines(meaning: Meaning, slot: str) -> Iterator[str]:
    form, gates = closed_form(meaning.recurrence, slot), meaning.spec.tensor_gates
    for entry in form.start:
        yield f"  R[t, {entry.of}] = {entry.text(gates)}"
    for entry in form.writes:
        yield f"  C[t, j] = {entry.text(gates)}"
        yield f"      for G_j = {entry.of.at('j')}"
