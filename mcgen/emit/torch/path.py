"""The torch path of a generated module: tile programs printed as functions, in the loops of templates/torch.

A chunk step is taken apart by what has to wait for the chunk before. Forward: `writes` gives what chunks add to the
state, for all chunks at once; `carry` takes the state from chunk to chunk; `read_online` reads it, for all at once.
Backward likewise: `pulls`, `carry_vjp`, and last `inputs_vjp`, the gradients of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from textwrap import wrap

from mcgen.emit.text.naming import named
from mcgen.emit.text.rendering import render
from mcgen.emit.torch.printer import HELPERS, RESERVED, function
from mcgen.ir import aggregate
from mcgen.ir.closed_form import lagged_names
from mcgen.ir.cut import cut, fixed, remaining
from mcgen.ir.layers import layers, sizes
from mcgen.ir.program import TOKEN_AXES, Contract, Decay, Input, Map, Node, Program, Rename, Solve
from mcgen.ir.step import query_name, state_axes, step_with_vjp
from mcgen.passes import products
from mcgen.passes.factors import ONE_DECAY, SPREAD
from mcgen.passes.hoist import hoist, part, reached
from mcgen.passes.narrow import narrow
from mcgen.passes.simplify import RULES as SIMPLIFY
from mcgen.passes.simplify import select, simplify
from mcgen.passes.solves import solves_apart
from mcgen.plan.state import StateLayout
from mcgen.symbolic.meaning import Meaning
from mcgen.symbolic.recurrence import MEMORY

CHUNK = 64
PANEL_ROWS = 4096
SCRATCH = 1 << 21
COSTLY = 2  # products over a head's dimensions that a row's number took, for the row to be kept rather than made again
TILE = 64
NAMES_WIDTH = 100
"""Columns of a line that lists names."""
RULES = (*SIMPLIFY, ONE_DECAY)
REWRITES = (*RULES, SPREAD, *products.RULES)

DOCS = {
    "writes": "What chunks add to the state, and how much of it they leave: sums over j of C_j k_j v_jᵀ, and R.",
    "carry": "The state after a chunk.",
    "read_online": "The online read-outs of chunks, from the states before them.",
    "pulls": "What the read-outs of chunks owe to the states before them.",
    "carry_vjp": "The cotangent of the state before a chunk, from that after it.",
    "inputs_vjp": "The gradients of the inputs, from the states before chunks and the cotangents of those after.",
    "pile": "The online read-outs and those of all cached states, added up.",
    "soup": "One read of the average of all parameters, by the softmax of all routing logits.",
    "accumulate": "The online read-out and one read of the summed cached states.",
    "blend": "The softmax of all routing logits, over the read-outs of all memories.",
    "logits": "The routing logits of cached segments.",
    "weigh": "The softmax of the chosen segments' logits and the online one.",
    "read_weighted": "One cached segment: weighted read-outs of the rows that read it.",
    "add_up": "The weighted online read-out, and those of the chosen segments.",
}
READS: Mapping[str, tuple[Callable, ...]] = {
    "sums": (aggregate.accumulate,),
    "residual": (aggregate.pile,),
    "mean": (aggregate.pile,),
    "grm": (aggregate.blend,),
    "soup": (aggregate.soup,),
    "ssc": (aggregate.blend, aggregate.logits, aggregate.weigh, aggregate.read_weighted, aggregate.add_up),
}
TEMPLATES = {
    "sums": ("sums",),
    "residual": ("blend",),
    "mean": ("blend",),
    "grm": ("blend",),
    "soup": ("soup",),
    "ssc": ("blend", "chosen"),
}


def lagged_inputs(meaning: Meaning) -> list[tuple[str, str, int]]:
    """(name, tensor, lag) of every lagged view of k and v that some write takes."""
    return [(name, *of) for name, of in lagged_names(meaning.recurrence).items()]


def torch_source(meaning: Meaning) -> str:
    """The text that defines `_run_forward_torch`, `_run_backward_torch` and `_saved_torch`."""
    path = TorchPath(meaning)
    names = ("walk", *TEMPLATES.get(path.reading, ()), "run")
    return "\n\n\n".join(render(f"torch/{name}.py.jinja", **path.context).strip("\n") for name in names)


@dataclass(frozen=True)
class TorchPath:
    """What the templates show for one meaning."""

    meaning: Meaning

    @cached_property
    def layout(self) -> StateLayout:
        """What is read of earlier segments, and goes from call to call."""
        return StateLayout(self.meaning)

    @cached_property
    def state(self) -> Mapping[str, tuple[str, ...]]:
        return state_axes(self.meaning)

    @cached_property
    def anchors(self) -> Mapping[str, str]:
        """The memory that gradients are taken at, where that is another than the state: the state's name for it, by
        the programs' own. It is the same for all chunks of a panel, so that nothing of the gradients waits."""
        anchored = self.meaning.anchored(CHUNK)
        found = layers(self.meaning.spec) if anchored else ()
        return {f"anchor{layer.suffix}": f"{MEMORY}{layer.suffix}" for layer in found}

    def _at_anchors(self, program: Program) -> Program:
        """The program where anchors are given: it takes them from no state, and passes them on to none."""
        following = {f"{name}_next" for name in self.anchors}
        owed = {f"d_{name}": 0 for name in following}
        program = Program(program.name, {n: node for n, node in program.outputs.items() if n not in following})
        return fixed(program, {"fresh": 0, **owed}) if self.anchors else program

    @cached_property
    def _all(self) -> list[Program]:
        """The step and its derivative, and the programs that read, with one name for every value of the file."""
        return named([self._step, *self._reads], RESERVED)

    @property
    def whole(self) -> Program:
        """The step and its derivative."""
        return self._all[0]

    @property
    def reads(self) -> list[Program]:
        """The programs that combine read-outs, each with its derivative."""
        return self._all[1:]

    @cached_property
    def _step(self) -> Program:
        """The step and its derivative, with what no state is needed for apart from the rest."""
        step = step_with_vjp(self.meaning, anchored=bool(self.anchors))
        program = simplify(self._at_anchors(step), RULES)
        for carried in (self.state, self.cotangents):
            program = simplify(part(solves_apart(program, carried), carried), RULES)
        return simplify(narrow(simplify(program, REWRITES), sizes(self.meaning.spec)), REWRITES)

    @cached_property
    def names(self) -> Mapping[Node, str]:
        return {node: node.label.name if node.label else "" for node in self.whole.nodes}

    @cached_property
    def forward(self) -> tuple[Program, Program, Program]:
        """`writes`, `carry` and `read_online`, which reads what the two before give."""
        later = [self._pulled, self._inputs_vjp]
        step = select(self.whole, self.following, "carry")
        writes, carry = hoist(_with(step, self._rows), self.state, self.names.__getitem__)
        writes = self._lasting(_named(writes, "writes"), {}, later)
        return writes, carry, cut(_with(self._read_online, self._remembered), {**_given(writes), **self._rows})

    @cached_property
    def backward(self) -> tuple[Program, Program, Program]:
        """`pulls`, `carry_vjp` and `inputs_vjp`, which reads what all others give."""
        known = {**_given(self.forward[0]), **self._rows, **self._remembered}
        step = _with(_named(self._pulled, "carry_vjp"), self._rows_vjp)
        pulls, carry = hoist(step, self.cotangents, self.names.__getitem__)
        new = {name: node for name, node in pulls.outputs.items() if node not in known}
        pulls = self._lasting(Program("pulls", new), {**known, **self._rows_vjp}, [self._inputs_vjp])
        return cut(pulls, known), carry, cut(self._inputs_vjp, {**known, **self._rows_vjp, **_given(pulls)})

    @cached_property
    def _rows(self) -> dict[Node, str]:
        """What the loop forward computes of rows, and others need."""
        step = select(self.whole, self.following, "carry")
        return self._kept_rows(step, self.state, [self._read_online, self._pulled, self._inputs_vjp])

    @cached_property
    def _remembered(self) -> dict[Node, str]:
        """What the forward pass keeps of read-outs for the backward pass: rows that took COSTLY products or more."""
        size = sizes(self.meaning.spec)
        least = COSTLY * self.meaning.spec.head.key_dim
        made = self._kept_rows(self._read_online, self.state, [self._pulled, self._inputs_vjp])
        rows = {node: name for node, name in made.items() if node not in self._rows and _is_row(node)}
        return {node: name for node, name in rows.items() if _multiplications(node, size) >= least}

    @cached_property
    def _rows_vjp(self) -> dict[Node, str]:
        """What the loop backward computes of rows, and the gradients of the inputs need."""
        return self._kept_rows(self._pulled, self.cotangents, [self._inputs_vjp])

    def _kept_rows(self, step: Program, carried: Collection[str], later: list[Program]) -> dict[Node, str]:
        """The products, one for each row of a chunk, that a loop makes and later programs need: none is made twice.

        Products that only a sum needs are kept as that sum.
        """
        needed = reached(step, carried) & {node for one in later for node in one.nodes}
        users: dict[Node, set[Node]] = {}
        for node in {node for one in (step, *later) for node in one.nodes}:
            for operand in node.operands:
                users.setdefault(operand, set()).add(node)
        kept = set()
        for node in needed:
            if isinstance(node, Contract) and TOKEN_AXES & set(node.axes):
                first, *others = users[node]
                kept.add(first if not others and first in needed and _is_sum(first) else node)
        return {node: self.names[node] for node in step.nodes if node in kept}

    @cached_property
    def _read_online(self) -> Program:
        return select(self.whole, self.online, "read_online")

    @cached_property
    def _pulled(self) -> Program:
        """The cotangents of the state before a chunk."""
        return select(self.whole, [f"d_{name}" for name in self.state], "")

    @cached_property
    def _inputs_vjp(self) -> Program:
        others = {*self.following, *self.online, *(f"d_{name}" for name in self.state)}
        return select(self.whole, [name for name in self.whole.outputs if name not in others], "inputs_vjp")

    def _lasting(self, program: Program, known: Mapping[Node, str], later: list[Program]) -> Program:
        """The program with what later ones read of its costly values as outputs too: none is made twice."""
        given, made = {**known, **_given(program)}, remaining(program, known)
        read: set[Node] = set()
        for one in later:
            left = remaining(one, given)
            read |= {node for user in left - made for node in user.operands} | (left & set(one.outputs.values()))
        costly = _costly(node for node in program.nodes if node in made)
        read = {_renamed(node) for node in read}
        kept = [node for node in program.nodes if node in read & costly and node not in given]
        return Program(program.name, {**program.outputs, **{self.names[node]: node for node in kept}})

    @cached_property
    def following(self) -> list[str]:
        return [f"{name}_next" for name in self.state]

    @cached_property
    def cotangents(self) -> list[str]:
        return [f"d_{name}_next" for name in self.state]

    @cached_property
    def online(self) -> list[str]:
        """What is read of the online memory: the read-out, and its routing logit."""
        return ["o", *(["r"] if self.meaning.routes else [])]

    @cached_property
    def _reads(self) -> list[Program]:
        makers = READS.get(self.reading, ())
        how = {"anchored": True} if self.reading == "soup" and self.anchors else {}
        both = aggregate.program, aggregate.program_vjp
        programs = [program(make, self.meaning, **how) for make in makers for program in both]
        return [simplify(self._at_anchors(program), REWRITES) for program in programs]

    @cached_property
    def programs(self) -> list[Program]:
        return [*self.forward, *self.backward, *self.reads]

    @cached_property
    def reading(self) -> str:
        """How cached states are read: by the aggregate, or as their sum where a read-out is linear in the state."""
        return "sums" if self.layout.summed else self.meaning.aggregate

    @cached_property
    def memory(self) -> Mapping[str, str]:
        """The cached parameters of the memory: what programs call them, and the state's name for them."""
        return self.layout.memory

    @cached_property
    def shapes(self) -> dict[str, str]:
        """The shape of every part of the state, as text."""
        size = sizes(self.meaning.spec)
        return {name: ", ".join(str(size[axis]) for axis in axes) for name, axes in self.state.items()}

    @cached_property
    def plain(self) -> bool:
        """Whether segments make no difference: states go through their ends, and nothing reads them."""
        meaning = self.meaning
        return meaning.chained and not meaning.reads_cached and meaning.gradient_chunk is None

    @cached_property
    def kept(self) -> tuple[str, ...]:
        """The slots kept at the ends of segments: all where the next goes on from them, else what is read."""
        if self.meaning.chained:
            return tuple(name for name in state_axes(self.meaning) if name != "pool")
        return tuple(self.memory.values()) if self.meaning.reads_cached else ()

    @cached_property
    def held(self) -> tuple[str, ...]:
        """What is kept of the state before each panel that begins inside a segment: all of it."""
        return () if self.plain else tuple(self.state)

    @cached_property
    def saved(self) -> dict[str, tuple[str, str]]:
        """What the forward pass saves, by name: its shape, and what it is."""
        by_row = self.meaning.reads_cached and self.reading != "soup"
        value_dim = self.meaning.spec.head.value_dim
        saved = {"o": (f"(B, H, T, {value_dim})", "online read-outs")} if by_row else {}
        if self.meaning.routes and by_row:
            saved["r"] = "(B, H, T)", "online logits"
        for slot in self.kept:
            room = "copied + N" if slot in self.banked else "N"
            saved[f"kept_{slot}"] = f"(B, H, {room}, {self.shapes[slot]})", f"{slot} at the ends of segments"
        size = sizes(self.meaning.spec)
        for node, name in self._remembered.items():
            saved[f"rows_{name}"] = f"(B, H, T, {size[node.axes[1]]})", f"{name} of every chunk"
        for slot in self.held:
            saved[f"inner_{slot}"] = f"(B, H, P, {self.shapes[slot]})", f"{slot} before panels inside segments"
        if self.meaning.routes:
            saved["pools"] = f"(B, H, copied + N, {self.shapes['pool']})", "pooled keys"
        return saved

    @property
    def _unpacked(self) -> str:
        """The statement that gives what was saved its names."""
        names = ", ".join(self.saved)
        if self.meaning.aggregate == "ssc":
            return f"({names}), chosen = _parted(saved[0], {self._rooms}), saved[1]"
        return f"({names},) = _parted(saved[0], {self._rooms})"

    @property
    def _rooms(self) -> str:
        """The call that gives the shapes of what is saved."""
        return f"_rooms_torch(B, T, H, offset{', copied' if self.banked else ''})"

    @cached_property
    def banked(self) -> tuple[str, ...]:
        """The slots whose states at the ends of segments are read one by one."""
        return tuple(self.memory.values()) if self.layout.banked else ()

    def _kept_at(self, slot: str, first: str, last: str) -> str:
        """Where a slot lies that is kept at the ends of segments first to last, counted as panels count them."""
        shift = (" - shift" if slot in self.banked else " - before") if self.banked else ""
        return f"{first}{shift} : {last}{shift}" if shift else f"{first}:{last}"

    @cached_property
    def tags(self) -> dict[str, str]:
        """What the statements that lead to an output compute, where many of them do."""
        return {f"d_{name}": f"d_{name} = dL/d{name}" for name in self.meaning.inputs}

    @cached_property
    def context(self) -> dict[str, object]:
        meaning, saved = self.meaning, self.saved
        kind, inputs = meaning.aggregate, {name for program in self.programs for name in program.inputs}
        query = query_name(meaning)
        queries = ["q", *(["u"] if query == "u" and meaning.routes else [])]
        chosen = ["chosen"] if kind == "ssc" else []
        printed = [function(program, f"_{program.name}", _doc(program.name), self.tags) for program in self.programs]
        sums, deep = self.reading == "sums", not meaning.linear
        d_ends = {name: f'd_bank["{cached}"][:, :, i:j]' for cached, name in self.memory.items()}
        bank = {cached: f"kept_{name}" for cached, name in self.memory.items()}
        read = ["sums", *(["before"] if kind == "mean" else [])] if sums else ["bank", *chosen]
        return {
            "chunk": meaning.step(CHUNK),
            "gradient": meaning.gradient_chunk,
            "anchors": self.anchors,
            "anchor_names": _tuple(list(self.anchors)),
            "rows": PANEL_ROWS,
            "scratch": SCRATCH,
            "tile": TILE,
            "layout": "chunk after chunk, across segments" if meaning.chained else "segments side by side",
            "carry": _by_dimensions(self.forward[1], self.state),
            "carry_vjp": _by_dimensions(self.backward[1], self.cotangents),
            "walk_rows": wrap(" ".join(self._rows.values()), NAMES_WIDTH),
            "walk_rows_vjp": wrap(" ".join(self._rows_vjp.values()), NAMES_WIDTH),
            "helpers": _helpers("\n".join(printed)),
            "functions": printed,
            "kind": kind,
            "query": query,
            "slots": meaning.recurrence.slots,
            "state": list(self.state),
            "kept": self.kept,
            "held": self.held,
            "remembered": list(self._remembered.values()),
            "segment_size": meaning.spec.segment.size,
            "saved": saved,
            "unpacked": self._unpacked,
            "online": self.online,
            "chained": meaning.chained,
            "state_shapes": _dict({name: _shape(shape) for name, shape in self.shapes.items()}),
            "state_names": _tuple(list(self.state)),
            "theta": _tuple(list(self.memory.values())) if deep else "",
            "summed": sums,
            "banked": bool(self.banked),
            "bank": _dict({**bank, **({"pools": "pools"} if meaning.routes else {})}),
            "rooms": self._rooms,
            "kept_at": {slot: self._kept_at(slot, "i", "j") for slot in self.kept},
            "kept_before": {slot: self._kept_at(slot, "i - 1", "i") for slot in self.kept},
            "sources": _tuple(self.layout.sources),
            "d_ends": _dict({MEMORY: "d_bank[:, :, i:j]"} if sums else d_ends),
            "read_slots": _tuple(list(self.memory.values())),
            "width": max(sizes(meaning.spec).values()),
            "segments": "panel.j - panel.i" if meaning.chained else "1",
            "plain": self.plain,
            "routes": meaning.routes,
            "reads_cached": meaning.reads_cached,
            "mean_pool": meaning.spec.aggregate.pool == "mean",
            "counted": "count" in inputs,
            "per_head": "head" in inputs,
            "lagged": bool(self.layout.lags),
            "row_inputs": _tuple([*queries, *(["r"] if meaning.routes else [])]),
            "row_queries": _tuple(queries),
            "read_inputs": _tuple([*(queries if meaning.reads_cached else []), *self.online]),
            "read_arguments": ", ".join(read),
            "owed_arguments": "d_sums, d_bank" if sums else "d_bank",
        }


