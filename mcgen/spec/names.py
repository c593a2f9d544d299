"""Which names a user may choose, and what was meant where one is unknown."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from mcgen.spec.grammar import CONSTANTS, FUNCTIONS, STRUCTURAL

TENSORS = ("q", "k", "v", "u", "theta")
OP_ARGUMENTS = (*TENSORS, "state", "backend", "return_state", "cu_seqlens", "cu_seqlens_cpu", "group")
"""Arguments of `op`, which no gate can share."""

RESERVED = ("M", "grad", "outer", *OP_ARGUMENTS, "p", "x", "h")
"""Names that are no gates; of these only M can be assigned."""

MODULES = ("torch", "triton", "mcgen")
MAX_LENGTH = 100

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TAKEN_CLASSES = ("SPEC", "UnsupportedError", "None", "True", "False")


def suggest(word: object, known: Iterable[str]) -> str:
    """`did you mean …?` for the closest known word, or what is known."""
    choices = [str(choice) for choice in known]
    return closest(word, choices) or (f"one of: {', '.join(choices)}" if choices else "")


def closest(word: object, choices: Sequence[str]) -> str:
    """`did you mean …?` for the closest of some words; empty where none is close."""
    close = get_close_matches(str(word)[:MAX_LENGTH], choices, 1)
    return f"did you mean `{close[0]}`?" if close else ""


def class_name(name: str) -> str:
    """`titans_grm` gives `TitansGrm`: underscore parts, first letters raised."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def name_problem(name: str) -> str:
    """Why this cannot be a spec's name; empty if it can."""
    if why := identifier_problem(name):
        return why
    if name in MODULES:
        return "is the name of a module that generated files import"
    if not _IDENTIFIER.fullmatch(class_name(name)) or class_name(name) in _TAKEN_CLASSES:
        return f"would name its class {class_name(name) or 'nothing'}"
    return ""


def gate_problem(name: str) -> str:
    """Why this cannot be a gate's name; empty if it can."""
    if name in RESERVED:
        return "is reserved"
    if name in FUNCTIONS or name in STRUCTURAL:
        return "is a function"
    return "is a constant" if name in CONSTANTS else identifier_problem(name)


def slot_problem(name: str) -> str:
    """Why this cannot be assigned; empty if it can."""
    return "" if name == "M" else gate_problem(name)


def identifier_problem(name: str) -> str:
    """Why this is no name at all; empty if it is one."""
    if not _IDENTIFIER.fullmatch(name):
        return "is not a Python identifier of ASCII letters, digits and underscores"
    if keyword.iskeyword(name):
        return "is a Python keyword"
    if name.startswith("__"):
        return "starts with two underscores"
    return f"has more than {MAX_LENGTH} characters" if len(name) > MAX_LENGTH else ""
