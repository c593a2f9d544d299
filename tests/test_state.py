"""The state that a call leaves: a sequence gives the same however it is split into calls, and what else a state can."""

from __future__ import annotations

import copy
import functools
import io
import json
import math
from itertools import accumulate, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mcgen.pipeline import source
from mcgen.spec import load, loads
from mcgen.spec.shipped import shipped
from tests.emit.fragments import difference, gradients, inputs, run
from tests.emit.layers import SPECS, built
from tests.states import interpreted

T = 101
CONSTANT = [name for name, path in shipped().items() if load(path).segment.size is not None]


@functools.cache
def module_of(name: str) -> SimpleNamespace:
    """A shipped spec in small heads and segments."""
    spec = load(shipped()[name]).to_dict() | {"head": {"key_dim": 4, "value_dim": 4}}
    spec["segment"]["size"] = 32
    return run(source(loads(json.dumps(spec))))


@functools.cache
def arguments_of(name: str) -> dict[str, Any]:
    """Inputs that all need gradients; steps are small, so that T tokens do not add up to memories of 1e10."""
    spec = loads(json.dumps(module_of(name).SPEC))
    found = inputs(spec, T)
    with torch.no_grad():
        if "eta" in found:
            found["eta"] /= 20
    return found


@functools.cache
def expected(name: str) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    """What one call gives, and its gradients."""
    y = module_of(name).op(**arguments_of(name))
    return y, gradients(y, arguments_of(name))


def part(arguments: dict[str, Any], begin: int, end: int) -> dict[str, Any]:
    return {name: x if name == "theta" else x[:, begin:end] for name, x in arguments.items()}


def in_calls(name: str, cuts: list[int], state: Any = None, first: int = 0, last: int = T) -> tuple[torch.Tensor, Any]:
    """y and the state of the tokens from `first` to `last`, a call a part."""
    found = []
    for begin, end in pairwise([first, *cuts, last]):
        y, state = module_of(name).op(**part(arguments_of(name), begin, end), state=state, return_state=True)
        found.append(y)
    return torch.cat(found, 1), state


def test_kernels_give_the_same_bits_however_a_sequence_is_split() -> None:
    """And whatever else is in the batch; gradients are within 1e-4 of those of one call in float64."""
    assert interpreted() == ""


splits = st.lists(st.integers(0, T), max_size=6).map(sorted)


@pytest.mark.parametrize("name", CONSTANT)
@settings(max_examples=4, deadline=None, phases=(Phase.generate,))
@given(cuts=splits, checkpoints=st.integers(1, 3))
def test_a_sequence_may_be_split_anywhere(name: str, cuts: list[int], checkpoints: int) -> None:
    y, state = in_calls(name, cuts, module_of(name).State(checkpoints=checkpoints))
    whole, owed = expected(name)
    assert state.position == T
    assert difference(y, whole) < 1e-10
    found = gradients(y, arguments_of(name))
    assert {key: difference(found[key], d) for key, d in owed.items()} == pytest.approx(
        dict.fromkeys(owed, 0), abs=1e-9
    )


@pytest.mark.parametrize("name", CONSTANT)
@settings(max_examples=3, deadline=None, phases=(Phase.generate,))
@given(seen=st.integers(1, T), step=st.integers(1, 40), checkpoints=st.integers(1, 3), data=st.data())
def test_a_state_goes_back(name: str, seen: int, step: int, checkpoints: int, data: Any) -> None:
    """To every token since its first checkpoint, and on from there; the state that it was goes on as well."""
    whole, _ = expected(name)
    with torch.no_grad():
        cuts = list(range(step, seen, step))
        _, state = in_calls(name, cuts, module_of(name).State(checkpoints=checkpoints), last=seen)
        assert len(state.checkpoints) <= checkpoints
        first = state.checkpoints[0]
        back = data.draw(st.integers(0, seen - first))
        earlier = state.rollback(back)
        assert earlier.position == seen - back
        for one in (earlier, state, earlier.at(first)):
            y, after = in_calls(name, [], one, one.position)
            assert difference(y, whole[:, one.position :]) < 1e-10 or one.position == T
            assert after.position == T
        for wrong in (first - 1, seen + 1):
            with pytest.raises(ValueError, match=rf"has tokens {first} to {seen}, got {wrong}: State\(checkpoints=n\)"):
                state.at(wrong)


