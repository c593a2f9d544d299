"""The targets' data is whole and plausible."""

from __future__ import annotations

import pickle

import pytest

from mcgen.errors import UnsupportedError
from mcgen.plan.targets import Target, architectures, lookup, targets


@pytest.mark.parametrize("target", targets().values(), ids=lambda target: target.name)
def test_facts_are_plausible(target: Target) -> None:
    assert target.arch in architectures()
    assert 48 * 1024 < target.shared_bytes <= 256 * 1024
    assert target.warp_size * target.max_warps == 1024
    assert target.l2_bytes > 4 << 20 and 500 < target.bandwidth < 20_000
    assert (
        target.peak["fp64"] <= target.peak["fp32"] <= target.peak["tf32"] < target.peak["bf16"] == target.peak["fp16"]
    )
    assert (target.tmem_columns > 0) == (target.arch == "cuda:100")
    assert hash(target) == hash(pickle.loads(pickle.dumps(target)))


def test_every_architecture_has_a_target_of_its_own() -> None:
    assert {"cuda:80", "cuda:90", "cuda:100", "cuda:120", "hip:gfx942", "hip:gfx950"} <= set(architectures())
    assert all(lookup(arch).arch == arch for arch in architectures())


def test_capability_is_what_triton_calls_it() -> None:
    assert (lookup("h100").backend, lookup("h100").capability) == ("cuda", 90)
    assert (lookup("mi300x").backend, lookup("mi300x").capability) == ("hip", "gfx942")


def test_lookup_suggests() -> None:
    assert lookup("H100") is lookup("h100")
    with pytest.raises(UnsupportedError, match="did you mean h100"):
        lookup("h10")
    with pytest.raises(UnsupportedError, match="known: a100"):
        lookup("teapot")
