"""The chunk step of a deep memory a layer at a time, where gradients are taken far apart.

All gradients of a chunk are taken at one memory, so what each layer sees of the keys, x_l, and its error rows, e_l, are
known for all its tokens before the first is read. Given these, layers have nothing more to do with one another than
that one's results are the next one's inputs; each is a matrix memory whose keys and values are known:

    z_l,t = sum over slots s of R[t, s] X_s,l(a_l,t) + sum over j <= t of C[t, j] <a_l,t, x_l,j> e_l,j
    a_1 = q,    a_(l+1) = sigma(z_l),    o = q + norm(z_L)  (where the memory has a residual and a norm)

Every sum over a layer's inputs may be taken in parts, so that tiles of a layer's parameters know nothing of each other.
"""

from __future__ import annotations

from mcgen.ir.backward import d_online, query_inputs
from mcgen.ir.derivative import cotangents, vjp
from mcgen.ir.error_rows import find_errors
from mcgen.ir.layers import Layer, activated, layers, read_out
from mcgen.ir.program import Builder, Node, Program
from mcgen.ir.step import WITHOUT_GRADIENT, after_tokens, closed_form, next_state, pooled, weights
from mcgen.ir.vocabulary import QUERIES
from mcgen.symbolic.meaning import Meaning
from mcgen.symbolic.recurrence import GradientWrite


def errors(b: Builder, meaning: Meaning) -> dict[str, Node]:
    """The rows that gradients are made of, from keys, values and `anchor_<l>`[in out], the memory they are taken at:
    `error_<l>`[t out] of every layer, and `seen_<l>`[t in] of those that do not see the keys themselves."""
    form, _ = closed_form(b, meaning, True)
    find_errors(form, meaning.spec, {}, weights(b, meaning.spec, "anchor"))
    rows = next(iter(form.errors.values()))  # all gradients of a rule are taken at the same memory
    _, *deeper = layers(meaning.spec)
    found = {f"error{layer.suffix}": node for layer, node in rows.items()}
    return found | {f"seen{layer.suffix}": form.seen[layer] for layer in deeper}


def layer_step(b: Builder, meaning: Meaning, layer: Layer) -> dict[str, Node]:
    """`result_<l>`[t out] of one layer for the queries, or for the results of the layer before, and the layer's part of
    every slot at the chunk's end, from the rows that `errors` gives."""
    form, whole = closed_form(b, meaning, True)
    slots = {slot: {layer: parameters[layer]} for slot, parameters in whole.items()}
    rows = {layer: b.input(f"error{layer.suffix}", "t", layer.out)}
    form.errors.update({write: rows for write in meaning.recurrence.writes if isinstance(write, GradientWrite)})
    every = layers(meaning.spec)
    x = b.input("q", "t", "k")
    if layer != every[0]:
        form.seen[layer] = b.input(f"seen{layer.suffix}", "t", layer.into)
        before = every[every.index(layer) - 1]
        x = activated(b, meaning.spec, before, b.input(f"result{before.suffix}", "t", layer.into), QUERIES)
    outputs = {f"result{layer.suffix}": after_tokens(form, slots, layer, x)}
    return outputs | {f"{slot}{layer.suffix}_next": next_state(form, slot, slots, layer) for slot in slots}


def reverse_layer(meaning: Meaning, layer: Layer) -> Program:
    """The reverse of one layer's step: `d_<input>` of its rows and slots; of queries, keys and gates, of which other
    layers have a share too or the rows that `errors` gives, `d_<input>_layer_<l>`."""
    b = Builder()
    outputs = layer_step(b, meaning, layer)
    found = vjp(b, outputs, cotangents(b, outputs))
    given = Program("layer", outputs).inputs
    zero, shared = b.constant(0), {"q", "k", *meaning.spec.tensor_gates}
    return Program(
        "reverse_layer",
        {
            owed(name, layer) if name in shared else f"d_{name}": b.broadcast(found.get(name, zero), node.axes)
            for name, node in given.items()
            if name not in WITHOUT_GRADIENT
        },
    )


def owed(name: str, layer: Layer) -> str:
    """How a layer's share of the gradient of a query, a key or a gate is called."""
    return f"d_{name}_layer{layer.suffix}"


def online(b: Builder, meaning: Meaning) -> dict[str, Node]:
    """`o`[t v], the online read-out, from the last layer's results."""
    last = layers(meaning.spec)[-1]
    value = b.input(f"result{last.suffix}", "t", last.out)
    return {"o": read_out(b, meaning.spec, b.input("q", "t", "k"), value, QUERIES)}


def reverse_online(meaning: Meaning) -> Program:
    """The gradient `d_result_<L>`[t v] of the last layer's results, from d_y."""
    name = f"result{layers(meaning.spec)[-1].suffix}"
    b = Builder()
    return Program("reverse_online", {f"d_{name}": _through_online(b, meaning)[name]})


def logits(b: Builder, meaning: Meaning) -> dict[str, Node]:
    """`r`[t], the online memory's routing logits, and `pool_next`[k], the sum of the segment's keys."""
    r, pool = pooled(b, meaning)
    return {"r": r, "pool_next": pool}


def inputs(meaning: Meaning) -> Program:
    """The gradients `d_<input>` of everything a token brings along, and `d_anchor_<l>`[in out]: through the rows that
    `errors` gives, with the layers' shares and, as `d_<input>_rows`, those of cached segments and logits."""
    b = Builder()
    rows, spec = errors(b, meaning), meaning.spec
    found = vjp(b, rows, cotangents(b, rows))
    anchors = {f"d_{name}": node for name, node in found.items() if name.startswith("anchor")}
    first, zero = layers(spec)[0], b.constant(0)
    known = ["k", *query_inputs(meaning)] if meaning.routes else query_inputs(meaning) if meaning.reads_cached else []
    axes = {"q": ("t", "k"), "k": ("j", "k"), "u": ("t", "k")}
    terms: dict[str, list[Node]] = {name: [b.input(f"d_{name}_rows", *axes[name])] for name in known}
    for name in ("q", "k"):
        terms.setdefault(name, []).append(b.input(owed(name, first), *axes[name]))
    terms["v"] = [b.broadcast(found.get("v", zero), ("j", "v"))]
    terms["k"] += [found["k"]] if "k" in found else []
    terms["q"] += [_through_online(b, meaning)["q"]] if spec.memory.residual else []
    reached = Program("layer", layer_step(Builder(), meaning, first)).inputs  # as by the others
    for gate in spec.tensor_gates:
        shares = [b.input(owed(gate, layer), "t") for layer in layers(spec)]
        terms[gate] = shares if gate in reached else [b.broadcast(zero, ("t",))]
    return Program("inputs", {f"d_{name}": b.total(nodes) for name, nodes in terms.items()} | anchors)


def _through_online(b: Builder, meaning: Meaning) -> dict[str, Node]:
    return vjp(b, online(b, meaning), {"o": d_online(b, meaning)})