@pytest.mark.parametrize("name", ["linear_grm", "titans_grm_checkpoint", "swla_ssc", "linear_residual", "delta_none"])
class TestWhatAStateCan:
    def state(self, name: str, last: int = 70) -> Any:
        with torch.no_grad():
            return in_calls(name, [33], last=last)[1]

    def rest(self, name: str, state: Any, **changed: Any) -> torch.Tensor:
        given = part(arguments_of(name), state.position, T) | changed
        with torch.no_grad():
            return module_of(name).op(**given, state=state)

    def test_sequences_of_its_batch_go_on(self, name: str) -> None:
        order = torch.tensor([1, 1, 0])
        given = {n: x if n == "theta" else x[order] for n, x in part(arguments_of(name), 70, T).items()}
        y = self.rest(name, self.state(name).select(order), **given)
        assert difference(y, expected(name)[0][order, 70:]) < 1e-10

    def test_it_is_saved_and_loaded(self, name: str) -> None:
        state, file = self.state(name), io.BytesIO()
        torch.save(state.state_dict(), file)
        file.seek(0)
        loaded = module_of(name).State()
        loaded.load_state_dict(torch.load(file, weights_only=True))
        assert (loaded.position, loaded.checkpoints, loaded.nbytes) == (70, state.checkpoints, state.nbytes)
        assert difference(self.rest(name, loaded), expected(name)[0][:, 70:]) < 1e-10

    def test_a_copy_is_its_own(self, name: str) -> None:
        state = self.state(name)
        copied, again = state.clone(), copy.deepcopy(state)
        for t in torch.utils._pytree.tree_leaves(state):
            t.fill_(math.nan)
        for one in (copied, again):
            assert difference(self.rest(name, one), expected(name)[0][:, 70:]) < 1e-10

    def test_it_is_a_tree_of_tensors(self, name: str) -> None:
        state = self.state(name)
        leaves, tree = torch.utils._pytree.tree_flatten({"state": state})
        assert state.nbytes == sum(t.nbytes for t in leaves)
        again = torch.utils._pytree.tree_unflatten(leaves, tree)["state"]
        assert difference(self.rest(name, again), expected(name)[0][:, 70:]) < 1e-10

    def test_it_is_for_inputs_of_another_type(self, name: str) -> None:
        """What is carried stays in float32 or wider."""
        state = self.state(name).to(torch.bfloat16)
        assert {t.dtype for t in torch.utils._pytree.tree_leaves(state)} <= {torch.bfloat16, torch.float32}
        given = {
            n: [W.bfloat16() for W in x] if n == "theta" else x.bfloat16()
            for n, x in part(arguments_of(name), 70, T).items()
        }
        assert difference(self.rest(name, state, **given), expected(name)[0][:, 70:]) < 0.05

    def test_gradients_end_where_it_is_detached(self, name: str) -> None:
        given = arguments_of(name)
        _, state = in_calls(name, [], last=70)
        y = module_of(name).op(**part(given, 70, T), state=state.detach())
        owed = torch.autograd.grad(y.sin().sum(), [given["k"], given["v"]])
        assert all(d[:, :70].abs().max() == 0 and d[:, 70:].abs().max() > 0 for d in owed)

    def test_room_is_fixed_from_the_beginning(self, name: str) -> None:
        module, given = module_of(name), arguments_of(name)
        state, places = module.State(capacity=96), set()
        with torch.no_grad():
            for t in range(0, 96, 4):
                y, state = module.op(**part(given, t, t + 4), state=state, return_state=True)
                places.add(tuple(x.data_ptr() for x in state._bank.tensors) if hasattr(state, "_bank") else ())
            assert difference(y, expected(name)[0][:, 92:96]) < 1e-10
            assert len(places - {()}) <= 1
            with pytest.raises(ValueError, match="room for 96 tokens"):
                module.op(**part(given, 96, 97), state=state)

    def test_what_is_no_number_reaches_what_follows(self, name: str) -> None:
        module, given = module_of(name), arguments_of(name)
        bad = {n: x if n == "theta" else x.detach().clone() for n, x in part(given, 40, 50).items()}
        bad["v"][0, 3, 1, 2] = math.inf
        with torch.no_grad():
            _, state = in_calls(name, [], last=40)
            y, state = module.op(**bad, state=state, return_state=True)
            assert y[0, :3].isfinite().all() and y[0, 3:, 1].isnan().all() and y[0, :, 0].isfinite().all()
            y = module.op(**part(given, 50, 60), state=state)
        assert y[0, :, 1].isnan().all() and y[0, :, 0].isfinite().all() and y[1].isfinite().all()


