"""How far one branch is from others, in units of how far these are from each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special
from scipy import stats as scipy_stats

__all__ = ["FEWEST", "SAME", "SERIES", "Grid", "non_decreasing", "normal_score", "score"]

Values = npt.NDArray[np.float64]

SERIES = [
    "run", "name", "layer", "module", "param", "expert", "head", "state", "against", "statistic",
]  # fmt: skip
"""Columns that tell one line of values over checkpoints from another."""

SAME = 1e-9
"""Differences below this, in log2 or relative to the largest value, are rounding."""

FEWEST = 3
"""Tensors of a module from which a scatter is borrowed or, without placebos, taken."""

_STEP = 2.0**-8
"""Stands in for the scatter of values that are all equal, in log2 or relative to the largest."""

_BORROWED = 2.0
"""Degrees of freedom that the scatter in a module's other tensors counts for."""


class Grid:
    """Series by checkpoints of one run, and which tensors belong to one module."""

    def __init__(self, rows: pd.DataFrame) -> None:
        clock = "tokens" if rows["tokens"].notna().all() else "step"
        self.line = rows.groupby(SERIES, dropna=False, sort=False).ngroup().to_numpy()
        self.point = rows.groupby(clock, dropna=False, sort=True).ngroup().to_numpy()
        like = ["module", "param", "state", "against", "statistic", "effect_kind", clock]
        self.module = rows.groupby(like, dropna=False, sort=False).ngroup()
        self.ratio = rows["effect_kind"].eq("log2").to_numpy(dtype=bool)

    def grown(self, variance: Values, weight: Values) -> Values:
        """Variances made non-decreasing along each series."""
        shape = (self.line.max() + 1, self.point.max() + 1)
        square, weights = np.full(shape, np.nan), np.zeros(shape)
        square[self.line, self.point] = variance
        weights[self.line, self.point] = np.where(np.isnan(variance), 0.0, weight)
        return non_decreasing(square, weights)[self.line, self.point]


def score(mine: Values, others: Values, rounding: Values, grid: Grid) -> tuple[Values, Values]:
    """Score of one branch among others, and the scatter of these."""
    count = np.isfinite(others).sum(axis=1).astype(np.float64)
    whole = np.where(np.isfinite(others), others, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = whole.sum(axis=1) / count
        around = np.where(np.isfinite(others), others - mean[:, None], 0.0)
        variance = np.where(count > 1, (around**2).sum(axis=1) / (count - 1), np.nan)
        variance[variance <= rounding**2] = 0.0
        freedom = count - 1
        borrowed = pd.Series(variance).groupby(grid.module).transform("mean").to_numpy()
        enough = pd.Series(variance).groupby(grid.module).transform("count").to_numpy() >= FEWEST
        extra = np.where(enough & grid.ratio, _BORROWED, 0.0)
        variance = (extra * borrowed + freedom * variance) / (extra + freedom)
        variance = grid.grown(variance, freedom + extra)
        off = mine - mean
        off[np.abs(off) <= rounding] = 0.0
        # where all others are equal, values may be rounded: one place of sixteen-bit floats
        variance = np.where((variance == 0) & (off != 0), (_STEP / SAME * rounding) ** 2, variance)
        t = off / np.sqrt(variance * (1 + 1 / count))
    return normal_score(t, freedom + extra), np.sqrt(variance)


def non_decreasing(values: Values, weights: Values) -> Values:
    """Weighted isotonic regression of each row; entries of weight 0 are ignored.

    Notes
    -----
    By its min-max form (Robertson, Wright and Dykstra 1988, theorem 1.4.4): at i, the largest over
    a ≤ i of the smallest over b ≥ i of the mean from a to b.

    Examples
    --------
    >>> non_decreasing(np.array([[1.0, 3.0, 2.0, 5.0]]), np.ones((1, 4))).tolist()
    [[1.0, 2.5, 2.5, 5.0]]
    """
    rows, points = values.shape
    out = np.full(values.shape, np.nan)
    block = max(1, 2_000_000 // max(points * points, 1))
    for start in range(0, rows, block):
        part = slice(start, start + block)
        w = weights[part]
        total = np.cumsum(np.pad(np.where(w > 0, values[part] * w, 0.0), ((0, 0), (1, 0))), axis=1)
        weight = np.cumsum(np.pad(w, ((0, 0), (1, 0))), axis=1)
        high = np.full(w.shape, -np.inf)
        for a in range(points):
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = (total[:, a + 1 :] - total[:, [a]]) / (weight[:, a + 1 :] - weight[:, [a]])
            mean[np.isnan(mean)] = np.inf  # nothing there yet
            low = np.minimum.accumulate(mean[:, ::-1], axis=1)[:, ::-1]
            high[:, a:] = np.maximum(high[:, a:], np.where(np.isfinite(low), low, -np.inf))
        out[part] = np.where(w > 0, high, np.nan)
    return out


def normal_score(t: Values, freedom: Values) -> Values:
    """Normal value with the tail probability of `t` under Student's t; far out by its leading term.

    Examples
    --------
    >>> normal_score(np.array([0.0, 12.706, 1e9]), np.array([1.0, 1.0, 30.0])).round(2).tolist()
    [0.0, 1.96, 33.73]
    """
    size, nu = np.abs(t), np.where(freedom > 0, freedom, np.nan)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        tail = scipy_stats.t.sf(size, nu)
        # the incomplete beta function I_x(nu/2, 1/2) for small x, halved
        log = np.log(0.5) - np.log(nu / 2) - special.betaln(nu / 2, 0.5)
        log = log + nu / 2 * (np.log(nu) - np.logaddexp(np.log(nu), 2 * np.log(size)))
        log = np.where(tail > 1e-280, np.log(tail), log)
        z = np.where(np.isinf(size), np.inf, -special.ndtri_exp(log))
    return np.where(np.isnan(size) | np.isnan(nu), np.nan, np.sign(t) * z) + 0.0
