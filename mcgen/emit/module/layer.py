"""The `torch.nn.Module` of a generated module: what surrounds the memory in a model, around the file's own `op`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from mcgen.emit.say.mathematics import labelled, weight_shapes
from mcgen.emit.text.expressions import TORCH_FUNCTIONS, Identifiers
from mcgen.emit.text.rendering import render
from mcgen.spec import Gate, Spec

ATTRIBUTES = ("q_proj", "k_proj", "v_proj", "u_proj", "g_proj", "o_proj", "o_norm", "q_conv1d", "k_conv1d", "v_conv1d")
"""Attributes of every layer, which no gate's parameter may take."""

LOCALS = ("self", "x", "torch", "F", "_widen", "_project", "_discount")
"""What the function that makes gates reads, which no variable of its own may be called."""

FUNCTIONS = {
    **{name: TORCH_FUNCTIONS[name] for name in ("sigmoid", "softplus", "exp", "tanh")},
    "identity": "({})",
    "decay": "_discount({}, self.{A_log})",
}
"""What makes a gate of z = x w_h + bias."""

FORMULAS = {"identity": "z", "decay": "exp(-exp(A) softplus(z))"}


def layer_source(spec: Spec) -> str:
    """The text that defines the layer's class, the helpers it calls, and its other name, `Layer`.

    The class calls `op` and raises `UnsupportedError`, which stand in the same file. Its parameters, with H heads:

        q_proj, k_proj, v_proj, g_proj, o_proj     projections without bias; u_proj where the aggregate routes by u
        q_conv1d, k_conv1d, v_conv1d               depthwise causal convolutions
        o_norm                                     the scale of the output's norm
        NAME_proj                                  (H, d_model), one a gate, or one for all gates `from: NAME`
        NAME_bias, NAME_A_log                      (H,), a gate's bias and, for fn: decay, the logarithm of its rate;
                                                   gates that share a projection and the initial bias share the bias
        theta                                      the memory's initial weights, (H, out, in) each
    """
    return _Layer(spec).source()


