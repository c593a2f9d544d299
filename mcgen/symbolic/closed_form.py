"""The closed form of a recurrence inside a chunk (SEMANTICS 6), as mathematics.

Tokens of a chunk count from 1, and s_0 is a slot before its first token. With the writes G^w_j of its tokens,

    M_t = sum over slots s of R[t, s] s_0 + sum over writes w and tokens 1 <= j <= t of C_w[t, j] G^w_j.

Each slot keeps a share a of itself, takes in others and is written to,

    s_i = a_i s_{i-1} + sum over links of rate_i source_{i-lag} + sum over writes of b_i G_i,      lag 0 or 1,

so R and C are sums over the paths from the slot that is read down to the one that holds or takes the write: over the
tokens i_1 >= i_2 >= ... at which each link is passed, of the product of the rates there and the shares kept in between.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import sympy

from mcgen.symbolic.recurrence import MEMORY, GradientWrite, LinearForm, PreviousSlot, Recurrence, Write
from mcgen.symbolic.text import as_factor, text

ROW, COLUMN, BETWEEN = (sympy.Symbol(name, integer=True) for name in ("t", "j", "m"))
SUMS, PRODUCTS = ("i",), ("m", "n")
"""What indices of sums and of products are called in text; further ones are numbered."""
MAX_PATHS = 64
"""The most paths that are written out."""
MAX_OPERATIONS = 60


@dataclass(frozen=True)
class Link:
    """A slot takes in `rate` times `source` as it stands after this token (lag 0) or after the last one (lag 1)."""

    source: str
    rate: sympy.Expr
    lag: int


@dataclass(frozen=True)
class Line:
    """s_i = kept s_{i-1} + links + writes."""

    kept: sympy.Expr
    links: tuple[Link, ...]
    writes: Mapping[Write | GradientWrite, sympy.Expr]


@dataclass(frozen=True)
class Run:
    """The product of `kept` over the tokens m with after < m <= upto."""

    kept: sympy.Expr
    after: sympy.Expr
    upto: sympy.Expr


@dataclass(frozen=True)
class Rate:
    """A coefficient at token `at`."""

    value: sympy.Expr
    at: sympy.Expr


@dataclass(frozen=True)
class Index:
    """A summation index with its bounds, both inclusive."""

    symbol: sympy.Symbol
    lower: sympy.Expr
    upper: sympy.Expr


@dataclass(frozen=True)
class Term:
    """One path: the sum over `indices`, outermost first, of the product of `factors`; 0 unless t - j >= reach.

    `exact` says that it is 0 also where t - j > reach.
    """

    factors: tuple[Run | Rate, ...]
    indices: tuple[Index, ...]
    origin: sympy.Expr
    reach: int
    exact: bool = False

    def expression(self, varying: Collection[str] | None = None) -> sympy.Expr:
        """The term in SymPy, a gate g at token i as g[i]; `varying` are the gates that differ by token, all if None."""
        value = sympy.Mul(*(_value(factor, varying) for factor in self.factors))
        for index in reversed(self.indices):
            value = sympy.Sum(value, (index.symbol, index.lower, index.upper))
        if self.exact:
            return value * sympy.KroneckerDelta(ROW, self.origin + self.reach)
        certain = self.reach == 0 or (self.origin == 0 and self.reach == 1)
        return value if certain else sympy.Piecewise((value, sympy.Ge(ROW, self.origin + self.reach)), (0, True))

    def text(self, varying: Collection[str], between: Iterator[str]) -> str:
        """The term in a line of text, with its sign; `between` are names for the indices of its products."""
        number, shown = sympy.S.One, []
        for factor in self.factors:
            if isinstance(factor, Rate):
                share, rest = factor.value.as_coeff_Mul()
                number *= share
                shown += [as_factor(_subscripted(rest, varying, factor.at))] if rest != 1 else []
            else:
                shown.append(_run_text(factor, varying, between))
        if abs(number) != 1 or not shown:
            shown.insert(0, text(abs(number)))
        sign = "-" if number < 0 else ""
        return f"{sign}{self._sum_text()}{' · '.join(shown)}{self._condition_text()}"

    def _sum_text(self) -> str:
        """`sum_{j<=i_2<i_1<=t} `: the indices innermost first, each no nearer the next than its bound allows."""
        if not self.indices:
            return ""
        inner = [self.indices[-1].lower, *(index.symbol - index.upper for index in reversed(self.indices))]
        names = [str(self.origin), *(str(index.symbol) for index in reversed(self.indices)), str(ROW)]
        gaps = [inner[0] - self.origin]
        for index, outer in zip(reversed(self.indices), names[2:], strict=True):
            gaps.append(sympy.Symbol(outer, integer=True) - index.upper)
        chain = names[0]
        for gap, name in zip(gaps, names[1:], strict=True):
            chain += f"{f'+{gap - 1}' if gap > 1 else ''}{'<' if gap else '<='}{name}"
        chain = chain.removeprefix("0+")
        return f"sum_{{{chain}}} "

    def _condition_text(self) -> str:
        if self.exact:
            return f" where t = {self.origin + self.reach}"
        if self.indices or self.reach == 0 or (self.origin == 0 and self.reach == 1):
            return ""
        return f" where t >= {self.origin + self.reach}"


@dataclass(frozen=True)
class Entry:
    """R[t, s] for a slot s, or C_w[t, j] for a write w: a sum of terms. `paths` counts them, written out or not."""

    of: str | Write | GradientWrite
    terms: tuple[Term, ...]
    paths: int

    def expression(self, varying: Collection[str] | None = None) -> sympy.Expr:
        """The entry in SymPy.

        Raises:
            ValueError: there are too many paths to write out.
        """
        if self.paths > len(self.terms):
            raise ValueError(f"a sum over {self.paths} paths")
        return sympy.Add(*(term.expression(varying) for term in self.terms))

    def text(self, varying: Collection[str]) -> str:
        """The entry in a line of text, in which no two indices share a name."""
        if self.paths > len(self.terms):
            return f"a sum over {self.paths} paths"
        products, shown = _fresh(PRODUCTS), ""
        for term in self.terms:
            piece = term.text(varying, products)
            joint = " - " if piece.startswith("-") else " + "
            shown += joint + piece.removeprefix("-") if shown else piece
        return shown or "0"


@dataclass(frozen=True)
class ClosedForm:
    """Row R and matrices C of one slot."""

    slot: str
    start: tuple[Entry, ...]
    writes: tuple[Entry, ...]


def closed_form(recurrence: Recurrence, slot: str = MEMORY) -> ClosedForm:
    """The closed form of a slot; entries that are 0 are left out."""
    lines = cascade(recurrence)
    start = [_entry(lines, slot, source) for source in recurrence.slots]
    writes = [_entry(lines, slot, write) for write in recurrence.writes]
    return ClosedForm(slot, tuple(e for e in start if e.paths), tuple(e for e in writes if e.paths))


def cascade(recurrence: Recurrence) -> dict[str, Line]:
    """The slots as a cascade: where a line takes in a slot as it stands after the same token, that is seen again.

    A recurrence holds every slot over last token's values alone, M = alpha M + beta S - eta G for S = beta S - eta G;
    M = alpha M + S, which has the same solution, has one path where that has two.
    """
    lines: dict[str, Line] = {}
    for slot in recurrence.slots:
        form, links = dict(recurrence.forms[slot]), []
        for source in reversed(lines):
            rate = _current_rate(form, recurrence.forms[source], slot, source)
            if rate is not None:
                form = _without(form, recurrence.forms[source], rate)
                links.append(Link(source, rate, 0))
        links += [Link(a.name, c, 1) for a, c in form.items() if isinstance(a, PreviousSlot) and a.name != slot]
        kept = form.get(PreviousSlot(slot), sympy.S.Zero)
        writes = {atom: rate for atom, rate in form.items() if not isinstance(atom, PreviousSlot)}
        lines[slot] = Line(kept, tuple(links), writes)
    return lines


def _current_rate(form: LinearForm, source_form: LinearForm, slot: str, source: str) -> sympy.Expr | None:
    """The rate at which a form takes in a source's new value, where saying so makes the form shorter."""
    old = form.get(PreviousSlot(source))
    kept = source_form.get(PreviousSlot(source))
    if old is None or kept is None:
        return None
    rate = old / kept
    if sympy.fraction(rate)[1].free_symbols:
        return None
    own = PreviousSlot(slot)
    shorter = len(_without(form, source_form, rate).keys() - {own}) + 1 < len(form.keys() - {own})
    return rate if shorter else None


