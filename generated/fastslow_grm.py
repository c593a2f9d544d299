"""fastslow_grm: Two traces that no paper has: a fast one binds each value to the key before it and is quickly
forgotten, and a slow memory takes in the fast trace beside its own write.

Made by mcgen from SPEC, which says the same as the lines below: build it again rather than change this file.

memory     M(x) = W x
update     S = gamma*S + outer(v, k[-1])
           M = alpha*M + lam*S + mu*outer(v, k)
segments   256 tokens; every slot restarts at each (init: independent)
read-out   y_t = sum of w M(q_t) over the cached memories and the online one (eq. 9, 10)
           w = softmax(r), r = <u_t, mean of the segment's keys>, of those up to t for the online memory
shapes     q, k, u (B, T, H, 64); v and y (B, T, H, 64)
           gamma, alpha, lam, mu (B, T, H)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError:  # the torch path needs torch alone
    triton = tl = None

MCGEN_VERSION = "0.1.0"
SPEC = {
    "mcgen": 1,
    "name": "fastslow_grm",
    "doc": (
        "Two traces that no paper has: a fast one binds each value to the key before it and is quickly forgotten, and "
        "a slow memory takes in the fast trace beside its own write."
    ),
    "memory": {"kind": "matrix"},
    "update": {
        "steps": ["S = gamma*S + outer(v, k[-1])", "M = alpha*M + lam*S + mu*outer(v, k)"],
        "gradient": "token",
        "gates": {
            "gamma": {"fn": "sigmoid", "bias": 0.0, "scale": 1.0},
            "alpha": {"fn": "sigmoid", "bias": 5.0, "scale": 1.0},
            "lam": {"fn": "sigmoid", "bias": -1.0, "scale": 1.0},
            "mu": {"fn": "sigmoid", "bias": 1.0, "scale": 1.0},
        },
    },
    "segment": {"size": 256, "mode": "constant", "init": "independent"},
    "aggregate": {"kind": "grm", "connector": "u", "pool": "mean", "scale": 1.0},
    "head": {"key_dim": 64, "value_dim": 64},
    "layer": {"d_model": 1024, "heads": 16, "qk_norm": "l2", "conv_size": 4, "output_norm": "rms", "output_gate": True},
}
SPEC_HASH = "e2ce8dacff9db2dcb47ba92cd3b3638ab8565360b33c6b3dbcb7ac86d058b065"


_jit = triton.jit if triton else lambda kernel: kernel


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
    _check_tensor("k", k, q, (B, T, H, 64))
    _check_tensor("v", v, q, (B, T, H, 64))
    if u is None:
        raise TypeError("u is missing: the aggregate routes by it")
    _check_tensor("u", u, q, (B, T, H, 64))
    for name, gate in gates.items():
        _check_tensor(name, gate, q, (B, T, H))


def _check_gates(gates):
    """Raises TypeError unless the names are those of the gates."""
    expected = ["gamma", "alpha", "lam", "mu"]
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


def _segments(T):
    """Borders (begin, end) of the segments of T tokens."""
    return [(begin, min(begin + 256, T)) for begin in range(0, T, 256)]


def _read(M, x):
    """M(x), M (B, H, V, K) and x (B, H, K)."""
    return (M * x[..., None, :]).sum(-1)


def _outer(v, k):
    """v kᵀ, (B, H, V, K)."""
    return v[..., :, None] * k[..., None, :]


def _lag(x, t, first):
    """Token t of x, zero before token `first`."""
    return x[:, t] if t >= first else torch.zeros_like(x[:, 0])


def reference(q, k, v, u=None, *, theta=None, **gates):
    """One token at a time, in float32 or wider, differentiable: the definition that `op` is held against.

    memory     M(x) = W x
    update     S = gamma*S + outer(v, k[-1])
               M = alpha*M + lam*S + mu*outer(v, k)
    segments   256 tokens; every slot restarts at each (init: independent)
    read-out   y_t = sum of w M(q_t) over the cached memories and the online one (eq. 9, 10)
               w = softmax(r), r = <u_t, mean of the segment's keys>, of those up to t for the online memory
    shapes     q, k, u (B, T, H, 64); v and y (B, T, H, 64)
               gamma, alpha, lam, mu (B, T, H)
    """
    _check(q, k, v, u, theta, gates)
    dtype, y_dtype = torch.float32, v.dtype
    for x in (q, k, v, u, *gates.values()):
        dtype = torch.promote_types(dtype, x.dtype)
    q, k, v, u = q.to(dtype), k.to(dtype), v.to(dtype), u.to(dtype)
    B, T, H, K = q.shape
    gamma = gates["gamma"].to(dtype)[..., None, None]  # (B, T, H, 1, 1)
    alpha = gates["alpha"].to(dtype)[..., None, None]  # (B, T, H, 1, 1)
    lam = gates["lam"].to(dtype)[..., None, None]  # (B, T, H, 1, 1)
    mu = gates["mu"].to(dtype)[..., None, None]  # (B, T, H, 1, 1)
    zero = q.new_zeros(B, H, v.shape[-1], K)
    y, cached, pools = [], [], []
    for begin, end in _segments(T):
        M = S = zero  # init: independent
        key_sum = torch.zeros_like(k[:, 0])
        for t in range(begin, end):
            q_t, k_t, v_t, u_t = q[:, t], k[:, t], v[:, t], u[:, t]
            gamma_t = gamma[:, t]
            alpha_t = alpha[:, t]
            lam_t = lam[:, t]
            mu_t = mu[:, t]

            k_1 = _lag(k, t - 1, begin)
            S = gamma_t * S + _outer(v_t, k_1)
            M = alpha_t * M + lam_t * S + mu_t * _outer(v_t, k_t)

            key_sum = key_sum + k_t
            pool = key_sum / (t - begin + 1)
            r = torch.stack([(u_t * key).sum(-1) for key in [*pools, pool]], -1)
            w = r.softmax(-1)  # (B, H, memories)
            y_t = sum(w[..., i, None] * _read(memory, q_t) for i, memory in enumerate([*cached, M]))
            y.append(y_t)
        cached.append(M)
        pools.append(pool)
    return (torch.stack(y, 1) if T else v).to(y_dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Torch path: chunks of 64 tokens, any device, any float type. Tensors are (B, H, T, ·) in here.
#
# A walk goes through the chunks of equal segments side by side, as (B, H, S, C, ·), carrying the state:
# S, M, pool.
# ---------------------------------------------------------------------------------------------------------------------

CHUNK = 64
SLAB = 16  # segments walked side by side, at most


def _spread(x, *sizes):
    """x with its last dimensions broadcast to these sizes; -1 keeps one."""
    return x.expand(*x.shape[: x.dim() - len(sizes)], *sizes)


def _runs(gate):
    """Running sums of log2|a| in two parts (integer exponents, logs of mantissas), of zeros and of negative signs.

    With these a product over a run of tokens is two differences away, and gates of 0, however many, stay exact.
    """
    mantissa, exponent = torch.frexp(torch.where(gate == 0, 1.0, gate.abs()))
    small = mantissa < 0.7071067811865476
    mantissa, exponent = torch.where(small, 2 * mantissa, mantissa), exponent - small.to(exponent.dtype)
    parts = torch.stack(
        [exponent.to(gate.dtype), torch.log2(mantissa), (gate == 0).to(gate.dtype), (gate < 0).to(gate.dtype)]
    )
    return F.pad(parts.cumsum(-1), (1, 0))


def _decay(runs, row, column):
    """Products of a gate over runs of tokens: column < m <= row (`through`) or < row (`before`), or up to the `end`.

    D[t, j] = exp2(L_t - L_j) where no zero lies between, with the sign of the negatives between; 0 where t < j.
    """
    rows = {"through": runs[..., 1:], "before": runs[..., :-1], "end": runs[..., -1:]}[row]
    columns = {"after": runs[..., 1:], "start": runs[..., :1]}[column]
    exponent, mantissa, zeros, negatives = rows[..., :, None] - columns[..., None, :]
    nonzero = zeros == 0
    if row != "end" and column == "after":
        nonzero = nonzero.tril(0 if row == "through" else -1)
    log = torch.where(nonzero, exponent + mantissa, 0.0)
    product = torch.where(nonzero, torch.exp2(log) * (1 - 2 * (negatives % 2)), 0.0)
    product = product if row != "end" else product[..., 0, :]
    return product if column == "after" else product[..., 0]


def _lagged(t, lag):
    """t[..., lag tokens back, ·], zero before the segment's first token. t is (B, H, T, ·)."""
    T = t.shape[2]
    back = F.pad(t, (0, 0, lag, 0))[:, :, :T].clone()
    for first, _ in _segments(T):
        back[:, :, first : first + lag] = 0
    return back


