"""How the torch backend compares with attention on this machine: ratios, since seconds are a machine's own.

    \b
    python benchmarks/ratios.py              # forward and backward, float32, B 1, H 4, D 64, segments of 256
    python benchmarks/ratios.py --json ratios.json --rounds 9

Subjects run in turns within one process, so that whatever else the machine does falls on all of them alike; a ratio is
the median of those of the rounds, after one of warming up. Peak memory is that of a process of its own, above what
it had before the call. A line of the report is a row of RATIOS or of PEAKS, a thing to run one of SUBJECTS. Keys have
length 1, as delta rules want them.

A line that needs flash-linear-attention's torch references (fla-core) or titans-pytorch, of the extra `test`, is
skipped without them.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import torch

from mcgen import pipeline
from mcgen.cli.output import in_progress, print_table
from mcgen.spec import Spec, loads
from mcgen.tune.verification import imported

BATCH, HEADS, DIM, SEGMENT = 1, 4, 64, 256
LENGTHS = (4096, 8192, 16384, 32768)
GATES = {"alpha": (0.9, 1.0), "beta": (0.1, 0.9), "eta": (0.1, 0.9), "lam": (0.1, 1.0)}

EXPANSION, WHOLE = 4, 8192  # of deep memories: hidden width over DIM, and tokens of the longest gradient chunk

Tensors = Mapping[str, torch.Tensor]
Subject = Callable[[Tensors], torch.Tensor]


@dataclass(frozen=True)
class Ratio:
    """A line of the report: the seconds of `subject` over those of `against`, at most `bound` if one is asked for.

    `length` is that of the calls, and `needs` a package that need not be there.
    """

    subject: str
    against: str
    bound: float | None
    length: int = 8192
    needs: str | None = None

    @property
    def skipped(self) -> str:
        """Why the line cannot be measured here, or nothing."""
        missing = self.needs and importlib.util.find_spec(self.needs) is None
        return f"skipped: {self.needs} is not installed" if missing else ""


@dataclass(frozen=True)
class Peak:
    """A line a length: the peak memory of `subject`, its growth a token at most `bound` times that of the shortest."""

    subject: str
    bound: float | None


def memory(
    update: Mapping[str, Any], aggregate: Mapping[str, Any], size: int = SEGMENT, kind: str = "matrix"
) -> Subject:
    """The operator of a memory with this update and aggregate, in segments of `size`; deep ones have two layers."""
    spec = spec_of(update, aggregate, size, kind)
    module = functools.cache(lambda: module_of(spec))

    def subject(x: Tensors) -> torch.Tensor:
        deep = {"theta": [x["W_1"], x["W_2"]]} if kind == "mlp" else {}
        gates = {gate: x[gate] * (0.01 if deep and gate == "eta" else 1) for gate in spec.tensor_gates}
        return module().op(x["q"], x["k"], x["v"], x["u"], **deep, **gates, backend="torch")

    return subject


def spec_of(update: Mapping[str, Any], aggregate: Mapping[str, Any], size: int, kind: str = "matrix") -> Spec:
    """A spec with this update and aggregate, in segments of `size`."""
    fields = {"mcgen": 1, "name": "subject", "memory": {"kind": kind}, "head": {"key_dim": DIM, "value_dim": DIM}}
    return loads(json.dumps({**fields, "update": update, "aggregate": aggregate, "segment": {"size": size}}))


def module_of(spec: Spec) -> ModuleType:
    """A spec's module."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "subject.py"
        path.write_text(pipeline.source(spec), encoding="utf-8")
        return imported(path)


def titans(chunk: int, aggregate: Mapping[str, Any], size: int = WHOLE) -> Subject:
    """The operator of Titans on a perceptron of two layers, with gradients over chunks of so many tokens."""
    return memory({"rule": "titans", "gradient": {"chunk": chunk}}, aggregate, size, "mlp")


@functools.cache
def peer() -> torch.nn.Module:
    """titans-pytorch's memory with chunks of 64 and gradients at the sequence's start, without its projections."""
    from titans_pytorch import MemoryMLP, NeuralMemory

    model = MemoryMLP(DIM, depth=2, expansion_factor=EXPANSION)
    options = {"pre_rmsnorm": False, "mem_model_norm_add_residual": False, "qkv_receives_diff_views": True}
    module = NeuralMemory(HEADS * DIM, dim_head=DIM, heads=HEADS, chunk_size=64, model=model, **options)
    module.to_queries = module.to_keys = module.to_values = module.combine_heads = torch.nn.Identity()
    module.retrieve_gate = None
    return module


def titans_pytorch(x: Tensors) -> torch.Tensor:
    """The peer's memory of the same queries, keys and values; it makes gates of its own from the keys."""
    read, _ = peer()(torch.stack([x[name].flatten(2) for name in "qkv"]))
    return read.unflatten(-1, (HEADS, DIM))


def attention(x: Tensors) -> torch.Tensor:
    """Causal softmax attention, as torch has it."""
    q, k, v = (x[name].transpose(1, 2) for name in "qkv")
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


