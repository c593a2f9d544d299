"""Templates state what a function may need; what none of its statements reads is taken out of the file here."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PURE_CALLS = ("len", "min", "max", "triton.cdiv", "triton.next_power_of_2", "_segments", "_layout")
IMPURE = ("store", "atomic", "debug", "device")
"""How the names of Triton's functions begin that do more than give a value."""
DECLARES = (ast.Global, ast.Nonlocal)
HAS_BLOCKS = (ast.stmt, ast.excepthandler)


@dataclass(frozen=True)
class Piece:
    """One name that an assignment gives a value: the `index`-th of its targets."""

    statement: ast.Assign
    index: int

    @property
    def target(self) -> ast.expr:
        target = self.statement.targets[0]
        return target.elts[self.index] if isinstance(target, ast.Tuple) else target

    @property
    def value(self) -> ast.expr | None:
        """Its own value; None where one value is unpacked into several names."""
        if not isinstance(self.statement.targets[0], ast.Tuple):
            return self.statement.value
        value = self.statement.value
        return value.elts[self.index] if isinstance(value, ast.Tuple) else None

    @property
    def source(self) -> ast.expr:
        """What it takes its value from: one, or all that it is unpacked into, have the same."""
        return self.value or self.statement.value


def without_unused(text: str) -> str:
    """The same program without assignments to local variables that are read nowhere.

    An assignment stays where its value is not known to be free of effects; of a value that is unpacked, the parts that
    are not read are called `_`.
    """
    lines = text.splitlines()
    changes = [change for function in _functions(ast.parse(text)) for change in _changes(function).items()]
    for statement, replacement in sorted(changes, key=lambda change: -change[0].lineno):
        indent = " " * statement.col_offset
        lines[statement.lineno - 1 : statement.end_lineno] = [indent + replacement] if replacement else []
    return "\n".join(lines) + "\n"


def _functions(module: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions that stand in no other; names of inner ones count as read in the outer one."""
    for node in module.body:
        if isinstance(node, ast.FunctionDef):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from (method for method in node.body if isinstance(method, ast.FunctionDef))


def _changes(function: ast.FunctionDef) -> dict[ast.Assign, str]:
    """Each assignment to change, with what takes its place: a shorter one, or nothing, where others stand beside it."""
    nodes = list(ast.walk(function))
    pieces = [piece for node in nodes if isinstance(node, ast.Assign) for piece in _pieces(node)]
    unused = _unused(Counter(_names_read(nodes)), pieces)
    statements = dict.fromkeys(piece.statement for piece in pieces if piece in unused)
    changes = {s: _rest([piece for piece in pieces if piece.statement is s], unused) for s in statements}
    for block in _blocks(nodes) if changes else ():
        if all(changes.get(statement) == "" for statement in block):
            changes[block[-1]] = "pass"
    return changes


def _blocks(nodes: Iterable[ast.AST]) -> Iterator[list[ast.stmt]]:
    for node in nodes:
        if isinstance(node, HAS_BLOCKS):
            yield from (block for name in ("body", "orelse") if (block := getattr(node, name, None)))


def _pieces(statement: ast.Assign) -> Iterator[Piece]:
    if len(statement.targets) != 1:
        return
    target, value = statement.targets[0], statement.value
    parts = target.elts if isinstance(target, ast.Tuple) else [target]
    matched = not isinstance(target, ast.Tuple) or not isinstance(value, ast.Tuple) or len(value.elts) == len(parts)
    if matched and all(isinstance(part, ast.Name) for part in parts):
        yield from (Piece(statement, i) for i in range(len(parts)))


def _unused(read: Counter[str], pieces: list[Piece]) -> set[Piece]:
    """The pieces whose name nothing reads but other such pieces; `read` says how often each name is read in all."""
    given: dict[ast.expr, list[Piece]] = {}
    for piece in pieces:
        given.setdefault(piece.source, []).append(piece)
    unused: set[Piece] = set()
    while True:
        more = {piece for piece in pieces if not read[piece.target.id] and piece not in unused and _may_go(piece)}
        if not more:
            return unused
        unused |= more
        for source in {piece.source for piece in more}:
            if unused.issuperset(given[source]) and _is_pure(source):
                read.subtract(_names_read(ast.walk(source)))


def _may_go(piece: Piece) -> bool:
    return piece.target.id != "_" and (piece.value is None or _is_pure(piece.value))


def _names_read(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The names that nodes read, each as often as they do."""
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, DECLARES):
            yield from node.names


def _is_pure(value: ast.expr) -> bool:
    """Whether computing a value is known to do nothing else."""
    if isinstance(value, ast.Lambda):
        return True
    return all(_pure_call(ast.unparse(node.func)) for node in ast.walk(value) if isinstance(node, ast.Call))


def _pure_call(name: str) -> bool:
    if name in PURE_CALLS or name.endswith((".to", ".index")):
        return True
    return name.startswith("tl.") and not name.removeprefix("tl.").startswith(IMPURE)


def _rest(pieces: list[Piece], unused: set[Piece]) -> str:
    """The assignment of the pieces that are used."""
    kept = [piece for piece in pieces if piece not in unused]
    if pieces[0].value is None and (kept or not _is_pure(pieces[0].statement.value)):
        targets = ["_" if piece in unused else piece.target.id for piece in pieces]
        return f"{', '.join(targets)} = {ast.unparse(pieces[0].statement.value)}"
    if not kept:
        return ""
    return f"{', '.join(piece.target.id for piece in kept)} = {', '.join(ast.unparse(piece.value) for piece in kept)}"
