"""linear_ssc: Linear attention with a cache of segments, of which each token reads the two that its connector
ranks highest.

Made by mcgen from SPEC, which says the same as the lines below: build it again rather than change this file.

memory     M(x) = W x
update     M = M + outer(v, k)
segments   256 tokens; every slot restarts at each (init: independent)
read-out   y_t = sum of w M(q_t) over the top 2 of the cached memories by r and the online one (eq. 16, 17)
           w = softmax(r), r = <u_t, mean of the segment's keys>, of those up to t for the online memory
shapes     q, k, u (B, T, H, 64); v and y (B, T, H, 64); k and v may have fewer heads, dividing H
"""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import importlib.util
import itertools
import json
import logging
import math
import os
import sys
import types
import warnings

import torch
import torch.nn.functional as F

# Triton takes long to import, so a file does that only where kernels can run, or where others have done it.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
triton = tl = None
if INTERPRETED or torch.version.cuda or torch.version.hip or "triton" in sys.modules:
    with contextlib.suppress(ImportError):
        import triton
        import triton.language as tl

MCGEN_VERSION = "0.1.0"
SPEC = {
    "mcgen": 1,
    "name": "linear_ssc",
    "doc": (
        "Linear attention with a cache of segments, of which each token reads the two that its connector ranks highest."
    ),
    "memory": {"kind": "matrix"},
    "update": {"rule": "linear", "gradient": "token", "gates": {}},
    "segment": {"size": 256, "mode": "constant", "init": "independent"},
    "aggregate": {"kind": "ssc", "connector": "u", "pool": "mean", "scale": 1.0, "top_k": 2},
    "head": {"key_dim": 64, "value_dim": 64},
    "layer": {"d_model": 1024, "heads": 16, "qk_norm": "l2", "conv_size": 4, "output_norm": "rms", "output_gate": True},
}
SPEC_HASH = "1d86a4855e186c910f286e8d954baee09785f2fd7df39c822e9cb5d042e30988"


def _jit(function):
    """A Triton kernel; one serves every length, number of heads and batch, since it is specialised on none of them."""
    counts = ("n_blocks", "n_segments", "n_entries", "n_choices", "n_groups", "n_before", "n_steps", "n_rows")
    integers = ("T", "H", "BH", "group", *counts, "n_parts", "n_first", "n_last", "t_first", "t_last")
    return triton.jit(function, do_not_specialize=integers) if triton else function


class UnsupportedError(NotImplementedError):
    """What was asked for is valid, but this file cannot do it; the message says what it can."""


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _check(q, k, v, u, theta, gates, backend=None):
    """Raises TypeError or ValueError, naming the argument, unless these are arguments of `op` and `reference`."""
    if backend not in (None, "torch", "triton"):
        raise ValueError(f'backend must be "torch", "triton" or None, got {backend!r}')
    _check_gates(gates)
    if theta is not None:
        raise TypeError("theta must be None: a matrix memory starts at zero")
    _check_tensor("q", q, q)
    if q.dim() != 4 or q.shape[-1] != 64:
        raise ValueError(f"q must have shape (B, T, H, 64), got {tuple(q.shape)}")
    B, T, H, _ = q.shape
    _check_grouped("k", k, q, 64)
    _check_grouped("v", v, q, 64)
    if u is None:
        raise TypeError("u is missing: the aggregate routes by it")
    _check_tensor("u", u, q, (B, T, H, 64))
    for name, gate in gates.items():
        _check_tensor(name, gate, q, (B, T, H))


def _check_gates(gates):
    """Raises TypeError unless the names are those of the gates."""
    expected = []
    if missing := [name for name in expected if name not in gates]:
        raise TypeError(f"missing gate{'s' * (len(missing) > 1)}: {', '.join(missing)}")
    if extra := [name for name in gates if name not in expected]:
        takes = f"the gates are {', '.join(expected)}" if expected else "there are no gates"
        raise TypeError(f"unexpected argument{'s' * (len(extra) > 1)}: {', '.join(extra)}; {takes}")


