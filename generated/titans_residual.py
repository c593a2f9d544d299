"""titans_residual: Titans' momentum and forgetting on a perceptron of two layers, gradients taken at the start
of every 16 tokens, the read-outs of all cached segments added.

Made by mcgen from SPEC, which says the same as the lines below: build it again rather than change this file.

memory     M(x) = x + LN(W_2 gelu(W_1 x))
objective  sum((p - v)**2), p = M(k_t); grad at M as it stands where its chunk of 16 began
update     S = beta*S - eta*grad
           M = alpha*M + S
segments   256 tokens; every slot restarts at each (init: independent)
read-out   y_t = M_t(q_t) + sum of M(q_t) over the cached memories (eq. 7)
shapes     q, k (B, T, H, 64); v and y (B, T, H, 64); k and v may have fewer heads, dividing H
           beta, eta, alpha (B, T, H)
           theta: (H, 256, 64), (H, 64, 256)
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
    "name": "titans_residual",
    "doc": (
        "Titans' momentum and forgetting on a perceptron of two layers, gradients taken at the start of every 16 "
        "tokens, the read-outs of all cached segments added."
    ),
    "memory": {"kind": "mlp", "layers": 2, "expansion": 4, "activation": "gelu", "residual": True, "norm": "layernorm"},
    "update": {
        "rule": "titans",
        "gradient": {"chunk": 16},
        "gates": {
            "beta": {"fn": "sigmoid", "bias": 0.0, "scale": 1.0},
            "eta": {"fn": "sigmoid", "bias": 0.0, "scale": 0.0005},
            "alpha": {"fn": "sigmoid", "bias": 4.0, "scale": 1.0},
        },
    },
    "segment": {"size": 256, "mode": "constant", "init": "independent"},
    "aggregate": {"kind": "residual", "connector": "u", "pool": "mean", "scale": 1.0},
    "head": {"key_dim": 64, "value_dim": 64},
    "layer": {"d_model": 1024, "heads": 16, "qk_norm": "l2", "conv_size": 4, "output_norm": "rms", "output_gate": True},
}
SPEC_HASH = "9ab5558e32bf795125eacbb8173ca320ccf8e35fdf10e4e823c01ab7827dd216"


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
    _check_tensor("q", q, q)
    if q.dim() != 4 or q.shape[-1] != 64:
        raise ValueError(f"q must have shape (B, T, H, 64), got {tuple(q.shape)}")
    B, T, H, _ = q.shape
    _check_grouped("k", k, q, 64)
    _check_grouped("v", v, q, 64)
    for name, gate in gates.items():
        _check_tensor(name, gate, q, (B, T, H))
    shapes = [(H, 256, 64), (H, 64, 256)]
    _check_theta(theta, q, shapes)


def _check_gates(gates):
    """Raises TypeError unless the names are those of the gates."""
    expected = ["beta", "eta", "alpha"]
    if missing := [name for name in expected if name not in gates]:
        raise TypeError(f"missing gate{'s' * (len(missing) > 1)}: {', '.join(missing)}")
    if extra := [name for name in gates if name not in expected]:
        takes = f"the gates are {', '.join(expected)}" if expected else "there are no gates"
        raise TypeError(f"unexpected argument{'s' * (len(extra) > 1)}: {', '.join(extra)}; {takes}")


def _check_theta(theta, q, shapes):
    """Raises TypeError or ValueError unless theta is a list of initial weights of these shapes."""
    if not isinstance(theta, (list, tuple)):
        got = "None" if theta is None else type(theta).__name__
        raise TypeError(f"theta must be the list of the memory's 2 initial weights, got {got}")
    if len(theta) != 2:
        raise ValueError(f"theta must have 2 weights, got {len(theta)}")
    for number, (weight, shape) in enumerate(zip(theta, shapes, strict=True)):
        _check_tensor(f"theta[{number}]", weight, q, shape)


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
    """M(x), of weights M = [W_1, …] (B, H, out, in) and x (B, H, K)."""
    h = x
    for W in M[:-1]:
        h = (W * h[..., None, :]).sum(-1)
        h = F.gelu(h)
    h = (M[-1] * h[..., None, :]).sum(-1)
    h = (h - h.mean(-1, keepdim=True)) * torch.rsqrt(h.var(-1, keepdim=True, correction=0) + 1e-5)
    return x + h


def _gradient(M, k, v):
    """The gradient, by every weight of M, of the objective at p = M(k): p and v (B, H, V).

    Differentiable itself, and there also where gradients are off.
    """
    create_graph = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        k, v = k.clone(), v.clone()
        M = [W.clone() if W.requires_grad else W.clone().requires_grad_() for W in M]
        p = _read(M, k)
        objective = ((p - v) ** 2).sum(-1)
        return torch.autograd.grad(objective.sum(), M, create_graph=create_graph)


def reference(q, k, v, u=None, *, theta=None, cu_seqlens=None, **gates):
    """One token at a time, in float32 or wider, differentiable: the definition that `op` is held against.

    Sequences that are packed one behind another run each by itself; cu_seqlens is as in `op`.

    memory     M(x) = x + LN(W_2 gelu(W_1 x))
    objective  sum((p - v)**2), p = M(k_t); grad at M as it stands where its chunk of 16 began
    update     S = beta*S - eta*grad
               M = alpha*M + S
    segments   256 tokens; every slot restarts at each (init: independent)
    read-out   y_t = M_t(q_t) + sum of M(q_t) over the cached memories (eq. 7)
    shapes     q, k (B, T, H, 64); v and y (B, T, H, 64); k and v may have fewer heads, dividing H
               beta, eta, alpha (B, T, H)
               theta: (H, 256, 64), (H, 64, 256)
    """
    _check(q, k, v, u, theta, gates)
    if (lengths := _sequence_lengths(cu_seqlens, q)) is not None:
        return _of_sequences(functools.partial(reference, theta=theta), lengths, q, k, v, u, gates)
    dtype, y_dtype = torch.float32, v.dtype
    for x in (q, k, v, *theta, *gates.values()):
        dtype = torch.promote_types(dtype, x.dtype)
    k, v = _of_every_head(k, q), _of_every_head(v, q)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    B, T = q.shape[:2]
    beta = gates["beta"].to(dtype)[..., None, None]  # (B, T, H, 1, 1)
    eta = gates["eta"].to(dtype)[..., None, None]  # (B, T, H, 1, 1)
    alpha = gates["alpha"].to(dtype)[..., None, None]  # (B, T, H, 1, 1)
    M_0 = [W.to(dtype).expand(B, *W.shape) for W in theta]
    zero = [torch.zeros_like(W) for W in M_0]
    y, cached = [], []
    for begin, end in _segments(T):
        M, S = M_0, zero  # init: independent
        for t in range(begin, end):
            q_t, k_t, v_t = q[:, t], k[:, t], v[:, t]
            beta_t = beta[:, t]
            eta_t = eta[:, t]
            alpha_t = alpha[:, t]

            if (t - begin) % 16 == 0:
                M_chunk = M
            grad = _gradient(M_chunk, k_t, v_t)
            S = [beta_t * S_n - eta_t * grad_n for S_n, grad_n in zip(S, grad, strict=True)]
            M = [alpha_t * M_n + S_n for M_n, S_n in zip(M, S, strict=True)]

            y_t = sum(_read(memory, q_t) for memory in [*cached, M])
            y.append(y_t)
        cached.append(M)
    if not y:  # gradients are of zeros all the same
        return (v * sum(x.sum() for x in (q, k, v, *theta, *gates.values()))).to(y_dtype)
    return torch.stack(y, 1).to(y_dtype)


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
# Only the state (S_1, S_2, M_1, M_2)
# goes from chunk to chunk; all else is done for the chunks of a panel at once.
#
# Functions of a panel or chunk are given values by name, as x.name, and give others, as out.name. A name is one value
# in all of them: d_x is dL/dx, d_x_by_y what of that goes through y, and x_ahead what of x does not wait for the state.
# Beside a value stand its axes and its equation: [t j] are tokens and earlier tokens, [k], [h1] … [v] a head's sizes.
# ---------------------------------------------------------------------------------------------------------------------

TOKENS = 16  # tokens of a chunk, at most
PANEL_ROWS = 4096  # tokens of a panel, times batch, times heads, about
# What the state after a chunk is made of, by how many dimensions of it are the chunk's own, and likewise backwards.
CARRY = {0: "beta_run_all alpha_run_all R_M_S", 1: "C_S_j C_M_j", 2: "k v C_S_j_k C_M_j_k"}
CARRY_VJP = {
    0: "R_M_S beta_run_all alpha_run_all",
    1: "C_M_j C_S_j error_squares norm_scale error_dot_centred_over_squares",
    2: "d_S_1_by_q_S_1 d_S_2_by_q_hidden_1_S_2 k d_error_1_by_q_pre_1 C_M_j_k C_S_j_k "
    "d_pre_1_by_error_1_factor M_2_writes S_2_writes d_hidden_1_by_q_hidden_1_scores hidden_1 "
    "d_error_2_by_q_pre_2 pre_1 M_2 centred d_centred_by_error_squares_factor "
    "d_error_by_error_squares_factor d_M_1_by_q_M_1 d_M_2_by_q_hidden_1_M_2 error_2",
}
# What `_carry` makes of the state, and others need.
ROWS_READ = "pre_1 pre_2 error_hidden_1"
# What `_carry_vjp` makes of the state's cotangent, and others need.
ROWS_OWED = "d_error_1_ahead d_hidden_1_j d_M_2_writes_by_M_2_next d_S_2_writes_by_S_2_next d_error_2 d_hidden_1"


def _gelu_vjp(g, x):
    """g times the derivative of gelu at x."""
    return torch.ops.aten.gelu_backward(g, x)


def _spread(x, *sizes):
    """x with its last dimensions broadcast to these sizes; -1 keeps one."""
    return x.expand(*x.shape[: x.dim() - len(sizes)], *sizes)


def _products(first, *others):
    """The sum of matrix products x @ y, each added where the first one lies."""
    total = first[0] @ first[1]
    for x, y in others:
        x, y = (t.expand(*total.shape[:-2], -1, -1).flatten(0, -3) for t in (x, y))
        total.view(-1, *total.shape[-2:]).baddbmm_(x, y)
    return total


def _runs(gate):
    """R[r, c], the product of gate[m] over c <= m < r, for r and c from 0 to n; 0 where r < c. Zeros stay exact."""
    n = gate.shape[-1] + 1
    inside = torch.ones(n, n, dtype=torch.bool, device=gate.device).tril(-1)
    return torch.where(inside, F.pad(gate, (1, 0))[..., :, None], 1.0).cumprod(-2).tril()


def _runs_to(gate):
    """The products of gate[m] over c <= m, for c from 0 to n."""
    return F.pad(gate.flip(-1).cumprod(-1).flip(-1), (0, 1), value=1.0)


def _writes(**x):
    """What chunks add to the state, and how much of it they leave: sums over j of C_j k_j v_jᵀ, and R."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    beta_runs = _runs(x.beta)
    out.beta_run_all = beta_runs[..., -1, 0]  # product of beta_i over the chunk
    out.beta_run_j = beta_runs[..., -1, 1:]  # [j] product of beta_i over j < i
    rate = -x.eta  # [t]
    out.C_S_j = out.beta_run_j * rate  # [j] dS_end/dG_j
    out.C_S_j_k = out.C_S_j[..., :, None] * x.k  # [j k]
    alpha_runs_to = _runs_to(x.alpha)
    out.alpha_run_all = alpha_runs_to[..., 0]  # product of alpha_i over the chunk
    out.alpha_run_j = alpha_runs_to[..., 1:]  # [j] product of alpha_i over j < i
    out.M_of_S_s = out.alpha_run_j * x.beta  # [s] dM_end/dS_s-1
    out.beta_before_t = beta_runs[..., :-1, 0]  # [t] product of beta_i over i < t
    out.R_M_S = (out.M_of_S_s * out.beta_before_t).sum(-1)  # dM_end/dS_0
    out.beta_before_tj = beta_runs[..., :-1, 1:]  # [t j] product of beta_i over j < i < t
    out.C_S_before_tj = out.beta_before_tj * rate[..., None, :]  # [t j] dS_t-1/dG_j
    out.C_M_j = out.alpha_run_j * rate + (out.M_of_S_s[..., None, :] @ out.C_S_before_tj).squeeze(-2)  # [j] dM_end/dG_j
    out.C_M_j_k = out.C_M_j[..., :, None] * x.k  # [j k]
    return vars(out)


def _carry(**x):
    """The state after a chunk."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    out.pre_1 = x.k @ x.M_1  # [t h1] z_1(k) = W_1 k
    hidden_1 = F.gelu(out.pre_1)  # [t h1] x_2(k) = gelu(z_1(k))
    out.pre_2 = hidden_1 @ x.M_2  # [t v] z_2(k) = W_2 x_2(k)
    pre_2_sum = out.pre_2.sum(-1)  # [t] sum(z_2(k))
    centred = out.pre_2 - pre_2_sum[..., :, None] / 64.0  # [t v] z_2(k) - mean(z_2(k))
    squares = (centred * centred).sum(-1)  # [t] 64 var(z_2(k))
    norm_scale = torch.sqrt(squares / 64.0 + 1e-05)  # [t] sqrt(var(z_2(k)) + 1e-5)
    normed = centred / norm_scale[..., :, None]  # [t v] LN(z_2(k))
    prediction = x.k + normed  # [t v] p = M(k)
    error = 2.0 * prediction - 2.0 * x.v  # [t v] e = dJ/dp, p = M(k)
    error_squares = -((error * centred).sum(-1) / (128.0 * (squares / 64.0 + 1e-05) ** 1.5))  # [t]
    error_centred = error / norm_scale[..., :, None] + 2.0 * error_squares[..., :, None] * centred  # [t v]
    error_pre_2_sum = -(error_centred.sum(-1) / 64.0)  # [t]
    error_2 = error_centred + error_pre_2_sum[..., :, None]  # [t v] e_2 = dJ/dz_2(k), e through LN
    out.error_hidden_1 = error_2 @ x.M_2.mT  # [t h1] dJ/dx_2(k) = W_2ᵀ e_2
    error_1 = _gelu_vjp(out.error_hidden_1, out.pre_1)  # [t h1] e_1 = gelu'(z_1(k)) W_2ᵀ e_2
    # [k h1] S_1' = R S_1 + sum over j of C_j x_1(k_j) e_1,jᵀ
    out.S_1_next = x.beta_run_all[..., None, None] * x.S_1 + x.C_S_j_k.mT @ error_1
    # [h1 v] S_2' = R S_2 + sum over j of C_j x_2(k_j) e_2,jᵀ
    out.S_2_next = x.beta_run_all[..., None, None] * x.S_2 + hidden_1.mT @ (x.C_S_j[..., :, None] * error_2)
    # [k h1] M_1' = R M_1 + sum over j of C_j x_1(k_j) e_1,jᵀ
    out.M_1_next = x.alpha_run_all[..., None, None] * x.M_1 + x.R_M_S[..., None, None] * x.S_1 + x.C_M_j_k.mT @ error_1
    hidden_1_M_2_writes = hidden_1.mT @ (x.C_M_j[..., :, None] * error_2)  # [h1 v]
    # [h1 v] M_2' = R M_2 + sum over j of C_j x_2(k_j) e_2,jᵀ
    out.M_2_next = x.alpha_run_all[..., None, None] * x.M_2 + x.R_M_S[..., None, None] * x.S_2 + hidden_1_M_2_writes
    return vars(out)


def _read_online(**x):
    """The online read-outs of chunks, from the states before them."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    alpha_runs = _runs(x.alpha)
    alpha_run_t = alpha_runs[..., 1:, 0]  # [t] product of alpha_i over i <= t
    alpha_run_tj = alpha_runs[..., 1:, 1:]  # [t j] product of alpha_i over j < i <= t
    R_M_S_t = ((x.beta * x.beta_before_t)[..., None, :] @ alpha_run_tj.mT).squeeze(-2)  # [t] dM_t/dS_0
    rate = -x.eta  # [t]
    M_of_S_ts = alpha_run_tj * x.beta[..., None, :]  # [t s] dM_t/dS_s-1
    C_M_tj = alpha_run_tj * rate[..., None, :] + M_of_S_ts @ x.C_S_before_tj  # [t j] dM_t/dG_j
    q_k = x.q @ x.k.mT  # [t j]
    error_1 = _gelu_vjp(x.error_hidden_1, x.pre_1)  # [t h1] e_1 = gelu'(z_1(k)) W_2ᵀ e_2
    # [t h1] z_1(q) = W_1 q
    out.q_pre_1 = _products(
        (alpha_run_t[..., :, None] * x.q, x.M_1), (R_M_S_t[..., :, None] * x.q, x.S_1), (C_M_tj * q_k, error_1)
    )
    q_hidden_1 = F.gelu(out.q_pre_1)  # [t h1] x_2(q) = gelu(z_1(q))
    out.q_hidden_1_M_2 = q_hidden_1 @ x.M_2  # [t v]
    R_q_hidden_1_M_2 = alpha_run_t[..., :, None] * out.q_hidden_1_M_2  # [t v]
    out.q_hidden_1_S_2 = q_hidden_1 @ x.S_2  # [t v]
    hidden_1 = F.gelu(x.pre_1)  # [t h1] x_2(k) = gelu(z_1(k))
    q_hidden_1_scores = q_hidden_1 @ hidden_1.mT  # [t j]
    pre_2_sum = x.pre_2.sum(-1)  # [t] sum(z_2(k))
    centred = x.pre_2 - pre_2_sum[..., :, None] / 64.0  # [t v] z_2(k) - mean(z_2(k))
    squares = (centred * centred).sum(-1)  # [t] 64 var(z_2(k))
    norm_scale = torch.sqrt(squares / 64.0 + 1e-05)  # [t] sqrt(var(z_2(k)) + 1e-5)
    normed = centred / norm_scale[..., :, None]  # [t v] LN(z_2(k))
    prediction = x.k + normed  # [t v] p = M(k)
    error = 2.0 * prediction - 2.0 * x.v  # [t v] e = dJ/dp, p = M(k)
    error_squares = -((error * centred).sum(-1) / (128.0 * (squares / 64.0 + 1e-05) ** 1.5))  # [t]
    error_centred = error / norm_scale[..., :, None] + 2.0 * error_squares[..., :, None] * centred  # [t v]
    error_pre_2_sum = -(error_centred.sum(-1) / 64.0)  # [t]
    error_2 = error_centred + error_pre_2_sum[..., :, None]  # [t v] e_2 = dJ/dz_2(k), e through LN
    # [t v] z_2(q) = W_2 x_2(q)
    q_pre_2 = R_q_hidden_1_M_2 + R_M_S_t[..., :, None] * out.q_hidden_1_S_2 + (C_M_tj * q_hidden_1_scores) @ error_2
    q_pre_2_sum = q_pre_2.sum(-1)  # [t] sum(z_2(q))
    q_centred = q_pre_2 - q_pre_2_sum[..., :, None] / 64.0  # [t v] z_2(q) - mean(z_2(q))
    q_squares = (q_centred * q_centred).sum(-1)  # [t] 64 var(z_2(q))
    q_norm_scale = torch.sqrt(q_squares / 64.0 + 1e-05)  # [t] sqrt(var(z_2(q)) + 1e-5)
    q_normed = q_centred / q_norm_scale[..., :, None]  # [t v] LN(z_2(q))
    out.o = x.q + q_normed  # [t v] o_t = M_t(q_t)
    return vars(out)


def _pulls(**x):
    """What the read-outs of chunks owe to the states before them."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    out.hidden_1 = F.gelu(x.pre_1)  # [t h1] x_2(k) = gelu(z_1(k))
    pre_2_sum = x.pre_2.sum(-1)  # [t] sum(z_2(k))
    out.centred = x.pre_2 - pre_2_sum[..., :, None] / 64.0  # [t v] z_2(k) - mean(z_2(k))
    squares = (out.centred * out.centred).sum(-1)  # [t] 64 var(z_2(k))
    out.norm_scale = torch.sqrt(squares / 64.0 + 1e-05)  # [t] sqrt(var(z_2(k)) + 1e-5)
    normed = out.centred / out.norm_scale[..., :, None]  # [t v] LN(z_2(k))
    prediction = x.k + normed  # [t v] p = M(k)
    error = 2.0 * prediction - 2.0 * x.v  # [t v] e = dJ/dp, p = M(k)
    error_dot_centred = (error * out.centred).sum(-1)  # [t]
    out.error_squares = -(error_dot_centred / (128.0 * (squares / 64.0 + 1e-05) ** 1.5))  # [t]
    error_centred = error / out.norm_scale[..., :, None] + 2.0 * out.error_squares[..., :, None] * out.centred  # [t v]
    error_pre_2_sum = -(error_centred.sum(-1) / 64.0)  # [t]
    out.error_2 = error_centred + error_pre_2_sum[..., :, None]  # [t v] e_2 = dJ/dz_2(k), e through LN
    alpha_runs = _runs(x.alpha)
    out.alpha_run_t = alpha_runs[..., 1:, 0]  # [t] product of alpha_i over i <= t
    R_q_hidden_1_M_2 = out.alpha_run_t[..., :, None] * x.q_hidden_1_M_2  # [t v]
    out.alpha_run_tj = alpha_runs[..., 1:, 1:]  # [t j] product of alpha_i over j < i <= t
    out.R_M_S_t = ((x.beta * x.beta_before_t)[..., None, :] @ out.alpha_run_tj.mT).squeeze(-2)  # [t] dM_t/dS_0
    rate = -x.eta  # [t]
    out.M_of_S_ts = out.alpha_run_tj * x.beta[..., None, :]  # [t s] dM_t/dS_s-1
    out.C_M_tj = out.alpha_run_tj * rate[..., None, :] + out.M_of_S_ts @ x.C_S_before_tj  # [t j] dM_t/dG_j
    q_hidden_1 = F.gelu(x.q_pre_1)  # [t h1] x_2(q) = gelu(z_1(q))
    out.q_hidden_1_scores = q_hidden_1 @ out.hidden_1.mT  # [t j]
    C_q_hidden_1_scores = out.C_M_tj * out.q_hidden_1_scores  # [t j]
    # [t v] z_2(q) = W_2 x_2(q)
    q_pre_2 = R_q_hidden_1_M_2 + out.R_M_S_t[..., :, None] * x.q_hidden_1_S_2 + C_q_hidden_1_scores @ out.error_2
    q_pre_2_sum = q_pre_2.sum(-1)  # [t] sum(z_2(q))
    q_centred = q_pre_2 - q_pre_2_sum[..., :, None] / 64.0  # [t v] z_2(q) - mean(z_2(q))
    q_squares = (q_centred * q_centred).sum(-1)  # [t] 64 var(z_2(q))
    q_norm_scale = torch.sqrt(q_squares / 64.0 + 1e-05)  # [t] sqrt(var(z_2(q)) + 1e-5)
    d_q_squares = -((x.d_o * q_centred).sum(-1) / (128.0 * (q_squares / 64.0 + 1e-05) ** 1.5))  # [t]
    d_q_centred = x.d_o / q_norm_scale[..., :, None] + 2.0 * d_q_squares[..., :, None] * q_centred  # [t v]
    d_q_pre_2_sum = -(d_q_centred.sum(-1) / 64.0)  # [t]
    out.d_q_pre_2 = d_q_centred + d_q_pre_2_sum[..., :, None]  # [t v] dL/dz_2(q)
    out.d_C_q_hidden_1_scores_by_q_pre_2 = out.d_q_pre_2 @ out.error_2.mT  # [t j]
    d_q_hidden_1_scores = out.d_C_q_hidden_1_scores_by_q_pre_2 * out.C_M_tj  # [t j]
    d_q_hidden_1_S_2 = out.d_q_pre_2 * out.R_M_S_t[..., :, None]  # [t v]
    d_q_hidden_1_M_2 = out.d_q_pre_2 * out.alpha_run_t[..., :, None]  # [t v]
    d_q_hidden_1 = _products(
        (d_q_hidden_1_scores, out.hidden_1), (d_q_hidden_1_S_2, x.S_2.mT), (d_q_hidden_1_M_2, x.M_2.mT)
    )
    out.d_q_pre_1 = _gelu_vjp(d_q_hidden_1, x.q_pre_1)  # [t h1] dL/dz_1(q)
    out.d_S_1_by_q_S_1 = (out.R_M_S_t[..., :, None] * x.q).mT @ out.d_q_pre_1  # [k h1]
    out.d_S_2_by_q_hidden_1_S_2 = q_hidden_1.mT @ d_q_hidden_1_S_2  # [h1 v]
    out.q_k = x.q @ x.k.mT  # [t j]
    out.d_error_1_by_q_pre_1 = (out.C_M_tj * out.q_k).mT @ out.d_q_pre_1  # [j h1]
    out.d_pre_1_by_error_1_factor = (
        0.3989422804014327 * x.error_hidden_1 * (2.0 - x.pre_1 * x.pre_1) * torch.exp(-(x.pre_1 * x.pre_1 / 2.0))
    )
    out.M_2_writes = x.C_M_j[..., :, None] * out.error_2  # [j v]
    out.S_2_writes = x.C_S_j[..., :, None] * out.error_2  # [j v]
    out.d_hidden_1_by_q_hidden_1_scores = d_q_hidden_1_scores.mT @ q_hidden_1  # [j h1]
    out.d_error_2_by_q_pre_2 = C_q_hidden_1_scores.mT @ out.d_q_pre_2  # [j v]
    out.d_centred_by_error_squares_factor = -(error / (128.0 * (squares[..., :, None] / 64.0 + 1e-05) ** 1.5))  # [t v]
    out.d_error_by_error_squares_factor = -(out.centred / (128.0 * (squares[..., :, None] / 64.0 + 1e-05) ** 1.5))
    out.error_dot_centred_over_squares = 3.0 * error_dot_centred / (16384.0 * (squares / 64.0 + 1e-05) ** 2.5)  # [t]
    out.d_M_1_by_q_M_1 = (out.alpha_run_t[..., :, None] * x.q).mT @ out.d_q_pre_1  # [k h1]
    out.d_M_2_by_q_hidden_1_M_2 = q_hidden_1.mT @ d_q_hidden_1_M_2  # [h1 v]
    return vars(out)


def _carry_vjp(**x):
    """The cotangent of the state before a chunk, from that after it."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    n_v = x.error_2.shape[-1]
    d_S_1_ahead = x.d_M_1_next * x.R_M_S[..., None, None] + x.d_S_1_next * x.beta_run_all[..., None, None]  # [k h1]
    out.d_S_1 = x.d_S_1_by_q_S_1 + d_S_1_ahead  # [k h1]
    d_S_2_ahead = x.d_M_2_next * x.R_M_S[..., None, None] + x.d_S_2_next * x.beta_run_all[..., None, None]  # [h1 v]
    out.d_S_2 = x.d_S_2_by_q_hidden_1_S_2 + d_S_2_ahead  # [h1 v]
    out.d_error_1_ahead = _products((x.C_M_j_k, x.d_M_1_next), (x.C_S_j_k, x.d_S_1_next))  # [j h1]
    d_error_1 = x.d_error_1_by_q_pre_1 + out.d_error_1_ahead  # [j h1] dL/de_1
    out.d_hidden_1_j = (
        _products((x.M_2_writes, x.d_M_2_next.mT), (x.S_2_writes, x.d_S_2_next.mT)) + x.d_hidden_1_by_q_hidden_1_scores
    )
    out.d_M_2_writes_by_M_2_next = x.hidden_1 @ x.d_M_2_next  # [j v]
    d_error_2_by_M_2_writes = out.d_M_2_writes_by_M_2_next * x.C_M_j[..., :, None]  # [j v]
    out.d_S_2_writes_by_S_2_next = x.hidden_1 @ x.d_S_2_next  # [j v]
    d_error_2_by_S_2_writes = out.d_S_2_writes_by_S_2_next * x.C_S_j[..., :, None]  # [j v]
    d_error_2_j = d_error_2_by_M_2_writes + d_error_2_by_S_2_writes + x.d_error_2_by_q_pre_2  # [j v]
    d_error_hidden_1 = _gelu_vjp(d_error_1, x.pre_1)  # [t h1]
    out.d_error_2 = d_error_2_j + d_error_hidden_1 @ x.M_2  # [t v] dL/de_2
    d_error_pre_2_sum = out.d_error_2.sum(-1)  # [t]
    d_error_centred = _spread(-(d_error_pre_2_sum[..., :, None] / 64.0), -1, n_v) + out.d_error_2  # [t v]
    d_centred_by_error_centred_by_squares = 2.0 * d_error_centred * x.error_squares[..., :, None]  # [t v]
    d_error_squares = 2.0 * (d_error_centred * x.centred).sum(-1)  # [t]
    d_centred_by_error_squares = d_error_squares[..., :, None] * x.d_centred_by_error_squares_factor  # [t v]
    d_error_by_error_squares = d_error_squares[..., :, None] * x.d_error_by_error_squares_factor  # [t v]
    d_error = d_error_by_error_squares + d_error_centred / x.norm_scale[..., :, None]  # [t v] dL/de
    d_prediction = 2.0 * d_error  # [t v] dL/dp
    d_centred_by_normed = d_prediction / x.norm_scale[..., :, None]  # [t v]
    d_squares_by_error_squares = d_error_squares * x.error_dot_centred_over_squares  # [t]
    d_squares_by_error_centred_by_normed = (d_error_centred * x.d_centred_by_error_squares_factor).sum(-1)  # [t]
    d_squares_by_normed = (d_prediction * x.d_error_by_error_squares_factor).sum(-1)  # [t]
    d_squares = d_squares_by_error_squares + d_squares_by_error_centred_by_normed + d_squares_by_normed  # [t]
    d_centred_by_squares = 2.0 * d_squares[..., :, None] * x.centred  # [t v]
    d_centred = (
        d_centred_by_error_centred_by_squares + d_centred_by_error_squares + d_centred_by_normed + d_centred_by_squares
    )
    d_pre_2_sum = -(d_centred.sum(-1) / 64.0)  # [t]
    d_pre_2 = d_centred + d_pre_2_sum[..., :, None]  # [t v] dL/dz_2(k)
    out.d_hidden_1 = out.d_hidden_1_j + d_pre_2 @ x.M_2.mT  # [t h1] dL/dx_2(k)
    d_pre_1 = d_error_1 * x.d_pre_1_by_error_1_factor + _gelu_vjp(out.d_hidden_1, x.pre_1)  # [t h1] dL/dz_1(k)
    out.d_M_1 = x.d_M_1_next * x.alpha_run_all[..., None, None] + x.k.mT @ d_pre_1 + x.d_M_1_by_q_M_1  # [k h1]
    d_M_2_by_M_2_next = x.d_M_2_next * x.alpha_run_all[..., None, None]  # [h1 v]
    out.d_M_2 = (
        _products((d_error_hidden_1.mT, x.error_2), (x.hidden_1.mT, d_pre_2))
        + d_M_2_by_M_2_next
        + x.d_M_2_by_q_hidden_1_M_2
    )
    return vars(out)


