"""What is refused, in one place: each message about it is made here, and so is the page of the docs.

A refusal is of something that a reader of papers may well write. Plain mistakes, such as an unknown name, are not here.
`$word` in a text stands for what a user's file has there; `words` are those of the example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Template

PAGE = "docs/refusals.md"
"""Where the page of the docs lies; `make docs` writes it."""


@dataclass(frozen=True)
class Refusal:
    """`feature` is what was written, `reason` why it is refused, `instead` what there is for it.

    `example` is the part of a spec that meets it, or the call of a generated file.
    """

    feature: str
    reason: str
    instead: str
    example: str
    words: Mapping[str, str] = field(default_factory=dict)

    def message(self, **words: object) -> str:
        """The headline of a diagnostic."""
        return _filled(self.feature, words)

    def hint(self, **words: object) -> str:
        """What stands under its carets."""
        return _filled(f"{self.reason}; {self.instead}", words)

    def sentence(self) -> str:
        """The message of an exception in a generated file."""
        return f"{self.feature} {self.reason}; {self.instead}"


def _filled(text: str, words: Mapping[str, object]) -> str:
    return Template(text).substitute(words)


_GRADIENT_IS_A_READ = "with objective: sum((p - v)**2)/2, grad is outer(M(k) - v, k)"

GATE_BY_CHANNEL = Refusal(
    "unknown field `$field`, for a gate by channel",
    "a gate is one number a token and head; one by channel is not in the language yet",
    "remove it: alpha*M scales all of M",
    "update: {rule: decay, gates: {alpha: {fn: sigmoid, per: key}}}",
    {"field": "per"},
)
DIAGONAL = Refusal(
    "diag(…) in a step",
    "a gate is one number a token and head; a decay by channel is not in the language yet",
    "$gate*M scales all of M",
    'update: {steps: ["M = M*diag(alpha) + outer(v, k)"]}',
    {"gate": "alpha"},
)
READ = Refusal(
    "a read of the memory, `$text`, in a step",
    "a rule reads the memory through grad alone; reads at keys of its own are not in the language yet",
    _GRADIENT_IS_A_READ,
    'update: {steps: ["M = M - eta*outer(M(k1) - v1, k1)"]}',
    {"text": "M(k1) - v1"},
)
PRODUCT_OF_MATRICES = Refusal(
    "'@' is not part of the language",
    "S @ x, a read of the memory, is not in the language yet",
    f"{_GRADIENT_IS_A_READ}; a product with a number is written *, of two vectors of an objective dot(p, v)",
    'update: {steps: ["M = M - eta*outer(M @ k - v, k)"]}',
)
MATRIX_FUNCTION = Refusal(
    "$function(…) in a step",
    "lines are linear in the slots, for only then a chunk of tokens has a closed form",
    "a term is a number or a function of gates, times a slot, outer(v, k) or grad",
    'update: {steps: ["H = H + outer(v, k)", "M = inv(H)"]}',
    {"function": "inv"},
)
SQUARE = Refusal(
    "outer of two keys, or of two values",
    "a slot is shaped like the memory, value by key",
    "outer(v, k), with lags as in outer(v[-1], k[-2]), is what it takes in",
    'update: {steps: ["M = M + outer(k, k)"]}',
)
SECOND_PAIR = Refusal(
    "another key or value in outer",
    "an operator takes one k and one v a token; a second pair is not in the language yet",
    "earlier tokens' are k[-1] and v[-1]",
    'update: {steps: ["M = M + outer(v, k) + outer(v2, k2)"]}',
)
LAG_ON_GRADIENT = Refusal(
    "a lag on grad",
    "grad is of the token at hand",
    "a slot read above the line that assigns it is last token's: end with `G = grad`, and read G before. "
    "Momentum is S = beta*S - eta*grad",
    'update: {objective: sum((p - v)**2)/2, steps: ["M = M - eta*grad[-1]"]}',
)
LAG_ON_SLOT = Refusal(
    "a lag on a slot",
    "only v and k inside outer(…) take one",
    "a line above the one that assigns `$name` reads last token's value",
    'update: {steps: ["M = alpha*M[-1] + outer(v, k)"]}',
    {"name": "M"},
)
LAG_ON_GATE = Refusal(
    "a lag on a gate",
    "only v and k inside outer(…) take one: v[-1]",
    "an earlier token's gate is a gate of another name",
    'update: {steps: ["M = alpha[-1]*M + outer(v, k)"]}',
)
LAG_ON_NAME = Refusal(
    "a lag on `$name`",
    "only v and k inside outer(…) take one: v[-1]",
    "a step knows slots, gates, grad and outer(v, k)",
    'update: {steps: ["M = M + u[-1]*outer(v, k)"]}',
    {"name": "u"},
)
NOT_LINEAR = Refusal(
    "not linear in the slots",
    "only then a chunk of tokens has a closed form",
    "each term is a number or a function of gates, times one slot, outer(...) or grad",
    'update: {steps: ["M = tanh(M) + outer(v, k)"]}',
)
CYCLE = Refusal(
    "slots feed one another in a cycle: $cycle",
    "their recurrence has no triangular form",
    "let a slot read only slots that do not read it back, directly or through others",
    'update: {steps: ["S = S + a*M", "M = M + b*S + outer(v, k)"]}',
    {"cycle": "S -> M -> S"},
)
OUTER_ON_MLP = Refusal(
    "outer(…) on an mlp",
    "an mlp learns by grad",
    "only a matrix takes outer(v, k)",
    "{memory: {kind: mlp}, update: {rule: linear}}",
)
FUNCTION_OF_A_SUM = Refusal(
    "a function of a sum, or a product of sums",
    "an error row is a function of p and v, element by element",
    "an objective is a combination of sum(…) and dot(…) with numbers for coefficients",
    'update: {objective: "sqrt(dot(p - v, p - v))", steps: ["M = M - eta*grad"]}',
)
OTHER_NAMES_IN_AN_OBJECTIVE = Refusal(
    "unknown name `$name` in $place",
    "it knows only p and v",
    "weigh a term by a gate in the steps: eta*grad",
    'update: {objective: sum(w*(p - v)**2), steps: ["M = M - eta*grad"]}',
    {"name": "w", "place": "the sum of an objective"},
)
ROUTER = Refusal(
    "unknown field `$field`, for another router",
    "not in the language yet",
    "a segment has one pooled key, memories are weighed by softmax, and ssc chooses by routing logits",
    "{update: {rule: linear}, aggregate: {kind: grm, weight: sigmoid}}",
    {"field": "weight"},
)

TOKEN_GRADIENTS_OF_AN_MLP = Refusal(
    "gradient: token needs a matrix memory",
    "inside a chunk, only a linear memory's gradients have a closed form",
    "take gradient: {chunk: b} for an mlp$same",
    "{memory: {kind: mlp}, update: {rule: titans, gradient: token}}",
    {"same": " ({chunk: 1} is the same as token here)"},
)
TOKEN_GRADIENTS_NOT_AFFINE = Refusal(
    "gradient: token needs an objective quadratic in p, with a curvature that is a number",
    "this one's gradient by p is $row",
    "take gradient: {chunk: b}$same",
    'update: {objective: sum(abs(p - v)), steps: ["M = M - eta*grad"]}',
    {"row": "sign(p - v)", "same": " ({chunk: 1} is the same as token here)"},
)
SCALE_ZERO = Refusal(
    "aggregate.scale: 0",
    "it weighs all memories alike",
    "take kind: mean for that",
    "{update: {rule: linear}, aggregate: {kind: grm, scale: 0}}",
)
FLAT_ACTIVATION = Refusal(
    "an activation whose derivative is 0 everywhere",
    "no layer but the last would learn",
    "take one that has a derivative, such as gelu or tanh(x)",
    "{memory: {kind: mlp, activation: sign(x)}, update: {rule: dla}}",
)
NOTHING_WRITTEN = Refusal(
    "nothing is ever written to M",
    "it holds nothing of the sequence",
    "write outer(v, k) to a matrix, or descend by grad",
    'update: {steps: ["M = alpha*M"]}',
)

STATE_OF_LOGARITHMIC_SEGMENTS = Refusal(
    "state= and return_state=",
    "need segments that do not depend on T",
    "set segment: {mode: constant}",
    "op(q, k, v, u, return_state=True) of a spec with segment: {mode: logarithmic}",
)
STATE_IN_A_TRANSFORM = Refusal(
    "state= and return_state=",
    "are not lowered under torch.func's transforms",
    "use autograd and a batch",
    "torch.func.vmap(functools.partial(op, return_state=True))(q, k, v, u)",
)
SECOND_DERIVATIVES = Refusal(
    "second derivatives of op",
    "are not lowered",
    "differentiate `reference` twice instead",
    "torch.autograd.grad(y.sum(), q, create_graph=True)[0].sum().backward()",
)
FORWARD_MODE = Refusal(
    "forward-mode derivatives of op",
    "are not lowered",
    "take those of `reference` instead",
    "torch.func.jvp(op, (q, k, v, u), tangents)",
)
FLOAT64_ON_TRITON = Refusal(
    "float64",
    "is not lowered to Triton",
    'pass float32, float16 or bfloat16, or backend="torch"',
    'op(q.double(), k.double(), v.double(), u.double(), backend="triton")',
)
LENGTH_IN_A_GRAPH = Refusal(
    "tokens met first in a CUDA graph",
    "have no tables yet",
    "run both passes before capturing",
    'op(q, k, v, u, backend="triton") inside torch.cuda.graph(graph)',
)

LANGUAGE = (
    GATE_BY_CHANNEL,
    DIAGONAL,
    READ,
    PRODUCT_OF_MATRICES,
    MATRIX_FUNCTION,
    SQUARE,
    SECOND_PAIR,
    LAG_ON_GRADIENT,
    LAG_ON_SLOT,
    LAG_ON_GATE,
    LAG_ON_NAME,
    NOT_LINEAR,
    CYCLE,
    OUTER_ON_MLP,
    FUNCTION_OF_A_SUM,
    OTHER_NAMES_IN_AN_OBJECTIVE,
    ROUTER,
)
LOWERING = (TOKEN_GRADIENTS_OF_AN_MLP, TOKEN_GRADIENTS_NOT_AFFINE, FLAT_ACTIVATION, SCALE_ZERO, NOTHING_WRITTEN)
GENERATED = (
    STATE_OF_LOGARITHMIC_SEGMENTS,
    STATE_IN_A_TRANSFORM,
    SECOND_DERIVATIVES,
    FORWARD_MODE,
    FLOAT64_ON_TRITON,
    LENGTH_IN_A_GRAPH,
)

GROUPS: dict[str, tuple[str, tuple[Refusal, ...]]] = {
    "language": ("Not in the language: refused by every command that reads a spec", LANGUAGE),
    "lowering": (
        "In the language, but not lowered: `check --parse-only` accepts it, `check` and `build` do not",
        LOWERING,
    ),
    "generated": ("By generated files: an `UnsupportedError`", GENERATED),
}
"""Each group's title and what is in it, in the order in which a user meets them."""