def _unlagged(d, lag):
    """The adjoint of `_lagged`."""
    d, T = d.clone(), d.shape[2]
    for first, _ in _segments(T):
        d[:, :, first : first + lag] = 0
    return F.pad(d, (0, 0, 0, lag))[:, :, lag : T + lag]


def _step(*, alpha, q, M, gamma, lam, S, k_1, v, mu, k, u, pool, count, **_):
    """One chunk: online read-outs, and the state at its end."""
    n_t = count.shape[-1]
    n_j = k.shape[-2]
    alpha_runs = _runs(alpha)
    decay_t = _decay(alpha_runs, "through", "start")
    q_M = q @ M
    x_tv = decay_t[..., :, None] * q_M
    decay_ts = _decay(alpha_runs, "through", "after")
    x_t = gamma * lam
    x_s = x_t
    x_ts = decay_ts * x_s[..., None, :]
    gamma_runs = _runs(gamma)
    decay_t2 = _decay(gamma_runs, "before", "start")
    x_s2 = decay_t2
    x_t2 = (x_ts * x_s2[..., None, :]).sum(-1)
    q_S = q @ S
    x_tv2 = x_t2[..., :, None] * q_S
    decay_tj = _decay(alpha_runs, "through", "after")
    x_j = lam
    x_tj = decay_tj * x_j[..., None, :]
    decay_tj2 = _decay(gamma_runs, "before", "after")
    x_sj = decay_tj2
    x_tj2 = x_ts @ x_sj
    x_tj3 = x_tj + x_tj2
    q_k_1 = q @ k_1.mT
    x_tj4 = x_tj3 * q_k_1
    x_tv3 = x_tj4 @ v
    x_j2 = mu
    x_tj5 = decay_tj * x_j2[..., None, :]
    q_k = q @ k.mT
    x_tj6 = x_tj5 * q_k
    x_tv4 = x_tj6 @ v
    o = x_tv + x_tv2 + x_tv3 + x_tv4
    at_t = torch.arange(n_t, dtype=alpha.dtype, device=alpha.device)
    at_j = torch.arange(n_j, dtype=alpha.dtype, device=alpha.device)
    u_k = u @ k.mT
    x_tj7 = torch.where(at_t[..., :, None] + 1.0 - at_j[..., None, :] > 0, u_k, 0.0)
    sum_t = x_tj7.sum(-1)
    u_pool = (u * pool[..., None, :]).sum(-1)
    r = (sum_t + u_pool) / count
    sum_k = k.sum(-2)
    pool_next = pool + sum_k
    decay_all = _decay(gamma_runs, "end", "start")
    x_kv = decay_all[..., None, None] * S
    decay_j = _decay(gamma_runs, "end", "after")
    x_jv = decay_j[..., :, None] * v
    x_kv2 = k_1.mT @ x_jv
    S_next = x_kv + x_kv2
    decay_all2 = _decay(alpha_runs, "end", "start")
    x_kv3 = decay_all2[..., None, None] * M
    decay_s = _decay(alpha_runs, "end", "after")
    x_s3 = decay_s * x_s
    x = (x_s3 * x_s2).sum(-1)
    x_kv4 = x[..., None, None] * S
    decay_j2 = _decay(alpha_runs, "end", "after")
    x_j3 = decay_j2 * x_j
    x_j4 = (x_s3[..., :, None] * x_sj).sum(-2)
    x_j5 = x_j3 + x_j4
    x_jv2 = x_j5[..., :, None] * v
    x_kv5 = k_1.mT @ x_jv2
    x_j6 = decay_j2 * x_j2
    x_jv3 = x_j6[..., :, None] * v
    x_kv6 = k.mT @ x_jv3
    M_next = x_kv3 + x_kv4 + x_kv5 + x_kv6
    return {
        "o": o,
        "r": r,
        "pool_next": pool_next,
        "S_next": S_next,
        "M_next": M_next,
    }


