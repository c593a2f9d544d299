"""Building a spec leaves the interpreter as it was."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from mcgen import pipeline
from mcgen.spec import load
from mcgen.spec.shipped import find


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    yield
    gc.enable()


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_garbage_is_collected_after_a_build_as_before(
    enabled: bool, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def module_source(*_: object) -> str:
        assert not gc.isenabled()
        if fails:
            raise ZeroDivisionError
        return ""

    monkeypatch.setattr(pipeline, "module_source", module_source)
    (gc.enable if enabled else gc.disable)()
    try:
        pipeline.source(load(find("linear_grm")))
    except ZeroDivisionError:
        assert fails
    assert gc.isenabled() == enabled
