"""A generated file defines nothing that nothing reads."""

from __future__ import annotations

import ast

import pytest

from mcgen.emit.module.file import module_source
from mcgen.emit.text.called import called, definitions
from mcgen.spec import load
from mcgen.spec.shipped import shipped
from mcgen.symbolic.meaning import meaning

PUBLIC = {"MCGEN_VERSION", "SPEC", "SPEC_HASH", "Layer", "op", "reference"}
"""What a file has for its users; the layer's class is called as its spec is."""


def defined(tree: ast.Module) -> set[str]:
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    targets = (target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets)
    return functions | {target.id for target in targets if isinstance(target, ast.Name)}


@pytest.mark.parametrize(
    "name",
    ["retnet_none", "decay_grm_log", "linear_residual", "swla_ssc", "titans_none", "titans_soup", "titans_chunk_grm"],
)
def test_a_file_reads_all_that_it_defines(name: str) -> None:
    tree = ast.parse(module_source(meaning(load(shipped()[name]))))
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    assert defined(tree) - read - PUBLIC == set()


def test_called_follows_calls_and_keeps_order() -> None:
    text = "LAST = 1\n\n\ndef unread():\n    return LAST\n\n\ndef inner():\n    pass\n\n\ndef outer():\n    inner()"
    assert [piece.split("(")[0] for piece in called(definitions(text), "outer()")] == ["def inner", "def outer"]