def _inputs_vjp(**x):
    """The gradients of the inputs, from the states before chunks and the cotangents of those after."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    n_v = x.d_error_by_error_squares_factor.shape[-1]
    # d_q = dL/dq
    error_1 = _gelu_vjp(x.error_hidden_1, x.pre_1)  # [t h1] e_1 = gelu'(z_1(k)) W_2ᵀ e_2
    d_C_q_k_by_q_pre_1 = x.d_q_pre_1 @ error_1.mT  # [t j]
    d_q_k = d_C_q_k_by_q_pre_1 * x.C_M_tj  # [t j]
    d_q_pre_1_S_1 = x.d_q_pre_1 @ x.S_1.mT  # [t k]
    d_q_pre_1_M_1 = x.d_q_pre_1 @ x.M_1.mT  # [t k]
    d_q_by_q_M_1 = x.alpha_run_t[..., :, None] * d_q_pre_1_M_1  # [t k]
    out.d_q = d_q_k @ x.k + x.R_M_S_t[..., :, None] * d_q_pre_1_S_1 + d_q_by_q_M_1 + x.d_o  # [t k]
    # d_alpha = dL/dalpha
    error_1_d_M_1_next = error_1 @ x.d_M_1_next.mT  # [j k]
    d_C_M_j = (x.d_M_2_writes_by_M_2_next * x.error_2).sum(-1) + (x.k * error_1_d_M_1_next).sum(-1)  # [j]
    rate = -x.eta  # [t]
    d_alpha_run_j = d_C_M_j * rate  # [j]
    alpha_runs = _runs(x.alpha)
    alpha_before_tj = alpha_runs[..., :-1, 1:]  # [t j] product of alpha_i over j < i < t
    d_alpha_by_alpha_run_j = (x.alpha_run_j[..., :, None] * d_alpha_run_j[..., None, :] * alpha_before_tj).sum(-1)
    d_R_M_S = (x.d_M_2_next * x.S_2).sum((-2, -1)) + (x.d_M_1_next * x.S_1).sum((-2, -1))
    d_M_of_S_s = (d_C_M_j[..., None, :] @ x.C_S_before_tj.mT).squeeze(-2) + d_R_M_S[..., None] * x.beta_before_t  # [s]
    d_alpha_run_s = d_M_of_S_s * x.beta  # [s]
    alpha_before_ms = alpha_runs[..., :-1, 1:].mT  # [s m] product of alpha_i over s < i < m
    d_alpha_by_alpha_run_s = (x.alpha_run_j[..., None, :] * d_alpha_run_s[..., :, None] * alpha_before_ms).sum(-2)
    d_alpha_run_all = (x.d_M_2_next * x.M_2).sum((-2, -1)) + (x.d_M_1_next * x.M_1).sum((-2, -1))
    alpha_before_t = alpha_runs[..., :-1, 0]  # [t] product of alpha_i over i < t
    d_alpha_by_alpha_run_all = x.alpha_run_j * d_alpha_run_all[..., None] * alpha_before_t  # [m]
    d_C_M_tj = x.d_C_q_hidden_1_scores_by_q_pre_2 * x.q_hidden_1_scores + d_C_q_k_by_q_pre_1 * x.q_k  # [t j]
    d_alpha_run_tj = d_C_M_tj * rate[..., None, :]  # [t j]
    d_alpha_by_alpha_run_tj = ((x.alpha_run_tj.mT @ d_alpha_run_tj) * alpha_before_tj).sum(-1)  # [m]
    d_R_M_S_t = (x.d_q_pre_2 * x.q_hidden_1_S_2).sum(-1) + (x.q * d_q_pre_1_S_1).sum(-1)  # [t]
    d_M_of_S_ts = d_C_M_tj @ x.C_S_before_tj.mT + d_R_M_S_t[..., :, None] * x.beta_before_t[..., None, :]  # [t s]
    d_alpha_run_ts = d_M_of_S_ts * x.beta[..., None, :]  # [t s]
    d_alpha_by_alpha_run_ts = ((d_alpha_run_ts.mT @ x.alpha_run_tj) * alpha_before_ms).sum(-2)  # [m]
    d_alpha_run_t = (x.d_q_pre_2 * x.q_hidden_1_M_2).sum(-1) + (x.q * d_q_pre_1_M_1).sum(-1)  # [t]
    d_alpha_by_alpha_run_t = (d_alpha_run_t[..., None, :] @ x.alpha_run_tj).squeeze(-2) * alpha_before_t  # [m]
    d_alpha_ahead = d_alpha_by_alpha_run_tj + d_alpha_by_alpha_run_ts + d_alpha_by_alpha_run_t  # [t]
    out.d_alpha = d_alpha_by_alpha_run_j + d_alpha_by_alpha_run_s + d_alpha_by_alpha_run_all + d_alpha_ahead  # [t]
    # d_beta = dL/dbeta
    error_1_d_S_1_next = error_1 @ x.d_S_1_next.mT  # [j k]
    d_C_S_j = (x.d_S_2_writes_by_S_2_next * x.error_2).sum(-1) + (x.k * error_1_d_S_1_next).sum(-1)  # [j]
    d_beta_run_j = d_C_S_j * rate  # [j]
    d_beta_by_beta_run_j = (x.beta_run_j[..., :, None] * d_beta_run_j[..., None, :] * x.beta_before_tj).sum(-1)  # [m]
    d_beta_run_all = (x.d_S_2_next * x.S_2).sum((-2, -1)) + (x.d_S_1_next * x.S_1).sum((-2, -1))
    d_beta_by_beta_run_all = x.beta_run_j * d_beta_run_all[..., None] * x.beta_before_t  # [m]
    d_C_S_before_tj = x.M_of_S_s[..., :, None] * d_C_M_j[..., None, :] + x.M_of_S_ts.mT @ d_C_M_tj  # [s j]
    d_beta_before_tj = d_C_S_before_tj * rate[..., None, :]  # [t j]
    d_beta_by_beta_before_tj = ((x.beta_before_tj.mT @ d_beta_before_tj) * x.beta_before_tj).sum(-1)  # [m]
    d_beta_before_t = x.M_of_S_s * d_R_M_S[..., None] + x.beta * (d_R_M_S_t[..., None, :] @ x.alpha_run_tj).squeeze(-2)
    d_beta_by_beta_before_t = (d_beta_before_t[..., None, :] @ x.beta_before_tj).squeeze(-2) * x.beta_before_t  # [m]
    d_beta_s = d_M_of_S_s * x.alpha_run_j + (d_M_of_S_ts * x.alpha_run_tj).sum(-2)  # [s]
    out.d_beta = (
        d_beta_by_beta_run_j + d_beta_by_beta_run_all + d_beta_by_beta_before_tj + d_beta_by_beta_before_t + d_beta_s
    )
    # d_eta = dL/deta
    d_rate_by_C_S_before_tj = (d_C_S_before_tj * x.beta_before_tj).sum(-2)  # [j]
    d_rate_by_C_M_tj = (d_C_M_tj * x.alpha_run_tj).sum(-2)  # [j]
    d_rate = d_C_M_j * x.alpha_run_j + d_C_S_j * x.beta_run_j + d_rate_by_C_S_before_tj + d_rate_by_C_M_tj  # [j]
    out.d_eta = -d_rate  # [t]
    # d_k = dL/dk
    d_k_by_S_1_next = x.C_S_j[..., :, None] * error_1_d_S_1_next  # [j k]
    d_error_1 = x.d_error_1_by_q_pre_1 + x.d_error_1_ahead  # [j h1] dL/de_1
    d_pre_1 = d_error_1 * x.d_pre_1_by_error_1_factor + _gelu_vjp(x.d_hidden_1, x.pre_1)  # [t h1] dL/dz_1(k)
    d_error_pre_2_sum = x.d_error_2.sum(-1)  # [t]
    d_error_centred = _spread(-(d_error_pre_2_sum[..., :, None] / 64.0), -1, n_v) + x.d_error_2  # [t v]
    d_error_squares = 2.0 * (d_error_centred * x.centred).sum(-1)  # [t]
    d_error_by_error_squares = d_error_squares[..., :, None] * x.d_error_by_error_squares_factor  # [t v]
    d_error = d_error_by_error_squares + d_error_centred / x.norm_scale[..., :, None]  # [t v] dL/de
    d_prediction = 2.0 * d_error  # [t v] dL/dp
    d_k_t = d_pre_1 @ x.M_1.mT + d_prediction  # [t k]
    out.d_k = x.C_M_j[..., :, None] * error_1_d_M_1_next + d_k_by_S_1_next + d_k_t + d_q_k.mT @ x.q  # [j k]
    out.d_v = -(2.0 * d_error)  # [t v]
    return vars(out)


def _pile(**x):
    """The online read-outs and those of all cached states, added up."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    cached_pre_1 = torch.einsum("...ab,...cbd->...acd", x.q, x.cached_1)  # [t n h1] z_1(q, n) = W_1 q
    cached_hidden_1 = F.gelu(cached_pre_1)  # [t n h1] x_2(q, n) = gelu(z_1(q, n))
    # [t n v] z_2(q, n) = W_2 x_2(q, n)
    cached_pre_2 = torch.einsum("...abc,...bcd->...abd", cached_hidden_1, x.cached_2)
    cached_pre_2_sum = cached_pre_2.sum(-1)  # [t n] sum(z_2(q, n))
    cached_centred = cached_pre_2 - cached_pre_2_sum[..., :, :, None] / 64.0  # [t n v] z_2(q, n) - mean(z_2(q, n))
    cached_squares = (cached_centred * cached_centred).sum(-1)  # [t n] 64 var(z_2(q, n))
    cached_norm_scale = torch.sqrt(cached_squares / 64.0 + 1e-05)  # [t n] sqrt(var(z_2(q, n)) + 1e-5)
    cached_normed = cached_centred / cached_norm_scale[..., :, :, None]  # [t n v] LN(z_2(q, n))
    o_cached = x.q[..., :, None, :] + cached_normed  # [t n v] o_n = M_n(q)
    out.y = x.o + o_cached.sum(-2)  # [t v]
    return vars(out)


def _pile_vjp(**x):
    """The derivative of: the online read-outs and those of all cached states, added up."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    n_n = x.cached_2.shape[-3]
    cached_pre_1 = torch.einsum("...ab,...cbd->...acd", x.q, x.cached_1)  # [t n h1] z_1(q, n) = W_1 q
    cached_hidden_1 = F.gelu(cached_pre_1)  # [t n h1] x_2(q, n) = gelu(z_1(q, n))
    # [t n v] z_2(q, n) = W_2 x_2(q, n)
    cached_pre_2 = torch.einsum("...abc,...bcd->...abd", cached_hidden_1, x.cached_2)
    cached_pre_2_sum = cached_pre_2.sum(-1)  # [t n] sum(z_2(q, n))
    cached_centred = cached_pre_2 - cached_pre_2_sum[..., :, :, None] / 64.0  # [t n v] z_2(q, n) - mean(z_2(q, n))
    cached_squares = (cached_centred * cached_centred).sum(-1)  # [t n] 64 var(z_2(q, n))
    cached_norm_scale = torch.sqrt(cached_squares / 64.0 + 1e-05)  # [t n] sqrt(var(z_2(q, n)) + 1e-5)
    d_cached_centred_by_cached_normed = x.d_y[..., :, None, :] / cached_norm_scale[..., :, :, None]  # [t n v]
    d_y_dot_cached_centred = (x.d_y[..., :, None, :] * cached_centred).sum(-1)  # [t n]
    d_cached_squares = -(d_y_dot_cached_centred / (128.0 * (cached_squares / 64.0 + 1e-05) ** 1.5))  # [t n]
    d_cached_centred = d_cached_centred_by_cached_normed + 2.0 * d_cached_squares[..., :, :, None] * cached_centred
    d_cached_pre_2_sum = -(d_cached_centred.sum(-1) / 64.0)  # [t n]
    d_cached_pre_2 = d_cached_centred + d_cached_pre_2_sum[..., :, :, None]  # [t n v]
    out.d_cached_2 = torch.einsum("...abc,...abd->...bcd", cached_hidden_1, d_cached_pre_2)  # [n h1 v]
    d_cached_hidden_1 = torch.einsum("...abc,...bdc->...abd", d_cached_pre_2, x.cached_2)  # [t n h1]
    d_cached_pre_1 = _gelu_vjp(d_cached_hidden_1, cached_pre_1)  # [t n h1]
    out.d_cached_1 = torch.einsum("...ab,...acd->...cbd", x.q, d_cached_pre_1)  # [n k h1]
    # d_q = dL/dq
    d_o_cached = _spread(x.d_y[..., :, None, :], -1, n_n, -1)  # [t n v] dL/do_n
    d_q_by_o_cached = d_o_cached.sum(-2)  # [t v]
    out.d_q = torch.einsum("...abc,...bdc->...ad", d_cached_pre_1, x.cached_1) + d_q_by_o_cached  # [t k]
    out.d_o = x.d_y
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
    return 0 if length > TOKENS and length % TOKENS else min(length, TOKENS)


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
    """A panel's inputs by name and what its chunks add to the state."""
    size = (panel.j - panel.i, -1, panel.chunk)
    x = {name: _rows(t, panel, dtype).unflatten(2, size) for name, t in zip(INPUTS, tensors, strict=False)}
    return x | _writes(**x)


def _nothing(tensors, lanes, dtype):
    """A state of zeros."""
    q = tensors[INPUTS.index("q")]
    shapes = {"S_1": (64, 256), "S_2": (256, 64), "M_1": (64, 256), "M_2": (256, 64)}
    return {name: q.new_zeros(q.shape[0], q.shape[2], lanes, *shape, dtype=dtype) for name, shape in shapes.items()}


def _begun(given):
    """The state that a pass goes on from, by the names of its parts; empty where it has none."""
    return dict(zip(PARTS, given, strict=False)) if given else {}


def _fresh(tensors, lanes, dtype):
    """The state before a segment's first token: M at its initial weights, the rest 0."""
    state = _nothing(tensors, lanes, dtype)
    for name, weight in zip(("M_1", "M_2"), tensors[len(INPUTS) :], strict=True):
        state[name] = weight.mT.to(dtype)[None, :, None].expand_as(state[name])
    return state


def _by_chunk(values, dimensions, batch):
    """Each chunk's part of the values, in order; `dimensions` has their names by how many follow those of the batch."""
    parts = {}
    for n, names in dimensions.items():
        for name in names.split():
            parts[name] = values[name].expand(*batch, *values[name].shape[values[name].dim() - n :]).unbind(3)
    return [{name: part[c] for name, part in parts.items()} for c in range(batch[3])]


def _walk(x, state, segments):
    """The states before the chunks of a panel, stacked; those at the ends of its segments; and the one after it.

    `segments` is how many the chunks go through one after another. Beside the first lie the chunks' ROWS_READ.
    """
    batch, before, ends = x["q"].shape[:4], [], []
    for c, chunk in enumerate(_by_chunk(x, CARRY, batch)):
        out = _carry(**chunk, **state)
        before.append({**state, **{name: out[name] for name in ROWS_READ.split()}})
        state = {name: out[f"{name}_next"] for name in state}
        if (c + 1) * segments % batch[3] == 0:
            ends.append(state)
    return {name: torch.stack([s[name] for s in before], 3) for name in before[0]}, ends, state


def _walk_back(x, d_state, d_ends, segments):
    """The reverse of `_walk`: cotangents of the states after the chunks, stacked, and of the one before the panel.

    `d_ends` has what read-outs owe to the states at the ends of segments; it is None where the panel ends inside one.
    Beside the first lie the chunks' ROWS_OWED.
    """
    batch, after = x["q"].shape[:4], []
    chunks = _by_chunk(x, CARRY_VJP, batch)
    for c in reversed(range(len(chunks))):
        if d_ends is not None and (c + 1) * segments % batch[3] == 0:
            end = c * segments // batch[3] * batch[2]
            for name in ("M_1", "M_2"):
                d_state[name] = d_state[name] + d_ends[name][:, :, end : end + batch[2]]
        d_state = {f"d_{name}_next": t for name, t in d_state.items()}
        out = _carry_vjp(**chunks[c], **d_state)
        after.append({**d_state, **{name: out[name] for name in ROWS_OWED.split()}})
        d_state = {name: out[f"d_{name}"] for name in ("S_1", "S_2", "M_1", "M_2")}
    return {name: torch.stack([s[name] for s in reversed(after)], 3) for name in after[0]}, d_state


SCRATCH = 2097152  # numbers in the largest value of a read-out, about
WIDTH = 256  # the longest axis of the parameters


