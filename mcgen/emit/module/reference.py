"""The `reference` of a generated module: its spec run one token at a time, as literal Python.

It is the definition that everything faster is held against, so it is printed from the parsed spec alone: no closed
form, no derivative but autograd's (and, where the objective is a polynomial of p, the error row written out).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from mcgen.emit.say import mathematics
from mcgen.emit.text.expressions import TORCH_FUNCTIONS, Identifiers, Printer, constant, is_constant, names
from mcgen.emit.text.rendering import render
from mcgen.spec import Gate, Spec, Step
from mcgen.spec.grammar import NOWHERE, Binary, Call, Expression, Lag, Name, Number, Unary, walk
from mcgen.spec.spec import ROUTED

OF_ARGUMENTS = ("_check", "_sequence_lengths", "_of_sequences", "_of_every_head")
HELPERS = ("_segments", "_read", "_outer", "_lag", "_error", "_gradient", "_chosen", *OF_ARGUMENTS)
"""Private names the text may define or call; some come from `arguments_source`."""

LOCALS = """
    q k v u x theta gates dtype y_dtype y y_t B T H K h W M M_0 M_chunk zero cached pools pool key key_sum begin end
    t q_t k_t v_t u_t grad p e r w i memory mixed layer layers torch F math reference op Layer UnsupportedError SPEC
    lengths cu_seqlens functools l O I
