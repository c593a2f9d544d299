"""`mcgen new`: a commented spec to start from."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import click

from mcgen.cli.output import show_diagnostics
from mcgen.errors import Diagnostic, SpecError
from mcgen.spec import PRESETS, Preset, loads
from mcgen.spec.grammar import Binary, Call, Expression, Name, parse_step, walk
from mcgen.spec.names import name_problem

DEFAULT_PRESET = "decay"


@click.command()
@click.argument("name")
@click.option(
    "--from",
    "preset",
    type=click.Choice(list(PRESETS)),
    default=DEFAULT_PRESET,
    show_default=True,
    help="The rule to start from.",
)
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), default=".", help="Where to write.")
def new(name: str, preset: str, output: Path) -> None:
    """Write NAME.yaml, a commented spec that passes `check`. Never overwrites a file.

    \b
    Example:
      mcgen new my_memory --from titans
    """
    if why := name_problem(name):
        raise SpecError(Diagnostic("error", f"the name `{name}` {why}", hint="such as titans_grm"))
    from mcgen.symbolic.diagnosis import examined

    text = scaffold(name, preset)
    path = output / f"{name}.yaml"
    found = examined(loads(text, str(path)))
    write_new(path, text)
    show_diagnostics(found)
    click.echo(f"wrote {path}; next: mcgen check {path}")


def write_new(path: Path, text: str) -> None:
    """Write a file whole or not at all, and only where none exists.

    Raises:
        FileExistsError: one does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.link(partial, path)
    except FileExistsError as error:
        raise FileExistsError(error.errno, "exists already, and is left as it is", str(path)) from None
    finally:
        partial.unlink(missing_ok=True)


def scaffold(name: str, preset_name: str) -> str:
    """The text of a spec that starts from a preset."""
    preset = PRESETS[preset_name]
    return _TEMPLATE.format(
        name=name,
        known_as=preset.known_as,
        memory=_MEMORIES[preset.memory],
        rule=preset_name,
        lines="\n".join(_written_out(preset)),
        gradient=_gradient(preset),
        gates="\n".join(_gates(preset)),
    )


_TEMPLATE = """\
# `mcgen check {name}.yaml` validates this file, `mcgen build {name}.yaml` compiles it. Every field of the language is
# in it, those that exclude others in comments. Everything from `segment` on is a default and may go.
mcgen: 1
name: {name}
doc: Started from {known_as}.

{memory}

# What happens at every token. The rule stands for these lines, which may be written instead of it:
{lines}
# A line assigns a slot; M is the memory. Names that no line assigns are gates: one number a token and head.
update:
  rule: {rule}
{gradient}
{gates}

# The sequence is cut into segments, and the memory at the end of each is cached.
# mode: logarithmic cuts it into powers of two, longest first, and takes no size.
# init: independent restarts the memory at each segment, checkpoint goes on.
segment: {{size: 256, mode: constant, init: independent}}

# How a token reads its own memory and the cached ones: none, residual (their sum), mean, grm (softmax over the
# read-outs), soup (softmax over the parameters), ssc (only the top_k best: {{kind: ssc, top_k: 2}}).
# connector: u, a projection of its own, or q; pool: mean or sum of a segment's keys; scale multiplies the logits.
aggregate: {{kind: grm, connector: u, pool: mean, scale: 1.0}}

# What kernels are specialised for: 1 to 256 each.
head: {{key_dim: 64, value_dim: 64}}

# Defaults of the layer. qk_norm: l2 or none; conv_size: 0 for no convolution; output_norm: rms or none.
layer: {{d_model: 1024, heads: 16, qk_norm: l2, conv_size: 4, output_norm: rms, output_gate: true}}
"""

_MEMORIES = {
    "matrix": (
        "# The memory: M(x) = W x. A deep one is M(x) = x + W_n act(... act(W_1 x)), and learns by gradients only:\n"
        "# memory: {kind: mlp, layers: 2, expansion: 4, activation: gelu, residual: true, norm: none}\n"
        "memory: {kind: matrix}"
    ),
    "mlp": (
        "# The memory: M(x) = x + W_n act(... act(W_1 x)). residual: false leaves out x, norm: layernorm norms the\n"
        "# rest. `kind: matrix` is M(x) = W x.\n"
        "memory: {kind: mlp, layers: 2, expansion: 4, activation: gelu, residual: true, norm: none}"
    ),
}


def _written_out(preset: Preset) -> Iterator[str]:
    if preset.objective:
        yield f'#   objective: "{preset.objective}"'
    yield "#   steps:"
    for step in preset.steps:
        yield f'#     - "{step}"'
    if not preset.objective:
        yield '# With objective: "sum((p - v)**2)/2", p = M(k), lines also know its gradient: "M = M - eta*grad".'


_GRADIENTS = {
    "matrix": """\
  # Where grad is taken: at every token, or at the memory before a chunk of tokens: {{chunk: 16}}{unused}.
  gradient: token""",
    "mlp": """\
  # Where grad is taken: at the memory before a chunk of tokens; of a matrix also at every token: token{unused}.
  gradient: {{chunk: 16}}""",
}


def _gradient(preset: Preset) -> str:
    return _GRADIENTS[preset.memory].format(unused="" if preset.objective else "; this rule takes none")


_KEEP = ("{fn: sigmoid, bias: 4.0}", "the share of the memory kept")
_MOMENTUM = ("{fn: sigmoid, bias: 1.0}", "the share of the last change carried on")
_WRITE = ("{fn: sigmoid, bias: 0.0}", "the weight of a write")
_STEP_SIZES = {
    "matrix": ("{fn: sigmoid, bias: 0.0}", "the step size"),
    "mlp": ("{fn: softplus, scale: 0.01}", "the step size"),
}

_SANE = """\
  # The layer makes a gate as scale * fn(x w + bias), or it is a constant, or one constant a head:
  #   alpha: {fn: sigmoid, bias: 4.0, scale: 1.0}    fn: sigmoid, softplus, exp, tanh, identity or decay
  #   alpha: {fn: decay, bias: -4.6, from: dt}       exp(-exp(A) softplus(x w + bias)); those from one name share w
  #   alpha: 0.98
  #   alpha: {per_head: "1 - 2**(-5 - h)"}
  # Sane biases. A gate that keeps the memory: sigmoid(4) = 0.98 is half forgotten after 38 tokens, sigmoid(6) = 0.998
  # after 280; near 0 nothing lasts. A step size, eta, with keys of length 1: on a matrix up to 1 for
  # sum((p - v)**2)/2, half of that for sum((p - v)**2); on an mlp start near 0.01, for 0.3 has been seen to diverge."""


def _gates(preset: Preset) -> Iterator[str]:
    yield _SANE
    roles = dict(_roles(preset))
    yield "  gates:" if roles else "  gates: {}  # this rule has none"
    for name, (form, meaning) in roles.items():
        yield f"    {name}: {form}  # {meaning}"


def _roles(preset: Preset) -> Iterator[tuple[str, tuple[str, str]]]:
    """Each gate of a rule and what it does, told from what it multiplies."""
    for step in preset.steps:
        for part in walk(parse_step(step)[1]):
            if isinstance(part, Binary) and part.op == "*" and isinstance(part.left, Name):
                yield part.left.id, _role(part.right, preset)


def _role(factor: Expression, preset: Preset) -> tuple[str, str]:
    if isinstance(factor, Call):
        return _WRITE
    if isinstance(factor, Name) and factor.id == "grad":
        return _STEP_SIZES[preset.memory]
    return _KEEP if isinstance(factor, Name) and factor.id == "M" else _MOMENTUM
