"""Warnings about rules: what each is about, where it points, and that its remedy is one.

In each text, « and » mark the piece that the carets must lie under.
"""

from __future__ import annotations

import math
import re

import pytest
import torch
import yaml

from mcgen.errors import Diagnostic
from mcgen.spec import Gate, load, loads
from mcgen.spec.shipped import shipped
from mcgen.symbolic.advice import advice, initial
from mcgen.symbolic.diagnosis import examined
from mcgen.symbolic.meaning import meaning
from tests.spec.test_diagnostics import unmarked

MATRIX = "mcgen: 1\nname: a\nmemory: {kind: matrix}\n"
MLP = "mcgen: 1\nname: a\nmemory: {kind: mlp}\n"


def rule(*steps: str, gates: str = "", head: str = MATRIX, objective: str = "", more: str = "") -> str:
    lines = "".join(f'    - "{step}"\n' for step in steps)
    said = f"  objective: {objective}\n" if objective else ""
    return f"{head}update:\n{said}  steps:\n{lines}  gates: {{{gates}}}\n{more}"


def found(text: str) -> tuple[Diagnostic, ...]:
    return advice(meaning(loads(text, "a.yaml")))


KEEP, FORGET = "{fn: sigmoid, bias: 4.0}", "{fn: sigmoid, bias: -4.0}"

