"""Of pieces of source text, those that are needed: a file has no function that nothing calls."""

from __future__ import annotations

import re
from collections.abc import Iterable

DEFINED = re.compile(r"^(?:def (\w+)|([A-Z_]+) =)", re.MULTILINE)


def definitions(text: str) -> list[str]:
    """The pieces of a text, with two empty lines between them: functions, and constants that stand together."""
    return text.strip().split("\n\n\n")


def called(pieces: Iterable[str], by: str) -> list[str]:
    """The pieces that define something which a text reads, or one of them that is needed itself; in their order."""
    left, found, texts = list(pieces), [], [by]
    every = list(left)
    while texts:
        words = set(re.findall(r"\w+", texts.pop()))
        read = [piece for piece in left if words & {name for names in DEFINED.findall(piece) for name in names}]
        left = [piece for piece in left if piece not in read]
        found, texts = found + read, texts + read
    return [piece for piece in every if piece in found]