def _check_tensor(name, x, q, shape=None):
    """Raises TypeError unless x is a floating point tensor, ValueError unless it is on q's device and of the shape."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.device != q.device:
        raise ValueError(f"{name} must be on q's device, {q.device}, got {x.device}")
    if shape is not None and x.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(x.shape)}")


def _check_grouped(name, x, q, width):
    """Raises as `_check_tensor` does, unless x is (B, T, H_kv, width), and H_kv divides the heads of q."""
    _check_tensor(name, x, q)
    B, T, H, _ = q.shape
    heads = x.shape[2] if x.dim() == 4 else 0
    divides = heads == H or (heads > 0 and H % heads == 0)
    if not divides or x.shape != (B, T, heads, width):
        raise ValueError(
            f"{name} must have shape {(B, T, H, width)}, or fewer heads that divide {H}, got {tuple(x.shape)}"
        )


def _of_every_head(x, q):
    """x (B, T, H_kv, ·) for each of q's H heads: head h has that of head h // (H / H_kv)."""
    return x if x.shape[2] == q.shape[2] else x.repeat_interleave(q.shape[2] // x.shape[2], 2)


def _sequence_lengths(cu_seqlens, x):
    """The tokens of each sequence in x (1, T, ...), by where each begins and the last ends; None where that is None.

    Raises TypeError or ValueError, saying what is wrong, unless these are whole numbers from 0 to T that never fall.
    """
    if cu_seqlens is None:
        return None
    if isinstance(cu_seqlens, torch.Tensor):
        if cu_seqlens.dtype not in (torch.int32, torch.int64) or cu_seqlens.dim() != 1:
            raise TypeError(
                f"cu_seqlens must be int32 or int64 and have one axis, got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
            )
        cu_seqlens = cu_seqlens.tolist()
    borders = list(cu_seqlens)
    if not all(type(border) is int for border in borders):
        raise TypeError("cu_seqlens must be whole numbers: where each sequence begins, and where the last one ends")
    if x.shape[0] != 1:
        raise ValueError(f"packed sequences lie one behind another in a batch of 1, got a batch of {x.shape[0]}")
    if not borders or borders[0] != 0 or borders[-1] != x.shape[1] or borders != sorted(borders):
        raise ValueError(f"cu_seqlens must go from 0 to T = {x.shape[1]} and never fall, got {borders}")
    return [end - begin for begin, end in itertools.pairwise(borders)]


def _one_by_one(function, lengths, *tensors):
    """What a function gives for the sequences in tensors (1, T, ...), each by itself, one behind another again.

    Where lengths is None, a row of tensors (B, T, ...) is one sequence.
    """
    if lengths is None:
        return function(*tensors)
    parts = zip(*(t.split(lengths, 1) for t in tensors), strict=True)
    found = [function(*part) for part, length in zip(parts, lengths, strict=True) if length]
    return torch.cat(found, 1) if found else function(*tensors)


def _of_sequences(function, lengths, q, k, v, u, gates):
    """What `op` or `reference` gives for packed sequences."""
    given = {name: t for name, t in {"q": q, "k": k, "v": v, "u": u, **gates}.items() if t is not None}
    return _one_by_one(lambda *parts: function(**dict(zip(given, parts, strict=True))), lengths, *given.values())


def _segments(T, offset=0):
    """Borders (begin, end) of the segments of T tokens, of which the first is the one at `offset` of its segment."""
    return [(max(begin, 0), min(begin + 256, T)) for begin in range(-offset, T, 256)]


def _read(M, x):
    """M(x), M (B, H, V, K) and x (B, H, K)."""
    return (M * x[..., None, :]).sum(-1)


def _outer(v, k):
    """v kᵀ, (B, H, V, K)."""
    return v[..., :, None] * k[..., None, :]


def _chosen(r):
    """The logits r (B, H, cached + online) of the memories read, top_k cached and the online; -inf for the others."""
    best = r[..., :-1].sort(dim=-1, descending=True, stable=True).indices[..., :2]  # of equals the earlier
    chosen = F.pad(best, (0, 1), value=r.shape[-1] - 1)
    return r.masked_fill(torch.ones_like(r, dtype=torch.bool).scatter(-1, chosen, False), -math.inf)


def reference(q, k, v, u=None, *, theta=None, cu_seqlens=None, **gates):
    """One token at a time, in float32 or wider, differentiable: the definition that `op` is held against.

    Sequences that are packed one behind another run each by itself; cu_seqlens is as in `op`.

    memory     M(x) = W x
    update     M = M + outer(v, k)
    segments   256 tokens; every slot restarts at each (init: independent)
    read-out   y_t = sum of w M(q_t) over the top 2 of the cached memories by r and the online one (eq. 16, 17)
               w = softmax(r), r = <u_t, mean of the segment's keys>, of those up to t for the online memory
    shapes     q, k, u (B, T, H, 64); v and y (B, T, H, 64); k and v may have fewer heads, dividing H
    """
    _check(q, k, v, u, theta, gates)
    if (lengths := _sequence_lengths(cu_seqlens, q)) is not None:
        return _of_sequences(functools.partial(reference, theta=theta), lengths, q, k, v, u, gates)
    dtype, y_dtype = torch.float32, v.dtype
    for x in (q, k, v, u):
        dtype = torch.promote_types(dtype, x.dtype)
    k, v = _of_every_head(k, q), _of_every_head(v, q)
    q, k, v, u = q.to(dtype), k.to(dtype), v.to(dtype), u.to(dtype)
    B, T, H, K = q.shape
    zero = q.new_zeros(B, H, v.shape[-1], K)
    y, cached, pools = [], [], []
    for begin, end in _segments(T):
        M = zero  # init: independent
        key_sum = torch.zeros_like(k[:, 0])
        for t in range(begin, end):
            q_t, k_t, v_t, u_t = q[:, t], k[:, t], v[:, t], u[:, t]

            M = M + _outer(v_t, k_t)

            key_sum = key_sum + k_t
            pool = key_sum / (t - begin + 1)
            r = torch.stack([(u_t * key).sum(-1) for key in [*pools, pool]], -1)
            w = _chosen(r).softmax(-1)  # (B, H, memories)
            y_t = sum(w[..., i, None] * _read(memory, q_t) for i, memory in enumerate([*cached, M]))
            y.append(y_t)
        cached.append(M)
        pools.append(pool)
    if not y:  # gradients are of zeros all the same
        return (v * sum(x.sum() for x in (q, k, v, u))).to(y_dtype)
    return torch.stack(y, 1).to(y_dtype)


TOP_K = 2


def _segment_count(T):
    """The number of segments of T tokens; T may be symbolic."""
    return (T + 255) // 256


def _room(shape):
    """Numbers that a tensor takes in a buffer: what follows begins at a whole 16 bytes."""
    return (math.prod(shape) + 3) // 4 * 4


def _buffer(rooms, like, dtype):
    """One empty tensor for tensors of these shapes, which may be symbolic."""
    return like.new_empty((sum(map(_room, rooms.values())),), dtype=dtype)


def _parted(buffer, rooms):
    """The tensors of these shapes in a buffer."""
    parts = buffer.split(list(map(_room, rooms.values())))
    return [part[: math.prod(shape)].view(shape) for part, shape in zip(parts, rooms.values(), strict=True)]


def _clear_between(buffer, rooms):
    """Zeros what a buffer has between its tensors, so that all of it is the same at every run."""
    for part, shape in zip(buffer.split(list(map(_room, rooms.values()))), rooms.values(), strict=True):
        if math.prod(shape) < len(part):
            part[math.prod(shape) :] = 0


# ---------------------------------------------------------------------------------------------------------------------
# Torch path: any device, any float type.
#
# The tokens are walked in panels, (B, H, lanes, chunks, tokens of a chunk, ·): segments side by side.
# Only the state (M, pool)
# goes from chunk to chunk; all else is done for the chunks of a panel at once.
#
# Functions of a panel or chunk are given values by name, as x.name, and give others, as out.name. A name is one value
# in all of them: d_x is dL/dx, d_x_by_y what of that goes through y, and x_ahead what of x does not wait for the state.
# Beside a value stand its axes and its equation: [t j] are tokens and earlier tokens, [k], [h1] … [v] a head's sizes.
# ---------------------------------------------------------------------------------------------------------------------

TOKENS = 64  # tokens of a chunk, at most
PANEL_ROWS = 4096  # tokens of a panel, times batch, times heads, about
# What the state after a chunk is made of, by how many dimensions of it are the chunk's own, and likewise backwards.
CARRY = {1: "k_sum", 2: "k_v"}
CARRY_VJP = {1: "d_pool_by_r", 2: "d_M_by_q_M"}


def _products(first, *others):
    """The sum of matrix products x @ y, each added where the first one lies."""
    total = first[0] @ first[1]
    for x, y in others:
        x, y = (t.expand(*total.shape[:-2], -1, -1).flatten(0, -3) for t in (x, y))
        total.view(-1, *total.shape[-2:]).baddbmm_(x, y)
    return total


def _writes(**x):
    """What chunks add to the state, and how much of it they leave: sums over j of C_j k_j v_jᵀ, and R."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    out.k_v = x.k.mT @ x.v  # [k v]
    out.k_sum = x.k.sum(-2)  # [k]
    return vars(out)


def _carry(**x):
    """The state after a chunk."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    out.M_next = x.M + x.k_v  # [k v] M' = R M + sum over j of C_j k_j v_jᵀ
    out.pool_next = x.pool + x.k_sum  # [k]
    return vars(out)


def _read_online(**x):
    """The online read-outs of chunks, from the states before them."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    n_t = x.count.shape[-1]
    n_j = x.v.shape[-2]
    C_M_tj = torch.ones(n_t, n_j, dtype=x.q.dtype, device=x.q.device).tril()  # [t j] dM_t/dG_j
    q_k = x.q @ x.k.mT  # [t j]
    # [t v] o_t = M_tᵀ q_t, M_t = R_t M + sum over j <= t of C_tj k_j v_jᵀ
    out.o = _products((x.q, x.M), (C_M_tj * q_k, x.v))
    # [t] r_t = <u_t, mean of the segment's keys up to t>
    out.r = ((x.u @ x.k.mT).tril().sum(-1) + (x.pool[..., None, :] @ x.u.mT).squeeze(-2)) / x.count
    return vars(out)


def _pulls(**x):
    """What the read-outs of chunks owe to the states before them."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    out.d_M_by_q_M = x.q.mT @ x.d_o  # [k v]
    out.d_pool_by_r = ((x.d_r / x.count)[..., None, :] @ x.u).squeeze(-2)  # [k]
    return vars(out)


def _carry_vjp(**x):
    """The cotangent of the state before a chunk, from that after it."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    out.d_M = x.d_M_next + x.d_M_by_q_M  # [k v]
    out.d_pool = x.d_pool_next + x.d_pool_by_r  # [k]
    return vars(out)


def _inputs_vjp(**x):
    """The gradients of the inputs, from the states before chunks and the cotangents of those after."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    n_t = x.q.shape[-2]
    n_j = x.k.shape[-2]
    # d_q = dL/dq
    C_M_tj = torch.ones(n_t, n_j, dtype=x.d_o.dtype, device=x.d_o.device).tril()  # [t j] dM_t/dG_j
    d_q_k = (x.d_o @ x.v.mT) * C_M_tj  # [t j]
    out.d_q = _products((d_q_k, x.k), (x.d_o, x.M.mT))  # [t k]
    # d_k = dL/dk
    d_r_over_count = x.d_r / x.count  # [t]
    d_r_over_count_C_M_tj = d_r_over_count[..., :, None] * C_M_tj  # [t j]
    d_k_ahead = _products((d_r_over_count_C_M_tj.mT, x.u), (d_q_k.mT, x.q))  # [j k]
    out.d_k = x.v @ x.d_M_next.mT + x.d_pool_next[..., None, :] + d_k_ahead  # [j k]
    # d_v = dL/dv
    q_k = x.q @ x.k.mT  # [t j]
    out.d_v = _products((x.k, x.d_M_next), ((C_M_tj * q_k).mT, x.d_o))  # [j v]
    out.d_u = d_r_over_count[..., :, None] * x.pool[..., None, :] + d_r_over_count_C_M_tj @ x.k  # [t k]
    return vars(out)


def _blend(**x):
    """The softmax of all routing logits, over the read-outs of all memories."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    r_cached = x.u @ x.pools.mT  # [t n] r_tn = <u_t, pool_n>
    r_cached_max = r_cached.amax(-1)  # [t]
    r_max = torch.maximum(x.r, r_cached_max)  # [t]
    exp_online = torch.exp(x.r - r_max)  # [t]
    exp_cached = torch.exp(r_cached - r_max[..., :, None])  # [t n]
    exp_sum = exp_cached.sum(-1) + exp_online  # [t]
    weight = exp_online / exp_sum  # [t] w_t = exp(r_t) / sum of exp(r)
    weights = exp_cached / exp_sum[..., :, None]  # [t n] w_tn = exp(r_tn) / sum of exp(r)
    weights_q_cached = (weights[..., :, :, None] * x.q[..., :, None, :]).flatten(-2) @ x.cached.flatten(-3, -2)  # [t v]
    out.y = weight[..., :, None] * x.o + weights_q_cached  # [t v]
    return vars(out)


def _blend_vjp(**x):
    """The derivative of: the softmax of all routing logits, over the read-outs of all memories."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    r_cached = x.u @ x.pools.mT  # [t n] r_tn = <u_t, pool_n>
    r_cached_max = r_cached.amax(-1)  # [t]
    r_max = torch.maximum(x.r, r_cached_max)  # [t]
    exp_cached = torch.exp(r_cached - r_max[..., :, None])  # [t n]
    exp_online = torch.exp(x.r - r_max)  # [t]
    exp_sum = exp_cached.sum(-1) + exp_online  # [t]
    weights = exp_cached / exp_sum[..., :, None]  # [t n] w_tn = exp(r_tn) / sum of exp(r)
    weights_q = weights[..., :, :, None] * x.q[..., :, None, :]  # [t n k]
    out.d_cached = (weights_q.flatten(-2).mT @ x.d_y).unflatten(-2, weights_q.shape[-2:])  # [n k v]
    # d_q = dL/dq
    d_y_cached = (x.d_y @ x.cached.flatten(-3, -2).mT).unflatten(-1, x.cached.shape[-3:-1])  # [t n k]
    out.d_q = (weights[..., None, :] @ d_y_cached).squeeze(-2)  # [t k]
    weight = exp_online / exp_sum  # [t] w_t = exp(r_t) / sum of exp(r)
    out.d_o = x.d_y * weight[..., :, None]  # [t v]
    d_weights = (x.q[..., None, :] @ d_y_cached.mT).squeeze(-2)  # [t n] dL/dw_tn
    d_w = (x.d_y * x.o).sum(-1)  # [t] dL/dw_t
    d_r_cached_part = -(d_weights * weights).sum(-1) - d_w * weight  # [t]
    d_r_cached = (d_weights + d_r_cached_part[..., :, None]) * weights  # [t n] dL/dr_tn
    out.d_pools = d_r_cached.mT @ x.u  # [n k]
    out.d_u = d_r_cached @ x.pools  # [t k]
    out.d_r = (d_w + d_r_cached_part) * weight  # [t]
    return vars(out)


def _logits(**x):
    """The routing logits of cached segments."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    out.r_cached = x.u @ x.pools.mT  # [t n] r_tn = <u_t, pool_n>
    return vars(out)


def _logits_vjp(**x):
    """The derivative of: the routing logits of cached segments."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    out.d_pools = x.d_r_cached.mT @ x.u  # [n k]
    out.d_u = x.d_r_cached @ x.pools  # [t k]
    return vars(out)


def _weigh(**x):
    """The softmax of the chosen segments' logits and the online one."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    chosen_r_cached_max = x.r_chosen.amax(-1)  # [t]
    chosen_r_max = torch.maximum(x.r, chosen_r_cached_max)  # [t]
    chosen_exp_online = torch.exp(x.r - chosen_r_max)  # [t]
    chosen_exp_cached = torch.exp(x.r_chosen - chosen_r_max[..., :, None])  # [t n]
    chosen_exp_sum = chosen_exp_cached.sum(-1) + chosen_exp_online  # [t]
    out.w = chosen_exp_online / chosen_exp_sum  # [t] w_t = exp(r_t) / sum of exp(r)
    out.w_chosen = chosen_exp_cached / chosen_exp_sum[..., :, None]  # [t n] w_tn = exp(r_tn) / sum of exp(r)
    return vars(out)


def _weigh_vjp(**x):
    """The derivative of: the softmax of the chosen segments' logits and the online one."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    chosen_r_cached_max = x.r_chosen.amax(-1)  # [t]
    chosen_r_max = torch.maximum(x.r, chosen_r_cached_max)  # [t]
    chosen_exp_cached = torch.exp(x.r_chosen - chosen_r_max[..., :, None])  # [t n]
    chosen_exp_online = torch.exp(x.r - chosen_r_max)  # [t]
    chosen_exp_sum = chosen_exp_cached.sum(-1) + chosen_exp_online  # [t]
    d_chosen_exp_sum_part_2 = -(x.d_w_chosen * chosen_exp_cached).sum(-1) - x.d_w * chosen_exp_online  # [t]
    d_chosen_exp_sum = d_chosen_exp_sum_part_2 / (chosen_exp_sum * chosen_exp_sum)  # [t]
    d_chosen_exp_cached = x.d_w_chosen / chosen_exp_sum[..., :, None] + d_chosen_exp_sum[..., :, None]  # [t n]
    out.d_r_chosen = d_chosen_exp_cached * chosen_exp_cached  # [t n]
    d_chosen_exp_online = x.d_w / chosen_exp_sum + d_chosen_exp_sum  # [t]
    out.d_r = d_chosen_exp_online * chosen_exp_online  # [t]
    return vars(out)


def _read_weighted(**x):
    """One cached segment: weighted read-outs of the rows that read it."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    out.y_chosen = (x.w_chosen[..., :, None] * x.q) @ x.cached  # [t v]
    return vars(out)


def _read_weighted_vjp(**x):
    """The derivative of: one cached segment: weighted read-outs of the rows that read it."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    out.d_cached = (x.w_chosen[..., :, None] * x.q).mT @ x.d_y_chosen  # [k v]
    # d_q = dL/dq
    d_y_chosen_cached = x.d_y_chosen @ x.cached.mT  # [t k]
    out.d_q = d_y_chosen_cached * x.w_chosen[..., :, None]  # [t k]
    out.d_w_chosen = (d_y_chosen_cached * x.q).sum(-1)  # [t]
    return vars(out)


def _add_up(**x):
    """The weighted online read-out, and those of the chosen segments."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    out.y = x.w[..., :, None] * x.o + x.y_chosen  # [t v]
    return vars(out)


def _add_up_vjp(**x):
    """The derivative of: the weighted online read-out, and those of the chosen segments."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    out.d_o = x.d_y * x.w[..., :, None]  # [t v]
    out.d_w = (x.d_y * x.o).sum(-1)  # [t] dL/dw_t
    out.d_y_chosen = x.d_y
    return vars(out)


def _compute_type(tensors):
    """The widest of the inputs' types, float32 at least."""
    dtype = torch.float32
    for t in tensors:
        dtype = torch.promote_types(dtype, t.dtype)
    return dtype


class _Panel:
    """Tokens first..last of segments i..j, in chunks of `chunk` tokens: whole segments of one length, or a part of one.

    `offset` is where in its segment the panel begins, `length` how many tokens of each segment it has.
    """

    def __init__(self, i, j, first, last, offset, chunk):
        self.i, self.j, self.first, self.last = i, j, first, last
        self.offset, self.length, self.chunk = offset, (last - first) // max(j - i, 1), chunk

    def after(self, skip):
        """The panel, which lies in one segment where tokens before `skip` are left out, without them."""
        cut = max(skip - self.first, 0)
        return _Panel(self.i, self.j, self.first + cut, self.last, self.offset + cut, self.chunk)


def _panel_size(heads):
    """Tokens of a panel, a whole number of TOKENS; `heads`, which is B * H, may be symbolic."""
    return torch.sym_max(PANEL_ROWS // (torch.sym_max(heads, 1) * TOKENS), 1) * TOKENS


def _even_chunk(length):
    """Tokens of the chunks that a length is walked in, all of one size; 0 where that would not be a good one."""
    chunk = max(n for n in range(1, TOKENS + 1) if length % n == 0)
    return 0 if length > TOKENS and chunk < TOKENS // 4 else chunk


def _spans_of_segment(first, last, size):
    """The panels' tokens in a segment that has several: whole chunks, and what is left."""
    part, parts = max(size, int(((last - first) // TOKENS / 8) ** 0.5) * TOKENS), []
    whole = last - (last - first) % TOKENS
    parts += [(a, min(a + part, whole)) for a in range(first, whole, part)]
    return [*parts, (whole, last)] if whole < last else parts


def _panels(T, heads, offset=0, before=0):
    """The walk over T tokens, `heads` being B * H: a list of panels for each run of segments, in order.

    The first token is the one at `offset` of its segment, which has so many before it.

    The states before all panels are held for the backward pass, and in it those before the chunks of one panel: panels
    of a long segment are longer, so that neither is many. A chunk's rows take about eight times its state's memory.
    """
    size, walk, spans, i = _panel_size(heads), [], _segments(T, offset), 0
    while i < len(spans):
        first, last = spans[i]
        length, j, at = last - first, i + 1, offset if i == 0 else 0
        chunk = _even_chunk(length)
        if not chunk or length > size:
            panels = [(a, b, min(b - a, TOKENS)) for a, b in _spans_of_segment(first, last, size)]
        else:
            while not at and j < len(spans) and spans[j][1] - spans[j][0] == length and spans[j][1] - first <= size:
                j += 1
            panels = [(first, spans[j - 1][1], chunk)]
        walk.append([_Panel(before + i, before + j, a, b, a - first + at, chunk) for a, b, chunk in panels])
        i = j
    return walk


def _inner_of(length, size):
    """Room for the states before the panels inside a segment of so many tokens; the panels' size may be symbolic."""
    more = (length - 1) // size
    if not _even_chunk(length):
        return more + 1
    return more + torch.sym_min(more, 1) if length > TOKENS and length % TOKENS else more


def _inner(T, heads):
    """Room for the states before panels inside segments, or a little more; T may be symbolic."""
    size = _panel_size(heads)
    return T // 256 * _inner_of(256, size) + T % 256 // size + 1


def _rows(t, panel, dtype):
    """A panel's rows of t (B, T, H, ·), as (B, H, rows, ·)."""
    rows = t[:, panel.first : panel.last].transpose(1, 2)
    return rows.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _load(tensors, panel, dtype):
    """A panel's inputs by name, with each token's place in its segment, and what its chunks add to the state."""
    size = (panel.j - panel.i, -1, panel.chunk)
    x = {name: _rows(t, panel, dtype).unflatten(2, size) for name, t in zip(INPUTS, tensors, strict=True)}
    token = torch.arange(x["q"].shape[3] * panel.chunk, dtype=dtype, device=x["q"].device)
    x["count"] = panel.offset + 1 + (token % panel.length).view(-1, panel.chunk)
    return x | _writes(**x)


def _nothing(tensors, lanes, dtype):
    """A state of zeros."""
    q = tensors[INPUTS.index("q")]
    shapes = {"M": (64, 64), "pool": (64,)}
    return {name: q.new_zeros(q.shape[0], q.shape[2], lanes, *shape, dtype=dtype) for name, shape in shapes.items()}


def _begun(given):
    """The state that a pass goes on from, by the names of its parts; empty where it has none."""
    return dict(zip(PARTS, given, strict=False)) if given else {}


def _fresh(tensors, lanes, dtype):
    """The state before a segment's first token."""
    return _nothing(tensors, lanes, dtype)


def _by_chunk(values, dimensions, batch):
    """Each chunk's part of the values, in order; `dimensions` has their names by how many follow those of the batch."""
    parts = {}
    for n, names in dimensions.items():
        for name in names.split():
            parts[name] = values[name].expand(*batch, *values[name].shape[values[name].dim() - n :]).unbind(3)
    return [{name: part[c] for name, part in parts.items()} for c in range(batch[3])]


def _walk(x, state, segments):
    """The states before the chunks of a panel, stacked; those at the ends of its segments; and the one after it.

    `segments` is how many the chunks go through one after another.
    """
    batch, before, ends = x["q"].shape[:4], [], []
    for c, chunk in enumerate(_by_chunk(x, CARRY, batch)):
        out = _carry(**chunk, **state)
        before.append(state)
        state = {name: out[f"{name}_next"] for name in state}
        if (c + 1) * segments % batch[3] == 0:
            ends.append(state)
    return {name: torch.stack([s[name] for s in before], 3) for name in before[0]}, ends, state


def _walk_back(x, d_state, d_ends, segments):
    """The reverse of `_walk`: cotangents of the states after the chunks, stacked, and of the one before the panel.

    `d_ends` has what read-outs owe to the states at the ends of segments; it is None where the panel ends inside one.
    """
    batch, after = x["q"].shape[:4], []
    chunks = _by_chunk(x, CARRY_VJP, batch)
    for c in reversed(range(len(chunks))):
        if d_ends is not None and (c + 1) * segments % batch[3] == 0:
            end = c * segments // batch[3] * batch[2]
            for name in ("M",):
                d_state[name] = d_state[name] + d_ends[name][:, :, end : end + batch[2]]
            d_state["pool"] = d_ends["pool"][:, :, end : end + batch[2]]
        d_state = {f"d_{name}_next": t for name, t in d_state.items()}
        out = _carry_vjp(**chunks[c], **d_state)
        after.append(d_state)
        d_state = {name: out[f"d_{name}"] for name in ("M", "pool")}
    return {name: torch.stack([s[name] for s in reversed(after)], 3) for name in after[0]}, d_state


SCRATCH = 2097152  # numbers in the largest value of a read-out, about
WIDTH = 64  # the longest axis of the parameters


def _blocks(panel, heads, width):
    """A panel's rows in blocks (s, first, last) that read the same s cached segments with bounded scratch."""
    for s in range(max(panel.i, 1), panel.j):
        rows, end = max(SCRATCH // (heads * s * width), 32), (s - panel.i + 1) * panel.length
        for a in range(end - panel.length, end, rows):
            yield s, a, min(a + rows, end)


def _until(bank, s):
    """The states and pooled keys of the first s segments."""
    return {name: t[:, :, :s] for name, t in bank.items()}


def _blend_forward(x, bank, panel):
    """y of a panel's rows, each reading every state before its segment, weighted by the softmax of their logits."""
    y = x["o"].clone()
    for s, a, b in _blocks(panel, y.shape[0] * y.shape[1], WIDTH):
        rows = {name: t[:, :, a:b] for name, t in x.items()}
        y[:, :, a:b] = _blend(**rows, **_until(bank, s))["y"]
    return y


def _blend_backward(x, bank, d_bank, panel):
    """The reverse of `_blend_forward`: adds to d_bank, and returns the gradients of the rows' inputs."""
    d = {name: torch.zeros_like(x[name]) for name in ("q", "u", "r")} | {"o": x["d_y"].clone()}
    for s, a, b in _blocks(panel, x["o"].shape[0] * x["o"].shape[1], WIDTH):
        rows = {name: t[:, :, a:b] for name, t in x.items()}
        out = _blend_vjp(**rows, **_until(bank, s))
        for name, t in d.items():
            t[:, :, a:b] = out[f"d_{name}"]
        for name, t in d_bank.items():
            t[:, :, :s] += out[f"d_{name}"]
    return d


TILE = 64  # rows that read one segment together


def _parts(panel):
    """The part of a panel that has TOP_K earlier segments at most, and reads them all; and the part that chooses."""
    s = min(max(panel.i, TOP_K + 1), panel.j)
    middle = panel.first + panel.length * (s - panel.i)
    every = _Panel(panel.i, s, panel.first, middle, panel.offset, panel.chunk)
    return every, _Panel(s, panel.j, middle, panel.last, panel.offset, panel.chunk)


def _logits_of(x, bank, panel):
    """The routing logits (B, H, rows, segments) of rows that choose, among the segments before the panel's last."""
    return _logits(**x, pools=bank["pools"][:, :, : panel.j - 1])["r_cached"]


def _choose(r, panel):
    """The TOP_K earlier segments of every row with the largest logits, ties to the earlier: (B, H, rows, TOP_K)."""
    segment = panel.i + torch.arange(r.shape[2], device=r.device) // panel.length
    later = torch.arange(r.shape[3], device=r.device) >= segment.unsqueeze(-1)
    left, chosen = r.masked_fill(later, -math.inf), []
    for _ in range(TOP_K):
        chosen.append(left.argmax(-1, keepdim=True))
        left.scatter_(-1, chosen[-1], -math.inf)
    return torch.cat(chosen, -1)


def _tiles(chosen, N):
    """Rows grouped by the segment they read, in tiles of TILE; one that is not full repeats its group's last row.

    Returns `head` and `segment` (tiles,), whose and which of the N states a tile reads; `entry` (tiles * TILE,), which
    of the B * H * rows * TOP_K choices stand in it; `full` (tiles, TILE), False for a repeated one; and `place`, where
    in the tiles each choice stands.
    """
    heads = torch.arange(chosen.shape[0] * chosen.shape[1], device=chosen.device).view(*chosen.shape[:2], 1, 1)
    group = (chosen + heads * N).flatten()
    order = group.argsort(stable=True)
    sizes = torch.bincount(group, minlength=heads.numel() * N)
    tiles = (sizes + TILE - 1) // TILE
    start, first = sizes.cumsum(0) - sizes, (tiles.cumsum(0) - tiles) * TILE
    state = torch.arange(heads.numel() * N, device=chosen.device).repeat_interleave(tiles)
    inside = torch.arange(state.numel() * TILE, device=chosen.device).view(-1, TILE) - first[state, None]
    entry = order[(start[state, None] + inside.minimum(sizes[state, None] - 1)).flatten()]
    stands = torch.arange(order.numel(), device=chosen.device) + (first - start)[group[order]]
    return state // N, state % N, entry, inside < sizes[state, None], torch.empty_like(order).scatter_(0, order, stands)


def _states_of(bank, head, segment):
    """The states that tiles read, without a copy of the others."""
    return {name: t.flatten(0, 1)[head, segment] for name, t in bank.items() if name != "pools"}


def _tiled(t, entry):
    """The rows of t that stand in the tiles: (tiles, TILE, ·)."""
    return t.flatten(0, 2).index_select(0, entry // TOP_K).unflatten(0, (-1, TILE))


def _collected(tiles, place, like):
    """For each row the sum of what its choices have in the tiles."""
    return F.embedding_bag(place.view(-1, TOP_K), tiles.flatten(0, 1), mode="sum").view(*like.shape[:3], -1)


def _chosen_forward(x, bank, chosen, panel):
    """y of rows that each read the segments they chose, rows of one segment together."""
    head, segment, entry, _, place = _tiles(chosen, panel.j)
    weights = _weigh(r=x["r"], r_chosen=_logits_of(x, bank, panel).gather(-1, chosen))
    states = _states_of(bank, head, segment)
    w_chosen = weights["w_chosen"].flatten()[entry].view(-1, TILE)
    tiles = _read_weighted(q=_tiled(x["q"], entry), w_chosen=w_chosen, **states)["y_chosen"]
    return _add_up(o=x["o"], w=weights["w"], y_chosen=_collected(tiles, place, chosen))["y"]


def _chosen_backward(x, bank, chosen, d_bank, panel):
    """The reverse of `_chosen_forward`: adds to d_bank, and returns the gradients of the rows' inputs."""
    head, segment, entry, full, place = _tiles(chosen, panel.j)
    logits = _logits_of(x, bank, panel)
    r = {"r": x["r"], "r_chosen": logits.gather(-1, chosen)}
    weights = _weigh(**r)
    online = _add_up_vjp(o=x["o"], w=weights["w"], d_y=x["d_y"])
    tiles = _read_weighted_vjp(
        q=_tiled(x["q"], entry),
        w_chosen=weights["w_chosen"].flatten()[entry].view(-1, TILE) * full,
        **_states_of(bank, head, segment),
        d_y_chosen=_tiled(x["d_y"], entry),
    )
    for name in d_bank.keys() - {"pools"}:
        d_bank[name].flatten(0, 2).index_add_(0, head * d_bank[name].shape[2] + segment, tiles[f"d_{name}"])
    d_w_chosen = tiles["d_w_chosen"].flatten()[place].view(chosen.shape)
    d_r = _weigh_vjp(**r, d_w=online["d_w"], d_w_chosen=d_w_chosen)
    d_logits = torch.zeros_like(logits).scatter_(-1, chosen, d_r["d_r_chosen"])
    routed = _logits_vjp(**x, pools=bank["pools"][:, :, : panel.j - 1], d_r_cached=d_logits)
    d_bank["pools"][:, :, : panel.j - 1] += routed["d_pools"]
    d_q = _collected(tiles["d_q"], place, chosen)
    return {"q": d_q, "u": routed["d_u"], "r": d_r["d_r"], "o": online["d_o"]}


def _rows_of(x, part, panel):
    """The rows of a part of a panel."""
    first, last = part.first - panel.first, part.last - panel.first
    return {name: t[:, :, first:last] for name, t in x.items()}


def _read_forward(x, bank, chosen, panel):
    """y of a panel's rows; writes down what they chose."""
    every, some = _parts(panel)
    y = [_blend_forward(_rows_of(x, every, panel), bank, every)]
    if some.i < some.j:
        rows = _rows_of(x, some, panel)
        choice = _choose(_logits_of(rows, bank, some), some)
        chosen[:, :, some.first : some.last] = choice
        y.append(_chosen_forward(rows, bank, choice, some))
    return torch.cat(y, 2)


def _read_backward(x, bank, chosen, d_bank, panel):
    """The reverse of `_read_forward`: adds to d_bank, and returns the gradients of the rows' inputs."""
    every, some = _parts(panel)
    d = [_blend_backward(_rows_of(x, every, panel), bank, d_bank, every)]
    if some.i < some.j:
        choice = chosen[:, :, some.first : some.last].long()
        d.append(_chosen_backward(_rows_of(x, some, panel), bank, choice, d_bank, some))
    return {name: torch.cat([part[name] for part in d], 2) for name in d[0]}


def _copied(T, offset, before):
    """How many cached states from before a pass are copied in front of its own: none where it has one segment."""
    return before if before and _segment_count(T + offset) > 1 else 0


def _rooms_torch(B, T, H, offset=0, copied=0):
    """The shapes of what the forward pass saves in a buffer, by name; all sizes may be symbolic."""
    N = _segment_count(T + offset)
    P = _inner(T + offset, B * H)
    return {
        "o": (B, H, T, 64),  # online read-outs
        "r": (B, H, T),  # online logits
        "kept_M": (B, H, copied + N, 64, 64),  # M at the ends of segments
        "inner_M": (B, H, P, 64, 64),  # M before panels inside segments
        "inner_pool": (B, H, P, 64),  # pool before panels inside segments
        "pools": (B, H, copied + N, 64),  # pooled keys
    }


def _saved_torch(tensors, place=()):
    """Empty tensors for what the forward pass saves: a buffer, and the segments each row reads, where it chooses."""
    q, (B, T, H, _) = tensors[INPUTS.index("q")], tensors[INPUTS.index("q")].shape
    offset, before, _ = place or WHOLE_SEQUENCE
    copied = _copied(T, offset, before)
    buffer = _buffer(_rooms_torch(B, T, H, offset, copied), q, _compute_type(tensors))
    return [buffer, q.new_empty((B, H, T, TOP_K), dtype=torch.int32)]


def _run_forward_torch(tensors, place=()):
    """y, the state after it where there is a place in a longer sequence, and what the backward pass needs."""
    saved, dtype, (offset, before, skip) = _saved_torch(tensors, place), _compute_type(tensors), place or WHOLE_SEQUENCE
    tensors, given, cached = _divided(tensors, before)
    v = tensors[INPUTS.index("v")]
    B, T, H, _ = v.shape
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    copied = _copied(T, offset, before)
    shift = before - copied
    _clear_between(saved[0], _rooms_torch(B, T, H, offset, copied))
    (o, r, kept_M, inner_M, inner_pool, pools), chosen = (
        _parted(saved[0], _rooms_torch(B, T, H, offset, copied)),
        saved[1],
    )
    own = {"cached": kept_M, "pools": pools}
    bank = own if copied or not before else dict(zip(own, cached, strict=True))
    if copied:
        for kept, t in zip(own.values(), cached, strict=True):
            kept[:, :, :copied] = t
    chosen.zero_()
    at = 0
    for run in _panels(T, B * H, offset, before):
        state, given = _begun(given) or _fresh(tensors, run[0].j - run[0].i, dtype), ()
        for panel in run:
            i, j = panel.i, panel.j
            if panel is not run[0]:
                inner_M[:, :, at : at + 1] = state["M"]
                inner_pool[:, :, at : at + 1] = state["pool"]
                at += 1
            x = _load(tensors, panel, dtype)
            earlier, ends, state = _walk(x, state, 1)
            if ends:
                kept_M[:, :, i - shift : j - shift] = torch.cat([end["M"] for end in ends], 2)
                pools[:, :, i - shift : j - shift] = torch.cat([end["pool"] for end in ends], 2) / (
                    panel.offset + panel.length
                )
            x |= earlier
            x |= _read_online(**x)
            rows = {name: x[name].flatten(2, 4) for name in ("q", "u", "o", "r")}
            o[:, :, panel.first : panel.last] = rows["o"]
            r[:, :, panel.first : panel.last] = rows["r"]
            if skip < panel.last:
                read = panel.after(skip)
                rows = {name: t[:, :, read.first - panel.first :] for name, t in rows.items()}
                y[:, read.first : read.last] = _read_forward(rows, bank, chosen, read).transpose(1, 2)
    for inner in (
        inner_M,
        inner_pool,
    ):
        inner[:, :, at:] = 0  # room that was not needed
    if not place:
        return [y, *saved]
    y[:, :skip] = 0
    after = [t[:, :, -1:].clone() for t in state.values()]
    finished = slice(copied, copied + (offset + T) // SEGMENT)
    after += [t[:, :, finished].clone() for t in own.values()]
    return [y, *after, *saved]


def _run_backward_torch(tensors, saved, d_y, d_after=(), place=()):
    """The gradient of every input, and of the state that the pass went on from."""
    dtype, (B, T, H, _), (offset, before, _) = _compute_type(tensors), d_y.shape, place or WHOLE_SEQUENCE
    types = [t.dtype for t in tensors]
    tensors, given, cached = _divided(tensors, before)
    copied = _copied(T, offset, before)
    (o, r, kept_M, inner_M, inner_pool, pools), chosen = (
        _parted(saved[0], _rooms_torch(B, T, H, offset, copied)),
        saved[1],
    )
    d = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors]
    own = {"cached": kept_M, "pools": pools}
    bank = own if copied or not before else dict(zip(own, cached, strict=True))
    d_bank = {name: t.new_zeros(B, H, max(t.shape[2], before + 1), *t.shape[3:]) for name, t in own.items()}
    walk = _panels(T, B * H, offset, before)
    d_slots = dict(zip(PARTS, d_after, strict=False))
    if place:  # what is owed to the last segment's sum of keys comes with what is owed to its pool
        d_bank["pools"][:, :, -1:] += d_slots.pop("pool") * (walk[-1][-1].offset + walk[-1][-1].length)
    for t, owed in zip(d_bank.values(), d_after[len(PARTS) :], strict=False):
        t[:, :, before : before + owed.shape[2]] += owed
    at = sum(len(run) - 1 for run in walk)
    for run in reversed(walk):
        i, j = run[0].i, run[0].j
        begun = _begun(given if run is walk[0] else ())
        states = [begun or _fresh(tensors, run[0].j - run[0].i, dtype)]
        d_state = _nothing(tensors, run[0].j - run[0].i, dtype)
        while d_slots:
            name, owed = d_slots.popitem()
            d_state[name][:, :, -1:] = owed
        at -= len(run) - 1
        for p in range(at, at + len(run) - 1):
            states.append({"M": inner_M[:, :, p : p + 1], "pool": inner_pool[:, :, p : p + 1]})
        for panel in reversed(run):
            x = _load(tensors, panel, dtype)
            d_rows = _rows(d_y, panel, dtype)
            rows = {name: x[name].flatten(2, 4) for name in ("q", "u")}
            rows |= {"o": o[:, :, panel.first : panel.last], "r": r[:, :, panel.first : panel.last], "d_y": d_rows}
            owed = _read_backward(rows, bank, chosen, d_bank, panel)
            owed = {name: t.unflatten(2, x["q"].shape[2:5]) for name, t in owed.items()}
            x |= {"d_o": owed.pop("o"), "d_r": owed.pop("r")}
            x |= _walk(x, states.pop(), 1)[0]
            d_ends = {"M": d_bank["cached"][:, :, i:j]}
            d_ends["pool"] = d_bank["pools"][:, :, i:j] / (panel.offset + panel.length)
            x |= _pulls(**x)
            after, d_state = _walk_back(x, d_state, d_ends if panel is run[-1] else None, 1)
            out = _inputs_vjp(**x, **after)
            for name, t in owed.items():
                out[f"d_{name}"] = out[f"d_{name}"] + t
            for name, t in zip(INPUTS, d, strict=True):
                t[:, panel.first : panel.last] = out[f"d_{name}"].expand_as(x[name]).flatten(2, 4).transpose(1, 2)
    d_before = []
    if given:
        d_before += [d_state[name] for name in PARTS]
    if before:
        d_before += [t[:, :, :before].clone() for t in d_bank.values()]
    d += d_before
    return [g.to(dtype) for g, dtype in zip(d, types, strict=True)]


# ---------------------------------------------------------------------------------------------------------------------
# Triton path. B batch, T tokens, H heads, K and V the head's sizes; BT, BK, BV the tile of each; i_ an index,
# o_ offsets of a tile, m_ its mask, b_ a tile. Tensors are (B, T, H, ·); states are (B, H, number, K, V) in float32.
#
# A block is a run of whole chunks of BT tokens inside one segment: what one program walks. Where blocks follow one
# another, in long segments or where one goes on from the one before, `states` leaves the state at each block's start
# and `retreat` its gradient at each block's end, so that everything else runs block by block.
# ---------------------------------------------------------------------------------------------------------------------


@_jit
def _tile_rounded(b_x):
    """float32 rounded to tf32, 10 bits behind the point, ties away from zero."""
    return ((b_x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@_jit
def _tile_part(b_x, small):
    """x as the sum of two tf32 numbers: the larger, or what that leaves of x where `small`."""
    return _tile_rounded(b_x - tl.where(small, _tile_rounded(b_x), 0.0))


@_jit
def _tile_dot_add(b_c, b_a, b_b, one, PREC: tl.constexpr):
    """c + a b, in a loop of one turn that the compiler cannot see through; of three, by parts, for float32 as 3 x tf32.

    Of products in one region Triton spreads all warps over rows alone, each with the whole of b in its registers; in a
    region of its own a product's warps share a and b both.
    """
    if PREC == "tf32x3":
        for i in range(3 * one):  # small by large, large by small, large by large
            b_c = tl.dot(_tile_part(b_a, i == 0), _tile_part(b_b, i == 1), b_c, input_precision="tf32")
    else:
        for _ in range(one):
            b_c = tl.dot(b_a, b_b, b_c, input_precision=PREC)
    return b_c


@_jit
def _tile_dot(b_a, b_b, one, PREC: tl.constexpr):
    return _tile_dot_add(tl.zeros([b_a.shape[0], b_b.shape[1]], tl.float32), b_a, b_b, one, PREC)


@_jit
def _tile_logits(b_x, b_pools, PREC: tl.constexpr):
    """Products of rows and pooled keys, as exact as float32 is: by three parts of the pooled keys where rows are in
    bfloat16, or three products of tf32 where tensor cores have no more."""
    EXACT: tl.constexpr = "ieee" if PREC == "ieee" else "tf32x3"
    if b_x.dtype == tl.bfloat16:
        b_high = b_pools.to(tl.bfloat16)
        b_pools -= b_high.to(tl.float32)
        b_middle = b_pools.to(tl.bfloat16)
        b_low = (b_pools - b_middle.to(tl.float32)).to(tl.bfloat16)
        b_logits = tl.dot(b_x, tl.trans(b_middle), tl.dot(b_x, tl.trans(b_low)))
        b_logits = tl.dot(b_x, tl.trans(b_high), b_logits)
    else:
        b_logits = tl.dot(b_x.to(tl.float32), tl.trans(b_pools), input_precision=EXACT)
    return b_logits


@_jit
def _block(blocks, i_n):
    """A block: its tokens start..end; its segment, and that one's tokens; the sequence's first segment; the border."""
    row = blocks + 8 * i_n
    start, end, i_s, segment_start = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    segment_end, first, border = tl.load(row + 4), tl.load(row + 5), tl.load(row + 6)
    return start, end, i_s, segment_start, segment_end, first, border


@_jit
def _chain(chains, i_c):
    """A chain: its first block or step, and the one after its last."""
    return tl.load(chains + 2 * i_c), tl.load(chains + 2 * i_c + 1)


@_jit
def _segment(segments, i_s):
    """A segment: its tokens, the sequence's first segment, and the sequence's end."""
    row = segments + 4 * i_s
    return tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)


@_jit
def _segment_tile(segments, o_s, m_s):
    """Of several segments their tokens, and the sequence's end; one token that nothing reads where there is none."""
    row = segments + 4 * o_s
    start, end = tl.load(row, mask=m_s, other=0), tl.load(row + 1, mask=m_s, other=1)
    return start, end, tl.load(row + 3, mask=m_s, other=0)


@_jit
def states_kernel(
    k,
    v,
    cached,
    pools,
    begin_M,
    begin_pool,
    after_M,
    after_pool,
    blocks,
    chains,
    T,
    H,
    BH,
    n_blocks,
    n_segments,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
):
    """The state at the end of every segment, and where blocks follow one another, at the start of every block.

    One program walks a chain of blocks and a tile of V columns.
    """
    i_c, i_bh, i_v = tl.program_id(0) // BH, tl.program_id(0) % BH, tl.program_id(1)
    i_b, i_h = i_bh // H, i_bh % H
    one = tl.minimum(T, 1)
    o_t, o_k, o_v = tl.arange(0, BT), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    o_kv, m_kv = o_k[:, None] * V + o_v[None, :], m_k[:, None] & m_v[None, :]
    b_M = tl.zeros([BK, BV], tl.float32)
    b_pool = tl.zeros([BK], tl.float32)
    if begin_M is not None:
        if i_c == 0:
            b_M = tl.load(begin_M + i_bh.to(tl.int64) * (K * V) + o_kv, mask=m_kv, other=0.0)
    if begin_pool is not None:
        if i_c == 0:
            b_pool = tl.load(begin_pool + i_bh.to(tl.int64) * K + o_k, mask=m_k, other=0.0)
    i_first, i_last = _chain(chains, i_c)
    for i_n in range(i_first, i_last):
        start, end, i_s, segment_start, segment_end, _, _ = _block(blocks, i_n)
        for i_step in range(tl.cdiv(end - start, BT)):
            i_t = start + i_step * BT
            m_t = i_t + o_t < end
            i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
            b_valid = m_t.to(tl.float32)
            b_rate = tl.where(b_valid > 0, 1.0, 0.0)
            b_v = tl.load(
                v + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]), mask=m_t[:, None] & m_v[None, :], other=0.0
            ).to(IN)
            b_M_writes = b_rate[:, None] * b_v.to(tl.float32)
            b_k = tl.load(
                k + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
            ).to(IN)
            b_M_next = _tile_dot_add(b_M, tl.trans(b_k.to(tl.float32)), b_M_writes, one, PREC)
            b_k_sum = tl.sum(b_k.to(tl.float32), 0)
            b_pool_next = b_pool + b_k_sum
            b_M = b_M_next
            b_pool = b_pool_next
        if end == segment_end:
            i_cached = i_bh.to(tl.int64) * n_segments + i_s
            tl.store(cached + i_cached * K * V + o_kv, b_M, mask=m_kv)
            if i_v == 0:
                tl.store(pools + i_cached * K + o_k, b_pool / (segment_end - segment_start), mask=m_k)
    if after_M is not None:
        if i_last == n_blocks:
            tl.store(after_M + i_bh.to(tl.int64) * (K * V) + o_kv, b_M, mask=m_kv)
    if after_pool is not None:
        if (i_last == n_blocks) & (i_v == 0):
            tl.store(after_pool + i_bh.to(tl.int64) * K + o_k, b_pool, mask=m_k)


@_jit
def read_cached_kernel(
    q,
    u,
    rounded,
    pools,
    lse_cached,
    y_cached,
    blocks,
    T,
    H,
    BH,
    n_segments,
    n_first,
    n_last,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
    BN: tl.constexpr,
):
    """What rows read of cached segments under a softmax over these alone, and its log-sum-exp; 0 and -inf for none.

    One program a tile of rows and of V columns, those with most segments first. Logits of BN segments are one product,
    and read-outs of one segment after another are added up by products of weighted queries.
    """
    STATES: tl.constexpr = tl.float32 if tl.float16 == IN else IN  # states may be larger than float16 has numbers
    i_unit, i_bh = tl.program_id(0) // BH, tl.program_id(0) % BH
    i_b, i_h = i_bh // H, i_bh % H
    n_tiles = tl.num_programs(0) // ((n_last - n_first) * BH)
    start, end, i_s, _, _, first, _ = _block(blocks, n_last - 1 - i_unit // n_tiles)
    i_t = start + i_unit % n_tiles * BT
    last = tl.where(i_t < end, i_s, first)
    i_v = tl.program_id(1)
    o_t, o_k, o_v = tl.arange(0, BT), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    o_kv, m_kv = o_k[:, None] * V + o_v[None, :], m_k[:, None] & m_v[None, :]
    i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
    m_t = i_t + o_t < end
    o_q, m_q = o_t[:, None] * (H * K) + o_k[None, :], m_t[:, None] & m_k[None, :]
    b_q = tl.load(q + i_row * K + o_q, mask=m_q, other=0.0).to(IN)
    b_u = tl.load(u + i_row * K + o_q, mask=m_q, other=0.0).to(IN)
    b_top, b_sum = tl.full([BT], -1e38, tl.float32), tl.zeros([BT], tl.float32)
    b_y = tl.zeros([BT, BV], tl.float32)
    for i_tile in range(first, last, BN):
        o_n = i_tile + tl.arange(0, BN)
        o_pools, m_pools = o_n.to(tl.int64)[:, None] * K + o_k[None, :], (o_n < last)[:, None] & m_k[None, :]
        b_pools = tl.load(pools + i_bh.to(tl.int64) * n_segments * K + o_pools, mask=m_pools, other=0.0)
        b_logits = _tile_logits(b_u, b_pools, PREC)
        b_logits = tl.where((o_n < last)[None, :], b_logits, -float("inf"))
        b_higher = tl.maximum(b_top, tl.max(b_logits, 1))
        b_keep, b_weights = tl.exp(b_top - b_higher), tl.exp(b_logits - b_higher[:, None])
        b_y = b_y * b_keep[:, None]
        b_sum, b_top = b_sum * b_keep + tl.sum(b_weights, 1), b_higher
        for i_c in range(i_tile, tl.minimum(i_tile + BN, last)):
            b_weight = tl.sum(tl.where((o_n == i_c)[None, :], b_weights, 0.0), 1)
            i_cached = i_bh.to(tl.int64) * n_segments + i_c
            b_state = tl.load(rounded + i_cached * K * V + o_kv, mask=m_kv, other=0.0).to(STATES)
            b_y = tl.dot((b_weight[:, None] * b_q.to(tl.float32)).to(STATES), b_state, b_y, input_precision=PREC)
    b_total = tl.where(b_sum > 0, b_sum, 1.0)
    if i_v == 0:
        b_lse = tl.where(b_sum > 0, b_top + tl.log(b_total), -float("inf"))
        tl.store(lse_cached + i_row + o_t * H, b_lse, mask=m_t)
    o_y, m_y = o_t[:, None] * (H * V) + o_v[None, :], m_t[:, None] & m_v[None, :]
    tl.store(y_cached + i_row * V + o_y, b_y / b_total[:, None], mask=m_y)


@_jit
def read_kernel(
    q,
    k,
    v,
    u,
    lse,
    online,
    lse_cached,
    y_cached,
    y,
    begin_M,
    begin_pool,
    blocks,
    T,
    H,
    BH,
    n_blocks,
    n_segments,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
):
    """The read-outs y.

    One program a block and tile of V columns walks the block's chunks, and reads what is cached for each.
    """
    i_n, i_bh, i_v = tl.program_id(0) // BH, tl.program_id(0) % BH, tl.program_id(1)
    i_b, i_h = i_bh // H, i_bh % H
    one = tl.minimum(T, 1)
    o_t, o_k, o_v = tl.arange(0, BT), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    o_kv, m_kv = o_k[:, None] * V + o_v[None, :], m_k[:, None] & m_v[None, :]
    start, end, _, segment_start, _, _, _ = _block(blocks, i_n)
    b_M = tl.zeros([BK, BV], tl.float32)
    b_pool = tl.zeros([BK], tl.float32)
    if begin_M is not None:
        if i_n == 0:
            b_M = tl.load(begin_M + i_bh.to(tl.int64) * (K * V) + o_kv, mask=m_kv, other=0.0)
    if begin_pool is not None:
        if i_n == 0:
            b_pool = tl.load(begin_pool + i_bh.to(tl.int64) * K + o_k, mask=m_k, other=0.0)
    for i_step in range(tl.cdiv(end - start, BT)):
        i_t = start + i_step * BT
        m_t = i_t + o_t < end
        i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
        b_u = tl.load(
            u + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
        ).to(IN)
        b_u_pool = tl.sum(b_u.to(tl.float32) * b_pool[None, :], 1)
        b_k = tl.load(
            k + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
        ).to(IN)
        b_u_k = _tile_dot(b_u, tl.trans(b_k), one, PREC)
        b_k_sum = tl.sum(b_k.to(tl.float32), 0)
        b_at_t = o_t
        b_at_j = o_t
        b_causal_u_k = tl.where(b_at_t[:, None] + 1.0 - b_at_j[None, :] > 0, b_u_k, 0.0)
        b_causal_u_k_sum = tl.sum(b_causal_u_k, 1)
        b_count = (i_t - segment_start + 1 + o_t).to(tl.float32)
        b_r = (b_causal_u_k_sum + b_u_pool) / b_count
        b_pool_next = b_pool + b_k_sum
        b_causal = tl.where(b_at_t[:, None] + 1.0 - b_at_j[None, :] > 0, 1.0, 0.0)
        b_valid = m_t.to(tl.float32)
        b_rate = tl.where(b_valid > 0, 1.0, 0.0)
        b_C_M_tj = b_causal * b_rate[None, :]
        b_q = tl.load(
            q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
        ).to(IN)
        b_q_k = _tile_dot(b_q, tl.trans(b_k), one, PREC)
        b_C_q_k = b_C_M_tj * b_q_k
        b_q_M = _tile_dot(b_q.to(tl.float32), b_M, one, PREC)
        b_v = tl.load(
            v + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]), mask=m_t[:, None] & m_v[None, :], other=0.0
        ).to(IN)
        b_o = _tile_dot_add(b_q_M, b_C_q_k, b_v.to(tl.float32), one, PREC)
        b_M_writes = b_rate[:, None] * b_v.to(tl.float32)
        b_M_next = _tile_dot_add(b_M, tl.trans(b_k.to(tl.float32)), b_M_writes, one, PREC)
        b_M = b_M_next
        b_pool = b_pool_next
        b_top, b_sum, b_y = b_r, tl.full([BT], 1.0, tl.float32), b_o
        b_r_cached = tl.load(lse_cached + i_row + o_t * H, mask=m_t, other=-float("inf"))
        o_cached, m_cached = o_t[:, None] * (H * V) + o_v[None, :], m_t[:, None] & m_v[None, :]
        b_o_cached = tl.load(y_cached + i_row * V + o_cached, mask=m_cached, other=0.0)
        b_higher = tl.maximum(b_top, b_r_cached)
        b_keep, b_new = tl.exp(b_top - b_higher), tl.exp(b_r_cached - b_higher)
        b_y = b_y * b_keep[:, None] + b_new[:, None] * b_o_cached
        b_sum, b_top = b_sum * b_keep + b_new, b_higher
        b_y = b_y / b_sum[:, None]
        if i_v == 0:
            b_lse = b_top + tl.log(b_sum)
            tl.store(lse + i_row + o_t * H, b_lse, mask=m_t)
            tl.store(online + i_row + o_t * H, tl.exp(b_r - b_lse), mask=m_t)
        o_y = o_t[:, None] * (H * V) + o_v[None, :]
        tl.store(y + i_row * V + o_y, b_y.to(y.dtype.element_ty), mask=m_t[:, None] & m_v[None, :])


@_jit
def queries_kernel(
    k,
    v,
    d_y,
    online,
    d_r,
    d_q_rows,
    d_u_rows,
    d_q,
    d_u,
    begin_M,
    begin_pool,
    blocks,
    T,
    H,
    BH,
    n_blocks,
    n_segments,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
):
    """Gradients of q, u.

    One program a block and tile of K columns walks the block forwards.
    """
    i_n, i_bh, i_k = tl.program_id(0) // BH, tl.program_id(0) % BH, tl.program_id(1)
    i_b, i_h = i_bh // H, i_bh % H
    one = tl.minimum(T, 1)
    o_t, o_k, o_v = tl.arange(0, BT), i_k * BK + tl.arange(0, BK), tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    o_kv, m_kv = o_k[:, None] * V + o_v[None, :], m_k[:, None] & m_v[None, :]
    start, end, _, segment_start, _, _, _ = _block(blocks, i_n)
    b_M = tl.zeros([BK, BV], tl.float32)
    b_pool = tl.zeros([BK], tl.float32)
    if begin_M is not None:
        if i_n == 0:
            b_M = tl.load(begin_M + i_bh.to(tl.int64) * (K * V) + o_kv, mask=m_kv, other=0.0)
    if begin_pool is not None:
        if i_n == 0:
            b_pool = tl.load(begin_pool + i_bh.to(tl.int64) * K + o_k, mask=m_k, other=0.0)
    for i_step in range(tl.cdiv(end - start, BT)):
        i_t = start + i_step * BT
        m_t = i_t + o_t < end
        i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
        b_k = tl.load(
            k + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
        ).to(IN)
        b_k_sum = tl.sum(b_k.to(tl.float32), 0)
        b_pool_next = b_pool + b_k_sum
        b_at_t = o_t
        b_at_j = o_t
        b_causal = tl.where(b_at_t[:, None] + 1.0 - b_at_j[None, :] > 0, 1.0, 0.0)
        b_causal_k = _tile_dot(b_causal, b_k.to(tl.float32), one, PREC)
        b_d_r = tl.load(d_r + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
        b_count = (i_t - segment_start + 1 + o_t).to(tl.float32)
        b_d_r_over_count = b_d_r / b_count
        b_d_u_by_r_2 = b_d_r_over_count[:, None] * b_causal_k
        b_d_u_by_r = b_d_r_over_count[:, None] * b_pool[None, :]
        b_d_u_2 = b_d_u_by_r + b_d_u_by_r_2
        b_d_u_rows = tl.load(
            d_u_rows + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
        )
        b_d_u = b_d_u_2 + b_d_u_rows
        tl.store(
            d_u + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]),
            b_d_u.to(d_u.dtype.element_ty),
            mask=m_t[:, None] & m_k[None, :],
        )
        b_valid = m_t.to(tl.float32)
        b_rate = tl.where(b_valid > 0, 1.0, 0.0)
        b_C_M_tj = b_causal * b_rate[None, :]
        b_d_y = tl.load(
            d_y + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]), mask=m_t[:, None] & m_v[None, :], other=0.0
        ).to(IN)
        b_v = tl.load(
            v + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]), mask=m_t[:, None] & m_v[None, :], other=0.0
        ).to(IN)
        b_d_y_v = _tile_dot(b_d_y, tl.trans(b_v), one, PREC)
        b_d_q_k_unscaled = b_d_y_v * b_C_M_tj
        b_d_q_k_unscaled_k = _tile_dot(b_d_q_k_unscaled, b_k.to(tl.float32), one, PREC)
        b_online = tl.load(online + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
        b_d_q_by_q_k = b_online[:, None] * b_d_q_k_unscaled_k
        b_d_y_M = _tile_dot(b_d_y.to(tl.float32), tl.trans(b_M), one, PREC)
        b_d_q_by_q_M = b_online[:, None] * b_d_y_M
        b_d_q_2 = b_d_q_by_q_k + b_d_q_by_q_M
        b_d_q_rows = tl.load(
            d_q_rows + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
        )
        b_d_q = b_d_q_2 + b_d_q_rows
        tl.store(
            d_q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]),
            b_d_q.to(d_q.dtype.element_ty),
            mask=m_t[:, None] & m_k[None, :],
        )
        b_M_writes = b_rate[:, None] * b_v.to(tl.float32)
        b_M_next = _tile_dot_add(b_M, tl.trans(b_k.to(tl.float32)), b_M_writes, one, PREC)
        b_M = b_M_next
        b_pool = b_pool_next


