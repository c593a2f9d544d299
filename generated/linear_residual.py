"""linear_residual: Linear attention, every cached segment added: the same as linear attention over the whole
sequence.

Made by mcgen from SPEC, which says the same as the lines below: build it again rather than change this file.

memory     M(x) = W x
update     M = M + outer(v, k)
segments   256 tokens; every slot restarts at each (init: independent)
read-out   y_t = M_t(q_t) + sum of M(q_t) over the cached memories (eq. 7)
shapes     q, k (B, T, H, 64); v and y (B, T, H, 64); k and v may have fewer heads, dividing H
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


def reference(q, k, v, u=None, *, theta=None, cu_seqlens=None, **gates):
    """One token at a time, in float32 or wider, differentiable: the definition that `op` is held against.

    Sequences that are packed one behind another run each by itself; cu_seqlens is as in `op`.

    memory     M(x) = W x
    update     M = M + outer(v, k)
    segments   256 tokens; every slot restarts at each (init: independent)
    read-out   y_t = M_t(q_t) + sum of M(q_t) over the cached memories (eq. 7)
    shapes     q, k (B, T, H, 64); v and y (B, T, H, 64); k and v may have fewer heads, dividing H
    """
    _check(q, k, v, u, theta, gates)
    if (lengths := _sequence_lengths(cu_seqlens, q)) is not None:
        return _of_sequences(functools.partial(reference, theta=theta), lengths, q, k, v, u, gates)
    dtype, y_dtype = torch.float32, v.dtype
    for x in (q, k, v):
        dtype = torch.promote_types(dtype, x.dtype)
    k, v = _of_every_head(k, q), _of_every_head(v, q)
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
    if not y:  # gradients are of zeros all the same
        return (v * sum(x.sum() for x in (q, k, v))).to(y_dtype)
    return torch.stack(y, 1).to(y_dtype)


def _pieces(T, size):
    """Into how many pieces of at most `size` tokens the segments of T tokens fall; T may be symbolic."""
    full, rest = T // 256, T % 256
    return full * ((256 + size - 1) // size) + (rest + size - 1) // size


def _pieces_from(offset, T, size):
    """Into how many pieces they fall where the first token is at `offset` of its segment."""
    first = torch.sym_min(256 - offset, T)
    return (first + size - 1) // size + _pieces(T - first, size)


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
# The tokens are walked in panels, (B, H, lanes, chunks, tokens of a chunk, ·): chunk after chunk, across segments.
# Only the state (M)
# goes from chunk to chunk; all else is done for the chunks of a panel at once.
#
# Functions of a panel or chunk are given values by name, as x.name, and give others, as out.name. A name is one value
# in all of them: d_x is dL/dx, d_x_by_y what of that goes through y, and x_ahead what of x does not wait for the state.
# Beside a value stand its axes and its equation: [t j] are tokens and earlier tokens, [k], [h1] … [v] a head's sizes.
# ---------------------------------------------------------------------------------------------------------------------

TOKENS = 64  # tokens of a chunk, at most
PANEL_ROWS = 4096  # tokens of a panel, times batch, times heads, about
# What the state after a chunk is made of, by how many dimensions of it are the chunk's own, and likewise backwards.
CARRY = {2: "k_v"}
CARRY_VJP = {2: "d_M_by_q_M"}


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
    return vars(out)


def _carry(**x):
    """The state after a chunk."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    out.M_next = x.M + x.k_v  # [k v] M' = R M + sum over j of C_j k_j v_jᵀ
    return vars(out)


def _read_online(**x):
    """The online read-outs of chunks, from the states before them."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    n_t = x.q.shape[-2]
    n_j = x.v.shape[-2]
    C_M_tj = torch.ones(n_t, n_j, dtype=x.q.dtype, device=x.q.device).tril()  # [t j] dM_t/dG_j
    q_k = x.q @ x.k.mT  # [t j]
    # [t v] o_t = M_tᵀ q_t, M_t = R_t M + sum over j <= t of C_tj k_j v_jᵀ
    out.o = _products((x.q, x.M), (C_M_tj * q_k, x.v))
    return vars(out)


def _pulls(**x):
    """What the read-outs of chunks owe to the states before them."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    out.d_M_by_q_M = x.q.mT @ x.d_o  # [k v]
    return vars(out)


