"""Knows how a numba kernel is compiled, cached and announced; knows no kernel.

Kernels live in modules of their own that decorate with `njit` at module level. numba costs a good part of a second to
import and a kernel compiles where it is decorated, so such a module is imported inside the function that needs it,
never at the top of a module that `import eplb_traces` reaches.

numba looks only at a kernel's own file to see whether its cache is stale: a kernel may call kernels of its own file,
not of another one.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import ParamSpec, Protocol, TypeVar, cast

_P = ParamSpec("_P")
_R_co = TypeVar("_R_co", covariant=True)

_logger = logging.getLogger("eplb")


class Kernel(Protocol[_P, _R_co]):
    """A compiled function: called like the Python function it was made of, which stays reachable."""

    @property
    def py_func(self) -> Callable[_P, _R_co]:
        """The plain Python function: the oracle of the compiled one."""
        ...

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R_co:
        """Run the compiled function."""
        ...


def njit(*signatures: str) -> Callable[[Callable[_P, _R_co]], Kernel[_P, _R_co]]:
    """Decorate a function to be compiled now, for these signatures and no others, without the GIL.

    The machine code is kept on disk beside the module, or in the user's cache folder where that is not writable; where
    neither is, every process compiles anew.

    Parameters
    ----------
    signatures
        numba signatures, return type first: ``"float64(float64[:, ::1], int64)"``. At least one. Calls that fit none
        of them raise a TypeError. An argument that may be a read-only array, as the fields of our frozen types are, is
        ``Array(float64, 2, 'C', readonly=True)``; that takes writeable arrays as well.
    """
    if not signatures:
        raise ValueError("njit() without a signature: expected at least one")

    def decorate(function: Callable[_P, _R_co]) -> Kernel[_P, _R_co]:
        import numba
        from numba.core import event

        class Announcer(event.Listener):  # type: ignore[misc, unused-ignore]  # numba is untyped
            """numba starts this event only for what its cache does not hold."""

            def on_start(self, event: object) -> None:
                _announce_compilation()

            def on_end(self, event: object) -> None:
                pass

        with event.install_listener("numba:compile", Announcer()):
            try:
                compiled = numba.njit(list(signatures), nogil=True, cache=True)(function)
            except RuntimeError as error:
                if "cannot cache function" not in str(error):
                    raise
                compiled = numba.njit(list(signatures), nogil=True, cache=False)(function)
        return cast(Kernel[_P, _R_co], compiled)

    return decorate


@cache
def _announce_compilation() -> None:
    """Say once a process why it pauses."""
    _logger.info("compiling kernels (once for this installation, a few seconds)")
