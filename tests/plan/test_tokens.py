"""Where tokens lie: every token in one piece, pieces inside segments and runs, sequences one behind the other."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcgen.plan import tokens

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=4)
SEGMENTS = st.one_of(
    st.just(tokens.logarithmic_segments), st.integers(1, 70).map(lambda n: partial(tokens.constant_segments, size=n))
)


def test_segments() -> None:
    assert tokens.constant_segments(7, 3) == [(0, 3), (3, 6), (6, 7)]
    assert tokens.logarithmic_segments(13) == [(0, 8), (8, 12), (12, 13)]
    assert tokens.sequences([4, 3], partial(tokens.constant_segments, size=2)) == [[(0, 2), (2, 4)], [(4, 6), (6, 7)]]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(LENGTHS, SEGMENTS, st.booleans(), st.integers(1, 40), st.one_of(st.none(), st.integers(1, 50)))
def test_pieces_cover_every_token_once(lengths: list, segments, chained: bool, size: int, chunk: int | None) -> None:
    own = tokens.sequences(lengths, segments)
    chains = tokens.chains(own, chained, size, chunk)
    assert len(chains) == (len(lengths) if chained else sum(map(len, own)))
    pieces = [piece for chain in chains for piece in chain]
    assert [t for start, end, *_ in pieces for t in range(start, end)] == list(range(sum(lengths)))
    borders = [border for some in own for border in some]
    for start, end, segment, begin, stop, first, fresh in pieces:
        assert borders[segment] == (begin, stop)
        assert begin <= start < end <= min(stop, start + size)
        assert fresh == ((start - begin) % (chunk or stop - begin) == 0)
        assert borders[first][0] in {some[0][0] for some in own}
    rows = tokens.chain_rows(chains)
    assert [last - begin for begin, last in rows] == [*map(len, chains)]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(LENGTHS, SEGMENTS, st.integers(1, 40))
def test_lags_reach_to_the_sequence_or_the_segment(lengths: list, segments, size: int) -> None:
    own = tokens.sequences(lengths, segments)
    starts = [some[0][0] for some in own]
    for chained in (True, False):
        for start, _, _, begin, _, _, border, _ in tokens.block_rows(tokens.chains(own, chained, size), chained):
            assert border == (max(one for one in starts if one <= start) if chained else begin)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(LENGTHS, SEGMENTS, st.booleans(), st.integers(1, 40))
def test_spans_are_the_chains_side_by_side(lengths: list, segments, chained: bool, size: int) -> None:
    chains = tokens.chains(tokens.sequences(lengths, segments), chained, size)
    spans = tokens.spans(chains)
    assert len(spans) == max(map(len, chains))
    for at, chain in enumerate(chains):
        found = [rows[at] for _, _, rows in spans if rows[at][0] < rows[at][1]]
        assert [row[:3] for row in found] == [piece[:3] for piece in chain]
        assert [row[3] for row in found] == [int(end == stop) for _, end, _, _, stop, *_ in chain]


@pytest.mark.parametrize(("n", "most"), [(10, 3), (3, 10), (1, 1)])
def test_flights_and_groups(n: int, most: int) -> None:
    flights = tokens.flights(n, most)
    assert [at for first, last in flights for at in range(first, last)] == list(range(n))
    assert max(last - first for first, last in flights) <= most
    groups = tokens.groups(list(range(n)), 1)
    assert [one for group in groups for one in group] == list(range(n))
    assert max(len(groups), *map(len, groups)) <= tokens.kept(n)


LAST = (4, 5, 16, 18)


@pytest.mark.parametrize(
    ("most", "runs"),
    [
        (8, [(0, 2, 0, 8), (2, 4, 8, 16), LAST]),
        (1, [(n, n + 1, 4 * n, min(4 * n + 4, 18)) for n in range(5)]),
    ],
)
def test_bands_are_runs_of_blocks(most: int, runs: list[tuple]) -> None:
    blocks = [(start, min(start + 4, 18)) for start in range(0, 18, 4)]
    assert tokens.bands(blocks, most) == runs
    assert tokens.bands(blocks, 18) == [(0, 5, 0, 18)]
