"""The Triton that is installed: whether there is one, and whether it is new enough for what it is asked for."""

from __future__ import annotations

from importlib.util import find_spec

from mcgen.errors import UnsupportedError

COMPILES, LAUNCHES = (3, 6), (3, 2)
"""The oldest versions: whose compiler and interpreter are asked here, and that launch what generated files hold."""


def require_triton(doing: str, least: tuple[int, int] = COMPILES) -> None:
    """Nothing, where there is a Triton that will do.

    Raises:
        UnsupportedError: there is none, or an older one; the message says what to install.
    """
    wanted = f"{least[0]}.{least[1]}"
    if find_spec("triton") is None:
        raise UnsupportedError(f"{doing} needs Triton, which is not installed: pip install 'triton>={wanted}'")
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) < least:
        found = f"{doing} needs Triton {wanted} or later, and {triton.__version__} is installed"
        raise UnsupportedError(f"{found}: pip install 'triton>={wanted}'")