def _step_vjp(
    *, alpha, k, d_M_next, v, mu, k_1, lam, gamma, S, M, d_o, q, d_S_next, d_pool_next, u, d_r, count, pool, **_
):
    """The derivative of: one chunk: online read-outs, and the state at its end."""
    n_j = k_1.shape[-2]
    n_t = count.shape[-1]
    alpha_runs = _runs(alpha)
    decay_m = _decay(alpha_runs, "end", "after")
    k_d_M_next = k @ d_M_next
    x_jv = k_d_M_next * v
    sum_j = x_jv.sum(-1)
    x_j = mu
    x_j2 = sum_j * x_j
    k_1_d_M_next = k_1 @ d_M_next
    x_jv2 = k_1_d_M_next * v
    sum_j2 = x_jv2.sum(-1)
    x_j3 = lam
    x_j4 = sum_j2 * x_j3
    x_j5 = x_j2 + x_j4
    x_mj = decay_m[..., :, None] * x_j5[..., None, :]
    decay_mj = _decay(alpha_runs, "before", "after")
    x_mj2 = x_mj * decay_mj
    sum_m = x_mj2.sum(-1)
    x_t = sum_m
    gamma_runs = _runs(gamma)
    decay_tj = _decay(gamma_runs, "before", "after")
    x_sj = decay_tj
    x_s = (sum_j2[..., None, :] * x_sj).sum(-1)
    x_kv = d_M_next * S
    sum = x_kv.sum((-2, -1))
    decay_t = _decay(gamma_runs, "before", "start")
    x_s2 = decay_t
    x_s3 = sum[..., None] * x_s2
    x_s4 = x_s + x_s3
    x_t2 = gamma * lam
    x_s5 = x_t2
    x_s6 = x_s4 * x_s5
    x_sm = decay_m[..., None, :] * x_s6[..., :, None]
    decay_sm = _decay(alpha_runs, "before", "after").mT
    x_sm2 = x_sm * decay_sm
    sum_m2 = x_sm2.sum(-2)
    x_t3 = sum_m2
    x_kv2 = d_M_next * M
    sum2 = x_kv2.sum((-2, -1))
    x_m = decay_m * sum2[..., None]
    decay_m2 = _decay(alpha_runs, "before", "start")
    x_m2 = x_m * decay_m2
    x_t4 = x_m2
    decay_tm = _decay(alpha_runs, "through", "after")
    d_o_v = d_o @ v.mT
    q_k = q @ k.mT
    x_tj = d_o_v * q_k
    x_tj2 = x_tj * x_j[..., None, :]
    q_k_1 = q @ k_1.mT
    x_tj3 = d_o_v * q_k_1
    x_tj4 = x_tj3 * x_j3[..., None, :]
    x_tj5 = x_tj2 + x_tj4
    x_mj3 = decay_tm.mT @ x_tj5
    x_mj4 = x_mj3 * decay_mj
    sum_m3 = x_mj4.sum(-1)
    x_t5 = sum_m3
    x_ts = x_tj3 @ x_sj.mT
    q_S = q @ S
    x_tv = d_o * q_S
    sum_t = x_tv.sum(-1)
    x_ts2 = sum_t[..., :, None] * x_s2[..., None, :]
    x_ts3 = x_ts + x_ts2
    x_ts4 = x_ts3 * x_s5[..., None, :]
    x_sm3 = (decay_tm.mT @ x_ts4).mT
    x_sm4 = x_sm3 * decay_sm
    sum_m4 = x_sm4.sum(-2)
    x_t6 = sum_m4
    q_M = q @ M
    x_tv2 = d_o * q_M
    sum_t2 = x_tv2.sum(-1)
    x_m3 = (decay_tm * sum_t2[..., :, None]).sum(-2)
    x_m4 = x_m3 * decay_m2
    x_t7 = x_m4
    d_alpha = x_t + x_t3 + x_t4 + x_t5 + x_t6 + x_t7
    decay_tj2 = _decay(alpha_runs, "through", "after")
    x_tj6 = decay_tj2 * x_j[..., None, :]
    x_tj7 = d_o_v * x_tj6
    x_tk = x_tj7 @ k
    x_tj8 = decay_tj2 * x_j3[..., None, :]
    decay_ts = _decay(alpha_runs, "through", "after")
    x_ts5 = decay_ts * x_s5[..., None, :]
    x_tj9 = x_ts5 @ x_sj
    x_tj10 = x_tj8 + x_tj9
    x_tj11 = d_o_v * x_tj10
    x_tk2 = x_tj11 @ k_1
    x_t8 = (x_ts5 * x_s2[..., None, :]).sum(-1)
    x_tv3 = d_o * x_t8[..., :, None]
    x_tk3 = x_tv3 @ S.mT
    decay_t2 = _decay(alpha_runs, "through", "start")
    x_tv4 = d_o * decay_t2[..., :, None]
    x_tk4 = x_tv4 @ M.mT
    d_q = x_tk + x_tk2 + x_tk3 + x_tk4
    decay_all = _decay(alpha_runs, "end", "start")
    x_kv3 = d_M_next * decay_all[..., None, None]
    x_kv4 = q.mT @ x_tv4
    d_M = x_kv3 + x_kv4
    decay_m3 = _decay(gamma_runs, "end", "after")
    k_1_d_S_next = k_1 @ d_S_next
    x_jv3 = k_1_d_S_next * v
    sum_j3 = x_jv3.sum(-1)
    x_mj5 = decay_m3[..., :, None] * sum_j3[..., None, :]
    decay_mj2 = _decay(gamma_runs, "before", "after")
    x_mj6 = x_mj5 * decay_mj2
    sum_m5 = x_mj6.sum(-1)
    x_t9 = sum_m5
    x_kv5 = d_S_next * S
    sum3 = x_kv5.sum((-2, -1))
    x_m5 = decay_m3 * sum3[..., None]
    decay_m4 = _decay(gamma_runs, "before", "start")
    x_m6 = x_m5 * decay_m4
    x_t10 = x_m6
    decay_tm2 = _decay(gamma_runs, "before", "after")
    decay_s = _decay(alpha_runs, "end", "after")
    x_s7 = decay_s * x_s5
    x_sj2 = x_s7[..., :, None] * sum_j2[..., None, :]
    x_sj3 = x_ts5.mT @ x_tj3
    x_sj4 = x_sj2 + x_sj3
    x_tj12 = x_sj4
    x_mj7 = decay_tm2.mT @ x_tj12
    x_mj8 = x_mj7 * decay_mj2
    sum_m6 = x_mj8.sum(-1)
    x_t11 = sum_m6
    x_s8 = x_s7 * sum[..., None]
    x_s9 = (x_ts5 * sum_t[..., :, None]).sum(-2)
    x_s10 = x_s8 + x_s9
    x_t12 = x_s10
    x_m7 = (decay_tm2 * x_t12[..., :, None]).sum(-2)
    x_m8 = x_m7 * decay_m4
    x_t13 = x_m8
    x_t14 = x_t9 + x_t10 + x_t11 + x_t13
    x_s11 = x_s4 * decay_s
    x_ts6 = x_ts3 * decay_ts
    sum_s = x_ts6.sum(-2)
    x_s12 = x_s11 + sum_s
    x_t15 = x_s12
    x_t16 = x_t15 * lam
    d_gamma = x_t14 + x_t16
    decay_j = _decay(alpha_runs, "end", "after")
    x_j6 = sum_j2 * decay_j
    x_tj13 = x_tj3 * decay_tj2
    sum_j4 = x_tj13.sum(-2)
    x_j7 = x_j6 + sum_j4
    x_t17 = x_j7
    x_t18 = x_t15 * gamma
    d_lam = x_t17 + x_t18
    x = (x_s7 * x_s2).sum(-1)
    x_kv6 = d_M_next * x[..., None, None]
    decay_all2 = _decay(gamma_runs, "end", "start")
    x_kv7 = d_S_next * decay_all2[..., None, None]
    x_kv8 = q.mT @ x_tv3
    d_S = x_kv6 + x_kv7 + x_kv8
    x_j8 = decay_j * x_j3
    x_j9 = (x_s7[..., :, None] * x_sj).sum(-2)
    x_j10 = x_j8 + x_j9
    x_jv4 = x_j10[..., :, None] * v
    x_jk = (d_M_next @ x_jv4.mT).mT
    decay_j2 = _decay(gamma_runs, "end", "after")
    x_jv5 = decay_j2[..., :, None] * v
    x_jk2 = (d_S_next @ x_jv5.mT).mT
    x_jk3 = (q.mT @ x_tj11).mT
    d_k_1 = x_jk + x_jk2 + x_jk3
    x_j11 = decay_j * x_j
    x_jv6 = k_d_M_next * x_j11[..., :, None]
    x_jv7 = k_1_d_M_next * x_j10[..., :, None]
    x_jv8 = k_1_d_S_next * decay_j2[..., :, None]
    x_tj14 = x_tj6 * q_k
    x_jv9 = x_tj14.mT @ d_o
    x_tj15 = x_tj10 * q_k_1
    x_jv10 = x_tj15.mT @ d_o
    d_v = x_jv6 + x_jv7 + x_jv8 + x_jv9 + x_jv10
    x_j12 = sum_j * decay_j
    x_tj16 = x_tj * decay_tj2
    sum_j5 = x_tj16.sum(-2)
    x_j13 = x_j12 + sum_j5
    d_mu = x_j13
    x_jv11 = x_j11[..., :, None] * v
    x_jk4 = (d_M_next @ x_jv11.mT).mT
    x_jk5 = _spread(d_pool_next[..., None, :], n_j, -1)
    x_t19 = d_r / count
    x_tj17 = _spread(x_t19[..., :, None], -1, n_j)
    at_t = torch.arange(n_t, dtype=alpha.dtype, device=alpha.device)
    at_j = torch.arange(n_j, dtype=alpha.dtype, device=alpha.device)
    x_tj18 = x_tj17 * torch.heaviside(
        at_t[..., :, None] + 1.0 - at_j[..., None, :], torch.zeros_like(at_t[..., :, None] + 1.0 - at_j[..., None, :])
    )
    x_jk6 = (u.mT @ x_tj18).mT
    x_jk7 = (q.mT @ x_tj7).mT
    d_k = x_jk4 + x_jk5 + x_jk6 + x_jk7
    x_tk5 = x_t19[..., :, None] * pool[..., None, :]
    x_tk6 = x_tj18 @ k
    d_u = x_tk5 + x_tk6
    x_k = (u * x_t19[..., :, None]).sum(-2)
    d_pool = d_pool_next + x_k
    return {
        "d_alpha": d_alpha,
        "d_q": d_q,
        "d_M": d_M,
        "d_gamma": d_gamma,
        "d_lam": d_lam,
        "d_S": d_S,
        "d_k_1": d_k_1,
        "d_v": d_v,
        "d_mu": d_mu,
        "d_k": d_k,
        "d_u": d_u,
        "d_pool": d_pool,
    }


