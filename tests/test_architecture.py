"""The folders are the stages: imports go one way, heavy libraries stay where they belong, no rule is special."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mcgen.spec.presets import PRESETS

PACKAGE = Path(__file__).parent.parent / "mcgen"
ROOMS = ("text", "say", "torch", "triton", "module")
"""Those of `emit`, each of which imports from the ones before it; the two paths know nothing of each other."""
STAGES = ("errors", "dump", "spec", "symbolic", "ir", "passes", "plan", "emit", "pipeline", "tune", "cli", "__main__")

# Where a library may be imported at all, and the stages or modules among those where at module level: elsewhere an
# import stands in the function that needs it, so that a command pays only for what it uses.
LIBRARIES: dict[str, tuple[set[str], set[str]]] = {
    "click": ({"cli", "__main__"}, {"cli", "__main__"}),
    "jinja2": ({"emit"}, {"emit"}),
    "pydantic": ({"spec"}, {"spec"}),
    "rich": ({"tune", "cli"}, {"cli"}),
    "sympy": ({"symbolic", "ir", "passes", "plan", "emit", "cli"}, {"symbolic", "ir", "passes", "plan", "emit"}),
    "torch": ({"ir.evaluate", "tune", "cli"}, {"ir.evaluate", "tune"}),
    "triton": ({"tune", "cli"}, {"tune"}),
}

# Words a preset shares with something else of the spec language, where they may stand as plain text.
SHARED_WORDS = {
    "decay": "the gate function exp(-exp(A) * softplus(x))",
    "delta": "the row sum of dy and y in the derivative of a softmax",
}


@dataclass(frozen=True)
class Import:
    """`module` is what is imported, whole; `deferred` is an import inside a function or for the type checker alone."""

    module: str
    line: int
    deferred: bool


def module_name(path: Path) -> str:
    """`spec.grammar` for mcgen/spec/grammar.py, `spec` for mcgen/spec/__init__.py, empty for the package's own."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[Import]:
    yield from _imports(ast.parse(path.read_text(encoding="utf-8")), path, deferred=False)


def _imports(node: ast.AST, path: Path, deferred: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, node.lineno, deferred) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = _base(node, path)
        yield from (Import(f"{base}.{alias.name}", node.lineno, deferred) for alias in node.names)
    inside = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    inside = inside or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, path, inside)


def _base(node: ast.ImportFrom, path: Path) -> str:
    if node.level == 0:
        return node.module or ""
    folder = path.parent.relative_to(PACKAGE.parent).parts
    kept = folder[: len(folder) - node.level + 1]
    return ".".join([*kept, *([node.module] if node.module else [])])


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def stage(name: str) -> str:
    return name.partition(".")[0]


def within(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_a_module_imports_only_from_stages_before_its_own(path: Path) -> None:
    own = stage(module_name(path))
    allowed = STAGES[: STAGES.index(own) + 1] if own else ()
    used = [(found, found.module.partition(".")) for found in imports(path)]
    wrong = [
        f"line {found.line}: {found.module}"
        for found, (package, _, inside) in used
        if package == "mcgen" and stage(inside) not in (*allowed, "", "__version__")
    ]
    assert not wrong


@pytest.mark.parametrize("path", [path for path in modules() if stage(module_name(path)) == "emit"], ids=module_name)
def test_a_room_of_emit_imports_only_from_rooms_before_its_own(path: Path) -> None:
    _, own, *_ = [*module_name(path).split("."), ""]
    allowed = {*ROOMS[: ROOMS.index(own) + 1]} - ({"torch"} if own == "triton" else set()) if own else set()
    used = [found.module.split(".")[2] for found in imports(path) if found.module.startswith("mcgen.emit.")]
    assert set(used) <= allowed


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_libraries_are_imported_where_they_belong(path: Path) -> None:
    name, wrong = module_name(path), []
    for found in imports(path):
        anywhere, at_module_level = LIBRARIES.get(stage(found.module), (None, None))
        places = anywhere if found.deferred else at_module_level
        if places is not None and not within(name, places):
            wrong.append(f"line {found.line}: {found.module} {'' if found.deferred else 'at module level'}")
    assert not wrong


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, mcgen.cli\n"
        "try:\n    mcgen.cli.main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "print('heavy:', *sorted({'torch', 'triton', 'sympy', 'numpy', 'jinja2'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout
    assert done.stdout.splitlines()[-1].strip() == "heavy:"


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_no_preset_is_named_outside_the_table(path: Path) -> None:
    if module_name(path) == "spec.presets":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    wrong = [
        f"line {node.lineno}: {node.value!r}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in PRESETS.keys() - SHARED_WORDS.keys()
    ]
    assert not wrong


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_no_rules_name_is_compared(path: Path) -> None:
    """A rule is its lines: code may ask whether one is named, and what it is, but not which."""
    wrong = [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare)
        and any(isinstance(part, ast.Attribute) and part.attr == "rule" for part in ast.walk(node))
        and any(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in ast.walk(node))
    ]
    assert not wrong


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_no_text_is_executed(path: Path) -> None:
    """SymPy's readers of text evaluate it as Python; `sympify` is fine where `strict=True` has it refuse text."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    wrong = [f"line {node.lineno}: {ast.unparse(node)}" for node in ast.walk(tree) if executes(node)]
    assert not wrong


def executes(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    called = ast.unparse(node.func)
    strict = any(keyword.arg == "strict" for keyword in node.keywords)
    return called in {"eval", "exec"} or (called.rpartition(".")[2] in {"sympify", "parse_expr"} and not strict)


def test_the_scan_sees_what_it_forbids(tmp_path: Path) -> None:
    """The checks above pass on everything if they see nothing."""
    source = tmp_path / "module.py"
    source.write_text(
        "from typing import TYPE_CHECKING\nimport torch.nn\nfrom mcgen import tune\n"
        "if TYPE_CHECKING:\n    import triton\n"
        "def f():\n    from sympy import exp\n"
    )
    found = list(imports(source))
    assert [(one.module, one.deferred) for one in found] == [
        ("typing.TYPE_CHECKING", False),
        ("torch.nn", False),
        ("mcgen.tune", False),
        ("triton", True),
        ("sympy.exp", True),
    ]
    calls = ("eval(x)", "sympy.sympify(x)", "parse_expr(x)", "sympify(x, strict=True)", "model.eval()")
    assert [executes(ast.parse(call, mode="eval").body) for call in calls] == [True, True, True, False, False]
