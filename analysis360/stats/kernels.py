"""Loops for numba, the compiled twins of the accumulators; `compiled` says when they are used.

Arrays come as they are stored and go through the core's first cache in chunks: a chunk is widened
once and everything asked for is taken from it. Arithmetic is float64. A loop sums two halves side
by side, since each sum waits for itself; extrema are taken on the bits of the magnitudes, as
integers, where a NaN is larger than everything and vector instructions exist. All in one file:
the compiler's cache on disk looks at the date of this file only.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

njit: Any = None  # the module can be read without numba, not run
with contextlib.suppress(ImportError):
    import numba

    njit = numba.njit

__all__ = [
    "ADAM", "CHANGE", "DIFFERENCE", "MOMENTS", "NORM", "SUMS", "VALUES", "adam_bfloat16",
    "adam_float32", "adam_float64", "count_bins", "sums_bfloat16", "sums_float32", "sums_float64",
]  # fmt: skip

CHUNK = 2048
"""Elements that are taken at a time: two float32 arrays and their difference fill 24 KiB."""

NORM, MOMENTS, VALUES, DIFFERENCE, CHANGE = 1, 2, 4, 8, 16
"""What is asked of `sums_float32` and its like, added up."""

LONG = 32
"""Added for float64, whose sums of a chunk are not exact: the mean is taken twice."""

SUMS = (
    "total", "square_sum", "max_abs_value", "mean", "m2", "m3", "m4", "zeros",
    "nonfinite_count", "diff_sq", "cross", "reference_sq", "unchanged", "diff_max",
)  # fmt: skip
"""What they return, in order."""

ADAM = ("m_sq", "v_sum", "u_sq", "below_eps", "below_eps10", "violations", "negative_v", "u_max")
"""What `adam_float32` and its like return, in order."""

SHIFT, HIGH = np.int32(16), np.int32(-0x10000)
MASK16, INF16 = np.uint16(0x7FFF), np.uint16(0x7F80)  # of bfloat16
MASK32, INF32 = np.int32(0x7FFFFFFF), np.int32(0x7F800000)
MASK64, INF64 = np.int64(0x7FFFFFFFFFFFFFFF), np.int64(0x7FF0000000000000)

Function = TypeVar("Function", bound=Callable[..., Any])
Array = Any


def _jit(function: Function) -> Function:
    """Compile at the first call, without the interpreter's lock; kept on disk where that can be.

    Sums may be reordered. NaN and infinities keep their meaning: neither `nnan` nor `ninf`.
    """
    if njit is None:
        return function
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        compiled: Function = njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to keep it in
        compiled = njit(**options)(function)
    return compiled


@_jit
def _low(word: Any) -> float:
    """The lower of two bfloat16 that lie in an int32."""
    return np.float64(np.int32(word << SHIFT).view(np.float32))


@_jit
def _high(word: Any) -> float:
    """The higher one."""
    return np.float64(np.int32(word & HIGH).view(np.float32))


@_jit
def _widen(stored: Array, bits: Array) -> None:
    """Bits of bfloat16 to those of float32: first every other one, then those between.

    So the vector instructions need no shuffling; no sum depends on the order.
    """
    half = len(stored) // 2
    words = stored[: 2 * half].view(np.int32)
    low, high = bits[:half], bits[half : 2 * half]
    for i in range(half):
        low[i] = words[i] << SHIFT
        high[i] = words[i] & HIGH
    if 2 * half < len(stored):
        bits[2 * half] = np.int32(stored[2 * half]) << SHIFT


@_jit
def _pair_words(x: Array, y: Array) -> tuple[float, float, float, float, float]:
    """`_pair` of bfloat16 as stored: nothing is written, the memory streams in."""
    half = len(x) // 2
    left, right = x[: 2 * half].view(np.int32), y[: 2 * half].view(np.int32)
    s0 = s1 = s2 = s3 = s4 = t0 = t1 = t2 = t3 = t4 = 0.0
    for i in range(half):
        a, b = _low(left[i]), _low(right[i])
        d = a - b
        s0 += a
        s1 += a * a
        s2 += b * b
        s3 += d * d
        s4 += d * (a + b)
        a, b = _high(left[i]), _high(right[i])
        d = a - b
        t0 += a
        t1 += a * a
        t2 += b * b
        t3 += d * d
        t4 += d * (a + b)
    if 2 * half < len(x):
        a, b = _low(np.int32(x[2 * half])), _low(np.int32(y[2 * half]))
        d = a - b
        s0 += a
        s1 += a * a
        s2 += b * b
        s3 += d * d
        s4 += d * (a + b)
    return s0 + t0, s1 + t1, s2 + t2, s3 + t3, s4 + t4


@_jit
def _alone(x: Array) -> tuple[float, float]:
    """Σx, Σx²."""
    half = len(x) // 2
    left, right = x[:half], x[half : 2 * half]
    s0 = s1 = t0 = t1 = 0.0
    for i in range(half):
        a = np.float64(left[i])
        s0 += a
        s1 += a * a
        a = np.float64(right[i])
        t0 += a
        t1 += a * a
    if 2 * half < len(x):
        a = np.float64(x[2 * half])
        s0 += a
        s1 += a * a
    return s0 + t0, s1 + t1


@_jit
def _pair(x: Array, y: Array) -> tuple[float, float, float, float, float]:
    """Σx, Σx², Σy², Σd², Σd(x+y) with d = x − y."""
    half = len(x) // 2
    x0, x1, y0, y1 = x[:half], x[half : 2 * half], y[:half], y[half : 2 * half]
    s0 = s1 = s2 = s3 = s4 = t0 = t1 = t2 = t3 = t4 = 0.0
    for i in range(half):
        a, b = np.float64(x0[i]), np.float64(y0[i])
        d = a - b
        s0 += a
        s1 += a * a
        s2 += b * b
        s3 += d * d
        s4 += d * (a + b)
        a, b = np.float64(x1[i]), np.float64(y1[i])
        d = a - b
        t0 += a
        t1 += a * a
        t2 += b * b
        t3 += d * d
        t4 += d * (a + b)
    if 2 * half < len(x):
        a, b = np.float64(x[2 * half]), np.float64(y[2 * half])
        d = a - b
        s0 += a
        s1 += a * a
        s2 += b * b
        s3 += d * d
        s4 += d * (a + b)
    return s0 + t0, s1 + t1, s2 + t2, s3 + t3, s4 + t4


@_jit
def _alone_powers(x: Array) -> tuple[float, float, float, float]:
    """Σx, Σx², Σx³, Σx⁴."""
    half = len(x) // 2
    left, right = x[:half], x[half : 2 * half]
    s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = 0.0
    for i in range(half):
        a = np.float64(left[i])
        e = a * a
        s0 += a
        s1 += e
        s2 += e * a
        s3 += e * e
        a = np.float64(right[i])
        e = a * a
        t0 += a
        t1 += e
        t2 += e * a
        t3 += e * e
    if 2 * half < len(x):
        a = np.float64(x[2 * half])
        e = a * a
        s0 += a
        s1 += e
        s2 += e * a
        s3 += e * e
    return s0 + t0, s1 + t1, s2 + t2, s3 + t3


@_jit
def _pair_powers(x: Array, y: Array) -> tuple[float, float, float, float, float, float, float]:
    """`_alone_powers` and Σy², Σd², Σd(x+y); so many sums need no second half beside them."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = 0.0
    for i in range(len(x)):
        a, b = np.float64(x[i]), np.float64(y[i])
        d, e = a - b, a * a
        s0 += a
        s1 += e
        s2 += e * a
        s3 += e * e
        s4 += b * b
        s5 += d * d
        s6 += d * (a + b)
    return s0, s1, s2, s3, s4, s5, s6