def _carry_vjp(**x):
    """The cotangent of the state before a chunk, from that after it."""
    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()
    out.d_M = x.d_M_next + x.d_M_by_q_M  # [k v]
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
    out.d_k = _products((x.v, x.d_M_next.mT), (d_q_k.mT, x.q))  # [j k]
    # d_v = dL/dv
    q_k = x.q @ x.k.mT  # [t j]
    out.d_v = _products((x.k, x.d_M_next), ((C_M_tj * q_k).mT, x.d_o))  # [j v]
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


def _panel_size(heads):
    """Tokens of a panel, a whole number of TOKENS; `heads`, which is B * H, may be symbolic."""
    return torch.sym_max(PANEL_ROWS // (torch.sym_max(heads, 1) * TOKENS), 1) * TOKENS


def _even_chunk(length):
    """Tokens of the chunks that a length is walked in, all of one size; 0 where that would not be a good one."""
    chunk = max(n for n in range(1, TOKENS + 1) if length % n == 0)
    return 0 if length > TOKENS and chunk < TOKENS // 4 else chunk


def _panels(T, heads, offset=0):
    """The walk over T tokens, `heads` being B * H: runs of one panel each, since segments make no difference."""
    borders = [*range(0, T, _panel_size(heads)), T]
    if not _even_chunk(T - borders[-2]):
        borders.insert(-1, T - T % TOKENS)
    spans = enumerate(itertools.pairwise(borders))
    return [[_Panel(i, i + 1, first, last, 0, _even_chunk(last - first))] for i, (first, last) in spans]


def _rows(t, panel, dtype):
    """A panel's rows of t (B, T, H, ·), as (B, H, rows, ·)."""
    rows = t[:, panel.first : panel.last].transpose(1, 2)
    return rows.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _load(tensors, panel, dtype):
    """A panel's inputs by name and what its chunks add to the state."""
    size = (1, -1, panel.chunk)
    x = {name: _rows(t, panel, dtype).unflatten(2, size) for name, t in zip(INPUTS, tensors, strict=True)}
    return x | _writes(**x)


def _nothing(tensors, lanes, dtype):
    """A state of zeros."""
    q = tensors[INPUTS.index("q")]
    shapes = {"M": (64, 64)}
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
        d_state = {f"d_{name}_next": t for name, t in d_state.items()}
        out = _carry_vjp(**chunks[c], **d_state)
        after.append(d_state)
        d_state = {name: out[f"d_{name}"] for name in ("M",)}
    return {name: torch.stack([s[name] for s in reversed(after)], 3) for name in after[0]}, d_state


def _rooms_torch(B, T, H, offset=0, copied=0):
    """The shapes of what the forward pass saves in a buffer, by name; all sizes may be symbolic."""
    N = (T - 1) // _panel_size(B * H) + 2
    return {
        "kept_M": (B, H, N, 64, 64),  # M at the ends of segments
    }


def _saved_torch(tensors, place=()):
    """Empty tensors for what the forward pass saves: a buffer."""
    q, (B, T, H, _) = tensors[INPUTS.index("q")], tensors[INPUTS.index("q")].shape
    offset, _, _ = place or WHOLE_SEQUENCE
    buffer = _buffer(_rooms_torch(B, T, H, offset), q, _compute_type(tensors))
    return [buffer]


def _run_forward_torch(tensors, place=()):
    """y, the state after it where there is a place in a longer sequence, and what the backward pass needs."""
    saved, dtype, (offset, before, _) = _saved_torch(tensors, place), _compute_type(tensors), place or WHOLE_SEQUENCE
    tensors, given, _ = _divided(tensors, before)
    v = tensors[INPUTS.index("v")]
    B, T, H, _ = v.shape
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    _clear_between(saved[0], _rooms_torch(B, T, H, offset))
    (kept_M,) = _parted(saved[0], _rooms_torch(B, T, H, offset))
    state = _begun(given) or _fresh(tensors, 1, dtype)
    for run in _panels(T, B * H, offset):
        for panel in run:
            i, j = panel.i, panel.j
            x = _load(tensors, panel, dtype)
            earlier, ends, state = _walk(x, state, panel.j - panel.i)
            if ends:
                kept_M[:, :, i:j] = torch.cat([end["M"] for end in ends], 2)
            x |= earlier
            x |= _read_online(**x)
            rows = {name: x[name].flatten(2, 4) for name in ("o",)}
            y[:, panel.first : panel.last] = rows["o"].transpose(1, 2)
    for kept in (kept_M,):
        kept[:, :, j:] = 0  # room that was not needed
    if not place:
        return [y, *saved]
    after = [t[:, :, -1:].clone() for t in state.values()]
    return [y, *after, *saved]


def _run_backward_torch(tensors, saved, d_y, d_after=(), place=()):
    """The gradient of every input, and of the state that the pass went on from."""
    dtype, (B, T, H, _), (offset, before, _) = _compute_type(tensors), d_y.shape, place or WHOLE_SEQUENCE
    types = [t.dtype for t in tensors]
    tensors, given, _ = _divided(tensors, before)
    (kept_M,) = _parted(saved[0], _rooms_torch(B, T, H, offset))
    d = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors]
    walk = _panels(T, B * H, offset)
    d_slots = dict(zip(PARTS, d_after, strict=False))
    d_state = _nothing(tensors, 1, dtype) | d_slots
    for run in reversed(walk):
        i = run[0].i
        begun = _begun(given if run is walk[0] else ())
        states = [begun or _fresh(tensors, 1, dtype)]
        if run is not walk[0]:
            states[0] |= {"M": kept_M[:, :, i - 1 : i]}
        for panel in reversed(run):
            x = _load(tensors, panel, dtype)
            d_rows = _rows(d_y, panel, dtype)
            x["d_o"] = d_rows.unflatten(2, x["q"].shape[2:5])
            x |= _walk(x, states.pop(), panel.j - panel.i)[0]
            x |= _pulls(**x)
            after, d_state = _walk_back(x, d_state, None, panel.j - panel.i)
            out = _inputs_vjp(**x, **after)
            for name, t in zip(INPUTS, d, strict=True):
                t[:, panel.first : panel.last] = out[f"d_{name}"].expand_as(x[name]).flatten(2, 4).transpose(1, 2)
    d_before = []
    if given:
        d_before += [d_state[name] for name in PARTS]
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
def states_kernel(
    k,
    v,
    start_M,
    begin_M,
    after_M,
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
    if begin_M is not None:
        if i_c == 0:
            b_M = tl.load(begin_M + i_bh.to(tl.int64) * (K * V) + o_kv, mask=m_kv, other=0.0)
    i_first, i_last = _chain(chains, i_c)
    for i_n in range(i_first, i_last):
        start, end, _, _, _, _, _ = _block(blocks, i_n)
        i_state = i_bh.to(tl.int64) * n_blocks + i_n
        tl.store(start_M + i_state * K * V + o_kv, b_M, mask=m_kv)
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
            b_M = b_M_next
    if after_M is not None:
        if i_last == n_blocks:
            tl.store(after_M + i_bh.to(tl.int64) * (K * V) + o_kv, b_M, mask=m_kv)


@_jit
def read_kernel(
    q,
    k,
    v,
    start_M,
    y,
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
    start, end, _, _, _, _, _ = _block(blocks, i_n)
    i_state = i_bh.to(tl.int64) * n_blocks + i_n
    b_M = tl.load(start_M + i_state * K * V + o_kv, mask=m_kv, other=0.0)
    for i_step in range(tl.cdiv(end - start, BT)):
        i_t = start + i_step * BT
        m_t = i_t + o_t < end
        i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
        b_at_t = o_t
        b_at_j = o_t
        b_causal = tl.where(b_at_t[:, None] + 1.0 - b_at_j[None, :] > 0, 1.0, 0.0)
        b_valid = m_t.to(tl.float32)
        b_rate = tl.where(b_valid > 0, 1.0, 0.0)
        b_C_M_tj = b_causal * b_rate[None, :]
        b_q = tl.load(
            q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
        ).to(IN)
        b_k = tl.load(
            k + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
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
        b_y = b_o
        o_y = o_t[:, None] * (H * V) + o_v[None, :]
        tl.store(y + i_row * V + o_y, b_y.to(y.dtype.element_ty), mask=m_t[:, None] & m_v[None, :])


@_jit
def queries_kernel(
    k,
    v,
    d_y,
    start_M,
    d_q,
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
    """Gradients of q.

    One program a block and tile of K columns walks the block forwards.
    """
    i_n, i_bh, i_k = tl.program_id(0) // BH, tl.program_id(0) % BH, tl.program_id(1)
    i_b, i_h = i_bh // H, i_bh % H
    one = tl.minimum(T, 1)
    o_t, o_k, o_v = tl.arange(0, BT), i_k * BK + tl.arange(0, BK), tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    o_kv, m_kv = o_k[:, None] * V + o_v[None, :], m_k[:, None] & m_v[None, :]
    start, end, _, _, _, _, _ = _block(blocks, i_n)
    i_state = i_bh.to(tl.int64) * n_blocks + i_n
    b_M = tl.load(start_M + i_state * K * V + o_kv, mask=m_kv, other=0.0)
    for i_step in range(tl.cdiv(end - start, BT)):
        i_t = start + i_step * BT
        m_t = i_t + o_t < end
        i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
        b_at_t = o_t
        b_at_j = o_t
        b_causal = tl.where(b_at_t[:, None] + 1.0 - b_at_j[None, :] > 0, 1.0, 0.0)
        b_valid = m_t.to(tl.float32)
        b_rate = tl.where(b_valid > 0, 1.0, 0.0)
        b_C_M_tj = b_causal * b_rate[None, :]
        b_d_y = tl.load(
            d_y + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]), mask=m_t[:, None] & m_v[None, :], other=0.0
        ).to(IN)
        b_v = tl.load(
            v + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]), mask=m_t[:, None] & m_v[None, :], other=0.0
        ).to(IN)
        b_d_C_q_k_by_o = _tile_dot(b_d_y, tl.trans(b_v), one, PREC)
        b_d_q_k = b_d_C_q_k_by_o * b_C_M_tj
        b_k = tl.load(
            k + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
        ).to(IN)
        b_d_q_by_q_k = _tile_dot(b_d_q_k, b_k.to(tl.float32), one, PREC)
        b_d_q = _tile_dot_add(b_d_q_by_q_k, b_d_y.to(tl.float32), tl.trans(b_M), one, PREC)
        tl.store(
            d_q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]),
            b_d_q.to(d_q.dtype.element_ty),
            mask=m_t[:, None] & m_k[None, :],
        )
        b_M_writes = b_rate[:, None] * b_v.to(tl.float32)
        b_M_next = _tile_dot_add(b_M, tl.trans(b_k.to(tl.float32)), b_M_writes, one, PREC)
        b_M = b_M_next


