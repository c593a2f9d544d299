"""Source text laid out as a formatter would leave it, so that generated files need none.

Templates and printers write a statement on one line. What is too long is broken here: at the commas of its last bracket
that helps, or, in parentheses of its own, at its operators of least precedence; elements that fit on one line together
stay together. Statements that were written over several lines are left as they are.
"""

from __future__ import annotations

import io
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mcgen.emit.expressions import LINE_LENGTH

INDENT = 4
OPENING, CLOSING = "([{", ")]}"

PRECEDENCES = (
    ("if", "else"),
    ("or",),
    ("and",),
    ("in", "not", "is", "<", ">", "<=", ">=", "==", "!="),
    ("|",),
    ("^",),
    ("&",),
    ("<<", ">>"),
    ("+", "-"),
    ("*", "/", "//", "%", "@"),
    ("**",),
)
ASSIGNMENTS = ("=", "+=", "-=", "*=", "/=", "|=", "&=", "@=")
COMPOUND = ("if", "elif", "while", "for", "with")

DEFINITIONS = ("@", "def ", "class ")


def laid_out(text: str) -> str:
    """The same program in lines of up to 120 columns, with two blank lines before functions and classes.

    No docstring in it may have a line that begins like a definition.
    """
    return _short_lines(_spaced(text.strip().splitlines()))


def _spaced(lines: Sequence[str]) -> str:
    """Lines with two blank ones, and never more, before each definition and what stands right above it."""
    spaced: list[str] = []
    for i, line in enumerate(lines):
        if not line and spaced[-2:] == ["", ""]:
            continue
        attached = bool(spaced) and spaced[-1].startswith(("@", "#"))
        if spaced and not attached and _leads_to_definition(lines, i):
            while spaced[-1] == "":
                spaced.pop()
            spaced += ["", ""]
        spaced.append(line)
    return "\n".join(spaced) + "\n"


def _leads_to_definition(lines: Sequence[str], i: int) -> bool:
    """Whether a line begins a definition, or a comment right above one."""
    while lines[i].startswith("#") and i + 1 < len(lines):
        i += 1
    return lines[i].startswith(DEFINITIONS)


def _short_lines(text: str) -> str:
    lines = text.splitlines()
    if max(map(len, lines), default=0) <= LINE_LENGTH:
        return text
    for first, last in reversed(list(_statements(text))):
        rows = lines[first : last + 1]
        if max(map(len, rows)) > LINE_LENGTH:
            statement = _joined(rows)
            lines[first : last + 1] = _with_comment(statement, len(rows[0]) - len(rows[0].lstrip()))
    return "\n".join(lines) + "\n"


def _statements(text: str) -> Iterator[tuple[int, int]]:
    """First and last row of every statement that may be laid out anew: those with no long text or comment inside."""
    first, fixed, before = None, False, None
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NEWLINE:
            if not fixed:
                yield first - 1, token.start[0] - 1
            first, fixed = None, False
        elif first is not None:
            fixed |= token.start[0] != token.end[0] or (token.type == tokenize.NL and before == tokenize.COMMENT)
        elif token.type not in (tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT):
            first, fixed = token.start[0], token.start[0] != token.end[0]
        before = token.type


def _joined(rows: Sequence[str]) -> str:
    """A statement on one line."""
    text = rows[0].strip()
    for row in map(str.strip, rows[1:]):
        text += row if text[-1] in OPENING or row[0] in CLOSING else f" {row}"
    return text


def _with_comment(text: str, indent: int) -> list[str]:
    """The lines of a statement, a comment at its end on a line before it."""
    comment = next((token for token in _tokens(text) if token.text.startswith("#")), None)
    if comment is None:
        return _statement(text, indent)
    statement = text[: comment.start].rstrip()
    return [" " * indent + comment.text, *_statement(statement, indent)]


@dataclass(frozen=True)
class Token:
    """A token of a line; `depth` is how many brackets it stands in, brackets standing outside themselves."""

    text: str
    start: int
    stop: int
    depth: int
    is_word: bool


def _tokens(text: str) -> list[Token]:
    tokens, depth = [], 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NEWLINE, tokenize.NL, tokenize.ENDMARKER):
            break
        depth -= token.string in CLOSING and token.type == tokenize.OP
        word = token.type in (tokenize.NAME, tokenize.NUMBER, tokenize.STRING)
        tokens.append(Token(token.string, token.start[1], token.end[1], depth, word))
        depth += token.string in OPENING and token.type == tokenize.OP
    return tokens


def _top(text: str) -> list[Token]:
    return [token for token in _tokens(text) if token.depth == 0]


def _fits(text: str, indent: int) -> bool:
    return indent + len(text) <= LINE_LENGTH


def _statement(text: str, indent: int) -> list[str]:
    """The lines of a statement: what comes before its value, the value, and the colon of a compound one."""
    if _fits(text, indent):
        return [" " * indent + text]
    head, value, tail = _parts(text)
    if _is_enclosed(value):
        return _statement(f"{head}{value[1:-1]}{tail}", indent)
    if text.startswith(("def ", "class ")):
        return _bracketed(text, indent)
    if any(token.text == "," for token in _top(value)):
        return _enclosed(f"{head}(", value, f"){tail}", indent, together=False)
    operators = _operators(value)
    one_part = not operators or (len(operators) == 1 and _breaks_in_brackets(value))
    if one_part and _opening_fits(text, indent):
        return _bracketed(text, indent)
    return _enclosed(f"{head}(", value, f"){tail}", indent)


