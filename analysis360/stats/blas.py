"""Two routines of scipy's BLAS, which torch does not offer or has slower, for matrices on a CPU.

`dsyrk` finds half of a symmetric product; torch has only the whole product, or strips of it. The
functions are those that scipy exports to compiled code: called so, they let go of the interpreter's
lock, and several workers can be inside at once. OpenBLAS would use all cores in each of those
calls; it is told not to. Where it cannot be told (another BLAS, or a system whose loader does not
look into dependencies) nothing here is used.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["factors", "held", "rank_update"]

_POINTER = ctypes.c_void_p


def _exported(module: Any, name: str, count: int) -> Callable[..., None]:
    """A function of scipy for compiled code; all its arguments are addresses."""
    capsule = module.__pyx_capi__[name]
    name_of, pointer_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer_of.restype, pointer_of.argtypes = _POINTER, [ctypes.py_object, ctypes.c_char_p]
    address = pointer_of(capsule, name_of(capsule))
    made: Callable[..., None] = ctypes.CFUNCTYPE(None, *[_POINTER] * count)(address)
    return made


@cache
def _routines() -> tuple[Callable[..., None], Callable[..., None], Any, Any] | None:
    """`dsyrk`, `dpotrf`, and what tells and sets the number of threads; None without those."""
    from scipy.linalg import cython_blas, cython_lapack

    library = ctypes.CDLL(cython_blas.__file__)  # symbols of what it depends on are found too
    try:
        told, tell = library.scipy_openblas_get_num_threads, library.scipy_openblas_set_num_threads
    except AttributeError:
        return None
    return _exported(cython_blas, "dsyrk", 10), _exported(cython_lapack, "dpotrf", 5), told, tell


_LOCK = threading.Lock()
_inside, _before = 0, 1


@contextmanager
def _one_thread() -> Iterator[tuple[Callable[..., None], Callable[..., None]]]:
    """The routines on one thread; the process's number is put back by the last one to leave."""
    global _inside, _before
    routines = _routines()
    assert routines is not None
    *both, told, tell = routines
    with _LOCK:
        if not _inside:
            _before = int(told())
            tell(1)
        _inside += 1
    try:
        yield both[0], both[1]
    finally:
        with _LOCK:
            _inside -= 1
            if not _inside:
                tell(_before)


def held(square: torch.Tensor) -> bool:
    """Whether it is where these routines work."""
    return square.device.type == "cpu" and _routines() is not None


def _number(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))


def rank_update(square: torch.Tensor, slab: torch.Tensor) -> None:
    """Add ``slab @ slab.T`` to the lower triangle of a contiguous float64 matrix.

    Either the rows or the columns of `slab` have to be contiguous.
    """
    side, depth = slab.shape
    if square.shape != (side, side) or 1 not in slab.stride():  # it would write anywhere
        raise ValueError(f"{tuple(slab.shape)} does not fit {tuple(square.shape)}")
    one = ctypes.byref(ctypes.c_double(1))
    by_rows = slab.stride(1) == 1  # stored by columns, as BLAS sees it, this is the transpose
    apart = max(1, slab.stride(0 if by_rows else 1))
    with _one_thread() as (dsyrk, _):
        dsyrk(
            b"U", b"T" if by_rows else b"N", _number(side), _number(depth), one, slab.data_ptr(),
            _number(apart), one, square.data_ptr(), _number(side),
        )  # fmt: skip


def factors(square: torch.Tensor) -> bool:
    """Whether a contiguous symmetric float64 matrix has a Cholesky factor, which overwrites it."""
    info, side = ctypes.c_int(0), _number(len(square))
    with _one_thread() as (_, dpotrf):
        dpotrf(b"U", side, square.data_ptr(), side, ctypes.byref(info))
    return info.value == 0
