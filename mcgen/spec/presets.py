"""Named update rules. A preset is nothing but its lines: writing them out in a spec gives the same program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Preset:
    """`objective` is in p = M(k) and v; `steps` run top to bottom at every token; `memory` is the customary one."""

    steps: tuple[str, ...]
    objective: str | None = None
    memory: Literal["matrix", "mlp"] = "matrix"
    known_as: str = ""


PRESETS: dict[str, Preset] = {
    "linear": Preset(("M = M + outer(v, k)",), known_as="linear attention"),
    "decay": Preset(("M = alpha*M + outer(v, k)",), known_as="RetNet, Mamba-2, simple GLA"),
    "swla": Preset(
        ("M = alpha*M + beta*outer(v[-1], k[-1]) + lam*outer(v, k)",),
        known_as="sliding window linear attention, Memory Caching eq. 28 with c = 2",
    ),
    "delta": Preset(("M = M - eta*grad",), "sum((p - v)**2)/2", known_as="DeltaNet"),
    "gated_delta": Preset(("M = alpha*M", "M = M - eta*grad"), "sum((p - v)**2)/2", known_as="Gated DeltaNet"),
    "dla": Preset(("M = M - eta*grad",), "-dot(p, v)", "mlp", "deep linear attention, Memory Caching eq. 30"),
    "titans": Preset(
        ("S = beta*S - eta*grad", "M = alpha*M + S"), "sum((p - v)**2)", "mlp", "Titans, Memory Caching eq. 34 and 35"
    ),
}
