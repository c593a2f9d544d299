"""linear_residual: Linear attention, every cached segment added: the same as linear attention over the whole
sequence.

Made by mcgen from SPEC, which says the same as the lines below: build it again rather than change this file.

memory     M(x) = W x
update     M = M + outer(v, k)
segments   256 tokens; every slot restarts at each (init: independent)
read-out   y_t = M_t(q_t) + sum of M(q_t) over the cached memories (eq. 7)
shapes     q, k (B, T, H, 64); v and y (B, T, H, 64)
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
    "name": "linear_residual",
    "doc": "Linear attention, every cached segment added: the same as linear attention over the whole sequence.",
    "memory": {"kind": "matrix"},
    "update": {"rule": "linear", "gradient": "token", "gates": {}},
    "segment": {"size": 256, "mode": "constant", "init": "independent"},
    "aggregate": {"kind": "residual", "connector": "u", "pool": "mean", "scale": 1.0},
    "head": {"key_dim": 64, "value_dim": 64},
    "layer": {"d_model": 1024, "heads": 16, "qk_norm": "l2", "conv_size": 4, "output_norm": "rms", "output_gate": True},
}
SPEC_HASH = "6d9cd6958f6aa140fc9d1af758e41497ae72db0e6e87b4aa99d30c1935e4a71d"


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


def _segments(T):
    """Borders (begin, end) of the segments of T tokens."""
    return [(begin, min(begin + 256, T)) for begin in range(0, T, 256)]


def _read(M, x):
    """M(x), M (B, H, V, K) and x (B, H, K)."""
    return (M * x[..., None, :]).sum(-1)


def _outer(v, k):
    """v kᵀ, (B, H, V, K)."""
    return v[..., :, None] * k[..., None, :]


def reference(q, k, v, u=None, *, theta=None, **gates):
    """One token at a time, in float32 or wider, differentiable: the definition that `op` is held against.

    memory     M(x) = W x
    update     M = M + outer(v, k)
    segments   256 tokens; every slot restarts at each (init: independent)
    read-out   y_t = M_t(q_t) + sum of M(q_t) over the cached memories (eq. 7)
    shapes     q, k (B, T, H, 64); v and y (B, T, H, 64)
    """
    _check(q, k, v, u, theta, gates)
    dtype, y_dtype = torch.float32, v.dtype
    for x in (q, k, v):
        dtype = torch.promote_types(dtype, x.dtype)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    B, T, H, K = q.shape
    zero = q.new_zeros(B, H, v.shape[-1], K)
    y, cached = [], []
    for begin, end in _segments(T):
        M = zero  # init: independent
        for t in range(begin, end):
            q_t, k_t, v_t = q[:, t], k[:, t], v[:, t]

            M = M + _outer(v_t, k_t)

            y_t = sum(_read(memory, q_t) for memory in [*cached, M])
            y.append(y_t)
        cached.append(M)
    return (torch.stack(y, 1) if T else v).to(y_dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Torch path: chunks of 64 tokens, any device, any float type. Tensors are (B, H, T, ·) in here.
#
# A walk goes through the chunks of equal segments side by side, as (B, H, S, C, ·), carrying the state:
# M.
# ---------------------------------------------------------------------------------------------------------------------

CHUNK = 64
SLAB = 16  # segments walked side by side, at most


def _step(*, q, M, k, v, **_):
    """One chunk: online read-outs, and the state at its end."""
    n_t = q.shape[-2]
    n_j = v.shape[-2]
    q_M = q @ M
    at_t = torch.arange(n_t, dtype=q.dtype, device=q.device)
    at_j = torch.arange(n_j, dtype=q.dtype, device=q.device)
    x_tj = torch.heaviside(
        at_t[..., :, None] + 1.0 - at_j[..., None, :], torch.zeros_like(at_t[..., :, None] + 1.0 - at_j[..., None, :])
    )
    q_k = q @ k.mT
    x_tj2 = x_tj * q_k
    x_tv = x_tj2 @ v
    o = q_M + x_tv
    k_v = k.mT @ v
    M_next = M + k_v
    return {
        "o": o,
        "M_next": M_next,
    }


def _step_vjp(*, d_o, v, k, M, d_M_next, q, **_):
    """The derivative of: one chunk: online read-outs, and the state at its end."""
    n_t = q.shape[-2]
    n_j = k.shape[-2]
    d_o_v = d_o @ v.mT
    at_t = torch.arange(n_t, dtype=d_o.dtype, device=d_o.device)
    at_j = torch.arange(n_j, dtype=d_o.dtype, device=d_o.device)
    x_tj = torch.heaviside(
        at_t[..., :, None] + 1.0 - at_j[..., None, :], torch.zeros_like(at_t[..., :, None] + 1.0 - at_j[..., None, :])
    )
    x_tj2 = d_o_v * x_tj
    x_tk = x_tj2 @ k
    d_o_M = d_o @ M.mT
    d_q = x_tk + d_o_M
    q_d_o = q.mT @ d_o
    d_M = d_M_next + q_d_o
    d_M_next_v = (d_M_next @ v.mT).mT
    x_jk = (q.mT @ x_tj2).mT
    d_k = d_M_next_v + x_jk
    k_d_M_next = k @ d_M_next
    q_k = q @ k.mT
    x_tj3 = x_tj * q_k
    x_jv = x_tj3.mT @ d_o
    d_v = k_d_M_next + x_jv
    return {
        "d_q": d_q,
        "d_M": d_M,
        "d_k": d_k,
        "d_v": d_v,
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
        "M": slot,
    }


def _advance(state, chunk):
    out = _step(**chunk, **state)
    return {name: out[f"{name}_next"] for name in state}, out


def _slabs(T):
    """Runs of segments that a walk takes side by side: (first segment, last + 1, first token, last + 1)."""
    spans, slabs, i = _segments(T), [], 0
    while i < len(spans):
        j = i + 1
        slabs.append((i, j, spans[i][0], spans[j - 1][1]))
        i = j
    return slabs


def _online_forward(x):
    """Every token's online read-out, and what each segment leaves behind."""
    B, H, T, K = x["q"].shape
    V, N = x["v"].shape[-1], len(_segments(T))
    head = torch.arange(H, dtype=x["q"].dtype, device=x["q"].device)[:, None]
    o = x["q"].new_empty(B, H, T, V)
    kept_M = x["q"].new_empty(B, H, N, K, V)
    state = _fresh(x, 1)
    for i, j, first, last in _slabs(T):
        panel = _panel(x, first, last, j - i)
        length = panel["q"].shape[3]
        o_panel = o[:, :, first:last].unflatten(2, (j - i, -1))
        for a in range(0, length, CHUNK):
            state, out = _advance(state, _chunk(panel, a, head))
            o_panel[:, :, :, a : a + CHUNK] = out["o"]
        kept_M[:, :, i:j] = state["M"]
    return o, kept_M


