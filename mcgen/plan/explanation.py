"""A plan in words and as plain data: what was chosen and why, what every pass does, and the launches at given sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from mcgen.passes.phases import Phase, Phases
from mcgen.plan.expansion import Launched, Machine, Problem, expanded
from mcgen.plan.host import (
    Compute,
    Kernel,
    Launch,
    Make,
    Pass,
    Routine,
    Statement,
    buffers,
    launches,
    routines,
    statements,
)
from mcgen.plan.plan import planned
from mcgen.plan.schedule import Schedule
from mcgen.symbolic.meaning import Meaning

Table = tuple[list[str], list[list[str]]]


def plan_text(meaning: Meaning) -> str:
    """The plan in words: each choice with the property it follows from and what it costs; then the launches."""
    passes = planned(meaning)
    lines = [f"{what}: {chosen}\n    {why}" for what, chosen, why in passes.choices()]
    lines += ["", "Launches"]
    for one in (passes.forward, passes.backward):
        names = list(dict.fromkeys(launch.kernel.name for launch in launches(one.body)))
        lines.append(f"  {one.name}, {len(names)}: {', '.join(names)}")
    shown = {name: "; ".join(map(_loop, Phases(program).phases)) for name, program in passes.phased.items()}
    loops = [f"  {name}: {text}" for name, text in shown.items() if text]
    return "\n".join([*lines, *(["", "Loops over hidden units", *loops] if loops else [])])


def _loop(phase: Phase) -> str:
    """What is summed in a loop over the hidden units, and what is stored."""
    parts = [f"{len(phase.sums)} sums" if phase.sums else "", f"{len(phase.rows)} rows kept" if phase.rows else ""]
    parts.append(f"stores {', '.join(phase.outputs)}" if phase.outputs else "")
    return f"{phase.axis} {', '.join(filter(None, parts))}"


def kernels_table(schedule: Schedule) -> Table:
    """What each kernel is handed, and what a program takes of that."""
    rows = []
    for kernel in schedule.kernels.values():
        reads, writes = (", ".join(o.name for o in kernel.operands if getattr(o, way)) for way in ("reads", "writes"))
        taken = ", ".join(f"{axis}: {what}" for axis, what in kernel.takes.items())
        rows.append([kernel.name, reads, writes, taken])
    return ["kernel", "reads", "writes", "a program takes of"], rows


def launches_table(schedule: Schedule, problem: Problem, machine: Machine) -> Table:
    """The launches of every pass at given sizes: how often, in how many programs, and megabytes handed to all."""
    rows = []
    for one in schedule.passes:
        found = expanded(schedule, one, problem, machine)
        for kernel, times in Counter(launched.kernel for launched in found).items():
            own = [launched for launched in found if launched.kernel == kernel]
            size = sum(launched.bytes for launched in own) / 10**6
            grids = " or ".join(dict.fromkeys(" x ".join(map(str, launched.grid)) for launched in own))
            rows.append([one.name, kernel, str(times), grids, f"{size:,.1f}"])
    return ["pass", "kernel", "times", "programs", "MB"], rows


# -- as plain data ----------------------------------------------------------------------------------------------------


def plan_data(schedule: Schedule, problem: Problem, machine: Machine) -> dict[str, Any]:
    """The passes as plain data: buffers with where they live, statements in order, kernels, and launches in numbers."""
    return {
        "constants": dict(schedule.constants),
        "kernels": {name: _fields(kernel) for name, kernel in schedule.kernels.items()},
        "passes": {one.name: _pass(one) for one in schedule.passes},
        "launches": {
            one.name: [_launched(launched) for launched in expanded(schedule, one, problem, machine)]
            for one in schedule.passes
        },
    }


def _pass(one: Pass) -> dict[str, Any]:
    return {
        "buffers": [{**_fields(buffer), "lives": lifetimes(one)[buffer.name]} for buffer in buffers(one)],
        "routines": {routine.name: _plain(routine.body) for routine in routines(one.body)},
        "statements": _plain(one.body),
        "result": one.result,
    }


def _plain(value: Any) -> Any:
    """Statements as plain data; of kernels and routines, which stand elsewhere, the name."""
    if isinstance(value, Kernel | Routine):
        return value.name
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return {type(value).__name__.lower(): _fields(value)} if is_dataclass(value) else value


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}


def lifetimes(one: Pass) -> dict[str, tuple[int, int]]:
    """The first and the last statement that has a buffer, of all in order; those given are there at first."""
    found = {buffer.name: (0, 0) for buffer in one.given}
    for number, statement in enumerate(statements(one.body)):
        for name in _names(statement):
            found[name] = (found.get(name, (number, number))[0], number)
    return found


def _names(statement: Statement) -> Sequence[str]:
    match statement:
        case Make(made):
            return [buffer.name for buffer in made]
        case Compute(_, makes, reads, changes):
            return [*(buffer.name for buffer in makes), *reads, *changes]
        case Launch(kernel):
            return kernel.tensors
    return ()


def _launched(launched: Launched) -> dict[str, Any]:
    tensors = {name: {**_fields(tensor), "bytes": tensor.bytes} for name, tensor in launched.tensors.items()}
    return {**_fields(launched), "tensors": tensors, "bytes": launched.bytes}