@pytest.mark.parametrize("name", ["retnet_none", "mamba2_none", "momentum_delta_none"])
def test_a_matrix_may_begin_as_given(name: str) -> None:
    """As the slots are after 64 tokens: what follows is the same, and so are gradients through them."""
    module, given = module_of(name), arguments_of(name)
    _, state = in_calls(name, [], last=64)
    point = state._points[-1]
    assert point.position == 64
    slots = {name: t.squeeze(2).mT for name, t in zip(module.PARTS, point.parts, strict=True)}
    y = module.op(**part(given, 64, T), state=module.State(slots))
    whole, _ = expected(name)
    assert difference(y, whole[:, 64:]) < 1e-10
    found, owed = (gradients(z, given) for z in (y, module.op(**given)[:, 64:]))
    assert all(difference(found[key], d) < 1e-9 for key, d in owed.items())


def test_a_matrix_may_be_learned() -> None:
    """One for all sequences, as a parameter; where caches are read too."""
    module, given = module_of("swla_grm"), arguments_of("swla_grm")
    M = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    step = torch.randn(M.shape, dtype=M.dtype)
    (d_M,) = torch.autograd.grad(module.op(**given, state=module.State({"M": M})).square().sum(), M)
    with torch.no_grad():
        near = [module.op(**given, state=module.State({"M": M + h * step})).square().sum() for h in (1e-6, -1e-6)]
    assert (d_M * step).sum().item() == pytest.approx((near[0] - near[1]).item() / 2e-6, rel=1e-6)


def test_deep_memories_begin_as_given() -> None:
    """The weights that they are given are those that `theta` would be."""
    module, given = module_of("titans_none"), dict(arguments_of("titans_none"))
    other = [W.detach() * 0.5 for W in given["theta"]]
    y = module.op(**part(given, 0, 30), state=module.State({"M": other}))
    assert torch.equal(y, module.op(**(part(given, 0, 30) | {"theta": other})))


@pytest.mark.parametrize("name", ["gated_delta_grm", "titans_soup", "retnet_none"])
def test_packed_sequences_have_states_of_their_own(name: str) -> None:
    module = module_of(name)
    given = {n: x if n == "theta" else x[:1].detach() for n, x in arguments_of(name).items()}
    lengths = [[5, 0, 40], [30, 7, 0], [1, 1, 1]]
    states, found = None, [[], [], []]
    for call in lengths:
        borders = list(accumulate(call, initial=0))
        y, states = module.op(**part(given, 0, borders[-1]), cu_seqlens=borders, state=states, return_state=True)
        for n, rows in enumerate(y.split(call, 1)):
            found[n].append((rows, part(given, borders[n], borders[n + 1])))
    for n, parts in enumerate(found):
        names = [key for key in given if key != "theta"]
        whole = {key: torch.cat([p[key] for _, p in parts], 1) for key in names}
        theta = {"theta": given["theta"]} if "theta" in given else {}
        y = torch.cat([rows for rows, _ in parts], 1)
        assert states[n].position == y.shape[1]
        assert difference(y, module.op(**whole, **theta)) < 1e-10
    with pytest.raises(ValueError, match="must be a list of 2 states"):
        module.op(**part(given, 0, 4), cu_seqlens=[0, 2, 4], state=states)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"state": {}}, TypeError, "state must be a State of this file, or None, got dict"),
        (
            {"k": lambda x: x.float()},
            ValueError,
            r"holds k as torch.float64 on cpu, got torch.float32.*state.to\(...\)",
        ),
        ({"batch": 1}, ValueError, r"of a batch of 2 and 2 heads, got k \(1, 10, 2, 4\): state.select\(indices\)"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change: dict[str, Any], error: type, message: str) -> None:
    module, given = module_of("gated_delta_grm"), arguments_of("gated_delta_grm")
    _, state = module.op(**part(given, 0, 10), return_state=True)
    rest = part(given, 10, 20)
    if "batch" in change:
        rest = {name: x[:1] for name, x in rest.items()}
    rest |= {name: f(rest[name]) for name, f in change.items() if callable(f)}
    with pytest.raises(error, match=message):
        module.op(**rest, state=change.get("state", state))


