"""What a compiler's output says of a kernel's registers and spills: ptxas logs, SASS and amdgcn listings, as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import networkx


@dataclass(frozen=True)
class Usage:
    """Registers a thread; bytes a thread spilled and reloaded; reloads that stand in a loop.

    `inner_spill_loads` are those of the reloads in loops that stand in one which holds no other loop: one over the
    tiles of a step.
    """

    registers: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    loop_spill_loads: int = 0
    inner_spill_loads: int = 0


@dataclass(frozen=True)
class Instruction:
    """One line of a listing: labels before it, where it may jump, and whether the next line may follow it."""

    text: str
    labels: tuple[str, ...]
    target: str | None
    falls_through: bool


def from_ptxas(log: str) -> Usage:
    """Registers and spilled bytes from the lines `ptxas -v` prints for a kernel. Raises ValueError where they miss."""
    registers = re.search(r"Used (\d+) registers", log)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if not registers or not spills:
        raise ValueError(f"ptxas -v printed no resource usage:\n{log}")
    return Usage(int(registers[1]), int(spills[1]), int(spills[2]))


def from_amdgcn(listing: str) -> Usage:
    """Registers (vector and accumulation together), spills and reloads in loops of an amdgcn listing."""
    lines = amdgcn_instructions(listing)
    stores, loads = (_amdgcn_bytes(lines, word) for word in ("store", "load"))
    in_loops, inner = count_in_loops(lines, _is_amdgcn_reload)
    return Usage(
        registers=_amdgcn_field(listing, "vgpr_count"),
        spill_stores=max(stores, 4 * _amdgcn_field(listing, "vgpr_spill_count")),
        spill_loads=loads,
        loop_spill_loads=in_loops,
        inner_spill_loads=inner,
    )


WAITING = re.compile(r"\b(SYNCS\.\S*TRYWAIT|BRA|NOP)\b")
"""Instructions of a loop that does nothing but wait."""


def sass_loop_loads(listing: str) -> tuple[int, int]:
    """How many loads from local memory (`LDL`) stand in a loop of a SASS listing, and in an innermost one."""
    return count_in_loops(sass_instructions(listing), lambda line: re.search(r"\bLDL\b", line.text) is not None)


def sass_instructions(listing: str) -> list[Instruction]:
    """The instructions of nvdisasm's text.

    A call of a function is taken to return, so its target is no jump; ptxas also writes calls of labels, for jumps.
    """
    return _instructions(listing, re.compile(r"^(\.L_\w+):"), _sass_instruction)


def amdgcn_instructions(listing: str) -> list[Instruction]:
    """The instructions of LLVM's amdgcn text."""
    return _instructions(listing, re.compile(r"^(\.L\w+):"), _amdgcn_instruction)


def count_in_loops(lines: list[Instruction], wanted: Callable[[Instruction], bool]) -> tuple[int, int]:
    """How many of the wanted instructions lie on a cycle of the control flow, and how many on an innermost one.

    Cycles, not backward branches: a block moved out of line jumps back without being a loop. One that only waits, for
    tensor cores to have done, is none either: what stands around it is not a loop around a loop.
    """
    starts, successors = _flow(lines)
    blocks = [lines[start:end] for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]
    counts = [sum(map(wanted, block)) for block in blocks]
    loops = [loop for loop in _loops(successors) if not all(WAITING.search(i.text) for b in loop for i in blocks[b])]
    inner = [loop for loop in loops if not any(other < loop for other in loops)]
    return tuple(sum(counts[block] for block in set().union(*some)) for some in (loops, inner))


def _loops(successors: list[list[int]]) -> list[frozenset[int]]:
    """The loops of a control flow, as sets of blocks, those inside others too.

    A loop is what lies on cycles together; without the blocks by which it is entered, the loops inside it remain.
    """
    graph = networkx.DiGraph((block, after) for block, some in enumerate(successors) for after in some)
    found, stack = [], [graph]
    while stack:
        part = stack.pop()
        for blocks in networkx.strongly_connected_components(part):
            if len(blocks) > 1 or part.has_edge(*blocks, *blocks):
                found.append(frozenset(blocks))
                entries = [b for b in blocks if b == 0 or any(before not in blocks for before in graph.predecessors(b))]
                stack.append(part.subgraph(blocks - set(entries or blocks)))
    return found


def _flow(lines: list[Instruction]) -> tuple[list[int], list[list[int]]]:
    """Where each basic block starts, and the blocks that may follow each."""
    starts = [at for at, line in enumerate(lines) if at == 0 or line.labels or _ends_block(lines[at - 1])]
    block_of = {label: block for block, at in enumerate(starts) for label in lines[at].labels}
    successors = []
    for block, end in enumerate([*starts[1:], len(lines)]):
        last = lines[end - 1]
        following = [block_of[last.target]] if last.target in block_of else []
        successors.append(following + ([block + 1] if last.falls_through and end < len(lines) else []))
    return starts, successors


def _ends_block(line: Instruction) -> bool:
    return line.target is not None or not line.falls_through


def _instructions(
    listing: str, label: re.Pattern[str], parse: Callable[[str, tuple[str, ...]], Instruction | None]
) -> list[Instruction]:
    found: list[Instruction] = []
    labels: list[str] = []
    for line in listing.splitlines():
        if named := label.match(line.strip()):
            labels.append(named[1])
        elif instruction := parse(line, tuple(labels)):
            found.append(instruction)
            labels = []
    return found


def _sass_instruction(line: str, labels: tuple[str, ...]) -> Instruction | None:
    matched = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(@!?\w+\s+)?([\w.]+)([^;]*)", line)
    if not matched:
        return None
    predicate, opcode, operands = matched.groups()
    name = opcode.partition(".")[0]
    target = re.search(r"`\((\.L_\w+)\)", operands) if name in ("BRA", "UBRA", "JMP", "CALL") else None
    # `BRA.U !UP0, ...` and `BRA P1, ...` carry their condition as an operand.
    conditional = predicate is not None or (target is not None and operands[: target.start()].strip() != "")
    leaves = target is not None or name in ("EXIT", "RET")
    return Instruction(line.strip(), labels, target and target[1], conditional or not leaves)


def _amdgcn_instruction(line: str, labels: tuple[str, ...]) -> Instruction | None:
    matched = re.match(r"\s+([a-z]\w+)\s*([^;]*)", line)
    if not matched:
        return None
    opcode, operands = matched[1], matched[2].strip()
    jumps = opcode == "s_branch" or opcode.startswith("s_cbranch")
    leaves = opcode in ("s_branch", "s_endpgm", "s_setpc_b64")
    return Instruction(line.strip(), labels, operands if jumps else None, not leaves)


def _is_amdgcn_reload(line: Instruction) -> bool:
    return "Folded Reload" in line.text and re.match(r"(scratch|buffer)_load", line.text) is not None


def _amdgcn_bytes(lines: Iterable[Instruction], word: str) -> int:
    """Bytes a thread moves in its spills (`store`) or reloads (`load`), each instruction counted once."""
    found = (re.match(rf"(?:scratch|buffer)_{word}\w*.*; (\d+)-byte Folded", line.text) for line in lines)
    return sum(int(match[1]) for match in found if match)


def _amdgcn_field(listing: str, name: str) -> int:
    found = re.search(rf"\.{name}:\s+(\d+)", listing)
    if not found:
        raise ValueError(f"the amdgcn listing has no .{name}")
    return int(found[1])
