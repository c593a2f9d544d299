"""What can go wrong, by whose fault it is, and how it is shown."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning"]

SHOWN_WIDTH = 120
"""Longest piece of a source line that a diagnostic shows."""


@dataclass(frozen=True)
class Diagnostic:
    """One finding in a user's file. `line` and `column` count from 1, 0 where unknown; `length` is in characters."""

    severity: Severity
    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    source_line: str = ""
    length: int = 1
    hint: str = ""

    @property
    def location(self) -> str:
        """`file:line:column`, as far as it is known."""
        numbers = [str(number) for number in (self.line, self.column) if number]
        return ":".join([_printable(self.file), *numbers]) if self.file else ""

    @property
    def headline(self) -> str:
        return f"{self.severity}: {_printable(self.message)}"

    @property
    def sentence(self) -> str:
        """Message and hint, without the place."""
        return f"{self.message}: {self.hint}" if self.hint else self.message

    @property
    def excerpt(self) -> tuple[str, str]:
        """The source line, or the piece of it around the finding, and the carets that go under it."""
        start = max(0, self.column - 1)
        first = max(0, start - SHOWN_WIDTH // 2) if len(self.source_line) > SHOWN_WIDTH else 0
        shown = self.source_line[first : first + SHOWN_WIDTH]
        before = shown[: start - first]
        carets = max(1, min(self.length, len(shown) - len(before)))
        return _printable(shown), "".join(map(_padding, before)) + "^" * carets

    def render(self) -> str:
        """The finding as plain text: headline, location, source line, carets and hint."""
        hint = _printable(self.hint)
        lines = [self.headline]
        if self.location:
            lines.append(f"  {self.location}")
        if self.line:
            shown, carets = self.excerpt
            lines += [f"  {shown}", f"  {carets} {hint}".rstrip()]
        elif hint:
            lines.append(f"  {hint}")
        return "\n".join(lines)


class McgenError(Exception):
    """Every error that mcgen raises on purpose."""


class SpecError(McgenError):
    """The user's spec is wrong; `diagnostics` are all the findings, errors first to last.

    `rule` is the spec with what is wrong outside its rule left at its defaults, where the rule itself could be read.
    """

    def __init__(self, diagnostics: Sequence[Diagnostic] | Diagnostic, rule: Any = None) -> None:
        self.diagnostics = (diagnostics,) if isinstance(diagnostics, Diagnostic) else tuple(diagnostics)
        self.rule = rule
        super().__init__("\n".join(diagnostic.render() for diagnostic in self.diagnostics))


class UnsupportedError(McgenError, NotImplementedError):
    """What is valid but cannot be done; each finding says what would be accepted.

    `diagnostics` are the findings; one given as a text has no place in a file.
    """

    def __init__(self, *refused: Diagnostic | str) -> None:
        self.diagnostics = tuple(Diagnostic("error", one) if isinstance(one, str) else one for one in refused)
        super().__init__("\n".join(diagnostic.sentence for diagnostic in self.diagnostics))


class InternalError(McgenError):
    """A fault of mcgen's own, in `stage`; `dump` is where that stage's input lies, if it was written."""

    def __init__(self, message: str, stage: str, dump: str | None = None) -> None:
        self.stage, self.dump = stage, dump
        super().__init__(message)


def in_order(*found: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Findings together, each once, in the order of the text."""
    once = dict.fromkeys(diagnostic for findings in found for diagnostic in findings)
    return tuple(sorted(once, key=lambda diagnostic: (diagnostic.line, diagnostic.column)))


def _printable(text: str) -> str:
    """`text` with what a terminal could act on replaced: a user's file must not steer the terminal."""
    return "".join(c if c == "\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _padding(character: str) -> str:
    """What keeps a caret aligned below `character`."""
    if character == "\t":
        return "\t"
    return "  " if unicodedata.east_asian_width(character) in "WF" else " "
