"""The kernels of a generated file, read off its text: a digest of each, by which launch configurations are kept.

Two kernels with one digest compute the same, whatever they, their values and their files are called: the digest is of
the kernel's statements, those of the functions it calls and the numbers these read. It is of the syntax tree, written
down here, since the text that an interpreter prints for one is another in every version. Nothing is imported or run.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mcgen.errors import InternalError

SUFFIX = "_kernel"
"""How the name of a function ends that is launched in a configuration of its own."""
MARK = "_jit"
"""The decorator of functions that Triton compiles."""
UNSAID = ("ctx", "kind")
"""Fields of syntax trees that follow from the rest, or say how a constant was spelled."""
SCOPES = (ast.Lambda, ast.FunctionDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
"""What has names of its own; no kernel has any such thing inside."""


@dataclass(frozen=True)
class Part:
    """A function or a number as plain data, and the names in it that are not its own."""

    written: Any
    reads: Sequence[str] = ()


def digests(source: str) -> dict[str, str]:
    """The digest of every kernel of a file, by the kernel's name without its ending."""
    body = ast.parse(source).body
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef) and _is_marked(node)}
    parts = {name: Part(_Writer(name).written(number)) for name, number in _numbers(body)}
    parts |= {name: _part(function) for name, function in functions.items()}
    kernels = [name for name in functions if name.endswith(SUFFIX)]
    return {name.removesuffix(SUFFIX): _digest(name, parts) for name in kernels}


def _is_marked(function: ast.FunctionDef) -> bool:
    return any(isinstance(mark, ast.Name) and mark.id == MARK for mark in function.decorator_list)


def _numbers(body: list[ast.stmt]) -> Iterator[tuple[str, ast.Constant]]:
    """The names that a file gives plain numbers or texts, with these."""
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value is not None:
            yield from ((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))


def _part(function: ast.FunctionDef) -> Part:
    """A function's arguments and statements, without its name, marks and docstring; its own names as numbers."""
    writer = _Writer(function.name)
    skipped = ast.get_docstring(function, clean=False) is not None
    written = [writer.written(function.args), writer.written(function.body[skipped:])]
    own = writer.own_names()
    for holder, place, name in writer.places:
        holder[place] = own.get(name, name)
    return Part(written, sorted({name for *_, name in writer.places} - own.keys()))


def _digest(kernel: str, parts: Mapping[str, Part]) -> str:
    found: dict[str, Any] = {}
    pending = [kernel]
    while pending:
        name = pending.pop()
        if name in parts and name not in found:
            found[name] = parts[name].written
            pending += parts[name].reads
    found[""] = found.pop(kernel)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Writer:
    """Writes the parts of a function as plain data, and keeps where in that data names stand, for what stands for them.

    That is known only when all is written: `arguments` and `stored` are the nodes that give a function names.
    """

    function: str
    places: list[tuple[Any, Any, str]] = field(default_factory=list)
    arguments: list[ast.arg] = field(default_factory=list)
    stored: list[ast.Name] = field(default_factory=list)

    def written(self, node: Any) -> Any:
        """A syntax tree as plain data: of every node its kind and those of its fields that are not empty, by name.

        Fields that a later Python adds are empty in what an earlier one can read. Raises InternalError where names are
        not plainly the function's own.
        """
        if isinstance(node, list):
            return list(map(self.written, node))
        if isinstance(node, ast.Constant):
            return ["Constant", ascii(node.value)]
        if isinstance(node, ast.Name):
            return self._name(node)
        if not isinstance(node, ast.AST):
            return node
        if isinstance(node, SCOPES):
            raise InternalError(f"{self.function} has a function of its own inside", stage="plan")
        values = {name: value for name, value in vars(node).items() if name in node._fields and name not in UNSAID}
        fields = {name: self.written(value) for name, value in values.items() if value not in (None, [])}
        if isinstance(node, ast.arg):
            self.arguments.append(node)
            self.places.append((fields, "arg", node.arg))
        return [type(node).__name__, fields]

    def _name(self, node: ast.Name) -> list[str]:
        if isinstance(node.ctx, ast.Store):
            self.stored.append(node)
        found = ["Name", node.id]
        self.places.append((found, 1, node.id))
        return found

    def own_names(self) -> dict[str, int | str]:
        """What stands for the names of arguments and values: numbers, in the order in which they are given.

        Arguments with an annotation are passed by name, so theirs stay.
        """
        kept = {argument.arg: argument.arg for argument in self.arguments if argument.annotation is not None}
        given = [argument.arg for argument in self.arguments if argument.annotation is None]
        given += [node.id for node in sorted(self.stored, key=lambda node: (node.lineno, node.col_offset))]
        return {**{name: at for at, name in enumerate(dict.fromkeys(given))}, **kept}
