"""Quantiles of a histogram, for those accumulators that count in bins."""

from __future__ import annotations

import numpy as np

from analysis360.stats.base import Values

__all__ = ["quantile"]


def quantile(counts: Values, edges: Values, q: float, below: float) -> float:
    """Where a fraction `q` of what was counted lies below, linear within a bin.

    Parameters
    ----------
    counts : ndarray
    edges : ndarray
        Where bins begin and end, one more than there are bins. Those of the first and the last are
        never used: these two bins are open.
    q : float
        Above 0.
    below : float
        What stands for a value in the first bin.

    Returns
    -------
    float
        NaN if nothing was counted, or if it lies in the last bin.

    Examples
    --------
    >>> edges = np.array([-np.inf, 0.0, 1.0, 2.0, np.inf])
    >>> quantile(np.array([0.0, 5.0, 5.0, 0.0]), edges, 0.75, below=np.nan)
    1.5
    """
    total = np.cumsum(counts)
    if not total[-1] > 0:
        return float("nan")
    rank = q * total[-1]
    at = int(np.searchsorted(total, rank))
    if at == 0:
        return below
    if at >= len(counts) - 1:
        return float("nan")
    share = (rank - total[at - 1]) / counts[at]
    return float(edges[at] + (edges[at + 1] - edges[at]) * share)
