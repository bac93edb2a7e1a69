"""The robust spike detector on plain arrays: where events begin and end.

`analysis360.spikes.find` says what the rules are and makes the table; the arithmetic is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis360.errors import LogError

__all__ = [
    "Event",
    "Rule",
    "Series",
    "fast_events",
    "flagged_events",
    "median_to_the_edge",
    "rule_for",
    "running_median",
    "sustained_events",
]

MAD_TO_SIGMA = 1.4826
"""Median absolute deviation to standard deviation, for a Gaussian: 1 / Phi^-1(3/4)."""

_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Rule:
    """The numbers of `find_spikes`."""

    window: int
    threshold: float
    floor: float
    smooth: int
    minimum: int

    def start(self, baseline: Any, sigma: Any) -> Any:
        """Value above which an event starts."""
        return baseline + np.maximum(self.threshold * sigma, self.floor * np.abs(baseline))

    def stop(self, baseline: float, sigma: float) -> float:
        """Value at or below which an event is over: half of the excess that starts one."""
        return baseline + max(self.threshold / 2 * sigma, self.floor / 2 * abs(baseline))


@dataclass(slots=True)
class Series:
    """One branch with its history, finite samples only; `own` is the first of its own."""

    value: np.ndarray
    smooth: np.ndarray
    step: np.ndarray
    tokens: np.ndarray
    own: int


@dataclass(frozen=True, slots=True)
class Event:
    """Indices into a series; `end` is the first sample after, or the length when censored."""

    channel: str
    onset: int
    end: int
    baseline: float
    sigma: float
    censored: bool
    below: bool = False


def rule_for(
    size: int,
    window: int | None,
    threshold: float,
    floor: float,
    smooth: int,
    minimum: int | None,
) -> Rule:
    """Fill in the defaults for a series of `size` samples, and check the settings."""
    wide = min(max(size // 4, 16), 128) if window is None else window
    least = min(max(wide // 4, 8), wide) if minimum is None else minimum
    if wide < 4 or smooth < 1 or smooth % 2 == 0 or threshold <= 0 or floor < 0 or least < 2:
        raise LogError(
            f"window={wide}, smooth={smooth}, threshold={threshold}, floor={floor}, "
            f"minimum={least}: allowed are window >= 4, odd smooth, threshold > 0, floor >= 0 and "
            "minimum >= 2"
        )
    return Rule(wide, threshold, floor, smooth, least)


def running_median(value: np.ndarray, width: int, minimum: int | None = None) -> np.ndarray:
    """Take the centred median of `width` values; NaN where fewer than `minimum` are there."""
    rolling = pd.Series(value).rolling(width, center=True, min_periods=minimum or width)
    return rolling.median().to_numpy()


def median_to_the_edge(value: np.ndarray, width: int) -> np.ndarray:
    """Take the running median; near an edge of fewer values, still as many to either side."""
    out = running_median(value, width, 1).copy()
    size = len(value)
    for at in range(min(width // 2, size)):
        for place, part in ((at, value[: 2 * at + 1]), (size - 1 - at, value[-2 * at - 1 :])):
            finite = part[np.isfinite(part)]
            out[place] = np.median(finite) if len(finite) else np.nan
    return out


def _baselines(
    value: np.ndarray, kept: np.ndarray, start: int, stop: int, rule: Rule
) -> tuple[np.ndarray, np.ndarray]:
    """Median and scaled MAD of the `window` last kept samples before each of ``start:stop``."""
    places = np.flatnonzero(kept[:stop])
    before = np.searchsorted(places, np.arange(start, stop))
    centre, spread = np.full(stop - start, np.nan), np.full(stop - start, np.nan)
    full = before >= rule.window
    if full.any():
        views = np.lib.stride_tricks.sliding_window_view(value[places], rule.window)
        # repeated counts (inside an event) share one window
        unique, back = np.unique(before[full] - rule.window, return_inverse=True)
        centre[full], spread[full] = (part[back] for part in _median_and_sigma(views[unique]))
    for i in np.flatnonzero(~full & (before >= rule.minimum)):
        one = value[places[: before[i]]][None, :]
        centre[i], spread[i] = (part[0] for part in _median_and_sigma(one))
    return centre, spread


def _median_and_sigma(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    centre = np.median(windows, axis=1)
    return centre, MAD_TO_SIGMA * np.median(np.abs(windows - centre[:, None]), axis=1)


def sustained_events(
    series: Series, rule: Rule
) -> tuple[list[Event], tuple[np.ndarray, np.ndarray]]:
    """Events of the running median, and the baseline of every sample with these left out."""
    size = len(series.value)
    kept = np.ones(size, dtype=bool)
    centre, spread = np.full(size, np.nan), np.full(size, np.nan)
    events: list[Event] = []
    start = 0
    while start < size:
        stop = min(start + _BLOCK, size)
        here = slice(start, stop)
        centre[here], spread[here] = _baselines(series.value, kept, start, stop, rule)
        high = np.flatnonzero(series.smooth[here] > rule.start(centre[here], spread[here]))
        if not len(high):
            start = stop
            continue
        flagged = start + int(high[0])
        far = float(centre[flagged]), float(spread[flagged])
        event = _segment(series, rule, flagged, far, kept)
        events.append(event)
        kept[event.onset : event.end] = False
        centre[event.onset : event.end] = event.baseline
        spread[event.onset : event.end] = event.sigma
        start = event.end
    return events, (centre, spread)


def _segment(
    series: Series, rule: Rule, flagged: int, far: tuple[float, float], kept: np.ndarray
) -> Event:
    """Onset and end of the event whose running median is first high, over `far`, at `flagged`."""
    limit = float(rule.start(*far))
    reach = rule.smooth // 2
    around = flagged + np.arange(-reach, reach + 1)
    around = around[(around >= 0) & (around < len(kept))]
    around = around[kept[around]]
    onset, lowest = flagged, limit
    for _ in range(2):  # the nearer baseline of the first guess may show that it began earlier
        onset = min(onset, int(around[np.argmax(series.value[around] > lowest)]))
        baseline, sigma = min(_near(series, rule, onset, kept), far)
        lowest = min(limit, float(rule.start(baseline, sigma)))
    calm = series.smooth[flagged:] <= min(rule.stop(baseline, sigma), limit)
    over = np.flatnonzero(_runs(calm, rule.smooth))
    end = flagged + int(over[0]) if len(over) else len(series.value)
    return Event("sustained", onset, max(end, onset + 1), baseline, sigma, not len(over))


def _near(series: Series, rule: Rule, onset: int, kept: np.ndarray) -> tuple[float, float]:
    """Median and scaled MAD of the last ``window // 2`` running medians before `onset`."""
    before = series.smooth[np.flatnonzero(kept[:onset])]
    before = before[np.isfinite(before)][-max(rule.window // 2, rule.minimum) :]
    if not len(before):  # a `minimum` below the smoother's width: the start's own baseline stays
        return float("inf"), float("nan")
    centre, spread = _median_and_sigma(before[None, :])
    return float(centre[0]), float(spread[0])


def _runs(true: np.ndarray, length: int) -> np.ndarray:
    """Where the next `length` values are all true."""
    if len(true) < length:
        return np.zeros(0, dtype=bool)
    views = np.lib.stride_tricks.sliding_window_view(true, length)
    return np.asarray(views.all(axis=1))


def fast_events(
    series: Series, rule: Rule, baseline: tuple[np.ndarray, np.ndarray], events: list[Event]
) -> list[Event]:
    """Find runs of high raw samples outside sustained events."""
    centre, spread = baseline
    high = series.value > rule.start(centre, spread)
    held = np.zeros(len(high), dtype=bool)
    for event in events:
        held[event.onset : event.end] = True
    at = np.flatnonzero(high & ~held)
    for low, up in zip(at[:-1], at[1:], strict=True):  # one event if near enough to be seen as one
        high[low:up] = high[low:up] | (up - low <= rule.smooth // 2)
    high &= ~held
    edges = np.flatnonzero(np.diff(np.concatenate([[False], high, [False]]).astype(np.int8)))
    found = []
    for onset, end in zip(edges[::2], edges[1::2], strict=True):
        level = float(centre[onset]), float(spread[onset])
        found.append(Event("fast", int(onset), int(end), *level, bool(end == len(high))))
    return found


def flagged_events(
    flagged: np.ndarray, centre: np.ndarray, spread: np.ndarray, smooth: int, value: Any = None
) -> list[Event]:
    """Unbroken runs of flagged samples; sustained if the running median would be moved by them."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flagged, [False]]).astype(np.int8)))
    found = []
    for onset, end in zip(edges[::2], edges[1::2], strict=True):
        channel = "sustained" if end - onset > smooth // 2 else "fast"
        level = float(centre[onset]), float(spread[onset])
        below = value is not None and bool(value[onset] < centre[onset])
        cut = bool(end == len(flagged))
        found.append(Event(channel, int(onset), int(end), *level, cut, below))
    return found
