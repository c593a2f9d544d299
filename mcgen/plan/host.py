"""What a pass over the operator does, as data: buffers, launches, the tensor statements between them, and loops.

One value says it for every reader: it is printed as the host code of a generated file, told to users, and expanded into
the launches that happen at given sizes (`mcgen.plan.expansion`), by which traffic is counted and kernels are compiled.

Numbers and statements in it are Python as the file has them. There `x` holds the sizes, tables and tensors of a pass by
name, and a kernel takes from it what its arguments are called; so adding a buffer or an argument is saying its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

FORWARD = "y, and what the backward pass needs of it."
BACKWARD = "The gradients of all inputs, from that of y and what the forward pass saved."
Size = str | int
"""A length of an axis: a number, or the name of one in `x`."""
INTEGER = "int32"
"""The type of tables, and of choices."""


@dataclass(frozen=True)
class Buffer:
    """A tensor of a pass. `type` is a float type, `int32`, or the name of an input whose type it shares."""

    name: str
    shape: tuple[Size, ...]
    type: str = "float32"


@dataclass(frozen=True)
class Operand:
    """A buffer that a kernel is handed, and whether it reads and writes it."""

    name: str
    reads: bool
    writes: bool


@dataclass(frozen=True)
class Kernel:
    """What a kernel is handed, in the order of its arguments, and how its work falls to programs.

    operands   tensors; tables and sizes follow
    going_on   tensors behind these that only a pass has that goes on from a state; None in one of a whole sequence
    takes      what a program takes of an axis of its operands, where that is not all: of tokens, a block of them
    axis       the one that it takes in tiles of its configuration's columns; none where it takes all whole
    rows       how many rows it must take at once, where a gradient chunk is one step
    whole      whether it takes all hidden units at once
    ahead      whether its loops are plain products, so that a pipeline of several stages loads ahead of them
    """

    name: str
    operands: tuple[Operand, ...]
    tables: tuple[str, ...]
    numbers: tuple[str, ...]
    constants: tuple[str, ...]
    takes: Mapping[str, str]
    axis: str = ""
    rows: int | None = None
    whole: bool = False
    going_on: tuple[str, ...] = ()
    ahead: bool = False

    @property
    def tensors(self) -> list[str]:
        return [operand.name for operand in self.operands]

    @property
    def arguments(self) -> list[str]:
        """The names of all arguments, in order."""
        return [*self.tensors, *self.going_on, *self.tables, *self.numbers, *self.constants]


def operands(names: Iterable[str], writes: Iterable[str], both: Iterable[str] = ()) -> tuple[Operand, ...]:
    """Operands that are read, written or both, in the order of their names, each once."""
    written, changed = set(writes), set(both)
    return tuple(
        Operand(n, n not in written or n in changed, n in written or n in changed) for n in dict.fromkeys(names)
    )


@dataclass(frozen=True)
class Make:
    """Buffers that begin here, with nothing in them."""

    buffers: tuple[Buffer, ...]


@dataclass(frozen=True)
class Compute:
    """A tensor statement: a line, the buffers that it makes, those that it reads and those that it changes."""

    line: str
    makes: tuple[Buffer, ...] = ()
    reads: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Let:
    """Numbers and tables by name."""

    targets: str
    value: str


@dataclass(frozen=True)
class Part:
    """A buffer of which every tile has a part of its own in a launch: `count` parts along `axis`, then added up.

    Where a test does not hold, nothing is written to it, and there is nothing to add up.
    """

    name: str
    count: str
    axis: int
    test: str = ""


@dataclass(frozen=True)
class Launch:
    """A kernel for a number of units, and for each of several tiles where its grid has these.

    room    numbers that a program has as scratch; none where it has no scratch at all
    parts   buffers that are added up afterwards
    modes   constants of this launch, of those that a kernel has several values for
    apart   whether every unit has a program of its own, where programs take unit after unit
    """

    kernel: Kernel
    units: str
    tiles: str = ""
    room: str | None = None
    parts: tuple[Part, ...] = ()
    modes: Mapping[str, str] = field(default_factory=dict)
    apart: bool = False


@dataclass(frozen=True)
class When:
    """Statements for where a test of numbers holds, and for where it does not."""

    test: str
    then: tuple[Statement, ...]
    otherwise: tuple[Statement, ...] = ()


@dataclass(frozen=True)
class Each:
    """Statements for each of several things."""

    targets: str
    of: str
    body: tuple[Statement, ...]


@dataclass(frozen=True)
class Routine:
    """Statements that a pass runs at several places, with a name and arguments."""

    name: str
    doc: str
    body: tuple[Statement, ...]
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """A routine, with values for its parameters."""

    routine: Routine
    arguments: tuple[str, ...] = ()


Statement = Make | Compute | Let | Launch | When | Each | Run


@dataclass(frozen=True)
class Pass:
    """One way through the operator: what it is given, its statements, and what it gives."""

    name: str
    doc: str
    given: tuple[Buffer, ...]
    body: tuple[Statement, ...]
    result: str


def statements(body: Iterable[Statement], run: set[str] | None = None) -> Iterator[Statement]:
    """All statements, in order; a routine's where it is run first, those of loops and of both ways of a test once.

    `run` are the names of routines that have been met.
    """
    run = set() if run is None else run
    for statement in body:
        yield statement
        match statement:
            case When(_, then, otherwise):
                yield from statements([*then, *otherwise], run)
            case Each(_, _, inner):
                yield from statements(inner, run)
            case Run(routine) if routine.name not in run:
                run.add(routine.name)
                yield from statements(routine.body, run)


def routines(body: Iterable[Statement]) -> list[Routine]:
    """The routines that statements run, each once, those it runs itself before it."""
    found: dict[str, Routine] = {}
    for statement in statements(body):
        if isinstance(statement, Run):
            found |= {one.name: one for one in [*routines(statement.routine.body), statement.routine]}
    return list(found.values())


def launches(body: Iterable[Statement]) -> list[Launch]:
    return [statement for statement in statements(body) if isinstance(statement, Launch)]


def buffers(one: Pass) -> list[Buffer]:
    """What a pass is given, and the buffers that it makes."""
    found = list(one.given)
    for statement in statements(one.body):
        match statement:
            case Make(made) | Compute(_, made):
                found += made
    return list({buffer.name: buffer for buffer in found}.values())