def test_a_state_of_another_spec_is_refused() -> None:
    _, state = module_of("retnet_none").op(**part(arguments_of("retnet_none"), 0, 10), return_state=True)
    module, given = module_of("linear_grm"), arguments_of("linear_grm")
    with pytest.raises(ValueError, match="is of another spec"):
        module.op(**given, state=state)
    with pytest.raises(ValueError, match="is of another spec"):
        module.State().load_state_dict(state.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"checkpoints": 0}, "checkpoints must be a whole number from 1, got 0"),
        ({"capacity": 0.5}, "capacity must be a whole number of tokens or None, got 0.5"),
        ({"slots": {"N": torch.zeros(2, 4, 4)}}, "no slot is called 'N': the slots are M"),
        ({"slots": {"M": torch.zeros(2, 3, 4)}}, r"M must be of shape \(H, 4, 4\)"),
    ],
)
def test_a_state_that_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module_of("linear_grm").State(**arguments)


def test_slots_of_other_heads_are_refused() -> None:
    module, given = module_of("linear_grm"), arguments_of("linear_grm")
    with pytest.raises(ValueError, match="do not fit B = 2 and H = 2"):
        module.op(**given, state=module.State({"M": torch.zeros(3, 4, 4)}))


def test_logarithmic_segments_have_no_state() -> None:
    module, spec = run(source(load(shipped()["decay_grm_log"]))), load(shipped()["decay_grm_log"])
    given = inputs(spec, 4)
    layer = module.Layer(d_model=8, heads=1)
    for call in (lambda: module.op(**given, return_state=True), lambda: layer(torch.zeros(1, 2, 8), return_state=True)):
        with pytest.raises(module.UnsupportedError, match=r"need segments.*set segment: \{mode: constant\}"):
            call()


@pytest.mark.parametrize("conv_size", [0, 1, 4])
@pytest.mark.parametrize("spec", ["linear", "many", "titans"])
def test_a_layer_goes_on(spec: str, conv_size: int) -> None:
    module = built(**SPECS[spec])
    layer = module.Layer(conv_size=conv_size, dtype=torch.float64)
    x = torch.randn(2, 40, 10, dtype=torch.float64, requires_grad=True)
    whole = layer(x)
    state, found = module.State(checkpoints=2), []
    for begin, end in pairwise([0, 1, 2, 17, 17, 18, 25, 40]):
        y, state = layer(x[:, begin:end], state=state, return_state=True)
        found.append(y)
    y = torch.cat(found, 1)
    assert difference(y, whole) < 1e-10
    owed, expected = (torch.autograd.grad(z.sin().sum(), [x, *layer.parameters()]) for z in (y, whole))
    assert all(difference(a, b) < 1e-8 for a, b in zip(owed, expected, strict=True))
    again = layer(x[:, state.checkpoints[0] + 1 :], state=state.at(state.checkpoints[0] + 1))
    assert difference(again, whole[:, state.checkpoints[0] + 1 :]) < 1e-10


def test_a_layers_packed_sequences_go_on() -> None:
    module = built(**SPECS["mamba"])
    layer, x = module.Layer(dtype=torch.float64), torch.randn(1, 30, 10, dtype=torch.float64)
    whole = layer(x, cu_seqlens=[0, 12, 30])
    _, states = layer(torch.cat([x[:, :5], x[:, 12:13]], 1), cu_seqlens=[0, 5, 6], return_state=True)
    y = layer(torch.cat([x[:, 5:12], x[:, 13:]], 1), cu_seqlens=[0, 7, 24], state=states)
    assert difference(y, torch.cat([whole[:, 5:12], whole[:, 13:]], 1)) < 1e-10


def test_a_layer_takes_no_state_of_the_operator() -> None:
    module = built(**SPECS["linear"])
    x, given = torch.randn(2, 5, 10), torch.randn(2, 5, 3, 4)
    _, state = module.op(given, given, torch.randn(2, 5, 3, 6), given, return_state=True)
    with pytest.raises(ValueError, match="has nothing to convolve"):
        module.Layer()(x, state=state)
