"""Where tokens lie: the segments of sequences, and the pieces of segments that kernels take one after another.

The one place where lengths become positions. A generated file has these functions as they stand here, with an
underscore before their names, and makes its tables of them; the plan's launches are counted by the same ones.

A sequence is a list of its segments, (begin, end) in the tokens of all sequences one behind the other. A *piece* is a
run of a segment's tokens that a kernel takes at once: a block, a step, a span. A *chain* is a list of pieces that
follow one another: those of a segment, or of a sequence where a segment goes on from the one before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

Segments = list[tuple[int, int]]
Row = tuple[int, ...]
Chains = list[list[Row]]
Steps = tuple[list[Row], list[Row], int]
Place = tuple[int, int, int, int]
WHOLE: Place = (0, 0, 0, 0)
"""The place of a whole sequence: what `going_on` takes besides chains."""


def constant_segments(T: int, size: int) -> Segments:
    """Borders (begin, end) of the segments of T tokens, `size` in each but the last."""
    return [(begin, min(begin + size, T)) for begin in range(0, T, size)]


def logarithmic_segments(T: int) -> Segments:
    """Borders (begin, end) of the segments of T tokens: the powers of two that T is the sum of, the largest first."""
    ends = list(itertools.accumulate(1 << bit for bit in reversed(range(T.bit_length())) if T >> bit & 1))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def sequences(lengths: Sequence[int], segments: Callable[[int], Segments]) -> list[Segments]:
    """The segments of each sequence, of these lengths, one behind the other."""
    starts = itertools.accumulate(lengths, initial=0)
    return [[(at + begin, at + end) for begin, end in segments(T)] for at, T in zip(starts, lengths, strict=False)]


def segment_rows(sequences: Sequence[Segments]) -> list[Row]:
    """A row a segment: start, end, the sequence's first segment, the sequence's end."""
    rows = []
    for segments in sequences:
        first = len(rows)
        rows += [(begin, end, first, segments[-1][1]) for begin, end in segments]
    return rows


def later_segments(rows: Sequence[Row], lead: int, offset: int, cached: int, summed: int) -> list[Row]:
    """Rows of segments that follow others, those of the `cached` ones in front: these end where the new tokens begin.

    What is cached of those is no sum over their tokens, so they have one.
    """
    last = max((end for *_, end in rows), default=0) + lead
    own = [(begin + lead - (0 if s else offset), end + lead, 0, last) for s, (begin, end, _, _) in enumerate(rows)]
    return [(lead - 1, lead, 0, last)] * cached + own if (lead, offset, cached) != (0, 0, 0) else list(rows)


def chains(sequences: Sequence[Segments], chained: bool, size: int, chunk: int | None = None) -> Chains:
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


def going_on(chains: Chains, lead: int, offset: int, cached: int, summed: int) -> Chains:
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


def chain_rows(chains: Chains) -> list[Row]:
    """A row a chain: its first piece, and the one after its last, of the pieces of all."""
    ends = list(itertools.accumulate(map(len, chains)))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def block_rows(chains: Chains, chained: bool, lead: int = 0) -> list[Row]:
    """A row a block: start, end, segment, its start, its end, the sequence's first segment, the border of lags, 0."""
    return [(*piece[:6], chain[0][0] - lead if chained else piece[3], 0) for chain in chains for piece in chain]


def step_rows(chains: Chains) -> list[Row]:
    """A row a step: start, end, segment, its start, its end, the sequence's first segment, whether a run begins, 0."""
    return [(*piece, 0) for chain in chains for piece in chain]


def tables(sequences: Sequence[Segments], chained: bool, size: int, place: Place) -> dict[str, list[Row]]:
    """The rows of blocks of at most `size` tokens, of their chains, and of segments."""
    own = going_on(chains(sequences, chained, size), *place)
    segments = later_segments(segment_rows(sequences), *place)
    return {"blocks": block_rows(own, chained, place[0]), "chains": chain_rows(own), "segments": segments}


def step_tables(sequences: Sequence[Segments], chained: bool, size: int, chunk: int, place: Place) -> Steps:
    """The rows of steps of at most `size` tokens and of their chains; of how many steps the states are kept at once."""
    own = going_on(chains(sequences, chained, size, chunk), *place)
    return step_rows(own), chain_rows(own), kept(max(map(len, own)))


def spans(chains: Chains) -> list[tuple[list[int], bool, list[Row]]]:
    """The chains' pieces side by side: tokens of each, whether a run begins with any, and a row each.

    A row is start, end, segment, whether the segment ends there; zeros where a chain has no more pieces.
    """
    found = []
    for pieces in itertools.zip_longest(*chains, fillvalue=(0,) * 7):
        rows = [(start, end, s, int(start < end == last)) for start, end, s, _, last, _, _ in pieces]
        found.append(([end - start for start, end, *_ in pieces], any(piece[6] for piece in pieces), rows))
    return found


def spans_of(spans: Sequence, heads: int, first: int, last: int) -> list[tuple]:
    """The spans of some chains of so many heads each, as long as one has any: tokens of the longest, and the rest."""
    some = slice(first // heads, (last - 1) // heads + 1)
    found = [(max(tokens[some]), begins, rows) for tokens, begins, rows in spans]
    return [span for span in found if span[0]]


def flights(n_chains: int, most: int) -> list[tuple[int, int]]:
    """The chains in flight at once, (first, last + 1), at most so many."""
    return [(first, min(first + most, n_chains)) for first in range(0, n_chains, most)]


def groups(pieces: Sequence, least: int) -> list[Sequence]:
    """Runs of pieces: about as many as each has pieces, `least` at least, so that few states are kept at once."""
    size = max(least, kept(len(pieces)))
    return [pieces[at : at + size] for at in range(0, len(pieces), size)]


def bands(blocks: Sequence[Row], most: int) -> list[Row]:
    """Runs of blocks of at most so many tokens, or of one: the first block, the one after the last, start, end.

    Rows in front of the first block are of its run.
    """
    found = [(0, 1, 0, blocks[0][1])]
    for n, (start, end, *_) in enumerate(blocks[1:], 1):
        first, _, begin, _ = found[-1]
        if end - begin <= most:
            found[-1] = (first, n + 1, begin, end)
        else:
            found.append((n, n + 1, start, end))
    return found


def kept(n: int) -> int:
    """How many of n states are kept, so that as many are made again at once: the root of n, rounded up."""
    return math.isqrt(n - 1) + 1