WARNINGS: dict[str, tuple[str, str, str]] = {
    # a share of the memory that is forgotten at once
    "no entry": (rule("M = «alpha»*M + outer(v, k)"), "M keeps 0.5 of itself", f"{{alpha: {KEEP}}}, or fn: decay"),
    "no entry, of a preset": (MATRIX + "update: {rule: «decay»}\n", "(in `M = alpha*M + outer(v, k)`)", KEEP),
    "no entry, of a deep memory": (
        MLP + "update: {rule: «gated_delta», gates: {eta: {fn: softplus, scale: 0.01}}}\n",
        "`alpha` has no entry in gates",
        KEEP,
    ),
    "entry without a bias": (rule("M = a*M + outer(v, k)", gates="«a»: {fn: sigmoid}"), "`a` is 0.5 at first", KEEP),
    "bias too small": (rule("M = a*M + outer(v, k)", gates="«a»: {bias: 1.0}"), "M keeps 0.731 of itself", KEEP),
    "decay without a bias": (
        rule("M = a*M + outer(v, k)", gates="«a»: {fn: decay}"),
        "M keeps 0.5 of itself",
        "{fn: decay, bias: -4.6}",
    ),
    "tanh": (rule("M = a*M + outer(v, k)", gates="«a»: {fn: tanh}"), "M keeps 0 of itself", "{fn: tanh, bias: 4.0}"),
    "what is left": (rule("M = (1 - «z»)*M + z*outer(v, k)"), "M keeps 0.5 of itself", f"{{z: {FORGET}}}"),
    "a rate": (
        rule("M = exp(-g)*M + outer(v, k)", gates="«g»: {fn: softplus}"),
        "M keeps 0.5 of itself",
        "{fn: softplus, bias: -4.0}",
    ),
    "one of two": (rule("M = «a»*b*M + outer(v, k)", gates=f"b: {KEEP}"), "M keeps 0.491 of itself", f"{{a: {KEEP}}}"),
    "times a constant a head": (
        rule("M = «a»*b*M + outer(v, k)", gates='b: {per_head: "1 - 2**(-5 - h)"}'),
        "M keeps 0.5 of itself",
        f"{{a: {KEEP}}}",
    ),
    "another slot": (
        rule("S = «beta»*S + outer(v, k)", "M = M + S"),
        "S keeps 0.5 of itself",
        "{fn: sigmoid, bias: 1.0}}, or bias: 4.0",
    ),
    # a share above 1
    "constant": (rule("M = a*M + outer(v, k)", gates="a: «1.05»"), "M grows by 1.05 a token", "at most all"),
    "negative constant": (rule("M = a*M + outer(v, k)", gates="a: «-2»"), "M grows by 2 a token", "at most all"),
    "constant a head": (
        rule("M = a*M + outer(v, k)", gates="a: {per_head: «1 + 2**(-5 - h)»}"),
        "M grows by 1.03125 a token",
        "at most all",
    ),
    "number": (rule("M = «1.5*M + outer(v, k)»"), "M grows by 1.5 a token", "at most all"),
    "of another slot": (rule("S = a*S + outer(v, k)", "M = M + S", gates="a: «1.1»"), "S grows by 1.1 a token", ""),
    "gate": (
        rule("M = a*M + outer(v, k)", gates="«a»: {fn: softplus, bias: 4.0}"),
        "M grows by 4.01815 a token",
        KEEP,
    ),
    "gate times a number": (rule("M = 3*a*M + outer(v, k)", gates=f"«a»: {KEEP}"), "M grows by 2.94604", "at most all"),
    # what the layer and a step both do
    "sigmoid twice": (
        rule("M = «sigmoid(a)»*M + outer(v, k)"),
        "`sigmoid(a)` of a gate that the layer makes by sigmoid already",
        "{a: {fn: identity, bias: 4.0}}",
    ),
    "exp of a sigmoid": (rule("M = «exp(a)»*M + outer(v, k)"), "makes by sigmoid already", "{fn: identity, bias: 0.0}"),
    "tanh of the layer's": (
        rule("M = M + «sigmoid(a)»*outer(v, k)", gates="a: {fn: tanh}"),
        "makes by tanh already",
        "fn: identity",
    ),
    "of a negative one": (
        rule("M = «sigmoid(-a)»*M + outer(v, k)", gates="a: {fn: softplus}"),
        "makes by softplus already",
        "{fn: identity, bias: -4.0}",
    ),
    # steps of a deep memory
    "step size": (
        MLP + "update: {rule: «dla»}\n",
        "steps of 0.5 along gradients of an mlp",
        "{fn: softplus, bias: 0.0, s",
    ),
    "step size of a line": (
        rule("M = M - «eta»*grad", objective="-dot(p, v)", head=MLP),
        "steps of 0.5",
        "those of a chunk of 16 tokens add up",
    ),
    # gradients that are 0
    "signs": (rule("M = M - e*grad", objective="«sum(abs(p - v))»"), "by v is 0 everywhere", "sqrt(1 + x**2)"),
    "signs, of a deep memory": (
        rule("M = M - e*grad", objective="«sum(abs(p - v))»", head=MLP, gates="e: {fn: softplus, scale: 0.01}"),
        "sign(p - v), has no derivative by v",
        "sum((p - v)**2)/2",
    ),
    "a gate through sign": (
        rule("M = M + sign(«b»)*outer(v, k)"),
        "the gradient by `b` is 0 everywhere: sign(b) has no derivative by it",
        "a constant",
    ),
    "a gate that cancels": (rule("M = M + («b» - b)*outer(v, k) + outer(v, k)"), "M does not depend on it", "smoothly"),
    "a gate of zeros": (
        rule("M = «a»*M + outer(v, k)", more="segment: {size: 1}\n"),
        "the gradient by `a` is 0 everywhere: what it multiplies is 0",
        "",
    ),
    "memory of zeros": (rule("M = M - e*grad", objective="«dot(p, p)»"), "M never leaves 0", "tells v from 0"),
    "writes that reach nothing": (
        MATRIX + 'update: {steps: [«"M = M + outer(v[-2], k)"»]}\nsegment: {size: 2}\n',
        "M never leaves 0",
        "write outer(v, k)",
    ),
    "scale of zero": (rule("M = M + e*outer(v, k)", gates="«e»: {scale: 0}"), "`e` is always 0", "e: 0.0"),
}


@pytest.mark.parametrize(("text", "message", "hint"), WARNINGS.values(), ids=WARNINGS)
def test_a_warning_says_what_is_wrong_where_and_what_to_write(text: str, message: str, hint: str) -> None:
    text, place = unmarked(text)
    (one,) = found(text)
    assert one.severity == "warning"
    assert message in one.message
    assert hint in one.hint
    assert (one.line, one.column, one.length) == place