def _blocks(panel, heads, width):
    """A panel's rows in blocks (s, first, last) that read the same s cached segments with bounded scratch."""
    for s in range(max(panel.i, 1), panel.j):
        rows, end = max(SCRATCH // (heads * s * width), 32), (s - panel.i + 1) * panel.length
        for a in range(end - panel.length, end, rows):
            yield s, a, min(a + rows, end)


def _until(bank, s):
    """The states of the first s segments."""
    return {name: t[:, :, :s] for name, t in bank.items()}


def _blend_forward(x, bank, panel):
    """y of a panel's rows, each reading every state before its segment."""
    y = x["o"].clone()
    for s, a, b in _blocks(panel, y.shape[0] * y.shape[1], WIDTH):
        rows = {name: t[:, :, a:b] for name, t in x.items()}
        y[:, :, a:b] = _pile(**rows, **_until(bank, s))["y"]
    return y


def _blend_backward(x, bank, d_bank, panel):
    """The reverse of `_blend_forward`: adds to d_bank, and returns the gradients of the rows' inputs."""
    d = {name: torch.zeros_like(x[name]) for name in ("q",)} | {"o": x["d_y"].clone()}
    for s, a, b in _blocks(panel, x["o"].shape[0] * x["o"].shape[1], WIDTH):
        rows = {name: t[:, :, a:b] for name, t in x.items()}
        out = _pile_vjp(**rows, **_until(bank, s))
        for name, t in d.items():
            t[:, :, a:b] = out[f"d_{name}"]
        for name, t in d_bank.items():
            t[:, :, :s] += out[f"d_{name}"]
    return d


_read_forward, _read_backward = _blend_forward, _blend_backward


def _copied(T, offset, before):
    """How many cached states from before a pass are copied in front of its own: none where it has one segment."""
    return before if before and _segment_count(T + offset) > 1 else 0


def _rooms_torch(B, T, H, offset=0, copied=0):
    """The shapes of what the forward pass saves in a buffer, by name; all sizes may be symbolic."""
    N = _segment_count(T + offset)
    P = _inner(T + offset, B * H)
    return {
        "o": (B, H, T, 64),  # online read-outs
        "kept_M_1": (B, H, copied + N, 64, 256),  # M_1 at the ends of segments
        "kept_M_2": (B, H, copied + N, 256, 64),  # M_2 at the ends of segments
        "rows_q_pre_1": (B, H, T, 256),  # q_pre_1 of every chunk
        "rows_q_hidden_1_M_2": (B, H, T, 64),  # q_hidden_1_M_2 of every chunk
        "rows_q_hidden_1_S_2": (B, H, T, 64),  # q_hidden_1_S_2 of every chunk
        "inner_S_1": (B, H, P, 64, 256),  # S_1 before panels inside segments
        "inner_S_2": (B, H, P, 256, 64),  # S_2 before panels inside segments
        "inner_M_1": (B, H, P, 64, 256),  # M_1 before panels inside segments
        "inner_M_2": (B, H, P, 256, 64),  # M_2 before panels inside segments
    }


def _saved_torch(tensors, place=()):
    """Empty tensors for what the forward pass saves: a buffer."""
    q, (B, T, H, _) = tensors[INPUTS.index("q")], tensors[INPUTS.index("q")].shape
    offset, before, _ = place or WHOLE_SEQUENCE
    copied = _copied(T, offset, before)
    buffer = _buffer(_rooms_torch(B, T, H, offset, copied), q, _compute_type(tensors))
    return [buffer]


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
    (
        o,
        kept_M_1,
        kept_M_2,
        rows_q_pre_1,
        rows_q_hidden_1_M_2,
        rows_q_hidden_1_S_2,
        inner_S_1,
        inner_S_2,
        inner_M_1,
        inner_M_2,
    ) = _parted(saved[0], _rooms_torch(B, T, H, offset, copied))
    own = {"cached_1": kept_M_1, "cached_2": kept_M_2}
    bank = own if copied or not before else dict(zip(own, cached, strict=True))
    if copied:
        for kept, t in zip(own.values(), cached, strict=True):
            kept[:, :, :copied] = t
    at = 0
    for run in _panels(T, B * H, offset, before):
        state, given = _begun(given) or _fresh(tensors, run[0].j - run[0].i, dtype), ()
        for panel in run:
            i, j = panel.i, panel.j
            if panel is not run[0]:
                inner_S_1[:, :, at : at + 1] = state["S_1"]
                inner_S_2[:, :, at : at + 1] = state["S_2"]
                inner_M_1[:, :, at : at + 1] = state["M_1"]
                inner_M_2[:, :, at : at + 1] = state["M_2"]
                at += 1
            x = _load(tensors, panel, dtype)
            earlier, ends, state = _walk(x, state, 1)
            if ends:
                kept_M_1[:, :, i - shift : j - shift] = torch.cat([end["M_1"] for end in ends], 2)
                kept_M_2[:, :, i - shift : j - shift] = torch.cat([end["M_2"] for end in ends], 2)
            x |= earlier
            x |= _read_online(**x)
            rows_q_pre_1[:, :, panel.first : panel.last] = x["q_pre_1"].flatten(2, 4)
            rows_q_hidden_1_M_2[:, :, panel.first : panel.last] = x["q_hidden_1_M_2"].flatten(2, 4)
            rows_q_hidden_1_S_2[:, :, panel.first : panel.last] = x["q_hidden_1_S_2"].flatten(2, 4)
            rows = {name: x[name].flatten(2, 4) for name in ("q", "o")}
            o[:, :, panel.first : panel.last] = rows["o"]
            if skip < panel.last:
                read = panel.after(skip)
                rows = {name: t[:, :, read.first - panel.first :] for name, t in rows.items()}
                y[:, read.first : read.last] = _read_forward(rows, bank, read).transpose(1, 2)
    for inner in (
        inner_S_1,
        inner_S_2,
        inner_M_1,
        inner_M_2,
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
    (
        o,
        kept_M_1,
        kept_M_2,
        rows_q_pre_1,
        rows_q_hidden_1_M_2,
        rows_q_hidden_1_S_2,
        inner_S_1,
        inner_S_2,
        inner_M_1,
        inner_M_2,
    ) = _parted(saved[0], _rooms_torch(B, T, H, offset, copied))
    d = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors]
    d = d[: len(INPUTS)]
    d_theta = [torch.zeros_like(t, dtype=dtype) for t in tensors[len(INPUTS) :]]
    own = {"cached_1": kept_M_1, "cached_2": kept_M_2}
    bank = own if copied or not before else dict(zip(own, cached, strict=True))
    d_bank = {name: t.new_zeros(B, H, max(t.shape[2], before + 1), *t.shape[3:]) for name, t in own.items()}
    walk = _panels(T, B * H, offset, before)
    d_slots = dict(zip(PARTS, d_after, strict=False))
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
            states.append(
                {
                    "S_1": inner_S_1[:, :, p : p + 1],
                    "S_2": inner_S_2[:, :, p : p + 1],
                    "M_1": inner_M_1[:, :, p : p + 1],
                    "M_2": inner_M_2[:, :, p : p + 1],
                }
            )
        for panel in reversed(run):
            x = _load(tensors, panel, dtype)
            d_rows = _rows(d_y, panel, dtype)
            rows = {name: x[name].flatten(2, 4) for name in ("q",)}
            rows |= {"o": o[:, :, panel.first : panel.last], "d_y": d_rows}
            owed = _read_backward(rows, bank, d_bank, panel)
            owed = {name: t.unflatten(2, x["q"].shape[2:5]) for name, t in owed.items()}
            x |= {"d_o": owed.pop("o")}
            x |= _walk(x, states.pop(), 1)[0]
            d_ends = {"M_1": d_bank["cached_1"][:, :, i:j], "M_2": d_bank["cached_2"][:, :, i:j]}
            x["q_pre_1"] = rows_q_pre_1[:, :, panel.first : panel.last].unflatten(2, x["q"].shape[2:5])
            x["q_hidden_1_M_2"] = rows_q_hidden_1_M_2[:, :, panel.first : panel.last].unflatten(2, x["q"].shape[2:5])
            x["q_hidden_1_S_2"] = rows_q_hidden_1_S_2[:, :, panel.first : panel.last].unflatten(2, x["q"].shape[2:5])
            x |= _pulls(**x)
            after, d_state = _walk_back(x, d_state, d_ends if panel is run[-1] else None, 1)
            out = _inputs_vjp(**x, **after)
            for name, t in owed.items():
                out[f"d_{name}"] = out[f"d_{name}"] + t
            for name, t in zip(INPUTS, d, strict=True):
                t[:, panel.first : panel.last] = out[f"d_{name}"].expand_as(x[name]).flatten(2, 4).transpose(1, 2)
        for name, g in zip(("M_1", "M_2"), d_theta if not begun else (), strict=False):
            g += d_state[name].sum((0, 2)).mT
    d_before = []
    if given:
        d_before += [d_state[name] for name in PARTS]
    if before:
        d_before += [t[:, :, :before].clone() for t in d_bank.values()]
    d += d_theta + d_before
    return [g.to(dtype) for g, dtype in zip(d, types, strict=True)]


# ---------------------------------------------------------------------------------------------------------------------
# Triton path. B batch, T tokens, H heads, K and V the head's sizes; BT, BK, BV the tile of each; i_ an index,
# o_ offsets of a tile, m_ its mask, b_ a tile. Tensors are (B, T, H, ·).
#
# A state too large for registers lies in a buffer of STATE numbers, of which the first MEMORY are the memory's
# parameters, layer after layer, (in, out) each:
#     M_1 (64, 256) at 0
#     M_2 (256, 64) at 16384
#     S_1 (64, 256) at 32768
#     S_2 (256, 64) at 49152
# A chunk step reads one such buffer and writes another, a tile of BF hidden units at a time, in as many loops over F
# units as sums over them lie one behind another. ROWS numbers hold rows that pass between these loops.
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
def _tile_runs(b_a):
    """For products over runs of at most 128 tokens: running sums of log2|a|, integer exponents and logs of mantissas
    apart so that differences stay exact; then the summands themselves.

    An exponent shares its word with counts of zeros (bits 8 to 15) and of negative signs (0 to 7). Subnormals count
    as zeros.
    """
    bits = tl.abs(b_a).to(tl.int32, bitcast=True)
    zero = bits < 0x00800000
    bits = tl.where(zero, 0x3F800000, bits)
    mantissa = ((bits & 0x007FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    large = mantissa > 1.4142135
    e = (bits >> 23) - 127 + large.to(tl.int32)
    e = (e << 16) + (zero.to(tl.int32) << 8) + (b_a < 0).to(tl.int32)
    f = tl.log2(tl.where(large, mantissa * 0.5, mantissa))
    return tl.cumsum(e, 0), tl.cumsum(f, 0), e, f


@_jit
def _tile_product(e, f):
    """The product that a difference of running sums stands for: 0 where a zero lies between, with the signs between."""
    size = tl.exp2((e >> 16).to(tl.float32) + f).to(tl.int32, bitcast=True)
    return tl.where((e & 0xFF00) == 0, size ^ (e << 31), 0).to(tl.float32, bitcast=True)


@_jit
def _block(blocks, i_n):
    """A block: its tokens start..end; its segment, and that one's tokens; the sequence's first segment; the border."""
    row = blocks + 8 * i_n
    start, end, i_s, segment_start = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    segment_end, first, border = tl.load(row + 4), tl.load(row + 5), tl.load(row + 6)
    return start, end, i_s, segment_start, segment_end, first, border


@_jit
def _chunk_step(steps, i_n):
    """A step: its tokens; its segment, and that one's; the sequence's first segment; if a gradient chunk begins."""
    row = steps + 8 * i_n
    start, end, i_s, segment_start = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    segment_end, first, fresh = tl.load(row + 4), tl.load(row + 5), tl.load(row + 6)
    return start, end, i_s, segment_start, segment_end, first, fresh.to(tl.float32)


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
def _copy(to, source, N: tl.constexpr):
    """N numbers from one buffer to another."""
    for i in range(tl.cdiv(N, 1024)):
        o_n = i * 1024 + tl.arange(0, 1024)
        tl.store(to + o_n, tl.load(source + o_n, mask=o_n < N), mask=o_n < N)


@_jit
def _fill(to, N: tl.constexpr):
    """N zeros."""
    for i in range(tl.cdiv(N, 1024)):
        o_n = i * 1024 + tl.arange(0, 1024)
        tl.store(to + o_n, tl.zeros([1024], tl.float32), mask=o_n < N)


@_jit
def _add(to, source, N: tl.constexpr):
    """Adds N numbers to those in another buffer."""
    for i in range(tl.cdiv(N, 1024)):
        o_n = i * 1024 + tl.arange(0, 1024)
        tl.store(to + o_n, tl.load(to + o_n, mask=o_n < N) + tl.load(source + o_n, mask=o_n < N), mask=o_n < N)


@_jit
def _pow(x, y):
    return tl.where(x == 0, 0.0, tl.exp2(y * tl.log2(x)))


@_jit
def walk_kernel(
    q,
    k,
    v,
    beta,
    eta,
    alpha,
    o,
    cached,
    theta,
    work,
    begin,
    after,
    steps,
    chains,
    T,
    H,
    BH,
    n_segments,
    n_entries,
    K: tl.constexpr,
    V: tl.constexpr,
    F: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    BF: tl.constexpr,
    STATE: tl.constexpr,
    MEMORY: tl.constexpr,
    ROWS: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
):
    """The online read-outs, and the state at the end of every segment.

    One program walks a chain of chunk steps, then the next. The state goes to and fro between two buffers, or stays in
    registers, as s_, with what follows it as n_.
    """
    one = tl.minimum(T, 1)
    n_tiles = tl.cdiv(F, BF) * one
    o_t, o_k, o_v = tl.arange(0, BT), tl.arange(0, BK), tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    p_work = work + tl.program_id(0).to(tl.int64) * (2 * STATE + ROWS)
    p_rows = p_work + 2 * STATE
    for i_entry in range(tl.program_id(0), n_entries, tl.num_programs(0)):
        i_c, i_bh = i_entry // BH, i_entry % BH
        i_b, i_h = i_bh // H, i_bh % H
        i_first, i_last = _chain(chains, i_c)
        _copy(p_work, theta + i_h * MEMORY, MEMORY)
        _fill(p_work + MEMORY, STATE - MEMORY)
        tl.debug_barrier()
        if begin is not None:
            if i_c == 0:
                _copy(p_work, begin + i_bh.to(tl.int64) * STATE, STATE)
                tl.debug_barrier()
        for i_n in range(i_first, i_last):
            i_t, end, i_s, _, segment_end, _, _ = _chunk_step(steps, i_n)
            m_t = i_t + o_t < end
            i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
            p_state, p_next = p_work + (i_n - i_first) % 2 * STATE, p_work + (i_n - i_first + 1) % 2 * STATE
            p_pre_1 = p_rows
            p_hidden_1_unscaled = p_rows + BT * F
            p_error_1 = p_rows + 2 * BT * F
            p_hidden_1 = p_rows + 3 * BT * F
            p_C_q_k = p_rows + 4 * BT * F
            p_error_2 = p_rows + 4 * BT * F + BT * BT
            p_S_keeps = p_rows + 4 * BT * F + BT * BT + BT * BV
            p_rate = p_rows + 4 * BT * F + BT * BT + BT * BV + BT
            p_M_keeps = p_rows + 4 * BT * F + BT * BT + BT * BV + 2 * BT
            p_M_takes_S = p_rows + 4 * BT * F + BT * BT + BT * BV + 3 * BT
            p_C_S_before_tj = p_rows + 4 * BT * F + BT * BT + BT * BV + 4 * BT
            p_S_keeps_before_t = p_rows + 4 * BT * F + 2 * BT * BT + BT * BV + 4 * BT
            p_C_M_tj = p_rows + 4 * BT * F + 2 * BT * BT + BT * BV + 5 * BT
            p_R_M_S_t = p_rows + 4 * BT * F + 3 * BT * BT + BT * BV + 5 * BT
            p_M_keeps_run_t = p_rows + 4 * BT * F + 3 * BT * BT + BT * BV + 6 * BT
            p_S_2_writes = p_rows + 4 * BT * F + 3 * BT * BT + BT * BV + 7 * BT
            p_M_2_writes = p_rows + 4 * BT * F + 3 * BT * BT + 2 * BT * BV + 7 * BT
            b_hidden_1_unscaled_M_2 = tl.zeros([BT, BV], tl.float32)
            tl.debug_barrier()
            for i_h1 in range(n_tiles):
                o_h1 = i_h1 * BF + tl.arange(0, BF)
                m_h1 = o_h1 < F
                tl.debug_barrier()
                b_k = tl.load(
                    k + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
                ).to(IN)
                b_M_1 = tl.load(
                    p_state + (o_k[:, None] * F + o_h1[None, :]), mask=m_k[:, None] & m_h1[None, :], other=0.0
                )
                b_pre_1 = _tile_dot(b_k.to(tl.float32), b_M_1, one, PREC)
                tl.store(p_pre_1 + (o_t[:, None] * F + o_h1[None, :]), b_pre_1, mask=m_h1[None, :])
                b_hidden_1_unscaled = b_pre_1 * (tl.erf(b_pre_1 * 1.4142135623730951 / 2.0) + 1.0)
                tl.store(
                    p_hidden_1_unscaled + (o_t[:, None] * F + o_h1[None, :]), b_hidden_1_unscaled, mask=m_h1[None, :]
                )
                b_M_2 = tl.load(
                    p_state + K * F + (o_h1[:, None] * V + o_v[None, :]), mask=m_h1[:, None] & m_v[None, :], other=0.0
                )
                b_hidden_1_unscaled_M_2 = _tile_dot_add(b_hidden_1_unscaled_M_2, b_hidden_1_unscaled, b_M_2, one, PREC)
            b_valid = m_t.to(tl.float32)
            b_alpha = tl.load(alpha + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
            b_M_keeps = tl.where(b_valid > 0, b_alpha, 1.0)
            tl.store(p_M_keeps + o_t, b_M_keeps)
            b_M_keeps_e, b_M_keeps_f, b_M_keeps_e1, b_M_keeps_f1 = _tile_runs(b_M_keeps)
            b_M_keeps_run_tj = tl.where(
                o_t[:, None] >= o_t[None, :],
                _tile_product(b_M_keeps_e[:, None] - b_M_keeps_e[None, :], b_M_keeps_f[:, None] - b_M_keeps_f[None, :]),
                0.0,
            )
            b_eta = tl.load(eta + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
            b_minus_eta = -b_eta
            b_rate = tl.where(b_valid > 0, b_minus_eta, 0.0)
            tl.store(p_rate + o_t, b_rate)
            b_M_keeps_run_tj_rate = b_M_keeps_run_tj * b_rate[None, :]
            b_beta = tl.load(beta + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
            b_M_takes_S = tl.where(b_valid > 0, b_beta, 0.0)
            tl.store(p_M_takes_S + o_t, b_M_takes_S)
            b_M_of_S_ts = b_M_keeps_run_tj * b_M_takes_S[None, :]
            b_S_keeps = tl.where(b_valid > 0, b_beta, 1.0)
            tl.store(p_S_keeps + o_t, b_S_keeps)
            b_S_keeps_e, b_S_keeps_f, b_S_keeps_e1, b_S_keeps_f1 = _tile_runs(b_S_keeps)
            b_S_keeps_before_tj = tl.where(
                o_t[:, None] > o_t[None, :],
                _tile_product(
                    (b_S_keeps_e - b_S_keeps_e1)[:, None] - b_S_keeps_e[None, :],
                    (b_S_keeps_f - b_S_keeps_f1)[:, None] - b_S_keeps_f[None, :],
                ),
                0.0,
            )
            b_C_S_before_tj = b_S_keeps_before_tj * b_rate[None, :]
            tl.store(p_C_S_before_tj + (o_t[:, None] * BT + o_t[None, :]), b_C_S_before_tj)
            b_C_M_tj = _tile_dot_add(b_M_keeps_run_tj_rate, b_M_of_S_ts, b_C_S_before_tj, one, PREC)
            tl.store(p_C_M_tj + (o_t[:, None] * BT + o_t[None, :]), b_C_M_tj)
            b_q = tl.load(
                q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
            ).to(IN)
            b_k = tl.load(
                k + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
            ).to(IN)
            b_q_k = _tile_dot(b_q, tl.trans(b_k), one, PREC)
            b_C_q_k = b_C_M_tj * b_q_k
            tl.store(p_C_q_k + (o_t[:, None] * BT + o_t[None, :]), b_C_q_k)
            b_pre_2 = b_hidden_1_unscaled_M_2 / 2.0
            b_hidden_1_unscaled_M_2_sum = tl.sum(b_hidden_1_unscaled_M_2, 1)
            b_pre_2_sum = b_hidden_1_unscaled_M_2_sum / 2.0
            b_centred = b_pre_2 - b_pre_2_sum[:, None] / 64.0
            b_centred_squared = b_centred * b_centred
            b_squares = tl.sum(b_centred_squared, 1)
            b_normed = b_centred / tl.sqrt_rn(b_squares[:, None] / 64.0 + 1e-05)
            b_prediction = b_k.to(tl.float32) + b_normed
            b_v = tl.load(
                v + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]), mask=m_t[:, None] & m_v[None, :], other=0.0
            ).to(IN)
            b_error = 2.0 * b_prediction - 2.0 * b_v.to(tl.float32)
            b_error_centred_by_normed = b_error / tl.sqrt_rn(b_squares[:, None] / 64.0 + 1e-05)
            b_of_squares = 1.0 / _pow((b_squares / 64.0 + 1e-05), 1.5)
            b_error_centred_2 = b_error * b_centred
            b_error_dot_centred = tl.sum(b_error_centred_2, 1)
            b_error_squares = -(b_of_squares * b_error_dot_centred / 128.0)
            b_error_centred_by_squares = 2.0 * b_error_squares[:, None] * b_centred
            b_error_centred = b_error_centred_by_normed + b_error_centred_by_squares
            b_error_centred_sum = tl.sum(b_error_centred, 1)
            b_error_pre_2_sum = -(b_error_centred_sum / 64.0)
            b_error_2 = b_error_centred + b_error_pre_2_sum[:, None]
            tl.store(p_error_2 + (o_t[:, None] * BV + o_v[None, :]), b_error_2)
            b_S_keeps_before_t = _tile_product((b_S_keeps_e - b_S_keeps_e1), (b_S_keeps_f - b_S_keeps_f1))
            tl.store(p_S_keeps_before_t + o_t, b_S_keeps_before_t)
            b_R_M_S_t = tl.sum(b_M_of_S_ts * b_S_keeps_before_t[None, :], 1)
            tl.store(p_R_M_S_t + o_t, b_R_M_S_t)
            b_M_keeps_run_t = _tile_product(b_M_keeps_e, b_M_keeps_f)
            tl.store(p_M_keeps_run_t + o_t, b_M_keeps_run_t)
            b_q_hidden_1_unscaled_hidden_1 = tl.zeros([BT, BT], tl.float32)
            b_q_hidden_1_unscaled_S_2 = tl.zeros([BT, BV], tl.float32)
            b_q_hidden_1_unscaled_M_2 = tl.zeros([BT, BV], tl.float32)
            tl.debug_barrier()
            for i_h1 in range(n_tiles):
                o_h1 = i_h1 * BF + tl.arange(0, BF)
                m_h1 = o_h1 < F
                tl.debug_barrier()
                b_error_2 = tl.load(p_error_2 + (o_t[:, None] * BV + o_v[None, :]))
                b_M_2 = tl.load(
                    p_state + K * F + (o_h1[:, None] * V + o_v[None, :]), mask=m_h1[:, None] & m_v[None, :], other=0.0
                )
                b_error_hidden_1 = _tile_dot(b_error_2, tl.trans(b_M_2), one, PREC)
                b_pre_1 = tl.load(p_pre_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0)
                b_error_1 = b_error_hidden_1 * (
                    b_pre_1 * 1.4142135623730951 * tl.exp(-(b_pre_1 * b_pre_1 / 2.0)) / 3.544907701811032
                    + tl.erf(b_pre_1 * 1.4142135623730951 / 2.0) / 2.0
                    + 0.5
                )
                tl.store(p_error_1 + (o_t[:, None] * F + o_h1[None, :]), b_error_1, mask=m_h1[None, :])
                b_hidden_1 = b_pre_1 * (tl.erf(b_pre_1 * 1.4142135623730951 / 2.0) + 1.0) / 2.0
                tl.store(p_hidden_1 + (o_t[:, None] * F + o_h1[None, :]), b_hidden_1, mask=m_h1[None, :])
                b_C_q_k = tl.load(p_C_q_k + (o_t[:, None] * BT + o_t[None, :]))
                b_q = tl.load(
                    q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
                ).to(IN)
                b_S_1 = tl.load(
                    p_state + K * F + F * V + (o_k[:, None] * F + o_h1[None, :]),
                    mask=m_k[:, None] & m_h1[None, :],
                    other=0.0,
                )
                b_q_S_1 = _tile_dot(b_q.to(tl.float32), b_S_1, one, PREC)
                b_R_q_S_1 = b_R_M_S_t[:, None] * b_q_S_1
                b_M_1 = tl.load(
                    p_state + (o_k[:, None] * F + o_h1[None, :]), mask=m_k[:, None] & m_h1[None, :], other=0.0
                )
                b_q_M_1 = _tile_dot(b_q.to(tl.float32), b_M_1, one, PREC)
                b_R_q_M_1 = b_M_keeps_run_t[:, None] * b_q_M_1
                b_R_q_S_1_R_q_M_1 = b_R_q_S_1 + b_R_q_M_1
                b_q_pre_1 = _tile_dot_add(b_R_q_S_1_R_q_M_1, b_C_q_k, b_error_1, one, PREC)
                b_q_hidden_1_unscaled = b_q_pre_1 * (tl.erf(b_q_pre_1 * 1.4142135623730951 / 2.0) + 1.0)
                b_q_hidden_1_unscaled_hidden_1 = _tile_dot_add(
                    b_q_hidden_1_unscaled_hidden_1, b_q_hidden_1_unscaled, tl.trans(b_hidden_1), one, PREC
                )
                b_S_2 = tl.load(
                    p_state + 2 * K * F + F * V + (o_h1[:, None] * V + o_v[None, :]),
                    mask=m_h1[:, None] & m_v[None, :],
                    other=0.0,
                )
                b_q_hidden_1_unscaled_S_2 = _tile_dot_add(
                    b_q_hidden_1_unscaled_S_2, b_q_hidden_1_unscaled, b_S_2, one, PREC
                )
                b_q_hidden_1_unscaled_M_2 = _tile_dot_add(
                    b_q_hidden_1_unscaled_M_2, b_q_hidden_1_unscaled, b_M_2, one, PREC
                )
            b_S_keeps = tl.load(p_S_keeps + o_t)
            b_S_keeps_e, b_S_keeps_f, b_S_keeps_e1, b_S_keeps_f1 = _tile_runs(b_S_keeps)
            b_S_keeps_run_all = _tile_product(tl.sum(b_S_keeps_e1, 0), tl.sum(b_S_keeps_f1, 0))
            b_S_keeps_run_j = _tile_product(
                tl.sum(b_S_keeps_e1, 0) - b_S_keeps_e, tl.sum(b_S_keeps_f1, 0) - b_S_keeps_f
            )
            b_rate = tl.load(p_rate + o_t)
            b_C_S_j = b_S_keeps_run_j * b_rate
            b_error_2 = tl.load(p_error_2 + (o_t[:, None] * BV + o_v[None, :]))
            b_S_2_writes = b_C_S_j[:, None] * b_error_2
            tl.store(p_S_2_writes + (o_t[:, None] * BV + o_v[None, :]), b_S_2_writes)
            b_M_keeps = tl.load(p_M_keeps + o_t)
            b_M_keeps_e, b_M_keeps_f, b_M_keeps_e1, b_M_keeps_f1 = _tile_runs(b_M_keeps)
            b_M_keeps_run_j = _tile_product(
                tl.sum(b_M_keeps_e1, 0) - b_M_keeps_e, tl.sum(b_M_keeps_f1, 0) - b_M_keeps_f
            )
            b_M_keeps_run_j_rate = b_M_keeps_run_j * b_rate
            b_M_takes_S = tl.load(p_M_takes_S + o_t)
            b_M_of_S_s = b_M_keeps_run_j * b_M_takes_S
            b_C_S_before_tj = tl.load(p_C_S_before_tj + (o_t[:, None] * BT + o_t[None, :]))
            b_M_of_S_s_C_S_before_tj = tl.sum(b_M_of_S_s[:, None] * b_C_S_before_tj, 0)
            b_C_M_j = b_M_keeps_run_j_rate + b_M_of_S_s_C_S_before_tj
            b_S_keeps_before_t = tl.load(p_S_keeps_before_t + o_t)
            b_R_M_S = tl.sum(b_M_of_S_s * b_S_keeps_before_t, 0)
            b_M_keeps_run_all = _tile_product(tl.sum(b_M_keeps_e1, 0), tl.sum(b_M_keeps_f1, 0))
            b_M_2_writes = b_C_M_j[:, None] * b_error_2
            tl.store(p_M_2_writes + (o_t[:, None] * BV + o_v[None, :]), b_M_2_writes)
            b_q = tl.load(
                q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
            ).to(IN)
            b_C_M_tj = tl.load(p_C_M_tj + (o_t[:, None] * BT + o_t[None, :]))
            b_C_q_hidden_1_scores_unscaled = b_C_M_tj * b_q_hidden_1_unscaled_hidden_1
            b_q_pre_2_part = _tile_dot(b_C_q_hidden_1_scores_unscaled, b_error_2, one, PREC)
            b_q_pre_2_part_scaled = b_q_pre_2_part / 2.0
            b_R_M_S_t = tl.load(p_R_M_S_t + o_t)
            b_q_hidden_1_S_2 = b_q_hidden_1_unscaled_S_2 / 2.0
            b_R_q_hidden_1_S_2 = b_R_M_S_t[:, None] * b_q_hidden_1_S_2
            b_M_keeps_run_t = tl.load(p_M_keeps_run_t + o_t)
            b_q_hidden_1_M_2 = b_q_hidden_1_unscaled_M_2 / 2.0
            b_R_q_hidden_1_M_2 = b_M_keeps_run_t[:, None] * b_q_hidden_1_M_2
            b_q_pre_2_part_2 = b_R_q_hidden_1_S_2 + b_R_q_hidden_1_M_2
            b_q_pre_2 = b_q_pre_2_part_scaled + b_q_pre_2_part_2
            b_q_pre_2_sum = tl.sum(b_q_pre_2, 1)
            b_q_centred = b_q_pre_2 - b_q_pre_2_sum[:, None] / 64.0
            b_q_centred_squared = b_q_centred * b_q_centred
            b_q_squares = tl.sum(b_q_centred_squared, 1)
            b_q_normed = b_q_centred / tl.sqrt_rn(b_q_squares[:, None] / 64.0 + 1e-05)
            b_o = b_q.to(tl.float32) + b_q_normed
            tl.store(
                o + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]),
                (b_o).to(o.dtype.element_ty),
                mask=m_t[:, None] & m_v[None, :],
            )
            tl.debug_barrier()
            for i_h1 in range(n_tiles):
                o_h1 = i_h1 * BF + tl.arange(0, BF)
                m_h1 = o_h1 < F
                tl.debug_barrier()
                b_S_1 = tl.load(
                    p_state + K * F + F * V + (o_k[:, None] * F + o_h1[None, :]),
                    mask=m_k[:, None] & m_h1[None, :],
                    other=0.0,
                )
                b_S_keeps_run_all_S_1 = b_S_keeps_run_all * b_S_1
                b_k = tl.load(
                    k + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
                ).to(IN)
                b_error_1 = tl.load(p_error_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0)
                b_S_1_writes = b_C_S_j[:, None] * b_error_1
                b_S_1_next = _tile_dot_add(b_S_keeps_run_all_S_1, tl.trans(b_k.to(tl.float32)), b_S_1_writes, one, PREC)
                tl.store(
                    p_next + K * F + F * V + (o_k[:, None] * F + o_h1[None, :]),
                    b_S_1_next,
                    mask=m_k[:, None] & m_h1[None, :],
                )
                b_S_2 = tl.load(
                    p_state + 2 * K * F + F * V + (o_h1[:, None] * V + o_v[None, :]),
                    mask=m_h1[:, None] & m_v[None, :],
                    other=0.0,
                )
                b_S_keeps_run_all_S_2 = b_S_keeps_run_all * b_S_2
                b_hidden_1 = tl.load(p_hidden_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0)
                b_S_2_writes = tl.load(p_S_2_writes + (o_t[:, None] * BV + o_v[None, :]))
                b_S_2_next = _tile_dot_add(b_S_keeps_run_all_S_2, tl.trans(b_hidden_1), b_S_2_writes, one, PREC)
                tl.store(
                    p_next + 2 * K * F + F * V + (o_h1[:, None] * V + o_v[None, :]),
                    b_S_2_next,
                    mask=m_h1[:, None] & m_v[None, :],
                )
                b_M_1_writes = b_C_M_j[:, None] * b_error_1
                b_R_M_S_S_1 = b_R_M_S * b_S_1
                b_M_1 = tl.load(
                    p_state + (o_k[:, None] * F + o_h1[None, :]), mask=m_k[:, None] & m_h1[None, :], other=0.0
                )
                b_M_keeps_run_all_M_1 = b_M_keeps_run_all * b_M_1
                b_R_M_S_S_1_M_keeps_run_all_M_1 = b_R_M_S_S_1 + b_M_keeps_run_all_M_1
                b_M_1_next = _tile_dot_add(
                    b_R_M_S_S_1_M_keeps_run_all_M_1, tl.trans(b_k.to(tl.float32)), b_M_1_writes, one, PREC
                )
                tl.store(p_next + (o_k[:, None] * F + o_h1[None, :]), b_M_1_next, mask=m_k[:, None] & m_h1[None, :])
                b_M_2_writes = tl.load(p_M_2_writes + (o_t[:, None] * BV + o_v[None, :]))
                b_R_M_S_S_2 = b_R_M_S * b_S_2
                b_M_2 = tl.load(
                    p_state + K * F + (o_h1[:, None] * V + o_v[None, :]), mask=m_h1[:, None] & m_v[None, :], other=0.0
                )
                b_M_keeps_run_all_M_2 = b_M_keeps_run_all * b_M_2
                b_R_M_S_S_2_M_keeps_run_all_M_2 = b_R_M_S_S_2 + b_M_keeps_run_all_M_2
                b_M_2_next = _tile_dot_add(
                    b_R_M_S_S_2_M_keeps_run_all_M_2, tl.trans(b_hidden_1), b_M_2_writes, one, PREC
                )
                tl.store(
                    p_next + K * F + (o_h1[:, None] * V + o_v[None, :]), b_M_2_next, mask=m_h1[:, None] & m_v[None, :]
                )
            tl.debug_barrier()
            if after is not None:
                if end == T:
                    _copy(after + i_bh.to(tl.int64) * STATE, p_next, STATE)
            if end == segment_end:
                i_cached = i_bh.to(tl.int64) * n_segments + i_s
                _copy(cached + i_cached * MEMORY, p_next, MEMORY)
                tl.debug_barrier()


@_jit
def read_kernel(
    q,
    cached,
    o,
    y,
    work,
    blocks,
    T,
    H,
    BH,
    n_segments,
    n_entries,
    K: tl.constexpr,
    V: tl.constexpr,
    F: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    BF: tl.constexpr,
    STATE: tl.constexpr,
    MEMORY: tl.constexpr,
    ROWS: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
):
    """The read-outs y: online ones and those of cached states."""
    one = tl.minimum(T, 1)
    n_tiles = tl.cdiv(F, BF) * one
    o_t, o_k, o_v = tl.arange(0, BT), tl.arange(0, BK), tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    for i_entry in range(tl.program_id(0), n_entries, tl.num_programs(0)):
        i_n, i_bh = i_entry // BH, i_entry % BH
        i_b, i_h = i_bh // H, i_bh % H
        start, end, i_s, _, _, first, _ = _block(blocks, i_n)
        for i_t in range(start, end, BT):
            i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
            m_t = i_t + o_t < end
            o_y, m_y = o_t[:, None] * (H * V) + o_v[None, :], m_t[:, None] & m_v[None, :]
            b_y = tl.load(o + i_row * V + o_y, mask=m_y, other=0.0)
            for i_c in range(first, i_s):
                i_cached = i_bh.to(tl.int64) * n_segments + i_c
                b_cached_pre_2_part = tl.zeros([BT, BV], tl.float32)
                tl.debug_barrier()
                for i_h1 in range(n_tiles):
                    o_h1 = i_h1 * BF + tl.arange(0, BF)
                    m_h1 = o_h1 < F
                    tl.debug_barrier()
                    b_q = tl.load(
                        q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]),
                        mask=m_t[:, None] & m_k[None, :],
                        other=0.0,
                    ).to(IN)
                    b_cached_1 = tl.load(
                        cached + i_cached * MEMORY + (o_k[:, None] * F + o_h1[None, :]),
                        mask=m_k[:, None] & m_h1[None, :],
                        other=0.0,
                    )
                    b_cached_pre_1 = _tile_dot(b_q.to(tl.float32), b_cached_1, one, PREC)
                    b_cached_hidden_1_unscaled = b_cached_pre_1 * (
                        tl.erf(b_cached_pre_1 * 1.4142135623730951 / 2.0) + 1.0
                    )
                    b_cached_2 = tl.load(
                        cached + i_cached * MEMORY + K * F + (o_h1[:, None] * V + o_v[None, :]),
                        mask=m_h1[:, None] & m_v[None, :],
                        other=0.0,
                    )
                    b_cached_pre_2_part = _tile_dot_add(
                        b_cached_pre_2_part, b_cached_hidden_1_unscaled, b_cached_2, one, PREC
                    )
                b_q = tl.load(
                    q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
                ).to(IN)
                b_cached_pre_2 = b_cached_pre_2_part / 2.0
                b_cached_pre_2_part_sum = tl.sum(b_cached_pre_2_part, 1)
                b_cached_pre_2_sum = b_cached_pre_2_part_sum / 2.0
                b_cached_centred = b_cached_pre_2 - b_cached_pre_2_sum[:, None] / 64.0
                b_cached_centred_squared = b_cached_centred * b_cached_centred
                b_cached_squares = tl.sum(b_cached_centred_squared, 1)
                b_cached_normed = b_cached_centred / tl.sqrt_rn(b_cached_squares[:, None] / 64.0 + 1e-05)
                b_o_cached = b_q.to(tl.float32) + b_cached_normed
                b_y += b_o_cached
                tl.debug_barrier()
            tl.store(y + i_row * V + o_y, b_y.to(y.dtype.element_ty), mask=m_y)


