"""Spikes planted in logs with real noise: how many are found, and how many alarms are false.

``python -m benchmarks.spikes FOLDER`` with the folder of the real logs (`benchmarks.spike_logs`
says what is made of them, and was frozen before the detector was tuned); ``--figure FILE`` draws
the curves. Ends with status 1 where the default at a preset's own rate of false alarms finds less
of all spikes than the preset's 95 % interval; ``below`` marks it for each class of them, too.

An alarm is an event of a detector; it finds a planted spike if it begins from 2 steps before its
first step to before its end. Any other is false. So is one at an outlier of the real noise, and
one that began earlier and runs over the spike. ZClip's rule is made for gradient norms; here it
gets the same loss as the others. The default is swept with floor and threshold in their proportion.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from analysis360.logs import read_loss
from analysis360.spikes.find import branch_series
from analysis360.spikes.presets import PRESETS, preset_levels
from analysis360.spikes.segments import (
    Series,
    fast_events,
    flagged_events,
    rule_for,
    sustained_events,
)
from benchmarks.common import machine
from benchmarks.spike_logs import CHECKSUM, Log, checksum, make_logs

SWEEP = {
    "robust": (2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0),
    "olmo2": (3.0, 4.0, 5.0, 7.0, 9.0),
    "olmo-core": (3.0, 4.0, 5.0, 6.0, 8.0),
    "zclip": (2.5, 4.0, 6.0, 8.0),
}
HEIGHTS = {
    "all": (0, np.inf),
    "2-4": (2, 4),
    "4-8": (4, 8),
    "8-16": (8, 16),
    "over 16": (16, np.inf),
}
LENGTHS = {"1-2": (1, 3), "3-10": (3, 11), "11-100": (11, 101), "101-2000": (101, 2001)}
TOLERANCE = 2


def series_of(log: Log) -> dict[str, Series]:
    """Branches of a log as the detector gets them, after restarts are stitched."""
    loss = read_loss(log.rows, branch="main")
    return {str(b): branch_series(loss, str(b), "loss", 5)[0] for b in pd.unique(loss["branch"])}


def onsets(name: str, threshold: float, series: Series) -> np.ndarray:
    """Step at which each event of a detector begins."""
    if name == "robust":
        floor = 0.05 * threshold / PRESETS["robust"].threshold
        rule = rule_for(len(series.value), None, threshold, floor, 5, None)
        events, levels = sustained_events(series, rule)
        events += fast_events(series, rule, levels, events)
    else:
        preset = PRESETS[name]
        flagged, center, spread = preset_levels(series.value, preset, preset.window, threshold)
        events = flagged_events(flagged, center, spread, 5)
    return series.step[[e.onset for e in events if e.onset >= series.own]]


def score(name: str, threshold: float, made: list[tuple[Log, dict[str, Series]]]) -> pd.DataFrame:
    """Planted spikes, each with whether it was found; false alarms and steps as `attrs`."""
    false, steps, rows = 0, 0, []
    for log, branches in made:
        for branch, series in branches.items():
            at = onsets(name, threshold, series)
            steps += len(series.value) - series.own
            there = log.planted[log.planted["branch"] == branch]
            start, stop = there["start"].to_numpy(), there["stop"].to_numpy()
            inside = (at[:, None] >= start - TOLERANCE) & (at[:, None] < stop)
            beside = (at[:, None] >= start - TOLERANCE) & (at[:, None] < stop + TOLERANCE)
            false += int((~beside.any(axis=1)).sum())
            found = there.assign(found=inside.any(axis=0), log=log.number, noise=log.noise)
            rows.append(found.assign(over=there["height"] / log.sigma, length=stop - start))
    frame = pd.concat(rows)
    frame.attrs["rate"] = 1e4 * false / steps
    return frame


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    if not n:
        return float("nan"), float("nan")
    z, p = 1.959964, hits / n
    middle, wide = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return float((middle - wide) / (1 + z * z / n)), float((middle + wide) / (1 + z * z / n))


def parts(frame: pd.DataFrame) -> dict[str, pd.Series]:
    """Whether the spikes of each class of height over sigma, and of duration, were found."""
    out = {}
    for kind, column, classes in (("height/σ", "over", HEIGHTS), ("steps", "length", LENGTHS)):
        for name, (low, high) in classes.items():
            inside = frame[column].ge(low) & frame[column].lt(high)
            out["all" if name == "all" else f"{kind} {name}"] = frame.loc[inside, "found"]
    return out


def curves(made: list[tuple[Log, dict[str, Series]]]) -> pd.DataFrame:
    rows = []
    for name, thresholds in SWEEP.items():
        for threshold in thresholds:
            frame = score(name, threshold, made)
            for part, found in parts(frame).items():
                low, high = wilson(int(found.sum()), len(found))
                rows.append(
                    {"detector": name, "threshold": threshold, "rate": frame.attrs["rate"]}
                    | {"part": part, "n": len(found), "recall": float(found.mean())}
                    | {"low": low, "high": high}
                )
    return pd.DataFrame(rows)


def matched(frame: pd.DataFrame) -> pd.DataFrame:
    """The default at the most sensitive threshold with no more false alarms than the preset."""
    rows = []
    for name in list(SWEEP)[1:]:
        own = frame[(frame["detector"] == name) & (frame["threshold"] == PRESETS[name].threshold)]
        ours = frame[(frame["detector"] == "robust") & (frame["rate"] <= own["rate"].iloc[0])]
        at = ours["threshold"].min()
        both = own.merge(ours[ours["threshold"] == at], on="part", suffixes=("", "_default"))
        rows.append(both.assign(below=both["recall_default"] < both["low"]))
    return pd.concat(rows, ignore_index=True)


def draw(frame: pd.DataFrame, file: Path) -> None:
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(frame["part"]))
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    axes = figure.subplots(2, 5, sharex=True, sharey=True).ravel()
    marks = dict(zip(SWEEP, zip("osD^", ("#0072B2", "#D55E00", "#009E73", "#CC79A7"))))
    for ax, part in zip(axes, names):
        here = frame[frame["part"] == part]
        for name, (mark, color) in marks.items():
            one = here[here["detector"] == name].sort_values("rate")
            x = one["rate"].clip(lower=0.02)
            ax.plot(x, one["recall"], "-", marker=mark, ms=3, lw=1, color=color, label=name)
            own = one[one["threshold"] == PRESETS[name].threshold]
            bar = [own["recall"] - own["low"], own["high"] - own["recall"]]
            ax.errorbar(
                own["rate"].clip(lower=0.02), own["recall"], bar, fmt=mark, ms=7, color=color,
                mfc="none", capsize=2,
            )  # fmt: skip
        ax.set(xscale="log", ylim=(-0.02, 1.02))
        ax.set_title(f"{part} (n = {here['n'].iloc[0]})", fontsize=9)
        ax.grid(alpha=0.3)
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    axes[len(names)].legend(*axes[0].get_legend_handles_labels(), loc="center", frameon=False)
    figure.supxlabel("false alarms per 10,000 steps (none: at 0.02)")
    figure.supylabel("planted spikes found")
    figure.savefig(file, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of the real logs")
    parser.add_argument("--figure", type=Path, help="file for the curves")
    given = parser.parse_args()
    begun = time.perf_counter()
    logs = make_logs(given.folder)
    assert checksum(logs) == CHECKSUM, "the logs are not those of the frozen generator"
    made = [(log, series_of(log)) for log in logs]
    print(f"{machine()}\n\n{len(logs)} logs of the frozen generator, {CHECKSUM[:12]}…\n")
    frame = curves(made)
    every = frame[frame["part"] == "all"]
    print(every.drop(columns="part").to_string(index=False, float_format="%.3f"))
    table = matched(frame)
    keep = ["detector", "rate", "part", "n", "recall", "low", "high", "threshold_default"]
    print("\nAt each preset's own rate of false alarms (per 10,000 steps):\n")
    shown = table[[*keep, "rate_default", "recall_default", "below"]]
    print(shown.to_string(index=False, float_format="%.3f"))
    if given.figure:
        draw(frame, given.figure)
    print(f"\n{time.perf_counter() - begun:.0f} s")
    return int(bool(table.loc[table["part"] == "all", "below"].any()))


if __name__ == "__main__":
    sys.exit(main())
