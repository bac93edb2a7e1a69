"""The rules of the literature by name, and the spike score of OLMo 2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis360.errors import LogError

__all__ = ["PRESETS", "Preset", "preset_levels", "spike_presets", "spike_score"]

ALPHA = 0.97
"""Weight of the past in ZClip's moving mean and variance."""


@dataclass(frozen=True, slots=True)
class Preset:
    """One rule, with its numbers and where they are from."""

    name: str
    column: str
    window: int
    threshold: float
    sides: str
    center: str
    spread: str
    parameters: str
    source: str


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "robust", "loss", 128, 6.0, "above", "median of the window before",
            "1.4826 median absolute deviations",
            "floor=0.05 of the median; channels: sustained = running median of smooth=5 samples, "
            "fast = single samples; baseline frozen at the onset; a quarter of a log shorter than "
            "512 samples, at least 16, as its window",
            "this package; window and threshold of OLMo-core, median and MAD for mean and SD",
        ),
        Preset(
            "olmo2", "loss", 1000, 7.0, "both", "mean of the window before",
            "population standard deviation", "ddof=0 (the source does not say); >= threshold",
            "OLMo 2, arXiv 2501.00656, section 3.2",
        ),
        Preset(
            "olmo-core", "loss", 128, 6.0, "above", "mean of the window before",
            "population standard deviation",
            "> threshold; nothing where the spread is below 1e-10; the callback also looks at the "
            "gradient norm: column='grad_norm'",
            "OLMo-core, StabilityMonitorCallback, commit 138b1fca",
        ),
        Preset(
            "zclip", "grad_norm", 25, 2.5, "above", "exponential moving mean",
            "root of the exponential moving variance",
            "alpha=0.97; the window is the warm-up; a flagged norm enters the mean and the "
            "variance as mean + threshold^2 / z standard deviations, that it is clipped to",
            "ZClip, arXiv 2504.02507, and its code, commit 1acb0857",
        ),
    )
}  # fmt: skip


def spike_presets() -> pd.DataFrame:
    """Detection rules that `find_spikes` has by name, with their numbers and sources.

    Returns
    -------
    DataFrame
        One row per rule: ``preset`` (its name), ``column`` (searched unless another is named),
        ``window`` (samples; ZClip: those of the warm-up), ``threshold`` (spreads from the
        centre), ``sides`` (``"above"`` or ``"both"``), ``center``, ``spread`` (of what),
        ``parameters`` (what else it has), ``source``.

    Notes
    -----
    Only ``"robust"`` cuts events: frozen baseline, end by hysteresis, recovery, residual. The
    others flag single samples, and what they give is every unbroken run of flagged ones.

    Examples
    --------
    >>> spike_presets()[["preset", "window", "threshold", "sides"]]
          preset  window  threshold  sides
    0     robust     128        6.0  above
    1      olmo2    1000        7.0   both
    2  olmo-core     128        6.0  above
    3      zclip      25        2.5  above
    """
    rows = [
        {
            "preset": p.name,
            **{name: getattr(p, name) for name in Preset.__slots__ if name != "name"},
        }
        for p in PRESETS.values()
    ]
    return pd.DataFrame(rows)


def preset_of(name: str) -> Preset:
    """Look a preset up; the error lists what there is."""
    if name not in PRESETS:
        raise LogError(f"no preset {name!r}; there are {list(PRESETS)}")
    return PRESETS[name]


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
    center, spread = _rolling(series, window, ddof)
    distance = np.abs(series - center)
    far = (distance >= threshold * spread) & (distance > 0)
    return 100.0 * float(far.sum()) / len(series)


def _rolling(value: np.ndarray, window: int, ddof: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the `window` values before each; NaN where fewer are."""
    before = pd.Series(value).shift(1).rolling(window)
    return before.mean().to_numpy(), before.std(ddof=ddof).to_numpy()


def _zclip(
    value: np.ndarray, warm: int, threshold: float, alpha: float, eps: float = 1e-6
) -> tuple[np.ndarray, np.ndarray]:
    """ZClip's mean and standard deviation before each value; NaN while it warms up."""
    center, spread = np.full(len(value), np.nan), np.full(len(value), np.nan)
    if len(value) <= warm:
        return center, spread
    mean, var = float(value[:warm].mean()), float(value[:warm].var())
    for at in range(warm, len(value)):
        seen, std = float(value[at]), var**0.5
        center[at], spread[at] = mean, std
        score = (seen - mean) / (std + eps)
        if score > threshold:  # what is fed back is the norm that ZClip would have clipped to
            seen = mean + threshold * std / (score / threshold)
        mean = alpha * mean + (1 - alpha) * seen
        var = alpha * var + (1 - alpha) * (seen - mean) ** 2
    return center, spread


def preset_levels(
    value: np.ndarray, preset: Preset, window: int, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which values a preset flags, and the centre and spread that it held each against."""
    if preset.name == "zclip":
        center, spread = _zclip(value, window, threshold, ALPHA)
        return (value - center) / (spread + 1e-6) > threshold, center, spread
    center, spread = _rolling(value, window)
    distance = value - center
    if preset.sides == "both":
        away = np.abs(distance)
        return (away >= threshold * spread) & (away > 0), center, spread
    return (distance > threshold * spread) & (spread >= 1e-10), center, spread
