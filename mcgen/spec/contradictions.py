"""What must hold between the fields of a spec. Works on plain data, so that one wrong field does not hide another."""

from __future__ import annotations

from collections.abc import Iterator

from mcgen.errors import Diagnostic
from mcgen.spec.document import Document
from mcgen.spec.model import Memory
from mcgen.spec.names import identifier_problem, name_problem


def contradictions(document: Document) -> Iterator[Diagnostic]:
    """Every fault that no field has by itself."""
    for check in (_name, _memory, _residual, _rule, _projections, _segment, _top_k):
        yield from check(document)


def _name(document: Document) -> Iterator[Diagnostic]:
    name = document.data.get("name")
    if isinstance(name, str) and (why := name_problem(name)):
        yield document.values["name",].diagnose(f"the name `{name[:40]}` {why}", hint="such as titans_grm")


def _memory(document: Document) -> Iterator[Diagnostic]:
    memory = document.section("memory")
    if memory.get("kind") == "matrix":
        for name in memory:
            if name != "kind" and name in Memory.model_fields:
                position = document.key(("memory", name))
                yield position.diagnose(f"`{name}` is a field of mlp memories", hint="remove it, or write kind: mlp")


def _residual(document: Document) -> Iterator[Diagnostic]:
    memory, head = document.section("memory"), document.section("head")
    sizes = head.get("key_dim", 64), head.get("value_dim", 64)
    if memory.get("kind") == "mlp" and memory.get("residual", True) is True and sizes[0] != sizes[1]:
        field = "value_dim" if "value_dim" in head else "key_dim"
        yield document.nearest(("head", field)).diagnose(
            "an mlp with a residual needs value_dim equal to key_dim",
            hint=f"key_dim is {sizes[0]}, value_dim {sizes[1]}; residual: false takes any",
        )


def _rule(document: Document) -> Iterator[Diagnostic]:
    if "update" not in document.data or not isinstance(document.data["update"], dict):
        return
    update = {name: value for name, value in document.section("update").items() if value is not None}
    for name in ("objective", "steps"):
        if "rule" in update and name in update:
            position = document.key(("update", name))
            yield position.diagnose(f"`{name}` beside `rule`", hint="a rule has its own: write one or the other")
    broken = {path[:2] for path in document.broken}
    if not {"rule", "steps"} & update.keys() and not broken & {("update", "rule"), ("update", "steps")}:
        position = document.key(("update",))
        yield position.diagnose("an update needs `rule` or `steps`", hint="such as rule: linear")


def _projections(document: Document) -> Iterator[Diagnostic]:
    gates = document.section("update").get("gates")
    for name, gate in gates.items() if isinstance(gates, dict) else ():
        source = gate.get("from") if isinstance(gate, dict) else None
        if isinstance(source, str) and (why := identifier_problem(source)):
            position = document.values["update", "gates", name, "from"]
            yield position.diagnose(f"the projection `{source[:40]}` {why}", hint="such as from: dt")


def _segment(document: Document) -> Iterator[Diagnostic]:
    segment = document.section("segment")
    if segment.get("mode") == "logarithmic" and segment.get("size") is not None:
        position = document.key(("segment", "size"))
        yield position.diagnose("`size` with mode: logarithmic", hint="its sizes are the powers of two of the length")


def _top_k(document: Document) -> Iterator[Diagnostic]:
    aggregate = document.section("aggregate")
    kind, top_k = aggregate.get("kind", "grm"), aggregate.get("top_k")
    if kind == "ssc" and top_k is None and ("aggregate", "top_k") not in document.broken:
        position = document.values["aggregate", "kind"]
        yield position.diagnose("ssc needs `top_k`", hint="how many cached segments a token reads, such as top_k: 2")
    if kind != "ssc" and top_k is not None and isinstance(kind, str):
        position = document.key(("aggregate", "top_k"))
        yield position.diagnose(f"`top_k` without ssc: the aggregate is {kind}", hint="remove it, or write kind: ssc")
