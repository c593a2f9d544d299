"""`mcgen check`: validate specs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import click

from mcgen.cli.main import USER_ERROR
from mcgen.cli.output import json_option, print_json, show_diagnostics
from mcgen.errors import Diagnostic, SpecError
from mcgen.spec import Spec, load
from mcgen.spec.shipped import find


@dataclass(frozen=True)
class Outcome:
    """What checking one file found; `spec` is None where there are errors."""

    argument: str
    spec: Spec | None
    diagnostics: tuple[Diagnostic, ...]


@click.command()
@click.argument("specs", nargs=-1, required=True)
@json_option
def check(specs: tuple[str, ...], as_json: bool) -> int:
    """Validate specs, and nothing else: every error and warning of every file.

    SPEC is a file, or the name of a shipped spec. Exit status 2 where any has an error.

    \b
    Example:
      mcgen check my_memory.yaml
      mcgen check --json specs/*.yaml
    """
    outcomes = [_checked(argument) for argument in specs]
    if as_json:
        print_json([_plain(outcome) for outcome in outcomes])
    else:
        for outcome in outcomes:
            _show(outcome)
    return 0 if all(outcome.spec for outcome in outcomes) else USER_ERROR


def understand(argument: str) -> Spec:
    """A spec that holds all that `check` asks of one.

    Raises:
        SpecError: it does not.
    """
    from mcgen.symbolic.meaning import meaning

    spec = load(find(argument))
    meaning(spec)
    return spec


def _checked(argument: str) -> Outcome:
    try:
        spec = understand(argument)
    except SpecError as error:
        from mcgen.symbolic.diagnosis import diagnosis

        return Outcome(argument, None, diagnosis(error))
    return Outcome(argument, spec, spec.warnings)


def _show(outcome: Outcome) -> None:
    show_diagnostics(outcome.diagnostics)
    name = click.format_filename(outcome.argument)
    if outcome.spec:
        click.echo(f"ok     {name}: {summary(outcome.spec)}")
    else:
        errors = sum(diagnostic.severity == "error" for diagnostic in outcome.diagnostics)
        click.echo(f"wrong  {name}: {errors} error{'s' * (errors != 1)}")


def summary(spec: Spec) -> str:
    """A spec in one line: memory, recurrence, how it is read."""
    steps = "; ".join(step.text for step in spec.steps)
    size = f" of {spec.segment.size}" if spec.segment.size else ""
    read = spec.aggregate.kind + (f" top {spec.aggregate.top_k}" if spec.aggregate.top_k else "")
    return f"{spec.name}, {spec.memory.kind}, {steps}, {read} over {spec.segment.mode} segments{size}"


def _plain(outcome: Outcome) -> dict[str, Any]:
    spec, by_severity = outcome.spec, {"error": [], "warning": []}
    for diagnostic in outcome.diagnostics:
        by_severity[diagnostic.severity].append(asdict(diagnostic))
    return {
        "file": click.format_filename(outcome.argument),
        "ok": spec is not None,
        "name": spec.name if spec else None,
        "digest": spec.digest() if spec else None,
        "errors": by_severity["error"],
        "warnings": by_severity["warning"],
    }
