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
    """What checking one file found; `spec` is None where it cannot be read."""

    argument: str
    spec: Spec | None
    diagnostics: tuple[Diagnostic, ...]

    @property
    def ok(self) -> bool:
        return not any(diagnostic.severity == "error" for diagnostic in self.diagnostics)

    def plain(self) -> dict[str, Any]:
        """What every command says of it in JSON."""
        spec = self.spec if self.ok else None
        found = {"name": spec.name if spec else None, "digest": spec.digest() if spec else None}
        for severity in ("error", "warning"):
            found[f"{severity}s"] = [asdict(one) for one in self.diagnostics if one.severity == severity]
        return found


@click.command()
@click.argument("specs", nargs=-1, required=True)
@click.option("--parse-only", is_flag=True, help="Hold specs to the language alone, not to what `build` can lower.")
@json_option
def check(specs: tuple[str, ...], parse_only: bool, as_json: bool) -> int:
    """Validate specs, and nothing else: every error and warning of every file, and all that `build` would refuse.

    SPEC is a file, or the name of a shipped spec. Exit status 2 where any has an error.

    \b
    Example:
      mcgen check my_memory.yaml
      mcgen check --json specs/*.yaml
      mcgen check --parse-only my_idea.yaml
    """
    outcomes = [checked(argument, lowered=not parse_only) for argument in specs]
    if as_json:
        files = ((click.format_filename(one.argument), one) for one in outcomes)
        print_json([{"file": file, "ok": one.ok, **one.plain()} for file, one in files])
    else:
        for outcome in outcomes:
            _show(outcome)
    return 0 if all(outcome.ok for outcome in outcomes) else USER_ERROR


def checked(argument: str, lowered: bool = True) -> Outcome:
    """A spec, by file or name, with all that is to be said of it; `lowered` as in `examined`."""
    from mcgen.symbolic.diagnosis import diagnosis, examined

    try:
        spec = load(find(argument))
    except SpecError as error:
        return Outcome(argument, None, diagnosis(error, lowered))
    return Outcome(argument, spec, examined(spec, lowered))


def _show(outcome: Outcome) -> None:
    show_diagnostics(outcome.diagnostics)
    name = click.format_filename(outcome.argument)
    if outcome.ok:
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
