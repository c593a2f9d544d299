"""The host code of a generated file: a schedule's passes as Python, and the functions that these call."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Iterable

from mcgen.emit.text.called import called, definitions
from mcgen.emit.text.rendering import render
from mcgen.emit.triton.launching import Launching, by_type
from mcgen.plan import tokens
from mcgen.plan.configurations import tile
from mcgen.plan.host import (
    Buffer,
    Compute,
    Each,
    Launch,
    Let,
    Make,
    Part,
    Pass,
    Routine,
    Run,
    Size,
    Statement,
    When,
    routines,
)
from mcgen.plan.schedule import Schedule

NAMED = ("CHUNK", "STATE", "MEMORY", "ROWS", "SPAN", "BAND", "BN")
"""Constants that statements call by their names."""
MEANT = {
    "CHUNK": "tokens of a gradient chunk",
    "STATE": "numbers of a state",
    "MEMORY": "numbers of the memory's parameters",
    "ROWS": "numbers of rows that pass between a kernel's loops",
    "SPAN": "tokens that go through a layer at once, at most",
    "BAND": "weights of segments that are kept at once, for each token",
    "BN": "segments whose logits are one product",
}
PIECES = (
    "by_length",
    "layout",
    "steps",
    "in_flight",
    "shares",
    "bands",
    "configurations",
    "architecture",
    "tiles",
    "parts",
    "launch",
    "given",
    "saved",
    "going_on",
    "choices",
    "weights",
    "records",
    "unlagged",
    "gradients",
)
"""The templates of functions, in the order of the file."""
LENGTHS = {"n_blocks": "_pieces(T, BLOCK)", "n_segments": "_segment_count(T)"}
"""Sizes of what is saved that follow from the length, which may be symbolic."""
LENGTHS_FROM = {
    "n_blocks": "_pieces_from(offset, T - lead, BLOCK) if place else _pieces(T, BLOCK)",
    "n_segments": "_segment_count(T - lead + offset)",
}
"""The same where tokens may follow others."""
REQUIRED = "_require_triton"
"""What the rest of the file calls besides the passes."""


def host_source(schedule: Schedule, known: Launching) -> str:
    """The text that defines `_run_forward_triton`, `_run_backward_triton` and `_saved_triton`."""
    shared = routines([statement for one in schedule.passes for statement in one.body])
    passes = [*(_routine(schedule, one) for one in shared), *(_printed(schedule, one) for one in schedule.passes)]
    functions = called(_functions(schedule, known), " ".join([*passes, REQUIRED]))
    return "\n\n\n".join([_constants(schedule), *functions, *passes])


# -- constants and functions ------------------------------------------------------------------------------------------


def _constants(schedule: Schedule) -> str:
    given = {name: schedule.constants[name] for name in NAMED if name in schedule.constants}
    return "\n".join(f"{name} = {value}  # {MEANT[name]}" for name, value in given.items())


def _functions(schedule: Schedule, known: Launching) -> list[str]:
    """All functions that host code may call, in the order of a file, and the constants that they read."""
    kernels, state = schedule.kernels.values(), schedule.state
    lengths = LENGTHS if state is None else dict(LENGTHS_FROM)
    if state and state.banked:
        lengths["n_segments"] = f"before + {lengths['n_segments']}"
    sizes = "B, T, H, place" if state else "B, T, H"
    values = {
        "state": state,
        "sources": _names(state.sources) if state else "",
        "packed": schedule.flies,
        "places": {name: at for name, at in schedule.places.items() if state and name in state.parts},
        "pool_apart": bool(schedule.flies and state and "pool" in state.parts and "pool" not in schedule.places),
        "layers": len(state.memory) if state else 0,
        "pools": bool(state and "pools" in state.bank),
        "mean_pool": schedule.mean_pool,
        "chained": schedule.chained,
        "block": schedule.block,
        "constants": {name: name if name in NAMED else repr(n) for name, n in schedule.constants.items()},
        "least_rows": schedule.least_rows,
        "axes": {kernel.name: kernel.axis for kernel in kernels},
        "whole": {kernel.name: tile(schedule.constants["F"]) for kernel in kernels if kernel.whole},
        "configurations": known.configurations,
        "defaults": by_type(schedule.defaults),
        "digests": known.digests,
        "stepping": tuple(kernel.name for kernel in kernels if kernel.rows),
        "lengths": [f"{name} = {n}" for name, n in lengths.items() if any(name in one.shape for one in schedule.saved)],
        "rooms": {one.name: ", ".join(_length(schedule, size, "") for size in one.shape) for one in schedule.saved},
        "saved": [f"_buffer(_rooms_triton({sizes}), q, torch.float32)", *_choices(schedule)],
    }
    launch = "launch_in_flight" if schedule.flies else "launch_on_grid"
    first, *names = (launch if name == "launch" else name for name in PIECES)
    printed = lambda name: definitions(render(f"triton/host/{name}.py.jinja", **values))  # noqa: E731
    return [*printed(first), *functions_of_tokens(), *(piece for name in names for piece in printed(name))]


def _choices(schedule: Schedule) -> list[str]:
    shapes = (", ".join(_length(schedule, size, "") for size in one.shape) for one in schedule.choices)
    return [f"q.new_empty(({shape}), dtype=torch.int32)" for shape in shapes]


@functools.cache
def functions_of_tokens() -> tuple[str, ...]:
    """The functions of `mcgen.plan.tokens` as generated files have them: named with an underscore, not annotated."""
    functions = [one for _, one in inspect.getmembers(tokens, inspect.isfunction) if one.__module__ == tokens.__name__]
    names = "|".join(one.__name__ for one in functions)
    calls = re.compile(rf"\b({names})\(")
    ordered = sorted(functions, key=lambda one: one.__code__.co_firstlineno)
    return tuple(calls.sub(r"_\1(", _without_annotations(inspect.getsource(one))).strip() for one in ordered)


def _without_annotations(function: str) -> str:
    """The text of a function on whose first line all annotations stand."""
    (node,) = ast.parse(function).body
    first, rest = function.split("\n", 1)
    ends = [(argument.col_offset + len(argument.arg), argument.end_col_offset) for argument in node.args.args]
    cuts = [*ends, (first.rindex(")") + 1, node.returns.end_col_offset)]
    for begin, end in reversed(cuts):
        first = first[:begin] + first[end:]
    return f"{first}\n{rest}"


# -- passes -----------------------------------------------------------------------------------------------------------


def _printed(schedule: Schedule, one: Pass) -> str:
    back, goes_on = one.name == "backward", schedule.state is not None
    names = ["tensors", *(["saved", "d_y"] if back else []), *(["d_after=()"] if back and goes_on else [])]
    arguments = ", ".join([*names, *(["place=()"] if goes_on else [])])
    given = f"x = _given(tensors{', place' if goes_on else ''})"
    body = [given, *_lines(schedule, one.body), f"return {one.result}"]
    return _function(f"_run_{one.name}_triton({arguments})", one.doc, body)


def _names(names: Iterable[str]) -> str:
    """The inside of a tuple of names."""
    return "".join(f'"{name}", ' for name in names).rstrip()


def _routine(schedule: Schedule, routine: Routine) -> str:
    head = f"{routine.name}({', '.join(['x', *routine.parameters])})"
    return _function(head, routine.doc, _lines(schedule, routine.body))


def _function(head: str, doc: str, body: Iterable[str]) -> str:
    return "\n".join([f"def {head}:", f'    """{doc}"""', *_indented(body)])


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _lines(schedule: Schedule, body: Iterable[Statement]) -> list[str]:
    return [line for statement in body for line in _statement(schedule, statement)]


def _statement(schedule: Schedule, statement: Statement) -> list[str]:
    match statement:
        case Make(buffers):
            return [_made(schedule, buffer) for buffer in buffers]
        case Compute(line):
            return [line]
        case Let(targets, value):
            return [f"{targets} = {value}"]
        case When(test, then, otherwise):
            other = ["else:", *_indented(_lines(schedule, otherwise))] if otherwise else []
            return [f"if {test}:", *_indented(_lines(schedule, then)), *other]
        case Each(targets, of, inner):
            return [f"for {targets} in {of}:", *_indented(_lines(schedule, inner))]
        case Run(routine, arguments):
            return [f"{routine.name}({', '.join(['x', *arguments])})"]
        case Launch():
            return [_launch(statement)]


def _made(schedule: Schedule, buffer: Buffer) -> str:
    shape = ", ".join(_length(schedule, size, "x.") for size in buffer.shape)
    own = "" if buffer.type == "float32" else f", dtype=x.{buffer.type}.dtype"
    return f"x.{buffer.name} = _new(x, {shape}{own})"


def _length(schedule: Schedule, size: Size, prefix: str) -> str:
    """A length as host code has it: a number or the name of one, with a prefix where calls differ in it."""
    if size in NAMED or size == "TOP_K":
        return str(size)
    return str(schedule.constants[size]) if size in schedule.constants else f"{prefix}{size}"


def _launch(launch: Launch) -> str:
    parts = "".join(f'("{part.name}", {_count(part)}, {part.axis}), ' for part in launch.parts)
    arguments = [
        f"{launch.kernel.name}_kernel, x, {launch.units}",
        *([launch.tiles] if launch.tiles else []),
        *([f"room={launch.room}"] if launch.room is not None else []),
        *([f"parts=({parts.rstrip()})"] if parts else []),
        *(["apart=True"] if launch.apart else []),
        *(f"{name}={value}" for name, value in launch.modes.items()),
    ]
    return f"_launch({', '.join(arguments)})"


def _count(part: Part) -> str:
    return f"{part.count} if {part.test} else 1" if part.test else part.count
