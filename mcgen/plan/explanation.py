"""A plan in words and as plain data: what was chosen and why, what every pass does, and the launches at given sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from mcgen.passes.phases import Phase, Phases
from mcgen.plan.expansion import Launched, Machine, Problem, expanded
from mcgen.plan.host import (
    Buffer,
    Compute,
    Each,
    Kernel,
    Launch,
    Let,
    Make,
    Pass,
    Run,
    Statement,
    When,
    buffers,
    routines,
    statements,
)
from mcgen.plan.plan import planned
from mcgen.plan.schedule import Schedule
from mcgen.symbolic.meaning import Meaning

SCRATCH = "work"


def plan_text(meaning: Meaning) -> str:
    """The plan in words: each choice with the property it follows from and what it costs; then every pass."""
    passes = planned(meaning)
    lines = [f"{what}: {chosen}\n    {why}" for what, chosen, why in passes.choices()]
    for one in (passes.forward, passes.backward):
        lines += ["", one.name.capitalize(), *pass_lines(one)]
    loops = [f"  {name}: {text}" for name, program in passes.phased.items() if (text := _loops(Phases(program)))]
    return "\n".join([*lines, *(["", "Loops over hidden units", *loops] if loops else [])])


# -- passes in words --------------------------------------------------------------------------------------------------


def pass_lines(one: Pass) -> list[str]:
    """What a pass does, a statement a line; routines before it."""
    found = []
    for routine in routines(one.body):
        found += [f"  {routine.name.strip('_')} {' '.join(routine.parameters)}".rstrip(), *_said(routine.body, "    ")]
    return [*found, *_said(one.body, "  ")]


def _said(body: Iterable[Statement], indent: str) -> Iterator[str]:
    for statement in body:
        match statement:
            case Make(made):
                yield f"{indent}room for {'; '.join(map(_buffer, made))}"
            case Compute(line):
                yield indent + _plain(line.partition("  #")[0])
            case Let(targets, value):
                yield indent + _plain(f"{targets} = {value}")
            case When(test, then, otherwise):
                yield f"{indent}where {_plain(test)}"
                yield from _said(then, indent + "  ")
                if otherwise:
                    yield f"{indent}else"
                    yield from _said(otherwise, indent + "  ")
            case Each(targets, of, inner):
                yield f"{indent}for each {_plain(targets)} of {_plain(of)}"
                yield from _said(inner, indent + "  ")
            case Run(routine, arguments):
                yield f"{indent}{routine.name.strip('_')} {', '.join(arguments)}".rstrip()
            case Launch():
                yield indent + _launch(statement)


def _launch(launch: Launch) -> str:
    kernel = launch.kernel
    grid = " x ".join(_plain(size) for size in (launch.units, launch.tiles) if size)
    given = [operand for operand in kernel.operands if operand.name != SCRATCH]
    reads, writes = (", ".join(one.name for one in given if getattr(one, way)) for way in ("reads", "writes"))
    added = "".join(f"; parts of {part.name} added up" for part in launch.parts)
    return f"launch {kernel.name}, {grid}: reads {reads}; writes {writes}{added}"


def _buffer(buffer: Buffer) -> str:
    return f"{buffer.name} ({', '.join(map(str, buffer.shape))})"


def _plain(text: str) -> str:
    """Host code as it is said: without `x.`, and functions without their underscore."""
    return text.replace("x.", "").replace(", x)", ")").replace("_rows_at_once(", "rows(").replace(" _", " ").lstrip("_")


def _loops(phases: Phases) -> str:
    """The loops of a program: what is summed over the hidden units, and what is stored."""
    return "; ".join(map(_loop, phases.phases))


def _loop(phase: Phase) -> str:
    parts = [f"{len(phase.sums)} sums" if phase.sums else "", f"{len(phase.rows)} rows kept" if phase.rows else ""]
    parts.append(f"stores {', '.join(phase.outputs)}" if phase.outputs else "")
    return f"{phase.axis} {', '.join(filter(None, parts))}"


# -- as plain data ----------------------------------------------------------------------------------------------------


def passes_data(schedule: Schedule) -> dict[str, Any]:
    """The passes as plain data: buffers with where they live, statements in order, and the kernels launched."""
    return {
        "constants": dict(schedule.constants),
        "kernels": [_kernel(kernel) for kernel in schedule.kernels.values()],
        "passes": {one.name: _pass(one) for one in schedule.passes},
    }


def _kernel(kernel: Kernel) -> dict[str, Any]:
    operands = {one.name: one.access for one in kernel.operands}
    sizes = {"tables": kernel.tables, "numbers": kernel.numbers, "constants": kernel.constants}
    return {"kernel": kernel.name, "operands": operands, "takes": dict(kernel.takes), **sizes}


def _pass(one: Pass) -> dict[str, Any]:
    found = routines(one.body)
    return {
        "buffers": [{**_sized(buffer), "lives": lives} for buffer, lives in lifetimes(one)],
        "routines": {routine.name: [_data(s) for s in routine.body] for routine in found},
        "statements": [_data(statement) for statement in one.body],
        "result": one.result,
    }


def _sized(buffer: Buffer) -> dict[str, Any]:
    return {"buffer": buffer.name, "shape": list(buffer.shape), "type": buffer.type}


def lifetimes(one: Pass) -> list[tuple[Buffer, tuple[int, int]]]:
    """Every buffer of a pass with the first and the last statement that has it, of all in their order."""
    at: dict[str, tuple[int, int]] = {}
    for number, statement in enumerate(statements(one.body)):
        for name in _names(statement):
            at[name] = (at.get(name, (number, number))[0], number)
    return [(buffer, at[buffer.name]) for buffer in buffers(one) if buffer.name in at]


def _names(statement: Statement) -> list[str]:
    match statement:
        case Make(made):
            return [buffer.name for buffer in made]
        case Compute(_, makes, reads, changes):
            return [*(buffer.name for buffer in makes), *reads, *changes]
        case Launch(kernel):
            return kernel.tensors
    return []


def _data(statement: Statement) -> dict[str, Any]:
    match statement:
        case Make(made):
            return {"makes": [_sized(buffer) for buffer in made]}
        case Compute(line, makes):
            return {"computes": line, "makes": [_sized(buffer) for buffer in makes]}
        case Let(targets, value):
            return {"let": targets, "be": value}
        case When(test, then, otherwise):
            return {"when": test, "then": [*map(_data, then)], "else": [*map(_data, otherwise)]}
        case Each(targets, of, inner):
            return {"each": targets, "of": of, "do": [*map(_data, inner)]}
        case Run(routine, arguments):
            return {"run": routine.name, "with": list(arguments)}
        case Launch(kernel, units, tiles, room, parts, modes):
            grid = [size for size in (units, tiles) if size]
            added = [asdict(part) for part in parts]
            return {"launch": kernel.name, "grid": grid, "scratch": room, "parts": added, "modes": dict(modes)}


def launches_data(schedule: Schedule, problem: Problem, machine: Machine) -> dict[str, list[dict[str, Any]]]:
    """The launches of every pass at given sizes, with shapes and bytes."""
    return {one.name: [_launched(a) for a in expanded(schedule, one, problem, machine)] for one in schedule.passes}


def _launched(launched: Launched) -> dict[str, Any]:
    tensors = {
        name: {"shape": list(tensor.shape), "type": tensor.type, "bytes": tensor.bytes}
        for name, tensor in launched.tensors.items()
    }
    options = {"warps": launched.warps, "stages": launched.stages}
    sizes = {"grid": list(launched.grid), "bytes": launched.bytes}
    return {"kernel": launched.kernel, **sizes, "tensors": tensors, "constants": dict(launched.constants), **options}