@_jit
def _deviation(x: Array, mean: float) -> float:
    """Σ(x − mean)."""
    found = 0.0
    for i in range(len(x)):
        found += np.float64(x[i]) - mean
    return found


@_jit
def _central(x: Array, mean: float) -> tuple[float, float, float]:
    """Σd², Σd³, Σd⁴ with d = x − mean."""
    half = len(x) // 2
    left, right = x[:half], x[half : 2 * half]
    s2 = s3 = s4 = t2 = t3 = t4 = 0.0
    for i in range(half):
        d = np.float64(left[i]) - mean
        e = d * d
        s2 += e
        s3 += e * d
        s4 += e * e
        d = np.float64(right[i]) - mean
        e = d * d
        t2 += e
        t3 += e * d
        t4 += e * e
    if 2 * half < len(x):
        d = np.float64(x[2 * half]) - mean
        e = d * d
        s2 += e
        s3 += e * d
        s4 += e * e
    return s2 + t2, s3 + t3, s4 + t4


@_jit
def _largest16(bits: Array) -> Any:
    """Largest magnitude of bfloat16, as bits."""
    found = np.uint16(0)
    for i in range(len(bits)):
        found = max(found, np.uint16(bits[i] & MASK16))
    return found


@_jit
def _largest32(bits: Array) -> Any:
    """Largest magnitude, as bits."""
    found = np.int32(0)
    for i in range(len(bits)):
        found = max(found, np.int32(bits[i] & MASK32))
    return found


