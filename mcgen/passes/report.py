"""What rewrites do to a program: a table of operation counts after each rule that applied, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import sympy

from mcgen.ir.program import Builder, Contract, Decay, Map, Node, Program, Reduce, Rename, Solve
from mcgen.passes.simplify import RULES, Rule, simplify

KINDS: dict[str, type[Node]] = {
    "products": Contract,
    "sums": Reduce,
    "decays": Decay,
    "solves": Solve,
    "renames": Rename,
    "maps": Map,
}


@dataclass(frozen=True)
class Stage:
    """A program after the rules up to and including `rule`; `used` is how often that rule applied."""

    rule: Rule | None
    program: Program
    used: int


def history(program: Program, rules: tuple[Rule, ...] = RULES) -> Iterator[Stage]:
    """A program as it was built, then after the first rule, the first two, and so on to all of them."""
    yield Stage(None, program, 0)
    for count, rule in enumerate(rules, 1):
        calls: list[Node] = []
        counted = replace(rule, apply=_counting(rule, calls))
        yield Stage(rule, simplify(program, (*rules[: count - 1], counted)), len(calls))


def _counting(rule: Rule, calls: list[Node]) -> Callable[[Builder, Node], Node | None]:
    def apply(b: Builder, node: Node) -> Node | None:
        result = rule.apply(b, node)
        if result is not None:
            calls.append(node)
        return result

    return apply


def operations(program: Program) -> dict[str, int]:
    """How many nodes of each kind a program has, and how many scalar operations its maps are made of."""
    nodes = program.nodes
    found = {"nodes": len(nodes)}
    found |= {name: sum(isinstance(node, kind) for node in nodes) for name, kind in KINDS.items()}
    scalar = sum(int(sympy.count_ops(node.expression)) for node in nodes if isinstance(node, Map))
    return {**found, "scalar operations": scalar}


def rule_lines(stages: Iterable[Stage]) -> list[str]:
    """What each rule that applied makes of what."""
    rules = [stage.rule for stage in stages if stage.rule and stage.used]
    return [f"{rule.name}: {rule.before}  ->  {rule.after}" for rule in rules]


def report(stages: Iterable[Stage]) -> tuple[list[str], list[list[str]]]:
    """A history as a table: column heads, and a row for the program as it was built and for each rule that applied."""
    rows = []
    for stage in stages:
        if stage.rule is None or stage.used:
            rule = [stage.rule.name, str(stage.used)] if stage.rule else ["as built", ""]
            rows.append([*rule, *map(str, operations(stage.program).values())])
    return ["rule", "used", "nodes", *KINDS, "scalar operations"], rows
