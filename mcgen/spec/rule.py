"""The expressions of a spec, parsed and checked: objective, steps, activation, constants a head.

Works on the plain data, so that faults elsewhere in the file do not hide those here. A line that does not parse is left
out of the result; what depends on all lines (which gates are used, whether M is assigned) is then not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from mcgen.errors import Diagnostic
from mcgen.spec.document import Document
from mcgen.spec.grammar import FUNCTIONS, Expression, ExpressionError, Name, evaluate, parse, parse_step
from mcgen.spec.language import (
    Problem,
    calls,
    check_objective,
    check_scalar,
    check_slot,
    check_step,
    gate_names,
    names,
)
from mcgen.spec.names import gate_problem, suggest
from mcgen.spec.presets import PRESETS
from mcgen.spec.refusals import OUTER_ON_MLP
from mcgen.spec.source import Position
from mcgen.spec.spec import Rule, Step

ACTIVATIONS = ("gelu", "silu", "relu", "tanh", "sigmoid", "softplus")
MAX_HEADS_CHECKED = 1024

Parsed = TypeVar("Parsed")


@dataclass
class RuleReader:
    """Parses a document's expressions, collecting diagnostics on the way."""

    document: Document
    diagnostics: list[Diagnostic] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._update = self.document.section("update")
        rule = self._update.get("rule")
        self._preset = PRESETS.get(rule) if isinstance(rule, str) else None

    def rule(self) -> Rule:
        """Objective and steps, of the preset where one is named."""
        written = self._lines()
        lines = [line for text, position in written if (line := self._step(text, position))]
        slots = _unique(step.slot for step, _ in lines)
        text, position = self._objective()
        objective = self._parsed(parse, text, position) if text is not None else None
        if objective is not None:
            self._report(position, check_objective(objective))
        for step, target in lines:
            self._report(step.position, check_slot(target), step)
            self._report(step.position, check_step(step.expression, slots), step)
            self._report(step.position, self._misplaced(step.expression, text is not None), step)
        steps = tuple(step for step, _ in lines)
        gates = _unique(name for step in steps for name in gate_names(step.expression, slots))
        rule = Rule(objective, steps, slots, gates, position if text is not None else None)
        if steps and len(steps) == self._line_count():
            self._check_whole(rule)
        return rule

    def activation(self) -> Expression | None:
        """The activation, where it is an expression in x and no plain name."""
        path = ("memory", "activation")
        text = self.document.section("memory").get("activation")
        if not isinstance(text, str) or text.strip() in ACTIVATIONS:
            return None
        position = self.document.values[path]
        expression = self._parsed(parse, text, position)
        if isinstance(expression, Name) and expression.id != "x":
            self.diagnostics.append(_unknown_activation(expression, position))
        elif expression is not None:
            self._report(position, check_scalar(expression, "x", "an activation"))
            if not names(expression, "x"):
                self.diagnostics.append(position.diagnose("the activation does not depend on x"))
        return expression

    def per_head(self) -> dict[str, Expression]:
        """The constants a head, by gate."""
        gates = self._update.get("gates")
        found = {}
        for name, gate in gates.items() if isinstance(gates, dict) else ():
            text = gate.get("per_head") if isinstance(gate, dict) else None
            if isinstance(text, str):
                position = self.document.values["update", "gates", name, "per_head"]
                expression = self._parsed(parse, text, position)
                if expression is not None:
                    problems = list(check_scalar(expression, "h", "per_head"))
                    self._report(position, problems or self._check_heads(expression))
                    found[name] = expression
        return found

    def _check_heads(self, expression: Expression) -> Iterator[Problem]:
        heads = self.document.section("layer").get("heads", 16)
        for head in range(min(heads, MAX_HEADS_CHECKED) if type(heads) is int else 0):
            try:
                evaluate(expression, {"h": float(head)})
            except (ArithmeticError, ValueError):
                hint = f"h counts heads, from 0 to {heads - 1}"
                yield Problem(f"no finite value at h = {head}", expression.span, hint)
                return

    def _lines(self) -> list[tuple[str, Position]]:
        """The text of each step and where it stands; those of a preset stand at the rule's name."""
        if self._preset:
            return [(text, self._preset_position()) for text in self._preset.steps]
        steps = self._update.get("steps")
        lines = enumerate(steps) if isinstance(steps, list) else ()
        return [(text, self.document.values["update", "steps", i]) for i, text in lines if isinstance(text, str)]

    def _line_count(self) -> int:
        return len(self._preset.steps if self._preset else self._update["steps"])

    def _objective(self) -> tuple[str | None, Position]:
        if self._preset:
            return self._preset.objective, self._preset_position()
        text = self._update.get("objective")
        return (text if isinstance(text, str) else None), self.document.nearest(("update", "objective"))

    def _preset_position(self) -> Position:
        """The rule's name, as a whole: spans in a preset's lines are not of the file."""
        return replace(self.document.values["update", "rule"], offsets=None)

    def _step(self, text: str, position: Position) -> tuple[Step, Name] | None:
        parsed = self._parsed(parse_step, text, position)
        if parsed is None:
            return None
        target, expression = parsed
        return Step(target.id, expression, " ".join(text.split()), position), target

    def _parsed(self, parser: Callable[[str], Parsed], text: str, position: Position) -> Parsed | None:
        try:
            return parser(text)
        except ExpressionError as error:
            hint = error.hint
            if self._was_split(text, position):
                hint = "quote the line: a comma ends an item of a list in brackets"
            self.diagnostics.append(position.diagnose(error.message, error.span, hint))
            return None

    def _was_split(self, text: str, position: Position) -> bool:
        """Whether an unquoted item of a flow list, cut at the comma of `outer(v, k)`, is the likely cause."""
        quoted = position.source.text[position.start] in ("'", '"')
        following = position.source.text[position.end : position.end + 1]
        return not quoted and text.count("(") > text.count(")") and following == ","

    def _misplaced(self, expression: Expression, has_objective: bool) -> Iterator[Problem]:
        """What the rest of the spec does not allow in a step."""
        if self.document.section("memory").get("kind") == "mlp":
            for call in calls(expression, "outer"):
                yield Problem(OUTER_ON_MLP.message(), call.span, OUTER_ON_MLP.hint())
        if not has_objective:
            for name in names(expression, "grad"):
                yield Problem("grad without an objective", name.span, "add objective: sum((p - v)**2)/2")

    def _check_whole(self, rule: Rule) -> None:
        """What takes all lines to judge."""
        if "M" not in rule.slots:
            position = self.document.key(("update", "steps"))
            self.diagnostics.append(position.diagnose("no step assigns M", hint="M is the memory: end with `M = …`"))
        self._check_unread(rule)
        self._check_unused_gates(rule)
        uses_grad = any(names(step.expression, "grad") for step in rule.steps)
        if rule.objective_position and not uses_grad:
            message, hint = "no step uses grad, so the objective does nothing", "write M = M - eta*grad, or remove it"
            self.diagnostics.append(rule.objective_position.diagnose(message, hint=hint, severity="warning"))

    def _check_unread(self, rule: Rule) -> None:
        read = _read_by_memory(rule)
        for slot in rule.slots:
            if "M" in rule.slots and slot not in read:
                step = next(step for step in rule.steps if step.slot == slot)
                message = f"nothing that M depends on reads the slot `{slot}`"
                hint = "read it in M's line, or remove it"
                self.diagnostics.append(step.position.diagnose(message, hint=hint, severity="warning"))

    def _check_unused_gates(self, rule: Rule) -> None:
        gates = self._update.get("gates")
        for name in gates if isinstance(gates, dict) else ():
            if name not in rule.gates:
                position = self.document.key(("update", "gates", name))
                why = "it is a slot" if name in rule.slots else gate_problem(name) and f"the name {gate_problem(name)}"
                hint = why or (suggest(name, rule.gates) if rule.gates else "the rule has no gates")
                self.diagnostics.append(position.diagnose(f"no step uses a gate `{name}`", hint=hint))

    def _report(self, position: Position, problems: Iterable[Problem], step: Step | None = None) -> None:
        diagnose = step.diagnose if step else lambda span, message, *rest: position.diagnose(message, span, *rest)
        self.diagnostics += [diagnose(p.span, p.message, p.hint, p.severity) for p in problems]


def _unique(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))


def _read_by_memory(rule: Rule) -> Collection[str]:
    """M and the slots it depends on, however indirectly."""
    reached, waiting = set(), ["M"]
    while waiting:
        slot = waiting.pop()
        if slot not in reached:
            reached.add(slot)
            lines = [step.expression for step in rule.steps if step.slot == slot]
            waiting += [other for other in rule.slots if any(names(line, other) for line in lines)]
    return reached


def _unknown_activation(name: Name, position: Position) -> Diagnostic:
    if FUNCTIONS.get(name.id) == 1:
        return position.diagnose(f"`{name.id}` is not an activation by name", name.span, f"write {name.id}(x)")
    hint = suggest(name.id, ACTIVATIONS)
    return position.diagnose(f"unknown activation `{name.id}`", name.span, f"{hint} Or an expression in x")