@_jit
def rows_kernel(
    q,
    d_y,
    cached,
    d_q_rows,
    work,
    blocks,
    T,
    H,
    BH,
    n_segments,
    n_entries,
    K: tl.constexpr,
    V: tl.constexpr,
    F: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    BF: tl.constexpr,
    STATE: tl.constexpr,
    MEMORY: tl.constexpr,
    ROWS: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
):
    """What a block's rows owe to cached segments: gradients of their queries."""
    one = tl.minimum(T, 1)
    n_tiles = tl.cdiv(F, BF) * one
    o_t, o_k, o_v = tl.arange(0, BT), tl.arange(0, BK), tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    p_rows = work + tl.program_id(0).to(tl.int64) * ROWS
    for i_entry in range(tl.program_id(0), n_entries, tl.num_programs(0)):
        i_n, i_bh = i_entry // BH, i_entry % BH
        i_b, i_h = i_bh // H, i_bh % H
        start, end, i_s, _, _, first, _ = _block(blocks, i_n)
        for i_t in range(start, end, BT):
            i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
            m_t = i_t + o_t < end
            s_q = tl.zeros([BT, BK], tl.float32)
            for i_c in range(first, i_s):
                i_cached = i_bh.to(tl.int64) * n_segments + i_c
                p_cached_pre_1 = p_rows
                p_cached_hidden_1_unscaled = p_rows + BT * F
                p_d_cached_pre_2 = p_rows + 2 * BT * F
                b_cached_pre_2_part = tl.zeros([BT, BV], tl.float32)
                tl.debug_barrier()
                for i_h1 in range(n_tiles):
                    o_h1 = i_h1 * BF + tl.arange(0, BF)
                    m_h1 = o_h1 < F
                    tl.debug_barrier()
                    b_q = tl.load(
                        q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]),
                        mask=m_t[:, None] & m_k[None, :],
                        other=0.0,
                    ).to(IN)
                    b_cached_1 = tl.load(
                        cached + i_cached * MEMORY + (o_k[:, None] * F + o_h1[None, :]),
                        mask=m_k[:, None] & m_h1[None, :],
                        other=0.0,
                    )
                    b_cached_pre_1 = _tile_dot(b_q.to(tl.float32), b_cached_1, one, PREC)
                    tl.store(p_cached_pre_1 + (o_t[:, None] * F + o_h1[None, :]), b_cached_pre_1, mask=m_h1[None, :])
                    b_cached_hidden_1_unscaled = b_cached_pre_1 * (
                        tl.erf(b_cached_pre_1 * 1.4142135623730951 / 2.0) + 1.0
                    )
                    tl.store(
                        p_cached_hidden_1_unscaled + (o_t[:, None] * F + o_h1[None, :]),
                        b_cached_hidden_1_unscaled,
                        mask=m_h1[None, :],
                    )
                    b_cached_2 = tl.load(
                        cached + i_cached * MEMORY + K * F + (o_h1[:, None] * V + o_v[None, :]),
                        mask=m_h1[:, None] & m_v[None, :],
                        other=0.0,
                    )
                    b_cached_pre_2_part = _tile_dot_add(
                        b_cached_pre_2_part, b_cached_hidden_1_unscaled, b_cached_2, one, PREC
                    )
                b_d_y = tl.load(
                    d_y + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]),
                    mask=m_t[:, None] & m_v[None, :],
                    other=0.0,
                ).to(IN)
                b_cached_pre_2 = b_cached_pre_2_part / 2.0
                b_cached_pre_2_part_sum = tl.sum(b_cached_pre_2_part, 1)
                b_cached_pre_2_sum = b_cached_pre_2_part_sum / 2.0
                b_cached_centred = b_cached_pre_2 - b_cached_pre_2_sum[:, None] / 64.0
                b_cached_centred_squared = b_cached_centred * b_cached_centred
                b_cached_squares = tl.sum(b_cached_centred_squared, 1)
                b_d_cached_centred_by_cached_normed = b_d_y.to(tl.float32) / tl.sqrt_rn(
                    b_cached_squares[:, None] / 64.0 + 1e-05
                )
                b_of_cached_squares = 1.0 / _pow((b_cached_squares / 64.0 + 1e-05), 1.5)
                b_d_y_cached_centred = b_d_y.to(tl.float32) * b_cached_centred
                b_d_y_dot_cached_centred = tl.sum(b_d_y_cached_centred, 1)
                b_d_cached_squares = -(b_of_cached_squares * b_d_y_dot_cached_centred / 128.0)
                b_d_cached_centred_by_cached_squares = 2.0 * b_d_cached_squares[:, None] * b_cached_centred
                b_d_cached_centred = b_d_cached_centred_by_cached_normed + b_d_cached_centred_by_cached_squares
                b_d_cached_centred_sum = tl.sum(b_d_cached_centred, 1)
                b_d_cached_pre_2_sum = -(b_d_cached_centred_sum / 64.0)
                b_d_cached_pre_2 = b_d_cached_centred + b_d_cached_pre_2_sum[:, None]
                tl.store(p_d_cached_pre_2 + (o_t[:, None] * BV + o_v[None, :]), b_d_cached_pre_2)
                b_d_q_by_cached_pre_1 = tl.zeros([BT, BK], tl.float32)
                tl.debug_barrier()
                for i_h1 in range(n_tiles):
                    o_h1 = i_h1 * BF + tl.arange(0, BF)
                    m_h1 = o_h1 < F
                    tl.debug_barrier()
                    b_d_cached_pre_2 = tl.load(p_d_cached_pre_2 + (o_t[:, None] * BV + o_v[None, :]))
                    b_cached_2 = tl.load(
                        cached + i_cached * MEMORY + K * F + (o_h1[:, None] * V + o_v[None, :]),
                        mask=m_h1[:, None] & m_v[None, :],
                        other=0.0,
                    )
                    b_d_cached_hidden_1 = _tile_dot(b_d_cached_pre_2, tl.trans(b_cached_2), one, PREC)
                    b_cached_pre_1 = tl.load(
                        p_cached_pre_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0
                    )
                    b_d_cached_pre_1 = b_d_cached_hidden_1 * (
                        b_cached_pre_1
                        * 1.4142135623730951
                        * tl.exp(-(b_cached_pre_1 * b_cached_pre_1 / 2.0))
                        / 3.544907701811032
                        + tl.erf(b_cached_pre_1 * 1.4142135623730951 / 2.0) / 2.0
                        + 0.5
                    )
                    b_cached_1 = tl.load(
                        cached + i_cached * MEMORY + (o_k[:, None] * F + o_h1[None, :]),
                        mask=m_k[:, None] & m_h1[None, :],
                        other=0.0,
                    )
                    b_d_q_by_cached_pre_1 = _tile_dot_add(
                        b_d_q_by_cached_pre_1, b_d_cached_pre_1, tl.trans(b_cached_1), one, PREC
                    )
                b_d_y = tl.load(
                    d_y + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]),
                    mask=m_t[:, None] & m_v[None, :],
                    other=0.0,
                ).to(IN)
                b_d_q = b_d_q_by_cached_pre_1 + b_d_y.to(tl.float32)
                s_q += b_d_q
                tl.debug_barrier()
            o_q, m_q = o_t[:, None] * (H * K) + o_k[None, :], m_t[:, None] & m_k[None, :]
            tl.store(d_q_rows + i_row * K + o_q, s_q, mask=m_q)


@_jit
def segments_kernel(
    q,
    d_y,
    cached,
    d_cached,
    work,
    segments,
    T,
    H,
    BH,
    n_segments,
    n_entries,
    K: tl.constexpr,
    V: tl.constexpr,
    F: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    BF: tl.constexpr,
    STATE: tl.constexpr,
    MEMORY: tl.constexpr,
    ROWS: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
):
    """Gradients of each segment's state and pooled key, added up over the rows that read it."""
    one = tl.minimum(T, 1)
    n_tiles = tl.cdiv(F, BF) * one
    o_t, o_k, o_v = tl.arange(0, BT), tl.arange(0, BK), tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    p_rows = work + tl.program_id(0).to(tl.int64) * ROWS
    for i_entry in range(tl.program_id(0), n_entries, tl.num_programs(0)):
        i_s, i_bh = i_entry // BH, i_entry % BH
        i_b, i_h = i_bh // H, i_bh % H
        i_cached = i_bh.to(tl.int64) * n_segments + i_s
        _, end, _, last = _segment(segments, i_s)
        _fill(d_cached + i_cached * MEMORY, MEMORY)
        tl.debug_barrier()
        for i_t in range(end, last, BT):
            i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
            m_t = i_t + o_t < last
            p_cached_pre_1 = p_rows
            p_cached_hidden_1_unscaled = p_rows + BT * F
            p_d_cached_pre_2 = p_rows + 2 * BT * F
            b_cached_pre_2_part = tl.zeros([BT, BV], tl.float32)
            tl.debug_barrier()
            for i_h1 in range(n_tiles):
                o_h1 = i_h1 * BF + tl.arange(0, BF)
                m_h1 = o_h1 < F
                tl.debug_barrier()
                b_q = tl.load(
                    q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
                ).to(IN)
                b_cached_1 = tl.load(
                    cached + i_cached * MEMORY + (o_k[:, None] * F + o_h1[None, :]),
                    mask=m_k[:, None] & m_h1[None, :],
                    other=0.0,
                )
                b_cached_pre_1 = _tile_dot(b_q.to(tl.float32), b_cached_1, one, PREC)
                tl.store(p_cached_pre_1 + (o_t[:, None] * F + o_h1[None, :]), b_cached_pre_1, mask=m_h1[None, :])
                b_cached_hidden_1_unscaled = b_cached_pre_1 * (tl.erf(b_cached_pre_1 * 1.4142135623730951 / 2.0) + 1.0)
                tl.store(
                    p_cached_hidden_1_unscaled + (o_t[:, None] * F + o_h1[None, :]),
                    b_cached_hidden_1_unscaled,
                    mask=m_h1[None, :],
                )
                b_cached_2 = tl.load(
                    cached + i_cached * MEMORY + K * F + (o_h1[:, None] * V + o_v[None, :]),
                    mask=m_h1[:, None] & m_v[None, :],
                    other=0.0,
                )
                b_cached_pre_2_part = _tile_dot_add(
                    b_cached_pre_2_part, b_cached_hidden_1_unscaled, b_cached_2, one, PREC
                )
            b_d_y = tl.load(
                d_y + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]), mask=m_t[:, None] & m_v[None, :], other=0.0
            ).to(IN)
            b_cached_pre_2 = b_cached_pre_2_part / 2.0
            b_cached_pre_2_part_sum = tl.sum(b_cached_pre_2_part, 1)
            b_cached_pre_2_sum = b_cached_pre_2_part_sum / 2.0
            b_cached_centred = b_cached_pre_2 - b_cached_pre_2_sum[:, None] / 64.0
            b_cached_centred_squared = b_cached_centred * b_cached_centred
            b_cached_squares = tl.sum(b_cached_centred_squared, 1)
            b_d_cached_centred_by_cached_normed = b_d_y.to(tl.float32) / tl.sqrt_rn(
                b_cached_squares[:, None] / 64.0 + 1e-05
            )
            b_of_cached_squares = 1.0 / _pow((b_cached_squares / 64.0 + 1e-05), 1.5)
            b_d_y_cached_centred = b_d_y.to(tl.float32) * b_cached_centred
            b_d_y_dot_cached_centred = tl.sum(b_d_y_cached_centred, 1)
            b_d_cached_squares = -(b_of_cached_squares * b_d_y_dot_cached_centred / 128.0)
            b_d_cached_centred_by_cached_squares = 2.0 * b_d_cached_squares[:, None] * b_cached_centred
            b_d_cached_centred = b_d_cached_centred_by_cached_normed + b_d_cached_centred_by_cached_squares
            b_d_cached_centred_sum = tl.sum(b_d_cached_centred, 1)
            b_d_cached_pre_2_sum = -(b_d_cached_centred_sum / 64.0)
            b_d_cached_pre_2 = b_d_cached_centred + b_d_cached_pre_2_sum[:, None]
            tl.store(p_d_cached_pre_2 + (o_t[:, None] * BV + o_v[None, :]), b_d_cached_pre_2)
            tl.debug_barrier()
            for i_h1 in range(n_tiles):
                o_h1 = i_h1 * BF + tl.arange(0, BF)
                m_h1 = o_h1 < F
                tl.debug_barrier()
                b_q = tl.load(
                    q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
                ).to(IN)
                b_d_cached_pre_2 = tl.load(p_d_cached_pre_2 + (o_t[:, None] * BV + o_v[None, :]))
                b_cached_2 = tl.load(
                    cached + i_cached * MEMORY + K * F + (o_h1[:, None] * V + o_v[None, :]),
                    mask=m_h1[:, None] & m_v[None, :],
                    other=0.0,
                )
                b_d_cached_hidden_1 = _tile_dot(b_d_cached_pre_2, tl.trans(b_cached_2), one, PREC)
                b_cached_pre_1 = tl.load(
                    p_cached_pre_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0
                )
                b_d_cached_pre_1 = b_d_cached_hidden_1 * (
                    b_cached_pre_1
                    * 1.4142135623730951
                    * tl.exp(-(b_cached_pre_1 * b_cached_pre_1 / 2.0))
                    / 3.544907701811032
                    + tl.erf(b_cached_pre_1 * 1.4142135623730951 / 2.0) / 2.0
                    + 0.5
                )
                b_d_cached_1 = _tile_dot(tl.trans(b_q.to(tl.float32)), b_d_cached_pre_1, one, PREC)
                tl.store(
                    d_cached + i_cached * MEMORY + (o_k[:, None] * F + o_h1[None, :]),
                    tl.load(
                        d_cached + i_cached * MEMORY + (o_k[:, None] * F + o_h1[None, :]),
                        mask=m_k[:, None] & m_h1[None, :],
                        other=0.0,
                    )
                    + b_d_cached_1,
                    mask=m_k[:, None] & m_h1[None, :],
                )
                b_cached_hidden_1_unscaled = tl.load(
                    p_cached_hidden_1_unscaled + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0
                )
                b_d_cached_2_part = _tile_dot(tl.trans(b_cached_hidden_1_unscaled), b_d_cached_pre_2, one, PREC)
                b_d_cached_2 = b_d_cached_2_part / 2.0
                tl.store(
                    d_cached + i_cached * MEMORY + K * F + (o_h1[:, None] * V + o_v[None, :]),
                    tl.load(
                        d_cached + i_cached * MEMORY + K * F + (o_h1[:, None] * V + o_v[None, :]),
                        mask=m_h1[:, None] & m_v[None, :],
                        other=0.0,
                    )
                    + b_d_cached_2,
                    mask=m_h1[:, None] & m_v[None, :],
                )
            tl.debug_barrier()


