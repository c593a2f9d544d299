"""The kernels of a generated file, read off its text: a digest of each, by which launch configurations are kept.

Two kernels with one digest compute the same, whatever they and their files are called: the digest is of the kernel's
statements, those of the functions it calls and the numbers these read. Nothing is imported or run.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping

SUFFIX = "_kernel"
"""How the name of a function ends that is launched in a configuration of its own."""
MARK = "_jit"
"""The decorator of functions that Triton compiles."""


def digests(source: str) -> dict[str, str]:
    """The digest of every kernel of a file, by the kernel's name without its ending."""
    body = ast.parse(source).body
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef) and _is_marked(node)}
    numbers = dict(_numbers(body))
    kernels = [name for name in functions if name.endswith(SUFFIX)]
    return {name.removesuffix(SUFFIX): _digest(name, functions, numbers) for name in kernels}


def _is_marked(function: ast.FunctionDef) -> bool:
    return any(isinstance(mark, ast.Name) and mark.id == MARK for mark in function.decorator_list)


def _numbers(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """The names that a file gives plain numbers or texts, with these as text."""
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value is not None:
            yield from ((target.id, ast.unparse(node.value)) for target in node.targets if isinstance(target, ast.Name))


def _digest(kernel: str, functions: Mapping[str, ast.FunctionDef], numbers: Mapping[str, str]) -> str:
    parts: dict[str, str] = {}
    pending = [kernel]
    while pending:
        name = pending.pop()
        if name in parts:
            continue
        if name in functions:
            parts[name] = _plain(functions[name])
            pending += sorted(_globals(functions[name]))
        elif name in numbers:
            parts[name] = numbers[name]
    parts[""] = parts.pop(kernel)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _globals(function: ast.FunctionDef) -> set[str]:
    """The names that a function reads and that are no arguments of its own."""
    arguments = {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}
    return {node.id for node in ast.walk(function) if isinstance(node, ast.Name)} - arguments


def _plain(function: ast.FunctionDef) -> str:
    """A function's arguments and statements, without its name, marks and docstring."""
    skipped = ast.get_docstring(function, clean=False) is not None
    arguments, body = ast.unparse(function.args), function.body[skipped:]
    return "\n".join([f"({arguments})", *map(ast.unparse, body)])