@_jit
def keys_kernel(
    q,
    v,
    u,
    d_y,
    online,
    d_r,
    d_cached,
    d_pools,
    d_k,
    d_after_M,
    blocks,
    T,
    H,
    BH,
    n_blocks,
    n_segments,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
):
    """Gradients of k.

    One program a block and tile of K columns walks the block backwards; a state that it needs it makes again from the
    block's start.
    """
    i_n, i_bh, i_k = tl.program_id(0) // BH, tl.program_id(0) % BH, tl.program_id(1)
    i_b, i_h = i_bh // H, i_bh % H
    one = tl.minimum(T, 1)
    o_t, o_k, o_v = tl.arange(0, BT), i_k * BK + tl.arange(0, BK), tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    o_kv, m_kv = o_k[:, None] * V + o_v[None, :], m_k[:, None] & m_v[None, :]
    start, end, i_s, segment_start, _, _, _ = _block(blocks, i_n)
    b_d_M_next = tl.load(d_cached + (i_bh.to(tl.int64) * n_segments + i_s) * K * V + o_kv, mask=m_kv, other=0.0)
    b_d_pool_next = tl.load(d_pools + (i_bh.to(tl.int64) * n_segments + i_s) * K + o_k, mask=m_k, other=0.0)
    if d_after_M is not None:
        if i_n == n_blocks - 1:
            b_d_M_next += tl.load(d_after_M + i_bh.to(tl.int64) * (K * V) + o_kv, mask=m_kv, other=0.0)
    n_steps = tl.cdiv(end - start, BT)
    for i_back in range(n_steps):
        i_step = n_steps - 1 - i_back
        i_t = start + i_step * BT
        m_t = i_t + o_t < end
        i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
        b_v = tl.load(
            v + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]), mask=m_t[:, None] & m_v[None, :], other=0.0
        ).to(IN)
        b_d_M_next_v = _tile_dot(b_v.to(tl.float32), tl.trans(b_d_M_next), one, PREC)
        b_valid = m_t.to(tl.float32)
        b_rate = tl.where(b_valid > 0, 1.0, 0.0)
        b_d_k_by_M_next = b_rate[:, None] * b_d_M_next_v
        b_d_pool_next_d_k_by_M_next = b_d_pool_next[None, :] + b_d_k_by_M_next
        b_u = tl.load(
            u + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
        ).to(IN)
        b_d_r = tl.load(d_r + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
        b_count = (i_t - segment_start + 1 + o_t).to(tl.float32)
        b_d_r_over_count = b_d_r / b_count
        b_d_pool_by_r = tl.sum(b_u.to(tl.float32) * b_d_r_over_count[:, None], 0)
        b_d_pool = b_d_pool_next + b_d_pool_by_r
        b_at_t = o_t
        b_at_j = o_t
        b_causal_d_r_over_count = b_d_r_over_count[:, None] * tl.where(
            b_at_t[:, None] + 1.0 - b_at_j[None, :] > 0, 1.0, 0.0
        )
        b_d_k_part = _tile_dot_add(
            b_d_pool_next_d_k_by_M_next, tl.trans(b_causal_d_r_over_count), b_u.to(tl.float32), one, PREC
        )
        b_d_y = tl.load(
            d_y + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]), mask=m_t[:, None] & m_v[None, :], other=0.0
        ).to(IN)
        b_d_y_v = _tile_dot(b_d_y, tl.trans(b_v), one, PREC)
        b_online = tl.load(online + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
        b_d_C_q_k_by_o = b_online[:, None] * b_d_y_v
        b_causal = tl.where(b_at_t[:, None] + 1.0 - b_at_j[None, :] > 0, 1.0, 0.0)
        b_d_q_k_unscaled = b_d_C_q_k_by_o * b_causal
        b_q = tl.load(
            q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
        ).to(IN)
        b_q_d_q_k_unscaled = _tile_dot(tl.trans(b_d_q_k_unscaled), b_q.to(tl.float32), one, PREC)
        b_d_k_by_q_k = b_rate[:, None] * b_q_d_q_k_unscaled
        b_d_k = b_d_k_by_q_k + b_d_k_part
        tl.store(
            d_k + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]),
            b_d_k.to(d_k.dtype.element_ty),
            mask=m_t[:, None] & m_k[None, :],
        )
        b_d_o = b_online[:, None] * b_d_y.to(tl.float32)
        b_d_M = _tile_dot_add(b_d_M_next, tl.trans(b_q.to(tl.float32)), b_d_o, one, PREC)
        b_d_M_next = b_d_M
        b_d_pool_next = b_d_pool


