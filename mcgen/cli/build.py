"""`mcgen build`: from specs to generated modules."""

from __future__ import annotations

import difflib
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click

from mcgen.cli.check import Outcome, checked
from mcgen.cli.main import DOES_NOT_HOLD, DONE, USER_ERROR
from mcgen.cli.output import in_progress, json_option, print_json, show_diagnostics
from mcgen.errors import Diagnostic, SpecError, UnsupportedError, in_order
from mcgen.plan import configurations
from mcgen.plan.targets import lookup

SHOWN_LINES = 20
"""Lines of a difference that `--check` shows."""


@dataclass(frozen=True)
class Built(Outcome):
    """What became of one spec; `text` is the module it gives, None where there are errors."""

    path: Path | None = None
    text: str | None = None


@click.command()
@click.argument("specs", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default="generated",
    show_default=True,
    help="The folder to write to.",
)
@click.option(
    "--target",
    "target_names",
    multiple=True,
    help="A GPU the file is for, see `mcgen targets`; files carry every architecture's configurations.",
)
@click.option(
    "--tuned",
    is_flag=True,
    help="Write launch configurations into the files that `mcgen tune` found on this machine, too.",
)
@click.option("--check", is_flag=True, help="Write nothing; exit 1 where a file is not what its spec gives.")
@json_option
def build(
    specs: tuple[str, ...], output: Path, target_names: tuple[str, ...], tuned: bool, check: bool, as_json: bool
) -> int:
    """Compile specs to Python modules: DIR/NAME.py for each.

    SPEC is a file, or the name of a shipped spec. Where any is wrong nothing is written, and every error is shown.
    A file follows from its spec and from what comes with mcgen, and is the same on every machine; unless it is --tuned,
    and what --check holds it against then is tuned, too.

    \b
    Example:
      mcgen build linear_grm my_memory.yaml -o generated
      mcgen build --check my_memory.yaml
    """
    architectures = [lookup(name).architecture for name in target_names or configurations.SHIPPED]
    folder = _tuned_folder() if tuned else None
    each = in_progress(specs, "building")
    built = _without_clashes([_built(argument, output, architectures, tuned) for argument in each])
    wrong = any(one.text is None for one in built)
    if wrong:
        outcomes = ["error" if one.text is None else "not written" for one in built]
    else:
        outcomes = [_compared(one) for one in built] if check else _written(built)
    if as_json:
        tables = str(folder) if folder else None
        print_json([_plain(one, outcome, tables) for one, outcome in zip(built, outcomes, strict=True)])
    else:
        for one in built:
            show_diagnostics(one.diagnostics)
        _show(built, outcomes)
    if wrong:
        return USER_ERROR
    return DOES_NOT_HOLD if check and any(outcome != "holds" for outcome in outcomes) else DONE


def _tuned_folder() -> Path:
    """Where the user's launch configurations lie; says so. Raises UnsupportedError where there are none."""
    folder = configurations.user_folder()
    if not configurations.read(folder):
        raise UnsupportedError(f"no launch configurations lie in {folder}: `mcgen tune` keeps there what it finds")
    click.echo(f"with launch configurations from {folder}", err=True)
    return folder


def _built(argument: str, output: Path, architectures: Sequence[str], tuned: bool) -> Built:
    from mcgen import pipeline

    outcome = checked(argument)
    spec, found = outcome.spec, outcome.diagnostics
    if spec is None:
        return Built(argument, None, found)
    try:
        text = pipeline.source(spec, tuned)
    except (SpecError, UnsupportedError) as error:
        return Built(argument, None, in_order(found, error.diagnostics))
    warnings = (*found, *_default_tiles(argument, text, architectures))
    return Built(argument, spec, warnings, output / f"{spec.name}.py", text)


def _default_tiles(argument: str, text: str, architectures: Sequence[str]) -> tuple[Diagnostic, ...]:
    """A warning, where a file has nothing better than default tiles for some kernels on some architectures."""
    from mcgen.emit.triton.launching import lacking_text, without_configuration

    lacking = without_configuration(text, architectures)
    if not lacking:
        return ()
    message = f"{argument}: default tiles for {lacking_text(lacking)}; `mcgen tune {argument} --offline` finds better"
    return (Diagnostic("warning", message),)


def _without_clashes(built: Sequence[Built]) -> list[Built]:
    """The same, specs that would overwrite an earlier one's file turned into errors."""
    first: dict[str, Built] = {}
    found = []
    for one in built:
        other = first.setdefault(one.spec.name, one) if one.spec else one
        if other is not one:
            message = f"two specs are called `{other.spec.name}`: this one and {other.argument}"
            one = Built(one.argument, None, (Diagnostic("error", message, one.argument, hint="rename one"),))
        found.append(one)
    return found


def _compared(one: Built) -> str:
    if not one.path.exists():
        return "missing"
    return "holds" if one.path.read_bytes() == one.text.encode("utf-8") else "differs"


def _written(built: Iterable[Built]) -> list[str]:
    """Write what is not there yet; files are put in place only once all lie beside their places."""
    outcomes = ["unchanged" if _compared(one) == "holds" else "wrote" for one in built]
    changed = {one.path: one.text for one, outcome in zip(built, outcomes, strict=True) if outcome == "wrote"}
    write_whole(changed)
    return outcomes


def write_whole(texts: dict[Path, str]) -> None:
    """Write files whole or not at all: each to a temporary file in its folder, which then takes its place."""
    partial = {path: path.with_name(f".{path.name}.{uuid.uuid4().hex}") for path in texts}
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial[path].write_bytes(text.encode("utf-8"))
        for path in texts:
            os.replace(partial[path], path)
    finally:
        for leftover in partial.values():
            leftover.unlink(missing_ok=True)


def _show(built: Sequence[Built], outcomes: Sequence[str]) -> None:
    width = max(map(len, outcomes))
    for one, outcome in zip(built, outcomes, strict=True):
        click.echo(f"{outcome:<{width}}  {click.format_filename(one.path or one.argument)}")
        if outcome == "differs":
            click.echo("".join(_difference(one)), nl=False)


def _difference(one: Built) -> list[str]:
    """The first lines of the difference between a file and what its spec gives."""
    found = one.path.read_bytes().decode("utf-8", errors="backslashreplace").splitlines(keepends=True)
    names = str(one.path), f"{one.argument}, built"
    lines = difflib.unified_diff(found, one.text.splitlines(keepends=True), *names, n=1)
    shown = [line if line.endswith("\n") else f"{line}\n" for line in islice(lines, SHOWN_LINES + 1)]
    return [*shown[:SHOWN_LINES], "…\n"] if len(shown) > SHOWN_LINES else shown


def _plain(one: Built, outcome: str, tuned: str | None) -> dict[str, Any]:
    file = str(one.path) if one.path else None
    return {"spec": click.format_filename(one.argument), "status": outcome, "file": file, "tuned": tuned, **one.plain()}