@_jit
def _advance(
    k,
    v,
    beta,
    eta,
    alpha,
    p_state,
    p_next,
    p_rows,
    i_row,
    i_t,
    m_t,
    b_fresh,
    segment_start,
    H,
    one,
    n_tiles,
    K: tl.constexpr,
    V: tl.constexpr,
    F: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    BF: tl.constexpr,
    STATE: tl.constexpr,
    MEMORY: tl.constexpr,
    ROWS: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
):
    """One chunk step of the state alone, from one buffer to another."""
    o_t, o_k, o_v = tl.arange(0, BT), tl.arange(0, BK), tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    p_pre_1 = p_rows
    p_hidden_1_unscaled = p_rows + BT * F
    p_error_2 = p_rows + 2 * BT * F
    p_M_2_writes = p_rows + 2 * BT * F + BT * BV
    p_S_2_writes = p_rows + 2 * BT * F + 2 * BT * BV
    b_hidden_1_unscaled_M_2 = tl.zeros([BT, BV], tl.float32)
    tl.debug_barrier()
    for i_h1 in range(n_tiles):
        o_h1 = i_h1 * BF + tl.arange(0, BF)
        m_h1 = o_h1 < F
        tl.debug_barrier()
        b_k = tl.load(
            k + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
        ).to(IN)
        b_M_1 = tl.load(p_state + (o_k[:, None] * F + o_h1[None, :]), mask=m_k[:, None] & m_h1[None, :], other=0.0)
        b_pre_1 = _tile_dot(b_k.to(tl.float32), b_M_1, one, PREC)
        tl.store(p_pre_1 + (o_t[:, None] * F + o_h1[None, :]), b_pre_1, mask=m_h1[None, :])
        b_hidden_1_unscaled = b_pre_1 * (tl.erf(b_pre_1 * 1.4142135623730951 / 2.0) + 1.0)
        tl.store(p_hidden_1_unscaled + (o_t[:, None] * F + o_h1[None, :]), b_hidden_1_unscaled, mask=m_h1[None, :])
        b_M_2 = tl.load(
            p_state + K * F + (o_h1[:, None] * V + o_v[None, :]), mask=m_h1[:, None] & m_v[None, :], other=0.0
        )
        b_hidden_1_unscaled_M_2 = _tile_dot_add(b_hidden_1_unscaled_M_2, b_hidden_1_unscaled, b_M_2, one, PREC)
    b_valid = m_t.to(tl.float32)
    b_alpha = tl.load(alpha + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
    b_M_keeps = tl.where(b_valid > 0, b_alpha, 1.0)
    b_M_keeps_e, b_M_keeps_f, b_M_keeps_e1, b_M_keeps_f1 = _tile_runs(b_M_keeps)
    b_M_keeps_run_j = _tile_product(tl.sum(b_M_keeps_e1, 0) - b_M_keeps_e, tl.sum(b_M_keeps_f1, 0) - b_M_keeps_f)
    b_eta = tl.load(eta + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
    b_minus_eta = -b_eta
    b_rate = tl.where(b_valid > 0, b_minus_eta, 0.0)
    b_M_keeps_run_j_rate = b_M_keeps_run_j * b_rate
    b_beta = tl.load(beta + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
    b_M_takes_S = tl.where(b_valid > 0, b_beta, 0.0)
    b_M_of_S_s = b_M_keeps_run_j * b_M_takes_S
    b_S_keeps = tl.where(b_valid > 0, b_beta, 1.0)
    b_S_keeps_e, b_S_keeps_f, b_S_keeps_e1, b_S_keeps_f1 = _tile_runs(b_S_keeps)
    b_S_keeps_before_tj = tl.where(
        o_t[:, None] > o_t[None, :],
        _tile_product(
            (b_S_keeps_e - b_S_keeps_e1)[:, None] - b_S_keeps_e[None, :],
            (b_S_keeps_f - b_S_keeps_f1)[:, None] - b_S_keeps_f[None, :],
        ),
        0.0,
    )
    b_C_S_before_tj = b_S_keeps_before_tj * b_rate[None, :]
    b_M_of_S_s_C_S_before_tj = tl.sum(b_M_of_S_s[:, None] * b_C_S_before_tj, 0)
    b_C_M_j = b_M_keeps_run_j_rate + b_M_of_S_s_C_S_before_tj
    b_k = tl.load(
        k + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
    ).to(IN)
    b_pre_2 = b_hidden_1_unscaled_M_2 / 2.0
    b_hidden_1_unscaled_M_2_sum = tl.sum(b_hidden_1_unscaled_M_2, 1)
    b_pre_2_sum = b_hidden_1_unscaled_M_2_sum / 2.0
    b_centred = b_pre_2 - b_pre_2_sum[:, None] / 64.0
    b_centred_squared = b_centred * b_centred
    b_squares = tl.sum(b_centred_squared, 1)
    b_normed = b_centred / tl.sqrt_rn(b_squares[:, None] / 64.0 + 1e-05)
    b_prediction = b_k.to(tl.float32) + b_normed
    b_v = tl.load(
        v + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]), mask=m_t[:, None] & m_v[None, :], other=0.0
    ).to(IN)
    b_error = 2.0 * b_prediction - 2.0 * b_v.to(tl.float32)
    b_error_centred_by_normed = b_error / tl.sqrt_rn(b_squares[:, None] / 64.0 + 1e-05)
    b_of_squares = 1.0 / _pow((b_squares / 64.0 + 1e-05), 1.5)
    b_error_centred_2 = b_error * b_centred
    b_error_dot_centred = tl.sum(b_error_centred_2, 1)
    b_error_squares = -(b_of_squares * b_error_dot_centred / 128.0)
    b_error_centred_by_squares = 2.0 * b_error_squares[:, None] * b_centred
    b_error_centred = b_error_centred_by_normed + b_error_centred_by_squares
    b_error_centred_sum = tl.sum(b_error_centred, 1)
    b_error_pre_2_sum = -(b_error_centred_sum / 64.0)
    b_error_2 = b_error_centred + b_error_pre_2_sum[:, None]
    tl.store(p_error_2 + (o_t[:, None] * BV + o_v[None, :]), b_error_2)
    b_S_keeps_before_t = _tile_product((b_S_keeps_e - b_S_keeps_e1), (b_S_keeps_f - b_S_keeps_f1))
    b_R_M_S = tl.sum(b_M_of_S_s * b_S_keeps_before_t, 0)
    b_M_keeps_run_all = _tile_product(tl.sum(b_M_keeps_e1, 0), tl.sum(b_M_keeps_f1, 0))
    b_M_2_writes = b_C_M_j[:, None] * b_error_2
    tl.store(p_M_2_writes + (o_t[:, None] * BV + o_v[None, :]), b_M_2_writes)
    b_S_keeps_run_all = _tile_product(tl.sum(b_S_keeps_e1, 0), tl.sum(b_S_keeps_f1, 0))
    b_S_keeps_run_j = _tile_product(tl.sum(b_S_keeps_e1, 0) - b_S_keeps_e, tl.sum(b_S_keeps_f1, 0) - b_S_keeps_f)
    b_C_S_j = b_S_keeps_run_j * b_rate
    b_S_2_writes = b_C_S_j[:, None] * b_error_2
    tl.store(p_S_2_writes + (o_t[:, None] * BV + o_v[None, :]), b_S_2_writes)
    tl.debug_barrier()
    for i_h1 in range(n_tiles):
        o_h1 = i_h1 * BF + tl.arange(0, BF)
        m_h1 = o_h1 < F
        tl.debug_barrier()
        b_k = tl.load(
            k + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
        ).to(IN)
        b_error_2 = tl.load(p_error_2 + (o_t[:, None] * BV + o_v[None, :]))
        b_M_2 = tl.load(
            p_state + K * F + (o_h1[:, None] * V + o_v[None, :]), mask=m_h1[:, None] & m_v[None, :], other=0.0
        )
        b_error_hidden_1 = _tile_dot(b_error_2, tl.trans(b_M_2), one, PREC)
        b_pre_1 = tl.load(p_pre_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0)
        b_error_1 = b_error_hidden_1 * (
            b_pre_1 * 1.4142135623730951 * tl.exp(-(b_pre_1 * b_pre_1 / 2.0)) / 3.544907701811032
            + tl.erf(b_pre_1 * 1.4142135623730951 / 2.0) / 2.0
            + 0.5
        )
        b_M_1_writes = b_C_M_j[:, None] * b_error_1
        b_S_1 = tl.load(
            p_state + K * F + F * V + (o_k[:, None] * F + o_h1[None, :]), mask=m_k[:, None] & m_h1[None, :], other=0.0
        )
        b_R_M_S_S_1 = b_R_M_S * b_S_1
        b_M_1 = tl.load(p_state + (o_k[:, None] * F + o_h1[None, :]), mask=m_k[:, None] & m_h1[None, :], other=0.0)
        b_M_keeps_run_all_M_1 = b_M_keeps_run_all * b_M_1
        b_R_M_S_S_1_M_keeps_run_all_M_1 = b_R_M_S_S_1 + b_M_keeps_run_all_M_1
        b_M_1_next = _tile_dot_add(
            b_R_M_S_S_1_M_keeps_run_all_M_1, tl.trans(b_k.to(tl.float32)), b_M_1_writes, one, PREC
        )
        tl.store(p_next + (o_k[:, None] * F + o_h1[None, :]), b_M_1_next, mask=m_k[:, None] & m_h1[None, :])
        b_hidden_1 = b_pre_1 * (tl.erf(b_pre_1 * 1.4142135623730951 / 2.0) + 1.0) / 2.0
        b_M_2_writes = tl.load(p_M_2_writes + (o_t[:, None] * BV + o_v[None, :]))
        b_S_2 = tl.load(
            p_state + 2 * K * F + F * V + (o_h1[:, None] * V + o_v[None, :]),
            mask=m_h1[:, None] & m_v[None, :],
            other=0.0,
        )
        b_R_M_S_S_2 = b_R_M_S * b_S_2
        b_M_keeps_run_all_M_2 = b_M_keeps_run_all * b_M_2
        b_R_M_S_S_2_M_keeps_run_all_M_2 = b_R_M_S_S_2 + b_M_keeps_run_all_M_2
        b_M_2_next = _tile_dot_add(b_R_M_S_S_2_M_keeps_run_all_M_2, tl.trans(b_hidden_1), b_M_2_writes, one, PREC)
        tl.store(p_next + K * F + (o_h1[:, None] * V + o_v[None, :]), b_M_2_next, mask=m_h1[:, None] & m_v[None, :])
        b_S_keeps_run_all_S_1 = b_S_keeps_run_all * b_S_1
        b_S_1_writes = b_C_S_j[:, None] * b_error_1
        b_S_1_next = _tile_dot_add(b_S_keeps_run_all_S_1, tl.trans(b_k.to(tl.float32)), b_S_1_writes, one, PREC)
        tl.store(
            p_next + K * F + F * V + (o_k[:, None] * F + o_h1[None, :]), b_S_1_next, mask=m_k[:, None] & m_h1[None, :]
        )
        b_S_keeps_run_all_S_2 = b_S_keeps_run_all * b_S_2
        b_S_2_writes = tl.load(p_S_2_writes + (o_t[:, None] * BV + o_v[None, :]))
        b_S_2_next = _tile_dot_add(b_S_keeps_run_all_S_2, tl.trans(b_hidden_1), b_S_2_writes, one, PREC)
        tl.store(
            p_next + 2 * K * F + F * V + (o_h1[:, None] * V + o_v[None, :]),
            b_S_2_next,
            mask=m_h1[:, None] & m_v[None, :],
        )
    tl.debug_barrier()


@_jit
def _place(i_step, i_group, group):
    """Where the state before a step lies: those at the starts of groups first, then those in a group, then two more
    for steps on the way to it."""
    i_in = i_step % group
    return tl.where(
        i_in == 0, i_step // group, tl.where(i_step // group == i_group, group + i_in, 2 * group + i_in % 2)
    )


@_jit
def reverse_kernel(
    q,
    k,
    v,
    beta,
    eta,
    alpha,
    d_y,
    d_q_rows,
    d_cached,
    d_q,
    d_alpha,
    d_beta,
    d_eta,
    d_k,
    d_v,
    theta,
    d_theta,
    work,
    begin,
    d_after,
    d_begin,
    steps,
    chains,
    group,
    T,
    H,
    BH,
    n_segments,
    n_entries,
    K: tl.constexpr,
    V: tl.constexpr,
    F: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    BF: tl.constexpr,
    STATE: tl.constexpr,
    MEMORY: tl.constexpr,
    ROWS: tl.constexpr,
    IN: tl.constexpr,
    PREC: tl.constexpr,
):
    """The gradients of all inputs through the chunk steps, and of the state at each chain's start.

    One program takes a chain group of steps by group, the last first: it makes the states in the group again from that
    at its start, and goes back through them. On the way to the last group it keeps the states that groups start with.
    """
    one = tl.minimum(T, 1)
    n_tiles = tl.cdiv(F, BF) * one
    o_t, o_k, o_v = tl.arange(0, BT), tl.arange(0, BK), tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    p_work = work + tl.program_id(0).to(tl.int64) * ((2 * group + 4) * STATE + ROWS)
    p_d = p_work + (2 * group + 2) * STATE
    p_rows = p_d + 2 * STATE
    for i_entry in range(tl.program_id(0), n_entries, tl.num_programs(0)):
        i_c, i_bh = i_entry // BH, i_entry % BH
        i_b, i_h = i_bh // H, i_bh % H
        i_first, i_last = _chain(chains, i_c)
        _copy(p_work, theta + i_h * MEMORY, MEMORY)
        _fill(p_work + MEMORY, STATE - MEMORY)
        tl.debug_barrier()
        if begin is not None:
            if i_c == 0:
                _copy(p_work, begin + i_bh.to(tl.int64) * STATE, STATE)
                tl.debug_barrier()
        _fill(p_d, 2 * STATE)
        if d_after is not None:
            _, i_end, _, _, _, _, _ = _chunk_step(steps, i_last - 1)
            if i_end == T:
                tl.debug_barrier()
                _copy(p_d, d_after + i_bh.to(tl.int64) * STATE, STATE)
        tl.debug_barrier()
        n_groups = tl.cdiv(i_last - i_first, group)
        for i_back in range(n_groups):
            i_group = n_groups - 1 - i_back
            i_begin = i_first + i_group * group
            i_stop = tl.minimum(i_begin + group, i_last)
            for i_n in range(tl.where(i_back == 0, i_first, i_begin), i_stop - 1):
                i_t, end, i_s, segment_start, segment_end, _, b_fresh = _chunk_step(steps, i_n)
                m_t = i_t + o_t < end
                i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
                p_state = p_work + _place(i_n - i_first, i_group, group) * STATE
                p_next = p_work + _place(i_n + 1 - i_first, i_group, group) * STATE
                _advance(
                    k,
                    v,
                    beta,
                    eta,
                    alpha,
                    p_state,
                    p_next,
                    p_rows,
                    i_row,
                    i_t,
                    m_t,
                    b_fresh,
                    segment_start,
                    H,
                    one,
                    n_tiles,
                    K,
                    V,
                    F,
                    BT,
                    BK,
                    BV,
                    BF,
                    STATE,
                    MEMORY,
                    ROWS,
                    IN,
                    PREC,
                )
            for i_turn in range(i_stop - i_begin):
                i_n = i_stop - 1 - i_turn
                i_t, end, i_s, segment_start, segment_end, _, b_fresh = _chunk_step(steps, i_n)
                m_t = i_t + o_t < end
                i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
                p_state = p_work + _place(i_n - i_first, i_group, group) * STATE
                p_d_next, p_d_state = p_d + (i_last - 1 - i_n) % 2 * STATE, p_d + (i_last - i_n) % 2 * STATE
                if end == segment_end:
                    i_cached = i_bh.to(tl.int64) * n_segments + i_s
                    _add(p_d_next, d_cached + i_cached * MEMORY, MEMORY)
                    tl.debug_barrier()
                p_pre_1 = p_rows
                p_hidden_1_unscaled = p_rows + BT * F
                p_error_hidden_1 = p_rows + 2 * BT * F
                p_error_1 = p_rows + 3 * BT * F
                p_q_S_1 = p_rows + 4 * BT * F
                p_q_M_1 = p_rows + 5 * BT * F
                p_q_pre_1 = p_rows + 6 * BT * F
                p_q_hidden_1_unscaled = p_rows + 7 * BT * F
                p_hidden_1 = p_rows + 8 * BT * F
                p_d_q_pre_1 = p_rows + 9 * BT * F
                p_d_M_1_writes_by_M_1_next = p_rows + 10 * BT * F
                p_d_S_1_writes_by_S_1_next = p_rows + 11 * BT * F
                p_d_error_1 = p_rows + 12 * BT * F
                p_d_error_hidden_1 = p_rows + 13 * BT * F
                p_d_pre_1 = p_rows + 14 * BT * F
                p_C_q_k = p_rows + 15 * BT * F
                p_error_2 = p_rows + 15 * BT * F + BT * BT
                p_C_M_tj = p_rows + 15 * BT * F + BT * BT + BT * BV
                p_q_hidden_1_unscaled_hidden_1 = p_rows + 15 * BT * F + 2 * BT * BT + BT * BV
                p_q_hidden_1_unscaled_S_2 = p_rows + 15 * BT * F + 3 * BT * BT + BT * BV
                p_R_M_S_t = p_rows + 15 * BT * F + 3 * BT * BT + 2 * BT * BV
                p_q_hidden_1_unscaled_M_2 = p_rows + 15 * BT * F + 3 * BT * BT + 2 * BT * BV + BT
                p_M_keeps_run_t = p_rows + 15 * BT * F + 3 * BT * BT + 3 * BT * BV + BT
                p_d_q_pre_2 = p_rows + 15 * BT * F + 3 * BT * BT + 3 * BT * BV + 2 * BT
                p_d_q_hidden_1_scores = p_rows + 15 * BT * F + 3 * BT * BT + 4 * BT * BV + 2 * BT
                p_S_keeps = p_rows + 15 * BT * F + 4 * BT * BT + 4 * BT * BV + 2 * BT
                p_rate = p_rows + 15 * BT * F + 4 * BT * BT + 4 * BT * BV + 3 * BT
                p_M_keeps = p_rows + 15 * BT * F + 4 * BT * BT + 4 * BT * BV + 4 * BT
                p_M_takes_S = p_rows + 15 * BT * F + 4 * BT * BT + 4 * BT * BV + 5 * BT
                p_C_S_before_tj = p_rows + 15 * BT * F + 4 * BT * BT + 4 * BT * BV + 6 * BT
                p_d_M_2_writes_by_M_2_next = p_rows + 15 * BT * F + 5 * BT * BT + 4 * BT * BV + 6 * BT
                p_d_C_M_j_by_M_1_writes = p_rows + 15 * BT * F + 5 * BT * BT + 5 * BT * BV + 6 * BT
                p_S_keeps_before_t = p_rows + 15 * BT * F + 5 * BT * BT + 5 * BT * BV + 7 * BT
                p_d_C_q_hidden_1_scores_by_q_pre_2 = p_rows + 15 * BT * F + 5 * BT * BT + 5 * BT * BV + 8 * BT
                p_q_k = p_rows + 15 * BT * F + 6 * BT * BT + 5 * BT * BV + 8 * BT
                p_M_keeps_run_tj = p_rows + 15 * BT * F + 7 * BT * BT + 5 * BT * BV + 8 * BT
                p_d_S_2_writes_by_S_2_next = p_rows + 15 * BT * F + 8 * BT * BT + 5 * BT * BV + 8 * BT
                p_d_C_S_j_by_S_1_writes = p_rows + 15 * BT * F + 8 * BT * BT + 6 * BT * BV + 8 * BT
                p_S_keeps_before_tj = p_rows + 15 * BT * F + 8 * BT * BT + 6 * BT * BV + 9 * BT
                p_M_of_S_s = p_rows + 15 * BT * F + 9 * BT * BT + 6 * BT * BV + 9 * BT
                p_C_q_hidden_1_scores_unscaled = p_rows + 15 * BT * F + 9 * BT * BT + 6 * BT * BV + 10 * BT
                p_C_S_j = p_rows + 15 * BT * F + 10 * BT * BT + 6 * BT * BV + 10 * BT
                p_C_M_j = p_rows + 15 * BT * F + 10 * BT * BT + 6 * BT * BV + 11 * BT
                p_centred = p_rows + 15 * BT * F + 10 * BT * BT + 6 * BT * BV + 12 * BT
                p_squares = p_rows + 15 * BT * F + 10 * BT * BT + 7 * BT * BV + 12 * BT
                p_d_q_hidden_1_S_2 = p_rows + 15 * BT * F + 10 * BT * BT + 7 * BT * BV + 13 * BT
                p_d_error_squares = p_rows + 15 * BT * F + 10 * BT * BT + 8 * BT * BV + 13 * BT
                p_error_dot_centred = p_rows + 15 * BT * F + 10 * BT * BT + 8 * BT * BV + 14 * BT
                p_d_error_centred = p_rows + 15 * BT * F + 10 * BT * BT + 8 * BT * BV + 15 * BT
                p_error = p_rows + 15 * BT * F + 10 * BT * BT + 9 * BT * BV + 15 * BT
                p_of_squares = p_rows + 15 * BT * F + 10 * BT * BT + 10 * BT * BV + 15 * BT
                p_d_error = p_rows + 15 * BT * F + 10 * BT * BT + 10 * BT * BV + 16 * BT
                p_error_squares = p_rows + 15 * BT * F + 10 * BT * BT + 11 * BT * BV + 16 * BT
                p_d_pre_2 = p_rows + 15 * BT * F + 10 * BT * BT + 11 * BT * BV + 17 * BT
                p_d_q_k = p_rows + 15 * BT * F + 10 * BT * BT + 12 * BT * BV + 17 * BT
                p_d_prediction = p_rows + 15 * BT * F + 11 * BT * BT + 12 * BT * BV + 17 * BT
                p_d_S_1_next_error_1 = p_rows + 15 * BT * F + 11 * BT * BT + 13 * BT * BV + 17 * BT
                p_d_M_1_next_error_1 = p_rows + 15 * BT * F + 11 * BT * BT + 13 * BT * BV + 17 * BT + BT * BK
                p_d_q_hidden_1_M_2 = p_rows + 15 * BT * F + 11 * BT * BT + 13 * BT * BV + 17 * BT + 2 * BT * BK
                b_hidden_1_unscaled_M_2 = tl.zeros([BT, BV], tl.float32)
                b_d_M_2_writes_by_M_2_next = tl.zeros([BT, BV], tl.float32)
                b_d_R_M_S_by_M_2_next = 0.0
                b_d_R_M_S_by_M_1_next = 0.0
                b_d_M_keeps_run_all_by_M_2_next = 0.0
                b_d_M_keeps_run_all_by_M_1_next = 0.0
                b_d_S_2_writes_by_S_2_next = tl.zeros([BT, BV], tl.float32)
                b_d_S_keeps_run_all_by_S_2_next = 0.0
                b_d_S_keeps_run_all_by_S_1_next = 0.0
                tl.debug_barrier()
                for i_h1 in range(n_tiles):
                    o_h1 = i_h1 * BF + tl.arange(0, BF)
                    m_h1 = o_h1 < F
                    tl.debug_barrier()
                    b_k = tl.load(
                        k + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]),
                        mask=m_t[:, None] & m_k[None, :],
                        other=0.0,
                    ).to(IN)
                    b_M_1 = tl.load(
                        p_state + (o_k[:, None] * F + o_h1[None, :]), mask=m_k[:, None] & m_h1[None, :], other=0.0
                    )
                    b_pre_1 = _tile_dot(b_k.to(tl.float32), b_M_1, one, PREC)
                    tl.store(p_pre_1 + (o_t[:, None] * F + o_h1[None, :]), b_pre_1, mask=m_h1[None, :])
                    b_hidden_1_unscaled = b_pre_1 * (tl.erf(b_pre_1 * 1.4142135623730951 / 2.0) + 1.0)
                    tl.store(
                        p_hidden_1_unscaled + (o_t[:, None] * F + o_h1[None, :]),
                        b_hidden_1_unscaled,
                        mask=m_h1[None, :],
                    )
                    b_M_2 = tl.load(
                        p_state + K * F + (o_h1[:, None] * V + o_v[None, :]),
                        mask=m_h1[:, None] & m_v[None, :],
                        other=0.0,
                    )
                    b_hidden_1_unscaled_M_2 = _tile_dot_add(
                        b_hidden_1_unscaled_M_2, b_hidden_1_unscaled, b_M_2, one, PREC
                    )
                    b_hidden_1 = b_pre_1 * (tl.erf(b_pre_1 * 1.4142135623730951 / 2.0) + 1.0) / 2.0
                    tl.store(p_hidden_1 + (o_t[:, None] * F + o_h1[None, :]), b_hidden_1, mask=m_h1[None, :])
                    b_d_M_2_next = tl.load(
                        p_d_next + K * F + (o_h1[:, None] * V + o_v[None, :]),
                        mask=m_h1[:, None] & m_v[None, :],
                        other=0.0,
                    )
                    b_d_M_2_writes_by_M_2_next = _tile_dot_add(
                        b_d_M_2_writes_by_M_2_next, b_hidden_1, b_d_M_2_next, one, PREC
                    )
                    b_S_2 = tl.load(
                        p_state + 2 * K * F + F * V + (o_h1[:, None] * V + o_v[None, :]),
                        mask=m_h1[:, None] & m_v[None, :],
                        other=0.0,
                    )
                    b_d_M_2_next_S_2 = b_d_M_2_next * b_S_2
                    b_d_R_M_S_by_M_2_next += tl.sum(tl.sum(b_d_M_2_next_S_2, 0), 0)
                    b_d_M_1_next = tl.load(
                        p_d_next + (o_k[:, None] * F + o_h1[None, :]), mask=m_k[:, None] & m_h1[None, :], other=0.0
                    )
                    b_S_1 = tl.load(
                        p_state + K * F + F * V + (o_k[:, None] * F + o_h1[None, :]),
                        mask=m_k[:, None] & m_h1[None, :],
                        other=0.0,
                    )
                    b_d_M_1_next_S_1 = b_d_M_1_next * b_S_1
                    b_d_R_M_S_by_M_1_next += tl.sum(tl.sum(b_d_M_1_next_S_1, 0), 0)
                    b_d_M_2_next_M_2 = b_d_M_2_next * b_M_2
                    b_d_M_keeps_run_all_by_M_2_next += tl.sum(tl.sum(b_d_M_2_next_M_2, 0), 0)
                    b_d_M_1_next_M_1 = b_d_M_1_next * b_M_1
                    b_d_M_keeps_run_all_by_M_1_next += tl.sum(tl.sum(b_d_M_1_next_M_1, 0), 0)
                    b_d_S_2_next = tl.load(
                        p_d_next + 2 * K * F + F * V + (o_h1[:, None] * V + o_v[None, :]),
                        mask=m_h1[:, None] & m_v[None, :],
                        other=0.0,
                    )
                    b_d_S_2_writes_by_S_2_next = _tile_dot_add(
                        b_d_S_2_writes_by_S_2_next, b_hidden_1, b_d_S_2_next, one, PREC
                    )
                    b_d_S_2_next_S_2 = b_d_S_2_next * b_S_2
                    b_d_S_keeps_run_all_by_S_2_next += tl.sum(tl.sum(b_d_S_2_next_S_2, 0), 0)
                    b_d_S_1_next = tl.load(
                        p_d_next + K * F + F * V + (o_k[:, None] * F + o_h1[None, :]),
                        mask=m_k[:, None] & m_h1[None, :],
                        other=0.0,
                    )
                    b_d_S_1_next_S_1 = b_d_S_1_next * b_S_1
                    b_d_S_keeps_run_all_by_S_1_next += tl.sum(tl.sum(b_d_S_1_next_S_1, 0), 0)
                tl.store(p_d_M_2_writes_by_M_2_next + (o_t[:, None] * BV + o_v[None, :]), b_d_M_2_writes_by_M_2_next)
                tl.store(p_d_S_2_writes_by_S_2_next + (o_t[:, None] * BV + o_v[None, :]), b_d_S_2_writes_by_S_2_next)
                b_valid = m_t.to(tl.float32)
                b_alpha = tl.load(alpha + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
                b_M_keeps = tl.where(b_valid > 0, b_alpha, 1.0)
                tl.store(p_M_keeps + o_t, b_M_keeps)
                b_M_keeps_e, b_M_keeps_f, b_M_keeps_e1, b_M_keeps_f1 = _tile_runs(b_M_keeps)
                b_M_keeps_run_tj = tl.where(
                    o_t[:, None] >= o_t[None, :],
                    _tile_product(
                        b_M_keeps_e[:, None] - b_M_keeps_e[None, :], b_M_keeps_f[:, None] - b_M_keeps_f[None, :]
                    ),
                    0.0,
                )
                tl.store(p_M_keeps_run_tj + (o_t[:, None] * BT + o_t[None, :]), b_M_keeps_run_tj)
                b_eta = tl.load(eta + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
                b_minus_eta = -b_eta
                b_rate = tl.where(b_valid > 0, b_minus_eta, 0.0)
                tl.store(p_rate + o_t, b_rate)
                b_M_keeps_run_tj_rate = b_M_keeps_run_tj * b_rate[None, :]
                b_beta = tl.load(beta + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
                b_M_takes_S = tl.where(b_valid > 0, b_beta, 0.0)
                tl.store(p_M_takes_S + o_t, b_M_takes_S)
                b_M_of_S_ts = b_M_keeps_run_tj * b_M_takes_S[None, :]
                b_S_keeps = tl.where(b_valid > 0, b_beta, 1.0)
                tl.store(p_S_keeps + o_t, b_S_keeps)
                b_S_keeps_e, b_S_keeps_f, b_S_keeps_e1, b_S_keeps_f1 = _tile_runs(b_S_keeps)
                b_S_keeps_before_tj = tl.where(
                    o_t[:, None] > o_t[None, :],
                    _tile_product(
                        (b_S_keeps_e - b_S_keeps_e1)[:, None] - b_S_keeps_e[None, :],
                        (b_S_keeps_f - b_S_keeps_f1)[:, None] - b_S_keeps_f[None, :],
                    ),
                    0.0,
                )
                tl.store(p_S_keeps_before_tj + (o_t[:, None] * BT + o_t[None, :]), b_S_keeps_before_tj)
                b_C_S_before_tj = b_S_keeps_before_tj * b_rate[None, :]
                tl.store(p_C_S_before_tj + (o_t[:, None] * BT + o_t[None, :]), b_C_S_before_tj)
                b_C_M_tj = _tile_dot_add(b_M_keeps_run_tj_rate, b_M_of_S_ts, b_C_S_before_tj, one, PREC)
                tl.store(p_C_M_tj + (o_t[:, None] * BT + o_t[None, :]), b_C_M_tj)
                b_q = tl.load(
                    q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
                ).to(IN)
                b_k = tl.load(
                    k + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
                ).to(IN)
                b_q_k = _tile_dot(b_q, tl.trans(b_k), one, PREC)
                tl.store(p_q_k + (o_t[:, None] * BT + o_t[None, :]), b_q_k)
                b_C_q_k = b_C_M_tj * b_q_k
                tl.store(p_C_q_k + (o_t[:, None] * BT + o_t[None, :]), b_C_q_k)
                b_pre_2 = b_hidden_1_unscaled_M_2 / 2.0
                b_hidden_1_unscaled_M_2_sum = tl.sum(b_hidden_1_unscaled_M_2, 1)
                b_pre_2_sum = b_hidden_1_unscaled_M_2_sum / 2.0
                b_centred = b_pre_2 - b_pre_2_sum[:, None] / 64.0
                tl.store(p_centred + (o_t[:, None] * BV + o_v[None, :]), b_centred)
                b_centred_squared = b_centred * b_centred
                b_squares = tl.sum(b_centred_squared, 1)
                tl.store(p_squares + o_t, b_squares)
                b_normed = b_centred / tl.sqrt_rn(b_squares[:, None] / 64.0 + 1e-05)
                b_prediction = b_k.to(tl.float32) + b_normed
                b_v = tl.load(
                    v + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]), mask=m_t[:, None] & m_v[None, :], other=0.0
                ).to(IN)
                b_error = 2.0 * b_prediction - 2.0 * b_v.to(tl.float32)
                tl.store(p_error + (o_t[:, None] * BV + o_v[None, :]), b_error)
                b_error_centred_by_normed = b_error / tl.sqrt_rn(b_squares[:, None] / 64.0 + 1e-05)
                b_of_squares = 1.0 / _pow((b_squares / 64.0 + 1e-05), 1.5)
                tl.store(p_of_squares + o_t, b_of_squares)
                b_error_centred_2 = b_error * b_centred
                b_error_dot_centred = tl.sum(b_error_centred_2, 1)
                tl.store(p_error_dot_centred + o_t, b_error_dot_centred)
                b_error_squares = -(b_of_squares * b_error_dot_centred / 128.0)
                tl.store(p_error_squares + o_t, b_error_squares)
                b_error_centred_by_squares = 2.0 * b_error_squares[:, None] * b_centred
                b_error_centred = b_error_centred_by_normed + b_error_centred_by_squares
                b_error_centred_sum = tl.sum(b_error_centred, 1)
                b_error_pre_2_sum = -(b_error_centred_sum / 64.0)
                b_error_2 = b_error_centred + b_error_pre_2_sum[:, None]
                tl.store(p_error_2 + (o_t[:, None] * BV + o_v[None, :]), b_error_2)
                b_S_keeps_before_t = _tile_product((b_S_keeps_e - b_S_keeps_e1), (b_S_keeps_f - b_S_keeps_f1))
                tl.store(p_S_keeps_before_t + o_t, b_S_keeps_before_t)
                b_R_M_S_t = tl.sum(b_M_of_S_ts * b_S_keeps_before_t[None, :], 1)
                tl.store(p_R_M_S_t + o_t, b_R_M_S_t)
                b_M_keeps_run_t = _tile_product(b_M_keeps_e, b_M_keeps_f)
                tl.store(p_M_keeps_run_t + o_t, b_M_keeps_run_t)
                b_q_hidden_1_unscaled_hidden_1 = tl.zeros([BT, BT], tl.float32)
                b_q_hidden_1_unscaled_S_2 = tl.zeros([BT, BV], tl.float32)
                b_q_hidden_1_unscaled_M_2 = tl.zeros([BT, BV], tl.float32)
                b_d_C_M_j_by_M_1_writes = tl.zeros([BT], tl.float32)
                b_d_C_S_j_by_S_1_writes = tl.zeros([BT], tl.float32)
                tl.debug_barrier()
                for i_h1 in range(n_tiles):
                    o_h1 = i_h1 * BF + tl.arange(0, BF)
                    m_h1 = o_h1 < F
                    tl.debug_barrier()
                    b_error_2 = tl.load(p_error_2 + (o_t[:, None] * BV + o_v[None, :]))
                    b_M_2 = tl.load(
                        p_state + K * F + (o_h1[:, None] * V + o_v[None, :]),
                        mask=m_h1[:, None] & m_v[None, :],
                        other=0.0,
                    )
                    b_error_hidden_1 = _tile_dot(b_error_2, tl.trans(b_M_2), one, PREC)
                    tl.store(
                        p_error_hidden_1 + (o_t[:, None] * F + o_h1[None, :]), b_error_hidden_1, mask=m_h1[None, :]
                    )
                    b_pre_1 = tl.load(p_pre_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0)
                    b_error_1 = b_error_hidden_1 * (
                        b_pre_1 * 1.4142135623730951 * tl.exp(-(b_pre_1 * b_pre_1 / 2.0)) / 3.544907701811032
                        + tl.erf(b_pre_1 * 1.4142135623730951 / 2.0) / 2.0
                        + 0.5
                    )
                    tl.store(p_error_1 + (o_t[:, None] * F + o_h1[None, :]), b_error_1, mask=m_h1[None, :])
                    b_q = tl.load(
                        q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]),
                        mask=m_t[:, None] & m_k[None, :],
                        other=0.0,
                    ).to(IN)
                    b_S_1 = tl.load(
                        p_state + K * F + F * V + (o_k[:, None] * F + o_h1[None, :]),
                        mask=m_k[:, None] & m_h1[None, :],
                        other=0.0,
                    )
                    b_q_S_1 = _tile_dot(b_q.to(tl.float32), b_S_1, one, PREC)
                    tl.store(p_q_S_1 + (o_t[:, None] * F + o_h1[None, :]), b_q_S_1, mask=m_h1[None, :])
                    b_M_1 = tl.load(
                        p_state + (o_k[:, None] * F + o_h1[None, :]), mask=m_k[:, None] & m_h1[None, :], other=0.0
                    )
                    b_q_M_1 = _tile_dot(b_q.to(tl.float32), b_M_1, one, PREC)
                    tl.store(p_q_M_1 + (o_t[:, None] * F + o_h1[None, :]), b_q_M_1, mask=m_h1[None, :])
                    b_C_q_k = tl.load(p_C_q_k + (o_t[:, None] * BT + o_t[None, :]))
                    b_R_q_S_1 = b_R_M_S_t[:, None] * b_q_S_1
                    b_R_q_M_1 = b_M_keeps_run_t[:, None] * b_q_M_1
                    b_R_q_S_1_R_q_M_1 = b_R_q_S_1 + b_R_q_M_1
                    b_q_pre_1 = _tile_dot_add(b_R_q_S_1_R_q_M_1, b_C_q_k, b_error_1, one, PREC)
                    tl.store(p_q_pre_1 + (o_t[:, None] * F + o_h1[None, :]), b_q_pre_1, mask=m_h1[None, :])
                    b_q_hidden_1_unscaled = b_q_pre_1 * (tl.erf(b_q_pre_1 * 1.4142135623730951 / 2.0) + 1.0)
                    tl.store(
                        p_q_hidden_1_unscaled + (o_t[:, None] * F + o_h1[None, :]),
                        b_q_hidden_1_unscaled,
                        mask=m_h1[None, :],
                    )
                    b_hidden_1 = tl.load(p_hidden_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0)
                    b_q_hidden_1_unscaled_hidden_1 = _tile_dot_add(
                        b_q_hidden_1_unscaled_hidden_1, b_q_hidden_1_unscaled, tl.trans(b_hidden_1), one, PREC
                    )
                    b_S_2 = tl.load(
                        p_state + 2 * K * F + F * V + (o_h1[:, None] * V + o_v[None, :]),
                        mask=m_h1[:, None] & m_v[None, :],
                        other=0.0,
                    )
                    b_q_hidden_1_unscaled_S_2 = _tile_dot_add(
                        b_q_hidden_1_unscaled_S_2, b_q_hidden_1_unscaled, b_S_2, one, PREC
                    )
                    b_q_hidden_1_unscaled_M_2 = _tile_dot_add(
                        b_q_hidden_1_unscaled_M_2, b_q_hidden_1_unscaled, b_M_2, one, PREC
                    )
                    b_k = tl.load(
                        k + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]),
                        mask=m_t[:, None] & m_k[None, :],
                        other=0.0,
                    ).to(IN)
                    b_d_M_1_next = tl.load(
                        p_d_next + (o_k[:, None] * F + o_h1[None, :]), mask=m_k[:, None] & m_h1[None, :], other=0.0
                    )
                    b_d_M_1_writes_by_M_1_next = _tile_dot(b_k.to(tl.float32), b_d_M_1_next, one, PREC)
                    tl.store(
                        p_d_M_1_writes_by_M_1_next + (o_t[:, None] * F + o_h1[None, :]),
                        b_d_M_1_writes_by_M_1_next,
                        mask=m_h1[None, :],
                    )
                    b_d_C_M_j_part_2 = b_d_M_1_writes_by_M_1_next * b_error_1
                    b_d_C_M_j_by_M_1_writes += tl.sum(b_d_C_M_j_part_2, 1)
                    b_d_S_1_next = tl.load(
                        p_d_next + K * F + F * V + (o_k[:, None] * F + o_h1[None, :]),
                        mask=m_k[:, None] & m_h1[None, :],
                        other=0.0,
                    )
                    b_d_S_1_writes_by_S_1_next = _tile_dot(b_k.to(tl.float32), b_d_S_1_next, one, PREC)
                    tl.store(
                        p_d_S_1_writes_by_S_1_next + (o_t[:, None] * F + o_h1[None, :]),
                        b_d_S_1_writes_by_S_1_next,
                        mask=m_h1[None, :],
                    )
                    b_d_C_S_j_part_2 = b_d_S_1_writes_by_S_1_next * b_error_1
                    b_d_C_S_j_by_S_1_writes += tl.sum(b_d_C_S_j_part_2, 1)
                tl.store(
                    p_q_hidden_1_unscaled_hidden_1 + (o_t[:, None] * BT + o_t[None, :]), b_q_hidden_1_unscaled_hidden_1
                )
                tl.store(p_q_hidden_1_unscaled_S_2 + (o_t[:, None] * BV + o_v[None, :]), b_q_hidden_1_unscaled_S_2)
                tl.store(p_q_hidden_1_unscaled_M_2 + (o_t[:, None] * BV + o_v[None, :]), b_q_hidden_1_unscaled_M_2)
                tl.store(p_d_C_M_j_by_M_1_writes + o_t, b_d_C_M_j_by_M_1_writes)
                tl.store(p_d_C_S_j_by_S_1_writes + o_t, b_d_C_S_j_by_S_1_writes)
                b_d_S_1_next_error_1 = tl.zeros([BT, BK], tl.float32)
                b_d_M_1_next_error_1 = tl.zeros([BT, BK], tl.float32)
                tl.debug_barrier()
                for i_h1 in range(n_tiles):
                    o_h1 = i_h1 * BF + tl.arange(0, BF)
                    m_h1 = o_h1 < F
                    tl.debug_barrier()
                    b_d_S_1_next = tl.load(
                        p_d_next + K * F + F * V + (o_k[:, None] * F + o_h1[None, :]),
                        mask=m_k[:, None] & m_h1[None, :],
                        other=0.0,
                    )
                    b_error_1 = tl.load(p_error_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0)
                    b_d_S_1_next_error_1 = _tile_dot_add(
                        b_d_S_1_next_error_1, b_error_1, tl.trans(b_d_S_1_next), one, PREC
                    )
                    b_d_M_1_next = tl.load(
                        p_d_next + (o_k[:, None] * F + o_h1[None, :]), mask=m_k[:, None] & m_h1[None, :], other=0.0
                    )
                    b_d_M_1_next_error_1 = _tile_dot_add(
                        b_d_M_1_next_error_1, b_error_1, tl.trans(b_d_M_1_next), one, PREC
                    )
                tl.store(p_d_S_1_next_error_1 + (o_t[:, None] * BK + o_k[None, :]), b_d_S_1_next_error_1)
                tl.store(p_d_M_1_next_error_1 + (o_t[:, None] * BK + o_k[None, :]), b_d_M_1_next_error_1)
                b_M_keeps_run_t = tl.load(p_M_keeps_run_t + o_t)
                b_d_y = tl.load(
                    d_y + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]),
                    mask=m_t[:, None] & m_v[None, :],
                    other=0.0,
                ).to(IN)
                b_C_M_tj = tl.load(p_C_M_tj + (o_t[:, None] * BT + o_t[None, :]))
                b_q_hidden_1_unscaled_hidden_1 = tl.load(
                    p_q_hidden_1_unscaled_hidden_1 + (o_t[:, None] * BT + o_t[None, :])
                )
                b_C_q_hidden_1_scores_unscaled = b_C_M_tj * b_q_hidden_1_unscaled_hidden_1
                tl.store(
                    p_C_q_hidden_1_scores_unscaled + (o_t[:, None] * BT + o_t[None, :]), b_C_q_hidden_1_scores_unscaled
                )
                b_error_2 = tl.load(p_error_2 + (o_t[:, None] * BV + o_v[None, :]))
                b_q_pre_2_part = _tile_dot(b_C_q_hidden_1_scores_unscaled, b_error_2, one, PREC)
                b_q_pre_2_part_scaled = b_q_pre_2_part / 2.0
                b_R_M_S_t = tl.load(p_R_M_S_t + o_t)
                b_q_hidden_1_unscaled_S_2 = tl.load(p_q_hidden_1_unscaled_S_2 + (o_t[:, None] * BV + o_v[None, :]))
                b_q_hidden_1_S_2 = b_q_hidden_1_unscaled_S_2 / 2.0
                b_R_q_hidden_1_S_2 = b_R_M_S_t[:, None] * b_q_hidden_1_S_2
                b_q_hidden_1_unscaled_M_2 = tl.load(p_q_hidden_1_unscaled_M_2 + (o_t[:, None] * BV + o_v[None, :]))
                b_q_hidden_1_M_2 = b_q_hidden_1_unscaled_M_2 / 2.0
                b_R_q_hidden_1_M_2 = b_M_keeps_run_t[:, None] * b_q_hidden_1_M_2
                b_q_pre_2_part_2 = b_R_q_hidden_1_S_2 + b_R_q_hidden_1_M_2
                b_q_pre_2 = b_q_pre_2_part_scaled + b_q_pre_2_part_2
                b_q_pre_2_sum = tl.sum(b_q_pre_2, 1)
                b_q_centred = b_q_pre_2 - b_q_pre_2_sum[:, None] / 64.0
                b_q_centred_squared = b_q_centred * b_q_centred
                b_q_squares = tl.sum(b_q_centred_squared, 1)
                b_d_q_centred_by_q_normed = b_d_y.to(tl.float32) / tl.sqrt_rn(b_q_squares[:, None] / 64.0 + 1e-05)
                b_of_q_squares = 1.0 / _pow((b_q_squares / 64.0 + 1e-05), 1.5)
                b_d_y_q_centred = b_d_y.to(tl.float32) * b_q_centred
                b_d_y_dot_q_centred = tl.sum(b_d_y_q_centred, 1)
                b_d_q_squares = -(b_of_q_squares * b_d_y_dot_q_centred / 128.0)
                b_d_q_centred_by_q_squares = 2.0 * b_d_q_squares[:, None] * b_q_centred
                b_d_q_centred = b_d_q_centred_by_q_normed + b_d_q_centred_by_q_squares
                b_d_q_centred_sum = tl.sum(b_d_q_centred, 1)
                b_d_q_pre_2_sum = -(b_d_q_centred_sum / 64.0)
                b_d_q_pre_2 = b_d_q_centred + b_d_q_pre_2_sum[:, None]
                tl.store(p_d_q_pre_2 + (o_t[:, None] * BV + o_v[None, :]), b_d_q_pre_2)
                b_d_C_q_hidden_1_scores_by_q_pre_2 = _tile_dot(b_d_q_pre_2, tl.trans(b_error_2), one, PREC)
                tl.store(
                    p_d_C_q_hidden_1_scores_by_q_pre_2 + (o_t[:, None] * BT + o_t[None, :]),
                    b_d_C_q_hidden_1_scores_by_q_pre_2,
                )
                b_d_q_hidden_1_scores = b_d_C_q_hidden_1_scores_by_q_pre_2 * b_C_M_tj
                tl.store(p_d_q_hidden_1_scores + (o_t[:, None] * BT + o_t[None, :]), b_d_q_hidden_1_scores)
                b_d_q_pre_1_M_1 = tl.zeros([BT, BK], tl.float32)
                b_d_q_pre_1_S_1 = tl.zeros([BT, BK], tl.float32)
                b_d_C_q_k_by_q_pre_1 = tl.zeros([BT, BT], tl.float32)
                b_d_R_M_S_t_by_R_q_S_1 = tl.zeros([BT], tl.float32)
                b_d_M_keeps_run_t_by_R_q_M_1 = tl.zeros([BT], tl.float32)
                tl.debug_barrier()
                for i_h1 in range(n_tiles):
                    o_h1 = i_h1 * BF + tl.arange(0, BF)
                    m_h1 = o_h1 < F
                    tl.debug_barrier()
                    b_d_q_pre_2 = tl.load(p_d_q_pre_2 + (o_t[:, None] * BV + o_v[None, :]))
                    b_M_2 = tl.load(
                        p_state + K * F + (o_h1[:, None] * V + o_v[None, :]),
                        mask=m_h1[:, None] & m_v[None, :],
                        other=0.0,
                    )
                    b_d_q_pre_2_M_2 = _tile_dot(b_d_q_pre_2, tl.trans(b_M_2), one, PREC)
                    b_d_q_hidden_1_by_q_hidden_1_M_2 = b_M_keeps_run_t[:, None] * b_d_q_pre_2_M_2
                    b_S_2 = tl.load(
                        p_state + 2 * K * F + F * V + (o_h1[:, None] * V + o_v[None, :]),
                        mask=m_h1[:, None] & m_v[None, :],
                        other=0.0,
                    )
                    b_d_q_pre_2_S_2 = _tile_dot(b_d_q_pre_2, tl.trans(b_S_2), one, PREC)
                    b_d_q_hidden_1_by_q_hidden_1_S_2 = b_R_M_S_t[:, None] * b_d_q_pre_2_S_2
                    b_d_q_hidden_1_scores = tl.load(p_d_q_hidden_1_scores + (o_t[:, None] * BT + o_t[None, :]))
                    b_hidden_1 = tl.load(p_hidden_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0)
                    b_d_q_hidden_1_part = _tile_dot_add(
                        b_d_q_hidden_1_by_q_hidden_1_S_2, b_d_q_hidden_1_scores, b_hidden_1, one, PREC
                    )
                    b_d_q_hidden_1 = b_d_q_hidden_1_by_q_hidden_1_M_2 + b_d_q_hidden_1_part
                    b_q_pre_1 = tl.load(p_q_pre_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0)
                    b_d_q_pre_1 = b_d_q_hidden_1 * (
                        b_q_pre_1 * 1.4142135623730951 * tl.exp(-(b_q_pre_1 * b_q_pre_1 / 2.0)) / 3.544907701811032
                        + tl.erf(b_q_pre_1 * 1.4142135623730951 / 2.0) / 2.0
                        + 0.5
                    )
                    tl.store(p_d_q_pre_1 + (o_t[:, None] * F + o_h1[None, :]), b_d_q_pre_1, mask=m_h1[None, :])
                    b_M_1 = tl.load(
                        p_state + (o_k[:, None] * F + o_h1[None, :]), mask=m_k[:, None] & m_h1[None, :], other=0.0
                    )
                    b_d_q_pre_1_M_1 = _tile_dot_add(b_d_q_pre_1_M_1, b_d_q_pre_1, tl.trans(b_M_1), one, PREC)
                    b_S_1 = tl.load(
                        p_state + K * F + F * V + (o_k[:, None] * F + o_h1[None, :]),
                        mask=m_k[:, None] & m_h1[None, :],
                        other=0.0,
                    )
                    b_d_q_pre_1_S_1 = _tile_dot_add(b_d_q_pre_1_S_1, b_d_q_pre_1, tl.trans(b_S_1), one, PREC)
                    b_error_1 = tl.load(p_error_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0)
                    b_d_C_q_k_by_q_pre_1 = _tile_dot_add(
                        b_d_C_q_k_by_q_pre_1, b_d_q_pre_1, tl.trans(b_error_1), one, PREC
                    )
                    b_q_S_1 = tl.load(p_q_S_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0)
                    b_d_q_pre_1_q_S_1 = b_d_q_pre_1 * b_q_S_1
                    b_d_R_M_S_t_by_R_q_S_1 += tl.sum(b_d_q_pre_1_q_S_1, 1)
                    b_q_M_1 = tl.load(p_q_M_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0)
                    b_d_q_pre_1_q_M_1 = b_d_q_pre_1 * b_q_M_1
                    b_d_M_keeps_run_t_by_R_q_M_1 += tl.sum(b_d_q_pre_1_q_M_1, 1)
                b_S_keeps = tl.load(p_S_keeps + o_t)
                b_S_keeps_e, b_S_keeps_f, b_S_keeps_e1, b_S_keeps_f1 = _tile_runs(b_S_keeps)
                b_S_keeps_run_j = _tile_product(
                    tl.sum(b_S_keeps_e1, 0) - b_S_keeps_e, tl.sum(b_S_keeps_f1, 0) - b_S_keeps_f
                )
                b_rate = tl.load(p_rate + o_t)
                b_C_S_j = b_S_keeps_run_j * b_rate
                tl.store(p_C_S_j + o_t, b_C_S_j)
                b_M_keeps = tl.load(p_M_keeps + o_t)
                b_M_keeps_e, b_M_keeps_f, b_M_keeps_e1, b_M_keeps_f1 = _tile_runs(b_M_keeps)
                b_M_keeps_run_j = _tile_product(
                    tl.sum(b_M_keeps_e1, 0) - b_M_keeps_e, tl.sum(b_M_keeps_f1, 0) - b_M_keeps_f
                )
                b_M_keeps_run_j_rate = b_M_keeps_run_j * b_rate
                b_M_takes_S = tl.load(p_M_takes_S + o_t)
                b_M_of_S_s = b_M_keeps_run_j * b_M_takes_S
                tl.store(p_M_of_S_s + o_t, b_M_of_S_s)
                b_C_S_before_tj = tl.load(p_C_S_before_tj + (o_t[:, None] * BT + o_t[None, :]))
                b_M_of_S_s_C_S_before_tj = tl.sum(b_M_of_S_s[:, None] * b_C_S_before_tj, 0)
                b_C_M_j = b_M_keeps_run_j_rate + b_M_of_S_s_C_S_before_tj
                tl.store(p_C_M_j + o_t, b_C_M_j)
                b_d_y = tl.load(
                    d_y + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]),
                    mask=m_t[:, None] & m_v[None, :],
                    other=0.0,
                ).to(IN)
                b_M_keeps_run_t = tl.load(p_M_keeps_run_t + o_t)
                b_d_q_by_q_M_1 = b_M_keeps_run_t[:, None] * b_d_q_pre_1_M_1
                b_R_M_S_t = tl.load(p_R_M_S_t + o_t)
                b_d_q_by_q_S_1 = b_R_M_S_t[:, None] * b_d_q_pre_1_S_1
                b_C_M_tj = tl.load(p_C_M_tj + (o_t[:, None] * BT + o_t[None, :]))
                b_d_q_k = b_d_C_q_k_by_q_pre_1 * b_C_M_tj
                tl.store(p_d_q_k + (o_t[:, None] * BT + o_t[None, :]), b_d_q_k)
                b_k = tl.load(
                    k + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
                ).to(IN)
                b_d_q_by_q_S_1_d_q_by_q_k = _tile_dot_add(b_d_q_by_q_S_1, b_d_q_k, b_k.to(tl.float32), one, PREC)
                b_d_q_2_part = b_d_q_by_q_M_1 + b_d_q_by_q_S_1_d_q_by_q_k
                b_d_q_2 = b_d_y.to(tl.float32) + b_d_q_2_part
                b_d_q_rows = tl.load(
                    d_q_rows + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]),
                    mask=m_t[:, None] & m_k[None, :],
                    other=0.0,
                )
                b_d_q = b_d_q_2 + b_d_q_rows
                tl.store(
                    d_q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]),
                    b_d_q.to(d_q.dtype.element_ty),
                    mask=m_t[:, None] & m_k[None, :],
                )
                b_d_M_2_writes_by_M_2_next = tl.load(p_d_M_2_writes_by_M_2_next + (o_t[:, None] * BV + o_v[None, :]))
                b_error_2 = tl.load(p_error_2 + (o_t[:, None] * BV + o_v[None, :]))
                b_d_C_M_j_part = b_d_M_2_writes_by_M_2_next * b_error_2
                b_d_C_M_j_by_M_2_writes = tl.sum(b_d_C_M_j_part, 1)
                b_d_C_M_j_by_M_1_writes = tl.load(p_d_C_M_j_by_M_1_writes + o_t)
                b_d_C_M_j = b_d_C_M_j_by_M_2_writes + b_d_C_M_j_by_M_1_writes
                b_d_M_keeps_run_j = b_d_C_M_j * b_rate
                b_M_keeps_before_tj = tl.where(
                    o_t[:, None] > o_t[None, :],
                    _tile_product(
                        (b_M_keeps_e - b_M_keeps_e1)[:, None] - b_M_keeps_e[None, :],
                        (b_M_keeps_f - b_M_keeps_f1)[:, None] - b_M_keeps_f[None, :],
                    ),
                    0.0,
                )
                b_d_M_keeps_part = b_d_M_keeps_run_j[None, :] * b_M_keeps_before_tj
                b_d_M_keeps_part_2 = tl.sum(b_d_M_keeps_part, 1)
                b_d_M_keeps_by_M_keeps_run_j = b_M_keeps_run_j * b_d_M_keeps_part_2
                b_d_M_of_S_s_by_C_M_j = tl.sum(b_d_C_M_j[None, :] * b_C_S_before_tj, 1)
                b_d_R_M_S = b_d_R_M_S_by_M_2_next + b_d_R_M_S_by_M_1_next
                b_S_keeps_before_t = tl.load(p_S_keeps_before_t + o_t)
                b_d_M_of_S_s_by_R_M_S = b_d_R_M_S * b_S_keeps_before_t
                b_d_M_of_S_s = b_d_M_of_S_s_by_C_M_j + b_d_M_of_S_s_by_R_M_S
                b_d_M_keeps_run_s = b_d_M_of_S_s * b_M_takes_S
                b_M_keeps_before_ms = tl.where(
                    o_t[None, :] > o_t[:, None],
                    _tile_product(
                        (b_M_keeps_e - b_M_keeps_e1)[None, :] - b_M_keeps_e[:, None],
                        (b_M_keeps_f - b_M_keeps_f1)[None, :] - b_M_keeps_f[:, None],
                    ),
                    0.0,
                )
                b_d_M_keeps_part_3 = b_d_M_keeps_run_s[:, None] * b_M_keeps_before_ms
                b_d_M_keeps_part_4 = tl.sum(b_d_M_keeps_part_3, 0)
                b_d_M_keeps_by_M_keeps_run_s = b_M_keeps_run_j * b_d_M_keeps_part_4
                b_d_M_keeps_run_all = b_d_M_keeps_run_all_by_M_2_next + b_d_M_keeps_run_all_by_M_1_next
                b_d_M_keeps_run_all_at_m = b_M_keeps_run_j * b_d_M_keeps_run_all
                b_M_keeps_before_t = _tile_product((b_M_keeps_e - b_M_keeps_e1), (b_M_keeps_f - b_M_keeps_f1))
                b_d_M_keeps_by_M_keeps_run_all = b_d_M_keeps_run_all_at_m * b_M_keeps_before_t
                b_M_keeps_run_tj = tl.load(p_M_keeps_run_tj + (o_t[:, None] * BT + o_t[None, :]))
                b_d_C_q_hidden_1_scores_by_q_pre_2 = tl.load(
                    p_d_C_q_hidden_1_scores_by_q_pre_2 + (o_t[:, None] * BT + o_t[None, :])
                )
                b_q_hidden_1_unscaled_hidden_1 = tl.load(
                    p_q_hidden_1_unscaled_hidden_1 + (o_t[:, None] * BT + o_t[None, :])
                )
                b_q_hidden_1_scores = b_q_hidden_1_unscaled_hidden_1 / 2.0
                b_d_C_M_tj_by_C_q_hidden_1_scores = b_d_C_q_hidden_1_scores_by_q_pre_2 * b_q_hidden_1_scores
                b_q_k = tl.load(p_q_k + (o_t[:, None] * BT + o_t[None, :]))
                b_d_C_M_tj_by_C_q_k = b_d_C_q_k_by_q_pre_1 * b_q_k
                b_d_C_M_tj = b_d_C_M_tj_by_C_q_hidden_1_scores + b_d_C_M_tj_by_C_q_k
                b_M_keeps_run_tj_d_C_M_tj = _tile_dot(tl.trans(b_M_keeps_run_tj), b_d_C_M_tj, one, PREC)
                b_d_M_keeps_run_tj_at_m = b_rate[None, :] * b_M_keeps_run_tj_d_C_M_tj
                b_d_M_keeps_part_5 = b_d_M_keeps_run_tj_at_m * b_M_keeps_before_tj
                b_d_M_keeps_by_M_keeps_run_tj = tl.sum(b_d_M_keeps_part_5, 1)
                b_d_q_pre_2 = tl.load(p_d_q_pre_2 + (o_t[:, None] * BV + o_v[None, :]))
                b_q_hidden_1_unscaled_S_2 = tl.load(p_q_hidden_1_unscaled_S_2 + (o_t[:, None] * BV + o_v[None, :]))
                b_d_R_M_S_t_part = b_d_q_pre_2 * b_q_hidden_1_unscaled_S_2
                b_d_R_M_S_t_part_2 = tl.sum(b_d_R_M_S_t_part, 1)
                b_d_R_M_S_t_by_R_q_hidden_1_S_2 = b_d_R_M_S_t_part_2 / 2.0
                b_d_R_M_S_t = b_d_R_M_S_t_by_R_q_hidden_1_S_2 + b_d_R_M_S_t_by_R_q_S_1
                b_d_M_of_S_ts_by_R_M_S_t = b_d_R_M_S_t[:, None] * b_S_keeps_before_t[None, :]
                b_d_M_of_S_ts = _tile_dot_add(
                    b_d_M_of_S_ts_by_R_M_S_t, b_d_C_M_tj, tl.trans(b_C_S_before_tj), one, PREC
                )
                b_M_keeps_run_tj_d_M_of_S_ts = _tile_dot(tl.trans(b_d_M_of_S_ts), b_M_keeps_run_tj, one, PREC)
                b_d_M_keeps_run_ts_at_m = b_M_takes_S[:, None] * b_M_keeps_run_tj_d_M_of_S_ts
                b_d_M_keeps_part_6 = b_d_M_keeps_run_ts_at_m * b_M_keeps_before_ms
                b_d_M_keeps_by_M_keeps_run_ts = tl.sum(b_d_M_keeps_part_6, 0)
                b_q_hidden_1_unscaled_M_2 = tl.load(p_q_hidden_1_unscaled_M_2 + (o_t[:, None] * BV + o_v[None, :]))
                b_d_M_keeps_run_t_part = b_d_q_pre_2 * b_q_hidden_1_unscaled_M_2
                b_d_M_keeps_run_t_part_2 = tl.sum(b_d_M_keeps_run_t_part, 1)
                b_d_M_keeps_run_t_by_R_q_hidden_1_M_2 = b_d_M_keeps_run_t_part_2 / 2.0
                b_d_M_keeps_run_t = b_d_M_keeps_run_t_by_R_q_hidden_1_M_2 + b_d_M_keeps_run_t_by_R_q_M_1
                b_d_M_keeps_run_t_at_m = tl.sum(b_M_keeps_run_tj * b_d_M_keeps_run_t[:, None], 0)
                b_d_M_keeps_by_M_keeps_run_t = b_d_M_keeps_run_t_at_m * b_M_keeps_before_t
                b_d_M_keeps = (
                    b_d_M_keeps_by_M_keeps_run_j
                    + b_d_M_keeps_by_M_keeps_run_s
                    + b_d_M_keeps_by_M_keeps_run_all
                    + b_d_M_keeps_by_M_keeps_run_tj
                    + b_d_M_keeps_by_M_keeps_run_ts
                    + b_d_M_keeps_by_M_keeps_run_t
                )
                b_valid = m_t.to(tl.float32)
                b_d_alpha = b_d_M_keeps * tl.where(b_valid > 0, 1.0, 0.0)
                tl.store(d_alpha + i_row + o_t * H, b_d_alpha, mask=m_t)
                b_d_S_2_writes_by_S_2_next = tl.load(p_d_S_2_writes_by_S_2_next + (o_t[:, None] * BV + o_v[None, :]))
                b_d_C_S_j_part = b_d_S_2_writes_by_S_2_next * b_error_2
                b_d_C_S_j_by_S_2_writes = tl.sum(b_d_C_S_j_part, 1)
                b_d_C_S_j_by_S_1_writes = tl.load(p_d_C_S_j_by_S_1_writes + o_t)
                b_d_C_S_j = b_d_C_S_j_by_S_2_writes + b_d_C_S_j_by_S_1_writes
                b_d_S_keeps_run_j = b_d_C_S_j * b_rate
                b_S_keeps_before_tj = tl.load(p_S_keeps_before_tj + (o_t[:, None] * BT + o_t[None, :]))
                b_d_S_keeps_part = b_d_S_keeps_run_j[None, :] * b_S_keeps_before_tj
                b_d_S_keeps_part_2 = tl.sum(b_d_S_keeps_part, 1)
                b_d_S_keeps_by_S_keeps_run_j = b_S_keeps_run_j * b_d_S_keeps_part_2
                b_d_S_keeps_run_all = b_d_S_keeps_run_all_by_S_2_next + b_d_S_keeps_run_all_by_S_1_next
                b_d_S_keeps_run_all_at_m = b_S_keeps_run_j * b_d_S_keeps_run_all
                b_d_S_keeps_by_S_keeps_run_all = b_d_S_keeps_run_all_at_m * b_S_keeps_before_t
                b_d_C_S_before_tj_by_C_M_j = b_M_of_S_s[:, None] * b_d_C_M_j[None, :]
                b_M_keeps_run_tj_d_C_M_tj_2 = _tile_dot(tl.trans(b_M_keeps_run_tj), b_d_C_M_tj, one, PREC)
                b_d_C_S_before_tj_by_C_M_tj = b_M_takes_S[:, None] * b_M_keeps_run_tj_d_C_M_tj_2
                b_d_C_S_before_tj = b_d_C_S_before_tj_by_C_M_j + b_d_C_S_before_tj_by_C_M_tj
                b_d_S_keeps_part_3 = _tile_dot(tl.trans(b_S_keeps_before_tj), b_d_C_S_before_tj, one, PREC)
                b_d_S_keeps_before_tj_at_m = b_rate[None, :] * b_d_S_keeps_part_3
                b_d_S_keeps_part_4 = b_d_S_keeps_before_tj_at_m * b_S_keeps_before_tj
                b_d_S_keeps_by_S_keeps_before_tj = tl.sum(b_d_S_keeps_part_4, 1)
                b_d_S_keeps_before_t_by_R_M_S = b_M_of_S_s * b_d_R_M_S
                b_M_keeps_run_tj_d_R_M_S_t = tl.sum(b_M_keeps_run_tj * b_d_R_M_S_t[:, None], 0)
                b_d_S_keeps_before_t_by_R_M_S_t = b_M_takes_S * b_M_keeps_run_tj_d_R_M_S_t
                b_d_S_keeps_before_t = b_d_S_keeps_before_t_by_R_M_S + b_d_S_keeps_before_t_by_R_M_S_t
                b_d_S_keeps_before_t_at_m = tl.sum(b_S_keeps_before_tj * b_d_S_keeps_before_t[:, None], 0)
                b_d_S_keeps_by_S_keeps_before_t = b_d_S_keeps_before_t_at_m * b_S_keeps_before_t
                b_d_S_keeps = (
                    b_d_S_keeps_by_S_keeps_run_j
                    + b_d_S_keeps_by_S_keeps_run_all
                    + b_d_S_keeps_by_S_keeps_before_tj
                    + b_d_S_keeps_by_S_keeps_before_t
                )
                b_d_beta_by_S_keeps = b_d_S_keeps * tl.where(b_valid > 0, 1.0, 0.0)
                b_d_M_takes_S_by_M_of_S_s = b_d_M_of_S_s * b_M_keeps_run_j
                b_d_M_of_S_ts_M_keeps_run_tj = b_d_M_of_S_ts * b_M_keeps_run_tj
                b_d_M_takes_S_by_M_of_S_ts = tl.sum(b_d_M_of_S_ts_M_keeps_run_tj, 0)
                b_d_M_takes_S = b_d_M_takes_S_by_M_of_S_s + b_d_M_takes_S_by_M_of_S_ts
                b_d_beta_by_M_takes_S = b_d_M_takes_S * tl.where(b_valid > 0, 1.0, 0.0)
                b_d_beta = b_d_beta_by_S_keeps + b_d_beta_by_M_takes_S
                tl.store(d_beta + i_row + o_t * H, b_d_beta, mask=m_t)
                b_d_rate_by_C_M_j = b_d_C_M_j * b_M_keeps_run_j
                b_d_rate_by_C_S_j = b_d_C_S_j * b_S_keeps_run_j
                b_d_rate_part = b_d_C_S_before_tj * b_S_keeps_before_tj
                b_d_rate_by_C_S_before_tj = tl.sum(b_d_rate_part, 0)
                b_d_C_M_tj_M_keeps_run_tj = b_d_C_M_tj * b_M_keeps_run_tj
                b_d_rate_by_C_M_tj = tl.sum(b_d_C_M_tj_M_keeps_run_tj, 0)
                b_d_rate = b_d_rate_by_C_M_j + b_d_rate_by_C_S_j + b_d_rate_by_C_S_before_tj + b_d_rate_by_C_M_tj
                b_d_rate_valid = b_d_rate * tl.where(b_valid > 0, 1.0, 0.0)
                b_d_eta = -b_d_rate_valid
                tl.store(d_eta + i_row + o_t * H, b_d_eta, mask=m_t)
                b_d_error_2_by_error_hidden_1 = tl.zeros([BT, BV], tl.float32)
                tl.debug_barrier()
                for i_h1 in range(n_tiles):
                    o_h1 = i_h1 * BF + tl.arange(0, BF)
                    m_h1 = o_h1 < F
                    tl.debug_barrier()
                    b_C_q_k = tl.load(p_C_q_k + (o_t[:, None] * BT + o_t[None, :]))
                    b_d_q_pre_1 = tl.load(
                        p_d_q_pre_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0
                    )
                    b_d_S_1_writes_by_S_1_next = tl.load(
                        p_d_S_1_writes_by_S_1_next + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0
                    )
                    b_d_error_1_by_S_1_writes = b_d_S_1_writes_by_S_1_next * b_C_S_j[:, None]
                    b_d_M_1_writes_by_M_1_next = tl.load(
                        p_d_M_1_writes_by_M_1_next + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0
                    )
                    b_d_error_1_by_M_1_writes = b_d_M_1_writes_by_M_1_next * b_C_M_j[:, None]
                    b_d_error_1_part = b_d_error_1_by_S_1_writes + b_d_error_1_by_M_1_writes
                    b_d_error_1 = _tile_dot_add(b_d_error_1_part, tl.trans(b_C_q_k), b_d_q_pre_1, one, PREC)
                    tl.store(p_d_error_1 + (o_t[:, None] * F + o_h1[None, :]), b_d_error_1, mask=m_h1[None, :])
                    b_pre_1 = tl.load(p_pre_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0)
                    b_d_error_hidden_1 = b_d_error_1 * (
                        b_pre_1 * 1.4142135623730951 * tl.exp(-(b_pre_1 * b_pre_1 / 2.0)) / 3.544907701811032
                        + tl.erf(b_pre_1 * 1.4142135623730951 / 2.0) / 2.0
                        + 0.5
                    )
                    tl.store(
                        p_d_error_hidden_1 + (o_t[:, None] * F + o_h1[None, :]), b_d_error_hidden_1, mask=m_h1[None, :]
                    )
                    b_M_2 = tl.load(
                        p_state + K * F + (o_h1[:, None] * V + o_v[None, :]),
                        mask=m_h1[:, None] & m_v[None, :],
                        other=0.0,
                    )
                    b_d_error_2_by_error_hidden_1 = _tile_dot_add(
                        b_d_error_2_by_error_hidden_1, b_d_error_hidden_1, b_M_2, one, PREC
                    )
                b_R_M_S_t = tl.load(p_R_M_S_t + o_t)
                b_S_keeps = tl.load(p_S_keeps + o_t)
                b_S_keeps_e, b_S_keeps_f, b_S_keeps_e1, b_S_keeps_f1 = _tile_runs(b_S_keeps)
                b_S_keeps_run_all = _tile_product(tl.sum(b_S_keeps_e1, 0), tl.sum(b_S_keeps_f1, 0))
                b_M_of_S_s = tl.load(p_M_of_S_s + o_t)
                b_S_keeps_before_t = tl.load(p_S_keeps_before_t + o_t)
                b_R_M_S = tl.sum(b_M_of_S_s * b_S_keeps_before_t, 0)
                b_d_q_pre_2 = tl.load(p_d_q_pre_2 + (o_t[:, None] * BV + o_v[None, :]))
                b_d_q_hidden_1_S_2 = b_d_q_pre_2 * b_R_M_S_t[:, None]
                tl.store(p_d_q_hidden_1_S_2 + (o_t[:, None] * BV + o_v[None, :]), b_d_q_hidden_1_S_2)
                b_C_q_hidden_1_scores_unscaled = tl.load(
                    p_C_q_hidden_1_scores_unscaled + (o_t[:, None] * BT + o_t[None, :])
                )
                b_d_error_2_part = _tile_dot(tl.trans(b_C_q_hidden_1_scores_unscaled), b_d_q_pre_2, one, PREC)
                b_d_error_2_by_q_pre_2 = b_d_error_2_part / 2.0
                b_d_S_2_writes_by_S_2_next = tl.load(p_d_S_2_writes_by_S_2_next + (o_t[:, None] * BV + o_v[None, :]))
                b_C_S_j = tl.load(p_C_S_j + o_t)
                b_d_error_2_by_S_2_writes = b_d_S_2_writes_by_S_2_next * b_C_S_j[:, None]
                b_d_M_2_writes_by_M_2_next = tl.load(p_d_M_2_writes_by_M_2_next + (o_t[:, None] * BV + o_v[None, :]))
                b_C_M_j = tl.load(p_C_M_j + o_t)
                b_d_error_2_by_M_2_writes = b_d_M_2_writes_by_M_2_next * b_C_M_j[:, None]
                b_d_error_2_part_2 = b_d_error_2_by_S_2_writes + b_d_error_2_by_M_2_writes
                b_d_error_2_j = b_d_error_2_by_q_pre_2 + b_d_error_2_part_2
                b_d_error_2 = b_d_error_2_j + b_d_error_2_by_error_hidden_1
                b_d_error_pre_2_sum = tl.sum(b_d_error_2, 1)
                b_d_error_centred_by_error_pre_2_sum = (-(b_d_error_pre_2_sum[:, None] / 64.0)) + tl.zeros(
                    [BT, BV], tl.float32
                )
                b_d_error_centred = b_d_error_centred_by_error_pre_2_sum + b_d_error_2
                tl.store(p_d_error_centred + (o_t[:, None] * BV + o_v[None, :]), b_d_error_centred)
                b_centred = tl.load(p_centred + (o_t[:, None] * BV + o_v[None, :]))
                b_d_error_squares_unscaled = b_d_error_centred * b_centred
                b_d_error_centred_dot_centred = tl.sum(b_d_error_squares_unscaled, 1)
                b_d_error_squares = 2.0 * b_d_error_centred_dot_centred
                tl.store(p_d_error_squares + o_t, b_d_error_squares)
                b_squares = tl.load(p_squares + o_t)
                b_d_error_by_error_squares = -(
                    b_d_error_squares[:, None] * b_centred / (128.0 * _pow((b_squares[:, None] / 64.0 + 1e-05), 1.5))
                )
                b_d_error_by_error_centred_by_normed = b_d_error_centred / tl.sqrt_rn(b_squares[:, None] / 64.0 + 1e-05)
                b_d_error = b_d_error_by_error_squares + b_d_error_by_error_centred_by_normed
                tl.store(p_d_error + (o_t[:, None] * BV + o_v[None, :]), b_d_error)
                b_d_v = -(2.0 * b_d_error)
                tl.store(
                    d_v + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]),
                    b_d_v.to(d_v.dtype.element_ty),
                    mask=m_t[:, None] & m_v[None, :],
                )
                tl.debug_barrier()
                for i_h1 in range(n_tiles):
                    o_h1 = i_h1 * BF + tl.arange(0, BF)
                    m_h1 = o_h1 < F
                    tl.debug_barrier()
                    b_q = tl.load(
                        q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]),
                        mask=m_t[:, None] & m_k[None, :],
                        other=0.0,
                    ).to(IN)
                    b_d_q_pre_1 = tl.load(
                        p_d_q_pre_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0
                    )
                    b_d_q_S_1 = b_d_q_pre_1 * b_R_M_S_t[:, None]
                    b_d_S_1_next = tl.load(
                        p_d_next + K * F + F * V + (o_k[:, None] * F + o_h1[None, :]),
                        mask=m_k[:, None] & m_h1[None, :],
                        other=0.0,
                    )
                    b_d_S_1_by_S_1_next = b_d_S_1_next * b_S_keeps_run_all
                    b_d_M_1_next = tl.load(
                        p_d_next + (o_k[:, None] * F + o_h1[None, :]), mask=m_k[:, None] & m_h1[None, :], other=0.0
                    )
                    b_d_S_1_by_M_1_next = b_d_M_1_next * b_R_M_S
                    b_d_S_1_part = b_d_S_1_by_S_1_next + b_d_S_1_by_M_1_next
                    b_d_S_1 = _tile_dot_add(b_d_S_1_part, tl.trans(b_q.to(tl.float32)), b_d_q_S_1, one, PREC)
                    tl.store(
                        p_d_state + K * F + F * V + (o_k[:, None] * F + o_h1[None, :]),
                        b_d_S_1,
                        mask=m_k[:, None] & m_h1[None, :],
                    )
                    b_q_hidden_1_unscaled = tl.load(
                        p_q_hidden_1_unscaled + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0
                    )
                    b_d_q_hidden_1_S_2 = tl.load(p_d_q_hidden_1_S_2 + (o_t[:, None] * BV + o_v[None, :]))
                    b_d_S_2_part = _tile_dot(tl.trans(b_q_hidden_1_unscaled), b_d_q_hidden_1_S_2, one, PREC)
                    b_d_S_2_by_q_hidden_1_S_2 = b_d_S_2_part / 2.0
                    b_d_S_2_next = tl.load(
                        p_d_next + 2 * K * F + F * V + (o_h1[:, None] * V + o_v[None, :]),
                        mask=m_h1[:, None] & m_v[None, :],
                        other=0.0,
                    )
                    b_d_S_2_by_S_2_next = b_d_S_2_next * b_S_keeps_run_all
                    b_d_M_2_next = tl.load(
                        p_d_next + K * F + (o_h1[:, None] * V + o_v[None, :]),
                        mask=m_h1[:, None] & m_v[None, :],
                        other=0.0,
                    )
                    b_d_S_2_by_M_2_next = b_d_M_2_next * b_R_M_S
                    b_d_S_2_part_2 = b_d_S_2_by_S_2_next + b_d_S_2_by_M_2_next
                    b_d_S_2 = b_d_S_2_by_q_hidden_1_S_2 + b_d_S_2_part_2
                    tl.store(
                        p_d_state + 2 * K * F + F * V + (o_h1[:, None] * V + o_v[None, :]),
                        b_d_S_2,
                        mask=m_h1[:, None] & m_v[None, :],
                    )
                b_C_S_j = tl.load(p_C_S_j + o_t)
                b_C_M_j = tl.load(p_C_M_j + o_t)
                b_d_error_squares = tl.load(p_d_error_squares + o_t)
                b_squares = tl.load(p_squares + o_t)
                b_of_squares_2 = 1.0 / _pow((b_squares / 64.0 + 1e-05), 2.5)
                b_error_dot_centred = tl.load(p_error_dot_centred + o_t)
                b_d_squares_by_error_squares = 3.0 * b_d_error_squares * b_of_squares_2 * b_error_dot_centred / 16384.0
                b_of_squares = tl.load(p_of_squares + o_t)
                b_d_error_centred = tl.load(p_d_error_centred + (o_t[:, None] * BV + o_v[None, :]))
                b_error = tl.load(p_error + (o_t[:, None] * BV + o_v[None, :]))
                b_d_error_centred_error = b_d_error_centred * b_error
                b_d_error_centred_dot_error = tl.sum(b_d_error_centred_error, 1)
                b_d_squares_by_error_centred_by_normed = -(b_of_squares * b_d_error_centred_dot_error / 128.0)
                b_d_error = tl.load(p_d_error + (o_t[:, None] * BV + o_v[None, :]))
                b_centred = tl.load(p_centred + (o_t[:, None] * BV + o_v[None, :]))
                b_d_error_centred_2 = b_d_error * b_centred
                b_d_error_dot_centred = tl.sum(b_d_error_centred_2, 1)
                b_d_squares_by_normed = -(b_of_squares * b_d_error_dot_centred / 64.0)
                b_d_squares = (
                    b_d_squares_by_error_squares + b_d_squares_by_error_centred_by_normed + b_d_squares_by_normed
                )
                b_d_centred_by_squares = 2.0 * b_d_squares[:, None] * b_centred
                b_d_prediction = 2.0 * b_d_error
                tl.store(p_d_prediction + (o_t[:, None] * BV + o_v[None, :]), b_d_prediction)
                b_d_centred_by_normed = b_d_prediction / tl.sqrt_rn(b_squares[:, None] / 64.0 + 1e-05)
                b_d_centred_by_error_squares = -(
                    b_d_error_squares[:, None] * b_error / (128.0 * _pow((b_squares[:, None] / 64.0 + 1e-05), 1.5))
                )
                b_error_squares = tl.load(p_error_squares + o_t)
                b_d_centred_by_error_centred_by_squares = 2.0 * b_d_error_centred * b_error_squares[:, None]
                b_d_centred_part = b_d_centred_by_error_squares + b_d_centred_by_error_centred_by_squares
                b_d_centred_part_2 = b_d_centred_by_normed + b_d_centred_part
                b_d_centred = b_d_centred_by_squares + b_d_centred_part_2
                b_d_centred_sum = tl.sum(b_d_centred, 1)
                b_d_pre_2_sum = -(b_d_centred_sum / 64.0)
                b_d_pre_2 = b_d_centred + b_d_pre_2_sum[:, None]
                tl.store(p_d_pre_2 + (o_t[:, None] * BV + o_v[None, :]), b_d_pre_2)
                b_d_k_by_pre_1 = tl.zeros([BT, BK], tl.float32)
                tl.debug_barrier()
                for i_h1 in range(n_tiles):
                    o_h1 = i_h1 * BF + tl.arange(0, BF)
                    m_h1 = o_h1 < F
                    tl.debug_barrier()
                    b_d_error_1 = tl.load(
                        p_d_error_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0
                    )
                    b_error_hidden_1 = tl.load(
                        p_error_hidden_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0
                    )
                    b_pre_1 = tl.load(p_pre_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0)
                    b_d_pre_1_by_error_1 = (
                        b_d_error_1
                        * b_error_hidden_1
                        * (
                            1.4142135623730951 * tl.exp(-(b_pre_1 * b_pre_1 / 2.0)) / 1.772453850905516
                            - 1.4142135623730951
                            * b_pre_1
                            * b_pre_1
                            * tl.exp(-(b_pre_1 * b_pre_1 / 2.0))
                            / 3.544907701811032
                        )
                    )
                    b_q_hidden_1_unscaled = tl.load(
                        p_q_hidden_1_unscaled + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0
                    )
                    b_d_q_hidden_1_scores = tl.load(p_d_q_hidden_1_scores + (o_t[:, None] * BT + o_t[None, :]))
                    b_d_hidden_1_part = _tile_dot(tl.trans(b_d_q_hidden_1_scores), b_q_hidden_1_unscaled, one, PREC)
                    b_d_hidden_1_by_q_hidden_1_scores = b_d_hidden_1_part / 2.0
                    b_d_S_2_next = tl.load(
                        p_d_next + 2 * K * F + F * V + (o_h1[:, None] * V + o_v[None, :]),
                        mask=m_h1[:, None] & m_v[None, :],
                        other=0.0,
                    )
                    b_error_2 = tl.load(p_error_2 + (o_t[:, None] * BV + o_v[None, :]))
                    b_d_S_2_next_error_2 = _tile_dot(b_error_2, tl.trans(b_d_S_2_next), one, PREC)
                    b_d_hidden_1_by_S_2_next = b_C_S_j[:, None] * b_d_S_2_next_error_2
                    b_d_M_2_next = tl.load(
                        p_d_next + K * F + (o_h1[:, None] * V + o_v[None, :]),
                        mask=m_h1[:, None] & m_v[None, :],
                        other=0.0,
                    )
                    b_d_M_2_next_error_2 = _tile_dot(b_error_2, tl.trans(b_d_M_2_next), one, PREC)
                    b_d_hidden_1_by_M_2_next = b_C_M_j[:, None] * b_d_M_2_next_error_2
                    b_d_hidden_1_part_2 = b_d_hidden_1_by_S_2_next + b_d_hidden_1_by_M_2_next
                    b_d_hidden_1_j = b_d_hidden_1_by_q_hidden_1_scores + b_d_hidden_1_part_2
                    b_d_pre_2 = tl.load(p_d_pre_2 + (o_t[:, None] * BV + o_v[None, :]))
                    b_M_2 = tl.load(
                        p_state + K * F + (o_h1[:, None] * V + o_v[None, :]),
                        mask=m_h1[:, None] & m_v[None, :],
                        other=0.0,
                    )
                    b_d_hidden_1 = _tile_dot_add(b_d_hidden_1_j, b_d_pre_2, tl.trans(b_M_2), one, PREC)
                    b_d_pre_1_by_hidden_1 = b_d_hidden_1 * (
                        b_pre_1 * 1.4142135623730951 * tl.exp(-(b_pre_1 * b_pre_1 / 2.0)) / 3.544907701811032
                        + tl.erf(b_pre_1 * 1.4142135623730951 / 2.0) / 2.0
                        + 0.5
                    )
                    b_d_pre_1 = b_d_pre_1_by_error_1 + b_d_pre_1_by_hidden_1
                    tl.store(p_d_pre_1 + (o_t[:, None] * F + o_h1[None, :]), b_d_pre_1, mask=m_h1[None, :])
                    b_M_1 = tl.load(
                        p_state + (o_k[:, None] * F + o_h1[None, :]), mask=m_k[:, None] & m_h1[None, :], other=0.0
                    )
                    b_d_k_by_pre_1 = _tile_dot_add(b_d_k_by_pre_1, b_d_pre_1, tl.trans(b_M_1), one, PREC)
                b_M_keeps_run_t = tl.load(p_M_keeps_run_t + o_t)
                b_M_keeps = tl.load(p_M_keeps + o_t)
                b_M_keeps_e, b_M_keeps_f, b_M_keeps_e1, b_M_keeps_f1 = _tile_runs(b_M_keeps)
                b_M_keeps_run_all = _tile_product(tl.sum(b_M_keeps_e1, 0), tl.sum(b_M_keeps_f1, 0))
                b_d_q_pre_2 = tl.load(p_d_q_pre_2 + (o_t[:, None] * BV + o_v[None, :]))
                b_d_q_hidden_1_M_2 = b_d_q_pre_2 * b_M_keeps_run_t[:, None]
                tl.store(p_d_q_hidden_1_M_2 + (o_t[:, None] * BV + o_v[None, :]), b_d_q_hidden_1_M_2)
                b_d_prediction = tl.load(p_d_prediction + (o_t[:, None] * BV + o_v[None, :]))
                b_d_k_t = b_d_k_by_pre_1 + b_d_prediction
                b_C_S_j = tl.load(p_C_S_j + o_t)
                b_d_S_1_next_error_1 = tl.load(p_d_S_1_next_error_1 + (o_t[:, None] * BK + o_k[None, :]))
                b_d_k_by_S_1_next = b_C_S_j[:, None] * b_d_S_1_next_error_1
                b_C_M_j = tl.load(p_C_M_j + o_t)
                b_d_M_1_next_error_1 = tl.load(p_d_M_1_next_error_1 + (o_t[:, None] * BK + o_k[None, :]))
                b_d_k_by_M_1_next = b_C_M_j[:, None] * b_d_M_1_next_error_1
                b_d_k_part = b_d_k_by_S_1_next + b_d_k_by_M_1_next
                b_d_k_t_d_k_part = b_d_k_t + b_d_k_part
                b_q = tl.load(
                    q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
                ).to(IN)
                b_d_q_k = tl.load(p_d_q_k + (o_t[:, None] * BT + o_t[None, :]))
                b_d_k = _tile_dot_add(b_d_k_t_d_k_part, tl.trans(b_d_q_k), b_q.to(tl.float32), one, PREC)
                tl.store(
                    d_k + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]),
                    b_d_k.to(d_k.dtype.element_ty),
                    mask=m_t[:, None] & m_k[None, :],
                )
                tl.debug_barrier()
                for i_h1 in range(n_tiles):
                    o_h1 = i_h1 * BF + tl.arange(0, BF)
                    m_h1 = o_h1 < F
                    tl.debug_barrier()
                    b_q = tl.load(
                        q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]),
                        mask=m_t[:, None] & m_k[None, :],
                        other=0.0,
                    ).to(IN)
                    b_d_q_pre_1 = tl.load(
                        p_d_q_pre_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0
                    )
                    b_d_q_M_1 = b_d_q_pre_1 * b_M_keeps_run_t[:, None]
                    b_k = tl.load(
                        k + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]),
                        mask=m_t[:, None] & m_k[None, :],
                        other=0.0,
                    ).to(IN)
                    b_d_pre_1 = tl.load(p_d_pre_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0)
                    b_d_M_1_next = tl.load(
                        p_d_next + (o_k[:, None] * F + o_h1[None, :]), mask=m_k[:, None] & m_h1[None, :], other=0.0
                    )
                    b_d_M_1_by_M_1_next = b_d_M_1_next * b_M_keeps_run_all
                    b_d_M_1_part = _tile_dot_add(
                        b_d_M_1_by_M_1_next, tl.trans(b_k.to(tl.float32)), b_d_pre_1, one, PREC
                    )
                    b_d_M_1 = _tile_dot_add(b_d_M_1_part, tl.trans(b_q.to(tl.float32)), b_d_q_M_1, one, PREC)
                    tl.store(p_d_state + (o_k[:, None] * F + o_h1[None, :]), b_d_M_1, mask=m_k[:, None] & m_h1[None, :])
                    b_hidden_1_unscaled = tl.load(
                        p_hidden_1_unscaled + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0
                    )
                    b_d_pre_2 = tl.load(p_d_pre_2 + (o_t[:, None] * BV + o_v[None, :]))
                    b_hidden_1_unscaled_d_pre_2 = _tile_dot(tl.trans(b_hidden_1_unscaled), b_d_pre_2, one, PREC)
                    b_d_M_2_by_pre_2 = b_hidden_1_unscaled_d_pre_2 / 2.0
                    b_error_2 = tl.load(p_error_2 + (o_t[:, None] * BV + o_v[None, :]))
                    b_d_error_hidden_1 = tl.load(
                        p_d_error_hidden_1 + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0
                    )
                    b_q_hidden_1_unscaled = tl.load(
                        p_q_hidden_1_unscaled + (o_t[:, None] * F + o_h1[None, :]), mask=m_h1[None, :], other=0.0
                    )
                    b_d_q_hidden_1_M_2 = tl.load(p_d_q_hidden_1_M_2 + (o_t[:, None] * BV + o_v[None, :]))
                    b_d_M_2_part = _tile_dot(tl.trans(b_q_hidden_1_unscaled), b_d_q_hidden_1_M_2, one, PREC)
                    b_d_M_2_by_q_hidden_1_M_2 = b_d_M_2_part / 2.0
                    b_d_M_2_next = tl.load(
                        p_d_next + K * F + (o_h1[:, None] * V + o_v[None, :]),
                        mask=m_h1[:, None] & m_v[None, :],
                        other=0.0,
                    )
                    b_d_M_2_by_M_2_next = b_d_M_2_next * b_M_keeps_run_all
                    b_d_M_2_part_2 = b_d_M_2_by_q_hidden_1_M_2 + b_d_M_2_by_M_2_next
                    b_d_M_2_part_3 = _tile_dot_add(b_d_M_2_part_2, tl.trans(b_d_error_hidden_1), b_error_2, one, PREC)
                    b_d_M_2 = b_d_M_2_by_pre_2 + b_d_M_2_part_3
                    tl.store(
                        p_d_state + K * F + (o_h1[:, None] * V + o_v[None, :]),
                        b_d_M_2,
                        mask=m_h1[:, None] & m_v[None, :],
                    )
                tl.debug_barrier()
        if d_begin is not None:
            if i_c == 0:
                _copy(d_begin + i_bh.to(tl.int64) * STATE, p_d + (i_last - i_first) % 2 * STATE, STATE)
        _copy(d_theta + (i_c.to(tl.int64) * BH + i_bh) * MEMORY, p_d + (i_last - i_first) % 2 * STATE, MEMORY)
        tl.debug_barrier()


