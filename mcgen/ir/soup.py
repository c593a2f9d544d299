"""Reads of a memory whose parameters are averages over segments, a chunk at a time (SEMANTICS 4, soup).

A layer is linear in its parameters, so its results z_l are averaged in their place, with x_1 = q and w the softmax:

    z_l = w_t M_t,l(x_l) + sum over n of w_tn M_n,l(x_l),      x_(l+1) = sigma(z_l).

Its derivative goes once through the layers, to the cotangents dz_l of the averaged results. Given these and the x_l,
every memory's share is by itself again, and linear: with z_ln = M_n,l(x_l),

    dw_tn = sum over l of <dz_l, z_ln>,    dr_tn = w_tn (dw_tn - delta_t),    delta_t = sum over l of <dz_l, z_l>.
"""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from mcgen.ir.aggregate import segment_logits
from mcgen.ir.closed_form import ClosedForm
from mcgen.ir.derivative import vjp
from mcgen.ir.error_rows import Weights
from mcgen.ir.layers import Layer, ReadOut, layers, read
from mcgen.ir.program import Builder, Node, Program
from mcgen.ir.step import after_tokens, query_name, step_gradients, step_outputs, weights
from mcgen.ir.vocabulary import SOUP
from mcgen.symbolic.meaning import Meaning


def read_soup(meaning: Meaning, anchored: bool) -> Program:
    """`y`[t v] of a chunk's rows; inputs as the step's, with `lse`[t] and `online`[t], the online memory's weight, and
    all cached states[n . .] with their pooled keys[n k]."""
    reading = lambda b, meaning, form, slots: {"y": _read(b, meaning, form, slots).value}  # noqa: E731
    outputs = step_outputs(Builder(), meaning, True, anchored, reading=reading)
    return Program("read_soup", {"y": outputs["y"]})


def logit(meaning: Meaning, anchored: bool) -> Program:
    """`r`[t], the routing logit of the online memory."""
    return Program("logit", {"r": step_outputs(Builder(), meaning, True, anchored)["r"]})


def through_layers(meaning: Meaning, anchored: bool) -> Program:
    """From d_y[t v]: the cotangents `pull_l`[t out] of every layer's averaged result, the layers' inputs `seen_l`[t in]
    but for the first's, and `delta`[t]."""
    b = Builder()

    def reading(b: Builder, meaning: Meaning, form: ClosedForm, slots: Mapping[str, Weights]) -> dict[str, Node]:
        found = _read(b, meaning, form, slots)
        at = {node: layer.suffix for layer, node in found.results.items()}
        pulls = vjp(b, {"y": found.value}, {"y": b.input("d_y", "t", "v")}, at)
        _, *others = found.inputs
        agreements = [b.sum(b.product(pulls[layer.suffix], z), layer.out) for layer, z in found.results.items()]
        return {
            **{f"pull{layer.suffix}": pulls[layer.suffix] for layer in found.results},
            **{f"seen{layer.suffix}": found.inputs[layer] for layer in others},
            "delta": b.total(agreements),
        }

    outputs = step_outputs(b, meaning, True, anchored, reading=reading)
    wanted = [name for name in outputs if name.startswith(("pull", "seen")) or name == "delta"]
    return Program("through_layers", {name: outputs[name] for name in wanted})


def rows(meaning: Meaning) -> Program:
    """What a block of rows owes to one cached segment: `d_q`[t k], where they route by u `d_u`, and `d_r`[t]."""
    b = Builder()
    weight, d_r, routed = _weights_and_logits(b, meaning)
    first = layers(meaning.spec)[0]
    pull = b.contract(_pull(b, first), _cached(b, first), first.out)
    outputs = {"d_q": b.product(weight, pull), "d_r": d_r}
    query = f"d_{query_name(meaning)}"
    outputs[query] = b.total([outputs[query], routed[query]]) if query in outputs else routed[query]
    return Program("rows", outputs)


def segment(meaning: Meaning) -> Program:
    """What one cached segment owes to a block of rows: its parameters' gradients `d_cached`, and `d_pools`[k]."""
    b = Builder()
    weight, _, routed = _weights_and_logits(b, meaning)
    gradients = {
        f"d_cached{layer.suffix}": b.contract(_seen(b, meaning, layer), b.product(weight, _pull(b, layer)), "t")
        for layer in layers(meaning.spec)
    }
    return Program("segment", {**gradients, "d_pools": routed["d_pools"]})