@_jit
def values_kernel(
    q,
    k,
    d_y,
    online,
    d_cached,
    d_v,
    d_after_M,
    blocks,
    T,
    H,
    BH,
    n_blocks,
    n_segments,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
):
    """Gradients of v.

    One program a block and tile of V columns walks the block backwards; a state that it needs it makes again from the
    block's start.
    """
    i_n, i_bh, i_v = tl.program_id(0) // BH, tl.program_id(0) % BH, tl.program_id(1)
    i_b, i_h = i_bh // H, i_bh % H
    one = tl.minimum(T, 1)
    o_t, o_k, o_v = tl.arange(0, BT), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    o_kv, m_kv = o_k[:, None] * V + o_v[None, :], m_k[:, None] & m_v[None, :]
    start, end, i_s, _, _, _, _ = _block(blocks, i_n)
    b_d_M_next = tl.load(d_cached + (i_bh.to(tl.int64) * n_segments + i_s) * K * V + o_kv, mask=m_kv, other=0.0)
    if d_after_M is not None:
        if i_n == n_blocks - 1:
            b_d_M_next += tl.load(d_after_M + i_bh.to(tl.int64) * (K * V) + o_kv, mask=m_kv, other=0.0)
    n_steps = tl.cdiv(end - start, BT)
    for i_back in range(n_steps):
        i_step = n_steps - 1 - i_back
        i_t = start + i_step * BT
        m_t = i_t + o_t < end
        i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
        b_at_t = o_t
        b_at_j = o_t
        b_causal = tl.where(b_at_t[:, None] + 1.0 - b_at_j[None, :] > 0, 1.0, 0.0)
        b_q = tl.load(
            q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
        ).to(IN)
        b_k = tl.load(
            k + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
        ).to(IN)
        b_q_k = _tile_dot(b_q, tl.trans(b_k), one, PREC)
        b_C_q_k_unscaled = b_causal * b_q_k
        b_online = tl.load(online + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
        b_d_y = tl.load(
            d_y + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]), mask=m_t[:, None] & m_v[None, :], other=0.0
        ).to(IN)
        b_d_o = b_online[:, None] * b_d_y.to(tl.float32)
        b_C_q_k_unscaled_d_o = _tile_dot(tl.trans(b_C_q_k_unscaled), b_d_o, one, PREC)
        b_d_M = _tile_dot_add(b_d_M_next, tl.trans(b_q.to(tl.float32)), b_d_o, one, PREC)
        b_d_M_writes_by_M_next = _tile_dot(b_k.to(tl.float32), b_d_M_next, one, PREC)
        b_valid = m_t.to(tl.float32)
        b_rate = tl.where(b_valid > 0, 1.0, 0.0)
        b_d_v_by_M_writes = b_d_M_writes_by_M_next * b_rate[:, None]
        b_d_v_by_o = b_rate[:, None] * b_C_q_k_unscaled_d_o
        b_d_v = b_d_v_by_M_writes + b_d_v_by_o
        tl.store(
            d_v + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]),
            b_d_v.to(d_v.dtype.element_ty),
            mask=m_t[:, None] & m_v[None, :],
        )
        b_d_M_next = b_d_M