def _blend(*, r, u, pools, o, q, cached, **_):
    """The softmax of all routing logits, over the read-outs of all memories."""
    u_pools = u @ pools.mT
    max_t = u_pools.amax(-1)
    x_t = torch.maximum(r, max_t)
    x_t2 = torch.exp(r - x_t)
    x_tn = torch.exp(u_pools - x_t[..., :, None])
    sum_t = x_tn.sum(-1)
    x_t3 = sum_t + x_t2
    x_t4 = x_t2 / x_t3
    x_tv = x_t4[..., :, None] * o
    x_tn2 = x_tn / x_t3[..., :, None]
    x_tnk = x_tn2[..., :, :, None] * q[..., :, None, :]
    x_tv2 = x_tnk.flatten(-2) @ cached.flatten(-3, -2)
    y = x_tv + x_tv2
    return {
        "y": y,
    }


def _blend_vjp(*, u, pools, r, q, d_y, cached, o, **_):
    """The derivative of: the softmax of all routing logits, over the read-outs of all memories."""
    n_n = cached.shape[-3]
    u_pools = u @ pools.mT
    max_t = u_pools.amax(-1)
    x_t = torch.maximum(r, max_t)
    x_tn = torch.exp(u_pools - x_t[..., :, None])
    sum_t = x_tn.sum(-1)
    x_t2 = torch.exp(r - x_t)
    x_t3 = sum_t + x_t2
    x_tn2 = x_tn / x_t3[..., :, None]
    x_tnk = x_tn2[..., :, :, None] * q[..., :, None, :]
    d_cached = (x_tnk.flatten(-2).mT @ d_y).unflatten(-2, x_tnk.shape[-2:])
    d_y_cached = (d_y @ cached.flatten(-3, -2).mT).unflatten(-1, cached.shape[-3:-1])
    x_tnk2 = d_y_cached * x_tn2[..., :, :, None]
    d_q = x_tnk2.sum(-2)
    x_t4 = x_t2 / x_t3
    d_o = d_y * x_t4[..., :, None]
    x_tnk3 = d_y_cached * q[..., :, None, :]
    sum_tn = x_tnk3.sum(-1)
    x_tn3 = sum_tn / x_t3[..., :, None]
    x_tn4 = -(sum_tn * x_tn / (x_t3[..., :, None] * x_t3[..., :, None]))
    sum_t2 = x_tn4.sum(-1)
    x_tv = d_y * o
    sum_t3 = x_tv.sum(-1)
    x_t5 = -(sum_t3 * x_t2 / (x_t3 * x_t3))
    x_t6 = sum_t2 + x_t5
    x_tn5 = _spread(x_t6[..., :, None], -1, n_n)
    x_tn6 = x_tn3 + x_tn5
    x_tn7 = x_tn6 * torch.exp(u_pools - x_t[..., :, None])
    d_pools = (u.mT @ x_tn7).mT
    d_u = x_tn7 @ pools
    x_t7 = sum_t3 / x_t3
    x_t8 = x_t7 + x_t6
    d_r = x_t8 * torch.exp(r - x_t)
    return {
        "d_cached": d_cached,
        "d_q": d_q,
        "d_o": d_o,
        "d_pools": d_pools,
        "d_u": d_u,
        "d_r": d_r,
    }


