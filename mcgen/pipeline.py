"""From a spec file to a source file, a stage a line: the table of contents of the compiler."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from mcgen.dump import Dump, tabulated
from mcgen.emit.module.file import module_source
from mcgen.emit.torch.path import CHUNK, READS, REWRITES, TorchPath
from mcgen.errors import InternalError
from mcgen.ir import aggregate
from mcgen.ir.program import Program
from mcgen.ir.step import step, step_vjp
from mcgen.passes.report import Stage, history, report, rule_lines
from mcgen.plan.explanation import plan_text
from mcgen.spec import Spec
from mcgen.spec.text import spec_text
from mcgen.symbolic.cost import Cost, cost_table, sizes
from mcgen.symbolic.explanation import closed_form_lines, outcome_line, recurrence_lines
from mcgen.symbolic.meaning import Meaning, lowerable, meaning


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for cycles of dead objects meanwhile: it would take a fifth of a build's time, and finds hardly any."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_uncollected()
def source(spec: Spec, tuned: bool = False) -> str:
    """The text of a spec's module: of the spec and what comes with mcgen alone, unless `tuned`.

    Where it is, launch configurations that `mcgen tune` left in the user's tables come first. Every stage's output is
    dumped, if MCGEN_DUMP asks.

    Raises:
        SpecError: the rule is wrong; every fault in it is in the error.
        UnsupportedError: the spec is valid but cannot be lowered; the message says what would be accepted.
    """
    dump = Dump.of(spec.name)
    dump("spec", lambda: spec_text(spec))
    understood = meaning(spec)
    _dump_symbolic(dump, understood)
    lowerable(understood)
    _dump_programs(dump, understood)
    dump("plan", lambda: plan_text(understood))
    text = module_source(understood, tuned)
    dump("module", lambda: text)
    return text


def tile_programs(meaning: Meaning) -> list[Program]:
    """The tile programs that a spec is made of, as they are built: the chunk step, the reads, and their derivatives.

    Raises:
        UnsupportedError: it cannot be lowered.
    """
    lowerable(meaning)
    anchored, reading = meaning.anchored(CHUNK), TorchPath(meaning).reading
    how = {"anchored": True} if anchored and reading == "soup" else {}
    both = aggregate.program, aggregate.program_vjp
    reads = [program(make, meaning, **how) for make in READS.get(reading, ()) for program in both]
    return [step(meaning, anchored=anchored), step_vjp(meaning, anchored=anchored), *reads]


def _dump_symbolic(dump: Dump, meaning: Meaning) -> None:
    dump("recurrence", lambda: "\n".join([*recurrence_lines(meaning), "", outcome_line(meaning)]))
    dump("closed-form", lambda: "\n".join(closed_form_lines(meaning)))
    dump("cost", lambda: "\n\n".join(_cost_tables(meaning)))


def _dump_programs(dump: Dump, meaning: Meaning) -> None:
    for program in tile_programs(meaning) if dump.folder else ():
        stages = list(_dumped(dump, program))
        dump(f"{program.name} rewrites", partial(_table, stages))


def _dumped(dump: Dump, program: Program) -> Iterator[Stage]:
    """A program's history, every stage of it dumped before the next is made, which may find it at fault."""
    try:
        for stage in history(program, REWRITES):
            if stage.used or not stage.rule:
                after = f"after {stage.rule.name}" if stage.rule else "as built"
                dump(f"{program.name} {after}", partial(str, stage.program))
            yield stage
    except InternalError as error:
        error.dump = str(dump.last)
        raise


def _table(stages: list[Stage]) -> str:
    return "\n".join([*rule_lines(stages), "", tabulated(*report(stages))])


def _cost_tables(meaning: Meaning) -> list[str]:
    return [tabulated(*cost_table(Cost(meaning), what, sizes(meaning))) for what in ("flops", "traffic", "state")]
