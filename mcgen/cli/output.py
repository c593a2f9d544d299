"""What commands print: tables and JSON on standard output, diagnostics on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from mcgen.errors import Diagnostic

PIPED_WIDTH = 200
"""Width of a table that no terminal shows."""

Command = TypeVar("Command", bound=Callable[..., Any])
Item = TypeVar("Item")


def json_option(command: Command) -> Command:
    """The option `--json`, which every command with a table has; it arrives as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(command)


def print_json(value: Any) -> None:
    """Print plain data as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """Print rows of text under column heads; numbers are the caller's to format."""
    table = Table(*columns, title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH).print(table)


def in_progress(items: Sequence[Item], doing: str) -> Iterable[Item]:
    """The items, with a bar on standard error while they are gone through, where that is a terminal."""
    console = Console(stderr=True)
    return track(items, doing, transient=True, console=console) if console.is_terminal else items


_COLOURS = {"error": "bold red", "warning": "bold yellow"}


def show_diagnostics(diagnostics: Iterable[Diagnostic]) -> None:
    """Print diagnostics to standard error, in colour on a terminal."""
    console = Console(stderr=True, highlight=False)
    for diagnostic in diagnostics:
        console.print(_coloured(diagnostic) if console.is_terminal else Text(diagnostic.render()), soft_wrap=True)


def _coloured(diagnostic: Diagnostic) -> Text:
    """The rendered text with its headline, location and carets in colour."""
    text, colour = Text(diagnostic.render()), _COLOURS[diagnostic.severity]
    text.stylize(colour, 0, len(diagnostic.severity) + 1)
    text.stylize("bold", len(diagnostic.severity) + 1, len(diagnostic.headline))
    if diagnostic.line:
        text.stylize("cyan", len(diagnostic.headline), len(diagnostic.headline) + len(diagnostic.location) + 3)
        carets = text.plain.rindex("\n")
        text.stylize(colour, carets, len(text.plain))
    return text
