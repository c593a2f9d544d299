"""How cached memories are read and combined, as tile programs (SEMANTICS 4).

With w the softmax of the routing logits over the cached segments n and the online memory,

    y_t = w_t o_t + sum over n of w[t, n] M_nᵀ q_t.

For a memory that is linear in its parameters the weighted sum of read-outs is one contraction over (n, k) jointly.
"""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from mcgen.ir.derivative import vjp
from mcgen.ir.program import Builder, Node, Program
from mcgen.ir.step import logit_scale, query_name
from mcgen.symbolic.functions import Shift
from mcgen.symbolic.meaning import Meaning

Outputs = Mapping[str, Node]


def read_segment(b: Builder, meaning: Meaning) -> Outputs:
    """One cached segment for a block of rows: its routing logit `r_cached`[t] and its read-out `o_cached`[t v]."""
    read = b.contract(b.input("q", "t", "k"), b.input("cached", "k", "v"), "k")
    return {"o_cached": read, **({"r_cached": _logits(b, meaning)} if meaning.routes else {})}


def blend(b: Builder, meaning: Meaning) -> Outputs:
    """`y`[t v] from the online read-out o, its logit r, and all cached states[n k v] with their pooled keys[n k]."""
    weights, online = _softmax(b, _logits(b, meaning, "n"))
    routed = b.product(weights, b.input("q", "t", "k"))
    cached = b.contract(routed, b.input("cached", "n", "k", "v"), "n", "k")
    return {"y": b.total([b.product(online, b.input("o", "t", "v")), cached])}


def weigh(b: Builder, meaning: Meaning) -> Outputs:
    """`w`[t], `w_cached`[t n]: the softmax of the online logit r[t] and those of chosen segments, r_cached[t n]."""
    weights, online = _softmax(b, b.input("r_cached", "t", "n"))
    return {"w": online, "w_cached": weights}


def read_weighted(b: Builder, meaning: Meaning) -> Outputs:
    """`y_cached`[t v], the read-outs of one cached segment for a block of rows, times the rows' weights w_cached[t]."""
    weighted = b.product(b.input("w_cached", "t"), b.input("q", "t", "k"))
    return {"y_cached": b.contract(weighted, b.input("cached", "k", "v"), "k")}


def add_up(b: Builder, meaning: Meaning) -> Outputs:
    """`y`[t v] from the online read-out o, its weight w[t], and the sum y_cached[t v] of weighted cached read-outs."""
    online = b.product(b.input("w", "t"), b.input("o", "t", "v"))
    return {"y": b.total([online, b.input("y_cached", "t", "v")])}


def logits(b: Builder, meaning: Meaning) -> Outputs:
    """The routing logits `r_cached`[t n] of all cached segments."""
    return {"r_cached": _logits(b, meaning, "n")}


def accumulate(b: Builder, meaning: Meaning) -> Outputs:
    """`y`[t v] where cached read-outs are only added up: one read of the sum of the cached states, `cached`[k v].

    `share` is what every read-out is multiplied by: 1, or one over the number of memories read.
    """
    read = b.contract(b.input("q", "t", "k"), b.input("cached", "k", "v"), "k")
    both = b.total([b.input("o", "t", "v"), read])
    return {"y": b.product(b.input("share"), both) if meaning.aggregate == "mean" else both}


def program(make: object, meaning: Meaning) -> Program:
    return Program(make.__name__, make(Builder(), meaning))


def program_vjp(make: object, meaning: Meaning) -> Program:
    """The derivative of one of the programs above: outputs `d_<input>`, from cotangents `d_<output>`."""
    b = Builder()
    outputs = make(b, meaning)
    results = vjp(b, outputs, {name: b.input(f"d_{name}", *node.axes) for name, node in outputs.items()})
    return Program(f"{make.__name__}_vjp", {f"d_{name}": node for name, node in results.items() if name != "share"})


def _logits(b: Builder, meaning: Meaning, *segment: str) -> Node:
    scores = b.contract(b.input(query_name(meaning), "t", "k"), b.input("pools", *segment, "k"), "k")
    x = sympy.Symbol("x", real=True)
    return b.map(logit_scale(meaning) * x, {x: scores})


def _softmax(b: Builder, cached: Node) -> tuple[Node, Node]:
    """The softmax over cached logits[t n] and the online one r[t]: weights[t n], weight[t]."""
    r, c, top, z = sympy.symbols("r c top z", real=True)
    online = b.input("r", "t")
    both = b.max(cached, "n")
    shift = b.map(Shift(r, c), {r: online, c: both})
    e_cached = b.map(sympy.exp(c - top), {c: cached, top: shift})
    e_online = b.map(sympy.exp(r - top), {r: online, top: shift})
    norm = b.total([b.sum(e_cached, "n"), e_online])
    return b.map(c / z, {c: e_cached, z: norm}), b.map(r / z, {r: e_online, z: norm})