def _is_enclosed(text: str) -> bool:
    """Whether a text is one expression in parentheses that it does not need."""
    brackets = _brackets(text)
    whole = text[:1] == "(" and len(brackets) == 1 and brackets[0][1].stop == len(text)
    return whole and not any(token.text in (",", "for") for token in _top(text[1:-1]))


def _parts(text: str) -> tuple[str, str, str]:
    tokens = _top(text)
    tail = ":" if tokens[0].text in COMPOUND else ""
    start = 0
    if tokens[0].text in (*COMPOUND, "return", "assert", "yield"):
        start = tokens[1].start if len(tokens) > 1 else 0
    for before, after in pairwise(tokens):
        if before.text in ASSIGNMENTS or (before.text == "in" and tokens[0].text == "for"):
            start = after.start
    return text[:start], text[start : len(text) - len(tail)], tail


def _operators(text: str) -> list[Token]:
    """The operators that a text is broken at: those of least precedence outside brackets."""
    tokens = _top(text)
    binary = [token for before, token in pairwise(tokens) if before.is_word or before.text in CLOSING]
    for operators in PRECEDENCES:
        if found := [token for token in binary if token.text in operators]:
            return found
    return []


def _breaks_in_brackets(text: str) -> bool:
    """Whether a text begins with parentheses, or its last operand can be broken in its brackets."""
    return text[0] in OPENING or (text[-1] in CLOSING and text[-2] not in OPENING)


def _opening_fits(text: str, indent: int) -> bool:
    """Whether a line can be broken at its first bracket."""
    brackets = _brackets(text)
    return bool(brackets) and _fits(text[: brackets[0][0].stop], indent)


def _enclosed(
    opening: str, body: str, closing: str, indent: int, comma: bool = False, together: bool = True
) -> list[str]:
    """`opening body closing` with the body on lines of its own: one if it fits and may, else one for each element."""
    inner = indent + INDENT
    elements = _elements(body)
    if together and _fits(body.removesuffix(","), inner):
        lines = [" " * inner + body.removesuffix(",")]
    elif len(elements) > 1 or comma:
        lines = [line for element in elements for line in _expression(element, inner, ",")]
    else:
        lines = _expression(body, inner)
    return [" " * indent + opening, *lines, " " * indent + closing]


def _elements(text: str) -> list[str]:
    commas = [token for token in _top(text) if token.text == ","]
    pieces = _cut(text, [token.stop for token in commas])
    return [piece.removesuffix(",") for piece in pieces if piece != ","]


def _cut(text: str, places: Sequence[int]) -> list[str]:
    borders = [0, *places, len(text)]
    pieces = (text[a:b].strip() for a, b in pairwise(borders))
    return [piece for piece in pieces if piece]


def _expression(text: str, indent: int, after: str = "") -> list[str]:
    """The lines of an expression that stands in brackets."""
    if _fits(text + after, indent):
        return [" " * indent + text + after]
    clauses = [token for token in _top(text) if token.text == "for"]
    breaks = _clauses(text) if clauses else _operators(text)
    if not breaks:
        return _bracketed(text + after, indent)
    pieces = _cut(text, [token.start for token in breaks])
    afters = [""] * (len(pieces) - 1) + [after]
    return [line for piece, end in zip(pieces, afters, strict=True) for line in _expression(piece, indent, end)]


def _clauses(text: str) -> list[Token]:
    """Where the clauses of a comprehension begin."""
    tokens = _top(text)
    first = next(i for i, token in enumerate(tokens) if token.text == "for")
    return [token for token in tokens[first:] if token.text in ("for", "if")]


def _bracketed(text: str, indent: int) -> list[str]:
    """The lines of a text broken in its brackets, left to right: those that do not fit with what follows them."""
    lines, line, done = [], " " * indent, 0
    pairs = _brackets(text)
    stops = [opening.stop for opening, _ in pairs[1:]] + [len(text)]
    for (opening, closing), stop in zip(pairs, stops, strict=True):
        if len(line) + stop - done > LINE_LENGTH:
            head, body = line + text[done : opening.stop], text[opening.stop : closing.start]
            called = _called(text[: opening.start])
            comma = _takes_comma(text[: opening.stop], body)
            lines += _enclosed(head.lstrip(), body, "", indent, comma=comma, together=called)[:-1]
            line, done = " " * indent, closing.start
    return [*lines, line + text[done:]]


def _brackets(text: str) -> list[tuple[Token, Token]]:
    """The pairs of brackets with something in them, outside others."""
    brackets = [token for token in _top(text) if token.text in OPENING + CLOSING]
    pairs = zip(brackets[::2], brackets[1::2], strict=True)
    return [(opening, closing) for opening, closing in pairs if closing.start > opening.stop]


def _takes_comma(head: str, body: str) -> bool:
    """Whether a comma may follow the last element: not in a subscript, parentheses around one, or a comprehension."""
    if any(token.text == "for" for token in _top(body)) or (head[-1] == "[" and _called(head[:-1])):
        return False
    return head[-1] != "(" or _called(head[:-1]) or len(_elements(body)) > 1


def _called(before: str) -> bool:
    """Whether a bracket after this text belongs to it, as that of a call or a subscript does."""
    return before[-1:].isalnum() or before[-1:] in ("_", ")", "]", "}", '"', "'")