def _without(form: LinearForm, source_form: LinearForm, rate: sympy.Expr) -> dict:
    atoms = dict.fromkeys([*form, *source_form])
    rest = {
        a: _short(form.get(a, sympy.S.Zero) - rate * source_form[a]) if a in source_form else form[a] for a in atoms
    }
    return {atom: value for atom, value in rest.items() if value != 0}


def _short(difference: sympy.Expr) -> sympy.Expr:
    """The difference multiplied out, to see whether it is 0, where that cannot become long."""
    powers = [power.exp for power in difference.atoms(sympy.Pow) if power.exp.is_number]
    moderate = sympy.count_ops(difference) < MAX_OPERATIONS and all(abs(exponent) <= 4 for exponent in powers)
    return sympy.expand(difference) if moderate else difference


def _entry(lines: Mapping[str, Line], slot: str, of: str | Write | GradientWrite) -> Entry:
    counts = _counts(lines, of)
    if counts[slot] > MAX_PATHS:
        return Entry(of, (), counts[slot])
    paths = _paths(lines, counts, slot, of)
    names = _fresh(SUMS)
    terms = [term for path in paths if (term := _term(lines, slot, path, of, names)) is not None]
    return Entry(of, tuple(terms), len(terms))


def _counts(lines: Mapping[str, Line], of: str | Write | GradientWrite) -> dict[str, int]:
    """The number of paths from each slot; `lines` lists the slots that others take in before those."""
    counts: dict[str, int] = {}
    for name, line in lines.items():
        counts[name] = _ends(name, line, of) + sum(counts[link.source] for link in line.links)
    return counts