def _given(program: Program) -> dict[Node, str]:
    """The values a program gives, with their names."""
    return {node: name for name, node in program.outputs.items() if not isinstance(node, Input)}


def _renamed(node: Node) -> Node:
    """The value that renamings only give other axes."""
    while isinstance(node, Rename):
        node = node.operand
    return node


def _costly(nodes: Iterable[Node]) -> set[Node]:
    """Those of the nodes, operands first, that took a product, a system or runs of a gate."""
    found: set[Node] = set()
    for node in nodes:
        if isinstance(node, (Contract, Solve, Decay)) or found.intersection(node.operands):
            found.add(node)
    return found


def _with(program: Program, more: Mapping[Node, str]) -> Program:
    """The program with further values as outputs, by name."""
    return Program(program.name, {**program.outputs, **{name: node for node, name in more.items()}})


def _is_row(node: Node) -> bool:
    """Whether a value has a row for every token, along one other axis."""
    return len(node.axes) == 2 and [axis in TOKEN_AXES for axis in node.axes] == [True, False]


def _multiplications(node: Node, size: Mapping[str, int]) -> int:
    """How many a number of a product, or of a sum of products, takes; what is summed over tokens aside."""
    terms = node.operands if isinstance(node, Map) else (node,)
    return sum(prod(size.get(axis, 0) for axis in term.over) for term in terms if isinstance(term, Contract))


