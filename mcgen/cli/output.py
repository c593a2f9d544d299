"""What commands print: tables and JSON on standard output, diagnostics on standard error."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from textwrap import TextWrapper
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mcgen.errors import Diagnostic

if TYPE_CHECKING:  # rich is imported where something is printed with it: a build that has nothing to say needs none
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

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
    printer().print(table(columns, rows, title))


def printer(piped_width: int = PIPED_WIDTH) -> Console:
    """Standard output: as wide as the terminal, or as said where there is none."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else piped_width)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """Rows of text under column heads; a cell too wide for its column goes on below, all of it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title and Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(Text(column), overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


class _Wrapper(TextWrapper):
    """Breaks lines after operators, commas and brackets, too."""

    wordsep_simple_re = re.compile(r"(\s+)|(?<=[*/,(\[{])(?=\S)")


def wrapped(text: str, width: int) -> str:
    """Text with no line longer than `width`: what is longer goes on below, further in, broken at spaces if it can."""
    return "\n".join(piece for line in text.split("\n") for piece in _pieces(line, width))


def _pieces(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    margin = " " * min(len(line) - len(line.lstrip()) + 4, width // 2)
    how = {"width": width, "subsequent_indent": margin, "replace_whitespace": False, "break_on_hyphens": False}
    at_spaces = TextWrapper(**how, break_long_words=False).wrap(line)
    if all(len(piece) <= width for piece in at_spaces):
        return at_spaces
    return _Wrapper(**how).wrap(line)


def in_progress(items: Sequence[Item], doing: str) -> Iterable[Item]:
    """The items, with a bar on standard error while several are gone through, where that is a terminal."""
    if len(items) < 2:
        return items
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, doing, transient=True, console=console) if console.is_terminal else items


_COLOURS = {"error": "bold red", "warning": "bold yellow"}


def show_diagnostics(diagnostics: Iterable[Diagnostic]) -> None:
    """Print diagnostics to standard error, in colour on a terminal."""
    found = list(diagnostics)
    if not found:
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    for diagnostic in found:
        console.print(_coloured(diagnostic) if console.is_terminal else Text(diagnostic.render()), soft_wrap=True)


def _coloured(diagnostic: Diagnostic) -> Text:
    """The rendered text with its headline, location and carets in colour."""
    from rich.text import Text

    text, colour = Text(diagnostic.render()), _COLOURS[diagnostic.severity]
    text.stylize(colour, 0, len(diagnostic.severity) + 1)
    text.stylize("bold", len(diagnostic.severity) + 1, len(diagnostic.headline))
    if diagnostic.line:
        text.stylize("cyan", len(diagnostic.headline), len(diagnostic.headline) + len(diagnostic.location) + 3)
        carets = text.plain.rindex("\n")
        text.stylize(colour, carets, len(text.plain))
    return text
