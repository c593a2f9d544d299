"""A whole layer, one head of one sequence, from its tile programs by the evaluator alone: what generated loops must do.

The loops here are the plainest that the programs allow, so that between them and the definition lies the mathematics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from mcgen.ir import aggregate
from mcgen.ir.evaluate import evaluate
from mcgen.ir.program import Program
from mcgen.ir.step import state_axes, step
from mcgen.symbolic.meaning import Meaning
from mcgen.symbolic.recurrence import MEMORY, Write

Tensor = torch.Tensor
Rewrite = Callable[[Program], Program]


def segments(meaning: Meaning, count: int) -> list[tuple[int, int]]:
    """Borders of the segments of `count` tokens (SEMANTICS 3)."""
    size = meaning.spec.segment.size
    if size is not None:
        return [(begin, min(begin + size, count)) for begin in range(0, count, size)]
    borders, end = [], 0
    for bit in reversed(range(count.bit_length())):
        if count >> bit & 1:
            begin, end = end, end + (1 << bit)
            borders.append((begin, end))
    return borders


def sizes(tokens: Mapping[str, Tensor], count: int, cached: int = 0) -> dict[str, int]:
    """Lengths of axes for a chunk of `count` tokens."""
    key, value = tokens["q"].shape[-1], tokens["v"].shape[-1]
    return {**dict.fromkeys(("t", "s", "m", "j"), count), "n": cached, "k": key, "v": value}


def lagged(meaning: Meaning, tokens: Mapping[str, Tensor], begin: int) -> dict[str, Tensor]:
    """k and v as every lag of the rule sees them; nothing lies before token `begin`."""
    writes = [write for write in meaning.recurrence.writes if isinstance(write, Write)]
    lags = {("k", write.key_lag) for write in writes} | {("v", write.value_lag) for write in writes}
    views = {}
    for name, lag in sorted(lags):
        whole = tokens[name][begin:]
        shifted = torch.cat([torch.zeros_like(whole[:lag]), whole[: max(len(whole) - lag, 0)]])
        views[f"{name}_{lag}" if lag else name] = torch.cat([tokens[name][:begin], shifted])
    return views


def chunk_inputs(tokens: Mapping[str, Tensor], begin: int, end: int, first: int, head: float) -> dict[str, Tensor]:
    """What a step takes of tokens begin..end of the segment that starts at `first`."""
    like = tokens["q"]
    counted = torch.arange(begin - first + 1, end - first + 1, dtype=like.dtype)
    return {name: t[begin:end] for name, t in tokens.items()} | {"count": counted, "head": like.new_tensor(head)}


def initial(meaning: Meaning, tokens: Mapping[str, Tensor], anchored: bool) -> dict[str, Tensor]:
    """The state before the first token."""
    lengths = sizes(tokens, 0)
    axes = state_axes(meaning, anchored)
    return {name: tokens["q"].new_zeros([lengths[axis] for axis in axes[name]]) for name in axes}


def read(
    meaning: Meaning, tokens: Mapping[str, Tensor], chunk: int, rewrite: Rewrite = lambda p: p, head: float = 0.0
) -> Tensor:
    """y (T, V) of one head, chunk by chunk; `rewrite` is applied to every program.

    Gradient chunks longer than `chunk` have to be a multiple of it.
    """
    gradient_chunk = meaning.gradient_chunk
    chunk = min(chunk, gradient_chunk or chunk)
    anchored = gradient_chunk is not None and chunk < gradient_chunk
    program = rewrite(step(meaning, anchored=anchored))
    state, bank, pools, rows = initial(meaning, tokens, anchored), [], [], []
    for first, last in segments(meaning, len(tokens["q"])):
        fresh = initial(meaning, tokens, anchored)
        state = {**state, "pool": fresh["pool"]} if meaning.chained and meaning.routes else state
        state = state if meaning.chained else fresh
        views = {**tokens, **lagged(meaning, tokens, 0 if meaning.chained else first)}
        outputs = []
        for begin in range(first, last, chunk):
            end = min(begin + chunk, last)
            inputs = {**chunk_inputs(views, begin, end, first, head), **state}
            inputs["fresh"] = tokens["q"].new_tensor(float((begin - first) % (gradient_chunk or 1) == 0))
            outputs.append(evaluate(program, inputs, sizes(tokens, end - begin)))
            state = {name: outputs[-1][f"{name}_next"] for name in state}
        online = {name: torch.cat([out[name] for out in outputs]) for name in ("o", "r") if name in outputs[0]}
        rows.append(_combined(meaning, {**online, **{n: tokens[n][first:last] for n in "qu"}}, bank, pools, rewrite))
        bank.append(state[MEMORY])
        if meaning.routes:
            mean = meaning.spec.aggregate.pool == "mean"
            pools.append(state["pool"] / (last - first) if mean else state["pool"])
    return torch.cat(rows)


def _combined(
    meaning: Meaning, rows: dict[str, Tensor], bank: list[Tensor], pools: list[Tensor], rewrite: Rewrite
) -> Tensor:
    """The rows of a segment, read from the online memory and the cached ones (SEMANTICS 4)."""
    kind = meaning.aggregate
    if kind == "none":
        return rows["o"]
    lengths = {"t": len(rows["o"]), "n": len(bank), "k": rows["q"].shape[-1], "v": rows["o"].shape[-1]}
    if kind in ("residual", "mean"):
        share = rows["q"].new_tensor(1 / (len(bank) + 1))
        cached = sum(bank, rows["q"].new_zeros(lengths["k"], lengths["v"]))
        program = rewrite(aggregate.program(aggregate.accumulate, meaning))
        return evaluate(program, {**rows, "cached": cached, "share": share}, lengths)["y"]
    if not bank:
        return rows["o"]
    cached = {"cached": torch.stack(bank), "pools": torch.stack(pools)}
    if kind != "ssc":
        return evaluate(rewrite(aggregate.program(aggregate.blend, meaning)), {**rows, **cached}, lengths)["y"]
    return _chosen(meaning, rows, cached, lengths, rewrite)


def _chosen(
    meaning: Meaning, rows: dict[str, Tensor], cached: dict[str, Tensor], lengths: dict[str, int], rewrite: Rewrite
) -> Tensor:
    made = {make: rewrite(aggregate.program(make, meaning)) for make in (aggregate.logits, aggregate.weigh)}
    r = evaluate(made[aggregate.logits], {**rows, **cached}, lengths)["r_cached"]
    best = r.sort(dim=-1, descending=True, stable=True).indices[:, : meaning.spec.aggregate.top_k]
    kept = r.masked_fill(torch.ones_like(r, dtype=torch.bool).scatter(-1, best, False), -torch.inf)
    weights = evaluate(made[aggregate.weigh], {**rows, "r_chosen": kept}, lengths)
    one, add_up = (rewrite(aggregate.program(make, meaning)) for make in (aggregate.read_weighted, aggregate.add_up))
    parts = [
        evaluate(one, {**rows, "cached": state, "w_chosen": weights["w_chosen"][:, n]}, lengths)["y_chosen"]
        for n, state in enumerate(cached["cached"])
    ]
    return evaluate(add_up, {**rows, "w": weights["w"], "y_chosen": sum(parts)}, lengths)["y"]


def read_heads(meaning: Meaning, arguments: Mapping[str, Tensor], chunk: int, rewrite: Rewrite = lambda p: p) -> Tensor:
    """y (B, T, H, V) from the arguments of `reference`, batch entry by batch entry and head by head."""
    batch, _, heads = arguments["q"].shape[:3]
    rows = [
        read(meaning, {name: t[b, :, h] for name, t in arguments.items()}, chunk, rewrite, float(h))
        for b in range(batch)
        for h in range(heads)
    ]
    return torch.stack(rows).unflatten(0, (batch, heads)).transpose(1, 2)