def _is_sum(node: Node) -> bool:
    return isinstance(node, Map) and node.expression.is_Add


def _named(program: Program, name: str) -> Program:
    return Program(name, program.outputs)


def _dict(items: Mapping[str, object]) -> str:
    """The text of a dict, from the texts of its values."""
    return "{" + ", ".join(f'"{name}": {text}' for name, text in items.items()) + "}"


def _by_dimensions(carry: Program, carried: Collection[str]) -> dict[int, list[str]]:
    """The inputs of a loop besides the carried ones, by how many axes they have, as lines of names."""
    found: dict[int, list[str]] = {}
    for name, node in carry.inputs.items():
        if name not in carried:
            found.setdefault(len(node.axes), []).append(name)
    return {count: wrap(" ".join(found[count]), NAMES_WIDTH) for count in sorted(found)}


def _tuple(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names) + ("," if len(names) == 1 else "")


def _shape(sizes: str) -> str:
    """The text of a tuple of sizes."""
    return f"({sizes})" if "," in sizes else f"({sizes},)"


def _helpers(printed: str) -> str:
    used = {name for name in HELPERS if f"{name}(" in printed}
    return render("torch/helpers.py.jinja", used=used).rstrip()


def _doc(name: str) -> str:
    forward = DOCS.get(name.removesuffix("_vjp"), "")
    if name in DOCS:
        return DOCS[name]
    return f"The derivative of: {forward[0].lower()}{forward[1:]}"