@dataclass(frozen=True)
class _Layer:
    spec: Spec

    def source(self) -> str:
        spec = self.spec
        layer = render(
            "layer.py.jinja",
            class_name=spec.class_name,
            layer=spec.layer,
            key_dim=spec.head.key_dim,
            value_dim=spec.head.value_dim,
            routes_by_u=spec.routes_by_u,
            discounts=bool(self.rates),
            docstring=self.docstring,
            declarations=[*self.gate_declarations, *self.theta_declarations],
            resets=self.resets,
            undecayed=self.numbers_a_head,
            projections=[
                f"{name} = _widen(_project(x, self.{self.projections[key]}))" for key, name in self.locals.items()
            ],
            gates=[f'"{gate.name}": {self.made(gate)},' for gate in self.gates],
            arguments=self.arguments,
            keeps_state=spec.segment.size is not None,
        )
        padded = render("padded.py.jinja", keeps_state=spec.segment.size is not None)
        return f"{padded.strip()}\n\n\n{layer}"

    @cached_property
    def gates(self) -> tuple[Gate, ...]:
        return tuple(gate for gate in self.spec.gates if gate.kind == "tensor")

    @cached_property
    def attributes(self) -> Identifiers:
        return Identifiers(ATTRIBUTES)

    @cached_property
    def projections(self) -> Mapping[str, str]:
        """The attribute that projects x, for each projection's name."""
        keys = dict.fromkeys(_projection(gate) for gate in self.gates)
        return {key: self.attributes.fresh(f"{key}_proj") for key in keys}

    @cached_property
    def locals(self) -> Mapping[str, str]:
        """The variable that holds what each projection gives."""
        identifiers = Identifiers(LOCALS)
        return {key: identifiers.fresh(key) for key in self.projections}

    @cached_property
    def biases(self) -> Mapping[tuple[str, float], str]:
        """The attribute of each bias; gates of one projection that start at one bias have it in common."""
        keys = dict.fromkeys((_projection(gate), gate.bias) for gate in self.gates)
        shared = [projection for projection, _ in keys]
        owners = {key: next(gate for gate in self.gates if (_projection(gate), gate.bias) == key) for key in keys}
        wanted = {key: key[0] if shared.count(key[0]) == 1 else owners[key].name for key in keys}
        return {key: self.attributes.fresh(f"{name}_bias") for key, name in wanted.items()}

    @cached_property
    def rates(self) -> Mapping[str, str]:
        """The attribute of log A, for each gate that has one."""
        return {gate.name: self.attributes.fresh(f"{gate.name}_A_log") for gate in self.gates if gate.fn == "decay"}

    def made(self, gate: Gate) -> str:
        """The expression that makes a gate."""
        key = _projection(gate)
        z = f"{self.locals[key]} + self.{self.biases[key, gate.bias]}"
        text = FUNCTIONS[gate.fn].format(z, A_log=self.rates.get(gate.name))
        if gate.scale != 1:
            return f"{gate.scale!r} * {text}"
        return z if gate.fn == "identity" else text

    @property
    def gate_declarations(self) -> list[str]:
        linear = "torch.nn.Linear(d_model, heads, bias=False, **factory)"
        lines = [f"self.{name} = {linear}" for name in self.projections.values()]
        numbers = [f"self.{name} = torch.nn.Parameter(torch.empty(heads, **factory))" for name in self.numbers_a_head]
        return lines + numbers

    @property
    def numbers_a_head(self) -> list[str]:
        return [*self.biases.values(), *self.rates.values()]

    @cached_property
    def shapes(self) -> list[tuple[int, int]]:
        return weight_shapes(self.spec) if self.spec.memory.kind == "mlp" else []

    @property
    def theta_declarations(self) -> list[str]:
        if not self.shapes:
            return []
        hidden = len(self.shapes) - 2
        if hidden > 1:
            first, middle, last = self.shapes[0], self.shapes[1], self.shapes[-1]
            shapes = f"{first}, *[{middle}] * {hidden}, {last}"
        else:
            shapes = ", ".join(str(shape) for shape in self.shapes)
        return [
            f"shapes = [{shapes}]",
            "weights = (torch.empty(heads, out, into, **factory) for out, into in shapes)",
            "self.theta = torch.nn.ParameterList(map(torch.nn.Parameter, weights))",
        ]

    @property
    def resets(self) -> list[str]:
        lines = [f"torch.nn.init.constant_(self.{name}, {key[1]!r})" for key, name in self.biases.items()]
        lines += [f"self.{name}.uniform_(1, 16).log_()  # as Mamba-2" for name in self.rates.values()]
        if self.shapes:
            lines += ["for W in self.theta:", "    torch.nn.init.normal_(W, std=W.shape[-1] ** -0.5)"]
        return lines

    @property
    def arguments(self) -> str:
        tensors = ["q", "k", "v", *(["u"] if self.spec.routes_by_u else [])]
        theta = ["theta=list(self.theta)"] if self.shapes else []
        return ", ".join([*tensors, *theta, *(["**self.gates(x)"] if self.gates else [])])

    @property
    def docstring(self) -> list[str]:
        """The mathematics around the memory."""
        rows = ["q, k, v = silu(conv(x W)), q and k over their Euclidean norms"]
        rows += ["u = x W_u"] if self.spec.routes_by_u else []
        made = [self.formula(gate) for gate in self.gates]
        lines = [*labelled("inputs", rows), *labelled("gates", made)]
        return [*lines, *labelled("output", ["rms(op(q, k, v, …)) * silu(x W_g), times W_o"])]

    def formula(self, gate: Gate) -> str:
        scale = f"{gate.scale!r} " if gate.scale != 1 else ""
        text = FORMULAS.get(gate.fn, f"{gate.fn}(z)")
        return f"{gate.name} = {scale}{text}, z = x W_{_projection(gate)} + bias, the bias at first {gate.bias!r}"


def _projection(gate: Gate) -> str:
    """The name of the projection that a gate is made from."""
    return gate.source or gate.name