@_jit
def keys_kernel(
    q,
    v,
    d_y,
    d_end_M,
    d_k,
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
    start, end, _, _, _, _, _ = _block(blocks, i_n)
    i_state = i_bh.to(tl.int64) * n_blocks + i_n
    b_d_M_next = tl.load(d_end_M + i_state * K * V + o_kv, mask=m_kv, other=0.0)
    n_steps = tl.cdiv(end - start, BT)
    for i_back in range(n_steps):
        i_step = n_steps - 1 - i_back
        i_t = start + i_step * BT
        m_t = i_t + o_t < end
        i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
        b_at_t = o_t
        b_at_j = o_t
        b_causal = tl.where(b_at_t[:, None] + 1.0 - b_at_j[None, :] > 0, 1.0, 0.0)
        b_d_y = tl.load(
            d_y + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]), mask=m_t[:, None] & m_v[None, :], other=0.0
        ).to(IN)
        b_v = tl.load(
            v + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]), mask=m_t[:, None] & m_v[None, :], other=0.0
        ).to(IN)
        b_d_C_q_k_by_o = _tile_dot(b_d_y, tl.trans(b_v), one, PREC)
        b_d_q_k_unscaled = b_d_C_q_k_by_o * b_causal
        b_d_M_next_v = _tile_dot(b_v.to(tl.float32), tl.trans(b_d_M_next), one, PREC)
        b_valid = m_t.to(tl.float32)
        b_rate = tl.where(b_valid > 0, 1.0, 0.0)
        b_d_k_by_M_next = b_rate[:, None] * b_d_M_next_v
        b_q = tl.load(
            q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
        ).to(IN)
        b_q_d_q_k_unscaled = _tile_dot(tl.trans(b_d_q_k_unscaled), b_q.to(tl.float32), one, PREC)
        b_d_k_by_q_k = b_rate[:, None] * b_q_d_q_k_unscaled
        b_d_k = b_d_k_by_M_next + b_d_k_by_q_k
        tl.store(
            d_k + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]),
            b_d_k.to(d_k.dtype.element_ty),
            mask=m_t[:, None] & m_k[None, :],
        )
        b_d_M = _tile_dot_add(b_d_M_next, tl.trans(b_q), b_d_y, one, PREC)
        b_d_M_next = b_d_M


