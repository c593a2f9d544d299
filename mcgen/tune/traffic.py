"""Counting kernel launches and the bytes of the tensors handed to them: a bound of memory traffic that needs no GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock


@dataclass(frozen=True)
class Launch:
    """One kernel launch; `bytes` is the size of the tensors handed to it, each counted once."""

    name: str
    bytes: int


def count(call: Callable[[], Any], *, run: bool = False) -> list[Launch]:
    """The Triton launches that `call` makes, in order.

    Launches are intercepted, compiled and interpreted ones alike, and only run where `run` says so: otherwise what they
    would write stays unwritten, and `call` must not branch on it. Bytes are of elements, `numel * element_size`: a view
    counts for what it shows, not for its storage.
    """
    launches: list[Launch] = []
    with _intercepted(launches, run):
        call()
    return launches


def total_bytes(launches: Iterable[Launch]) -> int:
    """The bytes of all the launches together."""
    return sum(launch.bytes for launch in launches)


@contextlib.contextmanager
def _intercepted(launches: list[Launch], run: bool) -> Iterator[None]:
    from triton import JITFunction
    from triton.runtime.interpreter import InterpretedFunction

    with contextlib.ExitStack() as stack:
        for kind in (JITFunction, InterpretedFunction):
            stack.enter_context(mock.patch.object(kind, "run", _recorder(kind.run, launches, run)))
        yield


def _recorder(original: Callable[..., Any], launches: list[Launch], run: bool) -> Callable[..., Any]:
    def recorded(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        if not warmup:
            launches.append(Launch(self.__name__, _bytes([*args, *kwargs.values()])))
        return original(self, *args, grid=grid, warmup=warmup, **kwargs) if run or warmup else None

    return recorded


def _bytes(arguments: Iterable[Any]) -> int:
    distinct = {(t.data_ptr(), t.dtype, tuple(t.shape), t.stride()): t for t in _tensors(arguments)}
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())


def _tensors(arguments: Iterable[Any]) -> Iterator[Any]:
    """The torch tensors among the arguments, those in tuples and under tensor descriptors included."""
    import torch

    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(argument, tuple | list):
            yield from _tensors(argument)
        elif isinstance(base := getattr(argument, "base", None), torch.Tensor):
            yield base