def _panel(x, first, last, count):
    """Tokens first..last of every input as `count` segments side by side: (B, H, count, C, ·)."""
    return {name: t[:, :, first:last].unflatten(2, (count, -1)) for name, t in x.items()}


def _chunk(panel, first, head):
    """The chunk of a panel that begins at its token `first`, with what a step needs to know of where it stands."""
    chunk = {name: t[:, :, :, first : first + CHUNK] for name, t in panel.items()}
    q = chunk["q"]
    chunk["count"] = torch.arange(first + 1, first + 1 + q.shape[3], dtype=q.dtype, device=q.device)
    return {**chunk, "head": head}


def _fresh(x, count):
    """The state before a segment's first token."""
    q, v = x["q"], x["v"]
    slot = q.new_zeros(*q.shape[:2], count, q.shape[-1], v.shape[-1])
    return {
        "S": slot,
        "M": slot,
        "pool": slot[..., 0],
    }


def _advance(state, chunk):
    out = _step(**chunk, **state)
    return {name: out[f"{name}_next"] for name in state}, out


def _slabs(T):
    """Runs of segments that a walk takes side by side: (first segment, last + 1, first token, last + 1)."""
    spans, slabs, i = _segments(T), [], 0
    while i < len(spans):
        j = i + 1
        while j < len(spans) and j - i < SLAB and spans[j][1] - spans[j][0] == spans[i][1] - spans[i][0]:
            j += 1
        slabs.append((i, j, spans[i][0], spans[j - 1][1]))
        i = j
    return slabs


def _online_forward(x):
    """Every token's online read-out and routing logit, and what each segment leaves behind."""
    B, H, T, K = x["q"].shape
    V, N = x["v"].shape[-1], len(_segments(T))
    head = torch.arange(H, dtype=x["q"].dtype, device=x["q"].device)[:, None]
    o = x["q"].new_empty(B, H, T, V)
    r = x["q"].new_empty(B, H, T)
    pools = x["q"].new_empty(B, H, N, K)
    kept_M = x["q"].new_empty(B, H, N, K, V)
    for i, j, first, last in _slabs(T):
        panel = _panel(x, first, last, j - i)
        length = panel["q"].shape[3]
        state = _fresh(x, j - i)
        o_panel = o[:, :, first:last].unflatten(2, (j - i, -1))
        r_panel = r[:, :, first:last].unflatten(2, (j - i, -1))
        for a in range(0, length, CHUNK):
            state, out = _advance(state, _chunk(panel, a, head))
            o_panel[:, :, :, a : a + CHUNK] = out["o"]
            r_panel[:, :, :, a : a + CHUNK] = out["r"]
        kept_M[:, :, i:j] = state["M"]
        pools[:, :, i:j] = state["pool"] / length
    return o, r, kept_M, pools