@pytest.mark.parametrize("text", [text for text, _, hint in WARNINGS.values() if "{fn: " in hint])
def test_a_remedy_is_one(text: str) -> None:
    """Written where it says, no warning is left."""
    text, _ = unmarked(text)
    (one,) = found(text)
    remedy = yaml.safe_load(re.search(r"write gates: (\{\w+: \{[^}]*\}\})", one.hint)[1])
    whole = yaml.safe_load(text)
    whole["update"]["gates"] = {**(whole["update"].get("gates") or {}), **remedy}
    assert not found(yaml.safe_dump(whole))


FINE: dict[str, str] = {
    "no share": rule("M = M + b*outer(v, k)"),
    "kept": rule("M = a*M + outer(v, k)", gates=f"a: {KEEP}"),
    "kept for six tokens": rule("M = a*M + outer(v, k)", gates="a: {bias: 2.0}"),
    "a decay": rule("M = a*M + outer(v, k)", gates="a: {fn: decay, bias: -4.6}"),
    "a constant that forgets": rule("M = a*M + outer(v, k)", gates="a: 0.25"),
    "a constant of 1": rule("M = a*M + outer(v, k)", gates="a: 1"),
    "a listed trace": rule("S = b*S + outer(v, k)", "M = M + S", gates="b: {fn: sigmoid, bias: 0.0}"),
    "a rate": rule("M = exp(-g)*M + outer(v, k)", gates="g: {fn: softplus, bias: -4.6}"),
    "a negative rate": rule("M = exp(g)*M + outer(v, k)", gates="g: {fn: softplus, bias: -4.6, scale: -1}"),
    "identity": rule("M = sigmoid(a)*M + outer(v, k)", gates="a: {fn: identity, bias: 4.0}"),
    "a function of two gates": rule("M = M + sigmoid(a + b)*outer(v, k)"),
    "a small step": rule("M = M - 0.01*eta*grad", objective="-dot(p, v)", head=MLP),
    "a listed step": rule("M = M - eta*grad", objective="-dot(p, v)", head=MLP, gates="eta: {fn: sigmoid}"),
    "a step of a matrix": MATRIX + "update: {rule: delta}\n",
    "huber": rule("M = M - eta*grad", objective="sum(sqrt(1 + (p - v)**2))"),
    "a slot of last token's gradient": rule("M = M - eta*G", "G = grad", objective="sum((p - v)**2)/2"),
}


@pytest.mark.parametrize("text", FINE.values(), ids=FINE)
def test_what_is_meant_has_no_warning(text: str) -> None:
    assert not found(text)


@pytest.mark.parametrize("name", shipped())
def test_shipped_specs_have_none(name: str) -> None:
    assert not examined(load(shipped()[name]))


def test_a_rule_without_gates_has_one_a_gate() -> None:
    """Titans on its defaults: memory, momentum and step size, each with its own remedy."""
    messages = [one.message for one in found(MLP + "update: {rule: titans}\n")]
    assert [message.split()[0] for message in messages] == ["`beta`", "`alpha`", "`eta`"]


@pytest.mark.parametrize("fn", ["sigmoid", "softplus", "exp", "tanh", "identity", "decay"])
def test_what_a_gate_starts_as(fn: str) -> None:
    z = torch.tensor(-1.5, dtype=torch.float64)
    functions = {
        "sigmoid": torch.sigmoid,
        "softplus": torch.nn.functional.softplus,
        "exp": torch.exp,
        "tanh": torch.tanh,
        "identity": lambda x: x,
        "decay": lambda x: torch.exp(-torch.nn.functional.softplus(x)),
    }
    gate = Gate("a", "tensor", None, fn, -1.5, 0.5)
    assert initial(gate) == pytest.approx(0.5 * functions[fn](z).item(), rel=1e-12)
    assert math.isfinite(initial(Gate("a", "tensor", None, fn, 30.0)))


def test_numbers_without_a_value_are_no_fault() -> None:
    """Constants that only some heads have, gates beyond floats: nothing is said of them here."""
    assert not found(rule("M = a*M + outer(v, k)", gates='a: {per_head: "sqrt(1 - h)/2"}', more="layer: {heads: 2}\n"))
    assert not found(rule("M = a*M + outer(v, k)", gates="a: {fn: exp, bias: 1000}"))
    for function in ("exp(exp(a))", "sin(exp(a))", "log(a - 2)"):
        found(rule(f"M = {function}*M + outer(v, k)", gates="a: {fn: identity, bias: 1e300}"))