def _ends(slot: str, line: Line, of: str | Write | GradientWrite) -> bool:
    return of == slot if isinstance(of, str) else of in line.writes


def _paths(
    lines: Mapping[str, Line], counts: Mapping[str, int], slot: str, of: str | Write | GradientWrite
) -> Iterator[tuple[Link, ...]]:
    """The chains of links from a slot down to one that is, or takes, what is asked for."""
    if _ends(slot, lines[slot], of):
        yield ()
    for link in lines[slot].links:
        for rest in _paths(lines, counts, link.source, of) if counts[link.source] else ():
            yield (link, *rest)


def _term(
    lines: Mapping[str, Line],
    slot: str,
    path: tuple[Link, ...],
    of: str | Write | GradientWrite,
    names: Iterator[str],
) -> Term | None:
    """The term of one path, its indices by the next names; None where it is 0, for a slot that keeps nothing of itself
    hands on no start."""
    slots, lags = [slot, *(link.source for link in path)], [0, *(link.lag for link in path)]
    kept = [lines[name].kept for name in slots]
    starts = isinstance(of, str)
    origin = sympy.S.Zero if starts else COLUMN
    # Before its first token a chunk has no tokens to pass a link at, whatever the link's lag.
    reach = 1 + sum(lags[:-1]) if starts else sum(lags)
    if starts and kept[-1] == 0 and (lags[-1] == 0 or not path):
        return None
    points = _points(kept, lags, origin)
    passed = [index for index in _symbols(len(path)) if any(index in point.free_symbols for point in points)]
    called = {index: sympy.Symbol(next(names), integer=True) for index in passed}
    points, free = [point.xreplace(called) for point in points], called.values()
    indices = [_index(index, points, lags, origin, starts) for index in free]
    factors: list[Run | Rate] = []
    for depth, share in enumerate(kept):
        factors += [Rate(path[depth - 1].rate, points[depth])] if depth else []
        factors += [Run(share, points[depth + 1], points[depth] - lags[depth])] if share not in (0, 1) else []
    if not starts:
        factors.append(Rate(lines[slots[-1]].writes[of], COLUMN))
    exact = all(share == 0 for share in kept)
    return Term(tuple(factors), tuple(indices), origin, reach, exact)


