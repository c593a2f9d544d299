"""The typed model of a spec file: fields, types, defaults and ranges. What holds between fields is in `contradictions`.

A default of None is one that depends on other fields; `loading` fills it in.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from mcgen.spec.presets import PRESETS

RuleName = Literal[tuple(PRESETS)]
GateFunction = Literal["sigmoid", "softplus", "exp", "tanh", "identity", "decay"]
Real = Annotated[float, AfterValidator(float)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Memory(Section):
    """The memory: a function of its parameters."""

    kind: Literal["matrix", "mlp"] = Field(description="M(x) = W x, or M(x) = x + W_n σ(… σ(W_1 x))")
    layers: int = Field(2, ge=2, le=64, description="mlp: number of weight matrices")
    expansion: int = Field(4, ge=1, le=64, description="mlp: hidden width as a multiple of key_dim")
    activation: str = Field(
        "gelu",
        description="mlp: gelu (exact), silu, relu, tanh, sigmoid, softplus, or an expression in x",
        examples=["gelu", "x*sigmoid(1.702*x)"],
    )
    residual: bool = Field(True, description="mlp: add the input to the output; needs value_dim equal to key_dim")
    norm: Literal["none", "layernorm"] = Field("none", description="mlp: normalisation of the output, without affine")


class Chunk(Section):
    chunk: Count = Field(description="gradients at the memory as it stood before each chunk of this many tokens")


class PerHead(Section):
    per_head: str = Field(
        description="one constant a head, an expression in the head's number h = 0, 1, …", examples=["1 - 2**(-5 - h)"]
    )


class GateMap(Section):
    """How the layer makes a gate from its input: scale * fn(x w_h + bias), one projection a head."""

    fn: GateFunction = Field("sigmoid", description="decay is exp(-exp(A_h) * softplus(x w_h + bias)), A_h learned")
    bias: Real = Field(0.0, description="added to the projection before fn")
    scale: Real = Field(1.0, description="multiplies the result of fn")
    source: str | None = Field(None, alias="from", description="gates from the same NAME share a projection")


NUMBER, PER_HEAD, MAPPING, TOKEN, CHUNK = FORMS = ("<number>", "<per_head>", "<mapping>", "<token>", "<chunk>")
"""Names of the forms that a gate or the gradient can have; pydantic puts them into the location of an error."""


def _gate_form(value: Any) -> str:
    if isinstance(value, PerHead | GateMap):
        return PER_HEAD if isinstance(value, PerHead) else MAPPING
    if isinstance(value, dict):
        return PER_HEAD if "per_head" in value else MAPPING
    return NUMBER


def _gradient_form(value: Any) -> str:
    return CHUNK if isinstance(value, dict | Chunk) else TOKEN


GateSpec = Annotated[
    Annotated[Real, Tag(NUMBER)] | Annotated[PerHead, Tag(PER_HEAD)] | Annotated[GateMap, Tag(MAPPING)],
    Discriminator(_gate_form),
]
Gradient = Annotated[
    Annotated[Literal["token"], Tag(TOKEN)] | Annotated[Chunk, Tag(CHUNK)], Discriminator(_gradient_form)
]


class Update(Section):
    """The recurrence: a preset, or its lines."""

    rule: RuleName | None = Field(None, description="a preset, instead of objective and steps")
    objective: str | None = Field(
        None,
        description="what `grad` is the gradient of: sums over the value dimension, in p = M(k) and v",
        examples=["sum((p - v)**2)/2", "-dot(p, v)"],
    )
    steps: Annotated[tuple[str, ...], Field(strict=False, min_length=1, max_length=32)] | None = Field(
        None,
        description="assignments to slots, run top to bottom at every token; M is the memory",
        examples=[["S = beta*S - eta*grad", "M = alpha*M + S"]],
    )
    gradient: Gradient | None = Field(
        None, description="where grad is taken; default token for a matrix and {chunk: 16} for an mlp"
    )
    gates: dict[str, GateSpec] = Field(
        {},
        description="how each gate is made: a mapping, a constant, or a constant a head; default {fn: sigmoid}",
    )


class Segment(Section):
    """How the sequence is cut; the memory at the end of each segment is cached."""

    size: Count | None = Field(None, description="tokens a segment, for mode constant; default 256")
    mode: Literal["constant", "logarithmic"] = Field(
        "constant", description="logarithmic: the binary expansion of the length, longest first"
    )
    init: Literal["independent", "checkpoint"] | None = Field(
        None,
        description="whether slots restart at a segment or go on; default independent, checkpoint with aggregate none",
    )


class Aggregate(Section):
    """How a token reads its online memory and the cached ones."""

    kind: Literal["none", "residual", "mean", "grm", "soup", "ssc"] = Field(
        "grm", description="what is combined, and how"
    )
    connector: Literal["u", "q"] = Field("u", description="the vector that routes")
    pool: Literal["mean", "sum"] = Field("mean", description="how a segment's keys become its routing key")
    scale: Real = Field(1.0, description="multiplies the routing logits")
    top_k: Count | None = Field(None, description="ssc: how many cached segments a token reads")


class Head(Section):
    """What kernels are specialised for."""

    key_dim: int = Field(64, ge=1, le=256, description="width of queries, keys and connectors")
    value_dim: int = Field(64, ge=1, le=256, description="width of values and outputs")


class Layer(Section):
    """Defaults of the nn.Module."""

    d_model: Count = Field(1024, description="width of the layer's input and output")
    heads: Count = Field(16, description="heads, each a memory of its own")
    qk_norm: Literal["l2", "none"] = Field("l2", description="normalisation of queries and keys")
    conv_size: int = Field(4, ge=0, le=256, description="width of the causal convolution; 0 for none")
    output_norm: Literal["rms", "none"] = Field("rms", description="normalisation of the read-out, a head")
    output_gate: bool = Field(True, description="multiply the read-out by a gate made from the input")


class SpecFile(Section):
    """A memory spec."""

    mcgen: Annotated[int, Field(ge=1, le=1, description="format version: 1")]
    name: str = Field(
        description="a Python identifier; names the module and, in camel case, the layer's class",
        json_schema_extra={"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
    )
    doc: str = Field("", description="any text, for the generated file's readers")
    memory: Memory
    update: Update
    segment: Segment = Segment()
    aggregate: Aggregate = Aggregate()
    head: Head = Head()
    layer: Layer = Layer()