CHANNEL_FIELDS = ("per", "axis", "channel", "channels", "dim", "norm", "like", "A")
"""What one would call the field that makes a gate a vector, or says how one is made."""

ROUTER_FIELDS = ("descriptor", "weight", "weights", "choose", "score", "blocks")

MATRIX_FUNCTIONS = ("inv", "inverse", "pinv", "solve", "transpose", "trace", "det", "norm", "normalize", "softmax")
MATRIX_FUNCTIONS += (
    "matmul",
    "mm",
    "einsum",
    "eye",
    "identity",
    "cumsum",
    "mean",
    "svd",
    "qr",
    "polar",
    "newton_schulz",
)


def page() -> str:
    """The page of the docs, as Markdown."""
    lines = [
        "# What mcgen refuses",
        "",
        "Each with why, and with what there is instead. A spec's line or call that meets it is shown first.",
        "",
        "<!-- `make docs` writes this page from mcgen/spec/refusals.py. -->",
    ]
    for title, refusals in GROUPS.values():
        lines += ["", f"## {title}", "", "| for example | refused | why | instead |", "| --- | --- | --- | --- |"]
        lines += [f"| {' | '.join(_cells(refusal))} |" for refusal in refusals]
    return "\n".join(lines) + "\n"


def row(refusal: Refusal) -> tuple[str, str, str, str]:
    """Example, feature, reason and what there is instead, as text."""
    shown = (_filled(text, refusal.words) for text in (refusal.feature, refusal.reason, refusal.instead))
    return (refusal.example, *shown)


def _cells(refusal: Refusal) -> tuple[str, ...]:
    """A row of the page: the example as code, and text without what Markdown would read as its own."""
    example, *texts = row(refusal)
    return (f"`{example}`", *map(_escaped, texts))


def _escaped(text: str) -> str:
    """Text outside code with a backslash before each star."""
    pieces = text.split("`")
    return "`".join(piece if index % 2 else piece.replace("*", "\\*") for index, piece in enumerate(pieces))