@functools.cache
def naive(operator: str) -> ModuleType:
    """flash-linear-attention's plain torch references of an operator: the file alone, for the package wants a GPU.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    package = importlib.util.find_spec("fla")
    if package is None:
        raise ModuleNotFoundError("flash-linear-attention's references are in the package fla-core", name="fla")
    path = Path(package.submodule_search_locations[0]) / "ops" / operator / "naive.py"
    spec = importlib.util.spec_from_file_location(f"fla_naive_{operator}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def chunked_gated_delta_rule(x: Tensors) -> torch.Tensor:
    """The gated delta rule in chunks of 64, as flash-linear-attention has it in torch; decays are logarithms."""
    operator = naive("gated_delta_rule").naive_chunk_gated_delta_rule
    return operator(x["q"], x["k"], x["v"], x["alpha"].log(), x["eta"], scale=1.0)[0]


SUBJECTS: dict[str, Subject] = {
    "attention": attention,
    "gated delta none": memory({"rule": "gated_delta"}, {"kind": "none"}),
    "gated delta, fla's in torch": chunked_gated_delta_rule,
    "linear grm": memory({"rule": "linear"}, {"kind": "grm"}),
    "linear ssc, top 2": memory({"rule": "linear"}, {"kind": "ssc", "top_k": 2}),
    "linear none": memory({"rule": "linear"}, {"kind": "none"}),
    "titans-pytorch": titans_pytorch,
    f"titans none, chunk {WHOLE}": titans(WHOLE, {"kind": "none"}),
    "titans none, chunk 64": titans(64, {"kind": "none"}),
    "titans grm, chunk 64": titans(64, {"kind": "grm"}, SEGMENT),
    "titans ssc, top 2, chunk 64": titans(64, {"kind": "ssc", "top_k": 2}, SEGMENT),
}
RATIOS = (
    Ratio("linear grm", "attention", bound=1 / 3),
    Ratio("linear ssc, top 2", "linear grm", bound=1.0),
    Ratio("linear none", "attention", bound=None),
    Ratio("gated delta none", "gated delta, fla's in torch", bound=1 / 2, length=4096, needs="fla"),
    Ratio(f"titans none, chunk {WHOLE}", "titans-pytorch", bound=1 / 2, needs="titans_pytorch"),
    Ratio("titans none, chunk 64", "titans-pytorch", bound=1.0, needs="titans_pytorch"),
    Ratio("titans grm, chunk 64", "titans-pytorch", bound=None, needs="titans_pytorch"),
    Ratio("titans ssc, top 2, chunk 64", "titans-pytorch", bound=None, needs="titans_pytorch"),
)
PEAKS = (
    Peak("linear grm", bound=1.25),
    Peak("linear ssc, top 2", bound=1.25),
    Peak("linear none", bound=1.25),
)

PEAK_RATIOS = {
    f"titans none, chunk {WHOLE}": 1 / 2,
    "titans none, chunk 64": 1 / 2,
    "titans grm, chunk 64": None,
    "titans ssc, top 2, chunk 64": None,
}


def inputs(length: int) -> dict[str, torch.Tensor]:
    """What every subject is called with, and the cotangent `d_y` of its output."""
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, length, HEADS, DIM)
    x = {name: torch.randn(shape, generator=generator) for name in "qkvu"}
    x["k"] = torch.nn.functional.normalize(x["k"], dim=-1)
    for name, (low, high) in GATES.items():
        x[name] = low + (high - low) * torch.rand(shape[:3], generator=generator)
    for name, (wide, into) in {"W_1": (EXPANSION * DIM, DIM), "W_2": (DIM, EXPANSION * DIM)}.items():
        x[name] = torch.randn(HEADS, wide, into, generator=generator) * into**-0.5
    leaves = {name: t.requires_grad_() for name, t in x.items()}
    return {**leaves, "d_y": torch.randn(shape, generator=generator)}


def forward_and_backward(subject: Subject, x: Tensors) -> float:
    """Seconds of one call and its gradients."""
    for t in x.values():
        t.grad = None
    begin = time.perf_counter()
    subject(x).backward(x["d_y"])
    return time.perf_counter() - begin


def timed(names: Sequence[str], length: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every subject in every round, the subjects in turns."""
    x, seconds = inputs(length), {name: [] for name in names}
    for round_number in in_progress(range(rounds + 1), "timing"):
        for name in names:
            spent = forward_and_backward(SUBJECTS[name], x)
            if round_number:
                seconds[name].append(spent)
    return seconds


