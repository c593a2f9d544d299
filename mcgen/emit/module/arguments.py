"""The argument checks of a generated module, shared by its `op` and its `reference`."""

from __future__ import annotations

import json

from mcgen.emit.say.mathematics import weight_shapes
from mcgen.emit.text.rendering import render
from mcgen.spec import Spec


def arguments_source(spec: Spec) -> str:
    """The text that defines `_check(q, k, v, u, theta, gates, backend=None)`, and what packed sequences need.

    It refuses, naming the argument: what is no tensor or not floating point, missing, extra (TypeError), of the wrong
    shape or on another device than q (ValueError). Types may be mixed: each of q, k, v, u, theta and the gates may have
    its own. k and v may have fewer heads than q. `u` is looked at only where the aggregate routes by it. T = 0 is
    allowed.
    """
    shapes = [f"(H, {out}, {into})" for out, into in weight_shapes(spec)]
    check = render(
        "arguments.py.jinja",
        deep=spec.memory.kind == "mlp",
        key_dim=spec.head.key_dim,
        value_dim=spec.head.value_dim,
        routes_by_u=spec.routes_by_u,
        gates=[f"expected = {json.dumps(spec.tensor_gates)}"],
        layers=len(shapes),
        theta_shapes=[f"shapes = [{', '.join(shapes)}]"],
    )
    return f"{check.rstrip()}\n\n\n{render('packed.py.jinja')}"