def _online_backward(x, d, kept, d_o, d_r, d_pools, d_bank):
    """The walk in reverse: adds to d[name] what every input's gradient owes to the online read-outs and the states.

    States inside a segment are recomputed: once at about every sqrt(n)-th of its n chunks, then chunk by chunk.
    """
    H, T = x["q"].shape[1:3]
    head = torch.arange(H, dtype=x["q"].dtype, device=x["q"].device)[:, None]
    for i, j, first, last in reversed(_slabs(T)):
        panel, gradients = _panel(x, first, last, j - i), _panel(d, first, last, j - i)
        d_o_panel = d_o[:, :, first:last].unflatten(2, (j - i, -1))
        d_r_panel = d_r[:, :, first:last].unflatten(2, (j - i, -1))
        length = panel["q"].shape[3]
        state = _fresh(x, j - i)
        d_state = _fresh(x, j - i)
        d_state["M"] = d_state["M"] + d_bank[:, :, i:j]
        d_state["pool"] = d_pools[:, :, i:j] / length
        starts = range(0, length, CHUNK)
        stride = math.isqrt(len(starts) - 1) + 1
        marks = []
        for n, a in enumerate(starts):
            if n % stride == 0:
                marks.append(state)
            state, _ = _advance(state, _chunk(panel, a, head))
        for mark in reversed(range(len(marks))):
            block = starts[mark * stride : (mark + 1) * stride]
            states = [marks.pop()]
            for a in block[:-1]:
                states.append(_advance(states[-1], _chunk(panel, a, head))[0])
            for a in reversed(block):
                cotangents = {f"d_{name}_next": t for name, t in d_state.items()}
                cotangents["d_o"] = d_o_panel[:, :, :, a : a + CHUNK]
                cotangents["d_r"] = d_r_panel[:, :, :, a : a + CHUNK]
                out = _step_vjp(**_chunk(panel, a, head), **states.pop(), **cotangents)
                for name, t in gradients.items():
                    t[:, :, :, a : a + CHUNK] += out[f"d_{name}"]
                d_state = {name: out[f"d_{name}"] for name in d_state}


def _rows(x, first, last):
    return {name: x[name][:, :, first:last] for name in ("q", "u")}


def _blend_forward(x, o, r, bank, pools):
    """y: each segment's rows read every state before it, weighted by the softmax of their logits."""
    y = o.clone()
    for s, (first, last) in enumerate(_segments(o.shape[2])):
        if s:
            online = {"o": o[:, :, first:last], "r": r[:, :, first:last]}
            y[:, :, first:last] = _blend(
                **_rows(x, first, last), **online, cached=bank[:, :, :s], pools=pools[:, :, :s]
            )["y"]
    return y


def _blend_backward(x, d, o, r, bank, pools, d_y):
    """The reverse of `_blend_forward`: adds to d, and returns the gradients of o, r, the states and the pooled keys."""
    d_o, d_r, d_bank, d_pools = d_y.clone(), torch.zeros_like(r), torch.zeros_like(bank), torch.zeros_like(pools)
    for s, (first, last) in enumerate(_segments(o.shape[2])):
        if s:
            online = {"o": o[:, :, first:last], "r": r[:, :, first:last], "d_y": d_y[:, :, first:last]}
            cached = {"cached": bank[:, :, :s], "pools": pools[:, :, :s]}
            out = _blend_vjp(**_rows(x, first, last), **online, **cached)
            for name in ("q", "u"):
                d[name][:, :, first:last] += out[f"d_{name}"]
            d_o[:, :, first:last], d_r[:, :, first:last] = out["d_o"], out["d_r"]
            d_bank[:, :, :s] += out["d_cached"]
            d_pools[:, :, :s] += out["d_pools"]
    return d_o, d_r, d_bank, d_pools


def _forward_torch(x):
    """y and what the backward pass needs of it, from inputs (B, H, T, ·) of one float type."""
    o, r, kept_M, pools = _online_forward(x)
    return _blend_forward(x, o, r, kept_M, pools), [o, r, kept_M, pools]


def _backward_torch(x, saved, d_y):
    """The gradient of every input, from what the forward pass saved."""
    d = {name: torch.zeros_like(t) for name, t in x.items()}
    o, r, kept_M, pools = saved
    d_o, d_r, d_bank, d_pools = _blend_backward(x, d, o, r, kept_M, pools, d_y)
    kept = {}
    _online_backward(x, d, kept, d_o, d_r, d_pools, d_bank)
    return d


# ---------------------------------------------------------------------------------------------------------------------
# The operator: both paths behind custom ops, so that torch.compile, autocast and checkpointing see one node each way.
# ---------------------------------------------------------------------------------------------------------------------

INPUTS = ("q", "k", "v", "u", "gamma", "alpha", "lam", "mu")
LAGGED = (("k_1", "k", 1),)


def _heads_first(tensors):
    """The inputs by name as (B, H, T, ·), of one float type: the widest of theirs, float32 at least."""
    dtype = torch.float32
    for t in tensors:
        dtype = torch.promote_types(dtype, t.dtype)
    x = {name: t.transpose(1, 2).contiguous().to(dtype) for name, t in zip(INPUTS, tensors, strict=True)}
    x |= {name: _lagged(x[source], lag) for name, source, lag in LAGGED}
    return x


