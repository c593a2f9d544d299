"""The Triton path of deep memories, put together: kernels, and the host code that launches them."""

from __future__ import annotations

from collections.abc import Mapping

from mcgen.emit.launching import Launching, launching
from mcgen.emit.rendering import render
from mcgen.emit.torch_path import tensor_inputs
from mcgen.emit.triton_layered import LayeredKernels
from mcgen.emit.triton_path import prelude
from mcgen.emit.triton_streamed import StreamedKernels, Text, width_of
from mcgen.emit.unused import without_unused
from mcgen.passes.phases import HIDDEN as HIDDEN_AXES
from mcgen.plan.configurations import ELEMENTS, FAMILIES, HIDDEN, tile
from mcgen.plan.layered import is_layered
from mcgen.plan.plan import keeps_y
from mcgen.plan.streamed import StreamedPlan
from mcgen.symbolic.meaning import Meaning

BF = 32
"""Hidden units of a tile, where no configuration says otherwise."""
STEPPING = ("walk", "read_soup", "through_layers", "reverse")
"""The kernels that go step by step: each takes the rows of a gradient chunk at once, unless it is several steps."""


def deep_source(meaning: Meaning, tuned: bool = False) -> str:
    """The text that defines `_run_forward_triton`, `_run_backward_triton` and `_saved_triton`.

    Where it is `tuned`, the launch configurations in it are from the user's tables first.
    """
    kernels = LayeredKernels(meaning) if is_layered(meaning) else StreamedKernels(meaning)
    parts = kernels.kernels()
    text = "\n\n\n".join(source.strip("\n") for _, source in parts.values())
    shapes = {name: ", ".join(map(str, kernels.streamed.shape(name))) for name in kernels.state}
    layout = [f"{name} ({shapes[name]}) at {at}" for name, at in kernels.streamed.places.items()]
    moves = [name for name in ("_copy", "_fill", "_add") if f"{name}(" in text]
    own = render("triton/streamed/prelude.py.jinja", layout=layout, layered=is_layered(meaning), moves=moves)
    kernels_text = without_unused(f"{prelude(text, meaning)}\n\n\n{own.strip()}\n\n\n{text}\n")
    axes = dict.fromkeys(parts, HIDDEN)
    stepping = () if kernels.streamed.anchored else [name for name in STEPPING if name in parts]
    rows = dict.fromkeys(stepping, kernels.streamed.least_rows)
    known = launching(meaning.spec, kernels_text, axes, rows, tuned)
    return f"{kernels_text}\n\n{without_unused(_host(kernels, parts, axes, known)).strip()}"


def _host(kernels: StreamedKernels, parts: Mapping[str, Text], axes: Mapping[str, str], known: Launching) -> str:
    meaning, spec, plan = kernels.meaning, kernels.meaning.spec, kernels.streamed
    reads, routes = meaning.reads_cached, meaning.routes
    shapes = {"cached": "B, H, n_segments, MEMORY"} if reads else {}
    shapes |= (
        {"pools": f"B, H, n_segments, {spec.head.key_dim}", "lse": "B, T, H", "online": "B, T, H"} if routes else {}
    )
    return render(
        "triton/streamed/host.py.jinja",
        sizes={"state": plan.total, "memory": plan.memory, "rows": plan.between_loops},
        gradient=meaning.gradient_chunk,
        chained=meaning.chained,
        reads_cached=reads,
        routes=routes,
        kind=meaning.aggregate,
        axes=dict(axes),
        digests=known.digests,
        stepping=tuple(known.rows),
        configurations=known.configurations,
        defaults=_defaults(plan),
        least_rows=plan.least_rows,
        whole={"walk": tile(plan.hidden)} if plan.resident else {},
        key_dim=spec.head.key_dim,
        value_dim=spec.head.value_dim,
        hidden=plan.hidden,
        tile_k=tile(spec.head.key_dim),
        tile_v=tile(spec.head.value_dim),
        forward_shapes=shapes,
        tensors=lambda kernel: ", ".join(f'x["{name}"]' for name in parts[kernel][0]),
        keeps_y=keeps_y(meaning),
        between={name: width_of(axis) for name, axis in kernels.between.items()},
        queries=kernels.queries,
        gradients=tensor_inputs(meaning),
        gates=list(spec.tensor_gates),
        layered=is_layered(meaning),
        **(_layer_by_layer(kernels, parts) if is_layered(meaning) else {}),
    )


def _layer_by_layer(kernels: LayeredKernels, parts: Mapping[str, Text]) -> dict[str, object]:
    """What the host needs to know of layers: rows between kernels, and how each layer's kernels lie in tiles."""
    plan, tiled = kernels.streamed, {name: layer for name, (layer, _) in kernels.of_layers.items()}
    in_spans = ("errors", *tiled, "online", "reverse_online", "inputs")
    return {
        "span": plan.span,
        "group": plan.group,
        "layers": [f"layer{layer.suffix}" for layer in plan.layers],
        "walks": {name: kernels.room(name) for name in plan.walks},
        "row_widths": {name: kernels.widths(axis) for name, axis in kernels.span_rows.items()},
        "arguments": {name: tuple(parts[name][0]) for name in in_spans},
        "tiled": {name: (layer.into in HIDDEN_AXES, layer.out in HIDDEN_AXES) for name, layer in tiled.items()},
        "row_parts": {name: kernels.parted(name) for name in tiled},
    }


def _defaults(plan: StreamedPlan) -> dict[str, dict[str, tuple[int, int, int]]]:
    """BT, BF and num_warps by family of architectures and type: small tiles, few registers."""
    rows, columns, warps = plan.least_rows, min(BF, tile(plan.hidden)), {"sm": 8, "gf": 4, "cpu": 4}
    return {family: dict.fromkeys(ELEMENTS, (rows, columns, warps[family])) for family in FAMILIES}
