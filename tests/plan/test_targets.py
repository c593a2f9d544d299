"""The targets' data is whole and plausible, and a GPU at hand finds its own."""

from __future__ import annotations

import pickle

import pytest

from mcgen.errors import UnsupportedError
from mcgen.plan.targets import Target, architectures, for_device, lookup, targets


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


@pytest.mark.parametrize(
    ("name", "capability", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), "h100"),
        ("NVIDIA H200", (9, 0), "h200"),
        ("NVIDIA GH300", (9, 0), "h100"),
        ("NVIDIA A100-SXM4-40GB", (8, 0), "a100"),
        ("NVIDIA L40S", (8, 9), "rtx4090"),
        ("NVIDIA Thor", (11, 0), "b200"),
        ("NVIDIA RTX PRO 6000", (12, 1), "rtx5090"),
        ("Tesla V100", (7, 0), "a100"),
        ("AMD Instinct MI300X", "gfx942:sramecc+:xnack-", "mi300x"),
        ("AMD Instinct MI325X", "gfx942", "mi300x"),
    ],
)
def test_a_device_finds_its_target(name: str, capability: tuple[int, int] | str, expected: str) -> None:
    assert for_device(name, capability).name == expected


def test_an_unknown_amd_architecture_has_none() -> None:
    with pytest.raises(UnsupportedError, match="gfx1100"):
        for_device("AMD Radeon RX 7900", "gfx1100")