@_jit
def _largest64(bits: Array) -> Any:
    """Largest magnitude, as bits."""
    found = np.int64(0)
    for i in range(len(bits)):
        found = max(found, bits[i] & MASK64)
    return found


@_jit
def _nonfinite(x: Array) -> int:
    """Count of NaN and infinities."""
    count = 0
    for i in range(len(x)):
        if not math.isfinite(x[i]):
            count += 1
    return count


@_jit
def _zeros(x: Array) -> Any:
    """Count of zeros; in 32 bits, which is eight at a time."""
    count = np.int32(0)
    for i in range(len(x)):
        count = np.int32(count + np.int32(x[i] == 0))
    return count


@_jit
def _subtract(x: Array, y: Array, d: Array) -> Any:
    """Write x − y; return how many elements are equal."""
    count = np.int32(0)
    for i in range(len(x)):
        d[i] = x[i] - y[i]
        count = np.int32(count + np.int32(x[i] == y[i]))
    return count


@_jit
def _largest_difference(x: Array, y: Array) -> float:
    """Largest |x − y| in float64, one by one; NaN if there is one."""
    found = 0.0
    for i in range(len(x)):
        d = abs(np.float64(x[i]) - np.float64(y[i]))
        if math.isnan(d):
            return d
        found = max(found, d)
    return found


@_jit
def _sums(x: Array, y: Array, before: int, asked: int, out: Array) -> None:
    """Add the plain sums of a chunk, and its central moments to those of `before` elements."""
    total = square = cube = fourth = 0.0
    if asked & DIFFERENCE:
        if asked & MOMENTS:
            total, square, cube, fourth, other, apart, cross = _pair_powers(x, y)
        else:
            total, square, other, apart, cross = _pair(x, y)
        out[9] += apart
        out[10] += cross
        out[11] += other
    elif asked & MOMENTS:
        total, square, cube, fourth = _alone_powers(x)
    elif asked & NORM:
        total, square = _alone(x)
    out[0] += total
    out[1] += square
    if asked & MOMENTS:
        _moments(x, total, square, cube, fourth, before, asked, out)


