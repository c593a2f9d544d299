"""The programs of the backward pass where read-outs are combined by an online softmax (flash attention's derivative).

With y_t = sum over memories i of w_ti o_ti, w the softmax of r, and delta_t = <dy_t, y_t>:

    do_ti = w_ti dy_t,    dr_ti = w_ti (<dy_t, o_ti> - delta_t),    and the dr_ti of a row add up to 0.

Weights come back from the logits and the row's log-sum-exp, so neither they nor read-outs are kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from mcgen.ir.aggregate import read_segment
from mcgen.ir.derivative import vjp
from mcgen.ir.program import Builder, Node, Program
from mcgen.ir.step import step_gradients, step_outputs
from mcgen.symbolic.meaning import Meaning


def rows(meaning: Meaning) -> Program:
    """What a block of rows owes to one cached segment: `d_q`[t k], and where rows are routed `d_u`, `d_r`[t]."""
    b = Builder()
    gradients, weights, pull = _segment(b, meaning)
    outputs = {"d_q": b.product(weights, pull)}
    if meaning.routes:
        outputs["d_r"] = gradients["d_r"]
        query = "d_u" if meaning.spec.aggregate.connector == "u" else "d_q"
        outputs[query] = b.total([outputs[query], gradients["routed"]]) if query in outputs else gradients["routed"]
    return Program("rows", outputs)


def segment(meaning: Meaning) -> Program:
    """What one cached segment owes to a block of rows: `d_cached`[k v], and `d_pools`[k] where rows are routed."""
    b = Builder()
    gradients, weights, _ = _segment(b, meaning)
    outputs = read_segment(b, meaning)
    results = vjp(b, outputs, {"o_cached": b.product(weights, b.input("d_y", "t", "v"))})
    return Program("segment", {"d_cached": results["cached"], **({"d_pools": gradients["pools"]} if meaning.routes else {})})


def _segment(b: Builder, meaning: Meaning) -> tuple[Mapping[str, Node], Node, Node]:
    """Gradients through the logits, the weights w[t], and M dy_t[t k]: what the read-out's query gets before weighting."""
    outputs, d_y = read_segment(b, meaning), b.input("d_y", "t", "v")
    pull = vjp(b, {"o": outputs["o_cached"]}, {"o": d_y})["q"]
    if not meaning.routes:
        return {}, share(b, meaning), pull
    r, lse, z, delta, w = sympy.symbols("r lse z delta w", real=True)
    weights = b.map(sympy.exp(r - lse), {r: outputs["r_cached"], lse: b.input("lse", "t")})
    # <dy, o> = <q, M dy>: a read-out is linear in its query
    agreement = b.sum(b.product(b.input("q", "t", "k"), pull), "k")
    d_r = b.map(w * (z - delta), {w: weights, z: agreement, delta: b.input("delta", "t")})
    results = vjp(b, {"r": outputs["r_cached"]}, {"r": d_r})
    query = "u" if meaning.spec.aggregate.connector == "u" else "q"
    return {"d_r": d_r, "routed": results[query], "pools": results["pools"]}, weights, pull


def share(b: Builder, meaning: Meaning) -> Node:
    """What every read-out is multiplied by where nothing is routed."""
    return b.input("share") if meaning.aggregate == "mean" else b.constant(1)


def local(meaning: Meaning) -> Program:
    """The reverse of a chunk step, from the cotangent of y: outputs `d_<input>`, gradients of rows already in `d_q_rows`.

    Inputs beyond the step's: d_y[t v]; `online`[t], the weight of the online read-out, and `d_r`[t], its logit's
    gradient, where rows are routed; the cotangents of the state at the chunk's end.
    """
    b = Builder()
    outputs = step_outputs(b, meaning, masked=True)
    cotangents = {name: b.input(f"d_{name}", *node.axes) for name, node in outputs.items()}
    weight = b.input("online", "t") if meaning.routes else share(b, meaning)
    cotangents["o"] = b.product(weight, b.input("d_y", "t", "v"))
    gradients = step_gradients(b, meaning, outputs, cotangents)
    if meaning.reads_cached:
        for name in query_inputs(meaning):
            gradients[f"d_{name}"] = b.total([gradients[f"d_{name}"], b.input(f"d_{name}_rows", "t", "k")])
    return Program("local", gradients)


def query_inputs(meaning: Meaning) -> list[str]:
    """The inputs by which rows read cached segments."""
    return ["q", "u"] if meaning.routes and meaning.spec.aggregate.connector == "u" else ["q"]
