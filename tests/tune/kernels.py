"""Kernels for the tests of what compiles and counts them: small, but with products, exponentials, masks and a loop."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def exponential(x):
    return tl.exp2(x * LOG2E)


@triton.jit
def attend(q, k, o, T, stride, BT: tl.constexpr, D: tl.constexpr):
    """o = exp(q kᵀ) k, unnormalised, rows masked at T."""
    o_t = tl.program_id(0) * BT + tl.arange(0, BT)
    o_d = tl.arange(0, D)
    b_q = tl.load(q + o_t[:, None] * stride + o_d[None, :], mask=(o_t < T)[:, None], other=0.0)
    b_o = tl.zeros([BT, D], tl.float32)
    for i_s in range(0, T, BT):
        o_s = i_s + tl.arange(0, BT)
        b_k = tl.load(k + o_s[:, None] * stride + o_d[None, :], mask=(o_s < T)[:, None], other=0.0)
        b_o += tl.dot(exponential(tl.dot(b_q, tl.trans(b_k))).to(b_k.dtype), b_k)
    tl.store(o + o_t[:, None] * stride + o_d[None, :], b_o.to(o.dtype.element_ty), mask=(o_t < T)[:, None])


@triton.jit
def attend_again(q, k, o, T, stride, BT: tl.constexpr, D: tl.constexpr):
    # The same as `attend`, under another name and with another remark.
    o_t = tl.program_id(0) * BT + tl.arange(0, BT)
    o_d = tl.arange(0, D)
    b_q = tl.load(q + o_t[:, None] * stride + o_d[None, :], mask=(o_t < T)[:, None], other=0.0)
    b_o = tl.zeros([BT, D], tl.float32)
    for i_s in range(0, T, BT):
        o_s = i_s + tl.arange(0, BT)
        b_k = tl.load(k + o_s[:, None] * stride + o_d[None, :], mask=(o_s < T)[:, None], other=0.0)
        b_o += tl.dot(exponential(tl.dot(b_q, tl.trans(b_k))).to(b_k.dtype), b_k)
    tl.store(o + o_t[:, None] * stride + o_d[None, :], b_o.to(o.dtype.element_ty), mask=(o_t < T)[:, None])


@triton.jit
def double(x, y, n, B: tl.constexpr):
    o_n = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(y + o_n, 2 * tl.load(x + o_n, mask=o_n < n), mask=o_n < n)
