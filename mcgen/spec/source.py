"""Positions: where a value stands in the user's file, and diagnostics that point at it."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

from mcgen.errors import Diagnostic, Severity
from mcgen.spec.grammar import Span

_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")


@dataclass(frozen=True)
class Source:
    """The text of one file and its name."""

    file: str
    text: str

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *(match.end() for match in _LINE_BREAK.finditer(self.text))]

    def place(self, index: int) -> tuple[int, int]:
        """Line and column, from 1, of the character at `index`."""
        line = bisect_right(self._starts, index)
        return line, index - self._starts[line - 1] + 1

    def line(self, number: int) -> str:
        """Line `number`, from 1, without its line break."""
        end = self._starts[number] if number < len(self._starts) else len(self.text)
        return _LINE_BREAK.sub("", self.text[self._starts[number - 1] : end])

    def diagnose(
        self, index: int, message: str, *, length: int = 1, hint: str = "", severity: Severity = "error"
    ) -> Diagnostic:
        line, column = self.place(index)
        text = self.line(line)
        length = max(1, min(length, len(text) - column + 1))
        return Diagnostic(severity, message, self.file, line, column, text, length, hint)


@dataclass(frozen=True)
class Position:
    """Where a value stands: characters `start` to `end` of its file.

    `offsets[i]` is the place in the file of the value's i-th character, so that a `Span` within the value can be shown
    at the right column whatever quotes, escapes and folded lines lie between. None: show the whole value.
    """

    source: Source
    start: int
    end: int
    offsets: tuple[int, ...] | None = None

    @property
    def place(self) -> tuple[int, int]:
        """Line and column, from 1, of its first character."""
        return self.source.place(self.start)

    def diagnose(
        self, message: str, span: Span | None = None, hint: str = "", severity: Severity = "error"
    ) -> Diagnostic:
        """A diagnostic at `span` of this value's text, or at the whole value."""
        start, length = self._extent(span)
        return self.source.diagnose(start, message, length=length, hint=hint, severity=severity)

    def _extent(self, span: Span | None) -> tuple[int, int]:
        if span is None or not self.offsets:
            return self.start, self.end - self.start
        last = len(self.offsets) - 1
        first = self.offsets[min(span.offset, last)]
        return first, self.offsets[min(span.offset + max(span.length, 1) - 1, last)] - first + 1


_ESCAPES = {"0": "\0", "a": "\a", "b": "\b", "t": "\t", "\t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r"}
_ESCAPES |= {"e": "\x1b", " ": " ", '"': '"', "\\": "\\", "/": "/"}
_ESCAPES |= {"N": "\x85", "_": "\xa0", "L": "\u2028", "P": "\u2029"}
_HEX_LENGTHS = {"x": 2, "u": 4, "U": 8}
_PROPERTIES = re.compile(r"(?:[&!]\S*\s+)*")
_SKIPPED = re.compile(r"\s*")
_SKIPPED_QUOTED = re.compile(r"(?:\s|\\(?:\r\n|[\n\r\x85\u2028\u2029]))*")
_BLOCK_HEADER = re.compile(r"[|>][^\r\n]*(?:\r\n|\n|\r)?")


def scalar_position(source: Source, start: int, end: int, style: str | None, value: str) -> Position:
    """The position of a YAML scalar of this style (None, `'`, `"`, `|` or `>`) between `start` and `end`.

    Whatever the style does to white space, it keeps all other characters in order: those are matched one by one.
    """
    text, offsets = source.text, []
    start = _PROPERTIES.match(text, start, end).end()
    index = _content_start(text, start, style)
    skipped = _SKIPPED_QUOTED if style == '"' else _SKIPPED
    for character in value:
        index = skipped.match(text, index, end).end()
        width = _matched(text, index, style, character)
        if not width and not character.isspace():
            return Position(source, start, end)
        offsets.append(min(index, end - 1))
        index += width
    return Position(source, start, end, tuple(offsets))


def _content_start(text: str, start: int, style: str | None) -> int:
    """Past the quote, or the line that opens a block."""
    if style in ("|", ">"):
        header = _BLOCK_HEADER.match(text, start)
        return header.end() if header else start
    return start + 1 if style else start


def _matched(text: str, index: int, style: str | None, character: str) -> int:
    """How many characters of the file at `index` stand for `character`; 0 if they do not."""
    if style == '"' and text[index : index + 1] == "\\":
        code = text[index + 1 : index + 2]
        if code in _HEX_LENGTHS:
            width = 2 + _HEX_LENGTHS[code]
            return width if int(text[index + 2 : index + width], 16) == ord(character) else 0
        return 2 if _ESCAPES.get(code) == character else 0
    if style == "'" and text.startswith("''", index) and character == "'":
        return 2
    return int(text[index : index + 1] == character)