def _online_backward(x, d, kept, d_o):
    """The walk in reverse: adds to d[name] what every input's gradient owes to the online read-outs and the states.

    States inside a segment are recomputed: once at about every sqrt(n)-th of its n chunks, then chunk by chunk.
    """
    H, T = x["q"].shape[1:3]
    head = torch.arange(H, dtype=x["q"].dtype, device=x["q"].device)[:, None]
    d_state = _fresh(x, 1)
    for i, j, first, last in reversed(_slabs(T)):
        panel, gradients = _panel(x, first, last, j - i), _panel(d, first, last, j - i)
        d_o_panel = d_o[:, :, first:last].unflatten(2, (j - i, -1))
        length = panel["q"].shape[3]
        state = _fresh(x, j - i)
        if i > 0:
            state |= {slot: kept[slot][:, :, i - 1 : i] for slot in kept}
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
                out = _step_vjp(**_chunk(panel, a, head), **states.pop(), **cotangents)
                for name, t in gradients.items():
                    t[:, :, :, a : a + CHUNK] += out[f"d_{name}"]
                d_state = {name: out[f"d_{name}"] for name in d_state}


def _forward_torch(x):
    """y and what the backward pass needs of it, from inputs (B, H, T, ·) of one float type."""
    o, kept_M = _online_forward(x)
    return o, [kept_M]


def _backward_torch(x, saved, d_y):
    """The gradient of every input, from what the forward pass saved."""
    d = {name: torch.zeros_like(t) for name, t in x.items()}
    (kept_M,) = saved
    d_o = d_y
    kept = {"M": kept_M}
    _online_backward(x, d, kept, d_o)
    return d


# ---------------------------------------------------------------------------------------------------------------------
# The operator: both paths behind custom ops, so that torch.compile, autocast and checkpointing see one node each way.
# ---------------------------------------------------------------------------------------------------------------------

INPUTS = ("q", "k", "v")


def _heads_first(tensors):
    """The inputs by name as (B, H, T, ·), of one float type: the widest of theirs, float32 at least."""
    dtype = torch.float32
    for t in tensors:
        dtype = torch.promote_types(dtype, t.dtype)
    x = {name: t.transpose(1, 2).contiguous().to(dtype) for name, t in zip(INPUTS, tensors, strict=True)}
    return x


def _run_forward_torch(tensors):
    y, saved = _forward_torch(_heads_first(tensors))
    return [y.transpose(1, 2).to(tensors[INPUTS.index("v")].dtype).contiguous(), *saved]


def _run_backward_torch(tensors, saved, d_y):
    x = _heads_first(tensors)
    d = _backward_torch(x, saved, d_y.transpose(1, 2).to(x["q"].dtype).contiguous())
    return [d[name].transpose(1, 2).to(t.dtype).contiguous() for name, t in zip(INPUTS, tensors, strict=True)]


def _saved_torch(tensors):
    """Empty tensors like those that the forward pass saves."""
    q, v = tensors[INPUTS.index("q")], tensors[INPUTS.index("v")]
    B, H, K, V, N = q.shape[0], q.shape[2], q.shape[3], v.shape[3], len(_segments(q.shape[1]))
    dtype = torch.float32
    for t in tensors:
        dtype = torch.promote_types(dtype, t.dtype)
    shapes = [(B, H, N, K, V)]
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


class LinearResidual(torch.nn.Module):
    """The memory of this file as a layer, (B, T, d_model) in and out, causal.

    inputs     q, k, v = silu(conv(x W)), q and k over their Euclidean norms
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
        if self.conv_size:
            self.q_conv1d = _ShortConvolution(heads * 64, self.conv_size, **factory)
            self.k_conv1d = _ShortConvolution(heads * 64, self.conv_size, **factory)
            self.v_conv1d = _ShortConvolution(heads * 64, self.conv_size, **factory)
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
        y = op(q, k, v, backend=backend)
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


Layer = LinearResidual
