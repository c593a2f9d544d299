"""How cached memories are read and combined, as tile programs (SEMANTICS 4).

With w the softmax of the routing logits over the cached segments n and the online memory,

    y_t = w_t o_t + sum over n of w[t, n] M_nᵀ q_t.

For a memory that is linear in its parameters the weighted sum of read-outs is one contraction over (n, k) jointly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sympy

from mcgen.ir.derivative import cotangents, vjp
from mcgen.ir.error_rows import find_errors
from mcgen.ir.layers import Layer, read
from mcgen.ir.program import Builder, Node, Program
from mcgen.ir.step import WITHOUT_GRADIENT, after_tokens, anchor, closed_form, logit_scale, pooled, query_name, weights
from mcgen.ir.vocabulary import CHOSEN, SEGMENTS, SOUP, Reader, derivative, through_soup
from mcgen.symbolic.functions import Shift
from mcgen.symbolic.meaning import Meaning
from mcgen.symbolic.recurrence import MEMORY

Outputs = Mapping[str, Node]


def read_segment(b: Builder, meaning: Meaning) -> Outputs:
    """One cached segment for a block of rows: its routing logit `r_cached`[t] and its read-out `o_cached`[t v]."""
    return {"o_cached": _read_out(b, meaning), **({"r_cached": segment_logits(b, meaning)} if meaning.routes else {})}


def blend(b: Builder, meaning: Meaning) -> Outputs:
    """`y`[t v] from the online read-out o, its logit r, and all cached states[n . .] with their pooled keys[n k]."""
    w_cached, online = _softmax(b, segment_logits(b, meaning, "n"))
    if meaning.linear:
        routed = b.product(w_cached, b.input("q", "t", "k"))
        cached = b.contract(routed, b.input("cached", "n", "k", "v"), "n", "k")
    else:
        cached = b.contract(w_cached, _read_out(b, meaning, "n"), "n")
    return {"y": b.total([b.product(online, b.input("o", "t", "v")), cached])}


def pile(b: Builder, meaning: Meaning) -> Outputs:
    """`y`[t v] where the read-outs of all cached states[n . .] are added up, each times `share`."""
    both = b.total([b.input("o", "t", "v"), b.sum(_read_out(b, meaning, "n"), "n")])
    return {"y": _shared(b, meaning, both)}


def soup(b: Builder, meaning: Meaning, anchored: bool = False) -> Outputs:
    """`y`[t v] of one read with the average of all parameters: a chunk's rows, its state, and all cached states[n . .].

    A layer is linear in its parameters, so its results are averaged in their place, layer by layer.
    """
    form, slots = closed_form(b, meaning, False)
    find_errors(form, meaning.spec, slots, anchor(b, slots[MEMORY]) if anchored else slots[MEMORY])
    cached, (r, _) = weights(b, meaning.spec, "cached", "n"), pooled(b, meaning)
    averaged, online = _softmax(b, segment_logits(b, meaning, "n"), r)

    def linear(layer: Layer, x: Node) -> Node:
        own = b.call(after_tokens(form, slots, layer, x), f"soup_pre{layer.suffix}_online")
        read_out = b.contract(averaged, b.contract(x, cached[layer], layer.into), "n")
        return b.total([b.product(online, own), b.call(read_out, f"soup_pre{layer.suffix}_cached", part=True)])

    return {"y": read(b, meaning.spec, b.input("q", "t", "k"), linear, SOUP).value}


def weigh(b: Builder, meaning: Meaning) -> Outputs:
    """`w`[t], `w_chosen`[t n]: the softmax of the online logit r[t] and those of chosen segments, r_chosen[t n]."""
    chosen, online = _softmax(b, b.input("r_chosen", "t", "n"), of="chosen_")
    return {"w": online, "w_chosen": chosen}


def read_weighted(b: Builder, meaning: Meaning) -> Outputs:
    """`y_chosen`[t v], the read-outs of one cached segment for a block of rows, times the rows' weights w_chosen[t]."""
    w = b.input("w_chosen", "t")
    if not meaning.linear:
        return {"y_chosen": b.product(w, _read_out(b, meaning, reader=CHOSEN))}
    return {"y_chosen": b.contract(b.product(w, b.input("q", "t", "k")), b.input("cached", "k", "v"), "k")}


