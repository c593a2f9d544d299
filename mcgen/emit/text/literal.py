"""Users' text and plain data as Python source, laid out as a formatter leaves it; no text ends the string it is in."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Any

from mcgen.emit.text.expressions import LINE_LENGTH

INDENT = 4
UNICODE = unicodedata.ucd_3_2_0
"""The characters of the Unicode that every Python knows: its own, newer one, differs from version to version."""
SHOWN_AS_IT_IS = ("L", "N", "P", "S", "Zs")
"""Categories, or initials of categories, of characters that stand for themselves; the others are escaped."""
PICTURES = 0x2300
"""Where symbols begin, after the mathematical operators, that newer Unicodes make wider: they are escaped."""


def literal(value: Any) -> str:
    """A dict, at the left margin, one key a line; what is in it on as few lines as it needs."""
    return "\n".join(_exploded(value, 0, "", ""))


def docstring_lines(text: str, room: int) -> list[str]:
    """Text as lines of a docstring, up to `room` columns each, that mean the text with its spaces evened out."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.splitlines())
    pieces = ([*map(_piece, _without_triple_quotes(paragraph))] for paragraph in paragraphs)
    return ["".join(chunk).rstrip() for paragraph in pieces for chunk in _chunks(paragraph, room)]


def _without_triple_quotes(text: str) -> Iterator[str]:
    """The characters of a text, the third of three double quotes with a backslash."""
    for i, character in enumerate(text):
        yield r"\"" if text[max(0, i - 2) : i + 1] == '"""' else character


def _width(text: str) -> int:
    """Columns that a line of text takes."""
    return sum(2 if UNICODE.east_asian_width(c) in "WF" else 1 for c in text)


def _shows(character: str) -> bool:
    """Whether a character can stand for itself: it is printed, and takes one column or two whatever is beside it."""
    if character.isascii():
        return character.isprintable()
    code, category = ord(character), UNICODE.category(character)
    plain = code <= 0xFFFF and (code < PICTURES or not category.startswith("S"))
    return plain and character.isprintable() and category.startswith(SHOWN_AS_IT_IS)


def _lines(value: Any, indent: int, before: str, after: str) -> Iterator[str]:
    """`before`, the value and `after`, from column `indent`: on one line if it fits."""
    line = f"{' ' * indent}{before}{_inline(value)}{after}"
    if _width(line) <= LINE_LENGTH:
        yield line
    elif isinstance(value, str) and value:
        yield from _text(value, indent, before, after)
    else:
        yield from _exploded(value, indent, before, after)


def _inline(value: Any) -> str:
    if isinstance(value, str):
        return _quoted([*map(_piece, value)])
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_inline(key)}: {_inline(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    return repr(value).replace("e+", "e")


def _exploded(value: Any, indent: int, before: str, after: str) -> Iterator[str]:
    if not isinstance(value, dict | list) or not value:
        yield f"{' ' * indent}{before}{_inline(value)}{after}"
        return
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    yield f"{' ' * indent}{before}{opening}"
    entries = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    for key, item in entries:
        yield from _lines(item, indent + INDENT, "" if key is None else f"{_inline(key)}: ", ",")
    yield f"{' ' * indent}{closing}{after}"


def _text(value: str, indent: int, before: str, after: str) -> Iterator[str]:
    """A string on lines of its own, broken after spaces where there are some."""
    room = LINE_LENGTH - indent - INDENT
    chunks = [_inline(value)]
    if _width(chunks[0]) > room:
        chunks = [_quoted(chunk) for chunk in _chunks([*map(_piece, value)], room - 2)]
    yield f"{' ' * indent}{before}("
    yield from (" " * (indent + INDENT) + chunk for chunk in chunks)
    yield f"{' ' * indent}){after}"


def _piece(character: str) -> str:
    """A character as it stands between quotes, apart from quotes."""
    if character == "\\":
        return r"\\"
    return character if _shows(character) else character.encode("unicode_escape").decode()


def _quoted(pieces: list[str]) -> str:
    """Pieces between double quotes, or between single ones where fewer then need a backslash."""
    quote = "'" if pieces.count('"') > pieces.count("'") else '"'
    return quote + "".join(f"\\{piece}" if piece == quote else piece for piece in pieces) + quote


def _chunks(pieces: list[str], room: int) -> Iterator[list[str]]:
    """The pieces in runs of up to `room` columns, quotes reckoned as two."""
    start = 0
    while start < len(pieces):
        stop = _reach(pieces, start, room)
        space = next((i for i in range(stop, start, -1) if pieces[i - 1] == " "), 0)
        stop = space if space and stop < len(pieces) else stop
        yield pieces[start:stop]
        start = stop


def _reach(pieces: list[str], start: int, room: int) -> int:
    stop = start
    while stop < len(pieces):
        room -= 2 if pieces[stop] in ("'", '"') else _width(pieces[stop])
        if room < 0:
            break
        stop += 1
    return max(stop, start + 1)