@_jit
def values_kernel(
    q,
    k,
    d_y,
    d_end_M,
    d_v,
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
    start, end, _, _, _, _, _ = _block(blocks, i_n)
    i_state = i_bh.to(tl.int64) * n_blocks + i_n
    b_d_M_next = tl.load(d_end_M + i_state * K * V + o_kv, mask=m_kv, other=0.0)
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
        b_d_M_writes_by_M_next = _tile_dot(b_k.to(tl.float32), b_d_M_next, one, PREC)
        b_valid = m_t.to(tl.float32)
        b_rate = tl.where(b_valid > 0, 1.0, 0.0)
        b_d_v_by_M_writes = b_d_M_writes_by_M_next * b_rate[:, None]
        b_d_y = tl.load(
            d_y + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]), mask=m_t[:, None] & m_v[None, :], other=0.0
        ).to(IN)
        b_C_q_k_unscaled_d_y = _tile_dot(tl.trans(b_C_q_k_unscaled), b_d_y.to(tl.float32), one, PREC)
        b_d_v_by_o = b_rate[:, None] * b_C_q_k_unscaled_d_y
        b_d_v = b_d_v_by_M_writes + b_d_v_by_o
        tl.store(
            d_v + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]),
            b_d_v.to(d_v.dtype.element_ty),
            mask=m_t[:, None] & m_v[None, :],
        )
        b_d_M = _tile_dot_add(b_d_M_next, tl.trans(b_q), b_d_y, one, PREC)
        b_d_M_next = b_d_M


