"""What a valid spec becomes: defaults, presets, gates, the plain dict and its digest."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from hashlib import sha256
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mcgen.spec import PRESETS, Chunk, Gate, GateMap, PerHead, Spec, load, loads
from mcgen.spec.grammar import Name, parse, unparse
from mcgen.spec.shipped import shipped


def spec(**sections: Any) -> Spec:
    base = {"mcgen": 1, "name": "a", "memory": {"kind": "matrix"}, "update": {"rule": "linear"}}
    return loads(yaml.safe_dump(base | sections, sort_keys=False))


MLP = {"kind": "mlp"}


def test_every_default_is_the_documented_one() -> None:
    assert spec(memory=MLP, update={"rule": "titans"}).to_dict() == {
        "mcgen": 1,
        "name": "a",
        "doc": "",
        "memory": {
            "kind": "mlp",
            "layers": 2,
            "expansion": 4,
            "activation": "gelu",
            "residual": True,
            "norm": "none",
        },
        "update": {
            "rule": "titans",
            "gradient": {"chunk": 16},
            "gates": {name: {"fn": "sigmoid", "bias": 0.0, "scale": 1.0} for name in ("beta", "eta", "alpha")},
        },
        "segment": {"size": 256, "mode": "constant", "init": "independent"},
        "aggregate": {"kind": "grm", "connector": "u", "pool": "mean", "scale": 1.0},
        "head": {"key_dim": 64, "value_dim": 64},
        "layer": {
            "d_model": 1024,
            "heads": 16,
            "qk_norm": "l2",
            "conv_size": 4,
            "output_norm": "rms",
            "output_gate": True,
        },
    }


def test_defaults_that_depend_on_other_fields() -> None:
    matrix = spec()
    assert (matrix.update.gradient, matrix.gradient_chunk, matrix.segment.init) == ("token", None, "independent")
    deep = spec(memory=MLP, update={"rule": "dla"}, aggregate={"kind": "none"})
    assert (deep.update.gradient, deep.gradient_chunk, deep.segment.init) == (Chunk(chunk=16), 16, "checkpoint")
    assert spec(segment={"mode": "logarithmic"}).segment.size is None


def test_a_preset_is_nothing_but_its_lines() -> None:
    for name, preset in PRESETS.items():
        written = {"steps": list(preset.steps)} | ({"objective": preset.objective} if preset.objective else {})
        memory = {"kind": preset.memory}
        named, spelt = spec(memory=memory, update={"rule": name}), spec(memory=memory, update=written)
        assert named.steps == spelt.steps
        assert named.gates == spelt.gates
        assert named.objective_expression == spelt.objective_expression
        assert not named.warnings
        assert named.to_dict()["update"]["rule"] == name


def test_slots_and_gates_come_in_order_of_appearance() -> None:
    made = spec(update={"steps": ["S = b*S + exp(c)*outer(v, k)", "M = a*M + b*S", "S = d*S"], "gates": {"c": 2}})
    assert made.slots == ("S", "M")
    assert [gate.name for gate in made.gates] == ["b", "c", "a", "d"]
    assert made.tensor_gates == ("b", "a", "d")
    assert list(made.update.gates) == ["b", "c", "a", "d"]


def test_gates_of_every_form() -> None:
    forms = {"a": 1, "b": {"per_head": "1 -  2**(-5 - h)"}, "c": {"fn": "decay", "bias": -4.6, "from": "dt"}}
    made = spec(update={"steps": ["M = a*b*M + c*d*outer(v, k)"], "gates": forms})
    assert made.gates == (
        Gate("a", "constant", 1.0),
        Gate("b", "per_head", parse("1 - 2**(-5 - h)")),
        Gate("c", "tensor", None, "decay", -4.6, 1.0, "dt"),
        Gate("d", "tensor"),
    )
    assert made.tensor_gates == ("c", "d")
    assert made.update.gates["b"] == PerHead(per_head="1 - 2**(-5 - h)")
    assert made.update.gates["d"] == GateMap()
    assert made.to_dict()["update"]["gates"]["c"] == {"fn": "decay", "bias": -4.6, "scale": 1.0, "from": "dt"}


def test_activations_by_name_and_by_expression() -> None:
    named = spec(memory=MLP | {"activation": "silu"}, update={"rule": "dla"})
    assert named.activation_expression is None
    written = spec(memory=MLP | {"activation": " x *\n sigmoid(x) "}, update={"rule": "dla"})
    assert unparse(written.activation_expression) == "x*sigmoid(x)"
    assert written.memory.activation == "x * sigmoid(x)"
    assert spec(memory=MLP | {"activation": " silu "}, update={"rule": "dla"}).digest() == named.digest()
    identity = spec(memory=MLP | {"activation": "x"}, update={"rule": "dla"})
    assert identity.activation_expression == Name("x", None)


@pytest.mark.parametrize(
    ("name", "expected"), [("titans_grm", "TitansGrm"), ("a", "A"), ("_x__yZ", "XYZ"), ("a1_b2", "A1B2")]
)
def test_class_name(name: str, expected: str) -> None:
    assert spec(name=name).class_name == expected


def test_routes_by_u() -> None:
    for kind in ("none", "residual", "mean"):
        assert not spec(aggregate={"kind": kind}).routes_by_u
    for routed in ({"kind": "grm"}, {"kind": "soup"}, {"kind": "ssc", "top_k": 1}):
        assert spec(aggregate=routed).routes_by_u
        assert not spec(aggregate=routed | {"connector": "q"}).routes_by_u


VALID: dict[str, dict[str, Any]] = {
    "residual false": {"memory": MLP | {"residual": False}, "update": {"rule": "dla"}, "head": {"value_dim": 3}},
    "outer and grad": {"update": {"objective": "-dot(p, v)", "steps": ["M = M - a*grad + outer(v, k[-3])"]}},
    "gradient without grad": {"update": {"rule": "linear", "gradient": {"chunk": 4}}},
    "chunk beyond the segment": {"update": {"rule": "delta", "gradient": {"chunk": 10**6}}},
    "delta on an mlp": {"memory": MLP, "update": {"rule": "gated_delta", "gradient": "token"}},
    "dla on a matrix": {"update": {"rule": "dla"}},
    "objective of many terms": {
        "update": {"objective": "2*(sum(abs(p - v)) - dot(p, v)/3) + pi*sum(log(cosh(p)))", "steps": ["M = M - grad"]}
    },
    "negative and fractional numbers": {"update": {"steps": ["M = -0.5*M + a**-1*outer(v, k)/3"]}},
    "heads of odd sizes": {"head": {"key_dim": 1, "value_dim": 255}},
    "whole number for a float": {"aggregate": {"scale": 2}, "update": {"rule": "decay", "gates": {"alpha": 0}}},
    "nothing given": {"segment": {"size": None}, "aggregate": {"top_k": None}},
    "names of YAML 1.1": {"update": {"steps": ["M = on*M + y*outer(v, k)"], "gates": {"on": 1, "y": {"from": "no"}}}},
    "layer": {"layer": {"qk_norm": "none", "conv_size": 0, "output_norm": "none", "output_gate": False}},
    "top_k of many": {"aggregate": {"kind": "ssc", "top_k": 10**6}},
}


@pytest.mark.parametrize("sections", VALID.values(), ids=VALID)
def test_valid_and_survives_its_own_dict(sections: dict[str, Any]) -> None:
    made = spec(**sections)
    assert not made.warnings
    _assert_round_trip(made)


@pytest.mark.parametrize("name", shipped())
def test_shipped_specs_are_valid(name: str) -> None:
    made = load(shipped()[name])
    assert made.name == name
    assert made.doc
    assert not made.warnings
    _assert_round_trip(made)


def _assert_round_trip(made: Spec) -> None:
    for text in (yaml.safe_dump(made.to_dict()), json.dumps(made.to_dict()), yaml.safe_dump(made.to_dict(), width=20)):
        again = loads(text)
        assert again.digest() == made.digest()
        assert again == made
        assert hash(again) == hash(made)
        assert again.to_dict() == made.to_dict()


def test_digest_is_of_the_canonical_json_and_of_nothing_else() -> None:
    made = spec(doc="é", aggregate={"scale": 2})
    canonical = json.dumps(made.to_dict(), sort_keys=True, separators=(",", ":")).encode()
    assert made.digest() == sha256(canonical).hexdigest()
    assert made.digest() == spec(aggregate={"scale": 2.0, "kind": "grm"}, doc="é").digest()
    assert made.digest() != spec(doc="e", aggregate={"scale": 2}).digest()
    spaced = {"steps": ["M  =\n M + outer( v, k )"]}
    assert spec(update=spaced).digest() == spec(update={"steps": ["M = M + outer( v, k )"]}).digest()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_doc_survives(doc: str) -> None:
    made = spec(doc=doc)
    assert made.doc == doc
    _assert_round_trip(made)


@pytest.mark.parametrize(
    "doc", ['"""', "'''\\", "{{ x }} {% y %}", "\\N{DASH} \\x00", "# a\n    b: c\n", "1e3", "null", "0o7", " "]
)
def test_a_doc_is_only_a_doc(doc: str) -> None:
    assert spec(doc=doc).doc == doc


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-3", 1e-3), ("1E5", 1e5), (".5", 0.5), ("2.", 2.0), ("-1.5e+2", -150.0), ("010", 10.0), ("0x10", 16.0)],
)
def test_numbers_in_the_common_notations(written: str, value: float) -> None:
    text = "mcgen: 1\nname: a\nmemory: {kind: matrix}\nupdate: {rule: linear}\naggregate: {scale: %s}\n"
    assert loads(text % written).aggregate.scale == value


