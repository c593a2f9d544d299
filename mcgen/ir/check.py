"""The check of tile programs between passes, against the table in `mcgen.ir.invariants`.

It is on where the environment variable MCGEN_CHECK is set, and where MCGEN_DUMP has stages dumped. `rewritten` then has
every pass checked, and `simplify` every use of a rule, so that an error names what has been done before it was found.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mcgen import dump
from mcgen.errors import InternalError
from mcgen.ir.invariants import AFTER, EVERY_NODE, HOISTED, NODES, ORDER, PASS, PROGRAM, REPLACED, Row, Whole
from mcgen.ir.program import Node, Program, line, topological

VARIABLE = "MCGEN_CHECK"
STAGE = "passes"


def is_on() -> bool:
    """Whether programs are checked."""
    return bool(os.environ.get(VARIABLE) or os.environ.get(dump.VARIABLE))


@dataclass(frozen=True)
class Check:
    """The check of the values of one program, each once: what the program is called, and its outputs if there are any.

    Methods take when they check, as the beginning of a sentence, and raise InternalError where a row does not hold.
    """

    program: str
    outputs: Sequence[Node] = ()
    sound: set[Node] = field(default_factory=set, repr=False)

    def value(self, when: str, root: Node) -> None:
        """A value, and what it is made of as far as that has not been checked before."""
        for node in topological([root], done=self.sound):
            self.rows(when, (*EVERY_NODE, *NODES[type(node)]), node)
            self.sound.add(node)

    def replaced(self, when: str, old: Node, new: Node) -> None:
        """A value, and what has been put in its place."""
        self.value(when, new)
        if not REPLACED.holds(old, new):
            raise self.fault(when, REPLACED.says, new, old)

    def rows(self, when: str, rows: Iterable[Row], node: Node) -> None:
        for row in rows:
            if not row.holds(node):
                raise self.fault(when, row.says, node)

    def whole(self, when: str, rows: Iterable[Whole], *of: object) -> None:
        for row in rows:
            for node in row.broken(*of):
                raise self.fault(when, row.says, node)

    def fault(self, when: str, says: str, node: Node, old: Node | None = None) -> InternalError:
        """The error that a node, which may stand for an old one, is against the table."""
        found = topological([*self.outputs, node, *([old] if old else [])])
        name = {one: f"%{i}" for i, one in enumerate(found)}
        text = f"{line(node, name)} for {line(old, name)}" if old else line(node, name)
        operands = [f"  {line(operand, name)}" for operand in dict.fromkeys(node.operands)]
        return InternalError("\n".join([f"{when}, in {self.program}: {says}: {text}", *operands]), STAGE)


def passed(
    by: Sequence[str], before: Program, after: Program, new: Mapping[Node, Node], given: Collection[str] = ()
) -> None:
    """Checks what a pass was given and what it made of that.

    `by` is what the pass is called, and the rules that it goes by; `new` is what stands for what, and `given` are the
    inputs that the pass puts in.

    Raises:
        InternalError: the table does not hold.
    """
    _program(f"before {by[0]}", before)
    when, kept = f"after {by[0]}", after.nodes
    check = _program(when, after)
    made = set(kept)
    for old, node in new.items():
        if node in made:
            check.replaced(when, old, node)
    check.whole(when, PASS, before, after, given)
    for name in filter(AFTER.__contains__, by):
        for node in kept:
            check.rows(when if name == by[0] else f'{when} with "{name}"', [AFTER[name]], node)


def hoisted(carried: Collection[str], ahead: Program, rest: Program) -> None:
    """Checks the two parts of a program that has been taken apart, of which one runs ahead.

    Raises:
        InternalError: the table does not hold.
    """
    check = _program("after hoist", ahead)
    check.whole("after hoist", HOISTED, carried, ahead, rest)


def ordered(program: Program, order: Sequence[Node]) -> None:
    """Checks the order in which a program's values are to be computed.

    Raises:
        InternalError: the table does not hold.
    """
    Check(program.name, [*program.outputs.values()]).whole("after scheduled", ORDER, program, order)


def _program(when: str, program: Program) -> Check:
    check = Check(program.name, [*program.outputs.values()])
    for node in check.outputs:
        check.value(when, node)
    check.whole(when, PROGRAM, program)
    return check