@_jit
def retreat_kernel(
    q,
    d_y,
    d_end_M,
    d_after_M,
    d_begin_M,
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
    i_first, i_last = _chain(chains, i_c)
    if d_after_M is not None:
        if i_last == n_blocks:
            b_d_M_next += tl.load(d_after_M + i_bh.to(tl.int64) * (K * V) + o_kv, mask=m_kv, other=0.0)
    for i_back in range(i_last - i_first):
        i_n = i_last - 1 - i_back
        start, end, _, _, _, _, _ = _block(blocks, i_n)
        i_state = i_bh.to(tl.int64) * n_blocks + i_n
        tl.store(d_end_M + i_state * K * V + o_kv, b_d_M_next, mask=m_kv)
        n_steps = tl.cdiv(end - start, BT)
        for i_back in range(n_steps):
            i_step = n_steps - 1 - i_back
            i_t = start + i_step * BT
            m_t = i_t + o_t < end
            i_row = (i_b.to(tl.int64) * T + i_t) * H + i_h
            b_q = tl.load(
                q + i_row * K + (o_t[:, None] * (H * K) + o_k[None, :]), mask=m_t[:, None] & m_k[None, :], other=0.0
            ).to(IN)
            b_d_y = tl.load(
                d_y + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :]), mask=m_t[:, None] & m_v[None, :], other=0.0
            ).to(IN)
            b_d_M = _tile_dot_add(b_d_M_next, tl.trans(b_q), b_d_y, one, PREC)
            b_d_M_next = b_d_M
    if d_begin_M is not None:
        if i_c == 0:
            tl.store(d_begin_M + i_bh.to(tl.int64) * (K * V) + o_kv, b_d_M_next, mask=m_kv)


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


CHAINED = True  # whether a segment goes on from the one before
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


# Lengths that kernels are specialised for.
CONSTANTS = {
    "K": 64,
    "V": 64,
}
LEAST_ROWS = 16  # fewest tokens that a kernel takes at once

