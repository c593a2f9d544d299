"""The programs of the backward pass where read-outs are combined by an online softmax (flash attention's derivative).

With y_t = sum over memories i of w_ti o_ti, w the softmax of r, and delta_t = <dy_t, y_t>:

    do_ti = w_ti dy_t,    dr_ti = w_ti (<dy_t, o_ti> - delta_t),    and the dr_ti of a row add up to 0.

Weights come back from the logits and the row's log-sum-exp, so neither they nor read-outs are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sympy

from mcgen.ir.aggregate import read_segment
from mcgen.ir.cut import cut
from mcgen.ir.derivative import vjp
from mcgen.ir.layers import layers
from mcgen.ir.program import Builder, Node, Program, Solve, topological
from mcgen.ir.step import error_names, error_outputs, state_axes, step_gradients, step_outputs
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
    """What one cached segment owes to a block of rows: its parameters' gradients `d_cached`, and `d_pools`[k] where
    rows are routed."""
    b = Builder()
    gradients, weights, _ = _segment(b, meaning)
    outputs = read_segment(b, meaning)
    results = vjp(b, outputs, {"o_cached": b.product(weights, b.input("d_y", "t", "v"))})
    names = [f"cached{layer.suffix}" for layer in layers(meaning.spec)]
    pools = {"d_pools": gradients["pools"]} if meaning.routes else {}
    return Program("segment", {**{f"d_{name}": results[name] for name in names}, **pools})


def _segment(b: Builder, meaning: Meaning) -> tuple[Mapping[str, Node], Node, Node]:
    """Gradients through the logits, the weights w[t], and M dy_t[t k], what the query gets before weighting."""
    outputs, d_y = read_segment(b, meaning), b.input("d_y", "t", "v")
    pull = vjp(b, {"o": outputs["o_cached"]}, {"o": d_y})["q"]
    if not meaning.routes:
        return {}, share(b, meaning), pull
    r, lse, z, delta, w = sympy.symbols("r lse z delta w", real=True)
    weights = b.map(sympy.exp(r - lse), {r: outputs["r_cached"], lse: b.input("lse", "t")})
    agreement = _agreement(b, meaning, outputs["o_cached"], pull)
    d_r = b.map(w * (z - delta), {w: weights, z: agreement, delta: b.input("delta", "t")})
    results = vjp(b, {"r": outputs["r_cached"]}, {"r": d_r})
    query = "u" if meaning.spec.aggregate.connector == "u" else "q"
    return {"d_r": d_r, "routed": results[query], "pools": results["pools"]}, weights, pull


def _agreement(b: Builder, meaning: Meaning, read_out: Node, pull: Node) -> Node:
    """<dy, o>[t]; where a read-out is linear in its query that is <q, M dy>."""
    if meaning.linear:
        return b.sum(b.product(b.input("q", "t", "k"), pull), "k")
    return b.sum(b.product(b.input("d_y", "t", "v"), read_out), "v")


def share(b: Builder, meaning: Meaning) -> Node:
    """What every read-out is multiplied by where nothing is routed."""
    return b.input("share") if meaning.aggregate == "mean" else b.constant(1)


def d_online(b: Builder, meaning: Meaning) -> Node:
    """The cotangent of the online read-out, from d_y[t v]: weighed by `online`[t] where rows are routed."""
    weight = b.input("online", "t") if meaning.routes else share(b, meaning)
    return b.product(weight, b.input("d_y", "t", "v"))


@dataclass(frozen=True)
class Reverse:
    """The reverse of a chunk step, from the cotangent of y.

    chain   what has to go from chunk to chunk: `d_<slot>` and `d_pool` at the chunk's start, and `pull_<n>`[t v], the
            cotangents that pass through error rows
    inputs  `d_<input>` of everything else, from error rows and pulls as they are known then; gradients that rows have
            already are inputs `d_<query>_rows`
    """

    chain: Program
    inputs: Program

    @property
    def pulls(self) -> list[str]:
        return [name for name in self.chain.outputs if name.startswith("pull_")]


def reverse(meaning: Meaning, anchored: bool = False) -> Reverse:
    """Inputs beyond the step's: d_y[t v]; `online`[t], the weight of the online read-out, and `d_r`[t], its logit's
    gradient, where rows are routed; the cotangents of the state at the chunk's end."""
    b = Builder()
    known = {name: b.input(name, "t", "v") for name in error_names(meaning).values()}
    outputs = step_outputs(b, meaning, True, anchored, known)
    gradients = step_gradients(b, meaning, outputs, anchored, o=d_online(b, meaning))
    errors = error_outputs(b, meaning, True, anchored) if known else {}
    owed = {name: gradients.pop(f"d_{name}") for name in known}
    through = vjp(b, errors, owed)
    for name, node in through.items():
        if f"d_{name}" in gradients:
            gradients[f"d_{name}"] = b.total([gradients[f"d_{name}"], node])
    gradients = _with_rows(b, meaning, gradients)
    pulls = _pulls(meaning, owed, through)
    state = [f"d_{name}" for name in state_axes(meaning, anchored)]
    chain = {**{name: gradients[name] for name in state}, **{name: node for node, name in pulls.items()}}
    rest = {name: node for name, node in gradients.items() if name not in state} | {n: gradients[n] for n in state}
    cuts = {**{errors[name]: name for name in known}, **pulls}
    return Reverse(Program("retreat", chain), cut(Program("reverse", rest), cuts))


def whole(meaning: Meaning, anchored: bool = False) -> Program:
    """The reverse of a chunk step as one program: `d_<input>` of every input and of the state; inputs as `reverse`."""
    b = Builder()
    outputs = step_outputs(b, meaning, True, anchored)
    return Program(
        "reverse", _with_rows(b, meaning, step_gradients(b, meaning, outputs, anchored, o=d_online(b, meaning)))
    )


def _with_rows(b: Builder, meaning: Meaning, gradients: dict[str, Node]) -> dict[str, Node]:
    """The gradients with those that rows have of cached segments, `d_<query>_rows`[t k]."""
    if meaning.reads_cached:
        for name in query_inputs(meaning):
            gradients[f"d_{name}"] = b.total([gradients[f"d_{name}"], b.input(f"d_{name}_rows", "t", "k")])
    return gradients


def _pulls(meaning: Meaning, owed: Mapping[str, Node], through: Mapping[str, Node]) -> dict[Node, str]:
    """The values to keep of the way back through error rows: solutions where there is a system, else what is owed."""
    nodes = list(owed.values())
    if meaning.recurrence.chunk is None:
        reached = topological(through.values())
        nodes = [node for node in reached if isinstance(node, Solve) and node.transposed and "v" in node.axes]
    return {node: f"pull_{i}" for i, node in enumerate(dict.fromkeys(nodes))}


def query_inputs(meaning: Meaning) -> list[str]:
    """The inputs by which rows read cached segments."""
    return ["q", "u"] if meaning.routes and meaning.spec.aggregate.connector == "u" else ["q"]
