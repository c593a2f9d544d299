"""The plan of a deep memory's kernels where gradient chunks are long: every layer by itself, in products over a span.

The rows that gradients are made of depend on the memory at the chunk's start alone, so a kernel makes those of many
tokens at once, a program a step (`mcgen.ir.by_layer`). What is left of a layer's step is that of a matrix with known
keys and values: a program holds a tile of its parameters and other slots in registers for all steps of a span, and
tiles run side by side, each with a part of every sum over the layer's inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from mcgen.ir import backward, by_layer
from mcgen.ir.aggregate import program, program_vjp, read_segment
from mcgen.ir.layers import Layer, layers
from mcgen.ir.program import Program
from mcgen.passes.carried import carried
from mcgen.passes.schedule import chained
from mcgen.passes.simplify import select, simplify
from mcgen.plan.streamed import RULES, StreamedPlan, is_long
from mcgen.symbolic.meaning import Meaning

SPAN = 256
"""Tokens that go through a layer at once, at most: their rows, of all layers, are what kernels leave for each other."""
GROUP = 8
"""Spans whose states are kept together on the way back, at least."""


def is_layered(meaning: Meaning) -> bool:
    """Whether the plan is this one. A soup reads all memories layer by layer already, and keeps to steps."""
    return not meaning.linear and meaning.aggregate != "soup" and is_long(meaning)


@dataclass(frozen=True)
class LayerWalk:
    """A kernel that takes tiles of a layer through a span's steps: some gradients of the layer's rows.

    state    the parts of the state that it needs before every step, made again going forward
    d_state  the parts whose gradients it carries, going back; none where it goes forward alone
    leaves   whether it leaves these gradients for the span before
    """

    layer: Layer
    program: Program
    state: tuple[str, ...]
    d_state: tuple[str, ...]
    leaves: bool


@dataclass(frozen=True)
class LayeredPlan(StreamedPlan):
    """The programs of one deep memory's kernels, layer by layer; what reads cached segments is a `StreamedPlan`'s.

    The state in a buffer has the memory at the gradient chunk's start behind everything else, and no sum of keys.
    """

    @property
    def layers(self) -> tuple[Layer, ...]:
        return layers(self.meaning.spec)

    @cached_property
    def state(self) -> Mapping[str, tuple[str, ...]]:
        return {name: axes for name, axes in super().state.items() if name != "pool"}

    def slots(self, layer: Layer) -> tuple[str, ...]:
        """The parts of the state that are a layer's parameters in the rule's slots."""
        return tuple(f"{slot}{layer.suffix}" for slot in self.meaning.recurrence.slots)

    @property
    def span(self) -> int:
        """Tokens of a span, at most."""
        return min(SPAN, self.meaning.gradient_chunk)

    @property
    def group(self) -> int:
        """Spans whose states are kept together going back, at least."""
        return GROUP

    @property
    def resident(self) -> bool:
        return False

    @cached_property
    def programs(self) -> Mapping[str, Program]:
        meaning = self.meaning
        found = {"errors": program(by_layer.errors, meaning), "online": program(by_layer.online, meaning)}
        found |= {"reverse_online": by_layer.reverse_online(meaning), "inputs": by_layer.inputs(meaning)}
        for layer in self.layers:
            found[f"layer{layer.suffix}"] = program(by_layer.layer_step, meaning, layer)
            found[f"reverse_layer{layer.suffix}"] = by_layer.reverse_layer(meaning, layer)
        if meaning.routes:
            found["logits"] = program(by_layer.logits, meaning)
            found["reverse_logits"] = program_vjp(by_layer.logits, meaning)
        if meaning.reads_cached:
            found["read_segment"] = program(read_segment, meaning)
            found |= {"rows": backward.rows(meaning), "segment": backward.segment(meaning)}
        return {name: chained(simplify(one, RULES)) for name, one in found.items()}

    @property
    def phased(self) -> list[str]:
        reads = ["read_segment", "rows", "segment"] if self.meaning.reads_cached else []
        return ["errors", "inputs", *reads]

    @cached_property
    def walks(self) -> Mapping[str, LayerWalk]:
        """The gradient kernels of the layers, in the order they run.

        What is owed to queries needs the state alone, to what was written its gradient alone. Gates that need the same
        parts of both share a kernel.
        """
        found: dict[str, LayerWalk] = {}
        for layer in reversed(self.layers):
            rows = {f"d_error{layer.suffix}", f"d_seen{layer.suffix}", by_layer.owed("k", layer)}
            outputs = self.programs[f"reverse_layer{layer.suffix}"].outputs
            gates = [by_layer.owed(gate, layer) for gate in self.meaning.spec.tensor_gates]
            gates = [gate for gate in gates if gate in outputs]
            slots = [f"d_{slot}" for slot in self.slots(layer)]
            queries = [label for label in outputs if label not in {*rows, *gates, *slots}]
            found[f"queries{layer.suffix}"] = self._walk(layer, queries)
            alike: dict[tuple, list[str]] = {}
            for gate in gates:
                walk = self._walk(layer, [gate])
                alike.setdefault((walk.state, walk.d_state), []).append(gate)
            for number, share in enumerate(alike.values(), 1):
                found[f"gates{layer.suffix}_{number}"] = self._walk(layer, share)
            writes = [label for label in outputs if label in {*rows, *slots}]
            found[f"writes{layer.suffix}"] = self._walk(layer, writes, leaves=True)
        return found

    def _walk(self, layer: Layer, wanted: list[str], leaves: bool = False) -> LayerWalk:
        slots, reverse = self.slots(layer), self.programs[f"reverse_layer{layer.suffix}"]
        program = select(reverse, wanted, "walk")
        d_state = carried(program, slots, reverse, "d_{}_next", "d_{}")
        program = select(reverse, list(dict.fromkeys([*wanted, *(f"d_{name}" for name in d_state)])), "walk")
        state = carried(program, slots, self.programs[f"layer{layer.suffix}"], "{}", "{}_next")
        return LayerWalk(layer, program, state, d_state, leaves)

    def advancing(self, walk: LayerWalk) -> Program:
        """The program that takes a kernel's parts of the state a step further."""
        return select(self.programs[f"layer{walk.layer.suffix}"], [f"{name}_next" for name in walk.state], "advance")

    def choices(self) -> Iterator[tuple[str, str, str]]:
        chunk = self.meaning.gradient_chunk
        yield (
            "gradients",
            f"of a chunk of {chunk} tokens at its start: error rows of all its steps side by side",
            "they read one memory; what is left of a layer is a matrix memory whose keys and values are known",
        )
        tiles = "a tile of a layer a program, in registers for a span"
        yield "state", f"{tiles} of {self.span} tokens", "a span's rows are stored, so tiles need nothing of each other"
        yield self._segments()
        yield (
            "backward",
            "spans in reverse, from states made again",
            "states are kept at the start of every sqrt(n)-th of n spans, of those in between once more, and in a span",
        )
        yield from self._reads()