CHUNK = 16  # tokens of a gradient chunk
STATE = 65536  # numbers of a state
MEMORY = 32768  # numbers of the memory's parameters
ROWS = 357440  # numbers of rows that pass between a kernel's loops


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


def _step_rows(chains):
    """A row a step: start, end, segment, its start, its end, the sequence's first segment, whether a run begins, 0."""
    return [(*piece, 0) for chain in chains for piece in chain]


def _tables(sequences, chained, size, place):
    """The rows of blocks of at most `size` tokens, of their chains, and of segments."""
    own = _going_on(_chains(sequences, chained, size), *place)
    segments = _later_segments(_segment_rows(sequences), *place)
    return {"blocks": _block_rows(own, chained, place[0]), "chains": _chain_rows(own), "segments": segments}


def _step_tables(sequences, chained, size, chunk, place):
    """The rows of steps of at most `size` tokens and of their chains; of how many steps the states are kept at once."""
    own = _going_on(_chains(sequences, chained, size, chunk), *place)
    return _step_rows(own), _chain_rows(own), _kept(max(map(len, own)))


def _kept(n):
    """How many of n states are kept, so that as many are made again at once: the root of n, rounded up."""
    return math.isqrt(n - 1) + 1


CHAINED = False  # whether a segment goes on from the one before
BLOCK = 64  # tokens of a block, at most


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


