"""The rules of the literature by name, and the spike score of OLMo 2."""

from __future__ import annotations

import numpy as np
import pandas as pd

__all__ = ["spike_score"]


def spike_score(
    values: pd.Series | np.ndarray,
    *,
    window: int = 1000,
    threshold: float = 7.0,
    ddof: int = 0,
) -> float:
    """Percentage of values far from the rolling mean: the spike score of OLMo 2.

    Parameters
    ----------
    values : array_like, shape (n,)
        Loss or gradient norm, one per sample; values that are not finite are left out.
    window : int
        Values before the one that is judged, which is not among them. The first `window` values
        are not judged, but count in the total.
    threshold : float
        Standard deviations, to either side.
    ddof : int
        0 divides the variance by `window`, 1 by ``window - 1``; the source does not say.

    Returns
    -------
    float
        From 0 to 100; NaN for fewer than ``window + 1`` values.

    Notes
    -----
    "Percentage of values in a time series that are at least seven standard deviations away from a
    rolling average of the last 1,000 values" (OLMo 2, arXiv 2501.00656, section 3.2). A spike
    inflates the standard deviation that it is held against, so long spikes score low; use
    `find_spikes` to find them. The score depends on how densely a log was sampled.

    Examples
    --------
    >>> import numpy as np
    >>> values = np.sin(np.arange(200.0))
    >>> values[150] = 9
    >>> spike_score(values, window=100)
    0.5
    """
    series = np.asarray(values, dtype=np.float64)
    series = series[np.isfinite(series)]
    if len(series) <= window:
        return float("nan")
    before = pd.Series(series).shift(1).rolling(window)
    distance = np.abs(series - before.mean().to_numpy())
    far = (distance >= threshold * before.std(ddof=ddof).to_numpy()) & (distance > 0)
    return 100.0 * float(far.sum()) / len(series)
