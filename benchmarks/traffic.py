"""Launches of the Triton backend, and megabytes of the tensors handed to them, beside a peer's and a lower bound.

    \b
    python benchmarks/traffic.py             # B 1, T 4096, H 4, D 64, bfloat16, segments of 256
    python benchmarks/traffic.py --json

Nothing runs: launches are intercepted, and each counts the tensors handed to it once. A tensor that two kernels take
counts twice; what a kernel reads again is not counted, for caches mostly serve that. The lower bound is what any
implementation must move, inputs and outputs once each: y of the inputs on the way there, the gradients of the inputs
from those and the gradient of y on the way back. The peer is flash-linear-attention, whose operators have no cache of
segments, so that only plain memories have one to stand beside.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import torch

from mcgen import pipeline
from mcgen.cli.output import json_option, print_json, print_table
from mcgen.spec import Spec, loads
from mcgen.tune.traffic import Launch, count, total_bytes
from mcgen.tune.verification import imported

BATCH, LENGTH, HEADS, DIM, SEGMENT = 1, 4096, 4, 64, 256
ELEMENT, GATE = torch.bfloat16, torch.float32
MEGABYTE = 10**6


@dataclass(frozen=True)
class Figures:
    """What one way through an operator takes: launches, and megabytes of the tensors handed to them."""

    launches: int
    megabytes: float


@dataclass(frozen=True)
class Peer:
    """An operator of flash-linear-attention 0.6, recorded at the same shapes with its launches intercepted as here."""

    operator: str
    forward: Figures
    backward: Figures


LINEAR = Peer("chunk_linear_attn", Figures(2, 16.8), Figures(4, 50.3))
SIMPLE_GLA = Peer("chunk_simple_gla", Figures(3, 17.0), Figures(5, 50.9))
GATED_DELTA = Peer("chunk_gated_delta_rule", Figures(5, 36.1), Figures(7, 80.5))


@dataclass(frozen=True)
class Subject:
    """A memory of the table, and the peer that computes the same."""

    rule: str
    aggregate: Mapping[str, Any]
    peer: Peer | None = None

    @property
    def name(self) -> str:
        return " ".join([self.rule, *map(str, self.aggregate.values())])

    def spec(self) -> Spec:
        fields = {"mcgen": 1, "name": "subject", "memory": {"kind": "matrix"}, "update": {"rule": self.rule}}
        sizes = {"segment": {"size": SEGMENT}, "head": {"key_dim": DIM, "value_dim": DIM}}
        return loads(json.dumps({**fields, **sizes, "aggregate": self.aggregate}))


NONE, GRM, SSC = {"kind": "none"}, {"kind": "grm"}, {"kind": "ssc", "top_k": 2}
SUBJECTS = (
    Subject("linear", NONE, LINEAR),
    Subject("decay", NONE, SIMPLE_GLA),
    Subject("linear", GRM),
    Subject("decay", GRM),
    Subject("linear", SSC),
    Subject("delta", NONE),
    Subject("gated_delta", NONE, GATED_DELTA),
    Subject("gated_delta", GRM),
)


@dataclass(frozen=True)
class Row:
    """One way through one memory, in numbers. `bound` is the lower bound, in megabytes."""

    memory: str
    way: str
    found: Figures
    bound: float
    peer: str | None
    of_peer: Figures | None
    kernels: Mapping[str, float]


def measured(subject: Subject) -> Iterator[Row]:
    """Both ways through a memory."""
    spec = subject.spec()
    inputs = _inputs(spec)
    y: list[torch.Tensor] = []
    module = _module(spec)
    launches = {"forward": count(lambda: y.append(module.op(**inputs, backend="triton")))}
    launches["backward"] = count(lambda: y[0].backward(torch.zeros_like(y[0])))
    taken = sum(map(_bytes, inputs.values()))
    bounds = {"forward": taken + _bytes(y[0]), "backward": 2 * taken + _bytes(y[0])}
    for way, made in launches.items():
        peer = subject.peer
        yield Row(
            memory=subject.name,
            way=way,
            found=Figures(len(made), total_bytes(made) / MEGABYTE),
            bound=bounds[way] / MEGABYTE,
            peer=peer and peer.operator,
            of_peer=peer and getattr(peer, way),
            kernels=_by_kernel(made),
        )


def _inputs(spec: Spec) -> dict[str, torch.Tensor]:
    shape = (BATCH, LENGTH, HEADS)
    wide = ["q", "k", "v", *(["u"] if spec.routes_by_u else [])]
    inputs = {name: torch.zeros(*shape, DIM, dtype=ELEMENT, requires_grad=True) for name in wide}
    return inputs | {name: torch.zeros(shape, dtype=GATE, requires_grad=True) for name in spec.tensor_gates}


def _module(spec: Spec) -> ModuleType:
    with tempfile.TemporaryDirectory(prefix="mcgen-") as folder:
        path = Path(folder) / f"{spec.name}.py"
        path.write_text(pipeline.source(spec), encoding="utf-8")
        return imported(path)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _by_kernel(launches: Sequence[Launch]) -> dict[str, float]:
    """Megabytes by kernel, in order of launch."""
    names = dict.fromkeys(launch.name for launch in launches)
    return {name: total_bytes(one for one in launches if one.name == name) / MEGABYTE for name in names}


def show(rows: Sequence[Row]) -> None:
    heads = ("memory", "way", "launches", "MB", "at least", "", "its launches", "its MB")
    title = f"B {BATCH}, T {LENGTH}, H {HEADS}, D {DIM}, {str(ELEMENT).removeprefix('torch.')}, segments of {SEGMENT}"
    print_table(heads, map(_cells, rows), title)


def _cells(row: Row) -> list[str]:
    peer = [row.peer, f"{row.of_peer.launches}", f"{row.of_peer.megabytes:.1f}"] if row.of_peer else ["", "", ""]
    return [row.memory, row.way, f"{row.found.launches}", f"{row.found.megabytes:.1f}", f"{row.bound:.1f}", *peer]


@click.command(help=__doc__)
@json_option
def main(as_json: bool) -> None:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: kernels of CPU tensors are accepted, not run
    rows = [row for subject in SUBJECTS for row in measured(subject)]
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        show(rows)


if __name__ == "__main__":
    main()
