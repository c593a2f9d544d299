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
from dataclasses import dataclass
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
    parts = {name: Part(_written(number, {})) for name, number in _numbers(body)}
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
    nodes = list(ast.walk(function))
    own = _own_names(function, nodes)
    read = {node.id for node in nodes if isinstance(node, ast.Name)} - own.keys()
    return Part(_plain(function, own), sorted(read))


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


def _own_names(function: ast.FunctionDef, nodes: Sequence[ast.AST]) -> dict[str, int | str]:
    """What stands for the names of a function's arguments and values: numbers, in the order in which they are given.

    Arguments with an annotation are passed by name, so theirs stay. Raises InternalError where names are not plainly
    the function's own.
    """
    if any(isinstance(node, SCOPES) and node is not function for node in nodes):
        raise InternalError(f"{function.name} has a function of its own inside", stage="plan")
    arguments = [node for node in nodes if isinstance(node, ast.arg)]
    stored = sorted(
        (node for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)),
        key=lambda node: (node.lineno, node.col_offset),
    )
    given = [argument.arg for argument in arguments if argument.annotation is None] + [node.id for node in stored]
    kept = {argument.arg: argument.arg for argument in arguments if argument.annotation is not None}
    return {**{name: at for at, name in enumerate(dict.fromkeys(given))}, **kept}


def _plain(function: ast.FunctionDef, own: Mapping[str, int | str]) -> list[Any]:
    """A function's arguments and statements, without its name, marks and docstring."""
    skipped = ast.get_docstring(function, clean=False) is not None
    return [_written(function.args, own), _written(function.body[skipped:], own)]


def _written(node: Any, own: Mapping[str, int | str]) -> Any:
    """A syntax tree as plain data: of every node its kind and those of its fields that are not empty, by their names.

    Fields that a later Python adds are empty in what an earlier one can read. Names of the function's own are as `own`
    has them.
    """
    if isinstance(node, list):
        return [_written(item, own) for item in node]
    if isinstance(node, ast.Constant):
        return ["Constant", ascii(node.value)]
    if isinstance(node, ast.Name):
        return ["Name", own.get(node.id, node.id)]
    if not isinstance(node, ast.AST):
        return node
    fields = {name: value for name, value in ast.iter_fields(node) if name not in UNSAID and value not in (None, [])}
    if isinstance(node, ast.arg):
        fields["arg"] = own[node.arg]
    return [type(node).__name__, {name: _written(value, own) for name, value in fields.items()}]