def _steps(kernel, x):
    """Tables of the steps that a kernel takes and of their chains, and how many states are kept at once."""
    return _steps_of(x.T, x.place, _rows_at_once(kernel, x), x.device)


@_by_length
def _steps_of(T, place, BT, device):
    steps, chains, kept = _step_tables(*_placed(T, place, BT, CHUNK))
    return _table(steps, device), _table(chains, device), kept


# Lengths that kernels are specialised for.
CONSTANTS = {
    "K": 64,
    "V": 64,
    "CHUNK": CHUNK,
    "F": 256,
    "STATE": STATE,
    "MEMORY": MEMORY,
    "ROWS": ROWS,
}
LEAST_ROWS = 16  # fewest tokens that a kernel takes at once

# The axis that each kernel takes in tiles: keys, values, or the hidden units of every layer; none where it takes all.
AXES = {"walk": "f", "read": "f", "rows": "f", "segments": "f", "reverse": "f"}

# BT, columns of a tile, num_warps and num_stages of every kernel by architecture and type of products: found by
# compiling for it, the first of a list of candidates, larger tiles first, that fits the shared memory and keeps all
# values in registers where that matters. Those that `mcgen tune` found on this machine come before them.
CONFIGURATIONS = {
    "sm80": {
        "bfloat16": {
            "walk": (16, 64, 8, 1),
            "read": (64, 64, 4, 1),
            "rows": (64, 64, 8, 1),
            "segments": (64, 64, 8, 1),
            "reverse": (16, 64, 8, 1),
        },
        "float32": {
            "walk": (16, 64, 8, 1),
            "read": (32, 64, 4, 1),
            "rows": (32, 64, 4, 1),
            "segments": (32, 64, 4, 1),
            "reverse": (16, 64, 8, 1),
        },
    },
    "sm90": {
        "bfloat16": {
            "walk": (16, 64, 8, 1),
            "read": (64, 64, 4, 1),
            "rows": (64, 64, 8, 1),
            "segments": (64, 64, 8, 1),
            "reverse": (16, 64, 8, 1),
        },
        "float32": {
            "walk": (16, 64, 4, 1),
            "read": (32, 64, 4, 1),
            "rows": (32, 64, 4, 1),
            "segments": (32, 64, 4, 1),
            "reverse": (16, 64, 8, 1),
        },
    },
    "sm100": {
        "bfloat16": {
            "walk": (16, 64, 8, 1),
            "read": (64, 64, 4, 1),
            "rows": (64, 64, 8, 1),
            "segments": (64, 64, 8, 1),
            "reverse": (16, 64, 8, 1),
        },
        "float32": {
            "walk": (16, 64, 4, 1),
            "read": (32, 64, 4, 1),
            "rows": (32, 64, 4, 1),
            "segments": (32, 64, 4, 1),
            "reverse": (16, 64, 8, 1),
        },
    },
    "gfx942": {
        "bfloat16": {
            "walk": (16, 64, 4, 1),
            "read": (64, 64, 4, 1),
            "rows": (64, 64, 4, 1),
            "segments": (64, 64, 4, 1),
            "reverse": (16, 64, 4, 1),
        },
        "float32": {
            "walk": (16, 64, 4, 1),
            "read": (32, 64, 4, 1),
            "rows": (32, 64, 4, 1),
            "segments": (32, 64, 4, 1),
            "reverse": (16, 64, 4, 1),
        },
    },
}