@_jit
def weigh_kernel(
    u,
    lse,
    pools,
    weights,
    blocks,
    T,
    H,
    BH,
    n_segments,
    n_first,
    n_last,
    t_first,
    n_rows,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
    BN: tl.constexpr,
):
    """The weights by which rows read cached segments: the softmax of their logits.

    One program a tile of rows of some blocks, those with most segments first.
    """
    i_unit, i_bh = tl.program_id(0) // BH, tl.program_id(0) % BH
    i_b, i_h = i_bh // H, i_bh % H
    n_tiles = tl.num_programs(0) // ((n_last - n_first) * BH)
    start, end, i_s, _, _, first, _ = _block(blocks, n_last - 1 - i_unit // n_tiles)
    i_t = start + i_unit % n_tiles * BT
    last = tl.where(i_t < end, i_s, first)
    o_t, o_k = tl.arange(0, BT), tl.arange(0, BK)
    m_k = o_k < K
    i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
    m_t = i_t + o_t < end
    o_q, m_q = o_t[:, None] * (H * K) + o_k[None, :], m_t[:, None] & m_k[None, :]
    b_u = tl.load(u + i_row * K + o_q, mask=m_q, other=0.0).to(IN)
    b_lse = tl.load(lse + i_row + o_t * H, mask=m_t, other=0.0)
    p_weights = weights + i_bh.to(tl.int64) * n_segments * n_rows + i_t - t_first
    for i_tile in range(first, last, BN):
        o_n = i_tile + tl.arange(0, BN)
        o_pools, m_pools = o_n.to(tl.int64)[:, None] * K + o_k[None, :], (o_n < last)[:, None] & m_k[None, :]
        b_pools = tl.load(pools + i_bh.to(tl.int64) * n_segments * K + o_pools, mask=m_pools, other=0.0)
        b_logits = _tile_logits(b_u, b_pools, PREC)
        b_logits = tl.where((o_n < last)[None, :], b_logits, -float("inf"))
        o_nt, m_nt = o_n.to(tl.int64)[None, :] * n_rows + o_t[:, None], m_t[:, None] & (o_n < last)[None, :]
        tl.store(p_weights + o_nt, tl.exp(b_logits - b_lse[:, None]), mask=m_nt)


@_jit
def rows_kernel(
    q,
    d_y,
    y,
    rounded,
    weights,
    d_logits_parts,
    d_r_parts,
    d_q_parts,
    blocks,
    T,
    H,
    BH,
    n_segments,
    n_first,
    n_last,
    t_first,
    n_rows,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
):
    """What rows owe to cached segments, a part a tile of V: gradients of q and of logits.

    One program a tile of rows of some blocks and of V columns, those with most segments first.
    """
    STATES: tl.constexpr = tl.float32 if tl.float16 == IN else IN  # states may be larger than float16 has numbers
    i_unit, i_bh = tl.program_id(0) // BH, tl.program_id(0) % BH
    i_b, i_h = i_bh // H, i_bh % H
    n_tiles = tl.num_programs(0) // ((n_last - n_first) * BH)
    start, end, i_s, _, _, first, _ = _block(blocks, n_last - 1 - i_unit // n_tiles)
    i_t = start + i_unit % n_tiles * BT
    last = tl.where(i_t < end, i_s, first)
    i_v = tl.program_id(1)
    o_t, o_k, o_v = tl.arange(0, BT), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    o_kv, m_kv = o_k[:, None] * V + o_v[None, :], m_k[:, None] & m_v[None, :]
    i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
    m_t = i_t + o_t < end
    o_q, m_q = o_t[:, None] * (H * K) + o_k[None, :], m_t[:, None] & m_k[None, :]
    o_y, m_y = o_t[:, None] * (H * V) + o_v[None, :], m_t[:, None] & m_v[None, :]
    b_q = tl.load(q + i_row * K + o_q, mask=m_q, other=0.0)
    b_d_y = tl.load(d_y + i_row * V + o_y, mask=m_y, other=0.0)
    b_delta = tl.sum(tl.load(y + i_row * V + o_y, mask=m_y, other=0.0).to(tl.float32) * b_d_y.to(tl.float32), 1)
    b_d_y = b_d_y.to(STATES)
    i_part = i_v.to(tl.int64) * BH * T
    p_weights = weights + i_bh.to(tl.int64) * n_segments * n_rows + i_t - t_first
    p_d_logits = (
        d_logits_parts
        + i_bh.to(tl.int64) * n_segments * n_rows
        + i_t
        - t_first
        + i_v.to(tl.int64) * BH * n_segments * n_rows
    )
    s_q = tl.zeros([BT, BK], tl.float32)
    s_r = tl.zeros([BT], tl.float32)
    for i_c in range(first, last):
        i_cached = i_bh.to(tl.int64) * n_segments + i_c
        b_state = tl.load(rounded + i_cached * K * V + o_kv, mask=m_kv, other=0.0).to(STATES)
        i_rows = (i_cached - i_bh.to(tl.int64) * n_segments) * n_rows
        b_weight = tl.load(p_weights + i_rows + o_t, mask=m_t, other=0.0)
        b_pull = tl.dot(b_d_y, tl.trans(b_state), input_precision=PREC)
        b_d_logits = b_weight * (tl.sum(b_q.to(tl.float32) * b_pull, 1) - b_delta)
        s_q += b_weight[:, None] * b_pull
        s_r += b_d_logits
        tl.store(p_d_logits + i_rows + o_t, b_d_logits, mask=m_t)
    tl.store(d_r_parts + i_part + i_row + o_t * H, -s_r, mask=m_t)
    tl.store(d_q_parts + i_part * K + i_row * K + o_q, s_q, mask=m_q)


@_jit
def segments_kernel(
    q,
    d_y,
    weights,
    d_cached_parts,
    segments,
    T,
    H,
    BH,
    n_segments,
    t_first,
    t_last,
    n_rows,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
):
    """Gradients of each segment's state from some rows, a part a run of these, added to those from rows before.

    One program a segment, a tile of V columns and a run of the tokens t_first to t_last goes over the rows of these
    that read it.
    """
    STATES: tl.constexpr = tl.float32 if tl.float16 == IN else IN  # states may be larger than float16 has numbers
    i_s, i_bh = tl.program_id(0) // BH, tl.program_id(0) % BH
    i_v, i_run = tl.program_id(1) % tl.cdiv(V, BV), tl.program_id(1) // tl.cdiv(V, BV)
    i_b, i_h = i_bh // H, i_bh % H
    o_t, o_k, o_v = tl.arange(0, BT), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    o_kv, m_kv = o_k[:, None] * V + o_v[None, :], m_k[:, None] & m_v[None, :]
    _, end, _, last = _segment(segments, i_s)
    n_run = tl.cdiv(tl.cdiv(t_last - t_first, tl.num_programs(1) // tl.cdiv(V, BV)), BT) * BT
    t_start = t_first + i_run * n_run
    t_end = tl.minimum(t_start + n_run, t_last)
    i_cached = i_bh.to(tl.int64) * n_segments + i_s
    p_cached = d_cached_parts + (i_run.to(tl.int64) * BH * n_segments + i_cached) * K * V
    m_before = (o_k < tl.where(t_first > 0, K, 0))[:, None] & m_v[None, :]
    s_cached = tl.load(p_cached + o_kv, mask=m_before, other=0.0)
    last = tl.minimum(last, t_end)
    for i_t in range(tl.maximum(end, t_start), last, BT):
        i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
        m_t = i_t + o_t < last
        b_weight = tl.load(weights + i_cached * n_rows + i_t - t_first + o_t, mask=m_t, other=0.0)
        o_q, m_q = o_t[:, None] * (H * K) + o_k[None, :], m_t[:, None] & m_k[None, :]
        b_q = tl.load(q + i_row * K + o_q, mask=m_q, other=0.0)
        o_y, m_y = o_t[:, None] * (H * V) + o_v[None, :], m_t[:, None] & m_v[None, :]
        b_d_y = tl.load(d_y + i_row * V + o_y, mask=m_y, other=0.0).to(STATES)
        b_q = (b_weight[:, None] * b_q.to(tl.float32)).to(STATES)
        s_cached = tl.dot(tl.trans(b_q), b_d_y, s_cached, input_precision=PREC)
    tl.store(p_cached + o_kv, s_cached, mask=m_kv)


@_jit
def logits_kernel(
    pools,
    d_logits,
    d_u_rows,
    blocks,
    T,
    H,
    BH,
    n_segments,
    n_first,
    n_last,
    t_first,
    n_rows,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
    BN: tl.constexpr,
):
    """Gradients of u from those of logits: sums of pooled keys.

    One program a tile of rows of some blocks and of K columns, those with most segments first.
    """
    i_unit, i_bh = tl.program_id(0) // BH, tl.program_id(0) % BH
    i_b, i_h = i_bh // H, i_bh % H
    n_tiles = tl.num_programs(0) // ((n_last - n_first) * BH)
    start, end, i_s, _, _, first, _ = _block(blocks, n_last - 1 - i_unit // n_tiles)
    i_t = start + i_unit % n_tiles * BT
    last = tl.where(i_t < end, i_s, first)
    i_k = tl.program_id(1)
    o_t, o_k = tl.arange(0, BT), i_k * BK + tl.arange(0, BK)
    m_k = o_k < K
    i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
    m_t = i_t + o_t < end
    o_q, m_q = o_t[:, None] * (H * K) + o_k[None, :], m_t[:, None] & m_k[None, :]
    p_d_logits = d_logits + i_bh.to(tl.int64) * n_segments * n_rows + i_t - t_first
    s_u = tl.zeros([BT, BK], tl.float32)
    for i_tile in range(first, last, BN):
        o_n = i_tile + tl.arange(0, BN)
        o_pools, m_pools = o_n.to(tl.int64)[:, None] * K + o_k[None, :], (o_n < last)[:, None] & m_k[None, :]
        b_pools = tl.load(pools + i_bh.to(tl.int64) * n_segments * K + o_pools, mask=m_pools, other=0.0)
        o_nt, m_nt = o_n.to(tl.int64)[None, :] * n_rows + o_t[:, None], m_t[:, None] & (o_n < last)[None, :]
        b_d_logits = tl.load(p_d_logits + o_nt, mask=m_nt, other=0.0)
        s_u = tl.dot(b_d_logits, b_pools, s_u, input_precision=PREC)
    tl.store(d_u_rows + i_row * K + o_q, s_u, mask=m_q)


@_jit
def pools_kernel(
    u,
    d_logits,
    d_pools_parts,
    segments,
    T,
    H,
    BH,
    n_segments,
    t_first,
    t_last,
    n_rows,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
    BN: tl.constexpr,
):
    """Gradients of pooled keys from some rows, a part a run of these, added to those from rows before.

    One program BN segments and the rows that read any of them in a run of the tokens t_first to t_last.
    """
    i_p, i_bh, i_run = tl.program_id(0) // BH, tl.program_id(0) % BH, tl.program_id(1)
    i_b, i_h = i_bh // H, i_bh % H
    o_t, o_k, o_n = tl.arange(0, BT), tl.arange(0, BK), i_p * BN + tl.arange(0, BN)
    m_k, m_n = o_k < K, o_n < n_segments
    b_start, b_end, b_last = _segment_tile(segments, o_n, m_n)
    _, first_end, _, _ = _segment(segments, i_p * BN)
    n_run = tl.cdiv(tl.cdiv(t_last - t_first, tl.num_programs(1)), BT) * BT
    t_start = t_first + i_run * n_run
    t_end = tl.minimum(t_start + n_run, t_last)
    p_d_logits = d_logits + (i_bh.to(tl.int64) * n_segments + o_n.to(tl.int64)[:, None]) * n_rows - t_first
    s_pools = tl.zeros([BN, BK], tl.float32)
    for i_t in range(tl.maximum(t_start, first_end), t_end, BT):
        i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
        m_t = i_t + o_t < t_end
        o_at = (i_t + o_t)[None, :]
        m_read = m_t[None, :] & (o_at >= b_end[:, None]) & (o_at < b_last[:, None])
        b_d_logits = tl.load(p_d_logits + o_at, mask=m_read, other=0.0)
        o_q, m_q = o_t[:, None] * (H * K) + o_k[None, :], m_t[:, None] & m_k[None, :]
        b_u = tl.load(u + i_row * K + o_q, mask=m_q, other=0.0).to(tl.float32)
        s_pools = tl.dot(b_d_logits, b_u, s_pools, input_precision=PREC)
    i_part = (i_run * BH + i_bh).to(tl.int64) * n_segments
    p_pools = d_pools_parts + (i_part + o_n.to(tl.int64)[:, None]) * K + o_k[None, :]
    m_pools = m_n[:, None] & m_k[None, :]
    m_before = m_n[:, None] & (o_k < tl.where(t_first > 0, K, 0))[None, :]
    b_before = tl.load(p_pools, mask=m_before, other=0.0)
    tl.store(p_pools, b_before + s_pools / (b_end[:, None] - b_start[:, None]), mask=m_pools)


@_jit
def retreat_kernel(
    q,
    u,
    d_y,
    online,
    d_r,
    d_cached,
    d_pools,
    d_after_M,
    d_begin_M,
    d_begin_pool,
    blocks,
    chains,
    T,
    H,
    BH,
    n_blocks,
    n_segments,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
):
    """The gradient of the state at the end of every block, and of what passes through error rows.

    One program walks a chain of blocks and a tile of V columns, in reverse.
    """
    i_c, i_bh, i_v = tl.program_id(0) // BH, tl.program_id(0) % BH, tl.program_id(1)
    i_b, i_h = i_bh // H, i_bh % H
    one = tl.minimum(T, 1)
    o_t, o_k, o_v = tl.arange(0, BT), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    o_kv, m_kv = o_k[:, None] * V + o_v[None, :], m_k[:, None] & m_v[None, :]
    b_d_M_next = tl.zeros([BK, BV], tl.float32)
    b_d_pool_next = tl.zeros([BK], tl.float32)
    i_first, i_last = _chain(chains, i_c)
    if d_after_M is not None:
        if i_last == n_blocks:
            b_d_M_next += tl.load(d_after_M + i_bh.to(tl.int64) * (K * V) + o_kv, mask=m_kv, other=0.0)
    for i_back in range(i_last - i_first):
        i_n = i_last - 1 - i_back
        start, end, i_s, segment_start, segment_end, _, _ = _block(blocks, i_n)
        if end == segment_end:
            i_cached = i_bh.to(tl.int64) * n_segments + i_s
            b_d_M_next += tl.load(d_cached + i_cached * K * V + o_kv, mask=m_kv, other=0.0)
            b_d_pool_next = tl.load(d_pools + i_cached * K + o_k, mask=m_k, other=0.0)
        n_steps = tl.cdiv(end - start, BT)
        for i_back in range(n_steps):
            i_step = n_steps - 1 - i_back
            i_t = start + i_step * BT
            m_t = i_t + o_t < end
            i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
            b_online = tl.load(online + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
            b_d_y = tl.load(
                d_y + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]), mask=m_t[:, None] & m_v[None, :], other=0.0
            ).to(IN)
            b_d_o = b_online[:, None] * b_d_y.to(tl.float32)
            b_q = tl.load(
                q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
            ).to(IN)
            b_d_M = _tile_dot_add(b_d_M_next, tl.trans(b_q.to(tl.float32)), b_d_o, one, PREC)
            b_u = tl.load(
                u + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
            ).to(IN)
            b_d_r = tl.load(d_r + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
            b_count = (i_t - segment_start + 1 + o_t).to(tl.float32)
            b_d_r_over_count = b_d_r / b_count
            b_d_pool_by_r = tl.sum(b_u.to(tl.float32) * b_d_r_over_count[:, None], 0)
            b_d_pool = b_d_pool_next + b_d_pool_by_r
            b_d_M_next = b_d_M
            b_d_pool_next = b_d_pool
    if d_begin_M is not None:
        if i_c == 0:
            tl.store(d_begin_M + i_bh.to(tl.int64) * (K * V) + o_kv, b_d_M_next, mask=m_kv)
    if d_begin_pool is not None:
        if (i_c == 0) & (i_v == 0):
            tl.store(d_begin_pool + i_bh.to(tl.int64) * K + o_k, b_d_pool_next, mask=m_k)


@_jit
def route_kernel(
    u,
    pools,
    chosen,
    r_chosen,
    blocks,
    T,
    H,
    BH,
    n_segments,
    n_first,
    n_last,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
    TOP_K: tl.constexpr,
    PLACES: tl.constexpr,
    BN: tl.constexpr,
):
    """The TOP_K earlier segments with the largest logits for every row, ties to the earlier; -1 for none.

    One program a tile of rows, those with most segments first. Logits of BN segments are one product, of which no more
    than TOP_K can be among the largest.
    """
    i_unit, i_bh = tl.program_id(0) // BH, tl.program_id(0) % BH
    i_b, i_h = i_bh // H, i_bh % H
    n_tiles = tl.num_programs(0) // ((n_last - n_first) * BH)
    start, end, i_s, _, _, first, _ = _block(blocks, n_last - 1 - i_unit // n_tiles)
    i_t = start + i_unit % n_tiles * BT
    last = tl.where(i_t < end, i_s, first)
    o_t, o_k = tl.arange(0, BT), tl.arange(0, BK)
    m_k = o_k < K
    i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
    m_t = i_t + o_t < end
    o_q, m_q = o_t[:, None] * (H * K) + o_k[None, :], m_t[:, None] & m_k[None, :]
    b_u = tl.load(u + i_row * K + o_q, mask=m_q, other=0.0).to(IN)
    o_p = tl.arange(0, PLACES)
    # a place that is empty has logit -inf and a number of its own below 0; one past TOP_K is never the worst
    b_best = tl.zeros([BT, PLACES], tl.float32) + tl.where(o_p < TOP_K, -float("inf"), float("inf"))[None, :]
    b_segment = tl.zeros([BT, PLACES], tl.int32) - 1 - o_p[None, :]
    for i_tile in range(first, last, BN):
        o_n = i_tile + tl.arange(0, BN)
        o_pools, m_pools = o_n.to(tl.int64)[:, None] * K + o_k[None, :], (o_n < last)[:, None] & m_k[None, :]
        b_pools = tl.load(pools + i_bh.to(tl.int64) * n_segments * K + o_pools, mask=m_pools, other=0.0)
        b_logits = _tile_logits(b_u, b_pools, PREC)
        b_logits = tl.where((o_n < last)[None, :], b_logits, -float("inf"))
        for _ in range(TOP_K):
            b_largest = tl.max(b_logits, 1)
            b_first = tl.min(tl.where(b_logits == b_largest[:, None], o_n[None, :], last), 1)
            b_logits = tl.where(o_n[None, :] == b_first[:, None], -float("inf"), b_logits)
            b_worst = tl.min(b_best, 1)
            b_latest = tl.max(tl.where(b_best == b_worst[:, None], b_segment, -PLACES - 1), 1)
            m_out = (b_segment == b_latest[:, None]) & (b_best == b_worst[:, None]) & (b_largest > b_worst)[:, None]
            b_best = tl.where(m_out, b_largest[:, None], b_best)
            b_segment = tl.where(m_out, b_first[:, None], b_segment)
    o_place = (i_row + o_t[:, None] * H) * TOP_K + o_p[None, :]
    m_place = m_t[:, None] & (o_p < TOP_K)[None, :]
    tl.store(chosen + o_place, tl.maximum(b_segment, -1), mask=m_place)
    tl.store(r_chosen + o_place, b_best, mask=m_place)


@_jit
def chosen_reads_kernel(
    q,
    cached,
    o_chosen,
    order,
    groups,
    n_choices,
    n_groups,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
    TOP_K: tl.constexpr,
):
    """Read-outs of chosen segments.

    One program takes a tile of BT choices, sorted by the segment chosen, so that a tile meets few segments. A choice
    is a row and one of its TOP_K places.
    """
    i_p, i_v = tl.program_id(0), tl.program_id(1)
    one = tl.minimum(n_groups, 1)
    o_t, o_k, o_v = tl.arange(0, BT), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    m_t = i_p * BT + o_t < n_choices
    o_entry = tl.load(order + i_p.to(tl.int64) * BT + o_t, mask=m_t, other=0)
    o_group = tl.load(groups + i_p.to(tl.int64) * BT + o_t, mask=m_t, other=n_groups)
    o_row = o_entry // TOP_K
    s_o = tl.zeros([BT, BV], tl.float32)
    i_cached = tl.min(o_group, 0).to(tl.int64)
    while i_cached < n_groups:
        m_group = o_group == i_cached
        b_q = tl.load(
            q + o_row.to(tl.int64)[:, None] * K + o_k[None, :], mask=m_t[:, None] & m_k[None, :], other=0.0
        ).to(IN)
        b_cached = tl.load(
            cached + i_cached * K * V + (o_k[:, None] * V + o_v[None, :]), mask=m_k[:, None] & m_v[None, :], other=0.0
        )
        b_o_cached = _tile_dot(b_q.to(tl.float32), b_cached, one, PREC)
        s_o += tl.where(m_group[:, None], b_o_cached, 0.0)
        i_cached = tl.min(tl.where(o_group > i_cached, o_group, n_groups), 0).to(tl.int64)
    o_out = o_entry.to(tl.int64)[:, None] * V + o_v[None, :]
    tl.store(o_chosen + o_out, s_o, mask=m_t[:, None] & m_v[None, :])


@_jit
def chosen_rows_kernel(
    q,
    u,
    d_y,
    lse,
    delta,
    cached,
    pools,
    d_q_chosen,
    d_u_chosen,
    d_r_chosen,
    order,
    groups,
    n_choices,
    n_groups,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
    TOP_K: tl.constexpr,
):
    """What every choice owes to the segment it reads: gradients of its row's queries and of its logit.

    One program takes a tile of BT choices, sorted by the segment chosen, so that a tile meets few segments. A choice
    is a row and one of its TOP_K places.
    """
    i_p, i_v = tl.program_id(0), tl.program_id(1)
    one = tl.minimum(n_groups, 1)
    o_t, o_k, o_v = tl.arange(0, BT), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    m_t = i_p * BT + o_t < n_choices
    o_entry = tl.load(order + i_p.to(tl.int64) * BT + o_t, mask=m_t, other=0)
    o_group = tl.load(groups + i_p.to(tl.int64) * BT + o_t, mask=m_t, other=n_groups)
    o_row = o_entry // TOP_K
    s_d_q = tl.zeros([BT, BK], tl.float32)
    s_d_u = tl.zeros([BT, BK], tl.float32)
    s_d_r = tl.zeros([BT], tl.float32)
    i_cached = tl.min(o_group, 0).to(tl.int64)
    while i_cached < n_groups:
        m_group = o_group == i_cached
        b_d_q_2 = tl.zeros([BT, BK], tl.float32)
        for i_v in range(tl.cdiv(V, BV)):
            o_v = i_v * BV + tl.arange(0, BV)
            m_v = o_v < V
            b_d_y = tl.load(
                d_y + o_row.to(tl.int64)[:, None] * V + o_v[None, :], mask=m_t[:, None] & m_v[None, :], other=0.0
            ).to(IN)
            b_cached = tl.load(
                cached + i_cached * K * V + (o_k[:, None] * V + o_v[None, :]),
                mask=m_k[:, None] & m_v[None, :],
                other=0.0,
            )
            b_d_q_2 = _tile_dot_add(b_d_q_2, b_d_y.to(tl.float32), tl.trans(b_cached), one, PREC)
        b_q = tl.load(
            q + o_row.to(tl.int64)[:, None] * K + o_k[None, :], mask=m_t[:, None] & m_k[None, :], other=0.0
        ).to(IN)
        b_q_d_q_2 = b_q.to(tl.float32) * b_d_q_2
        b_q_dot_d_q_2 = tl.sum(b_q_d_q_2, 1)
        b_u = tl.load(
            u + o_row.to(tl.int64)[:, None] * K + o_k[None, :], mask=m_t[:, None] & m_k[None, :], other=0.0
        ).to(IN)
        b_pools = tl.load(pools + i_cached * K + o_k, mask=m_k, other=0.0)
        b_r_cached_2 = tl.sum(b_u.to(tl.float32) * b_pools[None, :], 1)
        b_lse = tl.load(lse + o_row, mask=m_t, other=0.0).to(tl.float32)
        b_r_cached_2_lse = tl.exp(b_r_cached_2 - b_lse)
        b_d_q = b_r_cached_2_lse[:, None] * b_d_q_2
        s_d_q += tl.where(m_group[:, None], b_d_q, 0.0)
        b_delta = tl.load(delta + o_row, mask=m_t, other=0.0).to(tl.float32)
        b_d_r = b_r_cached_2_lse * (b_q_dot_d_q_2 - b_delta)
        s_d_r += tl.where(m_group, b_d_r, 0.0)
        b_d_u = b_d_r[:, None] * b_pools[None, :]
        s_d_u += tl.where(m_group[:, None], b_d_u, 0.0)
        i_cached = tl.min(tl.where(o_group > i_cached, o_group, n_groups), 0).to(tl.int64)
    o_out = o_entry.to(tl.int64)[:, None] * K + o_k[None, :]
    tl.store(d_q_chosen + o_out, s_d_q, mask=m_t[:, None] & m_k[None, :])
    o_out = o_entry.to(tl.int64)[:, None] * K + o_k[None, :]
    tl.store(d_u_chosen + o_out, s_d_u, mask=m_t[:, None] & m_k[None, :])
    tl.store(d_r_chosen + o_entry, s_d_r, mask=m_t)


@_jit
def chosen_segments_kernel(
    q,
    u,
    d_y,
    lse,
    delta,
    cached,
    pools,
    d_cached,
    d_pools,
    order,
    bounds,
    segments,
    H,
    n_segments,
    n_groups,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
    TOP_K: tl.constexpr,
):
    """Gradients of each segment's state and pooled key.

    One program a segment and tile of V columns goes over the rows that chose it.
    """
    i_cached, i_v = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i_s = tl.program_id(0) % n_segments
    one = tl.minimum(n_groups, 1)
    o_t, o_k, o_v = tl.arange(0, BT), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    o_kv, m_kv = o_k[:, None] * V + o_v[None, :], m_k[:, None] & m_v[None, :]
    s_cached = tl.zeros([BK, BV], tl.float32)
    s_pools = tl.zeros([BK], tl.float32)
    b_cached = tl.load(cached + i_cached * K * V + o_kv, mask=m_kv, other=0.0)
    b_pools = tl.load(pools + i_cached * K + o_k, mask=m_k, other=0.0)
    begin, end = tl.load(bounds + i_cached), tl.load(bounds + i_cached + 1)
    for i_e in range(begin, end, BT):
        m_t = i_e + o_t < end
        o_row = tl.load(order + i_e + o_t, mask=m_t, other=0) // TOP_K
        b_d_y = tl.load(
            d_y + o_row.to(tl.int64)[:, None] * V + o_v[None, :], mask=m_t[:, None] & m_v[None, :], other=0.0
        ).to(IN)
        b_d_q = _tile_dot(b_d_y.to(tl.float32), tl.trans(b_cached), one, PREC)
        b_q = tl.load(
            q + o_row.to(tl.int64)[:, None] * K + o_k[None, :], mask=m_t[:, None] & m_k[None, :], other=0.0
        ).to(IN)
        b_q_d_q = b_q.to(tl.float32) * b_d_q
        b_q_dot_d_q = tl.sum(b_q_d_q, 1)
        b_u = tl.load(
            u + o_row.to(tl.int64)[:, None] * K + o_k[None, :], mask=m_t[:, None] & m_k[None, :], other=0.0
        ).to(IN)
        b_r_cached_2 = tl.sum(b_u.to(tl.float32) * b_pools[None, :], 1)
        b_lse = tl.load(lse + o_row, mask=m_t, other=0.0).to(tl.float32)
        b_r_cached_2_lse = tl.exp(b_r_cached_2 - b_lse)
        b_delta = tl.where(i_v == 0, tl.load(delta + o_row, mask=m_t, other=0.0), 0.0)
        b_d_r_cached = b_r_cached_2_lse * (b_q_dot_d_q - b_delta)
        b_d_pools = tl.sum(b_u.to(tl.float32) * b_d_r_cached[:, None], 0)
        s_pools += b_d_pools
        b_d_o_cached = b_r_cached_2_lse[:, None] * b_d_y.to(tl.float32)
        b_d_cached = _tile_dot(tl.trans(b_q.to(tl.float32)), b_d_o_cached, one, PREC)
        s_cached += b_d_cached
    tl.store(d_cached + i_cached * K * V + o_kv, s_cached, mask=m_kv)
    segment_start, segment_end, _, _ = _segment(segments, i_s)
    s_pools = s_pools / (segment_end - segment_start)
    tl.store(d_pools + (i_v.to(tl.int64) * n_groups + i_cached) * K + o_k, s_pools, mask=m_k)


@_jit
def read_chosen_kernel(
    q,
    k,
    v,
    u,
    lse,
    online,
    r_chosen,
    o_chosen,
    y,
    begin_M,
    begin_pool,
    blocks,
    T,
    H,
    BH,
    n_blocks,
    n_segments,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
    TOP_K: tl.constexpr,
):
    """The read-outs y.

    One program a block and tile of V columns walks the block's chunks, and reads what is cached for each.
    """
    i_n, i_bh, i_v = tl.program_id(0) // BH, tl.program_id(0) % BH, tl.program_id(1)
    i_b, i_h = i_bh // H, i_bh % H
    one = tl.minimum(T, 1)
    o_t, o_k, o_v = tl.arange(0, BT), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    o_kv, m_kv = o_k[:, None] * V + o_v[None, :], m_k[:, None] & m_v[None, :]
    start, end, _, segment_start, _, _, _ = _block(blocks, i_n)
    b_M = tl.zeros([BK, BV], tl.float32)
    b_pool = tl.zeros([BK], tl.float32)
    if begin_M is not None:
        if i_n == 0:
            b_M = tl.load(begin_M + i_bh.to(tl.int64) * (K * V) + o_kv, mask=m_kv, other=0.0)
    if begin_pool is not None:
        if i_n == 0:
            b_pool = tl.load(begin_pool + i_bh.to(tl.int64) * K + o_k, mask=m_k, other=0.0)
    for i_step in range(tl.cdiv(end - start, BT)):
        i_t = start + i_step * BT
        m_t = i_t + o_t < end
        i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
        b_u = tl.load(
            u + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
        ).to(IN)
        b_u_pool = tl.sum(b_u.to(tl.float32) * b_pool[None, :], 1)
        b_k = tl.load(
            k + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
        ).to(IN)
        b_u_k = _tile_dot(b_u, tl.trans(b_k), one, PREC)
        b_k_sum = tl.sum(b_k.to(tl.float32), 0)
        b_at_t = o_t
        b_at_j = o_t
        b_causal_u_k = tl.where(b_at_t[:, None] + 1.0 - b_at_j[None, :] > 0, b_u_k, 0.0)
        b_causal_u_k_sum = tl.sum(b_causal_u_k, 1)
        b_count = (i_t - segment_start + 1 + o_t).to(tl.float32)
        b_r = (b_causal_u_k_sum + b_u_pool) / b_count
        b_pool_next = b_pool + b_k_sum
        b_causal = tl.where(b_at_t[:, None] + 1.0 - b_at_j[None, :] > 0, 1.0, 0.0)
        b_valid = m_t.to(tl.float32)
        b_rate = tl.where(b_valid > 0, 1.0, 0.0)
        b_C_M_tj = b_causal * b_rate[None, :]
        b_q = tl.load(
            q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
        ).to(IN)
        b_q_k = _tile_dot(b_q, tl.trans(b_k), one, PREC)
        b_C_q_k = b_C_M_tj * b_q_k
        b_q_M = _tile_dot(b_q.to(tl.float32), b_M, one, PREC)
        b_v = tl.load(
            v + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]), mask=m_t[:, None] & m_v[None, :], other=0.0
        ).to(IN)
        b_o = _tile_dot_add(b_q_M, b_C_q_k, b_v.to(tl.float32), one, PREC)
        b_M_writes = b_rate[:, None] * b_v.to(tl.float32)
        b_M_next = _tile_dot_add(b_M, tl.trans(b_k.to(tl.float32)), b_M_writes, one, PREC)
        b_M = b_M_next
        b_pool = b_pool_next
        b_top, b_sum, b_y = b_r, tl.full([BT], 1.0, tl.float32), b_o
        for i_c in range(TOP_K):
            i_entry = (i_row + o_t * H) * TOP_K + i_c
            b_r_cached = tl.load(r_chosen + i_entry, mask=m_t, other=-float("inf"))
            b_o_cached = tl.load(
                o_chosen + i_entry[:, None] * V + o_v[None, :], mask=m_t[:, None] & m_v[None, :], other=0.0
            )
            b_higher = tl.maximum(b_top, b_r_cached)
            b_keep, b_new = tl.exp(b_top - b_higher), tl.exp(b_r_cached - b_higher)
            b_y = b_y * b_keep[:, None] + b_new[:, None] * b_o_cached
            b_sum, b_top = b_sum * b_keep + b_new, b_higher
        b_y = b_y / b_sum[:, None]
        if i_v == 0:
            b_lse = b_top + tl.log(b_sum)
            tl.store(lse + i_row + o_t * H, b_lse, mask=m_t)
            tl.store(online + i_row + o_t * H, tl.exp(b_r - b_lse), mask=m_t)
        o_y = o_t[:, None] * (H * V) + o_v[None, :]
        tl.store(y + i_row * V + o_y, b_y.to(y.dtype.element_ty), mask=m_t[:, None] & m_v[None, :])


BAND = 64  # weights of segments that are kept at once, for each token
BN = 16  # segments whose logits are one product


def _by_length(make):
    """Remembers the tables of the last 64 lengths, and for good those that a CUDA graph was captured with.

    A graph reads its tables wherever they lay when it was captured; and none can be made in a capture, since that
    copies from the host.
    """
    tables, captured = {}, set()

    @functools.wraps(make)
    def table(*key):
        capturing = key[-1].type == "cuda" and torch.cuda.is_current_stream_capturing()
        if key not in tables:
            if capturing:
                raise UnsupportedError(
                    f"{key[0]} "
                    + "tokens met first in a CUDA graph have no tables yet; run both passes before capturing"
                )
            if len(tables) - len(captured) >= 64:
                del tables[next(one for one in tables if one not in captured)]
            tables[key] = make(*key)
        tables[key] = tables.pop(key)
        if capturing:
            captured.add(key)
        return tables[key]

    return table


def _sequences(lengths, segments):
    """The segments of each sequence, of these lengths, one behind the other."""
    starts = itertools.accumulate(lengths, initial=0)
    return [[(at + begin, at + end) for begin, end in segments(T)] for at, T in zip(starts, lengths, strict=False)]


def _segment_rows(sequences):
    """A row a segment: start, end, the sequence's first segment, the sequence's end."""
    rows = []
    for segments in sequences:
        first = len(rows)
        rows += [(begin, end, first, segments[-1][1]) for begin, end in segments]
    return rows


def _later_segments(rows, lead, offset, cached, summed):
    """Rows of segments that follow others, those of the `cached` ones in front: these end where the new tokens begin.

    What is cached of those is no sum over their tokens, so they have one.
    """
    last = max((end for *_, end in rows), default=0) + lead
    own = [(begin + lead - (0 if s else offset), end + lead, 0, last) for s, (begin, end, _, _) in enumerate(rows)]
    return [(lead - 1, lead, 0, last)] * cached + own if (lead, offset, cached) != (0, 0, 0) else list(rows)


def _chains(sequences, chained, size, chunk=None):
    """The pieces of at most `size` tokens of each chain; none reaches from one run of `chunk` tokens into the next.

    A piece is start, end, segment, its start, its end, the sequence's first segment, whether a run begins with it.
    """
    found, s = [], 0
    for segments in sequences:
        first, own = s, []
        for begin, end in segments:
            runs = [(at, min(at + (chunk or end - begin), end)) for at in range(begin, end, chunk or end - begin)]
            cut = [(at, run, min(at + size, stop)) for run, stop in runs for at in range(run, stop, size)]
            own.append([(at, stop, s, begin, end, first, int(at == run)) for at, run, stop in cut])
            s += 1
        found += [list(itertools.chain(*own))] if chained else own
    return found


def _going_on(chains, lead, offset, cached, summed):
    """Pieces of tokens that follow others, `lead` of which stand in front: the first is at `offset` of its segment.

    Of segments before that one `cached` have places of their own, and the sum of `summed` is as one.
    """
    return [
        [
            (start + lead, end + lead, s + cached, first + lead - (0 if s else offset), last + lead, of - summed, fresh)
            for start, end, s, first, last, of, fresh in chain
        ]
        for chain in chains
    ]


def _chain_rows(chains):
    """A row a chain: its first piece, and the one after its last, of the pieces of all."""
    ends = list(itertools.accumulate(map(len, chains)))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _block_rows(chains, chained, lead=0):
    """A row a block: start, end, segment, its start, its end, the sequence's first segment, the border of lags, 0."""
    return [(*piece[:6], chain[0][0] - lead if chained else piece[3], 0) for chain in chains for piece in chain]


def _tables(sequences, chained, size, place):
    """The rows of blocks of at most `size` tokens, of their chains, and of segments."""
    own = _going_on(_chains(sequences, chained, size), *place)
    segments = _later_segments(_segment_rows(sequences), *place)
    return {"blocks": _block_rows(own, chained, place[0]), "chains": _chain_rows(own), "segments": segments}


def _bands(blocks, most):
    """Runs of blocks of at most so many tokens, or of one: the first block, the one after the last, start, end.

    Rows in front of the first block are of its run.
    """
    found = [(0, 1, 0, blocks[0][1])]
    for n, (start, end, *_) in enumerate(blocks[1:], 1):
        first, _, begin, _ = found[-1]
        if end - begin <= most:
            found[-1] = (first, n + 1, begin, end)
        else:
            found.append((n, n + 1, start, end))
    return found


CHAINED = False  # whether a segment goes on from the one before
BLOCK = 256  # tokens of a block, at most


@_by_length
def _layout(T, place, device):
    """Where T rows lie: tables of blocks, their chains and segments, with their lengths, and the longest block's.

    Where tokens follow others, the longest is that of a long sequence, so that kernels take the same rows at once.
    """
    tables = _tables(*_placed(T, place, BLOCK))
    lengths = {f"n_{name}": len(rows) for name, rows in tables.items()}
    longest = min(BLOCK, SEGMENT) if place else max(end - start for start, end, *_ in tables["blocks"])
    return {name: _table(rows, device) for name, rows in tables.items()} | lengths | {"longest": longest}


def _placed(T, place, *how):
    """What tables are made of: the segments of T rows, how they are cut, and their place in a longer sequence."""
    lead, offset, before = place or (0, 0, 0)
    sequences = _sequences([T - lead], functools.partial(_segments, offset=offset))
    return sequences, CHAINED, *how, (lead, offset, before, 0)


def _table(rows, device):
    return torch.tensor(rows, dtype=torch.int32, device=device)


@functools.lru_cache(maxsize=64)
def _bands_at(T, place):
    """The runs of blocks for whose rows weights of all segments are kept at once: BAND a token of the length."""
    tables = _tables(*_placed(T, place, BLOCK))
    return _bands(tables["blocks"], T * BAND // len(tables["segments"]))


def _bands_of(x):
    """The runs of blocks of a pass: the first block, the one after the last, and their tokens, from one to another."""
    return _bands_at(x.T, x.place)


def _most_rows(bands):
    """Tokens of the longest run of blocks."""
    return max(last - first for _, _, first, last in bands)


def _rounded(x):
    """Cached states as products take them: in bfloat16 where all inputs are, for float16 has no numbers as large."""
    types = (t.dtype for t in map(vars(x).get, INPUTS) if t.dim() == 4)
    wide = functools.reduce(torch.promote_types, types)
    return x.cached.to(wide) if wide == torch.bfloat16 else x.cached


def _added(parts):
    """The sum of parts that lie one behind the other."""
    return parts[0] if len(parts) == 1 else parts.sum(0)


# Lengths that kernels are specialised for.
CONSTANTS = {
    "K": 64,
    "V": 64,
    "TOP_K": 2,
    "PLACES": 2,
    "BN": BN,
    "BAND": BAND,
}
LEAST_ROWS = 16  # fewest tokens that a kernel takes at once

# The axis that each kernel takes in tiles: keys, values, or the hidden units of every layer; none where it takes all.
AXES = {
    "states": "v",
    "read_cached": "v",
    "read": "v",
    "queries": "k",
    "keys": "k",
    "values": "v",
    "weigh": "",
    "rows": "v",
    "segments": "v",
    "logits": "k",
    "pools": "",
    "retreat": "v",
    "route": "",
    "chosen_reads": "v",
    "chosen_rows": "v",
    "chosen_segments": "v",
    "read_chosen": "v",
}

# BT, columns of a tile, num_warps and num_stages of every kernel by architecture and type of products: found by
# compiling for it, the first of a list of candidates, larger tiles first, that fits the shared memory and keeps all
# values in registers where that matters. Those that `mcgen tune` found on this machine come before them.
CONFIGURATIONS = {
    "sm80": {
        "bfloat16": {
            "states": (64, 64, 8, 1),
            "read_cached": (128, 64, 8, 3),
            "read": (64, 64, 8, 1),
            "queries": (64, 64, 8, 1),
            "keys": (64, 64, 8, 1),
            "values": (64, 64, 8, 1),
            "weigh": (128, 64, 8, 3),
            "rows": (128, 64, 8, 3),
            "segments": (128, 64, 8, 3),
            "logits": (128, 64, 8, 3),
            "pools": (128, 64, 8, 3),
            "retreat": (64, 64, 8, 1),
            "route": (128, 64, 8, 3),
            "chosen_reads": (64, 64, 8, 1),
            "chosen_rows": (64, 64, 8, 1),
            "chosen_segments": (64, 64, 8, 1),
            "read_chosen": (64, 64, 8, 1),
        },
        "float32": {
            "states": (32, 64, 4, 1),
            "read_cached": (64, 64, 4, 3),
            "read": (32, 64, 8, 1),
            "queries": (32, 64, 8, 1),
            "keys": (32, 64, 8, 1),
            "values": (32, 64, 8, 1),
            "weigh": (64, 64, 4, 3),
            "rows": (32, 64, 4, 3),
            "segments": (32, 64, 4, 3),
            "logits": (64, 64, 4, 3),
            "pools": (64, 64, 4, 3),
            "retreat": (32, 64, 4, 1),
            "route": (64, 64, 4, 3),
            "chosen_reads": (32, 64, 4, 1),
            "chosen_rows": (32, 64, 4, 1),
            "chosen_segments": (32, 64, 4, 1),
            "read_chosen": (32, 64, 8, 1),
        },
    },
    "sm90": {
        "bfloat16": {
            "states": (64, 64, 8, 1),
            "read_cached": (128, 64, 8, 3),
            "read": (64, 64, 8, 1),
            "queries": (64, 32, 8, 1),
            "keys": (64, 64, 8, 1),
            "values": (64, 64, 8, 1),
            "weigh": (128, 64, 8, 3),
            "rows": (128, 64, 8, 3),
            "segments": (128, 64, 8, 3),
            "logits": (128, 64, 8, 3),
            "pools": (128, 64, 8, 3),
            "retreat": (64, 64, 8, 1),
            "route": (128, 64, 8, 3),
            "chosen_reads": (64, 64, 8, 1),
            "chosen_rows": (64, 64, 8, 1),
            "chosen_segments": (64, 64, 8, 1),
            "read_chosen": (64, 64, 8, 1),
        },
        "float32": {
            "states": (32, 64, 4, 1),
            "read_cached": (64, 64, 4, 3),
            "read": (32, 64, 8, 1),
            "queries": (32, 64, 8, 1),
            "keys": (32, 64, 4, 1),
            "values": (32, 64, 8, 1),
            "weigh": (64, 64, 4, 3),
            "rows": (64, 64, 4, 3),
            "segments": (32, 64, 4, 3),
            "logits": (64, 64, 4, 3),
            "pools": (64, 64, 4, 3),
            "retreat": (32, 64, 4, 1),
            "route": (64, 64, 4, 3),
            "chosen_reads": (32, 64, 4, 1),
            "chosen_rows": (32, 64, 4, 1),
            "chosen_segments": (32, 64, 4, 1),
            "read_chosen": (32, 64, 8, 1),
        },
    },
    "sm100": {
        "bfloat16": {
            "states": (64, 64, 8, 1),
            "read_cached": (128, 64, 8, 3),
            "read": (64, 64, 8, 1),
            "queries": (64, 64, 8, 1),
            "keys": (64, 64, 8, 1),
            "values": (64, 64, 8, 1),
            "weigh": (128, 64, 8, 3),
            "rows": (128, 64, 8, 3),
            "segments": (128, 64, 8, 3),
            "logits": (128, 64, 8, 3),
            "pools": (128, 64, 8, 3),
            "retreat": (64, 64, 8, 1),
            "route": (128, 64, 8, 3),
            "chosen_reads": (64, 64, 8, 1),
            "chosen_rows": (64, 64, 8, 1),
            "chosen_segments": (64, 64, 8, 1),
            "read_chosen": (64, 64, 8, 1),
        },
        "float32": {
            "states": (32, 64, 4, 1),
            "read_cached": (32, 64, 4, 3),
            "read": (32, 64, 8, 1),
            "queries": (32, 64, 8, 1),
            "keys": (32, 64, 4, 1),
            "values": (32, 64, 4, 1),
            "weigh": (64, 64, 4, 3),
            "rows": (32, 64, 4, 2),
            "segments": (64, 64, 4, 3),
            "logits": (64, 64, 4, 3),
            "pools": (64, 64, 4, 3),
            "retreat": (32, 64, 4, 1),
            "route": (64, 64, 4, 3),
            "chosen_reads": (32, 64, 4, 1),
            "chosen_rows": (32, 64, 8, 1),
            "chosen_segments": (32, 64, 4, 1),
            "read_chosen": (32, 64, 8, 1),
        },
    },
    "gfx942": {
        "bfloat16": {
            "states": (64, 64, 4, 1),
            "read_cached": (128, 64, 4, 3),
            "read": (64, 64, 4, 1),
            "queries": (64, 64, 4, 1),
            "keys": (64, 64, 4, 1),
            "values": (64, 64, 4, 1),
            "weigh": (128, 64, 4, 3),
            "rows": (128, 64, 4, 3),
            "segments": (128, 64, 4, 2),
            "logits": (128, 64, 4, 3),
            "pools": (128, 64, 4, 3),
            "retreat": (64, 64, 4, 1),
            "route": (128, 64, 4, 3),
            "chosen_reads": (64, 64, 4, 1),
            "chosen_rows": (64, 64, 4, 1),
            "chosen_segments": (64, 64, 4, 1),
            "read_chosen": (64, 64, 4, 1),
        },
        "float32": {
            "states": (32, 64, 4, 1),
            "read_cached": (64, 64, 4, 3),
            "read": (32, 64, 4, 1),
            "queries": (32, 64, 4, 1),
            "keys": (32, 64, 4, 1),
            "values": (32, 64, 4, 1),
            "weigh": (64, 64, 4, 3),
            "rows": (64, 64, 4, 3),
            "segments": (64, 64, 4, 2),
            "logits": (64, 64, 4, 3),
            "pools": (64, 64, 4, 3),
            "retreat": (32, 64, 4, 1),
            "route": (64, 64, 4, 3),
            "chosen_reads": (32, 64, 4, 1),
            "chosen_rows": (32, 64, 4, 1),
            "chosen_segments": (32, 64, 4, 1),
            "read_chosen": (32, 64, 4, 1),
        },
    },
}

# BT, columns of a tile and num_warps where there is nothing better: of other GPUs, and of kernels not found above.
DEFAULTS = {
    "sm": {"bfloat16": (32, 32, 4), "float32": (32, 32, 4)},
    "gf": {"bfloat16": (32, 32, 4), "float32": (32, 32, 4)},
    "cpu": {"bfloat16": (32, 64, 4), "float32": (32, 64, 4)},
}


# What each kernel computes, as tables of launch configurations call it.
DIGESTS = {
    "states": "70431ac4c83c0d0794fba303c595a100e55d005439e09356ff5774b1ec0066a4",
    "read_cached": "627962bd978ed0ae9f50ab45067b57e12379969de0c6412ba4ad2ec812c06401",
    "read": "e561daa1bf5131fb9386ea0c45e6a55bf61dcfbadc46198965badc4403fb9d3e",
    "queries": "3ce6a2dcc4a3650c8b0431f2e4321873974e1caf513aa8f3aa6be05c917e3c3e",
    "keys": "3f37a6520a39f644ea7e82851e64bddb90aa7294d94acf4ba09d96384db4307a",
    "values": "5bd5c342372193fe078a0eb2ffad03f6571ad6d8c2f2ca41947735407f7ee14a",
    "weigh": "8b49bd2443be22e780aedfc462c1cfa09d2506849fdfa410df5378fe0320c3b3",
    "rows": "a53cde7b3368d1e4326555b59679b1dcc6ad4542b1aff04501b353a1020c7da5",
    "segments": "a143c630b9eeb1609042fb1772afe3f67645f2e78436aaab6433ca829e764310",
    "logits": "3f91eb2f3f9db783887790c21fd729741cb9097ed07ee20ba322518f5bec8ef4",
    "pools": "1a4503b1a67e43010369d65ac259f9d88b59b05fe21da34a841d7fd1443994d2",
    "retreat": "5ce6325206140bcbe8c90b3fd760f4842f450378060db019f42dc20f99d33042",
    "route": "1d22fa765ca952a23be2a09fa9bce38d778be37534544b596675dd898f205777",
    "chosen_reads": "047916e4888cde623aa99a570c3ada82d0e7d6f18bf6d1eddf7cfb2b6a6f890a",
    "chosen_rows": "2ed07515bfa5ea42d360ecc6a51820e95c59c6e320c815301df2f50d3ac64efd",
    "chosen_segments": "9455bcc0a802dde37f56fa2d7ce140e6d7cc7f446410f84c29bb72b44635f4fa",
    "read_chosen": "e4523e4a1510731df30efe962a1ff4805bb4e991957a49c8b2f84f24a0771323",
}
STEPPING = ()  # of these, tables tell apart how many rows they take at once


def _require_triton(x):
    """Raises UnsupportedError, with what is missing, unless kernels can run where a tensor lies."""
    if triton is None and importlib.util.find_spec("triton") is None:
        raise UnsupportedError('Triton is not installed: pip install triton, or pass backend="torch"')
    if not (x.is_cuda or INTERPRETED):
        raise UnsupportedError("Triton needs a GPU, or on a CPU TRITON_INTERPRET=1 before this file is imported")
    if triton is None:
        raise UnsupportedError(
            'Triton is installed, but importing it fails: see `import triton`, or pass backend="torch"'
        )


@functools.lru_cache(maxsize=16)
def _architecture(device):
    """What tables of configurations call a device's architecture."""
    if device.type == "cpu":
        return "cpu"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.partition(":")[0]
    return f"sm{properties.major}{properties.minor}"


def _family(architecture):
    """The key of DEFAULTS for an architecture: how its name begins."""
    return next(family for family in DEFAULTS if architecture.startswith(family))


def _tables_folder():
    """Where `mcgen tune` keeps what it found: in $MCGEN_CACHE_DIR, or else in the user's cache folder for mcgen."""
    if kept := os.environ.get("MCGEN_CACHE_DIR"):
        return os.path.join(kept, "configurations")
    home = os.path.expanduser("~")
    if sys.platform == "win32":
        cache = os.environ.get("LOCALAPPDATA") or os.path.join(home, "AppData", "Local")
        return os.path.join(cache, "mcgen", "mcgen", "Cache", "configurations")
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):
        cache = os.path.join(home, "Library", "Caches") if sys.platform == "darwin" else os.path.join(home, ".cache")
    return os.path.join(cache, "mcgen", "configurations")


@functools.lru_cache(maxsize=16)
def _tuned(architecture):
    """What `mcgen tune` found on this machine for this file's kernels, by type of products and kernel.

    A table that cannot be read is passed over, with a warning in the log.
    """
    path, log = os.path.join(_tables_folder(), f"{architecture}.json"), logging.getLogger(__name__)
    if not os.path.exists(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            table = {title.split()[-1]: rows for title, rows in json.load(file).items()}
        found = {kind: _tuned_rows(table, kind) for kind in ("bfloat16", "float32")}
    except Exception as error:  # whatever lies there must not stop a launch
        log.warning("%s passes over %s, which is no table of launch configurations: %r", SPEC["name"], path, error)
        return {}
    if any(found.values()):
        log.info("%s takes launch configurations from %s", SPEC["name"], path)
    return found


def _tuned_rows(table, kind):
    """The configurations of this file's kernels in a table, by kernel; raises ValueError where one is none."""
    found = {}
    for kernel, digest in DIGESTS.items():
        place = f"{CONSTANTS['K']}x{CONSTANTS['V']} {kind}" + (f" {LEAST_ROWS}" if kernel in STEPPING else "")
        if place in table.get(digest, ()):
            found[kernel] = tuple(table[digest][place][:4])
            if not _can_launch(*found[kernel]):
                raise ValueError(f"{kernel}: {found[kernel]}")
    return found


def _can_launch(BT, columns, num_warps, num_stages):
    """Whether these numbers are a configuration: powers of two, and a pipeline's stages."""
    powers = all(type(n) is int and n > 0 and n & (n - 1) == 0 for n in (BT, columns, num_warps))
    return powers and min(BT, columns) >= 16 and num_stages in range(1, 10)


@functools.lru_cache(maxsize=32)
def _configurations(device, kind):
    """The configurations of kernels on a device, for a type of products: those tuned on this machine, or this file's.

    Says once which kernels have none.
    """
    architecture = _architecture(device)
    found = {**CONFIGURATIONS.get(architecture, {}).get(kind, {}), **_tuned(architecture).get(kind, {})}
    missing = [kernel for kernel in AXES if kernel not in found]
    if missing and architecture != "cpu":
        warnings.warn(
            f"{SPEC['name']} has no launch configurations on {architecture} in {kind} for "
            f"{', '.join(missing) if found else 'any kernel'} and takes small tiles there; `mcgen tune "
            f"{SPEC['name']}.yaml --offline --target NAME` finds some (`mcgen targets` has the names), which this file "
            "then takes up by itself",
            stacklevel=2,
        )
    return found


def _configured(kernel, element, device):
    """BT, columns of a tile, num_warps and num_stages of a kernel."""
    kind = "float32" if element == torch.float32 else "bfloat16"
    found = _configurations(device, kind).get(kernel)
    return found or (*DEFAULTS[_family(_architecture(device))][kind], 1)


def _element(tensors):
    """The type of products between inputs: the widest of theirs, gates aside; float32 for bfloat16 if interpreted."""
    element = functools.reduce(torch.promote_types, (t.dtype for t in tensors if t.dim() == 4))
    if element == torch.float64:
        raise UnsupportedError(
            'float64 is not lowered to Triton; pass float32, float16 or bfloat16, or backend="torch"'
        )
    return torch.float32 if element == torch.bfloat16 and INTERPRETED else element


def _precision(element):
    """How float32 numbers are multiplied: as three tf32 products on tensor cores that have tf32, else as they are."""
    if torch.version.hip or INTERPRETED:
        return "ieee"
    return "tf32x3" if element == torch.float32 else "tf32"


_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16} if triton else {}


def _cdiv(a, b):
    return -(-a // b)


def _tile(n):
    """The power of two, 16 at least, that holds n."""
    return max(16, 1 << (n - 1).bit_length())


def _rows_at_once(kernel, x):
    """Tokens that a kernel takes at once."""
    return _configuration(kernel, x)[0]["BT"]


def _row_tiles(kernel, x):
    """How many tiles of rows a kernel takes the longest block in."""
    return _cdiv(x.longest, _rows_at_once(kernel, x))


def _n_tiles(kernel, x):
    """How many tiles a kernel takes its axis in."""
    axis = AXES[kernel].upper()
    return _cdiv(CONSTANTS[axis], _configuration(kernel, x)[0][f"B{axis}"]) if axis else 1


def _new(x, *shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device=x.device)


def _parts_of_tiles(x, parts):
    """Room for buffers of which several tiles have their own."""
    found = {}
    for name, count, axis in parts:
        if count > 1:
            shape = getattr(x, name).shape
            found[name] = _new(x, *shape[:axis], count, *shape[axis:])
    return found


def _add_up_parts(x, found, parts):
    """Adds up what each tile left."""
    for name, _, axis in parts:
        if name in found:
            torch.sum(found[name], axis, out=getattr(x, name))


def _configuration(kernel, x):
    """The constants of a kernel, tile sizes among them, and its launch options."""
    return _launching(kernel, x.element, x.device, _tile(x.longest))


@functools.lru_cache(maxsize=256)
def _launching(kernel, element, device, most_rows):
    BT, columns, num_warps, num_stages = _configured(kernel, element, device)
    tiles = {"BK": _tile(CONSTANTS["K"]), "BV": _tile(CONSTANTS["V"])}
    if axis := AXES[kernel].upper():
        tiles[f"B{axis}"] = min(columns, tiles[f"B{axis}"])
    BT = max(LEAST_ROWS, min(BT, most_rows))
    steps = _cdiv(CONSTANTS.get("CHUNK", 1), BT)  # of a gradient chunk
    tiles |= {"BT": BT, "STEPS": steps, "STEP": _cdiv(CONSTANTS.get("CHUNK", 1), steps)}
    constants = {**CONSTANTS, **tiles, "IN": _TYPES[element], "PREC": _precision(element)}
    return constants, {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}


def _launch(kernel, x, units, tiles=1, parts=()):
    """Launches a kernel, a program for each unit and tile; it takes its arguments from x and the constants by name.

    parts: buffers of which each tile has its own: name, how many, and the axis along which they are added up.
    """
    constants, options = _configuration(kernel.__name__.removesuffix("_kernel"), x)
    own = _parts_of_tiles(x, parts)
    known = {**vars(x), **constants, **own}
    kernel[(units, tiles)](**{name: known[name] for name in kernel.arg_names}, **options)
    _add_up_parts(x, own, parts)


def _given(tensors, place=()):
    """The inputs of a pass, its sizes and where its tokens lie, by the names that kernels' arguments have.

    `place` is that of `_define`: where it is not empty, the pass goes on from a state, and leaves one.
    """
    own, begun, cached = _divided(tensors, place[1] if place else 0)
    x = types.SimpleNamespace(place=_triton_place(tensors, place), begun=bool(begun), earlier=cached)
    inputs = [t.contiguous() for t in tensors[: len(INPUTS)]]
    vars(x).update(zip(INPUTS, inputs, strict=True))
    x.element, x.device = _element(own), tensors[0].device
    x.B, x.T, x.H, _ = x.q.shape
    x.BH = x.B * x.H
    vars(x).update(_layout(x.T, x.place, x.device))
    _begin(x, begun)
    return x


def _triton_place(tensors, place):
    """Rows in front of the first token, tokens of its segment before it, and segments before that; () for a whole
    sequence."""
    if not place:
        return ()
    return 0, place[0], place[1]


def _begin(x, begun):
    """Names what a pass goes on from and what it leaves, None in one of a whole sequence."""
    given = dict(zip(PARTS, begun, strict=False))
    for name in PARTS:
        part = given.get(name)
        found = {"begin": None if part is None else part.float().contiguous(), "d_after": None, "d_begin": None}
        found["after"] = _new(x, x.B, x.H, 1, *SHAPES[name]) if x.place else None
        vars(x).update({f"{what}_{name}": t for what, t in found.items()})


def _rooms_triton(B, T, H, place=()):
    """The shapes of what the forward kernels leave for the backward pass, by name; all sizes may be symbolic."""
    lead, offset, before = place or (0, 0, 0)
    n_segments = before + _segment_count(T - lead + offset)
    return {
        "cached": (B, H, n_segments, 64, 64),
        "pools": (B, H, n_segments, 64),
        "lse": (B, T, H),
        "online": (B, T, H),
    }


def _saved_triton(tensors, place=()):
    """Empty tensors for what the forward pass saves: a buffer, and the segments that rows choose, where they do."""
    q, (B, T, H, _) = tensors[INPUTS.index("q")], tensors[INPUTS.index("q")].shape
    place = _triton_place(tensors, place)
    T += place[0] if place else 0
    return [_buffer(_rooms_triton(B, T, H, place), q, torch.float32), q.new_empty((B, T, H, TOP_K), dtype=torch.int32)]


def _recall(x, names, saved):
    """Names what the forward pass saves, the parts of its buffer too."""
    vars(x).update(zip(names, saved, strict=True))
    rooms = _rooms_triton(x.B, x.T, x.H, x.place)
    vars(x).update(zip(rooms, _parted(x.buffer, rooms), strict=True))


def _finished(x):
    """How many segments end in a pass that goes on from a state."""
    return (x.place[1] + x.T - x.place[0]) // SEGMENT


def _copy_earlier(x):
    """The states of earlier segments in front of those that a pass makes."""
    if x.earlier:
        for name, t in zip(BANK, x.earlier, strict=True):
            getattr(x, name)[:, :, : x.place[2]] = t


def _results(x, saved):
    """What the forward pass gives: y, the state after the last token where it goes on from one, and what it saves."""
    if not x.place:
        return [x.y, *saved]
    y = x.y
    after = [getattr(x, f"after_{name}") for name in PARTS]
    own = slice(x.place[2], x.place[2] + _finished(x))
    after += [getattr(x, name)[:, :, own].clone() for name in BANK]
    return [y, *after, *saved]


def _owe(x, d_after):
    """Names what is owed to the state after the last token and to what is cached, and makes room for what is owed to
    the state that the pass goes on from."""
    if not x.place:
        return
    x.owed = dict(zip((*PARTS, *BANK), d_after, strict=True))
    for name in PARTS:
        vars(x)[f"d_after_{name}"] = x.owed[name].contiguous()
        vars(x)[f"d_begin_{name}"] = torch.zeros_like(x.owed[name]) if x.begun else None


def _owe_cached(x):
    """Adds what is owed to segments' states by what comes after the pass; of pooled keys to the sums of keys."""
    if not x.place:
        return
    before = x.place[2]
    own = slice(before, before + _finished(x))
    x.d_cached[:, :, own] += x.owed["cached"]
    x.d_earlier = [x.d_cached[:, :, :before].clone()]
    x.d_pools[:, :, own] += x.owed["pools"] / SEGMENT
    x.d_pools[:, :, -1:] += x.owed["pool"]
    x.d_earlier.append(x.d_pools[:, :, :before].clone())


def _of_begun(x):
    """The gradients of what a pass goes on from, in the order of the operator's tensors."""
    found = []
    if x.begun:
        found += [getattr(x, f"d_begin_{name}") for name in PARTS]
        if x.place[1] == 0:
            found[PARTS.index("pool")].zero_()  # a segment's keys are summed up from its first on
    return found + (x.d_earlier if x.earlier else [])


def _group(chosen, n_segments):
    """Choices sorted by the state they read, of B * H * N: their order, their states, and each state's first.

    `chosen` is (B, T, H, top_k), -1 for none; a choice's number is its place in it. Choices of none come last.
    """
    B, _, H, _ = chosen.shape
    base = torch.arange(B * H, device=chosen.device, dtype=torch.int32).view(B, 1, H, 1) * n_segments
    n_groups = B * H * n_segments
    groups, order = torch.where(chosen >= 0, chosen + base, n_groups).flatten().sort(stable=True)
    bounds = torch.searchsorted(groups, torch.arange(n_groups + 1, device=chosen.device, dtype=torch.int32))
    return order.to(torch.int32), groups, bounds.to(torch.int32)


def _gradients(x, tensors):
    """The gradients of the inputs, in their types."""
    return [getattr(x, f"d_{name}").to(t.dtype) for name, t in zip(INPUTS, tensors, strict=False)]


def _run_forward_triton(tensors, place=()):
    """y, and what the backward pass needs of it."""
    x = _given(tensors, place)
    saved = _saved_triton(tensors, place)
    _clear_between(saved[0], _rooms_triton(x.B, x.T, x.H, x.place))
    _recall(x, ["buffer", "chosen"], saved)
    _copy_earlier(x)
    x.y = _new(x, x.B, x.T, x.H, 64, dtype=x.v.dtype)
    _launch(states_kernel, x, x.n_chains * x.BH, _n_tiles("states", x))
    if x.n_segments - 1 > TOP_K:
        x.r_chosen = _new(x, x.B, x.T, x.H, TOP_K)
        x.n_first, x.n_last = 0, x.n_blocks
        _launch(route_kernel, x, (x.n_last - x.n_first) * x.BH * _row_tiles("route", x))
        x.n_groups, x.n_choices = x.BH * x.n_segments, x.BH * x.T * TOP_K
        x.order, x.groups, x.bounds = _group(x.chosen, x.n_segments)
        x.o_chosen = _new(x, x.B, x.T, x.H, TOP_K, 64)
        _launch(
            chosen_reads_kernel, x, _cdiv(x.n_choices, _rows_at_once("chosen_reads", x)), _n_tiles("chosen_reads", x)
        )
        _launch(read_chosen_kernel, x, x.n_blocks * x.BH, _n_tiles("read_chosen", x))
    else:
        x.rounded = _rounded(x)
        x.n_first, x.n_last = 0, x.n_blocks
        x.lse_cached = _new(x, x.B, x.T, x.H)
        x.y_cached = _new(x, x.B, x.T, x.H, 64)
        _launch(
            read_cached_kernel,
            x,
            (x.n_last - x.n_first) * x.BH * _row_tiles("read_cached", x),
            _n_tiles("read_cached", x),
        )
        _launch(read_kernel, x, x.n_blocks * x.BH, _n_tiles("read", x))
    return _results(x, saved)


def _run_backward_triton(tensors, saved, d_y, d_after=(), place=()):
    """The gradients of all inputs, from that of y and what the forward pass saved."""
    x = _given(tensors, place)
    _owe(x, d_after)
    _recall(x, ["y", "buffer", "chosen"], saved)
    x.d_y = d_y.contiguous()
    if x.n_segments - 1 > TOP_K:
        x.n_groups, x.n_choices = x.BH * x.n_segments, x.BH * x.T * TOP_K
        x.order, x.groups, x.bounds = _group(x.chosen, x.n_segments)
        x.delta = (x.y.float() * x.d_y.float()).sum(-1)
        x.d_r_chosen = _new(x, x.B, x.T, x.H, TOP_K)
        x.d_q_chosen = _new(x, x.B, x.T, x.H, TOP_K, 64)
        x.d_u_chosen = _new(x, x.B, x.T, x.H, TOP_K, 64)
        _launch(chosen_rows_kernel, x, _cdiv(x.n_choices, _rows_at_once("chosen_rows", x)))
        x.d_q_rows = x.d_q_chosen.sum(3)
        x.d_u_rows = x.d_u_chosen.sum(3)
        x.d_r = -x.d_r_chosen.sum(3)
        x.d_cached = _new(x, x.B, x.H, x.n_segments, 64, 64)
        x.d_pools = _new(x, x.B, x.H, x.n_segments, 64)
        _launch(
            chosen_segments_kernel,
            x,
            x.n_groups,
            _n_tiles("chosen_segments", x),
            parts=(("d_pools", _n_tiles("chosen_segments", x), 0),),
        )
    else:
        x.rounded = _rounded(x)
        x.n_parts, x.n_runs = _n_tiles("rows", x), min(8, _cdiv(x.T, 512))
        x.n_shares = max(1, min(x.n_runs, 512 // (x.n_segments * x.BH)))
        bands = _bands_of(x)
        x.n_rows = _most_rows(bands)
        x.d_r_parts = _new(x, x.n_parts, x.B, x.T, x.H)
        x.d_q_parts = _new(x, x.n_parts, x.B, x.T, x.H, 64)
        x.d_u_rows = _new(x, x.B, x.T, x.H, 64)
        x.weights = _new(x, x.B, x.H, x.n_segments, x.n_rows)
        x.d_logits_parts = _new(x, x.n_parts, x.B, x.H, x.n_segments, x.n_rows)
        x.d_cached_parts = _new(x, x.n_shares, x.B, x.H, x.n_segments, 64, 64)
        x.d_pools_parts = _new(x, x.n_runs, x.B, x.H, x.n_segments, 64)
        for x.n_first, x.n_last, x.t_first, x.t_last in bands:
            _launch(weigh_kernel, x, (x.n_last - x.n_first) * x.BH * _row_tiles("weigh", x))
            _launch(rows_kernel, x, (x.n_last - x.n_first) * x.BH * _row_tiles("rows", x), x.n_parts)
            x.d_logits = _added(x.d_logits_parts)
            _launch(segments_kernel, x, x.n_segments * x.BH, _n_tiles("segments", x) * x.n_shares)
            _launch(logits_kernel, x, (x.n_last - x.n_first) * x.BH * _row_tiles("logits", x), _n_tiles("logits", x))
            _launch(pools_kernel, x, _cdiv(x.n_segments, BN) * x.BH, x.n_runs)
        x.d_q_rows = _added(x.d_q_parts)
        x.d_r = _added(x.d_r_parts)
        x.d_cached = _added(x.d_cached_parts)
        x.d_pools = _added(x.d_pools_parts)
    _owe_cached(x)
    if x.begun:
        _launch(retreat_kernel, x, x.BH, _n_tiles("retreat", x))
    x.d_q = _new(x, x.B, x.T, x.H, 64, dtype=x.q.dtype)
    x.d_k = _new(x, x.B, x.T, x.H, 64, dtype=x.k.dtype)
    x.d_v = _new(x, x.B, x.T, x.H, 64, dtype=x.v.dtype)
    x.d_u = _new(x, x.B, x.T, x.H, 64, dtype=x.u.dtype)
    _launch(queries_kernel, x, x.n_blocks * x.BH, _n_tiles("queries", x))
    _launch(keys_kernel, x, x.n_blocks * x.BH, _n_tiles("keys", x))
    _launch(values_kernel, x, x.n_blocks * x.BH, _n_tiles("values", x))
    return _gradients(x, tensors) + _of_begun(x)


# ---------------------------------------------------------------------------------------------------------------------
# Numbers that are not finite. Paths multiply whole chunks, and in a product a weight of 0 keeps no NaN out: they get
# finite numbers in their place, and what those would reach, a token's read-out and those after it, is made NaN.
# ---------------------------------------------------------------------------------------------------------------------


def _finite(tensors):
    """The tensors with finite numbers alone in k, v and gates, and which rows of y (B, T, H) others would reach.

    No rows, None, where all are finite as a CPU can tell by their sums; a GPU is not waited for.
    """
    written = {name: t for name, t in zip(INPUTS, tensors, strict=False) if name not in ("q", "u")}
    if tensors[0].is_cpu and all(math.isfinite(t.sum(dtype=_compute_type([t]))) for t in written.values()):
        return tensors, None
    bad = torch.zeros(tensors[0].shape[:3], dtype=torch.int32, device=tensors[0].device)
    replace = _replace_triton if tensors[0].is_cuda and triton else _replace_torch
    clean = {name: replace(t, bad, 0.0 if t.dim() == 4 else 0.5) for name, t in written.items()}
    return [clean.get(name, t) for name, t in itertools.zip_longest(INPUTS, tensors)], bad.cumsum(1) > 0


def _replace_torch(t, bad, by):
    """t with a number in place of those that are not finite; marks their rows in `bad`."""
    finite = t.isfinite()
    bad |= ~(finite.all(-1) if t.dim() == 4 else finite)
    return t.where(finite, by)


def _spoil(y, late, after=()):
    """Makes the rows of y NaN that a number which is not finite reaches, and the state (B, H, ...) after them."""
    for t in after:
        t.masked_fill_(late[:, -1].view(*t.shape[:2], *[1] * (t.dim() - 2)), math.nan)
    if y.is_cuda and triton:
        _by_rows(spoil_rows, y, late)
    else:
        y.masked_fill_(late.unsqueeze(-1), math.nan)


def _replace_triton(t, bad, by):
    clean = torch.empty_like(t, memory_format=torch.contiguous_format)
    _by_rows(replace_rows, clean, t.contiguous(), bad, by)
    return clean


def _by_rows(kernel, first, *others):
    """Launches a kernel for the rows, one a token and head, of a contiguous tensor."""
    width = first.shape[3] if first.dim() == 4 else 1
    BW, n_rows = triton.next_power_of_2(width), math.prod(first.shape[:3])
    BT = 4096 // BW
    kernel[(triton.cdiv(n_rows, BT),)](first, *others, n_rows, WIDTH=width, BT=BT, BW=BW)


@_jit
def replace_rows(clean, x, bad, by, n_rows, WIDTH: tl.constexpr, BT: tl.constexpr, BW: tl.constexpr):
    """The same as `_replace_torch`."""
    o_r, o_w = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT), tl.arange(0, BW)
    place, mask = o_r[:, None] * WIDTH + o_w[None, :], (o_r < n_rows)[:, None] & (o_w < WIDTH)[None, :]
    b_x = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    finite = tl.abs(b_x) < float("inf")
    tl.store(clean + place, tl.where(finite, b_x, by).to(clean.dtype.element_ty), mask=mask)
    b_bad = tl.max((~finite).to(tl.int32), 1)
    tl.store(bad + o_r, b_bad, mask=b_bad > 0)


@_jit
def spoil_rows(y, late, n_rows, WIDTH: tl.constexpr, BT: tl.constexpr, BW: tl.constexpr):
    """The same as `_spoil`: where no row is late, none is touched."""
    o_r, o_w = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT), tl.arange(0, BW)
    m_r = tl.load(late + o_r, mask=o_r < n_rows, other=0) != 0
    b_nan = tl.full([BT, BW], float("nan"), tl.float32).to(y.dtype.element_ty)
    tl.store(y + o_r[:, None] * WIDTH + o_w[None, :], b_nan, mask=m_r[:, None] & (o_w < WIDTH)[None, :])


# ---------------------------------------------------------------------------------------------------------------------
# The operator: both paths behind custom ops, so that torch.compile, autocast and checkpointing see one node each way.
# ---------------------------------------------------------------------------------------------------------------------

INPUTS = ("q", "k", "v", "u")
FORWARD_MODE = "forward-mode derivatives of op are not lowered; take those of `reference` instead"
TWICE = "second derivatives of op are not lowered; differentiate `reference` twice instead"
PARTS = ("M", "pool")  # of the state that goes from token to token
BANK = ("cached", "pools")  # of what is cached at the ends of segments
WHOLE_SEQUENCE = (0, 0, 0)  # the place of a whole sequence
SEGMENT = 256  # tokens of a segment


def _divided(tensors, before):
    """An operator's tensors: inputs, the state that they go on from, and what is cached before."""
    first, last = len(INPUTS), len(tensors) - (len(BANK) if before else 0)
    return tensors[:first], tensors[first:last], tensors[last:]


def _on_device(x):
    """Launches go to the GPU that the tensors lie on, whichever is the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _define(backend, forward, backward, saved, first=1):
    """The operator of one backend; a module imported again, or a copy of it, has operators of its own.

    Its `place` is empty for a whole sequence, else (tokens of the segment before the first, segments before that,
    tokens at the beginning whose read-outs are not wanted): the operator then takes the state and what is cached behind
    the inputs, and gives those after the last token behind y.

    Defined by schema, since what `torch.library.custom_op` wraps around a function imports torch.compile at its first
    call. Under autocast the arithmetic stays what the tensors' types say. Outputs from `first` on are kept for the
    backward pass: 0 for y too. Returns the operator, its reverse, and `first`.
    """
    library, number = getattr(torch.ops, f"mcgen_{SPEC_HASH[:16]}"), 1
    while hasattr(library, f"{backend}_forward_{number}"):
        number += 1
    names = [f"{library.name}::{backend}_{way}_{number}" for way in ("forward", "backward")]
    tags = torch.Tag.pt2_compliant_tag
    torch.library.define(names[0], "(Tensor[] tensors, SymInt[] place) -> Tensor[]", tags=tags)
    back = "(Tensor[] tensors, Tensor[] saved, Tensor d_y, Tensor[] d_after, SymInt[] place) -> Tensor[]"
    torch.library.define(names[1], back, tags=tags)

    @torch.library.register_fake(names[0])
    def nothing(tensors, place):
        y = torch.empty_like(tensors[INPUTS.index("v")], memory_format=torch.contiguous_format)
        return [y, *_after(tensors, place), *saved(tensors, *([place] if place else []))]

    @torch.library.impl(names[0], "default")
    def run(tensors, place):
        if tensors[0].numel() == 0:
            return nothing(tensors, place)
        with _on_device(tensors[0]), torch.autocast(tensors[0].device.type, enabled=False):
            clean, late = _finite(tensors)
            y, *others = forward(clean, *([place] if place else []))
            if late is not None:
                _spoil(y, late, others[: len(PARTS + BANK)] if place else ())
            return [y, *others]

    @torch.library.impl(names[1], "default")
    def run_backward(tensors, saved, d_y, d_after, place):
        if d_y.numel() == 0:
            return [torch.zeros_like(t) for t in tensors]
        with _on_device(d_y), torch.autocast(d_y.device.type, enabled=False):
            return backward(tensors, saved, d_y, *([d_after, place] if place else []))

    @torch.library.register_fake(names[1])
    def fake_backward(tensors, saved, d_y, d_after, place):
        return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors]

    def keep(ctx, inputs, output):
        tensors, ctx.place = inputs
        ctx.count, last = len(tensors), 1 + (len(PARTS + BANK) if ctx.place else 0)
        ctx.after = [(t.shape, t.dtype) for t in output[1:last]]
        ctx.save_for_backward(*tensors, *output[first:1], *output[last:])
        ctx.mark_non_differentiable(*output[last:])
        ctx.set_materialize_grads(False)

    def differentiate(ctx, gradients):
        d_y, *d_after = gradients[: 1 + len(ctx.after)]
        of_place = None if ctx.place else []  # torch takes an empty list for one of tensors
        if d_y is None and all(t is None for t in d_after):
            return [None] * ctx.count, of_place
        kept = ctx.saved_tensors  # once: under activation checkpointing a second look is an error
        tensors, saved = list(kept[: ctx.count]), list(kept[ctx.count :])
        d_y = torch.zeros_like(tensors[INPUTS.index("v")]) if d_y is None else d_y
        nothing = [d_y.new_zeros(shape, dtype=dtype) for shape, dtype in ctx.after]
        d_after = [t if owed is None else owed for t, owed in zip(nothing, d_after, strict=True)]
        return getattr(library, f"{backend}_backward_{number}")(tensors, saved, d_y, d_after, ctx.place), of_place

    def refuse(ctx, *gradients):
        raise UnsupportedError(TWICE)

    torch.library.register_autograd(names[0], differentiate, setup_context=keep)
    torch.library.register_autograd(names[1], refuse)
    # It imports Triton where that is, so not before this file has decided on it.
    from torch.utils.flop_counter import register_flop_formula

    operators = [getattr(library, f"{backend}_{way}_{number}") for way in ("forward", "backward")]
    for way, operator in enumerate(operators):
        register_flop_formula(operator)(lambda shapes, *_, way=way, **__: _flops(shapes)[way])
    return (*operators, first)


def _flops(shapes):
    """FLOPs forward and backward, of products alone: what mcgen plans with."""
    B, T, H, _ = shapes[0]
    N = _segment_count(T)
    return 64 * B * H * T * (N + 128 * min(2, N - 1) + 641), 128 * B * H * T * (N + 128 * min(2, N - 1) + 768)


OPERATORS = {
    "torch": _define("torch", _run_forward_torch, _run_backward_torch, _saved_torch),
    "triton": _define("triton", _run_forward_triton, _run_backward_triton, _saved_triton, first=0),
}


class _Mapped(torch.autograd.Function):
    """The operator under transforms of torch.func; what is mapped over joins the batch."""

    @staticmethod
    def forward(operators, *tensors):
        return operators[0](list(tensors), [])[0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.operators, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, d_y):
        return None, *_MappedBackward.apply(ctx.operators, d_y, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx, *_):
        raise UnsupportedError(FORWARD_MODE)

    @staticmethod
    def vmap(info, in_dims, operators, *tensors):
        y = _Mapped.apply(operators, *_joined(tensors, in_dims[1:], info.batch_size))
        return y.unflatten(0, (info.batch_size, -1)), 0


class _MappedBackward(torch.autograd.Function):
    """The derivative of `_Mapped`; it runs the operator again, since what that saves is not to be mapped over."""

    @staticmethod
    def forward(operators, d_y, *tensors):
        run, run_backward, first = operators
        return tuple(run_backward(list(tensors), run(list(tensors), [])[first:], d_y, [], []))

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise UnsupportedError(TWICE)

    @staticmethod
    def jvp(ctx, *_):
        raise UnsupportedError(FORWARD_MODE)

    @staticmethod
    def vmap(info, in_dims, operators, *tensors):
        found = _MappedBackward.apply(operators, *_joined(tensors, in_dims[1:], info.batch_size))
        return tuple(d.unflatten(0, (info.batch_size, -1)) for d in found), (0,) * len(found)


def _joined(tensors, dims, size):
    """Tensors with the axis that is mapped over made part of the batch; those without one are repeated."""
    moved = (
        t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in zip(tensors, dims, strict=True)
    )
    return [t.flatten(0, 1) for t in moved]


def op(
    q,
    k,
    v,
    u=None,
    *,
    theta=None,
    state=None,
    return_state=False,
    cu_seqlens=None,
    cu_seqlens_cpu=None,
    backend=None,
    **gates,
):
    """y (B, T, H, 64), in v's type, of the memory in this file's header, differentiable in every argument.

    The header has the shapes. backend: "torch" (chunked, any device and float type), "triton", or None for triton on a
    GPU and torch elsewhere.

    k and v may have fewer heads than q, each a number that divides H: H_kv heads serve H / H_kv of q's each, in order.
    They are repeated for it, so they take the memory of H heads.

    state: the `State` that the tokens before have left, for the tokens after them; None before the first. With
    return_state the result is (y, state), the state after the last token: whatever calls a sequence is split into, the
    values are the same, and gradients flow from call to call unless the state is detached. With cu_seqlens it is a list
    of a state, or None, a sequence.

    cu_seqlens: for sequences one behind another in a batch of 1, where each begins and where the last one ends, int32
    or int64: the result is that of each by itself. It is read on the host, for which a GPU is waited for, unless
    cu_seqlens_cpu has the same numbers there. Sequences run one after another.

    Raises:
        TypeError: an argument is missing, extra, or no floating-point tensor; it is named.
        ValueError: an argument has the wrong shape or lies on another device; it is named.
        UnsupportedError: a forward-mode derivative is asked for, or a state under torch.func's transforms.
    """
    _check(q, k, v, u, theta, gates, backend)
    lengths = _sequence_lengths(cu_seqlens if cu_seqlens_cpu is None else cu_seqlens_cpu, q)
    if lengths is not None:
        if state is not None or return_state:
            run = functools.partial(op, theta=theta, return_state=True, backend=backend)
            given = {"q": q, "k": k, "v": v, "u": u, **gates}
            given = {name: t for name, t in given.items() if t is not None}
            y, states = _of_sequences_from(run, lengths, state, given)
            return (y, states) if return_state else y
        return _of_sequences(functools.partial(op, theta=theta, backend=backend), lengths, q, k, v, u, gates)
    if backend is None:
        backend = "triton" if q.is_cuda else "torch"
    if backend == "triton":
        _require_triton(q)
    named = {"q": q, "k": _of_every_head(k, q), "v": _of_every_head(v, q), "u": u, **gates}
    tensors = [named[name] for name in ("q", "k", "v", "u")]
    if any(torch.autograd.forward_ad.unpack_dual(t).tangent is not None for t in tensors):  # else they would be lost
        raise UnsupportedError(FORWARD_MODE)
    operators = OPERATORS[backend]
    mapped = not torch.compiler.is_compiling() and any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors))
    if state is not None or return_state:
        if mapped:
            raise UnsupportedError(
                "state= and return_state= are not lowered under torch.func's transforms; use autograd and a batch"
            )
        y, state = _go_on(operators[0], dict(zip(INPUTS, tensors, strict=False)), tensors[len(INPUTS) :], state)
        return (y, state) if return_state else y
    return _Mapped.apply(operators, *tensors) if mapped else operators[0](tensors, [])[0]


# ---------------------------------------------------------------------------------------------------------------------
# The state: a checkpoint and the inputs since. What comes after is computed again from there, as the chunks that it
# lies in would be in one call, so that it makes no difference where calls begin.
# ---------------------------------------------------------------------------------------------------------------------

CHECKPOINT = 64  # tokens of a segment from one point that a state can go on from to the next
WRITTEN = ("k", "v")  # the inputs that states are made of
SHAPES = {
    "M": (64, 64),
    "pool": (64,),
    "cached": (64, 64),
    "pools": (64,),
}  # of parts of the state and of what is cached, behind (B, H, 1)
_Checkpoint = collections.namedtuple("_Checkpoint", ("position", "parts"))


class _Bank:
    """What is cached at the ends of segments, in order: tensors (B, H, room, ·) of which the first `count` are filled.

    States that share a bank see as much of it as was there when they were made. The one that has seen all of it adds to
    it in place, another to a copy.
    """

    def __init__(self, tensors, count, owned=None):
        self.tensors, self.count = tensors, count
        self.filled = [
            count if owned is None else owned
        ]  # shared by all states that see these tensors; -1: not to be written

    def until(self, count):
        """What is cached of the first segments."""
        if torch.is_grad_enabled():
            self.filled[0] = -1  # a graph may keep them
        return [t[:, :, :count] for t in self.tensors]

    def joined(self, count, more, room):
        """The bank of its first `count` segments and more, (B, H, n, ·) each, with room for so many if there is any."""
        last = count + more[0].shape[2]
        if torch.is_grad_enabled() and any(t.requires_grad for t in (*self.tensors, *more)):
            before = self.until(count)
            return _Bank([torch.cat(pair, 2) for pair in zip(before, more, strict=True)] if count else more, last, -1)
        bank, free = copy.copy(self), bool(self.tensors) and last <= self.tensors[0].shape[2]
        if not free or self.filled[0] != count or self.tensors[0].is_inference() != torch.is_inference_mode_enabled():
            room = max(room, last)
            bank.tensors = [m.new_empty(*m.shape[:2], room, *m.shape[3:]) for m in more]
            for t, old in zip(bank.tensors, self.tensors, strict=False):
                t[:, :, :count] = old[:, :, :count]
            bank.filled = [last]
        bank.count = bank.filled[0] = last
        for t, m in zip(bank.tensors, more, strict=True):
            t[:, :, count:last] = m.detach()
        return bank


class State:
    """What the memory knows of a sequence after `position` tokens, for `op` and the layer to go on from.

    It holds the memory at a checkpoint, every 64 tokens of a segment, and the keys, values and gates since: these
    are run again with what follows. Nothing in it changes when it is used, so it may be used twice.

    Attributes:
        position: how many tokens it has seen.
        checkpoints: the positions that it holds the memory at, the latest last.

    Args:
        slots: the memory before the first token, by the names of its slots, (B, H, V, K) or without B;
            what is not named is 0.
        checkpoints: how many are kept, for `rollback` and `at`, with all inputs since the first of them.
        capacity: tokens that there is room for from the beginning, so that what is cached never moves; more are an
            error.

    Raises:
        TypeError, ValueError: an argument is none of these.
    """

    spec_hash = SPEC_HASH

    def __init__(self, slots=None, *, checkpoints=1, capacity=None):
        if type(checkpoints) is not int or checkpoints < 1:
            raise ValueError(f"checkpoints must be a whole number from 1, got {checkpoints!r}")
        if capacity is not None and (type(capacity) is not int or capacity < 1):
            raise ValueError(f"capacity must be a whole number of tokens or None, got {capacity!r}")
        self.position, self.keep, self.capacity = 0, checkpoints, capacity
        self._given = _slot_parts(slots or {})  # until the first call
        self._points = [_Checkpoint(0, ())]
        self._rows = {}  # the inputs since the first checkpoint, and those before that tokens look back at
        self._streams = {}  # a layer's: what it convolves, as far back
        self._bank = _Bank([], 0)

    def __repr__(self):
        return f"State(position={self.position}, checkpoints={self.checkpoints}, nbytes={self.nbytes})"

    @property
    def checkpoints(self):
        return [point.position for point in self._points]

    @property
    def nbytes(self):
        """Bytes of all its tensors, room that is not filled yet included."""
        return sum(t.nbytes for t in self._tensors())

    def to(self, *args, **kwargs):
        """The state on another device or for inputs of another type, as `torch.Tensor.to` takes them."""
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        wide = dtype and torch.promote_types(dtype, torch.float32)
        state = self._mapped(lambda t: t.to(device, wide, non_blocking))
        for name in ("_rows", "_streams"):
            rows = {key: t.to(device, dtype, non_blocking) for key, t in getattr(self, name).items()}
            setattr(state, name, rows)
        return state

    def detach(self):
        """The state without its history: gradients flow no further back."""
        return self._mapped(torch.Tensor.detach)

    def clone(self):
        """A copy that shares no memory with it."""
        return self._mapped(torch.Tensor.clone)

    def select(self, indices):
        """The state of these sequences of the batch, (n,) indices: the beams that go on, for instance."""
        return self._mapped(lambda t: t.index_select(0, torch.as_tensor(indices, device=t.device)))

    def rollback(self, tokens):
        """The state so many tokens earlier.

        Raises:
            ValueError: that is before the first checkpoint that it keeps.
        """
        return self.at(self.position - tokens)

    def at(self, position):
        """The state after so many tokens; those after it are forgotten.

        Raises:
            ValueError: that is before the first checkpoint that it keeps, or after its last token.
        """
        first = self._points[0].position
        if not first <= position <= self.position:
            raise ValueError(
                f"the state has tokens {first} to {self.position}, got {position}: State(checkpoints=n) keeps n "
                "checkpoints to go back to"
            )
        state, cut = copy.copy(self), self.position - position
        state.position = position
        state._points = [point for point in self._points if point.position <= position]
        state._rows = {name: t[:, : t.shape[1] - cut] for name, t in self._rows.items()}
        state._streams = {name: t[:, : t.shape[1] - cut] for name, t in self._streams.items()}
        return state

    def state_dict(self):
        """Its tensors and numbers as plain objects, which `torch.save` takes and `load_state_dict` gives back."""
        tensors, context = _flattened(self)
        return {"spec": SPEC_HASH, "tensors": [t.detach().clone() for t in tensors], "context": context}

    def load_state_dict(self, found):
        """Becomes the state that `state_dict` was asked of.

        Raises:
            ValueError: that was a state of another spec.
        """
        if found.get("spec") != SPEC_HASH:
            raise ValueError(f"the state is of another spec: {found.get('spec')}, not {SPEC_HASH}")
        self.__dict__.update(_unflattened(found["tensors"], found["context"]).__dict__)

    def _keep_streams(self, earlier, streams, reach):
        """Keeps what a layer convolved: since the first checkpoint, and what its first token there looks back at."""
        count = self.position - self._points[0].position + reach
        self._streams = {name: _last(torch.cat([earlier[name], h], 1), count).clone() for name, h in streams.items()}

    def _tensors(self):
        return _flattened(self)[0]

    def _mapped(self, change):
        tensors, context = _flattened(self)
        return _unflattened([change(t) for t in tensors], context)


def _flattened(state):
    """The tensors of a state, and what it is besides."""
    points = [(point.position, len(point.parts)) for point in state._points]
    tensors = [t for point in state._points for t in point.parts]
    tensors += state._bank.tensors
    named = {name: getattr(state, name) for name in ("_rows", "_streams", "_given")}
    tensors += itertools.chain.from_iterable(of.values() for of in named.values())
    context = {
        "numbers": (state.position, state.keep, state.capacity),
        "points": points,
        "cached": (len(state._bank.tensors), state._bank.count),
        "named": {name: list(of) for name, of in named.items()},
    }
    return tensors, context


def _unflattened(tensors, context):
    """The state of these tensors, which is `_flattened`'s reverse."""
    state, left = State(), iter(tensors)
    state.position, state.keep, state.capacity = context["numbers"]
    state._points = [_Checkpoint(position, tuple(itertools.islice(left, n))) for position, n in context["points"]]
    n, count = context["cached"]
    state._bank = _Bank(list(itertools.islice(left, n)), count, -1)
    for name, keys in context["named"].items():
        setattr(state, name, {key: next(left) for key in keys})
    return state


torch.utils._pytree.register_pytree_node(State, _flattened, _unflattened)


def _slot_parts(slots):
    """The parts of a state, (B or 1, H, 1, ·), that slots (B, H, V, K) or without B are."""
    known = {"M": ("M",)}
    if extra := [name for name in slots if name not in known]:
        raise ValueError(f"no slot is called {extra[0]!r}: the slots are {', '.join(known)}")
    parts = {}
    for name, weights in slots.items():
        weights = [weights]
        for part, t in zip(known[name], weights, strict=True):
            shape = SHAPES[part][::-1]
            if not isinstance(t, torch.Tensor) or t.dim() not in (3, 4) or t.shape[-2:] != shape:
                raise ValueError(f"{name} must be of shape (H, {shape[0]}, {shape[1]}), or with B before, got {t!r}")
            parts[part] = t.mT.unsqueeze(-3).expand(*[1] * (4 - t.dim()), *t.shape[:-2], 1, *shape[::-1])
    return parts


def _after(tensors, place):
    """Empty tensors for what an operator gives of the state after its last token and of what it has cached."""
    if not place:
        return []
    B, T, H, _ = tensors[0].shape
    rooms = [(name, 1) for name in PARTS] + [(name, (place[0] + T) // SEGMENT) for name in BANK]
    return [tensors[0].new_empty(B, H, n, *SHAPES[name], dtype=_compute_type(tensors)) for name, n in rooms]


def _points_to(begin, end, keep):
    """The last points at most so many, after `begin` and up to `end`, that a state can go on from."""
    points = []
    while len(points) < keep:
        point = end - end % SEGMENT % CHECKPOINT
        if point <= begin:
            break
        points.append(point)
        end = point - 1
    return points[::-1]


def _go_on(run, inputs, theta, state):
    """y of the inputs, by name, that come after a state, or first where it is None; and the state after them.

    `run` is the operator. It runs the tokens since the checkpoint again with the new ones, in parts: to the end of
    the segment, so that what is cached is read where it lies; to each point where the state is kept; and what is left.
    """
    state = copy.copy(_checked(state, inputs))
    T = inputs["v"].shape[1]
    if T == 0:
        return torch.empty_like(inputs["v"]), state
    point, position, end = state._points[-1], state.position, state.position + T
    rows = {name: torch.cat([state._rows[name], inputs[name]], 1) if state._rows else inputs[name] for name in WRITTEN}
    points, y = _points_to(point.position, end, state.keep), []
    cuts = {point.position, *points, end}
    if position or state._given:  # not beside later segments
        cuts.add(min(end, (point.position // SEGMENT + 1) * SEGMENT))
    for begin, stop in itertools.pairwise(sorted(cuts)):
        place = [begin % SEGMENT, begin // SEGMENT, max(position - begin, 0)]
        found = {name: t[:, begin - end + t.shape[1] : stop - end + t.shape[1]] for name, t in rows.items()}
        for name in INPUTS:
            if name not in found:
                t = inputs[name][:, max(begin - position, 0) : stop - position]
                found[name] = torch.cat([t.new_zeros(t.shape[0], place[2], *t.shape[2:]), t], 1) if place[2] else t
        tensors = [*(found[name] for name in INPUTS), *theta]
        parts = _begun_parts(point.parts, state._given, tensors)
        cached = state._bank.until(place[1]) if place[1] else []
        out = run([*tensors, *parts, *cached], place)
        y.append(out[0][:, place[2] :])
        parts, more = tuple(out[1 : 1 + len(PARTS)]), out[1 + len(PARTS) : 1 + len(PARTS + BANK)]
        if more[0].shape[2]:
            state._bank = state._bank.joined(place[1], more, _segments_of_room(stop, state.capacity))
        parts = parts if stop % SEGMENT else ()
        point, state._given = _Checkpoint(stop, parts), {}
        state._points = [*state._points, point] if stop in points else state._points
    state._points, state.position = state._points[-state.keep :], end
    kept = end - state._points[0].position
    state._rows = {name: _last(t, kept).clone() for name, t in rows.items()}
    return y[0] if len(y) == 1 else torch.cat(y, 1), state


def _last(rows, count):
    """The last rows (B, T, ...), at most so many."""
    return rows[:, max(rows.shape[1] - count, 0) :]


def _known(state):
    """The state, a new one for None; raises TypeError or ValueError unless it is one of this spec."""
    if state is None:
        return State()
    if not hasattr(state, "spec_hash"):
        raise TypeError(f"state must be a State of this file, or None, got {type(state).__name__}")
    if state.spec_hash != SPEC_HASH:
        raise ValueError(f"the state is of another spec: {state.spec_hash}, not {SPEC_HASH}")
    return state


def _checked(state, inputs):
    """The state; raises TypeError or ValueError, with a remedy, unless these inputs may follow it."""
    state = _known(state)
    if state.capacity is not None and state.position + inputs["v"].shape[1] > state.capacity:
        raise ValueError(f"the state has room for {state.capacity} tokens: State(capacity=...) makes one for more")
    for name, t in state._rows.items():
        new = inputs[name]
        if t.device != new.device or t.dtype != new.dtype:
            raise ValueError(
                f"the state holds {name} as {t.dtype} on {t.device}, got {new.dtype} on {new.device}: "
                "state.to(...) moves it"
            )
        if t.shape[0] != new.shape[0] or t.shape[2:] != new.shape[2:]:
            raise ValueError(
                f"the state is of a batch of {t.shape[0]} and {t.shape[2]} heads, got {name} {tuple(new.shape)}: "
                "state.select(indices) takes sequences of its batch"
            )
    return state


def _begun_parts(parts, given, tensors):
    """The parts of the state at a point; at the first one, where slots are given, those and what others begin with."""
    if not given:
        return parts
    v, dtype = tensors[INPUTS.index("v")], _compute_type(tensors)
    begun = given
    shapes = {name: (v.shape[0], v.shape[2], 1, *SHAPES[name]) for name in PARTS}
    try:
        whole = {name: t.to(v.device, dtype).expand(shapes[name]) for name, t in begun.items()}
    except RuntimeError as error:
        raise ValueError(f"the slots of the state do not fit B = {v.shape[0]} and H = {v.shape[2]}: {error}") from None
    return [whole[name] if name in whole else v.new_zeros(shapes[name], dtype=dtype) for name in PARTS]


def _segments_of_room(tokens, capacity):
    """Segments to make room for, when so many tokens' are cached: some more, so that few of them are ever moved."""
    return tokens // SEGMENT * 9 // 8 + 8 if capacity is None else capacity // SEGMENT


def _of_sequences_from(run, lengths, states, given):
    """What is given for packed sequences, by name, that each go on from a state or None; and the states after them."""
    states = [None] * len(lengths) if states is None else states
    if not isinstance(states, (list, tuple)) or len(states) != len(lengths):
        raise ValueError(f"with cu_seqlens, state must be a list of {len(lengths)} states, one a sequence, or None")
    parts = {name: t.split(lengths, 1) for name, t in given.items()}
    found = [run(**{name: t[n] for name, t in parts.items()}, state=state) for n, state in enumerate(states)]
    y = [y for y, _ in found] or [run(**given)[0]]
    return torch.cat(y, 1), [state for _, state in found]


def _streams_before(state, streams):
    """What a layer convolved of a sequence before these streams (B, T, channels), by name.

    Raises TypeError or ValueError unless the state is one that a layer like this gave.
    """
    before = _known(state)._streams
    if state is None or state.position == 0:
        return {name: h[:, :0] for name, h in streams.items()}
    if not before:
        raise ValueError("the state has nothing to convolve: it is of `op`, or of a layer without convolutions")
    for name, h in streams.items():
        held, given = ((*t.shape[::2], t.dtype, t.device) for t in (before[name], h))
        if held != given:
            raise ValueError(f"the state is of a layer whose {name} (B, channels, type, device) is {held}, not {given}")
    return before


def _real_tokens(attention_mask, x):
    """The places of tokens of x (B, T, ...) that are no padding, row after row, and how many each row has; on the host.

    Raises TypeError or ValueError, saying what is wrong, unless those of a row follow one another.
    """
    if getattr(attention_mask, "dtype", None) not in (torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64):
        got = getattr(attention_mask, "dtype", type(attention_mask).__name__)
        raise TypeError(f"attention_mask must be a tensor of booleans or of whole numbers 0 and 1, got {got}")
    if attention_mask.shape != x.shape[:2]:
        raise ValueError(
            f"attention_mask must have shape {tuple(x.shape[:2])}, a column for each token of x, "
            f"got {tuple(attention_mask.shape)}"
        )
    mask = attention_mask.cpu()
    real = mask != 0
    if (mask[real] != 1).any():
        raise ValueError(f"attention_mask must be 0 and 1 alone, got {mask[real & (mask != 1)][0]}")
    begins = real & ~F.pad(real, (1, 0))[:, :-1]
    if (again := begins & (begins.cumsum(1) > 1)).any():
        row, token = again.nonzero()[0].tolist()
        raise ValueError(
            f"attention_mask must be 1 for one run of tokens in each row, but in row {row} another begins at token "
            f"{token}: take what lies between out of x, or pack the runs as sequences of their own (cu_seqlens)"
        )
    return real.flatten().nonzero().squeeze(1), real.sum(1).tolist()


def _of_padded(layer, attention_mask, x, stateful=False):
    """What a layer gives for the rows of x (B, T, ·), each without its padding, which gets zeros."""
    places, lengths = _real_tokens(attention_mask, x)
    rows = x.flatten(0, 1)
    if len(places) == len(rows) and not stateful:
        return layer(x)
    places = places.to(x.device)
    packed = rows.index_select(0, places).unsqueeze(0)
    y = layer(packed, cu_seqlens_cpu=list(itertools.accumulate(lengths, initial=0)))
    y, *states = y if isinstance(y, tuple) else (y,)
    y = y.new_zeros(len(rows), y.shape[-1]).index_copy(0, places, y.squeeze(0)).unflatten(0, x.shape[:2])
    return (y, *states) if states else y


def _widen(x):
    """x in float32, or wider if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _autocasts(x):
    """Whether autocast chooses the type of x's products; float64 it leaves alone."""
    return not x.is_meta and x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type)


def _stream_type(x):
    """The type of what passes between the parts of a layer of x, and of its output: x's, or autocast's."""
    return torch.get_autocast_dtype(x.device.type) if _autocasts(x) else x.dtype


def _fitted(x, module):
    """x in the type of the module's weight, as torch's modules want it; a weight that is no float takes x as it is."""
    weight = getattr(module, "weight", None)
    return x.to(weight.dtype) if isinstance(weight, torch.Tensor) and weight.dtype in _FLOATS else x


def _operand(x, module):
    """x as a projection or a convolution takes it: under autocast as it is, since that fits types itself."""
    return x if _autocasts(x) else _fitted(x, module)


def _project(x, linear):
    """linear(x), in the type of its weight, or in autocast's."""
    return linear(_operand(x, linear))


class _ShortConvolution(torch.nn.Conv1d):
    """silu of a causal depthwise convolution along time, (B, T, channels) in and out, in x's type."""

    def __init__(self, channels, size, **factory):
        super().__init__(channels, channels, size, groups=channels, bias=False, **factory)

    def forward(self, x, before=None):
        """The rows of x; `before` are rows before its first, if there are any."""
        n = 0 if before is None else before.shape[1]
        rows = torch.cat([before, x], 1) if n else x
        # One zero more than the kernel needs, and its output dropped: torch convolves nothing of length 0.
        padded = F.pad(_operand(rows, self).mT, (*self.kernel_size, 0))
        return F.silu(super().forward(padded)[..., 1 + n :].mT).to(x.dtype)


def _l2(x):
    """x over its Euclidean norm, along the last axis; computed in float32 or wider, in x's type."""
    wide = _widen(x)
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + 1e-6)).to(x.dtype)


class LinearSsc(torch.nn.Module):
    """The memory of this file as a layer, (B, T, d_model) in and out, causal.

    inputs     q, k, v = silu(conv(x W)), q and k over their Euclidean norms
               u = x W_u
    output     rms(op(q, k, v, …)) * silu(x W_g), times W_o

    Args:
        d_model: width of the layer's input and output.
        heads: number of heads, each with queries and keys of 64 and values of 64.
        qk_norm: "l2" divides queries and keys by their Euclidean norm, "none" leaves them.
        conv_size: width of the causal convolution of q, k and v, followed by silu; 0 or None for neither.
        output_norm: "rms" normalises the read-out of each head, with a learned scale; "none" leaves it.
        output_gate: whether the read-out is multiplied by silu(x W_g).
        num_kv_heads: number of heads of k and v, which divides `heads`: each serves as many of q's; None for as many.
        device, dtype: of the parameters.

    Parameters may come to differ in type, from one another and from x. Each part computes in its own, gates in float32
    or wider; what passes from part to part, the output included, has x's type, or under autocast autocast's.

    Raises:
        ValueError: an argument is none of these.
    """

    def __init__(
        self,
        d_model=1024,
        heads=16,
        *,
        qk_norm="l2",
        conv_size=4,
        output_norm="rms",
        output_gate=True,
        num_kv_heads=None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        num_kv_heads = heads if num_kv_heads is None else num_kv_heads
        self._check_options(d_model, heads, num_kv_heads, qk_norm, conv_size, output_norm)
        factory = {"device": device, "dtype": dtype}
        self.d_model, self.heads, self.num_kv_heads = d_model, heads, num_kv_heads
        self.qk_norm, self.conv_size = qk_norm, conv_size or 0
        self.output_norm, self.output_gate = output_norm, bool(output_gate)

        self.q_proj = torch.nn.Linear(d_model, heads * 64, bias=False, **factory)
        self.k_proj = torch.nn.Linear(d_model, num_kv_heads * 64, bias=False, **factory)
        self.v_proj = torch.nn.Linear(d_model, num_kv_heads * 64, bias=False, **factory)
        self.u_proj = torch.nn.Linear(d_model, heads * 64, bias=False, **factory)
        if self.conv_size:
            self.q_conv1d = _ShortConvolution(heads * 64, self.conv_size, **factory)
            self.k_conv1d = _ShortConvolution(num_kv_heads * 64, self.conv_size, **factory)
            self.v_conv1d = _ShortConvolution(num_kv_heads * 64, self.conv_size, **factory)
        if self.output_gate:
            self.g_proj = torch.nn.Linear(d_model, heads * 64, bias=False, **factory)
        if self.output_norm == "rms":
            self.o_norm = torch.nn.RMSNorm(64, eps=1e-5, **factory)
        self.o_proj = torch.nn.Linear(heads * 64, d_model, bias=False, **factory)
        self.reset_parameters()

    @staticmethod
    def _check_options(d_model, heads, num_kv_heads, qk_norm, conv_size, output_norm):
        for name, value in (("d_model", d_model), ("heads", heads), ("num_kv_heads", num_kv_heads)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {value!r}")
        if heads % num_kv_heads:
            raise ValueError(f"num_kv_heads must divide heads, {heads}, got {num_kv_heads}")
        if conv_size is not None and (not isinstance(conv_size, int) or conv_size < 0):
            raise ValueError(f"conv_size must be a whole number or None, got {conv_size!r}")
        if qk_norm not in ("l2", "none"):
            raise ValueError(f'qk_norm must be "l2" or "none", got {qk_norm!r}')
        if output_norm not in ("rms", "none"):
            raise ValueError(f'output_norm must be "rms" or "none", got {output_norm!r}')

    @torch.no_grad()
    def reset_parameters(self):
        """Gives every parameter its initial value; projections and convolutions get those that torch gives them."""
        for module in self.children():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        for name in self.no_weight_decay():
            self.get_parameter(name)._no_weight_decay = True

    def no_weight_decay(self):
        """The names of the parameters that weight decay is not for: biases and rates of gates, the norm's scale.

        `reset_parameters` marks each of them `_no_weight_decay` too; a mark is lost where a parameter is copied or
        replaced (deepcopy, to_empty, load_state_dict(assign=True), fully_shard), a name is not.
        """
        return {"o_norm.weight"} if self.output_norm == "rms" else set()

    def forward(
        self, x, state=None, return_state=False, cu_seqlens=None, cu_seqlens_cpu=None, backend=None, attention_mask=None
    ):
        """y (B, T, d_model) of x (B, T, d_model), B and T 0 too; `backend`, `cu_seqlens` and `cu_seqlens_cpu` are those
        of `op`, convolutions begin anew with every sequence too.

        state, return_state: as those of `op`; the state that a layer gives also has what it convolves.

        attention_mask: (B, T), True or 1 for the tokens of each row's sequence, False or 0 for padding before and
        behind it. The result is that of each sequence by itself, and 0 at padding. It is read on the host, for which a
        GPU is waited for, and unless all of it is 1 the sequences run packed; states are a list of one a row.

        Raises:
            TypeError: cu_seqlens, attention_mask or state are of another type, or both of the first are given.
            ValueError: x or attention_mask has another shape, cu_seqlens do not go from 0 to T, tokens of a row of
                attention_mask do not follow one another, or the state is of another layer.
            UnsupportedError: as `op`.
        """
        if x.dim() != 3 or x.shape[-1] != self.d_model:
            raise ValueError(f"x must have shape (B, T, {self.d_model}), got {tuple(x.shape)}")
        if attention_mask is not None:
            if cu_seqlens is not None or cu_seqlens_cpu is not None:
                raise TypeError("attention_mask and cu_seqlens both say where sequences lie: give one of them")
            run = functools.partial(self.forward, state=state, return_state=return_state, backend=backend)
            return _of_padded(run, attention_mask, x, stateful=state is not None or return_state)
        lengths = _sequence_lengths(cu_seqlens if cu_seqlens_cpu is None else cu_seqlens_cpu, x)
        stateful = state is not None or return_state
        if stateful and lengths is not None:
            run = functools.partial(self.forward, return_state=True, backend=backend)
            y, states = _of_sequences_from(run, lengths, state, {"x": x})
            return (y, states) if return_state else y
        dtype = _stream_type(x)
        q, k, v = (_project(x, linear).to(dtype) for linear in (self.q_proj, self.k_proj, self.v_proj))
        if self.conv_size:
            convolutions, streams = (self.q_conv1d, self.k_conv1d, self.v_conv1d), {"q": q, "k": k, "v": v}
            earlier = _streams_before(state, streams) if stateful else {}
            before = [(_last(h, self.conv_size - 1),) for h in earlier.values()] or [()] * 3
            parts = zip(convolutions, streams.values(), before, strict=True)
            q, k, v = (_one_by_one(convolution, lengths, h, *rows) for convolution, h, rows in parts)
        q = q.unflatten(-1, (self.heads, -1))
        k, v = (h.unflatten(-1, (self.num_kv_heads, -1)) for h in (k, v))
        if self.qk_norm == "l2":
            q, k = _l2(q), _l2(k)
        u = _project(x, self.u_proj).to(dtype).unflatten(-1, (self.heads, -1))
        borders = None if lengths is None else list(itertools.accumulate(lengths, initial=0))
        how = {"backend": backend, "cu_seqlens_cpu": borders, "state": state, "return_state": stateful}
        y = op(q, k, v, u, **how)
        if stateful:
            y, state = y
            if self.conv_size:
                state._keep_streams(earlier, streams, self.conv_size - 1)
        if self.output_norm == "rms":
            y = self.o_norm(_fitted(y, self.o_norm)).to(dtype)
        y = y.flatten(-2)
        if self.output_gate:
            y = y * F.silu(_project(x, self.g_proj)).to(dtype)
        y = _project(y, self.o_proj).to(dtype)
        return (y, state) if return_state else y

    def extra_repr(self):
        return (
            f"d_model={self.d_model}, heads={self.heads}, key_dim=64, value_dim=64, "
            f"qk_norm={self.qk_norm}, conv_size={self.conv_size}, "
            f"output_norm={self.output_norm}, output_gate={self.output_gate}, num_kv_heads={self.num_kv_heads}"
        )


Layer = LinearSsc