# The axis that each kernel takes in tiles: keys, values, or the hidden units of every layer; none where it takes all.
AXES = {"states": "v", "read": "v", "queries": "k", "keys": "k", "values": "v", "retreat": "v"}

# BT, columns of a tile, num_warps and num_stages of every kernel by architecture and type of products: found by
# compiling for it, the first of a list of candidates, larger tiles first, that fits the shared memory and keeps all
# values in registers where that matters. Those that `mcgen tune` found on this machine come before them.
CONFIGURATIONS = {
    "sm80": {
        "bfloat16": {
            "states": (64, 64, 8, 1),
            "read": (64, 64, 8, 1),
            "queries": (64, 64, 8, 1),
            "keys": (64, 64, 8, 1),
            "values": (64, 64, 8, 1),
            "retreat": (64, 64, 8, 1),
        },
        "float32": {
            "states": (32, 64, 4, 1),
            "read": (32, 64, 4, 1),
            "queries": (32, 64, 8, 1),
            "keys": (32, 64, 8, 1),
            "values": (32, 64, 8, 1),
            "retreat": (32, 64, 4, 1),
        },
    },
    "sm90": {
        "bfloat16": {
            "states": (64, 64, 8, 1),
            "read": (64, 64, 8, 1),
            "queries": (64, 64, 8, 1),
            "keys": (64, 64, 8, 1),
            "values": (64, 64, 8, 1),
            "retreat": (64, 64, 8, 1),
        },
        "float32": {
            "states": (32, 64, 4, 1),
            "read": (32, 64, 8, 1),
            "queries": (32, 64, 8, 1),
            "keys": (32, 64, 8, 1),
            "values": (32, 64, 8, 1),
            "retreat": (32, 64, 4, 1),
        },
    },
    "sm100": {
        "bfloat16": {
            "states": (64, 64, 8, 1),
            "read": (64, 64, 8, 1),
            "queries": (64, 64, 8, 1),
            "keys": (64, 64, 8, 1),
            "values": (64, 64, 8, 1),
            "retreat": (64, 32, 8, 1),
        },
        "float32": {
            "states": (32, 64, 4, 1),
            "read": (32, 64, 8, 1),
            "queries": (32, 64, 8, 1),
            "keys": (32, 64, 8, 1),
            "values": (32, 64, 8, 1),
            "retreat": (32, 64, 4, 1),
        },
    },
    "gfx942": {
        "bfloat16": {
            "states": (64, 64, 4, 1),
            "read": (64, 64, 4, 1),
            "queries": (64, 64, 4, 1),
            "keys": (64, 64, 4, 1),
            "values": (64, 64, 4, 1),
            "retreat": (64, 64, 4, 1),
        },
        "float32": {
            "states": (32, 64, 4, 1),
            "read": (32, 64, 4, 1),
            "queries": (32, 64, 4, 1),
            "keys": (32, 64, 4, 1),
            "values": (32, 64, 4, 1),
            "retreat": (32, 64, 4, 1),
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
    "states": "44ba03c800e75263725c0fc2f3d434f84cad217a5a7e54289a8475a3fac547de",
    "read": "c28417eff57394c15db2351e8d73d8caa8fd20a23524a907812adf29d9c9d257",
    "queries": "d675c5acb8d3fcd258df3e8824cfa1eef767f15317503eccd3db56afe4e96810",
    "keys": "28c4f77464893a530876b1ba28478d57646bcc3c265a368e1a6a473a669cb79b",
    "values": "8d896ed4d2271a18474704139d3567a9bc1d62862d00df2482a3f8eddc3854f8",
    "retreat": "eb0ff307cfd733529b17eaafb6625ab5ac01f3187f5e332399cf4cc00539d17e",
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
    lead, offset, _ = place or (0, 0, 0)
    n_blocks = _pieces_from(offset, T - lead, BLOCK) if place else _pieces(T, BLOCK)
    return {
        "start_M": (B, H, n_blocks, 64, 64),
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


def _results(x, saved):
    """What the forward pass gives: y, the state after the last token where it goes on from one, and what it saves."""
    if not x.place:
        return [x.y, *saved]
    y = x.y
    after = [getattr(x, f"after_{name}") for name in PARTS]
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


def _of_begun(x):
    """The gradients of what a pass goes on from, in the order of the operator's tensors."""
    found = []
    if x.begun:
        found += [getattr(x, f"d_begin_{name}") for name in PARTS]
    return found + (x.d_earlier if x.earlier else [])


def _gradients(x, tensors):
    """The gradients of the inputs, in their types."""
    return [getattr(x, f"d_{name}").to(t.dtype) for name, t in zip(INPUTS, tensors, strict=False)]


def _run_forward_triton(tensors, place=()):
    """y, and what the backward pass needs of it."""
    x = _given(tensors, place)
    saved = _saved_triton(tensors, place)
    _clear_between(saved[0], _rooms_triton(x.B, x.T, x.H, x.place))
    _recall(x, ["buffer"], saved)
    x.y = _new(x, x.B, x.T, x.H, 64, dtype=x.v.dtype)
    _launch(states_kernel, x, x.n_chains * x.BH, _n_tiles("states", x))
    _launch(read_kernel, x, x.n_blocks * x.BH, _n_tiles("read", x))
    return _results(x, saved)


def _run_backward_triton(tensors, saved, d_y, d_after=(), place=()):
    """The gradients of all inputs, from that of y and what the forward pass saved."""
    x = _given(tensors, place)
    _owe(x, d_after)
    _recall(x, ["buffer"], saved)
    x.d_y = d_y.contiguous()
    x.d_end_M = _new(x, x.B, x.H, x.n_blocks, 64, 64)
    _launch(retreat_kernel, x, x.n_chains * x.BH, _n_tiles("retreat", x))
    x.d_q = _new(x, x.B, x.T, x.H, 64, dtype=x.q.dtype)
    x.d_k = _new(x, x.B, x.T, x.H, 64, dtype=x.k.dtype)
    x.d_v = _new(x, x.B, x.T, x.H, 64, dtype=x.v.dtype)
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

INPUTS = ("q", "k", "v")
FORWARD_MODE = "forward-mode derivatives of op are not lowered; take those of `reference` instead"
TWICE = "second derivatives of op are not lowered; differentiate `reference` twice instead"
PARTS = ("M",)  # of the state that goes from token to token
BANK = ()  # of what is cached at the ends of segments
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
    return 32768 * B * H * T, 81920 * B * H * T


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
    tensors = [named[name] for name in ("q", "k", "v")]
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
SHAPES = {"M": (64, 64)}  # of parts of the state and of what is cached, behind (B, H, 1)
_Checkpoint = collections.namedtuple("_Checkpoint", ("position", "parts"))


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
    named = {name: getattr(state, name) for name in ("_rows", "_streams", "_given")}
    tensors += itertools.chain.from_iterable(of.values() for of in named.values())
    context = {
        "numbers": (state.position, state.keep, state.capacity),
        "points": points,
        "named": {name: list(of) for name, of in named.items()},
    }
    return tensors, context


def _unflattened(tensors, context):
    """The state of these tensors, which is `_flattened`'s reverse."""
    state, left = State(), iter(tensors)
    state.position, state.keep, state.capacity = context["numbers"]
    state._points = [_Checkpoint(position, tuple(itertools.islice(left, n))) for position, n in context["points"]]
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
    for begin, stop in itertools.pairwise(sorted(cuts)):
        place = [begin % SEGMENT, 0, max(position - begin, 0)]
        found = {name: t[:, begin - end + t.shape[1] : stop - end + t.shape[1]] for name, t in rows.items()}
        for name in INPUTS:
            if name not in found:
                t = inputs[name][:, max(begin - position, 0) : stop - position]
                found[name] = torch.cat([t.new_zeros(t.shape[0], place[2], *t.shape[2:]), t], 1) if place[2] else t
        tensors = [*(found[name] for name in INPUTS), *theta]
        parts = _begun_parts(point.parts, state._given, tensors)
        out = run([*tensors, *parts], place)
        y.append(out[0][:, place[2] :])
        parts = tuple(out[1 : 1 + len(PARTS)])
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
        borders = None if lengths is None else list(itertools.accumulate(lengths, initial=0))
        how = {"backend": backend, "cu_seqlens_cpu": borders, "state": state, "return_state": stateful}
        y = op(q, k, v, **how)
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


Layer = LinearResidual
