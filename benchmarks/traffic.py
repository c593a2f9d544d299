"""Launches of the Triton backend, and megabytes of the tensors handed to them, beside a peer's and a lower bound.

    \b
    python benchmarks/traffic.py             # B 1, T 4096, H 4, D 64, bfloat16, segments of 256
    python benchmarks/traffic.py --json

Nothing runs: launches are those of the plan, and each counts the tensors handed to it once. A tensor that two kernels
take counts twice; what a kernel reads again is not counted, for caches mostly serve that. The lower bound is what any
implementation must move, inputs and outputs once each: y of the inputs on the way there, the gradients of the inputs
from those and the gradient of y on the way back. The peer is flash-linear-attention, whose operators have no cache of
segments, so that only plain memories have one to stand beside.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click

from mcgen.cli.output import json_option, print_json, print_table
from mcgen.plan.expansion import Launched, Problem, expanded, interpreted
from mcgen.plan.host import Buffer
from mcgen.plan.plan import planned, scheduled
from mcgen.spec import Spec, loads
from mcgen.symbolic.meaning import meaning

BATCH, LENGTH, HEADS, DIM, SEGMENT = 1, 4096, 4, 64, 256
ELEMENT, GATE = "bfloat16", "float32"
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
    understood = meaning(subject.spec())
    schedule = scheduled(planned(understood))
    types = {**dict.fromkeys(understood.spec.tensor_gates, GATE), **dict.fromkeys("qkuv", ELEMENT)}
    problem = Problem(BATCH, LENGTH, HEADS, types)
    tensors = lambda some: sum(problem.tensor(one, schedule.constants).bytes for one in some)  # noqa: E731
    taken, given = tensors(schedule.forward.given), tensors([Y])
    bounds = {"forward": taken + given, "backward": 2 * taken + given}
    for one in schedule.passes:
        made = expanded(schedule, one, problem, interpreted(schedule, "float32"))
        peer = subject.peer
        yield Row(
            memory=subject.name,
            way=one.name,
            found=Figures(len(made), sum(launch.bytes for launch in made) / MEGABYTE),
            bound=bounds[one.name] / MEGABYTE,
            peer=peer and peer.operator,
            of_peer=peer and getattr(peer, one.name),
            kernels=_by_kernel(made),
        )


Y = Buffer("y", ("B", "T", "H", "V"), "v")


def _by_kernel(launches: Sequence[Launched]) -> dict[str, float]:
    """Megabytes by kernel, in order of launch."""
    names = dict.fromkeys(launch.kernel for launch in launches)
    return {name: sum(one.bytes for one in launches if one.kernel == name) / MEGABYTE for name in names}


def show(rows: Sequence[Row]) -> None:
    heads = ("memory", "way", "launches", "MB", "at least", "", "its launches", "its MB")
    title = f"B {BATCH}, T {LENGTH}, H {HEADS}, D {DIM}, {ELEMENT}, segments of {SEGMENT}"
    print_table(heads, map(_cells, rows), title)


def _cells(row: Row) -> list[str]:
    peer = [row.peer, f"{row.of_peer.launches}", f"{row.of_peer.megabytes:.1f}"] if row.of_peer else ["", "", ""]
    return [row.memory, row.way, f"{row.found.launches}", f"{row.found.megabytes:.1f}", f"{row.bound:.1f}", *peer]


@click.command(help=__doc__)
@json_option
def main(as_json: bool) -> None:
    rows = [row for subject in SUBJECTS for row in measured(subject)]
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        show(rows)


if __name__ == "__main__":
    main()