def reverse(meaning: Meaning, anchored: bool) -> Program:
    """The reverse of a chunk step, given what came through the layers: `d_<input>` of every input and of the state."""
    b = Builder()

    def reading(b: Builder, meaning: Meaning, form: ClosedForm, slots: Mapping[str, Weights]) -> dict[str, Node]:
        online = b.input("online", "t")
        results = {
            f"z{layer.suffix}": b.product(online, after_tokens(form, slots, layer, _seen(b, meaning, layer)))
            for layer in layers(meaning.spec)
        }
        if meaning.spec.memory.residual:
            results["z"] = b.rename(b.input("q", "t", "k"), "k", "v")
        return results

    outputs = step_outputs(b, meaning, True, anchored, reading=reading)
    known = {f"z{layer.suffix}": _pull(b, layer) for layer in layers(meaning.spec)}
    known |= {"z": b.input("d_y", "t", "v")} if "z" in outputs else {}
    gradients = step_gradients(b, meaning, outputs, anchored, **known)
    own = {f"d_seen{layer.suffix}" for layer in layers(meaning.spec)} | {"d_online"}
    gradients = {name: node for name, node in gradients.items() if name not in own}
    for name in dict.fromkeys(["q", query_name(meaning)]):
        gradients[f"d_{name}"] = b.total([gradients[f"d_{name}"], b.input(f"d_{name}_rows", "t", "k")])
    return Program("reverse", gradients)


def _read(b: Builder, meaning: Meaning, form: ClosedForm, slots: Mapping[str, Weights]) -> ReadOut:
    cached = weights(b, meaning.spec, "cached", "n")
    shares, online = _weight(b, meaning, segment_logits(b, meaning, "n")), b.input("online", "t")

    def linear(layer: Layer, x: Node) -> Node:
        own = b.call(after_tokens(form, slots, layer, x), f"soup_pre{layer.suffix}_online")
        averaged = b.contract(b.product(shares, x), cached[layer], "n", layer.into)
        return b.total([b.product(online, own), b.call(averaged, f"soup_pre{layer.suffix}_cached", part=True)])

    return read(b, meaning.spec, b.input("q", "t", "k"), linear, SOUP)


def _weight(b: Builder, meaning: Meaning, logits: Node) -> Node:
    """The softmax's weights, from logits and their rows' log-sum-exp."""
    r, lse = sympy.symbols("r lse", real=True)
    return b.map(sympy.exp(r - lse), {r: logits, lse: b.input("lse", "t")})


def _weights_and_logits(b: Builder, meaning: Meaning) -> tuple[Node, Node, dict[str, Node]]:
    """One segment's weights w[t], dr[t], and what that passes on: `d_<query>`[t k] and `d_pools`[k]."""
    logits = segment_logits(b, meaning)
    weight = _weight(b, meaning, logits)
    products = [
        (layer, b.contract(_seen(b, meaning, layer), _cached(b, layer), layer.into)) for layer in layers(meaning.spec)
    ]
    d_w = b.total([b.sum(b.product(_pull(b, layer), z), layer.out) for layer, z in products])
    w, z, delta = sympy.symbols("w z delta", real=True)
    d_r = b.map(w * (z - delta), {w: weight, z: d_w, delta: b.input("delta", "t")})
    passed = vjp(b, {"r": logits}, {"r": d_r})
    return weight, d_r, {f"d_{name}": passed[name] for name in (query_name(meaning), "pools")}


def _pull(b: Builder, layer: Layer) -> Node:
    return b.input(f"pull{layer.suffix}", "t", layer.out)


def _cached(b: Builder, layer: Layer) -> Node:
    return b.input(f"cached{layer.suffix}", layer.into, layer.out)


def _seen(b: Builder, meaning: Meaning, layer: Layer) -> Node:
    """A layer's input[t in]: the queries, and what came out of the layer before."""
    first = layers(meaning.spec)[0]
    return b.input("q", "t", "k") if layer == first else b.input(f"seen{layer.suffix}", "t", layer.into)