"""
"""Names the text uses for itself, and three a linter takes for digits: a slot or gate so called gets another one."""

CALLS = {**TORCH_FUNCTIONS, "outer": "_outer({}, {})", "sum": "{}.sum(-1)"}


def reference_source(spec: Spec) -> str:
    """The text that defines `reference(q, k, v, u=None, *, theta=None, **gates)` and the helpers it calls."""
    return _Reference(spec).source()


@dataclass(frozen=True)
class _Reference:
    spec: Spec

    def source(self) -> str:
        spec, aggregate = self.spec, self.spec.aggregate
        return render(
            "reference.py.jinja",
            deep=self.deep,
            size=spec.segment.size if spec.segment.mode == "constant" else None,
            activation=[f"h = {Printer({'x': 'h'}).text(mathematics.activation(spec))}"],  # σ(h)
            layernorm=spec.memory.norm == "layernorm",
            residual=spec.memory.residual,
            outer=self.writes_outer,
            lags=bool(self.lags),
            differentiated=self.differentiated,
            differentiated_doc=self.differentiated_doc,
            objective=[f"objective = {Printer(calls=CALLS).text(_sums(self.objective))}"]
            if self.differentiated
            else [],
            top_k=aggregate.top_k if aggregate.kind == "ssc" else None,
            docstring=[*mathematics.mathematics(spec), *mathematics.shapes_text(spec)],
            inputs=self.inputs,
            sizes=self.sizes,
            prologue=self.prologue,
            lists=self.lists,
            start=self.start,
            independent=self.independent,
            connector=self.connector,
            token=self.token,
            token_gates=[f"{self.token_names[gate]} = {self.gate_names[gate]}[:, t]" for gate in spec.tensor_gates],
            update=self.update,
            read=self.read,
            caches=aggregate.kind != "none",
        )

    @property
    def deep(self) -> bool:
        return self.spec.memory.kind == "mlp"

    @property
    def independent(self) -> bool:
        return self.spec.segment.init == "independent"

    @property
    def connector(self) -> str:
        """The vector that routes, or nothing where nothing is routed."""
        aggregate = self.spec.aggregate
        return aggregate.connector if aggregate.kind in ROUTED else ""

    @cached_property
    def slots(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(("M", *self.spec.slots)))

    @cached_property
    def lags(self) -> tuple[Lag, ...]:
        """Every lagged token the lines read, once."""
        found = [e for step in self.spec.steps for e in walk(step.expression) if isinstance(e, Lag)]
        return tuple(dict.fromkeys(found))

    @cached_property
    def writes_outer(self) -> bool:
        calls = [e.function for step in self.spec.steps for e in walk(step.expression) if isinstance(e, Call)]
        return "outer" in calls or (self.takes_gradient and not self.deep)

    @cached_property
    def takes_gradient(self) -> bool:
        return any("grad" in names(step.expression) for step in self.spec.steps)

    @cached_property
    def identifiers(self) -> Identifiers:
        return Identifiers((*LOCALS.split(), *HELPERS, *(f"{lag.name}_{lag.lag}" for lag in self.lags)))

    @cached_property
    def slot_names(self) -> Mapping[str, str]:
        return {slot: slot if slot == "M" else self.identifiers.fresh(slot) for slot in self.slots}

    @cached_property
    def gate_names(self) -> Mapping[str, str]:
        """The gates as they stand before the loop over tokens."""
        return {gate.name: self.identifiers.fresh(gate.name) for gate in self.spec.gates}

    @cached_property
    def token_names(self) -> Mapping[str, str]:
        """The gates at one token; constants need no name of their own there."""
        return {
            gate.name: self.identifiers.fresh(f"{gate.name}_t") if gate.kind == "tensor" else self.gate_names[gate.name]
            for gate in self.spec.gates
        }

    @cached_property
    def element_names(self) -> Mapping[str, str]:
        """One layer's weights of each slot, and of the gradient."""
        return {name: self.identifiers.fresh(f"{self.slot_names.get(name, name)}_n") for name in (*self.slots, "grad")}

    @cached_property
    def printer(self) -> Printer:
        """Prints the lines of the update at one token."""
        tokens = {"v": "v_t", "k": "k_t", "grad": "grad", "h": "h"}
        return Printer({**self.slot_names, **self.token_names, **tokens}, CALLS)

    @property
    def inputs(self) -> str:
        """What the type of the state is promoted from."""
        tensors = ["q", "k", "v", *(["u"] if self.connector == "u" else []), *(["*theta"] if self.deep else [])]
        return ", ".join([*tensors, *(["*gates.values()"] if self.spec.tensor_gates else [])])

    @property
    def per_head(self) -> bool:
        """Whether some gate is a function of the head's number."""
        return any(gate.kind == "per_head" and not is_constant(gate.value) for gate in self.spec.gates)

    @property
    def sizes(self) -> str:
        if not self.deep:
            return "B, T, H, K = q.shape"
        return "B, T, H = q.shape[:3]" if self.per_head else "B, T = q.shape[:2]"

    @property
    def prologue(self) -> list[str]:
        lines = [line for gate in self.spec.gates for line in self.gate_lines(gate)]
        if self.per_head:
            lines.insert(0, "h = torch.arange(H, dtype=dtype, device=q.device)")
        if self.deep:
            lines.append("M_0 = [W.to(dtype).expand(B, *W.shape) for W in theta]")
            lines += ["zero = [torch.zeros_like(W) for W in M_0]"] if len(self.slots) > 1 else []
        else:
            lines.append("zero = q.new_zeros(B, H, v.shape[-1], K)")
        return lines if self.independent else [*lines, self.start]

    def gate_lines(self, gate: Gate) -> list[str]:
        name = self.gate_names[gate.name]
        if gate.kind == "tensor":
            return [f'{name} = gates["{gate.name}"].to(dtype)[..., None, None]  # (B, T, H, 1, 1)']
        value = gate.value
        if isinstance(value, float | int) or is_constant(value):
            number = float(value) if isinstance(value, float | int) else constant(value)
            return [f"{name} = q.new_tensor({number!r})"]
        return [f"{name} = {self.printer.text(value)}", f"{name} = {name}[:, None, None]  # (H, 1, 1)"]

    @property
    def start(self) -> str:
        """Every slot at its initial value."""
        slots = list(self.slot_names.values())
        if not self.deep:
            return " = ".join([*slots, "zero"])
        return f"{', '.join(slots)} = {', '.join(['M_0', *['zero'] * (len(slots) - 1)])}"

    @property
    def lists(self) -> str:
        """What grows along the sequence."""
        held = ["y", *["cached"] * (self.spec.aggregate.kind != "none"), *["pools"] * bool(self.connector)]
        return f"{', '.join(held)} = {', '.join('[]' for _ in held)}"

    @property
    def token(self) -> str:
        """Whatever of q, k, v and u the lines below read."""
        text = "\n".join([*self.update, *self.read])
        tensors = [x for x in "qkvu" if re.search(rf"\b{x}_t\b", text)]
        return f"{', '.join(x + '_t' for x in tensors)} = {', '.join(x + '[:, t]' for x in tensors)}"

    @cached_property
    def update(self) -> list[str]:
        """The lines of the rule, top to bottom; grad stands before the first that reads it, again where M changed."""
        first = "begin" if self.independent else "0"
        lines = [f"{e.name}_{e.lag} = _lag({e.name}, t - {e.lag}, {first})" for e in self.lags]
        chunk = self.spec.gradient_chunk if self.takes_gradient else None
        if chunk:
            lines += [f"if (t - begin) % {chunk} == 0:", "    M_chunk = M", *self.gradient_lines("M_chunk")]
        current = bool(chunk)
        for step in self.spec.steps:
            if "grad" in names(step.expression) and not current:
                lines += self.gradient_lines("M")
                current = True
            lines.append(self.step_line(step))
            current = bool(chunk) or (current and step.slot != "M")
        return lines

    def step_line(self, step: Step) -> str:
        target = self.slot_names[step.slot]
        if self.deep and not isinstance(step.expression, Name):
            return f"{target} = {self.layerwise(step.expression)}"
        return f"{target} = {self.printer.text(step.expression)}"

    def layerwise(self, expression: Expression) -> str:
        """A line of the rule over lists of weights, one a layer."""
        shaped = [name for name in names(expression) if name in self.slots or name == "grad"]
        lists = [self.slot_names.get(name, name) for name in shaped]
        each = {name: self.element_names[name] for name in shaped}
        printer = Printer({**self.printer.names, **each}, CALLS)
        sources = lists[0] if len(lists) == 1 else f"zip({', '.join(lists)}, strict=True)"
        return f"[{printer.text(expression)} for {', '.join(each.values())} in {sources}]"

    def gradient_lines(self, memory: str) -> list[str]:
        """grad of the objective at `memory`, for the token at hand."""
        if "p" not in names(self.objective):
            return ["grad = [torch.zeros_like(W) for W in M]" if self.deep else "grad = zero"]
        if self.deep:
            return [f"grad = _gradient({memory}, k_t, v_t)"]
        read, error = [f"p = _read({memory}, k_t)"], self.error
        if error is None:
            return [*read, "grad = _outer(_error(p, v_t), k_t)"]
        if is_constant(error):
            return [f"grad = _outer(torch.full_like(v_t, {constant(error)!r}), k_t)"]
        e = f"e = {self.printer.text(error)}"
        return [*(read if "p" in names(error) else []), e, "grad = _outer(e, k_t)"]

    @cached_property
    def error(self) -> Expression | None:
        """The error row as an expression, where the memory is a matrix and the objective simple."""
        return None if self.deep or self.objective is None else mathematics.error_row(self.objective)

    @cached_property
    def objective(self) -> Expression | None:
        return self.spec.objective_expression if self.takes_gradient else None

    @property
    def differentiated(self) -> str:
        """The signature of the helper that asks autograd for the objective's gradient, if one does."""
        if self.objective is None or self.error is not None or "p" not in names(self.objective):
            return ""
        return "_gradient(M, k, v)" if self.deep else "_error(p, v)"

    @property
    def differentiated_doc(self) -> str:
        what = "The gradient, by every weight of M, of" if self.deep else "e, the gradient by p of"
        return f"{what} the objective at {'p = M(k)' if self.deep else 'p'}: p and v (B, H, V)."

    @cached_property
    def read(self) -> list[str]:
        """The output of a token (SEMANTICS 4), after its own update."""
        kind = self.spec.aggregate.kind
        if kind == "none":
            return ["y_t = _read(M, q_t)"]
        if kind in ("residual", "mean"):
            divided = " / (len(cached) + 1)" if kind == "mean" else ""
            return [f"y_t = sum(_read(memory, q_t) for memory in [*cached, M]){divided}"]
        return [*self.weights, *self.mix]

    @property
    def weights(self) -> list[str]:
        """The weights of the memories read: a softmax of their routing logits."""
        aggregate = self.spec.aggregate
        pool = "key_sum / (t - begin + 1)" if aggregate.pool == "mean" else "key_sum"
        scale = f"{aggregate.scale!r} * " if aggregate.scale != 1 else ""
        r = f"r = {scale}torch.stack([({self.connector}_t * key).sum(-1) for key in [*pools, pool]], -1)"
        chosen = "_chosen(r)" if aggregate.kind == "ssc" else "r"
        return ["key_sum = key_sum + k_t", f"pool = {pool}", r, f"w = {chosen}.softmax(-1)  # (B, H, memories)"]

    @property
    def mix(self) -> list[str]:
        if self.spec.aggregate.kind != "soup":
            return ["y_t = sum(w[..., i, None] * _read(memory, q_t) for i, memory in enumerate([*cached, M]))"]
        if self.deep:
            mixed = [
                "layers = zip(*cached, M, strict=True)",
                "mixed = [sum(w[..., i, None, None] * W for i, W in enumerate(layer)) for layer in layers]",
            ]
        else:
            mixed = ["mixed = sum(w[..., i, None, None] * memory for i, memory in enumerate([*cached, M]))"]
        return [*mixed, "y_t = _read(mixed, q_t)"]


def _sums(objective: Expression) -> Expression:
    """The objective with `dot` as a sum, and without sums of plain numbers, which no gradient sees."""
    match objective:
        case Call(_, arguments) if objective.function in ("sum", "dot"):
            if is_constant(objective):
                return Number(0, NOWHERE)
            product = arguments[0] if len(arguments) == 1 else Binary("*", *arguments, NOWHERE)
            return Call("sum", (product,), NOWHERE)
        case Unary(op, operand):
            return Unary(op, _sums(operand), NOWHERE)
        case Binary(op, left, right):
            return Binary(op, _sums(left), _sums(right), NOWHERE)
    return objective