def _symbols(count: int) -> list[sympy.Symbol]:
    return [sympy.Symbol(f"i_{n}", integer=True) for n in range(1, count + 1)]


def _points(kept: list[sympy.Expr], lags: list[int], origin: sympy.Expr) -> list[sympy.Expr]:
    """t, the token at which each link is passed, and the origin; a slot that keeps nothing hands on at once."""
    points = [ROW, *_symbols(len(kept) - 1), origin]
    for depth, share in enumerate(kept):
        if share == 0 and depth < len(kept) - 1:
            points[depth + 1] = points[depth] - lags[depth]
    last = points[len(kept) - 1]
    if kept[-1] == 0 and last.free_symbols - {ROW}:
        (symbol,) = last.free_symbols
        found = origin + lags[-1] - (last - symbol)
        points = [point.subs(symbol, found) for point in points]
    return points


def _index(symbol: sympy.Symbol, points: list[sympy.Expr], lags: list[int], origin: sympy.Expr, starts: bool) -> Index:
    """The bounds of an index: tokens below must fit between it and the origin, it must fit below those above."""
    depth = points.index(symbol)
    below = 1 + sum(lags[depth:-1]) if starts else sum(lags[depth:])
    above = max(d for d in range(depth) if points[d] == ROW or points[d].is_Symbol)
    return Index(symbol, origin + below, points[above] - sum(lags[above:depth]))


def _value(factor: Run | Rate, varying: Collection[str] | None) -> sympy.Expr:
    if isinstance(factor, Rate):
        return _indexed(factor.value, varying, factor.at)
    return sympy.Product(_indexed(factor.kept, varying, BETWEEN), (BETWEEN, factor.after + 1, factor.upto))


def _indexed(expression: sympy.Expr, varying: Collection[str] | None, at: sympy.Expr) -> sympy.Expr:
    gates = [gate for gate in expression.free_symbols if varying is None or gate.name in varying]
    return expression.xreplace({gate: sympy.IndexedBase(gate.name)[at] for gate in gates})


def _subscripted(expression: sympy.Expr, varying: Collection[str], at: sympy.Expr) -> sympy.Expr:
    index = str(at) if at.is_Symbol or at.is_Integer else f"{{{at}}}".replace(" ", "")
    gates = [gate for gate in expression.free_symbols if gate.name in varying]
    return expression.xreplace({gate: sympy.Symbol(f"{gate.name}_{index}", real=True) for gate in gates})


def _fresh(names: Sequence[str]) -> Iterator[str]:
    """Names for indices: those given, then the same with numbers."""
    yield from names
    yield from (f"{name}_{number}" for number in count(1) for name in names)


def _run_text(run: Run, varying: Collection[str], between: Iterator[str]) -> str:
    if not any(gate.name in varying for gate in run.kept.free_symbols):
        length = f"{run.upto}-{run.after}".replace(" ", "") if run.after != 0 else str(run.upto)
        return f"{as_factor(run.kept)}^{length if run.upto - run.after == ROW else f'({length})'}"
    last = run.upto + 1 if (run.upto + 1).is_Symbol else run.upto
    relation = "<" if last != run.upto else "<="
    index = sympy.Symbol(next(between), integer=True)
    bounds = f"{run.after}<{index}{relation}{last}".replace(" ", "")
    return f"prod_{{{bounds}}} {as_factor(_subscripted(run.kept, varying, index))}"