# BT, columns of a tile and num_warps where there is nothing better: of other GPUs, and of kernels not found above.
DEFAULTS = {
    "sm": {"bfloat16": (16, 32, 8), "float32": (16, 32, 8)},
    "gf": {"bfloat16": (16, 32, 4), "float32": (16, 32, 4)},
    "cpu": {"bfloat16": (16, 32, 4), "float32": (16, 32, 4)},
}


# What each kernel computes, as tables of launch configurations call it.
DIGESTS = {
    "walk": "7b78f814661d9916690890bc9bcb9d93fb43fce202ce7836843ebf8dfd8f6aef",
    "read": "38f767c85d69e59384e8506528ca1fc96a762b52111d2ffe19aeb21ce5e6d8d9",
    "rows": "c318a90840fe4d6ef46d6f14b824aecceb7cc5927c2a846278f5617413634225",
    "segments": "e968e5adb259c297b0ad7657261a753e489711dc32a1d8c91cf61721a8a3e07d",
    "reverse": "849f788d7328d3e850c621023d3b900c57d530900e5b029341adf4d43878ce58",
}
STEPPING = ("walk", "reverse")  # of these, tables tell apart how many rows they take at once


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


def _tile(n):
    """The power of two, 16 at least, that holds n."""
    return max(16, 1 << (n - 1).bit_length())


def _rows_at_once(kernel, x):
    """Tokens that a kernel takes at once."""
    return _configuration(kernel, x)[0]["BT"]


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


WHOLE = {}  # tiles of kernels that take all hidden units at once


def _configuration(kernel, x):
    """The constants of a kernel, tile sizes among them, and its launch options."""
    return _launching(kernel, x.element, x.device)


@functools.lru_cache(maxsize=256)
def _launching(kernel, element, device):
    BT, columns, num_warps, num_stages = _configured(kernel, element, device)
    tiles = {"BK": _tile(CONSTANTS["K"]), "BV": _tile(CONSTANTS["V"]), "BF": WHOLE.get(kernel, columns)}
    tiles["BT"] = max(BT, LEAST_ROWS)
    constants = {**CONSTANTS, **tiles, "IN": _TYPES[element], "PREC": _precision(element)}
    return constants, {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}


@functools.lru_cache(maxsize=16)
def _multiprocessors(device):
    return torch.cuda.get_device_properties(device).multi_processor_count


def _programs(units, device):
    """Programs in flight: each has a buffer of its own, and takes unit after unit."""
    return min(units, 4 if device.type == "cpu" else 2 * _multiprocessors(device))


def _launch(kernel, x, units, room=None, parts=(), apart=False, **modes):
    """Launches a kernel for a number of units; it takes its arguments from x and the constants by name.

    room: numbers that a program has as scratch, None where it has none. parts: buffers of which each tile has its own:
    name, how many, and the axis along which they are added up. apart: whether each unit has a program of its own.
    """
    constants, options = _configuration(kernel.__name__.removesuffix("_kernel"), x)
    own, programs = _parts_of_tiles(x, parts), units if apart else _programs(units, x.device)
    scratch = {} if room is None else {"work": _new(x, programs * room)}
    known = {**vars(x), **constants, **own, **scratch, **modes, "n_entries": units}
    kernel[(programs,)](**{name: known[name] for name in kernel.arg_names}, **options)
    _add_up_parts(x, own, parts)


def _given(tensors, place=()):
    """The inputs of a pass, its sizes and where its tokens lie, by the names that kernels' arguments have.

    `place` is that of `_define`: where it is not empty, the pass goes on from a state, and leaves one.
    """
    own, begun, cached = _divided(tensors, place[1] if place else 0)
    x = types.SimpleNamespace(place=_triton_place(tensors, place), begun=bool(begun), earlier=cached)
    inputs = [t.contiguous() for t in tensors[: len(INPUTS)]]
    vars(x).update(zip(INPUTS, inputs, strict=True))
    x.weights = own[len(INPUTS) :]
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
    x.begin = _state_row(x, begun) if begun else None
    x.after = x.q.new_zeros(x.B, x.H, STATE, dtype=torch.float32) if x.place else None
    x.d_after = x.d_begin = None


def _rooms_triton(B, T, H, place=()):
    """The shapes of what the forward kernels leave for the backward pass, by name; all sizes may be symbolic."""
    lead, offset, before = place or (0, 0, 0)
    n_segments = before + _segment_count(T - lead + offset)
    return {
        "cached": (B, H, n_segments, MEMORY),
    }


def _saved_triton(tensors, place=()):
    """Empty tensors for what the forward pass saves: a buffer, and the segments that rows choose, where they do."""
    q, (B, T, H, _) = tensors[INPUTS.index("q")], tensors[INPUTS.index("q")].shape
    place = _triton_place(tensors, place)
    T += place[0] if place else 0
    return [_buffer(_rooms_triton(B, T, H, place), q, torch.float32)]


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
        x.cached[:, :, : x.place[2]] = _packed_states(x.earlier[:2])


def _results(x, saved):
    """What the forward pass gives: y, the state after the last token where it goes on from one, and what it saves."""
    if not x.place:
        return [x.y, *saved]
    y = x.y
    after = _state_parts(x.after)
    own = slice(x.place[2], x.place[2] + _finished(x))
    after += _unpacked_states(x.cached[:, :, own])
    return [y, *after, *saved]


def _owe(x, d_after):
    """Names what is owed to the state after the last token and to what is cached, and makes room for what is owed to
    the state that the pass goes on from."""
    if not x.place:
        return
    x.owed = dict(zip((*PARTS, *BANK), d_after, strict=True))
    x.d_after = _state_row(x, [x.owed[name] for name in PARTS])
    x.d_begin = x.q.new_zeros(x.B, x.H, STATE, dtype=torch.float32) if x.begun else None


def _owe_cached(x):
    """Adds what is owed to segments' states by what comes after the pass."""
    if not x.place:
        return
    before = x.place[2]
    own = slice(before, before + _finished(x))
    x.d_cached[:, :, own] += _packed_states([x.owed[name] for name in BANK[:2]])
    x.d_earlier = _unpacked_states(x.d_cached[:, :, :before])


def _of_begun(x):
    """The gradients of what a pass goes on from, in the order of the operator's tensors."""
    found = []
    if x.begun:
        found += _state_parts(x.d_begin)
    return found + (x.d_earlier if x.earlier else [])


PLACES = {
    "M_1": 0,
    "M_2": 16384,
    "S_1": 32768,
    "S_2": 49152,
}  # of parts of the state in a row


def _state_row(x, parts):
    """Parts of the state, (B, H, 1, ·) each, as rows (B, H, STATE) of numbers; zeros where there is none."""
    row, given = x.q.new_zeros(x.B, x.H, STATE, dtype=torch.float32), dict(zip(PARTS, parts, strict=False))
    for name, at in PLACES.items():
        part = given[name].flatten(2)
        row[:, :, at : at + part.shape[2]] = part
    return row


def _state_parts(row):
    """The parts of the state in rows (B, H, STATE)."""
    sizes = {name: math.prod(SHAPES[name]) for name in PLACES}
    found = {n: row[:, :, at : at + sizes[n]].reshape(*row.shape[:2], 1, *SHAPES[n]) for n, at in PLACES.items()}
    return [found[name] for name in PARTS]


def _packed_states(weights):
    """Cached memories (B, H, n, in, out) as rows of MEMORY numbers."""
    return torch.cat([w.flatten(3) for w in weights], 3)


def _unpacked_states(packed):
    """The reverse of `_packed_states`."""
    shapes = [SHAPES[name] for name in BANK[:2]]
    parts = packed.split([math.prod(shape) for shape in shapes], 3)
    return [part.reshape(*part.shape[:3], *shape) for part, shape in zip(parts, shapes, strict=True)]


def _packed(theta):
    """The initial weights as rows of MEMORY numbers, one a head."""
    return torch.cat([w.mT.reshape(w.shape[0], -1) for w in theta], 1).float()


def _of_weights(x):
    """The gradients of the initial weights, which chains begin with but one that goes on from a state."""
    return _unpacked(x.d_theta[int(x.begun) :].sum((0, 1)), x.weights)


def _unpacked(packed, theta):
    """Gradients of the weights, from rows of MEMORY numbers."""
    parts = packed.split([w[0].numel() for w in theta], 1)
    return [part.view(w.shape[0], w.shape[2], w.shape[1]).mT.to(w.dtype) for part, w in zip(parts, theta, strict=True)]


def _gradients(x, tensors):
    """The gradients of the inputs, in their types."""
    return [getattr(x, f"d_{name}").to(t.dtype) for name, t in zip(INPUTS, tensors, strict=False)]


def _run_forward_triton(tensors, place=()):
    """y, and what the backward pass needs of it."""
    x = _given(tensors, place)
    x.theta = _packed(x.weights)
    saved = _saved_triton(tensors, place)
    _clear_between(saved[0], _rooms_triton(x.B, x.T, x.H, x.place))
    _recall(x, ["buffer"], saved)
    _copy_earlier(x)
    x.y = _new(x, x.B, x.T, x.H, 64, dtype=x.v.dtype)
    x.o = _new(x, x.B, x.T, x.H, 64)
    x.steps, x.chains, x.group = _steps("walk", x)
    _launch(walk_kernel, x, x.n_chains * x.BH, room=2 * STATE + ROWS)
    _launch(read_kernel, x, x.n_blocks * x.BH, room=0)
    return _results(x, saved)


def _run_backward_triton(tensors, saved, d_y, d_after=(), place=()):
    """The gradients of all inputs, from that of y and what the forward pass saved."""
    x = _given(tensors, place)
    x.theta = _packed(x.weights)
    _owe(x, d_after)
    _recall(x, ["buffer"], saved)
    x.d_y = d_y.contiguous()
    x.d_q_rows = _new(x, x.B, x.T, x.H, 64)
    x.d_cached = _new(x, x.B, x.H, x.n_segments, MEMORY)
    _launch(rows_kernel, x, x.n_blocks * x.BH, room=ROWS)
    _launch(segments_kernel, x, x.n_segments * x.BH, room=ROWS)
    _owe_cached(x)
    x.d_q = _new(x, x.B, x.T, x.H, 64, dtype=x.q.dtype)
    x.d_k = _new(x, x.B, x.T, x.H, 64, dtype=x.k.dtype)
    x.d_v = _new(x, x.B, x.T, x.H, 64, dtype=x.v.dtype)
    x.d_beta = _new(x, x.B, x.T, x.H)
    x.d_eta = _new(x, x.B, x.T, x.H)
    x.d_alpha = _new(x, x.B, x.T, x.H)
    x.d_theta = _new(x, x.n_chains, x.B, x.H, MEMORY)
    x.steps, x.chains, x.group = _steps("reverse", x)
    _launch(reverse_kernel, x, x.n_chains * x.BH, room=(2 * x.group + 4) * STATE + ROWS)
    return _gradients(x, tensors) + _of_weights(x) + _of_begun(x)


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

INPUTS = ("q", "k", "v", "beta", "eta", "alpha")
FORWARD_MODE = "forward-mode derivatives of op are not lowered; take those of `reference` instead"
TWICE = "second derivatives of op are not lowered; differentiate `reference` twice instead"
PARTS = ("S_1", "S_2", "M_1", "M_2")  # of the state that goes from token to token
BANK = ("cached_1", "cached_2")  # of what is cached at the ends of segments
WHOLE_SEQUENCE = (0, 0, 0)  # the place of a whole sequence
SEGMENT = 256  # tokens of a segment


def _divided(tensors, before):
    """An operator's tensors: inputs and weights, the state that they go on from, and what is cached before."""
    first, last = len(INPUTS) + 2, len(tensors) - (len(BANK) if before else 0)
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
    return 2 * B * H * T * (16384 * N + 174369), 2 * B * H * T * (32768 * N + 485985)


OPERATORS = {
    "torch": _define("torch", _run_forward_torch, _run_backward_torch, _saved_torch),
    "triton": _define("triton", _run_forward_triton, _run_backward_triton, _saved_triton, first=1),
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
        found = [_Mapped.apply(operators, *_nth(tensors, in_dims[1:], n)) for n in range(info.batch_size)]
        return torch.stack(found), 0


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
        found = [_MappedBackward.apply(operators, *_nth(tensors, in_dims[1:], n)) for n in range(info.batch_size)]
        return tuple(map(torch.stack, zip(*found, strict=True))), (0,) * (len(tensors) - 1)


def _nth(tensors, dims, n):
    """The n-th of what is mapped over, of every tensor."""
    return [t if dim is None else t.select(dim, n) for t, dim in zip(tensors, dims, strict=True)]


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
    tensors = [named[name] for name in ("q", "k", "v", "beta", "eta", "alpha")] + list(theta)
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

CHECKPOINT = 16  # tokens of a segment from one point that a state can go on from to the next
WRITTEN = ("k", "v", "beta", "eta", "alpha")  # the inputs that states are made of
SHAPES = {
    "S_1": (64, 256),
    "S_2": (256, 64),
    "M_1": (64, 256),
    "M_2": (256, 64),
    "cached_1": (64, 256),
    "cached_2": (256, 64),
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

    It holds the memory at a checkpoint, every 16 tokens of a segment, and the keys, values and gates since: these
    are run again with what follows. Nothing in it changes when it is used, so it may be used twice.

    Attributes:
        position: how many tokens it has seen.
        checkpoints: the positions that it holds the memory at, the latest last.

    Args:
        slots: the memory before the first token, by the names of its slots, lists of (B, H, out, in) or without B;
            what is not named starts as in `op`.
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
    """The parts of a state, (B or 1, H, 1, ·), that slots (B, H, out, in) or without B are."""
    known = {"S": ("S_1", "S_2"), "M": ("M_1", "M_2")}
    if extra := [name for name in slots if name not in known]:
        raise ValueError(f"no slot is called {extra[0]!r}: the slots are {', '.join(known)}")
    parts = {}
    for name, weights in slots.items():
        if len(weights) != len(known[name]):
            raise ValueError(f"{name} must have {len(known[name])} weights, got {len(weights)}")
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
    begun = {name: W.mT[:, None] for name, W in zip(("M_1", "M_2"), tensors[len(INPUTS) :], strict=True)} | given
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


class TitansResidual(torch.nn.Module):
    """The memory of this file as a layer, (B, T, d_model) in and out, causal.

    inputs     q, k, v = silu(conv(x W)), q and k over their Euclidean norms
    gates      beta = sigmoid(z), z = x W_beta + bias, the bias at first 0.0
               eta = 0.0005 sigmoid(z), z = x W_eta + bias, the bias at first 0.0
               alpha = sigmoid(z), z = x W_alpha + bias, the bias at first 4.0
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
        if self.conv_size:
            self.q_conv1d = _ShortConvolution(heads * 64, self.conv_size, **factory)
            self.k_conv1d = _ShortConvolution(num_kv_heads * 64, self.conv_size, **factory)
            self.v_conv1d = _ShortConvolution(num_kv_heads * 64, self.conv_size, **factory)
        self.beta_proj = torch.nn.Linear(d_model, heads, bias=False, **factory)
        self.eta_proj = torch.nn.Linear(d_model, heads, bias=False, **factory)
        self.alpha_proj = torch.nn.Linear(d_model, heads, bias=False, **factory)
        self.beta_bias = torch.nn.Parameter(torch.empty(heads, **factory))
        self.eta_bias = torch.nn.Parameter(torch.empty(heads, **factory))
        self.alpha_bias = torch.nn.Parameter(torch.empty(heads, **factory))
        shapes = [(256, 64), (64, 256)]
        weights = (torch.empty(heads, out, into, **factory) for out, into in shapes)
        self.theta = torch.nn.ParameterList(map(torch.nn.Parameter, weights))
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
        torch.nn.init.constant_(self.beta_bias, 0.0)
        torch.nn.init.constant_(self.eta_bias, 0.0)
        torch.nn.init.constant_(self.alpha_bias, 4.0)
        for W in self.theta:
            torch.nn.init.normal_(W, std=W.shape[-1] ** -0.5)
        for name in self.no_weight_decay():
            self.get_parameter(name)._no_weight_decay = True

    def no_weight_decay(self):
        """The names of the parameters that weight decay is not for: biases and rates of gates, the norm's scale.

        `reset_parameters` marks each of them `_no_weight_decay` too; a mark is lost where a parameter is copied or
        replaced (deepcopy, to_empty, load_state_dict(assign=True), fully_shard), a name is not.
        """
        names = {
            "beta_bias",
            "eta_bias",
            "alpha_bias",
        }
        return names | {"o_norm.weight"} if self.output_norm == "rms" else names

    def gates(self, x):
        """The gates of x (B, T, d_model) by name, each (B, T, H) in float32 or wider: scale * fn(x w_h + bias)."""
        beta = _widen(_project(x, self.beta_proj))
        eta = _widen(_project(x, self.eta_proj))
        alpha = _widen(_project(x, self.alpha_proj))
        return {
            "beta": torch.sigmoid(beta + self.beta_bias),
            "eta": 0.0005 * torch.sigmoid(eta + self.eta_bias),
            "alpha": torch.sigmoid(alpha + self.alpha_bias),
        }

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
        borders = None if lengths is None else list(itertools.accumulate(lengths, initial=0))
        how = {"backend": backend, "cu_seqlens_cpu": borders, "state": state, "return_state": stateful}
        y = op(q, k, v, theta=list(self.theta), **self.gates(x), **how)
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


Layer = TitansResidual
