"""The torch path of a generated module: its chunk step and read-outs as printed programs, in the loops of a template."""

from __future__ import annotations

from mcgen.emit.rendering import render
from mcgen.emit.torch_printer import function
from mcgen.ir import aggregate
from mcgen.ir.program import Program
from mcgen.ir.step import key_name, step, step_vjp, value_name
from mcgen.passes.simplify import simplify
from mcgen.symbolic.meaning import Meaning
from mcgen.symbolic.recurrence import MEMORY, Write

CHUNK, SLAB = 64, 16

STEP_DOC = "One chunk: online read-outs, and the state at its end."
AGGREGATES = {
    "residual": (aggregate.accumulate,),
    "mean": (aggregate.accumulate,),
    "grm": (aggregate.blend,),
    "ssc": (aggregate.blend, aggregate.choose, aggregate.read_segment),
}
DOCS = {
    "accumulate": "The online read-out and one read of the summed cached states.",
    "blend": "The softmax of all routing logits, over the read-outs of all memories.",
    "choose": "The softmax of the chosen segments' logits and the online one, over their read-outs.",
    "read_segment": "One cached segment: routing logits and read-outs of the rows that read it.",
    "logits": "The routing logits of cached segments.",
}


def lagged_inputs(meaning: Meaning) -> list[tuple[str, str, int]]:
    """(name, tensor, lag) of every lagged view of k and v that some write takes."""
    writes = [write for write in meaning.recurrence.writes if isinstance(write, Write)]
    keys = {write.key_lag for write in writes} - {0}
    values = {write.value_lag for write in writes} - {0}
    return [(key_name(n), "k", n) for n in sorted(keys)] + [(value_name(n), "v", n) for n in sorted(values)]


def tensor_inputs(meaning: Meaning) -> list[str]:
    """The tensors the operator differentiates, in the order of its arguments."""
    spec = meaning.spec
    return ["q", "k", "v", *(["u"] if spec.routes_by_u else []), *spec.tensor_gates]


def kept_slots(meaning: Meaning) -> tuple[str, ...]:
    """The slots whose value at each segment's end is kept: all where the next segment goes on from them, else what is read."""
    if meaning.chained:
        return meaning.recurrence.slots
    return (MEMORY,) if meaning.reads_cached else ()


def torch_source(meaning: Meaning) -> str:
    """The text that defines `_forward_torch(x)` and `_backward_torch(x, saved, d_y)`."""
    functions = [_printed(step(meaning), STEP_DOC), _printed(step_vjp(meaning), _reverse(STEP_DOC))]
    reads = [text for make in AGGREGATES.get(meaning.aggregate, ()) for text in _both_ways(make, meaning)]
    if meaning.aggregate == "ssc":
        reads.append(_printed(aggregate.program(aggregate.logits, meaning), DOCS["logits"]))
    spec, printed = meaning.spec, "\n".join([*functions, *reads])
    return render(
        "torch.py.jinja",
        chunk=CHUNK,
        slab=SLAB,
        helpers=helpers(printed, meaning),
        step=functions[0],
        step_vjp=functions[1],
        aggregate=reads,
        kind=meaning.aggregate,
        slots=meaning.recurrence.slots,
        state=[*meaning.recurrence.slots, *(["pool"] if meaning.routes else [])],
        kept=kept_slots(meaning),
        online=online(meaning),
        chained=meaning.chained,
        routes=meaning.routes,
        reads_cached=meaning.reads_cached,
        mean_pool=spec.aggregate.pool == "mean",
        read_inputs='"q", "u"' if spec.aggregate.connector == "u" else '"q",',
    )


def online(meaning: Meaning) -> list[str]:
    """What the walk hands to the read-outs, and what the forward pass saves of it."""
    kept = [f"kept_{slot}" for slot in kept_slots(meaning)]
    return ["o", *(["r"] if meaning.routes else []), *kept, *(["pools"] if meaning.routes else [])]


def helpers(printed: str, meaning: Meaning) -> str:
    used = {name for name in ("_spread", "_runs") if f"{name}(" in printed}
    return render("helpers.py.jinja", used=used, lags=bool(lagged_inputs(meaning)), chained=meaning.chained).rstrip()


def _both_ways(make: object, meaning: Meaning) -> list[str]:
    doc = DOCS[make.__name__]
    return [_printed(aggregate.program(make, meaning), doc), _printed(aggregate.program_vjp(make, meaning), _reverse(doc))]


def _printed(program: Program, doc: str) -> str:
    return function(simplify(program), f"_{program.name}", doc)


def _reverse(doc: str) -> str:
    return f"The derivative of: {doc[0].lower()}{doc[1:]}"
