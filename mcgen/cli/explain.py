"""`mcgen explain`: what the compiler understood of a spec, and did with it."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mcgen.cli.output import json_option, print_json, printer, show_diagnostics, table, wrapped
from mcgen.errors import UnsupportedError, in_order
from mcgen.spec import load
from mcgen.spec.shipped import find

if TYPE_CHECKING:
    from mcgen.symbolic.meaning import Meaning

PROBLEM = 1, 8192, 16
"""Batch, tokens and heads that launches are shown for."""
HTML_WIDTH = 150
PIPED_WIDTH = 120


@dataclass(frozen=True)
class Rows:
    """A table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Data:
    """What is in the JSON alone."""

    values: dict[str, Any]


Block = str | Rows | Data


Sections = Mapping[str, Sequence[Block]]
"""Texts and tables, in order, by the stage of the compiler that they are of."""


def _spec(meaning: Meaning, _: str) -> list[Block]:
    from mcgen.spec.text import spec_text

    return [spec_text(meaning.spec)]


def _recurrence(meaning: Meaning, _: str) -> list[Block]:
    from mcgen.symbolic import explanation

    found = meaning.recurrence
    return [
        "\n".join(explanation.recurrence_lines(meaning)),
        Rows("A and b: rows are slots after a token", *explanation.matrix_table(found)),
        Rows("Identities", *explanation.identity_table(meaning)),
        explanation.outcome_line(meaning),
    ]


def _closed_form(meaning: Meaning, _: str) -> list[Block]:
    from mcgen.symbolic.explanation import closed_form_lines

    return ["\n".join(closed_form_lines(meaning))]


def _ir(meaning: Meaning, _: str) -> list[Block]:
    from mcgen.emit.torch.path import REWRITES
    from mcgen.passes.report import history, report, rule_lines
    from mcgen.pipeline import tile_programs

    blocks: list[Block] = []
    for program in tile_programs(meaning):
        stages = list(history(program, REWRITES))
        blocks += [
            f"As built: {program}",
            "\n  ".join(["Rewrites that applied:", *rule_lines(stages)]),
            Rows(f"Rewrites of {program.name}", *report(stages)),
            f"Then: {stages[-1].program}",
        ]
    return blocks


def _plan(meaning: Meaning, target: str) -> list[Block]:
    from mcgen.emit.triton.path import machine
    from mcgen.plan.expansion import Problem
    from mcgen.plan.explanation import kernels_table, launches_table, plan_data, plan_text
    from mcgen.plan.plan import planned, scheduled
    from mcgen.plan.targets import lookup
    from mcgen.symbolic.meaning import lowerable

    lowerable(meaning)
    passes, gpu = planned(meaning), lookup(target)
    types = {**dict.fromkeys(meaning.spec.tensor_gates, "float32"), **dict.fromkeys("qkuv", "bfloat16")}
    how = scheduled(passes), Problem(*PROBLEM, types), machine(passes, gpu, "bfloat16")
    batch, length, heads = PROBLEM
    title = f"Launches on {gpu.name}, B = {batch}, T = {length}, H = {heads}, bfloat16"
    tables = [Rows("Kernels", *kernels_table(how[0])), Rows(title, *launches_table(*how))]
    return [plan_text(meaning), *tables, Data({"target": gpu.name, **plan_data(*how)})]


def _cost(meaning: Meaning, _: str) -> list[Block]:
    from mcgen.symbolic.cost import Cost, cost_table, sizes

    found, problem = Cost(meaning), sizes(meaning)
    units = {"flops": "FLOPs", "traffic": "Bytes moved", "state": "Numbers carried from call to call, float32"}
    shown = ", ".join(f"{symbol} = {value}" for symbol, value in sorted(problem.items(), key=lambda pair: str(pair[0])))
    tables = [Rows(title, *cost_table(found, what, problem)) for what, title in units.items()]
    return [f"Formulas, and their values for {shown}.", *tables]


STAGES: dict[str, tuple[str, Callable[[Meaning, str], list[Block]]]] = {
    "spec": ("Spec, its defaults filled in", _spec),
    "recurrence": ("Recurrence: x[t] = A[t] x[t-1] + b[t] G[t]", _recurrence),
    "closed-form": ("Closed form inside a chunk", _closed_form),
    "ir": ("Tile programs, before and after the rewrites", _ir),
    "plan": ("Plan", _plan),
    "cost": ("Cost", _cost),
}
"""Each stage's title and what makes its blocks, of a spec and for a target, in the compiler's order."""


@click.command()
@click.argument("spec")
@click.option("--stage", type=click.Choice(list(STAGES)), help="Show one stage; all of them without this option.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write one self-contained HTML file instead of printing.",
)
@click.option("--target", default="h200", show_default=True, help="The GPU that launches are shown for.")
@json_option
def explain(spec: str, stage: str | None, html: Path | None, target: str, as_json: bool) -> None:
    """Show what the compiler understood of SPEC and did with it, stage by stage.

    SPEC is a file, or the name of a shipped spec.

    \b
    Example:
      mcgen explain swla_grm --stage closed-form
      mcgen explain my_memory.yaml --html my_memory.html
    """
    from mcgen.symbolic.advice import advice
    from mcgen.symbolic.meaning import meaning

    understood = meaning(load(find(spec)))
    show_diagnostics(in_order(understood.spec.warnings, advice(understood)))
    sections = {name: _blocks(name, understood, target, stage is not None) for name in ([stage] if stage else STAGES)}
    if as_json:
        print_json({name: _plain(name, blocks) for name, blocks in sections.items()})
    elif html is None:
        _show(sections, printer(PIPED_WIDTH))
    else:
        html.write_text(_html(sections, understood.spec.name), encoding="utf-8", errors="backslashreplace")
        click.echo(f"wrote {click.format_filename(html)}")


def _blocks(stage: str, meaning: Meaning, target: str, alone: bool) -> Sequence[Block]:
    """What a stage shows; of one among all that a spec does not reach, why."""
    try:
        return STAGES[stage][1](meaning, target)
    except UnsupportedError as error:
        if alone:
            raise
        return [f"Not reached: {error}"]


def _plain(stage: str, blocks: Sequence[Block]) -> dict[str, Any]:
    """A section as plain data."""
    texts = [block for block in blocks if isinstance(block, str)]
    tables = [asdict(block) for block in blocks if isinstance(block, Rows)]
    data = {name: value for block in blocks if isinstance(block, Data) for name, value in block.values.items()}
    return {"title": STAGES[stage][0], "text": texts, "tables": tables, **data}


def _show(sections: Sections, console: Console) -> None:
    for stage, blocks in sections.items():
        console.print(Text(STAGES[stage][0], style="bold underline"))
        for block in (one for one in blocks if not isinstance(one, Data)):
            console.print(_shown(block, console.width), soft_wrap=True)
            console.print()


def _shown(block: Block, width: int) -> Table | Text:
    if isinstance(block, Rows):
        return table(block.columns, block.rows, block.title)
    return Text(wrapped(block.rstrip(), width))


def _html(sections: Sections, name: str) -> str:
    console = Console(record=True, file=io.StringIO(), width=HTML_WIDTH, highlight=False)
    console.print(Text(f"mcgen explain {name}", style="bold"))
    _show(sections, console)
    return console.export_html(inline_styles=True)