def add_up(b: Builder, meaning: Meaning) -> Outputs:
    """`y`[t v] from the online read-out o, its weight w[t], and the sum y_chosen[t v] of weighted cached read-outs."""
    online = b.product(b.input("w", "t"), b.input("o", "t", "v"))
    return {"y": b.total([online, b.input("y_chosen", "t", "v")])}


def logits(b: Builder, meaning: Meaning) -> Outputs:
    """The routing logits `r_cached`[t n] of all cached segments."""
    return {"r_cached": segment_logits(b, meaning, "n")}


def accumulate(b: Builder, meaning: Meaning) -> Outputs:
    """`y`[t v] where cached read-outs are only added up: one read of the sum of the cached states, `cached`[k v].

    `share` is what every read-out is multiplied by: 1, or one over the number of memories read.
    """
    return {"y": _shared(b, meaning, b.total([b.input("o", "t", "v"), _read_out(b, meaning)]))}


def program(make: Callable[..., Outputs], meaning: Meaning, *of: Layer, **how: bool) -> Program:
    return Program(make.__name__, make(Builder(), meaning, *of, **how))


def program_vjp(make: Callable[..., Outputs], meaning: Meaning, **how: bool) -> Program:
    """The derivative of one of the programs above: outputs `d_<input>`, from cotangents `d_<output>`."""
    b = Builder()
    outputs = make(b, meaning, **how)
    results = vjp(b, outputs, cotangents(b, outputs), namer=through_soup if make is soup else derivative)
    return Program(
        f"{make.__name__}_vjp", {f"d_{name}": node for name, node in results.items() if name not in WITHOUT_GRADIENT}
    )


def _read_out(b: Builder, meaning: Meaning, *segment: str, reader: Reader = SEGMENTS) -> Node:
    """M(q_t) of one cached segment[t v], or of all[t n v]."""
    cached = weights(b, meaning.spec, "cached", *segment)
    linear = lambda layer, x: b.contract(x, cached[layer], layer.into)  # noqa: E731
    return read(b, meaning.spec, b.input("q", "t", "k"), linear, reader).value


def _shared(b: Builder, meaning: Meaning, both: Node) -> Node:
    return b.product(b.input("share"), both) if meaning.aggregate == "mean" else both


def segment_logits(b: Builder, meaning: Meaning, *segment: str) -> Node:
    query, by = query_name(meaning), meaning.spec.aggregate.scale
    scale = "" if by == 1 else f"{by!r} "
    scores = b.contract(b.input(query, "t", "k"), b.input("pools", *segment, "k"), "k")
    x = sympy.Symbol("x", real=True)
    return b.call(b.map(logit_scale(meaning) * x, {x: scores}), "r_cached", f"r_tn = {scale}<{query}_t, pool_n>")


def _softmax(b: Builder, cached: Node, online: Node | None = None, of: str = "") -> tuple[Node, Node]:
    """The softmax over cached logits[t n] and the online one, r[t] unless given: weights[t n], weight[t].

    `of` is what the names of its values begin with.
    """
    r, c, top, z = sympy.symbols("r c top z", real=True)
    online = online or b.input("r", "t")
    both = b.call(b.max(cached, "n"), f"{of}r_cached_max")
    shift = b.call(b.map(Shift(r, c), {r: online, c: both}), f"{of}r_max")
    e_cached = b.call(b.map(sympy.exp(c - top), {c: cached, top: shift}), f"{of}exp_cached")
    e_online = b.call(b.map(sympy.exp(r - top), {r: online, top: shift}), f"{of}exp_online")
    total = b.call(b.total([b.sum(e_cached, "n"), e_online]), f"{of}exp_sum")
    weights = b.call(b.map(c / z, {c: e_cached, z: total}), f"{of}weights", "w_tn = exp(r_tn) / sum of exp(r)")
    return weights, b.call(b.map(r / z, {r: e_online, z: total}), f"{of}weight", "w_t = exp(r_t) / sum of exp(r)")
