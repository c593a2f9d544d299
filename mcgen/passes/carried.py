"""Which parts of the state a walk over chunks has to carry."""

from __future__ import annotations

from collections.abc import Sequence

from mcgen.ir.program import Program


def carried(program: Program, state: Sequence[str], source: Program, read: str, written: str) -> tuple[str, ...]:
    """The parts of the state that a program reads, and those that these depend on from one chunk to the next.

    `source` makes each part for the next chunk; `read` and `written` say what a part is called as an input of the
    program and as an output of `source`: `{}` and `{}_next`, or going back `d_{}_next` and `d_{}`.
    """
    needed: list[str] = []
    while True:
        known = set(program.inputs)
        more = [name for name in state if read.format(name) in known and name not in needed]
        if not more:
            return tuple(name for name in state if name in needed)
        needed += more
        further = {f"+{name}": source.outputs[written.format(name)] for name in more}
        program = Program("carried", {**program.outputs, **further})
