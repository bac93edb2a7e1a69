"""Power law of the upper tail of positive numbers, by Clauset, Shalizi & Newman (2009)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["MIN_VALUES", "PowerLaw", "fit_power_law", "fit_nbytes"]

MIN_VALUES = 10
"""Fewer numbers are not fitted."""

EQUAL = -1e-9
"""Logarithm of the smallest over the largest from which numbers are the same but for rounding."""

CHUNK = 1 << 20
"""Pairs of a number and a threshold that are compared at a time."""

Values = npt.NDArray[np.float64]


class PowerLaw(NamedTuple):
    """A fitted tail: density proportional to ``x**-alpha`` from `xmin` on."""

    alpha: float
    xmin: float
    distance: float
    tail: float


def fit_nbytes(count: int) -> int:
    """Bytes that `fit_power_law` needs for so many numbers."""
    return 8 * (4 * max(CHUNK, count) + 16 * count)


def fit_power_law(values: Values) -> PowerLaw:
    r"""Exponent by maximum likelihood, where the Kolmogorov–Smirnov distance is least.

    For each threshold :math:`x_i` but the largest, with `n` numbers from it on,
    :math:`\alpha=1+n/\sum\ln(x_j/x_i)` (equation 3.1), and the distance is the largest
    :math:`|1-(x_j/x_i)^{1-\alpha}-k/n|` over the tail, with `k` numbers below :math:`x_j`, as in
    the authors' ``plfit`` and in WeightWatcher.

    Parameters
    ----------
    values : ndarray
        Positive numbers.

    Returns
    -------
    PowerLaw
        All NaN for fewer than `MIN_VALUES` numbers, or if they are all the same to 1e-9.

    Examples
    --------
    >>> found = fit_power_law(np.arange(1, 101) ** -0.5)  # quantiles of x**-3
    >>> 2.8 < found.alpha < 3.2
    True
    """
    nothing = PowerLaw(*[float("nan")] * 4)
    if len(values) < MIN_VALUES:
        return nothing
    ordered = np.sort(values)
    logs = np.log(ordered / ordered[-1])
    if logs[0] > EQUAL:
        return nothing
    starts = np.flatnonzero(np.diff(logs, prepend=-np.inf) > 0)  # the first of equal numbers
    starts = starts[logs[starts] < 0]
    tails = (len(ordered) - starts).astype(np.float64)
    above = np.cumsum(logs[::-1])[::-1][starts] - tails * logs[starts]
    slopes = tails / above  # alpha - 1
    distances = _distances(logs, starts, tails, slopes)
    best = int(np.argmin(distances))
    xmin = float(ordered[starts[best]])
    return PowerLaw(float(1 + slopes[best]), xmin, float(distances[best]), float(tails[best]))


def _distances(logs: Values, starts: npt.NDArray[np.intp], tails: Values, slopes: Values) -> Values:
    """Kolmogorov–Smirnov distance of each tail, many thresholds at a time."""
    found, size, first = np.empty(len(starts)), len(logs), 0
    while first < len(starts):
        begin = starts[first]
        last = min(len(starts), first + max(1, CHUNK // (size - begin)))
        some = slice(first, last)
        place = (np.arange(begin, size) - starts[some, None]) / tails[some, None]
        law = logs[begin:] - logs[starts[some], None]
        law *= -slopes[some, None]
        np.expm1(np.minimum(law, 0, out=law), out=law)
        np.abs(np.add(law, place, out=law), out=law)  # 1 - exp(-slope*(x - start)) - k/n, negated
        law[place < 0] = 0.0  # below the threshold
        found[some] = law.max(axis=1)
        first = last
    return found
