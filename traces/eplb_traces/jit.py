"""Compiles numba kernels, caches their machine code and announces a compilation.

Kernels live in modules of their own, `*kernel*.py`, that decorate with `njit` at module level. numba takes a good part
of a second to import and a kernel compiles where it is decorated, so such a module is imported inside the function that
needs it, never at the top of a module that `import eplb_traces` reaches.

numba compares a cached kernel with its own file only. Here it is compared with all kernel files of its package,
and with this file, so a kernel may call helpers of other files.
"""

import hashlib
import itertools
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar, cast, final

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


@dataclass
class _Preparing:
    """Seconds that this process has spent on compiling kernels or loading them from the cache."""

    seconds: float = 0.0


_preparing = _Preparing()


@final
class WorkClock:
    """Measures seconds without those that kernels take to be compiled or loaded, which come once."""

    def __init__(self) -> None:
        self._start, self._preparing = time.perf_counter(), _preparing.seconds

    def seconds(self) -> float:
        """Seconds since the clock was made."""
        return max(0.0, time.perf_counter() - self._start - (_preparing.seconds - self._preparing))


def njit(*signatures: str) -> Callable[[Callable[_P, _R_co]], Kernel[_P, _R_co]]:
    """Decorate an entry point: a function that Python calls, compiled now, for these signatures alone, without the GIL.

    The machine code is kept on disk beside the module, or in the user's cache folder where that is not writable. Where
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
        start = time.perf_counter()
        import numba
        from numba.core import event

        class Announcer(event.Listener):  # type: ignore[misc, unused-ignore]  # numba is untyped
            """numba starts this event only for what its cache does not hold."""

            def on_start(self, event: object) -> None:
                _announce_compilation()

            def on_end(self, event: object) -> None:
                pass

        compiled = numba.njit(nogil=True)(function)
        try:
            compiled.enable_caching()
            compiled._cache._cache_file._source_stamp = _source_stamp(Path(function.__code__.co_filename))
        except RuntimeError as error:
            if "cannot cache function" not in str(error):
                raise
        with event.install_listener("numba:compile", Announcer()):
            _number_functions_apart()
            for signature in signatures:
                compiled.compile(signature)
        compiled.disable_compile()
        _preparing.seconds += time.perf_counter() - start
        return cast(Kernel[_P, _R_co], compiled)

    return decorate


def helper(function: Callable[_P, _R_co]) -> Kernel[_P, _R_co]:
    """Decorate a function that kernels call: it is compiled and cached as part of each entry point, types inferred."""
    import numba

    return cast(Kernel[_P, _R_co], numba.njit(nogil=True)(function))


def _number_functions_apart() -> None:
    """Let numba number the functions that it compiles next from a random number on.

    The number is what tells apart functions of one name in machine code, as the quicksort of values from that of
    indices. numba counts from 1 in every process: kernels that two processes have cached would share names, and a third
    process, which loads both, would call one function for the other.
    """
    from numba.core.bytecode import FunctionIdentity

    FunctionIdentity._unique_ids = itertools.count(secrets.randbits(48))


@cache
def _source_stamp(path: Path) -> str:
    """SHA-256 of a file, of this one and of all kernel files of the package that it belongs to, but those of Triton."""
    package = path.parent
    while (package.parent / "__init__.py").exists():
        package = package.parent
    kernels = package.rglob("*kernel*.py") if (package / "__init__.py").exists() else ()
    files = {path, Path(__file__), *kernels}
    digest = hashlib.sha256()
    for content in (file.read_bytes() for file in sorted(files)):
        if b"import triton" not in content:
            digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


@cache
def _announce_compilation() -> None:
    """Say once a process why it pauses."""
    _logger.info("compiling kernels (once for this installation, up to a minute)")
