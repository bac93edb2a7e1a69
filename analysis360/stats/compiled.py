"""Compiled twins of the accumulators, where numba is installed.

The array form in torch stays the definition: it runs on any device and needs no compiler. A twin
gives the same fields from the stored bytes of CPU tensors, at the speed of the memory, and a test
holds each against its torch form. An accumulator that a user registers under a name of the package
has no twin: functions are compared, not names.
"""

from __future__ import annotations

import importlib.util
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis360.errors import StatisticError
from analysis360.stats import adam, bins, change, moments
from analysis360.stats.base import Accumulator, Measure, Values, accumulators, merge

if TYPE_CHECKING:
    import torch

__all__ = ["SWITCH", "available", "run", "supports"]

SWITCH = "ANALYSIS360_COMPILED"
"""Environment variable; ``0`` turns the compiled twins off."""

PIECE = 1 << 18
"""Elements that are converted at a time where a dtype has no loop of its own."""

_SUMS = {
    moments.norm_sums: ("NORM", ("count", "total", "square_sum", "max_abs_value")),
    moments.moment_sums: ("MOMENTS", ("count", "mean", "m2", "m3", "m4")),
    moments.value_counts: ("VALUES", ("count", "zeros", "nonfinite_count")),
    change.difference_sums: ("DIFFERENCE", ("diff_sq", "cross", "square_sum", "reference_sq")),
    change.change_counts: ("CHANGE", ("unchanged", "count", "diff_max")),
}
"""Accumulator → what it asks of the loop, and which of the loop's results are its fields."""

_ADAM = ("count", "m_sq", "v_sum", "u_sq", "below_eps", "below_eps10", "violations", "negative_v",
         "u_max")  # fmt: skip

_PAIR, _MOMENTS = ("tensor", "reference"), ("exp_avg", "exp_avg_sq")

_kept = threading.local()


@cache
def _installed() -> bool:
    return importlib.util.find_spec("numba") is not None


def available() -> bool:
    """Whether numba is there and not turned off by the environment variable `SWITCH`."""
    return os.environ.get(SWITCH, "1") != "0" and _installed()


def supports(measure: Measure) -> bool:
    """Whether `run` can take this measure: one of the package's own, with a twin.

    Examples
    --------
    >>> from analysis360.stats import wholes
    >>> supports(wholes["largest_singular_value"])
    False
    """
    own = measure.function in (*_SUMS, adam.adam_sums, bins.magnitude_bins)
    return own and available()


def run(
    measures: Sequence[Accumulator],
    arrays: Mapping[str, torch.Tensor],
    scalars: Mapping[str, float],
) -> list[Values]:
    """Results of several accumulators on the same arrays, each byte read once.

    Parameters
    ----------
    measures : sequence of Accumulator
        Supported ones, all of ``tensor`` (and ``reference``), or all of the Adam moments.
    arrays : mapping of str to torch.Tensor, each of shape (n,) with n ≥ 1
        By parameter name: contiguous, on the CPU, in the stored dtype. Those that no measure names
        are not read.
    scalars : mapping of str to float
        The scalars that the measures name.

    Returns
    -------
    list of ndarray
        One for each measure: float64, one element per field. Parts of a tensor merge by
        `analysis360.stats.merge`.

    Raises
    ------
    StatisticError
        If a measure has no twin, or arrays are missing or do not fit each other.

    Notes
    -----
    Any number of threads may call it at once: the interpreter's lock is not held. The first call
    for a dtype compiles, or loads what an earlier process compiled.
    """
    unknown = [measure.name for measure in measures if not supports(measure)]
    if unknown:
        raise StatisticError(f"no compiled twin of {', '.join(unknown)}; use the torch form")
    if not measures:
        return []
    named = {name for measure in measures for name in measure.inputs}
    if named & set(_PAIR) and named & set(_MOMENTS):
        raise StatisticError("moments are measured in a call of their own")
    given = [arrays.get(name) for name in (*_PAIR, *_MOMENTS) if name in named]
    fitting = [a for a in given if a is not None and a.shape == (a.numel(),) and a.numel()]
    if len(fitting) < len(given) or len({a.numel() for a in fitting}) != 1:
        raise StatisticError(
            f"{', '.join(m.name for m in measures)}: one-dimensional arrays of one length are "
            f"needed; given are {', '.join(f'{k} {list(v.shape)}' for k, v in arrays.items())}"
        )
    parts = [_run(measures, piece, scalars) for piece in _pieces(fitting)]
    if len(parts) == 1:
        return parts[0]
    start = np.zeros(1, dtype=np.intp)
    with np.errstate(all="ignore"):
        return [merge(m.fields, np.stack(p), start)[0] for m, p in zip(measures, zip(*parts))]