def peak(subject: str, length: int) -> int:
    """Bytes above what a process had before one call and its gradients, in a process of its own."""
    command = [sys.executable, __file__, "--peak-of", subject, "--length", str(length)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measured_peak(subject: Subject, length: int) -> int:
    """What `peak` runs in the other process. A short call first, so that nothing is imported or compiled later."""
    forward_and_backward(subject, inputs(SEGMENT))
    x = inputs(length)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    forward_and_backward(subject, x)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def ratio_rows(length: int | None, rounds: int) -> list[dict[str, Any]]:
    """The lines of RATIOS, measured, at a length of their own if none is given; those that are skipped say so."""
    rows = []
    for tokens in dict.fromkeys(length or row.length for row in RATIOS):
        lines = [row for row in RATIOS if (length or row.length) == tokens]
        names = [name for row in lines if not row.skipped for name in (row.against, row.subject)]
        seconds = timed(list(dict.fromkeys(names)), tokens, rounds) if names else {}
        rows += [ratio_row(row, tokens, seconds) for row in lines]
    return rows


def ratio_row(row: Ratio, length: int, seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """A line of the report as data; `skipped` alone says that there is nothing measured."""
    found = {"subject": row.subject, "against": row.against, "bound": row.bound, "length": length}
    if row.skipped:
        return {**found, "skipped": row.skipped}
    pairs = zip(seconds[row.subject], seconds[row.against], strict=True)
    ratio = statistics.median(one / other for one, other in pairs)
    medians = {"seconds": statistics.median(seconds[row.subject])}
    medians["seconds_against"] = statistics.median(seconds[row.against])
    return {**found, **medians, "ratio": ratio, "holds": row.bound is None or ratio <= row.bound}


def peak_rows() -> list[dict[str, Any]]:
    """The lines of PEAKS, measured at every length."""
    rows = []
    for row in in_progress(PEAKS, "peak memory"):
        tokens = {length: peak(row.subject, length) / length for length in LENGTHS}
        for length, bytes_a_token in tokens.items():
            growth = bytes_a_token / tokens[LENGTHS[0]]
            found = {"length": length, "bytes": round(bytes_a_token * length), "growth": growth}
            rows.append({**asdict(row), **found, "holds": row.bound is None or growth <= row.bound})
    return rows


def peak_ratio_rows() -> list[dict[str, Any]]:
    """The peak memory of the lines of RATIOS in PEAK_RATIOS over that of what they are held against."""
    rows = []
    for row in RATIOS:
        if row.subject in PEAK_RATIOS and not row.skipped:
            bytes_of, against = (peak(name, row.length) for name in (row.subject, row.against))
            ratio, bound = bytes_of / against, PEAK_RATIOS[row.subject]
            found = {"subject": row.subject, "against": row.against, "bytes": bytes_of, "ratio": ratio, "bound": bound}
            rows.append({**found, "holds": bound is None or ratio <= bound})
    return rows


def show_peak_ratios(rows: Sequence[Mapping[str, Any]]) -> None:
    table = [(r["subject"], r["against"], f"{r['bytes'] / 2**20:.0f}", f"{r['ratio']:.2f}", verdict(r)) for r in rows]
    if table:
        print_table(("", "against", "MB", "of its memory", ""), table, title="Peak memory of deep memories")


def verdict(row: Mapping[str, Any]) -> str:
    return "" if row["bound"] is None else f"{'holds' if row['holds'] else 'MISSED'}: at most {row['bound']:.3g}"


def measured(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The measured cells of a line of ratios."""
    if "skipped" in row:
        return "", "", "", row["skipped"]
    return f"{row['seconds']:.3f}", f"{row['ratio']:.3f}", f"{1 / row['ratio']:.2f}", verdict(row)


def show(ratios: Sequence[Mapping[str, Any]], peaks: Sequence[Mapping[str, Any]]) -> None:
    shape = f"B {BATCH}, H {HEADS}, D {DIM}, segments of {SEGMENT}, float32, {torch.get_num_threads()} threads"
    table = [(r["subject"], r["against"], str(r["length"]), *measured(r)) for r in ratios]
    heads = ("", "against", "T", "seconds", "of its time", "times as fast", "")
    print_table(heads, table, title=f"Forward and backward: {shape}")
    if peaks:
        table = [
            (p["subject"], str(p["length"]), f"{p['bytes'] / 2**20:.0f}", f"{p['growth']:.2f}", verdict(p))
            for p in peaks
        ]
        print_table(("", "T", "MB", "a token, to the first", ""), table, title="Peak memory above the inputs")


@click.command(help=__doc__)
@click.option("--length", type=int, help="Tokens of the timed calls, in place of each line's own.")
@click.option("--rounds", default=5, show_default=True, help="Rounds that count.")
@click.option("--memory/--no-memory", "with_peaks", default=True, help="Measure peak memory too.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write what was measured here.")
@click.option("--peak-of", hidden=True, help="Print one subject's peak, and nothing else.")
def main(length: int | None, rounds: int, with_peaks: bool, path: Path | None, peak_of: str | None) -> None:
    if peak_of:
        print(measured_peak(SUBJECTS[peak_of], length or LENGTHS[0]))
        return
    ratios, peaks = ratio_rows(length, rounds), peak_rows() if with_peaks else []
    peak_ratios = peak_ratio_rows() if with_peaks else []
    show(ratios, peaks)
    show_peak_ratios(peak_ratios)
    if path:
        text = json.dumps({"ratios": ratios, "peaks": peaks, "peak_ratios": peak_ratios}, indent=2)
        path.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
