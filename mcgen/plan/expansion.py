"""The launches that a pass makes at given sizes on a given GPU, in order, with shapes and bytes, by reading it.

Loops and tests of a pass are of numbers alone, so going through it needs neither tensors nor a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from types import SimpleNamespace
from typing import Any

from mcgen.plan import tokens
from mcgen.plan.arithmetic import value
from mcgen.plan.configurations import HIDDEN, tile
from mcgen.plan.host import Buffer, Compute, Each, Kernel, Launch, Let, Make, Pass, Run, Statement, When
from mcgen.plan.schedule import Schedule

BYTES = {"float64": 8, "float32": 4, "int32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Machine:
    """What the host code asks of a GPU: how many programs go on at once where they take unit after unit, and chains
    where layers go one by one; and the configurations of kernels (BT, columns, warps, stages)."""

    programs: int
    chains: int
    configurations: Mapping[str, tuple[int, int, int, int]]
    default: tuple[int, int, int, int]

    def configuration(self, kernel: str) -> tuple[int, int, int, int]:
        return self.configurations.get(kernel, self.default)


def interpreted(schedule: Schedule, element: str) -> Machine:
    """What stands for a GPU where kernels are interpreted."""
    return Machine(4, 4, {}, schedule.defaults["cpu"][element].numbers)


@dataclass(frozen=True)
class Tensor:
    """A buffer with numbers for its sizes."""

    shape: tuple[int, ...]
    type: str

    @property
    def bytes(self) -> int:
        return prod(self.shape) * BYTES[self.type]


@dataclass(frozen=True)
class Problem:
    """The sizes of a problem, and the types of its inputs."""

    batch: int
    tokens: int
    heads: int
    types: Mapping[str, str]

    @property
    def sizes(self) -> dict[str, int]:
        return {"B": self.batch, "T": self.tokens, "H": self.heads, "BH": self.batch * self.heads}

    def tensor(self, buffer: Buffer, sizes: Mapping[str, int]) -> Tensor:
        """A buffer in numbers; `sizes` has those of names in its shape."""
        shape = tuple(value(str(size), {**self.sizes, **sizes}) for size in buffer.shape)
        return Tensor(shape, self.types.get(buffer.type, buffer.type))


@dataclass(frozen=True)
class Launched:
    """A launch with numbers: programs along each axis of the grid, tensors by argument, sizes and constants by name."""

    kernel: str
    grid: tuple[int, ...]
    tensors: Mapping[str, Tensor]
    constants: Mapping[str, Any]
    warps: int
    stages: int

    @property
    def bytes(self) -> int:
        """The bytes of the tensors handed to it, each counted once."""
        return sum(tensor.bytes for tensor in self.tensors.values())


def expanded(schedule: Schedule, one: Pass, problem: Problem, machine: Machine) -> list[Launched]:
    """The launches of a pass, in order."""
    expansion = _Expansion(schedule, problem, machine)
    for buffer in one.given:
        expansion.make(buffer)
    expansion.go(one.body, {})
    return expansion.launched


class _Expansion:
    """Goes through the statements of a pass with numbers in `x` and shapes in `buffers`."""

    def __init__(self, schedule: Schedule, problem: Problem, machine: Machine) -> None:
        self.schedule, self.problem, self.machine = schedule, problem, machine
        self.launched: list[Launched] = []
        self.buffers: dict[str, Tensor] = {}
        self.x = SimpleNamespace(**problem.sizes, device=None, place=(), begun=False)
        self.names = {**schedule.constants, **self._functions(), "x": self.x}
        for name, rows in schedule.tables(problem.tokens).items():
            self._named(f"x.{name}", rows, {})
            self._named(f"x.n_{name}", len(rows), {})

    def _functions(self) -> dict[str, Callable[..., Any]]:
        """What statements call, as the generated file has it under the same names."""
        schedule, T = self.schedule, self.problem.tokens
        return {
            "reversed": reversed,
            "_cdiv": lambda a, b: -(-a // b),
            "_rows_at_once": lambda kernel, x: self.rows(kernel),
            "_columns": lambda kernel, x: self.columns(kernel, schedule.kernels[kernel].axis),
            "_n_tiles": lambda kernel, x: self.tiles(kernel),
            "_row_tiles": lambda kernel, x: -(-self.longest // self.rows(kernel)),
            "_bands_of": lambda x: schedule.bands(T),
            "_most_rows": lambda bands: max(last - first for *_, first, last in bands),
            "min": min,
            "max": max,
            "_steps": lambda kernel, x: schedule.steps(T, self.rows(kernel)),
            "_in_flight": lambda x, first, last: tokens.spans_of(schedule.spans(T), x.BH, first, last),
            "_flights": tokens.flights,
            "_groups": tokens.groups,
            "_most_chains": lambda device: self.machine.chains,
        }

    @property
    def longest(self) -> int:
        """Tokens of the longest block."""
        return max(end - start for start, end, *_ in self.x.blocks)

    # -- configurations -----------------------------------------------------------------------------------------------

    def rows(self, kernel: str) -> int:
        """Tokens that a kernel takes at once."""
        rows, least = self.machine.configuration(kernel)[0], self.schedule.least_rows
        return max(rows, least) if self.schedule.flies else max(least, min(rows, tile(self.longest)))

    def columns(self, kernel: str, axis: str) -> int:
        """The tile of an axis that a kernel takes at once."""
        size, one = self.schedule.constants[size_of(axis)], self.schedule.kernels[kernel]
        if axis != one.axis or one.whole:
            return tile(size)
        columns = self.machine.configuration(kernel)[1]
        return columns if axis == HIDDEN else min(columns, tile(size))

    def tiles(self, kernel: str) -> int:
        """How many tiles a kernel takes its axis in."""
        axis = self.schedule.kernels[kernel].axis
        return -(-self.schedule.constants[size_of(axis)] // self.columns(kernel, axis)) if axis else 1

    # -- statements ---------------------------------------------------------------------------------------------------

    def go(self, body: Iterable[Statement], scope: dict[str, Any]) -> None:
        for statement in body:
            match statement:
                case Make(buffers) | Compute(_, buffers):
                    for buffer in buffers:
                        self.make(buffer)
                case Let(targets, value):
                    self._named(targets, self.value(value, scope), scope)
                case When(test, then, otherwise):
                    self.go(then if self.value(test, scope) else otherwise, scope)
                case Each(targets, of, inner):
                    for item in self.value(of, scope):
                        self._named(targets, item, scope)
                        self.go(inner, scope)
                case Run(routine, arguments):
                    given = [self.value(argument.rpartition("=")[2], scope) for argument in arguments]
                    self.go(routine.body, dict(zip(routine.parameters, given, strict=True)))
                case Launch():
                    self._launch(statement, scope)

    def value(self, text: str, scope: Mapping[str, Any]) -> Any:
        return value(text, {**self.names, **scope})

    def _named(self, targets: str, value: Any, scope: dict[str, Any]) -> None:
        names = targets.split(", ")
        for name, one in zip(names, value if len(names) > 1 else [value], strict=True):
            where, _, attribute = name.rpartition(".")
            if where and isinstance(one, list):
                self.buffers[attribute] = Tensor((len(one), len(one[0])), "int32")
            if where:
                setattr(self.x, attribute, one)
            else:
                scope[name] = one

    def make(self, buffer: Buffer) -> None:
        self.buffers[buffer.name] = self.problem.tensor(buffer, {**self.schedule.constants, **vars(self.x)})

    # -- launches -----------------------------------------------------------------------------------------------------

    def _launch(self, launch: Launch, scope: Mapping[str, Any]) -> None:
        kernel, units = launch.kernel, self.value(launch.units, scope)
        programs = min(units, self.machine.programs) if self.schedule.flies and not launch.apart else units
        grid = (programs, *([self.value(launch.tiles, scope)] if launch.tiles else []))
        tensors = {name: self.buffers[name] for name in [*kernel.tensors, *kernel.tables] if name in self.buffers}
        tensors |= self._parts(launch, scope)
        if launch.room is not None:
            tensors["work"] = Tensor((programs * self.value(launch.room, scope),), "float32")
        numbers = {name: getattr(self.x, name) for name in kernel.numbers if hasattr(self.x, name)}
        constants = {**numbers, **self.constants(kernel), **{n: self.value(v, scope) for n, v in launch.modes.items()}}
        ordered = {name: tensors[name] for name in [*kernel.tensors, *kernel.tables]}
        _, _, warps, stages = self.machine.configuration(kernel.name)
        self.launched.append(Launched(kernel.name, grid, ordered, constants, warps, stages))

    def _parts(self, launch: Launch, scope: Mapping[str, Any]) -> dict[str, Tensor]:
        """Of buffers that tiles have parts of, all parts."""
        found = {}
        for part in launch.parts:
            count, whole = self.value(part.count, scope), self.buffers[part.name]
            if count > 1 and (not part.test or self.value(part.test, scope)):
                shape = (*whole.shape[: part.axis], count, *whole.shape[part.axis :])
                found[part.name] = Tensor(shape, whole.type)
        return found

    def constants(self, kernel: Kernel) -> dict[str, int]:
        """The constants of a kernel that are numbers, those of its configuration among them."""
        rows, chunk = self.rows(kernel.name), self.schedule.constants.get("CHUNK", 1)
        axes = {"BK": "k", "BV": "v", "BF": HIDDEN}
        tiles = {name: self.columns(kernel.name, axis) for name, axis in axes.items() if name in kernel.constants}
        steps = -(-chunk // rows)
        found = {**self.schedule.constants, "BT": rows, **tiles, "STEPS": steps, "STEP": -(-chunk // steps)}
        return {name: found[name] for name in kernel.constants if name in found}


def size_of(axis: str) -> str:
    """What constants call the length of an axis."""
    return axis.upper()