def _run(
    measures: Sequence[Accumulator], arrays: Sequence[Values], scalars: Mapping[str, float]
) -> list[Values]:
    """Arrays of one dtype that has a loop."""
    if measures[0].function is adam.adam_sums:
        return [_adam_sums(arrays, scalars)] * len(measures)
    counted = [m for m in measures if m.function is bins.magnitude_bins]
    summed = [m for m in measures if m.function is not bins.magnitude_bins]
    found = iter(_sums(summed, arrays) if summed else ())
    return [_bins(arrays[0]) if measure in counted else next(found) for measure in measures]


def _bins(array: Values) -> Values:
    from analysis360.stats import kernels

    words = array.view(f"i{array.itemsize}")
    bias, shift = (1023, 49) if array.itemsize == 8 else (127, 20 if array.itemsize == 4 else 4)
    out = np.zeros(bins.BINS)
    first = (bins.LOW + bias) * bins.PER_OCTAVE
    kernels.count_bins(words, words.dtype.type(np.iinfo(words.dtype).max), shift, first, out)
    return out


def _sums(measures: Sequence[Accumulator], arrays: Sequence[Values]) -> list[Values]:
    from analysis360.stats import kernels

    loops: dict[str, Any] = {
        "int16": kernels.sums_bfloat16, "float32": kernels.sums_float32,
        "float64": kernels.sums_float64,
    }  # fmt: skip
    asked = 0
    for measure in measures:
        asked |= getattr(kernels, _SUMS[measure.function][0])
    out = np.zeros(len(kernels.SUMS))
    loops[arrays[0].dtype.name](arrays[0], arrays[-1], asked, out)
    named = dict(zip(kernels.SUMS, out), count=len(arrays[0]))
    return [np.array([named[f] for f in _SUMS[m.function][1]], dtype=float) for m in measures]


def _adam_sums(arrays: Sequence[Values], scalars: Mapping[str, float]) -> Values:
    from analysis360.stats import kernels

    step, beta1, beta2, eps = (scalars[name] for name in ("step", "beta1", "beta2", "eps"))
    if not adam.known(step, beta1, beta2, eps):
        return np.full(len(_ADAM), math.nan)
    loops: dict[str, Any] = {
        "int16": kernels.adam_bfloat16, "float32": kernels.adam_float32,
        "float64": kernels.adam_float64,
    }  # fmt: skip
    out = np.zeros(len(kernels.ADAM))
    loops[arrays[0].dtype.name](*arrays, *adam.constants(step, beta1, beta2), float(eps), out)
    found = dict(zip(kernels.ADAM, out), count=len(arrays[0]))
    return np.array([found[field] for field in _ADAM], dtype=float)


def _pieces(arrays: Sequence[torch.Tensor]) -> Iterator[list[Values]]:
    """The arrays as numpy's, in one dtype that has a loop: whole, or piece by piece if converted.

    Bfloat16 goes as int16. What lies at an uneven address is copied.
    """
    import torch

    dtypes = {array.dtype for array in arrays}
    direct = len(dtypes) == 1 and dtypes <= {torch.bfloat16, torch.float32, torch.float64}
    if direct and all(
        a.is_contiguous() and not a.data_ptr() % max(4, a.element_size()) for a in arrays
    ):
        yield [_numpy(array) for array in arrays]
        return
    wide = torch.float64 if torch.float64 in dtypes else torch.float32
    common = dtypes.pop() if direct else wide
    length = arrays[0].numel()
    for start in range(0, length, PIECE):
        stop = min(start + PIECE, length)
        yield [
            _numpy(_room(i, common)[: stop - start].copy_(array[start:stop]))
            for i, array in enumerate(arrays)
        ]


def _numpy(array: torch.Tensor) -> Values:
    import torch

    bits = array.view(torch.int16) if array.dtype == torch.bfloat16 else array
    values: Values = bits.numpy()
    return values


def _room(number: int, dtype: torch.dtype) -> torch.Tensor:
    """Memory for a converted piece, kept by each thread: at most 2 MiB for each of two arrays."""
    import torch

    rooms: dict[int, torch.Tensor] = _kept.__dict__.setdefault("rooms", {})
    if number not in rooms:
        rooms[number] = torch.empty(8 * PIECE, dtype=torch.uint8)
    return rooms[number][: PIECE * dtype.itemsize].view(dtype)


for _function in (*_SUMS, adam.adam_sums):  # every field has its source
    _fields = _SUMS[_function][1] if _function in _SUMS else _ADAM
    assert len(accumulators[_function.__name__].fields) == len(_fields)