@_jit
def _moments(
    x: Array, total: float, square: float, cube: float, fourth: float,
    before: int, asked: int, out: Array,
) -> None:  # fmt: skip
    """Add the central moments of a chunk, about its own mean, to those of `before` elements.

    Where the mean is small beside the spread they are had from sums of powers without losing
    digits; else, as for gains near 1, the chunk is centred first. They merge by Pébay
    (SAND2008-6212).
    """
    n = len(x)
    mean = total / n
    if asked & LONG:
        mean += _deviation(x, mean) / n
    if n * mean * mean < 0.25 * square and not asked & LONG:
        m2 = square - n * mean * mean
        m3 = cube - 3 * mean * square + 2 * n * mean * mean * mean
        m4 = (
            fourth - 4 * mean * cube + 6 * mean * mean * square
            - 3 * n * mean * mean * mean * mean
        )  # fmt: skip
    else:
        m2, m3, m4 = _central(x, mean)
    if not before:
        out[3], out[4], out[5], out[6] = mean, m2, m3, m4
        return
    gap = mean - out[3]
    a, b = before / (before + n), n / (before + n)  # shares
    term = gap * gap * a * n
    out[6] += (
        m4 + term * gap * gap * (a * a - a * b + b * b)
        + 6 * gap * gap * (a * a * m2 + b * b * out[4]) + 4 * gap * (a * m3 - b * out[5])
    )  # fmt: skip
    out[5] += m3 + term * gap * (a - b) + 3 * gap * (a * m2 - b * out[4])
    out[4] += m2 + term
    out[3] += gap * b


@_jit
def _values(x: Array, largest: float, asked: int, out: Array) -> None:
    """Add counts of a chunk whose largest magnitude is known."""
    out[2] = _larger(out[2], largest)
    if asked & VALUES:
        out[7] += _zeros(x)
        if not math.isfinite(largest):
            out[8] += _nonfinite(x)


@_jit
def _change32(x: Array, y: Array, d: Array, out: Array) -> None:
    """Add what changed in a chunk; `d` is room for the difference."""
    out[12] += _subtract(x, y, d)
    bits = d.view(np.int32)
    bits[0] = _largest32(bits)
    if bits[0] >= INF32:  # NaN, infinite, or a difference too large for float32
        out[13] = _larger(out[13], _largest_difference(x, y))
    else:
        out[13] = _larger(out[13], np.float64(d[0]))


@_jit
def _larger(one: float, other: float) -> float:
    """The larger; NaN if either is."""
    return one if one > other or math.isnan(one) else other


@_jit
def sums_bfloat16(x: Array, y: Array, asked: int, out: Array) -> None:
    """`sums_float32` of bfloat16, given as int16 at addresses that are multiples of 4."""
    a, b = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    d = np.empty(CHUNK, np.float32)
    as_stored = asked & DIFFERENCE and not asked & (MOMENTS | CHANGE)
    wide = not as_stored or asked & VALUES
    size = CHUNK if wide else 4 * CHUNK
    for start in range(0, len(x), size):
        n = min(size, len(x) - start)
        p, q = x[start : start + n], y[start : start + n]
        if wide:
            _widen(p, a[:n].view(np.int32))
        if asked & (DIFFERENCE | CHANGE) and not as_stored:
            _widen(q, b[:n].view(np.int32))
        if not as_stored:
            _sums(a[:n], b[:n], start, asked, out)
        else:
            total, square, reference_sq, diff_sq, cross = _pair_words(p, q)
            out[0] += total
            out[1] += square
            out[9] += diff_sq
            out[10] += cross
            out[11] += reference_sq
        if asked & (NORM | VALUES):
            _values(a[:n], _low(np.int32(_largest16(p.view(np.uint16)))), asked, out)
        if asked & CHANGE:
            _change32(a[:n], b[:n], d[:n], out)


@_jit
def sums_float32(x: Array, y: Array, asked: int, out: Array) -> None:
    """Take everything in `asked` of `x` (and `y`, if it is a pair) into `out`, named by `SUMS`.

    `out` is zero before; `y` may be `x` itself where nothing asks for a pair.
    """
    d = np.empty(CHUNK, np.float32)
    for start in range(0, len(x), CHUNK):
        n = min(CHUNK, len(x) - start)
        a, b = x[start : start + n], y[start : start + n]
        _sums(a, b, start, asked, out)
        if asked & (NORM | VALUES):
            d.view(np.int32)[0] = _largest32(a.view(np.int32))
            _values(a, np.float64(d[0]), asked, out)
        if asked & CHANGE:
            _change32(a, b, d[:n], out)


