"""Events over a stated baseline, for excerpts too short to have one of their own."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis360.errors import LogError
from analysis360.spikes.history import with_history
from analysis360.spikes.segments import MAD_TO_SIGMA, Event, Rule, Series

__all__ = ["stated_events", "stated_level", "stated_residual", "stated_status"]


def stated_level(
    loss: pd.DataFrame, branch: str, column: str, series: Series, baseline: float | str
) -> np.ndarray:
    """Baseline at every sample: a number, a fit, or another branch's values at the same steps."""
    if not isinstance(baseline, str):
        if not np.isfinite(baseline):
            raise LogError(f"baseline={baseline}: allowed are a finite number, 'fit' or a branch")
        return np.full(len(series.value), float(baseline))
    step = series.step.astype(np.float64)
    there = [str(name) for name in pd.unique(loss["branch"])]
    if baseline in there:
        rows, _ = with_history(loss, baseline)
        known = rows[np.isfinite(rows[column].to_numpy(dtype=np.float64, na_value=np.nan))]
        x, y = known["step"].to_numpy(dtype=np.float64), known[column].to_numpy(dtype=np.float64)
        # not beyond its ends
        other: np.ndarray = np.interp(step, x, y, left=np.nan, right=np.nan)
        return other
    if baseline != "fit":
        raise LogError(f"baseline={baseline!r}: allowed are a number, 'fit' or a branch of {there}")
    fine = np.flatnonzero(step > 0)
    # at most 512 samples, evenly: their pairs are what the median is over
    some = fine[np.unique(np.linspace(0, len(fine) - 1, min(len(fine), 512)).astype(int))]
    if len(some) < 2:
        return np.full(len(step), np.nan)
    x, y = np.log(step[some]), series.value[some]
    i, j = np.triu_indices(len(x), 1)
    slope = float(np.median((y[j] - y[i]) / (x[j] - x[i])))
    level: np.ndarray = np.median(y - slope * x) + slope * np.log(np.maximum(step, 1.0))
    return level


def stated_status(baseline: object, size: int, rule: Rule) -> str:
    """What events over a stated baseline rest on."""
    short = size < _least(rule)
    said = f"; too short to detect in: {size} samples, {_least(rule)} are needed" if short else ""
    return f"stated baseline {baseline}{said}"


def _least(rule: Rule) -> int:
    return 4 * rule.minimum


def stated_events(series: Series, rule: Rule, level: np.ndarray) -> tuple[list[Event], np.ndarray]:
    """Events over `level`, and the level where there is one."""
    excess = series.value - level
    sigma = float("nan")
    if np.isfinite(excess).sum() >= _least(rule):
        fine = excess[np.isfinite(excess)]
        sigma = float(MAD_TO_SIGMA * np.median(np.abs(fine - np.median(fine))))
    spread = 0.0 if np.isnan(sigma) else sigma
    limit = np.maximum(rule.threshold * spread, rule.floor * np.abs(level))
    high, calm = np.flatnonzero(excess > limit), excess <= limit / 2
    events: list[Event] = []
    reach = rule.smooth // 2
    groups = np.split(high, np.flatnonzero(np.diff(high) > reach) + 1) if len(high) else []
    for group in groups:
        onset, last = int(group[0]), int(group[-1])
        if events and onset < events[-1].end:
            continue
        over = np.flatnonzero(calm[last + 1 :])
        end = last + 1 + int(over[0]) if len(over) else len(calm)
        channel = "sustained" if end - onset > reach else "fast"
        events.append(Event(channel, onset, end, float(level[onset]), sigma, not len(over)))
    return events, level


def stated_residual(event: Event, series: Series, level: np.ndarray) -> float:
    """Median excess over the stated baseline after the event; NaN for fewer than 2 samples."""
    after = (series.value - level)[event.end :]
    after = after[np.isfinite(after)]
    if event.censored or event.channel == "fast" or len(after) < 2:
        return float("nan")
    return float(np.median(after))