def _run_forward_torch(tensors):
    y, saved = _forward_torch(_heads_first(tensors))
    return [y.transpose(1, 2).to(tensors[INPUTS.index("v")].dtype).contiguous(), *saved]


def _run_backward_torch(tensors, saved, d_y):
    x = _heads_first(tensors)
    d = _backward_torch(x, saved, d_y.transpose(1, 2).to(x["q"].dtype).contiguous())
    for name, source, lag in LAGGED:
        d[source] = d[source] + _unlagged(d[name], lag)
    return [d[name].transpose(1, 2).to(t.dtype).contiguous() for name, t in zip(INPUTS, tensors, strict=True)]


def _saved_torch(tensors):
    """Empty tensors like those that the forward pass saves."""
    q, v = tensors[INPUTS.index("q")], tensors[INPUTS.index("v")]
    B, T, H, K, V, N = q.shape[0], q.shape[1], q.shape[2], q.shape[3], v.shape[3], len(_segments(q.shape[1]))
    dtype = torch.float32
    for t in tensors:
        dtype = torch.promote_types(dtype, t.dtype)
    shapes = [(B, H, T, V), (B, H, T), (B, H, N, K, V), (B, H, N, K)]
    saved = [q.new_empty(shape, dtype=dtype) for shape in shapes]
    return saved


def _define(backend, forward, backward, saved):
    """The operator of one backend; a module imported again, or a copy of it, has operators of its own.

    Defined by schema, since what `torch.library.custom_op` wraps around a function imports torch.compile at its first
    call. Under autocast the arithmetic stays what the tensors' types say.
    """
    library, number = getattr(torch.ops, f"mcgen_{SPEC_HASH[:16]}"), 1
    while hasattr(library, f"{backend}_forward_{number}"):
        number += 1
    names = [f"{library.name}::{backend}_{way}_{number}" for way in ("forward", "backward")]
    tags = torch.Tag.pt2_compliant_tag
    torch.library.define(names[0], "(Tensor[] tensors) -> Tensor[]", tags=tags)
    torch.library.define(names[1], "(Tensor[] tensors, Tensor[] saved, Tensor d_y) -> Tensor[]", tags=tags)

    @torch.library.impl(names[0], "default")
    def run(tensors):
        with torch.autocast(tensors[0].device.type, enabled=False):
            return forward(tensors)

    @torch.library.impl(names[1], "default")
    def run_backward(tensors, saved, d_y):
        with torch.autocast(d_y.device.type, enabled=False):
            return backward(tensors, saved, d_y)

    @torch.library.register_fake(names[0])
    def fake(tensors):
        return [torch.empty_like(tensors[INPUTS.index("v")], memory_format=torch.contiguous_format), *saved(tensors)]

    @torch.library.register_fake(names[1])
    def fake_backward(tensors, saved, d_y):
        return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors]

    def keep(ctx, inputs, output):
        ctx.count = len(inputs[0])
        ctx.save_for_backward(*inputs[0], *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    def differentiate(ctx, gradients):
        tensors, saved = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        return getattr(library, f"{backend}_backward_{number}")(list(tensors), list(saved), gradients[0])

    def refuse(ctx, gradients):
        raise UnsupportedError("second derivatives of op are not lowered; differentiate `reference` twice instead")

    torch.library.register_autograd(names[0], differentiate, setup_context=keep)
    torch.library.register_autograd(names[1], refuse)
    return getattr(library, f"{backend}_forward_{number}")


_torch_op = _define("torch", _run_forward_torch, _run_backward_torch, _saved_torch)
_triton_op = None


def op(q, k, v, u=None, *, theta=None, state=None, return_state=False, cu_seqlens=None, backend=None, **gates):
    """y (B, T, H, 64), in v's type, of the memory in this file's header, differentiable in every argument.

    The header has the shapes. backend: "torch" (chunked, any device and float type), "triton", or None for triton on a
    GPU and torch elsewhere.

    Raises:
        TypeError: an argument is missing, extra, or no floating-point tensor; it is named.
        ValueError: an argument has the wrong shape or lies on another device; it is named.
        UnsupportedError: state, return_state or cu_seqlens is asked for, which this version does not lower.
    """
    _check(q, k, v, u, theta, gates, backend)
    if state is not None or return_state:
        raise UnsupportedError("state= and return_state= are not lowered yet; pass the whole sequence in one call")
    if cu_seqlens is not None:
        raise UnsupportedError("cu_seqlens= is not lowered yet; run the sequences one by one, or pad them into a batch")
    if q.shape[1] == 0 or q.numel() == 0:
        return torch.zeros_like(v)
    if backend is None:
        backend = "triton" if q.is_cuda else "torch"
    named = {"q": q, "k": k, "v": v, "u": u, **gates}
    run = {"torch": _torch_op, "triton": _triton_op}[backend]
    return run([named[name] for name in INPUTS])[0]


class _ShortConvolution(torch.nn.Conv1d):
    """silu of a causal depthwise convolution along time, (B, T, channels) in and out."""

    def __init__(self, channels, size, **factory):
        super().__init__(channels, channels, size, groups=channels, bias=False, padding=size - 1, **factory)

    def forward(self, x):
        return F.silu(super().forward(x.mT)[..., : x.shape[1]].mT)


def _widen(x):
    """x in float32, or wider if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _l2(x):
    """x over its Euclidean norm, along the last axis; computed in float32 or wider, in x's type."""
    wide = _widen(x)
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + 1e-6)).to(x.dtype)