@_jit
def sums_float64(x: Array, y: Array, asked: int, out: Array) -> None:
    """`sums_float32` of float64."""
    d = np.empty(CHUNK, np.float64)
    bits = d.view(np.int64)
    for start in range(0, len(x), CHUNK):
        n = min(CHUNK, len(x) - start)
        a, b = x[start : start + n], y[start : start + n]
        _sums(a, b, start, asked | LONG, out)
        if asked & (NORM | VALUES):
            bits[0] = _largest64(a.view(np.int64))
            _values(a, d[0], asked, out)
        if asked & CHANGE:
            out[12] += _subtract(a, b, d[:n])
            bits[0] = _largest64(bits[:n])
            out[13] = _larger(out[13], d[0])


@_jit
def _adam_add(
    m: Array, v: Array, m_factor: float, v_factor: float, bound: float, least: float, eps: float,
    u: Array, out: Array,
) -> None:  # fmt: skip
    """Add a chunk of moments; `u` is room for the update. See `adam.adam_sums`."""
    m_sq = v_sum = u_sq = 0.0
    below = below10 = violations = negative = np.int32(0)
    for i in range(len(m)):
        vh = np.float64(v[i]) * v_factor
        mh = np.float64(m[i]) * m_factor
        root = math.sqrt(vh)
        below = np.int32(below + np.int32(root < eps))
        below10 = np.int32(below10 + np.int32(root < 10 * eps))
        violations = np.int32(violations + np.int32(abs(mh) > root * bound + least))
        negative = np.int32(negative + np.int32(vh < 0))
        under = root + eps
        # 0/0 is 0 there: nothing ever came, nothing is done
        u[i] = mh / (under + np.float64((under == 0) & (mh == 0)))
        m_sq += mh * mh
        v_sum += vh
        u_sq += u[i] * u[i]
    out[0] += m_sq
    out[1] += v_sum
    out[2] += u_sq
    out[3] += below
    out[4] += below10
    out[5] += violations
    out[6] += negative
    bits = u.view(np.int64)
    bits[0] = _largest64(bits)
    out[7] = _larger(out[7], u[0])


@_jit
def adam_bfloat16(
    m: Array, v: Array, m_factor: float, v_factor: float, bound: float, least: float, eps: float,
    out: Array,
) -> None:  # fmt: skip
    """`adam_float32` of bfloat16, given as int16."""
    a, b, u = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32), np.empty(CHUNK)
    for start in range(0, len(m), CHUNK):
        n = min(CHUNK, len(m) - start)
        _widen(m[start : start + n], a[:n].view(np.int32))
        _widen(v[start : start + n], b[:n].view(np.int32))
        _adam_add(a[:n], b[:n], m_factor, v_factor, bound, least, eps, u[:n], out)


@_jit
def adam_float32(
    m: Array, v: Array, m_factor: float, v_factor: float, bound: float, least: float, eps: float,
    out: Array,
) -> None:  # fmt: skip
    """Take the sums of `ADAM` into `out`, which is zero before.

    The factors are 1/(1 − βᵗ) of each moment; `bound` and `least` say when m is too large for v.
    """
    u = np.empty(CHUNK)
    for start in range(0, len(m), CHUNK):
        n = min(CHUNK, len(m) - start)
        _adam_add(
            m[start : start + n], v[start : start + n],
            m_factor, v_factor, bound, least, eps, u[:n], out,
        )  # fmt: skip


adam_float64 = adam_float32


@_jit
def count_bins(words: Array, mask: Any, shift: int, first: int, out: Array) -> None:
    """Count magnitudes by their leading bits; those that begin with `first` go to bin 1 of `out`.

    Four counts side by side: neighbours are often alike, and one count would wait for itself.
    """
    kinds = (int(mask) >> shift) + 1
    counts = np.zeros((4, kinds), dtype=np.int64)
    rest = len(words) - len(words) % 4
    for i in range(0, rest, 4):
        for lane in range(4):
            counts[lane, (words[i + lane] & mask) >> shift] += 1
    for i in range(rest, len(words)):
        counts[0, (words[i] & mask) >> shift] += 1
    for place in range(kinds):
        at = min(max(place - first + 1, 0), len(out) - 1)
        out[at] += counts[0, place] + counts[1, place] + counts[2, place] + counts[3, place]
