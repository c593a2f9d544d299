"""What the next token costs from a state on the torch backend, against running all of them again and against attention.

    \b
    python benchmarks/decoding.py            # float32, B 1, H 4, D 64, segments of 256, after 1,024 to 65,536 tokens
    python benchmarks/decoding.py --json decoding.json --rounds 20

Attention's step is one query over a cache of keys and values of all tokens. A step's seconds are the median of the
rounds, whose subjects take turns; the whole is run once. Bytes are those of the state beside those of attention's cache
in bfloat16. A line is a row of LINES.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from ratios import BATCH, DIM, HEADS, SEGMENT, module_of, spec_of

from mcgen.cli.output import in_progress, print_table

LENGTHS = (1024, 8192, 65536)
LINES = {
    "linear none": {"kind": "none"},
    "linear ssc, top 2": {"kind": "ssc", "top_k": 2},
    "linear grm": {"kind": "grm"},
}
Step = Callable[[], None]


@dataclass(frozen=True)
class Line:
    """After `length` tokens: seconds of the next one from a state, of all of them, and of attention's step."""

    subject: str
    length: int
    step: float
    whole: float
    attention: float
    bytes: int
    cache_bytes: int


def rows(length: int) -> dict[str, torch.Tensor]:
    """Random q, k, v and u, (B, T, H, D), keys of length 1."""
    generator = torch.Generator().manual_seed(0)
    found = {name: torch.randn(BATCH, length, HEADS, DIM, generator=generator) for name in "qkvu"}
    return found | {"k": torch.nn.functional.normalize(found["k"], dim=-1)}


def attention_step(length: int) -> Step:
    """One query over the keys and values of so many tokens."""
    x = {name: t.transpose(1, 2).contiguous() for name, t in rows(length).items()}
    query = x["q"][:, :, -1:]
    return lambda: torch.nn.functional.scaled_dot_product_attention(query, x["k"], x["v"])


def seconds(run: Step) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def measured(length: int, rounds: int) -> list[Line]:
    """All lines after so many tokens."""
    x, token = rows(length), rows(1)
    steps, whole, states = {"attention": attention_step(length)}, {}, {}
    for name, aggregate in LINES.items():
        module = module_of(spec_of({"rule": "linear"}, aggregate, SEGMENT))
        begin = time.perf_counter()
        _, state = module.op(**x, return_state=True, backend="torch")
        whole[name], states[name] = time.perf_counter() - begin, state
        steps[name] = lambda module=module, state=state: module.op(**token, state=state, return_state=True)
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in in_progress(range(rounds + 1), f"after {length} tokens"):
        for name, step in steps.items():
            taken = seconds(step)
            if round_number:
                spent[name].append(taken)
    medians = {name: statistics.median(times) for name, times in spent.items()}
    cache = 2 * BATCH * length * HEADS * DIM * 2
    return [
        Line(name, length, medians[name], whole[name], medians["attention"], states[name].nbytes, cache)
        for name in LINES
    ]


@click.command(help=__doc__)
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1), help="Steps of each subject.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the lines here too.")
def main(rounds: int, json_path: Path | None) -> None:
    with torch.no_grad():
        found = [line for length in LENGTHS for line in measured(length, rounds)]
    shown: list[list[Any]] = [
        [
            line.subject,
            f"{line.length:,}",
            f"{1e3 * line.step:.2f} ms",
            f"1/{line.whole / line.step:,.0f}",
            f"{line.step / line.attention:.2f}",
            f"{line.bytes / line.cache_bytes:.2f}",
        ]
        for line in found
    ]
    print_table(["memory", "after", "a step", "of all again", "of attention's", "bytes of its cache"], shown)
    if json_path:
        json_path.write_text(json.dumps([asdict(line) for line in found], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