class FastslowGrm(torch.nn.Module):
    """The memory of this file as a layer, (B, T, d_model) in and out, causal.

    inputs     q, k, v = silu(conv(x W)), q and k over their Euclidean norms
               u = x W_u
    gates      gamma = sigmoid(z), z = x W_gamma + bias, the bias at first 0.0
               alpha = sigmoid(z), z = x W_alpha + bias, the bias at first 5.0
               lam = sigmoid(z), z = x W_lam + bias, the bias at first -1.0
               mu = sigmoid(z), z = x W_mu + bias, the bias at first 1.0
    output     rms(op(q, k, v, …)) * silu(x W_g), times W_o

    Args:
        d_model: width of the layer's input and output.
        heads: number of heads, each with queries and keys of 64 and values of 64.
        qk_norm: "l2" divides queries and keys by their Euclidean norm, "none" leaves them.
        conv_size: width of the causal convolution of q, k and v, followed by silu; 0 or None for neither.
        output_norm: "rms" normalises the read-out of each head, with a learned scale; "none" leaves it.
        output_gate: whether the read-out is multiplied by silu(x W_g).
        device, dtype: of the parameters.

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
        device=None,
        dtype=None,
    ):
        super().__init__()
        self._check_options(d_model, heads, qk_norm, conv_size, output_norm)
        factory = {"device": device, "dtype": dtype}
        self.d_model, self.heads = d_model, heads
        self.qk_norm, self.conv_size = qk_norm, conv_size or 0
        self.output_norm, self.output_gate = output_norm, bool(output_gate)

        self.q_proj = torch.nn.Linear(d_model, heads * 64, bias=False, **factory)
        self.k_proj = torch.nn.Linear(d_model, heads * 64, bias=False, **factory)
        self.v_proj = torch.nn.Linear(d_model, heads * 64, bias=False, **factory)
        self.u_proj = torch.nn.Linear(d_model, heads * 64, bias=False, **factory)
        if self.conv_size:
            self.q_conv1d = _ShortConvolution(heads * 64, self.conv_size, **factory)
            self.k_conv1d = _ShortConvolution(heads * 64, self.conv_size, **factory)
            self.v_conv1d = _ShortConvolution(heads * 64, self.conv_size, **factory)
        self.gamma_proj = torch.nn.Linear(d_model, heads, bias=False, **factory)
        self.alpha_proj = torch.nn.Linear(d_model, heads, bias=False, **factory)
        self.lam_proj = torch.nn.Linear(d_model, heads, bias=False, **factory)
        self.mu_proj = torch.nn.Linear(d_model, heads, bias=False, **factory)
        self.gamma_bias = torch.nn.Parameter(torch.empty(heads, **factory))
        self.gamma_bias._no_weight_decay = True
        self.alpha_bias = torch.nn.Parameter(torch.empty(heads, **factory))
        self.alpha_bias._no_weight_decay = True
        self.lam_bias = torch.nn.Parameter(torch.empty(heads, **factory))
        self.lam_bias._no_weight_decay = True
        self.mu_bias = torch.nn.Parameter(torch.empty(heads, **factory))
        self.mu_bias._no_weight_decay = True
        if self.output_gate:
            self.g_proj = torch.nn.Linear(d_model, heads * 64, bias=False, **factory)
        if self.output_norm == "rms":
            self.o_norm = torch.nn.RMSNorm(64, eps=1e-5, **factory)
        self.o_proj = torch.nn.Linear(heads * 64, d_model, bias=False, **factory)
        self.reset_parameters()

    @staticmethod
    def _check_options(d_model, heads, qk_norm, conv_size, output_norm):
        for name, value in (("d_model", d_model), ("heads", heads)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {value!r}")
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
        torch.nn.init.constant_(self.gamma_bias, 0.0)
        torch.nn.init.constant_(self.alpha_bias, 5.0)
        torch.nn.init.constant_(self.lam_bias, -1.0)
        torch.nn.init.constant_(self.mu_bias, 1.0)

    def gates(self, x):
        """The gates of x (B, T, d_model) by name, each (B, T, H) in float32 or wider: scale * fn(x w_h + bias)."""
        gamma = _widen(self.gamma_proj(x))
        alpha = _widen(self.alpha_proj(x))
        lam = _widen(self.lam_proj(x))
        mu = _widen(self.mu_proj(x))
        return {
            "gamma": torch.sigmoid(gamma + self.gamma_bias),
            "alpha": torch.sigmoid(alpha + self.alpha_bias),
            "lam": torch.sigmoid(lam + self.lam_bias),
            "mu": torch.sigmoid(mu + self.mu_bias),
        }

    def forward(self, x, state=None, return_state=False, cu_seqlens=None, backend=None):
        """y (B, T, d_model) of x (B, T, d_model); `backend` is that of `op`.

        Raises:
            ValueError: x has another shape.
            UnsupportedError: state, return_state or cu_seqlens is asked for.
        """
        if state is not None or return_state or cu_seqlens is not None:
            raise UnsupportedError("state=, return_state= and cu_seqlens= are not lowered yet: pass whole sequences")
        if x.dim() != 3 or x.shape[-1] != self.d_model:
            raise ValueError(f"x must have shape (B, T, {self.d_model}), got {tuple(x.shape)}")
        if x.shape[1] == 0:
            return x.clone()
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.conv_size:
            q, k, v = self.q_conv1d(q), self.k_conv1d(k), self.v_conv1d(v)
        q, k, v = (h.unflatten(-1, (self.heads, -1)) for h in (q, k, v))
        if self.qk_norm == "l2":
            q, k = _l2(q), _l2(k)
        u = self.u_proj(x).unflatten(-1, (self.heads, -1))
        y = op(q, k, v, u, backend=backend, **self.gates(x))
        if self.output_norm == "rms":
            y = self.o_norm(y.to(self.o_norm.weight.dtype))
        y = y.flatten(-2)
        if self.output_gate:
            y = y * F.silu(self.g_proj(x))
        return self.o_proj(y)

    def extra_repr(self):
        return (
            f"d_model={self.d_model}, heads={self.heads}, key_dim=64, value_dim=64, "
            f"qk_norm={self.qk_norm}, conv_size={self.conv_size}, "
            f"output_norm={self.output_norm}, output_gate={self.output_gate}"
        )


Layer = FastslowGrm