def test_aliases_stand_for_their_values() -> None:
    text = "mcgen: 1\nname: a\nmemory: {kind: matrix}\nupdate: {rule: swla, gates: {alpha: &g {bias: 2}, beta: *g}}\n"
    assert [gate.bias for gate in loads(text).gates] == [2.0, 2.0, 0.0]


def test_steps_point_into_the_file_for_later_stages() -> None:
    text = 'mcgen: 1\nname: a\nmemory: {kind: matrix}\nupdate: {steps: ["M = alpha*M*M"]}\n'
    (step,) = loads(text, "a.yaml").steps
    assert (step.position.source.file, *step.position.place) == ("a.yaml", 4, 18)
    found = step.diagnose(step.expression.span, "not linear", "divide by M")
    assert found.render() == (
        "error: not linear\n  a.yaml:4:23\n  " + text.splitlines()[3] + "\n" + " " * 24 + "^^^^^^^^^ divide by M"
    )
    (of_preset,) = loads(text.replace('steps: ["M = alpha*M*M"]', "rule: decay"), "a.yaml").steps
    found = of_preset.diagnose(of_preset.expression.span, "no")
    assert (found.message, found.line, found.column, found.length) == ("no (in `M = alpha*M + outer(v, k)`)", 4, 16, 5)


def test_loading_is_quick() -> None:
    path = shipped()["fastslow_grm"]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        load(path)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05


def test_the_stage_imports_nothing_heavy() -> None:
    code = "import sys, mcgen.spec; print({'torch', 'triton', 'sympy', 'jinja2', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
